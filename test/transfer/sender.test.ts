/** The way out of a session without sockets, clocks and threads: slots, order, ends, and sources that fall silent. */

import t from 'tap'
import { LZ4 } from '../../src/compression/effort.ts'
import { FLOWS_MAX } from '../../src/limits.ts'
import { type SourceInput, SourceLife } from '../../src/migration/source-life.ts'
import { BlockTable } from '../../src/qemu/block-table.ts'
import type { BatchReport } from '../../src/transfer/batch-job.ts'
import { EffortController } from '../../src/transfer/effort-controller.ts'
import type { BatchSink } from '../../src/transfer/outbound.ts'
import type { Pool } from '../../src/transfer/pool.ts'
import { BATCH_BYTES_MAX } from '../../src/transfer/pump.ts'
import { Sender, type SenderPacker } from '../../src/transfer/sender.ts'
import type { SendingChannel, SendingOwner, SendingStart } from '../../src/transfer/sending-channel.ts'
import { SLOT_UNIT_BYTES } from '../../src/transfer/slot-arena.ts'
import { streamOf } from '../bench/streams.ts'
import { random } from '../template/makers.ts'

const UNITS = FLOWS_MAX + 64
const MEMORY = new Uint8Array(UNITS * SLOT_UNIT_BYTES)
const MAIN = Buffer.from('5145564d00000003', 'hex')

/** Batches that were encoded and have not come out, oldest first. */
class Packer implements SenderPacker {
  observer: undefined
  readonly jobs: { channel: SendingChannel; bytes: Uint8Array; report: BatchReport }[] = []
  /** Channels whose batches may name pages on the other side's disk. */
  readonly mayName: number[] = []
  private readonly sink: BatchSink<SendingChannel>

  constructor(sink: BatchSink<SendingChannel>) {
    this.sink = sink
  }

  warmed = 0

  get underWay(): number {
    return this.jobs.length
  }

  get hasRoom(): boolean {
    return this.jobs.length < 4
  }

  warm(): void {
    this.warmed++
  }

  encode(channel: SendingChannel, _effort: unknown, release: boolean, useCold?: boolean): number {
    const { encoder, buffer } = channel
    const rawLength = release ? encoder.waiting : encoder.ready
    if (rawLength === 0) return 0
    const loan = buffer.lend(rawLength)
    const bytes = MEMORY.slice(loan.at, loan.at + rawLength)
    encoder.batched(rawLength, new Uint8Array(encoder.records.pages))
    if (useCold) this.mayName.push(channel.number)
    loan.release()
    this.jobs.push({ channel, bytes, report: { rawLength, packedLength: rawLength, newBytes: rawLength } })
    return rawLength
  }

  /** The oldest comes out. */
  finish(): void {
    const { channel, bytes, report } = this.jobs.shift()!
    this.sink(channel, [bytes], report)
  }

  async close(): Promise<void> {}
}

/** A session that writes down what it is told; its link always has room. */
class World {
  readonly told: string[] = []
  readonly sent = new Map<number, Buffer>()
  credit = Number.POSITIVE_INFINITY
  /** Bytes that may go before batches. */
  room = Number.POSITIVE_INFINITY
  nowMs = 1000
  packer!: Packer
  readonly sender: Sender

  constructor(level: number | 'auto' = 1) {
    const link = {
      bulkRoom: () => 1e6,
      bulkQuantum: () => 0,
      waitingBytes: 0,
      credit: () => this.credit,
      pickFlow: (candidates: readonly number[]) => candidates[0]!,
      dataRoom: (_flow: number, wanted: number) => Math.min(wanted, this.room),
      sendData: (flow: number, bytes: Uint8Array) =>
        void this.told.push(`${flow} data ${Buffer.from(bytes).toString('hex')}`),
      setUrgent: (flow: number, urgent: boolean) => void this.told.push(`${flow} urgent ${urgent}`),
      sendBatch: (flow: number, rawLength: number, parts: readonly Uint8Array[]) => {
        this.told.push(`${flow} batch ${rawLength}`)
        this.sent.set(flow, Buffer.concat([this.sent.get(flow) ?? Buffer.alloc(0), ...parts]))
      },
    }
    const pool = {
      kernel: { bytes: MEMORY, layout: { templatePages: 0, ringPages: 0 } },
      slots: Array.from({ length: UNITS }, (_, i) => i * SLOT_UNIT_BYTES),
    } as unknown as Pool
    this.sender = new Sender(link, pool, new EffortController(level), sink => {
      this.packer = new Packer(sink)
      return this.packer
    })
  }

  open(number: number, more: Partial<SendingStart> = {}): { channel: SendingChannel; owner: Owner } {
    const owner = new Owner(end => this.told.push(`${number} ${end}`))
    const start = { number, migration: 1, kind: 'unknown', memory: {}, urgent: false, owner, facts: owner } as const
    owner.channel = this.sender.open({ ...start, ...more }, this.sender.takeSlot('migration')!)
    return { channel: owner.channel, owner }
  }

  /** QEMU's bytes arrive. @returns how many there was room for */
  write(channel: SendingChannel, bytes: Uint8Array): number {
    const room = channel.room()
    if (!room) return 0
    const count = Math.min(room.length, bytes.length)
    room.set(bytes.subarray(0, count))
    channel.filled(count, this.nowMs)
    return count
  }

  /** Turns of the event loop, until there is nothing to do. */
  work(): void {
    while (this.sender.work(() => this.nowMs));
  }
}

/** Brings its flow to its end as SourceFlow does. */
class Owner implements SendingOwner {
  rawBytes = 0
  batches = 0
  readonly phases: string[] = []
  channel!: SendingChannel
  private readonly life = new SourceLife()
  private readonly handIn: (end: 'fin' | 'reset') => void

  constructor(handIn: (end: 'fin' | 'reset') => void) {
    this.handIn = handIn
    this.life.on('opened')
  }

  flushes(waits: boolean): void {
    this.channel.hurry(waits)
  }

  on(input: SourceInput): void {
    for (const order of this.life.on(input)) {
      if (order === 'drain') this.channel.ends()
      else if (order === 'drop') this.channel.drops()
      else if (order === 'fin' || order === 'reset') this.handIn(order)
    }
  }

  packed(emptied: boolean): void {
    this.on(emptied ? 'emptied' : 'packed')
  }

  encoded(rawBytes: number): void {
    this.rawBytes += rawBytes
  }

  sent(): void {
    this.batches++
  }

  phase(phase: string): void {
    this.phases.push(phase)
  }
}

t.test('the thread for LZ4 is started in advance where batches may need it', t => {
  const warmed = (['auto', 0, LZ4.level, 1, 5] as const).map(level => new World(level).packer.warmed)
  t.same(warmed, [1, 1, 1, 0, 0])
  t.end()
})

t.test('FIN goes behind the last batch, RESET behind those that are encoded', t => {
  const world = new World()
  const { channel, owner } = world.open(1)
  world.write(channel, Buffer.alloc(1000, 1))
  world.work()
  world.write(channel, Buffer.alloc(500, 2))
  owner.on('eof')
  t.same(world.told, [], 'bytes wait, and are under way')
  world.work()
  world.packer.finish()
  t.same(world.told, ['1 batch 1000'])
  world.packer.finish()
  t.same(world.told.splice(0), ['1 batch 1000', '1 batch 500', '1 fin'])
  t.match(owner, { rawBytes: 1500, batches: 2 })

  const { channel: broken, owner: breaks } = world.open(2)
  world.write(broken, Buffer.alloc(1000, 1))
  world.work()
  world.write(broken, Buffer.alloc(500, 2))
  breaks.on('broke')
  breaks.on('reset')
  world.work()
  t.same(world.told, [], 'a batch is under way')
  world.packer.finish()
  t.same(world.told.splice(0), ['2 batch 1000', '2 reset'], 'what waited is lost')

  const { owner: still } = world.open(3)
  still.on('eof')
  t.same(world.told.splice(0), ['3 fin'], 'at once where there is nothing')
  still.on('givenUp')
  t.same(world.told.splice(0), ['3 reset'], 'a finished one can break')

  const { channel: ended, owner: ends } = world.open(4)
  world.write(ended, Buffer.alloc(10))
  world.work()
  ends.on('lost')
  world.sender.close(ended)
  world.packer.finish()
  t.same(world.told, ['4 batch 10'], 'the peer knows its end: nothing is said of it')
  t.end()
})

t.test('a full channel is encoded in the middle of a turn, and has room at once; for a millisecond of each turn', t => {
  const world = new World()
  const { channel } = world.open(1)
  const now = (): number => world.nowMs
  const full = Buffer.alloc(BATCH_BYTES_MAX, 3)
  world.write(channel, full.subarray(0, 1000))
  t.notOk(channel.isFull, 'there is room behind a few bytes')
  world.write(channel, full.subarray(1000))
  t.ok(channel.isFull)
  t.equal(channel.room(), undefined)
  world.sender.full(now)
  t.notOk(channel.isFull)
  t.ok(channel.room())
  world.packer.finish()
  t.same(world.told.splice(0), [`1 batch ${BATCH_BYTES_MAX}`])

  world.nowMs += 0.9
  world.write(channel, full)
  world.sender.full(now)
  t.equal(world.packer.underWay, 1, 'the same turn goes on')
  world.nowMs += 0.1
  world.write(channel, full)
  world.sender.full(now)
  t.equal(world.packer.underWay, 1, 'others have waited for long enough')
  world.packer.finish()
  world.work()
  t.equal(world.packer.underWay, 1)
  world.packer.finish()
  world.write(channel, full)
  world.sender.full(now)
  t.equal(world.packer.underWay, 1, 'the next turn has a millisecond of its own')
  t.end()
})

t.test('an incomplete record goes out when its source falls silent', t => {
  const world = new World()
  const { channel, owner } = world.open(1, { kind: 'main', memory: { blocks: new BlockTable() } })
  channel.begins(MAIN.subarray(0, 6), world.nowMs)
  t.equal(world.sender.nextTickMs, Number.POSITIVE_INFINITY)
  world.work()
  t.equal(world.packer.underWay, 0)
  t.equal(world.sender.nextTickMs, world.nowMs + 1, 'its rest may follow')
  world.sender.tick(world.nowMs + 0.5)
  world.work()
  t.equal(world.packer.underWay, 0, 'not yet')
  world.nowMs++
  world.sender.tick(world.nowMs)
  world.work()
  world.packer.finish()
  t.same(world.told, ['1 batch 6'])
  t.equal(world.sender.nextTickMs, Number.POSITIVE_INFINITY)
  world.write(channel, MAIN.subarray(6))
  t.same(owner.phases, ['header'], 'its parser goes on')
  t.end()
})

t.test('a source that is faster than its proxy makes no small batches between full ones', t => {
  const world = new World()
  const { channel } = world.open(1, { kind: 'main', memory: { blocks: new BlockTable() } })
  const stream = streamOf(Buffer.alloc(4096, 1), 1, 1000)
  for (let at = 0; at < stream.length; ) {
    // as a socket reads: until there is no room
    for (let count = 1; count > 0; at += count) count = world.write(channel, stream.subarray(at))
    world.work()
    world.packer.finish()
  }
  const sizes = world.told.map(told => Number(told.replace(/.* /, '')))
  t.ok(sizes.length > 5)
  t.ok(Math.min(...sizes.slice(0, -1)) > BATCH_BYTES_MAX / 2, `batches of ${sizes.join(', ')} bytes`)
  t.end()
})

t.test('urgent from its start, or by its kind, or later', t => {
  const world = new World()
  world.open(1, { kind: 'preempt', memory: { blocks: new BlockTable() } })
  world.open(2, { urgent: true })
  const { channel } = world.open(3)
  t.equal(channel.pumped.urgent, false)
  channel.hurry()
  t.equal(channel.pumped.urgent, true)
  t.same(world.told, ['1 urgent true', '2 urgent true', '3 urgent true'])
  t.end()
})

t.test('while one guest waits for its pages no batch names what a disk has to give', t => {
  const world = new World()
  const { channel } = world.open(1)
  const write = () => {
    world.write(channel, Buffer.alloc(100, 1))
    world.work()
    world.packer.finish()
  }
  write()
  t.same(world.packer.mayName, [1])
  const other = world.open(2, { migration: 2, urgent: true })
  write()
  t.same(world.packer.mayName, [1], 'the other side expands this one before that of the guest that waits')
  world.sender.close(other.channel)
  write()
  t.same(world.packer.mayName, [1, 1])
  t.end()
})

t.test('every place has a slot, and no more', t => {
  const { sender } = new World()
  const slots = Array.from({ length: FLOWS_MAX }, () => sender.takeSlot('migration'))
  t.ok(slots.every(slot => slot !== undefined))
  t.equal(sender.takeSlot('migration'), undefined)
  sender.giveSlot(slots[7]!)
  t.ok(sender.takeSlot('migration'))
  t.end()
})

t.test('whatever comes in whichever order, each flow gets its bytes and one end', t => {
  for (let seed = 1; seed <= 100; seed++) {
    const next = random(seed)
    const world = new World()
    const flows = Array.from({ length: 1 + next(5) }, (_, i) => ({
      ...world.open(i + 1),
      bytes: Buffer.from(Array.from({ length: next(300_000) }, () => next(256))),
      at: 0,
      end: '',
    }))
    const isOver = ({ end }: (typeof flows)[number]): boolean => end !== ''
    for (let step = 0; step < 5000 && !flows.every(isOver); step++) {
      world.nowMs += next(3) / 2
      if (world.sender.nextTickMs <= world.nowMs) world.sender.tick(world.nowMs)
      const flow = flows[next(flows.length)]!
      const { channel, owner, bytes } = flow
      world.credit = next(4) === 0 ? 0 : 1e6
      if (!isOver(flow)) {
        flow.at += world.write(channel, bytes.subarray(flow.at, flow.at + next(60_000)))
        if (flow.at === bytes.length) {
          owner.on('eof')
          flow.end = 'fin'
        } else if (next(200) === 0) {
          owner.on('broke')
          flow.end = 'reset'
        }
      }
      world.sender.work(() => world.nowMs)
      if (world.packer.underWay > 0 && next(2) === 0) world.packer.finish()
    }
    world.credit = 1e6
    for (let i = 0; i < 20; i++) {
      world.work()
      while (world.packer.underWay > 0) world.packer.finish()
    }
    for (const { channel, bytes, at, end } of flows) {
      const got = world.sent.get(channel.number) ?? Buffer.alloc(0)
      const whole = end === 'fin' ? got.equals(bytes) : got.equals(bytes.subarray(0, got.length)) && got.length <= at
      const ends = world.told.filter(said => said.startsWith(`${channel.number} `) && !said.includes('batch'))
      if (!whole || ends.length !== 1 || !ends[0]!.includes(end))
        t.fail(`seed ${seed} flow ${channel.number}: ${got.length} of ${bytes.length} bytes, ${end}: ${ends}`)
      const last = world.told.filter(said => said.startsWith(`${channel.number} `)).at(-1)
      if (last !== ends[0]) t.fail(`seed ${seed} flow ${channel.number}: ${last} behind its end`)
    }
  }
  t.pass('100 seeds')
  t.end()
})

t.test('a FLUSH that a client waits for goes before batches, and what is not that alone does not', t => {
  const world = new World()
  const { channel } = world.open(7, { kind: 'disk' })
  const bytes = (...hex: string[]): Buffer => Buffer.from(hex.join(''), 'hex')
  /** A request of no bytes. */
  const request = (type: string, cookie: string): Buffer =>
    bytes('25609513', '0000', type, cookie.padStart(16, '0'), '0'.repeat(16), '00000000')
  const answer = (cookie: string): void => channel.hears(bytes('67446698', '00000000', cookie.padStart(16, '0')))
  const flush = (cookie: string): Buffer => request('0003', cookie)
  channel.hears(bytes('4e42444d41474943', '49484156454f5054', '0003'))
  world.write(channel, bytes('00000003', '49484156454f5054', '00000001', '00000000')) // EXPORT_NAME
  channel.hears(bytes('0000000000100000', '0005'))
  world.work()
  world.packer.finish()
  world.told.length = 0
  world.write(channel, flush('1'))
  t.same(world.told.splice(0), ['7 urgent true', `7 data ${flush('1').toString('hex')}`])
  t.match(channel.encoder, { waiting: 0, stats: { rawBytes: 28, packedBytes: 28 } })
  answer('1')
  t.same(world.told.splice(0), ['7 urgent false'])

  world.write(channel, Buffer.concat([request('0004', '2'), flush('3')]))
  t.equal(world.told.at(-1), `7 data ${request('0004', '2').toString('hex')}${flush('3').toString('hex')}`, 'in order')
  answer('3')
  const data = Buffer.concat([
    bytes('25609513', '00000001', '4'.padStart(16, '0'), '0'.repeat(16), '00001000'),
    Buffer.alloc(4096),
  ])
  world.told.length = 0
  world.write(channel, Buffer.concat([data, flush('5')]))
  t.same(world.told, ['7 urgent true'], 'data before it goes in a batch, and so does this')
  world.work()
  world.write(channel, flush('6'))
  t.equal(channel.encoder.waiting, 28, 'a batch of its own is being packed: it does not overtake that')
  world.work()
  while (world.packer.underWay > 0) world.packer.finish()
  world.room = 27
  world.told.length = 0
  world.write(channel, flush('7'))
  t.same(world.told, [], 'no room for all of it')
  world.work()
  t.equal(channel.encoder.waiting, 0, 'then in a batch')
  t.end()
})
