/**
 * Which connection belongs to which migration: the rules one by one, then guests, probes and strangers in virtual time.
 * The simulation must find each of the faults that are planted below.
 */
import t from 'tap'
import { GATHERING_MS } from '../../src/migration/channel-places.ts'
import { Gate, type GateChannel, type GateMigration, type GateOrders, isOpen } from '../../src/migration/gate.ts'
import {
  CLOSED_CHANNEL_MS,
  Gates,
  LATE_CHANNEL_MS,
  MAIN_AWAITED_MS,
  NOTHING_SAID_MS,
  PREEMPT_LATE_MS,
  PREEMPT_SILENT_MS,
  ROOM_AWAITED_MS,
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
  isUnanswered = true
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
  readonly gate: TestGate
  lead: Channel | undefined
  readonly flows = new Set<Channel>()
  lastMs = 0
  postcopyAdvised = false
  moved = false

  constructor(gate: TestGate) {
    this.gate = gate
  }
}

interface Guest {
  readonly name: number
}

class World implements GateOrders<Channel, Run> {
  nowMs = 0
  readonly gates: Gates<Channel, Run>
  readonly opened: Channel[] = []
  readonly refused: Channel[] = []
  /** Whether there are flows. */
  opens = true

  constructor(make: typeof Gates<Channel, Run> = Gates, places = { all: 1280, aMigration: 258 }) {
    this.gates = new make(this, places)
  }

  begin(channel: Channel): Run {
    return new Run(channel.gate)
  }

  open(channel: Channel, run: Run): void {
    if (!this.opens) {
      this.refuse(channel, 'no flow')
      return
    }
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

t.test('what came while its main had not ended is of that main, whenever it speaks', t => {
  const world = new World()
  const gate: TestGate = new Gate('default')
  // all of a short migration waited for a session: it is looked at one after the other, each to its end
  const [main, first, second] = [world.arrive(gate), world.arrive(gate), world.arrive(gate)]
  const nextMain = world.arrive(gate)
  const ofNext = world.arrive(gate)
  world.ends(world.says(main, 'main'), false)
  t.same([world.says(first, 'multifd').run, world.says(second, 'multifd').run], [main.run, main.run])
  world.says(ofNext, 'multifd')
  t.equal(ofNext.run, undefined, 'one that is silent, and came before it, may be its main')
  world.says(nextMain, 'main')
  t.equal(ofNext.run, nextMain.run)
  t.not(ofNext.run, main.run)
  for (const channel of [main, first, second]) world.ends(channel)

  // it came while its main was open
  const late = world.arrive(gate)
  world.ends(nextMain, false)
  const probe = world.arrive(gate)
  t.equal(world.says(late, 'multifd').run, nextMain.run)
  const stranger = world.says(world.arrive(gate), 'multifd')
  t.equal(stranger.run, undefined, 'one that came behind its end waits for another main')
  for (const channel of [probe, stranger, late, ofNext, nextMain]) world.ends(channel)

  // QEMU had closed it before the next main came, though it was not looked at
  const stale = world.arrive(gate)
  world.gates.closed(stale, world.nowMs)
  const other = world.arrive(gate)
  world.says(stale, 'multifd')
  world.gates.closed(stale, world.nowMs) // told once more, when all of it is read
  world.says(other, 'main')
  t.same([stale.run, stale.refused], [undefined, 'a multifd channel that QEMU closed before its main came'])
  for (const channel of [stale, other]) world.ends(channel)

  // silent ones between hold it back no longer than they are silent
  const [slowMain, silent, fast] = [world.arrive(gate), world.arrive(gate), world.arrive(gate)]
  world.ends(world.says(slowMain, 'main'), false)
  t.equal(world.says(fast, 'multifd').run, undefined)
  world.says(silent, 'multifd')
  t.same([silent.run, fast.run], [slowMain.run, slowMain.run], 'in their order')
  t.same(world.opened.slice(-2), [silent, fast])
  for (const channel of [slowMain, silent, fast]) world.ends(channel)
  t.same([gate.waiting.length, gate.silent.size, gate.migration], [0, 0, undefined])
  t.end()
})

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
  t.equal(world.says(world.arrive(gate), 'proxy').run, undefined)
  t.match(reasons(), [/for QEMU, not for proxies/], 'the first of a migration, were it of QEMU')
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
  world.says(world.arrive(gate), 'proxy')
  t.match(reasons(), [/for QEMU, not for proxies/])
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

  const late: TestGate = new Gate('late')
  const postcopy = world.says(world.arrive(late, 'qemu'), 'main')
  world.gates.advised(postcopy.run!, world.nowMs)
  const probe = world.arrive(late, 'qemu')
  world.ends(probe)
  const begun = world.arrive(late, 'qemu')
  begun.isSilent = false
  world.pass(PREEMPT_LATE_MS)
  t.same([probe.run, begun.run], [undefined, undefined], 'one that went, and one that speaks')
  const delayed = world.arrive(late, 'qemu')
  world.pass(PREEMPT_LATE_MS)
  t.same([delayed.run, delayed.kind], [postcopy.run, 'preempt'])

  const other: TestGate = new Gate('other')
  const recovery = world.says(world.arrive(other, 'qemu'), 'recovery')
  const preempt = world.arrive(other, 'qemu')
  world.pass(PREEMPT_LATE_MS)
  t.equal(preempt.run, recovery.run, 'a recovery is in postcopy from its start')
  t.end()
})

t.test('the main of a recovery that has not spoken is no preempt channel of what it recovers', t => {
  for (const spoke of [false, true]) {
    const world = new World()
    const gate: TestGate = new Gate('default')
    const main = world.says(world.arrive(gate, 'qemu'), 'main')
    world.gates.advised(main.run!, world.nowMs)
    const preempt = world.arrive(gate, 'qemu')
    if (spoke) world.says(preempt, 'preempt')
    else world.pass(PREEMPT_SILENT_MS)
    t.equal(preempt.run, main.run)
    // the destination QEMU pauses at the end of either channel; what QEMU said before on main is not read yet
    world.ends(preempt)
    const recovery = world.arrive(gate, 'qemu')
    world.pass(2 * PREEMPT_SILENT_MS)
    t.equal(recovery.run, undefined, 'that has had its own')
    world.says(recovery, 'recovery')
    t.ok(recovery.run)
    t.not(recovery.run, main.run)
    const again = world.arrive(gate, 'qemu')
    world.ends(main)
    world.pass(PREEMPT_LATE_MS)
    t.same([again.run, again.kind], [recovery.run, 'preempt'], 'it has one of its own')
  }
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
  t.equal(gate.lastTurn?.main, main)
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

/** Room for one that has just begun, and for two that have gathered. */
const NARROW = { all: 300, aMigration: 258 }

t.test('mains that wait for room at one gate keep their order, and each its channels', t => {
  const world = new World(Gates, NARROW)
  const gate: TestGate = new Gate('default')
  world.says(world.arrive(new Gate<Channel, Run>('other')), 'main')
  const first = world.says(world.arrive(gate), 'main')
  const ofFirst = world.says(world.arrive(gate), 'multifd')
  const second = world.says(world.arrive(gate), 'main')
  const ofSecond = world.says(world.arrive(gate), 'multifd')
  t.same([first.run, second.run], [undefined, undefined])
  world.pass(GATHERING_MS)
  t.ok(first.run)
  t.same([ofFirst.run, second.run, ofSecond.run], [first.run, undefined, undefined])
  world.pass(GATHERING_MS)
  t.ok(second.run)
  t.same([ofSecond.run, gate.migration], [second.run, second.run])
  t.not(second.run, first.run)
  t.same([gate.turns, gate.waiting], [[], []])
  t.end()
})

t.test('one of them gives up', t => {
  const world = new World(Gates, NARROW)
  const gate: TestGate = new Gate('default')
  world.says(world.arrive(new Gate<Channel, Run>('other')), 'main')
  const first = world.says(world.arrive(gate), 'main')
  const ofFirst = world.says(world.arrive(gate), 'multifd')
  const second = world.says(world.arrive(gate), 'main')
  world.ends(first)
  world.pass(GATHERING_MS)
  t.match(ofFirst, { run: undefined, refused: /whose main is gone/ }, "it is never the second one's")
  t.ok(second.run)
  t.equal(first.run, undefined)

  const third = world.says(world.arrive(gate), 'main')
  world.ends(third)
  t.same(gate.turns, [])
  t.equal(world.says(world.arrive(gate), 'multifd').run, second.run, 'nobody waits, and this one is open')
  t.end()
})

t.test('a silent preempt channel while another main waits for room', t => {
  const world = new World(Gates, { all: 300, aMigration: 258 })
  const gate: TestGate = new Gate('default')
  const running = world.says(world.arrive(gate), 'main')
  world.gates.advised(running.run!, world.nowMs)
  const silent = world.arrive(gate)
  const waits = world.says(world.arrive(gate), 'main')
  world.pass(PREEMPT_SILENT_MS + PREEMPT_LATE_MS)
  t.equal(silent.run, undefined, "it may be the next one's")
  world.ends(waits)
  world.pass(2 * PREEMPT_LATE_MS)
  t.equal(silent.run, running.run, 'there is no next one')
  t.end()
})

t.test('no room for a minute', t => {
  const world = new World(Gates, { all: 20, aMigration: 8 })
  const gate: TestGate = new Gate('default')
  const busy = [0, 1].map(i => new Gate<Channel, Run>(`busy${i}`))
  const running = busy.map(other => world.says(world.arrive(other), 'main'))
  const main = world.says(world.arrive(gate), 'main')
  const behind = world.says(world.arrive(gate), 'multifd')
  const startMs = world.nowMs
  for (let i = 0; main.refused === '' && i < 100; i++) {
    world.pass(900)
    world.ends(running[i % 2]!) // one goes and another comes, at once
    running[i % 2] = world.says(world.arrive(busy[i % 2]!), 'main')
  }
  t.ok(world.nowMs - startMs >= ROOM_AWAITED_MS && world.nowMs - startMs < ROOM_AWAITED_MS + 1000)
  t.match(main, { run: undefined, refused: /no room .* for 60 s/ })
  t.match(behind, { run: undefined, refused: /no room .* for 60 s/ }, 'with all that came behind it')
  t.same(gate.turns, [])
  t.end()
})

t.test('the main of one that waits is refused by the other side', t => {
  const world = new World(Gates, NARROW)
  const gate: TestGate = new Gate('default')
  world.says(world.arrive(new Gate<Channel, Run>('other')), 'main')
  const main = world.says(world.arrive(gate), 'main')
  const behind = world.says(world.arrive(gate), 'multifd')
  world.opens = false
  world.pass(GATHERING_MS)
  t.match([main, behind], [{ refused: /no flow/ }, { refused: /whose main is gone/ }])
  t.same([gate.migration, gate.turns, gate.waiting], [undefined, [], []])
  t.end()
})

t.test('a recovery waits behind a main of its gate', t => {
  const world = new World(Gates, NARROW)
  const gate: TestGate = new Gate('default')
  world.says(world.arrive(new Gate<Channel, Run>('other')), 'main')
  const main = world.says(world.arrive(gate, 'qemu'), 'main')
  const multifd = world.says(world.arrive(gate, 'qemu'), 'multifd')
  // it needs two places, and they are there: but what waits here is not its own
  const recovery = world.says(world.arrive(gate, 'qemu'), 'recovery')
  const preempt = world.arrive(gate, 'qemu')
  world.pass(PREEMPT_SILENT_MS)
  t.same(
    [main, multifd, recovery, preempt].map(({ run }) => run),
    Array(4).fill(undefined),
  )
  const alone = world.says(world.arrive(new Gate<Channel, Run>('third')), 'recovery')
  t.ok(alone.run, 'at another gate one begins at once')
  world.pass(GATHERING_MS)
  t.ok(main.run && multifd.run === main.run)
  t.ok(recovery.run && recovery.run !== main.run, 'and here as soon as the main has begun')
  world.pass(PREEMPT_SILENT_MS)
  t.equal(preempt.run, recovery.run)
  t.equal(gate.migration, recovery.run)
  t.end()
})

t.test('TLS and plain text are never one migration, whichever waits', t => {
  for (const [lead, stranger] of [
    ['main', 'tls'],
    ['tls', 'multifd'],
  ] as const) {
    const world = new World(Gates, NARROW)
    const gate: TestGate = new Gate('default')
    world.says(world.arrive(new Gate<Channel, Run>('other')), 'main')
    const first = world.says(world.arrive(gate), lead)
    t.match(world.says(world.arrive(gate), stranger).refused, /beside/, `${stranger} behind ${lead}`)
    world.pass(GATHERING_MS)
    t.same(
      world.opened.filter(({ run }) => run === first.run),
      [first],
    )
  }

  const world = new World()
  const gate: TestGate = new Gate('default')
  const multifd = world.says(world.arrive(gate), 'multifd')
  const tls = world.says(world.arrive(gate), 'tls')
  t.match(multifd, { run: undefined, refused: /plain text beside/ }, 'multifd before TLS')
  world.ends(tls, false)
  const late = world.says(world.arrive(gate), 'multifd')
  world.pass(LATE_CHANNEL_MS)
  t.same([late.run, late.refused], [undefined, ''], 'nor has one that is encrypted and has ended such a late one')
  t.equal(world.says(world.arrive(gate), 'main').run, late.run)
  t.ok(late.run)
  t.end()
})

/** What is there at a gate, and how it comes about. `room`: a migration elsewhere leaves none. */
const STATES: Record<string, { readonly room?: false; readonly said: readonly ChannelKind[]; readonly over?: true }> = {
  nothing: { said: [] },
  'plain, open': { said: ['main'] },
  'TLS, open': { said: ['tls'] },
  'plain, ended': { said: ['main'], over: true },
  'TLS, ended': { said: ['tls'], over: true },
  'nothing, no room': { room: false, said: [] },
  'plain, waits': { room: false, said: ['main'] },
  'TLS, waits': { room: false, said: ['tls'] },
  'recovery, then plain waits': { room: false, said: ['recovery', 'main'] },
  'TLS waits, then plain': { room: false, said: ['tls', 'main'] },
}
const KINDS: readonly ChannelKind[] = ['main', 'recovery', 'multifd', 'preempt', 'tls', 'proxy', 'unknown']
/**
 * begins a migration, is put in `line` until there is room, is opened into the one that is open, `waits` behind the last in
 * line, is `early` for a main that has not come, or is refused (`-`): by kind.
 */
const DECISIONS: Record<string, string> = {
  nothing: 'begins begins early early begins - -',
  'plain, open': 'begins begins opened opened - - -',
  'TLS, open': 'begins begins - - opened - -',
  'plain, ended': 'begins begins early early begins - -',
  'TLS, ended': 'begins begins early early begins - -',
  'nothing, no room': 'line begins early early line - -',
  'plain, waits': 'line line waits waits - - -',
  'TLS, waits': 'line line - - waits - -',
  'recovery, then plain waits': 'line line waits waits - - -',
  'TLS waits, then plain': 'line line waits waits - - -',
}

function decision(gate: TestGate, channel: Channel): string {
  if (channel.refused !== '') return '-'
  if (channel.run) return channel.run.lead === channel ? 'begins' : 'opened'
  if (gate.turns.at(-1)?.main === channel) return 'line'
  if (gate.turns.at(-1)?.channels.includes(channel)) return 'waits'
  return gate.waiting.includes(channel) ? 'early' : 'forgotten'
}

t.test('every kind in every state of a gate', t => {
  t.same(Object.keys(STATES), Object.keys(DECISIONS))
  for (const [state, { room = true, said, over = false }] of Object.entries(STATES)) {
    const decisions = KINDS.map(kind => {
      const world = new World(Gates, NARROW)
      const gate: TestGate = new Gate('default')
      if (!room) world.says(world.arrive(new Gate<Channel, Run>('other')), 'main')
      for (const before of said) {
        const channel = world.says(world.arrive(gate), before)
        if (over) world.ends(channel, false)
      }
      if (room) world.pass(GATHERING_MS) // so that two have room
      return decision(gate, world.says(world.arrive(gate), kind))
    })
    t.equal(decisions.join(' '), DECISIONS[state], state)
  }
  t.end()
})

/** Longest that anything waits which is no silent one beside a migration that runs. */
const PATIENCE_MS = MAIN_AWAITED_MS + ROOM_AWAITED_MS + 2 * GATHERING_MS

/** Whatever comes in any order, at gates with little room. @returns what went wrong */
function disorder(seed: number, make: typeof Gates<Channel, Run>): string {
  const next = random(seed)
  const world = new World(make, { all: 20 + next(20), aMigration: 8 })
  const gates = Array.from({ length: 1 + next(3) }, (_, i) => new Gate<Channel, Run>(`t${i}`))
  const all: Channel[] = []
  /** The last main of each gate, and those that came behind one while it lived. */
  const mains = new Map<TestGate, Channel>()
  const behind = new Map<Channel, Channel>()
  const lives = (channel?: Channel): boolean => channel !== undefined && !channel.over && channel.refused === ''
  const say = (channel: Channel, kind: ChannelKind): void => {
    const { gate } = channel
    const last = mains.get(gate)
    const main = lives(last) ? last : undefined
    world.says(channel, kind)
    const leads = kind === 'tls' && (channel.run?.lead === channel || gate.lastTurn?.main === channel)
    if (leads || kind === 'main' || kind === 'recovery') mains.set(gate, channel)
    else if (main) behind.set(channel, main)
  }
  for (let step = 0; step < 60; step++) {
    const gate = gates[next(gates.length)]!
    const what = next(12)
    const channel = all[next(Math.max(all.length, 1))]
    if (what < 6) {
      all.push(world.arrive(gate))
      const kind = (['main', 'multifd', 'multifd', 'tls', 'preempt', 'recovery', 'main', 'unknown'] as const)[next(8)]!
      if (next(8) > 0) say(all.at(-1)!, kind)
    } else if (what < 8 && lives(channel)) world.ends(channel!, next(3) > 0)
    else if (what === 8 && lives(channel) && !channel!.run) world.gates.closed(channel!, world.nowMs)
    else if (what === 9) world.pass(next(30_000))
    else world.pass(next(1000))
  }
  for (const [channel, main] of behind) {
    if (channel.run && channel.run.lead !== main)
      return `a ${channel.kind} channel of another's: it came behind a main that ${main.run ? 'runs' : 'never ran'}`
  }
  for (const { run, kind } of all) {
    if (run?.lead && (kind === 'tls') !== (run.lead.kind === 'tls')) return `${kind} led by ${run.lead.kind}`
  }
  for (let i = 0; i < 2; i++) {
    world.pass(PATIENCE_MS)
    for (const channel of all) if (channel.run && !channel.over) world.ends(channel)
  }
  world.pass(PATIENCE_MS)
  const forgotten = all.find(({ run, refused, over }) => !run && refused === '' && !over)
  if (forgotten) return `a ${forgotten.kind} channel is forgotten`
  for (const { turns, waiting, silent } of gates)
    if (turns.length + waiting.length + silent.size > 0) return 'something is left at a gate'
  return ''
}

const DISORDERS = 1000

t.test('whatever comes is opened or refused, or goes', t => {
  for (let seed = 1; seed <= DISORDERS; seed++) {
    const fault = disorder(seed, Gates)
    if (fault !== '') t.fail(`seed ${seed}: ${fault}`)
  }
  t.pass(`${DISORDERS} seeds`)
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

/** Gates with a fault in them, which one of the two simulations finds. */
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
    name: 'a main takes the place of one that waits',
    make: class extends Gates<Channel, Run> {
      override known(channel: Channel, nowMs: number): void {
        const { gate, kind } = channel
        if (kind === 'main' && gate.lastTurn) gate.turns.pop()
        super.known(channel, nowMs)
      }
    },
  },
  {
    name: 'whatever waits is of the main that begins',
    make: class extends Gates<Channel, Run> {
      override known(channel: Channel, nowMs: number): void {
        super.known(channel, nowMs)
        for (const { channels } of channel.gate.turns) channel.gate.waiting.push(...channels.splice(0))
      }
    },
  },
  {
    name: 'a recovery does not wait',
    make: class extends Gates<Channel, Run> {
      override known(channel: Channel, nowMs: number): void {
        const { gate, kind } = channel
        const before = kind === 'recovery' ? gate.turns.splice(0) : []
        super.known(channel, nowMs)
        gate.turns.push(...before)
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
        found = simulate(seed, make) || disorder(seed, make)
      } catch (error) {
        found = String(error)
      }
      if (found !== '') found = `seed ${seed}: ${found}`
    }
    t.not(found, '', `${name}: ${found}`)
  }
  t.end()
})
