/** Where pages are in the pool: its regions, and the table of places. docs/protocol.md §5. */
import { unzigzag, zigzag } from './varint.ts'
import { PLACE_BLOCK_STEP, PLACE_MIGRATION_STEP } from './wire.ts'

/** Regions of the pool, in the order of their slots. */
export const REGION = {
  /** Pages of the agreed template sets. */
  TEMPLATES: 0,
  /** The session's ring. */
  RING: 1,
} as const

/** Index of a place in the session's table. `places` is a power of two. */
export function placeIndex(migration: number, block: number, page: number, places: number): number {
  // bits and no remainders: those of numbers beyond 31 bits are divided in floating point, once or twice a page
  const salt = Math.imul(block, PLACE_BLOCK_STEP) + Math.imul(migration, PLACE_MIGRATION_STEP)
  return ((page + salt) & (places - 1)) >>> 0
}

/** The slots of each region, and how the wire names a slot by its region. */
export class PoolRegions {
  /** First slot of each region. */
  readonly starts: readonly number[]
  /** Slots of all. */
  readonly pages: number
  private readonly count: number

  /** @param sizes slots of each region */
  constructor(sizes: readonly number[]) {
    const starts: number[] = []
    let pages = 0
    for (const size of sizes) {
      starts.push(pages)
      pages += size
    }
    this.starts = starts
    this.pages = pages
    this.count = sizes.length
  }

  /** Those of a session that has these pages. */
  static of({ templatePages, ringPages }: { readonly templatePages: number; readonly ringPages: number }): PoolRegions {
    return new PoolRegions([templatePages, ringPages])
  }

  /** The region that a slot lies in. */
  regionOf(slot: number): number {
    let region = this.count - 1
    while (region > 0 && slot < this.starts[region]!) region--
    return region
  }

  /** Whether `count` slots from `slot` on all lie in a region. */
  hold(region: number, slot: number, count: number): boolean {
    return slot >= this.starts[region]! && slot + count <= (this.starts[region + 1] ?? this.pages)
  }

  /** The number that stands for a slot which is `delta` further than the one that was expected in its region. */
  encode(region: number, delta: number): number {
    return zigzag(delta) * this.count + region
  }

  /** The region in such a number. */
  regionIn(number: number): number {
    return number % this.count
  }

  /** How much further than expected the slot in such a number is. */
  deltaIn(number: number): number {
    return unzigzag(Math.floor(number / this.count))
  }
}
