/**
 * What a guest feels of the pair, beside a direct connection on the same emulated link: its downtime, and how long it
 * waits for a page after a switch to postcopy. Needs root, for network namespaces.
 *
 *   node test/qemu/latency.ts                              everything, five rounds: half an hour
 *   node test/qemu/latency.ts downtime --rounds 1          one of both: downtime, faults
 *   node test/qemu/latency.ts faults --link 100Mbit,40ms --only preempt
 *   node test/qemu/latency.ts --json                       every run, as one JSON object
 *
 * QEMU 10 without KVM, a proxy and a QEMU at each of two sites (scripts/wan/packet-link.ts), TLS between the proxies,
 * with fresh proxies and an empty pool each time. Direct and pair take turns; a row shows the median of the rounds and,
 * in brackets, the smallest and the largest.
 *
 * downtime   a guest that rewrites 16 MB at 4 MB/s. QEMU's own figure, the guest's longest silence by its heartbeat, total
 *            time, bytes on the link both ways.
 * faults     a guest that has 64 MB and touches one page of it after the other: how long each touch takes that finds its
 *            page missing. `idle`: QEMU sends nothing else (max-postcopy-bandwidth 100 kB/s); `busy`: it sends all the
 *            other pages meanwhile, as fast as it can.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { touchCommand } from '../../scripts/guest/touch.ts'
import { type GuestOptions, QemuGuest } from '../../scripts/qemu/guest.ts'
import { reportHeartbeats } from '../../scripts/qemu/heartbeat.ts'
import { type QemuVersion, qemu10 } from '../../scripts/qemu/versions.ts'
import { parseLink } from '../../scripts/wan/link.ts'
import { PacketLink, packetLinkSupport } from '../../scripts/wan/packet-link.ts'
import { Pair, until } from './pair.ts'

const LINKS = ['100Mbit,40ms', '1Gbit,2ms'] as const
const ROUNDS = 5
const MEMORY_MB = 160
const QEMU_PORT = 4444
const DOWNTIME_GUEST = { workload: 'busy', rate: 4, busymb: 16, content: 7, contentmb: 32, hb: 20 } as const
const FAULTS_GUEST = { workload: 'idle', hb: 0 } as const
/** Bytes a second of background pages that leave the link idle. */
const IDLE_BANDWIDTH = 100_000
/** QEMU sees no moment in which it could finish by itself. (A product below 1000, no bytes at all, is what it takes for done.) */
const ENDLESS = { 'downtime-limit': 1, 'avail-switchover-bandwidth': 1_000_000 }
/** Touches that found their page missing: enough for a 95th percentile. */
const FAULTS_WANTED = 120
const FAULTS_MS = 15_000
/** A touch longer than this share of the round trip waited for its page. */
const FAULT_SHARE = 0.5

const ways = ['direct', 'pair'] as const
type Way = (typeof ways)[number]

/** Figures of one run, by name; their names tell the unit. */
type Figures = Readonly<Record<string, number>>

interface Run {
  readonly what: 'downtime' | 'faults'
  readonly link: string
  /** What differs besides the way. */
  readonly mode: string
  readonly way: Way
  readonly figures: Figures
}

/** Where the source QEMU migrates to, and where the destination QEMU listens. */
interface Route extends AsyncDisposable {
  readonly sourceUri: string
  readonly targetUri: string
}

async function openRoute(way: Way, link: PacketLink): Promise<Route> {
  if (way === 'direct') {
    const uri = `tcp:${link.destination.address}:${QEMU_PORT}`
    return { sourceUri: uri, targetUri: uri, [Symbol.asyncDispose]: async () => {} }
  }
  const pair = await Pair.start({ link, tls: 'psk' })
  return {
    sourceUri: pair.sourceUri(),
    targetUri: pair.targetUri(),
    [Symbol.asyncDispose]: () => pair[Symbol.asyncDispose](),
  }
}

interface Sides extends AsyncDisposable {
  readonly source: QemuGuest
  readonly destination: QemuGuest
}

async function startGuests(
  qemu: QemuVersion,
  link: PacketLink,
  workload: NonNullable<GuestOptions['workload']>,
): Promise<Sides> {
  const options = { qemu, memoryMb: MEMORY_MB, workload }
  const source = await QemuGuest.start({ ...options, name: 'source', netns: link.source.netns, booted: true })
  try {
    const netns = link.destination.netns
    const destination = await QemuGuest.start({ ...options, name: 'destination', netns, incoming: 'defer' })
    const quit = async () => void (await Promise.all([source.quit(), destination.quit()]))
    return { source, destination, [Symbol.asyncDispose]: quit }
  } catch (error) {
    await source.quit()
    throw error
  }
}

// Downtime ------------------------------------------------------------------------------------------------------------

async function downtime(qemu: QemuVersion, link: PacketLink, way: Way): Promise<Figures> {
  await using route = await openRoute(way, link)
  await using guests = await startGuests(qemu, link, DOWNTIME_GUEST)
  const { source, destination } = guests
  await source.waitHeartbeats(50)
  const settings = { capabilities: { 'return-path': true } }
  await destination.listen(route.targetUri, settings)
  const before = await link.counters()
  const stats = await source.migrate(route.sourceUri, { ...settings, parameters: { 'max-bandwidth': 0 } })
  await destination.waitHeartbeats(25)
  const after = await link.counters()
  const beats = reportHeartbeats(source.heartbeats, destination.heartbeats)
  if (beats.disorder > 0) throw new Error('the guest ran on both sides')
  const check = await destination.checkBusy()
  if (!check.ok) throw new Error('the guest finds its memory wrong')
  return {
    'downtime by QEMU, ms': stats.downtimeMs,
    'silence of the guest, ms': Math.round(beats.downtimeMs),
    'total time, s': stats.totalMs / 1000,
    passes: stats.passes,
    'MB on the link': (after.sentBytes - before.sentBytes + after.backSentBytes - before.backSentBytes) / 1e6,
  }
}

// Page faults ---------------------------------------------------------------------------------------------------------

interface FaultsMode {
  readonly name: string
  readonly preempt: boolean
  readonly busy: boolean
}
const faultsModes: readonly FaultsMode[] = [
  { name: 'idle', preempt: false, busy: false },
  { name: 'preempt, idle', preempt: true, busy: false },
  { name: 'busy', preempt: false, busy: true },
  { name: 'preempt, busy', preempt: true, busy: true },
]

/** Microseconds of each touch that a guest's console shows. */
const touches = (serial: string): number[] => [...serial.matchAll(/^touch (\d+)$/gm)].map(found => Number(found[1]))

async function faults(qemu: QemuVersion, link: PacketLink, way: Way, mode: FaultsMode): Promise<Figures> {
  await using route = await openRoute(way, link)
  await using guests = await startGuests(qemu, link, FAULTS_GUEST)
  const { source, destination } = guests
  await source.ask(touchCommand(), /^touch ready$/m)
  const capabilities = { 'postcopy-ram': true, 'postcopy-preempt': mode.preempt }
  await destination.listen(route.targetUri, { capabilities: { ...capabilities, 'postcopy-blocktime': true } })
  // Once through all of memory, so that later nothing but the program's own pages is missing.
  await source.startMigration(route.sourceUri, {
    capabilities,
    parameters: { 'max-bandwidth': 0, ...ENDLESS },
  })
  await until(
    async () => ((await source.migrationInfo()).ram?.['dirty-sync-count'] ?? 0) >= 2,
    60_000,
    () => 'the first pass does not end',
  )
  await source.configure({
    parameters: { 'max-bandwidth': IDLE_BANDWIDTH, 'max-postcopy-bandwidth': mode.busy ? 0 : IDLE_BANDWIDTH },
  })
  await source.ask('sh : > /run/go', /^touch goes$/m, 10_000)
  await source.qmp.execute('migrate-start-postcopy')
  await destination.waitStatus('running', 20_000)
  const start = performance.now()
  const missedUs = FAULT_SHARE * 1000 * link.link.roundTripMs
  const missed = () => touches(destination.serial).filter(us => us > missedUs)
  while (performance.now() - start < FAULTS_MS && missed().length < FAULTS_WANTED) {
    if ((await destination.migrationInfo()).status === 'completed') break
    await sleep(50)
  }
  const info = (await destination.migrationInfo()) as unknown as Record<string, number>
  const waits = missed().map(us => us / 1000)
  if (waits.length === 0) throw new Error(`no touch found its page missing: ${destination.serial.slice(-200)}`)
  const seconds = (performance.now() - start) / 1000
  return {
    'least, ms': Math.min(...waits),
    'p50, ms': quantile(waits, 0.5),
    'p95, ms': quantile(waits, 0.95),
    'max, ms': Math.max(...waits),
    faults: waits.length,
    'of touches': touches(destination.serial).length,
    'of seconds': seconds,
    'blocked by QEMU, ms': info['postcopy-blocktime'] ?? Number.NaN,
  }
}

// Tables --------------------------------------------------------------------------------------------------------------

function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))]!
}

function print(runs: readonly Run[]): void {
  for (const what of ['downtime', 'faults'] as const) {
    const shown = runs.filter(run => run.what === what)
    const names = Object.keys(shown[0]?.figures ?? {})
    if (names.length === 0) continue
    const table = new Table({
      head: ['link', 'mode', 'way', ...names],
      style: { head: [], border: [], compact: true },
    })
    for (const group of Map.groupBy(shown, run => `${run.link}\n${run.mode}\n${run.way}`).values()) {
      const { link, mode, way } = group[0]!
      const cells = names.map(name => {
        const values = group.map(run => run.figures[name]!).filter(value => !Number.isNaN(value))
        if (values.length === 0) return ''
        const [low, middle, high] = [Math.min(...values), quantile(values, 0.5), Math.max(...values)].map(format)
        return low === high ? low : `${middle} (${low} to ${high})`
      })
      table.push([link, mode, way, ...cells])
    }
    console.log(`\n${what}\n${table.toString()}`)
  }
}

const format = (value: number): string =>
  value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1)

// ----------------------------------------------------------------------------------------------------------------------

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: String(ROUNDS) },
    link: { type: 'string', multiple: true, default: [...LINKS] },
    only: { type: 'string', default: '' },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})
if (values.help) {
  console.log(
    'usage: node test/qemu/latency.ts [downtime] [faults] [--rounds N] [--link DESCRIPTION]... [--only MODE] [--json]',
  )
  process.exit(0)
}
const unknown = positionals.find(word => word !== 'downtime' && word !== 'faults')
if (unknown !== undefined) {
  console.error(`error: ${unknown} is neither downtime nor faults`)
  process.exit(2)
}
const support = await packetLinkSupport()
const found = await qemu10()
const skip = 'skip' in support ? support.skip : found.skip
if (skip !== undefined) {
  console.log(`skipped: ${skip}`)
  process.exit(0)
}
const qemu = found.qemu!

const runs: Run[] = []
let failures = 0
async function measure(
  what: Run['what'],
  link: string,
  mode: string,
  run: (packetLink: PacketLink, way: Way) => Promise<Figures>,
): Promise<void> {
  if (positionals.length > 0 && !positionals.includes(what)) return
  if (!`${mode}`.includes(values.only)) return
  for (let round = 0; round < Number(values.rounds); round++) {
    for (const way of round % 2 === 0 ? ways : ways.toReversed()) {
      try {
        // a link of its own: nothing of the run before is under way on it
        await using packetLink = await PacketLink.open(parseLink(link))
        const figures = await run(packetLink, way)
        runs.push({ what, link, mode, way, figures })
        const text = Object.entries(figures).map(([name, value]) => `${name} ${format(value)}`)
        if (!values.json) console.log(`${what} ${link} ${mode} ${way}: ${text.join('; ')}`)
      } catch (error) {
        failures++
        console.error(`${what} ${link} ${mode} ${way}: ${(error as Error).message}`)
      }
    }
  }
}

for (const link of values.link) {
  await measure('downtime', link, '', (packetLink, way) => downtime(qemu, packetLink, way))
  for (const mode of faultsModes) {
    await measure('faults', link, mode.name, (packetLink, way) => faults(qemu, packetLink, way, mode))
  }
}
if (values.json) console.log(JSON.stringify(runs, null, 2))
else print(runs)
process.exit(failures > 0 ? 1 : 0)
