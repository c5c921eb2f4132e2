/** What a source proxy tells of the connections that come to it, and of what they are part of. */
import type { Forecast } from './forecast.ts'
import type { MigrationProgress } from './progress.ts'
import type { NamedMigration, NamedTransfer } from './summary.ts'

export interface SourceChannelEvents {
  'connection refused': {
    readonly target: string
    readonly reason?: string
    readonly error?: string
    readonly peer?: string | undefined
    readonly began?: string
    readonly hint?: string
  }
  'migration starts': NamedMigration & {
    readonly target: string
    readonly kind: string
    readonly peer?: string | undefined
  }
  'migration halfway': NamedMigration & Forecast
  'migration progress': NamedMigration & MigrationProgress
  'relayed raw': NamedMigration & {
    readonly kind: string
    readonly position?: number | undefined
    readonly reason: string
  }
  'disk transfer starts': NamedTransfer & {
    readonly target: string
    readonly peer?: string | undefined
  }
  'disk export': NamedTransfer & { readonly export: string; readonly bytes: number }
  'disk transfer given up': NamedTransfer & { readonly reason: string }
  'migration given up': NamedMigration & { readonly reason: string }
  'migration cancelled': NamedMigration
}
