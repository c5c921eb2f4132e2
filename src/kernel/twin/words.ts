/** Pages of numbers in rows, as assembly/words.ts. Why so: WORDS.md. */
import {
  GAIN_MIN,
  LAG_1,
  LAG_2,
  LAG_3,
  LAG_4,
  NEAR_1,
  NEAR_2,
  NEAR_3,
  NUMBERS_BYTES,
  NUMBERS_FIRST,
  NUMBERS_STEP,
  PAGE_BYTES,
  SURE,
} from '../constants.ts'
import type { TwinMemory } from './memory.ts'

const LAGS = [0, LAG_1, LAG_2, LAG_3, LAG_4]

export interface Numbers {
  /** The lag under which the page's words repeat themselves, or -1. */
  wordsLag(at: number): number
  /** Whether the last wordsLag was sure. */
  isSure(): boolean
  splitWords(at: number, lag: number, out: number): void
  joinWords(from: number, lag: number, out: number): void
}

export function makeNumbers({ bytes, word }: TwinMemory): Numbers {
  const equal = new Int32Array(LAGS.length)
  let sure = false // the last wordsLag

  function equalBytes(a: number, b: number): number {
    const x = a ^ b
    return (x & 0xff ? 0 : 1) + (x & 0xff00 ? 0 : 1) + (x & 0xff0000 ? 0 : 1) + (x >>> 24 ? 0 : 1)
  }

  /** The lag under which the page's words repeat themselves, or -1. */
  function wordsLag(at: number): number {
    let repeat = 0
    equal.fill(0)
    for (let block = at + NUMBERS_FIRST; block < at + PAGE_BYTES; block += NUMBERS_STEP) {
      for (let p = block; p < block + NUMBERS_BYTES; p += 4) {
        const w = word(p)
        if (w === word(p - 4 * NEAR_1) || w === word(p - 4 * NEAR_2) || w === word(p - 4 * NEAR_3)) repeat += 4
        equal[0]! += equalBytes(w, word(p - 4))
        for (let i = 1; i < LAGS.length; i++) {
          const back = word(p - 4 * LAGS[i]!)
          equal[i]! += equalBytes(w - back, back - word(p - 8 * LAGS[i]!))
        }
      }
    }
    let best = 0
    for (let i = 1; i < LAGS.length; i++) if (equal[i]! > equal[best]!) best = i
    sure = equal[best]! >= SURE
    return equal[best]! > repeat + GAIN_MIN ? LAGS[best]! : -1
  }

  function splitWords(at: number, lag: number, out: number): void {
    for (let i = 0; i < 1024; i++) {
      const w = i < lag || lag === 0 ? word(at + 4 * i) : word(at + 4 * i) - word(at + 4 * (i - lag))
      bytes[out + i] = w
      bytes[out + 1024 + i] = w >>> 8
      bytes[out + 2048 + i] = w >>> 16
      bytes[out + 3072 + i] = w >>> 24
    }
  }

  const joined = new Int32Array(1024)

  function joinWords(from: number, lag: number, out: number): void {
    for (let i = 0; i < 1024; i++) {
      const w =
        bytes[from + i]! |
        (bytes[from + 1024 + i]! << 8) |
        (bytes[from + 2048 + i]! << 16) |
        (bytes[from + 3072 + i]! << 24)
      joined[i] = i < lag || lag === 0 ? w : w + joined[i - lag]!
    }
    for (let i = 0, p = out; i < 1024; i++, p += 4) {
      const w = joined[i]!
      bytes[p] = w
      bytes[p + 1] = w >>> 8
      bytes[p + 2] = w >>> 16
      bytes[p + 3] = w >>> 24
    }
  }

  return { wordsLag, isSure: () => sure, splitWords, joinWords }
}
