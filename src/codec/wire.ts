/**
 * Numbers of a batch: docs/protocol.md §4 to §7. They stand nowhere else; test/codec pins each by literal.
 */

/** First byte of every batch. */
export const BATCH_FORMAT = 1
/** Bytes that one batch may expand to. */
export const BATCH_RAW_MAX = 1 << 20
/** Bytes in one page of the pool. Source: QEMU TARGET_PAGE_SIZE on x86-64, aarch64 virt, s390x, ppc64, riscv. */
export const PAGE_SIZE = 4096
/** Bytes in the header of one multifd packet with 4 KiB pages. Source: QEMU migration/multifd.h, MultiFDPacket_t. */
export const PACKET_HEADER_SIZE = 1344

export const COLUMN = {
  OPS: 0,
  NUMBERS: 1,
  OTHER: 2,
  PAGES: 3,
  DENSE: 4,
  LENGTHS: 5,
  SOURCES: 6,
  SHIFTS: 7,
  HEADERS: 8,
  WORDS: 9,
} as const
export const COLUMN_COUNT = 10
export const COLUMN_NAMES = [
  'ops',
  'numbers',
  'other',
  'pages',
  'dense',
  'lengths',
  'sources',
  'shifts',
  'headers',
  'words',
] as const

export const METHOD = { STORED: 0, LZ4: 1, ZSTD: 2, ZSTD_FRESH: 3 } as const
export type Method = (typeof METHOD)[keyof typeof METHOD]

/** High nibble of an operation byte. */
export const OP = {
  ZERO: 1,
  REF: 2,
  SAME: 3,
  NEW: 4,
  DENSE: 5,
  PATCH: 6,
  FILL: 7,
  OTHER: 8,
  SKIP: 9,
  SEEK: 10,
  BLOCK: 11,
  DEFINE: 12,
  PACKET: 13,
  PASS: 14,
  WORDS: 15,
} as const

/** WORDS: how many words back differences reach, below this. */
export const LAG_MAX = PAGE_SIZE / 4

/** Page numbers (offset in the RAMBlock / 4096) stay below this. */
export const PAGE_NUMBER_MAX = 2 ** 40
/** RAMBlocks that one flow may name. */
export const BLOCKS_MAX = 4096

/** Multipliers of the place table's index: protocol.md §5. */
export const PLACE_BLOCK_STEP = 0x9e3779b1
export const PLACE_MIGRATION_STEP = 0x85ebca6b

/** Slot of a place at which nothing is known. */
export const NO_SLOT = 0xffffffff
/** Window of the zstd streams, log2 of bytes: bounds what a hostile peer's stream makes us keep. */
export const ZSTD_WINDOW_LOG_MAX = 23
