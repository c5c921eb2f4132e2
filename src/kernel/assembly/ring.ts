// What encoder and decoder must do alike: the ring of passed pages, its marks, and what each place last received.
import { NONE, PAGE_BITS } from '../constants'
import {
  CURSOR, USED, placeTable, places, poolPages, ringHash, ringMark, ringOrigin, ringPages, state, templatePages,
} from './state'
import { copyPage, copyPageTwice } from './page'
import { add, remove } from './table'

/** Slot that a place last received, or NONE. In memory it is slot + 1, so that an untouched table costs no memory. */
// @ts-ignore: decorator
@inline export function placeGet(place: u32): u32 {
  return place < places ? load<u32>(placeTable + (<usize>place << 2)) - 1 : NONE
}

// @ts-ignore: decorator
@inline export function placeSet(place: u32, slot: u32): void {
  if (place < places) store<u32>(placeTable + (<usize>place << 2), slot + 1)
}

/** Gives a ring slot its second chance. */
// @ts-ignore: decorator
@inline export function mark(slot: u32): void {
  if (slot >= templatePages) store<u8>(ringMark + <usize>(slot - templatePages), 1)
}

/** Slots that the cursor has passed, modulo 2^32: those it took, and those it spared. */
export let passed: u32 = 0

/** Takes the next ring slot for a page, which is still to be copied there; hash 0: without tables (decoder). NONE without a ring. */
function take(hash: u64): u32 {
  const r = ringPages
  if (r == 0) return NONE
  let c = load<u32>(state, CURSOR)
  while (load<u8>(ringMark + <usize>c)) {
    store<u8>(ringMark + <usize>c, 0)
    c++
    passed++
    if (c == r) c = 0
  }
  const slot = templatePages + c
  if (hash != 0) {
    const old = load<u64>(ringHash + (<usize>c << 3))
    if (old != 0) remove(old, slot)
    store<u64>(ringHash + (<usize>c << 3), hash)
    add(hash, slot)
  }
  c++
  passed++
  if (c > load<u32>(state, USED)) store<u32>(state, c, USED)
  store<u32>(state, c == r ? 0 : c, CURSOR)
  return slot
}

/** Takes the page at `at` into the ring. Returns its slot, NONE without a ring. */
export function insert(at: usize, hash: u64): u32 {
  const slot = take(hash)
  if (slot != NONE) copyPage(ringOrigin + (<usize>slot << PAGE_BITS), at)
  return slot
}

/** The same, and copies the page to `to`: read once, which gives a third more than two copies. */
export function insertAndCopy(at: usize, hash: u64, to: usize): u32 {
  const slot = take(hash)
  if (slot != NONE) copyPageTwice(ringOrigin + (<usize>slot << PAGE_BITS), to, at)
  else copyPage(to, at)
  return slot
}

/** Decoder: the page at `at` passed at `place`. Returns its slot, or NONE without a ring. */
export function insertPage(at: usize, place: u32): u32 {
  const slot = insert(at, 0)
  placeSet(place, slot)
  return slot
}

/** Decoder: whether slot and place can be referenced at all. */
// @ts-ignore: decorator
@inline export function known(slot: u32): bool {
  return slot < poolPages
}
