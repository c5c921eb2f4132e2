/**
 * What the windows do on steady and changing links, in virtual time: the link is kept busy, what stands in queues stays
 * near the target, migrations share fairly, and a cap is kept. The figures are those of link.ts, which steps 0.25 ms.
 */
import t from 'tap'
import { Link, type LinkOptions } from './link.ts'

t.setTimeout(590_000) // the machine may be busy

/** Part of what the link could carry in the last `ms` that it did carry. */
function used(link: Link, ms: number): number {
  const rate = link.options.rates.reduce((sum, one) => sum + one, 0)
  return link.arrivedBytes / ms / rate
}

/** A link that has found its speed. */
function warm(options: LinkOptions, ms: number): Link {
  const link = new Link(options)
  link.run(ms)
  link.resetFigures()
  return link
}

t.test('busy links with a bounded queue', async t => {
  for (const [name, rate, rttMs, warmMs, ms, queueMs] of [
    ['10 Mbit/s, 20 ms', 1250, 20, 500, 3000, 80],
    ['100 Mbit/s, 20 ms', 12_500, 20, 500, 3000, 60],
    ['1 Gbit/s, 0.2 ms', 125_000, 0.2, 300, 1000, 60],
    ['1 Gbit/s, 60 ms', 125_000, 60, 3000, 2000, 60],
    ['10 Gbit/s, 1 ms: 64 MiB are the most', 1_250_000, 1, 300, 500, 60],
    ['100 Mbit/s by satellite, 500 ms', 12_500, 500, 14_000, 3000, 90],
  ] as const) {
    const link = warm({ rates: [rate], rttMs: [rttMs], ratio: 2 }, warmMs)
    link.run(ms)
    t.ok(used(link, ms) > 0.96, `${name}: ${(used(link, ms) * 100).toFixed(1)} % used`)
    t.ok(link.queueMsMax < queueMs, `${name}: ${link.queueMsMax.toFixed(1)} ms in the queue`)
    t.ok(link.unackedMax <= 64 << 20, `${name}: ${link.unackedMax} bytes kept`)
  }
})

t.test('a start from nothing', async t => {
  const link = new Link({ rates: [12_500], rttMs: [20] })
  link.run(1000)
  t.ok(used(link, 1000) > 0.9, `${(used(link, 1000) * 100).toFixed(1)} % of the first second`)
  const idle = new Link({ rates: [12_500], rttMs: [20] })
  idle.feeding = false
  for (let i = 0; i < 100; i++) {
    idle.run(20)
    idle.sendUrgent()
  }
  idle.resetFigures()
  idle.feeding = true
  idle.run(1000)
  t.ok(used(idle, 1000) > 0.9, 'small traffic before is not taken for the speed of the link')
})

t.test('a link that gets slower, then faster', async t => {
  const link = warm({ rates: [12_500], rttMs: [20] }, 2000)
  link.options.rates[0] = 1250
  link.run(1500)
  link.resetFigures()
  link.run(2000)
  t.ok(used(link, 2000) > 0.95, 'a tenth of the rate is used in full')
  t.ok(link.queueMsMax < 100, `after 1.5 s the queue is ${link.queueMsMax.toFixed(1)} ms`)
  link.options.rates[0] = 12_500
  link.run(500)
  link.resetFigures()
  link.run(1000)
  t.ok(used(link, 1000) > 0.95, 'half a second later it is fast again')
})

t.test('a way that gets longer, then shorter', async t => {
  const link = warm({ rates: [12_500], rttMs: [20] }, 2000)
  link.options.rttMs[0] = 200
  link.run(3500)
  link.resetFigures()
  link.run(3000)
  t.ok(used(link, 3000) > 0.85, `a window for the old round trip does not stay: ${used(link, 3000)}`)
  link.options.rttMs[0] = 5
  link.run(1500)
  link.resetFigures()
  link.run(1000)
  t.ok(used(link, 1000) > 0.95)
  t.ok(link.queueMsMax < 80, `${link.queueMsMax.toFixed(1)} ms`)
})

t.test('a smallest round trip that is measured again costs little', async t => {
  const link = warm({ rates: [12_500], rttMs: [20] }, 2000)
  link.run(25_000)
  t.ok(used(link, 25_000) > 0.98, `${(used(link, 25_000) * 100).toFixed(1)} %`)
  t.ok(link.client.stats().connections[0]!.rttMinMs < 23)
})

t.test('connections of different speed', async t => {
  const link = warm({ rates: [12_500, 2500], rttMs: [20, 80] }, 2000)
  link.run(4000)
  t.ok(used(link, 4000) > 0.95, 'both are used')
  t.ok(link.reorderedMax < 4 << 20, `${link.reorderedMax} bytes wait for a missing frame`)
})

t.test('shares of migrations', async t => {
  const link = warm({ rates: [12_500], rttMs: [20], flows: [1, 2, 2, 2, 2], ratio: 2 }, 1000)
  link.run(4000)
  const share = link.rawBy.get(1)! / (link.rawBy.get(1)! + link.rawBy.get(2)!)
  t.ok(Math.abs(share - 0.5) < 0.03, `one flow against four of another migration: ${share.toFixed(3)}`)
})

t.test('urgent bytes on a full link', async t => {
  const link = warm({ rates: [12_500], rttMs: [20] }, 1000)
  for (let i = 0; i < 100; i++) {
    link.run(20)
    link.sendUrgent()
  }
  t.ok(link.urgentMsMax < 75, `${link.urgentMsMax.toFixed(1)} ms: half a round trip and the queue`)
  link.client.setQueueTarget(5)
  link.run(300)
  link.resetFigures()
  for (let i = 0; i < 100; i++) {
    link.run(20)
    link.sendUrgent()
  }
  t.ok(link.urgentMsMax < 30, `${link.urgentMsMax.toFixed(1)} ms with a queue target of 5 ms`)
  t.ok(used(link, 2000) > 0.95, 'and still a busy link')
})

t.test('--rate', async t => {
  const link = warm({ rates: [12_500], rttMs: [20], rate: 2e6 }, 500)
  link.run(3000)
  t.ok(Math.abs(link.arrivedBytes / 3000 - 2000) < 60, `${(link.arrivedBytes / 3000).toFixed(0)} bytes a ms of 2000`)
  t.ok(link.queueMsMax < 10, 'nothing stands in the link')
  let queued = 0
  for (let i = 0; i < 300; i++) {
    link.run(1)
    queued = Math.max(queued, link.client.stats().queued)
  }
  t.ok(queued < 2000 * 50, `nor before it: ${queued} bytes, ${(queued / 2000).toFixed(1)} ms`)
  link.client.setRate(5e6)
  link.run(200)
  link.resetFigures()
  link.run(2000)
  t.ok(Math.abs(link.arrivedBytes / 2000 - 5000) < 150, `${(link.arrivedBytes / 2000).toFixed(0)} of 5000`)
  link.client.setRate(Number.POSITIVE_INFINITY)
  link.run(500)
  link.resetFigures()
  link.run(1000)
  t.ok(used(link, 1000) > 0.95, 'without a cap again')
  const two = warm({ rates: [12_500, 12_500], rttMs: [20, 20], rate: 2e6 }, 500)
  two.run(2000)
  t.ok(Math.abs(two.arrivedBytes / 2000 - 2000) < 60, 'the cap is for all connections together')
})
