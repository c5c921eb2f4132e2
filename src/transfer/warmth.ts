/**
 * Makes ready what sessions will need: long matches of their templates, and the memory of their rings. A first touch costs
 * 3 us a page in a virtual machine, more than all else done to a page: what is ready when pages come, they need not wait for.
 */
import { type Kernel, PAGE_BYTES } from '../kernel/kernel.ts'
import { type EventLoop, nextTurn } from './event-loop.ts'

/**
 * What of a ring is committed before a migration comes: all of it; all of it where no other ring of the process is or was,
 * and no migration runs; nothing.
 */
export type RingInAdvance = 'always' | 'spare' | 'never'

/** Bytes of the ring ahead of what has passed that are committed while a migration runs. */
const COMMIT_AHEAD_BYTES = 8 << 20
/** Of one turn: 0.1 ms, and 1 to 4 on a host that is short of memory itself, where a first touch takes 40 us and more. */
const COMMIT_STEP_BYTES = 128 << 10
/** Of one message to a helper, which packs nothing meanwhile. */
const HELPED_STEP_BYTES = 512 << 10
/** Template pages whose long matches are made known in one turn: about 1 ms. */
const REMEMBER_STEP = 512

/** Pages of a memory that were committed for a spare ring: they stay so as long as the memory, whoever has their place. */
export class SparePages {
  bytes = 0
  private readonly pages: Uint8Array

  constructor(memoryBytes: number) {
    this.pages = new Uint8Array(memoryBytes / PAGE_BYTES)
  }

  /** How many bytes of a stretch are, before the first that are not. */
  ready(at: number, length: number): number {
    const first = this.pages.indexOf(0, at / PAGE_BYTES)
    return first < 0 ? length : Math.min(length, first * PAGE_BYTES - at)
  }

  /** Bytes of a stretch that are not. */
  missing(at: number, length: number): number {
    let bytes = 0
    for (const page of this.stretch(at, length)) if (page === 0) bytes += PAGE_BYTES
    return bytes
  }

  add(at: number, length: number): void {
    this.bytes += this.missing(at, length)
    this.stretch(at, length).fill(1)
  }

  private stretch(at: number, length: number): Uint8Array {
    return this.pages.subarray(at / PAGE_BYTES, (at + length) / PAGE_BYTES)
  }
}

/**
 * Which of the rings that wait for a migration is the spare one: the one of which most is committed, and of several the one
 * that came first. What was committed for one that is over counts as long as its memory, so all of it is one ring, however
 * often sessions come, begin and end.
 */
export class SpareRing {
  private readonly idle = new Set<Warmth>()
  private readonly committedBytes: () => number
  private running = 0

  /** @param committedBytes of all memories: what is committed for spare rings, of sessions that live and that are over */
  constructor(committedBytes: () => number) {
    this.committedBytes = committedBytes
  }

  /** Puts a stretch of a ring of so many bytes down as committed. False: all that is would be more than the ring. */
  takes(pages: SparePages, at: number, length: number, ringBytes: number): boolean {
    if (this.committedBytes() + pages.missing(at, length) > ringBytes) return false
    pages.add(at, length)
    return true
  }

  /** A session waits for a migration. */
  waits(ring: Warmth): void {
    this.idle.add(ring)
    this.next()
  }

  /** It does not, or is over. */
  leaves(ring: Warmth): void {
    this.idle.delete(ring)
    this.next()
  }

  /** A migration has begun, or has ended, in any session. */
  runs(change: 1 | -1): void {
    this.running += change
    this.next()
  }

  is(ring: Warmth): boolean {
    return this.chosen === ring
  }

  private get chosen(): Warmth | undefined {
    if (this.running > 0) return undefined
    let most: Warmth | undefined
    for (const ring of this.idle) if (most === undefined || ring.committedBytes > most.committedBytes) most = ring
    return most
  }

  private next(): void {
    this.chosen?.commitMore()
  }
}

/** Another thread that commits memory; undefined: not now. Resolves with false where it could not. */
export type CommitElsewhere = (at: number, length: number) => Promise<boolean> | undefined

/** Of one session. */
export class Warmth {
  /** Resolves when nothing of the ring is left to be done in advance, or a migration has begun, or the session is over. */
  readonly ready: Promise<void>
  private readonly kernel: Kernel
  private readonly starts: readonly number[]
  private readonly elsewhere: CommitElsewhere | undefined
  private readonly loop: EventLoop
  private readonly inAdvance: RingInAdvance
  private readonly spare: SpareRing
  private readonly sparePages: SparePages
  private readonly aheadBytes: number
  private readonly ringBytes: number
  private committed: number
  /** Bytes of the tables before the ring that are committed. */
  private tablesCommitted = 0
  private remembered: Promise<void> | undefined
  private committing = false
  private migrating = false
  private ended = false
  private resolveReady!: () => void

  /**
   * @param sparePages of the memory that the session is in
   * @param starts first slot of each set in memory
   * @param elsewhere who may commit the ring in place of this thread
   * @param aheadBytes of the ring ahead of what has passed that are committed while a migration runs
   */
  constructor(
    kernel: Kernel,
    loop: EventLoop,
    inAdvance: RingInAdvance,
    spare: SpareRing,
    sparePages: SparePages,
    starts: readonly number[] = [0],
    elsewhere?: CommitElsewhere,
    aheadBytes = COMMIT_AHEAD_BYTES,
  ) {
    this.elsewhere = elsewhere
    this.kernel = kernel
    this.aheadBytes = aheadBytes
    this.starts = starts
    this.loop = loop
    this.ringBytes = kernel.layout.ringPages * PAGE_BYTES
    this.inAdvance = this.ringBytes === 0 ? 'never' : inAdvance
    this.spare = spare
    this.sparePages = sparePages
    this.committed = this.inAdvance === 'spare' ? sparePages.ready(kernel.layout.ring, this.ringBytes) : 0
    this.ready = new Promise(done => {
      this.resolveReady = done
    })
    this.rest()
    if (this.inAdvance !== 'always') this.resolveReady()
  }

  get committedBytes(): number {
    return this.committed
  }

  /** Rejects with a defect of either, as long as it is asked. */
  warm(): Promise<void> {
    this.remembered ??= this.remember()
    this.commitMore()
    return this.remembered
  }

  /** Whether a migration runs: what is made ready in advance waits for its end. */
  migrates(isRunning: boolean): void {
    if (this.ended || isRunning === this.migrating) return
    this.migrating = isRunning
    if (isRunning) {
      this.resolveReady()
      this.spare.leaves(this)
      this.spare.runs(1)
    } else {
      this.spare.runs(-1)
      this.rest()
    }
  }

  end(): void {
    if (this.ended) return
    this.migrates(false)
    this.ended = true
    this.spare.leaves(this)
    this.resolveReady()
  }

  commitMore(): void {
    if (this.committing || (this.committed >= this.wanted && !this.wantsTables)) return
    this.commit().catch(error => {
      this.resolveReady()
      this.remembered = Promise.reject(error)
      this.remembered.catch(() => {}) // who asks next is told
    })
  }

  private rest(): void {
    if (this.inAdvance === 'spare') this.spare.waits(this)
    else this.commitMore()
  }

  private get tableBytes(): number {
    const { ring, placeTable } = this.kernel.layout
    return ring - placeTable
  }

  /**
   * Whether what finds pages is to be committed with the ring: else the first look-up of each of its pages maps the system's
   * page of zeros, and the first entry replaces it.
   */
  private get wantsTables(): boolean {
    return this.inAdvance === 'always' && !this.migrating && this.tablesCommitted < this.tableBytes
  }

  private async commitTables(): Promise<void> {
    while (this.wantsTables) {
      await nextTurn(this.loop)
      if (this.ended || !this.wantsTables) return
      const length = Math.min(COMMIT_STEP_BYTES, this.tableBytes - this.tablesCommitted)
      this.kernel.commit(this.kernel.layout.placeTable + this.tablesCommitted, length)
      this.tablesCommitted += length
    }
  }

  /** Bytes of the ring that are to be committed by now. */
  private get wanted(): number {
    const { ringBytes, inAdvance, migrating, spare } = this
    if (!migrating && (inAdvance === 'always' || (inAdvance === 'spare' && spare.is(this)))) return ringBytes
    return this.ahead
  }

  /** Those that a migration needs soon. */
  private get ahead(): number {
    if (this.remembered === undefined) return 0 // none has begun yet
    return Math.min(this.ringBytes, this.kernel.ringUsed * PAGE_BYTES + this.aheadBytes)
  }

  private async commit(): Promise<void> {
    this.committing = true
    while (this.committed < this.wanted) {
      await nextTurn(this.loop)
      if (this.ended) return
      if (this.committed >= this.wanted) break // a migration has begun
      const at = this.kernel.layout.ring + this.committed
      const length = Math.min(COMMIT_STEP_BYTES, this.ringBytes - this.committed)
      const isSpare = this.inAdvance === 'spare' && this.committed >= this.ahead
      if (isSpare && !this.spare.takes(this.sparePages, at, length, this.ringBytes)) break
      const helped = Math.min(HELPED_STEP_BYTES, this.ringBytes - this.committed)
      const there = isSpare ? undefined : this.elsewhere?.(at, helped)
      if (there === undefined) this.kernel.commit(at, length)
      else if (!(await there)) continue
      this.committed += there === undefined ? length : helped
    }
    if (this.committed === this.ringBytes) await this.commitTables()
    if (this.ended) return
    this.committing = false
    if (this.committed === this.ringBytes) this.resolveReady()
  }

  private async remember(): Promise<void> {
    const { longEntries, templatePages } = this.kernel.layout
    if (longEntries === 0) return
    const sets = this.starts.map((from, i) => ({ from, to: this.starts[i + 1] ?? templatePages }))
    // what is remembered last is found first, and stays longest: a guest's pages before an image's, of which most are never asked for
    sets.sort((a, b) => b.to - b.from - (a.to - a.from))
    let isFirst = true
    for (const set of sets) {
      for (let { from } = set; from < set.to; from += REMEMBER_STEP) {
        if (!isFirst) await nextTurn(this.loop)
        isFirst = false
        if (this.ended) return
        this.kernel.rememberTemplates(from, Math.min(set.to, from + REMEMBER_STEP))
      }
    }
  }
}
