/**
 * In which order targets are dialled: QEMU 7.2 tells channels by the order of their connections, so those of one target
 * are dialled one after the other, as their flows were opened, each when there is something to say (qemu-wire-format 1.3). Pure:
 * `dial` is an order, and `done` its answer.
 */

/** What flows to one address wait for. */
interface Line<F> {
  /** In the order of OPEN. */
  readonly flows: Set<F>
  dialling: F | undefined
}

export class DialQueue<F extends object> {
  private readonly dial: (flow: F, address: string) => void
  private readonly lines = new Map<string, Line<F>>()
  private readonly addresses = new Map<F, string>()
  private readonly wanted = new WeakSet<F>()
  private stopped = false

  /** @param dial connects, and calls `done` once, later, whatever comes of it */
  constructor(dial: (flow: F, address: string) => void) {
    this.dial = dial
  }

  /** Flows that wait for their turn, or for something to say. */
  get waiting(): number {
    let waiting = 0
    for (const { flows } of this.lines.values()) waiting += flows.size
    return waiting
  }

  /** A flow was opened. */
  add(flow: F, address: string): void {
    let line = this.lines.get(address)
    if (!line) {
      line = { flows: new Set(), dialling: undefined }
      this.lines.set(address, line)
    }
    line.flows.add(flow)
    this.addresses.set(flow, address)
    this.next(address)
  }

  /** There is something to say to its QEMU. May come before `add`. */
  wants(flow: F): void {
    this.wanted.add(flow)
    const address = this.addresses.get(flow)
    if (address !== undefined) this.next(address)
  }

  /** Nobody wants it any more. One that is being dialled keeps its place until `done`. */
  gone(flow: F): void {
    const address = this.addresses.get(flow)
    if (address === undefined) return
    const line = this.lines.get(address)!
    line.flows.delete(flow)
    if (line.dialling !== flow) this.addresses.delete(flow)
    this.next(address)
  }

  /** Its dial is over, well or not. */
  done(flow: F): void {
    const address = this.addresses.get(flow)!
    this.addresses.delete(flow)
    this.lines.get(address)!.dialling = undefined
    this.next(address)
  }

  /** The session has ended. */
  stop(): void {
    this.stopped = true
  }

  private next(address: string): void {
    const line = this.lines.get(address)!
    if (line.dialling) return
    const [first] = line.flows
    if (!first) this.lines.delete(address)
    else if (this.wanted.has(first) && !this.stopped) {
      line.flows.delete(first)
      line.dialling = first
      this.dial(first, address)
    }
  }
}
