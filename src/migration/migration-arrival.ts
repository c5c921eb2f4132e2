/** One migration as its destination proxy sees it. Pure. */
import { ProxyError } from '../errors.ts'
import type { Log } from '../log.ts'
import type { ChannelKind } from '../qemu/channel-kind.ts'
import { KIND_DISK } from '../wan/wire.ts'
import { Arrival, type ArrivingChannel, mixed, NOT_DIALLED } from './arrival.ts'
import type { ArrivalEvents } from './arrival-events.ts'
import { ChannelWatch } from './channel-watch.ts'
import type { ArrivalSummary, MigrationStatus, NamedMigration } from './summary.ts'

export class MigrationArrival<C extends ArrivingChannel> extends Arrival<C> {
  override readonly server = 'destination QEMU'
  /** Its target has taken a connection that may be the first. */
  private isReached = false

  private get named(): NamedMigration {
    return { migration: this.number, id: this.record.id }
  }

  override watch(): ChannelWatch {
    return new ChannelWatch(this.record)
  }

  /** A preempt channel may be silent, so it is dialled without a byte, but only where its migration has a main. */
  override admits(channel: C): boolean {
    const { kind } = channel.info
    if (kind === KIND_DISK) throw mixed()
    if (kind !== 'preempt') return false
    if (this.has(({ info }) => info.kind !== 'preempt')) return true
    throw new ProxyError('TARGET_REFUSED', 'a preempt channel without a migration', undefined, NOT_DIALLED)
  }

  /** A target takes what comes first for its migration's main: that must have come, or still be able to. */
  override checkTurn(channel: C): void {
    if (mayLead(channel) || this.isReached || this.has(mayLead)) return
    throw new ProxyError('TARGET_REFUSED', 'its main ended before it was dialled', undefined, NOT_DIALLED)
  }

  override reached(channel: C): void {
    if (mayLead(channel)) this.isReached = true
  }

  /** Main leads, a recovery after it; of a migration that QEMU encrypts what came first. */
  override begins(channel: C, kind: ChannelKind): void {
    if (kind !== 'main' && kind !== 'recovery' && (kind !== 'tls' || this.lead)) return
    this.lead = channel
    this.record.leads(kind)
  }

  /** Whether any that is not over is such a one. */
  private has(is: (channel: C) => boolean): boolean {
    for (const channel of this.flows) if (!channel.isOver && is(channel)) return true
    return false
  }

  override tellArrives(log: Log<ArrivalEvents>, kind: string): void {
    log.info('migration arrives', { ...this.named, target: this.target, kind })
  }

  override tellGivenUp(log: Log<ArrivalEvents>, reason: string): void {
    log.warn('migration given up', { ...this.named, reason })
  }

  status(nowMs: number): MigrationStatus {
    const { target, record, flows, bytesOut, bytesBack } = this
    return {
      ...this.named,
      target,
      ...record.guest,
      seconds: this.seconds(nowMs),
      channels: flows.size,
      postcopy: record.postcopy,
      bytes: bytesOut,
      bytesBack,
    }
  }

  /** Once its last channel has ended. */
  summary(nowMs: number): ArrivalSummary {
    const { target, record, bytesOut, bytesBack } = this
    return {
      ...this.named,
      target,
      ...record.guest,
      ...record.verdict(),
      seconds: this.seconds(nowMs),
      bytesOut,
      bytesBack,
      endedBy: record.endedBy,
    }
  }
}

/** What may come first at a target: also what is not known yet. */
function mayLead({ info }: ArrivingChannel): boolean {
  return info.kind !== 'multifd' && info.kind !== 'preempt'
}
