/** Who may begin where places are few: a migration that began gets every channel. */
import t from 'tap'
import { admission, GATHERING_MS, type Gathering } from '../../src/migration/channel-places.ts'
import { random } from '../template/makers.ts'

const MOST = 258

t.test('admission', t => {
  const cases: [what: string, places: number, running: Gathering[], wanted: number, answer: string][] = [
    ['an empty session', 1280, [], MOST, 'now'],
    ['less room than one needs', 257, [], MOST, 'never'],
    ['three that may still have all their channels', 1032, Array(3).fill({ channels: 1, lastMs: 0 }), MOST, 'now'],
    ['four of them', 1032, Array(4).fill({ channels: 1, lastMs: 0 }), MOST, 'wait'],
    ['a hundred that have come', 1280, Array(100).fill({ channels: 3, lastMs: -GATHERING_MS }), MOST, 'now'],
    ['many channels', 1280, Array(4).fill({ channels: 256, lastMs: -GATHERING_MS }), MOST, 'never'],
    ['and a recovery beside them', 1280, Array(4).fill({ channels: 256, lastMs: -GATHERING_MS }), 2, 'now'],
  ]
  for (const [what, places, running, wanted, answer] of cases)
    t.equal(admission(places, running, wanted, MOST, 0).answer, answer, what)
  t.match(admission(1032, Array(4).fill({ channels: 1, lastMs: -500 }), MOST, MOST, 0), {
    untilMs: GATHERING_MS - 500,
  })
  t.end()
})

t.test('whatever begins in any order, all its channels find a place', t => {
  for (let seed = 1; seed <= 200; seed++) {
    const next = random(seed)
    const places = 258 + next(1500)
    const running: { channels: number; lastMs: number; left: number; preempt: boolean }[] = []
    let admitted = 0
    for (let nowMs = 0; nowMs < 60_000; nowMs += next(400)) {
      for (const one of running) {
        // all its channels within a second, now and then one late
        const more = nowMs - one.lastMs < GATHERING_MS ? Math.min(one.left, next(200)) : 0
        if (more > 0) {
          one.channels += more
          one.left -= more
          one.lastMs = nowMs
        } else if (one.preempt && next(10) === 0) {
          one.preempt = false
          one.channels++
        }
      }
      const open = running.reduce((sum, { channels }) => sum + channels, 0)
      if (open > places) {
        t.fail(`seed ${seed}: ${open} channels for ${places} places`)
        break
      }
      if (next(4) === 0) running.splice(next(running.length + 1), 1)
      if (admission(places, running, MOST, MOST, nowMs).answer === 'now') {
        admitted++
        running.push({ channels: 1, lastMs: nowMs, left: next(2) === 0 ? 0 : next(256), preempt: next(2) === 0 })
      }
    }
    if (admitted < 5) t.fail(`seed ${seed}: only ${admitted} began`)
  }
  t.pass('200 seeds')
  t.end()
})
