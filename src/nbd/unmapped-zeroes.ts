/**
 * A client's requests as a server gets them where zeroes are to become holes: a WRITE of nothing but zeroes is a WRITE_ZEROES,
 * and no WRITE_ZEROES asks for allocated ones. A request stays one request, with its cookie and one answer. Pure.
 */
import { readU16, writeU16 } from '../bytes/big-endian.ts'
import { CarriedBytes } from './carried-bytes.ts'
import { ClientParser } from './client-stream.ts'
import { Dialogue } from './dialogue.ts'
import { ServerParser } from './server-stream.ts'
import type { Direction, NbdExport, NbdRequest, NbdSink } from './sink.ts'
import { COMMAND, COMMAND_FLAG, TRANSMISSION_FLAG } from './wire.ts'

/** Zeroes that are looked for, and made, at once. */
const ZEROES = new Uint8Array(65536)

/**
 * A WRITE of more goes as it comes: no server takes it (nbd-wire 8), and where its last byte is none, all before it would have
 * to be made at once.
 */
const WITHHELD_BYTES_MAX = 32 << 20

export class UnmappedZeroes implements NbdSink {
  private readonly client: ClientParser
  private readonly server: ServerParser
  private readonly span = new CarriedBytes()
  private readonly toServer: (bytes: Uint8Array) => void
  /** The server can zero. */
  private canZero = false
  /** What of the span is passed on, or withheld. */
  private doneTo = 0
  /** Head of a WRITE whose payload is all zeroes so far: how many, and how many are to come. Nothing of it has been passed. */
  private withheld: Uint8Array | undefined
  private zeroes = 0
  private left = 0

  /** @param toServer takes bytes for the server, lent by whoever gave them, or made here and not changed any more */
  constructor(toServer: (bytes: Uint8Array) => void) {
    const dialogue = new Dialogue()
    this.toServer = toServer
    this.client = new ClientParser(this, dialogue)
    this.server = new ServerParser(this, dialogue)
  }

  /** The client's next bytes. */
  fromClient(bytes: Uint8Array): void {
    const { client, span } = this
    if (client.raw) {
      this.toServer(bytes)
      return
    }
    span.take(bytes, client.position)
    this.doneTo = 0
    client.push(bytes, 0, bytes.length)
    this.lookTo(client.position)
    const kept = client.raw ? 0 : client.pending
    this.deal(span.bytes.length - kept)
    span.keep(kept)
  }

  /** The server's next bytes, before the client has them. */
  fromServer(bytes: Uint8Array): void {
    this.server.push(bytes, 0, bytes.length)
  }

  /** The client sends no more: what was withheld goes as it came. */
  clientEnds(): void {
    this.release()
    if (this.span.bytes.length > 0) this.toServer(this.span.bytes)
    this.span.keep(0)
  }

  begins({ transmissionFlags }: NbdExport): void {
    this.canZero = (transmissionFlags & TRANSMISSION_FLAG.SEND_WRITE_ZEROES) !== 0
  }

  request(start: number, headEnd: number, { type, flags, payloadBytes }: NbdRequest): void {
    this.lookTo(start)
    if (!this.canZero) return
    const { bytes, base } = this.span
    const head = bytes.subarray(start - base, headEnd - base)
    if (type === COMMAND.WRITE && payloadBytes > 0 && payloadBytes <= WITHHELD_BYTES_MAX) {
      this.deal(start - base)
      this.withheld = new Uint8Array(head)
      this.zeroes = 0
      this.left = payloadBytes
      this.doneTo = headEnd - base
    } else if (type === COMMAND.WRITE_ZEROES && (flags & COMMAND_FLAG.NO_HOLE) !== 0) {
      this.deal(start - base)
      this.toServer(headWith(head, COMMAND.WRITE_ZEROES, flags & ~COMMAND_FLAG.NO_HOLE))
      this.doneTo = headEnd - base
    }
  }

  raw(direction: Direction, position: number): void {
    if (direction === 'client') this.lookTo(position)
  }

  reply(): void {}
  chunk(): void {}
  writeData(): void {}
  readData(): void {}
  readHole(): void {}

  /** Looks at what came of a payload up to this position. */
  private lookTo(position: number): void {
    const { withheld, span } = this
    if (!withheld) return
    const from = this.doneTo
    const to = Math.min(from + this.left, position - span.base)
    if (!isZero(span.bytes.subarray(from, to))) {
      this.release()
      return
    }
    this.doneTo = to
    this.zeroes += to - from
    this.left -= to - from
    if (this.left > 0) return
    this.withheld = undefined
    // FUA stays; PAYLOAD_LEN would be that of a payload
    this.toServer(headWith(withheld, COMMAND.WRITE_ZEROES, readU16(withheld, 4) & COMMAND_FLAG.FUA))
  }

  /** Passes on what was withheld: it is not all zeroes, or will never be. */
  private release(): void {
    const { withheld } = this
    if (!withheld) return
    this.withheld = undefined
    this.toServer(withheld)
    for (let left = this.zeroes; left > 0; left -= ZEROES.length) {
      this.toServer(left < ZEROES.length ? ZEROES.subarray(0, left) : ZEROES)
    }
  }

  /** Passes on what is left of the span up to this place. */
  private deal(to: number): void {
    if (to <= this.doneTo) return
    this.toServer(this.span.bytes.subarray(this.doneTo, to))
    this.doneTo = to
  }
}

/** The same request of another type, with other flags. */
function headWith(head: Uint8Array, type: number, flags: number): Uint8Array {
  const other = new Uint8Array(head)
  writeU16(other, 4, flags)
  writeU16(other, 6, type)
  return other
}

function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += ZEROES.length) {
    const count = Math.min(ZEROES.length, bytes.length - at)
    if (bytes[at] !== 0 || Buffer.compare(bytes.subarray(at, at + count), ZEROES.subarray(0, count)) !== 0) return false
  }
  return true
}
