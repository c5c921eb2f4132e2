/**
 * A pair of proxies with a faulty WAN between them, and guests on both sides: what tests of real migrations stand on.
 * Everything is removed when it is disposed of.
 *
 *   await using pair = await Pair.start({ wan: '100Mbit,20ms' })
 *   await using guests = await Guests.start({ qemu })
 *   await guests.destination.listen(pair.targetUri())
 *   await guests.source.migrate(pair.sourceUri())
 */

import type { ChildProcess, SpawnOptions } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { bootSector } from '../../scripts/harness/guest/boot-sector.ts'
import { endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { type GuestOptions, QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { compareMemory } from '../../scripts/harness/qemu/memory.ts'
import type { QemuVersion } from '../../scripts/harness/qemu/versions.ts'
import { random } from '../../scripts/harness/random.ts'
import { parseLink } from '../../scripts/harness/wan/link.ts'
import type { PacketLink } from '../../scripts/harness/wan/packet-link.ts'
import { RelayLink } from '../../scripts/harness/wan/relay-link.ts'
import { DestinationDaemon } from '../../src/daemon/destination-daemon.ts'
import { Events } from '../../src/daemon/events.ts'
import type { DiskAnswers } from '../../src/daemon/settings.ts'
import { SourceDaemon } from '../../src/daemon/source-daemon.ts'
import { Credentials } from '../../src/link/credentials.ts'
import { makePsk, makeX509, writeCredentialFiles } from '../../src/link/keygen.ts'
import type { ArrivalSummary, MigrationSummary } from '../../src/migration/summary.ts'
import { type Address, parseAddress } from '../../src/relay/address.ts'
import { resetSocket } from '../../src/relay/reset-socket.ts'
import type { Role } from '../../src/session/api.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import type { StartHelper } from '../../src/transfer/helpers/helper.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { proxyThreads } from '../helpers/threads.ts'
import { until } from '../helpers/until.ts'

/** How a WAN breaks: RST on every connection; bytes vanish and nobody is told; bytes wait and then go on. */
export const FAULTS = ['reset', 'drop', 'stall'] as const
export type Fault = (typeof FAULTS)[number]

/** One connection of QEMU through a {@link ChannelRelay}. */
export class HeldChannel {
  /** Its first four bytes in hex, which tell what channel it is; shorter while fewer have come. */
  head = ''
  readonly near: net.Socket
  readonly far: net.Socket

  constructor(near: net.Socket, far: net.Socket) {
    this.near = near
    this.far = far
    this.relay(near, far)
    this.relay(far, near)
  }

  /** Takes no bytes from the proxy, or from QEMU, until release(): what a QEMU does that waits for something else. */
  hold(direction: 'forward' | 'back'): void {
    ;(direction === 'forward' ? this.near : this.far).pause()
  }

  release(): void {
    this.near.resume()
    this.far.resume()
  }

  private relay(from: net.Socket, to: net.Socket): void {
    from.on('data', (chunk: Buffer) => {
      if (from === this.near && this.head.length < 8) this.head += chunk.subarray(0, 4).toString('hex').slice(0, 8)
      to.write(chunk)
    })
    from.on('end', () => to.end())
    from.on('error', () => resetSocket(to))
  }
}

/** Stands between the destination proxy and its QEMU, connection by connection, and holds those that it is told to. */
export class ChannelRelay implements AsyncDisposable {
  readonly channels: HeldChannel[] = []
  /** Called with every new channel, when its first bytes have come. */
  onChannel: (channel: HeldChannel) => void = () => {}
  readonly port: number
  private readonly server: net.Server

  private constructor(server: net.Server, target: { host: string; port: number }) {
    this.server = server
    this.port = (server.address() as net.AddressInfo).port
    server.on('connection', near => {
      const far = net.connect({ ...target, noDelay: true, allowHalfOpen: true })
      const channel = new HeldChannel(near, far)
      this.channels.push(channel)
      near.once('data', () => this.onChannel(channel))
    })
  }

  static async start(target: { host: string; port: number }): Promise<ChannelRelay> {
    const server = net.createServer({ noDelay: true, allowHalfOpen: true })
    await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
    return new ChannelRelay(server, target)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { near, far } of this.channels) {
      near.destroy()
      far.destroy()
    }
    await new Promise<void>(done => this.server.close(() => done()))
  }
}

/** A line of a proxy's log. */
export interface LogLine {
  readonly side: Side
  readonly level: 'debug' | 'info' | 'warn' | 'error'
  readonly event: string
  readonly fields: Record<string, unknown>
}
export type Side = 'source' | 'destination'

export interface PairOptions {
  /** Run bin/pageferry twice, instead of both daemons in this process. */
  readonly processes?: boolean
  /** What starts helping threads of daemons in this process. */
  readonly helpers?: Partial<Record<Side, StartHelper>>
  /** More arguments of the source proxy, with `processes`. */
  readonly sourceArgs?: readonly string[]
  /** Default: plain text on the WAN. */
  readonly tls?: 'x509' | 'psk'
  readonly sourceStore?: string
  readonly destinationStore?: string
  /** Default 20 s. */
  readonly patienceMs?: number
  /** As parseLink() takes it, such as '100Mbit,20ms'; default: no limits. `none`: nothing between the proxies, no `wan` to break. */
  readonly wan?: string
  /** The WAN is this link, packet by packet, with a proxy at each of its sites: `processes`, and no `wan` to break. */
  readonly link?: PacketLink
  readonly connections?: number
  readonly effort?: number | 'auto'
  /** Listening ports of the source proxy, each with its own target: migrations at once. Default 1. */
  readonly gates?: number
  /** Carries a disk, too: see diskNear and diskFar. */
  readonly disks?: boolean
  /** Default: by the far side. */
  readonly diskAnswers?: DiskAnswers
  /** QEMU's side goes over Unix sockets. */
  readonly unix?: boolean
  /** What the source proxy connects to in place of the destination proxy. */
  readonly peer?: { readonly host: string; readonly port: number }
}

const root = fileURLToPath(new URL('../..', import.meta.url))
const RING_PAGES = 8192
const PLACES = 1 << 18

/** A daemon in this process, or a process. */
interface Proxy {
  /** Lets migrations finish. */
  stop(): Promise<void>
  /** Ends it at once, as a crash would. */
  kill(): Promise<void>
}

export class Pair implements AsyncDisposable {
  readonly options: PairOptions
  readonly log: LogLine[] = []
  /** What the source proxy said of migrations that ended. */
  readonly summaries: MigrationSummary[] = []
  readonly arrivals: ArrivalSummary[] = []
  readonly folder: string
  wan!: RelayLink
  /** Of daemons in this process. */
  source: SourceDaemon | undefined
  destination: DestinationDaemon | undefined
  private readonly removeFolder: () => void
  private readonly proxies = new Map<Side, Proxy>()
  private readonly gates: { readonly name: string; readonly source: string; readonly target: string }[] = []
  private wanPort = 0

  private constructor(options: PairOptions) {
    this.options = options
    const folder = temporaryFolder('pair')
    this.folder = folder.path
    this.removeFolder = folder.remove
  }

  static async start(options: PairOptions = {}): Promise<Pair> {
    const pair = new Pair(options)
    for (let i = 0; i < (options.gates ?? 1); i++) {
      const at = async (side: string) =>
        options.unix ? `unix:${join(pair.folder, `${side}-${i}`)}` : `tcp:127.0.0.1:${await claimPort()}`
      pair.gates.push({ name: i === 0 ? 'default' : `t${i}`, source: await at('near'), target: await at('far') })
    }
    pair.wanPort = await claimPort()
    if (options.tls) {
      const [site, peer] = [['near'], ['far', '127.0.0.1']] as const
      writeCredentialFiles(pair.folder, options.tls === 'psk' ? makePsk(site, peer) : await makeX509(site, peer, 1))
    }
    if (!pair.direct) {
      pair.wan = await RelayLink.open(
        parseLink(options.wan ?? '0ms'),
        options.peer ?? { host: '127.0.0.1', port: pair.wanPort },
      )
    }
    if (!options.peer) await pair.startDestination()
    await pair.startSource()
    return pair
  }

  /** Where the source QEMU migrates to. */
  sourceUri(gate = 0): string {
    return this.gates[gate]!.source
  }

  /** Where the destination QEMU must listen. */
  targetUri(gate = 0): string {
    return this.gates[gate]!.target
  }

  /** Unix socket where a mirror's client connects. */
  get diskNear(): string {
    return join(this.folder, 'disk-near')
  }

  /** Unix socket where its server must listen. */
  get diskFar(): string {
    return join(this.folder, 'disk-far')
  }

  /** Has the destination proxy dial something else for a gate; only of daemons in this process. */
  retarget(gate: number, address: Address): void {
    this.targets.set(this.gates[gate]!.name, address)
  }
  private readonly targets = new Map<string, Address>()

  async startSource(): Promise<void> {
    const { options } = this
    const { host, port } = this.direct ? { host: this.wanHost, port: this.wanPort } : this.wan
    if (this.processes) {
      const proxy = await this.spawn('source', [
        ...['--peer', `${host}:${port}`, '--effort', String(options.effort ?? 'auto')],
        ...['--connections', String(options.connections ?? 1)],
        ...this.gates.flatMap(({ name, source }) => ['--listen', `${name}=${source}`]),
        ...(options.sourceStore === undefined ? [] : ['--store', options.sourceStore]),
        ...(options.sourceArgs ?? []),
        ...(options.disks ? ['--disks', `unix:${this.diskNear}`] : []),
        ...(options.diskAnswers ? ['--disk-answers', options.diskAnswers] : []),
      ])
      this.proxies.set('source', proxy)
      return
    }
    const daemon = new SourceDaemon({
      listen: this.gates.map(({ name, source }) => ({ name, address: parseAddress(source) })),
      disks: options.disks ? [{ name: 'default', address: parseAddress(`unix:${this.diskNear}`) }] : [],
      diskAnswers: options.diskAnswers ?? 'far',
      beyondLoopback: false,
      peer: { host, port },
      credentials: this.credentials('client'),
      store: options.sourceStore === undefined ? undefined : new TemplateStore(options.sourceStore),
      ringPages: RING_PAGES,
      places: PLACES,
      effort: options.effort ?? 'auto',
      connections: options.connections ?? 1,
      pools: this.pools('source'),
      rate: Number.POSITIVE_INFINITY,
      queueTargetMs: 50,
      patienceMs: options.patienceMs ?? 20_000,
      events: this.eventsOf('source'),
    })
    await daemon.start()
    this.source = daemon
    this.proxies.set('source', {
      stop: async () => {
        await daemon.stop()
        await daemon.ended
      },
      kill: () => daemon.abort(),
    })
  }

  async startDestination(): Promise<void> {
    const { options } = this
    if (this.processes) {
      const proxy = await this.spawn('destination', [
        ...['--listen', `tcp:${this.wanHost}:${this.wanPort}`],
        ...this.gates.flatMap(({ name, target }) => ['--target', `${name}=${target}`]),
        ...(options.destinationStore === undefined ? [] : ['--store', options.destinationStore]),
        ...(options.disks ? ['--disks', `unix:${this.diskFar}`] : []),
      ])
      this.proxies.set('destination', proxy)
      return
    }
    for (const { name, target } of this.gates) this.targets.set(name, parseAddress(target))
    const daemon = new DestinationDaemon({
      listen: [{ host: '127.0.0.1', port: this.wanPort }],
      targets: this.targets,
      disks: new Map(options.disks ? [['default', parseAddress(`unix:${this.diskFar}`)]] : []),
      credentials: this.credentials('server'),
      store: options.destinationStore === undefined ? undefined : new TemplateStore(options.destinationStore),
      pools: this.pools('destination'),
      ringPagesMax: RING_PAGES,
      placesMax: PLACES,
      queueTargetMs: 50,
      patienceMs: options.patienceMs ?? 20_000,
      events: this.eventsOf('destination'),
    })
    await daemon.start()
    this.destination = daemon
    this.proxies.set('destination', { stop: () => daemon.stop(), kill: () => daemon.abort() })
  }

  /** Breaks the WAN for `forMs`, and lets it come back. Settles when it has. */
  async breakWan(fault: Fault, forMs: number): Promise<void> {
    const { wan } = this
    if (fault === 'stall') wan.stall()
    else if (fault === 'drop') wan.drop()
    else {
      wan.refuse()
      wan.cut()
    }
    await sleep(forMs)
    if (fault === 'stall') wan.resume()
    else wan.restore()
  }

  /** The same, and waits until both proxies have found each other again, where they lost each other. */
  async breakWanOnce(fault: Fault, forMs: number): Promise<void> {
    const ups = () => this.log.filter(({ side, event }) => side === 'source' && event === 'link.up').length
    const before = ups()
    await this.breakWan(fault, forMs)
    if (fault === 'stall') return
    await until(
      () => `a connection after ${fault}`,
      () => ups() > before,
    )
  }

  /** Ends a proxy in order. */
  async stop(side: Side): Promise<void> {
    await this.proxies.get(side)?.stop()
    this.proxies.delete(side)
  }

  /** Ends a proxy at once: SIGKILL where it is a process. */
  async kill(side: Side): Promise<void> {
    await this.proxies.get(side)?.kill()
    this.proxies.delete(side)
  }

  /** The line of the log that `found` accepts, when it is there. */
  async waitLog(found: (line: LogLine) => boolean, what: string, timeoutMs = 60_000): Promise<LogLine> {
    return until(
      () => `${what} in the log`,
      () => this.log.find(found),
      timeoutMs,
    )
  }

  /** The `count`-th migration's end (1 is the first), as the source proxy tells it. */
  async summary(count = 1, timeoutMs = 60_000): Promise<MigrationSummary> {
    return until(
      () => `${count} summaries: ${this.summaries.length} came`,
      () => this.summaries[count - 1],
      timeoutMs,
    )
  }

  async arrival(count = 1, timeoutMs = 60_000): Promise<ArrivalSummary> {
    return until(
      () => `${count} arrivals: ${this.arrivals.length} came`,
      () => this.arrivals[count - 1],
      timeoutMs,
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill('source')
    await this.kill('destination')
    if (!this.direct) await this.wan.close()
    this.removeFolder()
  }

  /** The source proxy connects to the destination proxy itself. */
  private get direct(): boolean {
    return this.options.link !== undefined || this.options.wan === 'none'
  }

  private get wanHost(): string {
    return this.options.link?.destination.address ?? '127.0.0.1'
  }

  private get processes(): boolean {
    return this.options.processes === true || this.options.link !== undefined
  }

  private pools(side: Side): Pools {
    const start = this.options.helpers?.[side]
    return new Pools({ threads: proxyThreads() ?? 1, ...(start && { startHelper: start }) })
  }

  private credentials(role: Role): Credentials | undefined {
    if (!this.options.tls) return undefined
    return new Credentials({ role, directory: join(this.folder, role === 'client' ? 'near' : 'far') })
  }

  private eventsOf(side: Side): Events {
    const events = new Events()
    events.subscribe(({ level, event, fields }) => this.keep(side, level, event, fields))
    return events
  }

  private keep(side: Side, level: LogLine['level'], event: string, fields: object): void {
    if (process.env.PAIR_LOG) console.log(`  ${side} ${level} ${event} ${JSON.stringify(fields)}`)
    this.log.push({ side, level, event, fields: { ...fields } })
    if (event === 'migration ended')
      (side === 'source' ? this.summaries : this.arrivals).push({ ...fields, level } as never)
  }

  private async spawn(side: Side, args: readonly string[]): Promise<Proxy> {
    const { options } = this
    const security = options.tls
      ? ['--tls-creds', join(this.folder, side === 'source' ? 'near' : 'far')]
      : ['--plaintext']
    const command = [
      ...[
        join(root, 'bin/pageferry'),
        side,
        '--json',
        ...security,
        '--pool-memory',
        `${(side === 'destination' ? 2 : 1) * RING_PAGES * 4}KiB`,
      ],
      ...['--patience', `${options.patienceMs ?? 20_000}ms`, ...args],
    ]
    const threads = proxyThreads()
    if (threads !== undefined && !args.includes('--threads')) command.push('--threads', `${threads}`)
    const stdio = { stdio: ['ignore', 'pipe', 'pipe'] } satisfies SpawnOptions
    const child = options.link ? options.link[side].spawn(command, stdio) : spawnOwned(command, stdio)
    let stderr = ''
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
      if (process.env.PAIR_LOG) console.log(`  ${side} stderr ${text}`)
    })
    let ready = false
    createInterface({ input: child.stdout! }).on('line', line => {
      const { level, time: _, msg, ...fields } = JSON.parse(line) as { level: number; time: string; msg: string }
      if (msg.startsWith('listening for')) ready = true
      this.keep(side, level >= 50 ? 'error' : level >= 40 ? 'warn' : 'info', msg, fields)
    })
    await until(
      () => `the ${side} proxy to start: ${stderr}`,
      () => ready || (child.exitCode !== null ? Promise.reject(new Error(`${side}: ${stderr}`)) : undefined),
    )
    return {
      stop: () => endChild(child, 10_000),
      kill: () => killChild(child),
    }
  }
}

async function killChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise<void>(done => child.once('exit', () => done()))
  child.kill('SIGKILL')
  await gone
}

/** The Linux guest of all tests of real QEMU: booting takes long, so its state is kept, and shared by equal options. */
export const LINUX = { workload: 'busy', rate: 2, busymb: 4, content: 7, contentmb: 4 } as const

/** What small guests hold besides what the boot sector makes: code, noise, text. */
const CONTENT_MB = 6
let content: { readonly path: string; readonly remove: () => void } | undefined

function contentFile(): string {
  if (!content) {
    content = temporaryFolder('content')
    const program = readFileSync(process.execPath)
    const bytes = Buffer.alloc(CONTENT_MB << 20)
    program.copy(bytes, 0, 40 << 20, 43 << 20)
    const noise = random(1)
    for (let at = 3 << 20; at < 4 << 20; at += 4) bytes.writeUInt32LE(noise(2 ** 32), at)
    for (let at = 4 << 20, line = 0; at < 5 << 20; line++) {
      at += bytes.write(
        `${line} GET /static/${(line * 7919) % 1000} 200 upstream ok ${line % 97} ms\n`,
        at,
        5 * (1 << 20) - at,
      )
    }
    writeFileSync(join(content.path, 'pages'), bytes)
  }
  return join(content.path, 'pages')
}

export interface GuestsOptions {
  readonly qemu: QemuVersion
  /** Default: the same. */
  readonly destinationQemu?: QemuVersion
  /** Default: `pc-i440fx-7.2`, which both QEMUs have; of Linux guests QEMU's newest. */
  readonly machine?: string
  /** A Linux guest with this workload. Default: the boot sector, with 6 MB of content, which dirties 17 pages 18 times a second. */
  readonly workload?: GuestOptions['workload']
  /** The source guest does not run, so that its memory stays. */
  readonly paused?: boolean
  /** The destination guest runs when it has arrived; else it stays stopped, so that its memory stays. */
  readonly runs?: boolean
  readonly memoryMb?: number
  readonly args?: readonly string[]
  /** More arguments of one of them. */
  readonly sideArgs?: Readonly<Partial<Record<Side, readonly string[]>>>
  readonly name?: string
  /** Network namespace of both QEMUs. */
  readonly netns?: string
}

/** A source guest and the QEMU that waits for it. */
export class Guests implements AsyncDisposable {
  readonly source: QemuGuest
  readonly destination: QemuGuest

  private constructor(source: QemuGuest, destination: QemuGuest) {
    this.source = source
    this.destination = destination
  }

  static async start(options: GuestsOptions): Promise<Guests> {
    const source = await Guests.startSource(options)
    try {
      return new Guests(source, await Guests.startDestination(options))
    } catch (error) {
      await source.quit()
      throw error
    }
  }

  static async startSource(options: GuestsOptions): Promise<QemuGuest> {
    const guest = await QemuGuest.start({
      ...Guests.common(options, options.qemu, 'source'),
      name: `${options.name ?? ''}source`,
      ...(options.workload ? { booted: true, paused: options.paused ?? false } : {}),
    })
    if (!options.workload) {
      await guest.waitSerial(/\n{4}/)
      if (options.paused) await guest.stop()
    }
    return guest
  }

  static startDestination(options: GuestsOptions): Promise<QemuGuest> {
    return QemuGuest.start({
      ...Guests.common(options, options.destinationQemu ?? options.qemu, 'destination'),
      name: `${options.name ?? ''}destination`,
      incoming: 'defer',
      paused: !options.runs,
    })
  }

  private static common(options: GuestsOptions, qemu: QemuVersion, side: Side): GuestOptions {
    const { workload, machine, memoryMb, netns } = options
    const own = options.sideArgs?.[side]
    const args = options.args || own ? [...(options.args ?? []), ...(own ?? [])] : undefined
    const more = {
      ...(machine === undefined ? {} : { machine }),
      ...(memoryMb === undefined ? {} : { memoryMb }),
      ...(netns === undefined ? {} : { netns }),
    }
    if (workload) return { qemu, workload, ...more, ...(args ? { args } : {}) }
    const loader = ['-device', `loader,file=${contentFile()},addr=0x200000,force-raw=on`]
    return {
      ...{ qemu, machine: 'pc-i440fx-7.2', memoryMb: 16, ...more },
      ...{ bootSector: bootSector(), args: [...loader, ...(args ?? [])] },
    }
  }

  /** Pages of memory that differ: both guests must be stopped. */
  async differingPages(): Promise<number> {
    const [left, right] = await Promise.all([this.source.snapshot(), this.destination.snapshot()])
    return (await compareMemory(left, right)).differingPages
  }

  /** Lets the destination guest run and waits for signs of life. */
  async goesOn(): Promise<void> {
    const { destination } = this
    const beats = destination.heartbeats.length
    const lines = destination.serial.length
    if ((await destination.status()) !== 'running') await destination.cont()
    await until(
      'the guest to go on at the destination',
      () => destination.heartbeats.length > beats + 2 || destination.serial.length > lines + 2,
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.source.quit(), this.destination.quit()])
  }
}
