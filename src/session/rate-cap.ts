/** `--rate`: a bucket of tokens that fills with the rate. Urgent frames may overdraw it a little, bulk pays it back. */

import { assert } from '../errors.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../limits.ts'
import { FRAME_HEAD_BYTES } from '../wan/wire.ts'

const FRAME_BYTES_MAX = FRAME_HEAD_BYTES + FRAME_PAYLOAD_BYTES_MAX
/** What may be saved up, and what should lie ready: a turn of the event loop or two. */
const BURST_MS = 10
/** Bytes that urgent frames may go beyond what the rate allows, taken from bulk afterwards. */
export const RATE_DEBT_BYTES = 65536

export class RateCap {
  /** When something that waits for tokens may go; Infinity: nothing does. */
  wakeMs = Number.POSITIVE_INFINITY
  private bytesPerSecond: number
  private tokens = 0
  private filledAtMs = 0

  /** @param bytesPerSecond Infinity: no cap */
  constructor(bytesPerSecond: number) {
    this.bytesPerSecond = bytesPerSecond
  }

  set(bytesPerSecond: number, nowMs: number): void {
    assert(bytesPerSecond > 0, 'a rate is more than 0')
    this.refill(nowMs)
    this.bytesPerSecond = bytesPerSecond
    this.tokens = Math.min(this.tokens, this.burst)
    this.wakeMs = Number.POSITIVE_INFINITY
  }

  /** Before what is sent in one go is asked for by mayGo. */
  refill(nowMs: number): void {
    if (this.bytesPerSecond === Number.POSITIVE_INFINITY) this.tokens = 0
    else this.tokens = Math.min(this.burst, this.tokens + ((nowMs - this.filledAtMs) * this.bytesPerSecond) / 1000)
    this.filledAtMs = nowMs
  }

  /** So many bytes went out. */
  spend(bytes: number): void {
    this.tokens -= bytes
  }

  /** True where the rate lets a frame go; else `wakeMs` says when. */
  mayGo(debt: number, nowMs: number): boolean {
    if (this.bytesPerSecond === Number.POSITIVE_INFINITY || this.tokens > -debt) return true
    const missing = Math.min(FRAME_BYTES_MAX, this.bytesPerSecond / 1000) - debt - this.tokens
    this.wakeMs = nowMs + (missing * 1000) / this.bytesPerSecond
    return false
  }

  /** Bytes of the rate in the time that should lie ready; Infinity without a cap. */
  get readyBytes(): number {
    return (this.bytesPerSecond / 1000) * BURST_MS
  }

  /** Tokens saved up at most. */
  private get burst(): number {
    return Math.max(this.readyBytes, 4 * FRAME_BYTES_MAX)
  }
}
