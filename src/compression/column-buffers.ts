/**
 * Memory for columns that are sent as they are, and for raw batches as their frames go out. It comes back once the peer has
 * them, in place of half a megabyte of garbage for each batch, whose pages the system would have to give anew. One a session,
 * so that what a socket still sends of a frame that was acknowledged over another connection, and that the peer drops, is
 * never another session's.
 */

/** Shorter ones are the collector's: they cost it nothing. */
const POOLED_MIN = 16 * 1024
/** What is kept for the next columns, though nobody has any of it. */
const FREE_BYTES_MIN = 1 << 20

export class ColumnBuffers {
  /** By capacity. */
  private readonly free = new Map<number, Buffer[]>()
  private freeBytes = 0
  private lentBytes = 0

  /** Memory for a column: its first `length` bytes are the caller's, and hold anything. */
  take(length: number): Buffer {
    if (length < POOLED_MIN) return Buffer.allocUnsafeSlow(length) // slice() would clear it first
    const capacity = capacityOf(length)
    this.lentBytes += capacity
    const known = this.free.get(capacity)?.pop()
    if (known === undefined) return Buffer.allocUnsafeSlow(capacity)
    this.freeBytes -= capacity
    return known
  }

  /** Nobody needs it any more: what `take` gave, once. */
  give(buffer: Buffer): void {
    const capacity = buffer.length
    if (capacity < POOLED_MIN) return
    this.lentBytes -= capacity
    const known = this.free.get(capacity)
    if (known === undefined) this.free.set(capacity, [buffer])
    else known.push(buffer)
    this.freeBytes += capacity
    this.trim()
  }

  /** As much as is lent is kept, and a little: a link that takes less from now on, or nothing, does not need it. */
  private trim(): void {
    for (const [capacity, buffers] of this.free) {
      while (this.freeBytes > Math.max(FREE_BYTES_MIN, this.lentBytes) && buffers.length > 0) {
        buffers.pop()
        this.freeBytes -= capacity
      }
    }
  }
}

/** The least of 2^n and 1.5 * 2^n that holds so many bytes: a third is wasted at most. */
function capacityOf(length: number): number {
  const power = 2 ** (31 - Math.clz32(length))
  if (length === power) return length
  return length <= 1.5 * power ? 1.5 * power : 2 * power
}
