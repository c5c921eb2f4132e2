/**
 * `--rate`: tokens that come with the rate. Urgent frames may overdraw them a little, bulk pays it back. Sessions to one peer
 * share it, as peers share a cap on all of them: one that is left serves its disks beside the next, and whose timer comes
 * first must not have all of it. Beside it there may be a share of a cap on several peers: a frame goes where both let it.
 */

import { assert } from '../errors.ts'
import { BURST_MS, type CapShare, FRAME_BYTES_MAX, SharedCap } from './shared-cap.ts'

/** Bytes that urgent frames may go beyond what the rate allows, taken from bulk afterwards. */
export const RATE_DEBT_BYTES = 65536

/** What may go to one peer. */
export class RateBucket {
  private rate: number
  private readonly shared: CapShare | undefined
  /** Of its sessions; and what comes of the cap on several peers, where there are two sessions or more. */
  private readonly sessions: SharedCap
  private readonly parts: SharedCap

  /**
   * @param bytesPerSecond Infinity: no cap
   * @param shared of a cap that other peers have, too
   */
  constructor(bytesPerSecond: number, shared?: CapShare) {
    this.rate = bytesPerSecond
    this.shared = shared
    this.sessions = new SharedCap(bytesPerSecond)
    this.parts = new SharedCap(Number.POSITIVE_INFINITY)
  }

  /** Infinity: no cap but that on several peers. */
  get bytesPerSecond(): number {
    return this.rate
  }

  set(bytesPerSecond: number, nowMs: number): void {
    assert(bytesPerSecond > 0, 'a rate is more than 0')
    this.sessions.set(bytesPerSecond, nowMs)
    this.rate = bytesPerSecond
  }

  /** @internal A session begins: it gets as much as each of the others. */
  join(): SessionShare {
    return { own: this.sessions.join(1), part: this.parts.join(1) }
  }

  /** @internal */
  leave({ own, part }: SessionShare): void {
    this.sessions.leave(own)
    this.parts.leave(part)
  }

  /** @internal */
  refill(nowMs: number): void {
    const { sessions, shared, parts } = this
    sessions.refill(nowMs)
    if (!shared) return
    shared.refill(nowMs)
    const { bytesPerSecond, tokens } = shared
    if (sessions.size < 2 || bytesPerSecond === Number.POSITIVE_INFINITY || tokens <= 0) return
    parts.set(bytesPerSecond, 0) // no time passes in it: it gets what it is given
    shared.tokens = parts.pour(tokens)
  }

  /** @internal */
  spend({ own, part }: SessionShare, bytes: number): void {
    own.tokens -= bytes
    const payer = this.sessions.size < 2 ? this.shared : part
    if (payer) payer.tokens -= bytes
  }

  /** @internal Until a frame of a session may go; 0: it may. */
  waitMs({ own, part }: SessionShare, debt: number): number {
    const { shared, sessions } = this
    const ownMs = waitMs(own.bytesPerSecond, own.tokens, debt)
    if (!shared) return ownMs
    const count = sessions.size
    const tokens = count < 2 ? shared.tokens : part.tokens
    return Math.max(ownMs, waitMs(shared.bytesPerSecond / Math.max(1, count), tokens, debt))
  }

  /** @internal Bytes of the rate in the time that should lie ready; Infinity without a cap. */
  readyBytes({ own }: SessionShare): number {
    const { shared, sessions } = this
    const most = shared ? shared.bytesPerSecond / Math.max(1, sessions.size) : Number.POSITIVE_INFINITY
    return (Math.min(own.bytesPerSecond, most) / 1000) * BURST_MS
  }
}

/** What a session has of a bucket: of the peer's own cap, and of one on several peers. */
interface SessionShare {
  readonly own: CapShare
  readonly part: CapShare
}

/** One session's view of it. */
export class RateCap {
  /** When something that waits for tokens may go; Infinity: nothing does. */
  wakeMs = Number.POSITIVE_INFINITY
  private readonly bucket: RateBucket
  private readonly share: SessionShare

  /** @param rate bytes a second, Infinity: no cap; or the bucket that others have too */
  constructor(rate: number | RateBucket) {
    this.bucket = typeof rate === 'number' ? new RateBucket(rate) : rate
    this.share = this.bucket.join()
  }

  /** The session is over: what comes is the others'. */
  leave(): void {
    this.bucket.leave(this.share)
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
    this.bucket.spend(this.share, bytes)
  }

  /** True where the rate lets a frame go; else `wakeMs` says when. */
  mayGo(debt: number, nowMs: number): boolean {
    const waitMs = this.bucket.waitMs(this.share, debt)
    if (waitMs === 0) return true
    this.wakeMs = nowMs + waitMs
    return false
  }

  get readyBytes(): number {
    return this.bucket.readyBytes(this.share)
  }
}

function waitMs(bytesPerSecond: number, tokens: number, debt: number): number {
  if (bytesPerSecond === Number.POSITIVE_INFINITY || tokens > -debt) return 0
  const missing = Math.min(FRAME_BYTES_MAX, bytesPerSecond / 1000) - debt - tokens
  return (missing * 1000) / bytesPerSecond
}
