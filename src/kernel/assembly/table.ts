// The exact table: hash to slot, open addressing, linear probing, deletion by shifting back. 0 marks an empty entry.
import { NONE, pool, tableHash, tableMask, tableSlot } from './state'
import { samePage } from './page'

/** Slot whose page equals the page at `at`, or NONE. */
export function find(at: usize, hash: u64): u32 {
  let e = <u32>hash & tableMask
  while (true) {
    const h = load<u64>(tableHash + (<usize>e << 3))
    if (h == 0) return NONE
    if (h == hash) {
      const slot = load<u32>(tableSlot + (<usize>e << 2))
      if (samePage(at, pool + (<usize>slot << 12))) return slot
    }
    e = (e + 1) & tableMask
  }
}

export function add(hash: u64, slot: u32): void {
  let e = <u32>hash & tableMask
  while (load<u64>(tableHash + (<usize>e << 3))) e = (e + 1) & tableMask
  store<u64>(tableHash + (<usize>e << 3), hash)
  store<u32>(tableSlot + (<usize>e << 2), slot)
}

export function remove(hash: u64, slot: u32): void {
  let hole = <u32>hash & tableMask
  while (true) {
    const h = load<u64>(tableHash + (<usize>hole << 3))
    if (h == 0) return
    if (h == hash && load<u32>(tableSlot + (<usize>hole << 2)) == slot) break
    hole = (hole + 1) & tableMask
  }
  let e = hole
  while (true) {
    e = (e + 1) & tableMask
    const h = load<u64>(tableHash + (<usize>e << 3))
    if (h == 0) break
    // an entry may move back to the hole unless its home lies after the hole
    if (((e - <u32>h) & tableMask) >= ((e - hole) & tableMask)) {
      store<u64>(tableHash + (<usize>hole << 3), h)
      store<u32>(tableSlot + (<usize>hole << 2), load<u32>(tableSlot + (<usize>e << 2)))
      hole = e
    }
  }
  store<u64>(tableHash + (<usize>hole << 3), 0)
  store<u32>(tableSlot + (<usize>hole << 2), 0)
}
