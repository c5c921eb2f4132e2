/** A guest larger than any that runs here: the memory of several captured guests, one behind the other in one RAMBlock. */
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { PAGE_SIZE, RAM_FLAG } from '../../src/qemu/wire.ts'
import { StreamEmitter } from '../harness/qemu/stream-emitter.ts'

const BLOCK = 'pc.ram'
/** Section id of ram in the stream that is made: any would do. */
const RAM_ID = 2
const BUFFER_BYTES = 8 << 20

/** Writes to a descriptor in large pieces. */
class Buffered {
  private readonly buffer = Buffer.allocUnsafe(BUFFER_BYTES)
  private fill = 0
  private readonly descriptor: number

  constructor(descriptor: number) {
    this.descriptor = descriptor
  }

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
    for (let at = 0; at < this.fill; ) at += writeSync(this.descriptor, this.buffer, at, this.fill - at)
    this.fill = 0
  }
}

/** Writes the main stream of a guest whose memory is that of all `streams`, each a captured main stream. @returns its memory in bytes */
export function writeSyntheticGuest(path: string, streams: readonly string[]): number {
  const lengths = streams.map(blockLength)
  const memoryBytes = lengths.reduce((sum, length) => sum + length, 0)
  const descriptor = openSync(path, 'w')
  const out = new Buffered(descriptor)
  const before = new StreamEmitter().header().ramStart(RAM_ID, [{ idstr: BLOCK, lengthBytes: memoryBytes }])
  out.put(before.eos().footer(RAM_ID).sectionPart(RAM_ID).bytes())
  let base = 0
  let named = false
  streams.forEach((stream, i) => {
    const bytes = readFileSync(stream)
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
      pageRecord: (_start, end, block, offset) =>
        record(block, offset, RAM_FLAG.PAGE, bytes.subarray(end - PAGE_SIZE, end)),
      opaquePage: none,
      phase: none,
      degraded(position, reason) {
        throw new Error(`${stream}: not understood from byte ${position}: ${reason}`)
      },
    })
    parser.push(bytes, 0, bytes.length)
    base += lengths[i]!
  })
  out.put(new StreamEmitter().eos().footer(RAM_ID).sectionEnd(RAM_ID).eos().footer(RAM_ID).eof().bytes())
  out.flush()
  closeSync(descriptor)
  return memoryBytes
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
