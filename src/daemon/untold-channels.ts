/**
 * Channels at the destination whose OPEN crossed our DRAIN: the session refused them and told nobody, their batches came
 * all the same. The pool must follow every batch, so they are expanded; nobody gets the bytes.
 */
import { FlowExpander } from '../codec/flow-expander.ts'
import { PoolRegions } from '../codec/places.ts'
import type { FlowInfo } from '../session/api.ts'
import type { Session } from '../session/session.ts'
import type { InboundChannel } from '../transfer/inbound.ts'
import type { Pool } from '../transfer/pool.ts'
import { KIND_DISK } from '../wan/wire.ts'

export class UntoldChannels {
  private readonly session: Session
  private readonly pool: Pool
  private readonly letGo: () => void
  private readonly channels = new Map<number, { readonly info: FlowInfo; readonly channel: InboundChannel }>()

  /** @param letGo called for each piece that came and is done with */
  constructor(session: Session, pool: Pool, letGo: () => void) {
    this.session = session
    this.pool = pool
    this.letGo = letGo
  }

  /** The channel of this flow; undefined where the session has no such flow. */
  get(number: number): InboundChannel | undefined {
    const info = this.session.infoOf(number)
    if (!info) return undefined
    const known = this.channels.get(number)
    if (known?.info === info) return known.channel
    // numbers are used again: those that are gone are forgotten
    for (const [old, { info }] of this.channels) if (this.session.infoOf(old) !== info) this.channels.delete(old)
    const expander = new FlowExpander(info.migration, PoolRegions.of(this.pool.kernel.layout))
    expander.isLearned = info.kind !== KIND_DISK
    const channel: InboundChannel = {
      expander,
      expanded: (_bytes, release) => {
        this.letGo()
        release()
      },
    }
    this.channels.set(number, { info, channel })
    return channel
  }
}
