/** The 64-bit hash of HASH.md, as assembly/hash.ts has it, lane by lane with Math.imul. */
import { P1, P2, P3, P4, PAGE_BYTES } from '../constants.ts'
import type { TwinMemory } from './memory.ts'

export interface Hash {
  /** The last digest: two signed words. */
  readonly last: { readonly lo: number; readonly hi: number }
  /** Hash of a page under the process key. */
  hashPage(at: number): void
  hashPages(list: number, n: number, out: number): void
  checksum(at: number, length: number, seedLo: number, seedHi: number, out: number): void
}

export function makeHash({ layout, bytes, words, raw }: TwinMemory): Hash {
  const lanes = new Int32Array(32)
  const block = new Int32Array(1024) // an aligned copy of what is not, or is padded
  const blockBytes = new Uint8Array(block.buffer)
  const last = { lo: 0, hi: 0 }

  /** Adds `count` (32 at most, so that they stay in the L1 cache) blocks of 128 bytes to the lanes, four lanes at a time. */
  function absorb(from: Int32Array, at: number, count: number): void {
    const end = at + (count << 5)
    for (let l = 0; l < 32; l += (l & 1) === 0 ? 1 : 7) {
      let a = lanes[l]!
      let b = lanes[l + 4]!
      let c = lanes[l + 2]!
      let d = lanes[l + 6]!
      for (let w = at + l; w < end; w += 32) {
        const x = from[w]!
        const y = from[w + 4]!
        const u = from[w + 2]!
        const v = from[w + 6]!
        a = Math.imul(a ^ x, P1)
        b = Math.imul(b ^ y, P1)
        c = Math.imul(c ^ u, P1)
        d = Math.imul(d ^ v, P1)
        a = ((a ^ (a >>> 15)) + y) | 0
        b = ((b ^ (b >>> 15)) + x) | 0
        c = ((c ^ (c >>> 15)) + v) | 0
        d = ((d ^ (d >>> 15)) + u) | 0
      }
      lanes[l] = a
      lanes[l + 4] = b
      lanes[l + 2] = c
      lanes[l + 6] = d
    }
  }

  function keyed(key: number, lane: number): number {
    const m = Math.imul(lanes[lane]! ^ words[key + 32 + lane]!, P2)
    return m ^ (m >>> 13)
  }

  function join(u: number, v: number): number {
    const m = Math.imul(u, P3)
    return ((m ^ (m >>> 16)) + v) | 0
  }

  /** Column `column` of pair `pair` of the lanes, folded from four lanes to one word. */
  function fold(key: number, lane: number): number {
    const c = join(keyed(key, lane), keyed(key, lane + 16))
    return join(c, join(keyed(key, lane + 8), keyed(key, lane + 24)))
  }

  /** HASH.md. `key` is a word index. Leaves the answer in `last`. */
  function digest(key: number, at: number, length: number, seedLo: number, seedHi: number): void {
    for (let l = 0; l < 32; l += 2) {
      lanes[l] = words[key + l]! ^ seedLo
      lanes[l + 1] = words[key + l + 1]! ^ seedHi
    }
    const whole = length - (length & 127)
    const aligned = (at & 3) === 0
    for (let done = 0; done < whole; done += PAGE_BYTES) {
      const take = Math.min(PAGE_BYTES, whole - done)
      if (aligned) absorb(words, (at + done) >>> 2, take >>> 7)
      else {
        raw.copy(blockBytes, 0, at + done, at + done + take)
        absorb(block, 0, take >>> 7)
      }
    }
    if (whole < length) {
      blockBytes.fill(0, 0, 128)
      for (let i = 0; i < length - whole; i++) blockBytes[i] = bytes[at + whole + i]!
      absorb(block, 0, 1)
    }
    let l = Math.imul(length, P3)
    let h = (length + P4) | 0
    for (let j = 0; j < 4; j++) {
      l = Math.imul(l ^ fold(key, j), P1)
      l ^= l >>> 15
      h = Math.imul(h ^ fold(key, j + 4), P2)
      h ^= h >>> 13
    }
    h = (h + Math.imul(l, P4)) | 0
    h = Math.imul(h ^ (h >>> 15), P2)
    h ^= h >>> 13
    l = (l + Math.imul(h, P3)) | 0
    l = Math.imul(l ^ (l >>> 16), P1)
    l ^= l >>> 15
    h = (h + l) | 0
    last.lo = (l | h) === 0 ? 1 : l
    last.hi = h
  }

  function hashPage(at: number): void {
    digest(layout.pageKey >>> 2, at, PAGE_BYTES, 0, 0)
  }

  return {
    last,
    hashPage,
    hashPages(list, n, out) {
      for (let i = 0; i < n; i++) {
        hashPage(words[(list >>> 2) + i]! >>> 0)
        words[(out >>> 2) + 2 * i] = last.lo
        words[(out >>> 2) + 2 * i + 1] = last.hi
      }
    },
    checksum(at, length, seedLo, seedHi, out) {
      digest(layout.checksumKey >>> 2, at, length, seedLo, seedHi)
      words[out >>> 2] = last.lo
      words[(out >>> 2) + 1] = last.hi
    },
  }
}
