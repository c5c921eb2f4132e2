/**
 * Just enough of capture files to make fixtures: reads what tcpdump writes, writes it as pcap or pcapng, disorders TCP
 * segments, and puts streams together in the simplest way there is, as a check that shares no code with src/capture.
 */
import { Random } from '../random.ts'

/** One captured packet. */
export interface Packet {
  /** Nanoseconds since 1970. */
  readonly time: bigint
  readonly bytes: Buffer
}

/** A classic pcap file. */
export interface Capture {
  /** LINKTYPE_*: 1 Ethernet, 276 Linux cooked v2. */
  readonly linkType: number
  readonly packets: readonly Packet[]
}

/** A TCP segment inside a packet. */
export interface Segment {
  readonly packet: Packet
  /** `ADDRESS:PORT` of the sender, and of the receiver. */
  readonly from: string
  readonly to: string
  readonly sequence: number
  /** TCP flags: FIN 1, SYN 2, RST 4, ACK 16. */
  readonly flags: number
  /** Where the IP header and the payload begin in the packet's bytes. */
  readonly ipAt: number
  readonly payloadAt: number
  readonly payload: Buffer
}

const snapBytes = 262_144

/** Parses pcap, little-endian as this machine's tcpdump writes it, with micro- or nanoseconds. */
export function readPcap(file: Buffer): Capture {
  const magic = file.readUInt32LE(0)
  if (magic !== 0xa1b2c3d4 && magic !== 0xa1b23c4d)
    throw new Error(`not a little-endian pcap file: ${magic.toString(16)}`)
  const unit = magic === 0xa1b23c4d ? 1n : 1000n
  const packets: Packet[] = []
  for (let at = 24; at < file.length; ) {
    const length = file.readUInt32LE(at + 8)
    if (length !== file.readUInt32LE(at + 12)) throw new Error(`a packet at ${at} was cut by the snapshot length`)
    const time = BigInt(file.readUInt32LE(at)) * 1_000_000_000n + BigInt(file.readUInt32LE(at + 4)) * unit
    packets.push({ time, bytes: file.subarray(at + 16, at + 16 + length) })
    at += 16 + length
  }
  return { linkType: file.readUInt32LE(20), packets }
}

/** Writes pcap with nanoseconds. */
export function writePcap(capture: Capture): Buffer {
  const head = Buffer.alloc(24)
  head.writeUInt32LE(0xa1b23c4d, 0)
  head.writeUInt16LE(2, 4)
  head.writeUInt16LE(4, 6)
  head.writeUInt32LE(snapBytes, 16)
  head.writeUInt32LE(capture.linkType, 20)
  const parts = capture.packets.flatMap(({ time, bytes }) => {
    const record = Buffer.alloc(16)
    record.writeUInt32LE(Number(time / 1_000_000_000n), 0)
    record.writeUInt32LE(Number(time % 1_000_000_000n), 4)
    record.writeUInt32LE(bytes.length, 8)
    record.writeUInt32LE(bytes.length, 12)
    return [record, bytes]
  })
  return Buffer.concat([head, ...parts])
}

/**
 * Writes pcapng: options, a block to be skipped, two interfaces of which the second is used, nanoseconds, statistics at
 * the end.
 */
export function writePcapng(capture: Capture, comment: string): Buffer {
  const section = Buffer.alloc(16)
  section.writeUInt32LE(0x1a2b3c4d, 0)
  section.writeUInt16LE(1, 4)
  section.writeBigInt64LE(-1n, 8) // length of the section: not given
  const nameResolution = Buffer.alloc(4) // its end record alone
  const statistics = Buffer.alloc(12)
  statistics.writeUInt32LE(1, 0)
  const body = capture.packets.map(({ time, bytes }) => {
    const packet = Buffer.alloc(20)
    packet.writeUInt32LE(1, 0) // the second interface
    packet.writeUInt32LE(Number(time >> 32n), 4)
    packet.writeUInt32LE(Number(time & 0xffffffffn), 8)
    packet.writeUInt32LE(bytes.length, 12)
    packet.writeUInt32LE(bytes.length, 16)
    return block(6, packet, padded(bytes))
  })
  return Buffer.concat([
    block(0x0a0d0d0a, section, option(1, Buffer.from(comment)), option(0, Buffer.alloc(0))),
    block(1, interfaceHead(1)),
    block(1, interfaceHead(capture.linkType), option(9, Buffer.of(9)), option(0, Buffer.alloc(0))), // if_tsresol: 10^-9 s
    block(4, nameResolution),
    ...body,
    block(5, statistics),
  ])
}

function interfaceHead(linkType: number): Buffer {
  const head = Buffer.alloc(8)
  head.writeUInt16LE(linkType, 0)
  head.writeUInt32LE(snapBytes, 4)
  return head
}

function option(code: number, value: Buffer): Buffer {
  const head = Buffer.alloc(4)
  head.writeUInt16LE(code, 0)
  head.writeUInt16LE(value.length, 2)
  return Buffer.concat([head, padded(value)])
}

function padded(bytes: Buffer): Buffer {
  return bytes.length % 4 === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(4 - (bytes.length % 4))])
}

function block(type: number, ...parts: Buffer[]): Buffer {
  const length = 12 + parts.reduce((sum, part) => sum + part.length, 0)
  const [head, tail] = [Buffer.alloc(8), Buffer.alloc(4)]
  head.writeUInt32LE(type, 0)
  head.writeUInt32LE(length, 4)
  tail.writeUInt32LE(length, 0)
  return Buffer.concat([head, ...parts, tail])
}

/**
 * Every TCP segment of a capture, in its order. Ethernet or Linux cooked v2, IPv4 or IPv6 without extension headers.
 */
export function segments({ linkType, packets }: Capture): Segment[] {
  return packets.flatMap(packet => {
    const { bytes } = packet
    const ipAt = linkType === 1 ? 14 : 20
    const version = bytes[ipAt]! >> 4
    const tcpAt = ipAt + (version === 4 ? (bytes[ipAt]! & 15) * 4 : 40)
    if (bytes[version === 4 ? ipAt + 9 : ipAt + 6] !== 6) return []
    const endAt = version === 4 ? ipAt + bytes.readUInt16BE(ipAt + 2) : tcpAt + bytes.readUInt16BE(ipAt + 4)
    const address = (at: number) => bytes.subarray(at, at + (version === 4 ? 4 : 16)).toString('hex')
    const sourceAt = ipAt + (version === 4 ? 12 : 8)
    const payloadAt = tcpAt + (bytes[tcpAt + 12]! >> 4) * 4
    return {
      packet,
      from: `${address(sourceAt)}:${bytes.readUInt16BE(tcpAt)}`,
      to: `${address(sourceAt + (version === 4 ? 4 : 16))}:${bytes.readUInt16BE(tcpAt + 2)}`,
      sequence: bytes.readUInt32BE(tcpAt + 4),
      flags: bytes[tcpAt + 13]!,
      ipAt,
      payloadAt,
      payload: bytes.subarray(payloadAt, endAt),
    }
  })
}

/**
 * The bytes of each direction of each connection, keyed `FROM TO`. Throws when one has a gap, or two segments differ
 * where they overlap.
 */
export function reassemble(capture: Capture): Map<string, Buffer> {
  const starts = new Map<string, number>()
  const pieces = new Map<string, { at: number; payload: Buffer }[]>()
  const all = segments(capture)
  for (const { from, to, flags, sequence } of all) {
    if (flags & 2) starts.set(`${from} ${to}`, (sequence + 1) >>> 0)
  }
  for (const { from, to, flags, sequence, payload } of all) {
    const key = `${from} ${to}`
    const list = pieces.get(key) ?? []
    pieces.set(key, list)
    if (payload.length > 0 && !(flags & 2)) list.push({ at: (sequence - starts.get(key)!) >>> 0, payload })
  }
  return new Map(
    [...pieces].map(([key, list]) => {
      const stream = Buffer.alloc(list.reduce((end, { at, payload }) => Math.max(end, at + payload.length), 0))
      const seen = Buffer.alloc(stream.length)
      for (const { at, payload } of list) {
        for (let i = 0; i < payload.length; i++) {
          if (seen[at + i] === 1 && stream[at + i] !== payload[i]) throw new Error(`${key}: two bytes for ${at + i}`)
        }
        payload.copy(stream, at)
        seen.fill(1, at, at + payload.length)
      }
      if (seen.includes(0)) throw new Error(`${key}: a gap at ${seen.indexOf(0)}`)
      return [key, stream]
    }),
  )
}

/**
 * The same TCP connections as a bad network would have delivered them: segments swapped, sent again, sent again in
 * other cuts, late (also after FIN), and a SYN sent twice. The same capture always gives the same result.
 */
export function disorder(capture: Capture): Capture {
  const random = new Random(20_140_310)
  const chance = (part: number) => random.chance(part)
  const all = segments(capture)
  // A packet goes to a place on a line, whole numbers apart; what moves takes a place between two others.
  const places: { place: number; bytes: Buffer }[] = []
  all.forEach((segment, i) => {
    const { bytes } = segment.packet
    const data = segment.payload.length > 0
    const late = data && chance(0.02) ? 3.5 + Math.floor(((i * 7) % 31) + 1) : data && chance(0.04) ? 1.5 : 0
    places.push({ place: i + late, bytes })
    if ((data && chance(0.02)) || segment.flags & 2) places.push({ place: i + 2.25 + (i % 9), bytes })
    const next = all.slice(i + 1, i + 8).find(other => other.from === segment.from && other.to === segment.to)
    const follows = next && next.sequence === (segment.sequence + segment.payload.length) >>> 0
    if (data && follows && next.payload.length > 1 && chance(0.02)) {
      const half = segment.payload.length >> 1
      const payload = Buffer.concat([
        segment.payload.subarray(half),
        next.payload.subarray(0, next.payload.length >> 1),
      ])
      if (payload.length <= 1448) places.push({ place: i + 4.75, bytes: recut(segment, half, payload) })
    }
  })
  places.sort((a, b) => a.place - b.place)
  const first = capture.packets[0]!.time
  const last = capture.packets.at(-1)!.time
  const step = (last - first) / BigInt(places.length)
  return {
    linkType: capture.linkType,
    packets: places.map(({ bytes }, i) => ({ time: first + BigInt(i) * step, bytes })),
  }
}

/**
 * The packet of an IPv4 segment, with other payload that begins `skip` bytes later. Its TCP checksum is zero: nobody
 * computed one.
 */
function recut(segment: Segment, skip: number, payload: Buffer): Buffer {
  const bytes = Buffer.concat([segment.packet.bytes.subarray(0, segment.payloadAt), payload])
  const { ipAt } = segment
  const tcpAt = ipAt + (bytes[ipAt]! & 15) * 4
  bytes.writeUInt32BE((segment.sequence + skip) >>> 0, tcpAt + 4)
  bytes.writeUInt16BE(0, tcpAt + 16)
  bytes.writeUInt16BE(bytes.length - ipAt, ipAt + 2)
  bytes.writeUInt16BE(0, ipAt + 10)
  let sum = 0
  for (let at = ipAt; at < tcpAt; at += 2) sum += bytes.readUInt16BE(at)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
  bytes.writeUInt16BE(~sum & 0xffff, ipAt + 10)
  return bytes
}
