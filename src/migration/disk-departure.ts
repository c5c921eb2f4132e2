/** One disk transfer as its source proxy sees it: connections of NBD at one gate, from the first to the last. Pure. */
import { EXPORT_TOLD_LENGTH_MAX, EXPORTS_TOLD_MAX } from '../limits.ts'
import type { Log } from '../log.ts'
import { Departure, type DepartureChannel, URGENT_QUEUE_MS } from './departure.ts'
import type { SourceChannelEvents } from './source-events.ts'
import type { DiskDepartureStatus, DiskDepartureSummary, NamedTransfer } from './summary.ts'
import { pageCounts } from './traffic.ts'

/**
 * The same where a disk is mirrored up to its last writes: its guest may be stopped at any time, and then these go through
 * the link behind whatever waits there, before its memory can end. Smaller batches are the price.
 */
const MIRRORED_QUEUE_MS = 10

export class DiskDeparture<C extends DepartureChannel> extends Departure<C> {
  /** How many connections it has had. */
  private connections = 0
  /** Exports that its clients have asked for. */
  private readonly exports = new Set<string>()

  /** Connections that have been flushed once, and such that wait for it. */
  private readonly mirrored = new Set<C>()
  private readonly flushing = new Set<C>()

  get named(): NamedTransfer {
    return { transfer: this.number, id: this.record.id }
  }

  override opened(channel: C, nowMs: number): void {
    super.opened(channel, nowMs)
    this.connections++
  }

  override closed(channel: C): boolean {
    this.mirrored.delete(channel)
    this.flushing.delete(channel)
    return super.closed(channel)
  }

  /** A client waits for a FLUSH, or does so no more. */
  flushes(channel: C, waits: boolean): void {
    if (waits) this.flushing.add(channel)
    else this.flushing.delete(channel)
  }

  /** It was answered. @returns whether it is the first of this connection */
  flushed(channel: C): boolean {
    const before = this.mirrored.size
    return this.mirrored.add(channel).size > before
  }

  override get queueMs(): number {
    if (this.flushing.size > 0) return URGENT_QUEUE_MS
    return this.mirrored.size > 0 ? MIRRORED_QUEUE_MS : Number.POSITIVE_INFINITY
  }

  /** A client of it has got an export. @returns its name, where that is to be told: each once, as far as there is room */
  exported(name: string): string | undefined {
    const told = name.slice(0, EXPORT_TOLD_LENGTH_MAX)
    if (this.exports.has(told) || this.exports.size >= EXPORTS_TOLD_MAX) return undefined
    this.exports.add(told)
    return told
  }

  override tellStart(log: Log<SourceChannelEvents>, { peer }: C): void {
    if (this.connections === 1) log.info('disk transfer starts', { ...this.named, target: this.gate.target, peer })
  }

  override tellGivenUp(log: Log<SourceChannelEvents>, reason: string): void {
    log.warn('disk transfer given up', { ...this.named, reason })
  }

  /** @param effort of its next batch */
  status(nowMs: number, effort: number): DiskDepartureStatus {
    return {
      ...this.named,
      target: this.gate.target,
      exports: [...this.exports],
      seconds: this.seconds(nowMs),
      connections: this.flows.size,
      requests: Array.from(this.flows, ({ unanswered = 0 }) => unanswered).reduce((sum, count) => sum + count, 0),
      ...this.flowing(this.counts(), effort),
    }
  }

  /** Once it is over. */
  summary(nowMs: number): DiskDepartureSummary {
    const { record } = this
    const counts = this.counts()
    return {
      level: record.isBroken ? 'warn' : 'info',
      ...this.named,
      target: this.gate.target,
      exports: [...this.exports],
      connections: this.connections,
      ...this.figures(counts, nowMs),
      blocks: pageCounts(counts),
      endedBy: record.endedBy,
    }
  }
}
