/**
 * A small NBD: what a client and a server of the simulation say, and how each reads the other. Nothing here shares code
 * with src/nbd/.
 */
import { ByteWriter } from '../../scripts/harness/byte-writer.ts'

export const READ = 0
export const WRITE = 1
export const DISC = 2
export const FLUSH = 3

export const UNIT_BYTES = 512
export const UNITS = 96
export const EIO = 5

const GO = 7
const STRUCTURED = 8
const text = (value: string): Uint8Array => new Uint8Array(Buffer.from(value, 'latin1'))

export interface Request {
  readonly type: number
  readonly cookie: number
  readonly first: number
  readonly units: number
  /** What is written to each unit: its serial number. */
  readonly serial: number
}

export interface Reply {
  readonly cookie: number
  readonly error: number
  /** Serial number of each unit that was read. */
  readonly read: readonly number[]
}

/** Bytes of a unit; 0: nobody has written to it. */
function unit(serial: number): Uint8Array {
  const bytes = new Uint8Array(UNIT_BYTES)
  if (serial === 0) return bytes
  new DataView(bytes.buffer).setUint32(0, serial)
  for (let i = 4; i < UNIT_BYTES; i++) bytes[i] = Math.imul(serial, i) >>> 8
  return bytes
}

export const GREETING = new ByteWriter().raw(text('NBDMAGICIHAVEOPT')).u16(3).bytes()

/** What a client begins with. */
export const CLIENT_FLAGS = new ByteWriter().u32(3).bytes()
export const ASK_STRUCTURED = new ByteWriter().raw(text('IHAVEOPT')).u32(STRUCTURED).u32(0).bytes()

export function askFor(name: string): Uint8Array {
  return new ByteWriter()
    .raw(text('IHAVEOPT'))
    .u32(GO)
    .u32(name.length + 6)
    .u32(name.length)
    .raw(text(name))
    .u16(0)
    .bytes()
}

export function request({ type, cookie, first, units, serial }: Request): Uint8Array {
  const out = new ByteWriter().u32(0x25609513).u16(0).u16(type).u64(cookie)
  out.u64(first * UNIT_BYTES).u32(units * UNIT_BYTES)
  if (type === WRITE) for (let i = 0; i < units; i++) out.raw(unit(serial))
  return out.bytes()
}

export function reply({ cookie, error, read }: Reply, { type, first }: Request, structured: boolean): Uint8Array {
  const out = new ByteWriter()
  const hasData = type === READ && error === 0
  if (!structured || type !== READ) {
    out.u32(0x67446698).u32(error).u64(cookie)
    if (hasData) for (const serial of read) out.raw(unit(serial))
  } else if (hasData) {
    out.u32(0x668e33ef).u16(1).u16(1).u64(cookie)
    out.u32(8 + read.length * UNIT_BYTES).u64(first * UNIT_BYTES)
    for (const serial of read) out.raw(unit(serial))
  } else out.u32(0x668e33ef).u16(1).u16(0x8001).u64(cookie).u32(6).u32(error).u16(0)
  return out.bytes()
}

/** Bytes of one direction that are not understood yet. */
class Reader {
  private bytes = Buffer.alloc(0)

  push(more: Uint8Array): void {
    this.bytes = Buffer.concat([this.bytes, more])
  }

  /** The first so many bytes, which stay; undefined: they have not come. */
  peek(count: number): Buffer | undefined {
    return this.bytes.length < count ? undefined : this.bytes.subarray(0, count)
  }

  take(count: number): Buffer {
    const first = this.bytes.subarray(0, count)
    this.bytes = this.bytes.subarray(count)
    return first
  }
}

/** Serial numbers of these units. @throws where one is not what its serial number says */
function serials(bytes: Buffer): number[] {
  const found: number[] = []
  for (let at = 0; at < bytes.length; at += UNIT_BYTES) {
    const serial = bytes.readUInt32BE(at)
    if (Buffer.compare(bytes.subarray(at, at + UNIT_BYTES), unit(serial)) !== 0) throw new Error('a unit is torn')
    found.push(serial)
  }
  return found
}

/** What a server makes of what its client says. */
export class ServerSide {
  /** What the client asks for, once it has said so. */
  name = ''
  structured = false
  private readonly reader = new Reader()
  private begun = false

  /** @returns what it answers in the handshake, and requests. @throws where nothing of it is NBD */
  take(bytes: Uint8Array): { readonly said: readonly Uint8Array[]; readonly requests: readonly Request[] } {
    const { reader } = this
    const said: Uint8Array[] = []
    const requests: Request[] = []
    reader.push(bytes)
    if (!this.begun && reader.peek(4)) {
      if (reader.take(4).readUInt32BE() !== 3) throw new Error('not the flags of a client')
      this.begun = true
    }
    while (this.begun && this.name === '' && this.option(said));
    while (this.name !== '' && this.request(requests));
    return { said, requests }
  }

  private option(said: Uint8Array[]): boolean {
    const head = this.reader.peek(16)
    if (!head) return false
    if (head.toString('latin1', 0, 8) !== 'IHAVEOPT') throw new Error('not an option')
    const length = head.readUInt32BE(12)
    if (!this.reader.peek(16 + length)) return false
    const option = this.reader.take(16 + length)
    const number = option.readUInt32BE(8)
    const answer = (type: number, data: Uint8Array): void => {
      const head = new ByteWriter().u32(0x0003e889).u32(0x045565a9).u32(number).u32(type).u32(data.length)
      said.push(head.raw(data).bytes())
    }
    if (number === STRUCTURED) this.structured = true
    else if (number === GO) {
      this.name = option.toString('latin1', 20, 20 + option.readUInt32BE(16))
      // HAS_FLAGS, SEND_FLUSH
      answer(
        3,
        new ByteWriter()
          .u16(0)
          .u64(UNITS * UNIT_BYTES)
          .u16(5)
          .bytes(),
      )
    } else throw new Error(`option ${number}`)
    answer(1, new Uint8Array(0))
    return true
  }

  private request(requests: Request[]): boolean {
    const head = this.reader.peek(28)
    if (!head) return false
    if (head.readUInt32BE() !== 0x25609513) throw new Error('not a request')
    const type = head.readUInt16BE(6)
    const bytes = head.readUInt32BE(24)
    const data = type === WRITE ? bytes : 0
    if (!this.reader.peek(28 + data)) return false
    const whole = this.reader.take(28 + data)
    const [serial = 0] = serials(whole.subarray(28))
    const cookie = Number(whole.readBigUInt64BE(8))
    const first = Number(whole.readBigUInt64BE(16)) / UNIT_BYTES
    requests.push({ type, cookie, first, units: bytes / UNIT_BYTES, serial })
    return true
  }
}

/** What a client makes of what its server says. */
export class ClientSide {
  /** The server has greeted, and its export is open. */
  greeted = false
  open = false
  /** Answers to options. */
  options = 0
  private readonly reader = new Reader()
  private readonly asked: (cookie: number) => Request | undefined

  /** @param asked requests that are not answered */
  constructor(asked: (cookie: number) => Request | undefined) {
    this.asked = asked
  }

  /** @returns what is answered. @throws where nothing of it is NBD */
  take(bytes: Uint8Array): Reply[] {
    const { reader } = this
    const replies: Reply[] = []
    reader.push(bytes)
    if (!this.greeted && reader.peek(GREETING.length)) {
      if (Buffer.compare(reader.take(GREETING.length), GREETING) !== 0) throw new Error('not a greeting')
      this.greeted = true
    }
    while (this.greeted && !this.open && this.option());
    while (this.open && this.reply(replies));
    return replies
  }

  private option(): boolean {
    const head = this.reader.peek(20)
    if (!head || !this.reader.peek(20 + head.readUInt32BE(16))) return false
    const answer = this.reader.take(20 + head.readUInt32BE(16))
    if (answer.readUInt32BE() !== 0x0003e889) throw new Error('not the answer to an option')
    if (answer.readUInt32BE(12) === 1) this.options++
    this.open = answer.readUInt32BE(8) === GO && answer.readUInt32BE(12) === 1
    return true
  }

  private reply(replies: Reply[]): boolean {
    const head = this.reader.peek(16)
    if (!head) return false
    const isChunk = head.readUInt32BE() === 0x668e33ef
    if (!isChunk && head.readUInt32BE() !== 0x67446698) throw new Error('not a reply')
    const cookie = Number(head.readBigUInt64BE(8))
    const asked = this.asked(cookie)
    if (!asked) throw new Error(`an answer to ${cookie}, which nobody waits for`)
    if (!isChunk) {
      const error = head.readUInt32BE(4)
      const data = asked.type === READ && error === 0 ? asked.units * UNIT_BYTES : 0
      if (!this.reader.peek(16 + data)) return false
      replies.push({ cookie, error, read: serials(this.reader.take(16 + data).subarray(16)) })
      return true
    }
    const chunk = this.reader.peek(20)
    if (!chunk || !this.reader.peek(20 + chunk.readUInt32BE(16))) return false
    const whole = this.reader.take(20 + chunk.readUInt32BE(16))
    const hasData = whole.readUInt16BE(6) === 1
    const error = hasData ? 0 : whole.readUInt32BE(20)
    replies.push({ cookie, error, read: hasData ? serials(whole.subarray(28)) : [] })
    return true
  }
}
