/**
 * How much expanding one turn of the event loop may bring: all that expand in this process share it, so that whatever
 * waits for a socket (a PING, another peer's migration) waits for one such share and not for all that came at once.
 */

import type { EventLoop } from './event-loop.ts'

/** Work of a turn, as BatchExpander counts it: some 2 ms. What is begun is ended, so a turn may take one batch more. */
export const WORK_PER_TURN = 8 << 20

export class Turns {
  private done = 0
  private due = false
  /**
   * Who goes on in the next turns, one in each: holders take turns, whatever each of them has waiting, and what is one
   * holder's goes in the order in which it came.
   */
  protected readonly waiting = new Map<string, (() => void)[]>()
  private readonly loop: EventLoop

  constructor(loop: EventLoop) {
    this.loop = loop
  }

  /** Whether there is time left in this turn. */
  get hasTime(): boolean {
    return this.done < WORK_PER_TURN
  }

  /** Work was done. */
  spend(work: number): void {
    this.done += work
    this.schedule()
  }

  /** Resolves in a turn that has time. */
  next(holder: string): Promise<void> {
    this.schedule()
    return new Promise(go => {
      const queue = this.waiting.get(holder)
      if (queue) queue.push(go)
      else this.waiting.set(holder, [go])
    })
  }

  private schedule(): void {
    if (this.due) return
    this.due = true
    this.loop.soon(this.turn)
  }

  private readonly turn = (): void => {
    this.due = false
    this.done = 0
    for (const [holder, queue] of this.waiting) {
      this.waiting.delete(holder)
      const go = queue.shift()!
      if (queue.length > 0) this.waiting.set(holder, queue) // behind all others
      go()
      break
    }
    if (this.waiting.size > 0) this.schedule()
  }
}
