/** Frames out of bytes that land one behind the other: the same as one chunk after the other, wherever they are cut. */
import { once } from 'node:events'
import net from 'node:net'
import { PassThrough } from 'node:stream'
import t from 'tap'
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
  const decoder = new FrameDecoder(({ type, sequence, payload }) => kept.push({ type, sequence, payload }))
  const intake = new Intake((chunk, from, end) => {
    try {
      return decoder.take(chunk, from, end)
    } catch (error) {
      failure ??= error as ProxyError
      return end
    }
  })
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
