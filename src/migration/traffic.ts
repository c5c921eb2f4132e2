/** What has passed of a migration at its source, counted over all of its channels. */
import { BatchStats } from '../codec/stats.ts'
import type { BlockTable } from '../qemu/block-table.ts'
import { type Counted, type Forecast, Forecaster, type Passed } from './forecast.ts'
import type { PageCounts } from './summary.ts'

export class Traffic {
  /** Of channels that have ended. */
  readonly ended = new BatchStats()
  /** Of every channel that was opened, in order. */
  readonly kinds: string[] = []
  /** Raw bytes by level of effort: of those alone that were chosen. */
  readonly effortBytes: Record<number, number> = {}
  /** Of the return path; and what of it was on the WAN, which is less where a disk's is encoded. */
  bytesBack = 0
  bytesBackWan = 0
  /** On the WAN for pages of sets that the other side asked for: in no channel's counts. */
  broughtBytes = 0
  forecast: Forecast | undefined
  /** What one pass over the guest's memory took, once that is over. */
  firstPass: Passed | undefined
  private readonly forecaster = new Forecaster()
  /** Of all channels, and of each as it was when it was last counted: there may be hundreds, and batches are many. */
  readonly counted = { pages: 0, rawBytes: 0, packedBytes: 0 }
  private readonly channelsCounted = new Map<BatchStats, { -readonly [K in keyof Counted]: number }>()

  /** All so far. @param open counts of channels that have not ended */
  counts(open: Iterable<BatchStats>): BatchStats {
    const counts = new BatchStats()
    counts.add(this.ended)
    for (const stats of open) counts.add(stats)
    return counts
  }

  /** A page was asked for, and sent. */
  brought(bytes: number): void {
    this.broughtBytes += bytes
    this.counted.packedBytes += bytes
  }

  /** A channel has ended. */
  leaves(stats: BatchStats): void {
    this.ended.add(stats)
    this.channelsCounted.delete(stats)
  }

  /** A batch of a channel was encoded. @param stats all that was counted of the channel */
  encoded(stats: BatchStats, rawBytes: number, effort: number): void {
    this.effortBytes[effort] = (this.effortBytes[effort] ?? 0) + rawBytes
    this.count(stats)
  }

  /** The same of a disk, for which nothing is forecast. */
  handedIn(stats: BatchStats): void {
    this.count(stats)
  }

  /** A batch of a channel was handed in, `ms` after the migration's start. @returns the forecast, once */
  sent(stats: BatchStats, blocks: BlockTable, ms: number, effort: number): Forecast | undefined {
    this.count(stats)
    const forecast = this.forecaster.update(blocks, this.counted, ms, effort)
    this.forecast ??= forecast
    this.firstPass = this.forecaster.firstPass
    return forecast
  }

  private count(stats: BatchStats): void {
    const { counted, channelsCounted } = this
    let before = channelsCounted.get(stats)
    if (!before) {
      before = { pages: 0, rawBytes: 0, packedBytes: 0 }
      channelsCounted.set(stats, before)
    }
    const { pages, rawBytes, packedBytes } = stats
    counted.pages += pages - before.pages
    counted.rawBytes += rawBytes - before.rawBytes
    counted.packedBytes += packedBytes - before.packedBytes
    before.pages = pages
    before.rawBytes = rawBytes
    before.packedBytes = packedBytes
  }

  /** 'main, 2 multifd' */
  get channels(): string {
    const counts = new Map<string, number>()
    for (const kind of this.kinds) counts.set(kind, (counts.get(kind) ?? 0) + 1)
    return [...counts].map(([kind, count]) => (count > 1 ? `${count} ${kind}` : kind)).join(', ')
  }
}

export function pageCounts(stats: BatchStats): PageCounts {
  return {
    zero: stats.zeroPages,
    same: stats.samePages,
    template: stats.templatePages + stats.coldPages,
    earlier: stats.earlierPages,
    fill: stats.fillPages,
    patched: stats.patchPages,
    whole: stats.newPages + stats.densePages,
    raw: stats.rawPages,
    opaque: stats.opaquePages,
  }
}
