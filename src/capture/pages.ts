/** The pages of an input, one input a VM: what templates are counted from. */
import { type ErrorCode, isProxyError, ProxyError } from '../errors.ts'
import type { ChannelKind } from '../qemu/channel-kind.ts'
import type { StreamSink } from '../qemu/stream-sink.ts'
import { BatchPool, type PageBatch } from '../template/batch.ts'
import { PAGE_SIZE } from '../template/wire.ts'
import { ChannelReader } from './channels.ts'
import { ElfCoreReader, type MemorySink } from './elf-core.ts'
import { hasChannels, type InputFormat } from './formats.ts'
import { Input, type InputOptions } from './input.ts'
import { KernelFinder, type PackedKernel, unpackKernel } from './kernels-in-image.ts'
import { KERNELS_MAX, KERNELS_TOLD_MAX } from './limits.ts'
import { MappedRamReader } from './mapped-ram.ts'
import { type FeedWatcher, MendedChannel } from './mended-channel.ts'
import { CAPTURE_WHOLE, JOIN_ROTATED, missingText } from './missing.ts'
import type { ChannelSink } from './tcp.ts'

/** Bytes of an incomplete record that stand in front of the next chunk: 8 + 1 + 255 + 4096 at most. */
const PENDING_MAX = 8192
const NO_BYTES: Buffer = Buffer.alloc(0)

/** Something about an input that does not stop the work. */
export interface InputNote {
  readonly input: string
  readonly text: string
}

export interface PageInputOptions extends Pick<InputOptions, 'as' | 'snapshot' | 'signal'> {
  /** Take the pages of streams that end early or cannot be read up to there, with a note, instead of an error. */
  readonly partial?: boolean
  /** Look for Linux kernels in a disk image, and give the pages of their programs too. */
  readonly kernels?: boolean
  readonly note?: (note: InputNote) => void
}

/** A Linux kernel that was found in an image. */
export interface KernelInImage {
  /** What `uname -r` says in its guests; '' where the kernel does not say it. */
  readonly version: string
  /** Where its file begins: bytes of the disk. */
  readonly offset: number
  /** Of its program. */
  readonly pages: number
}

/** An input whose pages can be read again and again. */
export class PageInput {
  readonly name: string
  /** Length of the file. */
  readonly lengthBytes: number
  /** Two inputs of the same file have the same. */
  readonly identity: string
  /** What it was taken for, in words. */
  readonly takenFor: string
  private readonly input: Input
  private readonly options: PageInputOptions
  private readonly pool = new BatchPool()
  private readonly notes = new Set<string>()
  private found: readonly KernelInImage[] | undefined

  private constructor(input: Input, options: PageInputOptions) {
    this.input = input
    this.name = input.name
    this.lengthBytes = input.lengthBytes ?? 0
    this.identity = input.identity ?? input.name
    this.takenFor = input.takenFor
    this.options = options
  }

  /** @throws IO; CAPTURE_FORMAT for what is neither stream nor capture; USAGE for what cannot be read several times */
  static async open(path: string, options: PageInputOptions = {}): Promise<PageInput> {
    const { as, snapshot, signal } = options
    return PageInput.of(await Input.open(path, { repeatable: true, as, snapshot, signal }), options)
  }

  /** @param input is closed by whoever closes this; its pages can be had as often as it can be read */
  static of(input: Input, options: PageInputOptions = {}): PageInput {
    return new PageInput(input, options)
  }

  /**
   * Its pages in the order of the input, in batches that the caller releases. Those of a kernel that is found in an image
   * come where its file ends.
   *
   * @param readBytes is told how many bytes of the file were read
   * @throws IO, CAPTURE_FORMAT; without `partial` CAPTURE_GAP, QEMU_TRUNCATED and QEMU_SYNTAX
   */
  async *pages(readBytes?: (count: number) => void): AsyncGenerator<PageBatch> {
    const collector = new PageCollector(this.name, this.pool)
    const reader = this.readerInto(collector)
    // Behind the RAM of a stream stands what has no pages: device state, and on a volume whatever was there before. What
    // is packed is read to its end, where its checksum is.
    const endsWithRam = this.input.format === 'stream' && !this.input.packed
    const kernels = this.looksForKernels ? new KernelSearch(this.name, collector, this.options.signal) : undefined
    try {
      for await (const chunk of this.input.chunks(readBytes)) {
        reader.push(chunk)
        yield* collector.full.splice(0)
        if (kernels !== undefined) yield* kernels.push(chunk)
        if (endsWithRam && collector.ramComplete) break
      }
    } catch (error) {
      collector.endsEarly(error)
    }
    try {
      reader.end()
    } catch (error) {
      collector.endsEarly(error)
    }
    if (kernels !== undefined) {
      this.found = kernels.found
      for (const note of kernels.end()) this.tell(note)
    }
    collector.endOfInput()
    yield* collector.full
    for (const note of collector.notes) this.tell(note)
    const { fault } = collector
    if (fault === undefined) return
    if (!this.options.partial) throw fault
    this.tell(`${fault.what}; the pages up to there are used`)
  }

  private readerInto(collector: PageCollector): { push(chunk: Buffer): void; end(): void } {
    const { format } = this.input
    if (hasChannels(format)) return new ChannelReader(this.name, format, collector)
    const memory = new MemoryPages(collector)
    if (format === 'elf-core') return new ElfCoreReader(this.name, memory)
    if (format === 'mapped-ram') return new MappedRamReader(this.name, memory, this.input.startsAt)
    return { push: chunk => memory.memory(chunk, 0, chunk.length), end: () => {} }
  }

  close(): void {
    this.input.close()
  }

  /** Whether it belongs to an image, and is no guest: a disk, or the kernel that its guests run. */
  get isImage(): boolean {
    return this.input.format === 'disk' || this.input.isKernel
  }

  /** Whether it is the latter. */
  get isKernel(): boolean {
    return this.input.isKernel
  }

  /** Those in an image, as its last reading to the end has found them; undefined where none are looked for. */
  get kernels(): readonly KernelInImage[] | undefined {
    return this.looksForKernels ? this.found : undefined
  }

  private get looksForKernels(): boolean {
    return this.input.format === 'disk' && this.options.kernels === true
  }

  /** What it was taken for. */
  get format(): InputFormat {
    return this.input.format
  }

  /** Tells a note once, however often the input is read. */
  private tell(text: string): void {
    if (this.notes.has(text)) return
    this.notes.add(text)
    this.options.note?.({ input: this.name, text })
  }
}

/** Looks for the kernels in an image that is read, and gathers their pages. */
class KernelSearch {
  readonly found: KernelInImage[] = []
  private readonly name: string
  private readonly collector: PageCollector
  private readonly signal: AbortSignal
  private readonly finder: KernelFinder
  /** What cannot be had of the others, and why. */
  private readonly lost: { readonly kernel: PackedKernel; readonly fault: ProxyError }[] = []

  constructor(name: string, collector: PageCollector, signal = new AbortController().signal) {
    this.name = name
    this.collector = collector
    this.signal = signal
    this.finder = new KernelFinder()
  }

  /** @throws the signal's reason, and nothing of what a kernel may be */
  async *push(chunk: Buffer): AsyncGenerator<PageBatch> {
    for (const kernel of this.finder.push(chunk)) yield* this.take(kernel)
  }

  /** The image ends. @returns what has to be said */
  *end(): Generator<string> {
    const cut = new ProxyError('QEMU_TRUNCATED', 'the image ends before it does', { stream: this.name }, '')
    for (const kernel of this.finder.end()) this.lost.push({ kernel, fault: cut })
    // One that is there twice, once in pieces, is not missed.
    const whole = new Set(this.found.map(({ version }) => version))
    const missed = this.lost.filter(({ kernel }) => kernel.version === '' || !whole.has(kernel.version))
    for (const { kernel, fault } of missed.slice(0, KERNELS_TOLD_MAX)) {
      const { version, offset } = kernel
      const file = version === '' ? '/boot/vmlinuz-...' : `/boot/vmlinuz-${version}`
      const what = `what begins as the Linux kernel ${version}`.trimEnd()
      yield fault.code === 'IO'
        ? `${what} at byte ${offset} is ${fault.what}: ${fault.action}`
        : `${what} at byte ${offset} does not unpack (${fault.what}): its file lies in pieces, or was deleted; where guests run it, give ${file} as an input of its own, too`
    }
    const others = missed.length - KERNELS_TOLD_MAX
    if (others > 0) yield `${others} others that begin as Linux kernels do not unpack`
    const { passedOver } = this.finder
    if (passedOver > 0)
      yield `${passedOver} others that begin as Linux kernels, behind ${KERNELS_MAX} or in each other, are left out`
  }

  private async *take(kernel: PackedKernel): AsyncGenerator<PageBatch> {
    const { name, collector, found } = this
    const { version, offset } = kernel
    try {
      const program = await unpackKernel(name, kernel, this.signal)
      const trial = new ElfCoreReader(name, NOWHERE) // all of its pages, or none
      for (const piece of program) trial.push(piece)
      trial.end()
      const before = collector.pages
      const reader = new ElfCoreReader(name, new MemoryPages(collector))
      for (const piece of program) {
        reader.push(piece)
        yield* collector.full.splice(0)
      }
      reader.end()
      found.push({ version, offset, pages: collector.pages - before })
    } catch (error) {
      this.signal.throwIfAborted()
      if (!isProxyError(error)) throw error
      this.lost.push({ kernel, fault: error })
    }
  }
}

const NOWHERE: MemorySink = { beginRun() {}, memory() {} }

/** A channel that is being read. */
interface OpenChannel {
  readonly pages: ChannelPages
  readonly kind: ChannelKind
  readonly name: string
}

/** Parses the channels of an input and gathers their pages in batches. */
class PageCollector implements ChannelSink {
  /** Batches to be taken, in order. */
  readonly full: PageBatch[] = []
  readonly notes = new Set<string>()
  private readonly input: string
  private readonly pool: BatchPool
  private batch: PageBatch
  private pageCount = 0
  private readonly channels = new Map<number, OpenChannel>()
  private mainComplete = false
  private readonly faults: ProxyError[] = []
  /** The file itself, whatever is in it, ended early. */
  private early: ProxyError | undefined

  constructor(input: string, pool: BatchPool) {
    this.input = input
    this.pool = pool
    this.batch = pool.take(0)
  }

  open(channel: number, kind: ChannelKind, name: string): void {
    if (kind === 'recovery') this.notes.add('the pages of a postcopy recovery are not counted')
    else this.channels.set(channel, { pages: new ChannelPages(this, kind), kind, name })
  }

  bytes(channel: number, chunk: Buffer, at: number, length: number): void {
    this.channels.get(channel)?.pages.push(chunk, at, length)
  }

  gap(channel: number, _position: number, lengthBytes: number, reason: string): void {
    this.channels.get(channel)?.pages.gap(lengthBytes, reason)
  }

  end(channel: number, position: number): void {
    const ended = this.channels.get(channel)
    if (ended === undefined) return
    this.channels.delete(channel)
    const { pages, kind, name } = ended
    const { cut, complete, degraded, tornPages } = pages.finish()
    const { missing } = pages
    const stream = name === this.input ? name : `${this.input}, connection ${name}`
    const fault = (code: ErrorCode, what: string, offset: number, action: string): void => {
      const remedy = `${action}; --partial takes the pages up to there`
      this.faults.push(new ProxyError(code, what, { stream, offset }, remedy))
    }
    if (complete)
      this.mainComplete = true // whatever is not there lies behind the RAM
    else if (missing.lostAt !== undefined) fault('CAPTURE_GAP', missing.reason, missing.firstAt, CAPTURE_WHOLE)
    else if (degraded !== undefined) fault('QEMU_SYNTAX', degraded.reason, degraded.position, 'please report this')
    else if (cut || kind === 'main')
      fault('QEMU_TRUNCATED', 'the migration ends early', position, endsEarly(stream, name))
    const pagesText = tornPages === 0 ? '' : `; ${tornPages} pages are torn by that and left out`
    if (missing.gaps > 0) this.notes.add(`${name === this.input ? '' : `${name}: `}${missingText(missing)}${pagesText}`)
  }

  /** The input ends early: a fault beside which its pages may be used. @throws any other error */
  endsEarly(error: unknown): void {
    if (this.early !== undefined) return // what its readers make of that is no news
    if (!isProxyError(error, 'QEMU_TRUNCATED')) throw error
    this.early = error
  }

  /** All RAM of the main channel that is being read has come. */
  get ramComplete(): boolean {
    return this.channels.get(0)?.pages.ramComplete ?? false
  }

  /** The last batch, where it holds anything. */
  endOfInput(): void {
    if (this.batch.count > 0) this.full.push(this.batch)
    else this.batch.release()
  }

  /** What is wrong with the input. A migration that was cut and then tried again, with success, is not. */
  get fault(): ProxyError | undefined {
    const retried = this.mainComplete && this.faults.every(({ code }) => code === 'QEMU_TRUNCATED')
    return this.early ?? (retried ? undefined : this.faults[0])
  }

  /** Gathered so far. */
  get pages(): number {
    return this.pageCount
  }

  /** The batch that takes the next page, at its `count`. */
  place(): PageBatch {
    if (this.batch.full) {
      this.full.push(this.batch)
      this.batch = this.pool.take(this.pageCount)
    }
    this.pageCount++
    return this.batch
  }
}

/** Gathers runs of memory as pages. */
class MemoryPages implements MemorySink {
  private readonly collector: PageCollector
  /** The page that a chunk did not hold whole. */
  private readonly begun = Buffer.alloc(PAGE_SIZE)
  private have = 0

  constructor(collector: PageCollector) {
    this.collector = collector
  }

  beginRun(): void {
    this.have = 0
  }

  memory(chunk: Buffer, at: number, length: number): void {
    const end = at + length
    while (at < end) {
      const whole = this.have === 0 && end - at >= PAGE_SIZE
      const take = whole ? PAGE_SIZE : Math.min(PAGE_SIZE - this.have, end - at)
      if (whole) this.page(chunk, at)
      else {
        chunk.copy(this.begun, this.have, at, at + take)
        this.have += take
        if (this.have === PAGE_SIZE) {
          this.page(this.begun, 0)
          this.have = 0
        }
      }
      at += take
    }
  }

  private page(bytes: Buffer, at: number): void {
    const batch = this.collector.place()
    bytes.copy(batch.bytes, batch.count++ * PAGE_SIZE, at, at + PAGE_SIZE)
  }
}

function endsEarly(stream: string, name: string): string {
  return stream === name ? 'give a whole one' : `give a whole one; ${JOIN_ROTATED}`
}

/** Finds the pages of one channel and copies them where they are gathered. */
class ChannelPages implements StreamSink, FeedWatcher {
  private readonly collector: PageCollector
  private readonly channel: MendedChannel
  private fault: { position: number; reason: string } | undefined
  /** The last section that could not be read; a fault where nothing came behind it. */
  private astray: { position: number; reason: string } | undefined
  private tornPages = 0
  /** The chunk under way; its byte 0 stands at `base` of the stream. */
  private chunk: Buffer = NO_BYTES
  private chunkAt = 0
  private base = 0
  /** The last bytes before the chunk, at the end of this. */
  private readonly before = Buffer.alloc(PENDING_MAX)

  constructor(collector: PageCollector, kind: ChannelKind) {
    this.collector = collector
    this.channel = new MendedChannel(kind, this, this)
  }

  push(chunk: Buffer, at: number, length: number): void {
    this.channel.push(chunk, at, length)
  }

  gap(lengthBytes: number, reason: string): void {
    this.channel.gap(lengthBytes, reason)
  }

  get missing(): MendedChannel['missing'] {
    return this.channel.missing
  }

  feeding(chunk: Buffer, at: number): void {
    this.chunk = chunk
    this.chunkAt = at
    this.base = this.channel.parser.position - at
  }

  fed(chunk: Buffer, at: number, length: number): void {
    this.chunk = NO_BYTES
    const { pending } = this.channel.parser
    const keep = Math.min(pending, length)
    if (keep === 0) return
    // A record cut more than once: its earlier pieces move up.
    const { before } = this
    if (keep < pending) before.copyWithin(0, keep)
    chunk.copy(before, PENDING_MAX - keep, at + length - keep, at + length)
  }

  get ramComplete(): boolean {
    return this.channel.parser.raw && this.channel.finish().ramComplete
  }

  finish(): {
    cut: boolean
    complete: boolean
    degraded: { position: number; reason: string } | undefined
    tornPages: number
  } {
    this.channel.end()
    const { cut, ramComplete, degradedAt } = this.channel.finish()
    const degraded = this.fault ?? (degradedAt === undefined ? undefined : this.astray)
    return { cut, complete: ramComplete, degraded, tornPages: this.tornPages }
  }

  pageRecord(_start: number, end: number): void {
    this.takePage(end - PAGE_SIZE)
  }

  pageBody(start: number): void {
    this.takePage(start)
  }

  opaquePage(): void {
    this.collector.notes.add('some pages are compressed by QEMU (xbzrle, compress, multifd); these are not counted')
  }

  strayed(position: number, reason: string): void {
    this.astray = { position, reason }
  }

  degraded(position: number, reason: string): void {
    this.fault = { position, reason }
  }

  dropped(): void {
    this.fault = undefined // it is read on
  }

  // What else is told is not about pages' contents.
  block(): void {}
  zeroRecord(): void {}
  zeroPage(): void {}
  phase(): void {}
  hello(): void {}
  packet(): void {}
  compressed(): void {}

  /** @param position of the page in the stream */
  private takePage(position: number): void {
    if (this.channel.isTorn(position)) {
      this.tornPages++
      return
    }
    const batch = this.collector.place()
    const to = batch.count++ * PAGE_SIZE
    const from = position - this.base
    const early = this.chunkAt - from
    if (early <= 0) {
      this.chunk.copy(batch.bytes, to, from, from + PAGE_SIZE)
      return
    }
    // Begun in an earlier chunk.
    this.before.copy(batch.bytes, to, PENDING_MAX - early, PENDING_MAX - early + Math.min(early, PAGE_SIZE))
    if (early < PAGE_SIZE) this.chunk.copy(batch.bytes, to + early, this.chunkAt, this.chunkAt + PAGE_SIZE - early)
  }
}
