/**
 * One link session without sockets or clock: flows, credit, order over several connections, acknowledgement, resume,
 * windows and fairness (protocol.md §3). The layer above owns the sockets, moves bytes with `receive` and `pull`, and
 * calls `tick`.
 *
 * A frame gets its sequence number when it is first pulled, so that what is urgent overtakes what waits. It is kept
 * until it is acknowledged, in a ring with a slot for each number; so is what arrives ahead of a missing frame.
 */

import { readU64 } from '../bytes/big-endian.ts'
import { rawLengthOf } from '../codec/batch-head.ts'
import { assert, type ErrorCode, ProxyError } from '../errors.ts'
import {
  ACK_BYTES,
  BATCH_WIRE_BYTES_MAX,
  CONNECTION_STUCK_MS,
  CONNECTIONS_MAX,
  CREDIT_INITIAL_BYTES,
  CREDIT_TAKEN_BYTES,
  FLOWS_MAX,
  MEMORY_BUDGET_BYTES,
  PATIENCE_MS,
  QUEUE_TARGET_MS,
  WINDOW_BYTES_MIN,
} from '../limits.ts'
import { encodeNumbers, encodeOpen, encodeReason, parseOpen, reasonCode, reasonText } from '../wan/bodies.ts'
import { wireCode } from '../wan/codes.ts'
import type { Frame } from '../wan/frames.ts'
import { CODE, FRAME, FRAME_HEAD_BYTES, FRAME_OPTIONAL } from '../wan/wire.ts'
import type { AnswerRoom } from './answer-room.ts'
import type { FlowInfo, Role, SessionOptions, SessionSink, SessionState, SessionStats } from './api.ts'
import { Fairness } from './fairness.ts'
import { Flow } from './flow.ts'
import { FlowTable } from './flow-table.ts'
import { BatchParts, type Inbox, keepable } from './inbox.ts'
import { MemoryBudget, type MemoryShare } from './memory-budget.ts'
import { BULK_BYTES_MAX, FRAME_BYTES_MAX, type Outbox } from './outbox.ts'
import { SESSION_PARTS, type SessionParts } from './parts.ts'
import type { Path } from './path.ts'
import { Patience } from './patience.ts'
import { RateCap } from './rate-cap.ts'
import { RECEIVE_TABLE, type ReceiveInput, SESSION_TABLE, type SessionInput } from './states.ts'

/** Batches that should lie ready while the windows are full, so that an ACK finds something to send. */
const READY_BYTES = 2 * FRAME_BYTES_MAX
/** Part of the queue target that batches may come late by, so that they need not be small. */
const LATE_SHARE = 0.2
/** While there are connections tick is called this often; where it comes later by the second, this process stood still. */
const TICK_INTERVAL_MS = 1000
const STOOD_STILL_MS = 1500
const EMPTY = new Uint8Array(0)

export class Session {
  private readonly role: Role
  private readonly sink: SessionSink
  private readonly parts: SessionParts
  /** Credit that each flow to this side begins with: `credit` of our hello. */
  readonly initialCredit: number
  private targetMs: number
  private nowMs = 0
  private sessionState: SessionState = 'opening'
  private readonly patience: Patience
  private tickedMs = 0
  private byeCode: number = CODE.NONE
  private byeText = ''

  private readonly paths: (Path | null)[] = new Array(CONNECTIONS_MAX).fill(null)
  private pathCount = 0

  private readonly flows = new FlowTable()
  private draining = false
  private peerDraining = false
  /** Flows of a session that has ended: the server neither took nor refused them, nor acknowledged their OPEN. */
  private unheard: ReadonlySet<number> = new Set()
  private readonly memory: MemoryShare
  /** What flows to the peer begin with; 0 before its hello. */
  private peerCredit = 0

  private readonly answers: AnswerRoom
  private readonly outbox: Outbox
  private readonly inbox: Inbox
  private readonly batch = new BatchParts()
  private readonly rate: RateCap
  private readonly fairness = new Fairness()

  constructor(options: SessionOptions) {
    this.role = options.role
    this.sink = options.sink
    this.patience = new Patience(options.patienceMs ?? PATIENCE_MS)
    this.targetMs = options.queueTargetMs ?? QUEUE_TARGET_MS
    this.rate = new RateCap(options.rate ?? Number.POSITIVE_INFINITY)
    this.initialCredit = options.initialCredit ?? CREDIT_INITIAL_BYTES
    this.memory = options.memory ?? new MemoryBudget(MEMORY_BUDGET_BYTES).share('')
    this.parts = { ...SESSION_PARTS, ...options.parts }
    this.answers = new this.parts.AnswerRoom(this.memory)
    this.outbox = new this.parts.Outbox(this.rate, this.answers)
    this.inbox = new this.parts.Inbox(
      (type, flags, flow, payload) => this.deliver(type, flags, flow, payload),
      this.memory,
    )
  }

  get state(): SessionState {
    return this.sessionState
  }

  /** Highest sequence number up to which all frames of the peer have arrived: `received` of our next hello. */
  get received(): number {
    return this.inbox.received
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
    if (this.isBroken) this.patience.found(nowMs)
    const path = new this.parts.Path(connection, this.targetMs, nowMs)
    path.drainDue = this.draining
    this.paths[connection] = path
    this.pathCount++
    this.enter('attach')
    if (this.sessionState === 'closed') path.done = this.byeCode < 0
    else if (peerReceived > this.outbox.lastSequence)
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
    for (const flow of this.flows.all()) {
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
      this.patience.lost(nowMs)
    }
    this.sink.onWork()
  }

  private dropPath(path: Path): void {
    this.paths[path.connection] = null
    this.pathCount--
    this.outbox.lost(path)
  }

  // Time -------------------------------------------------------------------------------------------------------------

  /** Heartbeats, dead connections, delayed ACKs, patience, rate. Call at `nextTickMs`; earlier or later does no harm. */
  tick(nowMs: number): void {
    this.nowMs = nowMs
    if (this.sessionState === 'closed') return
    const stillMs = nowMs - this.tickedMs - TICK_INTERVAL_MS
    this.tickedMs = nowMs
    if (stillMs > STOOD_STILL_MS) this.patience.stoodStill(stillMs, nowMs)
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
    const over = this.patience.over(this.isBroken, this.outbox.acked < this.outbox.lastSequence, nowMs)
    if (over !== undefined) this.fault('PEER_LOST', over)
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
    return this.isBroken ? Math.min(next, this.patience.brokenUntilMs) : next
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
    const refused = this.inbox.take(type, flags, flow, sequence, payload)
    if (refused === 'no memory') {
      // Others have it. What came is not acknowledged, and so comes again; the missing frame with it.
      this.giveUp(path, `its frames came ${this.inbox.heldBytes} bytes ahead of a missing one`)
    } else if (refused) this.fault(...refused)
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
      if (late && this.role === 'server' && this.flows.wasOpened(number)) return // the client had not seen END yet
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
    const admitted = this.flows.admit(this.outbox.endsUnacked, this.nowMs)
    if ('fault' in admitted) return this.fault('LIMIT_EXCEEDED', admitted.fault)
    const flow = this.addFlow(number, info)
    flow.wanIn += FRAME_HEAD_BYTES + payload.length
    if (this.sessionState !== 'live' || (this.draining && !this.flows.isRunning(flow))) {
      flow.untold = true
      this.resetFlow(number, CODE.SHUTDOWN, 'takes no new migrations')
    } else if (!admitted.take) {
      flow.untold = true
      this.resetFlow(number, CODE.LIMIT_EXCEEDED, 'too many flows within a short time')
    } else {
      flow.window.grow(CREDIT_TAKEN_BYTES)
      this.enqueue(FRAME.CREDIT, flow, [EMPTY])
      this.sink.onOpen(number, info)
    }
  }

  private deliverPart(flow: Flow, flags: number, payload: Uint8Array) {
    if (this.batch.flow === 0 && !this.enterReceive(flow, 'batch')) return
    const batch = this.batch.add(flow.number, flags, payload)
    if (batch === undefined) return
    if (!('parts' in batch)) return this.fault(...batch)
    if (this.takeCredit(flow, batch.rawLength)) this.sink.onBatch(flow.number, batch.parts, batch.rawLength)
  }

  private takeCredit(flow: Flow, bytes: number): boolean {
    const beyond = flow.window.arrive(bytes)
    if (beyond > 0) this.fault('PROTOCOL_STATE', `flow ${flow.number} sent ${beyond} bytes beyond its credit`)
    return beyond === 0
  }

  /** @param takes whether the frame says that the server has taken the flow */
  private enterReceive(flow: Flow, input: ReceiveInput, takes = true): boolean {
    const next = RECEIVE_TABLE[flow.receive][input]
    if (next === null) {
      this.fault('PROTOCOL_STATE', `${input.toUpperCase()} for flow ${flow.number} after ${flow.receive.toUpperCase()}`)
      return false
    }
    // A part of the batch may still be missing: nothing may end the flow in the middle of it.
    if (this.batch.flow === flow.number && input !== 'batch' && input !== 'credit') {
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
    if (
      sequence < 0 ||
      sequence > this.outbox.lastSequence ||
      frames < path.deliveredFrames ||
      frames > path.sentFrames
    ) {
      return this.fault('PROTOCOL_STATE', `ACK ${sequence} and ${frames}: not what was sent`)
    }
    if (frames > path.deliveredFrames) {
      this.outbox.delivered(path, frames)
      path.measure(this.nowMs)
    }
    this.acknowledge(sequence)
    this.sink.onWork()
  }

  private acknowledge(sequence: number): void {
    if (this.outbox.acknowledge(sequence)) this.patience.progress(this.nowMs)
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
    const { outbox } = this
    const { writer } = outbox
    this.rate.refill(nowMs)
    let total = 0
    if (path.ackDue || path.untoldBytes >= ACK_BYTES / 4) total += this.pullAck(path, out)
    if (path.pong !== null) {
      total += writer.putSmall(out, FRAME.PONG, path.pong)
      path.pong = null
    }
    if (path.pingDue || nowMs >= path.pingDueMs) {
      total += writer.putSmall(out, FRAME.PING, encodeNumbers(path.ping(nowMs)))
    }
    if (path.drainDue) {
      path.drainDue = false
      total += writer.putSmall(out, FRAME.DRAIN, EMPTY)
    }
    const nothingWaited = outbox.acked === outbox.lastSequence
    while (total < maxBytes) {
      const bytes = outbox.pull(path, this.sessionState !== 'closing', nowMs, out)
      if (bytes === 0) break
      total += bytes
    }
    if (nothingWaited) this.patience.progress(nowMs)
    this.rate.spend(total)
    this.checkFlushed() // what was left may have been data of flows that were reset
    this.tellRoom()
    return total
  }

  /** True once this connection has pulled its last byte (BYE), or the peer ended the session: write out, then close it. */
  isDone(connection: number): boolean {
    return this.sessionState === 'closed' && (this.paths[connection]?.done ?? true)
  }

  private tellRoom(): void {
    this.answers.tell(this.laneBytes, flow => this.sink.onCredit(flow.number))
  }

  private pullAck(path: Path, out: Uint8Array[]): number {
    const payload = encodeNumbers(this.inbox.acknowledged, path.arrivedFrames)
    path.toldFrames = path.arrivedFrames
    path.untoldBytes = 0
    path.ackDue = false
    path.ackDueMs = Number.POSITIVE_INFINITY
    return this.outbox.writer.putSmall(out, FRAME.ACK, payload)
  }

  private pullBye(path: Path, out: Uint8Array[]): number {
    path.done = true
    return this.outbox.writer.putSmall(out, FRAME.BYE, encodeReason(this.byeCode, this.byeText))
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
    if ((this.draining || this.peerDraining) && !this.flows.isRunning({ info })) {
      refuse('PROTOCOL_STATE', 'no new migrations are taken')
    }
    if (this.flows.isFull) refuse('LIMIT_EXCEEDED', `${FLOWS_MAX} flows are open`)
    const payload = encodeOpen(info)
    assert(parseOpen(payload), `a flow to ${info.target} cannot be described`)
    const number = this.flows.freeNumber()
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
    state.enterSend('data')
    if (state.send === 'reset' || state.receive === 'reset') return
    state.spend(bytes.length)
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
    state.enterSend('batch')
    assert(rawLengthOf(parts) === rawLength, `flow ${flow}: a batch does not begin with its raw length`)
    state.spend(rawLength)
    const bytes = this.enqueue(FRAME.BATCH, state, parts)
    assert(bytes <= BATCH_WIRE_BYTES_MAX, `batch of ${bytes} bytes`)
    this.fairness.sent(state.share, bytes)
  }

  /** The local QEMU closed its direction: FIN after all that was handed in. Nothing may be sent on the flow after it. */
  finFlow(flow: number): void {
    const state = this.flows.get(flow)
    if (!state) return
    state.enterSend('fin')
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
    state.enterSend('reset')
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
    return this.flows.get(flow)?.credit ?? 0
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
    // What credit forbids, CREDIT will tell of.
    return this.answers.room(state, Math.min(wanted, state.credit), this.laneBytes)
  }

  /** The local QEMU's socket took so many raw bytes of the flow: the peer may send as many more. */
  consumed(flow: number, bytes: number): void {
    const state = this.flows.get(flow)
    if (!state) return
    state.window.consume(bytes, Math.max(this.rttMs, 1), this.nowMs)
    this.offerCredit(state)
  }

  /**
   * Credit window given to the peer for this flow, as far as the memory budget has it; grows by itself while the local
   * QEMU keeps up. Never shrinks.
   */
  setWindow(flow: number, bytes: number): void {
    const state = this.flows.get(flow)
    if (state?.window.grow(bytes)) this.offerCredit(state)
  }

  private offerCredit(flow: Flow): void {
    if (flow.window.due || !flow.isListening || !flow.window.isWorthTelling) return
    this.outbox.enqueueCredit(flow)
    this.sink.onWork()
  }

  private addFlow(number: number, info: FlowInfo): Flow {
    const receive = this.role === 'client' ? 'asked' : 'open'
    const window = new this.parts.ReceiveWindow(this.initialCredit, this.memory, this.nowMs)
    const flow = new Flow(number, info, this.fairness.join(info.migration), receive, this.peerCredit, window)
    this.flows.add(flow)
    return flow
  }

  private forget(flow: Flow): void {
    this.flows.delete(flow)
    this.answers.forget(flow)
    flow.window.close()
    this.fairness.leave(flow.share)
  }

  /** Server: where both directions have ended, says END and forgets the flow. */
  private endFlow(flow: Flow): void {
    if (this.role !== 'server' || flow.send === 'open' || flow.receive === 'open') return
    if (this.flows.get(flow.number) !== flow) return // a sink's own call was first
    this.enqueue(FRAME.END, flow, [])
    this.forget(flow)
    if (!flow.untold) this.sink.onEnd(flow.number)
  }

  private enqueue(type: number, flow: Flow, parts: readonly Uint8Array[]): number {
    const bytes = this.outbox.enqueue(type, flow, parts)
    this.sink.onWork()
    return bytes
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
    const { queuedBytes, resendBytes, unackedBytes } = this.outbox
    let room = READY_BYTES - queuedBytes - resendBytes
    for (const path of this.paths) if (path) room += Math.max(0, path.window - path.inFlight)
    // The windows know what the link takes, not what we let go: what is more would wait here, where no queue target sees it.
    room = Math.min(room, Math.max(Math.floor(this.rate.readyBytes), READY_BYTES) - queuedBytes)
    return Math.max(0, Math.min(room, BULK_BYTES_MAX - unackedBytes - queuedBytes))
  }

  /** WAN bytes that were handed in, and that the peer has not acknowledged. */
  get waitingBytes(): number {
    return this.outbox.queuedBytes + this.outbox.unackedBytes
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
    if (this.sessionState === 'opening') this.patience.lost(nowMs) // now the patience runs
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
    if (!this.outbox.isFlushed) return
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
    const { acked } = this.outbox
    const isUnheard = ({ receive, openSequence: opened }: Flow) =>
      receive === 'asked' && (opened === 0 || opened > acked)
    const unheard = this.flows.all().filter(isUnheard)
    this.unheard = new Set(unheard.map(({ number }) => number))
    this.memory.close()
    this.flows.clear()
    this.fairness.clear()
    this.answers.clear()
    this.outbox.clear()
    this.inbox.clear()
    this.batch.clear()
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
      unacked: this.outbox.unackedBytes,
      queued: this.outbox.queuedBytes,
      reordered: this.inbox.heldBytes,
      resentBytes: this.outbox.resentBytes,
      duplicates: this.inbox.duplicates,
      connections: connections.map(path => ({
        connection: path.connection,
        rttMinMs: path.rttMinMs,
        rttMs: path.rttMs,
        rate: path.rate,
        inFlight: path.inFlight,
        window: path.window,
      })),
      flows: this.flows.all().map(flow => ({
        flow: flow.number,
        migration: flow.info.migration,
        kind: flow.info.kind,
        rawOut: flow.rawOut,
        rawIn: flow.window.rawIn,
        wanOut: flow.wanOut,
        wanIn: flow.wanIn,
        credit: flow.creditTotal - flow.rawOut,
        window: flow.window.size,
      })),
    }
  }
}
