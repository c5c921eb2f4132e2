/**
 * One channel on its way out: what its parser finds becomes records, which BatchEncoder makes batches of. What the far
 * side expects next is kept here from batch to batch.
 */

import type { ParserMemory } from '../qemu/main-stream.ts'
import type { MultifdMethod, StreamPhase, StreamSink } from '../qemu/stream-sink.ts'
import { MULTIFD_FLAG } from '../qemu/wire.ts'
import type { PoolRegions } from './places.ts'
import { Prediction } from './prediction.ts'
import { RECORD, RecordList } from './records.ts'
import { BatchStats } from './stats.ts'
import { PAGE_NUMBER_MAX, PAGE_SIZE } from './wire.ts'

/** What a parser must offer so that a flow can be encoded by its records. */
export interface ChannelParser {
  push(chunk: Uint8Array, at: number, length: number): void
  readonly pending: number
  readonly position: number
  /** What its stream says of the guest's memory; a parser of other streams lacks it. */
  memory?(): ParserMemory
}

/** What a parser tells of its stream beside records; see its sink. */
export type StreamFacts = Partial<Pick<StreamSink, 'phase' | 'strayed' | 'degraded' | 'compressed'>>

/** Records of pages from here on stay raw: no batch can say their numbers. */
const OFFSET_END = PAGE_NUMBER_MAX * PAGE_SIZE

/** A channel's parser, its records, and what the far side expects next. */
export class FlowEncoder implements StreamSink {
  readonly migration: number
  readonly stats = new BatchStats()
  /** Whether its pages are shown to the observer: a guest's memory, and not its disk. */
  isLearned = true
  /** The channel's parser; undefined: all of it is relayed as OTHER. */
  parser: ChannelParser | undefined

  /** Since the last batch, positions from `batchStart` on. */
  readonly records = new RecordList()
  /** As the far side has it once all batches so far are expanded; its names run ahead by those not yet `defined`. */
  readonly prediction: Prediction
  /** Names that the far side knows by DEFINE. */
  defined = 0
  /** Stream position of the first byte that is in no batch yet. */
  batchStart = 0
  /** Stream position behind the last byte pushed. */
  position = 0
  /** Of the last page of RAM that is in a batch: the parser's index of its RAMBlock, and its number there. */
  place: { readonly block: number; readonly page: number } | undefined

  private readonly facts: StreamFacts
  private readonly parserNames: string[] = []
  private readonly indexOf: number[] = []
  /** The parser's index by our own. */
  private readonly parserBlocks: number[] = []

  /** @param facts hears what the parser tells beside records */
  constructor(migration: number, regions: PoolRegions, facts: StreamFacts = {}) {
    this.migration = migration
    this.facts = facts
    this.prediction = new Prediction(regions)
  }

  // --- what the parser tells: StreamSink

  block(block: number, idstr: string): void {
    this.parserNames[block] = idstr
  }

  zeroRecord(start: number, end: number, parserBlock: number, offset: number, named: boolean): void {
    if (start < this.batchStart) return // its first bytes went out raw while the source was idle: so does the rest
    if (offset >= OFFSET_END) return
    const block = this.ownBlock(parserBlock)
    if (block < 0) return
    const page = offset / PAGE_SIZE
    const { records } = this
    const last = records.count - 1
    if (
      !named &&
      last >= 0 &&
      records.kind[last] === RECORD.ZEROS &&
      records.end[last] === start - this.batchStart &&
      records.block[last] === block &&
      records.page[last]! + this.zeroCount(last) === page
    ) {
      records.end[last] = end - this.batchStart
      return
    }
    this.add(RECORD.ZEROS, start, end, block, page, named)
  }

  pageRecord(start: number, end: number, parserBlock: number, offset: number, named: boolean): void {
    if (start < this.batchStart || offset >= OFFSET_END) return
    const block = this.ownBlock(parserBlock)
    if (block < 0) return
    this.add(RECORD.PAGE, start, end, block, offset / PAGE_SIZE, named)
  }

  opaquePage(): void {
    this.stats.opaquePages++
  }

  phase(phase: StreamPhase, position: number): void {
    this.facts.phase?.(phase, position)
  }

  strayed(position: number, reason: string): void {
    this.facts.strayed?.(position, reason)
  }

  degraded(position: number, reason: string): void {
    this.facts.degraded?.(position, reason)
  }

  packet(start: number, end: number, pages: number, _zeroPages: number, flags: number, block: number): void {
    // headers of compressed packets stay raw: no pages of theirs follow
    this.packetRaw = start < this.batchStart || (flags & MULTIFD_FLAG.METHOD_MASK) !== 0
    if (this.packetRaw) return
    // both sides number RAMBlocks alike: in the order of packets that have pages
    if (pages > 0) this.packetBlock = this.ownBlock(block)
    this.packetRaw = pages > 0 && this.packetBlock < 0
    if (this.packetRaw) return
    this.add(RECORD.PACKET, start, end, 0, 0, false)
  }

  zeroPage(): void {
    this.stats.zeroPages++
  }

  pageBody(start: number, end: number, _block: number, offset: number): void {
    if (this.packetRaw) return
    if (start < this.batchStart) {
      this.add(RECORD.PASS, end, end, 0, 0, false)
      return
    }
    this.add(RECORD.BARE_PAGE, start, end, this.packetBlock, (offset / PAGE_SIZE) % PAGE_NUMBER_MAX, false)
  }

  compressed(method: MultifdMethod, position: number): void {
    this.facts.compressed?.(method, position)
  }

  // --- what a DiskConnection tells

  /** Transmission begins, of messages of this form and blocks that have the places of this number. */
  exports(form: number, block: number): void {
    this.exported = { form, block }
  }

  /** What the far side is told before the first message. */
  exported = { form: 0, block: 0 }

  /** The head of a message, and the data behind it. @returns whether blocks of that may be told */
  message(start: number, end: number, offset: number, dataBytes: number): boolean {
    if (start < this.batchStart) return false // its first bytes went out raw: so does all of it
    this.add(RECORD.MESSAGE, start, end, dataBytes | 0, offset, false)
    return true
  }

  /** A whole block of the message's data. */
  diskBlock(start: number, end: number, number: number): void {
    if (start < this.batchStart) this.add(RECORD.PASS, end, end, 0, 0, false)
    else this.add(RECORD.BARE_PAGE, start, end, this.exported.block, number, false)
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
    const index = this.prediction.names.add(this.parserNames[parserBlock]!)
    this.indexOf[parserBlock] = index
    if (index >= 0) this.parserBlocks[index] = parserBlock
    return index
  }

  private add(kind: number, start: number, end: number, block: number, page: number, named: boolean): void {
    this.records.add(kind, start - this.batchStart, end - this.batchStart, block, page, named)
  }

  /** Zero records in the ZEROS at this index. */
  zeroCount(record: number): number {
    const { start, end, named, block } = this.records
    const length = end[record]! - start[record]!
    if (named[record] === 0) return length / 9
    return (length - 1 - this.prediction.names.at(block[record]!).length) / 9
  }

  // --- bytes

  /** Takes `length` new bytes at `address`, which directly follow those not yet in a batch. */
  push(bytes: Uint8Array, address: number, length: number): void {
    this.position += length
    this.parser?.push(bytes, address, length)
  }

  /** The first `length` of the bytes not yet in a batch are in one now, and their records. */
  batched(length: number): void {
    const { records } = this
    for (let last = records.count - 1; last >= 0; last--) {
      const kind = records.kind[last]
      if (kind === RECORD.PACKET || kind === RECORD.PASS || kind === RECORD.MESSAGE) continue
      const more = kind === RECORD.ZEROS ? this.zeroCount(last) - 1 : 0
      const block = this.parserBlocks[records.block[last]!]
      if (block !== undefined) this.place = { block, page: records.page[last]! + more } // else a disk's
      break
    }
    records.clear()
    this.batchStart += length
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
}
