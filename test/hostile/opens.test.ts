/** OPEN and RESET over and over: by a peer that reads nothing, and by one that reads and acknowledges all. */
import t from 'tap'
import { Siege, unharmed } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

for (const reads of [false, true]) {
  t.test(`OPEN and RESET by a peer that reads ${reads ? 'all' : 'nothing'}`, async t => {
    await using siege = await Siege.start()
    let pairs = 0
    let sessions = 0
    const figures = await siege.under(async () => {
      const until = performance.now() + 10_000
      while (performance.now() < until) {
        const peer = await siege.peer()
        sessions++
        peer.acknowledges = reads
        if (!reads) peer.socket.pause()
        for (let flow = 1; !peer.isClosed && performance.now() < until; flow = (flow % 65535) + 1) {
          peer.open(flow)
          peer.reset(flow, 1, 'once more')
          pairs++
          if (flow % 100 === 0) await new Promise(done => setImmediate(done))
          await peer.flushed()
        }
        peer.close()
      }
    })
    t.comment(`${pairs} pairs in ${sessions} sessions`)
    // docs/security.md: 20 MB of flows that come and go; 90 MB of sessions that do, for who reads that it was refused
    unharmed(t, figures, { grownBytesMax: ((reads ? 90 : 20) + 64) << 20 })
  })
}
