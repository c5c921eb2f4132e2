/** One channel on its way in: what the expander remembers of it from batch to batch. */
import { ProxyError } from '../errors.ts'
import { MULTIFD } from '../qemu/wire.ts'
import { DiskMessages, firstBlock, wholeBlocks } from './disk-messages.ts'
import type { PoolRegions } from './places.ts'
import { Prediction } from './prediction.ts'
import { EXPORT_NUMBER_MAX, FORM, PACKET_HEADER_SIZE, PACKET_PAGES_MAX, PAGE_NUMBER_MAX } from './wire.ts'

export class FlowExpander {
  readonly migration: number
  readonly prediction: Prediction
  /** Whether its pages are shown to the observer, as at the other side. */
  isLearned = true
  /** The next head says the RAMBlock's name. */
  named = false
  /** Bytes given so far: the position in the channel's stream. */
  position = 0
  /** Page numbers of the packet that is being given, and how many of them were. */
  private readonly packetPages = new Float64Array(PACKET_PAGES_MAX)
  private packetCount = 0
  private packetDone = 0
  /** Blocks that a disk's message still brings. */
  owedBlocks = 0

  constructor(migration: number, regions: PoolRegions) {
    this.migration = migration
    this.prediction = new Prediction(regions)
  }

  /** A packet's header was given that promises more pages. */
  get inPacket(): boolean {
    return this.packetDone < this.packetCount
  }

  /** The next of the blocks that a message brings are so many pages. */
  takeBlocks(count: number): void {
    this.owedBlocks -= count
  }

  /** The packet's next page is the next one. */
  takePage(): void {
    this.prediction.page = this.packetPages[this.packetDone++]!
  }

  /** Pages of the packet or message of which nothing is said. @throws BATCH_FORMAT */
  pass(count: number): void {
    if (this.owedBlocks > 0) {
      if (count > this.owedBlocks) throw this.bad('PASS of more blocks than the message owes')
      this.takeBlocks(count)
      this.advance(count)
      return
    }
    if (count > this.packetCount - this.packetDone) throw this.bad('PASS of more pages than the packet owes')
    this.packetDone += count
  }

  /** @throws BATCH_FORMAT */
  outsidePacket(): void {
    if (this.inPacket || this.owedBlocks > 0) {
      throw this.bad('an operation that cannot stand within a packet or message')
    }
  }

  /** The next page is so many further on. @throws BATCH_FORMAT */
  advance(pages: number): void {
    const page = this.prediction.page + pages
    if (page < 0 || page > PAGE_NUMBER_MAX) throw this.bad(`page number ${page}`)
    this.prediction.page = page
  }

  /** The next page is the first of a RAMBlock. @throws BATCH_FORMAT */
  enter(block: number): void {
    const { prediction } = this
    if (block >= prediction.names.count) throw this.bad(`BLOCK ${block} of ${prediction.names.count}`)
    prediction.block = block
    prediction.page = 0
  }

  /** Names a RAMBlock. @returns its number. @throws BATCH_FORMAT */
  define(name: string): number {
    const block = this.prediction.names.add(name)
    if (block < 0) throw this.bad('more names of RAMBlocks than a flow may have')
    return block
  }

  /** A packet's header stands at `at`: the pages that it names come next. @throws BATCH_FORMAT */
  packet(bytes: Uint8Array, at: number): void {
    const view = new DataView(bytes.buffer, at, PACKET_HEADER_SIZE)
    const pages = view.getUint32(MULTIFD.NORMAL_PAGES_AT)
    this.packetCount = 0
    this.packetDone = 0
    if (pages === 0 || pages > PACKET_PAGES_MAX) return
    const nameAt = at + MULTIFD.BLOCK_AT
    let length = 0
    while (length < MULTIFD.BLOCK_LENGTH - 1 && bytes[nameAt + length] !== 0) length++
    const name = nameIn(bytes, nameAt, length)
    const known = this.prediction.names.find(name)
    this.prediction.block = known >= 0 ? known : this.define(name)
    for (let i = 0, word = MULTIFD.OFFSETS_AT; i < pages; i++, word += 8) {
      // of the u64 the bits 12 to 51: halves, because all 64 do not fit a number
      this.packetPages[i] = (view.getUint32(word) % 1048576) * 1048576 + (view.getUint32(word + 4) >>> 12)
    }
    this.packetCount = pages
  }

  /** A connection of a disk begins. @throws BATCH_FORMAT */
  export(form: number, block: number): void {
    if (form < FORM.REQUEST || form > FORM.EXTENDED_DATA_CHUNK || block >= EXPORT_NUMBER_MAX) {
      throw this.bad(`EXPORT of the form ${form} and the number ${block}`)
    }
    const { prediction } = this
    prediction.messages ??= new DiskMessages()
    prediction.messages.begin(form, block)
    prediction.block = block
    prediction.page = 0
    this.named = false
  }

  /** The head of a disk's message was given: the blocks of its data come next. */
  owe({ block, offset, dataBytes }: DiskMessages): void {
    this.owedBlocks = wholeBlocks(offset, dataBytes)
    if (this.owedBlocks === 0) return
    this.named = false
    this.prediction.block = block
    this.prediction.page = firstBlock(offset)
  }

  /** What is wrong with its batch. */
  bad(what: string): ProxyError {
    return new ProxyError(
      'BATCH_FORMAT',
      `a batch breaks the format: ${what}`,
      { stream: 'channel', offset: this.position },
      'the session ends and the source guest goes on; both proxies must run versions that fit',
    )
  }
}

/** A RAMBlock's name, of which each character is one byte. */
export function nameIn(bytes: Uint8Array, at: number, length: number): string {
  return Buffer.from(bytes.buffer, at, length).toString('latin1')
}
