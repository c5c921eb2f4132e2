/**
 * Ports of loopback that stay ours although nobody listens on them yet: for programs that must be told a port, and that
 * must find it free again when they are started anew. Where a program can say which port it got, have it take port 0.
 */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import net from 'node:net'

/** Below it are the ports of well-known services. */
const LOWEST = 10_240
const TRIES_MAX = 1000

/**
 * A TCP port that nobody listens on, and that nobody takes by chance until this process ends: it lies below the range
 * from which the kernel gives ports away, and who else claims ports this way meets the lock, an abstract Unix socket,
 * which like the port belongs to the network namespace.
 */
export function claimPort(): Promise<number> {
  return claimPorts(1)
}

/** Several of them, one next to the other. @returns the first */
export async function claimPorts(count: number): Promise<number> {
  const end = Number(readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'latin1').trim().split(/\s+/)[0])
  if (end - count < LOWEST) throw new Error(`the kernel gives away ports from ${end} on: none is left to claim`)
  for (let i = 0; i < TRIES_MAX; i++) {
    const first = LOWEST + Math.floor(Math.random() * (end - count + 1 - LOWEST))
    const locks: net.Server[] = []
    for (let port = first; port < first + count; port++) {
      const lock = await claim(port)
      if (!lock) break
      locks.push(lock)
    }
    if (locks.length === count) return first
    for (const lock of locks) lock.close()
  }
  throw new Error(`${TRIES_MAX} ports are all taken`)
}

/** @returns what holds it, undefined where another has it */
async function claim(port: number): Promise<net.Server | undefined> {
  const lock = await listening({ path: `\0pageferry-port-${port}` })
  if (!lock) return undefined
  const server = await listening({ port, host: '127.0.0.1' })
  if (!server) {
    lock.close()
    return undefined
  }
  server.close()
  await once(server, 'close')
  return lock.unref()
}

/** A server at this address, undefined where another has it. */
async function listening(address: net.ListenOptions): Promise<net.Server | undefined> {
  const server = net.createServer(socket => socket.destroy())
  try {
    server.listen(address)
    await once(server, 'listening')
    return server
  } catch (error) {
    if (['EADDRINUSE', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw error
  }
}
