/**
 * Memory in which the pieces of one write to a TLS socket are put behind each other. Given several pieces, Node's TLS puts
 * them into memory of its own, fresh for each write; one piece it hands to OpenSSL where it lies. And a write of one piece is
 * one entry of the socket's queue, where a batch's frames are dozens. Memory comes back when its write is done, and is used
 * again by whoever writes next, of any session.
 */

/** The largest write, and the frame that may end beyond it. */
const BUFFER_BYTES = 256 * 1024 + 32 * 1024
/** Kept while nobody writes: what a few connections that are written to at once take. */
const KEPT_MAX = 3

export class WriteBuffers {
  private readonly free: Uint8Array[] = []

  /** Buffers that wait for a write. */
  get kept(): number {
    return this.free.length
  }

  /**
   * The pieces one behind the other, in memory that is lent until `give`.
   * @param bytes of all pieces together
   */
  join(pieces: readonly Uint8Array[], bytes: number): Uint8Array {
    const buffer = bytes > BUFFER_BYTES ? fresh(bytes) : (this.free.pop() ?? fresh(BUFFER_BYTES))
    let at = 0
    for (const piece of pieces) {
      buffer.set(piece, at)
      at += piece.length
    }
    return buffer.subarray(0, bytes)
  }

  /** What `join` gave is not read any more: once, when the write is done or has failed. */
  give(joined: Uint8Array): void {
    const { buffer } = joined
    if (buffer.byteLength === BUFFER_BYTES && this.free.length < KEPT_MAX) this.free.push(new Uint8Array(buffer))
  }
}

function fresh(bytes: number): Uint8Array {
  return new Uint8Array(Buffer.allocUnsafeSlow(bytes).buffer) // not cleared first
}
