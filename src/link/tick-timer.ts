/**
 * One timer for whoever has engines that say when they are due: a link, a session's half. Too early does no harm, so a
 * timer that fires sooner than needed is left alone.
 */
import { type Clock, systemClock } from './api.ts'

export class TickTimer {
  private readonly now: () => number
  private readonly tick: () => void
  private readonly after: Clock['after']
  private cancel: () => void = () => {}
  private dueMs = Number.POSITIVE_INFINITY

  /** @param now milliseconds, monotonic. @param tick called once after each `arm`, not much sooner than asked for */
  constructor(now: () => number, tick: () => void, after = systemClock.after) {
    this.now = now
    this.tick = tick
    this.after = after
  }

  /** Something is due then; Infinity: not before something happens. */
  arm(dueMs: number): void {
    if (dueMs >= this.dueMs) return
    this.cancel()
    this.dueMs = dueMs
    this.cancel = this.after(Math.max(0, dueMs - this.now()), () => {
      this.dueMs = Number.POSITIVE_INFINITY
      this.tick()
    })
  }

  /** For good. */
  stop(): void {
    this.cancel()
    this.dueMs = Number.NEGATIVE_INFINITY
  }
}
