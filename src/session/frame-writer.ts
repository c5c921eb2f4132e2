/** Puts frames out as views: heads in slabs that are never written twice, or of
 * laid batches before their parts; large payloads where they are. */

import { writeHead } from '../wan/frames.ts'
import { FRAME_HEAD_BYTES } from '../wan/wire.ts'
import type { FrameRing } from './frame-ring.ts'

/** Payloads up to this are copied behind their head: one view less for the socket costs more than the copy. */
const COPY_BYTES_MAX = 256
/** Heads are cut from slabs of this size; a slab is left to the collector once no socket holds a part of it. */
const SLAB_BYTES = 65536

const EMPTY = new Uint8Array(0)

export class FrameWriter {
  private slab = new Uint8Array(0)
  private used = 0
  /** The memory of the laid batch whose frame came last. */
  private laid: Uint8Array = EMPTY

  /** A frame that is kept in a ring. @returns its bytes */
  put(out: Uint8Array[], ring: FrameRing, sequence: number): number {
    const slot = sequence & ring.mask
    const length = ring.length[slot]!
    const payload = ring.payload[slot]!
    if (ring.laid[slot] === 1) return this.putLaid(out, ring, slot, sequence, payload as Uint8Array)
    const copied = length <= COPY_BYTES_MAX && payload instanceof Uint8Array
    const bytes = copied ? FRAME_HEAD_BYTES + length : FRAME_HEAD_BYTES
    const at = this.reserve(bytes)
    const { slab } = this
    writeHead(slab, at, ring.type[slot]!, ring.flags[slot]!, ring.flow[slot]!, sequence, length, payload)
    if (copied) slab.set(payload, at + FRAME_HEAD_BYTES)
    out.push(slab.subarray(at, at + bytes))
    if (!copied) {
      if (payload instanceof Uint8Array) out.push(payload)
      else for (const part of payload) out.push(part)
    }
    return FRAME_HEAD_BYTES + length
  }

  /**
   * A frame whose payload has room for its head before it. It lengthens the view before it where it lies behind that.
   * Sent again it has the same head: a socket that still holds it from the first time sends the same bytes.
   */
  private putLaid(out: Uint8Array[], ring: FrameRing, slot: number, sequence: number, payload: Uint8Array): number {
    const length = ring.length[slot]!
    const { buffer } = payload
    if (this.laid.buffer !== buffer) this.laid = new Uint8Array(buffer)
    const at = payload.byteOffset - FRAME_HEAD_BYTES
    writeHead(this.laid, at, ring.type[slot]!, ring.flags[slot]!, ring.flow[slot]!, sequence, length, payload)
    const last = out.at(-1)
    const isBehind = last !== undefined && last.buffer === buffer && last.byteOffset + last.length === at
    if (isBehind) out[out.length - 1] = this.laid.subarray(last.byteOffset, at + FRAME_HEAD_BYTES + length)
    else out.push(this.laid.subarray(at, at + FRAME_HEAD_BYTES + length))
    return FRAME_HEAD_BYTES + length
  }

  /** A frame without a number and without a flow. @returns its bytes */
  putSmall(out: Uint8Array[], type: number, payload: Uint8Array): number {
    const bytes = FRAME_HEAD_BYTES + payload.length
    const at = this.reserve(bytes)
    writeHead(this.slab, at, type, 0, 0, 0, payload.length, payload)
    this.slab.set(payload, at + FRAME_HEAD_BYTES)
    out.push(this.slab.subarray(at, at + bytes))
    return bytes
  }

  private reserve(bytes: number): number {
    if (this.used + bytes > this.slab.length) {
      this.slab = new Uint8Array(this.slab.length === 0 ? SLAB_BYTES / 16 : SLAB_BYTES)
      this.used = 0
    }
    const at = this.used
    this.used += bytes
    return at
  }
}
