/** What encoder and decoder do alike: the ring of passed pages, its marks, and what each place last received: as assembly/ring.ts. */
import { NONE, PAGE_BYTES, STATE_CURSOR, STATE_USED } from '../constants.ts'
import type { Hash } from './hash.ts'
import type { TwinMemory } from './memory.ts'
import type { Tables } from './table.ts'

export interface Ring {
  placeGet(place: number): number
  placeSet(place: number, slot: number): void
  mark(slot: number): void
  /** Slots that the cursor has passed, modulo 2^32. */
  passed(): number
  insert(at: number, hashed: boolean): number
  insertPage(at: number, place: number): number
}

export function makeRing(
  { layout, bytes, words, ringOrigin }: TwinMemory,
  { last }: Hash,
  { add, remove }: Tables,
): Ring {
  const { templatePages, ringPages, places, ringMark } = layout
  const ringHash = layout.ringHash >>> 2
  const placeTable = layout.placeTable >>> 2
  const cursorAt = (layout.state >>> 2) + STATE_CURSOR
  const usedAt = (layout.state >>> 2) + STATE_USED

  let passed = 0

  function placeGet(place: number): number {
    return place < places ? (words[placeTable + place]! - 1) >>> 0 : NONE
  }

  function placeSet(place: number, slot: number): void {
    if (place < places) words[placeTable + place] = slot + 1
  }

  function mark(slot: number): void {
    if (slot >= templatePages) bytes[ringMark + slot - templatePages] = 1
  }

  /** Takes the next ring slot for the page at `at`; hashed: its hash is the last one and goes to the tables. */
  function insert(at: number, hashed: boolean): number {
    if (ringPages === 0) return NONE
    let c = words[cursorAt]!
    while (bytes[ringMark + c] !== 0) {
      bytes[ringMark + c] = 0
      passed++
      c = c + 1 === ringPages ? 0 : c + 1
    }
    const slot = templatePages + c
    if (hashed) {
      const h = ringHash + 2 * c
      const oldLo = words[h]!
      const oldHi = words[h + 1]!
      if ((oldLo | oldHi) !== 0) remove(oldLo, oldHi, slot)
      words[h] = last.lo
      words[h + 1] = last.hi
      add(slot)
    }
    bytes.copyWithin(ringOrigin + slot * PAGE_BYTES, at, at + PAGE_BYTES)
    c++
    passed++
    if (c > words[usedAt]!) words[usedAt] = c
    words[cursorAt] = c === ringPages ? 0 : c
    return slot
  }

  return {
    placeGet,
    placeSet,
    mark,
    passed: () => passed >>> 0,
    insert,
    insertPage(at, place) {
      const slot = insert(at, false)
      placeSet(place, slot)
      return slot
    },
  }
}
