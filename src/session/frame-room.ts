/** Room for frames that are kept until the peer acknowledges them, beside the bytes that they carry. */

import type { Share } from '../fair-shares.ts'
import { SENT_FRAME_BYTES, SENT_FRAMES_FREE } from '../limits.ts'

/** Frames that the budget is asked for at once. */
const STEP = 1024

export class FrameRoom {
  private readonly memory: Share
  /** Frames that the budget has paid for. */
  private paid = 0

  constructor(memory: Share) {
    this.memory = memory
  }

  /** Frames that there is room for just now. */
  get frames(): number {
    return SENT_FRAMES_FREE + this.paid
  }

  /** Whether so many may be kept; asks the budget where it must. */
  holds(frames: number): boolean {
    if (frames > this.frames && this.memory.take(STEP * SENT_FRAME_BYTES)) this.paid += STEP
    return frames <= this.frames
  }

  /** So many are kept: gives back what is not needed, but for a step, so that a number that wavers asks for nothing. */
  settle(frames: number): void {
    while (this.paid > 0 && frames + 2 * STEP <= this.frames) {
      this.paid -= STEP
      this.memory.give(STEP * SENT_FRAME_BYTES)
    }
  }

  /** The session is over, and its memory given back. */
  clear(): void {
    this.paid = 0
  }
}
