import { copyBytes } from '../bytes/copy.ts'
import { UNIT_HEAD_LENGTH_MAX } from './other-sections.ts'

/** What a reader says of a field whose `need` bytes are there. */
export const STEP = {
  ON: 0, // it wants more: of this field, or another one
  DONE: 1, // all of its fields are read
  BAD: 2, // see `badPosition` and `badReason`
} as const

/** The small field of a main stream that is under way: its bytes so far, wherever chunks are cut. */
export class Field {
  /** Its first `have` bytes; they stand until the next field's come. */
  readonly head = new Uint8Array(UNIT_HEAD_LENGTH_MAX)
  have = 0
  /** Bytes that it takes to say more. */
  need = 1
  /** Its position in the stream. */
  start = 0
  /** Bytes to pass before the next field. */
  skip = 0
  /** Where the field starts that was not understood, after STEP.BAD. */
  badPosition = 0
  badReason = ''

  /** Takes bytes from `chunk`, up to `need`. @returns the index behind the last byte taken */
  read(chunk: Uint8Array, at: number, end: number, base: number): number {
    if (this.have === 0) this.start = base + at
    const take = Math.min(this.need - this.have, end - at)
    copyBytes(chunk, at, this.head, this.have, take)
    this.have += take
    return at + take
  }

  /** The field is done; the next one starts behind it. */
  next(need: number): void {
    this.need = need
    this.have = 0
  }

  /** Asks for the first `need` bytes of the field. @returns whether they are there */
  wants(need: number): boolean {
    this.need = need
    return this.have >= need
  }

  bad(position: number, reason: string): typeof STEP.BAD {
    this.badPosition = position
    this.badReason = reason
    return STEP.BAD
  }
}
