/**
 * Every way QEMU migrates, through a pair of proxies: a table. Exit status 1 where something that QEMU does by itself fails through the pair.
 *
 *   node test/qemu/modes.ts                      all combinations; those that .cache/modes.json has already are kept
 *   node test/qemu/modes.ts --again              all of them anew
 *   node test/qemu/modes.ts --only '10.*multifd' those whose name matches
 *   node test/qemu/modes.ts --json               the results as JSON
 *   node test/qemu/modes.ts --threads 4          proxies with so many threads; results in .cache/modes-4-threads.json
 *
 * Each combination runs twice in a process of its own: directly from QEMU to QEMU, which tells whether QEMU supports it, then through the pair
 * with an empty pool at effort 3. Memory is compared from outside, of guests that are stopped by then.
 */

import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import Table from 'cli-table3'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { atExit, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import type { MigrationInfo, MigrationSettings, MigrationStats } from '../../scripts/harness/qemu/guest.ts'
import { compareMemory, type MemorySnapshot } from '../../scripts/harness/qemu/memory.ts'
import { type FoundQemu, qemu10, systemQemu } from '../../scripts/harness/qemu/versions.ts'
import { parseThreads, threadCount } from '../../src/transfer/helpers/thread-count.ts'
import { until } from '../helpers/until.ts'
import { Guests, Pair } from './pair.ts'

const run = promisify(execFile)
const root = fileURLToPath(new URL('../..', import.meta.url))
const pageferry = join(root, 'bin/pageferry')
const EFFORT = 3
/** A migration of a busy machine ends before; as faults.ts has it. */
const HANGS_MS = 300_000
/** One combination, both of its migrations. */
const CHILD_TIMEOUT_MS = 3 * HANGS_MS

type Version = '7.2' | '10'

/** From which QEMU to which, and as which machine. */
interface Route {
  readonly name: string
  readonly source: Version
  readonly destination: Version
  readonly machine: string
}
const routes: readonly Route[] = [
  { name: '7.2 to 7.2', source: '7.2', destination: '7.2', machine: 'pc-i440fx-7.2' },
  { name: '10 to 10', source: '10', destination: '10', machine: 'pc-i440fx-10.0' },
  { name: '10 to 10 (pc-7.2)', source: '10', destination: '10', machine: 'pc-i440fx-7.2' },
  { name: '7.2 to 10', source: '7.2', destination: '10', machine: 'pc-i440fx-7.2' },
  { name: '10 to 7.2', source: '10', destination: '7.2', machine: 'pc-i440fx-7.2' },
]

interface Mode {
  readonly name: string
  readonly settings?: MigrationSettings
  /** The source guest runs, and dirty pages are sent again in so many passes at least. */
  readonly passes?: number
  /** How postcopy goes: to its end; broken by the operator, or by a WAN that stays away, and recovered. */
  readonly postcopy?: 'plain' | 'pause' | 'lost'
  readonly snapshot?: boolean
  readonly bitmaps?: boolean
  readonly tls?: boolean
  /** A disk that moves too; its content is compared. */
  readonly disk?: boolean
  /** The guest's memory: in huge pages of the host, or in a file that both QEMUs map. */
  readonly memory?: 'huge' | 'file'
  /** How much of it; mostly untouched. Default: 16. */
  readonly memoryMb?: number
  readonly args?: readonly string[]
  readonly routes?: (route: Route) => boolean
}

const caps = (...names: string[]) => Object.fromEntries(names.map(name => [name, true]))
const multifd = (channels: number, more: Record<string, unknown> = {}): MigrationSettings => ({
  capabilities: caps('multifd', 'return-path'),
  parameters: { 'multifd-channels': channels, ...more },
})
const onlyTen = (route: Route) => route.source === '10' && route.destination === '10'
const postcopy: MigrationSettings = { capabilities: caps('postcopy-ram') }
const preempt: MigrationSettings = { capabilities: caps('postcopy-ram', 'postcopy-preempt') }

const modes: readonly Mode[] = [
  { name: 'plain' },
  { name: 'plain, busy guest', passes: 3 },
  { name: 'return path', settings: { capabilities: caps('return-path') } },
  { name: 'xbzrle', settings: { capabilities: caps('xbzrle') }, passes: 5 },
  { name: 'compress', settings: { capabilities: caps('compress') }, passes: 3 },
  { name: 'compress, xbzrle', settings: { capabilities: caps('compress', 'xbzrle') }, passes: 5 },
  { name: 'multifd 2', settings: multifd(2) },
  { name: 'multifd 2, busy guest', settings: multifd(2), passes: 4 },
  { name: 'multifd 8', settings: multifd(8) },
  ...['none', 'legacy', 'multifd'].map(detection => ({
    name: `multifd 2, zero pages: ${detection}`,
    settings: multifd(2, { 'zero-page-detection': detection }),
    routes: onlyTen,
  })),
  { name: 'multifd 2, zlib', settings: multifd(2, { 'multifd-compression': 'zlib' }) },
  { name: 'multifd 2, zstd', settings: multifd(2, { 'multifd-compression': 'zstd' }) },
  { name: 'postcopy', settings: postcopy, postcopy: 'plain' },
  { name: 'postcopy, preempt', settings: preempt, postcopy: 'plain' },
  { name: 'postcopy, paused, recovered', settings: postcopy, postcopy: 'pause' },
  { name: 'postcopy, preempt, paused, recovered', settings: preempt, postcopy: 'pause' },
  { name: 'postcopy, WAN lost, recovered', settings: postcopy, postcopy: 'lost' },
  { name: 'postcopy, preempt, WAN lost, recovered', settings: preempt, postcopy: 'lost' },
  // the destination answers with a bitmap of what it has: 128 KiB in one piece
  {
    name: 'postcopy, 4 GiB, paused, recovered',
    settings: postcopy,
    postcopy: 'pause',
    memoryMb: 4096,
    routes: ({ source, destination }) => source === destination,
  },
  { name: 'background snapshot', settings: { capabilities: caps('background-snapshot') }, snapshot: true },
  { name: 'dirty bitmaps', settings: { capabilities: caps('dirty-bitmaps') }, bitmaps: true },
  {
    name: 'dirty bitmaps, postcopy',
    settings: { capabilities: caps('dirty-bitmaps', 'postcopy-ram') },
    bitmaps: true,
    postcopy: 'plain',
  },
  { name: 'TLS', settings: { parameters: { 'tls-creds': 'tls0' } }, tls: true },
  { name: 'TLS, multifd 2', settings: multifd(2, { 'tls-creds': 'tls0' }), tls: true },
  {
    name: 'TLS, postcopy, preempt',
    settings: { ...preempt, parameters: { 'tls-creds': 'tls0' } },
    tls: true,
    postcopy: 'plain',
  },
  { name: 'huge pages', memory: 'huge' },
  { name: 'huge pages, multifd 2', settings: multifd(2), memory: 'huge' },
  { name: 'huge pages, postcopy', settings: postcopy, postcopy: 'plain', memory: 'huge' },
  { name: 'huge pages, postcopy, preempt', settings: preempt, postcopy: 'plain', memory: 'huge' },
  {
    name: 'huge pages, postcopy, preempt, paused, recovered',
    settings: preempt,
    postcopy: 'pause',
    memory: 'huge',
  },
  { name: 'ignore shared', settings: { capabilities: caps('x-ignore-shared') }, memory: 'file' },
  // with max-bandwidth 0, no limit elsewhere, QEMU 7.2 sends nothing of a disk
  {
    name: 'block migration',
    settings: { capabilities: caps('block'), parameters: { 'max-bandwidth': 1_000_000_000 } },
    disk: true,
  },
  {
    name: 'block migration, busy guest',
    settings: { capabilities: caps('block', 'return-path') },
    disk: true,
    passes: 3,
  },
  {
    name: 'virtio-mem',
    args: [
      ...['-m', '16M,maxmem=512M,slots=1', '-object', 'memory-backend-ram,id=vmem,size=64M'],
      ...['-device', 'virtio-mem-pci,id=vm0,memdev=vmem,requested-size=32M'],
    ],
  },
  {
    name: 'uuid',
    settings: { capabilities: caps('validate-uuid') },
    args: ['-uuid', '6a0c3a5e-5d0b-4a39-9a3e-2f1d9b8e7c10'],
  },
  {
    name: 'switchover-ack',
    settings: { capabilities: caps('return-path', 'switchover-ack') },
    routes: onlyTen,
  },
]

interface Result {
  readonly route: string
  readonly mode: string
  readonly migrated: 'yes' | 'no' | 'unsupported'
  /** Why not, or what QEMU says where it does not support it. */
  readonly reason?: string
  readonly equal?: boolean
  readonly bytesQemu?: number
  readonly bytesWan?: number
  readonly seconds?: number
  readonly channels?: string
}

const key = ({ route, mode }: { route: string; mode: string }) => `${route}: ${mode}`

// One combination, in a process of its own ----------------------------------------------------------------------------

interface Moved {
  readonly stats: MigrationStats | undefined
  readonly differingPages: number
}

/** Migrates directly (`pair` undefined) or through the pair. @throws whatever QEMU does not like */
async function move(route: Route, mode: Mode, pair: Pair | undefined): Promise<Moved> {
  const qemus = { '7.2': await systemQemu(), '10': await qemu10() }
  const tls = (side: string) => (mode.tls ? ['-object', `tls-creds-anon,id=tls0,endpoint=${side}`] : [])
  const both = [
    ...(mode.bitmaps ? ['-blockdev', 'driver=null-co,node-name=disk0,size=67108864'] : []),
    ...(mode.args ?? []),
  ]
  const own = (side: string) => [
    ...both,
    ...tls(side === 'source' ? 'client' : 'server'),
    ...disk(mode, side),
    ...memory(mode),
  ]
  const runs = mode.passes !== undefined || mode.postcopy !== undefined
  const options = {
    qemu: qemus[route.source].qemu!,
    destinationQemu: qemus[route.destination].qemu!,
    machine: route.machine,
    paused: !runs,
    ...(mode.memoryMb === undefined ? {} : { memoryMb: mode.memoryMb }),
  }
  const source = await Guests.startSource({ ...options, args: own('source') })
  try {
    const destination = await Guests.startDestination({ ...options, args: own('destination') })
    try {
      const guests = { source, destination } as Guests
      if (mode.bitmaps)
        await source.qmp.execute('block-dirty-bitmap-add', { node: 'disk0', name: 'b0', granularity: 4096 })
      const moved = mode.snapshot
        ? await throughFile(guests, mode, pair !== undefined)
        : await throughNetwork(guests, mode, pair)
      if (mode.disk) await run('cmp', ['source', 'destination'].map(diskFile))
      if (mode.bitmaps) {
        const nodes =
          await destination.qmp.execute<{ 'dirty-bitmaps'?: { name: string }[] }[]>('query-named-block-nodes')
        if (!nodes.some(node => node['dirty-bitmaps']?.some(bitmap => bitmap.name === 'b0'))) {
          throw new Error('the bitmap is not at the destination')
        }
      }
      return moved
    } finally {
      await destination.quit()
    }
  } finally {
    await source.quit()
  }
}

const diskFile = (side: string): string => join(process.env.MODES_FOLDER!, `${side}.raw`)

/** A disk of 8 MB: noise, text and nothing; empty at the destination. */
function disk(mode: Mode, side: string): string[] {
  if (!mode.disk) return []
  const bytes = Buffer.alloc(8 << 20)
  if (side === 'source') {
    for (let at = 1 << 20; at < 3 << 20; at += 64) createHash('sha512').update(`${at}`).digest().copy(bytes, at)
    for (let at = 3 << 20; at < 4 << 20; ) at += bytes.write(`line ${at} of the disk\n`, at)
  }
  writeFileSync(diskFile(side), bytes)
  const drive = ['-drive', `if=none,id=disk0,format=raw,file=${diskFile(side)}`]
  return [...drive, '-device', 'virtio-blk-pci,drive=disk0'] // QEMU 7.2 asserts at a disk that no device has
}

/** Where the guest's 16 MB lie. */
function memory(mode: Mode): string[] {
  if (mode.memory === undefined) return []
  const place =
    mode.memory === 'huge'
      ? 'memory-backend-memfd,hugetlb=on,hugetlbsize=2M,prealloc=off'
      : `memory-backend-file,share=on,mem-path=${join(process.env.MODES_FOLDER!, 'memory')}`
  return ['-object', `${place},id=ram,size=16M`, '-machine', 'memory-backend=ram']
}

const HUGE_PAGES = '/proc/sys/vm/nr_hugepages'
/** For the 16 MB of two guests, some of which QEMU takes twice. */
const HUGE_PAGES_WANTED = 32

/** Has the kernel set huge pages aside while this process runs. @returns why it does not */
function reserveHugePages(): string | undefined {
  try {
    const before = readFileSync(HUGE_PAGES, 'utf8')
    writeFileSync(HUGE_PAGES, String(Number(before) + HUGE_PAGES_WANTED))
    atExit(() => writeFileSync(HUGE_PAGES, before))
    const now = Number(readFileSync(HUGE_PAGES, 'utf8'))
    return now < Number(before) + HUGE_PAGES_WANTED ? `the kernel has only ${now} huge pages` : undefined
  } catch (error) {
    return `huge pages: ${(error as Error).message}`
  }
}

async function throughNetwork({ source, destination }: Guests, mode: Mode, pair: Pair | undefined): Promise<Moved> {
  const { settings = {}, passes = 0 } = mode
  const target = pair?.targetUri() ?? `tcp:127.0.0.1:${await claimPort()}`
  const uri = pair?.sourceUri() ?? target
  await destination.listen(target, settings)
  const strict = passes > 0 || mode.postcopy !== undefined
  let letGo = !strict
  let seen: Promise<MemorySnapshot> | undefined
  const before = strict ? undefined : await source.snapshot()
  await source.startMigration(uri, {
    ...settings,
    parameters: {
      ...{ 'max-bandwidth': 0, ...settings.parameters },
      ...(strict ? { 'max-bandwidth': mode.postcopy ? 1_000_000 : 10_000_000, 'downtime-limit': 1 } : {}),
      // slow enough that pages are asked for, and that not all of them wait in sockets when the WAN is given up
      ...(mode.postcopy ? { 'max-postcopy-bandwidth': mode.postcopy === 'plain' ? 3_000_000 : 500_000 } : {}),
    },
  })
  const look = async (): Promise<MemorySnapshot> => {
    // before that, a page that is missing reads as zeros
    await until('the destination to become postcopy-active', async () =>
      /postcopy-active|completed/.test((await destination.migrationInfo()).status ?? ''),
    )
    return destination.snapshot()
  }
  const onProgress = ({ ram, status }: MigrationInfo): void => {
    // reading all of the guest's memory asks for the pages that are not there yet
    if (mode.postcopy === 'plain' && status === 'postcopy-active' && !seen) {
      seen = look()
      seen.catch(() => {})
    }
    if (letGo) return
    if (mode.postcopy) {
      if ((ram?.transferred ?? 0) < 300_000) return
      void source.qmp.execute('migrate-start-postcopy').catch(() => {})
      letGo = true
    } else if ((ram?.['dirty-sync-count'] ?? 0) >= passes) {
      void source.configure({ parameters: { 'downtime-limit': 2000 } }).catch(() => {})
      letGo = true
    }
  }
  if (mode.postcopy && mode.postcopy !== 'plain')
    await recover({ source, destination } as Guests, mode, pair, uri, target, onProgress)
  const stats = await source.waitMigration({ timeoutMs: HANGS_MS, onProgress })
  await destination.waitStatus(['paused', 'prelaunch'], HANGS_MS)
  if (mode.postcopy && !((stats.info.ram?.['postcopy-bytes'] ?? 0) > 500_000))
    throw new Error('postcopy did not happen')
  const left = before ?? (await source.snapshot())
  const differences = [left, await destination.snapshot(), ...(seen ? [await seen] : [])]
  let differingPages = 0
  for (const right of differences.slice(1)) differingPages += (await compareMemory(left, right)).differingPages
  return { stats, differingPages }
}

async function recover(
  { source, destination }: Guests,
  mode: Mode,
  pair: Pair | undefined,
  uri: string,
  target: string,
  onProgress: (info: MigrationInfo) => void,
): Promise<void> {
  const waitFor = async (guest: typeof source, status: string, look: (info: MigrationInfo) => void = () => {}) => {
    let is: string | undefined
    await until(
      () => `${guest.name} to be ${status}: it is ${is}`,
      async () => {
        const info = await guest.migrationInfo().catch(async error => {
          await guest.waitStatus('never', 0) // throws what QEMU said when it exited
          throw error
        })
        look(info)
        is = info.status
        return is === status
      },
    )
  }
  await waitFor(source, 'postcopy-active', onProgress)
  // before it has run, a destination that loses its connection exits (qemu-wire-format 1.6)
  await destination.waitStatus(['paused', 'prelaunch'], HANGS_MS)
  await sleep(300)
  if (mode.postcopy === 'lost' && pair) {
    pair.wan.refuse()
    pair.wan.cut()
  } else await source.qmp.execute('migrate-pause')
  await waitFor(source, 'postcopy-paused')
  await waitFor(destination, 'postcopy-paused')
  pair?.wan.restore()
  await source.configure({ parameters: { 'max-postcopy-bandwidth': 0 } })
  await destination.qmp.execute('migrate-recover', { uri: target })
  await source.qmp.execute('migrate', { uri, resume: true })
}

/** A background snapshot: to a file, through the codec there and back, and into a QEMU. */
async function throughFile({ source, destination }: Guests, mode: Mode, codec: boolean): Promise<Moved> {
  const folder = process.env.MODES_FOLDER!
  const before = await source.snapshot()
  const write = codec
    ? `tee '${folder}/raw' | '${pageferry}' encode /dev/stdin -o '${folder}/encoded' --effort ${EFFORT} --threads ${process.env.THREADS}`
    : `cat > '${folder}/raw'`
  const stats = await source.migrate(`exec:${write}`, { ...mode.settings, parameters: { 'max-bandwidth': 0 } })
  if (codec) {
    await until('something encoded', () => {
      try {
        return statSync(`${folder}/encoded`).size > 0
      } catch {
        return false
      }
    })
    await run(pageferry, ['decode', `${folder}/encoded`, '-o', `${folder}/decoded`, '--threads', process.env.THREADS!])
    await run('cmp', [`${folder}/decoded`, `${folder}/raw`])
  }
  await destination.qmp.execute('migrate-incoming', {
    uri: `exec:cat '${folder}/${codec ? 'decoded' : 'raw'}'`,
  })
  await destination.waitStatus(['paused', 'prelaunch'], HANGS_MS)
  return { stats, differingPages: (await compareMemory(before, await destination.snapshot())).differingPages }
}

/** Runs one combination and prints its result as JSON. */
async function child(route: Route, mode: Mode): Promise<Result> {
  const base = { route: route.name, mode: mode.name }
  const missing = Object.entries({ '7.2': await systemQemu(), '10': await qemu10() }).find(
    ([version, found]: [string, FoundQemu]) =>
      found.skip !== undefined && [route.source, route.destination].includes(version as Version),
  )
  if (missing) return { ...base, migrated: 'unsupported', reason: missing[1].skip! }
  const none = mode.memory === 'huge' ? reserveHugePages() : undefined
  if (none !== undefined) return { ...base, migrated: 'unsupported', reason: none }
  try {
    const { differingPages } = await move(route, mode, undefined)
    if (differingPages > 0) throw new Error(`${differingPages} pages differ`)
  } catch (error) {
    return { ...base, migrated: 'unsupported', reason: (error as Error).message }
  }
  const patienceMs = mode.postcopy === 'lost' ? 1500 : 20_000
  await using pair = await Pair.start({ effort: EFFORT, patienceMs, wan: '1ms' })
  const start = performance.now()
  try {
    const { differingPages } = await move(route, mode, pair)
    const seconds = Math.round(performance.now() - start) / 1000
    const equal = differingPages === 0
    if (mode.snapshot) {
      const [bytesQemu, bytesWan] = ['raw', 'encoded'].map(name => statSync(join(process.env.MODES_FOLDER!, name)).size)
      return { ...base, migrated: 'yes', equal, seconds, bytesQemu: bytesQemu!, bytesWan: bytesWan!, channels: 'file' }
    }
    await pair.summary(mode.postcopy === 'pause' || mode.postcopy === 'lost' ? 2 : 1)
    const { summaries } = pair
    return {
      ...base,
      migrated: 'yes',
      equal,
      seconds,
      bytesQemu: summaries.reduce((sum, { bytesIn }) => sum + bytesIn, 0),
      bytesWan: summaries.reduce((sum, { bytesWan }) => sum + bytesWan, 0),
      channels: summaries.map(({ channels }) => channels).join(' + '),
      ...(equal ? {} : { reason: `${differingPages} pages differ` }),
    }
  } catch (error) {
    const said = pair.log
      .filter(line => line.level !== 'info' && line.level !== 'debug' && line.event !== 'link.plaintext')
      .slice(-6)
    const why = said.map(line => `${line.side}: ${line.event} ${JSON.stringify(line.fields)}`).join('; ')
    return { ...base, migrated: 'no', reason: `${(error as Error).message}${why ? ` [${why}]` : ''}` }
  }
}

// All of them ---------------------------------------------------------------------------------------------------------

async function runChild(route: Route, mode: Mode): Promise<Result> {
  const folder = temporaryFolder('modes')
  const child = spawn(
    process.execPath,
    [fileURLToPath(import.meta.url), '--one', key({ route: route.name, mode: mode.name })],
    {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, MODES_FOLDER: folder.path },
    },
  )
  let out = ''
  let errors = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text
  })
  let hangs = false
  const timer = setTimeout(() => {
    hangs = true // it may end in order then, and say nothing
    child.kill('SIGTERM')
  }, CHILD_TIMEOUT_MS)
  await new Promise(done => child.once('close', done))
  clearTimeout(timer)
  folder.remove()
  try {
    return JSON.parse(out.trim().split('\n').at(-1)!) as Result
  } catch {
    const words = child.signalCode ? `ended by ${child.signalCode}` : errors.trim().slice(-500)
    const reason = hangs ? `no end within ${CHILD_TIMEOUT_MS / 1000} s` : words
    return { route: route.name, mode: mode.name, migrated: 'no', reason }
  }
}

function read(): Record<string, Result> {
  try {
    return JSON.parse(readFileSync(resultsFile, 'utf8')) as Record<string, Result>
  } catch {
    return {}
  }
}

function print(results: readonly Result[]): void {
  const table = new Table({
    head: ['route', 'mode', 'migrated', 'memory', 'QEMU MB', 'WAN MB', 'of plain', 's', 'channels'],
    style: { head: [], border: [], compact: true },
  })
  const plain = new Map(
    results.filter(result => result.mode === 'plain').map(result => [result.route, result.bytesWan]),
  )
  const megabytes = (bytes: number | undefined) => (bytes === undefined ? '' : (bytes / 1e6).toFixed(3))
  const of = ({ route, bytesWan }: Result) => {
    const base = plain.get(route)
    return bytesWan === undefined || base === undefined ? '' : (bytesWan / base).toFixed(2)
  }
  for (const result of results) {
    table.push([
      ...[
        result.route,
        result.mode,
        result.migrated,
        result.equal === undefined ? '' : result.equal ? 'equal' : 'DIFFERS',
      ],
      ...[megabytes(result.bytesQemu), megabytes(result.bytesWan), of(result), result.seconds?.toFixed(1) ?? ''],
      result.channels ?? result.reason?.slice(0, 60) ?? '',
    ])
  }
  console.log(table.toString())
}

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    json: { type: 'boolean', default: false },
    again: { type: 'boolean', default: false },
    threads: { type: 'string', default: '1' },
    one: { type: 'string' },
  },
})
const threads = threadCount(parseThreads(values.threads))
// what each combination's process has of it
if (values.one === undefined) process.env.THREADS = `${threads}`
const resultsFile = join(root, '.cache', threads === 1 ? 'modes.json' : `modes-${threads}-threads.json`)

const combinations = routes.flatMap(route =>
  modes
    .filter(mode => mode.routes?.(route) ?? true)
    .map(mode => ({ route, mode, key: key({ route: route.name, mode: mode.name }) })),
)

if (values.one !== undefined) {
  const found = combinations.find(combination => combination.key === values.one)!
  const result = await child(found.route, found.mode)
  process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(0))
} else {
  const wanted = combinations.filter(combination => new RegExp(values.only ?? '').test(combination.key))
  const results = read()
  for (const [i, { route, mode, key }] of wanted.entries()) {
    // what failed is tried again
    if (!values.again && results[key] && results[key].migrated !== 'no' && results[key].equal !== false) continue
    const result = await runChild(route, mode)
    const state =
      result.migrated === 'yes' ? (result.equal ? 'yes' : 'MEMORY DIFFERS') : `${result.migrated}: ${result.reason}`
    if (!values.json) console.log(`${i + 1}/${wanted.length} ${key}: ${state}`)
    const all = { ...read(), [key]: result }
    results[key] = result
    mkdirSync(join(root, '.cache'), { recursive: true })
    writeFileSync(`${resultsFile}.${process.pid}`, `${JSON.stringify(all, null, 2)}\n`)
    renameSync(`${resultsFile}.${process.pid}`, resultsFile)
  }
  const shown = wanted.map(({ key }) => results[key]!)
  if (values.json) console.log(JSON.stringify(shown, null, 2))
  else print(shown)
  const bad = shown.filter(result => result.migrated === 'no' || result.equal === false)
  const good = shown.filter(result => result.migrated === 'yes' && result.equal)
  if (!values.json) {
    const unsupported = shown.filter(result => result.migrated === 'unsupported').length
    console.log(
      `${good.length} migrated with equal memory, ${bad.length} failed, ${unsupported} not supported by QEMU itself`,
    )
  }
  process.exit(bad.length > 0 ? 1 : 0)
}
