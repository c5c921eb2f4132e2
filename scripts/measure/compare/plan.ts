/** Which migrations a comparison makes, in which order, and how long that takes. */

import { LINK_PROFILES, parseLink } from '../../harness/wan/link.ts'
import { type ComparedGuest, convergeLimitMs, DISK_GUEST } from './guests.ts'
import { type DiskCase, METHODS, type Method, type Results } from './results.ts'

/** One migration to make. */
export interface Job {
  readonly guest: string
  readonly profile: string
  readonly method: Method
  readonly round: number
}

/** A guest to move with its disk. */
export interface DiskJob {
  readonly guest: string
  readonly profile: string
  readonly disk: DiskCase
  readonly round: number
}

/** What is to be said of a migration beforehand: with what `method` knows. */
export interface EstimateJob {
  readonly guest: string
  readonly profile: string
  readonly estimate: Method
}

export type Step = Job | DiskJob | EstimateJob

/** What is to be compared. */
export interface Matrix {
  readonly guests: readonly string[]
  readonly profiles: readonly string[]
  readonly methods: readonly Method[]
  readonly rounds: number
}

export const ALL_METHODS = Object.keys(METHODS) as Method[]
export const ALL_LINKS = Object.keys(LINK_PROFILES)

/** What the marks of the issues are about. Their spread is worth several rounds; their peers have one, and more if time is left. */
const MAIN: readonly Method[] = ['direct', 'multifd-zstd', 'pair', 'pair-image', 'paper']
/** Of each guest, at the link that the marks are about. */
const MARKS: readonly Method[] = ['direct', 'multifd-zstd', 'pair', 'pair-image']
/** What of these takes seconds: so several rounds of it fit in. */
const SHORT: readonly Method[] = ['multifd-zstd', 'pair', 'pair-image']
/** What else a skilled user would try. */
const PEERS: readonly Method[] = ['paper', 'xbzrle', 'auto-converge', 'zstd-pipe', 'wanproxy']
/** On other links the ends of the range, and the best that QEMU has. */
const ENDS: readonly Method[] = ['direct', 'multifd-zstd', 'pair']

/** Those that come across directly first: their ratios say most. */
const CONVERGING = ['nginx-k2', 'idle', 'nginx', 'redis']
const BUSIER = ['postgres', 'python', 'compiling']
const WORKLOADS = [...CONVERGING, ...BUSIER]
/** The guest that all links and all peers are tried on. */
const MAIN_GUEST = 'nginx-k2'
/** The last one is so thin that it takes as long as all others. */
const OTHER_LINKS = ['metro', 'continental', 'intercontinental', 'lan', 'lte']
const DISKS: readonly DiskCase[] = ['direct', 'known', 'unknown', 'memory']

/**
 * The default, what matters most first, since what does not fit into the time is left out: what the marks ask for, all
 * links, disks, all peers, the paper's method, a second round of what the marks are about, and what else there is.
 */
export function defaultPlan(rounds: number): Step[] {
  const steps = [
    ...jobs(WORKLOADS, 'wan', MARKS, 0),
    ...OTHER_LINKS.flatMap(profile => jobs([MAIN_GUEST], profile, ENDS, 0)),
    ...disks(0),
    ...jobs([MAIN_GUEST], 'wan', PEERS, 0),
    ...jobs(CONVERGING.slice(1), 'wan', ['paper'], 0),
    ...WORKLOADS.map((guest): EstimateJob => ({ guest, profile: 'wan', estimate: 'pair' })),
    ...(rounds > 1 ? jobs(WORKLOADS, 'wan', SHORT, 1) : []),
    ...jobs(['never-converging'], 'wan', MAIN, 0),
    ...jobs(['random'], 'lan', ['direct', 'pair'], 0),
    ...jobs(WORKLOADS, 'wan', ['pair-image-alone'], 0),
    ...(rounds > 1 ? jobs(CONVERGING, 'wan', ['direct'], 1) : []),
  ]
  for (let round = 2; round < rounds; round++) {
    steps.push(...jobs(WORKLOADS, 'wan', SHORT, round), ...jobs(CONVERGING, 'wan', ['direct'], round))
    steps.push(...OTHER_LINKS.slice(0, 4).flatMap(profile => jobs([MAIN_GUEST], profile, ENDS, round - 1)))
  }
  return [
    ...steps,
    ...jobs(BUSIER, 'wan', ['paper'], 0),
    ...jobs(['postgres', 'python', 'never-converging'], 'wan', PEERS.slice(1), 0),
    ...(rounds > 1 ? disks(1) : []),
  ]
}

function jobs(guests: readonly string[], profile: string, methods: readonly Method[], round: number): Job[] {
  return guests.flatMap(guest => methods.map(method => ({ guest, profile, method, round })))
}

function disks(round: number): DiskJob[] {
  return DISKS.map(disk => ({ guest: DISK_GUEST, profile: 'wan', disk, round }))
}

/**
 * The jobs of a matrix: all methods once, then again; the first round of everything before the second of anything, and what
 * is left out first, when time runs short, last.
 */
export function planJobs({ guests, profiles, methods, rounds }: Matrix): Job[] {
  const ranked: (Job & { rank: number })[] = []
  for (let round = 0; round < rounds; round++)
    for (const profile of profiles)
      for (const job of jobs(guests, profile, methods, round)) {
        const rank = round === 0 || MAIN.includes(job.method) ? round : rounds + round
        ranked.push({ ...job, rank })
      }
  ranked.sort((a, b) => a.rank - b.rank) // stable: the order within a round stays
  return ranked.map(({ rank: _, ...job }) => job)
}

/** What tells a step from all others, in the results too. */
export function stepKey(step: Step): string {
  const { guest, profile } = step
  if ('method' in step) return `${guest} ${profile} ${step.method} ${step.round}`
  return 'disk' in step
    ? `${guest} ${profile} disk ${step.disk} ${step.round}`
    : `${guest} ${profile} ${step.estimate} told`
}

/** Keys of what the results have already. */
export function keysOf({
  runs,
  disks = [],
  estimates = [],
}: Pick<Results, 'runs' | 'disks' | 'estimates'>): Set<string> {
  const told = estimates.map(({ guest, profile, method }): EstimateJob => ({ guest, profile, estimate: method }))
  return new Set([...runs, ...disks, ...told].map(stepKey))
}

/** For people. */
export function stepText(step: Step): string {
  const { guest, profile } = step
  if ('method' in step) return `${step.method} of ${guest} over ${profile}, round ${step.round}`
  if ('estimate' in step) return `what is said of ${guest} over ${profile} beforehand (${step.estimate})`
  return `${guest} with its disk over ${profile} (${step.disk}), round ${step.round}`
}

/** What a run needs beside the migration: start, warm up, look at the guest afterwards. */
const AROUND_SECONDS = 11
/** Bytes on the link, as part of what a guest's state has. Only until the first such run has been made. */
const SHARE: Record<Method, number> = {
  direct: 1.2,
  xbzrle: 1.2,
  'multifd-zstd': 0.45,
  'auto-converge': 1.2,
  'zstd-pipe': 0.3,
  wanproxy: 0.5,
  paper: 0.8,
  pair: 0.25,
  'pair-image': 0.1,
  'pair-image-alone': 0.15,
}
/** What a lab guest has on its disk, and how much of it crosses, with its memory behind it; also until it has been made. */
const DISK_BYTES = 1.5e9
const DISK_SHARE: Record<DiskCase, number> = {
  direct: 1.15,
  known: 0.05,
  held: 0.05,
  unknown: 0.25,
  large: 0.25,
  memory: 0.03,
}
/** Two disks are compared behind it, and what a pair does not get through faster. */
const AROUND_DISK_SECONDS = 30
/** The pair encodes the guest at each effort. */
const ESTIMATE_SECONDS = 14
/** What QEMU and a pair can do on two cores. */
const BYTES_PER_SECOND_MAX = 60e6

/** Seconds that a step takes: as an earlier one like it, else as bytes and link suggest. */
export function estimateSeconds(step: Step, results: Results, guest: ComparedGuest, link: string): number {
  const alike = (one: { guest: string; profile: string }): boolean =>
    one.guest === step.guest && one.profile === step.profile
  const rate = Math.min(parseLink(link).bitsPerSecond / 8, BYTES_PER_SECOND_MAX)
  if ('estimate' in step) return ESTIMATE_SECONDS
  if ('disk' in step) {
    const like = results.disks?.find(run => alike(run) && run.disk === step.disk && run.outcome === 'completed')
    const seconds = like
      ? (like.mirror?.seconds ?? 0) + (like.memory?.seconds ?? 0)
      : (DISK_BYTES * DISK_SHARE[step.disk]) / rate
    return AROUND_DISK_SECONDS + seconds
  }
  const like = results.runs.filter(run => alike(run) && run.method === step.method)
  if (like.length > 0) return AROUND_SECONDS + like.reduce((sum, run) => sum + run.totalMs / 1000, 0) / like.length
  const limitSeconds = convergeLimitMs(link) / 1000
  if (guest.neverConverges && SHARE[step.method] >= 1) return AROUND_SECONDS + limitSeconds
  const bytes = guest.memoryMb * 0.3e6 * SHARE[step.method]
  return AROUND_SECONDS + Math.min(bytes / rate, limitSeconds)
}
