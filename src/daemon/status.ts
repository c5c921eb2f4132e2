/** How a proxy is, when it is asked: plain data, a snapshot. Units stand in the names; times are since the beginning. */
import type { DepartureStatus, MigrationStatus } from '../migration/summary.ts'
import type { SessionStats } from '../session/api.ts'

/** A session with another proxy. */
export interface LinkStatus {
  /** The first digits of its id: the same at both sites. */
  readonly link: string
  /** Who the other proxy is: as it proved it, or where it is. */
  readonly peer: string
  readonly stats: Omit<SessionStats, 'flows'>
}

export interface SourceStatus {
  readonly role: 'source'
  readonly listening: readonly string[]
  readonly stopping: boolean
  /** undefined: there is none just now. */
  readonly session: (LinkStatus & { readonly migrations: readonly DepartureStatus[] }) | undefined
  /** Connections of QEMU that wait for a session. */
  readonly waiting: number
  /** Connections that the session has, those that are no channel yet counted. */
  readonly connections: number
}

export interface DestinationStatus {
  readonly role: 'destination'
  readonly listening: readonly string[]
  readonly stopping: boolean
  readonly sessions: readonly (LinkStatus & {
    readonly migrations: readonly MigrationStatus[]
    /** Flows whose QEMU is not dialled yet. */
    readonly dialling: number
    /** DATA frames and batches that wait for QEMUs. */
    readonly pieces: number
  })[]
}

/** A migration's flows are told as its channels. */
export function withoutFlows({ flows: _, ...stats }: SessionStats): LinkStatus['stats'] {
  return stats
}
