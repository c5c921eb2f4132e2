/**
 * A client, the journal beside it and a far server with a volatile cache, seed by seed: the client does whatever the
 * protocol allows, the server takes what it has not answered in any order and piece by piece, and fails, stalls, loses its
 * cache, answers with errors. The checker knows what the client may believe after each answer. Nothing here shares code
 * with src/nbd/ but the engine that is tested.
 */
import { ByteWriter } from '../../scripts/harness/byte-writer.ts'
import { Random } from '../../scripts/harness/random.ts'
import { FairShares } from '../../src/fair-shares.ts'
import { EarlyAnswers } from '../../src/nbd/early-answers.ts'
import { EARLY_RULES, type EarlyRules } from '../../src/nbd/early-rules.ts'

const READ = 0
const WRITE = 1
const DISC = 2
const FLUSH = 3
const TRIM = 4
const CACHE = 5
const ZEROES = 6
const STATUS = 7
/** Of a command that nobody knows. */
const UNKNOWN = 9
const FUA = 1
const NO_HOLE = 2
const REQ_ONE = 8
const FAST_ZERO = 16

const UNIT = 4
const UNITS = 40
const ENOSPC = 28
const ENOTSUP = 95
/** What a trimmed unit may turn into. */
const ANYTHING = -1
/** HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN, SEND_CACHE, SEND_FAST_ZERO. */
const FLAGS = 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048

type Form = 'simple' | 'structured' | 'extended'

class Wrong extends Error {}

/** Fails the run. */
function wrong(what: string): never {
  throw new Wrong(what)
}

const text = (value: string): Uint8Array => new Uint8Array(Buffer.from(value, 'latin1'))

/** Bytes on their way, taken off in any pieces. */
class Pipe {
  private bytes = new Uint8Array(0)
  /** Bytes that were ever put in, and taken off. */
  put = 0
  taken = 0

  get length(): number {
    return this.bytes.length
  }

  push(more: Uint8Array): void {
    const all = new Uint8Array(this.bytes.length + more.length)
    all.set(this.bytes)
    all.set(more, this.bytes.length)
    this.bytes = all
    this.put += more.length
  }

  take(count: number): Uint8Array {
    const first = this.bytes.slice(0, count)
    this.bytes = this.bytes.slice(count)
    this.taken += first.length
    return first
  }

  /** The first bytes, where there are so many. */
  peek(count: number): DataView | undefined {
    return this.bytes.length < count ? undefined : new DataView(this.bytes.buffer, this.bytes.byteOffset, count)
  }
}

/** A request, as its client knows it. */
interface Asked {
  readonly type: number
  readonly flags: number
  readonly cookie: bigint
  readonly first: number
  readonly count: number
  /** What each unit of a write becomes. */
  readonly stamp: number
  readonly sent: number
  /** Byte of the client's direction behind it. */
  readonly endsAt: number
  answered: number
  failed: boolean
  /** What was read, or which units are said to be zero: [unit, value]. */
  readonly said: [number, number][]
  /** The far server has answered with an error what the client takes for done. */
  lost: boolean
}

/** A request, as the server has it. */
interface Served {
  readonly type: number
  readonly flags: number
  readonly cookie: bigint
  readonly offset: number
  readonly length: number
  readonly first: number
  readonly stamp: number
  /** Units that it has still to do, in any order. */
  readonly todo: number[]
  readonly read: Map<number, number>
  readonly error: number
  /** Applied serial numbers that a FLUSH has to make durable: by unit. */
  readonly covers: Map<number, { serial: number; value: number }>
}

interface Held {
  serial: number
  value: number
}

export interface Outcome {
  readonly early: number
  readonly flushes: number
  /** How it ended. */
  readonly end: 'in order' | 'reset' | 'open'
  readonly refused: boolean
  readonly raw: boolean
}

export class EarlyRun {
  private readonly random: Random
  private readonly engine: EarlyAnswers
  private readonly budget = new FairShares(1 << 20)
  private readonly form: Form
  private clock = 0
  private readonly toEngine = new Pipe()
  private readonly toServer = new Pipe()
  private readonly toClient = new Pipe()
  private readonly inbox = new Pipe()
  // --- the client
  private readonly asked: Asked[] = []
  private readonly waits = new Map<bigint, Asked>()
  private readonly freed: bigint[] = []
  private cookies = 0n
  private stamps = 0
  private exportFlags = -1
  private closing = false
  private early = 0
  private flushes = 0
  // --- the server
  private readonly cache: Held[] = []
  private readonly disk: Held[] = []
  /** Of each unit what was applied by requests that are answered. */
  private readonly answeredHeld: Held[] = []
  private readonly serving: Served[] = []
  private serial = 0
  private serverGone = false
  private readonly errorEvery: number
  private faulty = false
  // --- what the engine said
  private broken = false
  private refused = false
  private raw = false
  private orderlyEnd = false

  constructor(seed: number, rules: Partial<EarlyRules> = {}) {
    this.random = new Random(seed)
    const { random } = this
    this.form = random.pick(['simple', 'structured', 'extended'] as const)
    this.errorEvery = random.chance(0.3) ? random.int(10, 60) : 0
    for (let unit = 0; unit < UNITS; unit++) {
      this.cache.push({ serial: 0, value: 0 })
      this.disk.push({ serial: 0, value: 0 })
      this.answeredHeld.push({ serial: 0, value: 0 })
    }
    this.engine = new EarlyAnswers(
      this.budget.share('test'),
      {
        answers: bytes => {
          this.inbox.push(bytes)
          this.early += Math.floor(bytes.length / 16) // or half as many, with extended headers
          this.engine.read(bytes.length)
        },
        relays: bytes => this.inbox.push(bytes),
        refuses: () => {
          this.refused = true
        },
        breaks: () => {
          this.broken = true
        },
      },
      { ...EARLY_RULES, ...rules },
    )
    this.toClient.push(new ByteWriter().raw(text('NBDMAGICIHAVEOPT')).u16(3).bytes())
  }

  /** @throws Wrong where the client was told what is not so */
  run(): Outcome {
    const { random } = this
    this.handshake()
    const requests = random.int(5, 60)
    const faultAt = random.chance(0.35) ? random.int(0, 12 * requests) : -1
    const raws = random.chance(0.1)
    for (let step = 0; step < 14 * requests && !this.over; step++) {
      if (step === faultAt) this.fault()
      if (this.asked.length < requests && this.waits.size < 10 && random.chance(0.4)) this.ask(raws)
      this.turn()
    }
    this.ending()
    return {
      ...{ early: this.early, flushes: this.flushes, refused: this.refused, raw: this.raw },
      end: this.orderlyEnd ? 'in order' : this.broken ? 'reset' : 'open',
    }
  }

  private get over(): boolean {
    return this.broken || this.orderlyEnd
  }

  /** One thing happens. */
  private turn(): void {
    const { random, engine } = this
    this.clock++
    const what = random.below(10)
    if (what < 2) this.intake(random.int(1, 60))
    else if (what < 4) {
      const into = new Uint8Array(random.int(1, 80))
      const count = engine.pull(into)
      this.toServer.push(into.subarray(0, count))
    } else if (what === 4) this.receive()
    else if (what < 8) this.work()
    else if (!this.over) this.deliver(random.int(1, 60))
    this.hear()
  }

  private intake(most: number): void {
    const { engine, toEngine } = this
    const count = Math.min(most, engine.room(this.clock), toEngine.length)
    if (count > 0 && !this.over) engine.fromClient(toEngine.take(count), this.clock)
  }

  private deliver(most: number): void {
    const { toClient, engine } = this
    const bytes = toClient.take(most)
    if (bytes.length > 0) engine.fromServer(bytes)
    else if (this.serverGone) this.serverEnds()
  }

  private serverEnds(): void {
    if (this.over) return
    const { engine } = this
    if (!engine.serverEnds()) {
      this.broken || wrong('an end that is not in order, and nothing is reset')
      return
    }
    this.orderlyEnd = true
    this.hear()
    this.checkAll('the end', this.cache, this.clock)
  }

  // --- the handshake

  private handshake(): void {
    const { random, form } = this
    const client = new ByteWriter().u32(3)
    const option = (number: number, data: Uint8Array) =>
      client.raw(text('IHAVEOPT')).u32(number).u32(data.length).raw(data)
    const answer = (number: number, type: number, data: Uint8Array = new Uint8Array(0)) =>
      new ByteWriter().u32(0x0003e889).u32(0x045565a9).u32(number).u32(type).u32(data.length).raw(data).bytes()
    const exchange = (bytes: Uint8Array, said: Uint8Array) => {
      this.toEngine.push(bytes)
      while (this.toEngine.length > 0) {
        this.intake(random.int(1, 30))
        const into = new Uint8Array(random.int(1, 40))
        this.toServer.push(into.subarray(0, this.engine.pull(into)))
      }
      for (let more = 1; more > 0; ) {
        const into = new Uint8Array(50)
        more = this.engine.pull(into)
        this.toServer.push(into.subarray(0, more))
      }
      this.toServer.take(this.toServer.length).join() === bytes.join() || wrong('the handshake arrived changed')
      this.toClient.push(said)
      while (this.toClient.length > 0) this.deliver(random.int(1, 30))
    }
    while (this.toClient.length > 0) this.deliver(random.int(1, 9))
    const size = UNITS * UNIT
    const exported = new ByteWriter().u32(0).u32(size).u16(FLAGS).bytes()
    if (form === 'simple' && random.chance(0.5)) {
      option(1, text('d'))
      exchange(client.bytes(), exported)
      this.inbox.length === 28 || wrong(`${this.inbox.length} bytes of the handshake`)
      this.inbox.take(26)
      this.exportFlags = this.inbox.peek(2)!.getUint16(0)
      this.inbox.take(2)
    } else {
      let flags: Uint8Array = client.bytes()
      if (form !== 'simple') {
        const number = form === 'structured' ? 8 : 11
        option(number, new Uint8Array(0))
        exchange(client.bytes(), answer(number, 1))
        flags = new Uint8Array(0)
      }
      const go = new ByteWriter().raw(flags).raw(text('IHAVEOPT')).u32(7).u32(7).u32(1).raw(text('d')).u16(0).bytes()
      const info = new ByteWriter().u16(0).raw(exported).bytes()
      exchange(go, new Uint8Array([...answer(7, 3, info), ...answer(7, 1)]))
      this.inbox.take(this.inbox.length - 22)
      this.exportFlags = this.inbox.peek(2)!.getUint16(0)
      this.inbox.take(22)
    }
    this.exportFlags === (FLAGS & ~256) || wrong(`the export has flags ${this.exportFlags}`)
  }

  // --- the client

  private ask(
    raws: boolean,
    type = this.random.pick([READ, WRITE, WRITE, WRITE, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS]),
  ): void {
    const { random, form } = this
    if (this.closing) return
    let flags = 0
    if (raws && random.chance(0.05)) type = UNKNOWN
    if ((type === WRITE || type === ZEROES || type === TRIM) && random.chance(0.15)) flags |= FUA
    if (type === ZEROES && random.chance(0.3)) flags |= NO_HOLE
    if (type === ZEROES && random.chance(0.2)) flags |= FAST_ZERO
    if (type === STATUS && random.chance(0.4)) flags |= REQ_ONE
    // few places, so that requests meet
    const ranged = type !== FLUSH && type !== DISC
    const first = ranged ? (random.chance(0.5) ? random.below(UNITS) : random.below(6)) : 0
    const beyond = random.chance(0.02)
    const count = ranged ? (beyond ? UNITS : random.int(1, Math.min(UNITS - first, random.chance(0.2) ? UNITS : 4))) : 0
    const stamp = type === WRITE ? ++this.stamps : 0
    const cookie = random.chance(0.7) && this.freed.length > 0 ? this.freed.pop()! : this.cookies++
    const payload = type === WRITE ? new Uint8Array(count * UNIT) : new Uint8Array(0)
    for (let at = 0; at < payload.length; at += UNIT) new DataView(payload.buffer).setUint32(at, stamp)
    const head = new ByteWriter()
    const [high, low] = [Number(cookie >> 32n), Number(cookie & 0xffffffffn)]
    head
      .u32(form === 'extended' ? 0x21e41c71 : 0x25609513)
      .u16(flags)
      .u16(type)
      .u32(high)
      .u32(low)
    head.u32(0).u32(first * UNIT)
    if (form === 'extended') head.u32(0)
    head.u32(count * UNIT)
    this.toEngine.push(head.bytes())
    this.toEngine.push(payload)
    const asked: Asked = {
      ...{ type, flags, cookie, first, count, stamp, sent: this.clock, endsAt: this.toEngine.put },
      ...{ answered: Number.POSITIVE_INFINITY, failed: false, said: [], lost: false },
    }
    this.clock++
    if (type === UNKNOWN) this.raw = true
    if (type === DISC) {
      this.closing = true
      return
    }
    this.asked.push(asked)
    this.waits.set(cookie, asked)
  }

  /** Reads answers as far as they are complete. */
  private hear(): void {
    const { inbox, form } = this
    for (;;) {
      const start = inbox.peek(16)
      if (!start) return
      const magic = start.getUint32(0)
      const cookie = start.getBigUint64(8)
      const asked = this.waits.get(cookie)
      if (!asked) wrong(`an answer to nobody: magic ${magic.toString(16)}, cookie ${cookie}`)
      asked.endsAt <= this.toEngine.taken || wrong('an answer before all of the request was there')
      if (magic === 0x67446698) {
        form === 'extended' && wrong('a simple reply, and extended headers')
        const error = start.getUint32(4)
        const data = asked.type === READ && error === 0 ? asked.count * UNIT : 0
        data > 0 && form === 'structured' && wrong('data in a simple reply')
        const whole = inbox.peek(16 + data)
        if (!whole) return
        for (let i = 0; i < data / UNIT; i++) asked.said.push([asked.first + i, whole.getUint32(16 + i * UNIT)])
        inbox.take(16 + data)
        this.answered(asked, error)
        continue
      }
      const extended = magic === 0x6e8a278c
      if (extended ? form !== 'extended' : magic !== 0x668e33ef || form !== 'structured') wrong('a strange reply')
      const headLength = extended ? 32 : 20
      const head = inbox.peek(headLength)
      if (!head) return
      extended && head.getUint32(20) !== asked.first * UNIT && wrong('a chunk of another offset')
      const length = extended ? head.getUint32(28) : head.getUint32(16)
      const whole = inbox.peek(headLength + length)
      if (!whole) return
      const [flags, type] = [whole.getUint16(4), whole.getUint16(6)]
      let error = 0
      if (type === 1) {
        const first = whole.getUint32(headLength + 4) / UNIT
        for (let i = 0; i < (length - 8) / UNIT; i++)
          asked.said.push([first + i, whole.getUint32(headLength + 8 + i * UNIT)])
      } else if (type === 5 || type === 6) {
        let unit = asked.first
        const [from, step] = type === 5 ? [4, 8] : [8, 16]
        for (let at = from; at < length; at += step) {
          const bytes = whole.getUint32(headLength + at + (type === 5 ? 0 : 4))
          const state = whole.getUint32(headLength + at + (type === 5 ? 4 : 12))
          for (let i = 0; i < bytes / UNIT; i++, unit++) if (state === 3) asked.said.push([unit, 0])
        }
      } else if (type >= 0x8000) error = whole.getUint32(headLength)
      inbox.take(headLength + length)
      if (error !== 0) asked.failed = true
      if ((flags & 1) !== 0) this.answered(asked, asked.failed ? error || 1 : 0)
    }
  }

  private answered(asked: Asked, error: number): void {
    this.waits.delete(asked.cookie)
    this.freed.push(asked.cookie)
    asked.answered = ++this.clock
    asked.failed = error !== 0
    if (error !== 0) {
      asked.answered = Number.POSITIVE_INFINITY // it may be done, or not
      if (
        !this.faulty &&
        asked.type !== UNKNOWN &&
        asked.first + asked.count <= UNITS &&
        (asked.flags & FAST_ZERO) === 0
      )
        wrong(`error ${error} of a request of type ${asked.type}, and nothing failed`)
      return
    }
    if (asked.first + asked.count > UNITS) wrong('a place beyond the end was taken')
    if (asked.type === READ) {
      asked.said.length === asked.count || wrong(`${asked.said.length} units read of ${asked.count}`)
    }
    if (asked.type === READ || asked.type === STATUS) {
      for (const [unit, value] of asked.said) {
        if (!this.allowed(unit, asked.sent, this.clock).has(value)) wrong(`unit ${unit} was said to be ${value}`)
      }
    }
    const isWrite = asked.type === WRITE || asked.type === ZEROES || asked.type === TRIM
    if (isWrite && (asked.flags & FUA) !== 0) {
      for (let i = 0; i < asked.count; i++) this.checkDurable(asked, asked.first + i)
    }
    if (asked.type === FLUSH) {
      this.flushes++
      this.asked.some(({ lost, answered }) => lost && answered < asked.sent) &&
        wrong('a FLUSH is well, and a write that was taken for done has failed')
      this.checkAll('a FLUSH', this.disk, asked.sent)
    }
  }

  /** What a unit may be for who asks from `from` to `to`. */
  private allowed(unit: number, from: number, to: number): { has(value: number): boolean } {
    const writes = this.asked.filter(
      ({ type, first, count, sent }) =>
        (type === WRITE || type === ZEROES || type === TRIM) &&
        sent < to &&
        unit >= first &&
        unit < first + count &&
        first + count <= UNITS,
    )
    const done = writes.filter(({ answered, failed }) => !failed && answered < from)
    const stale = (answered: number) => done.some(({ sent }) => answered < sent)
    const values = new Set<number>()
    if (done.length === 0) values.add(0)
    for (const { type, stamp, answered } of writes) {
      if (!stale(answered)) values.add(type === TRIM ? ANYTHING : stamp)
    }
    return { has: value => values.has(value) || values.has(ANYTHING) }
  }

  /** A FUA write is on the disk, or what was written at the same time or behind it. */
  private checkDurable(write: Asked, unit: number): void {
    const { value } = this.disk[unit]!
    const durable = this.asked.some(
      ({ type, first, count, stamp, answered }) =>
        (type === TRIM || ((type === WRITE || type === ZEROES) && stamp === value)) &&
        unit >= first &&
        unit < first + count &&
        answered >= write.sent,
    )
    durable || wrong(`a FUA write is well, and unit ${unit} is ${value}`)
  }

  private checkUnit(what: string, unit: number, held: readonly Held[], from: number): void {
    const { value } = held[unit]!
    if (!this.allowed(unit, from, this.clock).has(value)) wrong(`${what} is well, and unit ${unit} is ${value}`)
  }

  private checkAll(what: string, held: readonly Held[], from: number): void {
    for (let unit = 0; unit < UNITS; unit++) this.checkUnit(what, unit, held, from)
  }

  // --- the server

  private fault(): void {
    this.faulty = true
    // its machine is lost, with all in its cache; or the session; or it has only gone
    this.serving.length = 0
    this.serverGone = true
    if (this.random.chance(0.5)) this.toClient.take(this.toClient.length)
  }

  private receive(): void {
    const { form, toServer, random } = this
    if (this.serverGone) return
    const headLength = form === 'extended' ? 32 : 28
    const head = toServer.peek(headLength)
    if (!head) return
    head.getUint32(0) === (form === 'extended' ? 0x21e41c71 : 0x25609513) || wrong('the far leg is out of step')
    const [flags, type] = [head.getUint16(4), head.getUint16(6)]
    const cookie = head.getBigUint64(8)
    const offset = head.getUint32(20)
    const length = head.getUint32(form === 'extended' ? 28 : 24)
    const payload = type === WRITE ? length : 0
    const whole = toServer.peek(headLength + payload)
    if (!whole) return
    this.serving.some(other => other.cookie === cookie) && wrong(`cookie ${cookie} twice on the far leg`)
    let stamp = 0
    if (type === WRITE) stamp = whole.getUint32(headLength)
    for (let at = 0; at < payload; at += UNIT)
      whole.getUint32(headLength + at) === stamp || wrong('a payload was mixed')
    toServer.take(headLength + payload)
    if (type === DISC) {
      this.serving.length = 0 // what it has not answered by then it never does
      this.serverGone = true
      return
    }
    const [first, count] = [offset / UNIT, length / UNIT]
    const isWrite = type === WRITE || type === ZEROES || type === TRIM
    let error = first + count > UNITS ? ENOSPC : 0
    if (type === UNKNOWN) error = 22
    else if (error === 0 && isWrite && this.errorEvery > 0 && random.below(this.errorEvery) === 0) {
      error = ENOSPC
      this.faulty = true
    } else if ((flags & FAST_ZERO) !== 0 && random.chance(0.5)) error = ENOTSUP
    const todo =
      error === 0 && type !== FLUSH && type !== CACHE ? Array.from({ length: count }, (_, i) => first + i) : []
    const covers = new Map<number, Held>()
    if (type === FLUSH) this.answeredHeld.forEach((held, unit) => void covers.set(unit, { ...held }))
    this.serving.push({ type, flags, cookie, offset, length, first, stamp, todo, read: new Map(), error, covers })
  }

  /** Does a part of something, or answers it; or writes a part of its cache to the disk. */
  private work(): void {
    const { random, serving, cache, disk } = this
    if (this.serverGone) return
    if (random.chance(0.1)) {
      const unit = random.below(UNITS)
      disk[unit] = { ...cache[unit]! }
    }
    if (serving.length === 0) return
    const index = random.below(serving.length)
    const served = serving[index]!
    if (served.todo.length > 0) {
      for (let i = random.int(1, 6); i > 0 && served.todo.length > 0; i--) {
        const [unit] = served.todo.splice(random.below(served.todo.length), 1)
        this.apply(served, unit!)
      }
      return
    }
    serving.splice(index, 1)
    this.finish(served)
  }

  private apply(served: Served, unit: number): void {
    const { cache, random } = this
    const { type } = served
    if (type === READ || type === STATUS) served.read.set(unit, cache[unit]!.value)
    else if (type === WRITE || type === ZEROES) cache[unit] = { serial: ++this.serial, value: served.stamp }
    else if (type === TRIM && random.chance(0.7))
      cache[unit] = { serial: ++this.serial, value: random.pick([0, 0xdead]) }
    served.covers.set(unit, { ...cache[unit]! })
  }

  private finish(served: Served): void {
    const { cache, disk, answeredHeld, random } = this
    const { type, flags, covers, error } = served
    const isWrite = type === WRITE || type === ZEROES || type === TRIM
    if (type === FLUSH) {
      for (const [unit, held] of covers) {
        const newer = random.chance(0.3) ? cache[unit]! : held // it has to keep what was answered, and may keep more
        if (newer.serial > disk[unit]!.serial) disk[unit] = { ...newer }
      }
    }
    if (isWrite && error === 0) {
      for (const [unit, held] of covers) {
        if (held.serial > answeredHeld[unit]!.serial) answeredHeld[unit] = held
        if ((flags & FUA) !== 0 && held.serial > disk[unit]!.serial) disk[unit] = { ...held }
      }
    }
    if (error !== 0) this.tellLost(served)
    this.toClient.push(this.answerOf(served))
  }

  /** What its client takes for done is not. */
  private tellLost({ type, first, stamp, length }: Served): void {
    for (const asked of this.asked) {
      if (asked.type === type && asked.first === first && asked.stamp === stamp && asked.count === length / UNIT)
        asked.lost ||= asked.answered < Number.POSITIVE_INFINITY && !asked.failed && stamp > 0
    }
  }

  private answerOf(served: Served): Uint8Array {
    const { form, random } = this
    const { type, cookie, offset, error, read, first, flags } = served
    const head = (flags: number, kind: number, length: number): ByteWriter => {
      const writer = new ByteWriter()
      const [high, low] = [Number(cookie >> 32n), Number(cookie & 0xffffffffn)]
      writer
        .u32(form === 'extended' ? 0x6e8a278c : 0x668e33ef)
        .u16(flags)
        .u16(kind)
        .u32(high)
        .u32(low)
      if (form === 'extended') writer.u32(0).u32(offset).u32(0)
      return writer.u32(length)
    }
    const units = [...read].sort(([a], [b]) => a - b)
    const data = new ByteWriter()
    for (const [, value] of units) data.u32(value)
    const simple =
      form === 'simple' || (form === 'structured' && type !== READ && type !== STATUS && random.chance(0.5))
    if (simple) {
      const [high, low] = [Number(cookie >> 32n), Number(cookie & 0xffffffffn)]
      const writer = new ByteWriter().u32(0x67446698).u32(error).u32(high).u32(low)
      return type === READ && error === 0 ? writer.raw(data.bytes()).bytes() : writer.bytes()
    }
    if (error !== 0) {
      const said = text('no space')
      const chunk = head(random.below(2), 0x8001, 6 + said.length)
        .u32(error)
        .u16(said.length)
        .raw(said)
        .bytes()
      const done = (chunk[5]! & 1) !== 0
      return done ? chunk : new Uint8Array([...chunk, ...head(1, 0, 0).bytes()])
    }
    if (type === READ) {
      const bytes = data.bytes()
      return head(1, 1, 8 + bytes.length)
        .u32(0)
        .u32(offset)
        .raw(bytes)
        .bytes()
    }
    if (type === STATUS) {
      const zero = units[0]![1] === 0
      let count = 0
      while (count < units.length && (units[count]![1] === 0) === zero) count++
      if (count === units.length && (flags & REQ_ONE) === 0)
        while (first + count < UNITS && (this.cache[first + count]!.value === 0) === zero) count++
      const state = zero ? 3 : 0
      if (form === 'structured')
        return head(1, 5, 12)
          .u32(1)
          .u32(count * UNIT)
          .u32(state)
          .bytes()
      return head(1, 6, 24)
        .u32(1)
        .u32(1)
        .u32(0)
        .u32(count * UNIT)
        .u32(0)
        .u32(state)
        .bytes()
    }
    return head(1, 0, 0).bytes()
  }

  // --- the end

  /** The client waits for its answers, flushes as a mirror does or not, and leaves. */
  private ending(): void {
    const { random } = this
    this.settle()
    if (this.over) return
    if (random.chance(0.7)) {
      this.ask(false, FLUSH)
      this.settle()
      if (this.over) return
    }
    if (!this.faulty && random.chance(0.3)) this.settleOwed()
    for (let last = random.below(4); last > 0; last--) this.ask(false, WRITE)
    this.settle()
    this.ask(false, DISC)
    this.settle()
    if (this.over) return
    if (this.toEngine.length === 0) {
      this.engine.clientEnds()
      for (let i = 0; i < 2000 && !this.engine.isDrained && !this.over; i++) this.turn()
      if (!this.over && !this.engine.isDrained && !this.faulty) wrong('not drained')
    }
    for (let i = 0; i < 4000 && !this.over; i++) this.turn()
    this.over || wrong('it does not end')
    this.broken && !this.faulty && wrong('it is reset, and nothing has failed')
  }

  private settleOwed(): void {
    for (let i = 0; i < 4000 && this.engine.owed > 0 && !this.refused && !this.over; i++) this.turn()
    this.engine.owed === 0 || this.refused || this.over || wrong('writes are owed for ever')
  }

  /** Until every answer is here. */
  private settle(): void {
    for (let i = 0; i < 6000 && !this.over; i++) {
      if (this.waits.size === 0 && this.toEngine.length === 0) return
      this.turn()
    }
    if (this.over) return
    if (this.serverGone) this.deliver(1)
    this.over || wrong(`${this.waits.size} requests wait for ever`)
  }
}

/** @returns what is wrong, or how it ended */
export function earlyRun(seed: number, rules: Partial<EarlyRules> = {}): Outcome | string {
  try {
    return new EarlyRun(seed, rules).run()
  } catch (error) {
    if (error instanceof Wrong) return error.message
    if (Object.keys(rules).length > 0) return `crashed: ${(error as Error).message}`
    throw error
  }
}
