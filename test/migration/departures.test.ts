/**
 * The migrations that leave in one session: which connections end with it and which go on, a WAN that stays away, guests
 * that wait for pages, and what a recovery finds.
 */
import t from 'tap'
import type { Departure } from '../../src/migration/departure.ts'
import { Departures, type DeparturesChannel } from '../../src/migration/departures.ts'
import { Gate } from '../../src/migration/gate.ts'
import type { MigrationDeparture } from '../../src/migration/migration-departure.ts'
import { PausedMigrations } from '../../src/migration/paused.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import { random } from '../template/makers.ts'

type Migration = MigrationDeparture<Channel>
type TestGate = Gate<Channel, Departure<Channel>>

const MEMORY = { blocks: [], blocksComplete: true, sections: [], machineType: 'pc' }

class Channel implements DeparturesChannel<Channel> {
  readonly gate: TestGate
  readonly host = 'host'
  readonly isSilent = false
  readonly isUnanswered = false
  readonly stats = undefined
  readonly place = undefined
  readonly memory = MEMORY
  kind: ChannelKind
  over = false
  number = 0
  migration: Migration | undefined
  givenUp = ''

  constructor(gate: TestGate, kind: ChannelKind) {
    this.gate = gate
    this.kind = kind
  }

  giveUp(reason: string): boolean {
    if (this.over) return false
    this.givenUp = reason
    this.over = true
    return true
  }
}

class World {
  nowMs = 0
  readonly running = new Set<Migration>()
  readonly paused = new PausedMigrations()
  readonly said: string[] = []
  readonly departures: Departures<Channel>
  private flows = 0
  private migrations = 0

  constructor() {
    const { running, paused } = this
    const session = '0123456789abcdef0123456789abcdef'
    const times = { precopyMs: 30_000, postcopyMs: 90_000 }
    this.departures = new Departures<Channel>(
      { session, times, paused, nextNumber: () => ++this.migrations },
      running,
      ({ number }, reason) => this.said.push(`${number}: ${reason}`),
    )
  }

  connect(gate: TestGate, kind: ChannelKind): Channel {
    const channel = new Channel(gate, kind)
    this.departures.connections.add(channel)
    return channel
  }

  /** A migration with these channels, all with a flow. */
  migrate(gate: TestGate, kinds: readonly ChannelKind[]): Channel[] {
    const channels = kinds.map(kind => this.connect(gate, kind))
    const migration = this.departures.begin(channels[0]!, this.nowMs)
    migration.lead = channels[0]!
    gate.migration = migration
    this.running.add(migration)
    for (const channel of channels) {
      channel.number = ++this.flows
      channel.migration = migration
      migration.opened(channel, this.nowMs)
    }
    return channels
  }

  pass(ms: number): void {
    const end = this.nowMs + ms
    while (this.departures.nextTickMs <= end) {
      this.nowMs = Math.max(this.nowMs, this.departures.nextTickMs)
      this.departures.tick(this.nowMs)
      if (this.departures.nextTickMs <= this.nowMs) throw new Error('due again at once: it would spin')
    }
    this.nowMs = end
  }
}

t.test('what ends with its session, and what goes on', t => {
  const world = new World()
  const [known, none, unheard, over] = ['known', 'none', 'unheard', 'over'].map(name => new Gate(name)) as TestGate[]
  const taken = world.migrate(known!, ['main', 'multifd'])
  taken[0]!.migration!.taken = true
  const heard = world.migrate(over!, ['main', 'multifd']) // the other side acknowledged that one of them was opened
  heard[0]!.over = true
  const fresh = world.migrate(unheard!, ['main', 'multifd'])
  const moved = world.migrate(new Gate('moved'), ['main'])
  moved[0]!.migration!.goesOn()
  moved[0]!.migration!.taken = true
  const silent = [known!, none!, unheard!, over!].map(gate => world.connect(gate, 'unknown'))
  const { lost, goOn } = world.departures.part(flow => flow !== heard[1]!.number)
  t.same(new Set(lost), new Set([...taken, ...heard, silent[0]]), 'those silent go with what runs at their gate')
  t.same(new Set(goOn), new Set([...fresh, ...moved, ...silent.slice(1)]))
  t.same(
    [taken, heard, fresh].map(([lead]) => lead!.migration!.moved),
    [false, false, true],
  )
  t.equal(unheard!.migration, undefined, 'in the next session it begins anew')
  t.ok(known!.migration && over!.migration)
  t.end()
})

t.test('of disks each connection is by itself', t => {
  const world = new World()
  const transferAt = (name: string, count: number): { gate: TestGate; channels: Channel[] } => {
    const gate = new Gate(name) as TestGate
    const channels = Array.from({ length: count }, () => world.connect(gate, 'unknown'))
    const transfer = world.departures.beginDisks(channels[0]!, 0)
    gate.migration = transfer
    for (const [i, channel] of channels.entries()) {
      channel.number = 100 + i
      Object.assign(channel, { migration: transfer })
      transfer.opened(channel, 0)
    }
    return { gate, channels }
  }
  const { gate, channels } = transferAt('disks', 3)
  channels[0]!.migration!.taken = true
  const other = transferAt('others', 1)
  other.channels[0]!.number = 200
  const waiting = world.connect(gate, 'unknown')
  const { lost, goOn } = world.departures.part(flow => flow === 101 || flow === 200)
  t.same(lost, [channels[0], channels[2]])
  t.same(goOn, [channels[1], other.channels[0], waiting], 'one that joined and was not heard of goes on')
  t.equal(channels[1]!.migration!.moved, false, 'what it joined ends here')
  t.equal(gate.migration, channels[0]!.migration)
  t.equal(other.channels[0]!.migration!.moved, true)
  t.equal(other.gate.migration, undefined)
  t.end()
})

t.test('each connection is in one part, and all of a migration in the same', t => {
  for (let seed = 1; seed <= 200; seed++) {
    const next = random(seed)
    const world = new World()
    const gates: TestGate[] = Array.from({ length: 4 }, (_, i) => new Gate(`${i}`))
    for (let i = next(6); i >= 0; i--) {
      const gate = gates[next(gates.length)]!
      const [lead] = world.migrate(gate, ['main', 'multifd', 'multifd'].slice(0, 1 + next(3)) as ChannelKind[])
      lead!.migration!.taken = next(3) === 0
      lead!.over = next(3) === 0
    }
    for (let i = next(5); i > 0; i--) world.connect(gates[next(gates.length)]!, 'unknown')
    const unheard = new Set(Array.from({ length: 20 }, (_, i) => i + 1).filter(() => next(4) > 0))
    const { lost, goOn } = world.departures.part(flow => unheard.has(flow))
    const both = [...lost, ...goOn]
    const whole = both.length === world.departures.connections.size && new Set(both).size === both.length
    const known = ({ migration }: Channel): boolean => migration!.isKnown(flow => unheard.has(flow))
    const right = lost.every(channel => !channel.migration || known(channel))
    const others = goOn.every(({ migration }) => !migration || migration.moved)
    const wrong = goOn.some(channel => channel.migration && known(channel))
    if (!whole || !right || !others || wrong) t.fail(`seed ${seed}`)
  }
  t.pass('200 seeds')
  t.end()
})

t.test('a WAN that stays away', t => {
  const world = new World()
  const [main, multifd] = world.migrate(new Gate('a'), ['main', 'multifd'])
  const [postcopy] = world.migrate(new Gate('b'), ['main'])
  postcopy!.migration!.phase('postcopy')
  world.departures.wan(false, world.nowMs)
  world.pass(29_999)
  t.same(world.said, [])
  multifd!.over = true
  world.pass(1)
  const reason = 'no connection to the other proxy for 30 s'
  t.same(world.said.splice(0), [`1: ${reason}`], 'once a migration')
  t.same([main!.givenUp, multifd!.givenUp, postcopy!.givenUp], [reason, '', ''])
  world.pass(59_000)
  t.same(world.said, [], 'nor again')
  world.departures.wan(true, world.nowMs)
  t.equal(world.departures.nextTickMs, Number.POSITIVE_INFINITY)
  world.pass(100_000)
  t.equal(postcopy!.givenUp, '', 'it came back')
  world.departures.wan(false, world.nowMs)
  world.pass(90_000)
  t.same(world.said, ['2: no connection to the other proxy for 90 s after the switch to postcopy'])
  t.end()
})

t.test('a WAN that stands and brings nothing', t => {
  const world = new World()
  const [main] = world.migrate(new Gate('a'), ['main'])
  const [postcopy] = world.migrate(new Gate('b'), ['main'])
  postcopy!.migration!.phase('postcopy')
  t.equal(world.departures.stalled(0, 29_999), undefined)
  t.same(world.said, [])
  t.equal(world.departures.stalled(0, 30_000), undefined, 'the session waits on for the other')
  const reason = 'nothing was acknowledged by the other proxy for 30 s'
  t.same([main!.givenUp, postcopy!.givenUp], [reason, ''])
  t.equal(world.departures.stalled(0, 31_000), undefined)
  t.same(world.said.splice(0), [`1: ${reason}`], 'once')
  t.match(world.departures.stalled(0, 90_000), /for 90 s after the switch/, 'nobody is left')
  t.match(world.said, [/^2: nothing was acknowledged/])
  t.end()
})

t.test('a guest that waits, as long as anything of it runs', t => {
  const world = new World()
  const [main] = world.migrate(new Gate('a'), ['main'])
  t.equal(world.departures.queueMs, Number.POSITIVE_INFINITY)
  main!.migration!.phase('postcopy')
  t.equal(world.departures.queueMs, 5)
  t.equal(world.departures.left(main!), main!.migration, 'the last of it')
  t.equal(world.departures.queueMs, Number.POSITIVE_INFINITY)
  t.end()
})

t.test('a recovery finds what its migration knew, ended here or not', t => {
  const world = new World()
  const gate: TestGate = new Gate('a')
  const [first, preempt] = world.migrate(gate, ['main', 'preempt'])
  first!.migration!.phase('postcopy')
  t.equal(world.departures.left(preempt!), undefined, 'main lives')
  t.equal(world.paused.take(gate), undefined, 'nothing is kept of a channel beside it')
  const early = world.departures.begin(world.connect(gate, 'recovery'), 0)
  t.equal(early.memory, undefined, 'its main is not over')
  first!.over = true
  t.equal(world.departures.begin(world.connect(gate, 'main'), 0).memory, undefined, 'no recovery')
  t.equal(world.departures.begin(world.connect(gate, 'recovery'), 0).memory, MEMORY)
  t.equal(world.departures.left(first!), first!.migration)
  t.equal(world.departures.begin(world.connect(gate, 'recovery'), 0).memory, undefined, 'once')

  const [again] = world.migrate(gate, ['main'])
  again!.migration!.phase('postcopy')
  world.departures.left(again!)
  world.departures.connections.clear()
  t.equal(world.departures.begin(world.connect(new Gate('b'), 'recovery'), 0).memory, MEMORY, 'at another gate')
  t.equal(world.departures.left(world.connect(gate, 'unknown')), undefined, 'one without a flow is of no migration')
  t.end()
})
