/** What a migration and a disk transfer have in common at their destination proxy: channels, and what has passed. Pure. */
import { ProxyError } from '../errors.ts'
import type { Log } from '../log.ts'
import type { ChannelKind } from '../qemu/channel-kind.ts'
import type { ArrivalEvents } from './arrival-events.ts'
import type { ChannelWatch } from './channel-watch.ts'
import { MigrationRecord } from './migration-record.ts'

/** What a peer's flow is told that no QEMU began: the destination QEMU would exit over it. */
export const NOT_DIALLED = 'the destination QEMU was not dialled'

/** A channel of it, as far as that is looked at here. */
export interface ArrivingChannel {
  /** As OPEN has it. */
  readonly info: { readonly kind: string }
  /** Nobody wants its connection any more. */
  readonly isOver: boolean
}

/** @typeParam C - a channel of it */
export abstract class Arrival<C extends ArrivingChannel> {
  /** In its session. */
  readonly number: number
  /** Name of its target. */
  readonly target: string
  /** What is dialled for it, as people read it. */
  abstract readonly server: string
  readonly startMs: number
  /** Channels that it has had. */
  channels = 0
  readonly record: MigrationRecord
  /** Channels that have not ended. */
  readonly flows = new Set<C>()
  /** Its main channel, or what stands for it; a disk transfer has none. */
  lead: C | undefined
  /** The source knows that this side has it, and so sends it on no other session: its target may hear of it. */
  isConfirmed = false
  /** Its last batch has come, and learning was told. */
  isLearned = false
  bytesOut = 0
  bytesBack = 0
  /** What of that was on the WAN: less where a disk's is encoded. */
  bytesBackWan = 0

  /** @param session 32 hex digits */
  constructor(session: string, number: number, target: string, nowMs: number) {
    this.record = new MigrationRecord(session, number)
    this.number = number
    this.target = target
    this.startMs = nowMs
  }

  /** For a channel of it; undefined: nobody looks at what passes. */
  abstract watch(): ChannelWatch | undefined

  /**
   * Takes a channel.
   * @returns whether it is dialled at once, whatever it says
   * @throws ProxyError TARGET_REFUSED: it cannot be one of this
   */
  abstract admits(channel: C): boolean

  /** A channel's turn to be dialled has come. @throws ProxyError TARGET_REFUSED: its target must not hear of it */
  abstract checkTurn(channel: C): void

  /** Its target has taken a channel's connection. */
  abstract reached(channel: C): void

  /** The first bytes of a channel that is watched tell what it is. */
  abstract begins(channel: C, kind: ChannelKind): void

  /** @param kind of the channel that it begins with */
  abstract tellArrives(log: Log<ArrivalEvents>, kind: string): void

  /** The WAN was waited for in vain. */
  abstract tellGivenUp(log: Log<ArrivalEvents>, reason: string): void

  protected seconds(nowMs: number): number {
    return Math.round(nowMs - this.startMs) / 1000
  }
}

/** @returns why one or the other is refused */
export function mixed(): ProxyError {
  return new ProxyError('TARGET_REFUSED', 'a disk within a migration, or the other way round', undefined, NOT_DIALLED)
}
