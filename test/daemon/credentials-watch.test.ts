/** What expires is said in advance, by a clock of the test's own. */
import { mock } from 'node:test'
import t from 'tap'
import { CredentialsWatch } from '../../src/daemon/credentials-watch.ts'
import { complaints } from '../../src/link/credential-files.ts'

const HOUR_MS = 3_600_000

t.test('a list of one day is said to expire before it has, once a day', async t => {
  for (const lateHours of [0, 1, 5.5, 7, 11, 17.5]) {
    mock.timers.enable({ apis: ['setInterval', 'Date'], now: lateHours * HOUR_MS })
    const list = { file: 'ca-crl.pem', fromMs: 0, toMs: 24 * HOUR_MS, warnMs: 6 * HOUR_MS }
    const told: [number, string][] = []
    const watch = new CredentialsWatch(
      () => ['others can reach this secret', ...complaints([list, list])],
      text => told.push([Date.now() / HOUR_MS, text]),
    )
    watch.start()
    t.same(told, [[lateHours, 'others can reach this secret']], 'what there is at the start is said')
    for (let hour = lateHours; hour < 100; hour++) mock.timers.tick(HOUR_MS)
    const hours = (text: RegExp): number[] => told.filter(([, one]) => text.test(one)).map(([hour]) => hour)
    const [ahead = 99, ...others] = hours(/expires on/)
    t.ok(ahead > 17 && ahead <= 19.5, `started at ${lateHours}, said at ${ahead}`)
    t.same(others, [], 'once')
    for (const text of [/expired on/, /secret/]) {
      const at = hours(text)
      t.ok(at.length >= 3, `${at.length} times`)
      t.ok(
        at.slice(1).every((hour, i) => hour - at[i]! >= 24),
        'once a day',
      )
    }
    const before = told.length
    watch.renew()
    t.equal(told.length, before + 2, 'of other files it is said anew')
    mock.timers.reset()
  }
})
