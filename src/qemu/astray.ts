import { SECTION_SEARCH_BYTES_MAX, WRONG_WAYS_MAX } from '../limits.ts'
import type { RamRecordReader } from './ram-records.ts'
import { type KnownSections, type Trail, WayBack } from './way-back.ts'

/** Searches for the way back out of sections that cannot be read: why each began, and how far they may go. */
export class Astray {
  /** Where the stream was lost, and why. */
  lostAt = 0
  reason = ''
  /** A way back was found: from then on what is not understood may be the fault of that. */
  foundBack = false
  private readonly wayBack: WayBack
  private readonly told = new Set<number>()
  private bytesLeft = 0
  private wrongWays = 0

  constructor(records: RamRecordReader, known: KnownSections) {
    this.wayBack = new WayBack(records, known)
  }

  /** Bytes at the end of what was read that may be the head of a RAM record. */
  get pending(): number {
    return this.wayBack.pending
  }

  /** The way back, after {@link read}; undefined where none is certain yet. */
  get found(): Trail | undefined {
    return this.wayBack.found
  }

  /** So much was looked through that this search is over. */
  get exhausted(): boolean {
    return this.bytesLeft === 0
  }

  /** Begins a search with the next byte. @param ramId, footers as WayBack has them */
  begin(lostAt: number, reason: string, ramId: number, footers: boolean): void {
    this.lostAt = lostAt
    this.reason = reason
    this.bytesLeft = SECTION_SEARCH_BYTES_MAX
    this.wayBack.begin(ramId, footers)
  }

  /** As WayBack's, up to the end of the search. */
  read(chunk: Uint8Array, at: number, end: number, base: number): number {
    const next = this.wayBack.read(chunk, at, Math.min(end, at + this.bytesLeft), base)
    this.bytesLeft -= next - at
    if (this.found) this.foundBack = true
    return next
  }

  /** Whether this is the first time that the section is told of. */
  tellsOf(section: number): boolean {
    if (this.told.has(section)) return false
    this.told.add(section)
    return true
  }

  /** The way back was none. @returns whether another one may be looked for */
  wrongWay(): boolean {
    if (!this.foundBack || this.wrongWays === WRONG_WAYS_MAX) return false
    this.wrongWays++
    return true
  }
}
