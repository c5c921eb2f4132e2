/**
 * What zlib's streams can do inside, but do not offer: a write that is over when it returns. A trip to libuv's thread pool
 * and through the stream costs both threads 100 us together, and most columns of a batch take zstd less than 10.
 *
 * It uses two fields that every version of Node's zlib has had, and that are not part of its interface. Where they are
 * missing nothing breaks: all goes through the pool then.
 */
import type { ZstdCompress, ZstdDecompress } from 'node:zlib'

interface Inner {
  readonly _handle?: {
    writeSync?(
      flush: number,
      input: Uint8Array,
      inputAt: number,
      inputLength: number,
      out: Uint8Array,
      outAt: number,
      outLength: number,
    ): void
  } | null
  /** After a write: bytes of room left, bytes of input left. */
  readonly _writeState?: Uint32Array
}

/** Writes to a stream that nothing else is writing to at that moment. */
export class ImmediateWriter {
  private readonly stream: Inner & (ZstdCompress | ZstdDecompress)
  /** Bytes of the input that the last write did not use. */
  unused = 0

  private constructor(stream: ZstdCompress | ZstdDecompress) {
    this.stream = stream as Inner & typeof stream
  }

  /** Undefined where this Node has no such thing. */
  static of(stream: ZstdCompress | ZstdDecompress): ImmediateWriter | undefined {
    const { _handle, _writeState } = stream as Inner
    if (typeof _handle?.writeSync !== 'function' || !(_writeState instanceof Uint32Array)) return undefined
    return new ImmediateWriter(stream)
  }

  /**
   * @returns bytes written to `out`; -1 where the stream failed: its 'error' follows
   */
  write(flush: number, input: Uint8Array, out: Uint8Array): number {
    const { stream } = this
    if (stream.destroyed) return -1
    stream._handle!.writeSync!(flush, input, 0, input.length, out, 0, out.length)
    if (stream.destroyed) return -1
    const [room, unused] = stream._writeState!
    this.unused = unused!
    return out.length - room!
  }
}
