/**
 * Where a connection of QEMU goes that comes to a source proxy: to the session that there is, to the next one, for which it
 * waits, or nowhere; and whether a session is wanted yet. Pure: times come in.
 */
import { CONNECTIONS_HELD_MAX } from '../limits.ts'
import { BehindDisks } from './behind-disks.ts'
import { type Gate, isOpen } from './gate.ts'
import { Waiting, type WaitingConnection } from './waiting.ts'

export interface ReceivedConnection extends WaitingConnection {
  readonly socket: { readonly bornMs: number; readonly isClosed: boolean }
  readonly gate: WaitingConnection['gate'] & Pick<Gate, 'migration'>
}

/** The session that there is. */
export interface SessionNow {
  /** It has a connection: while the WAN is broken nobody knows whether the other side still has this session. */
  readonly isUp: boolean
  /** Channels that are open, and how many of them are of migrations: others are connections of disks. */
  readonly channels: number
  readonly ofMigrations: number
  /** Disk transfers that run. */
  readonly transfers: Parameters<BehindDisks['isKept']>[0]
  /** It can be left: what it has goes on in it to its end, while another session takes what comes. */
  readonly canBeLeft: boolean
  /** Connections that it has, opened or not. */
  readonly connections: number
}

/**
 * - `session`: it is for the session that there is
 * - `waits`: for the next one
 * - `renew`: likewise, and the one that there is ends, or is left with its disks: the next would be a better one
 * - `full`, `stopping`: nobody takes it
 */
export type Answer = 'session' | 'waits' | 'renew' | 'full' | 'stopping'

export class Reception<C extends ReceivedConnection> {
  private readonly queue: Waiting<C>
  private readonly session: () => SessionNow | undefined
  /** Nothing new is for the session that there is. */
  private drained = false
  private behind = new BehindDisks()
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

  /** A new connection. @param isStale whether the next session would be a better one; asked where no migration runs */
  comes(connection: C, isStale: () => boolean): Answer {
    const { gate } = connection
    const session = this.session()
    if (this.stopping && !isOpen(gate.migration)) return 'stopping'
    if (this.waiting.length + (session?.connections ?? 0) >= CONNECTIONS_HELD_MAX) return 'full'
    const answer = !this.takes(gate) ? 'waits' : this.isWorn(session!, isStale) ? 'renew' : 'session'
    if (answer !== 'session') this.queue.add(connection)
    return answer
  }

  /**
   * A session gives these back: the other side never heard of them.
   * @param isPresent it is the one that there is; if it lives, nothing new is for it
   * @returns those that nobody takes any more
   */
  back(connections: readonly C[], isPresent: boolean): readonly C[] {
    if (isPresent) this.drained = true
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
    this.behind = new BehindDisks()
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

  /** The session that there is has nothing to do but for disks, which may take hours, and gets nothing: it is to be left. */
  get isLeft(): boolean {
    const session = this.session()
    return this.drained && !this.stopping && session !== undefined && session.channels > 0 && mayEnd(session)
  }

  /** Whether it makes room for the next one where that would be a better one: no migration would notice. */
  get isIdle(): boolean {
    const session = this.session()
    return session !== undefined && mayEnd(session)
  }

  /** Whether the next session should take this one's place. */
  private isWorn(session: SessionNow, isStale: () => boolean): boolean {
    return mayEnd(session) && isStale() && !this.behind.isKept(session.transfers)
  }

  /** Whether the session that there is takes what comes in at this gate. */
  private takes({ migration }: ReceivedConnection['gate']): boolean {
    if (this.session()?.isUp !== true) return false
    return isOpen(migration) || (!this.drained && !this.stopping)
  }
}

/** No migration runs, and it is idle or can be left. */
function mayEnd({ channels, ofMigrations, canBeLeft }: SessionNow): boolean {
  return channels === 0 || (ofMigrations === 0 && canBeLeft)
}
