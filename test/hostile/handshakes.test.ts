/**
 * Handshakes cost a proxy CPU time and those who begin them next to nothing: the first bytes of one, recorded once and said
 * again and again from one address; and whole handshakes of a peer that always begins anew.
 */
import { once } from 'node:events'
import net from 'node:net'
import tls from 'node:tls'
import t from 'tap'
import { Siege, unharmed } from './harness.ts'
import { connect, Peer } from './peer.ts'

t.setTimeout(590_000) // the machine may be busy

/** The first bytes of a TLS 1.3 handshake. */
async function clientHello(): Promise<Buffer> {
  const server = net.createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  const client = tls.connect({ port, host: '127.0.0.1', minVersion: 'TLSv1.3' })
  client.on('error', () => {})
  const [socket] = (await once(server, 'connection')) as [net.Socket]
  const [bytes] = (await once(socket, 'data')) as [Buffer]
  socket.destroy()
  client.destroy()
  server.close()
  return bytes
}

t.test('first bytes of handshakes without end, while a newcomer comes in', async t => {
  await using siege = await Siege.start()
  const bytes = await clientHello()
  const figures = await siege.under(async () => {
    const sockets = new Set<net.Socket>()
    const say = (): void => {
      const socket = net.connect({ port: siege.port, host: '127.0.0.1', localAddress: '127.0.0.2' })
      sockets.add(socket)
      socket.on('error', () => {}).on('close', () => sockets.delete(socket))
      socket.resume().write(bytes)
    }
    const flood = setInterval(() => {
      for (let i = 0; i < 20; i++) say()
    }, 20)
    await new Promise(resolve => setTimeout(resolve, 2000))
    const newcomer = await siege.peer() // from 127.0.0.1, where the honest ones are known
    t.notOk(newcomer.isClosed)
    await new Promise(resolve => setTimeout(resolve, 1000))
    clearInterval(flood)
    for (const socket of sockets) socket.destroy()
  })
  unharmed(t, figures, { grownBytesMax: 64 << 20 })
})

t.test('a peer that shakes hands without end', async t => {
  await using siege = await Siege.start()
  const way = siege.way('hostile')
  const figures = await siege.under(async () => {
    const endMs = performance.now() + 3000
    let shaken = 0
    const shake = async (): Promise<void> => {
      while (performance.now() < endMs || shaken <= 10) {
        try {
          const socket = await connect(way)
          shaken++
          if (shaken % 2 === 0) socket.destroy()
          else socket.end('nonsense')
        } catch {
          // crowded out: the next
        }
      }
    }
    await Promise.all(Array.from({ length: 16 }, shake))
    t.ok(shaken > 10, `${shaken} handshakes`)
    const other = await Peer.dial(siege.way('hostile2'))
    t.notOk(other.isClosed, 'another peer comes in')
  })
  unharmed(t, figures, { grownBytesMax: 64 << 20 })
})
