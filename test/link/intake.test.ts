/** Frames out of bytes that land one behind the other: the same as one chunk after the other, wherever they are cut. */
import { once } from 'node:events'
import net from 'node:net'
import { PassThrough } from 'node:stream'
import t from 'tap'
import { Chunks } from '../../src/bytes/chunks.ts'
import type { ProxyError } from '../../src/errors.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/limits.ts'
import { Intake, readInto } from '../../src/link/intake.ts'
import { encodeFrame, FrameDecoder } from '../../src/wan/frames.ts'
import { FRAME, FRAME_HEAD_BYTES } from '../../src/wan/wire.ts'

const SIZES = [0, 1, 15, 16, 17, 4096, FRAME_PAYLOAD_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX]

/** Frames of all sizes, 2 MB and more of them: each payload is full of another byte. */
function someFrames(): Uint8Array[] {
  return Array.from({ length: 270 }, (_, i) => {
    const size = SIZES[(i * 7) % SIZES.length]!
    const type = size === 0 ? FRAME.FIN : FRAME.BATCH
    return encodeFrame(type, 0, 1, i + 1, new Uint8Array(size).fill(i))
  })
}

/** An intake, and what is kept of its frames: read only when all of it has come. */
function receiver(): { intake: Intake; frames: () => Uint8Array[]; failure: () => ProxyError | undefined } {
  const kept: { type: number; sequence: number; payload: Uint8Array }[] = []
  let failure: ProxyError | undefined
  const chunks = new Chunks()
  chunks.poison = 0xdd
  const decoder = new FrameDecoder(({ type, sequence, payload }) => {
    chunks.pin(payload)
    kept.push({ type, sequence, payload })
  })
  const intake = new Intake((chunk, from, end) => {
    try {
      return decoder.take(chunk, from, end)
    } catch (error) {
      failure ??= error as ProxyError
      return end
    }
  }, chunks)
  return {
    intake,
    frames: () => kept.map(({ type, sequence, payload }) => encodeFrame(type, 0, 1, sequence, payload)),
    failure: () => failure,
  }
}

t.test('frames come out whole and stay as they came, in pieces of any length', t => {
  const frames = someFrames()
  const all = Buffer.concat(frames)
  for (const piece of [1, 13, 4096, 16384, 16385, 65536, all.length]) {
    const { intake, frames: got } = receiver()
    for (let at = 0; at < all.length; at += piece) intake.push(all.subarray(at, at + piece))
    t.ok(Buffer.concat(got()).equals(all), `pieces of ${piece} bytes`)
    t.equal(got().length, frames.length)
  }
  t.end()
})

t.test('chunks are written again once all that was lent of them came back, and not before', t => {
  const chunks = new Chunks()
  chunks.poison = 0xdd
  const lent: { payload: Uint8Array; expected: Buffer }[] = []
  const wrong: number[] = []
  let count = 0
  const check = ({ payload, expected }: (typeof lent)[number]): void => {
    if (!expected.equals(payload)) wrong.push(count)
  }
  const decoder = new FrameDecoder(({ payload }) => {
    count++
    const view = { payload, expected: Buffer.from(payload) }
    chunks.lend(payload)
    lent.push(view)
    // the oldest and the newest come back at any time; of 100 frames one never does
    while (lent.length > 3 + ((count * 13) % 40)) {
      const back = count % 2 ? lent.shift()! : lent.splice((count * 7) % lent.length, 1)[0]!
      check(back)
      if (count % 100 !== 0) chunks.giveBack([back.payload])
    }
  })
  const intake = new Intake((chunk, from, end) => decoder.take(chunk, from, end), chunks)
  const all = Buffer.concat(someFrames())
  for (let i = 0; i < 20; i++) for (let at = 0; at < all.length; at += 16384) intake.push(all.subarray(at, at + 16384))
  for (const view of lent) check(view)
  t.same(wrong, [])
  t.ok(chunks.reused > 100, `${chunks.reused} chunks were used again`)
  t.ok(chunks.waiting <= 24)
  t.end()
})

t.test('a chunk with a view that is kept for good, or that never comes back, is left to the collector', t => {
  const chunks = new Chunks()
  const [kept, twice, free] = [chunks.take(), chunks.take(), chunks.take()]
  chunks.pin(kept.subarray(3, 4))
  chunks.lend(twice.subarray(0, 1))
  chunks.lend(twice.subarray(1, 2))
  for (const chunk of [kept, twice, free]) chunks.retire(chunk)
  chunks.giveBack([twice.subarray(0, 1), new Uint8Array(1), kept.subarray(3, 4)])
  t.equal(chunks.waiting, 1)
  t.equal(chunks.take(), free)
  chunks.giveBack([twice.subarray(1, 2)])
  t.equal(chunks.take(), twice)
  t.notOk([kept, free, twice].includes(chunks.take()))
  t.throws(() => chunks.retire(new Uint8Array(8)))
  t.throws(() => chunks.retire(kept), 'twice')
  t.end()
})

t.test('there is room for a whole TLS record, whatever has landed', t => {
  const { intake, frames } = receiver()
  const all = Buffer.concat(someFrames())
  let least = Number.POSITIVE_INFINITY
  for (let at = 0; at < all.length; ) {
    const room = intake.room()
    least = Math.min(least, room.length)
    const count = Math.min(16384, all.length - at, at % 3 === 0 ? 16384 : 9001)
    room.set(all.subarray(at, at + count))
    intake.landed(count)
    at += count
  }
  t.ok(least >= 16384, `${least} bytes`)
  t.ok(Buffer.concat(frames()).equals(all))
  t.end()
})

t.test('a length that is not allowed is found before its bytes are there, and nothing behind it is taken', t => {
  const frame = encodeFrame(FRAME.DATA, 0, 1, 1, new Uint8Array(1))
  frame[4] = 0xff
  for (const bytes of [frame.subarray(0, 6), frame]) {
    const { intake, frames, failure } = receiver()
    intake.push(bytes)
    t.equal(failure()?.code, 'LIMIT_EXCEEDED')
    intake.push(encodeFrame(FRAME.DATA, 0, 1, 2, new Uint8Array(1)))
    t.equal(frames().length, 0)
  }
  const { intake, failure } = receiver()
  intake.push(frame.subarray(0, 5))
  t.equal(failure(), undefined, 'not before it is there')
  t.end()
})

t.test('a socket reads into it, also where that begins late', async t => {
  const frames = someFrames()
  const all = Buffer.concat(frames)
  const server = net.createServer(socket => socket.end(all)).listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  const socket = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1')
  // the first bytes come by 'data', as a hello does
  const [first] = (await once(socket, 'data')) as [Uint8Array]
  socket.pause().removeAllListeners('data')
  const { intake, frames: got, failure } = receiver()
  intake.push(first)
  intake.push((socket.read() as Uint8Array | null) ?? new Uint8Array(0))
  t.equal(readInto(socket, intake), true, `Node ${process.version} has it`)
  socket.on('data', () => t.fail("nothing comes by 'data' any more"))
  socket.resume()
  await once(socket, 'close')
  t.equal(failure(), undefined)
  t.ok(Buffer.concat(got()).equals(all))
})

t.test('what is no socket of Node as it is known is left as it is', t => {
  t.equal(readInto(new PassThrough() as unknown as net.Socket, receiver().intake), false)
  const socket = new net.Socket()
  t.equal(readInto(socket, receiver().intake), false, 'not connected')
  socket.destroy()
  t.end()
})

t.equal(FRAME_PAYLOAD_BYTES_MAX + FRAME_HEAD_BYTES, 16384, 'a full frame is a TLS record')
