/** Batches that helpers unpack before their turn: the same bytes, errors and places as without, bounded, and cleanly over. */
import { setImmediate as nextTurn } from 'node:timers/promises'
import t from 'tap'
import { CHUNKS } from '../../src/bytes/chunks.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { isProxyError } from '../../src/errors.ts'
import { decodeStream } from '../../src/file/encoded-file-reader.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import type { DecodingHelp } from '../../src/transfer/helpers/decoding-help.ts'
import { AHEAD_SLOT_BYTES, UnpackAhead } from '../../src/transfer/helpers/unpack-ahead.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { handBatch } from '../codec/hand-batch.ts'
import { madeUp, random } from '../codec/harness.ts'
import { batchesOf, DecodingEnd } from './ends.ts'
import { FaultyHelpers } from './faulty-helpers.ts'
import { Wire } from './wire.ts'

t.setTimeout(590_000) // the machine may be busy

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
  const input = madeUp(1, 500)
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
  const input = madeUp(2, 400)
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

t.test('a damaged batch ends its session in its turn, not those of others on the same helper', async t => {
  const guest = madeUp(4, 1200)
  const batches = await batchesOf(new Pools({ unusedMs: 0 }), guest, 3)
  const pools = new Pools({ threads: 2, unusedMs: 0 })
  // whole, damaged in a column, no batch at all
  const ends = await Promise.all(['a', 'b', 'c'].map(holder => DecodingEnd.open(pools, holder)))
  const [whole, bent, none] = ends as [DecodingEnd, DecodingEnd, DecodingEnd]
  for (const [i, batch] of batches.entries()) {
    whole.push(batch)
    const bad = Buffer.from(batch)
    if (i === 2) bad[bad.length - 1] = bad[bad.length - 1]! ^ 0xff
    bent.push(bad)
    if (i === 2) bad[0] = 9
    none.push(bad)
  }
  for (const { inbound } of ends) await inbound.idle()
  t.same(whole.errors, [])
  t.ok(whole.got.equals(guest))
  t.match(bent.errors, [{ code: /^BATCH_/ }])
  t.match(none.errors, [
    { code: 'BATCH_FORMAT', what: 'unknown batch format 9', where: { stream: 'batch', offset: 0 } },
  ])
  for (const { errors, got } of [bent, none]) {
    t.equal(errors.length, 1)
    t.ok(got.length > 0 && got.length < guest.length && got.equals(guest.subarray(0, got.length)))
  }
  t.equal(bent.got.length, none.got.length, 'the two before it, and nothing more')
  for (const end of ends) await end.close()
})

t.test('memory is given back once no helper writes to it any more', async t => {
  const batches = await batchesOf(new Pools({ unusedMs: 0 }), madeUp(5, 300), 3)
  const side = new FaultyHelpers({ at: 'unpack', what: 'late' })
  const pools = new Pools({ threads: 2, startHelper: side.start })
  const end = await DecodingEnd.open(pools)
  end.push(batches[0]!)
  await side.failing()
  const [slot] = end.pool.decoding!.slots.slice(-1)
  const memory = end.pool.kernel.bytes
  const done: string[] = []
  const closed = end.close().then(() => done.push('closed'))
  const next = DecodingEnd.open(pools).then(opened => {
    done.push('opened')
    return opened
  })
  for (let turn = 0; turn < 1000; turn++) await nextTurn()
  t.same(done, [], 'a helper is still at it')
  Atomics.store(side.gate, 0, 1)
  Atomics.notify(side.gate, 0)
  await closed
  await (await next).close()
  t.ok(
    memory.subarray(slot!, slot! + AHEAD_SLOT_BYTES).every(byte => byte === 0),
    'and it is clean',
  )
})

t.test(
  'memory that the WAN was read into comes back once a helper has what it needs, and is not read any more',
  async t => {
    CHUNKS.poison = 0xdd
    const guest = madeUp(8, 600)
    for (const effort of [3, 0]) {
      const batches = await batchesOf(new Pools({ unusedMs: 0 }), guest, effort)
      for (const threads of [2, 4]) {
        const end = await DecodingEnd.open(new Pools({ threads, unusedMs: 0 }))
        while (CHUNKS.waiting > 0) CHUNKS.take()
        const wire = new Wire()
        const { reused } = CHUNKS
        for (const batch of batches) {
          end.push(batch, wire.parts(batch))
          await nextTurn()
        }
        await end.inbound.idle()
        wire.close()
        t.same(end.errors, [])
        t.ok(end.got.equals(guest), `effort ${effort}, ${threads} threads`)
        const taken = wire.taken - (CHUNKS.reused - reused)
        t.equal(CHUNKS.waiting, Math.min(24, taken), `of ${taken} chunks`)
        await end.close()
      }
    }
  },
)

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
  const ahead = new UnpackAhead(streams as unknown as DecodingHelp, bytes, slots, '')
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
  const ahead = new UnpackAhead(streams as unknown as DecodingHelp, new Uint8Array(AHEAD_SLOT_BYTES), [0], '')
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
        streams as unknown as DecodingHelp,
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

t.test('whoever waits for a helper that ends is told, whatever it says meanwhile', async t => {
  const batches = await batchesOf(new Pools({ unusedMs: 0 }), madeUp(6, 300), 3)
  for (let i = 0; i < 10; i++) {
    const side = new FaultyHelpers({ at: 'close', what: 'exit' })
    const end = await DecodingEnd.open(new Pools({ threads: 2, unusedMs: 0, startHelper: side.start }))
    for (const batch of batches) end.push(batch)
    // all that it has been given is still under way: answers come while it ends
    await end.close()
    t.equal(side.live, 0)
  }
})
