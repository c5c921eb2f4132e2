/** Which migrations are given up while the WAN is away, and when that is looked at. */
import t from 'tap'
import { Patience } from '../../src/migration/patience.ts'

const migration = (postcopy: boolean) => ({ record: { postcopy } })

t.test('a WAN that stands and brings nothing, likewise', t => {
  const patience = new Patience({ precopyMs: 3000, postcopyMs: 300_000 })
  const [before, behind] = [migration(false), migration(true)]
  t.same(patience.overStalled([before, behind], 1000, 3999), [])
  t.same(patience.overStalled([before, behind], 1000, 4000), [before])
  t.same(patience.overStalled([before, behind], 1000, 301_000), [before, behind])
  t.equal(patience.reason(false, true), 'nothing was acknowledged by the other proxy for 3 s')
  t.same(patience.over([before, behind], 1e9), [], 'and stands')
  t.end()
})

t.test('each waits as long as its own patience says', t => {
  const patience = new Patience({ precopyMs: 5000, postcopyMs: 2500 })
  const [before, behind] = [migration(false), migration(true)]
  const running = [before, behind]
  patience.wan(true, 0)
  t.same(patience.over(running, 1e9), [])
  t.equal(patience.nextTickMs, Number.POSITIVE_INFINITY, 'nothing is due while the WAN stands')
  patience.wan(false, 1000)
  patience.wan(false, 1900) // a second connection: it counts from the first
  t.same(patience.over([], 1900), [])
  t.equal(patience.nextTickMs, 2900, 'one may begin meanwhile')
  t.same(patience.over(running, 2900), [])
  t.equal(patience.nextTickMs, 3500, 'at the end of the one behind its switch')
  t.same(patience.over(running, 3500), [behind])
  t.match(patience.reason(true), /for 2.5 s after the switch/)
  t.same(patience.over([before], 5500), [])
  t.equal(patience.nextTickMs, 6000)
  before.record.postcopy = true
  t.same(patience.over([before], 5600), [before], 'it turned out to be in postcopy')
  patience.wan(true, 5600)
  t.same(patience.over([before], 1e9), [])
  t.equal(patience.nextTickMs, Number.POSITIVE_INFINITY)
  t.end()
})
