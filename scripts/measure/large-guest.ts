/**
 * The lab's guest of 4 GiB moved over a link, stopped as it was captured, from one QEMU to another: directly, by multifd
 * with zstd, and through the pair. Every way in turn, in as many rounds; each begins with the same state in a fresh QEMU.
 * Needs the stream (`node scripts/lab/lab.ts large`); root, for a link of packets.
 *
 *   node scripts/measure/large-guest.ts [--link 1Gbit,2ms] [--rounds 3] [--methods direct,multifd-zstd,pair]
 *     [--stream large] [--store DIR] [--minutes 8] [--out .cache/compare/large-guest.json]
 *
 * What is measured is the time from `migrate` until both QEMUs say that it is completed. The destination stays stopped.
 * A pair starts for each migration. With --store both proxies have those template sets. What is not begun when the
 * minutes are over is left out.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { loadavg } from 'node:os'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { QmpClient } from '../../src/qmp/qmp-client.ts'
import { median } from '../harness/median.ts'
import { endChild, spawnOwned, temporaryFolder } from '../harness/qemu/cleanup.ts'
import type { MigrationInfo, MigrationSettings } from '../harness/qemu/guest.ts'
import { qemu10 } from '../harness/qemu/versions.ts'
import { type OpenedWan, openWan, type SiteName } from '../harness/wan/open.ts'
import { machineArguments } from '../lab/machine.ts'
import { ownSeconds } from './compare/cpu.ts'
import { openRoute } from './compare/methods.ts'
import type { Method } from './compare/results.ts'
import { COMPARE_FOLDER, labStream, root } from './lab-streams.ts'

const LIMIT_MS = 180_000
const START_MS = 120_000
/** As compare/ has it: no rate but the link's. */
const PARAMETERS = { 'max-bandwidth': 10_000_000_000, 'downtime-limit': 300 }
/** Of the QEMU that captured, by the name that a newer one has for it. */
const MACHINE = 'pc-i440fx-7.2'
const DISK_BYTES = 4 * 2 ** 30

const { values: options } = parseArgs({
  options: {
    link: { type: 'string', default: '1Gbit,2ms' },
    rounds: { type: 'string', default: '3' },
    methods: { type: 'string', default: 'direct,multifd-zstd,pair' },
    stream: { type: 'string', default: 'large' },
    store: { type: 'string' },
    minutes: { type: 'string', default: '8' },
    out: { type: 'string', default: join(COMPARE_FOLDER, 'large-guest.json') },
  },
})
const methods = options.methods.split(',') as Method[]
const stream = labStream(options.stream)
const { streams } = JSON.parse(readFileSync(join(root, '.cache/lab/streams/manifest.json'), 'utf8')) as {
  streams: readonly { name: string; memoryMb: number; kernel: string; workload: string }[]
}
const captured = streams.find(({ name }) => name === options.stream)
if (captured === undefined) throw new Error(`no stream ${options.stream}: node scripts/lab/lab.ts ${options.stream}`)

/** A QEMU for that guest, stopped. */
class Qemu implements AsyncDisposable {
  readonly pid: number
  readonly qmp: QmpClient
  private readonly end: () => Promise<void>

  private constructor(pid: number, qmp: QmpClient, end: () => Promise<void>) {
    this.pid = pid
    this.qmp = qmp
    this.end = end
  }

  static async start(command: string, wan: OpenedWan, site: SiteName, folder: string, incoming: string): Promise<Qemu> {
    const disk = join(folder, `${site}.qcow2`)
    // it is stopped, and reads and writes nothing
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', disk, String(DISK_BYTES)])
    const base = join(root, '.cache/lab/base/k1')
    const words = machineArguments({
      ...{ qemu: command, accel: 'tcg', memoryMb: captured!.memoryMb, hostname: site, workload: captured!.workload },
      ...{ kernel: join(base, 'vmlinuz'), initrd: join(base, 'initrd.img'), disk, folder },
    }).map(word => (word === 'pc' ? MACHINE : word))
    const netns = wan.netns(site)
    const inside = netns === undefined ? [] : ['ip', 'netns', 'exec', netns]
    const child = spawnOwned([...inside, command, ...words, '-S', '-incoming', incoming], {
      stdio: ['pipe', 'pipe', 'pipe'],
    })
    let said = ''
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-2000)
    })
    try {
      const stdio = Duplex.from({ readable: child.stdout!, writable: child.stdin! })
      const qmp = await QmpClient.open(stdio, START_MS)
      return new Qemu(child.pid!, qmp, () => endChild(child))
    } catch (error) {
      await endChild(child)
      throw new Error(`QEMU did not start: ${said || String(error)}`)
    }
  }

  async configure({ capabilities = {}, parameters = {} }: MigrationSettings): Promise<void> {
    const all = Object.entries(capabilities).map(([capability, state]) => ({ capability, state }))
    await this.qmp.execute('migrate-set-capabilities', { capabilities: all })
    await this.qmp.execute('migrate-set-parameters', parameters)
  }

  /** @throws Error where it failed, or is not over in time */
  async migrated(limitMs: number): Promise<MigrationInfo> {
    for (const startMs = performance.now(); performance.now() < startMs + limitMs; await sleep(20)) {
      const info = await this.qmp.execute<MigrationInfo>('query-migrate')
      if (info.status === 'completed') return info
      if (info.status === 'failed' || info.status === 'cancelled') throw new Error(info['error-desc'] ?? info.status)
    }
    throw new Error(`not over after ${limitMs / 1000} s`)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.end()
  }
}

interface Sample {
  readonly seconds: number
  readonly wanBytes: number
  /** Of all threads of both QEMUs, and of both proxies. */
  readonly cpuSeconds: Readonly<Record<string, number>>
  /** Bytes and pages, by the source QEMU. */
  readonly qemuBytes: number
}

async function migrate(method: Method, command: string, wan: OpenedWan): Promise<Sample> {
  const { path: folder, remove } = temporaryFolder('large-guest')
  try {
    const templates = options.store === undefined ? undefined : { store: options.store, setFile: '', sets: 1 }
    await using route = await openRoute(method, wan, folder, templates)
    await using source = await Qemu.start(command, wan, 'source', folder, `exec:cat '${stream}'`)
    await source.migrated(START_MS)
    await using destination = await Qemu.start(command, wan, 'destination', folder, 'defer')
    await destination.configure(route.destination)
    await destination.qmp.execute('migrate-incoming', { uri: route.targetUri })
    await source.configure({ ...route.source, parameters: { ...PARAMETERS, ...route.source.parameters } })
    const cpu = (): Record<string, number> => ({
      'source qemu': ownSeconds(source.pid),
      'destination qemu': ownSeconds(destination.pid),
      ...route.cpuSeconds(source as never, destination as never), // of pipes alone, which ask for the processes below
    })
    const [before, passed] = [cpu(), await wan.counters()]
    const startMs = performance.now()
    await source.qmp.execute('migrate', { uri: route.sourceUri })
    let info: MigrationInfo
    try {
      ;[info] = await Promise.all([source.migrated(LIMIT_MS), destination.migrated(LIMIT_MS)])
    } catch (cause) {
      throw new Error(`${(cause as Error).message}\n${route.log}`, { cause })
    }
    const seconds = (performance.now() - startMs) / 1000
    const after = cpu()
    const now = await wan.counters()
    const cpuSeconds = Object.fromEntries(
      Object.entries(after).map(([part, value]) => [part, value - (before[part] ?? 0)]),
    )
    return {
      seconds,
      wanBytes: now.forward + now.back - passed.forward - passed.back,
      cpuSeconds,
      qemuBytes: info.ram?.transferred ?? 0,
    }
  } finally {
    remove()
  }
}

const found = await qemu10()
if (found.qemu === undefined) throw new Error(found.skip)
const startMs = performance.now()
const load = loadavg()[0]!
const samples = new Map<Method, Sample[]>(methods.map(method => [method, []]))
await using wan = await openWan(options.link)
for (let round = 0; round < Number(options.rounds); round++) {
  for (const method of methods) {
    if (performance.now() - startMs > Number(options.minutes) * 60_000) continue
    const sample = await migrate(method, found.qemu.command, wan)
    samples.get(method)!.push(sample)
    const cpu = Object.entries(sample.cpuSeconds).map(([part, seconds]) => `${part} ${seconds.toFixed(1)}`)
    process.stderr.write(
      `${method}: ${sample.seconds.toFixed(2)} s, ${(sample.wanBytes / 1e6).toFixed(1)} MB; CPU s: ${cpu.join(', ')}\n`,
    )
  }
}

const of = (method: Method, value: (sample: Sample) => number): number => median(samples.get(method)!.map(value))
const table = new Table({
  head: ['', 'seconds', 'from', 'to', 'of direct', 'MB on the WAN', 'CPU s', 'rounds'],
  style: { head: [], border: [], compact: true },
})
for (const [method, list] of samples) {
  if (list.length === 0) continue
  const times = list.map(({ seconds }) => seconds)
  const direct = samples.get('direct')?.length ? of('direct', ({ seconds }) => seconds) : Number.NaN
  table.push([
    method,
    median(times).toFixed(2),
    Math.min(...times).toFixed(2),
    Math.max(...times).toFixed(2),
    (median(times) / direct).toFixed(3),
    (of(method, ({ wanBytes }) => wanBytes) / 1e6).toFixed(1),
    of(method, ({ cpuSeconds }) => Object.values(cpuSeconds).reduce((sum, one) => sum + one, 0)).toFixed(1),
    list.length,
  ])
}
const { workload, memoryMb, kernel } = captured
const about = `${options.stream}: ${memoryMb} MB, ${workload}, ${kernel}; ${options.link} (${wan.kind}); QEMU ${found.qemu.version}; load ${load.toFixed(2)} at the start`
process.stdout.write(`${about}\n${table.toString()}\n`)
writeFileSync(options.out, `${JSON.stringify({ about, samples: Object.fromEntries(samples) }, null, 1)}\n`)
