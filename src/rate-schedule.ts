/**
 * Caps by time of day and day of the week, as the clocks of a time zone show them:
 *
 *   mon-fri 08:00-18:00 200Mbit, sat,sun none
 *
 * The first entry that fits a moment counts. What an entry says is of the time that clocks show and of nothing else, so
 * where they are put forward what they leave out is left out, and where they are put back what they show twice counts
 * twice. Pure: moments come in as milliseconds since 1970.
 */
import { ProxyError } from './errors.ts'
import { SCHEDULE_ENTRIES_MAX } from './limits.ts'
import { parseCapOrNone } from './quantity.ts'

const MINUTE_MS = 60_000
const DAY_MINUTES = 1440
const DAY_MS = DAY_MINUTES * MINUTE_MS
/** Sunday is 0, as Date has it. */
const DAYS = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'] as const
const EVERY_DAY = (1 << DAYS.length) - 1
/** A schedule comes again after a week; an hour that the clocks left out, after two. */
const SEARCH_MS = 15 * DAY_MS

const EXAMPLE = 'write for instance: mon-fri 08:00-18:00 200Mbit, sat,sun none'
const ORDER = `an entry has days, then times, then a rate; ${EXAMPLE}`

/** One entry. */
export interface ScheduledCap {
  /** As it was written; '' for what counts when nothing else does. */
  readonly text: string
  /** Bit set of days on which `times` begin, Sunday in bit 0. */
  readonly days: number
  /** Minutes of the day, `to` not included; beyond 1440 it goes on into the next day. */
  readonly times: readonly { readonly from: number; readonly to: number }[]
  /** Infinity: no cap. */
  readonly bytesPerSecond: number
}

/** A moment from which another cap counts. */
export interface CapChange {
  readonly atMs: number
  readonly bytesPerSecond: number
}

export class RateSchedule {
  private readonly entries: readonly ScheduledCap[]
  private readonly clock: WallClock
  /** Minutes of the day at which another entry may count. */
  private readonly boundaries: readonly number[]

  /** @param zone name of a time zone; undefined: this host's */
  constructor(entries: readonly ScheduledCap[], zone?: string) {
    this.entries = entries
    this.clock = new WallClock(zone)
    const minutes = entries.flatMap(({ times }) => times.flatMap(({ from, to }) => [from, to % DAY_MINUTES]))
    this.boundaries = [...new Set([...minutes, DAY_MINUTES])].sort((a, b) => a - b)
  }

  /** The same cap always. @param bytesPerSecond Infinity: no cap */
  static always(bytesPerSecond: number): RateSchedule {
    return new RateSchedule([always(bytesPerSecond)])
  }

  /**
   * @param otherwise bytes a second while no entry counts; Infinity: no cap
   * @param option what the error calls it
   * @throws USAGE
   */
  static parse(text: string, otherwise: number, zone: string | undefined, option: string): RateSchedule {
    return new RateSchedule([...parseEntries(text, option), always(otherwise)], zone)
  }

  /** The entry that counts. */
  at(ms: number): ScheduledCap {
    const wall = new Date(this.clock.wallMs(ms))
    const minute = wall.getUTCHours() * 60 + wall.getUTCMinutes()
    const day = wall.getUTCDay()
    return this.entries.find(entry => counts(entry, day, minute))! // the last always does
  }

  /** When the next other cap counts; undefined: none ever does. */
  nextChange(ms: number): CapChange | undefined {
    const { bytesPerSecond: now } = this.at(ms)
    for (let at = this.nextBoundary(ms); at < ms + SEARCH_MS; at = this.nextBoundary(at)) {
      const { bytesPerSecond } = this.at(at)
      if (bytesPerSecond !== now) return { atMs: at, bytesPerSecond }
    }
    return undefined
  }

  /** The next moment at which clocks show a boundary, or are put forward or back. */
  private nextBoundary(ms: number): number {
    const { clock } = this
    const wall = clock.wallMs(ms)
    const midnight = Math.floor(wall / DAY_MS) * DAY_MS
    const minute = this.boundaries.find(one => midnight + one * MINUTE_MS > wall)!
    const at = ms + midnight + minute * MINUTE_MS - wall
    const offset = wall - ms
    if (clock.wallMs(at) - at === offset) return at
    let [before, behind] = [ms, at]
    while (behind - before > 1) {
      const middle = Math.floor((before + behind) / 2)
      if (clock.wallMs(middle) - middle === offset) before = middle
      else behind = middle
    }
    return behind
  }
}

/** @throws USAGE where there is no such time zone */
export function requireTimeZone(zone: string, option: string): string {
  try {
    new Intl.DateTimeFormat('en', { timeZone: zone })
    return zone
  } catch {
    throw new ProxyError(
      'USAGE',
      `${option} ${JSON.stringify(zone)}`,
      undefined,
      'give a name such as Europe/Amsterdam',
    )
  }
}

/** Entries, each as it is written; between them are commas, semicolons, line feeds or nothing. @throws USAGE */
function parseEntries(text: string, option: string): ScheduledCap[] {
  const entries: ScheduledCap[] = []
  const wrong = (what: string, action: string): ProxyError => new ProxyError('USAGE', what, undefined, action)
  let days = 0
  let times: ScheduledCap['times'][number][] = []
  let words: string[] = []
  for (const word of text.split(/[\s,;]+/).filter(part => part !== '')) {
    const day = daysOf(word)
    const time = day === undefined ? timesOf(word, option) : undefined
    words.push(word)
    if (day !== undefined && times.length > 0) throw wrong(`${option}: "${words.join(' ')}"`, ORDER)
    if (day !== undefined) days |= day
    else if (time) times = [...times, time]
    else {
      if (!/^\d|^none$|^unlimited$/.test(word)) throw wrong(`${option}: "${word}" is no day, time or rate`, EXAMPLE)
      entries.push({
        text: words.join(' '),
        days: days === 0 ? EVERY_DAY : days,
        times: times.length === 0 ? [{ from: 0, to: DAY_MINUTES }] : times,
        bytesPerSecond: parseCapOrNone(word, option),
      })
      ;[days, times, words] = [0, [], []]
    }
  }
  if (words.length > 0) throw wrong(`${option}: "${words.join(' ')}" has no rate`, ORDER)
  if (entries.length === 0) throw wrong(`${option}: nothing in it`, EXAMPLE)
  if (entries.length > SCHEDULE_ENTRIES_MAX)
    throw wrong(`${option}: ${entries.length} entries`, `give ${SCHEDULE_ENTRIES_MAX} at most`)
  return entries
}

/** Bits of `mon`, `mon-fri`, `fri..mon`; undefined where the word is none of these. */
function daysOf(word: string): number | undefined {
  const [from, to, more] = word.toLowerCase().split(/-|\.\./)
  const [first, last] = [dayOf(from!), dayOf(to ?? from!)]
  if (first === undefined || last === undefined || more !== undefined) return undefined
  let bits = 0
  for (let day = first; ; day = (day + 1) % DAYS.length) {
    bits |= 1 << day
    if (day === last) return bits
  }
}

const FULL_DAYS = ['sunday', 'monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday'] as const

function dayOf(word: string): number | undefined {
  const at = Math.max(DAYS.indexOf(word as never), FULL_DAYS.indexOf(word as never))
  return at < 0 ? undefined : at
}

/** Of `08:00-18:00`, `22:00-06:00`; undefined where the word is none of these. @throws USAGE where it only looks so */
function timesOf(word: string, option: string): ScheduledCap['times'][number] | undefined {
  if (!word.includes(':') && !/^\d+-/.test(word)) return undefined
  const found = /^(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})$/.exec(word)
  const [fromHour, fromMinute, toHour, toMinute] = (found ?? []).slice(1).map(Number)
  const from = fromHour! * 60 + fromMinute!
  const to = toHour! * 60 + toMinute!
  if (!found || fromMinute! > 59 || toMinute! > 59 || from >= DAY_MINUTES || to > DAY_MINUTES || from === to) {
    const hint = 'give hours and minutes of a day, such as 08:00-18:00, 22:00-06:00 or 18:00-24:00'
    throw new ProxyError('USAGE', `${option}: "${word}"`, undefined, hint)
  }
  return { from, to: to < from ? to + DAY_MINUTES : to }
}

function always(bytesPerSecond: number): ScheduledCap {
  return { text: '', days: EVERY_DAY, times: [{ from: 0, to: DAY_MINUTES }], bytesPerSecond }
}

/** @param day of the week that clocks show, and the minute of that day */
function counts({ days, times }: ScheduledCap, day: number, minute: number): boolean {
  const isOf = (one: number): boolean => ((days >> one) & 1) === 1
  const dayBefore = (day + DAYS.length - 1) % DAYS.length
  return times.some(
    ({ from, to }) => (isOf(day) && minute >= from && minute < to) || (isOf(dayBefore) && minute + DAY_MINUTES < to),
  )
}

/** What clocks of a time zone show. */
class WallClock {
  private readonly format: Intl.DateTimeFormat

  constructor(timeZone: string | undefined) {
    this.format = new Intl.DateTimeFormat('en-US', {
      ...{ timeZone, hourCycle: 'h23', year: 'numeric', month: 'numeric', day: 'numeric' },
      ...{ hour: 'numeric', minute: 'numeric', second: 'numeric' },
    })
  }

  /** What they show, as the moment at which those of UTC show the same. */
  wallMs(ms: number): number {
    const whole = Math.floor(ms / 1000) * 1000
    const shown: Partial<Record<Intl.DateTimeFormatPartTypes, number>> = {}
    for (const { type, value } of this.format.formatToParts(whole)) shown[type] = Number(value)
    const { year, month, day, hour, minute, second } = shown
    return Date.UTC(year!, month! - 1, day!, hour!, minute!, second!) + (ms - whole)
  }
}
