/** The encoding side of cold sets: tells of a page which one it is. It reads no file: docs/adr/0010-cold-sets.md. */
import type { ColdPages } from '../../codec/cold-pages.ts'
import { PAGE_SIZE } from '../../codec/wire.ts'
import { PROOF_WORDS, writeProof } from '../../store/cold-set.ts'
import type { ColdIndex } from './cold-index.ts'
import type { NamedPages } from './named-pages.ts'

/**
 * A look costs 3 us, so where none of the last pages was found only one in so many is looked at; the first that is found
 * brings all back. Known pages come in runs, so few are missed.
 */
const STRIDES = [
  { misses: 1024, stride: 16 },
  { misses: 256, stride: 4 },
] as const

export class ColdFinder implements ColdPages {
  /** Pages looked at, and found. */
  looked = 0
  found = 0
  private readonly index: ColdIndex
  private readonly named: NamedPages | undefined
  private readonly proof = new Uint32Array(PROOF_WORDS)
  /** Pages looked at since the last that was found, and those that are not looked at now. */
  private misses = 0
  private skip = 0

  /** @param named is told of each page that is found */
  constructor(index: ColdIndex, named?: NamedPages) {
    this.index = index
    this.named = named
  }

  find(bytes: Uint8Array, at: number, migration: number): number {
    if (this.skip > 0) {
      this.skip--
      return -1
    }
    this.looked++
    // a view costs less than a copy of the page, and digesting makes a string anyway
    writeProof(bytes.subarray(at, at + PAGE_SIZE), this.proof, 0)
    const number = this.index.find(this.proof, 0)
    if (number >= 0) {
      this.found++
      this.named?.add(number, migration)
      this.misses = 0
      return number
    }
    this.misses++
    for (const { misses, stride } of STRIDES) {
      if (this.misses < misses) continue
      this.skip = stride - 1
      break
    }
    return number
  }
}
