/**
 * The memory that sessions of a process share: sets are there once, each session reaches its own pages alone, and what it
 * gives back is clean and used again.
 */

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { cpSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { open as openFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { deflate } from 'node:zlib'
import t from 'tap'
import { isProxyError } from '../../src/errors.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { EVENT_LOOP, type EventLoop, nextTurn } from '../../src/transfer/event-loop.ts'
import { type OpenPool, type PoolRequest, Pools, ringPagesMax, templatePagesMax } from '../../src/transfer/pool.ts'
import { RingShares } from '../../src/transfer/ring-shares.ts'
import { SetsLate } from '../../src/transfer/sets-late.ts'
import { Space } from '../../src/transfer/space.ts'
import type { RingInAdvance } from '../../src/transfer/warmth.ts'
import {
  Guest,
  mainStream,
  NATURES,
  PAGE,
  type PageSpec,
  poolsAlike,
  Receiver,
  random,
  Sender,
  SIMD,
  SLOT_BYTES,
  templatePages,
} from '../codec/harness.ts'
import { putPages, scratch } from '../template/makers.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20

/** A store whose disk gives nothing of a set until `give`. */
class SlowStore extends TemplateStore {
  give!: () => void
  private readonly given = new Promise<void>(done => {
    this.give = done
  })

  override async open(digest: string) {
    await this.given
    return super.open(digest)
  }

  override async openCold(digest: string) {
    await this.given
    return super.openCold(digest)
  }
}

type Teardown = { teardown: (end: () => void) => void }

/** A store of sets: each a range of the same pages, which overlap. */
async function storeOf(t: Teardown, ...ranges: [from: number, to: number][]) {
  const store = new TemplateStore(scratch(t.teardown).folder)
  const pages = templatePages(40).map(page => Buffer.from(page))
  const digests: string[] = []
  for (const [from, to] of ranges) digests.push(await putPages(store, pages.slice(from, to)))
  return { store, digests, pages }
}

const request = (
  role: 'encoder' | 'decoder',
  store: TemplateStore | undefined,
  sets: readonly string[],
  ringPages = 64,
): PoolRequest => ({
  role,
  store,
  sets,
  ringPages,
  places: 4096,
  workspaces: 1,
  slots: role === 'encoder' ? 5 : 1,
  slotBytes: SLOT_BYTES,
  longMatch: true,
})

async function open(pools: Pools, ...of: Parameters<typeof request>): Promise<OpenPool> {
  const pool = await pools.open(request(...of))
  await pool.warm()
  return pool
}

function specs(seed: number, count: number): PageSpec[] {
  const next = random(seed)
  return Array.from({ length: count }, () => ({
    block: next(3),
    page: next(60),
    nature: next(NATURES),
    a: next(1000),
    b: next(256),
  }))
}

/** Address of a slot's page in the process: the same for the same page of a set. */
const addressesOf = (pool: OpenPool): number[] =>
  Array.from({ length: pool.kernel.layout.templatePages }, (_, slot) => pool.kernel.slotAddress(slot))

t.test('stretches of a memory', t => {
  const next = random(3)
  for (let round = 0; round < 50; round++) {
    const space = new Space(64, 10_000)
    const taken: { at: number; length: number }[] = []
    const owner = new Int8Array(10_000)
    let highest = 64
    for (let i = 0; i < 400; i++) {
      if (next(3) > 0) {
        const length = 1 + next(700)
        const at = space.take(length)
        // first fit: no earlier stretch would do
        let first = 64
        for (let run = 0, p = 64; p < 10_000; p++) {
          run = owner[p] === 0 ? run + 1 : 0
          first = p - run + 1
          if (run === length) break
          if (p === 9_999) first = -1
        }
        if ((at ?? -1) !== first) return t.fail(`${length} bytes at ${at}, not at ${first}`) ?? t.end()
        if (at === undefined) continue
        owner.fill(1, at, at + length)
        taken.push({ at, length })
        highest = Math.max(highest, at + length)
      } else if (taken.length > 0) {
        const [{ at, length }] = taken.splice(next(taken.length), 1) as [{ at: number; length: number }]
        owner.fill(0, at, at + length)
        space.give(at, length)
      }
      if (space.highest !== highest) return t.fail(`highest is ${space.highest}`) ?? t.end()
    }
    for (const { at, length } of taken) space.give(at, length)
    const all = space.take(10_000 - 64)
    if (all !== 64) t.fail('all of it is free again')
    else space.give(all, 10_000 - 64)
    t.throws(() => space.give(64, 10), 'what was given back already')
  }
  t.end()
})

t.test('sets are there once, whoever has agreed on them, in whatever order', async t => {
  const { store, digests, pages } = await storeOf(t, [0, 20], [15, 30], [30, 40])
  const [a, b, c] = digests as [string, string, string]
  const pools = new Pools()
  const sessions = await Promise.all([
    open(pools, 'decoder', store, [a, b]),
    open(pools, 'decoder', store, [b, a]), // the same, the other way round
    open(pools, 'decoder', store, [b]), // some of them
    open(pools, 'encoder', store, [c, b, a]), // and more, for the other direction
    open(pools, 'decoder', store, []),
    open(pools, 'encoder', store, [c, b, a]),
  ])
  t.same(
    pools.stats.map(({ sessions, sets }) => ({ sessions, sets })),
    [{ sessions: 6, sets: 3 }],
    'one memory',
  )
  const wanted = [
    [...pages.slice(0, 20), ...pages.slice(15, 30)],
    [...pages.slice(15, 30), ...pages.slice(0, 20)],
    pages.slice(15, 30),
    [...pages.slice(30, 40), ...pages.slice(15, 30), ...pages.slice(0, 20)],
    [],
    [...pages.slice(30, 40), ...pages.slice(15, 30), ...pages.slice(0, 20)],
  ]
  const addresses = sessions.map(addressesOf)
  sessions.forEach((pool, i) => {
    const { bytes } = pool.kernel
    const read = addresses[i]!.map(at => Buffer.from(bytes.subarray(at, at + PAGE)))
    t.same(read, wanted[i], `session ${i} has its slots in its own order`)
  })
  t.same(new Set(addresses.flat()).size, 20 + 15 + 10, 'each page of a set has one address')
  t.equal(
    sessions[3]!.kernel.layout.templateTable,
    sessions[5]!.kernel.layout.templateTable,
    'encoders with the same sets share their table',
  )
  const blocks = sessions.map(({ kernel: { layout } }) => [layout.block, layout.block + layout.blockBytes] as const)
  for (const [i, [from, to]] of blocks.entries()) {
    for (const [j, [otherFrom, otherTo]] of blocks.entries())
      if (i !== j && from < otherTo && otherFrom < to) t.fail(`blocks ${i} and ${j} overlap`)
    if (addresses.flat().some(at => at + PAGE > from && at < to)) t.fail(`block ${i} overlaps a set`)
  }
  for (const pool of sessions) await pool.close()
  const again = await open(pools, 'decoder', store, [c])
  t.equal(pools.stats[0]!.sets, 3, 'sets stay for a while')
  await again.close()
})

t.test('sessions in one memory answer as sessions that have one each, and keep out of each other', async t => {
  const { store, digests } = await storeOf(t, [0, 12], [8, 25], [25, 40])
  const lists = [[0], [1, 0], [2, 1, 0], [], [2]].map(list => list.map(i => digests[i]!))
  for (const implementation of new Set([SIMD, 'twin'] as const)) {
    const shared = new Pools({ implementation })
    const results: string[] = []
    // each session once beside the others, once alone
    for (const alone of [false, true]) {
      const pools = () => (alone ? new Pools({ implementation }) : shared)
      const sessions = await Promise.all(
        lists.map(async (sets, i) => {
          const sender = new Sender(await open(pools(), 'encoder', store, sets), {
            method: 'as they are',
            longMatch: i % 2 === 0,
          })
          const receiver = new Receiver(await open(pools(), 'decoder', store, sets))
          const guest = new Guest(templatePages(40).slice(0, 5 + 8 * i))
          const next = random(100 + i)
          const stream = mainStream(
            guest,
            Array.from({ length: 12 }, () => specs(next(2 ** 30), 1 + next(60))),
          )
          return { sender, receiver, stream, channel: sender.open('main'), got: [] as Buffer[], at: 0 }
        }),
      )
      const next = random(7)
      for (let left = sessions.length; left > 0; ) {
        const session = sessions[next(sessions.length)]!
        if (session.at === session.stream.length) continue
        const take = Math.min(1 + next(100_000), session.stream.length - session.at, session.channel.room)
        session.channel.push(session.stream.subarray(session.at, session.at + take))
        session.at += take
        const isLast = session.at === session.stream.length
        if (isLast) left--
        const sent = session.sender.sendNow(session.channel, isLast || next(3) === 0)
        if (sent) session.got.push(session.receiver.receiveNow(sent))
      }
      for (const [i, { sender, receiver, stream, got }] of sessions.entries()) {
        const name = `session ${i} ${alone ? 'alone' : 'of five'}, ${implementation}`
        t.ok(Buffer.concat(got).equals(stream), `${name}: the same bytes`)
        t.ok(poolsAlike(sender.pool, receiver.pool), `${name}: both sides keep the same`)
        results.push(sender.sent.map(({ bytes }) => Buffer.from(bytes).toString('latin1')).join())
        await sender.close()
        receiver.close()
        await (sender.pool as OpenPool).close()
        await (receiver.pool as OpenPool).close()
      }
    }
    // cuts differ, as the order of the sessions is the same but for random
    for (let i = 0; i < lists.length; i++)
      t.ok(results[i] === results[i + lists.length], `session ${i}: encoded as alone, ${implementation}`)
    t.equal(shared.stats.length, 1)
  }
})

t.test('what a session gives back is clean, and the next one gets it', async t => {
  const { store, digests, pages } = await storeOf(t, [0, 40])
  const pools = new Pools()
  const bystander = await open(pools, 'decoder', store, digests)
  const secret = Buffer.from('what one tenant wrote')
  let block = 0
  let grown = 0
  for (let round = 0; round < 6; round++) {
    const encoder = await open(pools, 'encoder', store, digests)
    const decoder = await open(pools, 'decoder', store, digests)
    for (const { kernel } of [encoder, decoder]) {
      const { layout, bytes } = kernel
      const own = Buffer.from(bytes.buffer, layout.io, layout.block + layout.blockBytes - layout.io)
      t.equal(own.indexOf(secret), -1, 'nothing of the session before')
      const after = kernel.layout.longTable > 0 ? layout.longTable + layout.longEntries * 8 : layout.ring
      const zero = [
        bytes.subarray(layout.io, layout.role === 'encoder' ? layout.longTable : layout.ring),
        bytes.subarray(Math.max(after, layout.ring), layout.ring + layout.ringPages * PAGE),
      ]
      t.ok(
        zero.every(area => area.every(byte => byte === 0)),
        'all of it is zero',
      )
      // a reference to a slot that nothing was ever written to gives zeros, not what another session had there
      const out = layout.io
      t.equal(kernel.expandPages(out, 0, 0, layout.templatePages + layout.ringPages - 1, 1, 0xffffffff, 1), PAGE)
      t.ok(
        bytes.subarray(out, out + PAGE).every(byte => byte === 0),
        'an unwritten slot has zeros',
      )
      t.equal(kernel.expandPages(out, 0, 0, layout.templatePages + layout.ringPages, 1, 0xffffffff, 1), -1)
    }
    if (round === 0) {
      block = encoder.kernel.layout.block
      grown = pools.stats[0]!.bytes
    } else {
      t.equal(encoder.kernel.layout.block, block, 'what was touched before is used first')
      t.equal(pools.stats[0]!.bytes, grown, 'the memory does not grow')
    }
    const sender = new Sender(encoder, { method: 'as they are', longMatch: true })
    const receiver = new Receiver(decoder)
    const channel = sender.open('main')
    const page = Buffer.alloc(PAGE)
    for (let i = 0; i < PAGE; i += secret.length) page.set(secret.subarray(0, PAGE - i), i)
    page.writeUInt32LE(round, 100)
    const stream = mainStream(new Guest([Uint8Array.from(page), ...templatePages(40)]), [specs(round, 200)])
    for (let at = 0; at < stream.length; at += 300_000) {
      channel.push(stream.subarray(at, at + 300_000))
      const sent = sender.sendNow(channel, true)
      if (sent) receiver.receiveNow(sent)
    }
    for (const pool of [encoder, decoder]) {
      pool.kernel.bytes.set(page, pool.slots[0]!)
      pool.kernel.insertPage(pool.slots[0]!, 7)
      await pool.close()
    }
  }
  t.same(
    addressesOf(bystander).map(at => Buffer.from(bystander.kernel.bytes.subarray(at, at + PAGE))),
    pages,
    'sets of others are untouched',
  )
})

t.test('what lists of sets can cost', async t => {
  const { store, digests } = await storeOf(t, [0, 20], [15, 30], [30, 40])
  const [a, b, c] = digests as [string, string, string]
  const pools = new Pools()
  const bystander = await open(pools, 'decoder', store, [a, b, c])
  for (const list of [
    [a, c],
    [c, a],
    [b, a],
    [c, b],
    [c, b, a],
  ])
    await (await open(pools, 'decoder', store, list)).close()
  t.equal(pools.stats[0]!.lists, 1, 'a peer that names sets in ever other orders leaves nothing behind')
  await (await open(pools, 'encoder', store, [a])).close()
  t.equal(pools.stats[0]!.lists, 2, "an encoder's table is kept for its next session")
  await bystander.close()

  const few = new Pools({ setsBytesMax: 36 * PAGE })
  const first = await open(few, 'decoder', store, [a, b])
  const error = await open(few, 'decoder', store, [c]).catch(error => error)
  t.ok(isProxyError(error, 'LIMIT_EXCEEDED'), 'sets take no more than they may')
  const second = await open(few, 'decoder', store, [b])
  await first.close()
  const third = await open(few, 'decoder', store, [c, b])
  t.same(addressesOf(third).length, 25, 'a set that nobody has goes')
  await second.close()
  await third.close()
})

t.test('a pool beside another: in a memory that has its sets, and nothing of it stays', async t => {
  const { store, digests } = await storeOf(t, [0, 20], [20, 40])
  const [a, b] = digests as [string, string]
  const pools = new Pools()
  const beside = (...sets: string[]) =>
    pools.open({ ...request('encoder', store, sets), isBeside: true, forgetsTables: true })
  const none = await beside(a).catch(error => error)
  t.ok(isProxyError(none, 'LIMIT_EXCEEDED'), 'no session has it')
  const session = await open(pools, 'decoder', store, [a, b])
  for (const list of [[a, b], [b, a], [a], [b]]) {
    const pool = await beside(...list)
    t.equal(pool.kernel.layout.templatePages, 20 * list.length)
    t.equal(pools.stats.length, 1, 'in the same memory')
    await pool.close()
    t.equal(pools.stats[0]!.lists, 1, 'a peer that names sets in ever other orders leaves no table behind')
  }
  t.equal(pools.stats[0]!.sets, 2, 'sets are there once')
  await session.close()
})

t.test('a damaged set fails who wants it, and nobody else', async t => {
  const { store, digests } = await storeOf(t, [0, 20], [20, 40])
  const [good, bad] = digests as [string, string]
  const path = store.pathOf(bad)
  const sound = readFileSync(path)
  const damaged = Buffer.from(sound)
  damaged[damaged.length - 1]! ^= 1
  writeFileSync(path, damaged)
  const pools = new Pools()
  const bystander = await open(pools, 'decoder', store, [good])
  const results = await Promise.allSettled([
    open(pools, 'decoder', store, [good, bad]),
    open(pools, 'encoder', store, [bad]),
    open(pools, 'decoder', store, [good]),
  ])
  t.same(
    results.map(result => result.status === 'rejected' && isProxyError(result.reason, 'TEMPLATE_DAMAGED')),
    [true, true, false],
  )
  t.same(
    pools.stats.map(({ sessions, sets }) => ({ sessions, sets })),
    [{ sessions: 2, sets: 1 }],
    'nothing is left of them',
  )
  writeFileSync(path, sound)
  const mended = await open(pools, 'decoder', store, [bad, good])
  t.same(pools.stats[0]!.sessions, 3, 'a set that was mended is read anew')
  truncateSync(path, 100)
  const loaded = await open(pools, 'decoder', store, [bad])
  t.equal(
    addressesOf(loaded)[0],
    addressesOf(mended)[0],
    'what is in memory was verified, whatever becomes of the file',
  )
  await bystander.close()
})

/** Resident memory of the process, in bytes. */
function resident(): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024
}

/** Pages that pass, all of them new. */
function passed({ kernel }: OpenPool, count: number): void {
  const page = kernel.layout.io
  for (let i = 0; i < count; i++) {
    kernel.bytes.fill(i, page, page + PAGE)
    kernel.insertPage(page, 0xffffffff)
  }
}

t.test('what no session uses is let go, but not at once', async t => {
  const { store, digests } = await storeOf(t, [0, 20])
  let nowMs = 0
  let sweep: (() => void) | undefined
  const loop: EventLoop = {
    ...EVENT_LOOP,
    nowMs: () => nowMs,
    after: (ms, then) => {
      t.notOk(sweep, 'one look at a time')
      t.equal(ms, 60_000)
      sweep = then
      return () => {}
    },
  }
  const pools = new Pools({ loop })
  const sets = () => pools.stats.map(arena => arena.sets)
  const sweepAt = async (atMs: number): Promise<void> => {
    nowMs = atMs
    const then = sweep!
    sweep = undefined
    then()
    for (let turns = 100; turns > 0; turns--) await nextTurn(loop) // what is let go is zeroed
  }
  await (await open(pools, 'decoder', store, digests)).close()
  t.same(sets(), [1], 'a session may come soon')
  nowMs = 30_000
  await (await open(pools, 'decoder', store, digests)).close()
  await sweepAt(60_000)
  t.same(sets(), [1], 'it was used half a minute ago')
  const bystander = await open(pools, 'decoder', undefined, [])
  await sweepAt(120_000)
  t.same(sets(), [0], 'its minute is over, and the memory has a session')
  t.notOk(sweep, 'nothing is left to look at')
  await bystander.close()
  await sweepAt(180_000)
  t.same(sets(), [], 'the memory, too')
  t.notOk(sweep)
})

t.test('memory is taken as pages pass, and given back', async t => {
  const pools = new Pools({ unusedMs: 50 })
  const before = resident()
  const sessions: OpenPool[] = []
  for (let i = 0; i < 24; i++)
    sessions.push(await pools.open(request(i % 2 ? 'encoder' : 'decoder', undefined, [], 65536)))
  const open = resident()
  t.ok(open - before < 24 * MIB, `24 sessions with rings of 256 MiB take ${(open - before) / MIB} MiB`)
  t.ok(pools.stats.length >= 2, 'a memory that is full is followed by another')
  passed(sessions[0]!, 25_600)
  const used = resident()
  t.ok(used - open > 90 * MIB, 'pages that passed are there')
  await Promise.all(sessions.splice(0).map(pool => pool.close()))
  for (let left = 200; left > 0 && (pools.stats.length > 0 || used - resident() < 80 * MIB); left--) await sleep(50)
  t.same(pools.stats, [], 'memories without sessions are let go')
  t.ok(used - resident() > 80 * MIB, `and given back: ${(used - resident()) / MIB} MiB`)
})

t.test('what fits', async t => {
  const shape = request('encoder', undefined, [])
  const ring = ringPagesMax(shape, 1 << 20)
  t.ok(ring > 900_000 && ring < 1_040_000, `a ring of ${ring} pages`)
  await (await new Pools().open({ ...shape, ringPages: ring, places: 1 << 20 })).close()
  const most = templatePagesMax(shape, 65536, 1 << 20)
  t.ok(most > 800_000 && most < 980_000, `${most} template pages beside a ring of 256 MiB`)
  t.equal(templatePagesMax(shape, 2 ** 20, 0), 0)
  const error = await new Pools().open({ ...shape, ringPages: 2 ** 20 }).catch(error => error)
  t.ok(isProxyError(error, 'LIMIT_EXCEEDED'), error.message)
})

t.test('shares of the rings', t => {
  const shares = new RingShares(512 * MIB, true)
  const take = (identity: string, mib = 256) => shares.take(identity, mib * MIB)
  const first = take('a')
  t.equal(first.bytes, 256 * MIB, 'one alone has what it wants, as half is free')
  const rest = Array.from({ length: 16 }, (_, i) => take(`peer ${i}`))
  t.ok(
    rest.every(({ bytes }) => bytes > 0),
    'seventeen at once: each has something',
  )
  t.ok(first.isExcessive && !rest[15]!.isExcessive, 'not fairly, as those before keep what they have')
  // idle sessions are opened again, one after the other
  const grants = new Map([['a', first], ...rest.map((grant, i) => [`peer ${i}`, grant] as const)])
  for (let round = 0; round < 4; round++) {
    for (const [identity, grant] of grants) {
      if (!grant.isExcessive && !grant.isStarved) continue
      grant.release()
      grants.set(identity, take(identity))
    }
  }
  const settled = [...grants.values()].map(({ bytes }) => bytes / MIB)
  t.ok(
    settled.every(mib => mib >= 14 && mib <= 29),
    `then fairly: ${settled.map(Math.round)}`,
  )
  t.notOk(
    [...grants.values()].some(grant => grant.isExcessive || grant.isStarved),
    'and it rests',
  )
  for (const grant of grants.values()) grant.release()
  t.equal(take('b').bytes, 256 * MIB)

  const greedy = new RingShares(512 * MIB, true)
  let sum = 0
  for (let i = 0; i < 100; i++) sum += greedy.take('one', 256 * MIB).bytes
  t.ok(sum <= 512 * MIB, 'one identity with many sessions gets no more than there is')
  t.ok(greedy.take('another', 256 * MIB).bytes >= 0)

  const own = new RingShares(300 * MIB, false)
  own.expect('a')
  own.expect('b')
  t.same(
    ['a', 'b', 'a'].map(identity => own.take(identity, 300 * MIB).bytes / MIB),
    [150, 150, 0],
    'where nobody else can come all of it is shared',
  )
  const whole = new RingShares(300 * MIB, false)
  whole.expect('a')
  t.equal(whole.take('a', 300 * MIB).bytes, 300 * MIB)
  t.end()
})

t.test(
  'the kernel is the one that was there when the program started',
  { skip: SIMD === 'twin' && 'kernel.wasm is not built' },
  async t => {
    const folder = t.testdir({ 'package.json': '{"type":"module"}' })
    cpSync(new URL('../../src', import.meta.url), join(folder, 'src'), { recursive: true, preserveTimestamps: true })
    const script = `
    const { Pools } = await import('./src/transfer/pool.ts')
    const { kernelModule } = await import('./src/kernel/kernel.ts')
    const { writeFileSync } = await import('node:fs')
    const pools = new Pools()
    writeFileSync('./src/kernel/kernel.wasm', 'of a later version')
    console.log(pools && kernelModule() ? 'the old one' : 'none')`
    const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { cwd: folder })
    t.equal(`${stdout}${stderr}`, 'the old one\n')
  },
)

interface Ring {
  readonly pool: OpenPool
  /** How much of it is committed. */
  readonly mib: () => number
}

/** A session with a ring of so many MiB. */
async function ringOf(pools: Pools, ringInAdvance: RingInAdvance, ringMib = 16): Promise<Ring> {
  const ringPages = ringMib * (MIB / PAGE)
  const pool = await pools.open({ ...request('decoder', undefined, []), ringPages, ringInAdvance })
  let next: number | undefined
  let bytes = 0
  Object.defineProperty(pool.kernel, 'commit', {
    value: (at: number, length: number) => {
      if (at < pool.kernel.layout.ring) return // its tables
      if (at !== (next ?? at)) throw new Error(`${at} is committed, not ${next}`) // nothing twice, nothing left out
      next = at + length
      bytes += length
    },
  })
  return { pool, mib: () => bytes / MIB }
}

/** As many turns as so many MiB take. */
async function turns(mib = 40): Promise<void> {
  for (let i = 0; i < 8 * mib; i++) await nextTurn(EVENT_LOOP)
}

/** Whether it has settled by now. */
async function isSettled(promise: Promise<void>): Promise<boolean> {
  return (await Promise.race([promise, Promise.resolve('not yet')])) === undefined
}

t.test('a ring is committed before a migration comes where that is asked for, and else ahead of it', async t => {
  for (const inAdvance of ['always', 'spare', 'never'] as const) {
    const { pool, mib } = await ringOf(new Pools(), inAdvance)
    t.equal(await isSettled(pool.ready), inAdvance !== 'always', 'only what is always committed is waited for')
    await turns()
    t.equal(mib(), inAdvance === 'never' ? 0 : 16, inAdvance)
    t.ok(await isSettled(pool.ready))
    pool.migrates(true)
    await pool.warm()
    await turns()
    t.equal(mib(), inAdvance === 'never' ? 8 : 16, 'a migration has begun')
    await pool.close()
  }
  const none = await new Pools().open({ ...request('encoder', undefined, [], 0), ringInAdvance: 'always' })
  await none.ready
  await none.close()
})

t.test('a migration waits for no ring to be committed', async t => {
  const pools = new Pools()
  const { pool, mib } = await ringOf(pools, 'always')
  await turns(3)
  t.ok(mib() > 0 && mib() < 8, `${mib()} MiB are ready when it comes`)
  pool.migrates(true)
  await pool.warm()
  t.ok(await isSettled(pool.ready), 'its session is told of at once')
  await turns()
  t.equal(mib(), 8, 'only what is ahead of it is committed')
  passed(pool, 1024)
  await pool.warm()
  await turns()
  t.equal(mib(), 12, 'as its pages pass')
  pool.migrates(false)
  await turns()
  t.equal(mib(), 16, 'and the rest when it is over')
  await pool.close()

  const { pool: short } = await ringOf(pools, 'always')
  t.notOk(await isSettled(short.ready))
  await short.close()
  t.ok(await isSettled(short.ready), 'nor does whoever waits for a session that has ended')
})

t.test('of the rings of many sessions one is committed in advance', async t => {
  const pools = new Pools()
  const sessions: Ring[] = []
  for (let i = 0; i < 4; i++) sessions.push(await ringOf(pools, 'spare'))
  const [a, b, c, d] = sessions as [Ring, Ring, Ring, Ring]
  const now = () => sessions.map(({ mib }) => mib())
  await turns(4)
  c.pool.migrates(true)
  const then = now()
  t.ok(then[0]! > 0 && then[0]! < 8, 'of the one that came first, until')
  await turns()
  t.same(now(), then, 'a migration begins: nothing is committed for whoever asks for nothing')
  c.pool.migrates(false)
  await turns()
  t.same(now(), [16, 0, 0, 0], 'then all of it')
  a.pool.migrates(true)
  a.pool.migrates(true)
  await turns()
  t.same(now(), [16, 0, 0, 0], 'while a migration runs none is')
  a.pool.migrates(false)
  await turns()
  t.same(now(), [16, 0, 0, 0], 'and afterwards there is one again: sessions that begin and end gain no more')
  b.pool.migrates(true)
  await b.pool.warm()
  await turns()
  t.same(now(), [16, 8, 0, 0], 'another has what is ahead of it')
  b.pool.migrates(false)
  c.pool.migrates(true)
  await c.pool.close() // while its migration runs
  await a.pool.close()
  await turns()
  t.same(now(), [16, 8, 0, 0], 'what one that is over had is in memory still: there is none for another')
  const again = await ringOf(pools, 'spare')
  t.equal(again.pool.kernel.layout.ring, a.pool.kernel.layout.ring)
  await turns()
  t.equal(again.mib(), 0, 'and whoever has its place has it ready')
  await b.pool.close()
  await d.pool.close()
  const between = await ringOf(pools, 'spare', 0)
  await again.pool.close()
  const larger = await ringOf(pools, 'spare', 24)
  t.not(larger.pool.kernel.layout.ring, a.pool.kernel.layout.ring)
  await turns()
  t.equal(larger.mib(), 24 - 16, 'one that is larger and elsewhere gets what it has more')
  await larger.pool.close()
  await between.pool.close()
  const whole = await ringOf(pools, 'spare', 64)
  const moved = whole.pool.kernel.layout.ring - a.pool.kernel.layout.ring // its tables are larger
  t.ok(moved > 0 && moved < MIB, `${moved} bytes`)
  await turns(80)
  t.equal(whole.mib(), 64 - 16, 'a place that is ready in part is made ready, but for what it has moved')
  await whole.pool.close()
})

/** Distinct MiB of rings of these sessions that are committed. */
function committedOf() {
  const pages = new Set<number>()
  const watch = (pool: OpenPool): OpenPool => {
    const { commit } = pool.kernel
    Object.defineProperty(pool.kernel, 'commit', {
      value: (at: number, length: number) => {
        for (let p = at; p < at + length; p += PAGE) pages.add(p)
        commit(at, length)
      },
    })
    return pool
  }
  return { watch, mib: () => (pages.size * PAGE) / MIB }
}

t.test('sessions that end and come again have one ring committed', async t => {
  const committed = committedOf()
  const pools = new Pools()
  const opened = async (mib: number): Promise<OpenPool> => {
    const ringPages = mib * (MIB / PAGE)
    const pool = committed.watch(
      await pools.open({ ...request('decoder', undefined, []), ringPages, places: 0, ringInAdvance: 'spare' }),
    )
    await turns()
    return pool
  }
  const sessions: OpenPool[] = []
  for (let i = 0; i < 6; i++) sessions.push(await opened(8))
  t.equal(committed.mib(), 8)
  for (let i = 0; i < 6; i++) {
    await sessions[i]!.close()
    sessions[i] = await opened(8)
  }
  t.equal(committed.mib(), 8, 'in the places of others')
  for (const pool of sessions.splice(0)) await pool.close()
  for (let mib = 8; mib < 16; mib++) {
    const pool = await opened(mib)
    sessions.push(await opened(0)) // whose place keeps the two around it from being one
    await pool.close()
  }
  t.ok(committed.mib() <= 15, `${committed.mib()} MiB, in places that nobody had before`)
  for (const pool of sessions) await pool.close()
})

t.test('many idle sessions cost one ring', async t => {
  const ringPages = 32 * (MIB / PAGE)
  const pools = new Pools()
  const before = resident()
  const sessions: OpenPool[] = []
  for (let i = 0; i < 16; i++)
    sessions.push(await pools.open({ ...request('decoder', undefined, []), ringPages, ringInAdvance: 'spare' }))
  const grown = () => (resident() - before) / MIB
  await turns()
  t.ok(grown() >= 24 && grown() < 32 + 24, `${grown()} MiB for 16 sessions with rings of 32`)
  for (const pool of sessions) {
    pool.migrates(true)
    await turns(2)
    pool.migrates(false)
    await turns()
  }
  t.ok(grown() < 32 + 24, `${grown()} MiB when each has had a flow`)
  await Promise.all(sessions.map(pool => pool.close()))
})

t.test('a defect in making ready is told to who asks next, and ends no process', async t => {
  const pool = await new Pools().open(request('decoder', undefined, []))
  t.teardown(() => pool.close())
  const plant = (): never => {
    throw new TypeError('planted')
  }
  Object.defineProperty(pool.kernel, 'commit', { value: plant })
  await pool.warm()
  await nextTurn(EVENT_LOOP)
  await nextTurn(EVENT_LOOP)
  await t.rejects(pool.warm(), { message: 'planted' })
})

t.test('sets of a disk that is late', async t => {
  const alive = setInterval(() => {}, 1000) // what Pools waits for keeps no process alive
  t.teardown(() => clearInterval(alive))
  const { store, digests } = await storeOf(t, [0, 10], [10, 40])
  const [there, late] = digests as [string, string]
  for (const floor of ['sets', 'cold'] as const) {
    const slow = new SlowStore(store.folder)
    const pools = new Pools()
    const first = await pools.open(request('decoder', store, [there]))
    const wanted = { ...request('decoder', slow, [there]), [floor]: floor === 'sets' ? [there, late] : [late] }
    const error = await pools.open({ ...wanted, setsMs: 20 }).catch(cause => cause)
    t.ok(error instanceof SetsLate, floor)
    t.same(error.sets, [late], 'what is in memory is not late')
    const without = await pools.open({ ...request('decoder', slow, [there]), setsMs: 20 })
    slow.give()
    await error.settled
    const whole = await pools.open({ ...wanted, store: undefined, setsMs: 20 })
    t.equal(whole.kernel.layout.templatePages, floor === 'sets' ? 40 : 10, 'it was read on, and kept')
    for (const pool of [first, without, whole]) await pool.close()
  }
})

/** An event loop whose time passes by hand. */
function handLoop(): { loop: EventLoop; passes: (ms: number) => Promise<void> } {
  let nowMs = 0
  let due: { atMs: number; then: () => void }[] = []
  const after = (ms: number, then: () => void) => {
    const entry = { atMs: nowMs + ms, then }
    due.push(entry)
    return () => {
      due = due.filter(other => other !== entry)
    }
  }
  const passes = async (ms: number): Promise<void> => {
    nowMs += ms
    const now = due.filter(({ atMs }) => atMs <= nowMs)
    due = due.filter(({ atMs }) => atMs > nowMs)
    for (const { then } of now) then()
    for (let turns = 100; turns > 0; turns--) await nextTurn(EVENT_LOOP) // what is let go is zeroed
  }
  return { loop: { ...EVENT_LOOP, nowMs: () => nowMs, after }, passes }
}

t.test('a set that was late is kept for the session that comes', async t => {
  const { store, digests } = await storeOf(t, [0, 10], [10, 40])
  const [there, late] = digests as [string, string]
  for (const floor of ['sets', 'cold'] as const) {
    const slow = new SlowStore(store.folder)
    const { loop, passes } = handLoop()
    const pools = new Pools({ loop, setsBytesMax: 50 * PAGE })
    const first = await pools.open(request('decoder', store, [there]))
    const wanted = { ...request('decoder', slow, [there]), [floor]: floor === 'sets' ? [there, late] : [late] }
    const opening = pools.open({ ...wanted, setsMs: 5000 }).catch(cause => cause)
    await passes(5000)
    const error = await opening
    t.ok(error instanceof SetsLate, floor)
    slow.give()
    t.equal(await error.settled, undefined)
    for (let minutes = 0; minutes < 60; minutes++) await passes(60_000)
    const nowhere = { ...wanted, store: undefined, setsMs: 0 }
    for (let times = 0; times < 2; times++) {
      const whole = await pools.open(nowhere)
      t.equal(whole.kernel.layout.templatePages, floor === 'sets' ? 40 : 10, 'an hour later it is there')
      await whole.close()
      await passes(60_000)
      await passes(60_000)
    }
    error.letGo(late)
    error.letGo(late)
    await passes(60_000)
    await passes(60_000)
    t.equal(await pools.open(nowhere).catch(() => 'read'), 'read', 'not wanted any more, it goes as others do')
    await first.close()
  }
})

t.test('a set that is kept makes room for others, and goes with the last session', async t => {
  const made = await storeOf(t, [0, 10], [10, 40], [0, 30])
  const [there, late, other] = made.digests as [string, string, string]
  const slow = new SlowStore(made.store.folder)
  const { loop, passes } = handLoop()
  const pools = new Pools({ loop, setsBytesMax: 45 * PAGE })
  const first = await pools.open(request('decoder', made.store, [there]))
  const comesLate = async (): Promise<void> => {
    const opening = pools.open({ ...request('decoder', slow, [there, late]), setsMs: 5000 }).catch(cause => cause)
    await passes(5000)
    slow.give()
    await (await opening).settled
  }
  const sets = () => pools.stats.map(arena => arena.sets)
  await comesLate()
  t.same(sets(), [2])
  // 10 pages that a session has and 30 that are kept leave 5
  const second = await pools.open(request('decoder', made.store, [there, other]))
  t.same(sets(), [2], 'it went, and no session had to')
  await second.close()
  await first.close()
  for (let i = 0; i < 3; i++) await passes(60_000)
  t.same(sets(), [])

  const third = await pools.open(request('decoder', made.store, [there]))
  const fresh = new SlowStore(made.store.folder)
  const opening = pools.open({ ...request('decoder', fresh, [there, late]), setsMs: 5000 }).catch(cause => cause)
  await passes(5000)
  const error = await opening
  fresh.give()
  await error.settled
  await passes(120_000)
  t.same(sets(), [2])
  await third.close()
  for (let i = 0; i < 3; i++) await passes(60_000)
  t.same(sets(), [], 'a process without sessions holds nothing')
})

t.test('a set that was late and is damaged tells it', async t => {
  const { store, digests } = await storeOf(t, [0, 10])
  const path = store.pathOf(digests[0]!)
  const bytes = readFileSync(path)
  bytes[bytes.length - 1]! ^= 1
  writeFileSync(path, bytes)
  const slow = new SlowStore(store.folder)
  const { loop, passes } = handLoop()
  const opening = new Pools({ loop }).open({ ...request('decoder', slow, digests), setsMs: 5000 }).catch(cause => cause)
  await passes(5000)
  const error = await opening
  t.ok(error instanceof SetsLate)
  slow.give()
  t.match(await error.settled, { code: 'TEMPLATE_DAMAGED' })
})

t.test('a disk that hangs takes one thread of the pool, whatever it has', async t => {
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  const made = await storeOf(t, [0, 2], [2, 4], [4, 6], [6, 8], [8, 10], [10, 12])
  const [there, ...hung] = made.digests as [string, ...string[]]
  for (const floor of ['sets', 'cold'] as const) {
    const { store } = await storeOf(t, [0, 2])
    // a FIFO that nobody writes to: who opens it keeps a thread, as with a disk that hangs
    for (const digest of hung) execFileSync('mkfifo', [store.pathOf(digest)])
    const inThread = (digest: string) => openFile(store.pathOf(digest)).then(() => Promise.reject(new Error('a FIFO')))
    const disk = Object.create(store, { open: { value: inThread }, openCold: { value: inThread } }) as TemplateStore
    const pools = new Pools()
    const first = await pools.open(request('decoder', store, [there]))
    const wanted = { ...request('decoder', disk, [there]), [floor]: floor === 'sets' ? [there, ...hung] : hung }
    const error = await pools.open({ ...wanted, setsMs: 20 }).catch(cause => cause)
    t.same(error.sets, hung, 'the one that hangs, and those behind it')
    const beganMs = performance.now()
    const again = await pools.open({ ...wanted, setsMs: 600_000 }).catch(cause => cause)
    t.same(again.sets, hung)
    t.ok(performance.now() - beganMs < 300_000, 'and while it hangs nobody waits for it again')
    const compressed = await promisify(deflate)('by a thread of the pool')
    t.ok(compressed.length > 0, 'a thread is left')
    const unblock = hung.map(digest => spawn('sh', ['-c', 'exec 3<>"$0"; read -r _ <&3', store.pathOf(digest)]))
    await error.settled
    await again.settled
    for (const each of unblock) each.kill()
    await first.close()
  }
})

t.test('a set that another memory has is late where it is read again', async t => {
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  const { store, digests } = await storeOf(t, [0, 10])
  const slow = new SlowStore(store.folder)
  const pools = new Pools()
  const first = await pools.open(request('decoder', store, digests, 600_000))
  const wanted = { ...request('decoder', slow, digests, 600_000), setsMs: 20 }
  const error = await pools.open(wanted).catch(cause => cause)
  t.ok(error instanceof SetsLate)
  t.same(error.sets, digests)
  slow.give()
  await error.settled
  const second = await pools.open(wanted)
  t.equal(pools.stats.length, 2, 'in a second memory')
  for (const pool of [first, second]) await pool.close()
})

t.test('pages of large sets are made known for long matches before those of small ones', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const pagesFrom = (seed: number, count: number): Buffer[] =>
    Array.from({ length: count }, (_, i) => Buffer.alloc(PAGE, `${seed} ${i} `))
  const [small, large] = [await putPages(store, pagesFrom(1, 20)), await putPages(store, pagesFrom(2, 700))]
  for (const [sets, calls] of [
    [
      [small, large],
      ['20 532', '532 720', '0 20'],
    ],
    [
      [large, small],
      ['0 512', '512 700', '700 720'],
    ],
    [[], []],
  ] as const) {
    const shape = { role: 'encoder', workspaces: 1, slots: 1, slotBytes: 65536, longMatch: true } as const
    const pool = await new Pools({ unusedMs: 0 }).open({ ...shape, store, sets, ringPages: 64, places: 64 })
    const told: string[] = []
    const { rememberTemplates } = pool.kernel
    Object.assign(pool.kernel, {
      rememberTemplates: (from: number, to: number) => {
        told.push(`${from} ${to}`)
        rememberTemplates(from, to)
      },
    })
    await pool.warm()
    t.same(told, calls)
    await pool.close()
  }
})
