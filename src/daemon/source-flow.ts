/**
 * One connection of the source QEMU, and its flow once it has one: what the socket brings goes to the channel that sends it,
 * what the peer says of the flow goes to the socket.
 */
import type { BatchStats } from '../codec/stats.ts'
import type { Effort } from '../compression/effort.ts'
import type { Share } from '../fair-shares.ts'
import { ChannelStart } from '../migration/channel-start.ts'
import type { Departure, DepartureChannel } from '../migration/departure.ts'
import type { Gate } from '../migration/gates.ts'
import type { Cause } from '../migration/outcome.ts'
import type { ChannelKind } from '../qemu/channel-kind.ts'
import { MainStreamParser, type ParserMemory } from '../qemu/main-stream.ts'
import type { ReturnPathParser } from '../qemu/return-path.ts'
import type { MultifdMethod, StreamPhase } from '../qemu/stream-sink.ts'
import type { SocketClosed, SocketSink } from '../relay/qemu-socket.ts'
import type { Session } from '../session/session.ts'
import type { Sender } from '../transfer/sender.ts'
import type { SendingChannel, SendingOwner } from '../transfer/sending-channel.ts'
import type { Slot } from '../transfer/slot-arena.ts'
import { CODE } from '../wan/wire.ts'
import type { SourceConnection } from './source-connection.ts'

/** All channels of one `migrate`. */
export type Migration = Departure<SourceFlow>

/** A listening port, as this half sees it. */
export type SourceGate = Gate<SourceFlow, Migration>

/** A connection that a session gives back. */
export interface Moved {
  readonly socket: SourceConnection
  readonly gate: SourceGate
}

/** What a flow needs of the half that it belongs to. */
export interface SourceFlowHost {
  readonly options: { readonly session: Session; readonly pieces: Share; readonly now: () => number }
  readonly sender: Sender
  /** The session has ended. */
  readonly over: boolean
  /** Its first bytes tell what it is. */
  classified(flow: SourceFlow): void
  /** It waits at its gate for nothing any more. */
  leaveGate(flow: SourceFlow): void
  /** Its migration's main has come to this. */
  phase(migration: Migration, phase: StreamPhase): void
  /** What cannot be understood of a channel, and why. */
  relayedRaw(migration: Migration, kind: ChannelKind, reason: string, position?: number): void
  /** A batch of its migration was handed in. */
  sent(migration: Migration): void
  /** Its flow is over; a migration may be, with it. */
  left(flow: SourceFlow): void
  /** Its socket is closed, too: nothing writes to its slot. */
  release(flow: SourceFlow): void
  /** There may be something to encode. */
  wake(): void
  /** Runs what the event loop calls: a defect that it finds ends the session. */
  guard(run: () => void): void
}

export class SourceFlow implements SocketSink, DepartureChannel, SendingOwner {
  readonly socket: SourceConnection
  readonly gate: SourceGate
  kind: ChannelKind = 'unknown'
  /** Number of its flow in the session; 0 before it is opened. */
  number = 0
  migration: Migration | undefined
  private readonly half: SourceFlowHost
  private readonly start = new ChannelStart()
  /** undefined before it is opened. */
  private sending: SendingChannel | undefined
  /** Of a migration's main: what its destination answers is followed. */
  private returnPath: ReturnPathParser | undefined
  /** QEMU sends no more. */
  private finished = false
  private closed = false
  /** Its connection belongs to another session by now. */
  private moved = false
  private hasLeft = false

  constructor(half: SourceFlowHost, socket: SourceConnection, gate: SourceGate) {
    this.half = half
    this.socket = socket
    this.gate = gate
  }

  // --- what others know of it

  get host(): string {
    return this.socket.peerHost
  }

  get isSilent(): boolean {
    return this.start.isSilent
  }

  /** Its first bytes, for logs; undefined where there are none. */
  get began(): string | undefined {
    return this.isSilent ? undefined : this.start.head.shown
  }

  get over(): boolean {
    return this.finished || this.closed
  }

  /** What the peer still says of its flow is not for its connection. */
  get isMoved(): boolean {
    return this.moved
  }

  get slot(): Slot | undefined {
    return this.sending?.slot
  }

  get stats(): BatchStats | undefined {
    return this.sending?.encoder.stats
  }

  get memory(): ParserMemory | undefined {
    const parser = this.sending?.encoder.parser
    return parser instanceof MainStreamParser ? parser.memory() : undefined
  }

  // --- SocketSink

  nextSlot(): Uint8Array | undefined {
    return this.sending ? this.sending.room() : this.start.room
  }

  onBytes(count: number): void {
    const { sending } = this
    if (sending) {
      this.follow(sending.filled(count, this.half.options.now()), count)
      this.half.wake()
      return
    }
    const kind = this.start.filled(count)
    if (kind === undefined) return
    this.kind = kind
    this.half.classified(this)
  }

  onEnd(): void {
    this.finished = true
    if (!this.sending) {
      this.half.leaveGate(this) // a probe, or a QEMU that gave up: the far side never hears of it
      this.socket.reset()
      return
    }
    this.closedBy({ by: 'source', how: 'closed', text: 'source QEMU closed' })
    this.sending.ends()
    this.half.wake()
  }

  onClosed({ how, error }: SocketClosed): void {
    this.closed = true
    if (this.hasLeft) {
      this.half.release(this)
      return
    }
    this.half.leaveGate(this)
    if (!this.sending) {
      this.leave()
      return
    }
    if (how !== 'reset' && how !== 'error') return
    this.endsBy({ by: 'source', how: 'broke', text: `source QEMU broke off (${error?.code ?? how})` })
    this.sending.breakOff(CODE.QEMU_LOST, `the source QEMU's connection broke: ${error?.code ?? how}`)
  }

  // --- SendingOwner

  phase(phase: StreamPhase): void {
    this.half.phase(this.migration!, phase)
  }

  strayed(position: number, reason: string): void {
    this.half.relayedRaw(this.migration!, this.kind, `${reason}: its end is looked for`, position)
  }

  degraded(position: number, reason: string): void {
    this.half.relayedRaw(this.migration!, this.kind, reason, position)
  }

  compressed(method: MultifdMethod): void {
    const advice = 'set multifd-compression none, the pair saves more'
    this.half.relayedRaw(this.migration!, this.kind, `QEMU compresses multifd with ${method}: ${advice}`)
  }

  encoded(rawBytes: number, effort: Effort): void {
    this.migration!.traffic.effortBytes[effort.level]! += rawBytes
    this.socket.resume()
  }

  sent(): void {
    this.half.sent(this.migration!)
  }

  // --- the half

  /** Its flow exists: what came early is encoded now. */
  opened(number: number, migration: Migration, slot: Slot): void {
    const { half, kind } = this
    const nowMs = half.options.now()
    this.number = number
    this.migration = migration
    const { blocks, memory, urgent, record } = migration
    this.sending = half.sender.open(
      {
        ...{ number, migration: migration.number, kind, urgent, owner: this },
        memory: { blocks, ...(memory ? { recovery: memory } : {}) },
      },
      slot,
    )
    migration.opened(this, nowMs)
    const leads = migration.lead === this
    if (leads) this.returnPath = record.returnPath()
    record.begins(this.start.head)
    const { bytes } = this.start
    if (leads) record.main(bytes, 0, bytes.length)
    this.sending.begins(bytes, nowMs)
    this.socket.resume()
  }

  /** The session is in the middle of closing: it goes on in another one, with its migration. */
  unopened(migration: Migration): void {
    this.migration = migration
    migration.flows.add(this)
  }

  /** A guest waits for what it sends. */
  hurry(): void {
    this.sending?.hurry()
  }

  fromPeer(payload: Uint8Array): void {
    const { session, pieces } = this.half.options
    const sending = this.sending!
    this.migration!.traffic.bytesBack += payload.length
    this.returnPath?.push(payload, 0, payload.length)
    this.socket.write(payload, error =>
      this.half.guard(() => {
        pieces.give(1)
        if (!sending.isOver && !error) session.consumed(this.number, payload.length)
      }),
    )
  }

  /** The destination QEMU closed its direction, and has been given all that it sent. */
  finFromPeer(): void {
    if (this.moved) return
    if (!this.over) this.closedBy({ by: 'destination', how: 'closed', text: 'destination QEMU closed' })
    this.socket.finish()
  }

  resetByPeer(code: number, text: string): void {
    const by = code === CODE.QEMU_LOST ? 'destination' : 'pair'
    this.endsBy({ by, how: 'broke', text: `the other side broke off: ${text || `code ${code}`}` })
    this.sending?.breakOff(CODE.NONE, '')
    if (!this.moved) this.socket.reset()
  }

  /** The other side has taken the flow. */
  taken(): void {
    if (this.moved) return
    this.migration!.taken = true
    this.socket.settle()
  }

  /**
   * Lets its connection go; what was encoded is brought to its end here.
   * @returns the connection, if it lives
   */
  moveAway(): Moved[] {
    const { socket, gate } = this
    const moved = this.moved || socket.isClosed ? [] : [{ socket, gate }]
    if (!this.moved) socket.detach()
    this.moved = true
    this.half.leaveGate(this)
    // without a flow in a session that lives nothing comes that could end it
    if (!this.sending || this.half.over) this.leave()
    else this.sending.breakOff(CODE.NONE, '')
    return moved
  }

  /** The WAN has been gone for too long. @returns false where it was over already */
  giveUp(reason: string): boolean {
    if (!this.sending || this.sending.isBroken) return false
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    this.sending.breakOff(CODE.PEER_LOST, reason)
    if (!this.moved) this.socket.reset()
    return true
  }

  /** Both directions have ended at the session. */
  sessionEnded(): void {
    this.leave()
  }

  /** The session is gone, and this flow with it. */
  sessionLost(reason: string): void {
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    this.socket.reset()
    this.leave()
  }

  /** Bytes of its channel, for what is told of its migration. */
  private follow(at: number, count: number): void {
    const { migration, sending } = this
    const { head } = this.start
    const { memory } = sending!
    if (migration!.lead === this) migration!.record.main(memory, at, count)
    if (head.isFull) return
    head.push(memory, at, count)
    migration!.record.begins(head)
  }

  /** A close in order ends a migration where it is main's: others may have said all that they have. */
  private closedBy(cause: Cause): void {
    if (this.migration?.lead === this) this.endsBy(cause)
  }

  private endsBy(cause: Cause): void {
    this.migration?.record.ended(cause)
  }

  private leave(): void {
    if (this.hasLeft) return
    this.hasLeft = true
    if (this.sending) this.half.sender.close(this.sending)
    // the gate outlives this session: the next one must not open what is gone
    this.half.leaveGate(this)
    // the socket may still write to the slot until it is closed
    if (this.closed || this.moved || this.socket.isClosed) this.half.release(this)
    this.half.left(this)
  }
}
