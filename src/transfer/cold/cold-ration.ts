/**
 * How many batches may name pages that the other side has to read from its disk. A disk that is slower than the link makes
 * the other side ask for pages that it was named: then fewer are named, until it asks no more. Pure: times come in.
 */

/** Of batches under way several may be asked for at once: that counts once in so much time. */
const SETTLE_MS = 250
/** Never less: whether the disk has become faster shows only while it is used. */
const SHARE_MIN = 1 / 16
/** How much more are named for each second in which nothing is asked for. */
const GAIN_PER_SECOND = 1 / 8

export class ColdRation {
  private known = 1
  private sinceMs = 0
  private due = 0

  /** Of all batches, how many may. */
  share(nowMs: number): number {
    return Math.min(1, this.known + (GAIN_PER_SECOND * (nowMs - this.sinceMs)) / 1000)
  }

  /** The other side asks for pages that it was named. */
  asked(nowMs: number): void {
    if (this.known < 1 && nowMs - this.sinceMs < SETTLE_MS) return
    this.known = Math.max(SHARE_MIN, this.share(nowMs) / 2)
    this.sinceMs = nowMs
  }

  /** Whether the next batch may. */
  next(nowMs: number): boolean {
    this.due = Math.min(1, this.due) + this.share(nowMs)
    if (this.due < 1) return false
    this.due -= 1
    return true
  }
}
