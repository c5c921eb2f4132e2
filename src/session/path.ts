/**
 * What a session knows of one connection: its heartbeat, what arrives on it and has to be told, and what is under way on
 * it (send-window.ts).
 */

import {
  ACK_BYTES,
  ACK_DELAY_MS,
  ACK_DELAY_MS_MAX,
  CONNECTION_DEAD_MS,
  CONNECTION_STUCK_MS,
  PING_INTERVAL_MS,
} from '../limits.ts'
import { SendWindow } from './send-window.ts'

export class Path {
  readonly connection: number

  // Heartbeat.
  heardMs: number
  pingDueMs: number
  pingDue = false
  /** Number of the latest PING, which its PONG repeats; and when it went out. */
  pingCount = 0
  pingSentMs = 0
  /** The payload of the latest PING of the peer, while it is not answered. */
  pong: Uint8Array | null = null

  // What arrives on it.
  arrivedFrames = 0
  /** Bytes of frames since the last ACK. */
  untoldBytes = 0
  ackDueMs = Number.POSITIVE_INFINITY
  ackDue = false

  /** DRAIN has still to be said on it. */
  drainDue = false
  /** BYE was pulled, or the peer said BYE: there is nothing more to pull. */
  done = false

  /** When the peer last counted a frame, or the first of those under way went out. */
  private progressMs = 0
  private readonly sends: SendWindow

  constructor(connection: number, targetMs: number, nowMs: number) {
    this.connection = connection
    this.heardMs = nowMs
    this.pingDueMs = nowMs
    this.sends = new SendWindow(targetMs, nowMs)
  }

  /** Bytes that may be under way. */
  get window(): number {
    return this.sends.bytes
  }

  get inFlight(): number {
    return this.sends.inFlight
  }

  /** Frames that were sent on it, and those of them that the peer has counted. */
  get sentFrames(): number {
    return this.sends.records.sentFrames
  }

  get deliveredFrames(): number {
    return this.sends.records.deliveredFrames
  }

  /** Smoothed round trip, and the smallest seen lately, milliseconds; 0 before the first measurement. */
  get rttMs(): number {
    return this.sends.roundTrip.smoothedMs
  }

  get rttMinMs(): number {
    return this.sends.roundTrip.minMs
  }

  /** Bytes a second that the peer got, best of the last round trips; 0 before the first measurement. */
  get rate(): number {
    return this.sends.rate.max * 1000
  }

  /** How late an ACK may be: a small part of the round trip, since each costs both sides a turn of their loops. */
  get ackDelayMs(): number {
    return Math.min(ACK_DELAY_MS_MAX, Math.max(ACK_DELAY_MS, this.rttMinMs / 8))
  }

  /** Its window still grows: it is not known yet what it takes. */
  get isStarting(): boolean {
    return this.sends.rate.starting
  }

  /** Bytes under way that show what it takes; more would only stand in the way of whoever comes. */
  get measuringBytes(): number {
    return this.sends.measuringBytes
  }

  setTarget(targetMs: number): void {
    this.sends.setTarget(targetMs)
  }

  get deadMs(): number {
    return this.heardMs + CONNECTION_DEAD_MS
  }

  /** When it is to be given up because the peer counts none of what was sent; Infinity: nothing is under way. */
  get stuckMs(): number {
    return this.inFlight === 0 ? Number.POSITIVE_INFINITY : this.progressMs + CONNECTION_STUCK_MS
  }

  /** This process stood still for so long: what came meanwhile lies unread, and proves nothing. */
  stoodStill(ms: number, nowMs: number): void {
    this.heardMs = Math.min(this.heardMs + ms, nowMs)
    this.progressMs = Math.min(this.progressMs + ms, nowMs)
  }

  /** @returns whether something has become due */
  tick(nowMs: number): boolean {
    let due = false
    if (nowMs >= this.pingDueMs && !this.pingDue) {
      this.pingDue = true
      due = true
    }
    if (nowMs >= this.ackDueMs) {
      this.ackDue = true
      this.ackDueMs = Number.POSITIVE_INFINITY
      due = true
    }
    return due
  }

  get nextTickMs(): number {
    const next = Math.min(this.deadMs, this.ackDueMs)
    return this.pingDue ? next : Math.min(next, this.pingDueMs)
  }

  /** A sequenced frame of the peer came. @returns whether an ACK is due, or will be sooner than before */
  arrived(bytes: number, nowMs: number): boolean {
    this.arrivedFrames++
    this.untoldBytes += bytes
    if (this.untoldBytes >= ACK_BYTES) {
      this.ackDue = true
      return true
    }
    if (this.ackDueMs !== Number.POSITIVE_INFINITY || this.ackDue) return false
    this.ackDueMs = nowMs + this.ackDelayMs
    return true
  }

  /** An ACK goes out now, or not yet. @returns how many frames it counts; undefined: none goes */
  tell(): number | undefined {
    if (!this.ackDue && this.untoldBytes < ACK_BYTES / 4) return undefined
    this.untoldBytes = 0
    this.ackDue = false
    this.ackDueMs = Number.POSITIVE_INFINITY
    return this.arrivedFrames
  }

  /** A sequenced frame was pulled for this connection. */
  sent(sequence: number, size: number, nowMs: number): void {
    if (this.inFlight === 0) this.progressMs = nowMs
    this.sends.sent(sequence, size, nowMs)
  }

  /** The peer has counted one frame more. @returns its sequence number */
  takeDelivered(): number {
    return this.sends.takeDelivered()
  }

  /** After takeDelivered for all frames that one ACK counts: measures. */
  measure(nowMs: number): void {
    this.progressMs = nowMs
    this.sends.measure(nowMs)
  }

  /** The PONG to the latest PING has come. */
  ponged(nowMs: number): void {
    this.sends.ponged(this.pingSentMs, nowMs)
  }

  /** Nothing waits to be sent. */
  ranDry(): void {
    this.sends.rate.ranDry(this.inFlight, this.rttMinMs)
  }

  /** A PING goes out now: the number to put in it. */
  ping(nowMs: number): number {
    this.pingDue = false
    this.pingDueMs = nowMs + PING_INTERVAL_MS
    this.pingSentMs = nowMs
    return ++this.pingCount
  }

  /** Calls back with the sequence number of each frame that the peer has not counted. */
  eachUndelivered(call: (sequence: number) => void): void {
    this.sends.records.eachUndelivered(call)
  }
}
