/** How the demonstration shows its results. */
import Table from 'cli-table3'
import { formatSize } from '../../src/quantity.ts'

/** One way to migrate, as it went. */
export interface Result {
  readonly name: string
  readonly wanBytes: number
  readonly totalMs: number
  /** QEMU's own figure. */
  readonly downtimeMs: number
  /** By the guest's own clock; undefined where the guest was stopped before. */
  readonly guestDowntimeMs: number | undefined
}

const BAR_CELLS = 44

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`
const milliseconds = (ms: number | undefined): string => (ms === undefined ? 'was stopped' : `${Math.round(ms)} ms`)
const percent = (part: number, whole: number): string => (whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : '')

/** A table of all results; the first is what the others are compared with. */
export function resultTable(results: readonly Result[]): string {
  const first = results[0]!
  const table = new Table({
    head: ['', 'bytes on the WAN', 'total time', "downtime (QEMU's)", "downtime (guest's clock)", 'ratio'],
    colAligns: ['left', 'right', 'right', 'right', 'right', 'right'],
    style: { head: [], border: [] },
  })
  for (const result of results) {
    const { name, wanBytes, totalMs, downtimeMs, guestDowntimeMs } = result
    table.push([
      name,
      formatSize(wanBytes),
      seconds(totalMs),
      guestDowntimeMs === undefined ? milliseconds(undefined) : milliseconds(downtimeMs),
      milliseconds(guestDowntimeMs),
      percent(wanBytes, first.wanBytes),
    ])
  }
  return table.toString()
}

/** The same as bars: bytes and total time. */
export function resultBars(results: readonly Result[]): string {
  const width = Math.max(...results.map(({ name }) => name.length))
  const group = (title: string, value: (result: Result) => number, text: (value: number) => string): string => {
    const most = Math.max(...results.map(value))
    const bars = results.map(result => {
      const cells = most > 0 ? Math.max(1, Math.round((BAR_CELLS * value(result)) / most)) : 0
      return `    ${result.name.padEnd(width)}  ${'█'.repeat(cells)} ${text(value(result))}`
    })
    return [`  ${title}`, ...bars].join('\n')
  }
  return [
    group('bytes on the WAN', ({ wanBytes }) => wanBytes, formatSize),
    group('total time', ({ totalMs }) => totalMs, seconds),
  ].join('\n')
}
