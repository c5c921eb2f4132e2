/** Credit of one flow's incoming direction: what the peer may send, what came, what the local QEMU took. */

import { assert } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import { CREDIT_FLOW_BYTES_MAX } from '../limits.ts'

export class ReceiveWindow {
  /** Raw bytes that came. */
  rawIn = 0
  /** It waits to be told to the peer. */
  due = false
  private readonly initial: number
  private readonly memory: Share
  private readonly kept: number
  private bytes: number
  private consumed = 0
  /** The total that the peer has been told. */
  private granted: number
  // How much was taken since when: the window must hold what QEMU takes in two round trips, or credit is what limits it.
  private epochMs: number
  private epochBytes = 0

  /**
   * @param initial bytes that every flow has; growth comes out of `memory`
   * @param kept bytes of that which its growth leaves to others
   */
  constructor(initial: number, memory: Share, nowMs: number, kept = 0) {
    this.kept = kept
    this.initial = initial
    this.memory = memory
    this.bytes = initial
    this.granted = initial
    this.epochMs = nowMs
  }

  get size(): number {
    return this.bytes
  }

  /** Bytes came. @returns how many of them were beyond the peer's credit */
  arrive(bytes: number): number {
    this.rawIn += bytes
    return Math.max(0, this.rawIn - this.granted)
  }

  /** The QEMU's socket took bytes. The window grows while it keeps up. */
  consume(bytes: number, rttMs: number, nowMs: number): void {
    this.consumed += bytes
    assert(this.consumed <= this.rawIn, 'more bytes were consumed than arrived')
    this.epochBytes += bytes
    const passedMs = nowMs - this.epochMs
    if (passedMs < rttMs) return
    if (this.epochBytes * 2 > this.bytes && passedMs < 4 * rttMs) this.grow(this.bytes * 2)
    this.epochMs = nowMs
    this.epochBytes = 0
  }

  /** Grows to `bytes`, as far as the budget has them. Never shrinks. @returns whether it did */
  grow(bytes: number): boolean {
    const { memory, kept } = this
    const more = Math.min(bytes, CREDIT_FLOW_BYTES_MAX, this.bytes + memory.room - kept) - this.bytes
    const taken = more > 0 ? memory.takeUpTo(more) : 0
    this.bytes += taken
    return taken > 0
  }

  /** Whether CREDIT is worth a frame. */
  get isWorthTelling(): boolean {
    return this.consumed + this.bytes - this.granted >= this.bytes / 4
  }

  /** @returns the total to tell the peer now */
  grant(): number {
    this.granted = this.consumed + this.bytes
    return this.granted
  }

  /** The flow is over. */
  close(): void {
    this.memory.give(this.bytes - this.initial)
  }
}
