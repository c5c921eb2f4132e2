/**
 * The expanding side of cold sets: reads the pages that a batch names, proves each where the expander will take it from, and
 * asks for those that cannot be had. What it leaves in a workspace is what the sets say, or nothing.
 */
import { copyRange } from '../../bytes/copy.ts'
import { ColdRuns } from '../../codec/cold-pages.ts'
import type { FlowExpander } from '../../codec/flow-expander.ts'
import type { SetGains } from '../../codec/set-gains.ts'
import { COLUMN, PAGE_SIZE } from '../../codec/wire.ts'
import { BATCH_PAGES_MAX, type Workspace } from '../../codec/workspace.ts'
import { ProxyError } from '../../errors.ts'
import { COLD_LATE_MAX, COLD_PATIENCE_MS, COLD_READ_MS_MAX } from '../../limits.ts'
import { DIGEST_WORDS } from '../../template/digest.ts'
import type { ColdFile, ColdList } from './cold-list.ts'
import { type DiskReads, READ_PAGES_MAX } from './disk-reads.ts'
import type { Deadline } from './reading-threads.ts'
import type { ReadingFailure } from './reading-worker.ts'

/** Pages between two that are wanted which are read along: a second read costs more. */
const GAP_PAGES_MAX = 3

/**
 * Pages that another side has, too, of numbers that differ: each is the page of its number, or it is not used. Undefined in
 * place of one that cannot be had.
 */
export type AskForPages = (numbers: readonly number[]) => Promise<readonly (Uint8Array | undefined)[]>

export interface ColdFetcherOptions {
  readonly list: ColdList
  readonly reads: DiskReads
  /** Who counts what sets bring. */
  readonly gains?: SetGains | undefined
  /** Where to get what cannot be read; undefined: nowhere. */
  readonly ask?: AskForPages | undefined
  /** A set that could not be read, the first time: it should not be offered again as it is. */
  readonly onFailure?: ((set: ColdFile, error: ProxyError) => void) | undefined
}

/** Pages of a set that are read at once, and the places in the batch of those that are wanted. */
interface Run {
  readonly set: ColdFile
  /** Number of the set's first page. */
  readonly start: number
  /** Index in its set of the first page, and how many. */
  readonly first: number
  readonly count: number
  readonly places: Uint16Array
}

export class ColdFetcher {
  private readonly options: ColdFetcherOptions
  private readonly runs = new ColdRuns()
  /** By place in the batch: the page's number. Places in the order of the numbers. */
  private readonly numbers = new Uint32Array(BATCH_PAGES_MAX)
  private readonly order = new Uint16Array(BATCH_PAGES_MAX)
  /** By set: batches in a row for which its disk gave nothing in time. */
  private readonly lateness = new Map<ColdFile, number>()
  /** Sets that have failed are not read again: what a disk gives once is what it gives. */
  private readonly failed = new Map<ColdFile, ProxyError>()
  private closed = false

  constructor(options: ColdFetcherOptions) {
    this.options = options
  }

  /**
   * Fetches what the column `cold` names into the workspace. One call at a time, in the order of batches.
   * @returns undefined where the batch names nothing
   * @throws BATCH_FORMAT; also as rejection TEMPLATE_*, IO where a page cannot be had from anywhere
   */
  fetch(flow: FlowExpander, workspace: Workspace, rawLength: number): Promise<void> | undefined {
    if (workspace.columnLength[COLUMN.COLD] === 0) return undefined
    const { runs, numbers } = this
    runs.read(workspace, flow.prediction, rawLength, this.options.list.filePages)
    let place = 0
    for (let run = 0; run < runs.length; run++) {
      for (let i = 0; i < runs.count[run]!; i++) numbers[place++] = runs.first[run]! + i
      this.options.gains?.coldPages(runs.first[run]!, runs.count[run]!)
    }
    return this.fetchPages(workspace)
  }

  /** Blocks that are not kept here, or not yet. */
  private someAreAbsent(set: ColdFile, start: number, places: Uint16Array): boolean {
    return places.some(place => !set.hasPage!(this.numbers[place]! - start))
  }

  /** The session is over: what still comes is written nowhere. */
  close(): void {
    this.closed = true
  }

  private async fetchPages(workspace: Workspace): Promise<void> {
    const { list, reads, ask } = this.options
    const { pages } = this.runs
    const { numbers } = this
    const order = this.order.subarray(0, pages)
    for (let place = 0; place < pages; place++) order[place] = place
    order.sort((a, b) => numbers[a]! - numbers[b]!)
    /** Places of pages that could not be had. */
    const missing: number[] = []
    const runs: Run[] = []
    for (let from = 0; from < pages; ) {
      const first = numbers[order[from]!]!
      const index = list.setOf(first)
      const end = Math.min(first + READ_PAGES_MAX, list.fileStarts[index + 1] ?? list.filePages)
      let to = from + 1
      let last = first
      for (; to < pages; to++) {
        const next = numbers[order[to]!]!
        if (next >= end || next - last > GAP_PAGES_MAX + 1) break
        last = next
      }
      const set = list.files[index]!
      const places = order.subarray(from, to)
      const start = list.fileStarts[index]!
      if (this.failed.has(set)) missing.push(...places)
      else if (set.hasPage && this.someAreAbsent(set, start, places)) missing.push(...places)
      else runs.push({ set, start, first: first - start, count: last - first + 1, places })
      from = to
    }
    const late = new Set<ColdFile>()
    const inThread = runs.filter(({ set }) => set.fd !== undefined)
    const others = runs.filter(({ set }) => set.fd === undefined)
    await reads.within(ask === undefined ? COLD_READ_MS_MAX : COLD_PATIENCE_MS, deadline =>
      Promise.all([
        inThread.length > 0 && this.readInThread(workspace, inThread, deadline, missing, late),
        ...others.map(run => this.readRun(workspace, run, deadline, missing, late)),
      ]),
    )
    for (const set of late) this.wasLate(set)
    if (missing.length > 0) await this.askFor(workspace, missing)
    workspace.fetchedPages = pages
  }

  /** Reads runs of files that a thread can read. Never rejects: what cannot be had is missing. */
  private async readInThread(
    workspace: Workspace,
    runs: readonly Run[],
    deadline: Deadline,
    missing: number[],
    late: Set<ColdFile>,
  ): Promise<void> {
    const { numbers } = this
    const wanted = runs.map(({ set, start, first, count, places }) => ({
      fd: set.fd!,
      position: set.positionOf(first),
      length: count * PAGE_SIZE,
      wanted: Array.from(places, place => numbers[place]! - start - first),
    }))
    const came = await this.options.reads.threads.read(wanted, deadline, ({ bytes, digests, runs: read }) => {
      if (this.closed) return // the workspace may be another session's by now
      for (const [i, { set, first, places }] of runs.entries()) {
        const { at, digestsAt, failure } = read[i]!
        if (failure) {
          const position = set.positionOf(first)
          missing.push(...places)
          this.fail(set, failure.code === '' ? set.truncated(position) : set.unreadable(systemError(failure), position))
          continue
        }
        for (const [k, page] of wanted[i]!.wanted.entries()) {
          const from = at + page * PAGE_SIZE
          const place = places[k]!
          if (set.isProof(first + page, digests, digestsAt + k * DIGEST_WORDS)) {
            copyRange(bytes, from, from + PAGE_SIZE, workspace.bytes, workspace.packedAt + place * PAGE_SIZE)
          } else {
            missing.push(place)
            this.fail(set, set.damaged(first + page))
          }
        }
      }
    })
    for (const { set, places } of runs) {
      if (came) this.lateness.delete(set)
      else {
        missing.push(...places)
        late.add(set)
      }
    }
  }

  /** Reads a run of a file that only its set can read. Never rejects: what cannot be had is missing. */
  private async readRun(
    workspace: Workspace,
    { set, start, first, count, places }: Run,
    deadline: Deadline,
    missing: number[],
    late: Set<ColdFile>,
  ): Promise<void> {
    const { numbers } = this
    try {
      const came = await this.options.reads.read(set, first, count, deadline, bytes => {
        if (this.closed) return
        for (const place of places) {
          const page = numbers[place]! - start
          const at = workspace.packedAt + place * PAGE_SIZE
          const from = (page - first) * PAGE_SIZE
          copyRange(bytes, from, from + PAGE_SIZE, workspace.bytes, at)
          if (set.isPage(page, workspace.bytes.subarray(at, at + PAGE_SIZE))) continue
          missing.push(place)
          this.fail(set, set.damaged(page))
        }
      })
      if (came) this.lateness.delete(set)
      else {
        missing.push(...places)
        late.add(set)
      }
    } catch (error) {
      missing.push(...places)
      this.fail(set, error as ProxyError)
    }
  }

  /** Silent once is nothing where the other side has the pages; over and over it is. */
  private wasLate(set: ColdFile): void {
    const times = (this.lateness.get(set) ?? 0) + 1
    this.lateness.set(set, times)
    if (this.options.ask === undefined || times >= COLD_LATE_MAX) this.fail(set, tooLate(set))
  }

  private async askFor(workspace: Workspace, missing: readonly number[]): Promise<void> {
    const { list, ask } = this.options
    const { numbers } = this
    const setOf = (place: number): ColdFile => list.files[list.setOf(numbers[place]!)]!
    const first = setOf(missing[0]!)
    const why = this.failed.get(first) ?? tooLate(first)
    if (ask === undefined) throw why
    const wanted = [...new Set(missing.map(place => numbers[place]!))]
    const pages = await ask(wanted)
    if (this.closed) return
    for (const place of missing) {
      const set = setOf(place)
      const page = pages[wanted.indexOf(numbers[place]!)]
      if (page === undefined || page.length !== PAGE_SIZE) throw this.given(set, why)
      const at = workspace.packedAt + place * PAGE_SIZE
      copyRange(page, 0, PAGE_SIZE, workspace.bytes, at)
      // proven where it lies, as what was read is
      const index = numbers[place]! - list.fileStarts[list.setOf(numbers[place]!)]!
      if (!set.isPage(index, workspace.bytes.subarray(at, at + PAGE_SIZE))) throw this.given(set, why)
    }
  }

  /** Nobody has a page of it: the session ends, and the set should not be in the next one. */
  private given(set: ColdFile, error: ProxyError): ProxyError {
    this.fail(set, error)
    return error
  }

  private fail(set: ColdFile, error: ProxyError): void {
    if (this.failed.has(set)) return
    this.failed.set(set, error)
    this.options.onFailure?.(set, error)
  }
}

/** As the system would have thrown it here. */
function systemError({ code, message }: ReadingFailure): Error {
  return Object.assign(new Error(message), { code })
}

function tooLate(set: ColdFile): ProxyError {
  const where = { stream: set.path, offset: 0 }
  const what = 'the disk does not answer in time'
  return new ProxyError('IO', what, where, 'not read any more in this session; look at the disk of the store')
}
