/** Writes that are answered early: the simulation with its planted faults, and what it leaves out: limits, hostile peers. */
import fc from 'fast-check'
import t from 'tap'
import { ByteWriter } from '../../scripts/harness/byte-writer.ts'
import { random } from '../../scripts/harness/random.ts'
import { isProxyError, type ProxyError } from '../../src/errors.ts'
import { FairShares, type Share } from '../../src/fair-shares.ts'
import * as limits from '../../src/limits.ts'
import { EarlyAnswers } from '../../src/nbd/early-answers.ts'
import { WrittenRanges } from '../../src/nbd/written-ranges.ts'
import { conversation, nbdVectors } from '../vectors/nbd/conversations.ts'
import { messagesOf } from './conversations.ts'
import { EARLY_PLANTS } from './early-plants.ts'
import { earlyRun } from './early-simulation.ts'

t.setTimeout(590_000) // the machine may be busy

const SEED = Number(process.env.EARLY_SEED ?? 1)
const RUNS = Number(process.env.EARLY_RUNS ?? 1000)

t.test(`${RUNS} clients believe nothing that is not so`, t => {
  const wrong: string[] = []
  const ends = new Map<string, number>()
  let early = 0
  let flushes = 0
  for (let seed = SEED; seed < SEED + RUNS; seed++) {
    const outcome = earlyRun(seed)
    if (typeof outcome === 'string') {
      wrong.push(`EARLY_SEED=${seed} EARLY_RUNS=1: ${outcome}`)
      continue
    }
    const end = `${outcome.end}${outcome.refused ? ', refused' : ''}${outcome.raw ? ', raw' : ''}`
    ends.set(end, (ends.get(end) ?? 0) + 1)
    early += outcome.early
    flushes += outcome.flushes
  }
  t.same(wrong.slice(0, 5), [])
  t.comment([...ends].map(([end, count]) => `${count} ${end}`).join('; '))
  if (RUNS >= 1000) {
    for (const end of ['in order', 'reset', 'reset, refused', 'in order, raw', 'reset, raw']) t.ok(ends.get(end), end)
    t.ok(early > 10 * RUNS, `${early} answers were ours`)
    t.ok(flushes > RUNS, `${flushes} flushes were well`)
  }
  t.end()
})

for (const [name, rules] of Object.entries(EARLY_PLANTS)) {
  t.test(`found: ${name}`, t => {
    let found: string | undefined
    let seed = 0
    while (found === undefined && seed < 4000) {
      const outcome = earlyRun(++seed, rules)
      if (typeof outcome === 'string') found = `seed ${seed}: ${outcome}`
    }
    t.ok(found, found ?? 'not found')
    t.end()
  })
}

// --- one connection, by hand

const UNLIMITED = 1 << 30
const GREETING = new Uint8Array(Buffer.from('NBDMAGICIHAVEOPT\0\x03', 'latin1'))
const EXPORT_NAME = new ByteWriter().u32(3).raw(text('IHAVEOPT')).u32(1).u32(1).raw(text('d')).bytes()
/** HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN. */
const ALL = 1 | 4 | 8 | 32 | 64 | 256
const WRITE = 1
const FLUSH = 3
const READ = 0
const TRIM = 4

function text(value: string): Uint8Array {
  return new Uint8Array(Buffer.from(value, 'latin1'))
}

class Connection {
  readonly answers: Uint8Array[] = []
  readonly relayed: Uint8Array[] = []
  readonly errors: ProxyError[] = []
  broken: ProxyError | undefined
  readonly engine: EarlyAnswers

  constructor(memory: Share = new FairShares(UNLIMITED).share('test'), flags = ALL, size = 2 ** 40) {
    this.engine = new EarlyAnswers(memory, {
      answers: bytes => this.answers.push(bytes),
      relays: bytes => this.relayed.push(new Uint8Array(bytes)),
      refuses: error => this.errors.push(error),
      breaks: error => {
        this.broken = error
      },
    })
    this.says(GREETING)
    this.asks(EXPORT_NAME)
    this.pulled()
    this.says(new ByteWriter().u64(size).u16(flags).bytes())
  }

  says(bytes: Uint8Array): void {
    this.engine.fromServer(new Uint8Array(bytes))
  }

  asks(bytes: Uint8Array, nowMs = 0): void {
    this.engine.fromClient(bytes, nowMs)
  }

  pulled(most = 1 << 20): Uint8Array {
    const into = new Uint8Array(most)
    return into.slice(0, this.engine.pull(into))
  }

  get answeredBytes(): number {
    return this.answers.reduce((sum, { length }) => sum + length, 0)
  }
}

function request(type: number, cookie: number, offset: number, length: number, flags = 0): ByteWriter {
  return new ByteWriter().u32(0x25609513).u16(flags).u16(type).u64(cookie).u64(offset).u32(length)
}

const write = (cookie: number, offset: number, length: number): Uint8Array =>
  request(WRITE, cookie, offset, length).fill(cookie, length).bytes()
const reply = (cookie: number, error = 0): Uint8Array => new ByteWriter().u32(0x67446698).u32(error).u64(cookie).bytes()

t.test('the flag that a FLUSH covers other connections is taken back, and nothing else', t => {
  const connection = new Connection()
  const [greeting, exported] = [connection.relayed[0]!, connection.relayed.at(-1)!]
  t.same(greeting, GREETING)
  t.equal(exported[9]! + 256 * exported[8]!, ALL & ~256)
  const far = new Connection(undefined, ALL & ~4)
  t.equal(far.relayed.at(-1)![8], 1, 'a server that cannot flush is as it says')
  far.asks(write(7, 0, 4))
  t.equal(far.answers.length, 0, 'and nothing is answered early')
  t.same(far.pulled(), write(7, 0, 4), 'and nothing is changed')
  far.says(reply(7))
  t.same(far.relayed.at(-1), reply(7))
  const readOnly = new Connection(undefined, ALL | 2)
  readOnly.asks(write(7, 0, 4))
  t.equal(readOnly.answers.length, 0)
  t.end()
})

t.test('a write is answered, its cookie used again, and both find their answers', t => {
  const connection = new Connection()
  connection.asks(write(0xab, 4096, 8))
  t.same(connection.answers, [reply(0xab)])
  connection.asks(request(READ, 0xab, 0, 4).bytes())
  const far = connection.pulled()
  t.equal(far.length, 28 + 8 + 28, 'the read is of another place: it does not wait')
  t.equal(new DataView(far.buffer).getBigUint64(8), 1n)
  t.equal(new DataView(far.buffer).getBigUint64(36 + 8), 2n)
  connection.says(new Uint8Array([...reply(2), 9, 9, 9, 9]))
  connection.says(reply(1))
  t.same(connection.relayed.at(-1), new Uint8Array([...reply(0xab), 9, 9, 9, 9]), 'of the read alone')
  t.equal(connection.engine.owed, 0)
  t.end()
})

t.test('what is owed: writes that have an answer, and the bytes of their data', t => {
  const connection = new Connection()
  const owed = () => connection.engine.journalled
  t.same(owed(), { writes: 0, bytes: 0 })
  connection.asks(write(1, 0, 512).subarray(0, 100))
  t.same(owed(), { writes: 0, bytes: 0 }, 'before all of it is here it has no answer')
  connection.asks(write(1, 0, 512).subarray(100))
  connection.asks(request(TRIM, 2, 1 << 20, 1 << 30).bytes())
  connection.asks(request(READ, 3, 2 ** 31, 4).bytes())
  connection.asks(write(4, 8192, 64))
  t.same(owed(), { writes: 3, bytes: 576 }, 'a trim has no data, and a read is not answered')
  connection.pulled()
  t.same(owed(), { writes: 3, bytes: 576 }, 'also on its way')
  connection.asks(write(5, 8192, 64)) // waits for the one before
  connection.asks(write(6, 8192, 64))
  t.same(owed(), { writes: 4, bytes: 640 }, 'one that nobody needs any more is not owed')
  connection.says(reply(1))
  t.same(owed(), { writes: 3, bytes: 128 })
  connection.says(reply(4, 5))
  t.same(owed(), { writes: 1, bytes: 0 }, 'what will not be sent is not owed')
  connection.says(reply(2))
  t.same(owed(), { writes: 0, bytes: 0 })
  t.end()
})

t.test('an answer of ours does not come in the middle of one of the server', t => {
  const connection = new Connection()
  connection.asks(request(READ, 5, 0, 8).bytes())
  connection.pulled()
  connection.says(new Uint8Array([...reply(1), 1, 2, 3]))
  connection.asks(write(6, 4096, 4))
  t.equal(connection.answers.length, 0)
  connection.says(new Uint8Array([4, 5, 6, 7]))
  t.equal(connection.answers.length, 0)
  connection.says(new Uint8Array([8]))
  t.same(connection.answers, [reply(6)])
  t.end()
})

t.test('a place that is written over and over goes once a round trip', t => {
  const connection = new Connection()
  connection.asks(write(1, 8192, 512))
  t.equal(connection.pulled().length, 28 + 512)
  for (let i = 2; i <= 50; i++) connection.asks(write(i, 8192, 512))
  t.equal(connection.answeredBytes, 50 * 16)
  t.equal(connection.pulled().length, 0, 'the others wait for the answer to the first')
  t.ok(connection.engine.bytes < 4 * 1024, 'and the last one stands for them')
  connection.says(reply(1))
  t.equal(connection.pulled()[28], 50)
  t.equal(connection.pulled().length, 0)
  t.end()
})

t.test('the journal is bounded in bytes, whatever a request is long', t => {
  const memory = new FairShares(UNLIMITED)
  const connection = new Connection(memory.share('test'))
  const chunk = new Uint8Array(65536)
  const most = limits.JOURNAL_BYTES_MAX
  connection.asks(write(1, 0, 4096))
  connection.pulled()
  connection.asks(request(WRITE, 2, 0, 24 << 20).bytes()) // waits for the one before
  let sent = 0
  for (let room = connection.engine.room(0); room > 0; room = connection.engine.room(0)) {
    connection.asks(chunk.subarray(0, Math.min(room, chunk.length)))
    sent += Math.min(room, chunk.length)
  }
  t.ok(sent > most - 8192 && connection.engine.bytes <= most, `${connection.engine.bytes} bytes are held`)
  t.equal(memory.used, connection.engine.bytes - limits.JOURNAL_FREE_BYTES, 'all but the free part is of the budget')
  connection.says(reply(1))
  let came = 0
  for (let left = (24 << 20) - sent; left > 0 || connection.engine.bytes > 1024; ) {
    came += connection.pulled().length
    const room = Math.min(connection.engine.room(0), left, chunk.length)
    if (room > 0) connection.asks(chunk.subarray(0, room))
    left -= room
  }
  t.equal(came, 28 + (24 << 20), 'and it comes through')
  t.same(connection.answers.at(-1), reply(2), 'answered when all of it was here')
  t.equal(memory.used, 0)
  connection.engine.close()
  t.end()
})

t.test('without a budget a connection has its free part, and goes on', t => {
  const memory = new FairShares(0)
  const connection = new Connection(memory.share('test'))
  connection.asks(write(1, 0, 64))
  connection.pulled()
  connection.asks(write(2, 0, 100_000)) // waits
  const bytes = write(3, 1 << 20, 300_000)
  let at = 0
  const feed = (): void => {
    const room = Math.min(connection.engine.room(0), bytes.length - at)
    if (room > 0) connection.asks(bytes.subarray(at, at + room))
    at += room
  }
  feed()
  t.ok(at > 100_000 && at < 200_000, `${at} bytes were taken`)
  let pulled = 0
  for (let i = 0; i < 100 && at < bytes.length; i++) {
    pulled += connection.pulled(65536).length
    feed()
  }
  t.equal(at, bytes.length, 'what is on its way in part goes on, beside one that waits')
  t.equal(pulled + connection.pulled().length, bytes.length)
  t.end()
})

t.test('it is bounded in time', t => {
  const connection = new Connection()
  connection.asks(write(1, 0, 64), 1000)
  const { JOURNAL_AGE_MS_MAX: most } = limits
  t.ok(connection.engine.room(1000 + most) > 0)
  t.equal(connection.engine.room(1001 + most), 0, 'a write is owed for too long')
  connection.pulled()
  connection.says(reply(1))
  t.ok(connection.engine.room(1001 + most) > 0)
  t.end()
})

t.test('requests are counted, and answers that nobody reads', t => {
  const connection = new Connection()
  let count = 0
  for (let room = connection.engine.room(0); room >= 28; room = connection.engine.room(0)) {
    connection.asks(request(6, count, 4096 * count, 4096).bytes())
    count++
    connection.engine.read(16)
  }
  t.equal(count, limits.NBD_REQUESTS_MAX - 1)
  const slow = new Connection()
  let answered = 0
  for (; slow.engine.room(0) > 0; answered++) {
    slow.asks(request(6, answered, 0, 4096).bytes())
    const head = slow.pulled(64)
    if (head.length > 0) slow.says(reply(Number(new DataView(head.buffer).getBigUint64(8))))
  }
  t.ok(slow.answeredBytes <= limits.JOURNAL_ANSWERS_BYTES_MAX + 32, `${slow.answeredBytes} bytes of answers wait`)
  t.end()
})

t.test('a write that fails fails all that follows', t => {
  const connection = new Connection()
  connection.asks(write(1, 0, 64))
  connection.pulled()
  connection.asks(request(FLUSH, 2, 0, 0).bytes())
  connection.says(reply(1, 28))
  t.same(connection.answers.at(-1), reply(2, 28), 'the FLUSH that waited')
  t.match(connection.errors, [{ code: 'QEMU_LOST', what: /error 28/ }])
  connection.asks(write(3, 0, 64))
  t.same(connection.answers.at(-1), reply(3, 28))
  connection.asks(request(READ, 4, 0, 64).bytes())
  t.same(connection.answers.at(-1), reply(4, 28))
  t.equal(connection.pulled().length, 0, 'nothing more goes')
  t.notOk(connection.broken)
  connection.asks(request(2, 0, 0, 0).bytes())
  t.match(connection.broken, { code: 'QEMU_LOST' }, 'it does not end in order')
  t.end()
})

t.test('a server that goes', t => {
  const owes = new Connection()
  owes.asks(write(1, 0, 64))
  t.equal(owes.engine.serverEnds(), false)
  t.match(owes.broken, { code: 'QEMU_LOST', what: /1 writes/ })
  const settled = new Connection()
  settled.asks(write(1, 0, 64))
  settled.pulled()
  settled.says(reply(1))
  t.equal(settled.engine.serverEnds(), true)
  t.notOk(settled.broken)
  settled.asks(write(2, 0, 64))
  t.match(settled.broken, { code: 'QEMU_LOST' }, 'nothing is answered that nobody gets')
  t.equal(settled.answers.length, 1)
  t.end()
})

t.test('what is not understood', t => {
  const client = new Connection()
  client.asks(write(1, 0, 64))
  client.asks(request(9, 0x55, 1, 2).bytes().subarray(0, 20))
  client.asks(new Uint8Array([...request(9, 0x55, 1, 2).bytes().subarray(20), 7, 7]))
  t.equal(client.engine.room(0), 0)
  t.equal(client.pulled().length, 28 + 64)
  t.equal(client.engine.isDrained, false)
  client.says(reply(1))
  t.same(client.pulled(), new Uint8Array([...request(9, 0x55, 1, 2).bytes(), 7, 7]), 'goes when nothing is owed')
  client.says(reply(0x55))
  t.same(client.relayed.at(-1), reply(0x55), 'as it is')
  const late = new Connection()
  late.asks(write(1, 0, 64))
  late.pulled()
  late.says(text('what is this, then'))
  t.match(late.broken, { code: 'QEMU_LOST', what: /not understood/ }, 'a server, with writes that it owes')
  const forward = new Connection()
  forward.asks(write(1, 0, 64))
  forward.says(reply(1))
  t.ok(forward.broken, 'one that answers before it is asked')
  t.end()
})

t.test('bytes that nobody understands end in raw or in a typed error, and no memory is kept', t => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 31 }), seed => {
      const rand = random(seed)
      const steps =
        rand(3) > 0 ? messagesOf(rand, rand(30)) : conversation(nbdVectors[rand(nbdVectors.length)]!.steps).steps
      const memory = new FairShares(1 << 20)
      const share = memory.share('test')
      let over: ProxyError | undefined
      const engine = new EarlyAnswers(share, {
        answers: bytes => engine.read(bytes.length),
        relays: () => {},
        refuses: () => {},
        breaks: error => {
          over = error
        },
      })
      const into = new Uint8Array(4096)
      for (const { from, bytes } of steps) {
        const changed = new Uint8Array(bytes)
        if (changed.length > 0 && rand(12) === 0) changed[rand(changed.length)] = rand(256)
        for (let at = 0; at < changed.length; ) {
          let count = Math.min(1 + rand(200), changed.length - at)
          if (from === 'client') count = Math.min(count, engine.room(0))
          if (count === 0) {
            if (engine.pull(into) === 0) break
            continue
          }
          if (from === 'client') engine.fromClient(changed.subarray(at, at + count), 0)
          else engine.fromServer(changed.slice(at, at + count))
          if (rand(2) === 0) engine.pull(into)
          at += count
        }
      }
      engine.serverEnds()
      engine.close()
      return (over === undefined || isProxyError(over)) && memory.used === 0
    }),
    { numRuns: 1000 },
  )
  t.end()
})

t.test('thousands of requests that wait for each other cost no more than as many others, and go in their order', t => {
  for (const [name, next] of [
    ['all touch each other', (i: number) => request(6, i, i, 60_000)],
    ['every other one waits for all', (i: number) => (i % 2 ? request(FLUSH, i, 0, 0) : request(6, i, 4096 * i, 4096))],
  ] as const) {
    const connection = new Connection()
    const { engine } = connection
    const far: number[] = []
    /** Cookies and types of what went: heads alone. */
    const goes = (): void => {
      const bytes = Buffer.from(connection.pulled(28 * 64))
      for (let at = 0; at < bytes.length; at += 28) far.push(Number(bytes.readBigUInt64BE(at + 8)))
    }
    let count = 0
    while (engine.room(0) >= 28) {
      connection.asks(next(++count).bytes())
      engine.read(connection.answers.splice(0).reduce((sum, { length }) => sum + length, 0))
      goes()
    }
    t.ok(count > 4000, `${name}: ${count} of them`)
    const { journal } = engine as unknown as { journal: { unsettled: Set<{ waiting: unknown[] }> } }
    const waits = [...journal.unsettled].reduce((sum, { waiting }) => sum + waiting.length, 0)
    t.ok(waits <= 64 * count, `${name}: ${waits} waits`)
    for (let answered = 0; answered < count; answered++) {
      if (far.length === answered) break
      connection.says(reply(far[answered]!))
      goes()
    }
    t.same(
      far,
      Array.from({ length: count }, (_, i) => i + 1),
      'all of them went',
    )
    t.same([engine.owed, engine.isDrained, connection.broken], [0, true, undefined])
  }
  t.end()
})

t.test('ranges that overlap are found, however long', t => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 31 }), seed => {
      const rand = random(seed)
      const ranges = new WrittenRanges<{ offset: number; end: number }>()
      const model = new Set<{ offset: number; end: number }>()
      const range = () => {
        const offset = rand(1 << 24)
        return { offset, end: offset + [rand(3), rand(5000), rand(300_000), rand(1 << 24)][rand(4)]! }
      }
      for (let i = 0; i < 60; i++) {
        if (rand(3) > 0) {
          const next = range()
          ranges.add(next)
          model.add(next)
        } else if (model.size > 0) {
          const old = [...model][rand(model.size)]!
          ranges.delete(old)
          model.delete(old)
        }
        const asked = range()
        const most = rand(2) === 0 ? 64 : 1 + rand(4)
        const found = ranges.overlapping(asked, most)
        let overlapping = 0
        for (const other of model) {
          const overlaps = asked.offset < other.end && other.offset < asked.end
          if (overlaps) overlapping++
          if (most === 64 ? found.has(other) !== overlaps : found.has(other) && !overlaps) return false
        }
        if (found.size !== Math.min(most, overlapping)) return false
        for (const other of found) if (!model.has(other)) return false
      }
      return true
    }),
    { numRuns: 300 },
  )
  t.end()
})
