/** What simulations stand on: a time that passes only when the simulation says so. */

interface Event {
  at: number
  order: number
  run: () => void
}

/** Events by time, then by the order in which they were planned. */
export class Agenda {
  private heap: Event[] = []
  private order = 0

  get length(): number {
    return this.heap.length
  }

  add(at: number, run: () => void): void {
    const heap = this.heap
    const event = { at, order: this.order++, run }
    let i = heap.length
    heap.push(event)
    while (i > 0) {
      const up = (i - 1) >> 1
      if (!before(event, heap[up]!)) break
      heap[i] = heap[up]!
      i = up
    }
    heap[i] = event
  }

  take(): Event | undefined {
    const heap = this.heap
    const first = heap[0]
    const last = heap.pop()
    if (!last || heap.length === 0) return first
    let i = 0
    for (;;) {
      let down = 2 * i + 1
      if (down >= heap.length) break
      if (down + 1 < heap.length && before(heap[down + 1]!, heap[down]!)) down++
      if (!before(heap[down]!, last)) break
      heap[i] = heap[down]!
      i = down
    }
    heap[i] = last
    return first
  }
}

function before(a: Event, b: Event): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order)
}

/** A process: what it has planned goes with it. */
export class Process {
  readonly name: string
  alive = true
  /** Timers that it has running: `setTimeout`. */
  timers = 0

  constructor(name: string) {
    this.name = name
  }
}

/** Time that passes from event to event. While it is installed, `setTimeout` is of it. */
export class VirtualTime {
  nowMs = 0
  /** Something was promised to asynchronous code: it must have its turn before the next event. */
  promised = false
  private readonly agenda = new Agenda()
  private current: Process | undefined

  /** Runs `run` as this process. */
  as<T>(process: Process | undefined, run: () => T): T {
    const { current } = this
    this.current = process
    try {
      return run()
    } finally {
      this.current = current
    }
  }

  /** Plans an event of the process that runs; it does not come where that has died. */
  after(ms: number, run: () => void): void {
    this.afterAs(this.current, ms, run)
  }

  /** Plans an event of this process, or of the world. */
  afterAs(process: Process | undefined, ms: number, run: () => void): void {
    this.agenda.add(this.nowMs + ms, () => {
      if (process?.alive !== false) this.as(process, run)
    })
  }

  /** Lets the next event happen. @returns false where there is none */
  step(): boolean {
    const event = this.agenda.take()
    if (!event) return false
    this.nowMs = Math.max(this.nowMs, event.at)
    event.run()
    return true
  }

  /** Puts its own timers in place of Node's. @returns puts them back */
  install(): () => void {
    const { setTimeout, clearTimeout } = globalThis
    const running = new Map<object, Process | undefined>()
    const end = (timer: object): boolean => {
      const process = running.get(timer)
      if (!running.delete(timer)) return false
      if (process) process.timers--
      return true
    }
    const set = (run: () => void, ms = 0): object => {
      const timer = { ref: () => timer, unref: () => timer }
      const process = this.current
      running.set(timer, process)
      if (process) process.timers++
      this.after(Math.max(1, Math.trunc(ms)), () => end(timer) && run())
      return timer
    }
    const clear = (timer: object | undefined): void => void (timer && end(timer))
    Object.assign(globalThis, { setTimeout: set, clearTimeout: clear })
    return () => void Object.assign(globalThis, { setTimeout, clearTimeout })
  }
}
