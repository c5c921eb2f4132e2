/**
 * The destination proxy's half of a session: flows become connections to the destination QEMU, batches its bytes. Dials
 * only what its own configuration names, in the order in which flows were opened, and never otherwise: a probe kills a
 * waiting QEMU (qemu-wire-format 1.3).
 */

import { allGains } from '../codec/set-gains.ts'
import { defectOf, isProxyError, ProxyError } from '../errors.ts'
import { QUEUE_TARGET_MS } from '../limits.ts'
import type { LinkSink } from '../link/api.ts'
import { TickTimer } from '../link/tick-timer.ts'
import type { Arrival } from '../migration/arrival.ts'
import { Arrivals } from '../migration/arrivals.ts'
import { DestinationLife } from '../migration/destination-life.ts'
import type { DialQueue } from '../migration/dial-queue.ts'
import { DiskArrival } from '../migration/disk-arrival.ts'
import { MigrationArrival } from '../migration/migration-arrival.ts'
import { Unconfirmed } from '../migration/unconfirmed.ts'
import { type Address, formatAddress, targetOf } from '../relay/address.ts'
import type { QemuSocket } from '../relay/qemu-socket.ts'
import type { FlowInfo } from '../session/api.ts'
import { ColdQuestions } from '../transfer/cold/cold-questions.ts'
import { KIND_DISK } from '../wan/wire.ts'
import { DestinationFlow, type DestinationFlowHost } from './destination-flow.ts'
import {
  DESTINATION_PARTS,
  type DestinationParts,
  type DestinationSessionOptions,
  type DestinationUnpacker,
} from './destination-parts.ts'
import { DestinationReplies } from './destination-replies.ts'
import type { SiteLog } from './events.ts'
import type { DestinationStatus } from './status.ts'
import { UnmappedSocket } from './unmapped-socket.ts'
import { UntoldChannels } from './untold-channels.ts'

/** Whatever is wrong with blocks that were kept: the session goes on without. */
function tellUnkept(log: SiteLog, { digest }: { readonly digest: string }, { message, action }: ProxyError): void {
  if (digest === '') log.warn('blocks of disks are not kept', { error: message, hint: action })
}

export class DestinationSession implements LinkSink, DestinationFlowHost {
  readonly options: DestinationSessionOptions
  private readonly inbound: DestinationUnpacker
  private readonly questions: ColdQuestions
  private readonly parts: DestinationParts
  private readonly flows = new Map<number, DestinationFlow>()
  private readonly arrivals: Arrivals<DestinationFlow>
  private readonly timer: TickTimer
  readonly dials: DialQueue<DestinationFlow>
  readonly replies: DestinationReplies | undefined
  private readonly unconfirmed: Unconfirmed<DestinationFlow>
  private readonly untold: UntoldChannels
  /** Time that bytes may wait in the link, as it was told. */
  private queueMs = Number.POSITIVE_INFINITY
  private ended = false
  /**
   * Settles when nothing of its pool is used any more: it has ended, no QEMU has anything coming, and nothing is encoded for
   * the way back. What else outlives it: docs/adr/0003-memory.md.
   */
  readonly released: Promise<void>
  private resolvePaid!: () => void
  private repliesEnded: Promise<void> | undefined

  constructor(options: DestinationSessionOptions) {
    this.options = options
    const paid = new Promise<void>(done => {
      this.resolvePaid = done
    })
    this.released = paid.then(() => this.repliesEnded)
    const { sessionId, patience, log, now } = options
    this.arrivals = new Arrivals(sessionId, patience, (given, reason) => given.tellGivenUp(log, reason))
    this.timer = new TickTimer(now, () => this.guard(() => this.tick()))
    this.parts = { ...DESTINATION_PARTS, ...options.parts }
    this.dials = new this.parts.DialQueue(flow => void this.dial(flow).catch(error => this.defect(error)))
    this.questions = new ColdQuestions(numbers => options.session.coldPages.ask(numbers))
    this.inbound = this.parts.unpacker(options, {
      ask: this.questions.ask,
      onFailure: (set, error) => {
        options.pool.cold?.forget(set.digest)
        tellUnkept(options.log, set, error)
        options.onSetFailure?.(error)
      },
    })
    this.replies = this.repliesOf(options)
    this.unconfirmed = new Unconfirmed(number => options.session.isKnownTaken(number))
    this.untold = new UntoldChannels(options.session, options.pool, () => this.letGo())
    this.inbound.observer = options.learning
  }

  private repliesOf(options: DestinationSessionOptions): DestinationReplies | undefined {
    const { session, seed, now, onFailure, replies: open, wake = () => {} } = options
    const packer = this.parts.replyPacker
    return open && new DestinationReplies({ session, seed, open, now, onFailure, wake, packer })
  }

  /** Those too that the session knows no more, and whose QEMUs have not got all of it. */
  get channelCount(): number {
    return this.flows.size + this.arrivals.owing
  }

  /** How many of them are of migrations. */
  get migrationChannelCount(): number {
    let count = 0
    for (const { migration } of this.flows.values()) if (migration instanceof MigrationArrival) count++
    return count
  }

  /** Disk transfers that run. */
  get transfers(): readonly DiskArrival<DestinationFlow>[] {
    return this.arrivals.transfers
  }

  // --- LinkSink

  onOpen(number: number, info: FlowInfo): void {
    const migration = this.migrationOf(info)
    if (migration instanceof MigrationArrival) this.options.pool.migrates(true)
    this.options.pool.warm().catch(error => this.defect(error))
    const flow = new DestinationFlow(this, number, info, migration, new DestinationLife(this.parts.channelTable))
    this.flows.set(number, flow)
    migration.flows.add(flow)
    migration.channels++
    let address: Address
    try {
      address = this.targetOf(info)
      flow.opened(address)
    } catch (error) {
      if (!isProxyError(error)) throw error
      flow.refused(error)
      return
    }
    if (info.replies !== undefined) this.replies?.wanted(info.replies)
    this.dials.add(flow, formatAddress(address))
  }

  /** @throws ProxyError TARGET_REFUSED */
  private targetOf({ kind, target }: FlowInfo): Address {
    const { targets, disks } = this.options
    if (kind !== KIND_DISK) return targetOf(target, targets())
    if (disks) return targetOf(target, disks(), '--disks')
    throw new ProxyError('TARGET_REFUSED', 'a disk in a session without', undefined, 'the other proxy is at fault')
  }

  private migrationOf({ migration, target, kind }: FlowInfo): Arrival<DestinationFlow> {
    const running = this.arrivals.get(migration)
    if (running) {
      running.isLearned = false // it goes on
      return running
    }
    const { log, now } = this.options
    const arrival = this.arrivals.begin(migration, target, kind, now())
    this.inbound.gains?.open(migration)
    arrival.tellArrives(log, kind)
    return arrival
  }

  wantsDial(flow: DestinationFlow): void {
    if (this.unconfirmed.admits(flow)) this.dials.wants(flow)
  }

  private async dial(flow: DestinationFlow): Promise<void> {
    const ofDisks = flow.info.kind === KIND_DISK
    let socket: QemuSocket | undefined
    try {
      flow.migration.checkTurn(flow)
      socket = await this.parts.dial(flow.address!, { signal: flow.abort.signal, ofDisks })
    } catch (error) {
      if (!isProxyError(error)) throw error
      flow.refused(error)
    }
    const unmaps = ofDisks && this.options.diskZeroes === 'unmap'
    if (socket) flow.connected(unmaps ? new UnmappedSocket(socket, error => this.defect(error)) : socket)
    this.dials.done(flow)
  }

  private tick(): void {
    const nowMs = this.options.now()
    this.arrivals.tick(nowMs)
    if (!this.ended) this.replies?.tick(nowMs)
    this.arm()
  }

  private arm(): void {
    if (this.isPaid) return
    const repliesMs = this.ended ? undefined : this.replies?.nextTickMs
    this.timer.arm(Math.min(this.arrivals.nextTickMs, repliesMs ?? Number.POSITIVE_INFINITY))
  }

  guard(run: () => void): void {
    try {
      run()
    } catch (error) {
      this.defect(error)
    }
  }

  defect(error: unknown): void {
    this.options.onFailure(defectOf(error))
  }

  /** How it is: plain data. */
  status(): Pick<DestinationStatus['sessions'][number], 'migrations' | 'disks' | 'dialling' | 'pieces'> {
    const nowMs = this.options.now()
    return {
      migrations: this.arrivals.migrations.map(migration => migration.status(nowMs)),
      disks: this.arrivals.transfers.map(transfer => transfer.status(nowMs)),
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

  letGo(): void {
    this.options.pieces.give(1)
  }

  onData(number: number, payload: Uint8Array): void {
    const flow = this.flows.get(number)
    if (flow && this.hold()) this.inbound.mark(() => flow.expanded(payload, () => {}), flow, payload.length)
  }

  onBatch(number: number, parts: readonly Uint8Array[]): void {
    // also of flows that broke here: the pool must follow every batch
    const channel = this.flows.get(number) ?? this.untold.get(number)
    if (channel) {
      if (this.hold()) this.inbound.push(channel, parts)
    } else this.options.onFailure(unknownFlow(number))
  }

  onTaken(): void {}
  onRefused(): void {}

  onPage(number: number, page: Uint8Array | undefined): void {
    if (this.questions.answered(number, page)) return
    const what = `page ${number} of a set, which was not asked for`
    this.options.onFailure(new ProxyError('PROTOCOL_STATE', what, undefined, 'the session ends'))
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
    if (flow) this.inbound.orphan?.(flow)
    flow?.sessionEnded()
    if (flow?.migration instanceof MigrationArrival && this.migrationChannelCount === 0)
      this.options.pool.migrates(false)
  }

  onCredit(number: number): void {
    this.flows.get(number)?.credited()
    this.replies?.wake()
  }

  onWant(): void {}
  onDrain(): void {}

  onStalled(sinceMs: number): void {
    const reason = this.arrivals.stalled(sinceMs, this.options.now())
    if (reason !== undefined) this.options.onFailure(new ProxyError('PEER_LOST', reason, undefined, 'the session ends'))
  }

  onBye(_code: number, text: string): void {
    this.end(text === '' ? 'the other proxy ended the session' : `the other proxy ended the session: ${text}`)
  }

  onDead(error: ProxyError): void {
    this.end(error.message)
  }

  /** The link is about to pull. */
  onWork(): void {
    if (this.ended) return
    if (this.replies) {
      this.followUrgency()
      this.replies.work()
      this.arm()
    }
    for (const flow of this.unconfirmed.acknowledged(this.options.session.acked)) this.dials.wants(flow)
  }

  /** While a guest waits for pages, next to nothing that is read of disks may lie in the link before its requests. */
  private followUrgency(): void {
    const { queueMs } = this.arrivals
    if (queueMs === this.queueMs) return
    this.queueMs = queueMs
    const { session, queueTargetMs = QUEUE_TARGET_MS } = this.options
    session.setQueueTarget(Math.min(queueTargetMs, queueMs))
  }

  onConnection(_connection: number, _up: boolean, standing: number): void {
    this.arrivals.wan(standing > 0, this.options.now())
    this.arm()
  }

  /**
   * Breaks QEMU's connections: the session is gone. But those whose flow has ended get what they have coming, expanded or
   * not: all of it is here, the source side has told that it is over, and the guest may run nowhere else.
   */
  end(reason: string): void {
    if (this.ended) return
    this.ended = true
    this.dials.stop()
    this.inbound.observer = undefined // learning has ended with the session
    this.questions.close()
    for (const flow of this.flows.values()) flow.sessionLost(reason)
    this.flows.clear()
    this.options.pieces.close()
    this.repliesEnded = this.replies?.end().catch(error => this.defect(error))
    this.settleUp()
  }

  /** The process ends: nobody gets anything any more. */
  abandon(reason: string): void {
    this.end(reason)
    for (const flow of this.arrivals.creditors) flow.sessionLost(reason)
  }

  private get isPaid(): boolean {
    return this.ended && this.arrivals.owing === 0
  }

  private settleUp(): void {
    this.arm()
    if (!this.isPaid) return
    this.inbound.close()
    this.timer.stop()
    this.resolvePaid()
  }

  owes(flow: DestinationFlow): void {
    this.arrivals.owes(flow, this.options.now())
    this.passed(flow.migration)
    this.arm()
  }

  settled(flow: DestinationFlow): void {
    this.arrivals.settled(flow)
    this.settleUp()
  }

  /** Learning knows of a migration's end behind its last batches, as the source side has it: whatever QEMU is still owed. */
  private passed(migration: Arrival<DestinationFlow>): void {
    if (this.ended || !(migration instanceof MigrationArrival) || migration.isLearned) return
    if (!this.arrivals.hasPassed(migration)) return
    migration.isLearned = true
    this.inbound.mark(() => {
      if (!this.ended) this.options.learning?.migrationEnded(migration.number)
    })
  }

  left(flow: DestinationFlow): void {
    this.unconfirmed.left(flow)
    const migration = this.arrivals.left(flow)
    this.passed(flow.migration)
    if (!migration) return
    const { now, onDiskEnd, onMigrationEnd } = this.options
    const { number } = migration
    const gains = allGains(this.inbound.gains?.take(number) ?? [], this.replies?.takeGains(number) ?? [])
    const sets = gains.length > 0 && { sets: gains }
    if (migration instanceof DiskArrival) onDiskEnd({ ...migration.summary(now()), ...sets })
    else if (migration instanceof MigrationArrival) onMigrationEnd({ ...migration.summary(now()), ...sets })
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
