/**
 * What a session knows of one connection: which frames are under way on it, how fast it delivers, its round trip, the
 * window that follows from both, and its heartbeat.
 *
 * Delivery rate as BBR measures it (draft-cheng-iccrg-delivery-rate-estimation): each frame remembers how much had been
 * delivered when it was sent, so that an ACK gives bytes over time without any assumption about the pauses between
 * ACKs. The window is that rate times (smallest round trip + queue target): what stands in queues along the way then
 * takes about the target's time to drain, whatever the link carries.
 */

import {
  ACK_BYTES,
  ACK_DELAY_MS,
  ACK_DELAY_MS_MAX,
  CONNECTION_DEAD_MS,
  CONNECTION_STUCK_MS,
  FRAME_PAYLOAD_BYTES_MAX,
  PING_INTERVAL_MS,
  UNACKED_BYTES_MAX,
  UNACKED_FRAMES_MAX,
  WINDOW_BYTES_MIN,
} from '../limits.ts'

/** Window before anything was measured: as TCP would have it after a few round trips. */
const WINDOW_BYTES_START = 65536

/** Frames that a connection may have under way: twice what a session keeps, since some may be acknowledged elsewhere. */
const RECORDS_MAX = 2 * UNACKED_FRAMES_MAX

/** Round trips whose best delivery rate counts. */
const ROUNDS = 4

/** A smallest round trip older than this is measured again, with the queues drained for one round trip. */
const RTT_MIN_AGE_MS = 10_000

/** No round trip is measured shorter: 0 stands for none. */
const RTT_RESOLUTION_MS = 0.001

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

  // Frames under way, oldest first, in rings that grow: index = count of sent frames, masked.
  sentFrames = 0
  /** Frames of those that the peer has counted. */
  deliveredFrames = 0
  inFlight = 0
  /** When the peer last counted one of them, or the first of them went out. */
  private progressMs = 0
  private sequences = new Float64Array(256)
  private sizes = new Uint16Array(256)
  private sentAt = new Float64Array(256)
  private deliveredThen = new Float64Array(256)
  private deliveredAtThen = new Float64Array(256)
  private firstSentThen = new Float64Array(256)
  private limitedThen = new Uint8Array(256)

  // Delivery rate, bytes a millisecond.
  private delivered = 0
  private deliveredAt = 0
  private firstSentAt = 0
  /** While `delivered` is below this, frames are sent with nothing waiting behind them: their samples say too little. */
  private limitedUntil = 0
  private readonly rounds = new Float64Array(ROUNDS)
  private round = 0
  private roundEnd = 0
  private roundSampled = false
  private rateMax = 0
  /** Until the rate has stopped growing for three round trips, or queues form, the window may double each of them. */
  private starting = true
  private fullRate = 0
  private fullRounds = 0

  // Round trip.
  rttMs = 0
  rttMinMs = 0
  private rttMinAt = 0
  private bloatedSince = 0
  /** A frame sent from here on has no queue of ours before it; Infinity: no probe. */
  private probeFrom = Number.POSITIVE_INFINITY
  private probedMinMs = 0
  /** After a probe the window opens as frames arrive: a burst of half a window would be a queue again. */
  private rampFrom = 0
  private rampBytes = 0
  private targetMs: number
  private windowBytes = WINDOW_BYTES_START

  constructor(connection: number, targetMs: number, nowMs: number) {
    this.connection = connection
    this.targetMs = targetMs
    this.heardMs = nowMs
    this.pingDueMs = nowMs
    this.rttMinAt = nowMs
  }

  /** Bytes that may be under way. */
  get window(): number {
    return this.windowBytes
  }

  /** Bytes a second that the peer got, best of the last round trips; 0 before the first measurement. */
  get rate(): number {
    return this.rateMax * 1000
  }

  /** How late an ACK may be: a small part of the round trip, since each costs both sides a turn of their loops. */
  get ackDelayMs(): number {
    return Math.min(ACK_DELAY_MS_MAX, Math.max(ACK_DELAY_MS, this.rttMinMs / 8))
  }

  setTarget(targetMs: number): void {
    this.targetMs = targetMs
    this.setWindow()
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

  /** False while the ring of frames under way is full: a peer that never counts what arrives. */
  get hasRecords(): boolean {
    return this.sentFrames - this.deliveredFrames < RECORDS_MAX
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
    if (this.sentFrames - this.deliveredFrames === this.sizes.length) this.grow()
    if (this.inFlight === 0) {
      this.progressMs = nowMs
      this.firstSentAt = nowMs
      this.deliveredAt = nowMs
    }
    const at = this.sentFrames++ & (this.sizes.length - 1)
    this.sequences[at] = sequence
    this.sizes[at] = size
    this.sentAt[at] = nowMs
    this.deliveredThen[at] = this.delivered
    this.deliveredAtThen[at] = this.deliveredAt
    this.firstSentThen[at] = this.firstSentAt
    this.limitedThen[at] = this.limitedUntil > 0 || this.probeFrom !== Number.POSITIVE_INFINITY ? 1 : 0
    this.inFlight += size
  }

  /** The peer has counted one frame more. @returns its sequence number */
  takeDelivered(): number {
    const at = this.deliveredFrames++ & (this.sizes.length - 1)
    const size = this.sizes[at]!
    this.inFlight -= size
    this.delivered += size
    return this.sequences[at]!
  }

  /** After takeDelivered for all frames that one ACK counts: measures. */
  measure(nowMs: number): void {
    const at = (this.deliveredFrames - 1) & (this.sizes.length - 1)
    this.deliveredAt = nowMs
    this.progressMs = nowMs
    const sentAt = this.sentAt[at]!
    this.firstSentAt = sentAt
    if (this.limitedUntil > 0 && this.delivered > this.limitedUntil) this.limitedUntil = 0
    const rtt = Math.max(nowMs - sentAt, RTT_RESOLUTION_MS)
    this.sampleRtt(rtt, sentAt, nowMs)

    const then = this.deliveredThen[at]!
    const intervalMs = Math.max(sentAt - this.firstSentThen[at]!, nowMs - this.deliveredAtThen[at]!)
    // Shorter than a round trip: ACKs that came in a lump.
    if (intervalMs > 0 && intervalMs >= this.rttMinMs) {
      this.sampleRate((this.delivered - then) / intervalMs, then, this.limitedThen[at] === 1)
    }
    this.setWindow()
  }

  /** The PONG to the latest PING has come. */
  ponged(nowMs: number): void {
    this.sampleRtt(Math.max(nowMs - this.pingSentMs, RTT_RESOLUTION_MS), this.pingSentMs, nowMs)
    this.setWindow()
  }

  /** Nothing waits to be sent. Where little is under way too, what is measured now is the sender's rate, not the link's. */
  ranDry(): void {
    if (this.inFlight < Math.max(this.rateMax * this.rttMinMs, WINDOW_BYTES_MIN / 2)) {
      this.limitedUntil = this.delivered + this.inFlight + 1
    }
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
    for (let i = this.deliveredFrames; i < this.sentFrames; i++) call(this.sequences[i & (this.sizes.length - 1)]!)
  }

  private sampleRtt(rtt: number, sentAt: number, nowMs: number): void {
    this.rttMs = this.rttMs === 0 ? rtt : this.rttMs + (rtt - this.rttMs) / 8
    let probe = false
    if (this.rttMinMs === 0 || rtt <= this.rttMinMs) {
      // Far shorter all at once: the way is another one, and this sample still has our queue in it.
      probe = !this.starting && rtt < this.rttMinMs * 0.7
      this.rttMinMs = rtt
      this.rttMinAt = nowMs
    } else if (rtt <= this.rttMinMs * 1.125 + 1) {
      this.rttMinAt = nowMs // still as short as ever
    }
    if (sentAt >= this.probeFrom) {
      // Sent after the queues were drained: this is what the link takes now, even where it is more than before. A way that
      // is much longer also takes more than its windows let anyone see: look for it as at the start.
      if (rtt > 1.5 * this.probedMinMs) this.restart()
      this.rttMinMs = rtt
      this.rttMinAt = nowMs
      this.probeFrom = Number.POSITIVE_INFINITY
      this.bloatedSince = 0
      this.rampFrom = this.delivered
      this.rampBytes = this.inFlight + FRAME_PAYLOAD_BYTES_MAX
      return
    }
    // More delay than our own queue makes: the link got slower (the queue drains once the window follows), or its way
    // longer, where a window for the old round trip would starve it. Draining the queues tells which.
    if (rtt > this.rttMinMs + Math.max(2 * this.targetMs, 20, this.rttMinMs / 2)) {
      if (this.bloatedSince === 0) this.bloatedSince = nowMs
      else if (nowMs - this.bloatedSince > Math.max(100, 2 * this.rttMs)) probe = true
    } else {
      this.bloatedSince = 0
    }
    if (this.probeFrom === Number.POSITIVE_INFINITY && (probe || nowMs - this.rttMinAt > RTT_MIN_AGE_MS)) {
      this.probeFrom = nowMs + this.rttMs
      this.probedMinMs = this.rttMinMs
    }
  }

  private restart(): void {
    this.starting = true
    this.fullRate = 0
    this.fullRounds = 0
  }

  private sampleRate(rate: number, deliveredThen: number, limited: boolean): void {
    if (deliveredThen >= this.roundEnd) {
      this.roundEnd = this.delivered
      if (this.roundSampled) {
        this.round = (this.round + 1) % ROUNDS
        this.rounds[this.round] = 0
        this.roundSampled = false
        if (this.starting && !limited) this.checkStart()
      }
    }
    if (!limited || rate > this.rateMax) {
      if (rate > this.rounds[this.round]!) this.rounds[this.round] = rate
      this.roundSampled = true
    }
    let max = 0
    for (const best of this.rounds) if (best > max) max = best
    if (this.bloatedSince > 0 && !limited) {
      // Round trips far too long say that the link got slower: older rates are of no use.
      max = rate
      this.rounds.fill(0)
      this.rounds[this.round] = rate
    }
    if (max > 0) this.rateMax = max
  }

  private checkStart(): void {
    if (this.rateMax > this.fullRate * 1.25) {
      this.fullRate = this.rateMax
      this.fullRounds = 0
    } else if (++this.fullRounds >= 3 || this.bloatedSince > 0) {
      // Or queues say already that it is full.
      this.starting = false
    }
  }

  private setWindow(): void {
    if (this.rateMax === 0) return
    // An eighth of the round trip at least: without any queue the rate could never be seen to grow.
    const spareMs = Math.max(this.targetMs, this.rttMinMs / 8)
    let window = this.rateMax * (this.rttMinMs + spareMs)
    if (this.starting) window = Math.max(window, 2 * this.rateMax * this.rttMinMs, WINDOW_BYTES_START)
    let least = WINDOW_BYTES_MIN
    if (this.probeFrom !== Number.POSITIVE_INFINITY) {
      window = (this.rateMax * this.rttMinMs) / 2
      least = FRAME_PAYLOAD_BYTES_MAX // on a slow link even two frames are a queue
    }
    if (this.rampBytes > 0) {
      const ramp = this.rampBytes + 2 * (this.delivered - this.rampFrom)
      if (ramp < window) window = ramp
      else this.rampBytes = 0
    }
    this.windowBytes = Math.floor(Math.min(Math.max(window, least), UNACKED_BYTES_MAX))
  }

  private grow(): void {
    const size = this.sizes.length
    const old = [
      this.sequences,
      this.sizes,
      this.sentAt,
      this.deliveredThen,
      this.deliveredAtThen,
      this.firstSentThen,
      this.limitedThen,
    ] as const
    const ring = [
      new Float64Array(size * 2),
      new Uint16Array(size * 2),
      new Float64Array(size * 2),
      new Float64Array(size * 2),
      new Float64Array(size * 2),
      new Float64Array(size * 2),
      new Uint8Array(size * 2),
    ] as const
    for (let i = this.deliveredFrames; i < this.sentFrames; i++) {
      for (let field = 0; field < ring.length; field++) ring[field]![i & (size * 2 - 1)] = old[field]![i & (size - 1)]!
    }
    this.sequences = ring[0]
    this.sizes = ring[1]
    this.sentAt = ring[2]
    this.deliveredThen = ring[3]
    this.deliveredAtThen = ring[4]
    this.firstSentThen = ring[5]
    this.limitedThen = ring[6]
  }
}
