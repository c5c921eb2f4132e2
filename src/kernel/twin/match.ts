/** Encoder: what each page of a batch becomes, as assembly/match.ts. */
import {
  KIND_COLD,
  KIND_FILL,
  KIND_LATER,
  KIND_NEW,
  KIND_NEW_DENSE,
  KIND_PATCH,
  KIND_REF,
  KIND_SAME,
  KIND_WORDS,
  MATCH_COLD,
  MATCH_COLD_ONCE,
  MATCH_LATER,
  MATCH_LONG,
  MATCH_SPARSE,
  MATCH_WORDS,
  NONE,
  PAGE_BYTES,
  PART_BYTES,
  RESULT_COPIES,
  RESULT_DENSE_BYTES,
  RESULT_KIND_COUNT,
  RESULT_LITERAL_BYTES,
  RESULT_TOKEN_BYTES,
  RESULT_WORD,
  SAMPLE_STEP,
  SAMPLE_STEP_COLD,
  STAGED_FOUND,
  STAGED_LITERALS,
  STAGED_TOKENS,
  STAGING_BYTES,
} from '../constants.ts'
import { type KernelFunctions, TOKEN_BYTES } from '../functions.ts'
import type { Hash } from './hash.ts'
import type { LongMatches } from './long.ts'
import type { TwinMemory } from './memory.ts'
import type { PageQuestions } from './page.ts'
import type { Ring } from './ring.ts'
import type { Tables } from './table.ts'
import type { Numbers } from './words.ts'

export function makeMatcher(
  { layout, bytes, words, slotAddress }: TwinMemory,
  { hashPage }: Hash,
  { fillOf, isDense }: PageQuestions,
  { find, findTemplate, addTemplate }: Tables,
  { insert, mark, passed, placeGet, placeSet }: Ring,
  long: LongMatches,
  { wordsLag, isSure, splitWords }: Numbers,
): Pick<
  KernelFunctions,
  'indexTemplates' | 'rememberTemplates' | 'unknownPages' | 'matchPages' | 'matchParts' | 'settlePages'
> {
  const resultAt = (layout.state >>> 2) + RESULT_WORD
  const { found, sample, rememberSamples, matchLong, markSources, passedSince } = long

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
    if (!long.isThere) return
    for (let slot = from; slot < to; slot++) {
      const at = slotAddress(slot)
      hashPage(at)
      if (findTemplate(at) !== slot) continue
      sample(at, SAMPLE_STEP, false)
      rememberSamples(slot)
    }
  }

  function unknownPages(list: number, n: number, out: number): void {
    for (let i = 0; i < n; i++) {
      const at = words[(list >>> 2) + i]! >>> 0
      let isUnknown = fillOf(at) < 0
      if (isUnknown) {
        hashPage(at)
        isUnknown = find(at) === NONE
      }
      bytes[out + i] = isUnknown ? 1 : 0
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
    const isSparse = (options & MATCH_SPARSE) !== 0
    const isLong = (options & MATCH_LONG) !== 0 && long.isThere
    const isColdOnce = (options & MATCH_COLD) !== 0 && (options & MATCH_COLD_ONCE) !== 0
    words.fill(0, resultAt, resultAt + 16)
    for (let i = 0; i < n; i++) {
      const at = words[(list >>> 2) + i]! >>> 0
      const place = words[(placeList >>> 2) + i]! >>> 0
      const before = placeGet(place)
      let kind: number = KIND_FILL
      const isOnce = isColdOnce && bytes[kinds + i] !== 0
      let slot = isOnce ? NONE : fillOf(at)
      if (isOnce) {
        kind = KIND_COLD
        placeSet(place, NONE)
      } else if (slot < 0) {
        hashPage(at)
        slot = find(at)
        if (slot !== NONE) {
          kind = slot === before ? KIND_SAME : KIND_REF
          mark(slot)
          placeSet(place, slot)
        } else {
          const isCold = (options & MATCH_COLD) !== 0 && bytes[kinds + i] !== 0
          if ((options & MATCH_LATER) !== 0 && !isCold) {
            words[(tokens >>> 2) + i] = passed()
            const taken = insert(at, true)
            placeSet(place, taken)
            bytes[kinds + i] = KIND_LATER
            words[(slots >>> 2) + i] = taken
            words[(placeList >>> 2) + i] = before
            continue
          }
          const lag = (options & MATCH_WORDS) !== 0 && !isCold ? wordsLag(at) : -1
          const numbers = lag >= 0 && isSure()
          const count = isLong && !numbers && !isCold ? matchLong(at, before, tokenAt, literal, isSparse) : 0
          if (isCold) kind = KIND_COLD
          else if (count !== 0) {
            kind = KIND_PATCH
            markSources(tokenAt, count)
            tokenAt += count * TOKEN_BYTES
            literal += found.literalBytes
            copied += found.copies
          } else if (lag >= 0) {
            kind = KIND_WORDS
            splitWords(at, lag, wordsAt)
            wordsAt += PAGE_BYTES
          } else if (isDense(at)) {
            kind = KIND_NEW_DENSE
            bytes.copyWithin(denseAt, at, at + PAGE_BYTES)
            denseAt += PAGE_BYTES
          } else {
            kind = KIND_NEW
            bytes.copyWithin(literal, at, at + PAGE_BYTES)
            literal += PAGE_BYTES
          }
          const inserted = insert(at, true)
          if (isLong && inserted !== NONE) {
            if (numbers || isCold) sample(at, isCold ? SAMPLE_STEP_COLD : SAMPLE_STEP, isSparse)
            rememberSamples(inserted)
          }
          placeSet(place, inserted)
          slot = count !== 0 ? count : lag >= 0 ? lag : inserted
        }
      }
      bytes[kinds + i] = kind
      words[(slots >>> 2) + i] = slot
      words[(placeList >>> 2) + i] = before
      words[resultAt + RESULT_KIND_COUNT + kind]!++
    }
    if ((options & MATCH_LATER) !== 0) words[(tokens >>> 2) + n] = passed()
    words[resultAt + RESULT_LITERAL_BYTES] = literal - literals
    words[resultAt + RESULT_DENSE_BYTES] = denseAt - dense
    words[resultAt + RESULT_TOKEN_BYTES] = tokenAt - tokens
    words[resultAt + RESULT_COPIES] = copied
  }

  function matchParts(
    parts: number,
    staging: number,
    first: number,
    n: number,
    total: number,
    cursor: number,
    options: number,
  ): void {
    const { ringPages } = layout
    for (let k = 0; k < n; k++) {
      const part = (parts + k * PART_BYTES) >>> 2
      const at = words[part]! >>> 0
      const slot = words[part + 2]! >>> 0
      const index = first + k
      const result = (staging + STAGED_FOUND + index * 16) >>> 2
      const literals = staging + STAGED_LITERALS + index * PAGE_BYTES
      const since = Math.min((total - words[part + 3]!) >>> 0, ringPages)
      passedSince(since, cursor >= since ? cursor - since : cursor + ringPages - since)
      const lag = (options & MATCH_WORDS) !== 0 ? wordsLag(at) : -1
      const numbers = lag >= 0 && isSure()
      const tokens = staging + STAGED_TOKENS + index * PAGE_BYTES
      const count = numbers
        ? 0
        : matchLong(at, words[part + 1]! >>> 0, tokens, literals, (options & MATCH_SPARSE) !== 0)
      let kind: number = KIND_NEW
      let own: number = PAGE_BYTES
      if (count !== 0) {
        kind = KIND_PATCH
        own = found.literalBytes
      } else if (lag >= 0) {
        kind = KIND_WORDS
        splitWords(at, lag, literals)
      } else if (isDense(at)) kind = KIND_NEW_DENSE
      if (slot !== NONE) {
        if (numbers) sample(at, SAMPLE_STEP, (options & MATCH_SPARSE) !== 0)
        rememberSamples(slot)
      }
      words[result] = kind
      words[result + 1] = count !== 0 ? count : lag >= 0 ? lag : slot
      words[result + 2] = own
      words[result + 3] = found.copies
    }
    passedSince(0, 0)
  }

  function settlePages(
    list: number,
    n: number,
    kinds: number,
    slots: number,
    tokens: number,
    literals: number,
    dense: number,
    wordsTo: number,
    staging: number,
    owners: number,
  ): void {
    let literal = literals
    let denseAt = dense
    let wordsAt = wordsTo
    let tokenAt = tokens
    let copied = 0
    let index = 0
    for (let i = 0; i < n; i++) {
      if (bytes[kinds + i] !== KIND_LATER) continue
      const at = words[(list >>> 2) + i]! >>> 0
      const area = staging + bytes[owners + index]! * STAGING_BYTES
      const result = (area + STAGED_FOUND + index * 16) >>> 2
      const staged = area + STAGED_LITERALS + index * PAGE_BYTES
      const kind = words[result]!
      const slot = words[result + 1]! >>> 0
      if (kind === KIND_PATCH) {
        const own = words[result + 2]!
        const from = area + STAGED_TOKENS + index * PAGE_BYTES
        bytes.copyWithin(tokenAt, from, from + slot * TOKEN_BYTES)
        markSources(tokenAt, slot)
        tokenAt += slot * TOKEN_BYTES
        bytes.copyWithin(literal, staged, staged + own)
        literal += own
        copied += words[result + 3]!
      } else if (kind === KIND_WORDS) {
        bytes.copyWithin(wordsAt, staged, staged + PAGE_BYTES)
        wordsAt += PAGE_BYTES
      } else if (kind === KIND_NEW_DENSE) {
        bytes.copyWithin(denseAt, at, at + PAGE_BYTES)
        denseAt += PAGE_BYTES
      } else {
        bytes.copyWithin(literal, at, at + PAGE_BYTES)
        literal += PAGE_BYTES
      }
      bytes[kinds + i] = kind
      words[(slots >>> 2) + i] = slot
      words[resultAt + RESULT_KIND_COUNT + kind]!++
      index++
    }
    words[resultAt + RESULT_LITERAL_BYTES] = literal - literals
    words[resultAt + RESULT_DENSE_BYTES] = denseAt - dense
    words[resultAt + RESULT_TOKEN_BYTES] = tokenAt - tokens
    words[resultAt + RESULT_COPIES] = copied
  }

  return { indexTemplates, rememberTemplates, unknownPages, matchPages, matchParts, settlePages }
}
