/** What the sessions of a destination proxy take of their process: memory for pages, and shares of what all of it holds. */
import { isProxyError, type ProxyError } from '../errors.ts'
import { FairShares, type Share } from '../fair-shares.ts'
import {
  BATCH_RAW_BYTES_MAX,
  MEMORY_BUDGET_BYTES,
  PIECES_MAX,
  REPLIES_CHANNELS_MAX,
  REPLIES_MEMORY_BYTES,
  REPLIES_PLACES_MAX,
} from '../limits.ts'
import type { TemplateStore } from '../store/template-store.ts'
import type { KeptGrant, KeptSpace } from '../transfer/cold/kept-space.ts'
import {
  type OpenPool,
  PAGE_BYTES,
  type PoolRequest,
  type PoolShape,
  Pools,
  ringPagesMax,
  templatePagesMax,
} from '../transfer/pool.ts'
import { type RingGrant, RingShares } from '../transfer/ring-shares.ts'
import { SLOT_UNIT_BYTES } from '../transfer/slot-arena.ts'

/** Expanded batches that QEMU's sockets have not taken yet; further ones are copied. */
const OUTPUT_SLOTS = 8
const SHAPE: PoolShape = {
  role: 'decoder',
  workspaces: 1,
  slots: OUTPUT_SLOTS,
  slotBytes: BATCH_RAW_BYTES_MAX,
  longMatch: false,
  ringInAdvance: 'spare', // peers decide how many sessions there are
}

/** One is filled while one is packed and one waits for its turn. */
const REPLY_WORKSPACES = 3
/** A slot for each connection whose answers are encoded, and eight more, with which it has whole batches, for sixteen. */
const REPLY_UNITS = REPLIES_CHANNELS_MAX + 16 * 8

/** What disks are read of, on its way back. */
const REPLIES_SHAPE: PoolShape = {
  role: 'encoder',
  workspaces: REPLY_WORKSPACES,
  slots: REPLY_UNITS,
  slotBytes: SLOT_UNIT_BYTES,
  longMatch: false,
  forgetsTables: true,
}

export interface DestinationMemoryOptions {
  /** Most pages of ring that a session may have. */
  readonly ringPagesMax: number
  readonly placesMax: number
  /** Memories and shares of rings, where this process has several proxies. */
  readonly pools?: Pools
  readonly shares?: RingShares
  /** MEMORY_BUDGET_BYTES, likewise. */
  readonly memory?: FairShares | undefined
  /** Disk space for blocks of disks, likewise. Default: none. */
  readonly kept?: KeptSpace | undefined
}

/** By holder: who its sessions are of. */
export class DestinationMemory {
  readonly placesMax: number
  /** Pages of all template sets that a session can have: a ring is made smaller where it does not fit beside them. */
  readonly setPagesMax: number
  /** What of MEMORY_BUDGET_BYTES sessions may hold beside their pools. */
  readonly budget: FairShares
  /** Where blocks of disks are kept, if they are. */
  readonly kept: KeptSpace | undefined
  private readonly ringPagesMax: number
  private readonly pools: Pools
  /** SHAPE, with slots for batches that threads unpack, where the process has such threads. */
  private readonly shape: PoolShape
  private readonly rings: RingShares
  /** Pieces that wait for QEMUs: counted, not in bytes. */
  private readonly pieces = new FairShares(PIECES_MAX)

  constructor({ ringPagesMax: ringMax, placesMax, pools, shares, memory, kept }: DestinationMemoryOptions) {
    this.placesMax = placesMax
    this.ringPagesMax = ringMax
    this.pools = pools ?? new Pools()
    this.shape = { ...SHAPE, ahead: this.pools.aheadSlots }
    this.rings = shares ?? new RingShares(2 * ringMax * PAGE_BYTES, true)
    this.kept = kept
    this.budget = memory ?? new FairShares(MEMORY_BUDGET_BYTES)
    this.setPagesMax = Math.min(
      templatePagesMax(this.shape, 0, placesMax),
      Math.floor(this.pools.setsBytesMax / PAGE_BYTES),
    )
  }

  /** Most pages of ring beside so many places. */
  ringMost(places: number): number {
    return Math.min(this.ringPagesMax, ringPagesMax(this.shape, places))
  }

  /** Memory for a ring of so many pages, or of fewer. */
  ring(holder: string, pages: number): RingGrant {
    return this.rings.take(holder, pages * PAGE_BYTES)
  }

  /** Disk space for as many of a session's blocks of disks as it can give now. @param wanted what the other side has; undefined: none */
  keptBlocks(wanted: number | undefined): KeptGrant | undefined {
    return wanted ? this.kept?.take(wanted) : undefined
  }

  /** @param onFailure they cannot be kept any more */
  keepsOf(grant: KeptGrant | undefined, onFailure: (error: ProxyError) => void): PoolRequest['keeps'] {
    if (this.kept === undefined || grant === undefined || grant.blocks === 0) return undefined
    return { blocks: grant.blocks, space: this.kept, onFailure }
  }

  /** @throws as Pools.open */
  open(terms: Omit<PoolRequest, keyof PoolShape>): Promise<OpenPool> {
    return this.pools.open({ ...this.shape, ...terms })
  }

  /**
   * A pool for what a session's disks are read of, beside that session's own.
   * @param terms the session's
   * @returns undefined where there is no memory for it
   */
  async openReplies(
    holder: string,
    { places, sets, ringPages, store }: Omit<PoolRequest, keyof PoolShape>,
  ): Promise<OpenPool | undefined> {
    const share = this.budget.share(holder)
    if (!share.take(REPLIES_MEMORY_BYTES)) return undefined
    try {
      const pool = await this.pools.open({
        ...REPLIES_SHAPE,
        ...{ sets, ringPages, store, isBeside: true },
        places: Math.min(places, REPLIES_PLACES_MAX),
      })
      return { ...pool, close: () => pool.close().finally(() => share.close()) }
    } catch (error) {
      share.close()
      if (!isProxyError(error, 'LIMIT_EXCEEDED')) throw error
      return undefined
    }
  }

  /** Opens sets on the disk before the first session asks for them. */
  warmCold(digests: readonly string[], store: TemplateStore | undefined): Promise<void> {
    return this.pools.warmCold(digests, store, SHAPE.role)
  }

  /** How many pieces may wait for QEMUs. */
  piecesShare(holder: string): Share {
    return this.pieces.share(holder)
  }

  /** What a session may hold beside its pool. */
  budgetShare(holder: string): Share {
    return this.budget.share(holder)
  }
}
