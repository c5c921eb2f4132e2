/**
 * Numbers of both kernels, the AssemblyScript of assembly/ and the TypeScript of twin/: written once, in the words that
 * the two languages share. What they are for stands where they are used.
 */
import { PAGE_SIZE } from '../bytes/page-size.ts'

/** Bytes in one page of the pool, and how many bits of a byte's place in the pool say where in its page it is. */
export const PAGE_BYTES: u32 = PAGE_SIZE
export const PAGE_BITS: u32 = 12
/** No slot, no place. */
export const NONE: u32 = 0xffffffff

/** Bytes of an entry of an exact table: u64 hash, u32 slot, u32 address (templates). */
export const ENTRY_BYTES: u32 = 16

// words of a session's state block (u32 each) ----------------------------------------------------------------------------

/** Where everything is: written once, read when an instance is made. */
export const CONFIG_TEMPLATE_TABLE: u32 = 0
export const CONFIG_TEMPLATE_MASK: u32 = 1
export const CONFIG_TEMPLATE_MAP: u32 = 2
export const CONFIG_TEMPLATES_AT: u32 = 3
export const CONFIG_TEMPLATE_PAGES: u32 = 4
export const CONFIG_RING: u32 = 5
export const CONFIG_RING_PAGES: u32 = 6
export const CONFIG_RING_HASH: u32 = 7
export const CONFIG_RING_MARK: u32 = 8
export const CONFIG_RING_TABLE: u32 = 9
export const CONFIG_RING_TABLE_MASK: u32 = 10
export const CONFIG_PLACE_TABLE: u32 = 11
export const CONFIG_PLACES: u32 = 12
export const CONFIG_LONG_TABLE: u32 = 13
export const CONFIG_LONG_SHIFT: u32 = 14
export const CONFIG_PAGE_KEY: u32 = 15
export const CONFIG_CHECKSUM_KEY: u32 = 16
/** What outlives a call: the ring slot that is next, and the ring slots ever written. */
export const STATE_CURSOR: u32 = 32
export const STATE_USED: u32 = 33
/** First of 16 words about the last `matchPages`: RESULT in functions.ts. */
export const RESULT_WORD: u32 = 48
export const RESULT_LITERAL_BYTES: u32 = 0
export const RESULT_DENSE_BYTES: u32 = 1
export const RESULT_TOKEN_BYTES: u32 = 2
export const RESULT_COPIES: u32 = 3
export const RESULT_KIND_COUNT: u32 = 4

// what a page becomes, and options: KIND, MATCH and EXPAND in functions.ts -----------------------------------------------

export const KIND_FILL: u8 = 0
export const KIND_SAME: u8 = 1
export const KIND_REF: u8 = 2
export const KIND_NEW: u8 = 3
export const KIND_NEW_DENSE: u8 = 4
export const KIND_PATCH: u8 = 5
export const KIND_WORDS: u8 = 6
export const KIND_COLD: u8 = 7
/** Between matchPages with MATCH_LATER and settlePages alone. */
export const KIND_LATER: u8 = 8

export const MATCH_LONG: u32 = 1
export const MATCH_WORDS: u32 = 2
export const MATCH_COLD: u32 = 4
export const MATCH_COLD_ONCE: u32 = 8
export const MATCH_LATER: u32 = 16
export const MATCH_SPARSE: u32 = 32

export const EXPAND_BARE: u32 = 1
export const EXPAND_FROM_PLACE: u32 = 2
export const EXPAND_ONCE: u32 = 4

/** Words of a run that `expandRuns` is given: where it goes, head of its first page (two), slot, pages, place, flags, and none. */
export const RUN_OUT: u32 = 0
export const RUN_HEAD_HI: u32 = 1
export const RUN_HEAD_LO: u32 = 2
export const RUN_SLOT: u32 = 3
export const RUN_PAGES: u32 = 4
export const RUN_PLACE: u32 = 5
export const RUN_FLAGS: u32 = 6
export const RUN_WORDS: u32 = 8

/** Flags in the low bits of a record's head: CONTINUE | PAGE and CONTINUE | ZERO. Source: QEMU migration/ram.c. */
export const HEAD_PAGE: u32 = 0x28
export const HEAD_ZERO: u32 = 0x22

// pages whose parts are looked for by several threads ---------------------------------------------------------------------

/** Bytes of a page that is to be looked at: u32 address, slot its place had before, its own slot, how far the ring was before it. */
export const PART_BYTES: u32 = 16
/** Pages that lie in a thread's staging area at most: those of a batch. */
export const STAGED_PAGES: u32 = 256
/** Of a staging area: pages to look at; for each page of the batch what it became (u32 kind, slot, own bytes, copies) ... */
export const STAGED_FOUND: u32 = 4096
/** ... u8 in which thread's area it stands (of the first area) ... */
export const STAGED_OWNERS: u32 = 8192
/** ... its tokens, 4096 bytes a page; and its own bytes, likewise. */
export const STAGED_TOKENS: u32 = 12288
export const STAGED_LITERALS: u32 = STAGED_TOKENS + STAGED_PAGES * PAGE_BYTES
export const STAGING_BYTES: u32 = STAGED_LITERALS + STAGED_PAGES * PAGE_BYTES

// hash: HASH.md ----------------------------------------------------------------------------------------------------------

export const P1: i32 = 0x9e3779b1 as i32
export const P2: i32 = 0x85ebca77 as i32
export const P3: i32 = 0xc2b2ae3d as i32
export const P4: i32 = 0x27d4eb2f

// page -------------------------------------------------------------------------------------------------------------------

/** Of 128 sampled bytes, 101 +- 4 differ where all values are equally likely; machine code has about 65, text 45. */
export const DENSE_DISTINCT: u32 = 88
/** Which: DENSE_BYTES of each DENSE_STEP, from DENSE_FIRST on. */
export const DENSE_FIRST: u32 = 120
export const DENSE_STEP: u32 = 256
export const DENSE_BYTES: u32 = 8

// long matches: LONG-MATCH.md --------------------------------------------------------------------------------------------

/** A position is sampled where a sum of products of its 8 bytes and SAMPLE_ADD is below this: 1 in 32 of random ones. Zeros never are. */
export const SAMPLE_BELOW: u32 = 1 << 27
/** Of MATCH_SPARSE: 1 in 128. What is sampled so is sampled by the other bound, too. */
export const SAMPLE_BELOW_SPARSE: u32 = 1 << 25
export const SAMPLE_ADD: u32 = 0x5bd1e995
/** At most one in so many bytes is sampled. */
export const SAMPLE_GAP: u32 = 16
/** Where a page's samples are taken, at most all of them: in 64 bytes of so many ... */
export const SAMPLE_STEP: u32 = 64
/** ... and of a page of a cold set, of which few parts are wanted and which is found whole in its set again. */
export const SAMPLE_STEP_COLD: u32 = 256
/** Bytes of a sampled window: what is hashed, and what must be equal. */
export const WINDOW: u32 = 16
/** What the hash of a window's four words, each times P1 to P4, multiplies these with. */
export const WINDOW_FACTOR_1: i32 = 0x165667b1
export const WINDOW_FACTOR_2: i32 = 0x5bd1e995
export const WINDOW_FACTOR_3: i32 = 0x1b873593
export const WINDOW_FACTOR_4: i32 = 0xcc9e2d51 as i32
/** Entries of a bucket: the last four windows with nearly one hash, the newest first. u32 hash, u32 byte in the pool + 1. */
export const WAYS: u32 = 4
/** Bytes after a window by which candidates are compared. */
export const SCORE_BYTES: u32 = 256
/** Shortest copy: next to the one before, where its source goes without saying; and after more bytes of the page's own. */
export const RUN_NEAR: u32 = 8
export const RUN_FAR: u32 = 16
/** What copies must save of a page, where a token counts 4 bytes: about what it costs compressed, and some. */
export const SAVED_MIN: u32 = 256
export const TOKEN_COST: u32 = 4

// pages of numbers: WORDS.md ---------------------------------------------------------------------------------------------

/** Sampled: NUMBERS_BYTES of each NUMBERS_STEP, from NUMBERS_FIRST on. What lies before it is compared with, too. */
export const NUMBERS_FIRST: u32 = 192
export const NUMBERS_STEP: u32 = 256
export const NUMBERS_BYTES: u32 = 64
/** Words back that a page may be sent with the differences of; a page that repeats itself as it is has the lag 0. */
export const LAG_1: u32 = 2
export const LAG_2: u32 = 4
export const LAG_3: u32 = 6
export const LAG_4: u32 = 16
/** Words back where zstd finds an equal word by itself. */
export const NEAR_1: u32 = 1
export const NEAR_2: u32 = 2
export const NEAR_3: u32 = 4
/** Sampled bytes (of 1024) that must repeat for a page to be taken without a look for long matches. */
export const SURE: u32 = 980
/** Sampled bytes by which another page must gain. */
export const GAIN_MIN: u32 = 160
