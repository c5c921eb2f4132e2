/**
 * Threads that help to encode and to decode: what they make is what one thread makes, to the byte that comes out at the far side;
 * and a helper that dies, hangs or is slow costs the sessions whose streams it has at most, told by a typed error.
 */
import { once } from 'node:events'
import { existsSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs'
import type { Worker } from 'node:worker_threads'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { EFFORTS } from '../../src/compression/effort.ts'
import { isProxyError } from '../../src/errors.ts'
import { decodeStream } from '../../src/file/encoded-file-reader.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import { kernelModule } from '../../src/kernel/kernel.ts'
import { EVENT_LOOP, nextTurn } from '../../src/transfer/event-loop.ts'
import type { StartHelper } from '../../src/transfer/helpers/helper.ts'
import { startEarly, startHelper } from '../../src/transfer/helpers/helper-thread.ts'
import { type Claim, PAGES_A_CLAIM, PartsBoard } from '../../src/transfer/helpers/parts-board.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { madeUp } from '../codec/harness.ts'
import { decodeFile } from '../codec/second-decoder.ts'
import { HandTimers } from '../helpers/hand-timers.ts'
import { until } from '../helpers/until.ts'
import { batchesOf, DecodingEnd, Pair } from './ends.ts'
import { FaultyHelpers } from './faulty-helpers.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20
const skip = kernelModule() === undefined && 'the kernel is not built, and the twin has no helpers'

async function* pieces(bytes: Uint8Array, length = 300_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length)
}

async function encoded(bytes: Uint8Array, level: number, threads: number, ringPages: number) {
  const out: Buffer[] = []
  // in advance: helpers are there from the first batch on
  const options = { ...{ store: undefined, sets: [], ringPages, places: 4096, threads }, ringInAdvance: true }
  const { stats } = await encodeStream(pieces(bytes), part => void out.push(Buffer.from(part)), {
    ...options,
    effort: EFFORTS[level]!,
  })
  return { file: Buffer.concat(out), stats }
}

async function decoded(file: Buffer, threads = 1): Promise<Buffer> {
  const out: Buffer[] = []
  const write = async (part: Uint8Array): Promise<void> => void out.push(Buffer.from(part))
  await decodeStream(pieces(file), write, { store: undefined, name: 'a file', threads })
  return Buffer.concat(out)
}

interface Recorded {
  readonly name: string
  readonly bytes: Uint8Array
  /** Of many batches. */
  readonly isLarge: boolean
}

function recorded(): Recorded[] {
  const all: Recorded[] = [{ name: 'a made-up guest', bytes: madeUp(7, 3000), isLarge: true }]
  const folder = new URL('../../pcap-fixtures/streams/', import.meta.url)
  for (const name of readdirSync(folder).filter(file => /\.(main|\d-multifd)\.zst$/.test(file)))
    all.push({ name, bytes: zstdDecompressSync(readFileSync(new URL(name, folder))), isLarge: false })
  // of a real guest, where the lab has captured one
  const lab = new URL('../../.cache/lab/streams/nginx-k2.stream', import.meta.url)
  if (existsSync(lab)) {
    const bytes = new Uint8Array(16 << 20)
    all.push({ name: 'nginx-k2', bytes: bytes.subarray(0, readSync(openSync(lab, 'r'), bytes)), isLarge: true })
  }
  return all
}

t.test('the same comes out whatever the threads, in at most 1 % more bytes', { skip }, async t => {
  for (const { name, bytes, isLarge } of recorded()) {
    for (const level of isLarge ? [2, 3] : [3]) {
      const alone = await encoded(bytes, level, 1, 4096)
      for (const threads of [2, 4]) {
        const { file, stats } = await encoded(bytes, level, threads, 4096)
        const what = `${name}, effort ${level}, ${threads} threads`
        t.ok((await decoded(file, threads)).equals(bytes), what)
        if (isLarge && threads === 2) t.ok(decodeFile(file).equals(bytes), `${what}: the second decoder`)
        // of streams of one batch or two a page more or less counts, whose like another thread has at hand
        const most = alone.file.length * 1.01 + 2 * 4096
        t.ok(file.length <= most, `${what}: ${file.length} and ${alone.file.length} bytes`)
        t.equal(stats.rawBytes, bytes.length)
      }
    }
  }
})

t.test('rings shorter than a batch, and none, and one that wraps', { skip }, async t => {
  const bytes = madeUp(11, 2000)
  // of the last one a quarter is more than one batch has: with it a batch is begun before the one before is settled, and it wraps
  for (const ringPages of [0, 1, 50, 300, 1100]) {
    const { file } = await encoded(bytes, 2, 3, ringPages)
    t.ok((await decoded(file)).equals(bytes), `${ringPages} pages`)
  }
})

t.test('a helper that was started early is the next one that is wanted', { skip }, async t => {
  startEarly()
  startEarly()
  const bytes = madeUp(14, 600)
  for (const time of ['with it', 'and without'])
    t.ok((await decoded((await encoded(bytes, 2, 2, 512)).file)).equals(bytes), time)
})

t.test('other efforts have nothing to do for helpers, or for libuv', { skip }, async t => {
  const bytes = madeUp(12, 1000)
  for (const level of [0, 1, 4])
    t.ok((await decoded((await encoded(bytes, level, 2, 512)).file)).equals(bytes), `${level}`)
})

t.test('the board: what is claimed once is not claimed twice, and what is late counts for nothing', async t => {
  const board = new PartsBoard()
  const helper = new PartsBoard(board.buffer)
  const other = new PartsBoard(board.buffer)
  const seen: Claim[] = []
  const take = (from: PartsBoard, can = true): Claim | undefined =>
    from.claim(claim => {
      seen.push(claim)
      return can
    })
  t.equal(take(helper), undefined, 'nothing is up')
  const posted = {
    session: 5,
    parts: 2 ** 31 + 64,
    pages: 3 * PAGES_A_CLAIM - 1,
    total: 2 ** 32 - 1,
    cursor: 9,
    options: 2,
  }
  board.post(posted)
  t.equal(take(helper, false), undefined, 'it cannot')
  const first = take(helper)!
  t.match(first, { ...posted, number: 0, first: 0, count: PAGES_A_CLAIM })
  t.equal(board.next(), 1)
  const last = take(other)!
  t.match(last, { number: 2, count: PAGES_A_CLAIM - 1 })
  t.same([board.next(), take(helper)], [-1, undefined], 'all are claimed')
  other.done(last, 1)
  t.equal(board.doneBy(2), 1)
  t.equal(board.doneBy(0), -1, 'not done in time')
  // the main thread has done it, and goes on
  board.post({ ...posted, pages: PAGES_A_CLAIM })
  helper.done(first, 0)
  t.equal(board.doneBy(0), -1, 'what was late counts for nothing')
  // while a helper prepares, all is done without it, and another batch is up
  let renewed = false
  const again = helper.claim(() => {
    if (!renewed) {
      renewed = true
      t.equal(board.next(), 0)
      board.post({ ...posted, session: 6 })
    }
    return true
  })
  t.match(again, { session: 6, number: 0 }, 'what it prepared first is not what it claims')
})

// ---- sessions

/** A pair of which one end has helpers with a fault. */
class FaultyPair extends FaultyHelpers {
  readonly timers = new HandTimers()
  private readonly pools: { readonly near: Pools; readonly far: Pools }

  constructor(helped: 'near' | 'far', fault: ConstructorParameters<typeof FaultyHelpers>[0]) {
    super(fault)
    const faulty = new Pools({ threads: 2, unusedMs: 0, loop: this.timers, startHelper: this.start })
    const alone = new Pools({ unusedMs: 0 })
    this.pools = { near: helped === 'near' ? faulty : alone, far: helped === 'far' ? faulty : alone }
  }

  open(): Promise<Pair> {
    return Pair.open(this.pools)
  }
}

const GUEST = madeUp(13, 1500)

for (const [helped, at] of [
  ['near', 'pack'],
  ['far', 'unpack'],
] as const) {
  for (const [what, told] of [
    ['exit', /a helping thread has ended/],
    ['throw', /a helping thread failed: planted/],
    ['hang', /a helping thread does not answer/],
  ] as const) {
    t.test(`a helper with the fault "${what}" at "${at}" ends its session, and nothing more`, { skip }, async t => {
      const side = new FaultyPair(helped, { at, what, after: 2 })
      const pair = await side.open()
      const running = pair.run(GUEST, 2)
      if (what === 'hang') {
        await side.failing()
        for (let look = 0; look < 2; look++) await side.timers.pass()
        t.same(pair.errors, [], 'a host that stood still is no reason')
        await side.timers.pass()
        side.timers.passNow() // at the first look something had been done, perhaps
      }
      const got = await running
      t.equal(pair.errors.length, 1)
      t.ok(isProxyError(pair.errors[0], 'INTERNAL'))
      t.match((pair.errors[0] as Error).message, told)
      t.ok(got.length < GUEST.length && got.equals(GUEST.subarray(0, got.length)), 'what came is right')
      await pair.close()

      // whoever comes next has another helper, which makes that mistake only later
      const next = await side.open()
      const little = GUEST.subarray(0, 200_000)
      t.ok((await next.run(little, 2)).equals(little))
      t.same(next.errors, [])
      await next.close()
      t.same([side.live, side.most], [0, 1], 'never more than it may have, and none is left')
    })
  }
}

t.test('who dies while a session ends is not waited for', { skip }, async t => {
  for (const helped of ['near', 'far'] as const) {
    const pair = await new FaultyPair(helped, { at: 'close', what: 'exit' }).open()
    t.ok((await pair.run(GUEST, 2)).equals(GUEST))
    await pair.close()
    t.same(pair.errors, [])
  }
})

t.test('a helper that does not start helps nobody', { skip }, async t => {
  const pair = await new FaultyPair('near', { at: 'start', what: 'exit' }).open()
  t.ok((await pair.run(GUEST, 2)).equals(GUEST))
  t.same(pair.errors, [])
  await pair.close()
})

t.test('a helper that hangs before it has begun is waited for no longer than others', { skip }, async t => {
  const side = new FaultyHelpers({ at: 'start', what: 'hang' })
  const timers = new HandTimers()
  const pools = new Pools({ threads: 2, unusedMs: 0, loop: timers, startHelper: side.start })
  const shape = { role: 'encoder', workspaces: 2, slots: 1, slotBytes: MIB, longMatch: true, threads: 2 } as const
  const terms = { store: undefined, sets: [], ringPages: 64, places: 64 }
  const pool = await pools.open({ ...shape, ...terms, ringInAdvance: 'always' })
  let isReady = false
  const ready = pool.ready.then(() => {
    isReady = true
  })
  await side.failing()
  for (let look = 0; look < 2; look++) await timers.pass()
  await nextTurn(EVENT_LOOP)
  t.equal(isReady, false, 'a host that stood still is no reason')
  timers.passNow()
  await ready
  await pool.close()
  t.equal(side.live, 0, 'none is left')
})

t.test('a helper that never does what it claims costs nothing but time', { skip }, async t => {
  const side = new FaultyPair('near', { at: 'start', what: 'idle' })
  const pair = await side.open()
  t.ok((await pair.run(GUEST, 4)).equals(GUEST), 'all of it comes out')
  t.same(pair.errors, [])
  t.ok(side.faults > 0, `${side.faults} claims that were left`)
  await pair.close()
})

t.test('a helper that ends takes those sessions with it whose streams it has, and no others', { skip }, async t => {
  const workers: Worker[] = []
  const start: StartHelper = data => {
    workers.push(startHelper(data))
    return workers.at(-1)!
  }
  const batches = await batchesOf(new Pools({ unusedMs: 0 }), GUEST, 3)
  const pools = new Pools({ threads: 3, startHelper: start })
  const [first, second] = [await DecodingEnd.open(pools, 'a'), await DecodingEnd.open(pools, 'b')]
  for (const end of [first, second]) {
    end.push(batches[0]!)
    await end.inbound.idle()
  }
  await workers[0]!.terminate()
  const third = await DecodingEnd.open(pools, 'c') // there is another one in that place
  t.equal(workers.length, 3)
  for (const end of [first, second]) for (const batch of batches.slice(1)) end.push(batch)
  for (const batch of batches) third.push(batch)
  for (const end of [first, second, third]) await end.inbound.idle()
  t.match(first.errors, [{ code: 'INTERNAL' }])
  t.ok(first.got.length > 0 && first.got.equals(GUEST.subarray(0, first.got.length)))
  for (const end of [second, third]) {
    t.same(end.errors, [])
    t.ok(end.got.equals(GUEST))
  }
  for (const end of [first, second, third]) await end.close()
})

t.test('helpers end by themselves when nobody has them', { skip }, async t => {
  const workers: Worker[] = []
  const ends: Promise<unknown>[] = []
  const start: StartHelper = data => {
    const worker = startHelper(data)
    const { terminate } = worker
    t.teardown(() => terminate.call(worker))
    // one that was unreferenced is referenced by that order, too
    worker.terminate = async () => {
      worker.ref()
      return 0
    }
    workers.push(worker)
    ends.push(once(worker, 'exit'))
    return worker
  }
  const pools = new Pools({ threads: 3, unusedMs: 0, startHelper: start })
  const session = await DecodingEnd.open(pools, 'a')
  await session.close()
  t.equal(workers.length, 2)
  t.same(await Promise.all(ends), [[0], [0]], 'with no order to terminate')
})

t.test('a system that has no more threads costs help, and no session', { skip }, async t => {
  for (const most of [0, 1]) {
    const live = new Set<Worker>()
    const start: StartHelper = data => {
      if (live.size === most) throw new Error('ERR_WORKER_INIT_FAILED: EAGAIN')
      const worker = startHelper(data)
      live.add(worker)
      return worker.once('exit', () => live.delete(worker))
    }
    const pools = new Pools({ threads: 4, unusedMs: 0, startHelper: start })
    const pair = await Pair.open({ near: pools, far: pools })
    t.equal(live.size, most)
    t.ok((await pair.run(GUEST, 2)).equals(GUEST), `${most} of 3`)
    t.same(pair.errors, [])
    await pair.close()
    t.equal(live.size, 0)
  }
})

t.test('whoever comes while helpers end has others once these are gone', { skip }, async t => {
  const timers = new HandTimers()
  const gates: (() => void)[] = []
  let started = 0
  const start: StartHelper = data => {
    started++
    const worker = startHelper(data)
    // it ends by itself as soon as it is told to: that it did is told late
    const on = worker.on.bind(worker) as (event: string, listener: (...values: unknown[]) => void) => Worker
    let isTold = false // by its first listener: others are Node's own
    const late = (event: string, listener: (...values: unknown[]) => void): Worker => {
      if (event !== 'exit' || isTold) return on(event, listener)
      isTold = true
      return on(event, (...values) => gates.push(() => listener(...values)))
    }
    return Object.assign(worker, { on: late })
  }
  const pools = new Pools({ threads: 2, unusedMs: 1, loop: timers, startHelper: start })
  await (await DecodingEnd.open(pools)).close()
  timers.passNow()
  await until('a minute without sessions', () => gates.length === 1)
  const opening = DecodingEnd.open(pools)
  for (let turn = 0; turn < 100; turn++) await nextTurn(EVENT_LOOP)
  t.equal(started, 1, 'never more than it may have')
  gates[0]!()
  let end: DecodingEnd | undefined
  void opening.then(opened => {
    end = opened
  })
  await until('a helper of its own', () => end !== undefined) // one that starts keeps no process
  t.equal(started, 2)
  t.ok(end!.pool.decoding, 'and it is helped')
  await end!.close()
  timers.passNow()
  await until('a minute without sessions', () => gates.length === 2)
  gates[1]!()
})

t.test('helpers of a session that could not be opened end as others do', { skip }, async t => {
  const timers = new HandTimers()
  const side = new FaultyHelpers({ at: 'close', what: 'late' })
  const pools = new Pools({ threads: 3, unusedMs: 1, loop: timers, startHelper: side.start })
  await t.rejects(DecodingEnd.open(pools, '', { ringPages: 2 ** 20 }), { code: 'LIMIT_EXCEEDED' })
  t.equal(side.live, 2)
  timers.passNow()
  await until('their end', () => side.live === 0)
})

t.test('several sessions of one memory, which grows as they come, and of the same helpers', { skip }, async t => {
  const pools = new Pools({ threads: 3, unusedMs: 0 })
  const seeds = [21, 22, 23]
  const pairs: Pair[] = []
  for (const _ of seeds) pairs.push(await Pair.open({ near: pools, far: pools }))
  t.equal(pools.stats.length, 1, 'one memory')
  const guests = seeds.map(seed => madeUp(seed, 1000))
  const got = await Promise.all(pairs.map((pair, i) => pair.run(guests[i]!, 2)))
  for (const [i, pair] of pairs.entries()) {
    t.same(pair.errors, [])
    t.ok(got[i]!.equals(guests[i]!), `${guests[i]!.length} bytes`)
    await pair.close()
  }
})

/** Resident memory of the process, in bytes. */
function resident(): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024
}

t.test('memory that sessions have left is given back, while its helpers have another', { skip }, async t => {
  const pools = new Pools({ threads: 2, unusedMs: 100 })
  // two of these do not fit into one memory
  const large = { ringPages: 600_000, ringInAdvance: 'never' } as const
  const other = await DecodingEnd.open(pools, '', large)
  // of those who know the memory only helpers are left: it is in a function of its own
  const use = async (): Promise<number> => {
    const pair = await Pair.open({ near: pools, far: pools }, large)
    t.equal(pools.stats.length, 3)
    t.ok((await pair.run(GUEST, 2)).equals(GUEST))
    for (const { kernel } of [pair.near.pool, pair.far.pool])
      kernel.bytes.fill(1, kernel.layout.ring, kernel.layout.ring + 64 * MIB)
    const used = resident()
    await pair.close()
    return used
  }
  const used = await use()
  await until('memory that is given back', () => used - resident() > 100 * MIB)
  t.equal(pools.stats.length, 1)
  await other.close()
})
