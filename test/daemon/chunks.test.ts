/** Memory that the WAN is read into comes back, is overwritten, and no guest sees anything of it. */
import t from 'tap'
import { CHUNKS } from '../../src/bytes/chunks.ts'
import { madeUp } from '../codec/harness.ts'
import { Daemons } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy
CHUNKS.poison = 0xdd

for (const effort of [0, 1, 3])
  t.test(`guests at once, at effort ${effort}`, async t => {
    const reused = CHUNKS.reused
    await using pair = await Daemons.start({ ringPages: 4096, effort })
    const guests = [7, 8, 9].map(seed => madeUp(seed + effort * 3, 1500))
    const arrived = await pair.migrateAtOnce(guests)
    for (const bytes of guests)
      t.ok(
        arrived.some(got => got.equals(bytes)),
        `${bytes.length} bytes`,
      )
    if (effort === 0) t.ok(CHUNKS.reused > reused + 20, `${CHUNKS.reused - reused} chunks were used again`)
  })
