/** Work at the end of a turn: how often it is done, and what comes before it. */
import t from 'tap'
import type { Clock } from '../../src/link/api.ts'
import { EndOfTurn } from '../../src/link/end-of-turn.ts'

/** Time that a test moves. */
class Hand implements Clock {
  nowMs = 0
  private readonly waiting = new Set<{ readonly atMs: number; readonly run: () => void }>()
  readonly now = (): number => this.nowMs
  readonly after = (ms: number, run: () => void): (() => void) => {
    const one = { atMs: this.nowMs + ms, run }
    this.waiting.add(one)
    return () => void this.waiting.delete(one)
  }

  moveTo(nowMs: number): void {
    this.nowMs = nowMs
    for (const one of [...this.waiting]) {
      if (one.atMs > nowMs || !this.waiting.delete(one)) continue
      one.run()
    }
  }

  get timers(): number {
    return this.waiting.size
  }
}

const turn = (): Promise<void> => new Promise(done => setImmediate(done))

function work() {
  const clock = new Hand()
  const runs: boolean[] = []
  return { clock, runs, end: new EndOfTurn(clock, isDue => runs.push(isDue)) }
}

t.test('once a turn, however often it is asked for', async t => {
  const { runs, end } = work()
  for (let i = 0; i < 3; i++) end.ask()
  t.same(runs, [], 'not within the turn')
  await turn()
  t.same(runs, [false])
  await turn()
  t.same(runs, [false], 'nobody asked')
  end.ask()
  await turn()
  t.same(runs, [false, false])
})

t.test('who asks while it is done is not forgotten', async t => {
  const clock = new Hand()
  let runs = 0
  const end = new EndOfTurn(clock, () => {
    if (++runs < 3) end.ask()
  })
  end.ask()
  for (let i = 0; i < 5; i++) await turn()
  t.equal(runs, 3)
})

t.test('a time that has come: after what the sockets have, and told once', async t => {
  const { clock, runs, end } = work()
  end.askAt(10)
  clock.moveTo(9)
  await turn()
  t.same(runs, [])
  clock.moveTo(10)
  t.same(runs, [], 'not in the timer')
  await turn()
  t.same(runs, [true])
  end.ask()
  await turn()
  t.same(runs, [true, false])
  end.askAt(20)
  end.ask()
  clock.moveTo(20)
  await turn()
  t.same(runs, [true, false, true], 'both at once')
})

t.test('after the end nothing, also of what was asked for before', async t => {
  const { clock, runs, end } = work()
  end.askAt(10)
  end.ask()
  end.stop()
  t.equal(clock.timers, 0)
  end.ask()
  end.askAt(5)
  clock.moveTo(10)
  await turn()
  t.same(runs, [])
})
