/** What the sessions of a source proxy take of their process: memory for pages, and shares of what all of it holds. */
import { effortAt } from '../compression/effort.ts'
import { isProxyError } from '../errors.ts'
import { FairShares, type Share } from '../fair-shares.ts'
import {
  BATCH_RAW_BYTES_MAX,
  CHANNEL_UNITS,
  MEMORY_BUDGET_BYTES,
  PIECES_MAX,
  REPLIES_PLACES_MAX,
  REPLIES_RING_PAGES_MAX,
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

/** One is filled while two are packed and one waits for its turn. */
const WORKSPACES = 4

/** Expanded answers of disks that their clients have not taken yet; further ones are copied. */
const REPLY_SLOTS = 4

const REPLIES_SHAPE: PoolShape = {
  role: 'decoder',
  workspaces: 1,
  slots: REPLY_SLOTS,
  slotBytes: BATCH_RAW_BYTES_MAX,
  longMatch: false,
}

function shapeFor(effort: number | 'auto', threads: number): PoolShape {
  return {
    role: 'encoder',
    workspaces: WORKSPACES,
    slots: CHANNEL_UNITS,
    slotBytes: SLOT_UNIT_BYTES,
    threads,
    longMatch: effort === 'auto' || effortAt(effort)!.longMatch > 0,
    ringInAdvance: 'always', // nobody but this site's operator opens sessions here, and --pool-memory is what they gave for all
  }
}

/** Pages of ring that a source proxy's session can have at most, whatever its options. */
export function sourceRingPagesMax(places: number, threads: number): number {
  return ringPagesMax(shapeFor('auto', threads), places)
}

export interface SourceMemoryOptions {
  /** Most pages of ring that its session may have. */
  readonly ringPages: number
  readonly places: number
  readonly effort: number | 'auto'
  /** Memories and shares of rings, where this process has several proxies. */
  readonly pools?: Pools
  readonly shares?: RingShares
  /** MEMORY_BUDGET_BYTES, likewise. */
  readonly memory?: FairShares | undefined
  /** Disk space for blocks of disks, likewise. Default: none. */
  readonly kept?: KeptSpace | undefined
}

export class SourceMemory {
  /** Pages of all template sets that a session can have. */
  readonly setPagesMax: number
  /** Pages of its ring, at most. */
  readonly ringPagesMax: number
  /** Who the other proxy is, among those of this process. */
  private readonly peer: string
  private readonly shape: PoolShape
  private readonly pools: Pools
  private readonly rings: RingShares
  /** Of the other proxy, for our QEMUs. Counts pieces, not bytes. */
  private readonly pieces = new FairShares(PIECES_MAX)
  /** Of all its sessions: one that drains goes on beside the next. */
  private readonly budget: FairShares
  /** Where blocks of disks are kept, if they are. */
  readonly kept: KeptSpace | undefined

  /** @param isTwofold a session may be opened beside another one, which has been left to its disks */
  constructor(
    peer: string,
    isTwofold: boolean,
    { ringPages, places, effort, pools, shares, memory, kept }: SourceMemoryOptions,
  ) {
    this.peer = peer
    this.pools = pools ?? new Pools()
    this.shape = shapeFor(effort, this.pools.threads)
    this.rings = shares ?? new RingShares(ringPages * PAGE_BYTES, false)
    this.rings.expect(peer, isTwofold)
    this.kept = kept
    this.budget = memory ?? new FairShares(MEMORY_BUDGET_BYTES)
    this.ringPagesMax = Math.min(ringPages, ringPagesMax(this.shape, places))
    this.setPagesMax = Math.min(
      templatePagesMax(this.shape, this.ringPagesMax, places),
      Math.floor(this.pools.setsBytesMax / PAGE_BYTES),
    )
  }

  /** Memory for a ring of so many pages, or of fewer. */
  ring(pages: number): RingGrant {
    return this.rings.take(this.peer, pages * PAGE_BYTES)
  }

  /** Disk space for as many blocks of disks as it can give now; undefined: for none. */
  keptBlocks(): KeptGrant | undefined {
    return this.kept?.take(Number.POSITIVE_INFINITY)
  }

  /** @throws as Pools.open */
  open(terms: Omit<PoolRequest, keyof PoolShape>): Promise<OpenPool> {
    return this.pools.open({ ...this.shape, ...terms })
  }

  /**
   * Where what disks are read of is expanded, beside a session's pool; memory of it is what passes.
   * @param terms the session's
   * @returns undefined where there is no room for it
   */
  async openReplies({
    sets,
    store,
    ringPages,
    places,
  }: Omit<PoolRequest, keyof PoolShape>): Promise<OpenPool | undefined> {
    try {
      return await this.pools.open({
        ...REPLIES_SHAPE,
        ...{ sets, store, isBeside: true },
        ringPages: Math.min(ringPages, REPLIES_RING_PAGES_MAX),
        places: Math.min(places, REPLIES_PLACES_MAX),
      })
    } catch (error) {
      if (!isProxyError(error, 'LIMIT_EXCEEDED')) throw error
      return undefined
    }
  }

  /** Opens sets on the disk while the other side is asked which it has. */
  warmCold(digests: readonly string[], store: TemplateStore | undefined): Promise<void> {
    return this.pools.warmCold(digests, store, this.shape.role)
  }

  /** How many pieces may wait for QEMUs. */
  piecesShare(): Share {
    return this.pieces.share(this.peer)
  }

  /** What a session may hold beside its pool. */
  budgetShare(): Share {
    return this.budget.share(`to ${this.peer}`) // a peer may be a client of this process too
  }
}
