/** One disk transfer as its destination proxy sees it. Pure. */
import type { Log } from '../log.ts'
import { KIND_DISK } from '../wan/wire.ts'
import { Arrival, type ArrivingChannel, mixed } from './arrival.ts'
import type { ArrivalEvents } from './arrival-events.ts'
import type { DiskArrivalSummary, DiskStatus, NamedTransfer } from './summary.ts'

export class DiskArrival<C extends ArrivingChannel> extends Arrival<C> {
  override readonly server = "disk's server"

  private get named(): NamedTransfer {
    return { transfer: this.number, id: this.record.id }
  }

  /** What a disk's client and its server say tells nothing of a migration. */
  override watch(): undefined {
    return undefined
  }

  /** Its server speaks first. */
  override admits({ info }: C): boolean {
    if (info.kind !== KIND_DISK) throw mixed()
    return true
  }

  /** Any of its connections may come first. */
  override checkTurn(): void {}
  override reached(): void {}

  /** None leads. */
  override begins(): void {}

  override tellArrives(log: Log<ArrivalEvents>): void {
    log.info('disk transfer arrives', { ...this.named, target: this.target })
  }

  override tellGivenUp(log: Log<ArrivalEvents>, reason: string): void {
    log.warn('disk transfer given up', { ...this.named, reason })
  }

  status(nowMs: number): DiskStatus {
    const { target, flows, bytesOut, bytesBack, bytesBackWan } = this
    return {
      ...this.named,
      target,
      seconds: this.seconds(nowMs),
      connections: flows.size,
      bytes: bytesOut,
      bytesBack,
      bytesBackWan,
    }
  }

  /** Once its last connection has ended. */
  summary(nowMs: number): DiskArrivalSummary {
    const { target, record, channels, bytesOut, bytesBack, bytesBackWan } = this
    return {
      level: record.isBroken ? 'warn' : 'info',
      ...this.named,
      target,
      connections: channels,
      seconds: this.seconds(nowMs),
      bytesOut,
      bytesBack,
      bytesBackWan,
      endedBy: record.endedBy,
    }
  }
}
