/** Batches that threads unpack before their turn: the same bytes, errors and places as without, bounded, and cleanly over. */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { setEnvironmentData } from 'node:worker_threads'
import t from 'tap'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { isProxyError, type ProxyError } from '../../src/errors.ts'
import { decodeStream } from '../../src/file/encoded-file-reader.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import { BATCH_RAW_BYTES_MAX, UNPACK_SLOTS } from '../../src/limits.ts'
import { AHEAD_SLOT_BYTES, UnpackAhead } from '../../src/transfer/ahead/unpack-ahead.ts'
import { type UnpackStreams, UnpackThreads } from '../../src/transfer/ahead/unpack-threads.ts'
import { EVENT_LOOP, type EventLoop } from '../../src/transfer/event-loop.ts'
import { Inbound } from '../../src/transfer/inbound.ts'
import { type OpenPool, Pools } from '../../src/transfer/pool.ts'
import { type Frame, FrameDecoder } from '../../src/wan/frames.ts'
import { clientHelloOf, HelloDecoder, seedWords } from '../../src/wan/hello.ts'
import { FLAG_MORE, FRAME } from '../../src/wan/wire.ts'
import { handBatch } from '../codec/hand-batch.ts'
import { migration, PAGE, random } from '../template/makers.ts'
import type { Fault } from './faulty-unpack-worker.ts'

t.setTimeout(590_000) // the machine may be busy

/** Pages of every nature: text, words that count, noise, and all of them again with changes. */
function guest(pages: number, seed: number): Buffer {
  const next = random(seed)
  const all: Buffer[] = []
  for (let i = 0; i < pages; i++) {
    const bytes = Buffer.alloc(PAGE)
    const nature = next(8)
    if (nature < 4) for (let at = 0; at < PAGE; at += 16) bytes.write(`line ${next(400)} of a log`.slice(0, 16), at)
    else if (nature === 4) for (let at = 0; at < PAGE; at += 4) bytes.writeUInt32LE(seed * 1000 + i * 4096 + at * 3, at)
    else if (nature === 5) for (let at = 0; at < PAGE; at += 4) bytes.writeUInt32LE(next(2 ** 32), at)
    else if (i > 0) {
      all[next(i)]!.copy(bytes)
      if (nature === 6) bytes.writeUInt32LE(next(2 ** 32), 4 * next(1000))
    }
    all.push(bytes)
  }
  return migration(all)
}

async function encoded(input: Buffer, effort: number): Promise<Buffer> {
  const out: Uint8Array[] = []
  const options = { store: undefined, sets: [], ringPages: 2048, places: 4096, effort: EFFORTS[effort]! }
  await encodeStream(cut(input, 300_000), bytes => void out.push(bytes.slice()), options)
  return Buffer.concat(out)
}

async function* cut(bytes: Buffer, length: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length)
}

/** What decoding gives: bytes, and the error as an operator has it. */
async function decoded(file: Buffer, threads: number, chunk: number): Promise<{ bytes: Buffer; error: string }> {
  const got: Buffer[] = []
  let error = ''
  // the memory of a chunk is used again, as a file's is
  const lent = Buffer.alloc(chunk)
  const chunks = async function* (): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < file.length; at += chunk) {
      yield lent.subarray(0, file.copy(lent, 0, at, at + chunk))
      lent.fill(0xee)
    }
  }
  try {
    await decodeStream(chunks(), async bytes => void got.push(Buffer.from(bytes)), {
      store: undefined,
      name: 'file',
      threads,
    })
  } catch (cause) {
    if (!isProxyError(cause)) throw cause
    error = `${cause.message} ${JSON.stringify(cause.where)}`
  }
  return { bytes: Buffer.concat(got), error }
}

t.test('the same bytes at every effort, with however many threads, wherever the file is cut', async t => {
  const input = guest(500, 1)
  for (const effort of [0, 1, 2, 3, 4]) {
    const file = await encoded(input, effort)
    for (const threads of [1, 2, 4]) {
      for (const chunk of [40_000, 1 << 20]) {
        const { bytes, error } = await decoded(file, threads, chunk)
        t.equal(error, '', `effort ${effort}, ${threads} threads`)
        t.ok(bytes.equals(input), `effort ${effort}, ${threads} threads, pieces of ${chunk}`)
      }
    }
  }
})

t.test('a damaged file gives the same bytes, and the same error at the same place', async t => {
  const input = guest(400, 2)
  const seen = new Set<string>()
  for (const effort of [1, 3]) {
    const file = await encoded(input, effort)
    for (let seed = 1; seed <= 20; seed++) {
      const next = random(seed)
      const bad = Buffer.from(file)
      // behind the hello, of which no thread knows
      const at = 1000 + next(bad.length - 1000)
      bad[at] = bad[at]! ^ (1 << next(8))
      const wanted = await decoded(bad, 1, 200_000)
      const got = await decoded(bad, 2 + next(3), 200_000)
      t.equal(got.error, wanted.error, `effort ${effort}, byte ${at}`)
      t.ok(got.bytes.equals(wanted.bytes), `effort ${effort}, byte ${at}: the same bytes before it`)
      seen.add(wanted.error.split(' ')[0]!)
    }
  }
  t.ok(seen.has('BATCH_FORMAT:') && seen.has('BATCH_CHECKSUM:'), [...seen].join())
})

// ---- sessions

interface Encoded {
  readonly batches: readonly Buffer[]
  readonly seed: readonly [number, number]
}

/** The batches of a file. */
function batchesOf(file: Buffer): Encoded {
  const { body, rest } = new HelloDecoder().push(file)!
  const batches: Buffer[] = []
  let parts: Uint8Array[] = []
  const frames = new FrameDecoder(({ type, flags, payload }: Frame) => {
    if (type !== FRAME.BATCH) return
    parts.push(payload)
    if ((flags & FLAG_MORE) !== 0) return
    batches.push(Buffer.concat(parts))
    parts = []
  })
  frames.push(rest)
  return { batches, seed: seedWords(Buffer.from(clientHelloOf(body).seed, 'hex')) }
}

const SHAPE = {
  role: 'decoder',
  ...{ workspaces: 1, slots: 4, slotBytes: BATCH_RAW_BYTES_MAX, longMatch: false },
  ...{ sets: [], store: undefined, ringPages: 2048, places: 4096, ahead: UNPACK_SLOTS },
} as const

class Side {
  readonly errors: ProxyError[] = []
  readonly got: Buffer[] = []
  readonly inbound: Inbound
  readonly pool: OpenPool
  private readonly channel

  constructor(pool: OpenPool, seed: readonly [number, number], holder = '') {
    this.pool = pool
    this.inbound = new Inbound(pool, seed, error => this.errors.push(error), holder)
    const regions = PoolRegions.of(pool.kernel.layout)
    const expanded = (bytes: Uint8Array, release: () => void): void => {
      this.got.push(Buffer.from(bytes))
      release()
    }
    this.channel = { expander: new FlowExpander(1, regions), expanded }
  }

  static async open(pools: Pools, seed: readonly [number, number], holder = ''): Promise<Side> {
    return new Side(await pools.open(SHAPE), seed, holder)
  }

  push(batch: Buffer): void {
    this.inbound.push(this.channel, [batch])
  }

  async close(): Promise<void> {
    this.inbound.close()
    await this.pool.close()
  }
}

/** What a thread with a fault runs: those that are started from now on. */
function faulty(fault: Fault['fault'], after: number, gate = new Int32Array(new SharedArrayBuffer(4))): URL {
  setEnvironmentData('fault', { fault, after, gate } as never)
  return new URL('./faulty-unpack-worker.ts', import.meta.url)
}

/** Turns that pass as fast as they can be had: what waits for time waits for turns. */
const HASTY: EventLoop = {
  ...EVENT_LOOP,
  after: (_ms, then) => {
    let left = 20
    let isTaken = false
    const turn = (): void => {
      if (isTaken) return
      if (left-- > 0) setImmediate(turn)
      else then()
    }
    turn()
    return () => {
      isTaken = true
    }
  },
}

for (const [fault, told] of [
  ['exit', /has ended/],
  ['throw', /has failed: planted/],
  ['hang', /does not answer/],
] as const) {
  t.test(`a thread with the fault "${fault}" ends its session, and nothing more`, async t => {
    const input = guest(1300, 3)
    const { batches, seed } = batchesOf(await encoded(input, 3))
    const threads = new UnpackThreads(1, fault === 'hang' ? HASTY : EVENT_LOOP, undefined, faulty(fault, 3))
    const pools = new Pools({ unpackThreads: threads })
    const side = await Side.open(pools, seed)
    for (const batch of batches) side.push(batch)
    while (side.errors.length === 0) await nextTurn()
    await side.inbound.idle()
    t.equal(side.errors.length, 1)
    t.match(side.errors[0], { code: 'INTERNAL', what: told })
    const got = Buffer.concat(side.got)
    t.ok(got.equals(input.subarray(0, got.length)), 'what came is right')
    t.ok(got.length < input.length, `${got.length} bytes`)
    await side.close()

    // whoever comes next has another thread, which makes that mistake only later
    const next = await Side.open(pools, seed)
    for (const batch of batches.slice(0, 2)) next.push(batch)
    await next.inbound.idle()
    if (fault !== 'hang') {
      t.same(next.errors, [])
      const more = Buffer.concat(next.got)
      t.ok(more.length > 0 && more.equals(input.subarray(0, more.length)))
    }
    await next.close()
    await threads.end()
  })
}

t.test('a damaged batch ends its session in its turn, not those of others on the same thread', async t => {
  const input = guest(1200, 4)
  const { batches, seed } = batchesOf(await encoded(input, 3))
  const threads = new UnpackThreads(1, EVENT_LOOP)
  const pools = new Pools({ unpackThreads: threads })
  // whole, damaged in a column, no batch at all
  const sides = await Promise.all(['a', 'b', 'c'].map(holder => Side.open(pools, seed, holder)))
  const [whole, bent, none] = sides as [Side, Side, Side]
  for (const [i, batch] of batches.entries()) {
    whole.push(batch)
    const bad = Buffer.from(batch)
    if (i === 2) bad[bad.length - 1] = bad[bad.length - 1]! ^ 0xff
    bent.push(bad)
    if (i === 2) bad[0] = 9
    none.push(bad)
  }
  for (const side of sides) await side.inbound.idle()
  t.same(whole.errors, [])
  t.ok(Buffer.concat(whole.got).equals(input))
  t.match(bent.errors, [{ code: /^BATCH_/ }])
  t.match(none.errors, [
    { code: 'BATCH_FORMAT', what: 'unknown batch format 9', where: { stream: 'batch', offset: 0 } },
  ])
  for (const { errors, got } of [bent, none]) {
    t.equal(errors.length, 1)
    t.ok(Buffer.concat(got).equals(Buffer.concat(whole.got.slice(0, 2))), 'the two before it, and nothing more')
  }
  for (const side of sides) await side.close()
  await threads.end()
})

t.test('memory is given back once no thread writes to it any more', async t => {
  const { batches, seed } = batchesOf(await encoded(guest(1200, 5), 3))
  const gate = new Int32Array(new SharedArrayBuffer(4))
  const threads = new UnpackThreads(1, EVENT_LOOP, undefined, faulty('late', 0, gate))
  const pools = new Pools({ unpackThreads: threads })
  const side = await Side.open(pools, seed)
  side.push(batches[0]!)
  const [slot] = side.pool.unpacking!.slots.slice(-1)
  const memory = side.pool.kernel.bytes
  let isClosed = false
  const closed = side.close().then(() => {
    isClosed = true
  })
  let isOpened = false
  const next = pools.open(SHAPE).then(pool => {
    isOpened = true
    return pool
  })
  for (let turn = 0; turn < 1000; turn++) await nextTurn()
  t.same([isClosed, isOpened], [false, false], 'a thread is still at it')
  Atomics.store(gate, 0, 1)
  Atomics.notify(gate, 0)
  await closed
  await (await next).close()
  t.ok(
    memory.subarray(slot!, slot! + AHEAD_SLOT_BYTES).every(byte => byte === 0),
    'and it is clean',
  )
  await threads.end()
})

// ---- bounds

/** Streams that never get anything done, and count what they are given. */
class Idle {
  given: Uint32Array[] = []
  private readonly ahead = new Map<string, number>()
  private readonly most: number

  constructor(most = Number.POSITIVE_INFINITY) {
    this.most = most
  }

  unpack(_rawLength: number, columns: Uint32Array): number {
    return this.given.push(columns)
  }

  takeAhead(holder: string): boolean {
    const count = this.ahead.get(holder) ?? 0
    if (count >= this.most) return false
    this.ahead.set(holder, count + 1)
    return true
  }

  giveAhead(holder: string): void {
    this.ahead.set(holder, this.ahead.get(holder)! - 1)
  }
}

/** A batch whose columns have so many raw bytes, of no use otherwise. */
function batchOf(rawLength: number, columns: readonly number[]): Buffer {
  const packed = Buffer.alloc(40)
  const all = columns.map((length, column) => ({ column, method: column === 0 ? 1 : 3, rawLength: length, packed }))
  return handBatch(rawLength, 0n, all)
}

t.test('no more is unpacked ahead than there are slots, and nothing beside them', t => {
  const streams = new Idle()
  const bytes = new Uint8Array(3 * AHEAD_SLOT_BYTES)
  const slots = [0, AHEAD_SLOT_BYTES]
  const ahead = new UnpackAhead(streams as unknown as UnpackStreams, bytes, slots, '')
  const most = batchOf(1 << 20, [1 << 19, 1 << 20])
  for (let i = 0; i < 20; i++) {
    const offered = ahead.offer([most])
    t.equal(offered !== undefined, i < 2, `batch ${i}`)
  }
  t.equal(streams.given.length, 2)
  for (const table of streams.given) {
    for (let at = 0; at < table.length; at += 6) {
      const [, , packedAt, packedLength, to, length] = table.subarray(at, at + 6) as unknown as number[]
      const slot = Math.floor(to! / AHEAD_SLOT_BYTES) * AHEAD_SLOT_BYTES
      t.ok(packedAt! >= slot && packedAt! + packedLength! <= to!, 'packed bytes in front')
      t.ok(to! + length! <= slot + AHEAD_SLOT_BYTES, 'columns within the slot')
    }
  }
  t.ok(
    bytes.subarray(2 * AHEAD_SLOT_BYTES).every(byte => byte === 0),
    'and no byte behind them',
  )
  t.end()
})

t.test('a batch whose columns are larger than a slot waits for its turn, and all behind it', t => {
  const streams = new Idle()
  const ahead = new UnpackAhead(streams as unknown as UnpackStreams, new Uint8Array(AHEAD_SLOT_BYTES), [0], '')
  const large = [batchOf(1 << 20, [1 << 20, 1 << 20])]
  t.equal(ahead.offer(large), undefined)
  t.equal(ahead.offer(large), undefined)
  t.equal(streams.given.length, 0)
  t.end()
})

t.test("a holder's sessions share what may be before others' turn", t => {
  const streams = new Idle(3)
  const sides = ['a', 'a', 'b'].map(
    holder =>
      new UnpackAhead(
        streams as unknown as UnpackStreams,
        new Uint8Array(4 * AHEAD_SLOT_BYTES),
        [0, 1, 2, 3].map(slot => slot * AHEAD_SLOT_BYTES),
        holder,
      ),
  )
  const batch = batchOf(1000, [100, 100])
  const offered = sides.map(side => [0, 1].map(() => side.offer([batch]) !== undefined))
  t.same(offered, [
    [true, true],
    [true, false],
    [true, true],
  ])
  sides[0]!.close()
  t.ok(sides[1]!.offer([batch]), 'what one gives back the other may have')
  t.end()
})

t.test('whoever waits for the end of a thread is told, whatever it says meanwhile', async t => {
  const { batches, seed } = batchesOf(await encoded(guest(300, 6), 3))
  for (let i = 0; i < 10; i++) {
    const threads = new UnpackThreads(1, EVENT_LOOP)
    const side = await Side.open(new Pools({ unpackThreads: threads }), seed)
    for (const batch of batches) side.push(batch)
    // all that it has been given is still under way: answers come while it ends
    await threads.end()
    await side.close()
  }
  t.pass('the process did not end before')
})
