/**
 * What moving a running Debian guest with its disk costs: mirrored by QEMU 10, then its memory, over one link; past the pair,
 * and through it with the golden image in both stores and with nothing known. As root, after `make lab` (or its base image:
 * `node scripts/lab/lab.ts --base-only`).
 *
 *   node scripts/measure/disks.ts [--link 100Mbit,40ms] [--cases direct,known,held,unknown,large,memory] [--effort N] [--out FILE]
 *
 *   direct     past the pair
 *   known      the image that the guest's disk began as is in both stores
 *   held       the same, and --set-memory holds all of it, so that none is read from a disk
 *   unknown    nothing is known
 *   large      nothing is known, and the pool (--pool-memory) holds all of the disk that is in use
 *   memory     the memory alone, nothing is known: its disk is shared
 *
 * Bytes are those of packets on the link, both ways. Seconds count from the start of the mirror; CPU is that of both proxies.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import type { PageCounts } from '../../src/migration/summary.ts'
import { formatSize } from '../../src/quantity.ts'
import { Proxies, type ProxiesOptions, pageferry } from '../harness/proxies.ts'
import { temporaryFolder } from '../harness/qemu/cleanup.ts'
import { QemuGuest } from '../harness/qemu/guest.ts'
import { exportDisk, Mirror } from '../harness/qemu/mirror.ts'
import { qemu10 } from '../harness/qemu/versions.ts'
import { type OpenedWan, openWan } from '../harness/wan/open.ts'
import { descendantSeconds, ownSeconds } from './compare/cpu.ts'
import { type ComparedGuest, type PreparedGuest, prepareGuest } from './compare/guests.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const image = join(root, '.cache/lab/base/disk.raw')
const cache = join(root, '.cache/disks')
const CASES = ['direct', 'known', 'held', 'unknown', 'large', 'memory'] as const
type Case = (typeof CASES)[number]
const WARM_MS = 3000
/** All blocks of the lab's image, and the memory. A destination gives one session half of its own. */
const LARGE = { source: ['--pool-memory', '1700MiB'], destination: ['--pool-memory', '3400MiB'] }
const HELD = { both: ['--set-memory', '1500MiB'] }
const PARAMETERS = { 'max-bandwidth': 10_000_000_000, 'downtime-limit': 300 }
const FAR = 'far'
const PORT = 10_809
const MEMORY_PORT = 10_810

const GUEST: ComparedGuest = {
  ...{ name: 'nginx-disk', workload: 'nginx under wrk', memoryMb: 768, templates: [] },
  debian: { kernel: 'k1', labWorkload: 'nginx' },
}

/** Part of a move: its disk, or its memory. */
interface Part {
  readonly qemuBytes: number
  readonly wanBytes: number
  readonly seconds: number
  /** Of the source proxy, and of the destination proxy. */
  readonly cpuSeconds: readonly [number, number]
  readonly pages?: PageCounts
}

interface Result {
  readonly case: Case
  readonly link: string
  readonly disk?: Part
  readonly memory: Part
  readonly downtimeMs: number
}

/** What a way has cost so far. */
interface Cost {
  readonly wanBytes: number
  readonly cpuSeconds: readonly [number, number]
  readonly ms: number
}

async function measure(name: Case, link: string, prepared: PreparedGuest, store: string | undefined): Promise<Result> {
  const { path: folder, remove } = temporaryFolder('disks')
  try {
    await using wan = await openWan(link)
    const pair = name === 'direct' ? undefined : await startPair(name, wan, folder, store)
    await using _ = { [Symbol.asyncDispose]: async () => await pair?.[Symbol.asyncDispose]() }
    const at = (site: 'source' | 'destination') => {
      const netns = wan.netns(site)
      return netns === undefined ? {} : { netns }
    }
    const { source: kept, destination: twin } = await prepared.start(folder, at('source'))
    await using source = kept
    const far = join(folder, 'far.qcow2')
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', far, '4G'])
    const own = (word: string) =>
      word.replace(join(folder, 'disk.qcow2'), far).replace('id=disk,', `id=disk,node-name=${FAR},`)
    const boot = name === 'memory' ? twin.boot! : twin.boot!.map(own)
    await using destination = await QemuGuest.start({
      ...{ ...twin, boot, ...at('destination') },
      ...{ name: 'destination', incoming: 'defer', paused: true },
    })
    await source.cont()
    await sleep(WARM_MS)
    const cost = async (): Promise<Cost> => {
      const { forward, back } = await wan.counters()
      const cpu = (site: 'source' | 'destination'): number =>
        pair ? ownSeconds(pair.pids[site]) + descendantSeconds(pair.pids[site]) : 0
      return { wanBytes: forward + back, cpuSeconds: [cpu('source'), cpu('destination')], ms: performance.now() }
    }
    const direct = { host: wan.listenHost, port: PORT }
    const uris = pair
      ? { source: pair.sourceUri, target: pair.targetUri }
      : { source: `tcp:${wan.listenHost}:${MEMORY_PORT}`, target: `tcp:${wan.listenHost}:${MEMORY_PORT}` }
    const began = await cost()
    if (name === 'memory') {
      const settings = { capabilities: { 'return-path': true }, parameters: PARAMETERS }
      await destination.listen(uris.target, { capabilities: settings.capabilities })
      const stats = await source.migrate(uris.source, settings)
      const told = await pair!.summary()
      const memory = part(began, await cost(), stats.transferredBytes, told?.pages)
      return { case: name, link, memory, downtimeMs: stats.downtimeMs }
    }
    await exportDisk(destination, pair?.diskFar ?? direct, FAR)
    const mirror = await Mirror.begin(source, pair?.diskNear ?? direct, { copyMode: 'background' })
    await mirror.ready(3_600_000)
    const ready = await cost()
    const stats = await mirror.follow(destination, uris, { parameters: PARAMETERS })
    const ended = await cost()
    const told = { disk: await pair?.disk(), memory: await pair?.summary() }
    await source.quit()
    const compared = execFileSync('qemu-img', ['compare', '-U', join(folder, 'disk.qcow2'), far], { encoding: 'utf8' })
    if (!compared.includes('identical')) throw new Error(compared)
    return {
      ...{ case: name, link, downtimeMs: stats.downtimeMs },
      disk: part(began, ready, told.disk?.bytesIn ?? ready.wanBytes - began.wanBytes, told.disk?.blocks),
      memory: part(ready, ended, stats.transferredBytes, told.memory?.pages),
    }
  } finally {
    remove()
  }
}

function part(from: Cost, to: Cost, qemuBytes: number, pages: PageCounts | undefined): Part {
  return {
    qemuBytes,
    wanBytes: to.wanBytes - from.wanBytes,
    seconds: (to.ms - from.ms) / 1000,
    cpuSeconds: [to.cpuSeconds[0] - from.cpuSeconds[0], to.cpuSeconds[1] - from.cpuSeconds[1]],
    ...(pages ? { pages } : {}),
  }
}

async function startPair(name: Case, wan: OpenedWan, folder: string, store: string | undefined): Promise<Proxies> {
  const sizes: ProxiesOptions = name === 'large' ? LARGE : name === 'held' ? HELD : {}
  const source = [...(sizes.source ?? []), '--effort', values.effort]
  const options = { tls: 'psk', disks: true, ...sizes, source } as const
  const knows = name === 'known' || name === 'held'
  const pair = await Proxies.start(wan, folder, knows ? store : undefined, options)
  try {
    await pair.ready(300_000, knows ? 1 : 0)
    return pair
  } catch (error) {
    await pair[Symbol.asyncDispose]()
    throw error
  }
}

/** A store with the set of the image that the guest's disk began as. */
async function goldenStore(): Promise<string> {
  const store = join(cache, 'store')
  if (!existsSync(store)) execFileSync('mkdir', ['-p', cache])
  if (!existsSync(store)) await pageferry('template', 'build', '--store', store, image)
  return store
}

const cpu = ({ cpuSeconds }: Part): string => cpuSeconds.map(seconds => seconds.toFixed(1)).join(' + ')

function table(results: readonly Result[]): string {
  const table = new Table({
    head: ['', 'disk: of QEMU', 'WAN', 's', 'CPU s', 'memory: of QEMU', 'WAN', 's', 'CPU s', 'in all: WAN', 's'],
    style: { head: [], border: [], compact: true },
  })
  for (const { case: name, disk, memory } of results) {
    const columns = (part: Part | undefined) =>
      part
        ? [formatSize(part.qemuBytes), formatSize(part.wanBytes), part.seconds.toFixed(1), cpu(part)]
        : ['', '', '', '']
    const all = { wanBytes: (disk?.wanBytes ?? 0) + memory.wanBytes, seconds: (disk?.seconds ?? 0) + memory.seconds }
    table.push([name, ...columns(disk), ...columns(memory), formatSize(all.wanBytes), all.seconds.toFixed(1)])
  }
  return table.toString()
}

const { values } = parseArgs({
  options: {
    link: { type: 'string', default: '100Mbit,40ms' },
    cases: { type: 'string', default: CASES.join(',') },
    effort: { type: 'string', default: 'auto' },
    out: { type: 'string', default: join(cache, 'results.json') },
  },
})
const wanted = values.cases.split(',')
const unknown = wanted.find(name => !CASES.some(known => known === name))
if (unknown !== undefined) throw new Error(`there is no case ${unknown}: ${CASES.join(', ')}`)
if (!existsSync(image)) throw new Error(`there is no ${image}: run \`make lab\``)
const { qemu, skip } = await qemu10()
if (!qemu) throw new Error(skip)
const report = (text: string) => console.error(`${(performance.now() / 1000).toFixed(0)} s  ${text}`)
const prepared = await prepareGuest(GUEST, qemu, 'tcg', cache, report)
const store = wanted.includes('known') || wanted.includes('held') ? await goldenStore() : undefined
const results: Result[] = []
for (const name of CASES.filter(name => wanted.includes(name))) {
  report(name)
  results.push(await measure(name, values.link, prepared, store))
  writeFileSync(values.out, `${JSON.stringify(results, null, 1)}\n`)
}
console.log(table(results))
