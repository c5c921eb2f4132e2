/**
 * A second decoder of what crosses the WAN, written from docs/protocol.md §4 to §9, src/kernel/HASH.md and
 * docs/template-format.md alone. It shares no code with src/, has everything in memory, and takes its time: whole
 * columns first, then operation by operation, page by page. Whatever the documents forbid is an Error.
 */
import { createHash } from 'node:crypto'
import { constants, crc32, zstdDecompressSync } from 'node:zlib'

const PAGE = 4096
const PACKET = 1344
/** Most raw bytes of each column. */
const COLUMN_MAX = [
  2 ** 20,
  2 ** 21,
  2 ** 20 + 65536,
  2 ** 20,
  2 ** 20,
  2 ** 20,
  2 ** 20,
  2 ** 20,
  2 ** 20 + 1344,
  2 ** 20,
  4096,
]
const COLUMNS = COLUMN_MAX.length
const ZERO_PAGE = Buffer.alloc(PAGE)

function need(condition: unknown, otherwise: string): asserts condition {
  if (!condition) throw new Error(otherwise)
}

/** Bytes that are read from front to back. */
class Bytes {
  readonly all: Buffer
  readonly name: string
  at = 0
  constructor(all: Uint8Array, name: string) {
    this.all = Buffer.from(all.buffer, all.byteOffset, all.length)
    this.name = name
  }
  get left(): number {
    return this.all.length - this.at
  }
  take(count: number): Buffer {
    need(count <= this.left, `${this.name} ends early`)
    this.at += count
    return this.all.subarray(this.at - count, this.at)
  }
  u8 = () => this.take(1).readUInt8()
  u16 = () => this.take(2).readUInt16BE()
  u32 = () => this.take(4).readUInt32BE()
  u48 = () => this.take(6).readUIntBE(0, 6)
  u64 = () => this.take(8).readBigUInt64BE()
  varint(): number {
    let value = 0n
    for (let count = 0n; count < 8n; count++) {
      const byte = this.u8()
      value += BigInt(byte % 128) << (7n * count)
      if (byte >= 128) continue
      need(byte > 0 || count === 0n, `${this.name}: not the shortest form`)
      need(value < 2n ** 53n, `${this.name}: 2^53 or more`)
      return Number(value)
    }
    throw new Error(`${this.name}: more than 8 bytes`)
  }
}

const unzigzag = (v: number) => (v % 2 === 0 ? v / 2 : -(v + 1) / 2)

// ---- HASH.md

const P1 = 0x9e3779b1
const P2 = 0x85ebca77
const P3 = 0xc2b2ae3d
const P4 = 0x27d4eb2f
const times = (a: number, b: number) => Math.imul(a, b) >>> 0
const mixed = (x: number, shift: number) => (x ^ (x >>> shift)) >>> 0
const FIXED_KEY = Array.from({ length: 64 }, (_, i) => {
  const x = times(mixed(times(i + 1, 0x9e3779b1), 16), 0x85ebca6b)
  return mixed(times(mixed(x, 13), 0xc2b2ae35), 16)
})

/** H under the fixed key as one u64: hi, then lo. `seed` likewise. */
export function checksum(bytes: Uint8Array, seed: bigint): bigint {
  const key = FIXED_KEY
  const seeds = [Number(seed & 0xffffffffn), Number(seed >> 32n)]
  const a = new Uint32Array(32)
  const x = new Uint32Array(32)
  for (let l = 0; l < 32; l++) a[l] = key[l]! ^ seeds[l % 2]!
  for (let at = 0; at < bytes.length; at += 128) {
    const block = Buffer.from(bytes.buffer, bytes.byteOffset + at, Math.min(128, bytes.length - at))
    const padded = block.length === 128 ? block : Buffer.concat([block, Buffer.alloc(128 - block.length)])
    for (let l = 0; l < 32; l++) x[l] = padded.readUInt32LE(4 * l)
    for (let l = 0; l < 32; l++) a[l] = mixed(times(a[l]! ^ x[l]!, P1), 15) + x[l ^ 4]!
  }
  const b = Array.from(a, (lane, l) => mixed(times(lane ^ key[32 + l]!, P2), 13))
  const join = (u: number, v: number) => (mixed(times(u, P3), 16) + v) >>> 0
  const c = Array.from({ length: 16 }, (_, l) => join(b[l]!, b[l + 16]!))
  const d = Array.from({ length: 8 }, (_, l) => join(c[l]!, c[l + 8]!))
  let lo = times(bytes.length, P3)
  let hi = (bytes.length + P4) >>> 0
  for (let j = 0; j < 4; j++) {
    lo = mixed(times(lo ^ d[j]!, P1), 15)
    hi = mixed(times(hi ^ d[j + 4]!, P2), 13)
  }
  hi = mixed(times(mixed((hi + times(lo, P4)) >>> 0, 15), P2), 13)
  lo = mixed(times(mixed((lo + times(hi, P3)) >>> 0, 16), P1), 15)
  hi = (hi + lo) >>> 0
  if (lo === 0 && hi === 0) lo = 1
  return (BigInt(hi) << 32n) + BigInt(lo)
}

// ---- columns

/** One LZ4 block of exactly `length` bytes. https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md */
function unlz4(block: Buffer, length: number): Buffer {
  const from = new Bytes(block, 'an LZ4 block')
  const out = Buffer.alloc(length)
  let at = 0
  const counted = (nibble: number): number => {
    let count = nibble
    for (let more = nibble === 15; more; ) {
      const byte = from.u8()
      count += byte
      more = byte === 255
    }
    return count
  }
  for (;;) {
    const token = from.u8()
    const literals = from.take(counted(token >> 4))
    need(at + literals.length <= length, 'an LZ4 block gives too much')
    out.set(literals, at)
    at += literals.length
    if (from.left === 0) break
    const offset = from.take(2).readUInt16LE()
    const match = 4 + counted(token & 15)
    need(offset > 0 && offset <= at && at + match <= length, 'an LZ4 match outside the block')
    for (let i = 0; i < match; i++, at++) out[at] = out[at - offset]!
  }
  need(at === length, 'an LZ4 block gives too little')
  return out
}

interface Column {
  readonly column: number
  readonly method: number
  readonly rawLength: number
  readonly packed: Buffer
}

interface Batch {
  readonly rawLength: number
  readonly checksum: bigint
  readonly columns: readonly Column[]
}

/** Head, table, columns. */
function readBatch(bytes: Uint8Array): Batch {
  const from = new Bytes(bytes, 'a batch')
  need(from.u8() === 1, 'a batch of another format')
  const rawLength = from.varint()
  need(rawLength >= 1 && rawLength <= 1 << 20, `a batch of ${rawLength} bytes`)
  const promised = from.u64()
  const table: { column: number; method: number; rawLength: number; packedLength: number }[] = []
  for (let n = from.u8(); n > 0; n--) {
    const column = from.u8()
    const method = from.u8()
    const raw = from.varint()
    table.push({ column, method, rawLength: raw, packedLength: method === 0 ? raw : from.varint() })
    need(column < COLUMNS && method <= 3 && column > (table.at(-2)?.column ?? -1), 'a table out of order')
    need(raw >= 1 && raw <= Math.min(COLUMN_MAX[column]!, 1024 + 2 * rawLength), 'a column of another size')
    need(table.at(-1)!.packedLength <= raw + Math.floor(raw / 256) + 64, 'a column packed to more than it is')
  }
  const columns = table.map(entry => ({ ...entry, packed: from.take(entry.packedLength) }))
  need(from.left === 0, 'bytes behind a batch')
  return { rawLength, checksum: promised, columns }
}

/** How long a zstd frame is that begins with `bytes`; undefined: they end within it. RFC 8878. */
function frameLength(bytes: Buffer): number | undefined {
  const descriptor = bytes[4]!
  const single = (descriptor >> 5) % 2
  const sizeField = [single, 2, 4, 8][descriptor >> 6]!
  let at = 5 + (1 - single) + [0, 1, 2, 4][descriptor % 4]! + sizeField
  for (let last = false; !last; ) {
    if (at + 3 > bytes.length) return undefined
    const head = bytes.readUIntLE(at, 3)
    last = head % 2 === 1
    at += 3 + ((head >> 1) % 4 === 1 ? 1 : head >> 3) // a run of one byte, or so many bytes
  }
  return at + 4 * ((descriptor >> 2) % 2)
}

/** The raw columns of each batch. zstd frames are put together first and unpacked in one go. */
function unpack(batches: readonly Batch[]): Buffer[][] {
  const raw = batches.map(() => new Array<Buffer>(COLUMNS).fill(Buffer.alloc(0)))
  let streamsBegun = 0
  let passed = 0
  for (const { rawLength, columns } of batches) {
    passed += rawLength
    streamsBegun += columns.filter(({ method }) => method === 3).length
    need(streamsBegun <= 64 + Math.floor(passed / 16384), 'more zstd streams than the bytes allow')
  }
  for (let column = 0; column < COLUMNS; column++) {
    const streams: { batch: number; entry: Column }[][] = []
    batches.forEach((batch, i) => {
      const entry = batch.columns.find(one => one.column === column)
      if (entry === undefined) return
      if (entry.method === 0) raw[i]![column] = entry.packed
      if (entry.method === 1) raw[i]![column] = unlz4(entry.packed, entry.rawLength)
      if (entry.method === 3) streams.push([])
      if (entry.method >= 2) {
        need(streams.length > 0, 'a zstd stream that never began')
        streams.at(-1)!.push({ batch: i, entry })
      }
    })
    for (const pieces of streams) {
      const length = pieces.reduce((sum, { entry }) => sum + entry.rawLength, 0)
      const ends = new Set<number>()
      let packedLength = 0
      for (const { entry } of pieces) {
        packedLength += entry.packed.length
        ends.add(packedLength)
      }
      const packed = Buffer.concat(pieces.map(({ entry }) => entry.packed))
      const frames: Buffer[] = []
      for (let from = 0; from < packed.length; ) {
        const size = frameLength(packed.subarray(from)) ?? packed.length - from
        need(ends.has(from + size), 'a zstd frame ends within a piece')
        frames.push(
          zstdDecompressSync(packed.subarray(from, from + size), {
            finishFlush: constants.ZSTD_e_flush,
            maxOutputLength: Math.max(length, 1),
            params: { [constants.ZSTD_d_windowLogMax]: column === 3 || column === 9 ? 23 : 18 },
          }),
        )
        from += size
      }
      const out = Buffer.concat(frames)
      need(out.length === length, 'a zstd stream gives another length')
      let at = 0
      for (const { batch, entry } of pieces) {
        raw[batch]![column] = out.subarray(at, at + entry.rawLength)
        at += entry.rawLength
      }
    }
  }
  return raw
}

// ---- pool

/** What both sides agreed on, with the pages of the sets in their order. */
export interface SecondTerms {
  readonly seed: bigint
  readonly templates: readonly Uint8Array[]
  readonly ring: number
  readonly places: number
  /** Pages of the cold sets. */
  readonly cold?: readonly Uint8Array[]
  /** The feature `disks` was agreed. */
  readonly disks?: boolean
  /** Blocks that are kept: with the feature `kept-blocks`. */
  readonly kept?: number
}

export class SecondPool {
  readonly slots: Buffer[]
  readonly marks: boolean[]
  readonly places = new Map<number, number>()
  readonly placeCount: number
  readonly templatePages: number
  cursor = 0
  /** Blocks kept so far. */
  readonly kept: Buffer[] = []

  constructor(terms: SecondTerms) {
    this.templatePages = terms.templates.length
    this.slots = [...terms.templates.map(page => Buffer.from(page)), ...new Array<Buffer>(terms.ring).fill(ZERO_PAGE)]
    this.marks = new Array<boolean>(terms.ring).fill(false)
    this.placeCount = terms.places
  }
  /** Gives its slot, undefined where there is no ring. */
  insert(page: Buffer): number | undefined {
    const ring = this.marks.length
    if (ring === 0) return undefined
    for (; this.marks[this.cursor]; this.cursor = (this.cursor + 1) % ring) this.marks[this.cursor] = false
    const slot = this.templatePages + this.cursor
    this.slots[slot] = Buffer.from(page)
    this.cursor = (this.cursor + 1) % ring
    return slot
  }
  touch(slot: number): void {
    if (slot >= this.templatePages) this.marks[slot - this.templatePages] = true
  }
  private place(flow: SecondFlow): number {
    const index = BigInt(flow.page) + BigInt(flow.block) * 0x9e3779b1n + BigInt(flow.migration) * 0x85ebca6bn
    return Number((index % 2n ** 32n) % BigInt(this.placeCount))
  }
  at(flow: SecondFlow): number | undefined {
    return this.placeCount === 0 ? undefined : this.places.get(this.place(flow))
  }
  receive(flow: SecondFlow, slot: number | undefined): void {
    if (this.placeCount === 0) return
    if (slot === undefined) this.places.delete(this.place(flow))
    else this.places.set(this.place(flow), slot)
  }
  /** A stretch of the pool, which may cross pages. */
  copy(from: number, count: number): Buffer {
    need(from >= 0 && from + count <= this.slots.length * PAGE, 'a copy from outside the pool')
    const parts: Buffer[] = []
    for (let at = from; at < from + count; ) {
      const shift = at % PAGE
      const part = this.slots[Math.floor(at / PAGE)]!.subarray(shift, shift + from + count - at)
      parts.push(part)
      at += part.length
    }
    return Buffer.concat(parts)
  }
}

// ---- operations

interface SecondFlow {
  readonly migration: number
  readonly names: Buffer[]
  block: number
  page: number
  named: boolean
  readonly next: [number, number]
  cold: number
  /** Page numbers that the packet still owes. */
  owed: number[]
  /** §9: what EXPORT said, the message before, and blocks that it still owes. */
  disk: SecondDisk | undefined
  blocks: number
}

interface SecondDisk {
  readonly form: number
  readonly export: number
  type: bigint
  cookie: bigint
  offset: bigint
  length: bigint
  next: bigint
}

const LOW = 0xffffffffn
const MAGICS = ['', '25609513', '21e41c71', '67446698', '668e33ef', '6e8a278c']

/** The next message: its head, and how many bytes of data it brings. */
function nextMessage(disk: SecondDisk, numbers: Bytes): { head: Buffer; data: bigint } {
  const { form } = disk
  const bits = numbers.varint()
  need(bits < 2 ** [0, 6, 7, 6, 6, 9][form]!, 'a word that the form does not have')
  /** A word, of which `i` is the bit. */
  const word = (i: number, expected: bigint): bigint => {
    if (Math.floor(bits / 2 ** i) % 2 === 0) return expected
    const v = numbers.varint()
    need(v < 2 ** 32, 'a difference of more than 32 bits')
    return BigInt.asUintN(32, expected + BigInt(unzigzag(v)))
  }
  const pair = (i: number, low: bigint, high: bigint): bigint => {
    const one = word(i, low)
    return one + (word(i + 1, high) << 32n)
  }
  disk.type = word(0, disk.type)
  disk.cookie = pair(1, BigInt.asUintN(32, disk.cookie + 1n), disk.cookie >> 32n)
  disk.offset = pair(3, disk.next & LOW, disk.next >> 32n)
  disk.length = pair(5, disk.length & LOW, disk.length >> 32n)
  const asked = pair(7, disk.offset & LOW, disk.offset >> 32n)
  disk.next = BigInt.asUintN(64, disk.offset + disk.length)
  const hex = (value: bigint, digits: number) =>
    BigInt.asUintN(4 * digits, value)
      .toString(16)
      .padStart(digits, '0')
  const start = MAGICS[form]! + hex(disk.type, 8) + hex(disk.cookie, 16)
  const [offset, length] = [hex(disk.offset, 16), disk.length]
  const rest = [
    '',
    offset + hex(length, 8),
    offset + hex(length, 16),
    '',
    hex(length + 8n, 8) + offset,
    hex(asked, 16) + hex(length + 8n, 16) + offset,
  ][form]!
  const data = form > 2 || disk.type % 65536n === 1n ? length : 0n
  need(data === 0n || disk.offset + data <= 2n ** 52n, 'data beyond the last block that has a number')
  return { head: Buffer.from(start + rest, 'hex'), data }
}

function restorePackets(column: Buffer): Buffer {
  need(column.length % PACKET === 0, 'headers end within a packet')
  const count = column.length / PACKET
  const out = Buffer.alloc(column.length)
  for (let packet = 0; packet < count; packet++) {
    const header = out.subarray(packet * PACKET, (packet + 1) * PACKET)
    for (let i = 0; i < PACKET; i++) header[i] = column[i * count + packet]!
    for (let at = 328; at < 320 + 8 * 128; at += 8) {
      const sum = header.readBigUInt64BE(at) + header.readBigUInt64BE(at - 8)
      header.writeBigUInt64BE(BigInt.asUintN(64, sum), at)
    }
  }
  return out
}

/** The bytes of one batch out of its raw columns. */
function expand(
  pool: SecondPool,
  { cold: coldPages = [], disks = false, kept: keptMax = 0 }: SecondTerms,
  flow: SecondFlow,
  raw: readonly Buffer[],
  rawLength: number,
): Buffer {
  const names = [
    'ops',
    'numbers',
    'other',
    'pages',
    'dense',
    'lengths',
    'sources',
    'shifts',
    'headers',
    'words',
    'cold',
  ]
  const columns = raw.map((bytes, i) => new Bytes(i === 8 ? restorePackets(bytes) : bytes, names[i]!))
  const [ops, numbers, other, pages, dense, lengths, sources, shifts, headers, words, cold] = columns as [
    Bytes,
    Bytes,
    Bytes,
    Bytes,
    Bytes,
    Bytes,
    Bytes,
    Bytes,
    Bytes,
    Bytes,
    Bytes,
  ]
  const fetched: Buffer[] = []
  while (cold.left > 0) {
    const first = flow.cold + unzigzag(cold.varint())
    flow.cold = first + cold.varint() + 1
    need(fetched.length + flow.cold - first <= rawLength / PAGE, 'more cold pages than the batch can hold')
    need(first >= 0 && flow.cold <= coldPages.length + keptMax, 'a cold page that no set has')
    for (let i = first; i < flow.cold; i++) {
      const place = i - coldPages.length
      const body = place < 0 ? coldPages[i] : pool.kept.findLast((_, k) => k % keptMax === place)
      need(body, 'a block that was never kept')
      fetched.push(Buffer.from(body))
    }
  }
  const out: Buffer[] = []
  let length = 0
  const give = (bytes: Buffer): void => {
    length += bytes.length
    need(length <= rawLength, 'more bytes than the batch says')
    out.push(bytes)
  }
  const outside = () => need(flow.owed.length + flow.blocks === 0, 'not while pages are owed')
  const goTo = (page: number): void => {
    need(page >= 0 && page <= 2 ** 40, `page number ${page}`)
    flow.page = page
  }
  /** Of the page at hand. */
  let isBlock = false
  const head = (flag: number): void => {
    isBlock = flow.blocks > 0
    if (flow.blocks > 0) {
      flow.blocks--
      return
    }
    if (flow.owed.length > 0) {
      flow.page = flow.owed.shift()!
      return
    }
    const word = Buffer.alloc(8)
    word.writeBigUInt64BE((BigInt(flow.page) << 12n) + BigInt(flag + (flow.named ? 0 : 0x20)))
    give(word)
    if (!flow.named) return
    const name = flow.names[flow.block]!
    give(Buffer.of(name.length))
    give(name)
    flow.named = false
  }
  const page = (bytes: Buffer): void => {
    give(bytes)
    goTo(flow.page + 1)
  }
  const message = (): void => {
    outside()
    need(flow.disk, 'a message before an export')
    const { head, data } = nextMessage(flow.disk, numbers)
    give(head)
    const { offset } = flow.disk
    const first = (offset + 4095n) / 4096n
    const behind = (offset + data) / 4096n
    if (behind <= first) return
    flow.blocks = Number(behind - first)
    flow.block = flow.disk.export
    flow.page = Number(first)
    flow.named = false
  }
  const patch = (): Buffer => {
    const base = pool.at(flow)
    let d = base === undefined ? undefined : base * PAGE
    const parts: Buffer[] = []
    let last: 0 | 1 | undefined
    let copies = 0
    for (let q = 0; q < PAGE; ) {
      const literal = lengths.varint()
      need(literal <= PAGE - q, 'a literal beyond its page')
      parts.push(pages.take(literal))
      q += literal
      if (q === PAGE) break
      const count = lengths.varint()
      need(count >= 1 && count <= PAGE - q, 'a copy beyond its page')
      const v = sources.varint()
      if (v > 0) {
        last = ((v - 1) % 2) as 0 | 1
        const slot = flow.next[last] + unzigzag(Math.floor((v - 1) / 2))
        const shift = shifts.varint()
        need(slot >= 0 && shift < PAGE, 'a copy from outside the pool')
        d = slot * PAGE + shift - q
        flow.next[last] = slot
      }
      need(d !== undefined, 'a copy from a place that received nothing')
      need(++copies <= 512, 'a page of more than 512 copies')
      parts.push(pool.copy(d + q, count))
      pool.touch(Math.floor((d + q) / PAGE))
      q += count
    }
    if (last !== undefined) flow.next[last]++
    return Buffer.concat(parts)
  }
  let keeps = false
  const keptNow: Buffer[] = []
  const literal = (bytes: Buffer, isNew = true): void => {
    if (keeps && isNew && isBlock) keptNow.push(Buffer.from(bytes))
    pool.receive(flow, pool.insert(bytes))
    page(bytes)
  }
  /** Differences of words, their bytes apart. */
  const wordsPage = (lag: number): Buffer => {
    const apart = words.take(PAGE)
    const made = Buffer.alloc(PAGE)
    for (let i = 0; i < PAGE / 4; i++) {
      const difference = Buffer.of(apart[i]!, apart[1024 + i]!, apart[2048 + i]!, apart[3072 + i]!).readUInt32LE()
      const before = lag > 0 && i >= lag ? made.readUInt32LE(4 * (i - lag)) : 0
      made.writeUInt32LE((difference + before) % 2 ** 32, 4 * i)
    }
    return made
  }
  /** Appends a name. @returns its index */
  const define = (name: Buffer): number => {
    flow.names.push(Buffer.from(name))
    const bytes = flow.names.reduce((sum, known) => sum + known.length + 32, 0)
    need(bytes <= 32768, 'too many names')
    return flow.names.length - 1
  }
  const packet = (): void => {
    const header = headers.take(PACKET)
    give(header)
    const count = header.readUInt32BE(16)
    if (count < 1 || count > 128) return
    const end = header.indexOf(0, 64)
    const name = header.subarray(64, end < 0 ? 319 : Math.min(end, 319))
    flow.block = flow.names.findIndex(known => known.equals(name))
    if (flow.block < 0) flow.block = define(name)
    for (let i = 0; i < count; i++) {
      flow.owed.push(Number((header.readBigUInt64BE(320 + 8 * i) / 4096n) % 2n ** 40n))
    }
  }

  for (let operations = 1; ops.left > 0; operations++) {
    need(operations <= 256 + Math.floor(rawLength / 3), 'more operations than the bytes allow')
    const op = ops.u8()
    const count = op % 16 === 0 ? 16 + ops.varint() : op % 16
    const each = (work: () => void): void => {
      for (let i = 0; i < count; i++) work()
    }
    switch (op >> 4) {
      case 0: {
        const extended = ops.u8()
        need(extended <= (keptMax > 0 ? 4 : disks ? 3 : 1), 'an extended operation that nobody knows')
        if (extended === 4) {
          need(count === 1, 'KEEP with a count')
          keeps = true
          break
        }
        if (extended === 3) {
          each(message)
          break
        }
        if (extended === 2) {
          outside()
          need(count === 1, 'EXPORT with a count')
          const [form, number] = [numbers.varint(), numbers.varint()]
          need(form >= 1 && form <= 5 && number < 2 ** 31, 'EXPORT of something else')
          flow.disk = { form, export: number, type: 0n, cookie: 0n, offset: 0n, length: 0n, next: 0n }
          flow.block = number
          flow.page = 0
          flow.named = false
          break
        }
        each(() => {
          const body = fetched.shift()
          need(body, 'a cold page that was not named')
          head(0x08)
          if (extended === 0) literal(body, false)
          else {
            pool.receive(flow, undefined)
            page(body)
          }
        })
        break
      }
      case 1:
        if (flow.blocks > 0) {
          need(count <= flow.blocks, 'ZERO of more blocks than are owed')
          each(() => {
            head(0)
            page(ZERO_PAGE)
          })
          break
        }
        outside()
        each(() => {
          head(0x02)
          page(Buffer.of(0))
        })
        break
      case 2: {
        const v = numbers.varint()
        const region = (v % 2) as 0 | 1
        let slot = flow.next[region] + unzigzag(Math.floor(v / 2))
        const [from, to] = region === 0 ? [0, pool.templatePages] : [pool.templatePages, pool.slots.length]
        need(slot >= from && slot + count <= to, 'a REF outside its region')
        each(() => {
          head(0x08)
          pool.touch(slot)
          pool.receive(flow, slot)
          page(pool.slots[slot]!)
          slot++
        })
        flow.next[region] = slot
        break
      }
      case 3:
        each(() => {
          head(0x08)
          const slot = pool.at(flow)
          need(slot !== undefined, 'a SAME at a place that received nothing')
          pool.touch(slot)
          page(pool.slots[slot]!)
        })
        break
      case 4:
        each(() => {
          head(0x08)
          literal(pages.take(PAGE))
        })
        break
      case 5:
        each(() => {
          head(0x08)
          literal(dense.take(PAGE))
        })
        break
      case 6:
        each(() => {
          head(0x08)
          literal(patch())
        })
        break
      case 7:
        each(() => {
          head(0x08)
          const byte = numbers.varint()
          need(byte < 256, 'a FILL with more than a byte')
          page(Buffer.alloc(PAGE, byte))
        })
        break
      case 8:
        give(other.take(count))
        break
      case 9:
        outside()
        goTo(flow.page + count)
        break
      case 10:
        outside()
        need(count === 1, 'SEEK with a count')
        goTo(flow.page + unzigzag(numbers.varint()))
        break
      case 11:
        outside()
        need(count <= 2, 'BLOCK with a count')
        flow.block = numbers.varint()
        need(flow.block < flow.names.length, 'a RAMBlock without a name')
        flow.page = 0
        flow.named = count === 1
        break
      case 12: {
        need(count === 1, 'DEFINE with a count')
        const size = numbers.varint()
        need(size >= 1 && size <= 255, 'a name of another length')
        define(other.take(size))
        break
      }
      case 13:
        outside()
        need(count === 1, 'PACKET with a count')
        packet()
        break
      case 14:
        if (flow.blocks > 0) {
          need(count <= flow.blocks, 'PASS of more than the message owes')
          flow.blocks -= count
          goTo(flow.page + count)
          break
        }
        need(count <= flow.owed.length, 'PASS of more than the packet owes')
        flow.owed.splice(0, count)
        break
      case 15: {
        const lag = numbers.varint()
        need(lag < 1024, 'WORDS with such a lag')
        each(() => {
          head(0x08)
          literal(wordsPage(lag))
        })
        break
      }
      default:
        throw new Error(`operation ${op >> 4}`)
    }
  }
  need(length === rawLength, 'fewer bytes than the batch says')
  need(fetched.length === 0, 'cold pages that are not used')
  for (const column of columns) need(column.left === 0, `${column.name} is not used up`)
  pool.kept.push(...keptNow)
  return Buffer.concat(out)
}

/** A batch as it was sent, and the flow it belongs to. */
export interface SentBatch {
  readonly flow: number
  readonly migration: number
  readonly bytes: Uint8Array
}

/**
 * All batches of a session in their order. Gives what came out of each, and the pool as it is then.
 * @param verify whether checksums must be right
 */
export function decodeSession(
  terms: SecondTerms,
  sent: readonly SentBatch[],
  verify = true,
): { outputs: Buffer[]; pool: SecondPool } {
  const pool = new SecondPool(terms)
  const flows = new Map<number, SecondFlow>()
  const batches = sent.map(({ bytes }) => readBatch(bytes))
  const raw = unpack(batches)
  const outputs = sent.map(({ flow: number, migration }, i) => {
    let flow = flows.get(number)
    if (flow === undefined) {
      flow = {
        migration,
        names: [],
        block: 0,
        page: 0,
        named: false,
        next: [0, terms.templates.length],
        cold: 0,
        owed: [],
        disk: undefined,
        blocks: 0,
      }
      flows.set(number, flow)
    }
    const batch = batches[i]!
    const bytes = expand(pool, terms, flow, raw[i]!, batch.rawLength)
    need(!verify || checksum(bytes, terms.seed) === batch.checksum, `batch ${i} has another checksum`)
    return bytes
  })
  return { outputs, pool }
}

// ---- template-format.md

/** The pages of a set file, verified. */
export function readSet(file: Buffer): Buffer[] {
  need(file.subarray(0, 8).equals(Buffer.from('\x89PFSET\r\n', 'latin1')), 'not a set')
  need(file.readUInt32BE(8) === 1 && file.readUInt32BE(12) === PAGE, 'another version')
  const count = Number(file.readBigUInt64BE(16))
  const sealAt = 32 + file.readUInt32BE(24) + 40 * count
  const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest()
  need(sha256(file.subarray(0, sealAt)).equals(file.subarray(sealAt, sealAt + 32)), 'a broken seal')
  const pagesAt = Math.ceil((sealAt + 32) / PAGE) * PAGE
  need(file.length === pagesAt + count * PAGE, 'another length')
  return Array.from({ length: count }, (_, i) => {
    const page = file.subarray(pagesAt + i * PAGE, pagesAt + (i + 1) * PAGE)
    const record = sealAt - 40 * (count - i)
    need(sha256(page).equals(file.subarray(record, record + 32)), 'a damaged page')
    return page
  })
}

// ---- §8

interface FileHello {
  readonly sets: string[]
  readonly cold?: string[]
  readonly ring: number
  readonly places: number
  readonly seed: string
  readonly token: null
}

/** The bytes that `pageferry encode` was given. @param setOf gives the file of a set by its digest */
export function decodeFile(file: Uint8Array, setOf: (digest: string) => Buffer = () => Buffer.alloc(0)): Buffer {
  const from = new Bytes(file, 'the file')
  need(from.take(8).toString('hex') === '504746590d0a1a0a', 'no magic')
  need(from.u16() === 1, 'another major version')
  from.u16()
  const hello = JSON.parse(from.take(from.u32()).toString('utf8')) as FileHello
  need(hello.token === null, 'a file opens a session')
  need(
    hello.ring <= 2 ** 22 && hello.places <= 2 ** 26 && Number.isInteger(Math.log2(hello.places || 1)),
    'a wrong pool',
  )
  const sent: SentBatch[] = []
  let parts: Buffer[] = []
  let migration: number | undefined
  let fin = false
  let bye = false
  for (let sequence = 1; from.left > 0; ) {
    need(!bye, 'frames behind BYE')
    const start = from.at
    const [type, flags, flow, length, number] = [from.u8(), from.u8(), from.u16(), from.u16(), from.u48()]
    const check = crc32(from.all.subarray(start, start + 12))
    const promised = from.u32()
    const payload = from.take(length)
    need(promised === (type === 3 ? check : crc32(payload, check)), `frame at ${start} is damaged`)
    const numbered = type < 16 || (type >= 128 && number > 0)
    need(number === (numbered ? sequence++ : 0), `frame at ${start} out of sequence`)
    if (type >= 128) continue // of a later version
    if (type === 19) {
      need(payload.readUInt16BE(0) === 0 && fin, 'BYE before the end')
      bye = true
      continue
    }
    need(flow === 1 && !fin, `frame at ${start} of another flow`)
    if (type === 1) {
      need(migration === undefined, 'a second OPEN')
      const open = JSON.parse(payload.toString('utf8')) as { target: string; migration: number }
      need(open.target === 'file' && open.migration === 1, 'another target')
      migration = open.migration
    } else if (type === 3) {
      need(migration !== undefined && length > 0, 'a batch before OPEN')
      parts.push(payload)
      if (flags & 1) {
        need(length === 16368, 'a part that is too short')
        continue
      }
      sent.push({ flow, migration, bytes: Buffer.concat(parts) })
      parts = []
    } else if (type === 4) {
      need(migration !== undefined && parts.length === 0, 'FIN within a batch')
      fin = true
    } else throw new Error(`a frame of type ${type}`)
  }
  need(bye, 'the file ends early')
  const { outputs } = decodeSession(
    {
      seed: BigInt(`0x${hello.seed}`),
      templates: hello.sets.flatMap(digest => readSet(setOf(digest))),
      cold: (hello.cold ?? []).flatMap(digest => readSet(setOf(digest))),
      ring: hello.ring,
      places: hello.places,
    },
    sent,
  )
  return Buffer.concat(outputs)
}
