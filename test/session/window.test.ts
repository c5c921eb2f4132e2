/**
 * What the windows do on steady and changing links, in virtual time: the link is kept busy, what stands in queues stays
 * near the target, migrations share fairly, and a cap is kept. The figures are those of link.ts, which steps 0.25 ms.
 */
import t from 'tap'
import { type CapShare, SharedCap } from '../../src/session/shared-cap.ts'
import { WarmUp } from '../../src/session/warm-up.ts'
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
  for (const targetMs of [50, 10]) {
    const long = warm({ rates: [25_000], rttMs: [150], targetMs }, 2000)
    long.run(2000)
    const part = `${(used(long, 2000) * 100).toFixed(1)} % of a long link behind its start, ${targetMs} ms`
    t.ok(used(long, 2000) > 0.97, `the queue that a start makes is not taken for a slower link: ${part}`)
  }
})

t.test('a link that is known before anybody comes', async t => {
  for (const [name, rate, rttMs, mostBytes] of [
    ['20 Mbit/s, 60 ms', 2500, 60, 2 << 20],
    ['100 Mbit/s, 40 ms', 12_500, 40, 7 << 20],
    ['1 Gbit/s, 2 ms', 125_000, 2, 4 << 20],
  ] as const) {
    const cold = new Link({ rates: [rate], rttMs: [rttMs] })
    const link = new Link({ rates: [rate], rttMs: [rttMs], warmUp: new WarmUp() })
    link.run(3000)
    t.equal(link.client.stats().unacked, 0, `${name}: it ends by itself`)
    const known = link.client.knownRate
    t.ok(Math.abs(known / rate - 1) < 0.05, `${name}: ${known} is known`)
    t.ok(link.upBytes < mostBytes, `${name}: by ${link.upBytes} bytes`)
    t.ok(link.queueMsMax < rttMs + 10, `${name}: ${link.queueMsMax.toFixed(1)} ms in whoever's way comes meanwhile`)
    t.equal(cold.client.knownRate, Number.POSITIVE_INFINITY, `${name}: without, nothing is`)
    link.open()
    link.resetFigures()
    const ms = 5 * rttMs + 100
    for (const one of [cold, link]) one.run(ms)
    const [first, fresh] = [used(link, ms), used(cold, ms)]
    t.ok(first > Math.min(fresh + 0.2, 0.9), `${name}: ${first.toFixed(2)} used at once, ${fresh.toFixed(2)} without`)
    // the model paces nothing, so that the whole window, round trip and target, stands there at first, as behind each pause
    t.ok(link.queueMsMax < rttMs + 55, `${name}: ${link.queueMsMax.toFixed(1)} ms in the queue`)
    link.resetFigures()
    link.run(1000)
    t.ok(link.queueMsMax < 80, `${name}: ${link.queueMsMax.toFixed(1)} ms later on`)
  }
  const long = new Link({ rates: [25_000], rttMs: [150], warmUp: new WarmUp() })
  long.run(5000)
  t.ok(long.upBytes < (8 << 20) + 65536, `${long.upBytes} bytes are the most`)
  t.equal(long.client.stats().unacked, 0)
  const capped = new Link({ rates: [12_500], rttMs: [40], rate: 1e6, warmUp: new WarmUp() })
  capped.run(5000)
  t.ok(capped.upBytes < 1 << 20, `${capped.upBytes} bytes under a cap of 1 MB/s`)
  // what it lets go at once is in it: more than the cap, and far less than the link
  t.ok(capped.client.knownRate >= 1000 && capped.client.knownRate < 2000, `${capped.client.knownRate} bytes a ms`)
  t.ok(capped.queueMsMax < 10, `${capped.queueMsMax.toFixed(1)} ms in the queue`)
})

t.test('nobody is kept waiting while a link is being measured', async t => {
  const waiting = new Link({ rates: [12_500], rttMs: [40], warmUp: new WarmUp() })
  waiting.open()
  waiting.feeding = false
  waiting.run(500)
  t.ok(waiting.upBytes < 4096, `${waiting.upBytes} bytes: a flow that is there at once`)
  const amid = new Link({ rates: [12_500], rttMs: [40], warmUp: new WarmUp() })
  amid.run(300)
  const { upBytes } = amid
  t.ok(upBytes > 1 << 20, `${upBytes} bytes are under way or gone`)
  amid.open()
  amid.feeding = false
  amid.sendUrgent()
  amid.run(500)
  t.ok(amid.upBytes < upBytes + 4096, `${amid.upBytes - upBytes} bytes more: a flow amid them ends them`)
  t.ok(amid.urgentMsMax < 100, `${amid.urgentMsMax.toFixed(1)} ms until its first byte is there`)
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

t.test('a far side whose host has others to serve', async t => {
  // With 50 ms of queue nothing is lost; where a guest stands still a little is, and the link must not be taken for slower.
  for (const [targetMs, everyMs, ms, least] of [
    [50, 101, 30, 0.97],
    [10, 101, 30, 0.75],
    [5, 101, 30, 0.7],
    [10, 251, 60, 0.75],
    [5, 251, 60, 0.73],
  ] as const) {
    const link = warm({ rates: [12_500], rttMs: [40], targetMs, still: { everyMs, ms } }, 3000)
    link.run(5000)
    const named = `${ms} of ${everyMs} ms, queue target ${targetMs} ms`
    t.ok(used(link, 5000) > least, `${named}: ${(used(link, 5000) * 100).toFixed(1)} % used`)
  }
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

t.test('a way that gets a little longer while next to nothing may wait', async t => {
  for (const [targetMs, rate, rttMs, moreMs] of [
    [10, 12_500, 20, 15],
    [10, 12_500, 40, 18],
    [5, 12_500, 40, 10],
    [5, 12_500, 40, 18],
    [5, 125_000, 2, 15],
  ] as const) {
    const link = warm({ rates: [rate], rttMs: [rttMs], targetMs }, 2000)
    link.options.rttMs[0] = rttMs + moreMs
    link.run(1500)
    link.resetFigures()
    link.run(1000)
    const named = `${rttMs} and ${moreMs} ms, queue target ${targetMs} ms`
    t.ok(used(link, 1000) > 0.95, `${named}: ${(used(link, 1000) * 100).toFixed(1)} % used`)
    t.ok(link.queueMsMax < targetMs + 10, `${named}: ${link.queueMsMax.toFixed(1)} ms in the queue`)
  }
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

t.test('weights of memory and disks', async t => {
  const weights = { memory: 3, disks: 1 }
  // a migration with two flows, another with one, and a disk transfer with four connections
  const link = warm({ rates: [12_500], rttMs: [20], flows: [1, 1, 2, -3, -3, -3, -3], ratio: 2, weights }, 1000)
  link.run(4000)
  const shares = (): number[] => {
    const sum = [...link.rawBy.values()].reduce((a, b) => a + b, 0)
    return [1, 2, -3].map(migration => (link.rawBy.get(migration) ?? 0) / sum)
  }
  const near = (found: number[], wanted: number[]): boolean =>
    found.every((one, i) => Math.abs(one - wanted[i]!) < 0.03)
  t.ok(near(shares(), [3 / 7, 3 / 7, 1 / 7]), `each migration has three times as much: ${shares()}`)
  t.ok(used(link, 4000) > 0.95, 'of a busy link')
  Object.assign(weights, { memory: 1, disks: 2 })
  link.run(200)
  link.resetFigures()
  link.run(4000)
  t.ok(near(shares(), [1 / 4, 1 / 4, 2 / 4]), `other weights count while they run: ${shares()}`)
})

/** Links whose clients share a cap, in the same time. @returns bytes a ms that each had */
function shared(links: readonly Link[], ms: number): number[] {
  const run = (forMs: number): void => {
    for (let i = 0; i < forMs; i++) for (const link of links) link.run(1)
  }
  run(1000)
  for (const link of links) link.resetFigures()
  run(ms)
  return links.map(link => link.arrivedBytes / ms)
}

t.test('a cap that sessions share, by weight', async t => {
  const near = (found: number[], wanted: number[]): boolean =>
    found.every((one, i) => Math.abs(one - wanted[i]!) < 0.04 * Math.max(500, wanted[i]!))
  const cap = new SharedCap(4e6)
  const [one, two, three] = [cap.join(1), cap.join(2), cap.join(1)]
  const link = (share: CapShare, more: Partial<LinkOptions> = {}) =>
    new Link({ rates: [12_500], rttMs: [20], shared: share, ...more })
  const links = [link(one), link(two, { rttMs: [60] }), link(three)]
  const even = shared(links, 3000)
  t.ok(near(even, [1000, 2000, 1000]), `4000 bytes a ms, one has twice the weight: ${even.map(Math.round)}`)
  links[1]!.feeding = false
  const idle = shared(links, 3000)
  t.ok(near(idle, [2000, 0, 2000]), `what one does not want the others have: ${idle.map(Math.round)}`)
  links[1]!.feeding = true
  links[1]!.client.setRate(5e5)
  const capped = shared(links, 3000)
  t.ok(near(capped, [1750, 500, 1750]), `also of one whose own cap is less: ${capped.map(Math.round)}`)
  links[1]!.client.setRate(Number.POSITIVE_INFINITY)
  Object.assign(three, { weight: 5 })
  const others = shared(links, 3000)
  t.ok(near(others, [500, 1000, 2500]), `other weights count at once: ${others.map(Math.round)}`)
  cap.set(8e6, links[0]!.now)
  const more = shared(links, 3000)
  t.ok(near(more, [1000, 2000, 5000]), `and another cap: ${more.map(Math.round)}`)
  links[0]!.options.rates[0] = 500 // a link that is slower than its share
  const slow = shared(links, 3000)
  t.ok(near(slow, [500, 2143, 5357]), `a link that is slower than its share leaves the rest: ${slow.map(Math.round)}`)
  cap.set(Number.POSITIVE_INFINITY, links[0]!.now)
  const free = shared(links, 2000)
  t.ok(free[1]! > 11_500 && free[2]! > 11_500, `without a cap each is as fast as its link: ${free.map(Math.round)}`)
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
