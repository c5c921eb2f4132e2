/** Who expands when, where many want to at once. */
import t from 'tap'
import { EVENT_LOOP } from '../../src/system/event-loop.ts'
import { Turns } from '../../src/transfer/turns.ts'

t.test('holders take turns, however much each has waiting', async t => {
  const turns = new Turns(EVENT_LOOP)
  const order: string[] = []
  const wants = (holder: string, name: string): Promise<void> => turns.next(holder).then(() => void order.push(name))
  await Promise.all([
    ...['a1', 'a2', 'a3', 'a4'].map(name => wants('a', name)),
    ...['b1', 'b2'].map(name => wants('b', name)),
    wants('c', 'c1'),
  ])
  t.same(order, ['a1', 'b1', 'c1', 'a2', 'b2', 'a3', 'a4'])
})

t.test('one who comes again and again is behind one who has waited', async t => {
  const turns = new Turns(EVENT_LOOP)
  const order: string[] = []
  const greedy = async (): Promise<void> => {
    for (let i = 0; i < 3; i++) {
      await turns.next('greedy')
      order.push('greedy')
    }
  }
  await Promise.all([greedy(), greedy(), turns.next('other').then(() => void order.push('other'))])
  t.equal(order.indexOf('other'), 1)
  t.equal(order.length, 7)
})

t.test('a turn has time until it was spent, and the next has time again', async t => {
  const turns = new Turns(EVENT_LOOP)
  t.ok(turns.hasTime)
  turns.spend(2 ** 40)
  t.notOk(turns.hasTime)
  await turns.next('')
  t.ok(turns.hasTime)
})
