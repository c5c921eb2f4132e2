/**
 * Which channel is encoded next, how much of it, and how hard: so much that the link is busy and little is parked, and as
 * hard as there is time for (docs/adr/0006-effort.md). Pure: times come in, and jobs go out, one after the other.
 *
 *   for (let job = pump.next(now()); job; job = pump.next(now())) pump.encoded(job.channel, encode(job))
 *
 * Then, by `state`: nothing until something happens, again in the next turn of the event loop where a source is in the
 * middle of sending (`gathering`), and `tick` at `nextTickMs`.
 */
import type { Effort } from '../compression/effort.ts'
import type { EffortController, Waiting } from './effort-controller.ts'

/** Raw bytes that one channel may have waiting: one batch. */
export const BATCH_BYTES_MAX = 512 * 1024
/** Batches may be cut down to this on a thin link: 50 ms of 10 Mbit/s. */
const BATCH_BYTES_MIN = 64 * 1024
/**
 * While its source goes on sending, a channel gathers so much before it is encoded: a batch costs both proxies about
 * 100 us whatever it holds, and a read brings what had arrived by chance.
 */
const GATHER_BYTES = 256 * 1024
/**
 * A disk's mirror has many requests under way, so that none of them waits for a batch: its batches are as large as they may be,
 * and take a few milliseconds for that. One that writes now and then is not held up: a turn without bytes ends it, as elsewhere.
 */
const GATHER_DISK_BYTES = 448 * 1024
const GATHER_DISK_MS = 4
/** An incomplete record whose rest does not come is sent after this time: docs/architecture.md promises that what waits is bounded in time. */
const IDLE_MS = 1
/** Batches in the packer: two keep threads and this one busy, more only add to what is parked. */
const UNDER_WAY_MAX = 3
/** How fast the share of bytes that packing leaves follows what was packed last. */
const SHARE_STEP = 0.2
/** The link is behind where it is waited for so much of the time, over about so long. */
const BEHIND_SHARE = 0.1
const BEHIND_MS = 500

/** What the pump asks of the link; Session has it. */
export interface PumpedLink {
  /** WAN bytes that further batches should have together, and how many are worth waiting for. */
  bulkRoom(nowMs: number): number
  bulkQuantum(): number
  /** WAN bytes that were handed in and have not arrived. */
  readonly waitingBytes: number
  /** Bytes a millisecond that it is known to take; Infinity, or left out: it may take more than it was given. */
  readonly knownRate?: number
  /** Raw bytes that may be handed in for a flow. */
  credit(flow: number): number
  /** Whose turn it is among these flows; -1 where there is none. */
  pickFlow(candidates: readonly number[], nowMs: number): number
}

/** Where batches are packed; Outbound is one. */
export interface PumpedPacker {
  readonly underWay: number
  readonly hasRoom: boolean
}

/** What lies in a channel's slot: bytes of whole records, and all. FlowEncoder has it. */
export interface WaitingBytes {
  readonly ready: number
  readonly waiting: number
}

/** A channel as the pump sees it. Its owner sets what it learns; the pump keeps the rest. */
export class PumpedChannel {
  /** Flow number in the session. */
  readonly number: number
  readonly bytes: WaitingBytes
  /** Of its slot. */
  readonly slotBytes: number
  /** A disk's: more is gathered of it. */
  readonly isDisk: boolean
  /** A guest waits for its bytes: nothing slow, nothing gathered. */
  urgent = false
  /** Its source sends no more: all that waits goes out, whole records or not. */
  ended = false
  /** Nothing of it is encoded any more. */
  broken = false
  /** Batches of it in the packer ... */
  underWay = 0
  /** ... and their raw bytes: credit that is spent, though the session does not know it yet. */
  underWayBytes = 0
  /** Its source idles: an incomplete record goes out too. */
  release = false
  /** What it sends may be over: whether an end follows at once decides what becomes of it. */
  mayEnd = false
  arrivedMs = 0
  arrivedTurn = Number.NEGATIVE_INFINITY
  /** When the first bytes of the next batch came. */
  gatherMs = 0

  constructor(number: number, bytes: WaitingBytes, slotBytes: number, isDisk = false) {
    this.isDisk = isDisk
    this.number = number
    this.bytes = bytes
    this.slotBytes = slotBytes
  }

  /** Bytes that a batch would take now. */
  get sendable(): number {
    return this.release || this.ended ? this.bytes.waiting : this.bytes.ready
  }
}

/** A batch to encode: all of the channel's whole records, and what follows them where `release` says so. */
export interface PumpJob {
  readonly channel: PumpedChannel
  readonly effort: Effort
  readonly release: boolean
}

export class Pump {
  /** Raw bytes that a channel should have waiting: what the link takes, so that little is parked on a slow one. */
  batchBytes = BATCH_BYTES_MAX
  /** After `next` gave nothing: a source is in the middle of sending, look again in the next turn. */
  gathering = false
  /** When `tick` is due; Infinity: not before something arrives. */
  nextTickMs = Number.POSITIVE_INFINITY
  private readonly link: PumpedLink
  private readonly packer: PumpedPacker
  private readonly effort: EffortController
  private readonly channels: PumpedChannel[] = []
  /** Turns of the event loop, counted while something arrives. */
  private turn = 0
  /** Raw bytes in the packer, and what is left of raw bytes lately: together what the packer is about to queue. */
  private underWayBytes = 0
  private packedShare = 1
  /** What is waited for, since when, and how much of the time it was the link lately. */
  private waiting: Waiting = 'source'
  private waitingSinceMs = 0
  private linkShare = 0
  /** Of the run that has begun: WAN bytes of room that are worth waiting for. */
  private quantum = 0
  private running = false
  private readonly candidates: number[] = []
  /** Whose those are. */
  private readonly candidateChannels: PumpedChannel[] = []

  constructor(link: PumpedLink, packer: PumpedPacker, effort: EffortController) {
    this.link = link
    this.packer = packer
    this.effort = effort
  }

  add(channel: PumpedChannel): void {
    this.channels.push(channel)
  }

  remove(channel: PumpedChannel): void {
    const index = this.channels.indexOf(channel)
    if (index >= 0) this.channels.splice(index, 1)
  }

  /** A turn of the event loop begins in which something may have arrived. */
  nextTurn(): void {
    this.turn++
  }

  /** Bytes are about to be added to what waits. */
  arrives(channel: PumpedChannel, nowMs: number): void {
    if (channel.bytes.ready === 0) channel.gatherMs = nowMs
    channel.arrivedMs = nowMs
    channel.arrivedTurn = this.turn
  }

  /** Raw bytes that may be added to what waits: one batch, which needs credit for all of it. */
  roomFor(channel: PumpedChannel): number {
    const credit = this.link.credit(channel.number) - channel.underWayBytes
    return Math.ceil(Math.min(this.batchBytes, credit)) - channel.bytes.waiting
  }

  /**
   * @returns what to encode now; `encoded` must follow. undefined: nothing until something happens, or as `gathering` and
   *   `nextTickMs` say
   */
  next(nowMs: number): PumpJob | undefined {
    const { link, packer, effort } = this
    if (!this.running) this.quantum = Math.min(link.bulkQuantum(), GATHER_BYTES * this.packedShare)
    const room = link.bulkRoom(nowMs) - this.underWayBytes * this.packedShare
    const wanted = room > 0 && room >= this.quantum
    const raw = Math.max(this.quantum, room) / this.packedShare
    this.batchBytes = Math.min(BATCH_BYTES_MAX, Math.max(BATCH_BYTES_MIN, raw))
    const channel = wanted && packer.hasRoom && packer.underWay < UNDER_WAY_MAX ? this.pick(nowMs) : undefined
    if (channel === undefined) {
      const waiting = this.lookAround()
      const state = !wanted ? 'wan' : waiting || packer.underWay >= UNDER_WAY_MAX ? 'cpu' : 'source'
      this.wait(state, nowMs)
      this.running = false
      return undefined
    }
    if (!this.running) this.wait('cpu', nowMs)
    this.running = true
    return { channel, effort: effort.effort(channel.urgent), release: channel.release || channel.ended }
  }

  /** The link is what is waited for, at least at times: what saves bytes for CPU time is worth it. */
  get linkIsBehind(): boolean {
    return this.linkShare > BEHIND_SHARE
  }

  private wait(state: Waiting, nowMs: number): void {
    this.effort.wait(state, nowMs, this.link.waitingBytes, this.link.knownRate)
    if (this.waiting !== 'source') {
      const weight = 1 - Math.exp((this.waitingSinceMs - nowMs) / BEHIND_MS)
      this.linkShare += ((this.waiting === 'wan' ? 1 : 0) - this.linkShare) * weight
    }
    this.waiting = state
    this.waitingSinceMs = nowMs
  }

  /** The job that `next` gave is in the packer. @param rawBytes that it took; 0: there was nothing */
  encoded(channel: PumpedChannel, rawBytes: number): void {
    channel.release = false
    if (rawBytes === 0) return
    channel.underWay++
    channel.underWayBytes += rawBytes
    this.underWayBytes += rawBytes
  }

  /** A batch came out of the packer, and is handed in. @param newBytes as BatchCounts counts them */
  packed(channel: PumpedChannel, rawBytes: number, packedBytes: number, newBytes: number, effort?: Effort): void {
    channel.underWay--
    channel.underWayBytes -= rawBytes
    this.underWayBytes -= rawBytes
    this.packedShare += (packedBytes / rawBytes - this.packedShare) * SHARE_STEP
    this.effort.sent(rawBytes, newBytes, packedBytes, effort)
  }

  /** Sends incomplete records of sources that have gone silent, with the next job. */
  tick(nowMs: number): void {
    for (const channel of this.channels) {
      if (mayIdle(channel) && nowMs - channel.arrivedMs >= IDLE_MS) channel.release = true
    }
    this.nextTickMs = Number.POSITIVE_INFINITY
  }

  /** Of those that can be encoded: a number may be another channel's that is being brought to its end. */
  private pick(nowMs: number): PumpedChannel | undefined {
    const { candidates, candidateChannels } = this
    candidates.length = 0
    candidateChannels.length = 0
    for (const channel of this.channels) {
      if (!this.canEncode(channel)) continue
      candidates.push(channel.number)
      candidateChannels.push(channel)
    }
    const picked = candidates.length > 0 ? this.link.pickFlow(candidates, nowMs) : -1
    return picked < 0 ? undefined : candidateChannels[candidates.indexOf(picked)]
  }

  /** Sets what is to be waited for. @returns whether a channel could be encoded */
  private lookAround(): boolean {
    let waiting = false
    this.gathering = false
    this.nextTickMs = Number.POSITIVE_INFINITY
    for (const channel of this.channels) {
      // one without credit waits for its QEMU, not for us
      if (this.canEncode(channel)) waiting = true
      else if (this.gathers(channel)) this.gathering = true
      else if (mayIdle(channel)) this.nextTickMs = Math.min(this.nextTickMs, channel.arrivedMs + IDLE_MS)
    }
    return waiting
  }

  private canEncode(channel: PumpedChannel): boolean {
    if (channel.broken || this.gathers(channel)) return false
    const bytes = channel.sendable
    return bytes > 0 && this.link.credit(channel.number) - channel.underWayBytes >= bytes
  }

  /**
   * Its source is in the middle of sending: bytes came in the last turn of the event loop. A turn without any ends it,
   * and so does a millisecond, or a few of a disk.
   */
  private gathers(channel: PumpedChannel): boolean {
    if (channel.broken || channel.release || channel.ended || channel.urgent) return false
    if (channel.mayEnd && channel.bytes.ready > 0 && this.turn - channel.arrivedTurn <= 1) return true
    const { isDisk, slotBytes, bytes } = channel
    const mostMs = isDisk ? GATHER_DISK_MS : IDLE_MS
    if (this.turn - channel.arrivedTurn > 1 || channel.arrivedMs - channel.gatherMs >= mostMs) return false
    if (bytes.ready === 0) return false
    const part = isDisk ? 7 / 8 : 1 / 2
    return bytes.ready < Math.min(isDisk ? GATHER_DISK_BYTES : GATHER_BYTES, part * this.batchBytes, part * slotBytes)
  }
}

/** Only an incomplete record waits, which goes out when its rest does not come. */
function mayIdle({ broken, release, ended, bytes }: PumpedChannel): boolean {
  return !broken && !release && !ended && bytes.ready === 0 && bytes.waiting > 0
}
