/**
 * One channel on its way out: what its parser finds becomes records, which BatchEncoder makes batches of. What the far
 * side expects next is kept here from batch to batch.
 */

import { assert } from '../errors.ts'
import { KIND } from '../kernel/kernel.ts'
import type { ParserMemory } from '../qemu/main-stream.ts'
import type { MultifdMethod, StreamPhase, StreamSink } from '../qemu/stream-sink.ts'
import { MULTIFD_FLAG } from '../qemu/wire.ts'
import { MAPPED, type MemoryMap } from './memory-map.ts'
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
  /** The last pass has begun: in precopy the guest is stopped. Likewise. */
  readonly isStopped?: boolean
  /** Of a disk: its client has not said that it is over. */
  readonly isOpen?: boolean
}

/** What a parser tells of its stream beside records; see its sink. */
export type StreamFacts = Partial<Pick<StreamSink, 'phase' | 'strayed' | 'degraded' | 'compressed'>>

/** Records of pages from here on stay raw: no batch can say their numbers. */
const OFFSET_END = PAGE_NUMBER_MAX * PAGE_SIZE

/** By KIND of a page: what a map tells of it. */
const MAPPED_AS = new Uint8Array(Object.keys(KIND).length).fill(MAPPED.SENT)
MAPPED_AS[KIND.FILL] = MAPPED.EMPTY
for (const kind of [KIND.SAME, KIND.REF, KIND.COLD]) MAPPED_AS[kind] = MAPPED.KNOWN

/** A channel's parser, its records, and what the far side expects next. */
export class FlowEncoder implements StreamSink {
  readonly migration: number
  readonly stats = new BatchStats()
  /** Whether its pages are shown to the observer: a guest's memory, and not its disk. */
  isLearned = true
  /** The channel's parser; undefined: all of it is relayed as OTHER. */
  parser: ChannelParser | undefined
  /** Where it is noted which pages have passed: that of its migration. */
  map: MemoryMap | undefined

  /** Since the last batch, positions from `batchStart` on. */
  records = new RecordList()
  private spareRecords: RecordList | undefined
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
    if (start < this.batchStart) {
      // its first bytes went out raw while the source was idle: so does the rest
      this.map?.add(parserBlock, offset / PAGE_SIZE, 1, MAPPED.EMPTY)
      return
    }
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
    if (start < this.batchStart) {
      this.map?.add(parserBlock, offset / PAGE_SIZE, 1, MAPPED.SENT)
      return
    }
    if (offset >= OFFSET_END) return
    const block = this.ownBlock(parserBlock)
    if (block < 0) return
    this.add(RECORD.PAGE, start, end, block, offset / PAGE_SIZE, named)
  }

  opaquePage(block: number, offset: number): void {
    this.stats.opaquePages++
    this.map?.add(block, offset / PAGE_SIZE, 1, MAPPED.SENT)
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

  zeroPage(block: number, offset: number): void {
    this.stats.zeroPages++
    this.map?.add(block, offset / PAGE_SIZE, 1, MAPPED.EMPTY)
  }

  pageBody(start: number, end: number, block: number, offset: number): void {
    const isRaw = start < this.batchStart
    if (isRaw || this.packetRaw) {
      this.map?.add(block, offset / PAGE_SIZE, 1, MAPPED.SENT)
      if (!this.packetRaw) this.add(RECORD.PASS, end, end, 0, 0, false)
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

  /** What passes are messages of a disk. */
  get isDisk(): boolean {
    return this.exported.form > 0
  }

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

  /** Zero records in the ZEROS at this index. @param records default: those since the last batch */
  zeroCount(record: number, records = this.records): number {
    const { start, end, named, block } = records
    const length = end[record]! - start[record]!
    if (named[record] === 0) return length / 9
    return (length - 1 - this.prediction.names.at(block[record]!).length) / 9
  }

  // --- bytes

  /** Of what its parser was given so much went another way: it goes on behind that. Nothing of it may wait. */
  startAt(position: number): void {
    assert(this.waiting === 0, 'bytes that wait would be passed over')
    this.position = position
    this.batchStart = position
  }

  /** Takes `length` new bytes at `address`, which directly follow those not yet in a batch. */
  push(bytes: Uint8Array, address: number, length: number): void {
    this.position += length
    this.parser?.push(bytes, address, length)
  }

  /**
   * The first `length` of the bytes not yet in a batch are in one now, and their records.
   * @param kinds KIND of each page among them
   */
  batched(length: number, kinds: Uint8Array): void {
    this.finished(this.begun(length), kinds)
  }

  /** The first `length` of the bytes not yet in a batch are in one that is begun. @returns their records, until `finished` */
  begun(length: number): RecordList {
    const { records } = this
    this.records = this.spareRecords ?? new RecordList()
    this.spareRecords = undefined
    this.batchStart += length
    return records
  }

  /** What has become of these records is known. @param kinds KIND of each page among them */
  finished(records: RecordList, kinds: Uint8Array): void {
    const { map } = this
    if (map) this.enter(map, records, kinds)
    for (let last = records.count - 1; last >= 0; last--) {
      const kind = records.kind[last]
      if (kind === RECORD.PACKET || kind === RECORD.PASS || kind === RECORD.MESSAGE) continue
      const more = kind === RECORD.ZEROS ? this.zeroCount(last, records) - 1 : 0
      const block = this.parserBlocks[records.block[last]!]
      if (block !== undefined) this.place = { block, page: records.page[last]! + more } // else a disk's
      break
    }
    records.clear()
    this.spareRecords = records
  }

  /** Notes the pages of the records, by runs of those that became the same: test/bench/map-bench.ts has what it costs. */
  private enter(map: MemoryMap, records: RecordList, kinds: Uint8Array): void {
    const { parserBlocks } = this
    const { kind, start, end: behind, block, page, named, count } = records
    let runBlock = 0
    let runKind = -1
    let first = 0
    let end = 0
    let n = 0
    for (let i = 0; i < count; i++) {
      const record = kind[i]
      let pages = 1
      let became: number = MAPPED.EMPTY
      if (record === RECORD.PAGE || record === RECORD.BARE_PAGE) became = MAPPED_AS[kinds[n++]!]!
      else if (record === RECORD.ZEROS)
        pages = named[i] === 0 ? (behind[i]! - start[i]!) / 9 : this.zeroCount(i, records)
      else continue
      const at = page[i]!
      if (at === end && became === runKind && block[i] === runBlock) {
        end += pages
        continue
      }
      if (runKind >= 0) map.add(parserBlocks[runBlock]!, first, end - first, runKind)
      runBlock = block[i]!
      runKind = became
      first = at
      end = at + pages
    }
    if (runKind >= 0) map.add(parserBlocks[runBlock]!, first, end - first, runKind)
  }

  /**
   * What waits is nothing but whole messages that bring no block: it may go as it is, in no batch, and what the far side
   * expects of the next message stays as it was.
   */
  get isBare(): boolean {
    const { count, kind } = this.records
    for (let i = 0; i < count; i++) if (kind[i] !== RECORD.MESSAGE) return false
    return this.waiting > 0 && this.held === 0
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
