/**
 * One channel on its way out: where its bytes wait, what finds records in them, and when all that came of it is handed in,
 * so that its flow can end. Sender makes it.
 */
import { copyOfRange, copyRange } from '../bytes/copy.ts'
import { DiskConnection, type DiskFacts } from '../codec/disk-connection.ts'
import { FlowEncoder, type StreamFacts } from '../codec/flow-encoder.ts'
import type { PoolRegions } from '../codec/places.ts'
import type { Effort } from '../compression/effort.ts'
import type { FlowKind } from '../migration/gate.ts'
import { KIND_DISK } from '../wan/wire.ts'
import type { OutboundChannel } from './batch-job.ts'
import { ChannelBuffer } from './channel-buffer.ts'
import { type MigrationMemory, parserFor } from './channel-parser.ts'
import { type Pump, PumpedChannel } from './pump.ts'
import type { Slot } from './slot-arena.ts'

/** Of what a disk's client asks for and waits for: some FLUSHes, and no data. */
const OVERTAKES_BYTES_MAX = 256
/** KIND of each page of what overtakes: it has none. */
const NO_PAGES = new Uint8Array(0)

/** A read with less room than this would cut records for nothing. */
const ROOM_MIN = 16 * 1024

/** What is said of a flow; Session has it. */
export interface SendingLink {
  /** A guest waits for what it sends. */
  setUrgent(flow: number, urgent: boolean): void
  /** How many of these bytes may go as they are, before batches of other flows. */
  dataRoom(flow: number, wanted: number): number
  sendData(flow: number, bytes: Uint8Array): void
}

/** Whose channel it is: hears what became of its bytes. */
export interface SendingOwner {
  /** So many bytes of it are in a batch: there may be room for more. */
  encoded(rawBytes: number, effort: Effort): void
  /** A batch of it was handed in. */
  sent(): void
  /** Nothing of it is under way. @param emptied and nothing waits: an end of it may be handed in */
  packed(emptied: boolean): void
}

/** What a channel begins with. */
export interface SendingStart {
  /** Of its flow in the session. */
  readonly number: number
  readonly migration: number
  readonly kind: FlowKind
  /** What the channels of its migration share. */
  readonly memory: MigrationMemory
  /** A guest waits for its pages from the start. */
  readonly urgent: boolean
  /** A disk's whose server's words are encoded, which is followed already. Default: the client's are, and nothing is. */
  readonly connection?: DiskConnection
  readonly owner: SendingOwner
  /** Hears what its bytes say. Default: nobody. */
  readonly facts?: StreamFacts & DiskFacts
}

export class SendingChannel implements OutboundChannel {
  readonly number: number
  readonly owner: SendingOwner
  readonly slot: Slot
  readonly encoder: FlowEncoder
  readonly buffer: ChannelBuffer
  /** As the pump sees it. */
  readonly pumped: PumpedChannel
  /** The pool's, in which its bytes lie. */
  readonly memory: Uint8Array
  private readonly link: SendingLink
  private readonly pump: Pump
  /** Where it is a disk's. */
  private readonly disk: DiskConnection | undefined

  constructor(
    start: SendingStart,
    slot: Slot,
    memory: Uint8Array,
    regions: PoolRegions,
    link: SendingLink,
    pump: Pump,
  ) {
    const { number, migration, kind, urgent, owner, facts, connection } = start
    this.number = number
    this.owner = owner
    this.slot = slot
    this.memory = memory
    this.link = link
    this.pump = pump
    this.encoder = new FlowEncoder(migration, regions, facts)
    if (connection) {
      connection.attach(this.encoder) // it becomes the parser
      this.encoder.isLearned = false
    } else if (kind === KIND_DISK) {
      this.disk = new DiskConnection(this.encoder, 'client', facts) // it becomes the parser
      this.encoder.isLearned = false
    } else {
      this.encoder.parser = parserFor(kind, this.encoder, start.memory)
      this.encoder.map = start.memory.map
    }
    this.buffer = new ChannelBuffer(memory, slot.at, slot.bytes)
    this.pumped = new PumpedChannel(number, this.encoder, slot.bytes, this.disk !== undefined)
    this.pumped.urgent = urgent
  }

  /** Requests of a disk's client that are not answered. */
  get unanswered(): number {
    return this.disk?.unanswered ?? 0
  }

  get isUrgent(): boolean {
    return this.pumped.urgent
  }

  /** Where the next bytes of QEMU may land; undefined: not now. What waits is an incomplete record where it has to move. */
  room(): Uint8Array | undefined {
    const most = this.pump.roomFor(this.pumped)
    if (most < ROOM_MIN) return undefined
    // what is left behind a batch would make a small one of its own
    return this.buffer.writable(most, most, ROOM_MIN) ?? this.buffer.writable(most, ROOM_MIN, ROOM_MIN)
  }

  /** It takes no more before a batch of it is made. */
  get isFull(): boolean {
    return this.pump.roomFor(this.pumped) < ROOM_MIN
  }

  /** So many bytes are in `room`. @returns address of the first */
  filled(count: number, nowMs: number): number {
    const at = this.buffer.filled(count)
    this.pump.arrives(this.pumped, nowMs)
    this.encoder.push(this.memory, at, count)
    this.overtake()
    return at
  }

  /**
   * A disk's client that waits for a FLUSH, when its guest stands still, waits for no batch of others: what it asks with goes
   * as it is, once its own batches have gone (the session keeps a flow's order).
   */
  private overtake(): void {
    const { encoder, pumped, number, link } = this
    const { waiting } = encoder
    if (!this.disk || !pumped.urgent || pumped.underWay > 0 || waiting > OVERTAKES_BYTES_MAX || !encoder.isBare) return
    if (link.dataRoom(number, waiting) < waiting) return
    const { at, release } = this.buffer.lend(waiting)
    link.sendData(number, copyOfRange(this.memory, at, at + waiting))
    release()
    encoder.batched(waiting, NO_PAGES)
    encoder.stats.rawBytes += waiting
    encoder.stats.packedBytes += waiting
  }

  /** Bytes of the other side, before they are given to whom they are for. */
  hears(bytes: Uint8Array): void {
    this.disk?.listen(bytes, 0, bytes.length)
  }

  /** What came before it had a slot. */
  begins(bytes: Uint8Array, nowMs: number): void {
    if (bytes.length === 0) return
    copyRange(bytes, 0, bytes.length, this.buffer.writable(bytes.length, bytes.length)!, 0)
    this.filled(bytes.length, nowMs)
  }

  /** A guest waits for what it sends, or does so no more. */
  hurry(isUrgent = true): void {
    this.link.setUrgent(this.number, isUrgent)
    this.pumped.urgent = isUrgent
  }

  /** Its QEMU sends no more: what waits goes out, incomplete records too. */
  ends(): void {
    this.pumped.ended = true
    this.settle()
  }

  /** It is torn down: nothing of it is encoded any more. */
  drops(): void {
    this.pumped.broken = true
    this.settle()
  }

  /** Tells its owner where nothing of it is under way. */
  settle(): void {
    if (this.pumped.underWay === 0) this.owner.packed(this.encoder.waiting === 0)
  }
}
