/**
 * What a migration and a disk transfer have in common at their source proxy: connections that have flows, what is counted
 * of them, and whether the other side knows of them. Pure.
 */
import type { MemoryMap } from '../codec/memory-map.ts'
import type { BatchStats } from '../codec/stats.ts'
import { RAW_REASONS_TOLD_MAX } from '../limits.ts'
import type { Log } from '../log.ts'
import type { BlockTable } from '../qemu/block-table.ts'
import type { ParserMemory } from '../qemu/main-stream.ts'
import type { Forecast } from './forecast.ts'
import type { FlowKind, Gate, GateChannel, GateTransfer } from './gate.ts'
import { MigrationRecord } from './migration-record.ts'
import type { PausedMigrations } from './paused.ts'
import type { MemoryPlace, MigrationProgress } from './progress.ts'
import type { SourceChannelEvents } from './source-events.ts'
import type { OwedWrites } from './summary.ts'
import { Traffic } from './traffic.ts'

/** Time that bytes may wait in the link while a guest waits: for pages, in postcopy, or for a disk to be flushed. */
export const URGENT_QUEUE_MS = 5

/** A channel of it, once it has a flow. */
export interface DepartureChannel extends GateChannel {
  /** Who has connected. */
  readonly peer?: string
  /** Of a disk's connection: requests that are not answered. */
  readonly unanswered?: number
  /** What was answered here and not by the far server; undefined: nothing is answered here. */
  readonly owed?: OwedWrites | undefined
  /** Number of its flow in the session. */
  readonly number: number
  /** undefined: it has no flow, because the other side takes none any more. */
  readonly stats: BatchStats | undefined
  /** Where the last page of it lies that is in a batch. */
  readonly place: MemoryPlace | undefined
  /** Of a main: what its recovery would need. */
  readonly memory: ParserMemory | undefined
  /** Of a main: its last pass has begun. */
  readonly isLast?: boolean | undefined
}

export interface DepartureOptions<C extends DepartureChannel> {
  /** Id of its session, 32 hex digits. */
  readonly session: string
  /** In that session. */
  readonly number: number
  readonly gate: Gate<C, Departure<C>>
  readonly startMs: number
}

/** How it goes on, where that is to be told now: once, and now and then. */
export interface Sent {
  readonly forecast?: Forecast | undefined
  readonly progress?: MigrationProgress | undefined
}

export abstract class Departure<C extends DepartureChannel> implements GateTransfer {
  readonly number: number
  readonly gate: Gate<C, Departure<C>>
  readonly startMs: number
  readonly record: MigrationRecord
  readonly traffic = new Traffic()
  readonly flows = new Set<C>()
  /** The channel by whose end it is judged; a disk transfer has none. */
  lead: C | undefined
  /** A guest waits for pages; for a disk none does. */
  urgent = false
  /** The other side knows of it: it ends with this session. */
  taken = false
  /** It never heard of it: the connections go on with another session. */
  moved = false
  /** What has been said of it to be relayed raw. */
  private readonly saidRaw = new Set<string>()

  constructor({ session, number, gate, startMs }: DepartureOptions<C>) {
    this.number = number
    this.gate = gate
    this.startMs = startMs
    this.record = new MigrationRecord(session, number)
  }

  /** Time that bytes may wait in the link because of it; Infinity: as long as ever. */
  get queueMs(): number {
    return this.urgent ? URGENT_QUEUE_MS : Number.POSITIVE_INFINITY
  }

  /** What parsers of its channels share: nothing, where they are of disks. */
  get parsing(): { readonly blocks?: BlockTable; readonly map?: MemoryMap; readonly recovery?: ParserMemory } {
    return {}
  }

  /** A channel of it has a flow. */
  opened(channel: C, _nowMs: number): void {
    this.flows.add(channel)
  }

  /** A channel's flow is over. @returns whether it was the last */
  closed(channel: C): boolean {
    if (channel.stats) this.traffic.leaves(channel.stats)
    this.flows.delete(channel)
    return this.flows.size === 0
  }

  /** Its destination QEMU has said that the guest is its own. */
  takenOver(_nowMs: number): void {}

  /** Its lead is over: keeps what a recovery will need of it, if there may be one. */
  remember(_paused: PausedMigrations): void {}

  /** A channel of it is relayed raw, for now or for good. */
  relayedRaw(_kind: FlowKind): void {}

  /** Whether this has not been said yet: once a migration, and not for each of 255 channels. */
  saysRaw(kind: FlowKind, reason: string): boolean {
    const words = `${kind} ${reason}`
    if (this.saidRaw.has(words) || this.saidRaw.size >= RAW_REASONS_TOLD_MAX) return false
    this.saidRaw.add(words)
    return true
  }

  /** A batch of this channel was handed in. @returns what is to be told of that */
  sent(_channel: C, _nowMs: number, _effort: number): Sent {
    return {}
  }

  /** The other side has it, or may. @param isUnheard whether it certainly never heard of this flow */
  isKnown(isUnheard: (flow: number) => boolean): boolean {
    return this.taken || [...this.flows].some(({ number }) => !isUnheard(number))
  }

  /**
   * Whether this connection of it, or at its gate, is lost with the session: those of a migration are together.
   * @param isUnheard as `isKnown`
   */
  loses(_channel: C, isUnheard: (flow: number) => boolean): boolean {
    return this.isKnown(isUnheard)
  }

  /** The other side never heard of it: its connections are another session's. */
  goesOn(): void {
    this.moved = true
    if (this.gate.migration === this) this.gate.migration = undefined
  }

  /** Tells of its start, where this channel is the one with which it has begun. */
  abstract tellStart(log: Log<SourceChannelEvents>, channel: C): void

  /** The WAN was waited for in vain. */
  abstract tellGivenUp(log: Log<SourceChannelEvents>, reason: string): void

  /** Counts of all its channels so far. */
  protected counts(): BatchStats {
    return this.traffic.counts(Array.from(this.flows, ({ stats }) => stats).filter(stats => stats !== undefined))
  }

  protected seconds(nowMs: number): number {
    return Math.round(nowMs - this.startMs) / 1000
  }

  /** What a status has of either, as `counts` have it. @param effort of its next batch */
  protected flowing({ rawBytes, packedBytes }: BatchStats, effort: number) {
    const { bytesBack, broughtBytes } = this.traffic
    return { bytes: rawBytes, bytesBack, bytesWan: packedBytes + broughtBytes, effort }
  }

  /** What a summary has of either, likewise. */
  protected figures({ rawBytes, packedBytes }: BatchStats, nowMs: number) {
    const { bytesBack, broughtBytes, effortBytes } = this.traffic
    const bytesWan = packedBytes + broughtBytes
    return {
      seconds: this.seconds(nowMs),
      bytesIn: rawBytes,
      bytesWan,
      ratio: rawBytes === 0 ? 1 : Math.round((bytesWan / rawBytes) * 10000) / 10000,
      efforts: { ...effortBytes },
      bytesBack,
    }
  }
}
