/** Which migrations a comparison makes, in which order, and how long that takes. */

import { parseLink } from '../../harness/wan/link.ts'
import { type ComparedGuest, convergeLimitMs } from './guests.ts'
import { METHODS, type Method, type Run } from './results.ts'

/** One migration to make. */
export interface Job {
  readonly guest: string
  readonly profile: string
  readonly method: Method
  readonly round: number
}

/** What is to be compared. */
export interface Matrix {
  readonly guests: readonly string[]
  readonly profiles: readonly string[]
  readonly methods: readonly Method[]
  readonly rounds: number
}

export const ALL_METHODS = Object.keys(METHODS) as Method[]

/** What the marks of the issue are about. Their spread is worth several rounds; their peers have one, and more if time is left. */
const MAIN: readonly Method[] = ['direct', 'multifd-zstd', 'paper', 'pair']
/** What else a skilled user would try. */
const PEERS = ALL_METHODS.filter(method => !MAIN.includes(method))
/** On other links the ends of the range, and the best that QEMU has. */
const ENDS: readonly Method[] = ['direct', 'multifd-zstd', 'pair']

/** The default: everything once on the first link, a look at other links, then the cases that matter several times. */
export function defaultMatrices(rounds: number): Matrix[] {
  const others = ['metro', 'continental', 'intercontinental', 'lte']
  return [
    { guests: ['nginx-k2', 'postgres', 'python'], profiles: ['wan'], methods: ALL_METHODS, rounds },
    { guests: ['idle', 'never-converging'], profiles: ['wan'], methods: MAIN, rounds: 1 },
    { guests: ['nginx-k2', 'random'], profiles: ['lan'], methods: ['direct', 'pair'], rounds },
    { guests: ['nginx-k2'], profiles: others, methods: ENDS, rounds: 1 },
    { guests: ['never-converging'], profiles: ['wan'], methods: PEERS, rounds: 1 },
  ]
}

/**
 * The jobs of some matrices: all methods once, then again; the first round of everything before the second of anything,
 * and what is left out first, when time runs short, last.
 */
export function planJobs(matrices: readonly Matrix[]): Job[] {
  const jobs: (Job & { rank: number })[] = []
  for (const { guests, profiles, methods, rounds } of matrices)
    for (let round = 0; round < rounds; round++)
      for (const profile of profiles)
        for (const guest of guests)
          for (const method of methods) {
            const rank = round === 0 || MAIN.includes(method) ? round : rounds + round
            jobs.push({ guest, profile, method, round, rank })
          }
  jobs.sort((a, b) => a.rank - b.rank) // stable: the order within a round stays
  return jobs.map(({ rank: _, ...job }) => job)
}

export function jobKey({ guest, profile, method, round }: Job): string {
  return `${guest} ${profile} ${method} ${round}`
}

/** What a run needs beside the migration: start, warm up, look at the guest afterwards. */
const AROUND_SECONDS = 13
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
}
/** What QEMU and a pair can do on two cores. */
const BYTES_PER_SECOND_MAX = 60e6

/** Seconds that a job takes: as an earlier one like it, else as bytes and link suggest. */
export function estimateSeconds(job: Job, runs: readonly Run[], guest: ComparedGuest, link: string): number {
  const like = runs.filter(run => run.guest === job.guest && run.profile === job.profile && run.method === job.method)
  if (like.length > 0) return AROUND_SECONDS + like.reduce((sum, run) => sum + run.totalMs / 1000, 0) / like.length
  const rate = Math.min(parseLink(link).bitsPerSecond / 8, BYTES_PER_SECOND_MAX)
  const limitSeconds = convergeLimitMs(link) / 1000
  if (guest.neverConverges && SHARE[job.method] >= 1) return AROUND_SECONDS + limitSeconds
  const bytes = guest.memoryMb * 0.3e6 * SHARE[job.method]
  return AROUND_SECONDS + Math.min(bytes / rate, limitSeconds)
}
