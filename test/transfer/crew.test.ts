/**
 * Threads that help to encode: what they make is what one thread makes, to the byte that comes out at the far side; and a
 * helper that dies, hangs or is slow costs its session at most, told by a typed error.
 */
import { existsSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { isProxyError } from '../../src/errors.ts'
import { decodeStream } from '../../src/file/encoded-file-reader.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import { kernelModule } from '../../src/kernel/kernel.ts'
import { Board, type Claim, PAGES_A_CLAIM } from '../../src/transfer/crew/board.ts'
import { HelperThread } from '../../src/transfer/crew/helper-thread.ts'
import { EVENT_LOOP, type EventLoop } from '../../src/transfer/event-loop.ts'
import { Inbound } from '../../src/transfer/inbound.ts'
import { Outbound } from '../../src/transfer/outbound.ts'
import { openPool, Pools } from '../../src/transfer/pool.ts'
import { Channel, madeUp, SEED_WORDS } from '../codec/harness.ts'
import { decodeFile } from '../codec/second-decoder.ts'

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

async function decoded(file: Buffer): Promise<Buffer> {
  const out: Buffer[] = []
  const write = async (part: Uint8Array): Promise<void> => void out.push(Buffer.from(part))
  await decodeStream(pieces(file), write, { store: undefined, name: 'a file' })
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
        t.ok((await decoded(file)).equals(bytes), what)
        if (isLarge && threads === 2) t.ok(decodeFile(file).equals(bytes), `${what}: the second decoder`)
        // of streams of one batch or two a page more or less counts, whose like another thread has at hand
        const most = alone.file.length * 1.01 + 2 * 4096
        t.ok(file.length <= most, `${what}: ${file.length} and ${alone.file.length} bytes`)
        t.equal(stats.rawBytes, bytes.length)
      }
    }
  }
})

t.test('rings shorter than a batch, and none', { skip }, async t => {
  const bytes = madeUp(11, 2000)
  for (const ringPages of [0, 1, 50, 300]) {
    const { file } = await encoded(bytes, 2, 3, ringPages)
    t.ok((await decoded(file)).equals(bytes), `${ringPages} pages`)
  }
})

t.test('other efforts have nothing to do for helpers, or for libuv', { skip }, async t => {
  const bytes = madeUp(12, 1000)
  for (const level of [0, 1, 4])
    t.ok((await decoded((await encoded(bytes, level, 2, 512)).file)).equals(bytes), `${level}`)
})

t.test('the board: what is claimed once is not claimed twice, and what is late counts for nothing', async t => {
  const board = new Board()
  const helper = new Board(board.buffer)
  const other = new Board(board.buffer)
  const seen: Claim[] = []
  const take = (from: Board, can = true): Claim | undefined =>
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

/** Time that passes when a test says so. */
class Timers implements EventLoop {
  private readonly waiting = new Set<() => void>()
  private onWaiting = (): void => {}

  nowMs(): number {
    return EVENT_LOOP.nowMs()
  }

  soon(then: () => void): void {
    EVENT_LOOP.soon(then)
  }

  after(_ms: number, then: () => void): () => void {
    this.waiting.add(then)
    this.onWaiting()
    return () => this.waiting.delete(then)
  }

  /** So long that all that is waited for is due, once there is something. */
  async pass(): Promise<void> {
    if (this.waiting.size === 0)
      await new Promise<void>(done => {
        this.onWaiting = done
      })
    const due = [...this.waiting]
    this.waiting.clear()
    for (const then of due) then()
  }
}

/** What a helper has at hand that is not ours. */
const HELPER = `
  const { parentPort: port, receiveMessageOnPort, workerData } = require('node:worker_threads')
  const say = kind => port.postMessage({ kind })
`

/** A session whose one helper runs this, over a made-up guest; what comes out is decoded. */
async function session(source: string, level: number, more: object = {}) {
  const timers = new Timers()
  const workers: Worker[] = []
  const pools = new Pools({
    ...{ threads: 2, unusedMs: 0, loop: timers },
    startHelper: workerData => {
      const worker = new Worker(HELPER + source, { eval: true, workerData: { ...workerData, ...more } })
      workers.push(worker)
      return worker
    },
  })
  const terms = { sets: [], store: undefined, ringPages: 1024, places: 1024, slotBytes: 1 << 20 }
  const pool = await pools.open({
    ...{ ...terms, role: 'encoder', longMatch: true, threads: 2, workspaces: 3, slots: 5, ringInAdvance: 'always' },
  })
  const far = await openPool({ ...terms, role: 'decoder', longMatch: false, workspaces: 1, slots: 3 })
  await pool.ready
  const errors: unknown[] = []
  const got: Buffer[] = []
  const flow = {
    expander: new FlowExpander(1, new PoolRegions([0, terms.ringPages])),
    expanded(view: Uint8Array, release: () => void) {
      got.push(Buffer.from(view))
      release()
    },
  }
  const inbound = new Inbound(far, SEED_WORDS, error => errors.push(error))
  const fail = (error: unknown): void => void errors.push(error)
  const outbound = new Outbound(pool, SEED_WORDS, (_, parts) => inbound.push(flow, [Buffer.concat(parts)]), fail)
  const channel = new Channel(pool, 0, 'main', 1, {})
  const bytes = madeUp(13, 1500)
  /** Encodes all of the guest, or until it fails. */
  const run = async (): Promise<void> => {
    for (let at = 0; at < bytes.length && errors.length === 0; at += 400_000) {
      channel.push(bytes.subarray(at, at + 400_000))
      await outbound.room()
      if (outbound.hasRoom) outbound.encode(channel, EFFORTS[level]!, at + 400_000 >= bytes.length)
    }
    await outbound.idle()
    await inbound.idle()
  }
  const end = async (): Promise<void> => {
    await outbound.close()
    inbound.close()
    await Promise.all([pool.close(), far.close()])
  }
  return { run, end, errors, timers, workers, got: () => Buffer.concat(got), bytes }
}

t.test('several sessions of one memory, which grows as they come', { skip }, async t => {
  const pools = new Pools({ threads: 3, unusedMs: 0 })
  const terms = { sets: [], store: undefined, ringPages: 1024, places: 1024, slotBytes: 1 << 20 }
  const shape = { longMatch: true, threads: 3, workspaces: 3, slots: 5, ringInAdvance: 'always' } as const
  const sides = []
  for (const seed of [21, 22, 23]) {
    const pool = await pools.open({ ...terms, ...shape, role: 'encoder' })
    const far = await openPool({ ...terms, role: 'decoder', longMatch: false, workspaces: 1, slots: 3 })
    await pool.ready
    const errors: unknown[] = []
    const got: Buffer[] = []
    const flow = {
      expander: new FlowExpander(1, new PoolRegions([0, terms.ringPages])),
      expanded(view: Uint8Array, release: () => void) {
        got.push(Buffer.from(view))
        release()
      },
    }
    const fail = (error: unknown): void => void errors.push(error)
    const inbound = new Inbound(far, SEED_WORDS, fail)
    const outbound = new Outbound(pool, SEED_WORDS, (_, parts) => inbound.push(flow, [Buffer.concat(parts)]), fail)
    const bytes = madeUp(seed, 1000)
    sides.push({ pool, far, errors, got, inbound, outbound, bytes, channel: new Channel(pool, 0, 'main', 1, {}) })
  }
  t.equal(pools.stats.length, 1, 'one memory')
  // batch by batch in turn
  for (let at = 0; at < Math.max(...sides.map(({ bytes }) => bytes.length)); at += 400_000) {
    for (const { outbound, channel, bytes } of sides) {
      channel.push(bytes.subarray(at, at + 400_000))
      await outbound.room()
      outbound.encode(channel, EFFORTS[2]!, at + 400_000 >= bytes.length)
    }
  }
  for (const { outbound, inbound, errors, got, bytes, pool, far } of sides) {
    await outbound.idle()
    await inbound.idle()
    t.same(errors, [])
    t.ok(Buffer.concat(got).equals(bytes), `${bytes.length} bytes`)
    await outbound.close()
    inbound.close()
    await Promise.all([pool.close(), far.close()])
  }
})

/** Resident memory of the process, in bytes. */
function resident(): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024
}

t.test('memory that sessions have left is given back, while its helpers have another', { skip }, async t => {
  const pools = new Pools({ threads: 2, unusedMs: 200 })
  // two of these do not fit into one memory
  const terms = { sets: [], store: undefined, ringPages: 600_000, places: 1024, slotBytes: 1 << 20 }
  const request = { ...terms, role: 'encoder', longMatch: true, threads: 2, workspaces: 3, slots: 5 } as const
  const other = await pools.open(request)
  // in a function of its own: nothing here knows the memory behind it
  const use = async (): Promise<number> => {
    const pool = await pools.open(request)
    t.equal(pools.stats.length, 2, 'two memories')
    await pool.crew!.started
    const errors: unknown[] = []
    const outbound = new Outbound<Channel>(
      pool,
      SEED_WORDS,
      () => {},
      error => errors.push(error),
    )
    const channel = new Channel(pool, 0, 'main', 1, {})
    const bytes = madeUp(31, 1000)
    for (let at = 0; at < bytes.length; at += 400_000) {
      channel.push(bytes.subarray(at, at + 400_000))
      await outbound.room()
      outbound.encode(channel, EFFORTS[2]!, at + 400_000 >= bytes.length)
    }
    await outbound.idle()
    t.same(errors, [])
    const { ring } = pool.kernel.layout
    pool.kernel.bytes.fill(1, ring, ring + 128 * MIB)
    const used = resident()
    await outbound.close()
    await pool.close()
    return used
  }
  const used = await use()
  for (let left = 200; left > 0 && used - resident() < 100 * MIB; left--) await sleep(50)
  t.equal(pools.stats.length, 1)
  t.ok(used - resident() > 100 * MIB, `${(used - resident()) / MIB} MiB`)
  await other.close()
})

t.test('a helper that dies ends its session, with a typed error', { skip }, async t => {
  for (const [death, reason] of [
    ['process.exit(3)', /a helping thread has ended/],
    ['throw new Error("out of order")', /a helping thread failed: out of order/],
    ['port.postMessage({ kind: "failed", reason: "no zstd" })', /no zstd/],
  ] as const) {
    const { run, end, errors } = await session(
      `port.on('message', ({ kind }) => {
      if (kind === 'pack') { ${death} } else if (kind === 'close') say('closed')
    }); say('ready')`,
      2,
    )
    await run()
    t.equal(errors.length, 1, death)
    t.ok(isProxyError(errors[0], 'INTERNAL'))
    t.match((errors[0] as Error).message, reason)
    await end()
  }
})

t.test('a helper that hangs ends its session once it was silent for long', { skip }, async t => {
  const hang = 'Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)'
  const { run, end, errors, timers, workers } = await session(
    `port.on('message', ({ kind }) => {
    if (kind === 'pack') ${hang}
  }); say('ready')`,
    2,
  )
  const ran = run()
  for (let i = 0; i < 2; i++) await timers.pass()
  t.same(errors, [], 'a host that stood still is no reason')
  const [worker] = workers
  const exited = new Promise(done => worker!.once('exit', done))
  await timers.pass()
  await ran
  t.ok(isProxyError(errors[0], 'INTERNAL'))
  t.match((errors[0] as Error).message, /does not answer/)
  await exited
  await end()
})

t.test('a helper that never does what it claims costs nothing but time', { skip }, async t => {
  const board = JSON.stringify(new URL('../../src/transfer/crew/board.ts', import.meta.url).href)
  const claims = new Int32Array(new SharedArrayBuffer(4))
  const { run, end, errors, got, bytes } = await session(
    `import(${board}).then(({ Board }) => {
    const board = new Board(workerData.board)
    say('ready')
    for (;;) {
      const { rung } = board
      const received = receiveMessageOnPort(port)
      if (received?.message.kind === 'close') say('closed')
      if (received) continue
      if (board.claim(() => true) === undefined) board.wait(rung)
      else Atomics.add(workerData.claims, 0, 1)
    }
  })`,
    4,
    { claims },
  )
  await run()
  t.same(errors, [])
  t.ok(got().equals(bytes), 'all of it comes out')
  t.ok(claims[0]! > 0, `${claims[0]} claims that were left`)
  await end()
})

t.test('who dies while a session ends is not waited for', { skip }, async t => {
  const { run, end, errors } = await session(
    `port.on('message', ({ kind }) => { if (kind === 'close') process.exit(0) }); say('ready')`,
    4,
  )
  await run()
  await end()
  t.same(errors, [])
})

t.test('a helper that does not start helps nobody', { skip }, async t => {
  const { run, end, errors, got, bytes } = await session('process.exit(1)', 2)
  await run()
  t.same(errors, [])
  t.ok(got().equals(bytes))
  await end()
})

t.test('a helper is asked nothing once it was ended', async t => {
  const helper = new HelperThread(0, new Board(), EVENT_LOOP)
  await helper.started
  await helper.end()
  await t.rejects(helper.ask({ kind: 'close', session: 1 }), { code: 'INTERNAL' })
})
