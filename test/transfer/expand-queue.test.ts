/** What is expanded next, and how much may wait. */
import t from 'tap'
import { BATCH_FORMAT } from '../../src/codec/wire.ts'
import { isProxyError } from '../../src/errors.ts'
import { FairShares } from '../../src/fair-shares.ts'
import {
  BATCHES_WAITING_FREE_BYTES,
  BATCHES_WAITING_PER_RAW_BYTE,
  BATCHES_WAITING_UNPAID_BYTES,
  FRAME_PAYLOAD_BYTES_MAX,
} from '../../src/limits.ts'
import { ExpandQueue } from '../../src/transfer/expand-queue.ts'
import { random } from '../template/makers.ts'

/** A batch of so many packed bytes that says it expands to so many: docs/protocol.md §4, its format and a LEB128 number in front. */
function parts(packedBytes: number, rawBytes: number): Uint8Array[] {
  const head: number[] = [BATCH_FORMAT]
  let left = rawBytes
  for (; left > 127; left = Math.floor(left / 128)) head.push((left % 128) | 128)
  head.push(left)
  return [Uint8Array.from(head), new Uint8Array(packedBytes - head.length)]
}

t.test('in the order in which they came, whatever their channels', t => {
  for (let seed = 1; seed <= 50; seed++) {
    const next = random(seed)
    const queue = new ExpandQueue<number>()
    const came: (number | string)[] = []
    const went: (number | string)[] = []
    const take = (): void => {
      const job = queue.next()
      if (job === undefined) return
      if ('then' in job) job.then()
      else went.push(job.channel)
    }
    for (let i = 0; i < 200; i++) {
      const what = next(3)
      if (what === 0) {
        came.push(i)
        queue.push(i, parts(10, 100))
      } else if (what === 1) {
        came.push(`mark ${i}`)
        queue.mark(() => went.push(`mark ${i}`))
      } else take()
    }
    while (queue.length > 0) take()
    t.same(went, came, `seed ${seed}`)
    t.equal(queue.next(), undefined)
  }
  t.end()
})

t.test('packed bytes that wait are bounded by their raw ones', t => {
  const queue = new ExpandQueue<string>()
  const raw = 1000
  const most = BATCHES_WAITING_FREE_BYTES + BATCHES_WAITING_PER_RAW_BYTE * raw
  const refused = queue.push('a', parts(most + 1, raw))
  t.ok(isProxyError(refused, 'LIMIT_EXCEEDED'))
  t.match(refused, { what: `batches of ${most + 1} bytes wait that expand to ${raw}` })
  t.equal(queue.length, 0, 'not taken')
  t.equal(queue.push('a', parts(most, raw)), undefined)
  queue.mark(() => {})
  t.ok(isProxyError(queue.push('b', parts(4, 1)), 'LIMIT_EXCEEDED'), 'together')
  t.equal(queue.push('b', parts(3, 1)), undefined)
  t.match(queue.next(), { channel: 'a', packedBytes: most, rawBytes: raw })
  t.equal(queue.push('c', parts(most, raw)), undefined, 'what is expanded waits no more')
  queue.clear()
  t.equal(queue.length, 0)
  t.equal(queue.push('d', parts(most, raw)), undefined, 'nor what was dropped')
  t.end()
})

t.test('the budget pays for what waits of a channel whose credit is gone, and for no more', t => {
  const pot = new FairShares(1 << 30)
  const queue = new ExpandQueue<string>(pot.share('peer'))
  const length = 8 << 20
  for (const channel of ['gone', 'lives']) {
    queue.push(channel, parts(length, length))
    queue.mark(() => {}, channel, length)
  }
  queue.mark(() => {})
  t.equal(pot.used, 0, 'credit pays')
  queue.orphan('gone')
  t.equal(pot.used, 2 * length - BATCHES_WAITING_UNPAID_BYTES)
  queue.orphan('gone')
  queue.orphan('never came')
  t.equal(pot.used, 2 * length - BATCHES_WAITING_UNPAID_BYTES, 'once')
  queue.next()
  t.equal(pot.used, length - BATCHES_WAITING_UNPAID_BYTES, 'as long as it waits')
  queue.next()
  t.equal(pot.used, 0)
  queue.push('gone', parts(length, length))
  t.equal(pot.used, 0, 'another of the same name')
  while (queue.next());
  queue.orphan('lives')
  t.equal(pot.used, 0)
  t.end()
})

t.test('what waits pins little beside it, wherever its parts lie', t => {
  const FULL = FRAME_PAYLOAD_BYTES_MAX
  /** In a chunk of plain TCP, as sockets give it, whose other frames nobody keeps. */
  const inChunk = (bytes: Uint8Array): Uint8Array => {
    const chunk = Buffer.alloc(65_536)
    chunk.set(bytes, 100)
    return chunk.subarray(100, 100 + bytes.length)
  }
  for (const last of [1, 100, 4000, FULL / 2, FULL - 1, FULL]) {
    const queue = new ExpandQueue<string>()
    const first = new Uint8Array(FULL)
    first.set(parts(10, 100)[0]!)
    const second = new Uint8Array(last).fill(7)
    const given = [inChunk(first), inChunk(second)]
    queue.push('waits', given)
    queue.push('does not', given, false)
    const [waits, doesNot] = [queue.next(), queue.next()]
    if (!waits || !('parts' in waits) || !doesNot || !('parts' in doesNot)) throw new Error('two batches')
    t.equal(doesNot.parts, given, 'what does not wait is not copied')
    t.equal(waits.parts.length, 2)
    t.ok(waits.parts[0]!.buffer.byteLength <= 4.01 * FULL, 'a full part: three others have room beside it')
    const most = last === FULL ? 4.01 * FULL : 2 * last
    t.ok(waits.parts[1]!.buffer.byteLength <= most, `${last} bytes pin ${waits.parts[1]!.buffer.byteLength}`)
    t.same(Uint8Array.from(waits.parts[1]!), second, 'the same bytes')
  }
  t.end()
})
