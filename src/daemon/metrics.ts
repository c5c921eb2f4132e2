/** What Prometheus scrapes, by prom-client (ADR 0014): gauges from a status, counters from events as they come. */
import type { Counter, Gauge, Registry } from 'prom-client'
import { METRICS_FRESH_MS, METRICS_PEERS_MAX } from '../limits.ts'
import type { SiteStatus } from './control-api.ts'
import { DiskMetrics } from './disk-metrics.ts'
import type { Events, SiteEvent } from './events.ts'
import { LinkMetrics } from './link-metrics.ts'
import { MigrationMetrics } from './migration-metrics.ts'
import type { Direction } from './moved-bytes.ts'
import { ProcessMetrics } from './process-metrics.ts'
import { SetMetrics } from './set-metrics.ts'
import { ALL_PEERS } from './settings.ts'

/** Peers beyond METRICS_PEERS_MAX: who may connect may have many names. */
const OTHERS = 'others'

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

  private readonly buildInfo: Gauge<'version' | 'role'>
  private readonly links: LinkMetrics
  private readonly disks: DiskMetrics
  private readonly expiry: Gauge<'role'>
  private readonly migrations: MigrationMetrics
  private readonly damaged: Counter
  private readonly setGains: SetMetrics
  private readonly process: ProcessMetrics

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
    this.links = new LinkMetrics({ gauge, counter })
    this.disks = new DiskMetrics({ gauge, counter })
    this.expiry = gauge(
      'pageferry_certificate_expiry_timestamp_seconds',
      'When the first certificate or revocation list of this proxy expires.',
      'role',
    )
    this.migrations = new MigrationMetrics(client, registers)
    this.damaged = counter('pageferry_template_damaged_total', 'Template sets that were found unusable.')
    this.setGains = new SetMetrics(client, registers)
    this.process = new ProcessMetrics({ gauge, counter })
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
    if (told.event === 'migration ended') this.migrations.ended(this.peer(told.fields.peer), told.fields)
    else if (told.event === 'disk transfer ended')
      this.disks.ended(this.peer(told.fields.peer), told.level, told.fields)
    else if (told.event === 'template set not used') this.damaged.inc()
    // at a source the cause is where the peer is; at a destination the link tells, and who caused it is who it was
    else if (told.event === 'WAN connection lost') this.links.broke(this.peer(this.nameOf(told.cause ?? '')))
    else if (told.event === 'link.down' && told.level === 'warn' && told.cause === told.fields.identity)
      this.links.broke(this.peer(told.fields.identity))
  }

  // --- as it is

  private collect({ version, all, sources, destination }: SiteStatus): void {
    this.links.begins()
    this.expiry.reset()
    this.disks.begins()
    const role = sources.length === 0 ? 'destination' : destination ? 'serve' : 'source'
    this.buildInfo.set({ version, role }, 1)
    this.links.limit(ALL_PEERS, all?.rate)

    for (const { peer: name, rate, session, left, waiting } of sources) {
      const peer = this.peer(name)
      this.links.source(peer, session, waiting, left?.length ?? 0)
      this.links.limit(peer, rate)
      this.countsFrom(peer, 'out')
      for (const one of [session, ...(left ?? [])]) this.disks.run(peer, 'out', one?.disks ?? [])
      for (const { bytes, bytesWan } of session?.migrations ?? []) this.migrations.run(peer, 'out', bytes, bytesWan)
    }
    for (const name of destination?.sessions.map(({ peer }) => this.peer(peer)) ?? []) this.known.add(name)
    for (const peer of this.known) {
      this.links.away(peer)
      this.countsFrom(peer, 'in')
    }
    for (const session of destination?.sessions ?? []) {
      const peer = this.peer(session.peer)
      this.links.destination(peer, session)
      this.disks.run(peer, 'in', session.disks ?? [])
      for (const { bytes } of session.migrations) this.migrations.run(peer, 'in', bytes, undefined)
    }
    this.migrations.collected()
    this.disks.collected()
    this.expires(
      'source',
      sources.flatMap(({ certificates }) => certificates),
    )
    this.expires('destination', destination?.certificates ?? [])
    this.process.collect()
  }

  /** Counters begin at 0 with their peer: of one that begins at 1 Prometheus sees no increase. */
  private countsFrom(peer: string, direction: Direction): void {
    this.migrations.peer(peer, direction)
    this.links.peer(peer)
    this.disks.peer(peer, direction)
  }

  private expires(role: string, certificates: readonly { readonly expires: string }[]): void {
    const ends = certificates.map(({ expires }) => Date.parse(expires) / 1000)
    if (ends.length > 0) this.expiry.set({ role }, Math.min(...ends))
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
