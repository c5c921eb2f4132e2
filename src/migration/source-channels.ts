/**
 * The channels of one session at its source, and the migrations that they are of: which of them get a flow, what becomes of
 * those that get none, how urgent all of it is, and what is told of it. Joins the gates, the departures, and the session
 * that has the flows. Pure: the time is asked for, orders go out, and `tick` is due at `nextTickMs`.
 */
import { assert, isProxyError, ProxyError } from '../errors.ts'
import { CHANNELS_A_MIGRATION, DISK_CONNECTIONS_MAX, FLOWS_MAX } from '../limits.ts'
import type { Log } from '../log.ts'
import type { StreamPhase } from '../qemu/stream-sink.ts'
import type { FlowInfo } from '../wan/bodies.ts'
import { CODE, KIND_DISK } from '../wan/wire.ts'
import type { Departure, DepartureChannel } from './departure.ts'
import { Departures, type DeparturesChannel, type DeparturesOptions } from './departures.ts'
import { DiskDeparture } from './disk-departure.ts'
import { type DiskGateOrders, DiskGates } from './disk-gates.ts'
import type { FlowKind, GateKind } from './gate.ts'
import { Gates } from './gates.ts'
import { MigrationDeparture } from './migration-departure.ts'
import { type SourceDisk, SourceDisks } from './source-disks.ts'
import type { SourceChannelEvents } from './source-events.ts'
import type { DepartureStatus, DiskDepartureStatus, NamedMigration } from './summary.ts'

/** A connection of QEMU, and its flow once it has one. SourceFlow is one. `S`: where its bytes lie until they are encoded. */
export interface SourceChannel<C extends DeparturesChannel<C>, S> extends SourceDisk<C> {
  /** Who has connected; and its first bytes, undefined where there are none. */
  readonly peer: string
  readonly began: string | undefined
  readonly slot: S | undefined
  /** No destination QEMU is to hear of it: it breaks. */
  refused(): void
  /** It has a flow. */
  opened(number: number, migration: Departure<C>, slot: S): void
  /** The session takes no flow any more: it goes on in another one, with its migration. */
  unopened(migration: Departure<C>): void
  /** The operator ends its migration. @returns false where it was over already */
  cancel(): boolean
  /** The other side tore its flow down. */
  resetByPeer(code: number, text: string): void
  /** The session has forgotten its flow, whose number may be another's now. */
  forgotten(): void
  /** Both directions of its flow have ended, and all that came is handed on. */
  sessionEnded(): void
  /** The session is gone, and its flow with it. */
  sessionLost(reason: string): void
}

/** What is asked of the session; Session has it. */
export interface SourceLink {
  /** @throws ProxyError LIMIT_EXCEEDED, PROTOCOL_STATE */
  openFlow(info: FlowInfo): number
  isUnheard(flow: number): boolean
  setQueueTarget(ms: number): void
}

/** Memory for channels; Sender has it. */
export interface ChannelSlots<S> {
  /** For a channel that came in at a gate of this kind; undefined: none is left. */
  takeSlot(at: GateKind): S | undefined
  giveSlot(slot: S): void
}

/** What is to be done. */
export interface SourceOrders<C extends DepartureChannel> {
  /** A migration begins. */
  begins(): void
  /** A migration's last channel has ended. */
  ends(migration: Departure<C>): void
  /** No connection of a migration is left. */
  rests(): void
  /** These are another session's: lets their connections go. */
  move(channels: readonly C[]): void
  /** There may be something to encode. */
  wake(): void
  /** `nextTickMs` may have come nearer. */
  arm(): void
}

export interface SourceChannelsOptions<C extends SourceChannel<C, S>, S> {
  readonly link: SourceLink
  readonly slots: ChannelSlots<S>
  readonly orders: SourceOrders<C>
  readonly log: Log<SourceChannelEvents>
  readonly now: () => number
  readonly departures: DeparturesOptions
  /** The other side can take disks. */
  readonly disks: boolean
  /** Pages of ring that are kept for what their servers say; undefined: it comes as it is. */
  readonly replies?: number | undefined
  /** Level of the next batch's effort. @param urgent whether a guest waits for it */
  readonly effort: (urgent: boolean) => number
  /** Time that bytes may wait in the link while no guest waits for pages. */
  readonly queueTargetMs: number
  /** Others in place of these: a test's. */
  readonly parts?: SourceChannelsParts<C>
}

export interface SourceChannelsParts<C extends DeparturesChannel<C>> {
  readonly Gates: typeof Gates<C, MigrationDeparture<C>, Departure<C>>
  readonly Departures: typeof Departures<C>
}

export class SourceChannels<C extends SourceChannel<C, S>, S> {
  private readonly options: SourceChannelsOptions<C, S>
  /** Those that have a flow, by its number. */
  private readonly flows = new Map<number, C>()
  private readonly gates: Gates<C, MigrationDeparture<C>, Departure<C>>
  /** Those that are of disks. */
  readonly disks: SourceDisks<C>
  private readonly departures: Departures<C>
  /** Whose flow is no more, and which have not been told: something came that is not handed on yet. */
  private ending = 0
  private ended = false

  constructor(options: SourceChannelsOptions<C, S>) {
    const parts: SourceChannelsParts<C> = options.parts ?? { Gates, Departures }
    this.options = options
    const orders: Pick<DiskGateOrders<C, Departure<C>>, 'open' | 'refuse' | 'unanswered'> = {
      open: (...opened) => this.open(...opened),
      refuse: (...refused) => this.refuse(...refused),
      unanswered: (...silent) => this.unanswered(...silent),
    }
    this.gates = new parts.Gates(
      { ...orders, begin: channel => this.begins(() => this.departures.begin(channel, options.now())) },
      { all: FLOWS_MAX - DISK_CONNECTIONS_MAX, aMigration: CHANNELS_A_MIGRATION },
    )
    this.disks = new SourceDisks<C>(
      {
        log: options.log,
        now: options.now,
        followUrgency: () => this.followUrgency(),
        arm: () => options.orders.arm(),
      },
      new DiskGates<C, DiskDeparture<C>, Departure<C>>(
        { ...orders, begin: channel => this.begins(() => this.departures.beginDisks(channel, options.now())) },
        DISK_CONNECTIONS_MAX,
      ),
    )
    this.departures = new parts.Departures(options.departures, this.running, (given, reason) =>
      given.tellGivenUp(options.log, reason),
    )
  }

  /** All connections, opened or not. */
  get connections(): ReadonlySet<C> {
    return this.departures.connections
  }

  /** How many have a flow, or are brought to its end. */
  get count(): number {
    return this.flows.size + this.ending
  }

  /** How many of them are of migrations. */
  get countOfMigrations(): number {
    let count = 0
    for (const { gate } of this.flows.values()) if (gate.kind === 'migration') count++
    return count
  }

  /** The one that has this flow. */
  get(number: number): C | undefined {
    return this.flows.get(number)
  }

  /** The session has ended. */
  get over(): boolean {
    return this.ended
  }

  /** Migrations and disk transfers that run. */
  private readonly running: Iterable<Departure<C>> = {
    [Symbol.iterator]: () => [...this.gates.migrations, ...this.disks.transfers].values(),
  }

  /** Migrations that run, each as it is: plain data. */
  status(): DepartureStatus[] {
    const { now, effort } = this.options
    return Array.from(this.gates.migrations, migration => migration.status(now(), effort(migration.urgent)))
  }

  /** Disk transfers that run, likewise. */
  diskStatus(): DiskDepartureStatus[] {
    return this.disks.status(this.options.effort(false))
  }

  // --- what happens

  /**
   * An operator ends a migration: its guest goes on at the source.
   * @returns undefined where none of that id runs here
   * @throws ProxyError CANCEL_REFUSED where the guest may run at the destination already
   */
  cancel(id: string): NamedMigration | undefined {
    for (const migration of this.gates.migrations) {
      const { named, cancelRefusal } = migration
      if (named.id !== id) continue
      if (cancelRefusal !== undefined) {
        const hint = 'ask its QEMU: migrate_cancel, or virsh domjobabort'
        throw new ProxyError('CANCEL_REFUSED', `migration ${id}: ${cancelRefusal}`, undefined, hint)
      }
      const cancelled = [...migration.flows].filter(channel => channel.cancel())
      if (cancelled.length === 0) return undefined // it is ending
      this.options.log.warn('migration cancelled', named)
      return named
    }
    return undefined
  }

  /** A connection came in, or goes on here from another session. */
  arrived(channel: C): void {
    this.departures.connections.add(channel)
    if (channel.gate.kind === 'migration') this.gates.arrived(channel, this.options.now())
  }

  /** One that has arrived can be read. That of a disk waits for its server, which speaks first. */
  readable(channel: C): void {
    if (channel.gate.kind !== 'disk' || channel.over) return
    const hint = 'bring the other proxy to this version; memory goes on as it does'
    if (this.options.disks) this.disks.arrived(channel)
    else this.refuse(channel, 'the other proxy is older, and cannot carry disks', hint)
    this.options.orders.arm()
  }

  /** Its first bytes tell what it is. */
  known(channel: C): void {
    this.gates.known(channel, this.options.now())
    this.options.orders.arm()
  }

  /** QEMU has closed it, and what it said before waits for its flow. */
  endsBehind(channel: C): void {
    this.gates.closed(channel, this.options.now())
    this.options.orders.arm()
  }

  /** It waits at its gate for nothing any more. */
  leaveGate(channel: C): void {
    this.gates.left(channel)
  }

  /** Its flow is over; a migration may be, with it. */
  left(channel: C): void {
    const last = this.departures.left(channel)
    if (last instanceof MigrationDeparture) this.gates.ended(last)
    else if (last instanceof DiskDeparture) this.disks.ended(last)
    if (last?.urgent || channel.gate.kind === 'disk') this.followUrgency()
    if (!last || last.moved) return
    this.options.orders.ends(last)
  }

  /** Whether any connection is one of a migration, or may become one. */
  private get hasMigrations(): boolean {
    for (const { gate } of this.connections) if (gate.kind === 'migration') return true
    return false
  }

  /** Its connection is gone, too: nothing writes to its slot. */
  release(channel: C): void {
    const { slot } = channel
    const { connections } = this.departures
    if (!connections.delete(channel)) return
    const { slots, orders } = this.options
    if (slot !== undefined) slots.giveSlot(slot)
    if (channel.gate.kind === 'migration' && !this.hasMigrations) orders.rests()
  }

  /** Main has come to this. */
  phase(migration: Departure<C>, phase: StreamPhase): void {
    assert(migration instanceof MigrationDeparture, 'a phase of a disk')
    const order = migration.phase(phase)
    if (order === 'advised') {
      this.gates.advised(migration, this.options.now())
      this.options.orders.arm()
    } else if (order === 'urgent') {
      for (const channel of migration.flows) channel.hurry()
      this.followUrgency()
    }
  }

  /** A batch of it was handed in: tells once how its migration is expected to go on, and now and then how far it is. */
  sent(channel: C): void {
    const { orders, now, effort, log } = this.options
    orders.wake()
    const migration = channel.migration!
    const { forecast, progress } = migration.sent(channel, now(), effort(migration.urgent))
    const named = { migration: migration.number, id: migration.record.id }
    if (forecast) log.info('migration halfway', { ...named, ...forecast })
    if (progress) log.info('migration progress', { ...named, ...progress })
  }

  /** A page of a set was asked for behind a batch of this migration: what that takes on the WAN. */
  brought(number: number, bytes: number): void {
    for (const migration of this.running) if (migration.number === number) migration.traffic.brought(bytes)
  }

  /** What cannot be understood of a channel, and why: told once a migration, and not for each of 255 channels. */
  relayedRaw(migration: Departure<C>, kind: FlowKind, reason: string, position?: number): void {
    migration.relayedRaw(kind)
    if (!migration.saysRaw(kind, reason)) return
    const { number, record } = migration
    this.options.log.warn('relayed raw', { migration: number, id: record.id, kind, position, reason })
  }

  /**
   * The other side takes no flow of its migration: all of that goes on in another session, where it knows of none. Of a
   * disk transfer that it has taken, this connection alone does: each is one of its own to its server.
   */
  refusedByPeer(number: number, text: string): void {
    const channel = this.flows.get(number)
    if (!channel?.migration) return
    if (!channel.migration.taken) this.move(channel.migration)
    else if (channel.migration instanceof DiskDeparture) this.options.orders.move([channel])
    else channel.resetByPeer(CODE.SHUTDOWN, text)
  }

  /**
   * Both directions of a flow have ended.
   * @param behind does something once all that came of it is handed on
   */
  endedBySession(number: number, behind: (then: () => void) => void = then => then()): void {
    const channel = this.flows.get(number)
    if (!channel) return
    this.flows.delete(number)
    this.ending++
    channel.forgotten()
    behind(() => {
      this.ending--
      channel.sessionEnded()
    })
  }

  /** The WAN has broken, or stands. */
  wan(up: boolean): void {
    this.departures.wan(up, this.options.now())
    this.options.orders.arm()
  }

  /** The WAN stands, but nothing has been acknowledged since then. @returns why the session must end */
  stalled(sinceMs: number): string | undefined {
    return this.departures.stalled(sinceMs, this.options.now())
  }

  /** When `tick` is due; Infinity: not before something happens. */
  get nextTickMs(): number {
    const { gates, disks, departures } = this
    return Math.min(gates.nextTickMs, disks.nextTickMs, departures.nextTickMs)
  }

  tick(): void {
    const nowMs = this.options.now()
    if (this.gates.nextTickMs <= nowMs) this.gates.tick(nowMs)
    this.disks.tick(nowMs)
    this.departures.tick(nowMs)
  }

  /** What has no flow yet goes on in another session: this one serves what it has to its end. */
  leave(): void {
    const unopened = [...this.connections].filter(({ migration }) => !migration)
    if (unopened.length > 0) this.options.orders.move(unopened)
  }

  /** The session is gone: breaks what the other side may know of, and lets all others go on in another one. */
  end(reason: string): void {
    this.ended = true
    this.gates.stop()
    this.disks.stop()
    this.flows.clear()
    const { link, orders } = this.options
    const { lost, goOn } = this.departures.part(flow => link.isUnheard(flow))
    for (const channel of lost) channel.sessionLost(reason)
    orders.move(goOn)
  }

  // --- orders of the gates

  private begins<D>(begin: () => D): D {
    this.options.orders.begins()
    return begin()
  }

  private open(channel: C, migration: Departure<C>): void {
    const { link, slots, orders, log } = this.options
    const { kind, gate } = channel
    const { target } = gate
    const slot = slots.takeSlot(gate.kind)
    if (slot === undefined) {
      this.refuse(channel, `${FLOWS_MAX} channels have not ended`)
      return
    }
    let number: number
    try {
      const { replies } = this.options
      const takes = kind === KIND_DISK && replies !== undefined && { replies }
      number = link.openFlow({ target, migration: migration.number, kind, ...takes })
    } catch (error) {
      slots.giveSlot(slot)
      if (!isProxyError(error)) throw error
      if (error.code === 'PROTOCOL_STATE' && !migration.taken) {
        // DRAIN came between this connection and its first bytes
        channel.unopened(migration)
        this.move(migration)
        return
      }
      if (error.code === 'PROTOCOL_STATE' && migration instanceof DiskDeparture) {
        // likewise, and what is left of its transfer is ending
        orders.move([channel])
        return
      }
      log.warn('connection refused', { target, error: error.message })
      channel.refused()
      return
    }
    this.flows.set(number, channel)
    channel.opened(number, migration, slot)
    if (migration.urgent) this.followUrgency() // a recovery that cannot be parsed tells no phase
    migration.tellStart(log, channel)
    if (kind === 'tls') {
      const advice = 'use plain TCP to the proxy'
      this.relayedRaw(migration, kind, `QEMU encrypts this migration itself: nothing can be saved; ${advice}`)
    }
    orders.wake()
  }

  private refuse(channel: C, reason: string, hint?: string): void {
    const { gate, peer, began } = channel
    const more = { ...(began !== undefined && { began }), ...(hint !== undefined && { hint }) }
    this.options.log.warn('connection refused', { target: gate.target, peer, reason, ...more })
    channel.refused()
  }

  private unanswered(channel: C, reason: string): void {
    if (!channel.giveUp(reason)) return // it is ending
    const { gate, peer } = channel
    const hint = 'look at the disk server, at the destination'
    this.options.log.warn('connection refused', { target: gate.target, peer, reason, hint })
  }

  /** The other side never heard of this migration. */
  private move(migration: Departure<C>): void {
    if (migration.moved) return
    // those that are silent, or wait for their main, go with it: here it would never come
    const goWith = [...this.connections].filter(({ migration: of, gate }) => !of && gate.migration === migration)
    migration.goesOn()
    this.options.orders.move([...migration.flows, ...goWith])
  }

  /** While any guest waits for its pages, or for its disk, next to nothing may wait in the link. */
  private followUrgency(): void {
    if (this.ended) return
    const { link, queueTargetMs } = this.options
    link.setQueueTarget(Math.min(queueTargetMs, this.departures.queueMs))
  }
}
