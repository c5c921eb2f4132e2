/** What a destination proxy tells of migrations and disk transfers while they arrive. */
import type { NamedMigration, NamedTransfer } from './summary.ts'

export interface ArrivalEvents {
  'migration arrives': NamedMigration & { readonly target: string; readonly kind: string }
  'migration given up': NamedMigration & { readonly reason: string }
  'disk transfer arrives': NamedTransfer & { readonly target: string }
  'disk transfer given up': NamedTransfer & { readonly reason: string }
}
