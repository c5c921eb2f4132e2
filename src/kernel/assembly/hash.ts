// The 64-bit hash of ../HASH.md: 32 lanes of u32 in 8 vectors, so that the twin can do the same with Math.imul.
import { P1, P2, P3, P4, PAGE_BYTES } from '../constants'
import { scratch, checksumKey, pageKey, prime1 } from './state'

// @ts-ignore: decorator
@inline function mix(a: v128, x: v128, y: v128, p1: v128): v128 {
  const m = i32x4.mul(v128.xor(a, x), p1)
  return i32x4.add(v128.xor(m, i32x4.shr_u(m, 15)), y)
}

// @ts-ignore: decorator
@inline function keyed(a: v128, k: v128): v128 {
  const m = i32x4.mul(v128.xor(a, k), i32x4.splat(P2))
  return v128.xor(m, i32x4.shr_u(m, 13))
}

// @ts-ignore: decorator
@inline function join(u: v128, v: v128): v128 {
  const m = i32x4.mul(u, i32x4.splat(P3))
  return i32x4.add(v128.xor(m, i32x4.shr_u(m, 16)), v)
}

/** Hash of `length` bytes at `at`: lo in the low half. Never 0. Writes the scratch block where length is no multiple of 128. */
export function digest(key: usize, at: usize, length: u32, seed: u64): u64 {
  const s = i64x2.splat(seed)
  let a0 = v128.xor(v128.load(key), s)
  let a1 = v128.xor(v128.load(key, 16), s)
  let a2 = v128.xor(v128.load(key, 32), s)
  let a3 = v128.xor(v128.load(key, 48), s)
  let a4 = v128.xor(v128.load(key, 64), s)
  let a5 = v128.xor(v128.load(key, 80), s)
  let a6 = v128.xor(v128.load(key, 96), s)
  let a7 = v128.xor(v128.load(key, 112), s)
  const p1 = i32x4.splat(prime1)
  let p = at
  let blocks = length >> 7
  let tail = length & 127
  while (true) {
    for (const end = p + (<usize>blocks << 7); p != end; p += 128) {
      const x0 = v128.load(p)
      const x1 = v128.load(p, 16)
      a0 = mix(a0, x0, x1, p1)
      a1 = mix(a1, x1, x0, p1)
      const x2 = v128.load(p, 32)
      const x3 = v128.load(p, 48)
      a2 = mix(a2, x2, x3, p1)
      a3 = mix(a3, x3, x2, p1)
      const x4 = v128.load(p, 64)
      const x5 = v128.load(p, 80)
      a4 = mix(a4, x4, x5, p1)
      a5 = mix(a5, x5, x4, p1)
      const x6 = v128.load(p, 96)
      const x7 = v128.load(p, 112)
      a6 = mix(a6, x6, x7, p1)
      a7 = mix(a7, x7, x6, p1)
    }
    if (!tail) break
    memory.fill(scratch, 0, 128)
    memory.copy(scratch, p, tail)
    p = scratch
    blocks = 1
    tail = 0
  }
  const c0 = join(keyed(a0, v128.load(key, 128)), keyed(a4, v128.load(key, 192)))
  const c1 = join(keyed(a1, v128.load(key, 144)), keyed(a5, v128.load(key, 208)))
  const c2 = join(keyed(a2, v128.load(key, 160)), keyed(a6, v128.load(key, 224)))
  const c3 = join(keyed(a3, v128.load(key, 176)), keyed(a7, v128.load(key, 240)))
  const d0 = join(c0, c2)
  const d1 = join(c1, c3)
  let lo: u32 = length * P3
  let hi: u32 = length + P4
  lo = (lo ^ i32x4.extract_lane(d0, 0)) * P1; lo ^= lo >> 15
  hi = (hi ^ i32x4.extract_lane(d1, 0)) * P2; hi ^= hi >> 13
  lo = (lo ^ i32x4.extract_lane(d0, 1)) * P1; lo ^= lo >> 15
  hi = (hi ^ i32x4.extract_lane(d1, 1)) * P2; hi ^= hi >> 13
  lo = (lo ^ i32x4.extract_lane(d0, 2)) * P1; lo ^= lo >> 15
  hi = (hi ^ i32x4.extract_lane(d1, 2)) * P2; hi ^= hi >> 13
  lo = (lo ^ i32x4.extract_lane(d0, 3)) * P1; lo ^= lo >> 15
  hi = (hi ^ i32x4.extract_lane(d1, 3)) * P2; hi ^= hi >> 13
  hi += lo * P4; hi ^= hi >> 15; hi *= P2; hi ^= hi >> 13
  lo += hi * P3; lo ^= lo >> 16; lo *= P1; lo ^= lo >> 15
  hi += lo
  if ((lo | hi) == 0) lo = 1
  return (<u64>hi << 32) | <u64>lo
}

/** Hash of a page under the process key. */
export function hashPage(at: usize): u64 {
  return digest(pageKey, at, PAGE_BYTES, 0)
}

export function hashPages(list: usize, n: u32, out: usize): void {
  for (let i: u32 = 0; i < n; i++) store<u64>(out + (<usize>i << 3), hashPage(load<u32>(list + (<usize>i << 2))))
}

export function checksum(at: usize, length: u32, seedLo: u32, seedHi: u32, out: usize): void {
  store<u64>(out, digest(checksumKey, at, length, (<u64>seedHi << 32) | <u64>seedLo))
}
