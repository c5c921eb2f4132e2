/** Makers of inputs: pages, migration streams, captures of them. Not by the code under test. */

import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { random } from '../../scripts/harness/random.ts'
import { isProxyError } from '../../src/errors.ts'
import type { TemplateStore } from '../../src/store/template-store.ts'
import { encodeHead, type SetMetadata, type SetRecords } from '../../src/template/format.ts'

export { random }

export const PAGE = 4096
const BLOCK = 'pc.ram'

/** The page of this number: pages of different numbers differ, of the same number do not; 0 is the zero page. */
export function page(id: number): Buffer {
  const bytes = Buffer.alloc(PAGE)
  if (id === 0) return bytes
  const next = random(id)
  for (let at = 0; at < PAGE; at += 256) bytes.writeUInt32LE(next(2 ** 32), at)
  bytes.writeUInt32LE(id, 8)
  return bytes
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** What an operation throws, as `CODE at offset`, or undefined. */
export async function failure(operation: () => unknown): Promise<string | undefined> {
  try {
    await operation()
    return undefined
  } catch (error) {
    if (!isProxyError(error)) throw error
    return error.where?.offset === undefined ? error.code : `${error.code} at ${error.where.offset}`
  }
}

/** Records of these pages, all in as many VMs and as often. */
export function recordsOf(pages: readonly Buffer[], vms = 2, occurrences = vms): SetRecords {
  return {
    count: pages.length,
    vms: () => vms,
    occurrences: () => occurrences,
    copyDigest: (place, into, at) => into.set(Buffer.from(sha256(pages[place]!), 'hex'), at),
  }
}

/** A whole set file. */
export function setBytes(pages: readonly Buffer[], metadata: SetMetadata = { minVms: 2, vms: 2 }): Buffer {
  return Buffer.concat([...encodeHead(metadata, recordsOf(pages)), ...pages])
}

/** Puts these pages as a set. @returns its digest */
export async function putPages(store: TemplateStore, pages: readonly Buffer[]): Promise<string> {
  const { digest } = await store.put({ minVms: 2, vms: 2 }, recordsOf(pages), async function* () {
    yield* pages
  })
  return digest
}

/** A whole main stream: these pages as PAGE records, in PARTs of 100, with zero pages between, and what follows RAM. */
export function migration(pages: Iterable<Buffer>, end = true): Buffer {
  const all = [...pages]
  const blocks = [{ idstr: BLOCK, lengthBytes: (2 * all.length + 2) * PAGE }]
  const stream = new StreamEmitter().header().ramStart(2, blocks).eos().footer(2)
  let named = false
  for (let from = 0; from < all.length; from += 100) {
    stream.sectionPart(2)
    for (let i = from; i < Math.min(from + 100, all.length); i++) {
      stream.page(2 * i * PAGE, all[i]!, named ? undefined : BLOCK)
      named = true
      if (i % 7 === 0) stream.zero((2 * i + 1) * PAGE)
    }
    stream.eos().footer(2)
  }
  if (end)
    stream.sectionEnd(2).eos().footer(2).sectionFull(5, 'timer', 0, 2).raw(Buffer.alloc(900, 1)).footer(5).eof('{}')
  return Buffer.from(stream.bytes())
}

/** A hello and uncompressed packets of a multifd channel with these pages, 128 a packet. */
export function multifdChannel(id: number, pages: readonly Buffer[]): Buffer {
  const hello = Buffer.alloc(64)
  hello.writeUInt32BE(0x11223344, 0)
  hello.writeUInt32BE(1, 4)
  hello[24] = id
  const parts: Buffer[] = [hello]
  for (let from = 0; from < pages.length; from += 128) {
    const some = pages.slice(from, from + 128)
    const header = Buffer.alloc(1344)
    header.writeUInt32BE(0x11223344, 0)
    header.writeUInt32BE(1, 4)
    header.writeUInt32BE(128, 12)
    header.writeUInt32BE(some.length, 16)
    header.writeUInt32BE(some.length * PAGE, 20)
    header.writeBigUInt64BE(BigInt(from), 24)
    header.write(BLOCK, 64, 'latin1')
    for (let i = 0; i < some.length; i++) header.writeBigUInt64BE(BigInt((from + i) * PAGE), 320 + 8 * i)
    parts.push(header, ...some)
  }
  return Buffer.concat(parts)
}

// ---- captures ----

/** A TCP segment to be captured. */
export interface Packet {
  readonly from: number // port
  readonly to: number
  readonly sequence: number
  readonly flags?: number
  readonly payload?: Uint8Array
  /** Bytes of the packet that the capture keeps; undefined: all. */
  readonly snap?: number
  readonly fragment?: boolean
}

export const SYN = 0x02
export const ACK = 0x10
export const FIN = 0x01

export interface CaptureOptions {
  readonly link?: 'ethernet' | 'vlan' | 'sll' | 'sll2' | 'raw' | 'null-le' | 'null-be' | 'loop'
  readonly ipv6?: boolean
  readonly littleEndian?: boolean
  readonly nano?: boolean
  /** IP lengths of 0, as with segmentation left to the card. */
  readonly offload?: boolean
}

const LINK_TYPES = { ethernet: 1, vlan: 1, sll: 113, sll2: 276, raw: 101, 'null-le': 0, 'null-be': 0, loop: 108 }

/** The bytes of a packet, link layer first. */
export function packetBytes(packet: Packet, options: CaptureOptions = {}): Buffer {
  const { link = 'ethernet', ipv6 = false, offload = false } = options
  const payload = Buffer.from(packet.payload ?? [])
  const tcp = Buffer.alloc(32) // 12 bytes of options
  tcp.writeUInt16BE(packet.from, 0)
  tcp.writeUInt16BE(packet.to, 2)
  tcp.writeUInt32BE(packet.sequence >>> 0, 4)
  tcp[12] = 8 << 4
  tcp[13] = packet.flags ?? ACK
  const length = tcp.length + payload.length
  let ip: Buffer
  if (ipv6) {
    ip = Buffer.alloc(48) // with a destination options header
    ip[0] = 0x60
    ip.writeUInt16BE(offload ? 0 : 8 + length, 4)
    ip[6] = 60
    ip[23] = 1
    ip[39] = 2
    ip[40] = 6
    ip[41] = 0
  } else {
    ip = Buffer.alloc(24) // with an option
    ip[0] = 0x46
    ip.writeUInt16BE(offload ? 0 : 24 + length, 2)
    if (packet.fragment) ip.writeUInt16BE(0x2000, 6)
    ip[9] = 6
    ip.set([10, 0, 0, 1], 12)
    ip.set([10, 0, 0, 2], 16)
  }
  const type = ipv6 ? [0x86, 0xdd] : [0x08, 0x00]
  const family = ipv6 ? 10 : 2
  const head = {
    ethernet: [...Buffer.alloc(12, 7), ...type],
    vlan: [...Buffer.alloc(12, 7), 0x88, 0xa8, 0, 5, 0x81, 0, 0, 9, ...type],
    sll: [...Buffer.alloc(14), ...type],
    sll2: [...type, ...Buffer.alloc(18)],
    raw: [],
    'null-le': [family, 0, 0, 0],
    'null-be': [0, 0, 0, family],
    loop: [0, 0, 0, family],
  }[link]
  const bytes = Buffer.concat([Buffer.from(head), ip, tcp, payload])
  // Ethernet pads to 60 bytes, with anything.
  const padded = link === 'ethernet' && !offload && bytes.length < 60
  return padded ? Buffer.concat([bytes, Buffer.alloc(60 - bytes.length, 0xee)]) : bytes
}

export function pcap(packets: readonly Packet[], options: CaptureOptions = {}): Buffer {
  const { link = 'ethernet', littleEndian = true, nano = false } = options
  const u32 = writer(littleEndian)
  const u16 = (value: number): Buffer => (littleEndian ? u32(value).subarray(0, 2) : u32(value).subarray(2))
  const magic = nano ? 0xa1b23c4d : 0xa1b2c3d4
  const parts = [u32(magic), u16(2), u16(4), u32(0), u32(0), u32(262144), u32(LINK_TYPES[link])]
  for (const packet of packets) {
    const bytes = packetBytes(packet, options)
    const kept = bytes.subarray(0, packet.snap ?? bytes.length)
    parts.push(u32(1), u32(2), u32(kept.length), u32(bytes.length), kept)
  }
  return Buffer.concat(parts)
}

/** A pcap of these packets, whatever is in them. */
export function pcapOf(link: number, packets: readonly Buffer[]): Buffer {
  const header = Buffer.from('d4c3b2a1020004000000000000000000ffff040000000000', 'hex')
  header.writeUInt32LE(link, 20)
  return Buffer.concat([
    header,
    ...packets.flatMap(bytes => {
      const head = Buffer.alloc(16)
      head.writeUInt32LE(bytes.length, 8)
      head.writeUInt32LE(bytes.length, 12)
      return [head, bytes]
    }),
  ])
}

/** An IPv4 packet within VXLAN, as a frame of Ethernet. */
export function inVxlan(packet: Buffer): Buffer {
  const inner = Buffer.concat([Buffer.alloc(12), Buffer.from([8, 0]), packet])
  const outer = Buffer.alloc(14 + 20 + 8 + 8)
  outer.writeUInt16BE(0x0800, 12)
  outer[14] = 0x45
  outer.writeUInt16BE(20 + 16 + inner.length, 16)
  outer[23] = 17
  outer.writeUInt16BE(4789, 36)
  outer.writeUInt16BE(16 + inner.length, 38)
  outer[42] = 8
  return Buffer.concat([outer, inner])
}

/** Sections of alternating byte order, two interfaces, all three kinds of packet blocks. */
export function pcapng(packets: readonly Packet[], options: CaptureOptions = {}): Buffer {
  const { link = 'ethernet' } = options
  const parts: Buffer[] = []
  const third = Math.max(1, Math.ceil(packets.length / 3))
  for (let from = 0, order = true; from < packets.length; from += third, order = !order) {
    const u32 = writer(order)
    const u16 = (value: number): Buffer => (order ? u32(value).subarray(0, 2) : u32(value).subarray(2))
    const block = (type: number, ...body: Buffer[]): void => {
      const bytes = Buffer.concat(body)
      const padding = Buffer.alloc(-bytes.length & 3)
      const length = u32(12 + bytes.length + padding.length)
      parts.push(u32(type), length, bytes, padding, length)
    }
    block(0x0a0d0d0a, u32(0x1a2b3c4d), u16(1), u16(0), u32(0xffffffff), u32(0xffffffff))
    block(1, u16(LINK_TYPES[link]), u16(0), u32(0))
    block(1, u16(LINK_TYPES.raw), u16(0), u32(0), u16(2), u16(3), Buffer.from('eth0'), u32(0))
    block(4, u16(0), u16(0)) // names
    block(0x0bad, u32(32473), Buffer.from('custom'))
    packets.slice(from, from + third).forEach((packet, i) => {
      const bytes = packetBytes(packet, options)
      const kept = bytes.subarray(0, packet.snap ?? bytes.length)
      const lengths = [u32(kept.length), u32(bytes.length)]
      if (i % 3 === 0) block(6, u32(0), u32(0), u32(0), ...lengths, kept)
      else if (i % 3 === 1 && kept.length === bytes.length) block(3, lengths[1]!, kept)
      else block(2, u16(0), u16(0), u32(0), u32(0), ...lengths, kept)
    })
  }
  return Buffer.concat(parts)
}

function writer(littleEndian: boolean): (value: number) => Buffer {
  return value => {
    const bytes = Buffer.alloc(4)
    if (littleEndian) bytes.writeUInt32LE(value >>> 0)
    else bytes.writeUInt32BE(value >>> 0)
    return bytes
  }
}

/** A connection from its SYN on, cut into segments of these lengths, over and over. */
export function connection(
  stream: Uint8Array,
  { from = 50000, to = 4444, initial = 1000, lengths = [1448], fin = true } = {},
): Packet[] {
  const packets: Packet[] = [{ from, to, sequence: initial - 1, flags: SYN }]
  for (let at = 0, i = 0; at < stream.length; i++) {
    const length = lengths[i % lengths.length]!
    const payload = stream.subarray(at, at + length)
    packets.push({ from, to, sequence: initial + at, payload })
    at += payload.length
  }
  if (fin) packets.push({ from, to, sequence: initial + stream.length, flags: FIN | ACK })
  return packets
}

/** A core of these segments, each a run of pages; segments of notes and of nothing besides. */
export function elfCore(
  segments: readonly (readonly Buffer[])[],
  { wide = true, little = true, address = 0 } = {},
): Buffer {
  const [headerLength, entryLength] = wide ? [64, 56] : [52, 32]
  const number = (bytes: Buffer, at: number, length: number, value: number): void => {
    for (let i = 0; i < length; i++) bytes[little ? at + i : at + length - 1 - i] = Math.floor(value / 256 ** i) & 255
  }
  const header = Buffer.alloc(headerLength)
  header.write('\x7fELF', 'latin1')
  header[4] = wide ? 2 : 1
  header[5] = little ? 1 : 2
  number(header, 16, 2, 4)
  number(header, wide ? 32 : 28, wide ? 8 : 4, headerLength)
  number(header, wide ? 54 : 42, 2, entryLength)
  number(header, wide ? 56 : 44, 2, segments.length + 2)
  const entries: Buffer[] = []
  const bodies: Buffer[] = []
  let at = headerLength + (segments.length + 2) * entryLength
  const entry = (type: number, from: number, length: number, physical: number): void => {
    const bytes = Buffer.alloc(entryLength)
    number(bytes, 0, 4, type)
    const word = wide ? 8 : 4
    number(bytes, wide ? 8 : 4, word, from)
    number(bytes, wide ? 24 : 12, word, physical)
    number(bytes, wide ? 32 : 16, word, length)
    entries.push(bytes)
  }
  entry(4, at, 100, 0)
  bodies.push(Buffer.alloc(100, 'note'))
  at += 100
  for (const pages of segments) {
    const bytes = Buffer.concat([Buffer.alloc((PAGE - (address % PAGE)) % PAGE, 0xcc), ...pages])
    entry(1, at, bytes.length, address)
    bodies.push(bytes)
    at += bytes.length
  }
  entry(1, at, 0, 1 << 20)
  return Buffer.concat([header, ...entries, ...bodies])
}

/** A folder that goes with the test, and a function that puts files into it. */
export function scratch(teardown: (end: () => void) => void): {
  folder: string
  put(name: string, b: Uint8Array): string
} {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-template-'))
  teardown(() => rmSync(folder, { recursive: true, force: true }))
  return {
    folder,
    put(name, bytes) {
      const path = join(folder, name)
      writeFileSync(path, bytes)
      return path
    },
  }
}
