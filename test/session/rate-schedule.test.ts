/** Caps by time: what is taken for a schedule, what counts when, and when that changes, also where clocks are changed. */
import t from 'tap'
import { random as seeded } from '../../scripts/harness/random.ts'
import { isProxyError } from '../../src/errors.ts'
import { RateSchedule } from '../../src/rate-schedule.ts'

t.setTimeout(590_000) // the machine may be busy

const MBIT = 1e6 / 8
const NONE = Number.POSITIVE_INFINITY
const HOUR_MS = 3_600_000
const parse = (text: string, zone = 'UTC', otherwise = NONE): RateSchedule =>
  RateSchedule.parse(text, otherwise, zone, '--rate-schedule')
/** 'none', or Mbit/s. */
const shown = (bytesPerSecond: number): number | 'none' => (bytesPerSecond === NONE ? 'none' : bytesPerSecond / MBIT)
const at = (schedule: RateSchedule, iso: string): number | 'none' => shown(schedule.at(Date.parse(iso)).bytesPerSecond)
/** The changes from a moment on: when, and to what. */
function changes(schedule: RateSchedule, from: string, count: number): string[] {
  const list: string[] = []
  let ms = Date.parse(from)
  while (list.length < count) {
    const change = schedule.nextChange(ms)
    if (!change) break
    list.push(`${new Date(change.atMs).toISOString().slice(0, 16)} ${shown(change.bytesPerSecond)}`)
    ms = change.atMs
  }
  return list
}

t.test('the first entry that fits counts, else what counts otherwise', async t => {
  const schedule = parse('mon-fri 08:00-18:00 200Mbit, sat,sun unlimited', 'UTC', 1000 * MBIT)
  t.equal(at(schedule, '2026-11-30T07:59:59.999Z'), 1000, 'a Monday before work')
  t.equal(at(schedule, '2026-11-30T08:00:00Z'), 200, 'from 08:00 on')
  t.equal(at(schedule, '2026-11-30T17:59:59.999Z'), 200)
  t.equal(at(schedule, '2026-11-30T18:00:00Z'), 1000, 'until 18:00, which is not of it')
  t.equal(at(schedule, '2026-12-05T12:00:00Z'), 'none', 'a Saturday')
  t.equal(schedule.at(Date.parse('2026-11-30T08:00:00Z')).text, 'mon-fri 08:00-18:00 200Mbit', 'as it was written')
  t.equal(at(parse('mon 1Mbit; mon 2Mbit'), '2026-11-30T00:00:00Z'), 1, 'not the second')
  t.same(changes(schedule, '2026-11-30T00:00:00Z', 13).slice(-4), [
    '2026-12-04T18:00 1000',
    '2026-12-05T00:00 none',
    '2026-12-07T00:00 1000',
    '2026-12-07T08:00 200',
  ])
})

t.test('ways to write it', async t => {
  const MONDAY = '2026-11-30T'
  for (const [text, moment, cap] of [
    ['8:00-9:30 1Mbit', `${MONDAY}09:29:00Z`, 1],
    ['8:00-9:30 1Mbit', `${MONDAY}09:30:00Z`, 'none'],
    ['MON..Wed 1Mbit', '2026-12-02T09:30:00Z', 1],
    ['monday - friday 1Mbit'.replaceAll(' - ', '-'), '2026-12-04T09:30:00Z', 1],
    ['fri-mon 1Mbit', `${MONDAY}09:30:00Z`, 1],
    ['fri-mon 1Mbit', '2026-12-01T09:30:00Z', 'none'],
    ['08:00-12:00,13:00-18:00 1Mbit', `${MONDAY}12:30:00Z`, 'none'],
    ['08:00-12:00,13:00-18:00 1Mbit', `${MONDAY}13:30:00Z`, 1],
    ['20:00-24:00 1Mbit', `${MONDAY}23:59:59Z`, 1],
    ['sun 22:00-06:00 1Mbit', `${MONDAY}05:59:00Z`, 1], // into the day behind
    ['sun 22:00-06:00 1Mbit', `${MONDAY}06:00:00Z`, 'none'],
    ['sun 22:00-06:00 1Mbit', '2026-11-29T05:00:00Z', 'none'], // not out of the day before
    ['sun 22:00-06:00 1Mbit', '2026-11-29T22:00:00Z', 1],
    ['tue 1Mbit\nmon 1MB/s', `${MONDAY}00:00:00Z`, 8],
    ['1Mbit', `${MONDAY}00:00:00Z`, 1],
  ] as const)
    t.equal(at(parse(text), moment), cap, `${JSON.stringify(text)} at ${moment}`)
})

t.test('what is none', async t => {
  for (const [text, what, hint] of [
    ['', /nothing in it/, /mon-fri/],
    [' ;, ', /nothing in it/, /mon-fri/],
    ['mon-fri 08:00-18:00', /"mon-fri 08:00-18:00" has no rate/, /days, then times, then a rate/],
    ['08:00-18:00 mon 1Mbit', /"08:00-18:00 mon"/, /days, then times, then a rate/],
    ['1Mbit, mon', /"mon" has no rate/, /mon-fri/],
    ['weekdays 1Mbit', /"weekdays" is no day, time or rate/, /mon-fri/],
    ['mon-fri-sun 1Mbit', /"mon-fri-sun" is no day/, /mon-fri/],
    ['mon-fry 1Mbit', /"mon-fry" is no day/, /mon-fri/],
    ['mon- 1Mbit', /"mon-" is no day/, /mon-fri/],
    ['mon 0Mbit', /0Mbit/, /nothing would ever arrive/],
    ['mon 200 Mbit', /"200"/, /200Mbit/],
    ['8-18 1Mbit', /"8-18"/, /08:00-18:00/],
    ['25:00-26:00 1Mbit', /"25:00-26:00"/, /08:00-18:00/],
    ['08:60-09:00 1Mbit', /"08:60-09:00"/, /08:00-18:00/],
    ['08:00-08:00 1Mbit', /"08:00-08:00"/, /08:00-18:00/],
    ['24:00-06:00 1Mbit', /"24:00-06:00"/, /08:00-18:00/],
    ['08:00-24:01 1Mbit', /"08:00-24:01"/, /18:00-24:00/],
    ['mon 1Mbit '.repeat(257), /257 entries/, /256 at most/],
  ] as const) {
    let error: unknown
    try {
      parse(text)
    } catch (thrown) {
      error = thrown
    }
    const name = JSON.stringify(text.slice(0, 40))
    if (!isProxyError(error, 'USAGE')) t.fail(`${name} is taken`)
    else t.match({ what: error.what, hint: error.action }, { what, hint }, name)
  }
})

t.test('clocks that are put forward leave out what they leave out', async t => {
  // Europe/Amsterdam, 2027-03-28: at 01:00 UTC clocks go from 02:00 to 03:00
  const zone = 'Europe/Amsterdam'
  t.same(
    changes(parse('02:15-02:45 1Mbit', zone), '2027-03-27T00:00:00Z', 4),
    ['2027-03-27T01:15 1', '2027-03-27T01:45 none', '2027-03-29T00:15 1', '2027-03-29T00:45 none'],
    'a time that they do not show on that day',
  )
  t.same(
    changes(parse('01:00-02:30 1Mbit', zone), '2027-03-28T00:00:00Z', 2),
    ['2027-03-28T01:00 none', '2027-03-28T23:00 1'],
    'it ends when they are put forward',
  )
  t.same(
    changes(parse('02:30-04:00 1Mbit', zone), '2027-03-28T00:00:00Z', 2),
    ['2027-03-28T01:00 1', '2027-03-28T02:00 none'],
    'and begins then',
  )
  t.same(
    changes(parse('sun 02:15-02:45 1Mbit', zone), '2027-03-27T00:00:00Z', 1),
    ['2027-04-04T00:15 1'],
    'a week later, where it is of that day alone',
  )
})

t.test('clocks that are put back show twice what they show twice', async t => {
  // Europe/Amsterdam, 2026-10-25: at 01:00 UTC clocks go from 03:00 to 02:00
  const zone = 'Europe/Amsterdam'
  t.same(changes(parse('02:15-02:45 1Mbit', zone), '2026-10-24T12:00:00Z', 4), [
    '2026-10-25T00:15 1',
    '2026-10-25T00:45 none',
    '2026-10-25T01:15 1',
    '2026-10-25T01:45 none',
  ])
  t.same(changes(parse('01:00-02:30 1Mbit', zone), '2026-10-24T23:00:00Z', 3), [
    '2026-10-25T00:30 none',
    '2026-10-25T01:00 1',
    '2026-10-25T01:30 none',
  ])
  t.same(
    changes(parse('02:00-03:00 1Mbit', zone), '2026-10-24T12:00:00Z', 2),
    ['2026-10-25T00:00 1', '2026-10-25T02:00 none'],
    'two hours long',
  )
})

t.test('a cap that is always the same never changes', async t => {
  t.equal(RateSchedule.always(5).nextChange(0), undefined)
  t.equal(RateSchedule.always(5).at(0).bytesPerSecond, 5)
  t.equal(parse('mon-fri 1Mbit, sat,sun 1Mbit').nextChange(0), undefined, 'whatever it is written in')
  t.equal(parse('08:00-18:00 none').nextChange(0), undefined)
})

/** What clocks show, by another way than the schedule's. */
function minuteOf(zone: string): (ms: number) => { readonly day: number; readonly minute: number } {
  const format = new Intl.DateTimeFormat('en-GB', {
    ...{ timeZone: zone, weekday: 'short', hour: '2-digit', minute: '2-digit', hourCycle: 'h23' },
  })
  const days = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat']
  return ms => {
    const [, day = '', hours, minutes] = /^(\w+),? (\d+):(\d+)$/.exec(format.format(ms)) ?? []
    return { day: days.indexOf(day), minute: Number(hours) * 60 + Number(minutes) }
  }
}

t.test('as somebody who looks at the clock each minute would do it', async t => {
  const seed = Number(process.env.SCHEDULE_SEED ?? 15)
  const below = seeded(seed)
  const DAYS = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat']
  const two = (value: number): string => String(value).padStart(2, '0')
  /** Each with a day on which its clocks are changed; Apia left out a whole one. */
  const places = [
    ['Europe/Amsterdam', '2027-03-28'],
    ['Europe/Amsterdam', '2026-10-25'],
    ['America/New_York', '2027-03-14'],
    ['Australia/Lord_Howe', '2027-04-04'], // by half an hour
    ['America/St_Johns', '2026-11-01'],
    ['Pacific/Apia', '2011-12-30'],
    ['Asia/Kathmandu', '2026-11-30'],
    ['Africa/Cairo', '2026-10-30'],
  ] as const
  for (const [zone, day] of places) {
    const entries = Array.from({ length: 1 + below(4) }, () => {
      const from = below(1440)
      const to = (from + 1 + below(1438)) % 1440
      const days = below(10) < 3 ? [] : DAYS.filter(() => below(10) < 6)
      return { days, from, to, cap: 1 + below(3) }
    })
    const text = entries
      .map(({ days, from, to, cap }) => {
        const time = `${two(Math.floor(from / 60))}:${two(from % 60)}-${two(Math.floor(to / 60))}:${two(to % 60)}`
        return [...days, time, `${cap}Mbit`].join(' ')
      })
      .join(', ')
    const looks = minuteOf(zone)
    const byHand = (ms: number): number | 'none' => {
      const now = looks(ms)
      const fits = entries.find(({ days, from, to }) => {
        const isOf = (one: number): boolean => days.length === 0 || days.includes(DAYS[one]!)
        if (from < to) return isOf(now.day) && now.minute >= from && now.minute < to
        return (isOf(now.day) && now.minute >= from) || (isOf((now.day + 6) % 7) && now.minute < to)
      })
      return fits?.cap ?? 'none'
    }
    const schedule = parse(text, zone)
    const from = Date.parse(`${day}T00:00:00Z`) - 30 * HOUR_MS
    const minutes = Array.from({ length: 60 * 60 }, (_, i) => from + i * 60_000)
    t.same(
      minutes.filter(ms => shown(schedule.at(ms).bytesPerSecond) !== byHand(ms)).map(ms => new Date(ms).toISOString()),
      [],
      `seed ${seed}, ${zone}: ${text}`,
    )
    const seen = minutes.filter((ms, i) => i > 0 && byHand(ms) !== byHand(minutes[i - 1]!))
    const said: number[] = []
    for (
      let next = schedule.nextChange(from);
      next && next.atMs <= minutes.at(-1)!;
      next = schedule.nextChange(next.atMs)
    )
      said.push(next.atMs)
    t.same(said, seen, 'and it changes in those minutes')
  }
})
