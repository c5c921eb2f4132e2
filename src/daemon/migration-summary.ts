/** What is said of a migration: a forecast on its way, and one line when it is over. */
import type { BatchStats } from '../codec/stats.ts'
import { PAGE_SIZE } from '../codec/wire.ts'
import type { BlockTable } from '../qemu/block-table.ts'

/** What came between these shares of the guest's memory tells of the rest: its start is denser than the whole. */
const FORECAST_FROM = 0.25
const FORECAST_AT = 0.5
const FORECAST_SPAN_MIN = 0.15

/**
 * What a migration was expected to need, told halfway through the guest's memory. One pass: what the guest writes
 * meanwhile comes on top.
 */
export interface Forecast {
  /** When it was made, and at which effort. */
  readonly atSeconds: number
  readonly effort: number
  readonly seconds: number
  readonly bytesIn: number
  readonly bytesWan: number
}

/** Plain data: logged as it is, printed as a line by the CLI. */
export interface MigrationSummary {
  readonly migration: number
  readonly target: string
  readonly channels: string
  readonly seconds: number
  /** Bytes that QEMU sent, and the batches that carried them. */
  readonly bytesIn: number
  readonly bytesWan: number
  /** bytesWan / bytesIn. */
  readonly ratio: number
  /** Of `bytesIn`, what was encoded at each effort, from 0 on. */
  readonly efforts: readonly number[]
  /** Bytes of the return path. */
  readonly bytesBack: number
  /** Bytes a second that the WAN was measured to take: at least; 0 where it was not. */
  readonly wanRate: number
  /** What QEMU's bytes would have needed at that rate without the pair. */
  readonly directSeconds?: number
  /** None where the migration was over too soon, or its memory could not be followed. */
  readonly forecast?: Forecast
  readonly pages: {
    readonly zero: number
    readonly same: number
    readonly template: number
    readonly earlier: number
    readonly fill: number
    readonly patched: number
    readonly whole: number
    readonly opaque: number
  }
  readonly endedBy: string
}

/** Anything with the fields of a finished migration. */
export interface FinishedMigration {
  readonly number: number
  readonly gate: { readonly target: string }
  readonly startMs: number
  readonly stats: BatchStats
  readonly kinds: readonly string[]
  readonly effortBytes: readonly number[]
  readonly bytesBack: number
  readonly endedBy: string
  readonly forecast?: Forecast | undefined
}

/** Sees a migration pass until it can tell how it will go on. */
export class Forecaster {
  private pages = 0
  private from: { readonly share: number; readonly ms: number; readonly stats: BatchStats } | undefined
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
    if (share < FORECAST_FROM) return undefined
    this.from ??= { share, ms, stats }
    const span = share - this.from.share
    if (share < FORECAST_AT || span < FORECAST_SPAN_MIN) return undefined
    this.done = true
    if (share >= 1) return undefined
    const { from } = this
    const rest = (1 - share) / span
    const whole = (then: number, now: number): number => Math.round(now + (now - then) * rest)
    return {
      atSeconds: Math.round(ms) / 1000,
      effort,
      seconds: whole(from.ms, ms) / 1000,
      bytesIn: whole(from.stats.rawBytes, stats.rawBytes),
      bytesWan: whole(from.stats.packedBytes, stats.packedBytes),
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

/** Seconds that bytes would need at a measured rate. */
export function directSeconds(bytes: number, bytesPerSecond: number): number | undefined {
  return bytesPerSecond > 0 ? Math.round((1000 * bytes) / bytesPerSecond) / 1000 : undefined
}

/** @param wanRate bytes a second */
export function summarize(migration: FinishedMigration, nowMs: number, wanRate = 0): MigrationSummary {
  const { stats, forecast } = migration
  const direct = directSeconds(stats.rawBytes, wanRate)
  const counts = new Map<string, number>()
  for (const kind of migration.kinds) counts.set(kind, (counts.get(kind) ?? 0) + 1)
  return {
    migration: migration.number,
    target: migration.gate.target,
    channels: [...counts].map(([kind, count]) => (count > 1 ? `${count} ${kind}` : kind)).join(', '),
    seconds: Math.round(nowMs - migration.startMs) / 1000,
    bytesIn: stats.rawBytes,
    bytesWan: stats.packedBytes,
    ratio: stats.rawBytes === 0 ? 1 : Math.round((stats.packedBytes / stats.rawBytes) * 10000) / 10000,
    efforts: [...migration.effortBytes],
    bytesBack: migration.bytesBack,
    wanRate: Math.round(wanRate),
    ...(direct === undefined ? {} : { directSeconds: direct }),
    ...(forecast ? { forecast } : {}),
    pages: {
      zero: stats.zeroPages,
      same: stats.samePages,
      template: stats.templatePages,
      earlier: stats.earlierPages,
      fill: stats.fillPages,
      patched: stats.patchPages,
      whole: stats.newPages + stats.densePages,
      opaque: stats.opaquePages,
    },
    endedBy: migration.endedBy || 'both sides closed',
  }
}
