/** What a peer that takes frames and does not do its part can make a session keep and do again: outbox without a session. */
import t from 'tap'
import { laidBytes, layBatch } from '../../src/codec/laid-batch.ts'
import { FairShares } from '../../src/fair-shares.ts'
import { FRAME_PAYLOAD_BYTES_MAX, SENT_FRAME_BYTES, SENT_FRAMES_FREE, UNACKED_FRAMES_MAX } from '../../src/limits.ts'
import { AnswerRoom } from '../../src/session/answer-room.ts'
import { Fairness } from '../../src/session/fairness.ts'
import { Flow } from '../../src/session/flow.ts'
import { Outbox } from '../../src/session/outbox.ts'
import { Path } from '../../src/session/path.ts'
import { RateCap } from '../../src/session/rate-cap.ts'
import { ReceiveWindow } from '../../src/session/receive-window.ts'
import { FrameDecoder } from '../../src/wan/frames.ts'
import { FRAME, FRAME_HEAD_BYTES } from '../../src/wan/wire.ts'

t.setTimeout(590_000) // the machine may be busy

/** A connection that takes whatever there is. */
class WidePath extends Path {
  override get window(): number {
    return Number.MAX_SAFE_INTEGER
  }
}

function sender(budgetBytes: number) {
  const memory = new FairShares(budgetBytes)
  const share = memory.share('peer')
  const answers = new AnswerRoom(share)
  const outbox = new Outbox(new RateCap(Number.POSITIVE_INFINITY), answers, share)
  const info = { migration: 1, target: 'default', kind: 'main' }
  const flow = new Flow(1, info, new Fairness().join(1), 'open', 0, new ReceiveWindow(65536, share, 0))
  const path = (connection: number): WidePath => new WidePath(connection, 50, 0)
  const out: Uint8Array[] = []
  /** Hands in and sends so many frames, as far as there is room for them. @returns how many went */
  const send = (on: Path, frames: number): number => {
    const before = outbox.lastSequence
    for (let i = 0; i < frames; i++) {
      outbox.enqueue(FRAME.DATA, flow, [new Uint8Array(1)])
      if (outbox.pull(on, true, 0, out) === 0) break
      out.length = 0
    }
    return outbox.lastSequence - before
  }
  return { memory, outbox, path, send, out, flow }
}

t.test('a peer that comes back over and over makes nothing be sorted or copied again', async t => {
  const { outbox, path, send, out } = sender(1 << 30)
  const first = path(0)
  t.equal(send(first, UNACKED_FRAMES_MAX), UNACKED_FRAMES_MAX)
  outbox.lost(first)
  const before = process.cpuUsage()
  for (let round = 0; round < 4000; round++) {
    const again = path(0)
    if (outbox.pull(again, true, 0, out) === 0) t.fail('the first frame goes out again')
    outbox.lost(again)
    out.length = 0
  }
  const { user, system } = process.cpuUsage(before)
  t.comment(`${((user + system) / 4000).toFixed(0)} us each`)
  t.ok(user + system < 2e6, `${(user + system) / 1e6} s of CPU time for 4,000 resumes`)
  const last = path(1)
  let frames = 0
  while (outbox.pull(last, true, 0, out) > 0) frames++
  t.equal(frames, UNACKED_FRAMES_MAX, 'and all of it goes out once more')
  t.equal(outbox.resendBytes, 0)
})

t.test('frames that nobody acknowledges take memory that is bounded', async t => {
  const none = sender(0)
  t.equal(none.send(none.path(0), UNACKED_FRAMES_MAX), SENT_FRAMES_FREE, 'what is free')
  const { memory, outbox, path, send } = sender(100 * 1024 * SENT_FRAME_BYTES)
  const on = path(0)
  const sent = send(on, UNACKED_FRAMES_MAX)
  t.ok(sent > SENT_FRAMES_FREE + 40 * 1024 && sent <= SENT_FRAMES_FREE + 51 * 1024, `${sent} frames with a budget`)
  t.ok(memory.used >= (sent - SENT_FRAMES_FREE) * SENT_FRAME_BYTES, 'which pays for them')
  outbox.acknowledge(sent)
  outbox.delivered(on, sent)
  t.ok(memory.used <= 2 * 1024 * SENT_FRAME_BYTES, 'and has it again when they are acknowledged')
  t.ok(send(on, 100) > 0)
})

t.test('nor do frames that are acknowledged and that their connections do not count', async t => {
  const { outbox, path, send, out } = sender(0)
  const paths = Array.from({ length: 16 }, (_, connection) => path(connection))
  let sent = 0
  for (let round = 0; round < 100; round++) {
    for (const one of paths) sent += send(one, 1000)
    outbox.acknowledge(outbox.lastSequence)
  }
  t.equal(sent, 2 * SENT_FRAMES_FREE, 'on all connections together')
  outbox.delivered(paths[0]!, 1)
  t.ok(outbox.pull(paths[1]!, true, 0, out) > 0, 'one that is counted makes room for one')
  t.equal(outbox.pull(paths[1]!, true, 0, out), 0)
  outbox.lost(paths[0]!)
  t.equal(send(paths[1]!, 500), 500, 'and a connection that is gone counts no more')
})

t.test('a laid batch goes out in one piece, and again as it was', async t => {
  const { outbox, path, out, flow } = sender(1 << 30)
  const batch = Uint8Array.from({ length: 100_000 }, (_, i) => i * 31)
  const memory = new Uint8Array(laidBytes(batch.length))
  const other = new Uint8Array(laidBytes(50_000))
  let released = 0
  outbox.enqueue(FRAME.BATCH, flow, layBatch([batch], memory), () => released++, true)
  outbox.enqueue(FRAME.BATCH, flow, layBatch([batch.subarray(0, 50_000)], other), () => released++, true)
  const first = path(0)
  const pull = (on: Path, frames: number): void => {
    out.length = 0
    for (let i = 0; i < frames; i++) t.ok(outbox.pull(on, true, 0, out) > 0)
  }
  pull(first, 3)
  t.equal(out.length, 1, 'frames that follow each other are one view')
  t.equal(out[0]!.buffer, memory.buffer, 'of the memory that the batch was laid in')
  const sent = Buffer.from(out[0]!)
  pull(first, 4)
  t.ok(outbox.endsLaid)
  t.equal(out.length, 1)
  pull(first, 1)
  t.notOk(outbox.endsLaid)
  t.equal(out[0]!.buffer, other.buffer)
  outbox.delivered(first, 2)
  outbox.acknowledge(1)
  outbox.lost(first) // in the middle of the first batch: 1 is acknowledged, and 2 has arrived
  t.equal(released, 0)
  const second = path(1)
  pull(second, 1)
  t.strictSame(Buffer.from(out[0]!), sent.subarray(2 * (FRAME_PAYLOAD_BYTES_MAX + FRAME_HEAD_BYTES)))
  pull(second, 5)
  t.equal(out.length, 2, 'what was sent of the second one follows, in a piece of its own')
  const frames: Buffer[] = []
  const decoder = new FrameDecoder(({ payload }) => frames.push(Buffer.from(payload)))
  for (const view of out) decoder.push(Buffer.from(view))
  t.strictSame(Buffer.concat(frames.slice(0, -1)), Buffer.from(batch.subarray(3 * FRAME_PAYLOAD_BYTES_MAX)))
  outbox.acknowledge(6)
  t.equal(released, 0, 'the last frame of the first one is not acknowledged')
  outbox.acknowledge(7)
  t.equal(released, 1)
})

t.test('a frame that is not laid follows one that was in its place', async t => {
  const { outbox, path, out, flow } = sender(1 << 30)
  const on = path(0)
  const sequenceOf = (): number => {
    let at = -1
    const decoder = new FrameDecoder(({ sequence }) => {
      at = sequence
    })
    for (const view of out) decoder.push(Buffer.from(view))
    return at
  }
  for (let i = 1; i <= 300; i++) {
    out.length = 0
    const isLaid = i % 3 === 0
    const part = new Uint8Array(500).fill(i)
    const parts = isLaid ? layBatch([part], new Uint8Array(laidBytes(500))) : [part]
    outbox.enqueue(FRAME.BATCH, flow, parts, undefined, isLaid)
    outbox.pull(on, true, 0, out)
    if (sequenceOf() !== i) t.fail(`frame ${i}`)
    if (i > 20) outbox.acknowledge(i - 20)
  }
  t.equal(outbox.lastSequence, 300)
})
