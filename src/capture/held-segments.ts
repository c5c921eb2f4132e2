/** Segments of one flow that came before their turn: any order in, ascending out, in time that does not depend on it. */
import { SEGMENT_OVERHEAD } from './limits.ts'

/** Sequence numbers are compared by their difference, so all of one flow lie within 2^31 of each other. */
export class HeldSegments {
  /** What they cost, in bytes. */
  cost = 0
  private readonly segments = new Map<number, Buffer>()
  /** Binary heap of sequence numbers, the first one on top. */
  private readonly heap: number[] = []

  get empty(): boolean {
    return this.heap.length === 0
  }

  /** Sequence number of the first one; there has to be one. */
  get first(): number {
    return this.heap[0]!
  }

  /** Keeps a copy. Of two that begin alike the longer one stays. */
  add(sequence: number, bytes: Uint8Array): void {
    const before = this.segments.get(sequence)
    if (before !== undefined) {
      if (before.length >= bytes.length) return
      this.cost += bytes.length - before.length
    } else {
      this.cost += bytes.length + SEGMENT_OVERHEAD
      this.push(sequence)
    }
    this.segments.set(sequence, Buffer.from(bytes))
  }

  /** Takes the first one out. */
  take(): Buffer {
    const sequence = this.pop()
    const bytes = this.segments.get(sequence)!
    this.segments.delete(sequence)
    this.cost -= bytes.length + SEGMENT_OVERHEAD
    return bytes
  }

  private push(sequence: number): void {
    const { heap } = this
    let at = heap.length
    heap.push(sequence)
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (((heap[parent]! - sequence) | 0) <= 0) break
      heap[at] = heap[parent]!
      at = parent
    }
    heap[at] = sequence
  }

  private pop(): number {
    const { heap } = this
    const top = heap[0]!
    const last = heap.pop()!
    if (heap.length === 0) return top
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && ((heap[child + 1]! - heap[child]!) | 0) < 0) child++
      if (((heap[child]! - last) | 0) >= 0) break
      heap[at] = heap[child]!
      at = child
    }
    heap[at] = last
    return top
  }
}
