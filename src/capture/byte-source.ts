/** Bytes of a file or of standard input, decompressed where they are zstd or gzip. */
import { type FileHandle, open } from 'node:fs/promises'
import { constants, createGunzip, createZstdDecompress } from 'node:zlib'
import { ProxyError } from '../errors.ts'
import { READ_LENGTH, ZSTD_WINDOW_LOG_MAX } from './limits.ts'
import { ZstdFrames } from './zstd-frames.ts'

/** What `-` among inputs means. */
export const STANDARD_INPUT = '-'

/** Chunks in order. A chunk is valid until the next one is asked for. */
export type Chunks = AsyncGenerator<Buffer, void, void>

/**
 * All bytes of the input. Compression is told by magic, not by name.
 *
 * @param readBytes is told how many bytes were read, before decompression
 * @throws IO, CAPTURE_FORMAT for damaged compression, QEMU_TRUNCATED where compressed data end early
 */
export async function* readInput(path: string, readBytes: (count: number) => void = () => {}): Chunks {
  const raw = path === STANDARD_INPUT ? readStandardInput(readBytes) : readFile(path, readBytes)
  const name = path === STANDARD_INPUT ? 'standard input' : path
  try {
    const { chunks, magic } = await peek(raw, 4)
    if (isZstd(magic)) yield* decompress(name, zstdFrames(name, chunks), newZstd)
    else if (magic.length >= 2 && magic[0] === 0x1f && magic[1] === 0x8b) {
      yield* decompress(name, oneFrame(chunks), newGunzip)
    } else yield* chunks
  } finally {
    await raw.return()
  }
}

/** Reads ahead by one chunk, so that the disk and whoever takes the chunks work at the same time. */
async function* readFile(path: string, readBytes: (count: number) => void): Chunks {
  let file: FileHandle | undefined
  let ahead: Promise<{ bytesRead: number; buffer: Buffer }> | undefined
  try {
    file = await open(path, 'r')
    const buffers = [Buffer.allocUnsafe(READ_LENGTH), Buffer.allocUnsafe(READ_LENGTH)]
    ahead = file.read(buffers[0]!, 0, READ_LENGTH, null)
    for (;;) {
      const { bytesRead, buffer } = await ahead
      ahead = undefined
      if (bytesRead === 0) return
      buffers.reverse()
      ahead = file.read(buffers[0]!, 0, READ_LENGTH, null)
      ahead.catch(() => {}) // reported when it is awaited
      readBytes(bytesRead)
      yield buffer.subarray(0, bytesRead)
    }
  } catch (cause) {
    throw unreadable(path, cause)
  } finally {
    await ahead?.catch(() => {})
    await file?.close()
  }
}

async function* readStandardInput(readBytes: (count: number) => void): Chunks {
  for await (const chunk of process.stdin) {
    readBytes((chunk as Buffer).length)
    yield chunk as Buffer
  }
}

/** The first `length` bytes, fewer where there are fewer, and all chunks including them. */
async function peek(chunks: Chunks, length: number): Promise<{ chunks: Chunks; magic: Buffer }> {
  let first: Buffer = Buffer.alloc(0)
  while (first.length < length) {
    const { value, done } = await chunks.next()
    if (done) break
    // The usual first chunk has all that is asked for, and is passed on without a copy.
    first = first.length === 0 ? value : Buffer.concat([first, value])
    if (first.length < length) first = Buffer.from(first)
  }
  async function* all(): Chunks {
    if (first.length > 0) yield first
    yield* chunks
  }
  return { chunks: all(), magic: first.subarray(0, length) }
}

function isZstd(magic: Buffer): boolean {
  return magic.length === 4 && ZstdFrames.isMagic(magic.readUInt32LE(0))
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
  for (let piece = await pieces.next(); !piece.done; piece = await pieces.next()) {
    const decompressor = make()
    const fed = feedFrame(decompressor, piece.value, pieces)
    fed.catch(error => decompressor.destroy(error as Error))
    try {
      for await (const chunk of decompressor) yield chunk as Buffer
      await fed
    } catch (cause) {
      throw undecompressable(name, cause)
    } finally {
      decompressor.destroy()
    }
  }
}

/** Feeds pieces up to the end of a frame. A piece is valid until the next one is asked for, so each has to be taken. */
async function feedFrame(to: Decompressor, piece: FramePiece, pieces: AsyncGenerator<FramePiece>): Promise<void> {
  while (!piece.last) {
    const { bytes } = piece
    await new Promise<void>((taken, failed) => {
      to.write(bytes, error => (error ? failed(error) : taken()))
    })
    const next = await pieces.next()
    if (next.done) break
    piece = next.value
  }
  to.end(piece.last ? piece.bytes : undefined)
}

function undecompressable(name: string, cause: unknown): unknown {
  if (cause instanceof ProxyError) return cause
  const { code, message } = cause as NodeJS.ErrnoException
  const where = { stream: name, offset: 0 }
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

function unreadable(path: string, cause: unknown): unknown {
  const { code, syscall, message } = cause as NodeJS.ErrnoException
  if (cause instanceof ProxyError || syscall === undefined) return cause
  const why = code === 'ENOENT' ? 'it does not exist' : code === 'EACCES' ? 'permission denied' : message
  const where = { stream: path, offset: 0 }
  return new ProxyError('IO', `cannot read ${path}: ${why}`, where, 'check the path', { cause })
}
