// The exact tables: hash to slot, open addressing, linear probing. An entry has 16 bytes, so that a look is one cache line:
// u64 hash (0: empty), u32 slot, and of templates u32 address. The one of the templates never
// changes once it is made, so that sessions can share it; the one of the ring deletes by shifting back.
import { NONE, PAGE_BITS } from '../constants'
import { ringOrigin, ringTable, ringTableMask, templateMask, templateTable } from './state'
import { samePage } from './page'

/** Slot whose page equals the page at `at`, or NONE. A page is in one table at most: what is found never enters the ring. */
export function find(at: usize, hash: u64): u32 {
  const slot = findTemplate(at, hash)
  return slot != NONE ? slot : findRing(at, hash)
}

export function findTemplate(at: usize, hash: u64): u32 {
  let e = <u32>hash & templateMask
  while (true) {
    const h = load<u64>(templateTable + (<usize>e << 4))
    if (h == 0) return NONE
    if (h == hash) {
      // the address stands beside the slot, which saves a look at the map
      const value = load<u64>(templateTable + (<usize>e << 4), 8)
      if (samePage(at, <usize>(value >> 32))) return <u32>value
    }
    e = (e + 1) & templateMask
  }
}

function findRing(at: usize, hash: u64): u32 {
  let e = <u32>hash & ringTableMask
  while (true) {
    const h = load<u64>(ringTable + (<usize>e << 4))
    if (h == 0) return NONE
    if (h == hash) {
      const slot = load<u32>(ringTable + (<usize>e << 4), 8)
      if (samePage(at, ringOrigin + (<usize>slot << PAGE_BITS))) return slot
    }
    e = (e + 1) & ringTableMask
  }
}

export function addTemplate(hash: u64, slot: u32, address: usize): void {
  let e = <u32>hash & templateMask
  while (load<u64>(templateTable + (<usize>e << 4))) e = (e + 1) & templateMask
  store<u64>(templateTable + (<usize>e << 4), hash)
  store<u64>(templateTable + (<usize>e << 4), <u64>slot | (<u64>address << 32), 8)
}

export function add(hash: u64, slot: u32): void {
  let e = <u32>hash & ringTableMask
  while (load<u64>(ringTable + (<usize>e << 4))) e = (e + 1) & ringTableMask
  store<u64>(ringTable + (<usize>e << 4), hash)
  store<u32>(ringTable + (<usize>e << 4), slot, 8)
}

export function remove(hash: u64, slot: u32): void {
  let hole = <u32>hash & ringTableMask
  while (true) {
    const h = load<u64>(ringTable + (<usize>hole << 4))
    if (h == 0) return
    if (h == hash && load<u32>(ringTable + (<usize>hole << 4), 8) == slot) break
    hole = (hole + 1) & ringTableMask
  }
  let e = hole
  while (true) {
    e = (e + 1) & ringTableMask
    const h = load<u64>(ringTable + (<usize>e << 4))
    if (h == 0) break
    // an entry may move back to the hole unless its home lies after the hole
    if (((e - <u32>h) & ringTableMask) >= ((e - hole) & ringTableMask)) {
      store<u64>(ringTable + (<usize>hole << 4), h)
      store<u32>(ringTable + (<usize>hole << 4), load<u32>(ringTable + (<usize>e << 4), 8), 8)
      hole = e
    }
  }
  store<u64>(ringTable + (<usize>hole << 4), 0)
  store<u32>(ringTable + (<usize>hole << 4), 0, 8)
}
