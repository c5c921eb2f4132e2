/** What is said of a migration on its way: what it may need. */
import type { BatchStats } from '../codec/stats.ts'
import { PAGE_SIZE } from '../codec/wire.ts'
import type { BlockTable } from '../qemu/block-table.ts'

/** Share of the guest's pages behind which it is told. */
const TOLD_AT = 1 / 2
/** What has passed last, as a share of the guest's pages: where memory grows fuller towards its end, this tells it. */
const LATELY = 1 / 4
/** How far points of what passed are apart: a large guest has very many batches. */
const STEP = 1 / 64
/** Of fewer batches nothing is known. */
const BATCHES_MIN = 3

/** From the least to the most. */
export type Range = readonly [number, number]

/** What passed up to some point of a migration. */
export interface Passed {
  readonly seconds: number
  readonly bytesIn: number
  readonly bytesWan: number
}

/**
 * What one pass over a guest's memory may need, told halfway: from what has passed, as if all that is left were empty, to
 * that and as much for each page left as those so far needed, or the last quarter if that was more. What it cannot know:
 * memory that is fuller than all that has passed, a link that changes, and what the guest writes meanwhile. That comes
 * on top, in further passes.
 */
export interface Forecast {
  /** When it was made, and at which effort. */
  readonly atSeconds: number
  readonly effort: number
  readonly seconds: Range
  readonly bytesIn: Range
  readonly bytesWan: Range
}

/** Counts of all channels of a migration so far. */
export type Counted = Pick<BatchStats, 'pages' | 'rawBytes' | 'packedBytes'>

/** What had passed at some point. */
interface Point extends Passed {
  /** Of the guest's pages. */
  readonly share: number
}

/** Sees a migration pass. */
export class Forecaster {
  /** Once every page has passed, or as many: what that took. */
  firstPass: Passed | undefined
  private pages = 0
  private batches = 0
  private told = false
  /** The first is the last one that lies a quarter back. */
  private readonly points: Point[] = [{ share: 0, seconds: 0, bytesIn: 0, bytesWan: 0 }]

  /**
   * Call after each batch. `ms`: since the migration's start.
   * @returns the forecast, once
   */
  update(blocks: BlockTable, counted: Counted, ms: number, effort: number): Forecast | undefined {
    if (this.firstPass || !blocks.complete) return undefined
    if (this.pages === 0) {
      for (let block = 0; block < blocks.size; block++) this.pages += blocks.lengthBytes(block) / PAGE_SIZE
      if (this.pages === 0) return undefined
    }
    const { pages, rawBytes, packedBytes } = counted
    const now: Point = { share: pages / this.pages, seconds: ms / 1000, bytesIn: rawBytes, bytesWan: packedBytes }
    this.batches++
    if (now.share >= 1) {
      this.told = true
      const { seconds, bytesIn, bytesWan } = now
      this.firstPass = { seconds: rounded(seconds, 3), bytesIn, bytesWan }
    }
    if (this.told) return undefined
    const { points } = this
    while (points.length > 1 && points[1]!.share <= now.share - LATELY) points.shift()
    const [lately] = points
    if (now.share - points.at(-1)!.share >= STEP) points.push(now)
    if (now.share < TOLD_AT) return undefined
    this.told = true
    if (this.batches < BATCHES_MIN) return undefined
    const range = (of: (point: Passed) => number, digits: number): Range => {
      const soFar = of(now)
      const aPage = Math.max(soFar / now.share, (soFar - of(lately!)) / (now.share - lately!.share))
      return [rounded(soFar, digits), rounded(soFar + aPage * (1 - now.share), digits)]
    }
    return {
      atSeconds: rounded(now.seconds, 3),
      effort,
      seconds: range(({ seconds }) => seconds, 1),
      bytesIn: range(({ bytesIn }) => bytesIn, 0),
      bytesWan: range(({ bytesWan }) => bytesWan, 0),
    }
  }
}

function rounded(value: number, digits: number): number {
  const scale = 10 ** digits
  return Math.round(value * scale) / scale
}
