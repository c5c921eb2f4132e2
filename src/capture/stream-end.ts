/**
 * Where a raw stream ends, in an input that goes on: Proxmox VE keeps a snapshot's memory on a volume that is larger, and
 * what was on it before stands behind. Device state does not say how long it is; what ends a stream is its description.
 */
import { readU32 } from '../bytes/big-endian.ts'
import { MainStreamParser } from '../qemu/main-stream.ts'
import type { RecordSink, StreamPhase } from '../qemu/stream-sink.ts'
import { ELEMENT } from '../qemu/wire.ts'
import type { Chunks } from './input-file.ts'
import { DESCRIPTION_LENGTH_MAX } from './limits.ts'

/** EOF, VMDESCRIPTION, u32 length, and the JSON begins. */
const DESCRIPTION = Buffer.from([ELEMENT.EOF, ELEMENT.VMDESCRIPTION])
const DESCRIPTION_HEAD = 6
const JSON_BEGIN = '{"'
const JSON_END = '}'.charCodeAt(0)
const LOOK_LENGTH = DESCRIPTION_HEAD + JSON_BEGIN.length

/** Hears where RAM is over. */
class RamEnd implements RecordSink {
  /** The first byte behind it; undefined while it goes on. */
  position: number | undefined

  phase(phase: StreamPhase, position: number): void {
    if (phase === 'ram-end' || phase === 'snapshot-devices') this.position = position
  }

  block(): void {}
  zeroRecord(): void {}
  pageRecord(): void {}
  opaquePage(): void {}
  degraded(): void {}
}

/**
 * The stream without what stands behind its end; all of it where its end is not found.
 *
 * @param more told where something stands behind it: that is not read
 */
export async function* untilStreamEnd(chunks: Chunks, more: () => void): Chunks {
  const ramEnd = new RamEnd()
  const parser = new MainStreamParser(ramEnd)
  /** The last bytes, in which a description may begin. */
  let tail: Buffer = Buffer.alloc(0)
  /** Bytes of the description still to come; -1 where none was found. */
  let left = -1
  for await (const chunk of chunks) {
    if (left === 0) {
      more() // it ended with the last chunk
      return
    }
    let at = 0
    if (ramEnd.position === undefined) {
      const base = parser.position
      parser.push(chunk, 0, chunk.length)
      if (ramEnd.position === undefined) {
        yield chunk
        continue
      }
      at = ramEnd.position - base // memory of the guest may have descriptions too
    }
    while (at < chunk.length && left !== 0) {
      if (left < 0) {
        const looked = Buffer.concat([tail, chunk.subarray(at)])
        const found = descriptionIn(looked)
        if (found === undefined) {
          tail = Buffer.from(looked.subarray(Math.max(0, looked.length - LOOK_LENGTH + 1)))
          break
        }
        at += found.at + DESCRIPTION_HEAD - tail.length
        left = found.length
        tail = Buffer.alloc(0)
      }
      const take = Math.min(left, chunk.length - at)
      left -= take
      at += take
      if (left === 0 && chunk[at - 1] !== JSON_END) left = -1 // device state that looked like it
    }
    if (left !== 0) {
      yield chunk
      continue
    }
    yield chunk.subarray(0, at)
    if (at < chunk.length) {
      more()
      return
    }
  }
}

function descriptionIn(bytes: Buffer): { at: number; length: number } | undefined {
  for (let at = bytes.indexOf(DESCRIPTION); at >= 0; at = bytes.indexOf(DESCRIPTION, at + 1)) {
    if (at + LOOK_LENGTH > bytes.length) return undefined
    const length = readU32(bytes, at + DESCRIPTION.length)
    const begins = bytes.toString('latin1', at + DESCRIPTION_HEAD, at + LOOK_LENGTH) === JSON_BEGIN
    if (begins && length >= JSON_BEGIN.length && length <= DESCRIPTION_LENGTH_MAX) return { at, length }
  }
  return undefined
}
