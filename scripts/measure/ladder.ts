/**
 * The efforts beside plain zstd, without templates: CPU seconds of the whole process, its start included, and bytes. Then
 * CPU seconds by effort and stage of a process that is warm. Needs the lab's streams (`make lab`) and zstd.
 *
 *   node scripts/measure/ladder.ts [--streams nginx-k2,nginx,idle] [--rounds 5] [--efforts 0,1,2,3,4] [--only whole,warm]
 *     [--program DIR,DIR]      checkouts that are compared; default: this one
 *     [--peers 1,3,9]          levels of zstd, each with and without --long=27
 *     [--merge FILE,FILE...]   measures nothing, but puts together what was measured in turns: of the last program
 *     [--out FILE]             JSON; default: standard output
 *
 * Everything once in each round, so that what else the machine does falls on all alike; medians. `beaten` lists what should
 * not be: an effort above 0 of the last program that some zstd beats in both CPU and bytes.
 */

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { median } from '../harness/median.ts'
import { labStream, root } from './lab-streams.ts'
import type { WarmCost } from './ladder-warm.ts'

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
    out: { type: 'string' },
  },
})
const rounds = Number(options.rounds)
const programs = options.program.split(',')
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

const commitOf = (program: string): string =>
  execFileSync('git', ['-C', program, 'rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim()

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
  const text = `${JSON.stringify(ladder, null, 1)}\n`
  if (options.out === undefined) process.stdout.write(text)
  else writeFileSync(options.out, text)
}

const startedAt = new Date().toISOString()
const [loadAverage] = loadavg()
const folder = mkdtempSync(join(tmpdir(), 'pageferry-ladder-'))
try {
  if (options.merge !== undefined) {
    write(merged(options.merge.split(',').map(path => JSON.parse(readFileSync(path, 'utf8')) as Ladder)))
    process.exit()
  }
  const streams = options.streams.split(',')
  const parts = options.only.split(',')
  const costs = parts.includes('whole') ? streams.flatMap(stream => whole(stream, folder)) : []
  const ladder: Ladder = {
    format: 1,
    startedAt,
    commits: Object.fromEntries(programs.map(program => [nameOf(program), commitOf(program)])),
    command: `node scripts/measure/ladder.ts --streams ${options.streams} --rounds ${options.rounds} --efforts ${options.efforts}`,
    machine: { cpu: cpus()[0]!.model, cores: cpus().length, loadAverage: loadAverage! },
    versions: {
      node: process.versions.node,
      zstd: /v[\d.]+/.exec(execFileSync('zstd', ['--version'], { encoding: 'utf8' }))![0],
      'zstd in node': process.versions.zstd ?? '',
    },
    rounds,
    whole: costs,
    warm: parts.includes('warm') ? streams.flatMap(stream => warm(stream)) : [],
    beaten: beatenOf(costs),
  }
  write(ladder)
} finally {
  rmSync(folder, { recursive: true, force: true })
}
