/** What a migration may still need, told once while it runs. */
import type { BatchStats } from '../codec/stats.ts'
import { PAGE_SIZE } from '../codec/wire.ts'
import type { BlockTable } from '../qemu/block-table.ts'

/** A guest's memory is looked at in so many parts; what the first half of them needed tells of the other. */
const PARTS = 16
/** The first part is the firmware's and the kernel's: nothing else is like it. */
const PART_FROM = 1
const PART_AT = PARTS / 2

/** From the least to the most. */
export type Range = readonly [number, number]

/**
 * What a migration may need, told halfway through the guest's memory: as if all that is left were like the part that
 * needed least so far, or like the one that needed most. One pass: what the guest writes meanwhile comes on top, and
 * memory unlike all that has passed is outside of it.
 */
export interface Forecast {
  /** When it was made, and at which effort. */
  readonly atSeconds: number
  readonly effort: number
  readonly seconds: Range
  readonly bytesIn: Range
  readonly bytesWan: Range
}

/** What had passed at some point of a migration. */
interface Point {
  /** Of the guest's pages. */
  readonly share: number
  readonly seconds: number
  readonly bytesIn: number
  readonly bytesWan: number
}

/** Sees a migration pass until it can tell how it may go on. */
export class Forecaster {
  private pages = 0
  private readonly points: Point[] = []
  private done = false

  /**
   * Call after each batch, with the counts of all channels. `ms`: since the migration's start.
   * @returns the forecast, once
   */
  update(blocks: BlockTable, counts: () => BatchStats, ms: number, effort: number): Forecast | undefined {
    if (this.done || !blocks.complete) return undefined
    if (this.pages === 0) {
      for (let block = 0; block < blocks.size; block++) this.pages += blocks.lengthBytes(block) / PAGE_SIZE
      if (this.pages === 0) return undefined
    }
    const stats = counts()
    const share = pagesOf(stats) / this.pages
    const { points } = this
    if (share < (PART_FROM + points.length) / PARTS) return undefined
    points.push({ share, seconds: ms / 1000, bytesIn: stats.rawBytes, bytesWan: stats.packedBytes })
    if (share < PART_AT / PARTS) return undefined
    this.done = true
    if (share >= 1 || points.length < 3) return undefined // too few batches: nothing is known of its parts
    const range = (of: (point: Point) => number): Range => {
      const now = of(points.at(-1)!)
      const densities = points.slice(1).map((to, i) => {
        const from = points[i]!
        return (of(to) - of(from)) / (to.share - from.share)
      })
      const whole = (density: number): number => now + density * (1 - share)
      return [whole(Math.min(...densities)), whole(Math.max(...densities))]
    }
    const rounded = ([least, most]: Range, digits: number): Range => {
      const scale = 10 ** digits
      return [Math.round(least * scale) / scale, Math.round(most * scale) / scale]
    }
    return {
      atSeconds: Math.round(ms) / 1000,
      effort,
      seconds: rounded(
        range(point => point.seconds),
        1,
      ),
      bytesIn: rounded(
        range(point => point.bytesIn),
        0,
      ),
      bytesWan: rounded(
        range(point => point.bytesWan),
        0,
      ),
    }
  }
}

/** Pages that were counted, those sent again too. */
function pagesOf(stats: BatchStats): number {
  return (
    stats.zeroPages +
    stats.fillPages +
    stats.samePages +
    stats.templatePages +
    stats.earlierPages +
    stats.patchPages +
    stats.newPages +
    stats.densePages +
    stats.opaquePages
  )
}
