/**
 * The source proxy: listens for QEMU, keeps one session with the destination proxy, and joins the two. Connections that
 * come while there is no session wait for it.
 */
import { loadLz4 } from '../compression/lz4.ts'
import { ProxyError } from '../errors.ts'
import { CONNECTIONS_HELD_MAX } from '../limits.ts'
import type { LinkLogger } from '../link/api.ts'
import { LinkClient } from '../link/client.ts'
import type { Credentials } from '../link/credentials.ts'
import type { DetailLog } from '../log.ts'
import { PausedMigrations } from '../migration/paused.ts'
import type { DiskDepartureSummary, MigrationSummary, NamedMigration } from '../migration/summary.ts'
import { waitingMs } from '../migration/waiting.ts'
import { RateSchedule } from '../rate-schedule.ts'
import { type Address, formatAddress } from '../relay/address.ts'
import type { QemuSocket } from '../relay/qemu-socket.ts'
import type { Weights } from '../session/fairness.ts'
import { RateBucket } from '../session/rate-cap.ts'
import type { CapShare } from '../session/shared-cap.ts'
import { EffortController } from '../transfer/effort-controller.ts'
import { CapKeeper } from './cap-keeper.ts'
import { type Events, QEMUS, type SiteEvents, type SiteLog } from './events.ts'
import { instanceOf, PROCESS, thisHost } from './instance.ts'
import { asProxyError, SessionKeeper } from './session-keeper.ts'
import { RENEW_MS, SessionSets } from './session-sets.ts'
import type { DiskAnswers } from './settings.ts'
import { SourceConnection } from './source-connection.ts'
import type { Moved, SourceGate } from './source-flow.ts'
import { SourceListeners, type SourceListenersOptions } from './source-listeners.ts'
import { SourceMemory, type SourceMemoryOptions } from './source-memory.ts'
import { type Rejection, SourceReception } from './source-reception.ts'
import { SourceRun } from './source-run.ts'
import { SourceSession } from './source-session.ts'
import { type AgreedTerms, SourceTerms, type SourceTermsOptions } from './source-terms.ts'
import { expiriesOf, type SourceStatus } from './status.ts'

export interface SourceOptions extends SourceListenersOptions, SourceMemoryOptions, SourceTermsOptions {
  readonly peer: { readonly host: string; readonly port: number }
  /** What the peer is called here. Default: HOST:PORT. */
  readonly name?: string
  /** undefined: plain text, because the operator said so. */
  readonly credentials: Credentials | undefined
  readonly connections: number
  /** Bytes a second on the WAN, or Infinity; or which when. `caps` changes it. */
  readonly rate: number | RateSchedule
  /** Its share of a cap on all peers of the process together. */
  readonly shared?: CapShare
  /** What memory and disks get beside each other. Default: the same. */
  readonly weights?: Readonly<Weights>
  readonly queueTargetMs: number
  readonly patienceMs: number
  /** The same after a migration's switch to postcopy. Default: patienceMs. */
  readonly patiencePostcopyMs?: number
  /** Writes of disks are answered beside the source (docs/adr/0020-early-answers.md). */
  readonly diskAnswers?: DiskAnswers
  /** How often an idle session is looked at. */
  readonly renewMs?: number
  /** Where it tells what happens: everything that a test or a log wants to know. */
  readonly events: Events
  /** What to tell systemd and people, when it changes. */
  readonly onStatus?: (status: string) => void
}

export class SourceDaemon {
  private readonly options: SourceOptions
  private readonly sets: SessionSets
  private readonly listeners: SourceListeners
  private readonly paused = new PausedMigrations()
  private readonly memory: SourceMemory
  /** Its sessions, and who waits for one. */
  private readonly reception: SourceReception<SourceRun>
  private stopping = false
  private migrations = 0
  /** Of all sessions. */
  private readonly rate: RateBucket
  /** What QEMUs and others at our listeners make us say, and what the other proxy does. */
  private readonly qemuLog: SiteLog
  private readonly peerLog: DetailLog<SiteEvents>
  private readonly keeper: SessionKeeper
  /** What may go to the other proxy. */
  readonly caps: CapKeeper
  /** Settles when the last session has ended after `stop`. */
  readonly ended: Promise<void>
  private resolveEnded!: () => void

  constructor(options: SourceOptions) {
    this.options = options
    this.qemuLog = options.events.of(QEMUS)
    this.peerLog = options.events.of(this.peerName)
    this.memory = new SourceMemory(this.peerName, (options.disks ?? []).length > 0, options)
    this.listeners = new SourceListeners(options)
    this.sets = new SessionSets(options.store, options.events, this.memory.setPagesMax, options.signers)
    this.reception = new SourceReception<SourceRun>({
      patienceMs: options.patienceMs,
      now: () => performance.now(),
      isStale: () => this.sets.changed,
      onLeft: run => this.left(run),
      onRejected: (connection, why) => this.tellRejected(connection, why),
    })
    this.keeper = new SessionKeeper({
      run: () => this.keepRun(),
      isOver: () => this.stopping,
      log: this.peerLog,
      onStatus: options.onStatus,
    })
    this.caps = new CapKeeper({
      schedule: typeof options.rate === 'number' ? RateSchedule.always(options.rate) : options.rate,
      apply: bytesPerSecond => this.setRate(bytesPerSecond),
      tell: told => options.events.info('rate', { ...told, peer: this.name }),
    })
    this.rate = new RateBucket(this.caps.bytesPerSecond, options.shared)
    this.ended = new Promise(done => {
      this.resolveEnded = done
    })
  }

  /** Who the other proxy is, among those of this process. */
  private get peerName(): string {
    const { host, port } = this.options.peer
    return `${host}:${port}`
  }

  /** What it is called for people. */
  private get name(): string {
    return this.options.name ?? this.peerName
  }

  /** How it is just now. */
  status(): SourceStatus {
    const { caps } = this
    const { sessions, waiting } = this.reception
    return {
      role: 'source',
      peer: this.name,
      address: this.peerName,
      rate: Number.isFinite(caps.bytesPerSecond) ? caps.bytesPerSecond : undefined,
      cap: caps.status(),
      certificates: expiriesOf(this.options.credentials),
      listening: this.addresses.map(formatAddress),
      disksAt: this.diskAddresses.map(formatAddress),
      stopping: this.stopping,
      session: this.run?.status(this.name),
      left: Array.from(sessions.left, run => run.status(this.name)).filter(status => status !== undefined),
      waiting: waiting.length,
      connections: sessions.connections,
    }
  }

  /** The session that takes what comes. */
  private get run(): SourceRun | undefined {
    return this.reception.sessions.present
  }

  /** All sessions. */
  private get runs(): readonly SourceRun[] {
    return this.reception.sessions.all
  }

  /** Addresses that are listened on, once started. */
  get addresses(): readonly Address[] {
    return this.listeners.addresses
  }

  /** Those for disks. */
  get diskAddresses(): readonly Address[] {
    return this.listeners.diskAddresses
  }

  /** What this proxy is called in all of its processes. */
  private get instance(): { readonly instance?: string; readonly process: string } {
    const { host, port } = this.options.peer
    const instance = instanceOf(...thisHost(), this.listeners.names, `${host}:${port}`)
    return { process: PROCESS, ...(instance !== undefined && { instance }) }
  }

  /** Migrations that run. */
  get running(): number {
    return this.listeners.running
  }

  /** Listens, and begins to keep a session. @throws ADDRESS, IO */
  async start(): Promise<void> {
    loadLz4() // takes 100 ms, which the first migration, or the switch to postcopy, would wait for
    await this.listeners.start((...came) => this.accept(...came), this.options.events, this.qemuLog)
    this.caps.start()
    const renew = setInterval(() => this.renewIfIdle(), this.options.renewMs ?? RENEW_MS).unref()
    void this.keepSession().finally(() => clearInterval(renew))
  }

  /** A session that has nothing to do makes room for one with other sets, so that no migration has to wait for it. */
  private renewIfIdle(): void {
    if (this.sets.changed) this.reception.renewIfEmpty()
  }

  /** Reads certificates and keys again. */
  reload(): void {
    this.options.credentials?.reload()
    this.reception.renewIfIdle()
    this.keeper.wake()
  }

  /** What an operator should mend in the credentials. */
  get warnings(): readonly string[] {
    return this.options.credentials?.warnings ?? []
  }

  /** Caps the WAN from now on, running migrations too; Infinity: no cap. */
  private setRate(bytesPerSecond: number): void {
    this.rate.set(bytesPerSecond, performance.now())
    for (const { client } of this.runs) client.session.setRate(bytesPerSecond)
  }

  /** The cap on all peers has changed: more may go than a moment before. */
  capChanged(): void {
    for (const { client } of this.runs) client.link.wake()
  }

  /** Ends a migration that leaves here. @returns undefined: none of that id does. @throws ProxyError CANCEL_REFUSED */
  cancel(id: string): NamedMigration | undefined {
    for (const { session } of this.runs) {
      const cancelled = session?.cancel(id)
      if (cancelled) return cancelled
    }
    return undefined
  }

  /** Takes no new migrations; running ones finish. */
  async stop(): Promise<void> {
    if (this.stopping) return
    this.stopping = true
    this.reception.stop()
    this.refuseNew()
    if (this.runs.some(({ session }) => session?.channelCount)) {
      this.options.onStatus?.(`stopping: ${this.running} migrations finish`)
      this.options.events.info('stopping: running migrations finish first', { migrations: this.running })
    }
    this.reception.closeIfIdle()
    this.keeper.wake()
  }

  /** Ends everything now: running migrations fail, their source guests go on. */
  async abort(): Promise<void> {
    await this.stop()
    const stopped = new ProxyError('QEMU_LOST', 'the source proxy was stopped', undefined, 'start the migration again')
    for (const { client } of this.runs) void client.link.abort(stopped)
  }

  /** Refuses what belongs to no running migration. */
  private refuseNew(): void {
    this.listeners.closeIdle()
    this.reception.rejectStrangers()
  }

  private accept(accepted: QemuSocket, gate: SourceGate, at: Address): void {
    const answer = this.reception.comes({ socket: new SourceConnection(accepted, performance.now()), gate })
    if (answer !== 'waits' && answer !== 'renew') return
    this.keeper.wake()
    this.qemuLog.info('connection waits for a session', { target: gate.target, at: formatAddress(at) })
  }

  private tellRejected({ gate }: Moved, why: Rejection): void {
    if (why === 'stopping') return
    const patience = `no session with the other proxy for ${waitingMs(gate, this.options.patienceMs) / 1000} s`
    const reason = why === 'full' ? `${CONNECTIONS_HELD_MAX} connections are held` : patience
    this.qemuLog.warn('connection refused', { target: gate.target, reason })
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

  /** Opens one session after the other for as long as the proxy runs. */
  private async keepSession(): Promise<void> {
    await this.keeper.keep()
    this.caps.stop()
    this.refuseNew()
    this.reception.close()
    await Promise.allSettled(Array.from(this.reception.sessions.left, ({ over }) => over))
    await this.options.learning?.settled().catch(error => this.tellDefect(error))
    this.resolveEnded()
  }

  /** Opens a session. @returns when it has ended, or was left: then it ends by itself */
  private async keepRun(): Promise<void> {
    const terms = await SourceTerms.make(this.options, this.memory, this.sets, () => this.stopping)
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
      offer: { ...offer, ...this.instance },
      session: {
        patienceMs: Math.max(precopyMs, postcopyMs),
        queueTargetMs,
        ...{ rate: this.rate, weights },
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
      peer: this.peerName,
      agent,
      sets: sets.map(digest => digest.slice(0, 12)),
      ...(cold.length > 0 && { cold: cold.map(digest => digest.slice(0, 12)) }),
      templatePages: pool.kernel.layout.templatePages,
      link: link.id.slice(0, 8),
    })
    this.options.onStatus?.(`session with ${this.peerName}, ${sets.length + cold.length} template sets`)
  }

  private migrationEnded({ level, ...fields }: MigrationSummary): void {
    this.qemuLog[level]('migration ended', { ...fields, peer: this.name })
    this.lessRuns()
  }

  private disksEnded({ level, ...fields }: DiskDepartureSummary): void {
    this.qemuLog[level]('disk transfer ended', { ...fields, peer: this.name })
    this.lessRuns()
  }

  private lessRuns(): void {
    if (this.stopping) this.refuseNew()
    this.reception.closeIfIdle()
  }

  /** One of ours that no session could tell of. */
  private tellDefect(error: unknown): void {
    this.peerLog.error('link.defect', { stack: (error as Error).stack })
  }
}
