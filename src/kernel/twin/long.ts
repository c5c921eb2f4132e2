/** Long matches: parts of a page anywhere in the pool, as assembly/long.ts. Why so: LONG-MATCH.md. */
import {
  NONE,
  P1,
  P2,
  P3,
  P4,
  PAGE_BITS,
  PAGE_BYTES,
  RUN_FAR,
  RUN_NEAR,
  SAMPLE_ADD,
  SAMPLE_BELOW,
  SAMPLE_BELOW_SPARSE,
  SAMPLE_GAP,
  SAMPLE_STEP,
  SAVED_MIN,
  SCORE_BYTES,
  TOKEN_COST,
  WAYS,
  WINDOW,
  WINDOW_FACTOR_1,
  WINDOW_FACTOR_2,
  WINDOW_FACTOR_3,
  WINDOW_FACTOR_4,
} from '../constants.ts'
import type { TwinMemory } from './memory.ts'
import type { Ring } from './ring.ts'

export interface LongMatches {
  /** Whether there is a table of them. */
  readonly isThere: boolean
  /** About the last matchLong: copies, and bytes of the page's own. */
  readonly found: { readonly copies: number; readonly literalBytes: number }
  /**
   * @param step samples are taken in SAMPLE_STEP bytes of so many
   * @param isSparse a quarter of them
   */
  sample(at: number, step: number, isSparse: boolean): void
  rememberSamples(slot: number): void
  matchLong(at: number, previous: number, tokens: number, literals: number, isSparse: boolean): number
  /** Gives what a page copies from its second chance. */
  markSources(tokens: number, count: number): void
  /** The page to be looked at next was the last that passed but for `count` slots, of which the first is `from` in the ring. */
  passedSince(count: number, from: number): void
}

export function makeLongMatches(memory: TwinMemory, { mark }: Ring): LongMatches {
  const { layout, bytes, words, poolPages, slotAddress, byteAddress, word } = memory
  const longTable = layout.longTable >>> 2
  const longShift = layout.longEntries === 0 ? 0 : 32 - Math.log2(layout.longEntries)

  const positions = new Int32Array(PAGE_BYTES / SAMPLE_GAP)
  const windows = new Int32Array(PAGE_BYTES / SAMPLE_GAP)
  let samples = 0
  const found = { copies: 0, literalBytes: 0 }

  function sample(at: number, step: number, isSparse: boolean): void {
    const below = isSparse ? SAMPLE_BELOW_SPARSE : SAMPLE_BELOW
    let n = 0
    let next = 0
    let a = word(at)
    let b = word(at + 4)
    for (let position = 0; position < PAGE_BYTES - WINDOW; position++) {
      const x = (Math.imul(a, P1) + Math.imul(b, P2) + SAMPLE_ADD) >>> 0
      if (x < below && position >= next && position % step < SAMPLE_STEP) {
        next = position + SAMPLE_GAP
        positions[n++] = position
      }
      a = (a >>> 8) | (b << 24)
      b = (b >>> 8) | (bytes[at + position + 8]! << 24)
    }
    samples = n
    for (let i = 0; i < n; i++) {
      const p = at + positions[i]!
      let h = window(Math.imul(word(p), P1), WINDOW_FACTOR_1)
      h += window(Math.imul(word(p + 4), P2), WINDOW_FACTOR_2)
      h += window(Math.imul(word(p + 8), P3), WINDOW_FACTOR_3)
      h = (h + window(Math.imul(word(p + 12), P4), WINDOW_FACTOR_4)) | 0
      windows[i] = Math.imul(h ^ (h >>> 15), P2)
    }
  }

  function window(m: number, factor: number): number {
    return Math.imul(m ^ (m >>> 15), factor)
  }

  /** Word index of a hash's bucket. */
  function bucket(hash: number): number {
    return longTable + 2 * ((hash >>> longShift) & -WAYS)
  }

  function rememberSamples(slot: number): void {
    for (let i = 0; i < samples; i++) {
      const h = windows[i]!
      const e = bucket(h)
      // what repeats within a page would fill the bucket
      if (words[e] === h && (words[e + 1]! - 1) >>> PAGE_BITS === slot) continue
      words.copyWithin(e + 2, e, e + 6)
      words[e] = h
      words[e + 1] = slot * PAGE_BYTES + positions[i]! + 1
    }
  }

  let page = 0 // the page at hand
  let end = 0 // bytes that are done: what is not copied starts here
  let origin = 0 // address of the pool's byte 0, were all of it where the source is
  let delta = 0 // address of the source less that of the page's byte
  let low = 0 // bytes of the page whose source is inside the pool, in one piece, from end on
  let high = 0
  let scanned = 0 // up to here they have been compared
  let tokenTo = 0
  let literalTo = 0

  let newer = 0 // slots that hold by now what passed behind the page at hand: the far side has something else there
  let newerFrom = 0

  function passedSince(count: number, from: number): void {
    newer = count
    newerFrom = from
  }

  /** Whether the far side has the same there when it makes the page at hand. */
  function isOlder(slot: number): boolean {
    if (newer === 0 || slot < layout.templatePages) return true
    const at = slot - layout.templatePages
    return (at >= newerFrom ? at - newerFrom : at + layout.ringPages - newerFrom) >= newer
  }

  function displace(source: number, target: number): void {
    const slot = source >>> PAGE_BITS
    const inside = source & (PAGE_BYTES - 1)
    const at = slotAddress(slot)
    origin = at - slot * PAGE_BYTES
    delta = at + inside - (page + target)
    // what a page is compared with is as long as a page: it reaches into one neighbour at most
    const isCut = target > inside && (slot === 0 || slotAddress(slot - 1) + PAGE_BYTES !== at || !isOlder(slot - 1))
    const back = isCut ? inside : target
    low = Math.max(end, target - back)
    high = target + Math.min(PAGE_BYTES - target, reach(source))
    scanned = low
  }

  /** Bytes from `source` on that follow each other in memory, up to the end of the next slot. */
  function reach(source: number): number {
    const slot = source >>> PAGE_BITS
    const rest = PAGE_BYTES - (source & (PAGE_BYTES - 1))
    const goesOn = slot + 1 < poolPages && slotAddress(slot + 1) === slotAddress(slot) + PAGE_BYTES && isOlder(slot + 1)
    return goesOn ? rest + PAGE_BYTES : rest
  }

  /** Copies the runs that start before `to` and are equal under the displacement. */
  function scan(to: number): void {
    let p = scanned
    const stop = Math.min(to, high)
    while (p < stop) {
      let run = 0
      let i = p
      for (const look = Math.min(p + 23, high); i < look && run < RUN_NEAR; i++) {
        run = bytes[page + i] === bytes[page + i + delta] ? run + 1 : 0
      }
      if (run < RUN_NEAR) {
        p += 16
        continue
      }
      let from = i - RUN_NEAR
      p = i
      while (p < high && bytes[page + p] === bytes[page + p + delta]) p++
      while (from > low && bytes[page + from - 1] === bytes[page + from - 1 + delta]) from--
      const literal = from - end
      if (p - from < (literal < RUN_FAR ? RUN_NEAR : RUN_FAR)) continue
      words[tokenTo >>> 2] = literal | ((p - from) << 16)
      words[(tokenTo >>> 2) + 1] = page + from + delta - origin
      tokenTo += 8
      putLiteral(literal)
      found.copies++
      end = low = p
    }
    scanned = p
  }

  function putLiteral(length: number): void {
    bytes.copyWithin(literalTo, page + end, page + end + length)
    literalTo += length
  }

  /** How many of the next bytes are equal. */
  function score(source: number, position: number): number {
    const n = Math.min(SCORE_BYTES, PAGE_BYTES - position, reach(source)) & -16
    let equal = 0
    for (let i = 0, s = byteAddress(source), t = page + position; i < n; i++) if (bytes[s + i] === bytes[t + i]) equal++
    return equal
  }

  /** The best known source of the window at `position`, or NONE. */
  function candidate(hash: number, position: number): number {
    let best = NONE
    let bestScore = 0
    for (let e = bucket(hash), k = 0; k < WAYS; k++, e += 2) {
      if (words[e] !== hash || words[e + 1] === 0) continue
      const source = (words[e + 1]! - 1) >>> 0
      if (!isOlder(source >>> PAGE_BITS)) continue
      const at = byteAddress(source)
      let i = 0
      while (i < WINDOW && bytes[at + i] === bytes[page + position + i]) i++
      if (i < WINDOW) continue
      if (best === NONE) {
        best = source
        continue
      }
      if (bestScore === 0) bestScore = score(best, position)
      const s = score(source, position)
      if (s > bestScore) {
        best = source
        bestScore = s
      }
    }
    return best
  }

  function matchLong(at: number, previous: number, tokens: number, literals: number, isSparse: boolean): number {
    sample(at, SAMPLE_STEP, isSparse)
    page = at
    end = 0
    high = 0
    scanned = 0
    tokenTo = tokens
    literalTo = literals
    found.copies = 0
    if (previous !== NONE && isOlder(previous)) displace(previous * PAGE_BYTES, 0)
    for (let i = 0; i < samples; i++) {
      const position = positions[i]!
      if (position < end) continue
      // the displacement of the copy before may hold again: pages that differ in a few words
      scan(position + 1)
      if (position < end) continue
      const source = candidate(windows[i]!, position)
      if (source === NONE) continue
      displace(source, position)
      scan(position + 1)
    }
    scan(PAGE_BYTES)
    const rest = PAGE_BYTES - end
    if (rest > 0) {
      words[tokenTo >>> 2] = rest
      words[(tokenTo >>> 2) + 1] = 0
      tokenTo += 8
      putLiteral(rest)
    }
    const count = (tokenTo - tokens) >>> 3
    found.literalBytes = literalTo - literals
    if (found.literalBytes + count * TOKEN_COST + SAVED_MIN > PAGE_BYTES) return 0
    return count
  }

  function markSources(tokens: number, count: number): void {
    for (let t = tokens >>> 2, to = t + 2 * count; t < to; t += 2)
      if (words[t]! >>> 16 !== 0) mark(words[t + 1]! >>> PAGE_BITS)
  }

  return { isThere: longShift !== 0, found, sample, rememberSamples, matchLong, markSources, passedSince }
}
