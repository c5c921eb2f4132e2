/** A cap on what goes to one peer, by several sessions to it: each gets as much, whose timer comes first or last. */
import t from 'tap'
import { RATE_DEBT_BYTES, RateBucket, RateCap } from '../../src/session/rate-cap.ts'
import { SharedCap } from '../../src/session/shared-cap.ts'

const FRAME = 16_384
/** Bytes a second, and a millisecond. */
const RATE = 10_000_000
const PER_MS = RATE / 1000

/** Sessions that send all that they may, in this order, each millisecond. @returns bytes of each in `ms` */
function send(
  caps: readonly RateCap[],
  ms: number,
  from = 1000,
  wants: (session: number, ms: number) => boolean = () => true,
) {
  const sent = caps.map(() => 0)
  for (let now = from; now < from + ms; now++) {
    for (const [i, cap] of caps.entries()) {
      cap.refill(now)
      while (wants(i, now - from) && cap.mayGo(0, now)) {
        cap.spend(FRAME)
        sent[i]! += FRAME
      }
    }
  }
  return sent
}

const near = (value: number, expected: number): boolean => Math.abs(value - expected) < 0.03 * expected + 10 * FRAME

t.test('one session has all of it', t => {
  const [bytes] = send([new RateCap(new RateBucket(RATE))], 2000)
  t.ok(near(bytes!, 2000 * PER_MS), `${bytes}`)
  t.end()
})

t.test('two have as much each, whichever is first', t => {
  for (const count of [2, 3, 4]) {
    const bucket = new RateBucket(RATE)
    const sent = send(
      Array.from({ length: count }, () => new RateCap(bucket)),
      3000,
    )
    for (const bytes of sent) t.ok(near(bytes, (3000 * PER_MS) / count), `${sent}`)
  }
  t.end()
})

t.test('what one does not want is the others', t => {
  const bucket = new RateBucket(RATE)
  const caps = [new RateCap(bucket), new RateCap(bucket)]
  const [idle, busy] = send(caps, 2000, 1000, session => session === 1)
  t.equal(idle, 0)
  t.ok(near(busy!, 2000 * PER_MS), `${busy}`)
  // half of the time
  const [sometimes, always] = send(caps, 4000, 3000, (session, ms) => session === 1 || ms % 2000 < 1000)
  t.ok(near(sometimes!, (4000 * PER_MS) / 4) && near(always!, (3 * 4000 * PER_MS) / 4), `${sometimes} ${always}`)
  t.end()
})

t.test('one that ends leaves its part, one that begins gets one', t => {
  const bucket = new RateBucket(RATE)
  const [first, second] = [new RateCap(bucket), new RateCap(bucket)]
  send([first, second], 1000)
  first.leave()
  first.leave()
  const [bytes] = send([second], 2000, 2000)
  t.ok(near(bytes!, 2000 * PER_MS), `${bytes}`)
  const both = send([second, new RateCap(bucket)], 2000, 4000)
  for (const one of both) t.ok(near(one, 1000 * PER_MS), `${both}`)
  t.end()
})

t.test('a cap on all peers is shared by a peer’s sessions, too', t => {
  for (const own of [Number.POSITIVE_INFINITY, RATE]) {
    const all = new SharedCap(RATE / 2)
    const [one, other] = [new RateBucket(own, all.join(1)), new RateBucket(own, all.join(1))]
    const caps = [new RateCap(one), new RateCap(one), new RateCap(other)]
    const sent = send(caps, 4000)
    const peer = (4000 * PER_MS) / 4
    t.ok(near(sent[0]! + sent[1]!, peer) && near(sent[2]!, peer), `own cap ${own}: ${sent}`)
    t.ok(near(sent[0]!, peer / 2) && near(sent[1]!, peer / 2), `own cap ${own}: ${sent}`)
  }
  t.end()
})

t.test('a cap that is changed or taken away', t => {
  const bucket = new RateBucket(RATE)
  const caps = [new RateCap(bucket), new RateCap(bucket)]
  send(caps, 500)
  caps[0]!.set(RATE / 10, 1500)
  t.equal(bucket.bytesPerSecond, RATE / 10)
  const sent = send(caps, 4000, 1500)
  for (const bytes of sent) t.ok(near(bytes, (4000 * PER_MS) / 20), `${sent}`)
  caps[1]!.set(Number.POSITIVE_INFINITY, 6000)
  for (const cap of caps) t.ok(cap.mayGo(0, 6000))
  t.end()
})

t.test('urgent frames go first and are paid back', t => {
  const bucket = new RateBucket(RATE)
  const cap = new RateCap(bucket)
  cap.refill(1000)
  let debt = 0
  while (cap.mayGo(RATE_DEBT_BYTES, 1000)) {
    cap.spend(FRAME)
    debt += FRAME
  }
  t.ok(debt > RATE_DEBT_BYTES)
  t.notOk(cap.mayGo(0, 1000))
  t.ok(cap.wakeMs > 1000 + RATE_DEBT_BYTES / PER_MS, 'bulk waits until it is paid')
  cap.refill(cap.wakeMs)
  t.ok(cap.mayGo(0, cap.wakeMs))
  t.end()
})
