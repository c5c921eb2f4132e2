/**
 * Records of a channel since its last batch, in their order: what a parser found, as the encoder's loop wants it. Typed
 * arrays, because a batch may have 116,000 of them.
 */
import { assert } from '../errors.ts'

/**
 * What a record is: a run of zero records, a page with its head, a page without (of a packet or a disk), a packet's header,
 * a page that went raw, the head of a disk's message.
 */
export const RECORD = { ZEROS: 0, PAGE: 1, BARE_PAGE: 2, PACKET: 3, PASS: 4, MESSAGE: 5 } as const

/** Most of one batch: 116,508 zero records of 9 bytes are 1 MiB. */
const RECORDS_MAX = 1 << 17
/** Room that a flow begins with: most channels never need more. */
const RECORDS_FIRST = 256

export class RecordList {
  /** RECORD. */
  kind = new Uint8Array(RECORDS_FIRST)
  /** First byte, and the one behind the last, from the first byte that is in no batch yet. */
  start = new Int32Array(RECORDS_FIRST)
  end = new Int32Array(RECORDS_FIRST)
  /** The flow's own index of the RAMBlock; of a MESSAGE how many bytes of data it brings, as u32. */
  block = new Int32Array(RECORDS_FIRST)
  /** 1: the first record says its RAMBlock's name. */
  named = new Uint8Array(RECORDS_FIRST)
  /** Page number of the first; of a MESSAGE the offset of its data. */
  page = new Float64Array(RECORDS_FIRST)
  count = 0
  /** PAGE and BARE_PAGE among them. */
  pages = 0

  add(kind: number, start: number, end: number, block: number, page: number, named: boolean): void {
    const i = this.count++
    if (i === this.kind.length) this.grow()
    this.kind[i] = kind
    this.start[i] = start
    this.end[i] = end
    this.block[i] = block
    this.page[i] = page
    this.named[i] = named ? 1 : 0
    if (kind === RECORD.PAGE || kind === RECORD.BARE_PAGE) this.pages++
  }

  clear(): void {
    this.count = 0
    this.pages = 0
  }

  private grow(): void {
    const before = this.kind.length
    assert(before < RECORDS_MAX, 'more records than a batch can hold')
    const length = Math.min(before * 4, RECORDS_MAX)
    const grown = <T extends Uint8Array | Int32Array | Float64Array>(to: T, from: T): T => {
      to.set(from)
      return to
    }
    this.kind = grown(new Uint8Array(length), this.kind)
    this.start = grown(new Int32Array(length), this.start)
    this.end = grown(new Int32Array(length), this.end)
    this.block = grown(new Int32Array(length), this.block)
    this.named = grown(new Uint8Array(length), this.named)
    this.page = grown(new Float64Array(length), this.page)
  }
}
