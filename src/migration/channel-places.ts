/**
 * Places for channels: a session has a bound, and one that is met must never refuse a further channel of a migration that
 * runs. How many a migration will have nobody says beforehand, but all of them come within moments, but for a preempt
 * channel that may come hours later. So a new migration is admitted where there is room for the most that it can have
 * besides what others may still want, and is refused at its first channel where there is not.
 */

/** All channels of a migration have come when none came for so long: QEMU connects them before it sends a page. */
export const GATHERING_MS = 2000
/** What is kept for a migration whose channels have all come: a preempt channel, and one that is on its way out. */
const LATE_CHANNELS = 2

/** A migration that runs. */
export interface Gathering {
  /** Channels that are open. */
  readonly channels: number
  /** When its last one came. */
  readonly lastMs: number
}

/** `wait`: there will be room at `untilMs`, unless more channels come. */
export type Admission = { readonly answer: 'now' | 'never' } | { readonly answer: 'wait'; readonly untilMs: number }

/**
 * Whether a new migration may begin.
 * @param places channels at once, at most
 * @param wanted that it may come to have
 * @param most that any migration may come to have
 */
export function admission(
  places: number,
  running: Iterable<Gathering>,
  wanted: number,
  most: number,
  nowMs: number,
): Admission {
  let kept = wanted
  let later = wanted
  let untilMs = Number.POSITIVE_INFINITY
  for (const { channels, lastMs } of running) {
    const settled = channels + LATE_CHANNELS
    const gathered = nowMs - lastMs >= GATHERING_MS
    kept += gathered ? settled : Math.max(settled, most)
    later += settled
    if (!gathered) untilMs = Math.min(untilMs, lastMs + GATHERING_MS)
  }
  if (kept <= places) return { answer: 'now' }
  return later <= places ? { answer: 'wait', untilMs } : { answer: 'never' }
}
