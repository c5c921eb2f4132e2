// Long matches: parts of a page anywhere in the pool. Why so, and what else was tried: ../LONG-MATCH.md.
import {
  NONE, P1, P2, P3, P4, PAGE_BITS, PAGE_BYTES, RUN_FAR, RUN_NEAR, SAMPLE_GAP, SAMPLE_STEP, SAVED_MIN, SCORE_BYTES, TOKEN_COST, WAYS, WINDOW,
  WINDOW_FACTOR_1, WINDOW_FACTOR_2, WINDOW_FACTOR_3, WINDOW_FACTOR_4,
} from '../constants'
import {
  laneMask1, laneMask2, laneMask3, longShift, longTable, poolPages, prime1, prime2, ringPages, sampleAdd, sampleBelow,
  sampleBelowSparse, scratch, slotAddress, templatePages,
} from './state'
import { mark } from './ring'

// areas in the scratch; its first 512 bytes belong to hash.ts, page.ts and match.ts
const POSITION: usize = 1024 // u32 each, 256 at most
const HASH: usize = 2048
const MASK: usize = 3072 // u16 for each 16 bytes of the page: which are sampled

let samples: u32 = 0
let sink: u64 = 0 // keeps the touching loads alive

/** Copies in the last matchLong. */
export let copies: u32 = 0
/** Bytes of its own in the last matchLong. */
export let literalBytes: u32 = 0

// @ts-ignore: decorator
@inline function sampled(p: usize, k1: v128, k2: v128, add: v128, below: v128): v128 {
  const a = i32x4.mul(v128.load(p), k1)
  const b = i32x4.mul(v128.load(p, 4), k2)
  return i32x4.gt_s(below, i32x4.add(i32x4.add(a, b), add))
}

/** Which positions of 16 bytes at `p` are sampled. */
// @ts-ignore: decorator
@inline function sampledBits(p: usize, k1: v128, k2: v128, add: v128, below: v128, m1: v128, m2: v128, m3: v128): u16 {
  // lane i of the vector at p + k is position 4i + k
  const even = v128.bitselect(sampled(p, k1, k2, add, below), sampled(p + 1, k1, k2, add, below), m1)
  const odd = v128.bitselect(sampled(p + 2, k1, k2, add, below), sampled(p + 3, k1, k2, add, below), m2)
  return <u16>i8x16.bitmask(v128.bitselect(even, odd, m3))
}

/** Finds the sampled positions of 64 bytes in `step` of a page, and the hash of the window at each. @param sparse a quarter of them */
function sample(at: usize, step: u32, sparse: bool): void {
  const k1 = i32x4.splat(prime1)
  const k2 = i32x4.splat(prime2)
  const add = i32x4.splat(sampleAdd)
  const below = i32x4.splat(sparse ? sampleBelowSparse : sampleBelow)
  const m1 = i32x4.splat(laneMask1)
  const m2 = i32x4.splat(laneMask2)
  const m3 = i32x4.splat(laneMask3)
  const masks = scratch + MASK
  // first without a branch, since whether 16 bytes have a sample cannot be predicted
  if (step == SAMPLE_STEP) {
    for (let base: usize = 0; base < <usize>(PAGE_BYTES - WINDOW); base += 16)
      store<u16>(masks + (base >> 3), sampledBits(at + base, k1, k2, add, below, m1, m2, m3))
    store<u16>(masks, 0, 510)
  } else {
    for (let base: usize = 0; base < PAGE_BYTES; base += step)
      for (let p: usize = base; p < base + SAMPLE_STEP; p += 16)
        store<u16>(masks + (p >> 3), sampledBits(at + p, k1, k2, add, below, m1, m2, m3))
  }
  let n: u32 = 0
  let next: u32 = 0
  for (let base: u32 = 0; base < PAGE_BYTES; base += step) {
    let bits = load<u64>(masks + <usize>(base >> 3))
    while (bits) {
      const position = base + <u32>ctz(bits)
      bits &= bits - 1
      if (position < next) continue
      next = position + SAMPLE_GAP
      store<u32>(scratch + POSITION + (<usize>n << 2), position)
      n++
    }
  }
  samples = n
  for (let i: u32 = 0; i < n; i++) {
    const p = at + <usize>load<u32>(scratch + POSITION + (<usize>i << 2))
    let m = i32x4.mul(v128.load(p), i32x4(P1, P2, P3, P4))
    m = i32x4.mul(v128.xor(m, i32x4.shr_u(m, 15)), i32x4(WINDOW_FACTOR_1, WINDOW_FACTOR_2, WINDOW_FACTOR_3, WINDOW_FACTOR_4))
    const h: u32 =
      i32x4.extract_lane(m, 0) + i32x4.extract_lane(m, 1) + i32x4.extract_lane(m, 2) + i32x4.extract_lane(m, 3)
    store<u32>(scratch + HASH + (<usize>i << 2), (h ^ (h >> 15)) * P2)
  }
}

// @ts-ignore: decorator
@inline function bucket(hash: u32): usize {
  return longTable + (<usize>((hash >> longShift) & ~(WAYS - 1)) << 3)
}

/** Loads all buckets at once, so that their cache misses overlap. */
function touchBuckets(): void {
  let touch: u64 = 0
  for (let i: u32 = 0, n = samples; i < n; i++) touch += load<u64>(bucket(load<u32>(scratch + HASH + (<usize>i << 2))))
  sink += touch
}

/** Remembers the samples of the page at hand as parts of slot `slot`. */
export function rememberSamples(slot: u32): void {
  touchBuckets()
  for (let i: u32 = 0; i < samples; i++) {
    const h = load<u32>(scratch + HASH + (<usize>i << 2))
    const e = bucket(h)
    const first = load<u64>(e)
    // what repeats within a page would fill the bucket
    if (<u32>first == h && (<u32>(first >> 32) - 1) >> PAGE_BITS == slot) continue
    const second = load<u64>(e, 8)
    const third = load<u64>(e, 16)
    const source = (slot << PAGE_BITS) + load<u32>(scratch + POSITION + (<usize>i << 2)) + 1
    store<u64>(e, <u64>h | (<u64>source << 32))
    store<u64>(e, first, 8)
    store<u64>(e, second, 16)
    store<u64>(e, third, 24)
  }
}

/** @param step,sparse as of sample */
export function indexLong(at: usize, slot: u32, step: u32, sparse: bool): void {
  sample(at, step, sparse)
  rememberSamples(slot)
}

// the page at hand
let page: usize = 0
let end: u32 = 0 // bytes that are done: what is not copied starts here
let origin: usize = 0 // address of the pool's byte 0, were all of it where the source is
let delta: usize = 0 // address of the source less that of the page's byte, modulo 2^32
let low: u32 = 0 // bytes of the page whose source is inside the pool, in one piece, from end on
let high: u32 = 0
let scanned: u32 = 0 // up to here they have been compared
let tokenTo: usize = 0
let literalTo: usize = 0

// Slots that hold by now what passed behind the page at hand: the far side has something else there.
let newer: u32 = 0 // how many; none where the page is looked at before the next one
let newerFrom: u32 = 0 // the first, in slots of the ring

/** The page to be looked at next was the last of those that passed but for `count` slots, of which the first is `from` in the ring. */
export function passedSince(count: u32, from: u32): void {
  newer = count
  newerFrom = from
}

/** Whether the far side has the same there when it makes the page at hand. */
// @ts-ignore: decorator
@inline function isOlder(slot: u32): bool {
  if (newer == 0 || slot < templatePages) return true
  const at = slot - templatePages
  return (at >= newerFrom ? at - newerFrom : at + ringPages - newerFrom) >= newer
}

/** Takes as displacement: pool byte `source` for byte `target` of the page. */
function displace(source: u32, target: u32): void {
  const slot = source >> PAGE_BITS
  const inside = source & (PAGE_BYTES - 1)
  const at = slotAddress(slot)
  origin = at - (<usize>slot << PAGE_BITS)
  delta = at + <usize>inside - (page + <usize>target)
  // what a page is compared with is as long as a page: it reaches into one neighbour at most
  let back = target
  if (target > inside && (slot == 0 || slotAddress(slot - 1) + PAGE_BYTES != at || !isOlder(slot - 1))) back = inside
  low = max(end, target - back)
  high = target + min<u32>(PAGE_BYTES - target, reach(source))
  scanned = low
}

/** Bytes from `source` on that follow each other in memory, up to the end of the next slot. */
function reach(source: u32): u32 {
  const slot = source >> PAGE_BITS
  const rest: u32 = PAGE_BYTES - (source & (PAGE_BYTES - 1))
  return slot + 1 < poolPages && slotAddress(slot + 1) == slotAddress(slot) + PAGE_BYTES && isOlder(slot + 1) ? rest + PAGE_BYTES : rest
}

// @ts-ignore: decorator
@inline function equalBits(p: u32): u32 {
  const t = page + <usize>p
  return <u32>i8x16.bitmask(i8x16.eq(v128.load(t), v128.load(t + delta)))
}

// @ts-ignore: decorator
@inline function equalByte(p: u32): bool {
  const t = page + <usize>p
  return load<u8>(t) == load<u8>(t + delta)
}

/** A short memory.copy, whose call would cost more than the copying. */
function copyShort(to: usize, from: usize, length: u32): void {
  while (length >= 16) {
    v128.store(to, v128.load(from))
    to += 16
    from += 16
    length -= 16
  }
  if (length & 8) { store<u64>(to, load<u64>(from)); to += 8; from += 8 }
  if (length & 4) { store<u32>(to, load<u32>(from)); to += 4; from += 4 }
  if (length & 2) { store<u16>(to, load<u16>(from)); to += 2; from += 2 }
  if (length & 1) store<u8>(to, load<u8>(from))
}

/** Copies the runs that start before `to` and are equal under the displacement. */
function scan(to: u32): void {
  let p = scanned
  const stop = min(to, high)
  let m = p < stop ? equalBits(p) : 0
  while (p < stop) {
    m |= equalBits(p + 16) << 16 // may look beyond page and pool: masked
    if (p + 32 > high) m &= (1 << (high - p)) - 1
    let r = m & (m >> 1)
    r &= r >> 2
    r &= (r >> 4) & 0xffff // bit i: 8 equal bytes from p + i on
    if (r == 0) {
      p += 16
      m >>= 16
      continue
    }
    let from = p + ctz(r)
    const differs = ~m >> (from - p)
    if (differs) p = from + ctz(differs)
    else {
      p += 32
      while (p + 16 <= high) {
        const x = ~equalBits(p) & 0xffff
        if (x) break
        p += 16
      }
      while (p < high && equalByte(p)) p++
    }
    while (from > low && equalByte(from - 1)) from--
    m = equalBits(p)
    const literal = from - end
    if (p - from < (literal < RUN_FAR ? RUN_NEAR : RUN_FAR)) continue
    store<u32>(tokenTo, literal | ((p - from) << 16))
    store<u32>(tokenTo, <u32>(page + <usize>from + delta - origin), 4)
    tokenTo += 8
    copyShort(literalTo, page + <usize>end, literal)
    literalTo += literal
    copies++
    end = low = p
  }
  scanned = p
}

// @ts-ignore: decorator
@inline function byteAddress(source: u32): usize {
  return slotAddress(source >> PAGE_BITS) + <usize>(source & (PAGE_BYTES - 1))
}

/** How many of the next bytes are equal: the better candidate has more, in one piece or not. */
function score(source: u32, position: u32): u32 {
  const bytes = min<u32>(SCORE_BYTES, min<u32>(PAGE_BYTES - position, reach(source)))
  const s = byteAddress(source)
  const t = page + <usize>position
  let equal: u32 = 0
  for (let o: u32 = 0; o + 16 <= bytes; o += 16) {
    equal += popcnt(<u32>i8x16.bitmask(i8x16.eq(v128.load(s + <usize>o), v128.load(t + <usize>o))))
  }
  return equal
}

/** The best known source of the window at `position`, or NONE. */
function candidate(hash: u32, position: u32): u32 {
  const want = v128.load(page + <usize>position)
  let best: u32 = NONE
  let bestScore: u32 = 0
  for (let e = bucket(hash), to = e + (WAYS << 3); e != to; e += 8) {
    const entry = load<u64>(e)
    if (<u32>entry != hash || entry >> 32 == 0) continue
    const source = <u32>(entry >> 32) - 1
    if (!isOlder(source >> PAGE_BITS)) continue
    if (v128.any_true(v128.xor(want, v128.load(byteAddress(source))))) continue
    if (best == NONE) {
      best = source
      continue
    }
    if (bestScore == 0) bestScore = score(best, position)
    const s = score(source, position)
    if (s > bestScore) {
      best = source
      bestScore = s
    }
  }
  return best
}

/**
 * Tokens of a page, and its own bytes between them; leaves its samples for rememberSamples.
 * `previous`: slot that its place last received. `sparse`: as of sample. Returns the number of tokens, 0 where too little would be saved:
 * what was written then has no meaning.
 */
export function matchLong(at: usize, previous: u32, tokens: usize, literals: usize, sparse: bool): u32 {
  sample(at, SAMPLE_STEP, sparse)
  page = at
  end = high = scanned = 0
  tokenTo = tokens
  literalTo = literals
  copies = 0
  const n = samples
  touchBuckets()
  if (previous != NONE && isOlder(previous)) displace(previous << PAGE_BITS, 0)
  for (let i: u32 = 0; i < n; i++) {
    const position = load<u32>(scratch + POSITION + (<usize>i << 2))
    if (position < end) continue
    // the displacement of the copy before may hold again: pages that differ in a few words
    scan(position + 1)
    if (position < end) continue
    const source = candidate(load<u32>(scratch + HASH + (<usize>i << 2)), position)
    if (source == NONE) continue
    displace(source, position)
    scan(position + 1)
  }
  scan(PAGE_BYTES)
  const rest: u32 = PAGE_BYTES - end
  if (rest) {
    store<u32>(tokenTo, rest)
    store<u32>(tokenTo, 0, 4)
    tokenTo += 8
    copyShort(literalTo, at + <usize>end, rest)
    literalTo += rest
  }
  const count = <u32>(tokenTo - tokens) >> 3
  literalBytes = <u32>(literalTo - literals)
  if (literalBytes + count * TOKEN_COST + SAVED_MIN > PAGE_BYTES) return 0
  return count
}

/** Gives what a page copies from its second chance. */
export function markSources(tokens: usize, count: u32): void {
  for (let t = tokens, to = tokens + (<usize>count << 3); t != to; t += 8) if (load<u16>(t, 2)) mark(load<u32>(t, 4) >> PAGE_BITS)
}
