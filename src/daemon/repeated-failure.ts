/** A failure that comes again and again: when to try next, and when to say so. Knows neither clock nor log. */

/** Pause after the first failure; doubles with each further one ... */
const RETRY_MIN_MS = 1000
/** ... up to this: short enough that what an operator mends elsewhere is found while he still looks. */
const RETRY_MAX_MS = 30_000
/** The same failure is said again after this time, then after twice as long each time ... */
const SAY_MIN_MS = 60_000
/** ... up to this. */
const SAY_MAX_MS = 3_600_000

export class RepeatedFailure {
  /** Failures in a row. */
  times = 0
  private key = ''
  private sinceMs = 0
  private saidMs = 0
  private sayMs = SAY_MIN_MS

  /**
   * It failed once more.
   * @param key tells one kind of failure from another
   * @returns how often it has failed by now, where that is to be said: the first time, and at growing intervals
   */
  failed(key: string, nowMs: number): { readonly times: number; readonly seconds: number } | undefined {
    if (this.times++ === 0) this.sinceMs = nowMs
    if (key !== this.key) {
      this.key = key
      this.sayMs = SAY_MIN_MS
    } else if (nowMs - this.saidMs < this.sayMs) return undefined
    else this.sayMs = Math.min(this.sayMs * 2, SAY_MAX_MS)
    this.saidMs = nowMs
    return { times: this.times, seconds: Math.round((nowMs - this.sinceMs) / 1000) }
  }

  /** How long to wait before the next try. */
  get retryMs(): number {
    return Math.min(RETRY_MIN_MS * 2 ** Math.min(this.times - 1, 10), RETRY_MAX_MS)
  }

  /**
   * It works again.
   * @returns failures before, 0 where there were none
   */
  recovered(): number {
    const { times } = this
    this.times = 0
    this.key = ''
    return times
  }
}
