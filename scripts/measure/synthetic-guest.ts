/** A guest larger than any that runs here: the memory of several captured guests, one behind the other in one RAMBlock. */
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { PAGE_SIZE, RAM_FLAG } from '../../src/qemu/wire.ts'
import { StreamEmitter } from '../harness/qemu/stream-emitter.ts'

const BLOCK = 'pc.ram'
/** Section id of ram in the stream that is made: any would do. */
const RAM_ID = 2
const BUFFER_BYTES = 8 << 20

/** Gathers bytes in large pieces. */
class Gathered {
  /** Full, in order, to be taken. */
  readonly pieces: Buffer[] = []
  private buffer = Buffer.allocUnsafe(BUFFER_BYTES)
  private fill = 0

  /** The next `length` bytes, to be filled at once. */
  take(length: number): Buffer {
    if (this.fill + length > this.buffer.length) this.flush()
    this.fill += length
    return this.buffer.subarray(this.fill - length, this.fill)
  }

  put(bytes: Uint8Array): void {
    this.take(bytes.length).set(bytes)
  }

  flush(): void {
    this.pieces.push(this.buffer.subarray(0, this.fill))
    this.buffer = Buffer.allocUnsafe(BUFFER_BYTES)
    this.fill = 0
  }
}

/** A captured guest as a part of a larger one. */
export interface Part {
  readonly stream: string
  /** Every byte of its pages is xored with this: pages of another key match none of it, and pack as well. */
  readonly key: number
}

/** Bytes of memory of a guest of these parts. */
export function memoryOf(parts: readonly Part[]): number {
  return parts.reduce((sum, { stream }) => sum + blockLength(stream), 0)
}

/** As many parts of these streams in turn as make so much memory: a stream that comes again has another key. */
export function partsFor(memoryBytes: number, streams: readonly string[]): Part[] {
  const parts: Part[] = []
  for (let bytes = 0; bytes < memoryBytes; bytes += blockLength(parts.at(-1)!.stream)) {
    const [turn, i] = [Math.floor(parts.length / streams.length), parts.length % streams.length]
    if (turn > 255) throw new Error(`${memoryBytes} bytes are more than 256 times those of the guests`)
    parts.push({ stream: streams[i]!, key: turn })
  }
  return parts
}

/** The main stream of a guest whose memory is that of all `parts`. A piece is nobody else's. */
export function* syntheticGuest(parts: readonly Part[]): Generator<Buffer> {
  const memoryBytes = memoryOf(parts)
  const out = new Gathered()
  const before = new StreamEmitter().header().ramStart(RAM_ID, [{ idstr: BLOCK, lengthBytes: memoryBytes }])
  out.put(before.eos().footer(RAM_ID).sectionPart(RAM_ID).bytes())
  let base = 0
  let named = false
  const page = new Uint8Array(PAGE_SIZE)
  const words = new Uint32Array(page.buffer)
  for (const { stream, key } of parts) {
    const bytes = readFileSync(stream)
    const mask = Math.imul(key, 0x01010101)
    let ram = -1
    const record = (block: number, offset: number, flag: number, body: Uint8Array): void => {
      if (block !== ram) return // firmware and video memory: one guest has them once
      if (!named) {
        named = true
        const first = new StreamEmitter()
        out.put((body.length === 1 ? first.zero(base + offset, BLOCK) : first.page(base + offset, body, BLOCK)).bytes())
        return
      }
      const head = out.take(8 + body.length)
      head.writeBigUInt64BE(BigInt(base + offset + flag + RAM_FLAG.CONTINUE))
      head.set(body, 8)
    }
    const none = (): void => {}
    const zero = new Uint8Array(1)
    const parser = new MainStreamParser({
      block(block, idstr) {
        if (idstr === BLOCK) ram = block
      },
      zeroRecord: (_start, _end, block, offset) => record(block, offset, RAM_FLAG.ZERO, zero),
      pageRecord(_start, end, block, offset) {
        page.set(bytes.subarray(end - PAGE_SIZE, end))
        if (mask !== 0) for (let i = 0; i < words.length; i++) words[i]! ^= mask
        record(block, offset, RAM_FLAG.PAGE, page)
      },
      opaquePage: none,
      phase: none,
      degraded(position, reason) {
        throw new Error(`${stream}: not understood from byte ${position}: ${reason}`)
      },
    })
    for (let at = 0; at < bytes.length; at += BUFFER_BYTES) {
      parser.push(bytes, at, Math.min(BUFFER_BYTES, bytes.length - at))
      yield* out.pieces.splice(0)
    }
    base += blockLength(stream)
  }
  out.put(new StreamEmitter().eos().footer(RAM_ID).sectionEnd(RAM_ID).eos().footer(RAM_ID).eof().bytes())
  out.flush()
  yield* out.pieces
}

/** Writes the main stream of a guest whose memory is that of all `streams`, each a captured main stream. @returns its memory in bytes */
export function writeSyntheticGuest(path: string, streams: readonly string[]): number {
  const parts = streams.map(stream => ({ stream, key: 0 }))
  const descriptor = openSync(path, 'w')
  for (const piece of syntheticGuest(parts)) {
    for (let at = 0; at < piece.length; ) at += writeSync(descriptor, piece, at, piece.length - at)
  }
  closeSync(descriptor)
  return memoryOf(parts)
}

/** Length of pc.ram, from the stream's block list. */
function blockLength(stream: string): number {
  let length = 0
  const none = (): void => {}
  const parser = new MainStreamParser({
    block(_block, idstr, lengthBytes) {
      if (idstr === BLOCK) length = lengthBytes
    },
    zeroRecord: none,
    pageRecord: none,
    opaquePage: none,
    phase: none,
    degraded: none,
  })
  const head = Buffer.alloc(65536)
  const descriptor = openSync(stream, 'r')
  const bytes = head.subarray(0, readSync(descriptor, head))
  closeSync(descriptor)
  parser.push(bytes, 0, bytes.length)
  if (length === 0) throw new Error(`${stream}: no ${BLOCK}`)
  return length
}
