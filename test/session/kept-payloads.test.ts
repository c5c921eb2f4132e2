/** What is kept of frames pins little beside its own bytes, whatever a peer sends around it. */
import t from 'tap'
import { Chunks } from '../../src/bytes/chunks.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/limits.ts'
import { Intake } from '../../src/link/intake.ts'
import { keptParts, keptPayload } from '../../src/session/kept-payloads.ts'
import { encodeFrame, FrameDecoder } from '../../src/wan/frames.ts'
import { FLAG_MORE, FRAME } from '../../src/wan/wire.ts'

const FULL = FRAME_PAYLOAD_BYTES_MAX

/** Parts of a batch as a connection's intake gives them, with frames of nothing of so many bytes before each. */
function arrived(sizes: readonly number[], besides: readonly number[]): Uint8Array[] {
  const parts: Uint8Array[] = []
  const chunks = new Chunks()
  const decoder = new FrameDecoder(({ type, payload }) => {
    chunks.lend(payload)
    if (type === FRAME.BATCH) parts.push(payload)
  })
  const intake = new Intake((chunk, from, end) => decoder.take(chunk, from, end), chunks)
  for (const [i, size] of sizes.entries()) {
    for (const beside of besides) intake.push(encodeFrame(FRAME.PAD, 0, 0, 0, new Uint8Array(beside)))
    intake.push(encodeFrame(FRAME.BATCH, FLAG_MORE, 1, i + 1, new Uint8Array(size).fill(i + 1)))
  }
  return parts
}

const pinnedBy = (parts: readonly Uint8Array[]): number =>
  [...new Set(parts.map(({ buffer }) => buffer))].reduce((sum, { byteLength }) => sum + byteLength, 0)
const bytesOf = (parts: readonly Uint8Array[]): number => parts.reduce((sum, { length }) => sum + length, 0)

t.test('parts of a batch that waits', t => {
  for (const { name, sizes, besides, copied } of [
    { name: 'one after the other', sizes: Array(20).fill(FULL), besides: [], copied: false },
    { name: 'with a short one at the end', sizes: [...Array(20).fill(FULL), 100], besides: [], copied: false },
    { name: 'a full one in each chunk', sizes: Array(20).fill(FULL), besides: [FULL, FULL, FULL], copied: true },
    { name: 'two in each', sizes: Array(20).fill(FULL), besides: [FULL - 100], copied: false },
    { name: 'a short one', sizes: [100], besides: [], copied: true },
    { name: 'a full one and a short one', sizes: [FULL, 100], besides: [], copied: true },
  ]) {
    const parts = arrived(sizes, besides)
    const kept = keptParts(parts)
    t.equal(parts.length, sizes.length)
    t.ok(pinnedBy(kept) <= 2.01 * bytesOf(kept), `${name}: ${pinnedBy(kept)} bytes for ${bytesOf(kept)}`)
    t.equal(kept !== parts, copied, name)
    t.ok(Buffer.concat(kept).equals(Buffer.concat(parts)))
  }
  t.end()
})

t.test('payloads', t => {
  for (const size of [1, 100, FULL]) {
    const [payload] = arrived([size], [])
    t.equal(keptPayload(payload!).buffer.byteLength, size, 'not the chunk')
  }
  t.end()
})
