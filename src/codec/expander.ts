/**
 * Expands batches: replays operations over the pool, docs/protocol.md §4 to §7. It needs no parser of QEMU's streams.
 * Every count and position is checked before memory is touched; a batch that breaks the grammar, or does not give the
 * bytes its checksum promises, is a typed error, and nothing of it may go to QEMU.
 */
import { assert, ProxyError } from '../errors.ts'
import { EXPAND, FAILED, type Kernel, NONE } from '../kernel/kernel.ts'
import { PATCH_COPIES_MAX } from '../limits.ts'
import { MULTIFD } from '../qemu/wire.ts'
import type { PageObserver } from './observer.ts'
import { restoreHeaders } from './packet-headers.ts'
import { PoolRegions, placeIndex, REGION } from './places.ts'
import { Prediction } from './prediction.ts'
import { unzigzag, VarintReader } from './varint.ts'
import {
  COLUMN,
  LAG_MAX,
  OP,
  operationsMax,
  PACKET_HEADER_SIZE,
  PACKET_PAGES_MAX,
  PAGE_NUMBER_MAX,
  PAGE_SIZE,
} from './wire.ts'
import type { Workspace } from './workspace.ts'

/** What an operation, a kernel call (65 ns) and a copy of PATCH count as work, in bytes that are copied in the same time. */
const WORK_PER_STEP = 256
const WORK_PER_COPY = 128

/** What the expander remembers of one flow from batch to batch. */
export class FlowExpander {
  readonly migration: number
  readonly prediction: Prediction
  /** The next head says the RAMBlock's name. */
  named = false
  /** Page numbers of the packet that is being given, and how many of them were. */
  readonly packetPages = new Float64Array(PACKET_PAGES_MAX)
  packetCount = 0
  packetDone = 0
  /** Bytes given so far: the position in the channel's stream. */
  position = 0

  constructor(migration: number, regions: PoolRegions) {
    this.migration = migration
    this.prediction = new Prediction(regions)
  }
}

/** Shared by all flows of a session, in the order of their batches. */
export class BatchExpander {
  private readonly kernel: Kernel
  private readonly bytes: Uint8Array
  private readonly regions: PoolRegions
  private readonly places: number
  private readonly seedLo: number
  private readonly seedHi: number
  observer: PageObserver | undefined
  private readonly numbers = new VarintReader('numbers')
  private readonly lengths = new VarintReader('lengths')
  private readonly sources = new VarintReader('sources')
  private readonly shifts = new VarintReader('shifts')
  private readonly opsReader = new VarintReader('ops')

  private flow!: FlowExpander
  private prediction!: Prediction
  private workspace!: Workspace
  private out = 0
  private outEnd = 0
  private other = 0
  private otherEnd = 0
  private literals = 0
  private literalsEnd = 0
  private dense = 0
  private denseEnd = 0
  private words = 0
  private wordsEnd = 0
  private headers = 0
  private headersEnd = 0

  /** @param seed of the batch checksum, two u32 */
  constructor(kernel: Kernel, seedLo: number, seedHi: number) {
    this.kernel = kernel
    this.bytes = kernel.bytes
    this.regions = PoolRegions.of(kernel.layout)
    this.places = kernel.layout.places
    this.seedLo = seedLo
    this.seedHi = seedHi
  }

  /**
   * Work that batches have cost so far, counted where it is done: bytes written and unpacked, and for each step what takes
   * as long as WORK_PER_STEP of them. At most some fixed multiple of the raw length and a constant, whatever a batch holds:
   * test/codec/work.test.ts.
   */
  work = 0

  /**
   * Expands the raw columns of `workspace` to exactly `rawLength` bytes at `out`, which must have that much room.
   * @param checksum 8 bytes as they came: big-endian u64
   * @throws BATCH_FORMAT or BATCH_CHECKSUM: the pool may differ from the peer's now, so the session must end
   */
  expand(flow: FlowExpander, workspace: Workspace, rawLength: number, checksum: Uint8Array, out: number): void {
    this.flow = flow
    this.prediction = flow.prediction
    this.workspace = workspace
    this.out = out
    this.outEnd = out + rawLength
    const at = workspace.columnAt
    const length = workspace.columnLength
    const end = (column: number): number => at[column]! + length[column]!
    this.numbers.reset(this.bytes, at[COLUMN.NUMBERS]!, end(COLUMN.NUMBERS))
    this.lengths.reset(this.bytes, at[COLUMN.LENGTHS]!, end(COLUMN.LENGTHS))
    this.sources.reset(this.bytes, at[COLUMN.SOURCES]!, end(COLUMN.SOURCES))
    this.shifts.reset(this.bytes, at[COLUMN.SHIFTS]!, end(COLUMN.SHIFTS))
    this.other = at[COLUMN.OTHER]!
    this.otherEnd = end(COLUMN.OTHER)
    this.literals = at[COLUMN.PAGES]!
    this.literalsEnd = end(COLUMN.PAGES)
    this.dense = at[COLUMN.DENSE]!
    this.denseEnd = end(COLUMN.DENSE)
    this.words = at[COLUMN.WORDS]!
    this.wordsEnd = end(COLUMN.WORDS)
    this.headers = at[COLUMN.HEADERS]!
    this.headersEnd = end(COLUMN.HEADERS)
    if (length[COLUMN.HEADERS]! % PACKET_HEADER_SIZE !== 0) throw this.bad('the column headers ends within a header')
    if (this.headers < this.headersEnd) restoreHeaders(this.bytes, this.headers, this.headersEnd)

    let op = at[COLUMN.OPS]!
    const opsEnd = end(COLUMN.OPS)
    const bytes = this.bytes
    let operationsLeft = operationsMax(rawLength)
    this.work += rawLength
    for (let column = 0; column < length.length; column++) this.work += length[column]!
    while (op < opsEnd) {
      if (operationsLeft-- === 0)
        throw this.bad(`more than ${operationsMax(rawLength)} operations for ${rawLength} bytes`)
      this.work += WORK_PER_STEP
      const byte = bytes[op++]!
      let count = byte & 15
      if (count === 0) {
        this.opsReader.reset(bytes, op, opsEnd)
        count = 16 + this.opsReader.next()
        op = this.opsReader.position
      }
      this.operation(byte >> 4, count)
    }
    if (this.out !== this.outEnd)
      throw this.bad(`its operations give ${this.outEnd - this.out} bytes less than it says`)
    if (
      !this.numbers.done ||
      !this.lengths.done ||
      !this.sources.done ||
      !this.shifts.done ||
      this.other !== this.otherEnd ||
      this.literals !== this.literalsEnd ||
      this.dense !== this.denseEnd ||
      this.words !== this.wordsEnd ||
      this.headers !== this.headersEnd
    )
      throw this.bad('a column is longer than its operations use')
    this.verify(rawLength, checksum, out)
    this.observer?.batch(flow.migration, flow.position, out, rawLength)
    flow.position += rawLength
  }

  private verify(rawLength: number, checksum: Uint8Array, out: number): void {
    const at = this.workspace.checksumAt
    this.kernel.checksum(out, rawLength, this.seedLo, this.seedHi, at)
    // the kernel writes lo then hi, little-endian words; the wire has one big-endian u64
    for (let i = 0; i < 8; i++) {
      if (this.bytes[at + 7 - i] !== checksum[i]) {
        throw new ProxyError(
          'BATCH_CHECKSUM',
          'a batch did not expand to the bytes that its checksum promises',
          { stream: 'channel', offset: this.flow.position },
          'nothing of it reached QEMU; the session ends and the source guest goes on; please report this',
        )
      }
    }
  }

  private operation(kind: number, count: number): void {
    const { flow, prediction } = this
    switch (kind) {
      case OP.ZERO: {
        this.outsidePacket()
        let left = count
        if (flow.named) {
          this.namedHead(0x02)
          this.room(1)
          this.bytes[this.out++] = 0
          this.advance(1)
          left--
        }
        if (left > 0) {
          this.room(left * 9)
          this.kernel.expandZeros(this.out, hi(prediction.page), lo(prediction.page), left)
          this.out += left * 9
          this.advance(left)
        }
        break
      }
      case OP.REF: {
        const v = this.numbers.next()
        const region = this.regions.regionIn(v)
        const slot = prediction.next[region]! + this.regions.deltaIn(v)
        if (!this.regions.hold(region, slot, count)) throw this.bad(`REF names slot ${slot}, outside its region`)
        let done = 0
        while (done < count) {
          const n = this.pageRun(count - done)
          const got = this.kernel.expandPages(
            this.out,
            hi(prediction.page),
            lo(prediction.page),
            slot + done,
            n,
            this.place(),
            this.flags,
          )
          this.gave(got, n, region !== REGION.TEMPLATES)
          done += n
        }
        prediction.next[region] = slot + count
        break
      }
      case OP.SAME: {
        let done = 0
        while (done < count) {
          const n = this.pageRun(count - done)
          const got = this.kernel.expandPages(
            this.out,
            hi(prediction.page),
            lo(prediction.page),
            0,
            n,
            this.place(),
            this.flags | EXPAND.FROM_PLACE,
          )
          if (got === FAILED) throw this.bad('SAME at a place that has received nothing')
          this.gave(got, n)
          done += n
        }
        break
      }
      case OP.NEW:
        this.literals = this.whole(count, this.literals, this.literalsEnd, 'pages')
        break
      case OP.DENSE:
        this.dense = this.whole(count, this.dense, this.denseEnd, 'dense')
        break
      case OP.WORDS: {
        const lag = this.numbers.next()
        if (lag >= LAG_MAX) throw this.bad(`WORDS with the lag ${lag}`)
        if (count * PAGE_SIZE > this.wordsEnd - this.words) throw this.bad('the column words ends early')
        const page = this.workspace.tokensAt
        for (let i = 0; i < count; i++, this.words += PAGE_SIZE) {
          this.kernel.joinWords(this.words, lag, page)
          this.whole(1, page, page + PAGE_SIZE, 'words')
        }
        break
      }
      case OP.PATCH:
        for (let i = 0; i < count; i++) this.patch()
        break
      case OP.FILL:
        for (let i = 0; i < count; i++) {
          const byte = this.numbers.next()
          if (byte > 255) throw this.bad(`FILL with ${byte}`)
          const n = this.pageRun(1)
          this.gave(this.kernel.expandFill(this.out, hi(prediction.page), lo(prediction.page), byte, n, this.flags), n)
        }
        break
      case OP.OTHER:
        if (count > this.otherEnd - this.other) throw this.bad('the column other ends early')
        this.room(count)
        this.bytes.copyWithin(this.out, this.other, this.other + count)
        this.out += count
        this.other += count
        break
      case OP.SKIP:
        this.outsidePacket()
        this.advance(count)
        break
      case OP.SEEK: {
        this.outsidePacket()
        this.once(count, 'SEEK')
        this.advance(unzigzag(this.numbers.next()))
        break
      }
      case OP.BLOCK: {
        this.outsidePacket()
        if (count > 2) throw this.bad(`BLOCK with the count ${count}`)
        const block = this.numbers.next()
        if (block >= prediction.names.count) throw this.bad(`BLOCK ${block} of ${prediction.names.count}`)
        prediction.block = block
        prediction.page = 0
        flow.named = count === 1
        break
      }
      case OP.DEFINE: {
        this.once(count, 'DEFINE')
        const length = this.numbers.next()
        if (length < 1 || length > 255 || length > this.otherEnd - this.other)
          throw this.bad(`DEFINE of ${length} bytes`)
        this.name(this.text(this.other, length))
        this.other += length
        break
      }
      case OP.PACKET:
        this.once(count, 'PACKET')
        this.packet()
        break
      case OP.PASS:
        if (count > flow.packetCount - flow.packetDone) throw this.bad('PASS of more pages than the packet owes')
        flow.packetDone += count
        break
      default:
        assert(kind === OP.EXTENDED, 'an operation of more than four bits')
        throw this.bad('an extended operation: the peer speaks a later version')
    }
  }

  /** Flags of the kernel's expand functions for the run that `pageRun` allowed. */
  private flags = 0

  /**
   * Prepares the heads of the next page run: writes a named head, or takes a page of the packet.
   * @returns how many pages of `left` one kernel call may give
   */
  private pageRun(left: number): number {
    const { flow, prediction } = this
    this.work += WORK_PER_STEP
    if (flow.packetDone < flow.packetCount) {
      prediction.page = flow.packetPages[flow.packetDone++]!
      this.flags = EXPAND.BARE
      this.room(PAGE_SIZE)
      return 1
    }
    if (flow.named) {
      this.namedHead(0x08)
      this.flags = EXPAND.BARE
      this.room(PAGE_SIZE)
      return 1
    }
    this.flags = 0
    // the kernel takes places that follow each other: cut where the table wraps
    const n = this.places === 0 ? left : Math.min(left, this.places - this.place())
    this.room(n * (PAGE_SIZE + 8))
    return n
  }

  /** Takes over what a kernel call gave. @param learn the pages are in no template set */
  private gave(bytes: number, pages: number, learn = false): void {
    if (bytes === FAILED) throw this.bad('a reference outside the pool')
    this.out += bytes
    if (learn && this.observer) {
      const step = bytes / pages
      for (let i = 0; i < pages; i++)
        this.observer.page(this.out - (pages - 1 - i) * step - PAGE_SIZE, this.prediction.page + i)
    }
    this.advance(pages)
  }

  private place(): number {
    return this.places === 0
      ? NONE
      : placeIndex(this.flow.migration, this.prediction.block, this.prediction.page, this.places)
  }

  /** NEW and DENSE. @returns the position behind the literals used */
  private whole(count: number, from: number, end: number, column: string): number {
    if (count * PAGE_SIZE > end - from) throw this.bad(`the column ${column} ends early`)
    const { prediction } = this
    let at = from
    let done = 0
    while (done < count) {
      const n = this.pageRun(count - done)
      this.gave(
        this.kernel.expandNew(this.out, hi(prediction.page), lo(prediction.page), at, n, this.place(), this.flags),
        n,
        true,
      )
      at += n * PAGE_SIZE
      done += n
    }
    return at
  }

  private patch(): void {
    const { prediction } = this
    const { next } = prediction
    const n = this.pageRun(1)
    const place = this.place()
    const base = place === NONE ? NONE : this.kernel.placeOf(place)
    let displacement = base === NONE ? Number.NaN : base * PAGE_SIZE
    const bytes = this.bytes
    const poolBytes = this.regions.pages * PAGE_SIZE
    let token = this.workspace.tokensAt
    let tokens = 0
    let copies = 0
    let literal = 0
    let lastRegion = -1
    let q = 0
    while (q < PAGE_SIZE) {
      const literalBytes = this.lengths.next()
      if (literalBytes > PAGE_SIZE - q || literal + literalBytes > this.literalsEnd - this.literals)
        throw this.bad('PATCH with a literal beyond its page or column')
      literal += literalBytes
      q += literalBytes
      let copy = 0
      let source = 0
      if (q < PAGE_SIZE) {
        copy = this.lengths.next()
        if (copies++ === PATCH_COPIES_MAX) throw this.bad(`PATCH with more than ${PATCH_COPIES_MAX} copies`)
        if (copy === 0 || copy > PAGE_SIZE - q) throw this.bad(`PATCH with a copy of ${copy} bytes at ${q}`)
        const v = this.sources.next()
        if (v === 0) source = displacement + q
        else {
          const region = this.regions.regionIn(v - 1)
          const slot = next[region]! + this.regions.deltaIn(v - 1)
          const shift = this.shifts.next()
          if (slot < 0 || shift >= PAGE_SIZE) throw this.bad('PATCH from outside the pool')
          source = slot * PAGE_SIZE + shift
          displacement = source - q
          next[region] = slot
          lastRegion = region
        }
        if (!(source >= 0 && source + copy <= poolBytes)) throw this.bad('PATCH from outside the pool')
        q += copy
      }
      bytes[token] = literalBytes & 255
      bytes[token + 1] = literalBytes >> 8
      bytes[token + 2] = copy & 255
      bytes[token + 3] = copy >> 8
      bytes[token + 4] = source & 255
      bytes[token + 5] = (source >>> 8) & 255
      bytes[token + 6] = (source >>> 16) & 255
      bytes[token + 7] = source >>> 24
      token += 8
      tokens++
    }
    this.work += tokens * WORK_PER_COPY
    if (lastRegion >= 0) next[lastRegion]!++
    const used = this.kernel.expandPatch(
      this.out,
      hi(prediction.page),
      lo(prediction.page),
      this.workspace.tokensAt,
      tokens,
      this.literals,
      place,
      this.flags,
    )
    if (used !== literal) throw this.bad('PATCH that does not make a page')
    this.literals += literal
    this.gave(this.flags & EXPAND.BARE ? PAGE_SIZE : PAGE_SIZE + 8, n, true)
  }

  private packet(): void {
    const flow = this.flow
    this.outsidePacket()
    if (this.headersEnd - this.headers < PACKET_HEADER_SIZE) throw this.bad('the column headers ends early')
    this.room(PACKET_HEADER_SIZE)
    const at = this.headers
    const bytes = this.bytes
    bytes.copyWithin(this.out, at, at + PACKET_HEADER_SIZE)
    this.out += PACKET_HEADER_SIZE
    this.headers += PACKET_HEADER_SIZE
    const view = new DataView(bytes.buffer, at, PACKET_HEADER_SIZE)
    const pages = view.getUint32(MULTIFD.NORMAL_PAGES_AT)
    flow.packetCount = 0
    flow.packetDone = 0
    if (pages === 0 || pages > PACKET_PAGES_MAX) return
    const nameAt = at + MULTIFD.BLOCK_AT
    let length = 0
    while (length < MULTIFD.BLOCK_LENGTH - 1 && bytes[nameAt + length] !== 0) length++
    const name = this.text(nameAt, length)
    const known = this.prediction.names.find(name)
    this.prediction.block = known >= 0 ? known : this.name(name)
    for (let i = 0, word = MULTIFD.OFFSETS_AT; i < pages; i++, word += 8) {
      // of the u64 the bits 12 to 51: halves, because all 64 do not fit a number
      flow.packetPages[i] = (view.getUint32(word) % 1048576) * 1048576 + (view.getUint32(word + 4) >>> 12)
    }
    flow.packetCount = pages
  }

  private name(name: string): number {
    this.work += name.length + WORK_PER_STEP
    const block = this.prediction.names.add(name)
    if (block < 0) throw this.bad('more names of RAMBlocks than a flow may have')
    return block
  }

  private text(at: number, length: number): string {
    return Buffer.from(this.bytes.buffer, at, length).toString('latin1')
  }

  /** Head of a record without CONTINUE, with its idstr. */
  private namedHead(flag: number): void {
    const { prediction } = this
    const name = prediction.names.at(prediction.block)
    this.room(9 + name.length)
    const view = new DataView(this.bytes.buffer, this.out, 8)
    view.setUint32(0, hi(prediction.page))
    view.setUint32(4, (lo(prediction.page) | flag) >>> 0)
    this.bytes[this.out + 8] = name.length
    Buffer.from(this.bytes.buffer, this.out + 9, name.length).write(name, 'latin1')
    this.out += 9 + name.length
    this.flow.named = false
  }

  private advance(pages: number): void {
    const page = this.prediction.page + pages
    if (page < 0 || page > PAGE_NUMBER_MAX) throw this.bad(`page number ${page}`)
    this.prediction.page = page
  }

  private room(bytes: number): void {
    if (bytes > this.outEnd - this.out) throw this.bad('its operations give more bytes than it says')
  }

  private outsidePacket(): void {
    if (this.flow.packetDone < this.flow.packetCount) throw this.bad('an operation that cannot stand within a packet')
  }

  private once(count: number, name: string): void {
    if (count !== 1) throw this.bad(`${name} with the count ${count}`)
  }

  private bad(what: string): ProxyError {
    return new ProxyError(
      'BATCH_FORMAT',
      `a batch breaks the format: ${what}`,
      { stream: 'channel', offset: this.flow.position },
      'the session ends and the source guest goes on; both proxies must run versions that fit',
    )
  }
}

/** High and low word of a page's byte offset. */
function hi(page: number): number {
  return Math.floor(page / 1048576)
}
function lo(page: number): number {
  return (page % 1048576) * PAGE_SIZE
}
