/** Both ends of a session in this process, of which either may have helpers: what one encodes the other one expands. */
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { BATCH_RAW_BYTES_MAX } from '../../src/limits.ts'
import { Inbound } from '../../src/transfer/inbound.ts'
import { Outbound } from '../../src/transfer/outbound.ts'
import type { OpenPool, PoolRequest, Pools } from '../../src/transfer/pool.ts'
import { Channel, SEED_WORDS } from '../codec/harness.ts'

type More = Partial<PoolRequest>

const TERMS = { sets: [], store: undefined, ringPages: 1024, places: 1024, slotBytes: BATCH_RAW_BYTES_MAX } as const
/** Bytes of the guest in one batch at most. */
const STEP = 400_000

export class EncodingEnd {
  readonly errors: unknown[] = []
  readonly pool: OpenPool
  private readonly outbound: Outbound<Channel>
  private readonly channel: Channel

  private constructor(pool: OpenPool, sink: (batch: Buffer) => void) {
    const fail = (error: unknown): void => void this.errors.push(error)
    this.pool = pool
    this.outbound = new Outbound(pool, SEED_WORDS, (_, parts) => sink(Buffer.concat(parts)), fail)
    this.channel = new Channel(pool, 0, 'main', 1, {})
  }

  /** @param sink gets each batch. All helpers are there from the first one on */
  static async open(pools: Pools, sink: (batch: Buffer) => void, more: More = {}): Promise<EncodingEnd> {
    const shape = { role: 'encoder', longMatch: true, threads: pools.threads, workspaces: 3, slots: 5 } as const
    const pool = await pools.open({ ...TERMS, ...shape, ringInAdvance: 'always', ...more })
    await pool.ready
    return new EncodingEnd(pool, sink)
  }

  /** The next batch of a guest. @returns whether there are more, and it has not failed */
  async encode(guest: Uint8Array, at: number, level: number): Promise<boolean> {
    const isLast = at + STEP >= guest.length
    this.channel.push(guest.subarray(at, at + STEP))
    await this.outbound.room()
    if (this.outbound.hasRoom) this.outbound.encode(this.channel, EFFORTS[level]!, isLast)
    if (isLast) await this.outbound.idle()
    return !isLast && this.errors.length === 0
  }

  async close(): Promise<void> {
    await this.outbound.close()
    await this.pool.close()
  }
}

export class DecodingEnd {
  readonly errors: unknown[] = []
  readonly pool: OpenPool
  readonly inbound: Inbound
  private readonly parts: Buffer[] = []
  private readonly channel

  private constructor(pool: OpenPool, holder: string) {
    this.pool = pool
    this.inbound = new Inbound(pool, SEED_WORDS, error => this.errors.push(error), holder)
    const expanded = (bytes: Uint8Array, release: () => void): void => {
      this.parts.push(Buffer.from(bytes))
      release()
    }
    this.channel = { expander: new FlowExpander(1, PoolRegions.of(pool.kernel.layout)), expanded }
  }

  static async open(pools: Pools, holder = '', more: More = {}): Promise<DecodingEnd> {
    const shape = { role: 'decoder', longMatch: false, workspaces: 1, slots: 4, ahead: pools.aheadSlots } as const
    return new DecodingEnd(await pools.open({ ...TERMS, ...shape, ...more }), holder)
  }

  get got(): Buffer {
    return Buffer.concat(this.parts)
  }

  push(batch: Buffer, parts: Uint8Array[] = [batch]): void {
    this.inbound.push(this.channel, parts)
  }

  async close(): Promise<void> {
    this.inbound.close()
    await this.pool.close()
  }
}

/** Both. */
export class Pair {
  readonly near: EncodingEnd
  readonly far: DecodingEnd

  private constructor(near: EncodingEnd, far: DecodingEnd) {
    this.near = near
    this.far = far
  }

  static async open(pools: { readonly near: Pools; readonly far: Pools }, more: More = {}): Promise<Pair> {
    const far = await DecodingEnd.open(pools.far, '', more)
    return new Pair(await EncodingEnd.open(pools.near, batch => far.push(batch), more), far)
  }

  get errors(): unknown[] {
    return [...this.near.errors, ...this.far.errors]
  }

  /** All of a guest, or until it fails. @returns what came out */
  async run(guest: Uint8Array, level: number): Promise<Buffer> {
    for (let at = 0; (await this.near.encode(guest, at, level)) && this.errors.length === 0; ) at += STEP
    await this.far.inbound.idle()
    return this.far.got
  }

  async close(): Promise<void> {
    await Promise.all([this.near.close(), this.far.close()])
  }
}

/** The batches of a guest. */
export async function batchesOf(pools: Pools, guest: Uint8Array, level: number): Promise<Buffer[]> {
  const batches: Buffer[] = []
  const near = await EncodingEnd.open(pools, batch => batches.push(batch))
  for (let at = 0; await near.encode(guest, at, level); ) at += STEP
  await near.close()
  return batches
}
