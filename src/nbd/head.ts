import { copyBytes } from '../bytes/copy.ts'
import { NBD_NAME_BYTES_MAX } from '../limits.ts'
import { OPTION_REPLY_HEAD_LENGTH } from './wire.ts'

/** The longest that is kept of one message: the head of an option or of a reply to it, a length or id, and a name. */
export const HEAD_LENGTH_MAX = OPTION_REPLY_HEAD_LENGTH + 4 + NBD_NAME_BYTES_MAX

/** The head of the message that is under way in one direction: its bytes so far, wherever chunks are cut. */
export class Head {
  /** Its first `have` bytes. */
  readonly bytes = new Uint8Array(HEAD_LENGTH_MAX)
  have = 0
  /** Bytes that it takes to say more. */
  need: number
  /** Its position in the direction's stream. */
  start = 0
  /** Bytes to pass behind it. */
  skip = 0

  /** @param need bytes of the first one */
  constructor(need: number) {
    this.need = need
  }

  /** Takes bytes from `chunk`, up to `need`. @returns the index behind the last byte taken */
  read(chunk: Uint8Array, at: number, end: number, base: number): number {
    if (this.have === 0) this.start = base + at
    const take = Math.min(this.need - this.have, end - at)
    copyBytes(chunk, at, this.bytes, this.have, take)
    this.have += take
    return at + take
  }

  /** Passes bytes, `skip` at most. @returns the index behind the last byte passed */
  pass(at: number, end: number): number {
    const take = Math.min(this.skip, end - at)
    this.skip -= take
    return at + take
  }

  /** The message is done but for `skip` bytes behind what was read; the next one starts behind them. */
  next(need: number, skip: number): void {
    this.need = need
    this.have = 0
    this.skip = skip
  }

  /** Asks for the first `need` bytes. @returns whether they are there */
  wants(need: number): boolean {
    this.need = need
    return this.have >= need
  }
}
