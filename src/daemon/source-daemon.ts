/**
 * The source proxy: listens for QEMU, keeps one session with the destination proxy, and joins the two. Connections that
 * come while there is no session wait for it.
 */
import { randomBytes } from 'node:crypto'
import { loadLz4 } from '../compression/lz4.ts'
import { defectOf, isProxyError, ProxyError } from '../errors.ts'
import type { Learning, SessionLearning } from '../learning/learning.ts'
import { CONNECTIONS_HELD_MAX } from '../limits.ts'
import type { LinkLogger } from '../link/api.ts'
import { LinkClient } from '../link/client.ts'
import type { Credentials } from '../link/credentials.ts'
import { TickTimer } from '../link/tick-timer.ts'
import { Gate, isOpen } from '../migration/gates.ts'
import { PausedMigrations } from '../migration/paused.ts'
import { Reception } from '../migration/reception.ts'
import { type Address, formatAddress, isRange } from '../relay/address.ts'
import { type Accepted, type Listener, listen } from '../relay/listener.ts'
import type { QemuSocket } from '../relay/qemu-socket.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { EffortController } from '../transfer/effort-controller.ts'
import { type OpenPool, PAGE_BYTES } from '../transfer/pool.ts'
import { FEATURE } from '../wan/wire.ts'
import type { Events, SiteLog } from './events.ts'
import { instanceOf, PROCESS, thisHost } from './instance.ts'
import { RepeatedFailure } from './repeated-failure.ts'
import { SessionSets } from './session-sets.ts'
import { SourceConnection } from './source-connection.ts'
import type { Moved, SourceGate } from './source-flow.ts'
import { SourceMemory, type SourceMemoryOptions } from './source-memory.ts'
import { SourceSession } from './source-session.ts'
import { type SourceStatus, withoutFlows } from './status.ts'

/** Who brings in what is learned here: the guests of this host, whichever peer they go to. */
const OWN_GUESTS = ''

/** A session that ended in order after less than this ... */
const SESSION_SHORT_MS = 1000
/** ... is followed by the next one after this: a destination that ends each at once costs ten handshakes a second. */
const SESSION_SHORT_PAUSE_MS = 100

/** Where QEMU connects. */
export interface ListenFor {
  /** Name of the target at the other side. */
  readonly name: string
  readonly address: Address
  /** Of a Unix socket's file: mode, and id of the group that QEMU is in. */
  readonly mode?: number | undefined
  readonly group?: number | undefined
}

export interface SourceOptions extends SourceMemoryOptions {
  /** Where QEMU connects, each with the name of the target at the other side. */
  readonly listen: readonly ListenFor[]
  readonly beyondLoopback: boolean
  readonly peer: { readonly host: string; readonly port: number }
  /** undefined: plain text, because the operator said so. */
  readonly credentials: Credentials | undefined
  readonly store: TemplateStore | undefined
  readonly learning?: Learning | undefined
  readonly connections: number
  /** Bytes a second on the WAN, or Infinity; `setRate` changes it. */
  readonly rate: number
  readonly queueTargetMs: number
  readonly patienceMs: number
  /** The same after a migration's switch to postcopy. Default: patienceMs. */
  readonly patiencePostcopyMs?: number
  readonly fds?: ReadonlyMap<string, readonly number[]>
  /** Where it tells what happens: everything that a test or a log wants to know. */
  readonly events: Events
  /** What to tell systemd and people, when it changes. */
  readonly onStatus?: (status: string) => void
}

export class SourceDaemon {
  private readonly options: SourceOptions
  private readonly sets: SessionSets
  private readonly listeners: Listener[] = []
  /** One for each socket that is listened on: what comes in at one is one guest. */
  private readonly gates = new Map<Accepted, SourceGate>()
  private readonly paused = new PausedMigrations()
  private readonly memory: SourceMemory
  private readonly reception: Reception<Moved>
  /** Of those that wait for a session. */
  private readonly timer: TickTimer
  private client: LinkClient | undefined
  private session: SourceSession | undefined
  private stopping = false
  private migrations = 0
  private rate: number
  /** What QEMUs and others at our listeners make us say, and what the other proxy does. */
  private readonly qemuLog: SiteLog
  private readonly peerLog: SiteLog
  private readonly failures = new RepeatedFailure()
  private wake: (() => void) | undefined
  /** Settles when the last session has ended after `stop`. */
  readonly ended: Promise<void>
  private resolveEnded!: () => void

  constructor(options: SourceOptions) {
    this.options = options
    this.rate = options.rate
    this.qemuLog = options.events.of('connections of QEMU')
    this.peerLog = options.events.of(this.peerName)
    this.memory = new SourceMemory(this.peerName, options)
    this.reception = new Reception(options.patienceMs, () => {
      const { client, session } = this
      if (!client) return undefined
      const isUp = session !== undefined && !client.link.over && client.link.connections > 0
      return { isUp, channels: session?.channelCount ?? 0, connections: session?.connectionCount ?? 0 }
    })
    this.timer = new TickTimer(
      () => performance.now(),
      () => this.refuseOverdue(),
    )
    this.sets = new SessionSets(options.store, options.events, this.memory.setPagesMax)
    this.ended = new Promise(done => {
      this.resolveEnded = done
    })
  }

  /** Who the other proxy is, among those of this process. */
  private get peerName(): string {
    const { host, port } = this.options.peer
    return `${host}:${port}`
  }

  /** How it is just now. */
  status(): SourceStatus {
    const { client, session } = this
    return {
      role: 'source',
      listening: this.addresses.map(formatAddress),
      stopping: this.stopping,
      session:
        client && session
          ? {
              link: client.link.id.slice(0, 8),
              peer: this.peerName,
              stats: withoutFlows(client.session.stats()),
              migrations: session.status(),
            }
          : undefined,
      waiting: this.reception.waiting.length,
      connections: session?.connectionCount ?? 0,
    }
  }

  /** Addresses that are listened on, once started. */
  get addresses(): readonly Address[] {
    return this.listeners.flatMap(listener => listener.addresses)
  }

  /** What this proxy is called in all of its processes. */
  private get instance(): { readonly instance?: string; readonly process: string } {
    const { host, port } = this.options.peer
    const instance = instanceOf(...thisHost(), this.addresses.map(formatAddress), `${host}:${port}`)
    return { process: PROCESS, ...(instance !== undefined && { instance }) }
  }

  /** Migrations that run. */
  get running(): number {
    const found = new Set<unknown>()
    for (const gate of this.gates.values()) if (gate.migration?.flows.size) found.add(gate.migration)
    return found.size
  }

  /** Listens, and begins to keep a session. @throws ADDRESS, IO */
  async start(): Promise<void> {
    loadLz4() // takes 100 ms, which the first migration, or the switch to postcopy, would wait for
    for (const { name, address, mode, group } of this.options.listen) {
      // libvirt's ports: the other side dials the same one. systemd may have opened several under one name.
      const hasNumber = isRange(address) || address.kind === 'fd'
      const target = ({ port }: Accepted): string => (hasNumber && port !== undefined ? `${name}:${port}` : name)
      this.listeners.push(
        await listen(address, (socket, at) => this.accept(socket, target(at), at), {
          beyondLoopback: this.options.beyondLoopback,
          mode,
          group,
          ...(this.options.fds ? { fds: this.options.fds } : {}),
          onAcceptError: error => this.qemuLog.warn('accept failed', { error: error.message }),
          onPortsTaken: (ports, error) => {
            const { what, action } = error
            this.options.events.warn('ports are taken: tried again', {
              ports: ports.join(' '),
              error: what,
              hint: action,
            })
          },
          onPortFree: port => this.options.events.info('listening at one port more', { port }),
        }),
      )
    }
    void this.keepSession()
  }

  /** Reads certificates and keys again. */
  reload(): void {
    this.options.credentials?.reload()
    this.renewIfIdle()
    this.wake?.()
  }

  /** What an operator should mend in the credentials. */
  get warnings(): readonly string[] {
    return this.options.credentials?.warnings ?? []
  }

  /** Caps the WAN from now on, running migrations too; Infinity: no cap. */
  setRate(bytesPerSecond: number): void {
    this.rate = bytesPerSecond
    this.client?.session.setRate(bytesPerSecond)
  }

  /** Takes no new migrations; running ones finish. */
  async stop(): Promise<void> {
    if (this.stopping) return
    this.stopping = true
    this.reception.stop()
    this.refuseNew()
    if (this.session?.channelCount) {
      this.options.onStatus?.(`stopping: ${this.running} migrations finish`)
      this.options.events.info('stopping: running migrations finish first', { migrations: this.running })
    }
    this.closeIfIdle()
    this.wake?.()
  }

  /** Ends everything now: running migrations fail, their source guests go on. */
  async abort(): Promise<void> {
    await this.stop()
    void this.client?.link.abort(
      new ProxyError('QEMU_LOST', 'the source proxy was stopped', undefined, 'start the migration again'),
    )
  }

  /** Refuses what belongs to no running migration, which may have further channels: for postcopy hours later. */
  private refuseNew(): void {
    const running = [...this.gates.values()].filter(gate => isOpen(gate.migration))
    const needed = new Set(running.map(({ target }) => target.split(':')[0]))
    for (const [i, listener] of this.listeners.entries()) {
      if (!needed.has(this.options.listen[i]!.name)) void listener.close()
    }
    for (const { socket } of this.reception.strangers()) socket.reset()
  }

  private accept(accepted: QemuSocket, target: string, at: Accepted): void {
    let gate = this.gates.get(at)
    if (!gate) {
      gate = new Gate(target)
      this.gates.set(at, gate)
    }
    const socket = new SourceConnection(accepted, performance.now())
    const answer = this.reception.comes({ socket, gate }, () => this.sets.changed)
    if (answer === 'session') this.session!.accept(socket, gate)
    else if (answer === 'full' || answer === 'stopping') {
      const reason = `${CONNECTIONS_HELD_MAX} connections are held`
      if (answer === 'full') this.qemuLog.warn('connection refused', { target, reason })
      socket.reset()
    } else {
      if (answer === 'renew') this.renewIfIdle()
      this.timer.arm(this.reception.nextTickMs)
      this.wake?.()
      this.qemuLog.info('connection waits for a session', { target, at: formatAddress(at.address) })
    }
  }

  /** Ends those that have waited for a session long enough. */
  private refuseOverdue(): void {
    const reason = `no session with the other proxy for ${this.options.patienceMs / 1000} s`
    for (const { socket, gate } of this.reception.over(performance.now())) {
      this.qemuLog.warn('connection refused', { target: gate.target, reason })
      socket.reset()
    }
    this.timer.arm(this.reception.nextTickMs)
  }

  /** A session gives back what the other side never heard of. */
  private takeBack(connections: readonly Moved[]): void {
    for (const { socket } of this.reception.back(connections)) socket.reset()
    this.timer.arm(this.reception.nextTickMs)
    if (!this.stopping) this.qemuLog.info('connections wait for another session', { connections: connections.length })
  }

  /** There is a session, and it lives. */
  private admitWaiting(): void {
    this.reception.admit(({ socket, gate }) => this.session!.accept(socket, gate))
  }

  /** The link's own lines, but while one session after the other cannot be opened `no session` says it all. */
  private readonly linkLog: LinkLogger = {
    info: (...told) => this.peerLog.info(...told),
    warn: (...told) => {
      if (this.failures.times === 0) this.peerLog.warn(...told)
    },
    error: (...told) => this.peerLog.error(...told),
  }

  /** Opens one session after the other for as long as the proxy runs. */
  private async keepSession(): Promise<void> {
    while (!this.stopping) {
      const beganMs = performance.now()
      try {
        await this.runSession()
        // one that ends in order is followed by the next at once, but not over and over
        if (!this.stopping && performance.now() - beganMs < SESSION_SHORT_MS) await this.pause(SESSION_SHORT_PAUSE_MS)
      } catch (cause) {
        const error = asProxyError(cause)
        if (error !== cause) this.tellDefect(cause)
        if (!this.stopping) {
          const said = this.failures.failed(`${error.code} ${error.what}`, performance.now())
          if (said) {
            const again = said.times > 1 ? said : {}
            this.peerLog.warn('no session', { error: error.what, hint: error.action, ...again })
          }
          this.options.onStatus?.(`no session: ${error.what}`)
          await this.pause(this.failures.retryMs)
        }
      }
    }
    this.refuseNew()
    this.timer.stop()
    await this.options.learning?.settled().catch(error => this.tellDefect(error))
    this.resolveEnded()
  }

  private async runSession(): Promise<void> {
    const { options } = this
    // what learning has counted goes as a set without pages: both sides have it, or begin anew
    const counted = options.learning?.states ?? []
    const { hot, cold } = await this.sets.offer(counted.length)
    const sets = [...hot, ...counted]
    if (this.stopping) return // meanwhile: nobody would end this session
    const seed = randomBytes(8)
    let learning: SessionLearning | undefined
    let session: SourceSession | undefined
    let pool: OpenPool | undefined
    let grant = this.memory.ring(this.memory.ringPagesMax)
    const ring = Math.floor(grant.bytes / PAGE_BYTES)
    this.reception.opens()
    const { patienceMs, patiencePostcopyMs = patienceMs } = options
    const patience = { precopyMs: patienceMs, postcopyMs: patiencePostcopyMs }
    const client = new LinkClient({
      host: options.peer.host,
      port: options.peer.port,
      ...(options.credentials ? { credentials: options.credentials } : { plaintext: true }),
      connections: options.connections,
      offer: {
        agent: 'pageferry',
        ...this.instance,
        ...{ sets, ring, places: options.places, seed: seed.toString('hex') },
        features: [FEATURE.COLD_SETS],
        ...(cold.length > 0 && { cold }),
      },
      session: {
        patienceMs: Math.max(patience.precopyMs, patience.postcopyMs),
        queueTargetMs: options.queueTargetMs,
        rate: this.rate,
        memory: this.memory.budgetShare(),
      },
      logger: this.linkLog,
    })
    this.client = client
    try {
      void this.memory.warmCold(cold, options.store).catch(cause => client.link.abort(asProxyError(cause)))
      const hello = await client.open()
      const agreed = hello.sets.filter(digest => !counted.includes(digest))
      grant.release()
      grant = this.memory.ring(hello.ring)
      const { ring: ringPages, places, cold: agreedCold = [] } = hello
      const terms = { sets: agreed, cold: agreedCold, store: options.store, ringPages, places }
      pool = await this.memory.open(terms).catch(error => {
        if (isProxyError(error, 'LIMIT_EXCEEDED')) this.sets.takeFewer()
        throw error
      })
      const seedWords = [seed.readUInt32BE(4), seed.readUInt32BE(0)] as const
      learning = options.learning?.begin(hello.sets, seedWords, pool, OWN_GUESTS)
      session = new SourceSession({
        session: client.session,
        sessionId: client.link.id,
        pool,
        seed: seedWords,
        learning,
        effort: new EffortController(options.effort),
        queueTargetMs: options.queueTargetMs,
        pieces: this.memory.piecesShare(),
        patience,
        paused: this.paused,
        log: this.qemuLog,
        now: () => performance.now(),
        nextMigration: () => ++this.migrations,
        onSummary: summary => {
          const { level, ...fields } = summary
          this.qemuLog[level]('migration ended', fields)
          if (this.stopping) this.refuseNew()
          this.closeIfIdle()
        },
        onFailure: error => void client.link.abort(error),
        onSetFailure: error => void this.sets.exclude(error, true),
        onMoved: connections => this.takeBack(connections),
        onIdle: () => this.closeIfIdle(),
        wake: () => client.link.wake(),
        onDrain: () => {
          this.reception.drain()
          this.closeIfIdle()
        },
        onConnection: (connection, up, error) => {
          if (!up && error) this.peerLog.warn('WAN connection lost', { connection, error: error.message })
          if (up) this.admitWaiting()
        },
      })
      this.session = session
      client.link.serve(session)
      const failed = this.failures.recovered()
      this.peerLog.info('session open', {
        ...(failed > 0 && { failedBefore: failed }),
        peer: this.peerName,
        sets: agreed.map(digest => digest.slice(0, 12)),
        ...(agreedCold.length > 0 && { cold: agreedCold.map(digest => digest.slice(0, 12)) }),
        templatePages: pool.kernel.layout.templatePages,
        link: client.link.id.slice(0, 8),
      })
      options.onStatus?.(`session with ${this.peerName}, ${agreed.length + agreedCold.length} template sets`)
      this.admitWaiting()
      const error = await client.link.ended
      if (error && !this.stopping) throw error
    } catch (cause) {
      this.sets.exclude(cause) // the next session goes without a damaged set
      const error = asProxyError(cause)
      if (!client.link.over) void client.link.abort(error)
      throw error
    } finally {
      await session?.end('the session has ended')
      this.session = undefined
      this.client = undefined
      grant.release()
      pool?.close().catch(error => this.tellDefect(error))
      learning?.end()
    }
  }

  /** One of ours that no session could tell of. */
  private tellDefect(error: unknown): void {
    this.peerLog.error('link.defect', { stack: (error as Error).stack })
  }

  /** A session with nothing to do is closed where another is wanted, or none. */
  private closeIfIdle(): void {
    if (this.reception.isDone) void this.client?.close()
  }

  /** Opens a new session, so that new template sets and certificates are used, where no migration would notice. */
  private renewIfIdle(): void {
    if (!this.client || (this.session?.channelCount ?? 0) > 0) return
    this.reception.drain()
    this.closeIfIdle()
  }

  private pause(ms: number): Promise<void> {
    return new Promise(done => {
      const timer = setTimeout(done, ms)
      this.wake = () => {
        clearTimeout(timer)
        done()
      }
    })
  }
}

/** What is none is a defect of ours, which ends one session. */
function asProxyError(cause: unknown): ProxyError {
  return isProxyError(cause) ? cause : defectOf(cause)
}
