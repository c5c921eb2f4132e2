/** From a captured packet to its TCP segment: link layers, IPv4 and IPv6, TCP. */
import { readU16, readU32 } from '../bytes/big-endian.ts'
import { LAYERS_MAX } from './limits.ts'

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

/** Protocols as layer 2 names them, and what tunnels put in the same place. Source: IEEE 802 numbers. */
const ETHERTYPE = {
  IPV4: 0x0800,
  IPV6: 0x86dd,
  VLAN: 0x8100,
  SERVICE_VLAN: 0x88a8,
  OLD_QINQ: 0x9100,
  MPLS: 0x8847,
  MPLS_MULTICAST: 0x8848,
  PPPOE: 0x8864,
  /** Transparent Ethernet bridging: an Ethernet frame within GRE or Geneve. */
  ETHERNET: 0x6558,
  MACSEC: 0x88e5,
  /** Ethernet frames that a switch mirrors, within GRE. */
  ERSPAN_II: 0x88be,
  ERSPAN_III: 0x22eb,
} as const
/** Address families of IPv6 on Linux, on the BSDs and macOS. IPv4 is 2 everywhere. */
const FAMILY_IPV4 = 2
const FAMILIES_IPV6 = [10, 24, 28, 30]
/** IP protocols. Source: IANA protocol numbers. */
const PROTOCOL = { IPV4: 4, TCP: 6, UDP: 17, IPV6: 41, GRE: 47, ESP: 50, L2TP: 115 } as const
/** IPv6 extension headers before the payload. Source: RFC 8200. */
const EXTENSION = { HOP_BY_HOP: 0, ROUTING: 43, FRAGMENT: 44, AUTHENTICATION: 51, DESTINATION: 60 } as const
const TCP_FLAG = { FIN: 0x01, SYN: 0x02, RST: 0x04 } as const
/** UDP ports of tunnels. VXLAN had 8472 in Linux before it had a number. */
const UDP_PORT = {
  VXLAN: 4789,
  VXLAN_LINUX: 8472,
  GENEVE: 6081,
  IPSEC_NAT: 4500,
  WIREGUARD: 51820,
  L2TP: 1701,
} as const
/** GRE: checksum, key and sequence number are there where their bits are, 4 bytes each. Source: RFC 2784, 2890. */
const GRE = { CHECKSUM: 0x8000, ROUTING: 0x4000, KEY: 0x2000, SEQUENCE: 0x1000, VERSION: 0x0007 } as const
const PPP = { IPV4: 0x0021, IPV6: 0x0057 } as const

/** Encapsulations that cannot be looked into: for the message where no migration was found. */
export type Opaque = 'IPsec' | 'WireGuard' | 'MACsec' | 'L2TP' | 'GRE of another version'

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
  /** What a packet of PACKET.OTHER was wrapped in, where that is why. */
  opaque: Opaque | undefined
}

/** What a packet turned out to be. */
export const PACKET = { SEGMENT: 0, OTHER: 1, FRAGMENT: 2, CUT: 3 } as const

/**
 * Finds the TCP segment of a packet, within VLANs, MPLS, PPPoE, IP in IP, GRE, VXLAN and Geneve too.
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
  const packet: Packet = { bytes, end, wireEnd: at + originalLength, segment, layers: 0 }
  segment.opaque = undefined
  switch (link) {
    case LINK.ETHERNET:
      return findInEthernet(packet, at)
    case LINK.LINUX_SLL:
      return at + 16 > end ? PACKET.CUT : findInProtocol(packet, readU16(bytes, at + 14), at + 16)
    case LINK.LINUX_SLL2:
      return at + 20 > end ? PACKET.CUT : findInProtocol(packet, readU16(bytes, at), at + 20)
    case LINK.NULL:
    case LINK.LOOP: {
      if (at + 4 > end) return PACKET.CUT
      // Families are small, so exactly one byte order gives a known one.
      const big = readU32(bytes, at)
      const little = ((bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16)) + bytes[at + 3]! * 2 ** 24) >>> 0
      const known = (family: number): boolean => family === FAMILY_IPV4 || FAMILIES_IPV6.includes(family)
      return known(big) || known(little) ? findInIp(packet, at + 4) : PACKET.OTHER
    }
    case LINK.RAW:
    case LINK.RAW_BSD:
    case LINK.RAW_OPENBSD:
    case LINK.IPV4:
    case LINK.IPV6:
      return findInIp(packet, at)
    default:
      return PACKET.OTHER
  }
}

/** What all layers of a packet need. */
interface Packet {
  readonly bytes: Uint8Array
  /** Where the captured bytes end. */
  readonly end: number
  /** Where the packet ended on the wire, or the layer around the one that is looked at. */
  wireEnd: number
  readonly segment: Segment
  /** Layers so far: a packet may claim to hold itself over and over. */
  layers: number
}

function findInEthernet(packet: Packet, at: number): number {
  return at + 14 > packet.end ? PACKET.CUT : findInProtocol(packet, readU16(packet.bytes, at + 12), at + 14)
}

/** What stands behind an EtherType, wherever that stood. */
function findInProtocol(packet: Packet, type: number, at: number): number {
  const { bytes, end, segment } = packet
  if (++packet.layers > LAYERS_MAX) return PACKET.OTHER
  switch (type) {
    case ETHERTYPE.IPV4:
    case ETHERTYPE.IPV6:
      return findInIp(packet, at)
    case ETHERTYPE.VLAN:
    case ETHERTYPE.SERVICE_VLAN:
    case ETHERTYPE.OLD_QINQ:
      return at + 4 > end ? PACKET.CUT : findInProtocol(packet, readU16(bytes, at + 2), at + 4)
    case ETHERTYPE.MPLS:
    case ETHERTYPE.MPLS_MULTICAST:
      return findInMpls(packet, at)
    case ETHERTYPE.PPPOE: {
      if (at + 8 > end) return PACKET.CUT
      const protocol = readU16(bytes, at + 6)
      return protocol === PPP.IPV4 || protocol === PPP.IPV6 ? findInIp(packet, at + 8) : PACKET.OTHER
    }
    case ETHERTYPE.ETHERNET:
      return findInEthernet(packet, at)
    case ETHERTYPE.MACSEC:
      segment.opaque = 'MACsec'
      return PACKET.OTHER
    default:
      return PACKET.OTHER
  }
}

/** Labels up to the bottom of the stack; nothing says what comes then, but IP begins with its version. */
function findInMpls(packet: Packet, at: number): number {
  const { bytes, end } = packet
  let next = at
  let bottom = false
  while (!bottom) {
    if (next + 4 > end) return PACKET.CUT
    bottom = (bytes[next + 2]! & 1) !== 0
    next += 4
  }
  if (next >= end) return PACKET.CUT
  // A pseudowire of Ethernet has a control word, which begins with 0.
  if (bytes[next]! >> 4 === 0) return findInEthernet(packet, next + 4)
  return findInIp(packet, next)
}

function findInIp(packet: Packet, at: number): number {
  if (at >= packet.end) return PACKET.CUT
  if (++packet.layers > LAYERS_MAX) return PACKET.OTHER
  const version = packet.bytes[at]! >> 4
  if (version === 4) return findInIpv4(packet, at)
  return version === 6 ? findInIpv6(packet, at) : PACKET.OTHER
}

/** What an IP packet carries. */
function findInPayload(packet: Packet, protocol: number, at: number, source: number, length: number): number {
  const { segment } = packet
  switch (protocol) {
    case PROTOCOL.TCP:
      return findInTcp(packet, at, source, length)
    case PROTOCOL.IPV4:
    case PROTOCOL.IPV6:
      return findInIp(packet, at)
    case PROTOCOL.GRE:
      return findInGre(packet, at)
    case PROTOCOL.UDP:
      return findInUdp(packet, at)
    case PROTOCOL.ESP:
      segment.opaque = 'IPsec'
      return PACKET.OTHER
    case PROTOCOL.L2TP: // version 3 needs no UDP
      segment.opaque = 'L2TP'
      return PACKET.OTHER
    default:
      return PACKET.OTHER
  }
}

function findInGre(packet: Packet, at: number): number {
  const { bytes, end, segment } = packet
  if (at + 4 > end) return PACKET.CUT
  const flags = readU16(bytes, at)
  if ((flags & (GRE.ROUTING | GRE.VERSION)) !== 0) {
    segment.opaque = 'GRE of another version'
    return PACKET.OTHER
  }
  let next = at + 4
  for (const flag of [GRE.CHECKSUM, GRE.KEY, GRE.SEQUENCE]) if ((flags & flag) !== 0) next += 4
  const type = readU16(bytes, at + 2)
  // Without a sequence number ERSPAN has no header of its own (type I).
  if (type === ETHERTYPE.ERSPAN_II) return findInEthernet(packet, (flags & GRE.SEQUENCE) === 0 ? next : next + 8)
  if (type === ETHERTYPE.ERSPAN_III) {
    if (next + 12 > end) return PACKET.CUT
    return findInEthernet(packet, next + ((bytes[next + 11]! & 1) === 0 ? 12 : 20))
  }
  return findInProtocol(packet, type, next)
}

function findInUdp(packet: Packet, at: number): number {
  const { bytes, end, segment } = packet
  if (at + 8 > end) return PACKET.CUT
  const ports = [readU16(bytes, at), readU16(bytes, at + 2)]
  const destination = ports[1]!
  const next = at + 8
  if (destination === UDP_PORT.VXLAN || destination === UDP_PORT.VXLAN_LINUX) {
    return next + 8 > end ? PACKET.CUT : findInEthernet(packet, next + 8)
  }
  if (destination === UDP_PORT.GENEVE) {
    if (next + 8 > end) return PACKET.CUT
    return findInProtocol(packet, readU16(bytes, next + 2), next + 8 + (bytes[next]! & 63) * 4)
  }
  if (ports.includes(UDP_PORT.IPSEC_NAT)) segment.opaque = 'IPsec'
  else if (ports.includes(UDP_PORT.WIREGUARD)) segment.opaque = 'WireGuard'
  else if (ports.includes(UDP_PORT.L2TP)) segment.opaque = 'L2TP'
  return PACKET.OTHER
}

/** True where packets of this link type can be read. */
export function isKnownLink(link: number): boolean {
  return (Object.values(LINK) as number[]).includes(link)
}

function findInIpv4(packet: Packet, at: number): number {
  const { bytes, end } = packet
  if (at + 20 > end) return PACKET.CUT
  const headerLength = (bytes[at]! & 15) * 4
  if (headerLength < 20) return PACKET.OTHER
  if ((readU16(bytes, at + 6) & 0x3fff) !== 0) return PACKET.FRAGMENT
  // A host that leaves segmentation to its card captures 0 here for packets above 64 KiB.
  const total = readU16(bytes, at + 2)
  if (total !== 0) packet.wireEnd = at + total
  return findInPayload(packet, bytes[at + 9]!, at + headerLength, at + 12, 4)
}

function findInIpv6(packet: Packet, at: number): number {
  const { bytes, end } = packet
  if (at + 40 > end) return PACKET.CUT
  // 0: a jumbogram, or segmentation left to the card.
  const payload = readU16(bytes, at + 4)
  if (payload !== 0) packet.wireEnd = at + 40 + payload
  let next = bytes[at + 6]!
  let nextAt = at + 40
  for (;;) {
    switch (next) {
      case EXTENSION.HOP_BY_HOP:
      case EXTENSION.ROUTING:
      case EXTENSION.DESTINATION:
        if (nextAt + 8 > end) return PACKET.CUT
        next = bytes[nextAt]!
        nextAt += 8 + bytes[nextAt + 1]! * 8
        break
      case EXTENSION.AUTHENTICATION:
        if (nextAt + 8 > end) return PACKET.CUT
        next = bytes[nextAt]!
        nextAt += 8 + bytes[nextAt + 1]! * 4
        break
      case EXTENSION.FRAGMENT:
        if (nextAt + 8 > end) return PACKET.CUT
        // Offset 0 and nothing more to come is a whole packet.
        if ((readU16(bytes, nextAt + 2) & 0xfff9) !== 0) return PACKET.FRAGMENT
        next = bytes[nextAt]!
        nextAt += 8
        break
      default:
        return findInPayload(packet, next, nextAt, at + 8, 16)
    }
  }
}

/** @param source where the source's address stands, the destination's behind it; each of `length` bytes */
function findInTcp(packet: Packet, at: number, source: number, length: number): number {
  const { bytes, end, wireEnd, segment } = packet
  if (at + 20 > end) return PACKET.CUT
  const headerLength = (bytes[at + 12]! >> 4) * 4
  const flags = bytes[at + 13]!
  const payloadAt = at + headerLength
  const payloadLength = wireEnd - payloadAt
  if (headerLength < 20 || payloadLength < 0) return PACKET.OTHER
  const text = length === 4 ? ipv4Text : ipv6Text
  const [from, to] = [text(bytes, source), text(bytes, source + length)]
  segment.key = `${from}:${readU16(bytes, at)} > ${to}:${readU16(bytes, at + 2)}`
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
