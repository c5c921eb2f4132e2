/** What sets brought, from both daemons to the store's file: counted alike at both sides, kept over restarts, never in the way. */
import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Events, type SiteEvent } from '../../src/daemon/events.ts'
import { SetLedger } from '../../src/daemon/set-ledger.ts'
import { FileLock } from '../../src/remote/file-lock.ts'
import { readUses } from '../../src/store/set-uses.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { departed } from '../helpers/ended-migrations.ts'
import { until } from '../helpers/until.ts'
import { migration, page, putPages, scratch } from '../template/makers.ts'
import { closed, Daemons } from './daemons.ts'

t.setTimeout(590_000)

const PAGE = 4096
const A = 'a'.repeat(64)
const B = 'b'.repeat(64)

/** A process that notes what sets bring. */
class World {
  readonly events = new Events()
  readonly told: SiteEvent[] = []
  readonly ledger: SetLedger

  constructor(folder: string) {
    this.events.subscribe(told => void this.told.push(told))
    this.ledger = new SetLedger(folder, this.events)
  }

  ended(...sets: [set: string, pages: number][]): void {
    const gains = sets.map(([set, pages]) => ({ set, pages, bytes: pages * PAGE }))
    this.events.info('migration ended', { ...departed(1), ...(gains.length > 0 && { sets: gains }) })
  }

  get complaints(): readonly string[] {
    return this.told.map(({ event }) => event).filter(event => event !== 'migration ended')
  }
}

/** Pages that each set has brought, by its first digit. */
async function noted(folder: string): Promise<Record<string, number>> {
  const { uses } = await readUses(folder)
  return Object.fromEntries(Array.from(uses, ([digest, { pages }]) => [digest[0], pages]))
}

t.test('migrations add up, over restarts and processes', async t => {
  const { folder } = scratch(t.teardown)
  const one = new World(folder)
  const other = new World(folder)
  one.ended([A, 5], [B, 1])
  other.ended([A, 7])
  one.ended()
  await Promise.all([one.ledger.close(), other.ledger.close()])
  t.same(await noted(folder), { a: 12, b: 1 })
  one.ended([A, 100])
  const later = new World(folder)
  later.ended([B, 3])
  await until('the file, without an end', async () => (await noted(folder)).b === 4)
  await later.ledger.close()
  t.same(await noted(folder), { a: 12, b: 4 }, 'what came behind an end is not there')
  t.equal((await readUses(folder)).uses.get(A)!.migrations, 2)
  t.same([...one.complaints, ...other.complaints, ...later.complaints], [])
  t.same(readdirSync(folder), ['.uses.json'])
})

t.test('a damaged file is told and begun anew; one of a later version stays', async t => {
  const { folder } = scratch(t.teardown)
  const path = join(folder, '.uses.json')
  writeFileSync(path, 'rubbish')
  const world = new World(folder)
  world.ended([A, 5])
  await until('the file', async () => (await noted(folder)).a === 5)
  t.same(world.complaints, ['what sets brought is begun anew'])
  writeFileSync(path, '{"version":7}')
  world.ended([A, 5])
  await until('a complaint', () => world.complaints.length === 2)
  t.equal(world.complaints[1], 'what sets bring is not kept')
  await world.ledger.close()
  t.equal(readFileSync(path, 'utf8'), '{"version":7}')
})

t.test('a store that is away is told once, and nothing is lost when it is back', async t => {
  const { folder } = scratch(t.teardown)
  const store = join(folder, 'store')
  const world = new World(store)
  world.ended([A, 5])
  await until('a complaint', () => world.complaints.length === 1)
  t.same(world.complaints, ['what sets bring is not kept'])
  cpSync(scratch(t.teardown).folder, store, { recursive: true })
  world.ended([A, 2])
  await until('the file', async () => (await noted(store)).a === 7)
  rmSync(store, { recursive: true })
  await world.ledger.close()
  t.equal(world.complaints.length, 1)
})

t.test('an end does not wait for somebody who never gives it free', async t => {
  const { folder } = scratch(t.teardown)
  const lock = await FileLock.take(join(folder, '.uses.lock'))
  const world = new World(folder)
  world.ended([A, 5])
  await world.ledger.close()
  await lock.release()
  t.same(readdirSync(folder), [])
  t.same(world.complaints, [])
})

t.test('both sides count the same, in memory and on the disk', async t => {
  const { folder } = scratch(t.teardown)
  const near = new TemplateStore(join(folder, 'near'))
  const [small, middle, large] = [page(1), page(200), page(1000)].map((_, i) =>
    Array.from({ length: [40, 60, 400][i]! }, (_, n) => page([1, 200, 1000][i]! + n)),
  ) as [Buffer[], Buffer[], Buffer[]]
  const digests = { large: await putPages(near, large), middle: await putPages(near, middle) } as Record<string, string>
  digests.small = await putPages(near, small)
  const far = new TemplateStore(join(folder, 'far'))
  cpSync(near.folder, far.folder, { recursive: true, preserveTimestamps: true })
  // a page that is nearly one of the small set: parts of it come out of that
  const patched = Buffer.from(small[7]!)
  patched.fill(0xa5, 1000, 1040)
  const guest = migration([
    ...large.slice(50, 350),
    ...small,
    ...middle.slice(3, 13),
    ...small.slice(0, 5),
    patched,
    page(7777),
  ])
  const brought = new Map<string, number>()
  // pages of the disk are in the ring from then on: another guest finds them there
  for (const [name, sizes, times] of [
    ['all in memory', {}, 2],
    ['the large one on the disks', { setBytes: 150 * PAGE, farSetBytes: 150 * PAGE }, 1],
  ] as const) {
    const events = new Events()
    const ledger = new SetLedger(near.folder, events)
    let opened = false
    events.subscribe(({ event }) => {
      opened ||= event === 'session open'
    })
    await using daemons = await Daemons.start({ store: near, farStore: far, ...sizes, events })
    await until('a session', () => opened)
    for (let i = 0; i < times; i++) {
      const socket = await daemons.dial()
      socket.resume()
      socket.end(guest)
      await until('all bytes', () => (daemons.target.received[i]?.length ?? 0) >= guest.length)
      t.ok(daemons.target.received[i]!.equals(guest), `${name}: the same bytes`)
      daemons.target.sockets[i]!.end()
      await closed(socket)
      await until('both ends', () => daemons.summaries.length === i + 1 && daemons.arrivals.length === i + 1)
      const sets = daemons.summaries[i]!.sets!
      t.same(daemons.arrivals[i]!.sets, sets, `${name}: alike at both sides`)
      const pages = Object.fromEntries(sets.map(gain => [gain.set, gain.pages]))
      // a record that its socket cut while nothing followed goes as it is
      for (const [set, most] of [
        [digests.large, 300],
        [digests.small, 45],
        [digests.middle, 10],
      ] as const)
        t.ok(pages[set!]! <= most && pages[set!]! >= most - 3, `${name}: ${pages[set!]} of ${most}`)
      const all = sets.reduce((sum, gain) => sum + gain.pages, 0)
      t.equal(all, daemons.summaries[i]!.pages.template, `${name}: of all sets what the migration counts`)
      const { pages: whole, bytes } = sets.find(({ set }) => set === digests.small)!
      const parts = bytes - whole * PAGE
      if (i === 0) t.ok(parts > 3500 && parts < 2 * PAGE, `${name}: parts of pages, ${parts} bytes`)
      for (const gain of sets) brought.set(gain.set, (brought.get(gain.set) ?? 0) + 2 * gain.pages)
    }
    await ledger.close()
  }
  const { uses } = await readUses(near.folder)
  // told by both sides
  for (const [set, pages] of brought) t.match(uses.get(set), { migrations: 6, pages })
})
