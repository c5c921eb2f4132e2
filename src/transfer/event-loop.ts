/** The event loop's time and turns, as a part: who waits for these is tested with another one. */

/** What runs later. */
export interface EventLoop {
  /** Milliseconds that only grow. */
  nowMs(): number
  /** Calls back in the next turn, once sockets had theirs. */
  soon(then: () => void): void
  /** Calls back after so many milliseconds, where the process lives that long. @returns takes it back */
  after(ms: number, then: () => void): () => void
}

/** This process's. */
export const EVENT_LOOP: EventLoop = {
  nowMs: () => performance.now(),
  soon: then => void setImmediate(then),
  after: (ms, then) => {
    const timer = setTimeout(then, ms).unref()
    return () => clearTimeout(timer)
  },
}

/** Resolves in the next turn. */
export function nextTurn(loop: EventLoop): Promise<void> {
  return new Promise(done => loop.soon(done))
}
