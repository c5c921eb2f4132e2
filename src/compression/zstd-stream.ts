/**
 * zstd in pieces: each piece is flushed, so that the far side gets all of it, and the window reaches back over the pieces
 * before. Small pieces are packed on the spot, large ones in libuv's thread pool, stream beside stream; pieces of one stream
 * keep their order. All are unpacked on the spot: that takes less than the trip to the pool and back.
 *
 * A frame ends before zstd's input buffer (window and a block) wraps around: behind that zstd looks for matches in two
 * segments, at half the speed (docs/adr/0004-compression.md). The next frame begins in the same memory. Only where Node
 * lets us end a frame on the spot: its streams cannot do so reliably.
 */

import { availableParallelism } from 'node:os'
import { constants, createZstdCompress, createZstdDecompress, type ZstdCompress, type ZstdDecompress } from 'node:zlib'
import { copyRange } from '../bytes/copy.ts'
import { BATCH_RAW_MAX } from '../codec/wire.ts'
import { ProxyError } from '../errors.ts'
import type { ZstdSettings } from './effort.ts'
import { ImmediateWriter } from './zlib-now.ts'

/** Output buffers of zlib: larger ones save calls, a piece seldom needs more than one. */
const CHUNK_BYTES = 65536
/** From here on bytes count, not time, and frames never end: the start of each costs 1 % at level 19. */
const LEVEL_FOR_BYTES = 16

/**
 * Pieces up to this are packed on the spot: at the level's speed they take less than the trip to the pool. With so few cores
 * that another thread only takes turns with this one, all are, but for levels that would hold everything up.
 */
function packNowMax(level: number): number {
  if (level <= 3 && availableParallelism() <= 2) return BATCH_RAW_MAX
  if (level <= 1) return 16384
  return level <= 8 ? 8192 : 0
}

/** Room for any piece, whatever its bytes: zstd adds less than one in 256, and a head. */
const packedNow = Buffer.allocUnsafeSlow(BATCH_RAW_MAX + BATCH_RAW_MAX / 256 + 1024)

interface Piece {
  readonly done: (parts: Uint8Array[]) => void
  readonly failed: (error: Error) => void
  /** The stream is closed behind it. */
  last?: boolean
}

const NOTHING = new Uint8Array(0)
const more = new Uint8Array(1)

/** Packs pieces. The caller leaves each piece's memory alone until its promise settles. */
export class ZstdPacker {
  readonly settings: ZstdSettings
  readonly isHelped = false
  private readonly stream: ZstdCompress
  private parts: Uint8Array[] = []
  private failure: Error | undefined
  /** The first is in the thread pool. */
  private readonly waiting: (Piece & { readonly bytes: Uint8Array })[] = []
  private readonly now: ImmediateWriter | undefined
  private readonly nowMax: number
  /** Bytes in the frame so far, and how many end it: the next piece would seldom fit. */
  private frameBytes = 0
  private readonly frameBytesMax: number

  /** @param isAlone it has a thread for itself: all is packed on the spot */
  constructor(settings: ZstdSettings, isAlone = false) {
    this.settings = settings
    const { level, minMatch, hashLog, windowLog } = settings
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
    this.now = ImmediateWriter.of(this.stream)
    this.nowMax = isAlone ? BATCH_RAW_MAX : packNowMax(level)
    const ends = this.now !== undefined && level < LEVEL_FOR_BYTES
    this.frameBytesMax = ends ? 0.75 * 2 ** windowLog : Number.POSITIVE_INFINITY
  }

  /** The packed bytes of `bytes`, complete for the far side. */
  pack(bytes: Uint8Array): Promise<Uint8Array[]> | Uint8Array[] {
    if (this.now && bytes.length <= this.nowMax && this.waiting.length === 0 && !this.failure) {
      const flush = this.ends(bytes.length) ? constants.ZSTD_e_end : constants.ZSTD_e_flush
      const length = this.now.write(flush, bytes, packedNow)
      if (length >= 0) return [new Uint8Array(packedNow.subarray(0, length))]
    }
    return new Promise((done, failed) => {
      if (this.failure) {
        failed(this.failure)
        return
      }
      this.waiting.push({ bytes, done, failed })
      if (this.waiting.length === 1) this.packLater(bytes)
    })
  }

  private packLater(bytes: Uint8Array): void {
    const ends = this.ends(bytes.length)
    this.stream.write(bytes, error => {
      if (error) {
        this.fail(error)
        return
      }
      // Not by flush(): Node asks again where the frame's end has just filled its buffer, and gets another frame, empty.
      if (ends) {
        const length = this.now!.write(constants.ZSTD_e_end, NOTHING, packedNow)
        if (length < 0) return // the stream's error follows
        this.parts.push(new Uint8Array(packedNow.subarray(0, length)))
      }
      const { parts } = this
      this.parts = []
      const piece = this.waiting.shift()
      const [next] = this.waiting
      piece?.done(parts)
      if (piece?.last) this.close()
      else if (next) this.packLater(next.bytes)
    })
  }

  /** Whether a frame ends with the next bytes, so many. */
  private ends(bytes: number): boolean {
    const ends = this.frameBytes + bytes >= this.frameBytesMax
    this.frameBytes = ends ? 0 : this.frameBytes + bytes
    return ends
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
  private readonly now: ImmediateWriter | undefined

  constructor(windowLogMax: number) {
    this.stream = createZstdDecompress({
      chunkSize: CHUNK_BYTES,
      params: { [constants.ZSTD_d_windowLogMax]: windowLogMax },
    })
    this.stream.on('data', (part: Uint8Array) => this.take(part))
    this.stream.on('error', error => this.fail(error))
    this.now = ImmediateWriter.of(this.stream)
  }

  /**
   * Unpacks one piece to all of `out`. One call at a time.
   * @returns undefined where it is done already
   * @throws BATCH_FORMAT (as rejection) where the piece is damaged or does not give as many bytes
   */
  unpack(packed: Uint8Array, out: Uint8Array): Promise<void> | undefined {
    if (this.now && !this.stream.destroyed) return this.unpackNow(this.now, packed, out)
    return this.unpackLater(packed, out.length).then(parts => {
      if (this.closed) return // the memory may be another session's already
      let at = 0
      for (const part of parts) {
        copyRange(part, 0, part.length, out, at)
        at += part.length
      }
    })
  }

  private unpackNow(now: ImmediateWriter, packed: Uint8Array, out: Uint8Array): Promise<void> | undefined {
    const length = now.write(constants.ZSTD_e_flush, packed, out)
    // the error comes with the next turn
    if (length < 0) return new Promise((done, failed) => (this.waiting = { done: () => done(), failed }))
    let what: string | undefined
    if (now.unused > 0)
      what =
        length < out.length ? 'a zstd frame ends within a piece' : `a zstd piece gives more than ${out.length} bytes`
    else if (length < out.length) what = `a zstd piece gives ${length} bytes instead of ${out.length}`
    else if (now.write(constants.ZSTD_e_flush, NOTHING, more) > 0)
      what = `a zstd piece gives more than ${out.length} bytes`
    if (what === undefined) return undefined
    this.failure = bad(what)
    this.stream.destroy()
    return Promise.reject(this.failure)
  }

  private unpackLater(packed: Uint8Array, rawLength: number): Promise<Uint8Array[]> {
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
        const { parts, length } = this
        this.parts = []
        this.length = 0
        if (length !== rawLength) this.fail(bad(`a zstd piece gives ${length} bytes instead of ${rawLength}`))
        else if (this.stream.bytesWritten !== this.packedLength) this.fail(bad('a zstd frame ends within a piece'))
        else {
          this.waiting = undefined
          done(parts)
        }
      })
    })
  }

  private closed = false

  close(): void {
    this.closed = true
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
