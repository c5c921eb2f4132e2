/**
 * How long a session goes on without getting anywhere: without any connection, or with connections over which nothing of
 * what was sent is acknowledged. The two times do not add up: what was broken is no fault of the peer's.
 */
export class Patience {
  private readonly limitMs: number
  private brokenSinceMs = 0
  /** When something was last acknowledged, or first waited for it, later by all time without connections. */
  private progressMs = 0

  constructor(limitMs: number) {
    this.limitMs = limitMs
  }

  /** The last connection is gone, or an end is awaited before there was any. */
  lost(nowMs: number): void {
    this.brokenSinceMs = nowMs
  }

  /** There is a connection again. */
  found(nowMs: number): void {
    this.progressMs += nowMs - this.brokenSinceMs
  }

  /** Something was acknowledged, or sent while nothing else waited for it. */
  progress(nowMs: number): void {
    this.progressMs = nowMs
  }

  /** This process stood still: that time says nothing of the peer. */
  stoodStill(ms: number, nowMs: number): void {
    this.progressMs = Math.min(this.progressMs + ms, nowMs)
  }

  /** Since when nothing was acknowledged, with time without connections left out. */
  get stalledSinceMs(): number {
    return this.progressMs
  }

  /** When a session without connections ends. */
  get brokenUntilMs(): number {
    return this.brokenSinceMs + this.limitMs
  }

  /** @returns why the session must end now */
  over(isBroken: boolean, isWaiting: boolean, nowMs: number): string | undefined {
    const seconds = Math.round(this.limitMs / 1000)
    if (isBroken) return nowMs >= this.brokenUntilMs ? `no connection to the peer for ${seconds} s` : undefined
    if (!isWaiting || nowMs - this.progressMs < this.limitMs) return undefined
    return `the peer acknowledged nothing for ${seconds} s, though it can be reached`
  }
}
