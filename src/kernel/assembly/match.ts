// Encoder: what each page of a batch becomes.
import {
  KIND_COLD, KIND_FILL, KIND_NEW, KIND_NEW_DENSE, KIND_PATCH, KIND_REF, KIND_SAME, KIND_WORDS, MATCH_COLD, MATCH_COLD_ONCE,
  MATCH_LONG, MATCH_WORDS, NONE, PAGE_BITS, PAGE_BYTES, RESULT_COPIES, RESULT_DENSE_BYTES, RESULT_KIND_COUNT,
  RESULT_LITERAL_BYTES, RESULT_TOKEN_BYTES, SAMPLE_STEP, SAMPLE_STEP_COLD,
} from '../constants'
import {
  RESULT, longShift, placeTable, places, ringOrigin, ringTable, ringTableMask, scratch, slotAddress, state,
  templateMask, templateTable,
} from './state'
import { hashPage } from './hash'
import { fillOf, isDense } from './page'
import { addTemplate, find, findTemplate } from './table'
import { copies, indexLong, literalBytes, matchLong, rememberSamples } from './long'
import { splitWords, sure, wordsLag } from './words'
import { insert, mark, placeGet, placeSet } from './ring'

/** Pages whose table entries and candidates are touched together, so that their cache misses overlap. */
const GROUP: u32 = 8

let sink: u64 = 0 // keeps the touching loads alive

// @ts-ignore: decorator
@inline function touchPage(at: usize): u64 {
  return load<u64>(at) + load<u64>(at, 64) + load<u64>(at, 128) + load<u64>(at, 192)
}

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
    if (findTemplate(at, hashPage(at)) == slot) indexLong(at, slot, SAMPLE_STEP)
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
  const cold = options & MATCH_COLD
  const result = state + RESULT
  memory.fill(result, 0, 64)
  const hashes = scratch + 256
  for (let base: u32 = 0; base < n; base += GROUP) {
    const m = min(n - base, GROUP)
    for (let j: u32 = 0; j < m; j++) {
      const at: usize = load<u32>(list + (<usize>(base + j) << 2))
      store<u64>(hashes + (<usize>j << 3), hashPage(at))
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
      const byte = fillOf(at)
      if (byte >= 0) {
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
          const lag = options & MATCH_WORDS && !isCold ? wordsLag(at) : NONE
          const numbers = lag != NONE && sure
          const count = long && !numbers && !isCold ? matchLong(at, before, tokenAt, literal) : 0
          if (isCold) kind = KIND_COLD
          else if (count != 0) {
            kind = KIND_PATCH
            tokenAt += <usize>count << 3
            literal += literalBytes
            copied += copies
          } else if (lag != NONE) {
            kind = KIND_WORDS
            splitWords(at, lag, wordsAt)
            wordsAt += PAGE_BYTES
          } else if (isDense(at)) {
            kind = KIND_NEW_DENSE
            memory.copy(denseAt, at, PAGE_BYTES)
            denseAt += PAGE_BYTES
          } else {
            kind = KIND_NEW
            memory.copy(literal, at, PAGE_BYTES)
            literal += PAGE_BYTES
          }
          const inserted = isCold && options & MATCH_COLD_ONCE ? NONE : insert(at, hash)
          if (long && inserted != NONE) {
            if (numbers || isCold) indexLong(at, inserted, isCold ? SAMPLE_STEP_COLD : SAMPLE_STEP)
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
  store<u32>(result, <u32>(literal - literals), RESULT_LITERAL_BYTES << 2)
  store<u32>(result, <u32>(denseAt - dense), RESULT_DENSE_BYTES << 2)
  store<u32>(result, <u32>(tokenAt - tokens), RESULT_TOKEN_BYTES << 2)
  store<u32>(result, copied, RESULT_COPIES << 2)
}
