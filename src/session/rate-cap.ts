/**
 * `--rate`: a bucket of tokens that fills with the rate. Urgent frames may overdraw it a little, bulk pays it back. Beside
 * it there may be another one, which it shares with other sessions: a frame goes where both let it.
 */

import { assert } from '../errors.ts'
import { BURST_MS, burstOf, type CapShare, FRAME_BYTES_MAX } from './shared-cap.ts'

/** Bytes that urgent frames may go beyond what the rate allows, taken from bulk afterwards. */
export const RATE_DEBT_BYTES = 65536

export class RateCap {
  /** When something that waits for tokens may go; Infinity: nothing does. */
  wakeMs = Number.POSITIVE_INFINITY
  private bytesPerSecond: number
  private readonly shared: CapShare | undefined
  private tokens = 0
  private filledAtMs = 0

  /**
   * @param bytesPerSecond Infinity: no cap
   * @param shared of a cap that other sessions have, too
   */
  constructor(bytesPerSecond: number, shared?: CapShare) {
    this.bytesPerSecond = bytesPerSecond
    this.shared = shared
  }

  set(bytesPerSecond: number, nowMs: number): void {
    assert(bytesPerSecond > 0, 'a rate is more than 0')
    this.refill(nowMs)
    this.bytesPerSecond = bytesPerSecond
    this.tokens = Math.min(this.tokens, burstOf(bytesPerSecond))
    this.wakeMs = Number.POSITIVE_INFINITY
  }

  /** Before what is sent in one go is asked for by mayGo. */
  refill(nowMs: number): void {
    const { bytesPerSecond } = this
    if (bytesPerSecond === Number.POSITIVE_INFINITY) this.tokens = 0
    else
      this.tokens = Math.min(burstOf(bytesPerSecond), this.tokens + ((nowMs - this.filledAtMs) * bytesPerSecond) / 1000)
    this.filledAtMs = nowMs
    this.shared?.refill(nowMs)
  }

  /** So many bytes went out. */
  spend(bytes: number): void {
    this.tokens -= bytes
    if (this.shared) this.shared.tokens -= bytes
  }

  /** True where the rate lets a frame go; else `wakeMs` says when. */
  mayGo(debt: number, nowMs: number): boolean {
    const { shared } = this
    const own = waitMs(this.bytesPerSecond, this.tokens, debt)
    const both = shared ? Math.max(own, waitMs(shared.bytesPerSecond, shared.tokens, debt)) : own
    if (both === 0) return true
    this.wakeMs = nowMs + both
    return false
  }

  /** Bytes of the rate in the time that should lie ready; Infinity without a cap. */
  get readyBytes(): number {
    const rate = this.shared ? Math.min(this.bytesPerSecond, this.shared.bytesPerSecond) : this.bytesPerSecond
    return (rate / 1000) * BURST_MS
  }
}

/** Until a frame may go; 0: it may. */
function waitMs(bytesPerSecond: number, tokens: number, debt: number): number {
  if (bytesPerSecond === Number.POSITIVE_INFINITY || tokens > -debt) return 0
  const missing = Math.min(FRAME_BYTES_MAX, bytesPerSecond / 1000) - debt - tokens
  return (missing * 1000) / bytesPerSecond
}
