/** Memory of columns that are sent as they are: whose it is, and how much is kept. */
import t from 'tap'
import { BATCH_RAW_MAX, COLUMN, METHOD } from '../../src/codec/wire.ts'
import { WORKSPACE_BYTES, Workspace } from '../../src/codec/workspace.ts'
import { ColumnBuffers } from '../../src/compression/column-buffers.ts'
import { ColumnPacker } from '../../src/compression/column-packer.ts'
import { EFFORTS } from '../../src/compression/effort.ts'

const MIB = 1 << 20

t.test('what was given back is given out again, and nothing else', async t => {
  const buffers = new ColumnBuffers()
  const lengths = [16_384, 16_385, 24_576, 24_577, 100_000, 393_216, 500_000, MIB]
  const first = lengths.map(length => buffers.take(length))
  for (const [i, buffer] of first.entries()) {
    t.ok(buffer.length >= lengths[i]! && buffer.length <= 1.5 * lengths[i]!, `${lengths[i]}: ${buffer.length} bytes`)
  }
  const others = lengths.map(length => buffers.take(length))
  t.equal(new Set([...first, ...others]).size, 2 * lengths.length, 'what is lent is lent once')
  for (const buffer of first) buffers.give(buffer)
  const again = lengths.map(length => buffers.take(length))
  t.same(
    again.map(buffer => first.includes(buffer)),
    lengths.map(() => true),
  )
  t.equal(new Set([...again, ...others]).size, 2 * lengths.length)
  const short = buffers.take(16_383)
  t.equal(short.length, 16_383)
  buffers.give(short)
  t.not(buffers.take(16_383), short, 'short ones are left to the collector')
})

t.test('no more is kept than is lent, and a mebibyte', async t => {
  const buffers = new ColumnBuffers()
  const kept = (): number => (buffers as unknown as { freeBytes: number }).freeBytes
  const lent = Array.from({ length: 64 }, (_, i) => buffers.take(i % 2 === 0 ? MIB / 2 : 20_000))
  let most = 0
  while (lent.length > 0) {
    buffers.give(lent.pop()!)
    const out = lent.reduce((sum, { length }) => sum + length, 0)
    most = Math.max(most, kept())
    if (kept() > Math.max(MIB, out)) t.fail(`${kept()} bytes are kept while ${out} are lent`)
  }
  t.ok(most > 4 * MIB, `${most} bytes were kept while others were lent`)
  t.ok(kept() <= MIB, 'a link that has become silent keeps next to nothing')
})

t.test("a packer's stored columns", async t => {
  const buffer = new SharedArrayBuffer(WORKSPACE_BYTES)
  const workspace = new Workspace(new Uint8Array(buffer), 0)
  const packer = new ColumnPacker(buffer)
  const pack = async (fill: number) => {
    workspace.columnLength[COLUMN.PAGES] = 100_000
    workspace.column(COLUMN.PAGES).fill(fill)
    return packer.pack(workspace, BATCH_RAW_MAX, EFFORTS[0]!)
  }
  const memoryOf = ([column]: readonly { parts: readonly Uint8Array[] }[]): ArrayBufferLike => column!.parts[0]!.buffer
  const first = await pack(1)
  const second = await pack(2)
  t.match(first, [{ column: COLUMN.PAGES, method: METHOD.STORED, rawLength: 100_000, packedLength: 100_000 }])
  t.equal(first[0]!.parts[0]!.length, 100_000)
  t.ok(
    first[0]!.parts[0]!.every(byte => byte === 1),
    'its bytes, while another is made',
  )
  t.not(memoryOf(first), memoryOf(second))
  packer.giveBack(first)
  t.equal(memoryOf(await pack(3)), memoryOf(first))
  t.ok(second[0]!.parts[0]!.every(byte => byte === 2))
  await packer.close()
})
