import { readU32, readU64 } from '../bytes/big-endian.ts'
import { copyBytes, latin1 } from '../bytes/copy.ts'
import { assert } from '../errors.ts'
import { BlockTable } from './block-table.ts'
import type { MultifdMethod, StreamSink } from './stream-sink.ts'
import { MULTIFD, MULTIFD_FLAG, PAGE_SIZE } from './wire.ts'

/** Plain counts of a multifd channel. */
export interface MultifdCounts {
  packets: number
  /** Packets with SYNC, with or without pages. */
  syncs: number
  normalPages: number
  zeroPages: number
  /** Normal pages of compressed packets; not in `normalPages`. */
  opaquePages: number
  deviceStates: number
  /** Bytes of compressed data and of device state. */
  opaqueBytes: number
}

const STATE = { HELLO: 0, PREFIX: 1, HEADER: 2, DEVICE_STATE: 3, PAGES: 4, RAW: 5 } as const

const METHODS: ReadonlyMap<number, MultifdMethod> = new Map([
  [MULTIFD_FLAG.ZLIB, 'zlib'],
  [MULTIFD_FLAG.ZSTD, 'zstd'],
  [MULTIFD_FLAG.QPL, 'qpl'],
  [MULTIFD_FLAG.UADK, 'uadk'],
  [MULTIFD_FLAG.QATZIP, 'qatzip'],
])
const RAM_FLAGS = MULTIFD_FLAG.SYNC | MULTIFD_FLAG.METHOD_MASK

/** Reads a multifd channel, cut anywhere. Source: qemu-wire-format 4, QEMU migration/multifd.c. */
export class MultifdParser {
  /** Live counts. */
  readonly counts: MultifdCounts = {
    packets: 0,
    syncs: 0,
    normalPages: 0,
    zeroPages: 0,
    opaquePages: 0,
    deviceStates: 0,
    opaqueBytes: 0,
  }
  private readonly sink: StreamSink
  private readonly blocks: BlockTable
  private readonly told: boolean[] = []
  private compressedTold = false

  private state: number = STATE.HELLO
  private readonly head = new Uint8Array(MULTIFD.HEADER_LENGTH)
  private have = 0
  private need: number = MULTIFD.HELLO_LENGTH
  private start = 0
  private skip = 0
  private streamPosition = 0
  /** Page offsets of the packet under way: PAGES_MAX numbers, normal pages first. */
  private readonly offsets = new Float64Array(MULTIFD.PAGES_MAX)
  private block = -1
  private normalPages = 0
  /** Pages of the packet that are complete, and bytes of the one under way. */
  private page = 0
  private pageHave = 0
  private degradedAt: number | undefined = undefined

  /** @param blocks the RAMBlocks of the migration, shared with its main channel */
  constructor(sink: StreamSink, blocks: BlockTable = new BlockTable()) {
    this.sink = sink
    this.blocks = blocks
  }

  /** Bytes of the stream taken so far. */
  get position(): number {
    return this.streamPosition
  }

  /**
   * Bytes at the end of what was taken that belong to an incomplete header (up to 1343) or page (up to 4095), so that
   * a caller can keep them in front of its next chunk. 0 in raw stretches.
   */
  get pending(): number {
    return this.state === STATE.PAGES ? this.pageHave : this.have
  }

  /** True where everything from here on is raw. */
  get raw(): boolean {
    return this.state === STATE.RAW
  }

  /**
   * Bytes to come that no field is made of: a reader of captures may push anything in the place of as many that it lacks.
   * 0 where the next byte counts.
   */
  get passable(): number {
    if (this.skip > 0) return this.skip
    return this.state === STATE.PAGES ? (this.normalPages - this.page) * PAGE_SIZE - this.pageHave : 0
  }

  /**
   * Goes on behind bytes that are missing, or that were not understood: the next one that is pushed stands at `position`
   * and begins a packet.
   */
  resumeAtPacket(position: number): boolean {
    this.degradedAt = undefined
    this.skip = 0
    this.pageHave = 0
    this.streamPosition = position
    this.next(STATE.PREFIX, MULTIFD.PREFIX_LENGTH)
    return true
  }

  /** Takes the next `length` bytes of the channel, which lie in `chunk` from `at`, cut anywhere. Keeps no reference. */
  push(chunk: Uint8Array, at: number, length: number): void {
    const end = at + length
    assert(at >= 0 && length >= 0 && end <= chunk.length, 'bytes outside their chunk')
    const base = this.streamPosition - at
    while (at < end && this.state !== STATE.RAW) {
      if (this.skip > 0) {
        const take = Math.min(this.skip, end - at)
        this.skip -= take
        at += take
      } else if (this.state === STATE.PAGES) at = this.readPages(at, end, base)
      else {
        if (this.have === 0) this.start = base + at
        const take = Math.min(this.need - this.have, end - at)
        copyBytes(chunk, at, this.head, this.have, take)
        this.have += take
        at += take
        if (this.have === this.need) this.headStep(base + at)
      }
    }
    this.streamPosition = base + end
  }

  /** The stream ended: whether inside a packet, and where it was not understood. */
  finish(): { cut: boolean; degradedAt: number | undefined } {
    const between = this.state === STATE.RAW || (this.state === STATE.PREFIX && this.have === 0 && this.skip === 0)
    // A channel that was never used is whole, too.
    return { cut: !between && this.streamPosition > 0, degradedAt: this.degradedAt }
  }

  private readPages(at: number, end: number, base: number): number {
    while (at < end) {
      const take = Math.min(PAGE_SIZE - this.pageHave, end - at)
      this.pageHave += take
      at += take
      if (this.pageHave < PAGE_SIZE) return at
      const position = base + at
      this.sink.pageBody(position - PAGE_SIZE, position, this.block, this.offsets[this.page]!)
      this.pageHave = 0
      this.page++
      if (this.page === this.normalPages) {
        this.next(STATE.PREFIX, MULTIFD.PREFIX_LENGTH)
        return at
      }
    }
    return at
  }

  private headStep(position: number): void {
    switch (this.state) {
      case STATE.HELLO:
        if (!this.prefixIsMultifd()) return
        this.sink.hello?.(this.head[MULTIFD.HELLO_ID_AT]!, position)
        this.next(STATE.PREFIX, MULTIFD.PREFIX_LENGTH)
        return
      case STATE.PREFIX:
        if (!this.prefixIsMultifd()) return
        this.prefixStep(readU32(this.head, MULTIFD.FLAGS_AT))
        return
      case STATE.DEVICE_STATE:
        this.counts.deviceStates++
        this.next(STATE.PREFIX, MULTIFD.PREFIX_LENGTH)
        this.skipOpaque(readU32(this.head, MULTIFD.DEVICE_STATE_SIZE_AT))
        return
      default:
        this.packetStep(position)
    }
  }

  private prefixIsMultifd(): boolean {
    if (readU32(this.head, 0) !== MULTIFD.MAGIC) this.degrade(this.start, 'not a multifd packet')
    else if (readU32(this.head, 4) !== MULTIFD.VERSION) this.degrade(this.start + 4, 'unknown multifd version')
    return !this.raw
  }

  /** The two layouts part behind their flags. */
  private prefixStep(flags: number): void {
    if (flags === MULTIFD_FLAG.DEVICE_STATE) {
      this.state = STATE.DEVICE_STATE
      this.need = MULTIFD.DEVICE_STATE_HEADER_LENGTH
      return
    }
    const method = flags & MULTIFD_FLAG.METHOD_MASK
    if ((flags & ~RAM_FLAGS) !== 0 || (method !== 0 && !METHODS.has(method))) {
      this.degrade(this.start + MULTIFD.FLAGS_AT, `unknown multifd flags 0x${flags.toString(16)}`)
      return
    }
    this.state = STATE.HEADER
    this.need = MULTIFD.HEADER_LENGTH
  }

  private packetStep(position: number): void {
    const { head, start, sink, counts, offsets } = this
    const flags = readU32(head, MULTIFD.FLAGS_AT)
    const normalPages = readU32(head, MULTIFD.NORMAL_PAGES_AT)
    const zeroPages = readU32(head, MULTIFD.ZERO_PAGES_AT)
    const method = flags & MULTIFD_FLAG.METHOD_MASK
    // The size is stale where no page follows.
    const dataBytes = normalPages > 0 ? readU32(head, MULTIFD.NEXT_PACKET_SIZE_AT) : 0
    if (normalPages + zeroPages > MULTIFD.PAGES_MAX) {
      this.degrade(start + MULTIFD.NORMAL_PAGES_AT, 'too many pages in a multifd packet')
      return
    }
    if (method === 0 && dataBytes !== normalPages * PAGE_SIZE) {
      // Another target page size has headers of another length as well.
      this.degrade(start + MULTIFD.NEXT_PACKET_SIZE_AT, 'multifd packet does not hold pages of 4096 bytes')
      return
    }
    const block = normalPages + zeroPages > 0 ? this.readBlock() : -1
    if (this.raw) return
    const lengthBytes = block >= 0 ? this.blocks.lengthBytes(block) : 0
    for (let i = 0; i < normalPages + zeroPages; i++) {
      const offset = readU64(head, MULTIFD.OFFSETS_AT + 8 * i)
      if (offset < 0 || offset % PAGE_SIZE !== 0 || (lengthBytes > 0 && offset >= lengthBytes)) {
        this.degrade(start + MULTIFD.OFFSETS_AT + 8 * i, 'multifd page beyond its RAMBlock')
        return
      }
      offsets[i] = offset
    }
    counts.packets++
    if (flags & MULTIFD_FLAG.SYNC) counts.syncs++
    counts.zeroPages += zeroPages
    this.tell(block)
    sink.packet(start, position, normalPages, zeroPages, flags, block)
    for (let i = normalPages; i < normalPages + zeroPages; i++) sink.zeroPage(block, offsets[i]!)
    this.next(STATE.PREFIX, MULTIFD.PREFIX_LENGTH)
    if (normalPages === 0) return
    if (method === 0) {
      counts.normalPages += normalPages
      this.block = block
      this.normalPages = normalPages
      this.page = 0
      this.state = STATE.PAGES
      return
    }
    counts.opaquePages += normalPages
    if (!this.compressedTold) sink.compressed(METHODS.get(method)!, start)
    this.compressedTold = true
    for (let i = 0; i < normalPages; i++) sink.opaquePage(block, offsets[i]!)
    this.skipOpaque(dataBytes)
  }

  /** Index of the RAMBlock that the header names; degrades where there is none. */
  private readBlock(): number {
    const { head } = this
    let length = 0
    while (length < MULTIFD.BLOCK_LENGTH && head[MULTIFD.BLOCK_AT + length] !== 0) length++
    const known = length > 0 && length < MULTIFD.BLOCK_LENGTH
    const block = known ? this.blocks.resolve(head, MULTIFD.BLOCK_AT, length) : -1
    if (block < 0) {
      const idstr = JSON.stringify(latin1(head, MULTIFD.BLOCK_AT, length))
      this.degrade(this.start + MULTIFD.BLOCK_AT, `unknown RAMBlock ${idstr}`)
    }
    return block
  }

  private tell(block: number): void {
    if (block < 0 || this.told[block]) return
    while (this.told.length <= block) this.told.push(false)
    this.told[block] = true
    this.sink.block(block, this.blocks.idstr(block), this.blocks.lengthBytes(block))
  }

  private skipOpaque(lengthBytes: number): void {
    this.counts.opaqueBytes += lengthBytes
    this.skip = lengthBytes
  }

  private next(state: number, need: number): void {
    this.state = state
    this.need = need
    this.have = 0
  }

  private degrade(position: number, reason: string): void {
    this.next(STATE.RAW, 1)
    this.degradedAt = position
    this.sink.degraded(position, reason)
  }
}
