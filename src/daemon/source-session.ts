/**
 * The source proxy's half of a session: QEMU's connections become flows, their bytes batches. Joins relay (sockets),
 * transfer (codec) and session (WAN); decides nothing about bytes.
 */

import { FlowEncoder } from '../codec/flow-encoder.ts'
import { PoolRegions } from '../codec/places.ts'
import { BatchStats } from '../codec/stats.ts'
import { EFFORTS } from '../compression/effort.ts'
import { isProxyError, type ProxyError } from '../errors.ts'
import type { SessionLearning } from '../learning/learning.ts'
import { CHANNELS_A_MIGRATION, FLOWS_MAX } from '../limits.ts'
import type { LinkSink } from '../link/api.ts'
import { ChannelHead } from '../migration/channel-ends.ts'
import { admission } from '../migration/channel-places.ts'
import { MigrationRecord } from '../migration/migration-record.ts'
import type { Cause } from '../migration/outcome.ts'
import { Patience, type PatienceTimes } from '../migration/patience.ts'
import { BlockTable } from '../qemu/block-table.ts'
import { CHANNEL_START_BYTES_MAX, type ChannelKind } from '../qemu/channel-kind.ts'
import type { MainStreamParser, ParserMemory } from '../qemu/main-stream.ts'
import type { ReturnPathParser } from '../qemu/return-path.ts'
import type { SocketClosed, SocketSink } from '../relay/qemu-socket.ts'
import type { Session } from '../session/session.ts'
import { ChannelBuffer } from '../transfer/channel-buffer.ts'
import { parserFor } from '../transfer/channel-parser.ts'
import type { EffortController } from '../transfer/effort-controller.ts'
import { Outbound } from '../transfer/outbound.ts'
import type { Pool } from '../transfer/pool.ts'
import { BATCH_BYTES_MAX, Pump, PumpedChannel } from '../transfer/pump.ts'
import { SLOT_UNIT_BYTES, type Slot, SlotArena } from '../transfer/slot-arena.ts'
import { CODE } from '../wan/wire.ts'
import type { SiteLog } from './events.ts'
import { type Forecast, Forecaster, type MigrationSummary, summarize } from './migration-summary.ts'
import type { SourceConnection } from './source-connection.ts'

/** A full slot has room behind them, so that moving an incomplete record to the front is seldom needed. */
const SLOT_UNITS = BATCH_BYTES_MAX / SLOT_UNIT_BYTES + 1
/** Time that bytes may wait in the link while a guest waits for pages: postcopy. */
const URGENT_QUEUE_MS = 5
/** A slot with less room than this is full. */
const ROOM_MIN = 16 * 1024
/** A connection that was silent when main announced postcopy is dialled as the preempt channel so long after (wire format 1.3). */
const PREEMPT_SILENT_MS = 200
/**
 * And one that comes later: QEMU from 8.0 on opens it when postcopy starts. Page requests do not wait for this: the first
 * bytes on a connection tell what it is. A probe that comes at that moment has gone by then.
 */
const PREEMPT_LATE_MS = 50
/** A channel that comes when its gate's main has ended belongs to the next migration, if that one's main comes in this time. */
const LATE_CHANNEL_MS = 200
/**
 * A connection that says nothing for so long, while no migration runs, is not QEMU's: all its channels speak first. Above
 * all NBD, whose server speaks first: libvirt's storage migration takes a port of the same range, and QEMU's guest stands
 * still while it waits for the greeting.
 */
const NOTHING_SAID_MS = 5000
/** A recovery has a main and a preempt channel. */
const RECOVERY_CHANNELS = 2
/** A channel's main comes within milliseconds, on a host that swaps within seconds. One that never comes holds no place. */
const MAIN_AWAITED_MS = 60_000
/** While the WAN is broken a migration may come to its switch to postcopy, whose patience is another. */
const PATIENCE_LOOK_MS = 1000

/**
 * What recovery connections need of the migrations that a break may have paused, by the gate where they began. One for
 * all gates and sessions of a process: a recovery may come in at another gate. It says nothing about itself but the
 * names of its RAMBlocks, so with several paused migrations a guess may be wrong; that costs savings, never a byte.
 */
export class PausedMigrations {
  private readonly memories = new Map<Gate, ParserMemory>()

  keep(gate: Gate, memory: ParserMemory): void {
    this.memories.delete(gate) // the latest comes last
    this.memories.set(gate, memory)
  }

  /** For a recovery that came in at `gate`: what began there, else what was paused last. */
  take(gate: Gate): ParserMemory | undefined {
    const from = this.memories.has(gate) ? gate : [...this.memories.keys()].at(-1)
    if (!from) return undefined
    const memory = this.memories.get(from)
    this.memories.delete(from)
    return memory
  }
}

/** Where connections come in: one listening port. Its channels belong to one migration at a time. */
export class Gate {
  /** Name of the target at the other side: 'default', 'NAME', with ':PORT' for one port of a range. */
  readonly target: string
  migration: Migration | undefined
  /** The main of the migration that begins here once there is room for its channels. */
  next: SourceFlow | undefined
  /** Channels whose kind is known, waiting for their main. */
  readonly waiting: SourceFlow[] = []
  /** Channels that have not sent a byte. */
  readonly silent = new Set<SourceFlow>()
  readonly paused: PausedMigrations

  constructor(target: string, paused: PausedMigrations) {
    this.target = target
    this.paused = paused
  }
}

/** All channels of one `migrate`. */
export class Migration {
  readonly number: number
  readonly gate: Gate
  readonly startMs: number
  readonly record: MigrationRecord
  readonly blocks = new BlockTable()
  readonly flows = new Set<SourceFlow>()
  /** Main, or what came first where that cannot be told. */
  lead: SourceFlow | undefined
  /** Of channels that have ended. */
  readonly stats = new BatchStats()
  readonly forecaster = new Forecaster()
  forecast: Forecast | undefined
  readonly kinds: string[] = []
  /** What has been said of it to be relayed raw. */
  readonly relayedRaw = new Set<string>()
  /** Raw bytes by level of effort. */
  readonly effortBytes: number[] = new Array(EFFORTS.length).fill(0)
  bytesBack = 0
  connections = 0
  /** When its last channel came. */
  lastMs = 0
  postcopyAdvised = false
  urgent = false
  /** What its first connection knew, where this is a recovery. */
  memory: ParserMemory | undefined
  /** The other side knows of it: it ends with this session. */
  taken = false
  /** It never heard of it: the connections go on with another session. */
  moved = false

  /** @param session its id, 32 hex digits */
  constructor(session: string, number: number, gate: Gate, startMs: number) {
    this.record = new MigrationRecord(session, number)
    this.number = number
    this.gate = gate
    this.startMs = startMs
  }

  /** Whether a silent connection may be its preempt channel: from where main comes from, and the only one. */
  mayBePreempt(flow: SourceFlow): boolean {
    if (flow.socket.peerHost !== this.lead?.socket.peerHost) return false
    return ![...this.flows].some(other => other.kind === 'preempt' && !other.over)
  }

  /** Counts of all its channels so far. */
  counts(): BatchStats {
    const counts = new BatchStats()
    counts.add(this.stats)
    for (const flow of this.flows) counts.add(flow.encoder.stats)
    return counts
  }
}

export interface SourceSessionOptions {
  readonly session: Session
  /** 32 hex digits, the same at the other side. */
  readonly sessionId: string
  readonly pool: Pool
  readonly seed: readonly [number, number]
  readonly learning?: SessionLearning | undefined
  readonly effort: EffortController
  readonly queueTargetMs: number
  readonly patience: PatienceTimes
  readonly log: SiteLog
  readonly now: () => number
  /** Number of the next migration; shared by the sessions of a process so that logs stay unambiguous. */
  readonly nextMigration: () => number
  readonly onSummary: (summary: MigrationSummary) => void
  /** The codec failed: the session must end. */
  readonly onFailure: (error: ProxyError) => void
  /** Connections that the other side never heard of: for another session. */
  readonly onMoved: (connections: readonly Moved[]) => void
  /** A flow has ended: there may be none left. */
  readonly onIdle: () => void
  /** The other side takes no new migrations. */
  readonly onDrain: () => void
  readonly onConnection: (connection: number, up: boolean, error: Error | undefined) => void
}

/** A connection that a session gives back. */
export interface Moved {
  readonly socket: SourceConnection
  readonly gate: Gate
}

export class SourceSession implements LinkSink {
  readonly options: SourceSessionOptions
  readonly outbound: Outbound<SourceFlow>
  private readonly flows = new Map<number, SourceFlow>()
  /** All connections, those without a flow too. */
  private readonly connections = new Set<SourceFlow>()
  /** Those that run. */
  private readonly migrations = new Set<Migration>()
  private readonly slots: SlotArena
  readonly pump: Pump
  private pumping: NodeJS.Immediate | undefined
  private idleTimer: NodeJS.Timeout | undefined
  private readonly patience: Patience
  private patienceTimer: NodeJS.Timeout | undefined
  private ended = false
  constructor(options: SourceSessionOptions) {
    this.options = options
    this.patience = new Patience(options.patience)
    const { slots } = options.pool
    this.slots = new SlotArena(slots[0]!, slots.length, SLOT_UNITS, FLOWS_MAX)
    this.outbound = new Outbound(
      options.pool,
      options.seed,
      (flow, parts, { rawLength, packedLength, newBytes }) => {
        this.pump.packed(flow.pumped!, rawLength, packedLength, newBytes)
        options.session.sendBatch(flow.number, rawLength, parts)
        if (flow.migration) this.follow(flow.migration)
        flow.afterBatch()
        this.wake()
      },
      error => options.onFailure(error),
    )
    this.pump = new Pump(options.session, this.outbound, options.effort)
    this.outbound.warm()
    this.outbound.observer = options.learning
  }

  /** Tells once how a migration is expected to go on. */
  private follow(migration: Migration): void {
    const { effort, log, now } = this.options
    const forecast = migration.forecaster.update(
      migration.blocks,
      () => migration.counts(),
      now() - migration.startMs,
      effort.effort(migration.urgent).level,
    )
    if (forecast === undefined) return
    migration.forecast = forecast
    log.info('migration halfway', { migration: migration.number, id: migration.record.id, ...forecast })
  }

  /** A migration's last flow has ended, by END: then the other side knows it at the same point. */
  migrationEnded(migration: Migration): void {
    this.migrations.delete(migration)
    if (!this.ended && !migration.moved) this.options.learning?.migrationEnded(migration.number)
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
    return this.connections.size
  }

  /** Takes a connection of QEMU. */
  accept(socket: SourceConnection, gate: Gate): void {
    void this.options.pool.warm()
    if (this.ended) {
      this.options.log.warn('connection refused', { target: gate.target, reason: 'no session' })
      socket.reset()
      return
    }
    const flow = new SourceFlow(this, socket, gate)
    this.connections.add(flow)
    gate.silent.add(flow)
    socket.start(flow)
    if (isOpen(gate.migration) && gate.migration.postcopyAdvised) this.dialSilent(gate, PREEMPT_LATE_MS)
    setTimeout(() => this.refuseSilent(flow), NOTHING_SAID_MS).unref()
  }

  private refuseSilent(flow: SourceFlow): void {
    const { gate } = flow
    if (this.ended || !gate.silent.has(flow)) return
    const seconds = NOTHING_SAID_MS / 1000
    if (flow.isSilent && isOpen(gate.migration)) setTimeout(() => this.refuseSilent(flow), NOTHING_SAID_MS).unref()
    else if (!flow.isSilent) this.refuse(flow, `it began as QEMU's channels do, and nothing followed for ${seconds} s`)
    else {
      this.refuse(
        flow,
        `nothing came for ${seconds} s: not a migration, whose source speaks first`,
        'disks (NBD) must go past the pair: virsh migrate --disks-uri',
      )
    }
  }

  private refuseWaiting(flow: SourceFlow): void {
    if (this.ended || !flow.gate.waiting.includes(flow)) return
    this.refuse(flow, `a ${flow.kind} channel whose main did not come for ${MAIN_AWAITED_MS / 1000} s`)
  }

  /** Ends a connection that no destination QEMU is to hear of. */
  private refuse(flow: SourceFlow, reason: string, hint?: string): void {
    const { gate, socket } = flow
    gate.silent.delete(flow)
    this.options.log.warn('connection refused', {
      target: gate.target,
      peer: socket.peer,
      reason,
      ...(flow.isSilent ? {} : { began: flow.head.shown }),
      ...(hint === undefined ? {} : { hint }),
    })
    socket.reset()
  }

  /** A connection and its slot are done with. */
  release(flow: SourceFlow, slot: Slot | undefined): void {
    this.connections.delete(flow)
    if (slot) this.slots.give(slot)
  }

  /** A channel's kind is known. */
  classified(flow: SourceFlow, kind: ChannelKind): void {
    const { gate } = flow
    gate.silent.delete(flow)
    const running = (gate.migration?.flows.size ?? 0) > 0
    const reason = strange(kind, gate)
    if (reason !== '') {
      this.refuse(flow, reason)
      return
    }
    // TLS has no order that we could know: as it came
    const leads = kind === 'main' || kind === 'recovery' || (kind === 'tls' && !isOpen(gate.migration) && !gate.next)
    if (leads) this.lead(flow)
    else if (isOpen(gate.migration) && !gate.next) this.open(flow, kind)
    else {
      gate.waiting.push(flow)
      setTimeout(() => this.refuseWaiting(flow), MAIN_AWAITED_MS).unref()
      if (running) setTimeout(() => this.openLate(flow), LATE_CHANNEL_MS).unref()
    }
  }

  /** A migration begins with this channel, where there is room for all that it may have. */
  private lead(flow: SourceFlow): void {
    const { gate, kind } = flow
    const nowMs = this.options.now()
    const running = [...this.migrations].map(({ flows, lastMs }) => ({ channels: flows.size, lastMs }))
    const wanted = kind === 'recovery' ? RECOVERY_CHANNELS : CHANNELS_A_MIGRATION
    const admitted = admission(FLOWS_MAX, running, wanted, CHANNELS_A_MIGRATION, nowMs)
    if (admitted.answer === 'never') {
      this.refuse(flow, `${this.flows.size} channels are open: there may be no room for all of another migration`)
      return
    }
    if (admitted.answer === 'wait') {
      gate.next = flow
      setTimeout(() => this.leadLate(flow), admitted.untilMs - nowMs + 1).unref()
      return
    }
    this.begin(flow)
  }

  private leadLate(flow: SourceFlow): void {
    const { gate } = flow
    if (this.ended || gate.next !== flow) return // it went, or another main came
    gate.next = undefined
    this.lead(flow)
  }

  private begin(flow: SourceFlow): void {
    const { gate, kind } = flow
    const { nextMigration, now, effort, session, sessionId } = this.options
    effort.begin(session.rttMinMs)
    const migration = new Migration(sessionId, nextMigration(), gate, now())
    if (kind === 'recovery') {
      // what QEMU gave up may not have ended here yet
      for (const { migration: before } of this.connections) if (before?.lead?.over) before.lead.keepMemory()
      migration.memory = gate.paused.take(gate)
    }
    gate.migration = migration
    migration.lead = flow
    migration.record.leads(kind)
    migration.urgent = kind === 'recovery'
    this.open(flow, kind)
    if (migration.moved) return
    for (const waiting of gate.waiting.splice(0)) this.open(waiting, waiting.kind)
    if (kind === 'recovery') this.postcopyAdvised(migration)
  }

  /** A channel whose main was read to its end before it was looked at: so on a busy machine. */
  private openLate(flow: SourceFlow): void {
    const { gate, kind } = flow
    const at = gate.waiting.indexOf(flow)
    if (at < 0 || this.ended || !gate.migration?.flows.size) return // it has another main, or none
    gate.waiting.splice(at, 1)
    this.open(flow, kind)
  }

  private open(flow: SourceFlow, kind: ChannelKind): void {
    const { session, log } = this.options
    const migration = flow.gate.migration!
    const slot = this.slots.take()
    if (!slot) {
      this.refuse(flow, `${FLOWS_MAX} channels have not ended`)
      return
    }
    try {
      flow.number = session.openFlow({ target: flow.gate.target, migration: migration.number, kind })
    } catch (error) {
      this.slots.give(slot)
      if (!isProxyError(error)) throw error
      if (error.code === 'PROTOCOL_STATE' && !migration.taken) {
        // DRAIN came between this connection and its first bytes
        flow.migration = migration
        migration.flows.add(flow)
        this.move(migration)
        return
      }
      log.warn('connection refused', { target: flow.gate.target, error: error.message })
      flow.socket.reset()
      return
    }
    this.flows.set(flow.number, flow)
    migration.lastMs = this.options.now()
    this.migrations.add(migration)
    flow.opened(migration, kind, slot)
    if (migration.connections === 1) {
      log.info('migration starts', {
        migration: migration.number,
        id: migration.record.id,
        target: flow.gate.target,
        kind,
        peer: flow.socket.peer,
      })
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

  /** Says once a migration, and not for each of 255 channels, what is not understood. */
  relayedRaw(migration: Migration, kind: ChannelKind, reason: string, position?: number): void {
    if (migration.relayedRaw.has(`${kind} ${reason}`)) return
    migration.relayedRaw.add(`${kind} ${reason}`)
    const { number, record } = migration
    this.options.log.warn('relayed raw', { migration: number, id: record.id, kind, position, reason })
  }

  /** Main announced postcopy: silent connections of the same gate, now or later, are the preempt channel. */
  postcopyAdvised(migration: Migration): void {
    migration.postcopyAdvised = true
    this.dialSilent(migration.gate, PREEMPT_SILENT_MS)
  }

  /** Opens the connections that are silent now, unless they say in time what they are. */
  private dialSilent(gate: Gate, afterMs: number): void {
    const silent = [...gate.silent]
    setTimeout(() => {
      for (const flow of silent) {
        // A connection that QEMU gave up, or that has spoken, is not among them any more; nor is any once the session ended.
        if (this.ended || !gate.silent.has(flow) || !isOpen(gate.migration) || !flow.isSilent) continue
        // the destination QEMU would take a stranger for its preempt channel
        if (!gate.migration.mayBePreempt(flow)) continue
        gate.silent.delete(flow)
        flow.kind = 'preempt'
        this.open(flow, 'preempt')
      }
    }, afterMs).unref()
  }

  // --- LinkSink

  onOpen(): void {}
  onBatch(): void {}

  onData(number: number, payload: Uint8Array): void {
    this.flows.get(number)?.fromPeer(payload)
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
    migration.moved = true
    if (migration.gate.migration === migration) migration.gate.migration = undefined
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
    this.patience.wan(standing > 0, this.options.now())
    this.giveUp()
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
    this.encode()
  }

  /** Something arrived or became free: encodes once this turn's events are through. */
  wake(): void {
    if (this.pumping || this.ended) return
    this.pumping = setImmediate(() => {
      this.pumping = undefined
      this.pump.nextTurn()
      this.encode()
    })
  }

  /** Breaks all of QEMU's connections: the session is gone. */
  async end(reason: string): Promise<void> {
    if (!this.ended) {
      this.ended = true
      clearTimeout(this.idleTimer)
      clearTimeout(this.patienceTimer)
      this.flows.clear()
      this.endConnections(reason)
    }
    await this.outbound.close()
  }

  /** Ends migrations that have waited for the WAN long enough; the session itself may wait on for others. */
  private giveUp(): void {
    clearTimeout(this.patienceTimer)
    if (this.ended) return
    const nowMs = this.options.now()
    let next = Number.POSITIVE_INFINITY
    for (const migration of this.migrations) {
      const { postcopy, id } = migration.record
      const endMs = this.patience.endMs(postcopy)
      if (endMs > nowMs) {
        next = Math.min(next, endMs)
        continue
      }
      const reason = this.patience.reason(postcopy)
      if ([...migration.flows].some(flow => flow.giveUp(reason)))
        this.options.log.warn('migration given up', { migration: migration.number, id, reason })
    }
    if (next < Number.POSITIVE_INFINITY)
      this.patienceTimer = setTimeout(() => this.giveUp(), Math.min(next - nowMs + 1, PATIENCE_LOOK_MS))
  }

  /** Breaks the connections of migrations that the other side may know of, and gives the others back. */
  private endConnections(reason: string): void {
    const { session } = this.options
    const known = (migration: Migration): boolean =>
      migration.taken || [...migration.flows].some(flow => !session.isUnheard(flow.number))
    const lost = new Set<SourceFlow>()
    for (const flow of this.connections) {
      // those that are silent, or wait for their main, go with what runs at their gate
      const migration = flow.migration ?? (isOpen(flow.gate.migration) ? flow.gate.migration : undefined)
      if (migration && !migration.moved && known(migration)) lost.add(flow)
    }
    const moved: Moved[] = []
    for (const flow of [...this.connections]) {
      const { migration, gate } = flow
      if (lost.has(flow)) flow.sessionLost(reason)
      else {
        if (migration) migration.moved = true
        if (gate.migration === migration) gate.migration = undefined
        moved.push(...flow.moveAway())
      }
    }
    if (moved.length > 0) this.options.onMoved(moved)
  }

  /** While any guest waits for its pages, next to nothing may wait in the link. */
  followUrgency(): void {
    if (this.ended) return
    const urgent = [...this.flows.values()].some(flow => flow.migration?.urgent && flow.migration.flows.size > 0)
    this.options.session.setQueueTarget(urgent ? URGENT_QUEUE_MS : this.options.queueTargetMs)
  }

  // --- encoding

  /** Encodes what the pump wants, and sees to it that it is asked again. */
  private encode(): void {
    if (this.ended) return
    const { pump } = this
    const { now } = this.options
    for (let job = pump.next(now()); job; job = pump.next(now())) {
      const { channel, effort, release } = job
      const flow = this.flows.get(channel.number)!
      const bytes = this.outbound.encode(flow, effort, release)
      pump.encoded(channel, bytes)
      if (flow.migration) flow.migration.effortBytes[effort.level]! += bytes
      flow.socket.resume()
    }
    if (pump.gathering) this.wake()
    if (pump.nextTickMs === Number.POSITIVE_INFINITY || this.idleTimer) return
    this.idleTimer = setTimeout(
      () => {
        this.idleTimer = undefined
        pump.tick(now())
        this.wake()
      },
      Math.max(0, pump.nextTickMs - now()),
    )
  }
}

/** Of a channel that has no slot yet. */
/** Of a flow that belongs to no migration yet. */
const NO_REGIONS = new PoolRegions([])

const NO_BUFFER = new ChannelBuffer(new Uint8Array(0), 0, 0)

/** One connection of the source QEMU. */
export class SourceFlow implements SocketSink {
  readonly socket: SourceConnection
  readonly gate: Gate
  kind: ChannelKind = 'unknown'
  /** Flow number in the session; 0 before it is opened. */
  number = 0
  migration: Migration | undefined
  encoder: FlowEncoder
  /** As the pump sees it, once it is open. */
  pumped: PumpedChannel | undefined
  closed = false
  private readonly session: SourceSession
  /** The pool's memory. */
  private readonly bytes: Uint8Array
  /** Where its bytes wait; undefined before it is opened. */
  private slot: Slot | undefined
  buffer = NO_BUFFER
  /** What came before: no more than tells what it is. */
  private readonly start = new Uint8Array(CHANNEL_START_BYTES_MAX)
  private early = 0
  private finished = false
  private finSent = false
  /** This side breaks the flow once its batches are out; the code to say. */
  private resetCode: number | undefined
  private resetText = ''
  private gone = false
  /** QEMU's stream came to its own end. */
  private whole = false
  private memoryKept = false
  /** Its connection belongs to another session by now. */
  private moved = false
  readonly head = new ChannelHead()
  /** Of a migration's main: what its destination answers is followed. */
  private returnPath: ReturnPathParser | undefined

  constructor(session: SourceSession, socket: SourceConnection, gate: Gate) {
    this.session = session
    this.socket = socket
    this.gate = gate
    this.bytes = session.options.pool.kernel.bytes
    this.encoder = new FlowEncoder(0, NO_REGIONS)
  }

  // --- SocketSink

  nextSlot(): Uint8Array | undefined {
    const { slot } = this
    if (!slot) return this.early < this.start.length ? this.start.subarray(this.early) : undefined
    // where only an incomplete record is left, it goes to the front
    return this.buffer.writable(this.session.pump.roomFor(this.pumped!), ROOM_MIN, ROOM_MIN)
  }

  onBytes(count: number): void {
    if (this.slot) {
      const at = this.buffer.filled(count)
      this.follow(at, count)
      this.took(at, count)
      return
    }
    this.head.push(this.start, this.early, count)
    this.early += count
    const { kind } = this.head
    if (kind === undefined || this.gate.waiting.includes(this)) return
    this.kind = kind
    this.session.classified(this, kind)
  }

  /** Bytes are in the slot, from this address on. */
  private took(at: number, count: number): void {
    const { session } = this
    session.pump.arrives(this.pumped!, session.options.now())
    this.encoder.push(this.bytes, at, count)
    session.wake()
  }

  onEnd(): void {
    this.finished = true
    if (this.number === 0) {
      this.socket.reset() // a probe, or a QEMU that gave up: the far side never hears of it
      return
    }
    this.endsBy({ by: 'source', how: 'closed', text: 'source QEMU closed' })
    if (this.pumped) this.pumped.ended = true
    this.afterBatch()
    this.session.wake()
  }

  onClosed(closed: SocketClosed): void {
    this.closed = true
    this.leaveGate()
    if (this.number === 0) {
      this.leave()
      return
    }
    if (closed.how === 'reset' || closed.how === 'error') {
      this.endsBy({ by: 'source', how: 'broke', text: `source QEMU broke off (${closed.error?.code ?? closed.how})` })
      this.breakOff(CODE.QEMU_LOST, `the source QEMU's connection broke: ${closed.error?.code ?? closed.how}`)
    }
  }

  /** Not a byte has come. */
  get isSilent(): boolean {
    return this.early === 0
  }

  /** Bytes of a migration's channel, for what is told of it. */
  private follow(at: number, count: number): void {
    const { migration, head } = this
    if (!migration) return
    if (migration.lead === this) migration.record.main(this.bytes, at, count)
    if (head.isFull) return
    head.push(this.bytes, at, count)
    migration.record.begins(head)
  }

  private endsBy(cause: Cause): void {
    this.migration?.record.ended(cause)
  }

  // --- session

  /** The flow exists: what came early is encoded now. */
  opened(migration: Migration, kind: ChannelKind, slot: Slot): void {
    this.kind = kind
    this.migration = migration
    migration.flows.add(this)
    migration.connections++
    migration.kinds.push(kind)
    const { pool, session } = this.session.options
    const encoder = new FlowEncoder(migration.number, PoolRegions.of(pool.kernel.layout))
    this.encoder = encoder
    encoder.parser = parserFor(kind, encoder, {
      blocks: migration.blocks,
      ...(migration.memory ? { recovery: migration.memory } : {}),
    })
    encoder.onStrayed = (position, reason) =>
      this.session.relayedRaw(migration, kind, `${reason}: its end is looked for`, position)
    encoder.onDegraded = (position, reason) => this.session.relayedRaw(migration, kind, reason, position)
    encoder.onCompressed = method =>
      this.session.relayedRaw(
        migration,
        kind,
        `QEMU compresses multifd with ${method}: set multifd-compression none, the pair saves more`,
      )
    encoder.onPhase = phase => {
      if (phase === 'eof') this.whole = true
      else if (phase === 'postcopy-advise') this.session.postcopyAdvised(migration)
      else if (phase === 'return-path') migration.record.answers = true
      else if (phase === 'postcopy' || phase === 'recovery') {
        migration.record.postcopy = true
        migration.urgent = true
        for (const flow of migration.flows) flow.hurry()
        this.session.followUrgency()
      }
    }
    if (kind === 'preempt' || migration.urgent) session.setUrgent(this.number, true)
    if (migration.urgent) this.session.followUrgency() // a recovery that cannot be parsed tells no phase
    if (migration.lead === this) this.returnPath = migration.record.returnPath()
    migration.record.begins(this.head)
    this.slot = slot
    this.buffer = new ChannelBuffer(this.bytes, slot.at, slot.bytes)
    this.pumped = new PumpedChannel(this.number, encoder, slot.bytes)
    this.pumped.urgent = migration.urgent
    this.session.pump.add(this.pumped)
    if (this.early > 0) {
      this.buffer.writable(this.early, this.early)!.set(this.start.subarray(0, this.early))
      if (migration.lead === this) migration.record.main(this.start, 0, this.early)
      this.took(this.buffer.filled(this.early), this.early)
    }
    this.socket.resume()
  }

  /** A guest waits for what it sends. */
  hurry(): void {
    this.session.options.session.setUrgent(this.number, true)
    if (this.pumped) this.pumped.urgent = true
  }

  /** QEMU has ended it. */
  get over(): boolean {
    return this.finished || this.closed
  }

  /** Keeps what a recovery connection will need of this one, where it is a main that broke off in postcopy. */
  keepMemory(): void {
    const { parser } = this.encoder
    if (this.memoryKept || (this.kind !== 'main' && this.kind !== 'recovery')) return
    this.memoryKept = true
    if (this.whole || !this.migration?.urgent || parser === undefined) return
    this.gate.paused.keep(this.gate, (parser as MainStreamParser).memory())
  }

  /** A batch of it was handed in: FIN or RESET may be due now. */
  afterBatch(): void {
    if (this.gone || (this.pumped?.underWay ?? 0) > 0) return
    const { session } = this.session.options
    if (this.resetCode !== undefined) {
      session.resetFlow(this.number, this.resetCode, this.resetText)
      this.gone = true
    } else if (this.finished && !this.finSent && this.encoder.waiting === 0) {
      this.finSent = true
      session.finFlow(this.number)
    }
  }

  fromPeer(payload: Uint8Array): void {
    if (this.migration) this.migration.bytesBack += payload.length
    this.returnPath?.push(payload, 0, payload.length)
    this.socket.write(payload, error => {
      if (!this.gone && !error) this.session.options.session.consumed(this.number, payload.length)
    })
  }

  /** The destination QEMU closed its direction, and has been given all that it sent. */
  finFromPeer(): void {
    if (!this.over) this.endsBy({ by: 'destination', how: 'closed', text: 'destination QEMU closed' })
    this.socket.finish()
  }

  resetByPeer(code: number, text: string): void {
    const by = code === CODE.QEMU_LOST ? 'destination' : 'pair'
    this.endsBy({ by, how: 'broke', text: `the other side broke off: ${text || `code ${code}`}` })
    this.breakOff(CODE.NONE, '')
    this.socket.reset()
  }

  /** The other side has taken the flow. */
  taken(): void {
    if (this.migration) this.migration.taken = true
    this.socket.settle()
  }

  /**
   * Lets its connection go; what was encoded is brought to its end here.
   * @returns the connection, if it lives
   */
  moveAway(): Moved[] {
    const { socket, gate } = this
    const moved = this.moved || socket.isClosed ? [] : [{ socket, gate }]
    if (!this.moved) socket.detach()
    this.moved = true
    this.leaveGate()
    // without a flow in a session that lives nothing comes that could end it
    if (this.number === 0 || this.session.over) this.leave()
    else this.breakOff(CODE.NONE, '')
    return moved
  }

  /** The WAN has been gone for too long. @returns false where it was over already */
  giveUp(reason: string): boolean {
    if (this.resetCode !== undefined || this.gone) return false
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    this.breakOff(CODE.PEER_LOST, reason)
    this.socket.reset()
    return true
  }

  /** Both directions have ended at the session. */
  sessionEnded(): void {
    this.gone = true
    this.leave()
  }

  /** The session is gone, and this flow with it. */
  sessionLost(reason: string): void {
    this.gone = true
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    this.socket.reset()
    this.leave()
  }

  private breakOff(code: number, text: string): void {
    if (this.resetCode !== undefined || this.gone) return
    this.resetCode = code
    this.resetText = text
    if (this.pumped) this.pumped.broken = true
    this.afterBatch()
  }

  private leaveGate(): void {
    this.gate.silent.delete(this)
    if (this.gate.next === this) this.gate.next = undefined
    const waiting = this.gate.waiting.indexOf(this)
    if (waiting >= 0) this.gate.waiting.splice(waiting, 1)
  }

  private left = false

  private leave(): void {
    if (this.left) return
    this.left = true
    if (this.pumped) {
      this.pumped.broken = true
      this.session.pump.remove(this.pumped)
    }
    // the gate outlives this session: the next one must not open what is gone
    this.leaveGate()
    // the socket may still write to the slot until it is closed
    const free = (): void => this.session.release(this, this.slot)
    if (this.closed || this.moved) free()
    else if (this.socket.isClosed) free()
    else this.onClosed = () => free()
    const { migration } = this
    if (!migration) return
    this.keepMemory()
    migration.stats.add(this.encoder.stats)
    migration.flows.delete(this)
    if (migration.flows.size > 0) return
    this.session.migrationEnded(migration)
    if (migration.moved) return
    if (this.gate.migration === migration) this.gate.migration = undefined
    if (migration.urgent) this.session.followUrgency()
    this.session.options.onSummary(summarize(migration, this.session.options.now()))
  }
}

/** Whether channels that come now belong to it. One that QEMU has given up may still have bytes to deliver. */
export function isOpen(migration: Migration | undefined): migration is Migration {
  return migration !== undefined && migration.flows.size > 0 && migration.lead?.over !== true
}

/**
 * Why a connection cannot be QEMU's, '' where it can: a destination QEMU that waits exits over whatever else reaches it
 * (wire format 1.3), so the other proxy never hears of it.
 */
function strange(kind: ChannelKind, { migration }: Gate): string {
  if (kind === 'unknown') return 'it does not begin as a channel of QEMU does: a probe, or another protocol'
  if (kind === 'main' || kind === 'recovery' || !isOpen(migration)) return ''
  const encrypted = migration.lead?.kind === 'tls'
  if (encrypted === (kind === 'tls')) return ''
  return encrypted ? 'plain text beside a migration that QEMU encrypts' : 'TLS beside a migration in plain text'
}
