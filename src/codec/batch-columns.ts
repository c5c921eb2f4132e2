/** The columns of a batch that is expanded, each read from its start to its end: docs/protocol.md §4. */
import type { FlowExpander } from './flow-expander.ts'
import { restoreHeaders } from './packet-headers.ts'
import { VarintReader } from './varint.ts'
import { COLUMN, PACKET_HEADER_SIZE, PAGE_SIZE } from './wire.ts'
import type { Workspace } from './workspace.ts'

/** A column of bytes. */
export class ByteColumn {
  /** Address of the next byte. */
  at = 0
  private end = 0
  private readonly name: string

  /** @param name for errors */
  constructor(name: string) {
    this.name = name
  }

  reset(at: number, end: number): void {
    this.at = at
    this.end = end
  }

  /** Bytes that were not taken yet. */
  get left(): number {
    return this.end - this.at
  }

  /** Takes the next `length` bytes. @returns their address. @throws BATCH_FORMAT */
  take(length: number, flow: FlowExpander): number {
    const { at } = this
    if (length > this.end - at) throw flow.bad(`the column ${this.name} ends early`)
    this.at = at + length
    return at
  }
}

/** All columns but the operations. */
export class BatchColumns {
  readonly numbers = new VarintReader('numbers')
  readonly lengths = new VarintReader('lengths')
  readonly sources = new VarintReader('sources')
  readonly shifts = new VarintReader('shifts')
  readonly other = new ByteColumn('other')
  readonly pages = new ByteColumn('pages')
  readonly dense = new ByteColumn('dense')
  readonly words = new ByteColumn('words')
  readonly headers = new ByteColumn('headers')
  /** Not a column: the pages that the column `cold` names, which somebody has fetched. */
  readonly fetched = new ByteColumn('cold')

  /** Begins at the start of what a workspace holds. @throws BATCH_FORMAT */
  begin(workspace: Workspace, flow: FlowExpander): void {
    const { bytes, columnAt, columnLength, packedAt, fetchedPages } = workspace
    const end = (column: number): number => columnAt[column]! + columnLength[column]!
    this.numbers.reset(bytes, columnAt[COLUMN.NUMBERS]!, end(COLUMN.NUMBERS))
    this.lengths.reset(bytes, columnAt[COLUMN.LENGTHS]!, end(COLUMN.LENGTHS))
    this.sources.reset(bytes, columnAt[COLUMN.SOURCES]!, end(COLUMN.SOURCES))
    this.shifts.reset(bytes, columnAt[COLUMN.SHIFTS]!, end(COLUMN.SHIFTS))
    this.other.reset(columnAt[COLUMN.OTHER]!, end(COLUMN.OTHER))
    this.pages.reset(columnAt[COLUMN.PAGES]!, end(COLUMN.PAGES))
    this.dense.reset(columnAt[COLUMN.DENSE]!, end(COLUMN.DENSE))
    this.words.reset(columnAt[COLUMN.WORDS]!, end(COLUMN.WORDS))
    this.headers.reset(columnAt[COLUMN.HEADERS]!, end(COLUMN.HEADERS))
    this.fetched.reset(packedAt, packedAt + fetchedPages * PAGE_SIZE)
    if (columnLength[COLUMN.COLD]! > 0 && fetchedPages === 0) {
      throw flow.bad('pages of cold sets, of which none were agreed')
    }
    if (columnLength[COLUMN.HEADERS]! % PACKET_HEADER_SIZE !== 0) {
      throw flow.bad('the column headers ends within a header')
    }
    if (this.headers.left > 0) restoreHeaders(bytes, this.headers.at, end(COLUMN.HEADERS))
  }

  /** Whether all of all of them was taken. */
  get used(): boolean {
    return (
      this.numbers.done &&
      this.lengths.done &&
      this.sources.done &&
      this.shifts.done &&
      this.other.left === 0 &&
      this.pages.left === 0 &&
      this.dense.left === 0 &&
      this.words.left === 0 &&
      this.headers.left === 0 &&
      this.fetched.left === 0
    )
  }
}
