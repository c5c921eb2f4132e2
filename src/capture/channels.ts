/** Finds the channels of a migration in an input: a raw stream is one channel, a capture holds several. */
import { ProxyError } from '../errors.ts'
import { CHANNEL_KIND_BYTES_MAX, channelKind } from '../qemu/channel-kind.ts'
import type { ChannelFormat } from './formats.ts'
import { findSegment, isKnownLink, type Opaque, PACKET, Segment } from './link.ts'
import { CAPTURE_COMMAND, JOIN_ROTATED } from './missing.ts'
import { type PacketFile, PcapngReader, PcapReader } from './packet-file.ts'
import { type ChannelSink, TcpReassembler } from './tcp.ts'

/**
 * Takes the bytes of an input of known format, decompressed and cut anywhere, and hands its channels to the sink. A raw
 * stream (as `migrate exec:` or `file:` write it) is one channel.
 */
export class ChannelReader {
  private readonly name: string
  private readonly sink: ChannelSink
  private readonly tcp: TcpReassembler
  private readonly segment = new Segment()
  private readonly packets: PacketFile | undefined
  /** First bytes of a raw stream, as long as they do not tell its kind. */
  private opening: Buffer | undefined = Buffer.alloc(0)
  private position = 0
  private fragments = 0
  private unknownLink = -1
  /** What packets were wrapped in that cannot be looked into. */
  private opaque: Opaque | undefined
  private channelsSeen = 0

  /** @param name what errors call the input */
  constructor(name: string, format: ChannelFormat, sink: ChannelSink) {
    this.name = name
    this.sink = {
      open: (channel, kind, connection) => {
        this.channelsSeen++
        sink.open(channel, kind, connection)
      },
      bytes: (channel, chunk, at, length) => sink.bytes(channel, chunk, at, length),
      gap: (channel, position, lengthBytes, reason) => {
        const fragments = this.fragments > 0 ? ' (IP fragments are not put together)' : ''
        sink.gap(channel, position, lengthBytes, reason + fragments)
      },
      end: (channel, position) => sink.end(channel, position),
    }
    this.tcp = new TcpReassembler(this.sink)
    if (format === 'stream') return
    const packetSink = {
      packet: (link: number, bytes: Buffer, at: number, end: number, originalLength: number): void => {
        const found = findSegment(link, bytes, at, end, originalLength, this.segment)
        if (found === PACKET.SEGMENT) this.tcp.push(this.segment, bytes)
        else if (found === PACKET.FRAGMENT) this.fragments++
        else if (found === PACKET.OTHER) {
          if (!isKnownLink(link)) this.unknownLink = link
          else if (this.segment.opaque !== undefined) this.opaque = this.segment.opaque
        }
      },
    }
    this.packets = format === 'pcap' ? new PcapReader(name, packetSink) : new PcapngReader(name, packetSink)
  }

  /** Takes the next bytes. Keeps copies only. @throws CAPTURE_FORMAT */
  push(chunk: Buffer): void {
    if (this.packets !== undefined) this.packets.push(chunk)
    else this.pushStream(chunk)
    this.position += chunk.length
  }

  /** The input ended. @throws CAPTURE_FORMAT, CAPTURE_GAP where no channel was found in it */
  end(): void {
    if (this.packets === undefined) {
      if (this.opening !== undefined) this.openStream(this.opening)
      this.sink.end(0, this.position)
      return
    }
    this.packets.end() // a capture tool that is killed leaves half a packet: the streams tell whether it matters
    this.tcp.end()
    if (this.channelsSeen === 0) throw this.nothingFound()
  }

  private pushStream(chunk: Buffer): void {
    if (this.opening === undefined) {
      this.sink.bytes(0, chunk, 0, chunk.length)
      return
    }
    this.opening = Buffer.concat([this.opening, chunk])
    if (this.opening.length >= CHANNEL_KIND_BYTES_MAX) this.openStream(this.opening)
  }

  private openStream(opening: Buffer): void {
    this.opening = undefined
    this.sink.open(0, channelKind(opening) ?? 'unknown', this.name)
    this.sink.bytes(0, opening, 0, opening.length)
  }

  private nothingFound(): ProxyError {
    const where = { stream: this.name, offset: 0 }
    const { headless, tlsFlows } = this.tcp
    if (tlsFlows > 0) {
      const what = 'no migration in this capture, but TLS connections'
      return new ProxyError(
        'CAPTURE_FORMAT',
        what,
        where,
        'capture a migration without TLS: encrypted pages are unreadable',
      )
    }
    if (headless?.beginsLate) {
      const what = `no migration in this capture: ${headless.name} begins behind its other packets`
      return new ProxyError('CAPTURE_FORMAT', what, where, 'put them in order first: reordercap FILE ORDERED')
    }
    if (headless !== undefined) {
      const what = `no migration begins in this capture; it lacks the beginning of ${headless.name}`
      const action = `start the capture before the migration; ${JOIN_ROTATED}`
      return new ProxyError('CAPTURE_GAP', what, where, action)
    }
    if (this.opaque !== undefined) {
      const what = `no migration in this capture, but packets of ${this.opaque}, which cannot be looked into`
      const action = 'capture where the packets are not wrapped: on the inner interface, or on the hosts of the QEMUs'
      return new ProxyError('CAPTURE_FORMAT', what, where, action)
    }
    if (this.unknownLink >= 0) {
      const what = `no migration in this capture of link type ${this.unknownLink}`
      return new ProxyError('CAPTURE_FORMAT', what, where, 'this link type is not known; capture on Ethernet or `any`')
    }
    const fragments = this.fragments === 0 ? '' : '; it has IP fragments, which are not put together'
    const action = `capture the TCP port of the migration: ${CAPTURE_COMMAND}`
    return new ProxyError('CAPTURE_FORMAT', `no migration in this capture${fragments}`, where, action)
  }
}
