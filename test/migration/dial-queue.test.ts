/** Who is dialled when: in the order of OPEN, one at a time, and nobody who is gone. */
import t from 'tap'
import { DialQueue } from '../../src/migration/dial-queue.ts'
import { random } from '../template/makers.ts'

class Flow {
  readonly number: number
  over = false

  constructor(number: number) {
    this.number = number
  }
}

t.test('one after the other, when there is something to say', t => {
  const dialled: number[] = []
  const queue = new DialQueue<Flow>(({ number }) => dialled.push(number))
  const [a, b, c, d] = [1, 2, 3, 4].map(number => new Flow(number)) as [Flow, Flow, Flow, Flow]
  queue.wants(d) // a preempt channel, before it is added
  queue.add(a, 'x')
  queue.add(b, 'x')
  queue.add(c, 'x')
  queue.add(d, 'y')
  t.same(dialled, [4], 'another target')
  queue.wants(b)
  t.same(dialled, [4], 'not before the first')
  queue.wants(a)
  t.same(dialled, [4, 1])
  queue.done(a)
  t.same(dialled, [4, 1, 2])
  queue.wants(c)
  queue.gone(b)
  t.same(dialled, [4, 1, 2], 'its dial is given up, but not over')
  queue.done(b)
  t.same(dialled, [4, 1, 2, 3])
  queue.gone(d)
  queue.done(d)
  queue.done(c)
  t.equal(queue.waiting, 0)
  queue.gone(c)
  const e = new Flow(5)
  queue.add(e, 'x')
  queue.stop()
  queue.wants(e)
  t.same(dialled, [4, 1, 2, 3], 'the session is over')
  t.end()
})

t.test('whatever comes in whatever order', t => {
  for (let seed = 1; seed <= 200; seed++) {
    const next = random(seed)
    const flows: Flow[] = []
    const address = new Map<Flow, string>()
    const wanted = new Set<Flow>()
    const dialling: Flow[] = []
    const dialled: Flow[] = []
    const queue = new DialQueue<Flow>(flow => {
      if (flow.over) t.fail(`seed ${seed}: who is gone was dialled`)
      if (!wanted.has(flow)) t.fail(`seed ${seed}: dialled with nothing to say`)
      if (dialling.some(other => address.get(other) === address.get(flow))) t.fail(`seed ${seed}: two at once`)
      const before = flows.filter(other => other.number < flow.number && address.get(other) === address.get(flow))
      if (before.some(other => !other.over && !dialled.includes(other))) t.fail(`seed ${seed}: out of order`)
      dialling.push(flow)
      dialled.push(flow)
    })
    for (let step = 0; step < 300; step++) {
      const some = flows[next(flows.length || 1)]
      const what = next(5)
      if (what === 0 || !some) {
        const flow = new Flow(flows.length)
        flows.push(flow)
        address.set(flow, `target ${next(3)}`)
        queue.add(flow, address.get(flow)!)
      } else if (what < 3 && !some.over) {
        wanted.add(some)
        queue.wants(some)
      } else if (what === 3 && next(3) === 0 && !some.over) {
        some.over = true
        queue.gone(some)
      } else if (dialling.length > 0) queue.done(dialling.splice(next(dialling.length), 1)[0]!)
    }
    // in the end everyone who is wanted has had its turn
    for (const flow of flows) {
      if (flow.over) continue
      wanted.add(flow)
      queue.wants(flow)
    }
    while (dialling.length > 0) queue.done(dialling.shift()!)
    if (flows.some(flow => !flow.over && !dialled.includes(flow))) t.fail(`seed ${seed}: one waits for ever`)
    t.equal(queue.waiting, 0, `seed ${seed}`)
  }
  t.end()
})
