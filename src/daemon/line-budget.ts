/**
 * Lines of the log that somebody outside decides: one peer, one QEMU, all strangers. Each of them gets so many a minute,
 * and what is beyond is counted, so that nobody fills the disk or hides another's lines.
 */
import { PEER_LINES_PER_MINUTE } from '../limits.ts'
import { EVENT_LOOP, type EventLoop } from '../transfer/event-loop.ts'

/** How often a count of lines that were left out is told. */
const TELL_MS = 15_000
const WINDOW_MS = 60_000
/** Counts take their place in the minute too: both ends of it may have one. */
const COUNTS = WINDOW_MS / TELL_MS + 1

/** What one cause has written lately. */
interface Account {
  /** When its last lines were written: a ring. */
  readonly at: Float64Array
  next: number
  leftOut: number
  lastMs: number
}

export class LineBudget {
  private readonly onLeftOut: (cause: string, lines: number) => void
  private readonly loop: Pick<EventLoop, 'nowMs' | 'after'>
  private readonly accounts = new Map<string, Account>()

  /** @param onLeftOut writes a line about lines that were left out */
  constructor(
    onLeftOut: (cause: string, lines: number) => void,
    loop: Pick<EventLoop, 'nowMs' | 'after'> = EVENT_LOOP,
  ) {
    this.onLeftOut = onLeftOut
    this.loop = loop
  }

  /**
   * Whether there is room for one more line of a cause: at most `perMinute` in any minute, those about lines left out
   * included.
   * @param cause identity of a peer, or a name for those who have none
   * @param perMinute the same for a cause at each call
   */
  takes(cause: string, perMinute = PEER_LINES_PER_MINUTE): boolean {
    const nowMs = this.loop.nowMs()
    let account = this.accounts.get(cause)
    if (!account) {
      this.forget(nowMs)
      account = {
        at: new Float64Array(perMinute - COUNTS).fill(Number.NEGATIVE_INFINITY),
        next: 0,
        leftOut: 0,
        lastMs: nowMs,
      }
      this.accounts.set(cause, account)
    }
    account.lastMs = nowMs
    if (nowMs - account.at[account.next]! < WINDOW_MS) {
      if (account.leftOut++ === 0) this.loop.after(TELL_MS, () => this.tell(cause, account))
      return false
    }
    account.at[account.next] = nowMs
    account.next = (account.next + 1) % account.at.length
    return true
  }

  private tell(cause: string, account: Account): void {
    const { leftOut } = account
    account.leftOut = 0
    this.onLeftOut(cause, leftOut)
  }

  /** Forgets who has been silent for a minute: names are bounded by what came in one. */
  private forget(nowMs: number): void {
    for (const [cause, { lastMs, leftOut }] of this.accounts)
      if (nowMs - lastMs >= WINDOW_MS && leftOut === 0) this.accounts.delete(cause)
  }
}
