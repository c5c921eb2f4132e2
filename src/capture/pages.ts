/** The pages of an input, one input a VM: what templates are counted from. */
import { type ErrorCode, ProxyError } from '../errors.ts'
import type { ChannelKind } from '../qemu/channel-kind.ts'
import { MainStreamParser } from '../qemu/main-stream.ts'
import { MultifdParser, type MultifdSink } from '../qemu/multifd-channel.ts'
import type { RecordSink } from '../qemu/record-sink.ts'
import { BatchPool, type PageBatch } from '../template/batch.ts'
import { PAGE_SIZE } from '../template/wire.ts'
import { ChannelReader } from './channels.ts'
import { Input } from './input.ts'
import type { ChannelSink } from './tcp.ts'

/** Bytes of an incomplete record that stand in front of the next chunk: 8 + 1 + 255 + 4096 at most. */
const PENDING_MAX = 8192
const NO_BYTES: Buffer = Buffer.alloc(0)

/** Something about an input that does not stop the work. */
export interface InputNote {
  readonly input: string
  readonly text: string
}

export interface PageInputOptions {
  /** Take the pages of streams that end early or have a gap up to there, with a note, instead of an error. */
  readonly partial?: boolean
  readonly note?: (note: InputNote) => void
}

/** An input whose pages can be read again and again. */
export class PageInput {
  readonly name: string
  /** Length of the file. */
  readonly lengthBytes: number
  /** Two inputs of the same file have the same. */
  readonly identity: string
  private readonly input: Input
  private readonly options: PageInputOptions
  private readonly pool = new BatchPool()
  private readonly notes = new Set<string>()

  private constructor(input: Input, options: PageInputOptions) {
    this.input = input
    this.name = input.name
    this.lengthBytes = input.lengthBytes ?? 0
    this.identity = input.identity!
    this.options = options
  }

  /** @throws IO; CAPTURE_FORMAT for what is neither stream nor capture; USAGE for what cannot be read several times */
  static async open(path: string, options: PageInputOptions = {}): Promise<PageInput> {
    return new PageInput(await Input.open(path, { repeatable: true }), options)
  }

  /**
   * Its pages in the order of the input, in batches that the caller releases.
   *
   * @param readBytes is told how many bytes of the file were read
   * @throws IO, CAPTURE_FORMAT; without `partial` CAPTURE_GAP, QEMU_TRUNCATED and QEMU_SYNTAX
   */
  async *pages(readBytes?: (count: number) => void): AsyncGenerator<PageBatch> {
    const collector = new PageCollector(this.name, this.pool)
    const reader = new ChannelReader(this.name, this.input.format, collector)
    for await (const chunk of this.input.chunks(readBytes)) {
      reader.push(chunk)
      yield* collector.full.splice(0)
    }
    reader.end()
    collector.endOfInput()
    yield* collector.full
    for (const note of collector.notes) this.tell(note)
    const { fault } = collector
    if (fault === undefined) return
    if (!this.options.partial) throw fault
    this.tell(`${fault.what}; the pages up to there are used`)
  }

  /** Tells a note once, however often the input is read. */
  private tell(text: string): void {
    if (this.notes.has(text)) return
    this.notes.add(text)
    this.options.note?.({ input: this.name, text })
  }
}

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

  constructor(input: string, pool: BatchPool) {
    this.input = input
    this.pool = pool
    this.batch = pool.take(0)
  }

  open(channel: number, kind: ChannelKind, name: string): void {
    if (kind === 'recovery') this.notes.add('the pages of a postcopy recovery are not counted')
    else this.channels.set(channel, { pages: new ChannelPages(this, kind === 'main'), kind, name })
  }

  bytes(channel: number, chunk: Buffer, at: number, length: number): void {
    this.channels.get(channel)?.pages.push(chunk, at, length)
  }

  end(channel: number, position: number, gap: string | undefined): void {
    const ended = this.channels.get(channel)
    if (ended === undefined) return
    this.channels.delete(channel)
    const { pages, kind, name } = ended
    const { cut, complete, degraded } = pages.finish()
    if (complete) {
      this.mainComplete = true
      return // whatever is missing lies behind the RAM
    }
    const stream = name === this.input ? name : `${this.input}, connection ${name}`
    const fault = (code: ErrorCode, what: string, offset: number, action: string): void => {
      const remedy = `${action}; --partial takes the pages up to there`
      this.faults.push(new ProxyError(code, what, { stream, offset }, remedy))
    }
    if (degraded !== undefined) fault('QEMU_SYNTAX', degraded.reason, degraded.position, 'please report this')
    else if (gap !== undefined) fault('CAPTURE_GAP', gap, position, 'capture again with tcpdump -s 0 -B 65536')
    else if (cut || kind === 'main') fault('QEMU_TRUNCATED', 'the migration ends early', position, 'give a whole one')
  }

  /** The last batch, where it holds anything. */
  endOfInput(): void {
    if (this.batch.count > 0) this.full.push(this.batch)
    else this.batch.release()
  }

  /** What is wrong with the input. A migration that was cut and then tried again, with success, is not. */
  get fault(): ProxyError | undefined {
    const retried = this.mainComplete && this.faults.every(({ code }) => code === 'QEMU_TRUNCATED')
    return retried ? undefined : this.faults[0]
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

/** Finds the pages of one channel and copies them where they are gathered. */
class ChannelPages implements RecordSink, MultifdSink {
  private readonly collector: PageCollector
  private readonly main: MainStreamParser | undefined
  private readonly parser: MainStreamParser | MultifdParser
  private fault: { position: number; reason: string } | undefined
  /** The last section that could not be read; a fault where nothing came behind it. */
  private astray: { position: number; reason: string } | undefined
  /** The chunk under way; its byte 0 stands at `base` of the stream. */
  private chunk: Buffer = NO_BYTES
  private chunkAt = 0
  private base = 0
  /** The last bytes before the chunk, at the end of this. */
  private readonly before = Buffer.alloc(PENDING_MAX)

  constructor(collector: PageCollector, main: boolean) {
    this.collector = collector
    this.main = main ? new MainStreamParser(this) : undefined
    this.parser = this.main ?? new MultifdParser(this)
  }

  push(chunk: Buffer, at: number, length: number): void {
    this.chunk = chunk
    this.chunkAt = at
    this.base = this.parser.position - at
    this.parser.push(chunk, at, length)
    this.chunk = NO_BYTES
    const keep = Math.min(this.parser.pending, length)
    if (keep === 0) return
    // A record cut more than once: its earlier pieces move up.
    const { before } = this
    if (keep < this.parser.pending) before.copyWithin(0, keep)
    chunk.copy(before, PENDING_MAX - keep, at + length - keep, at + length)
  }

  finish(): { cut: boolean; complete: boolean; degraded: { position: number; reason: string } | undefined } {
    const { cut, degradedAt } = this.parser.finish()
    const complete = this.main?.finish().ramComplete ?? false
    return { cut, complete, degraded: this.fault ?? (degradedAt === undefined ? undefined : this.astray) }
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

  // What else the parsers tell is not about pages' contents.
  block(): void {}
  zeroRecord(): void {}
  zeroPage(): void {}
  phase(): void {}
  hello(): void {}
  packet(): void {}
  compressed(): void {}

  /** @param position of the page in the stream */
  private takePage(position: number): void {
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
