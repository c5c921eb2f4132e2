/**
 * The kernel in plain TypeScript: what assembly/ does, said a second time. Reference for the differential tests, and
 * fallback, so it is written to be reasonably fast: whole words, Math.imul, native copies and compares.
 */
import { EXPAND, FAILED, type KernelFunctions, KIND, MATCH } from './functions.ts'
import { NONE, PAGE_BYTES, RESULT_WORD, type SessionLayout, STATE } from './layout.ts'

const P1 = 0x9e3779b1 | 0
const P2 = 0x85ebca77 | 0
const P3 = 0xc2b2ae3d | 0
const P4 = 0x27d4eb2f

const { FILL, SAME, REF, NEW, NEW_DENSE, PATCH, WORDS } = KIND
const { LONG } = MATCH
const { BARE, FROM_PLACE } = EXPAND

/** Flags in the low bits of a record's head: CONTINUE | PAGE and CONTINUE | ZERO. Source: QEMU migration/ram.c. */
const HEAD_PAGE = 0x28
const HEAD_ZERO = 0x22

/** As in assembly/page.ts. */
const DENSE_DISTINCT = 88

/** As in assembly/words.ts. */
const SURE = 980
const GAIN_MIN = 160
const LAGS = [0, 2, 4, 6, 16]

/** As in assembly/long.ts. */
const SAMPLE_BELOW = 1 << 27
const SAMPLE_GAP = 16
const WINDOW = 16
const WAYS = 4
const SCORE_BYTES = 256
const RUN_NEAR = 8
const RUN_FAR = 16
const SAVED_MIN = 256
const TOKEN_COST = 4

/** The functions of the kernel over a buffer that writeConfig has prepared. Keeps views of it; allocates nothing later. Has scratch of its own. */
export function makeTwin(buffer: ArrayBufferLike, layout: SessionLayout): KernelFunctions {
  const { templatePages, templatesAt, ringPages, places, ringMark } = layout
  const bytes = new Uint8Array(buffer)
  const words = new Int32Array(buffer, 0, buffer.byteLength >>> 2)
  const raw = Buffer.from(buffer, 0, buffer.byteLength)
  const templateHash = layout.templateHash >>> 2
  const templateValue = layout.templateValue >>> 2
  const templateMask = Math.max(0, layout.templateEntries - 1)
  const templateMap = layout.templateMap >>> 2
  const ringTableHash = layout.ringTableHash >>> 2
  const ringTableSlot = layout.ringTableSlot >>> 2
  const ringTableMask = Math.max(0, layout.ringTableEntries - 1)
  /** Address of slot 0, were all slots where the ring is: may be negative. */
  const ringOrigin = layout.ring - templatePages * PAGE_BYTES
  const ringHash = layout.ringHash >>> 2
  const placeTable = layout.placeTable >>> 2
  const cursorAt = (layout.state >>> 2) + STATE.CURSOR
  const usedAt = (layout.state >>> 2) + STATE.USED
  const resultAt = (layout.state >>> 2) + RESULT_WORD
  const longTable = layout.longTable >>> 2
  const longShift = layout.longEntries === 0 ? 0 : 32 - Math.log2(layout.longEntries)
  const poolPages = templatePages + ringPages
  const poolBytes = poolPages * PAGE_BYTES

  /** Address of a slot's page. */
  function slotAddress(slot: number): number {
    if (slot >= templatePages) return ringOrigin + slot * PAGE_BYTES
    return templatesAt !== 0 ? templatesAt + slot * PAGE_BYTES : words[templateMap + slot]! >>> 0
  }

  /** Address of a byte of the pool. */
  function byteAddress(source: number): number {
    return slotAddress(source >>> 12) + (source & (PAGE_BYTES - 1))
  }

  // hash ---------------------------------------------------------------------------------------------------------

  const lanes = new Int32Array(32)
  const block = new Int32Array(1024) // an aligned copy of what is not, or is padded
  const blockBytes = new Uint8Array(block.buffer)
  let lo = 0 // the last digest
  let hi = 0

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

  /** HASH.md. `key` is a word index. Leaves the answer in lo and hi. */
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
    lo = (l | h) === 0 ? 1 : l
    hi = h
  }

  function hashPage(at: number): void {
    digest(layout.pageKey >>> 2, at, PAGE_BYTES, 0, 0)
  }

  // pages --------------------------------------------------------------------------------------------------------

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
    for (let p = at + 120; p < at + PAGE_BYTES; p += 256) {
      for (let i = p; i < p + 8; i++) {
        const byte = bytes[i]!
        if (seen[byte] === 0) {
          seen[byte] = 1
          distinct++
        }
      }
    }
    return distinct >= DENSE_DISTINCT
  }

  // table --------------------------------------------------------------------------------------------------------

  /** Slot of the page at `at`, whose hash is in lo and hi; NONE. */
  function find(at: number): number {
    const slot = findTemplate(at)
    return slot !== NONE ? slot : findRing(at)
  }

  function findTemplate(at: number): number {
    for (let e = lo & templateMask; ; e = (e + 1) & templateMask) {
      const l = words[templateHash + 2 * e]!
      const h = words[templateHash + 2 * e + 1]!
      if ((l | h) === 0) return NONE
      if (l === lo && h === hi && samePage(at, words[templateValue + 2 * e + 1]! >>> 0))
        return words[templateValue + 2 * e]! >>> 0
    }
  }

  function findRing(at: number): number {
    for (let e = lo & ringTableMask; ; e = (e + 1) & ringTableMask) {
      const l = words[ringTableHash + 2 * e]!
      const h = words[ringTableHash + 2 * e + 1]!
      if ((l | h) === 0) return NONE
      if (l === lo && h === hi) {
        const slot = words[ringTableSlot + e]! >>> 0
        if (samePage(at, ringOrigin + slot * PAGE_BYTES)) return slot
      }
    }
  }

  function addTemplate(slot: number, address: number): void {
    let e = lo & templateMask
    while ((words[templateHash + 2 * e]! | words[templateHash + 2 * e + 1]!) !== 0) e = (e + 1) & templateMask
    words[templateHash + 2 * e] = lo
    words[templateHash + 2 * e + 1] = hi
    words[templateValue + 2 * e] = slot
    words[templateValue + 2 * e + 1] = address
  }

  function add(slot: number): void {
    let e = lo & ringTableMask
    while ((words[ringTableHash + 2 * e]! | words[ringTableHash + 2 * e + 1]!) !== 0) e = (e + 1) & ringTableMask
    words[ringTableHash + 2 * e] = lo
    words[ringTableHash + 2 * e + 1] = hi
    words[ringTableSlot + e] = slot
  }

  function remove(hashLo: number, hashHi: number, slot: number): void {
    let hole = hashLo & ringTableMask
    for (; ; hole = (hole + 1) & ringTableMask) {
      const l = words[ringTableHash + 2 * hole]!
      const h = words[ringTableHash + 2 * hole + 1]!
      if ((l | h) === 0) return
      if (l === hashLo && h === hashHi && words[ringTableSlot + hole]! >>> 0 === slot) break
    }
    for (let e = (hole + 1) & ringTableMask; ; e = (e + 1) & ringTableMask) {
      const l = words[ringTableHash + 2 * e]!
      const h = words[ringTableHash + 2 * e + 1]!
      if ((l | h) === 0) break
      // an entry may move back to the hole unless its home lies after the hole
      if (((e - l) & ringTableMask) >= ((e - hole) & ringTableMask)) {
        words[ringTableHash + 2 * hole] = l
        words[ringTableHash + 2 * hole + 1] = h
        words[ringTableSlot + hole] = words[ringTableSlot + e]!
        hole = e
      }
    }
    words[ringTableHash + 2 * hole] = 0
    words[ringTableHash + 2 * hole + 1] = 0
    words[ringTableSlot + hole] = 0
  }

  // ring ---------------------------------------------------------------------------------------------------------

  function placeGet(place: number): number {
    return place < places ? (words[placeTable + place]! - 1) >>> 0 : NONE
  }

  function placeSet(place: number, slot: number): void {
    if (place < places) words[placeTable + place] = slot + 1
  }

  function mark(slot: number): void {
    if (slot >= templatePages) bytes[ringMark + slot - templatePages] = 1
  }

  /** Takes the next ring slot for the page at `at`; hashed: its hash is in lo and hi and goes to the tables. */
  function insert(at: number, hashed: boolean): number {
    if (ringPages === 0) return NONE
    let c = words[cursorAt]!
    while (bytes[ringMark + c] !== 0) {
      bytes[ringMark + c] = 0
      c = c + 1 === ringPages ? 0 : c + 1
    }
    const slot = templatePages + c
    if (hashed) {
      const h = ringHash + 2 * c
      const oldLo = words[h]!
      const oldHi = words[h + 1]!
      if ((oldLo | oldHi) !== 0) remove(oldLo, oldHi, slot)
      words[h] = lo
      words[h + 1] = hi
      add(slot)
    }
    bytes.copyWithin(ringOrigin + slot * PAGE_BYTES, at, at + PAGE_BYTES)
    c++
    if (c > words[usedAt]!) words[usedAt] = c
    words[cursorAt] = c === ringPages ? 0 : c
    return slot
  }

  // long matches -------------------------------------------------------------------------------------------------

  const positions = new Int32Array(PAGE_BYTES / SAMPLE_GAP)
  const windows = new Int32Array(PAGE_BYTES / SAMPLE_GAP)
  let samples = 0
  let copies = 0
  let literalBytes = 0

  /** The four bytes at any address. */
  function word(at: number): number {
    return bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)
  }

  function sample(at: number): void {
    let n = 0
    let next = 0
    let a = word(at)
    let b = word(at + 4)
    for (let position = 0; position < PAGE_BYTES - WINDOW; position++) {
      const x = (Math.imul(a, P1) + Math.imul(b, P2) + 0x5bd1e995) >>> 0
      if (x < SAMPLE_BELOW && position >= next) {
        next = position + SAMPLE_GAP
        positions[n++] = position
      }
      a = (a >>> 8) | (b << 24)
      b = (b >>> 8) | (bytes[at + position + 8]! << 24)
    }
    samples = n
    for (let i = 0; i < n; i++) {
      const p = at + positions[i]!
      let h = window(Math.imul(word(p), P1), 0x165667b1)
      h += window(Math.imul(word(p + 4), P2), 0x5bd1e995)
      h += window(Math.imul(word(p + 8), P3), 0x1b873593)
      h = (h + window(Math.imul(word(p + 12), P4), 0xcc9e2d51)) | 0
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
      if (words[e] === h && (words[e + 1]! - 1) >>> 12 === slot) continue
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

  function displace(source: number, target: number): void {
    const slot = source >>> 12
    const inside = source & (PAGE_BYTES - 1)
    const at = slotAddress(slot)
    origin = at - slot * PAGE_BYTES
    delta = at + inside - (page + target)
    // what a page is compared with is as long as a page: it reaches into one neighbour at most
    const back = target > inside && (slot === 0 || slotAddress(slot - 1) + PAGE_BYTES !== at) ? inside : target
    low = Math.max(end, target - back)
    high = target + Math.min(PAGE_BYTES - target, reach(source))
    scanned = low
  }

  /** Bytes from `source` on that follow each other in memory, up to the end of the next slot. */
  function reach(source: number): number {
    const slot = source >>> 12
    const rest = PAGE_BYTES - (source & (PAGE_BYTES - 1))
    return slot + 1 < poolPages && slotAddress(slot + 1) === slotAddress(slot) + PAGE_BYTES ? rest + PAGE_BYTES : rest
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
      copies++
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

  function matchLong(at: number, previous: number, tokens: number, literals: number): number {
    sample(at)
    page = at
    end = 0
    high = 0
    scanned = 0
    tokenTo = tokens
    literalTo = literals
    copies = 0
    if (previous !== NONE) displace(previous * PAGE_BYTES, 0)
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
    literalBytes = literalTo - literals
    if (literalBytes + count * TOKEN_COST + SAVED_MIN > PAGE_BYTES) return 0
    for (let t = tokens >>> 2; t < tokenTo >>> 2; t += 2) if (words[t]! >>> 16 !== 0) mark(words[t + 1]! >>> 12)
    return count
  }

  // words --------------------------------------------------------------------------------------------------------

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
    for (let block = at + 192; block < at + PAGE_BYTES; block += 256) {
      for (let p = block; p < block + 64; p += 4) {
        const w = word(p)
        const before = word(p - 4)
        if (w === before || w === word(p - 8) || w === word(p - 16)) repeat += 4
        equal[0]! += equalBytes(w, before)
        for (let i = 1; i < LAGS.length; i++) {
          const back = word(p - LAGS[i]! * 4)
          equal[i]! += equalBytes(w - back, back - word(p - LAGS[i]! * 8))
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

  // encoder ------------------------------------------------------------------------------------------------------

  function indexTemplates(from: number, to: number): number {
    let added = 0
    for (let slot = from; slot < to; slot++) {
      const at = slotAddress(slot)
      hashPage(at)
      if (findTemplate(at) !== NONE) continue
      addTemplate(slot, at)
      added++
    }
    return added
  }

  function rememberTemplates(from: number, to: number): void {
    if (longShift === 0) return
    for (let slot = from; slot < to; slot++) {
      const at = slotAddress(slot)
      hashPage(at)
      if (findTemplate(at) !== slot) continue
      sample(at)
      rememberSamples(slot)
    }
  }

  function matchPages(
    list: number,
    placeList: number,
    n: number,
    kinds: number,
    slots: number,
    tokens: number,
    literals: number,
    dense: number,
    wordsTo: number,
    options: number,
  ): void {
    let literal = literals
    let denseAt = dense
    let wordsAt = wordsTo
    let tokenAt = tokens
    let copied = 0
    const long = (options & LONG) !== 0 && longShift !== 0
    words.fill(0, resultAt, resultAt + 16)
    for (let i = 0; i < n; i++) {
      const at = words[(list >>> 2) + i]! >>> 0
      const place = words[(placeList >>> 2) + i]! >>> 0
      const before = placeGet(place)
      let kind: number = FILL
      let slot = fillOf(at)
      if (slot < 0) {
        hashPage(at)
        slot = find(at)
        if (slot !== NONE) {
          kind = slot === before ? SAME : REF
          mark(slot)
          placeSet(place, slot)
        } else {
          const lag = (options & MATCH.WORDS) !== 0 ? wordsLag(at) : -1
          const numbers = lag >= 0 && sure
          const count = long && !numbers ? matchLong(at, before, tokenAt, literal) : 0
          if (count !== 0) {
            kind = PATCH
            tokenAt += count * 8
            literal += literalBytes
            copied += copies
          } else if (lag >= 0) {
            kind = WORDS
            splitWords(at, lag, wordsAt)
            wordsAt += PAGE_BYTES
          } else if (isDense(at)) {
            kind = NEW_DENSE
            bytes.copyWithin(denseAt, at, at + PAGE_BYTES)
            denseAt += PAGE_BYTES
          } else {
            kind = NEW
            bytes.copyWithin(literal, at, at + PAGE_BYTES)
            literal += PAGE_BYTES
          }
          const inserted = insert(at, true)
          if (long && inserted !== NONE) {
            if (numbers) sample(at)
            rememberSamples(inserted)
          }
          placeSet(place, inserted)
          slot = count !== 0 ? count : lag >= 0 ? lag : inserted
        }
      }
      bytes[kinds + i] = kind
      words[(slots >>> 2) + i] = slot
      words[(placeList >>> 2) + i] = before
      words[resultAt + 4 + kind] = words[resultAt + 4 + kind]! + 1
    }
    words[resultAt] = literal - literals
    words[resultAt + 1] = denseAt - dense
    words[resultAt + 2] = tokenAt - tokens
    words[resultAt + 3] = copied
  }

  // decoder ------------------------------------------------------------------------------------------------------

  /** be64 of hi:lo at `p`. */
  function putHead(p: number, head: number, low: number): void {
    bytes[p] = head >>> 24
    bytes[p + 1] = head >>> 16
    bytes[p + 2] = head >>> 8
    bytes[p + 3] = head
    bytes[p + 4] = low >>> 24
    bytes[p + 5] = low >>> 16
    bytes[p + 6] = low >>> 8
    bytes[p + 7] = low
  }

  /** Heads of n records of `step` bytes each, from `out` on. */
  function putHeads(out: number, addressHi: number, addressLo: number, flag: number, n: number, step: number): void {
    let high = addressHi | 0
    let low = addressLo >>> 0
    for (let i = 0, p = out; i < n; i++, p += step) {
      putHead(p, high, low | flag)
      low += PAGE_BYTES
      if (low > NONE) {
        low -= NONE + 1
        high = (high + 1) | 0
      }
    }
  }

  function expandZeros(out: number, addressHi: number, addressLo: number, n: number): number {
    putHeads(out, addressHi, addressLo, HEAD_ZERO, n, 9)
    for (let i = 0, p = out + 8; i < n; i++, p += 9) bytes[p] = 0
    return n * 9
  }

  function expandFill(
    out: number,
    addressHi: number,
    addressLo: number,
    byte: number,
    n: number,
    flags: number,
  ): number {
    const head = flags & BARE ? 0 : 8
    if (head) putHeads(out, addressHi, addressLo, HEAD_PAGE, n, PAGE_BYTES + 8)
    for (let i = 0, p = out + head; i < n; i++, p += PAGE_BYTES + head) bytes.fill(byte, p, p + PAGE_BYTES)
    return n * (PAGE_BYTES + head)
  }

  function expandPages(
    out: number,
    addressHi: number,
    addressLo: number,
    slot: number,
    n: number,
    placeFirst: number,
    flags: number,
  ): number {
    const head = flags & BARE ? 0 : 8
    for (let i = 0, p = out + head; i < n; i++, p += PAGE_BYTES + head) {
      const place = placeFirst === NONE ? NONE : (placeFirst + i) >>> 0
      const s = flags & FROM_PLACE ? placeGet(place) : (slot + i) >>> 0
      if (s >= poolPages) return FAILED
      if (head) {
        const low = (addressLo >>> 0) + i * PAGE_BYTES
        const high = addressHi + (low > NONE ? Math.floor(low / (NONE + 1)) : 0)
        putHead(p - 8, high, (low % (NONE + 1)) | HEAD_PAGE)
      }
      const from = slotAddress(s)
      bytes.copyWithin(p, from, from + PAGE_BYTES)
      mark(s)
      placeSet(place, s)
    }
    return n * (PAGE_BYTES + head)
  }

  function expandNew(
    out: number,
    addressHi: number,
    addressLo: number,
    literals: number,
    n: number,
    placeFirst: number,
    flags: number,
  ): number {
    const head = flags & BARE ? 0 : 8
    if (head) putHeads(out, addressHi, addressLo, HEAD_PAGE, n, PAGE_BYTES + 8)
    for (let i = 0, p = out + head, from = literals; i < n; i++, p += PAGE_BYTES + head, from += PAGE_BYTES) {
      bytes.copyWithin(p, from, from + PAGE_BYTES)
      const slot = insert(from, false)
      if (placeFirst !== NONE) placeSet((placeFirst + i) >>> 0, slot)
    }
    return n * (PAGE_BYTES + head)
  }

  function copyOut(out: number, poolOffset: number, length: number): boolean {
    const offset = poolOffset >>> 0
    if (offset >= poolBytes || length >>> 0 > poolBytes - offset) return false
    // page by page: slots that follow each other need not do so in memory
    for (let done = 0; done < length; ) {
      const from = byteAddress(offset + done)
      const take = Math.min(length - done, PAGE_BYTES - (from & (PAGE_BYTES - 1)))
      bytes.copyWithin(out + done, from, from + take)
      done += take
    }
    mark(offset >>> 12)
    return true
  }

  function expandPatch(
    out: number,
    addressHi: number,
    addressLo: number,
    tokens: number,
    count: number,
    literals: number,
    place: number,
    flags: number,
  ): number {
    const head = flags & BARE ? 0 : 8
    if (head) putHeads(out, addressHi, addressLo, HEAD_PAGE, 1, 0)
    const body = out + head
    const end = body + PAGE_BYTES
    let p = body
    let literal = literals
    for (let i = 0, w = tokens >>> 2; i < count; i++, w += 2) {
      const literalBytes = words[w]! & 0xffff
      const copyBytes = words[w]! >>> 16
      if (literalBytes + copyBytes > end - p) return FAILED
      bytes.copyWithin(p, literal, literal + literalBytes)
      literal += literalBytes
      p += literalBytes
      if (copyBytes !== 0) {
        if (!copyOut(p, words[w + 1]!, copyBytes)) return FAILED
        p += copyBytes
      }
    }
    if (p !== end) return FAILED
    placeSet(place, insert(body, false))
    return literal - literals
  }

  return {
    indexTemplates,
    rememberTemplates,
    hashPages(list, n, out) {
      for (let i = 0; i < n; i++) {
        hashPage(words[(list >>> 2) + i]! >>> 0)
        words[(out >>> 2) + 2 * i] = lo
        words[(out >>> 2) + 2 * i + 1] = hi
      }
    },
    samePage,
    fillOf,
    isDense,
    matchPages,
    checksum(at, length, seedLo, seedHi, out) {
      digest(layout.checksumKey >>> 2, at, length, seedLo, seedHi)
      words[out >>> 2] = lo
      words[(out >>> 2) + 1] = hi
    },
    expandZeros,
    expandFill,
    expandPages,
    expandNew,
    expandPatch,
    joinWords,
    insertPage(at, place) {
      const slot = insert(at, false)
      placeSet(place, slot)
      return slot
    },
    copyOut,
  }
}
