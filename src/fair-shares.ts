/**
 * One pot for all sessions of a process, shared by holder (the identity of a peer) and not by session, so that opening
 * more sessions gains nothing: bytes of memory or of a disk, flows, pieces, places. Pure.
 *
 * Shares follow what is free, as buffers of shared-memory switches do (Choudhury and Hahne, "Dynamic queue length
 * thresholds", 1998, with a factor of 1): a holder may hold at most as much as nobody holds. One alone gets half of the
 * pot, two get a third each, n get 1/(n+1) each, and the last part is there for whoever comes next.
 */

import { assert } from './errors.ts'

export class FairShares {
  readonly total: number
  private sum = 0
  /** By holder; who holds nothing is not in it. */
  private readonly holders = new Map<string, number>()

  /** @param total units in the pot */
  constructor(total: number) {
    this.total = total
  }

  /** Units that are held by anybody. */
  get used(): number {
    return this.sum
  }

  /** Units that a holder has, over all of its shares. */
  held(holder: string): number {
    return this.holders.get(holder) ?? 0
  }

  /** Units that a holder may take now: half of what it lacks of what is free, rounded up, so that a pot of one can be had. */
  room(holder: string): number {
    return roomOf(this.total - this.sum, this.held(holder))
  }

  /** The same if `other` had given one unit back. */
  roomWithout(other: string, holder: string): number {
    return roomOf(this.total - this.sum + 1, this.held(holder) - (other === holder ? 1 : 0))
  }

  /** A share for one session of a holder. `close` it when the session has ended. */
  share(holder: string): Share {
    return new Share({
      room: () => this.room(holder),
      add: units => {
        this.sum += units
        const held = this.held(holder) + units
        if (held > 0) this.holders.set(holder, held)
        else this.holders.delete(holder)
      },
    })
  }
}

function roomOf(free: number, held: number): number {
  return Math.max(0, Math.ceil((free - held) / 2))
}

interface Pot {
  /** Units that the holder may take now. */
  room(): number
  /** @param units below 0: given back */
  add(units: number): void
}

/** What one session holds of a pot. */
export class Share {
  private readonly pot: Pot
  private own = 0
  private closed = false

  /** @internal FairShares makes them. */
  constructor(pot: Pot) {
    this.pot = pot
  }

  /** Units that this session holds. */
  get held(): number {
    return this.own
  }

  /** Units that could be taken now. */
  get room(): number {
    return this.closed ? 0 : this.pot.room()
  }

  /** Takes `units`, or nothing. @returns whether they were taken */
  take(units: number): boolean {
    if (units > this.room) return false
    this.own += units
    this.pot.add(units)
    return true
  }

  /** Takes as much of `units` as may be had. @returns units taken */
  takeUpTo(units: number): number {
    const taken = Math.min(units, this.room)
    return taken > 0 && this.take(taken) ? taken : 0
  }

  /** Gives back a part of what was taken. */
  give(units: number): void {
    if (this.closed || units === 0) return
    assert(units <= this.own, `${units} are given back, ${this.own} were taken`)
    this.own -= units
    this.pot.add(-units)
  }

  /** Gives all back. Nothing can be taken any more; `give` does nothing. */
  close(): void {
    if (this.closed) return
    this.give(this.own)
    this.closed = true
  }
}
