/**
 * How much may be under way on a connection: its delivery rate times (smallest round trip + queue target), so that what
 * stands in queues along the way takes about the target's time to drain, whatever the link carries.
 */

import { FRAME_PAYLOAD_BYTES_MAX, UNACKED_BYTES_MAX, WINDOW_BYTES_MIN } from '../limits.ts'
import { DeliveryRate, type Queue } from './delivery-rate.ts'
import { RoundTrip } from './round-trip.ts'
import { SentRecords } from './sent-records.ts'

/** Window before anything was measured: as TCP would have it after a few round trips. */
const WINDOW_BYTES_START = 65536

/** A rate that fell to this part of what it was makes the round trip doubtful. */
const FELL = 0.8

export class SendWindow {
  readonly records = new SentRecords()
  readonly rate = new DeliveryRate()
  readonly roundTrip: RoundTrip
  /** Bytes that may be under way, and that are. */
  bytes = WINDOW_BYTES_START
  inFlight = 0
  private targetMs: number
  /** After a probe the window opens as frames arrive: a burst of half a window would be a queue again. */
  private rampFrom = 0
  private rampBytes = 0
  /** The best rate since it was last known why it is what it is. */
  private bestRate = 0

  constructor(targetMs: number, nowMs: number) {
    this.targetMs = targetMs
    this.roundTrip = new RoundTrip(nowMs)
  }

  setTarget(targetMs: number): void {
    this.targetMs = targetMs
    this.set()
  }

  /** A frame goes out. */
  sent(sequence: number, size: number, nowMs: number): void {
    const { rate } = this
    if (this.inFlight === 0) rate.begin(nowMs)
    const limited = rate.isLimited || this.roundTrip.isProbing
    this.records.push(sequence, size, nowMs, rate.delivered, rate.deliveredAt, rate.firstSentAt, limited)
    this.inFlight += size
  }

  /** The peer has counted one frame more. @returns its sequence number */
  takeDelivered(): number {
    const slot = this.records.take()
    const size = this.records.size(slot)
    this.inFlight -= size
    this.rate.delivered += size
    return this.records.sequence(slot)
  }

  /** After takeDelivered for all frames that one ACK counts: measures. */
  measure(nowMs: number): void {
    const { records, rate, roundTrip } = this
    const slot = records.lastTaken
    const sentAt = records.sentAt(slot)
    rate.arrived(sentAt, nowMs)
    this.sampleRoundTrip(sentAt, nowMs)
    const then = records.delivered(slot)
    const intervalMs = Math.max(sentAt - records.firstSentAt(slot), nowMs - records.deliveredAt(slot))
    // Shorter than a round trip: ACKs that came in a lump.
    if (intervalMs > 0 && intervalMs >= roundTrip.minMs) {
      const queue = roundTrip.queue(nowMs - sentAt, this.spareMs, nowMs)
      rate.sample((rate.delivered - then) / intervalMs, then, records.isLimited(slot), queue)
      this.compare(queue, nowMs)
    }
    this.set()
  }

  /**
   * A window for a round trip that is shorter than the way's holds the rate down, and follows it: where that has fallen, and
   * no queue says why, the round trip is to be seen again.
   */
  private compare(queue: Queue, nowMs: number): void {
    const { max, starting } = this.rate
    const isClear = starting || queue === 'lasting' || this.roundTrip.isProbing
    if (isClear || max > this.bestRate) this.bestRate = max
    else if (max < this.bestRate * FELL) this.roundTrip.renew(nowMs)
  }

  /** The answer to a PING of `sentAt` has come. */
  ponged(sentAt: number, nowMs: number): void {
    this.sampleRoundTrip(sentAt, nowMs)
    this.set()
  }

  /** Of two round trips: the rate can double from one to the next. */
  get measuringBytes(): number {
    return Math.max(2 * this.rate.max * this.roundTrip.minMs, WINDOW_BYTES_START)
  }

  private sampleRoundTrip(sentAt: number, nowMs: number): void {
    const probed = this.roundTrip.sample(sentAt, nowMs, this.targetMs, this.rate.starting)
    if (probed === undefined) return
    // A way that is much longer also takes more than its windows let anyone see.
    if (probed === 'longer') this.rate.restart()
    this.rampFrom = this.rate.delivered
    this.rampBytes = this.inFlight + FRAME_PAYLOAD_BYTES_MAX
  }

  /** An eighth of the round trip at least: without any queue the rate could never be seen to grow. */
  private get spareMs(): number {
    return Math.max(this.targetMs, this.roundTrip.minMs / 8)
  }

  private set(): void {
    const { max, starting, delivered } = this.rate
    const { minMs, isProbing } = this.roundTrip
    if (max === 0) return
    let window = max * (minMs + this.spareMs)
    if (starting) window = Math.max(window, 2 * max * minMs, WINDOW_BYTES_START)
    let least = WINDOW_BYTES_MIN
    if (isProbing) {
      window = (max * minMs) / 2
      least = FRAME_PAYLOAD_BYTES_MAX // on a slow link even two frames are a queue
    }
    if (this.rampBytes > 0) {
      const ramp = this.rampBytes + 2 * (delivered - this.rampFrom)
      if (ramp < window) window = ramp
      else this.rampBytes = 0
    }
    this.bytes = Math.floor(Math.min(Math.max(window, least), UNACKED_BYTES_MAX))
  }
}
