/**
 * `make bench-link`: a migration stream through a pair of proxies, two processes of bin/pageferry, from a feeder's socket
 * to a sink's: pages that all, 90 % or none match a template set. Prints MB/s of the wall, MB of the channel per CPU second of each
 * proxy, and how TLS compares with a plain link. Feeder and sink cost next to nothing (sendfile; MSG_TRUNC) and are not counted.
 * A pair rests before its first stream until it has nothing left to make ready (the ring's memory, ADR 0003). The first quarter
 * of each stream warms up and does not count; medians, every variant once in each round, the streams one after the other through one pair.
 *
 *   pair-bench.ts [--match 100,90,0] [--security plain,x509,psk] [--effort 0,auto] [--rounds 5] [--megabytes 600]
 *     [--program DIR,DIR]      checkouts whose bin/pageferry is compared; default: this one
 *     [--link 400Mbit,40ms,loss=0.1%] [--connections 1,2,4] [--congestion reno,bbr]   over a WAN between two network namespaces (root)
 *     [--congestion reno]      without --link: over the loopback of a network namespace of its own (root). BBR, where it is the
 *                              host's, paces loopback too, a timer for each 64 KiB: it takes an eighth of what is measured here
 *     [--minutes N]            begins no round that would end behind that
 *     [--out FILE]             JSON as docs/measured has it
 *     [--profile DIR]          has both proxies write a CPU profile there (one round)
 */

import { type ChildProcess, execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { median } from '../../scripts/harness/median.ts'
import { atExit, endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { parseLink } from '../../scripts/harness/wan/link.ts'
import { PacketLink } from '../../scripts/harness/wan/packet-link.ts'
import type { Passage } from '../../scripts/measure/cost-files.ts'
import { keepJson, provenance } from '../../scripts/measure/provenance.ts'
import { makePsk, makeX509, writeCredentialFiles } from '../../src/link/keygen.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { realPages, streamOf } from '../bench/streams.ts'

/** 100 MB: more than caches hold, so that every template is cold. */
const TEMPLATE_PAGES = 25_600
const root = fileURLToPath(new URL('../..', import.meta.url))

/** argv: port, file. Reads to the end, so that the far side's FIN is seen. */
const FEEDER = `
import os, socket, sys
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
with open(sys.argv[2], 'rb') as f:
    left, at = os.fstat(f.fileno()).st_size, 0
    while at < left: at += os.sendfile(s.fileno(), f.fileno(), at, left - at)
s.shutdown(socket.SHUT_WR)
while s.recv(4096): pass
`
/** argv: bytes of warm-up of each stream. Prints its port, then for each stream 'warm', and what it got. MSG_TRUNC: the kernel drops the bytes instead of copying them. */
const SINK = `
import socket, sys
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(1)
print(l.getsockname()[1], flush=True)
b = bytearray(1 << 20)
for warm in map(int, sys.argv[1:]):
    s, _ = l.accept()
    got = 0
    while True:
        n = s.recv_into(b, len(b), socket.MSG_TRUNC)
        if n == 0: break
        if got < warm <= got + n: print('warm', flush=True)
        got += n
    print(got, flush=True)
    s.close()
`

const { values: options } = parseArgs({
  options: {
    match: { type: 'string', default: '100,90,0' },
    security: { type: 'string', default: 'plain,x509,psk' },
    effort: { type: 'string', default: '0,auto' },
    rounds: { type: 'string', default: '5' },
    megabytes: { type: 'string', default: '600' },
    program: { type: 'string', default: root },
    connections: { type: 'string', default: '1' },
    link: { type: 'string' },
    congestion: { type: 'string', default: '' },
    minutes: { type: 'string', default: '60' },
    out: { type: 'string' },
    profile: { type: 'string' },
  },
})

const matches = list(options.match)

interface Variant {
  readonly effort: string
  readonly connections: string
  readonly congestion: string
  readonly program: string
  readonly security: string
}

/** Of the stream behind the warm-up. */
interface Sample {
  readonly wallSeconds: number
  readonly sourceSeconds: number
  readonly destinationSeconds: number
  /** The most memory that either process has had. */
  readonly peakMb: number
}

/** Where programs run: here, or at the two ends of a link. */
interface Site {
  spawn(command: readonly string[], env?: Record<string, string>): ChildProcess
  readonly address: string
  /** Sets the congestion control of connections to come. */
  control?(name: string): Promise<void> | void
}

function here(): Site {
  return {
    address: '127.0.0.1',
    spawn: (command, env) =>
      spawnOwned(command, { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env } }),
  }
}

/** A loopback of its own, whose congestion control is not the host's. */
class Loopback implements Disposable {
  readonly name = `pageferry-bench-${process.pid}`
  readonly #remove: () => void

  constructor() {
    execFileSync('ip', ['netns', 'add', this.name])
    this.#remove = atExit(() => void execFileSync('ip', ['netns', 'del', this.name]))
    execFileSync('ip', ['-n', this.name, 'link', 'set', 'lo', 'up'])
  }

  get site(): Site {
    const { name } = this
    const within = ['ip', 'netns', 'exec', name]
    return {
      address: '127.0.0.1',
      spawn: (command, env) => here().spawn([...within, ...command], env),
      control: control => {
        execFileSync('ip', ['netns', 'exec', name, 'sh', '-c', setControl(control)])
      },
    }
  }

  [Symbol.dispose](): void {
    this.#remove()
  }
}

function setControl(control: string): string {
  return `echo ${control} > /proc/sys/net/ipv4/tcp_congestion_control`
}

/** CPU seconds of a process so far, all its threads. */
function cpuSeconds(pid: number): number {
  let ns = 0
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    ns += Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[0])
  }
  return ns / 1e9
}

function peakMb(pid: number): number {
  return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1000
}

/** Waits until processes have been idle for half a second, all of them: less than a hundredth of it of CPU time. */
async function rest(pids: readonly number[]): Promise<void> {
  const used = (): number => pids.reduce((sum, pid) => sum + cpuSeconds(pid), 0)
  for (let before = -1, now = used(); now - before > 0.005; ) {
    await setTimeout(500)
    before = now
    now = used()
  }
}

/** Waits for a line that `found` accepts. */
async function line(lines: Interface, found: (text: string) => boolean): Promise<string> {
  return new Promise((resolve, reject) => {
    lines.once('close', () => reject(new Error(`a program ended without a line that is ${found}`)))
    lines.on('line', text => {
      if (found(text)) resolve(text)
    })
  })
}

class Bench {
  readonly folder = temporaryFolder('pair-bench')
  readonly store = join(this.folder.path, 'store')
  readonly templates = realPages(TEMPLATE_PAGES)
  readonly streamBytes = new Map<string, number>()
  readonly congestionBefore = new Map<string, string>()

  async prepare(): Promise<void> {
    const { templates } = this
    const digests = Array.from({ length: TEMPLATE_PAGES }, (_, i) =>
      createHash('sha256')
        .update(templates.subarray(i * 4096, i * 4096 + 4096))
        .digest(),
    )
    const records = {
      count: TEMPLATE_PAGES,
      vms: () => 2,
      occurrences: () => 2,
      copyDigest: (place: number, into: Uint8Array, at: number) => into.set(digests[place]!, at),
    }
    await new TemplateStore(this.store).put({ minVms: 2, vms: 2 }, records, async function* () {
      yield templates
    })
    for (const security of list(options.security)) {
      if (security === 'plain') continue
      const site = ['near', '127.0.0.1', '192.0.2.1'] as const
      const peer = ['far', '127.0.0.1', '192.0.2.2'] as const
      writeCredentialFiles(
        join(this.folder.path, security),
        security === 'psk' ? makePsk(site, peer) : await makeX509(site, peer, 9),
      )
    }
    for (const match of matches) {
      const stream = streamOf(templates, Number(match) / 100, Math.round((Number(options.megabytes) * 1e6) / 4104))
      writeFileSync(this.streamPath(match), stream)
      this.streamBytes.set(match, stream.length)
    }
  }

  streamPath(match: string): string {
    return join(this.folder.path, `${match}.stream`)
  }

  /** Sends the streams one after the other through a fresh pair. */
  async run(variant: Variant, source: Site, destination: Site): Promise<Sample[]> {
    const { security, effort, connections, program } = variant
    const children: ChildProcess[] = []
    const start = (site: Site, command: readonly string[]): { child: ChildProcess; lines: Interface } => {
      const env = options.profile ? { NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${options.profile}` } : {}
      const child = site.spawn(command, env)
      children.push(child)
      return { child, lines: createInterface({ input: child.stdout! }) }
    }
    const proxy = (site: Site, role: string, args: readonly string[]) => {
      const directory = join(this.folder.path, security, role === 'source' ? 'near' : 'far')
      const safe = security === 'plain' ? ['--plaintext'] : ['--tls-creds', directory]
      const anywhere = security === 'plain' && role === 'destination' && options.link ? ['--plaintext-anywhere'] : []
      return start(site, [
        ...[join(program, 'bin/pageferry'), role, '--json', '--store', this.store, ...safe],
        ...[...anywhere, ...args],
      ])
    }
    try {
      const warmUps = matches.map(match => `${Math.floor(this.streamBytes.get(match)! / 4)}`)
      const sink = start(destination, ['python3', '-c', SINK, ...warmUps])
      const port = Number(await line(sink.lines, () => true))
      const target = ['--listen', `tcp:${destination.address}:0`, '--target', `tcp:127.0.0.1:${port}`]
      const far = proxy(destination, 'destination', target)
      const { at } = JSON.parse(await line(far.lines, text => text.includes('listening for'))) as { at: string }
      const near = proxy(source, 'source', [
        ...['--listen', 'tcp:127.0.0.1:0', '--peer', at, '--effort', effort, '--connections', connections],
      ])
      const open = line(near.lines, text => text.includes('session open'))
      const listening = JSON.parse(await line(near.lines, text => text.includes('listening for'))) as { at: string }
      await open
      await rest([near.child.pid!, far.child.pid!])
      const samples: Sample[] = []
      const used = () => [performance.now() / 1000, cpuSeconds(near.child.pid!), cpuSeconds(far.child.pid!)] as const
      for (const match of matches) {
        const warmed = line(sink.lines, text => text === 'warm')
        const ended = line(sink.lines, text => text !== 'warm')
        start(source, ['python3', '-c', FEEDER, listening.at.replace(/.*:/, ''), this.streamPath(match)])
        await warmed
        const before = used()
        const got = Number(await ended)
        const after = used()
        if (got !== this.streamBytes.get(match)) throw new Error(`${got} bytes came out of ${match}`)
        samples.push({
          wallSeconds: after[0] - before[0],
          sourceSeconds: after[1] - before[1],
          destinationSeconds: after[2] - before[2],
          peakMb: Math.max(peakMb(near.child.pid!), peakMb(far.child.pid!)),
        })
      }
      if (options.profile) {
        // written at the exit
        await endChild(near.child, 20_000)
        await endChild(far.child, 20_000)
      }
      return samples
    } finally {
      for (const child of children) child.kill('SIGKILL')
      await Promise.all(children.map(child => endChild(child)))
    }
  }
}

function list(text: string): string[] {
  return text.split(',').filter(word => word !== '')
}

/** Whole numbers, but of small ones a decimal. */
function figure(value: number): string {
  return value.toFixed(value < 20 ? 1 : 0)
}

async function main(): Promise<void> {
  const bench = new Bench()
  await using link = options.link ? await PacketLink.open(parseLink(options.link)) : undefined
  const at = (site: PacketLink['source']): Site => ({
    address: site.address,
    spawn: (command, env) =>
      site.spawn(command, { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env } }),
    control: async name => void (await site.run(['sh', '-c', setControl(name)])),
  })
  using loopback = !link && options.congestion ? new Loopback() : undefined
  const local = loopback?.site ?? here()
  const [source, destination] = link ? [at(link.source), at(link.destination)] : [local, local]
  process.stderr.write('making streams and a template set of real pages\n')
  await bench.prepare()
  const variants: Variant[] = []
  for (const effort of list(options.effort))
    for (const connections of list(options.connections))
      for (const congestion of options.congestion ? list(options.congestion) : [''])
        for (const program of list(options.program))
          for (const security of list(options.security))
            variants.push({ effort, connections, congestion, program, security })
  const told = provenance(
    `node test/daemon/pair-bench.ts --match ${options.match} --security ${options.security} --effort ${options.effort} --megabytes ${options.megabytes}`,
  )
  const startMs = performance.now()
  const kept: Passage['rows'][number][] = []
  const samples = new Map<Variant, Sample[][]>(variants.map(variant => [variant, []]))
  for (let round = 0; round < (options.profile ? 1 : Number(options.rounds)); round++) {
    const elapsedMs = performance.now() - startMs
    if (round > 0 && elapsedMs * (1 + 1 / round) > Number(options.minutes) * 60_000) break
    process.stderr.write(`round ${round + 1}\n`)
    for (const variant of variants) {
      if (variant.congestion !== '') {
        await source.control!(variant.congestion)
        await destination.control!(variant.congestion)
      }
      samples.get(variant)!.push(await bench.run(variant, source, destination))
    }
  }
  const used = <K extends keyof Variant>(key: K): boolean => new Set(variants.map(variant => variant[key])).size > 1
  const shown = (['effort', 'connections', 'congestion', 'program', 'security'] as const).filter(
    key => key === 'effort' || key === 'security' || used(key),
  )
  const table = new Table({
    head: [
      ...['match', ...shown],
      'MB/s wall',
      '(min to max)',
      'per CPU s: source',
      'destination',
      'peak MB',
      'of plain: wall',
      'CPU',
    ],
    colAligns: [...['match', ...shown].map(() => 'left' as const), ...(Array(7).fill('right') as 'right'[])],
    style: { head: [], border: [], compact: true },
  })
  for (const [i, match] of matches.entries()) {
    const megabytes = (bench.streamBytes.get(match)! * 0.75) / 1e6
    const rates = (variant: Variant, seconds: (sample: Sample) => number): number[] =>
      samples.get(variant)!.map(round => megabytes / seconds(round[i]!))
    const wall = (variant: Variant) => rates(variant, sample => sample.wallSeconds)
    const cpu = (variant: Variant) => rates(variant, sample => sample.sourceSeconds + sample.destinationSeconds)
    for (const variant of variants) {
      const plain = variants.find(
        other => other.security === 'plain' && shown.every(key => key === 'security' || other[key] === variant[key]),
      )
      const ofPlain = (rate: (of: Variant) => number[]): string =>
        plain && plain !== variant ? (median(rate(variant)) / median(rate(plain))).toFixed(2) : ''
      kept.push({
        ...{ match: Number(match), effort: variant.effort, security: variant.security },
        ...{ program: basename(variant.program), rounds: samples.get(variant)!.length },
        megabytesPerSecond: median(wall(variant)),
        megabytesPerSecondMin: Math.min(...wall(variant)),
        megabytesPerSecondMax: Math.max(...wall(variant)),
        megabytesPerSourceCpuSecond: median(rates(variant, sample => sample.sourceSeconds)),
        megabytesPerDestinationCpuSecond: median(rates(variant, sample => sample.destinationSeconds)),
      })
      table.push([
        ...[`${match} %`, ...shown.map(key => variant[key])],
        figure(median(wall(variant))),
        `${figure(Math.min(...wall(variant)))} to ${figure(Math.max(...wall(variant)))}`,
        figure(median(rates(variant, sample => sample.sourceSeconds))),
        figure(median(rates(variant, sample => sample.destinationSeconds))),
        Math.max(...samples.get(variant)!.map(round => round[i]!.peakMb)).toFixed(0),
        ...[ofPlain(wall), ofPlain(cpu)],
      ])
    }
  }
  const control = options.congestion || readFileSync('/proc/sys/net/ipv4/tcp_congestion_control', 'latin1').trim()
  const over = `over ${options.link ?? 'loopback'}, ${control}`
  if (options.out) keepJson(options.out, { ...told, over, rows: kept } satisfies Passage)
  process.stdout.write(
    `${table.toString()}\n${over}; ${options.megabytes} MB a stream, its first quarter not counted; medians of ${samples.get(variants[0]!)!.length}\n`,
  )
}

await main()
