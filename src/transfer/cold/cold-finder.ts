/** The encoding side of cold sets: tells of a page which one it is. It reads no file: docs/adr/0010-cold-sets.md. */
import type { ColdPages } from '../../codec/cold-pages.ts'
import { PAGE_SIZE } from '../../codec/wire.ts'
import { BATCH_PAGES_MAX } from '../../codec/workspace.ts'
import { PROOF_WORDS, writeProof } from '../../store/cold-set.ts'
import type { ColdIndex } from './cold-index.ts'
import { DigestThreads } from './digest-threads.ts'
import type { KeptBlocks } from './kept-blocks.ts'
import type { NamedPages } from './named-pages.ts'

/** Misses in a row below which all pages are looked at. */
const MISSES_MIN = 256
/**
 * A look costs 3 us, so where none of the last pages was found only one in so many is looked at; the first that is found
 * brings all back. Known pages come in runs, so few are missed.
 */
const STRIDES = [
  { misses: 1024, stride: 16 },
  { misses: MISSES_MIN, stride: 4 },
] as const
/** Where nobody helps. */
const ALONE = new DigestThreads(0)

export class ColdFinder implements ColdPages {
  /** Pages looked at, and found. */
  looked = 0
  found = 0
  private readonly index: ColdIndex
  private readonly named: NamedPages | undefined
  private readonly digesters: DigestThreads
  private readonly kept: KeptBlocks | undefined
  private readonly proofs = new Uint32Array(BATCH_PAGES_MAX * PROOF_WORDS)
  /** Of pages that are digested together: where in their batch they stand, and where in memory. */
  private readonly places = new Uint16Array(BATCH_PAGES_MAX)
  private readonly addresses = new Uint32Array(BATCH_PAGES_MAX)
  /** Pages looked at since the last that was found, and those that are not looked at now. */
  private misses = 0
  private skip = 0
  /** Number of the page behind the last that was found: most come in runs, and a table of them is one cache miss after the other. */
  private next = 0

  /**
   * @param named is told of each page that is found
   * @param digesters who digest together with this thread; by default nobody
   * @param kept further pages, numbered behind those of the index
   */
  constructor(index: ColdIndex, named?: NamedPages, digesters = ALONE, kept?: KeptBlocks) {
    this.index = index
    this.named = named
    this.digesters = digesters
    this.kept = kept
  }

  get setPages(): number {
    return this.index.pages
  }

  get isEmpty(): boolean {
    return this.index.pages === 0 && (this.kept?.count ?? 0) === 0
  }

  find(bytes: Uint8Array, pages: Uint32Array, unknown: Uint8Array, numbers: Uint32Array, migration: number): boolean {
    const before = this.found
    for (let page = 0; page < pages.length; page++) {
      if (unknown[page] === 0) continue
      if (this.misses < MISSES_MIN) {
        this.findFrom(page, bytes, pages, unknown, numbers, migration)
        break
      }
      if (this.skip > 0) {
        this.skip--
        unknown[page] = 0
        continue
      }
      // a view costs less than a copy of the page, and digesting makes a string anyway
      writeProof(bytes.subarray(pages[page]!, pages[page]! + PAGE_SIZE), this.proofs, 0)
      this.look(0, page, unknown, numbers, migration)
    }
    return this.found > before
  }

  /** Looks at all that is unknown from `first` on. */
  private findFrom(
    first: number,
    bytes: Uint8Array,
    pages: Uint32Array,
    unknown: Uint8Array,
    numbers: Uint32Array,
    migration: number,
  ): void {
    const { places, addresses, proofs, digesters } = this
    let count = 0
    for (let page = first; page < pages.length; page++) {
      if (unknown[page] === 0) continue
      places[count] = page
      addresses[count++] = pages[page]!
    }
    digesters.digest(bytes, addresses, count, proofs)
    for (let i = 0; i < count; i++) this.look(i, places[i]!, unknown, numbers, migration)
  }

  private numberOf(at: number): number {
    const { index, kept, proofs, next } = this
    if (index.has(next, proofs, at)) return next
    const number = index.pages === 0 ? -1 : index.find(proofs, at)
    if (number >= 0 || kept === undefined) return number
    const place = kept.find(proofs, at)
    return place < 0 ? -1 : index.pages + place
  }

  /** Looks whether the proof of this index is that of a cold page; it is of this page of its batch. */
  private look(proof: number, page: number, unknown: Uint8Array, numbers: Uint32Array, migration: number): void {
    this.looked++
    const number = this.numberOf(proof * PROOF_WORDS)
    if (number >= 0) {
      this.next = number + 1
      this.found++
      this.named?.add(number, migration)
      this.misses = 0
      this.skip = 0
      numbers[page] = number
      return
    }
    unknown[page] = 0
    this.misses++
    for (const { misses, stride } of STRIDES) {
      if (this.misses < misses) continue
      this.skip = stride - 1
      break
    }
  }
}
