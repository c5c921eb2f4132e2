/**
 * Which connection belongs to which migration, and which to none. A connection says nothing about it: only where it came
 * in, what it begins with, and when. Pure: times come in, orders go out, and `tick` is due at `nextTickMs`.
 *
 * - main, or recovery, begins a migration at its gate; TLS does where none is open, because its order cannot be known
 * - one for whose channels there is no room yet waits, and later ones of its gate wait behind it, a recovery too: waiting
 *   changes when a migration begins, never which channels it has
 * - multifd and preempt channels that speak belong to the last main of their gate that is open or waits for room, or wait
 *   for the first that comes
 * - whatever is encrypted where its main is not, or is not where it is, is refused, whichever of the two came first
 * - one that came behind a main while that was not read to its end belongs to it, whenever it speaks: between two sessions
 *   all of a short migration may have come, and all of it has ended
 * - one that comes when its main has just been read to its end belongs to the next migration, if that one's main comes
 *   soon, else to this one; one that has come already and waits for room is soon enough
 * - one that QEMU has closed while it waited belongs to no main that came in after that
 * - one that is silent may be the preempt channel of a migration that announced postcopy, where that has had none: QEMU opens
 *   one for each `migrate`, so that whatever comes behind it, while main is not read to its end, is the main of a recovery
 * - whatever begins otherwise, or never goes on, is refused, and so is another proxy: a destination QEMU that waits exits
 *   over it
 *
 * Gates of disks are others: disk-gates.ts.
 */
import { type Admission, admission, GATHERING_MS, type Gathering } from './channel-places.ts'
import {
  type FlowKind,
  type Gate,
  type GateChannel,
  type GateMigration,
  type GateOrders,
  type GateTransfer,
  isOpen,
  type Turn,
} from './gate.ts'

/** A connection that was silent when main announced postcopy is dialled as the preempt channel so long after (qemu-wire-format 1.3). */
export const PREEMPT_SILENT_MS = 200
/**
 * And one that comes later: QEMU from 8.0 on opens it when postcopy starts. Page requests do not wait for this: the first
 * bytes on a connection tell what it is. A probe that comes at that moment has gone by then.
 */
export const PREEMPT_LATE_MS = 50
/** A channel that comes when its gate's main has ended belongs to the next migration, if that one's main comes in this time. */
export const LATE_CHANNEL_MS = 200
/**
 * A connection that says nothing for so long, while no migration runs, is not QEMU's: all its channels speak first. Above
 * all NBD, whose server speaks first: libvirt's storage migration takes a port of the same range, and QEMU's guest stands
 * still while it waits for the greeting.
 */
export const NOTHING_SAID_MS = 5000
/** A channel's main comes within milliseconds, on a host that swaps within seconds. One that never comes holds no place. */
export const MAIN_AWAITED_MS = 60_000
/** A main that waits for room is refused after this. Room is there within seconds, unless others begin and end all the time. */
export const ROOM_AWAITED_MS = 60_000
/** One that QEMU has closed waits no longer: whatever came in before that has said by then what it is, or is refused. */
export const CLOSED_CHANNEL_MS = NOTHING_SAID_MS
/** Why it is refused then. */
const CLOSED_FIRST = 'that QEMU closed before its main came'
/** What it is refused with that would have QEMU exit over another proxy's TLS. */
const PROXY = 'it is another proxy, or `pageferry check`: this port is for QEMU, not for proxies'
const PROXY_HINT = 'let its --peer be the --listen of a destination proxy, not of this source proxy'
/** A recovery has a main and a preempt channel. */
const RECOVERY_CHANNELS = 2

/** How many channels there may be. */
export interface GatePlaces {
  readonly all: number
  /** Of one migration, at most. */
  readonly aMigration: number
}

interface Due<C> {
  readonly atMs: number
  readonly what: 'silence' | 'main' | 'closed' | 'late' | 'preempt' | 'room' | 'crowded'
  readonly channel: C
}

/**
 * One for a session; the gates themselves outlive it.
 * @typeParam R - what else may run at gates of the same class
 */
export class Gates<
  C extends GateChannel & { readonly gate: Gate<C, R> },
  M extends GateMigration & R,
  R extends GateTransfer = M,
> {
  /** When `tick` is due; Infinity: not before something happens. */
  nextTickMs = Number.POSITIVE_INFINITY
  /** Those that run. */
  readonly migrations = new Set<M>()
  private readonly orders: GateOrders<C, M>
  private readonly places: GatePlaces
  /** Counts what happens: which of two came first. */
  private events = 0
  private readonly came = new WeakMap<C, number>()
  /** With which migration those came that had a main before them when they came, or have it since. */
  private readonly beside = new WeakMap<C, M>()
  /** Those that have, or had, their preempt channel. */
  private readonly preempted = new WeakSet<M>()
  /** Of those that QEMU closed. */
  private readonly closedAt = new WeakMap<C, number>()
  private due: Due<C>[] = []
  private stopped = false

  constructor(orders: GateOrders<C, M>, places: GatePlaces) {
    this.orders = orders
    this.places = places
  }

  /** A connection came in, or goes on here from another session. */
  arrived(channel: C, nowMs: number): void {
    const { gate } = channel
    this.came.set(channel, ++this.events)
    gate.silent.add(channel)
    this.later('silence', channel, nowMs + NOTHING_SAID_MS)
    const migration = this.at(gate)
    if (!isOpen(migration)) return
    this.beside.set(channel, migration)
    if (migration.postcopyAdvised) this.dialSilent(gate, nowMs + PREEMPT_LATE_MS)
  }

  /** Its first bytes tell what it is: `channel.kind`. */
  known(channel: C, nowMs: number): void {
    const { gate, kind } = channel
    gate.silent.delete(channel)
    const turn = gate.lastTurn
    const running = this.at(gate)
    const migration = isOpen(running) ? running : undefined
    const main = turn?.main ?? migration?.lead
    const reason = strange(kind, main?.kind)
    if (kind === 'proxy') this.orders.refuse(channel, PROXY, PROXY_HINT)
    else if (reason !== '') this.orders.refuse(channel, reason)
    else if (kind === 'main' || kind === 'recovery' || (kind === 'tls' && !main)) this.lead(channel, nowMs)
    else if (migration && !turn) this.open(channel, migration)
    else {
      const waiting = turn?.channels ?? gate.waiting
      waiting.push(channel)
      this.later('main', channel, nowMs + MAIN_AWAITED_MS)
      if (!turn && gate.migration?.flows.size) this.later('late', channel, nowMs + LATE_CHANNEL_MS)
    }
    this.openBeside(gate)
  }

  /** Opens those that came with the main that runs here, though that has ended: where it cannot have been another's. */
  private openBeside(gate: Gate<C, R>): void {
    const migration = this.at(gate)
    const main = migration?.lead
    if (!migration?.flows.size || !main?.over || gate.lastTurn) return
    for (const channel of [...gate.waiting]) {
      if (this.beside.get(channel) !== migration || strange(channel.kind, main.kind) !== '') continue
      // one that has not spoken, between the two, may be the next main
      const at = this.came.get(channel)!
      if ([...gate.silent].some(silent => this.came.get(silent)! < at)) continue
      this.left(channel)
      this.open(channel, migration)
      if (this.stopped || migration.moved) return
    }
  }

  /** QEMU has closed it, and what it said before that is there, read or not: its main has come in by now, or never does. */
  closed(channel: C, nowMs: number): void {
    const { gate } = channel
    if (!this.closedAt.has(channel)) this.closedAt.set(channel, ++this.events)
    if (!gate.waiting.includes(channel)) return // one that came behind a main has it
    this.later('closed', channel, nowMs + CLOSED_CHANNEL_MS)
  }

  /** Main announced postcopy: silent connections of the same gate, now or later, are the preempt channel. */
  advised(migration: M, nowMs: number): void {
    migration.postcopyAdvised = true
    const gate = migration.lead?.gate as Gate<C, R> | undefined
    if (gate) this.dialSilent(gate, nowMs + PREEMPT_SILENT_MS)
  }

  /** A connection is gone, or was opened: it waits for nothing. */
  left(channel: C): void {
    const { gate } = channel
    gate.silent.delete(channel)
    remove(gate.waiting, channel)
    for (const turn of [...gate.turns]) {
      if (turn.main === channel) turn.main = undefined
      remove(turn.channels, channel)
      if (!turn.main && turn.channels.length === 0) remove(gate.turns, turn)
    }
  }

  /** A migration's last channel has ended. */
  ended(migration: M): void {
    this.migrations.delete(migration)
    const { gate } = migration
    if (gate.migration === migration) gate.migration = undefined
  }

  /** The session has ended: it orders nothing more. */
  stop(): void {
    this.stopped = true
    this.due = []
    this.nextTickMs = Number.POSITIVE_INFINITY
  }

  tick(nowMs: number): void {
    const now: Due<C>[] = []
    const later: Due<C>[] = []
    for (const entry of this.due) (entry.atMs <= nowMs ? now : later).push(entry)
    this.due = later
    this.nextTickMs = Math.min(...later.map(({ atMs }) => atMs), Number.POSITIVE_INFINITY)
    for (const { what, channel } of now.sort((a, b) => a.atMs - b.atMs)) {
      if (this.stopped) return
      if (what === 'silence') this.silence(channel, nowMs)
      else if (what === 'main') this.mainless(channel, `whose main did not come for ${MAIN_AWAITED_MS / 1000} s`)
      else if (what === 'closed') this.mainless(channel, CLOSED_FIRST)
      else if (what === 'late') this.late(channel)
      else if (what === 'preempt') this.preempt(channel, nowMs)
      else if (what === 'room') this.room(channel, nowMs)
      else this.crowded(channel)
    }
  }

  /** What runs at a gate of migrations: nothing else can. */
  private at({ migration }: Gate<C, R>): M | undefined {
    return migration as M | undefined
  }

  private later(what: Due<C>['what'], channel: C, atMs: number): void {
    if (this.stopped) return
    if (what === 'room' && this.due.some(due => due.what === what && due.channel === channel)) return
    this.due.push({ what, channel, atMs })
    this.nextTickMs = Math.min(this.nextTickMs, atMs)
  }

  /**
   * A migration begins with this channel, where there is room for all that it may have and none waits before it. A recovery
   * needs little, but must not overtake: it would be given the channels of the main that waits, and that main, once it
   * begins, its preempt channel.
   */
  private lead(channel: C, nowMs: number): void {
    const { turns }: Gate<C, R> = channel.gate
    turns.push({ main: channel, channels: [] })
    this.room(channel, nowMs)
    if (turns.some(({ main }) => main === channel)) this.later('crowded', channel, nowMs + ROOM_AWAITED_MS)
  }

  /** This main is in its gate's line: begins whatever has room, one after the other, as far as that goes. */
  private room(channel: C, nowMs: number): void {
    const { turns }: Gate<C, R> = channel.gate
    for (let turn = turns[0]; turn && !this.stopped; turn = turns[0]) {
      const { main } = turn
      const admitted = main && this.admission(main, nowMs)
      if (admitted?.answer === 'wait') {
        this.later('room', main!, admitted.untilMs)
        break
      }
      if (admitted?.answer === 'now') this.begin(turn, main!, nowMs)
      else {
        turns.shift()
        const open = Array.from(this.migrations, ({ flows }) => flows.size).reduce((sum, channels) => sum + channels, 0)
        this.refuseTurn(turn, `${open} channels are open: there may be no room for all of another migration`)
      }
    }
    const behind = turns.findIndex(({ main }) => main === channel)
    if (behind > 0) this.later('room', channel, nowMs + GATHERING_MS) // the one before it may be given up
  }

  private admission({ kind }: C, nowMs: number): Admission {
    const { all, aMigration } = this.places
    const running: Gathering[] = []
    for (const { flows, lastMs } of this.migrations) running.push({ channels: flows.size, lastMs })
    return admission(all, running, kind === 'recovery' ? RECOVERY_CHANNELS : aMigration, aMigration, nowMs)
  }

  /** Its turn is over where it has begun; else what came behind it is left there. */
  private begin(turn: Turn<C>, channel: C, nowMs: number): void {
    const gate: Gate<C, R> = channel.gate
    turn.main = undefined
    const migration = this.orders.begin(channel)
    gate.migration = migration
    migration.lead = channel
    this.migrations.add(migration)
    this.orders.open(channel, migration)
    if (migration.flows.size === 0) this.ended(migration) // refused, or moved
    if (migration.moved || this.at(gate) !== migration) return
    remove(gate.turns, turn)
    const at = this.came.get(channel)!
    for (const silent of gate.silent) if (this.came.get(silent)! > at) this.beside.set(silent, migration)
    for (const waiting of [...gate.waiting.splice(0), ...turn.channels.splice(0)]) {
      const reason = strange(waiting.kind, channel.kind)
      if (reason !== '') this.orders.refuse(waiting, reason)
      else if ((this.closedAt.get(waiting) ?? Number.POSITIVE_INFINITY) > this.came.get(channel)!)
        this.open(waiting, migration)
      else this.orders.refuse(waiting, `a ${waiting.kind} channel ${CLOSED_FIRST}`)
    }
    if (channel.kind === 'recovery') this.advised(migration, nowMs)
  }

  /** Opens one that has a main. */
  private open(channel: C, migration: M): void {
    if (channel.kind === 'preempt') this.preempted.add(migration)
    this.orders.open(channel, migration)
  }

  private crowded(channel: C): void {
    const { turns }: Gate<C, R> = channel.gate
    const turn = turns.find(({ main }) => main === channel)
    if (!turn) return
    remove(turns, turn)
    this.refuseTurn(turn, `there was no room for all channels of another migration for ${ROOM_AWAITED_MS / 1000} s`)
  }

  /** It waits no more, and nothing that came behind its main is another's. */
  private refuseTurn({ main, channels }: Turn<C>, reason: string): void {
    if (main) this.orders.refuse(main, reason)
    for (const channel of channels.splice(0)) {
      this.orders.refuse(channel, main ? reason : `a ${channel.kind} channel whose main is gone`)
    }
  }

  private dialSilent(gate: Gate<C, R>, atMs: number): void {
    for (const channel of gate.silent) this.later('preempt', channel, atMs)
  }

  /** The time is over in which a silent connection might have said what it is. */
  private preempt(channel: C, nowMs: number): void {
    const { gate } = channel
    const migration = this.at(gate)
    if (!gate.silent.has(channel) || !channel.isSilent || !isOpen(migration) || !migration.postcopyAdvised) return
    // of the next one, perhaps; where that gives up, of this one after all
    if (gate.lastTurn) {
      this.later('preempt', channel, nowMs + PREEMPT_LATE_MS)
      return
    }
    // the destination QEMU would take a stranger for its preempt channel
    if (channel.host !== migration.lead?.host) return
    // a destination QEMU whose preempt channel ends has broken off, and the source may recover before main has ended here
    if (this.preempted.has(migration)) return
    gate.silent.delete(channel)
    channel.kind = 'preempt'
    this.open(channel, migration)
  }

  private silence(channel: C, nowMs: number): void {
    const { gate } = channel
    if (!gate.silent.has(channel)) return
    const seconds = NOTHING_SAID_MS / 1000
    if (!channel.isSilent) {
      gate.silent.delete(channel)
      this.orders.refuse(channel, `it began as QEMU's channels do, and nothing followed for ${seconds} s`)
    } else if (gate.lastTurn || isOpen(gate.migration)) this.later('silence', channel, nowMs + NOTHING_SAID_MS)
    else {
      gate.silent.delete(channel)
      this.orders.refuse(
        channel,
        `nothing came for ${seconds} s: not a migration, whose source speaks first`,
        'a disk (NBD) goes to a listener of its own: --disks',
      )
    }
  }

  private mainless(channel: C, reason: string): void {
    if (!channel.gate.waiting.includes(channel)) return
    this.left(channel)
    this.orders.refuse(channel, `a ${channel.kind} channel ${reason}`)
  }

  /** A channel whose main was read to its end before it was looked at: so on a busy machine. */
  private late(channel: C): void {
    const { gate } = channel
    const migration = this.at(gate)
    if (!gate.waiting.includes(channel) || gate.lastTurn || !migration?.flows.size) return // it has another main, or none
    if (strange(channel.kind, migration.lead?.kind) !== '') return // its own main may come
    this.left(channel)
    this.open(channel, migration)
  }
}

/** Why a connection cannot be QEMU's, '' where it can. @param main what the one that it would belong to is, if any */
function strange(kind: FlowKind, main: FlowKind | undefined): string {
  if (kind === 'unknown') return 'it does not begin as a channel of QEMU does: a probe, or another protocol'
  if (kind === 'main' || kind === 'recovery' || main === undefined) return ''
  const encrypted = main === 'tls'
  if (encrypted === (kind === 'tls')) return ''
  return encrypted ? 'plain text beside a migration that QEMU encrypts' : 'TLS beside a migration in plain text'
}

function remove<T>(list: T[], item: T): void {
  const at = list.indexOf(item)
  if (at >= 0) list.splice(at, 1)
}
