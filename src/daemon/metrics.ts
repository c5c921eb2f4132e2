/** What Prometheus scrapes, by prom-client (ADR 0014): gauges from a status, counters from events as they come. */
import type { Counter, Gauge, Histogram, Registry } from 'prom-client'
import { METRICS_FRESH_MS, METRICS_PEERS_MAX } from '../limits.ts'
import type { SiteStatus } from './control-api.ts'
import { DiskMetrics } from './disk-metrics.ts'
import type { Events, SiteEvent } from './events.ts'
import { type Direction, MovedBytes } from './moved-bytes.ts'
import { SetMetrics } from './set-metrics.ts'
import { ALL_PEERS } from './settings.ts'
import type { LinkStatus } from './status.ts'

/** Peers beyond METRICS_PEERS_MAX: who may connect may have many names. */
const OTHERS = 'others'

/** From guests that are known already to a big one over a thin link. */
const DURATION_BUCKETS = [1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 12 * 3600]
const ERROR_BUCKETS = [0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1]

const RESULTS = ['completed', 'cancelled', 'failed', 'unknown'] as const
type Ended = Extract<SiteEvent, { event: 'migration ended' }>['fields']

export class Metrics {
  private readonly registry: Registry
  private readonly status: () => SiteStatus
  private readonly freshMs: number
  private readonly unsubscribe: () => void
  /** The last rendering, and when it was begun. */
  private rendered: Promise<string> | undefined
  private renderedMs = 0
  private readonly peers = new Set<string>()
  /** Those of a destination proxy that had a session: each is down when it has none. */
  private readonly known = new Set<string>()
  private cpuSeconds = 0

  private readonly buildInfo: Gauge<'version' | 'role'>
  private readonly sessionUp: Gauge<'peer'>
  private readonly roundTrip: Gauge<'peer'>
  private readonly linkRate: Gauge<'peer'>
  private readonly rateLimit: Gauge<'peer'>
  private readonly effort: Gauge<'peer'>
  private readonly waiting: Gauge<'peer'>
  private readonly sets: Gauge<'peer' | 'place'>
  private readonly running: Gauge<'peer' | 'direction'>
  private readonly left: Gauge<'peer'>
  private readonly disks: DiskMetrics
  private readonly expiry: Gauge<'role'>
  private readonly breaks: Counter<'peer'>
  private readonly migrations: Counter<'peer' | 'direction' | 'result'>
  private readonly bytes: MovedBytes
  private readonly pages: Counter<'class'>
  private readonly damaged: Counter
  private readonly duration: Histogram<'direction'>
  private readonly forecastError: Histogram
  private readonly cpu: Counter
  private readonly memory: Gauge
  private readonly setGains: SetMetrics

  /**
   * @param status asked at each rendering
   * @param freshMs how long a rendering serves all who ask
   */
  static async load(status: () => SiteStatus, events: Events, freshMs = METRICS_FRESH_MS): Promise<Metrics> {
    return new Metrics(await import('prom-client'), status, events, freshMs) // 30 ms, of those who want it
  }

  private constructor(client: typeof import('prom-client'), status: () => SiteStatus, events: Events, freshMs: number) {
    const registry = new client.Registry()
    const registers = [registry]
    const gauge = <L extends string = never>(name: string, help: string, ...labelNames: L[]): Gauge<L> =>
      new client.Gauge({ name, help, labelNames, registers })
    const counter = <L extends string = never>(name: string, help: string, ...labelNames: L[]): Counter<L> =>
      new client.Counter({ name, help, labelNames, registers })
    this.registry = registry
    this.status = status
    this.freshMs = freshMs
    this.buildInfo = gauge('pageferry_build_info', 'Always 1.', 'version', 'role')
    this.sessionUp = gauge('pageferry_session_up', 'Whether there is a session with the other proxy.', 'peer')
    this.roundTrip = gauge('pageferry_link_round_trip_seconds', 'Round trip to the other proxy, smoothed.', 'peer')
    this.linkRate = gauge('pageferry_link_rate_bytes_per_second', 'What the link delivered lately.', 'peer')
    this.rateLimit = gauge(
      'pageferry_rate_limit_bytes_per_second',
      'Cap on the WAN that counts now, where there is one.',
      'peer',
    )
    this.effort = gauge('pageferry_effort', 'Effort of the next batch, 0 to 5, while a migration leaves.', 'peer')
    this.waiting = gauge('pageferry_connections_waiting', 'Connections of QEMU that wait for a session.', 'peer')
    this.sets = gauge('pageferry_template_sets', 'Template sets that a session uses.', 'peer', 'place')
    this.running = gauge('pageferry_migrations_running', 'Migrations that run.', 'peer', 'direction')
    this.left = gauge('pageferry_sessions_left', 'Sessions that were left to the disks that they serve.', 'peer')
    this.disks = new DiskMetrics({ gauge, counter })
    this.expiry = gauge(
      'pageferry_certificate_expiry_timestamp_seconds',
      'When the first certificate or revocation list of this proxy expires.',
      'role',
    )
    this.breaks = counter('pageferry_session_breaks_total', 'WAN connections that broke.', 'peer')
    this.migrations = counter(
      'pageferry_migrations_total',
      'Migrations that have ended: completed, cancelled, failed, unknown.',
      ...(['peer', 'direction', 'result'] as const),
    )
    this.bytes = new MovedBytes(
      counter(
        'pageferry_migration_bytes_total',
        'Bytes of migrations, those that run too: of QEMU, and what of them is on the WAN (where they leave).',
        ...(['peer', 'direction', 'side'] as const),
      ),
    )
    this.pages = counter('pageferry_pages_total', 'Pages of migrations that have left, by what was sent.', 'class')
    this.damaged = counter('pageferry_template_damaged_total', 'Template sets that were found unusable.')
    this.duration = new client.Histogram({
      name: 'pageferry_migration_duration_seconds',
      help: 'How long migrations took that completed.',
      labelNames: ['direction'],
      buckets: DURATION_BUCKETS,
      registers,
    })
    this.forecastError = new client.Histogram({
      name: 'pageferry_forecast_error_ratio',
      help: 'How far the middle of a forecast was from the time that the first pass took, of that time.',
      buckets: ERROR_BUCKETS,
      registers,
    })
    this.setGains = new SetMetrics(client, registers)
    this.cpu = counter('process_cpu_seconds_total', 'CPU time of the process.')
    this.memory = gauge('process_resident_memory_bytes', 'Memory of the process.')
    gauge('process_start_time_seconds', 'When the process was started, since 1970.').set(performance.timeOrigin / 1000)
    this.unsubscribe = events.subscribe(told => this.take(told))
  }

  get contentType(): string {
    return this.registry.contentType
  }

  /**
   * All of it, as it is now or was a moment ago: whoever asks many times a second gets one rendering. The process' CPU
   * time alone, which the kernel adds up over all threads, costs as much as an answer.
   */
  async text(): Promise<string> {
    const nowMs = performance.now()
    if (this.rendered === undefined || nowMs - this.renderedMs >= this.freshMs) {
      this.renderedMs = nowMs
      this.rendered = this.render()
      this.rendered.catch(() => {
        this.rendered = undefined // whoever asks is told; the next one may have it
      })
    }
    return this.rendered
  }

  private async render(): Promise<string> {
    this.collect(this.status())
    this.setGains.collect()
    return this.registry.metrics()
  }

  close(): void {
    this.unsubscribe()
  }

  // --- as it comes

  private take(told: SiteEvent): void {
    if (told.event === 'migration ended' || told.event === 'disk transfer ended')
      this.setGains.take(told.fields.sets ?? [])
    if (told.event === 'migration ended') this.ended(told.fields)
    else if (told.event === 'disk transfer ended') this.disks.ended(this.peer(told.fields.peer), told.fields)
    else if (told.event === 'template set not used') this.damaged.inc()
    // at a source the cause is where the peer is; at a destination the link tells, and who caused it is who it was
    else if (told.event === 'WAN connection lost') this.breaks.inc({ peer: this.peer(this.nameOf(told.cause ?? '')) })
    else if (told.event === 'link.down' && told.fields.reason !== undefined && told.cause === told.fields.identity)
      this.breaks.inc({ peer: this.peer(told.fields.identity) })
  }

  private ended(fields: Ended): void {
    const peer = this.peer(fields.peer)
    const out = 'bytesWan' in fields
    const direction: Direction = out ? 'out' : 'in'
    this.migrations.inc({ peer, direction, result: fields.outcome })
    if (fields.outcome === 'completed') this.duration.observe({ direction }, fields.seconds)
    this.bytes.end(peer, direction, out ? fields.bytesIn : fields.bytesOut, out ? fields.bytesWan : undefined)
    if (!out) return
    for (const [name, count] of Object.entries(fields.pages)) this.pages.inc({ class: name }, count)
    const { forecast, firstPass } = fields
    if (!forecast || !firstPass || firstPass.seconds === 0) return
    const middle = (forecast.seconds[0] + forecast.seconds[1]) / 2
    this.forecastError.observe(Math.abs(middle / firstPass.seconds - 1))
  }

  // --- as it is

  private collect({ version, all, sources, destination }: SiteStatus): void {
    const gauges = [this.sessionUp, this.roundTrip, this.linkRate, this.rateLimit, this.effort, this.waiting]
    for (const gauge of [...gauges, this.sets, this.running, this.left, this.expiry]) gauge.reset()
    this.disks.begins()
    const role = sources.length === 0 ? 'destination' : destination ? 'serve' : 'source'
    this.buildInfo.set({ version, role }, 1)
    if (all?.rate !== undefined) this.rateLimit.set({ peer: ALL_PEERS }, all.rate)

    for (const { peer: name, rate, session, left, waiting } of sources) {
      const peer = this.peer(name)
      this.sessionUp.set({ peer }, session ? 1 : 0)
      this.waiting.inc({ peer }, waiting)
      if (rate !== undefined) this.rateLimit.set({ peer }, rate)
      this.running.inc({ peer, direction: 'out' }, session?.migrations.length ?? 0)
      this.left.inc({ peer }, left?.length ?? 0)
      this.countsFrom(peer, 'out')
      for (const one of [session, ...(left ?? [])]) this.disks.run(peer, 'out', one?.disks ?? [])
      if (!session) continue
      this.link(peer, session)
      for (const { bytes, bytesWan, effort } of session.migrations) {
        this.bytes.run(peer, 'out', bytes, bytesWan)
        this.effort.set({ peer }, effort)
      }
    }
    for (const name of destination?.sessions.map(({ peer }) => this.peer(peer)) ?? []) this.known.add(name)
    for (const peer of this.known) {
      this.sessionUp.set({ peer }, 0)
      this.running.inc({ peer, direction: 'in' }, 0)
      this.countsFrom(peer, 'in')
    }
    for (const session of destination?.sessions ?? []) {
      const peer = this.peer(session.peer)
      this.sessionUp.set({ peer }, 1)
      this.running.inc({ peer, direction: 'in' }, session.migrations.length)
      this.disks.run(peer, 'in', session.disks ?? [])
      this.link(peer, session)
      for (const { bytes } of session.migrations) this.bytes.run(peer, 'in', bytes, undefined)
    }
    this.bytes.export()
    this.disks.collected()
    this.expires(
      'source',
      sources.flatMap(({ certificates }) => certificates),
    )
    this.expires('destination', destination?.certificates ?? [])
    this.processes()
  }

  private link(peer: string, { stats, sets, coldSets }: LinkStatus): void {
    if (stats.rttMs > 0) this.roundTrip.set({ peer }, stats.rttMs / 1000)
    this.linkRate.set({ peer }, stats.rate)
    this.sets.set({ peer, place: 'memory' }, sets)
    this.sets.set({ peer, place: 'disk' }, coldSets)
  }

  /** Counters begin at 0 with their peer: of one that begins at 1 Prometheus sees no increase. */
  private countsFrom(peer: string, direction: Direction): void {
    for (const result of RESULTS) this.migrations.inc({ peer, direction, result }, 0)
    this.breaks.inc({ peer }, 0)
    this.bytes.run(peer, direction, 0, direction === 'out' ? 0 : undefined)
    this.disks.peer(peer, direction)
  }

  private expires(role: string, certificates: readonly { readonly expires: string }[]): void {
    const ends = certificates.map(({ expires }) => Date.parse(expires) / 1000)
    if (ends.length > 0) this.expiry.set({ role }, Math.min(...ends))
  }

  private processes(): void {
    const { user, system } = process.cpuUsage()
    const seconds = (user + system) / 1e6
    this.cpu.inc(seconds - this.cpuSeconds)
    this.cpuSeconds = seconds
    this.memory.set(process.memoryUsage.rss())
  }

  // --- names

  /** The label for a peer: there are only so many. */
  private peer(name: string): string {
    const { peers } = this
    if (peers.has(name)) return name
    if (peers.size >= METRICS_PEERS_MAX) return OTHERS
    peers.add(name)
    return name
  }

  private nameOf(address: string): string {
    return this.status().sources.find(source => source.address === address)?.peer ?? address
  }
}
