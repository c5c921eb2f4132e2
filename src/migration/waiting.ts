/**
 * Connections of QEMU that wait for a session, in their order, each for as long as a broken WAN is waited for, counted from
 * when it came: one that goes from session to session waits no longer for that. Pure: times come in.
 */
import type { Gate } from './gate.ts'

export interface WaitingConnection {
  readonly socket: { readonly bornMs: number }
  readonly gate: { readonly traits: Pick<Gate['traits'], 'waitsMs'> }
}

/** How long a connection that came in here waits for a session. */
export function waitingMs({ traits }: WaitingConnection['gate'], patienceMs: number): number {
  return Math.min(patienceMs, traits.waitsMs)
}

export class Waiting<C extends WaitingConnection> {
  private readonly patienceMs: number
  private connections: C[] = []

  constructor(patienceMs: number) {
    this.patienceMs = patienceMs
  }

  /** In their order. */
  get all(): readonly C[] {
    return this.connections
  }

  /** When `over` is due; Infinity while none waits. */
  get nextTickMs(): number {
    return Math.min(...this.connections.map(connection => this.overMs(connection)))
  }

  add(connection: C): void {
    this.connections.push(connection)
  }

  /** They were here before: they go before those that came since. */
  addFirst(connections: readonly C[]): void {
    this.connections.unshift(...connections)
  }

  /** Hands those on for which this is so, one after the other: what becomes of one may change it for the next. */
  handOn(isFor: (connection: C) => boolean, run: (connection: C) => void): void {
    for (const connection of this.connections.splice(0)) {
      if (isFor(connection)) run(connection)
      else this.connections.push(connection)
    }
  }

  /** @returns those that have waited long enough; they wait no more */
  over(nowMs: number): C[] {
    const over: C[] = []
    this.handOn(
      connection => this.overMs(connection) <= nowMs,
      connection => over.push(connection),
    )
    return over
  }

  private overMs({ socket, gate }: C): number {
    return socket.bornMs + waitingMs(gate, this.patienceMs)
  }
}
