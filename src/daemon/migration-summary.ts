/** What is said of a migration when it is over: one line. */
import type { BatchStats } from '../codec/stats.ts'

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
  /** Bytes of the return path. */
  readonly bytesBack: number
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
  readonly bytesBack: number
  readonly endedBy: string
}

export function summarize(migration: FinishedMigration, nowMs: number): MigrationSummary {
  const { stats } = migration
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
    bytesBack: migration.bytesBack,
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
