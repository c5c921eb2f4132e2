/** One migration, or one disk transfer, as its destination proxy sees it: its channels, what has passed, and what is told of it. Pure. */
import { MigrationRecord } from './migration-record.ts'
import type { ArrivalSummary, DiskArrivalSummary, DiskStatus, MigrationStatus } from './summary.ts'

/** @typeParam C - a channel of it */
export class Arrival<C> {
  /** In its session. */
  readonly number: number
  /** Name of its target. */
  readonly target: string
  readonly startMs: number
  /** It is a disk transfer: its first flow said so. */
  readonly isDisk: boolean
  /** Channels that it has had. */
  channels = 0
  readonly record: MigrationRecord
  /** Channels that have not ended. */
  readonly flows = new Set<C>()
  /** Its main channel, or what stands for it. */
  lead: C | undefined
  /** The source knows that this side has it, and so sends it on no other session: its target may hear of it. */
  isConfirmed = false
  /** Its target has taken a connection that may be the first. */
  isReached = false
  bytesOut = 0
  bytesBack = 0

  /** @param session 32 hex digits */
  constructor(session: string, number: number, target: string, isDisk: boolean, nowMs: number) {
    this.record = new MigrationRecord(session, number)
    this.number = number
    this.target = target
    this.isDisk = isDisk
    this.startMs = nowMs
  }

  status(nowMs: number): MigrationStatus {
    const { number, target, record, flows, bytesOut, bytesBack } = this
    return {
      migration: number,
      id: record.id,
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
    const { number, target, record, bytesOut, bytesBack } = this
    return {
      migration: number,
      id: record.id,
      target,
      ...record.guest,
      ...record.verdict(),
      seconds: this.seconds(nowMs),
      bytesOut,
      bytesBack,
      endedBy: record.endedBy,
    }
  }

  diskStatus(nowMs: number): DiskStatus {
    const { number, target, record, flows, bytesOut, bytesBack } = this
    return {
      transfer: number,
      id: record.id,
      target,
      seconds: this.seconds(nowMs),
      connections: flows.size,
      bytes: bytesOut,
      bytesBack,
    }
  }

  diskSummary(nowMs: number): DiskArrivalSummary {
    const { number, target, record, channels, bytesOut, bytesBack } = this
    return {
      level: record.isBroken ? 'warn' : 'info',
      transfer: number,
      id: record.id,
      target,
      connections: channels,
      seconds: this.seconds(nowMs),
      bytesOut,
      bytesBack,
      endedBy: record.endedBy,
    }
  }

  private seconds(nowMs: number): number {
    return Math.round(nowMs - this.startMs) / 1000
  }
}
