/** Sets that stay on the disk, over both daemons: who has which where, and what becomes of a migration when a disk fails. */
import { cpSync, readFileSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import type { LinkClient } from '../../src/link/client.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { EVENT_LOOP, nextTurn } from '../../src/transfer/event-loop.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { until } from '../helpers/until.ts'
import { migration, page, putPages, scratch, setBytes } from '../template/makers.ts'
import { closed, Daemons, runOf } from './daemons.ts'

t.setTimeout(590_000)

const PAGE = 4096
const small = Array.from({ length: 40 }, (_, i) => page(i + 1))
const large = Array.from({ length: 400 }, (_, i) => page(1000 + i))
const others = Array.from({ length: 400 }, (_, i) => page(9000 + i))
/** A guest with pages of both sets, and of its own. */
const guest = migration([...large.slice(50, 350), ...small, ...large.slice(0, 90), page(7777), page(7778), large[399]!])

interface Stores {
  readonly near: TemplateStore
  readonly far: TemplateStore
  readonly small: string
  readonly large: string
}

/** The same two sets at both sides; the small one is newer. */
async function stores(folder: string): Promise<Stores> {
  const near = new TemplateStore(join(folder, 'near'))
  const digests = { large: await putPages(near, large), small: await putPages(near, small) }
  cpSync(near.folder, join(folder, 'far'), { recursive: true, preserveTimestamps: true })
  return { near, far: new TemplateStore(join(folder, 'far')), ...digests }
}

/** What sessions were opened with, as the source tells it: of sets in memory and on the disk the first digits. */
function opened(events: Events): { sets: readonly string[]; cold: readonly string[] }[] {
  const all: { sets: readonly string[]; cold: readonly string[] }[] = []
  events.subscribe(({ event, fields }) => {
    if (event === 'session open' && fields.peer !== undefined) all.push({ sets: fields.sets, cold: fields.cold ?? [] })
  })
  return all
}

/** A pair whose sets are all on the disk, with a session. */
async function onDisks() {
  const made = await stores(scratch(t.teardown).folder)
  const events = new Events()
  const sessions = opened(events)
  const daemons = await Daemons.start({ store: made.near, farStore: made.far, setBytes: 0, farSetBytes: 0, events })
  await until('a session', () => sessions.length > 0)
  return { made, daemons, sessions }
}

/** Sends a guest's stream. @returns what the target received, once all of it is there or the connection is gone */
async function migrate(daemons: Daemons, bytes: Uint8Array): Promise<Buffer> {
  const { target } = daemons
  const number = target.received.length
  const socket = await daemons.dial()
  socket.resume() // or its end is never seen
  socket.end(bytes)
  await until(
    'all bytes, or a connection that is gone',
    () => (target.received[number]?.length ?? 0) >= bytes.length || socket.destroyed,
  )
  const received = target.received[number] ?? Buffer.alloc(0)
  target.sockets[number]?.end()
  await closed(socket)
  return received
}

const short = (...digests: string[]) => digests.map(digest => digest.slice(0, 12))

t.test('each side has in memory what fits, and both agree', async t => {
  const made = await stores(scratch(t.teardown).folder)
  const most = 1000 * PAGE
  for (const [name, sizes, expected] of [
    ['all in memory', {}, { sets: short(made.small, made.large), cold: [] }],
    [
      'the large one on both disks',
      { setBytes: 100 * PAGE, farSetBytes: 100 * PAGE },
      { sets: short(made.small), cold: short(made.large) },
    ],
    [
      'the source has little memory',
      { setBytes: 100 * PAGE, farSetBytes: most },
      { sets: short(made.small), cold: short(made.large) },
    ],
    [
      'the destination has little',
      { setBytes: most, farSetBytes: 100 * PAGE },
      { sets: short(made.small), cold: short(made.large) },
    ],
    ['neither has any', { setBytes: 0, farSetBytes: 0 }, { sets: [], cold: short(made.small, made.large) }],
    ['nor the destination', { setBytes: most, farSetBytes: 0 }, { sets: [], cold: short(made.small, made.large) }],
  ] as const) {
    const events = new Events()
    const sessions = opened(events)
    await using daemons = await Daemons.start({ store: made.near, farStore: made.far, ...sizes, events })
    await until('a session', () => sessions.length > 0)
    t.same(sessions[0], expected, name)
    t.ok((await migrate(daemons, guest)).equals(guest), `${name}: the same bytes`)
    await until('the end', () => daemons.summaries.length === 1)
    const { bytesWan } = daemons.summaries[0]!
    t.ok(bytesWan < 20_000, `${name}: ${bytesWan} of ${guest.length} bytes on the WAN`)
    t.equal(sessions.length, 1)
  }
})

t.test('a set that goes away while a session has it', async t => {
  const { made, daemons } = await onDisks()
  await using _daemons = daemons
  rmSync(made.far.pathOf(made.large))
  rmSync(made.near.pathOf(made.large))
  t.ok((await migrate(daemons, guest)).equals(guest), 'its file is open')
})

/** Lets the next session come, and tells what it has. */
async function nextSession(daemons: Daemons, sessions: ReturnType<typeof opened>): Promise<unknown> {
  const before = sessions.length
  await daemons.loseSession()
  await until('another session', () => sessions.length > before)
  return sessions.at(-1)
}

/** What becomes of a file while sessions have it open. */
const MISHAPS: readonly [string, (path: string) => void][] = [
  ['a bit that fell over', path => change(path, flip)],
  ['pages that became zero', path => change(path, bytes => bytes.fill(0, bytes.length - 300 * PAGE))],
  ['a file that was cut', path => truncateSync(path, statSync(path).size - 150 * PAGE)],
  ['nothing left of it', path => truncateSync(path, 0)],
  ['another set written over it', path => writeFileSync(path, setBytes(others))],
]
/** Changes a bit of the 200th page from the end. */
function flip(bytes: Buffer): void {
  bytes[bytes.length - 200 * PAGE]! ^= 1
}
function change(path: string, how: (bytes: Buffer) => void): void {
  const bytes = readFileSync(path)
  how(bytes)
  writeFileSync(path, bytes) // in place: what is open sees it
}

for (const [mishap, happen] of MISHAPS) {
  t.test(`${mishap}, at the destination: the migration goes on`, async t => {
    const { made, daemons, sessions } = await onDisks()
    await using _daemons = daemons
    happen(made.far.pathOf(made.large))
    t.ok((await migrate(daemons, guest)).equals(guest), 'with the right bytes')
    t.equal(daemons.count('template set not used'), 1, 'it is told once')
    t.ok((await migrate(daemons, guest)).equals(guest), 'and so the next one')
    t.same(
      await nextSession(daemons, sessions),
      { sets: [], cold: short(made.small) },
      'the next session is without it',
    )
    t.ok((await migrate(daemons, guest)).equals(guest))
  })
}

t.test('pages that the source brings count as bytes on the WAN', async t => {
  const { made, daemons } = await onDisks()
  await using _daemons = daemons
  truncateSync(made.far.pathOf(made.large), 0)
  await daemons.wan.settled()
  const before = daemons.wan.bytes
  t.ok((await migrate(daemons, guest)).equals(guest))
  await until('the end', () => daemons.summaries.length === 1)
  const { bytesWan, ratio, bytesIn } = daemons.summaries[0]!
  const passed = daemons.wan.bytes - before
  t.ok(passed > 200 * PAGE, `${passed} bytes passed: the pages were brought`)
  t.ok(
    bytesWan <= passed && bytesWan > 0.97 * passed,
    `${bytesWan} are told: all but heads of frames, heartbeats, ACKs`,
  )
  t.equal(ratio, Math.round((bytesWan / bytesIn) * 10_000) / 10_000)
})

t.test('where no cold sets were agreed on nobody asks for pages, or brings any', async t => {
  await using daemons = await Daemons.start()
  const near = (): LinkClient => runOf(daemons.source)!.client
  await until('a session', () => daemons.count('session open') === 2)
  const asked = near().link.ended
  daemons.link.session.coldPages.ask([7])
  t.match(await asked, { code: 'PROTOCOL_STATE', what: 'pages of sets are asked for that were not named' })
  await until('another session', () => daemons.count('session open') === 4)
  const brought = daemons.link.ended
  near().session.coldPages.answer(7, undefined)
  t.match(await brought, { code: 'PROTOCOL_STATE', what: 'page 7 of a set, which was not asked for' })
})

t.test('damage at the source alone is nothing', async t => {
  const made = await stores(scratch(t.teardown).folder)
  await using daemons = await Daemons.start({ store: made.near, farStore: made.far, setBytes: 0, farSetBytes: 0 })
  await until('a session', () => daemons.count('session open') === 2)
  change(made.near.pathOf(made.large), bytes => bytes.fill(0xee, bytes.length - 400 * PAGE))
  t.ok((await migrate(daemons, guest)).equals(guest), 'it reads no page')
  t.equal(daemons.count('template set not used'), 0)
})

t.test('damage at both: never a wrong byte, and the next session goes without', async t => {
  const { made, daemons, sessions } = await onDisks()
  await using _daemons = daemons
  for (const store of [made.near, made.far]) {
    change(store.pathOf(made.large), flip)
  }
  const first = await migrate(daemons, guest)
  t.ok(first.length < guest.length && first.equals(guest.subarray(0, first.length)), `${first.length} bytes, all right`)
  await until('another session', () => sessions.length > 1)
  t.same(sessions.at(-1), { sets: [], cold: short(made.small) }, 'without the damaged set')
  t.equal(daemons.count('template set not used'), 2, 'each side tells it')
  t.ok((await migrate(daemons, guest)).equals(guest), 'and the migration goes through')
})

/** A store whose disk gives nothing of one set until `give`. */
class SlowStore extends TemplateStore {
  readonly slow: string
  give!: () => void
  private readonly given = new Promise<void>(done => {
    this.give = done
  })

  constructor(folder: string, slow: string) {
    super(folder)
    this.slow = slow
  }

  override async open(digest: string) {
    if (digest === this.slow) await this.given
    return super.open(digest)
  }

  override async openCold(digest: string) {
    if (digest === this.slow) await this.given
    return super.openCold(digest)
  }
}

for (const side of ['near', 'far'] as const) {
  t.test(`a set in memory that its disk does not give: ${side}`, async t => {
    const made = await stores(scratch(t.teardown).folder)
    const slow = new SlowStore(made[side].folder, made.large)
    const events = new Events()
    const sessions = opened(events)
    const sites = side === 'near' ? { store: slow, farStore: made.far } : { store: made.near, farStore: slow }
    await using daemons = await Daemons.start({ ...sites, patienceMs: 60_000, events })
    t.ok((await migrate(daemons, guest)).equals(guest), 'no migration waits for it')
    t.same(sessions, [{ sets: [], cold: [] }], 'both sides go without what that disk had not given')
    t.equal(daemons.count('template set not used'), 2, 'each set is told once')
    slow.give()
    await until('a session that has it', async () => {
      t.ok((await migrate(daemons, guest)).equals(guest))
      return sessions.at(-1)!.sets.length === 2
    })
    t.equal(daemons.count('template set not used'), 2)
  })
}

/** A side whose time passes by hand, and whose disk gives nothing of one set until `give`. */
class SlowSide {
  readonly store: SlowStore
  readonly pools: Pools
  /** How often the set was asked for. */
  opens = 0
  private nowMs = 0
  private due: { atMs: number; then: () => void }[] = []

  constructor(folder: string, slow: string, sizes: { setsBytesMax?: number }) {
    this.store = new SlowStore(folder, slow)
    for (const name of ['open', 'openCold'] as const) {
      const given = this.store[name].bind(this.store) as (digest: string) => Promise<never>
      this.store[name] = (digest: string) => {
        if (digest === slow) this.opens++
        return given(digest)
      }
    }
    const after = (ms: number, then: () => void) => {
      const entry = { atMs: this.nowMs + ms, then }
      this.due.push(entry)
      return () => {
        this.due = this.due.filter(other => other !== entry)
      }
    }
    this.pools = new Pools({ ...sizes, loop: { ...EVENT_LOOP, nowMs: () => this.nowMs, after } })
  }

  async passes(ms: number): Promise<void> {
    this.nowMs += ms
    const now = this.due.filter(({ atMs }) => atMs <= this.nowMs)
    this.due = this.due.filter(({ atMs }) => atMs > this.nowMs)
    for (const { then } of now) then()
    for (let turns = 100; turns > 0; turns--) await nextTurn(EVENT_LOOP) // what is let go is zeroed
  }
}

for (const floor of ['memory', 'the disk'] as const) {
  t.test(`a set in ${floor} that is late at both sides in turn is read once by each, and used`, async t => {
    const made = await stores(scratch(t.teardown).folder)
    const sizes = floor === 'memory' ? {} : { setsBytesMax: 0 }
    const near = new SlowSide(made.near.folder, made.large, sizes)
    const far = new SlowSide(made.far.folder, made.large, sizes)
    const events = new Events()
    const sessions = opened(events)
    const sites = { store: near.store, pools: near.pools, farStore: far.store, farPools: far.pools }
    await using daemons = await Daemons.start({ ...sites, renewMs: 20, patienceMs: 60_000, events })
    await until('the far side to read it', () => far.opens > 0)
    await until('a session, once it is not waited for any more', async () => {
      await far.passes(5000)
      await near.passes(5000)
      return sessions.length > 0
    })
    const without = sessions[0]!
    t.notOk([...without.sets, ...without.cold].includes(short(made.large)[0]!))
    far.store.give()
    // the near one reads it when the far one has it
    await until('a session without what the near side has not read', async () => {
      await near.passes(5000)
      return near.opens > 0 && sessions.length > 1 && daemons.source.status().session
    })
    t.ok((await migrate(daemons, guest)).equals(guest), 'no migration waits for it')
    for (let minutes = 0; minutes < 20; minutes++) await far.passes(60_000)
    near.store.give()
    const last = await until('a session that has it, without a migration', () => {
      const { sets, cold } = sessions.at(-1)!
      return [...sets, ...cold].length === 2 && sessions.length
    })
    t.ok((await migrate(daemons, guest)).equals(guest))
    t.equal(sessions.length, last, 'the session stays')
    t.same([near.opens, far.opens], [1, 1], 'each side has read it once')
    t.ok(daemons.count('template set not used') <= 4, 'each is told once')
  })
}

/** Both sides hold both sets, in memory or on the disk. */
const FLOORS = [
  ['in memory', {}],
  ['on the disk', { setBytes: 0, farSetBytes: 0 }],
] as const
/** What becomes of a name in the store; what a session has open stays as it is. */
const REPLACED: readonly [string, (path: string) => void][] = [
  ['removed', path => rmSync(path)],
  ['removed, and cut when it came again', path => putAt(path, readFileSync(path).subarray(0, 300 * PAGE))],
  ['replaced by another', path => putAt(path, setBytes(others))],
]
function putAt(path: string, bytes: Buffer): void {
  writeFileSync(`${path}.new`, bytes)
  renameSync(`${path}.new`, path)
}

for (const [where, sizes] of FLOORS) {
  for (const [mishap, happen] of REPLACED) {
    for (const side of ['near', 'far'] as const) {
      t.test(`a set ${where} is ${mishap}: ${side}`, async t => {
        const made = await stores(scratch(t.teardown).folder)
        const events = new Events()
        const sessions = opened(events)
        await using daemons = await Daemons.start({ store: made.near, farStore: made.far, ...sizes, events })
        await until('a session', () => sessions.length > 0)
        happen(made[side].pathOf(made.large))
        t.ok((await migrate(daemons, guest)).equals(guest), 'the session goes on with what it has')
        await nextSession(daemons, sessions)
        const { sets, cold } = sessions.at(-1)!
        t.same([...sets, ...cold], short(made.small), 'the next one is without it')
        t.ok((await migrate(daemons, guest)).equals(guest), 'and migrates')
      })
    }
  }
}
