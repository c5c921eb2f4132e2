/**
 * Makes ready what sessions will need: long matches of their templates, and the memory of their rings. A first touch costs
 * 3 us a page in a virtual machine, more than all else done to a page: what is ready when pages come, they need not wait for.
 */
import { type Kernel, PAGE_BYTES } from '../kernel/kernel.ts'
import { type EventLoop, nextTurn } from './event-loop.ts'

/**
 * What of a ring is committed before a migration comes: all of it; all of it where no other ring of the process is, and no
 * migration runs; nothing.
 */
export type RingInAdvance = 'always' | 'spare' | 'never'

/** Bytes of the ring ahead of what has passed that are committed while a migration runs. */
const COMMIT_AHEAD_BYTES = 8 << 20
/** Of one turn: about 1 ms. */
const COMMIT_STEP_BYTES = 1 << 20
/** Template pages whose long matches are made known in one turn: about 1 ms. */
const REMEMBER_STEP = 512

/**
 * Which of the rings that wait for a migration is the spare one: the one of which most is committed, and of several the one
 * that came first. So there is one, however often sessions come, begin and end.
 */
export class SpareRing {
  private readonly idle = new Set<Warmth>()
  private running = 0

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

/** Of one session. */
export class Warmth {
  /** Resolves when nothing of the ring is left to be done in advance, or a migration has begun, or the session is over. */
  readonly ready: Promise<void>
  private readonly kernel: Kernel
  private readonly loop: EventLoop
  private readonly inAdvance: RingInAdvance
  private readonly spare: SpareRing
  private readonly ringBytes: number
  private committed = 0
  private remembered: Promise<void> | undefined
  private committing = false
  private migrating = false
  private ended = false
  private resolveReady!: () => void

  constructor(kernel: Kernel, loop: EventLoop, inAdvance: RingInAdvance, spare: SpareRing) {
    this.kernel = kernel
    this.loop = loop
    this.ringBytes = kernel.layout.ringPages * PAGE_BYTES
    this.inAdvance = this.ringBytes === 0 ? 'never' : inAdvance
    this.spare = spare
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
    if (this.committing || this.committed >= this.wanted) return
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

  /** Bytes of the ring that are to be committed by now. */
  private get wanted(): number {
    const { ringBytes, inAdvance, migrating, spare } = this
    if (!migrating && (inAdvance === 'always' || (inAdvance === 'spare' && spare.is(this)))) return ringBytes
    if (this.remembered === undefined) return 0 // nothing has begun yet
    return Math.min(ringBytes, this.kernel.ringUsed * PAGE_BYTES + COMMIT_AHEAD_BYTES)
  }

  private async commit(): Promise<void> {
    this.committing = true
    while (this.committed < this.wanted) {
      await nextTurn(this.loop)
      if (this.ended) return
      if (this.committed >= this.wanted) break // a migration has begun
      const length = Math.min(COMMIT_STEP_BYTES, this.ringBytes - this.committed)
      this.kernel.commit(this.kernel.layout.ring + this.committed, length)
      this.committed += length
    }
    this.committing = false
    if (this.committed === this.ringBytes) this.resolveReady()
  }

  private async remember(): Promise<void> {
    const { longEntries, templatePages } = this.kernel.layout
    for (let from = 0; longEntries > 0 && from < templatePages; from += REMEMBER_STEP) {
      if (from > 0) await nextTurn(this.loop)
      if (this.ended) return
      this.kernel.rememberTemplates(from, Math.min(templatePages, from + REMEMBER_STEP))
    }
  }
}
