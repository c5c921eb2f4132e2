/**
 * Memory that one batch needs while it is made or expanded: raw columns and the kernel's lists, all in the kernel's
 * memory, so that compression workers reach them by address. Made once when a session opens and used in turn.
 */
import { assert } from '../errors.ts'
import { RUN } from '../kernel/kernel.ts'
import { BATCH_RAW_MAX, COLUMN, COLUMN_COUNT, PACKET_HEADER_SIZE, PAGE_SIZE } from './wire.ts'

/** Pages that one batch can hold. */
export const BATCH_PAGES_MAX = BATCH_RAW_MAX / PAGE_SIZE

/** Bytes of the column cold (protocol): at worst each page is a run, of a varint for where and a byte for how many. */
const COLD_BYTES_MAX = BATCH_PAGES_MAX * 16

/** Worst case of a column, for a batch of BATCH_RAW_MAX bytes: a record of 9 bytes costs at most SEEK, BLOCK and itself. */
const CAPACITY: readonly number[] = (() => {
  const capacity = new Array<number>(COLUMN_COUNT).fill(0)
  capacity[COLUMN.OPS] = BATCH_RAW_MAX
  capacity[COLUMN.NUMBERS] = 2 * BATCH_RAW_MAX
  capacity[COLUMN.OTHER] = BATCH_RAW_MAX + 65536 // names of RAMBlocks come on top
  capacity[COLUMN.PAGES] = BATCH_RAW_MAX
  capacity[COLUMN.DENSE] = BATCH_RAW_MAX
  capacity[COLUMN.LENGTHS] = BATCH_RAW_MAX
  capacity[COLUMN.SOURCES] = BATCH_RAW_MAX
  capacity[COLUMN.SHIFTS] = BATCH_RAW_MAX
  capacity[COLUMN.HEADERS] = BATCH_RAW_MAX + PACKET_HEADER_SIZE
  capacity[COLUMN.WORDS] = BATCH_RAW_MAX
  capacity[COLUMN.COLD] = COLD_BYTES_MAX
  return capacity
})()

const LIST_BYTES = BATCH_PAGES_MAX * 4
/** Runs of pages that are listed before the kernel gives them. */
export const RUNS_MAX = LIST_BYTES / (RUN.WORDS * 4)
const TOKEN_AREA = BATCH_RAW_MAX

/** Bytes that one workspace takes; committed only as they are touched. */
export const WORKSPACE_BYTES =
  CAPACITY.reduce((sum, n) => sum + n, 0) + 4 * LIST_BYTES + TOKEN_AREA + BATCH_RAW_MAX + 8192

/** Addresses (bytes in the kernel's memory) of one batch's areas, and how much of each column is filled. */
export class Workspace {
  /** All of the kernel's memory. */
  readonly bytes: Uint8Array
  /** Start of each column. */
  readonly columnAt: number[]
  /** Bytes in each column. */
  readonly columnLength: Int32Array
  readonly listAt: number
  readonly placesAt: number
  readonly kindsAt: number
  readonly slotsAt: number
  readonly tokensAt: number
  /**
   * Room for BATCH_RAW_MAX bytes. On the encoding side a compressor may put there what it makes of a column; on the
   * expanding side the pages are fetched to it that the column `cold` names.
   */
  readonly packedAt: number
  /** How many pages were fetched: reset when a batch is unpacked. */
  fetchedPages = 0
  readonly checksumAt: number
  /** 64 bytes for who looks on as batches pass: learning. */
  readonly observerAt: number
  /** On the expanding side, in place of the kernel's lists: room for RUNS_MAX runs of `expandRuns`. */
  readonly runsAt: number
  /** Start of each column where nobody says otherwise. */
  private readonly ownAt: readonly number[]

  constructor(bytes: Uint8Array, at: number) {
    this.bytes = bytes
    let next = at
    const take = (length: number): number => {
      const start = next
      next += Math.ceil(length / 64) * 64
      return start
    }
    this.ownAt = CAPACITY.map(take)
    this.columnAt = [...this.ownAt]
    this.columnLength = new Int32Array(COLUMN_COUNT)
    this.listAt = take(LIST_BYTES)
    this.runsAt = this.listAt
    this.placesAt = take(LIST_BYTES)
    this.kindsAt = take(LIST_BYTES)
    this.slotsAt = take(LIST_BYTES)
    this.tokensAt = take(TOKEN_AREA)
    this.packedAt = take(BATCH_RAW_MAX)
    this.checksumAt = take(64)
    this.observerAt = take(64)
    assert(next - at <= WORKSPACE_BYTES, 'a workspace is larger than it says')
  }

  /** Empties all columns, for the next batch that is expanded. */
  clear(): void {
    const { ownAt, columnAt } = this
    for (let column = 0; column < ownAt.length; column++) columnAt[column] = ownAt[column]!
    this.columnLength.fill(0)
    this.fetchedPages = 0
  }

  /** A column of the batch at hand lies elsewhere in the same memory: it was unpacked before its turn. */
  lay(column: number, at: number, length: number): void {
    this.columnAt[column] = at
    this.columnLength[column] = length
  }

  /** View of what a column holds; valid until the workspace is used again. */
  column(column: number): Uint8Array {
    const at = this.columnAt[column]!
    return this.bytes.subarray(at, at + this.columnLength[column]!)
  }

  /** Bytes that a column can hold. */
  static capacity(column: number): number {
    return CAPACITY[column]!
  }
}
