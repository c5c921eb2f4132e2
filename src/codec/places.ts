/** Where pages are in the pool: its two regions, and the table of places. docs/protocol.md §5. */
import { PLACE_BLOCK_STEP, PLACE_MIGRATION_STEP } from './wire.ts'

/** 0: template sets, 1: the session's ring. */
export type Region = 0 | 1

/** Index of a place in the session's table. `places` is a power of two. */
export function placeIndex(migration: number, block: number, page: number, places: number): number {
  const salt = (Math.imul(block, PLACE_BLOCK_STEP) + Math.imul(migration, PLACE_MIGRATION_STEP)) >>> 0
  return ((page % 4294967296) + salt) % places
}

/** The slots of each region. */
export class PoolRegions {
  readonly templatePages: number
  /** Slots of both. */
  readonly pages: number

  constructor(templatePages: number, ringPages: number) {
    this.templatePages = templatePages
    this.pages = templatePages + ringPages
  }

  /** The region that a slot lies in. */
  of(slot: number): Region {
    return slot >= this.templatePages ? 1 : 0
  }

  /** Whether `count` slots from `slot` on all lie in a region. */
  hold(region: Region, slot: number, count: number): boolean {
    const from = region === 0 ? 0 : this.templatePages
    const to = region === 0 ? this.templatePages : this.pages
    return slot >= from && slot + count <= to
  }
}
