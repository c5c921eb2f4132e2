/** What the destination's half of a session is handed, and of which parts it is made. */
import type { ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import type { SessionLearning } from '../learning/learning.ts'
import { DESTINATION_TABLE, type DestinationTable } from '../migration/destination-life.ts'
import { DialQueue } from '../migration/dial-queue.ts'
import type { PatienceTimes } from '../migration/patience.ts'
import type { ArrivalSummary, DiskArrivalSummary } from '../migration/summary.ts'
import type { Address } from '../relay/address.ts'
import { dial } from '../relay/dialer.ts'
import type { Session } from '../session/session.ts'
import type { ColdFetcherOptions } from '../transfer/cold/cold-fetcher.ts'
import { Inbound } from '../transfer/inbound.ts'
import type { OpenPool, Pool } from '../transfer/pool.ts'
import type { DestinationFlow } from './destination-flow.ts'
import type { ReplyPacker } from './destination-replies.ts'
import type { SiteLog } from './events.ts'
import type { DiskZeroes } from './settings.ts'

export interface DestinationSessionOptions {
  readonly session: Session
  /** 32 hex digits, the same at the other side. */
  readonly sessionId: string
  readonly pool: Pool
  readonly seed: readonly [number, number]
  /** Whose share of expanding it gets. */
  readonly holder: string
  readonly learning?: SessionLearning | undefined
  /** What may be dialled now, by name. */
  readonly targets: () => ReadonlyMap<string, Address>
  /** The same for disks; undefined where the session carries none. */
  readonly disks: (() => ReadonlyMap<string, Address>) | undefined
  /** What becomes of zeroes that are written to them. Default: what was said. */
  readonly diskZeroes?: DiskZeroes | undefined
  /** Opens a pool for what they are read of, as DestinationReplies has it; undefined: that goes as it is. */
  readonly replies?: ((ringPages: number) => Promise<OpenPool | undefined>) | undefined
  /** Has `onWork` called at the end of this turn: link.wake. */
  readonly wake?: () => void
  /** Time that bytes may wait in the link while no guest waits for pages. Default: QUEUE_TARGET_MS. */
  readonly queueTargetMs?: number
  readonly patience: PatienceTimes
  /** How many pieces may wait for QEMUs: counted, not in bytes. The session closes it. */
  readonly pieces: Share
  /** What batches that wait to be expanded may take; closed likewise. */
  readonly waiting: Share
  readonly log: SiteLog
  readonly now: () => number
  /** A batch was damaged: the session must end. */
  readonly onFailure: (error: ProxyError) => void
  /** A set on the disk cannot be read: the session goes on as long as the other side has its pages. */
  readonly onSetFailure?: (error: ProxyError) => void
  /** A migration's last flow has ended. */
  readonly onMigrationEnd: (summary: ArrivalSummary) => void
  /** The same of a disk transfer. */
  readonly onDiskEnd: (summary: DiskArrivalSummary) => void
  /** Others in place of parts of it: a test's, in virtual time or with a fault. */
  readonly parts?: Partial<DestinationParts> | undefined
}

/** What expands: Inbound. */
export type DestinationUnpacker = Pick<Inbound, 'observer' | 'push' | 'mark' | 'close'> &
  Partial<Pick<Inbound, 'gains' | 'orphan'>>

export interface DestinationParts {
  readonly unpacker: (
    options: DestinationSessionOptions,
    cold: Pick<ColdFetcherOptions, 'ask' | 'onFailure'>,
  ) => DestinationUnpacker
  /** What encodes what disks are read of. Default: DestinationReplies' own. */
  readonly replyPacker?: ReplyPacker
  readonly DialQueue: typeof DialQueue<DestinationFlow>
  readonly dial: typeof dial
  /** What its channels' lives follow. */
  readonly channelTable: DestinationTable
}

/** The product's. */
export const DESTINATION_PARTS: DestinationParts = {
  unpacker: ({ pool, seed, onFailure, holder, waiting, disks }, cold) => {
    const inbound = new Inbound(pool, seed, onFailure, holder, waiting, cold)
    inbound.disks = disks !== undefined
    return inbound
  },
  DialQueue,
  dial,
  channelTable: DESTINATION_TABLE,
}
