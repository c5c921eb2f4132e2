/**
 * One link session without sockets or clock: flows, credit, order over several connections, acknowledgement, resume,
 * windows and fairness. The layer above owns the sockets, moves bytes with `receive` and `pull`, and calls `tick`.
 */

import { ProxyError } from '../errors.ts'
import type { Frame } from '../wan/frames.ts'
import type { FlowInfo, SessionOptions, SessionState, SessionStats } from './api.ts'

const todo = (): never => {
  throw new ProxyError('INTERNAL', 'not written yet', undefined, 'wait')
}

export class Session {
  constructor(_options: SessionOptions) {}

  get state(): SessionState {
    return todo()
  }

  /** Highest sequence number up to which all frames of the peer have arrived: `received` of our next hello. */
  get received(): number {
    return todo()
  }

  /**
   * A connection has exchanged its hellos. A second one with the same number replaces the first (which is detached).
   * @param connection 0..15
   * @param peerReceived `received` of the peer's hello
   * @throws ProxyError PROTOCOL_STATE where the peer claims frames that were never sent; the session is dead then
   */
  attach(_connection: number, _peerReceived: number, _nowMs: number): void {}

  /** A connection is gone: what it carried and was not acknowledged goes out again on others, or after the next attach. */
  detach(_connection: number, _nowMs: number): void {}

  /**
   * One frame that arrived, from FrameDecoder. Keeps `frame.payload` (not `frame`), so the chunk it lies in must not be
   * written again. A peer that breaks the protocol ends the session: onDead, and a BYE to pull on every connection.
   */
  receive(_connection: number, _frame: Frame, _nowMs: number): void {}

  /** Heartbeats, dead connections, delayed ACKs, patience, rate. Call at `nextTickMs`; earlier or later does no harm. */
  tick(_nowMs: number): void {}

  /** When `tick` is to be called next; Infinity: never, unless onWork comes. */
  get nextTickMs(): number {
    return todo()
  }

  /**
   * Takes the next bytes to write on a connection. Call it whenever the socket takes bytes; write all of it, in order.
   * @param out views to write are appended: frame heads (never written again) and parts of what was handed in (no copy)
   * @param maxBytes stops once so many are out: the last frame may go up to 16400 bytes beyond
   * @returns bytes appended; 0: nothing now, wait for onWork
   */
  pull(_connection: number, _maxBytes: number, _nowMs: number, _out: Uint8Array[]): number {
    return todo()
  }

  /** True once this connection has pulled its last byte (BYE): write out, then close it. */
  isDone(_connection: number): boolean {
    return todo()
  }

  /**
   * Client only: opens a flow.
   * @returns its number
   * @throws ProxyError LIMIT_EXCEEDED where FLOWS_MAX are open; PROTOCOL_STATE where the peer drains or the session ends
   */
  openFlow(_info: FlowInfo): number {
    return todo()
  }

  /** Bytes of the flow as they are; the session keeps the view until they are acknowledged. At most `dataRoom(flow)`. */
  sendData(_flow: number, _bytes: Uint8Array): void {}

  /**
   * A whole batch (protocol.md §4). Takes effect after all batches handed in before, of any flow. The views are kept
   * until it is acknowledged: do not write to them again.
   * @param rawLength bytes of the channel that it stands for: at most `credit(flow)`
   */
  sendBatch(_flow: number, _rawLength: number, _parts: readonly Uint8Array[]): void {}

  /** The local QEMU closed its direction: FIN after all that was handed in. Nothing may be sent on the flow after it. */
  finFlow(_flow: number): void {}

  /**
   * Tears the flow down in both directions: after the batches handed in, without the data. The last call for a flow; also
   * the answer to onReset. What still arrives for the flow is dropped, except batches.
   */
  resetFlow(_flow: number, _code: number, _text: string): void {}

  /** Raw bytes that the peer still lets us hand in for this flow. 0 for a flow that is gone. */
  credit(_flow: number): number {
    return todo()
  }

  /** Bytes that may be given to `sendData` now: `credit`, and what the lane of waiting data has room for. */
  dataRoom(_flow: number): number {
    return todo()
  }

  /** The local QEMU's socket took so many raw bytes of the flow: the peer may send as many more. */
  consumed(_flow: number, _bytes: number): void {}

  /** Credit window given to the peer for this flow; grows by itself while the local QEMU keeps up. Never shrinks. */
  setWindow(_flow: number, _bytes: number): void {}

  /** True while a further batch should be encoded and handed in. Later is better: what is queued is parked. */
  bulkWanted(_nowMs: number): boolean {
    return todo()
  }

  /**
   * Which flow to encode a batch of next.
   * @param candidates flows that have bytes to encode and credit for them
   * @returns one of them, or -1 where there is none
   */
  pickFlow(_candidates: readonly number[], _nowMs: number): number {
    return todo()
  }

  /** Marks a flow whose bytes block a guest (postcopy, preempt): pickFlow takes it first. */
  setUrgent(_flow: number, _urgent: boolean): void {}

  /** Caps what this side sends, bytes a second over all connections; Infinity: no cap. */
  setRate(_bytesPerSecond: number): void {}

  /** Tells the peer that this side opens and takes no new flows; running ones go on. */
  drain(): void {}

  /** Ends the session: takes nothing more in, delivers all that was handed in, then sends BYE 0. */
  close(_nowMs: number): void {}

  /** Ends the session at once, with BYE and onDead. A batch that failed to expand: `abort(error)`. */
  abort(_error: ProxyError, _nowMs: number): void {}

  /** Flows that have not ended. */
  get flowCount(): number {
    return todo()
  }

  stats(): SessionStats {
    return todo()
  }
}
