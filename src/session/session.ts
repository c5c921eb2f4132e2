/**
 * One link session without sockets or clock: flows, credit, order over several connections, acknowledgement, resume,
 * windows and fairness (protocol.md §3). The layer above owns the sockets, moves bytes with `receive` and `pull`, and
 * calls `tick`.
 *
 * A frame gets its sequence number when it is first pulled, so that what is urgent overtakes what waits. It is kept
 * until it is acknowledged, in a ring with a slot for each number; so is what arrives ahead of a missing frame.
 */

import { readU64 } from '../bytes/big-endian.ts'
import { assert, type ErrorCode, ProxyError } from '../errors.ts'
import {
  ACK_BYTES,
  ANSWERS_FREE_BYTES,
  BATCH_RAW_BYTES_MAX,
  BATCH_WIRE_BYTES_MAX,
  CONNECTION_STUCK_MS,
  CONNECTIONS_MAX,
  CREDIT_FLOW_BYTES_MAX,
  CREDIT_INITIAL_BYTES,
  CREDIT_TAKEN_BYTES,
  FLOWS_MAX,
  FLOWS_UNENDED_MAX,
  FRAME_PAYLOAD_BYTES_MAX,
  HELD_FRAME_BYTES,
  HELD_FREE_BYTES,
  MEMORY_BUDGET_BYTES,
  OPENS_BURST,
  OPENS_PER_SECOND,
  PATIENCE_MS,
  QUEUE_TARGET_MS,
  UNACKED_BYTES_MAX,
  UNACKED_FRAMES_MAX,
  WINDOW_BYTES_MIN,
} from '../limits.ts'
import { batchRawLength } from '../wan/batch-head.ts'
import { encodeNumbers, encodeOpen, encodeReason, parseOpen, reasonCode, reasonText } from '../wan/bodies.ts'
import { wireCode } from '../wan/codes.ts'
import { type Frame, writeHead } from '../wan/frames.ts'
import { CODE, FLAG_MORE, FRAME, FRAME_HEAD_BYTES, FRAME_OPTIONAL, SEQUENCE_END } from '../wan/wire.ts'
import type { FlowInfo, Role, SessionOptions, SessionSink, SessionState, SessionStats } from './api.ts'
import { Deque } from './deque.ts'
import { type Candidate, Fairness, type Share } from './fairness.ts'
import { FrameRing, type Payload } from './frame-ring.ts'
import { MemoryBudget, type MemoryShare } from './memory-budget.ts'
import { Path } from './path.ts'
import { RATE_DEBT_BYTES, RateCap } from './rate-cap.ts'
import {
  RECEIVE_TABLE,
  type ReceiveInput,
  type ReceiveState,
  SEND_TABLE,
  SESSION_TABLE,
  type SendInput,
  type SendState,
  type SessionInput,
} from './states.ts'

/** Bulk leaves an eighth of the store to urgent frames. */
const BULK_BYTES_MAX = (UNACKED_BYTES_MAX / 8) * 7
const BULK_FRAMES_MAX = (UNACKED_FRAMES_MAX / 8) * 7
const FRAME_BYTES_MAX = FRAME_HEAD_BYTES + FRAME_PAYLOAD_BYTES_MAX
/** Payloads up to this are copied behind their head: one view less for the socket costs more than the copy. */
const COPY_BYTES_MAX = 256
/** Heads are cut from slabs of this size; a slab is left to the collector once no socket holds a part of it. */
const SLAB_BYTES = 65536
/** Batches that should lie ready while the windows are full, so that an ACK finds something to send. */
const READY_BYTES = 2 * FRAME_BYTES_MAX
/** Part of the queue target that batches may come late by, so that they need not be small. */
const LATE_SHARE = 0.2
/** While there are connections tick is called this often; where it comes later by the second, this process stood still. */
const TICK_INTERVAL_MS = 1000
const STOOD_STILL_MS = 1500
/** Parts of a batch: all but the last are full. */
const PARTS_MAX = Math.ceil(BATCH_WIRE_BYTES_MAX / FRAME_PAYLOAD_BYTES_MAX)

// Where a frame is that was sent and not acknowledged; else the number of its connection.
const OWNER_RESEND = -1
const OWNER_ARRIVED = -2

const EMPTY = new Uint8Array(0)

class Flow implements Candidate {
  readonly number: number
  readonly info: FlowInfo
  readonly share: Share
  send: SendState = 'open'
  receive: ReceiveState

  // What this side sends.
  creditTotal: number
  rawOut = 0
  /** Its entries in the bulk lane: while there are any, what follows must wait behind them. */
  bulkEntries = 0
  /** Those of them that are batches. */
  queuedBatches = 0
  /** The layer above was never told of it: this side refused it. */
  untold = false
  /** Client: sequence number of its OPEN; 0 before it is sent. */
  openSequence = 0
  urgent = false
  turn = 0
  wanOut = 0

  // What the peer sends.
  rawIn = 0
  consumed = 0
  window: number
  /** The total that the peer has been told. */
  granted: number
  creditDue = false
  epochMs = 0
  epochBytes = 0
  wanIn = 0

  /**
   * @param credit that this side has for it at its start
   * @param window that the peer has
   */
  constructor(number: number, info: FlowInfo, share: Share, receive: ReceiveState, credit: number, window: number) {
    this.number = number
    this.info = info
    this.share = share
    this.receive = receive
    this.creditTotal = credit
    this.window = window
    this.granted = window
  }
}

/** Something handed in that becomes one or more frames. */
interface Entry {
  readonly type: number
  readonly flow: Flow
  readonly parts: readonly Uint8Array[]
  /** Bytes not sent yet, and where they begin. */
  left: number
  part: number
  offset: number
}

export class Session {
  private readonly role: Role
  private readonly sink: SessionSink
  private readonly patienceMs: number
  /** Credit that each flow to this side begins with: `credit` of our hello. */
  readonly initialCredit: number
  private targetMs: number
  private nowMs = 0
  private sessionState: SessionState = 'opening'
  private brokenSince = 0
  /**
   * When something was last acknowledged, or first waited for it. Time without any connection does not count, which has
   * a patience of its own.
   */
  private progressMs = 0
  private tickedMs = 0
  private byeCode: number = CODE.NONE
  private byeText = ''

  private readonly paths: (Path | null)[] = new Array(CONNECTIONS_MAX).fill(null)
  private pathCount = 0

  // Flows.
  private readonly flows = new Map<number, Flow>()
  private readonly fairness = new Fairness()
  /** Flow numbers that the client has opened at least once: frames for them may come late. */
  private readonly opened = new Uint8Array(65536 / 8)
  private flowNext = 1
  /** ENDs that the client has not acknowledged: its flows count as open until it knows. */
  private endsUntold = 0
  /** OPENs that may still be taken at once; below 0: how many were refused. */
  private opensLeft = OPENS_BURST
  private opensAtMs = 0
  private draining = false
  private peerDraining = false
  /** Flows of a session that has ended: the server neither took nor refused them, nor acknowledged their OPEN. */
  private unheard: ReadonlySet<number> = new Set()
  private readonly memory: MemoryShare
  /** What flows to the peer begin with; 0 before its hello. */
  private peerCredit = 0

  // Lanes.
  private readonly urgentLane = new Deque<Entry>()
  private readonly bulkLane = new Deque<Entry>()
  private readonly creditLane = new Deque<Flow>()
  /** Bytes of DATA and batches that wait, and those of DATA among them. */
  private queuedBytes = 0
  private queuedData = 0
  /** Flows to which dataRoom gave less than they wanted because of what waits or is kept: told when there is more. */
  private readonly starved = new Set<Flow>()
  /** Bytes of DATA that wait or are kept until they are acknowledged, and what the budget was asked for them. */
  private dataBytes = 0
  private dataTaken = 0

  // Sent and not acknowledged.
  private lastSequence = 0
  private acked = 0
  private unackedBytes = 0
  private readonly sent = new FrameRing()
  /** Sequence numbers to send again, ascending, from resendAt on. */
  private resend: number[] = []
  private resendAt = 0
  private resendBytes = 0

  // Arrived ahead of a missing frame.
  private receivedSequence = 0
  private readonly held = new FrameRing()
  private heldBytes = 0
  private heldFrames = 0
  /** What the budget was asked for them. */
  private heldTaken = 0

  // The batch whose parts are coming.
  private batchFlow = 0
  private batchParts: Uint8Array[] = []
  private batchBytes = 0

  private slab = new Uint8Array(0)
  private slabUsed = 0

  private readonly rate: RateCap

  private resentBytes = 0
  private duplicates = 0

  constructor(options: SessionOptions) {
    this.role = options.role
    this.sink = options.sink
    this.patienceMs = options.patienceMs ?? PATIENCE_MS
    this.targetMs = options.queueTargetMs ?? QUEUE_TARGET_MS
    this.rate = new RateCap(options.rate ?? Number.POSITIVE_INFINITY)
    this.initialCredit = options.initialCredit ?? CREDIT_INITIAL_BYTES
    this.memory = options.memory ?? new MemoryBudget(MEMORY_BUDGET_BYTES).share('')
  }

  get state(): SessionState {
    return this.sessionState
  }

  /** Highest sequence number up to which all frames of the peer have arrived: `received` of our next hello. */
  get received(): number {
    return this.receivedSequence
  }

  /** Flows that have not ended. */
  get flowCount(): number {
    return this.flows.size
  }

  // Connections ------------------------------------------------------------------------------------------------------

  /**
   * A connection has exchanged its hellos. A second one with the same number replaces the first (which is detached).
   * @param connection 0..15
   * @param peerReceived `received` of the peer's hello. Where the peer claims frames that were never sent the session is
   *   dead then (onDead)
   * @param peerCredit `credit` of the peer's hello; that of the first hello counts
   */
  attach(connection: number, peerReceived: number, nowMs: number, peerCredit = CREDIT_INITIAL_BYTES): void {
    this.nowMs = nowMs
    assert(connection >= 0 && connection < CONNECTIONS_MAX, `connection ${connection}`)
    const old = this.paths[connection]
    if (old) this.dropPath(old)
    if (this.pathCount === 0) this.tickedMs = nowMs
    if (this.isBroken) this.progressMs += nowMs - this.brokenSince
    const path = new Path(connection, this.targetMs, nowMs)
    path.drainDue = this.draining
    this.paths[connection] = path
    this.pathCount++
    this.enter('attach')
    if (this.sessionState === 'closed') path.done = this.byeCode < 0
    else if (peerReceived > this.lastSequence)
      this.fault('PROTOCOL_STATE', 'the peer claims frames that were never sent')
    else {
      this.acknowledge(peerReceived)
      if (this.peerCredit === 0) this.learnCredit(peerCredit)
    }
    this.sink.onWork()
  }

  /** The peer's first hello: flows that were opened before it can begin. */
  private learnCredit(peerCredit: number): void {
    this.peerCredit = peerCredit
    for (const flow of this.flows.values()) {
      flow.creditTotal += peerCredit
      this.sink.onCredit(flow.number)
    }
  }

  /** A connection is gone: what it carried and was not acknowledged goes out again on others, or after the next attach. */
  detach(connection: number, nowMs: number): void {
    this.nowMs = nowMs
    const path = this.paths[connection]
    if (!path) return
    this.dropPath(path)
    if (this.pathCount === 0) {
      this.enter('lose')
      this.brokenSince = nowMs
    }
    this.sink.onWork()
  }

  private dropPath(path: Path): void {
    this.paths[path.connection] = null
    this.pathCount--
    const again: number[] = []
    path.eachUndelivered(sequence => {
      const slot = sequence & this.sent.mask
      if (sequence <= this.acked || this.sent.owner[slot] !== path.connection) return
      this.sent.owner[slot] = OWNER_RESEND
      this.resendBytes += FRAME_HEAD_BYTES + this.sent.length[slot]!
      again.push(sequence)
    })
    if (again.length === 0) return
    this.resend = this.resend
      .slice(this.resendAt)
      .concat(again)
      .sort((a, b) => a - b)
    this.resendAt = 0
  }

  // Time -------------------------------------------------------------------------------------------------------------

  /** Heartbeats, dead connections, delayed ACKs, patience, rate. Call at `nextTickMs`; earlier or later does no harm. */
  tick(nowMs: number): void {
    this.nowMs = nowMs
    if (this.sessionState === 'closed') return
    const stillMs = nowMs - this.tickedMs - TICK_INTERVAL_MS
    this.tickedMs = nowMs
    if (stillMs > STOOD_STILL_MS) this.progressMs = Math.min(this.progressMs + stillMs, nowMs)
    let work = false
    for (const path of this.paths) {
      if (!path) continue
      // What came while this process was stopped lies unread in the sockets: that time proves nothing.
      if (stillMs > STOOD_STILL_MS) path.stoodStill(stillMs, nowMs)
      if (nowMs >= path.deadMs) {
        this.giveUp(path, `nothing arrived for ${Math.round(nowMs - path.heardMs)} ms`)
        continue
      }
      if (nowMs >= path.stuckMs) {
        this.giveUp(
          path,
          `nothing of what was sent has arrived for ${CONNECTION_STUCK_MS} ms; does the path take large packets?`,
        )
        continue
      }
      if (nowMs >= path.pingDueMs && !path.pingDue) {
        path.pingDue = true
        work = true
      }
      if (nowMs >= path.ackDueMs) {
        path.ackDue = true
        path.ackDueMs = Number.POSITIVE_INFINITY
        work = true
      }
    }
    if (nowMs >= this.rate.wakeMs) {
      this.rate.wakeMs = Number.POSITIVE_INFINITY
      work = true
    }
    if (this.isBroken && nowMs - this.brokenSince >= this.patienceMs) {
      this.fault('PEER_LOST', `no connection to the peer for ${Math.round(this.patienceMs / 1000)} s`)
    } else if (!this.isBroken && this.acked < this.lastSequence && nowMs - this.progressMs >= this.patienceMs) {
      const what = `the peer acknowledged nothing for ${Math.round(this.patienceMs / 1000)} s, though it can be reached`
      this.fault('PEER_LOST', what)
    }
    if (work) this.sink.onWork()
  }

  /** When `tick` is to be called next; Infinity: never, unless onWork comes. */
  get nextTickMs(): number {
    if (this.sessionState === 'closed') return Number.POSITIVE_INFINITY
    let next = this.rate.wakeMs
    for (const path of this.paths) {
      if (!path) continue
      next = Math.min(next, path.deadMs, path.ackDueMs)
      if (!path.pingDue) next = Math.min(next, path.pingDueMs)
    }
    if (this.pathCount > 0) next = Math.min(next, this.tickedMs + TICK_INTERVAL_MS)
    return this.isBroken ? Math.min(next, this.brokenSince + this.patienceMs) : next
  }

  private get isBroken(): boolean {
    return this.sessionState === 'broken' || this.sessionState === 'stranded'
  }

  // What arrives -----------------------------------------------------------------------------------------------------

  /**
   * One frame that arrived, from FrameDecoder. Keeps `frame.payload` (not `frame`), so the chunk it lies in must not be
   * written again. A peer that breaks the protocol ends the session: onDead, and a BYE to pull on every connection.
   */
  receive(connection: number, frame: Frame, nowMs: number) {
    this.nowMs = nowMs
    const path = this.paths[connection]
    if (!path || this.sessionState === 'closed') return // came behind the end
    path.heardMs = nowMs
    const { type, sequence, payload } = frame
    if (sequence !== 0) {
      if (type === 0) return this.fault('PROTOCOL_SYNTAX', 'frame of type 0')
      if (type >= FRAME.ACK && type < FRAME_OPTIONAL) {
        return this.fault('PROTOCOL_SYNTAX', `frame of type ${type} with a sequence number`)
      }
      this.receiveSequenced(path, type, frame.flags, frame.flow, sequence, payload)
      return
    }
    switch (type) {
      case FRAME.ACK:
        return this.receiveAck(path, payload)
      case FRAME.PING:
        path.pong = payload.slice()
        return this.sink.onWork()
      case FRAME.PONG:
        if (readU64(payload, 0) !== path.pingCount) return
        path.ponged(nowMs)
        this.tellRoom()
        return this.sink.onWork() // its window may have grown
      case FRAME.BYE:
        return this.receiveBye(payload)
      case FRAME.DRAIN:
        if (this.peerDraining) return
        this.peerDraining = true
        return this.sink.onDrain()
      default:
        if (type < FRAME_OPTIONAL) this.fault('PROTOCOL_SYNTAX', `frame of type ${type} without a sequence number`)
    }
  }

  private receiveSequenced(
    path: Path,
    type: number,
    flags: number,
    flow: number,
    sequence: number,
    payload: Uint8Array,
  ) {
    const size = FRAME_HEAD_BYTES + payload.length
    path.arrivedFrames++
    path.untoldBytes += size
    if (path.untoldBytes >= ACK_BYTES) {
      path.ackDue = true
      this.sink.onWork()
    } else if (path.ackDueMs === Number.POSITIVE_INFINITY && !path.ackDue) {
      path.ackDueMs = this.nowMs + path.ackDelayMs
      this.sink.onWork() // nextTickMs has come nearer
    }
    if (sequence <= this.receivedSequence) {
      this.duplicates++
      return
    }
    if (sequence !== this.receivedSequence + 1) {
      if (sequence > this.receivedSequence + UNACKED_FRAMES_MAX) {
        return this.fault('LIMIT_EXCEEDED', `frame ${sequence} came before frame ${this.receivedSequence + 1}`)
      }
      const { held } = this
      held.span(this.receivedSequence, sequence)
      const slot = sequence & held.mask
      if (held.type[slot] !== 0) {
        this.duplicates++
        return
      }
      if (this.heldBytes + size > UNACKED_BYTES_MAX) {
        return this.fault('LIMIT_EXCEEDED', `${this.heldBytes + size} bytes came ahead of a missing frame`)
      }
      this.heldBytes += size
      this.heldFrames++
      if (!this.countHeld()) {
        // Others have the memory. What came is not acknowledged, and so comes again; the missing frame with it.
        this.heldBytes -= size
        this.heldFrames--
        return this.giveUp(path, `its frames came ${this.heldBytes} bytes ahead of a missing one`)
      }
      held.type[slot] = type
      held.flags[slot] = flags
      held.flow[slot] = flow
      held.payload[slot] = compact(payload)
      return
    }
    this.receivedSequence = sequence
    this.deliver(type, flags, flow, payload)
    if (this.heldBytes === 0) return
    for (;;) {
      const { held } = this
      const slot = (this.receivedSequence + 1) & held.mask
      const next = held.type[slot]!
      // A sink may have ended the session.
      if (next === 0 || this.ended) return
      const body = held.payload[slot] as Uint8Array
      held.free(slot)
      this.heldBytes -= FRAME_HEAD_BYTES + body.length
      this.heldFrames--
      this.countHeld()
      this.receivedSequence++
      this.deliver(next, held.flags[slot]!, held.flow[slot]!, body)
    }
  }

  /** What is held has changed. @returns false where there is no memory for it */
  private countHeld(): boolean {
    const need = Math.max(0, this.heldBytes + this.heldFrames * HELD_FRAME_BYTES - HELD_FREE_BYTES)
    if (need <= this.heldTaken) {
      this.memory.give(this.heldTaken - need)
      this.heldTaken = need
      return true
    }
    if (!this.memory.take(need - this.heldTaken)) return false
    this.heldTaken = need
    return true
  }

  /** Ends a connection that does not do its work; its frames go out again on another. */
  private giveUp(path: Path, why: string): void {
    const error = new ProxyError(
      'PEER_LOST',
      `connection ${path.connection} is given up: ${why}`,
      undefined,
      'its frames are sent again on another',
    )
    this.detach(path.connection, this.nowMs)
    this.sink.onLost(path.connection, error)
  }

  private get ended(): boolean {
    return this.sessionState === 'closed'
  }

  private deliver(type: number, flags: number, number: number, payload: Uint8Array) {
    if (type === FRAME.OPEN) return this.deliverOpen(number, payload)
    if (type > FRAME.END) {
      // Optional frames of later versions may be sequenced: they keep their place and do nothing.
      if (type < FRAME_OPTIONAL) this.fault('PROTOCOL_SYNTAX', `frame of type ${type}`)
      return
    }
    const flow = this.flows.get(number)
    if (!flow) {
      const late = type === FRAME.RESET || type === FRAME.CREDIT
      if (late && this.role === 'server' && ((this.opened[number >> 3]! >> (number & 7)) & 1) === 1) return // the client had not seen END yet
      return this.fault('PROTOCOL_STATE', `frame of type ${type} for flow ${number}, which is not open`)
    }
    flow.wanIn += FRAME_HEAD_BYTES + payload.length
    switch (type) {
      case FRAME.DATA: {
        if (!this.enterReceive(flow, 'data') || !this.takeCredit(flow, payload.length)) return
        if (flow.send !== 'reset') this.sink.onData(number, keepable(payload))
        return
      }
      case FRAME.BATCH:
        return this.deliverPart(flow, flags, payload)
      case FRAME.FIN:
        if (!this.enterReceive(flow, 'fin')) return
        if (flow.send !== 'reset') this.sink.onFin(number)
        return this.endFlow(flow)
      case FRAME.RESET: {
        const code = reasonCode(payload)
        const refused = flow.receive === 'asked' && code === CODE.SHUTDOWN
        if (!this.enterReceive(flow, 'reset', !refused)) return
        if (flow.send !== 'reset') {
          if (refused && this.sink.onRefused) this.sink.onRefused(number, reasonText(payload))
          else this.sink.onReset(number, code, reasonText(payload))
        }
        return this.endFlow(flow)
      }
      case FRAME.CREDIT: {
        if (!this.enterReceive(flow, 'credit')) return
        const total = readU64(payload, 0)
        if (total < flow.creditTotal) return this.fault('PROTOCOL_STATE', `flow ${number} loses credit`)
        flow.creditTotal = total
        if (flow.send === 'open') this.sink.onCredit(number)
        return
      }
      case FRAME.END: {
        if (this.role === 'server') return this.fault('PROTOCOL_STATE', 'END from the client')
        if (flow.send === 'open') return this.fault('PROTOCOL_STATE', `END for flow ${number}, which has not ended`)
        if (!this.enterReceive(flow, 'end')) return
        this.forget(flow)
        return this.sink.onEnd(number)
      }
    }
  }

  private deliverOpen(number: number, payload: Uint8Array) {
    if (this.role === 'client') return this.fault('PROTOCOL_STATE', 'OPEN from the server')
    if (number === 0) return this.fault('PROTOCOL_SYNTAX', 'OPEN for flow 0')
    const existing = this.flows.get(number)
    if (RECEIVE_TABLE[existing ? existing.receive : 'none'].open === null) {
      return this.fault('PROTOCOL_STATE', `OPEN for flow ${number}, which is open`)
    }
    const info = parseOpen(payload)
    if (!info) return this.fault('PROTOCOL_SYNTAX', `OPEN for flow ${number} is malformed`)
    if (this.flows.size >= FLOWS_MAX) return this.fault('LIMIT_EXCEEDED', `more than ${FLOWS_MAX} flows`)
    if (this.flows.size + this.endsUntold >= FLOWS_UNENDED_MAX) {
      return this.fault('LIMIT_EXCEEDED', `${this.endsUntold} flows have ended, and the peer does not acknowledge it`)
    }
    this.refillOpens()
    if (--this.opensLeft < -OPENS_BURST) return this.fault('LIMIT_EXCEEDED', 'OPEN over and over')
    const flow = this.addFlow(number, info)
    flow.wanIn += FRAME_HEAD_BYTES + payload.length
    if (this.sessionState !== 'live' || (this.draining && !this.isRunning(flow))) {
      flow.untold = true
      this.resetFlow(number, CODE.SHUTDOWN, 'takes no new migrations')
    } else if (this.opensLeft < 0) {
      flow.untold = true
      this.resetFlow(number, CODE.LIMIT_EXCEEDED, 'too many flows within a short time')
    } else {
      this.growWindow(flow, CREDIT_TAKEN_BYTES)
      this.enqueue(FRAME.CREDIT, flow, [EMPTY])
      this.sink.onOpen(number, info)
    }
  }

  private refillOpens(): void {
    const more = ((this.nowMs - this.opensAtMs) * OPENS_PER_SECOND) / 1000
    this.opensLeft = Math.min(OPENS_BURST, this.opensLeft + more)
    this.opensAtMs = this.nowMs
  }

  /** Whether another flow of the same migration is open that was neither reset nor refused. */
  private isRunning(flow: { readonly info: FlowInfo }): boolean {
    for (const other of this.flows.values()) {
      const same = other !== flow && other.info.migration === flow.info.migration
      if (same && other.send !== 'reset' && other.receive !== 'reset') return true
    }
    return false
  }

  private deliverPart(flow: Flow, flags: number, payload: Uint8Array) {
    const parts = this.batchParts
    if (parts.length === 0) {
      if (!this.enterReceive(flow, 'batch')) return
      this.batchFlow = flow.number
    } else if (this.batchFlow !== flow.number) {
      return this.fault('PROTOCOL_SYNTAX', 'a batch within a batch')
    }
    const more = (flags & FLAG_MORE) !== 0
    if (more && payload.length !== FRAME_PAYLOAD_BYTES_MAX) {
      return this.fault('PROTOCOL_SYNTAX', `part of a batch with ${payload.length} bytes`)
    }
    this.batchBytes += payload.length
    if (this.batchBytes > BATCH_WIRE_BYTES_MAX || parts.length >= PARTS_MAX) {
      return this.fault('LIMIT_EXCEEDED', `batch of more than ${BATCH_WIRE_BYTES_MAX} bytes`)
    }
    parts.push(keepable(payload))
    if (more) return
    this.batchParts = []
    this.batchBytes = 0
    const rawLength = rawLengthOf(parts)
    if (rawLength < 1) return this.fault('BATCH_FORMAT', 'a batch does not begin with its format and raw length')
    if (rawLength > BATCH_RAW_BYTES_MAX) return this.fault('LIMIT_EXCEEDED', `batch of ${rawLength} raw bytes`)
    if (this.takeCredit(flow, rawLength)) this.sink.onBatch(flow.number, parts, rawLength)
  }

  private takeCredit(flow: Flow, bytes: number): boolean {
    flow.rawIn += bytes
    if (flow.rawIn <= flow.granted) return true
    this.fault('PROTOCOL_STATE', `flow ${flow.number} sent ${flow.rawIn - flow.granted} bytes beyond its credit`)
    return false
  }

  /** @param takes whether the frame says that the server has taken the flow */
  private enterReceive(flow: Flow, input: ReceiveInput, takes = true): boolean {
    const next = RECEIVE_TABLE[flow.receive][input]
    if (next === null) {
      this.fault('PROTOCOL_STATE', `${input.toUpperCase()} for flow ${flow.number} after ${flow.receive.toUpperCase()}`)
      return false
    }
    // A part of the batch may still be missing: nothing may end the flow in the middle of it.
    if (this.batchParts.length > 0 && this.batchFlow === flow.number && input !== 'credit') {
      this.fault('PROTOCOL_SYNTAX', `${input.toUpperCase()} for flow ${flow.number} within its batch`)
      return false
    }
    const asked = flow.receive === 'asked'
    flow.receive = next
    if (asked && takes && flow.send !== 'reset') this.sink.onTaken?.(flow.number)
    return true
  }

  private receiveAck(path: Path, payload: Uint8Array) {
    const sequence = readU64(payload, 0)
    const frames = readU64(payload, 8)
    if (sequence < 0 || sequence > this.lastSequence || frames < path.deliveredFrames || frames > path.sentFrames) {
      return this.fault('PROTOCOL_STATE', `ACK ${sequence} and ${frames}: not what was sent`)
    }
    if (frames > path.deliveredFrames) {
      while (path.deliveredFrames < frames) {
        const delivered = path.takeDelivered()
        const slot = delivered & this.sent.mask
        if (delivered > this.acked && this.sent.owner[slot] === path.connection) this.sent.owner[slot] = OWNER_ARRIVED
      }
      path.measure(this.nowMs)
    }
    this.acknowledge(sequence)
    this.sink.onWork()
  }

  private acknowledge(sequence: number): void {
    while (this.acked < sequence) {
      const slot = ++this.acked & this.sent.mask
      const size = FRAME_HEAD_BYTES + this.sent.length[slot]!
      this.unackedBytes -= size
      if (this.sent.owner[slot] === OWNER_RESEND) this.resendBytes -= size
      if (this.sent.type[slot] === FRAME.DATA) this.countData(-this.sent.length[slot]!)
      else if (this.sent.type[slot] === FRAME.END) this.endsUntold--
      this.sent.free(slot)
      this.progressMs = this.nowMs
    }
    this.checkFlushed()
    this.tellRoom()
  }

  private receiveBye(payload: Uint8Array): void {
    this.enter('bye')
    this.byeCode = -1 // nothing more to say
    for (const path of this.paths) if (path) path.done = true
    this.clear()
    this.sink.onBye(reasonCode(payload), reasonText(payload))
  }

  // What is sent -----------------------------------------------------------------------------------------------------

  /**
   * Takes the next bytes to write on a connection. Call it whenever the socket takes bytes; write all of it, in order.
   * @param out views to write are appended: frame heads (never written again) and parts of what was handed in (no copy)
   * @param maxBytes stops once so many are out: the last frame may go up to 16400 bytes beyond
   * @returns bytes appended; 0: nothing now, wait for onWork
   */
  pull(connection: number, maxBytes: number, nowMs: number, out: Uint8Array[]): number {
    this.nowMs = nowMs
    const path = this.paths[connection]
    if (!path || path.done || maxBytes <= 0) return 0
    if (this.sessionState === 'closed') return this.pullBye(path, out)
    this.rate.refill(nowMs)
    let total = 0
    if (path.ackDue || path.untoldBytes >= ACK_BYTES / 4) total += this.pullAck(path, out)
    if (path.pong !== null) {
      total += this.putSmall(out, FRAME.PONG, path.pong)
      path.pong = null
    }
    if (path.pingDue || nowMs >= path.pingDueMs) {
      total += this.putSmall(out, FRAME.PING, encodeNumbers(path.ping(nowMs)))
    }
    if (path.drainDue) {
      path.drainDue = false
      total += this.putSmall(out, FRAME.DRAIN, EMPTY)
    }
    while (total < maxBytes) {
      const bytes = this.pullFrame(path, out)
      if (bytes === 0) break
      total += bytes
    }
    this.rate.spend(total)
    this.checkFlushed() // what was left may have been data of flows that were reset
    this.tellRoom()
    return total
  }

  /** True once this connection has pulled its last byte (BYE), or the peer ended the session: write out, then close it. */
  isDone(connection: number): boolean {
    return this.sessionState === 'closed' && (this.paths[connection]?.done ?? true)
  }

  /** One sequenced frame, the most pressing that may go. @returns its bytes, or 0 */
  private pullFrame(path: Path, out: Uint8Array[]): number {
    if (!path.hasRecords) return 0
    const free = path.window - path.inFlight
    while (this.resendAt < this.resend.length) {
      const sequence = this.resend[this.resendAt]!
      const slot = sequence & this.sent.mask
      if (sequence <= this.acked) {
        this.resendAt++
        continue
      }
      // All that is newer would only wait for it at the far side.
      if (free <= 0 || !this.rate.mayGo(0, this.nowMs)) return 0
      this.resendAt++
      const size = FRAME_HEAD_BYTES + this.sent.length[slot]!
      this.resendBytes -= size
      this.resentBytes += size
      this.sent.owner[slot] = path.connection
      path.sent(sequence, size, this.nowMs)
      return this.putFrame(out, sequence)
    }
    if (this.resendAt > 0) {
      this.resend = []
      this.resendAt = 0
    }
    if (
      this.lastSequence - this.acked >= UNACKED_FRAMES_MAX ||
      this.unackedBytes + FRAME_BYTES_MAX > UNACKED_BYTES_MAX ||
      this.lastSequence >= SEQUENCE_END - 1
    ) {
      return 0
    }
    // Urgent frames may overdraw the window and the rate a little: they must not wait for bulk that is under way.
    const urgentGoes =
      free > -Math.max(WINDOW_BYTES_MIN, path.window / 4) && this.rate.mayGo(RATE_DEBT_BYTES, this.nowMs)
    if (urgentGoes) {
      while (this.creditLane.length > 0 && this.sessionState !== 'closing') {
        const flow = this.creditLane.shift()!
        flow.creditDue = false
        const open = flow.receive === 'open' || flow.receive === 'asked'
        if (open && flow.send !== 'reset') return this.pullCredit(path, flow, out)
      }
    }
    let entry = this.urgentLane.peek()
    while (entry && isDropped(entry)) {
      this.finishEntry(this.urgentLane, entry)
      entry = this.urgentLane.peek()
    }
    if (entry) {
      if (!urgentGoes) return 0
      if (entry.type !== FRAME.CREDIT) return this.pullEntry(path, this.urgentLane, entry, out)
      this.finishEntry(this.urgentLane, entry)
      return this.pullCredit(path, entry.flow, out)
    }
    entry = this.bulkLane.peek()
    while (entry && isDropped(entry)) {
      this.finishEntry(this.bulkLane, entry)
      entry = this.bulkLane.peek()
    }
    if (!entry) {
      path.ranDry()
      return 0
    }
    const stored = this.lastSequence - this.acked < BULK_FRAMES_MAX && this.unackedBytes < BULK_BYTES_MAX
    return free > 0 && stored && this.rate.mayGo(0, this.nowMs) ? this.pullEntry(path, this.bulkLane, entry, out) : 0
  }

  private pullEntry(path: Path, lane: Deque<Entry>, entry: Entry, out: Uint8Array[]): number {
    const { flow, type } = entry
    const length = Math.min(entry.left, FRAME_PAYLOAD_BYTES_MAX)
    const payload = length === 0 ? EMPTY : takePayload(entry, length)
    entry.left -= length
    const more = type === FRAME.BATCH && entry.left > 0
    const bytes = this.putNew(path, type, more ? FLAG_MORE : 0, flow.number, length, payload, out)
    flow.wanOut += bytes
    if (type === FRAME.DATA) {
      this.queuedBytes -= length
      this.queuedData -= length
    } else if (type === FRAME.BATCH) {
      this.queuedBytes -= length
    }
    if (entry.left === 0) this.finishEntry(lane, entry)
    return bytes
  }

  private finishEntry(lane: Deque<Entry>, entry: Entry): void {
    lane.shift()
    const { flow } = entry
    if (lane === this.bulkLane) flow.bulkEntries--
    if (entry.type === FRAME.BATCH) flow.queuedBatches--
    if (entry.left > 0) {
      // Dropped: data of a flow that was reset.
      this.queuedBytes -= entry.left
      this.queuedData -= entry.left
      this.countData(-entry.left)
    }
  }

  /** Tells flows that wait for room, one after the other, as long as there is some: who wants more goes to the end. */
  private tellRoom(): void {
    if (this.starved.size === 0) return
    for (const flow of [...this.starved]) {
      if (this.queuedData * 2 > this.laneBytes || this.dataMemory < FRAME_PAYLOAD_BYTES_MAX) return
      this.starved.delete(flow)
      if (flow.send === 'open') this.sink.onCredit(flow.number)
    }
  }

  /** Bytes of DATA came, or went. Beyond the free part they are the budget's. */
  private countData(bytes: number): void {
    this.dataBytes += bytes
    const need = Math.max(0, this.dataBytes - ANSWERS_FREE_BYTES)
    if (need > this.dataTaken) this.dataTaken += this.memory.takeUpTo(need - this.dataTaken)
    else if (need < this.dataTaken) {
      this.memory.give(this.dataTaken - need)
      this.dataTaken = need
    }
  }

  /** Bytes of DATA that may be kept beside those that are. */
  private get dataMemory(): number {
    return Math.max(0, ANSWERS_FREE_BYTES - this.dataBytes) + this.memory.room
  }

  private pullCredit(path: Path, flow: Flow, out: Uint8Array[]): number {
    flow.granted = flow.consumed + flow.window
    return this.putNew(path, FRAME.CREDIT, 0, flow.number, 8, encodeNumbers(flow.granted), out)
  }

  private pullAck(path: Path, out: Uint8Array[]): number {
    const payload = encodeNumbers(this.receivedSequence, path.arrivedFrames)
    path.toldFrames = path.arrivedFrames
    path.untoldBytes = 0
    path.ackDue = false
    path.ackDueMs = Number.POSITIVE_INFINITY
    return this.putSmall(out, FRAME.ACK, payload)
  }

  private pullBye(path: Path, out: Uint8Array[]): number {
    path.done = true
    return this.putSmall(out, FRAME.BYE, encodeReason(this.byeCode, this.byeText))
  }

  /** Gives a frame its number, keeps it, and puts it out. */
  private putNew(
    path: Path,
    type: number,
    flags: number,
    flow: number,
    length: number,
    payload: Payload,
    out: Uint8Array[],
  ): number {
    if (this.acked === this.lastSequence) this.progressMs = this.nowMs
    const sequence = ++this.lastSequence
    if (type === FRAME.OPEN) this.flows.get(flow)!.openSequence = sequence
    this.sent.span(this.acked, sequence)
    const slot = sequence & this.sent.mask
    const size = FRAME_HEAD_BYTES + length
    this.sent.type[slot] = type
    this.sent.flags[slot] = flags
    this.sent.flow[slot] = flow
    this.sent.length[slot] = length
    this.sent.owner[slot] = path.connection
    this.sent.payload[slot] = payload
    this.unackedBytes += size
    path.sent(sequence, size, this.nowMs)
    return this.putFrame(out, sequence)
  }

  private putFrame(out: Uint8Array[], sequence: number): number {
    const slot = sequence & this.sent.mask
    const length = this.sent.length[slot]!
    const payload = this.sent.payload[slot]!
    const copied = length <= COPY_BYTES_MAX && payload instanceof Uint8Array
    const bytes = copied ? FRAME_HEAD_BYTES + length : FRAME_HEAD_BYTES
    const at = this.reserve(bytes)
    const slab = this.slab
    writeHead(slab, at, this.sent.type[slot]!, this.sent.flags[slot]!, this.sent.flow[slot]!, sequence, length, payload)
    if (copied) slab.set(payload, at + FRAME_HEAD_BYTES)
    out.push(slab.subarray(at, at + bytes))
    if (!copied) {
      if (payload instanceof Uint8Array) out.push(payload)
      else for (const part of payload) out.push(part)
    }
    return FRAME_HEAD_BYTES + length
  }

  private putSmall(out: Uint8Array[], type: number, payload: Uint8Array): number {
    const bytes = FRAME_HEAD_BYTES + payload.length
    const at = this.reserve(bytes)
    writeHead(this.slab, at, type, 0, 0, 0, payload.length, payload)
    this.slab.set(payload, at + FRAME_HEAD_BYTES)
    out.push(this.slab.subarray(at, at + bytes))
    return bytes
  }

  private reserve(bytes: number): number {
    if (this.slabUsed + bytes > this.slab.length) {
      this.slab = new Uint8Array(this.slab.length === 0 ? SLAB_BYTES / 16 : SLAB_BYTES)
      this.slabUsed = 0
    }
    const at = this.slabUsed
    this.slabUsed += bytes
    return at
  }

  // Flows ------------------------------------------------------------------------------------------------------------

  /**
   * Client only: opens a flow.
   * @returns its number
   * @throws ProxyError LIMIT_EXCEEDED where FLOWS_MAX are open; PROTOCOL_STATE where the session ends, or either side
   *   drains and no flow of the migration is open
   */
  openFlow(info: FlowInfo): number {
    assert(this.role === 'client', 'only the client opens flows')
    const refuse = (code: ErrorCode, what: string): never => {
      throw new ProxyError(code, what, undefined, 'the migration is refused; QEMU goes on with its guest')
    }
    const { sessionState: state } = this
    if (state === 'closed' || state === 'closing' || state === 'stranded') refuse('PROTOCOL_STATE', 'the session ends')
    if ((this.draining || this.peerDraining) && !this.isRunning({ info })) {
      refuse('PROTOCOL_STATE', 'no new migrations are taken')
    }
    if (this.flows.size >= FLOWS_MAX) refuse('LIMIT_EXCEEDED', `${FLOWS_MAX} flows are open`)
    const payload = encodeOpen(info)
    assert(parseOpen(payload), `a flow to ${info.target} cannot be described`)
    while (this.flows.has(this.flowNext)) this.flowNext = (this.flowNext % 65535) + 1
    const number = this.flowNext
    this.flowNext = (this.flowNext % 65535) + 1
    const flow = this.addFlow(number, info)
    this.enqueue(FRAME.OPEN, flow, [payload])
    return number
  }

  /**
   * Bytes of the flow as they are; the session keeps the view until they are acknowledged. At most `credit(flow)`, and
   * better no more than `dataRoom` gives. Dropped where either side has reset the flow, or it is gone.
   */
  sendData(flow: number, bytes: Uint8Array): void {
    const state = this.flows.get(flow)
    if (!state || bytes.length === 0) return
    this.enterSend(state, 'data')
    if (state.send === 'reset' || state.receive === 'reset') return
    state.rawOut += bytes.length
    assert(state.rawOut <= state.creditTotal, `flow ${flow} was handed more data than its credit`)
    this.queuedBytes += bytes.length
    this.queuedData += bytes.length
    this.countData(bytes.length)
    state.share.start += bytes.length
    this.enqueue(FRAME.DATA, state, [bytes])
  }

  /**
   * A whole batch (protocol.md §4). Takes effect after all batches handed in before, of any flow. The views are kept
   * until it is acknowledged: do not write to them again.
   * @param rawLength bytes of the channel that it stands for: at most `credit(flow)`
   */
  sendBatch(flow: number, rawLength: number, parts: readonly Uint8Array[]): void {
    const state = this.flows.get(flow)
    if (!state && this.ended) return
    assert(state, `batch for flow ${flow}, which has ended`)
    this.enterSend(state, 'batch')
    assert(rawLengthOf(parts) === rawLength, `flow ${flow}: a batch does not begin with its raw length`)
    state.rawOut += rawLength
    assert(state.rawOut <= state.creditTotal, `flow ${flow} was handed a batch beyond its credit`)
    state.queuedBatches++
    const bytes = this.enqueue(FRAME.BATCH, state, parts)
    assert(bytes <= BATCH_WIRE_BYTES_MAX, `batch of ${bytes} bytes`)
    this.queuedBytes += bytes
    this.fairness.sent(state.share, bytes)
  }

  /** The local QEMU closed its direction: FIN after all that was handed in. Nothing may be sent on the flow after it. */
  finFlow(flow: number): void {
    const state = this.flows.get(flow)
    if (!state) return
    this.enterSend(state, 'fin')
    if (state.send !== 'fin') return
    this.enqueue(FRAME.FIN, state, [])
    this.endFlow(state)
  }

  /**
   * Tears the flow down in both directions: after the batches handed in, without the data behind them. The last call for
   * a flow; also the answer to onReset. What still arrives for the flow is dropped, except batches.
   */
  resetFlow(flow: number, code: number, text: string): void {
    const state = this.flows.get(flow)
    if (!state || state.send === 'reset') return
    this.enterSend(state, 'reset')
    this.enqueue(FRAME.RESET, state, [encodeReason(code, text)])
    this.endFlow(state)
  }

  /** What OPEN said of a flow that has not ended, also of one that onOpen never told of. */
  infoOf(flow: number): FlowInfo | undefined {
    return this.flows.get(flow)?.info
  }

  /**
   * After the end of the session, client: whether the server neither took nor refused the flow, nor acknowledged that it
   * was opened. The same bytes may then go out on another session.
   */
  isUnheard(flow: number): boolean {
    return this.unheard.has(flow)
  }

  /** Raw bytes that the peer still lets us hand in for this flow. 0 for a flow that is gone. */
  credit(flow: number): number {
    const state = this.flows.get(flow)
    return state && state.send === 'open' && state.receive !== 'reset' ? state.creditTotal - state.rawOut : 0
  }

  /**
   * How many of `wanted` bytes may be given to `sendData` now: `credit`, what the lane of waiting data has room for, and
   * memory for what is kept until it is acknowledged.
   * Where that is less, onCredit comes once there is more; so ask with all that is at hand, and give all of the answer.
   * @param wanted more than 0
   */
  dataRoom(flow: number, wanted: number): number {
    const state = this.flows.get(flow)
    if (!state) return 0
    const room = Math.max(0, Math.min(this.laneBytes - this.queuedData, this.dataMemory))
    const allowed = Math.min(wanted, this.credit(flow)) // what credit forbids, CREDIT will tell of
    if (room < allowed) this.starved.add(state)
    return Math.min(room, allowed)
  }

  /** The local QEMU's socket took so many raw bytes of the flow: the peer may send as many more. */
  consumed(flow: number, bytes: number): void {
    const state = this.flows.get(flow)
    if (!state) return
    state.consumed += bytes
    assert(state.consumed <= state.rawIn, `flow ${flow} consumed more than arrived`)
    state.epochBytes += bytes
    const rttMs = Math.max(this.rttMs, 1)
    if (this.nowMs - state.epochMs >= rttMs) {
      // The window must hold what the QEMU takes in two round trips, or credit is what limits it.
      if (state.epochBytes * 2 > state.window && this.nowMs - state.epochMs < 4 * rttMs) {
        this.setWindow(flow, state.window * 2)
      }
      state.epochMs = this.nowMs
      state.epochBytes = 0
    }
    this.offerCredit(state)
  }

  /**
   * Credit window given to the peer for this flow, as far as the memory budget has it; grows by itself while the local
   * QEMU keeps up. Never shrinks.
   */
  setWindow(flow: number, bytes: number): void {
    const state = this.flows.get(flow)
    if (state && this.growWindow(state, bytes)) this.offerCredit(state)
  }

  private growWindow(flow: Flow, bytes: number): boolean {
    const more = Math.min(bytes, CREDIT_FLOW_BYTES_MAX) - flow.window
    const taken = more > 0 ? this.memory.takeUpTo(more) : 0
    flow.window += taken
    return taken > 0
  }

  private offerCredit(flow: Flow): void {
    if (flow.creditDue || (flow.receive !== 'open' && flow.receive !== 'asked') || flow.send === 'reset') return
    if (flow.consumed + flow.window - flow.granted < flow.window / 4) return
    flow.creditDue = true
    this.creditLane.push(flow)
    this.sink.onWork()
  }

  private addFlow(number: number, info: FlowInfo): Flow {
    const receive = this.role === 'client' ? 'asked' : 'open'
    const flow = new Flow(
      number,
      info,
      this.fairness.join(info.migration),
      receive,
      this.peerCredit,
      this.initialCredit,
    )
    flow.epochMs = this.nowMs
    this.flows.set(number, flow)
    this.opened[number >> 3]! |= 1 << (number & 7)
    return flow
  }

  private forget(flow: Flow): void {
    this.flows.delete(flow.number)
    this.starved.delete(flow)
    this.memory.give(flow.window - this.initialCredit)
    this.fairness.leave(flow.share)
  }

  /** Server: where both directions have ended, says END and forgets the flow. */
  private endFlow(flow: Flow): void {
    if (this.role !== 'server' || flow.send === 'open' || flow.receive === 'open') return
    if (this.flows.get(flow.number) !== flow) return // a sink's own call was first
    this.enqueue(FRAME.END, flow, [])
    this.endsUntold++
    this.forget(flow)
    if (!flow.untold) this.sink.onEnd(flow.number)
  }

  private enterSend(flow: Flow, input: SendInput): void {
    const next = SEND_TABLE[flow.send][input]
    assert(next !== null, `${input} for flow ${flow.number} after ${flow.send}`)
    flow.send = next
  }

  /** Puts an entry in its lane. @returns bytes of it */
  private enqueue(type: number, flow: Flow, parts: readonly Uint8Array[]): number {
    let left = 0
    for (const part of parts) left += part.length
    const entry: Entry = { type, flow, parts, left, part: 0, offset: 0 }
    if (type === FRAME.BATCH || flow.bulkEntries > 0) {
      flow.bulkEntries++
      this.bulkLane.push(entry)
    } else {
      this.urgentLane.push(entry)
    }
    this.sink.onWork()
    return left
  }

  /** Bytes of DATA that may wait: what the link carries within the windows. */
  private get laneBytes(): number {
    let bytes = 0
    for (const path of this.paths) if (path) bytes += path.window
    return Math.max(bytes, WINDOW_BYTES_MIN)
  }

  // What to encode ---------------------------------------------------------------------------------------------------

  /**
   * WAN bytes that further batches should have together: what the windows have room for, less what waits already. Later
   * is better: what is queued is parked.
   */
  bulkRoom(nowMs: number): number {
    this.nowMs = nowMs
    if (this.sessionState !== 'live' && this.sessionState !== 'closing') return 0
    let room = READY_BYTES - this.queuedBytes - this.resendBytes
    for (const path of this.paths) if (path) room += Math.max(0, path.window - path.inFlight)
    // The windows know what the link takes, not what we let go: what is more would wait here, where no queue target sees it.
    room = Math.min(room, Math.max(Math.floor(this.rate.readyBytes), READY_BYTES) - this.queuedBytes)
    return Math.max(0, Math.min(room, BULK_BYTES_MAX - this.unackedBytes - this.queuedBytes))
  }

  /** WAN bytes that were handed in, and that the peer has not acknowledged. */
  get waitingBytes(): number {
    return this.queuedBytes + this.unackedBytes
  }

  /**
   * WAN bytes of room that are worth waiting for: room comes in small steps, and a batch costs both sides the same
   * whatever it holds. What the link takes in a part of the queue target, never more than half of what room can become.
   */
  bulkQuantum(): number {
    let rate = 0
    let windows = READY_BYTES
    for (const path of this.paths) {
      if (!path) continue
      rate += path.rate
      windows += path.window
    }
    const cap = Math.max(this.rate.readyBytes, READY_BYTES)
    return Math.min((rate / 1000) * this.targetMs * LATE_SHARE, Math.min(windows, cap) / 2)
  }

  /** True while a further batch should be encoded and handed in. */
  bulkWanted(nowMs: number): boolean {
    return this.bulkRoom(nowMs) > 0
  }

  /**
   * Which flow to encode a batch of next: that of the migration that has had the fewest WAN bytes while it wanted some;
   * flows of one migration take turns; urgent flows come first.
   * @param candidates flows that have bytes to encode and credit for them
   * @returns one of them, or -1 where there is none
   */
  pickFlow(candidates: readonly number[], nowMs: number): number {
    this.nowMs = nowMs
    return this.fairness.pick(candidates.map(number => this.flows.get(number)))?.number ?? -1
  }

  /** Marks a flow whose bytes block a guest (postcopy, preempt): pickFlow takes it first. */
  setUrgent(flow: number, urgent: boolean): void {
    const state = this.flows.get(flow)
    if (state) state.urgent = urgent
  }

  // Rate -------------------------------------------------------------------------------------------------------------

  /** Caps what this side sends, bytes a second over all connections; Infinity: no cap. */
  setRate(bytesPerSecond: number): void {
    this.rate.set(bytesPerSecond, this.nowMs)
    this.sink.onWork()
  }

  /** Sets the time that bytes may wait in the link beyond its round trip: less while a guest waits for its pages. */
  setQueueTarget(ms: number): void {
    this.targetMs = ms
    for (const path of this.paths) path?.setTarget(ms)
    this.sink.onWork()
  }

  // The end ----------------------------------------------------------------------------------------------------------

  /** Tells the peer that this side opens and takes no new migrations; running ones go on. */
  drain(): void {
    this.draining = true
    for (const path of this.paths) if (path) path.drainDue = true
    this.sink.onWork()
  }

  /**
   * Ends the session in order: once all that was handed in is acknowledged, BYE 0 goes out on every connection. Flows
   * that have not ended by then end with it: drain, and wait for flowCount 0, to let them finish.
   */
  close(nowMs: number): void {
    this.nowMs = nowMs
    if (this.sessionState === 'opening') this.brokenSince = nowMs // now the patience runs
    this.enter('close')
    this.checkFlushed()
    this.sink.onWork()
  }

  /** Ends the session at once, with BYE and onDead. A batch that failed to expand: `abort(error)`. */
  abort(error: ProxyError, nowMs: number): void {
    this.nowMs = nowMs
    if (!this.ended) this.die(error)
  }

  private checkFlushed(): void {
    if (this.sessionState !== 'closing' && this.sessionState !== 'stranded') return
    if (this.urgentLane.length + this.bulkLane.length > 0 || this.acked < this.lastSequence) return
    this.enter('flushed')
    this.clear()
    this.sink.onWork()
  }

  private fault(code: ErrorCode, what: string): void {
    this.die(new ProxyError(code, what, undefined, 'the session ends; migrations that ran over it are reset'))
  }

  private die(error: ProxyError): void {
    if (this.ended) return
    this.enter('die')
    this.byeCode = wireCode(error.code)
    this.byeText = error.what
    this.clear()
    this.sink.onDead(error)
    this.sink.onWork()
  }

  /** Lets go of all memory. */
  private clear(): void {
    this.unheard = new Set(
      [...this.flows.values()]
        .filter(flow => flow.receive === 'asked' && (flow.openSequence === 0 || flow.openSequence > this.acked))
        .map(flow => flow.number),
    )
    this.memory.close()
    this.flows.clear()
    this.starved.clear()
    this.fairness.clear()
    this.urgentLane.clear()
    this.bulkLane.clear()
    this.creditLane.clear()
    this.sent.clear()
    this.held.clear()
    this.batchParts = []
    this.resend = []
    this.resendAt = 0
    this.batchBytes = 0
    this.resendBytes = 0
    this.queuedBytes = 0
    this.queuedData = 0
    this.dataBytes = 0
    this.dataTaken = 0
    this.heldBytes = 0
    this.heldFrames = 0
    this.heldTaken = 0
    this.unackedBytes = 0
    this.acked = this.lastSequence
  }

  private enter(input: SessionInput): void {
    const next = SESSION_TABLE[this.sessionState][input]
    assert(next !== null, `${input} in a session that is ${this.sessionState}`)
    this.sessionState = next
  }

  // Figures ----------------------------------------------------------------------------------------------------------

  /** Smallest of the connections' round trips (smoothed); 0 before the first measurement. */
  private get rttMs(): number {
    let rtt = 0
    for (const path of this.paths) if (path && path.rttMs > 0 && (rtt === 0 || path.rttMs < rtt)) rtt = path.rttMs
    return rtt
  }

  /** Shortest round trip seen lately on any connection, milliseconds; 0 before the first measurement, and without connections. */
  get rttMinMs(): number {
    const seen = this.paths.flatMap(path => (path && path.rttMinMs > 0 ? path.rttMinMs : []))
    return seen.length === 0 ? 0 : Math.min(...seen)
  }

  stats(): SessionStats {
    const connections = this.paths.filter(path => path !== null)
    const sum = (of: (path: Path) => number) => connections.reduce((total, path) => total + of(path), 0)
    return {
      state: this.sessionState,
      rttMs: this.rttMs,
      rate: sum(path => path.rate),
      inFlight: sum(path => path.inFlight),
      window: sum(path => path.window),
      unacked: this.unackedBytes,
      queued: this.queuedBytes,
      reordered: this.heldBytes,
      resentBytes: this.resentBytes,
      duplicates: this.duplicates,
      connections: connections.map(path => ({
        connection: path.connection,
        rttMinMs: path.rttMinMs,
        rttMs: path.rttMs,
        rate: path.rate,
        inFlight: path.inFlight,
        window: path.window,
      })),
      flows: [...this.flows.values()].map(flow => ({
        flow: flow.number,
        migration: flow.info.migration,
        kind: flow.info.kind,
        rawOut: flow.rawOut,
        rawIn: flow.rawIn,
        wanOut: flow.wanOut,
        wanIn: flow.wanIn,
        credit: flow.creditTotal - flow.rawOut,
        window: flow.window,
      })),
    }
  }
}

/**
 * Data of a flow that was reset: nobody wants it any more, nor the credit that takes the flow. Batches are sent in any case, and so where this side reset
 * the flow is the data before them: the peer still writes both to its QEMU, which must never see a hole.
 */
function isDropped(entry: Entry): boolean {
  const { flow, type } = entry
  if (type === FRAME.CREDIT) return flow.send === 'reset'
  if (type !== FRAME.DATA) return false
  return flow.receive === 'reset' || (flow.send === 'reset' && flow.queuedBatches === 0)
}

/** The next `length` bytes of an entry. */
function takePayload(entry: Entry, length: number): Payload {
  const first = entry.parts[entry.part]!
  if (first.length - entry.offset >= length) {
    const view =
      length === first.length && entry.offset === 0 ? first : first.subarray(entry.offset, entry.offset + length)
    entry.offset += length
    return view
  }
  const views: Uint8Array[] = []
  let missing = length
  while (missing > 0) {
    const part = entry.parts[entry.part]!
    const take = Math.min(part.length - entry.offset, missing)
    if (take > 0) views.push(part.subarray(entry.offset, entry.offset + take))
    missing -= take
    entry.offset += take
    if (entry.offset === part.length) {
      entry.part++
      entry.offset = 0
    }
  }
  return views.length === 1 ? views[0]! : views
}

/**
 * The payload, or a copy where a small view would pin a large chunk: what is kept is counted by its own bytes. Parts of a
 * batch are large, and on plain TCP four of them lie in one chunk: these go on without a copy.
 */
function keepable(payload: Uint8Array): Uint8Array {
  const large = payload.length >= FRAME_PAYLOAD_BYTES_MAX / 2
  return large || payload.length * 2 >= payload.buffer.byteLength ? payload : payload.slice()
}

/** As keepable, for what may wait long: nothing pins more than a few bytes beside it. */
function compact(payload: Uint8Array): Uint8Array {
  return payload.length + FRAME_HEAD_BYTES >= payload.buffer.byteLength ? payload : payload.slice()
}
