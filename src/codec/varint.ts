/** Unsigned LEB128 up to 2^53 - 1, shortest form only, and zigzag: docs/protocol.md, first paragraphs. */
import { ProxyError } from '../errors.ts'

/** Most bytes of one varint. */
export const VARINT_BYTES_MAX = 8

/** Writes `value` at `at`, at most 8 bytes. @returns the position behind it */
export function writeVarint(bytes: Uint8Array, at: number, value: number): number {
  let v = value
  let p = at
  while (v > 0x7fffffff) {
    bytes[p++] = (v % 128) | 0x80
    v = Math.floor(v / 128)
  }
  while (v > 127) {
    bytes[p++] = (v & 127) | 128
    v >>>= 7
  }
  bytes[p++] = v
  return p
}

/** 2n for n >= 0, -2n - 1 for n < 0. */
export function zigzag(n: number): number {
  return n >= 0 ? 2 * n : -2 * n - 1
}

/** The inverse of zigzag. */
export function unzigzag(v: number): number {
  return v % 2 === 0 ? v / 2 : -(v + 1) / 2
}

/** Reads varints one after the other from a stretch of bytes. */
export class VarintReader {
  private bytes: Uint8Array
  private start: number
  private at: number
  private end: number
  private readonly name: string

  /** @param name of the column, for errors */
  constructor(name: string) {
    this.bytes = new Uint8Array(0)
    this.start = 0
    this.at = 0
    this.end = 0
    this.name = name
  }

  /** Starts on bytes [at, end). */
  reset(bytes: Uint8Array, at: number, end: number): void {
    this.bytes = bytes
    this.start = at
    this.at = at
    this.end = end
  }

  /** Whether all was read. */
  get done(): boolean {
    return this.at === this.end
  }

  /** Position of the next byte. */
  get position(): number {
    return this.at
  }

  /** @throws BATCH_FORMAT where it is cut, too long or not in its shortest form */
  next(): number {
    const bytes = this.bytes
    let at = this.at
    if (at >= this.end) throw this.bad('ends early')
    let b = bytes[at++]!
    if (b < 128) {
      this.at = at
      return b
    }
    let value = b & 127
    let scale = 128
    for (let i = 1; i < VARINT_BYTES_MAX; i++) {
      if (at >= this.end) throw this.bad('ends early')
      b = bytes[at++]!
      value += (b & 127) * scale
      if (b < 128) {
        if (b === 0 || value > Number.MAX_SAFE_INTEGER)
          throw this.bad('holds a number that is not in its shortest form')
        this.at = at
        return value
      }
      scale *= 128
    }
    throw this.bad('holds a number of more than 8 bytes')
  }

  private bad(what: string): ProxyError {
    return new ProxyError(
      'BATCH_FORMAT',
      `the column ${this.name} ${what}`,
      { stream: `column ${this.name}`, offset: this.at - this.start },
      'the link is closed; both proxies must run versions that fit',
    )
  }
}
