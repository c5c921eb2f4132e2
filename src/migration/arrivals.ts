/**
 * The migrations and disk transfers that arrive in one session, and what time does to them: how long a WAN that is gone is waited for, and how
 * long a QEMU may take what an ended flow owes it. Pure: times come in, channels are told, and `tick` is due at `nextTickMs`.
 */
import { OWED_MS } from '../limits.ts'
import { KIND_DISK } from '../wan/wire.ts'
import type { Arrival, ArrivingChannel } from './arrival.ts'
import { URGENT_QUEUE_MS } from './departure.ts'
import { DiskArrival } from './disk-arrival.ts'
import { MigrationArrival } from './migration-arrival.ts'
import { Patience, type PatienceTimes } from './patience.ts'

/** A channel, and what it can be told. DestinationFlow is one. */
export interface ArrivalChannel<C extends ArrivingChannel> extends ArrivingChannel {
  readonly migration: Arrival<C>
  /** The WAN has been gone for too long. @returns false where it was over already */
  giveUp(reason: string): boolean
  /** Its QEMU has not read for too long what is owed to it. */
  overdue(): void
}

export class Arrivals<C extends ArrivalChannel<C>> {
  /** 32 hex digits. */
  private readonly session: string
  private readonly running = new Map<number, Arrival<C>>()
  private readonly patience: Patience
  /** Channels whose flow has ended while QEMU may still take bytes that lie in the pool, and until when: in that order. */
  private readonly owed = new Map<C, number>()
  private readonly onGivenUp: (migration: Arrival<C>, reason: string) => void

  /** @param onGivenUp told once of each migration that the WAN was waited for in vain */
  constructor(session: string, times: PatienceTimes, onGivenUp: (migration: Arrival<C>, reason: string) => void) {
    this.session = session
    this.patience = new Patience(times)
    this.onGivenUp = onGivenUp
  }

  /** Migrations that run. */
  get migrations(): MigrationArrival<C>[] {
    return [...this.running.values()].filter(one => one instanceof MigrationArrival)
  }

  /** Disk transfers that run. */
  get transfers(): DiskArrival<C>[] {
    return [...this.running.values()].filter(one => one instanceof DiskArrival)
  }

  /** How many channels are owed something, and which. */
  get owing(): number {
    return this.owed.size
  }

  get creditors(): readonly C[] {
    return [...this.owed.keys()]
  }

  /** Time that bytes may wait in the link; Infinity: as long as ever. */
  get queueMs(): number {
    for (const { record } of this.migrations) if (record.postcopy) return URGENT_QUEUE_MS
    return Number.POSITIVE_INFINITY
  }

  get(number: number): Arrival<C> | undefined {
    return this.running.get(number)
  }

  /** The first channel of a migration was opened, or the first connection of a disk transfer. @param kind which */
  begin(number: number, target: string, kind: string, nowMs: number): Arrival<C> {
    const Kind = kind === KIND_DISK ? DiskArrival<C> : MigrationArrival<C>
    const migration = new Kind(this.session, number, target, nowMs)
    this.running.set(number, migration)
    return migration
  }

  /** A channel is of its migration no more. @returns the migration, where it was the last */
  left(channel: C): Arrival<C> | undefined {
    const { migration } = channel
    migration.flows.delete(channel)
    if (migration.flows.size > 0) return undefined
    this.running.delete(migration.number)
    return migration
  }

  /** Its flow has ended; it is of its migration until it is settled. */
  owes(channel: C, nowMs: number): void {
    this.owed.set(channel, nowMs + OWED_MS)
  }

  /** Whether all of a migration's flows have ended: the source side has told of its end, this one may still owe QEMU something. */
  hasPassed({ flows }: Arrival<C>): boolean {
    for (const channel of flows) if (!this.owed.has(channel)) return false
    return true
  }

  settled(channel: C): void {
    this.owed.delete(channel)
  }

  /** The WAN has broken, or stands. */
  wan(up: boolean, nowMs: number): void {
    this.patience.wan(up, nowMs)
    this.giveUp(nowMs)
  }

  /** When `tick` is due; Infinity: not before something happens. */
  get nextTickMs(): number {
    const [overdueMs = Number.POSITIVE_INFINITY] = this.owed.values()
    return Math.min(this.patience.nextTickMs, overdueMs)
  }

  tick(nowMs: number): void {
    if (this.patience.nextTickMs <= nowMs) this.giveUp(nowMs)
    for (const [channel, overdueMs] of this.owed) {
      if (overdueMs > nowMs) break
      this.owed.delete(channel)
      channel.overdue()
    }
  }

  /** Ends migrations that have waited long enough; the session itself may wait on for others. */
  private giveUp(nowMs: number): void {
    for (const migration of this.patience.over(this.waiting(), nowMs)) {
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
    const waiting = this.waiting()
    const over = this.patience.overStalled(waiting, sinceMs, nowMs)
    for (const migration of over) {
      reason = this.patience.reason(migration.record.postcopy, true)
      this.end(migration, reason)
    }
    return over.length === waiting.length ? reason : undefined
  }

  /** Those for whose sake the WAN is waited for: not those that QEMU alone has something coming of. */
  private waiting(): Arrival<C>[] {
    return [...this.running.values()].filter(migration => !this.hasPassed(migration))
  }

  private end(migration: Arrival<C>, reason: string): void {
    const ended = [...migration.flows].filter(flow => flow.giveUp(reason))
    if (ended.length > 0) this.onGivenUp(migration, reason)
  }
}
