/**
 * The efforts beside plain zstd, without templates: CPU seconds of the whole process, its start included, and bytes. Then
 * CPU seconds by effort and stage of a process that is warm. Needs the lab's streams (`make lab`) and zstd.
 *
 *   node scripts/measure/ladder.ts [--streams nginx-k2,nginx,idle] [--rounds 5] [--efforts 0,1,2,3,4] [--only whole,warm]
 *     [--streams all]          every stream of the lab but those of the same guest once more
 *     [--minutes N]            begins no stream that would end behind that, if it takes as long as the one before
 *     [--program DIR,DIR]      checkouts that are compared; default: this one
 *     [--peers 1,3,9]          levels of zstd, each with and without --long=27
 *     [--merge FILE,FILE...]   measures nothing, but puts together what was measured in turns: of the last program
 *     [--out FILE]             JSON; default: standard output. Written after each stream; keeps what it has of other streams
 *                              and parts, where the checkouts are at the same commits
 *
 * What takes more than a few seconds is measured in the first round alone: it is there for its bytes.
 * Everything once in each round, so that what else the machine does falls on all alike; medians. `beaten` lists what should
 * not be: an effort above 0 of the last program that some zstd beats in both CPU and bytes.
 */

import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { basename, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { median } from '../harness/median.ts'
import { labStream, root } from './lab-streams.ts'
import type { WarmCost } from './ladder-warm.ts'
import { commitOf, keepJson } from './provenance.ts'

/** One thread, as a migration has one stream: `--single-thread` keeps reading and writing there, too. */
const peersOf = (levels: readonly number[]): string[] =>
  levels.flatMap(level => [`zstd --single-thread -${level}`, `zstd --single-thread -${level} --long=27`])

export interface WholeCost {
  readonly stream: string
  readonly rawBytes: number
  /** A command of zstd, or `effort N` */
  readonly by: string
  readonly program?: string
  readonly bytes: number
  /** User and system of the process, all its threads: median, least and most. */
  readonly cpuSeconds: number
  readonly cpuSecondsMin: number
  readonly cpuSecondsMax: number
}

export interface Ladder {
  readonly format: 1
  readonly startedAt: string
  readonly commits: Readonly<Record<string, string>>
  readonly command: string
  readonly machine: { readonly cpu: string; readonly cores: number; readonly loadAverage: number }
  readonly versions: Readonly<Record<string, string>>
  readonly rounds: number
  readonly whole: readonly WholeCost[]
  readonly warm: readonly (WarmCost & { readonly stream: string; readonly program: string })[]
  readonly beaten: readonly string[]
}

const { values: options } = parseArgs({
  options: {
    streams: { type: 'string', default: 'nginx-k2,nginx,idle' },
    rounds: { type: 'string', default: '5' },
    efforts: { type: 'string', default: '0,1,2,3,4' },
    only: { type: 'string', default: 'whole,warm' },
    program: { type: 'string', default: root },
    peers: { type: 'string', default: '1,3,9' },
    merge: { type: 'string' },
    minutes: { type: 'string', default: '60' },
    out: { type: 'string' },
  },
})
const rounds = Number(options.rounds)
/** CPU seconds. */
const LONG_SECONDS = 4
/** Of the lab's guests a stream each; the others differ from these in how they were captured. */
const ALL_STREAMS = ['idle', 'nginx', 'nginx-k2', 'redis', 'compiling', 'python', 'postgres']
const programs = options.program.split(',').map(program => resolve(program))
const efforts = options.efforts.split(',')

interface Variant {
  readonly by: string
  readonly program?: string
  /** What it packs goes to `out`. */
  command(path: string, out: string): readonly string[]
}

const variants: Variant[] = [
  ...peersOf(options.peers.split(',').filter(Boolean).map(Number)).map(by => ({
    by,
    command: (path: string, out: string) => [...by.split(' '), '-f', path, '-o', out],
  })),
  ...efforts.flatMap(effort =>
    programs.map(program => ({
      by: `effort ${effort}`,
      program,
      command: (path: string, out: string) => [
        ...[join(program, 'bin/pageferry'), 'encode', path, '-o', out, '--effort', effort],
      ],
    })),
  ),
]

function cpuSeconds(command: readonly string[]): number {
  const script = `TIMEFORMAT='%3U %3S'; time "$@" > /dev/null 2>&1`
  const { stderr, status } = spawnSync('bash', ['-c', script, 'bash', ...command], { encoding: 'utf8' })
  const times = /([\d.]+) ([\d.]+)\s*$/.exec(stderr)
  if (status !== 0 || times === null) throw new Error(`${command.join(' ')}: ${stderr}`)
  return Number(times[1]) + Number(times[2])
}

function whole(stream: string, folder: string): WholeCost[] {
  const path = labStream(stream)
  const out = join(folder, 'packed')
  const seconds = variants.map((): number[] => [])
  const bytes: number[] = []
  for (let round = 0; round < rounds; round++) {
    process.stderr.write(`${stream}, round ${round + 1} of ${rounds}\n`)
    for (const [i, variant] of variants.entries()) {
      if (round > 0 && seconds[i]![0]! > LONG_SECONDS) continue
      seconds[i]!.push(cpuSeconds(variant.command(path, out)))
      bytes[i] = statSync(out).size
    }
  }
  return variants.map(({ by, program }, i) => ({
    stream,
    rawBytes: statSync(path).size,
    by,
    ...(program === undefined ? {} : { program: nameOf(program) }),
    bytes: bytes[i]!,
    cpuSeconds: median(seconds[i]!),
    cpuSecondsMin: Math.min(...seconds[i]!),
    cpuSecondsMax: Math.max(...seconds[i]!),
  }))
}

function warm(stream: string): Ladder['warm'] {
  const script = fileURLToPath(new URL('./ladder-warm.ts', import.meta.url))
  return programs.flatMap(program => {
    process.stderr.write(`${stream}, warm, ${nameOf(program)}\n`)
    const flags = ['--max-semi-space-size=2', '--heap-growing-percent=400'] // as bin/pageferry
    const args = [...flags, script, program, labStream(stream), options.efforts, `${rounds}`]
    const { stdout, status } = spawnSync(process.execPath, args, {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, MALLOC_ARENA_MAX: '1' },
    })
    if (status !== 0) throw new Error(`${args.join(' ')} ended with ${status}`)
    return (JSON.parse(stdout) as WarmCost[]).map(cost => ({ stream, program: nameOf(program), ...cost }))
  })
}

function nameOf(program: string): string {
  return basename(program)
}

/** Efforts above 0 of the last program that a zstd beats in both. */
function beatenOf(costs: readonly WholeCost[]): string[] {
  const last = nameOf(programs.at(-1)!)
  return costs
    .filter(({ program, by }) => program === last && by !== 'effort 0')
    .flatMap(ours =>
      costs
        .filter(({ program, stream }) => program === undefined && stream === ours.stream)
        .filter(({ bytes, cpuSeconds: seconds }) => bytes <= ours.bytes && seconds <= ours.cpuSeconds)
        .map(({ by, bytes, cpuSeconds: seconds }) => {
          const figures = (b: number, s: number): string => `${(b / 1e6).toFixed(1)} MB in ${s.toFixed(2)} s`
          return `${ours.stream}: ${ours.by} (${figures(ours.bytes, ours.cpuSeconds)}) by ${by} (${figures(bytes, seconds)})`
        }),
    )
}

/** Turns of one ladder, as one. */
function merged(ladders: readonly Ladder[]): Ladder {
  const whole = ladders.flatMap(ladder => ladder.whole)
  return {
    ...ladders[0]!,
    commits: Object.assign({}, ...ladders.map(({ commits }) => commits)),
    command: [...new Set(ladders.map(({ command }) => command))].join('; '),
    machine: { ...ladders[0]!.machine, loadAverage: median(ladders.map(({ machine }) => machine.loadAverage)) },
    rounds: Math.min(...ladders.map(({ rounds }) => rounds)),
    whole,
    warm: ladders.flatMap(({ warm }) => warm),
    beaten: beatenOf(whole),
  }
}

function write(ladder: Ladder): void {
  if (options.out === undefined) process.stdout.write(`${JSON.stringify(ladder, null, 1)}\n`)
  else keepJson(options.out, ladder)
}

/** What the file has that is of the same commits. */
function keptBefore(commits: Ladder['commits']): Pick<Ladder, 'commits' | 'whole' | 'warm'> {
  const none = { commits: {}, whole: [], warm: [] }
  if (options.out === undefined || !existsSync(options.out)) return none
  const before = JSON.parse(readFileSync(options.out, 'utf8')) as Ladder
  const isAlike = Object.entries(commits).every(([program, commit]) => (before.commits[program] ?? commit) === commit)
  return isAlike && before.commits[nameOf(programs.at(-1)!)] !== undefined ? before : none
}

const startedAt = new Date().toISOString()
const loadAverage = Math.round(loadavg()[0]! * 100) / 100
const folder = mkdtempSync(join(tmpdir(), 'pageferry-ladder-'))
try {
  if (options.merge !== undefined) {
    write(merged(options.merge.split(',').map(path => JSON.parse(readFileSync(path, 'utf8')) as Ladder)))
    process.exit()
  }
  const streams = options.streams === 'all' ? ALL_STREAMS : options.streams.split(',')
  const parts = options.only.split(',')
  const commits = Object.fromEntries(programs.map(program => [nameOf(program), commitOf(program)]))
  const before = keptBefore(commits)
  const costs: WholeCost[] = []
  const warmed: Ladder['warm'][number][] = []
  const ladderOf = (): Ladder => {
    const isNew = (row: { stream: string; program?: string }, rows: readonly { stream: string; program?: string }[]) =>
      rows.every(({ stream, program }) => stream !== row.stream || program !== row.program)
    const whole = [...before.whole.filter(row => isNew(row, costs)), ...costs]
    return {
      format: 1,
      startedAt,
      commits: { ...before.commits, ...commits },
      command: `node scripts/measure/ladder.ts --streams ${options.streams} --rounds ${options.rounds} --efforts ${options.efforts}`,
      machine: { cpu: cpus()[0]!.model, cores: cpus().length, loadAverage },
      versions: {
        node: process.versions.node,
        zstd: /v[\d.]+/.exec(execFileSync('zstd', ['--version'], { encoding: 'utf8' }))![0],
        'zstd in node': process.versions.zstd ?? '',
      },
      rounds,
      whole,
      warm: [...before.warm.filter(row => isNew(row, warmed)), ...warmed],
      beaten: beatenOf(whole),
    }
  }
  const startMs = performance.now()
  const minutes = (ms: number): number => ms / 60_000
  let last = 0
  const each = (part: string, measure: (stream: string) => void): void => {
    for (const stream of parts.includes(part) ? streams : []) {
      const began = performance.now()
      if (minutes(began - startMs) + last > Number(options.minutes)) {
        process.stderr.write(`${stream}, ${part}: the time was over\n`)
        continue
      }
      measure(stream)
      last = minutes(performance.now() - began)
      if (options.out !== undefined) write(ladderOf())
    }
  }
  each('whole', stream => costs.push(...whole(stream, folder)))
  each('warm', stream => warmed.push(...warm(stream)))
  write(ladderOf())
  process.stderr.write(`beaten: ${beatenOf(costs).join('; ') || 'none'}\n`)
} finally {
  rmSync(folder, { recursive: true, force: true })
}
