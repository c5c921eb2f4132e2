/** Memory that the WAN is read into comes back, is overwritten, and no guest sees anything of it. */
import t from 'tap'
import { CHUNKS } from '../../src/bytes/chunks.ts'
import { madeUp } from '../codec/harness.ts'
import { until } from '../helpers/until.ts'
import { closed, Daemons } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy
CHUNKS.poison = 0xdd

for (const effort of [0, 1, 3])
  t.test(`guests at once, at effort ${effort}`, async t => {
    const reused = CHUNKS.reused
    await using pair = await Daemons.start({ ringPages: 4096, effort })
    await until('a session', () => pair.count('session open') >= 2)
    const guests = [7, 8, 9].map(seed => madeUp(seed + effort * 3, 1500))
    const qemus = await Promise.all(guests.map(() => pair.dial()))
    for (const [i, qemu] of qemus.entries()) {
      qemu.resume() // or its end is never seen
      qemu.end(guests[i])
    }
    const { received, sockets } = pair.target
    const sum = (all: readonly Buffer[]) => all.reduce((bytes, { length }) => bytes + length, 0)
    await until('all bytes', () => sum(received) >= sum(guests))
    for (const bytes of guests)
      t.ok(
        received.some(got => got.equals(bytes)),
        `${bytes.length} bytes`,
      )
    for (const socket of sockets) socket.end()
    await Promise.all(qemus.map(closed))
    if (effort === 0) t.ok(CHUNKS.reused > reused + 20, `${CHUNKS.reused - reused} chunks were used again`)
  })
