/**
 * One `migrate` as its source proxy sees it: its channels, what is known of it, and what its main channel's phases mean for
 * the others. Pure.
 */
import { MemoryMap } from '../codec/memory-map.ts'
import type { Log } from '../log.ts'
import { BlockTable } from '../qemu/block-table.ts'
import type { ParserMemory } from '../qemu/main-stream.ts'
import type { StreamPhase } from '../qemu/stream-sink.ts'
import { Departure, type DepartureChannel, type DepartureOptions, type Sent } from './departure.ts'
import type { FlowKind, GateMigration } from './gate.ts'
import type { Outcome } from './outcome.ts'
import type { PausedMigrations } from './paused.ts'
import { Progress } from './progress.ts'
import type { SourceChannelEvents } from './source-events.ts'
import type { DepartureStatus, MigrationSummary, NamedMigration } from './summary.ts'
import { pageCounts } from './traffic.ts'

export interface MigrationDepartureOptions<C extends DepartureChannel> extends DepartureOptions<C> {
  /** Of the channel that it begins with. */
  readonly kind: FlowKind
}

/** From these on the destination QEMU may get all that it needs to run the guest. */
const HANDING_OVER: ReadonlySet<StreamPhase> = new Set(['switchover', 'ram-end', 'snapshot-devices', 'eof'])

/** What follows of a phase: `advised` for those silent at its gate, `urgent` for all of its channels. */
export type PhaseOrder = 'advised' | 'urgent' | undefined

export class MigrationDeparture<C extends DepartureChannel> extends Departure<C> implements GateMigration {
  readonly blocks = new BlockTable()
  readonly map = new MemoryMap(this.blocks)
  private readonly progress: Progress<C>
  /** What its first connection knew, where this is a recovery. */
  memory: ParserMemory | undefined
  lastMs = 0
  postcopyAdvised = false
  /** QEMU's main stream came to its own end. */
  private whole = false
  private remembered = false
  /** Main is behind the last page: device state follows, and then the guest may run at the destination. */
  private handsOver = false
  /** When main's last pass was first seen, and when the destination QEMU said that the guest is its own. */
  private stoppedMs: number | undefined
  private takenOverMs: number | undefined
  /** Main was not understood somewhere: nobody can tell what has passed of it. */
  private obscure = false

  constructor(options: MigrationDepartureOptions<C>) {
    super(options)
    const { kind, startMs } = options
    this.record.leads(kind)
    this.progress = new Progress(startMs)
    this.urgent = kind === 'recovery'
  }

  get named(): NamedMigration {
    return { migration: this.number, id: this.record.id }
  }

  override get parsing() {
    const { blocks, map, memory } = this
    return { blocks, map, ...(memory ? { recovery: memory } : {}) }
  }

  override opened(channel: C, nowMs: number): void {
    super.opened(channel, nowMs)
    this.traffic.kinds.push(channel.kind)
    this.lastMs = nowMs
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

  /** Where it broke off in postcopy. */
  override remember(paused: PausedMigrations): void {
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

  override relayedRaw(kind: FlowKind): void {
    if (kind !== 'multifd' && kind !== 'preempt') this.obscure = true
  }

  override takenOver(nowMs: number): void {
    this.takenOverMs = nowMs
  }

  override sent(channel: C, nowMs: number, effort: number): Sent {
    const { stats, place } = channel
    if (channel === this.lead && channel.isLast) this.stoppedMs ??= nowMs
    if (!stats) return {}
    const { blocks, traffic, progress, record } = this
    const forecast = traffic.sent(stats, blocks, nowMs - this.startMs, effort)
    const isDue = !record.postcopy && progress.sent(channel, place, blocks, traffic.counted, nowMs)
    return { forecast, progress: isDue ? progress.status(traffic.counted, nowMs) : undefined }
  }

  override tellStart(log: Log<SourceChannelEvents>, channel: C): void {
    if (this.lead !== channel) return
    const { kind, peer } = channel
    log.info('migration starts', { ...this.named, target: this.gate.target, kind, peer })
  }

  override tellGivenUp(log: Log<SourceChannelEvents>, reason: string): void {
    log.warn('migration given up', { ...this.named, reason })
  }

  /** @param effort of its next batch */
  status(nowMs: number, effort: number): DepartureStatus {
    const { record } = this
    const counts = this.counts()
    // pages are asked for in postcopy, in no order
    const progress = record.postcopy ? undefined : this.progress.status(counts, nowMs)
    const map = this.map.status()
    return {
      ...this.named,
      target: this.gate.target,
      ...record.guest,
      ...(progress && { progress }),
      ...(map && { map }),
      seconds: this.seconds(nowMs),
      channels: this.flows.size,
      postcopy: record.postcopy,
      ...this.flowing(counts, effort),
      pages: pageCounts(counts),
    }
  }

  /** How long the guest stood still, where it runs at the destination and that could be seen. In postcopy it cannot. */
  private pauseSeconds(outcome: Outcome, nowMs: number): number | undefined {
    const { stoppedMs, takenOverMs = nowMs, record } = this
    if (outcome !== 'completed' || record.postcopy || stoppedMs === undefined) return undefined
    return Math.round(takenOverMs - stoppedMs) / 1000
  }

  /** Once it is over. */
  summary(nowMs: number): MigrationSummary {
    const { record, traffic } = this
    const counts = this.counts()
    const verdict = record.verdict()
    const pauseSeconds = this.pauseSeconds(verdict.outcome, nowMs)
    return {
      ...this.named,
      target: this.gate.target,
      ...record.guest,
      ...verdict,
      channels: traffic.channels,
      ...this.figures(counts, nowMs),
      ...(pauseSeconds !== undefined && { pauseSeconds }),
      ...(traffic.forecast ? { forecast: traffic.forecast } : {}),
      ...(traffic.firstPass ? { firstPass: traffic.firstPass } : {}),
      pages: pageCounts(counts),
      endedBy: record.endedBy,
    }
  }
}
