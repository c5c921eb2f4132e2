/** Work at the end of a turn of the event loop: once, however often it is asked for, and when its time has come. */
import type { Clock } from './api.ts'
import { TickTimer } from './tick-timer.ts'

export class EndOfTurn {
  readonly #run: (isDue: boolean) => void
  readonly #timer: TickTimer
  #asked = false
  #due = false
  #stopped = false

  /** @param run does the work. `isDue`: the time that `askAt` set has come */
  constructor(clock: Clock, run: (isDue: boolean) => void) {
    this.#run = run
    const tick = (): void => {
      // The work waits for the end of this turn too: between the two, Node reads its sockets. After a pause of this process
      // (a long computation, a stopped VM) what a peer sent meanwhile is heard before the peer is declared dead.
      this.#due = true
      this.ask()
    }
    this.#timer = new TickTimer(clock.now, tick, clock.after)
  }

  /** There is something to do at the end of this turn. */
  ask(): void {
    if (this.#asked || this.#stopped) return
    this.#asked = true
    setImmediate(() => {
      this.#asked = false
      const isDue = this.#due
      this.#due = false
      if (!this.#stopped) this.#run(isDue)
    })
  }

  /** There will be something to do then; Infinity: not before something happens. */
  askAt(dueMs: number): void {
    this.#timer.arm(dueMs)
  }

  /** For good. */
  stop(): void {
    this.#stopped = true
    this.#timer.stop()
  }
}
