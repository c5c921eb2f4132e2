/** Connections of disks: which are opened, together with which, and what becomes of those whose servers say nothing. */
import t from 'tap'
import { DISK_OPENS_BURST, DISK_OPENS_PER_SECOND } from '../../src/limits.ts'
import { type DiskGateOrders, DiskGates } from '../../src/migration/disk-gates.ts'
import {
  type FlowKind,
  Gate,
  type GateChannel,
  type GateTransfer,
  GREETING_AWAITED_MS,
} from '../../src/migration/gate.ts'
import { NOTHING_SAID_MS } from '../../src/migration/gates.ts'

type TestGate = Gate<Channel, Run>

class Channel implements GateChannel {
  readonly gate: TestGate
  readonly host = 'here'
  readonly kind: FlowKind = 'disk'
  readonly isSilent = true
  isUnanswered = true
  over = false
  run: Run | undefined
  refused = ''

  constructor(gate: TestGate) {
    this.gate = gate
  }
}

class Run implements GateTransfer {
  readonly gate: TestGate
  readonly lead = undefined
  readonly flows = new Set<Channel>()
  moved = false

  constructor(gate: TestGate) {
    this.gate = gate
  }
}

class World implements DiskGateOrders<Channel, Run> {
  nowMs = 0
  readonly gates = new DiskGates<Channel, Run>(this, 2)
  readonly opened: Channel[] = []
  readonly refused: Channel[] = []
  /** Whether there are flows. */
  opens = true

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
    this.opened.push(channel)
  }

  refuse(channel: Channel, reason: string): void {
    channel.refused = reason
    this.refused.push(channel)
  }

  unanswered(channel: Channel, reason: string): void {
    this.refuse(channel, reason)
  }

  /** A disk's client connects. */
  disk(gate: TestGate): Channel {
    const channel = new Channel(gate)
    this.gates.arrived(channel, this.nowMs)
    return channel
  }

  /** Its side of it is over; `gone`: and so is its flow. */
  ends(channel: Channel, gone = true): void {
    channel.over = true
    const { run } = channel
    if (!gone || !run?.flows.delete(channel) || run.flows.size > 0) return
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

t.test('disks: opened at once, together with those that are open at their gate', t => {
  const world = new World()
  const gate: TestGate = new Gate('default', 'disk')
  const one = world.disk(gate)
  const two = world.disk(gate)
  t.same(world.opened, [one, two])
  t.equal(one.run, two.run, 'both are one transfer')
  t.equal(gate.migration, one.run)
  world.pass(NOTHING_SAID_MS)
  t.same(world.refused, [], 'who says nothing waits for the server')
  const three = world.disk(gate)
  t.match(three, { run: undefined, refused: '2 connections of disks are open' })
  world.ends(one)
  const four = world.disk(gate)
  t.equal(four.run, two.run, 'a client that comes again')
  world.ends(two)
  world.ends(four)
  t.equal(gate.migration, undefined)
  const other: TestGate = new Gate('default', 'disk')
  t.not(world.disk(gate).run, one.run, 'the next transfer')
  t.not(world.disk(other).run, gate.migration, 'each gate has its own')
  t.end()
})

t.test("a disk's server that says nothing", t => {
  const world = new World()
  const gate: TestGate = new Gate('default', 'disk')
  const mute = world.disk(gate)
  const greeted = world.disk(gate)
  greeted.isUnanswered = false
  world.pass(GREETING_AWAITED_MS - 1)
  t.same(world.refused, [])
  world.pass(1)
  t.same(world.refused, [mute])
  t.match(mute.refused, /said nothing for 10 s/)
  world.ends(mute)
  const gone = world.disk(gate)
  world.ends(gone)
  world.pass(GREETING_AWAITED_MS)
  t.equal(gone.refused, '', 'one that has left is not told of')
  const closed = world.disk(gate)
  world.ends(closed, false)
  world.pass(GREETING_AWAITED_MS)
  t.match(closed.refused, /said nothing for 10 s/, 'its client has closed, and a server that hangs would never')
  t.end()
})

t.test('clients of disks that come over and over', t => {
  const world = new World()
  const gate: TestGate = new Gate('default', 'disk')
  for (let i = 0; i < DISK_OPENS_BURST; i++) world.ends(world.disk(gate))
  t.same(world.refused, [])
  t.match(world.disk(gate), { run: undefined, refused: /faster than \d+ a second/ })
  t.equal(gate.migration, undefined)
  world.pass(1000 / DISK_OPENS_PER_SECOND)
  t.equal(world.disk(gate).refused, '')
  t.match(world.disk(gate).refused, /faster/)
  world.pass(60_000)
  t.equal(world.disk(gate).refused, '')
  t.end()
})

t.test('a disk that comes when its transfer has moved, or is of another session', t => {
  const world = new World()
  const gate: TestGate = new Gate('default', 'disk')
  const before = world.disk(gate)
  before.run!.moved = true
  const next = world.disk(gate)
  t.not(next.run, before.run)
  const session = new World()
  t.not(session.disk(gate).run, next.run)
  const refusing = new World()
  refusing.opens = false
  const elsewhere: TestGate = new Gate('default', 'disk')
  t.equal(refusing.disk(elsewhere).refused, 'no flow')
  t.equal(elsewhere.migration, undefined, 'nothing is left of it')
  t.end()
})
