/** What a destination has taken for a session that does not come to be is free again. */
import t from 'tap'
import { DestinationMemory } from '../../src/daemon/destination-memory.ts'
import { DestinationTerms } from '../../src/daemon/destination-terms.ts'
import { Events } from '../../src/daemon/events.ts'
import type { SessionSets } from '../../src/daemon/session-sets.ts'
import { KeptSpace } from '../../src/transfer/cold/kept-space.ts'
import type { ClientHello } from '../../src/wan/hello.ts'

t.setTimeout(590_000)

t.test('disk space for blocks, where the store cannot be listed', async t => {
  const kept = new KeptSpace('/var/tmp', 2 * 4096 * 1000, () => 1e12, 1)
  const memory = new DestinationMemory({ ringPagesMax: 64, placesMax: 64, kept })
  const broken = { offer: () => Promise.reject(new Error('a channel that is none')) } as unknown as SessionSets
  const hello = { sets: [], ring: 64, places: 64, seed: '0'.repeat(16), features: [], kept: 1000 }
  const options = { store: undefined, events: new Events() }
  const make = () => DestinationTerms.make(options, memory, broken, hello as unknown as ClientHello, 'peer', true)
  await t.rejects(make(), /a channel that is none/)
  t.equal(kept.take(2000).blocks, 1000, 'half of all, as before')
})
