/** Runs to figures: medians with their spread, what compares with what, and issue 6's marks. Pure. */

import { median } from '../harness/median.ts'
import { parseLink } from '../harness/wan/link.ts'
import { METHODS, type Method, type Profile, type Results, type Run } from '../measure/compare/results.ts'

/** A figure over several runs. */
export interface Spread {
  readonly median: number
  readonly least: number
  readonly most: number
  readonly count: number
}

/** All runs of one guest, over one link, by one method. */
export interface Cell {
  readonly guest: string
  readonly profile: string
  readonly method: Method
  readonly runs: readonly Run[]
  /** Runs that completed: the figures are of these, unless there is none. */
  readonly completed: number
  /** What went wrong with the others, without repetitions. */
  readonly reasons: readonly string[]
  readonly totalMs: Spread | undefined
  /** Both directions. */
  readonly wanBytes: Spread | undefined
  readonly downtimeMs: Spread | undefined
  readonly guestPauseMs: Spread | undefined
  readonly passes: Spread | undefined
  readonly cpuSeconds: Spread | undefined
  /** Median of each part. */
  readonly cpuByPart: Readonly<Record<string, number>>
  readonly guestSpeed: Spread | undefined
}

/** undefined where there is nothing. */
export function spreadOf(values: readonly (number | null)[]): Spread | undefined {
  const sorted = values.filter(value => value !== null).sort((a, b) => a - b)
  if (sorted.length === 0) return undefined
  return { median: median(sorted), least: sorted[0]!, most: sorted.at(-1)!, count: sorted.length }
}

export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}

function cellOf(runs: readonly Run[]): Cell {
  const { guest, profile, method } = runs[0]!
  const whole = runs.filter(run => run.outcome === 'completed')
  const of = (value: (run: Run) => number | null): Spread | undefined => spreadOf(whole.map(value))
  const parts = [...new Set(whole.flatMap(run => Object.keys(run.cpuSeconds)))]
  return {
    guest,
    profile,
    method,
    runs,
    completed: whole.length,
    reasons: [
      ...new Set(
        runs.filter(run => run.outcome !== 'completed').map(run => `${words(run.outcome)}: ${run.reason ?? 'unknown'}`),
      ),
    ],
    totalMs: of(run => run.totalMs),
    wanBytes: of(run => run.wanBytes.forward + run.wanBytes.back),
    downtimeMs: of(run => run.downtimeMs),
    guestPauseMs: of(run => run.guestPauseMs),
    passes: of(run => run.passes),
    cpuSeconds: of(run => Object.values(run.cpuSeconds).reduce((sum, seconds) => sum + seconds, 0)),
    cpuByPart: Object.fromEntries(parts.map(part => [part, of(run => run.cpuSeconds[part] ?? 0)!.median])),
    guestSpeed: of(run => run.guestSpeed),
  }
}

function words(outcome: Run['outcome']): string {
  return outcome.replaceAll('-', ' ')
}

/** One of issue 6's marks. */
export interface Mark {
  /** Heading of its reason in remarks.md. */
  readonly id: string
  readonly text: string
  readonly limit: string
  readonly measured: string
  readonly state: 'met' | 'missed' | 'not measured'
  /** Guest by guest. */
  readonly detail: string
}

/** What the paper says its method saves of time and data, on average of its workloads. */
export const PAPER = { time: 0.27, data: 0.38 } as const

/** Guests made to be hard (scripts/measure/compare/guests.ts): in all tables, but no workloads to take averages over. */
const HARD_CASE = /^(random|never-converging)/

/** What marks compare with, in a sentence. */
const BASES = { direct: 'the direct migration', 'multifd-zstd': 'multifd with zstd' } as const
type Base = keyof typeof BASES

/** Everything that the report says of a comparison. */
export class Figures {
  readonly results: Results
  readonly cells: readonly Cell[]
  /** The link that the marks are about: 100 Mbit/s and 40 ms; else the first that is no LAN. */
  readonly main: Profile
  /** 10 Gbit/s or faster; undefined: not measured. */
  readonly lan: Profile | undefined
  /** In the order of METHODS, those that ran. */
  readonly methods: readonly Method[]

  /** @throws Error for a file without runs */
  constructor(results: Results) {
    this.results = results
    const groups = Map.groupBy(results.runs, run => JSON.stringify([run.profile, run.guest, run.method]))
    this.cells = [...groups.values()].map(cellOf)
    const link = ({ link }: Profile) => parseLink(link)
    this.lan = results.profiles.find(profile => link(profile).bitsPerSecond >= 10e9)
    const main =
      results.profiles.find(profile => link(profile).bitsPerSecond === 100e6 && link(profile).roundTripMs === 40) ??
      results.profiles.find(profile => profile !== this.lan) ??
      results.profiles[0]
    if (main === undefined || this.cells.length === 0) throw new Error('the results have no runs')
    this.main = main
    this.methods = (Object.keys(METHODS) as Method[]).filter(method => this.cells.some(cell => cell.method === method))
  }

  cell(profile: string, guest: string, method: Method): Cell | undefined {
    return this.cells.find(cell => cell.profile === profile && cell.guest === guest && cell.method === method)
  }

  /** Guests that averages are taken over. */
  get workloads(): readonly string[] {
    return this.results.guests.map(({ name }) => name).filter(name => !HARD_CASE.test(name))
  }

  /**
   * A method's figure as a part of another method's, guest by guest: where both completed.
   * @returns [guest, ratio of the medians]
   */
  ratios(
    profile: string,
    method: Method,
    base: Method,
    figure: 'totalMs' | 'wanBytes' | 'downtimeMs' | 'guestPauseMs',
    guests: readonly string[] = this.workloads,
  ): [guest: string, ratio: number][] {
    return guests.flatMap(guest => {
      const one = this.cell(profile, guest, method)?.[figure]?.median
      const other = this.cell(profile, guest, base)?.[figure]?.median
      return one === undefined || other === undefined || other === 0 ? [] : [[guest, one / other] as [string, number]]
    })
  }

  /**
   * The same where the base never came across: what it had used when it was stopped is less than it needs, so the ratio to
   * that is more than the true one.
   * @returns [guest, upper bound of the ratio]
   */
  private bounds(
    profile: string,
    method: Method,
    base: Base,
    figure: 'totalMs' | 'wanBytes',
    guests: readonly string[],
  ): [guest: string, most: number][] {
    return guests.flatMap(guest => {
      const one = this.cell(profile, guest, method)?.[figure]?.median
      const runs = this.cell(profile, guest, base)?.runs ?? []
      if (one === undefined || runs.length === 0) return []
      if (runs.some(({ outcome }) => outcome !== 'did-not-converge')) return []
      const used = runs.map(run => (figure === 'totalMs' ? run.totalMs : run.wanBytes.forward + run.wanBytes.back))
      return [[guest, one / Math.min(...used)] as [string, number]]
    })
  }

  /** The marks, in the order of issue 6. */
  marks(): Mark[] {
    const link = this.main.name
    const every = this.results.guests.map(({ name }) => name)
    return [
      this.atMost('time', 'total time of the pair, of the direct migration', 0.15, link, 'pair', 'direct', 'totalMs'),
      this.atMost('bytes', 'bytes of the pair, of the direct migration', 0.1, link, 'pair', 'direct', 'wanBytes'),
      this.atMost(
        'multifd-time',
        'total time of the pair, of multifd with zstd',
        0.5,
        link,
        'pair',
        'multifd-zstd',
        'totalMs',
      ),
      this.atMost(
        'multifd-bytes',
        'bytes of the pair, of multifd with zstd',
        0.5,
        link,
        'pair',
        'multifd-zstd',
        'wanBytes',
      ),
      this.atMost(
        'downtime',
        'downtime by QEMU of the pair, of the direct migration',
        1,
        link,
        'pair',
        'direct',
        'downtimeMs',
      ),
      this.converges(),
      this.atMost(
        'paper-bytes',
        "bytes of the paper's method, of the direct migration",
        1 - PAPER.data,
        link,
        'paper',
        'direct',
        'wanBytes',
      ),
      this.atMost(
        'paper-time',
        "total time of the paper's method, of the direct migration",
        1 - PAPER.time,
        link,
        'paper',
        'direct',
        'totalMs',
      ),
      this.atMost(
        'lan',
        'total time of the pair on a LAN, of the direct migration',
        1.05,
        this.lan?.name,
        'pair',
        'direct',
        'totalMs',
        every,
      ),
    ]
  }

  private atMost(
    id: string,
    text: string,
    most: number,
    profile: string | undefined,
    method: Method,
    base: Base,
    figure: 'totalMs' | 'wanBytes' | 'downtimeMs',
    guests: readonly string[] = this.workloads,
  ): Mark {
    const both = profile === undefined ? [] : this.ratios(profile, method, base, figure, guests)
    const bounds =
      profile === undefined || figure === 'downtimeMs' ? [] : this.bounds(profile, method, base, figure, guests)
    const head = { id, text, limit: `at most ${most.toFixed(2)}` }
    if (both.length + bounds.length === 0)
      return { ...head, measured: 'not measured', state: 'not measured', detail: '' }
    const average = (ratios: typeof both): number => mean(ratios.map(([, ratio]) => ratio))
    const measured = average([...both, ...bounds])
    const detail = [
      ...both.map(([guest, ratio]) => `${guest} ${ratio.toFixed(2)}`),
      ...bounds.map(([guest, ratio]) => `${guest} at most ${ratio.toFixed(2)}`),
    ].join(', ')
    const without = both.length === 0 ? '' : ` Without those guests: ${average(both).toFixed(3)}.`
    return {
      ...head,
      measured: `${bounds.length > 0 ? 'at most ' : ''}${measured.toFixed(3)}`,
      state: measured <= most ? 'met' : 'missed',
      detail:
        bounds.length === 0
          ? detail
          : `${detail}: there ${BASES[base]} was stopped before it converged, and what it had used by then stands for what it needs.${without}`,
    }
  }

  /** Where the direct migration does not end, the pair's does. */
  private converges(): Mark {
    const head = {
      id: 'converges',
      text: 'guests that never converge directly converge through the pair',
      limit: 'all runs',
    }
    const guests = this.results.guests.filter(({ name }) => {
      const direct = this.cell(this.main.name, name, 'direct')
      return direct?.runs.some(run => run.outcome === 'did-not-converge')
    })
    const pairs = guests.flatMap(({ name }) => this.cell(this.main.name, name, 'pair') ?? [])
    const runs = pairs.reduce((sum, cell) => sum + cell.runs.length, 0)
    if (runs === 0) return { ...head, measured: 'not measured', state: 'not measured', detail: '' }
    const completed = pairs.reduce((sum, cell) => sum + cell.completed, 0)
    return {
      ...head,
      measured: `${completed} of ${runs} runs`,
      state: completed === runs ? 'met' : 'missed',
      detail: pairs.map(cell => `${cell.guest} ${cell.completed} of ${cell.runs.length}`).join(', '),
    }
  }
}
