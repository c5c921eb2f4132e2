/**
 * The source proxy's half of a session: QEMU's connections become flows, their bytes batches. Joins relay (sockets),
 * transfer (codec) and session (WAN), and runs the timer; what is decided, the engines in src/migration and src/transfer
 * decide.
 */

import { allGains } from '../codec/set-gains.ts'
import { defectOf, ProxyError } from '../errors.ts'
import type { LinkSink } from '../link/api.ts'
import { TickTimer } from '../link/tick-timer.ts'
import { DiskDeparture } from '../migration/disk-departure.ts'
import { MigrationDeparture } from '../migration/migration-departure.ts'
import { SourceChannels, type SourceOrders } from '../migration/source-channels.ts'
import { SourceLife, type SourceTable } from '../migration/source-life.ts'
import type { DepartureStatus, DiskDepartureStatus, NamedMigration } from '../migration/summary.ts'
import { guardedSink } from '../relay/guarded-sink.ts'
import { ColdAnswers } from '../transfer/cold/cold-answers.ts'
import { Sender } from '../transfer/sender.ts'
import type { Slot } from '../transfer/slot-arena.ts'
import { EarlyConnection } from './early-connection.ts'
import type { SourceConnection } from './source-connection.ts'
import { type Migration, SourceFlow, type SourceFlowHost, type SourceGate } from './source-flow.ts'
import { SOURCE_PARTS, type SourceSessionOptions } from './source-parts.ts'
import { SourceReplies } from './source-replies.ts'

export class SourceSession implements LinkSink, SourceFlowHost, SourceOrders<SourceFlow> {
  readonly options: SourceSessionOptions
  readonly sender: Sender
  readonly channels: SourceChannels<SourceFlow, Slot>
  private readonly channelTable: SourceTable
  private readonly timer: TickTimer
  private readonly answers: ColdAnswers | undefined
  private readonly replies: SourceReplies | undefined

  constructor(options: SourceSessionOptions) {
    const { session, sessionId, pool, effort, learning, patience, paused, nextMigration, queueTargetMs, disks } =
      options
    const { log, now, replies, pieces } = options
    const parts = { ...SOURCE_PARTS, ...options.parts }
    this.options = options
    this.channelTable = parts.channelTable
    this.sender = new Sender(session, pool, effort, sink => parts.packer(options, sink, options.onFailure), learning)
    if (replies) {
      this.replies = new SourceReplies(replies.pool, parts.replyUnpacker(options, replies), () => pieces.give(1))
    }
    this.channels = new SourceChannels<SourceFlow, Slot>({
      ...{ link: session, slots: this.sender, orders: this, log, now, queueTargetMs, disks, parts },
      replies: this.replies?.ringPages,
      departures: {
        ...{ session: sessionId, times: patience, paused, nextNumber: nextMigration },
      },
      effort: urgent => effort.present(urgent).level,
    })
    if (pool.cold) {
      const { cold } = pool
      const send = (number: number, page: Uint8Array | undefined): void =>
        this.channels.brought(cold.named.namedBy(number)!, session.coldPages.answer(number, page))
      this.answers = new ColdAnswers(cold, send, (set, error) => {
        cold.forget(set.digest)
        options.onSetFailure?.(error)
      })
    }
    // Between a timer and the end of its turn Node reads its sockets: after a pause of this process (a busy host, a stopped
    // VM) what a QEMU has said meanwhile is heard before it is taken for silent.
    this.timer = new TickTimer(now, () => parts.behindSockets(() => this.guard(() => this.tick())))
  }

  /** Channels that are open. */
  get channelCount(): number {
    return this.channels.count
  }

  /** How many of them are of migrations. */
  get migrationChannelCount(): number {
    return this.channels.countOfMigrations
  }

  /** Connections that it has, opened or not. */
  get connectionCount(): number {
    return this.channels.connections.size
  }

  /** Disk transfers that run. */
  get transfers(): ReadonlySet<DiskDeparture<SourceFlow>> {
    return this.channels.disks.transfers
  }

  /** It serves what it has to its end: what has no flow yet goes on in another one. */
  leave(): void {
    this.channels.leave()
  }

  /** Migrations that run, each as it is: plain data. */
  status(): DepartureStatus[] {
    return this.channels.status()
  }

  /** Disk transfers that run, likewise. */
  diskStatus(): DiskDepartureStatus[] {
    return this.channels.diskStatus()
  }

  /** Ends a migration. See SourceChannels. */
  cancel(id: string): NamedMigration | undefined {
    return this.channels.cancel(id)
  }

  /** Takes a connection of QEMU. */
  accept(socket: SourceConnection, gate: SourceGate): void {
    if (this.channels.over) {
      this.options.log.warn('connection refused', { target: gate.target, reason: 'no session' })
      socket.reset()
      return
    }
    const early = gate.kind === 'disk' ? this.earlyOf(socket, reason => flow.giveUp(reason)) : undefined
    const flow: SourceFlow = new SourceFlow(this, early ?? socket, gate, new SourceLife(this.channelTable))
    if (gate.kind === 'migration') this.options.pool.migrates(true)
    this.options.pool.warm().catch(error => this.defect(error))
    this.guard(() => {
      this.channels.arrived(flow)
      flow.socket.start({
        ...guardedSink(flow, error => this.defect(error)),
        onEndBehind: () => this.guard(() => flow.onEndBehind()),
      })
      this.channels.readable(flow)
      this.arm()
    })
  }

  /** The connection of a disk's client, where its writes are answered here. @param giveUp ends its flow */
  private earlyOf(socket: SourceConnection, giveUp: (reason: string) => void): EarlyConnection | undefined {
    const { journal, log, now } = this.options
    return (
      journal &&
      new EarlyConnection(socket, {
        ...{ memory: journal(), now, defect: (error: unknown) => this.defect(error) },
        refuses: ({ what, action }) => log.warn('early answers were wrong', { error: what, hint: action }),
        breaks: ({ what, action }) => {
          log.warn('early answers were wrong', { error: what, hint: action })
          giveUp(what)
          socket.reset()
        },
      })
    )
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
    const { channels, sender } = this
    if (channels.over) return
    channels.tick()
    const nowMs = this.options.now()
    if (sender.nextTickMs <= nowMs) {
      sender.tick(nowMs)
      this.wake()
    }
    this.arm()
  }

  // --- SourceOrders

  arm(): void {
    this.timer.arm(Math.min(this.channels.nextTickMs, this.sender.nextTickMs))
  }

  /** Something arrived or became free: encodes once this turn's events are through. */
  wake(): void {
    if (!this.channels.over) this.options.wake()
  }

  full(): void {
    if (!this.channels.over) this.sender.full(this.options.now)
  }

  begins(): void {
    const { effort, session } = this.options
    effort.begin(session.rttMinMs, session.knownRate)
  }

  ends(migration: Migration): void {
    const { learning, now, onSummary, onDiskSummary } = this.options
    const { number } = migration
    const gains = allGains(this.sender.takeGains(number), this.replies?.takeGains(number) ?? [])
    const sets = gains.length > 0 && { sets: gains }
    if (migration instanceof DiskDeparture) onDiskSummary({ ...migration.summary(now()), ...sets })
    else if (migration instanceof MigrationDeparture) {
      // by END: then the other side knows it at the same point
      if (!this.channels.over) learning?.migrationEnded(migration.number)
      onSummary({ ...migration.summary(now()), ...sets })
    }
  }

  rests(): void {
    this.options.pool.migrates(false)
  }

  move(flows: readonly SourceFlow[]): void {
    for (const { migration } of flows) if (migration) this.sender.takeGains(migration.number)
    const moved = flows.flatMap(flow => flow.moveAway())
    // of a session that lives also where nobody is left to go on: nothing new is for it
    if (moved.length > 0 || !this.channels.over) this.options.onMoved(moved)
  }

  // --- LinkSink

  onOpen(): void {}
  onPage(): void {}

  onData(number: number, payload: Uint8Array): void {
    const flow = this.channels.get(number)
    if (flow && this.hold()) this.behind(number, () => flow.fromPeer(payload))
  }

  /** Of a disk, whose OPEN asked for it. It may have been torn down here: the pool must follow. */
  onBatch(number: number, parts: readonly Uint8Array[]): void {
    const { session, onFailure } = this.options
    const info = session.infoOf(number)
    if (this.replies && info?.replies !== undefined) {
      const flow = this.channels.get(number)
      flow?.crossed(parts.reduce((sum, { length }) => sum + length, 0))
      if (this.hold()) this.replies.push(number, info, flow, parts)
      return
    }
    const what = `a batch for flow ${number}, which takes none`
    onFailure(new ProxyError('PROTOCOL_STATE', what, undefined, 'the session ends'))
  }

  /** One more piece waits. @returns false where there are too many: the session ends */
  private hold(): boolean {
    const { pieces, onFailure } = this.options
    if (pieces.take(1)) return true
    const what = `${pieces.held} pieces wait for QEMU`
    onFailure(new ProxyError('LIMIT_EXCEEDED', what, undefined, 'the session ends'))
    return false
  }

  /** Does this once all that came of a flow is expanded. */
  private behind(number: number, then: () => void): void {
    if (this.replies) this.replies.behind(number, then)
    else then()
  }

  onWant(numbers: readonly number[]): void {
    this.sender.coldAsked(this.options.now())
    if (this.answers?.answer(numbers)) return
    const what = 'pages of sets are asked for that were not named'
    this.options.onFailure(new ProxyError('PROTOCOL_STATE', what, undefined, 'the session ends'))
  }

  onFin(number: number): void {
    const flow = this.channels.get(number)
    if (flow) this.behind(number, () => flow.finFromPeer())
  }

  onReset(number: number, code: number, text: string): void {
    this.channels.get(number)?.resetByPeer(code, text)
  }

  onTaken(number: number): void {
    this.channels.get(number)?.taken()
    this.options.onTaken()
  }

  onRefused(number: number, text: string): void {
    this.channels.refusedByPeer(number, text)
  }

  onEnd(number: number): void {
    const behind = (then: () => void): void => this.behind(number, then)
    this.channels.endedBySession(number, behind)
    behind(() => this.options.onIdle())
    this.replies?.forget(number)
  }

  onCredit(number: number): void {
    // without credit its QEMU's bytes were left in the socket
    this.channels.get(number)?.socket.resume()
    this.wake()
  }

  onDrain(): void {
    this.options.log.info('peer drains: it takes no new migrations')
    this.options.onDrain()
  }

  onConnection(connection: number, up: boolean, standing: number, error?: Error): void {
    this.channels.wan(standing > 0)
    this.options.onConnection(connection, up, error)
  }

  onStalled(sinceMs: number): void {
    const reason = this.channels.stalled(sinceMs)
    if (reason !== undefined) this.options.onFailure(new ProxyError('PEER_LOST', reason, undefined, 'the session ends'))
  }

  onBye(_code: number, text: string): void {
    void this.end(text === '' ? 'the other proxy ended the session' : `the other proxy ended the session: ${text}`)
  }

  onDead(error: ProxyError): void {
    void this.end(error.message)
  }

  /** The link is about to pull: the place to encode. */
  onWork(): void {
    if (this.channels.over) return
    if (this.sender.work(this.options.now)) this.wake()
    this.arm()
  }

  /** Breaks all of QEMU's connections: the session is gone. @returns when nothing of it works any more; never rejects */
  end(reason: string): Promise<void> {
    const { channels } = this
    if (!channels.over) {
      this.answers?.close()
      this.replies?.close()
      this.timer.stop()
      this.options.pieces.close()
      const connections = [...channels.connections]
      try {
        channels.end(reason)
      } catch (error) {
        for (const { socket } of connections) socket.reset() // whatever is wrong, no QEMU waits for what never comes
        this.defect(error)
      }
    }
    return this.sender.end().catch(error => this.defect(error))
  }
}
