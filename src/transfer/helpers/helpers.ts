/**
 * Threads beside the main one, for all sessions of a process, whether they encode or decode: as many in all as `--threads` says.
 * They look for parts of pages and pack (encoding-help.ts), unpack (decoding-help.ts), and commit memory of rings. A session
 * has its zstd streams on one of them, or on two: their pieces have an order.
 *
 * One that ends, or that does nothing for 15 s, is given up with the sessions whose streams it has. Whoever opens a session
 * next has another one in its place, once nothing of it runs any more. docs/adr/0023-threads.md, docs/adr/0024-unpacking-ahead.md
 */
import { UNPACK_PER_HOLDER } from '../../limits.ts'
import type { EventLoop } from '../event-loop.ts'
import { Helper, type StartHelper } from './helper.ts'
import type { OpenSession } from './helper-messages.ts'
import { startHelper } from './helper-thread.ts'
import { PartsBoard } from './parts-board.ts'

export class Helpers {
  readonly board = new PartsBoard()
  /** By place. */
  helpers: Helper[] = []
  private readonly count: number
  private readonly loop: EventLoop
  private readonly startHelper: StartHelper
  private lastSession = 0
  /** What those that begin later are told of sessions that live. */
  private readonly opened = new Map<number, OpenSession>()
  /** Batches before their turn, by holder. */
  private readonly ahead = new Map<string, number>()
  /** Resolves when none is about to end. */
  ending: Promise<unknown> = Promise.resolve()

  /** @param threads the main one counted: 2 at least */
  constructor(threads: number, loop: EventLoop, start: StartHelper = startHelper) {
    this.count = threads - 1
    this.loop = loop
    this.startHelper = start
  }

  /** Starts those that do not run, as far as the system has threads: what they are given meanwhile waits until they do. */
  start(): void {
    for (let place = 0; place < this.count; place++) {
      if (this.helpers[place]?.hasExited === false) continue
      let helper: Helper
      try {
        helper = new Helper(place, this.board, this.loop, this.startHelper)
      } catch {
        return // those that there are do all of it, and who comes next tries again
      }
      for (const session of this.opened.values()) helper.post(session)
      this.helpers[place] = helper
    }
  }

  /** Helps a session; undefined: none can. @param memory that all its addresses are of */
  open(memory: WebAssembly.Memory, parts: OpenSession['parts']): HelpedSession | undefined {
    this.start()
    let home: Helper | undefined
    for (const helper of this.helpers)
      if (helper.failure === undefined && (home === undefined || helper.sessions < home.sessions)) home = helper
    if (home === undefined) return undefined
    const open: OpenSession = { kind: 'open', session: ++this.lastSession, memory, parts }
    this.opened.set(open.session, open)
    for (const helper of this.helpers) helper.post(open)
    home.sessions++
    return new HelpedSession(this, open.session, home)
  }

  /** A session is over. Resolves when no helper touches its memory any more. */
  async close(session: number, home: Helper): Promise<void> {
    this.opened.delete(session)
    home.sessions--
    await Promise.all(this.helpers.map(helper => helper.whenDone(helper.post({ kind: 'close', session }))))
    home.wrong.delete(session)
  }

  /** Whether a holder may have another batch unpacked before its turn. */
  takeAhead(holder: string): boolean {
    const count = this.ahead.get(holder) ?? 0
    if (count >= UNPACK_PER_HOLDER) return false
    this.ahead.set(holder, count + 1)
    return true
  }

  giveAhead(holder: string): void {
    const count = this.ahead.get(holder)! - 1
    if (count === 0) this.ahead.delete(holder)
    else this.ahead.set(holder, count)
  }

  /** Has all let go of memories of sessions that they have left: one that waits never collects. */
  async collectGarbage(): Promise<void> {
    await Promise.all(this.helpers.map(helper => helper.whenDone(helper.post({ kind: 'collect' }))))
  }

  /** Ends them where no session has them. Resolves when nothing of them runs any more. */
  async endIdle(): Promise<void> {
    if (this.opened.size > 0) return
    this.ending = Promise.all(this.helpers.map(helper => helper.end()))
    await this.ending
  }
}

/** Helpers as one session has them. */
export class HelpedSession {
  readonly helpers: Helpers
  readonly number: number
  /** Where its streams are. */
  readonly home: Helper
  private closed: Promise<void> | undefined

  /** For Helpers alone. */
  constructor(helpers: Helpers, number: number, home: Helper) {
    this.helpers = helpers
    this.number = number
    this.home = home
  }

  /** Resolves when all help, or will not. */
  get started(): Promise<unknown> {
    return Promise.all(this.helpers.helpers.map(({ started }) => started))
  }

  /**
   * Has a stretch of the session's memory committed by the helper that has the least to do.
   * @returns undefined: there is none, or somebody waits for it; else resolves once it has, false where it did not
   */
  commit(at: number, length: number): Promise<boolean> | undefined {
    const ready = this.helpers.helpers.filter(helper => helper.isReady)
    const helper = ready.toSorted((a, b) => a.outstanding - b.outstanding)[0]
    if (this.closed !== undefined || helper === undefined || helper.isAwaited) return undefined
    const job = helper.post({ kind: 'commit', session: this.number, at, length })
    return helper.whenDone(job).then(() => helper.isDone(job))
  }

  /** Resolves when no helper touches the session's memory any more. */
  close(): Promise<void> {
    this.closed ??= this.helpers.close(this.number, this.home)
    return this.closed
  }
}
