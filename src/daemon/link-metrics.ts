/** What metrics tell of sessions, by peer: whether there is one, how its link is, and what runs over it. */
import type { Counter, Gauge } from 'prom-client'
import type { MetricMaker } from './disk-metrics.ts'
import type { Direction } from './moved-bytes.ts'
import type { DestinationStatus, LinkStatus, SourceSessionStatus } from './status.ts'

export class LinkMetrics {
  private readonly sessionUp: Gauge<'peer'>
  private readonly roundTrip: Gauge<'peer'>
  private readonly linkRate: Gauge<'peer'>
  private readonly rateLimit: Gauge<'peer'>
  private readonly effort: Gauge<'peer'>
  private readonly waiting: Gauge<'peer'>
  private readonly sets: Gauge<'peer' | 'place'>
  private readonly running: Gauge<'peer' | 'direction'>
  private readonly left: Gauge<'peer'>
  private readonly breaks: Counter<'peer'>

  constructor({ gauge, counter }: MetricMaker) {
    this.sessionUp = gauge('pageferry_session_up', 'Whether there is a session with the other proxy.', 'peer')
    this.roundTrip = gauge('pageferry_link_round_trip_seconds', 'Round trip to the other proxy, smoothed.', 'peer')
    this.linkRate = gauge('pageferry_link_rate_bytes_per_second', 'What the link delivered lately.', 'peer')
    this.rateLimit = gauge(
      'pageferry_rate_limit_bytes_per_second',
      'Cap on the WAN that counts now, where there is one.',
      'peer',
    )
    this.effort = gauge(
      'pageferry_effort',
      'Effort of the next batch, 0 to 5, or -1: raw, while a migration leaves.',
      'peer',
    )
    this.waiting = gauge('pageferry_connections_waiting', 'Connections of QEMU that wait for a session.', 'peer')
    this.sets = gauge('pageferry_template_sets', 'Template sets that a session uses.', 'peer', 'place')
    this.running = gauge('pageferry_migrations_running', 'Migrations that run.', 'peer', 'direction')
    this.left = gauge('pageferry_sessions_left', 'Sessions that were left to the disks that they serve.', 'peer')
    this.breaks = counter('pageferry_session_breaks_total', 'WAN connections that broke.', 'peer')
  }

  /** A WAN connection broke. */
  broke(peer: string): void {
    this.breaks.inc({ peer })
  }

  /** Counters begin at 0 with their peer. */
  peer(peer: string): void {
    this.breaks.inc({ peer }, 0)
  }

  /** Gauges begin anew: the others follow for all that there is. */
  begins(): void {
    const { sessionUp, roundTrip, linkRate, rateLimit, effort, waiting, sets, running, left } = this
    for (const gauge of [sessionUp, roundTrip, linkRate, rateLimit, effort, waiting, sets, running, left]) gauge.reset()
  }

  /** @param rate undefined: there is no cap */
  limit(peer: string, rate: number | undefined): void {
    if (rate !== undefined) this.rateLimit.set({ peer }, rate)
  }

  /** A source. @param session that takes what comes, where there is one. @param left how many were left to their disks */
  source(peer: string, session: SourceSessionStatus | undefined, waiting: number, left: number): void {
    this.sessionUp.set({ peer }, session ? 1 : 0)
    this.waiting.inc({ peer }, waiting)
    this.runs(peer, 'out', session?.migrations.length ?? 0)
    this.left.inc({ peer }, left)
    if (!session) return
    this.link(peer, session)
    for (const { effort } of session.migrations) this.effort.set({ peer }, effort)
  }

  /** A peer that has had a session of a destination: it has none, but where `destination` follows. */
  away(peer: string): void {
    this.sessionUp.set({ peer }, 0)
    this.runs(peer, 'in', 0)
  }

  /** A session of a destination. */
  destination(peer: string, session: DestinationStatus['sessions'][number]): void {
    this.sessionUp.set({ peer }, 1)
    this.runs(peer, 'in', session.migrations.length)
    this.link(peer, session)
  }

  private runs(peer: string, direction: Direction, migrations: number): void {
    this.running.inc({ peer, direction }, migrations)
  }

  private link(peer: string, { stats, sets, coldSets }: LinkStatus): void {
    if (stats.rttMs > 0) this.roundTrip.set({ peer }, stats.rttMs / 1000)
    this.linkRate.set({ peer }, stats.rate)
    this.sets.set({ peer, place: 'memory' }, sets)
    this.sets.set({ peer, place: 'disk' }, coldSets)
  }
}
