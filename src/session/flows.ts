/**
 * The flows of a session: what the peer's frames do to them, what is handed in for them, and the credit of both. Knows
 * nothing of connections: frames come in their order from the inbox, and go to the outbox.
 */

import { readU64 } from '../bytes/big-endian.ts'
import { rawLengthOf } from '../codec/batch-head.ts'
import { assert, type ErrorCode, ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import {
  BATCH_WIRE_BYTES_MAX,
  CHANNELS_A_MIGRATION,
  CREDIT_KEPT_BYTES,
  CREDIT_TAKEN_BYTES,
  CREDIT_TAKEN_BYTES_MAX,
  CREDIT_TAKEN_BYTES_MS,
  CREDIT_TAKEN_PART,
  FLOWS_MAX,
} from '../limits.ts'
import { encodeOpen, encodeReason, type FlowInfo, parseOpen, reasonCode, reasonText } from '../wan/bodies.ts'
import { CODE, FRAME, FRAME_HEAD_BYTES, FRAME_OPTIONAL, KIND_DISK } from '../wan/wire.ts'
import type { AnswerRoom } from './answer-room.ts'
import type { FlowSink, FlowStats, Role, TransportSink } from './api.ts'
import { Fairness, type Weights } from './fairness.ts'
import { Flow } from './flow.ts'
import { FlowTable, type Opens } from './flow-table.ts'
import { BatchParts } from './inbox.ts'
import { keptPayload } from './kept-payloads.ts'
import type { Outbox } from './outbox.ts'
import type { SessionParts } from './parts.ts'
import type { Served } from './served.ts'
import { RECEIVE_TABLE, type ReceiveInput } from './states.ts'

const EMPTY = new Uint8Array(0)

/** What flows need of the session that they are in. */
export interface FlowHost {
  readonly role: Role
  readonly served: Served<FlowSink>
  readonly transport: TransportSink
  readonly memory: Share
  readonly flowPlaces: Share | undefined
  readonly outbox: Outbox
  readonly answers: AnswerRoom
  readonly parts: SessionParts
  readonly weights: Readonly<Weights> | undefined
  /** Bytes of credit that each flow to this side begins with. */
  readonly initialCredit: number
  now(): number
  /** Shortest round trip seen lately; 0: not known. */
  rttMinMs(): number
  opens(): Opens
  /** The peer broke a rule: the session ends. */
  fault(code: ErrorCode, what: string): void
}

export class Flows {
  /** Flows of a session that has ended: the server neither took nor refused them, nor acknowledged their OPEN. */
  unheard: ReadonlySet<number> = new Set()
  /** What flows to the peer begin with; 0 before its hello. */
  private peerCredit = 0
  private readonly host: FlowHost
  private readonly role: Role
  private readonly served: Served<FlowSink>
  private readonly transport: TransportSink
  private readonly outbox: Outbox
  private readonly answers: AnswerRoom
  private readonly table = new FlowTable()
  private readonly fairness: Fairness
  private readonly batch = new BatchParts()
  private over = false

  constructor(host: FlowHost) {
    this.host = host
    this.role = host.role
    this.served = host.served
    this.transport = host.transport
    this.outbox = host.outbox
    this.answers = host.answers
    this.fairness = new Fairness(host.weights)
  }

  /** Flows that have not ended. */
  get size(): number {
    return this.table.size
  }

  get(number: number): Flow | undefined {
    return this.table.get(number)
  }

  /** The peer's first hello: flows that were opened before it can begin. */
  learnCredit(peerCredit: number): void {
    if (this.peerCredit > 0) return
    this.peerCredit = peerCredit
    for (const flow of this.table.all()) {
      flow.creditTotal += peerCredit
      this.served.sink.onCredit(flow.number)
    }
  }

  /** A sequenced frame of the peer, in its order. */
  deliver(type: number, flags: number, number: number, payload: Uint8Array) {
    if (type === FRAME.OPEN) return this.deliverOpen(number, payload)
    if (type > FRAME.END) {
      // Optional frames of later versions may be sequenced: they keep their place and do nothing.
      if (type < FRAME_OPTIONAL) this.host.fault('PROTOCOL_SYNTAX', `frame of type ${type}`)
      return
    }
    const flow = this.table.get(number)
    if (!flow) {
      const late = type === FRAME.RESET || type === FRAME.CREDIT
      if (late && this.role === 'server' && this.table.wasOpened(number)) return // the client had not seen END yet
      return this.host.fault('PROTOCOL_STATE', `frame of type ${type} for flow ${number}, which is not open`)
    }
    flow.wanIn += FRAME_HEAD_BYTES + payload.length
    switch (type) {
      case FRAME.DATA: {
        if (!this.enterReceive(flow, 'data') || !this.takeCredit(flow, payload.length)) return
        if (flow.send !== 'reset') this.served.sink.onData(number, keptPayload(payload))
        return
      }
      case FRAME.BATCH:
        return this.deliverPart(flow, flags, payload)
      case FRAME.FIN:
        if (!this.enterReceive(flow, 'fin')) return
        if (flow.send !== 'reset') this.served.sink.onFin(number)
        return this.endFlow(flow)
      case FRAME.RESET: {
        const code = reasonCode(payload)
        const refused = flow.receive === 'asked' && code === CODE.SHUTDOWN
        if (!this.enterReceive(flow, 'reset', !refused)) return
        if (flow.send !== 'reset') {
          if (refused) this.served.sink.onRefused(number, reasonText(payload))
          else this.served.sink.onReset(number, code, reasonText(payload))
        }
        return this.endFlow(flow)
      }
      case FRAME.CREDIT: {
        if (!this.enterReceive(flow, 'credit')) return
        const total = readU64(payload, 0)
        if (total < flow.creditTotal) return this.host.fault('PROTOCOL_STATE', `flow ${number} loses credit`)
        flow.creditTotal = total
        if (flow.send === 'open') this.served.sink.onCredit(number)
        return
      }
      case FRAME.END: {
        if (this.role === 'server') return this.host.fault('PROTOCOL_STATE', 'END from the client')
        if (flow.send === 'open')
          return this.host.fault('PROTOCOL_STATE', `END for flow ${number}, which has not ended`)
        if (!this.enterReceive(flow, 'end')) return
        this.forget(flow)
        return this.served.sink.onEnd(number)
      }
    }
  }

  private deliverOpen(number: number, payload: Uint8Array) {
    if (this.role === 'client') return this.host.fault('PROTOCOL_STATE', 'OPEN from the server')
    if (number === 0) return this.host.fault('PROTOCOL_SYNTAX', 'OPEN for flow 0')
    const existing = this.table.get(number)
    if (RECEIVE_TABLE[existing ? existing.receive : 'none'].open === null) {
      return this.host.fault('PROTOCOL_STATE', `OPEN for flow ${number}, which is open`)
    }
    const info = parseOpen(payload)
    if (!info) return this.host.fault('PROTOCOL_SYNTAX', `OPEN for flow ${number} is malformed`)
    const admitted = this.table.admit(this.outbox.endsUnacked, this.host.now())
    if ('fault' in admitted) return this.host.fault('LIMIT_EXCEEDED', admitted.fault)
    const flow = this.addFlow(number, info)
    flow.wanIn += FRAME_HEAD_BYTES + payload.length
    if (!this.mayOpen(flow, this.host.opens())) {
      flow.untold = true
      this.reset(number, CODE.SHUTDOWN, 'takes no new migrations')
    } else if (!this.mayOpen(flow, admitted.opens)) {
      flow.untold = true
      this.reset(number, CODE.LIMIT_EXCEEDED, 'too many flows within a short time')
    } else if (!this.takePlace(flow)) {
      flow.untold = true
      this.reset(number, CODE.LIMIT_EXCEEDED, 'too many flows are open, of all sessions of this peer together')
    } else {
      flow.window.grow(this.takenCredit(info))
      this.enqueue(FRAME.CREDIT, flow, [EMPTY])
      this.served.sink.onOpen(number, info)
    }
  }

  /** A disk's window is there for hours and never shrinks: it grows by need alone. */
  private takenCredit({ kind }: FlowInfo): number {
    if (kind === KIND_DISK) return CREDIT_TAKEN_BYTES
    const { memory } = this.host
    const part = (memory.room - CREDIT_KEPT_BYTES) * CREDIT_TAKEN_PART
    const most = Math.min(CREDIT_TAKEN_BYTES_MAX, CREDIT_TAKEN_BYTES_MS * this.host.rttMinMs(), part)
    return Math.max(CREDIT_TAKEN_BYTES, Math.floor(most))
  }

  /**
   * One flow more of all that an identity may have open. A migration begins where there are places for all channels that it
   * may come to have; the only one of a session wherever there is one.
   */
  private takePlace(flow: Flow): boolean {
    const { flowPlaces } = this.host
    if (!flowPlaces) return true
    const isScarce = flowPlaces.held > 0 && flowPlaces.room < CHANNELS_A_MIGRATION
    if (isScarce && !this.table.isRunning(flow)) return false
    return flowPlaces.take(1)
  }

  private deliverPart(flow: Flow, flags: number, payload: Uint8Array) {
    if (this.batch.flow === 0 && !this.enterReceive(flow, 'batch')) return
    const batch = this.batch.add(flow.number, flags, payload)
    if (batch === undefined) return
    if (!('parts' in batch)) return this.host.fault(...batch)
    if (this.takeCredit(flow, batch.rawLength)) this.served.sink.onBatch(flow.number, batch.parts, batch.rawLength)
  }

  private takeCredit(flow: Flow, bytes: number): boolean {
    const beyond = flow.window.arrive(bytes)
    if (beyond > 0) this.host.fault('PROTOCOL_STATE', `flow ${flow.number} sent ${beyond} bytes beyond its credit`)
    return beyond === 0
  }

  /** @param takes whether the frame says that the server has taken the flow */
  private enterReceive(flow: Flow, input: ReceiveInput, takes = true): boolean {
    const next = RECEIVE_TABLE[flow.receive][input]
    if (next === null) {
      this.host.fault(
        'PROTOCOL_STATE',
        `${input.toUpperCase()} for flow ${flow.number} after ${flow.receive.toUpperCase()}`,
      )
      return false
    }
    // A part of the batch may still be missing: nothing may end the flow in the middle of it.
    if (this.batch.flow === flow.number && input !== 'batch' && input !== 'credit') {
      this.host.fault('PROTOCOL_SYNTAX', `${input.toUpperCase()} for flow ${flow.number} within its batch`)
      return false
    }
    const asked = flow.receive === 'asked'
    flow.receive = next
    if (asked && takes && flow.send !== 'reset') this.served.sink.onTaken(flow.number)
    return true
  }

  /** As Session.openFlow. */
  open(info: FlowInfo): number {
    assert(this.role === 'client', 'only the client opens flows')
    const refuse = (code: ErrorCode, what: string): never => {
      throw new ProxyError(code, what, undefined, 'the migration is refused; QEMU goes on with its guest')
    }
    if (this.host.opens() === 'none') refuse('PROTOCOL_STATE', 'the session ends')
    if (!this.mayOpen({ info }, this.host.opens())) refuse('PROTOCOL_STATE', 'no new migrations are taken')
    if (this.table.isFull) refuse('LIMIT_EXCEEDED', `${FLOWS_MAX} flows are open`)
    const payload = encodeOpen(info)
    assert(parseOpen(payload), `a flow to ${info.target} cannot be described`)
    const number = this.table.freeNumber()
    const flow = this.addFlow(number, info)
    this.enqueue(FRAME.OPEN, flow, [payload])
    return number
  }

  /** As Session.sendData. */
  sendData(flow: number, bytes: Uint8Array): void {
    const state = this.table.get(flow)
    if (!state || bytes.length === 0) return
    state.enterSend('data')
    if (state.send === 'reset' || state.receive === 'reset') return
    state.spend(bytes.length)
    this.fairness.charge(state.share, bytes.length)
    this.enqueue(FRAME.DATA, state, [bytes])
  }

  /** As Session.sendBatch. */
  sendBatch(flow: number, rawLength: number, parts: readonly Uint8Array[], release?: () => void, isLaid = false): void {
    const state = this.table.get(flow)
    if (!state && this.over) return
    assert(state, `batch for flow ${flow}, which has ended`)
    state.enterSend('batch')
    assert(rawLengthOf(parts) === rawLength, `flow ${flow}: a batch does not begin with its raw length`)
    state.spend(rawLength)
    const bytes = this.enqueue(FRAME.BATCH, state, parts, release, isLaid)
    assert(bytes <= BATCH_WIRE_BYTES_MAX, `batch of ${bytes} bytes`)
    this.fairness.sent(state.share, bytes)
  }

  /** As Session.finFlow. */
  fin(flow: number): void {
    const state = this.table.get(flow)
    if (!state) return
    state.enterSend('fin')
    if (state.send !== 'fin') return
    this.enqueue(FRAME.FIN, state, [])
    this.endFlow(state)
  }

  /** As Session.resetFlow. */
  reset(flow: number, code: number, text: string): void {
    const state = this.table.get(flow)
    if (!state || state.send === 'reset') return
    state.enterSend('reset')
    this.enqueue(FRAME.RESET, state, [encodeReason(code, text)])
    this.endFlow(state)
  }

  /** As Session.dataRoom. @param laneBytes of DATA that may wait */
  dataRoom(flow: number, wanted: number, laneBytes: number): number {
    const state = this.table.get(flow)
    if (!state) return 0
    // What credit forbids, CREDIT will tell of.
    return this.answers.room(state, Math.min(wanted, state.credit), laneBytes)
  }

  /** As Session.consumed. */
  consumed(flow: number, bytes: number, rttMs: number): void {
    const state = this.table.get(flow)
    if (!state) return
    state.window.consume(bytes, rttMs, this.host.now())
    this.offerCredit(state)
  }

  private offerCredit(flow: Flow): void {
    if (flow.window.due || !flow.isListening || !flow.window.isWorthTelling) return
    this.outbox.enqueueCredit(flow)
    this.transport.onWork()
  }

  private addFlow(number: number, info: FlowInfo): Flow {
    const { parts, initialCredit, memory } = this.host
    const receive = this.role === 'client' ? 'asked' : 'open'
    const isDisk = info.kind === KIND_DISK
    const window = new parts.ReceiveWindow(initialCredit, memory, this.host.now(), isDisk ? CREDIT_KEPT_BYTES : 0)
    const share = this.fairness.join(info.migration, isDisk ? 'disks' : 'memory')
    const flow = new Flow(number, info, share, receive, this.peerCredit, window)
    this.table.add(flow)
    return flow
  }

  private forget(flow: Flow): void {
    this.table.delete(flow)
    this.answers.forget(flow)
    flow.window.close()
    this.fairness.leave(flow.share)
    if (!flow.untold) this.host.flowPlaces?.give(1)
  }

  /** Server: where both directions have ended, says END and forgets the flow. */
  private endFlow(flow: Flow): void {
    if (this.role !== 'server' || flow.send === 'open' || flow.receive === 'open') return
    if (this.table.get(flow.number) !== flow) return // a sink's own call was first
    this.enqueue(FRAME.END, flow, [])
    this.forget(flow)
    if (!flow.untold) this.served.sink.onEnd(flow.number)
  }

  private enqueue(
    type: number,
    flow: Flow,
    parts: readonly Uint8Array[],
    release?: () => void,
    isLaid?: boolean,
  ): number {
    const bytes = this.outbox.enqueue(type, flow, parts, release, isLaid)
    this.transport.onWork()
    return bytes
  }

  /** As Session.pickFlow. */
  pick(candidates: readonly number[]): number {
    return this.fairness.pick(candidates.map(number => this.table.get(number)))?.number ?? -1
  }

  /** As Session.setUrgent. */
  setUrgent(number: number, urgent: boolean): void {
    const flow = this.table.get(number)
    if (flow) flow.urgent = urgent
  }

  /** There may be more room than dataRoom gave. */
  tellRoom(laneBytes: number): void {
    this.answers.tell(laneBytes, flow => this.served.sink.onCredit(flow.number))
  }

  private mayOpen(flow: { readonly info: FlowInfo }, opens: Opens): boolean {
    return opens === 'any' || (opens === 'running' && this.table.isRunning(flow))
  }

  stats(): FlowStats[] {
    return this.table.all().map(flow => ({
      flow: flow.number,
      migration: flow.info.migration,
      kind: flow.info.kind,
      rawOut: flow.rawOut,
      rawIn: flow.window.rawIn,
      wanOut: flow.wanOut,
      wanIn: flow.wanIn,
      credit: flow.creditTotal - flow.rawOut,
      window: flow.window.size,
    }))
  }

  /** The session is over: all of them are gone. */
  clear(): void {
    this.over = true
    this.host.flowPlaces?.close()
    const { acked } = this.outbox
    const isUnheard = ({ receive, openSequence: opened }: Flow) =>
      receive === 'asked' && (opened === 0 || opened > acked)
    const unheard = this.table.all().filter(isUnheard)
    this.unheard = new Set(unheard.map(({ number }) => number))
    this.table.clear()
    this.fairness.clear()
    this.batch.clear()
  }
}
