/**
 * The order of jobs on a session's way out: gives each channel a slot, has encoded what the pump wants, and hands the
 * batches in. Pure but for the packer it is given: times come in, `tick` is due at `nextTickMs`.
 */

import type { PageObserver } from '../codec/observer.ts'
import { PoolRegions } from '../codec/places.ts'
import type { SetGain } from '../codec/set-gains.ts'
import { EFFORTS } from '../compression/effort.ts'
import { CHANNEL_UNITS_KEPT, FLOWS_MAX } from '../limits.ts'
import type { GateKind } from '../migration/gate.ts'
import { ColdRation } from './cold/cold-ration.ts'
import type { EffortController } from './effort-controller.ts'
import type { BatchSink, Outbound } from './outbound.ts'
import type { Pool } from './pool.ts'
import { BATCH_BYTES_MAX, Pump, type PumpedChannel, type PumpedLink } from './pump.ts'
import { SendingChannel, type SendingLink, type SendingStart } from './sending-channel.ts'
import { SLOT_UNIT_BYTES, type Slot, SlotArena } from './slot-arena.ts'

/** A full slot has room behind a batch, so that moving an incomplete record to the front is seldom needed. */
const SLOT_UNITS = BATCH_BYTES_MAX / SLOT_UNIT_BYTES + 1

/** Batches of one turn of the event loop are encoded in the middle of it for so long: other connections wait meanwhile. */
const FULL_MS = 1

/** What it asks of the link; Session has it. */
export interface SenderLink extends PumpedLink, SendingLink {
  sendBatch(flow: number, rawLength: number, parts: readonly Uint8Array[], release?: () => void, isLaid?: boolean): void
}

/** What encodes and packs; Outbound does. */
export type SenderPacker = Pick<
  Outbound<SendingChannel>,
  'underWay' | 'hasRoom' | 'observer' | 'warm' | 'encode' | 'close'
> &
  Partial<Pick<Outbound<SendingChannel>, 'gains'>>

export class Sender {
  private readonly link: SenderLink
  private readonly memory: Uint8Array
  private readonly regions: PoolRegions
  private readonly slots: SlotArena
  private readonly packer: SenderPacker
  private readonly pump: Pump
  /** How much the other side may be made to read from its disk. */
  private readonly ration = new ColdRation()
  private readonly channels = new Map<PumpedChannel, SendingChannel>()
  /** When the first of this turn's channels was full; undefined: none was. */
  private fullMs: number | undefined

  /**
   * @param packer makes it, with who takes its batches
   * @param observer looks on as pages pass: learning
   * @param places channels at once
   */
  constructor(
    link: SenderLink,
    pool: Pool,
    effort: EffortController,
    packer: (sink: BatchSink<SendingChannel>) => SenderPacker,
    observer?: PageObserver,
    places = FLOWS_MAX,
  ) {
    const { slots, kernel } = pool
    this.link = link
    this.memory = kernel.bytes
    this.regions = PoolRegions.of(kernel.layout)
    this.slots = new SlotArena(slots[0]!, slots.length, SLOT_UNITS, places)
    this.packer = packer((channel, parts, { rawLength, packedLength, newBytes, effort, isLaid }, release) => {
      this.pump.packed(channel.pumped, rawLength, packedLength, newBytes, effort)
      link.sendBatch(channel.number, rawLength, parts, release, isLaid)
      channel.owner.sent()
      channel.settle()
    })
    if (effort.packsLz4) this.packer.warm()
    this.packer.observer = observer
    this.pump = new Pump(link, this.packer, effort)
  }

  /** A slot for a channel that came in at a gate of this kind; undefined where none is left. */
  takeSlot(at: GateKind): Slot | undefined {
    return this.slots.take(at === 'disk' ? CHANNEL_UNITS_KEPT : 0)
  }

  /** No socket writes to it any more. */
  giveSlot(slot: Slot): void {
    this.slots.give(slot)
  }

  /** A flow was opened. */
  open(start: SendingStart, slot: Slot): SendingChannel {
    const channel = new SendingChannel(start, slot, this.memory, this.regions, this.link, this.pump)
    this.channels.set(channel.pumped, channel)
    this.pump.add(channel.pumped)
    if (start.urgent || start.kind === 'preempt') this.link.setUrgent(channel.number, true)
    return channel
  }

  /** A channel's flow is over; its slot is its socket's until that is closed. */
  close(channel: SendingChannel): void {
    channel.pumped.broken = true
    this.pump.remove(channel.pumped)
    this.channels.delete(channel.pumped)
  }

  /**
   * The link is about to pull: encodes what the pump wants.
   * @returns true where it is to be called in the next turn of the event loop, whatever happens
   */
  work(nowMs: () => number): boolean {
    this.fullMs = undefined
    this.pump.nextTurn()
    this.encode(nowMs)
    return this.pump.gathering
  }

  /**
   * A channel has no room for more, in the middle of a turn: encodes what the pump wants, so that its socket reads on into the
   * slot. Where it waited for the turn's end, its socket would read a few bytes beside the slot, stop, and start again: two
   * short reads for each batch. `work` is due all the same.
   */
  full(nowMs: () => number): void {
    this.fullMs ??= nowMs()
    if (nowMs() - this.fullMs < FULL_MS) this.encode(nowMs)
  }

  private encode(nowMs: () => number): void {
    const { pump, packer } = this
    const waits = this.guestWaits
    for (let job = pump.next(nowMs()); job; job = pump.next(nowMs())) {
      const channel = this.channels.get(job.channel)!
      // a disk's blocks are always looked at
      const effort = job.effort.method === 'raw' && channel.encoder.isDisk ? EFFORTS[0]! : job.effort
      const bytes = packer.encode(channel, effort, job.release, !waits && this.ration.next(nowMs()), pump.linkIsBehind)
      pump.encoded(job.channel, bytes)
      channel.owner.encoded(bytes, effort)
    }
  }

  /**
   * A guest waits for its pages. The other side expands a session's batches one after the other, so that no disk may stand
   * before any of them, also not those of other guests.
   */
  private get guestWaits(): boolean {
    for (const { isUrgent } of this.channels.values()) if (isUrgent) return true
    return false
  }

  /** The other side asks for pages of sets that it was named, and that its disk has not given in time. */
  coldAsked(nowMs: number): void {
    this.ration.asked(nowMs)
  }

  /** Nothing is encoded any more, and nothing comes out. */
  async end(): Promise<void> {
    await this.packer.close()
  }

  /** A migration is over, or another session's. @returns what sets brought to it */
  takeGains(migration: number): readonly SetGain[] {
    return this.packer.gains?.take(migration) ?? []
  }

  /** When `tick` is due; Infinity: not before something arrives. */
  get nextTickMs(): number {
    return this.pump.nextTickMs
  }

  /** Sources have gone silent; `work` is due. */
  tick(nowMs: number): void {
    this.pump.tick(nowMs)
  }
}
