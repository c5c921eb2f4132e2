/** The cold sets that a session agreed on: their pages are numbered from 0, one set behind the other. docs/protocol.md §5. */
import type { NumberedSets } from '../../codec/set-gains.ts'
import type { ColdSet } from '../../store/cold-set.ts'

export class ColdList implements NumberedSets {
  readonly sets: readonly ColdSet[]
  readonly digests: readonly string[]
  /** Number of the first page of each set. */
  readonly starts: readonly number[]
  /** Pages of all. */
  readonly pages: number

  constructor(sets: readonly ColdSet[]) {
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
  }

  /** Index of the set that has the page of this number, which is below `pages`. */
  setOf(number: number): number {
    let low = 0
    for (let high = this.starts.length - 1; low < high; ) {
      const middle = (low + high + 1) >> 1
      // sets without pages begin where the next one does: the last of them has it
      if (this.starts[middle]! <= number) low = middle
      else high = middle - 1
    }
    return low
  }
}
