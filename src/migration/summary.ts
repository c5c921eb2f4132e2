/**
 * What is told of a migration: as it is while it runs, and once when it is over. Plain data, logged and printed as it is;
 * units stand in the names.
 */
import type { MemoryMapStatus } from '../codec/memory-map.ts'
import type { SetGain } from '../codec/set-gains.ts'
import type { GuestName } from './channel-ends.ts'
import type { ExportStatus } from './disk-progress.ts'
import type { Forecast, Passed } from './forecast.ts'
import type { Verdict } from './outcome.ts'
import type { MigrationProgress } from './progress.ts'
import type { ByteRates } from './rates.ts'

/** A migration as both sites call it: by number at each, by id at both. */
export interface NamedMigration {
  readonly migration: number
  readonly id: string
}

/** The same of a disk transfer: its number is among those of migrations. */
export interface NamedTransfer {
  readonly transfer: number
  readonly id: string
}

/** At either side, at any time; of the guest what its channels say. */
interface Told extends NamedMigration, GuestName {
  readonly target: string
  /** Since it began. */
  readonly seconds: number
  /** Bytes of the return path. */
  readonly bytesBack: number
}

/** One that runs, as either side sees it. */
export interface MigrationStatus extends Told {
  /** Channels that are open. */
  readonly channels: number
  /** The guest may run at the destination already, on pages that have not come. */
  readonly postcopy: boolean
  /** Bytes of the channels. */
  readonly bytes: number
}

/** One that runs, at the source. */
export interface DepartureStatus extends MigrationStatus {
  /** Bytes on the WAN: batches that have been packed, and pages of sets that the other side asked for. */
  readonly bytesWan: number
  /** Effort of the next batch. */
  readonly effort: number
  /** Of batches that have been packed. */
  readonly pages: PageCounts
  /** Not in postcopy, nor where nothing is known of the guest's memory. */
  readonly progress?: MigrationProgress
  /** Which of the guest's memory has passed; not where nothing is known of it. */
  readonly map?: MemoryMapStatus
}

/** One that is over. `level` is for alerting. */
interface Ended extends Told, Verdict {
  readonly endedBy: string
  /** What template sets brought, the most first; left out: nothing. */
  readonly sets?: readonly SetGain[]
}

/** Pages by what was sent of them. */
export interface PageCounts {
  readonly zero: number
  readonly same: number
  readonly template: number
  readonly earlier: number
  readonly fill: number
  readonly patched: number
  readonly whole: number
  /** Passed as they were: nobody looked what they are. */
  readonly raw: number
  readonly opaque: number
}

/** One that is over, at the source. */
export interface MigrationSummary extends Ended {
  /** 'main, 2 multifd' */
  readonly channels: string
  /** Bytes that QEMU sent; the batches that carried them, and pages of sets that the other side asked for. */
  readonly bytesIn: number
  readonly bytesWan: number
  /** bytesWan / bytesIn. */
  readonly ratio: number
  /** Of `bytesIn`, what was encoded at each effort that was chosen: by its level; -1: passed raw. */
  readonly efforts: Readonly<Record<number, number>>
  /**
   * How long the guest stood still, at least: from the first batch of QEMU's last pass until the destination QEMU has taken
   * over (without return path: until both have closed). Only of completed precopy.
   */
  readonly pauseSeconds?: number
  /** None where the migration was over too soon, or its memory could not be followed. */
  readonly forecast?: Forecast
  /** What the forecast was about; the rest is what the guest wrote meanwhile, and the devices. None where it did not end. */
  readonly firstPass?: Passed
  readonly pages: PageCounts
}

/** One that is over, at the destination. */
export interface ArrivalSummary extends Ended {
  /** Bytes given to QEMU. */
  readonly bytesOut: number
}

/** A disk transfer at either side, at any time: what connections of NBD at one listener are, from the first to the last. */
interface DiskTold extends NamedTransfer {
  readonly target: string
  readonly seconds: number
  /** Bytes of its server; and what of them was on the WAN. */
  readonly bytesBack: number
  readonly bytesBackWan: number
}

/** One that runs, as either side sees it. */
export interface DiskStatus extends DiskTold {
  /** That are open. */
  readonly connections: number
  /** Bytes of its clients. */
  readonly bytes: number
}

/** Writes that a disk's client takes for done, and that lie in a journal or are on their way. */
export interface OwedWrites {
  readonly writes: number
  /** Of their data: zeroes and trims have none. */
  readonly bytes: number
}

/** One that runs, at the source. */
export interface DiskDepartureStatus extends DiskStatus, ByteRates {
  readonly exports: readonly ExportStatus[]
  /** Of its clients, that are not answered: a mirror of QEMU has 16 at most. */
  readonly requests: number
  /** Where writes are answered here. */
  readonly owed?: OwedWrites
  /** As the rates of its clients' bytes: of `bytesBack`, and of what of it was on the WAN. */
  readonly bytesBackPerSecond: number
  readonly wanBytesBackPerSecond: number
  readonly bytesWan: number
  /** Effort of the next batch. */
  readonly effort: number
}

/** One that is over: whether a mirror is complete its QEMU knows, not the pair. `level` is for alerting. */
interface DiskEnded extends DiskTold {
  /** `warn` where a connection of it broke. */
  readonly level: 'info' | 'warn'
  /** That it had in all. */
  readonly connections: number
  /** The first break of a connection, or how all came to their end. */
  readonly endedBy: string
  /** What template sets brought, the most first; left out: nothing. */
  readonly sets?: readonly SetGain[]
}

export interface DiskDepartureSummary extends DiskEnded {
  /** What its clients asked for, as they named it. */
  readonly exports: readonly string[]
  /** As of a migration. */
  readonly bytesIn: number
  readonly bytesWan: number
  readonly ratio: number
  readonly efforts: Readonly<Record<number, number>>
  /** Blocks of 4096 bytes by what was sent of them. */
  readonly blocks: PageCounts
}

export interface DiskArrivalSummary extends DiskEnded {
  /** Bytes given to its server. */
  readonly bytesOut: number
}
