/** One migration as its destination proxy sees it. Pure. */
import { ProxyError } from '../errors.ts'
import type { Log } from '../log.ts'
import { KIND_DISK } from '../wan/wire.ts'
import { Arrival, type ArrivingChannel, mixed, NOT_DIALLED } from './arrival.ts'
import type { ArrivalEvents } from './arrival-events.ts'
import { ChannelWatch } from './channel-watch.ts'
import type { ArrivalSummary, MigrationStatus, NamedMigration } from './summary.ts'

export class MigrationArrival<C extends ArrivingChannel> extends Arrival<C> {
  override readonly server = 'destination QEMU'

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
    if ([...this.flows].some(flow => flow !== channel && flow.info.kind !== 'preempt' && !flow.isOver)) return true
    throw new ProxyError('TARGET_REFUSED', 'a preempt channel without a migration', undefined, NOT_DIALLED)
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
