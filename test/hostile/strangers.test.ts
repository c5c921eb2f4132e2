/** Strangers who say nothing, or nonsense, or much of it: the honest ones do not notice. */
import { once } from 'node:events'
import net from 'node:net'
import t from 'tap'
import { Siege, unharmed } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

const IDLE = 600

for (const plaintext of [false, true]) {
  t.test(`idle strangers and garbage, ${plaintext ? 'without' : 'with'} TLS`, async t => {
    await using siege = await Siege.start({ plaintext })
    const figures = await siege.under(async () => {
      const sockets: net.Socket[] = []
      for (let i = 0; i < IDLE; i++) {
        const socket = net.connect({ port: siege.port, host: '127.0.0.1' })
        socket.on('error', () => {})
        sockets.push(socket)
        await once(socket, 'connect')
        if (i % 3 === 0) socket.write(Buffer.alloc(4096, 0xff))
        if (i % 3 === 1) socket.write('GET / HTTP/1.1\r\n\r\n')
      }
      // the oldest make room, and whoever talks nonsense is let go
      await Promise.all(sockets.filter((_, i) => i % 3 < 2).map(socket => socket.destroyed || once(socket, 'close')))
      for (const socket of sockets) socket.destroy()
    })
    unharmed(t, figures, { grownBytesMax: 64 << 20 })
  })
}
