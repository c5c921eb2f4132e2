/** What the sessions to one peer, one after the other, may spend on finding out what fresh connections take. */

import { WARM_UP_AGAIN_MS, WARM_UP_BYTES } from '../limits.ts'

export class WarmUp {
  private takenMs = Number.NEGATIVE_INFINITY

  /** @returns WAN bytes of PADs that may go out now */
  take(nowMs: number): number {
    if (nowMs - this.takenMs < WARM_UP_AGAIN_MS) return 0
    this.takenMs = nowMs
    return WARM_UP_BYTES
  }
}
