/**
 * The way back of a session's disks at the source: what the other side has encoded of their servers' words is expanded
 * here, over a pool of its own. What is said as it is, and the ends of flows, stay behind the batches that came before.
 */
import { FlowExpander } from '../codec/flow-expander.ts'
import { PoolRegions } from '../codec/places.ts'
import type { SetGain } from '../codec/set-gains.ts'
import type { FlowInfo } from '../session/api.ts'
import type { Inbound, InboundChannel } from '../transfer/inbound.ts'
import type { Pool } from '../transfer/pool.ts'

/** What expands them: Inbound. */
export type ReplyUnpacker = Pick<Inbound, 'push' | 'mark' | 'close'> & Partial<Pick<Inbound, 'gains'>>

/** Takes what was expanded, and gives the memory back by `release`. */
export interface Answered {
  expanded(bytes: Uint8Array, release: () => void): void
}

/** One connection, as long as its flow lives; what comes behind that nobody gets. */
interface Entry {
  readonly info: FlowInfo
  readonly channel: InboundChannel
  /** Batches of it that are not expanded yet, and what waits behind them. */
  pending: number
  to: Answered | undefined
}

export class SourceReplies {
  /** Pages of its ring, as the other side is told. */
  readonly ringPages: number
  private readonly pool: Pool
  private readonly inbound: ReplyUnpacker
  private readonly entries = new Map<number, Entry>()
  private readonly letGo: () => void

  /**
   * @param pool of that direction
   * @param inbound expands over it
   * @param letGo called for each batch that nobody is there to take
   */
  constructor(pool: Pool, inbound: ReplyUnpacker, letGo: () => void) {
    this.pool = pool
    this.letGo = letGo
    this.ringPages = pool.kernel.layout.ringPages
    this.inbound = inbound
  }

  /**
   * A batch of a flow.
   * @param to who gets what it gives; undefined: nobody does any more
   */
  push(number: number, info: FlowInfo, to: Answered | undefined, parts: readonly Uint8Array[]): void {
    let entry = this.entries.get(number)
    if (entry?.info !== info) {
      entry = this.entryOf(info)
      this.entries.set(number, entry) // numbers are used again
    }
    entry.to = to
    entry.pending++
    if (to) this.inbound.gains?.open(info.migration)
    this.inbound.push(entry.channel, parts)
  }

  private entryOf(info: FlowInfo): Entry {
    const expander = new FlowExpander(info.migration, PoolRegions.of(this.pool.kernel.layout))
    expander.isLearned = false
    const entry: Entry = {
      info,
      pending: 0,
      to: undefined,
      channel: {
        expander,
        expanded: (bytes, release) => {
          entry.pending--
          if (entry.to) {
            entry.to.expanded(bytes, release)
            return
          }
          this.letGo()
          release()
        },
      },
    }
    return entry
  }

  /**
   * Does this once all that came of the flow so far is handed on: at once where nothing of it is under way. What waits here
   * counts too: it stands behind batches of other flows, and what comes next of its own must not overtake it.
   */
  behind(number: number, then: () => void): void {
    const entry = this.entries.get(number)
    if (entry === undefined || entry.pending === 0) {
      then()
      return
    }
    entry.pending++
    this.inbound.mark(() => {
      entry.pending--
      then()
    })
  }

  /** The flow is no more: the next of its number is another. */
  forget(number: number): void {
    this.entries.delete(number)
  }

  /** What sets brought to a disk transfer, which is over. */
  takeGains(migration: number): readonly SetGain[] {
    return this.inbound.gains?.take(migration) ?? []
  }

  /** The session is over: nothing that waits is done any more. */
  close(): void {
    this.inbound.close()
  }
}
