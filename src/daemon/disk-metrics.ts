/** What metrics tell of disks: transfers that run and have ended, their bytes both ways, and what their clients take for done. */
import type { Counter, Gauge } from 'prom-client'
import type { DiskDepartureStatus, DiskStatus } from '../migration/summary.ts'
import type { SiteEvent } from './events.ts'
import { type BytesLabel, type Direction, MovedBytes } from './moved-bytes.ts'

/** Makes them in the registry of a proxy's metrics. */
export interface MetricMaker {
  gauge<L extends string = never>(name: string, help: string, ...labels: L[]): Gauge<L>
  counter<L extends string = never>(name: string, help: string, ...labels: L[]): Counter<L>
}

type Ended = Extract<SiteEvent, { event: 'disk transfer ended' }>['fields']

/** How a transfer ends: by its clients and servers, or in that a connection of it broke. */
const RESULTS = ['ended', 'broken'] as const

const BYTES_LABELS = ['peer', 'direction', 'side'] as const satisfies BytesLabel[]

export class DiskMetrics {
  private readonly running: Gauge<'peer' | 'direction'>
  private readonly connections: Gauge<'peer' | 'direction'>
  private readonly owed: Gauge<'peer'>
  private readonly transfers: Counter<'peer' | 'direction' | 'result'>
  private readonly bytes: MovedBytes
  private readonly bytesBack: MovedBytes

  constructor({ gauge, counter }: MetricMaker) {
    this.running = gauge('pageferry_disk_transfers_running', 'Disk transfers that run.', 'peer', 'direction')
    this.connections = gauge('pageferry_disk_connections', 'Connections of disks that are open.', 'peer', 'direction')
    this.owed = gauge(
      'pageferry_disk_owed_bytes',
      'Data of writes that were answered early, and not by the far server yet.',
      'peer',
    )
    this.transfers = counter(
      'pageferry_disk_transfers_total',
      'Disk transfers that have ended; broken: a connection of it was.',
      ...(['peer', 'direction', 'result'] as const),
    )
    this.bytes = new MovedBytes(
      counter(
        'pageferry_disk_bytes_total',
        'Bytes of clients of disks, those of transfers that run too, and what of them is on the WAN (where they leave).',
        ...BYTES_LABELS,
      ),
    )
    this.bytesBack = new MovedBytes(
      counter(
        'pageferry_disk_back_bytes_total',
        'Bytes of servers of disks, those of transfers that run too, and what of them is on the WAN.',
        ...BYTES_LABELS,
      ),
    )
  }

  /** A transfer is over. */
  ended(peer: string, level: SiteEvent['level'], fields: Ended): void {
    const out = 'bytesWan' in fields
    const direction = out ? 'out' : 'in'
    this.transfers.inc({ peer, direction, result: level === 'info' ? 'ended' : 'broken' })
    this.bytes.end(peer, direction, out ? fields.bytesIn : fields.bytesOut, out ? fields.bytesWan : undefined)
    this.bytesBack.end(peer, direction, fields.bytesBack, fields.bytesBackWan)
  }

  /** Gauges begin anew: `run` follows for all that there is, then `collected`. */
  begins(): void {
    for (const gauge of [this.running, this.connections, this.owed]) gauge.reset()
  }

  /** There may be transfers with this peer. */
  peer(peer: string, direction: Direction): void {
    this.running.inc({ peer, direction }, 0)
    this.connections.inc({ peer, direction }, 0)
    if (direction === 'out') this.owed.inc({ peer }, 0)
    for (const result of RESULTS) this.transfers.inc({ peer, direction, result }, 0)
    this.bytes.run(peer, direction, 0, direction === 'out' ? 0 : undefined)
    this.bytesBack.run(peer, direction, 0, 0)
  }

  /** These run in a session with it. */
  run(peer: string, direction: Direction, transfers: readonly (DiskStatus | DiskDepartureStatus)[]): void {
    for (const transfer of transfers) {
      this.running.inc({ peer, direction })
      this.connections.inc({ peer, direction }, transfer.connections)
      if ('owed' in transfer) this.owed.inc({ peer }, transfer.owed.bytes)
      this.bytes.run(peer, direction, transfer.bytes, 'bytesWan' in transfer ? transfer.bytesWan : undefined)
      this.bytesBack.run(peer, direction, transfer.bytesBack, transfer.bytesBackWan)
    }
  }

  collected(): void {
    this.bytes.export()
    this.bytesBack.export()
  }
}
