/**
 * Lines of the log that somebody outside decides: one peer, one QEMU, all strangers. Each of them gets so many a minute,
 * and what is beyond is counted, so that nobody fills the disk or hides another's lines.
 */
import { PEER_LINES_PER_MINUTE } from '../limits.ts'
import type { Log } from './log.ts'

/** How often a count of lines that were left out is told. */
const TELL_MS = 15_000
const WINDOW_MS = 60_000
/** Counts take their place in the minute too: both ends of it may have one. */
const LINES = PEER_LINES_PER_MINUTE - (WINDOW_MS / TELL_MS + 1)

/** Time, as the daemon has it; tests bring their own. */
export interface BudgetClock {
  now(): number
  /** Calls `run` once after `ms`; keeps no process alive. */
  after(ms: number, run: () => void): void
}

const WALL: BudgetClock = { now: () => performance.now(), after: (ms, run) => void setTimeout(run, ms).unref() }

/** What one cause has written lately. */
interface Account {
  /** When its last {@link LINES} lines were written: a ring. */
  readonly at: Float64Array
  next: number
  leftOut: number
  lastMs: number
}

export class LineBudget {
  private readonly log: Log
  private readonly clock: BudgetClock
  private readonly accounts = new Map<string, Account>()

  constructor(log: Log, clock: BudgetClock = WALL) {
    this.log = log
    this.clock = clock
  }

  /**
   * The log for what `cause` makes us say: at most {@link PEER_LINES_PER_MINUTE} lines in any minute, counts included.
   * @param cause identity of a peer, or a name for those who have none; all logs of one name share its lines
   */
  of(cause: string): Log {
    const line =
      (level: keyof Log) =>
      (event: string, fields?: object): void => {
        if (this.takes(cause)) this.log[level](event, fields)
      }
    return { info: line('info'), warn: line('warn'), error: line('error') }
  }

  /**
   * The log for a layer that serves many: what a line is about says who caused it. Lines with an `identity` count for it,
   * those about a `peer` that has none yet for all strangers together, others are our own and always written.
   */
  byFields(): Log {
    const line =
      (level: keyof Log) =>
      (event: string, fields: object = {}): void => {
        const { identity, peer } = fields as { identity?: unknown; peer?: unknown }
        const cause = typeof identity === 'string' ? identity : peer === undefined ? undefined : 'strangers'
        if (cause === undefined || this.takes(cause)) this.log[level](event, fields)
      }
    return { info: line('info'), warn: line('warn'), error: line('error') }
  }

  private takes(cause: string): boolean {
    const nowMs = this.clock.now()
    let account = this.accounts.get(cause)
    if (!account) {
      this.forget(nowMs)
      account = { at: new Float64Array(LINES).fill(Number.NEGATIVE_INFINITY), next: 0, leftOut: 0, lastMs: nowMs }
      this.accounts.set(cause, account)
    }
    account.lastMs = nowMs
    if (nowMs - account.at[account.next]! < WINDOW_MS) {
      if (account.leftOut++ === 0) this.clock.after(TELL_MS, () => this.tell(cause, account))
      return false
    }
    account.at[account.next] = nowMs
    account.next = (account.next + 1) % LINES
    return true
  }

  private tell(cause: string, account: Account): void {
    this.log.warn('lines left out: too many in a minute', { cause, lines: account.leftOut })
    account.leftOut = 0
  }

  /** Forgets who has been silent for a minute: names are bounded by what came in one. */
  private forget(nowMs: number): void {
    for (const [cause, { lastMs, leftOut }] of this.accounts)
      if (nowMs - lastMs >= WINDOW_MS && leftOut === 0) this.accounts.delete(cause)
  }
}
