/** The cap in force as time passes and commands come, by a clock of the test's own. */
import { mock } from 'node:test'
import t from 'tap'
import { CapKeeper } from '../../src/daemon/cap-keeper.ts'
import { RateSchedule } from '../../src/rate-schedule.ts'

const MBIT = 1e6 / 8
const NONE = Number.POSITIVE_INFINITY
const MINUTE_MS = 60_000
const HOUR_MS = 60 * MINUTE_MS
/** A Monday. */
const DAY = Date.parse('2026-11-30T00:00:00Z')
const OFFICE = 'mon-fri 08:00-18:00 200Mbit, sat,sun none'

function scheduleOf(text: string, otherwise = 1000 * MBIT): RateSchedule {
  return RateSchedule.parse(text, otherwise, 'UTC', 'test')
}

/** What clocks show: timers go by another one, which nobody sets. */
let shownMs = 0
const time = (): string => new Date(shownMs).toISOString().slice(11, 16)
function beginAt(ms: number): void {
  shownMs = ms
  mock.timers.enable({ apis: ['setTimeout'] })
  mock.method(Date, 'now', () => shownMs)
}
t.afterEach(() => {
  mock.timers.reset()
  mock.restoreAll()
})
/** Time passes as it does: a timer that is set meanwhile is found. */
function pass(ms: number): void {
  for (let left = ms; left > 0; left -= MINUTE_MS) {
    shownMs += Math.min(left, MINUTE_MS)
    mock.timers.tick(Math.min(left, MINUTE_MS))
  }
}

/** A keeper, and what it did: 'at 08:00 25000000 by schedule until ...'. */
function keeperAt(hour: number, schedule = scheduleOf(OFFICE)) {
  beginAt(DAY + hour * HOUR_MS)
  const log: string[] = []
  const keeper = new CapKeeper({
    schedule,
    apply: bytes => log.push(`${time()} apply ${bytes === NONE ? 'none' : bytes / MBIT}`),
    tell: ({ bytesPerSecond, by, until = 'for good' }) => {
      const cap = bytesPerSecond === 'none' ? 'none' : bytesPerSecond / MBIT
      log.push(`${time()} tell ${cap} by ${by} until ${until.replace(/^.*T(\d\d:\d\d).*$/, '$1')}`)
    },
  })
  keeper.start()
  return { keeper, log }
}
t.test('a schedule is followed to the minute, and each change told once', async t => {
  const { keeper, log } = keeperAt(7.5)
  t.equal(keeper.bytesPerSecond, 1000 * MBIT, 'what counts at the start')
  t.same(log, [], 'which is not told: it is in the first line of the log')
  t.same(keeper.status(), { by: 'settings', until: '2026-11-30T08:00:00.000Z', next: 200 * MBIT })
  pass(30 * MINUTE_MS - 1)
  t.same(log, [])
  pass(1)
  t.same(log, ['08:00 apply 200', '08:00 tell 200 by schedule until 18:00'])
  t.same(keeper.status(), {
    ...{ by: 'schedule', entry: 'mon-fri 08:00-18:00 200Mbit' },
    ...{ until: '2026-11-30T18:00:00.000Z', next: 1000 * MBIT },
  })
  pass(12 * HOUR_MS)
  t.same(log.slice(2), ['18:00 apply 1000', '18:00 tell 1000 by settings until 08:00'])
})

t.test('a command counts until the next change of the schedule', async t => {
  const { keeper, log } = keeperAt(9)
  keeper.say(50 * MBIT)
  t.same(log, ['09:00 apply 50', '09:00 tell 50 by command until 18:00'])
  t.same(keeper.status(), { by: 'command', until: '2026-11-30T18:00:00.000Z', next: 1000 * MBIT })
  pass(4 * HOUR_MS)
  keeper.say(NONE)
  t.same(log.slice(2), ['13:00 apply none', '13:00 tell none by command until 18:00'])
  pass(5 * HOUR_MS)
  t.same(log.slice(4), ['18:00 apply 1000', '18:00 tell 1000 by settings until 08:00'])
})

t.test('the schedule counts again when it is told so', async t => {
  const { keeper, log } = keeperAt(9)
  keeper.say(50 * MBIT)
  keeper.follow()
  t.same(log.slice(2), ['09:00 apply 200', '09:00 tell 200 by schedule until 18:00'])
  pass(9 * HOUR_MS)
  t.same(log.slice(4), ['18:00 apply 1000', '18:00 tell 1000 by settings until 08:00'], 'and changes as it does')
})

t.test('without a schedule a command counts until something else is said', async t => {
  const { keeper, log } = keeperAt(0, RateSchedule.always(NONE))
  t.same(keeper.status(), { by: 'settings' })
  keeper.say(50 * MBIT)
  pass(48 * HOUR_MS)
  t.same(keeper.status(), { by: 'command' })
  keeper.follow()
  t.same(log, [
    '00:00 apply 50',
    '00:00 tell 50 by command until for good',
    '00:00 apply none',
    '00:00 tell none by settings until for good',
  ])
})

t.test('settings that were read again count at once, a command before them no more', async t => {
  const { keeper, log } = keeperAt(9)
  keeper.say(50 * MBIT)
  keeper.renew(scheduleOf('09:00-10:00 300Mbit'))
  t.same(log.slice(2), ['09:00 apply 300', '09:00 tell 300 by schedule until 10:00'])
  pass(HOUR_MS)
  t.same(log.slice(4), ['10:00 apply 1000', '10:00 tell 1000 by settings until 09:00'])
  keeper.renew(RateSchedule.always(7 * MBIT))
  pass(48 * HOUR_MS)
  t.same(log.slice(6), ['10:00 apply 7', '10:00 tell 7 by settings until for good'], 'and no more of the old one')
})

t.test('settings that were read again and say the same are not told', async t => {
  const { keeper, log } = keeperAt(9)
  keeper.renew(scheduleOf(OFFICE))
  t.same(log, [])
  keeper.renew(scheduleOf('mon-fri 08:00-17:00 200Mbit'))
  t.same(log, ['09:00 tell 200 by schedule until 17:00'], 'it ends sooner')
  keeper.say(200 * MBIT)
  keeper.renew(scheduleOf('mon-fri 08:00-17:00 200Mbit'))
  t.same(log.slice(1), ['09:00 tell 200 by command until 17:00', '09:00 tell 200 by schedule until 17:00'])
})

t.test('a clock that is put forward or back counts within a minute', async t => {
  const { keeper, log } = keeperAt(9)
  keeper.say(50 * MBIT)
  shownMs = DAY + 19 * HOUR_MS
  pass(MINUTE_MS)
  t.same(log.slice(2), ['19:01 apply 1000', '19:01 tell 1000 by settings until 08:00'], 'the command is over, too')
  shownMs = DAY + 12 * HOUR_MS
  pass(MINUTE_MS)
  t.same(log.slice(4), ['12:01 apply 200', '12:01 tell 200 by schedule until 18:00'])
  t.match(keeper.status(), { until: '2026-11-30T18:00:00.000Z' }, 'the next change is the one of that time')
})

t.test('where clocks are changed', async t => {
  const schedule = RateSchedule.parse('02:30-04:00 8Mbit', NONE, 'Europe/Amsterdam', 'test')
  beginAt(Date.parse('2027-03-28T00:00:00Z'))
  const log: string[] = []
  const keeper = new CapKeeper({
    schedule,
    apply: bytes => log.push(`${time()} ${bytes}`),
    tell: () => {},
  })
  keeper.start()
  pass(6 * HOUR_MS)
  t.same(log, ['01:00 1000000', '02:00 Infinity'], 'from 03:00 of the summer to 04:00: half an hour is left out')
})

t.test('one that was stopped does nothing more', async t => {
  const { keeper, log } = keeperAt(7)
  keeper.stop()
  pass(24 * HOUR_MS)
  t.same(log, [])
})
