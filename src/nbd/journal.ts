/**
 * The requests of one connection on their way to the far server: those that are not on the far leg yet, with their bytes,
 * and those that are and have no answer. Says which may go when. Pure: docs/adr/0020-early-answers.md.
 *
 *   const request = journal.begin(fields, isEarly, now)   // its head has come
 *   journal.payload(request, bytes)                       // a part of what follows the head
 *   journal.complete(request)                             // all of it is here: early answers may be given
 *   journal.pull(into)                                    // what goes next
 *   journal.settle(journal.find(cookie)!)                 // the far server has answered
 */
import { TWO_32, writeU16, writeU32, writeU64 } from '../bytes/big-endian.ts'
import { assert } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import {
  JOURNAL_AGE_MS_MAX,
  JOURNAL_BYTES_MAX,
  JOURNAL_FREE_BYTES,
  JOURNAL_REQUEST_BYTES,
  JOURNAL_WAITS_MAX,
  NBD_REQUESTS_MAX,
} from '../limits.ts'
import { type EarlyRules, isWrite, type UnsettledWrite } from './early-rules.ts'
import { RequestFields, type Requests } from './requests.ts'
import type { NbdRequest } from './sink.ts'
import { COMMAND, COMMAND_FLAG, EXTENDED_REQUEST, REQUEST } from './wire.ts'
import { WrittenRanges } from './written-ranges.ts'

/** A request of the client, as it came. */
export class JournalRequest implements UnsettledWrite {
  readonly request = new RequestFields()
  /** Which it is of its connection. */
  number = 0
  readonly offset: number
  readonly end: number
  /** Its client has an answer, or gets one when all of it is here. */
  readonly isEarly: boolean
  /** When it came. */
  readonly bornMs: number
  /** Bytes of its payload that are to come. */
  missing: number
  /** Requests that wait for it ... */
  readonly waiting: JournalRequest[] = []
  /** ... and such that wait for all before them, where that is looked at; from two on it does not matter how many. */
  barriers = 0
  /** Writes that it waits for; all of them count as one. */
  blockers = 0
  /** Its cookie on the far leg; 0 before it is on its way. */
  cookie = 0
  /** It will not be sent: a newer one stands for it, or the connection has failed. */
  dropped = false
  /** The far server's error, once an answer of several chunks has told one. */
  error = 0
  /** Of its head and payload, what is not on the far leg. */
  readonly pieces: Uint8Array[] = []

  constructor(request: NbdRequest, isEarly: boolean, nowMs: number) {
    this.request.copy(request)
    this.offset = request.offset
    this.end = request.offset + request.lengthBytes
    this.isEarly = isEarly
    this.bornMs = nowMs
    this.missing = request.payloadBytes
  }

  get waiters(): number {
    return this.waiting.length + this.barriers
  }
}

export interface JournalOptions {
  /** Of the memory that a process's peers and QEMUs share. */
  readonly memory: Share
  readonly rules: EarlyRules
  /** Requests on the far leg, as its parser of answers looks for them. */
  readonly underWay: Requests
}

export class Journal {
  private readonly memory: Share
  private readonly rules: EarlyRules
  private readonly underWay: Requests
  /** Bytes that go before all requests, or in a connection that is not understood. */
  private readonly raw: Uint8Array[] = []
  /** Those that wait for nothing but their turn. */
  private readonly ready: JournalRequest[] = []
  /** The one whose bytes go now. */
  private sending: JournalRequest | undefined
  /** All that the far server has not answered, the oldest first. */
  private readonly unsettled = new Set<JournalRequest>()
  /** Of these, what changes the export; and where. */
  private readonly writes = new Set<JournalRequest>()
  private readonly ranges = new WrittenRanges<JournalRequest>()
  /** Those that wait for all writes before them, in their order. */
  private readonly barriers: JournalRequest[] = []
  private begun = 0
  /** And what is complete and answered already. */
  private readonly early = new Set<JournalRequest>()
  /** Bytes of their data. */
  private owedBytes = 0
  /** Those on the far leg, by their cookies there. */
  private readonly sent = new Map<number, JournalRequest>()
  private sentCount = 0
  /** Bytes that are not on the far leg, and those taken of the budget for them. */
  private heldBytes = 0
  private taken = 0

  constructor({ memory, rules, underWay }: JournalOptions) {
    this.memory = memory
    this.rules = rules
    this.underWay = underWay
  }

  /** Requests that the far server has not answered. */
  get count(): number {
    return this.unsettled.size
  }

  /** Writes of them that were answered early. */
  get earlyCount(): number {
    return this.early.size
  }

  /** Bytes of their data. */
  get earlyBytes(): number {
    return this.owedBytes
  }

  /** Bytes that it holds, requests counted. */
  get bytes(): number {
    return this.heldBytes + this.unsettled.size * JOURNAL_REQUEST_BYTES
  }

  /** Nothing that came is to be sent any more, but for what a client left incomplete. */
  get isDrained(): boolean {
    if (this.raw.length > 0 || this.sending?.pieces.length) return false
    for (const request of this.unsettled) if (request.cookie === 0 && request.missing === 0) return false
    return true
  }

  /** Bytes that a client may be asked for now, `most` at most; memory for them is kept until `account`. */
  room(most: number, nowMs: number): number {
    const { sending } = this
    // What is on its way in part has to go on, or nothing behind it ever would.
    if (sending && sending.pieces.length === 0) return Math.min(most, sending.missing)
    for (const { bornMs } of this.early) {
      if (nowMs - bornMs > JOURNAL_AGE_MS_MAX) return 0
      break
    }
    const requests = NBD_REQUESTS_MAX - 1 - this.unsettled.size
    const wanted = Math.min(most, JOURNAL_BYTES_MAX - this.bytes, requests * REQUEST.LENGTH)
    if (wanted <= 0) return 0
    const unpaid = this.bytes + wanted - JOURNAL_FREE_BYTES - this.taken
    if (unpaid > 0) this.taken += this.memory.takeUpTo(unpaid)
    return Math.max(0, Math.min(wanted, JOURNAL_FREE_BYTES + this.taken - this.bytes))
  }

  /** Squares what was taken of the budget with what is held. */
  account(): void {
    const due = Math.max(0, this.bytes - JOURNAL_FREE_BYTES)
    if (due > this.taken) this.taken += this.memory.takeUpTo(due - this.taken)
    else {
      this.memory.give(this.taken - due)
      this.taken = due
    }
  }

  // --- what comes

  /** Bytes that go as they are. They are copied. */
  relay(bytes: Uint8Array): void {
    if (bytes.length === 0) return
    this.raw.push(new Uint8Array(bytes))
    this.heldBytes += bytes.length
  }

  /** A request's head has come. */
  begin(fields: NbdRequest, isEarly: boolean, nowMs: number): JournalRequest {
    const { rules } = this
    const request = new JournalRequest(fields, isEarly, nowMs)
    request.number = ++this.begun
    if (rules.waitsForAll(fields)) this.waitsForAll(request)
    else {
      const earlier = this.ranges.overlapping(request, JOURNAL_WAITS_MAX + 1)
      if (earlier.size > JOURNAL_WAITS_MAX) this.waitsForAll(request)
      else for (const one of earlier) if (rules.waitsFor(request, one)) block(request, one)
    }
    this.unsettled.add(request)
    if (isWrite(fields)) {
      this.writes.add(request)
      this.ranges.add(request)
    }
    if (request.blockers === 0) this.ready.push(request)
    return request
  }

  private waitsForAll(request: JournalRequest): void {
    if (this.writes.size === 0) return
    request.blockers++
    this.barriers.push(request)
  }

  /** The next bytes of its payload. They are copied. */
  payload(request: JournalRequest, bytes: Uint8Array): void {
    assert(bytes.length <= request.missing, 'more payload than its head says')
    request.missing -= bytes.length
    if (request.dropped || bytes.length === 0) return
    request.pieces.push(new Uint8Array(bytes))
    this.heldBytes += bytes.length
  }

  /** All of it is here. */
  complete(request: JournalRequest): void {
    assert(request.missing === 0, 'a request that is not complete')
    if (!request.isEarly) return
    this.early.add(request)
    this.owedBytes += request.request.payloadBytes
    if (request.blockers === 0) return
    for (const older of this.ranges.overlapping(request, JOURNAL_WAITS_MAX)) {
      if (older === request || older.cookie !== 0 || older.missing > 0) continue
      older.barriers = this.barriersBehind(older)
      if (this.rules.supersedes(request, older)) this.drop(older)
    }
  }

  /** How many wait for it among all before them, two at most. */
  private barriersBehind({ number }: JournalRequest): number {
    const { barriers } = this
    const behind = (back: number): number => ((barriers.at(-back)?.number ?? 0) > number ? 1 : 0)
    return behind(1) + behind(2)
  }

  // --- what goes

  /** Takes what goes next. @returns how many bytes that is; 0: nothing may go */
  pull(into: Uint8Array, extended: boolean): number {
    let at = 0
    while (at < into.length) {
      if (this.raw.length > 0) {
        at = this.take(this.raw, into, at)
        continue
      }
      const request = this.sending ?? this.next(extended)
      if (!request) break
      this.sending = request
      at = this.take(request.pieces, into, at)
      if (request.pieces.length > 0 || request.missing > 0) break
      this.sending = undefined
      if (request.request.type === COMMAND.DISC) this.settle(request) // it has no answer
    }
    return at
  }

  /** The next request that may go, with its head in front of what it has. */
  private next(extended: boolean): JournalRequest | undefined {
    while (this.ready[0]?.dropped) this.ready.shift()
    if (this.underWay.full) return undefined
    const request = this.ready.shift()
    if (!request) return undefined
    const cookie = this.rules.cookie(++this.sentCount, request.request)
    request.cookie = cookie
    const head = headOf(request.request, cookie, extended)
    request.pieces.unshift(head)
    this.heldBytes += head.length
    if (request.request.type === COMMAND.DISC) return request
    this.sent.set(cookie, request)
    const far = new RequestFields()
    far.copy(request.request)
    far.cookieHigh = Math.floor(cookie / TWO_32)
    far.cookieLow = cookie % TWO_32
    this.underWay.add(far)
    return request
  }

  private take(pieces: Uint8Array[], into: Uint8Array, at: number): number {
    while (pieces.length > 0 && at < into.length) {
      const piece = pieces[0]!
      const count = Math.min(piece.length, into.length - at)
      into.set(count < piece.length ? piece.subarray(0, count) : piece, at)
      at += count
      this.heldBytes -= count
      if (count < piece.length) pieces[0] = piece.subarray(count)
      else pieces.shift()
    }
    return at
  }

  // --- what is answered

  /** The request with this cookie on the far leg. */
  find(cookie: number): JournalRequest | undefined {
    return this.sent.get(cookie)
  }

  /** The far server has answered it: what waited for it may go. */
  settle(request: JournalRequest): void {
    this.unsettled.delete(request)
    if (request.cookie !== 0) this.sent.delete(request.cookie)
    if (this.writes.delete(request)) this.ranges.delete(request)
    if (this.early.delete(request)) this.owedBytes -= request.request.payloadBytes
    for (const later of request.waiting) if (--later.blockers === 0) this.ready.push(later)
    request.waiting.length = 0
    this.passBarriers()
  }

  /** Those before which no write is left may go. */
  private passBarriers(): void {
    const { barriers } = this
    if (barriers.length === 0) return
    const [oldest] = this.writes
    while (barriers[0] && (!oldest || oldest.number >= barriers[0].number)) {
      const request = barriers.shift()!
      if (--request.blockers === 0) this.ready.push(request)
    }
  }

  /** Nothing more goes: the connection has failed. @returns what will not be sent, and whose client waits for an answer */
  stop(): JournalRequest[] {
    const unanswered: JournalRequest[] = []
    this.raw.length = 0
    for (const request of this.unsettled) {
      const complete = request.pieces.length === 0 && request.missing === 0 && request.cookie !== 0
      if (complete) continue // it is on its way: its answer may come
      if (!request.isEarly) unanswered.push(request)
      this.drop(request)
    }
    this.ready.length = 0
    this.barriers.length = 0
    this.sending = undefined
    return unanswered
  }

  /** Gives all of its memory back. */
  close(): void {
    this.stop()
    this.memory.give(this.taken)
    this.taken = 0
  }

  private drop(request: JournalRequest): void {
    request.dropped = true
    for (const { length } of request.pieces) this.heldBytes -= length
    request.pieces.length = 0
    this.settle(request)
  }
}

/** @returns nothing: one request waits for another */
function block(later: JournalRequest, earlier: JournalRequest): void {
  later.blockers++
  earlier.waiting.push(later)
}

/** A request's head as it goes to the far server: as it came, but for its cookie. */
function headOf(
  { type, flags, offset, lengthBytes, payloadBytes }: NbdRequest,
  cookie: number,
  extended: boolean,
): Uint8Array {
  const head = new Uint8Array(extended ? EXTENDED_REQUEST.LENGTH : REQUEST.LENGTH)
  const withPayload = extended && (flags & COMMAND_FLAG.PAYLOAD_LEN) !== 0
  writeU32(head, 0, extended ? EXTENDED_REQUEST.MAGIC : REQUEST.MAGIC)
  writeU16(head, 4, flags)
  writeU16(head, 6, type)
  writeU64(head, 8, cookie)
  writeU64(head, 16, offset)
  const length = withPayload ? payloadBytes : lengthBytes
  if (extended) writeU64(head, 24, length)
  else writeU32(head, 24, length)
  return head
}
