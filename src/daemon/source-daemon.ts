/**
 * The source proxy: listens for QEMU, keeps one session with the destination proxy, and joins the two. Connections that
 * come while there is no session wait for it.
 */
import { loadLz4 } from '../compression/lz4.ts'
import { ProxyError } from '../errors.ts'
import { CONNECTIONS_HELD_MAX } from '../limits.ts'
import type { NamedMigration } from '../migration/summary.ts'
import { waitingMs } from '../migration/waiting.ts'
import { RateSchedule } from '../rate-schedule.ts'
import { type Address, formatAddress } from '../relay/address.ts'
import type { QemuSocket } from '../relay/qemu-socket.ts'
import { RateBucket } from '../session/rate-cap.ts'
import { CapKeeper } from './cap-keeper.ts'
import { QEMUS, type SiteLog } from './events.ts'
import { instanceOf, PROCESS, thisHost } from './instance.ts'
import { RENEW_MS } from './session-sets.ts'
import { SourceConnection } from './source-connection.ts'
import type { Moved, SourceGate } from './source-flow.ts'
import { SourceListeners } from './source-listeners.ts'
import { peerNameOf, type SourceOptions } from './source-options.ts'
import type { Rejection } from './source-reception.ts'
import { SourceRuns } from './source-runs.ts'
import { expiriesOf, type SourceStatus } from './status.ts'

export class SourceDaemon {
  private readonly options: SourceOptions
  private readonly listeners: SourceListeners
  /** Its sessions, and who waits for one. */
  private readonly runs: SourceRuns
  private stopping = false
  /** Of all sessions. */
  private readonly rate: RateBucket
  /** What QEMUs and others at our listeners make us say. */
  private readonly qemuLog: SiteLog
  /** What may go to the other proxy. */
  readonly caps: CapKeeper
  /** Settles when the last session has ended after `stop`. */
  readonly ended: Promise<void>
  private resolveEnded!: () => void

  constructor(options: SourceOptions) {
    this.options = options
    this.qemuLog = options.events.of(QEMUS)
    this.listeners = new SourceListeners(options)
    this.caps = new CapKeeper({
      schedule: typeof options.rate === 'number' ? RateSchedule.always(options.rate) : options.rate,
      apply: bytesPerSecond => this.setRate(bytesPerSecond),
      tell: told => options.events.info('rate', { ...told, peer: this.name }),
    })
    this.rate = new RateBucket(this.caps.bytesPerSecond, options.shared)
    this.runs = new SourceRuns(options, {
      rate: this.rate,
      instance: () => this.instance,
      onEnded: () => this.stopping && this.refuseNew(),
      onRejected: (connection, why) => this.tellRejected(connection, why),
    })
    this.ended = new Promise(done => {
      this.resolveEnded = done
    })
  }

  /** What it is called for people. */
  private get name(): string {
    return this.options.name ?? peerNameOf(this.options)
  }

  /** How it is just now. */
  status(): SourceStatus {
    const { caps } = this
    const { reception, failure } = this.runs
    const { sessions, waiting } = reception
    return {
      role: 'source',
      peer: this.name,
      address: peerNameOf(this.options),
      rate: Number.isFinite(caps.bytesPerSecond) ? caps.bytesPerSecond : undefined,
      cap: caps.status(),
      certificates: expiriesOf(this.options.credentials),
      listening: this.addresses.map(formatAddress),
      disksAt: this.diskAddresses.map(formatAddress),
      stopping: this.stopping,
      session: sessions.present?.status(this.name),
      ...(failure && { failure }),
      left: Array.from(sessions.left, run => run.status(this.name)).filter(status => status !== undefined),
      waiting: waiting.length,
      connections: sessions.connections,
    }
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
    const instance = instanceOf(...thisHost(), this.listeners.names, peerNameOf(this.options))
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
    const renew = setInterval(() => this.runs.renewIfIdle(), this.options.renewMs ?? RENEW_MS).unref()
    void this.keepSession().finally(() => clearInterval(renew))
  }

  /** Reads certificates and keys again. @returns whether they are others: then the session is renewed */
  reload(): boolean {
    const changed = this.options.credentials?.reload() ?? false
    if (changed) this.renew()
    else this.runs.wake()
    return changed
  }

  /** Another session as soon as the migrations of the present one are over; what comes waits for it. Disks are left in theirs. */
  renew(): void {
    this.runs.renew()
  }

  /** What an operator should mend in the credentials. */
  get warnings(): readonly string[] {
    return this.options.credentials?.warnings ?? []
  }

  /** Caps the WAN from now on, running migrations too; Infinity: no cap. */
  private setRate(bytesPerSecond: number): void {
    this.rate.set(bytesPerSecond, performance.now())
    for (const { client } of this.runs.all) client.session.setRate(bytesPerSecond)
  }

  /** The cap on all peers has changed: more may go than a moment before. */
  capChanged(): void {
    for (const { client } of this.runs.all) client.link.wake()
  }

  /** Ends a migration that leaves here. @returns undefined: none of that id does. @throws ProxyError CANCEL_REFUSED */
  cancel(id: string): NamedMigration | undefined {
    for (const { session } of this.runs.all) {
      const cancelled = session?.cancel(id)
      if (cancelled) return cancelled
    }
    return undefined
  }

  /** Takes no new migrations; running ones finish. */
  async stop(): Promise<void> {
    if (this.stopping) return
    this.stopping = true
    this.runs.stop()
    this.refuseNew()
    if (this.runs.all.some(({ session }) => session?.channelCount)) {
      this.options.onStatus?.(`stopping: ${this.running} migrations finish`)
      this.options.events.info('stopping: running migrations finish first', { migrations: this.running })
    }
    this.runs.finish()
  }

  /** Ends everything now: running migrations fail, their source guests go on. */
  async abort(): Promise<void> {
    await this.stop()
    const stopped = new ProxyError('QEMU_LOST', 'the source proxy was stopped', undefined, 'start the migration again')
    for (const { client } of this.runs.all) void client.link.abort(stopped)
  }

  /** Refuses what belongs to no running migration. */
  private refuseNew(): void {
    this.listeners.closeIdle()
    this.runs.reception.rejectStrangers()
  }

  private accept(accepted: QemuSocket, gate: SourceGate, at: Address): void {
    const answer = this.runs.reception.comes({ socket: new SourceConnection(accepted, performance.now()), gate })
    if (answer !== 'waits' && answer !== 'renew') return
    this.runs.wake()
    this.qemuLog.info('connection waits for a session', { target: gate.target, at: formatAddress(at) })
  }

  private tellRejected({ gate }: Moved, why: Rejection): void {
    if (why === 'stopping') return
    const patience = `no session with the other proxy for ${waitingMs(gate, this.options.patienceMs) / 1000} s`
    const reason = why === 'full' ? `${CONNECTIONS_HELD_MAX} connections are held` : patience
    this.qemuLog.warn('connection refused', { target: gate.target, reason })
  }

  /** Opens one session after the other for as long as the proxy runs. */
  private async keepSession(): Promise<void> {
    await this.runs.keep()
    this.caps.stop()
    this.refuseNew()
    await this.runs.over()
    this.resolveEnded()
  }
}
