/**
 * A WAN between two network namespaces, packet by packet, as a pair of sites sees it. Needs root. The source site is
 * 192.0.2.1, the destination site 192.0.2.2 on device wan0 of their namespaces, whose loopback devices are up too.
 *
 *   await using link = await PacketLink.open(parseLink('100Mbit,40ms'))
 *   const proxy = link.source.spawn(['node', 'proxy.ts'])
 *   const guest = await QemuGuest.start({ qemu, netns: link.destination.netns })
 */
import { type ChildProcess, execFile, execFileSync, fork, type SpawnOptions, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { atExit, endChild, spawnOwned } from '../qemu/cleanup.ts'
import { formatLink, type Link } from './link.ts'
import type { Measurement } from './measure.ts'
import type { Order, Report } from './wire.ts'

const run = promisify(execFile)
const device = 'wan0'
const measureProgram = fileURLToPath(new URL('measure.ts', import.meta.url))

/**
 * How a link is made: `netem` in the kernel; `tap`, two tap devices and wire.ts between them; `veth`, where there is
 * neither delay nor loss.
 */
export type LinkKind = 'netem' | 'tap' | 'veth'

/** What passed a link, from the counters of its network devices: Ethernet frames, both ways. */
export interface LinkCounters {
  /** Handed to the link by the source site. */
  readonly sentBytes: number
  /** Of those, arrived at the destination site. */
  readonly deliveredBytes: number
  /** Handed to the link by the destination site. */
  readonly backSentBytes: number
  readonly backDeliveredBytes: number
}

/** One end of a link: a network namespace. */
export class Site {
  readonly netns: string
  readonly address: string
  private readonly children = new Set<ChildProcess>()
  /** Does nothing, in the namespace: its /proc entry shows the namespace's devices, without starting a program each time. */
  private anchor: ChildProcess | undefined

  constructor(netns: string, address: string) {
    this.netns = netns
    this.address = address
  }

  /** Starts a program at this site; it ends with the link at the latest. */
  spawn(command: readonly string[], options?: SpawnOptions): ChildProcess {
    const child = spawnOwned(['ip', 'netns', 'exec', this.netns, ...command], options)
    this.children.add(child)
    child.once('exit', () => this.children.delete(child))
    return child
  }

  /** Runs a program at this site to its end. @returns its stdout */
  async run(command: readonly string[], timeoutMs = 60_000): Promise<string> {
    return (await run('ip', ['netns', 'exec', this.netns, ...command], { timeout: timeoutMs })).stdout
  }

  /** Bytes out of and into this site. */
  async counters(): Promise<{ readonly outBytes: number; readonly inBytes: number }> {
    this.anchor ??= this.spawn(['sleep', 'infinity'], { stdio: 'ignore', detached: true }) // Ctrl-C is not for it
    const folder = `/proc/${this.anchor.pid}`
    // Until it is `sleep`, it may not be in the namespace yet.
    for (let i = 0; readFileSync(`${folder}/comm`, 'latin1') !== 'sleep\n'; i++) {
      if (i === 1000) throw new Error(`no program starts in ${this.netns}`)
      await sleep(5)
    }
    const [line] = new RegExp(`^ *${device}:.*$`, 'm').exec(readFileSync(`${folder}/net/dev`, 'latin1')) ?? []
    if (line === undefined) throw new Error(`${this.netns} has lost ${device}`)
    const counts = line
      .slice(line.indexOf(':') + 1)
      .trim()
      .split(/ +/)
    return { outBytes: Number(counts[8]), inBytes: Number(counts[0]) }
  }

  /** Ends every program that was started here. */
  async close(): Promise<void> {
    await Promise.all([...this.children].map(child => endChild(child, 1000)))
  }
}

/** Why packet links are not to be had here, or how they would be made. */
export async function packetLinkSupport(): Promise<{ readonly kind: 'netem' | 'tap' } | { readonly skip: string }> {
  if (process.getuid!() !== 0) return { skip: 'network namespaces need root' }
  try {
    execFileSync('ip', ['-V'], { stdio: 'ignore' })
  } catch {
    return { skip: 'ip is missing: apt-get install iproute2' }
  }
  const probe = namespaceName('probe')
  try {
    ip('netns', 'add', probe)
  } catch (error) {
    return { skip: `no network namespaces here: ${(error as Error).message.split('\n')[0]}` }
  }
  const remove = atExit(() => ip('netns', 'del', probe))
  try {
    execFileSync('tc', ['-n', probe, 'qdisc', 'add', 'dev', 'lo', 'root', 'netem', 'delay', '1ms'], { stdio: 'ignore' })
    return { kind: 'netem' }
  } catch {
    if (!['/usr/bin/vde_plug', '/bin/vde_plug'].some(path => existsSync(path))) {
      return { skip: 'this kernel has no netem, and vde_plug is missing: apt-get install vdeplug' }
    }
    return { kind: 'tap' }
  } finally {
    remove()
  }
}

/** A link between two sites. */
export class PacketLink implements AsyncDisposable {
  readonly link: Link
  readonly kind: LinkKind
  readonly source: Site
  readonly destination: Site
  private readonly removes: readonly (() => void)[]
  private wire: ChildProcess | undefined
  private timers: NodeJS.Timeout[] = []
  private nextCounts = 0

  private constructor(link: Link, kind: LinkKind, sites: readonly [Site, Site], removes: readonly (() => void)[]) {
    this.link = link
    this.kind = kind
    this.source = sites[0]
    this.destination = sites[1]
    this.removes = removes
  }

  /**
   * Makes the namespaces and the link between them. The clock of its outages starts now.
   * @throws Error where packetLinkSupport() gives a reason
   */
  static async open(link: Link): Promise<PacketLink> {
    removeStale()
    const support = await packetLinkSupport()
    if ('skip' in support) throw new Error(support.skip)
    const plain = link.roundTripMs === 0 && link.lossPart === 0 && link.jitterMs === 0
    const kind = plain ? 'veth' : support.kind
    const sites = [new Site(namespaceName('s'), '192.0.2.1'), new Site(namespaceName('d'), '192.0.2.2')] as const
    const removes: (() => void)[] = []
    const packetLink = new PacketLink(link, kind, sites, removes)
    try {
      for (const { netns } of sites) {
        ip('netns', 'add', netns)
        removes.push(atExit(() => removeNamespace(netns)))
        ip('-n', netns, 'link', 'set', 'lo', 'up')
        if (kind === 'tap') ip('-n', netns, 'tuntap', 'add', device, 'mode', 'tap')
      }
      const [source, destination] = sites
      if (kind !== 'tap') {
        ip(
          '-n',
          source.netns,
          'link',
          'add',
          device,
          'type',
          'veth',
          'peer',
          'name',
          device,
          'netns',
          destination.netns,
        )
      }
      for (const { netns, address } of sites) {
        ip('-n', netns, 'addr', 'add', `${address}/24`, 'dev', device)
        ip('-n', netns, 'link', 'set', device, 'up')
      }
      if (kind === 'tap') await packetLink.startWire()
      else packetLink.shape()
      packetLink.startClock()
      return packetLink
    } catch (error) {
      await packetLink.close()
      throw error
    }
  }

  /** Starts the clock of the outages again, at 0. */
  startClock(): void {
    this.order({ clock: true })
    for (const timer of this.timers) clearTimeout(timer)
    this.timers = []
    if (this.wire) return
    for (const { startMs, lengthMs } of this.link.outages) {
      this.timers.push(
        setTimeout(() => this.down(), startMs),
        setTimeout(() => this.up(), startMs + lengthMs),
      )
    }
    for (const timer of this.timers) timer.unref()
  }

  /** From now on nothing passes, either way, and nobody is told. */
  down(): void {
    this.order({ down: true })
    // A queue of one byte takes no packet.
    if (!this.wire) this.eachDevice('bfifo', 'limit', '1')
  }

  /** Everything passes again. */
  up(): void {
    this.order({ down: false })
    if (!this.wire) this.shape()
  }

  /** What passed so far. */
  async counters(): Promise<LinkCounters> {
    const [source, destination] = await Promise.all([this.source.counters(), this.destination.counters()])
    return {
      sentBytes: source.outBytes,
      deliveredBytes: destination.inBytes,
      backSentBytes: destination.outBytes,
      backDeliveredBytes: source.inBytes,
    }
  }

  /** What wire.ts dropped, and why; undefined for the other kinds. */
  async drops(): Promise<{ readonly lost: number; readonly overflowed: number } | undefined> {
    const { wire } = this
    if (!wire) return undefined
    const counts = this.nextCounts++
    wire.channel?.ref()
    const report = await new Promise<Report>((resolve, reject) => {
      const onExit = () => reject(new Error('the wire ended'))
      wire.once('exit', onExit)
      wire.on('message', function onMessage(message: Report) {
        if (!('counts' in message) || message.counts !== counts) return
        wire.off('message', onMessage)
        wire.off('exit', onExit)
        resolve(message)
      })
      this.order({ counts })
    }).finally(() => wire.channel?.unref())
    if (!('forward' in report)) return undefined
    const { forward, back } = report
    return { lost: forward.lost + back.lost, overflowed: forward.overflowed + back.overflowed }
  }

  /**
   * Measures the link by one TCP connection from the source site, which fills it for `sendMs`, by default 40 round
   * trips or a second and a half.
   */
  async measure(sendMs = Math.max(1500, this.link.roundTripMs * 40)): Promise<Measurement> {
    const server = this.destination.spawn([process.execPath, measureProgram, 'serve', this.destination.address], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    try {
      const port = await new Promise<string>((resolve, reject) => {
        server.stdout!.once('data', (text: Buffer) => resolve(text.toString().trim()))
        server.once('exit', () => reject(new Error('the measurement server ended')))
      })
      const command = [process.execPath, measureProgram, 'probe', this.destination.address, port, `${sendMs}`]
      return JSON.parse(await this.source.run(command, sendMs + 60_000)) as Measurement
    } finally {
      await endChild(server)
    }
  }

  /** Ends every program at both sites, the link and the namespaces. Never fails; may be called again. */
  async close(): Promise<void> {
    for (const timer of this.timers) clearTimeout(timer)
    await Promise.all([this.source.close(), this.destination.close()])
    if (this.wire) await endChild(this.wire)
    for (const remove of this.removes) remove()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  private async startWire(): Promise<void> {
    const program = fileURLToPath(new URL('wire.ts', import.meta.url))
    const wire = fork(program, [formatLink(this.link), device, this.source.netns, this.destination.netns])
    const kill = atExit(() => wire.kill('SIGKILL'))
    wire.once('exit', kill)
    await new Promise<void>((resolve, reject) => {
      wire.once('message', () => resolve())
      wire.once('exit', code => reject(new Error(`the wire ended with ${code}`)))
    })
    wire.unref()
    wire.channel?.unref()
    this.wire = wire
  }

  private order(order: Order): void {
    if (this.wire?.connected) this.wire.send(order)
  }

  /** Gives both devices their way out. */
  private shape(): void {
    const { bitsPerSecond, roundTripMs, jitterMs, lossPart, queueBytes } = this.link
    if (this.kind === 'netem') {
      const delay = ['delay', `${roundTripMs / 2}ms`, ...(jitterMs > 0 ? [`${jitterMs}ms`] : [])]
      const loss = lossPart > 0 ? ['loss', 'random', `${lossPart * 100}%`] : []
      const rate = bitsPerSecond === Infinity ? [] : ['rate', `${bitsPerSecond}bit`]
      // netem's limit counts packets, those under way among them.
      const underWay = bitsPerSecond === Infinity ? 1e8 : (bitsPerSecond * (roundTripMs / 2 + jitterMs)) / 8000
      const limit = ['limit', `${Math.ceil((queueBytes + underWay) / 1514)}`]
      this.eachDevice('netem', ...delay, ...loss, ...rate, ...limit)
    } else if (bitsPerSecond !== Infinity) {
      // A burst of a millisecond, but at least one large segment, which veth passes whole.
      const burst = Math.max(Math.ceil(bitsPerSecond / 8000), 70_000)
      this.eachDevice('tbf', 'rate', `${bitsPerSecond}bit`, 'burst', `${burst}`, 'limit', `${queueBytes + burst}`)
    } else this.eachDevice('pfifo')
  }

  private eachDevice(...qdisc: string[]): void {
    for (const { netns } of [this.source, this.destination]) {
      execFileSync('tc', ['-n', netns, 'qdisc', 'replace', 'dev', device, 'root', ...qdisc])
    }
  }
}

let namespaces = 0

/** Removes a namespace, and first ends what programs that were started there left running. */
function removeNamespace(netns: string): void {
  const { stdout } = spawnSync('ip', ['netns', 'pids', netns], { encoding: 'utf8' })
  for (const pid of stdout.split('\n').filter(Boolean)) {
    try {
      process.kill(Number(pid), 'SIGKILL')
    } catch {
      // ended meanwhile
    }
  }
  ip('netns', 'del', netns)
}

/** Unique on this machine: the process id is in it. */
function namespaceName(what: string): string {
  return `pf-${process.pid}-${namespaces++}-${what}`
}

function ip(...args: string[]): void {
  execFileSync('ip', args, { stdio: ['ignore', 'ignore', 'pipe'] })
}

/** Removes namespaces of processes that were killed before they could. */
function removeStale(): void {
  for (const line of execFileSync('ip', ['netns', 'list'], { encoding: 'utf8' }).split('\n')) {
    const [name, pid] = /^pf-(\d+)-\d+-\w+/.exec(line) ?? []
    if (name && !existsSync(`/proc/${pid}`)) removeNamespace(name)
  }
}
