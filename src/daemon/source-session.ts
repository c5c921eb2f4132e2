/**
 * The source proxy's half of a session: QEMU's connections become flows, their bytes batches. Joins relay (sockets),
 * transfer (codec) and session (WAN); what is decided, the engines in src/migration and src/transfer decide.
 */

import { EFFORTS } from '../compression/effort.ts'
import { defectOf, isProxyError, ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import type { SessionLearning } from '../learning/learning.ts'
import { CHANNELS_A_MIGRATION, FLOWS_MAX } from '../limits.ts'
import type { LinkSink } from '../link/api.ts'
import { TickTimer } from '../link/tick-timer.ts'
import { Departures } from '../migration/departures.ts'
import { type GateOrders, Gates } from '../migration/gates.ts'
import type { PatienceTimes } from '../migration/patience.ts'
import type { PausedMigrations } from '../migration/paused.ts'
import { SOURCE_TABLE, SourceLife, type SourceTable } from '../migration/source-life.ts'
import type { DepartureStatus, MigrationSummary } from '../migration/summary.ts'
import type { ChannelKind } from '../qemu/channel-kind.ts'
import type { StreamPhase } from '../qemu/stream-sink.ts'
import { guardedSink } from '../relay/guarded-sink.ts'
import type { Session } from '../session/session.ts'
import { ColdAnswers } from '../transfer/cold-answers.ts'
import type { EffortController } from '../transfer/effort-controller.ts'
import { type BatchSink, Outbound } from '../transfer/outbound.ts'
import type { Pool } from '../transfer/pool.ts'
import { Sender, type SenderPacker } from '../transfer/sender.ts'
import type { SendingChannel } from '../transfer/sending-channel.ts'
import { CODE } from '../wan/wire.ts'
import type { SiteLog } from './events.ts'
import type { SourceConnection } from './source-connection.ts'
import { type Migration, type Moved, SourceFlow, type SourceFlowHost, type SourceGate } from './source-flow.ts'

/** Time that bytes may wait in the link while a guest waits for pages: postcopy. */
const URGENT_QUEUE_MS = 5

export interface SourceSessionOptions {
  readonly session: Session
  /** 32 hex digits, the same at the other side. */
  readonly sessionId: string
  readonly pool: Pool
  readonly seed: readonly [number, number]
  readonly learning?: SessionLearning | undefined
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
  /** The codec failed: the session must end. */
  readonly onFailure: (error: ProxyError) => void
  /** A set on the disk, of which the other side asks for pages, cannot be read. */
  readonly onSetFailure?: (error: ProxyError) => void
  /** Connections that the other side never heard of: for another session. */
  readonly onMoved: (connections: readonly Moved[]) => void
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

export interface SourceParts {
  readonly packer: (
    options: SourceSessionOptions,
    sink: BatchSink<SendingChannel>,
    onError: (error: ProxyError) => void,
  ) => SenderPacker
  readonly Gates: typeof Gates<SourceFlow, Migration>
  readonly Departures: typeof Departures<SourceFlow>
  /** What its channels' lives follow. */
  readonly channelTable: SourceTable
}

const SOURCE_PARTS: SourceParts = {
  packer: ({ pool, seed }, sink, onError) => new Outbound(pool, seed, sink, onError),
  Gates,
  Departures,
  channelTable: SOURCE_TABLE,
}

export class SourceSession implements LinkSink, SourceFlowHost, GateOrders<SourceFlow, Migration> {
  readonly options: SourceSessionOptions
  readonly sender: Sender
  private readonly flows = new Map<number, SourceFlow>()
  private readonly channelTable: SourceTable
  private readonly gates: Gates<SourceFlow, Migration>
  private readonly departures: Departures<SourceFlow>
  private readonly timer: TickTimer
  private ended = false
  private readonly answers: ColdAnswers | undefined

  constructor(options: SourceSessionOptions) {
    const { session, sessionId, pool, effort, learning, patience, paused, nextMigration, log, onFailure } = options
    const parts = { ...SOURCE_PARTS, ...options.parts }
    this.options = options
    this.channelTable = parts.channelTable
    this.gates = new parts.Gates(this, { all: FLOWS_MAX, aMigration: CHANNELS_A_MIGRATION })
    this.departures = new parts.Departures(
      { session: sessionId, times: patience, paused, nextNumber: nextMigration, efforts: EFFORTS.length },
      this.gates.migrations,
      ({ number, record }, reason) => log.warn('migration given up', { migration: number, id: record.id, reason }),
    )
    this.sender = new Sender(session, pool, effort, sink => parts.packer(options, sink, onFailure), learning)
    if (pool.cold) {
      const send = (number: number, page: Uint8Array | undefined): void => session.coldPages.answer(number, page)
      const { cold } = pool
      this.answers = new ColdAnswers(cold, send, (set, error) => {
        cold.forget(set.digest)
        options.onSetFailure?.(error)
      })
    }
    this.timer = new TickTimer(options.now, () => this.guard(() => this.tick()))
  }

  /** A batch was handed in: tells once how its migration is expected to go on. */
  sent(flow: SourceFlow): void {
    this.wake()
    const { effort, log, now } = this.options
    const migration = flow.migration!
    const forecast = migration.sent(flow, now(), effort.effort(migration.urgent).level)
    if (forecast === undefined) return
    log.info('migration halfway', { migration: migration.number, id: migration.record.id, ...forecast })
  }

  /** Channels that are open. */
  get channelCount(): number {
    return this.flows.size
  }

  get over(): boolean {
    return this.ended
  }

  /** Connections that it has, opened or not. */
  get connectionCount(): number {
    return this.departures.connections.size
  }

  /** Migrations that run, each as it is: plain data. */
  status(): DepartureStatus[] {
    const { now, effort } = this.options
    return Array.from(this.gates.migrations, migration =>
      migration.status(now(), effort.effort(migration.urgent).level),
    )
  }

  /** Takes a connection of QEMU. */
  accept(socket: SourceConnection, gate: SourceGate): void {
    if (this.ended) {
      this.options.log.warn('connection refused', { target: gate.target, reason: 'no session' })
      socket.reset()
      return
    }
    const flow = new SourceFlow(this, socket, gate, new SourceLife(this.channelTable))
    this.departures.connections.add(flow)
    this.options.pool.warm().catch(error => this.defect(error))
    this.guard(() => {
      this.gates.arrived(flow, this.options.now())
      socket.start({
        ...guardedSink(flow, error => this.defect(error)),
        onEndBehind: () => this.guard(() => flow.onEndBehind()),
      })
      this.arm()
    })
  }

  guard(run: () => void): void {
    try {
      run()
    } catch (error) {
      this.defect(error)
    }
  }

  /** One of ours, found by what a QEMU or time did: the session ends, and others go on. */
  private defect(error: unknown): void {
    this.options.onFailure(defectOf(error))
  }

  /** One of the engines is due, or was when the timer was set. */
  private tick(): void {
    const { gates, departures, sender } = this
    const nowMs = this.options.now()
    if (gates.nextTickMs <= nowMs) gates.tick(nowMs)
    departures.tick(nowMs)
    if (sender.nextTickMs <= nowMs) {
      sender.tick(nowMs)
      this.wake()
    }
    this.arm()
  }

  private arm(): void {
    this.timer.arm(Math.min(this.gates.nextTickMs, this.departures.nextTickMs, this.sender.nextTickMs))
  }

  /** Ends a connection that no destination QEMU is to hear of. */
  refuse(flow: SourceFlow, reason: string, hint?: string): void {
    const { gate, socket } = flow
    this.options.log.warn('connection refused', {
      target: gate.target,
      peer: socket.peer,
      reason,
      ...(flow.began === undefined ? {} : { began: flow.began }),
      ...(hint === undefined ? {} : { hint }),
    })
    socket.reset()
  }

  endsBehind(flow: SourceFlow): void {
    this.gates.closed(flow, this.options.now())
    this.arm()
  }

  leaveGate(flow: SourceFlow): void {
    this.gates.left(flow)
  }

  release(flow: SourceFlow): void {
    if (this.departures.connections.delete(flow) && flow.slot) this.sender.giveSlot(flow.slot)
  }

  left(flow: SourceFlow): void {
    const { learning, now, onSummary } = this.options
    const migration = this.departures.left(flow)
    if (!migration) return
    this.gates.ended(migration)
    if (migration.moved) return
    // by END: then the other side knows it at the same point
    if (!this.ended) learning?.migrationEnded(migration.number)
    if (migration.urgent) this.followUrgency()
    onSummary(migration.summary(now()))
  }

  classified(flow: SourceFlow): void {
    this.gates.known(flow, this.options.now())
    this.arm()
  }

  begin(flow: SourceFlow): Migration {
    const { now, effort, session } = this.options
    effort.begin(session.rttMinMs)
    return this.departures.begin(flow, now())
  }

  open(flow: SourceFlow, migration: Migration): void {
    const { session, log } = this.options
    const { kind, gate } = flow
    const { target } = gate
    const slot = this.sender.takeSlot()
    if (!slot) {
      this.refuse(flow, `${FLOWS_MAX} channels have not ended`)
      return
    }
    let number: number
    try {
      number = session.openFlow({ target, migration: migration.number, kind })
    } catch (error) {
      this.sender.giveSlot(slot)
      if (!isProxyError(error)) throw error
      if (error.code === 'PROTOCOL_STATE' && !migration.taken) {
        // DRAIN came between this connection and its first bytes
        flow.unopened(migration)
        this.move(migration)
        return
      }
      log.warn('connection refused', { target, error: error.message })
      flow.socket.reset()
      return
    }
    this.flows.set(number, flow)
    flow.opened(number, migration, slot)
    if (migration.urgent) this.followUrgency() // a recovery that cannot be parsed tells no phase
    if (migration.lead === flow) {
      const { peer } = flow.socket
      log.info('migration starts', { migration: migration.number, id: migration.record.id, target, kind, peer })
    }
    if (kind === 'tls') {
      this.relayedRaw(
        migration,
        kind,
        'QEMU encrypts this migration itself: nothing can be saved; use plain TCP to the proxy',
      )
    }
    this.wake()
  }

  /** Once a migration, and not for each of 255 channels. */
  relayedRaw(migration: Migration, kind: ChannelKind, reason: string, position?: number): void {
    if (!migration.saysRaw(kind, reason)) return
    const { number, record } = migration
    this.options.log.warn('relayed raw', { migration: number, id: record.id, kind, position, reason })
  }

  phase(migration: Migration, phase: StreamPhase): void {
    const order = migration.phase(phase)
    if (order === 'advised') {
      this.gates.advised(migration, this.options.now())
      this.arm()
    } else if (order === 'urgent') {
      for (const flow of migration.flows) flow.hurry()
      this.followUrgency()
    }
  }

  /** While any guest waits for its pages, next to nothing may wait in the link. */
  private followUrgency(): void {
    if (this.ended) return
    const { session, queueTargetMs } = this.options
    session.setQueueTarget(this.departures.isUrgent ? URGENT_QUEUE_MS : queueTargetMs)
  }

  // --- LinkSink

  onOpen(): void {}
  onBatch(): void {}
  onPage(): void {}

  onData(number: number, payload: Uint8Array): void {
    const flow = this.flows.get(number)
    if (!flow) return
    const { pieces, onFailure } = this.options
    if (pieces.take(1)) flow.fromPeer(payload)
    else {
      const what = `${pieces.held} pieces wait for QEMU`
      onFailure(new ProxyError('LIMIT_EXCEEDED', what, undefined, 'the session ends'))
    }
  }

  onWant(numbers: readonly number[]): void {
    this.sender.coldAsked(this.options.now())
    if (this.answers?.answer(numbers)) return
    const what = 'pages of sets are asked for that were not named'
    this.options.onFailure(new ProxyError('PROTOCOL_STATE', what, undefined, 'the session ends'))
  }

  onFin(number: number): void {
    this.flows.get(number)?.finFromPeer()
  }

  onReset(number: number, code: number, text: string): void {
    this.flows.get(number)?.resetByPeer(code, text)
  }

  onTaken(number: number): void {
    this.flows.get(number)?.taken()
  }

  onRefused(number: number, text: string): void {
    const flow = this.flows.get(number)
    if (!flow?.migration) return
    if (flow.migration.taken) flow.resetByPeer(CODE.SHUTDOWN, text)
    else this.move(flow.migration)
  }

  /** Gives the connections of a migration that the other side never heard of back, for another session. */
  private move(migration: Migration): void {
    if (migration.moved) return
    migration.goesOn()
    this.options.onMoved([...migration.flows].flatMap(flow => flow.moveAway()))
  }

  onEnd(number: number): void {
    const flow = this.flows.get(number)
    this.flows.delete(number)
    flow?.sessionEnded()
    this.options.onIdle()
  }

  onCredit(number: number): void {
    // without credit its QEMU's bytes were left in the socket
    this.flows.get(number)?.socket.resume()
    this.wake()
  }

  onDrain(): void {
    this.options.log.info('peer drains: it takes no new migrations')
    this.options.onDrain()
  }

  onConnection(connection: number, up: boolean, standing: number, error?: Error): void {
    this.departures.wan(standing > 0, this.options.now())
    this.arm()
    this.options.onConnection(connection, up, error)
  }

  onBye(code: number, text: string): void {
    void this.end(code === 0 ? 'the other proxy ended the session' : `the other proxy ended the session: ${text}`)
  }

  onDead(error: ProxyError): void {
    void this.end(error.message)
  }

  /** The link is about to pull: the place to encode. */
  onWork(): void {
    if (this.ended) return
    if (this.sender.work(this.options.now)) this.wake()
    this.arm()
  }

  /** Something arrived or became free: encodes once this turn's events are through. */
  wake(): void {
    if (!this.ended) this.options.wake()
  }

  /** Breaks all of QEMU's connections: the session is gone. @returns when nothing of it works any more; never rejects */
  end(reason: string): Promise<void> {
    if (!this.ended) {
      this.ended = true
      this.answers?.close()
      this.timer.stop()
      this.gates.stop()
      this.flows.clear()
      this.options.pieces.close()
      const connections = [...this.departures.connections]
      try {
        this.endConnections(reason)
      } catch (error) {
        for (const { socket } of connections) socket.reset() // whatever is wrong, no QEMU waits for what never comes
        this.defect(error)
      }
    }
    return this.sender.end().catch(error => this.defect(error))
  }

  /** Breaks the connections of migrations that the other side may know of, and gives the others back. */
  private endConnections(reason: string): void {
    const { session, onMoved } = this.options
    const { lost, goOn } = this.departures.part(flow => session.isUnheard(flow))
    for (const flow of lost) flow.sessionLost(reason)
    const moved = goOn.flatMap(flow => flow.moveAway())
    if (moved.length > 0) onMoved(moved)
  }
}
