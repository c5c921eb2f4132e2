/**
 * `node test/bench/first-migration-bench.ts [STREAM] [--effort auto,0,2] [--rounds 7] [--migrations 5] [--megabytes N]
 * [--program DIR,DIR] [--link 1Gbit,2ms] [--profile DIR] [--keys 3,2,1,0]`: what the first migration through a fresh pair costs beside
 * those behind it: seconds from the
 * feeder's connection to the sink's last byte, and CPU of both proxies. Checkouts take turns within each round. Each
 * migration is of another guest with the same memory: a captured stream, the bytes of whose pages are xored with the
 * migration's number (or with one of `--keys 3,2,1,0`), so that they pack as well and match no page of the guest before.
 * Medians. `--minutes N`: starts no round behind that; `--out FILE`: JSON as docs/measured has it.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { median } from '../../scripts/harness/median.ts'
import { endChild, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import type { FirstMigration } from '../../scripts/measure/cost-files.ts'
import { otherGuest } from '../../scripts/measure/other-guest.ts'
import { keepJson, provenance } from '../../scripts/measure/provenance.ts'
import { Replay, root, streamPath } from './replay.ts'

/** A pair rests when neither process used more than a hundredth of a core for so long. */
const REST_MS = 400
const PROFILED_REST_MS = 8000

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    effort: { type: 'string', default: 'auto' },
    rounds: { type: 'string', default: '7' },
    migrations: { type: 'string', default: '5' },
    megabytes: { type: 'string', default: '1000' },
    program: { type: 'string', default: root },
    link: { type: 'string' },
    profile: { type: 'string' },
    minutes: { type: 'string', default: '60' },
    keys: { type: 'string' },
    out: { type: 'string' },
  },
})
const [name = 'nginx-k2'] = positionals
const migrations = Number(options.migrations)

interface Sample {
  readonly seconds: number
  /** On the WAN. */
  readonly bytesWan: number
  /** Raw bytes by effort. */
  readonly efforts: Readonly<Record<number, number>>
  /** That were found whole in the pool. */
  readonly pagesKnown: number
  readonly source: Use
  readonly destination: Use
}

/** What a process has used so far. */
interface Use {
  /** CPU seconds of the first thread, and of all others: V8's, which compile and collect, libuv's, the worker's. */
  readonly main: number
  readonly others: number
  /** Pages that it touched for the first time. */
  readonly faults: number
}

function useOf(pid: number): Use {
  let all = 0
  let main = 0
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const seconds = Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[0]) / 1e9
    all += seconds
    if (task === String(pid)) main = seconds
  }
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ')
  return { main, others: all - main, faults: Number(fields[7]) }
}

const since = (now: Use, before: Use): Use => ({
  main: now.main - before.main,
  others: now.others - before.others,
  faults: now.faults - before.faults,
})

const cpuSeconds = (pid: number): number => {
  const { main, others } = useOf(pid)
  return main + others
}

function residentMb(pid: number): number {
  return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1000
}

async function rest(pids: readonly number[]): Promise<void> {
  if (options.profile) return sleep(PROFILED_REST_MS) // taking samples is work, too
  for (let before = pids.map(cpuSeconds); ; ) {
    await sleep(REST_MS)
    const now = pids.map(cpuSeconds)
    if (now.every((cpu, i) => cpu - before[i]! < REST_MS / 1e5)) return
    before = now
  }
}

interface Run {
  readonly samples: readonly Sample[]
  /** Both processes, before the first migration. */
  readonly startCpu: number
  readonly residentMb: number
}

async function run(program: string, effort: string, files: readonly string[]): Promise<Run> {
  const { profile } = options
  const env = profile ? { NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${profile}` } : {}
  await using pair = await Replay.start({
    ...{ program, link: options.link, sourceArgs: ['--effort', effort], sourceEnv: env, destinationEnv: env },
  })
  const pids = [pair.source!.child.pid!, pair.destination!.child.pid!]
  await rest(pids)
  const used = (): Use[] => pids.map(useOf)
  const startCpu = cpuSeconds(pids[0]!) + cpuSeconds(pids[1]!)
  const memory = residentMb(pids[0]!) + residentMb(pids[1]!)
  const samples: Sample[] = []
  for (const file of files) {
    const before = used()
    const [played] = await pair.play([file])
    const after = used()
    const summary = played!.summary!
    samples.push({
      seconds: played!.seconds,
      bytesWan: summary.bytesWan,
      efforts: summary.efforts,
      pagesKnown: summary.pages.earlier,
      source: since(after[0]!, before[0]!),
      destination: since(after[1]!, before[1]!),
    })
    await rest(pids)
  }
  // a profile is written at the exit
  if (profile) for (const side of [pair.source!, pair.destination!]) await endChild(side.child, 20_000)
  return { samples, startCpu, residentMb: memory }
}

const folder = temporaryFolder('first-migration')
const stream = readFileSync(streamPath(name)).subarray(0, Number(options.megabytes) * 1e6)
const keys = options.keys?.split(',').map(Number) ?? Array.from({ length: migrations }, (_, i) => i)
const files = Array.from({ length: migrations }, (_, i) => join(folder.path, `${i}.stream`))
for (const [i, file] of files.entries()) writeFileSync(file, otherGuest(stream, keys[i]!))
if (options.profile) mkdirSync(options.profile, { recursive: true })

const variants = options.effort
  .split(',')
  .flatMap(effort => options.program.split(',').map(program => ({ effort, program, runs: [] as Run[] })))
const told = provenance(
  `node test/bench/first-migration-bench.ts ${name} --effort ${options.effort} --rounds ${options.rounds} --migrations ${migrations}${options.link ? ` --link ${options.link}` : ''}`,
)
const startMs = performance.now()
for (let round = 0; round < Number(options.rounds); round++) {
  const isLate = (performance.now() - startMs) * (1 + 1 / round) > Number(options.minutes) * 60_000
  if (round > 0 && isLate) break
  process.stderr.write(`round ${round + 1}\n`)
  for (const variant of variants) variant.runs.push(await run(variant.program, variant.effort, files))
}

const columns = Array.from({ length: migrations }, (_, i) => i)
const table = new Table({
  head: ['effort', 'program', 'of', 'before', ...columns.map(i => `${i + 1}.`), 'first to last'],
  style: { head: [], border: [], compact: true },
})
for (const { effort, program, runs } of variants) {
  const row = (what: string, before: string, value: (sample: Sample) => number): void => {
    const medians = columns.map(i => median(runs.map(({ samples }) => value(samples[i]!))))
    const ratio = median(runs.map(({ samples }) => value(samples[0]!) / value(samples.at(-1)!)))
    table.push([effort, program, what, before, ...medians.map(seconds => seconds.toFixed(2)), ratio.toFixed(2)])
  }
  row('wall s', `${median(runs.map(one => one.residentMb)).toFixed(0)} MB resident`, sample => sample.seconds)
  for (const side of ['source', 'destination'] as const) {
    row(`${side}: first thread, CPU s`, '', sample => sample[side].main)
    row('other threads', '', sample => sample[side].others)
    row('1000 page faults', '', sample => sample[side].faults / 1000)
  }
  const startCpu = `${median(runs.map(one => one.startCpu)).toFixed(2)} CPU s`
  const total = ({ source, destination }: Sample): number =>
    source.main + source.others + destination.main + destination.others
  row('CPU s', startCpu, total)
  row('MB on the WAN', '', sample => sample.bytesWan / 1e6)
  row('1000 pages known', '', sample => sample.pagesKnown / 1000)
  const levels = new Set(runs.flatMap(({ samples }) => samples.flatMap(one => Object.keys(one.efforts).map(Number))))
  for (const level of [...levels].sort((a, b) => a - b))
    row(`MB at effort ${level}`, '', sample => (sample.efforts[level] ?? 0) / 1e6)
}
process.stdout.write(
  `${table.toString()}\n${name}, ${stream.length / 1e6} MB; medians of ${variants[0]!.runs.length}\n`,
)
if (options.out) {
  const cpu = ({ main, others }: Use): number => main + others
  const first: FirstMigration = {
    ...told,
    ...{ stream: name, bytes: stream.length, link: options.link ?? 'loopback', rounds: variants[0]!.runs.length },
    variants: variants.map(({ effort, program, runs }) => {
      const of = (i: number, value: (sample: Sample) => number): number =>
        median(runs.map(({ samples }) => value(samples[i]!)))
      const ratio = (value: (sample: Sample) => number): number =>
        median(runs.map(({ samples }) => value(samples[0]!) / value(samples.at(-1)!)))
      return {
        ...{ effort, program: basename(program) },
        startCpuSeconds: median(runs.map(one => one.startCpu)),
        residentBytes: median(runs.map(one => one.residentMb)) * 1e6,
        migrations: columns.map(i => ({
          seconds: of(i, sample => sample.seconds),
          sourceCpuSeconds: of(i, sample => cpu(sample.source)),
          destinationCpuSeconds: of(i, sample => cpu(sample.destination)),
        })),
        firstToLast: {
          seconds: ratio(sample => sample.seconds),
          cpuSeconds: ratio(one => cpu(one.source) + cpu(one.destination)),
        },
      }
    }),
  }
  keepJson(options.out, first)
}
folder.remove()
