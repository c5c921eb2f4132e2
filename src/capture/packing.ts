/** Compression around an input, told by magic and taken off as the bytes pass. */
import { constants, createGunzip, createZstdDecompress } from 'node:zlib'
import { ProxyError } from '../errors.ts'
import type { Chunks } from './input-file.ts'
import { READ_LENGTH, ZSTD_WINDOW_LOG_MAX } from './limits.ts'
import { type ToolPacking, toolPackingOf, unpackWithTool } from './unpack-tool.ts'
import { ZstdFrames } from './zstd-frames.ts'

/** Compression that is taken off. */
export type Packing = 'zstd' | 'gzip' | ToolPacking

/** What the first bytes say; undefined: not packed, as far as can be seen. */
export function packingOf(head: Uint8Array): Packing | undefined {
  if (head.length >= 4 && ZstdFrames.isMagic(Buffer.from(head.subarray(0, 4)).readUInt32LE(0))) return 'zstd'
  return head.length >= 2 && head[0] === 0x1f && head[1] === 0x8b ? 'gzip' : toolPackingOf(head)
}

/**
 * The bytes inside.
 *
 * @param name what errors call the input
 * @param signal ends what may wait for bytes that never come
 * @throws CAPTURE_FORMAT for damaged compression, QEMU_TRUNCATED where compressed data end early
 */
export function unpack(name: string, packing: Packing, chunks: Chunks, signal: AbortSignal): Chunks {
  if (packing === 'zstd') return decompress(name, zstdFrames(name, chunks), newZstd)
  if (packing === 'gzip') return decompress(name, oneFrame(chunks), newGunzip)
  return unpackWithTool(name, packing, chunks, signal)
}

/** A piece of a compressed frame. */
interface FramePiece {
  readonly bytes: Buffer
  /** The frame ends with it. */
  readonly last: boolean
}

/** Node's decompressor stops behind the first frame without a word, so frames are told apart here. */
async function* zstdFrames(name: string, chunks: Chunks): AsyncGenerator<FramePiece> {
  const frames = new ZstdFrames(name)
  for await (const chunk of chunks) {
    for (let at = 0; at < chunk.length; ) {
      const end = frames.take(chunk, at)
      yield { bytes: chunk.subarray(at, end), last: frames.atEnd }
      at = end
    }
  }
  frames.end()
}

/** Gunzip takes several members by itself. */
async function* oneFrame(chunks: Chunks): AsyncGenerator<FramePiece> {
  for await (const chunk of chunks) yield { bytes: chunk, last: false }
  yield { bytes: Buffer.alloc(0), last: true }
}

type Decompressor = ReturnType<typeof createZstdDecompress> | ReturnType<typeof createGunzip>

function newZstd(): Decompressor {
  const params = { [constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG_MAX }
  return createZstdDecompress({ chunkSize: READ_LENGTH, params })
}

function newGunzip(): Decompressor {
  return createGunzip({ chunkSize: READ_LENGTH })
}

async function* decompress(name: string, pieces: AsyncGenerator<FramePiece>, make: () => Decompressor): Chunks {
  const fed = { bytes: 0 }
  for (let piece = await pieces.next(); !piece.done; piece = await pieces.next()) {
    const decompressor = make()
    const feeding = feedFrame(decompressor, piece.value, pieces, fed)
    feeding.catch(error => decompressor.destroy(error as Error))
    try {
      for await (const chunk of decompressor) yield chunk as Buffer
      await feeding
    } catch (cause) {
      throw undecompressable(name, cause, fed.bytes)
    } finally {
      decompressor.destroy()
    }
  }
}

/** Feeds pieces up to the end of a frame. A piece is valid until the next one is asked for, so each has to be taken. */
async function feedFrame(
  to: Decompressor,
  piece: FramePiece,
  pieces: AsyncGenerator<FramePiece>,
  fed: { bytes: number },
): Promise<void> {
  while (!piece.last) {
    const { bytes } = piece
    await new Promise<void>((taken, failed) => {
      to.write(bytes, error => (error ? failed(error) : taken()))
    })
    fed.bytes += bytes.length
    const next = await pieces.next()
    if (next.done) break
    piece = next.value
  }
  if (piece.last) fed.bytes += piece.bytes.length
  to.end(piece.last ? piece.bytes : undefined)
}

/** @param offset compressed bytes that the decompressor had been given */
function undecompressable(name: string, cause: unknown, offset: number): unknown {
  if (cause instanceof ProxyError) return cause
  const { code, message } = cause as NodeJS.ErrnoException
  const where = { stream: name, offset }
  if (code === 'Z_BUF_ERROR') {
    return new ProxyError('QEMU_TRUNCATED', 'the compressed data end early', where, 'copy it again, whole', { cause })
  }
  if (code === 'ZSTD_error_frameParameter_windowTooLarge') {
    const what = `a zstd window of more than ${2 ** (ZSTD_WINDOW_LOG_MAX - 20)} MiB`
    return new ProxyError('CAPTURE_FORMAT', what, where, 'decompress it first: zstd -d --long=31', { cause })
  }
  if (code?.startsWith('ZSTD_') || code?.startsWith('Z_')) {
    const what = `the compressed data are damaged: ${message}`
    return new ProxyError('CAPTURE_FORMAT', what, where, 'copy it again', { cause })
  }
  return cause
}
