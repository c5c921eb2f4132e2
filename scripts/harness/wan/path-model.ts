/** When what is sent one way over a link arrives at its end, if it does. Pure: times come in as arguments. */
import { Random } from '../random.ts'
import type { Link } from './link.ts'

/** One direction of a link. */
export class PathModel {
  /** Bytes that were taken, dropped by loss or outage, and dropped because the queue was full. */
  readonly counts = { passedBytes: 0, passed: 0, lost: 0, overflowed: 0 }
  /** While true nothing passes, whatever the plan of outages says. */
  down = false
  /** When the clock of the outages started. */
  clockStartMs: number
  private readonly link: Link
  private readonly msPerByte: number
  private readonly random: Random
  /** When the link has sent all that waits for it. */
  private freeMs = 0
  private lastArrivalMs = 0

  /** @param way tells the two directions' random numbers apart */
  constructor(link: Link, way: number, clockStartMs: number) {
    this.link = link
    this.clockStartMs = clockStartMs
    this.msPerByte = 8000 / link.bitsPerSecond
    this.random = new Random(Math.imul(link.seed, 2) + way)
  }

  /** When the link next carries something: `nowMs` if it does now, Infinity if nobody knows. */
  upAtMs(nowMs: number): number {
    if (this.down) return Infinity
    let upMs = nowMs
    for (const { startMs, lengthMs } of this.link.outages) {
      const begin = this.clockStartMs + startMs
      if (upMs >= begin && upMs < begin + lengthMs) upMs = begin + lengthMs
    }
    return upMs
  }

  /** Sends one packet. Returns when it arrives, or -1 if it never does. Arrivals never go back in time. */
  send(nowMs: number, bytes: number): number {
    if (this.upAtMs(nowMs) > nowMs || (this.link.lossPart > 0 && this.random.next() < this.link.lossPart)) {
      this.counts.lost++
      return -1
    }
    const startMs = Math.max(nowMs, this.freeMs)
    if ((startMs - nowMs) / this.msPerByte > this.link.queueBytes) {
      this.counts.overflowed++
      return -1
    }
    this.freeMs = startMs + bytes * this.msPerByte
    return this.arrive(bytes)
  }

  /**
   * Sends part of a byte stream that cannot be lost: what TCP makes of the same link. A lost packet costs a round trip,
   * and all that follows waits for it.
   */
  sendStream(nowMs: number, bytes: number): number {
    const upMs = this.upAtMs(nowMs)
    let startMs = Math.max(upMs === Infinity ? nowMs : upMs, this.freeMs)
    if (this.link.lossPart > 0 && this.random.next() < 1 - (1 - this.link.lossPart) ** Math.ceil(bytes / 1448)) {
      this.counts.lost++
      this.lastArrivalMs = Math.max(this.lastArrivalMs, startMs + this.link.roundTripMs * 1.5)
    }
    startMs += bytes * this.msPerByte
    this.freeMs = startMs
    return this.arrive(bytes)
  }

  private arrive(bytes: number): number {
    this.counts.passed++
    this.counts.passedBytes += bytes
    const { jitterMs, roundTripMs } = this.link
    const jitter = jitterMs > 0 ? (this.random.next() * 2 - 1) * jitterMs : 0
    this.lastArrivalMs = Math.max(this.lastArrivalMs, this.freeMs + roundTripMs / 2 + jitter)
    return this.lastArrivalMs
  }
}
