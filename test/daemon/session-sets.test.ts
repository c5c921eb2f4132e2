/** Which sets a side brings into a session, where the store has more than fit. */
import { utimesSync } from 'node:fs'
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { SessionSets } from '../../src/daemon/session-sets.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { page, putPages, scratch } from '../template/makers.ts'

t.setTimeout(240_000) // the machine may be busy

t.test('of more sets than fit the newest are brought, and the others told', async t => {
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
  const warnings: unknown[] = []
  const events = new Events()
  events.subscribe(({ event, fields }) => {
    if (event.startsWith('template sets left out')) warnings.push((fields as { sets: string }).sets)
  })
  const offered = async (pagesMax?: number): Promise<string[]> => new SessionSets(store, events, pagesMax).offer()
  t.same(await offered(), [d, c, b, a], 'the newest first')
  t.same(await offered(15), [d, c, b, a], 'all that fit')
  t.same(warnings, [])
  t.same(await offered(11), [d, c, a], 'an older one where a newer is too large')
  t.same(await offered(1), [])
  const short = (...all: string[]): string => all.map(digest => digest.slice(0, 12)).join(' ')
  t.same(warnings, [short(b), short(d, c, b, a)], 'which were left out')

  warnings.length = 0
  const sets = new SessionSets(store, events, 5)
  t.same(await sets.offer(), [d, a])
  t.same(await sets.offer(), [d, a])
  t.same(warnings, [short(c, b)], 'told once')
  sets.takeFewer()
  t.same(await sets.offer(), [d], 'half as much where other sessions have taken the rest')
  t.same(warnings.splice(0), [short(c, b), short(c, b, a)])
  await store.remove(c)
  t.same(await sets.offer(), [d])
  t.same(warnings, [short(b, a)], 'and again when it changes')
})
