/**
 * One channel at the destination, or one connection of a disk: a flow of the session and a connection of QEMU. What is to be done with either, and when,
 * its life says (src/migration/destination-life.ts); here it is done.
 */
import { FlowExpander } from '../codec/flow-expander.ts'
import { PoolRegions } from '../codec/places.ts'
import type { ProxyError } from '../errors.ts'
import { OWED_MS } from '../limits.ts'
import { type Arrival, NOT_DIALLED } from '../migration/arrival.ts'
import type { ChannelWatch } from '../migration/channel-watch.ts'
import type { DestinationInput, DestinationLife, DestinationOrder } from '../migration/destination-life.ts'
import type { DialQueue } from '../migration/dial-queue.ts'
import type { Cause } from '../migration/outcome.ts'
import type { Address } from '../relay/address.ts'
import { guardedSink } from '../relay/guarded-sink.ts'
import type { SocketClosed, SocketSink } from '../relay/qemu-socket.ts'
import type { FlowInfo } from '../session/api.ts'
import type { Session } from '../session/session.ts'
import type { Pool } from '../transfer/pool.ts'
import { CODE, KIND_DISK } from '../wan/wire.ts'
import { DestinationReturn, type DestinationReturnHost, type DestinationReturnOwner } from './destination-return.ts'
import type { SiteLog } from './events.ts'
import type { DialledSocket } from './unmapped-socket.ts'

/** Why a dial ends that nobody waits for; made once, because a peer may bring about thousands of them. */
const GIVEN_UP = new Error('given up')

/** What a channel needs of the half that it belongs to. */
export interface DestinationFlowHost extends DestinationReturnHost {
  readonly options: {
    readonly session: Session
    readonly pool: Pool
    readonly log: SiteLog
    readonly now: () => number
  }
  readonly dials: DialQueue<DestinationFlow>
  /** There is something to say to its QEMU. */
  wantsDial(flow: DestinationFlow): void
  /** Ours, found by what a QEMU did: the session ends, and others go on. */
  defect(error: unknown): void
  /** Runs what the event loop calls: a defect of it is told. */
  guard(run: () => void): void
  /** QEMU took a piece, or nobody wants it any more. */
  letGo(): void
  /** Its flow has ended, and QEMU has not got everything yet. */
  owes(flow: DestinationFlow): void
  settled(flow: DestinationFlow): void
  /** Its migration has it no more. */
  left(flow: DestinationFlow): void
}

/** How the source is told that a flow is torn down; hint: what an operator can do about it. */
interface Why {
  readonly code: number
  readonly text: string
  readonly hint?: string
}

const NO_REASON: Why = { code: CODE.NONE, text: '' }
const ENDED_EARLY: Why = { code: CODE.TARGET_REFUSED, text: 'it ended before it began', hint: NOT_DIALLED }

export class DestinationFlow implements SocketSink, DestinationReturnOwner {
  readonly number: number
  readonly info: FlowInfo
  readonly migration: Arrival<DestinationFlow>
  readonly expander: FlowExpander
  /** Its target, where that may be dialled. */
  address: Address | undefined
  /** Gives up a dial that is no longer wanted. */
  readonly abort = new AbortController()
  private readonly host: DestinationFlowHost
  private readonly life: DestinationLife
  private socket: DialledSocket | undefined
  /** Expanded before the connection stood. */
  private readonly early: { bytes: Uint8Array; release: () => void }[] = []
  private readonly watch: ChannelWatch | undefined
  /** What its QEMU says. */
  private readonly back: DestinationReturn

  constructor(
    host: DestinationFlowHost,
    number: number,
    info: FlowInfo,
    migration: Arrival<DestinationFlow>,
    life: DestinationLife,
  ) {
    this.host = host
    this.number = number
    this.info = info
    this.migration = migration
    this.life = life
    this.expander = new FlowExpander(info.migration, PoolRegions.of(host.options.pool.kernel.layout))
    this.expander.isLearned = info.kind !== KIND_DISK
    this.watch = migration.watch()
    this.back = new DestinationReturn(host, this)
  }

  /** SHUT with success was read. */
  private get shut(): boolean {
    return this.watch?.shut === true
  }

  /** Nobody wants its connection any more. */
  get isOver(): boolean {
    return this.life.isOver
  }

  // --- its life

  /** @param why with what its flow is torn down, where that is what follows */
  private on(input: DestinationInput, why = NO_REASON): void {
    for (const order of this.life.on(input)) this.carryOut(order, why)
  }

  private carryOut(order: DestinationOrder, why: Why): void {
    const { host, number, socket } = this
    const { session } = host.options
    if (order === 'dial') host.wantsDial(this)
    else if (order === 'start') {
      for (const { bytes, release } of this.early.splice(0)) this.write(bytes, release)
      socket!.start(guardedSink(this, error => host.defect(error)))
    } else if (order === 'finish') socket!.finish()
    else if (order === 'refuse') this.tellRefused(why)
    else if (order === 'break') this.breakConnection()
    else if (order === 'owe') host.owes(this)
    else if (order === 'settle') host.settled(this)
    else if (order === 'fin') session.finFlow(number)
    else if (order === 'reset') this.back.reset(why)
    else {
      this.back.left()
      host.left(this)
    }
  }

  private tellRefused({ text, hint }: Why): void {
    const { migration, target } = this.info
    this.host.options.log.warn('target refused', { migration, target, error: text, hint: hint ?? '' })
    this.endsBy({ by: 'pair', how: 'broke', text })
  }

  private breakConnection(): void {
    this.abort.abort(GIVEN_UP)
    this.host.dials.gone(this)
    for (const { release } of this.early.splice(0)) {
      this.host.letGo()
      release()
    }
    this.socket?.reset()
  }

  /** A close in order ends a migration where it is main's: others may have said all that they have. */
  private closedBy(cause: Cause): void {
    if (this.migration.lead === this) this.endsBy(cause)
  }

  private endsBy(cause: Cause): void {
    this.migration.record.ended(cause)
  }

  // --- its dial

  /** It may be dialled: at once, or when it has something to say. @throws ProxyError TARGET_REFUSED */
  opened(address: Address): void {
    this.address = address
    if (this.migration.admits(this)) this.on('begins')
  }

  connected(socket: DialledSocket): void {
    this.socket = socket
    this.migration.reached(this)
    this.on('connected')
  }

  refused({ what, action }: ProxyError): void {
    this.on('refused', { code: CODE.TARGET_REFUSED, text: what, hint: action })
  }

  // --- from the source

  /** Looks at bytes before they go on: at the first of a channel for what it is, at all of a main for how it ends. */
  private look(bytes: Uint8Array): void {
    const { watch, migration } = this
    this.back.hears(bytes)
    if (!watch) return
    const kind = watch.begins(bytes)
    if (kind !== undefined) migration.begins(this, kind)
    if (kind === 'unknown') {
      const text = 'what came does not begin as a channel of QEMU does'
      this.on('refused', { code: CODE.TARGET_REFUSED, text, hint: NOT_DIALLED })
    } else if (kind !== undefined) this.on('begins')
    if (migration.lead === this) migration.record.main(bytes, 0, bytes.length)
  }

  /** Bytes for QEMU, which may also come behind the flow's end. */
  expanded(bytes: Uint8Array, release: () => void): void {
    const { life } = this
    if (life.bytesGo !== 'drop') this.look(bytes)
    const { bytesGo } = life
    if (bytesGo === 'write') this.write(bytes, release)
    else if (bytesGo === 'keep') this.early.push({ bytes, release })
    else {
      this.host.letGo()
      release()
      if (bytesGo === 'take') this.taken(bytes.length)
    }
  }

  private write(bytes: Uint8Array, release: () => void): void {
    const { length } = bytes
    this.migration.bytesOut += length
    this.socket!.write(bytes, error =>
      this.host.guard(() => {
        this.host.letGo()
        release()
        // bytes that QEMU never got are not acknowledged, except where it needs them no more
        if (!error || this.shut) this.taken(length)
      }),
    )
  }

  private taken(bytes: number): void {
    if (this.life.isKnown) this.host.options.session.consumed(this.number, bytes)
  }

  /** The source QEMU closed its direction; all before it is expanded. */
  finFromPeer(): void {
    this.closedBy({ by: 'source', how: 'closed', text: 'source QEMU closed' })
    this.on('fin', ENDED_EARLY)
  }

  resetByPeer(code: number, text: string): void {
    if (this.back.isResetDue) return // both have torn it down: ours waits for what is being packed
    if (code === CODE.CANCELLED) {
      this.endsBy({ by: 'operator', how: 'broke', text })
      if (this.shut) this.migration.record.unheard ??= text
    } else {
      const by = code === CODE.QEMU_LOST ? 'source' : 'pair'
      this.endsBy({ by, how: 'broke', text: `the source side broke off${text ? `: ${text}` : ''}` })
    }
    this.on('reset')
  }

  // --- from the session

  /** The WAN has been gone for too long. @returns false where it was over already */
  giveUp(reason: string): boolean {
    if (this.isOver) return false
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    if (this.shut) this.migration.record.unheard ??= reason
    this.on('givenUp', { code: CODE.PEER_LOST, text: reason })
    return true
  }

  /** Both directions have ended there. */
  sessionEnded(): void {
    this.on('ended')
  }

  /** Its QEMU has not read for too long what nobody pays for. */
  overdue(): void {
    if (this.life.isOwed) {
      const text = `the ${this.migration.server} has not read for ${OWED_MS / 1000} s what it has coming`
      this.endsBy({ by: 'destination', how: 'broke', text })
    }
    this.on('overdue')
  }

  sessionLost(reason: string): void {
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    if (this.life.isKnown) this.migration.record.unheard ??= reason
    this.on('lost')
  }

  /** What may be sent has grown. */
  credited(): void {
    this.back.credited()
  }

  // --- DestinationReturnOwner

  answers(bytes: Uint8Array): void {
    this.watch?.answers(bytes, 0, bytes.length)
  }

  resume(): void {
    this.socket?.resume()
  }

  allSent(): void {
    this.on('sent')
  }

  // --- SocketSink

  nextSlot(): Uint8Array | undefined {
    return this.back.room()
  }

  onBytes(count: number): void {
    this.back.landed(count)
  }

  onEnd(): void {
    this.closedBy({ by: 'destination', how: 'closed', text: 'destination QEMU closed' })
    this.on('end')
    this.back.ends()
  }

  onClosed({ how, error }: SocketClosed): void {
    this.back.closed()
    // behind SHUT it may close before it has read its last bytes (VMDESC): a good end, not a break
    const broke = (how === 'reset' || how === 'error') && !this.shut
    const { server } = this.migration
    if (!this.isOver || this.life.isOwed) {
      const code = error?.code ?? how
      if (broke) this.endsBy({ by: 'destination', how: 'broke', text: `${server} broke off (${code})` })
      else this.closedBy({ by: 'destination', how: 'closed', text: 'destination QEMU closed' })
    }
    if (broke) {
      const text = `the ${server}'s connection broke: ${error?.code ?? how}`
      this.on('broke', { code: CODE.QEMU_LOST, text })
    } else {
      this.on('closed')
      this.back.tellSent()
    }
  }
}
