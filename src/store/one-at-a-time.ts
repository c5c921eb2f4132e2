/** Reads of a store one after the other: of a disk that hangs one of libuv's four threads waits, and the others are free. */
export class OneAtATime {
  private last: Promise<unknown> = Promise.resolve()

  /** Runs once all that came before has settled. */
  run<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.last.then(work)
    this.last = turn.catch(() => {}) // whoever waits for it hears
    return turn
  }
}
