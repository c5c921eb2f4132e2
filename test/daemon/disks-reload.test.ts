/**
 * A disk that is open while an operator reloads keys, or brings other sets: it goes on to its end in the session that it has,
 * and memory migrates in the next one meanwhile.
 */
import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { SESSIONS_LEFT_MAX } from '../../src/limits.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { until } from '../helpers/until.ts'
import { makeCrl } from '../link/crl.ts'
import { credentials, makeCredentials } from '../link/harness.ts'
import { putPages } from '../template/makers.ts'
import { type Daemons, type DaemonsOptions, MAIN, runsOf } from './daemons.ts'
import { DiskClient } from './disk-client.ts'
import { DiskPair } from './disk-pair.ts'
import { NBD_SKIP, Nbdkit } from './nbd.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20

/** A pair with a disk behind it, and what it should have on it by now. */
class World implements AsyncDisposable {
  readonly pair: DiskPair
  private readonly kit: Nbdkit
  private readonly file: string
  private readonly expected: Buffer

  private constructor(pair: DiskPair, kit: Nbdkit, file: string) {
    this.pair = pair
    this.kit = kit
    this.file = file
    this.expected = Buffer.alloc(8 * MIB)
  }

  static async start(folder: string, options: DaemonsOptions = {}): Promise<World> {
    const file = join(folder, 'disk')
    writeFileSync(file, Buffer.alloc(8 * MIB))
    const kit = await Nbdkit.start('file', file)
    return new World(await DiskPair.start(`unix:${kit.socket}`, options), kit, file)
  }

  get daemons(): Daemons {
    return this.pair.daemons
  }

  async disk(): Promise<DiskClient> {
    return await DiskClient.open(this.daemons.diskPort)
  }

  /** Something new for the disk, at this MiB. */
  async writes(disk: DiskClient, mib: number): Promise<void> {
    const data = randomBytes(MIB / 2)
    data.copy(this.expected, mib * MIB)
    await disk.write(mib * MIB, data)
  }

  /** Memory migrates, and ends. */
  async migrates(): Promise<void> {
    const { daemons } = this
    const before = daemons.summaries.length
    const qemu = await daemons.dial()
    const at = daemons.target.received.length
    qemu.end(MAIN)
    await until('a migration', () => daemons.target.received[at]?.equals(MAIN))
    daemons.target.sockets[at]!.end()
    await until('its end', () => daemons.summaries.length > before)
  }

  /** The sessions of the source: of the present one, and of those that were left. */
  get links(): { readonly now: string | undefined; readonly left: readonly string[] } {
    const { session, left } = this.daemons.source.status()
    return { now: session?.link, left: left.map(({ link }) => link) }
  }

  isRight(): boolean {
    return readFileSync(this.file).equals(this.expected)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.pair[Symbol.asyncDispose]()
    await this.kit[Symbol.asyncDispose]()
  }
}

for (const side of ['destination', 'source'] as const) {
  t.test(`a reload at the ${side}`, { skip: NBD_SKIP }, async t => {
    const keys = await makeCredentials('x509', t)
    await using world = await World.start(t.testdir(), {
      credentials: {
        source: credentials(`${keys}/site-a`, { peerName: 'site-b' }),
        destination: credentials(`${keys}/site-b`, { role: 'server' }),
      },
    })
    const { daemons } = world
    const disk = await world.disk()
    await world.writes(disk, 0)
    await world.migrates()
    const first = world.links.now!
    t.same(world.links.left, [], 'memory goes beside it')
    writeFileSync(join(keys, side === 'source' ? 'site-a' : 'site-b', 'ca-crl.pem'), await makeCrl(keys))
    daemons[side].reload()
    await until('the next session', () => world.links.left.length === 1 && world.links.now !== undefined)
    t.same(world.links.left, [first])
    await world.writes(disk, 1)
    await world.migrates()
    t.not(world.links.now, first)
    const { session, left } = daemons.source.status()
    t.match([session?.disks, left[0]?.disks], [[], [{ connections: 1 }]], 'it is told of where it is')
    t.equal(daemons.destination.status().sessions.length, 2)
    const other = await world.disk()
    await world.writes(other, 2)
    t.match(daemons.source.status().session?.disks, [{ connections: 1 }], 'what comes is of the next session')
    await world.writes(disk, 3)
    await disk.flush()
    await disk.close()
    await until('the end of its session', () => world.links.left.length === 0)
    await until('at both sides', () => daemons.destination.status().sessions.length === 1)
    await world.writes(other, 4)
    await other.close()
    await until('the other transfer', () => daemons.disksEnded.length === 4)
    t.same(
      daemons.disksEnded.map(({ endedBy }) => endedBy),
      Array(4).fill('both sides closed'),
      'nothing of a disk was lost',
    )
    t.ok(world.isRight(), 'byte for byte')
    t.same(
      [world.pair.count('connection refused'), world.pair.count('migration given up'), world.pair.count('link.defect')],
      [0, 0, 0],
    )
    t.equal(
      world.pair.told.filter(({ event, level }) => event !== 'disk transfer ended' && level === 'error').length,
      0,
    )
  })
}

t.test('a disk that is open over many reloads, and others beside it', { skip: NBD_SKIP }, async t => {
  await using world = await World.start(t.testdir())
  const { daemons } = world
  const disks: DiskClient[] = []
  for (let round = 0; round < SESSIONS_LEFT_MAX; round++) {
    const before = world.links.now
    const disk = await world.disk()
    disks.push(disk)
    await world.writes(disk, round)
    daemons.link.session.drain()
    await until('the next session', () => world.links.now !== undefined && world.links.now !== before)
    await world.migrates()
  }
  t.equal(world.links.left.length, SESSIONS_LEFT_MAX)
  const last = await world.disk()
  await world.writes(last, 6)
  const full = world.links.now
  daemons.link.session.drain()
  await until('it is heard of', () => world.pair.count('peer drains: it takes no new migrations') > SESSIONS_LEFT_MAX)
  const qemu = await daemons.dial()
  qemu.write(MAIN)
  await until('it waits', () => daemons.source.status().waiting === 1)
  t.equal(world.links.now, full, 'no more can be left')
  await disks.shift()!.close()
  await until('room for one more', () => world.links.left.includes(full!))
  await until('the migration that waited', () => daemons.target.received.at(-1)?.equals(MAIN) === true)
  for (const disk of [...disks, last]) await disk.close()
  await until('their sessions end', () => world.links.left.length === 0)
  t.ok(world.isRight())
})

t.test('a proxy that stops waits for disks in sessions that were left', { skip: NBD_SKIP }, async t => {
  await using world = await World.start(t.testdir())
  const { daemons } = world
  const disk = await world.disk()
  const before = world.links.now
  daemons.link.session.drain()
  await until('the next session', () => world.links.now !== undefined && world.links.now !== before)
  let ended = false
  void daemons.source.ended.then(() => {
    ended = true
  })
  await daemons.source.stop()
  await until('the session that idles ends', () => world.links.now === undefined)
  await world.writes(disk, 1)
  t.notOk(ended)
  await disk.flush()
  await disk.close()
  await daemons.source.ended
  t.ok(world.isRight())
})

t.test('other sets: memory behind a disk stays with it, what follows does not wait', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir({ near: {}, far: {}, disk: {} })
  const [store, farStore] = [new TemplateStore(join(folder, 'near')), new TemplateStore(join(folder, 'far'))]
  await using world = await World.start(join(folder, 'disk'), { store, farStore })
  const first = world.links.now ?? (await until('a session', () => world.links.now))
  const before = await world.disk()
  await world.writes(before, 0)
  const pages = Array.from({ length: 64 }, () => randomBytes(4096))
  for (const one of [store, farStore]) await putPages(one, pages)
  const { sets } = runsOf(world.daemons.source) as unknown as { readonly sets: { readonly changed: boolean } }
  await until('the set to be seen', () => sets.changed)
  await world.migrates()
  t.equal(world.links.now, first, 'its blocks are in the pool of this session')
  const since = await world.disk()
  await world.writes(since, 1)
  await before.close()
  await until('its end', () => world.daemons.source.status().session?.disks[0]?.connections === 1)
  await world.migrates()
  t.same(world.links.left, [first], 'one that came since does not keep the session')
  t.equal(world.daemons.source.status().session?.sets, 1)
  await world.writes(since, 2)
  await since.close()
  await until('the end of its session', () => world.links.left.length === 0)
  t.ok(world.isRight())
})
