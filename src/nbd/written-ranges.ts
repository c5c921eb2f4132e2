/** Which writes of a connection are not settled, by where they are in the export: what a later request has to wait for. */

/** Ranges are kept by the granules that they touch; a mirror's writes after *ready* are of this size. */
const GRANULE = 65536
/** Those that touch more are looked at one by one: WRITE_ZEROES and TRIM of many MiB. */
const GRANULES_MAX = 32

export interface WrittenRange {
  readonly offset: number
  /** Behind its last byte. */
  readonly end: number
}

export function overlap(a: WrittenRange, b: WrittenRange): boolean {
  return a.offset < b.end && b.offset < a.end
}

export class WrittenRanges<R extends WrittenRange> {
  private readonly granules = new Map<number, Set<R>>()
  private readonly wide = new Set<R>()
  private readonly all = new Set<R>()

  add(range: R): void {
    this.all.add(range)
    if (isWide(range)) {
      this.wide.add(range)
      return
    }
    for (let granule = first(range); granule <= last(range); granule++) {
      const there = this.granules.get(granule)
      if (there) there.add(range)
      else this.granules.set(granule, new Set([range]))
    }
  }

  delete(range: R): void {
    this.all.delete(range)
    if (isWide(range)) {
      this.wide.delete(range)
      return
    }
    for (let granule = first(range); granule <= last(range); granule++) {
      const there = this.granules.get(granule)
      if (there?.delete(range) && there.size === 0) this.granules.delete(granule)
    }
  }

  /** Those that have a byte in common with `range`, each once, but no more than `most`. */
  overlapping(range: WrittenRange, most: number): Set<R> {
    const found = new Set<R>()
    const look = (others: Iterable<R>): boolean => {
      for (const other of others) {
        if (overlap(range, other)) found.add(other)
        if (found.size === most) return false
      }
      return true
    }
    if (isWide(range)) {
      look(this.all)
      return found
    }
    if (!look(this.wide)) return found
    for (let granule = first(range); granule <= last(range); granule++) {
      if (!look(this.granules.get(granule) ?? [])) break
    }
    return found
  }
}

function first({ offset }: WrittenRange): number {
  return Math.floor(offset / GRANULE)
}

/** One of no bytes touches its granule too, and overlaps nothing. */
function last({ offset, end }: WrittenRange): number {
  return Math.floor(Math.max(offset, end - 1) / GRANULE)
}

function isWide(range: WrittenRange): boolean {
  return last(range) - first(range) >= GRANULES_MAX
}
