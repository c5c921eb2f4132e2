/**
 * The source proxy's half of a session: QEMU's connections become flows, their bytes batches. Joins relay (sockets),
 * transfer (codec) and session (WAN); decides nothing about bytes.
 */

import { FlowEncoder } from '../codec/flow-encoder.ts'
import { PoolRegions } from '../codec/places.ts'
import type { BatchStats } from '../codec/stats.ts'
import { EFFORTS } from '../compression/effort.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import type { SessionLearning } from '../learning/learning.ts'
import { CHANNELS_A_MIGRATION, FLOWS_MAX } from '../limits.ts'
import type { LinkSink } from '../link/api.ts'
import { ChannelHead } from '../migration/channel-ends.ts'
import { ChannelLife } from '../migration/channel-life.ts'
import { Departure, type DepartureChannel } from '../migration/departure.ts'
import { type Gate, type GateOrders, Gates, isOpen } from '../migration/gates.ts'
import type { Cause } from '../migration/outcome.ts'
import { Patience, type PatienceTimes } from '../migration/patience.ts'
import type { PausedMigrations } from '../migration/paused.ts'
import type { DepartureStatus, MigrationSummary } from '../migration/summary.ts'
import { CHANNEL_START_BYTES_MAX, type ChannelKind } from '../qemu/channel-kind.ts'
import { MainStreamParser, type ParserMemory } from '../qemu/main-stream.ts'
import type { ReturnPathParser } from '../qemu/return-path.ts'
import type { SocketClosed, SocketSink } from '../relay/qemu-socket.ts'
import type { Session } from '../session/session.ts'
import { ChannelBuffer } from '../transfer/channel-buffer.ts'
import { parserFor } from '../transfer/channel-parser.ts'
import type { EffortController } from '../transfer/effort-controller.ts'
import { type BatchSink, Outbound } from '../transfer/outbound.ts'
import type { Pool } from '../transfer/pool.ts'
import { BATCH_BYTES_MAX, Pump, PumpedChannel } from '../transfer/pump.ts'
import { SLOT_UNIT_BYTES, type Slot, SlotArena } from '../transfer/slot-arena.ts'
import { CODE } from '../wan/wire.ts'
import type { SiteLog } from './events.ts'
import type { SourceConnection } from './source-connection.ts'

/** A full slot has room behind them, so that moving an incomplete record to the front is seldom needed. */
const SLOT_UNITS = BATCH_BYTES_MAX / SLOT_UNIT_BYTES + 1
/** Time that bytes may wait in the link while a guest waits for pages: postcopy. */
const URGENT_QUEUE_MS = 5
/** A slot with less room than this is full. */
const ROOM_MIN = 16 * 1024
/** While the WAN is broken a migration may come to its switch to postcopy, whose patience is another. */
const PATIENCE_LOOK_MS = 1000

/** All channels of one `migrate`. */
export type Migration = Departure<SourceFlow>

/** A listening port, as this half sees it. */
export type SourceGate = Gate<SourceFlow, Migration>

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

/** What encodes and packs: Outbound. */
export type SourcePacker = Pick<
  Outbound<SourceFlow>,
  'pool' | 'underWay' | 'hasRoom' | 'observer' | 'warm' | 'encode' | 'close'
>

export interface SourceParts {
  readonly packer: (
    options: SourceSessionOptions,
    sink: BatchSink<SourceFlow>,
    onError: (error: ProxyError) => void,
  ) => SourcePacker
  readonly Gates: typeof Gates<SourceFlow, Migration>
}

const SOURCE_PARTS: SourceParts = {
  packer: ({ pool, seed }, sink, onError) => new Outbound(pool, seed, sink, onError),
  Gates,
}

/** A connection that a session gives back. */
export interface Moved {
  readonly socket: SourceConnection
  readonly gate: SourceGate
}

export class SourceSession implements LinkSink, GateOrders<SourceFlow, Migration> {
  readonly options: SourceSessionOptions
  readonly outbound: SourcePacker
  private readonly flows = new Map<number, SourceFlow>()
  /** All connections, those without a flow too. */
  private readonly connections = new Set<SourceFlow>()
  private readonly gates: Gates<SourceFlow, Migration>
  private gatesTimer: NodeJS.Timeout | undefined
  private gatesTimerMs = Number.POSITIVE_INFINITY
  private readonly slots: SlotArena
  readonly pump: Pump
  private idleTimer: NodeJS.Timeout | undefined
  private readonly patience: Patience
  private patienceTimer: NodeJS.Timeout | undefined
  private ended = false
  constructor(options: SourceSessionOptions) {
    this.options = options
    this.patience = new Patience(options.patience)
    const { slots } = options.pool
    const parts = { ...SOURCE_PARTS, ...options.parts }
    this.gates = new parts.Gates(this, { all: FLOWS_MAX, aMigration: CHANNELS_A_MIGRATION })
    this.slots = new SlotArena(slots[0]!, slots.length, SLOT_UNITS, FLOWS_MAX)
    this.outbound = parts.packer(
      options,
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
    const forecast = migration.follow(now(), effort.effort(migration.urgent).level)
    if (forecast === undefined) return
    log.info('migration halfway', { migration: migration.number, id: migration.record.id, ...forecast })
  }

  /** A migration's last flow has ended, by END: then the other side knows it at the same point. */
  migrationEnded(migration: Migration): void {
    this.gates.ended(migration)
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

  /** Migrations that run, each as it is: plain data. */
  status(): DepartureStatus[] {
    const { now, effort } = this.options
    return Array.from(this.gates.migrations, migration =>
      migration.status(now(), effort.effort(migration.urgent).level),
    )
  }

  /** Takes a connection of QEMU. */
  accept(socket: SourceConnection, gate: SourceGate): void {
    void this.options.pool.warm()
    if (this.ended) {
      this.options.log.warn('connection refused', { target: gate.target, reason: 'no session' })
      socket.reset()
      return
    }
    const flow = new SourceFlow(this, socket, gate)
    this.connections.add(flow)
    this.gates.arrived(flow, this.options.now())
    socket.start(flow)
    this.armGates()
  }

  /** One timer for all gates. */
  private armGates(): void {
    const { nextTickMs } = this.gates
    if (nextTickMs >= this.gatesTimerMs) return
    clearTimeout(this.gatesTimer)
    this.gatesTimerMs = nextTickMs
    this.gatesTimer = setTimeout(
      () => {
        this.gatesTimerMs = Number.POSITIVE_INFINITY
        this.gates.tick(this.options.now())
        this.armGates()
      },
      Math.max(0, nextTickMs - this.options.now()),
    ).unref()
  }

  /** Ends a connection that no destination QEMU is to hear of. */
  refuse(flow: SourceFlow, reason: string, hint?: string): void {
    const { gate, socket } = flow
    this.options.log.warn('connection refused', {
      target: gate.target,
      peer: socket.peer,
      reason,
      ...(flow.isSilent ? {} : { began: flow.head.shown }),
      ...(hint === undefined ? {} : { hint }),
    })
    socket.reset()
  }

  /** It waits at its gate for nothing any more. */
  leaveGate(flow: SourceFlow): void {
    this.gates.left(flow)
  }

  /** A connection and its slot are done with. */
  release(flow: SourceFlow, slot: Slot | undefined): void {
    this.connections.delete(flow)
    if (slot) this.slots.give(slot)
  }

  /** A channel's kind is known. */
  classified(flow: SourceFlow): void {
    this.gates.known(flow, this.options.now())
    this.armGates()
  }

  begin(flow: SourceFlow): Migration {
    const { gate, kind } = flow
    const { nextMigration, now, effort, session, sessionId, paused } = this.options
    effort.begin(session.rttMinMs)
    const startMs = now()
    const migration = new Departure({
      ...{ session: sessionId, number: nextMigration(), gate, startMs, kind, efforts: EFFORTS.length },
    })
    if (kind === 'recovery') {
      // what QEMU gave up may not have ended here yet
      for (const { migration: before } of this.connections) if (before?.lead?.over) before.remember(paused)
      migration.memory = paused.take(gate)
    }
    return migration
  }

  open(flow: SourceFlow, migration: Migration): void {
    const { session, log } = this.options
    const { kind, gate } = flow
    const slot = this.slots.take()
    if (!slot) {
      this.refuse(flow, `${FLOWS_MAX} channels have not ended`)
      return
    }
    try {
      flow.number = session.openFlow({ target: gate.target, migration: migration.number, kind })
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
      log.warn('connection refused', { target: gate.target, error: error.message })
      flow.socket.reset()
      return
    }
    this.flows.set(flow.number, flow)
    flow.opened(migration, kind, slot)
    if (migration.lead === flow) {
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
    if (!migration.saysRaw(kind, reason)) return
    const { number, record } = migration
    this.options.log.warn('relayed raw', { migration: number, id: record.id, kind, position, reason })
  }

  postcopyAdvised(migration: Migration): void {
    this.gates.advised(migration, this.options.now())
    this.armGates()
  }

  // --- LinkSink

  onOpen(): void {}
  onBatch(): void {}

  onData(number: number, payload: Uint8Array): void {
    const flow = this.flows.get(number)
    if (!flow || flow.isMoved) return
    const { pieces, onFailure } = this.options
    if (pieces.take(1)) flow.fromPeer(payload)
    else {
      const what = `${pieces.held} pieces wait for QEMU`
      onFailure(new ProxyError('LIMIT_EXCEEDED', what, undefined, 'the session ends'))
    }
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
    this.pump.nextTurn()
    this.encode()
  }

  /** Something arrived or became free: encodes once this turn's events are through. */
  wake(): void {
    if (!this.ended) this.options.wake()
  }

  /** Breaks all of QEMU's connections: the session is gone. */
  async end(reason: string): Promise<void> {
    if (!this.ended) {
      this.ended = true
      clearTimeout(this.idleTimer)
      clearTimeout(this.patienceTimer)
      clearTimeout(this.gatesTimer)
      this.gates.stop()
      this.flows.clear()
      this.endConnections(reason)
      this.options.pieces.close()
    }
    await this.outbound.close()
  }

  /** Ends migrations that have waited for the WAN long enough; the session itself may wait on for others. */
  private giveUp(): void {
    clearTimeout(this.patienceTimer)
    if (this.ended) return
    const nowMs = this.options.now()
    let next = Number.POSITIVE_INFINITY
    for (const migration of this.gates.migrations) {
      const { postcopy, id } = migration.record
      const endMs = this.patience.endMs(postcopy)
      if (endMs > nowMs) {
        next = Math.min(next, endMs)
        continue
      }
      const reason = this.patience.reason(postcopy)
      const ended = [...migration.flows].filter(flow => flow.giveUp(reason))
      if (ended.length > 0) this.options.log.warn('migration given up', { migration: migration.number, id, reason })
    }
    if (next < Number.POSITIVE_INFINITY)
      this.patienceTimer = setTimeout(() => this.giveUp(), Math.min(next - nowMs + 1, PATIENCE_LOOK_MS))
  }

  /** Breaks the connections of migrations that the other side may know of, and gives the others back. */
  private endConnections(reason: string): void {
    const { session } = this.options
    const known = (migration: Migration): boolean => migration.isKnown(flow => session.isUnheard(flow))
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
      if (flow.migration) flow.migration.traffic.effortBytes[effort.level]! += bytes
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
export class SourceFlow implements SocketSink, DepartureChannel {
  readonly socket: SourceConnection
  readonly gate: SourceGate
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
  private readonly life = new ChannelLife('unopened')
  /** QEMU sends no more. */
  private finished = false
  /** With what its flow is torn down. */
  private resetCode: number = CODE.NONE
  private resetText = ''
  /** Its connection belongs to another session by now. */
  private moved = false
  readonly head = new ChannelHead()
  /** Of a migration's main: what its destination answers is followed. */
  private returnPath: ReturnPathParser | undefined

  constructor(session: SourceSession, socket: SourceConnection, gate: SourceGate) {
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
    this.session.classified(this)
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
      this.leaveGate() // a probe, or a QEMU that gave up: the far side never hears of it
      this.socket.reset()
      return
    }
    this.endsBy({ by: 'source', how: 'closed', text: 'source QEMU closed' })
    this.life.on('eof')
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

  get host(): string {
    return this.socket.peerHost
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
    migration.opened(this, this.session.options.now())
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
      const order = migration.phase(phase)
      if (order === 'advised') this.session.postcopyAdvised(migration)
      else if (order === 'urgent') {
        for (const flow of migration.flows) flow.hurry()
        this.session.followUrgency()
      }
    }
    if (kind === 'preempt' || migration.urgent) session.setUrgent(this.number, true)
    if (migration.urgent) this.session.followUrgency() // a recovery that cannot be parsed tells no phase
    if (migration.lead === this) this.returnPath = migration.record.returnPath()
    migration.record.begins(this.head)
    this.life.on('opened')
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

  get stats(): BatchStats {
    return this.encoder.stats
  }

  get memory(): ParserMemory | undefined {
    const { parser } = this.encoder
    return parser instanceof MainStreamParser ? parser.memory() : undefined
  }

  /** A batch of it was handed in: FIN or RESET may be due now. */
  afterBatch(): void {
    if ((this.pumped?.underWay ?? 0) > 0) return
    const { session } = this.session.options
    const order = this.life.on(this.encoder.waiting === 0 ? 'emptied' : 'packed')
    if (order === 'fin') session.finFlow(this.number)
    else if (order === 'reset') session.resetFlow(this.number, this.resetCode, this.resetText)
  }

  fromPeer(payload: Uint8Array): void {
    if (this.migration) this.migration.traffic.bytesBack += payload.length
    this.returnPath?.push(payload, 0, payload.length)
    const { pieces } = this.session.options
    this.socket.write(payload, error => {
      pieces.give(1)
      if (!this.life.isOver && !error) this.session.options.session.consumed(this.number, payload.length)
    })
  }

  /** The destination QEMU closed its direction, and has been given all that it sent. */
  finFromPeer(): void {
    if (this.moved) return
    if (!this.over) this.endsBy({ by: 'destination', how: 'closed', text: 'destination QEMU closed' })
    this.socket.finish()
  }

  resetByPeer(code: number, text: string): void {
    const by = code === CODE.QEMU_LOST ? 'destination' : 'pair'
    this.endsBy({ by, how: 'broke', text: `the other side broke off: ${text || `code ${code}`}` })
    this.breakOff(CODE.NONE, '')
    if (!this.moved) this.socket.reset()
  }

  /** Its connection belongs to another session by now: what the peer still says of this flow is not for it. */
  get isMoved(): boolean {
    return this.moved
  }

  /** The other side has taken the flow. */
  taken(): void {
    if (this.moved) return
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
    if (this.life.isBroken) return false
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    this.breakOff(CODE.PEER_LOST, reason)
    if (!this.moved) this.socket.reset()
    return true
  }

  /** Both directions have ended at the session. */
  sessionEnded(): void {
    this.life.on('ended')
    this.leave()
  }

  /** The session is gone, and this flow with it. */
  sessionLost(reason: string): void {
    this.life.on('ended')
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    this.socket.reset()
    this.leave()
  }

  private breakOff(code: number, text: string): void {
    if (this.life.isBroken) return
    this.life.on('broke')
    this.resetCode = code
    this.resetText = text
    if (this.pumped) this.pumped.broken = true
    this.afterBatch()
  }

  private leaveGate(): void {
    this.session.leaveGate(this)
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
    if (migration.lead === this) migration.remember(this.session.options.paused)
    if (!migration.closed(this)) return
    this.session.migrationEnded(migration)
    if (migration.moved) return
    if (migration.urgent) this.session.followUrgency()
    this.session.options.onSummary(migration.summary(this.session.options.now()))
  }
}
