/** What passes of a migration's channel at its destination, looked at and not changed: what it is, whose, and how it ends. */
import type { ChannelKind } from '../qemu/channel-kind.ts'
import type { ReturnPathParser } from '../qemu/return-path.ts'
import { ChannelHead } from './channel-ends.ts'
import type { MigrationRecord } from './migration-record.ts'

export class ChannelWatch {
  /** SHUT with success was read: it must reach the source, or the guest runs on both sides (qemu-wire-format 1.6). */
  shut = false
  private readonly head = new ChannelHead()
  /** The first bytes have not told yet what begins so. */
  private awaited = true
  private readonly record: MigrationRecord
  private readonly returnPath: ReturnPathParser

  constructor(record: MigrationRecord) {
    this.record = record
    this.returnPath = record.returnPath(status => {
      this.shut = status === 0
    })
  }

  /** Bytes from the source, in order. @returns what the channel is, once, as soon as they tell */
  begins(bytes: Uint8Array): ChannelKind | undefined {
    const { head, record } = this
    if (!head.isFull) {
      head.push(bytes, 0, bytes.length)
      record.begins(head)
    }
    if (!this.awaited) return undefined
    const { kind } = head
    this.awaited = kind === undefined
    return kind
  }

  /** Bytes that QEMU answers. */
  answers(bytes: Uint8Array, at: number, length: number): void {
    this.returnPath.push(bytes, at, length)
  }
}
