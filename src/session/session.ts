/**
 * One link session without sockets or clock: flows, credit, order over several connections, acknowledgement, resume,
 * windows and fairness (protocol.md §3). The layer above owns the sockets, moves bytes with `receive` and `pull`, and
 * calls `tick`.
 *
 * A frame gets its sequence number when it is first pulled, so that what is urgent overtakes what waits. It is kept
 * until it is acknowledged, in a ring with a slot for each number; so is what arrives ahead of a missing frame.
 */

import { readU64 } from '../bytes/big-endian.ts'
import { copyOf } from '../bytes/copy.ts'
import { assert, type ErrorCode, ProxyError } from '../errors.ts'
import { FairShares, type Share } from '../fair-shares.ts'
import { CONNECTIONS_MAX, CREDIT_INITIAL_BYTES, MEMORY_BUDGET_BYTES, PATIENCE_MS, QUEUE_TARGET_MS } from '../limits.ts'
import { encodeReason, reasonCode, reasonText } from '../wan/bodies.ts'
import { wireCode } from '../wan/codes.ts'
import type { Frame } from '../wan/frames.ts'
import { CODE, FRAME, FRAME_HEAD_BYTES, FRAME_OPTIONAL } from '../wan/wire.ts'
import type { AnswerRoom } from './answer-room.ts'
import type { FlowInfo, FlowSink, Role, SessionOptions, SessionState, SessionStats, TransportSink } from './api.ts'
import { bulkQuantum, bulkRoom } from './bulk.ts'
import { ColdPages } from './cold-pages.ts'
import { opensIn } from './flow-table.ts'
import { Flows } from './flows.ts'
import type { Inbox } from './inbox.ts'
import { SessionLife } from './life.ts'
import type { Outbox } from './outbox.ts'
import { SESSION_PARTS } from './parts.ts'
import type { Path } from './path.ts'
import { pullPathFrames } from './path-frames.ts'
import { Paths } from './paths.ts'
import { Patience } from './patience.ts'
import { RateCap } from './rate-cap.ts'
import { Served } from './served.ts'
import type { WarmUp } from './warm-up.ts'

export class Session {
  private readonly role: Role
  private readonly transport: TransportSink
  private readonly served = new Served<FlowSink>()
  /** Credit that each flow to this side begins with: `credit` of our hello. */
  readonly initialCredit: number
  private nowMs = 0
  private readonly life = new SessionLife()
  private readonly patience: Patience

  private readonly paths: Paths
  private readonly flows: Flows
  /** Asks for cold pages, or answers: where the hellos agreed on cold sets. */
  readonly coldPages: ColdPages
  private peerDraining = false
  private readonly memory: Share

  private readonly answers: AnswerRoom
  private readonly outbox: Outbox
  private readonly inbox: Inbox
  private readonly rate: RateCap
  private readonly warmth: WarmUp | undefined

  constructor(options: SessionOptions) {
    this.role = options.role
    this.transport = options.transport
    this.patience = new Patience(options.patienceMs ?? PATIENCE_MS)
    this.warmth = options.warmUp
    this.rate = new RateCap(options.rate ?? Number.POSITIVE_INFINITY)
    this.initialCredit = options.initialCredit ?? CREDIT_INITIAL_BYTES
    this.memory = options.memory ?? new FairShares(MEMORY_BUDGET_BYTES).share('')
    const parts = { ...SESSION_PARTS, ...options.parts }
    this.paths = new Paths(parts.Path, options.queueTargetMs ?? QUEUE_TARGET_MS)
    this.answers = new parts.AnswerRoom(this.memory)
    this.outbox = new parts.Outbox(this.rate, this.answers, this.memory)
    const { role, transport, served, memory, outbox, answers, initialCredit } = this
    const fault = (code: ErrorCode, what: string): void => this.fault(code, what)
    this.flows = new Flows({
      ...{ role, transport, served, memory, outbox, answers, parts, initialCredit },
      ...{ flowPlaces: options.flowPlaces, weights: options.weights },
      now: () => this.nowMs,
      rttMinMs: () => this.paths.rttMinMs,
      opens: () => opensIn(this.life.state, this.paths.draining || (role === 'client' && this.peerDraining)),
      fault,
    })
    this.coldPages = new ColdPages({ role, transport, served, outbox, fault })
    this.inbox = new parts.Inbox((type, flags, flow, payload) => this.deliver(type, flags, flow, payload), memory)
  }

  get state(): SessionState {
    return this.life.state
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
    const old = this.paths.get(connection)
    if (old) this.dropPath(old)
    if (this.life.isBroken) this.patience.found(nowMs)
    const path = this.paths.add(connection, nowMs)
    this.life.enter('attach')
    if (this.life.isClosed) path.done = this.life.bye === undefined
    else if (peerReceived > this.outbox.lastSequence)
      this.fault('PROTOCOL_STATE', 'the peer claims frames that were never sent')
    else {
      this.acknowledge(peerReceived)
      this.flows.learnCredit(peerCredit)
      this.warmUp()
    }
    this.transport.onWork()
  }

  /**
   * A connection is gone: what it carried and was not acknowledged goes out again on others, or after the next attach. Nothing
   * more of what it pulled may be written to it: memory of raw batches, their frames' heads with it, is another batch's soon.
   */
  detach(connection: number, nowMs: number): void {
    this.nowMs = nowMs
    const path = this.paths.get(connection)
    if (!path) return
    this.dropPath(path)
    if (this.paths.count === 0) {
      this.outbox.padBytes = 0
      this.life.enter('lose')
      this.patience.lost(nowMs)
    }
    this.transport.onWork()
  }

  /** What a fresh connection takes is found out by PADs, while there is nothing else to send. */
  private warmUp(): void {
    if (!this.warmth || this.life.state !== 'live' || this.flows.size > 0) return
    const bytes = this.warmth.take(this.nowMs)
    if (bytes > 0) this.outbox.padBytes = bytes
  }

  private dropPath(path: Path): void {
    this.paths.remove(path)
    this.outbox.lost(path)
  }

  // Time -------------------------------------------------------------------------------------------------------------

  /** Heartbeats, dead connections, delayed ACKs, patience, rate. Call at `nextTickMs`; earlier or later does no harm. */
  tick(nowMs: number): void {
    this.nowMs = nowMs
    if (this.life.isClosed) return
    const { stillMs, dead, isWork } = this.paths.tick(nowMs)
    if (stillMs > 0) this.patience.stoodStill(stillMs, nowMs)
    for (const { path, why } of dead) this.giveUp(path, why)
    let work = isWork
    if (nowMs >= this.rate.wakeMs) {
      this.rate.wakeMs = Number.POSITIVE_INFINITY
      work = true
    }
    const isWaiting = this.outbox.acked < this.outbox.lastSequence
    const over = this.patience.over(this.life.isBroken, isWaiting, nowMs)
    if (over !== undefined) this.fault('PEER_LOST', over)
    else if (isWaiting && !this.life.isBroken) this.served.maybe?.onStalled(this.patience.stalledSinceMs)
    if (work) this.transport.onWork()
  }

  /** When `tick` is to be called next; Infinity: never, unless onWork comes. */
  get nextTickMs(): number {
    if (this.life.isClosed) return Number.POSITIVE_INFINITY
    const next = Math.min(this.rate.wakeMs, this.paths.nextTickMs)
    return this.life.isBroken ? Math.min(next, this.patience.brokenUntilMs) : next
  }

  // What arrives -----------------------------------------------------------------------------------------------------

  /**
   * One frame that arrived, from FrameDecoder. Keeps `frame.payload` (not `frame`), so the chunk it lies in must not be
   * written again. A peer that breaks the protocol ends the session: onDead, and a BYE to pull on every connection.
   */
  receive(connection: number, frame: Frame, nowMs: number) {
    this.nowMs = nowMs
    const path = this.paths.get(connection)
    if (!path || this.life.isClosed) return // came behind the end
    path.heardMs = nowMs
    const { type, sequence, payload } = frame
    if (sequence !== 0) {
      if (type === 0) return this.fault('PROTOCOL_SYNTAX', 'frame of type 0')
      if (type >= FRAME.ACK && type < FRAME_OPTIONAL) {
        return this.fault('PROTOCOL_SYNTAX', `frame of type ${type} with a sequence number`)
      }
      return this.receiveSequenced(path, frame)
    }
    switch (type) {
      case FRAME.ACK:
        return this.receiveAck(path, payload)
      case FRAME.PING:
        path.pong = copyOf(payload)
        return this.transport.onWork()
      case FRAME.PONG:
        if (readU64(payload, 0) !== path.pingCount) return
        path.ponged(nowMs)
        this.tellRoom()
        return this.transport.onWork() // its window may have grown
      case FRAME.BYE:
        return this.receiveBye(payload)
      case FRAME.DRAIN:
        if (this.peerDraining) return
        this.peerDraining = true
        return this.served.tell(sink => sink.onDrain())
      default:
        if (type < FRAME_OPTIONAL) this.fault('PROTOCOL_SYNTAX', `frame of type ${type} without a sequence number`)
    }
  }

  private receiveSequenced(path: Path, { type, flags, flow, sequence, payload }: Frame) {
    if (path.arrived(FRAME_HEAD_BYTES + payload.length, this.nowMs)) this.transport.onWork()
    const refused = this.inbox.take(type, flags, flow, sequence, payload)
    // Others have the memory. What came is not acknowledged, and so comes again; the missing frame with it.
    if (refused === 'no memory')
      this.giveUp(path, 'its frames came ahead of a missing one, and there is no memory for them')
    else if (refused) this.fault(...refused)
  }

  /** Somebody may wait for room: called for every frame. */
  private tellRoom(): void {
    if (this.answers.isAwaited) this.flows.tellRoom(this.paths.laneBytes)
  }

  /** A sequenced frame of the peer, in its order. */
  private deliver(type: number, flags: number, flow: number, payload: Uint8Array): void {
    if (type === FRAME.WANT) this.coldPages.deliverWant(payload)
    else if (type === FRAME.PAGE) this.coldPages.deliverPage(payload)
    else this.flows.deliver(type, flags, flow, payload)
  }

  /** Ends a connection that does not do its work; its frames go out again on another. */
  private giveUp(path: Path, why: string): void {
    const what = `connection ${path.connection} is given up: ${why}`
    this.detach(path.connection, this.nowMs)
    this.transport.onLost(
      path.connection,
      new ProxyError('PEER_LOST', what, undefined, 'its frames are sent again on another'),
    )
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
    this.transport.onWork()
  }

  private acknowledge(sequence: number): void {
    if (this.outbox.acknowledge(sequence)) this.patience.progress(this.nowMs)
    this.checkFlushed()
    this.tellRoom()
  }

  private receiveBye(payload: Uint8Array): void {
    this.life.toldBye()
    for (const path of this.paths.all) path.done = true
    this.clear()
    this.transport.onBye(reasonCode(payload), reasonText(payload))
  }

  // What is sent -----------------------------------------------------------------------------------------------------

  /**
   * Takes the next bytes to write on a connection. Call it whenever the socket takes bytes; write all of it, in order.
   * @param out views to write are appended: frame heads and parts of what was handed in (no copy).
   *   All of it is as it is until it is acknowledged; what is then still unwritten is to be dropped with its connection
   * @param maxBytes stops once so many are out: the last frame may go up to 16400 bytes beyond
   * @returns bytes appended; 0: nothing now, wait for onWork
   */
  pull(connection: number, maxBytes: number, nowMs: number, out: Uint8Array[]): number {
    this.nowMs = nowMs
    const path = this.paths.get(connection)
    if (!path || path.done || maxBytes <= 0) return 0
    const { outbox, life } = this
    if (life.isClosed) {
      path.done = true
      return outbox.writer.putSmall(out, FRAME.BYE, encodeReason(life.bye?.code ?? CODE.NONE, life.bye?.text ?? ''))
    }
    if (outbox.padBytes > 0 && Number.isFinite(this.paths.knownRate)) outbox.padBytes = 0 // what is left is for no later time
    this.rate.refill(nowMs)
    let total = pullPathFrames(path, this.inbox.acknowledged, nowMs, outbox.writer, out)
    const nothingWaited = outbox.acked === outbox.lastSequence
    while (total < maxBytes) {
      const bytes = outbox.pull(path, life.state !== 'closing', nowMs, out)
      if (bytes === 0) break
      total += bytes
      if (outbox.endsLaid && total >= maxBytes / 4) break // one piece is worth more than a full write
    }
    if (nothingWaited) this.patience.progress(nowMs)
    this.rate.spend(total)
    this.checkFlushed() // what was left may have been data of flows that were reset
    this.tellRoom()
    return total
  }

  /** True once this connection has pulled its last byte (BYE), or the peer ended the session: write out, then close it. */
  isDone(connection: number): boolean {
    return this.life.isClosed && (this.paths.get(connection)?.done ?? true)
  }

  // Flows ------------------------------------------------------------------------------------------------------------

  /** Who gets what arrives, from now on; once. What may come before (that the peer drains, or asks for pages) is told now. */
  serve(sink: FlowSink): void {
    this.served.begin(sink)
  }

  /**
   * Client only: opens a flow.
   * @returns its number
   * @throws ProxyError LIMIT_EXCEEDED where FLOWS_MAX are open; PROTOCOL_STATE where the session ends, or either side
   *   drains and no flow of the migration is open
   */
  openFlow(info: FlowInfo): number {
    this.outbox.padBytes = 0
    return this.flows.open(info)
  }

  /**
   * Bytes of the flow as they are; the session keeps the view until they are acknowledged. At most `credit(flow)`, and
   * better no more than `dataRoom` gives. Dropped where either side has reset the flow, or it is gone.
   */
  sendData(flow: number, bytes: Uint8Array): void {
    this.flows.sendData(flow, bytes)
  }

  /**
   * A whole batch (protocol.md §4). Takes effect after all batches handed in before, of any flow. The views are kept
   * until it is acknowledged: do not write to them before `release` is called.
   * @param rawLength bytes of the channel that it stands for: at most `credit(flow)`
   * @param release called at most once, when nobody needs the views any more; never where the session ends before
   * @param isLaid each part is one frame's, with room for its head before it, which the session writes (src/codec/laid-batch.ts)
   */
  sendBatch(flow: number, rawLength: number, parts: readonly Uint8Array[], release?: () => void, isLaid = false): void {
    this.flows.sendBatch(flow, rawLength, parts, release, isLaid)
  }

  /** The local QEMU closed its direction: FIN after all that was handed in. Nothing may be sent on the flow after it. */
  finFlow(flow: number): void {
    this.flows.fin(flow)
  }

  /**
   * Tears the flow down in both directions: after the batches handed in, without the data behind them. The last call for
   * a flow; also the answer to onReset. What still arrives for the flow is dropped, except batches.
   */
  resetFlow(flow: number, code: number, text: string): void {
    this.flows.reset(flow, code, text)
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
    return this.flows.unheard.has(flow)
  }

  /** Sequence number up to which the peer has all frames. */
  get acked(): number {
    return this.outbox.acked
  }

  /** Server: whether the client knows that the flow is taken: from then on it does not send it on another session. */
  isKnownTaken(flow: number): boolean {
    const taken = this.flows.get(flow)?.takenSequence ?? 0
    return taken > 0 && taken <= this.outbox.acked
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
    return this.flows.dataRoom(flow, wanted, this.paths.laneBytes)
  }

  /**
   * The local QEMU's socket took so many raw bytes of the flow: the peer may send as many more. Its window grows while the
   * QEMU keeps up, as far as the memory budget has it.
   */
  consumed(flow: number, bytes: number): void {
    this.flows.consumed(flow, bytes, Math.max(this.paths.rttMs, 1))
  }

  // What to encode ---------------------------------------------------------------------------------------------------

  /**
   * WAN bytes that further batches should have together: what the windows have room for, less what waits already. Later
   * is better: what is queued is parked. More than 0: a further batch should be encoded and handed in.
   */
  bulkRoom(nowMs: number): number {
    this.nowMs = nowMs
    return this.life.isUp ? bulkRoom(this.outbox, this.paths, this.rate) : 0
  }

  /** WAN bytes that were handed in, and that the peer has not acknowledged. */
  get waitingBytes(): number {
    return this.outbox.queuedBytes + this.outbox.unackedBytes
  }

  /** Bytes a millisecond that the connections take, as their windows have found out; Infinity while one still grows. */
  get knownRate(): number {
    return this.paths.knownRate
  }

  /**
   * WAN bytes of room that are worth waiting for: room comes in small steps, and a batch costs both sides the same
   * whatever it holds. What the link takes in a part of the queue target, never more than half of what room can become.
   */
  bulkQuantum(): number {
    return bulkQuantum(this.paths, this.rate)
  }

  /**
   * Which flow to encode a batch of next: that of the migration that has had the fewest WAN bytes for its weight while it
   * wanted some; flows of one migration take turns; urgent flows come first.
   * @param candidates flows that have bytes to encode and credit for them
   * @returns one of them, or -1 where there is none
   */
  pickFlow(candidates: readonly number[], nowMs: number): number {
    this.nowMs = nowMs
    return this.flows.pick(candidates)
  }

  /** Marks a flow whose bytes block a guest (postcopy, preempt): pickFlow takes it first. */
  setUrgent(flow: number, urgent: boolean): void {
    this.flows.setUrgent(flow, urgent)
  }

  /** Caps what this side sends, bytes a second over all connections; Infinity: no cap. */
  setRate(bytesPerSecond: number): void {
    this.rate.set(bytesPerSecond, this.nowMs)
    this.transport.onWork()
  }

  /** Sets the time that bytes may wait in the link beyond its round trip: less while a guest waits for its pages. */
  setQueueTarget(ms: number): void {
    this.paths.setTarget(ms)
    this.transport.onWork()
  }

  // The end ----------------------------------------------------------------------------------------------------------

  /** Tells the peer that this side opens and takes no new migrations; running ones go on. */
  drain(): void {
    this.paths.drain()
    this.transport.onWork()
  }

  /**
   * Ends the session in order: once all that was handed in is acknowledged, BYE 0 goes out on every connection. Flows
   * that have not ended by then end with it: drain, and wait for flowCount 0, to let them finish.
   * @param why told to the peer
   */
  close(nowMs: number, why = ''): void {
    this.nowMs = nowMs
    if (this.life.state === 'opening') this.patience.lost(nowMs) // now the patience runs
    this.life.close(why)
    this.outbox.padBytes = 0
    this.checkFlushed()
    this.transport.onWork()
  }

  /** Ends the session at once, with BYE and onDead. A batch that failed to expand: `abort(error)`. */
  abort(error: ProxyError, nowMs: number): void {
    this.nowMs = nowMs
    this.die(error)
  }

  private checkFlushed(): void {
    if (!this.life.isEnding || !this.outbox.isFlushed) return
    this.life.enter('flushed')
    this.clear()
    this.transport.onWork()
  }

  private fault(code: ErrorCode, what: string): void {
    this.die(new ProxyError(code, what, undefined, 'the session ends; migrations that ran over it are reset'))
  }

  private die(error: ProxyError): void {
    if (this.life.isClosed) return
    this.life.die({ code: wireCode(error.code), text: error.what })
    this.clear()
    this.transport.onDead(error)
    this.transport.onWork()
  }

  /** Lets go of all memory. */
  private clear(): void {
    this.memory.close()
    this.rate.leave()
    this.flows.clear()
    this.coldPages.clear()
    this.answers.clear()
    this.outbox.clear()
    this.inbox.clear()
  }

  /** Shortest round trip seen lately on any connection, milliseconds; 0 before the first measurement, and without connections. */
  get rttMinMs(): number {
    return this.paths.rttMinMs
  }

  stats(): SessionStats {
    const { state, paths, outbox, inbox, flows } = this
    return { state, ...paths.stats(), ...outbox.stats(), ...inbox.stats(), flows: flows.stats() }
  }
}
