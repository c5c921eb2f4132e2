/** One identity that grabs all it can: sessions with the largest rings, idle ones, ones on which nothing is ever said. */
import t from 'tap'
import { SESSIONS_MAX } from '../../src/limits.ts'
import { Siege, unharmed } from './harness.ts'
import { Peer } from './peer.ts'

t.setTimeout(590_000) // the machine may be busy

t.test('an identity that opens sessions without end gets its share, and others find places', async t => {
  await using siege = await Siege.start()
  const figures = await siege.under(async () => {
    const way = siege.way('hostile')
    let open = 0
    let refused = 0
    while (refused < 20) {
      try {
        await Peer.dial(way, { ring: 2 ** 22, places: 2 ** 26 })
        open++
      } catch (error) {
        t.match((error as Error).message, /LIMIT_EXCEEDED: \d+ of 64 sessions are open, \d+ of them this peer's/)
        refused++
      }
    }
    t.ok(open >= SESSIONS_MAX / 2 - 2 && open <= SESSIONS_MAX / 2, `${open} sessions for one identity`)
    for (let i = 0; i < 4; i++) await siege.peer({}, 'hostile2')
    t.pass('and others find places')
  })
  unharmed(t, figures, { grownBytesMax: 64 << 20 })
})
