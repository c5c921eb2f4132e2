/** Numbers of the template set file. Source: docs/template-format.md; nothing here may change within version 1. */

import { PAGE_SIZE } from '../bytes/page-size.ts'

export { PAGE_SIZE }
/** `\x89PFSET\r\n`: a 7-bit or text-mode copy breaks it visibly. */
export const MAGIC: readonly number[] = [0x89, 0x50, 0x46, 0x53, 0x45, 0x54, 0x0d, 0x0a]
/** `\x89PFENC\r\n`: the same of a set that is kept encrypted. */
export const SEALED_MAGIC: readonly number[] = [0x89, 0x50, 0x46, 0x45, 0x4e, 0x43, 0x0d, 0x0a]
export const VERSION = 1

/** Offsets in the header. */
export const HEADER = { VERSION: 8, PAGE_SIZE: 12, PAGE_COUNT: 16, METADATA_LENGTH: 24, RESERVED: 28 } as const
export const HEADER_LENGTH = 32

/** Most pages of one set: 64 GiB. Their table is 640 MiB, and every digest in it is hashed once at load. */
export const PAGES_MAX = 2 ** 24
/** `{}` is the shortest metadata. */
export const METADATA_LENGTH_MIN = 2
/** Version 1 writes some 50 bytes; the rest is room for keys that later versions add. */
export const METADATA_LENGTH_MAX = 65_536

/** Bytes of a SHA-256. */
export const DIGEST_LENGTH = 32
/** Offsets in a record of the table. */
export const RECORD = { DIGEST: 0, VMS: 32, OCCURRENCES: 36 } as const
export const RECORD_LENGTH = 40
/** Highest count in a record; of occurrences it stands for this many and more. */
export const COUNT_MAX = 0xffff_ffff

/** Pages begin at a multiple of this, so that a file can be mapped. */
export const DATA_ALIGNMENT = 4096

/** What a set's file name ends with. */
export const SET_SUFFIX = '.pfset'

/** Where the parts of a set with so many pages and bytes of metadata stand, all in bytes from its start. */
export interface SetLayout {
  readonly tableAt: number
  readonly sealAt: number
  /** Where the padding begins. */
  readonly paddingAt: number
  readonly dataAt: number
  /** Length of the whole file. */
  readonly lengthBytes: number
}

export function setLayout(pageCount: number, metadataLength: number): SetLayout {
  const tableAt = HEADER_LENGTH + metadataLength
  const sealAt = tableAt + RECORD_LENGTH * pageCount
  const paddingAt = sealAt + DIGEST_LENGTH
  const dataAt = Math.ceil(paddingAt / DATA_ALIGNMENT) * DATA_ALIGNMENT
  return { tableAt, sealAt, paddingAt, dataAt, lengthBytes: dataAt + PAGE_SIZE * pageCount }
}

/** Most pages of a set whose file stays within `maxBytes`; 0 where not even one fits. */
export function pagesWithin(maxBytes: number, metadataLength: number): number {
  let count = Math.floor(Math.max(0, maxBytes) / (PAGE_SIZE + RECORD_LENGTH))
  // The division ignores header, seal and padding: at most 3 pages' worth with the longest metadata allowed, plus 16.
  while (count > 0 && setLayout(count, metadataLength).lengthBytes > maxBytes) count--
  return Math.min(count, PAGES_MAX)
}

/** `<64 hexadecimal digits>.pfset`. */
export function setFileName(digest: string): string {
  return digest + SET_SUFFIX
}

/** Name of the file beside a set that says who signed it. */
export function signatureFileName(digest: string): string {
  return `${setFileName(digest)}.sig`
}

/** The digest that a file name promises, undefined where it is no name of a set. */
export function digestOfFileName(name: string): string | undefined {
  return name.length === 2 * DIGEST_LENGTH + SET_SUFFIX.length && /^[0-9a-f]{64}\.pfset$/.test(name)
    ? name.slice(0, 2 * DIGEST_LENGTH)
    : undefined
}
