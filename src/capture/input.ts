/**
 * The one way in for all commands: opens an input, tells what it is, takes compression off, and says of everything else
 * what it is not.
 */
import { ProxyError } from '../errors.ts'
import { DiskImage } from './disk-image.ts'
import {
  hasChannels,
  type InputFormat,
  type PlacedFormat,
  type Recognized,
  recognize,
  UNMARKED,
  type Unmarked,
} from './formats.ts'
import { type Chunks, InputFile } from './input-file.ts'
import { KdumpFile } from './kdump.ts'
import { isSaveImage, SAVE_HEADER_LENGTH, saveStreamAt, withoutSaveHeader } from './libvirt-save.ts'
import { EXPANSION_FREE, EXPANSION_MAX, HEAD_LENGTH, WRAPPINGS_MAX } from './limits.ts'
import { isLinuxKernel, isProgram, kernelProgram } from './linux-kernel.ts'
import { type Packing, packingOf, unpack } from './packing.ts'
import { chainOf } from './qcow2-chain.ts'

const SAVE_IMAGE = 'a libvirt save image'
const KERNEL = 'a Linux kernel'
/** What may be around an input, and is taken off. */
type Wrapping = Packing | typeof SAVE_IMAGE | typeof KERNEL

export interface InputOptions {
  /** It will be read more than once: what cannot be is refused. */
  readonly repeatable?: boolean
  /** It has to be a migration, not memory or a disk at rest. */
  readonly migration?: boolean
  /** What it is, compression aside, whatever its bytes look like. */
  readonly as?: Unmarked | undefined
  /** A snapshot within a disk image, by id or name, in place of the disk as it is. */
  readonly snapshot?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** A file whose bytes are found by place, and can be read again and again. */
interface PlacedInput {
  /** Of what is in it, unpacked. */
  readonly lengthBytes: number
  chunks(readBytes: (count: number) => void): Chunks
  close(): void
}

/** What an input was found to be. */
interface Nature {
  readonly format: InputFormat
  readonly takenFor: string
  readonly wrappings: readonly Wrapping[]
  readonly startsAt?: number
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
  /** The same in words, for people: `a libvirt save image, zstd: QEMU's main stream`. */
  readonly takenFor: string
  /** Where in the file what is read begins, where that is a matter of the format. */
  readonly startsAt: number
  private readonly file: InputFile
  private readonly image: PlacedInput | undefined
  /** Of an input that can be read once only: its reading, which began when it was recognized. */
  private begun: Reading | undefined

  private constructor(file: InputFile, nature: Nature, begun: Reading | undefined, image: PlacedInput | undefined) {
    this.file = file
    this.name = file.name
    this.lengthBytes = image?.lengthBytes ?? file.lengthBytes
    this.image = image
    this.identity = file.identity
    this.format = nature.format
    this.wrappings = nature.wrappings
    this.takenFor = nature.takenFor
    this.startsAt = nature.startsAt ?? 0
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
      let startsAt = 0
      for (let next = wrappingOf(inside.head); next !== undefined; next = wrappingOf(inside.head)) {
        if (wrappings.length === WRAPPINGS_MAX) throw tooManyWrappings(file.name)
        wrappings.push(next)
        const { head } = inside
        if (next === SAVE_IMAGE && head.length >= SAVE_HEADER_LENGTH) startsAt = saveStreamAt(file.name, head)
        chunks = unwrap(file.name, next, inside.chunks, () => bytes, signal)
        inside = await peek(chunks, HEAD_LENGTH)
      }
      const { as, snapshot } = options
      const found = foundIn(inside.head, wrappings, as)
      const { format, image } = found
      if (format === undefined) throw notReadable(file.name, wrappings, found)
      if (options.migration && !hasChannels(format)) throw noMigration(file.name, found.name)
      if (snapshot !== undefined && image !== 'qcow2') throw noSnapshots(file.name, found)
      const takenFor = (name: string): string => (wrappings.length === 0 ? name : `${wrappings.join(', ')}: ${name}`)
      if (image !== undefined) {
        if (wrappings.length > 0 || !file.repeatable) throw needsFile(file.name, found)
        const opened = await openPlaced(file, image, snapshot)
        return new Input(file, { format, wrappings, takenFor: found.name + opened.more }, undefined, opened.image)
      }
      if (wrappings.length === 0) refuseHoles(file.name, file.lengthBytes, file.storedBytes)
      kept = !file.repeatable
      const begun = kept ? { chunks: inside.chunks, bytes, stop } : undefined
      return new Input(file, { format, wrappings, takenFor: takenFor(found.name), startsAt }, begun, undefined)
    } finally {
      if (!kept) {
        stop.abort()
        await chunks.return()
        await raw.return()
      }
    }
  }

  /** Whether it is a Linux kernel. */
  get isKernel(): boolean {
    return this.wrappings.includes(KERNEL)
  }

  /** Whether compression is taken off. */
  get packed(): boolean {
    return this.wrappings.some(wrapping => wrapping !== SAVE_IMAGE && wrapping !== KERNEL)
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
    let bytes = 0
    const stop = new AbortController()
    const unpacked = (chunks: Chunks, wrapping: Wrapping): Chunks =>
      unwrap(file.name, wrapping, chunks, () => bytes, stop.signal)
    const raw = file.chunks(count => {
      bytes += count
      readBytes(count)
    })
    try {
      yield* wrappings.reduce<Chunks>(unpacked, raw)
    } finally {
      stop.abort()
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
  if (isLinuxKernel(head)) return KERNEL
  return isSaveImage(head) ? SAVE_IMAGE : packingOf(head)
}

function foundIn(head: Buffer, wrappings: readonly Wrapping[], as: Unmarked | undefined): Recognized {
  if (as !== undefined) return { name: UNMARKED[as], format: as, hint: '' }
  // what a kernel has packed in it is its memory as it is loaded, segment by segment as a core has it
  if (wrappings.includes(KERNEL) && isProgram(head)) return { name: 'its program', format: 'elf-core', hint: '' }
  return recognize(head)
}

/** @param readBytes bytes of the file read so far, which what comes out has to be worth */
function unwrap(
  name: string,
  wrapping: Wrapping,
  chunks: Chunks,
  readBytes: () => number,
  signal: AbortSignal,
): Chunks {
  if (wrapping === SAVE_IMAGE) return withoutSaveHeader(name, chunks)
  if (wrapping === KERNEL) return kernelProgram(name, chunks)
  return withinReason(name, unpack(name, wrapping, chunks, signal), readBytes)
}

/** @throws LIMIT_EXCEEDED where a few bytes are unpacked without end, at the byte of the file that was too much */
async function* withinReason(name: string, chunks: Chunks, readBytes: () => number): Chunks {
  let bytes = 0
  for await (const chunk of chunks) {
    bytes += chunk.length
    if (bytes > mostFrom(readBytes())) {
      const what = `packed more than ${EXPANSION_MAX} to 1: this is no guest's memory`
      throw new ProxyError('LIMIT_EXCEEDED', what, { stream: name, offset: readBytes() }, 'unpack it first, if it is')
    }
    yield chunk
  }
}

function mostFrom(bytes: number): number {
  return EXPANSION_FREE + bytes * EXPANSION_MAX
}

/** @throws LIMIT_EXCEEDED where nearly all of what it claims to have are holes */
function refuseHoles(name: string, lengthBytes: number | undefined, storedBytes: number | undefined): void {
  if (lengthBytes === undefined || storedBytes === undefined || lengthBytes <= mostFrom(storedBytes)) return
  const what = `${lengthBytes} bytes, of which ${storedBytes} are there: the rest are holes`
  throw new ProxyError('LIMIT_EXCEEDED', what, { stream: name, offset: 0 }, 'give what is in it')
}

async function openPlaced(
  file: InputFile,
  format: PlacedFormat,
  snapshot: string | undefined,
): Promise<{ image: PlacedInput; more: string }> {
  if (format === 'kdump') return { image: await KdumpFile.open(file.name), more: '' }
  const chain = format === 'qcow2' ? await chainOf(file.name) : undefined
  const image = await DiskImage.open(file.name, format, snapshot)
  try {
    // What other formats name beside themselves is not looked for.
    if (chain !== undefined) refuseHoles(file.name, image.lengthBytes, chain.storedBytes)
  } catch (error) {
    image.close()
    throw error
  }
  const of = snapshot === undefined ? '' : `, its snapshot ${snapshot}`
  const on = chain === undefined || chain.backing.length === 0 ? '' : `, on ${chain.backing.join(', on ')}`
  return { image, more: of + on }
}

function noSnapshots(name: string, { name: what }: Recognized): ProxyError {
  return new ProxyError('USAGE', `${name} is ${what}, without snapshots`, undefined, 'leave --snapshot out')
}

function notReadable(name: string, wrappings: readonly Wrapping[], { name: what, hint }: Recognized): ProxyError {
  const inside = wrappings.length === 0 ? '' : `inside ${wrappings.join(', ')}: `
  return new ProxyError('CAPTURE_FORMAT', inside + what, { stream: name, offset: 0 }, hint)
}

/** What is said where a migration is wanted. */
export function noMigration(name: string, what: string): ProxyError {
  const action = 'templates can be built from it, and estimate tells what it costs; what is encoded is a migration'
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
