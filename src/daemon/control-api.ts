/**
 * What passes over the control socket, for both ends. A proxy that an upgrade has let run is asked by a newer command, so
 * fields are added and never change their meaning while CONTROL_API stays.
 */
import type { SetGain } from '../codec/set-gains.ts'
import type { DestinationStatus, SourceStatus } from './status.ts'

export const CONTROL_API = 1

/** GET /history */
export interface SiteHistory {
  readonly api: typeof CONTROL_API
  /** As {@link SiteStatus.history} then. */
  readonly mark?: string
  /** The oldest first. */
  readonly migrations: readonly PastMigration[]
}

/** A migration that has ended. */
export interface PastMigration {
  readonly ended: string
  readonly id: string
  /** Whether its guest was to leave here or to come. */
  readonly direction: 'out' | 'in'
  readonly peer: string
  readonly target: string
  readonly machine?: string
  readonly uuid?: string
  readonly outcome: string
  readonly reason: string
  readonly seconds: number
  /** How long the guest stood still, at least: of completed precopy, where its guest was to leave here. */
  readonly pauseSeconds?: number
  /** Of QEMU; and on the WAN, where its guest was to leave here. */
  readonly bytes: number
  readonly bytesWan?: number
  /** What template sets brought: those that brought most, the most first. */
  readonly sets?: readonly SetGain[]
}

/** GET /status */
export interface SiteStatus {
  readonly api: typeof CONTROL_API
  readonly version: string
  /** Its process id. */
  readonly process: number
  /** When it was started. */
  readonly started: string
  /** Threads that match, pack and unpack, the main one counted. */
  readonly threads?: number
  /** Cap on all peers together, as of a source; left out: the process has no such thing. */
  readonly all?: Pick<SourceStatus, 'rate' | 'cap'>
  /** Another with each migration that ends: who has the history with this mark asks no more. Of a proxy of before it is not known. */
  readonly history?: string
  readonly sources: readonly SourceStatus[]
  readonly destination: DestinationStatus | undefined
}
