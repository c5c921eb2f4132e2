/**
 * `--rate`: a bucket of tokens that fills with the rate. Urgent frames may overdraw it a little, bulk pays it back. Sessions
 * to one peer share it: one that is left serves its disks beside the next. And beside it there may be a share of a cap on
 * several peers: a frame goes where both let it.
 */

import { assert } from '../errors.ts'
import { BURST_MS, burstOf, type CapShare, FRAME_BYTES_MAX } from './shared-cap.ts'

/** Bytes that urgent frames may go beyond what the rate allows, taken from bulk afterwards. */
export const RATE_DEBT_BYTES = 65536

/** Tokens, in bytes. */
export class RateBucket {
  private rate: number
  private readonly shared: CapShare | undefined
  private tokens = 0
  private filledAtMs = 0

  /**
   * @param bytesPerSecond Infinity: no cap
   * @param shared of a cap that other peers have, too
   */
  constructor(bytesPerSecond: number, shared?: CapShare) {
    this.rate = bytesPerSecond
    this.shared = shared
  }

  /** Infinity: no cap but that on several peers. */
  get bytesPerSecond(): number {
    return this.rate
  }

  set(bytesPerSecond: number, nowMs: number): void {
    assert(bytesPerSecond > 0, 'a rate is more than 0')
    this.refill(nowMs)
    this.rate = bytesPerSecond
    this.tokens = Math.min(this.tokens, burstOf(bytesPerSecond))
  }

  refill(nowMs: number): void {
    const { rate } = this
    const sinceMs = Math.max(0, nowMs - this.filledAtMs)
    if (rate === Number.POSITIVE_INFINITY) this.tokens = 0
    else this.tokens = Math.min(burstOf(rate), this.tokens + (sinceMs * rate) / 1000)
    this.filledAtMs = Math.max(this.filledAtMs, nowMs)
    this.shared?.refill(nowMs)
  }

  spend(bytes: number): void {
    this.tokens -= bytes
    if (this.shared) this.shared.tokens -= bytes
  }

  /** Until a frame may go; 0: it may. */
  waitMs(debt: number): number {
    const { rate, tokens, shared } = this
    const own = waitMs(rate, tokens, debt)
    return shared ? Math.max(own, waitMs(shared.bytesPerSecond, shared.tokens, debt)) : own
  }

  /** Bytes of the rate in the time that should lie ready; Infinity without a cap. */
  get readyBytes(): number {
    const { rate, shared } = this
    return ((shared ? Math.min(rate, shared.bytesPerSecond) : rate) / 1000) * BURST_MS
  }
}

/** One session's view of it. */
export class RateCap {
  /** When something that waits for tokens may go; Infinity: nothing does. */
  wakeMs = Number.POSITIVE_INFINITY
  private readonly bucket: RateBucket

  /** @param rate bytes a second, Infinity: no cap; or the bucket that others have too */
  constructor(rate: number | RateBucket) {
    this.bucket = typeof rate === 'number' ? new RateBucket(rate) : rate
  }

  set(bytesPerSecond: number, nowMs: number): void {
    this.bucket.set(bytesPerSecond, nowMs)
    this.wakeMs = Number.POSITIVE_INFINITY
  }

  /** Before what is sent in one go is asked for by mayGo. */
  refill(nowMs: number): void {
    this.bucket.refill(nowMs)
  }

  /** So many bytes went out. */
  spend(bytes: number): void {
    this.bucket.spend(bytes)
  }

  /** True where the rate lets a frame go; else `wakeMs` says when. */
  mayGo(debt: number, nowMs: number): boolean {
    const waitMs = this.bucket.waitMs(debt)
    if (waitMs === 0) return true
    this.wakeMs = nowMs + waitMs
    return false
  }

  get readyBytes(): number {
    return this.bucket.readyBytes
  }
}

function waitMs(bytesPerSecond: number, tokens: number, debt: number): number {
  if (bytesPerSecond === Number.POSITIVE_INFINITY || tokens > -debt) return 0
  const missing = Math.min(FRAME_BYTES_MAX, bytesPerSecond / 1000) - debt - tokens
  return (missing * 1000) / bytesPerSecond
}
