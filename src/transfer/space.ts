/**
 * Which stretches of a memory are taken. First fit from the start, so that what was touched and given back is used before
 * what no one has touched yet. Pure: it knows addresses, not the memory.
 */
import { assert } from '../errors.ts'

interface Stretch {
  readonly at: number
  readonly length: number
}

export class Space {
  private readonly from: number
  private readonly limit: number
  /** Stretches between taken ones, by address; no two touch each other, none touches `tail`. */
  private holes: Stretch[] = []
  /** From here to the limit nothing is taken. */
  private tail: number
  /** Where the highest stretch ended that was ever taken: what lies behind was never touched. */
  highest: number

  /** @param from,limit bytes that may be handed out: from <= at < limit */
  constructor(from: number, limit: number) {
    this.from = from
    this.tail = from
    this.highest = from
    this.limit = limit
  }

  /** Takes `length` bytes. @returns where they begin, or undefined where no stretch is that long */
  take(length: number): number | undefined {
    assert(length > 0, 'a stretch of no length')
    const i = this.holes.findIndex(hole => hole.length >= length)
    if (i >= 0) {
      const { at, length: whole } = this.holes[i]!
      if (whole === length) this.holes.splice(i, 1)
      else this.holes[i] = { at: at + length, length: whole - length }
      return at
    }
    if (this.tail + length > this.limit) return undefined
    const at = this.tail
    this.tail += length
    this.highest = Math.max(this.highest, this.tail)
    return at
  }

  /** Gives back what `take` handed out, whole. */
  give(at: number, length: number): void {
    let i = this.holes.findIndex(hole => hole.at > at)
    if (i < 0) i = this.holes.length
    const before = this.holes[i - 1]
    const after = this.holes[i]
    assert(
      at >= (before ? before.at + before.length : this.from) && at + length <= (after?.at ?? this.tail),
      'a stretch is given back that was not taken',
    )
    const joins = before !== undefined && before.at + before.length === at
    const from = joins ? before.at : at
    const to = after?.at === at + length ? after.at + after.length : at + length
    this.holes.splice(joins ? i - 1 : i, (joins ? 1 : 0) + (to === at + length ? 0 : 1))
    if (to === this.tail) this.tail = from
    else this.holes.splice(joins ? i - 1 : i, 0, { at: from, length: to - from })
  }
}
