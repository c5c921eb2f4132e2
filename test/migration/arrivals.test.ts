/** What time does to migrations that arrive: a WAN that stays away, and a QEMU that does not read what it is owed. */
import t from 'tap'
import { OWED_MS } from '../../src/limits.ts'
import type { Arrival } from '../../src/migration/arrival.ts'
import { Arrivals } from '../../src/migration/arrivals.ts'
import { random } from '../template/makers.ts'

const SESSION = '0123456789abcdef0123456789abcdef'
const TIMES = { precopyMs: 30_000, postcopyMs: 5000 }

class Channel {
  readonly migration: Arrival<Channel>
  readonly info = { kind: 'main' }
  readonly arrivals: Arrivals<Channel>
  over = ''
  isOverdue = false

  constructor(arrivals: Arrivals<Channel>, number: number, nowMs: number) {
    this.arrivals = arrivals
    this.migration = arrivals.get(number) ?? arrivals.begin(number, 'default', 'main', nowMs)
    this.migration.flows.add(this)
  }

  get isOver(): boolean {
    return this.over !== ''
  }

  giveUp(reason: string): boolean {
    if (this.over !== '') return false
    this.over = reason
    return true
  }

  overdue(): void {
    this.isOverdue = true
    this.arrivals.settled(this)
  }
}

class World {
  nowMs = 0
  readonly said: string[] = []
  ticks = 0
  readonly arrivals = new Arrivals<Channel>(SESSION, TIMES, ({ number }, reason) =>
    this.said.push(`${number}: ${reason}`),
  )

  channel(number: number): Channel {
    return new Channel(this.arrivals, number, this.nowMs)
  }

  /** Lets time pass, with every tick at its moment. */
  pass(ms: number): void {
    const end = this.nowMs + ms
    while (this.arrivals.nextTickMs <= end) {
      this.nowMs = Math.max(this.nowMs, this.arrivals.nextTickMs)
      this.arrivals.tick(this.nowMs)
      this.ticks++
      if (this.arrivals.nextTickMs <= this.nowMs) throw new Error('due again at once: it would spin')
    }
    this.nowMs = end
  }
}

t.test('a WAN that stays away', t => {
  const world = new World()
  const precopy = [1, 1, 1].map(number => world.channel(number))
  const postcopy = [2, 2].map(number => world.channel(number))
  postcopy[0]!.migration.record.postcopy = true
  const later = world.channel(3)
  world.arrivals.wan(true, world.nowMs)
  world.pass(100_000)
  t.same([world.said, world.arrivals.nextTickMs], [[], Number.POSITIVE_INFINITY], 'it stands')

  world.arrivals.wan(false, world.nowMs)
  world.pass(1000)
  world.arrivals.wan(false, world.nowMs) // another connection of it
  world.pass(3999)
  t.same(world.said, [])
  world.pass(1)
  t.match(world.said.splice(0), [/^2: no connection .* for 5 s after the switch to postcopy$/])
  t.ok(
    postcopy.every(({ over }) => over !== ''),
    'all of its channels',
  )
  later.migration.record.postcopy = true // SHUT and PONG may lie in its socket
  world.pass(1000)
  t.match(world.said.splice(0), [/^3: /], 'looked at again')
  world.pass(23_999)
  t.same(world.said, [])
  world.pass(1)
  t.match(world.said.splice(0), [/^1: no connection to the other proxy for 30 s$/])
  t.ok(
    precopy.every(({ over }) => over !== ''),
    'all of its channels',
  )
  world.pass(100_000)
  t.same(world.said, [], 'once')

  const back = world.channel(4)
  world.arrivals.wan(true, world.nowMs)
  world.pass(100_000)
  t.equal(back.over, '', 'it is back')
  t.equal(world.arrivals.nextTickMs, Number.POSITIVE_INFINITY)
  t.end()
})

t.test('a WAN that stands and brings nothing', t => {
  const world = new World()
  t.equal(world.arrivals.stalled(0, 1e9), undefined, 'nobody waits: the session may')
  const [precopy, postcopy] = [world.channel(1), world.channel(2)]
  postcopy.migration.record.postcopy = true
  t.equal(world.arrivals.stalled(0, 4999), undefined)
  t.same(world.said, [])
  t.equal(world.arrivals.stalled(0, 5000), undefined, 'the session waits on for the other')
  t.same([precopy.over, world.said], ['', [`2: ${postcopy.over}`]])
  t.match(world.arrivals.stalled(0, 30_000), /^nothing was acknowledged/, 'nobody is left')
  t.equal(precopy.over, 'nothing was acknowledged by the other proxy for 30 s')
  t.end()
})

t.test('what a QEMU is owed', t => {
  const world = new World()
  const [a, b, c] = [1, 1, 2].map(number => world.channel(number)) as [Channel, Channel, Channel]
  world.arrivals.owes(a, world.nowMs)
  t.notOk(world.arrivals.hasPassed(a.migration), 'its migration has another')
  world.pass(10)
  world.arrivals.owes(b, world.nowMs)
  t.ok(world.arrivals.hasPassed(b.migration), 'all of it has come')
  world.arrivals.owes(c, world.nowMs)
  t.equal(world.arrivals.migrations.length, 2, 'but none is over')
  t.same(world.arrivals.creditors, [a, b, c])
  t.equal(world.arrivals.owing, 3)
  world.arrivals.wan(false, world.nowMs)
  world.pass(TIMES.precopyMs)
  t.same([world.said, a.over], [[], ''], 'no WAN is waited for on their account')
  t.equal(world.arrivals.stalled(0, 1e9), undefined, 'and no session ends')
  world.arrivals.wan(true, world.nowMs)
  world.arrivals.settled(c)
  t.equal(world.arrivals.left(c), c.migration)
  world.pass(OWED_MS - 11 - TIMES.precopyMs)
  t.same([a.isOverdue, b.isOverdue], [false, false])
  world.pass(1)
  t.same([a.isOverdue, b.isOverdue], [true, false])
  world.pass(10)
  t.same([b.isOverdue, c.isOverdue], [true, false])
  t.same([world.arrivals.creditors, world.arrivals.nextTickMs], [[], Number.POSITIVE_INFINITY])
  t.end()
})

t.test('whatever comes in whatever order, it is never due again at once', t => {
  for (let seed = 1; seed <= 300; seed++) {
    const next = random(seed)
    const world = new World()
    const channels: Channel[] = []
    for (let step = 0; step < 100; step++) {
      const some = channels[next(channels.length || 1)]
      const what = next(8)
      if (what < 2 || !some) channels.push(world.channel(next(4)))
      else if (what === 2) world.arrivals.wan(next(2) === 0, world.nowMs)
      else if (what === 3) some.migration.record.postcopy = true
      else if (what === 4 && some.migration.flows.has(some)) {
        if (next(2) === 0) world.arrivals.owes(some, world.nowMs)
        world.arrivals.left(some)
      } else if (what === 5) world.arrivals.settled(some)
      else world.pass(next(2) === 0 ? next(100) : next(20_000))
    }
    world.arrivals.wan(true, world.nowMs)
    world.pass(10 * OWED_MS)
    t.same([world.arrivals.creditors, world.arrivals.nextTickMs], [[], Number.POSITIVE_INFINITY], `seed ${seed}`)
    if (world.ticks > 3000) t.fail(`seed ${seed}: ${world.ticks} ticks`)
  }
  t.end()
})
