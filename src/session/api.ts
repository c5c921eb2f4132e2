/**
 * What a Session needs and tells: the types between the session, which knows neither sockets nor clocks, and the layer
 * that owns them.
 */

import type { ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import type { FlowInfo } from '../wan/bodies.ts'
import type { Weights } from './fairness.ts'
import type { SessionParts } from './parts.ts'
import type { RateBucket } from './rate-cap.ts'
import type { SessionState } from './states.ts'
import type { WarmUp } from './warm-up.ts'

export type { FlowInfo, SessionState }

/** The client dials and opens flows; the server answers. All else is the same for both. */
export type Role = 'client' | 'server'

/**
 * What a session tells whoever serves its flows. All of it, and all of TransportSink, is called from inside a call of the
 * session (receive, tick, pull, ...) and may call it again, except receive, tick and pull.
 */
export interface FlowSink {
  /** Server only: the client opened a flow. Dial its target; `resetFlow` where that fails. */
  onOpen(flow: number, info: FlowInfo): void
  /** Bytes of the flow, in order. The view stays valid; call `consumed` once the local QEMU's socket took them. */
  onData(flow: number, payload: Uint8Array): void
  /**
   * A whole batch, in its order over all flows. `parts` stay valid, but pin what they came in: keep `keptParts` of them
   * where they wait. Comes also for flows that were reset, and for
   * flows that onOpen never told of because this side refused them (the shared pool must follow it):
   * expand it, then drop what it gives. `rawLength` is what the batch says it expands to and what
   * `consumed` is to be told when the local QEMU's socket took it.
   */
  onBatch(flow: number, parts: readonly Uint8Array[], rawLength: number): void
  /** The peer's QEMU closed this direction: no more bytes of the flow follow. */
  onFin(flow: number): void
  /**
   * The peer tore the flow down. Break the local QEMU's connection, hand in batches of the flow that were encoded
   * already (the pool has changed with them), then call `resetFlow` (any code): only that lets the flow end. Not called
   * where this side reset the flow first.
   */
  onReset(flow: number, code: number, text: string): void
  /** Client only: the server has taken the flow; told once, before anything else of the flow, unless this side reset it. */
  onTaken(flow: number): void
  /**
   * Client only: the server refused the flow because it takes no new migrations or its session ends. No QEMU heard of
   * it: its bytes may go out again on another session. All else as with onReset.
   */
  onRefused(flow: number, text: string): void
  /** Both directions have ended and the peer knows: the flow is no more. Not called for flows that die with the session. */
  onEnd(flow: number): void
  /** `credit(flow)` rose, or there is more room than `dataRoom` gave last. */
  onCredit(flow: number): void
  /**
   * Client only: the server asks for these cold pages; each is to be answered by `coldPages.answer`. One that was not
   * named, also because no cold sets were agreed on, is a broken rule: `abort`.
   */
  onWant(numbers: readonly number[]): void
  /**
   * Server only: a cold page, a copy; undefined: the client cannot have it. One that `coldPages.ask` did not ask for is a
   * broken rule: `abort`.
   */
  onPage(number: number, page: Uint8Array | undefined): void
  /**
   * Connections stand, but nothing of what was sent has been acknowledged since then: told by every tick, long before the
   * session's own patience ends.
   */
  onStalled(sinceMs: number): void
  /** The peer takes and opens no new migrations. */
  onDrain(): void
}

/** What a session tells the owner of its connections. */
export interface TransportSink {
  /** The peer ended the session; every flow is gone. Code 0: it owed nothing any more. */
  onBye(code: number, text: string): void
  /**
   * The session ended on this side: the peer broke the protocol, the patience ran out, or `abort`. Every flow is gone.
   * Each connection still has a BYE to pull; then close it.
   */
  onDead(error: ProxyError): void
  /** The heartbeat gave this connection up. It is detached already: close its socket, and write no more to it (Session.detach). */
  onLost(connection: number, error: ProxyError): void
  /**
   * There may be something to pull, `bulkRoom` may have become more than 0, or `nextTickMs` may have come nearer. Comes
   * often: set a flag here and do the work once, at the end of the turn.
   */
  onWork(): void
}

export interface SessionOptions {
  readonly role: Role
  readonly transport: TransportSink
  /** Milliseconds without any connection after which the session is given up. Default PATIENCE_MS. */
  readonly patienceMs?: number
  /** Milliseconds that bytes may wait in the link beyond its round trip. Default QUEUE_TARGET_MS. */
  readonly queueTargetMs?: number
  /** Cap on what this side sends, in bytes a second over all connections; or one that sessions share. Default: none (Infinity). */
  readonly rate?: number | RateBucket
  /** What migrations and disk transfers get beside each other. Default: the same. */
  readonly weights?: Readonly<Weights> | undefined
  /** Bytes of credit that each flow to this side begins with, as said in its hello. Default CREDIT_INITIAL_BYTES. */
  readonly initialCredit?: number
  /**
   * This session's share of the process's memory: one FairShares a process, `share` by the peer's identity. The session
   * closes it when it ends. Default: a budget of its own.
   */
  readonly memory?: Share
  /** Server: its share of the flows that may be open, counted; closed with the session. Default: FLOWS_MAX bounds it. */
  readonly flowPlaces?: Share | undefined
  /** Finds out, while there is no flow, what fresh connections take: one for all sessions to a peer. Default: it does not. */
  readonly warmUp?: WarmUp
  /** Other classes for parts of it: a test's, which get something wrong. */
  readonly parts?: Partial<SessionParts>
}

export interface FlowStats {
  readonly flow: number
  readonly migration: number
  readonly kind: string
  /** Raw bytes handed in, and raw bytes that arrived. */
  readonly rawOut: number
  readonly rawIn: number
  /** WAN bytes (heads counted) sent and received for it; bytes sent twice count once. */
  readonly wanOut: number
  readonly wanIn: number
  /** Bytes that the peer still lets us send, and the window that we give the peer. */
  readonly credit: number
  readonly window: number
}

export interface ConnectionStats {
  readonly connection: number
  /** Smallest round trip measured lately, and the smoothed one; 0 before the first measurement. */
  readonly rttMinMs: number
  readonly rttMs: number
  /** Bytes a second that the peer got over this connection, best of the last round trips. */
  readonly rate: number
  readonly inFlight: number
  readonly window: number
}

export interface SessionStats {
  readonly state: SessionState
  /** Smallest of the connections' round trips (smoothed), milliseconds; 0 before the first measurement. */
  readonly rttMs: number
  /** Sum of the connections' delivery rates, bytes a second. */
  readonly rate: number
  /** WAN bytes under way, and the sum of the windows that bound them. */
  readonly inFlight: number
  readonly window: number
  /** WAN bytes sent and not yet acknowledged (kept for another sending). */
  readonly unacked: number
  /** Bytes of handed-in batches and data not yet sent. */
  readonly queued: number
  /** Bytes that arrived ahead of a missing frame. */
  readonly reordered: number
  /** WAN bytes sent a second time, and frames that arrived twice. */
  readonly resentBytes: number
  readonly duplicates: number
  readonly connections: readonly ConnectionStats[]
  readonly flows: readonly FlowStats[]
}
