/** Encoder and decoder of the template set file. Source: docs/template-format.md. Pages themselves pass outside of both. */
import { createHash, hash } from 'node:crypto'
import { readU32, readU64, writeU32, writeU64 } from '../bytes/big-endian.ts'
import { type ErrorCode, ProxyError } from '../errors.ts'
import {
  DIGEST_LENGTH,
  digestOfFileName,
  HEADER,
  HEADER_LENGTH,
  MAGIC,
  METADATA_LENGTH_MAX,
  METADATA_LENGTH_MIN,
  PAGE_SIZE,
  PAGES_MAX,
  RECORD,
  RECORD_LENGTH,
  type SetLayout,
  setLayout,
  VERSION,
} from './wire.ts'

/** What the metadata of version 1 tells. */
export interface SetMetadata {
  /** The set was learned by proxies, by this rule; absent where somebody built it. */
  readonly learned?: 'shared' | 'all' | undefined
  /** Size limit of the file that the choice obeyed, in bytes. */
  readonly maxBytes?: number | undefined
  /** A page had to be in at least so many VMs. */
  readonly minVms: number
  /** VMs that were counted. */
  readonly vms: number
}

/** The pages of a set to be, by place from 0. */
export interface SetRecords {
  readonly count: number
  /** VMs that had the page. */
  vms(place: number): number
  occurrences(place: number): number
  /** Copies the DIGEST_LENGTH bytes of the page's SHA-256 to `at`. */
  copyDigest(place: number, into: Uint8Array, at: number): void
}

/** Records of one piece of the table: 40 KiB. */
const RECORDS_PER_PIECE = 1024

/** The metadata in canonical form. */
export function encodeMetadata(metadata: SetMetadata): Uint8Array {
  // Keys in order; JSON.stringify leaves undefined ones out.
  const { learned, maxBytes, minVms, vms } = metadata
  return Buffer.from(JSON.stringify({ learned, maxBytes, minVms, vms }))
}

/**
 * Everything before the pages, in pieces: header, metadata, table, seal, padding. The pieces are the caller's. Returns
 * the digest of the set as 64 hexadecimal digits.
 */
export function* encodeHead(metadata: SetMetadata, records: SetRecords): Generator<Uint8Array, string> {
  const text = encodeMetadata(metadata)
  const layout = setLayout(records.count, text.length)
  const seal = createHash('sha256')

  const header = new Uint8Array(layout.tableAt)
  header.set(MAGIC)
  writeU32(header, HEADER.VERSION, VERSION)
  writeU32(header, HEADER.PAGE_SIZE, PAGE_SIZE)
  writeU64(header, HEADER.PAGE_COUNT, records.count)
  writeU32(header, HEADER.METADATA_LENGTH, text.length)
  header.set(text, HEADER_LENGTH)
  seal.update(header)
  yield header

  for (let from = 0; from < records.count; from += RECORDS_PER_PIECE) {
    const count = Math.min(RECORDS_PER_PIECE, records.count - from)
    const piece = new Uint8Array(count * RECORD_LENGTH)
    for (let i = 0; i < count; i++) {
      const at = i * RECORD_LENGTH
      records.copyDigest(from + i, piece, at + RECORD.DIGEST)
      writeU32(piece, at + RECORD.VMS, records.vms(from + i))
      writeU32(piece, at + RECORD.OCCURRENCES, records.occurrences(from + i))
    }
    seal.update(piece)
    yield piece
  }

  const end = new Uint8Array(layout.dataAt - layout.sealAt)
  const digest = seal.digest()
  end.set(digest)
  yield end
  return digest.toString('hex')
}

/** The digest of the set that {@link encodeHead} would write. */
export function digestOfSet(metadata: SetMetadata, records: SetRecords): string {
  const pieces = encodeHead(metadata, records)
  let step = pieces.next()
  while (!step.done) step = pieces.next()
  return step.value
}

/** What the verified head of a set says of it as a whole. */
export interface SetOutline {
  /** 64 hexadecimal digits. */
  readonly digest: string
  readonly metadata: SetMetadata
  readonly pageCount: number
  readonly layout: SetLayout
}

/** The verified head of a set: all but its pages. */
export interface SetHead extends SetOutline {
  /** RECORD_LENGTH bytes a page. */
  readonly table: Uint8Array
}

/** VMs that had page `index`. */
export function vmsOfPage(head: SetHead, index: number): number {
  return readU32(head.table, index * RECORD_LENGTH + RECORD.VMS)
}

/** How often page `index` was counted. */
export function occurrencesOfPage(head: SetHead, index: number): number {
  return readU32(head.table, index * RECORD_LENGTH + RECORD.OCCURRENCES)
}

/** True where the bytes are page `index`: where they have its SHA-256. */
export function isPage(head: SetHead, index: number, page: Uint8Array): boolean {
  const at = index * RECORD_LENGTH + RECORD.DIGEST
  const digest = hash('sha256', page, 'binary') // latin1: see digest.ts
  for (let i = 0; i < DIGEST_LENGTH; i++) if (head.table[at + i] !== digest.charCodeAt(i)) return false
  return true
}

/** How often a set's own table may make the search for twins look at another slot, for each page: see checkTable. */
const PROBES_PER_PAGE = 8
const PROBES_FREE = 1024

/** Takes a record of the table: RECORD_LENGTH bytes at `at`, valid until it returns. What it says is checked by the seal, later. */
export type RecordTaker = (bytes: Uint8Array, at: number, page: number, pageCount: number) => void

/**
 * Takes a file's bytes, cut anywhere, up to the first page, and checks all of them. It keeps copies only. Memory is
 * spent for the table as its bytes arrive, never on the word of the header alone, and a hole where the table should be
 * ends it at the hole's first record: what a sparse file claims is not paid for.
 */
export class HeadDecoder {
  /** Set once all of it is there and checked, unless the table was not to be kept. */
  head: SetHead | undefined
  /** Set once all of it is there and checked. */
  outline: SetOutline | undefined
  private readonly file: string
  private readonly fileLength: number | undefined
  private readonly keepTable: boolean
  private readonly onRecord: RecordTaker | undefined
  /** Header and metadata; with `keepTable` the table too, as far as it is there. */
  private bytes = new Uint8Array(4096)
  private readonly seal = Buffer.alloc(DIGEST_LENGTH)
  private readonly hash = createHash('sha256')
  /** The record of the table that a chunk did not hold whole. */
  private readonly record = new Uint8Array(RECORD_LENGTH)
  /** Bytes taken so far, padding included. */
  private length = 0
  private layout: SetLayout | undefined

  /**
   * @param file what errors call it; where it ends in a set's name, that name has to be right
   * @param fileLength its length in bytes, where it is known before the end
   * @param keepTable false: only the outline is wanted. The table is then hashed and dropped, in constant memory, and its
   * records are not looked for twins
   * @param onRecord is told each record in order, before anything is known to be sound
   */
  constructor(file: string, fileLength?: number, keepTable = true, onRecord?: RecordTaker) {
    this.file = file
    this.fileLength = fileLength
    this.keepTable = keepTable
    this.onRecord = onRecord
  }

  /**
   * Takes the next bytes.
   *
   * @returns how many of them belong to the head: all, or fewer once {@link outline} is set
   * @throws TEMPLATE_FORMAT, TEMPLATE_DAMAGED, TEMPLATE_TRUNCATED
   */
  push(chunk: Uint8Array): number {
    let at = 0
    if (this.layout === undefined) {
      at += this.take(chunk, at, HEADER_LENGTH)
      this.checkMagic()
      if (this.length < HEADER_LENGTH) return at
      this.layout = this.checkHeader()
    }
    const { layout } = this
    if (this.length < layout.tableAt) {
      at += this.take(chunk, at, layout.tableAt)
      if (this.length < layout.tableAt) return at
      this.hash.update(this.bytes.subarray(0, layout.tableAt))
    }
    if (this.length < layout.sealAt) at += this.takeTable(chunk, at, layout)
    if (this.length >= layout.sealAt && this.length < layout.paddingAt) {
      const count = Math.min(layout.paddingAt - this.length, chunk.length - at)
      this.seal.set(chunk.subarray(at, at + count), this.length - layout.sealAt)
      this.length += count
      at += count
    }
    if (this.length < layout.paddingAt) return at
    while (this.length < layout.dataAt && at < chunk.length) {
      if (chunk[at] !== 0) throw this.error('TEMPLATE_DAMAGED', 'padding that is not zero', this.length)
      this.length++
      at++
    }
    if (this.length === layout.dataAt && this.outline === undefined) this.checkHead(layout)
    return at
  }

  /** The input ended: no further bytes of it exist. @throws TEMPLATE_TRUNCATED, or TEMPLATE_FORMAT for an empty file */
  end(): void {
    if (this.length === 0) throw this.error('TEMPLATE_FORMAT', 'an empty file is no template set', 0)
    if (this.outline === undefined) throw this.error('TEMPLATE_TRUNCATED', 'the template set ends early', this.length)
  }

  private takeTable(chunk: Uint8Array, from: number, { tableAt, sealAt }: SetLayout): number {
    const count = Math.min(sealAt - this.length, chunk.length - from)
    const inTable = this.length - tableAt
    for (let at = from; at < from + count; ) {
      const within = (inTable + at - from) % RECORD_LENGTH
      const take = Math.min(RECORD_LENGTH - within, from + count - at)
      if (take === RECORD_LENGTH) this.takeRecord(chunk, at, inTable + at - from, tableAt, sealAt)
      else {
        this.record.set(chunk.subarray(at, at + take), within)
        if (within + take === RECORD_LENGTH)
          this.takeRecord(this.record, 0, inTable + at - from - within, tableAt, sealAt)
      }
      at += take
    }
    this.hash.update(chunk.subarray(from, from + count))
    if (this.keepTable) this.take(chunk, from, this.length + count)
    else this.length += count
    return count
  }

  /** @param inTable where the record stands, in bytes from the first */
  private takeRecord(bytes: Uint8Array, at: number, inTable: number, tableAt: number, sealAt: number): void {
    this.refuseHole(bytes, at, tableAt + inTable)
    this.onRecord?.(bytes, at, inTable / RECORD_LENGTH, (sealAt - tableAt) / RECORD_LENGTH)
  }

  /** @param offset of the record in the file */
  private refuseHole(bytes: Uint8Array, at: number, offset: number): void {
    // A page has at least one VM, so one field tells nearly all records from a hole.
    if (bytes[at + RECORD.VMS + 3] !== 0 || readU32(bytes, at + RECORD.VMS) !== 0) return
    for (let i = 0; i < RECORD_LENGTH; i++) if (bytes[at + i] !== 0) return
    throw this.error('TEMPLATE_DAMAGED', 'a hole in the table', offset)
  }

  private take(chunk: Uint8Array, at: number, until: number): number {
    const count = Math.min(until - this.length, chunk.length - at)
    const length = this.length + count
    if (length > this.bytes.length) {
      const most = this.layout?.sealAt ?? until
      const larger = new Uint8Array(Math.min(most, Math.max(length, this.bytes.length * 2)))
      larger.set(this.bytes.subarray(0, this.length))
      this.bytes = larger
    }
    this.bytes.set(chunk.subarray(at, at + count), this.length)
    this.length = length
    return count
  }

  private checkMagic(): void {
    for (let i = 0; i < Math.min(this.length, MAGIC.length); i++) {
      if (this.bytes[i] !== MAGIC[i]) throw this.error('TEMPLATE_FORMAT', 'not a template set', 0)
    }
  }

  private checkHeader(): SetLayout {
    const { bytes } = this
    const format = (what: string, at: number): ProxyError => this.error('TEMPLATE_FORMAT', what, at)
    const version = readU32(bytes, HEADER.VERSION)
    if (version !== VERSION) throw format(`template set of version ${version}`, HEADER.VERSION)
    const pageSize = readU32(bytes, HEADER.PAGE_SIZE)
    if (pageSize !== PAGE_SIZE) throw format(`pages of ${pageSize} bytes`, HEADER.PAGE_SIZE)
    const pageCount = readU64(bytes, HEADER.PAGE_COUNT)
    if (pageCount < 0 || pageCount > PAGES_MAX) throw format(`more than ${PAGES_MAX} pages`, HEADER.PAGE_COUNT)
    const metadataLength = readU32(bytes, HEADER.METADATA_LENGTH)
    if (metadataLength < METADATA_LENGTH_MIN || metadataLength > METADATA_LENGTH_MAX) {
      throw format(`${metadataLength} bytes of metadata`, HEADER.METADATA_LENGTH)
    }
    if (readU32(bytes, HEADER.RESERVED) !== 0) throw format('reserved field is not zero', HEADER.RESERVED)

    const layout = setLayout(pageCount, metadataLength)
    const { fileLength } = this
    if (fileLength !== undefined && fileLength < layout.lengthBytes) {
      const what = `the template set has ${fileLength} of its ${layout.lengthBytes} bytes`
      throw this.error('TEMPLATE_TRUNCATED', what, fileLength)
    }
    if (fileLength !== undefined && fileLength > layout.lengthBytes) {
      throw this.error('TEMPLATE_DAMAGED', 'bytes after the end of the template set', layout.lengthBytes)
    }
    return layout
  }

  private checkHead(layout: SetLayout): void {
    const { bytes } = this
    const digest = this.hash.digest('hex')
    if (this.seal.toString('hex') !== digest) {
      throw this.error('TEMPLATE_DAMAGED', 'header, metadata or table do not match the seal', layout.sealAt)
    }
    const promised = digestOfFileName(this.file.slice(this.file.lastIndexOf('/') + 1))
    if (promised !== undefined && promised !== digest) {
      throw this.error('TEMPLATE_DAMAGED', `this is set ${digest}, not what its name says`, layout.sealAt)
    }
    const metadata = this.checkMetadata(bytes.subarray(HEADER_LENGTH, layout.tableAt))
    const pageCount = (layout.sealAt - layout.tableAt) / RECORD_LENGTH
    if (this.keepTable) {
      const table = bytes.subarray(layout.tableAt, layout.sealAt)
      this.checkTable(table, pageCount, metadata.vms, layout.tableAt)
      this.head = { digest, metadata, pageCount, table, layout }
    }
    this.outline = { digest, metadata, pageCount, layout }
  }

  private checkMetadata(bytes: Uint8Array): SetMetadata {
    let value: unknown
    try {
      value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
    } catch (cause) {
      throw this.error('TEMPLATE_FORMAT', 'metadata that is not JSON', HEADER_LENGTH, { cause })
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw this.error('TEMPLATE_FORMAT', 'metadata that is not a JSON object', HEADER_LENGTH)
    }
    const { learned, maxBytes, minVms, vms } = value as Record<string, unknown>
    const integer = (key: string, number: unknown): number => {
      if (Number.isSafeInteger(number) && (number as number) >= 0) return number as number
      throw this.error('TEMPLATE_FORMAT', `metadata whose ${key} is not a count`, HEADER_LENGTH)
    }
    if (learned !== undefined && learned !== 'shared' && learned !== 'all')
      throw this.error('TEMPLATE_FORMAT', 'metadata whose learned is neither shared nor all', HEADER_LENGTH)
    const counts = { minVms: integer('minVms', minVms), vms: integer('vms', vms) }
    const known: SetMetadata = learned === undefined ? counts : { learned, ...counts }
    return maxBytes === undefined ? known : { maxBytes: integer('maxBytes', maxBytes), ...known }
  }

  private checkTable(table: Uint8Array, pageCount: number, vms: number, tableAt: number): void {
    // Open addressing by the digests' first words, which are as good as random where they are digests. Where they are
    // not, somebody wants the search to take long: honest tables need one probe a page, half full as the index is.
    let slots = 16
    while (slots < pageCount * 2) slots *= 2
    const index = new Uint32Array(slots)
    let probes = PROBES_FREE + PROBES_PER_PAGE * pageCount
    for (let page = 0; page < pageCount; page++) {
      const at = page * RECORD_LENGTH
      const pageVms = readU32(table, at + RECORD.VMS)
      if (pageVms < 1 || pageVms > vms || readU32(table, at + RECORD.OCCURRENCES) < pageVms) {
        throw this.error('TEMPLATE_FORMAT', `impossible counts of page ${page}`, tableAt + at)
      }
      let slot = readU32(table, at) & (slots - 1)
      for (; index[slot] !== 0; slot = (slot + 1) & (slots - 1)) {
        const other = (index[slot]! - 1) * RECORD_LENGTH
        let i = 0
        while (i < DIGEST_LENGTH && table[at + i] === table[other + i]) i++
        if (i === DIGEST_LENGTH) throw this.error('TEMPLATE_FORMAT', `page ${page} stands twice`, tableAt + at)
        if (--probes < 0) throw this.error('TEMPLATE_FORMAT', 'digests in the table that are no digests', tableAt + at)
      }
      index[slot] = page + 1
    }
  }

  private error(code: ErrorCode, what: string, offset: number, options?: ErrorOptions): ProxyError {
    return new ProxyError(code, what, { stream: this.file, offset }, ACTION[code] ?? 'this set is not used', options)
  }
}

const ACTION: Partial<Record<ErrorCode, string>> = {
  TEMPLATE_FORMAT: 'not used; give a file that `pageferry template build` of this version made',
  TEMPLATE_DAMAGED: 'not used; build it again, or copy it again from the other site',
  TEMPLATE_TRUNCATED: 'not used; copy it again, whole',
}
