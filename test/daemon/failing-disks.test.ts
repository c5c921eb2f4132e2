/** Disks of a store that fail under a pair of processes: migrations go on, with the right bytes. */
import { randomBytes } from 'node:crypto'
import { cpSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { TemplateStore } from '../../src/store/template-store.ts'
import { until } from '../helpers/until.ts'
import { honest, hostileServer } from '../remote/hostile-server.ts'
import { operator, publish } from '../remote/sites.ts'
import { migration, PAGE, page, putPages, scratch } from '../template/makers.ts'
import { FailingDisk, noFailingDisks, noSmallDisks, SmallDisk } from './failing-disk.ts'
import { RunningPair } from './running.ts'

t.setTimeout(590_000) // the machine may be busy
const skip = noFailingDisks() ?? false

/** That nothing makes smaller: where the set is not used, all of it passes on the WAN. */
const pages = Array.from({ length: 2000 }, () => randomBytes(PAGE))
/** A guest of a set's pages, and some of its own. */
const guest = migration([...pages.slice(100, 1900), page(7777), page(7778), ...pages.slice(0, 300)])
const FEW_BYTES = guest.length / 8

interface Sites {
  readonly folder: string
  /** Stores with one set. */
  readonly near: string
  readonly far: string
  readonly set: string
}

/** Those of the two that are to fail. */
interface Disks {
  readonly nearDisk?: FailingDisk
  readonly farDisk?: FailingDisk
}

/** The same set at both sites, each on a disk that fails if it is to. */
async function sitesOf(
  folder: string,
  disks: AsyncDisposableStack,
  failing: { readonly near?: true; readonly far?: true },
): Promise<Sites & Disks> {
  const store = new TemplateStore(join(folder, 'near'))
  const set = await putPages(store, pages)
  const file = store.pathOf(set)
  cpSync(store.folder, join(folder, 'far'), { recursive: true, preserveTimestamps: true })
  const nearDisk = failing.near && disks.use(await FailingDisk.of(file, join(folder, 'near-disk')))
  const farDisk = failing.far && disks.use(await FailingDisk.of(file, join(folder, 'far-disk')))
  const near = nearDisk?.folder ?? store.folder
  return {
    folder,
    near,
    far: farDisk?.folder ?? join(folder, 'far'),
    set,
    ...(nearDisk && { nearDisk }),
    ...(farDisk && { farDisk }),
  }
}

/** @param memory what sets may take of it: '0' leaves them on the disk */
function pairOf({ near, far, folder }: Sites, memory = '0'): Promise<RunningPair> {
  const both = ['--learn', 'off', '--set-memory', memory]
  // without a ring: what passed before is not found there
  return RunningPair.start(folder, {
    near: ['--store', near, '--pool-memory', '0', ...both],
    far: ['--store', far, ...both],
  })
}

/** Migrates the guest, which must arrive whole. @returns the bytes on the WAN */
async function migrated(t: Test, pair: RunningPair, what: string): Promise<number> {
  const { arrived, wanBytes } = await pair.migrate(guest)
  t.ok(arrived.equals(guest), `${what}: all bytes, ${wanBytes} on the WAN`)
  return wanBytes
}

/** Migrates until the set is used: a batch of a busy machine is not always read in time. */
async function used(t: Test, pair: RunningPair, { nearDisk, farDisk }: Disks): Promise<void> {
  await pair.near.said('session open')
  nearDisk?.warm()
  farDisk?.warm()
  await until('a migration that the set makes small', async () => (await migrated(t, pair, 'with the set')) < FEW_BYTES)
}

/**
 * Migrates until something has come of it: where a busy machine read late before, a source names the set's pages in one batch
 * of sixteen, and a small guest may have none of these.
 */
async function migratedUntil(what: string, once: () => Promise<boolean>): Promise<void> {
  await until(`a migration after which ${what}`, once)
}

t.test('a disk that fails at the destination', { skip }, async t => {
  await using disks = new AsyncDisposableStack()
  const sites = await sitesOf(scratch(t.teardown).folder, disks, { far: true })
  await using pair = await pairOf(sites)
  t.same((await pair.near.said('session open')).cold, [sites.set.slice(0, 12)], 'the set is on the disk')
  await used(t, pair, sites)
  sites.farDisk!.fail()
  await migratedUntil('EIO is told', async () => {
    t.ok((await migrated(t, pair, 'EIO')) > FEW_BYTES, 'the source brings them')
    return pair.far.of('template set not used').length > 0
  })
  t.match(pair.far.of('template set not used'), [{ error: /EIO/ }])
  await migrated(t, pair, 'and so the next one')
  t.equal(pair.far.of('template set not used').length, 1, 'it is told once')
})

t.test('one that fails at the source', { skip }, async t => {
  await using disks = new AsyncDisposableStack()
  const sites = await sitesOf(scratch(t.teardown).folder, disks, { near: true })
  await using pair = await pairOf(sites)
  await used(t, pair, sites)
  sites.nearDisk!.fail()
  // nobody reads it, unless the destination is so late that it asks: then this session is over, and the next without
  const { arrived } = await pair.migrate(guest)
  t.ok(arrived.equals(guest.subarray(0, arrived.length)), `${arrived.length} bytes, all right`)
  await until('a migration that goes through', async () => (await pair.migrate(guest)).arrived.equals(guest))
})

t.test('both fail', { skip }, async t => {
  await using disks = new AsyncDisposableStack()
  const sites = await sitesOf(scratch(t.teardown).folder, disks, { near: true, far: true })
  await using pair = await pairOf(sites)
  await used(t, pair, sites)
  sites.nearDisk!.fail()
  sites.farDisk!.fail()
  await migratedUntil('nobody had a page', async () => {
    const { arrived } = await pair.migrate(guest)
    t.ok(arrived.equals(guest.subarray(0, arrived.length)), `${arrived.length} bytes: nothing wrong arrives`)
    return arrived.length < guest.length
  })
  const isWithout = ({ cold }: Record<string, unknown>): boolean => ((cold as string[] | undefined) ?? []).length === 0
  t.same((await pair.near.said('session open', isWithout)).sets, [], 'the next session is without the set')
  t.ok((await migrated(t, pair, 'the next migration')) > FEW_BYTES)
})

t.test('one that is slower than the WAN', { skip }, async t => {
  await using disks = new AsyncDisposableStack()
  const sites = await sitesOf(scratch(t.teardown).folder, disks, { far: true })
  await using pair = await pairOf(sites)
  await used(t, pair, sites)
  sites.farDisk!.slow(200_000) // five minutes for the set
  t.ok((await migrated(t, pair, 'what is late')) > guest.length / 2, 'is brought by the source, or not named any more')
  await migrated(t, pair, 'the next one')
})

t.test('one that hangs, and a proxy that is stopped', { skip }, async t => {
  await using disks = new AsyncDisposableStack()
  const sites = await sitesOf(scratch(t.teardown).folder, disks, { far: true })
  await using pair = await pairOf(sites)
  await used(t, pair, sites)
  sites.farDisk!.slow(10_000) // a minute for a read
  await migrated(t, pair, 'while it hangs')
  pair.far.child.kill('SIGTERM')
  await pair.far.said('stopped')
  const saidMs = performance.now()
  t.same(await pair.far.exit, [0, null], 'it ends as it should')
  t.ok(performance.now() - saidMs < 45_000, 'before the disk has answered')
})

t.test('one that is pulled out', { skip }, async t => {
  await using disks = new AsyncDisposableStack()
  const sites = await sitesOf(scratch(t.teardown).folder, disks, { far: true })
  await using pair = await pairOf(sites)
  await used(t, pair, sites)
  await sites.farDisk!.pull()
  await migrated(t, pair, 'gone')
  await migrated(t, pair, 'the next one')
  await pair.far.said('template store cannot be read: going on without sets')
  await migrated(t, pair, 'and once that was seen')
})

t.test('a set that is to be in memory, and cannot be read', { skip }, async t => {
  await using disks = new AsyncDisposableStack()
  const sites = await sitesOf(scratch(t.teardown).folder, disks, { far: true })
  sites.farDisk!.fail()
  await using pair = await pairOf(sites, '512MiB')
  await migrated(t, pair, 'without it')
  t.same((await pair.near.said('session open')).sets, [])
})

t.test('a set that is to be in memory, and comes slowly', { skip }, async t => {
  await using disks = new AsyncDisposableStack()
  const sites = await sitesOf(scratch(t.teardown).folder, disks, { far: true })
  sites.farDisk!.slow(400_000) // three minutes for the set
  await using pair = await pairOf(sites, '512MiB')
  await migrated(t, pair, 'without it')
  t.same(pair.near.of('session open')[0]!.sets, [])
})

const noRoom = noSmallDisks(join(scratch(t.teardown).folder, 'disk')) ?? false

t.test('a disk that is full while a set is fetched', { skip: noRoom }, async t => {
  const { folder } = scratch(t.teardown)
  using disk = new SmallDisk(join(folder, 'far'), '96m') // STORE_FREE_BYTES_MIN stay free
  const site = operator(t.teardown)
  const server = await hostileServer(t.teardown)
  const trust = join(folder, 'channel.pub')
  writeFileSync(trust, site.trusted[0]!.export({ format: 'pem', type: 'spki' }))
  const following = (store: string): string[] => [
    ...['--store', store, '--store', server.url, '--channel', 'stable', '--trust', trust, '--learn', 'off'],
  ]
  await site.promote([await site.push(1, 50)])
  publish(server, site)
  await using pair = await RunningPair.start(folder, {
    near: following(join(folder, 'near')),
    far: following(disk.folder),
  })
  const { near, far } = pair
  for (const each of [near, far]) await each.said('template sets in force', ({ serial }) => serial === 1)

  // there is room when it begins, and somebody else takes it before the first byte is written
  const large = await site.push(1000, 1500)
  await site.promote([large])
  publish(server, site)
  const filler = join(disk.folder, 'filler')
  server.script.push(honest(server.objects), (request, response) => {
    try {
      writeFileSync(filler, Buffer.alloc(96 << 20))
    } catch {} // as much as there is room for
    honest(server.objects)(request, response)
  })
  far.child.kill('SIGHUP')
  const { error } = await far.said('sets are not fetched')
  t.match(error, /ENOSPC/)
  await migrated(t, pair, 'on a full disk')
  near.child.kill('SIGHUP')
  await near.said('template sets in force', ({ serial }) => serial === 2)
  await migrated(t, pair, 'while the other side has the new set')
  t.equal(far.of('template sets in force').length, 1, 'what was in force stays')

  rmSync(filler)
  far.child.kill('SIGHUP')
  await far.said('template sets in force', ({ serial }) => serial === 2)
  await migrated(t, pair, 'once there is room')
})

t.test('a disk that is full while a set is learned', { skip: noRoom }, async t => {
  for (const full of [['far'], ['near'], ['near', 'far']]) {
    const { folder } = scratch(t.teardown)
    using mounted = new DisposableStack()
    for (const side of full) mounted.use(new SmallDisk(join(folder, side), '2m'))
    const learning = (side: string): string[] => ['--store', join(folder, side), '--learn', 'all']
    await using pair = await RunningPair.start(folder, { near: learning('near'), far: learning('far') })
    await migrated(t, pair, `${full}: the first`)
    for (const side of full) {
      await pair[side as 'near' | 'far'].said('learning stops until the next session', ({ error }) =>
        /ENOSPC/.test(`${error}`),
      )
    }
    await migrated(t, pair, 'the second')
    pair.wan.cut()
    await migrated(t, pair, 'and one over a new connection')
    for (const side of full) t.same(readdirSync(join(folder, side)), [], 'nothing by half')
  }
})
