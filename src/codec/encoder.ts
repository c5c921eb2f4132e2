/**
 * Turns a channel's bytes into batches: docs/protocol.md §4 to §7. Pure: bytes lie in the kernel's memory, a batch comes
 * out as raw columns in a workspace; src/compression packs them.
 *
 * A `FlowEncoder` follows one channel (its parser and predictions), a `BatchEncoder` the session's shared pool. Batches
 * must reach the far side in the order in which they were made.
 */
import { assert } from '../errors.ts'
import { type Kernel, KIND, MATCH, NONE, RESULT } from '../kernel/kernel.ts'
import type { MultifdMethod, MultifdSink } from '../qemu/multifd-channel.ts'
import type { RecordSink, StreamPhase } from '../qemu/record-sink.ts'
import { MULTIFD_FLAG } from '../qemu/wire.ts'
import { BlockNames } from './block-names.ts'
import { transposeHeaders } from './packet-headers.ts'
import { BatchStats } from './stats.ts'
import { writeVarint, zigzag } from './varint.ts'
import {
  BATCH_RAW_MAX,
  COLUMN,
  OP,
  PACKET_HEADER_SIZE,
  PAGE_NUMBER_MAX,
  PAGE_SIZE,
  PLACE_BLOCK_STEP,
  PLACE_MIGRATION_STEP,
} from './wire.ts'
import { BATCH_PAGES_MAX, type Workspace } from './workspace.ts'

/** What a parser must offer so that a flow can be encoded by its records. */
export interface ChannelParser {
  push(chunk: Uint8Array, at: number, length: number): void
  readonly pending: number
  readonly position: number
}

/**
 * Looks on as pages pass that no template set holds: src/learning. Both sides call it alike, in the order of batches.
 * Bytes stay where they are until `batch` returns.
 */
export interface PageObserver {
  /** A page of the batch at hand. @param page its number in its RAMBlock */
  page(address: number, page: number): void
  /** All of the batch: `length` bytes of the channel from byte `position` on. */
  batch(migration: number, position: number, address: number, length: number): void
}

/** Events of one push, at most this many before the encoder cuts a batch: 58,000 zero records fill 512 KiB. */
const EVENTS_MAX = 1 << 17
/** Room for events that a flow begins with: most channels never need more. */
const EVENTS_FIRST = 256

const EVENT = { ZEROS: 0, PAGE: 1, BARE_PAGE: 2, PACKET: 3, PASS: 4 } as const

/** Records of pages from here on stay raw: no batch can say their numbers. */
const OFFSET_END = PAGE_NUMBER_MAX * PAGE_SIZE

/** Index of a place in the session's table: protocol.md §5. `places` is a power of two. */
export function placeIndex(migration: number, block: number, page: number, places: number): number {
  const salt = (Math.imul(block, PLACE_BLOCK_STEP) + Math.imul(migration, PLACE_MIGRATION_STEP)) >>> 0
  return ((page % 4294967296) + salt) % places
}

/** One channel on its way out: parser, events since the last batch, and the predictions that both sides keep. */
export class FlowEncoder implements RecordSink, MultifdSink {
  readonly migration: number
  readonly stats = new BatchStats()
  /** The channel's parser; undefined: all of it is relayed as OTHER. */
  parser: ChannelParser | undefined
  onPhase: ((phase: StreamPhase, position: number) => void) | undefined
  onCompressed: ((method: MultifdMethod, position: number) => void) | undefined
  onStrayed: ((position: number, reason: string) => void) | undefined
  onDegraded: ((position: number, reason: string) => void) | undefined

  // events: records since the last batch, positions relative to `batchStart`
  eventKind = new Uint8Array(EVENTS_FIRST)
  eventStart = new Int32Array(EVENTS_FIRST)
  eventEnd = new Int32Array(EVENTS_FIRST)
  eventBlock = new Int32Array(EVENTS_FIRST)
  eventNamed = new Uint8Array(EVENTS_FIRST)
  eventPage = new Float64Array(EVENTS_FIRST)
  eventCount = 0
  pageCount = 0

  /** Stream position of the first byte that is in no batch yet. */
  batchStart = 0
  /** Address of that byte in the kernel's memory, while something is there. */
  batchAddress = 0
  /** Stream position behind the last byte pushed. */
  position = 0

  // predictions, as in protocol.md §6
  readonly names = new BlockNames()
  private readonly parserNames: string[] = []
  private readonly indexOf: number[] = []
  defined = 0
  currentBlock = 0
  page = 0
  readonly next: [number, number]

  constructor(migration: number, templatePages: number) {
    this.migration = migration
    this.next = [0, templatePages]
  }

  // --- what the parser tells: RecordSink, PreemptSink and MultifdSink

  block(block: number, idstr: string): void {
    this.parserNames[block] = idstr
  }

  zeroRecord(start: number, end: number, parserBlock: number, offset: number, named: boolean): void {
    if (start < this.batchStart) return // its first bytes went out raw while the source was idle: so does the rest
    if (offset >= OFFSET_END) return
    const block = this.ownBlock(parserBlock)
    if (block < 0) return
    const page = offset / PAGE_SIZE
    const last = this.eventCount - 1
    if (
      !named &&
      last >= 0 &&
      this.eventKind[last] === EVENT.ZEROS &&
      this.eventEnd[last] === start - this.batchStart &&
      this.eventBlock[last] === block &&
      this.eventPage[last]! + this.zeroCount(last) === page
    ) {
      this.eventEnd[last] = end - this.batchStart
      return
    }
    this.addEvent(EVENT.ZEROS, start, end, block, page, named)
  }

  pageRecord(start: number, end: number, parserBlock: number, offset: number, named: boolean): void {
    if (start < this.batchStart || offset >= OFFSET_END) return
    const block = this.ownBlock(parserBlock)
    if (block < 0) return
    this.addEvent(EVENT.PAGE, start, end, block, offset / PAGE_SIZE, named)
    this.pageCount++
  }

  opaquePage(): void {
    this.stats.opaquePages++
  }

  phase(phase: StreamPhase, position: number): void {
    this.onPhase?.(phase, position)
  }

  strayed(position: number, reason: string): void {
    this.onStrayed?.(position, reason)
  }

  degraded(position: number, reason: string): void {
    this.onDegraded?.(position, reason)
  }

  hello(): void {}

  packet(start: number, end: number, pages: number, _zeroPages: number, flags: number, block: number): void {
    // headers of compressed packets stay raw: no pages of theirs follow
    this.packetRaw = start < this.batchStart || (flags & MULTIFD_FLAG.METHOD_MASK) !== 0
    if (this.packetRaw) return
    // both sides number RAMBlocks alike: in the order of packets that have pages
    if (pages > 0) this.packetBlock = this.ownBlock(block)
    this.packetRaw = pages > 0 && this.packetBlock < 0
    if (this.packetRaw) return
    this.addEvent(EVENT.PACKET, start, end, 0, 0, false)
  }

  zeroPage(): void {
    this.stats.zeroPages++
  }

  pageBody(start: number, end: number, _block: number, offset: number): void {
    if (this.packetRaw) return
    if (start < this.batchStart) {
      this.addEvent(EVENT.PASS, end, end, 0, 0, false)
      return
    }
    this.addEvent(EVENT.BARE_PAGE, start, end, this.packetBlock, (offset / PAGE_SIZE) % PAGE_NUMBER_MAX, false)
    this.pageCount++
  }

  compressed(method: MultifdMethod, position: number): void {
    this.onCompressed?.(method, position)
  }

  private packetBlock = 0
  /** The packet's header went out raw, at least in parts: so do its pages. */
  private packetRaw = false

  /**
   * Our index of a RAMBlock: those that this channel used, in order of their first use. -1: one too many, whose records
   * stay raw.
   */
  private ownBlock(parserBlock: number): number {
    const own = this.indexOf[parserBlock]
    if (own !== undefined) return own
    const index = this.names.add(this.parserNames[parserBlock]!)
    this.indexOf[parserBlock] = index
    return index
  }

  private addEvent(kind: number, start: number, end: number, block: number, page: number, named: boolean): void {
    const i = this.eventCount++
    if (i === this.eventKind.length) this.growEvents()
    this.eventKind[i] = kind
    this.eventStart[i] = start - this.batchStart
    this.eventEnd[i] = end - this.batchStart
    this.eventBlock[i] = block
    this.eventPage[i] = page
    this.eventNamed[i] = named ? 1 : 0
  }

  private growEvents(): void {
    const before = this.eventKind.length
    assert(before < EVENTS_MAX, 'more records than a batch can hold')
    const length = Math.min(before * 4, EVENTS_MAX)
    const grown = <T extends Uint8Array | Int32Array | Float64Array>(to: T, from: T): T => {
      to.set(from)
      return to
    }
    this.eventKind = grown(new Uint8Array(length), this.eventKind)
    this.eventStart = grown(new Int32Array(length), this.eventStart)
    this.eventEnd = grown(new Int32Array(length), this.eventEnd)
    this.eventBlock = grown(new Int32Array(length), this.eventBlock)
    this.eventNamed = grown(new Uint8Array(length), this.eventNamed)
    this.eventPage = grown(new Float64Array(length), this.eventPage)
  }

  /** Records in a ZEROS event. */
  zeroCount(event: number): number {
    const length = this.eventEnd[event]! - this.eventStart[event]!
    if (this.eventNamed[event] === 0) return length / 9
    return (length - 1 - this.names.at(this.eventBlock[event]!).length) / 9
  }

  // --- bytes

  /**
   * Takes `length` new bytes at `address`, which directly follow those not yet in a batch (the caller moves the rest
   * when it changes slots, and calls `moved`).
   */
  push(bytes: Uint8Array, address: number, length: number): void {
    if (this.position === this.batchStart) this.batchAddress = address
    assert(address === this.batchAddress + (this.position - this.batchStart), 'bytes of a batch must be contiguous')
    this.position += length
    this.parser?.push(bytes, address, length)
  }

  /** Bytes that a batch could take now: all but an incomplete record. */
  get ready(): number {
    return this.position - this.batchStart - Math.min(this.held, this.position - this.batchStart)
  }

  /** Bytes pushed and in no batch yet. */
  get waiting(): number {
    return this.position - this.batchStart
  }

  /** Bytes of an incomplete record at the end. */
  get held(): number {
    return this.parser?.pending ?? 0
  }

  /** The bytes in no batch yet now begin at `address`. */
  moved(address: number): void {
    this.batchAddress = address
  }
}

/** Whether the far side sees this page as one that is no template: SAME says nothing of its content there. */
function learnable(kind: number, slot: number, templatePages: number): boolean {
  return kind > KIND.SAME && (kind !== KIND.REF || slot >= templatePages)
}

/** Shared by all flows of a session: makes batches into workspaces. */
export class BatchEncoder {
  private readonly kernel: Kernel
  private readonly seedLo: number
  private readonly seedHi: number
  observer: PageObserver | undefined

  // the workspace being filled
  private workspace!: Workspace
  private bytes: Uint8Array
  private ops = 0
  private numbers = 0
  private other = 0
  private lengths = 0
  private sources = 0
  private shifts = 0
  private headers = 0
  private runKind = 0
  private runCount = 0

  /** @param seed of the batch checksum, two u32 */
  constructor(kernel: Kernel, seedLo: number, seedHi: number) {
    this.kernel = kernel
    this.bytes = kernel.bytes
    this.seedLo = seedLo
    this.seedHi = seedHi
  }

  /**
   * Makes one batch of what the flow has waiting: all whole records, and with `release` the incomplete one too (as
   * OTHER; its rest follows as OTHER). Fills the workspace's columns.
   * @returns bytes that the batch expands to; 0: nothing to send
   */
  encode(flow: FlowEncoder, workspace: Workspace, options: { longMatch: boolean; release: boolean }): number {
    const rawLength = options.release ? flow.waiting : flow.ready
    if (rawLength === 0) return 0
    assert(rawLength <= BATCH_RAW_MAX, 'a batch is too large')
    this.begin(workspace)
    const base = flow.batchAddress
    const events = flow.eventCount
    const pages = flow.pageCount
    assert(pages <= BATCH_PAGES_MAX, 'more pages than a batch can hold')
    this.kernel.checksum(base, rawLength, this.seedLo, this.seedHi, workspace.checksumAt)
    this.match(flow, base, events, pages, options.longMatch)

    let at = 0 // bytes of the batch that are described
    let page = 0 // index into the kernel's answers
    let pagesAt = workspace.columnAt[COLUMN.PAGES]!
    let tokenAt = workspace.tokensAt
    const kinds = this.bytes.subarray(workspace.kindsAt, workspace.kindsAt + pages)
    const slots = new Uint32Array(this.bytes.buffer, workspace.slotsAt, pages)
    const before = new Uint32Array(this.bytes.buffer, workspace.placesAt, pages) // matchPages wrote it
    const stats = flow.stats
    for (let i = 0; i < events; i++) {
      const start = flow.eventStart[i]!
      const end = flow.eventEnd[i]!
      const kind = flow.eventKind[i]!
      if (start > at) {
        this.copyOther(base + at, start - at)
        stats.other += start - at
      }
      at = end
      if (kind === EVENT.PASS) {
        this.run(OP.PASS, 1)
        continue
      }
      if (kind === EVENT.PACKET) {
        this.run(OP.PACKET, 1)
        this.endRun()
        this.bytes.copyWithin(this.headers, base + start, base + end)
        this.headers += PACKET_HEADER_SIZE
        stats.heads += end - start
        continue
      }
      if (kind === EVENT.BARE_PAGE) {
        flow.currentBlock = flow.eventBlock[i]!
        flow.page = flow.eventPage[i]! // the packet's header says where
      } else this.goTo(flow, flow.eventBlock[i]!, flow.eventPage[i]!, flow.eventNamed[i] === 1)
      if (kind === EVENT.ZEROS) {
        const count = flow.zeroCount(i)
        this.run(OP.ZERO, count)
        flow.page += count
        stats.zeroPages += count
        stats.heads += end - start
        continue
      }
      stats.heads += end - start - PAGE_SIZE
      const slot = slots[page]!
      switch (kinds[page]) {
        case KIND.FILL:
          this.run(OP.FILL, 1)
          this.number(slot)
          stats.fillPages++
          break
        case KIND.SAME:
          this.run(OP.SAME, 1)
          stats.samePages++
          break
        case KIND.REF: {
          const region = slot >= this.kernel.layout.templatePages ? 1 : 0
          if (this.runKind !== OP.REF || slot !== flow.next[region] || this.refRegion !== region) {
            this.endRun()
            this.refRegion = region
            this.number(zigzag(slot - flow.next[region]!) * 2 + region)
          }
          this.run(OP.REF, 1)
          flow.next[region] = slot + 1
          if (region === 0) stats.templatePages++
          else stats.earlierPages++
          break
        }
        case KIND.NEW:
          this.run(OP.NEW, 1)
          pagesAt += PAGE_SIZE
          stats.newPages++
          break
        case KIND.WORDS:
          if (this.runKind !== OP.WORDS || slot !== this.lag) {
            this.endRun()
            this.lag = slot
            this.number(slot)
          }
          this.run(OP.WORDS, 1)
          stats.newPages++
          break
        case KIND.NEW_DENSE:
          this.run(OP.DENSE, 1)
          stats.densePages++
          break
        default: {
          assert(kinds[page] === KIND.PATCH, 'the kernel answered with an unknown kind')
          this.run(OP.PATCH, 1)
          const literal = this.patch(flow, tokenAt, slot, before[page]!)
          tokenAt += slot * 8
          pagesAt += literal
          stats.patchPages++
          stats.patchLiteral += literal
        }
      }
      if (this.observer && learnable(kinds[page]!, slot, this.kernel.layout.templatePages))
        this.observer.page(base + end - PAGE_SIZE, flow.page)
      flow.page++
      page++
    }
    this.observer?.batch(flow.migration, flow.batchStart, base, rawLength)
    if (at < rawLength) {
      this.copyOther(base + at, rawLength - at)
      stats.other += rawLength - at
    }
    this.endRun()
    this.finish(pagesAt)
    stats.rawBytes += rawLength
    stats.batches++
    flow.eventCount = 0
    flow.pageCount = 0
    flow.batchStart += rawLength
    flow.batchAddress += rawLength
    return rawLength
  }

  private refRegion = 0
  private lag = 0

  private begin(workspace: Workspace): void {
    this.workspace = workspace
    const at = workspace.columnAt
    this.ops = at[COLUMN.OPS]!
    this.numbers = at[COLUMN.NUMBERS]!
    this.other = at[COLUMN.OTHER]!
    this.lengths = at[COLUMN.LENGTHS]!
    this.sources = at[COLUMN.SOURCES]!
    this.shifts = at[COLUMN.SHIFTS]!
    this.headers = at[COLUMN.HEADERS]!
    this.runKind = 0
    this.runCount = 0
  }

  private finish(pagesAt: number): void {
    const { columnAt, columnLength } = this.workspace
    columnLength[COLUMN.OPS] = this.ops - columnAt[COLUMN.OPS]!
    columnLength[COLUMN.NUMBERS] = this.numbers - columnAt[COLUMN.NUMBERS]!
    columnLength[COLUMN.OTHER] = this.other - columnAt[COLUMN.OTHER]!
    columnLength[COLUMN.PAGES] = pagesAt - columnAt[COLUMN.PAGES]!
    columnLength[COLUMN.DENSE] = this.denseBytes
    columnLength[COLUMN.WORDS] = this.wordsBytes
    columnLength[COLUMN.LENGTHS] = this.lengths - columnAt[COLUMN.LENGTHS]!
    columnLength[COLUMN.SOURCES] = this.sources - columnAt[COLUMN.SOURCES]!
    columnLength[COLUMN.SHIFTS] = this.shifts - columnAt[COLUMN.SHIFTS]!
    columnLength[COLUMN.HEADERS] = this.headers - columnAt[COLUMN.HEADERS]!
    if (columnLength[COLUMN.HEADERS]! > 0) transposeHeaders(this.bytes, columnAt[COLUMN.HEADERS]!, this.headers)
  }

  private denseBytes = 0
  private wordsBytes = 0

  /** Asks the kernel about every page of the batch. */
  private match(flow: FlowEncoder, base: number, events: number, pages: number, longMatch: boolean): void {
    const workspace = this.workspace
    this.denseBytes = 0
    this.wordsBytes = 0
    if (pages === 0) return
    const list = new Uint32Array(this.bytes.buffer, workspace.listAt, pages)
    const places = new Uint32Array(this.bytes.buffer, workspace.placesAt, pages)
    const placeCount = this.kernel.layout.places
    let n = 0
    for (let i = 0; i < events; i++) {
      const kind = flow.eventKind[i]!
      if (kind !== EVENT.PAGE && kind !== EVENT.BARE_PAGE) continue
      list[n] = base + flow.eventEnd[i]! - PAGE_SIZE
      places[n] =
        placeCount === 0 ? NONE : placeIndex(flow.migration, flow.eventBlock[i]!, flow.eventPage[i]!, placeCount)
      n++
    }
    this.kernel.matchPages(
      workspace.listAt,
      workspace.placesAt,
      n,
      workspace.kindsAt,
      workspace.slotsAt,
      workspace.tokensAt,
      workspace.columnAt[COLUMN.PAGES]!,
      workspace.columnAt[COLUMN.DENSE]!,
      workspace.columnAt[COLUMN.WORDS]!,
      longMatch ? MATCH.LONG | MATCH.WORDS : 0,
    )
    this.denseBytes = this.kernel.result[RESULT.DENSE_BYTES]!
    this.wordsBytes = this.kernel.result[RESULT.KIND_COUNT + KIND.WORDS]! * PAGE_SIZE
  }

  /** Makes the prediction of the next record head true. */
  private goTo(flow: FlowEncoder, block: number, page: number, named: boolean): void {
    if (named || block !== flow.currentBlock) {
      this.define(flow, block)
      this.run(OP.BLOCK, named ? 1 : 2)
      this.endRun()
      this.number(block)
      flow.currentBlock = block
      flow.page = 0
    }
    const delta = page - flow.page
    if (delta === 0) return
    if (delta > 0 && delta < 256) {
      this.run(OP.SKIP, delta)
      this.endRun()
    } else {
      this.run(OP.SEEK, 1)
      this.endRun()
      this.number(zigzag(delta))
    }
    flow.page = page
  }

  /** Makes all names up to `block` known at the far side. */
  private define(flow: FlowEncoder, block: number): void {
    while (flow.defined <= block) {
      const name = flow.names.at(flow.defined)
      this.run(OP.DEFINE, 1)
      this.endRun()
      this.number(name.length)
      for (let i = 0; i < name.length; i++) this.bytes[this.other++] = name.charCodeAt(i)
      flow.defined++
    }
  }

  /** Adds to the current run of operations, or begins one. */
  private run(kind: number, count: number): void {
    if (this.runKind !== kind) {
      this.endRun()
      this.runKind = kind
    }
    this.runCount += count
  }

  /** Writes the operation of the current run. */
  private endRun(): void {
    const count = this.runCount
    if (count === 0) return
    if (count < 16) this.bytes[this.ops++] = (this.runKind << 4) | count
    else {
      this.bytes[this.ops++] = this.runKind << 4
      this.ops = writeVarint(this.bytes, this.ops, count - 16)
    }
    this.runKind = 0
    this.runCount = 0
  }

  private number(value: number): void {
    this.numbers = writeVarint(this.bytes, this.numbers, value)
  }

  private copyOther(address: number, length: number): void {
    if (length === 0) return
    this.run(OP.OTHER, length)
    this.bytes.copyWithin(this.other, address, address + length)
    this.other += length
  }

  /** Columns of one PATCH page out of the kernel's tokens; `before`: its place's slot, or NONE. @returns its literal bytes */
  private patch(flow: FlowEncoder, tokenAt: number, count: number, before: number): number {
    const bytes = this.bytes
    const templatePages = this.kernel.layout.templatePages
    let lengths = this.lengths
    let literalBytes = 0
    let q = 0
    let displacement = before === NONE ? Number.NaN : before * PAGE_SIZE
    let lastRegion = -1
    for (let i = 0; i < count; i++) {
      const t = tokenAt + i * 8
      const literal = bytes[t]! | (bytes[t + 1]! << 8)
      const copy = bytes[t + 2]! | (bytes[t + 3]! << 8)
      const source = (bytes[t + 4]! | (bytes[t + 5]! << 8) | (bytes[t + 6]! << 16) | (bytes[t + 7]! << 24)) >>> 0
      lengths = writeVarint(bytes, lengths, literal)
      literalBytes += literal
      q += literal
      if (q === PAGE_SIZE) break
      lengths = writeVarint(bytes, lengths, copy)
      if (source - q === displacement) bytes[this.sources++] = 0
      else {
        const slot = Math.floor(source / PAGE_SIZE)
        const region = slot >= templatePages ? 1 : 0
        this.sources = writeVarint(bytes, this.sources, 1 + zigzag(slot - flow.next[region]!) * 2 + region)
        this.shifts = writeVarint(bytes, this.shifts, source % PAGE_SIZE)
        flow.next[region] = slot
        lastRegion = region
        displacement = source - q
      }
      q += copy
    }
    assert(q === PAGE_SIZE, 'the tokens of a page do not make a page')
    if (lastRegion >= 0) flow.next[lastRegion as 0 | 1]++
    this.lengths = lengths
    return literalBytes
  }
}
