/** Decoder: runs of records as QEMU's main stream has them, or bare pages: as assembly/expand.ts. */
import {
  EXPAND_BARE,
  EXPAND_FROM_PLACE,
  EXPAND_ONCE,
  HEAD_PAGE,
  HEAD_ZERO,
  NONE,
  PAGE_BITS,
  PAGE_BYTES,
  RUN_FLAGS,
  RUN_HEAD_HI,
  RUN_HEAD_LO,
  RUN_OUT,
  RUN_PAGES,
  RUN_PLACE,
  RUN_SLOT,
  RUN_WORDS,
} from '../constants.ts'
import { FAILED, type KernelFunctions } from '../functions.ts'
import type { TwinMemory } from './memory.ts'
import type { Ring } from './ring.ts'

type Expansions = 'expandZeros' | 'expandFill' | 'expandPages' | 'expandRuns' | 'expandNew' | 'expandPatch' | 'copyOut'

export function makeExpander(
  memory: TwinMemory,
  { insert, mark, placeGet, placeSet }: Ring,
): Pick<KernelFunctions, Expansions> {
  const { bytes, words, poolPages, poolBytes, slotAddress, byteAddress } = memory

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
    const head = flags & EXPAND_BARE ? 0 : 8
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
    const head = flags & EXPAND_BARE ? 0 : 8
    for (let i = 0, p = out + head; i < n; i++, p += PAGE_BYTES + head) {
      const place = placeFirst === NONE ? NONE : (placeFirst + i) >>> 0
      const s = flags & EXPAND_FROM_PLACE ? placeGet(place) : (slot + i) >>> 0
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

  function expandRuns(list: number, n: number): number {
    for (let i = 0; i < n; i++) {
      const run = list / 4 + i * RUN_WORDS
      const word = (which: number): number => words[run + which]! >>> 0
      const given = expandPages(
        word(RUN_OUT),
        word(RUN_HEAD_HI),
        word(RUN_HEAD_LO),
        word(RUN_SLOT),
        word(RUN_PAGES),
        word(RUN_PLACE),
        word(RUN_FLAGS),
      )
      if (given === FAILED) return i
    }
    return n
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
    const head = flags & EXPAND_BARE ? 0 : 8
    if (head) putHeads(out, addressHi, addressLo, HEAD_PAGE, n, PAGE_BYTES + 8)
    for (let i = 0, p = out + head, from = literals; i < n; i++, p += PAGE_BYTES + head, from += PAGE_BYTES) {
      bytes.copyWithin(p, from, from + PAGE_BYTES)
      const slot = flags & EXPAND_ONCE ? NONE : insert(from, false)
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
    mark(offset >>> PAGE_BITS)
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
    const head = flags & EXPAND_BARE ? 0 : 8
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

  return { expandZeros, expandFill, expandPages, expandRuns, expandNew, expandPatch, copyOut }
}
