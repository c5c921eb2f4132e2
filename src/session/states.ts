/**
 * The states of a session and of each direction of a flow, as tables: what an input does in each state. null: the input
 * is not allowed there. From the peer that is PROTOCOL_STATE, from this side a defect. A test walks every pair.
 */

/** State of a whole session; the table is SESSION_TABLE. */
export type SessionState =
  | 'opening' // no connection has been attached yet
  | 'live' // at least one connection
  | 'broken' // no connection; the patience runs
  | 'closing' // as live, after close(): what is queued and unacknowledged goes out, then BYE 0
  | 'stranded' // as broken, after close()
  | 'closed' // nothing goes on; connections may have a last BYE to pull

/** What moves a session. */
export type SessionInput =
  | 'attach' // a connection has exchanged its hellos
  | 'lose' // the last connection is gone
  | 'close' // this side wants to end in order
  | 'flushed' // nothing is queued, nothing unacknowledged
  | 'bye' // the peer ended the session
  | 'die' // a broken rule, abort, or no connection for longer than the patience

export const SESSION_TABLE: Record<SessionState, Record<SessionInput, SessionState | null>> = {
  opening: { attach: 'live', lose: null, close: 'stranded', flushed: null, bye: null, die: 'closed' },
  live: { attach: 'live', lose: 'broken', close: 'closing', flushed: null, bye: 'closed', die: 'closed' },
  broken: { attach: 'live', lose: null, close: 'stranded', flushed: null, bye: null, die: 'closed' },
  closing: { attach: 'closing', lose: 'stranded', close: 'closing', flushed: 'closed', bye: 'closed', die: 'closed' },
  stranded: { attach: 'closing', lose: null, close: 'stranded', flushed: 'closed', bye: null, die: 'closed' },
  // A connection that comes too late is told BYE; what was under way when the session ended is not an error.
  closed: { attach: 'closed', lose: 'closed', close: 'closed', flushed: null, bye: 'closed', die: 'closed' },
}

/** The direction in which this side sends: what was handed in last. */
export type SendState = 'open' | 'fin' | 'reset'

/** What this side hands in for a flow. */
export type SendInput = 'data' | 'batch' | 'fin' | 'reset'

export const SEND_TABLE: Record<SendState, Record<SendInput, SendState | null>> = {
  open: { data: 'open', batch: 'open', fin: 'fin', reset: 'reset' },
  fin: { data: null, batch: null, fin: null, reset: 'reset' },
  // Sockets tell late: data and FIN after a reset are dropped. A batch is not, it has changed the pool.
  reset: { data: 'reset', batch: null, fin: 'reset', reset: 'reset' },
}

/**
 * The direction in which the peer sends, as its frames have come; `none`: no such flow (any more); `asked`: the client
 * has opened it, and the server has not said yet whether it takes it.
 */
export type ReceiveState = 'none' | 'asked' | 'open' | 'fin' | 'reset'

/** A frame of the peer for a flow. */
export type ReceiveInput = 'open' | 'data' | 'batch' | 'fin' | 'reset' | 'credit' | 'end'

/**
 * END has conditions of its own beside the table: it goes to the client, after both directions have ended. A server
 * drops RESET and CREDIT for flows that have ended (the client had not seen END yet); `none` here is one never opened.
 */
export const RECEIVE_TABLE: Record<ReceiveState, Record<ReceiveInput, ReceiveState | null>> = {
  none: { open: 'open', data: null, batch: null, fin: null, reset: null, credit: null, end: null },
  asked: { open: null, data: 'open', batch: 'open', fin: 'fin', reset: 'reset', credit: 'open', end: null },
  open: { open: null, data: 'open', batch: 'open', fin: 'fin', reset: 'reset', credit: 'open', end: null },
  fin: { open: null, data: null, batch: null, fin: null, reset: 'reset', credit: 'fin', end: 'none' },
  reset: { open: null, data: null, batch: null, fin: null, reset: null, credit: null, end: 'none' },
}
