/** How a proxy is, when it is asked: plain data, a snapshot. Units stand in the names; times are since the beginning. */
import type { GuestName } from '../migration/channel-ends.ts'
import type { SessionStats } from '../session/api.ts'

/** A migration that runs, as either side sees it. */
export interface MigrationStatus extends GuestName {
  readonly migration: number
  /** The same at both sites. */
  readonly id: string
  readonly target: string
  readonly seconds: number
  /** Channels that are open. */
  readonly channels: number
  /** The guest may run at the destination already, on pages that have not come. */
  readonly postcopy: boolean
  /** Bytes of the channels, and of the return path. */
  readonly bytes: number
  readonly bytesBack: number
}

export interface DepartureStatus extends MigrationStatus {
  /** Bytes on the WAN, of batches that have been packed. */
  readonly bytesWan: number
  /** Effort of the next batch. */
  readonly effort: number
}

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

export type SiteStatus = SourceStatus | DestinationStatus

/** A migration's flows are told as its channels. */
export function withoutFlows({ flows: _, ...stats }: SessionStats): LinkStatus['stats'] {
  return stats
}
