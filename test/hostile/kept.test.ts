/** What a proxy must keep for a peer: frames ahead of one that never comes, and answers that nobody reads. */
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { MEMORY_BUDGET_BYTES } from '../../src/limits.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { CHANNEL_START, plainBatch, sendBatch } from './greedy.ts'
import { Siege, unharmed } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20

t.test('frames ahead of a missing one, of every size', async t => {
  await using siege = await Siege.start()
  // Each lies in a TLS record with others, or fills an eighth of one.
  const sizes = [1, 100, 2000, 16_368, 16_368]
  let sent = 0
  const figures = await siege.under(async () => {
    await Promise.all(
      sizes.map(async size => {
        const peer = await siege.peer()
        const payload = new Uint8Array(size)
        peer.sequence = 1 // number 1 never comes
        for (let bytes = 0; bytes < 60 * MIB && peer.sequence < 65_000 && !peer.isClosed; bytes += 16 + size) {
          peer.send(FRAME.DATA, payload, 1)
          sent += size
          if (peer.sequence % 64 === 0) await new Promise(done => setImmediate(done))
          await peer.flushed()
        }
      }),
    )
  })
  t.comment(`${(sent / MIB).toFixed(0)} MiB ahead`)
  t.ok(sent > 100 * MIB)
  unharmed(t, figures, { grownBytesMax: MEMORY_BUDGET_BYTES / 2 + 64 * MIB })
})

t.test('answers of a target that talks without end, to a peer that reads nothing', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-talker-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  let said = 0
  const talker = net.createServer(socket => {
    const talk = (): void => {
      while (socket.write(Buffer.alloc(65_536, 1))) said += 65_536
    }
    socket.on('error', () => {}).on('drain', talk)
    socket.resume()
    talk()
  })
  const path = join(folder, 'qemu.sock')
  talker.listen(path)
  await once(talker, 'listening')
  t.teardown(() => talker.close())
  await using siege = await Siege.start({ destinationArguments: ['--target', `talker=unix:${path}`] })
  const figures = await siege.under(async () => {
    for (let sessions = 0; sessions < 3; sessions++) {
      const peer = await siege.peer({ credit: 2 ** 28 })
      for (let flow = 1; flow <= 64; flow++) {
        peer.open(flow, 'talker', flow)
        sendBatch(peer, flow, plainBatch(CHANNEL_START))
      }
      // The windows open as long as it reads ...
      const until = performance.now() + 1500
      peer.onFrame = ({ type, flow }) => {
        if (type === FRAME.DATA && performance.now() > until) peer.socket.pause()
        else if (type === FRAME.DATA && flow % 64 === 1) peer.send(FRAME.PING, new Uint8Array(8))
      }
      await new Promise(done => setTimeout(done, 3000))
    }
  })
  t.comment(`${(said / MIB).toFixed(0)} MiB of answers`)
  t.ok(said > 0)
  unharmed(t, figures, { grownBytesMax: MEMORY_BUDGET_BYTES / 2 + 64 * MIB })
})
