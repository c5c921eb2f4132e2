/** Questions about one page: as assembly/page.ts. */
import { DENSE_BYTES, DENSE_DISTINCT, DENSE_FIRST, DENSE_STEP, PAGE_BYTES } from '../constants.ts'
import type { TwinMemory } from './memory.ts'

export interface PageQuestions {
  samePage(a: number, b: number): boolean
  fillOf(at: number): number
  isDense(at: number): boolean
}

export function makePageQuestions({ bytes, raw }: TwinMemory): PageQuestions {
  function samePage(a: number, b: number): boolean {
    // the native compare costs more than looking at two bytes first
    if (bytes[a + 8] !== bytes[b + 8] || bytes[a + 2048] !== bytes[b + 2048]) return false
    return raw.compare(raw, b, b + PAGE_BYTES, a, a + PAGE_BYTES) === 0
  }

  function fillOf(at: number): number {
    const byte = bytes[at]!
    for (let i = at + 1, end = at + PAGE_BYTES; i < end; i++) if (bytes[i] !== byte) return -1
    return byte
  }

  const seen = new Uint8Array(256)

  function isDense(at: number): boolean {
    seen.fill(0)
    let distinct = 0
    for (let p = at + DENSE_FIRST; p < at + PAGE_BYTES; p += DENSE_STEP) {
      for (let i = p; i < p + DENSE_BYTES; i++) {
        const byte = bytes[i]!
        if (seen[byte] === 0) {
          seen[byte] = 1
          distinct++
        }
      }
    }
    return distinct >= DENSE_DISTINCT
  }

  return { samePage, fillOf, isDense }
}
