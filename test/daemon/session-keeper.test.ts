/** One session after the other: when the next is tried, and what is said meanwhile. */
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { SessionKeeper } from '../../src/daemon/session-keeper.ts'
import { ProxyError } from '../../src/errors.ts'

t.test('one after the other, until none is wanted', async t => {
  const told: unknown[] = []
  const statuses: string[] = []
  const events = new Events()
  events.subscribe(({ level, event }) => told.push([level, event]))
  const lost = new ProxyError('PEER_LOST', 'nobody answers', undefined, '')
  const outcomes: (Error | undefined)[] = [lost, lost, new TypeError('a defect'), undefined, undefined]
  const failing: boolean[] = []
  const whys: string[] = []
  const before: number[] = []
  const keeper = new SessionKeeper({
    run: async () => {
      failing.push(keeper.isFailing)
      whys.push(keeper.failure ? `${keeper.failure.what} ${keeper.failure.times}` : 'none')
      const outcome = outcomes.shift()
      // somebody waits for the next one: a pause after a failure, which takes a second or more, ends at once
      setImmediate(() => keeper.wake())
      if (outcome) throw outcome
      before.push(keeper.opened())
    },
    isOver: () => outcomes.length === 0,
    log: events,
    onStatus: status => statuses.push(status),
  })
  await keeper.keep()
  t.same(failing, [false, true, true, true, false])
  t.same(whys, ['none', 'nobody answers 1', 'nobody answers 2', 'our own defect: a defect 3', 'none'])
  t.same(before, [3, 0], 'how often it was tried before')
  t.same(told, [
    ['warn', 'no session'],
    ['error', 'link.defect'],
    ['warn', 'no session'],
  ])
  const defect = 'no session: our own defect: a defect'
  t.same(statuses, ['no session: nobody answers', 'no session: nobody answers', defect])
})

t.test('a failure when it is over is nobody’s news, but a defect is', async t => {
  const told: string[] = []
  const events = new Events()
  events.subscribe(({ event }) => told.push(event))
  let over = false
  const keeper = new SessionKeeper({
    run: async () => {
      over = true
      throw new TypeError('a defect')
    },
    isOver: () => over,
    log: events,
  })
  await keeper.keep()
  t.same(told, ['link.defect'])
})
