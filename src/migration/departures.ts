/**
 * The migrations and disk transfers that leave in one session, with all connections of their QEMUs: how long a WAN that is gone is waited for,
 * what is kept for a recovery, and which connections end with the session. Pure: times come in, channels are told, and
 * `tick` is due at `nextTickMs`.
 */
import type { Departure, DepartureChannel, DepartureOptions } from './departure.ts'
import { DiskDeparture } from './disk-departure.ts'
import { type Gate, isOpen } from './gate.ts'
import { MigrationDeparture } from './migration-departure.ts'
import { Patience, type PatienceTimes } from './patience.ts'
import type { PausedMigrations } from './paused.ts'

/** A connection, opened or not, and what it can be told. SourceFlow is one. */
export interface DeparturesChannel<C extends DepartureChannel> extends DepartureChannel {
  readonly gate: Gate<C, Departure<C>>
  readonly migration: Departure<C> | undefined
  /** The WAN has been gone for too long. @returns false where it was over already */
  giveUp(reason: string): boolean
}

export interface DeparturesOptions {
  /** 32 hex digits. */
  readonly session: string
  readonly times: PatienceTimes
  /** Of all sessions of a process. */
  readonly paused: PausedMigrations
  /** Number of the next migration. */
  readonly nextNumber: () => number
}

export class Departures<C extends DeparturesChannel<C>> {
  /** All connections, those without a flow too. */
  readonly connections = new Set<C>()
  private readonly options: DeparturesOptions
  private readonly running: Iterable<Departure<C>>
  private readonly patience: Patience
  private readonly onGivenUp: (migration: Departure<C>, reason: string) => void

  /**
   * @param running those that run, looked through anew each time
   * @param onGivenUp told once of each migration that the WAN was waited for in vain
   */
  constructor(
    options: DeparturesOptions,
    running: Iterable<Departure<C>>,
    onGivenUp: (migration: Departure<C>, reason: string) => void,
  ) {
    this.options = options
    this.running = running
    this.onGivenUp = onGivenUp
    this.patience = new Patience(options.times)
  }

  /** Time that bytes may wait in the link; Infinity: as long as ever. */
  get queueMs(): number {
    let least = Number.POSITIVE_INFINITY
    for (const { queueMs, flows } of this.running) if (flows.size > 0) least = Math.min(least, queueMs)
    return least
  }

  /** A migration begins with this channel. */
  begin({ gate, kind }: C, nowMs: number): MigrationDeparture<C> {
    const { paused } = this.options
    const migration = new MigrationDeparture<C>({ ...this.next(gate, nowMs), kind })
    if (kind === 'recovery') {
      // what QEMU gave up may not have ended here yet
      for (const { migration: before } of this.connections) if (before?.lead?.over) before.remember(paused)
      migration.memory = paused.take(gate)
    }
    return migration
  }

  /** The same of a disk transfer. */
  beginDisks({ gate }: C, nowMs: number): DiskDeparture<C> {
    return new DiskDeparture<C>(this.next(gate, nowMs))
  }

  private next(gate: Gate<C, Departure<C>>, startMs: number): DepartureOptions<C> {
    const { session, nextNumber } = this.options
    return { session, number: nextNumber(), gate, startMs }
  }

  /** A channel is of its migration no more. @returns the migration, where it was the last */
  left(channel: C): Departure<C> | undefined {
    const { migration } = channel
    if (migration?.lead === channel) migration.remember(this.options.paused)
    return migration?.closed(channel) ? migration : undefined
  }

  /** The WAN has broken, or stands. */
  wan(up: boolean, nowMs: number): void {
    this.patience.wan(up, nowMs)
    this.giveUp(nowMs)
  }

  /** When `tick` is due; Infinity: not before something happens. */
  get nextTickMs(): number {
    return this.patience.nextTickMs
  }

  tick(nowMs: number): void {
    if (this.patience.nextTickMs <= nowMs) this.giveUp(nowMs)
  }

  /** Ends migrations that have waited long enough; the session itself may wait on for others. */
  private giveUp(nowMs: number): void {
    for (const migration of this.patience.over(this.running, nowMs)) {
      this.end(migration, this.patience.reason(migration.record.postcopy))
    }
  }

  /**
   * The WAN stands, but nothing has been acknowledged since then: ends those that have waited long enough.
   * @returns why the session must end, where it has nobody left to wait for: what it would still tell of them does not
   *   get through
   */
  stalled(sinceMs: number, nowMs: number): string | undefined {
    let reason: string | undefined
    const over = this.patience.overStalled(this.running, sinceMs, nowMs)
    for (const migration of over) {
      reason = this.patience.reason(migration.record.postcopy, true)
      this.end(migration, reason)
    }
    return over.length === [...this.running].length ? reason : undefined
  }

  private end(migration: Departure<C>, reason: string): void {
    const ended = [...migration.flows].filter(flow => flow.giveUp(reason))
    if (ended.length > 0) this.onGivenUp(migration, reason)
  }

  /**
   * The session is gone: parts its connections. Those of migrations that the other side may know of are lost, and of disks
   * those that it may know of by themselves; all others go on in another session.
   * @param isUnheard whether it certainly never heard of this flow
   */
  part(isUnheard: (flow: number) => boolean): { readonly lost: readonly C[]; readonly goOn: readonly C[] } {
    const lost: C[] = []
    const goOn: C[] = []
    for (const channel of this.connections) {
      // those that are silent, or wait for their main, go with what runs at their gate
      const migration = channel.migration ?? (isOpen(channel.gate.migration) ? channel.gate.migration : undefined)
      const isLost = migration && !migration.moved && migration.loses(channel, isUnheard)
      ;(isLost ? lost : goOn).push(channel)
    }
    const ending = new Set(lost.map(({ migration }) => migration))
    for (const { migration } of goOn) if (!ending.has(migration)) migration?.goesOn()
    return { lost, goOn }
  }
}
