/**
 * What a guest feels of the pair, beside a direct connection on the same emulated link: its downtime, and how long it
 * waits for a page after a switch to postcopy. Needs root, for network namespaces.
 *
 *   node test/qemu/latency.ts                              everything, five rounds: half an hour
 *   node test/qemu/latency.ts downtime --rounds 1          some: downtime, faults, requests
 *   node test/qemu/latency.ts faults --link 100Mbit,40ms --only preempt
 *   node test/qemu/latency.ts downtime --unix              a third way: QEMU and the pair meet at Unix sockets
 *   node test/qemu/latency.ts --json                       every run, as one JSON object
 *
 * QEMU 10 without KVM, a proxy and a QEMU at each of two sites (scripts/harness/wan/packet-link.ts), TLS between the proxies,
 * with fresh proxies and an empty pool each time. Direct and pair take turns; a row shows the median of the rounds and,
 * in brackets, the smallest and the largest.
 *
 * downtime   a guest that rewrites 16 MB at 4 MB/s. QEMU's own figure, the guest's longest silence by its heartbeat, total
 *            time, bytes on the link both ways.
 * faults     a guest that has 64 MB and touches one page of it after the other: how long each touch takes that finds its
 *            page missing. `idle`: QEMU sends nothing else (max-postcopy-bandwidth 100 kB/s); `busy`: it sends all the
 *            other pages meanwhile, as fast as it can. Few touches find their page missing then, so the time that QEMU says
 *            the guest stood still, over the pages that it asked for (its kernel's too), tells more.
 * requests   what the proxies themselves add to a fault, without QEMU and without a link: a page request goes back, a page
 *            comes on a preempt channel, half of it noise, 100 times a second.
 */

import { once } from 'node:events'
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { touchCommand } from '../../scripts/harness/guest/touch.ts'
import { type GuestOptions, QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { reportHeartbeats } from '../../scripts/harness/qemu/heartbeat.ts'
import { type QemuVersion, qemu10 } from '../../scripts/harness/qemu/versions.ts'
import { parseLink } from '../../scripts/harness/wan/link.ts'
import { PacketLink, packetLinkSupport } from '../../scripts/harness/wan/packet-link.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { until } from '../helpers/until.ts'
import { Pair } from './pair.ts'

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

type Way = 'direct' | 'pair' | 'pair, unix'

const subjects = ['requests', 'downtime', 'faults'] as const
type What = (typeof subjects)[number]

/** Figures of one run, by name; their names tell the unit. */
type Figures = Readonly<Record<string, number>>

interface Run {
  readonly what: What
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
  const pair = await Pair.start({ link, tls: 'psk', unix: way === 'pair, unix' })
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
    'the end of the first pass',
    async () => ((await source.migrationInfo()).ram?.['dirty-sync-count'] ?? 0) >= 2,
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
  const asked = (await source.migrationInfo()).ram?.['postcopy-requests'] ?? Number.NaN
  const waits = missed().map(us => us / 1000)
  const seconds = (performance.now() - start) / 1000
  return {
    'least, ms': quantile(waits, 0),
    'p50, ms': quantile(waits, 0.5),
    'p95, ms': quantile(waits, 0.95),
    'max, ms': quantile(waits, 1),
    faults: waits.length,
    'of touches': touches(destination.serial).length,
    'of seconds': seconds,
    'blocked a request, ms': (info['postcopy-blocktime'] ?? Number.NaN) / asked,
  }
}

// Requests ------------------------------------------------------------------------------------------------------------

/** Pages asked for, and the time between two of them: as long as a guest runs on after a fault. */
const REQUESTS = 400
const REQUEST_EVERY_MS = 10
const BLOCK_NAME = Buffer.from('\x06pc.ram', 'latin1')
/** RECV_BITMAP: how the main channel of a recovery begins, behind which the proxies know that a guest waits. */
const RECOVERY = Buffer.concat([Buffer.from('08000a0007', 'hex'), BLOCK_NAME])
/** REQ_PAGES, one page at 0. Wire format 5.1. */
const REQUEST = Buffer.from('0004000c000000000000000000001000', 'hex')

/** A PAGE record. */
function pageRecord(page: number): Buffer {
  const head = Buffer.alloc(8)
  head.writeBigUInt64BE(BigInt(page * 4096) | (page === 0 ? 0x08n : 0x28n))
  const body = Buffer.alloc(4096)
  for (let at = 0; at < 2048; at += 4) body.writeUInt32LE(Math.floor(Math.random() * 2 ** 32), at)
  return Buffer.concat(page === 0 ? [head, BLOCK_NAME, body] : [head, body])
}

/** Waits until so many bytes have come. */
class Taker {
  private bytes = 0
  private look = (): void => {}

  constructor(socket: net.Socket) {
    socket.on('data', chunk => {
      this.bytes += chunk.length
      this.look()
    })
  }

  async take(count: number): Promise<void> {
    while (this.bytes < count) {
      await new Promise<void>(done => {
        this.look = done
      })
    }
    this.bytes -= count
  }
}

function portOf(uri: string): number {
  const address = parseAddress(uri)
  if (address.kind !== 'tcp') throw new Error('a TCP address was expected')
  return address.port
}

async function requests(way: Way): Promise<Figures> {
  await using pair = way !== 'direct' ? await Pair.start({ processes: true, tls: 'psk', wan: 'none' }) : undefined
  const target = pair ? portOf(pair.targetUri()) : await claimPort()
  const port = pair ? portOf(pair.sourceUri()) : target
  const arrived: net.Socket[] = []
  const server = net.createServer({ noDelay: true }, socket => arrived.push(socket)).listen(target, '127.0.0.1')
  await once(server, 'listening')
  const open = async (first: Buffer): Promise<readonly [net.Socket, net.Socket]> => {
    const known = arrived.length
    const from = net.connect({ host: '127.0.0.1', port, noDelay: true })
    from.write(first)
    const look = () => arrived[known]
    return [from, await until('what should arrive', look)]
  }
  const [main, mainAt] = await open(RECOVERY)
  const first = pageRecord(0)
  const [preempt, preemptAt] = await open(first)
  mainAt.resume()
  const [asked, pages] = [new Taker(main), new Taker(preemptAt)]
  await pages.take(first.length)
  const times: number[] = []
  for (let page = 1; page <= REQUESTS; page++) {
    await sleep(REQUEST_EVERY_MS)
    const record = pageRecord(page)
    const start = performance.now()
    mainAt.write(REQUEST)
    await asked.take(REQUEST.length)
    preempt.write(record)
    await pages.take(record.length)
    times.push(performance.now() - start)
  }
  for (const socket of [main, preempt, ...arrived]) socket.destroy()
  server.close()
  return { 'least, ms': Math.min(...times), 'p50, ms': quantile(times, 0.5), 'p95, ms': quantile(times, 0.95) }
}

// Tables --------------------------------------------------------------------------------------------------------------

function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? Number.NaN
}

function print(runs: readonly Run[]): void {
  for (const what of subjects) {
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
  value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(value < 10 ? 2 : 1)

// ----------------------------------------------------------------------------------------------------------------------

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: String(ROUNDS) },
    link: { type: 'string', multiple: true, default: [...LINKS] },
    only: { type: 'string', default: '' },
    unix: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})
if (values.help) {
  console.log(
    'usage: node test/qemu/latency.ts [downtime] [faults] [requests] [--rounds N] [--link DESCRIPTION]... [--only MODE] [--unix] [--json]',
  )
  process.exit(0)
}
const unknown = positionals.find(word => !subjects.some(what => what === word))
if (unknown !== undefined) {
  console.error(`error: ${unknown} is none of ${subjects.join(', ')}`)
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

const ways: readonly Way[] = ['direct', 'pair', ...(values.unix ? (['pair, unix'] as const) : [])]
const runs: Run[] = []
let failures = 0
async function measure(
  what: What,
  link: string,
  mode: string,
  run: (packetLink: PacketLink, way: Way) => Promise<Figures>,
): Promise<void> {
  await compare(what, link, mode, async way => {
    // a link of its own: nothing of the run before is under way on it
    await using packetLink = await PacketLink.open(parseLink(link))
    return await run(packetLink, way)
  })
}

async function compare(what: What, link: string, mode: string, run: (way: Way) => Promise<Figures>): Promise<void> {
  if (positionals.length > 0 && !positionals.includes(what)) return
  if (!`${mode}`.includes(values.only)) return
  for (let round = 0; round < Number(values.rounds); round++) {
    for (const way of round % 2 === 0 ? ways : ways.toReversed()) {
      try {
        const figures = await run(way)
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

await compare('requests', 'none', '', requests)
for (const link of values.link) {
  await measure('downtime', link, '', (packetLink, way) => downtime(qemu, packetLink, way))
  for (const mode of faultsModes) {
    await measure('faults', link, mode.name, (packetLink, way) => faults(qemu, packetLink, way, mode))
  }
}
if (values.json) console.log(JSON.stringify(runs, null, 2))
else print(runs)
process.exit(failures > 0 ? 1 : 0)
