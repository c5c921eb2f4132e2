/**
 * Both sites in virtual time: the halves that ship, with what the daemons do around them. A proxy's process may die, and
 * another one be started.
 */
import type { Random } from '../../scripts/harness/random.ts'
import type { DestinationParts, DestinationSessionOptions } from '../../src/daemon/destination-parts.ts'
import { DestinationSession } from '../../src/daemon/destination-session.ts'
import type { SiteLog } from '../../src/daemon/events.ts'
import { SourceConnection } from '../../src/daemon/source-connection.ts'
import type { Moved, SourceGate } from '../../src/daemon/source-flow.ts'
import type { SourceParts, SourceSessionOptions } from '../../src/daemon/source-parts.ts'
import { type ReceivingSession, SourceReception } from '../../src/daemon/source-reception.ts'
import { SourceSession } from '../../src/daemon/source-session.ts'
import { ProxyError } from '../../src/errors.ts'
import { FairShares } from '../../src/fair-shares.ts'
import { PIECES_MAX, SESSIONS_LEFT_MAX } from '../../src/limits.ts'
import { Departures } from '../../src/migration/departures.ts'
import { DESTINATION_TABLE } from '../../src/migration/destination-life.ts'
import { DialQueue } from '../../src/migration/dial-queue.ts'
import { Gate } from '../../src/migration/gate.ts'
import { Gates } from '../../src/migration/gates.ts'
import type { PatienceTimes } from '../../src/migration/patience.ts'
import { PausedMigrations } from '../../src/migration/paused.ts'
import { Reception } from '../../src/migration/reception.ts'
import { SOURCE_TABLE } from '../../src/migration/source-life.ts'
import type { ArrivalSummary, MigrationSummary } from '../../src/migration/summary.ts'
import { type Address, formatAddress } from '../../src/relay/address.ts'
import type { QemuSocket } from '../../src/relay/qemu-socket.ts'
import type { SessionParts } from '../../src/session/parts.ts'
import { EffortController } from '../../src/transfer/effort-controller.ts'
import type { OpenPool, Pool } from '../../src/transfer/pool.ts'
import type { Sender } from '../../src/transfer/sender.ts'
import { Process, type VirtualTime } from '../helpers/virtual-time.ts'
import { barePool, givePool, SlowPacker, SlowUnpacker } from './codec.ts'
import { LocalConnection, type ProxyEnd, type QemuEnd } from './local.ts'
import { ClientEnd, LinkEnd, type Wan, type WanServer } from './wan.ts'

/** What sites are made of: the product, or a part of it that does something wrong. */
export interface SiteParts {
  readonly SourceSession: typeof SourceSession
  readonly SourceConnection: typeof SourceConnection
  readonly DestinationSession: typeof DestinationSession
  readonly Gates: SourceParts['Gates']
  readonly Departures: SourceParts['Departures']
  readonly Reception: typeof Reception<Moved>
  readonly sourceTable: SourceParts['channelTable']
  readonly DialQueue: DestinationParts['DialQueue']
  readonly destinationTable: DestinationParts['channelTable']
  readonly Packer: typeof SlowPacker
  readonly Unpacker: typeof SlowUnpacker
  /** Of what is read of disks. */
  readonly ReplyPacker: typeof SlowPacker
  readonly ReplyUnpacker: typeof SlowUnpacker
  readonly sourceLink: Partial<SessionParts>
  readonly destinationLink: Partial<SessionParts>
}

export const SITE_PARTS: SiteParts = {
  SourceSession,
  SourceConnection,
  DestinationSession,
  Gates,
  Departures,
  Reception,
  sourceTable: SOURCE_TABLE,
  DialQueue,
  destinationTable: DESTINATION_TABLE,
  Packer: SlowPacker,
  Unpacker: SlowUnpacker,
  ReplyPacker: SlowPacker,
  ReplyUnpacker: SlowUnpacker,
  sourceLink: {},
  destinationLink: {},
}

/** What happens around the sites. */
export interface World {
  readonly time: VirtualTime
  readonly random: Random
  readonly wan: Wan
  readonly patience: PatienceTimes
  readonly parts: SiteParts
  readonly memoryBytes: number
  /** There are disks beside the guests. */
  readonly hasDisks: boolean
  /** Of either proxy, its main one counted. */
  readonly threads: number
  /** What is read of them goes through the codec. */
  readonly hasReplies: boolean
  /** A migration has ended, as one side tells it. */
  told(side: 'source' | 'destination', summary: MigrationSummary | ArrivalSummary): void
  refused(peer: string, reason: string): void
  /** Numbers of sessions, over all processes. */
  nextSession(): number
  note(what: string): void
  /** Nothing new is for this session any more. */
  sessionLeft(id: string): void
  log(side: string): SiteLog
  /** A connection to the QEMU at this address; a text: nobody listens. */
  dialled(address: string, process: Process): LocalConnection | string
  fail(what: string): never
  /** As fail, said where an error would be caught. */
  wrong(what: string): void
  /** A session has ended: with an error only because nobody was there. */
  sessionOver(process: Process, id: string, error: ProxyError | undefined): void
}

const SESSION_SHORT_PAUSE_MS = 100
const NO_SESSION_PAUSE_MS = 1000

/** A session of it: src/daemon/source-run.ts. */
interface Run extends ReceivingSession {
  readonly link: ClientEnd
  readonly pool: SourceSessionOptions['pool']
  session: SourceSession | undefined
  packer: SlowPacker | undefined
  replies: SlowUnpacker | undefined
}

/** The source proxy: src/daemon/source-daemon.ts without sockets and sets. */
export class SourceSite {
  readonly process: Process
  readonly gates: readonly SourceGate[]
  /** Those of disks, with the names of the others. */
  readonly diskGates: readonly SourceGate[]
  /** The next session would be a better one. */
  private isStale = false
  private readonly reception: SourceReception<Run>
  readonly pieces = new FairShares(PIECES_MAX)
  readonly memory: FairShares
  stopping = false
  private readonly world: World
  private readonly ends = new Set<ProxyEnd>()
  private readonly paused = new PausedMigrations()
  private migrations = 0

  constructor(world: World, name: string, gates: number) {
    this.world = world
    this.process = new Process(name)
    this.memory = new FairShares(world.memoryBytes)
    this.reception = new SourceReception<Run>({
      patienceMs: world.patience.precopyMs,
      now: () => world.time.nowMs,
      isStale: () => this.isStale,
      onLeft: run => this.left(run),
      onRejected: ({ socket }, why) => world.refused(socket.peer, why === 'overdue' ? 'no session' : why),
      engine: world.parts.Reception,
    })
    this.gates = Array.from({ length: gates }, (_, i) => new Gate(`t${i}`))
    this.diskGates = this.gates.map(({ target }) => new Gate(target, 'disk'))
    world.time.as(this.process, () => this.open())
  }

  private get run(): Run | undefined {
    return this.reception.sessions.present
  }

  get session(): SourceSession | undefined {
    return this.run?.session
  }

  /** It keeps no session, and none that was left is there. */
  get isOver(): boolean {
    return this.reception.sessions.all.length === 0
  }

  /** The session that there is serves its disks to their end: the next one is opened for what comes. */
  private left({ link }: Run): void {
    const { world } = this
    world.sessionLeft(link.id)
    if (this.reception.sessions.left.size >= SESSIONS_LEFT_MAX) world.wrong('too many sessions are left to their disks')
    world.time.after(0, () => this.open())
  }

  /** Keys are read again, and are others. */
  reload(): void {
    const { reception, world, run } = this
    const channels = run?.session?.channelCount ?? 0
    const ofMigrations = run?.session?.migrationChannelCount ?? 0
    const canBeLeft = reception.sessions.left.size < SESSIONS_LEFT_MAX && run?.link.over === false
    world.time.as(this.process, () => reception.drain())
    if (channels > 0 && ofMigrations === 0 && canBeLeft && this.run === run)
      world.wrong('a session that has disks alone is not left at a reload')
  }

  /** Other sets are in force. */
  setsChange(): void {
    this.isStale = true
  }

  /** A QEMU, or somebody else, connects. */
  connect(gate: number, peer: string): QemuEnd {
    return this.comes(this.gates[gate]!, peer)
  }

  /** A disk's client does. */
  connectDisk(gate: number, peer: string): QemuEnd {
    return this.comes(this.diskGates[gate]!, peer)
  }

  private comes(gate: SourceGate, peer: string): QemuEnd {
    const { time, random, parts } = this.world
    const local = new LocalConnection(time, random, this.process, peer)
    this.ends.add(local.proxy)
    time.afterAs(this.process, 0, () => {
      const connection = new parts.SourceConnection(local.socket, time.nowMs)
      this.reception.comes({ socket: connection, gate })
    })
    return local.qemu
  }

  private admitWaiting(): void {
    this.reception.admit()
    this.world.time.promised = true
  }

  /** Whether any that came in at this gate waits for a session. */
  hasWaiting(at: SourceGate): boolean {
    return this.reception.waiting.some(({ gate }) => gate === at)
  }

  private open(): void {
    const { world } = this
    const { time, random, patience, parts, wan } = world
    if (this.run || this.stopping) return
    this.isStale = false
    const id = `${world.nextSession()}`.padStart(8, '0').padEnd(32, '0')
    const beganMs = time.nowMs
    const link: ClientEnd = new ClientEnd(
      wan,
      this.process,
      id,
      random.pick([1, 1, 2, 3]),
      {
        patienceMs: Math.max(patience.precopyMs, patience.postcopyMs),
        memory: this.memory.share('peer'),
        parts: parts.sourceLink,
      },
      () => {
        run.session = this.sessionOf(run)
        link.serve(run.session)
        time.after(0, () => this.admitWaiting())
      },
      error => {
        world.sessionOver(this.process, id, error)
        void run.session?.end('the session has ended')
        givePool(run.pool)
        const wasPresent = run === this.run
        this.reception.ended(run)
        if (!wasPresent) return
        if (this.stopping) {
          this.reception.rejectStrangers()
          return
        }
        const isShort = time.nowMs - beganMs < 1000
        time.after(error ? NO_SESSION_PAUSE_MS : isShort ? SESSION_SHORT_PAUSE_MS : 0, () => this.open())
      },
    )
    const run: Run = {
      link,
      pool: barePool(),
      session: undefined,
      packer: undefined,
      replies: undefined,
      close: () => link.close(),
    }
    this.reception.opens(run)
  }

  private sessionOf(run: Run): SourceSession {
    const { world, reception } = this
    const { time, random, patience, parts } = world
    const { link, pool } = run
    const log = world.log(this.process.name)
    return new parts.SourceSession({
      session: link.session,
      sessionId: link.id,
      pool,
      seed: [0, 0],
      effort: new EffortController('auto'),
      queueTargetMs: 50,
      pieces: this.pieces.share('peer'),
      patience,
      paused: this.paused,
      log: { ...log, warn: (...told) => this.hears(told) },
      now: () => time.nowMs,
      nextMigration: () => ++this.migrations,
      disks: world.hasDisks,
      replies: world.hasReplies ? { pool: NO_POOL, waiting: this.memory.share('peer') } : undefined,
      onDiskSummary: () => reception.closeIfIdle(),
      onSummary: summary => {
        world.told('source', summary)
        reception.closeIfIdle()
      },
      onFailure: error => link.abort(error),
      onMoved: connections => reception.back(run, connections),
      onTaken: () => reception.taken(run),
      onIdle: () => reception.rests(run),
      wake: () => link.wake(),
      onDrain: () => reception.drained(run),
      onConnection: (_connection, up) => {
        if (up) time.after(0, () => this.admitWaiting())
      },
      parts: {
        packer: ({ pool }: SourceSessionOptions, sink, onFailure) => {
          run.packer = new parts.Packer(pool, time, random, sink, { threads: world.threads, onFailure })
          return run.packer
        },
        replyUnpacker: () => {
          run.replies = new parts.ReplyUnpacker(time, random, what => world.wrong(what))
          return run.replies
        },
        Gates: parts.Gates,
        Departures: parts.Departures,
        channelTable: parts.sourceTable,
        behindSockets: run => run(), // in virtual time none is unread
      },
    })
  }

  private hears(told: readonly unknown[]): void {
    const [event, fields] = told as [string, { peer?: string; reason?: string; error?: string }]
    this.world.note(`${this.process.name}: ${event} ${JSON.stringify(fields)}`)
    if (event === 'connection refused') this.world.refused(fields.peer ?? '', fields.reason ?? fields.error ?? '')
  }

  /** A helper of it dies, or stands still for so long until it is given up. @returns the session that it takes along */
  helperFails(afterMs: number, told: () => void): string | undefined {
    const { run } = this
    if (run?.packer === undefined) return undefined
    this.world.time.as(this.process, () => run.packer!.fails(afterMs, told))
    return run.link.id
  }

  /** In order: running migrations finish. */
  stop(): void {
    this.stopping = true
    this.world.time.as(this.process, () => {
      this.reception.stop()
      this.reception.rejectStrangers()
      this.reception.closeIfIdle()
    })
  }

  /** It dies, and its kernel closes what it had; `silently`: with its host, nobody tells the WAN. */
  kill(silently: boolean): void {
    this.process.alive = false
    for (const end of this.ends) end.die()
    for (const { pool } of this.reception.sessions.all) givePool(pool)
    for (const wire of [...this.world.wan.wires]) {
      if (wire.client?.process !== this.process) continue
      if (silently) wire.swallows = true
      else this.world.wan.close(wire, 'client')
    }
  }

  /** What is left, where nothing should be. */
  leftovers(): string[] {
    const { session, gates, diskGates, reception, pieces, memory } = this
    const left: string[] = []
    const zero = (what: string, count: number): void =>
      void (count !== 0 && left.push(`${count} ${what} at the source`))
    zero('connections that wait', reception.waiting.length)
    zero('pieces', pieces.used)
    zero('bytes of memory', memory.used)
    zero('sessions that were left', reception.sessions.left.size)
    if (session) {
      zero('connections', session.connectionCount)
      zero('channels', session.channelCount)
      zero('migrations', session.status().length)
      zero('disk transfers', session.diskStatus().length)
      zero('units of slots', unitsTaken(session.sender))
      zero('batches lent', this.run?.replies?.lent ?? 0)
    }
    for (const { target, kind, migration, turns, waiting, silent } of [...gates, ...diskGates]) {
      zero(`connections in gate ${target} (${kind})`, waiting.length + silent.size + turns.length)
      zero(`of what runs in gate ${target} (${kind})`, Number(migration !== undefined))
    }
    return left
  }
}

/** Of a session's memory for channels. */
function unitsTaken(sender: Sender): number {
  const { taken } = (sender as unknown as { slots: { taken: Uint8Array } }).slots
  return taken.reduce((sum, unit) => sum + unit, 0)
}

interface Member {
  readonly link: LinkEnd
  readonly session: DestinationSession
  readonly unpacker: () => SlowUnpacker
  readonly client: Process
  readonly replyPool: () => Pool | undefined
  succeededMs: number | undefined
}

/** The destination proxy: src/daemon/destination-daemon.ts and src/link/server.ts without sockets and sets. */
export class DestinationSite implements WanServer {
  readonly process: Process
  readonly members = new Map<string, Member>()
  readonly memory: FairShares
  readonly pieces = new FairShares(PIECES_MAX)
  stopping = false
  private readonly known = new Set<string>()
  private readonly world: World
  private readonly ends = new Set<ProxyEnd>()
  private readonly targets: ReadonlyMap<string, Address>
  private readonly disks: ReadonlyMap<string, Address> | undefined

  /** @param disks targets of disks; undefined: it has none */
  constructor(
    world: World,
    name: string,
    targets: ReadonlyMap<string, Address>,
    disks: ReadonlyMap<string, Address> | undefined,
  ) {
    this.world = world
    this.process = new Process(name)
    this.targets = targets
    this.disks = disks
    this.memory = new FairShares(world.memoryBytes)
    world.wan.server = this
  }

  hello(id: string, client: Process, resumes: boolean): LinkEnd | string {
    const member = this.members.get(id)
    if (member) return member.link
    if (resumes || this.known.has(id)) return 'unknown session'
    if (this.stopping) return 'stopping'
    return this.begin(id, client).link
  }

  private begin(id: string, client: Process): Member {
    const { world, process } = this
    const { time, random, patience, parts } = world
    this.known.add(id)
    const link = new LinkEnd(
      world.wan,
      process,
      'server',
      id,
      {
        patienceMs: Math.max(patience.precopyMs, patience.postcopyMs),
        memory: this.memory.share('peer'),
        parts: parts.destinationLink,
      },
      error => {
        world.sessionOver(process, id, error)
        member.session.end('the session has ended')
        const pool = member.replyPool()
        if (pool) givePool(pool)
        this.members.delete(id)
      },
    )
    let unpacker: SlowUnpacker | undefined
    let replyPool: Pool | undefined
    const session = new parts.DestinationSession({
      session: link.session,
      sessionId: id,
      pool: NO_POOL,
      seed: [0, 0],
      holder: 'peer',
      targets: () => this.targets,
      patience,
      pieces: this.pieces.share('peer'),
      waiting: this.memory.share('peer'),
      log: world.log(process.name),
      now: () => time.nowMs,
      onFailure: error => link.abort(error),
      onMigrationEnd: summary => world.told('destination', summary),
      disks: this.disks && (() => this.disks!),
      onDiskEnd: () => {},
      replies: world.hasReplies
        ? async () => {
            time.promised = true
            replyPool = barePool()
            return { ...replyPool, close: async () => {} } as OpenPool
          }
        : undefined,
      wake: () => link.wake(),
      parts: {
        replyPacker: (pool, _seed, sink) => new parts.ReplyPacker(pool, time, random, sink),
        unpacker: ({ onFailure }: DestinationSessionOptions) => {
          unpacker = new parts.Unpacker(time, random, world.fail, { threads: world.threads, onFailure })
          return unpacker
        },
        dial: (address, options) => this.dial(address, options?.signal),
        DialQueue: parts.DialQueue,
        channelTable: parts.destinationTable,
      },
    })
    link.serve(session)
    const member: Member = {
      link,
      session,
      unpacker: () => unpacker!,
      replyPool: () => replyPool,
      client,
      succeededMs: undefined,
    }
    for (const other of this.members.values()) {
      if (other.client === client) continue
      other.succeededMs ??= time.nowMs
      this.endOrphan(other)
    }
    this.members.set(id, member)
    const onConnection = session.onConnection.bind(session)
    session.onConnection = (connection, up, standing) => {
      onConnection(connection, up, standing)
      if (!up) time.after(0, () => this.endOrphan(member))
    }
    return member
  }

  private endOrphan({ link, succeededMs }: Member): void {
    if (succeededMs === undefined || link.over || link.connections > 0 || link.heardMs > succeededMs) return
    link.abort(new ProxyError('PEER_LOST', 'the other proxy was started anew', undefined, 'its QEMUs are gone'))
  }

  /** In virtual time, as the dialler: after a while somebody takes the connection, or not. */
  private dial(address: Address, signal: AbortSignal | undefined): Promise<QemuSocket> {
    const { time, random } = this.world
    const { process } = this
    time.promised = true
    return new Promise((resolve, reject) => {
      let over = false
      const refused = (what: string): void => {
        if (over) return
        over = true
        time.promised = true
        reject(new ProxyError('TARGET_REFUSED', what, undefined, ''))
      }
      if (signal?.aborted) refused('given up')
      signal?.addEventListener('abort', () => refused('given up'), { once: true })
      time.afterAs(process, random.next() * random.pick([0.5, 5, 200]), () => {
        if (over) return
        const local = this.world.dialled(formatAddress(address), process)
        if (typeof local === 'string') {
          refused(local)
          return
        }
        over = true
        this.ends.add(local.proxy)
        time.promised = true
        resolve(local.socket)
      })
    })
  }

  get channels(): number {
    let channels = 0
    for (const { session } of this.members.values()) channels += session.channelCount
    return channels
  }

  /** As SourceSite's. */
  helperFails(afterMs: number, told: () => void): string | undefined {
    const { time, random } = this.world
    if (this.members.size === 0) return undefined
    const { link, unpacker } = random.pick([...this.members.values()])
    time.as(this.process, () => unpacker().fails(afterMs, told))
    return link.id
  }

  /** Takes no new migrations on the sessions that there are. */
  drain(): void {
    this.world.time.as(this.process, () => {
      for (const { link } of this.members.values()) link.session.drain()
    })
  }

  /** In order: what runs finishes, then `ended` is called. */
  stop(ended: () => void): void {
    this.stopping = true
    this.drain()
    const look = (): void => {
      if (this.channels > 0) {
        this.world.time.after(50, look)
        return
      }
      for (const { link } of this.members.values()) link.close()
      const wait = (): void => {
        if (this.members.size > 0) this.world.time.after(50, wait)
        else ended()
      }
      wait()
    }
    this.world.time.as(this.process, look)
  }

  kill(silently: boolean): void {
    this.process.alive = false
    for (const end of this.ends) end.die()
    for (const wire of [...this.world.wan.wires]) {
      if (wire.server?.process !== this.process) continue
      if (silently) wire.swallows = true
      else this.world.wan.close(wire, 'server')
    }
  }

  leftovers(): string[] {
    const left: string[] = []
    const zero = (what: string, count: number): void =>
      void (count !== 0 && left.push(`${count} ${what} at the destination`))
    zero('pieces', this.pieces.used)
    zero('bytes of memory', this.memory.used)
    for (const { session, unpacker } of this.members.values()) {
      const { migrations, disks, dialling, pieces } = session.status()
      zero('channels', session.channelCount)
      zero('migrations', migrations.length)
      zero('disk transfers', disks.length)
      zero('flows to be dialled', dialling)
      zero('pieces of a session', pieces)
      zero('batches lent', unpacker().lent)
      const { sender } = (session.replies as unknown as { sender?: Sender }) ?? {}
      if (sender) zero('units of slots', unitsTaken(sender))
    }
    return left
  }
}

const NO_POOL = {
  kernel: { bytes: new Uint8Array(0), layout: { templatePages: 0, ringPages: 64 } },
  warm: async () => {},
  migrates: () => {},
} as unknown as DestinationSessionOptions['pool']
