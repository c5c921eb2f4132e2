/**
 * The loop that turns records into operations: docs/protocol.md §4 to §7. Pure: bytes lie in the kernel's memory, a batch
 * comes out as raw columns in a workspace (`BatchWriter`); src/compression packs them.
 *
 * A `FlowEncoder` follows one channel, a `BatchEncoder` the session's shared pool. Batches must reach the far side in the
 * order in which they were made.
 */
import { assert } from '../errors.ts'
import { type Kernel, KIND, MATCH, NONE, RESULT } from '../kernel/kernel.ts'
import { BatchWriter, EXTENDED_RUN } from './batch-writer.ts'
import type { ColdPages, KeptPages } from './cold-pages.ts'
import { DiskMessages } from './disk-messages.ts'
import type { FlowEncoder } from './flow-encoder.ts'
import type { PageObserver } from './observer.ts'
import { PoolRegions, placeIndex, REGION } from './places.ts'
import { RECORD, type RecordList } from './records.ts'
import type { SetGains } from './set-gains.ts'
import { BatchCounts } from './stats.ts'
import { zigzag } from './varint.ts'
import { BATCH_RAW_MAX, COLUMN, EXTENDED, OP, PAGE_SIZE } from './wire.ts'
import { BATCH_PAGES_MAX, type Workspace } from './workspace.ts'

/** Where the bytes of a batch lie in the kernel's memory. */
export interface Stretch {
  readonly at: number
  readonly length: number
}

/** Looks for parts of pages on several threads: for those that `matchPages` has left for later of `count` pages. */
export interface PartFinder {
  /**
   * Has other threads begin with it. What was begun before is finished.
   * @param options bits of MATCH that count for them
   * @param isAhead pages of another batch may enter the ring before it is finished
   * @returns false: nothing was begun, as that could be more than the ring bears
   */
  beginParts(workspace: Workspace, count: number, options: number, isAhead: boolean): boolean
  /** Finishes what was begun. */
  finishParts(workspace: Workspace, count: number): void
}

/** A batch of which is known which pages the pool has as a whole: `BatchEncoder.begin`. */
export interface BegunBatch {
  readonly flow: FlowEncoder
  readonly records: RecordList
  /** Stream position of its first byte. */
  readonly position: number
  readonly base: number
  readonly rawLength: number
  readonly workspace: Workspace
  readonly longMatch: number
  readonly keep: boolean
  /** Bits of MATCH for pages that were left for later; undefined: none were. */
  readonly later: number | undefined
  /** Pages of others may enter the ring before it is settled. */
  isAhead: boolean
  denseBytes: number
  wordsPages: number
}

/** Without MATCH.SPARSE one position in so many leads to parts of pages. */
const SAMPLED_ONE_IN = 32

/** KIND of each page of a raw batch, for the map. */
const ALL_NEW = new Uint8Array(BATCH_PAGES_MAX).fill(KIND.NEW)

/** By KIND of a page: whether it is one that stands nowhere in the pool as a whole. */
const IS_NEW = new Uint8Array(Object.keys(KIND).length)
for (const kind of [KIND.NEW, KIND.NEW_DENSE, KIND.PATCH, KIND.WORDS]) IS_NEW[kind] = 1

/** Shared by all flows of a session: makes batches into workspaces. */
export class BatchEncoder {
  private readonly kernel: Kernel
  private readonly seedLo: number
  private readonly seedHi: number
  private readonly regions: PoolRegions
  observer: PageObserver | undefined
  /** Who knows what the far side has on its disk. */
  cold: ColdPages | undefined
  /** Who looks for parts of pages beside this thread; undefined: it does all. */
  finder: PartFinder | undefined
  /** Who keeps blocks of disks; undefined: nobody does. */
  kept: KeptPages | undefined
  /** Who counts what sets bring. */
  gains: SetGains | undefined
  /** By index of the page in its batch: the cold page that it is, where it is one. */
  private readonly coldNumbers = new Uint32Array(BATCH_PAGES_MAX)
  /** Where the blocks of a batch lie that are kept. */
  private readonly keptAddresses = new Uint32Array(BATCH_PAGES_MAX)
  private readonly columns: BatchWriter
  private refRegion = 0
  private lag = 0

  /** @param seed of the batch checksum, two u32 */
  constructor(kernel: Kernel, seedLo: number, seedHi: number) {
    this.kernel = kernel
    this.seedLo = seedLo
    this.seedHi = seedHi
    this.regions = PoolRegions.of(kernel.layout)
    this.columns = new BatchWriter(kernel.bytes, this.regions)
  }

  /**
   * Makes one batch of the first bytes that the flow has waiting: whole records, and where an incomplete one is among
   * them it goes as OTHER, and so does its rest. Fills the workspace's columns and its checksum.
   * @param from all of the flow's whole records at least; its bytes are needed until this returns
   * @param longMatch one position in so many leads to parts of pages, 32 or 128; 0: whole pages alone are looked for
   * @param useCold pages may be named that the far side has to read from its disk
   * @param keep new blocks of a disk are kept by both sides
   * @returns what became of its bytes
   */
  encode(
    flow: FlowEncoder,
    from: Stretch,
    workspace: Workspace,
    longMatch: number,
    useCold = true,
    keep = false,
  ): BatchCounts {
    const batch = this.begin(flow, from, workspace, longMatch, useCold, keep)
    this.settle(batch)
    return this.write(batch)
  }

  /** The first of three steps of `encode`: what has an order among batches and pages. */
  begin(
    flow: FlowEncoder,
    from: Stretch,
    workspace: Workspace,
    longMatch: number,
    useCold = true,
    keep = false,
  ): BegunBatch {
    const { at: base, length: rawLength } = from
    assert(rawLength > 0 && rawLength <= BATCH_RAW_MAX, 'a batch is empty or too large')
    assert(flow.records.pages <= BATCH_PAGES_MAX, 'more pages than a batch can hold')
    this.kernel.checksum(base, rawLength, this.seedLo, this.seedHi, workspace.checksumAt)
    const position = flow.batchStart
    const records = flow.begun(rawLength)
    const later = this.match(flow, records, base, workspace, longMatch, useCold)
    const { result } = this.kernel
    return {
      flow,
      records,
      position,
      base,
      rawLength,
      workspace,
      longMatch,
      keep,
      later,
      isAhead: false,
      denseBytes: records.pages === 0 ? 0 : result[RESULT.DENSE_BYTES]!,
      wordsPages: records.pages === 0 ? 0 : result[RESULT.KIND_COUNT + KIND.WORDS]!,
    }
  }

  /**
   * Has other threads look for parts of its pages, while the next batch is begun. All before it are settled.
   * @returns false: it has to be finished before another one is begun
   */
  lookAhead(batch: BegunBatch): boolean {
    const { later, workspace, records } = batch
    if (later === undefined || this.finder === undefined || this.cold?.isEmpty === false) return false
    batch.isAhead = this.finder.beginParts(workspace, records.pages, later, true)
    return batch.isAhead
  }

  /** The second step: what becomes of pages that were left for later. In the order of the batches. */
  settle(batch: BegunBatch): void {
    const { later, workspace, records, isAhead } = batch
    if (later === undefined) return
    const { finder } = this
    const { result } = this.kernel
    if (!isAhead) finder!.beginParts(workspace, records.pages, later, false)
    // the kernel goes on counting, behind whatever batch was begun last
    const wordsBefore = result[RESULT.KIND_COUNT + KIND.WORDS]!
    result[RESULT.DENSE_BYTES] = 0
    finder!.finishParts(workspace, records.pages)
    batch.denseBytes += result[RESULT.DENSE_BYTES]!
    batch.wordsPages += result[RESULT.KIND_COUNT + KIND.WORDS]! - wordsBefore
  }

  /** The third: its columns. In the order of the batches. @returns what became of its bytes */
  write(batch: BegunBatch): BatchCounts {
    const { flow, base, rawLength, workspace, longMatch, keep, records } = batch
    const { columns } = this
    const { bytes } = columns
    workspace.clear() // a raw batch may have laid a column elsewhere
    // without long matches a page in the ring brings too little: it would be found in its set again
    const coldRun = EXTENDED_RUN + (longMatch > 0 ? EXTENDED.COLD : EXTENDED.COLD_ONCE)
    columns.begin(workspace)
    const { prediction } = flow
    const observer = flow.isLearned ? this.observer : undefined
    const { count: recordCount, pages } = records

    let at = 0 // bytes of the batch that are described
    let page = 0 // index into the kernel's answers
    let pagesAt = workspace.columnAt[COLUMN.PAGES]!
    let tokenAt = workspace.tokensAt
    const kinds = bytes.subarray(workspace.kindsAt, workspace.kindsAt + pages)
    const answers = new Uint32Array(bytes.buffer, workspace.slotsAt, pages) // slot, byte, lag or tokens, by kind
    const before = new Uint32Array(bytes.buffer, workspace.placesAt, pages) // matchPages wrote it
    const stats = new BatchCounts()
    if (keep && this.kept && flow.isDisk) this.keep(this.kept, workspace, kinds)
    for (let i = 0; i < recordCount; i++) {
      const start = records.start[i]!
      const end = records.end[i]!
      const kind = records.kind[i]!
      if (start > at) {
        columns.copyOther(base + at, start - at)
        stats.other += start - at
      }
      at = end
      if (kind === RECORD.PASS) {
        columns.run(OP.PASS, 1)
        continue
      }
      if (kind === RECORD.PACKET) {
        columns.header(base + start)
        stats.heads += end - start
        continue
      }
      if (kind === RECORD.MESSAGE) {
        this.message(flow, base + start, records.page[i]!, records.block[i]!)
        stats.heads += end - start
        continue
      }
      if (kind === RECORD.BARE_PAGE) {
        prediction.block = records.block[i]!
        prediction.page = records.page[i]! // the packet's header or the message says where
      } else this.goTo(flow, records.block[i]!, records.page[i]!, records.named[i] === 1)
      if (kind === RECORD.ZEROS) {
        const count = flow.zeroCount(i, records)
        columns.run(OP.ZERO, count)
        prediction.page += count
        stats.zeroPages += count
        stats.heads += end - start
        continue
      }
      stats.heads += end - start - PAGE_SIZE
      const answer = answers[page]!
      switch (kinds[page]) {
        case KIND.FILL:
          if (answer === 0 && prediction.messages) {
            columns.run(OP.ZERO, 1)
            stats.zeroPages++
            break
          }
          columns.run(OP.FILL, 1)
          columns.number(answer)
          stats.fillPages++
          break
        case KIND.SAME:
          columns.run(OP.SAME, 1)
          stats.samePages++
          break
        case KIND.REF: {
          const region = this.regions.regionOf(answer)
          if (columns.runKind !== OP.REF || answer !== prediction.next[region] || this.refRegion !== region) {
            columns.endRun()
            this.refRegion = region
            columns.number(this.regions.encode(region, answer - prediction.next[region]!))
          }
          columns.run(OP.REF, 1)
          prediction.next[region] = answer + 1
          if (region === REGION.TEMPLATES) stats.templatePages++
          else stats.earlierPages++
          break
        }
        case KIND.COLD:
          columns.run(coldRun, 1)
          columns.coldPage(prediction, this.coldNumbers[page]!)
          if (this.coldNumbers[page]! < this.cold!.setPages) stats.coldPages++
          else stats.earlierPages++ // a block that was kept
          break
        case KIND.NEW:
          columns.run(OP.NEW, 1)
          pagesAt += PAGE_SIZE
          stats.newPages++
          break
        case KIND.WORDS:
          if (columns.runKind !== OP.WORDS || answer !== this.lag) {
            columns.endRun()
            this.lag = answer
            columns.number(answer)
          }
          columns.run(OP.WORDS, 1)
          stats.newPages++
          break
        case KIND.NEW_DENSE:
          columns.run(OP.DENSE, 1)
          stats.densePages++
          break
        default: {
          assert(kinds[page] === KIND.PATCH, 'the kernel answered with an unknown kind')
          columns.run(OP.PATCH, 1)
          const literal = columns.patch(prediction, tokenAt, answer, before[page]!)
          tokenAt += answer * 8
          pagesAt += literal
          stats.patchPages++
          stats.patchLiteral += literal
        }
      }
      if (observer && this.isLearned(kinds[page]!, answer)) observer.page(base + end - PAGE_SIZE, prediction.page)
      prediction.page++
      page++
    }
    observer?.batch(flow.migration, batch.position, base, rawLength)
    if (at < rawLength) {
      columns.copyOther(base + at, rawLength - at)
      stats.other += rawLength - at
    }
    columns.endRun()
    columns.endColdRun(prediction)
    columns.finish(pagesAt, batch.denseBytes, batch.wordsPages * PAGE_SIZE)
    stats.rawBytes += rawLength
    stats.batches++
    this.gains?.encoded(stats, kinds, answers, this.coldNumbers, bytes, workspace.tokensAt)
    flow.finished(records, kinds)
    return stats
  }

  /**
   * Makes a raw batch of them: the same bytes as they are, but for the headers of packets, which the far side has to know. No
   * page is looked at, and no pool changes: what a place had stays its entry, on both sides. Of a disk there are none.
   * Without headers the column *other* is lent: it lies where the flow's bytes lie, which are needed until it is packed.
   */
  pass(flow: FlowEncoder, from: Stretch, workspace: Workspace): BatchCounts {
    const { at: base, length: rawLength } = from
    assert(rawLength > 0 && rawLength <= BATCH_RAW_MAX && !flow.isDisk, 'a raw batch is empty, too large or of a disk')
    const { columns } = this
    workspace.clear() // a column may lie elsewhere
    columns.begin(workspace)
    this.kernel.checksum(base, rawLength, this.seedLo, this.seedHi, workspace.checksumAt)
    const stats = new BatchCounts()
    const packets = this.passRecords(flow, base, rawLength, stats)
    if (packets === 0) columns.run(OP.OTHER, rawLength)
    columns.endRun()
    columns.finish(workspace.columnAt[COLUMN.PAGES]!, 0, 0)
    if (packets === 0) workspace.lay(COLUMN.OTHER, base, rawLength)
    if (flow.isLearned) this.observer?.batch(flow.migration, flow.batchStart, base, rawLength)
    stats.rawBytes += rawLength
    stats.batches++
    flow.batched(rawLength, ALL_NEW)
    return stats
  }

  /** Says of a raw batch what the far side must know, and counts. @returns headers of packets; where there are any, all is said */
  private passRecords(flow: FlowEncoder, base: number, rawLength: number, stats: BatchCounts): number {
    const { columns } = this
    const { count, kind, start, end } = flow.records
    let packets = 0
    let described = 0
    stats.other += rawLength
    for (let i = 0; i < count; i++) {
      const record = kind[i]!
      if (record === RECORD.BARE_PAGE || record === RECORD.PASS) columns.run(OP.PASS, 1)
      const length = end[i]! - start[i]!
      stats.other -= length
      if (record === RECORD.PACKET) {
        packets++
        columns.copyOther(base + described, start[i]! - described)
        columns.header(base + start[i]!)
        described = end[i]!
        stats.heads += length
      } else if (record === RECORD.ZEROS) {
        stats.zeroPages += flow.zeroCount(i)
        stats.heads += length
      } else if (record !== RECORD.PASS) {
        stats.rawPages++
        stats.heads += length - PAGE_SIZE
      }
    }
    if (packets > 0) columns.copyOther(base + described, rawLength - described)
    return packets
  }

  /** Whether the far side sees this page as one that is in no set: SAME says nothing of its content there. */
  private isLearned(kind: number, answer: number): boolean {
    if (kind === KIND.COLD) return false
    return kind > KIND.SAME && (kind !== KIND.REF || this.regions.regionOf(answer) !== REGION.TEMPLATES)
  }

  /** Asks the kernel about every page of the batch. @returns BegunBatch.later */
  private match(
    flow: FlowEncoder,
    { kind, end, block, page, count, pages }: RecordList,
    base: number,
    workspace: Workspace,
    longMatch: number,
    useCold: boolean,
  ): number | undefined {
    if (pages === 0) return undefined
    const { buffer } = this.kernel.bytes
    const list = new Uint32Array(buffer, workspace.listAt, pages)
    const places = new Uint32Array(buffer, workspace.placesAt, pages)
    const placeCount = this.kernel.layout.places
    let n = 0
    for (let i = 0; i < count; i++) {
      if (kind[i] !== RECORD.PAGE && kind[i] !== RECORD.BARE_PAGE) continue
      list[n] = base + end[i]! - PAGE_SIZE
      places[n] = placeCount === 0 ? NONE : placeIndex(flow.migration, block[i]!, page[i]!, placeCount)
      n++
    }
    const sparse = longMatch > SAMPLED_ONE_IN ? MATCH.SPARSE : 0
    const finder = longMatch > 0 ? this.finder : undefined
    const cold = useCold && this.cold?.isEmpty === false && this.findCold(this.cold, workspace, list, flow.migration)
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
      (longMatch > 0 ? MATCH.LONG | MATCH.WORDS : MATCH.COLD_ONCE) |
        sparse |
        (cold ? MATCH.COLD : 0) |
        (finder ? MATCH.LATER : 0),
    )
    return finder ? MATCH.WORDS | sparse : undefined
  }

  /** Says in the list of kinds which pages are cold ones. @returns whether there are any */
  private findCold(cold: ColdPages, workspace: Workspace, list: Uint32Array, migration: number): boolean {
    const { kernel } = this
    const { kindsAt, listAt } = workspace
    kernel.unknownPages(listAt, list.length, kindsAt)
    const unknown = kernel.bytes.subarray(kindsAt, kindsAt + list.length)
    return cold.find(kernel.bytes, list, unknown, this.coldNumbers, migration)
  }

  /** Says that the new blocks of this batch are kept, where there are any. */
  private keep(kept: KeptPages, workspace: Workspace, kinds: Uint8Array): void {
    const { columns, keptAddresses } = this
    const list = new Uint32Array(columns.bytes.buffer, workspace.listAt, kinds.length)
    let count = 0
    for (let page = 0; page < kinds.length; page++) if (IS_NEW[kinds[page]!]) keptAddresses[count++] = list[page]!
    if (count === 0) return
    columns.run(EXTENDED_RUN + EXTENDED.KEEP, 1)
    columns.endRun()
    kept.keep(columns.bytes, keptAddresses, count)
  }

  /** A message of a disk. @param offset,dataBytes of its data */
  private message(flow: FlowEncoder, at: number, offset: number, dataBytes: number): void {
    const { prediction, exported } = flow
    const { columns } = this
    if (prediction.messages === undefined) {
      columns.export(exported.form, exported.block)
      prediction.messages = new DiskMessages()
      prediction.messages.begin(exported.form, exported.block)
    }
    columns.run(EXTENDED_RUN + EXTENDED.MESSAGE, 1)
    prediction.messages.say(columns.bytes, at, offset, dataBytes, columns)
  }

  /** Makes the prediction of the next record head true. */
  private goTo(flow: FlowEncoder, block: number, page: number, named: boolean): void {
    const { prediction } = flow
    const { columns } = this
    if (named || block !== prediction.block) {
      this.define(flow, block)
      columns.run(OP.BLOCK, named ? 1 : 2)
      columns.endRun()
      columns.number(block)
      prediction.block = block
      prediction.page = 0
    }
    const delta = page - prediction.page
    if (delta === 0) return
    if (delta > 0 && delta < 256) {
      columns.run(OP.SKIP, delta)
      columns.endRun()
    } else {
      columns.run(OP.SEEK, 1)
      columns.endRun()
      columns.number(zigzag(delta))
    }
    prediction.page = page
  }

  /** Makes all names up to `block` known at the far side. */
  private define(flow: FlowEncoder, block: number): void {
    const { columns } = this
    while (flow.defined <= block) {
      const name = flow.prediction.names.at(flow.defined)
      columns.run(OP.DEFINE, 1)
      columns.endRun()
      columns.name(name)
      flow.defined++
    }
  }
}
