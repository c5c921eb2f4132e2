/** Runs to figures: medians with their spread, what compares with what, and the issues' marks. Pure. */

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

/** One of the issues' marks. */
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

/** A mean of ratios over guests; of `bounds` more of them an upper bound of the ratio counts, as the base never came across. */
interface MeanRatio {
  readonly ratio: number
  readonly guests: number
  readonly bounds: number
}

/** A method over the workloads. */
export interface Average {
  readonly method: Method
  /** That it brought across, of all that were tried. */
  readonly guests: number
  readonly all: number
  /** Means of the medians of those that came across. */
  readonly totalMs: number | undefined
  readonly wanBytes: number | undefined
  readonly time: Readonly<Record<Base, MeanRatio | undefined>>
  readonly bytes: Readonly<Record<Base, MeanRatio | undefined>>
}

/** What the paper says its method saves of time and data, on average of its workloads. */
export const PAPER = { time: 0.27, data: 0.38 } as const

/** Guests made to be hard (scripts/measure/compare/guests.ts): in all tables, but no workloads to take averages over. */
const HARD_CASE = /^(random|never-converging)/

/** What marks compare with, in a sentence. */
const BASES = { direct: 'the direct migration', 'multifd-zstd': 'multifd with zstd' } as const
export type Base = keyof typeof BASES

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

  /**
   * Means over workloads, of what methods took beside two bases; each method over the same guests as the bases.
   * @returns a row for each of `methods` that ran
   */
  averages(methods: readonly Method[]): Average[] {
    const link = this.main.name
    return methods.flatMap((method): Average[] => {
      const cells = this.workloads.flatMap(guest => this.cell(link, guest, method) ?? [])
      const done = cells.filter(({ completed }) => completed > 0)
      if (cells.length === 0) return []
      const of = (base: Base, figure: 'totalMs' | 'wanBytes'): Average['time'][Base] => {
        if (method === base) return undefined
        const both = this.ratios(link, method, base, figure)
        const bounds = this.bounds(link, method, base, figure, this.workloads)
        if (both.length + bounds.length === 0) return undefined
        return {
          ratio: mean([...both, ...bounds].map(([, ratio]) => ratio)),
          guests: both.length,
          bounds: bounds.length,
        }
      }
      return [
        {
          method,
          guests: done.length,
          all: cells.length,
          totalMs: done.length === 0 ? undefined : mean(done.map(({ totalMs }) => totalMs!.median)),
          wanBytes: done.length === 0 ? undefined : mean(done.map(({ wanBytes }) => wanBytes!.median)),
          time: { direct: of('direct', 'totalMs'), 'multifd-zstd': of('multifd-zstd', 'totalMs') },
          bytes: { direct: of('direct', 'wanBytes'), 'multifd-zstd': of('multifd-zstd', 'wanBytes') },
        },
      ]
    })
  }

  /** The marks: those of issue 16, then those of issue 6, in their order. */
  marks(): Mark[] {
    const link = this.main.name
    const every = this.results.guests.map(({ name }) => name)
    const time = (id: string, who: string, most: number, method: Method, base: Base): Mark =>
      this.atMost(id, `total time of ${who}, of ${BASES[base]}`, most, link, method, base, 'totalMs')
    const bytes = (id: string, who: string, most: number, method: Method, base: Base): Mark =>
      this.atMost(id, `bytes of ${who}, of ${BASES[base]}`, most, link, method, base, 'wanBytes')
    const image = 'the pair that knows the golden image and one other guest'
    const templates = 'the pair that knows templates of two or more guests'
    return [
      time('templates-time', templates, 0.12, 'pair', 'direct'),
      time('templates-multifd', templates, 0.4, 'pair', 'multifd-zstd'),
      time('image-time', image, 0.08, 'pair-image', 'direct'),
      time('image-multifd', image, 0.3, 'pair-image', 'multifd-zstd'),
      time('time', 'the pair', 0.15, 'pair', 'direct'),
      bytes('bytes', 'the pair', 0.1, 'pair', 'direct'),
      time('multifd-time', 'the pair', 0.5, 'pair', 'multifd-zstd'),
      bytes('multifd-bytes', 'the pair', 0.5, 'pair', 'multifd-zstd'),
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
      bytes('paper-bytes', "the paper's method", 1 - PAPER.data, 'paper', 'direct'),
      time('paper-time', "the paper's method", 1 - PAPER.time, 'paper', 'direct'),
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
