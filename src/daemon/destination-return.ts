/**
 * What a QEMU, or a disk's server, says at the destination, on its way back over the WAN: as it is, as far as the session has
 * room for it; or through the pool of that direction, where it is what a disk is read of (DiskAnswers).
 */
import type { FlowInfo } from '../session/api.ts'
import type { Session } from '../session/session.ts'
import { DiskAnswers } from '../transfer/disk-answers.ts'
import type { SendingOwner } from '../transfer/sending-channel.ts'
import type { DestinationReplies } from './destination-replies.ts'

/** Bytes of the return path that one read may bring: a bitmap at a recovery has megabytes ... */
const READ_BYTES = 65536
/** ... all else some bytes; most channels have none. A read with less room than this would cut a message for nothing. */
const READ_MIN = 4096

/** Whose it is. */
export interface DestinationReturnOwner {
  readonly number: number
  readonly info: FlowInfo
  /** Where it is counted. */
  readonly migration: { bytesBack: number; bytesBackWan: number }
  /** Nobody wants its connection any more. */
  readonly isOver: boolean
  /** Bytes go as they are. */
  answers(bytes: Uint8Array): void
  /** There may be room for more of its socket. */
  resume(): void
  /** Nothing of it waits: an end of it may be due. */
  allSent(): void
}

export interface DestinationReturnHost {
  readonly options: { readonly session: Session; readonly now: () => number }
  /** What encodes what disks are read of; undefined: it goes as it is. */
  readonly replies: DestinationReplies | undefined
}

/** How the source is told that a flow is torn down. */
interface Reset {
  readonly code: number
  readonly text: string
}

export class DestinationReturn implements SendingOwner {
  private readonly host: DestinationReturnHost
  private readonly owner: DestinationReturnOwner
  /** Bytes that the session has no room for yet. */
  private waiting: Uint8Array | undefined
  private slab = new Uint8Array(0)
  /** Where the next bytes land: in `slab`, or where it is encoded. */
  private landing: Uint8Array | undefined
  /** Of a disk whose client takes what is encoded. */
  private readonly encodes: DiskAnswers | undefined
  /** What was packed of it, as far as its migration has counted it. */
  private packedBytes = 0
  /** With what its flow is torn down, once all that is encoded of it is handed in. */
  private resetDue: Reset | undefined
  /** Its migration has it no more. */
  private hasLeft = false
  /** Nothing writes to what `room` gave any more. */
  private isClosed = false

  constructor(host: DestinationReturnHost, owner: DestinationReturnOwner) {
    this.host = host
    this.owner = owner
    const { replies } = host
    const { number, info } = owner
    if (replies && info.replies !== undefined) {
      this.encodes = new DiskAnswers({
        channel: connection => replies.channel(number, info.migration, connection, this),
        credit: () => host.options.session.credit(number),
      })
    }
  }

  /** It is being torn down, behind what is being packed. */
  get isResetDue(): boolean {
    return this.resetDue !== undefined
  }

  /** The other side's words, before its server is given them. */
  hears(bytes: Uint8Array): void {
    this.encodes?.hears(bytes)
  }

  /** Where the next bytes may land; undefined: not now. */
  room(): Uint8Array | undefined {
    if (this.waiting !== undefined) return undefined
    const room = this.encodes ? this.encodes.room() : 'elsewhere'
    this.landing = room === 'elsewhere' ? this.ownRoom() : room
    return this.landing
  }

  private ownRoom(): Uint8Array {
    // the session keeps what it is given, so memory is used once; a request of postcopy has 12 bytes
    const { migration } = this.owner
    if (this.slab.length < READ_MIN) this.slab = new Uint8Array(migration.bytesBack > 0 ? READ_BYTES : READ_MIN)
    return this.slab
  }

  /** So many bytes came. */
  landed(count: number): void {
    const { encodes, landing, slab, owner, host } = this
    const passes = encodes ? encodes.arrived(landing!, count, host.options.now()) : slab.subarray(0, count)
    if (passes === undefined) {
      owner.migration.bytesBack += count
      host.replies!.wake()
      return
    }
    this.waiting = passes
    owner.answers(passes)
    if (landing === slab) this.slab = slab.subarray(count)
    this.send()
  }

  /** Hands on what waits, as far as the session takes it. */
  private send(): void {
    const { waiting, owner } = this
    const { number, migration } = owner
    if (waiting === undefined || owner.isOver) return
    const { session } = this.host.options
    const take = session.dataRoom(number, waiting.length)
    if (take === 0) return
    migration.bytesBack += take
    migration.bytesBackWan += take
    session.sendData(number, waiting.subarray(0, take))
    this.waiting = take < waiting.length ? waiting.subarray(take) : undefined
    if (this.waiting !== undefined) return
    owner.resume()
    this.tellSent()
  }

  /** What may be sent has grown. */
  credited(): void {
    this.send()
    if (!this.encodes?.channel || this.owner.isOver) return
    this.owner.resume()
    this.host.replies!.wake()
  }

  /** Nothing more comes: what is encoded need not wait for more of it. */
  ends(): void {
    this.encodes?.ends()
    if (this.encodes?.isIdle === false) this.host.replies!.wake()
    this.tellSent()
  }

  /** Tells its owner where nothing of it waits. */
  tellSent(): void {
    if (this.waiting === undefined && this.encodes?.isIdle !== false) this.owner.allSent()
  }

  /** Tears its flow down, behind the batches that are encoded already. */
  reset(reset: Reset): void {
    const { encodes } = this
    if (!encodes || encodes.isIdle) this.host.options.session.resetFlow(this.owner.number, reset.code, reset.text)
    else {
      this.resetDue = reset
      encodes.drops()
    }
  }

  /** Its migration has it no more. */
  left(): void {
    this.hasLeft = true
    if (this.encodes?.channel) this.host.replies!.close(this.encodes.channel)
    this.freeSlot()
  }

  /** Its socket is closed. */
  closed(): void {
    this.isClosed = true
    this.freeSlot()
  }

  private freeSlot(): void {
    const slot = this.encodes?.channel?.slot
    if (slot && this.hasLeft && this.isClosed) this.host.replies!.giveSlot(slot)
  }

  // --- SendingOwner

  encoded(): void {
    this.owner.resume()
  }

  sent(): void {
    const { packedBytes } = this.encodes!.channel!.encoder.stats
    this.owner.migration.bytesBackWan += packedBytes - this.packedBytes
    this.packedBytes = packedBytes
    this.host.replies!.wake()
  }

  packed(emptied: boolean): void {
    const { resetDue } = this
    this.resetDue = undefined
    if (resetDue) this.host.options.session.resetFlow(this.owner.number, resetDue.code, resetDue.text)
    else if (emptied) this.tellSent()
  }
}
