/** A running guest that moves with its disk: mirrored by QEMU first, then its memory. What it cost. */
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Proxies, type ProxiesOptions } from '../../harness/proxies.ts'
import { temporaryFolder } from '../../harness/qemu/cleanup.ts'
import { QemuGuest } from '../../harness/qemu/guest.ts'
import { exportDisk, Mirror } from '../../harness/qemu/mirror.ts'
import type { OpenedWan } from '../../harness/wan/open.ts'
import { descendantSeconds, ownSeconds } from './cpu.ts'
import type { PreparedGuest } from './guests.ts'
import type { Templates } from './methods.ts'
import type { DiskCase, DiskPart, DiskRun } from './results.ts'

const WARM_MS = 3000
/** All blocks of the lab's image, and the memory. A destination gives one session half of its own. */
const LARGE = { source: ['--pool-memory', '1700MiB'], destination: ['--pool-memory', '3400MiB'] }
const HELD = { both: ['--set-memory', '1500MiB'] }
const PARAMETERS = { 'max-bandwidth': 10_000_000_000, 'downtime-limit': 300 }
const FAR = 'far'
const PORT = 10_809
const MEMORY_PORT = 10_810

/** What a way has cost so far. */
interface Cost {
  readonly wanBytes: number
  readonly cpuSeconds: readonly [number, number]
  readonly ms: number
}

/** Whether a case needs the set of the golden image. */
export function knowsImage(disk: DiskCase): boolean {
  return disk === 'known' || disk === 'held'
}

/**
 * Moves a guest once, and compares the disks. What goes wrong is an outcome too.
 * @param templates of the golden image: what both stores have where the case knows it
 * @param effort of the source proxy
 */
export async function moveWithDisk(
  guest: PreparedGuest,
  disk: DiskCase,
  wan: OpenedWan,
  templates: Templates | undefined,
  effort = 'auto',
): Promise<Omit<DiskRun, 'guest' | 'profile' | 'disk' | 'round'>> {
  const { path: folder, remove } = temporaryFolder('disks')
  try {
    const pair = disk === 'direct' ? undefined : await startPair(disk, wan, folder, templates, effort)
    await using _ = { [Symbol.asyncDispose]: async () => await pair?.[Symbol.asyncDispose]() }
    return { outcome: 'completed', ...(await move(guest, disk, wan, folder, pair)) }
  } catch (error) {
    return { outcome: 'failed', reason: (error as Error).message, downtimeMs: null }
  } finally {
    remove()
  }
}

async function move(
  guest: PreparedGuest,
  disk: DiskCase,
  wan: OpenedWan,
  folder: string,
  pair: Proxies | undefined,
): Promise<Pick<DiskRun, 'mirror' | 'memory' | 'downtimeMs'>> {
  const at = (site: 'source' | 'destination') => {
    const netns = wan.netns(site)
    return netns === undefined ? {} : { netns }
  }
  const { source: kept, destination: twin } = await guest.start(folder, at('source'))
  await using source = kept
  const far = join(folder, 'far.qcow2')
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', far, '4G'])
  const own = (word: string) =>
    word.replace(join(folder, 'disk.qcow2'), far).replace('id=disk,', `id=disk,node-name=${FAR},`)
  const boot = disk === 'memory' ? twin.boot! : twin.boot!.map(own)
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
  if (disk === 'memory') {
    const settings = { capabilities: { 'return-path': true }, parameters: PARAMETERS }
    await destination.listen(uris.target, { capabilities: settings.capabilities })
    const stats = await source.migrate(uris.source, settings)
    return { memory: part(began, await cost(), stats.transferredBytes), downtimeMs: stats.downtimeMs }
  }
  await exportDisk(destination, pair?.diskFar ?? direct, FAR)
  const mirror = await Mirror.begin(source, pair?.diskNear ?? direct, { copyMode: 'background' })
  await mirror.ready(3_600_000)
  const ready = await cost()
  const stats = await mirror.follow(destination, uris, { parameters: PARAMETERS })
  const ended = await cost()
  const told = await pair?.disk()
  await source.quit()
  const compared = execFileSync('qemu-img', ['compare', '-U', join(folder, 'disk.qcow2'), far], { encoding: 'utf8' })
  if (!compared.includes('identical')) throw new Error(compared)
  return {
    mirror: part(began, ready, told?.bytesIn ?? ready.wanBytes - began.wanBytes),
    memory: part(ready, ended, stats.transferredBytes),
    downtimeMs: stats.downtimeMs,
  }
}

function part(from: Cost, to: Cost, qemuBytes: number): DiskPart {
  const seconds = (value: number): number => Math.round(value * 1000) / 1000
  return {
    qemuBytes,
    wanBytes: to.wanBytes - from.wanBytes,
    seconds: seconds((to.ms - from.ms) / 1000),
    cpuSeconds: [seconds(to.cpuSeconds[0] - from.cpuSeconds[0]), seconds(to.cpuSeconds[1] - from.cpuSeconds[1])],
  }
}

async function startPair(
  disk: DiskCase,
  wan: OpenedWan,
  folder: string,
  templates: Templates | undefined,
  effort: string,
): Promise<Proxies> {
  const sizes: ProxiesOptions = disk === 'large' ? LARGE : disk === 'held' ? HELD : {}
  const source = [...(sizes.source ?? []), '--effort', effort]
  const known = knowsImage(disk) ? templates : undefined
  const pair = await Proxies.start(wan, folder, known?.store, { tls: 'psk', disks: true, ...sizes, source })
  try {
    await pair.ready(300_000, known?.sets ?? 0)
    return pair
  } catch (error) {
    await pair[Symbol.asyncDispose]()
    throw error
  }
}
