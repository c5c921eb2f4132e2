/** One identity opens session after session and fills the ring of each: the rings of a process have a bound of their own. */
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/limits.ts'
import { FLAG_MORE, FRAME } from '../../src/wan/wire.ts'
import { poolOf, random, Sender, SIMD } from '../codec/harness.ts'
import { Siege, unharmed } from './harness.ts'
import type { Peer } from './peer.ts'

t.setTimeout(240_000) // the machine may be busy

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

/** Sends a stream as batches of a flow, as fast as its credit allows. */
async function migrate(peer: Peer, flow: number, stream: Uint8Array, ring: number): Promise<void> {
  let credit = 0
  let more = (): void => {}
  peer.onFrame = ({ type, flow: of, payload }) => {
    if (type !== FRAME.CREDIT || of !== flow) return
    credit = Number(Buffer.from(payload).readBigUInt64BE())
    more()
  }
  const sender = new Sender(poolOf('encoder', SIMD, { templates: [], ring, places: 4096 }), {
    method: 'as they are',
    longMatch: false,
  })
  peer.open(flow, 'sink')
  const channel = sender.open('main', 1)
  let sent = 0
  for (let at = 0; at < stream.length && !peer.isClosed; ) {
    const take = Math.min(32 * 1024, stream.length - at)
    while (sent + take > credit && !peer.isClosed) {
      await new Promise<void>(resolve => {
        more = resolve
        peer.socket.once('close', () => resolve())
      })
    }
    channel.push(stream.subarray(at, at + take))
    at += take
    sent += take
    const batch = sender.sendNow(channel, true)!.bytes
    for (let from = 0; from < batch.length; from += FRAME_PAYLOAD_BYTES_MAX) {
      const part = batch.subarray(from, from + FRAME_PAYLOAD_BYTES_MAX)
      peer.send(FRAME.BATCH, part, flow, from + part.length < batch.length ? FLAG_MORE : 0)
    }
    await peer.flushed()
  }
  await sender.close()
}

t.test('many sessions with full rings', { timeout: 240_000 }, async t => {
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
      let peer: Peer
      try {
        peer = await siege.peer({ ring: 65536 })
      } catch {
        break // no more sessions for this identity
      }
      peers.push(peer)
      rings.push((peer.hello.ring * PAGE) / 2 ** 20)
      if (peer.hello.ring > 0) await migrate(peer, 1, guest(peer.hello.ring), peer.hello.ring)
      // nothing is expected of these any more but that they stay
      const heartbeat = setInterval(() => peer.send(FRAME.PING, new Uint8Array(8)), 1000)
      peer.socket.once('close', () => clearInterval(heartbeat))
    }
    t.comment(`rings of ${rings.map(mib => mib.toFixed(1)).join(', ')} MiB`)
    for (const peer of peers) peer.close()
  })
  t.ok(rings.length > 0 && rings[0]! > 0, 'a ring was to be had')
  t.ok(rings.reduce((sum, mib) => sum + mib, 0) <= POOL_MIB, 'all rings together are within --pool-memory')
  unharmed(t, figures, { grownBytesMax: (POOL_MIB + SESSIONS * SESSION_MIB + 64) << 20 })
})
