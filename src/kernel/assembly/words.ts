// Pages of numbers in rows: addresses, counters. What they are sent as, and why: ../WORDS.md.
import {
  GAIN_MIN, LAG_1, LAG_2, LAG_3, LAG_4, NEAR_1, NEAR_2, NEAR_3, NONE, NUMBERS_BYTES, NUMBERS_FIRST, NUMBERS_STEP,
  PAGE_BYTES, SURE,
} from '../constants'
import { scratch } from './state'

/** Area in the scratch for a page of differences. */
const DIFFERENCES: usize = 8192

/** Whether the last wordsLag was sure. */
export let sure: bool = false

/** Counts equal bytes. */
// @ts-ignore: decorator
@inline function count(sum: v128, equal: v128): v128 {
  return i8x16.sub(sum, equal)
}

function total(sums: v128): u32 {
  const four = i32x4.extadd_pairwise_i16x8_u(i16x8.extadd_pairwise_i8x16_u(sums))
  return i32x4.extract_lane(four, 0) + i32x4.extract_lane(four, 1) + i32x4.extract_lane(four, 2) + i32x4.extract_lane(four, 3)
}

/** Whether the words at `p` equal those so many words back. */
// @ts-ignore: decorator
@inline function same(words: v128, p: usize, back: usize): v128 {
  return i32x4.eq(words, v128.load(p - (back << 2)))
}

/** Whether the words' step from those `lag` words back equals the step to these, byte by byte. */
// @ts-ignore: decorator
@inline function steps(words: v128, p: usize, lag: usize): v128 {
  const back = v128.load(p - (lag << 2))
  return i8x16.eq(i32x4.sub(words, back), i32x4.sub(back, v128.load(p - (lag << 3))))
}

/** Words back that make the page's words differences which repeat, 0: they do so themselves; NONE: neither. */
export function wordsLag(at: usize): u32 {
  let repeat = i8x16.splat(0)
  let s0 = repeat
  let s1 = repeat
  let s2 = repeat
  let s3 = repeat
  let s4 = repeat
  for (let block = at + NUMBERS_FIRST; block < at + PAGE_BYTES; block += NUMBERS_STEP) {
    for (let p = block; p < block + NUMBERS_BYTES; p += 16) {
      const w = v128.load(p)
      repeat = count(repeat, v128.or(v128.or(same(w, p, NEAR_1), same(w, p, NEAR_2)), same(w, p, NEAR_3)))
      s0 = count(s0, i8x16.eq(w, v128.load(p - 4)))
      s1 = count(s1, steps(w, p, LAG_1))
      s2 = count(s2, steps(w, p, LAG_2))
      s3 = count(s3, steps(w, p, LAG_3))
      s4 = count(s4, steps(w, p, LAG_4))
    }
  }
  let lag: u32 = 0
  let best = total(s0)
  let n = total(s1)
  if (n > best) { best = n; lag = LAG_1 }
  n = total(s2)
  if (n > best) { best = n; lag = LAG_2 }
  n = total(s3)
  if (n > best) { best = n; lag = LAG_3 }
  n = total(s4)
  if (n > best) { best = n; lag = LAG_4 }
  sure = best >= SURE
  return best > total(repeat) + GAIN_MIN ? lag : NONE
}

/** The page's words less the words `lag` before, their first bytes, their second, third and fourth bytes. */
export function splitWords(at: usize, lag: u32, out: usize): void {
  let from = at
  if (lag != 0) {
    from = scratch + DIFFERENCES
    const back = <usize>lag << 2
    memory.copy(from, at, back)
    let o = back
    for (; o + 16 <= PAGE_BYTES; o += 16) {
      v128.store(from + o, i32x4.sub(v128.load(at + o), v128.load(at + o - back)))
    }
    for (; o < PAGE_BYTES; o += 4) store<u32>(from + o, load<u32>(at + o) - load<u32>(at + o - back))
  }
  for (let o: usize = 0; o < 1024; o += 16, from += 64) {
    const a = v128.load(from)
    const b = v128.load(from, 16)
    const c = v128.load(from, 32)
    const d = v128.load(from, 48)
    const ab = i8x16.shuffle(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29)
    const cd = i8x16.shuffle(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29)
    const ef = i8x16.shuffle(a, b, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31)
    const gh = i8x16.shuffle(c, d, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31)
    v128.store(out + o, i64x2.shuffle(ab, cd, 0, 2))
    v128.store(out + o, i64x2.shuffle(ab, cd, 1, 3), 1024)
    v128.store(out + o, i64x2.shuffle(ef, gh, 0, 2), 2048)
    v128.store(out + o, i64x2.shuffle(ef, gh, 1, 3), 3072)
  }
}

/** The page that splitWords took apart. */
export function joinWords(from: usize, lag: u32, out: usize): void {
  for (let o: usize = 0, to = out; o < 1024; o += 16, to += 64) {
    const a = v128.load(from + o)
    const b = v128.load(from + o, 1024)
    const c = v128.load(from + o, 2048)
    const d = v128.load(from + o, 3072)
    const ab = i8x16.shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
    const cd = i8x16.shuffle(c, d, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
    const ef = i8x16.shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
    const gh = i8x16.shuffle(c, d, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
    v128.store(to, i16x8.shuffle(ab, cd, 0, 8, 1, 9, 2, 10, 3, 11))
    v128.store(to, i16x8.shuffle(ab, cd, 4, 12, 5, 13, 6, 14, 7, 15), 16)
    v128.store(to, i16x8.shuffle(ef, gh, 0, 8, 1, 9, 2, 10, 3, 11), 32)
    v128.store(to, i16x8.shuffle(ef, gh, 4, 12, 5, 13, 6, 14, 7, 15), 48)
  }
  if (lag == 0) return
  const back = <usize>lag << 2
  let o = back
  if (lag >= 4) {
    for (; o + 16 <= PAGE_BYTES; o += 16) {
      v128.store(out + o, i32x4.add(v128.load(out + o), v128.load(out + o - back)))
    }
  }
  for (; o < PAGE_BYTES; o += 4) store<u32>(out + o, load<u32>(out + o) + load<u32>(out + o - back))
}
