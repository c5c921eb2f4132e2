/** What has been read of disks, as the source proxy hands it on: whatever is no batch stays behind what came before it. */
import t from 'tap'
import { SourceReplies } from '../../src/daemon/source-replies.ts'
import { BATCH_RAW_BYTES_MAX } from '../../src/limits.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { WORK_PER_TURN } from '../../src/transfer/turns.ts'
import { KIND_DISK } from '../../src/wan/wire.ts'
import { handBatch } from '../codec/hand-batch.ts'
import { checksum } from '../codec/second-decoder.ts'

/** A batch of a few bytes that are no message. */
function other(text: string): Buffer {
  const bytes = Buffer.from(text)
  return handBatch(bytes.length, checksum(bytes, 0n), [
    { column: 0, method: 0, rawLength: 1, packed: Buffer.of(0x80 + bytes.length) },
    { column: 2, method: 0, rawLength: bytes.length, packed: bytes },
  ])
}

t.test('what comes once the last batch is expanded stays behind what waited for that', async t => {
  const shape = { role: 'decoder', workspaces: 1, slots: 4, slotBytes: BATCH_RAW_BYTES_MAX, longMatch: false } as const
  const pool = await new Pools().open({ ...shape, sets: [], store: undefined, ringPages: 16, places: 16 })
  t.teardown(() => pool.close())
  const replies = new SourceReplies(
    pool,
    [0, 0],
    error => t.fail(error.message),
    () => t.fail('nobody'),
    undefined,
  )
  const info = { target: 'default', migration: 1, kind: KIND_DISK, replies: 16 }
  const told: string[] = []
  const { promise: all, resolve } = Promise.withResolvers<void>()
  const come = (what: string): void => replies.behind(1, () => void told.push(what))
  const to = {
    expanded: (bytes: Uint8Array, release: () => void) => {
      told.push(String(Buffer.from(bytes)))
      release()
      if (told.length > 1) return
      // what arrives while others' batches are expanded, or before the next turn
      come('third')
      replies.behind(1, resolve)
    },
  }
  pool.turns.spend(WORK_PER_TURN) // so it is expanded in another one
  replies.push(1, info, to, [other('first')])
  come('second')
  t.same(told, [])
  await all
  t.same(told, ['first', 'second', 'third'])
  come('fourth')
  t.same(told, ['first', 'second', 'third', 'fourth'], 'at once: nothing waits')
  replies.close()
})
