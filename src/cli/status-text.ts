/** How people read a status: a paragraph for each proxy, a line for what is about it, another for each migration. */
import { printable } from '../bytes/printable.ts'
import type { MemoryMapStatus } from '../codec/memory-map.ts'
import type { CapStatus } from '../daemon/cap-keeper.ts'
import type { SiteStatus } from '../daemon/control-api.ts'
import type { DestinationStatus, Expiry, LinkStatus, SourceStatus } from '../daemon/status.ts'
import type { ExportStatus } from '../migration/disk-progress.ts'
import type { MigrationProgress } from '../migration/progress.ts'
import type { DepartureStatus, DiskDepartureStatus, DiskStatus, MigrationStatus } from '../migration/summary.ts'
import { formatRate, formatSize, plural } from '../quantity.ts'

const DAY_MS = 86_400_000
/** Of the line that shows a guest's memory. */
const MAP_COLUMNS = 64
/** A column of it, from nothing to all. */
const LEVELS = ' ▁▂▃▄▅▆▇█'
/** An end that is nearer is worth a line. */
const EXPIRY_TOLD_DAYS = 30

export function statusText(
  { version, process, started, threads, all, sources, destination }: SiteStatus,
  now: Date,
): string {
  const up = formatDuration((now.getTime() - Date.parse(started)) / 1000)
  const on = threads === undefined ? '' : `, ${plural(threads, 'thread')}`
  const lines = [`pageferry ${version}, process ${process}, up ${up}${on}`]
  if (all && (all.rate !== undefined || all.cap?.until !== undefined))
    lines.push(`to all peers together: ${capText(all.rate, all.cap)}`)
  for (const source of sources) lines.push(...sourceLines(source))
  if (destination) lines.push(...destinationLines(destination))
  const certificates = new Map([...sources, ...(destination ? [destination] : [])].flatMap(fileEntries))
  for (const [file, expires] of certificates) {
    const days = Math.floor((Date.parse(expires) - now.getTime()) / DAY_MS)
    if (days < EXPIRY_TOLD_DAYS) lines.push(`! ${file} ${days < 0 ? 'has expired' : `expires in ${days} days`}`)
  }
  return lines.join('\n')
}

function fileEntries({ certificates }: { readonly certificates: readonly Expiry[] }): [string, string][] {
  return certificates.map(({ file, expires }) => [file, expires])
}

function sourceLines(source: SourceStatus): string[] {
  const { peer, address, rate, cap, listening, disksAt, stopping, session, failure, left, waiting } = source
  const to = peer === address ? address : `${peer} (${address})`
  const none = `no session${failure ? `: ${printable(failure.what)}` : ''}`
  const lines = [`to ${to}${stopping ? ', stopping' : ''}: ${session ? linkText(session) : none}`]
  if (rate !== undefined || cap?.until !== undefined) lines[0] += `, ${capText(rate, cap)}`
  lines.push(`  QEMU connects to ${listening.join(' ') || 'nothing yet'}`)
  if (disksAt?.length) lines.push(`  clients of disks connect to ${disksAt.join(' ')}`)
  if (waiting > 0)
    lines.push(`  ${plural(waiting, 'connection')} of QEMU ${waiting === 1 ? 'waits' : 'wait'} for a session`)
  for (const migration of session?.migrations ?? []) {
    lines.push(`  ${departureText(migration)}`)
    if (migration.progress) lines.push(`    ${progressText(migration.progress)}`)
    if (migration.map) lines.push(`    ${mapText(migration.map)}`)
  }
  for (const transfer of session?.disks ?? []) lines.push(...diskDepartureLines(transfer, '  '))
  for (const one of left ?? []) {
    lines.push(`  left to its disks: ${linkText(one)}`)
    for (const transfer of one.disks) lines.push(...diskDepartureLines(transfer, '    '))
  }
  return lines
}

function destinationLines({ listening, stopping, sessions }: DestinationStatus): string[] {
  const lines = [`from other sites, at ${listening.join(' ')}${stopping ? ', stopping' : ''}`]
  if (sessions.length === 0) lines.push('  no session')
  for (const session of sessions) {
    lines.push(`  ${session.peer}: ${linkText(session)}`)
    for (const migration of session.migrations) lines.push(`    ${arrivalText(migration)}`)
    for (const transfer of session.disks ?? []) lines.push(`    ${diskText(transfer)} to the server`)
  }
  return lines
}

function linkText({ link, stats, sets, coldSets }: LinkStatus): string {
  const parts = [`session ${link}`]
  if (stats.state !== 'live') parts.push(stats.state)
  if (stats.rttMs > 0) parts.push(`round trip ${stats.rttMs.toFixed(1)} ms`)
  if (stats.rate > 0) parts.push(`link ${formatRate(stats.rate)}`)
  parts.push(plural(sets + coldSets, 'template set'))
  return parts.join(', ')
}

/** 'cap 200.0 Mbit/s (mon-fri 08:00-18:00 200Mbit) until 2026-11-30 18:00, then no cap'. */
export function capText(rate: number | undefined, cap: CapStatus | undefined): string {
  const named = (bytes: number | 'none' | undefined): string =>
    typeof bytes === 'number' ? `cap ${formatRate(bytes)}` : 'no cap'
  const why = cap?.by === 'command' ? ' by command' : cap?.entry === undefined ? '' : ` (${printable(cap.entry)})`
  const until = cap?.until === undefined ? '' : ` until ${formatMoment(cap.until)}, then ${named(cap.next)}`
  return `${named(rate)}${why}${until}`
}

/** As clocks show it here: '2026-11-30 18:00'. */
function formatMoment(iso: string): string {
  const date = new Date(iso)
  if (Number.isNaN(date.getTime())) return '?'
  const two = (value: number): string => String(value).padStart(2, '0')
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join('-')
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`
}

function departureText(migration: DepartureStatus): string {
  return `${nameText(migration)}: ${formatSize(migration.bytes)} from QEMU, ${wanText(migration)}`
}

function wanText({ bytesWan, bytes, effort }: DepartureStatus | DiskDepartureStatus): string {
  const share = bytes > 0 ? ` (${((100 * bytesWan) / bytes).toFixed(1)} %)` : ''
  return `${formatSize(bytesWan)} on the WAN${share}, ${effort < 0 ? 'raw' : `effort ${effort}`}`
}

function diskDepartureLines(transfer: DiskDepartureStatus, indent: string): string[] {
  const { requests, owed, exports } = transfer
  const asked = requests > 0 ? `; ${requests} requests not answered` : ''
  const early = owed && owed.writes > 0 ? `; ${owed.writes} writes answered early (${formatSize(owed.bytes)})` : ''
  return [
    `${indent}${diskText(transfer)} from its clients, ${wanText(transfer)}${asked}${early}`,
    `${indent}  ${diskRatesText(transfer)}`,
    ...exports.map(one => `${indent}  ${exportText(one)}`),
  ]
}

/** '240.1 Mbit/s from its clients, 80.3 Mbit/s of it on the WAN; back 0.8 Mbit/s, ...' */
function diskRatesText(transfer: DiskDepartureStatus): string {
  const { bytesPerSecond, wanBytesPerSecond, bytesBackPerSecond, wanBytesBackPerSecond } = transfer
  const there = `${formatRate(bytesPerSecond)} from its clients, ${formatRate(wanBytesPerSecond)} of it on the WAN`
  return `${there}; back ${formatRate(bytesBackPerSecond)}, ${formatRate(wanBytesBackPerSecond)} of it on the WAN`
}

/** 'export vda of 20.0 GB: 8.6 GB written; pass 1, 43 %, 12.0 s to the end of the pass' */
function exportText({ name, bytes, bytesWritten, pass, share, passSeconds }: ExportStatus): string {
  const parts = [`export ${printable(name) || '(without a name)'} of ${formatSize(bytes)}: `]
  parts.push(`${formatSize(bytesWritten)} written`)
  if (share !== undefined) parts.push(`; pass ${pass}, ${Math.floor(100 * share)} %`)
  if (passSeconds !== undefined) parts.push(`, ${formatDuration(passSeconds)} to the end of the pass`)
  return parts.join('')
}

/** 'disks 1f2e3d4c-2 (web), 2 connections for 4.2 s: 1.2 GB', as far as both sides know it. */
function diskText({ id, target, connections, seconds, bytes, bytesBack, bytesBackWan }: DiskStatus): string {
  const who = `disks ${id} (${target}), ${plural(connections, 'connection')}`
  const wan = bytesBackWan === bytesBack ? '' : ` (${formatSize(bytesBackWan)} on the WAN)`
  return `${who} for ${formatDuration(seconds)}: ${formatSize(bytesBack)} of the server back${wan}, ${formatSize(bytes)}`
}

/** 'pass 2, 43 %: 240.1 Mbit/s from QEMU, ..., 12.0 s to the end of the pass, 14.1 s to 20.4 s to that of the migration' */
function progressText(progress: MigrationProgress): string {
  const { pass, share, bytesPerSecond, wanBytesPerSecond, passSeconds, secondsBetween, converges } = progress
  const rates = `${formatRate(bytesPerSecond)} from QEMU, ${formatRate(wanBytesPerSecond)} on the WAN`
  const parts = [`pass ${pass}, ${Math.floor(100 * share)} %: ${rates}`]
  if (passSeconds !== undefined) parts.push(`${formatDuration(passSeconds)} to the end of the pass`)
  if (secondsBetween) {
    const [least, most] = secondsBetween.map(formatDuration)
    parts.push(`${least} to ${most} to that of the migration`)
  }
  if (converges === false) parts.push('the guest writes as fast as this: it does not converge')
  return parts.join(', ')
}

/** 'memory ▕███▆▁    ▏ 43 % of 1.1 GB': the guest's, by address, as far as it has passed. */
export function mapText({ bytes, cellBytes, empty, known, sent }: MemoryMapStatus): string {
  const cells = empty.length
  const shares = empty.map((share, i) => Math.min(1, (share + known[i]! + sent[i]!) / 100))
  const columns = Math.min(MAP_COLUMNS, cells)
  let line = ''
  for (let column = 0; column < columns; column++) {
    const of = shares.slice(Math.floor((column * cells) / columns), Math.floor(((column + 1) * cells) / columns))
    const share = of.reduce((sum, one) => sum + one, 0) / of.length
    // a little is not nothing, and all but a little is not all
    line += LEVELS[share === 0 ? 0 : Math.max(1, Math.floor(share * (LEVELS.length - 1)))]
  }
  const passed = shares.reduce((sum, share, i) => sum + share * Math.min(cellBytes, bytes - i * cellBytes), 0)
  return `memory ▕${line}▏ ${Math.floor((100 * passed) / bytes)} % of ${formatSize(bytes)}`
}

function arrivalText(migration: MigrationStatus): string {
  return `${nameText(migration)}: ${formatSize(migration.bytes)} to QEMU`
}

function nameText({ id, target, uuid, machine, seconds, postcopy }: MigrationStatus): string {
  const who = [target, uuid ?? machine].filter(text => text !== undefined).join(', ')
  return `migration ${id} (${who})${postcopy ? ' in postcopy' : ''} for ${formatDuration(seconds)}`
}

/** '12.3 s', '4 min 5 s', '3 h 4 min', '12 d 3 h'. */
export function formatDuration(seconds: number): string {
  if (seconds < 60) return `${Math.max(0, seconds).toFixed(1)} s`
  const units: [number, string][] = [
    [86_400, 'd'],
    [3600, 'h'],
    [60, 'min'],
    [1, 's'],
  ]
  const first = units.findIndex(([size]) => seconds >= size)
  const [[size, unit], [smaller, smallerUnit]] = [units[first]!, units[first + 1]!]
  return `${Math.floor(seconds / size)} ${unit} ${Math.floor((seconds % size) / smaller)} ${smallerUnit}`
}

/** '310 ms', '2.4 s'. */
export function formatPause(seconds: number): string {
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : formatDuration(seconds)
}
