/**
 * Pages of sets that stay on the disk, as a batch names them: docs/protocol.md §5, §6. They are numbered by themselves, one
 * agreed set behind the other. The encoder is told of a page which it is; the expanding side fetches all that a batch names
 * before it expands anything of it.
 */
import { ProxyError } from '../errors.ts'
import type { Prediction } from './prediction.ts'
import { unzigzag, VarintReader } from './varint.ts'
import { COLUMN, PAGE_SIZE } from './wire.ts'
import { BATCH_PAGES_MAX, type Workspace } from './workspace.ts'

/** Who knows the pages of a session's cold sets. */
export interface ColdPages {
  /** There is none yet, or none at all. */
  readonly isEmpty: boolean
  /** Pages of sets; those with higher numbers have passed in this session. */
  readonly setPages: number
  /**
   * Says which of these pages are cold ones, proven.
   * @param pages address in `bytes` of the PAGE_SIZE bytes of each
   * @param unknown 1 for those to look for; becomes 0 for those that are none, or were not looked for
   * @param numbers gets the number of each that is one
   * @param migration whose pages they are, by number
   * @returns whether there are any
   */
  find(bytes: Uint8Array, pages: Uint32Array, unknown: Uint8Array, numbers: Uint32Array, migration: number): boolean
}

/** Blocks of disks that a side keeps beyond the ring: docs/adr/0025-kept-blocks.md. Both sides count them alike. */
export interface KeptPages {
  /** The next `count` of them. @param addresses where in `bytes` they lie, as long as this runs */
  keep(bytes: Uint8Array, addresses: Uint32Array, count: number): void
}

/** The runs of one batch: what its column `cold` says. */
export class ColdRuns {
  /** Number of the first page of each run, and how many pages it has. */
  readonly first = new Uint32Array(BATCH_PAGES_MAX)
  readonly count = new Int32Array(BATCH_PAGES_MAX)
  /** Runs, and pages of all. */
  length = 0
  pages = 0
  private readonly numbers = new VarintReader('cold')

  /**
   * Reads the column.
   * @param prediction of the flow: goes on behind the last run
   * @param rawLength of the batch, which bounds the pages
   * @param coldPages pages of all agreed cold sets
   * @throws BATCH_FORMAT
   */
  read(workspace: Workspace, prediction: Prediction, rawLength: number, coldPages: number): void {
    const at = workspace.columnAt[COLUMN.COLD]!
    this.numbers.reset(workspace.bytes, at, at + workspace.columnLength[COLUMN.COLD]!)
    this.length = 0
    this.pages = 0
    const pagesMax = Math.floor(rawLength / PAGE_SIZE)
    while (!this.numbers.done) {
      const first = prediction.cold + unzigzag(this.numbers.next())
      const count = this.numbers.next() + 1
      if (count > pagesMax - this.pages) throw bad(`names more than the ${pagesMax} pages that its batch can hold`)
      if (first < 0 || first + count > coldPages) throw bad(`names page ${first} of ${coldPages}`)
      this.first[this.length] = first
      this.count[this.length++] = count
      this.pages += count
      prediction.cold = first + count
    }
  }
}

function bad(what: string): ProxyError {
  return new ProxyError(
    'BATCH_FORMAT',
    `the column cold ${what}`,
    { stream: 'column cold', offset: 0 },
    'the session ends and the source guest goes on; both proxies must run versions that fit',
  )
}
