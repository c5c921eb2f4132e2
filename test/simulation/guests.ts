/** Guests that migrate: what their QEMUs write on each connection, and how they behave when something breaks. */
import { multifdHello, StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import type { Random } from '../../scripts/harness/random.ts'
import { COMMAND, PAGE_SIZE, RETURN_PATH } from '../../src/qemu/wire.ts'

const BLOCK = 'pc.ram'
const BLOCK_PAGES = 256
const RAM_ID = 2
/** By these many first bytes a connection is known. */
export const NAME_BYTES = 48

/** Of main: the device description, with which it ends. */
export const MAIN_END_BYTES = 32

export type Kind = 'main' | 'multifd' | 'preempt' | 'tls' | 'recovery'

/** What a guest's channels carry, in order. */
export interface Script {
  readonly bytes: Uint8Array
  /** Of main: from here on the guest may run at the destination; Infinity where it never does. */
  readonly postcopyAt: number
  /** Of main: it has announced postcopy with bytes up to here. */
  readonly advisedAt: number
}

function body(random: Random): Uint8Array {
  const bytes = new Uint8Array(PAGE_SIZE)
  const word = random.int(1, 2 ** 31)
  for (let i = 0; i < PAGE_SIZE; i++) bytes[i] = Math.imul(word, i + 1) >>> 24
  return bytes
}

function pages(stream: StreamEmitter, random: Random, count: number): void {
  for (let i = 0; i < count; i++) {
    const offset = random.int(0, BLOCK_PAGES - 1) * PAGE_SIZE
    const name = i === 0 || random.chance(0.1) ? BLOCK : undefined
    if (random.chance(0.7)) stream.page(offset, body(random), name)
    else stream.zero(offset, name)
  }
}

function part(stream: StreamEmitter, random: Random, count: number): void {
  stream.sectionPart(RAM_ID)
  pages(stream, random, count)
  stream.eos().footer(RAM_ID)
}

export function mainScript(
  random: Random,
  name: string,
  options: { readonly returnPath: boolean; readonly postcopy: boolean; readonly pages: number },
): Script {
  const stream = new StreamEmitter().header(name)
  if (options.returnPath) stream.command(COMMAND.OPEN_RETURN_PATH).ping(1)
  if (options.postcopy) stream.postcopyAdvise()
  const advisedAt = options.postcopy ? stream.position : Number.POSITIVE_INFINITY
  stream
    .ramStart(RAM_ID, [{ idstr: BLOCK, lengthBytes: BLOCK_PAGES * PAGE_SIZE }])
    .eos()
    .footer(RAM_ID)
  for (let left = options.pages; left > 0; left -= 10) part(stream, random, Math.min(10, left))
  let postcopyAt = Number.POSITIVE_INFINITY
  if (options.postcopy) {
    const inner = new StreamEmitter().command(COMMAND.POSTCOPY_LISTEN)
    inner.sectionFull(5, 'timer', 0, 2).raw(new Uint8Array(24)).footer(5).command(COMMAND.POSTCOPY_RUN)
    stream.ping(3).packaged(inner.bytes())
    postcopyAt = stream.position
    for (let left = options.pages; left > 0; left -= 10) part(stream, random, Math.min(10, left))
  }
  stream.sectionEnd(RAM_ID).eos().footer(RAM_ID)
  if (options.postcopy) return { bytes: stream.eof().bytes(), postcopyAt, advisedAt }
  stream.sectionFull(5, 'timer', 0, 2).raw(new Uint8Array(24)).footer(5)
  return { bytes: stream.eof('{"devices": [{"name": "timer"}]}').bytes(), postcopyAt, advisedAt }
}

export function recoveryScript(random: Random, name: string, count: number): Script {
  const stream = new StreamEmitter()
  for (const block of [BLOCK, name]) {
    stream.command(COMMAND.RECV_BITMAP, Uint8Array.of(block.length, ...Buffer.from(block, 'latin1')))
  }
  stream.command(COMMAND.POSTCOPY_RESUME)
  for (let left = count; left > 0; left -= 10) part(stream, random, Math.min(10, left))
  stream.sectionEnd(RAM_ID).eos().footer(RAM_ID)
  return { bytes: stream.eof().bytes(), postcopyAt: 0, advisedAt: 0 }
}

export function multifdScript(random: Random, guest: number, channel: number, count: number): Uint8Array {
  const hello = multifdHello(channel)
  new DataView(hello.buffer).setUint32(12, guest)
  const stream = new StreamEmitter().raw(hello)
  // packets that nobody can read are relayed raw: that is another test's
  stream.raw(Buffer.alloc(count * 100, random.int(1, 255)))
  return stream.bytes()
}

export function preemptScript(random: Random, count: number): Uint8Array {
  const stream = new StreamEmitter()
  if (count > 0) stream.page(0, body(random), BLOCK)
  pages(stream, random, count - 1)
  return stream.bytes()
}

export function tlsScript(random: Random, count: number): Uint8Array {
  const bytes = new Uint8Array(64 + count)
  for (let i = 0; i < bytes.length; i++) bytes[i] = random.int(0, 255)
  bytes.set([0x16, 3, 1, 0x00, 0x3b, 0x01, 0x00, 0x00, 0x37]) // a record of the first 64 bytes
  return bytes
}

export function shut(status: number): Uint8Array {
  return Uint8Array.of(0, RETURN_PATH.SHUT, 0, 4, 0, 0, 0, status)
}

export function pong(value: number): Uint8Array {
  return Uint8Array.of(0, RETURN_PATH.PONG, 0, 4, 0, 0, 0, value)
}

export function requestPage(page: number): Uint8Array {
  const bytes = new Uint8Array(16)
  const view = new DataView(bytes.buffer)
  view.setUint16(0, RETURN_PATH.REQ_PAGES)
  view.setUint16(2, 12)
  view.setBigUint64(4, BigInt(page * PAGE_SIZE))
  view.setUint32(12, PAGE_SIZE)
  return bytes
}

/** The received bitmap of a recovery: its size is what makes it bulk. */
export function bitmap(bytes: number): Uint8Array {
  const name = Buffer.from(BLOCK, 'latin1')
  const out = Buffer.alloc(4 + 1 + name.length + 8 + bytes + 8, 0x5a)
  out.writeUInt16BE(RETURN_PATH.RECV_BITMAP, 0)
  out.writeUInt16BE(1 + name.length, 2)
  out[4] = name.length
  name.copy(out, 5)
  out.writeBigUInt64BE(BigInt(bytes), 5 + name.length)
  out.writeBigUInt64BE(0x0123456789abcdefn, out.length - 8)
  return new Uint8Array(out)
}
