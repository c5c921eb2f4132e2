/**
 * Connections of QEMU between sessions: each that comes is given to the session that there is, or waits for the next one,
 * or is reset; and what becomes of a session that has nothing to do, or disks alone. Which, `Reception` and `SourceSessions`
 * say (src/migration/); here sessions are asked and told, and the timer runs.
 */
import { TickTimer } from '../link/tick-timer.ts'
import { type Answer, Reception } from '../migration/reception.ts'
import { type KeptSession, SourceSessions } from '../migration/source-sessions.ts'
import type { Moved } from './source-flow.ts'

/** One of its sessions. SourceRun is one. */
export interface ReceivingSession extends KeptSession {
  readonly session:
    | (NonNullable<KeptSession['session']> & {
        accept(socket: Moved['socket'], gate: Moved['gate']): void
        /** It serves what it has to its end: what has no flow yet goes on in another one. */
        leave(): void
      })
    | undefined
  /** Ends it in order: it has nothing to do. */
  close(): void
}

/** Why a connection is reset: too many are held, no new migrations are taken, or no session came. */
export type Rejection = 'full' | 'stopping' | 'overdue'

export interface SourceReceptionOptions<S> {
  readonly patienceMs: number
  readonly now: () => number
  /** Whether there are other sets than the session that there is has. */
  readonly isStale: () => boolean
  /** A session is being left to its disks: another one is to be opened for what comes. */
  readonly onLeft: (session: S) => void
  /** It is being reset. */
  readonly onRejected: (connection: Moved, why: Rejection) => void
  /** Another class in its place: a test's. */
  readonly engine?: typeof Reception<Moved>
}

export class SourceReception<S extends ReceivingSession> {
  private readonly options: SourceReceptionOptions<S>
  private readonly engine: Reception<Moved>
  private readonly kept = new SourceSessions<S>()
  private readonly timer: TickTimer

  constructor(options: SourceReceptionOptions<S>) {
    const { patienceMs, now, engine: Engine = Reception<Moved> } = options
    this.options = options
    this.engine = new Engine(patienceMs, () => this.kept.now())
    this.timer = new TickTimer(now, () => this.tick())
  }

  /** The sessions that there are. */
  get sessions(): Pick<SourceSessions<S>, 'present' | 'left' | 'all' | 'connections'> {
    return this.kept
  }

  /** Connections that wait for a session, in their order. */
  get waiting(): readonly Moved[] {
    return this.engine.waiting
  }

  // --- connections

  /** A new one. */
  comes(connection: Moved): Answer {
    const answer = this.engine.comes(connection, () => this.options.isStale() || this.kept.isCramped)
    if (answer === 'session') this.accept(connection)
    else if (answer === 'full' || answer === 'stopping') this.reject(connection, answer)
    else {
      if (answer === 'renew') this.renewIfIdle()
      this.arm()
    }
    return answer
  }

  /** There is a session, and it lives: it is given those that wait for it. */
  admit(): void {
    this.engine.admit(connection => this.accept(connection))
  }

  /**
   * The other side has taken a flow of it. A channel that came while this session took nothing new, and before its main had
   * said what it is, waits: now it is seen that it belongs to a migration that runs.
   */
  taken(session: S): void {
    if (session === this.kept.present) this.admit()
  }

  /** Resets those that wait and belong to no migration that runs. */
  rejectStrangers(): void {
    for (const { socket } of this.engine.strangers()) socket.reset()
  }

  private accept({ socket, gate }: Moved): void {
    this.kept.present!.session!.accept(socket, gate)
  }

  // --- sessions

  /** This one is about to be opened, to take what comes. */
  opens(session: S): void {
    this.engine.opens()
    this.kept.opens(session)
  }

  /** It gives these back: the other side never heard of them. */
  back(session: S, connections: readonly Moved[]): void {
    for (const { socket } of this.engine.back(connections, session === this.kept.present)) socket.reset()
    this.arm()
  }

  /** The other side takes no new migrations on it. */
  drained(session: S): void {
    if (session === this.kept.present) this.drain()
  }

  /** A flow of it has ended: it may have none left. */
  rests(session: S): void {
    if (session === this.kept.present) this.closeIfIdle()
    else if (this.kept.isServed(session)) session.close()
  }

  /** It is over. */
  ended(session: S): void {
    if (this.kept.ended(session)) this.closeIfIdle() // one more can be left
  }

  /** A session with nothing to do is closed where another is wanted, or none; one that has disks alone is left. */
  closeIfIdle(): void {
    const { engine, kept } = this
    if (engine.isDone) kept.present?.close()
    else if (engine.isLeft) this.leave(kept.present!)
  }

  private leave(session: S): void {
    this.options.onLeft(session)
    session.session!.leave()
    this.kept.leave()
  }

  /** What comes waits for the next one, which is opened when the migrations of the present one are over. */
  drain(): void {
    this.engine.drain()
    this.closeIfIdle()
  }

  /** The next session would be a better one: the present one ends where no migration would notice. */
  renewIfIdle(): void {
    if (this.engine.isIdle) this.drain()
  }

  /** The same where it has nothing at all to do, and its WAN stands: nobody waits for the next one. */
  renewIfEmpty(): void {
    const now = this.kept.now()
    if (now?.isUp && now.channels === 0) this.drain()
  }

  // --- the end

  /** No session gets new migrations any more. */
  stop(): void {
    this.engine.stop()
  }

  /** There will be no session any more: nobody is waited for. */
  close(): void {
    this.timer.stop()
  }

  /** Some have waited long enough. */
  private tick(): void {
    for (const connection of this.engine.over(this.options.now())) this.reject(connection, 'overdue')
    this.arm()
  }

  private arm(): void {
    this.timer.arm(this.engine.nextTickMs)
  }

  private reject(connection: Moved, why: Rejection): void {
    this.options.onRejected(connection, why)
    connection.socket.reset()
  }
}
