/** What a connection says of itself: when, in which order, and each once. */
import t from 'tap'
import { ACK_BYTES, PING_INTERVAL_MS } from '../../src/limits.ts'
import { FrameWriter } from '../../src/session/frame-writer.ts'
import { Path } from '../../src/session/path.ts'
import { pullPathFrames } from '../../src/session/path-frames.ts'
import { FrameDecoder } from '../../src/wan/frames.ts'

const RECEIVED = 41

/** Pulls once. @returns each frame as its type and payload */
function pull(path: Path, nowMs: number): string[] {
  const out: Uint8Array[] = []
  const bytes = pullPathFrames(path, RECEIVED, nowMs, new FrameWriter(), out)
  const frames: string[] = []
  const decoder = new FrameDecoder(({ type, flow, sequence, payload }) => {
    frames.push([type, ...(flow + sequence > 0 ? ['numbered'] : []), Buffer.from(payload).toString('hex')].join(' '))
  })
  decoder.push(Buffer.concat(out))
  if (bytes !== Buffer.concat(out).length) throw new Error(`it says that ${bytes} bytes went out`)
  return frames
}

const word = (value: number): string => value.toString(16).padStart(16, '0')

t.test('the first thing is a PING, then one each interval', async t => {
  const path = new Path(0, 50, 1000)
  t.same(pull(path, 1000), [`17 ${word(1)}`])
  t.same(pull(path, 999 + PING_INTERVAL_MS), [])
  t.same(pull(path, 1000 + PING_INTERVAL_MS), [`17 ${word(2)}`])
})

t.test('all at once: what the peer waits for comes first', async t => {
  const path = new Path(3, 50, 0)
  path.arrived(ACK_BYTES, 1)
  path.arrived(10, 1)
  path.pong = Uint8Array.of(8, 7, 6, 5, 4, 3, 2, 1)
  path.drainDue = true
  t.same(pull(path, 2), [`16 ${word(RECEIVED)}${word(2)}`, '18 0807060504030201', `17 ${word(1)}`, '20 '])
  t.same(pull(path, 2), [], 'each once')
})

t.test('an ACK waits for more to tell, or for its time', async t => {
  const path = new Path(0, 50, 0)
  pull(path, 0)
  path.arrived(10, 0)
  t.same(pull(path, 0), [], 'a few bytes are no reason yet')
  path.tick(path.nextTickMs)
  t.same(pull(path, 0), [`16 ${word(RECEIVED)}${word(1)}`])
})
