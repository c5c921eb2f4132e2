/**
 * Which connection belongs to which migration: the rules one by one, then guests, probes and strangers in virtual time.
 * The simulation must find each of the faults that are planted below.
 */
import t from 'tap'
import {
  CLOSED_CHANNEL_MS,
  Gate,
  type GateChannel,
  type GateMigration,
  type GateOrders,
  Gates,
  isOpen,
  LATE_CHANNEL_MS,
  MAIN_AWAITED_MS,
  NOTHING_SAID_MS,
  PREEMPT_LATE_MS,
  PREEMPT_SILENT_MS,
} from '../../src/migration/gates.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import { random } from '../template/makers.ts'

type TestGate = Gate<Channel, Run>

class Channel implements GateChannel {
  readonly gate: TestGate
  readonly host: string
  /** Of which guest it really is; none of a stranger's. */
  readonly guest: Guest | undefined
  kind: ChannelKind = 'unknown'
  isSilent = true
  over = false
  run: Run | undefined
  refused = ''

  constructor(gate: TestGate, host: string, guest?: Guest) {
    this.gate = gate
    this.host = host
    this.guest = guest
  }
}

class Run implements GateMigration {
  lead: Channel | undefined
  readonly flows = new Set<Channel>()
  lastMs = 0
  postcopyAdvised = false
  moved = false
}

interface Guest {
  readonly name: number
}

class World implements GateOrders<Channel, Run> {
  nowMs = 0
  readonly gates: Gates<Channel, Run>
  readonly opened: Channel[] = []
  readonly refused: Channel[] = []

  constructor(make: typeof Gates<Channel, Run> = Gates, places = { all: 1280, aMigration: 258 }) {
    this.gates = new make(this, places)
  }

  begin(): Run {
    return new Run()
  }

  open(channel: Channel, run: Run): void {
    channel.run = run
    run.flows.add(channel)
    run.lastMs = this.nowMs
    this.opened.push(channel)
  }

  refuse(channel: Channel, reason: string): void {
    channel.refused = reason
    this.refused.push(channel)
  }

  arrive(gate: TestGate, host = 'here', guest?: Guest): Channel {
    const channel = new Channel(gate, host, guest)
    this.gates.arrived(channel, this.nowMs)
    return channel
  }

  says(channel: Channel, kind: ChannelKind): Channel {
    channel.isSilent = false
    channel.kind = kind
    this.gates.known(channel, this.nowMs)
    return channel
  }

  /** QEMU's side of it is over; `gone`: and so is its flow. */
  ends(channel: Channel, gone = true): void {
    channel.over = true
    if (!gone) return
    this.gates.left(channel)
    const { run } = channel
    if (!run?.flows.delete(channel) || run.flows.size > 0) return
    this.gates.ended(run)
  }

  /** Lets time pass, with every tick at its moment. */
  pass(ms: number): void {
    const end = this.nowMs + ms
    while (this.gates.nextTickMs <= end) {
      this.nowMs = Math.max(this.nowMs, this.gates.nextTickMs)
      this.gates.tick(this.nowMs)
    }
    this.nowMs = end
  }
}

t.test('main and its channels, in any order', t => {
  const world = new World()
  const gate: TestGate = new Gate('default')
  const early = world.says(world.arrive(gate), 'multifd')
  t.same([early.run, gate.waiting], [undefined, [early]])
  world.pass(1000)
  const main = world.says(world.arrive(gate), 'main')
  t.same(world.opened, [main, early], 'main first')
  const late = world.says(world.arrive(gate), 'multifd')
  t.equal(late.run, main.run)
  t.ok(isOpen(gate.migration))

  world.ends(main, false)
  t.notOk(isOpen(gate.migration), 'what main has ended takes no more ...')
  const behind = world.says(world.arrive(gate), 'multifd')
  t.equal(behind.run, undefined)
  world.pass(LATE_CHANNEL_MS)
  t.equal(behind.run, main.run, '... but for one that was seen too late')
  const next = world.says(world.arrive(gate), 'multifd')
  const nextMain = world.says(world.arrive(gate), 'main')
  t.equal(next.run, nextMain.run, 'unless another main comes')
  t.not(next.run, main.run)

  for (const channel of [main, early, late, behind]) world.ends(channel)
  t.equal(gate.migration, nextMain.run)
  for (const channel of [next, nextMain]) world.ends(channel)
  t.equal(gate.migration, undefined)
  t.same(world.gates.migrations.size, 0)
  t.end()
})

t.test('who is refused', t => {
  const world = new World()
  const gate: TestGate = new Gate('default')
  const reasons = (): string[] => world.refused.splice(0).map(({ refused }) => refused)
  world.says(world.arrive(gate), 'unknown')
  t.match(reasons(), [/does not begin/])
  const silent = world.arrive(gate)
  const begun = world.arrive(gate)
  begun.isSilent = false
  world.pass(NOTHING_SAID_MS - 1)
  t.same(reasons(), [])
  world.pass(1)
  t.match(reasons(), [/nothing came/, /nothing followed/])
  t.ok(silent.refused && begun.refused)
  const alone = world.says(world.arrive(gate), 'multifd')
  world.pass(MAIN_AWAITED_MS)
  t.match(reasons(), [/main did not come/])
  t.same([gate.waiting, alone.run], [[], undefined])

  const main = world.says(world.arrive(gate), 'main')
  world.says(world.arrive(gate), 'tls')
  t.match(reasons(), [/TLS beside/])
  const patient = world.arrive(gate)
  world.pass(10 * NOTHING_SAID_MS)
  t.same(reasons(), [], 'beside a migration a silent one may be its preempt channel')
  world.ends(main)
  world.pass(NOTHING_SAID_MS)
  t.ok(patient.refused)
  reasons()

  const encrypted = world.says(world.arrive(gate), 'tls')
  t.equal(world.says(world.arrive(gate), 'tls').run, encrypted.run, 'as they came')
  world.says(world.arrive(gate), 'multifd')
  t.match(reasons(), [/plain text beside/])
  t.end()
})

t.test('one that QEMU closed while it waited', t => {
  const world = new World()
  const gate: TestGate = new Gate('default')
  const orphan = world.says(world.arrive(gate), 'multifd')
  world.gates.closed(orphan, world.nowMs)
  const alive = world.says(world.arrive(gate), 'multifd')
  const main = world.says(world.arrive(gate), 'main')
  t.match(orphan, { run: undefined, refused: /closed before its main came/ }, 'the main came in behind its end')
  t.equal(alive.run, main.run)
  t.same(gate.waiting, [])
  for (const channel of [main, alive]) world.ends(channel)

  const slow = world.arrive(gate) // its first bytes are looked at last
  const short = world.says(world.arrive(gate), 'multifd')
  world.gates.closed(short, world.nowMs)
  world.says(slow, 'main')
  t.equal(short.run, slow.run, 'the main was there before')

  world.ends(slow, false)
  const late = world.says(world.arrive(gate), 'multifd')
  world.gates.closed(late, world.nowMs)
  world.pass(LATE_CHANNEL_MS)
  t.equal(late.run, slow.run, 'the main that has just ended may be its own')
  for (const channel of [slow, short, late]) world.ends(channel)

  const alone = world.says(world.arrive(gate), 'preempt')
  world.pass(1000)
  world.gates.closed(alone, world.nowMs)
  world.pass(CLOSED_CHANNEL_MS - 1)
  t.equal(alone.refused, '')
  world.pass(1)
  t.match(alone, { run: undefined, refused: /closed before its main came/ }, 'it waits no whole minute')
  const running = world.says(world.arrive(gate), 'main')
  world.gates.closed(running, world.nowMs)
  world.pass(CLOSED_CHANNEL_MS)
  t.equal(running.refused, '', 'what does not wait is not meant')
  t.end()
})

t.test('silent connections and the preempt channel', t => {
  const world = new World()
  const gate: TestGate = new Gate('default')
  const main = world.says(world.arrive(gate, 'qemu'), 'main')
  const stranger = world.arrive(gate, 'monitor')
  const early = world.arrive(gate, 'qemu')
  world.gates.advised(main.run!, world.nowMs)
  world.pass(PREEMPT_SILENT_MS - 1)
  t.equal(early.run, undefined)
  world.pass(1)
  t.same([early.run, early.kind], [main.run, 'preempt'])
  t.equal(stranger.run, undefined, 'it comes from elsewhere')
  const second = world.arrive(gate, 'qemu')
  world.pass(PREEMPT_LATE_MS)
  t.equal(second.run, undefined, 'there is one')
  world.ends(second)
  world.ends(early)
  const probe = world.arrive(gate, 'qemu')
  world.ends(probe)
  const begun = world.arrive(gate, 'qemu')
  begun.isSilent = false
  world.pass(PREEMPT_LATE_MS)
  t.same([probe.run, begun.run], [undefined, undefined], 'one that went, and one that speaks')
  const late = world.arrive(gate, 'qemu')
  world.pass(PREEMPT_LATE_MS)
  t.same([late.run, late.kind], [main.run, 'preempt'])

  const other: TestGate = new Gate('other')
  const recovery = world.says(world.arrive(other, 'qemu'), 'recovery')
  const preempt = world.arrive(other, 'qemu')
  world.pass(PREEMPT_LATE_MS)
  t.equal(preempt.run, recovery.run, 'a recovery is in postcopy from its start')
  t.end()
})

t.test('no room for another, and after the end', t => {
  const world = new World(Gates, { all: 20, aMigration: 8 })
  const gates = [0, 1, 2, 3].map(i => new Gate<Channel, Run>(`t${i}`))
  const mains = gates.slice(0, 3).map(gate => world.says(world.arrive(gate), 'main'))
  t.same(
    mains.map(({ run }) => run !== undefined),
    [true, true, false],
    'two that may still have eight each',
  )
  const waits = world.says(world.arrive(gates[2]!), 'multifd')
  t.equal(waits.run, undefined)
  world.pass(2000)
  t.ok(mains[2]!.run && waits.run === mains[2]!.run, 'then their channels have all come')
  for (let i = 0; i < 10; i++) world.says(world.arrive(gates[0]!), 'multifd')
  world.pass(2000)
  t.match(world.says(world.arrive(gates[3]!), 'main').refused, /channels are open/)
  t.ok(world.says(world.arrive(gates[1]!), 'multifd').run, 'one that runs has its further channels')

  const pending = world.arrive(gates[3]!)
  world.gates.stop()
  t.equal(world.gates.nextTickMs, Number.POSITIVE_INFINITY)
  world.pass(100_000)
  t.equal(pending.refused, '', 'it goes on in another session')
  t.end()
})

t.test('a main that waits for room behind another of its gate', t => {
  const world = new World(Gates, { all: 18, aMigration: 8 })
  const gate: TestGate = new Gate('default')
  const others: TestGate = new Gate('others')
  const before = world.says(world.arrive(gate, 'qemu'), 'main')
  const other = world.says(world.arrive(others), 'main')
  world.gates.advised(before.run!, world.nowMs)
  const main = world.says(world.arrive(gate, 'qemu'), 'main')
  t.equal(gate.next, main)
  const preempt = world.arrive(gate, 'qemu')
  world.pass(PREEMPT_LATE_MS)
  t.equal(preempt.run, undefined, 'the one before has not ended, and what comes now is not its preempt channel')

  const early = world.says(world.arrive(gate, 'qemu'), 'multifd')
  world.ends(before, false)
  const late = world.says(world.arrive(gate, 'qemu'), 'multifd')
  world.pass(LATE_CHANNEL_MS)
  t.same([early.run, late.run], [undefined, undefined], 'nor has it more of what speaks')

  for (let i = 0; i < 4; i++) {
    world.pass(1700)
    world.says(world.arrive(others), 'multifd') // so the main waits on
  }
  t.match([main.run, preempt.refused], [undefined, ''], 'a silent one waits as long')
  world.pass(2000)
  t.ok(main.run)
  t.same([early.run, late.run], [main.run, main.run])
  world.gates.advised(main.run!, world.nowMs)
  world.pass(PREEMPT_SILENT_MS)
  t.equal(preempt.run, main.run)
  t.not(other.run, main.run)
  t.end()
})

/** Guests that migrate one after the other at some gates, with probes and strangers between. @returns what went wrong */
function simulate(seed: number, make: typeof Gates<Channel, Run>): string {
  const next = random(seed)
  const world = new World(make)
  const gates = Array.from({ length: 1 + next(4) }, (_, i) => new Gate<Channel, Run>(`t${i}`))
  const events: { atMs: number; run: () => void }[] = []
  const at = (inMs: number, run: () => void): void => {
    events.push({ atMs: world.nowMs + inMs, run })
  }
  const all: Channel[] = []
  const faults: string[] = []
  const arrive = (gate: TestGate, host: string, guest?: Guest): Channel => {
    const channel = world.arrive(gate, host, guest)
    all.push(channel)
    return channel
  }

  const probe = (): void => {
    const host = next(3) === 0 ? 'qemu' : 'elsewhere'
    const channel = arrive(gates[next(gates.length)]!, host)
    const kind = next(4)
    if (kind === 0)
      at(next(30), () => world.ends(channel)) // connects and goes
    else if (kind === 1) at(next(20), () => !channel.over && world.says(channel, 'unknown'))
    else if (kind === 2) at(next(20), () => (channel.isSilent = false)) // a byte that fits, and no more
    // else it stays, silent: from QEMU's own host that is not to be told from a preempt channel
    if (kind === 3 && host === 'qemu') at(next(40), () => world.ends(channel))
  }

  /** One migration after the other at a gate, as QEMU's channels come. */
  const migrate = (gate: TestGate, name: number): void => {
    const guest: Guest = { name }
    const mine: Channel[] = []
    const say = (channel: Channel, kind: ChannelKind): void => {
      if (!channel.over && channel.refused === '') world.says(channel, kind)
    }
    const recovery = next(8) === 0
    const main = arrive(gate, 'qemu', guest)
    mine.push(main)
    at(next(5), () => say(main, recovery ? 'recovery' : 'main'))
    const multifd = recovery || next(2) === 0 ? 0 : 1 + next(20)
    for (let i = 0; i < multifd; i++) {
      at(next(30), () => {
        const channel = arrive(gate, 'qemu', guest)
        mine.push(channel)
        at(next(10), () => say(channel, 'multifd'))
      })
    }
    const postcopy = !recovery && next(2) === 0
    if (postcopy) at(40, () => main.run && world.gates.advised(main.run, world.nowMs))
    if (postcopy || recovery) {
      at(500 + next(5000), () => {
        const channel = arrive(gate, 'qemu', guest)
        mine.push(channel)
        if (next(2) === 0) at(next(40), () => say(channel, 'preempt'))
      })
    }
    at(7000 + next(3000), () => {
      for (const [i, channel] of mine.entries()) at(i * next(3), () => world.ends(channel, true))
      for (const channel of mine) {
        if (channel.refused !== '')
          faults.push(`guest ${name}: its ${channel.kind} channel was refused: ${channel.refused}`)
        else if (!channel.run) faults.push(`guest ${name}: its ${channel.kind} channel was never opened`)
        else if (channel.run !== main.run) faults.push(`guest ${name}: a channel of another migration`)
      }
      for (const flow of main.run?.flows ?? [])
        if (flow.guest !== guest) faults.push(`guest ${name}: a stranger's ${flow.kind} among its channels`)
      if (main.run?.lead !== main) faults.push(`guest ${name}: led by another`)
      const first = world.opened.find(channel => channel.run === main.run)
      if (first !== main) faults.push(`guest ${name}: ${first?.kind} was dialled before main`)
      if (name < 1000) at(1000 + next(2000), () => migrate(gate, name + 100))
    })
  }

  for (const [i, gate] of gates.entries()) at(next(1000), () => migrate(gate, i))
  for (let i = 0; i < 30; i++) at(next(60_000), probe)
  const steps = 200_000
  for (let i = 0; i < steps && world.nowMs < 200_000; i++) {
    events.sort((a, b) => a.atMs - b.atMs)
    const tick = world.gates.nextTickMs
    const event = events[0]
    if (!event && tick === Number.POSITIVE_INFINITY) break
    if (event && event.atMs <= tick) {
      events.shift()
      world.nowMs = Math.max(world.nowMs, event.atMs)
      event.run()
    } else {
      world.nowMs = Math.max(world.nowMs, tick)
      world.gates.tick(world.nowMs)
    }
  }
  for (const channel of all) {
    if (channel.guest || channel.over || channel.refused !== '') continue
    if (channel.run) faults.push(`a stranger was dialled: ${channel.kind} from ${channel.host}`)
    else faults.push(`a stranger waits for ever (${channel.isSilent ? 'silent' : 'begun'})`)
  }
  return faults[0] ?? ''
}

/** Gates with a fault in them. */
const PLANTS: readonly { name: string; make: typeof Gates<Channel, Run> }[] = [
  {
    name: 'who is gone stays at its gate',
    make: class extends Gates<Channel, Run> {
      override left(): void {}
    },
  },
  {
    name: 'channels do not wait for their main',
    make: class extends Gates<Channel, Run> {
      override known(channel: Channel, nowMs: number): void {
        const { gate, kind } = channel
        if (kind === 'multifd' && !isOpen(gate.migration)) {
          channel.kind = 'main'
          super.known(channel, nowMs)
          channel.kind = 'multifd'
        } else super.known(channel, nowMs)
      }
    },
  },
  {
    name: 'an unknown protocol is dialled',
    make: class extends Gates<Channel, Run> {
      override known(channel: Channel, nowMs: number): void {
        if (channel.kind === 'unknown') channel.kind = isOpen(channel.gate.migration) ? 'multifd' : 'main'
        super.known(channel, nowMs)
      }
    },
  },
  {
    name: 'a stranger is taken for the preempt channel',
    make: class extends Gates<Channel, Run> {
      override arrived(channel: Channel, nowMs: number): void {
        const { migration } = channel.gate
        if (isOpen(migration) && migration.postcopyAdvised) Object.assign(channel, { host: migration.lead!.host })
        super.arrived(channel, nowMs)
      }
    },
  },
  {
    name: 'postcopy is not heard of',
    make: class extends Gates<Channel, Run> {
      override advised(): void {}
    },
  },
  {
    name: 'a migration that has ended stays at its gate',
    make: class extends Gates<Channel, Run> {
      override ended(migration: Run): void {
        const { gate } = migration.lead!
        super.ended(migration)
        gate.migration = migration
        migration.flows.add(migration.lead!)
        migration.lead!.over = false
      }
    },
  },
  {
    name: 'time stands still',
    make: class extends Gates<Channel, Run> {
      override tick(): void {
        this.nextTickMs = Number.POSITIVE_INFINITY
      }
    },
  },
]

const SEEDS = 400

t.test('guests, probes and strangers', t => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const fault = simulate(seed, Gates)
    if (fault !== '') t.fail(`seed ${seed}: ${fault}`)
  }
  t.pass(`${SEEDS} seeds`)
  t.end()
})

t.test('each planted fault is found', t => {
  for (const { name, make } of PLANTS) {
    let found = ''
    for (let seed = 1; seed <= SEEDS && found === ''; seed++) {
      try {
        found = simulate(seed, make)
      } catch (error) {
        found = String(error)
      }
      if (found !== '') found = `seed ${seed}: ${found}`
    }
    t.not(found, '', `${name}: ${found}`)
  }
  t.end()
})
