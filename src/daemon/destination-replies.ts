/**
 * The way back of a session's disks at the destination: what is read of them is encoded here, through a pool of its own,
 * which is opened when the first connection comes whose client takes that.
 */
import type { DiskConnection } from '../codec/disk-connection.ts'
import type { SetGain } from '../codec/set-gains.ts'
import { defectOf, ProxyError } from '../errors.ts'
import { REPLIES_CHANNELS_MAX } from '../limits.ts'
import type { Session } from '../session/session.ts'
import { EffortController } from '../transfer/effort-controller.ts'
import { type BatchSink, Outbound } from '../transfer/outbound.ts'
import type { OpenPool, Pool } from '../transfer/pool.ts'
import { Sender, type SenderPacker } from '../transfer/sender.ts'
import type { SendingChannel, SendingOwner } from '../transfer/sending-channel.ts'
import type { Slot } from '../transfer/slot-arena.ts'
import { KIND_DISK } from '../wan/wire.ts'

export interface DestinationRepliesOptions {
  readonly session: Session
  readonly seed: readonly [number, number]
  /** A pool with a ring of so many pages; undefined: there is no memory for one. */
  readonly open: (ringPages: number) => Promise<OpenPool | undefined>
  readonly now: () => number
  /** What was handed in by a client breaks a rule, or the codec failed: the session must end. */
  readonly onFailure: (error: ProxyError) => void
  /** Has `work` called at the end of this turn. */
  readonly wake: () => void
  /** Another one in place of Outbound: a test's. */
  readonly packer?: ReplyPacker | undefined
}

export type ReplyPacker = (
  pool: Pool,
  seed: readonly [number, number],
  sink: BatchSink<SendingChannel>,
  onError: (error: ProxyError) => void,
) => SenderPacker

/** A thread for LZ4 is started when there is something for it: a guest that waits is not behind it. */
class RepliesOutbound extends Outbound<SendingChannel> {
  override warm(): void {}
}

const PACKER: ReplyPacker = (pool, seed, sink, onError) => new RepliesOutbound(pool, seed, sink, onError)

export class DestinationReplies {
  private readonly options: DestinationRepliesOptions
  private readonly effort = new EffortController('auto')
  /** Settles when the pool is there, or is not to be had. */
  private opening: Promise<void> | undefined
  private ringPages = 0
  private pool: OpenPool | undefined
  private sender: Sender | undefined
  private ended = false

  constructor(options: DestinationRepliesOptions) {
    this.options = options
  }

  /** A connection came whose client takes what is encoded, with a ring of so many pages. */
  wanted(ringPages: number): void {
    const { onFailure } = this.options
    if (this.opening === undefined) {
      this.ringPages = ringPages
      this.opening = this.open(ringPages).catch(error => onFailure(defectOf(error)))
    } else if (ringPages !== this.ringPages) {
      const what = `a ring of ${ringPages} pages, and ${this.ringPages} before`
      onFailure(new ProxyError('PROTOCOL_SYNTAX', what, undefined, 'the session ends'))
    }
  }

  private async open(ringPages: number): Promise<void> {
    const { session, seed, open, onFailure, packer = PACKER } = this.options
    const pool = await open(ringPages)
    if (pool === undefined || this.ended) {
      await pool?.close()
      return
    }
    this.pool = pool
    this.effort.begin(session.rttMinMs)
    const make = (sink: BatchSink<SendingChannel>): SenderPacker => packer(pool, seed, sink, onFailure)
    this.sender = new Sender(session, pool, this.effort, make, undefined, REPLIES_CHANNELS_MAX)
  }

  /** What encodes a connection from now on. @returns undefined where there is no pool (yet), or no room in it */
  channel(
    number: number,
    migration: number,
    connection: DiskConnection,
    owner: SendingOwner,
  ): SendingChannel | undefined {
    const slot = this.sender?.takeSlot('migration') // of all there are: no migration wants any of these
    if (slot === undefined) return undefined
    const start = { number, migration, kind: KIND_DISK, memory: {}, urgent: false, owner, connection } as const
    return this.sender!.open(start, slot)
  }

  /** Its flow is over. */
  close(channel: SendingChannel): void {
    this.sender!.close(channel)
  }

  /** No socket writes to it any more. */
  giveSlot(slot: Slot): void {
    this.sender!.giveSlot(slot)
  }

  /** There may be something to encode. */
  wake(): void {
    this.options.wake()
  }

  /** The link is about to pull. */
  work(): void {
    if (!this.ended && this.sender?.work(this.options.now)) this.wake()
  }

  /** When `tick` is due; Infinity: not before something arrives. */
  get nextTickMs(): number {
    return this.ended ? Number.POSITIVE_INFINITY : (this.sender?.nextTickMs ?? Number.POSITIVE_INFINITY)
  }

  tick(nowMs: number): void {
    if (this.nextTickMs > nowMs) return
    this.sender!.tick(nowMs)
    this.wake()
  }

  /** What sets brought to a disk transfer, which is over. */
  takeGains(migration: number): readonly SetGain[] {
    return this.sender?.takeGains(migration) ?? []
  }

  /** The session is over. @returns when nothing of it works any more */
  async end(): Promise<void> {
    this.ended = true
    await this.opening
    await this.sender?.end()
    await this.pool?.close()
  }
}
