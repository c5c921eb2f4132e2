/** When a destination asks a session to end, for other sets or for a fairer ring. */
import t from 'tap'
import { type RenewableSession, Renewal } from '../../src/migration/renewal.ts'

const IDLE: RenewableSession = {
  ...{ channels: 0, ofMigrations: 0, transfers: [], hasOtherSets: false, isExcessive: false, isStarved: false },
}
const BUSY: RenewableSession = { ...IDLE, channels: 2, ofMigrations: 1 }

t.test('what is due at the first look', t => {
  for (const [name, session, due] of [
    ['an idle one', IDLE, undefined],
    ['with other sets', { ...IDLE, hasOtherSets: true }, 'ask'],
    ['with more than its share', { ...IDLE, isExcessive: true }, 'ask'],
    ['with less', { ...IDLE, isStarved: true }, 'ask'],
    ['a migration runs', { ...BUSY, hasOtherSets: true, isExcessive: true, isStarved: true }, undefined],
    ['disks alone', { ...BUSY, ofMigrations: 0 }, undefined],
    ['disks alone, with more than its share', { ...BUSY, ofMigrations: 0, isExcessive: true }, undefined],
    ['disks alone, with other sets', { ...BUSY, ofMigrations: 0, hasOtherSets: true }, 'ask'],
  ] as const)
    t.equal(new Renewal().look(session), due, name)
  t.end()
})

t.test('an idle one is asked until it goes; with more than its share it is closed', t => {
  const renewal = new Renewal()
  for (const isStarved of [true, true]) t.equal(renewal.look({ ...IDLE, isStarved }), 'ask')
  t.equal(renewal.look({ ...IDLE, hasOtherSets: true }), 'ask', 'not for its sets')
  t.equal(renewal.look({ ...IDLE, isExcessive: true }), 'close')
  t.end()
})

t.test('one with disks is asked once, when those that were open have gone', t => {
  const renewal = new Renewal()
  const [memoryFollows, another] = [{}, {}]
  const session = (...flows: object[]): RenewableSession => ({
    ...IDLE,
    ...{ channels: flows.length, hasOtherSets: true, transfers: [{ flows }] },
  })
  t.equal(renewal.look(session(memoryFollows)), undefined, 'its memory finds the disk in this session alone')
  t.equal(renewal.look(session(memoryFollows, another)), undefined)
  t.equal(renewal.look(session(another)), 'ask', 'what came since is not waited for')
  t.equal(renewal.look(session(another)), undefined)
  t.equal(renewal.look(session()), 'ask', 'idle, it is asked again')
  t.end()
})
