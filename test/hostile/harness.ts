/**
 * A destination proxy under siege. `Siege` starts a real `pageferry destination`, a real `pageferry source` whose QEMU
 * migrates again and again (byte for byte checked), and an honest peer whose PINGs are timed, each in a process of its
 * own. A test attacks it and then looks at what the honest ones felt:
 *
 *   t.setTimeout(590_000) // at the file's top: the machine may be busy
 *   await using siege = await Siege.start()                        // TLS; { plaintext: true } for none
 *   const figures = await siege.under(async () => {
 *     const peer = await siege.peer()                              // any frame: peer.ts
 *     for (let i = 0; i < 1000; i++) peer.open(i + 1, 'nowhere')
 *     await peer.flushed()
 *   })
 *   unharmed(t, figures, { grownBytesMax: 64 << 20 })
 *
 * `siege.way(name)` says how to dial as one of HOSTILE_NAMES (identities of their own), for raw sockets and hand-made
 * bytes. Destination QEMUs of an attack's own are further `--target NAME=ADDRESS` in `destinationArguments`.
 */
import { type ChildProcess, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { Credentials } from '../../src/link/credentials.ts'
import { makeX509, writeCredentialFiles } from '../../src/link/keygen.ts'
import type { ClientHello } from '../../src/wan/hello.ts'
import { isCounted } from '../helpers/own-time.ts'
import { until } from '../helpers/until.ts'
import { Peer, type Way } from './peer.ts'

/** Identities for attackers; the honest peer has one of its own. */
export const HOSTILE_NAMES = ['hostile', 'hostile2', 'hostile3'] as const
export type HostileName = (typeof HOSTILE_NAMES)[number]
const DESTINATION = 'destination'
const HONEST = 'honest'

/** A PING may wait so long, beside what the machine itself is late by and its threads wait for a core (honest.ts). */
const PING_MS_MAX = 250
/**
 * Where the kernel does not count waits for a core, the limit grows with the programs that want one at once, above as many
 * as the attack itself, its proxy, the honest ones and a second test file are.
 */
const USUAL_LOAD_PER_CORE = 3
/** Lines that an attack may bring in a minute. */
export const LINES_PER_MINUTE_MAX = 100
/** Starting programs, and other single steps, on a machine that others use as well. */
const STEP_MS_MAX = 60_000

/** What the honest process is told. */
export interface HonestTask {
  readonly port: number
  /** Directory, or undefined without TLS. */
  readonly credentials: string | undefined
  readonly peerName: string
  /** Socket of the source proxy, and the one to take migrations at. */
  readonly source: string
  readonly target: string
  readonly destinationPid: number
}

/** What the honest ones felt. */
export interface HonestFigures {
  readonly seconds: number
  /** Honest migrations that ended, and of these those that began under the attack and came through whole. */
  readonly migrations: number
  readonly wholeMigrations: number
  readonly longestMigrationMs: number
  /** Migrations that failed or brought wrong bytes, the PING connection closed. */
  readonly mistakes: readonly string[]
  readonly pings: number
  /** Sessions of the PINGs that were asked to go, from the start on. */
  readonly moves: number
  /** Longest time from PING to PONG, and the longest beyond what the machine was late by meanwhile. */
  readonly pingMs: number
  readonly pingLateMs: number
  /** The same of a thread that has nothing to do. */
  readonly controlMs: number
  /** Of the destination proxy, all threads. */
  readonly cpuSeconds: number
  readonly residentBeforeBytes: number
  readonly residentPeakBytes: number
}

export interface Figures extends HonestFigures {
  /** The destination proxy's log meanwhile, each line as it is (JSON). */
  readonly lines: readonly string[]
  /** The most lines of one cause: an attacker's identity, or all else less what the honest migrations bring. */
  readonly attackLines: number
  /** Undefined while the destination proxy lives. */
  readonly exit: string | undefined
}

export interface SiegeOptions {
  /** No TLS on the WAN. */
  readonly plaintext?: boolean
  /** `--pool-memory` of the destination proxy. */
  readonly poolMemory?: string
  /** Further arguments of `pageferry destination`. */
  readonly destinationArguments?: readonly string[]
  readonly sourceArguments?: readonly string[]
  /**
   * Port of a hostile destination, without TLS: what is besieged is then a `pageferry serve`, the honest ones' destination
   * and at `siege.gate` a source proxy of that one. Destination arguments and pool memory are its own.
   */
  readonly hostileDestination?: number
  /** Where the honest source proxy dials in place of the destination proxy's port: a relay's, for example. */
  readonly through?: (port: number) => Promise<number>
}

const PAGEFERRY = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))

export class Siege implements AsyncDisposable {
  /** The destination proxy's port for source proxies, on 127.0.0.1. */
  readonly port: number
  readonly destinationPid: number
  /** What the destination proxy has logged, each line as it is (JSON). */
  readonly lines: string[]
  /** Lines that one honest migration brings at the destination proxy. */
  private readonly linesPerMigration: number
  private readonly folder: string
  private readonly plaintext: boolean
  private readonly children: Children
  private readonly honest: ChildProcess

  private constructor(
    folder: string,
    plaintext: boolean,
    port: number,
    children: Children,
    honest: ChildProcess,
    linesPerMigration: number,
  ) {
    this.folder = folder
    this.plaintext = plaintext
    this.port = port
    this.children = children
    this.honest = honest
    this.lines = children.lines
    this.destinationPid = children.destination.pid!
    this.linesPerMigration = linesPerMigration
  }

  /** Where QEMUs connect whose destination is hostile: a Unix socket. */
  get gate(): string {
    return join(this.folder, 'gate.sock')
  }

  /** Starts all of it, and lets some honest migrations pass. */
  static async start(options: SiegeOptions = {}): Promise<Siege> {
    const folder = mkdtempSync(join(tmpdir(), 'pageferry-siege-'))
    const { plaintext = false } = options
    const children = new Children()
    try {
      if (!plaintext) {
        const names = HOSTILE_NAMES.map(name => [name] as const)
        writeCredentialFiles(folder, await makeX509([DESTINATION], [HONEST], 2, ...names))
      }
      const security = (name: string): string[] => (plaintext ? ['--plaintext'] : ['--tls-creds', join(folder, name)])
      const target = join(folder, 'target.sock')
      const alone = [
        ...['destination', '--json', '--listen', 'tcp:127.0.0.1:0', '--target', `unix:${target}`],
        ...['--pool-memory', options.poolMemory ?? '16MiB', ...security(DESTINATION)],
        ...(options.destinationArguments ?? []),
      ]
      const both = ['serve', '--json', '--config', join(folder, 'serve.yaml')]
      const { hostileDestination } = options
      if (hostileDestination !== undefined) {
        const configuration = {
          ...{ plaintext: true, patience: '10s', 'pool-memory': '64MiB' },
          wan: { listen: ['tcp:127.0.0.1:0'] },
          targets: { default: `unix:${target}` },
          peers: { hostile: { address: `127.0.0.1:${hostileDestination}` } },
          listeners: [{ at: `unix:${join(folder, 'gate.sock')}`, peer: 'hostile' }],
        }
        writeFileSync(both.at(-1)!, JSON.stringify(configuration))
      }
      const destination = children.pageferry('destination', hostileDestination === undefined ? alone : both)
      children.destination = destination
      let port: number
      if (hostileDestination === undefined) {
        const { at } = await children.line('listening for source proxies')
        port = Number(/:(\d+)$/.exec(String(at))![1])
      } else {
        // 'serving' tells what is configured; this line tells what is bound, where it is not that of the dialler
        port = Number((await children.line('link.plaintext', ({ address }) => address !== undefined)).port)
      }
      const source = join(folder, 'source.sock')
      const peer = options.through ? await options.through(port) : port
      children.pageferry('source', [
        ...['source', '--json', '--listen', `unix:${source}`, '--peer', `127.0.0.1:${peer}`, '--pool-memory', '16MiB'],
        ...[...security(HONEST), ...(plaintext ? [] : ['--peer-name', DESTINATION])],
        ...(options.sourceArguments ?? []),
      ])
      await children.line('session open', fields => fields.peer === `127.0.0.1:${peer}`)
      const task: HonestTask = {
        port,
        credentials: plaintext ? undefined : join(folder, HONEST),
        peerName: DESTINATION,
        source,
        target,
        destinationPid: destination.pid!,
      }
      const honest = fork(fileURLToPath(new URL('honest.ts', import.meta.url)), [JSON.stringify(task)])
      children.add('the honest peer', honest)
      const quiet = children.lines.length
      await children.settled(once(honest, 'message'))
      const { migrations } = await ask(honest, 'figures')
      return new Siege(folder, plaintext, port, children, honest, (children.lines.length - quiet) / migrations)
    } catch (error) {
      await children.end()
      rmSync(folder, { recursive: true, force: true })
      throw error
    }
  }

  /** How to dial the destination proxy as one of the attackers. */
  way(name: HostileName = 'hostile'): Way {
    const credentials = this.plaintext
      ? undefined
      : new Credentials({ role: 'client', directory: join(this.folder, name), peerName: DESTINATION })
    return { port: this.port, credentials }
  }

  /** A connection of an attacker, hellos exchanged. It goes with the siege. */
  peer(hello: Partial<ClientHello> = {}, name: HostileName = 'hostile'): Promise<Peer> {
    return Peer.dial(this.way(name), hello)
  }

  /** Lines of this event that the destination proxy has logged. */
  count(event: string): number {
    return this.lines.filter(line => (JSON.parse(line) as { msg: unknown }).msg === event).length
  }

  /** Waits for a condition, while all processes live. */
  async until(what: string, condition: () => boolean): Promise<void> {
    await this.children.settled(until(what, condition, STEP_MS_MAX))
  }

  /**
   * Runs an attack, however long a busy machine takes for it (the test's own limit ends it), and then until one more honest
   * migration has begun and ended, well or not.
   * @returns what the honest ones felt from its beginning on
   */
  async under(attack: () => Promise<void>): Promise<Figures> {
    const from = this.lines.length
    await ask(this.honest, 'begin')
    await this.children.alive(attack())
    const { migrations } = await ask(this.honest, 'figures')
    let figures = await ask(this.honest, 'figures')
    // two ends: the first may be of one that was under way when the attack was over
    while (figures.migrations < migrations + 2 && this.children.exit === undefined) {
      await new Promise(resolve => setTimeout(resolve, 20))
      figures = await ask(this.honest, 'figures')
    }
    const lines = this.lines.slice(from)
    const rest = Math.ceil(this.linesPerMigration * (figures.migrations + 1))
    const attackLines = Math.max(0, ...[...countByCause(lines)].map(([cause, n]) => (cause === '' ? n - rest : n)))
    return { ...figures, lines, attackLines, exit: this.children.exit }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.children.end()
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** Lines by the attacker's identity that they name, '' where they name none of them. */
function countByCause(lines: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>()
  for (const line of lines) {
    const { identity } = JSON.parse(line) as { identity?: unknown }
    const name = HOSTILE_NAMES.find(one => String(identity).includes(`CN=${one};`)) ?? ''
    counts.set(name, (counts.get(name) ?? 0) + 1)
  }
  return counts
}

/** What an attack may cost, where it is not nothing. */
export interface Costs {
  /** Resident memory of the destination proxy, at most, beyond what it had before the attack ... */
  readonly grownBytesMax?: number
  /** ... or as a whole. */
  readonly residentBytesMax?: number
}

/** Asserts that nobody honest was harmed: one call, so that no attack forgets a part of it. */
export function unharmed(t: Tap.Test, figures: Figures, costs: Costs): void {
  const { lines, ...shown } = figures
  t.comment(JSON.stringify(shown))
  t.equal(figures.exit, undefined, 'the proxy lives')
  if (figures.mistakes.length > 0) for (const line of lines) if (/link\.(down|dead|bye)/.test(line)) t.comment(line)
  t.same(figures.mistakes, [], 'every honest migration came through, byte for byte')
  t.ok(figures.wholeMigrations > 0, `${figures.wholeMigrations} migrations meanwhile`)
  const load = loadavg()[0]! / availableParallelism()
  const lateMax = PING_MS_MAX * (isCounted ? 1 : Math.max(1, load / USUAL_LOAD_PER_CORE))
  t.ok(
    figures.pings > 0 && figures.pingLateMs < lateMax,
    `PING: ${figures.pingLateMs.toFixed(0)} ms late, ${lateMax.toFixed(0)} at most`,
  )
  const linesMax = Math.ceil(LINES_PER_MINUTE_MAX * Math.max(1, figures.seconds / 60))
  t.ok(figures.attackLines <= linesMax, `${figures.attackLines} lines in the log, ${linesMax} at most`)
  const { residentPeakBytes: peak, residentBeforeBytes: before } = figures
  if (costs.grownBytesMax !== undefined)
    t.ok(peak - before <= costs.grownBytesMax, `${mib(before)} MiB of memory before, ${mib(peak)} at most`)
  if (costs.residentBytesMax !== undefined) t.ok(peak <= costs.residentBytesMax, `${mib(peak)} MiB of memory`)
}

declare namespace Tap {
  interface Test {
    comment(text: string): void
    ok(value: unknown, why: string): unknown
    equal(found: unknown, wanted: unknown, why: string): unknown
    same(found: unknown, wanted: unknown, why: string): unknown
  }
}

function mib(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(0)
}

function ask(honest: ChildProcess, what: 'begin' | 'figures'): Promise<HonestFigures> {
  return new Promise((resolve, reject) => {
    const take = (message: unknown): void => {
      if (typeof message !== 'object') return // it became warm
      done()
      resolve(message as HonestFigures)
    }
    const gone = (): void => {
      done()
      reject(new Error('the honest peer has died'))
    }
    const done = (): void => {
      honest.off('message', take).off('exit', gone)
    }
    honest.on('message', take).on('exit', gone)
    honest.send(what)
  })
}

/** The processes of a siege. */
class Children {
  readonly lines: string[] = []
  destination!: ChildProcess
  exit: string | undefined
  private readonly all = new Map<ChildProcess, Promise<unknown>>()
  private readonly failed: Promise<never>
  private fail!: (error: Error) => void
  private ending = false
  private readonly waiting = new Set<(fields: Record<string, unknown>) => void>()

  constructor() {
    this.failed = new Promise((_, reject) => {
      this.fail = reject
    })
    this.failed.catch(() => {})
    process.once('exit', this.kill) // a test that ran out of time
  }

  add(name: string, child: ChildProcess): void {
    this.all.set(child, once(child, 'exit'))
    child.once('exit', (code, signal) => {
      if (this.ending) return
      const what = `${name} ended: ${signal ?? code}`
      if (child === this.destination) this.exit = what
      this.fail(new Error(what))
    })
  }

  pageferry(name: string, args: readonly string[]): ChildProcess {
    const child = spawn(PAGEFERRY, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    this.add(name, child)
    createInterface({ input: child.stdout! }).on('line', line => {
      if (child === this.destination) this.lines.push(line)
      const fields = JSON.parse(line) as Record<string, unknown>
      for (const look of this.waiting) look(fields)
    })
    return child
  }

  /** Waits for a line of any of them. */
  line(
    message: string,
    isIt: (fields: Record<string, unknown>) => boolean = () => true,
  ): Promise<Record<string, unknown>> {
    let look!: (fields: Record<string, unknown>) => void
    const found = new Promise<Record<string, unknown>>(resolve => {
      look = fields => {
        if (fields.msg === message && isIt(fields)) resolve(fields)
      }
      this.waiting.add(look)
    })
    return this.settled(found).finally(() => this.waiting.delete(look))
  }

  /** Waits, but not for what a dead process would have to do. */
  alive<T>(promise: Promise<T>): Promise<T> {
    return Promise.race([promise, this.failed])
  }

  /** And not for ever. */
  async settled<T>(promise: Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`nothing within ${STEP_MS_MAX / 1000} s`)), STEP_MS_MAX)
    })
    try {
      return await Promise.race([this.alive(promise), late])
    } finally {
      clearTimeout(timer)
    }
  }

  private readonly kill = (): void => {
    for (const child of this.all.keys()) child.kill('SIGKILL')
  }

  async end(): Promise<void> {
    this.ending = true
    process.off('exit', this.kill)
    this.kill()
    await Promise.all(this.all.values())
  }
}
