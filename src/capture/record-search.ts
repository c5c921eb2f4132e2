/**
 * Finds where reading can go on behind bytes that a capture lacks: a RAM record that is followed by further ones, or the
 * header of a multifd packet. Guest memory may hold bytes that look like one record, so a chain has to confirm it.
 */
import { HIGH_HALF_END, readU16, readU32, readU64, TWO_32, writeU32 } from '../bytes/big-endian.ts'
import {
  COMPRESS_LENGTH_MAX,
  ELEMENT,
  MULTIFD,
  MULTIFD_FLAG,
  PAGE_SIZE,
  RAM_FLAG,
  RAM_FLAG_MASK,
  XBZRLE_ENCODING,
  XBZRLE_LENGTH_MAX,
} from '../qemu/wire.ts'

/** Records that confirm each other. Six pages are 25 kB: nobody's memory holds them by chance. */
const CHAIN_RECORDS = 6
/** Where the bytes end before that, so many whole records do. */
const CHAIN_RECORDS_AT_END = 2

/** What is known of the migration before the gap. */
export interface KnownRam {
  readonly sectionId: number
  /** RAMBlocks by idstr, with their length in bytes. */
  readonly blocks: ReadonlyMap<string, number>
  /** The longest, and its length. */
  readonly longest: string
  readonly offsetEnd: number
}

/**
 * What has to stand before the record at `at` where the RAMBlock that it continues was named in the gap: a record of ours,
 * a zero page of the longest RAMBlock. Nothing where the record has a name, or is within the RAMBlock that was named last.
 *
 * @param continuedEnd where that one ends
 */
export function nameBefore(bytes: Uint8Array, at: number, continuedEnd: number, ram: KnownRam): Uint8Array {
  const low = readU32(bytes, at + 4)
  const offset = readU32(bytes, at) * TWO_32 + (low - (low & RAM_FLAG_MASK))
  if ((low & RAM_FLAG.CONTINUE) === 0 || offset < continuedEnd) return new Uint8Array(0)
  const record = new Uint8Array(8 + 1 + ram.longest.length + 1)
  writeU32(record, 4, RAM_FLAG.ZERO)
  record[8] = ram.longest.length
  record.set(Buffer.from(ram.longest, 'latin1'), 9)
  return record
}

/**
 * The first index from `at` on where RAM records begin; -1 where there is none.
 *
 * @param last the index up to which a record may begin; the bytes behind it only confirm
 */
export function findRecord(bytes: Uint8Array, at: number, last: number, end: number, ram: KnownRam): number {
  for (let from = at; from <= last; from++) {
    // Most offsets end here: addresses have zeros on top.
    if (bytes[from] !== 0) continue
    if (isChain(bytes, from, end, ram)) return from
  }
  return -1
}

function isChain(bytes: Uint8Array, from: number, end: number, ram: KnownRam): boolean {
  let at = from
  let before = -1
  for (let records = 0; records < CHAIN_RECORDS; records++) {
    if (at + 8 > end) return records >= CHAIN_RECORDS_AT_END
    const high = readU32(bytes, at)
    const low = readU32(bytes, at + 4)
    const flags = low & RAM_FLAG_MASK
    const offset = high * TWO_32 + (low - flags)
    if (high >= HIGH_HALF_END) return false
    if (flags === RAM_FLAG.EOS) return records > 0 && offset === 0 && isSectionEnd(bytes, at + 8, end, ram)
    if (flags === RAM_FLAG.MULTIFD_FLUSH && offset === 0 && records > 0) {
      at += 8
      continue
    }
    const length = recordLength(bytes, at, end, flags, offset, ram)
    if (length < 0) return false
    if (length === 0) return records >= CHAIN_RECORDS_AT_END
    const named = (flags & RAM_FLAG.CONTINUE) === 0
    // One pass over the dirty pages goes upwards within a RAMBlock.
    if (!named && offset <= before) return false
    before = offset
    at += length
  }
  return true
}

/** Bytes of the record at `at`; -1: it is none; 0: not enough bytes to tell. */
function recordLength(
  bytes: Uint8Array,
  at: number,
  end: number,
  flags: number,
  offset: number,
  ram: KnownRam,
): number {
  let tail = at + 8
  let offsetEnd = ram.offsetEnd
  if ((flags & RAM_FLAG.CONTINUE) === 0) {
    if (tail >= end) return 0
    const length = bytes[tail]!
    tail += 1 + length
    if (tail > end) return 0
    offsetEnd = ram.blocks.get(Buffer.from(bytes.subarray(tail - length, tail)).toString('latin1')) ?? -1
  }
  if (offset >= offsetEnd) return -1
  switch (flags & ~RAM_FLAG.CONTINUE) {
    case RAM_FLAG.PAGE:
      return tail - at + PAGE_SIZE
    case RAM_FLAG.ZERO:
      return tail - at + 1
    case RAM_FLAG.XBZRLE: {
      if (tail + 3 > end) return 0
      const length = readU16(bytes, tail + 1)
      return bytes[tail] === XBZRLE_ENCODING && length <= XBZRLE_LENGTH_MAX ? tail - at + 3 + length : -1
    }
    case RAM_FLAG.COMPRESS_PAGE: {
      if (tail + 4 > end) return 0
      const length = readU32(bytes, tail)
      return length > 0 && length <= COMPRESS_LENGTH_MAX ? tail - at + 4 + length : -1
    }
    default:
      return -1
  }
}

/** A section of RAM ends in a footer, except that of the oldest machine types. */
function isSectionEnd(bytes: Uint8Array, at: number, end: number, ram: KnownRam): boolean {
  return at + 5 <= end && bytes[at] === ELEMENT.SECTION_FOOTER && readU32(bytes, at + 1) === ram.sectionId
}

/** The first index from `at` up to `last` where a multifd packet begins; -1 where there is none. */
export function findPacket(bytes: Uint8Array, at: number, last: number, end: number): number {
  for (let from = at; from <= last; from++) {
    if (bytes[from] === MULTIFD.MAGIC >>> 24 && isPacket(bytes, from, end)) return from
  }
  return -1
}

function isPacket(bytes: Uint8Array, at: number, end: number): boolean {
  if (at + MULTIFD.HEADER_LENGTH > end) return false
  if (readU32(bytes, at) !== MULTIFD.MAGIC || readU32(bytes, at + 4) !== MULTIFD.VERSION) return false
  const flags = readU32(bytes, at + MULTIFD.FLAGS_AT)
  const normal = readU32(bytes, at + MULTIFD.NORMAL_PAGES_AT)
  const zero = readU32(bytes, at + MULTIFD.ZERO_PAGES_AT)
  if ((flags & ~(MULTIFD_FLAG.SYNC | MULTIFD_FLAG.METHOD_MASK)) !== 0 || normal + zero > MULTIFD.PAGES_MAX) return false
  const plain = (flags & MULTIFD_FLAG.METHOD_MASK) === 0
  if (plain && normal > 0 && readU32(bytes, at + MULTIFD.NEXT_PACKET_SIZE_AT) !== normal * PAGE_SIZE) return false
  for (let i = 0; i < normal + zero; i++) {
    const offset = readU64(bytes, at + MULTIFD.OFFSETS_AT + 8 * i)
    if (offset < 0 || offset % PAGE_SIZE !== 0) return false
  }
  return true
}

/** Bytes behind a candidate that are enough to judge it. */
export const RECORD_PROOF_LENGTH = CHAIN_RECORDS * (8 + 1 + 255 + PAGE_SIZE) + 8 + 5
export const PACKET_PROOF_LENGTH: number = MULTIFD.HEADER_LENGTH
