/**
 * What each template set brings to a migration: pages that it had whole, and parts of others. Counted at both sides where
 * pages are found or copied anyway, by runs of a batch and not for each page by itself; nothing of it is on the wire.
 */
import { KIND } from '../kernel/kernel.ts'
import type { BatchCounts } from './stats.ts'
import { PAGE_SIZE } from './wire.ts'

/** Sets whose pages are numbered from 0, one set behind the other: in the pool's slots, or on the disk. */
export interface NumberedSets {
  readonly digests: readonly string[]
  /** Number of each set's first page. */
  readonly starts: readonly number[]
  /** Pages of all. */
  readonly pages: number
}

/** What a set brought. Plain data. */
export interface SetGain {
  /** Its digest. */
  readonly set: string
  /** Pages of the guest that it had whole. */
  readonly pages: number
  /** Bytes of the guest that came out of it, parts of other pages counted; not packed. */
  readonly bytes: number
}

/** What sets brought in both directions of a disk transfer, the most first. */
export function allGains(one: readonly SetGain[], other: readonly SetGain[]): readonly SetGain[] {
  if (one.length === 0 || other.length === 0) return one.length === 0 ? other : one
  const sum = new Map(one.map(gain => [gain.set, gain]))
  for (const { set, pages, bytes } of other) {
    const before = sum.get(set)
    sum.set(set, { set, pages: pages + (before?.pages ?? 0), bytes: bytes + (before?.bytes ?? 0) })
  }
  return [...sum.values()].sort((a, b) => b.bytes - a.bytes)
}

interface Gain {
  pages: number
  bytes: number
}

/** By index of the set: those in the pool first, then those on the disk. */
type Tally = Map<number, Gain>

/** A set's stretch of numbers, looked up last: pages of a set come together. */
class Stretch {
  readonly sets: NumberedSets
  /** Index of its first set in a tally. */
  private readonly first: number
  from = 0
  to = 0
  set = 0

  constructor(sets: NumberedSets, first: number) {
    this.sets = sets
    this.first = first
  }

  /** Finds the set that has this page, which is below `pages`. */
  find(number: number): void {
    if (number >= this.from && number < this.to) return
    const { starts, pages } = this.sets
    let low = 0
    for (let high = starts.length - 1; low < high; ) {
      const middle = (low + high + 1) >> 1
      // sets without pages begin where the next one does: the last of them has it
      if (starts[middle]! <= number) low = middle
      else high = middle - 1
    }
    this.from = starts[low]!
    this.to = starts[low + 1] ?? pages
    this.set = this.first + low
  }
}

/** Of one session. */
export class SetGains {
  private readonly hot: Stretch
  private readonly cold: Stretch | undefined
  private readonly tallies = new Map<number, Tally>()
  private tally: Tally | undefined
  private readonly digests: readonly string[]

  /** @param hot sets in the pool, @param cold on the disk */
  constructor(hot: NumberedSets, cold: NumberedSets | undefined) {
    this.hot = new Stretch(hot, 0)
    this.cold = cold && new Stretch(cold, hot.digests.length)
    this.digests = [...hot.digests, ...(cold?.digests ?? [])]
  }

  /** A migration has begun: what batches of others bring is nobody's. */
  open(migration: number): void {
    if (!this.tallies.has(migration)) this.tallies.set(migration, new Map())
  }

  /** The next batch is of this migration. */
  begin(migration: number): void {
    this.tally = this.tallies.get(migration)
  }

  /** It is over. @returns what each set brought to it, the most first; none that brought nothing */
  take(migration: number): SetGain[] {
    const tally = this.tallies.get(migration)
    this.tallies.delete(migration)
    if (this.tally === tally) this.tally = undefined
    const gains = Array.from(tally ?? [], ([set, gain]) => ({ set: this.digests[set]!, ...gain }))
    return gains.sort((a, b) => b.bytes - a.bytes)
  }

  /** Pages out of the pool, in a row from a slot of its sets on. */
  references(slot: number, count: number): void {
    this.row(this.hot, slot, count)
  }

  /** Pages of sets on the disk, likewise. */
  coldPages(number: number, count: number): void {
    if (!this.cold) return
    const ofSets = Math.min(count, this.cold.sets.pages - number) // behind them are blocks of disks
    if (ofSets > 0) this.row(this.cold, number, ofSets)
  }

  /** Parts of a page. @param at where its tokens are, as the kernel writes them */
  parts(bytes: Uint8Array, at: number, tokens: number): void {
    const { hot } = this
    const setBytes = hot.sets.pages * PAGE_SIZE
    for (let token = at; token < at + tokens * 8; token += 8) {
      const copy = bytes[token + 2]! | (bytes[token + 3]! << 8)
      if (copy === 0) continue
      const source =
        (bytes[token + 4]! | (bytes[token + 5]! << 8) | (bytes[token + 6]! << 16) | (bytes[token + 7]! << 24)) >>> 0
      if (source >= setBytes) continue
      hot.find(Math.floor(source / PAGE_SIZE))
      this.add(hot.set, 0, copy)
    }
  }

  /**
   * A batch was encoded.
   * @param counts what became of it
   * @param kinds,answers of its pages, as the kernel gave them
   * @param coldNumbers of those that are on the disk
   * @param bytes,tokensAt where the tokens are of pages made of parts
   */
  encoded(
    counts: BatchCounts,
    kinds: Uint8Array,
    answers: Uint32Array,
    coldNumbers: Uint32Array,
    bytes: Uint8Array,
    tokensAt: number,
  ): void {
    const { templatePages, patchPages, coldPages } = counts
    if (templatePages + patchPages + coldPages === 0 || this.tally === undefined) return
    const { hot, cold } = this
    // one set in memory is what most have
    const isOne = hot.sets.digests.length === 1
    if (isOne && templatePages > 0) this.add(0, templatePages, templatePages * PAGE_SIZE)
    if (isOne && patchPages + coldPages === 0) return
    let at = tokensAt
    for (let page = 0; page < kinds.length; page++) {
      const kind = kinds[page]
      if (kind === KIND.REF) {
        if (isOne || answers[page]! >= hot.sets.pages) continue
        hot.find(answers[page]!)
        const first = page
        while (page + 1 < kinds.length && kinds[page + 1] === KIND.REF && isIn(hot, answers[page + 1]!)) page++
        this.add(hot.set, page + 1 - first, (page + 1 - first) * PAGE_SIZE)
      } else if (kind === KIND.COLD && cold) {
        if (coldNumbers[page]! >= cold.sets.pages) continue
        cold.find(coldNumbers[page]!)
        const first = page
        while (page + 1 < kinds.length && kinds[page + 1] === KIND.COLD && isIn(cold, coldNumbers[page + 1]!)) page++
        this.add(cold.set, page + 1 - first, (page + 1 - first) * PAGE_SIZE)
      } else if (kind === KIND.PATCH) {
        this.parts(bytes, at, answers[page]!)
        at += answers[page]! * 8
      }
    }
  }

  private row(stretch: Stretch, number: number, count: number): void {
    for (let done = 0; done < count; ) {
      stretch.find(number + done)
      const n = Math.min(count - done, stretch.to - number - done)
      this.add(stretch.set, n, n * PAGE_SIZE)
      done += n
    }
  }

  private add(set: number, pages: number, bytes: number): void {
    const { tally } = this
    if (tally === undefined) return
    const gain = tally.get(set)
    if (gain) {
      gain.pages += pages
      gain.bytes += bytes
    } else tally.set(set, { pages, bytes })
  }
}

function isIn({ from, to }: Stretch, number: number): boolean {
  return number >= from && number < to
}
