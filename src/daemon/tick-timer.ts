/**
 * The one timer of a session's half: its engines say when they are due, and this wakes them. Too early does no harm, so a
 * timer that fires sooner than needed is left alone.
 */
export class TickTimer {
  private readonly now: () => number
  private readonly tick: () => void
  private timer: NodeJS.Timeout | undefined
  private dueMs = Number.POSITIVE_INFINITY

  /** @param now milliseconds, monotonic. @param tick called once after each `arm`, not much sooner than asked for */
  constructor(now: () => number, tick: () => void) {
    this.now = now
    this.tick = tick
  }

  /** Something is due then; Infinity: not before something happens. */
  arm(dueMs: number): void {
    if (dueMs >= this.dueMs) return
    clearTimeout(this.timer)
    this.dueMs = dueMs
    this.timer = setTimeout(
      () => {
        this.dueMs = Number.POSITIVE_INFINITY
        this.tick()
      },
      Math.max(0, dueMs - this.now()),
    )
  }

  stop(): void {
    clearTimeout(this.timer)
    this.dueMs = Number.NEGATIVE_INFINITY
  }
}
