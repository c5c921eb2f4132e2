// Questions about one page.
import { DENSE_DISTINCT, DENSE_FIRST, DENSE_STEP, PAGE_BYTES } from '../constants'
import { scratch } from './state'

export function samePage(a: usize, b: usize): bool {
  for (const end = a + PAGE_BYTES; a != end; a += 128, b += 128) {
    const x = v128.or(
      v128.or(v128.xor(v128.load(a), v128.load(b)), v128.xor(v128.load(a, 16), v128.load(b, 16))),
      v128.or(v128.xor(v128.load(a, 32), v128.load(b, 32)), v128.xor(v128.load(a, 48), v128.load(b, 48))),
    )
    const y = v128.or(
      v128.or(v128.xor(v128.load(a, 64), v128.load(b, 64)), v128.xor(v128.load(a, 80), v128.load(b, 80))),
      v128.or(v128.xor(v128.load(a, 96), v128.load(b, 96)), v128.xor(v128.load(a, 112), v128.load(b, 112))),
    )
    if (v128.any_true(v128.or(x, y))) return false
  }
  return true
}

/** The byte that fills the page, or -1. */
export function fillOf(at: usize): i32 {
  const byte = load<u8>(at)
  const want = i8x16.splat(byte)
  if (v128.any_true(v128.xor(v128.load(at), want))) return -1 // nearly every page ends here
  for (let p = at, end = at + PAGE_BYTES; p != end; p += 64) {
    const x = v128.or(
      v128.or(v128.xor(v128.load(p), want), v128.xor(v128.load(p, 16), want)),
      v128.or(v128.xor(v128.load(p, 32), want), v128.xor(v128.load(p, 48), want)),
    )
    if (v128.any_true(x)) return -1
  }
  return byte
}

/** Whether a compressor would gain nothing: a cheap guess from 16 samples of 8 bytes. Writes 256 bytes of scratch. */
export function isDense(at: usize): bool {
  const seen = scratch
  memory.fill(seen, 0, 256)
  for (let p = at + DENSE_FIRST, end = at + PAGE_BYTES; p < end; p += DENSE_STEP) {
    const w = load<u64>(p)
    store<u8>(seen + <usize>(w & 255), 1)
    store<u8>(seen + <usize>((w >> 8) & 255), 1)
    store<u8>(seen + <usize>((w >> 16) & 255), 1)
    store<u8>(seen + <usize>((w >> 24) & 255), 1)
    store<u8>(seen + <usize>((w >> 32) & 255), 1)
    store<u8>(seen + <usize>((w >> 40) & 255), 1)
    store<u8>(seen + <usize>((w >> 48) & 255), 1)
    store<u8>(seen + <usize>(w >> 56), 1)
  }
  let sum = i8x16.splat(0)
  for (let o: usize = 0; o < 256; o += 16) sum = i8x16.add(sum, v128.load(seen + o))
  const two = i16x8.extadd_pairwise_i8x16_u(sum)
  const four = i32x4.extadd_pairwise_i16x8_u(two)
  const distinct: u32 =
    i32x4.extract_lane(four, 0) + i32x4.extract_lane(four, 1) + i32x4.extract_lane(four, 2) + i32x4.extract_lane(four, 3)
  return distinct >= DENSE_DISTINCT
}

/** Has the first lines of a page fetched; the others follow by themselves. The sum is to be kept, or nothing is loaded. */
// @ts-ignore: decorator
@inline export function touchPage(at: usize): u64 {
  return load<u64>(at) + load<u64>(at, 64) + load<u64>(at, 128) + load<u64>(at, 192)
}

/** A page to anywhere: memory.copy leaves WebAssembly for each. */
// @ts-ignore: decorator
@inline export function copyPage(to: usize, from: usize): void {
  for (const end = from + PAGE_BYTES; from != end; from += 128, to += 128) {
    const a = v128.load(from)
    const b = v128.load(from, 16)
    const c = v128.load(from, 32)
    const d = v128.load(from, 48)
    const e = v128.load(from, 64)
    const f = v128.load(from, 80)
    const g = v128.load(from, 96)
    const h = v128.load(from, 112)
    v128.store(to, a)
    v128.store(to, b, 16)
    v128.store(to, c, 32)
    v128.store(to, d, 48)
    v128.store(to, e, 64)
    v128.store(to, f, 80)
    v128.store(to, g, 96)
    v128.store(to, h, 112)
  }
}

/** A page to two places. */
// @ts-ignore: decorator
@inline export function copyPageTwice(to: usize, too: usize, from: usize): void {
  for (const end = from + PAGE_BYTES; from != end; from += 64, to += 64, too += 64) {
    const a = v128.load(from)
    const b = v128.load(from, 16)
    const c = v128.load(from, 32)
    const d = v128.load(from, 48)
    v128.store(to, a)
    v128.store(to, b, 16)
    v128.store(to, c, 32)
    v128.store(to, d, 48)
    v128.store(too, a)
    v128.store(too, b, 16)
    v128.store(too, c, 32)
    v128.store(too, d, 48)
  }
}
