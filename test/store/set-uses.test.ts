/** What is noted of sets: kept whole, bounded, and begun anew where it is damaged. */
import { mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { SET_USES_BYTES_MAX, SET_USES_MAX } from '../../src/limits.ts'
import { newestFirst, pruneStore } from '../../src/store/prune.ts'
import {
  byGain,
  readUses,
  recentBytesAt,
  type SetUses,
  usedMs,
  withMigration,
  writeUses,
} from '../../src/store/set-uses.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { failure, page, putPages, scratch } from '../template/makers.ts'

const DAY = 86_400_000
const NOW = Date.parse('2027-01-31T03:00:00.000Z')
const digest = (n: number): string => n.toString(16).padStart(64, '0')
const NONE: SetUses = new Map()

t.test('migrations add up, and what they had counts half after a month', t => {
  let uses = withMigration(NONE, [{ set: digest(1), pages: 10, bytes: 50_000 }], NOW)
  uses = withMigration(
    uses,
    [
      { set: digest(1), pages: 1, bytes: 4096 },
      { set: digest(2), pages: 0, bytes: 100 },
    ],
    NOW + 30 * DAY,
  )
  t.same(uses.get(digest(1)), {
    ...{ migrations: 2, pages: 11, bytes: 54_096, firstMs: NOW, lastMs: NOW + 30 * DAY },
    recentBytes: 25_000 + 4096,
  })
  t.equal(recentBytesAt(uses.get(digest(1)), NOW + 60 * DAY), (25_000 + 4096) / 2)
  t.equal(recentBytesAt(uses.get(digest(2)), NOW + 30 * DAY), 100)
  t.equal(recentBytesAt(uses.get(digest(2)), NOW), 100, 'a clock that was set back makes nothing of it')
  t.equal(recentBytesAt(undefined, NOW), 0)
  t.end()
})

t.test('what is written is read', async t => {
  const { folder } = scratch(t.teardown)
  t.same(await readUses(folder), { uses: new Map() }, 'nothing yet')
  const uses = withMigration(NONE, [{ set: digest(1), pages: 3, bytes: 12_288 }], NOW)
  await writeUses(folder, uses)
  t.same(await readUses(folder), { uses })
  t.equal(statSync(join(folder, '.uses.json')).mode & 0o777, 0o600)
  const more = withMigration(uses, [{ set: digest(9), pages: 1, bytes: 4096 }], NOW + 1)
  await writeUses(folder, more)
  t.same((await readUses(folder)).uses, more)
  t.same(readdirSync(folder), ['.uses.json'])
})

t.test('no more sets than there is room for: those used last', async t => {
  const { folder } = scratch(t.teardown)
  let uses = NONE
  for (let from = 0; from <= SET_USES_MAX; from += 512) {
    const gains = Array.from({ length: 512 }, (_, i) => ({
      ...{ set: digest(from + i), pages: Number.MAX_SAFE_INTEGER, bytes: Number.MAX_SAFE_INTEGER },
    }))
    uses = withMigration(uses, gains, NOW + from)
  }
  t.equal(uses.size, SET_USES_MAX)
  t.notOk(uses.has(digest(0)))
  t.ok(uses.has(digest(512)))
  await writeUses(folder, uses)
  const { size } = statSync(join(folder, '.uses.json'))
  t.ok(size <= SET_USES_BYTES_MAX, `${size} bytes`)
  t.equal((await readUses(folder)).uses.size, SET_USES_MAX)
})

t.test('a file that is none is told, and nothing of it used', async t => {
  const { folder } = scratch(t.teardown)
  const path = join(folder, '.uses.json')
  await writeUses(folder, withMigration(NONE, [{ set: digest(1), pages: 3, bytes: 12_288 }], NOW))
  const good = readFileSync(path, 'utf8')
  const changed = (change: (entry: Record<string, unknown>) => void): string => {
    const value = JSON.parse(good)
    change(value.sets[0])
    return JSON.stringify(value)
  }
  const many = JSON.stringify({ version: 1, sets: new Array(SET_USES_MAX + 1).fill(0) })
  for (const [name, text] of [
    ['cut', good.slice(0, 100)],
    ['empty', ''],
    ['no object', '[]'],
    ['null', 'null'],
    ['no version', '{"sets":[]}'],
    ['another version', '{"version":0,"sets":[]}'],
    ['no list', '{"version":1,"sets":{}}'],
    ['too many', many],
    ['too long', ' '.repeat(SET_USES_BYTES_MAX + 1)],
    ['no digest', changed(entry => (entry.digest = '../x'))],
    ['a count below zero', changed(entry => (entry.pages = -1))],
    ['a text for a count', changed(entry => (entry.bytes = '1'))],
    ['no time', changed(entry => (entry.last = 'yesterday'))],
    ['an entry missing', changed(entry => delete entry.migrations)],
  ] as const) {
    writeFileSync(path, text)
    const { uses, problem, isKept } = await readUses(folder)
    t.equal(uses.size, 0, name)
    t.match(problem, { code: 'IO', what: /is damaged/, action: /begun anew/ }, name)
    t.notOk(isKept, name)
  }
  writeFileSync(path, '{"version":2,"all":"other"}')
  t.match(
    await readUses(folder),
    { problem: { what: /version 2/ }, isKept: true },
    'of a later version: not ours to replace',
  )
})

t.test('what cannot be read is an error', async t => {
  const { folder } = scratch(t.teardown)
  const path = join(folder, '.uses.json')
  mkdirSync(path)
  t.equal(await failure(() => readUses(folder)), 'IO')
  t.equal(await failure(() => writeUses(folder, NONE)), 'IO')
  t.same(readdirSync(folder), ['.uses.json'], 'nothing is left behind')
  const linked = join(folder, 'linked')
  mkdirSync(linked)
  writeFileSync(join(folder, 'elsewhere'), '{"version":1,"sets":[]}')
  symlinkSync(join(folder, 'elsewhere'), join(linked, '.uses.json'))
  t.equal(await failure(() => readUses(linked)), 'IO', 'a link is not followed')
  t.equal(await failure(() => writeUses(join(folder, 'missing'), NONE)), 'IO')
})

t.test('what is removed first: what brings least for its size, and what is not used', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const sets: string[] = []
  const put = async (pages: number, days: number): Promise<string> => {
    const digest = await putPages(
      store,
      Array.from({ length: pages }, (_, i) => page(1000 * sets.length + i + 1)),
    )
    utimesSync(store.pathOf(digest), NOW / 1000, NOW / 1000 - 86_400 * days)
    sets.push(digest)
    return digest
  }
  const large = await put(200, 100) // brought most, and little for its size
  const small = await put(10, 90)
  const idle = await put(10, 20)
  const old = await put(10, 80) // brought much, long ago
  const fresh = await put(10, 2)
  let uses = withMigration(NONE, [{ set: old, pages: 100, bytes: 900_000 }], NOW - 200 * DAY)
  uses = withMigration(
    uses,
    [
      { set: large, pages: 50, bytes: 200_000 },
      { set: small, pages: 40, bytes: 160_000 },
    ],
    NOW - 10 * DAY,
  )
  const order = byGain(uses, 7 * DAY, NOW)
  const sorted = (await store.list()).sort(order).map(({ digest }) => sets.indexOf(digest))
  t.same(sorted, [4, 1, 3, 0, 2], 'fresh, small, old, large, idle')
  t.same(
    (await store.list()).sort(byGain(NONE, 7 * DAY, NOW)).map(({ digest }) => digest),
    (await store.list()).sort(newestFirst).map(({ digest }) => digest),
    'where nothing is noted the newest come first',
  )
  const gone = async (rule: Parameters<typeof pruneStore>[1]): Promise<number[]> =>
    (await pruneStore(store, { ...rule, dryRun: true }, NOW)).removed.map(({ digest }) => sets.indexOf(digest)).sort()
  const size = statSync(store.pathOf(small)).size
  t.same(await gone({ order, maxBytes: 3 * size }), [0, 2])
  t.same(await gone({ order, maxBytes: 2 * size }), [0, 2, 3])
  t.same(await gone({ maxBytes: 3 * size }), [0, 1], 'without an order the newest stay')
  const unused = (maxMs: number) => ({ maxMs, usedMs: (set: Parameters<typeof usedMs>[1]) => usedMs(uses, set) })
  t.same(await gone({ unused: unused(15 * DAY) }), [2, 3])
  t.same(await gone({ unused: unused(30 * DAY) }), [3], 'one that nobody used, but was put since')
  t.same(await gone({ unused: unused(DAY), keep: [idle, fresh] }), [0, 1, 3])
})
