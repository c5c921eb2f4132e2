import { HIGH_HALF_END, readU16, readU32, TWO_32 } from '../bytes/big-endian.ts'
import { latin1 } from '../bytes/copy.ts'
import type { BlockTable } from './block-table.ts'
import type { RamSink } from './stream-sink.ts'
import { COMPRESS_LENGTH_MAX, PAGE_SIZE, RAM_FLAG, RAM_FLAG_MASK, XBZRLE_ENCODING, XBZRLE_LENGTH_MAX } from './wire.ts'

/** Plain counts of the records of one channel. */
export interface RamCounts {
  page: number
  zero: number
  /** ZERO records whose fill is not 0: raw. */
  zeroFilled: number
  xbzrle: number
  compress: number
  /** Page records of any kind that bring their idstr. */
  named: number
  eos: number
  flush: number
  /** Page records of any kind, by block index. */
  pagesByBlock: number[]
}

/** Why {@link RamRecordReader.read} came back. */
export const READ = {
  MORE: 0, // all bytes taken
  EOS: 1, // an EOS record was taken
  MEM_SIZE: 2, // a MEM_SIZE word was taken, the block list follows; see `total`
  BAD: 3, // see `badPosition` and `badReason`
} as const

const NO_BYTES = new Uint8Array(0)
const HEAD_LENGTH = 8 + 1 + 255 + 4 // word, cstr, the longest fixed field (COMPRESS_PAGE's length)
const ZERO_CONTINUE = RAM_FLAG.ZERO | RAM_FLAG.CONTINUE
const PAGE_CONTINUE = RAM_FLAG.PAGE | RAM_FLAG.CONTINUE
const ZERO_CONTINUE_LENGTH = 8 + 1
const PAGE_CONTINUE_LENGTH = 8 + PAGE_SIZE

/**
 * Reads RAM records, version 4, cut anywhere. The main stream and the preempt channel both consist of these; each has
 * its own CONTINUE state, which outlives sections. Source: qemu-wire-format 3.1, QEMU migration/ram.c.
 */
export class RamRecordReader {
  readonly counts: RamCounts = {
    page: 0,
    zero: 0,
    zeroFilled: 0,
    xbzrle: 0,
    compress: 0,
    named: 0,
    eos: 0,
    flush: 0,
    pagesByBlock: [],
  }
  /** Bytes that the block list must sum up to, after READ.MEM_SIZE. */
  total = 0
  /** Where the record starts that was not understood, after READ.BAD. */
  badPosition = 0
  badReason = ''
  /** The bytes of it that were taken, valid until the next {@link read}. */
  badBytes: Uint8Array = NO_BYTES

  private readonly sink: RamSink
  private readonly blocks: BlockTable
  private readonly told: boolean[] = []
  /** The RAMBlock that CONTINUE means, -1 before the first. */
  private block = -1
  /** Offsets of the current RAMBlock lie below this; 0 makes every CONTINUE fail while there is none. */
  private offsetEnd = 0

  // The record under way, where a chunk did not hold all of it.
  private readonly head = new Uint8Array(HEAD_LENGTH)
  private have = 0
  private need = 8
  private start = 0
  private offset = 0
  private kind = 0
  private named = false
  /** Bytes of the body still to come once the head is complete. */
  private bodyLeft = 0

  constructor(sink: RamSink, blocks: BlockTable) {
    this.sink = sink
    this.blocks = blocks
  }

  /** Bytes already taken of a record that may become a record event; 0 between records and in raw bodies. */
  get pending(): number {
    if (this.bodyLeft === 0) return this.have
    return this.kind === RAM_FLAG.PAGE ? this.have + PAGE_SIZE - this.bodyLeft : 0
  }

  /** True where the bytes so far end inside a record. */
  get midRecord(): boolean {
    return this.have > 0
  }

  /** Bytes of the body under way that are still to come; 0 where the next byte belongs to a head. */
  get bodyRemaining(): number {
    return this.bodyLeft
  }

  /** Forgets the record under way: the next byte begins another one. */
  abandon(): void {
    this.have = 0
    this.need = 8
    this.bodyLeft = 0
  }

  /** Offsets of records without a name have to be below this; 0: none has named a RAMBlock. */
  get continuedEnd(): number {
    return this.block < 0 ? 0 : this.offsetEnd
  }

  /** Tells the sink of a RAMBlock, once. */
  tell(block: number): void {
    if (this.told[block]) return
    // Filled upwards, so that both arrays stay packed.
    while (this.told.length <= block) {
      this.told.push(false)
      this.counts.pagesByBlock.push(0)
    }
    this.told[block] = true
    this.sink.block(block, this.blocks.idstr(block), this.blocks.lengthBytes(block))
  }

  /**
   * Whether a record's head could stand here: bytes that it takes to tell (more than `have` asks for more), `have` where
   * it could, 0 where it cannot. Records without a page may; MEM_SIZE may not. Changes nothing.
   *
   * @param head its first `have` bytes, 8 at least
   */
  probe(head: Uint8Array, have: number): number {
    const high = readU32(head, 0)
    const low = readU32(head, 4)
    const flags = low & RAM_FLAG_MASK
    if (high >= HIGH_HALF_END) return 0
    const offset = high * TWO_32 + (low - flags)
    switch (flags & ~RAM_FLAG.CONTINUE) {
      case RAM_FLAG.ZERO:
      case RAM_FLAG.PAGE:
      case RAM_FLAG.XBZRLE:
      case RAM_FLAG.COMPRESS_PAGE:
        break
      default:
        return (flags === RAM_FLAG.EOS || flags === RAM_FLAG.MULTIFD_FLUSH) && offset === 0 ? 8 : 0
    }
    if ((flags & RAM_FLAG.CONTINUE) !== 0) return offset < this.offsetEnd ? 8 : 0
    if (have < 9) return 9
    const length = head[8]!
    if (length === 0 || have < 9 + length) return length === 0 ? 0 : 9 + length
    const block = this.blocks.find(head, 9, length)
    return block >= 0 && offset < this.endOf(block) ? 9 + length : 0
  }

  /** Begins with a word that another reader took already: it lies in `head` and started at `start`. */
  resume(head: Uint8Array, start: number): void {
    for (let i = 0; i < 8; i++) this.head[i] = head[i]!
    this.have = 8
    this.need = 8
    this.start = start
  }

  /**
   * Takes records from `chunk`, `at` up to `end`.
   *
   * @param base position in the stream of `chunk[0]`; negative where the chunk starts within an earlier one
   * @returns the index behind the last byte taken; `READ.*` in {@link outcome} says why it stopped there
   */
  read(chunk: Uint8Array, at: number, end: number, base: number): number {
    this.outcome = READ.MORE
    // A word that resume() brought is complete without another byte.
    if (this.have === this.need && this.bodyLeft === 0 && !this.headStep(base + at)) return at
    while (at < end) {
      if (this.have === 0) {
        at = this.readWhole(chunk, at, end, base)
        if (at === end) return at
        this.start = base + at
        this.need = 8
      }
      if (this.bodyLeft > 0) {
        const take = Math.min(this.bodyLeft, end - at)
        this.bodyLeft -= take
        at += take
        if (this.bodyLeft === 0) this.finishBody(base + at)
        continue
      }
      const take = Math.min(this.need - this.have, end - at)
      for (let i = 0; i < take; i++) this.head[this.have + i] = chunk[at + i]!
      this.have += take
      at += take
      if (this.have === this.need && !this.headStep(base + at)) return at
    }
    return at
  }

  /** Why the last {@link read} came back. */
  outcome: number = READ.MORE

  /** The fast path: whole CONTINUE records of ZERO and PAGE, which are all but a few of any stream. */
  private readWhole(chunk: Uint8Array, at: number, end: number, base: number): number {
    const { sink, block, offsetEnd } = this
    const zeroAtMost = end - ZERO_CONTINUE_LENGTH
    const pageAtMost = end - PAGE_CONTINUE_LENGTH
    let zeros = 0
    let pages = 0
    while (at <= zeroAtMost) {
      const low = ((chunk[at + 4]! << 24) | (chunk[at + 5]! << 16) | (chunk[at + 6]! << 8) | chunk[at + 7]!) >>> 0
      const flags = low & RAM_FLAG_MASK
      const offset = readU32(chunk, at) * TWO_32 + (low - flags)
      if (offset >= offsetEnd) break
      if (flags === ZERO_CONTINUE) {
        if (chunk[at + 8] !== 0) break
        sink.zeroRecord(base + at, base + at + ZERO_CONTINUE_LENGTH, block, offset, false)
        at += ZERO_CONTINUE_LENGTH
        zeros++
      } else if (flags === PAGE_CONTINUE && at <= pageAtMost) {
        sink.pageRecord(base + at, base + at + PAGE_CONTINUE_LENGTH, block, offset, false)
        at += PAGE_CONTINUE_LENGTH
        pages++
      } else break
    }
    if (zeros + pages > 0) {
      this.counts.zero += zeros
      this.counts.page += pages
      this.counts.pagesByBlock[block]! += zeros + pages
    }
    return at
  }

  /** `need` bytes of the head are there. Sets the next `need`, or the body, or ends the record; false stops reading. */
  private headStep(position: number): boolean {
    if (this.need === 8) return this.wordStep()
    const { head } = this
    let tailAt = 8
    if (this.named) {
      const length = head[8]!
      if (this.have === 9) {
        if (length === 0) return this.bad('RAM record with an empty idstr')
        this.need = 9 + length + tailLength(this.kind)
        return true
      }
      if (!this.setBlock(9, length)) return false
      tailAt = 9 + length
    }
    return this.tailStep(tailAt, position)
  }

  /** The record's word is there: v = address | flags. */
  private wordStep(): boolean {
    const { head } = this
    const high = readU32(head, 0)
    const low = readU32(head, 4)
    const flags = low & RAM_FLAG_MASK
    if (high >= HIGH_HALF_END) return this.bad('RAM address beyond 2^53')
    this.offset = high * TWO_32 + (low - flags)
    switch (flags & ~RAM_FLAG.CONTINUE) {
      case RAM_FLAG.ZERO:
      case RAM_FLAG.PAGE:
      case RAM_FLAG.XBZRLE:
      case RAM_FLAG.COMPRESS_PAGE:
        break
      default:
        return this.controlStep(flags)
    }
    this.kind = flags & ~RAM_FLAG.CONTINUE
    this.named = (flags & RAM_FLAG.CONTINUE) === 0
    if (this.named) {
      this.need = 9
      return true
    }
    if (this.block < 0) return this.bad('RAM record with CONTINUE before any RAMBlock')
    if (this.offset >= this.offsetEnd) return this.bad('RAM record beyond its RAMBlock')
    const tail = tailLength(this.kind)
    this.need = 8 + tail
    return tail > 0 || this.tailStep(8, this.start + 8)
  }

  /** Records without a page: EOS, MULTIFD_FLUSH, MEM_SIZE. Flags must match exactly, CONTINUE included. */
  private controlStep(flags: number): boolean {
    if (flags === RAM_FLAG.MULTIFD_FLUSH || flags === RAM_FLAG.EOS) {
      if (this.offset !== 0) return this.bad('RAM record without a page has an address')
      this.have = 0
      this.need = 8
      if (flags === RAM_FLAG.MULTIFD_FLUSH) {
        this.counts.flush++
        return true
      }
      this.counts.eos++
      this.outcome = READ.EOS
      return false
    }
    if (flags === RAM_FLAG.MEM_SIZE) {
      this.have = 0
      this.need = 8
      this.total = this.offset
      this.outcome = READ.MEM_SIZE
      return false
    }
    return this.bad(`unknown RAM flags 0x${flags.toString(16)}`)
  }

  /** The head is complete; its kind's own fields start at `at`, and `position` is behind the last of them. */
  private tailStep(at: number, position: number): boolean {
    const { head, sink, block, offset, counts } = this
    switch (this.kind) {
      case RAM_FLAG.PAGE:
        this.bodyLeft = PAGE_SIZE
        return true
      case RAM_FLAG.ZERO:
        this.countPage()
        if (head[at] === 0) {
          counts.zero++
          sink.zeroRecord(this.start, position, block, offset, this.named)
        } else {
          counts.zeroFilled++
          sink.opaquePage(block, offset)
        }
        this.have = 0
        return true
      case RAM_FLAG.XBZRLE: {
        const length = readU16(head, at + 1)
        if (head[at] !== XBZRLE_ENCODING) return this.bad('unknown XBZRLE encoding')
        if (length > XBZRLE_LENGTH_MAX) return this.bad('XBZRLE record longer than a page')
        counts.xbzrle++
        return this.opaqueBody(length)
      }
      default: {
        const length = readU32(head, at)
        if (length > COMPRESS_LENGTH_MAX) return this.bad('COMPRESS_PAGE record longer than a page can be')
        counts.compress++
        return this.opaqueBody(length)
      }
    }
  }

  private opaqueBody(length: number): boolean {
    this.countPage()
    this.sink.opaquePage(this.block, this.offset)
    this.bodyLeft = length
    if (length === 0) this.have = 0
    return true
  }

  private finishBody(position: number): void {
    if (this.kind === RAM_FLAG.PAGE) {
      this.countPage()
      this.counts.page++
      this.sink.pageRecord(this.start, position, this.block, this.offset, this.named)
    }
    this.have = 0
  }

  private countPage(): void {
    this.counts.pagesByBlock[this.block]!++
    if (this.named) this.counts.named++
  }

  /** Makes the RAMBlock with the idstr in the head the one that CONTINUE means. */
  private setBlock(at: number, length: number): boolean {
    const block = this.blocks.resolve(this.head, at, length)
    if (block < 0) return this.bad(`unknown RAMBlock ${JSON.stringify(latin1(this.head, at, length))}`)
    const offsetEnd = this.endOf(block)
    if (this.offset >= offsetEnd) return this.bad('RAM record beyond its RAMBlock')
    this.tell(block)
    this.block = block
    this.offsetEnd = offsetEnd
    return true
  }

  /** Offsets of the RAMBlock lie below this. */
  private endOf(block: number): number {
    const lengthBytes = this.blocks.lengthBytes(block)
    return lengthBytes > 0 ? lengthBytes : HIGH_HALF_END * TWO_32
  }

  private bad(reason: string): boolean {
    this.badPosition = this.start
    this.badReason = reason
    this.badBytes = this.head.subarray(0, this.have)
    this.outcome = READ.BAD
    this.have = 0
    return false
  }
}

/** Bytes of the fixed fields between a record's word (and idstr) and its body. */
function tailLength(kind: number): number {
  if (kind === RAM_FLAG.ZERO) return 1
  if (kind === RAM_FLAG.XBZRLE) return 3
  return kind === RAM_FLAG.COMPRESS_PAGE ? 4 : 0
}
