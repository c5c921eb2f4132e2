/** One identity opens session after session and fills the ring of each: the rings of a process have a bound of their own. */
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { poolOf, random, Sender, SIMD } from '../codec/harness.ts'
import { begun, type Credit, sendBatch } from './greedy.ts'
import { Siege, unharmed } from './harness.ts'
import type { Peer } from './peer.ts'

t.setTimeout(590_000) // the machine may be busy

const PAGE = 4096
const POOL_MIB = 64
const SESSIONS = 8
/** What a session may cost beside its ring: docs/operations.md. */
const SESSION_MIB = 8

/** A guest whose pages are all new, a little more than a ring of `pages` holds. */
function guest(pages: number): Uint8Array {
  const next = random(pages)
  const out = new StreamEmitter().header().ramStart(2, [{ idstr: 'pc.ram', lengthBytes: 2 * pages * PAGE }])
  out.eos().footer(2).sectionPart(2)
  const page = new Uint8Array(PAGE)
  const words = new Uint32Array(page.buffer)
  for (let i = 0; i < pages + 16; i++) {
    for (let w = 0; w < words.length; w++) words[w] = next(2 ** 32)
    out.page(i * PAGE, page, i === 0 ? 'pc.ram' : undefined)
  }
  return out.eos().footer(2).bytes()
}

/** Sends a stream as batches of flow 1, as fast as its credit allows. */
async function migrate(peer: Peer, credit: Credit, stream: Uint8Array, ring: number): Promise<void> {
  const sender = new Sender(poolOf('encoder', SIMD, { templates: [], ring, places: 4096 }), {
    method: 'as they are',
    longMatch: false,
  })
  const channel = sender.open('main', 1)
  let sent = 0
  for (let at = 0; at < stream.length && !peer.isClosed; ) {
    const take = Math.min(32 * 1024, stream.length - at)
    while (sent + take > credit.of(1) && !peer.isClosed) await credit.changed(Number.POSITIVE_INFINITY)
    channel.push(stream.subarray(at, at + take))
    at += take
    sent += take
    sendBatch(peer, 1, sender.sendNow(channel, true)!.bytes)
    await peer.flushed()
  }
  await sender.close()
}

t.test('many sessions with full rings', async t => {
  const path = join(tmpdir(), `pageferry-rings-${process.pid}.sock`)
  const taken: net.Socket[] = []
  const sink = net.createServer(socket => {
    taken.push(socket)
    socket.on('error', () => {}).resume()
  })
  await new Promise<void>(done => sink.listen(path, done))
  t.teardown(() => {
    for (const socket of taken) socket.destroy()
    sink.close()
  })
  await using siege = await Siege.start({
    poolMemory: `${POOL_MIB}MiB`,
    destinationArguments: ['--target', `sink=unix:${path}`],
  })
  const rings: number[] = []
  const figures = await siege.under(async () => {
    const peers: Peer[] = []
    for (let i = 0; i < SESSIONS; i++) {
      let session: Awaited<ReturnType<typeof begun>>
      try {
        session = await begun(() => siege.peer({ ring: 65536 }), 'sink')
      } catch (error) {
        t.match((error as Error).message, /LIMIT_EXCEEDED/)
        break // no more sessions for this identity
      }
      const { peer, credit } = session
      peers.push(peer)
      rings.push((peer.hello.ring * PAGE) / 2 ** 20)
      if (peer.hello.ring > 0) await migrate(peer, credit, guest(peer.hello.ring), peer.hello.ring)
      // nothing is expected of these any more but that they stay
    }
    t.comment(`rings of ${rings.map(mib => mib.toFixed(1)).join(', ')} MiB`)
    for (const peer of peers) peer.close()
  })
  t.ok(rings.length > 0 && rings[0]! > 0, 'a ring was to be had')
  t.ok(rings.reduce((sum, mib) => sum + mib, 0) <= POOL_MIB, 'all rings together are within --pool-memory')
  unharmed(t, figures, { grownBytesMax: (POOL_MIB + SESSIONS * SESSION_MIB + 64) << 20 })
})
