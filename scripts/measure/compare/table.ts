/** The results of a comparison on a terminal: medians. */

import Table from 'cli-table3'
import { formatSize } from '../../../src/quantity.ts'
import { median } from '../../harness/median.ts'
import type { DiskPart, DiskRun, Results, Run } from './results.ts'

/** One table for each guest on each link; then guests with their disks. */
export function resultTables({ runs, profiles, disks = [] }: Results): string {
  const cases = new Map<string, Run[]>()
  for (const run of runs) {
    const key = `${run.guest} over ${run.profile}`
    cases.set(key, [...(cases.get(key) ?? []), run])
  }
  const tables = [...cases].map(([name, of]) => `${name} (${linkOf(of[0]!, profiles)})\n${table(of)}`)
  if (disks.length > 0) tables.push(`${disks[0]!.guest} and its disk, over ${disks[0]!.profile}\n${diskTable(disks)}`)
  return tables.join('\n\n')
}

/** A line for each move. */
export function diskTable(runs: readonly DiskRun[]): string {
  const table = new Table({
    head: ['', 'disk: of QEMU', 'WAN', 's', 'CPU s', 'memory: of QEMU', 'WAN', 's', 'CPU s', 'in all: WAN', 's'],
    style: { head: [], border: [], compact: true },
  })
  for (const { disk, outcome, reason = '', mirror, memory } of runs) {
    const columns = (part: DiskPart | undefined) =>
      part
        ? [
            formatSize(part.qemuBytes),
            formatSize(part.wanBytes),
            part.seconds.toFixed(1),
            part.cpuSeconds.map(seconds => seconds.toFixed(1)).join(' + '),
          ]
        : ['', '', '', '']
    const all = [mirror, memory].filter(part => part !== undefined)
    const sum = (of: (part: DiskPart) => number): number => all.reduce((total, part) => total + of(part), 0)
    table.push([
      outcome === 'completed' ? disk : `${disk}: ${reason}`,
      ...[...columns(mirror), ...columns(memory)],
      ...[formatSize(sum(({ wanBytes }) => wanBytes)), sum(({ seconds }) => seconds).toFixed(1)],
    ])
  }
  return table.toString()
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
