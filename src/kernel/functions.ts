/** What the two implementations of the kernel have in common: their functions, and the numbers in which they answer. */
import {
  EXPAND_BARE,
  EXPAND_FROM_PLACE,
  EXPAND_ONCE,
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
  PART_BYTES,
  RESULT_COPIES,
  RESULT_DENSE_BYTES,
  RESULT_KIND_COUNT,
  RESULT_LITERAL_BYTES,
  RESULT_TOKEN_BYTES,
  RUN_FLAGS,
  RUN_HEAD_HI,
  RUN_HEAD_LO,
  RUN_OUT,
  RUN_PAGES,
  RUN_PLACE,
  RUN_SLOT,
  RUN_WORDS,
  STAGED_OWNERS,
  STAGED_PAGES,
  STAGING_BYTES,
} from './constants.ts'

/** What a page became. The slot word that goes with it: */
export const KIND = {
  /** 4096 equal bytes; slot: the byte. Its place keeps what it had. */
  FILL: KIND_FILL,
  /** The page that its place last received; slot: where that is. */
  SAME: KIND_SAME,
  /** A page of the pool; slot: which. */
  REF: KIND_REF,
  /** Not known: 4096 bytes appended to `literals`; slot: where the ring has it now, NONE without a ring. */
  NEW: KIND_NEW,
  /** As NEW, but looks incompressible: 4096 bytes appended to `dense` instead. */
  NEW_DENSE: KIND_NEW_DENSE,
  /** Parts of the pool: tokens appended to `tokens`, bytes between them to `literals`; slot: how many tokens. */
  PATCH: KIND_PATCH,
  /** Numbers in rows: 4096 bytes appended to `words`, the page as splitWords of WORDS.md makes it; slot: the lag. */
  WORDS: KIND_WORDS,
  /** A page of a set on the disk: nothing is appended; slot: where the ring has it now, NONE where it has not. */
  COLD: KIND_COLD,
} as const

/** Bits of `matchPages`' options. */
export const MATCH = {
  /** Looks for parts of pages where there is no whole one. Needs `longEntries` in the layout. */
  LONG: MATCH_LONG,
  /** Looks for pages of numbers in rows among the others. */
  WORDS: MATCH_WORDS,
  /** `kinds` says, when it is handed in, which pages are known from a set on the disk: 1, of the others 0. */
  COLD: MATCH_COLD,
  /** Those pages do not enter the ring: nothing is copied or remembered of them. */
  COLD_ONCE: MATCH_COLD_ONCE,
  /**
   * With LONG: pages that are not known as a whole are only taken into the ring. What becomes of them, `matchParts` looks for
   * and `settlePages` says; nothing else is asked of the kernel in between.
   */
  LATER: MATCH_LATER,
  /** With LONG: looks at, and remembers, a quarter of what LONG alone does. */
  SPARSE: MATCH_SPARSE,
} as const

/** Bits of the flags of the `expand` functions. */
export const EXPAND = {
  /** Pages without record heads (multifd). */
  BARE: EXPAND_BARE,
  /** `expandPages`: each page is what its place last received; the slot argument is not used. */
  FROM_PLACE: EXPAND_FROM_PLACE,
  /** `expandNew`: the pages do not enter the ring, and their places have nothing. */
  ONCE: EXPAND_ONCE,
} as const

/** Words of a run in the list of `expandRuns`: the arguments of `expandPages`, and one that says nothing. */
export const RUN = {
  OUT: RUN_OUT,
  HEAD_HI: RUN_HEAD_HI,
  HEAD_LO: RUN_HEAD_LO,
  SLOT: RUN_SLOT,
  PAGES: RUN_PAGES,
  PLACE: RUN_PLACE,
  FLAGS: RUN_FLAGS,
  WORDS: RUN_WORDS,
} as const

/** Index into `Kernel.result`, which tells about the last `matchPages`. */
export const RESULT = {
  /** Bytes appended to literals, dense and tokens. */
  LITERAL_BYTES: RESULT_LITERAL_BYTES,
  DENSE_BYTES: RESULT_DENSE_BYTES,
  TOKEN_BYTES: RESULT_TOKEN_BYTES,
  /** Copies in those tokens. */
  COPIES: RESULT_COPIES,
  /** Pages of each kind: KIND_COUNT + kind. */
  KIND_COUNT: RESULT_KIND_COUNT,
} as const

/** Bytes of a token: u16 literal length, u16 copy length, u32 byte offset in the pool. */
export const TOKEN_BYTES = 8
/** An expand function's answer where the run refers to what is not there. */
export const FAILED = -1

/** What both implementations do. Lists and areas are the caller's, in the kernel's memory. */
export interface KernelFunctions {
  /**
   * Puts template slots `from` to `to` - 1 into their exact table: once, for all sessions that share it.
   * @returns how many differ from those before
   */
  indexTemplates(from: number, to: number): number
  /** Makes the long matches of those slots known to this session: after `indexTemplates`. Nothing without `longEntries`. */
  rememberTemplates(from: number, to: number): void
  /** Hashes n pages, whose addresses (u32) stand at `list`, under the page key: u32 lo, u32 hi each, at `out`. */
  hashPages(list: number, n: number, out: number): void
  /** Whether two pages are equal. */
  samePage(a: number, b: number): boolean
  /** The byte that fills a page, or -1. */
  fillOf(at: number): number
  /** Whether a compressor would probably gain nothing from this page: under 100 ns, by 128 of its bytes. */
  isDense(at: number): boolean
  /** Tells of n pages, whose addresses (u32) stand at `list`, which are neither known nor of one byte: u8 1, else 0, each at `out`. */
  unknownPages(list: number, n: number, out: number): void
  /**
   * Decides what each of n pages becomes, in order, and remembers them as they pass.
   * @param list u32 address of each page; any alignment
   * @param places u32 index into the place table of each page; NONE (or one beyond the table): no place.
   *   Written: the slot that the place had received before, NONE where there was none
   * @param kinds u8 KIND of each page (written; with MATCH.COLD read first)
   * @param slots u32 of each page (written): see KIND
   * @param tokens area for tokens, room for n * 4096 bytes with MATCH.LONG (written)
   * @param literals area for bytes of NEW and PATCH pages, room for n * 4096 bytes (written)
   * @param dense area for pages NEW_DENSE, room for n * 4096 bytes (written)
   * @param words area for pages WORDS, room for n * 4096 bytes with MATCH.WORDS (written)
   * @param options bits of MATCH. With LATER, `tokens` has for each page that is left, and behind the last page, how many slots
   *   the ring's cursor had passed before it (u32, modulo 2^32)
   */
  matchPages(
    list: number,
    places: number,
    n: number,
    kinds: number,
    slots: number,
    tokens: number,
    literals: number,
    dense: number,
    words: number,
    options: number,
  ): void
  /**
   * Looks for parts of pages that were left for later. Any number of threads may, each with an instance and a staging area of
   * its own.
   * @param parts for each of these pages: u32 address, slot that its place had before, slot that it took, and how far the cursor
   *   had come before it
   * @param staging of this thread. Written: what becomes of them
   * @param first of these pages, counted among those of the batch that were left; `n` of them
   * @param total how far the cursor came in the batch, and `cursor`, the ring slot that it is at
   */
  matchParts(
    parts: number,
    staging: number,
    first: number,
    n: number,
    total: number,
    cursor: number,
    options: number,
  ): void
  /**
   * Finishes a batch whose pages were left for later: writes what `matchPages` would have, of the pages that it left.
   * @param staging where the staging areas begin, one behind the other
   * @param owners u8 for each page that was left: which area says what became of it
   */
  settlePages(
    list: number,
    n: number,
    kinds: number,
    slots: number,
    tokens: number,
    literals: number,
    dense: number,
    words: number,
    staging: number,
    owners: number,
  ): void
  /** Hashes any bytes under the fixed key (HASH.md) and two seed words: u32 lo, u32 hi at `out`. */
  checksum(at: number, length: number, seedLo: number, seedHi: number, out: number): void

  /** n records of a zero page: be64(address | 0x22), 0x00. Returns the bytes written, as all expand functions. */
  expandZeros(out: number, addressHi: number, addressLo: number, n: number): number
  /** n records of pages filled with one byte. */
  expandFill(out: number, addressHi: number, addressLo: number, byte: number, n: number, flags: number): number
  /**
   * n records be64(address | 0x28) + page, from slots `slot`, `slot` + 1, and so on; their places receive them.
   * @param placeFirst place of the first page, the others follow it; NONE: no places
   * @param flags bits of EXPAND
   * @returns bytes written, or FAILED where a slot is outside the pool or a place has none
   */
  expandPages(
    out: number,
    addressHi: number,
    addressLo: number,
    slot: number,
    n: number,
    placeFirst: number,
    flags: number,
  ): number
  /**
   * `expandPages` of each run of a list, in its order: RUN.WORDS words each. What is fetched for several of them is waited
   * for once: of pages that no cache holds it gives half as many again.
   * @returns runs that were given: less than `n` where the next one is FAILED
   */
  expandRuns(list: number, n: number): number
  /** n records of pages that stand one after the other at `literals`; the ring and their places receive them. */
  expandNew(
    out: number,
    addressHi: number,
    addressLo: number,
    literals: number,
    n: number,
    placeFirst: number,
    flags: number,
  ): number
  /**
   * One record of a page out of `count` tokens; the ring and its place receive it. `out` grows by one record.
   * @returns literal bytes used, or FAILED where the tokens do not make exactly one page out of the pool
   */
  expandPatch(
    out: number,
    addressHi: number,
    addressLo: number,
    tokens: number,
    count: number,
    literals: number,
    place: number,
    flags: number,
  ): number
  /** Puts the page together that was sent as WORDS with this lag, 0 to 1023: 4096 bytes at `out`. */
  joinWords(from: number, lag: number, out: number): void
  /** The page at `at` passed at `place`: what expandNew does after it wrote. Returns its slot or NONE. */
  insertPage(at: number, place: number): number
  /** Copies a part of the pool and marks its slot as used. False where it is not inside the pool. */
  copyOut(out: number, poolOffset: number, length: number): boolean
}

/** Staging areas: bytes of a page to be looked at, where the owners stand, pages at most, bytes in all. */
export const STAGED = { PART: PART_BYTES, OWNERS: STAGED_OWNERS, PAGES: STAGED_PAGES, BYTES: STAGING_BYTES } as const
/** KIND of a page that `matchPages` has left for later. */
export const LATER = KIND_LATER
