/**
 * Captured migrations played through two proxy processes (bin/pageferry, TLS between them) over an emulated link: what the
 * benches of effort, forecasts and memory stand on. Feeder and sink are processes of their own, as QEMUs are.
 */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { parseLink } from '../../scripts/harness/wan/link.ts'
import { RelayLink } from '../../scripts/harness/wan/relay-link.ts'
import { makePsk, writeCredentialFiles } from '../../src/link/keygen.ts'
import type { MigrationSummary } from '../../src/migration/summary.ts'

export const root = fileURLToPath(new URL('../..', import.meta.url))
/** A captured stream of the lab, by its name. */
export const streamPath = (name: string): string => join(root, '.cache/lab/streams', `${name}.stream`)

/**
 * Takes connections on so many ports; says the ports, then when each connection had ended, and its bytes. Stops reading
 * for a while after so many bytes.
 */
const SINK = `const net = require('net'), b = Buffer.alloc(1 << 20), say = o => console.log(JSON.stringify(o))
  const stallAt = +process.argv[2], stallMs = +process.argv[3]
  for (let i = 0; i < +process.argv[1]; i++) {
    const server = net.createServer({ pauseOnConnect: true }, c => {
      let bytes = 0, stalled = false; const handle = c._handle; c._handle = null; handle.reading = false
      const s = new net.Socket({ handle, onread: { buffer: b, callback: n => {
        bytes += n; if (stalled || bytes < stallAt) return true
        stalled = true; setTimeout(() => s.resume(), stallMs); return false } } })
      s.on('end', () => say({ i, bytes, at: Number(process.hrtime.bigint()) / 1e6 })).on('error', () => {}).resume()
    }).listen(0, '127.0.0.1', () => say({ i, port: server.address().port }))
  }`
/** Sends a file; says when it began. */
const FEEDER = `const fs = require('fs'), b = [Buffer.alloc(1 << 20), Buffer.alloc(1 << 20)], f = fs.openSync(process.argv[2])
  const s = require('net').connect(+process.argv[1], '127.0.0.1', () => {
    console.log(Number(process.hrtime.bigint()) / 1e6); s.on('error', () => {}).resume()
    let i = 0; const go = () => { const n = fs.readSync(f, b[i], 0, 1 << 20, null)
      if (n === 0) s.end(); else { s.write(b[i].subarray(0, n), go); i ^= 1 } }; go() })`

/** How one stream fared. */
export interface Replayed {
  /** From the feeder's connection to the last byte at the sink. */
  readonly seconds: number
  /** The source proxy's last line; undefined without a pair. */
  readonly summary: MigrationSummary | undefined
}

/** Memory and CPU of a process so far. */
export interface ProcessUse {
  /** VmHWM: the most that was resident. */
  readonly peakBytes: number
  readonly residentBytes: number
  readonly cpuSeconds: number
}

export interface ReplayOptions {
  /** As parseLink() takes it; undefined: the proxies connect over loopback. */
  readonly link?: string | undefined
  /** Migrations at once. Default 1. */
  readonly gates?: number
  readonly sourceArgs?: readonly string[]
  readonly destinationArgs?: readonly string[]
  /** Beside this process's. */
  readonly sourceEnv?: NodeJS.ProcessEnv
  readonly destinationEnv?: NodeJS.ProcessEnv
  /** Checkout whose bin/pageferry runs. Default: this one. */
  readonly program?: string
  /** Destination QEMUs stop reading after so many bytes, for so long. */
  readonly stall?: { readonly atBytes: number; readonly ms: number } | undefined
  /** Without proxies: the feeder reaches the sink by the link alone. */
  readonly direct?: boolean
}

interface Proxy {
  readonly child: ChildProcess
  readonly log: Record<string, unknown>[]
  changed: () => void
}

export class Replay implements AsyncDisposable {
  /** Lines of both logs, as they were written. */
  readonly source: Proxy | undefined
  readonly destination: Proxy | undefined
  private readonly link: RelayLink | undefined
  private readonly sink: Sink
  private readonly ports: readonly number[]
  private readonly removeFolder: () => void
  private replayed = 0

  private constructor(
    source: Proxy | undefined,
    destination: Proxy | undefined,
    link: RelayLink | undefined,
    sink: Sink,
    ports: readonly number[],
    removeFolder: () => void,
  ) {
    this.source = source
    this.destination = destination
    this.link = link
    this.sink = sink
    this.ports = ports
    this.removeFolder = removeFolder
  }

  static async start(options: ReplayOptions): Promise<Replay> {
    const { gates = 1, sourceArgs = [], destinationArgs = [], program = root } = options
    const folder = temporaryFolder('replay')
    const sink = await Sink.start(gates, options.stall)
    const open = (port: number): Promise<RelayLink | undefined> =>
      options.link === undefined
        ? Promise.resolve(undefined)
        : RelayLink.open(parseLink(options.link), { host: '127.0.0.1', port })
    if (options.direct) {
      const link = await open(sink.ports[0]!)
      return new Replay(undefined, undefined, link, sink, [link?.port ?? sink.ports[0]!], folder.remove)
    }
    writeCredentialFiles(folder.path, makePsk(['near'], ['far']))
    const tls = ['near', 'far'].map(side => join(folder.path, side))
    const destination = proxy(
      program,
      [
        'destination',
        ...['--listen', 'tcp:127.0.0.1:0', '--tls-creds', tls[1]!],
        ...sink.ports.flatMap((port, i) => ['--target', `g${i}=tcp:127.0.0.1:${port}`]),
        ...destinationArgs,
      ],
      options.destinationEnv,
    )
    const [wan] = await listening(destination)
    const link = await open(wan!)
    const source = proxy(
      program,
      [
        'source',
        ...['--peer', `127.0.0.1:${link?.port ?? wan}`, '--tls-creds', tls[0]!],
        ...sink.ports.flatMap((_, i) => ['--listen', `g${i}=tcp:127.0.0.1:0`]),
        ...sourceArgs,
      ],
      options.sourceEnv,
    )
    const ports = await listening(source)
    await told(source, line => line.msg === 'session open')
    return new Replay(source, destination, link, sink, ports, folder.remove)
  }

  /** Plays streams at once, each through a gate of its own. */
  async play(files: readonly string[]): Promise<Replayed[]> {
    const first = this.replayed
    this.replayed += files.length
    return Promise.all(
      files.map(async (file, i) => {
        const end = this.sink.end(i)
        const feeder = spawnOwned([process.execPath, '-e', FEEDER, String(this.ports[i]), file], {
          stdio: ['ignore', 'pipe', 'inherit'],
        })
        const [began] = (await once(feeder.stdout!, 'data')) as [Buffer]
        const { at } = await end
        const seconds = (at - Number(began.toString())) / 1e3
        if (!this.source) return { seconds, summary: undefined }
        const summary = await told(
          this.source,
          line => line.msg === 'migration ended' && line.target === `g${i}` && (line.migration as number) > first,
        )
        return { seconds, summary: summary as unknown as MigrationSummary }
      }),
    )
  }

  use(side: 'source' | 'destination'): ProcessUse {
    return processUse(this[side]!.child.pid!)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const one of [this.source, this.destination]) if (one) await endChild(one.child)
    await this.link?.[Symbol.asyncDispose]()
    await endChild(this.sink.child)
    this.removeFolder()
  }
}

/** The process that stands for destination QEMUs. */
class Sink {
  readonly child: ChildProcess
  readonly ports: number[] = []
  private readonly ends: ((end: { at: number; bytes: number }) => void)[] = []

  private constructor(child: ChildProcess) {
    this.child = child
  }

  static async start(gates: number, stall: ReplayOptions['stall']): Promise<Sink> {
    const { atBytes, ms } = stall ?? { atBytes: Number.MAX_SAFE_INTEGER, ms: 0 }
    const sink = new Sink(
      spawnOwned([process.execPath, '-e', SINK, String(gates), String(atBytes), String(ms)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      }),
    )
    await new Promise<void>(done => {
      createInterface(sink.child.stdout!).on('line', text => {
        const line = JSON.parse(text) as { i: number; port?: number; bytes: number; at: number }
        if (line.port === undefined) {
          sink.ends[line.i]?.(line)
          return
        }
        sink.ports[line.i] = line.port
        if (Object.keys(sink.ports).length === gates) done()
      })
    })
    return sink
  }

  /** Resolves when the next connection of a port has ended. */
  end(port: number): Promise<{ at: number; bytes: number }> {
    return new Promise(done => {
      this.ends[port] = done
    })
  }
}

function proxy(program: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Proxy {
  const child = spawnOwned([join(program, 'bin/pageferry'), ...args, '--json'], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const one: Proxy = { child, log: [], changed: () => {} }
  createInterface(child.stdout!).on('line', text => {
    one.log.push(JSON.parse(text))
    one.changed()
  })
  return one
}

/** The first line of a proxy's log that is meant, waited for. */
async function told(from: Proxy, is: (line: Record<string, unknown>) => boolean): Promise<Record<string, unknown>> {
  while (true) {
    const found = from.log.find(is)
    if (found) return found
    if (from.child.exitCode !== null) throw new Error(`a proxy ended: ${JSON.stringify(from.log.at(-1))}`)
    await new Promise<void>(done => {
      const before = from.changed
      from.changed = () => {
        before()
        done()
      }
      from.child.once('exit', () => done())
    })
  }
}

async function listening(from: Proxy): Promise<number[]> {
  const { at } = await told(from, line => String(line.msg).startsWith('listening'))
  return String(at)
    .split(' ')
    .map(address => Number(address.slice(address.lastIndexOf(':') + 1)))
}

function processUse(pid: number): ProcessUse {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const kib = (name: string): number => Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)![1]) * 1024
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ')
  return {
    peakBytes: kib('VmHWM'),
    residentBytes: kib('VmRSS'),
    cpuSeconds: (Number(fields[11]) + Number(fields[12])) / 100,
  }
}
