/**
 * The destination proxy's half of a session: flows become connections to the destination QEMU, batches its bytes. Dials
 * only what its own configuration names, in the order in which flows were opened, and never otherwise: a probe kills a
 * waiting QEMU (wire format 1.3).
 */

import { FlowExpander } from '../codec/expander.ts'
import { PoolRegions } from '../codec/places.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import type { SessionLearning } from '../learning/learning.ts'
import { OWED_MS } from '../limits.ts'
import type { LinkSink } from '../link/api.ts'
import { ChannelHead } from '../migration/channel-ends.ts'
import { DialQueue } from '../migration/dial-queue.ts'
import { MigrationRecord } from '../migration/migration-record.ts'
import type { Cause } from '../migration/outcome.ts'
import { Patience, type PatienceTimes } from '../migration/patience.ts'
import type { ArrivalSummary } from '../migration/summary.ts'
import type { ReturnPathParser } from '../qemu/return-path.ts'
import { type Address, formatAddress, targetAtPort } from '../relay/address.ts'
import { dial } from '../relay/dialer.ts'
import type { QemuSocket, SocketClosed, SocketSink } from '../relay/qemu-socket.ts'
import type { FlowInfo } from '../session/api.ts'
import type { Session } from '../session/session.ts'
import { Inbound, type InboundChannel } from '../transfer/inbound.ts'
import type { Pool } from '../transfer/pool.ts'
import { CODE } from '../wan/wire.ts'
import type { SiteLog } from './events.ts'
import type { DestinationStatus } from './status.ts'

/** Bytes of the return path that one read may bring: a bitmap at a recovery has megabytes ... */
const READ_BYTES = 65536
/** ... all else some bytes; most channels have none. A read with less room than this would cut a message for nothing. */
const READ_MIN = 4096

/** While the WAN is broken a migration may turn out to be in postcopy, whose patience is another. */
const PATIENCE_LOOK_MS = 1000

export interface DestinationSessionOptions {
  readonly session: Session
  /** 32 hex digits, the same at the other side. */
  readonly sessionId: string
  readonly pool: Pool
  readonly seed: readonly [number, number]
  /** Whose share of expanding it gets. */
  readonly holder: string
  readonly learning?: SessionLearning | undefined
  /** What may be dialled now, by name. */
  readonly targets: () => ReadonlyMap<string, Address>
  readonly patience: PatienceTimes
  /** How many pieces may wait for QEMUs: counted, not in bytes. The session closes it. */
  readonly pieces: Share
  readonly log: SiteLog
  readonly now: () => number
  /** A batch was damaged: the session must end. */
  readonly onFailure: (error: ProxyError) => void
  /** A migration's last flow has ended. */
  readonly onMigrationEnd: (summary: ArrivalSummary) => void
  /** Others in place of parts of it: a test's, in virtual time or with a fault. */
  readonly parts?: Partial<DestinationParts> | undefined
}

/** What expands: Inbound. */
export type DestinationUnpacker = Pick<Inbound, 'observer' | 'push' | 'mark' | 'close'>

export interface DestinationParts {
  readonly unpacker: (options: DestinationSessionOptions) => DestinationUnpacker
  readonly DialQueue: typeof DialQueue<DestinationFlow>
  readonly dial: typeof dial
}

const DESTINATION_PARTS: DestinationParts = {
  unpacker: ({ pool, seed, onFailure, holder }) => new Inbound(pool, seed, onFailure, holder),
  DialQueue,
  dial,
}

class Arrival {
  readonly number: number
  readonly target: string
  readonly startMs: number
  readonly record: MigrationRecord
  readonly flows = new Set<DestinationFlow>()
  /** Its main channel, or what stands for it. */
  lead: DestinationFlow | undefined
  bytesOut = 0
  bytesBack = 0

  constructor(session: string, number: number, target: string, startMs: number) {
    this.record = new MigrationRecord(session, number)
    this.number = number
    this.target = target
    this.startMs = startMs
  }
}

export class DestinationSession implements LinkSink {
  readonly options: DestinationSessionOptions
  private readonly inbound: DestinationUnpacker
  private readonly parts: DestinationParts
  private readonly flows = new Map<number, DestinationFlow>()
  private readonly arrivals = new Map<number, Arrival>()
  private readonly dials: DialQueue<DestinationFlow>
  /** Flows that have ended, whose QEMU may still take bytes that lie in the pool. */
  private readonly lingering = new Set<DestinationFlow>()
  /** Expanders of flows that came while this side drains; their bytes are dropped. */
  private readonly untold = new Map<number, { readonly info: FlowInfo; readonly channel: InboundChannel }>()
  private readonly patience: Patience
  private patienceTimer: NodeJS.Timeout | undefined
  private ended = false

  constructor(options: DestinationSessionOptions) {
    this.options = options
    this.patience = new Patience(options.patience)
    this.parts = { ...DESTINATION_PARTS, ...options.parts }
    this.dials = new this.parts.DialQueue(flow => void this.dial(flow))
    this.inbound = this.parts.unpacker(options)
    this.inbound.observer = options.learning
  }

  get channelCount(): number {
    return this.flows.size
  }

  // --- LinkSink

  onOpen(number: number, info: FlowInfo): void {
    void this.options.pool.warm()
    let arrival = this.arrivals.get(info.migration)
    if (!arrival) {
      arrival = new Arrival(this.options.sessionId, info.migration, info.target, this.options.now())
      this.arrivals.set(info.migration, arrival)
      this.options.log.info('migration arrives', {
        migration: info.migration,
        id: arrival.record.id,
        target: info.target,
        kind: info.kind,
      })
    }
    const flow = new DestinationFlow(this, number, info, arrival)
    this.flows.set(number, flow)
    arrival.flows.add(flow)
    let address: Address
    try {
      address = this.resolve(info.target)
      flow.checkKind()
    } catch (error) {
      if (!isProxyError(error)) throw error
      flow.refused(error)
      return
    }
    flow.address = address
    if (info.kind === 'preempt') this.dials.wants(flow)
    this.dials.add(flow, formatAddress(address))
  }

  private async dial(flow: DestinationFlow): Promise<void> {
    try {
      flow.connected(await this.parts.dial(flow.address!, { signal: flow.abort.signal }))
    } catch (error) {
      if (!isProxyError(error)) throw error
      flow.refused(error)
    }
    this.dials.done(flow)
  }

  /** There is something to say to its QEMU. */
  wants(flow: DestinationFlow): void {
    this.dials.wants(flow)
  }

  /** A flow is over: nobody is to be dialled for it. */
  undial(flow: DestinationFlow): void {
    this.dials.gone(flow)
  }

  /** How it is: plain data. */
  status(): Pick<DestinationStatus['sessions'][number], 'migrations' | 'dialling' | 'pieces'> {
    const nowMs = this.options.now()
    return {
      migrations: Array.from(this.arrivals.values(), arrival => ({
        migration: arrival.number,
        id: arrival.record.id,
        target: arrival.target,
        ...arrival.record.guest,
        seconds: Math.round(nowMs - arrival.startMs) / 1000,
        channels: arrival.flows.size,
        postcopy: arrival.record.postcopy,
        bytes: arrival.bytesOut,
        bytesBack: arrival.bytesBack,
      })),
      dialling: this.dials.waiting,
      pieces: this.options.pieces.held,
    }
  }

  /** One more piece waits. @returns false where there are too many: the session ends */
  private hold(): boolean {
    const { pieces } = this.options
    if (pieces.take(1)) return true
    const what = `${pieces.held} pieces wait for QEMU`
    this.options.onFailure(new ProxyError('LIMIT_EXCEEDED', what, undefined, 'the session ends'))
    return false
  }

  /** QEMU took one, or nobody wants it any more. */
  letGo(): void {
    this.options.pieces.give(1)
  }

  onData(number: number, payload: Uint8Array): void {
    const flow = this.flows.get(number)
    if (flow && this.hold()) this.inbound.mark(() => flow.expanded(payload, () => {}))
  }

  onBatch(number: number, parts: readonly Uint8Array[]): void {
    // also of flows that broke here: the pool must follow every batch
    const channel = this.flows.get(number) ?? this.untoldChannel(number)
    if (channel) {
      if (this.hold()) this.inbound.push(channel, parts)
    } else this.options.onFailure(unknownFlow(number))
  }

  /** Of a flow whose OPEN crossed our DRAIN: the session refused it, its batches came all the same. */
  private untoldChannel(number: number): InboundChannel | undefined {
    const { session, pool } = this.options
    const info = session.infoOf(number)
    if (!info) return undefined
    let untold = this.untold.get(number)
    if (untold?.info !== info) {
      for (const [old, { info }] of this.untold) if (session.infoOf(old) !== info) this.untold.delete(old)
      const channel: InboundChannel = {
        expander: new FlowExpander(info.migration, PoolRegions.of(pool.kernel.layout)),
        expanded: (_bytes, release) => {
          this.letGo()
          release()
        },
      }
      untold = { info, channel }
      this.untold.set(number, untold)
    }
    return untold.channel
  }

  onFin(number: number): void {
    const flow = this.flows.get(number)
    this.inbound.mark(() => flow?.finFromPeer())
  }

  onReset(number: number, code: number, text: string): void {
    this.flows.get(number)?.resetByPeer(code, text)
  }

  onEnd(number: number): void {
    const flow = this.flows.get(number)
    this.flows.delete(number)
    flow?.sessionEnded()
  }

  onCredit(number: number): void {
    this.flows.get(number)?.sendBack()
  }

  onDrain(): void {}

  onBye(code: number, text: string): void {
    this.end(code === 0 ? 'the other proxy ended the session' : `the other proxy ended the session: ${text}`)
  }

  onDead(error: ProxyError): void {
    this.end(error.message)
  }

  onWork(): void {}

  onConnection(_connection: number, _up: boolean, standing: number): void {
    this.patience.wan(standing > 0, this.options.now())
    this.giveUp()
  }

  /** Ends migrations that have waited for the WAN long enough; the session itself may wait on for others. */
  private giveUp(): void {
    clearTimeout(this.patienceTimer)
    if (this.ended) return
    const nowMs = this.options.now()
    let next = Number.POSITIVE_INFINITY
    for (const { record, number, flows } of this.arrivals.values()) {
      const endMs = this.patience.endMs(record.postcopy)
      if (endMs > nowMs) {
        next = Math.min(next, endMs)
        continue
      }
      const reason = this.patience.reason(record.postcopy)
      if ([...flows].some(flow => flow.giveUp(reason)))
        this.options.log.warn('migration given up', { migration: number, id: record.id, reason })
    }
    if (next < Number.POSITIVE_INFINITY)
      this.patienceTimer = setTimeout(() => this.giveUp(), Math.min(next - nowMs + 1, PATIENCE_LOOK_MS))
  }

  /** Breaks all of QEMU's connections: the session is gone. */
  end(reason: string): void {
    if (this.ended) return
    this.ended = true
    clearTimeout(this.patienceTimer)
    this.dials.stop()
    this.inbound.close()
    for (const flow of [...this.flows.values(), ...this.lingering]) flow.sessionLost(reason)
    this.flows.clear()
    this.options.pieces.close()
  }

  /** A flow has ended, but not its connection. */
  lingers(flow: DestinationFlow, lingers: boolean): void {
    if (!lingers) {
      this.lingering.delete(flow)
      return
    }
    this.lingering.add(flow)
    setTimeout(() => {
      if (this.lingering.has(flow)) flow.letLinger()
    }, OWED_MS).unref()
  }

  /** A flow has nothing more to do. */
  left(flow: DestinationFlow): void {
    const { arrival } = flow
    arrival.flows.delete(flow)
    if (arrival.flows.size > 0) return
    this.arrivals.delete(arrival.number)
    // behind its last batches, as the source side has it
    if (!this.ended) this.inbound.mark(() => this.options.learning?.migrationEnded(arrival.number))
    this.options.onMigrationEnd({
      migration: arrival.number,
      id: arrival.record.id,
      target: arrival.target,
      ...arrival.record.guest,
      ...arrival.record.verdict(),
      seconds: Math.round(this.options.now() - arrival.startMs) / 1000,
      bytesOut: arrival.bytesOut,
      bytesBack: arrival.bytesBack,
      endedBy: arrival.record.endedBy,
    })
  }

  /** @param name 'NAME' or 'NAME:PORT' */
  private resolve(name: string): Address {
    const colon = name.lastIndexOf(':')
    const target = this.options.targets().get(colon < 0 ? name : name.slice(0, colon))
    if (target === undefined) {
      throw new ProxyError(
        'TARGET_REFUSED',
        `no target ${JSON.stringify(name)} here`,
        undefined,
        `give the destination proxy --target ${colon < 0 ? name : name.slice(0, colon)}=ADDRESS`,
      )
    }
    return targetAtPort(target, colon < 0 ? undefined : Number(name.slice(colon + 1)))
  }
}

function unknownFlow(number: number): ProxyError {
  return new ProxyError(
    'PROTOCOL_STATE',
    `a batch for flow ${number}, which is not open`,
    undefined,
    'the session ends',
  )
}

/** A source proxy opens no such flow: whatever else reached it, the destination QEMU would exit over it. */
function notOfQemu(what: string): ProxyError {
  return new ProxyError('TARGET_REFUSED', what, undefined, 'the destination QEMU was not dialled')
}

/** Why a dial ends that nobody waits for; made once, because a peer may bring about thousands of them. */
const GIVEN_UP = new Error('given up')

/** One connection to the destination QEMU. */
export class DestinationFlow implements SocketSink {
  readonly number: number
  readonly info: FlowInfo
  readonly arrival: Arrival
  readonly expander: FlowExpander
  /** Its target, where that may be dialled. */
  address: Address | undefined
  /** Gives up a dial that is no longer wanted. */
  readonly abort = new AbortController()
  /** The session knows it no more: by END, behind which QEMU still gets what is owed, or with the session. */
  private gone = false
  private readonly session: DestinationSession
  private socket: QemuSocket | undefined
  /** Expanded before the connection stood. */
  private early: { bytes: Uint8Array; release: () => void }[] = []
  private readonly head = new ChannelHead()
  /** The first bytes have not told yet that a channel of QEMU begins so. */
  private headAwaited = true
  private finDue = false
  /** Nothing more goes to QEMU. */
  private broken = false
  /** QEMU said that it has all it needs and went: what still comes for it is dropped. */
  private finished = false
  /** SHUT with success was read: it must reach the source, or the guest runs on both sides (wire format 1.6). */
  private shut = false
  private readonly returnPath: ReturnPathParser
  /** Bytes of QEMU that the session has no room for yet. */
  private back: Uint8Array | undefined
  private slab = new Uint8Array(0)
  private ended = false
  private finSent = false
  private resetSent = false

  constructor(session: DestinationSession, number: number, info: FlowInfo, arrival: Arrival) {
    this.session = session
    this.number = number
    this.info = info
    this.arrival = arrival
    this.expander = new FlowExpander(info.migration, PoolRegions.of(session.options.pool.kernel.layout))
    this.returnPath = arrival.record.returnPath(status => {
      this.shut = status === 0
    })
  }

  /** Nobody wants its connection any more. */
  get isOver(): boolean {
    return this.gone || this.broken
  }

  connected(socket: QemuSocket): void {
    if (this.isOver) {
      socket.reset()
      return
    }
    this.socket = socket
    for (const { bytes, release } of this.early.splice(0)) this.write(bytes, release)
    if (this.finDue) socket.finish()
    socket.start(this)
  }

  refused(error: ProxyError): void {
    if (this.isOver) return // we gave it up
    this.session.options.log.warn('target refused', {
      migration: this.info.migration,
      target: this.info.target,
      error: error.what,
      hint: error.action,
    })
    this.endsBy({ by: 'pair', how: 'broke', text: error.what })
    this.breakOff(CODE.TARGET_REFUSED, error.what)
  }

  /**
   * A preempt channel is dialled without a byte, so only where its migration has a main.
   * @throws ProxyError TARGET_REFUSED
   */
  checkKind(): void {
    if (this.info.kind !== 'preempt') return
    for (const other of this.arrival.flows) if (other !== this && other.info.kind !== 'preempt' && !other.isOver) return
    throw notOfQemu('a preempt channel without a migration')
  }

  /** Looks at bytes before they go on: at the first of a channel for what it is, at all of a main for how it ends. */
  private look(bytes: Uint8Array): void {
    const { head, arrival } = this
    if (!head.isFull) {
      head.push(bytes, 0, bytes.length)
      arrival.record.begins(head)
    }
    if (this.headAwaited) {
      const { kind } = head
      if (kind === 'unknown') this.refused(notOfQemu('what came does not begin as a channel of QEMU does'))
      this.headAwaited = kind === undefined
      if (kind === 'main' || kind === 'recovery' || (kind === 'tls' && !arrival.lead)) {
        arrival.lead = this
        arrival.record.leads(kind)
      }
    }
    if (arrival.lead === this) arrival.record.main(bytes, 0, bytes.length)
  }

  private endsBy(cause: Cause): void {
    this.arrival.record.ended(cause)
  }

  /** Bytes for QEMU. */
  expanded(bytes: Uint8Array, release: () => void): void {
    if (!this.broken) this.look(bytes)
    if (this.broken) {
      this.session.letGo()
      release()
    } else if (this.socket) this.write(bytes, release)
    else {
      this.early.push({ bytes, release })
      if (!this.headAwaited) this.session.wants(this)
    }
  }

  private write(bytes: Uint8Array, release: () => void): void {
    const taken = (): void => {
      if (!this.gone) this.session.options.session.consumed(this.number, bytes.length)
    }
    if (this.finished) {
      this.session.letGo()
      release()
      taken()
      return
    }
    this.arrival.bytesOut += bytes.length
    this.socket!.write(bytes, error => {
      this.session.letGo()
      release()
      // bytes that QEMU never got are not acknowledged, except where it needs them no more
      if (!error || this.shut) taken()
    })
  }

  finFromPeer(): void {
    this.endsBy({ by: 'source', how: 'closed', text: 'source QEMU closed' })
    if (this.headAwaited && this.info.kind !== 'preempt') this.refused(notOfQemu('it ended before it began'))
    this.finDue = true
    this.session.wants(this)
    this.socket?.finish()
  }

  resetByPeer(code: number, text: string): void {
    const by = code === CODE.QEMU_LOST ? 'source' : 'pair'
    this.endsBy({ by, how: 'broke', text: `the source side broke off${text ? `: ${text}` : ''}` })
    this.breakOff(CODE.NONE, '')
  }

  /** The WAN has been gone for too long. @returns false where it was over already */
  giveUp(reason: string): boolean {
    if (this.isOver || this.resetSent) return false
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    if (this.shut) this.arrival.record.unheard ??= reason
    this.breakOff(CODE.PEER_LOST, reason)
    return true
  }

  sessionEnded(): void {
    this.gone = true
    if (this.socket && !this.socket.isClosed) this.session.lingers(this, true)
    this.session.left(this)
  }

  /** Its QEMU has not read for too long what nobody pays for. */
  letLinger(): void {
    this.socket?.reset()
  }

  sessionLost(reason: string): void {
    this.endsBy({ by: 'pair', how: 'broke', text: reason })
    if (!this.gone) this.arrival.record.unheard ??= reason
    this.breakConnection()
    if (this.gone) return
    this.gone = true
    this.session.left(this)
  }

  private breakConnection(): void {
    if (this.broken) return
    this.broken = true
    this.abort.abort(GIVEN_UP)
    this.session.undial(this)
    for (const { release } of this.early.splice(0)) {
      this.session.letGo()
      release()
    }
    this.socket?.reset()
  }

  private breakOff(code: number, text: string): void {
    this.breakConnection()
    if (this.resetSent || this.gone) return
    this.resetSent = true
    this.session.options.session.resetFlow(this.number, code, text)
  }

  // --- SocketSink: the return path

  nextSlot(): Uint8Array | undefined {
    if (this.back !== undefined) return undefined
    // the session keeps what it is given, so memory is used once; a request of postcopy has 12 bytes
    if (this.slab.length < READ_MIN) this.slab = new Uint8Array(this.arrival.bytesBack > 0 ? READ_BYTES : READ_MIN)
    return this.slab
  }

  onBytes(count: number): void {
    this.back = this.slab.subarray(0, count)
    this.returnPath.push(this.slab, 0, count)
    this.slab = this.slab.subarray(count)
    this.sendBack()
  }

  /** Hands on what QEMU sent, as far as the session takes it. */
  sendBack(): void {
    const { back } = this
    if (back === undefined || this.resetSent || this.gone) return
    const { session } = this.session.options
    const take = session.dataRoom(this.number, back.length)
    if (take === 0) return
    this.arrival.bytesBack += take
    session.sendData(this.number, back.subarray(0, take))
    this.back = take < back.length ? back.subarray(take) : undefined
    if (this.back !== undefined) return
    this.socket?.resume()
    this.finBack()
  }

  onEnd(): void {
    this.ended = true
    this.endsBy({ by: 'destination', how: 'closed', text: 'destination QEMU closed' })
    this.finBack()
  }

  private finBack(): void {
    if (!this.ended || this.finSent || this.resetSent || this.gone || this.back !== undefined) return
    this.finSent = true
    this.session.options.session.finFlow(this.number)
  }

  onClosed(closed: SocketClosed): void {
    this.session.lingers(this, false)
    if (this.isOver) return
    if (closed.how === 'reset' || closed.how === 'error') {
      if (this.shut) {
        // it closed before it had read its last bytes (VMDESC), as it may: a good end, not a break
        this.finished = true
        this.onEnd()
        return
      }
      const text = `destination QEMU broke off (${closed.error?.code ?? closed.how})`
      this.endsBy({ by: 'destination', how: 'broke', text })
      this.breakOff(CODE.QEMU_LOST, `the destination QEMU's connection broke: ${closed.error?.code ?? closed.how}`)
    }
  }
}
