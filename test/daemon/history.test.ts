/** The migrations that ended last: kept over restarts, bounded, and never in the way. */
import { spawnSync } from 'node:child_process'
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import type { PastMigration, SiteHistory } from '../../src/daemon/control-api.ts'
import { Events, type SiteEvent } from '../../src/daemon/events.ts'
import { History } from '../../src/daemon/history.ts'
import { HISTORY_BYTES_MAX, HISTORY_MIGRATIONS_MAX } from '../../src/limits.ts'
import { arrived, departed } from '../helpers/ended-migrations.ts'
import { until } from '../helpers/until.ts'

const folder = mkdtempSync(join(tmpdir(), 'pageferry-history-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
const at = (name: string): string => join(folder, name)

/** A process that has a history. */
class World {
  readonly events = new Events()
  readonly told: SiteEvent[] = []
  readonly history: History

  constructor(path: string | undefined) {
    this.events.subscribe(told => void this.told.push(told))
    this.history = new History(path, this.events)
  }

  /** What was told beside the migrations. */
  get complaints(): readonly SiteEvent[] {
    return this.told.filter(({ event }) => event !== 'migration ended')
  }

  get migrations(): readonly PastMigration[] {
    const { api, migrations } = JSON.parse(this.history.json) as SiteHistory
    t.equal(api, 1)
    return migrations
  }

  get ids(): readonly string[] {
    return this.migrations.map(({ id }) => id)
  }
}

t.test('what ended is there, and after a restart', async t => {
  const path = at('kept')
  const world = new World(path)
  world.events.info('migration ended', { ...departed(1), pauseSeconds: 0.31 })
  world.events.error('migration ended', arrived(2))
  world.events.info('session open', { link: '', agent: 'a', sets: [] })
  t.match(world.migrations, [
    { id: '01234567-1', direction: 'out', peer: 'dc2', machine: /q35/, seconds: 12.5, pauseSeconds: 0.31 },
    { id: '89abcdef-2', direction: 'in', peer: 'dc1', target: 'web', outcome: 'failed', reason: 'no', bytes: 500 },
  ])
  t.equal(world.migrations[1]!.bytesWan, undefined)
  await until('the file, without an end', () => readdirSync(folder).includes('kept'))
  world.events.info('migration ended', departed(3))
  await world.history.close()
  t.equal(statSync(path).mode & 0o777, 0o600)
  world.events.info('migration ended', departed(4))
  const again = new World(path)
  t.same(again.migrations, world.migrations, 'what came behind its end is not there')
  t.match([world.history.mark, again.history.mark], [/Z 3$/, /Z 0$/], 'those that have ended since')
  t.equal(JSON.parse(world.history.json).mark, world.history.mark)
  t.same(world.complaints.length, 1)
  t.same(readdirSync(folder), ['kept'])
})

t.test('no more than there is room for', async t => {
  const path = at('many')
  const world = new World(path)
  const name = '\u0001'.repeat(70_000)
  for (let i = 1; i <= HISTORY_MIGRATIONS_MAX + 10; i++) world.events.info('migration ended', departed(i, name))
  await world.history.close()
  t.equal(world.ids.length, HISTORY_MIGRATIONS_MAX)
  t.equal(world.ids[0], '01234567-11', 'the oldest go')
  const { size } = statSync(path)
  t.ok(size < HISTORY_BYTES_MAX, `${size} bytes, whatever the peer is called`)
  t.same(new World(path).ids, world.ids)
})

t.test('a damaged file costs the lines that are damaged', async t => {
  const path = at('damaged')
  const world = new World(path)
  for (let i = 1; i <= 3; i++) world.events.info('migration ended', departed(i))
  await world.history.close()
  const [first, , third] = readFileSync(path, 'utf8').split('\n')
  writeFileSync(path, `${first}\n\0\xff{"id":\nnull\n[]\n{"ended":"x"}\n${third}\n{"ended":"2026`)
  const next = new World(path)
  t.same(next.ids, ['01234567-1', '01234567-3'])
  t.match(next.complaints, [{ level: 'warn', event: 'lines of the history are damaged', fields: { lines: 5 } }])
  next.events.info('migration ended', departed(4))
  await next.history.close()
  const sound = new World(path)
  t.same([sound.ids.length, sound.complaints.length], [3, 0], 'and it is sound again')
})

t.test('what is no file of ours is left as it is', async t => {
  const fifo = at('fifo')
  spawnSync('mkfifo', [fifo])
  const large = at('large')
  writeFileSync(large, Buffer.alloc(HISTORY_BYTES_MAX + 1))
  mkdirSync(at('folder'))
  for (const path of [fifo, large, at('folder')]) {
    const before = statSync(path)
    const world = new World(path)
    world.events.info('migration ended', departed(1))
    await world.history.close()
    t.match(world.complaints, [{ level: 'warn', event: 'history is not kept' }], path)
    t.equal(world.ids.length, 1, 'in memory it is')
    t.same([statSync(path).ino, statSync(path).size], [before.ino, before.size])
  }
})

t.test('where it cannot be written migrations are told once, and it is tried again', async t => {
  const path = at('later/history')
  const world = new World(path)
  for (let i = 1; i <= 3; i++) {
    world.events.info('migration ended', departed(i))
    await (world.history as unknown as { writer: { run(): Promise<void> } }).writer.run()
  }
  t.match(world.complaints, [{ level: 'warn', event: 'history is not kept', fields: { error: /ENOENT/ } }])
  t.equal(world.complaints.length, 1)
  mkdirSync(at('later'))
  world.events.info('migration ended', departed(4))
  await world.history.close()
  t.equal(new World(path).ids.length, 4, 'with all of them')
})

t.test('a link that was planted in its way is not followed', async t => {
  const [path, victim] = [at('planted'), at('victim')]
  writeFileSync(victim, 'x')
  symlinkSync(victim, `${path}.part`)
  const world = new World(path)
  world.events.info('migration ended', departed(1))
  await world.history.close()
  t.equal(readFileSync(victim, 'utf8'), 'x')
  t.equal(new World(path).ids.length, 1)
})
