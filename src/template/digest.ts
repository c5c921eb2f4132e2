/** What a page is known by: its SHA-256, which decides, and a fast hash, which only ever saves work. */
import { hash } from 'node:crypto'
import { DIGEST_LENGTH, PAGE_SIZE } from './wire.ts'

/** 32-bit words of a page. */
export const PAGE_WORDS = PAGE_SIZE / 4
/** 32-bit words of a digest. */
export const DIGEST_WORDS = DIGEST_LENGTH / 4

/** Writes the SHA-256 of `page` (exactly its bytes) at `at`. */
export function writeDigest(page: Uint8Array, into: Buffer, at: number): void {
  // As a latin1 string the digest comes back at 1.15 GB/s of pages, as a Buffer at 0.65: no ArrayBuffer is made.
  into.write(hash('sha256', page, 'binary'), at, DIGEST_LENGTH, 'latin1')
}

/** True where all PAGE_WORDS words from `at` repeat one byte: both sides make such a page out of that byte. */
export function isUniform(words: Uint32Array, at: number): boolean {
  const first = words[at]!
  // Rotated by a byte, a word of four equal bytes is itself.
  if (((first << 8) | (first >>> 24)) >>> 0 !== first) return false
  for (let i = at + 1; i < at + PAGE_WORDS; i++) if (words[i] !== first) return false
  return true
}

/**
 * Writes a 64-bit hash of PAGE_WORDS words as two words at `to`. It depends on the byte order of the machine and guards
 * against nobody: it may only choose what is looked at more closely.
 */
export function writeHash(words: Uint32Array, at: number, into: Uint32Array, to: number): void {
  // Four lanes keep the multiplier busy. A multiplication carries differences up, the shift brings them down again.
  let a = 0x9e3779b1 | 0
  let b = 0x85ebca77 | 0
  let c = 0xc2b2ae3d | 0
  let d = 0x27d4eb2f | 0
  for (let i = at; i < at + PAGE_WORDS; i += 4) {
    a = Math.imul(a ^ words[i]!, 0x2c1b3c6d)
    b = Math.imul(b ^ words[i + 1]!, 0x297a2d39)
    c = Math.imul(c ^ words[i + 2]!, 0x5bd1e995)
    d = Math.imul(d ^ words[i + 3]!, 0x1b873593)
    a ^= a >>> 15
    b ^= b >>> 15
    c ^= c >>> 15
    d ^= d >>> 15
  }
  into[to] = mix(a ^ mix(b))
  into[to + 1] = mix(c ^ mix(d + a) ^ b)
}

function mix(h: number): number {
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d)
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b | 0)
  return h ^ (h >>> 16)
}
