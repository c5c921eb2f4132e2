/** One flow: the states of its two directions, its credit both ways, and what waits of it. */

import { assert } from '../errors.ts'
import type { FlowInfo } from '../wan/bodies.ts'
import type { Candidate, Share } from './fairness.ts'
import type { ReceiveWindow } from './receive-window.ts'
import { type ReceiveState, SEND_TABLE, type SendInput, type SendState } from './states.ts'

export class Flow implements Candidate {
  readonly number: number
  readonly info: FlowInfo
  readonly share: Share
  send: SendState = 'open'
  receive: ReceiveState
  /** The layer above was never told of it: this side refused it. */
  untold = false
  /** Client: sequence number of its OPEN; 0 before it is sent. */
  openSequence = 0
  /** Server: of the first CREDIT, with which it took the flow; likewise. */
  takenSequence = 0
  urgent = false
  turn = 0

  // What this side sends.
  creditTotal: number
  rawOut = 0
  /** Its entries in the bulk lane: while there are any, what follows must wait behind them. */
  bulkEntries = 0
  /** Those of them that are batches. */
  queuedBatches = 0
  wanOut = 0

  // What the peer sends.
  readonly window: ReceiveWindow
  wanIn = 0

  /** @param credit that this side has for it at its start */
  constructor(
    number: number,
    info: FlowInfo,
    share: Share,
    receive: ReceiveState,
    credit: number,
    window: ReceiveWindow,
  ) {
    this.number = number
    this.info = info
    this.share = share
    this.receive = receive
    this.creditTotal = credit
    this.window = window
  }

  /** This side hands in something. */
  enterSend(input: SendInput): void {
    const next = SEND_TABLE[this.send][input]
    assert(next !== null, `${input} for flow ${this.number} after ${this.send}`)
    this.send = next
  }

  /** Raw bytes that may still be handed in. */
  get credit(): number {
    return this.send === 'open' && this.receive !== 'reset' ? this.creditTotal - this.rawOut : 0
  }

  /** So many raw bytes are handed in. */
  spend(bytes: number): void {
    this.rawOut += bytes
    assert(this.rawOut <= this.creditTotal, `flow ${this.number} was handed more than its credit`)
  }

  /** Whether the peer still sends on it, and this side wants it. */
  get isListening(): boolean {
    return (this.receive === 'open' || this.receive === 'asked') && this.send !== 'reset'
  }
}
