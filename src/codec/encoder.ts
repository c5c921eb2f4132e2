/**
 * The loop that turns records into operations: docs/protocol.md §4 to §7. Pure: bytes lie in the kernel's memory, a batch
 * comes out as raw columns in a workspace; src/compression packs them.
 *
 * A `FlowEncoder` follows one channel, a `BatchEncoder` the session's shared pool. Batches must reach the far side in the
 * order in which they were made.
 */
import { assert } from '../errors.ts'
import { type Kernel, KIND, MATCH, NONE, RESULT } from '../kernel/kernel.ts'
import type { ColdPages } from './cold-pages.ts'
import type { FlowEncoder } from './flow-encoder.ts'
import type { PageObserver } from './observer.ts'
import { transposeHeaders } from './packet-headers.ts'
import { PoolRegions, placeIndex, REGION } from './places.ts'
import type { Prediction } from './prediction.ts'
import { RECORD } from './records.ts'
import { BatchStats } from './stats.ts'
import { writeVarint, zigzag } from './varint.ts'
import { BATCH_RAW_MAX, COLUMN, EXTENDED, OP, PACKET_HEADER_SIZE, PAGE_SIZE } from './wire.ts'
import { BATCH_PAGES_MAX, type Workspace } from './workspace.ts'

/** Where the bytes of a batch lie in the kernel's memory. */
export interface Stretch {
  readonly at: number
  readonly length: number
}

/** Shared by all flows of a session: makes batches into workspaces. */
export class BatchEncoder {
  private readonly kernel: Kernel
  private readonly seedLo: number
  private readonly seedHi: number
  private readonly regions: PoolRegions
  observer: PageObserver | undefined
  /** Who knows what the far side has on its disk. */
  cold: ColdPages | undefined
  /** By index of the page in its batch: the cold page that it is, where it is one. */
  private readonly coldNumbers = new Float64Array(BATCH_PAGES_MAX)
  /** The run that goes on, and where the column is. */
  private coldFirst = 0
  private coldCount = 0
  private coldAt = 0

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
    this.regions = PoolRegions.of(kernel.layout)
  }

  /**
   * Makes one batch of the first bytes that the flow has waiting: whole records, and where an incomplete one is among
   * them it goes as OTHER, and so does its rest. Fills the workspace's columns and its checksum.
   * @param from all of the flow's whole records at least; its bytes are needed until this returns
   * @param useCold pages may be named that the far side has to read from its disk
   * @returns what became of its bytes
   */
  encode(flow: FlowEncoder, from: Stretch, workspace: Workspace, longMatch: boolean, useCold = true): BatchStats {
    const { at: base, length: rawLength } = from
    assert(rawLength > 0 && rawLength <= BATCH_RAW_MAX, 'a batch is empty or too large')
    this.begin(workspace)
    const { records, prediction } = flow
    const { count: recordCount, pages } = records
    assert(pages <= BATCH_PAGES_MAX, 'more pages than a batch can hold')
    this.kernel.checksum(base, rawLength, this.seedLo, this.seedHi, workspace.checksumAt)
    this.match(flow, base, longMatch, useCold)

    let at = 0 // bytes of the batch that are described
    let page = 0 // index into the kernel's answers
    let pagesAt = workspace.columnAt[COLUMN.PAGES]!
    let tokenAt = workspace.tokensAt
    const kinds = this.bytes.subarray(workspace.kindsAt, workspace.kindsAt + pages)
    const answers = new Uint32Array(this.bytes.buffer, workspace.slotsAt, pages) // slot, byte, lag or tokens, by kind
    const before = new Uint32Array(this.bytes.buffer, workspace.placesAt, pages) // matchPages wrote it
    const stats = new BatchStats()
    for (let i = 0; i < recordCount; i++) {
      const start = records.start[i]!
      const end = records.end[i]!
      const kind = records.kind[i]!
      if (start > at) {
        this.copyOther(base + at, start - at)
        stats.other += start - at
      }
      at = end
      if (kind === RECORD.PASS) {
        this.run(OP.PASS, 1)
        continue
      }
      if (kind === RECORD.PACKET) {
        this.run(OP.PACKET, 1)
        this.endRun()
        this.bytes.copyWithin(this.headers, base + start, base + end)
        this.headers += PACKET_HEADER_SIZE
        stats.heads += end - start
        continue
      }
      if (kind === RECORD.BARE_PAGE) {
        prediction.block = records.block[i]!
        prediction.page = records.page[i]! // the packet's header says where
      } else this.goTo(flow, records.block[i]!, records.page[i]!, records.named[i] === 1)
      if (kind === RECORD.ZEROS) {
        const count = flow.zeroCount(i)
        this.run(OP.ZERO, count)
        prediction.page += count
        stats.zeroPages += count
        stats.heads += end - start
        continue
      }
      stats.heads += end - start - PAGE_SIZE
      const answer = answers[page]!
      switch (kinds[page]) {
        case KIND.FILL:
          this.run(OP.FILL, 1)
          this.number(answer)
          stats.fillPages++
          break
        case KIND.SAME:
          this.run(OP.SAME, 1)
          stats.samePages++
          break
        case KIND.REF: {
          const region = this.regions.regionOf(answer)
          if (this.runKind !== OP.REF || answer !== prediction.next[region] || this.refRegion !== region) {
            this.endRun()
            this.refRegion = region
            this.number(this.regions.encode(region, answer - prediction.next[region]!))
          }
          this.run(OP.REF, 1)
          prediction.next[region] = answer + 1
          if (region === REGION.TEMPLATES) stats.templatePages++
          else stats.earlierPages++
          break
        }
        case KIND.COLD:
          this.run(OP.EXTENDED, 1)
          this.coldPage(prediction, this.coldNumbers[page]!)
          stats.coldPages++
          break
        case KIND.NEW:
          this.run(OP.NEW, 1)
          pagesAt += PAGE_SIZE
          stats.newPages++
          break
        case KIND.WORDS:
          if (this.runKind !== OP.WORDS || answer !== this.lag) {
            this.endRun()
            this.lag = answer
            this.number(answer)
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
          const literal = this.patch(prediction, tokenAt, answer, before[page]!)
          tokenAt += answer * 8
          pagesAt += literal
          stats.patchPages++
          stats.patchLiteral += literal
        }
      }
      if (this.observer && this.isLearned(kinds[page]!, answer))
        this.observer.page(base + end - PAGE_SIZE, prediction.page)
      prediction.page++
      page++
    }
    this.observer?.batch(flow.migration, flow.batchStart, base, rawLength)
    if (at < rawLength) {
      this.copyOther(base + at, rawLength - at)
      stats.other += rawLength - at
    }
    this.endRun()
    this.endColdRun(prediction)
    this.finish(pagesAt)
    stats.rawBytes += rawLength
    stats.batches++
    flow.batched(rawLength)
    return stats
  }

  /** Whether the far side sees this page as one that is in no set: SAME says nothing of its content there. */
  private isLearned(kind: number, answer: number): boolean {
    if (kind === KIND.COLD) return false
    return kind > KIND.SAME && (kind !== KIND.REF || this.regions.regionOf(answer) !== REGION.TEMPLATES)
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
    this.coldAt = at[COLUMN.COLD]!
    this.coldCount = 0
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
    columnLength[COLUMN.COLD] = this.coldAt - columnAt[COLUMN.COLD]!
    if (columnLength[COLUMN.HEADERS]! > 0) transposeHeaders(this.bytes, columnAt[COLUMN.HEADERS]!, this.headers)
  }

  private denseBytes = 0
  private wordsBytes = 0

  /** Asks the kernel about every page of the batch. */
  private match(flow: FlowEncoder, base: number, longMatch: boolean, useCold: boolean): void {
    const { workspace } = this
    const { kind, end, block, page, count, pages } = flow.records
    this.denseBytes = 0
    this.wordsBytes = 0
    if (pages === 0) return
    const list = new Uint32Array(this.bytes.buffer, workspace.listAt, pages)
    const places = new Uint32Array(this.bytes.buffer, workspace.placesAt, pages)
    const placeCount = this.kernel.layout.places
    let n = 0
    for (let i = 0; i < count; i++) {
      if (kind[i] !== RECORD.PAGE && kind[i] !== RECORD.BARE_PAGE) continue
      list[n] = base + end[i]! - PAGE_SIZE
      places[n] = placeCount === 0 ? NONE : placeIndex(flow.migration, block[i]!, page[i]!, placeCount)
      n++
    }
    const cold = useCold && this.cold !== undefined && this.findCold(this.cold, list)
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
      (longMatch ? MATCH.LONG | MATCH.WORDS : 0) | (cold ? MATCH.COLD : 0),
    )
    this.denseBytes = this.kernel.result[RESULT.DENSE_BYTES]!
    this.wordsBytes = this.kernel.result[RESULT.KIND_COUNT + KIND.WORDS]! * PAGE_SIZE
  }

  /** Says in the list of kinds which pages are cold ones. @returns whether there are any */
  private findCold(cold: ColdPages, list: Uint32Array): boolean {
    const { bytes, coldNumbers } = this
    const { kindsAt, listAt } = this.workspace
    this.kernel.unknownPages(listAt, list.length, kindsAt)
    let found = false
    for (let i = 0; i < list.length; i++) {
      if (bytes[kindsAt + i] === 0) continue
      const number = cold.find(bytes, list[i]!)
      if (number < 0) bytes[kindsAt + i] = 0
      else {
        coldNumbers[i] = number
        found = true
      }
    }
    return found
  }

  /** Adds a page to the current run of cold pages, or begins one. */
  private coldPage(prediction: Prediction, number: number): void {
    if (number !== this.coldFirst + this.coldCount || this.coldCount === 0) {
      this.endColdRun(prediction)
      this.coldFirst = number
    }
    this.coldCount++
  }

  private endColdRun(prediction: Prediction): void {
    if (this.coldCount === 0) return
    this.coldAt = writeVarint(this.bytes, this.coldAt, zigzag(this.coldFirst - prediction.cold))
    this.coldAt = writeVarint(this.bytes, this.coldAt, this.coldCount - 1)
    prediction.cold = this.coldFirst + this.coldCount
    this.coldCount = 0
  }

  /** Makes the prediction of the next record head true. */
  private goTo(flow: FlowEncoder, block: number, page: number, named: boolean): void {
    const { prediction } = flow
    if (named || block !== prediction.block) {
      this.define(flow, block)
      this.run(OP.BLOCK, named ? 1 : 2)
      this.endRun()
      this.number(block)
      prediction.block = block
      prediction.page = 0
    }
    const delta = page - prediction.page
    if (delta === 0) return
    if (delta > 0 && delta < 256) {
      this.run(OP.SKIP, delta)
      this.endRun()
    } else {
      this.run(OP.SEEK, 1)
      this.endRun()
      this.number(zigzag(delta))
    }
    prediction.page = page
  }

  /** Makes all names up to `block` known at the far side. */
  private define(flow: FlowEncoder, block: number): void {
    while (flow.defined <= block) {
      const name = flow.prediction.names.at(flow.defined)
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
    if (this.runKind === OP.EXTENDED) this.bytes[this.ops++] = EXTENDED.COLD
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
  private patch(prediction: Prediction, tokenAt: number, count: number, before: number): number {
    const bytes = this.bytes
    const { next } = prediction
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
        const region = this.regions.regionOf(slot)
        this.sources = writeVarint(bytes, this.sources, 1 + this.regions.encode(region, slot - next[region]!))
        this.shifts = writeVarint(bytes, this.shifts, source % PAGE_SIZE)
        next[region] = slot
        lastRegion = region
        displacement = source - q
      }
      q += copy
    }
    assert(q === PAGE_SIZE, 'the tokens of a page do not make a page')
    if (lastRegion >= 0) next[lastRegion]!++
    this.lengths = lengths
    return literalBytes
  }
}
