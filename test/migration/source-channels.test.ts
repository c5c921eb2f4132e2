/**
 * The channels of a session at its source: which get a flow, what becomes of those that get none, how urgent the link is,
 * and what ends or goes on with the session. Which migration a channel belongs to is tested in gates.test.ts.
 */
import t from 'tap'
import { ProxyError } from '../../src/errors.ts'
import type { Departure } from '../../src/migration/departure.ts'
import { Gate } from '../../src/migration/gate.ts'
import { NOTHING_SAID_MS, PREEMPT_SILENT_MS } from '../../src/migration/gates.ts'
import { PausedMigrations } from '../../src/migration/paused.ts'
import {
  type SourceChannel,
  SourceChannels,
  type SourceLink,
  type SourceOrders,
} from '../../src/migration/source-channels.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import type { StreamPhase } from '../../src/qemu/stream-sink.ts'
import type { FlowInfo } from '../../src/wan/bodies.ts'
import { CODE } from '../../src/wan/wire.ts'

type Migration = Departure<Channel>
type TestGate = Gate<Channel, Migration>

const SLOTS = 4
const QUEUE_MS = 50
const URGENT_MS = 5

class Channel implements SourceChannel<Channel, number> {
  readonly gate: TestGate
  readonly host = 'here'
  readonly peer = 'here:1'
  readonly stats = undefined
  readonly place = undefined
  readonly memory = undefined
  /** What it was told, in order. */
  readonly told: string[] = []
  kind: ChannelKind = 'unknown'
  isSilent = true
  isUnanswered = true
  over = false
  number = 0
  slot: number | undefined
  migration: Migration | undefined

  constructor(gate: TestGate) {
    this.gate = gate
  }

  get began(): string | undefined {
    return this.isSilent ? undefined : 'its first bytes'
  }

  refused(): void {
    this.told.push('refused')
  }

  opened(number: number, migration: Migration, slot: number): void {
    this.told.push('opened')
    Object.assign(this, { number, migration, slot })
    migration.opened(this, 0)
  }

  unopened(migration: Migration): void {
    this.told.push('unopened')
    this.migration = migration
    migration.flows.add(this)
  }

  hurry(isUrgent = true): void {
    this.told.push(isUrgent ? 'hurry' : 'calm')
  }

  cancel(): boolean {
    this.told.push('cancelled')
    return true
  }

  giveUp(): boolean {
    this.told.push('given up')
    return true
  }

  resetByPeer(code: number, text: string): void {
    this.told.push(`reset ${code} ${text}`)
  }

  forgotten(): void {
    this.told.push('forgotten')
  }

  sessionEnded(): void {
    this.told.push('ended')
  }

  sessionLost(reason: string): void {
    this.told.push(`lost: ${reason}`)
  }
}

class World implements SourceLink, SourceOrders<Channel> {
  nowMs = 0
  readonly channels: SourceChannels<Channel, number>
  /** Orders and events, in order. */
  readonly said: string[] = []
  readonly opened: FlowInfo[] = []
  readonly slots = Array.from({ length: SLOTS }, (_, i) => i)
  readonly moved: Channel[][] = []
  readonly unheard = new Set<number>()
  queueMs = QUEUE_MS
  /** With what the next flow is not opened. */
  refusal: Error | undefined
  private migrations = 0

  constructor() {
    const tell = (event: string, fields: object = {}): void =>
      void this.said.push(`${event} ${JSON.stringify(fields, ['migration', 'target', 'kind', 'reason', 'error'])}`)
    this.channels = new SourceChannels<Channel, number>({
      link: this,
      slots: {
        takeSlot: () => this.slots.shift(),
        giveSlot: slot => void this.slots.push(slot),
      },
      orders: this,
      log: { info: tell, warn: tell, error: tell },
      now: () => this.nowMs,
      departures: {
        session: '0123456789abcdef0123456789abcdef',
        times: { precopyMs: 30_000, postcopyMs: 90_000 },
        paused: new PausedMigrations(),
        nextNumber: () => ++this.migrations,
      },
      effort: urgent => (urgent ? 1 : 3),
      queueTargetMs: QUEUE_MS,
      disks: true,
    })
  }

  // --- the session

  openFlow(info: FlowInfo): number {
    const { refusal } = this
    this.refusal = undefined
    if (refusal) throw refusal
    return this.opened.push(info)
  }

  isUnheard(flow: number): boolean {
    return this.unheard.has(flow)
  }

  setQueueTarget(ms: number): void {
    this.queueMs = ms
  }

  // --- orders

  begins(): void {
    this.said.push('begins')
  }

  ends(migration: Migration): void {
    this.said.push(`ends ${migration.number}`)
  }

  rests(): void {
    this.said.push('rests')
  }

  move(channels: readonly Channel[]): void {
    this.moved.push([...channels])
  }

  wake(): void {
    this.said.push('wake')
  }

  arm(): void {}

  // --- QEMU

  connect(gate: TestGate): Channel {
    const channel = new Channel(gate)
    this.channels.arrived(channel)
    return channel
  }

  says(channel: Channel, kind: ChannelKind): Channel {
    channel.isSilent = false
    channel.kind = kind
    this.channels.known(channel)
    return channel
  }

  /** A migration with these channels, all with a flow. */
  migrate(gate: TestGate, ...kinds: ChannelKind[]): Channel[] {
    return kinds.map(kind => this.says(this.connect(gate), kind))
  }

  /** Its flow is over, and its connection closed. */
  closes(channel: Channel): void {
    channel.over = true
    this.channels.leaveGate(channel)
    this.channels.endedBySession(channel.number)
    this.channels.left(channel)
    this.channels.release(channel)
  }
}

t.test('a migration from its first channel to its end', t => {
  const world = new World()
  const [main, multifd] = world.migrate(new Gate('web'), 'main', 'multifd')
  t.same(world.opened, [
    { target: 'web', migration: 1, kind: 'main' },
    { target: 'web', migration: 1, kind: 'multifd' },
  ])
  const starts = 'migration starts {"migration":1,"target":"web","kind":"main"}'
  t.same(world.said.splice(0), ['begins', starts, 'wake', 'wake'], 'told once, and looked at')
  t.same([main!.number, multifd!.number, main!.slot, multifd!.slot], [1, 2, 0, 1])
  t.same([world.channels.count, world.channels.connections.size], [2, 2])
  t.equal(world.channels.get(2), multifd)
  t.match(world.channels.status(), [{ migration: 1, target: 'web', channels: 2, effort: 3 }])
  world.closes(multifd!)
  t.same(world.said, [], 'it runs on')
  t.same(
    [multifd!.told, world.slots],
    [
      ['opened', 'forgotten', 'ended'],
      [2, 3, 1],
    ],
    'its slot is free',
  )
  world.channels.release(multifd!)
  t.equal(world.slots.length, 3, 'once')
  world.closes(main!)
  t.same(world.said, ['ends 1', 'rests'])
  t.same([world.channels.count, world.channels.connections.size, world.slots.length], [0, 0, SLOTS])
  t.same(world.channels.status(), [])
  t.end()
})

t.test('an operator cancels a migration while its guest is certainly at the source', t => {
  const ID = '01234567-1'
  const begun = (): [World, Channel[]] => {
    const world = new World()
    const channels = world.migrate(new Gate('web'), 'main', 'multifd')
    world.said.length = 0
    return [world, channels]
  }
  const [world, channels] = begun()
  t.equal(world.channels.cancel('01234567-2'), undefined, 'another one')
  t.same(world.channels.cancel(ID), { migration: 1, id: ID })
  t.same(
    channels.map(({ told }) => told),
    [
      ['opened', 'cancelled'],
      ['opened', 'cancelled'],
    ],
  )
  t.same(world.said, ['migration cancelled {"migration":1}'])
  for (const channel of channels) world.closes(channel)
  t.equal(world.channels.cancel(ID), undefined, 'over')

  type Act = (world: World, main: Channel, multifd: Channel) => void
  const phase =
    (phase: StreamPhase): Act =>
    (world, main) =>
      world.channels.phase(main.migration!, phase)
  const refused: [string, Act, RegExp][] = [
    ['behind the last page', phase('ram-end'), /handed over/],
    ['the guest is stopped', phase('switchover'), /handed over/],
    ['devices of a snapshot', phase('snapshot-devices'), /handed over/],
    ['postcopy', phase('postcopy'), /postcopy/],
    [
      'a main that is not understood',
      ({ channels }, { migration }) => channels.relayedRaw(migration!, 'main', 'no'),
      /not understood/,
    ],
    ['TLS', (_, { migration }) => migration!.record.leads('tls'), /not understood/],
  ]
  for (const [what, act, why] of refused) {
    const [world, [main, multifd]] = begun()
    act(world, main!, multifd!)
    t.throws(() => world.channels.cancel(ID), { code: 'CANCEL_REFUSED', what: why, action: /migrate_cancel/ }, what)
    t.notMatch(main!.told, ['opened', 'cancelled'])
  }
  const harmless: [string, Act][] = [
    ['postcopy may follow', phase('postcopy-advise')],
    [
      'a multifd channel that is compressed',
      ({ channels }, { migration }) => channels.relayedRaw(migration!, 'multifd', 'no'),
    ],
  ]
  for (const [what, act] of harmless) {
    const [world, [main, multifd]] = begun()
    act(world, main!, multifd!)
    t.match(world.channels.cancel(ID), { id: ID }, what)
  }
  t.end()
})

const failure = (code: 'LIMIT_EXCEEDED' | 'PROTOCOL_STATE'): ProxyError => new ProxyError(code, 'no', undefined, '')

t.test('a flow that is not to be had', t => {
  const cases = [
    { name: 'too many', error: failure('LIMIT_EXCEEDED'), taken: false, told: ['refused'], moved: 0 },
    { name: 'DRAIN', error: failure('PROTOCOL_STATE'), taken: false, told: ['unopened'], moved: 2 },
    {
      name: 'DRAIN, where the other side has the migration',
      error: failure('PROTOCOL_STATE'),
      taken: true,
      told: ['refused'],
      moved: 0,
    },
  ]
  for (const { name, error, taken, told, moved } of cases) {
    const world = new World()
    const gate: TestGate = new Gate('web')
    const [main] = world.migrate(gate, 'main')
    main!.migration!.taken = taken
    world.said.length = 0
    world.refusal = error
    const late = world.says(world.connect(gate), 'multifd')
    t.same(late.told, told, name)
    t.same(world.moved, moved === 0 ? [] : [[main, late]], `${name}: its migration moves, or stays`)
    t.equal(main!.migration!.moved, moved > 0)
    t.equal(world.slots.length, SLOTS - 1, `${name}: its slot is another's`)
    const refusal = `connection refused ${JSON.stringify({ target: 'web', error: error.message })}`
    t.same(world.said, moved > 0 ? [] : [refusal])
    t.equal(world.channels.count, 1)
  }
  const world = new World()
  world.refusal = new TypeError('a defect')
  const channel = world.connect(new Gate('web'))
  t.throws(
    () => world.says(channel, 'main'),
    { message: 'a defect' },
    'what is no answer of the session is not taken for one',
  )
  t.equal(world.slots.length, SLOTS)
  t.end()
})

t.test('memory for no further channel', t => {
  const world = new World()
  const gate: TestGate = new Gate('web')
  world.migrate(gate, 'main', 'multifd', 'multifd', 'multifd')
  t.same(world.slots, [])
  const [late] = world.migrate(gate, 'multifd')
  t.same(late!.told, ['refused'])
  t.match(world.said.at(-1), /^connection refused .*channels have not ended/)
  t.equal(world.opened.length, SLOTS, 'the session is not asked')
  t.end()
})

t.test('flows that the other side refuses', t => {
  const world = new World()
  const [main, multifd] = world.migrate(new Gate('a'), 'main', 'multifd')
  world.channels.refusedByPeer(main!.number, 'drains')
  world.channels.refusedByPeer(multifd!.number, 'drains')
  t.same(world.moved, [[main, multifd]], 'all of the migration goes on in another session, once')
  world.said.length = 0
  world.closes(main!)
  world.closes(multifd!)
  t.same(world.said, ['rests'], 'there it ends')
  const [taken] = world.migrate(new Gate('b'), 'main')
  taken!.migration!.taken = true
  world.channels.refusedByPeer(taken!.number, 'drains')
  t.same(taken!.told, ['opened', `reset ${CODE.SHUTDOWN} drains`], 'the other side knows of it')
  world.channels.refusedByPeer(99, 'drains')
  t.equal(world.moved.length, 1)
  t.end()
})

t.test('a connection of a disk that the other side does not take goes on by itself', t => {
  const world = new World()
  const gate: TestGate = new Gate('web', 'disk')
  const opens = (): Channel => {
    const channel = new Channel(gate)
    world.channels.arrived(channel)
    world.channels.readable(channel)
    return channel
  }
  const [first, crossed] = [opens(), opens()]
  first!.migration!.taken = true
  world.said.length = 0
  world.channels.refusedByPeer(crossed!.number, 'drains')
  t.same(world.moved, [[crossed]], 'its OPEN crossed DRAIN, and no server heard of it')
  t.same(crossed!.told, ['opened'])
  world.refusal = failure('PROTOCOL_STATE')
  const late = opens()
  t.same(world.moved, [[crossed], [late]], 'or DRAIN was there, and what else there is of its transfer is ending')
  t.same([late.told, late.migration], [[], undefined])
  t.same(world.said, [], 'nobody is refused')
  t.equal(world.slots.length, SLOTS - 2)
  t.equal(first!.migration!.moved, false, 'those that are open stay')
  world.refusal = failure('LIMIT_EXCEEDED')
  t.same(opens().told, ['refused'], 'where there is no room it would wait in vain')
  t.end()
})

t.test('what has no flow goes on with the migration of its gate', t => {
  const world = new World()
  const gate: TestGate = new Gate('a')
  const [main] = world.migrate(gate, 'main')
  const silent = world.connect(gate) // its preempt channel, perhaps
  const elsewhere = world.connect(new Gate('b'))
  world.channels.refusedByPeer(main!.number, 'drains')
  t.same(world.moved, [[main, silent]])
  t.equal(elsewhere.told.length, 0)

  const drained = new World()
  const other: TestGate = new Gate('a')
  const early = drained.says(drained.connect(other), 'multifd')
  drained.refusal = failure('PROTOCOL_STATE')
  const late = drained.says(drained.connect(other), 'main')
  t.same(drained.moved, [[late, early]])
  t.same([late.told, early.told], [['unopened'], []])
  t.end()
})

t.test('while a guest waits for its pages next to nothing waits in the link', t => {
  const world = new World()
  const [main, multifd] = world.migrate(new Gate('a'), 'main', 'multifd')
  const [other] = world.migrate(new Gate('b'), 'main')
  world.channels.phase(main!.migration!, 'ram-start')
  t.equal(world.queueMs, QUEUE_MS)
  world.channels.phase(main!.migration!, 'postcopy')
  t.equal(world.queueMs, URGENT_MS)
  t.same(
    [main, multifd, other].map(channel => channel!.told.includes('hurry')),
    [true, true, false],
  )
  world.closes(multifd!)
  world.closes(other!)
  t.equal(world.queueMs, URGENT_MS, 'it waits on')
  world.closes(main!)
  t.equal(world.queueMs, QUEUE_MS)
  world.migrate(new Gate('c'), 'recovery')
  t.equal(world.queueMs, URGENT_MS, 'of a recovery from its first byte')
  t.end()
})

t.test('disks take no place of a migration, and no part in one', t => {
  const world = new World()
  const disks: TestGate = new Gate('web', 'disk')
  const connect = (): Channel => {
    const channel = new Channel(disks)
    world.channels.arrived(channel)
    t.equal(channel.migration, undefined, 'not before it can be read')
    world.channels.readable(channel)
    return channel
  }
  const [one, two] = [connect(), connect()]
  t.equal(one.migration, two.migration, 'both are one transfer')
  t.match(world.said.splice(0), ['begins', /^disk transfer starts/, 'wake', 'wake'])
  const gate: TestGate = new Gate('web')
  const [main] = world.migrate(gate, 'main')
  t.not(main!.migration, disks.migration)
  world.channels.phase(main!.migration!, 'postcopy-advise')
  world.nowMs += PREEMPT_SILENT_MS
  world.channels.tick()
  t.equal(main!.migration!.flows.size, 1, 'a silent disk is no preempt channel')
  t.match([world.channels.status(), world.channels.diskStatus()], [[{ channels: 1 }], [{ connections: 2 }]])
  t.equal(world.channels.cancel(one.migration!.record.id), undefined, 'its QEMU ends it')
  world.said.length = 0
  world.closes(one)
  t.same(world.said, [])
  world.closes(two)
  t.same(world.said, ['ends 1'])
  t.equal(disks.migration, undefined)
  t.end()
})

t.test('a disk that is flushed goes before all else, and next to nothing waits in its way', t => {
  const world = new World()
  const gate: TestGate = new Gate('web', 'disk')
  const [disk, other] = [0, 1].map(() => {
    const channel = new Channel(gate)
    world.channels.arrived(channel)
    world.channels.readable(channel)
    return channel
  }) as [Channel, Channel]
  t.equal(world.queueMs, QUEUE_MS, 'while it is copied as ever')
  world.channels.disks.flushes(disk, true)
  t.same([world.queueMs, disk.told, other.told], [URGENT_MS, ['opened', 'hurry'], ['opened']])
  world.channels.disks.flushes(disk, false)
  world.channels.disks.flushed(disk)
  t.equal(world.queueMs, 10, 'its guest may be stopped at any time')
  t.equal(disk.told.at(-1), 'calm', 'what it writes until then has its share, and no more')
  const [main] = world.migrate(new Gate('web'), 'main')
  world.channels.phase(main!.migration!, 'postcopy')
  t.equal(world.queueMs, URGENT_MS)
  world.closes(main!)
  t.equal(world.queueMs, 10)
  world.closes(disk)
  t.equal(world.queueMs, QUEUE_MS, 'the other one was not flushed')
  world.closes(other)
  t.end()
})

t.test('a FLUSH that its server takes long for holds up nobody', t => {
  const world = new World()
  const gate: TestGate = new Gate('web', 'disk')
  const [disk, other] = [0, 1].map(() => {
    const channel = new Channel(gate)
    world.channels.arrived(channel)
    world.channels.readable(channel)
    return channel
  }) as [Channel, Channel]
  world.channels.disks.flushes(disk, true)
  world.nowMs += 1000
  world.channels.disks.flushes(other, true)
  t.equal(world.channels.nextTickMs, 2000)
  world.nowMs += 1000
  world.channels.tick()
  t.same([disk.told.at(-1), other.told.at(-1), world.queueMs], ['calm', 'hurry', URGENT_MS], 'the other one is new')
  world.nowMs += 1000
  world.channels.tick()
  t.same([other.told.at(-1), world.queueMs], ['calm', QUEUE_MS])
  t.ok(world.channels.nextTickMs > world.nowMs + 2000)
  world.channels.disks.flushes(disk, false)
  world.channels.disks.flushes(disk, true)
  t.same([disk.told.at(-1), world.queueMs], ['hurry', URGENT_MS], 'the next one is as urgent as any')
  for (const channel of [disk, other]) world.closes(channel)
  t.equal(world.queueMs, QUEUE_MS)
  t.end()
})

t.test('the end of a session', t => {
  const world = new World()
  const [known, beside] = world.migrate(new Gate('a'), 'main', 'multifd')
  known!.migration!.taken = true
  world.channels.phase(known!.migration!, 'postcopy')
  const [fresh] = world.migrate(new Gate('b'), 'main')
  const silent = world.connect(new Gate('c'))
  world.unheard.add(fresh!.number)
  world.queueMs = 7
  world.said.length = 0
  world.channels.end('gone')
  t.same(
    [known, beside, fresh, silent].map(channel => channel!.told.at(-1)),
    ['lost: gone', 'lost: gone', 'opened', undefined],
  )
  t.same(world.moved, [[fresh, silent]])
  t.ok(world.channels.over)
  t.equal(world.channels.count, 0)
  t.equal(world.channels.nextTickMs, Number.POSITIVE_INFINITY, 'nothing is due')
  for (const channel of [known!, beside!]) world.closes(channel)
  t.same(world.said, ['ends 1'], 'its migration is told of')
  t.equal(world.queueMs, 7, 'and the session is asked for nothing')
  t.end()
})

t.test('time', t => {
  const world = new World()
  const gate: TestGate = new Gate('a')
  const [main] = world.migrate(gate, 'main')
  const silent = world.connect(gate)
  world.channels.phase(main!.migration!, 'postcopy-advise')
  t.equal(world.channels.nextTickMs, PREEMPT_SILENT_MS)
  world.nowMs = PREEMPT_SILENT_MS
  world.channels.tick()
  t.same([silent.kind, silent.told], ['preempt', ['opened']])
  const probe = world.connect(new Gate('b'))
  t.ok(world.channels.nextTickMs <= world.nowMs + NOTHING_SAID_MS)
  world.nowMs += NOTHING_SAID_MS
  world.channels.tick()
  t.same(probe.told, ['refused'])
  world.said.length = 0
  world.channels.wan(false)
  t.ok(world.channels.nextTickMs <= world.nowMs + 30_000)
  world.nowMs += 30_000
  world.channels.tick()
  t.same(main!.told.at(-1), 'given up')
  t.match(world.said, [/^migration given up .*30 s/], 'told once a migration')
  t.end()
})

t.test('what is relayed raw is told once a migration', t => {
  const world = new World()
  const [main] = world.migrate(new Gate('a'), 'main')
  world.said.length = 0
  for (const position of [7, 8]) world.channels.relayedRaw(main!.migration!, 'main', 'odd', position)
  t.same(world.said.splice(0), ['relayed raw {"migration":1,"kind":"main","reason":"odd"}'])
  world.migrate(new Gate('b'), 'tls', 'tls')
  t.equal(world.said.filter(line => line.startsWith('relayed raw')).length, 1, 'of TLS by itself')
  t.end()
})
