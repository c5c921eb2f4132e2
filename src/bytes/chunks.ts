/**
 * Memory into which connections of the WAN are read, which comes back: the collector frees a chunk so late that the next bytes
 * land in memory that no cache holds. Whoever keeps a view of a chunk beyond the call that it came in either says that it
 * will give it back (`lend`, `giveBack`) or keeps it for good (`pin`), and a chunk of which anything is out is never written
 * again: what is not given back costs a chunk, never a byte.
 *
 *   const chunk = chunks.take()        // ours to write
 *   chunks.lend(view)                  // of one of them, or of anything else, which does nothing
 *   chunks.retire(chunk)               // nothing more lands there
 *   chunks.giveBack([view])            // the last one: the chunk may be taken again
 */
import { assert } from '../errors.ts'

/** Four full frames (what waits of one pins all: src/session/kept-payloads.ts), and half of what malloc would map and fault in anew. */
export const CHUNK_BYTES = 64 * 1024

/** Chunks that wait, of all sessions: what a batch of 1 MiB comes in, and some. */
const FREE_MAX = 24

/** What is known of one. */
interface Chunk {
  readonly bytes: Uint8Array
  /** Views that will be given back. */
  lent: number
  /** A view is kept for good. */
  pinned: boolean
  /** Nothing more lands in it. */
  retired: boolean
}

export class Chunks {
  /** A test has what came back overwritten with this byte. */
  poison: number | undefined
  /** How often one was taken that had come back. */
  reused = 0
  private readonly free: Chunk[] = []
  private readonly known = new WeakMap<ArrayBufferLike, Chunk>()
  /** Of whom was asked last: views of a chunk follow each other. */
  private last: Chunk | undefined

  /** Chunks that wait to be taken. */
  get waiting(): number {
    return this.free.length
  }

  /** Memory of CHUNK_BYTES, not cleared. */
  take(): Uint8Array {
    const chunk = this.free.pop() ?? this.fresh()
    if (chunk.retired) this.reused++
    chunk.retired = false
    return chunk.bytes
  }

  /** A view that is given back once. */
  lend(view: Uint8Array): void {
    const chunk = this.of(view)
    if (chunk) chunk.lent++
  }

  /** A view that is kept as long as anybody likes. */
  pin(view: Uint8Array): void {
    const chunk = this.of(view)
    if (chunk) chunk.pinned = true
  }

  /** Nothing lands any more in what `take` gave. */
  retire(bytes: Uint8Array): void {
    const chunk = this.of(bytes)
    assert(chunk && !chunk.retired, 'no chunk that was taken')
    chunk.retired = true
    this.settle(chunk)
  }

  /** Views that nobody reads any more, each lent once; what was not lent, or is a copy, is passed over. */
  giveBack(views: readonly Uint8Array[]): void {
    for (const view of views) {
      const chunk = this.of(view)
      if (!chunk || chunk.lent === 0) continue
      chunk.lent--
      this.settle(chunk)
    }
  }

  private settle(chunk: Chunk): void {
    if (!chunk.retired || chunk.pinned || chunk.lent > 0) return
    if (this.poison !== undefined) chunk.bytes.fill(this.poison)
    if (this.free.length < FREE_MAX) this.free.push(chunk)
  }

  private of(view: Uint8Array): Chunk | undefined {
    const { buffer } = view
    if (this.last?.bytes.buffer !== buffer) this.last = this.known.get(buffer)
    return this.last
  }

  private fresh(): Chunk {
    const bytes = new Uint8Array(Buffer.allocUnsafeSlow(CHUNK_BYTES).buffer)
    const chunk: Chunk = { bytes, lent: 0, pinned: false, retired: false }
    this.known.set(bytes.buffer, chunk)
    return chunk
  }
}

/** Those of this process. */
export const CHUNKS = new Chunks()
