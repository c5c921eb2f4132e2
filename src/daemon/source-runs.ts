/**
 * The sessions of a source proxy, opened one after the other for as long as it runs: with what each is offered, who gets what
 * comes, and what is told of it.
 */
import type { ProxyError } from '../errors.ts'
import type { LinkLogger } from '../link/api.ts'
import { LinkClient, type LinkClientOptions } from '../link/client.ts'
import type { DetailLog } from '../log.ts'
import { PausedMigrations } from '../migration/paused.ts'
import type { DiskDepartureSummary, MigrationSummary } from '../migration/summary.ts'
import { plural } from '../quantity.ts'
import type { RateBucket } from '../session/rate-cap.ts'
import { WarmUp } from '../session/warm-up.ts'
import { EffortController } from '../transfer/effort-controller.ts'
import { QEMUS, type SiteEvents, type SiteLog } from './events.ts'
import { asProxyError, SessionKeeper } from './session-keeper.ts'
import { SessionSets } from './session-sets.ts'
import type { Moved } from './source-flow.ts'
import { SourceMemory } from './source-memory.ts'
import { peerNameOf, type SourceOptions } from './source-options.ts'
import { type Rejection, SourceReception } from './source-reception.ts'
import { SourceRun } from './source-run.ts'
import { SourceSession } from './source-session.ts'
import { type AgreedTerms, SourceTerms } from './source-terms.ts'
import type { SessionFailure } from './status.ts'

/** What they need of their proxy. */
export interface SourceRunsHost {
  /** Of all sessions. */
  readonly rate: RateBucket
  /** What this proxy is called, for the hello. */
  readonly instance: () => Pick<LinkClientOptions['offer'], 'instance' | 'process'>
  /** A migration or a disk transfer has ended. */
  readonly onEnded: () => void
  /** A connection that waited is being reset. */
  readonly onRejected: (connection: Moved, why: Rejection) => void
}

export class SourceRuns {
  /** Who gets what comes, and who waits for a session. */
  readonly reception: SourceReception<SourceRun>
  private readonly options: SourceOptions
  private readonly host: SourceRunsHost
  private readonly sets: SessionSets
  private readonly memory: SourceMemory
  private readonly keeper: SessionKeeper
  private readonly paused = new PausedMigrations()
  private readonly warmUp = new WarmUp()
  private stopping = false
  private migrations = 0
  /** What QEMUs and others at our listeners make us say, and what the other proxy does. */
  private readonly qemuLog: SiteLog
  private readonly peerLog: DetailLog<SiteEvents>

  constructor(options: SourceOptions, host: SourceRunsHost) {
    const { events, store, disks = [], signers, patienceMs, onStatus } = options
    this.options = options
    this.host = host
    this.qemuLog = events.of(QEMUS)
    this.peerLog = events.of(peerNameOf(options))
    this.memory = new SourceMemory(peerNameOf(options), disks.length > 0, options)
    this.sets = new SessionSets(store, events, this.memory.setPagesMax, signers)
    this.reception = new SourceReception<SourceRun>({
      patienceMs,
      now: () => performance.now(),
      isStale: () => this.sets.changed,
      onLeft: run => this.left(run),
      onRejected: (...rejected) => host.onRejected(...rejected),
    })
    this.keeper = new SessionKeeper({
      run: () => this.keepRun(),
      isOver: () => this.stopping,
      log: this.peerLog,
      onStatus,
    })
  }

  /** All that there are, the one that takes what comes first. */
  get all(): readonly SourceRun[] {
    return this.reception.sessions.all
  }

  /** Why there is no session. */
  get failure(): SessionFailure | undefined {
    return this.keeper.failure
  }

  /** Somebody waits for a session: the next one is tried at once. */
  wake(): void {
    this.keeper.wake()
  }

  /** A session that has nothing to do makes room for one with other sets, so that no migration has to wait for it. */
  renewIfIdle(): void {
    if (this.sets.changed) this.reception.renewIfEmpty()
  }

  /** Another one as soon as the migrations of the present one are over; what comes waits for it. Disks are left in theirs. */
  renew(): void {
    this.reception.drain()
    this.keeper.wake()
  }

  /** No migration begins any more. */
  stop(): void {
    this.stopping = true
    this.reception.stop()
  }

  /** What runs is all that is waited for. */
  finish(): void {
    this.reception.closeIfIdle()
    this.keeper.wake()
  }

  /** Opens one after the other. @returns when it was told to stop, and the one that took what came has ended; never rejects */
  keep(): Promise<void> {
    return this.keeper.keep()
  }

  /** @returns when those that were left have ended, too */
  async over(): Promise<void> {
    this.reception.close()
    await Promise.allSettled(Array.from(this.reception.sessions.left, ({ over }) => over))
    await this.options.learning?.settled().catch(error => this.tellDefect(error))
  }

  /** The link's own lines, but while one session after the other cannot be opened `no session` says it all. */
  private readonly linkLog: LinkLogger = {
    debug: (...told) => this.peerLog.debug(...told),
    info: (...told) => this.peerLog.info(...told),
    warn: (...told) => {
      if (told[0] === 'link.down')
        this.peerLog.debug(...told) // `WAN connection lost` says it
      else if (!this.keeper.isFailing) this.peerLog.warn(...told)
    },
    error: (...told) => this.peerLog.error(...told),
  }

  /** Opens a session. @returns when it has ended, or was left: then it ends by itself */
  private async keepRun(): Promise<void> {
    const options = { ...this.options, onKeptFailure: (error: ProxyError) => this.tellUnkept(error) }
    const terms = await SourceTerms.make(options, this.memory, this.sets, () => this.stopping)
    if (!terms) return
    const run = new SourceRun(this.makeClient(terms), terms)
    this.reception.opens(run)
    run.over = this.live(run)
    await Promise.race([run.over, run.left])
  }

  private async live(run: SourceRun): Promise<void> {
    const { client, terms } = run
    try {
      void terms.warm().catch(cause => client.link.abort(asProxyError(cause)))
      const agreed = await terms.agree(await client.open())
      run.session = this.makeSession(run, agreed)
      run.agreed = agreed
      client.link.serve(run.session)
      // whoever waits for this line finds all of it ready; a QEMU that comes before does not wait
      if (this.reception.waiting.length === 0) await Promise.race([agreed.pool.ready, client.link.ended])
      this.tellOpen(client, agreed)
      this.reception.admit()
      const error = await client.link.ended
      if (error && !this.stopping) throw error
    } catch (cause) {
      this.sets.exclude(cause) // the next session goes without a damaged set
      const error = asProxyError(cause)
      if (!client.link.over) void client.link.abort(error)
      throw error
    } finally {
      await run.session?.end('the session has ended')
      this.reception.ended(run)
      terms.close().catch(error => this.tellDefect(error))
    }
  }

  /** The session that there is serves its disks to their end: the next one is opened for what comes. */
  private left(run: SourceRun): void {
    this.peerLog.info('session left to its disks', { link: run.link.id.slice(0, 8) })
    run.over.catch(cause => {
      const { what, action } = asProxyError(cause)
      this.peerLog.warn('session that was left has broken', { error: what, hint: action })
    })
    run.tellLeft()
    this.keeper.wake()
  }

  private get patience(): { readonly precopyMs: number; readonly postcopyMs: number } {
    const { patienceMs, patiencePostcopyMs = patienceMs } = this.options
    return { precopyMs: patienceMs, postcopyMs: patiencePostcopyMs }
  }

  private makeClient({ offer }: SourceTerms): LinkClient {
    const { peer, credentials, connections, queueTargetMs, weights } = this.options
    const { precopyMs, postcopyMs } = this.patience
    return new LinkClient({
      ...{ host: peer.host, port: peer.port, connections },
      ...(credentials ? { credentials } : { plaintext: true }),
      offer: { ...offer, ...this.host.instance() },
      session: {
        patienceMs: Math.max(precopyMs, postcopyMs),
        ...{ queueTargetMs, warmUp: this.warmUp },
        ...{ rate: this.host.rate, weights },
        memory: this.memory.budgetShare(),
      },
      logger: this.linkLog,
    })
  }

  private makeSession(run: SourceRun, { pool, seed, learning, disks, replies }: AgreedTerms): SourceSession {
    const { client } = run
    const { effort, queueTargetMs, diskAnswers } = this.options
    const { reception, memory } = this
    return new SourceSession({
      ...{ session: client.session, sessionId: client.link.id, pool, seed, learning, queueTargetMs, disks },
      replies: replies && { pool: replies, waiting: memory.budgetShare() },
      effort: new EffortController(effort),
      pieces: memory.piecesShare(),
      journal: diskAnswers === 'early' ? () => memory.budgetShare() : undefined,
      patience: this.patience,
      paused: this.paused,
      log: this.qemuLog,
      now: () => performance.now(),
      nextMigration: () => ++this.migrations,
      onSummary: summary => this.migrationEnded(summary),
      onDiskSummary: summary => this.disksEnded(summary),
      onFailure: error => void client.link.abort(error),
      onSetFailure: error => void this.sets.exclude(error, true),
      onMoved: connections => {
        reception.back(run, connections)
        if (this.stopping) return
        this.qemuLog.info('connections wait for another session', { connections: connections.length })
      },
      onTaken: () => reception.taken(run),
      onIdle: () => reception.rests(run),
      wake: () => client.link.wake(),
      onDrain: () => reception.drained(run),
      onConnection: (connection, up, error) => {
        if (!up && error) this.peerLog.warn('WAN connection lost', { connection, error: error.message })
        if (up) reception.admit()
      },
    })
  }

  private tellOpen({ link }: LinkClient, { agent, sets, cold, pool }: AgreedTerms): void {
    const failed = this.keeper.opened()
    this.peerLog.info('session open', {
      ...(failed > 0 && { failedBefore: failed }),
      peer: peerNameOf(this.options),
      agent,
      sets: sets.map(digest => digest.slice(0, 12)),
      ...(cold.length > 0 && { cold: cold.map(digest => digest.slice(0, 12)) }),
      templatePages: pool.kernel.layout.templatePages,
      link: link.id.slice(0, 8),
    })
    const agreed = plural(sets.length + cold.length, 'template set')
    this.options.onStatus?.(`session with ${peerNameOf(this.options)}, ${agreed}`)
  }

  private migrationEnded({ level, ...fields }: MigrationSummary): void {
    this.qemuLog[level]('migration ended', { ...fields, peer: this.options.name ?? peerNameOf(this.options) })
    this.lessRuns()
  }

  private disksEnded({ level, ...fields }: DiskDepartureSummary): void {
    this.qemuLog[level]('disk transfer ended', { ...fields, peer: this.options.name ?? peerNameOf(this.options) })
    this.lessRuns()
  }

  private lessRuns(): void {
    this.host.onEnded()
    this.reception.closeIfIdle()
  }

  /** Blocks of disks cannot be kept here any more. */
  private tellUnkept({ message, action }: ProxyError): void {
    this.peerLog.warn('blocks of disks are not kept', { error: message, hint: action })
  }

  /** One of ours that no session could tell of. */
  private tellDefect(error: unknown): void {
    this.peerLog.error('link.defect', { stack: (error as Error).stack })
  }
}
