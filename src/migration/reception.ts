/**
 * Where a connection of QEMU goes that comes to a source proxy: to the session that there is, to the next one, for which it
 * waits, or nowhere; and whether a session is wanted yet. Pure: times come in.
 */
import { CONNECTIONS_HELD_MAX } from '../limits.ts'
import { type Gate, isOpen } from './gates.ts'
import { Waiting, type WaitingConnection } from './waiting.ts'

export interface ReceivedConnection extends WaitingConnection {
  readonly socket: { readonly bornMs: number; readonly isClosed: boolean }
  readonly gate: WaitingConnection['gate'] & Pick<Gate, 'migration'>
}

/** The session that there is. */
export interface SessionNow {
  /** It has a connection: while the WAN is broken nobody knows whether the other side still has this session. */
  readonly isUp: boolean
  /** Channels that are open. */
  readonly channels: number
  /** Connections that it has, opened or not. */
  readonly connections: number
}

/**
 * - `session`: it is for the session that there is
 * - `waits`: for the next one
 * - `renew`: likewise, and the one that there is ends: it is idle, and the next would be a better one
 * - `full`, `stopping`: nobody takes it
 */
export type Answer = 'session' | 'waits' | 'renew' | 'full' | 'stopping'

export class Reception<C extends ReceivedConnection> {
  private readonly queue: Waiting<C>
  private readonly session: () => SessionNow | undefined
  /** Nothing new is for the session that there is. */
  private drained = false
  private stopping = false

  /** @param session the one that there is, as it is now */
  constructor(patienceMs: number, session: () => SessionNow | undefined) {
    this.queue = new Waiting(patienceMs)
    this.session = session
  }

  /** Connections that wait for a session, in their order. */
  get waiting(): readonly C[] {
    return this.queue.all
  }

  /** When `over` is due; Infinity while none waits. */
  get nextTickMs(): number {
    return this.queue.nextTickMs
  }

  /** @returns those that have waited long enough; they wait no more */
  over(nowMs: number): C[] {
    return this.queue.over(nowMs)
  }

  /** A new connection. @param isStale whether the next session would be a better one; asked where the present one idles */
  comes(connection: C, isStale: () => boolean): Answer {
    const { gate } = connection
    const session = this.session()
    if (this.stopping && !isOpen(gate.migration)) return 'stopping'
    if (this.waiting.length + (session?.connections ?? 0) >= CONNECTIONS_HELD_MAX) return 'full'
    const answer = !this.takes(gate) ? 'waits' : session!.channels === 0 && isStale() ? 'renew' : 'session'
    if (answer !== 'session') this.queue.add(connection)
    return answer
  }

  /** A session gives these back: the other side never heard of them. @returns those that nobody takes any more */
  back(connections: readonly C[]): readonly C[] {
    this.drained = true // if it lives: nothing new is for it
    if (this.stopping) return connections
    this.queue.addFirst(connections)
    return []
  }

  /** There is a session, and it lives: it is given those that wait for it. */
  admit(accept: (connection: C) => void): void {
    this.queue.handOn(
      ({ gate }) => this.takes(gate),
      connection => {
        if (!connection.socket.isClosed) accept(connection)
      },
    )
  }

  /** A session is about to be opened. */
  opens(): void {
    this.drained = false
  }

  /** The session that there is gets no new migrations. */
  drain(): void {
    this.drained = true
  }

  /** No session gets new migrations any more. */
  stop(): void {
    this.stopping = true
  }

  /** @returns those that belong to no migration that runs; they wait no more */
  strangers(): C[] {
    const strangers: C[] = []
    this.queue.handOn(
      ({ gate }) => !isOpen(gate.migration),
      connection => strangers.push(connection),
    )
    return strangers
  }

  /** The session that there is has nothing to do, and gets nothing. */
  get isDone(): boolean {
    return (this.stopping || this.drained) && (this.session()?.channels ?? 0) === 0
  }

  /** Whether the session that there is takes what comes in at this gate. */
  private takes({ migration }: ReceivedConnection['gate']): boolean {
    if (this.session()?.isUp !== true) return false
    return isOpen(migration) || (!this.drained && !this.stopping)
  }
}
