/** Which channels of a migration that arrives its target may hear of, and which of them leads it. */
import t from 'tap'
import type { ArrivingChannel } from '../../src/migration/arrival.ts'
import { DiskArrival } from '../../src/migration/disk-arrival.ts'
import { MigrationArrival } from '../../src/migration/migration-arrival.ts'

const SESSION = '0123456789abcdef0123456789abcdef'

class Channel implements ArrivingChannel {
  readonly info: { readonly kind: string }
  isOver = false

  constructor(kind: string) {
    this.info = { kind }
  }
}

function arrival(Kind: typeof MigrationArrival<Channel> | typeof DiskArrival<Channel> = MigrationArrival<Channel>) {
  const migration = new Kind(SESSION, 1, 'default', 0)
  const open = (kind: string): Channel => {
    const channel = new Channel(kind)
    migration.flows.add(channel)
    return channel
  }
  return { migration, open }
}

const REFUSED = { code: 'TARGET_REFUSED' }

t.test('a disk is no channel of a migration, nor the other way round', t => {
  const guest = arrival()
  t.equal(guest.migration.admits(guest.open('main')), false, 'a main is dialled when it says something')
  t.throws(() => guest.migration.admits(guest.open('disk')), REFUSED)
  const disk = arrival(DiskArrival<Channel>)
  t.equal(disk.migration.admits(disk.open('disk')), true, 'a disk at once: its server speaks first')
  t.throws(() => disk.migration.admits(disk.open('main')), REFUSED)
  t.end()
})

t.test('a preempt channel needs another that lives', t => {
  const { migration, open } = arrival()
  const preempt = open('preempt')
  t.throws(() => migration.admits(preempt), { ...REFUSED, what: /without a migration/ })
  t.throws(() => migration.admits(open('preempt')), REFUSED, 'one of its kind does not count')
  const main = open('main')
  t.equal(migration.admits(preempt), true)
  main.isOver = true
  t.throws(() => migration.admits(preempt), REFUSED, 'nor one that is over')
  t.end()
})

t.test('what cannot come first is dialled behind what can', t => {
  for (const kind of ['multifd', 'preempt']) {
    const { migration, open } = arrival()
    const first = open('unknown')
    const channel = open(kind)
    migration.checkTurn(first)
    t.doesNotThrow(() => migration.checkTurn(channel), `${kind}: its main may still be dialled`)
    first.isOver = true
    t.throws(() => migration.checkTurn(channel), { ...REFUSED, what: /its main ended/ })
    migration.reached(channel)
    t.throws(() => migration.checkTurn(channel), REFUSED, 'what cannot come first does not count')
    migration.reached(first)
    t.doesNotThrow(() => migration.checkTurn(channel), 'its target has its main')
  }
  t.end()
})

t.test('any connection of a disk may be dialled', t => {
  const { migration, open } = arrival(DiskArrival<Channel>)
  const [one, two] = [open('disk'), open('disk')]
  one.isOver = true
  t.doesNotThrow(() => migration.checkTurn(two))
  migration.reached(two)
  t.equal(migration.lead, undefined)
  t.end()
})

t.test('main leads, and a recovery after it; of TLS what came first', t => {
  const { migration, open } = arrival()
  const [one, two, three] = [open('tls'), open('tls'), open('main')]
  migration.begins(open('multifd'), 'multifd')
  t.equal(migration.lead, undefined)
  migration.begins(one, 'tls')
  migration.begins(two, 'tls')
  t.equal(migration.lead, one)
  t.equal(migration.record.readable, false)
  migration.begins(three, 'main')
  t.equal(migration.lead, three)
  t.equal(migration.record.readable, true)
  const again = open('recovery')
  migration.begins(again, 'recovery')
  t.equal(migration.lead, again)
  t.equal(migration.record.postcopy, true, 'a recovery is one of postcopy')
  t.end()
})
