/** Who may hold how much of what all peers share. */
import t from 'tap'
import { Random } from '../../scripts/harness/random.ts'
import { FairShares } from '../../src/fair-shares.ts'

const ALL = Number.MAX_SAFE_INTEGER

t.test('one identity alone gets half, two a third each, three a quarter', async t => {
  for (const identities of [1, 2, 3, 7]) {
    const budget = new FairShares(8400)
    const shares = Array.from({ length: identities }, (_, i) => budget.share(`${i}`))
    // In small steps and in turns, as windows grow.
    for (let round = 0; round < 8400; round++) for (const share of shares) share.take(1)
    for (const share of shares) t.equal(share.held, 8400 / (identities + 1))
    t.ok(budget.share('a newcomer').takeUpTo(ALL) > 0, 'and a newcomer finds something')
  }
})

t.test('who came first and took all that it might leaves half of the rest to the next', async t => {
  const budget = new FairShares(800)
  const first = budget.share('a')
  t.equal(first.takeUpTo(ALL), 400)
  t.equal(first.takeUpTo(ALL), 0)
  t.equal(budget.share('b').takeUpTo(ALL), 200)
  t.equal(budget.share('c').takeUpTo(ALL), 100)
  first.give(400)
  t.equal(first.takeUpTo(ALL), 250, 'and is held to it from then on')
})

t.test('more sessions of one identity get no more', async t => {
  const budget = new FairShares(1000)
  const shares = Array.from({ length: 16 }, () => budget.share('a'))
  const held = shares.map(share => share.takeUpTo(ALL))
  t.equal(
    held.reduce((sum, bytes) => sum + bytes),
    500,
  )
})

t.test('all or nothing, and the end of a session', async t => {
  const budget = new FairShares(1000)
  const share = budget.share('a')
  t.equal(share.take(501), false)
  t.equal(share.take(500), true)
  t.throws(() => share.give(501), { code: 'INTERNAL' }, 'more than was taken')
  share.give(100)
  t.equal(budget.used, 400)
  share.close()
  share.give(400)
  share.close()
  t.same([budget.used, share.held, share.take(1)], [0, 0, false])
})

t.test('whatever is taken and given back, the sum is right and nobody holds more than is free', async t => {
  for (let seed = 1; seed <= 200; seed++) {
    const random = new Random(seed)
    const budget = new FairShares(random.int(1, 10_000))
    const sessions: { identity: string; share: ReturnType<FairShares['share']> }[] = []
    for (let step = 0; step < 200; step++) {
      if (sessions.length === 0 || random.chance(0.1)) {
        const identity = random.pick(['a', 'b', 'c'])
        sessions.push({ identity, share: budget.share(identity) })
      }
      const at = random.int(0, sessions.length - 1)
      const { identity, share } = sessions[at]!
      const of = (one: string): number =>
        sessions.reduce((sum, { identity, share }) => sum + (identity === one ? share.held : 0), 0)
      if (random.chance(0.05)) {
        share.close()
        sessions.splice(at, 1)
      } else if (random.chance(0.4)) share.give(random.int(0, share.held))
      else if (share.takeUpTo(random.int(1, 4000)) > 0 && of(identity) > budget.total - budget.used + 1) {
        t.fail(`seed ${seed}: ${identity} holds ${of(identity)}, free are ${budget.total - budget.used}`)
      }
      const sum = sessions.reduce((sum, { share }) => sum + share.held, 0)
      if (sum !== budget.used) t.fail(`seed ${seed}: ${sum} held, ${budget.used} counted`)
    }
  }
})

t.test('places for sessions: one at a time, the last of a small pot too', async t => {
  const places = new FairShares(16)
  const takeAll = (holder: string) => {
    const taken: ReturnType<FairShares['share']>[] = []
    while (places.room(holder) > 0) {
      const place = places.share(holder)
      t.ok(place.take(1))
      taken.push(place)
    }
    return taken
  }
  const grabbed = takeAll('mallory')
  t.equal(grabbed.length, 8, 'one alone gets half')
  t.equal(takeAll('alice').length, 4)
  t.equal(takeAll('bob').length, 2)
  t.ok(places.room('carol') > 0, 'and there is one for whoever comes')
  t.equal(places.room('mallory'), 0)
  t.equal(places.roomWithout('mallory', 'alice'), 0)
  t.ok(places.roomWithout('mallory', 'carol') > 0)
  t.equal(places.roomWithout('mallory', 'mallory'), 0)
  for (const place of grabbed) place.close()
  t.equal(places.held('mallory'), 0)

  const one = new FairShares(1)
  t.ok(one.share('a').take(1), 'a pot of one can be had')
  t.equal(one.room('b'), 0)
})
