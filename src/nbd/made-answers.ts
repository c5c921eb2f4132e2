/** Answers that a proxy gives in the place of a server: in the form in which that would have given them. docs/nbd-wire.md 4. */
import { writeU16, writeU32, writeU64 } from '../bytes/big-endian.ts'
import type { NbdExport, NbdRequest } from './sink.ts'
import { CHUNK, CHUNK_DONE, CHUNK_PREFIX, CHUNK_TYPE, COMMAND, EXTENDED_CHUNK, SIMPLE_REPLY } from './wire.ts'

/** Bytes of the longest. */
const ANSWER_LENGTH_MAX = EXTENDED_CHUNK.LENGTH + CHUNK_PREFIX.ERROR

/** Answers of one call are put together in so many bytes, and more where they have to wait. */
const ANSWERS_BYTES = 4096

export class MadeAnswers {
  /** Bytes that were made, and that the client has not taken. */
  unread = 0
  private bytes = new Uint8Array(0)
  private length = 0

  /** Some have not been taken off. */
  get waits(): boolean {
    return this.length > 0
  }

  add(exported: NbdExport, request: NbdRequest, error: number): void {
    if (this.bytes.length - this.length < ANSWER_LENGTH_MAX) {
      const more = new Uint8Array(Math.max(ANSWERS_BYTES, 2 * this.length))
      more.set(this.bytes.subarray(0, this.length))
      this.bytes = more
    }
    const length = writeAnswer(this.bytes, this.length, exported, request, error)
    this.length += length
    this.unread += length
  }

  /** Takes off those that were made: they are the caller's. */
  take(): Uint8Array | undefined {
    if (this.length === 0) return undefined
    const made = this.bytes.subarray(0, this.length)
    this.bytes = this.bytes.subarray(this.length)
    this.length = 0
    return made
  }
}

/**
 * Writes the whole answer to a request, without data.
 * @param error 0: it was done, and is nothing that is answered with data
 * @returns how many bytes it has
 */
function writeAnswer(
  bytes: Uint8Array,
  at: number,
  { structured, extended }: NbdExport,
  request: NbdRequest,
  error: number,
): number {
  const { type, cookieHigh, cookieLow, offset } = request
  // Where chunks were agreed, what brings data is answered by them alone; all else also simply, as QEMU 7.2's server does.
  const simple = !extended && (!structured || (type !== COMMAND.READ && type !== COMMAND.BLOCK_STATUS))
  writeU32(bytes, at + 8, cookieHigh)
  writeU32(bytes, at + 12, cookieLow)
  if (simple) {
    writeU32(bytes, at, SIMPLE_REPLY.MAGIC)
    writeU32(bytes, at + 4, error)
    return SIMPLE_REPLY.LENGTH
  }
  const payload = error === 0 ? 0 : CHUNK_PREFIX.ERROR
  writeU32(bytes, at, extended ? EXTENDED_CHUNK.MAGIC : CHUNK.MAGIC)
  writeU16(bytes, at + 4, CHUNK_DONE)
  writeU16(bytes, at + 6, error === 0 ? CHUNK_TYPE.NONE : CHUNK_TYPE.ERROR)
  if (extended) {
    writeU64(bytes, at + 16, offset)
    writeU64(bytes, at + 24, payload)
  } else writeU32(bytes, at + 16, payload)
  const head = extended ? EXTENDED_CHUNK.LENGTH : CHUNK.LENGTH
  if (error === 0) return head
  writeU32(bytes, at + head, error)
  writeU16(bytes, at + head + 4, 0) // of its text
  return head + payload
}
