/**
 * Connections of QEMU between sessions: each that comes is given to the session that there is, or waits for the next one,
 * or is reset. Which, `Reception` says (src/migration/reception.ts); here the session is asked and told, and the timer
 * runs.
 */
import { TickTimer } from '../link/tick-timer.ts'
import { type Answer, Reception, type SessionNow } from '../migration/reception.ts'
import type { Moved } from './source-flow.ts'

/** The session that there is. */
export interface PresentSession extends SessionNow {
  accept(connection: Moved): void
  /** Ends it in order: it has nothing to do. */
  close(): void
  /** Another one takes what comes: it serves its disks to their end. */
  leave(): void
}

/** Why a connection is reset: too many are held, no new migrations are taken, or no session came. */
export type Rejection = 'full' | 'stopping' | 'overdue'

export interface SourceReceptionOptions {
  readonly patienceMs: number
  readonly now: () => number
  readonly present: () => PresentSession | undefined
  /** Whether the next session would be a better one than one that idles. */
  readonly isStale: () => boolean
  /** It is being reset. */
  readonly onRejected: (connection: Moved, why: Rejection) => void
  /** Another class in its place: a test's. */
  readonly engine?: typeof Reception<Moved>
}

export class SourceReception {
  private readonly options: SourceReceptionOptions
  private readonly engine: Reception<Moved>
  private readonly timer: TickTimer

  constructor(options: SourceReceptionOptions) {
    const { patienceMs, now, present, engine: Engine = Reception<Moved> } = options
    this.options = options
    this.engine = new Engine(patienceMs, present)
    this.timer = new TickTimer(now, () => this.tick())
  }

  /** Connections that wait for a session, in their order. */
  get waiting(): readonly Moved[] {
    return this.engine.waiting
  }

  /** A new connection. */
  comes(connection: Moved): Answer {
    const answer = this.engine.comes(connection, this.options.isStale)
    if (answer === 'session') this.options.present()!.accept(connection)
    else if (answer === 'full' || answer === 'stopping') this.reject(connection, answer)
    else {
      if (answer === 'renew') this.renewIfIdle()
      this.arm()
    }
    return answer
  }

  /** A session gives these back: the other side never heard of them. @param isPresent it is the one that there is */
  back(connections: readonly Moved[], isPresent = true): void {
    for (const { socket } of this.engine.back(connections, isPresent)) socket.reset()
    this.arm()
  }

  /** There is a session, and it lives: it is given those that wait for it. */
  admit(): void {
    this.engine.admit(connection => this.options.present()!.accept(connection))
  }

  /** A session is about to be opened. */
  opens(): void {
    this.engine.opens()
  }

  /** The session that there is gets no new migrations. */
  drain(): void {
    this.engine.drain()
    this.closeIfIdle()
  }

  /** No session gets new migrations any more. */
  stop(): void {
    this.engine.stop()
  }

  /** Resets those that wait and belong to no migration that runs. */
  rejectStrangers(): void {
    for (const { socket } of this.engine.strangers()) socket.reset()
  }

  /** A session with nothing to do is closed where another is wanted, or none; one that has disks alone is left. */
  closeIfIdle(): void {
    const { engine, options } = this
    if (engine.isDone) options.present()?.close()
    else if (engine.isLeft) options.present()?.leave()
  }

  /** The next session would be a better one: the present one ends where no migration would notice. */
  renewIfIdle(): void {
    if (this.engine.isIdle) this.drain()
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
