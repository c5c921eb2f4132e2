/** A source proxy that says of disks what it must not, to a destination that has targets for both. */
import { once } from 'node:events'
import type net from 'node:net'
import t from 'tap'
import { DestinationDaemon } from '../../src/daemon/destination-daemon.ts'
import { Events, type SiteEvent } from '../../src/daemon/events.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { CODE, FEATURE, FRAME, KIND_DISK } from '../../src/wan/wire.ts'
import { handBatch } from '../codec/hand-batch.ts'
import { until } from '../helpers/until.ts'
import { Peer } from '../hostile/peer.ts'
import { MAIN, MULTIFD, Target } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy

const DISKS = { features: [FEATURE.DISKS] }

async function listening(): Promise<Target> {
  const target = new Target()
  target.server.listen(0, '127.0.0.1')
  await once(target.server, 'listening')
  return target
}

/** A destination with a target `memory` and a target `disk`, and `default` for both. */
class Site implements AsyncDisposable {
  readonly memory: Target
  readonly disk: Target
  readonly told: SiteEvent[]
  private readonly destination: DestinationDaemon

  private constructor(memory: Target, disk: Target, destination: DestinationDaemon, told: SiteEvent[]) {
    this.memory = memory
    this.disk = disk
    this.destination = destination
    this.told = told
  }

  static async start(): Promise<Site> {
    const [memory, disk] = [await listening(), await listening()]
    const events = new Events()
    const told: SiteEvent[] = []
    events.subscribe(event => told.push(event))
    const at = ({ port }: Target) => parseAddress(`tcp:127.0.0.1:${port}`)
    const destination = new DestinationDaemon({
      listen: [{ host: '127.0.0.1', port: 0 }],
      targets: new Map([
        ['default', at(memory)],
        ['memory', at(memory)],
      ]),
      disks: new Map([
        ['default', at(disk)],
        ['disk', at(disk)],
      ]),
      ...{ credentials: undefined, store: undefined, ringPagesMax: 256, placesMax: 4096, queueTargetMs: 50 },
      ...{ patienceMs: 5000, events },
    })
    await destination.start()
    return new Site(memory, disk, destination, told)
  }

  async peer(hello: Parameters<typeof Peer.dial>[1] = DISKS): Promise<Peer> {
    return await Peer.dial({ port: this.destination.addresses[0]!.port, credentials: undefined }, hello)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.destination.abort()
    await this.memory[Symbol.asyncDispose]()
    await this.disk[Symbol.asyncDispose]()
  }
}

/** Code and text of the RESET that comes for this flow. */
async function resetOf(peer: Peer, flow: number, say: () => void): Promise<string> {
  let reset: string | undefined
  peer.onFrame = frame => {
    if (frame.type !== FRAME.RESET || frame.flow !== flow) return
    reset = `${frame.payload[1]} ${Buffer.from(frame.payload.subarray(2))}`
  }
  say()
  return await until(
    () => `a RESET of flow ${flow}; ${peer.goodbye}`,
    () => reset,
  )
}

const REFUSED = CODE.TARGET_REFUSED

t.test('a disk is dialled where disks are, and nothing else is', async t => {
  await using site = await Site.start()
  const peer = await site.peer()
  t.same(peer.hello.features, DISKS.features)
  t.same(peer.hello.targets, ['default', 'memory'], 'targets of disks are not told')
  t.match(await resetOf(peer, 1, () => peer.open(1, 'memory', 1, KIND_DISK)), `${REFUSED} no target "memory" for disks`)
  t.match(await resetOf(peer, 2, () => peer.open(2, 'disk', 2, 'main')), `${REFUSED} no target "disk" here`)
  peer.open(3, 'default', 3, KIND_DISK)
  await until('the server of the disk', () => site.disk.sockets.length === 1)
  peer.open(4, 'default', 4, 'main')
  peer.send(FRAME.DATA, MAIN, 4)
  await until('the QEMU', () => site.memory.received[0]?.equals(MAIN))
  t.equal(site.disk.sockets.length, 1)
  peer.send(FRAME.DATA, MAIN, 3)
  await until('what it is told', () => site.disk.received[0]?.equals(MAIN))
  t.pass('whatever it is: the server judges it')
  peer.close()
})

t.test('a number is of a migration or of disks', async t => {
  await using site = await Site.start()
  const peer = await site.peer()
  peer.open(1, 'default', 7, KIND_DISK)
  await until('the disk', () => site.disk.sockets.length === 1)
  for (const [flow, kind] of [
    [2, 'main'],
    [3, 'multifd'],
    [4, 'preempt'],
    [5, 'recovery'],
  ] as const)
    t.match(await resetOf(peer, flow, () => peer.open(flow, 'default', 7, kind)), `${REFUSED} a disk within`, kind)
  peer.open(6, 'default', 8, 'main')
  peer.send(FRAME.DATA, MAIN, 6)
  await until('the QEMU', () => site.memory.sockets.length === 1)
  t.match(await resetOf(peer, 9, () => peer.open(9, 'default', 8, KIND_DISK)), `${REFUSED} a disk within`)
  peer.open(10, 'default', 8, 'multifd')
  peer.send(FRAME.DATA, MULTIFD, 10)
  await until('a channel of its', () => site.memory.received[1]?.equals(MULTIFD))
  t.equal(site.disk.sockets.length, 1)
  peer.close()
  const ended = await until('the end of the disk', () => site.told.find(({ event }) => event === 'disk transfer ended'))
  t.match(ended, { level: 'warn', fields: { transfer: 7, connections: 5 } })
})

t.test('a session without disks', async t => {
  await using site = await Site.start()
  const peer = await site.peer({})
  t.equal(peer.hello.features, undefined)
  t.match(await resetOf(peer, 1, () => peer.open(1, 'default', 1, KIND_DISK)), `${REFUSED} a disk in a session without`)
  t.equal(site.disk.sockets.length, 0)
  peer.open(2)
  // EXTENDED 1, EXPORT: of one byte, which is refused before its checksum is looked at
  const ops = { column: 0, method: 0, rawLength: 2, packed: Buffer.of(0x01, 2) }
  peer.send(FRAME.BATCH, handBatch(1, 0n, [ops]), 2)
  await until('its end', () => peer.goodbye !== 'no BYE')
  t.match(peer.goodbye, `BYE ${CODE.BATCH_FORMAT}`)
})

t.test('OPEN and RESET of disks over and over, and then one that is meant', async t => {
  await using site = await Site.start()
  const peer = await site.peer()
  for (let flow = 1; flow <= 600; flow++) {
    peer.open(flow, 'default', flow, KIND_DISK)
    peer.reset(flow)
    if (flow % 20 === 0) await peer.flushed()
  }
  await until('their ends', () => (peer.counts.get(FRAME.END) ?? 0) === 600)
  await until('connections to be gone', () =>
    site.disk.sockets.every(socket => socket.destroyed || socket.readableEnded),
  )
  site.disk.onConnection = (socket: net.Socket) => socket.write('NBDMAGIC')
  let data = ''
  peer.onFrame = frame => {
    if (frame.type === FRAME.DATA) data += Buffer.from(frame.payload)
  }
  peer.open(601, 'default', 601, KIND_DISK)
  await until('a greeting', () => data === 'NBDMAGIC')
  t.ok(site.disk.sockets.length <= 601, `${site.disk.sockets.length} were dialled`)
  peer.close()
})
