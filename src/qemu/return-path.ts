import { readU16, readU32, readU64 } from '../bytes/big-endian.ts'
import { copyBytes, latin1 } from '../bytes/copy.ts'
import { assert } from '../errors.ts'
import { RECV_BITMAP_END, RETURN_PATH } from './wire.ts'

/**
 * What the parser tells of a return path. Each message is told once it is complete, as [start, end) of the stream; the
 * relay copies all bytes anyway and at once, so no event holds one back.
 */
export interface ReturnPathSink {
  /** SHUT: the destination is done. `status` 0 is success: the guest is its own from here on. */
  shut(status: number, start: number, end: number): void
  /** PONG: the destination has read the PING with this value. */
  pong(value: number, start: number, end: number): void
  /** REQ_PAGES or REQ_PAGES_ID: a vCPU waits for these pages. `idstr` is the last one named, '' before any. */
  requestPages(idstr: string, offset: number, lengthBytes: number, start: number, end: number): void
  /** Any other message, by RETURN_PATH type; RECV_BITMAP includes its bitmap. */
  message(type: number, start: number, end: number): void
  /** As RecordSink's: everything from `position` on is not looked at. */
  degraded(position: number, reason: string): void
}

/** Payload bytes of each message type; undefined where it carries an idstr. */
const LENGTHS: ReadonlyMap<number, number | undefined> = new Map([
  [RETURN_PATH.SHUT, 4],
  [RETURN_PATH.PONG, 4],
  [RETURN_PATH.REQ_PAGES_ID, undefined],
  [RETURN_PATH.REQ_PAGES, 12],
  [RETURN_PATH.RECV_BITMAP, undefined],
  [RETURN_PATH.RESUME_ACK, 4],
  [RETURN_PATH.SWITCHOVER_ACK, 0],
])
const HEADER_LENGTH = 4 // u16 type, u16 length
const REQUEST_LENGTH = 12 // u64 start, u32 length
const HEAD_LENGTH = HEADER_LENGTH + REQUEST_LENGTH + 1 + 255

const STATE = { MESSAGE: 0, BITMAP_SIZE: 1, BITMAP_END: 2, RAW: 3 } as const

/** Reads the return path, cut anywhere; it never holds bytes back. Source: qemu-wire-format 5.1. */
export class ReturnPathParser {
  /** Messages by RETURN_PATH type; element 0 is unused. */
  readonly counts: number[] = new Array(RETURN_PATH.SWITCHOVER_ACK + 1).fill(0)
  private readonly sink: ReturnPathSink
  private state: number = STATE.MESSAGE
  private readonly head = new Uint8Array(HEAD_LENGTH)
  private have = 0
  private need = HEADER_LENGTH
  private start = 0
  private fieldStart = 0
  private skip = 0
  private streamPosition = 0
  private idstr = ''

  constructor(sink: ReturnPathSink) {
    this.sink = sink
  }

  /** Bytes of the stream taken so far. */
  get position(): number {
    return this.streamPosition
  }

  /** True inside a message: a stream that ends here was cut. */
  get midMessage(): boolean {
    return this.state !== STATE.RAW && (this.state !== STATE.MESSAGE || this.have > 0)
  }

  /** True where everything from here on is not looked at. */
  get raw(): boolean {
    return this.state === STATE.RAW
  }

  /** Takes the next `length` bytes from the destination, which lie in `chunk` from `at`, cut anywhere. */
  push(chunk: Uint8Array, at: number, length: number): void {
    const end = at + length
    assert(at >= 0 && length >= 0 && end <= chunk.length, 'bytes outside their chunk')
    const base = this.streamPosition - at
    while (at < end && this.state !== STATE.RAW) {
      if (this.skip > 0) {
        const take = Math.min(this.skip, end - at)
        this.skip -= take
        at += take
        continue
      }
      if (this.have === 0) {
        this.fieldStart = base + at
        if (this.state === STATE.MESSAGE) this.start = base + at
      }
      const take = Math.min(this.need - this.have, end - at)
      copyBytes(chunk, at, this.head, this.have, take)
      this.have += take
      at += take
      if (this.have === this.need) this.step(base + at)
    }
    this.streamPosition = base + end
  }

  private step(position: number): void {
    const { head } = this
    switch (this.state) {
      case STATE.MESSAGE:
        if (this.have === HEADER_LENGTH) this.headerStep(readU16(head, 0), readU16(head, 2), position)
        else this.messageStep(readU16(head, 0), position)
        return
      case STATE.BITMAP_SIZE:
        this.skip = readU64(head, 0)
        this.next(STATE.BITMAP_END, 8)
        if (this.skip < 0) this.degrade(this.fieldStart, 'bitmap size beyond 2^53')
        return
      default:
        if (readU32(head, 0) !== RECV_BITMAP_END.HIGH || readU32(head, 4) !== RECV_BITMAP_END.LOW) {
          this.degrade(this.fieldStart, 'bitmap without its end mark')
          return
        }
        this.done(RETURN_PATH.RECV_BITMAP)
        this.sink.message(RETURN_PATH.RECV_BITMAP, this.start, position)
    }
  }

  private headerStep(type: number, length: number, position: number): void {
    if (!LENGTHS.has(type)) {
      this.degrade(this.start, `unknown return path message ${type}`)
      return
    }
    const expected = LENGTHS.get(type)
    if ((expected !== undefined && length !== expected) || HEADER_LENGTH + length > HEAD_LENGTH) {
      this.degrade(this.start + 2, `return path message ${type} of ${length} bytes`)
      return
    }
    this.need = HEADER_LENGTH + length
    if (length === 0) this.messageStep(type, position)
  }

  private messageStep(type: number, position: number): void {
    const { head, sink, start } = this
    switch (type) {
      case RETURN_PATH.SHUT:
        this.done(type)
        sink.shut(readU32(head, HEADER_LENGTH), start, position)
        return
      case RETURN_PATH.PONG:
        this.done(type)
        sink.pong(readU32(head, HEADER_LENGTH), start, position)
        return
      case RETURN_PATH.REQ_PAGES_ID:
        if (!this.readIdstr(HEADER_LENGTH + REQUEST_LENGTH)) return
        this.requestStep(type, position)
        return
      case RETURN_PATH.REQ_PAGES:
        this.requestStep(type, position)
        return
      case RETURN_PATH.RECV_BITMAP:
        if (this.readIdstr(HEADER_LENGTH)) this.next(STATE.BITMAP_SIZE, 8)
        return
      default:
        this.done(type)
        sink.message(type, start, position)
    }
  }

  private requestStep(type: number, position: number): void {
    const { head } = this
    const offset = readU64(head, HEADER_LENGTH)
    const lengthBytes = readU32(head, HEADER_LENGTH + 8)
    if (offset < 0) {
      this.degrade(this.start + HEADER_LENGTH, 'page request beyond 2^53')
      return
    }
    this.done(type)
    this.sink.requestPages(this.idstr, offset, lengthBytes, this.start, position)
  }

  /** The cstr at `at` must end with the message. */
  private readIdstr(at: number): boolean {
    const length = this.head[at]!
    if (this.have <= at || at + 1 + length !== this.have) {
      this.degrade(this.start, 'idstr that does not end with its return path message')
      return false
    }
    this.idstr = latin1(this.head, at + 1, length)
    return true
  }

  private done(type: number): void {
    this.counts[type]!++
    this.next(STATE.MESSAGE, HEADER_LENGTH)
  }

  private next(state: number, need: number): void {
    this.state = state
    this.need = need
    this.have = 0
  }

  private degrade(position: number, reason: string): void {
    this.skip = 0
    this.next(STATE.RAW, 1)
    this.sink.degraded(position, reason)
  }
}
