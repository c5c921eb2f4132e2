/**
 * How much expanding one turn of the event loop may bring: all that expand in this process share it, so that whatever
 * waits for a socket (a PING, another peer's migration) waits for one such share and not for all that came at once.
 */

/** Work of a turn, as BatchExpander counts it: some 2 ms. What is begun is ended, so a turn may take one batch more. */
const WORK_PER_TURN = 8 << 20

export class Turns {
  private done = 0
  private due = false
  /** Who goes on in the next turns: one in each, in the order in which they came. */
  private readonly waiting: (() => void)[] = []

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
  next(): Promise<void> {
    this.schedule()
    return new Promise(go => this.waiting.push(go))
  }

  private schedule(): void {
    if (this.due) return
    this.due = true
    setImmediate(this.turn)
  }

  private readonly turn = (): void => {
    this.due = false
    this.done = 0
    this.waiting.shift()?.()
    if (this.waiting.length > 0) this.schedule()
  }
}

/** Of this process. */
export const turns = new Turns()
