/** What a source proxy brings into a session, and what it has of it. */
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { SessionSets } from '../../src/daemon/session-sets.ts'
import { SourceMemory } from '../../src/daemon/source-memory.ts'
import { SourceTerms } from '../../src/daemon/source-terms.ts'
import type { Learning } from '../../src/learning/learning.ts'
import { HELLO_SETS_MAX } from '../../src/limits.ts'
import { PAGE_BYTES } from '../../src/transfer/pool.ts'
import { RingShares } from '../../src/transfer/ring-shares.ts'
import { storeOf } from './store-of.ts'

const PLACES = 1 << 12
const RING_PAGES = 16
const COUNTED = 'c'.repeat(64)

/** Learning that has counted something. */
function learningOf(): { learning: Learning; begun: (readonly string[])[]; ended: () => number } {
  const begun: (readonly string[])[] = []
  let ended = 0
  const begin = (agreed: readonly string[]) => {
    begun.push(agreed)
    return { end: () => ended++ }
  }
  return { learning: { states: [COUNTED], begin } as unknown as Learning, begun, ended: () => ended }
}

t.test('what is offered fits into a hello, and what learning has counted with it', async t => {
  const { store, digests } = storeOf(HELLO_SETS_MAX)
  const { learning } = learningOf()
  const shares = new RingShares(RING_PAGES * PAGE_BYTES, false)
  const memory = new SourceMemory('peer', false, { ringPages: RING_PAGES, places: PLACES, effort: 1, shares })
  const sets = new SessionSets(store, new Events())
  const options = { places: PLACES, store, learning }
  const terms = await SourceTerms.make(options, memory, sets, () => false)
  t.same(terms!.offer.sets, [...digests.slice(0, -1), COUNTED])
  t.same(terms!.offer.cold, digests.slice(-1), 'the oldest one is offered from the disk')
  t.match(terms!.offer, { ring: RING_PAGES, places: PLACES, seed: /^[0-9a-f]{16}$/ })
  await terms!.close()
  t.equal(await SourceTerms.make(options, memory, sets, () => true), undefined, 'nobody wants it any more')
  const again = await SourceTerms.make({ ...options, learning: undefined }, memory, sets, () => false)
  t.same([again!.offer.sets, again!.offer.cold], [digests, undefined])
  t.equal(again!.offer.ring, RING_PAGES, 'nobody has the ring')
  await again!.close()
})

t.test('what was agreed on', async t => {
  const { learning, begun, ended } = learningOf()
  const memory = new SourceMemory('peer', false, { ringPages: RING_PAGES, places: PLACES, effort: 1 })
  const sets = new SessionSets(undefined, new Events())
  const terms = await SourceTerms.make({ places: PLACES, store: undefined, learning }, memory, sets, () => false)
  t.same(terms!.offer.sets, [COUNTED])
  const hello = { agent: '', token: '', received: 0, credit: 65_536, targets: [] }
  const agreed = await terms!.agree({ ...hello, sets: [COUNTED], ring: 8, places: PLACES })
  t.same([agreed.sets, agreed.cold], [[], []], 'what learning has counted is no set')
  t.same(begun, [[COUNTED]])
  const seed = Buffer.from(terms!.offer.seed, 'hex')
  t.same(agreed.seed, [seed.readUInt32BE(4), seed.readUInt32BE(0)])
  t.ok(agreed.pool.kernel)
  t.equal(ended(), 0)
  await terms!.close()
  t.equal(ended(), 1)
})
