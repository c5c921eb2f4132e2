/**
 * The columns of a batch that is encoded, each written from its start to its end: docs/protocol.md §4. Operations and cold
 * pages gather in runs, which are written when something else comes.
 */
import { copyRange } from '../bytes/copy.ts'
import { assert } from '../errors.ts'
import { NONE } from '../kernel/kernel.ts'
import { transposeHeaders } from './packet-headers.ts'
import type { PoolRegions } from './places.ts'
import type { Prediction } from './prediction.ts'
import { writeVarint, zigzag } from './varint.ts'
import { COLUMN, EXTENDED, OP, PACKET_HEADER_SIZE, PAGE_SIZE } from './wire.ts'
import type { Workspace } from './workspace.ts'

/** Kinds of runs from here on are extended operations. */
export const EXTENDED_RUN = 16

export class BatchWriter {
  readonly bytes: Uint8Array
  private readonly words: Uint32Array
  private readonly regions: PoolRegions
  private workspace!: Workspace
  /** Addresses of each column's next byte. */
  private ops = 0
  private numbers = 0
  private other = 0
  private lengths = 0
  private sources = 0
  private shifts = 0
  private headers = 0
  private cold = 0
  /** The run of operations that goes on: 0 where there is none. */
  runKind = 0
  private runCount = 0
  /** The run of cold pages that goes on. */
  private coldFirst = 0
  private coldCount = 0

  /** @param bytes the kernel's memory, where workspaces lie */
  constructor(bytes: Uint8Array, regions: PoolRegions) {
    this.bytes = bytes
    this.words = new Uint32Array(bytes.buffer)
    this.regions = regions
  }

  /** Begins at the start of a workspace's columns. */
  begin(workspace: Workspace): void {
    this.workspace = workspace
    const at = workspace.columnAt
    this.ops = at[COLUMN.OPS]!
    this.numbers = at[COLUMN.NUMBERS]!
    this.other = at[COLUMN.OTHER]!
    this.lengths = at[COLUMN.LENGTHS]!
    this.sources = at[COLUMN.SOURCES]!
    this.shifts = at[COLUMN.SHIFTS]!
    this.headers = at[COLUMN.HEADERS]!
    this.cold = at[COLUMN.COLD]!
    this.coldCount = 0
    this.runKind = 0
    this.runCount = 0
  }

  /**
   * Says how long each column became; the batch's runs have been ended.
   * @param pagesAt where the kernel's pages and literal bytes end
   * @param denseBytes in the column that the kernel wrote, as `wordsBytes`
   */
  finish(pagesAt: number, denseBytes: number, wordsBytes: number): void {
    const { columnAt, columnLength } = this.workspace
    columnLength[COLUMN.OPS] = this.ops - columnAt[COLUMN.OPS]!
    columnLength[COLUMN.NUMBERS] = this.numbers - columnAt[COLUMN.NUMBERS]!
    columnLength[COLUMN.OTHER] = this.other - columnAt[COLUMN.OTHER]!
    columnLength[COLUMN.PAGES] = pagesAt - columnAt[COLUMN.PAGES]!
    columnLength[COLUMN.DENSE] = denseBytes
    columnLength[COLUMN.WORDS] = wordsBytes
    columnLength[COLUMN.LENGTHS] = this.lengths - columnAt[COLUMN.LENGTHS]!
    columnLength[COLUMN.SOURCES] = this.sources - columnAt[COLUMN.SOURCES]!
    columnLength[COLUMN.SHIFTS] = this.shifts - columnAt[COLUMN.SHIFTS]!
    columnLength[COLUMN.HEADERS] = this.headers - columnAt[COLUMN.HEADERS]!
    columnLength[COLUMN.COLD] = this.cold - columnAt[COLUMN.COLD]!
    if (columnLength[COLUMN.HEADERS]! > 0) transposeHeaders(this.bytes, columnAt[COLUMN.HEADERS]!, this.headers)
  }

  /** Adds to the current run of operations, or begins one. @param kind one of OP, or EXTENDED_RUN + one of EXTENDED */
  run(kind: number, count: number): void {
    if (this.runKind !== kind) {
      this.endRun()
      this.runKind = kind
    }
    this.runCount += count
  }

  /** Writes the operation of the current run. */
  endRun(): void {
    const count = this.runCount
    if (count === 0) return
    const kind = this.runKind < EXTENDED_RUN ? this.runKind << 4 : 0
    if (count < 16) this.bytes[this.ops++] = kind | count
    else {
      this.bytes[this.ops++] = kind
      this.ops = writeVarint(this.bytes, this.ops, count - 16)
    }
    if (this.runKind >= EXTENDED_RUN) this.bytes[this.ops++] = this.runKind - EXTENDED_RUN
    this.runKind = 0
    this.runCount = 0
  }

  number(value: number): void {
    this.numbers = writeVarint(this.bytes, this.numbers, value)
  }

  copyOther(address: number, length: number): void {
    if (length === 0) return
    this.run(OP.OTHER, length)
    copyRange(this.bytes, address, address + length, this.bytes, this.other)
    this.other += length
  }

  /** Columns of one PATCH page out of the kernel's tokens; `before`: its place's slot, or NONE. @returns its literal bytes */
  patch(prediction: Prediction, tokenAt: number, count: number, before: number): number {
    const { bytes, words } = this
    const { next } = prediction
    let lengths = this.lengths
    let literalBytes = 0
    let q = 0
    let displacement = before === NONE ? Number.NaN : before * PAGE_SIZE
    let lastRegion = -1
    for (let i = 0; i < count; i++) {
      const token = words[(tokenAt >>> 2) + 2 * i]! // two u16, little-endian as WebAssembly has them
      const literal = token & 0xffff
      const copy = token >>> 16
      const source = words[(tokenAt >>> 2) + 2 * i + 1]!
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

  /** A block's name: its length, and it. */
  name(name: string): void {
    this.number(name.length)
    for (let i = 0; i < name.length; i++) this.bytes[this.other++] = name.charCodeAt(i)
  }

  /** The header of a multifd packet at this address. */
  header(address: number): void {
    this.run(OP.PACKET, 1)
    this.endRun()
    copyRange(this.bytes, address, address + PACKET_HEADER_SIZE, this.bytes, this.headers)
    this.headers += PACKET_HEADER_SIZE
  }

  /** An EXPORT. */
  export(form: number, block: number): void {
    this.run(EXTENDED_RUN + EXTENDED.EXPORT, 1)
    this.endRun()
    this.number(form)
    this.number(block)
  }

  /** Adds a page to the current run of cold pages, or begins one. */
  coldPage(prediction: Prediction, number: number): void {
    if (number !== this.coldFirst + this.coldCount || this.coldCount === 0) {
      this.endColdRun(prediction)
      this.coldFirst = number
    }
    this.coldCount++
  }

  endColdRun(prediction: Prediction): void {
    if (this.coldCount === 0) return
    this.cold = writeVarint(this.bytes, this.cold, zigzag(this.coldFirst - prediction.cold))
    this.cold = writeVarint(this.bytes, this.cold, this.coldCount - 1)
    prediction.cold = this.coldFirst + this.coldCount
    this.coldCount = 0
  }
}
