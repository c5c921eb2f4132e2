/**
 * Frames (protocol.md §3): what crosses a connection after the hellos. The encoder writes heads only, into memory that
 * is never written twice, because a socket may still hold them after their frame was acknowledged over another
 * connection; payloads stay where they are.
 */

import { crc32 } from 'node:zlib'
import { readU16, readU32, TWO_32, writeU16, writeU32 } from '../bytes/big-endian.ts'
import { PAGE_SIZE } from '../bytes/page-size.ts'
import { ProxyError } from '../errors.ts'
import { FRAME_PAYLOAD_BYTES_MAX, OPEN_BYTES_MAX, TEXT_BYTES_MAX, WANTED_PAGES_MAX } from '../limits.ts'
import { FRAME, FRAME_CHECKED_BYTES, FRAME_HEAD_BYTES } from './wire.ts'

/** One frame as it arrived. FrameDecoder hands out the same object each time: keep what is in it, not the object. */
export interface Frame {
  type: number
  flags: number
  flow: number
  /** 0 in unsequenced frames. */
  sequence: number
  /** A view of the pushed chunk where the payload lies in one piece, else of memory of its own. */
  payload: Uint8Array
}

/** Largest and smallest payload of each type; a type that is not known may have any payload. */
const PAYLOAD_MAX = new Uint16Array(256).fill(FRAME_PAYLOAD_BYTES_MAX)
const PAYLOAD_MIN = new Uint16Array(256)
for (const [type, min, max] of [
  [FRAME.OPEN, 2, OPEN_BYTES_MAX],
  [FRAME.DATA, 1, FRAME_PAYLOAD_BYTES_MAX],
  [FRAME.BATCH, 1, FRAME_PAYLOAD_BYTES_MAX],
  [FRAME.FIN, 0, 0],
  [FRAME.RESET, 2, 2 + TEXT_BYTES_MAX],
  [FRAME.CREDIT, 8, 8],
  [FRAME.END, 0, 0],
  [FRAME.WANT, 8, 8 * WANTED_PAGES_MAX],
  [FRAME.PAGE, 8, 8 + PAGE_SIZE],
  [FRAME.ACK, 16, 16],
  [FRAME.PING, 8, 8],
  [FRAME.PONG, 8, 8],
  [FRAME.BYE, 2, 2 + TEXT_BYTES_MAX],
  [FRAME.DRAIN, 0, 0],
] as const) {
  PAYLOAD_MIN[type] = min
  PAYLOAD_MAX[type] = max
}

const CRC_TABLE = new Int32Array(256)
for (let i = 0; i < 256; i++) {
  let crc = i
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1
  CRC_TABLE[i] = crc
}

/** CRC-32 of a short stretch, going on from `crc`: a call of zlib costs more than 64 rounds of this loop. */
function crcShort(crc: number, bytes: Uint8Array, at: number, length: number): number {
  let state = ~crc
  const end = at + length
  for (let i = at; i < end; i++) state = CRC_TABLE[(state ^ bytes[i]!) & 0xff]! ^ (state >>> 8)
  return ~state >>> 0
}

function crcOf(crc: number, bytes: Uint8Array): number {
  return bytes.length <= 64 ? crcShort(crc, bytes, 0, bytes.length) : crc32(bytes, crc)
}

/**
 * Writes the 16 bytes of a frame's head.
 * @param to memory for the head at `at`
 * @param payload the payload, in one piece or several; its bytes are read for the check, except those of BATCH
 * @param length bytes of the payload
 */
export function writeHead(
  to: Uint8Array,
  at: number,
  type: number,
  flags: number,
  flow: number,
  sequence: number,
  length: number,
  payload: Uint8Array | readonly Uint8Array[] | null,
): void {
  to[at] = type
  to[at + 1] = flags
  writeU16(to, at + 2, flow)
  writeU16(to, at + 4, length)
  writeU16(to, at + 6, Math.floor(sequence / TWO_32))
  writeU32(to, at + 8, sequence % TWO_32)
  let crc = crcShort(0, to, at, FRAME_CHECKED_BYTES)
  if (type !== FRAME.BATCH && payload !== null) {
    if (payload instanceof Uint8Array) crc = crcOf(crc, payload)
    else for (const part of payload) crc = crcOf(crc, part)
  }
  writeU32(to, at + 12, crc)
}

/** A whole frame in memory of its own: for files, tests, and whatever is not the hot path. */
export function encodeFrame(
  type: number,
  flags: number,
  flow: number,
  sequence: number,
  payload: Uint8Array,
): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEAD_BYTES + payload.length)
  writeHead(bytes, 0, type, flags, flow, sequence, payload.length, payload)
  bytes.set(payload, FRAME_HEAD_BYTES)
  return bytes
}

const EMPTY = new Uint8Array(0)

/**
 * Cuts a connection's bytes into frames; resumes at any byte. Its errors end the connection, not the session: what was
 * lost with it is sent again on the next. After an error it takes nothing more.
 */
export class FrameDecoder {
  private readonly onFrame: (frame: Frame) => void
  private readonly frame: Frame = { type: 0, flags: 0, flow: 0, sequence: 0, payload: EMPTY }
  private readonly head = new Uint8Array(FRAME_HEAD_BYTES)
  /** Bytes of the head that are there. */
  private headHave = 0
  /** Payload that came in pieces, of this frame's length; null while none is begun. */
  private body: Uint8Array | null = null
  private bodyHave = 0
  private broken: ProxyError | null = null
  /** Bytes of all whole frames so far: where the frame begins that an error is about. */
  private streamOffset = 0

  /** @param onFrame called for each whole frame, in order, from inside push */
  constructor(onFrame: (frame: Frame) => void) {
    this.onFrame = onFrame
  }

  /** True between frames: a connection that ends here lost no part of a frame. */
  get atBoundary(): boolean {
    return this.headHave === 0
  }

  /**
   * Takes the next bytes of the connection. The chunk must not be written again: payloads are views of it.
   * @throws ProxyError LIMIT_EXCEEDED for a length above its type's bound (before memory is taken for it),
   *   PROTOCOL_SYNTAX for one below it or a wrong check
   */
  push(chunk: Uint8Array): void {
    if (this.broken) throw this.broken
    let at = 0
    const end = chunk.length
    while (at < end) {
      if (this.body !== null) {
        const body = this.body
        const take = Math.min(body.length - this.bodyHave, end - at)
        body.set(chunk.subarray(at, at + take), this.bodyHave)
        this.bodyHave += take
        at += take
        if (this.bodyHave < body.length) return
        this.body = null
        this.headHave = 0
        this.deliver(this.head, 0, body)
        continue
      }
      let head = chunk
      let headAt = at
      if (this.headHave > 0 || end - at < FRAME_HEAD_BYTES) {
        while (this.headHave < FRAME_HEAD_BYTES && at < end) this.head[this.headHave++] = chunk[at++]!
        // The length is checked as soon as it is there, not when the whole head is.
        if (this.headHave >= 6) this.checkLength(this.head, 0)
        if (this.headHave < FRAME_HEAD_BYTES) return
        head = this.head
        headAt = 0
      } else {
        at += FRAME_HEAD_BYTES
        this.checkLength(head, headAt)
      }
      const length = readU16(head, headAt + 4)
      if (end - at >= length) {
        const payload = length === 0 ? EMPTY : chunk.subarray(at, at + length)
        at += length
        this.headHave = 0
        this.deliver(head, headAt, payload)
        continue
      }
      if (head !== this.head) for (let i = 0; i < FRAME_HEAD_BYTES; i++) this.head[i] = head[headAt + i]!
      this.headHave = FRAME_HEAD_BYTES
      // Not cleared: it is handed out only when all of it has been written.
      this.body = new Uint8Array(Buffer.allocUnsafeSlow(length).buffer)
      this.bodyHave = 0
    }
  }

  /**
   * Takes the whole frames that lie from `at` up to `end`, for a caller that keeps the rest and puts what follows behind it;
   * not together with `push`. What was taken must not be written again.
   * @returns where the first frame begins that is not whole
   * @throws ProxyError as `push`
   */
  take(chunk: Uint8Array, at: number, end: number): number {
    if (this.broken) throw this.broken
    let from = at
    while (end - from >= FRAME_HEAD_BYTES) {
      this.checkLength(chunk, from)
      const payloadAt = from + FRAME_HEAD_BYTES
      const next = payloadAt + readU16(chunk, from + 4)
      if (next > end) return from
      this.deliver(chunk, from, next === payloadAt ? EMPTY : chunk.subarray(payloadAt, next))
      from = next
    }
    // as soon as it is there, not when the whole head is
    if (end - from >= 6) this.checkLength(chunk, from)
    return from
  }

  private checkLength(head: Uint8Array, at: number): void {
    const type = head[at]!
    const length = readU16(head, at + 4)
    if (length > PAYLOAD_MAX[type]!) {
      this.fail(
        'LIMIT_EXCEEDED',
        `frame of type ${type} with ${length} bytes; at most ${PAYLOAD_MAX[type]} are allowed`,
      )
    }
    if (length < PAYLOAD_MIN[type]!) {
      this.fail(
        'PROTOCOL_SYNTAX',
        `frame of type ${type} with ${length} bytes; at least ${PAYLOAD_MIN[type]} are needed`,
      )
    }
  }

  private deliver(head: Uint8Array, at: number, payload: Uint8Array): void {
    const frame = this.frame
    frame.type = head[at]!
    let crc = crcShort(0, head, at, FRAME_CHECKED_BYTES)
    if (frame.type !== FRAME.BATCH) crc = crcOf(crc, payload)
    if (crc !== readU32(head, at + 12)) this.fail('PROTOCOL_SYNTAX', `frame of type ${frame.type} is damaged`)
    frame.flags = head[at + 1]!
    frame.flow = readU16(head, at + 2)
    frame.sequence = readU16(head, at + 6) * TWO_32 + readU32(head, at + 8)
    frame.payload = payload
    this.streamOffset += FRAME_HEAD_BYTES + payload.length
    this.onFrame(frame)
  }

  private fail(code: 'LIMIT_EXCEEDED' | 'PROTOCOL_SYNTAX', what: string): never {
    const where = { stream: 'connection', offset: this.streamOffset }
    this.broken = new ProxyError(code, what, where, 'the connection is closed; its frames are sent again on the next')
    throw this.broken
  }
}
