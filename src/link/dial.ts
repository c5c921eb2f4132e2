/**
 * Connects to a name that may have several addresses, some of them dead: the next is tried beside the one before after a
 * head start, not in its place, and the first that answers is taken. After RFC 8305, which Node's autoSelectFamily only
 * resembles: it gives each address up before it tries the next, and so never waits out a long way.
 */
import { type LookupAddress, lookup } from 'node:dns'
import net from 'node:net'
import { ProxyError } from '../errors.ts'
import { DIAL_ADDRESSES_MAX, DIAL_HEAD_START_MS } from '../limits.ts'
import type { Clock } from './api.ts'
import { KEEP_ALIVE_DELAY_MS } from './greeting.ts'

export interface DialOptions {
  /** Name or address; a name is resolved each time, so that a peer may move. */
  readonly host: string
  readonly port: number
  readonly localAddress?: string | undefined
  readonly clock: Clock
  /** Tests bring their own. */
  readonly resolve?: ((host: string) => Promise<readonly LookupAddress[]>) | undefined
  readonly connect?: ((options: net.TcpNetConnectOpts) => net.Socket) | undefined
}

/** An attempt that is under way. */
export interface Attempt {
  /** Connected, of this address. Rejects with what the last address answered; PEER_LOST after `cancel`. */
  readonly connected: Promise<{ readonly socket: net.Socket; readonly address: string }>
  cancel(): void
}

/** Knows which of a name's addresses led somewhere, and begins with these. */
export class Dialer {
  readonly #options: DialOptions
  /** Worst last: addresses on which a connection came to nothing go to the end. */
  readonly #bad = new Set<string>()
  #last: readonly string[] = []

  constructor(options: DialOptions) {
    this.#options = options
  }

  /** Something else than the peer answered there, or nothing that it should: other addresses come first next time. */
  failed(address: string): void {
    this.#bad.delete(address)
    this.#bad.add(address)
    if (this.#bad.size > DIAL_ADDRESSES_MAX) this.#bad.delete(this.#bad.values().next().value!)
  }

  worked(address: string): void {
    this.#bad.delete(address)
  }

  /** Whether the name has an address on which no connection came to nothing yet. */
  get hasOther(): boolean {
    return this.#last.some(address => !this.#bad.has(address))
  }

  dial(): Attempt {
    const { clock, port, localAddress, connect = net.connect } = this.#options
    const sockets = new Set<net.Socket>()
    const { promise, resolve, reject } = Promise.withResolvers<{ socket: net.Socket; address: string }>()
    let over = false
    let cancelTimer = (): void => {}
    const end = (): void => {
      over = true
      cancelTimer()
      for (const socket of sockets) socket.destroy()
    }
    const next = (addresses: readonly LookupAddress[], i: number): void => {
      cancelTimer()
      const found = addresses[i]
      if (over || !found) return
      const { address, family } = found
      const socket = connect({
        ...{ host: address, port, family, autoSelectFamily: false },
        ...{ noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_DELAY_MS },
        ...(localAddress !== undefined && { localAddress }),
      })
      sockets.add(socket)
      let following = false
      const follow = (): void => {
        if (following) return
        following = true
        next(addresses, i + 1)
      }
      socket.once('connect', () => {
        if (over) return
        sockets.delete(socket)
        end()
        resolve({ socket, address })
      })
      // stays: an error after this is told by 'close' to whoever has the socket then
      socket.on('error', error => {
        if (over) return
        sockets.delete(socket)
        follow()
        if (sockets.size > 0) return
        end()
        reject(error)
      })
      if (i + 1 < addresses.length) cancelTimer = clock.after(DIAL_HEAD_START_MS, follow)
    }
    this.#addresses().then(addresses => {
      this.#last = addresses.map(({ address }) => address)
      next(addresses, 0)
    }, reject)
    return {
      connected: promise,
      cancel: () => {
        if (over) return
        end()
        reject(new ProxyError('PEER_LOST', 'given up while connecting', undefined, 'tried again'))
      },
    }
  }

  /** In the order in which they are tried: families in turn, bad ones last. */
  async #addresses(): Promise<LookupAddress[]> {
    const { host, resolve = resolveAll } = this.#options
    const family = net.isIP(host)
    if (family !== 0) return [{ address: host, family }]
    const found = (await resolve(host)).slice(0, DIAL_ADDRESSES_MAX)
    if (found.length === 0) throw new ProxyError('PEER_LOST', `${host} has no address`, undefined, 'check the name')
    const first = found.filter(one => one.family === found[0]!.family)
    const second = found.filter(one => one.family !== found[0]!.family)
    const inTurn = first.flatMap((one, i) => (second[i] ? [one, second[i]] : [one])).concat(second.slice(first.length))
    const badness = [...this.#bad]
    return inTurn.sort((a, b) => badness.indexOf(a.address) - badness.indexOf(b.address))
  }
}

function resolveAll(host: string): Promise<LookupAddress[]> {
  return new Promise((resolve, reject) => {
    lookup(host, { all: true, order: 'verbatim' }, (error, addresses) => (error ? reject(error) : resolve(addresses)))
  })
}
