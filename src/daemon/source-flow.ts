/**
 * One channel at the source, or one connection of a disk: a connection of QEMU, and its flow once it has one. What is to be
 * done with either, and when, its life says (src/migration/source-life.ts); here it is done.
 */
import type { BatchStats } from '../codec/stats.ts'
import type { Effort } from '../compression/effort.ts'
import type { Share } from '../fair-shares.ts'
import { ChannelStart } from '../migration/channel-start.ts'
import type { Departure } from '../migration/departure.ts'
import type { FlowKind, Gate } from '../migration/gate.ts'
import { BY_OPERATOR, type Cause } from '../migration/outcome.ts'
import type { MemoryPlace } from '../migration/progress.ts'
import type { SourceChannel, SourceChannels } from '../migration/source-channels.ts'
import { SourceFacts } from '../migration/source-facts.ts'
import type { SourceInput, SourceLife, SourceOrder } from '../migration/source-life.ts'
import type { OwedWrites } from '../migration/summary.ts'
import type { ParserMemory } from '../qemu/main-stream.ts'
import type { ReturnPathParser } from '../qemu/return-path.ts'
import type { SocketClosed } from '../relay/qemu-socket.ts'
import type { Session } from '../session/session.ts'
import type { Sender } from '../transfer/sender.ts'
import type { SendingChannel, SendingOwner } from '../transfer/sending-channel.ts'
import type { Slot } from '../transfer/slot-arena.ts'
import { CODE } from '../wan/wire.ts'
import type { ConnectionSink, FlowConnection, SourceConnection } from './source-connection.ts'

/** All channels of one `migrate`, or all connections of one disk transfer. */
export type Migration = Departure<SourceFlow>

/** A listening port, as this half sees it. */
export type SourceGate = Gate<SourceFlow, Migration>

/** A connection that a session gives back. */
export interface Moved {
  readonly socket: SourceConnection
  readonly gate: SourceGate
}

/** How the other side is told that a flow is torn down. */
interface Why {
  readonly code: number
  readonly text: string
}

const CANCELLED: Cause = { by: 'operator', how: 'broke', text: BY_OPERATOR }

const NO_REASON: Why = { code: CODE.NONE, text: '' }
const CLOSED_UNANSWERED: Why = {
  code: CODE.CANCELLED,
  text: 'the source QEMU closed before it heard that the destination QEMU has taken over',
}

/** What a flow needs of the half that it belongs to. */
export interface SourceFlowHost {
  readonly options: { readonly session: Session; readonly pieces: Share; readonly now: () => number }
  readonly sender: Sender
  /** All of its session's, to which it tells what happens to it. */
  readonly channels: SourceChannels<SourceFlow, Slot>
  /** There may be something to encode. */
  wake(): void
  /** A channel has no room before something is encoded. */
  full(): void
  /** Runs what the event loop calls: a defect that it finds ends the session. */
  guard(run: () => void): void
}

export class SourceFlow implements ConnectionSink, SendingOwner, SourceChannel<SourceFlow, Slot> {
  readonly socket: FlowConnection
  readonly gate: SourceGate
  kind: FlowKind
  /** Number of its flow in the session; 0 before it is opened. */
  number = 0
  migration: Migration | undefined
  private readonly half: SourceFlowHost
  private readonly life: SourceLife
  /** undefined: a disk's, which need not tell what it is. */
  private readonly start: ChannelStart | undefined
  /** undefined before it is opened. */
  private sending: SendingChannel | undefined
  /** Of a migration's main: what its destination answers is followed. */
  private returnPath: ReturnPathParser | undefined
  /** With what its flow is torn down. */
  private why = NO_REASON
  /** Its QEMU closed before it had a flow. */
  private endedEarly = false
  /** Bytes of the other side have come. */
  private answered = false
  /** Its connection belongs to another session by now. */
  private detached = false
  /** The session has forgotten its flow, whose number may be another's now. */
  private isForgotten = false

  constructor(half: SourceFlowHost, socket: FlowConnection, gate: SourceGate, life: SourceLife) {
    this.half = half
    this.life = life
    this.socket = socket
    this.gate = gate
    this.kind = gate.traits.first
    if (gate.kind === 'migration') this.start = new ChannelStart()
  }

  // --- what others know of it

  get peer(): string {
    return this.socket.peer
  }

  get host(): string {
    return this.socket.peerHost
  }

  get isSilent(): boolean {
    return this.start?.isSilent ?? true
  }

  /** Its first bytes, for logs; undefined where there are none. */
  get began(): string | undefined {
    return this.isSilent ? undefined : this.start?.head.shown
  }

  get isUnanswered(): boolean {
    return !this.answered
  }

  get over(): boolean {
    return this.life.isEnding || this.endedEarly || this.socket.isClosed
  }

  get slot(): Slot | undefined {
    return this.sending?.slot
  }

  get stats(): BatchStats | undefined {
    return this.sending?.encoder.stats
  }

  get unanswered(): number {
    return this.sending?.unanswered ?? 0
  }

  get owed(): OwedWrites | undefined {
    return this.socket.owed
  }

  get place(): MemoryPlace | undefined {
    return this.sending?.encoder.place
  }

  get memory(): ParserMemory | undefined {
    return this.sending?.encoder.parser?.memory?.()
  }

  get isLast(): boolean | undefined {
    return this.sending?.encoder.parser?.isStopped
  }

  // --- its life

  /** @param why with what its flow is torn down, where that is what follows. @returns what was done */
  private on(input: SourceInput, why = NO_REASON): readonly SourceOrder[] {
    const orders = this.life.on(input)
    for (const order of orders) this.carryOut(order, why)
    return orders
  }

  private carryOut(order: SourceOrder, why: Why): void {
    const { half, number, socket, sending } = this
    const { session } = half.options
    if (order === 'ungate') half.channels.leaveGate(this)
    else if (order === 'settle') socket.settle()
    else if (order === 'finish') socket.finish()
    else if (order === 'break') socket.reset()
    else if (order === 'detach') this.detach()
    else if (order === 'drain') {
      sending!.ends()
      half.wake()
    } else if (order === 'drop') {
      this.why = why
      sending!.drops()
    } else if (order === 'fin') session.finFlow(number)
    else if (order === 'reset') {
      if (!this.isForgotten) session.resetFlow(number, this.why.code, this.why.text)
    } else if (order === 'leave') this.leave()
    else if (this.detached || socket.isClosed) half.channels.release(this)
  }

  private detach(): void {
    this.socket.detach()
    this.detached = true
  }

  private leave(): void {
    if (this.sending) this.half.sender.close(this.sending)
    this.half.channels.left(this)
  }

  /** A close in order ends a migration where it is main's: others may have said all that they have. */
  private closedBy(cause: Cause): void {
    if (this.migration?.lead === this) this.endsBy(cause)
  }

  private endsBy(cause: Cause): void {
    this.migration?.record.ended(cause)
  }

  // --- SocketSink

  nextSlot(): Uint8Array | undefined {
    return this.sending ? this.sending.room() : this.start?.room
  }

  onBytes(count: number): void {
    const { sending } = this
    if (sending) {
      const { half } = this
      this.follow(sending.filled(count, half.options.now()), count)
      // a disk's bytes may come out of a journal, in the middle of what that does
      if (sending.isFull && this.gate.kind === 'migration') half.full()
      half.wake()
      return
    }
    const kind = this.start!.filled(count)
    if (kind === undefined) return
    this.kind = kind
    this.half.channels.known(this)
  }

  onEnd(): void {
    this.closedBy({ by: 'source', how: 'closed', text: 'source QEMU closed' })
    this.endedEarly = this.number === 0
    const { migration } = this
    if (migration?.lead !== this || !migration.record.isUnanswered) {
      this.on('eof')
      return
    }
    // with all of it the destination QEMU would run the guest, too: what has not left never does
    this.on('givenUp', CLOSED_UNANSWERED)
  }

  onEndBehind(): void {
    this.half.channels.endsBehind(this)
  }

  onClosed({ how, error }: SocketClosed): void {
    if (how !== 'reset' && how !== 'error') {
      this.on('closed')
      return
    }
    const code = error?.code ?? how
    const { client: who } = this.gate.traits
    if (this.life.isUp) this.endsBy({ by: 'source', how: 'broke', text: `${who} broke off (${code})` })
    this.on('broke', { code: CODE.QEMU_LOST, text: `the ${who}'s connection broke: ${code}` })
  }

  // --- SendingOwner

  encoded(rawBytes: number, effort: Effort): void {
    this.migration!.traffic.encoded(this.sending!.encoder.stats, rawBytes, effort.level)
    this.socket.resume()
  }

  sent(): void {
    this.half.channels.sent(this)
  }

  packed(emptied: boolean): void {
    this.on(emptied ? 'emptied' : 'packed')
  }

  // --- the half

  refused(): void {
    this.socket.reset()
  }

  /** Its flow exists: what came early is encoded now. */
  opened(number: number, migration: Migration, slot: Slot): void {
    this.on('opened')
    const { half, kind } = this
    const nowMs = half.options.now()
    this.number = number
    this.migration = migration
    const { parsing, urgent } = migration
    this.sending = half.sender.open(
      {
        ...{ number, migration: migration.number, kind, urgent, memory: parsing },
        ...{ owner: this, facts: new SourceFacts<SourceFlow, Slot>(half.channels, this) },
      },
      slot,
    )
    migration.opened(this, nowMs)
    if (this.start) this.begins(this.start, nowMs)
    this.socket.resume()
  }

  /** What told what it is goes first. */
  private begins({ head, bytes }: ChannelStart, nowMs: number): void {
    const { record, lead } = this.migration!
    if (lead === this) {
      const { now } = this.half.options
      this.returnPath = record.returnPath(status => {
        if (status !== 0) return
        this.migration!.takenOver(now())
        if (!this.life.isUp) record.unheard ??= CLOSED_UNANSWERED.text
      })
    }
    record.begins(head)
    if (lead === this) record.main(bytes, 0, bytes.length)
    this.sending!.begins(bytes, nowMs)
  }

  /** The session is in the middle of closing: it goes on in another one, with its migration. */
  unopened(migration: Migration): void {
    this.migration = migration
    migration.flows.add(this)
  }

  /** A guest waits for what it sends, or does so no more. */
  hurry(isUrgent = true): void {
    this.sending?.hurry(isUrgent)
  }

  /** Bytes of the other side, as they came. */
  fromPeer(payload: Uint8Array): void {
    this.crossed(payload.length)
    this.expanded(payload, () => {})
  }

  /** So much of the WAN was for what the other side says. */
  crossed(bytes: number): void {
    this.migration!.traffic.bytesBackWan += bytes
  }

  /** The same out of memory that is lent. */
  expanded(payload: Uint8Array, release: () => void): void {
    const { life } = this
    const { session, pieces } = this.half.options
    this.migration!.traffic.bytesBack += payload.length
    this.answered = true
    this.returnPath?.push(payload, 0, payload.length)
    this.sending!.hears(payload)
    if (!life.isUp) {
      pieces.give(1)
      release()
      return
    }
    this.socket.write(payload, error =>
      this.half.guard(() => {
        pieces.give(1)
        release()
        if (life.isUp && !error && !this.isForgotten) session.consumed(this.number, payload.length)
      }),
    )
  }

  /** The destination QEMU closed its direction, and has been given all that it sent. */
  finFromPeer(): void {
    if (!this.over) {
      if (this.sending?.encoder.parser?.isOpen)
        this.endsBy({ by: 'destination', how: 'broke', text: 'the server closed before its client did' })
      else this.closedBy({ by: 'destination', how: 'closed', text: 'destination QEMU closed' })
    }
    this.on('fin')
  }

  resetByPeer(code: number, text: string): void {
    const by = code === CODE.QEMU_LOST ? 'destination' : 'pair'
    this.endsBy({ by, how: 'broke', text: `the other side broke off: ${text || `code ${code}`}` })
    this.on('reset')
  }

  /** The other side has taken the flow. */
  taken(): void {
    this.migration!.taken = true
    this.on('taken')
  }

  /**
   * Lets its connection go; what was encoded is brought to its end here.
   * @returns the connection, if it lives
   */
  moveAway(): Moved[] {
    const { socket, gate } = this
    const lives = !socket.isClosed
    // without a flow in a session that lives nothing comes that could end it
    const orders = this.on(this.half.channels.over ? 'outlives' : 'moved')
    return lives && orders.includes('detach') ? [{ socket: socket.kept, gate }] : []
  }

  /** The WAN has been gone for too long. @returns false where it was over already */
  giveUp(reason: string): boolean {
    return this.tearDown({ by: 'pair', how: 'broke', text: reason }, CODE.PEER_LOST)
  }

  cancel(): boolean {
    return this.tearDown(CANCELLED, CODE.CANCELLED)
  }

  private tearDown(cause: Cause, code: number): boolean {
    if (!this.life.isUp) return false
    this.endsBy(cause)
    this.on('givenUp', { code, text: cause.text })
    return true
  }

  /** Its flow is no more, and what came of it is still handed on. */
  forgotten(): void {
    this.isForgotten = true
  }

  /** Both directions have ended at the session. */
  sessionEnded(): void {
    this.on('ended')
  }

  /** The session is gone, and this flow with it. */
  sessionLost(reason: string): void {
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    this.on('lost')
  }

  /** Bytes of its channel, for what is told of its migration. */
  private follow(at: number, count: number): void {
    const { migration, sending, start } = this
    if (!start) return
    const { head } = start
    const { memory } = sending!
    if (migration!.lead === this) {
      const { record } = migration!
      record.main(memory, at, count)
      sending!.pumped.mayEnd = record.isUnanswered // a cancel may lie behind it in the kernel
    }
    if (head.isFull) return
    head.push(memory, at, count)
    migration!.record.begins(head)
  }
}
