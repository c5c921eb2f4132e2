/** How a proxy is, when it is asked: plain data, a snapshot. Units stand in the names; times are since the beginning. */
import type { Credentials } from '../link/credentials.ts'
import type { DepartureStatus, DiskDepartureStatus, DiskStatus, MigrationStatus } from '../migration/summary.ts'
import type { SessionStats } from '../session/api.ts'
import type { CapStatus } from './cap-keeper.ts'

/** A session with another proxy. */
export interface LinkStatus {
  /** The first digits of its id: the same at both sites. */
  readonly link: string
  /** Who the other proxy is: as it proved it, or where it is. */
  readonly peer: string
  /** Its name and version, as it tells them. */
  readonly agent: string
  /** Template sets that both sides have, in memory and on the disk. */
  readonly sets: number
  readonly coldSets: number
  readonly stats: Omit<SessionStats, 'flows'>
}

/** A certificate or a list of revoked ones, and the end of its time. */
export interface Expiry {
  readonly file: string
  readonly expires: string
}

/** A session of a source proxy. */
export interface SourceSessionStatus extends LinkStatus {
  readonly migrations: readonly DepartureStatus[]
  readonly disks: readonly DiskDepartureStatus[]
}

/** Why a source proxy has no session just now. */
export interface SessionFailure {
  readonly what: string
  readonly hint: string
  /** In a row, this one counted. */
  readonly times: number
}

export interface SourceStatus {
  readonly role: 'source'
  /** What the other proxy is called here, and where it is. */
  readonly peer: string
  readonly address: string
  /** Cap on the WAN just now, bytes a second; undefined: none. */
  readonly rate: number | undefined
  /** Why it is that, and when it changes. Of a proxy of before it is not known. */
  readonly cap?: CapStatus
  readonly certificates: readonly Expiry[]
  readonly listening: readonly string[]
  /** Where clients of disks connect. */
  readonly disksAt: readonly string[]
  readonly stopping: boolean
  /** undefined: there is none just now. */
  readonly session: SourceSessionStatus | undefined
  /** Where the last one could not be opened, or broke. Of a proxy of before it is not known. */
  readonly failure?: SessionFailure
  /** Those that were left: they serve the disks that they have, and end with them. */
  readonly left: readonly SourceSessionStatus[]
  /** Connections of QEMU that wait for a session. */
  readonly waiting: number
  /** Connections that the sessions have, those that are no channel yet counted. */
  readonly connections: number
}

export interface DestinationStatus {
  readonly role: 'destination'
  readonly certificates: readonly Expiry[]
  readonly listening: readonly string[]
  readonly stopping: boolean
  readonly sessions: readonly (LinkStatus & {
    readonly migrations: readonly MigrationStatus[]
    readonly disks: readonly DiskStatus[]
    /** Flows whose QEMU is not dialled yet. */
    readonly dialling: number
    /** DATA frames and batches that wait for QEMUs. */
    readonly pieces: number
  })[]
}

export function expiriesOf(credentials: Credentials | undefined): Expiry[] {
  const periods = credentials?.periods ?? []
  return periods
    .filter(({ toMs }) => Number.isFinite(toMs))
    .map(({ file, toMs }) => ({ file, expires: new Date(toMs).toISOString() }))
}

/** A migration's flows are told as its channels. */
export function withoutFlows({ flows: _, ...stats }: SessionStats): LinkStatus['stats'] {
  return stats
}
