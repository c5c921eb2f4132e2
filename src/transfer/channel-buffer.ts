/**
 * Where a channel's bytes lie from the socket's read to their batch: one stretch of the pool's memory. Bytes are written
 * behind those that wait, and lent to a batch from the front. What is lent stays as it is until it is given back, however
 * long the batch takes; what waits is always in one piece, because parser and encoder want it so.
 *
 *   const room = buffer.writable(most, least)      // undefined: not now
 *   const at = buffer.filled(count)                // so many bytes of it are there, from this address on
 *   const loan = buffer.lend(length)               // the first of those that wait
 *   loan.release()
 *
 * At the end of the stretch, what waits goes to its front, where nothing is lent there: an incomplete record, as a rule.
 */
import { copyRange } from '../bytes/copy.ts'
import { assert } from '../errors.ts'

/** Bytes that a batch is made of, in the pool's memory. */
export interface Loan {
  /** Address of the first. */
  readonly at: number
  readonly length: number
  /** They are not needed any more. Once. */
  release(): void
}

export class ChannelBuffer {
  /** The pool's memory. */
  private readonly memory: Uint8Array
  private readonly start: number
  private readonly end: number
  /** Bytes that wait: from `first` to `fill`. */
  private first: number
  private fill: number
  private readonly lent: Loan[] = []

  /**
   * @param memory of the pool
   * @param at address of the stretch, `length` its bytes
   */
  constructor(memory: Uint8Array, at: number, length: number) {
    this.memory = memory
    this.start = at
    this.end = at + length
    this.first = at
    this.fill = at
  }

  /** Bytes that are in no batch yet. */
  get waiting(): number {
    return this.fill - this.first
  }

  /** Address of the first of them. */
  get waitingAt(): number {
    return this.first
  }

  /**
   * Room for bytes to come, `least` to `most` of them, behind those that wait. It may be used until the next call.
   * @param moved bytes that may be moved to the front for it, at most
   * @returns undefined where there is no room for `least` until something is lent or given back
   */
  writable(most: number, least = 1, moved = Number.POSITIVE_INFINITY): Uint8Array | undefined {
    if (most < least) return undefined
    if (this.waiting === 0 && this.lent.length === 0) this.moveTo(this.start)
    let room = this.roomBehind(this.fill)
    if (room < least && this.waiting <= moved && this.isFree(this.start, this.waiting)) {
      const there = this.roomBehind(this.start + this.waiting)
      // none is gained where something is lent between
      if (there > room) {
        this.moveTo(this.start)
        room = there
      }
    }
    return room < least ? undefined : this.memory.subarray(this.fill, this.fill + Math.min(room, most))
  }

  /**
   * So many bytes are in what `writable` gave.
   * @returns address of the first
   */
  filled(count: number): number {
    assert(count <= this.roomBehind(this.fill), 'more bytes than there was room')
    const at = this.fill
    this.fill += count
    return at
  }

  /** Lends the first `length` of the bytes that wait, at least one: they wait no more. */
  lend(length: number): Loan {
    assert(length > 0 && length <= this.waiting, `${length} bytes lent, ${this.waiting} wait`)
    const at = this.first
    this.first += length
    const loan: Loan = {
      at,
      length,
      release: () => {
        const index = this.lent.indexOf(loan)
        assert(index >= 0, 'a loan is given back twice')
        this.lent.splice(index, 1)
      },
    }
    this.lent.push(loan)
    return loan
  }

  /** Bytes from an address on up to what is lent, or to the end of the stretch. */
  private roomBehind(from: number): number {
    let end = this.end
    for (const { at } of this.lent) if (at >= from && at < end) end = at
    return end - from
  }

  private isFree(at: number, length: number): boolean {
    return this.lent.every(loan => loan.at >= at + length || loan.at + loan.length <= at)
  }

  private moveTo(at: number): void {
    const { waiting } = this
    copyRange(this.memory, this.first, this.fill, this.memory, at)
    this.first = at
    this.fill = at + waiting
  }
}
