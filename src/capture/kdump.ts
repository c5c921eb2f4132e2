/**
 * The memory in a kdump-compressed file (QEMU's `dump-guest-memory -z`, `virsh dump --memory-only --format kdump-zlib`,
 * makedumpfile): pages packed one by one, each behind a descriptor, in the order of their addresses. Both word lengths,
 * either byte order. Source: makedumpfile IMPLEMENTATION and diskdump_mod.h; QEMU include/sysemu/dump.h.
 */

import { type FileHandle, open } from 'node:fs/promises'
import { constants, inflateSync, zstdDecompressSync } from 'node:zlib'
import { PAGE_SIZE } from '../bytes/page-size.ts'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { FLATTENED_MAGIC, FlattenedFile } from './flattened.ts'
import type { Chunks } from './input-file.ts'
import { KDUMP_BLOCK_MAX, KDUMP_HEADERS_MAX, MAPPED_BITMAP_MAX, READ_LENGTH } from './limits.ts'
import { type PlacedBytes, PlacedFile, Window } from './placed-bytes.ts'

export const KDUMP_MAGIC = 'KDUMP   '
const VERSION_AT = 8
const VERSION_MAX = 6
/** Where the fields behind the names of the system begin, in files of 64 and of 32 bits; where `split` is in the next block. */
const LAYOUTS = [
  { fields: 424, split: 12 },
  { fields: 412, split: 8 },
] as const
/** u32 fields there. */
const FIELD = { STATUS: 0, BLOCK_SIZE: 4, SUB_HEADER: 8, BITMAPS: 12 } as const
const HEAD_LENGTH = 448
/** How pages are packed: flags of the whole file, and of each page. */
const PACKED = { ZLIB: 1, LZO: 2, SNAPPY: 4, ZSTD: 0x20 } as const
const PACKED_MASK = PACKED.ZLIB | PACKED.LZO | PACKED.SNAPPY | PACKED.ZSTD
/** The file's flag: its maker ran out of room. */
const INCOMPLETE = 8
/** u64 place, u32 length, u32 flags, u64 flags of the page. */
const DESCRIPTOR = { PLACE: 0, LENGTH: 8, FLAGS: 12, SIZE: 24 } as const
const DUMP_AGAIN = 'dump it again as kdump-zlib: (qemu) dump-guest-memory -z FILE, makedumpfile -c'

interface Dump {
  readonly little: boolean
  /** Bytes of a page. */
  readonly blockSize: number
  readonly descriptorsAt: number
  readonly pages: number
}

export class KdumpFile {
  /** Of the pages in it, unpacked. */
  readonly lengthBytes: number
  private readonly name: string
  private readonly file: FileHandle | undefined
  private readonly bytes: PlacedBytes
  private readonly dump: Dump

  private constructor(name: string, file: FileHandle | undefined, bytes: PlacedBytes, dump: Dump) {
    this.name = name
    this.file = file
    this.bytes = bytes
    this.dump = dump
    this.lengthBytes = dump.pages * dump.blockSize
  }

  /** @throws IO; CAPTURE_FORMAT for what is no such dump or packed in a way that is not read; QEMU_TRUNCATED */
  static async open(path: string): Promise<KdumpFile> {
    let file: FileHandle | undefined
    try {
      file = await open(path)
      return await KdumpFile.over(path, new PlacedFile(file), file)
    } catch (cause) {
      await file?.close()
      throw ioError(cause, 'cannot read', path)
    }
  }

  /**
   * The same of bytes that are there.
   *
   * @param file is closed with it
   */
  static async over(name: string, bytes: PlacedBytes, file?: FileHandle): Promise<KdumpFile> {
    const magic = Buffer.alloc(FLATTENED_MAGIC.length)
    await bytes.read(magic, 0)
    const flattened = magic.toString('latin1') === FLATTENED_MAGIC
    const whole = flattened ? await FlattenedFile.open(bytes, name) : bytes
    return new KdumpFile(name, file, whole, await readHeaders(name, whole))
  }

  /** All pages. @throws IO, CAPTURE_FORMAT, QEMU_TRUNCATED */
  async *chunks(readBytes: (count: number) => void): Chunks {
    const { blockSize, descriptorsAt, pages } = this.dump
    const descriptors = new Window(this.bytes)
    const packed = new Window(this.bytes)
    const dataAt = descriptorsAt + pages * DESCRIPTOR.SIZE
    const out = Buffer.allocUnsafeSlow(READ_LENGTH)
    /** The first of the data, which all pages of zeros share. */
    let shared: Buffer | undefined
    let filled = 0
    let fault: unknown
    for (let page = 0; page < pages && fault === undefined; page++) {
      try {
        const at = descriptorsAt + page * DESCRIPTOR.SIZE
        const index = await this.see(descriptors, at, DESCRIPTOR.SIZE)
        const { place, length, flags } = this.descriptor(descriptors.bytes, index, at)
        if (place === dataAt && shared !== undefined) shared.copy(out, filled)
        else {
          const from = await this.see(packed, place, length)
          this.unpack(packed.bytes.subarray(from, from + length), flags, at).copy(out, filled)
          if (place === dataAt) shared = Buffer.from(out.subarray(filled, filled + blockSize))
        }
        filled += blockSize
      } catch (error) {
        fault = error // the pages before it are good
      }
      if (filled < READ_LENGTH && page + 1 < pages && fault === undefined) continue
      readBytes(filled)
      yield out.subarray(0, filled)
      filled = 0
    }
    if (fault !== undefined) throw fault
  }

  close(): void {
    void this.file?.close().catch(() => {})
  }

  /** @returns the index in the window's bytes */
  private async see(window: Window, at: number, length: number): Promise<number> {
    const index = window.find(at, length)
    if (index >= 0) return index
    let moved: number
    try {
      moved = await window.move(at, length)
    } catch (cause) {
      throw ioError(cause, 'cannot read', this.name, at)
    }
    if (moved < 0) throw endsEarly(this.name, at)
    return moved
  }

  private descriptor(bytes: Buffer, index: number, at: number): { place: number; length: number; flags: number } {
    const { little, blockSize } = this.dump
    const place = Number(wordAt(bytes, index + DESCRIPTOR.PLACE, little))
    const length = u32At(bytes, index + DESCRIPTOR.LENGTH, little)
    const flags = u32At(bytes, index + DESCRIPTOR.FLAGS, little)
    if (!Number.isSafeInteger(place) || length === 0 || length > blockSize) {
      throw bad(this.name, 'the descriptor of a page that cannot be', at)
    }
    return { place, length, flags: flags & PACKED_MASK }
  }

  private unpack(packed: Buffer, flags: number, at: number): Buffer {
    const { blockSize } = this.dump
    let page: Buffer
    try {
      if (flags === PACKED.ZLIB) page = inflateSync(packed, { maxOutputLength: blockSize, chunkSize: blockSize })
      else if (flags === PACKED.ZSTD) {
        const params = { [constants.ZSTD_d_windowLogMax]: Math.log2(KDUMP_BLOCK_MAX) }
        page = zstdDecompressSync(packed, { maxOutputLength: blockSize, chunkSize: blockSize, params })
      } else if (flags === 0) page = packed
      else throw notRead(this.name, flags, at)
    } catch (cause) {
      if (cause instanceof ProxyError) throw cause
      throw bad(this.name, 'a page that does not unpack', at, cause)
    }
    if (page.length !== blockSize) throw bad(this.name, 'a page that is none unpacked', at)
    return page
  }
}

async function readHeaders(name: string, bytes: PlacedBytes): Promise<Dump> {
  const head = Buffer.alloc(HEAD_LENGTH)
  if ((await bytes.read(head, 0)) < HEAD_LENGTH) throw endsEarly(name, 0)
  if (head.toString('latin1', 0, KDUMP_MAGIC.length) !== KDUMP_MAGIC) throw bad(name, 'a flattened file of no kdump', 0)
  const little = head.readUInt32LE(VERSION_AT) <= VERSION_MAX
  if (!little && head.readUInt32BE(VERSION_AT) > VERSION_MAX) throw bad(name, 'kdump of an unknown version', VERSION_AT)
  const field = (layout: (typeof LAYOUTS)[number], at: number): number => u32At(head, layout.fields + at, little)
  const layout = LAYOUTS.find(layout => {
    const size = field(layout, FIELD.BLOCK_SIZE)
    const headers = field(layout, FIELD.SUB_HEADER)
    return size >= PAGE_SIZE && size <= KDUMP_BLOCK_MAX && (size & (size - 1)) === 0 && headers <= KDUMP_HEADERS_MAX
  })
  if (layout === undefined)
    throw bad(name, 'kdump with blocks of an unknown size', LAYOUTS[0].fields + FIELD.BLOCK_SIZE)
  const status = field(layout, FIELD.STATUS)
  if ((status & (PACKED.LZO | PACKED.SNAPPY)) !== 0) throw notRead(name, status, layout.fields)
  const blockSize = field(layout, FIELD.BLOCK_SIZE)
  const split = Buffer.alloc(4)
  await bytes.read(split, blockSize + layout.split)
  if (u32At(split, 0, little) !== 0) {
    const where = { stream: name, offset: blockSize + layout.split }
    throw new ProxyError('CAPTURE_FORMAT', 'a part of a split dump', where, 'join it: makedumpfile --reassemble')
  }
  if ((status & INCOMPLETE) !== 0) throw endsEarly(name, layout.fields)
  // Two bitmaps of the same length: pages that there are, and pages that are in the file.
  const bitmapsAt = (1 + field(layout, FIELD.SUB_HEADER)) * blockSize
  const bitmapsLength = field(layout, FIELD.BITMAPS) * blockSize
  if (bitmapsLength > 2 * MAPPED_BITMAP_MAX) throw bad(name, 'bitmaps that are too long', layout.fields + FIELD.BITMAPS)
  const pages = await countBits(name, bytes, bitmapsAt + bitmapsLength / 2, bitmapsAt + bitmapsLength)
  return { little, blockSize, descriptorsAt: bitmapsAt + bitmapsLength, pages }
}

async function countBits(name: string, bytes: PlacedBytes, from: number, to: number): Promise<number> {
  const buffer = Buffer.alloc(READ_LENGTH)
  let count = 0
  for (let at = from; at < to; ) {
    const take = Math.min(READ_LENGTH, to - at)
    if ((await bytes.read(buffer.subarray(0, take), at)) < take) throw endsEarly(name, at)
    for (let i = 0; i < take; i++) {
      for (let byte = buffer[i]!; byte !== 0; byte &= byte - 1) count++
    }
    at += take
  }
  return count
}

function u32At(bytes: Buffer, at: number, little: boolean): number {
  return little ? bytes.readUInt32LE(at) : bytes.readUInt32BE(at)
}

function wordAt(bytes: Buffer, at: number, little: boolean): bigint {
  return little ? bytes.readBigUInt64LE(at) : bytes.readBigUInt64BE(at)
}

function bad(name: string, what: string, offset: number, cause?: unknown): ProxyError {
  return new ProxyError('CAPTURE_FORMAT', what, { stream: name, offset }, DUMP_AGAIN, { cause })
}

function notRead(name: string, flags: number, offset: number): ProxyError {
  const packing = (flags & PACKED.LZO) !== 0 ? 'lzo' : (flags & PACKED.SNAPPY) !== 0 ? 'snappy' : 'an unknown method'
  return bad(name, `a kdump file packed with ${packing}`, offset)
}

function endsEarly(name: string, offset: number): ProxyError {
  return new ProxyError('QEMU_TRUNCATED', 'the dump ends early', { stream: name, offset }, 'give a whole one')
}
