/** The bytes of a file by place, for formats whose pages lie here and there, in bounded memory. */
import type { FileHandle } from 'node:fs/promises'
import { PLACED_JUMP_LENGTH, READ_LENGTH } from './limits.ts'

export interface PlacedBytes {
  /** Fills `into` from the byte `at` on. @returns how many there were: fewer only at the end */
  read(into: Buffer, at: number): Promise<number>
}

export class PlacedFile implements PlacedBytes {
  private readonly file: FileHandle

  /** @param file stays the caller's */
  constructor(file: FileHandle) {
    this.file = file
  }

  async read(into: Buffer, at: number): Promise<number> {
    let have = 0
    while (have < into.length) {
      const { bytesRead } = await this.file.read(into, have, into.length - have, at + have)
      if (bytesRead === 0) break
      have += bytesRead
    }
    return have
  }
}

/**
 * Looks at a file through a window that moves on. Who goes on where it was reads much at once, who jumps reads little: a
 * file whose places are all over costs little for each.
 */
export class Window {
  readonly bytes = Buffer.allocUnsafeSlow(READ_LENGTH)
  private readonly source: PlacedBytes
  private from = 0
  private to = 0

  constructor(source: PlacedBytes) {
    this.source = source
  }

  /** Index in `bytes` of the file's byte `at`, where it and the `length` - 1 behind it are seen; -1 where they are not. */
  find(at: number, length: number): number {
    return at >= this.from && at + length <= this.to ? at - this.from : -1
  }

  /** Moves there. @param length at most READ_LENGTH @returns the index in `bytes`; -1 where the file has not so much */
  async move(at: number, length: number): Promise<number> {
    const goesOn = at >= this.from && at <= this.to + PLACED_JUMP_LENGTH
    const take = goesOn ? READ_LENGTH : Math.max(length, PLACED_JUMP_LENGTH)
    this.from = at
    this.to = at // nothing, should the reading fail
    this.to += await this.source.read(this.bytes.subarray(0, take), at)
    return this.find(at, length)
  }
}
