// The exact tables: hash to slot, open addressing, linear probing. 0 marks an empty entry. The one of the templates never
// changes once it is made, so that sessions can share it; the one of the ring deletes by shifting back.
import { NONE, PAGE_BITS } from '../constants'
import {
  ringOrigin, ringTableHash, ringTableMask, ringTableSlot, templateHash, templateMask, templateValue,
} from './state'
import { samePage } from './page'

/** Slot whose page equals the page at `at`, or NONE. A page is in one table at most: what is found never enters the ring. */
export function find(at: usize, hash: u64): u32 {
  const slot = findTemplate(at, hash)
  return slot != NONE ? slot : findRing(at, hash)
}

export function findTemplate(at: usize, hash: u64): u32 {
  let e = <u32>hash & templateMask
  while (true) {
    const h = load<u64>(templateHash + (<usize>e << 3))
    if (h == 0) return NONE
    if (h == hash) {
      // the address stands beside the slot, which saves a look at the map
      const value = load<u64>(templateValue + (<usize>e << 3))
      if (samePage(at, <usize>(value >> 32))) return <u32>value
    }
    e = (e + 1) & templateMask
  }
}

function findRing(at: usize, hash: u64): u32 {
  let e = <u32>hash & ringTableMask
  while (true) {
    const h = load<u64>(ringTableHash + (<usize>e << 3))
    if (h == 0) return NONE
    if (h == hash) {
      const slot = load<u32>(ringTableSlot + (<usize>e << 2))
      if (samePage(at, ringOrigin + (<usize>slot << PAGE_BITS))) return slot
    }
    e = (e + 1) & ringTableMask
  }
}

export function addTemplate(hash: u64, slot: u32, address: usize): void {
  let e = <u32>hash & templateMask
  while (load<u64>(templateHash + (<usize>e << 3))) e = (e + 1) & templateMask
  store<u64>(templateHash + (<usize>e << 3), hash)
  store<u64>(templateValue + (<usize>e << 3), <u64>slot | (<u64>address << 32))
}

export function add(hash: u64, slot: u32): void {
  let e = <u32>hash & ringTableMask
  while (load<u64>(ringTableHash + (<usize>e << 3))) e = (e + 1) & ringTableMask
  store<u64>(ringTableHash + (<usize>e << 3), hash)
  store<u32>(ringTableSlot + (<usize>e << 2), slot)
}

export function remove(hash: u64, slot: u32): void {
  let hole = <u32>hash & ringTableMask
  while (true) {
    const h = load<u64>(ringTableHash + (<usize>hole << 3))
    if (h == 0) return
    if (h == hash && load<u32>(ringTableSlot + (<usize>hole << 2)) == slot) break
    hole = (hole + 1) & ringTableMask
  }
  let e = hole
  while (true) {
    e = (e + 1) & ringTableMask
    const h = load<u64>(ringTableHash + (<usize>e << 3))
    if (h == 0) break
    // an entry may move back to the hole unless its home lies after the hole
    if (((e - <u32>h) & ringTableMask) >= ((e - hole) & ringTableMask)) {
      store<u64>(ringTableHash + (<usize>hole << 3), h)
      store<u32>(ringTableSlot + (<usize>hole << 2), load<u32>(ringTableSlot + (<usize>e << 2)))
      hole = e
    }
  }
  store<u64>(ringTableHash + (<usize>hole << 3), 0)
  store<u32>(ringTableSlot + (<usize>hole << 2), 0)
}
