/** Where expanded batches lie: in the pool's slots as long as sockets give them back, and none is held up by one that does not. */
import { setImmediate as nextTurn } from 'node:timers/promises'
import t from 'tap'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { BATCH_RAW_BYTES_MAX } from '../../src/limits.ts'
import { Inbound } from '../../src/transfer/inbound.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { madeUp, SEED_WORDS } from '../codec/harness.ts'
import { batchesOf } from './ends.ts'

/** Of them one is where small batches are expanded. */
const SLOTS = 4

/** What comes out of batches that come all at once, by who gives back its slot: how much was right, in how many copies, and turns that it waited. */
async function run(guest: Buffer, batches: readonly Buffer[], given: (release: () => void) => void) {
  const terms = { sets: [], store: undefined, ringPages: 1024, places: 1024, slotBytes: BATCH_RAW_BYTES_MAX } as const
  const pools = new Pools()
  const pool = await pools.open({ ...terms, role: 'decoder', longMatch: false, workspaces: 1, slots: SLOTS })
  let waits = 0
  const { turns } = pool
  const next = turns.next.bind(turns)
  turns.next = holder => {
    waits++
    return next(holder)
  }
  const errors: unknown[] = []
  const inbound = new Inbound(pool, SEED_WORDS, error => errors.push(error))
  const parts: Buffer[] = []
  let copies = 0
  const channel = {
    expander: new FlowExpander(1, PoolRegions.of(pool.kernel.layout)),
    expanded(bytes: Uint8Array, release: () => void): void {
      if (bytes.buffer !== pool.kernel.bytes.buffer) copies++
      parts.push(Buffer.from(bytes))
      given(release)
    },
  }
  for (const batch of batches) inbound.push(channel, [batch])
  await inbound.idle()
  inbound.close()
  turns.next = next
  await pool.close()
  return { isRight: Buffer.concat(parts).equals(guest), errors, copies, waits }
}

t.test('expanded batches wait in slots for their socket', async t => {
  const guest = madeUp(5, 1500)
  const batches = await batchesOf(new Pools(), guest, 1)
  const large = Math.floor(guest.length / 400_000)
  t.ok(large > 2 * SLOTS, `${large} large batches`)
  t.match(
    await run(guest, batches, release => void nextTurn().then(release)),
    { isRight: true, errors: [], copies: guest.length % 400_000 <= 65_536 ? 1 : 0 },
    'a socket that reads: none is copied but what is small',
  )
  const stuck = await run(guest, batches, () => {})
  t.match(stuck, { isRight: true, errors: [] }, 'one that does not read holds up nothing')
  t.ok(stuck.copies >= large - SLOTS, `${stuck.copies} copies`)
  t.ok(
    stuck.waits <= 3,
    `a session that cannot have slots waits for one turn, and for work that fills one: ${stuck.waits}`,
  )
})
