/** What the source's half of a session is handed, and of which parts it is made. */
import type { ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import type { SessionLearning } from '../learning/learning.ts'
import { Departures } from '../migration/departures.ts'
import { Gates } from '../migration/gates.ts'
import type { PatienceTimes } from '../migration/patience.ts'
import type { PausedMigrations } from '../migration/paused.ts'
import type { SourceChannelsParts } from '../migration/source-channels.ts'
import { SOURCE_TABLE, type SourceTable } from '../migration/source-life.ts'
import type { DiskDepartureSummary, MigrationSummary } from '../migration/summary.ts'
import type { Session } from '../session/session.ts'
import type { EffortController } from '../transfer/effort-controller.ts'
import { Inbound } from '../transfer/inbound.ts'
import { type BatchSink, Outbound } from '../transfer/outbound.ts'
import type { Pool } from '../transfer/pool.ts'
import type { SenderPacker } from '../transfer/sender.ts'
import type { SendingChannel } from '../transfer/sending-channel.ts'
import type { SiteLog } from './events.ts'
import type { Moved, SourceFlow } from './source-flow.ts'
import type { ReplyUnpacker } from './source-replies.ts'

/** Where what disks' servers say is expanded. */
export interface RepliesPool {
  readonly pool: Pool
  /** What batches that wait to be expanded may take. The session closes it. */
  readonly waiting: Share
}

export interface SourceSessionOptions {
  readonly session: Session
  /** 32 hex digits, the same at the other side. */
  readonly sessionId: string
  readonly pool: Pool
  readonly seed: readonly [number, number]
  readonly learning?: SessionLearning | undefined
  /** The other side can take disks. */
  readonly disks: boolean
  /** Memory for the journal of a disk's connection, whose writes are answered early; undefined: by the far side. */
  readonly journal?: (() => Share) | undefined
  /** What their servers say may come encoded, and is expanded here; left out: it comes as it is. */
  readonly replies?: RepliesPool | undefined
  readonly effort: EffortController
  readonly queueTargetMs: number
  /** How many pieces may wait for QEMUs: counted, not in bytes. The session closes it. */
  readonly pieces: Share
  readonly patience: PatienceTimes
  readonly log: SiteLog
  readonly now: () => number
  /** Of all sessions of a process. */
  readonly paused: PausedMigrations
  /** Number of the next migration; shared by the sessions of a process so that logs stay unambiguous. */
  readonly nextMigration: () => number
  readonly onSummary: (summary: MigrationSummary) => void
  /** A disk transfer is over. */
  readonly onDiskSummary: (summary: DiskDepartureSummary) => void
  /** The codec failed: the session must end. */
  readonly onFailure: (error: ProxyError) => void
  /** A set on the disk, of which the other side asks for pages, cannot be read. */
  readonly onSetFailure?: (error: ProxyError) => void
  /** Connections that the other side never heard of: for another session. */
  readonly onMoved: (connections: readonly Moved[]) => void
  /** The other side has taken a flow: its migration runs, and what waits for a session may belong to it. */
  readonly onTaken: () => void
  /** A flow has ended: there may be none left. */
  readonly onIdle: () => void
  /** Has `onWork` called at the end of this turn: link.wake. */
  readonly wake: () => void
  /** The other side takes no new migrations. */
  readonly onDrain: () => void
  readonly onConnection: (connection: number, up: boolean, error: Error | undefined) => void
  /** Others in place of parts of it: a test's, in virtual time or with a fault. */
  readonly parts?: Partial<SourceParts> | undefined
}

/** What it is made of. */
export interface SourceParts extends SourceChannelsParts<SourceFlow> {
  readonly packer: (
    options: SourceSessionOptions,
    sink: BatchSink<SendingChannel>,
    onError: (error: ProxyError) => void,
  ) => SenderPacker
  readonly replyUnpacker: (options: SourceSessionOptions, replies: RepliesPool) => ReplyUnpacker
  /** What its channels' lives follow. */
  readonly channelTable: SourceTable
  /** Runs this in the same turn of the event loop, once sockets were read. */
  readonly behindSockets: (run: () => void) => void
}

/** The product's. */
export const SOURCE_PARTS: SourceParts = {
  packer: ({ pool, seed }, sink, onError) => new Outbound(pool, seed, sink, onError),
  replyUnpacker: ({ seed, onFailure }, { pool, waiting }) => {
    const inbound = new Inbound(pool, seed, onFailure, '', waiting)
    inbound.disks = true
    return inbound
  },
  Gates,
  Departures,
  channelTable: SOURCE_TABLE,
  behindSockets: run => void setImmediate(run),
}
