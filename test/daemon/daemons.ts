/** Both daemons over loopback, with plain sockets for QEMUs: what their tests stand on. */
import { once } from 'node:events'
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { DestinationDaemon } from '../../src/daemon/destination-daemon.ts'
import { Events, type SiteEvent } from '../../src/daemon/events.ts'
import type { DiskAnswers, DiskZeroes } from '../../src/daemon/settings.ts'
import { SourceDaemon } from '../../src/daemon/source-daemon.ts'
import type { SourceRun } from '../../src/daemon/source-run.ts'
import type { SourceRuns } from '../../src/daemon/source-runs.ts'
import { ProxyError } from '../../src/errors.ts'
import type { FairShares } from '../../src/fair-shares.ts'
import type { Credentials } from '../../src/link/credentials.ts'
import type { Link } from '../../src/link/link.ts'
import type { LinkServer } from '../../src/link/server.ts'
import type { ArrivalSummary, MigrationSummary } from '../../src/migration/summary.ts'
import { parseAddress } from '../../src/relay/address.ts'
import type { TemplateStore } from '../../src/store/template-store.ts'
import type { KeptSpace } from '../../src/transfer/cold/kept-space.ts'
import { EVENT_LOOP } from '../../src/transfer/event-loop.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { proxyThreads } from '../helpers/threads.ts'
import { until } from '../helpers/until.ts'

const RING_PAGES = 256
const PLACES = 1 << 12
/** Of each proxy: `THREADS=2 node test/daemon/...`. */
const THREADS = proxyThreads() ?? 1
/** What a main channel and a multifd channel begin with, then nothing that a parser knows: relayed as it is. */
export const MAIN = Buffer.from('5145564d00000003ff', 'hex')
export const MULTIFD = Buffer.concat([Buffer.from('1122334400000001', 'hex'), Buffer.alloc(56)])

/** The sessions of a source, from within. */
export function runsOf(source: SourceDaemon): SourceRuns {
  return (source as unknown as { runs: SourceRuns }).runs
}

/** The one that takes what comes. */
export function runOf(source: SourceDaemon): SourceRun | undefined {
  return runsOf(source).reception.sessions.present
}

/** A destination QEMU: takes connections and keeps what they bring. */
export class Target implements AsyncDisposable {
  readonly sockets: net.Socket[] = []
  readonly received: Buffer[] = []
  readonly server = net.createServer({ allowHalfOpen: true }, socket => {
    const number = this.sockets.push(socket) - 1
    this.received.push(Buffer.alloc(0))
    socket.on('error', () => {})
    socket.on('data', chunk => {
      this.received[number] = Buffer.concat([this.received[number]!, chunk])
    })
    this.onConnection(socket)
  })
  onConnection: (socket: net.Socket) => void = () => {}

  get port(): number {
    return (this.server.address() as net.AddressInfo).port
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.sockets) socket.destroy()
    this.server.close()
  }
}

/** A WAN that can stand still and be cut. */
export class Wan {
  private readonly sockets = new Set<net.Socket>()
  still = false
  /** What the destination says is lost, what it is told arrives. */
  mute = false
  /** That have passed, both ways. */
  bytes = 0
  readonly server: net.Server

  constructor(port: number) {
    this.server = net.createServer(near => {
      if (this.away) {
        near.destroy()
        return
      }
      const far = net.connect(port, '127.0.0.1')
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        this.sockets.add(from)
        from.on('error', () => {})
        from.on('data', chunk => {
          this.bytes += chunk.length
          if (!this.still && !(this.mute && from === far)) to.write(chunk)
        })
        from.on('close', () => to.destroy())
      }
    })
  }

  /** The source has measured its first connection, by bytes that are no migration's (docs/adr/0029-warm-links.md). */
  async settled(): Promise<void> {
    await until('a connection that is measured', () => this.bytes > 65_536)
    for (let seen = 0; seen !== this.bytes; await sleep(100)) seen = this.bytes
  }

  /** Takes connections again. */
  restore(): void {
    this.away = false
  }

  /** Breaks its connections; `away`: and takes no more. */
  cut(away = false): void {
    this.away = away
    for (const socket of this.sockets) socket.destroy()
  }
  private away = false
}

export interface DaemonsOptions {
  readonly store?: TemplateStore
  /** Of the destination's side; and what sets may take of its memory, and of the source's. */
  readonly farStore?: TemplateStore
  readonly farSetBytes?: number
  readonly setBytes?: number
  /** Of the source's side, and of the destination's, instead. */
  readonly pools?: Pools
  readonly farPools?: Pools
  /** How often both look at an idle session. Default 5 s. */
  readonly renewMs?: number
  /** Default 5 s. */
  readonly patienceMs?: number
  readonly patiencePostcopyMs?: number
  /** Ports where a source QEMU may connect; all lead to the same target. Default 1. */
  readonly gates?: number
  /** Path of the Unix socket where the target listens. Default: a port. */
  readonly targetAt?: string
  /** Where a disk's server listens. */
  readonly disks?: string
  readonly diskAnswers?: DiskAnswers
  readonly diskZeroes?: DiskZeroes
  /** Page count of both rings. Default 256. */
  readonly ringPages?: number
  /** Default 3. */
  readonly effort?: number
  /** Bytes a second on the WAN. Default: all. */
  readonly rate?: number
  /** Of both, as where one process has them. */
  readonly memory?: FairShares
  /** Disk space for blocks of disks, at the source and at the destination. Default: none. */
  readonly kept?: KeptSpace
  readonly farKept?: KeptSpace
  /** Where both tell what happens. */
  readonly events?: Events
  /** Default: no TLS. */
  readonly credentials?: { readonly source: Credentials; readonly destination: Credentials }
}

/** A disk is waited for, however busy the machine is: what is late here is what a test made late. */
const PATIENT = { ...EVENT_LOOP, after: (ms: number, then: () => void) => EVENT_LOOP.after(100 * ms, then) }

/** Both daemons of a pair in this process, a WAN between them. */
export class Daemons implements AsyncDisposable {
  readonly target: Target
  readonly destination: DestinationDaemon
  readonly source: SourceDaemon
  /** Names of the events of both, in order. */
  readonly told: readonly string[]
  readonly summaries: (MigrationSummary & { readonly peer: string })[]
  readonly arrivals: (ArrivalSummary & { readonly peer: string })[]
  readonly disksEnded: readonly Extract<SiteEvent, { event: 'disk transfer ended' }>['fields'][]
  readonly wan: Wan
  /** QEMUs at the source, in the order in which they were dialled. */
  readonly clients: net.Socket[] = []

  private constructor(
    target: Target,
    destination: DestinationDaemon,
    wan: Wan,
    source: SourceDaemon,
    told: string[],
    summaries: Daemons['summaries'],
    arrivals: Daemons['arrivals'],
    disksEnded: Daemons['disksEnded'],
  ) {
    this.disksEnded = disksEnded
    this.summaries = summaries
    this.arrivals = arrivals
    this.target = target
    this.wan = wan
    this.destination = destination
    this.source = source
    this.told = told
  }

  static async start(options: DaemonsOptions = {}): Promise<Daemons> {
    const {
      store,
      farStore,
      setBytes,
      farSetBytes,
      pools,
      farPools,
      gates = 1,
      targetAt,
      memory,
      kept,
      farKept,
      events = new Events(),
      credentials,
      disks,
      diskAnswers = 'far',
      diskZeroes = 'as-said',
      ringPages = RING_PAGES,
      effort = 3, // zstd: batches are expanded a while after they came
      rate = Number.POSITIVE_INFINITY,
      ...times
    } = options
    const poolsOf = (setsBytesMax: number | undefined) => {
      const threads = THREADS
      if (setsBytesMax !== undefined) return { pools: new Pools({ setsBytesMax, loop: PATIENT, threads }) }
      return threads === 1 ? {} : { pools: new Pools({ threads }) }
    }
    const target = new Target()
    if (targetAt === undefined) target.server.listen(0, '127.0.0.1')
    else target.server.listen(targetAt)
    await once(target.server, 'listening')
    const targetUri = targetAt === undefined ? `tcp:127.0.0.1:${target.port}` : `unix:${targetAt}`
    const told: string[] = []
    const summaries: Daemons['summaries'] = []
    const arrivals: Daemons['arrivals'] = []
    const disksEnded: Extract<SiteEvent, { event: 'disk transfer ended' }>['fields'][] = []
    events.subscribe(({ level, event, fields }) => {
      told.push(event)
      if (event === 'disk transfer ended') disksEnded.push(fields)
      if (event !== 'migration ended') return
      if ('bytesWan' in fields) summaries.push({ ...fields, level: level as 'info' })
      else arrivals.push({ ...fields, level: level as 'info' })
    })
    const names = Array.from({ length: gates }, (_, i) => (i === 0 ? 'default' : `t${i}`))
    const patience = { patienceMs: 5000, ...times }
    const destination = new DestinationDaemon({
      listen: [{ host: '127.0.0.1', port: 0 }],
      targets: new Map(names.map(name => [name, parseAddress(targetUri)])),
      ...(disks !== undefined && { disks: new Map([['default', parseAddress(disks)]]) }),
      diskZeroes,
      credentials: credentials?.destination,
      store: farStore,
      ...poolsOf(farSetBytes),
      ...(farPools && { pools: farPools }),
      ringPagesMax: ringPages,
      placesMax: PLACES,
      queueTargetMs: 50,
      ...patience,
      memory,
      kept: farKept,
      events,
    })
    await destination.start()
    const wan = new Wan(destination.addresses[0]!.port)
    wan.server.listen(0, '127.0.0.1')
    await once(wan.server, 'listening')
    const source = new SourceDaemon({
      listen: names.map(name => ({ name, address: parseAddress('tcp:127.0.0.1:0') })),
      disks: disks === undefined ? [] : [{ name: 'default', address: parseAddress('tcp:127.0.0.1:0') }],
      diskAnswers,
      beyondLoopback: false,
      peer: { host: '127.0.0.1', port: (wan.server.address() as net.AddressInfo).port },
      credentials: credentials?.source,
      store,
      ...poolsOf(setBytes),
      ...(pools && { pools }),
      ringPages,
      places: PLACES,
      effort,
      connections: 1,
      rate,
      queueTargetMs: 50,
      ...patience,
      memory,
      kept,
      events,
    })
    await source.start()
    return new Daemons(target, destination, wan, source, told, summaries, arrivals, disksEnded)
  }

  async dial(gate = 0): Promise<net.Socket> {
    const address = this.source.addresses[gate]
    const port = address!.kind === 'tcp' ? address!.port : 0
    const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    this.clients.push(socket)
    socket.on('error', () => {})
    await once(socket, 'connect')
    return socket
  }

  /** Guests at once in one session, each a stream that ends. @returns what arrived of each, in any order */
  async migrateAtOnce(guests: readonly Buffer[]): Promise<readonly Buffer[]> {
    await until('a session', () => this.count('session open') >= 2)
    const qemus = await Promise.all(guests.map(() => this.dial()))
    for (const [i, qemu] of qemus.entries()) {
      qemu.resume() // or its end is never seen
      qemu.end(guests[i])
    }
    const { received, sockets } = this.target
    const sum = (all: readonly Buffer[]): number => all.reduce((bytes, { length }) => bytes + length, 0)
    await until('all bytes', () => sum(received) >= sum(guests))
    for (const socket of sockets) socket.end()
    await Promise.all(qemus.map(closed))
    return received
  }

  /** Where a disk's client connects. */
  get diskPort(): number {
    const [address] = this.source.diskAddresses
    return address?.kind === 'tcp' ? address.port : 0
  }

  /** How often either of them told it. */
  count(event: SiteEvent['event']): number {
    return this.told.filter(one => one === event).length
  }

  /** Ends the session as a WAN does that stays away; the source daemon opens the next one. */
  async loseSession(): Promise<void> {
    await runOf(this.source)!.link.abort(new ProxyError('PEER_LOST', 'test', undefined, 'test'))
  }

  /** The destination's half of the session. */
  get link(): Link {
    return (this.destination as unknown as { server: LinkServer }).server.links.at(-1)!
  }

  /** Lets the next OPEN cross DRAIN. */
  drainUnsaid(): void {
    ;(this.link.session as unknown as { paths: { draining: boolean } }).paths.draining = true
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.clients) socket.destroy()
    await this.target[Symbol.asyncDispose]()
    await this.source.abort()
    await this.source.ended
    await this.destination.abort()
    this.wan.cut()
    this.wan.server.close()
  }
}

/** Waits for a socket's end, whether by FIN or by RST (which `once` would throw). */
export function closed(socket: net.Socket): Promise<void> {
  return new Promise(done => {
    if (socket.closed) done()
    else socket.once('close', () => done())
  })
}
