/** Sequenced frames of the peer: in order, each once, over all connections. And batches out of their parts. */

import { rawLengthOf } from '../codec/batch-head.ts'
import type { ErrorCode } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import {
  BATCH_RAW_BYTES_MAX,
  BATCH_WIRE_BYTES_MAX,
  FRAME_PAYLOAD_BYTES_MAX,
  HELD_FRAME_BYTES,
  HELD_FREE_BYTES,
  UNACKED_BYTES_MAX,
  UNACKED_FRAMES_MAX,
} from '../limits.ts'
import { FLAG_MORE, FRAME_HEAD_BYTES } from '../wan/wire.ts'
import { FrameRing } from './frame-ring.ts'
import { keptPayload } from './kept-payloads.ts'

/** Parts of a batch: all but the last are full. */
const PARTS_MAX = Math.ceil(BATCH_WIRE_BYTES_MAX / FRAME_PAYLOAD_BYTES_MAX)

/** A rule of the protocol that the peer broke. */
export type Fault = readonly [code: ErrorCode, what: string]

/** Takes frames in their order. */
export type Deliver = (type: number, flags: number, flow: number, payload: Uint8Array) => void

export class Inbox {
  /** Highest sequence number up to which all frames have been delivered. */
  received = 0
  duplicates = 0
  /** Bytes that came ahead of a missing frame. */
  heldBytes = 0
  protected readonly deliver: Deliver
  private readonly memory: Share
  private readonly held = new FrameRing()
  private heldFrames = 0
  /** What the budget was asked for them. */
  private heldTaken = 0
  private closed = false

  constructor(deliver: Deliver, memory: Share) {
    this.deliver = deliver
    this.memory = memory
  }

  /**
   * A frame came: delivers it, and what was held behind it, or holds it.
   * @returns a fault; 'no memory': it was not taken, and must not be acknowledged
   */
  take(
    type: number,
    flags: number,
    flow: number,
    sequence: number,
    payload: Uint8Array,
  ): Fault | 'no memory' | undefined {
    if (sequence <= this.received) this.duplicates++
    else if (sequence !== this.received + 1) return this.hold(type, flags, flow, sequence, payload)
    else {
      this.received = sequence
      this.deliver(type, flags, flow, payload)
      if (this.heldBytes > 0) this.deliverHeld()
    }
    return undefined
  }

  stats(): { reordered: number; duplicates: number } {
    return { reordered: this.heldBytes, duplicates: this.duplicates }
  }

  /** What an ACK says of it. */
  get acknowledged(): number {
    return this.received
  }

  /** The session is over, and its memory given back. */
  clear(): void {
    this.closed = true
    this.held.clear()
    this.heldBytes = 0
    this.heldFrames = 0
    this.heldTaken = 0
  }

  private hold(
    type: number,
    flags: number,
    flow: number,
    sequence: number,
    payload: Uint8Array,
  ): Fault | 'no memory' | undefined {
    if (sequence > this.received + UNACKED_FRAMES_MAX) {
      return ['LIMIT_EXCEEDED', `frame ${sequence} came before frame ${this.received + 1}`]
    }
    const { held } = this
    held.span(this.received, sequence)
    const slot = sequence & held.mask
    if (held.type[slot] !== 0) {
      this.duplicates++
      return undefined
    }
    const size = FRAME_HEAD_BYTES + payload.length
    if (this.heldBytes + size > UNACKED_BYTES_MAX) {
      return ['LIMIT_EXCEEDED', `${this.heldBytes + size} bytes came ahead of a missing frame`]
    }
    if (!this.count(size, 1)) return 'no memory'
    held.type[slot] = type
    held.flags[slot] = flags
    held.flow[slot] = flow
    held.payload[slot] = keptPayload(payload)
    return undefined
  }

  private deliverHeld(): void {
    const { held } = this
    for (;;) {
      const slot = (this.received + 1) & held.mask
      const type = held.type[slot]!
      // What is delivered may have ended the session.
      if (type === 0 || this.closed) return
      const payload = held.payload[slot] as Uint8Array
      held.free(slot)
      this.count(-FRAME_HEAD_BYTES - payload.length, -1)
      this.received++
      this.deliver(type, held.flags[slot]!, held.flow[slot]!, payload)
    }
  }

  /** What is held changes. @returns false where there is no memory for it: then it does not */
  private count(bytes: number, frames: number): boolean {
    const cost = this.heldBytes + bytes + (this.heldFrames + frames) * HELD_FRAME_BYTES
    const need = Math.max(0, cost - HELD_FREE_BYTES)
    if (need > this.heldTaken) {
      if (!this.memory.take(need - this.heldTaken)) return false
    } else this.memory.give(this.heldTaken - need)
    this.heldTaken = need
    this.heldBytes += bytes
    this.heldFrames += frames
    return true
  }
}

/** The batch whose parts are coming: they follow each other, whatever stands between them. */
export class BatchParts {
  /** Flow of the batch that has begun; 0: none has. */
  flow = 0
  private parts: Uint8Array[] = []
  private bytes = 0

  /** @returns a fault, or the whole batch, or undefined: further parts follow */
  add(
    flow: number,
    flags: number,
    payload: Uint8Array,
  ): Fault | { readonly parts: Uint8Array[]; readonly rawLength: number } | undefined {
    if (this.flow !== 0 && this.flow !== flow) return ['PROTOCOL_SYNTAX', 'a batch within a batch']
    const more = (flags & FLAG_MORE) !== 0
    if (more && payload.length !== FRAME_PAYLOAD_BYTES_MAX) {
      return ['PROTOCOL_SYNTAX', `part of a batch with ${payload.length} bytes`]
    }
    this.bytes += payload.length
    if (this.bytes > BATCH_WIRE_BYTES_MAX || this.parts.length >= PARTS_MAX) {
      return ['LIMIT_EXCEEDED', `batch of more than ${BATCH_WIRE_BYTES_MAX} bytes`]
    }
    this.flow = flow
    this.parts.push(payload)
    if (more) return undefined
    const { parts } = this
    this.clear()
    const rawLength = rawLengthOf(parts)
    if (rawLength < 1) return ['BATCH_FORMAT', 'a batch does not begin with its format and raw length']
    if (rawLength > BATCH_RAW_BYTES_MAX) return ['LIMIT_EXCEEDED', `batch of ${rawLength} raw bytes`]
    return { parts, rawLength }
  }

  clear(): void {
    this.flow = 0
    this.parts = []
    this.bytes = 0
  }
}
