/**
 * What is handed in becomes frames: lanes by urgency, numbers when a frame is first sent, so that what is urgent overtakes
 * what waits; each frame is kept until it is acknowledged, and goes out again where its connection was lost.
 */

import type { Share } from '../fair-shares.ts'
import { FRAME_PAYLOAD_BYTES_MAX, UNACKED_BYTES_MAX, UNACKED_FRAMES_MAX, WINDOW_BYTES_MIN } from '../limits.ts'
import { encodeNumbers } from '../wan/bodies.ts'
import { FLAG_MORE, FRAME, FRAME_HEAD_BYTES, SEQUENCE_END } from '../wan/wire.ts'
import type { AnswerRoom } from './answer-room.ts'
import { Deque } from './deque.ts'
import type { Flow } from './flow.ts'
import { FrameRing, type Payload } from './frame-ring.ts'
import { FrameRoom } from './frame-room.ts'
import { FrameWriter } from './frame-writer.ts'
import type { Path } from './path.ts'
import { RATE_DEBT_BYTES, type RateCap } from './rate-cap.ts'

/** Bulk leaves an eighth of the store to urgent frames. */
export const BULK_BYTES_MAX = (UNACKED_BYTES_MAX / 8) * 7
const BULK_FRAMES_MAX = (UNACKED_FRAMES_MAX / 8) * 7
/** Where the budget has no room for more frames, bulk leaves so many to urgent ones. */
const URGENT_FRAMES = 512
export const FRAME_BYTES_MAX = FRAME_HEAD_BYTES + FRAME_PAYLOAD_BYTES_MAX

// Where a frame is that was sent and not acknowledged; else the number of its connection.
const OWNER_RESEND = -1
const OWNER_ARRIVED = -2

const EMPTY = new Uint8Array(0)
/** What nothing on the way packs: without TLS that would be measured. */
const PAD = crypto.getRandomValues(new Uint8Array(FRAME_PAYLOAD_BYTES_MAX))

/** What the outbox keeps of a flow. */
type OutFlow = Pick<
  Flow,
  | 'number'
  | 'send'
  | 'receive'
  | 'openSequence'
  | 'takenSequence'
  | 'bulkEntries'
  | 'queuedBatches'
  | 'wanOut'
  | 'window'
>

/** A sequenced frame of no flow: it goes whole. */
interface OwnFrame {
  readonly type: number
  readonly payload: Uint8Array
}

/** Something handed in that becomes one or more frames. */
interface Entry {
  readonly type: number
  readonly flow: OutFlow
  readonly parts: readonly Uint8Array[]
  /** Called once the peer has all of it. */
  readonly release: (() => void) | undefined
  /** Each part is one frame's, with room for its head before it (src/codec/laid-batch.ts). */
  readonly isLaid: boolean
  /** Bytes not sent yet, and where they begin. */
  left: number
  part: number
  offset: number
}

export class Outbox {
  readonly writer = new FrameWriter()
  /** Sequence number of the last frame that was sent, and that up to which all are acknowledged. */
  lastSequence = 0
  acked = 0
  unackedBytes = 0
  /** The last frame of a laid batch went out: what follows lies elsewhere. */
  endsLaid = false
  /** Bytes of DATA and batches that wait. */
  queuedBytes = 0
  /** Bytes that a lost connection carried and that wait to go out again; bytes that did. */
  resendBytes = 0
  resentBytes = 0
  /** ENDs that were handed in and not acknowledged. */
  endsUnacked = 0
  /** Bytes of PADs that may go out where there is nothing else to send: they measure connections. */
  padBytes = 0
  private readonly rate: RateCap
  private readonly answers: AnswerRoom
  private readonly room: FrameRoom
  private readonly urgentLane = new Deque<Entry>()
  private readonly bulkLane = new Deque<Entry>()
  /** Frames of no flow. */
  private readonly ownLane = new Deque<OwnFrame>()
  private readonly creditLane = new Deque<Flow>()
  private readonly sent = new FrameRing()
  /** What is to be told once all frames up to a number are acknowledged, by that number. */
  private readonly releases = new Deque<{ readonly sequence: number; readonly release: () => void }>()
  /** No frame before this number waits to go out again. */
  private resendFrom = 1
  /** Frames that were sent, on connections that stand, and not counted there. */
  private underWayFrames = 0

  constructor(rate: RateCap, answers: AnswerRoom, memory: Share) {
    this.rate = rate
    this.room = new FrameRoom(memory)
    this.answers = answers
  }

  /** Nothing waits, and all is acknowledged. CREDIT does not count. */
  get isFlushed(): boolean {
    const waiting = this.urgentLane.length + this.ownLane.length + this.bulkLane.length
    return waiting === 0 && this.acked >= this.lastSequence
  }

  /**
   * Puts an entry in its lane.
   * @param release called once the peer has acknowledged all of it. A socket may still hold frames that were sent twice,
   *   and acknowledged over another connection: the peer drops those without a look at what is in them
   * @param isLaid each part is one frame's, with room for its head before it, where that is written
   * @returns bytes of it
   */
  enqueue(type: number, flow: OutFlow, parts: readonly Uint8Array[], release?: () => void, isLaid = false): number {
    let left = 0
    for (const part of parts) left += part.length
    const entry: Entry = { type, flow, parts, release, isLaid, left, part: 0, offset: 0 }
    if (type === FRAME.DATA) this.answers.enqueued(left)
    else if (type === FRAME.BATCH) flow.queuedBatches++
    else if (type === FRAME.END) this.endsUnacked++
    if (type === FRAME.DATA || type === FRAME.BATCH) this.queuedBytes += left
    if (type === FRAME.BATCH || flow.bulkEntries > 0) {
      flow.bulkEntries++
      this.bulkLane.push(entry)
    } else {
      this.urgentLane.push(entry)
    }
    return left
  }

  /** A sequenced frame of no flow: behind urgent ones, before batches. */
  enqueueOwn(type: number, payload: Uint8Array): void {
    this.ownLane.push({ type, payload })
  }

  /** Frames of no flow that wait. */
  get ownFrames(): number {
    return this.ownLane.length
  }

  /** The flow's window is to be told, as it is when the frame goes. */
  enqueueCredit(flow: Flow): void {
    flow.window.due = true
    this.creditLane.push(flow)
  }

  /** One sequenced frame, the most pressing that may go. @param withCredit CREDIT goes too. @returns its bytes, or 0 */
  pull(path: Path, withCredit: boolean, nowMs: number, out: Uint8Array[]): number {
    this.endsLaid = false
    if (this.underWayFrames >= 2 * this.room.frames) return 0 // acknowledged, and not counted
    const free = path.window - path.inFlight
    if (this.findResend()) {
      // All that is newer would only wait for it at the far side.
      return free > 0 && this.rate.mayGo(0, nowMs) ? this.pullAgain(path, nowMs, out) : 0
    }
    if (!this.mayKeepMore) return 0
    // Urgent frames may overdraw the window and the rate a little: they must not wait for bulk that is under way.
    const urgentGoes = free > -Math.max(WINDOW_BYTES_MIN, path.window / 4) && this.rate.mayGo(RATE_DEBT_BYTES, nowMs)
    if (urgentGoes && withCredit) {
      for (let flow = this.creditLane.shift(); flow; flow = this.creditLane.shift()) {
        flow.window.due = false
        if (flow.isListening) return this.pullCredit(path, flow, nowMs, out)
      }
    }
    const urgent = this.first(this.urgentLane)
    if (urgent) {
      if (!urgentGoes) return 0
      if (urgent.type !== FRAME.CREDIT) return this.pullEntry(path, this.urgentLane, urgent, nowMs, out)
      this.finish(this.urgentLane, urgent)
      return this.pullCredit(path, urgent.flow, nowMs, out)
    }
    const own = this.ownLane.peek()
    if (own) {
      if (!urgentGoes) return 0
      this.ownLane.shift()
      return this.putNew(path, own.type, 0, 0, own.payload.length, own.payload, nowMs, out)
    }
    const bulk = this.first(this.bulkLane)
    if (!bulk) {
      if (this.padBytes > 0 && path.isStarting && path.rttMinMs > 0) {
        const goes = Math.min(free, path.measuringBytes - path.inFlight) > 0 && this.rate.mayGo(0, nowMs)
        return goes ? this.pullPad(path, nowMs, out) : 0
      }
      path.ranDry()
      return 0
    }
    const frames = this.lastSequence - this.acked
    const stored =
      frames < BULK_FRAMES_MAX && this.room.holds(frames + URGENT_FRAMES) && this.unackedBytes < BULK_BYTES_MAX
    return free > 0 && stored && this.rate.mayGo(0, nowMs) ? this.pullEntry(path, this.bulkLane, bulk, nowMs, out) : 0
  }

  /** The peer has counted frames of a connection: they have arrived for good, whatever becomes of it. */
  delivered(path: Path, frames: number): void {
    this.underWayFrames -= frames - path.deliveredFrames
    while (path.deliveredFrames < frames) {
      const sequence = path.takeDelivered()
      const slot = sequence & this.sent.mask
      if (sequence > this.acked && this.sent.owner[slot] === path.connection) this.sent.owner[slot] = OWNER_ARRIVED
    }
  }

  /** All frames up to this number have arrived. @returns whether any of them had not been acknowledged before */
  acknowledge(sequence: number): boolean {
    if (sequence <= this.acked) return false
    const { sent } = this
    while (this.acked < sequence) {
      const slot = ++this.acked & sent.mask
      const size = FRAME_HEAD_BYTES + sent.length[slot]!
      this.unackedBytes -= size
      if (sent.owner[slot] === OWNER_RESEND) this.resendBytes -= size
      if (sent.type[slot] === FRAME.DATA) this.answers.acknowledged(sent.length[slot]!)
      else if (sent.type[slot] === FRAME.END) this.endsUnacked--
      sent.free(slot)
    }
    this.room.settle(this.lastSequence - this.acked)
    for (let next = this.releases.peek(); next && next.sequence <= sequence; next = this.releases.peek()) {
      this.releases.shift()
      next.release()
    }
    return true
  }

  /** A connection is gone: what it carried and was not counted goes out again. */
  lost(path: Path): void {
    this.underWayFrames -= path.sentFrames - path.deliveredFrames
    path.eachUndelivered(sequence => {
      const slot = sequence & this.sent.mask
      if (sequence <= this.acked || this.sent.owner[slot] !== path.connection) return
      if (this.sent.type[slot] === FRAME.PAD) {
        // of what only measured that connection nothing but its number is owed
        this.unackedBytes -= this.sent.length[slot]!
        this.sent.length[slot] = 0
        this.sent.payload[slot] = EMPTY
      }
      this.sent.owner[slot] = OWNER_RESEND
      this.resendFrom = this.resendBytes === 0 ? sequence : Math.min(this.resendFrom, sequence)
      this.resendBytes += FRAME_HEAD_BYTES + this.sent.length[slot]!
    })
  }

  stats(): { unacked: number; queued: number; resentBytes: number } {
    return { unacked: this.unackedBytes, queued: this.queuedBytes, resentBytes: this.resentBytes }
  }

  /** Lets go of all memory. */
  clear(): void {
    this.urgentLane.clear()
    this.bulkLane.clear()
    this.ownLane.clear()
    this.creditLane.clear()
    this.sent.clear()
    this.releases.clear()
    this.room.clear()
    this.resendBytes = 0
    this.queuedBytes = 0
    this.unackedBytes = 0
    this.acked = this.lastSequence
  }

  /**
   * Looks for the first frame that waits to go out again. One byte is read of each frame that does not, 60 us for all that
   * may be kept: a peer that comes back over and over makes us look again, and no more.
   * @returns whether there is one: `resendFrom` is its number
   */
  private findResend(): boolean {
    if (this.resendBytes === 0) return false
    const { owner, mask } = this.sent
    let sequence = Math.max(this.resendFrom, this.acked + 1)
    while (owner[sequence & mask] !== OWNER_RESEND) sequence++
    this.resendFrom = sequence
    return true
  }

  private get mayKeepMore(): boolean {
    return (
      this.lastSequence - this.acked < UNACKED_FRAMES_MAX &&
      this.room.holds(this.lastSequence - this.acked + 1) &&
      this.unackedBytes + FRAME_BYTES_MAX <= UNACKED_BYTES_MAX &&
      this.lastSequence < SEQUENCE_END - 1
    )
  }

  private pullAgain(path: Path, nowMs: number, out: Uint8Array[]): number {
    const sequence = this.resendFrom++
    const slot = sequence & this.sent.mask
    const size = FRAME_HEAD_BYTES + this.sent.length[slot]!
    this.resendBytes -= size
    this.resentBytes += size
    this.sent.owner[slot] = path.connection
    this.underWayFrames++
    path.sent(sequence, size, nowMs)
    return this.writer.put(out, this.sent, sequence)
  }

  /** The first entry of a lane that anybody still wants. */
  private first(lane: Deque<Entry>): Entry | undefined {
    let entry = lane.peek()
    while (entry && isDropped(entry)) {
      this.finish(lane, entry)
      entry = lane.peek()
    }
    return entry
  }

  private pullEntry(path: Path, lane: Deque<Entry>, entry: Entry, nowMs: number, out: Uint8Array[]): number {
    const { flow, type } = entry
    const { isLaid } = entry
    const length = Math.min(entry.left, FRAME_PAYLOAD_BYTES_MAX)
    const payload = length === 0 ? EMPTY : isLaid ? entry.parts[entry.part++]! : takePayload(entry, length)
    entry.left -= length
    const more = type === FRAME.BATCH && entry.left > 0
    const bytes = this.putNew(path, type, more ? FLAG_MORE : 0, flow.number, length, payload, nowMs, out, isLaid)
    if (type === FRAME.OPEN) flow.openSequence = this.lastSequence
    flow.wanOut += bytes
    if (type === FRAME.DATA) this.answers.sent(length)
    if (type === FRAME.DATA || type === FRAME.BATCH) this.queuedBytes -= length
    if (entry.left === 0) {
      if (entry.release) this.releases.push({ sequence: this.lastSequence, release: entry.release })
      this.finish(lane, entry)
      this.endsLaid = isLaid
    }
    return bytes
  }

  private finish(lane: Deque<Entry>, entry: Entry): void {
    lane.shift()
    const { flow } = entry
    if (lane === this.bulkLane) flow.bulkEntries--
    if (entry.type === FRAME.BATCH) flow.queuedBatches--
    if (entry.left > 0) {
      // Dropped: data of a flow that was reset.
      this.queuedBytes -= entry.left
      this.answers.dropped(entry.left)
    }
  }

  /** It is acknowledged as any frame with a number, so that the window learns from it. */
  private pullPad(path: Path, nowMs: number, out: Uint8Array[]): number {
    this.padBytes -= PAD.length
    return this.putNew(path, FRAME.PAD, 0, 0, PAD.length, PAD, nowMs, out)
  }

  private pullCredit(path: Path, flow: OutFlow, nowMs: number, out: Uint8Array[]): number {
    const payload = encodeNumbers(flow.window.grant())
    const bytes = this.putNew(path, FRAME.CREDIT, 0, flow.number, payload.length, payload, nowMs, out)
    if (flow.takenSequence === 0) flow.takenSequence = this.lastSequence
    return bytes
  }

  /** Gives a frame its number, keeps it, and puts it out. */
  private putNew(
    path: Path,
    type: number,
    flags: number,
    flow: number,
    length: number,
    payload: Payload,
    nowMs: number,
    out: Uint8Array[],
    isLaid = false,
  ): number {
    const sequence = ++this.lastSequence
    const { sent } = this
    sent.span(this.acked, sequence)
    const slot = sequence & sent.mask
    const size = FRAME_HEAD_BYTES + length
    sent.type[slot] = type
    sent.flags[slot] = flags
    sent.flow[slot] = flow
    sent.length[slot] = length
    sent.owner[slot] = path.connection
    sent.payload[slot] = payload
    sent.laid[slot] = isLaid ? 1 : 0
    this.unackedBytes += size
    this.underWayFrames++
    path.sent(sequence, size, nowMs)
    return this.writer.put(out, sent, sequence)
  }
}

/**
 * Data of a flow that was reset: nobody wants it any more, nor the credit that takes the flow. Batches are sent in any
 * case, and so where this side reset the flow is the data before them: the peer still writes both to its QEMU, which must
 * never see a hole.
 */
function isDropped(entry: Entry): boolean {
  const { flow, type } = entry
  if (type === FRAME.CREDIT) return flow.send === 'reset'
  if (type !== FRAME.DATA) return false
  return flow.receive === 'reset' || (flow.send === 'reset' && flow.queuedBatches === 0)
}

/** The next `length` bytes of an entry. */
function takePayload(entry: Entry, length: number): Payload {
  const first = entry.parts[entry.part]!
  if (first.length - entry.offset >= length) {
    const view =
      length === first.length && entry.offset === 0 ? first : first.subarray(entry.offset, entry.offset + length)
    entry.offset += length
    return view
  }
  const views: Uint8Array[] = []
  let missing = length
  while (missing > 0) {
    const part = entry.parts[entry.part]!
    const take = Math.min(part.length - entry.offset, missing)
    if (take > 0) views.push(part.subarray(entry.offset, entry.offset + take))
    missing -= take
    entry.offset += take
    if (entry.offset === part.length) {
      entry.part++
      entry.offset = 0
    }
  }
  return views.length === 1 ? views[0]! : views
}
