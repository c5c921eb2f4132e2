/**
 * Pages of cold sets that the server cannot read from its own disk (protocol.md §5): it asks with WANT, the client answers
 * each number with a PAGE. Both are in the order of the session, and of no flow.
 */

import { assert, type ErrorCode } from '../errors.ts'
import { WANTED_PAGES_MAX } from '../limits.ts'
import { encodePage, encodeWant, parsePage, parseWant, WANTED_BYTES } from '../wan/bodies.ts'
import { FRAME } from '../wan/wire.ts'
import type { FlowSink, Role, TransportSink } from './api.ts'
import { keptPayload } from './kept-payloads.ts'
import type { Outbox } from './outbox.ts'
import type { Served } from './served.ts'

/** What they need of the session that they are in. */
export interface ColdPagesHost {
  readonly role: Role
  readonly served: Pick<Served<FlowSink>, 'sink' | 'tell'>
  readonly transport: Pick<TransportSink, 'onWork'>
  readonly outbox: Pick<Outbox, 'enqueueOwn' | 'ownFrames'>
  /** The peer broke a rule: the session ends. */
  fault(code: ErrorCode, what: string): void
}

export class ColdPages {
  private readonly host: ColdPagesHost
  /** Client: pages that the server has asked for so far, and that were handed in. */
  private asked = 0
  private answered = 0
  private over = false

  constructor(host: ColdPagesHost) {
    this.host = host
  }

  /** Server: asks for pages, WANTED_PAGES_MAX at most, once those that were asked for before have come. */
  ask(numbers: readonly number[]): void {
    const { role, outbox, transport } = this.host
    assert(role === 'server' && numbers.length <= WANTED_PAGES_MAX, 'too many pages are wanted')
    if (this.over) return
    outbox.enqueueOwn(FRAME.WANT, encodeWant(numbers))
    transport.onWork()
  }

  /**
   * Client: a page that was asked for; undefined: it cannot be had. The page is copied.
   * @returns what the question and the answer take on the WAN, frames excluded
   */
  answer(number: number, page: Uint8Array | undefined): number {
    const { role, outbox, transport } = this.host
    assert(role === 'client', 'only the client sends pages')
    if (this.over) return 0
    this.answered++
    const payload = encodePage(number, page)
    outbox.enqueueOwn(FRAME.PAGE, payload)
    transport.onWork()
    return WANTED_BYTES + payload.length
  }

  /** A WANT of the peer, in its order. */
  deliverWant(payload: Uint8Array) {
    const { role, outbox, served } = this.host
    const numbers = parseWant(payload)
    if (!numbers) return this.host.fault('PROTOCOL_SYNTAX', `WANT of ${payload.length} bytes`)
    if (role === 'server') return this.host.fault('PROTOCOL_STATE', 'WANT from the client')
    this.asked += numbers.length
    // An answer that waits to be sent is memory that the server decides over. A client has no other frames of its own.
    const owed = this.asked - this.answered + outbox.ownFrames
    if (owed > WANTED_PAGES_MAX) return this.host.fault('LIMIT_EXCEEDED', `${owed} pages are asked for at once`)
    // a client's peer may ask too early; that it may not ask at all says whoever serves
    served.tell(sink => sink.onWant(numbers))
  }

  /** A PAGE of the peer, in its order. */
  deliverPage(payload: Uint8Array) {
    const { role, served } = this.host
    const page = parsePage(payload)
    if (!page) return this.host.fault('PROTOCOL_SYNTAX', `PAGE of ${payload.length} bytes`)
    if (role === 'client') return this.host.fault('PROTOCOL_STATE', 'PAGE from the server')
    served.sink.onPage(page.number, page.page && keptPayload(page.page))
  }

  /** The session is over: nothing more is asked or answered. */
  clear(): void {
    this.over = true
  }
}
