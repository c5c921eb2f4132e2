/**
 * How cost grows: with effort, guest size, templates, migrations at once, and the link. Measures what fits here; the
 * report extrapolates. Needs the lab's streams (`make lab`).
 *
 *   node scripts/measure/scaling.ts [--out .cache/compare/scaling.json] [--minutes 6] [--only efforts,replays]
 *
 * `--only` measures some parts anew and keeps the file's others. Every encoding and decoding is a process of its own (scaling-case.ts). Several migrations at once, and the replays over
 * links, go through two real proxies. Large guests, which are streamed and stored nowhere, are measured with `--only large [--gib 4,16,64]`.
 */

import { execFile, execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, totalmem } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { PAGE_SIZE } from '../../src/codec/wire.ts'
import { WORKSPACE_BYTES } from '../../src/codec/workspace.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { layoutMemory, longEntriesFor } from '../../src/kernel/kernel.ts'
import { FLOWS_MAX } from '../../src/limits.ts'
import { parseSize } from '../../src/quantity.ts'
import { PLACES, POOL_MEMORY_DEFAULT } from '../../src/transfer/pool.ts'
import { median } from '../harness/median.ts'
import { Proxies } from '../harness/proxies.ts'
import { spawnOwned, temporaryFolder } from '../harness/qemu/cleanup.ts'
import { openWan, type Wan } from '../harness/wan/open.ts'
import { ownSeconds } from './compare/cpu.ts'
import { COMPARE_FOLDER, labStream, labTemplates, root, TEMPLATE_GUESTS } from './lab-streams.ts'
import type { DecodeCase, EmitCase, EncodeCase, ReceiveCase } from './scaling-case.ts'
import { writeSyntheticGuest } from './synthetic-guest.ts'

/** One way through the codec, medians of its rounds. CPU seconds are of all threads, without loading the sets. */
export interface CodecCost {
  readonly rawBytes: number
  readonly wanBytes: number
  readonly encodeCpuSeconds: number
  readonly decodeCpuSeconds: number
  readonly encodePeakBytes: number
  readonly decodePeakBytes: number
}

/** What scaling.ts measured: one JSON file. */
export interface Scaling {
  readonly format: 1
  readonly startedAt: string
  readonly commit: string
  readonly command: string
  readonly minutes: number
  readonly machine: {
    readonly cpu: string
    readonly cores: number
    readonly memoryBytes: number
    readonly loadAverage: number
  }
  readonly versions: Readonly<Record<string, string>>
  /** The guest that templates and links are measured with, those together that efforts are, those of the templates. */
  readonly stream: string
  readonly effortStreams: readonly string[]
  readonly templatesFrom: readonly string[]
  readonly efforts: readonly (CodecCost & { readonly effort: number; readonly name: string })[]
  readonly guests: readonly (CodecCost & { readonly memoryBytes: number; readonly effort: number })[]
  readonly templates: readonly (CodecCost & {
    readonly templateBytes: number
    readonly minVms: number
    readonly effort: number
    /** Loading, verifying and indexing the set when a session opens, source side. */
    readonly openSeconds: number
    readonly openCpuSeconds: number
    /** CPU of the source at effort 0, where finding references is nearly all there is to do. */
    readonly lookupCpuSeconds: number
  })[]
  readonly migrations: readonly SessionCost[]
  /** Larger than what is stored; absent in files of before. */
  readonly large?: readonly LargeCost[]
  readonly replays: readonly (SessionCost & { readonly link: string; readonly kind: string })[]
  /** What 32-bit addresses allow one session: bytes of templates, with and without the table of long matches. */
  readonly templateBytesMax: { readonly longMatches: number; readonly exactOnly: number }
  readonly flowsMax: number
  readonly skipped: readonly string[]
}

/** A large guest by pipes, and moved through a pair over loopback. */
export interface LargeCost extends CodecCost {
  readonly memoryBytes: number
  readonly effort: number
  readonly pair: SessionCost | undefined
}

/** Migrations through two proxies, effort by itself. */
export interface SessionCost {
  readonly count: number
  readonly rawBytes: number
  readonly wanBytes: number
  /** First byte in to last byte out, all of them. */
  readonly seconds: number
  readonly sourceCpuSeconds: number
  readonly destinationCpuSeconds: number
  readonly sourcePeakBytes: number
  readonly destinationPeakBytes: number
}

const STREAM = 'nginx-k2'
/** None of them is among the template guests. */
const GUESTS = ['nginx-k2', 'postgres', 'python', 'nginx-q10']
const EFFORT_GUESTS = ['nginx-k2', 'postgres']
const EFFORT_LEVELS = [0, 1, 2, 3, 4]
const EFFORT = 3
const ROUNDS = 3
const GUEST_PARTS = [1, 2, 4, 8]
/** Of which guests of so much memory are made, each time with other bytes. */
const LARGE_GUESTS = ['nginx-k2', 'postgres', 'python', 'nginx-q10']
const LARGE_GIB_DEFAULT = '4,16,64'
const LARGE_EFFORT = 2
const LARGE_SECONDS_MAX = 1500
/** Bytes of set files; the last two hold all that two or more guests, and all that any guest held. */
const TEMPLATE_SIZES: readonly { readonly minVms: number; readonly maxBytes?: number }[] = [
  { minVms: 2, maxBytes: 10e6 },
  { minVms: 2, maxBytes: 50e6 },
  { minVms: 2 },
  { minVms: 1, maxBytes: 250e6 },
  { minVms: 1, maxBytes: 500e6 },
]
const MIGRATIONS = [1, 2, 4, 8]
const LINKS = ['20Mbit,40ms', '100Mbit,40ms', '400Mbit,10ms']

const program = fileURLToPath(new URL('./scaling-case.ts', import.meta.url))
const run = promisify(execFile)

async function caseOf<T>(...args: string[]): Promise<T> {
  const { stdout } = await run(process.execPath, [program, ...args], { timeout: 300_000 })
  return JSON.parse(stdout) as T
}

interface CodecCase {
  readonly encode: EncodeCase
  readonly decode: DecodeCase
}

/** A measuring session: its folder, its clock, what it left out. */
class Bench {
  readonly folder: string
  readonly skipped: string[] = []
  /** What was tried, done or not. */
  readonly tried = new Set<string>()
  private readonly endMs: number
  private readonly startMs = performance.now()

  constructor(folder: string, minutes: number) {
    this.folder = folder
    this.endMs = this.startMs + minutes * 60_000
  }

  say(text: string): void {
    console.log(`${((performance.now() - this.startMs) / 1000).toFixed(0).padStart(4)} s  ${text}`)
  }

  get secondsLeft(): number {
    return Math.max(0, (this.endMs - performance.now()) / 1000)
  }

  /** Runs `work` unless the time is up; what fails or comes too late is told in the results. */
  async attempt<T>(what: string, work: () => Promise<T>): Promise<T | undefined> {
    this.tried.add(what)
    if (performance.now() > this.endMs) {
      this.skipped.push(`${what}: the time was up`)
      return undefined
    }
    this.say(what)
    try {
      return await work()
    } catch (error) {
      const { message } = error as Error
      this.say(`  ${message}`)
      this.skipped.push(`${what}: ${message.replaceAll(/\s+/g, ' ').slice(0, 200)}`)
      return undefined
    }
  }

  /** There and back, in two processes. */
  async codec(stream: string, store: string, effort: number): Promise<CodecCase> {
    const file = join(this.folder, 'encoded')
    const encode = await caseOf<EncodeCase>('encode', stream, store, String(effort), file)
    const decode = await caseOf<DecodeCase>('decode', file, store)
    rmSync(file)
    if (decode.rawBytes !== encode.rawBytes) throw new Error(`${encode.rawBytes} bytes became ${decode.rawBytes}`)
    return { encode, decode }
  }
}

function codecCost(cases: readonly CodecCase[]): CodecCost {
  const of = (value: (one: CodecCase) => number): number => median(cases.map(value))
  return {
    rawBytes: of(({ encode }) => encode.rawBytes),
    wanBytes: of(({ encode }) => encode.wanBytes),
    encodeCpuSeconds: of(({ encode }) => encode.cpuSeconds),
    decodeCpuSeconds: of(({ decode }) => decode.cpuSeconds),
    encodePeakBytes: of(({ encode }) => encode.peakBytes),
    decodePeakBytes: of(({ decode }) => decode.peakBytes),
  }
}

async function measureEfforts(bench: Bench, store: string): Promise<Scaling['efforts']> {
  const cases = new Map<number, CodecCase[]>()
  const stream = join(bench.folder, 'efforts.stream')
  // half a GB: what a fresh process needs to get up to speed weighs less
  writeSyntheticGuest(stream, EFFORT_GUESTS.map(labStream))
  for (let round = 0; round < ROUNDS; round++) {
    for (const effort of EFFORT_LEVELS) {
      const one = await bench.attempt(`effort ${effort}, round ${round + 1}`, () => bench.codec(stream, store, effort))
      if (one) cases.set(effort, [...(cases.get(effort) ?? []), one])
    }
  }
  rmSync(stream)
  return [...cases].map(([effort, list]) => ({ effort, name: EFFORTS[effort]!.name, ...codecCost(list) }))
}

async function measureGuests(bench: Bench, store: string): Promise<Scaling['guests']> {
  const rows: Scaling['guests'][number][] = []
  for (const parts of GUEST_PARTS) {
    const row = await bench.attempt(`a guest of ${parts} captured ones`, async () => {
      const stream = join(bench.folder, 'guest.stream')
      const from = Array.from({ length: parts }, (_, i) => labStream(GUESTS[i % GUESTS.length]!))
      try {
        const memoryBytes = writeSyntheticGuest(stream, from)
        return { memoryBytes, effort: EFFORT, ...codecCost([await bench.codec(stream, store, EFFORT)]) }
      } finally {
        rmSync(stream, { force: true })
      }
    })
    if (row) rows.push(row)
  }
  return rows
}

async function measureTemplates(bench: Bench): Promise<Scaling['templates']> {
  const rows: Scaling['templates'][number][] = []
  for (const rule of TEMPLATE_SIZES) {
    const row = await bench.attempt(`templates: ${JSON.stringify(rule)}`, async () => {
      const folder = join(bench.folder, 'templates')
      const { store } = await labTemplates(folder, rule)
      const templateBytes = statSync(store.pathOf((await store.digests())[0]!)).size
      const full: CodecCase[] = []
      const exact: CodecCase[] = []
      for (let round = 0; round < ROUNDS; round++) {
        exact.push(await bench.codec(labStream(STREAM), folder, 0))
        if (round === 0) full.push(await bench.codec(labStream(STREAM), folder, EFFORT))
      }
      rmSync(folder, { recursive: true })
      return {
        templateBytes,
        minVms: rule.minVms,
        effort: EFFORT,
        ...codecCost(full),
        openSeconds: median([...exact, ...full].map(({ encode }) => encode.openSeconds)),
        openCpuSeconds: median([...exact, ...full].map(({ encode }) => encode.openCpuSeconds)),
        lookupCpuSeconds: median(exact.map(({ encode }) => encode.cpuSeconds)),
      }
    })
    if (row) rows.push(row)
  }
  return rows
}

/** This machine, without anything between the proxies. */
function localWan(): Wan {
  return {
    kind: 'loopback',
    netns: () => undefined,
    listenHost: '127.0.0.1',
    reach: async port => ({ host: '127.0.0.1', port }),
    spawn: (_, command) => spawnOwned(command, { stdio: ['ignore', 'pipe', 'pipe'] }),
    bytes: async () => 0,
    [Symbol.asyncDispose]: async () => {},
  }
}

/** Most memory that a process has had. Source: proc(5), status. */
function peakBytes(pid: number): number {
  const peak = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
  return Number(peak?.[1] ?? 0) * 1024
}

/** Plays streams through two proxies, all at once. */
async function playThrough(wan: Wan, store: string, streams: readonly string[]): Promise<SessionCost> {
  const { cost } = await sendThrough(wan, store, streams.length, ['send'], streams, 120)
  const expected = streams.reduce((sum, stream) => sum + statSync(stream).size, 0)
  if (cost.rawBytes !== expected) throw new Error(`${expected} bytes became ${cost.rawBytes}`)
  return cost
}

/** @param kind of sender (scaling-case.ts), whose arguments stand behind its port */
async function sendThrough(
  wan: Wan,
  store: string,
  count: number,
  [kind]: readonly [string],
  senderArguments: readonly string[],
  secondsMax: number,
): Promise<{ cost: SessionCost; received: ReceiveCase }> {
  const { path: folder, remove } = temporaryFolder('scaling-pair')
  try {
    await using pair = await Proxies.start(wan, folder, store)
    await pair.ready()
    const { source, destination } = pair.pids
    const before = [ownSeconds(source), ownSeconds(destination)] as const
    const portOf = (uri: string): string => uri.slice(uri.lastIndexOf(':') + 1)
    const receiver = wan.spawn('destination', [
      process.execPath,
      program,
      ...['receive', '127.0.0.1', portOf(pair.targetUri), String(count)],
    ])
    const lines = createInterface({ input: receiver.stdout! })[Symbol.asyncIterator]()
    if ((await lines.next()).done) throw new Error('the receiver does not listen')
    const sender = wan.spawn('source', [
      process.execPath,
      program,
      ...[kind, '127.0.0.1', portOf(pair.sourceUri), ...senderArguments],
    ])
    let said = ''
    sender.stderr!.setEncoding('utf8').on('data', text => {
      said += text
    })
    // else all would wait for bytes that nobody sends any more
    sender.once('exit', status => status !== 0 && receiver.kill('SIGKILL'))
    const late = setTimeout(() => receiver.kill('SIGKILL'), secondsMax * 1000)
    const { value } = await lines.next()
    clearTimeout(late)
    if (value === undefined) throw new Error(`not all arrived: ${said}${pair.log}`)
    const received = JSON.parse(value) as ReceiveCase
    let wanBytes = 0
    for (let i = 0; i < count; i++) wanBytes += (await pair.summary())?.bytesWan ?? 0
    const cost = {
      count,
      rawBytes: received.bytes,
      wanBytes,
      seconds: received.seconds,
      sourceCpuSeconds: ownSeconds(source) - before[0],
      destinationCpuSeconds: ownSeconds(destination) - before[1],
      sourcePeakBytes: peakBytes(source),
      destinationPeakBytes: peakBytes(destination),
    }
    return { cost, received }
  } finally {
    remove()
  }
}

/** Encoded and decoded by pipes, and moved through a pair, without being stored anywhere. */
async function measureLarge(bench: Bench, store: string, keep: Keep<'large'>): Promise<LargeCost[]> {
  const rows: LargeCost[] = []
  // one that takes longer than the time allows is ended: the next part of the evidence waits for it
  const secondsMax = (): number => Math.ceil(Math.min(LARGE_SECONDS_MAX, bench.secondsLeft))
  const streams = LARGE_GUESTS.map(labStream)
  for (const gibibytes of values.gib.split(',').map(Number)) {
    const memory = String(gibibytes * 2 ** 30)
    const row = await bench.attempt(`a guest of ${gibibytes} GiB, by pipes`, async () => {
      const [said, encoded, decoded] = ['emitted', 'encoded', 'decoded'].map(name => join(bench.folder, name))
      const cases = [
        ['emit', memory, said!, ...streams],
        ['encode', '-', store, String(LARGE_EFFORT), '-', encoded!],
        ['decode', '-', store, decoded!],
      ]
      const line = cases.map(args => [process.execPath, program, ...args].map(quoted).join(' ')).join(' | ')
      await run('bash', ['-c', `set -o pipefail; ${line}`], { timeout: secondsMax() * 1000 })
      const read = <T>(path: string | undefined): T => JSON.parse(readFileSync(path!, 'utf8')) as T
      const emit = read<EmitCase>(said)
      const [encode, decode] = [read<EncodeCase>(encoded), read<DecodeCase>(decoded)]
      if (decode.sum !== emit.sum || decode.rawBytes !== emit.rawBytes) throw new Error('other bytes came out')
      return { memoryBytes: emit.memoryBytes, effort: LARGE_EFFORT, ...codecCost([{ encode, decode }]) }
    })
    if (row === undefined) continue
    bench.say(`  ${largeText(row)}`)
    keep([...rows, { ...row, pair: undefined }])
    const pair = await bench.attempt(`a guest of ${gibibytes} GiB, through the pair`, async () => {
      const said = join(bench.folder, 'sent')
      const more = [memory, said, ...streams]
      const { cost, received } = await sendThrough(localWan(), store, 1, ['send-large'], more, secondsMax())
      const emit = JSON.parse(readFileSync(said, 'utf8')) as EmitCase
      if (received.sum !== emit.sum || received.bytes !== emit.rawBytes) throw new Error('other bytes came out')
      return cost
    })
    rows.push({ ...row, pair })
    if (pair) bench.say(`  ${pair.seconds.toFixed(1)} s, ${(pair.wanBytes / 1e6).toFixed(1)} MB`)
    keep(rows)
  }
  return rows
}

function largeText({
  rawBytes,
  wanBytes,
  encodeCpuSeconds,
  decodeCpuSeconds,
  encodePeakBytes,
}: Omit<LargeCost, 'pair'>): string {
  const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(0)} MB`
  const cpu = `CPU ${encodeCpuSeconds.toFixed(1)} s and ${decodeCpuSeconds.toFixed(1)} s`
  return `${megabytes(rawBytes)} to ${megabytes(wanBytes)}, ${cpu}, at most ${megabytes(encodePeakBytes)} of memory`
}

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`

async function measureMigrations(bench: Bench, store: string): Promise<Scaling['migrations']> {
  const rows: SessionCost[] = []
  for (const count of MIGRATIONS) {
    const streams = Array.from({ length: count }, (_, i) => labStream(GUESTS[i % GUESTS.length]!))
    const row = await bench.attempt(`${count} at once`, () => playThrough(localWan(), store, streams))
    if (row) rows.push(row)
  }
  return rows
}

async function measureReplays(bench: Bench, store: string): Promise<Scaling['replays']> {
  const rows: Scaling['replays'][number][] = []
  for (const link of LINKS) {
    const row = await bench.attempt(`replay over ${link}`, async () => {
      await using wan = await openWan(link)
      return { link, kind: wan.kind, ...(await playThrough(wan, store, [labStream(STREAM)])) }
    })
    if (row) rows.push(row)
  }
  return rows
}

/** Most bytes of templates for which an encoder's memory can be laid out. */
function templateBytesMax(longMatches: boolean): number {
  const ringPages = parseSize(POOL_MEMORY_DEFAULT, 'default') / PAGE_SIZE
  const fits = (templatePages: number): boolean => {
    try {
      layoutMemory({
        role: 'encoder',
        templatePages,
        ringPages,
        places: PLACES,
        ioBytes: 4 * WORKSPACE_BYTES + (64 << 20),
        longEntries: longMatches ? longEntriesFor(templatePages + ringPages) : 0,
      })
      return true
    } catch {
      return false
    }
  }
  let [most, least] = [2 ** 20, 0]
  while (most - least > 1) {
    const middle = Math.floor((most + least) / 2)
    if (fits(middle)) least = middle
    else most = middle
  }
  return least * PAGE_SIZE
}

/** In the order of their measuring: what is short and matters most comes first, since the time may be up before the last. */
const PARTS = {
  efforts: measureEfforts,
  migrations: measureMigrations,
  replays: measureReplays,
  large: measureLarge,
  guests: measureGuests,
  templates: measureTemplates,
} as const
type Part = keyof typeof PARTS
const ALL_PARTS = Object.keys(PARTS) as Part[]
/** Large guests take a quarter of an hour, and so are measured where they are named. */
const USUAL_PARTS = ALL_PARTS.filter(part => part !== 'large')

/** Keeps what there is of a part so far. */
type Keep<P extends Part> = (rows: NonNullable<Scaling[P]>) => void

/** Large guests of before that were not measured anew: `--gib 64` adds to those of 4 and 16. */
function withLarge(before: Scaling['large'], rows: readonly LargeCost[]): LargeCost[] {
  const others = before?.filter(({ memoryBytes }) => rows.every(row => row.memoryBytes !== memoryBytes)) ?? []
  return [...others, ...rows].toSorted((a, b) => a.memoryBytes - b.memoryBytes)
}

async function measure(out: string, minutes: number, only: readonly Part[]): Promise<void> {
  const startedAt = new Date().toISOString()
  const [loadAverage] = loadavg()
  const isSome = USUAL_PARTS.some(part => !only.includes(part))
  const before = isSome && existsSync(out) ? (JSON.parse(readFileSync(out, 'utf8')) as Scaling) : undefined
  const { path: folder, remove } = temporaryFolder('scaling')
  const bench = new Bench(folder, minutes)
  try {
    bench.say(`templates of ${TEMPLATE_GUESTS.join(', ')}`)
    const store = join(folder, 'store')
    await labTemplates(store, { minVms: 2 })
    const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }
    const parts: Partial<Scaling> = {}
    const save = (): void => {
      const kept = before?.skipped.filter(text => [...bench.tried].every(what => !text.startsWith(`${what}: `))) ?? []
      const scaling: Scaling = {
        ...{ efforts: [], migrations: [], replays: [], guests: [], templates: [] },
        ...before,
        format: 1,
        startedAt,
        commit: execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim(),
        command: 'node scripts/measure/scaling.ts',
        minutes,
        machine: {
          cpu: cpus()[0]!.model,
          cores: cpus().length,
          memoryBytes: totalmem(),
          loadAverage: Math.round(loadAverage! * 100) / 100,
        },
        versions: { pageferry: version, node: process.versions.node },
        stream: STREAM,
        effortStreams: EFFORT_GUESTS,
        templatesFrom: TEMPLATE_GUESTS,
        templateBytesMax: { longMatches: templateBytesMax(true), exactOnly: templateBytesMax(false) },
        flowsMax: FLOWS_MAX,
        ...parts,
        skipped: [...kept, ...bench.skipped],
      }
      mkdirSync(dirname(out), { recursive: true })
      writeFileSync(`${out}.part`, `${JSON.stringify(scaling, null, 1)}\n`)
      renameSync(`${out}.part`, out)
    }
    // after each part: what was measured outlives what ends it
    const keep = (part: Part, rows: Scaling[Part]): void => {
      const value = part === 'large' ? withLarge(before?.large, rows as LargeCost[]) : rows
      Object.assign(parts, { [part]: value })
      save()
    }
    for (const part of only) keep(part, await PARTS[part](bench, store, rows => keep(part, rows)))
    bench.say(`${out}${bench.skipped.length > 0 ? `; left out: ${bench.skipped.join('; ')}` : ''}`)
  } finally {
    remove()
  }
}

const { values } = parseArgs({
  options: {
    out: { type: 'string', default: join(COMPARE_FOLDER, 'scaling.json') },
    minutes: { type: 'string', default: '6' },
    only: { type: 'string', default: USUAL_PARTS.join() },
    gib: { type: 'string', default: LARGE_GIB_DEFAULT },
  },
})
try {
  const only = values.only.split(',') as Part[]
  const unknown = only.filter(part => !ALL_PARTS.includes(part))
  if (unknown.length > 0) throw new Error(`--only ${unknown.join()}: there are ${ALL_PARTS.join()}`)
  await measure(values.out, Number(values.minutes), only)
} catch (error) {
  console.error(`error: ${(error as Error).message}`)
  process.exitCode = 1
}
