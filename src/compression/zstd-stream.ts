/**
 * zstd in pieces: each piece is flushed, so that the far side gets all of it, and the window reaches back over the pieces
 * before. Runs in libuv's thread pool; pieces of one stream keep their order, streams run side by side.
 *
 * A frame ends before zstd's input buffer (window and a block) wraps around: behind that zstd looks for matches in two
 * segments, at half the speed (docs/adr/0004-compression.md). The next frame begins in the same memory.
 */
import { constants, createZstdCompress, createZstdDecompress, type ZstdCompress, type ZstdDecompress } from 'node:zlib'
import { ProxyError } from '../errors.ts'
import type { ZstdSettings } from './effort.ts'

/** Output buffers of zlib: larger ones save calls, a piece seldom needs more than one. */
const CHUNK_BYTES = 65536

interface Piece {
  readonly done: (parts: Uint8Array[]) => void
  readonly failed: (error: Error) => void
  /** The stream is closed behind it. */
  last?: boolean
}

/** Packs pieces. The caller leaves each piece's memory alone until its promise settles. */
export class ZstdPacker {
  readonly settings: ZstdSettings
  private readonly stream: ZstdCompress
  private parts: Uint8Array[] = []
  private failure: Error | undefined
  private readonly waiting: Piece[] = []
  /** Bytes in the frame so far, and how many end it: the next piece would seldom fit. */
  private frameBytes = 0
  private readonly frameBytesMax: number

  constructor(settings: ZstdSettings) {
    this.settings = settings
    const { level, minMatch, hashLog, windowLog } = settings
    this.frameBytesMax = 0.75 * 2 ** windowLog
    this.stream = createZstdCompress({
      chunkSize: CHUNK_BYTES,
      flush: constants.ZSTD_e_flush, // every write: a call of its own would be another trip to the thread pool
      params: {
        [constants.ZSTD_c_compressionLevel]: level,
        [constants.ZSTD_c_windowLog]: windowLog,
        [constants.ZSTD_c_hashLog]: hashLog,
        [constants.ZSTD_c_minMatch]: minMatch,
      },
    })
    this.stream.on('data', (part: Uint8Array) => this.parts.push(part))
    this.stream.on('error', error => this.fail(error))
  }

  /** The packed bytes of `bytes`, complete for the far side. */
  pack(bytes: Uint8Array): Promise<Uint8Array[]> {
    return new Promise((done, failed) => {
      if (this.failure) {
        failed(this.failure)
        return
      }
      this.waiting.push({ done, failed })
      this.frameBytes += bytes.length
      const ends = this.frameBytes >= this.frameBytesMax
      if (ends) this.frameBytes = 0
      if (ends) {
        this.stream.write(bytes)
        this.stream.flush(constants.ZSTD_e_end, () => this.packed())
      } else this.stream.write(bytes, error => (error ? this.fail(error) : this.packed()))
    })
  }

  /** The oldest piece is done. */
  private packed(): void {
    const parts = this.parts
    this.parts = []
    const piece = this.waiting.shift()
    piece?.done(parts)
    if (piece?.last) this.close()
  }

  /** Gives up at once. */
  close(): void {
    this.stream.destroy()
  }

  /** Closes after the pieces that were given. */
  closeWhenIdle(): void {
    if (this.waiting.length === 0) this.close()
    else this.waiting.at(-1)!.last = true
  }

  private fail(error: Error): void {
    this.failure = error
    for (const piece of this.waiting.splice(0)) piece.failed(error)
  }
}

/** Unpacks the pieces of a ZstdPacker in their order. */
export class ZstdUnpacker {
  private readonly stream: ZstdDecompress
  private parts: Uint8Array[] = []
  private length = 0
  private lengthMax = 0
  private packedLength = 0
  private failure: Error | undefined
  private waiting: Piece | undefined

  constructor(windowLogMax: number) {
    this.stream = createZstdDecompress({
      chunkSize: CHUNK_BYTES,
      params: { [constants.ZSTD_d_windowLogMax]: windowLogMax },
    })
    this.stream.on('data', (part: Uint8Array) => this.take(part))
    this.stream.on('error', error => this.fail(error))
  }

  /**
   * The bytes of one piece. One call at a time.
   * @param rawLength what the piece must give; more is an error, before memory is spent on it
   * @throws BATCH_FORMAT (as rejection) where the piece is damaged or gives another length
   */
  unpack(packed: Uint8Array, rawLength: number): Promise<Uint8Array[]> {
    return new Promise((done, failed) => {
      if (this.failure) {
        failed(this.failure)
        return
      }
      this.lengthMax = rawLength
      this.packedLength += packed.length
      this.waiting = { done, failed }
      this.stream.write(packed, error => {
        // zlib calls back once it has used all of the piece and given all that it holds
        if (this.waiting === undefined) return
        if (error) {
          this.fail(error) // also where it was closed meanwhile
          return
        }
        const parts = this.parts
        const length = this.length
        this.parts = []
        this.length = 0
        this.waiting = undefined
        if (length !== rawLength) failed(bad(`a zstd piece gives ${length} bytes instead of ${rawLength}`))
        else if (this.stream.bytesWritten !== this.packedLength) failed(bad('a zstd frame ends within a piece'))
        else done(parts)
      })
    })
  }

  close(): void {
    this.stream.destroy()
  }

  private take(part: Uint8Array): void {
    this.length += part.length
    if (this.length > this.lengthMax) {
      this.stream.destroy()
      this.fail(bad(`a zstd piece gives more than ${this.lengthMax} bytes`))
    } else this.parts.push(part)
  }

  private fail(error: Error): void {
    this.failure = error instanceof ProxyError ? error : bad(`a zstd piece is damaged: ${error.message}`, error)
    this.waiting?.failed(this.failure)
    this.waiting = undefined
  }
}

function bad(what: string, cause?: Error): ProxyError {
  return new ProxyError('BATCH_FORMAT', what, undefined, 'the session ends and the source guest goes on', { cause })
}
