/** The connections of a link: which stand, whose sockets are still open, and whose turn it is to be written to. */
import type net from 'node:net'
import type { KeyUse } from './key-use.ts'

/** One connection, after its hello. */
export interface Wire {
  readonly connection: number
  readonly socket: net.Socket
  readonly peer: string
  /** False once the session has been told that it is gone, or it was never told of it. */
  attached: boolean
  /** Nothing more is written: our side of the socket was ended. */
  ending: boolean
  /** Something arrived after the hello: the path works, the peer took the hello. */
  heard: boolean
  readonly gone: (wire: Wire, error: Error | undefined) => void
  /** undefined without TLS. */
  readonly keys: KeyUse | undefined
  /** Its keys are nearly used up; called once. */
  worn: (() => void) | undefined
  /** The session is over: whatever the peer does, the socket goes at a time that is set. */
  leaving: boolean
}

export class Wires {
  readonly #standing = new Map<number, Wire>()
  /** Those too that linger: of wires that were replaced or have ended. */
  readonly #sockets = new Set<net.Socket>()
  /** Numbers that have stood. */
  readonly #known = new Set<number>()
  /** Which one is served first; moves on, so that none is always last. */
  #turn = 0

  /** Those that stand. */
  get count(): number {
    return this.#standing.size
  }

  get(connection: number): Wire | undefined {
    return this.#standing.get(connection)
  }

  /** No socket is open any more. */
  get isClosed(): boolean {
    return this.#sockets.size === 0
  }

  /** @returns whether one of that number stood before */
  add(wire: Wire): boolean {
    const isBack = this.#known.has(wire.connection)
    this.#known.add(wire.connection)
    this.#standing.set(wire.connection, wire)
    this.#sockets.add(wire.socket)
    return isBack
  }

  /** It stands no more, where another has not taken its number already; its socket may still be open. */
  remove(wire: Wire): void {
    if (this.#standing.get(wire.connection) === wire) this.#standing.delete(wire.connection)
  }

  /** Its socket has closed. */
  closed(wire: Wire): void {
    this.#sockets.delete(wire.socket)
  }

  /**
   * Serves those that stand in turn, a little at a time, so that they stay alike in what they carry, until none has
   * anything more.
   * @param write serves one. @returns true where there may be more
   */
  serve(write: (wire: Wire) => boolean): void {
    const wires = [...this.#standing.values()]
    if (wires.length === 0) return
    this.#turn = (this.#turn + 1) % wires.length
    let idle = 0
    for (let i = this.#turn; idle < wires.length; i = (i + 1) % wires.length) {
      idle = write(wires[i]!) ? 0 : idle + 1
    }
  }
}
