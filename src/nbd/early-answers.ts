/**
 * One connection of a disk whose writes are answered here, before the far server has them (docs/adr/0020-early-answers.md):
 * WRITE, WRITE_ZEROES and TRIM once they lie in a journal, all else by the server. Bytes of both directions go in, bytes
 * come out; what a client may believe after FLUSH is what it may believe of the server itself. Pure.
 *
 *   const early = new EarlyAnswers(memory, sink)
 *   early.room(now)                     // bytes that the client may be asked for
 *   early.fromClient(bytes, now)        // answers to it go to the sink
 *   early.pull(into)                    // the far leg: cookies are others there, so that the client's can be used again
 *   early.fromServer(bytes)             // what of that is for the client goes to the sink
 */
import { readU16, TWO_32, writeU16, writeU32 } from '../bytes/big-endian.ts'
import { ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import { JOURNAL_ANSWERS_BYTES_MAX, JOURNAL_FREE_BYTES } from '../limits.ts'
import { CarriedBytes } from './carried-bytes.ts'
import { ClientParser } from './client-stream.ts'
import { Dialogue } from './dialogue.ts'
import { EARLY_RULES, type EarlyRules } from './early-rules.ts'
import { Journal, JournalRequest } from './journal.ts'
import { MadeAnswers } from './made-answers.ts'
import { Requests } from './requests.ts'
import { ServerParser } from './server-stream.ts'
import type { Direction, NbdExport, NbdRequest, NbdSink } from './sink.ts'
import {
  COMMAND,
  EXPORT_LENGTH,
  INFO,
  INFO_EXPORT_LENGTH,
  OPTION,
  OPTION_REPLY,
  OPTION_REPLY_HEAD_LENGTH,
  TRANSMISSION_FLAG,
} from './wire.ts'

/** Bytes taken at once of a client that gets nothing but errors. */
const REFUSED_BYTES = 16384

/**
 * - `relay`: handshake, a connection that nothing is to be answered early on, or one that is not understood: bytes as they are
 * - `early`
 * - `settle`: the client is not understood from a byte on, which waits until all before it is answered
 * - `over`: it is to be reset
 */
type Mode = 'relay' | 'early' | 'settle' | 'over'

export interface EarlySink {
  /** Answers made here, for the client. Call `read` when it has taken them. */
  answers(bytes: Uint8Array): void
  /** What the server said, for the client: cookies are its own again. */
  relays(bytes: Uint8Array): void
  /** A write that was answered early has failed: from here on every request is. Once. */
  refuses(error: ProxyError): void
  /** The connection has to be reset, so that its client takes nothing for done. Once, the last call. */
  breaks(error: ProxyError): void
}

export class EarlyAnswers implements NbdSink {
  private readonly sink: EarlySink
  private readonly rules: EarlyRules
  private readonly dialogue = new Dialogue()
  /** Requests that the client has no answer to, by its cookies. */
  private readonly unanswered = new Requests()
  private readonly client: ClientParser
  private readonly server: ServerParser
  private readonly journal: Journal
  private mode: Mode = 'relay'
  /** In transmission, and nothing says that it should not be looked at. */
  private exported: NbdExport | undefined
  /** What every request is answered with; 0: none has failed. */
  private error = 0
  private clientEnded = false
  private serverEnded = false
  /** The request whose payload comes. */
  private current: JournalRequest | undefined
  /** Position of the next byte of that. */
  private payloadAt = 0
  private nowMs = 0
  /** Bytes of either direction that this call is about, and the position of the first. */
  private readonly span = { client: new CarriedBytes(), server: new CarriedBytes() }
  /** Where in the server's bytes those begin that were dealt with neither way, and which way they go. */
  private doneTo = 0
  private passes = true
  /** Bytes from which on the client is not understood, until they may go. */
  private readonly tail: Uint8Array[] = []
  private readonly made = new MadeAnswers()

  /** @param memory of which it takes what its journal needs; `close` gives it back */
  constructor(memory: Share, sink: EarlySink, rules: EarlyRules = EARLY_RULES) {
    this.sink = sink
    this.rules = rules
    this.client = new ClientParser(this, this.dialogue, this.unanswered)
    this.server = new ServerParser(this, this.dialogue)
    this.journal = new Journal({ memory, rules, underWay: this.dialogue.requests })
  }

  // --- for whom it serves

  /** Bytes that the client may be asked for; 0: not now, ask again when something was pulled or has come. */
  room(nowMs: number): number {
    if (this.mode === 'settle' || this.mode === 'over' || this.made.unread > JOURNAL_ANSWERS_BYTES_MAX) return 0
    return this.error !== 0 ? REFUSED_BYTES : this.journal.room(JOURNAL_FREE_BYTES, nowMs)
  }

  /** Writes that were answered early and that the far server has not answered; what it answers all else with counts as one. */
  get owed(): number {
    return this.journal.earlyCount + (this.error === 0 ? 0 : 1)
  }

  /** Those writes alone, and the bytes of their data. */
  get journalled(): { readonly writes: number; readonly bytes: number } {
    return { writes: this.journal.earlyCount, bytes: this.journal.earlyBytes }
  }

  /** Bytes that it holds, requests counted. */
  get bytes(): number {
    return this.journal.bytes
  }

  /** All that came has been pulled: the end of the client's direction may follow. */
  get isDrained(): boolean {
    return this.tail.length === 0 && this.journal.isDrained
  }

  /** The client's next bytes, no more than `room` said. Nothing of them is kept where they lie. */
  fromClient(bytes: Uint8Array, nowMs: number): void {
    if (this.mode === 'over') return
    this.nowMs = nowMs
    if (this.mode === 'early') this.requests(bytes)
    else {
      const { client } = this
      if (!client.raw && !this.relaysServer) client.push(bytes, 0, bytes.length)
      this.journal.relay(bytes)
    }
    this.flush()
    this.settled()
    this.journal.account()
  }

  /** Takes what goes to the server next. @returns how many bytes that is */
  pull(into: Uint8Array): number {
    if (this.isOver) return 0
    const { journal } = this
    const extended = this.exported?.extended === true
    let count = journal.pull(into, extended)
    this.settled() // DISC has no answer
    if (count < into.length) count += journal.pull(into.subarray(count), extended)
    journal.account()
    return count
  }

  /** The server's next bytes. They are changed in place, and lent to the sink's `relays`. */
  fromServer(bytes: Uint8Array): void {
    if (this.isOver) return
    const { server, span } = this
    if (server.raw || this.relaysServer) {
      this.sink.relays(bytes)
      return
    }
    const { dialogue } = this
    const named = dialogue.pending === OPTION.EXPORT_NAME
    span.server.take(bytes, server.position)
    this.doneTo = 0
    server.push(bytes, 0, bytes.length)
    if (named && dialogue.exported) this.maskAt(EXPORT_LENGTH - 2) // its answer has no head
    if (this.isOver) return
    const end = span.server.bytes.length
    this.deal(server.raw || this.relaysServer ? end : end - server.pending)
    span.server.keep(server.raw || this.relaysServer ? 0 : server.pending)
    this.flush()
    this.settled()
    this.journal.account()
  }

  /** The client has read so many bytes of answers. */
  read(bytes: number): void {
    this.made.unread -= bytes
  }

  /** The client sends no more: its end follows what is drained, or it is reset. */
  clientEnds(): void {
    this.clientEnded = true
    if (this.error !== 0) this.breakOff('the client has closed, and a write of it has failed')
  }

  /** The server has closed, or is lost. @returns whether the client may be told so in order; else it is reset */
  serverEnds(): boolean {
    this.serverEnded = true
    const { journal, tail } = this
    if (this.mode === 'over') return false
    if (this.mode !== 'relay' && !this.rules.endsWell(journal.earlyCount + tail.length, this.error)) {
      this.breakOff(
        `the server has gone, and has not answered ${journal.earlyCount} writes that the client has answers to`,
      )
      return false
    }
    return true
  }

  /** Gives its memory back. */
  close(): void {
    this.mode = 'over'
    this.journal.close()
  }

  // --- the client's direction

  private requests(bytes: Uint8Array): void {
    const { client, span } = this
    span.client.take(bytes, client.position)
    client.push(bytes, 0, bytes.length)
    if (this.isOver || this.mode === 'settle') return
    this.collect(client.position)
    span.client.keep(client.pending)
  }

  /** Adds what came of a payload up to this position to its request. */
  private collect(position: number): void {
    const { current, payloadAt } = this
    if (!current) return
    const { base, bytes } = this.span.client
    const count = Math.min(current.missing, position - payloadAt)
    this.journal.payload(current, bytes.subarray(payloadAt - base, payloadAt - base + count))
    this.payloadAt += count
    if (current.missing === 0) this.completed(current)
  }

  request(start: number, headEnd: number, request: NbdRequest): void {
    if (this.mode !== 'early') return
    this.collect(start)
    if (this.isOver) return
    const { exported, error, rules, journal, nowMs } = this
    if (request.type > COMMAND.BLOCK_STATUS) {
      this.unanswered.remove(this.unanswered.find(request.cookieHigh, request.cookieLow))
      this.notUnderstood(start)
      return
    }
    if (this.serverEnded) {
      this.breakOff('a request, and the server has closed')
      return
    }
    if (error !== 0 && request.type === COMMAND.DISC) {
      this.breakOff('the client disconnects, and a write of it has failed')
      return
    }
    const isEarly = error === 0 && rules.isEarly(request, exported!)
    const next = error === 0 ? journal.begin(request, isEarly, nowMs) : refused(request)
    this.current = next
    this.payloadAt = headEnd
    if (next.missing === 0) this.completed(next)
  }

  /** All of a request is here. */
  private completed(request: JournalRequest): void {
    this.current = undefined
    if (this.error !== 0) this.answer(request.request, this.error)
    else {
      this.journal.complete(request)
      if (request.isEarly) this.answer(request.request, 0)
    }
  }

  /** From this position on the client's bytes wait for all before them. */
  private notUnderstood(position: number): void {
    const { bytes, base } = this.span.client
    this.mode = 'settle'
    this.current = undefined
    this.tail.push(bytes.slice(position - base))
    if (this.error !== 0) this.breakOff('the client is not understood, and a write of it has failed')
  }

  /** Where nothing is under way any more, what was not understood goes on. */
  private settled(): void {
    if (this.mode !== 'settle' || !this.rules.relays(this.journal.count) || this.made.waits) return
    if (!this.passes && this.server.passable > 0) return // the rest of an answer that is not the client's
    this.mode = 'relay'
    for (const bytes of this.tail.splice(0)) this.journal.relay(bytes)
    const { span } = this
    const { bytes } = span.server
    if (bytes.length > 0) this.sink.relays(bytes) // of a message that nobody understands
    span.server.keep(0)
  }

  // --- the server's direction

  /** Nothing of the server is looked at any more. */
  private get relaysServer(): boolean {
    return this.mode === 'relay' && this.dialogue.exported !== undefined
  }

  /** The client is not in the middle of a message of the server. */
  private get isBetween(): boolean {
    return !this.passes || this.server.passable === 0
  }

  /** Deals with the server's bytes up to this place: what is the client's goes there. */
  private deal(to: number): void {
    const { bytes } = this.span.server
    if (this.passes && to > this.doneTo) this.sink.relays(bytes.subarray(this.doneTo, to))
    this.doneTo = Math.max(to, this.doneTo)
  }

  optionReply(start: number, end: number, option: number, type: number): void {
    const asked = option === OPTION.GO || option === OPTION.INFO
    if (!asked || type !== OPTION_REPLY.INFO || end - start < OPTION_REPLY_HEAD_LENGTH + INFO_EXPORT_LENGTH) return
    const { bytes, base } = this.span.server
    const at = start - base + OPTION_REPLY_HEAD_LENGTH
    if (readU16(bytes, at) === INFO.EXPORT) this.maskAt(at + INFO_EXPORT_LENGTH - 2)
  }

  /**
   * Connections are answered early each by itself, so a FLUSH on one does not cover what another was answered: the server's
   * word that it would is taken back, where the flags stand.
   */
  private maskAt(at: number): void {
    const { bytes } = this.span.server
    const flags = readU16(bytes, at)
    if (this.rules.serves(flags)) writeU16(bytes, at, flags & ~TRANSMISSION_FLAG.CAN_MULTI_CONN)
  }

  begins(exported: NbdExport): void {
    if (!this.rules.serves(exported.transmissionFlags)) return
    this.exported = exported
    this.mode = 'early'
  }

  reply(start: number, headEnd: number, request: NbdRequest, error: number): void {
    this.message(start, headEnd, request, error, true)
  }

  chunk(
    start: number,
    headEnd: number,
    request: NbdRequest,
    _type: number,
    _payload: number,
    error: number,
    done: boolean,
  ): void {
    this.message(start, headEnd, request, error, done)
  }

  private message(start: number, headEnd: number, far: NbdRequest, error: number, done: boolean): void {
    if (this.isOver) return
    const { journal, span, unanswered } = this
    const { bytes, base } = span.server
    const request = journal.find(far.cookieHigh * TWO_32 + far.cookieLow)
    if (!request || request.pieces.length > 0 || request.missing > 0) {
      this.breakOff('the server has answered what it has not been asked')
      return
    }
    this.deal(start - base)
    this.send()
    this.passes = true
    const { cookieHigh, cookieLow } = request.request
    if (request.isEarly) {
      this.passes = false
      this.doneTo = headEnd - base
      if (request.error === 0) request.error = error
    } else {
      writeU32(bytes, start - base + 8, cookieHigh)
      writeU32(bytes, start - base + 12, cookieLow)
    }
    if (!done) return
    if (!request.isEarly) unanswered.remove(unanswered.find(cookieHigh, cookieLow))
    journal.settle(request)
    if (request.error !== 0) this.refuse(request)
  }

  /** A write that its client has an answer to has failed. */
  private refuse({ error, request }: JournalRequest): void {
    if (this.error !== 0) return
    this.error = this.rules.remembers(error)
    if (this.error === 0) return
    const unsent = this.journal.stop()
    for (const { missing, request } of unsent) if (missing === 0) this.answer(request, this.error)
    this.sink.refuses(
      new ProxyError(
        'QEMU_LOST',
        `the disk's server answered a write at ${request.offset} with error ${error}, and its client had an answer already`,
        undefined,
        'every request is answered with that error; mirror again once it is mended',
      ),
    )
    if (this.mode === 'settle') this.breakOff('the client is not understood, and a write of it has failed')
    else if (this.clientEnded || unsent.some(({ request: { type } }) => type === COMMAND.DISC)) {
      this.breakOff('the client disconnects, and a write of it has failed')
    }
  }

  // --- both

  raw(direction: Direction, position: number, reason: string): void {
    if (this.mode === 'relay') return
    if (direction === 'client') {
      if (this.mode === 'early') {
        this.collect(position)
        this.notUnderstood(position)
      }
    } else if (this.journal.count > 0) this.breakOff(`the server is not understood (${reason}), and has requests`)
    else {
      this.mode = 'relay'
      for (const bytes of this.tail.splice(0)) this.journal.relay(bytes)
    }
  }

  writeData(): void {}
  readData(): void {}
  readHole(): void {}

  private get isOver(): boolean {
    return this.mode === 'over'
  }

  /** Answers a request in the server's place. */
  private answer(request: NbdRequest, error: number): void {
    const { unanswered } = this
    if (request.type === COMMAND.DISC) return
    this.made.add(this.exported!, request, error)
    unanswered.remove(unanswered.find(request.cookieHigh, request.cookieLow))
    if (error !== 0) this.error = this.rules.remembersTold(error)
  }

  /** Sends what was answered, where it does not stand in the middle of something. */
  private flush(): void {
    if (this.isBetween) this.send()
  }

  private send(): void {
    const bytes = this.made.take()
    if (bytes) this.sink.answers(bytes)
  }

  private breakOff(why: string): void {
    if (this.mode === 'over') return
    this.mode = 'over'
    this.journal.stop()
    this.sink.breaks(new ProxyError('QEMU_LOST', why, undefined, 'its connection is reset: mirror again'))
  }
}

/** A request that goes nowhere: its payload passes. */
function refused(request: NbdRequest): JournalRequest {
  const next = new JournalRequest(request, false, 0)
  next.dropped = true
  return next
}
