/** Sizes, rates and durations as people type them, and sizes as people read them. */
import { ProxyError } from './errors.ts'

/** Bare k, M, G and T are powers of 1024, as QEMU and systemd take them; KB to TB are powers of 1000. */
const SIZE_UNITS: ReadonlyMap<string, number> = new Map([
  ['', 1],
  ['b', 1],
  ['k', 2 ** 10],
  ['kib', 2 ** 10],
  ['kb', 1e3],
  ['m', 2 ** 20],
  ['mib', 2 ** 20],
  ['mb', 1e6],
  ['g', 2 ** 30],
  ['gib', 2 ** 30],
  ['gb', 1e9],
  ['t', 2 ** 40],
  ['tib', 2 ** 40],
  ['tb', 1e12],
])

/** Bytes a second of one unit. Bits in full words, bytes with `/s`: `Mbps` and `Mb/s` mean different things to different tools. */
const RATE_UNITS: ReadonlyMap<string, number> = new Map([
  ['bit', 1 / 8],
  ['kbit', 1e3 / 8],
  ['mbit', 1e6 / 8],
  ['gbit', 1e9 / 8],
  ['B/s', 1],
  ['kB/s', 1e3],
  ['KB/s', 1e3],
  ['MB/s', 1e6],
  ['GB/s', 1e9],
  ['KiB/s', 2 ** 10],
  ['MiB/s', 2 ** 20],
  ['GiB/s', 2 ** 30],
])

const DURATION_UNITS: ReadonlyMap<string, number> = new Map([
  ['ms', 1],
  ['s', 1000],
  ['m', 60_000],
  ['min', 60_000],
  ['h', 3_600_000],
  ['d', 86_400_000],
])

/**
 * Bytes: `100MB`, `64MiB`, `1g`, `4096`.
 *
 * @param option what the error calls it, `--max-size`
 * @throws USAGE
 */
export function parseSize(text: string, option: string): number {
  const { number, unit } = split(text, option, 'a size like 100MB, 64MiB or 1g')
  return whole(number, SIZE_UNITS.get(unit.toLowerCase()), text, option, 'a size like 100MB, 64MiB or 1g')
}

/** Bytes a second: `200Mbit`, `1Gbit/s`, `25MB/s`. @throws USAGE */
export function parseRate(text: string, option: string): number {
  const example = 'a rate like 200Mbit or 25MB/s'
  const { number, unit } = split(text, option, example)
  const bits = unit.toLowerCase().replace(/\/s$/, '')
  return whole(number, bits.endsWith('bit') ? RATE_UNITS.get(bits) : RATE_UNITS.get(unit), text, option, example)
}

/** Bytes a second of a link or a cap, which cannot be 0. @throws USAGE */
export function parseCap(text: string, option: string): number {
  const rate = parseRate(text, option)
  if (rate === 0) throw new ProxyError('USAGE', `${option} ${text}`, undefined, 'nothing would ever arrive')
  return rate
}

/** A cap that can be taken away: `none`, or `unlimited`, is Infinity. @throws USAGE */
export function parseCapOrNone(text: string, option: string): number {
  return text === 'none' || text === 'unlimited' ? Number.POSITIVE_INFINITY : parseCap(text, option)
}

/** Milliseconds: `30s`, `500ms`, `5min`, `2h`. @throws USAGE */
export function parseDuration(text: string, option: string): number {
  const example = 'a duration like 30s, 500ms or 5min'
  const { number, unit } = split(text, option, example)
  return whole(number, DURATION_UNITS.get(unit.toLowerCase()), text, option, example)
}

/** A whole number from `least`. @throws USAGE */
export function parseCount(text: string, option: string, least: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : -1
  if (Number.isSafeInteger(value) && value >= least) return value
  throw new ProxyError('USAGE', `${option} ${text}`, undefined, `give a whole number from ${least}`)
}

/** Bytes for people, in powers of 1000: `73.4 MB`. */
export function formatSize(bytes: number): string {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB']
  let unit = 0
  let value = bytes
  // 999.95 would read 1000.0.
  while (unit < units.length - 1 && value >= (unit === 0 ? 1000 : 999.95)) {
    value /= 1000
    unit++
  }
  return unit === 0 ? `${bytes} bytes` : `${value.toFixed(1)} ${units[unit]}`
}

/** Bytes a second as links are named: `98.7 Mbit/s`. */
export function formatRate(bytesPerSecond: number): string {
  const megabits = (bytesPerSecond * 8) / 1e6
  return megabits < 1000 ? `${megabits.toFixed(1)} Mbit/s` : `${(megabits / 1000).toFixed(1)} Gbit/s`
}

/** A count for people: `17,742`. */
export function formatCount(count: number): string {
  return count.toLocaleString('en-US')
}

/** So many of it: `1 disk`, `2 disks`. */
export function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`
}

function split(text: string, option: string, example: string): { number: number; unit: string } {
  const found = /^\s*(\d+(?:\.\d+)?)\s*([A-Za-z/]*)\s*$/.exec(text)
  if (found === null) throw bad(text, option, example)
  return { number: Number(found[1]), unit: found[2]! }
}

function whole(number: number, unit: number | undefined, text: string, option: string, example: string): number {
  const value = unit === undefined ? Number.NaN : Math.round(number * unit)
  if (!Number.isSafeInteger(value)) throw bad(text, option, example)
  return value
}

function bad(text: string, option: string, example: string): ProxyError {
  return new ProxyError('USAGE', `${option} ${JSON.stringify(text)}`, undefined, `give ${example}`)
}
