/** Which QEMUs are not dialled yet: of migrations that the source may still send on another session. */
import t from 'tap'
import type { Arrival } from '../../src/migration/arrival.ts'
import { Arrivals } from '../../src/migration/arrivals.ts'
import { Unconfirmed } from '../../src/migration/unconfirmed.ts'

const TIMES = { precopyMs: 1000, postcopyMs: 1000 }

function world() {
  const arrivals = new Arrivals<Channel>('0123456789abcdef0123456789abcdef', TIMES, () => {})
  class Channel {
    readonly info = { kind: 'main' }
    readonly isOver = false
    readonly number: number
    readonly migration: Arrival<Channel>

    constructor(number: number, migration: number) {
      this.number = number
      this.migration = arrivals.get(migration) ?? arrivals.begin(migration, 'default', 'main', 0)
      this.migration.flows.add(this)
    }

    giveUp(): boolean {
      return true
    }

    overdue(): void {}
  }
  const taken = new Set<number>()
  const looks: number[] = []
  const unconfirmed = new Unconfirmed<Channel>(number => {
    looks.push(number)
    return taken.has(number)
  })
  return { unconfirmed, taken, looks, channel: (number: number, migration: number) => new Channel(number, migration) }
}

t.test('one waits until the source knows of any channel of its migration', t => {
  const { unconfirmed, taken, channel } = world()
  const [main, multifd, other] = [channel(1, 7), channel(2, 7), channel(3, 8)]
  t.equal(unconfirmed.admits(multifd), false)
  t.equal(unconfirmed.admits(other), false)
  t.same(unconfirmed.acknowledged(5), [])
  taken.add(1)
  t.same(unconfirmed.acknowledged(6), [multifd], 'its main is known')
  t.equal(unconfirmed.size, 1, 'another migration is another matter')
  t.equal(unconfirmed.admits(main), true)
  t.equal(unconfirmed.admits(channel(4, 7)), true, 'and what comes later')
  t.end()
})

t.test('they are looked at where something was acknowledged, once a migration', t => {
  const { unconfirmed, looks, channel } = world()
  t.same(unconfirmed.acknowledged(1), [])
  t.same(looks, [], 'none waits')
  const [one, two] = [channel(1, 7), channel(2, 7)]
  unconfirmed.admits(one)
  unconfirmed.admits(two)
  looks.length = 0
  for (const frames of [2, 2, 2]) unconfirmed.acknowledged(frames)
  t.same(looks, [1, 2])
  t.end()
})

t.test('one that has gone is not dialled', t => {
  const { unconfirmed, taken, channel } = world()
  const gone = channel(1, 7)
  unconfirmed.admits(gone)
  unconfirmed.left(gone)
  taken.add(1)
  t.same(unconfirmed.acknowledged(9), [])
  t.end()
})
