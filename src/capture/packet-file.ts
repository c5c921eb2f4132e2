/** Readers of pcap and pcapng files: bytes cut anywhere in, packets out. */
import { ProxyError } from '../errors.ts'
import { BLOCK_LENGTH_MAX, INTERFACES_MAX, PACKET_LENGTH_MAX } from './limits.ts'

/** Takes packets in the order of the file. */
export interface PacketSink {
  /**
   * @param bytes holds the captured bytes, [at, end), until return
   * @param originalLength bytes that the packet had on the wire
   */
  packet(link: number, bytes: Buffer, at: number, end: number, originalLength: number): void
}

/** A reader of either format. */
export interface PacketFile {
  /** Takes the next bytes. Keeps copies only. @throws CAPTURE_FORMAT */
  push(chunk: Buffer): void
  /** The file ended. @returns false where that was within a packet */
  end(): boolean
}

/** Magics as the first four bytes of a file, read big-endian. Source: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng. */
const PCAP_MAGIC = { BIG: 0xa1b2c3d4, LITTLE: 0xd4c3b2a1, BIG_NANO: 0xa1b23c4d, LITTLE_NANO: 0x4d3cb2a1 } as const
const PCAP_MAGICS: readonly number[] = Object.values(PCAP_MAGIC)
const PCAP_HEADER_LENGTH = 24
const PCAP_VERSION_MAJOR = 2
const RECORD_HEADER_LENGTH = 16
/** The upper bits of pcap's link type tell of frame check sequences. */
const PCAP_LINK_MASK = 0xffff

/** pcapng block types. */
const BLOCK = {
  SECTION: 0x0a0d0d0a,
  INTERFACE: 1,
  PACKET: 2, // obsolete, still written by old tools
  SIMPLE_PACKET: 3,
  ENHANCED_PACKET: 6,
} as const
const BYTE_ORDER_MAGIC = 0x1a2b3c4d
const BLOCK_FRAME_LENGTH = 12 // type, length, and length again behind the body

/** Hands whole units to `read`, keeping what is cut for the next chunk. */
abstract class UnitReader implements PacketFile {
  protected readonly name: string
  /** Offset in the file of the unit under way. */
  protected offset = 0
  private rest: Buffer = Buffer.alloc(0)

  constructor(name: string) {
    this.name = name
  }

  push(chunk: Buffer): void {
    const bytes = this.rest.length === 0 ? chunk : Buffer.concat([this.rest, chunk])
    let at = 0
    for (;;) {
      const taken = this.read(bytes, at)
      if (taken === 0) break
      at += taken
      this.offset += taken
    }
    // At most a unit, whose length has been checked.
    this.rest = Buffer.from(bytes.subarray(at))
  }

  end(): boolean {
    return this.rest.length === 0
  }

  /** Takes one unit at `at`. @returns its length, 0 where it is not all there */
  protected abstract read(bytes: Buffer, at: number): number

  protected bad(what: string, at = 0): ProxyError {
    const where = { stream: this.name, offset: this.offset + at }
    return new ProxyError('CAPTURE_FORMAT', what, where, 'the capture is damaged; nothing of it was used')
  }
}

/** pcap: both byte orders, times in micro- or nanoseconds; several files may stand one behind the other. */
export class PcapReader extends UnitReader {
  private readonly sink: PacketSink
  private littleEndian = false
  /** -1 before the header. */
  private link = -1

  constructor(name: string, sink: PacketSink) {
    super(name)
    this.sink = sink
  }

  protected read(bytes: Buffer, at: number): number {
    if (this.link < 0) return this.readHeader(bytes, at)
    if (at + RECORD_HEADER_LENGTH > bytes.length) return 0
    // Files that were put one behind the other. As the seconds of a packet the magic is a moment of 2055.
    if (PCAP_MAGICS.includes(bytes.readUInt32BE(at))) return this.readHeader(bytes, at)
    const captured = u32(bytes, at + 8, this.littleEndian)
    const original = u32(bytes, at + 12, this.littleEndian)
    if (captured > PACKET_LENGTH_MAX) throw this.bad(`a packet of ${captured} bytes`, 8)
    const from = at + RECORD_HEADER_LENGTH
    if (from + captured > bytes.length) return 0
    this.sink.packet(this.link, bytes, from, from + captured, Math.max(original, captured))
    return RECORD_HEADER_LENGTH + captured
  }

  private readHeader(bytes: Buffer, at: number): number {
    if (at + PCAP_HEADER_LENGTH > bytes.length) return 0
    const magic = bytes.readUInt32BE(at)
    this.littleEndian = magic === PCAP_MAGIC.LITTLE || magic === PCAP_MAGIC.LITTLE_NANO
    const major = this.littleEndian ? bytes.readUInt16LE(at + 4) : bytes.readUInt16BE(at + 4)
    if (major !== PCAP_VERSION_MAJOR) throw this.bad(`pcap version ${major}`, 4)
    this.link = u32(bytes, at + 20, this.littleEndian) & PCAP_LINK_MASK
    return PCAP_HEADER_LENGTH
  }
}

interface Interface {
  readonly link: number
  /** 0: no limit. */
  readonly snapLength: number
}

/** pcapng: sections of either byte order, interfaces, enhanced, simple and obsolete packet blocks. */
export class PcapngReader extends UnitReader {
  private readonly sink: PacketSink
  private littleEndian = false
  private interfaces: Interface[] = []

  constructor(name: string, sink: PacketSink) {
    super(name)
    this.sink = sink
  }

  protected read(bytes: Buffer, at: number): number {
    if (at + BLOCK_FRAME_LENGTH > bytes.length) return 0
    const section = bytes.readUInt32BE(at) === BLOCK.SECTION
    if (section) this.readByteOrder(bytes, at)
    const length = u32(bytes, at + 4, this.littleEndian)
    if (length < BLOCK_FRAME_LENGTH || length % 4 !== 0 || length > BLOCK_LENGTH_MAX) {
      throw this.bad(`a pcapng block of ${length} bytes`, 4)
    }
    if (at + length > bytes.length) return 0
    if (u32(bytes, at + length - 4, this.littleEndian) !== length) {
      throw this.bad('a pcapng block whose two lengths differ', length - 4)
    }
    const type = u32(bytes, at, this.littleEndian)
    const bodyAt = at + 8
    const bodyEnd = at + length - 4
    if (section) this.interfaces = []
    else if (type === BLOCK.INTERFACE) this.readInterface(bytes, bodyAt, bodyEnd)
    else if (type === BLOCK.SIMPLE_PACKET) this.readSimplePacket(bytes, bodyAt, bodyEnd)
    else if (type === BLOCK.ENHANCED_PACKET || type === BLOCK.PACKET) this.readPacket(bytes, type, bodyAt, bodyEnd)
    return length
  }

  private readByteOrder(bytes: Buffer, at: number): void {
    this.littleEndian = false
    if (bytes.readUInt32BE(at + 8) === BYTE_ORDER_MAGIC) return
    if (bytes.readUInt32LE(at + 8) !== BYTE_ORDER_MAGIC) throw this.bad('a pcapng section without byte order', 8)
    this.littleEndian = true
  }

  private readInterface(bytes: Buffer, at: number, end: number): void {
    if (end - at < 8) throw this.bad('a pcapng interface block that is too short')
    if (this.interfaces.length === INTERFACES_MAX) throw this.bad(`more than ${INTERFACES_MAX} interfaces`)
    const link = this.littleEndian ? bytes.readUInt16LE(at) : bytes.readUInt16BE(at)
    this.interfaces.push({ link, snapLength: u32(bytes, at + 4, this.littleEndian) })
  }

  private readSimplePacket(bytes: Buffer, at: number, end: number): void {
    if (end - at < 4) throw this.bad('a pcapng packet block that is too short')
    const { link, snapLength } = this.interfaceAt(0)
    const original = u32(bytes, at, this.littleEndian)
    const captured = Math.min(original, snapLength === 0 ? original : snapLength, end - at - 4)
    this.sink.packet(link, bytes, at + 4, at + 4 + captured, original)
  }

  private readPacket(bytes: Buffer, type: number, at: number, end: number): void {
    if (end - at < 20) throw this.bad('a pcapng packet block that is too short')
    // The obsolete block has 16 bits of interface and 16 of drops.
    const enhanced = type === BLOCK.ENHANCED_PACKET
    const short = this.littleEndian ? bytes.readUInt16LE(at) : bytes.readUInt16BE(at)
    const { link } = this.interfaceAt(enhanced ? u32(bytes, at, this.littleEndian) : short)
    const captured = u32(bytes, at + 12, this.littleEndian)
    const original = u32(bytes, at + 16, this.littleEndian)
    if (captured > end - at - 20 || captured > PACKET_LENGTH_MAX) throw this.bad(`a packet of ${captured} bytes`, 20)
    this.sink.packet(link, bytes, at + 20, at + 20 + captured, Math.max(original, captured))
  }

  private interfaceAt(index: number): Interface {
    const found = this.interfaces[index]
    if (found === undefined) throw this.bad(`a packet of interface ${index}, which the section does not have`)
    return found
  }
}

function u32(bytes: Buffer, at: number, littleEndian: boolean): number {
  return littleEndian ? bytes.readUInt32LE(at) : bytes.readUInt32BE(at)
}
