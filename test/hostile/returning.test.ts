/**
 * Thousands of idle connections a second from one address, while a peer with a round trip of 180 ms has lost its
 * connection and comes back: by the way that is kept for who is known, and as somebody whom nobody knows.
 */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { parseLink } from '../../scripts/harness/wan/link.ts'
import { RelayLink } from '../../scripts/harness/wan/relay-link.ts'
import { STRANGERS_MAX } from '../../src/limits.ts'
import { Siege, unharmed } from './harness.ts'
import { Peer } from './peer.ts'

t.setTimeout(590_000) // the machine may be busy

const PER_SECOND = 3700
const CUTS = 3

t.test('a peer far away comes back during a flood of strangers', async t => {
  const wan: { far?: RelayLink } = {}
  await using siege = await Siege.start({
    through: async port => {
      wan.far = await RelayLink.open(parseLink('1Gbit,180ms'), { host: '127.0.0.1', port })
      return wan.far.port
    },
  })
  await using far = wan.far!
  const figures = await siege.under(async () => {
    const flood = new Worker(new URL('flood.ts', import.meta.url), {
      workerData: { port: siege.port, from: '127.0.0.2', perSecond: PER_SECOND, tellAt: STRANGERS_MAX },
    })
    await once(flood, 'message') // every place is wanted by one of them
    for (let i = 0; i < CUTS; i++) {
      const up = siege.count('link.up')
      far.cut()
      const beganMs = performance.now()
      await siege.until('the source to be back', () => siege.count('link.up') > up)
      t.comment(`back after ${(performance.now() - beganMs).toFixed(0)} ms`)
    }
    await using stranger = await RelayLink.open(parseLink('1Gbit,180ms'), { host: '127.0.0.1', port: siege.port })
    const peer = await Peer.dial({ ...siege.way(), port: stranger.port })
    t.notOk(peer.isClosed, 'a newcomer finds its way in too')
    peer.close()
    flood.postMessage('end')
    const [opened] = (await once(flood, 'message')) as [number]
    await flood.terminate()
    t.comment(`${opened} connections by then`)
  })
  t.equal(figures.lines.filter(line => line.includes('link.dead')).length, 0, 'no session was lost')
  unharmed(t, figures, { grownBytesMax: 64 << 20 })
})
