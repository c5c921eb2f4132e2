/**
 * Conversations made of a list of numbers, for properties and the fuzzer: every option, kind of reply, command and chunk,
 * answers in any order and interleaved. Nothing here shares code with src/.
 */
import { ByteWriter } from '../../scripts/harness/byte-writer.ts'
import type { Step } from './harness.ts'

type Rand = (below: number) => number

/** What one party says at once, and what it must have heard before: an index of the messages, -1 for nothing. */
export interface Message extends Step {
  readonly after: number
}

interface UnderWay {
  readonly type: number
  readonly cookie: bigint
  readonly offset: number
  readonly length: number
  /** Message of its head. */
  readonly message: number
  /** Chunks that were given. */
  chunks: number
  /** Of a READ: up to where it is answered. */
  to: number
}

const text = (value: string) => new Uint8Array(Buffer.from(value, 'latin1'))
const greeting = (flags: number) => new ByteWriter().raw(text('NBDMAGICIHAVEOPT')).u16(flags).bytes()
const option = (number: number, data: Uint8Array = new Uint8Array(0)) =>
  new ByteWriter().raw(text('IHAVEOPT')).u32(number).u32(data.length).raw(data).bytes()
const answer = (number: number, type: number, data: Uint8Array = new Uint8Array(0)) =>
  new ByteWriter().u32(0x0003e889).u32(0x045565a9).u32(number).u32(type).u32(data.length).raw(data).bytes()
const named = (name: string) => new ByteWriter().u32(name.length).raw(text(name))

/** Bytes of payloads: some look like heads. */
function payload(rand: Rand, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length).fill(rand(256))
  const magic = [0x25609513, 0x67446698, 0x668e33ef, 0x6e8a278c, 0x21e41c71][rand(5)]!
  if (length >= 4) new DataView(bytes.buffer).setUint32(rand(length - 3), magic)
  return bytes
}

/** What a conversation is about. */
export interface Subject {
  /** Offsets are below so many times 1, 512 or 4096. */
  readonly offsets: number
  /** Commands, each as likely as any other. */
  readonly types: readonly number[]
  /** Bytes of a request. */
  readonly length: (rand: Rand) => number
  /** What is written or read. */
  readonly data: (rand: Rand, length: number, offset: number) => Uint8Array
}
const ANYTHING: Subject = {
  offsets: 1 << 20,
  types: [0, 0, 1, 1, 3, 4, 5, 6, 7, 8],
  length: rand => (rand(3) ? rand(200) : rand(9000)),
  data: payload,
}

/** A conversation of messages in an order in which they can be said; any other order that keeps `after` is possible too. */
export function messagesOf(rand: Rand, requestsMax = 12, subject = ANYTHING): Message[] {
  const messages: Message[] = []
  const say = (from: Step['from'], bytes: Uint8Array, after = messages.length - 1): number =>
    messages.push({ from, bytes, after }) - 1
  const fixed = rand(6) > 0
  const serverFlags = (fixed ? 1 : 0) | (rand(2) ? 2 : 0)
  const clientFlags = serverFlags & rand(4)
  say('server', greeting(serverFlags))
  say('client', new ByteWriter().u32(clientFlags).bytes())
  const name = ['', 'disk', 'a/b', '\xc3\xa9'.repeat(40)][rand(4)]!
  let structured = false
  let extended = false
  for (let options = fixed ? rand(6) : 0; options > 0; options--) {
    const number = [3, 5, 6, 8, 9, 10, 11, 11, 4, 99][rand(10)]!
    const data = number === 6 ? named(name).u16(1).u16(3).bytes() : payload(rand, number < 9 ? 0 : 8 + rand(20))
    const asked = option(number, data)
    if (fixed && rand(6) === 0 && data.length > 0) {
      // refused by its head alone, as nbdkit does
      const first = 16 + rand(data.length)
      say('client', asked.subarray(0, first))
      say('server', answer(number, 0x80000005))
      say('client', asked.subarray(first))
      continue
    }
    say('client', asked)
    const between = { 3: 2, 6: 3, 9: 4, 10: 4 }[number]
    for (let more = between ? rand(3) : 0; more > 0; more--) {
      const info = new ByteWriter()
        .u16(9)
        .raw(payload(rand, rand(5)))
        .bytes()
      const context = new ByteWriter().u32(rand(9)).raw(text('base:allocation')).bytes()
      say('server', answer(number, between!, between === 3 ? info : between === 4 ? context : named(name).bytes()))
    }
    const refused = rand(3) === 0 || number === 5
    say('server', refused ? answer(number, 0x80000000 + rand(10), payload(rand, rand(30))) : answer(number, 1))
    if (!refused && number === 8) structured = true
    if (!refused && number === 11) extended = true
  }
  if (!fixed || (!extended && rand(4) === 0)) {
    say('client', option(1, text(name)))
    const zeroes = (serverFlags & clientFlags & 2) === 0 ? 124 : 0
    say(
      'server',
      new ByteWriter()
        .u64(1 << 30)
        .u16(0x0ded)
        .raw(new Uint8Array(zeroes))
        .bytes(),
    )
  } else {
    say(
      'client',
      option(
        7,
        named(name)
          .u16(rand(2))
          .raw(new Uint8Array(2 * rand(2)))
          .bytes(),
      ),
    )
    if (rand(2))
      say(
        'server',
        answer(
          7,
          3,
          new ByteWriter()
            .u16(3)
            .u32(1)
            .u32(4096)
            .u32(1 << 25)
            .bytes(),
        ),
      )
    say(
      'server',
      answer(
        7,
        3,
        new ByteWriter()
          .u16(0)
          .u64(1 << 30)
          .u16(0x0ded)
          .bytes(),
      ),
    )
    say('server', answer(7, 1))
  }
  transmission(rand, messages, subject, { structured, extended, requestsMax })
  return messages
}

function transmission(
  rand: Rand,
  messages: Message[],
  subject: Subject,
  { structured, extended, requestsMax }: { structured: boolean; extended: boolean; requestsMax: number },
): void {
  const say = (from: Step['from'], bytes: Uint8Array, after: number): number =>
    messages.push({ from, bytes, after }) - 1
  let heard = messages.length - 1 // what the client must have heard to go on: at first, the end of the handshake
  const underWay: UnderWay[] = []
  const cookies = Array.from({ length: 8 }, (_, i) =>
    rand(2) ? BigInt(i) : 0x5500c0ffee000000n + BigInt(rand(1 << 20) * 8 + i),
  )
  /** When each may be used again. */
  const free = new Map(cookies.map(cookie => [cookie, heard]))
  for (let left = requestsMax; left > 0 || underWay.length > 0; ) {
    if (left > 0 && (underWay.length === 0 || rand(2)) && free.size > 0) {
      left--
      const cookie = [...free.keys()][rand(free.size)]!
      heard = Math.max(heard, free.get(cookie)!)
      free.delete(cookie)
      const type = extended && rand(9) === 0 ? 77 : subject.types[rand(subject.types.length)]!
      const withPayload = extended ? type === 1 || rand(8) === 0 : type === 1
      const length = type === 3 ? 0 : subject.length(rand)
      const flags = rand(32) | (extended && withPayload && (type !== 1 || rand(2)) ? 32 : 0)
      const offset = rand(subject.offsets) * [1, 512, 4096][rand(3)]!
      const bytes = Buffer.alloc(extended ? 32 : 28)
      bytes.writeUInt32BE(extended ? 0x21e41c71 : 0x25609513)
      bytes.writeUInt16BE(flags, 4)
      bytes.writeUInt16BE(type, 6)
      bytes.writeBigUInt64BE(cookie, 8)
      bytes.writeBigUInt64BE(BigInt(offset), 16)
      bytes.writeUInt32BE(length, bytes.length - 4)
      const body = subject.data(rand, withPayload ? length : 0, offset)
      const message = say('client', Buffer.concat([bytes, body]), heard)
      const effect = withPayload && type !== 1 ? 0 : length
      underWay.push({ type, cookie, offset, length: effect, message, chunks: 0, to: 0 })
    } else {
      const at = rand(underWay.length)
      const one = underWay[at]!
      const { bytes, done } = answerOf(rand, one, subject, structured, extended)
      const message = say('server', bytes, one.message)
      if (!done) continue
      underWay.splice(at, 1)
      free.set(one.cookie, message)
    }
  }
  if (rand(3)) {
    const disc = Buffer.alloc(extended ? 32 : 28)
    disc.writeUInt32BE(extended ? 0x21e41c71 : 0x25609513)
    disc.writeUInt16BE(2, 6)
    say('client', disc, heard)
  }
}

/** The next message that answers a request. */
function answerOf(
  rand: Rand,
  one: UnderWay,
  subject: Subject,
  structured: boolean,
  extended: boolean,
): { bytes: Uint8Array; done: boolean } {
  const failed = rand(6) === 0
  const simple = !extended && (!structured || (one.type !== 0 && rand(2) > 0 && one.chunks === 0))
  if (simple) {
    const head = Buffer.alloc(16)
    head.writeUInt32BE(0x67446698)
    head.writeUInt32BE(failed ? 5 : 0, 4)
    head.writeBigUInt64BE(one.cookie, 8)
    const data = one.type === 0 && !failed ? subject.data(rand, one.length, one.offset) : new Uint8Array(0)
    return { bytes: Buffer.concat([head, data]), done: true }
  }
  let type = 0
  let body: Uint8Array = new Uint8Array(0)
  one.chunks++
  let done = one.chunks > 3 || rand(3) === 0
  if (failed) {
    type = 0x8000 + [1, 2, 9][rand(3)]!
    const said = payload(rand, rand(20))
    body = new ByteWriter()
      .u32(1 + rand(100))
      .u16(said.length)
      .raw(said)
      .raw(new Uint8Array(type === 0x8002 ? 8 : 0))
      .bytes()
  } else if (one.type === 0 && one.to < one.length) {
    type = 1 + rand(2)
    const length = rand(2) ? one.length - one.to : 1 + rand(one.length - one.to)
    const place = new ByteWriter().u64(one.offset + one.to)
    body = type === 1 ? place.raw(subject.data(rand, length, one.offset + one.to)).bytes() : place.u32(length).bytes()
    one.to += length
  } else if (one.type === 7 && !done) {
    const extents = 1 + rand(4)
    type = extended ? 6 : 5
    body = extended
      ? new ByteWriter()
          .u32(1)
          .u32(extents)
          .raw(new Uint8Array(16 * extents))
          .bytes()
      : new ByteWriter()
          .u32(1)
          .raw(new Uint8Array(8 * extents))
          .bytes()
  } else if (rand(4) === 0) {
    type = 100 + rand(9)
    body = payload(rand, rand(40))
  } else done = true
  const head = Buffer.alloc(extended ? 32 : 20)
  head.writeUInt32BE(extended ? 0x6e8a278c : 0x668e33ef)
  head.writeUInt16BE((done ? 1 : 0) | (rand(9) ? 0 : 2), 4)
  head.writeUInt16BE(type, 6)
  head.writeBigUInt64BE(one.cookie, 8)
  if (extended) head.writeBigUInt64BE(BigInt(one.offset), 16)
  head.writeUInt32BE(body.length, head.length - 4)
  return { bytes: Buffer.concat([head, body]), done }
}

/**
 * The messages in another order: each direction's own stays, and nobody speaks before having heard what it waits for. So
 * does one of the two proxies see them, whatever the delay between it and a party.
 */
export function reordered(rand: Rand, messages: readonly Message[]): Message[] {
  const lines = { client: [] as number[], server: [] as number[] }
  for (const [i, { from }] of messages.entries()) lines[from].push(i)
  const said = new Set<number>()
  const out: Message[] = []
  while (out.length < messages.length) {
    const first = rand(2) ? ('client' as const) : ('server' as const)
    for (const from of [first, first === 'client' ? ('server' as const) : ('client' as const)]) {
      const next = lines[from][0]
      if (next === undefined || (messages[next]!.after >= 0 && !said.has(messages[next]!.after))) continue
      lines[from].shift()
      said.add(next)
      out.push(messages[next]!)
      break
    }
  }
  return out
}

/** All that one direction says. */
export function sideOf(steps: readonly Step[], from: Step['from']): Uint8Array {
  return Buffer.concat(steps.filter(step => step.from === from).map(step => step.bytes))
}
