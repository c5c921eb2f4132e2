/** What `pageferry migrate` tells while it runs, and at its end: for people on standard error, as JSON a line each on output. */
import { printable } from '../bytes/printable.ts'
import type { Outcome, SettingLeft, Told } from '../qmp/migration-course.ts'
import type { MigrationInfo, MigrationPhase } from '../qmp/migration-info.ts'
import { mendText, valueText } from '../qmp/settings.ts'
import { formatRate, formatSize } from '../quantity.ts'
import { print, tell } from './output.ts'
import { formatDuration } from './status-text.ts'

/** Where nobody looks at a terminal: a line so often, or a tenth further ... */
const LINE_SECONDS = 10
/** ... but not more often than so, which is how often JSON comes too. */
const LINE_SECONDS_MIN = 1
/** What the proxy told last is older than this: the whole is said at the end. */
const OVER: ReadonlySet<MigrationPhase> = new Set(['completed', 'failed', 'cancelled'])
/** To the line's beginning, and nothing behind it. */
const CLEAR = '\r\x1b[K'

export interface DisplayOptions {
  readonly json: boolean
  /** Standard error is a terminal; its columns. */
  readonly columns: number | undefined
  /** Bytes on the WAN so far, where somebody knows. */
  readonly bytesWan: () => number | undefined
}

/** Shows one migration. */
export class MigrateDisplay {
  private readonly options: DisplayOptions
  /** When something was last said of how far it is, and what. */
  private saidSeconds = Number.NEGATIVE_INFINITY
  private said = ''
  private isLineOpen = false

  constructor(options: DisplayOptions) {
    this.options = options
  }

  told(told: Told): void {
    if (told.event === 'progress') this.progress(told.seconds, told.info)
    else if (this.options.json) print(JSON.stringify(told))
    else this.say(textOf(told))
  }

  /** @param bytesWan of all of it */
  ended(outcome: Outcome, bytesWan: number | undefined): void {
    this.closeLine()
    if (this.options.json) {
      print(JSON.stringify(endedFields(outcome, bytesWan)))
      return
    }
    for (const line of leftLines(outcome.left)) tell(line)
    if (outcome.began) for (const line of endLines(outcome, bytesWan)) print(line)
  }

  private progress(seconds: number, info: MigrationInfo): void {
    const { json, columns } = this.options
    const tenth = Math.floor(10 * (shareOf(info) ?? 0))
    const state = `${info.status} ${info.pass ?? 0}`
    const since = seconds - this.saidSeconds
    const bytesWan = OVER.has(info.phase) ? undefined : this.options.bytesWan()
    const isNew = json || `${state} ${tenth}` !== this.said
    if (!json && columns !== undefined) {
      this.isLineOpen = true
      const line = printable(progressText(seconds, info, bytesWan))
      process.stderr.write(`${CLEAR}${line.slice(0, Math.max(1, columns - 1))}`)
      return
    }
    const isDue = since >= LINE_SECONDS || (isNew && since >= LINE_SECONDS_MIN)
    if (!isDue && state === this.said.replace(/ \d+$/, '')) return
    this.saidSeconds = seconds
    this.said = `${state} ${tenth}`
    if (json) print(JSON.stringify(progressFields(seconds, info, bytesWan)))
    else tell(progressText(seconds, info, bytesWan))
  }

  private say(line: string): void {
    this.closeLine()
    tell(line)
  }

  private closeLine(): void {
    if (this.isLineOpen) process.stderr.write(CLEAR)
    this.isLineOpen = false
  }
}

function textOf(told: Exclude<Told, { event: 'progress' }>): string {
  if (told.event === 'set') return `set at the ${told.side}: ${mendText(told)} (${told.why})`
  if (told.event === 'put back') return `put back at the ${told.side}: ${told.name}: ${valueText(told.value)}`
  if (told.event === 'listening') return `the destination QEMU listens at ${told.at}`
  return told.event === 'started' ? `migrating to ${told.to}` : told.text
}

function shareOf({ remainingBytes, totalBytes }: MigrationInfo): number | undefined {
  return remainingBytes === undefined || !totalBytes ? undefined : Math.max(0, 1 - remainingBytes / totalBytes)
}

/** '12.0 s, pass 2: 64 %, 1.2 GB of 4.0 GB left, 940.0 Mbit/s from QEMU, the guest writes 30.1 MB/s' */
export function progressText(seconds: number, info: MigrationInfo, bytesWan: number | undefined): string {
  const { status, pass, remainingBytes, totalBytes, bytesPerSecond, dirtyBytesPerSecond, throttle } = info
  const share = shareOf(info)
  const parts: string[] = []
  if (status !== 'active') parts.push(status)
  if (share !== undefined) {
    parts.push(`${Math.floor(100 * share)} %`)
    parts.push(`${formatSize(remainingBytes!)} of ${formatSize(totalBytes!)} left`)
  }
  if (bytesPerSecond) parts.push(`${formatRate(bytesPerSecond)} from QEMU`)
  if (dirtyBytesPerSecond) parts.push(`the guest writes ${formatSize(dirtyBytesPerSecond)}/s`)
  if (throttle) parts.push(`held back by ${throttle} %`)
  if (bytesWan !== undefined) parts.push(`${formatSize(bytesWan)} on the WAN`)
  return `${formatDuration(seconds)}${pass ? `, pass ${pass}` : ''}: ${parts.join(', ')}`
}

function progressFields(seconds: number, info: MigrationInfo, bytesWan: number | undefined): object {
  const { phase: _, listensAt: _listensAt, ...figures } = info
  const rounded = Math.round(1000 * seconds) / 1000
  return { event: 'progress', seconds: rounded, ...figures, ...(bytesWan !== undefined && { bytesWan }) }
}

function endLines({ result, error, info, source, destination }: Outcome, bytesWan: number | undefined): string[] {
  const { totalMs, downtimeMs, transferredBytes, postcopyBytes, pass } = info ?? {}
  const parts: string[] = []
  if (downtimeMs !== undefined) parts.push(`the guest stood still for ${downtimeMs} ms`)
  if (transferredBytes !== undefined) {
    const passes = pass ? ` in ${pass} pass${pass === 1 ? '' : 'es'}` : ''
    parts.push(`${formatSize(transferredBytes)} from QEMU${passes}`)
  }
  if (postcopyBytes) parts.push(`${formatSize(postcopyBytes)} of them in postcopy`)
  if (bytesWan !== undefined) {
    const share = transferredBytes ? ` (${((100 * bytesWan) / transferredBytes).toFixed(1)} %)` : ''
    parts.push(`${formatSize(bytesWan)} on the WAN${share}`)
  }
  const head = `${result}${totalMs === undefined ? '' : ` after ${formatDuration(totalMs / 1000)}`}`
  const lines = [`${head}${parts.length > 0 ? `: ${parts.join(', ')}` : ''}`]
  const guests = [destination && `destination QEMU: ${destination}`, source && `source QEMU: ${source}`].filter(Boolean)
  if (guests.length > 0) lines.push(guests.join(', '))
  if (result === 'completed' && error === undefined && source === 'postmigrate')
    lines.push('the source QEMU holds the guest stopped as it left: `quit` it when all is well')
  return lines
}

/** One line for each side and reason. */
function leftLines(left: readonly SettingLeft[]): string[] {
  const lines = new Map<string, string[]>()
  for (const { side, because, name, before, value } of left) {
    const head = `not put back at the ${side} (${because})`
    lines.set(head, [...(lines.get(head) ?? []), `${name} ${valueText(value)}, was ${valueText(before)}`])
  }
  return [...lines].map(([head, names]) => `${head}: ${names.join('; ')}`)
}

function endedFields({ result, began, info, source, destination, left, error }: Outcome, bytesWan?: number): object {
  const { phase: _, listensAt: _listensAt, ...figures } = info ?? ({} as Partial<MigrationInfo>)
  return {
    ...{ event: 'ended', result, began, ...figures },
    ...(bytesWan !== undefined && { bytesWan }),
    ...(source !== undefined && { source }),
    ...(destination !== undefined && { destination }),
    ...(error && { reason: error.what }),
    left: left.map(({ side, name, before = null, value, because }) => ({ side, name, before, value, because })),
  }
}
