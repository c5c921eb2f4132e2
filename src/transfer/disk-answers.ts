/**
 * What a disk's server says on one connection, on its way back: what stands on the disk goes through the pool of that
 * direction, all else as it is. A mirror's answers are 16 or 32 bytes each and urgent, and it asks for nothing that stands
 * there; so as long as nothing is read, nothing is encoded, and what is said goes at once.
 *
 * Whoever reads the server's socket asks `room` for where the next bytes may land, and tells `arrived` of them: those that
 * come back from it are to be sent as they are, in their order.
 */
import { copyOfRange } from '../bytes/copy.ts'
import { DiskConnection, type DiskFacts } from '../codec/disk-connection.ts'
import { assert } from '../errors.ts'
import type { SendingChannel } from './sending-channel.ts'

/** What it asks of whoever encodes; it may have no room for a channel more. */
export interface AnswerEncoder {
  /** undefined: there is no pool yet, or no slot left. */
  channel(connection: DiskConnection): SendingChannel | undefined
  /** Raw bytes that may be handed in for its flow. */
  credit(): number
}

export class DiskAnswers {
  readonly connection: DiskConnection
  private readonly encoder: AnswerEncoder
  private sending: SendingChannel | undefined
  /** What comes next is encoded, for all that is known: so it lands where that is done. */
  private encodes = false
  /** What `room` gave last, where that is a slot. */
  private slot: Uint8Array | undefined

  constructor(encoder: AnswerEncoder, facts: DiskFacts = {}) {
    this.connection = new DiskConnection(undefined, 'server', facts)
    this.encoder = encoder
  }

  /** What encodes it; undefined: nothing was read. */
  get channel(): SendingChannel | undefined {
    return this.sending
  }

  /** Nothing of it waits to be encoded, or is being packed. */
  get isIdle(): boolean {
    return this.sending === undefined || (this.sending.encoder.waiting === 0 && this.sending.pumped.underWay === 0)
  }

  /** The client's words, before the server is given them: they tell what is read. */
  hears(bytes: Uint8Array): void {
    this.connection.listen(bytes, 0, bytes.length)
  }

  /** Where the next bytes may land; undefined: not now; 'elsewhere': in memory of the caller's. */
  room(): Uint8Array | undefined | 'elsewhere' {
    if (!this.encodes) return 'elsewhere'
    this.slot = this.sending!.room()
    return this.slot
  }

  /**
   * Bytes came, into the memory that `room` gave, or elsewhere.
   * @returns what of them is to be sent as it is: all, or undefined. Never a view of a slot
   */
  arrived(memory: Uint8Array, count: number, nowMs: number): Uint8Array | undefined {
    const inSlot = memory === this.slot
    this.slot = undefined
    const bytes = memory.subarray(0, count)
    const isIdle = this.isIdle
    assert(inSlot || isIdle, 'bytes passed by those that wait')
    this.encodes = !isIdle || (this.connection.isRead && this.mayEncode(inSlot, count))
    if (!this.encodes) {
      const copy = inSlot ? copyOfRange(memory, 0, count) : bytes
      this.connection.passes(copy, 0, count)
      return copy
    }
    const sending = this.sending!
    this.connection.attach(sending.encoder)
    if (inSlot) sending.filled(count, nowMs)
    else sending.begins(bytes, nowMs)
    return undefined
  }

  /** The server says no more: what waits goes out. */
  ends(): void {
    this.sending?.ends()
  }

  /** Nothing of it is encoded any more. */
  drops(): void {
    this.sending?.drops()
  }

  /** Whether bytes can be taken that came when nothing waited. */
  private mayEncode(inSlot: boolean, count: number): boolean {
    // what waits must have credit for all of it before any can go: it is cut as it comes
    if (!inSlot && this.encoder.credit() < count) return false
    this.sending ??= this.encoder.channel(this.connection)
    return this.sending !== undefined && (inSlot || count <= this.sending.slot.bytes)
  }
}
