/** Batches as frames carry them: which bytes lie where, and how sockets get them. */
import t from 'tap'
import { laidBytes, layBatch } from '../../src/codec/laid-batch.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/limits.ts'
import { FRAME_HEAD_BYTES } from '../../src/wan/wire.ts'

const FRAME_BYTES = FRAME_HEAD_BYTES + FRAME_PAYLOAD_BYTES_MAX

t.test('each frame has its part behind room for its head', async t => {
  for (const lengths of [
    [1],
    [30, FRAME_PAYLOAD_BYTES_MAX - 30],
    [30, FRAME_PAYLOAD_BYTES_MAX - 29],
    [30, 4, 258_552],
    [0, 5, 0, 2 * FRAME_PAYLOAD_BYTES_MAX, 0, 7],
  ]) {
    const parts = lengths.map((length, part) => Uint8Array.from({ length }, (_, i) => i * 7 + part))
    const whole = Buffer.concat(parts)
    const memory = Buffer.alloc(laidBytes(whole.length) + 100, 0xee)
    const laid = layBatch(parts, memory)
    t.strictSame(Buffer.concat(laid), whole, `${lengths}`)
    for (const [frame, part] of laid.entries()) {
      t.equal(part.byteOffset - memory.byteOffset, frame * FRAME_BYTES + FRAME_HEAD_BYTES)
      t.equal(frame === laid.length - 1 || part.length === FRAME_PAYLOAD_BYTES_MAX, true)
      t.ok(memory.subarray(frame * FRAME_BYTES, frame * FRAME_BYTES + FRAME_HEAD_BYTES).every(byte => byte === 0xee))
    }
    t.ok(
      memory.subarray(laidBytes(whole.length)).every(byte => byte === 0xee),
      'nothing behind it is written',
    )
  }
})
