/**
 * What a batch may cost: work and memory are bounded by its raw length, whatever it holds. Work is counted in steps, not
 * in time; one coarse comparison of times shows that the count tells the truth.
 */

import { readdirSync, readFileSync } from 'node:fs'
import { zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { parseBatch } from '../../src/codec/batch.ts'
import { BlockNames } from '../../src/codec/block-names.ts'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { COLUMN, METHOD, OP, operationsMax } from '../../src/codec/wire.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { isProxyError } from '../../src/errors.ts'
import { FairShares, type Share } from '../../src/fair-shares.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import { MULTIFD } from '../../src/qemu/wire.ts'
import { Inbound, type InboundChannel } from '../../src/transfer/inbound.ts'
import { readsOf } from '../helpers/reads-of.ts'
import { mixture, op, packed, STEPS } from './costly-batches.ts'
import { handBatch, varint } from './hand-batch.ts'
import { PAGE, poolOf, Receiver, random, SEED, SEED_WORDS, Sender, SIMD, type Terms, templatePages } from './harness.ts'
import { checksum, decodeSession, type SentBatch } from './second-decoder.ts'

t.setTimeout(590_000)

const MIB = 1 << 20
const terms: Terms = { templates: templatePages(8), ring: 64, places: 1024, disks: true }

/** Steps for each raw byte, and for a batch besides: operations, columns, copies; names once a flow. */
const WORK_PER_RAW_BYTE = 110
const WORK_FREE = 100_000
const WORK_OF_NAMES = 300_000

/** Operations of a raw ops column. */
function operationsIn(ops: Uint8Array): number {
  let count = 0
  for (let at = 0; at < ops.length; count++) {
    const long = ops[at++]! % 16 === 0
    if (long) while (ops[at++]! >= 128);
  }
  return count
}

const sentOf = (bytes: Uint8Array, flow = 1): SentBatch => ({ flow, migration: 1, bytes })

/** Expands a batch whose checksum is not known: what it gives, or the error. The work is counted either way. */
function tried(receiver: Receiver, bytes: Uint8Array, flow = 1): 'refused' | 'expanded' {
  try {
    receiver.receiveNow(sentOf(bytes, flow))
  } catch (error) {
    if (isProxyError(error, 'BATCH_CHECKSUM')) return 'expanded'
    if (isProxyError(error, 'BATCH_FORMAT')) return 'refused'
    throw error
  }
  return 'expanded'
}

t.test('every recorded channel stays far below what its bytes pay for', async t => {
  const folders = ['../../pcap-fixtures/streams/', '../vectors/qemu/streams/']
  const kinds: readonly ChannelKind[] = ['main', 'multifd', 'preempt']
  let most = 0
  let widest = 0
  let batches = 0
  for (const folder of folders) {
    const path = new URL(folder, import.meta.url).pathname
    for (const file of readdirSync(path)) {
      if (!file.endsWith('.zst') || file.includes('return')) continue
      const input = zstdDecompressSync(readFileSync(path + file))
      const rand = random(input.length)
      const sender = new Sender(poolOf('encoder', SIMD, terms), EFFORTS[2]!)
      const workspace = sender.pool.workspaces[0]!
      const channel = sender.open(kinds.find(kind => file.includes(kind)) ?? 'unknown')
      for (let at = 0; at < input.length; ) {
        // long batches, and now and then a few that end within records
        const take = Math.min(input.length - at, rand(5) === 0 ? 1 + rand(40) : 1 + rand(400_000), channel.room)
        channel.push(input.subarray(at, at + take))
        at += take
        const sent = await sender.send(channel, at === input.length || rand(3) === 0)
        if (!sent) continue
        batches++
        const { rawLength } = parseBatch([sent.bytes])
        most = Math.max(most, operationsIn(workspace.column(COLUMN.OPS)) / operationsMax(rawLength))
        for (let column = 0; column < 10; column++)
          widest = Math.max(widest, workspace.columnLength[column]! / (1024 + 2 * rawLength))
      }
      await sender.close()
    }
  }
  t.ok(batches > 100, `${batches} batches`)
  t.ok(most < 0.75, `at most ${(100 * most).toFixed(0)} % of the operations`)
  t.ok(widest < 0.75, `at most ${(100 * widest).toFixed(0)} % of a column`)
})

t.test('the worst that an honest encoder makes still fits', t => {
  // every record names another RAMBlock than the one before, somewhere else: BLOCK, SEEK, ZERO, at first DEFINE
  const out = new StreamEmitter()
  for (let i = 0; out.position < 400_000; i++)
    out.zero(((i * 7919) % 2 ** 20) * PAGE, String.fromCharCode(1 + (i % 250)))
  const input = out.bytes()
  for (const piece of [11, 500, 2805, 30_000, 400_000]) {
    const sender = new Sender(poolOf('encoder', SIMD, terms), { method: 'as they are', longMatch: false })
    const receiver = new Receiver(poolOf('decoder', SIMD, terms))
    const channel = sender.open('preempt')
    const got: Buffer[] = []
    for (let at = 0; at < input.length; at += piece) {
      channel.push(input.subarray(at, at + piece))
      const sent = sender.sendNow(channel, at + piece >= input.length)
      if (sent) got.push(receiver.receiveNow(sent))
    }
    t.ok(Buffer.concat(got).equals(Buffer.from(input)), `pieces of ${piece}`)
  }
  t.end()
})

t.test('names: 4,094 of 255 bytes that differ in their last five, and packets that name the last', t => {
  const receiver = new Receiver(poolOf('decoder', SIMD, terms))
  const name = (i: number) => Buffer.from(`${'n'.repeat(250)}${String(i).padStart(5, '0')}`)
  let known = 0
  for (; known < 4094; known++) {
    const define = {
      rawLength: 1000,
      columns: { 0: [0xc1, ...op(OP.OTHER, 1000)], 1: varint(255), 2: [...name(known), ...Buffer.alloc(1000, 1)] },
    }
    if (tried(receiver, packed(define)) === 'refused') break
  }
  t.equal(known, Math.floor(32768 / 287), 'a flow may name so many')
  const packets = 780
  const column = Buffer.alloc(1344 * packets)
  const header = Buffer.alloc(1344)
  header.writeUInt32BE(1, 16)
  name(known - 1).copy(header, 64)
  for (let i = 0; i < 1344; i++) column.fill(header[i]!, i * packets, (i + 1) * packets)
  const ops = Array.from({ length: packets }, () => [0xd1, 0xe1]).flat()
  const before = receiver.work
  t.equal(tried(receiver, packed({ rawLength: column.length, columns: { 0: ops, 8: column } })), 'expanded')
  const work = receiver.work - before
  t.ok(work < 4 * column.length, `${(work / column.length).toFixed(2)} steps for each raw byte`)
  t.end()
})

t.test('a batch of one byte does next to nothing', t => {
  const receiver = new Receiver(poolOf('decoder', SIMD, terms))
  const many = Buffer.alloc(MIB, 0x91)
  t.equal(tried(receiver, packed({ rawLength: 1, columns: { 0: many } })), 'refused')
  t.equal(receiver.work, 0, 'the column alone is too long')
  const most = [...Buffer.alloc(255, 0x91), 0x81]
  t.equal(tried(receiver, packed({ rawLength: 1, columns: { 0: most, 2: [1] } })), 'expanded')
  t.ok(receiver.work <= WORK_FREE, `${receiver.work} steps`)
  t.end()
})

// ---- the worst case, searched for

t.test('the most expensive batches that can be made, searched for', t => {
  const length = fc.constantFrom(1, 9, 100, 4104, 50_000, 300_000)
  const step = fc.tuple(fc.constantFrom(...STEPS), fc.constantFrom(1, 17, 256, 3000, 100_000))
  let worst = 0
  let what = ''
  let expanded = 0
  const check = (rawLength: number, steps: readonly (readonly [string, number])[]): boolean => {
    const receiver = new Receiver(poolOf('decoder', SIMD, terms), false, terms)
    const bytes = packed(mixture(rawLength, steps))
    if (tried(receiver, bytes) === 'expanded') expanded++
    const beyond = (receiver.work - WORK_FREE) / rawLength
    if (beyond > worst) {
      worst = beyond
      what = JSON.stringify([rawLength, steps])
    }
    return receiver.work <= WORK_FREE + WORK_PER_RAW_BYTE * rawLength
  }
  for (const name of STEPS) for (const rawLength of [1, 4104, 300_000]) t.ok(check(rawLength, [[name, 1e6]]), name)
  fc.assert(fc.property(length, fc.array(step, { maxLength: 5 }), check), { numRuns: 150, seed: 7 })
  t.ok(expanded > 30, `${expanded} of them were batches that break no rule`)
  t.comment(`worst: ${worst.toFixed(1)} steps for each raw byte, ${what}`)
  t.end()
})

t.test('a batch costs its bytes at least, however few operations give them', t => {
  const receiver = new Receiver(poolOf('decoder', SIMD, terms))
  const rawLength = 250 * (PAGE + 8)
  const columns = { 0: op(OP.FILL, 250), 1: Buffer.alloc(250, 7) }
  t.equal(tried(receiver, packed({ rawLength, columns })), 'expanded')
  t.ok(receiver.work >= rawLength, `${receiver.work} steps for ${rawLength} bytes`)
  t.end()
})

t.test('a name that is said twice is the first of that name', t => {
  for (const lookedUp of ['before', 'behind'] as const) {
    const names = new BlockNames()
    t.equal(names.add('a'), 0)
    if (lookedUp === 'before') t.equal(names.find('b'), -1, 'from here on there is an index')
    for (const [i, name] of ['b', 'a', 'b', 'a'].entries()) t.equal(names.add(name), i + 1)
    t.same(
      ['a', 'b', 'c'].map(name => names.find(name)),
      [0, 1, -1],
      `looked up ${lookedUp} they were said`,
    )
  }
  t.end()
})

t.test('a packet finds its name in one step, however many the flow has named', t => {
  const flow = new FlowExpander(1, new PoolRegions([terms.templates.length, terms.ring]))
  const { names } = flow.prediction
  const reads = readsOf(names, 'names')
  const name = (i: number) => String(i).padStart(3, '0')
  while (names.add(name(names.count)) >= 0);
  const known = names.count
  t.ok(known > 900, `${known} names`)
  const header = new Uint8Array(MULTIFD.HEADER_LENGTH)
  header[MULTIFD.NORMAL_PAGES_AT + 3] = 1
  const packet = (block: number): number => {
    header.set(Buffer.from(name(block)), MULTIFD.BLOCK_AT)
    flow.packet(header, 0)
    return flow.prediction.block
  }
  reads()
  t.equal(packet(known - 1), known - 1)
  const first = reads()
  t.ok(first > 0 && first <= known, `the first packet reads ${first} names: an index is made`)
  for (let block = 0; block < known; block++) if (packet(block) !== block) t.fail(`${block} is another`)
  const rest = reads()
  t.ok(rest <= known, `${known} more packets read ${rest} names`)
  t.end()
})

t.test('names count once: a flow that names all it may', t => {
  const receiver = new Receiver(poolOf('decoder', SIMD, terms))
  const columns = {
    0: [...Buffer.alloc(992, 0xc1), ...op(OP.OTHER, 3000)],
    1: Buffer.alloc(992, 1),
    2: Buffer.alloc(3992, 0x61),
  }
  t.equal(tried(receiver, packed({ rawLength: 3000, columns })), 'expanded')
  t.ok(receiver.work <= WORK_FREE + WORK_OF_NAMES + WORK_PER_RAW_BYTE * 3000, `${receiver.work} steps`)
  t.end()
})

t.test('the worst takes no longer than a few honest ones', t => {
  // honest: every other page of a guest is zero, as a scan of dirty pages meets them
  const out = new StreamEmitter()
  for (let i = 0; out.position + 20 < MIB; i++) out.zero(2 * i * PAGE, i === 0 ? 'pc.ram' : undefined)
  const sender = new Sender(poolOf('encoder', SIMD, terms), { method: 'as they are', longMatch: false })
  const channel = sender.open('preempt')
  channel.push(out.bytes())
  const honest = sender.sendNow(channel, true)!.bytes
  const bad = ['other', 'zero', 'named', 'copies', 'skip', 'packets', 'exports', 'messages'].map(name => {
    const operations = name === 'named' ? MIB / 7 : MIB / 3.1
    return packed(mixture(MIB, [[name, Math.floor(operations)]]))
  })
  const seconds = (bytes: Uint8Array): number => {
    const receiver = new Receiver(poolOf('decoder', SIMD, terms), false, terms)
    let best = Number.POSITIVE_INFINITY
    for (let i = 0; i < 7; i++) {
      const before = process.threadCpuUsage() // what others take of the machine is none of it
      t.equal(tried(receiver, bytes, i), 'expanded')
      const { user, system } = process.threadCpuUsage(before)
      best = Math.min(best, user + system)
    }
    return best / 1e6
  }
  const usual = seconds(honest)
  for (const [i, bytes] of bad.entries()) {
    const ratio = seconds(bytes) / usual
    t.ok(ratio < 12, `batch ${i}: ${ratio.toFixed(1)} times an honest one of the same length`)
  }
  t.end()
})

t.test('zstd streams that begin are paid for', async t => {
  const receiver = new Receiver(poolOf('decoder', SIMD, terms))
  const piece = zstdCompressSync(Buffer.of(1))
  const begin = (rawLength: number) => {
    const gives = Buffer.alloc(rawLength, 1)
    return handBatch(rawLength, checksum(gives, SEED), [
      {
        column: 0,
        method: 0,
        rawLength: op(OP.OTHER, rawLength).length,
        packed: Uint8Array.from(op(OP.OTHER, rawLength)),
      },
      rawLength === 1
        ? { column: 2, method: METHOD.ZSTD_FRESH, rawLength: 1, packed: piece }
        : { column: 2, method: METHOD.STORED, rawLength, packed: gives },
    ])
  }
  const sent: SentBatch[] = []
  const send = async (rawLength: number) => {
    sent.push(sentOf(begin(rawLength)))
    return receiver.receive(sent.at(-1)!)
  }
  for (let i = 0; i < 64; i++) await send(1)
  await send(16384 - 64 - 1)
  await send(1)
  t.equal(decodeSession({ seed: SEED, ...terms }, sent).outputs.length, 66, 'the second decoder counts alike')
  await t.rejects(send(1), { code: 'BATCH_FORMAT', what: /66 zstd streams begun within 16385 bytes/ })
  t.throws(() => decodeSession({ seed: SEED, ...terms }, sent), /more zstd streams/)
  receiver.close()
})

t.test('an encoder whose level changes with every batch begins no more streams than are paid for', async t => {
  const sender = new Sender(poolOf('encoder', SIMD, terms), EFFORTS[2]!)
  const receiver = new Receiver(poolOf('decoder', SIMD, terms))
  const channel = sender.open('unknown')
  let fresh = 0
  for (let i = 0; i < 200; i++) {
    sender.packing = EFFORTS[2 + (i % 2)]!
    const bytes = Buffer.from(`batch ${i} of a text that is long enough for zstd `.repeat(6))
    channel.push(bytes)
    const sent = (await sender.send(channel, true))!
    fresh += parseBatch([sent.bytes]).columns.filter(({ method }) => method === METHOD.ZSTD_FRESH).length
    t.ok((await receiver.receive(sent)).equals(bytes))
  }
  t.ok(fresh >= 64 && fresh <= 64 + 4, `${fresh} streams`)
  await sender.close()
  receiver.close()
})

// ---- turns and memory

type Taken = (bytes: Uint8Array, release: () => void) => void

/** An Inbound, and a maker of channels whose bytes go there. */
function inboundOf(
  expanded: Taken,
  slots = 3,
  memory?: Share,
): { inbound: Inbound; errors: unknown[]; channel(): InboundChannel } {
  const errors: unknown[] = []
  const pool = poolOf('decoder', SIMD, terms)
  const own = { ...pool, slots: Array.from({ length: slots }, () => pool.slots[0]!) }
  const channel = () => ({
    expander: new FlowExpander(1, new PoolRegions([terms.templates.length, terms.ring])),
    expanded,
  })
  return { inbound: new Inbound(own, SEED_WORDS, error => errors.push(error), '', memory), errors, channel }
}

t.test('batches that came together are expanded over many turns of the event loop', async t => {
  const rawLength = 200_000
  const gives = Buffer.alloc(rawLength)
  const batch = mixture(rawLength, [['other', 60_000]])
  const bytes = packed(batch, gives)
  let turn = 0
  let running = true
  const tick = () => {
    turn++
    if (running) setImmediate(tick)
  }
  const turnsOf = new Map<number, number>()
  const sides = [0, 1].map(() =>
    inboundOf((_bytes, release) => {
      turnsOf.set(turn, (turnsOf.get(turn) ?? 0) + 1)
      release()
    }),
  )
  setImmediate(tick)
  for (let i = 0; i < 40; i++) for (const { inbound, channel } of sides) inbound.push(channel(), [bytes])
  await Promise.all(sides.map(({ inbound }) => inbound.idle()))
  running = false
  t.same(
    sides.map(({ errors }) => errors),
    [[], []],
  )
  t.equal(
    [...turnsOf.values()].reduce((sum, n) => sum + n, 0),
    80,
  )
  // one costs 15 million steps, more than a turn may take, and one that is begun is ended
  t.ok(Math.max(...turnsOf.values()) <= 2, `at most ${Math.max(...turnsOf.values())} in a turn`)
  t.ok(turnsOf.size >= 27, `${turnsOf.size} turns`)
  for (const { inbound } of sides) inbound.close()
})

t.test('pieces that need no expanding are spread over turns, too, in their order', async t => {
  const { inbound } = inboundOf(() => {})
  let turn = 0
  let running = true
  const tick = () => {
    turn++
    if (running) setImmediate(tick)
  }
  setImmediate(tick)
  const order: number[] = []
  const turnsOf = new Map<number, number>()
  for (let i = 0; i < 20_000; i++) {
    inbound.mark(() => {
      order.push(i)
      turnsOf.set(turn, (turnsOf.get(turn) ?? 0) + 1)
    })
  }
  await inbound.idle()
  running = false
  t.same(
    order,
    Array.from({ length: 20_000 }, (_, i) => i),
  )
  t.ok(Math.max(...turnsOf.values()) <= 1100, `at most ${Math.max(...turnsOf.values())} in a turn`)
  inbound.close()
})

t.test("and what credit has not paid for of them is the budget's", async t => {
  const memory = new FairShares(4 << 20)
  const { inbound, errors, channel } = inboundOf((_bytes, release) => release(), 3, memory.share('peer'))
  const flow = channel()
  // the first ones take all of a turn; those behind them are far longer than what they give
  const busy = packed(mixture(200_000, [['other', 60_000]]), Buffer.alloc(200_000))
  const columns = Array.from({ length: 10 }, (_, column) => ({ column, method: 0, rawLength: 1026 }))
  const long = handBatch(
    1,
    0n,
    columns.map(column => ({ ...column, packed: Buffer.alloc(1026) })),
  )
  for (let i = 0; i < 3; i++) inbound.push(flow, [busy])
  let bytes = 0
  for (; errors.length === 0 && bytes < 9 << 20; bytes += long.length) inbound.push(flow, [long])
  t.match(errors, [{ code: 'LIMIT_EXCEEDED' }])
  t.ok(bytes > 2 << 20 && bytes < 4 << 20, `${bytes} bytes waited: 1 MiB, and half of the budget`)
  await inbound.idle()
  inbound.close()
  t.equal(memory.used, 0, 'given back')

  const other = inboundOf((_bytes, release) => release(), 3, memory.share('peer'))
  const gives = Buffer.alloc(65_536)
  const honest = packed(mixture(gives.length, []), gives)
  for (let i = 0; i < 400; i++) other.inbound.push(other.channel(), [honest])
  t.equal(memory.used, 0, 'an honest batch needs nothing of it')
  await other.inbound.idle()
  t.same(other.errors, [])
  other.inbound.close()
})

t.test('batches that wait are no longer on the wire than what they expand to pays for', async t => {
  const { inbound, errors, channel } = inboundOf((_bytes, release) => release())
  const flow = channel()
  // the first takes all of a turn; those behind it are long, and would fail when their time comes
  const busy = packed(mixture(200_000, [['other', 60_000]]), Buffer.alloc(200_000))
  const long = handBatch(
    1,
    0n,
    Array.from({ length: 10 }, (_, column) => ({ column, method: 0, rawLength: 1026, packed: Buffer.alloc(1026) })),
  )
  for (let i = 0; i < 3; i++) inbound.push(flow, [busy])
  let pushed = 0
  while (errors.length === 0 && pushed < 10_000) {
    inbound.push(flow, [long])
    pushed++
  }
  t.match(errors, [{ code: 'LIMIT_EXCEEDED', what: /^batches of \d+ bytes wait that expand to/ }])
  t.ok(pushed * long.length < (9 << 20) + 3 * 600_000, `${pushed} were kept`)
  await inbound.idle()
  inbound.close()
})

t.test('batches that have been expanded wait no more', async t => {
  const { inbound, errors, channel } = inboundOf((_bytes, release) => release())
  const bytes = packed(mixture(65_536, []), Buffer.alloc(65_536))
  let passed = 0
  for (; passed < 24 << 20 && errors.length === 0; passed += bytes.length) {
    inbound.push(channel(), [bytes])
    if (inbound.waiting > 100) await inbound.idle()
  }
  await inbound.idle()
  t.same(errors, [], `${passed} bytes, one behind the other`)
  inbound.close()
})

t.test('what waits for a QEMU takes its own bytes, however small the pieces', async t => {
  const held: Uint8Array[] = []
  const { inbound, errors, channel } = inboundOf(bytes => held.push(bytes))
  let raw = 0
  for (const rawLength of [1, 2, 100, 4096, 65_535, 65_536, 65_537, 65_538, 65_539, 70_000, MIB, 3]) {
    const gives = Buffer.alloc(rawLength)
    const bytes = packed(mixture(rawLength, []), gives)
    inbound.push(channel(), [bytes])
    raw += rawLength
  }
  await inbound.idle()
  t.same(errors, [])
  const shared = held.filter(({ buffer }) => buffer instanceof SharedArrayBuffer)
  t.equal(shared.length, 2, 'as many as there are slots, but for the one where small batches are made')
  t.ok(
    shared.every(({ length }) => length > 65_536),
    'a slot of a megabyte is not for a few bytes',
  )
  let own = 0
  for (const { buffer } of held) if (!(buffer instanceof SharedArrayBuffer)) own += buffer.byteLength
  for (const { length } of shared) raw -= length
  t.equal(own, raw, 'all others pin exactly their own bytes')
  inbound.close()
})
