/**
 * Connections that come in at gates of disks: each is one of NBD, whose server speaks first, so it is opened at once. Those
 * that are open at one gate at a time are one *disk transfer*, which stands where a migration stands. Pure: times come in,
 * orders go out, and `tick` is due at `nextTickMs`.
 */
import { DISK_OPENS_BURST, DISK_OPENS_PER_SECOND } from '../limits.ts'
import { type Gate, type GateChannel, type GateOrders, type GateTransfer, GREETING_AWAITED_MS, isOpen } from './gate.ts'

/** What is to be done. */
export interface DiskGateOrders<C extends GateChannel, D extends GateTransfer> extends GateOrders<C, D> {
  /** Its server has not said a word: whoever waits for it stands still. */
  unanswered(channel: C, reason: string): void
}

/**
 * One for a session; the gates themselves outlive it.
 * @typeParam R - what else may run at gates of the same class
 */
export class DiskGates<C extends GateChannel & { readonly gate: Gate<C, R> }, D extends R, R extends GateTransfer = D> {
  /** Those that run. */
  readonly transfers = new Set<D>()
  private readonly orders: DiskGateOrders<C, D>
  /** Connections at once, which take no place of a channel. */
  private readonly places: number
  /** Connections that may still be opened at once, as of then. */
  private opensLeft = DISK_OPENS_BURST
  private opensAtMs = 0
  /** Those whose servers have not said a word when they were looked at last, and until when that is waited for, in that order. */
  private ungreeted = new Map<C, number>()

  constructor(orders: DiskGateOrders<C, D>, places: number) {
    this.orders = orders
    this.places = places
  }

  /** When `tick` is due; Infinity: not before something happens. */
  get nextTickMs(): number {
    const [first = Number.POSITIVE_INFINITY] = this.ungreeted.values()
    return first
  }

  /** A connection came in, or goes on here from another session. */
  arrived(channel: C, nowMs: number): void {
    const { gate } = channel
    let open = 0
    for (const { flows } of this.transfers) open += flows.size
    if (open >= this.places) {
      this.orders.refuse(channel, `${open} connections of disks are open`)
      return
    }
    if (!this.takes(nowMs)) {
      this.orders.refuse(channel, `connections of disks come faster than ${DISK_OPENS_PER_SECOND} a second`)
      return
    }
    let transfer = this.at(gate)
    // of another session, or on its way there: what comes now is no part of it
    if (!isOpen(transfer) || transfer.moved || !this.transfers.has(transfer)) {
      transfer = this.orders.begin(channel)
      gate.migration = transfer
      this.transfers.add(transfer)
    }
    this.orders.open(channel, transfer)
    if (transfer.flows.size === 0) this.ended(transfer)
    else this.ungreeted.set(channel, nowMs + GREETING_AWAITED_MS)
  }

  /** A transfer's last connection has ended. */
  ended(transfer: D): void {
    this.transfers.delete(transfer)
    const { gate } = transfer
    if (gate.migration === transfer) gate.migration = undefined
  }

  /** The session has ended: it orders nothing more. */
  stop(): void {
    this.ungreeted.clear()
  }

  tick(nowMs: number): void {
    for (const [channel, overMs] of this.ungreeted) {
      if (overMs > nowMs) break
      this.ungreeted.delete(channel)
      this.greeting(channel)
    }
  }

  private greeting(channel: C): void {
    // one whose client has left counts too: a server that hangs would hold its place for ever
    if (!channel.isUnanswered || ![...this.transfers].some(({ flows }) => flows.has(channel))) return
    this.orders.unanswered(channel, `the disk's server said nothing for ${GREETING_AWAITED_MS / 1000} s`)
  }

  /** What runs at a gate of disks: nothing else can. */
  private at({ migration }: Gate<C, R>): D | undefined {
    return migration as D | undefined
  }

  /** Whether there is an opening left for one more. */
  private takes(nowMs: number): boolean {
    const more = (Math.max(0, nowMs - this.opensAtMs) * DISK_OPENS_PER_SECOND) / 1000
    this.opensLeft = Math.min(DISK_OPENS_BURST, this.opensLeft + more)
    this.opensAtMs = nowMs
    if (this.opensLeft < 1) return false
    this.opensLeft--
    return true
  }
}
