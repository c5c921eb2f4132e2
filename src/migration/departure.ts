/**
 * One `migrate` as its source proxy sees it: its channels, what is known of it, and what its main channel's phases mean for
 * the others. Or one disk transfer, whose connections have no main among them, no phases and no outcome. Pure.
 */
import type { BatchStats } from '../codec/stats.ts'
import { EXPORT_TOLD_LENGTH_MAX, EXPORTS_TOLD_MAX, RAW_REASONS_TOLD_MAX } from '../limits.ts'
import { BlockTable } from '../qemu/block-table.ts'
import type { ParserMemory } from '../qemu/main-stream.ts'
import type { StreamPhase } from '../qemu/stream-sink.ts'
import type { Forecast } from './forecast.ts'
import type { FlowKind, Gate, GateChannel, GateMigration } from './gates.ts'
import { MigrationRecord } from './migration-record.ts'
import type { PausedMigrations } from './paused.ts'
import { type MemoryPlace, type MigrationProgress, Progress } from './progress.ts'
import type { DepartureStatus, DiskDepartureStatus, DiskDepartureSummary, MigrationSummary } from './summary.ts'
import { pageCounts, Traffic } from './traffic.ts'

/** A channel of it, once it has a flow. */
export interface DepartureChannel extends GateChannel {
  /** Number of its flow in the session. */
  readonly number: number
  /** undefined: it has no flow, because the other side takes none any more. */
  readonly stats: BatchStats | undefined
  /** Where the last page of it lies that is in a batch. */
  readonly place: MemoryPlace | undefined
  /** Of a main: what its recovery would need. */
  readonly memory: ParserMemory | undefined
}

export interface DepartureOptions<C extends DepartureChannel> {
  /** Id of its session, 32 hex digits. */
  readonly session: string
  /** In that session. */
  readonly number: number
  readonly gate: Gate<C, Departure<C>>
  readonly startMs: number
  /** Of the channel that it begins with. */
  readonly kind: FlowKind
  /** How many levels of effort there are. */
  readonly efforts: number
}

/** How it goes on, where that is to be told now: once, and now and then. */
export interface Sent {
  readonly forecast?: Forecast | undefined
  readonly progress?: MigrationProgress | undefined
}

/** From these on the destination QEMU may get all that it needs to run the guest. */
const HANDING_OVER: ReadonlySet<StreamPhase> = new Set(['switchover', 'ram-end', 'snapshot-devices', 'eof'])

/** What follows of a phase: `advised` for those silent at its gate, `urgent` for all of its channels. */
export type PhaseOrder = 'advised' | 'urgent' | undefined

export class Departure<C extends DepartureChannel> implements GateMigration {
  readonly number: number
  readonly gate: Gate<C, Departure<C>>
  readonly startMs: number
  readonly record: MigrationRecord
  readonly blocks = new BlockTable()
  readonly traffic: Traffic
  private readonly progress: Progress<C>
  readonly flows = new Set<C>()
  lead: C | undefined
  /** What its first connection knew, where this is a recovery. */
  memory: ParserMemory | undefined
  lastMs = 0
  postcopyAdvised = false
  /** A guest waits for pages. */
  urgent: boolean
  /** The other side knows of it: it ends with this session. */
  taken = false
  /** It never heard of it: the connections go on with another session. */
  moved = false
  /** QEMU's main stream came to its own end. */
  private whole = false
  private remembered = false
  /** Main is behind the last page: device state follows, and then the guest may run at the destination. */
  private handsOver = false
  /** Main was not understood somewhere: nobody can tell what has passed of it. */
  private obscure = false
  /** What has been said of it to be relayed raw. */
  private readonly saidRaw = new Set<string>()
  /** Of a disk transfer: how many connections it has had. */
  private connections = 0
  /** Exports that its clients have asked for. */
  private readonly exports = new Set<string>()

  constructor({ session, number, gate, startMs, kind, efforts }: DepartureOptions<C>) {
    this.number = number
    this.gate = gate
    this.startMs = startMs
    this.record = new MigrationRecord(session, number)
    this.record.leads(kind)
    this.traffic = new Traffic(efforts)
    this.progress = new Progress(startMs)
    this.urgent = kind === 'recovery'
  }

  /** It is a disk transfer. */
  get isDisk(): boolean {
    return this.gate.isDisk
  }

  /** A channel of it has a flow. */
  opened(channel: C, nowMs: number): void {
    this.flows.add(channel)
    if (this.isDisk) this.connections++
    else this.traffic.kinds.push(channel.kind)
    this.lastMs = nowMs
  }

  /** A channel's flow is over. @returns whether it was the last */
  closed(channel: C): boolean {
    if (channel.stats) this.traffic.leaves(channel.stats)
    this.flows.delete(channel)
    return this.flows.size === 0
  }

  /** Main is at a point that means something. */
  phase(phase: StreamPhase): PhaseOrder {
    if (HANDING_OVER.has(phase)) this.handsOver = true
    if (phase === 'eof') this.whole = true
    else if (phase === 'return-path') this.record.answers = true
    else if (phase === 'postcopy-advise') return 'advised'
    else if (phase === 'postcopy' || phase === 'recovery') {
      this.record.postcopy = true
      this.urgent = true
      return 'urgent'
    }
    return undefined
  }

  /** Its main is over: keeps what a recovery will need of it, where it broke off in postcopy. */
  remember(paused: PausedMigrations): void {
    if (this.remembered) return
    this.remembered = true
    const memory = this.whole || !this.urgent ? undefined : this.lead?.memory
    if (memory) paused.keep(this.gate, memory)
  }

  /**
   * Why it must not be cancelled here: its guest may run at the destination, and would run at the source too if that never
   * heard of it (qemu-wire-format 1.6). undefined: the guest is certainly at the source.
   */
  get cancelRefusal(): string | undefined {
    if (this.record.postcopy) return 'it is in postcopy: its guest runs at the destination'
    if (this.handsOver) return 'its guest is being handed over'
    if (this.obscure || !this.record.readable) return 'its stream is not understood, so it may be about to hand over'
    return undefined
  }

  /** A channel of it is relayed raw, for now or for good. */
  relayedRaw(kind: FlowKind): void {
    if (kind !== 'multifd' && kind !== 'preempt') this.obscure = true
  }

  /** Whether this has not been said yet: once a migration, and not for each of 255 channels. */
  saysRaw(kind: FlowKind, reason: string): boolean {
    const words = `${kind} ${reason}`
    if (this.saidRaw.has(words) || this.saidRaw.size >= RAW_REASONS_TOLD_MAX) return false
    this.saidRaw.add(words)
    return true
  }

  /** A client of it has got an export. @returns its name, where that is to be told: each once, as far as there is room */
  exported(name: string): string | undefined {
    const told = name.slice(0, EXPORT_TOLD_LENGTH_MAX)
    if (this.exports.has(told) || this.exports.size >= EXPORTS_TOLD_MAX) return undefined
    this.exports.add(told)
    return told
  }

  /** The other side has it, or may. @param isUnheard whether it certainly never heard of this flow */
  isKnown(isUnheard: (flow: number) => boolean): boolean {
    return this.taken || [...this.flows].some(({ number }) => !isUnheard(number))
  }

  /** The other side never heard of it: its connections are another session's. */
  goesOn(): void {
    this.moved = true
    if (this.gate.migration === this) this.gate.migration = undefined
  }

  /** A batch of this channel was handed in. @returns what is to be told of that */
  sent(channel: C, nowMs: number, effort: number): Sent {
    const { stats, place } = channel
    if (!stats || this.isDisk) return {}
    const { blocks, traffic, progress, record } = this
    const forecast = traffic.sent(stats, blocks, nowMs - this.startMs, effort)
    const isDue = !record.postcopy && progress.sent(channel, place, blocks, traffic.counted, nowMs)
    return { forecast, progress: isDue ? progress.status(traffic.counted, nowMs) : undefined }
  }

  /** Counts of all its channels so far. */
  private counts(): BatchStats {
    return this.traffic.counts(Array.from(this.flows, ({ stats }) => stats).filter(stats => stats !== undefined))
  }

  /** @param effort of its next batch */
  status(nowMs: number, effort: number): DepartureStatus {
    const counts = this.counts()
    const { rawBytes, packedBytes } = counts
    // pages are asked for in postcopy, in no order
    const progress = this.record.postcopy ? undefined : this.progress.status(counts, nowMs)
    return {
      migration: this.number,
      id: this.record.id,
      target: this.gate.target,
      ...this.record.guest,
      ...(progress && { progress }),
      seconds: Math.round(nowMs - this.startMs) / 1000,
      channels: this.flows.size,
      postcopy: this.record.postcopy,
      bytes: rawBytes,
      bytesBack: this.traffic.bytesBack,
      bytesWan: packedBytes + this.traffic.broughtBytes,
      effort,
      pages: pageCounts(counts),
    }
  }

  /** Of a disk transfer. @param effort of its next batch */
  diskStatus(nowMs: number, effort: number): DiskDepartureStatus {
    const { rawBytes, packedBytes } = this.counts()
    return {
      transfer: this.number,
      id: this.record.id,
      target: this.gate.target,
      exports: [...this.exports],
      seconds: Math.round(nowMs - this.startMs) / 1000,
      connections: this.flows.size,
      bytes: rawBytes,
      bytesBack: this.traffic.bytesBack,
      bytesWan: packedBytes + this.traffic.broughtBytes,
      effort,
    }
  }

  /** Of a disk transfer, once it is over. */
  diskSummary(nowMs: number): DiskDepartureSummary {
    const { record, traffic } = this
    const counts = this.counts()
    const { rawBytes, packedBytes } = counts
    const bytesWan = packedBytes + traffic.broughtBytes
    return {
      level: record.isBroken ? 'warn' : 'info',
      transfer: this.number,
      id: record.id,
      target: this.gate.target,
      exports: [...this.exports],
      connections: this.connections,
      seconds: Math.round(nowMs - this.startMs) / 1000,
      bytesIn: rawBytes,
      bytesWan,
      ratio: rawBytes === 0 ? 1 : Math.round((bytesWan / rawBytes) * 10000) / 10000,
      efforts: [...traffic.effortBytes],
      bytesBack: traffic.bytesBack,
      blocks: pageCounts(counts),
      endedBy: record.endedBy,
    }
  }

  /** Once it is over. */
  summary(nowMs: number): MigrationSummary {
    const { record, traffic } = this
    const counts = this.counts()
    const { rawBytes, packedBytes } = counts
    const bytesWan = packedBytes + traffic.broughtBytes
    return {
      migration: this.number,
      id: record.id,
      target: this.gate.target,
      ...record.guest,
      ...record.verdict(),
      channels: traffic.channels,
      seconds: Math.round(nowMs - this.startMs) / 1000,
      bytesIn: rawBytes,
      bytesWan,
      ratio: rawBytes === 0 ? 1 : Math.round((bytesWan / rawBytes) * 10000) / 10000,
      efforts: [...traffic.effortBytes],
      bytesBack: traffic.bytesBack,
      ...(traffic.forecast ? { forecast: traffic.forecast } : {}),
      ...(traffic.firstPass ? { firstPass: traffic.firstPass } : {}),
      pages: pageCounts(counts),
      endedBy: record.endedBy,
    }
  }
}
