/**
 * What was measured, as it is kept in docs/measured/: small enough for the tree, enough to render the report again, a run
 * a line, so that a new measurement can be read as a difference.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Results, Run } from '../measure/compare/results.ts'
import type { FirstMigration, Passage, RawLink, Threads } from '../measure/cost-files.ts'
import type { Ladder } from '../measure/ladder.ts'
import type { PageMap } from '../measure/page-map-file.ts'
import type { Scaling } from '../measure/scaling.ts'

/** One file each; all but the first may be missing. */
export interface Measured {
  readonly results: Results
  readonly map: PageMap | undefined
  readonly scaling: Scaling | undefined
  readonly ladder: Ladder | undefined
  readonly first: FirstMigration | undefined
  readonly raw: RawLink | undefined
  readonly threads: Threads | undefined
  readonly passage: Passage | undefined
}

/** One in so many samples of a migration's progress is kept. */
const SAMPLES_KEPT = 4
const PASS_ENDS_MAX = 8

const NAMES = {
  results: 'compare.json',
  map: 'page-map.json',
  scaling: 'scaling.json',
  ladder: 'ladder.json',
  first: 'first-migration.json',
  raw: 'raw-link.json',
  threads: 'threads.json',
  passage: 'passage.json',
} as const
/** Where measuring writes. */
const FRESH = { ...NAMES, results: 'results.json' } as const

/** @param fresh the folder is one that measuring wrote to, not docs/measured/ @throws Error where there is none, or of another format */
export function readMeasured(folder: string, fresh = false): Measured {
  const names = fresh ? FRESH : NAMES
  const results = read<Results>(join(folder, names.results))
  if (results === undefined)
    throw new Error(`there is no ${join(folder, names.results)}: \`make bench-migrate\` makes it`)
  return {
    results,
    map: read(join(folder, names.map)),
    scaling: read(join(folder, names.scaling)),
    ladder: read(join(folder, names.ladder)),
    first: read(join(folder, names.first)),
    raw: read(join(folder, names.raw)),
    threads: read(join(folder, names.threads)),
    passage: read(join(folder, names.passage)),
  }
}

function read<T extends { readonly format: number }>(path: string): T | undefined {
  if (!existsSync(path)) return undefined
  const value = JSON.parse(readFileSync(path, 'utf8')) as T
  if (value.format !== 1) throw new Error(`${path}: format ${value.format}, this report knows 1`)
  return value
}

/** Keeps it in `folder`. @param profile the one whose progress over time is shown */
export function keepMeasured(folder: string, measured: Measured, profile: string): void {
  mkdirSync(folder, { recursive: true })
  for (const key of Object.keys(NAMES) as (keyof typeof NAMES)[]) {
    const value = key === 'results' ? slimmer(measured.results, profile) : measured[key]
    if (value) writeFileSync(join(folder, NAMES[key]), lines(value))
  }
}

/** The results without what no plot and no table needs. */
export function slimmer(results: Results, profile: string): Results {
  const runs = results.runs.map((run): Run => {
    if (run.round !== 0 || run.profile !== profile || run.progress.length < 2) return { ...run, progress: [] }
    if (run.passEnds) return run
    return { ...run, progress: run.progress.filter((_, i) => i % SAMPLES_KEPT === 0), passEnds: passEnds(run) }
  })
  return { ...results, runs }
}

/** The last sample of each pass. */
export function passEnds(run: Run): NonNullable<Run['passEnds']> {
  if (run.passEnds) return run.passEnds
  const last = run.progress.filter((sample, i) => run.progress[i + 1]?.pass !== sample.pass)
  const samples = last.slice(0, PASS_ENDS_MAX).map(({ ms, remainingBytes }) => ({ ms, remainingBytes }))
  return { samples, more: last.length > PASS_ENDS_MAX }
}

/** JSON with an element of each top-level array a line. */
function lines(value: object): string {
  const members = Object.entries(value).map(([key, member]) => {
    const text =
      Array.isArray(member) && member.length > 0
        ? `[\n${member.map(one => `  ${JSON.stringify(one)}`).join(',\n')}\n]`
        : JSON.stringify(member)
    return `${JSON.stringify(key)}: ${text}`
  })
  return `{\n${members.join(',\n')}\n}\n`
}
