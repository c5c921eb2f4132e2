/**
 * Who expands when, where many want to at once: the rules one by one, then peers with many sessions in turns that are
 * counted. The simulation must find each of the faults that are planted below.
 */
import t from 'tap'
import { EVENT_LOOP, type EventLoop } from '../../src/transfer/event-loop.ts'
import { Turns, WORK_PER_TURN } from '../../src/transfer/turns.ts'
import { random } from '../template/makers.ts'

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

/** Of one batch. */
const WORK_MAX = WORK_PER_TURN / 2

/** An event loop whose turns are taken by hand. */
class Loop implements EventLoop {
  private callbacks: (() => void)[] = []

  nowMs(): number {
    return 0
  }

  soon(then: () => void): void {
    this.callbacks.push(then)
  }

  after(): () => void {
    return () => {}
  }

  async turn(): Promise<void> {
    for (const then of this.callbacks.splice(0)) then()
    await new Promise(done => setImmediate(done)) // what was resolved goes on
  }
}

/** Peers of one to eight sessions, each with batches that come now and then. @returns what went wrong */
async function simulate(seed: number, make: typeof Turns): Promise<string> {
  const next = random(seed)
  const loop = new Loop()
  const turns = new make(loop)
  const faults: string[] = []
  let work = 0
  let undone = 0
  /** Whom each holder that waits has seen go on since. */
  const seen = new Map<string, string[]>()
  const session = (holder: string) => {
    const jobs: number[] = []
    let running = false
    const run = async (): Promise<void> => {
      running = true
      while (jobs.length > 0) {
        if (!turns.hasTime) {
          if (!seen.has(holder)) seen.set(holder, [])
          await turns.next(holder)
          const before = seen.get(holder) ?? []
          for (const other of before)
            if (before.indexOf(other) !== before.lastIndexOf(other)) faults.push(`${other} twice before ${holder}`)
          seen.delete(holder)
          for (const others of seen.values()) others.push(holder)
        }
        const spent = jobs.shift()!
        turns.spend(spent)
        work += spent
        undone--
      }
      running = false
    }
    return {
      push: (): void => {
        jobs.push(1 + next(WORK_MAX))
        undone++
        if (!running) void run()
      },
    }
  }
  const sessions = Array.from({ length: 2 + next(4) }, (_, i) =>
    Array.from({ length: 1 + next(8) }, () => session(`holder ${i}`)),
  ).flat()
  for (let turn = 0; turn < 40 || undone > 0; turn++) {
    if (turn > 2000) return 'it never ends'
    if (turn < 40) for (let i = next(20); i > 0; i--) sessions[next(sessions.length)]!.push()
    // since the turn before: what is begun is ended, so one batch more
    if (work > WORK_PER_TURN + WORK_MAX) faults.push(`work of ${work / WORK_PER_TURN} turns in one`)
    work = 0
    await loop.turn()
  }
  return faults[0] ?? ''
}

t.test('whatever comes, turns stay short and go round', async t => {
  for (let seed = 1; seed <= 60; seed++) t.equal(await simulate(seed, Turns), '', `seed ${seed}`)
})

const PLANTS: Record<string, typeof Turns> = {
  'takes all for one holder': class extends Turns {
    override next(): Promise<void> {
      return super.next('')
    }
  },
  'has time without end': class extends Turns {
    override get hasTime(): boolean {
      return true
    }
  },
  'forgets what was spent': class extends Turns {
    override spend(): void {
      super.spend(0)
    }
  },
  'forgets who waits': class extends Turns {
    private count = 0

    override next(holder: string): Promise<void> {
      return this.count++ % 50 === 49 ? new Promise(() => {}) : super.next(holder)
    }
  },
  'lets the last come first': class extends Turns {
    override next(holder: string): Promise<void> {
      const waits = super.next(holder)
      const others = [...this.waiting].filter(([name]) => name !== holder)
      for (const [name, queue] of others) {
        this.waiting.delete(name)
        this.waiting.set(name, queue)
      }
      return waits
    }
  },
}

for (const [name, make] of Object.entries(PLANTS)) {
  t.test(`finds one that ${name}`, async t => {
    let wrong = ''
    for (let seed = 1; wrong === '' && seed <= 60; seed++) wrong = await simulate(seed, make)
    t.not(wrong, '', wrong)
  })
}
