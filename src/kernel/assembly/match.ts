// Encoder: what each page of a batch becomes.
import {
  KIND_COLD, KIND_FILL, KIND_LATER, KIND_NEW, KIND_NEW_DENSE, KIND_PATCH, KIND_REF, KIND_SAME, KIND_WORDS, MATCH_COLD,
  MATCH_COLD_ONCE, MATCH_LATER, MATCH_LONG, MATCH_SPARSE, MATCH_WORDS, NONE, PAGE_BITS, PAGE_BYTES, PART_BYTES, RESULT_COPIES,
  RESULT_DENSE_BYTES, RESULT_KIND_COUNT, RESULT_LITERAL_BYTES, RESULT_TOKEN_BYTES, SAMPLE_STEP, SAMPLE_STEP_COLD,
  STAGED_FOUND, STAGED_LITERALS, STAGED_TOKENS, STAGING_BYTES,
} from '../constants'
import {
  RESULT, longShift, placeTable, places, poolPages, ringOrigin, ringTable, ringTableMask, scratch, slotAddress, state,
  templateMask, templatePages, templateTable,
} from './state'
import { hashPage } from './hash'
import { fillOf, isDense, touchPage } from './page'
import { addTemplate, find, findTemplate } from './table'
import { copies, indexLong, literalBytes, markSources, matchLong, passedSince, rememberSamples } from './long'
import { splitWords, sure, wordsLag } from './words'
import { insert, insertAndCopy, mark, passed, placeGet, placeSet } from './ring'

/** Pages whose table entries and candidates are touched together, so that their cache misses overlap. */
const GROUP: u32 = 8

let sink: u64 = 0 // keeps the touching loads alive

/** Puts template slots into their table. Returns how many differ from those before. */
export function indexTemplates(from: u32, to: u32): u32 {
  let added: u32 = 0
  for (let slot = from; slot < to; slot++) {
    const at = slotAddress(slot)
    const hash = hashPage(at)
    if (findTemplate(at, hash) != NONE) continue
    addTemplate(hash, slot, at)
    added++
  }
  return added
}

/** Makes the long matches of template slots known: once each page, of which the table tells the first. */
export function rememberTemplates(from: u32, to: u32): void {
  if (longShift == 0) return
  for (let slot = from; slot < to; slot++) {
    const at = slotAddress(slot)
    if (findTemplate(at, hashPage(at)) == slot) indexLong(at, slot, SAMPLE_STEP, false)
  }
}

/** Which pages of a list are neither known nor of one byte. */
export function unknownPages(list: usize, n: u32, out: usize): void {
  for (let i: u32 = 0; i < n; i++) {
    const at: usize = load<u32>(list + (<usize>i << 2))
    store<u8>(out + <usize>i, fillOf(at) < 0 && find(at, hashPage(at)) == NONE ? 1 : 0)
  }
}

export function matchPages(
  list: usize, placeList: usize, n: u32, kinds: usize, slots: usize, tokens: usize, literals: usize, dense: usize,
  words: usize, options: u32,
): void {
  let literal = literals
  let denseAt = dense
  let wordsAt = words
  let tokenAt = tokens
  let copied: u32 = 0
  const long = options & MATCH_LONG && longShift != 0
  const sparse: bool = (options & MATCH_SPARSE) != 0
  const cold = options & MATCH_COLD
  const later = options & MATCH_LATER
  const coldOnce = cold && options & MATCH_COLD_ONCE
  const result = state + RESULT
  memory.fill(result, 0, 64)
  const hashes = scratch + 256
  for (let base: u32 = 0; base < n; base += GROUP) {
    const m = min(n - base, GROUP)
    for (let j: u32 = 0; j < m; j++) {
      const at: usize = load<u32>(list + (<usize>(base + j) << 2))
      // what is not inserted needs none, and was looked for by who says that it is cold; any hash does for the touching
      if (!(coldOnce && load<u8>(kinds + <usize>(base + j)))) store<u64>(hashes + (<usize>j << 3), hashPage(at))
    }
    let touch: u64 = 0
    for (let j: u32 = 0; j < m; j++) {
      const t = load<u32>(hashes + (<usize>j << 3)) & templateMask
      touch += load<u64>(templateTable + (<usize>t << 4))
      const place = load<u32>(placeList + (<usize>(base + j) << 2))
      if (place < places) touch += load<u32>(placeTable + (<usize>place << 2))
    }
    // the ring's table only for what is no template, or most pages would fetch a line for nothing
    let others: u32 = 0
    for (let j: u32 = 0; j < m; j++) {
      const h = load<u64>(hashes + (<usize>j << 3))
      const t = templateTable + (<usize>(<u32>h & templateMask) << 4)
      if (load<u64>(t) == h) touch += touchPage(<usize>load<u32>(t, 12))
      else {
        others |= 1 << j
        touch += load<u64>(ringTable + (<usize>(<u32>h & ringTableMask) << 4))
      }
    }
    for (; others != 0; others &= others - 1) {
      const h = load<u64>(hashes + (<usize>ctz(others) << 3))
      const r = ringTable + (<usize>(<u32>h & ringTableMask) << 4)
      if (load<u64>(r) == h) touch += touchPage(ringOrigin + (<usize>load<u32>(r, 8) << PAGE_BITS))
    }
    sink += touch
    for (let j: u32 = 0; j < m; j++) {
      const i = base + j
      const at: usize = load<u32>(list + (<usize>i << 2))
      const place = load<u32>(placeList + (<usize>i << 2))
      const before = placeGet(place)
      let kind: u8
      let slot: u32
      const isOnce = coldOnce && load<u8>(kinds + <usize>i)
      const byte = isOnce ? -1 : fillOf(at)
      if (isOnce) {
        kind = KIND_COLD
        slot = NONE
        placeSet(place, NONE)
      } else if (byte >= 0) {
        kind = KIND_FILL
        slot = byte
      } else {
        const hash = load<u64>(hashes + (<usize>j << 3))
        slot = find(at, hash)
        if (slot != NONE) {
          kind = slot == before ? KIND_SAME : KIND_REF
          mark(slot)
          placeSet(place, slot)
        } else {
          const isCold = cold && load<u8>(kinds + <usize>i)
          if (later && !isCold) {
            store<u32>(tokens + (<usize>i << 2), passed)
            const taken = insert(at, hash)
            placeSet(place, taken)
            store<u8>(kinds + <usize>i, KIND_LATER)
            store<u32>(slots + (<usize>i << 2), taken)
            store<u32>(placeList + (<usize>i << 2), before)
            continue
          }
          const lag = options & MATCH_WORDS && !isCold ? wordsLag(at) : NONE
          const numbers = lag != NONE && sure
          const count = long && !numbers && !isCold ? matchLong(at, before, tokenAt, literal, sparse) : 0
          let copyTo: usize = 0
          if (isCold) kind = KIND_COLD
          else if (count != 0) {
            kind = KIND_PATCH
            markSources(tokenAt, count)
            tokenAt += <usize>count << 3
            literal += literalBytes
            copied += copies
          } else if (lag != NONE) {
            kind = KIND_WORDS
            splitWords(at, lag, wordsAt)
            wordsAt += PAGE_BYTES
          } else if (isDense(at)) {
            kind = KIND_NEW_DENSE
            copyTo = denseAt
            denseAt += PAGE_BYTES
          } else {
            kind = KIND_NEW
            copyTo = literal
            literal += PAGE_BYTES
          }
          const inserted = copyTo != 0 ? insertAndCopy(at, hash, copyTo) : insert(at, hash)
          if (long && inserted != NONE) {
            if (numbers || isCold) indexLong(at, inserted, isCold ? SAMPLE_STEP_COLD : SAMPLE_STEP, sparse)
            else rememberSamples(inserted)
          }
          placeSet(place, inserted)
          slot = count != 0 ? count : lag != NONE ? lag : inserted
        }
      }
      store<u8>(kinds + <usize>i, kind)
      store<u32>(slots + (<usize>i << 2), slot)
      store<u32>(placeList + (<usize>i << 2), before)
      const count = result + (<usize>(RESULT_KIND_COUNT + kind) << 2)
      store<u32>(count, load<u32>(count) + 1)
    }
  }
  if (later) store<u32>(tokens + (<usize>n << 2), passed)
  store<u32>(result, <u32>(literal - literals), RESULT_LITERAL_BYTES << 2)
  store<u32>(result, <u32>(denseAt - dense), RESULT_DENSE_BYTES << 2)
  store<u32>(result, <u32>(tokenAt - tokens), RESULT_TOKEN_BYTES << 2)
  store<u32>(result, copied, RESULT_COPIES << 2)
}

/**
 * What pages become that matchPages left for later: on any thread, in any order. Writes this thread's staging area, and the
 * table of long matches, which several may write: what it says is compared.
 */
export function matchParts(parts: usize, staging: usize, first: u32, n: u32, total: u32, cursor: u32, options: u32): void {
  const ring = poolPages - templatePages
  for (let k: u32 = 0; k < n; k++) {
    const part = parts + <usize>k * PART_BYTES
    const at: usize = load<u32>(part)
    const slot = load<u32>(part, 8)
    const index = <usize>(first + k)
    const found = staging + STAGED_FOUND + (index << 4)
    const tokens = staging + STAGED_TOKENS + (index << PAGE_BITS)
    const literals = staging + STAGED_LITERALS + (index << PAGE_BITS)
    const since = min(total - load<u32>(part, 12), ring)
    passedSince(since, cursor >= since ? cursor - since : cursor + ring - since)
    const lag = options & MATCH_WORDS ? wordsLag(at) : NONE
    const numbers = lag != NONE && sure
    const count = numbers ? 0 : matchLong(at, load<u32>(part, 4), tokens, literals, (options & MATCH_SPARSE) != 0)
    let kind: u32 = KIND_NEW
    let own: u32 = PAGE_BYTES
    if (count != 0) {
      kind = KIND_PATCH
      own = literalBytes
    } else if (lag != NONE) {
      kind = KIND_WORDS
      splitWords(at, lag, literals)
    } else if (isDense(at)) kind = KIND_NEW_DENSE
    if (slot != NONE) {
      if (numbers) indexLong(at, slot, SAMPLE_STEP, (options & MATCH_SPARSE) != 0)
      else rememberSamples(slot)
    }
    store<u32>(found, kind)
    store<u32>(found, count != 0 ? count : lag != NONE ? lag : slot, 4)
    store<u32>(found, own, 8)
    store<u32>(found, copies, 12)
  }
  passedSince(0, 0)
}

/** Puts together, in their order, what matchParts found of the pages that were left for later. */
export function settlePages(
  list: usize, n: u32, kinds: usize, slots: usize, tokens: usize, literals: usize, dense: usize, words: usize,
  staging: usize, owners: usize,
): void {
  let literal = literals
  let denseAt = dense
  let wordsAt = words
  let tokenAt = tokens
  let copied: u32 = 0
  let index: usize = 0
  const result = state + RESULT
  for (let i: u32 = 0; i < n; i++) {
    if (load<u8>(kinds + <usize>i) != KIND_LATER) continue
    const at: usize = load<u32>(list + (<usize>i << 2))
    const area = staging + <usize>load<u8>(owners + index) * STAGING_BYTES
    const found = area + STAGED_FOUND + (index << 4)
    const staged = area + STAGED_LITERALS + (index << PAGE_BITS)
    const kind = load<u8>(found)
    const slot = load<u32>(found, 4)
    if (kind == KIND_PATCH) {
      const bytes = load<u32>(found, 8)
      memory.copy(tokenAt, area + STAGED_TOKENS + (index << PAGE_BITS), <usize>slot << 3)
      markSources(tokenAt, slot)
      tokenAt += <usize>slot << 3
      memory.copy(literal, staged, bytes)
      literal += bytes
      copied += load<u32>(found, 12)
    } else if (kind == KIND_WORDS) {
      memory.copy(wordsAt, staged, PAGE_BYTES)
      wordsAt += PAGE_BYTES
    } else if (kind == KIND_NEW_DENSE) {
      memory.copy(denseAt, at, PAGE_BYTES)
      denseAt += PAGE_BYTES
    } else {
      memory.copy(literal, at, PAGE_BYTES)
      literal += PAGE_BYTES
    }
    store<u8>(kinds + <usize>i, kind)
    store<u32>(slots + (<usize>i << 2), slot)
    const count = result + (<usize>(RESULT_KIND_COUNT + kind) << 2)
    store<u32>(count, load<u32>(count) + 1)
    index++
  }
  store<u32>(result, <u32>(literal - literals), RESULT_LITERAL_BYTES << 2)
  store<u32>(result, <u32>(denseAt - dense), RESULT_DENSE_BYTES << 2)
  store<u32>(result, <u32>(tokenAt - tokens), RESULT_TOKEN_BYTES << 2)
  store<u32>(result, copied, RESULT_COPIES << 2)
}
