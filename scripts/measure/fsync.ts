/**
 * What a mirror in copy mode `write-blocking` costs a guest that syncs what it writes, and how long the guest stands still
 * when its memory follows: a Debian guest of the lab under QEMU 10 that writes 4 KiB and calls fsync, over and over. As root,
 * after `make lab` (or `node scripts/lab/lab.ts --base-only`).
 *
 *   node scripts/measure/fsync.ts [--link 100Mbit,40ms] [--rounds 3] [--cases local,direct,far,early]
 *
 *   local    no mirror: an fsync on the host's own disk; what it takes is what the others are held against
 *   direct   the mirror and the memory go past the pair
 *   far      through it, writes are answered by the far side
 *   early    through it, writes are answered beside the source
 *
 * What both disks have in common both have from the beginning (`sync: top`). Milliseconds by the guest's clock; downtime from
 * the guest's stop to its last byte at the destination, as QEMU's events have it, and what it went by: the disks' flush (the
 * host's own too), the end of the mirror, the rest of the memory. Medians over all rounds, which take turns.
 */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { median } from '../harness/median.ts'
import { Proxies } from '../harness/proxies.ts'
import { temporaryFolder } from '../harness/qemu/cleanup.ts'
import { QemuGuest } from '../harness/qemu/guest.ts'
import { exportDisk, Mirror, type StandStill } from '../harness/qemu/mirror.ts'
import { qemu10 } from '../harness/qemu/versions.ts'
import { openWan } from '../harness/wan/open.ts'
import { type ComparedGuest, type PreparedGuest, prepareGuest } from './compare/guests.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const cache = join(root, '.cache/disks')
const CASES = ['local', 'direct', 'far', 'early'] as const
type Case = (typeof CASES)[number]
const FAR = 'far'
const PORT = 10_809
const MEMORY_PORT = 10_810
/** Syncs that are counted, behind those in which a mirror has begun. */
const SYNCS = 200
const SKIPPED = 20
const PARAMETERS = { 'max-bandwidth': 10_000_000_000, 'downtime-limit': 300 }

const GUEST: ComparedGuest = {
  ...{ name: 'fsyncs', workload: '4 KiB written and synced', memoryMb: 384, templates: [] },
  debian: { kernel: 'k1', labWorkload: 'idle', load: { file: 'fsyncs', init: true } },
}

const STEPS = ['flushMs', 'mirrorMs', 'memoryMs'] as const
const downtime = (still: StandStill): number => STEPS.reduce((sum, step) => sum + still[step], 0)

interface Result {
  /** Of each sync. */
  readonly ms: readonly number[]
  readonly still: StandStill | undefined
}

/** The next syncs of a guest, in milliseconds each. */
async function syncsOf(guest: QemuGuest): Promise<number[]> {
  const from = guest.serial.length
  const lines = (): RegExpMatchArray[] => [...guest.serial.slice(from).matchAll(/^FSYNCS \d+ ([\d ]+)$/gm)]
  const want = (SKIPPED + SYNCS) / 20
  await guest.waitSerial(new RegExp(`(^FSYNCS [^]*?){${want + 1}}`, 'm'), 600_000, from)
  const taken = lines().flatMap(([, numbers]) => numbers!.trim().split(' ').map(Number))
  return taken.slice(SKIPPED, SKIPPED + SYNCS).map(micros => micros / 1000)
}

async function measure(name: Case, link: string, prepared: PreparedGuest): Promise<Result> {
  const { path: folder, remove } = temporaryFolder('fsync')
  try {
    await using wan = await openWan(link)
    const isPair = name === 'far' || name === 'early'
    const source = ['--disk-answers', name === 'early' ? 'early' : 'far']
    const pair = isPair ? await Proxies.start(wan, folder, undefined, { tls: 'psk', disks: true, source }) : undefined
    await using _ = { [Symbol.asyncDispose]: async () => await pair?.[Symbol.asyncDispose]() }
    await pair?.ready()
    const at = (site: 'source' | 'destination') => {
      const netns = wan.netns(site)
      return netns === undefined ? {} : { netns }
    }
    const near = join(folder, 'disk.qcow2')
    const far = join(folder, 'far.qcow2')
    const { source: kept, destination: twin } = await prepared.start(folder, at('source'), 'writeback')
    await using guest = kept
    const base = join(cache, GUEST.name, 'disk.qcow2')
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', far])
    await guest.cont()
    if (name === 'local') return { ms: await syncsOf(guest), still: undefined }
    const boot = twin.boot!.map(word => word.replace(near, far).replace('id=disk,', `id=disk,node-name=${FAR},`))
    await using destination = await QemuGuest.start({
      ...{ ...twin, boot, ...at('destination') },
      ...{ name: 'destination', incoming: 'defer', paused: true },
    })
    const direct = { host: wan.listenHost, port: PORT }
    await exportDisk(destination, pair?.diskFar ?? direct, FAR)
    const mirror = await Mirror.begin(guest, pair?.diskNear ?? direct, { copyMode: 'write-blocking', sync: 'top' })
    await mirror.ready(600_000)
    const ms = await syncsOf(guest)
    const past = `tcp:${wan.listenHost}:${MEMORY_PORT}`
    const uris = pair ? { source: pair.sourceUri, target: pair.targetUri } : { source: past, target: past }
    const { still } = await mirror.follow(destination, uris, { parameters: PARAMETERS })
    await guest.quit()
    const compared = execFileSync('qemu-img', ['compare', '-U', near, far], { encoding: 'utf8' })
    if (!compared.includes('identical')) throw new Error(compared)
    return { ms, still }
  } finally {
    remove()
  }
}

const { values } = parseArgs({
  options: {
    link: { type: 'string', default: '100Mbit,40ms' },
    rounds: { type: 'string', default: '3' },
    cases: { type: 'string', default: CASES.join(',') },
  },
})
const wanted = values.cases.split(',')
const unknown = wanted.find(name => !CASES.some(known => known === name))
if (unknown !== undefined) throw new Error(`there is no case ${unknown}: ${CASES.join(', ')}`)
if (!existsSync(join(root, '.cache/lab/base/disk.raw'))) throw new Error('no base image of the lab: run `make lab`')
const { qemu, skip } = await qemu10()
if (!qemu) throw new Error(skip)
const report = (text: string) => console.error(`${(performance.now() / 1000).toFixed(0)} s  ${text}`)
const prepared = await prepareGuest(GUEST, qemu, 'tcg', cache, report)
const results = new Map<Case, Result[]>(CASES.map(name => [name, []]))
for (let round = 0; round < Number(values.rounds); round++) {
  for (const name of CASES) {
    if (!wanted.includes(name)) continue
    report(`round ${round + 1}: ${name}`)
    results.get(name)!.push(await measure(name, values.link, prepared))
  }
}
console.log(`${values.link}, ${values.rounds} rounds of ${SYNCS} syncs`)
console.log('case | fsync ms, median | 9 of 10 | of local | downtime ms, median | flush | mirror | memory')
const local = median(results.get('local')!.flatMap(({ ms }) => ms))
for (const [name, all] of results) {
  const ms = all.flatMap(result => result.ms).sort((a, b) => a - b)
  if (ms.length === 0) continue
  const stood = all.flatMap(({ still }) => still ?? [])
  const steps = [stood.map(downtime), ...STEPS.map(step => stood.map(still => still[step]))]
  const middle = median(ms)
  const nine = ms[Math.floor(0.9 * ms.length)]!
  const columns = [middle.toFixed(1), nine.toFixed(1), (middle / local).toFixed(2)]
  console.log([name, ...columns, ...steps.map(ms => median(ms).toFixed(0))].join(' | '))
}
