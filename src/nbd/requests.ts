import { NBD_REQUESTS_MAX } from '../limits.ts'
import type { NbdRequest } from './sink.ts'

/** A request whose fields are filled in again and again. */
export class RequestFields implements NbdRequest {
  type = 0
  flags = 0
  cookieHigh = 0
  cookieLow = 0
  offset = 0
  lengthBytes = 0
  payloadBytes = 0

  copy(from: NbdRequest): void {
    this.type = from.type
    this.flags = from.flags
    this.cookieHigh = from.cookieHigh
    this.cookieLow = from.cookieLow
    this.offset = from.offset
    this.lengthBytes = from.lengthBytes
    this.payloadBytes = from.payloadBytes
  }
}

const SLOTS_FIRST = 64 // QEMU's mirror has 16 under way
const FREE = -1

/**
 * The requests of a connection that are not answered, by cookie: a hash table, open addressing, in typed arrays, at most
 * half full. It grows by doubling; nothing else is allocated. Cookies that all collide cost as many steps as there are
 * requests, NBD_REQUESTS_MAX at most: some microseconds a message.
 */
export class Requests {
  /** Requests under way. */
  count = 0
  private slots = SLOTS_FIRST
  private types = new Int32Array(SLOTS_FIRST).fill(FREE)
  private flags = new Uint16Array(SLOTS_FIRST)
  private cookies = new Uint32Array(2 * SLOTS_FIRST)
  /** Offset, length, payload. */
  private places = new Float64Array(3 * SLOTS_FIRST)

  get full(): boolean {
    return this.count === NBD_REQUESTS_MAX
  }

  /** The slot of the request with this cookie, -1 where there is none. */
  find(cookieHigh: number, cookieLow: number): number {
    const slot = this.slotOf(cookieHigh, cookieLow)
    return this.types[slot] === FREE ? -1 : slot
  }

  /** Adds one; its cookie must not be there. */
  add(request: NbdRequest): void {
    if (2 * (this.count + 1) > this.slots) this.grow()
    this.put(request)
    this.count++
  }

  /** Fills in what lies in a slot. */
  read(slot: number, into: RequestFields): void {
    into.type = this.types[slot]!
    into.flags = this.flags[slot]!
    into.cookieHigh = this.cookies[2 * slot]!
    into.cookieLow = this.cookies[2 * slot + 1]!
    into.offset = this.places[3 * slot]!
    into.lengthBytes = this.places[3 * slot + 1]!
    into.payloadBytes = this.places[3 * slot + 2]!
  }

  /** Removes one, and moves up what it stood in the way of. */
  remove(slot: number): void {
    const mask = this.slots - 1
    this.count--
    let gap = slot
    for (let next = (slot + 1) & mask; this.types[next] !== FREE; next = (next + 1) & mask) {
      const home = this.home(this.cookies[2 * next]!, this.cookies[2 * next + 1]!)
      if (((next - home) & mask) < ((next - gap) & mask)) continue // its own way begins behind the gap
      this.move(next, gap)
      gap = next
    }
    this.types[gap] = FREE
  }

  private home(cookieHigh: number, cookieLow: number): number {
    // Cookies are counters (QEMU 10, libnbd) or addresses (QEMU 7.2): the multiplication spreads both.
    const mixed = Math.imul(cookieLow ^ Math.imul(cookieHigh, 0x85ebca6b), 0x9e3779b1)
    return (mixed ^ (mixed >>> 15)) & (this.slots - 1)
  }

  private slotOf(cookieHigh: number, cookieLow: number): number {
    const { types, cookies } = this
    let slot = this.home(cookieHigh, cookieLow)
    while (types[slot] !== FREE && (cookies[2 * slot] !== cookieHigh || cookies[2 * slot + 1] !== cookieLow)) {
      slot = (slot + 1) & (this.slots - 1)
    }
    return slot
  }

  private put(request: NbdRequest): void {
    const slot = this.slotOf(request.cookieHigh, request.cookieLow)
    this.types[slot] = request.type
    this.flags[slot] = request.flags
    this.cookies[2 * slot] = request.cookieHigh
    this.cookies[2 * slot + 1] = request.cookieLow
    this.places[3 * slot] = request.offset
    this.places[3 * slot + 1] = request.lengthBytes
    this.places[3 * slot + 2] = request.payloadBytes
  }

  private move(from: number, to: number): void {
    this.types[to] = this.types[from]!
    this.flags[to] = this.flags[from]!
    this.cookies.copyWithin(2 * to, 2 * from, 2 * from + 2)
    this.places.copyWithin(3 * to, 3 * from, 3 * from + 3)
  }

  private grow(): void {
    const before = { types: this.types, flags: this.flags, cookies: this.cookies, places: this.places }
    const slots = 2 * this.slots
    this.slots = slots
    this.types = new Int32Array(slots).fill(FREE)
    this.flags = new Uint16Array(slots)
    this.cookies = new Uint32Array(2 * slots)
    this.places = new Float64Array(3 * slots)
    for (const [slot, type] of before.types.entries()) {
      if (type === FREE) continue
      this.put({
        type,
        flags: before.flags[slot]!,
        cookieHigh: before.cookies[2 * slot]!,
        cookieLow: before.cookies[2 * slot + 1]!,
        offset: before.places[3 * slot]!,
        lengthBytes: before.places[3 * slot + 1]!,
        payloadBytes: before.places[3 * slot + 2]!,
      })
    }
  }
}
