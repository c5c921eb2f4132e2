/** The cold sets that a session agreed on: their pages are numbered from 0, one set behind the other. docs/protocol.md §5. */
import type { NumberedSets } from '../../codec/set-gains.ts'
import type { ColdSet } from '../../store/cold-set.ts'
import type { KeptBlocks } from './kept-blocks.ts'

/** What pages are read from: a set, or the blocks that the session has kept. */
export type ColdFile = Pick<
  ColdSet,
  | 'digest'
  | 'path'
  | 'pageCount'
  | 'fd'
  | 'positionOf'
  | 'isPage'
  | 'isProof'
  | 'read'
  | 'truncated'
  | 'unreadable'
  | 'damaged'
> &
  Partial<Pick<KeptBlocks, 'hasPage'>>

export class ColdList implements NumberedSets {
  readonly sets: readonly ColdSet[]
  readonly digests: readonly string[]
  /** Number of the first page of each set. */
  readonly starts: readonly number[]
  /** Pages of all. */
  readonly pages: number

  /** All that has pages with numbers: the sets, and behind them the kept blocks. */
  readonly files: readonly ColdFile[]
  /** Number of the first page of each, and pages of all. */
  readonly fileStarts: readonly number[]
  readonly filePages: number

  constructor(sets: readonly ColdSet[], kept?: KeptBlocks) {
    const starts: number[] = []
    let pages = 0
    for (const { pageCount } of sets) {
      starts.push(pages)
      pages += pageCount
    }
    this.sets = sets
    this.digests = sets.map(({ digest }) => digest)
    this.starts = starts
    this.pages = pages
    this.files = kept ? [...sets, kept] : sets
    this.fileStarts = kept ? [...starts, pages] : starts
    this.filePages = pages + (kept?.pageCount ?? 0)
  }

  /** Index of the file that has the page of this number, which is below `filePages`: of a set's page that of the set. */
  setOf(number: number): number {
    let low = 0
    const { fileStarts } = this
    for (let high = fileStarts.length - 1; low < high; ) {
      const middle = (low + high + 1) >> 1
      // sets without pages begin where the next one does: the last of them has it
      if (fileStarts[middle]! <= number) low = middle
      else high = middle - 1
    }
    return low
  }
}
