import { writeU16, writeU32, writeU64 } from '../../src/bytes/big-endian.ts'
import { latin1Bytes } from '../../src/bytes/copy.ts'

/** A byte array that grows, for what is built field by field. Not for the hot path. */
export class ByteWriter {
  private buffer = new Uint8Array(4096)
  private used = 0

  /** Bytes written so far. */
  get length(): number {
    return this.used
  }

  u8(value: number): this {
    const at = this.reserve(1)
    this.buffer[at] = value
    return this
  }

  u16(value: number): this {
    const at = this.reserve(2)
    writeU16(this.buffer, at, value)
    return this
  }

  u32(value: number): this {
    const at = this.reserve(4)
    writeU32(this.buffer, at, value)
    return this
  }

  /** @param value 0 to 2^53 - 1 */
  u64(value: number): this {
    const at = this.reserve(8)
    writeU64(this.buffer, at, value)
    return this
  }

  /** The bytes themselves. */
  raw(bytes: Uint8Array): this {
    const at = this.reserve(bytes.length)
    this.buffer.set(bytes, at)
    return this
  }

  /** `count` times the same byte. */
  fill(value: number, count: number): this {
    const at = this.reserve(count)
    this.buffer.fill(value, at, at + count)
    return this
  }

  /** QEMU's counted string: u8 length, then that many latin1 bytes, 255 at most. */
  cstr(text: string): this {
    return this.u8(text.length).raw(latin1Bytes(text))
  }

  /** What was written; a copy that the caller owns. */
  bytes(): Uint8Array {
    return this.buffer.slice(0, this.used)
  }

  /** Room for `count` bytes: where they go. May replace `buffer`, so it comes before any use of that. */
  private reserve(count: number): number {
    const at = this.used
    this.used += count
    if (this.used > this.buffer.length) {
      const grown = new Uint8Array(Math.max(this.used, this.buffer.length * 2))
      grown.set(this.buffer.subarray(0, at))
      this.buffer = grown
    }
    return at
  }
}
