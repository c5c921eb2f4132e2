/** What metrics tell of migrations: how they ended, how long they took, and what they moved. */
import type { Counter, Histogram, Registry } from 'prom-client'
import type { SiteEvent } from './events.ts'
import { type Direction, MovedBytes } from './moved-bytes.ts'

/** From guests that are known already to a big one over a thin link. */
const DURATION_BUCKETS = [1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 12 * 3600]
/** From what nobody notices to what breaks connections. */
const PAUSE_BUCKETS = [0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30]
const ERROR_BUCKETS = [0, 0.05, 0.1, 0.25, 0.5, 1]

const RESULTS = ['completed', 'cancelled', 'failed', 'unknown'] as const
type Ended = Extract<SiteEvent, { event: 'migration ended' }>['fields']

export class MigrationMetrics {
  private readonly migrations: Counter<'peer' | 'direction' | 'result'>
  private readonly bytes: MovedBytes
  private readonly pages: Counter<'class'>
  private readonly duration: Histogram<'direction'>
  private readonly pause: Histogram
  private readonly forecastError: Histogram

  constructor(client: typeof import('prom-client'), registers: Registry[]) {
    this.migrations = new client.Counter({
      name: 'pageferry_migrations_total',
      help: 'Migrations that have ended: completed, cancelled, failed, unknown.',
      labelNames: ['peer', 'direction', 'result'],
      registers,
    })
    this.bytes = new MovedBytes(
      new client.Counter({
        name: 'pageferry_migration_bytes_total',
        help: 'Bytes of migrations, those that run too: of QEMU, and what of them is on the WAN (where they leave).',
        labelNames: ['peer', 'direction', 'side'],
        registers,
      }),
    )
    this.pages = new client.Counter({
      name: 'pageferry_pages_total',
      help: 'Pages of migrations that have left, by what was sent.',
      labelNames: ['class'],
      registers,
    })
    this.duration = new client.Histogram({
      name: 'pageferry_migration_duration_seconds',
      help: 'How long migrations took that completed.',
      labelNames: ['direction'],
      buckets: DURATION_BUCKETS,
      registers,
    })
    this.pause = new client.Histogram({
      name: 'pageferry_migration_pause_seconds',
      help: 'How long guests stood still, at least, whose migration from here completed in precopy.',
      buckets: PAUSE_BUCKETS,
      registers,
    })
    this.forecastError = new client.Histogram({
      name: 'pageferry_forecast_error_ratio',
      help: 'How far the time that the first pass took was outside of its forecast, of that time; 0: within.',
      buckets: ERROR_BUCKETS,
      registers,
    })
  }

  /** One has ended. */
  ended(peer: string, fields: Ended): void {
    const out = 'bytesWan' in fields
    const direction: Direction = out ? 'out' : 'in'
    this.migrations.inc({ peer, direction, result: fields.outcome })
    if (fields.outcome === 'completed') this.duration.observe({ direction }, fields.seconds)
    this.bytes.end(peer, direction, out ? fields.bytesIn : fields.bytesOut, out ? fields.bytesWan : undefined)
    if (!out) return
    for (const [name, count] of Object.entries(fields.pages)) this.pages.inc({ class: name }, count)
    const { forecast, firstPass, pauseSeconds } = fields
    if (pauseSeconds !== undefined) this.pause.observe(pauseSeconds)
    if (!forecast || !firstPass || firstPass.seconds === 0) return
    const [least, most] = forecast.seconds
    const { seconds } = firstPass
    this.forecastError.observe(Math.max(0, least - seconds, seconds - most) / seconds)
  }

  /** Counters begin at 0 with their peer. */
  peer(peer: string, direction: Direction): void {
    for (const result of RESULTS) this.migrations.inc({ peer, direction, result }, 0)
    this.bytes.run(peer, direction, 0, direction === 'out' ? 0 : undefined)
  }

  /** One that runs. @param bytesWan undefined: that is the other side's to tell */
  run(peer: string, direction: Direction, bytes: number, bytesWan: number | undefined): void {
    this.bytes.run(peer, direction, bytes, bytesWan)
  }

  /** That were all that run. */
  collected(): void {
    this.bytes.export()
  }
}
