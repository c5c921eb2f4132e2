/**
 * The disk transfers of one session at its source: what their clients ask for, as far as that is followed, and which
 * connections wait for a FLUSH. A part of SourceChannels, which has their flows. Pure, likewise.
 */
import { assert } from '../errors.ts'
import type { Log } from '../log.ts'
import type { Departure } from './departure.ts'
import type { DeparturesChannel } from './departures.ts'
import { DiskDeparture } from './disk-departure.ts'
import type { DiskGates } from './disk-gates.ts'
import type { SourceChannelEvents } from './source-events.ts'
import type { DiskDepartureStatus } from './summary.ts'

/** A connection of a disk. SourceFlow is one. */
export interface SourceDisk<C extends DeparturesChannel<C>> extends DeparturesChannel<C> {
  /** A guest waits for what it sends, or does so no more. */
  hurry(isUrgent?: boolean): void
}

export interface SourceDisksOptions {
  readonly log: Log<SourceChannelEvents>
  readonly now: () => number
  /** How long bytes may wait in the link has changed. */
  readonly followUrgency: () => void
  /** `nextTickMs` may have come nearer. */
  readonly arm: () => void
}

export class SourceDisks<C extends SourceDisk<C>> {
  private readonly options: SourceDisksOptions
  private readonly gates: DiskGates<C, DiskDeparture<C>, Departure<C>>
  private stopped = false

  constructor(options: SourceDisksOptions, gates: DiskGates<C, DiskDeparture<C>, Departure<C>>) {
    this.options = options
    this.gates = gates
  }

  /** Those that run. */
  get transfers(): ReadonlySet<DiskDeparture<C>> {
    return this.gates.transfers
  }

  /** Each as it is: plain data. @param effort of the next batch */
  status(effort: number): DiskDepartureStatus[] {
    const nowMs = this.options.now()
    return Array.from(this.transfers, transfer => transfer.status(nowMs, effort))
  }

  // --- what happens

  /** A connection can be read: it waits for its server, which speaks first. */
  arrived(channel: C): void {
    this.gates.arrived(channel, this.options.now())
  }

  /** A client and its server have agreed on an export. */
  exported(channel: C, name: string, bytes: number): void {
    const transfer = transferOf(channel)
    assert(transfer !== undefined, 'an export within a migration')
    const told = transfer.exported(channel, name, bytes)
    if (told !== undefined) this.options.log.info('disk export', { ...transfer.named, export: told, bytes })
  }

  /** A client asks for a change of its export. */
  wrote(channel: C, offset: number, lengthBytes: number): void {
    transferOf(channel)?.wrote(channel, offset, lengthBytes)
  }

  /** A direction of a connection is not understood any more. */
  obscured(channel: C): void {
    transferOf(channel)?.obscured(channel)
  }

  /**
   * A client waits for a FLUSH, or does so no more. A mirror's waits for one before it says that it is ready, and for one when
   * it is completed, when its guest stands still.
   */
  flushes(channel: C, waits: boolean): void {
    const transfer = transferOf(channel)
    if (!transfer) return
    const { now, followUrgency, arm } = this.options
    transfer.flushes(channel, waits, now())
    channel.hurry(waits)
    followUrgency()
    arm()
  }

  /** It was answered well: from now on its guest may be stopped at any time, and waits for what it wrote last. */
  flushed(channel: C): void {
    if (transferOf(channel)?.flushed(channel)) this.options.followUrgency()
  }

  ended(transfer: DiskDeparture<C>): void {
    this.gates.ended(transfer)
  }

  /** The session has ended. */
  stop(): void {
    this.stopped = true
    this.gates.stop()
  }

  /** When `tick` is due; Infinity: not before something happens. */
  get nextTickMs(): number {
    let nextMs = this.gates.nextTickMs
    if (!this.stopped) for (const { flushOverMs } of this.transfers) nextMs = Math.min(nextMs, flushOverMs)
    return nextMs
  }

  tick(nowMs: number): void {
    this.gates.tick(nowMs)
    // a FLUSH whose server takes its time holds up nobody else
    const calm = [...this.transfers].flatMap(transfer => transfer.flushesOver(nowMs))
    for (const channel of calm) channel.hurry(false)
    if (calm.length > 0) this.options.followUrgency()
  }
}

function transferOf<C extends SourceDisk<C>>({ migration }: C): DiskDeparture<C> | undefined {
  return migration instanceof DiskDeparture ? migration : undefined
}
