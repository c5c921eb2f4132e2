/** Packing that fails: it is told to who asked, and to nobody else. */
import t from 'tap'
import { BATCH_RAW_MAX, COLUMN, METHOD } from '../../src/codec/wire.ts'
import { WORKSPACE_BYTES, Workspace } from '../../src/codec/workspace.ts'
import { ColumnPacker } from '../../src/compression/column-packer.ts'
import { EFFORTS, LZ4 } from '../../src/compression/effort.ts'

/** A batch whose columns go to LZ4's thread and to zstd. */
function batch(): { packer: ColumnPacker; workspace: Workspace } {
  const buffer = new SharedArrayBuffer(WORKSPACE_BYTES)
  const workspace = new Workspace(new Uint8Array(buffer), 0)
  workspace.columnLength[COLUMN.PAGES] = 100_000
  return { packer: new ColumnPacker(buffer), workspace }
}

t.test('a thread that fails', async t => {
  const { packer, workspace } = batch()
  const columns = await packer.pack(workspace, BATCH_RAW_MAX, LZ4)
  t.match(columns, [{ column: COLUMN.PAGES, rawLength: 100_000 }])
  const outside = Object.assign(Object.create(workspace), { packedAt: WORKSPACE_BYTES })
  await t.rejects(async () => packer.pack(outside, BATCH_RAW_MAX, LZ4), RangeError)
  await t.rejects(async () => packer.pack(workspace, BATCH_RAW_MAX, LZ4), RangeError, 'it has ended')
  await packer.close()
})

t.test('a system that has no more threads', async t => {
  const { workspace } = batch()
  const buffer = workspace.bytes.buffer as SharedArrayBuffer
  let tried = 0
  const packer = new ColumnPacker(buffer, undefined, () => {
    tried++
    throw new Error('ERR_WORKER_INIT_FAILED: EAGAIN')
  })
  packer.warm()
  for (const _ of [1, 2]) {
    const [column] = await packer.pack(workspace, BATCH_RAW_MAX, LZ4)
    t.match(column, { column: COLUMN.PAGES, method: METHOD.LZ4, rawLength: 100_000 })
    t.ok(column!.packedLength > 0 && column!.packedLength < 1000, `${column!.packedLength} bytes`)
  }
  t.equal(tried, 1)
  await packer.close()
})

t.test('a stream that fails while the thread works', async t => {
  const { packer, workspace } = batch()
  workspace.columnLength[COLUMN.OTHER] = 100_000
  await packer.pack(workspace, 0, EFFORTS[5]!)
  const state = packer as unknown as { freshStreams: number; zstd: ({ fail(error: Error): void } | undefined)[] }
  state.freshStreams = Number.POSITIVE_INFINITY // no other stream may begin: what has none goes to the thread
  workspace.columnLength[COLUMN.WORDS] = 100_000
  const packing = packer.pack(workspace, 0, EFFORTS[5]!)
  state.zstd[COLUMN.PAGES]!.fail(new Error('planted'))
  await t.rejects(async () => packing, /planted/)
  await packer.close()
})
