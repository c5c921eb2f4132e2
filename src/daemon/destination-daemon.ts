/** The destination proxy: takes sessions of source proxies, and dials the destination QEMUs of its configuration. */
import { setTimeout as sleep } from 'node:timers/promises'
import { loadLz4 } from '../compression/lz4.ts'
import { ProxyError } from '../errors.ts'
import type { Credentials } from '../link/credentials.ts'
import type { Link } from '../link/link.ts'
import { type Accepted, LinkServer, type ListenAt } from '../link/server.ts'
import type { PatienceTimes } from '../migration/patience.ts'
import type { Address } from '../relay/address.ts'
import type { SetSigners } from '../remote/set-signature.ts'
import type { ClientHello } from '../wan/hello.ts'
import { DestinationMemory, type DestinationMemoryOptions } from './destination-memory.ts'
import { DestinationRun } from './destination-run.ts'
import { DestinationSession } from './destination-session.ts'
import { DestinationTerms, type DestinationTermsOptions } from './destination-terms.ts'
import type { Events } from './events.ts'
import { RENEW_MS, SessionSets } from './session-sets.ts'
import type { DiskZeroes } from './settings.ts'
import { type DestinationStatus, expiriesOf } from './status.ts'
import { AGENT } from './version.ts'

/** What a session has to deliver its last frames and BYE, once no migration runs any more. */
const CLOSE_GRACE_MS = 5000

export interface DestinationOptions extends DestinationMemoryOptions, DestinationTermsOptions {
  /** Where source proxies connect. */
  readonly listen: readonly ListenAt[]
  /** What may be dialled, by name; `setTargets` changes it. */
  readonly targets: ReadonlyMap<string, Address>
  /** What may be dialled for disks, by name; likewise. Default: nothing. */
  readonly disks?: ReadonlyMap<string, Address>
  /** What becomes of zeroes that are written to them. Default: what was said. */
  readonly diskZeroes?: DiskZeroes
  /** undefined: plain text, because the operator said so. */
  readonly credentials: Credentials | undefined
  /** Whose signatures its sets must have; undefined: it is not asked for. */
  readonly signers?: SetSigners | undefined
  /** Sessions at once. Default SESSIONS_MAX. */
  readonly sessionsMax?: number | undefined
  readonly queueTargetMs: number
  /** How often idle sessions are looked at. */
  readonly renewMs?: number
  readonly patienceMs: number
  /** The same after a migration's switch to postcopy. Default: patienceMs. */
  readonly patiencePostcopyMs?: number
  /** Where it tells what happens: everything that a test or a log wants to know. */
  readonly events: Events
  readonly onStatus?: (status: string) => void
}

export class DestinationDaemon {
  private readonly options: DestinationOptions
  private targets: ReadonlyMap<string, Address>
  private disks: ReadonlyMap<string, Address>
  private readonly server: LinkServer
  private readonly sets: SessionSets
  private readonly memory: DestinationMemory
  private readonly runs = new Map<Link, DestinationRun>()
  private readonly patience: PatienceTimes
  private stopping = false
  private renewing: NodeJS.Timeout | undefined
  /** Where it listens, once started. */
  readonly addresses: { address: string; port: number }[] = []

  constructor(options: DestinationOptions) {
    this.options = options
    this.targets = options.targets
    this.disks = options.disks ?? new Map()
    const { patienceMs, patiencePostcopyMs = patienceMs } = options
    this.patience = { precopyMs: patienceMs, postcopyMs: patiencePostcopyMs }
    this.memory = new DestinationMemory(options)
    this.sets = new SessionSets(options.store, options.events, this.memory.setPagesMax, options.signers)
    this.server = new LinkServer({
      ...(options.credentials ? { credentials: options.credentials } : { plaintext: true }),
      accept: (hello, _identity, holder, peer) => this.acceptSession(hello, holder, peer),
      logger: options.events.byFields(),
      memory: this.memory.budget,
      ...(options.sessionsMax !== undefined && { sessionsMax: options.sessionsMax }),
      agent: AGENT,
    })
  }

  /** How it is just now. */
  status(): DestinationStatus {
    return {
      role: 'destination',
      certificates: expiriesOf(this.options.credentials),
      listening: this.addresses.map(({ address, port }) => `${address}:${port}`),
      stopping: this.stopping,
      sessions: Array.from(this.runs.values(), run => run.status()),
    }
  }

  /** Channels that are open. */
  get running(): number {
    let channels = 0
    for (const { session } of this.runs.values()) channels += session.channelCount
    return channels
  }

  /** @throws IO */
  async start(): Promise<void> {
    loadLz4() // takes 100 ms, which the first migration, or the switch to postcopy, would wait for
    const { cold } = await this.sets.offer() // damaged sets are told now, not when the first peer comes
    this.memory.warmCold(cold, this.options.store).catch(error => this.tellDefect(error))
    for (const at of this.options.listen) {
      const { address, port } = await this.server.listen(at)
      this.addresses.push({ address, port })
    }
    const renew = (): void => {
      try {
        this.renewIdle()
      } catch (error) {
        this.tellDefect(error)
      }
    }
    this.renewing = setInterval(renew, this.options.renewMs ?? RENEW_MS).unref()
  }

  /** Reads certificates and keys again. @returns whether they are others */
  reload(): boolean {
    if (!this.options.credentials?.reload()) return false
    // what was read may revoke who was let in: each proves itself again, as soon as its migrations are over
    for (const link of this.server.links) link.session.drain()
    return true
  }

  /** What an operator should mend in the credentials. */
  get warnings(): readonly string[] {
    return this.options.credentials?.warnings ?? []
  }

  /** What may be dialled from now on; connections to a target that is gone go on. */
  setTargets(targets: ReadonlyMap<string, Address>, disks: ReadonlyMap<string, Address> = new Map()): void {
    this.targets = targets
    this.disks = disks
  }

  /** Takes no more sessions and flows; running migrations finish. */
  async stop(): Promise<void> {
    this.stopping = true
    if (this.running > 0) {
      this.options.onStatus?.(`stopping: ${this.running} channels finish`)
      this.options.events.info('stopping: running migrations finish first', { channels: this.running })
    }
    this.server.drain()
    while (this.running > 0) await sleep(50)
    // Ends of flows may still be owed to a source whose WAN is cut just now: it is listened for until they are delivered.
    const delivered = Promise.all(this.server.links.map(link => link.close()))
    await Promise.race([delivered, sleep(this.options.patienceMs, undefined, { ref: false })])
    clearInterval(this.renewing)
    await this.server.close(CLOSE_GRACE_MS)
    await this.options.learning?.settled()
  }

  /** Ends everything now. */
  async abort(): Promise<void> {
    clearInterval(this.renewing)
    const stopped = 'the destination proxy was stopped'
    for (const { link, session } of this.runs.values()) {
      if (!link.over) void link.abort(new ProxyError('QEMU_LOST', stopped, undefined, 'start the migration again'))
      session.abandon(stopped)
    }
    await this.server.close(CLOSE_GRACE_MS)
  }

  private async acceptSession(hello: ClientHello, holder: string, from: string): Promise<Accepted> {
    if (this.stopping) throw new ProxyError('PEER_LOST', 'this proxy is stopping', undefined, 'it will be back')
    const terms = await DestinationTerms.make(this.options, this.memory, this.sets, hello, holder, this.disks.size > 0)
    return {
      ...terms.answer,
      targets: [...this.targets.keys()],
      session: {
        patienceMs: Math.max(this.patience.precopyMs, this.patience.postcopyMs),
        queueTargetMs: this.options.queueTargetMs,
      },
      // big sets may take longer than the peer waits: the next try finds them loaded
      discard: () => void terms.close().catch(error => this.tellDefect(error)),
      serve: link => this.begin(link, terms, from),
    }
  }

  private begin(link: Link, terms: DestinationTerms, from: string): DestinationSession {
    const { holder, agent, sets, cold } = terms
    const { onStatus, events } = this.options
    const learning = terms.learn()
    const run = new DestinationRun(link, this.makeSession(link, terms, learning), terms)
    events.of(holder).info('session open', {
      identity: holder,
      agent,
      from,
      sets: sets.map(digest => digest.slice(0, 12)),
      ...(cold.length > 0 && { cold: cold.map(digest => digest.slice(0, 12)) }),
      link: link.id.slice(0, 8),
    })
    this.runs.set(link, run)
    onStatus?.(`${this.runs.size} sessions`)
    const over = async (): Promise<void> => {
      await link.ended
      try {
        run.session.end('the session has ended')
        learning?.end()
        await run.session.released
      } finally {
        this.runs.delete(link)
        onStatus?.(`${this.runs.size} sessions`)
        await terms.close()
      }
    }
    over().catch(error => this.tellDefect(error))
    return run.session
  }

  private makeSession(
    link: Link,
    { holder, pool, seed, disks, replies }: DestinationTerms,
    learning: ReturnType<DestinationTerms['learn']>,
  ): DestinationSession {
    const { memory, patience } = this
    const { queueTargetMs, diskZeroes, events } = this.options
    const log = events.of(holder)
    return new DestinationSession({
      session: link.session,
      sessionId: link.id,
      ...{ pool, seed, holder, learning, replies, queueTargetMs, diskZeroes, patience, log },
      wake: () => link.wake(),
      targets: () => this.targets,
      disks: disks ? () => this.disks : undefined,
      pieces: memory.piecesShare(holder),
      waiting: memory.budgetShare(holder),
      now: () => performance.now(),
      onFailure: error => void link.abort(error),
      onSetFailure: error => void this.sets.exclude(error, true), // the next session goes without
      onMigrationEnd: ({ level, ...summary }) => log[level]('migration ended', { ...summary, peer: holder }),
      onDiskEnd: ({ level, ...summary }) => log[level]('disk transfer ended', { ...summary, peer: holder }),
    })
  }

  /** One of ours that no session met while it lived. */
  private tellDefect(error: unknown): void {
    this.options.events.byFields().error('link.defect', { stack: (error as Error).stack })
  }

  /** Lets sessions go for which the source proxy would open better ones. */
  private renewIdle(): void {
    if (this.stopping) return
    for (const link of this.server.links) {
      const run = this.runs.get(link)
      if (!run) continue
      const { session, terms } = run
      const due = run.renewal.look({
        channels: session.channelCount,
        ofMigrations: session.migrationChannelCount,
        transfers: session.transfers,
        hasOtherSets: this.sets.changedSince(terms.version),
        isExcessive: terms.grant.isExcessive,
        isStarved: terms.grant.isStarved,
      })
      if (due === 'ask') link.session.drain()
      else if (due === 'close') this.dismiss(link)
    }
  }

  /** Closes an idle session that stays though it was asked to go. */
  private dismiss(link: Link): void {
    const { state } = link.session
    if (state !== 'live' && state !== 'broken') return // it is being closed: what it owes is on its way, or its WAN is away
    const reason = 'it holds more memory than its share, and stayed when it was asked to go'
    this.options.events.of(link.identity).info('idle session closed', {
      link: link.id.slice(0, 8),
      identity: link.identity,
      reason,
    })
    void link.close(reason)
  }
}
