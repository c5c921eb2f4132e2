/** One disk transfer as its source proxy sees it: connections of NBD at one gate, from the first to the last. Pure. */
import { EXPORT_TOLD_LENGTH_MAX, EXPORTS_TOLD_MAX } from '../limits.ts'
import type { Log } from '../log.ts'
import { Departure, type DepartureChannel } from './departure.ts'
import type { SourceChannelEvents } from './source-events.ts'
import type { DiskDepartureStatus, DiskDepartureSummary, NamedTransfer } from './summary.ts'
import { pageCounts } from './traffic.ts'

export class DiskDeparture<C extends DepartureChannel> extends Departure<C> {
  /** How many connections it has had. */
  private connections = 0
  /** Exports that its clients have asked for. */
  private readonly exports = new Set<string>()

  get named(): NamedTransfer {
    return { transfer: this.number, id: this.record.id }
  }

  override opened(channel: C, nowMs: number): void {
    super.opened(channel, nowMs)
    this.connections++
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
