/**
 * The way from an accepted socket to its handshake, for one kind of arrivals (strangers, or those who come from where
 * peers came from). Whoever says nothing costs a socket; a handshake costs a millisecond of CPU and 100 KiB, so only so
 * many begin in a second, address by address in turn, and only so many are under way.
 */
import type { Clock } from './api.ts'
import { WaitingRoom } from './waiting-room.ts'

/** Handshakes that begin in one turn of the event loop: others want it too. */
const TURN_MAX = 4
/** Of those who begin before they speak, handshakes of one group under way: the connections of one session. */
const AT_ONCE_GROUP_MAX = 16

export interface DoorOptions<T> {
  readonly clock: Clock
  /** Places of those who have not said anything, and of those whose first bytes wait for their turn: each so many. */
  readonly waitingMax: number
  /** Handshakes under way. */
  readonly handshakesMax: number
  /** Handshakes that begin in a second, and at once after a quiet time. */
  readonly perSecond: number
  readonly burst: number
  /**
   * Who comes in quiet times need not say anything before its turn. Where TLS is there before the first bytes, it reads by
   * 64 KiB; Node.js gives it what was read before in a buffer of that length, and then reads by that for good.
   */
  readonly atOnce: boolean
  /** An arrival's turn has come. */
  readonly begin: (arrival: T) => void
  /** An arrival has lost its place: others of its group, or older ones, were too many. */
  readonly crowdedOut: (arrival: T) => void
}

export class Door<T extends { readonly group: string }> {
  readonly #options: DoorOptions<T>
  readonly #silent: WaitingRoom<T>
  readonly #ready: WaitingRoom<T>
  readonly #under: WaitingRoom<T>
  #tokens: number
  #filledMs: number
  #scheduled = false

  constructor(options: DoorOptions<T>) {
    this.#options = options
    this.#silent = new WaitingRoom(options.waitingMax)
    this.#ready = new WaitingRoom(options.waitingMax)
    this.#under = new WaitingRoom(options.handshakesMax)
    this.#tokens = options.burst
    this.#filledMs = options.clock.now()
  }

  /** Arrivals that are neither let in nor gone. */
  get size(): number {
    return this.#silent.size + this.#ready.size + this.#under.size
  }

  *[Symbol.iterator](): IterableIterator<T> {
    yield* this.#silent
    yield* this.#ready
    yield* this.#under
  }

  /** Somebody is there who has said nothing yet. In quiet times it is its turn. */
  arrive(arrival: T): void {
    const { atOnce, burst, handshakesMax } = this.#options
    this.#refill()
    // half of all is left to those who have said something, address by address in turn
    const isQuiet = this.#ready.size === 0 && this.#tokens > burst / 2 && this.#under.size < handshakesMax / 2
    if (atOnce && isQuiet && this.#under.sizeOf(arrival.group) < AT_ONCE_GROUP_MAX) this.#admit(arrival)
    else this.#enter(this.#silent, arrival)
  }

  /** First bytes of an arrival are there: `begin` comes when it is its turn. */
  spoke(arrival: T): void {
    if (!this.#silent.leave(arrival)) return
    this.#enter(this.#ready, arrival)
    this.#schedule(0)
  }

  /** Gone, or let in. */
  leave(arrival: T): void {
    if (!this.#silent.leave(arrival) && !this.#ready.leave(arrival)) this.#under.leave(arrival)
  }

  #enter(room: WaitingRoom<T>, arrival: T): void {
    const loser = room.enter(arrival, arrival.group)
    if (loser) this.#options.crowdedOut(loser)
  }

  #schedule(ms: number): void {
    if (this.#scheduled || this.#ready.size === 0) return
    this.#scheduled = true
    this.#options.clock.after(ms, () => {
      this.#scheduled = false
      this.#open()
    })
  }

  #refill(): void {
    const { clock, perSecond, burst } = this.#options
    const nowMs = clock.now()
    this.#tokens = Math.min(burst, this.#tokens + ((nowMs - this.#filledMs) / 1000) * perSecond)
    this.#filledMs = nowMs
  }

  #admit(arrival: T): void {
    this.#tokens--
    this.#enter(this.#under, arrival)
    this.#options.begin(arrival)
  }

  #open(): void {
    const { perSecond } = this.#options
    this.#refill()
    for (let i = 0; i < TURN_MAX && this.#tokens >= 1; i++) {
      const arrival = this.#ready.next()
      if (!arrival) return
      this.#admit(arrival)
    }
    this.#schedule(this.#tokens >= 1 ? 0 : Math.ceil(((1 - this.#tokens) / perSecond) * 1000))
  }
}
