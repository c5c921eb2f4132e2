// Decoder: runs of records as QEMU's main stream has them (qemu-wire-format.md 2), or bare pages.
import {
  EXPAND_BARE, EXPAND_FROM_PLACE, EXPAND_ONCE, HEAD_PAGE, HEAD_ZERO, NONE, PAGE_BITS, PAGE_BYTES, RUN_FLAGS, RUN_HEAD_HI,
  RUN_HEAD_LO, RUN_OUT, RUN_PAGES, RUN_PLACE, RUN_SLOT, RUN_WORDS,
} from '../constants'
import { poolBytes, slotAddress } from './state'
import { copyPage, touchPage } from './page'
import { insert, insertAndCopy, known, mark, placeGet, placeSet } from './ring'

const FAILED: u32 = 0xffffffff

/** Runs whose first pages are touched together, so that their cache misses overlap. */
const GROUP: u32 = 8

let sink: u64 = 0 // keeps the touching loads alive

// @ts-ignore: decorator
@inline function address(hi: u32, lo: u32): u64 {
  return (<u64>hi << 32) | <u64>lo
}

export function expandZeros(out: usize, addressHi: u32, addressLo: u32, n: u32): u32 {
  let a = address(addressHi, addressLo) | <u64>HEAD_ZERO
  let p = out
  for (let i: u32 = 0; i < n; i++) {
    store<u64>(p, bswap<u64>(a))
    store<u8>(p, 0, 8)
    p += 9
    a += PAGE_BYTES
  }
  return <u32>(p - out)
}

export function expandFill(out: usize, addressHi: u32, addressLo: u32, byte: u32, n: u32, flags: u32): u32 {
  let a = address(addressHi, addressLo) | <u64>HEAD_PAGE
  let p = out
  for (let i: u32 = 0; i < n; i++) {
    if (!(flags & EXPAND_BARE)) {
      store<u64>(p, bswap<u64>(a))
      p += 8
      a += PAGE_BYTES
    }
    memory.fill(p, <u8>byte, PAGE_BYTES)
    p += PAGE_BYTES
  }
  return <u32>(p - out)
}

export function expandPages(
  out: usize, addressHi: u32, addressLo: u32, slot: u32, n: u32, placeFirst: u32, flags: u32,
): u32 {
  let a = address(addressHi, addressLo) | <u64>HEAD_PAGE
  let p = out
  for (let i: u32 = 0; i < n; i++) {
    const place = placeFirst == NONE ? NONE : placeFirst + i
    const s = flags & EXPAND_FROM_PLACE ? placeGet(place) : slot + i
    if (!known(s)) return FAILED
    if (!(flags & EXPAND_BARE)) {
      store<u64>(p, bswap<u64>(a))
      p += 8
      a += PAGE_BYTES
    }
    copyPage(p, slotAddress(s))
    p += PAGE_BYTES
    mark(s)
    placeSet(place, s)
  }
  return <u32>(p - out)
}

export function expandRuns(list: usize, n: u32): u32 {
  for (let base: u32 = 0; base < n; base += GROUP) {
    const m = min(n - base, GROUP)
    let touch: u64 = 0
    for (let j: u32 = 0; j < m; j++) {
      const run = list + <usize>(base + j) * (RUN_WORDS << 2)
      // what a place has may be another page by its turn: then it is fetched then
      const slot = load<u32>(run, RUN_FLAGS << 2) & EXPAND_FROM_PLACE
        ? placeGet(load<u32>(run, RUN_PLACE << 2))
        : load<u32>(run, RUN_SLOT << 2)
      if (known(slot)) touch += touchPage(slotAddress(slot))
    }
    sink += touch
    for (let j: u32 = 0; j < m; j++) {
      const run = list + <usize>(base + j) * (RUN_WORDS << 2)
      const given = expandPages(
        load<u32>(run, RUN_OUT << 2), load<u32>(run, RUN_HEAD_HI << 2), load<u32>(run, RUN_HEAD_LO << 2),
        load<u32>(run, RUN_SLOT << 2), load<u32>(run, RUN_PAGES << 2), load<u32>(run, RUN_PLACE << 2),
        load<u32>(run, RUN_FLAGS << 2),
      )
      if (given == FAILED) return base + j
    }
  }
  return n
}

export function expandNew(
  out: usize, addressHi: u32, addressLo: u32, literals: usize, n: u32, placeFirst: u32, flags: u32,
): u32 {
  let a = address(addressHi, addressLo) | <u64>HEAD_PAGE
  let p = out
  let literal = literals
  for (let i: u32 = 0; i < n; i++) {
    if (!(flags & EXPAND_BARE)) {
      store<u64>(p, bswap<u64>(a))
      p += 8
      a += PAGE_BYTES
    }
    let slot: u32 = NONE
    if (flags & EXPAND_ONCE) copyPage(p, literal)
    else slot = insertAndCopy(literal, 0, p)
    if (placeFirst != NONE) placeSet(placeFirst + i, slot)
    p += PAGE_BYTES
    literal += PAGE_BYTES
  }
  return <u32>(p - out)
}

export function copyOut(out: usize, poolOffset: u32, length: u32): bool {
  if (poolOffset >= poolBytes || length > poolBytes - poolOffset) return false
  // page by page: slots that follow each other need not do so in memory
  let p = out
  let from = poolOffset
  for (let left = length; left != 0; ) {
    const take = min<u32>(left, PAGE_BYTES - (from & (PAGE_BYTES - 1)))
    memory.copy(p, slotAddress(from >> PAGE_BITS) + <usize>(from & (PAGE_BYTES - 1)), take)
    p += take
    from += take
    left -= take
  }
  mark(poolOffset >> PAGE_BITS)
  return true
}

/** One page from tokens (u16 literal length, u16 copy length, u32 source in the pool). Returns the literal bytes used. */
export function expandPatch(
  out: usize, addressHi: u32, addressLo: u32, tokens: usize, count: u32, literals: usize, place: u32, flags: u32,
): u32 {
  let p = out
  if (!(flags & EXPAND_BARE)) {
    store<u64>(p, bswap<u64>(address(addressHi, addressLo) | <u64>HEAD_PAGE))
    p += 8
  }
  const body = p
  const end = p + PAGE_BYTES
  let literal = literals
  for (let i: u32 = 0; i < count; i++) {
    const token = tokens + (<usize>i << 3)
    const literalBytes = <usize>load<u16>(token)
    const copyBytes = <usize>load<u16>(token, 2)
    if (literalBytes + copyBytes > end - p) return FAILED
    memory.copy(p, literal, literalBytes)
    literal += literalBytes
    p += literalBytes
    if (copyBytes) {
      if (!copyOut(p, load<u32>(token, 4), <u32>copyBytes)) return FAILED
      p += copyBytes
    }
  }
  if (p != end) return FAILED
  placeSet(place, insert(body, 0))
  return <u32>(literal - literals)
}
