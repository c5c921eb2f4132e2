// Decoder: runs of records as QEMU's main stream has them (qemu-wire-format.md 2), or bare pages.
import { NONE, places, poolBytes, slotAddress } from './state'
import { insert, known, mark, placeGet, placeSet } from './ring'

/** Flags in the low bits of a record's head: CONTINUE | PAGE and CONTINUE | ZERO. Source: QEMU migration/ram.c. */
const HEAD_PAGE: u64 = 0x28
const HEAD_ZERO: u64 = 0x22

/** Bits of `flags`. */
const BARE: u32 = 1
const FROM_PLACE: u32 = 2

const FAILED: u32 = 0xffffffff

// @ts-ignore: decorator
@inline function address(hi: u32, lo: u32): u64 {
  return (<u64>hi << 32) | <u64>lo
}

export function expandZeros(out: usize, addressHi: u32, addressLo: u32, n: u32): u32 {
  let a = address(addressHi, addressLo) | HEAD_ZERO
  let p = out
  for (let i: u32 = 0; i < n; i++) {
    store<u64>(p, bswap<u64>(a))
    store<u8>(p, 0, 8)
    p += 9
    a += 4096
  }
  return <u32>(p - out)
}

export function expandFill(out: usize, addressHi: u32, addressLo: u32, byte: u32, n: u32, flags: u32): u32 {
  let a = address(addressHi, addressLo) | HEAD_PAGE
  let p = out
  for (let i: u32 = 0; i < n; i++) {
    if (!(flags & BARE)) {
      store<u64>(p, bswap<u64>(a))
      p += 8
      a += 4096
    }
    memory.fill(p, <u8>byte, 4096)
    p += 4096
  }
  return <u32>(p - out)
}

export function expandPages(
  out: usize, addressHi: u32, addressLo: u32, slot: u32, n: u32, placeFirst: u32, flags: u32,
): u32 {
  let a = address(addressHi, addressLo) | HEAD_PAGE
  let p = out
  for (let i: u32 = 0; i < n; i++) {
    const place = placeFirst == NONE ? NONE : placeFirst + i
    const s = flags & FROM_PLACE ? placeGet(place) : slot + i
    if (!known(s)) return FAILED
    if (!(flags & BARE)) {
      store<u64>(p, bswap<u64>(a))
      p += 8
      a += 4096
    }
    memory.copy(p, slotAddress(s), 4096)
    p += 4096
    mark(s)
    placeSet(place, s)
  }
  return <u32>(p - out)
}

export function expandNew(
  out: usize, addressHi: u32, addressLo: u32, literals: usize, n: u32, placeFirst: u32, flags: u32,
): u32 {
  let a = address(addressHi, addressLo) | HEAD_PAGE
  let p = out
  let literal = literals
  for (let i: u32 = 0; i < n; i++) {
    if (!(flags & BARE)) {
      store<u64>(p, bswap<u64>(a))
      p += 8
      a += 4096
    }
    memory.copy(p, literal, 4096)
    const slot = insert(literal, 0)
    if (placeFirst != NONE) placeSet(placeFirst + i, slot)
    p += 4096
    literal += 4096
  }
  return <u32>(p - out)
}

export function copyOut(out: usize, poolOffset: u32, length: u32): bool {
  if (poolOffset >= poolBytes || length > poolBytes - poolOffset) return false
  // page by page: slots that follow each other need not do so in memory
  let p = out
  let from = poolOffset
  for (let left = length; left != 0; ) {
    const take = min<u32>(left, 4096 - (from & 4095))
    memory.copy(p, slotAddress(from >> 12) + <usize>(from & 4095), take)
    p += take
    from += take
    left -= take
  }
  mark(poolOffset >> 12)
  return true
}

/** One page from tokens (u16 literal length, u16 copy length, u32 source in the pool). Returns the literal bytes used. */
export function expandPatch(
  out: usize, addressHi: u32, addressLo: u32, tokens: usize, count: u32, literals: usize, place: u32, flags: u32,
): u32 {
  let p = out
  if (!(flags & BARE)) {
    store<u64>(p, bswap<u64>(address(addressHi, addressLo) | HEAD_PAGE))
    p += 8
  }
  const body = p
  const end = p + 4096
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
