/** A peer that reads nothing: what ends must end all the same. */
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { encodeFrame } from '../../src/wan/frames.ts'
import { encodeClientHello } from '../../src/wan/hello.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { usualHello } from '../hostile/peer.ts'
import { fastClock, TestServer } from './harness.ts'

t.setTimeout(590_000)

t.test('a session that ends while its peer reads nothing gives its place back', async t => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'pageferry-unread-'))
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }))
  const { server, ends } = new TestServer({ clock: fastClock(10), server: { sessionsMax: 1 } })
  // a Unix socket, because it has small buffers
  const listener = net.createServer().listen(path.join(folder, 'wan.sock'))
  t.teardown(() => listener.close())
  await once(listener, 'listening')
  const peer = net.connect(path.join(folder, 'wan.sock'))
  peer.on('error', () => {})
  t.teardown(() => peer.destroy())
  const [accepted] = (await once(listener, 'connection')) as [net.Socket]
  server.take(accepted)
  peer.write(encodeClientHello(usualHello()))
  await once(peer, 'readable')
  // each PING is answered, and nobody reads the answers
  const ping = encodeFrame(FRAME.PING, 0, 0, 0, new Uint8Array(8))
  let before = -1
  let same = 0
  for (let turns = 0; same < 1000 && turns < 1_000_000; turns++) {
    peer.write(ping)
    await new Promise(done => setImmediate(done))
    same = accepted.writableLength > 0 && accepted.writableLength === before ? same + 1 : 0
    before = accepted.writableLength
  }
  t.comment(`${before} bytes wait`)
  const { link } = ends[0]!
  peer.write(encodeFrame(FRAME.END, 0, 7, 1, new Uint8Array(0))) // a broken rule
  await link.ended
  t.equal(server.links.length, 0)
  t.ok(accepted.destroyed)
})
