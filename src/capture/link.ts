/** From a captured packet to its TCP segment: link layers, IPv4 and IPv6, TCP. */
import { readU16, readU32 } from '../bytes/big-endian.ts'

/** Link types of pcap and pcapng. Source: tcpdump.org/linktypes.html. */
export const LINK = {
  NULL: 0, // address family in the byte order of the capturing host
  ETHERNET: 1,
  RAW_BSD: 12,
  RAW_OPENBSD: 14,
  RAW: 101,
  LOOP: 108, // as NULL, big-endian
  LINUX_SLL: 113,
  IPV4: 228,
  IPV6: 229,
  LINUX_SLL2: 276,
} as const

const ETHERTYPE = { IPV4: 0x0800, IPV6: 0x86dd, VLAN: 0x8100, SERVICE_VLAN: 0x88a8, OLD_QINQ: 0x9100 } as const
/** Address families of IPv6 on Linux, on the BSDs and macOS. IPv4 is 2 everywhere. */
const FAMILY_IPV4 = 2
const FAMILIES_IPV6 = [10, 24, 28, 30]
const PROTOCOL_TCP = 6
/** IPv6 extension headers before TCP. Source: RFC 8200. */
const EXTENSION = { HOP_BY_HOP: 0, ROUTING: 43, FRAGMENT: 44, AUTHENTICATION: 51, DESTINATION: 60 } as const
const TCP_FLAG = { FIN: 0x01, SYN: 0x02, RST: 0x04 } as const

/** A TCP segment within a packet; one object is filled again and again. */
export class Segment {
  /** The direction of a connection, `10.0.0.1:51000 > 10.0.0.2:4444`: tells it from all others, and names it. */
  key = ''
  /** Sequence number of the first payload byte. */
  sequence = 0
  syn = false
  fin = false
  reset = false
  /** The payload's bytes that were captured: from `at`, `length` of them. */
  at = 0
  length = 0
  /** Payload bytes that the packet had, but the capture has not. */
  missing = 0
}

/** What a packet turned out to be. */
export const PACKET = { SEGMENT: 0, OTHER: 1, FRAGMENT: 2, CUT: 3 } as const

/**
 * Finds the TCP segment of a packet.
 *
 * @param bytes holds the captured bytes, [at, end)
 * @param originalLength bytes that the packet had on the wire
 * @returns PACKET.SEGMENT with `segment` filled; OTHER: no TCP; FRAGMENT: a part of an IP packet; CUT: headers missing
 */
export function findSegment(
  link: number,
  bytes: Uint8Array,
  at: number,
  end: number,
  originalLength: number,
  segment: Segment,
): number {
  const wireEnd = at + originalLength
  let ipAt = at
  switch (link) {
    case LINK.ETHERNET: {
      let typeAt = at + 12
      if (typeAt + 2 > end) return PACKET.CUT
      let type = readU16(bytes, typeAt)
      while (type === ETHERTYPE.VLAN || type === ETHERTYPE.SERVICE_VLAN || type === ETHERTYPE.OLD_QINQ) {
        typeAt += 4
        if (typeAt + 2 > end) return PACKET.CUT
        type = readU16(bytes, typeAt)
      }
      if (type !== ETHERTYPE.IPV4 && type !== ETHERTYPE.IPV6) return PACKET.OTHER
      ipAt = typeAt + 2
      break
    }
    case LINK.LINUX_SLL:
    case LINK.LINUX_SLL2: {
      const typeAt = link === LINK.LINUX_SLL ? at + 14 : at
      ipAt = link === LINK.LINUX_SLL ? at + 16 : at + 20
      if (ipAt > end) return PACKET.CUT
      const type = readU16(bytes, typeAt)
      if (type !== ETHERTYPE.IPV4 && type !== ETHERTYPE.IPV6) return PACKET.OTHER
      break
    }
    case LINK.NULL:
    case LINK.LOOP: {
      if (at + 4 > end) return PACKET.CUT
      // Families are small, so exactly one byte order gives a known one.
      const big = readU32(bytes, at)
      const little = ((bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16)) + bytes[at + 3]! * 2 ** 24) >>> 0
      const known = (family: number): boolean => family === FAMILY_IPV4 || FAMILIES_IPV6.includes(family)
      if (!known(big) && !known(little)) return PACKET.OTHER
      ipAt = at + 4
      break
    }
    case LINK.RAW:
    case LINK.RAW_BSD:
    case LINK.RAW_OPENBSD:
    case LINK.IPV4:
    case LINK.IPV6:
      break
    default:
      return PACKET.OTHER
  }
  if (ipAt >= end) return PACKET.CUT
  const version = bytes[ipAt]! >> 4
  if (version === 4) return findInIpv4(bytes, ipAt, end, wireEnd, segment)
  if (version === 6) return findInIpv6(bytes, ipAt, end, wireEnd, segment)
  return PACKET.OTHER
}

/** True where packets of this link type can be read. */
export function isKnownLink(link: number): boolean {
  return (Object.values(LINK) as number[]).includes(link)
}

function findInIpv4(bytes: Uint8Array, at: number, end: number, wireEnd: number, segment: Segment): number {
  if (at + 20 > end) return PACKET.CUT
  const headerLength = (bytes[at]! & 15) * 4
  if (headerLength < 20) return PACKET.OTHER
  if (bytes[at + 9] !== PROTOCOL_TCP) return PACKET.OTHER
  if ((readU16(bytes, at + 6) & 0x3fff) !== 0) return PACKET.FRAGMENT
  // A host that leaves segmentation to its card captures 0 here for packets above 64 KiB.
  const total = readU16(bytes, at + 2)
  const ipEnd = total === 0 ? wireEnd : at + total
  return findInTcp(bytes, at + headerLength, end, ipEnd, segment, ipv4Text(bytes, at + 12), ipv4Text(bytes, at + 16))
}

function findInIpv6(bytes: Uint8Array, at: number, end: number, wireEnd: number, segment: Segment): number {
  if (at + 40 > end) return PACKET.CUT
  // 0: a jumbogram, or segmentation left to the card.
  const payload = readU16(bytes, at + 4)
  const ipEnd = payload === 0 ? wireEnd : at + 40 + payload
  let next = bytes[at + 6]!
  let nextAt = at + 40
  while (next !== PROTOCOL_TCP) {
    if (nextAt + 8 > end) return PACKET.CUT
    switch (next) {
      case EXTENSION.HOP_BY_HOP:
      case EXTENSION.ROUTING:
      case EXTENSION.DESTINATION:
        next = bytes[nextAt]!
        nextAt += 8 + bytes[nextAt + 1]! * 8
        break
      case EXTENSION.AUTHENTICATION:
        next = bytes[nextAt]!
        nextAt += 8 + bytes[nextAt + 1]! * 4
        break
      case EXTENSION.FRAGMENT:
        // Offset 0 and nothing more to come is a whole packet.
        if ((readU16(bytes, nextAt + 2) & 0xfff9) !== 0) return PACKET.FRAGMENT
        next = bytes[nextAt]!
        nextAt += 8
        break
      default:
        return PACKET.OTHER
    }
  }
  return findInTcp(bytes, nextAt, end, ipEnd, segment, ipv6Text(bytes, at + 8), ipv6Text(bytes, at + 24))
}

function findInTcp(
  bytes: Uint8Array,
  at: number,
  end: number,
  ipEnd: number,
  segment: Segment,
  source: string,
  destination: string,
): number {
  if (at + 20 > end) return PACKET.CUT
  const headerLength = (bytes[at + 12]! >> 4) * 4
  const flags = bytes[at + 13]!
  const payloadAt = at + headerLength
  const payloadLength = ipEnd - payloadAt
  if (headerLength < 20 || payloadLength < 0) return PACKET.OTHER
  segment.key = `${source}:${readU16(bytes, at)} > ${destination}:${readU16(bytes, at + 2)}`
  segment.syn = (flags & TCP_FLAG.SYN) !== 0
  segment.fin = (flags & TCP_FLAG.FIN) !== 0
  segment.reset = (flags & TCP_FLAG.RST) !== 0
  // SYN takes a sequence number of its own, before the payload.
  segment.sequence = (readU32(bytes, at + 4) + (segment.syn ? 1 : 0)) >>> 0
  segment.at = payloadAt
  // Ethernet pads short packets: what lies behind the IP packet is not payload.
  segment.length = Math.max(0, Math.min(end - payloadAt, payloadLength))
  segment.missing = payloadLength - segment.length
  return PACKET.SEGMENT
}

function ipv4Text(bytes: Uint8Array, at: number): string {
  return `${bytes[at]}.${bytes[at + 1]}.${bytes[at + 2]}.${bytes[at + 3]}`
}

function ipv6Text(bytes: Uint8Array, at: number): string {
  let text = '['
  for (let i = 0; i < 16; i += 2) text += (i === 0 ? '' : ':') + readU16(bytes, at + i).toString(16)
  return `${text}]`
}
