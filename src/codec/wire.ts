/**
 * Numbers of a batch: docs/protocol.md §4 to §7, §9. They stand nowhere else; test/codec pins each by literal.
 */
import { PAGE_SIZE } from '../bytes/page-size.ts'
import {
  BATCH_OPERATIONS_FREE,
  BATCH_RAW_BYTES_MAX,
  COLUMN_BYTES_FREE,
  COLUMN_BYTES_PER_RAW_BYTE,
  FRESH_STREAMS_FREE,
  OTHERS_WINDOW_LOG_MAX,
  PACKED_BYTES_FREE,
  PACKED_BYTES_PER_EXTRA_BYTE,
  PAGES_WINDOW_LOG_MAX,
  RAW_BYTES_PER_FRESH_STREAM,
  RAW_BYTES_PER_OPERATION,
} from '../limits.ts'
import { MULTIFD } from '../qemu/wire.ts'

export { PAGE_SIZE }

/** First byte of every batch. */
export const BATCH_FORMAT = 1
/** Bytes that one batch may expand to. */
export const BATCH_RAW_MAX = BATCH_RAW_BYTES_MAX
/** Bytes in the header of one multifd packet, and pages that it may have. */
export const PACKET_HEADER_SIZE = MULTIFD.HEADER_LENGTH
export const PACKET_PAGES_MAX = MULTIFD.PAGES_MAX

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
  COLD: 10,
} as const
export const COLUMN_COUNT = 11
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
  'cold',
] as const

export const METHOD = { STORED: 0, LZ4: 1, ZSTD: 2, ZSTD_FRESH: 3 } as const
export type Method = (typeof METHOD)[keyof typeof METHOD]
/** Bits of a method byte above the method: the lane, of which there is only 0 yet. */
export const LANE_SHIFT = 4

/** High nibble of an operation byte. */
export const OP = {
  /** The byte behind it says which operation: EXTENDED. */
  EXTENDED: 0,
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

/** The byte behind an operation EXTENDED. */
export const EXTENDED = {
  COLD: 0,
  /** The page does not enter the ring. */
  COLD_ONCE: 1,
  /** Disks (protocol.md §9): what the messages of a connection are like, and whose blocks they bring. */
  EXPORT: 2,
  /** Heads of its messages. */
  MESSAGE: 3,
  /** New blocks of this batch are kept by both sides (protocol.md §5). */
  KEEP: 4,
} as const

/** What EXPORT says of messages: which of NBD's heads theirs is. A connection has one of these in each direction. */
export const FORM = {
  REQUEST: 1,
  EXTENDED_REQUEST: 2,
  /** Of replies those with data alone. */
  SIMPLE_REPLY: 3,
  DATA_CHUNK: 4,
  EXTENDED_DATA_CHUNK: 5,
} as const

/** Exports have numbers below this: as the places of their blocks name them. */
export const EXPORT_NUMBER_MAX = 2 ** 31

/** WORDS: how many words back differences reach, below this. */
export const LAG_MAX = PAGE_SIZE / 4

/** Page numbers (offset in the RAMBlock / 4096) stay below this. */
export const PAGE_NUMBER_MAX = 2 ** 40

/** Multipliers of the place table's index: protocol.md §5. */
export const PLACE_BLOCK_STEP = 0x9e3779b1
export const PLACE_MIGRATION_STEP = 0x85ebca6b

/** Most operations of a batch that expands to so many bytes: protocol.md §4. */
export function operationsMax(rawLength: number): number {
  return BATCH_OPERATIONS_FREE + Math.floor(rawLength / RAW_BYTES_PER_OPERATION)
}

/** Most raw bytes of each column of such a batch, whatever the column's own limit is. */
export function columnBytesMax(rawLength: number): number {
  return COLUMN_BYTES_FREE + COLUMN_BYTES_PER_RAW_BYTE * rawLength
}

/** Most packed bytes of a column of so many raw ones. */
export function packedBytesMax(columnBytes: number): number {
  return columnBytes + Math.floor(columnBytes / PACKED_BYTES_PER_EXTRA_BYTE) + PACKED_BYTES_FREE
}

/** zstd streams that may have begun in one direction once so many raw bytes have passed. */
export function freshStreamsMax(rawBytes: number): number {
  return FRESH_STREAMS_FREE + Math.floor(rawBytes / RAW_BYTES_PER_FRESH_STREAM)
}

/** Largest window of a column's zstd stream, log2 of bytes: bounds what a hostile peer's streams make us keep. */
export function windowLogMax(column: number): number {
  return column === COLUMN.PAGES || column === COLUMN.WORDS ? PAGES_WINDOW_LOG_MAX : OTHERS_WINDOW_LOG_MAX
}
