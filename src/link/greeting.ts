/** What client and server share before a connection belongs to a session: reading one hello, and telling who it is. */
import type net from 'node:net'
import { ProxyError } from '../errors.ts'
import { HelloDecoder } from '../wan/hello.ts'

/** Urgent frames must not wait for Nagle; the session's heartbeat, not keepalive, finds dead peers. */
export const KEEP_ALIVE_DELAY_MS = 10_000

/** A hello as it arrived. */
export interface Hello {
  readonly body: Record<string, unknown>
  /** What came behind it in the same chunk. */
  readonly rest: Uint8Array
}

/**
 * Reads the peer's hello and pauses the socket behind it. The caller sets the deadline, by destroying the socket.
 * @throws ProxyError PEER_LOST (closed before), PROTOCOL_SYNTAX, PROTOCOL_VERSION, LIMIT_EXCEEDED
 */
export function readHello(socket: net.Socket): Promise<Hello> {
  return new Promise((resolve, reject) => {
    const decoder = new HelloDecoder()
    const done = (): void => {
      socket.off('data', take).off('close', closed).off('end', closed).pause()
    }
    const closed = (): void => {
      done()
      reject(new ProxyError('PEER_LOST', 'closed before its hello', undefined, 'the connection is closed'))
    }
    const take = (chunk: Uint8Array): void => {
      try {
        const hello = decoder.push(chunk)
        if (!hello) return
        done()
        resolve(hello)
      } catch (error) {
        done()
        reject(error)
      }
    }
    socket.on('data', take).on('close', closed).on('end', closed)
    if (socket.destroyed) closed()
  })
}

/** The far end's address for logs: 192.0.2.7:49152, [2001:db8::1]:49152. */
export function peerOf(socket: net.Socket): string {
  const address = socket.remoteAddress?.replace(/^::ffff:/, '')
  if (address === undefined) return 'unknown'
  return `${address.includes(':') ? `[${address}]` : address}:${socket.remotePort}`
}
