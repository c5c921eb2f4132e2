/** Packets within packets: what captures of data centres hold around a migration's TCP. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { ChannelReader } from '../../src/capture/channels.ts'
import { type ChannelFormat, recognize } from '../../src/capture/formats.ts'
import { until } from '../helpers/until.ts'
import { connection, migration, packetBytes, page, pcap, pcapng, pcapOf, scratch } from '../template/makers.ts'

t.setTimeout(590_000) // the machine may be busy
const STREAM = migration(Array.from({ length: 30 }, (_, i) => page(i + 1)))
const ETHERNET = 1
const SLL = 113
const SLL2 = 276

interface Channels {
  readonly streams: Buffer[]
  readonly gaps: number
}

function channelsOf(bytes: Buffer): Channels {
  const pieces: Buffer[][] = []
  let gaps = 0
  const reader = new ChannelReader('capture', recognize(bytes.subarray(0, 4096)).format as ChannelFormat, {
    open: channel => {
      pieces[channel] = []
    },
    bytes: (channel, chunk, at, length) => pieces[channel]!.push(Buffer.from(chunk.subarray(at, at + length))),
    gap: () => gaps++,
    end: () => {},
  })
  for (let at = 0; at < bytes.length; at += 77_777) reader.push(Buffer.from(bytes.subarray(at, at + 77_777)))
  reader.end()
  return { streams: pieces.map(list => Buffer.concat(list)), gaps }
}

const u16 = (...values: number[]): Buffer => Buffer.from(values.flatMap(value => [value >> 8, value & 255]))
const zeros = (length: number): Buffer => Buffer.alloc(length)
type Wrap = (inner: Buffer) => Buffer
const join2 =
  (...heads: Buffer[]): Wrap =>
  inner =>
    Buffer.concat([...heads, inner])
const ethernet = (type: number): Wrap => join2(zeros(12), u16(type))
const sll = (type: number): Wrap => join2(zeros(14), u16(type))
const sll2 = (type: number): Wrap => join2(u16(type), zeros(18))
const vlan = (type: number): Wrap => join2(u16(5, type))
const ipv4 =
  (protocol: number, fragment = 0): Wrap =>
  inner => {
    const head = zeros(20)
    head[0] = 0x45
    head.writeUInt16BE(20 + inner.length, 2)
    head.writeUInt16BE(fragment, 6)
    head[9] = protocol
    return Buffer.concat([head, inner])
  }
const ipv6 =
  (next: number): Wrap =>
  inner => {
    const head = zeros(40)
    head[0] = 0x60
    head.writeUInt16BE(inner.length, 4)
    head[6] = next
    return Buffer.concat([head, inner])
  }
const udp =
  (port: number): Wrap =>
  inner =>
    Buffer.concat([u16(40_000, port, 8 + inner.length, 0), inner])
const gre = (flags: number, type: number, options = 0): Wrap => join2(u16(flags, type), zeros(options))
const through =
  (...wraps: Wrap[]): Wrap =>
  inner =>
    wraps.reduceRight((bytes, wrap) => wrap(bytes), inner)

const WRAPPED: [name: string, link: number, wrap: Wrap][] = [
  ['VLAN within SLL', SLL, through(sll(0x8100), vlan(0x0800))],
  ['VLAN within SLL2', SLL2, through(sll2(0x8100), vlan(0x0800))],
  ['QinQ within SLL2', SLL2, through(sll2(0x88a8), vlan(0x8100), vlan(0x0800))],
  ['MPLS', ETHERNET, through(ethernet(0x8847), join2(Buffer.from('0001004000020140', 'hex')))],
  [
    'Ethernet over MPLS',
    ETHERNET,
    through(ethernet(0x8847), join2(Buffer.from('0002014000000000', 'hex')), ethernet(0x0800)),
  ],
  ['PPPoE', ETHERNET, through(ethernet(0x8864), join2(Buffer.from('1100000100000021', 'hex')))],
  ['IP in IP', ETHERNET, through(ethernet(0x0800), ipv4(4))],
  ['IPv4 in IPv6', ETHERNET, through(ethernet(0x86dd), ipv6(4))],
  ['GRE', ETHERNET, through(ethernet(0x0800), ipv4(47), gre(0, 0x0800))],
  ['GRE with key, checksum, sequence', ETHERNET, through(ethernet(0x0800), ipv4(47), gre(0xb000, 0x0800, 12))],
  ['NVGRE', ETHERNET, through(ethernet(0x0800), ipv4(47), gre(0x2000, 0x6558, 4), ethernet(0x0800))],
  ['ERSPAN', ETHERNET, through(ethernet(0x0800), ipv4(47), gre(0x1000, 0x88be, 12), ethernet(0x0800))],
  ['VXLAN', ETHERNET, through(ethernet(0x0800), ipv4(17), udp(4789), join2(zeros(8)), ethernet(0x0800))],
  [
    'VLAN in VXLAN over IPv6, Linux port',
    ETHERNET,
    through(ethernet(0x86dd), ipv6(17), udp(8472), join2(zeros(8)), ethernet(0x8100), vlan(0x0800)),
  ],
  [
    'Geneve with options',
    SLL2,
    through(
      sll2(0x0800),
      ipv4(17),
      udp(6081),
      join2(Buffer.from('0200655800000100', 'hex'), zeros(8)),
      ethernet(0x0800),
    ),
  ],
]

t.test('is read', t => {
  const packets = connection(STREAM).map(packet => packetBytes(packet, { link: 'raw' }))
  for (const [name, link, wrap] of WRAPPED) {
    const { streams, gaps } = channelsOf(pcapOf(link, packets.map(wrap)))
    t.ok(streams.length === 1 && streams[0]!.equals(STREAM) && gaps === 0, name)
    const short = packets.map(wrap).map(bytes => bytes.subarray(0, 1 + (bytes.length % 60)))
    t.throws(() => channelsOf(pcapOf(link, short)), { code: /^CAPTURE_/ }, `${name}, cut anywhere`)
  }
  const both = packets.flatMap(bytes => [ethernet(0x0800)(bytes), WRAPPED[12]![2](bytes)])
  const seen = channelsOf(pcapOf(ETHERNET, both))
  t.ok(seen.streams.length === 1 && seen.streams[0]!.equals(STREAM), 'within and without, as `-i any` sees them')
  t.end()
})

t.test('or named, with advice', t => {
  const packets = connection(STREAM).map(packet => packetBytes(packet, { link: 'raw' }))
  const opaque: [string, Wrap][] = [
    ['IPsec', through(ethernet(0x0800), ipv4(50))],
    ['IPsec', through(ethernet(0x0800), ipv4(17), udp(4500))],
    ['WireGuard', through(ethernet(0x0800), ipv4(17), udp(51_820))],
    ['MACsec', ethernet(0x88e5)],
    ['L2TP', through(ethernet(0x0800), ipv4(17), udp(1701))],
    ['L2TP', through(ethernet(0x0800), ipv4(115))],
    ['L2TP', through(ethernet(0x86dd), ipv6(115))],
    ['GRE of another version', through(ethernet(0x0800), ipv4(47), gre(1, 0x880b))],
  ]
  for (const [name, wrap] of opaque) {
    const what = new RegExp(`packets of ${name}, which cannot`)
    t.throws(() => channelsOf(pcapOf(ETHERNET, packets.map(wrap))), {
      code: 'CAPTURE_FORMAT',
      what,
      action: /inner interface/,
    })
  }
  const parts = packets.map(through(ethernet(0x0800), ipv4(4, 0x2000)))
  t.throws(() => channelsOf(pcapOf(ETHERNET, parts)), { code: 'CAPTURE_FORMAT', what: /fragments/ })
  // A packet that holds itself: labels, tags and tunnels without end.
  const deep = Array.from({ length: 100 }).reduce<Buffer>(bytes => ipv4(4)(bytes), packets[1]!)
  t.throws(() => channelsOf(pcapOf(ETHERNET, [ethernet(0x0800)(deep)])), { code: 'CAPTURE_FORMAT' })
  t.end()
})

t.test('a capture in several files, one behind the other', t => {
  const packets = connection(STREAM)
  for (const [name, write] of [
    ['pcap', pcap],
    ['pcapng', pcapng],
  ] as const) {
    const parts = [packets.slice(0, 20), packets.slice(20, 21), packets.slice(21)]
    const orders = parts.map((some, i) => write(some, { littleEndian: i !== 1, nano: i === 2 }))
    const { streams } = channelsOf(Buffer.concat(orders))
    t.ok(streams.length === 1 && streams[0]!.equals(STREAM), name)
  }
  t.throws(
    () => channelsOf(pcap(packets.slice(20))),
    { code: 'CAPTURE_GAP', action: /mergecap/ },
    'or the hint says how',
  )
  t.end()
})

const tcpdump = spawnSync('tcpdump', ['--version']).status === 0 && process.getuid?.() === 0
t.test('tcpdump itself, rotating', { skip: !tcpdump && 'tcpdump is not installed, or not for us' }, async t => {
  const { folder } = scratch(t.teardown)
  const large = Buffer.concat(Array.from({ length: 20 }, () => STREAM))
  const server = createServer(socket =>
    socket
      .on('error', () => {})
      .resume()
      .on('end', () => socket.end()),
  )
  t.teardown(() => server.close())
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as AddressInfo
  const args = ['-i', 'lo', '-s', '0', '-B', '65536', '-U', '-C', '1', '-Z', 'root', '-w', join(folder, 'c.pcap')]
  const dump = spawn('tcpdump', [...args, 'tcp', 'dst', 'port', String(port)], { stdio: ['ignore', 'ignore', 'pipe'] })
  let told = ''
  dump.stderr.on('data', chunk => {
    told += chunk
  })
  await until('tcpdump', () => told.includes('listening on'))
  const client = connect(port, '127.0.0.1')
  client.end(large)
  client.resume()
  await once(client, 'close')
  const number = (name: string): number => Number(/\d*$/.exec(name)![0])
  const files = (): string[] => readdirSync(folder).sort((a, b) => number(a) - number(b))
  const captured = () => channelsOf(Buffer.concat(files().map(name => readFileSync(join(folder, name))))).streams
  // it writes its last packets some time after the connection has ended, and each file may end within one until then
  await until('all packets', () => {
    try {
      return captured()[0]?.length === large.length
    } catch {
      return false
    }
  })
  dump.kill('SIGINT')
  await once(dump, 'close')
  t.ok(files().length > 2, files().join())
  const streams = captured()
  t.ok(streams.length === 1 && streams[0]!.equals(large), `put together: ${told.trim()}`)
})
