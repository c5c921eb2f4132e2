/**
 * The codec: batches made by hand, batches that are wrong, and expand(encode(x)) = x over made-up guests, with the second
 * decoder beside ours.
 */

import { randomBytes } from 'node:crypto'
import { zstdCompressSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { parseBatch } from '../../src/codec/batch.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { BatchStats } from '../../src/codec/stats.ts'
import {
  BATCH_FORMAT,
  BATCH_RAW_MAX,
  COLUMN,
  columnBytesMax,
  EXPORT_NUMBER_MAX,
  EXTENDED,
  FORM,
  freshStreamsMax,
  LANE_SHIFT,
  METHOD,
  OP,
  operationsMax,
  PACKET_HEADER_SIZE,
  PAGE_NUMBER_MAX,
  PAGE_SIZE,
  PLACE_BLOCK_STEP,
  PLACE_MIGRATION_STEP,
  packedBytesMax,
  windowLogMax,
} from '../../src/codec/wire.ts'
import { EFFORTS, LZ4, RAW } from '../../src/compression/effort.ts'
import { loadLz4 } from '../../src/compression/lz4.ts'
import { ImmediateWriter } from '../../src/compression/zlib-now.ts'
import { ZstdPacker, ZstdUnpacker } from '../../src/compression/zstd-stream.ts'
import { isProxyError } from '../../src/errors.ts'
import { BATCH_WIRE_BYTES_MAX, NAME_EXTRA_BYTES, NAMES_BYTES_MAX, PATCH_COPIES_MAX } from '../../src/limits.ts'
import { Inbound } from '../../src/transfer/inbound.ts'
import { Outbound } from '../../src/transfer/outbound.ts'
import type { Pool } from '../../src/transfer/pool.ts'
import { Fuzzer } from '../fuzz/cases.ts'
import {
  badColumns,
  badHeads,
  badVectors,
  batchVectors,
  COLUMN_NAMES,
  type Columns,
  type VectorPool,
  wholeVectors,
} from '../vectors/codec/batches.ts'
import { encodeVectors } from '../vectors/codec/encoded.ts'
import { wireBytes } from '../vectors/qemu/notation.ts'
import { type HandColumn, handBatch, varint } from './hand-batch.ts'
import {
  BLOCKS,
  Channel,
  Guest,
  inRuns,
  mainStream,
  multifdStream,
  NATURE,
  NATURES,
  PAGE,
  PAGE_NATURES,
  type Packing,
  type PageSpec,
  poolOf,
  poolState,
  preemptStream,
  Receiver,
  random,
  run,
  SEED,
  SEED_WORDS,
  Sender,
  SIMD,
  secondOpinion,
  secondState,
  secondTerms,
  stateDifference,
  type Terms,
  templatePages,
} from './harness.ts'
import { checksum, decodeSession, type SentBatch } from './second-decoder.ts'

const bytes = (notation: string) => (notation.trim() === '' ? new Uint8Array(0) : wireBytes(notation).bytes)
const implementations = [...new Set([SIMD, 'twin'] as const)]

t.setTimeout(590_000)

/** Of streams of pages. */
const WINDOW_LOG = windowLogMax(COLUMN.PAGES)

/** Rejections that nobody waited for: a bad batch must leave none. */
const unhandled: unknown[] = []
process.on('unhandledRejection', reason => unhandled.push(reason))

// ---- batches by hand

function storedColumns(columns: Columns): HandColumn[] {
  return COLUMN_NAMES.flatMap((name, column) => {
    if (columns[name] === undefined) return []
    const packed = bytes(columns[name])
    return { column, method: 0, rawLength: packed.length, packed }
  })
}

const termsOfVector = new Map<VectorPool, Terms>()
const NO_POOL: VectorPool = {}
function vectorTerms(pool: VectorPool = NO_POOL): Terms {
  let terms = termsOfVector.get(pool)
  if (terms === undefined) {
    const { templates = [], ring = 0, places = 0, disks = false, cold } = pool
    terms = { templates: templates.map(bytes), ring, places, disks, ...(cold && { cold: cold.map(bytes) }) }
    termsOfVector.set(pool, terms)
  }
  return terms
}

const filled = (notation: string, gives: Uint8Array) =>
  bytes(notation.replace(' sum ', ` ${checksum(gives, SEED).toString(16).padStart(16, '0')} `))

/** What becomes of a batch: its bytes, or the error's code and text. Anything else is thrown. */
async function received(receiver: Receiver, sent: SentBatch): Promise<Buffer | string> {
  let timer: NodeJS.Timeout | undefined
  const hang = new Promise<never>((_, failed) => {
    timer = setTimeout(() => failed(new Error('it hangs')), 20_000)
  })
  try {
    return await Promise.race([receiver.receive(sent), hang])
  } catch (error) {
    if (isProxyError(error, 'BATCH_FORMAT') || isProxyError(error, 'BATCH_CHECKSUM')) return error.message
    throw error
  } finally {
    clearTimeout(timer)
  }
}

t.test('numbers of the wire', t => {
  t.same(
    [BATCH_FORMAT, BATCH_RAW_MAX, PAGE_SIZE, PACKET_HEADER_SIZE, PAGE_NUMBER_MAX, NAMES_BYTES_MAX, NAME_EXTRA_BYTES],
    [1, 1048576, 4096, 1344, 1099511627776, 32768, 32],
  )
  t.same([PLACE_BLOCK_STEP, PLACE_MIGRATION_STEP], [0x9e3779b1, 0x85ebca6b])
  t.same(
    { ...COLUMN },
    {
      OPS: 0,
      NUMBERS: 1,
      OTHER: 2,
      PAGES: 3,
      DENSE: 4,
      LENGTHS: 5,
      SOURCES: 6,
      SHIFTS: 7,
      HEADERS: 8,
      WORDS: 9,
      COLD: 10,
    },
  )
  t.same(
    COLUMN_NAMES.map((_, column) => windowLogMax(column)),
    [18, 18, 18, 23, 18, 18, 18, 18, 18, 23, 18],
  )
  t.same([operationsMax(1), operationsMax(BATCH_RAW_MAX)], [256, 349781])
  t.same([columnBytesMax(1), columnBytesMax(1000)], [1026, 3024])
  t.same([packedBytesMax(1), packedBytesMax(512)], [65, 578])
  t.same([freshStreamsMax(1), freshStreamsMax(16384)], [64, 65])
  t.equal(PATCH_COPIES_MAX, 512)
  t.same({ ...METHOD }, { STORED: 0, LZ4: 1, ZSTD: 2, ZSTD_FRESH: 3 })
  t.equal(LANE_SHIFT, 4)
  t.same(
    { ...OP },
    {
      EXTENDED: 0,
      ZERO: 1,
      REF: 2,
      SAME: 3,
      NEW: 4,
      DENSE: 5,
      PATCH: 6,
      FILL: 7,
      OTHER: 8,
      SKIP: 9,
      SEEK: 10,
      BLOCK: 11,
      DEFINE: 12,
      PACKET: 13,
      PASS: 14,
      WORDS: 15,
    },
  )
  t.same({ ...EXTENDED }, { COLD: 0, COLD_ONCE: 1, EXPORT: 2, MESSAGE: 3, KEEP: 4 })
  t.same({ ...FORM }, { REQUEST: 1, EXTENDED_REQUEST: 2, SIMPLE_REPLY: 3, DATA_CHUNK: 4, EXTENDED_DATA_CHUNK: 5 })
  t.equal(EXPORT_NUMBER_MAX, 2147483648)
  t.end()
})

t.test('whole batches', async t => {
  t.ok(wholeVectors.length > 0)
  for (const { name, batches } of wholeVectors) {
    const sent = batches.map(({ batch, gives }) => ({ flow: 1, migration: 1, bytes: filled(batch, bytes(gives)) }))
    const expected = batches.map(({ gives }) => Buffer.from(bytes(gives)))
    const receiver = new Receiver(poolOf('decoder', SIMD, vectorTerms()))
    for (const [i, batch] of sent.entries()) t.same(await received(receiver, batch), expected[i], `${name} ${i}`)
    t.same(decodeSession(secondTerms(vectorTerms()), sent).outputs, expected, `${name}: second decoder`)
    receiver.close()
  }
})

t.test('operations', async t => {
  t.ok(batchVectors.length > 0)
  for (const vector of batchVectors) {
    const { name, batches } = vector
    const terms = vectorTerms(vector.pool)
    const expected = batches.map(({ gives }) => Buffer.from(bytes(gives)))
    const sent = batches.map(({ flow = 1, migration = 1, columns }, i) => {
      const gives = expected[i]!
      return { flow, migration, bytes: handBatch(gives.length, checksum(gives, SEED), storedColumns(columns)) }
    })
    const second = decodeSession(secondTerms(terms), sent)
    t.same(second.outputs, expected, `${name}: second decoder`)
    if (vector.cursor !== undefined) t.equal(second.pool.cursor, vector.cursor, 'cursor')
    if (vector.marks !== undefined) t.equal(second.pool.marks.map(Number).join(''), vector.marks, 'marks')
    vector.ring?.forEach((page, i) => {
      t.same(second.pool.slots[terms.templates.length + i], Buffer.from(bytes(page)), `ring slot ${i}`)
    })
    if (vector.places !== undefined) {
      const places = Array.from({ length: terms.places }, (_, i) => second.pool.places.get(i) ?? '-')
      t.equal(places.join(), vector.places, 'places')
    }
    for (const implementation of implementations) {
      const receiver = new Receiver(poolOf('decoder', implementation, terms), false, terms)
      const wrong: string[] = []
      for (const [i, batch] of sent.entries()) {
        const got = await received(receiver, batch)
        if (typeof got === 'string') wrong.push(got)
        else if (!got.equals(expected[i]!)) wrong.push(`batch ${i} gives other bytes`)
      }
      const difference = stateDifference(poolState(receiver.pool), secondState(second.pool))
      if (difference) wrong.push(difference)
      t.same(wrong, [], `${name}: ${implementation}`)
      receiver.close()
    }
  }
})

// ---- what is wrong

t.test('batches that are wrong', async t => {
  const failsWith = async (name: string, receiver: Receiver, batch: Uint8Array, what: RegExp, offset?: number) => {
    const sent = { flow: 1, migration: 1, bytes: batch }
    let error: unknown
    try {
      await receiver.receive(sent)
    } catch (thrown) {
      error = thrown
    }
    if (!isProxyError(error)) return t.fail(`${name}: ${error}`)
    t.match(error, { code: /^BATCH_(FORMAT|CHECKSUM)$/, what }, name)
    if (offset !== undefined) t.equal(error.where?.offset, offset, `${name}: where`)
    return undefined
  }
  t.ok(badHeads.length > 0 && badVectors.length > 0 && badColumns.length > 0)
  for (const { name, batch, what, offset } of badHeads) {
    const receiver = new Receiver(poolOf('decoder', SIMD, vectorTerms()))
    await failsWith(name, receiver, filled(` ${batch} `, new Uint8Array(0)), what, offset)
    t.throws(() =>
      decodeSession(secondTerms(vectorTerms()), [
        { flow: 1, migration: 1, bytes: bytes(batch.replace('sum', '00*8')) },
      ]),
    )
  }
  for (const { name, pool, before, columns, rawLength = 4104, what, offset } of badVectors) {
    const terms = vectorTerms(pool)
    const sent: SentBatch[] = []
    if (before) {
      const gives = bytes(before.gives)
      const good = handBatch(gives.length, checksum(gives, SEED), storedColumns(before.columns))
      sent.push({ flow: 1, migration: 1, bytes: good })
    }
    const bad = handBatch(rawLength, 0n, storedColumns(columns))
    for (const implementation of implementations) {
      const receiver = new Receiver(poolOf('decoder', implementation, terms), false, terms)
      for (const batch of sent) await receiver.receive(batch)
      const startMs = performance.now()
      await failsWith(`${name}: ${implementation}`, receiver, bad, what, offset)
      t.ok(performance.now() - startMs < 2000, 'at once')
    }
    // some say a count that the second decoder would follow to its end
    if (/as often/.test(name)) continue
    t.throws(() => decodeSession(secondTerms(terms), [...sent, { flow: 1, migration: 1, bytes: bad }]), name)
  }
  for (const { name, method, raw, packed, what } of badColumns) {
    const ops = Uint8Array.of(0x80, ...varint(Math.max(raw - 16, 0)))
    const receiver = new Receiver(poolOf('decoder', SIMD, vectorTerms()))
    const batch = handBatch(raw, 0n, [
      raw < 16
        ? { column: 0, method: 0, rawLength: 1, packed: Uint8Array.of(0x80 | raw) }
        : { column: 0, method: 0, rawLength: ops.length, packed: ops },
      { column: 2, method, rawLength: raw, packed: bytes(packed) },
    ])
    await failsWith(name, receiver, batch, what)
    t.throws(() => decodeSession(secondTerms(vectorTerms()), [{ flow: 1, migration: 1, bytes: batch }]), name)
    receiver.close()
  }
})

t.test('LZ4 garbage beside zstd garbage', async t => {
  const other = handBatch(8, 0n, [
    { column: 0, method: 3, rawLength: 100, packed: bytes('ff*40') },
    { column: 1, method: 3, rawLength: 100, packed: bytes('28b52ffd 00 40 ff*100') },
    { column: 2, method: 1, rawLength: 100, packed: bytes('ff*40') },
    { column: 3, method: 2, rawLength: 100, packed: bytes('00') },
  ])
  for (let i = 0; i < 5; i++) {
    const receiver = new Receiver(poolOf('decoder', SIMD, vectorTerms()))
    t.match(await received(receiver, { flow: 1, migration: 1, bytes: other }), /^BATCH_FORMAT: .*LZ4/)
    receiver.close()
  }
  const zstd = handBatch(8, 0n, [
    { column: 0, method: 3, rawLength: 100, packed: bytes('ff*40') },
    { column: 1, method: 3, rawLength: 100, packed: bytes('fe*40') },
  ])
  const receiver = new Receiver(poolOf('decoder', SIMD, vectorTerms()))
  t.match(await received(receiver, { flow: 1, migration: 1, bytes: zstd }), /^BATCH_FORMAT: .*zstd/)
  // the stream is done for
  const next = handBatch(1, checksum(bytes('41'), SEED), [
    { column: 0, method: 0, rawLength: 1, packed: Uint8Array.of(0x81) },
    { column: 2, method: 0, rawLength: 1, packed: bytes('41') },
  ])
  t.same(await received(receiver, { flow: 1, migration: 1, bytes: next }), Buffer.from('A'))
  await new Promise(done => setTimeout(done, 50))
  t.same(unhandled, [])
  receiver.close()
})

t.test('a checksum of which any bit is wrong', async t => {
  const gives = bytes('"every-bit-counts"')
  const sum = checksum(gives, SEED)
  const columns = storedColumns({ ops: '80 00', other: '"every-bit-counts"' })
  const receiver = new Receiver(poolOf('decoder', SIMD, vectorTerms()))
  for (let bit = 0n; bit < 64n; bit++) {
    const batch = handBatch(gives.length, sum ^ (1n << bit), columns)
    t.match(await received(receiver, { flow: 1, migration: 1, bytes: batch }), /^BATCH_CHECKSUM/)
  }
  const good = handBatch(gives.length, sum, columns)
  t.same(await received(receiver, { flow: 1, migration: 1, bytes: good }), Buffer.from(gives))
})

/** @returns what a piece gives */
async function unpacked(unpacker: ZstdUnpacker, piece: Uint8Array, length: number): Promise<Buffer> {
  const out = Buffer.alloc(length)
  await unpacker.unpack(piece, out)
  return out
}

/** As on a Node where all goes through the thread pool, for the rest of a test. */
function nothingOnTheSpot(t: { teardown(call: () => void): void }): void {
  const { of } = ImmediateWriter
  ImmediateWriter.of = () => undefined
  t.teardown(() => {
    ImmediateWriter.of = of
  })
}

t.test('a zstd stream that is closed at work', async t => {
  const piece = bytes(`28b52ffd 00 68 ${'02001041 '.repeat(8)}`)
  const closed = new ZstdUnpacker(WINDOW_LOG)
  closed.close()
  await t.rejects(unpacked(closed, piece, 1048576), { code: 'BATCH_FORMAT' }, 'what comes after is told')
  nothingOnTheSpot(t)
  const unpacker = new ZstdUnpacker(WINDOW_LOG)
  t.ok((await unpacked(unpacker, piece, 1048576)).every(byte => byte === 0x41))
  const pending = unpacked(unpacker, bytes('02001041 '.repeat(8)), 1048576)
  unpacker.close()
  await t.rejects(pending, { code: 'BATCH_FORMAT' }, 'what waits for it is told')
  await t.rejects(unpacked(unpacker, piece, 1048576), { code: 'BATCH_FORMAT' }, 'and what comes after')
})

for (const immediate of [true, false]) {
  t.test(
    `pieces of all sizes through one zstd stream${immediate ? '' : ', where Node lets nothing be done on the spot'}`,
    async t => {
      if (!immediate) nothingOnTheSpot(t)
      for (const level of [1, 3, 7, 19]) {
        const packer = new ZstdPacker({ level, minMatch: 0, hashLog: 0, windowLog: 18 })
        const unpacker = new ZstdUnpacker(WINDOW_LOG)
        let now = 0
        const sizes = [1, 100, 4096, 4097, 8192, 16384, 16385, 32768, 32769, 200_000]
        for (let i = 0; i < 60; i++) {
          const size = sizes[(i * 7) % sizes.length]!
          const piece = i % 3 === 0 ? randomBytes(size) : Buffer.alloc(size, `piece ${i} of ${level} `)
          const packed = packer.pack(piece)
          if (Array.isArray(packed)) now++
          const out = Buffer.alloc(size)
          const later = unpacker.unpack(Buffer.concat(await packed), out)
          if (immediate) t.equal(later, undefined, `${size} bytes come out on the spot`)
          await later
          t.ok(out.equals(piece), `piece ${i} of ${size} bytes at level ${level}`)
        }
        t.equal(now > 0, immediate && level < 19, 'some were packed on the spot')
        packer.close()
        unpacker.close()
      }
      // damage, and pieces of another length than they promise
      const frame = zstdCompressSync(Buffer.alloc(3000, 'as it should be '))
      for (const [piece, length, what] of [
        [frame, 2999, /more than 2999/],
        [frame, 3001, /3000 bytes instead of 3001/],
        [Buffer.concat([frame, frame]), 3000, /more than 3000|ends within|6000 bytes instead/],
        [Buffer.concat([frame, frame]), 6000, /ends within|instead of 6000/],
        [Buffer.from('not zstd at all'), 3000, /damaged/],
      ] as const) {
        const unpacker = new ZstdUnpacker(WINDOW_LOG)
        await t.rejects(unpacked(unpacker, piece, length), { code: 'BATCH_FORMAT', message: what })
        await t.rejects(unpacked(unpacker, frame, 3000), { code: 'BATCH_FORMAT' }, 'nothing comes after')
      }
    },
  )
}

t.test('a zstd frame whose end just fills the output buffer of a Node stream', async t => {
  // one of these sizes leaves three bytes of 64 KiB for the three bytes of the end
  for (let size = 262_144 - 64; size <= 262_144; size++) {
    const packer = new ZstdPacker({ level: 1, minMatch: 0, hashLog: 0, windowLog: 18 })
    const piece = randomBytes(size)
    const packed = Buffer.concat(await packer.pack(piece))
    t.ok((await unpacked(new ZstdUnpacker(WINDOW_LOG), packed, size)).equals(piece), `${size} bytes`)
    packer.close()
  }
})

t.test('zstd frames end with a piece, and the next piece begins another', async t => {
  const packer = new ZstdPacker({ level: 1, minMatch: 0, hashLog: 0, windowLog: 18 })
  const unpacker = new ZstdUnpacker(WINDOW_LOG)
  const piece = (i: number) => Buffer.from(`piece ${i} `.repeat(1000 + i))
  const packed: Buffer[] = []
  for (let i = 0; i < 80; i++) packed.push(Buffer.concat(await packer.pack(piece(i))))
  for (const [i, bytes] of packed.entries())
    t.ok((await unpacked(unpacker, bytes, piece(i).length)).equals(piece(i)), `piece ${i}`)
  const begins = packed.flatMap((bytes, i) => (bytes.readUInt32LE(0) === 0xfd2fb528 ? [i] : []))
  t.ok(begins.length > 2, 'frames end before zstd has to turn around in its buffer')
  packer.close()
  // two frames in one piece, the length that it promises in the first
  const frame = zstdCompressSync(piece(0))
  for (const length of [piece(0).length, 2 * piece(0).length]) {
    await t.rejects(unpacked(new ZstdUnpacker(WINDOW_LOG), Buffer.concat([frame, frame]), length), {
      code: 'BATCH_FORMAT',
    })
    const batch = handBatch(length, 0n, [
      { column: 0, method: 0, rawLength: 1, packed: Uint8Array.of(0x81) },
      { column: 2, method: 3, rawLength: length, packed: Buffer.concat([frame, frame]) },
    ])
    t.throws(() => decodeSession(secondTerms(vectorTerms()), [{ flow: 1, migration: 1, bytes: batch }], false))
  }
  unpacker.close()
})

t.test('bombs take no memory', async t => {
  // 16 MiB out of 518 bytes; a window of 8 MiB in each column; a new stream in each batch
  const bomb = bytes(`28b52ffd 00 68 ${'02001041 '.repeat(128)}`)
  const piece = bytes(`28b52ffd 00 68 ${'02001041 '.repeat(8)}`)
  const columns = (packed: Uint8Array) =>
    COLUMN_NAMES.map((_, column) => ({ column, method: 3, rawLength: column === 8 ? 1344 : 1048576, packed }))
  const before = process.memoryUsage().rss
  const receiver = new Receiver(poolOf('decoder', SIMD, vectorTerms()))
  for (let i = 0; i < 6; i++) {
    t.match(
      await received(receiver, { flow: 1, migration: 1, bytes: handBatch(BATCH_RAW_MAX, 0n, columns(bomb)) }),
      /^BATCH_FORMAT/,
    )
    t.match(
      await received(receiver, { flow: 1, migration: 1, bytes: handBatch(BATCH_RAW_MAX, 0n, columns(piece)) }),
      /^BATCH_FORMAT/,
    )
  }
  receiver.close()
  const grown = (process.memoryUsage().rss - before) / 2 ** 20
  t.ok(grown < 250, `${grown.toFixed(0)} MiB`)
})

/** A session with every operation in it, in small batches. */
async function sampleSession(
  packing: Packing,
): Promise<{ terms: Terms; sent: readonly SentBatch[]; outputs: Buffer[] }> {
  const terms: Terms = { templates: templatePages(8), ring: 4, places: 16 }
  const guest = new Guest(terms.templates)
  const spec = (page: number, nature: number, a: number, b = 5): PageSpec => ({ block: 0, page, nature, a, b })
  const sender = new Sender(poolOf('encoder', SIMD, terms), packing)
  const main = sender.open('main')
  const multifd = sender.open('multifd')
  const stream = mainStream(guest, [
    [spec(0, NATURE.TEXT, 1), spec(1, NATURE.ZERO, 3), spec(9, NATURE.TEMPLATE, 2), spec(9, NATURE.KNOWN, 0)],
    [spec(0, NATURE.CHANGED, 0), spec(1, NATURE.FILL, 0, 7), { ...spec(3, NATURE.DENSE, 4), block: 1 }],
  ])
  const packets = multifdStream(guest, 0, [[spec(0, NATURE.KNOWN, 0), spec(5, NATURE.TEXT, 8)], []])
  for (const [channel, input] of [
    [main, stream],
    [multifd, packets],
  ] as const) {
    for (let at = 0; at < input.length; at += 7000) {
      channel.push(input.subarray(at, at + 7000))
      await sender.send(channel, at % 3 === 0 || at + 7000 >= input.length)
    }
  }
  await sender.close()
  return { terms, sent: sender.sent, outputs: decodeSession(secondTerms(terms), sender.sent).outputs }
}

/** Replaces batch `at` of a session by others. Counts what became of them, and says what should not have. */
async function tamper(
  session: Awaited<ReturnType<typeof sampleSession>>,
  at: number,
  batches: Iterable<Uint8Array>,
): Promise<{ same: number; refused: number; wrong: string[] }> {
  const { terms, sent, outputs } = session
  const found = { same: 0, refused: 0, wrong: [] as string[] }
  const decoders = sent.some(({ bytes }) => hasZstd(bytes)) ? [SIMD] : implementations
  for (const batch of batches) {
    const implementation = decoders[(found.same + found.refused) % decoders.length]!
    const receiver = new Receiver(poolOf('decoder', implementation, terms))
    for (const earlier of sent.slice(0, at)) await receiver.receive(earlier)
    const got = await received(receiver, { ...sent[at]!, bytes: batch })
    receiver.close()
    if (typeof got === 'string') found.refused++
    else if (got.equals(outputs[at]!)) found.same++
    else found.wrong.push(Buffer.from(batch).toString('hex'))
  }
  return found
}
const hasZstd = (batch: Uint8Array) => batch[2] !== undefined && batch.includes(0xb5)

function* mutations(batch: Uint8Array, values: readonly number[]): Generator<Uint8Array> {
  for (let at = 0; at < batch.length; at++) {
    for (const value of values) {
      const mutated = Uint8Array.from(batch)
      mutated[at]! ^= value
      yield mutated
    }
  }
}
function* truncations(batch: Uint8Array, step: number): Generator<Uint8Array> {
  for (let length = 0; length < batch.length; length += length < 200 ? 1 : step) yield batch.subarray(0, length)
}

t.test('every byte of a batch mutated, every byte its last', async t => {
  for (const [packing, values] of [
    [{ method: 'as they are', longMatch: true }, [1, 0x80]],
    [LZ4, [0x11]],
    [EFFORTS[3]!, [0x41]],
  ] as const) {
    const session = await sampleSession(packing)
    t.ok(session.sent.length > 4)
    // the smallest batch of pages with every byte, others here and there
    const order = session.sent.map((_, i) => i).filter(i => i > 0)
    order.sort((a, b) => session.sent[a]!.bytes.length - session.sent[b]!.bytes.length)
    let mutated = 0
    for (const at of order.slice(0, 3)) {
      const { bytes: batch } = session.sent[at]!
      const few = batch.length > 1500 ? batch.length : 0
      const list = few
        ? [...mutations(batch, [0x41])].filter((_, i) => i < 200 || i % 37 === 0)
        : mutations(batch, values)
      const byValue = await tamper(session, at, list)
      const byLength = await tamper(session, at, truncations(batch, 41))
      t.same([...byValue.wrong, ...byLength.wrong], [], `batch ${at} of ${batch.length} bytes`)
      t.equal(byLength.same, 0, 'no part of a batch is a batch')
      t.ok(byValue.refused > 0)
      mutated += byValue.refused + byValue.same + byLength.refused
    }
    t.ok(mutated > 300, `${mutated} batches`)
  }
  t.same(unhandled, [])
})

t.test('a batch that comes twice, late or not at all', async t => {
  const session = await sampleSession({ method: 'as they are', longMatch: true })
  let refused = 0
  for (let at = 1; at < session.sent.length; at++) {
    // what is left out, or said again, shows in the bytes or in nothing
    const receiver = new Receiver(poolOf('decoder', SIMD, session.terms))
    for (const [i, sent] of session.sent.entries()) {
      if (i === at) continue
      const got = await received(receiver, sent)
      if (typeof got !== 'string') t.ok(got.equals(session.outputs[i]!))
      else {
        refused++
        break
      }
    }
  }
  t.ok(refused > 0)
})

// ---- the encoder

/** Bytes as hex, long runs of one byte as the notation has them. */
const spelled = (raw: Uint8Array) =>
  Buffer.from(raw)
    .toString('hex')
    .replace(/(..)\1{15,}/g, (run, byte) => ` ${byte}*${run.length / 2} `)

t.test('what the encoder says', t => {
  t.ok(encodeVectors.length > 0)
  for (const { name, kind, pool, pushes } of encodeVectors) {
    for (const implementation of implementations) {
      const terms = vectorTerms(pool)
      const packing = { method: 'as they are', longMatch: true } as const
      const sender = new Sender(poolOf('encoder', implementation, terms), packing, false, terms)
      const channel = sender.open(kind)
      const got = pushes.map(({ input, release, raw = false }) => {
        channel.push(bytes(input))
        sender.isRaw = () => raw
        const columns: Record<string, string> = {}
        if (!sender.sendNow(channel, release ?? false)) return columns
        for (const [column, columnName] of COLUMN_NAMES.entries()) {
          const raw = sender.pool.workspaces[0]!.column(column)
          if (raw.length > 0) columns[columnName] = spelled(raw)
        }
        return columns
      })
      const expected = pushes.map(({ columns }) =>
        Object.fromEntries(Object.entries(columns).map(([column, text]) => [column, spelled(bytes(text))])),
      )
      t.same(got, expected, `${name}: ${implementation}`)
    }
  }
  t.end()
})

/**
 * Encodes a channel cut once, the first part released or not, and expands it. '' or what is wrong.
 * @param raw which of its up to three batches are raw
 */
function cutOnce(
  kind: 'main' | 'multifd' | 'preempt',
  input: Uint8Array,
  cut: number,
  terms: Terms,
  raw: readonly boolean[] = [],
): string {
  const sender = new Sender(poolOf('encoder', cut % 5 === 0 ? 'twin' : SIMD, terms), {
    method: 'as they are',
    longMatch: cut % 3 > 0,
  })
  sender.isRaw = () => raw[sender.sent.length] === true
  const receiver = new Receiver(poolOf('decoder', cut % 7 === 0 ? 'twin' : SIMD, terms))
  const channel = sender.open(kind)
  const outputs: Buffer[] = []
  for (const part of [input.subarray(0, cut), input.subarray(cut)]) {
    channel.push(part)
    const sent = sender.sendNow(channel, cut % 4 > 0)
    if (sent) outputs.push(receiver.receiveNow(sent))
  }
  const sent = sender.sendNow(channel, true)
  if (sent) outputs.push(receiver.receiveNow(sent))
  if (!Buffer.concat(outputs).equals(input)) return 'bytes differ'
  return cut % 16 ? '' : stateDifference(poolState(sender.pool), poolState(receiver.pool))
}

t.test('cut at every byte', t => {
  const terms: Terms = { templates: templatePages(8), ring: 8, places: 64 }
  const spec = (page: number, nature: number, a: number): PageSpec => ({ block: 0, page, nature, a, b: 5 })
  const guest = new Guest(terms.templates)
  const main = mainStream(guest, [
    [
      spec(0, NATURE.ZERO, 2),
      spec(7, NATURE.TEMPLATE, 1),
      { ...spec(1, NATURE.ZERO, 0), block: 1 },
      spec(2, NATURE.XBZRLE, 9),
    ],
    [spec(7, NATURE.TEMPLATE_CHANGED, 1), { ...spec(57, NATURE.ZERO, 0), block: 3 }, spec(0, NATURE.FILL, 0)],
  ])
  const inputs = [
    ['main', main],
    [
      'multifd',
      multifdStream(guest, 3, [[spec(1, NATURE.TEMPLATE, 3), spec(0, NATURE.ZERO, 0), spec(2, NATURE.TEXT, 3)], []]),
    ],
    ['preempt', preemptStream(guest, [spec(4, NATURE.KNOWN, 0), spec(5, NATURE.ZERO, 1)])],
  ] as const
  for (const [kind, input] of inputs) {
    const wrong: string[] = []
    for (let cut = 0; cut <= input.length; cut++) {
      // bodies of pages: every byte of the first, some of the others
      if (cut > 6000 && cut % 23 !== 0) continue
      for (const raw of [[], [true, false, false], [false, true, false], [false, false, true], [true, true, true]]) {
        const found = cutOnce(kind, input, cut, terms, raw)
        if (found) wrong.push(`${cut}, raw ${raw}: ${found}`)
      }
    }
    t.same(wrong, [], `${kind}: ${input.length} bytes`)
  }
  t.end()
})

const anySpec = (natures: number): fc.Arbitrary<PageSpec> =>
  fc.record({
    block: fc.constantFrom(0, 0, 0, 0, 0, 1, 2, 3),
    page: fc.oneof(fc.nat(11), fc.nat(11), fc.nat(11), fc.nat(300)),
    nature: fc.oneof(fc.nat(natures - 1), fc.constantFrom(NATURE.AGAIN, NATURE.KNOWN, NATURE.CHANGED, NATURE.TEMPLATE)),
    a: fc.nat(60),
    b: fc.nat(999),
  })
const withRecords = anySpec(NATURES)
const pagesOnly = anySpec(PAGE_NATURES)
const anyPacking = fc.constantFrom<Packing>(
  { method: 'as they are', longMatch: true },
  { method: 'as they are', longMatch: true },
  { method: 'as they are', longMatch: false },
  EFFORTS[2]!,
)

const anyRun = fc.record({
  main: fc.array(fc.array(withRecords, { maxLength: 12, size: 'max' }), { maxLength: 4 }),
  multifd: fc.array(fc.array(fc.array(pagesOnly, { maxLength: 6 }), { maxLength: 4 }), { maxLength: 2 }),
  preempt: fc.option(fc.array(withRecords, { maxLength: 8 })),
  /** Another migration in the same session. */
  other: fc.option(fc.array(withRecords, { maxLength: 6 })),
  templates: fc.constantFrom(0, 8),
  /** Pages of sets on the disk: the first of those that templates are made of, or others. */
  cold: fc.constantFrom(undefined, 4, 24),
  ring: fc.constantFrom(0, 1, 2, 8, 64),
  places: fc.constantFrom(0, 1, 16, 1024),
  encoder: fc.constantFrom(SIMD, 'twin' as const),
  decoder: fc.constantFrom(SIMD, 'twin' as const),
  packing: anyPacking,
  rawOneIn: fc.constantFrom(0, 0, 1, 2, 5),
  seed: fc.nat(),
  pushMax: fc.constantFrom(50, 5000, 30_000, 30_000),
})

const total = new BatchStats()

t.test('expand(encode(x)) = x: main, multifd and preempt over one pool, cut and released anywhere', async t => {
  await fc.assert(
    fc.asyncProperty(anyRun, async made => {
      const { templates, ring, places } = made
      const cold = made.cold === undefined ? {} : { cold: templatePages(made.cold) }
      const terms: Terms = { templates: templatePages(templates), ring, places, ...cold }
      const guest = new Guest(made.cold === undefined ? terms.templates : templatePages(Math.max(templates, made.cold)))
      const scenario = {
        ...made,
        terms,
        channels: [
          { kind: 'main' as const, bytes: mainStream(guest, made.main.map(inRuns)) },
          ...made.multifd.map((packets, i) => ({
            kind: 'multifd' as const,
            bytes: multifdStream(guest, i, packets.map(inRuns)),
          })),
          ...(made.preempt ? [{ kind: 'preempt' as const, bytes: preemptStream(guest, inRuns(made.preempt)) }] : []),
          ...(made.other ? [{ kind: 'main' as const, migration: 2, bytes: mainStream(guest, [made.other]) }] : []),
        ],
      }
      const outcome = await run(scenario)
      if (outcome.wrong) throw new Error(outcome.wrong)
      for (const { flow } of outcome.channels) total.add(flow.stats)
      const difference = secondOpinion(terms, scenario.channels, outcome)
      if (difference) throw new Error(difference)
    }),
    { seed: 20251123, numRuns: Number(process.env.CODEC_RUNS ?? 120) },
  )
  for (const key of [
    'zeroPages',
    'fillPages',
    'samePages',
    'templatePages',
    'coldPages',
    'earlierPages',
    'patchPages',
    'newPages',
    'densePages',
    'rawPages',
    'opaquePages',
    'other',
  ] as const) {
    t.ok(total[key] > 10, `${key}: ${total[key]}`)
  }
})

t.test('every effort, and from one to another in the middle', async t => {
  const terms: Terms = { templates: templatePages(8), ring: 64, places: 1024 }
  const rand = random(6) // pages that match nothing are in every batch
  const specs = Array.from({ length: 150 }, () => ({
    block: 0,
    page: rand(64),
    nature: rand(PAGE_NATURES),
    a: rand(50),
    b: rand(999),
  }))
  const input = mainStream(new Guest(terms.templates), [specs.slice(0, 80), specs.slice(80)])
  const [none, sparse, long, lazy, slow] = EFFORTS
  const changing = [lazy, LZ4, RAW, long, lazy, none, RAW, slow, sparse]
  for (const effort of [...EFFORTS, LZ4, undefined]) {
    const sender = new Sender(poolOf('encoder', SIMD, terms), effort ?? none!)
    const receiver = new Receiver(poolOf('decoder', SIMD, terms))
    const channel = sender.open('main')
    const parts: Buffer[] = []
    for (let at = 0, i = 0; at < input.length; at += 60_000, i++) {
      channel.push(input.subarray(at, at + 60_000))
      if (effort === undefined) sender.packing = changing[i % 9]!
      parts.push(await receiver.receive((await sender.send(channel, at + 60_000 >= input.length))!))
    }
    t.ok(Buffer.concat(parts).equals(input), `effort ${effort?.level}`)
    const streams = sender.sent.filter(sent =>
      parseBatch([sent.bytes]).columns.some(
        ({ column, method }) => column === COLUMN.PAGES && method === METHOD.ZSTD_FRESH,
      ),
    )
    t.equal(streams.length > 1, effort === undefined, 'a new level is a new stream')
    const words = sender.sent.some(sent =>
      parseBatch([sent.bytes]).columns.some(({ column }) => column === COLUMN.WORDS),
    )
    t.equal(words, effort?.longMatch !== 0, 'pages of numbers came as WORDS')
    t.equal(stateDifference(poolState(sender.pool), poolState(receiver.pool)), '')
    const second = decodeSession(secondTerms(terms), sender.sent)
    t.ok(Buffer.concat(second.outputs).equals(input), 'second decoder')
    await sender.close()
    receiver.close()
  }
})

t.test('batches of a mebibyte: the most that each column can hold', async t => {
  const terms: Terms = { templates: templatePages(8), ring: 64, places: 1024 }
  const rand = random(11)
  const until = (add: (out: StreamEmitter, i: number) => void): Uint8Array => {
    const out = new StreamEmitter()
    for (let i = 0; out.position < BATCH_RAW_MAX; i++) add(out, i)
    return out.bytes().subarray(0, BATCH_RAW_MAX)
  }
  const pageAt = (high: number) => rand(high) * 2 ** 32 + rand(2 ** 20) * PAGE
  const first = 'pc.ram'
  const body = new Uint8Array(PAGE)
  const nothing = multifdStream(
    new Guest([]),
    0,
    Array.from({ length: 900 }, () => []),
  )
  const many = () =>
    Array.from({ length: 128 }, (_, i) => ({ block: 0, page: i, nature: [1, 2, 5, 8][i % 4]!, a: i, b: i }))
  const full = multifdStream(new Guest(terms.templates), 0, [many(), many()])
  const inputs: [string, 'preempt' | 'multifd' | 'unknown', Uint8Array][] = [
    ['zero records in no order', 'preempt', until((out, i) => out.zero(pageAt(2 ** 20 - 1), i ? undefined : first))],
    ['zero records in order', 'preempt', until((out, i) => out.zero(i * PAGE, i ? undefined : first))],
    [
      'named zero records of 250 RAMBlocks',
      'preempt',
      until(out => out.zero(pageAt(2 ** 20 - 1), String.fromCharCode(1 + rand(250)))),
    ],
    ['4096 RAMBlocks', 'preempt', until((out, i) => out.zero(pageAt(2 ** 20 - 1), (i % 4096).toString(36)))],
    [
      'pages of one byte',
      'preempt',
      until((out, i) => out.page(pageAt(9), body.fill(rand(256)), i ? undefined : first)),
    ],
    [
      'pages of pieces',
      'preempt',
      until((out, i) => {
        for (let at = 0; at < PAGE; at += 17 + rand(30)) {
          body.set(terms.templates[rand(8)]!.subarray(rand(4000), 4096).subarray(0, PAGE - at), at)
        }
        out.page(pageAt(1), body, i ? undefined : first)
      }),
    ],
    ['packets without pages', 'multifd', nothing.subarray(0, BATCH_RAW_MAX)],
    ['packets of 128 pages', 'multifd', full.subarray(0, BATCH_RAW_MAX)],
    ['noise', 'unknown', Uint8Array.from({ length: BATCH_RAW_MAX }, () => rand(256))],
    ['a text', 'unknown', Buffer.from('all work and no play makes '.repeat(40_000)).subarray(0, BATCH_RAW_MAX)],
  ]
  for (const [name, kind, input] of inputs) {
    for (const packing of [{ method: 'as they are', longMatch: true } as const, LZ4, EFFORTS[2]!]) {
      const sender = new Sender(poolOf('encoder', SIMD, terms), packing)
      const receiver = new Receiver(poolOf('decoder', SIMD, terms))
      const channel = sender.open(kind)
      channel.push(input)
      const sent = (await sender.send(channel, true))!
      t.ok(sent.bytes.length <= BATCH_WIRE_BYTES_MAX, `${name}, ${packing.method}: ${sent.bytes.length} bytes`)
      t.ok((await receiver.receive(sent)).equals(input), 'the same')
      await sender.close()
      receiver.close()
    }
  }
})

t.test('the other LZ4', async t => {
  const terms: Terms = { templates: [], ring: 8, places: 64 }
  const input = mainStream(new Guest([]), [[{ block: 0, page: 0, nature: NATURE.TEXT, a: 1, b: 1 }]])
  const before = loadLz4().implementation
  for (const [encoder, decoder] of [
    ['lz4', 'lz4-napi'],
    ['lz4-napi', 'lz4'],
  ] as const) {
    try {
      loadLz4(encoder)
    } catch {
      t.comment(`${encoder} cannot be loaded here`)
      continue
    }
    const sender = new Sender(poolOf('encoder', SIMD, terms), LZ4)
    const channel = sender.open('main')
    channel.push(input)
    const sent = (await sender.send(channel, true))!
    loadLz4(decoder)
    const receiver = new Receiver(poolOf('decoder', SIMD, terms))
    t.ok((await receiver.receive(sent)).equals(Buffer.from(input)), `${encoder} to ${decoder}`)
    for (const { name, method, raw, packed } of badColumns) {
      if (method !== 1) continue
      const batch = handBatch(raw, 0n, [{ column: 2, method, rawLength: raw, packed: bytes(packed) }])
      t.equal(
        typeof (await received(receiver, { flow: 0, migration: 1, bytes: batch })),
        'string',
        `${decoder}: ${name}`,
      )
    }
    await sender.close()
  }
  loadLz4(before)
})

t.test('Outbound and Inbound: batches in order, memory lent and given back', async t => {
  const terms: Terms = { templates: templatePages(8), ring: 64, places: 1024 }
  const rand = random(9)
  const warmed = [0, 0]
  const counted = (side: number, pool: Pool): Pool => ({
    ...pool,
    warm: async () => {
      warmed[side]!++
    },
  })
  const encoderPool = counted(0, poolOf('encoder', SIMD, terms))
  // one slot to lend, and the scratch
  const decoderPool = counted(1, poolOf('decoder', SIMD, terms))
  const spare = poolOf('decoder', SIMD, { ...terms, ring: 32 })
  t.not(spare, decoderPool)
  const errors: unknown[] = []
  const guest = new Guest(terms.templates)
  const inputs = [0, 1].map(() =>
    mainStream(guest, [
      Array.from({ length: 120 }, () => ({ block: 0, page: rand(64), nature: rand(10), a: rand(50), b: rand(999) })),
    ]),
  )
  const got: Buffer[][] = [[], []]
  const { FlowExpander } = await import('../../src/codec/flow-expander.ts')
  const flows = [0, 1].map(i => ({
    expander: new FlowExpander(1, new PoolRegions([terms.templates.length, terms.ring])),
    expanded(view: Uint8Array, release: () => void) {
      got[i]!.push(Buffer.from(view))
      release()
    },
  }))
  const inbound = new Inbound({ ...decoderPool, slots: [decoderPool.slots[0]!] }, SEED_WORDS, error =>
    errors.push(error),
  )
  const channels = inputs.map((_, i) => new Channel(encoderPool, i, 'main', 1, {}))
  const outbound = new Outbound(
    encoderPool,
    SEED_WORDS,
    (channel: Channel, parts) => inbound.push(flows[channels.indexOf(channel)]!, [Buffer.concat(parts)]),
    error => errors.push(error),
  )
  let marks = 0
  for (let at = 0; at < Math.max(...inputs.map(({ length }) => length)); at += 100_000) {
    for (const [i, input] of inputs.entries()) {
      channels[i]!.push(input.subarray(at, at + 100_000))
      await outbound.room()
      outbound.encode(channels[i]!, EFFORTS[rand(5)]!, at + 100_000 >= input.length)
    }
    inbound.mark(() => marks++)
  }
  await outbound.idle()
  await inbound.idle()
  t.same(errors, [])
  t.same([outbound.underWay, inbound.waiting], [0, 0])
  t.ok(marks > 0)
  t.ok(warmed[0]! > 4 && warmed[0] === warmed[1], `each batch has the ring made ready, at both sides: ${warmed}`)
  inputs.forEach((input, i) => {
    t.ok(Buffer.concat(got[i]!).equals(input), `flow ${i}`)
  })
  // a damaged batch is told once, and nothing comes after it
  const seen = got[0]!.length
  inbound.push(flows[0]!, [bytes('02')])
  inbound.push(flows[0]!, [filled(' 01 01 sum 02 00 00 01 02 00 01 81 41 ', bytes('41'))])
  await inbound.idle()
  t.equal(errors.length, 1)
  t.match(errors[0], { code: 'BATCH_FORMAT' })
  t.equal(got[0]!.length, seen)
  await outbound.close()
  inbound.close()
})

// ---- finds: each was a defect once

t.test('PATCH pages whose places have numbers like slots', async t => {
  // the encoder took the number of a place for the slot that it had
  const terms: Terms = { templates: templatePages(8), ring: 8, places: 16 }
  for (const places of [0, 16]) {
    const guest = new Guest(terms.templates)
    const specs = Array.from({ length: 40 }, (_, i) => ({
      block: 0,
      page: i % 20,
      nature: [NATURE.TEMPLATE_CHANGED, NATURE.CHANGED, NATURE.FILL, NATURE.KNOWN][i % 4]!,
      a: i % 9,
      b: i,
    }))
    const outcome = await run({
      terms: { ...terms, places },
      channels: [{ kind: 'main', bytes: mainStream(guest, [specs]) }],
      encoder: SIMD,
      decoder: SIMD,
      packing: { method: 'as they are', longMatch: true },
      seed: 1,
      pushMax: 30_000,
    })
    t.equal(outcome.wrong, '')
    t.ok(outcome.channels[0]!.flow.stats.patchPages > 8, `${outcome.channels[0]!.flow.stats.patchPages} PATCH pages`)
  }
})

t.test('a pool used again has no marks, not even of slots that were never written', async t => {
  // a pool of the session before and a new one would have taken different slots for the same pages
  const terms: Terms = { templates: [], ring: 4, places: 0 }
  const empty = poolState(poolOf('decoder', SIMD, terms))
  const receiver = new Receiver(poolOf('decoder', SIMD, terms))
  const page = Buffer.concat([bytes('0000000000000028'), Buffer.alloc(PAGE)])
  const ref = handBatch(page.length, checksum(page, SEED), storedColumns({ ops: '21', numbers: '09' }))
  t.same(await received(receiver, { flow: 1, migration: 1, bytes: ref }), page)
  t.equal(stateDifference(empty, poolState(receiver.pool)), 'marks')
  t.equal(stateDifference(empty, poolState(poolOf('decoder', SIMD, terms))), '')
})

t.test('pages that no batch can number', t => {
  const huge = BLOCKS[3]!.idstr
  const stream = new StreamEmitter().header().ramStart(2, BLOCKS).eos().footer(2).sectionPart(2)
  stream
    .zero(2 ** 52 - PAGE, huge)
    .zero(2 ** 52)
    .page(2 ** 52 + PAGE, new Uint8Array(PAGE).fill(7))
  stream
    .zero(2 ** 52, huge)
    .zero(0)
    .page(2 ** 52 - PAGE, new Uint8Array(PAGE).fill(7))
    .zero(2 ** 52)
  const input = stream.eos().bytes()
  const terms: Terms = { templates: [], ring: 8, places: 16 }
  const sender = new Sender(poolOf('encoder', SIMD, terms), { method: 'as they are', longMatch: true })
  const channel = sender.open('main')
  channel.push(input)
  const sent = sender.sendNow(channel, true)!
  t.ok(new Receiver(poolOf('decoder', SIMD, terms)).receiveNow(sent).equals(Buffer.from(input)))
  t.same(decodeSession(secondTerms(terms), [sent]).outputs, [Buffer.from(input)])
  t.equal(channel.flow.stats.zeroPages, 2)
  t.end()
})

t.test('fuzzing, a moment of it', async t => {
  const fuzzer = new Fuzzer(20251123)
  const finds: string[] = []
  const startMs = performance.now()
  let cases = 0
  for (; cases < 3000 && (cases < 400 || performance.now() - startMs < 4000); cases++) {
    const find = await fuzzer.run(cases)
    if (find) finds.push(`FUZZ_SEED=20251123 FUZZ_CASE=${cases} node test/fuzz/fuzz.ts: ${find.kind}: ${find.text}`)
  }
  t.same(finds, [], `${cases} cases`)
})

t.test('no rejection was left alone', async t => {
  await new Promise(done => setTimeout(done, 20))
  t.same(unhandled, [])
})

t.test('regions of the pool, two as today and more', t => {
  for (const sizes of [
    [5, 7],
    [0, 3],
    [4, 0],
    [5, 7, 2],
    [0, 0, 4],
    [1, 1, 1, 1],
  ]) {
    const regions = new PoolRegions(sizes)
    const all = sizes.reduce((sum, size) => sum + size, 0)
    t.equal(regions.pages, all)
    const found = Array.from({ length: all }, (_, slot) => regions.regionOf(slot))
    t.same(
      found,
      sizes.flatMap((size, region) => Array<number>(size).fill(region)),
      `slots of ${sizes}`,
    )
    for (const [region, size] of sizes.entries()) {
      const from = regions.starts[region]!
      t.ok(regions.hold(region, from, size), 'all of it')
      t.notOk(regions.hold(region, from, size + 1), 'one more')
      t.notOk(regions.hold(region, from - 1, 1), 'the one before')
      for (const delta of [0, 1, -1, 2 ** 31, -(2 ** 31)]) {
        const number = regions.encode(region, delta)
        t.same([regions.regionIn(number), regions.deltaIn(number)], [region, delta])
      }
    }
  }
  const two = new PoolRegions([5, 7])
  t.same([two.encode(0, 3), two.encode(1, 3), two.encode(1, -3)], [12, 13, 11], 'as protocol.md has it for two')
  t.end()
})
