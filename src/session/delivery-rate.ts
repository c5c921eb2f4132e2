/**
 * How fast a connection delivers, as BBR measures it (draft-cheng-iccrg-delivery-rate-estimation): each frame remembers
 * how much had been delivered when it was sent, so that an ACK gives bytes over time without any assumption about the
 * pauses between ACKs.
 */

import { WINDOW_BYTES_MIN } from '../limits.ts'

/** Round trips whose best delivery rate counts. */
const ROUNDS = 4

/**
 * What round trips say of the queue before the link:
 *
 * - `none`: next to nothing of ours stands there, so that the link may take more than it gets
 * - `ours`: what the window makes
 * - `long`: more than that ...
 * - `lasting`: ... for a round trip already: the link got slower, and no host stood still for a moment
 */
export type Queue = 'none' | 'ours' | 'long' | 'lasting'

export class DeliveryRate {
  /** Bytes that arrived, when the last of them did, and when the first frame of the stretch being measured was sent. */
  delivered = 0
  deliveredAt = 0
  firstSentAt = 0
  /** Bytes a millisecond, best of the last round trips; 0 before the first measurement. */
  max = 0
  /** Until the rate has stopped growing for three round trips, or queues form, the window may double each of them. */
  starting = true
  /** While `delivered` is below this, frames are sent with nothing waiting behind them: their samples say too little. */
  private limitedUntil = 0
  private readonly rounds = new Float64Array(ROUNDS)
  private round = 0
  private roundEnd = 0
  private roundSampled = false
  private fullRate = 0
  private fullRounds = 0

  get isLimited(): boolean {
    return this.limitedUntil > 0
  }

  /** Something is sent while nothing is under way. */
  begin(nowMs: number): void {
    this.firstSentAt = nowMs
    this.deliveredAt = nowMs
  }

  /** Frames up to one that was sent at `sentAt` have arrived. */
  arrived(sentAt: number, nowMs: number): void {
    this.deliveredAt = nowMs
    this.firstSentAt = sentAt
    if (this.limitedUntil > 0 && this.delivered > this.limitedUntil) this.limitedUntil = 0
  }

  /** Nothing waits to be sent. Where little is under way too, what is measured now is the sender's rate, not the link's. */
  ranDry(inFlight: number, rttMinMs: number): void {
    if (inFlight < Math.max(this.max * rttMinMs, WINDOW_BYTES_MIN / 2)) {
      this.limitedUntil = this.delivered + inFlight + 1
    }
  }

  /** The way is another one: look for its rate as at the start. */
  restart(): void {
    this.starting = true
    this.fullRate = 0
    this.fullRounds = 0
  }

  sample(rate: number, deliveredThen: number, limited: boolean, queue: Queue): void {
    if (deliveredThen >= this.roundEnd) {
      this.roundEnd = this.delivered
      if (this.roundSampled) {
        this.round = (this.round + 1) % ROUNDS
        this.rounds[this.round] = 0
        this.roundSampled = false
        if (this.starting && !limited) this.checkStart(queue === 'long' || queue === 'lasting')
      }
    }
    if (!limited || rate > this.max) {
      const known = queue === 'none' ? Math.max(rate, this.max) : rate
      if (known > this.rounds[this.round]!) this.rounds[this.round] = known
      this.roundSampled = true
    }
    let max = 0
    for (const best of this.rounds) if (best > max) max = best
    if (queue === 'lasting' && !limited) {
      // Round trips far too long say that the link got slower: older rates are of no use.
      max = rate
      this.rounds.fill(0)
      this.rounds[this.round] = rate
    }
    if (max > 0) this.max = max
  }

  private checkStart(isBloated: boolean): void {
    if (this.max > this.fullRate * 1.25) {
      this.fullRate = this.max
      this.fullRounds = 0
    } else if (++this.fullRounds >= 3 || isBloated) {
      // Or queues say already that it is full.
      this.starting = false
    }
  }
}
