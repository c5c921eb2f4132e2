/** The pump by itself: what each channel does in each of its situations, and how much of it a batch takes. */
import t from 'tap'
import { Fairness, type Weights } from '../../src/session/fairness.ts'
import { EffortController } from '../../src/transfer/effort-controller.ts'
import { BATCH_BYTES_MAX, Pump, PumpedChannel } from '../../src/transfer/pump.ts'

const KIB = 1024

class Bench {
  room = 1e6
  quantum = 0
  credit = Number.POSITIVE_INFINITY
  underWay = 0
  hasRoom = true
  readonly picked: number[][] = []
  readonly pump: Pump

  constructor(effort = new EffortController('auto')) {
    const bench = this
    this.pump = new Pump(
      {
        bulkRoom: () => bench.room,
        bulkQuantum: () => bench.quantum,
        waitingBytes: 0,
        credit: () => bench.credit,
        pickFlow: candidates => {
          bench.picked.push([...candidates])
          return candidates[0]!
        },
      },
      {
        get underWay() {
          return bench.underWay
        },
        get hasRoom() {
          return bench.hasRoom
        },
      },
      effort,
    )
  }

  channel(number: number, ready: number, waiting = ready, slotBytes = BATCH_BYTES_MAX): PumpedChannel {
    const channel = new PumpedChannel(number, { ready, waiting }, slotBytes)
    this.pump.add(channel)
    return channel
  }
}

/** Bytes of whole records in its slot, and all. */
function holds(channel: PumpedChannel, ready: number, waiting = ready): void {
  Object.assign(channel, { bytes: { ready, waiting } })
}

t.test('every situation of a channel', t => {
  const flags = [true, false]
  let count = 0
  for (const broken of flags)
    for (const ended of flags)
      for (const release of flags)
        for (const urgent of flags)
          for (const fresh of flags)
            for (const [ready, waiting] of [
              [0, 0],
              [0, 100],
              [10 * KIB, 10 * KIB + 100],
              [300 * KIB, 300 * KIB],
            ] as const)
              for (const credit of [0, 1e9]) {
                count++
                const bench = new Bench()
                bench.credit = credit
                const channel = bench.channel(1, 0)
                Object.assign(channel, { broken, ended, release, urgent })
                if (fresh) bench.pump.arrives(channel, 1000)
                holds(channel, ready, waiting)
                const job = bench.pump.next(1000)
                const all = release || ended
                const bytes = all ? waiting : ready
                const gathers = fresh && !broken && !all && !urgent && ready > 0 && ready < 256 * KIB
                const said = JSON.stringify({ broken, ended, release, urgent, fresh, ready, waiting, credit })
                const encodes = !broken && !gathers && bytes > 0 && credit >= bytes
                if ((job !== undefined) !== encodes) t.fail(`encoded or not: ${said}`)
                if (job && job.release !== all) t.fail(`whole records or all: ${said}`)
                if (job && urgent && job.effort.level > 1) t.fail(`nothing slow for a guest that waits: ${said}`)
                if (!job && bench.pump.gathering !== gathers) t.fail(`gathering: ${said}`)
                const idles = !broken && !all && ready === 0 && waiting > 0
                const tick = idles ? (fresh ? 1001 : 1) : Number.POSITIVE_INFINITY
                if (!job && bench.pump.nextTickMs !== tick) t.fail(`tick ${bench.pump.nextTickMs}: ${said}`)
              }
  t.equal(count, 2 ** 5 * 4 * 2)
  t.end()
})

t.test('what may be the end of a stream waits a turn for what follows, however much it is', t => {
  const bench = new Bench()
  const { pump } = bench
  const channel = bench.channel(1, 0)
  channel.mayEnd = true
  pump.arrives(channel, 10)
  holds(channel, 600 * KIB)
  t.equal(pump.next(10), undefined)
  t.ok(pump.gathering)
  pump.nextTurn()
  t.equal(pump.next(10.2), undefined)
  pump.nextTurn()
  t.equal(pump.next(10.3)?.channel, channel)
  t.end()
})

t.test('a source in the middle of sending, and one that stops there', t => {
  const bench = new Bench()
  const { pump } = bench
  const channel = bench.channel(1, 0)
  pump.arrives(channel, 10)
  holds(channel, 20 * KIB)
  t.equal(pump.next(10), undefined)
  t.ok(pump.gathering, 'its next bytes may come in the next turn')
  pump.nextTurn()
  t.equal(pump.next(10.2), undefined)
  pump.nextTurn()
  t.equal(pump.next(10.3)?.channel, channel, 'a turn without any: it goes')
  pump.encoded(channel, 20 * KIB)
  t.same([channel.underWay, channel.underWayBytes], [1, 20 * KIB])

  pump.packed(channel, 20 * KIB, 5 * KIB, 20 * KIB)
  holds(channel, 0)
  pump.arrives(channel, 20)
  holds(channel, 0, 50)
  t.equal(pump.next(20), undefined)
  t.equal(pump.nextTickMs, 21, 'an incomplete record waits for a millisecond')
  pump.tick(20.5)
  t.equal(pump.next(20.5), undefined)
  pump.tick(21)
  t.match(pump.next(21), { release: true }, 'then it goes as it is')
  pump.encoded(channel, 50)
  t.notOk(channel.release)

  pump.remove(channel)
  holds(channel, 300 * KIB, 300 * KIB)
  t.equal(pump.next(30), undefined, 'who is gone is asked no more')
  t.end()
})

t.test('what the link and the packer have no room for', t => {
  const bench = new Bench()
  const { pump } = bench
  const channel = bench.channel(1, 300 * KIB)
  bench.quantum = 2e6
  bench.room = 200 * KIB
  t.equal(pump.next(0), undefined, 'room comes in small steps: not worth a batch yet')
  bench.room = 300 * KIB
  t.ok(pump.next(0), 'what a gathered batch takes is enough')
  pump.encoded(channel, 300 * KIB)
  t.equal(pump.next(0), undefined, 'what is in the packer will be queued')
  pump.packed(channel, 300 * KIB, 30 * KIB, 300 * KIB)
  for (const [underWay, hasRoom] of [
    [3, true],
    [2, false],
  ] as const) {
    Object.assign(bench, { underWay, hasRoom })
    t.equal(pump.next(0), undefined)
  }
  Object.assign(bench, { underWay: 2, hasRoom: true })
  t.ok(pump.next(0))
  t.end()
})

t.test('a thin link has small batches, a fast one full ones', t => {
  const bench = new Bench()
  const { pump } = bench
  const channel = bench.channel(1, 0)
  for (const [room, credit, waiting, bytes] of [
    [10 * KIB, 1e9, 0, 64 * KIB],
    [100 * KIB, 1e9, 0, 100 * KIB],
    [100 * KIB, 1e9, 30 * KIB, 70 * KIB],
    [10_000 * KIB, 1e9, 0, BATCH_BYTES_MAX],
    [10_000 * KIB, 20 * KIB, 0, 20 * KIB],
    [10_000 * KIB, 0, 0, 0],
  ] as const) {
    Object.assign(bench, { room, credit })
    holds(channel, 0, waiting)
    pump.next(0)
    t.equal(pump.roomFor(channel), bytes, `${room} bytes of room, ${credit} of credit, ${waiting} waiting`)
  }
  // packing leaves a tenth: ten times as much may be encoded
  Object.assign(bench, { room: 20 * KIB, credit: 1e9 })
  holds(channel, 0, 0)
  for (let i = 0; i < 50; i++) {
    pump.encoded(channel, 1000)
    pump.packed(channel, 1000, 100, 1000)
  }
  pump.next(0)
  t.ok(Math.abs(pump.roomFor(channel) - 200 * KIB) < KIB, `${pump.roomFor(channel)}`)
  t.end()
})

t.test('only those that can be encoded are asked whose turn it is', t => {
  const bench = new Bench()
  const ready = bench.channel(7, 300 * KIB)
  bench.channel(8, 0)
  const other = bench.channel(9, 400 * KIB)
  bench.channel(10, 300 * KIB).broken = true
  t.equal(bench.pump.next(0)?.channel, ready)
  t.same(bench.picked, [[7, 9]])
  ready.broken = true
  t.equal(bench.pump.next(0)?.channel, other)
  t.end()
})

/**
 * Channels whose sources send a piece in each turn of the event loop as long as there is room, and a link that takes
 * `wanPerMs`: what each migration gets of it, as a share.
 */
function sharesOf(weights: Weights, sources: readonly Source[], wanPerMs: number): number[] {
  const fairness = new Fairness(weights)
  const flows = sources.map(({ migration }, number) => ({
    ...{ number, urgent: false, turn: 0 },
    share: fairness.join(Math.abs(migration), migration < 0 ? 'disks' : 'memory'),
  }))
  let queued = 0
  const link = {
    bulkRoom: () => Math.max(0, READY - queued),
    bulkQuantum: () => READY / 2,
    waitingBytes: 0,
    credit: () => 1 << 24,
    pickFlow: (candidates: readonly number[]) => fairness.pick(candidates.map(number => flows[number]))?.number ?? -1,
  }
  const pump = new Pump(link, { underWay: 0, hasRoom: true }, new EffortController(1))
  const channels = sources.map((_, number) => new PumpedChannel(number, { ready: 0, waiting: 0 }, BATCH_BYTES_MAX))
  for (const channel of channels) pump.add(channel)
  const had = new Map<number, number>()
  for (let nowMs = 0; nowMs < 20_000; nowMs += 0.25) {
    pump.nextTurn()
    sources.forEach(({ pieceBytes, everyMs = 0 }, number) => {
      const channel = channels[number]!
      const piece = nowMs % Math.max(everyMs, 0.25) === 0 ? Math.min(pieceBytes, pump.roomFor(channel)) : 0
      if (piece <= 0) return
      pump.arrives(channel, nowMs)
      holds(channel, channel.bytes.ready + piece)
    })
    for (let job = pump.next(nowMs); job; job = pump.next(nowMs)) {
      const { number, bytes } = job.channel
      const raw = bytes.ready
      const wan = Math.round(raw / sources[number]!.ratio)
      holds(job.channel, 0)
      pump.encoded(job.channel, raw)
      pump.packed(job.channel, raw, wan, raw)
      queued += wan
      fairness.sent(flows[number]!.share, wan)
      had.set(sources[number]!.migration, (had.get(sources[number]!.migration) ?? 0) + wan)
    }
    queued = Math.max(0, queued - wanPerMs / 4)
  }
  const sum = [...had.values()].reduce((a, b) => a + b, 0)
  return [...new Set(sources.map(({ migration }) => migration))].map(one => (had.get(one) ?? 0) / sum)
}

const READY = 256 * KIB

interface Source {
  /** Below 0: a disk transfer. */
  readonly migration: number
  readonly pieceBytes: number
  /** Default: in every turn. */
  readonly everyMs?: number
  readonly ratio: number
}

t.test('weights hold in what is picked, whatever the sources are like', t => {
  const memory: Source = { migration: 1, pieceBytes: 64 * KIB, ratio: 3 }
  const disk: Source = { migration: -2, pieceBytes: 256 * KIB, ratio: 1 }
  const near = (found: readonly number[], wanted: readonly number[]): boolean =>
    found.every((share, i) => Math.abs(share - wanted[i]!) < 0.03)
  for (const [name, weights, sources, wanted] of [
    ['as many bytes on the WAN, however they pack', [1, 1], [memory, disk], [1 / 2, 1 / 2]],
    ['three for one', [3, 1], [memory, disk], [3 / 4, 1 / 4]],
    ['one for ten', [1, 10], [memory, disk], [1 / 11, 10 / 11]],
    ['a disk with four connections is one transfer', [3, 1], [memory, disk, disk, disk, disk], [3 / 4, 1 / 4]],
    ['each of two migrations', [3, 1], [memory, disk, { ...memory, migration: 3 }], [3 / 7, 1 / 7, 3 / 7]],
    // 16 KiB in 4 ms, a third of it on the WAN: a ninth of what the link takes
    [
      'who has little is given no more than that',
      [9, 1],
      [{ ...memory, pieceBytes: 16 * KIB, everyMs: 4 }, disk],
      [0.11, 0.89],
    ],
  ] as const) {
    const [ofMemory, ofDisks] = weights
    const found = sharesOf({ memory: ofMemory, disks: ofDisks }, sources, 12_500)
    t.ok(near(found, wanted), `${name}: ${found.map(share => share.toFixed(3))}`)
  }
  t.end()
})

t.test('a number that another channel has which is being brought to its end', t => {
  const bench = new Bench()
  const before = bench.channel(7, 300 * KIB)
  before.broken = true
  const channel = bench.channel(7, 300 * KIB)
  t.equal(bench.pump.next(1000)?.channel, channel)
  t.end()
})

t.test('of a disk more is gathered, as long as it comes in each turn', t => {
  const disk = (ready: number, turns: number, ms: number): boolean => {
    const bench = new Bench()
    bench.room = 1e9
    const channel = new PumpedChannel(1, { ready: 0, waiting: 0 }, 9 * 64 * KIB, true)
    bench.pump.add(channel)
    bench.pump.arrives(channel, 1000)
    holds(channel, 100 * KIB)
    bench.pump.nextTurn()
    bench.pump.arrives(channel, 1000 + ms)
    holds(channel, ready)
    for (let turn = 0; turn < turns; turn++) bench.pump.nextTurn()
    return bench.pump.next(1000 + ms) === undefined
  }
  t.equal(disk(400 * KIB, 1, 1), true)
  t.equal(disk(448 * KIB, 1, 1), false, 'enough')
  t.equal(disk(400 * KIB, 2, 1), false, 'a turn without any')
  t.equal(disk(400 * KIB, 1, 3.9), true)
  t.equal(disk(400 * KIB, 1, 4), false, 'it takes too long')
  t.end()
})

t.test('the link is behind where it is waited for', t => {
  const bench = new Bench()
  bench.channel(1, 300 * KIB)
  t.equal(bench.pump.linkIsBehind, false)
  const wait = (room: number, fromMs: number, ms: number): void => {
    bench.room = room
    bench.hasRoom = false
    for (let at = fromMs; at < fromMs + ms; at += 10) bench.pump.next(at)
  }
  wait(1e6, 1000, 1000)
  t.equal(bench.pump.linkIsBehind, false, 'what is encoded is')
  wait(0, 2000, 300)
  t.equal(bench.pump.linkIsBehind, true)
  wait(1e6, 2300, 2000)
  t.equal(bench.pump.linkIsBehind, false)
  t.end()
})
