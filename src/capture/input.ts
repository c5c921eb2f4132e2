/**
 * The one way in for all commands: opens an input, tells what it is, takes compression off, and says of everything else
 * what it is not.
 */
import { ProxyError } from '../errors.ts'
import { DiskImage } from './disk-image.ts'
import { hasChannels, type InputFormat, type Recognized, recognize } from './formats.ts'
import { type Chunks, InputFile } from './input-file.ts'
import { isSaveImage, withoutSaveHeader } from './libvirt-save.ts'
import { HEAD_LENGTH, WRAPPINGS_MAX } from './limits.ts'
import { type Packing, packingOf, unpack } from './packing.ts'

/** What may be around an input, and is taken off. */
type Wrapping = Packing | 'a libvirt save image'

export interface InputOptions {
  /** It will be read more than once: what cannot be is refused. */
  readonly repeatable?: boolean
  /** It has to be a migration, not memory or a disk at rest. */
  readonly migration?: boolean
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
  /** What is around it, outermost first. */
  readonly wrappings: readonly Wrapping[]
  private readonly file: InputFile
  private readonly image: DiskImage | undefined
  /** Of an input that can be read once only: its reading, which began when it was recognized. */
  private begun: Reading | undefined

  private constructor(
    file: InputFile,
    format: InputFormat,
    wrappings: readonly Wrapping[],
    begun: Reading | undefined,
    image: DiskImage | undefined,
  ) {
    this.file = file
    this.name = file.name
    this.lengthBytes = image?.lengthBytes ?? file.lengthBytes
    this.image = image
    this.identity = file.identity
    this.format = format
    this.wrappings = wrappings
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
      let inside = await peek(raw, HEAD_LENGTH)
      const wrappings: Wrapping[] = []
      for (let next = wrappingOf(inside.head); next !== undefined; next = wrappingOf(inside.head)) {
        if (wrappings.length === WRAPPINGS_MAX) throw tooManyWrappings(file.name)
        wrappings.push(next)
        chunks = unwrap(file.name, next, inside.chunks)
        inside = await peek(chunks, HEAD_LENGTH)
      }
      const found = recognize(inside.head)
      if (found.format === undefined) throw notReadable(file.name, wrappings, found)
      if (options.migration && !hasChannels(found.format)) throw noMigration(file.name, found.name)
      if (found.image !== undefined) {
        if (wrappings.length > 0 || !file.repeatable) throw needsFile(file.name, found)
        return new Input(file, found.format, wrappings, undefined, await DiskImage.open(file.name, found.image))
      }
      kept = !file.repeatable
      const begun = kept ? { chunks: inside.chunks, bytes, stop } : undefined
      return new Input(file, found.format, wrappings, begun, undefined)
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
    const { begun, file, image, wrappings } = this
    if (image !== undefined) {
      yield* image.chunks(readBytes)
      return
    }
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
      yield* wrappings.reduce<Chunks>((chunks, wrapping) => unwrap(file.name, wrapping, chunks), raw)
    } finally {
      await raw.return()
    }
  }

  /** Ends what is still open for it. */
  close(): void {
    this.image?.close()
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

function wrappingOf(head: Buffer): Wrapping | undefined {
  return isSaveImage(head) ? 'a libvirt save image' : packingOf(head)
}

function unwrap(name: string, wrapping: Wrapping, chunks: Chunks): Chunks {
  return wrapping === 'a libvirt save image' ? withoutSaveHeader(name, chunks) : unpack(name, wrapping, chunks)
}

function notReadable(name: string, wrappings: readonly Wrapping[], { name: what, hint }: Recognized): ProxyError {
  const inside = wrappings.length === 0 ? '' : `inside ${wrappings.join(', ')}: `
  return new ProxyError('CAPTURE_FORMAT', inside + what, { stream: name, offset: 0 }, hint)
}

/** What is said where a migration is wanted. */
export function noMigration(name: string, what: string): ProxyError {
  const action = 'templates can be built from it; what is encoded or estimated is a migration'
  return new ProxyError('CAPTURE_FORMAT', `${what}, which is no migration`, { stream: name, offset: 0 }, action)
}

function needsFile(name: string, { name: what }: Recognized): ProxyError {
  const action = 'its blocks lie all over the file: give it as a file, not packed'
  return new ProxyError('CAPTURE_FORMAT', `${what}, not as a file`, { stream: name, offset: 0 }, action)
}

function tooManyWrappings(name: string): ProxyError {
  const what = `more than ${WRAPPINGS_MAX} wrappings, one in the other`
  return new ProxyError('CAPTURE_FORMAT', what, { stream: name, offset: 0 }, 'unpack it first')
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
