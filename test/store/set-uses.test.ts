/** What is noted of sets: kept whole, bounded, and begun anew where it is damaged. */
import { mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { SET_USES_BYTES_MAX, SET_USES_MAX } from '../../src/limits.ts'
import { readUses, recentBytesAt, type SetUses, withMigration, writeUses } from '../../src/store/set-uses.ts'
import { failure, scratch } from '../template/makers.ts'

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
