/**
 * The one way in for all commands: opens an input, tells what it is, takes compression off, and says of everything else
 * what it is not.
 */
import { ProxyError } from '../errors.ts'
import { type InputFormat, type Recognized, recognize } from './formats.ts'
import { type Chunks, InputFile } from './input-file.ts'
import { HEAD_LENGTH } from './limits.ts'
import { PACKING_MAGIC_LENGTH, type Packing, packingOf, unpack } from './packing.ts'

export interface InputOptions {
  /** It will be read more than once: what cannot be is refused. */
  readonly repeatable?: boolean
  readonly signal?: AbortSignal | undefined
}

/** An input whose format is known and can be read. */
export class Input {
  readonly name: string
  /** Bytes of the file as it is, before decompression; undefined where only its end will tell. */
  readonly lengthBytes: number | undefined
  /** Two inputs of the same file have the same; undefined where it cannot be read twice. */
  readonly identity: string | undefined
  readonly format: InputFormat
  readonly packing: Packing | undefined
  private readonly file: InputFile
  /** Of an input that can be read once only: its reading, which began when it was recognized. */
  private begun: Reading | undefined

  private constructor(file: InputFile, format: InputFormat, packing: Packing | undefined, begun: Reading | undefined) {
    this.file = file
    this.name = file.name
    this.lengthBytes = file.lengthBytes
    this.identity = file.identity
    this.format = format
    this.packing = packing
    this.begun = begun
  }

  /**
   * @param path of a file, or `-` for standard input
   * @throws IO; CAPTURE_FORMAT for what is nothing that can be read, with what it is; USAGE for what cannot be repeated
   */
  static async open(path: string, options: InputOptions = {}): Promise<Input> {
    const file = await InputFile.open(path)
    if (options.repeatable && !file.repeatable) {
      const what = `${file.name} can be read once only`
      throw new ProxyError('USAGE', what, undefined, 'it is read several times: write it to a file first')
    }
    const stop = new AbortController()
    let bytes = 0
    const signal = options.signal ? AbortSignal.any([options.signal, stop.signal]) : stop.signal
    const raw = file.chunks(count => {
      bytes += count
    }, signal)
    let chunks = raw
    let kept = false
    try {
      const outside = await peek(raw, PACKING_MAGIC_LENGTH)
      const packing = packingOf(outside.head)
      chunks = packing === undefined ? outside.chunks : unpack(file.name, packing, outside.chunks)
      const inside = await peek(chunks, HEAD_LENGTH)
      const found = recognize(inside.head)
      if (found.format === undefined) throw notReadable(file.name, packing, found)
      kept = !file.repeatable
      return new Input(file, found.format, packing, kept ? { chunks: inside.chunks, bytes, stop } : undefined)
    } finally {
      if (!kept) {
        stop.abort()
        await chunks.return()
        await raw.return()
      }
    }
  }

  /**
   * All bytes, decompressed.
   *
   * @param readBytes is told how many bytes of the file were read
   * @throws IO, CAPTURE_FORMAT for damaged compression, QEMU_TRUNCATED where compressed data end early
   */
  async *chunks(readBytes: (count: number) => void = () => {}): Chunks {
    const { begun, file, packing } = this
    if (begun !== undefined) {
      this.begun = undefined
      readBytes(begun.bytes)
      try {
        yield* begun.chunks
      } finally {
        begun.stop.abort() // an open pipe would keep the process waiting
      }
      return
    }
    const raw = file.chunks(readBytes)
    try {
      yield* packing === undefined ? raw : unpack(file.name, packing, raw)
    } finally {
      await raw.return()
    }
  }

  /** For an input that was opened and is not read after all. */
  close(): void {
    this.begun?.stop.abort()
    this.begun = undefined
  }
}

/** A reading under way. */
interface Reading {
  readonly chunks: Chunks
  /** Bytes of the file read so far. */
  readonly bytes: number
  /** Ends it. */
  readonly stop: AbortController
}

function notReadable(name: string, packing: Packing | undefined, { name: what, hint }: Recognized): ProxyError {
  const where = { stream: name, offset: 0 }
  return new ProxyError('CAPTURE_FORMAT', `${packing ? `inside ${packing}: ` : ''}${what}`, where, hint)
}

/** The first `length` bytes, fewer where there are fewer, and all chunks including them. */
async function peek(chunks: Chunks, length: number): Promise<{ chunks: Chunks; head: Buffer }> {
  let first: Buffer = Buffer.alloc(0)
  while (first.length < length) {
    const { value, done } = await chunks.next()
    if (done) break
    // The usual first chunk has all that is asked for, and is passed on without a copy.
    first = first.length === 0 ? value : Buffer.concat([first, value])
    if (first.length < length) first = Buffer.from(first)
  }
  async function* all(): Chunks {
    try {
      if (first.length > 0) yield first
      yield* chunks
    } finally {
      await chunks.return()
    }
  }
  return { chunks: all(), head: first.subarray(0, length) }
}
