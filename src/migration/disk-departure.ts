/** One disk transfer as its source proxy sees it: connections of NBD at one gate, from the first to the last. Pure. */
import type { Log } from '../log.ts'
import { Departure, type DepartureChannel, type DepartureOptions, type Sent, URGENT_QUEUE_MS } from './departure.ts'
import { DiskProgress } from './disk-progress.ts'
import { Rates } from './rates.ts'
import type { SourceChannelEvents } from './source-events.ts'
import type { DiskDepartureStatus, DiskDepartureSummary, NamedTransfer, OwedWrites } from './summary.ts'
import { pageCounts } from './traffic.ts'

/**
 * The same where a disk is mirrored up to its last writes: its guest may be stopped at any time, and then these go through
 * the link behind whatever waits there, before its memory can end. Smaller batches are the price.
 */
const MIRRORED_QUEUE_MS = 10

/**
 * So long a FLUSH has the link for itself: it is over there by then, and what takes longer is its server's disk, of a big copy for
 * minutes. Others are not to send smaller batches, and without sets on the disk, for that.
 */
const FLUSH_HURRIES_MS = 2000

export class DiskDeparture<C extends DepartureChannel> extends Departure<C> {
  /** How many connections it has had. */
  private connections = 0
  private readonly progress = new DiskProgress<C>()
  /** Of what its clients say, and of what its server does. */
  private readonly rates: Rates
  private readonly ratesBack: Rates
  /** Connections that have been flushed once, and such that wait for it, with the time up to which that is urgent, the first first. */
  private readonly mirrored = new Set<C>()
  private readonly flushing = new Map<C, number>()

  constructor(options: DepartureOptions<C>) {
    super(options)
    this.rates = new Rates(options.startMs)
    this.ratesBack = new Rates(options.startMs)
  }

  get named(): NamedTransfer {
    return { transfer: this.number, id: this.record.id }
  }

  override opened(channel: C, nowMs: number): void {
    super.opened(channel, nowMs)
    this.connections++
  }

  override closed(channel: C): boolean {
    this.mirrored.delete(channel)
    this.flushing.delete(channel)
    this.progress.forget(channel)
    return super.closed(channel)
  }

  /** Each connection is one of its own to its server: those that the other side has not heard of can begin anew. */
  override loses(channel: C, isUnheard: (flow: number) => boolean): boolean {
    return this.flows.has(channel) && channel.number !== 0 && !isUnheard(channel.number)
  }

  /** A client waits for a FLUSH, or does so no more. */
  flushes(channel: C, waits: boolean, nowMs: number): void {
    this.flushing.delete(channel)
    if (waits) this.flushing.set(channel, nowMs + FLUSH_HURRIES_MS)
  }

  /** When a FLUSH has been urgent for long enough; Infinity: none is. */
  get flushOverMs(): number {
    const [first = Number.POSITIVE_INFINITY] = this.flushing.values()
    return first
  }

  /** @returns connections whose FLUSH is urgent no more, though it is not answered */
  flushesOver(nowMs: number): C[] {
    const over = [...this.flushing].filter(([, overMs]) => overMs <= nowMs).map(([channel]) => channel)
    for (const channel of over) this.flushing.delete(channel)
    return over
  }

  /** It was answered. @returns whether it is the first of this connection */
  flushed(channel: C): boolean {
    const before = this.mirrored.size
    return this.mirrored.add(channel).size > before
  }

  override get queueMs(): number {
    if (this.flushing.size > 0) return URGENT_QUEUE_MS
    return this.mirrored.size > 0 ? MIRRORED_QUEUE_MS : Number.POSITIVE_INFINITY
  }

  /** A client of it has got an export. @returns its name, where that is to be told: each once, as far as there is room */
  exported(channel: C, name: string, bytes: number): string | undefined {
    return this.progress.exported(channel, name, bytes)
  }

  /** A client asks for a change of its export. */
  wrote(channel: C, offset: number, lengthBytes: number): void {
    this.progress.wrote(channel, offset, lengthBytes)
  }

  /** A direction of it is not understood: where it writes is not known any more. */
  obscured(channel: C): void {
    this.progress.forget(channel)
  }

  override sent(channel: C, nowMs: number): Sent {
    const { traffic } = this
    if (channel.stats) traffic.handedIn(channel.stats)
    this.rates.passed(traffic.counted, nowMs)
    this.ratesBack.passed(this.back, nowMs)
    this.progress.seen(channel, nowMs)
    return {}
  }

  private get back() {
    const { bytesBack, bytesBackWan } = this.traffic
    return { rawBytes: bytesBack, packedBytes: bytesBackWan }
  }

  /** Over all of its connections; undefined: none is answered here. */
  private get owed(): OwedWrites | undefined {
    let owed: OwedWrites | undefined
    for (const { owed: one } of this.flows) {
      if (one) owed = { writes: one.writes + (owed?.writes ?? 0), bytes: one.bytes + (owed?.bytes ?? 0) }
    }
    return owed
  }

  override tellStart(log: Log<SourceChannelEvents>, { peer }: C): void {
    if (this.connections === 1) log.info('disk transfer starts', { ...this.named, target: this.gate.target, peer })
  }

  override tellGivenUp(log: Log<SourceChannelEvents>, reason: string): void {
    log.warn('disk transfer given up', { ...this.named, reason })
  }

  /** @param effort of its next batch */
  status(nowMs: number, effort: number): DiskDepartureStatus {
    const { owed } = this
    const counts = this.counts()
    const back = this.ratesBack.status(this.back, nowMs)
    return {
      ...this.named,
      target: this.gate.target,
      exports: this.progress.status(nowMs),
      seconds: this.seconds(nowMs),
      connections: this.flows.size,
      requests: Array.from(this.flows, ({ unanswered = 0 }) => unanswered).reduce((sum, count) => sum + count, 0),
      ...(owed && { owed }),
      ...this.flowing(counts, effort),
      bytesBackWan: this.traffic.bytesBackWan,
      ...this.rates.status(counts, nowMs),
      bytesBackPerSecond: back.bytesPerSecond,
      wanBytesBackPerSecond: back.wanBytesPerSecond,
    }
  }

  /** Once it is over. */
  summary(nowMs: number): DiskDepartureSummary {
    const { record } = this
    const counts = this.counts()
    return {
      level: record.isBroken ? 'warn' : 'info',
      ...this.named,
      target: this.gate.target,
      exports: this.progress.names,
      connections: this.connections,
      ...this.figures(counts, nowMs),
      bytesBackWan: this.traffic.bytesBackWan,
      blocks: pageCounts(counts),
      endedBy: record.endedBy,
    }
  }
}
