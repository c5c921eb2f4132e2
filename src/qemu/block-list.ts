/** The list of RAMBlocks in the START of ram. Source: qemu-wire-format 3.2. */
import { readU32, readU64 } from '../bytes/big-endian.ts'
import type { BlockTable } from './block-table.ts'
import { type Field, STEP } from './field.ts'
import type { RamRecordReader } from './ram-records.ts'
import { RAM_FLAG_MASK } from './wire.ts'

const STATE = {
  ENTRY: 0,
  PAGE_SIZE: 1, // or the entry or record after it, where there is none
  ADDRESS: 2,
} as const

/** Reads the list behind its MEM_SIZE word, and declares what it names. */
export class BlockList {
  private readonly blocks: BlockTable
  private readonly records: RamRecordReader
  private state: number = STATE.ENTRY
  /** Bytes of RAMBlocks that the list still has to name. */
  private bytesLeft = 0
  private pageSizes = false
  private addresses = false

  constructor(blocks: BlockTable, records: RamRecordReader) {
    this.blocks = blocks
    this.records = records
  }

  /**
   * @param total bytes that all RAMBlocks sum up to
   * @param pageSizes POSTCOPY_ADVISE came: some entries have a page size
   * @param addresses x-ignore-shared: all have an address
   */
  begin(total: number, pageSizes: boolean, addresses: boolean, field: Field): number {
    this.bytesLeft = total
    this.pageSizes = pageSizes
    this.addresses = addresses
    return this.nextEntry(field)
  }

  /** DONE: records follow; the word of the first may have been taken, then the records' reader has it. */
  step(field: Field): number {
    switch (this.state) {
      case STATE.ENTRY:
        return this.entryStep(field)
      case STATE.PAGE_SIZE:
        return this.pageSizeStep(field)
      default: // STATE.ADDRESS
        return this.nextEntry(field)
    }
  }

  private next(state: number, need: number, field: Field): number {
    this.state = state
    field.next(need)
    return STEP.ON
  }

  /** Behind a whole entry, or the total: an entry follows, or records. */
  private nextEntry(field: Field): number {
    if (this.bytesLeft > 0) return this.next(STATE.ENTRY, 1, field)
    this.blocks.complete = true
    return STEP.DONE
  }

  /** cstr idstr, u64 used_length. */
  private entryStep(field: Field): number {
    const { head } = field
    const length = head[0]!
    if (length === 0) return field.bad(field.start, 'RAMBlock with an empty idstr')
    if (!field.wants(1 + length + 8)) return STEP.ON
    const lengthBytes = readU64(head, 1 + length)
    if (lengthBytes <= 0 || lengthBytes > this.bytesLeft) {
      return field.bad(field.start, 'block list does not sum up to its total')
    }
    const block = this.blocks.declare(head, 1, length, lengthBytes)
    if (block < 0) return field.bad(field.start, 'RAMBlock listed twice, or too many RAMBlocks')
    this.bytesLeft -= lengthBytes
    this.records.tell(block)
    return this.pageSizes ? this.next(STATE.PAGE_SIZE, this.bytesLeft > 0 ? 1 : 8, field) : this.address(field)
  }

  private address(field: Field): number {
    return this.addresses ? this.next(STATE.ADDRESS, 8, field) : this.nextEntry(field)
  }

  /**
   * A u64 page size stands here for some RAMBlocks, and nothing says for which. It opens with a zero byte, which no
   * other entry does; behind the last entry it has no low bits, which every record has.
   */
  private pageSizeStep(field: Field): number {
    const { head } = field
    if (this.bytesLeft > 0) {
      if (head[0] !== 0) {
        this.state = STATE.ENTRY
        return this.entryStep(field)
      }
      if (!field.wants(8)) return STEP.ON
    } else if ((readU32(head, 4) & RAM_FLAG_MASK) !== 0) {
      this.records.resume(head, field.start)
      return this.nextEntry(field)
    }
    return this.address(field)
  }
}
