/**
 * Heads of NBD messages as a batch says them: only what of them is otherwise than the message before lets expect.
 * docs/protocol.md §9. Both sides keep one of these for each connection of a disk, alike.
 */
import { readU32, TWO_32, writeU32 } from '../bytes/big-endian.ts'
import { CHUNK, CHUNK_PREFIX, COMMAND, EXTENDED_CHUNK, EXTENDED_REQUEST, REQUEST, SIMPLE_REPLY } from '../nbd/wire.ts'
import type { VarintReader } from './varint.ts'
import { unzigzag, zigzag } from './varint.ts'
import { FORM, PAGE_NUMBER_MAX, PAGE_SIZE } from './wire.ts'

// What a message is made of, 32 bits each, in the order of the bits that say which of it is not as expected.
const TYPE = 0 // flags and type; of a simple reply the error
const COOKIE_LOW = 1
const COOKIE_HIGH = 2
const OFFSET_LOW = 3
const OFFSET_HIGH = 4
const LENGTH_LOW = 5 // of the data in a reply, of all that a request is about
const LENGTH_HIGH = 6
const ASKED_LOW = 7 // offset of the request that an extended chunk answers
const ASKED_HIGH = 8
const WORDS = 9

const COOKIE = [COOKIE_HIGH, COOKIE_LOW] as const
const OFFSET = [OFFSET_HIGH, OFFSET_LOW] as const
const LENGTH = [LENGTH_HIGH, LENGTH_LOW] as const
const ASKED = [ASKED_HIGH, ASKED_LOW] as const

interface Shape {
  readonly magic: number
  /** Words behind the magic, in the order of the wire. */
  readonly order: readonly number[]
  /** How many words a message has, the first of all; those of a simple reply are not all in its head. */
  readonly words: number
  /** What the field of the length has more than the data has bytes. */
  readonly extra: number
  /** Whether data comes with WRITE alone. */
  readonly asks: boolean
}

const { OFFSET_DATA } = CHUNK_PREFIX
const SHAPES: Readonly<Record<number, Shape>> = {
  [FORM.REQUEST]: shape(REQUEST.MAGIC, [TYPE, ...COOKIE, ...OFFSET, LENGTH_LOW], 6, 0, true),
  [FORM.EXTENDED_REQUEST]: shape(EXTENDED_REQUEST.MAGIC, [TYPE, ...COOKIE, ...OFFSET, ...LENGTH], 7, 0, true),
  [FORM.SIMPLE_REPLY]: shape(SIMPLE_REPLY.MAGIC, [TYPE, ...COOKIE], 6),
  [FORM.DATA_CHUNK]: shape(CHUNK.MAGIC, [TYPE, ...COOKIE, LENGTH_LOW, ...OFFSET], 6, OFFSET_DATA),
  [FORM.EXTENDED_DATA_CHUNK]: shape(
    EXTENDED_CHUNK.MAGIC,
    [TYPE, ...COOKIE, ...ASKED, ...LENGTH, ...OFFSET],
    9,
    OFFSET_DATA,
  ),
}

function shape(magic: number, order: readonly number[], words: number, extra = 0, asks = false): Shape {
  return { magic, order, words, extra, asks }
}

/** Bytes of a head: the magic, and its words. */
function headLength({ order }: Shape): number {
  return 4 + 4 * order.length
}

/** Bytes of a head of this form. */
export function headLengthOf(form: number): number {
  return headLength(SHAPES[form]!)
}

/** Bytes of an export whose blocks have numbers. */
const EXPORT_END = PAGE_NUMBER_MAX * PAGE_SIZE

/** Whether a batch can say where this data of an export lies, if there is any. */
export function hasPlace(offset: number, dataBytes: number): boolean {
  return dataBytes === 0 || offset + dataBytes <= EXPORT_END
}

/** Number of the first whole block in data from `offset` on. */
export function firstBlock(offset: number): number {
  return Math.ceil(offset / PAGE_SIZE)
}

/** Whole blocks of an export in such data. */
export function wholeBlocks(offset: number, dataBytes: number): number {
  return Math.max(0, Math.floor((offset + dataBytes) / PAGE_SIZE) - firstBlock(offset))
}

export class DiskMessages {
  /** The export, as the places of its blocks name it. */
  block = 0
  private shape: Shape = SHAPES[FORM.REQUEST]!
  /** Of the last message. */
  private readonly words = new Uint32Array(WORDS)
  /** Of the one that is said, and what was expected of it. */
  private readonly told = new Uint32Array(WORDS)
  private readonly expected = new Uint32Array(WORDS)
  /** Offset behind what it was about. */
  private nextLow = 0
  private nextHigh = 0

  /** A connection begins, or another one. Cheap: a peer may say so at every third byte. @param form one of FORM */
  begin(form: number, block: number): void {
    this.shape = SHAPES[form]!
    this.block = block
    this.words.fill(0)
    this.nextLow = 0
    this.nextHigh = 0
  }

  /** Bytes of a head. */
  get headLength(): number {
    return headLength(this.shape)
  }

  /**
   * Says the message whose head stands at `at`.
   * @param offset of its data, and how much that is: a simple reply does not have them
   * @param to takes the numbers
   */
  say(bytes: Uint8Array, at: number, offset: number, dataBytes: number, to: { number(value: number): void }): void {
    const { words, told, expected } = this
    const { order, extra, words: count } = this.shape
    told[OFFSET_LOW] = offset % TWO_32
    told[OFFSET_HIGH] = offset / TWO_32
    told[LENGTH_LOW] = dataBytes
    for (let i = 0; i < order.length; i++) told[order[i]!] = readU32(bytes, at + 4 + 4 * i)
    if (told[LENGTH_LOW]! < extra) told[LENGTH_HIGH]!--
    told[LENGTH_LOW]! -= extra
    expected.set(words)
    this.expect(expected)
    expected[ASKED_LOW] = told[OFFSET_LOW]!
    expected[ASKED_HIGH] = told[OFFSET_HIGH]!
    let unlike = 0
    for (let word = 0; word < count; word++) if (told[word] !== expected[word]) unlike += 1 << word
    to.number(unlike)
    for (let word = 0; word < count; word++) {
      if (told[word] !== expected[word]) to.number(zigzag((told[word]! - expected[word]!) | 0))
    }
    words.set(told)
    this.advance()
  }

  /**
   * Takes the next message.
   * @param from has the numbers
   * @returns what is wrong with it, or ''
   */
  read(from: VarintReader): string {
    const { words } = this
    const { words: count } = this.shape
    const unlike = from.next()
    if (unlike >= 1 << count) return `MESSAGE with words that it does not have: ${unlike}`
    this.expect(words)
    for (let word = 0; word < count; word++) {
      if (word === ASKED_LOW) {
        words[ASKED_LOW] = words[OFFSET_LOW]!
        words[ASKED_HIGH] = words[OFFSET_HIGH]!
      }
      if ((unlike & (1 << word)) === 0) continue
      const difference = from.next()
      if (difference >= TWO_32) return `MESSAGE with a difference of ${difference}`
      words[word]! += unzigzag(difference)
    }
    this.advance()
    return hasPlace(this.offset, this.dataBytes) ? '' : 'MESSAGE with data where no block has a number'
  }

  /** Writes the head of the message that was read. */
  writeHead(bytes: Uint8Array, at: number): void {
    const { words } = this
    const { magic, order, extra } = this.shape
    writeU32(bytes, at, magic)
    for (let i = 0; i < order.length; i++) {
      const word = order[i]!
      let value = words[word]!
      if (word === LENGTH_LOW) value += extra
      else if (word === LENGTH_HIGH && words[LENGTH_LOW]! + extra >= TWO_32) value++
      writeU32(bytes, at + 4 + 4 * i, value)
    }
  }

  /** Where the last message's data stands in the export; exact where that has a place. */
  get offset(): number {
    return this.words[OFFSET_HIGH]! * TWO_32 + this.words[OFFSET_LOW]!
  }

  /** Bytes of data behind the last message's head. */
  get dataBytes(): number {
    const { words } = this
    if (this.shape.asks && words[TYPE]! % 65536 !== COMMAND.WRITE) return 0
    return words[LENGTH_HIGH]! * TWO_32 + words[LENGTH_LOW]!
  }

  /** Fills in what is expected of the next message: all is as it was, but it goes on where that ended. */
  private expect(words: Uint32Array): void {
    words[COOKIE_LOW]!++
    words[OFFSET_LOW] = this.nextLow
    words[OFFSET_HIGH] = this.nextHigh
  }

  private advance(): void {
    const { words } = this
    const low = words[OFFSET_LOW]! + words[LENGTH_LOW]!
    this.nextLow = low % TWO_32
    this.nextHigh = (words[OFFSET_HIGH]! + words[LENGTH_HIGH]! + (low >= TWO_32 ? 1 : 0)) % TWO_32
  }
}
