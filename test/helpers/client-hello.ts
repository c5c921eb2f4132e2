/** The ClientHello of a TLS client, as it goes out: no network, and no server. */
import type net from 'node:net'
import { Duplex } from 'node:stream'
import tls from 'node:tls'

/** @param connect begins TLS on this connection; what becomes of it does not matter */
export async function clientHelloOf(connect: (wire: net.Socket) => void): Promise<Buffer> {
  const { promise, resolve } = Promise.withResolvers<Buffer>()
  let hello: Buffer = Buffer.alloc(0)
  const wire = new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, done) {
      hello = Buffer.concat([hello, chunk])
      if (hello.length >= 5 && hello.length === 5 + hello.readUInt16BE(3)) resolve(hello)
      done()
    },
  })
  connect(wire as unknown as net.Socket)
  const whole = await promise
  wire.destroy()
  return whole
}

export function clientHello(options: tls.ConnectionOptions): Promise<Buffer> {
  return clientHelloOf(wire => tls.connect({ ...options, socket: wire }).on('error', () => {}))
}
