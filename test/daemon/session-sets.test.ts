/** Which sets a side brings into a session, and how, where the store has more than fit into memory. */
import { utimesSync } from 'node:fs'
import { mock } from 'node:test'
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { SessionSets } from '../../src/daemon/session-sets.ts'
import { ProxyError } from '../../src/errors.ts'
import { HELLO_SETS_MAX } from '../../src/limits.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { SetsLate } from '../../src/transfer/sets-late.ts'
import { until } from '../helpers/until.ts'
import { page, putPages, scratch } from '../template/makers.ts'
import { floorsOf, storeOf } from './store-of.ts'

t.setTimeout(590_000) // the machine may be busy

t.test(
  'of more sets than fit the newest are held in memory, and the others stay on the disk, which is told',
  async t => {
    const store = new TemplateStore(scratch(t.teardown).folder)
    const digests: string[] = []
    // pages of each, the oldest first
    for (const [i, count] of [3, 4, 6, 2].entries()) {
      const pages = Array.from({ length: count }, (_, n) => page(100 * i + n + 1))
      const digest = await putPages(store, pages)
      utimesSync(store.pathOf(digest), 1e9 + i, 1e9 + i)
      digests.push(digest)
    }
    const [a, b, c, d] = digests as [string, string, string, string]
    const told: unknown[] = []
    const events = new Events()
    events.subscribe(({ event, fields }) => {
      if (event === 'template sets stay on the disk') told.push((fields as { sets: string }).sets)
      if (event.startsWith('template sets left out')) t.fail(event)
    })
    const offered = (pagesMax?: number) => floorsOf(new SessionSets(store, events, pagesMax))
    t.same(await offered(), { hot: [d, c, b, a], cold: [] }, 'the newest first')
    t.same(await offered(15), { hot: [d, c, b, a], cold: [] }, 'all that fit')
    t.same(told, [])
    t.same(await offered(11), { hot: [d, c, a], cold: [b] }, 'an older one where a newer is too large')
    t.same(await offered(1), { hot: [], cold: [d, c, b, a] })
    const short = (...all: string[]): string => all.map(digest => digest.slice(0, 12)).join(' ')
    t.same(told, [short(b), short(d, c, b, a)], 'which are not in memory')

    told.length = 0
    const sets = new SessionSets(store, events, 5)
    t.same(await floorsOf(sets), { hot: [d, a], cold: [c, b] })
    t.same(await floorsOf(sets), { hot: [d, a], cold: [c, b] })
    t.same(told, [short(c, b)], 'told once')
    sets.takeFewer()
    t.same(await floorsOf(sets), { hot: [d], cold: [c, b, a] }, 'half as much where other sessions have taken the rest')
    t.same(told.splice(0), [short(c, b), short(c, b, a)])
    await store.remove(c)
    t.same(await floorsOf(sets), { hot: [d], cold: [b, a] })
    t.same(told, [short(b, a)], 'and again when it changes')
  },
)

t.test('a store whose disk does not answer is not waited for, and used once it has', async t => {
  const { store, digests } = storeOf(2)
  const { list } = store
  let answer = (): void => {}
  const answered = new Promise<void>(done => {
    answer = done
  })
  store.list = async () => {
    await answered
    return list.call(store)
  }
  const told: unknown[] = []
  const events = new Events()
  events.subscribe(({ event, fields }) => told.push([event, (fields as { error: string }).error]))
  const sets = new SessionSets(store, events)
  for (let i = 0; i < 2; i++) t.same(await floorsOf(sets), { hot: [], cold: [] })
  t.match(told, [['template store cannot be read: going on without sets', /has not answered in 5 s/]])
  t.equal(told.length, 1, 'it is told once')
  answer()
  await until('a change', () => sets.changed)
  t.same((await sets.offer()).hot, digests)
})

t.test('where all places of a hello are taken, and learning needs one, the oldest set stays on the disk', async t => {
  const { store, digests } = storeOf(HELLO_SETS_MAX)
  const told: unknown[] = []
  const events = new Events()
  events.subscribe(({ event, fields }) => told.push([event, (fields as { sets?: string }).sets]))
  const sets = new SessionSets(store, events)
  t.equal((await sets.offer()).hot.length, HELLO_SETS_MAX)
  t.same(told, [])
  const { hot, cold } = await sets.offer(1)
  const oldest = digests.at(-1)!
  t.same([hot.length, cold], [HELLO_SETS_MAX - 1, [oldest]], 'it is used all the same')
  t.same(told, [['template sets stay on the disk', oldest.slice(0, 12)]], 'and that is told')
})

t.test('a store that hangs is looked at once, whoever wants to', async t => {
  mock.timers.enable({ apis: ['setInterval'] })
  t.teardown(() => mock.timers.reset())
  const { store, digests } = storeOf(1)
  let looks = 0
  let answer = (): void => {}
  const answered = new Promise<string>(done => {
    answer = () => done('as it is')
  })
  const fingerprint = (): Promise<string> => (looks++ === 0 ? answered : Promise.resolve('as it is'))
  Object.assign(store, { fingerprint })
  const [sets, others] = [new SessionSets(store, new Events()), new SessionSets(store, new Events())]
  mock.timers.tick(2000)
  await until('the first look', () => looks === 1)
  mock.timers.tick(10_000)
  const offered = await Promise.all([floorsOf(sets), floorsOf(others)])
  t.same(offered, Array(2).fill({ hot: [], cold: [] }), 'who wants to offer sets goes without')
  t.equal(looks, 1, 'and takes no thread of its own')
  answer()
  await until('its sets', async () => (await sets.offer()).hot.length > 0)
  t.same((await others.offer()).hot, digests)
})

t.test(
  'a late set has its place, comes back once it is read, and is let go when it is not offered any more',
  async t => {
    const { store, digests } = storeOf(3)
    const [late, other, oldest] = digests as [string, string, string]
    for (const [how, reason, isBack] of [
      ['read', undefined, true],
      [
        'damaged',
        new ProxyError('TEMPLATE_DAMAGED', 'page 0', { stream: `/store/${late}.pfset`, offset: 0 }, ''),
        false,
      ],
      ['no set is to blame', new ProxyError('LIMIT_EXCEEDED', 'memory', undefined, ''), true],
    ] as const) {
      const sets = new SessionSets(store, new Events(), 2)
      const { version } = await sets.offer()
      const letGo: string[] = []
      let settle = (_: unknown): void => {}
      const settled = new Promise(done => {
        settle = done
      })
      t.ok(sets.exclude(new SetsLate([late, 'unknown'], settled, digest => letGo.push(digest))))
      t.same(letGo.splice(0), ['unknown'], how)
      t.same(await floorsOf(sets), { hot: [other], cold: [oldest] }, 'nothing takes its place')
      t.notOk(sets.changed)
      settle(reason)
      await settled
      t.equal(sets.changed, reason?.code !== 'LIMIT_EXCEEDED', 'whether the next session has more')
      t.equal(sets.changedSince(version), sets.changed)
      t.same(await floorsOf(sets), isBack ? { hot: [late, other], cold: [oldest] } : { hot: [other, oldest], cold: [] })
      t.same(letGo, isBack ? [] : [late])
      t.notOk(sets.changed, 'once')
      t.equal(
        sets.changedSince(version),
        reason?.code !== 'LIMIT_EXCEEDED',
        'a session of before is still worth another',
      )
    }
  },
)
