/**
 * Slots of a session's channels, cut from one stretch of the pool's memory: full ones as long as there are few, small
 * ones when there are many, and always one for each channel that may still come.
 */
import { assert } from '../errors.ts'

/** Bytes of the smallest slot: the credit that a flow begins with, and an incomplete record. */
export const SLOT_UNIT_BYTES = 64 * 1024

/** A stretch of the pool's memory for what one channel has waiting. */
export interface Slot {
  readonly at: number
  readonly bytes: number
}

export class SlotArena {
  private readonly at: number
  private readonly fullUnits: number
  /** 1: taken. */
  private readonly taken: Uint8Array
  private free: number
  private placesLeft: number

  /**
   * @param at address of `units` times SLOT_UNIT_BYTES
   * @param fullUnits of a full slot
   * @param places slots at once, at most
   */
  constructor(at: number, units: number, fullUnits: number, places: number) {
    assert(units >= places && fullUnits >= 1, 'every channel needs a slot')
    this.at = at
    this.fullUnits = fullUnits
    this.taken = new Uint8Array(units)
    this.free = units
    this.placesLeft = places
  }

  /**
   * A slot, as large as the others leave room for; undefined where all places are taken.
   * @param kept units beside the places that are left to others, whoever has had how many
   */
  take(kept = 0): Slot | undefined {
    if (this.placesLeft === 0) return undefined
    const spare = this.free - (this.placesLeft - 1) - kept
    const full = spare >= this.fullUnits ? this.find(this.fullUnits) : -1
    // small ones stand at the other end, so that full ones find whole stretches
    const units = full >= 0 ? this.fullUnits : 1
    const from = full >= 0 ? full : this.taken.lastIndexOf(0)
    this.taken.fill(1, from, from + units)
    this.free -= units
    this.placesLeft--
    return { at: this.at + from * SLOT_UNIT_BYTES, bytes: units * SLOT_UNIT_BYTES }
  }

  /** Nothing writes to it any more. */
  give({ at, bytes }: Slot): void {
    const from = (at - this.at) / SLOT_UNIT_BYTES
    const units = bytes / SLOT_UNIT_BYTES
    assert(this.taken[from] === 1, 'a slot that nobody has')
    this.taken.fill(0, from, from + units)
    this.free += units
    this.placesLeft++
  }

  /** The lowest stretch: memory that was touched is used again. @returns -1 where there is none */
  private find(units: number): number {
    for (let from = this.taken.indexOf(0); from >= 0; ) {
      const next = this.taken.indexOf(1, from)
      const end = next < 0 ? this.taken.length : next
      if (end - from >= units) return from
      from = next < 0 ? -1 : this.taken.indexOf(0, next)
    }
    return -1
  }
}
