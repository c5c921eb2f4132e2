/** What is read of disks, where the other proxy has gone bad: a destination that sends it, a source that asks for it. */
import { once } from 'node:events'
import net from 'node:net'
import t from 'tap'
import { DestinationDaemon } from '../../src/daemon/destination-daemon.ts'
import { Events } from '../../src/daemon/events.ts'
import { SourceDaemon } from '../../src/daemon/source-daemon.ts'
import type { Link } from '../../src/link/link.ts'
import { LinkServer } from '../../src/link/server.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { CODE, FEATURE, FRAME, KIND_DISK } from '../../src/wan/wire.ts'
import { handBatch } from '../codec/hand-batch.ts'
import { checksum } from '../codec/second-decoder.ts'
import { sinkOf } from '../helpers/silent-sink.ts'
import { until } from '../helpers/until.ts'
import { Peer } from '../hostile/peer.ts'
import { TestLog } from '../link/harness.ts'
import { closed, MAIN, Target } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy

/** A batch of a few bytes that are no message. */
function other(text: string, seed: bigint): Buffer {
  const bytes = Buffer.from(text)
  return handBatch(bytes.length, checksum(bytes, seed), [
    { column: 0, method: 0, rawLength: 1, packed: Buffer.of(0x80 + bytes.length) },
    { column: 2, method: 0, rawLength: bytes.length, packed: bytes },
  ])
}

/** A source proxy that ships, and a destination that does with each flow what a test says. */
class Site implements AsyncDisposable {
  readonly links: Link[] = []
  seed = 0n
  goodbye = 'no BYE'
  onOpen: (link: Link, flow: number, replies: number | undefined) => void = () => {}
  onFin: (link: Link, flow: number) => void = () => {}
  readonly source: SourceDaemon
  private readonly server: LinkServer

  private constructor(source: (port: number) => SourceDaemon, server: LinkServer, port: number) {
    this.server = server
    this.source = source(port)
  }

  static async start(): Promise<Site> {
    let site: Site
    const server = new LinkServer({
      plaintext: true,
      logger: new TestLog(),
      accept: hello => ({
        ...{ sets: [], ring: hello.ring, places: hello.places, targets: [] },
        serve: link => {
          site.links.push(link)
          site.seed = BigInt(`0x${hello.seed}`)
          return sinkOf({
            onOpen: (flow, { replies }) => site.onOpen(link, flow, replies),
            onBatch: (flow, _parts, rawLength) => link.session.consumed(flow, rawLength),
            onFin: flow => site.onFin(link, flow),
            onReset: flow => link.session.resetFlow(flow, 0, ''),
            onBye: (code, text) => {
              site.goodbye = `BYE ${code} ${text}`
            },
          })
        },
      }),
    })
    const { port } = await server.listen({ host: '127.0.0.1', port: 0 })
    const at = { name: 'default', address: parseAddress('tcp:127.0.0.1:0') }
    site = new Site(
      to =>
        new SourceDaemon({
          ...{ listen: [at], disks: [at], beyondLoopback: false, peer: { host: '127.0.0.1', port: to } },
          ...{ credentials: undefined, store: undefined, ringPages: 256, places: 4096, effort: 0, connections: 1 },
          ...{ rate: Number.POSITIVE_INFINITY, queueTargetMs: 50, patienceMs: 5000, events: new Events() },
        }),
      server,
      port,
    )
    await site.source.start()
    await until('a session', () => site.links.length > 0)
    return site
  }

  /** A client of the disk, or a QEMU. */
  async connect(isDisk = true): Promise<{ socket: net.Socket; heard: () => string }> {
    const [address] = isDisk ? this.source.diskAddresses : this.source.addresses
    const socket = net.connect({ port: address?.kind === 'tcp' ? address.port : 0, host: '127.0.0.1' })
    let heard = ''
    socket.on('error', () => {})
    socket.on('data', chunk => {
      heard += String(chunk)
    })
    await once(socket, 'connect')
    return { socket, heard: () => heard }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.source.abort()
    await this.source.ended
    await this.server.close(0)
  }
}

t.test('batches, bytes as they are and the end come in their order', async t => {
  await using site = await Site.start()
  let opened = 0
  site.onOpen = (_link, _flow, replies) => {
    opened++
    t.equal(replies, 224, 'the ring of the session, 7 of 8 parts of 256 pages, is smaller than what replies may have')
  }
  site.onFin = ({ session }, flow) => {
    // all at once: the end of the flow is there before its last batches are expanded
    for (let i = 0; i < 200; i++) {
      const text = `batch ${i}, `
      session.sendBatch(flow, text.length, [other(text, site.seed)])
      if (i % 8 === 0) session.sendData(flow, Buffer.from(`as it is ${i}, `))
    }
    session.finFlow(flow)
  }
  const expected = Array.from({ length: 200 }, (_, i) => `batch ${i}, ${i % 8 === 0 ? `as it is ${i}, ` : ''}`).join('')
  for (let run = 0; run < 6; run++) {
    const { socket, heard } = await site.connect()
    await until('its flow', () => opened > run)
    socket.end()
    await once(socket, 'end')
    t.equal(heard(), expected)
  }
  t.equal(site.links.length, 1)
  t.equal(site.goodbye, 'no BYE')
})

t.test('a flow that is torn down behind its batches, while others go on', async t => {
  await using site = await Site.start()
  let opened = 0
  site.onOpen = ({ session }, flow) => {
    const isLast = ++opened === 4
    for (let i = 0; i < 20; i++) session.sendBatch(flow, 4, [other('abcd', site.seed)])
    if (isLast) session.finFlow(flow)
    else session.resetFlow(flow, CODE.QEMU_LOST, 'gone')
  }
  for (let run = 0; run < 3; run++) {
    const { socket, heard } = await site.connect()
    await closed(socket)
    t.equal('abcd'.repeat(20).startsWith(heard()), true)
  }
  const { socket, heard } = await site.connect()
  await once(socket, 'end')
  t.equal(heard(), 'abcd'.repeat(20), 'the pool has followed all of them')
  t.equal(site.links.length, 1)
})

t.test('what a destination must not send ends the session', async t => {
  const zero = { column: 0, method: 0, rawLength: 2, packed: Buffer.of(0x01, 0x00) }
  const cases: [string, boolean, (seed: bigint) => Buffer, number][] = [
    ['a batch for a migration', false, seed => other('x', seed), CODE.PROTOCOL_STATE],
    ['another checksum', true, seed => other('x', seed ^ 1n), CODE.BATCH_CHECKSUM],
    ['a cold page', true, () => handBatch(4096, 0n, [zero]), CODE.BATCH_FORMAT],
    ['no batch', true, () => Buffer.of(1, 1, 2, 3), CODE.BATCH_FORMAT],
  ]
  for (const [name, isDisk, make, code] of cases) {
    await using site = await Site.start()
    site.onOpen = ({ session }, flow) => {
      const batch = make(site.seed)
      session.sendBatch(flow, name === 'a cold page' ? 4096 : 1, [batch])
    }
    const { socket } = await site.connect(isDisk)
    if (!isDisk) socket.write(MAIN)
    await until(`the end by ${name}`, () => site.goodbye !== 'no BYE')
    t.match(site.goodbye, `BYE ${code} `, name)
    socket.destroy()
  }
})

t.test('what a source must not ask for', async t => {
  const disk = new Target()
  disk.server.listen(0, '127.0.0.1')
  await once(disk.server, 'listening')
  const destination = new DestinationDaemon({
    listen: [{ host: '127.0.0.1', port: 0 }],
    targets: new Map(),
    disks: new Map([['default', parseAddress(`tcp:127.0.0.1:${disk.port}`)]]),
    ...{ credentials: undefined, store: undefined, ringPagesMax: 256, placesMax: 4096, queueTargetMs: 50 },
    ...{ patienceMs: 5000, events: new Events() },
  })
  await destination.start()
  t.teardown(async () => {
    await destination.abort()
    await disk[Symbol.asyncDispose]()
  })
  const features = [FEATURE.DISKS, FEATURE.DISK_REPLIES]
  const peer = async () =>
    await Peer.dial({ port: destination.addresses[0]!.port, credentials: undefined }, { features })
  const open = (to: Peer, flow: number, replies: unknown, kind = KIND_DISK): void => {
    to.send(FRAME.OPEN, Buffer.from(JSON.stringify({ target: 'default', migration: flow, kind, replies })), flow)
  }
  for (const [name, say] of [
    ['a ring that is too large', to => open(to, 1, 4097)],
    ['no number', to => open(to, 1, '1')],
    ['a migration', to => open(to, 1, 16, 'main')],
    [
      'another ring than before',
      to => {
        open(to, 1, 16)
        open(to, 2, 17)
      },
    ],
  ] as [string, (to: Peer) => void][]) {
    const bad = await peer()
    say(bad)
    await until(`the end by ${name}`, () => bad.goodbye !== 'no BYE')
    t.match(bad.goodbye, `BYE ${CODE.PROTOCOL_SYNTAX}`, name)
  }
  const good = await peer()
  t.same(good.hello.features, features)
  const dialled = disk.sockets.length
  open(good, 1, 16)
  await until('the disk', () => disk.sockets.length > dialled)
  t.equal(good.goodbye, 'no BYE')
  good.close()
})
