/** The results of a comparison on a terminal: medians. */

import Table from 'cli-table3'
import { formatSize } from '../../../src/quantity.ts'
import { median } from '../../harness/median.ts'
import type { Results, Run } from './results.ts'

/** One table for each guest on each link. */
export function resultTables({ runs, profiles }: Results): string {
  const cases = new Map<string, Run[]>()
  for (const run of runs) {
    const key = `${run.guest} over ${run.profile}`
    cases.set(key, [...(cases.get(key) ?? []), run])
  }
  return [...cases].map(([name, of]) => `${name} (${linkOf(of[0]!, profiles)})\n${table(of)}`).join('\n\n')
}

function linkOf(run: Run, profiles: Results['profiles']): string {
  const profile = profiles.find(({ name }) => name === run.profile)
  if (!profile) return ''
  const { bitsPerSecond, roundTripMs } = profile.measured
  return `${profile.link}; measured ${(bitsPerSecond / 1e6).toFixed(0)} Mbit/s, ${roundTripMs.toFixed(1)} ms`
}

function table(runs: readonly Run[]): string {
  const rows = new Table({
    head: ['method', 'runs', 'time', 'downtime', 'pause', 'on the link', 'passes', 'CPU', 'guest speed'],
    colAligns: ['left', 'right', 'right', 'right', 'right', 'right', 'right', 'right', 'right'],
    style: { head: [], border: [], compact: true },
  })
  for (const method of new Set(runs.map(run => run.method))) {
    const all = runs.filter(run => run.method === method)
    const done = all.filter(({ outcome }) => outcome === 'completed')
    const of = done.length > 0 ? done : all
    const show = (value: (run: Run) => number | null, text: (value: number) => string): string => {
      const middle = median(of.map(value).filter(found => found !== null))
      return Number.isNaN(middle) ? '' : text(middle)
    }
    const ms = (value: number): string => `${value.toFixed(0)} ms`
    const count = (of: number): string => (of === all.length ? `${of}` : `${of} of ${all.length}`)
    const ended = done.length > 0 ? '' : all[0]!.outcome === 'failed' ? ' (failed)' : ' (not over)'
    rows.push([
      method,
      count(done.length),
      show(
        run => run.totalMs,
        value => `${(value / 1000).toFixed(1)} s`,
      ) + ended,
      show(run => run.downtimeMs, ms),
      show(run => run.guestPauseMs, ms),
      show(run => run.wanBytes.forward + run.wanBytes.back, formatSize),
      show(run => run.passes, String),
      show(
        run => Object.values(run.cpuSeconds).reduce((sum, seconds) => sum + seconds, 0),
        value => `${value.toFixed(1)} s`,
      ),
      show(
        run => run.guestSpeed,
        value => `${(100 * value).toFixed(0)} %`,
      ),
    ])
  }
  return rows.toString()
}
