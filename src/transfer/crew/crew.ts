/**
 * Threads that help the main one to encode: whatever their number, batches take effect in one order. The main thread parses,
 * looks for whole pages and takes pages into the ring; parts of pages are looked for by all threads at once (board.ts), and
 * columns of pages are packed by helpers, each column by one, while the main thread goes on with the next batch.
 *
 * One crew a process. docs/adr/0023-threads.md
 */
import type { PartFinder } from '../../codec/encoder.ts'
import { COLUMN } from '../../codec/wire.ts'
import type { Workspace } from '../../codec/workspace.ts'
import type { ColumnStream, StreamSupply } from '../../compression/column-packer.ts'
import type { ZstdSettings } from '../../compression/effort.ts'
import { assert } from '../../errors.ts'
import { type Kernel, kernelModule, LATER, STAGED } from '../../kernel/kernel.ts'
import type { EventLoop } from '../event-loop.ts'
import { Board, PAGES_A_CLAIM } from './board.ts'
import { HelperThread, type StartHelper } from './helper-thread.ts'
import type { Piece } from './messages.ts'

/** Levels above take so long that libuv's threads, of which each column has one, are quicker. */
const LEVEL_MAX = 3

type Done = (parts: Uint8Array[]) => void

export class Crew {
  readonly board = new Board()
  readonly helpers: readonly HelperThread[]
  /** Those that live. */
  sessions = 0
  private lastSession = 0
  private lastStream = 0

  /** @param threads the main one counted: 2 at least */
  constructor(threads: number, loop: EventLoop, start?: StartHelper) {
    assert(threads > 1, 'a crew of nobody')
    this.helpers = Array.from({ length: threads - 1 }, (_, i) => new HelperThread(i, this.board, loop, start))
  }

  /** Resolves when all have begun to work, or will not. */
  get started(): Promise<unknown> {
    return Promise.all(this.helpers.map(({ started }) => started))
  }

  /** One of them does nothing any more: sessions that it packs for fail, others are better off with another crew. */
  get isBroken(): boolean {
    return this.helpers.some(({ failure }) => failure !== undefined)
  }

  /** Helps a session, whose kernel is this thread's. */
  open(kernel: Kernel): CrewSession {
    this.sessions++
    return new CrewSession(this, kernel, ++this.lastSession)
  }

  nextStream(): number {
    return ++this.lastStream
  }

  /** Has all let go of memories of sessions that they have left: one that waits never collects. */
  async collectGarbage(): Promise<void> {
    await Promise.all(this.helpers.map(helper => helper.ask({ kind: 'collect' }).catch(() => {}))) // the dead hold nothing
  }

  /** Resolves when no helper runs any more. */
  async end(): Promise<void> {
    await Promise.all(this.helpers.map(helper => helper.end()))
  }
}

/** The crew as one session has it. */
export class CrewSession implements PartFinder, StreamSupply {
  private readonly crew: Crew
  private readonly kernel: Kernel
  private readonly session: number
  private readonly words: Uint32Array
  /** This thread's staging area, where pages are told of, too. */
  private readonly staging: number
  /** What the next message to each helper will be. */
  private readonly pieces: { readonly piece: Piece; readonly done: Done; readonly failed: (error: unknown) => void }[][]
  private closed: Promise<void> | undefined

  constructor(crew: Crew, kernel: Kernel, session: number) {
    const { memory, layout, bytes } = kernel
    this.crew = crew
    this.kernel = kernel
    this.session = session
    this.pieces = crew.helpers.map(() => [])
    this.staging = layout.staging
    this.words = new Uint32Array(bytes.buffer, 0, bytes.length >>> 2)
    const module = kernelModule()
    assert(module && layout.threads > crew.helpers.length, 'a session has no room for its helpers')
    for (const helper of crew.helpers) helper.tell({ kind: 'session', session, memory, module, layout })
  }

  find(workspace: Workspace, count: number, options: number): void {
    const { kernel, staging } = this
    const { listAt, kindsAt, slotsAt, tokensAt, columnAt } = workspace
    const pages = this.tell(workspace, count)
    if (pages === 0) return
    this.look(pages, this.words[(tokensAt >>> 2) + count]!, options)
    const [literals, dense, words] = [columnAt[COLUMN.PAGES]!, columnAt[COLUMN.DENSE]!, columnAt[COLUMN.WORDS]!]
    const owners = staging + STAGED.OWNERS
    kernel.settlePages(listAt, count, kindsAt, slotsAt, tokensAt, literals, dense, words, staging, owners)
  }

  /** Writes down which pages were left for later. @returns how many */
  private tell({ listAt, placesAt, kindsAt, slotsAt, tokensAt }: Workspace, count: number): number {
    const { words, staging } = this
    const { bytes } = this.kernel
    let pages = 0
    for (let i = 0; i < count; i++) {
      if (bytes[kindsAt + i] !== LATER) continue
      const part = (staging >>> 2) + pages++ * (STAGED.PART >>> 2)
      words[part] = words[(listAt >>> 2) + i]!
      words[part + 1] = words[(placesAt >>> 2) + i]!
      words[part + 2] = words[(slotsAt >>> 2) + i]!
      words[part + 3] = words[(tokensAt >>> 2) + i]!
    }
    return pages
  }

  /** Looks for parts of them, with whoever has time. */
  private look(pages: number, total: number, options: number): void {
    const { kernel, staging, session } = this
    const { board } = this.crew
    const cursor = kernel.ringCursor
    const owners = kernel.bytes.subarray(staging + STAGED.OWNERS, staging + STAGED.OWNERS + pages)
    owners.fill(0)
    if (pages <= PAGES_A_CLAIM) {
      kernel.matchParts(staging, staging, 0, pages, total, cursor, options)
      return
    }
    board.post({ session, parts: staging, pages, total, cursor, options })
    const here = (number: number): void => {
      const first = number * PAGES_A_CLAIM
      const claimed = Math.min(PAGES_A_CLAIM, pages - first)
      kernel.matchParts(staging + first * STAGED.PART, staging, first, claimed, total, cursor, options)
    }
    const mine = new Set<number>()
    for (let number = board.next(); number >= 0; number = board.next()) {
      mine.add(number)
      here(number)
    }
    for (let number = 0; number * PAGES_A_CLAIM < pages; number++) {
      if (mine.has(number)) continue
      const helper = board.doneBy(number)
      if (helper < 0) here(number)
      else owners.fill(helper + 1, number * PAGES_A_CLAIM, (number + 1) * PAGES_A_CLAIM)
    }
  }

  /** Whether a helper would take a column now. */
  takes(column: number, { level }: ZstdSettings): boolean {
    return level <= LEVEL_MAX && this.crew.helpers[this.helperOf(column)]!.isReady
  }

  stream(column: number, settings: ZstdSettings): ColumnStream {
    const stream = this.crew.nextStream()
    const index = this.helperOf(column)
    const helper = this.crew.helpers[index]!
    helper.tell({ kind: 'stream', session: this.session, stream, settings })
    const close = (): void => helper.tell({ kind: 'close stream', stream })
    return {
      settings,
      isHelped: true,
      pack: ({ byteOffset: at, length }) =>
        new Promise((done, failed) => {
          this.pieces[index]!.push({ piece: { stream, at, length }, done, failed })
        }),
      close,
      closeWhenIdle: close, // what it is told it does in its order
    }
  }

  begin(): void {
    for (const [helper, pieces] of this.pieces.entries()) {
      if (pieces.length === 0) continue
      this.pieces[helper] = []
      this.crew.helpers[helper]!.ask({ kind: 'pack', pieces: pieces.map(({ piece }) => piece) }).then(
        answer => {
          assert(answer.kind === 'packed' && answer.pieces.length === pieces.length, 'another answer')
          for (const [i, { done }] of pieces.entries()) done([answer.pieces[i]!])
        },
        error => {
          for (const { failed } of pieces) failed(error)
        },
      )
    }
  }

  /** Has a helper commit a stretch of memory. @returns undefined: there is none who could; false (resolves): not all is */
  commit(at: number, length: number): Promise<boolean> | undefined {
    const helper = this.crew.helpers.at(-1)!
    if (!helper.isReady) return undefined
    return helper.ask({ kind: 'commit', session: this.session, at, length }).then(
      () => true,
      () => false, // it died: who packs with it says so
    )
  }

  /** Pages take most of the time, and have a helper for themselves where there are several. */
  private helperOf(column: number): number {
    return (this.session + (column === COLUMN.PAGES ? 0 : 1)) % this.crew.helpers.length
  }

  /** Resolves when all help, or will not. */
  get started(): Promise<unknown> {
    return this.crew.started
  }

  /** Resolves when no helper touches the session's memory any more. */
  close(): Promise<void> {
    this.closed ??= this.leave()
    return this.closed
  }

  private async leave(): Promise<void> {
    const { crew, session } = this
    const asked = crew.helpers.map(helper => helper.ask({ kind: 'close', session }).catch(() => helper.end()))
    await Promise.all(asked)
    if (--crew.sessions === 0 && crew.isBroken) await crew.end()
  }
}
