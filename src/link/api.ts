/** What the link layer is handed from above: where it logs, what time it is, and who gets what arrives. */
import type { SessionOptions, SessionSink } from '../session/api.ts'

/** Where events go; `event` is a stable dotted name, `fields` what belongs to it. */
export interface LinkLogger {
  info(event: string, fields: Readonly<Record<string, unknown>>): void
  warn(event: string, fields: Readonly<Record<string, unknown>>): void
  error(event: string, fields: Readonly<Record<string, unknown>>): void
}

/** Time, injected so that tests can let it run faster than the wall's. */
export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number
  /** Calls `run` once, at the earliest `ms` from now. @returns cancels it */
  after(ms: number, run: () => void): () => void
}

/** The real one. */
export const systemClock: Clock = {
  now: () => performance.now(),
  after: (ms, run) => {
    const timer = setTimeout(run, ms)
    return () => clearTimeout(timer)
  },
}

/** A session's sink; the link deals with `onLost` by itself. */
export interface LinkSink extends Omit<SessionSink, 'onLost'> {
  /**
   * Once at the end of a turn in which something changed, before bytes are pulled: the place to encode and hand in
   * batches while `session.bulkWanted`.
   */
  onWork(): void
  /** A connection came up, or went down with `error` (undefined: closed in order). For status and metrics. */
  onConnection?(connection: number, up: boolean, error?: Error): void
}

/** What a session can be told at its birth. */
export type SessionTuning = Omit<SessionOptions, 'role' | 'sink'>

/** Name and version for the logs of the other side. */
export const AGENT_DEFAULT = 'pageferry'
