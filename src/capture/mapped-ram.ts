/**
 * The memory of a file that QEMU wrote with the capability mapped-ram (`migrate file:`): each RAMBlock has its pages at a
 * place of their own, behind a bitmap that says which of them are there. The blocks follow each other, so one reading from
 * the start to the end finds them all. Source: QEMU docs/devel/migration/mapped-ram.rst, migration/ram.c.
 */
import { readU32, readU64 } from '../bytes/big-endian.ts'
import { ProxyError } from '../errors.ts'
import { ELEMENT, FILE_MAGIC, PAGE_SIZE, RAM_FLAG, RAM_FLAG_MASK, RAM_SECTION } from '../qemu/wire.ts'
import type { MemorySink } from './elf-core.ts'
import { MAPPED_BITMAP_MAX, MAPPED_START_MAX } from './limits.ts'

/** The capability's name with its length, as the stream's configuration has it. */
const CAPABILITY = Buffer.from('\x0amapped-ram', 'latin1')
/** Behind a block's entry: u32 version, u64 page size, u64 offset of the bitmap, u64 offset of the pages. */
const HEADER = { PAGE_SIZE: 4, BITMAP: 12, PAGES: 20, LENGTH: 28 } as const
const HEADER_VERSION = 1

/** True where a stream that begins so has its pages in the file. */
export function isMappedRam(head: Buffer): boolean {
  return head.length > 8 && readU32(head, 0) === FILE_MAGIC && head.includes(CAPABILITY)
}

/** SECTION_START of ram, without its id: idstr, instance, version. */
const RAM_START = Buffer.alloc(1 + 3 + 8)
RAM_START[0] = RAM_SECTION.IDSTR.length
RAM_START.write(RAM_SECTION.IDSTR, 1, 'latin1')
RAM_START.writeUInt32BE(RAM_SECTION.INSTANCE, 4)
RAM_START.writeUInt32BE(RAM_SECTION.VERSION, 8)

type State = 'start' | 'entry' | 'bitmap' | 'pages' | 'done'

/** Takes such a file's bytes, cut anywhere. */
export class MappedRamReader {
  private readonly name: string
  private readonly sink: MemorySink
  private state: State = 'start'
  /** Bytes of the field under way, which begins at `position` less their count. */
  private field: Buffer = Buffer.alloc(0)
  private position = 0
  /** Bytes to pass before the next field. */
  private skip = 0
  /** Bytes of RAMBlocks that are still to come. */
  private left = 0
  private blockLength = 0
  private pagesAt = 0
  private bitmapLength = 0
  private bitmap: Buffer = Buffer.alloc(0)
  /** Bytes of the block's pages taken so far. */
  private taken = 0

  /** @param startsAt where in the file its stream begins: the places in it are the file's */
  constructor(name: string, sink: MemorySink, startsAt = 0) {
    this.name = name
    this.sink = sink
    this.position = startsAt
  }

  /** @throws CAPTURE_FORMAT */
  push(chunk: Buffer): void {
    for (let at = 0; at < chunk.length && this.state !== 'done'; ) {
      if (this.skip > 0) {
        const take = Math.min(this.skip, chunk.length - at)
        this.skip -= take
        this.position += take
        at += take
      } else if (this.state === 'pages') at = this.takePages(chunk, at)
      else {
        // Fields are short beside a chunk, and cut once at most; what is left of them goes round again.
        const bytes = Buffer.concat([this.field, chunk.subarray(at)])
        const used = this.step(bytes)
        if (used === 0) {
          this.position += chunk.length - at
          this.field = bytes
          return
        }
        const before = this.field.length
        this.field = Buffer.alloc(0)
        this.position += used - before
        at += used - before
      }
    }
  }

  /** @throws QEMU_TRUNCATED */
  end(): void {
    if (this.state === 'done') return
    const where = { stream: this.name, offset: this.position }
    throw new ProxyError('QEMU_TRUNCATED', 'the migration ends early', where, 'give a whole one')
  }

  /** @returns bytes of the field; 0 where not all of it is there. At least as many as `field` had. */
  private step(bytes: Buffer): number {
    if (this.state === 'start') return this.takeStart(bytes)
    return this.state === 'entry' ? this.takeEntry(bytes) : this.takeBitmap(bytes)
  }

  /** Whatever stands before the list of RAMBlocks. */
  private takeStart(bytes: Buffer): number {
    const at = bytes.indexOf(RAM_START)
    const end = at + RAM_START.length + 8
    if (at < 0 || end > bytes.length) {
      if (bytes.length > MAPPED_START_MAX) throw this.bad('no list of RAMBlocks')
      return 0
    }
    const word = readU64(bytes, end - 8)
    if (at < 5 || bytes[at - 5] !== ELEMENT.SECTION_START || (word & RAM_FLAG_MASK) !== RAM_FLAG.MEM_SIZE) {
      throw this.bad('no list of RAMBlocks')
    }
    this.left = word - RAM_FLAG.MEM_SIZE
    this.nextBlock()
    return end
  }

  private nextBlock(): void {
    this.state = this.left > 0 ? 'entry' : 'done'
  }

  /** cstr idstr, u64 length, header. */
  private takeEntry(bytes: Buffer): number {
    const headerAt = 1 + bytes[0]! + 8
    const end = headerAt + HEADER.LENGTH
    if (bytes.length < end) return 0
    const begin = this.position - this.field.length
    this.blockLength = readU64(bytes, headerAt - 8)
    const bitmapAt = readU64(bytes, headerAt + HEADER.BITMAP)
    this.pagesAt = readU64(bytes, headerAt + HEADER.PAGES)
    const pages = this.blockLength / PAGE_SIZE
    this.bitmapLength = Math.ceil(pages / 64) * 8
    if (readU32(bytes, headerAt) !== HEADER_VERSION || readU64(bytes, headerAt + HEADER.PAGE_SIZE) !== PAGE_SIZE) {
      throw this.bad('mapped-ram of another version or page size')
    }
    const sound = this.blockLength > 0 && Number.isInteger(pages) && this.blockLength <= this.left
    const ordered = bitmapAt >= begin + end && this.pagesAt >= bitmapAt + this.bitmapLength
    if (!sound || !ordered || this.bitmapLength > MAPPED_BITMAP_MAX) throw this.bad('a RAMBlock of impossible places')
    this.left -= this.blockLength
    this.skip = bitmapAt - (begin + end)
    this.state = 'bitmap'
    return end
  }

  private takeBitmap(bytes: Buffer): number {
    if (bytes.length < this.bitmapLength) return 0
    const begin = this.position - this.field.length
    this.bitmap = Buffer.from(bytes.subarray(0, this.bitmapLength))
    this.skip = this.pagesAt - (begin + this.bitmapLength)
    this.taken = 0
    this.state = 'pages'
    return this.bitmapLength
  }

  /** @returns the index behind what was taken: up to the end of a page, of the block or of the chunk */
  private takePages(chunk: Buffer, at: number): number {
    const index = Math.floor(this.taken / PAGE_SIZE)
    const within = this.taken % PAGE_SIZE
    const take = Math.min(PAGE_SIZE - within, chunk.length - at)
    if ((this.bitmap[index >> 3]! & (1 << (index & 7))) !== 0) {
      if (within === 0) this.sink.beginRun()
      this.sink.memory(chunk, at, take)
    }
    this.taken += take
    this.position += take
    if (this.taken === this.blockLength) this.nextBlock()
    return at + take
  }

  private bad(what: string): ProxyError {
    const where = { stream: this.name, offset: this.position - this.field.length }
    return new ProxyError('CAPTURE_FORMAT', what, where, 'give a file that QEMU wrote with mapped-ram on')
  }
}
