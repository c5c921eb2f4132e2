/**
 * Frames by sequence number, in a ring that grows as far as the widest span of numbers needs: those that wait for their
 * acknowledgement, or for a frame before them. Plain arrays by field, because a frame is put in and taken out in well
 * under a microsecond and nothing of it may burden the collector.
 */

import { UNACKED_FRAMES_MAX } from '../limits.ts'

/** A payload in one piece or in several. */
export type Payload = Uint8Array | readonly Uint8Array[]

/** Slots to begin with: what an idle session takes. */
const SLOTS_MIN = 64

export class FrameRing {
  /** Slot of a sequence number: sequence & mask. */
  mask = SLOTS_MIN - 1
  /** 0: the slot is free. */
  type = new Uint8Array(SLOTS_MIN)
  flags = new Uint8Array(SLOTS_MIN)
  flow = new Uint16Array(SLOTS_MIN)
  length = new Uint16Array(SLOTS_MIN)
  /** What the owner of the ring likes: the connection that carries the frame. */
  owner = new Int8Array(SLOTS_MIN)
  payload: (Payload | null)[] = new Array(SLOTS_MIN).fill(null)
  /** 1: the payload has room for its head before it. */
  laid = new Uint8Array(SLOTS_MIN)

  /**
   * Makes room, so that no two of the numbers after `base` up to `last` share a slot.
   * @param base all numbers up to it have been freed
   * @param last at most base + UNACKED_FRAMES_MAX
   */
  span(base: number, last: number): void {
    if (last - base > this.mask + 1) this.grow(base, last)
  }

  free(slot: number): void {
    this.type[slot] = 0
    this.payload[slot] = null
  }

  clear(): void {
    this.type.fill(0)
    this.payload.fill(null)
  }

  private grow(base: number, last: number): void {
    let size = this.mask + 1
    while (size < last - base) size *= 2
    size = Math.min(size, UNACKED_FRAMES_MAX)
    const old = { ...this }
    this.mask = size - 1
    this.type = new Uint8Array(size)
    this.flags = new Uint8Array(size)
    this.flow = new Uint16Array(size)
    this.length = new Uint16Array(size)
    this.owner = new Int8Array(size)
    this.payload = new Array(size).fill(null)
    this.laid = new Uint8Array(size)
    // The old ring holds one number for each of its slots at most, the first of them right after base.
    for (let sequence = base + 1; sequence <= base + old.mask + 1; sequence++) {
      const from = sequence & old.mask
      const to = sequence & this.mask
      this.type[to] = old.type[from]!
      this.flags[to] = old.flags[from]!
      this.flow[to] = old.flow[from]!
      this.length[to] = old.length[from]!
      this.owner[to] = old.owner[from]!
      this.payload[to] = old.payload[from]!
      this.laid[to] = old.laid[from]!
    }
  }
}
