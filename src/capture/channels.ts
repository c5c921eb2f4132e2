/** Finds the channels of a migration in an input: a raw stream is one channel, a capture holds several. */
import { ProxyError } from '../errors.ts'
import { type ChannelKind, channelKind } from '../qemu/channel-kind.ts'
import { findSegment, isKnownLink, PACKET, Segment } from './link.ts'
import { isPcap, isPcapng, type PacketFile, PcapngReader, PcapReader } from './packet-file.ts'
import { type ChannelSink, TcpReassembler } from './tcp.ts'

/** What an input is. */
export type InputFormat = 'stream' | 'pcap' | 'pcapng'

/** Bytes that tell the format. */
const MAGIC_LENGTH = 4

/**
 * Takes the bytes of an input, decompressed and cut anywhere, and hands its channels to the sink. A raw stream (as
 * `migrate exec:` or `file:` write it) is told by its own first bytes.
 */
export class ChannelReader {
  /** undefined before the first four bytes. */
  format: InputFormat | undefined
  private readonly name: string
  private readonly sink: ChannelSink
  private readonly tcp: TcpReassembler
  private readonly segment = new Segment()
  private packets: PacketFile | undefined
  private opening: Buffer = Buffer.alloc(0)
  private position = 0
  private fragments = 0
  private unknownLink = -1
  private channelsSeen = 0

  /** @param name what errors call the input */
  constructor(name: string, sink: ChannelSink) {
    this.name = name
    this.sink = {
      open: (channel, kind, connection) => {
        this.channelsSeen++
        sink.open(channel, kind, connection)
      },
      bytes: (channel, chunk, at, length) => sink.bytes(channel, chunk, at, length),
      end: (channel, position, gap) => {
        const fragments = gap !== undefined && this.fragments > 0 ? ' (IP fragments are not put together)' : ''
        sink.end(channel, position, gap === undefined ? undefined : gap + fragments)
      },
    }
    this.tcp = new TcpReassembler(this.sink)
  }

  /** Takes the next bytes. Keeps copies only. @throws CAPTURE_FORMAT */
  push(chunk: Buffer): void {
    if (this.format === undefined) {
      this.opening = this.opening.length === 0 ? chunk : Buffer.concat([this.opening, chunk])
      if (this.opening.length < MAGIC_LENGTH) {
        this.opening = Buffer.from(this.opening)
        return
      }
      chunk = this.opening
      this.opening = Buffer.alloc(0)
      this.detect(chunk)
    }
    if (this.packets !== undefined) this.packets.push(chunk)
    else this.sink.bytes(0, chunk, 0, chunk.length)
    this.position += chunk.length
  }

  /** The input ended. @throws CAPTURE_FORMAT, CAPTURE_GAP where no channel was found in it */
  end(): void {
    if (this.format === undefined) throw this.unknown('too short for a migration stream or a capture')
    if (this.packets === undefined) {
      this.sink.end(0, this.position, undefined)
      return
    }
    this.packets.end() // a capture tool that is killed leaves half a packet: the streams tell whether it matters
    this.tcp.end()
    if (this.channelsSeen === 0) throw this.nothingFound()
  }

  private detect(first: Buffer): void {
    const magic = first.readUInt32BE(0)
    if (isPcap(magic) || isPcapng(magic)) {
      const sink = {
        packet: (link: number, bytes: Buffer, at: number, end: number, originalLength: number): void => {
          const found = findSegment(link, bytes, at, end, originalLength, this.segment)
          if (found === PACKET.SEGMENT) this.tcp.push(this.segment, bytes)
          else if (found === PACKET.FRAGMENT) this.fragments++
          else if (found === PACKET.OTHER && !isKnownLink(link)) this.unknownLink = link
        },
      }
      this.format = isPcap(magic) ? 'pcap' : 'pcapng'
      this.packets = isPcap(magic) ? new PcapReader(this.name, sink) : new PcapngReader(this.name, sink)
      return
    }
    const kind: ChannelKind = channelKind(first) ?? 'unknown'
    if (kind !== 'main' && kind !== 'multifd') {
      throw this.unknown(kind === 'tls' ? 'a TLS stream, which cannot be read' : 'neither migration stream nor capture')
    }
    this.format = 'stream'
    this.sink.open(0, kind, this.name)
  }

  private unknown(what: string): ProxyError {
    const where = { stream: this.name, offset: 0 }
    const action =
      'give a stream as QEMU writes it, or a .pcap or .pcapng file, as they are or compressed with zstd or gzip'
    return new ProxyError('CAPTURE_FORMAT', what, where, action)
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
    if (headless !== undefined) {
      const what = `no migration begins in this capture; it lacks the beginning of ${headless.name}`
      return new ProxyError('CAPTURE_GAP', what, where, 'start the capture before the migration')
    }
    if (this.unknownLink >= 0) {
      const what = `no migration in this capture of link type ${this.unknownLink}`
      return new ProxyError('CAPTURE_FORMAT', what, where, 'this link type is not known; capture on Ethernet or `any`')
    }
    const action = 'capture the TCP port of the migration: tcpdump -s 0 -B 65536 -w FILE tcp port PORT'
    return new ProxyError('CAPTURE_FORMAT', 'no migration in this capture', where, action)
  }
}
