/**
 * What a destination proxy takes of what a source offers, and what it has of it as long as the session lives: template
 * sets, a ring, learning. SourceTerms at the other side.
 */
import { isProxyError } from '../errors.ts'
import type { Learning, SessionLearning } from '../learning/learning.ts'
import { SETS_WAIT_MS } from '../limits.ts'
import type { Accepted } from '../link/server.ts'
import type { TemplateStore } from '../store/template-store.ts'
import type { KeptGrant } from '../transfer/cold/kept-space.ts'
import { type OpenPool, PAGE_BYTES } from '../transfer/pool.ts'
import type { RingGrant } from '../transfer/ring-shares.ts'
import { type ClientHello, seedWords } from '../wan/hello.ts'
import { FEATURE } from '../wan/wire.ts'
import type { DestinationMemory } from './destination-memory.ts'
import type { Events } from './events.ts'
import type { OfferedSets, SessionSets } from './session-sets.ts'

export interface DestinationTermsOptions {
  readonly store: TemplateStore | undefined
  readonly learning?: Learning | undefined
  readonly events: Events
}

/** What both sides have of each other's. */
interface Taken {
  /** Digests of sets: in memory, and on the disk. */
  readonly sets: readonly string[]
  readonly cold: readonly string[]
  readonly places: number
  readonly pool: OpenPool
  readonly grant: RingGrant
  /** Disk space for blocks of disks. */
  readonly kept: KeptGrant | undefined
  /** The version of the sets that were held when it was opened. */
  readonly version: string
}

/** Of one session. `close` it. */
export class DestinationTerms implements Taken {
  /** Who the session is of. */
  readonly holder: string
  /** Name and version of the other proxy. */
  readonly agent: string
  readonly sets: readonly string[]
  readonly cold: readonly string[]
  readonly places: number
  readonly pool: OpenPool
  readonly grant: RingGrant
  readonly kept: KeptGrant | undefined
  readonly version: string
  /** Two u32 of the hash seed, low word first. */
  readonly seed: readonly [number, number]
  /** Whether the session carries disks. */
  readonly disks: boolean
  /** Our answer to the hello. */
  readonly answer: Pick<Accepted, 'sets' | 'cold' | 'ring' | 'places' | 'kept'>
  private readonly takesReplies: boolean
  private readonly options: DestinationTermsOptions
  private readonly memory: DestinationMemory

  private constructor(
    options: DestinationTermsOptions,
    memory: DestinationMemory,
    { agent, features = [], sets: offered, seed }: ClientHello,
    holder: string,
    { sets, cold, places, pool, grant, kept, version }: Taken,
    counted: readonly string[],
  ) {
    this.options = options
    this.memory = memory
    this.holder = holder
    this.agent = agent
    this.sets = sets
    this.cold = cold
    this.places = places
    this.pool = pool
    this.grant = grant
    this.kept = kept
    this.version = version
    this.seed = seedWords(Buffer.from(seed, 'hex'))
    this.disks = features.includes(FEATURE.DISKS)
    this.takesReplies = this.disks && features.includes(FEATURE.DISK_REPLIES)
    this.answer = {
      sets: offered.filter(digest => sets.includes(digest) || counted.includes(digest)),
      ...(cold.length > 0 && { cold }),
      ring: Math.floor(grant.bytes / PAGE_BYTES),
      places,
      ...(kept && { kept: kept.blocks }),
    }
  }

  /**
   * @param hello the other side's offer
   * @param hasDisks whether there are targets for disks
   * @throws LIMIT_EXCEEDED where there is no memory even for a session without sets and ring; else as Pools.open
   */
  static async make(
    options: DestinationTermsOptions,
    memory: DestinationMemory,
    own: SessionSets,
    hello: ClientHello,
    holder: string,
    hasDisks: boolean,
  ): Promise<DestinationTerms> {
    // what learning has counted looks like a set without pages
    const counted = options.learning?.states ?? []
    const kept = hasDisks ? memory.keptBlocks(hello.kept) : undefined
    try {
      const taken = await take(options, memory, own, hello, holder, kept)
      return new DestinationTerms(options, memory, hello, holder, taken, counted)
    } catch (error) {
      kept?.release()
      throw error
    }
  }

  /** What is learned in it; undefined: nothing. */
  learn(): SessionLearning | undefined {
    const { holder, answer, seed, pool } = this
    return this.options.learning?.begin(answer.sets, seed, pool, holder)
  }

  /** Opens a pool for what disks are read of; undefined: the other side takes that as it is. */
  get replies(): ((ringPages: number) => Promise<OpenPool | undefined>) | undefined {
    if (!this.takesReplies) return undefined
    const { holder, sets, places, memory, options } = this
    return ringPages => memory.openReplies(holder, { sets, ringPages, places, store: options.store })
  }

  /** The session is over, and nobody has anything coming of its pool. @returns when its memory is clean for the next one */
  async close(): Promise<void> {
    this.grant.release()
    this.kept?.release()
    await this.pool.close()
  }
}

/** Opens a pool with as many of the sets, and as much of a ring, as there is memory for. */
async function take(
  { store, events }: DestinationTermsOptions,
  memory: DestinationMemory,
  own: SessionSets,
  hello: ClientHello,
  holder: string,
  kept: KeptGrant | undefined,
): Promise<Taken> {
  const places = Math.min(hello.places, memory.placesMax)
  const usesCold = hello.features?.includes(FEATURE.COLD_SETS) === true
  const ringMost = Math.min(hello.ring, memory.ringMost(places))
  let ring = ringMost
  let setsMax = hello.sets.length
  const untilMs = performance.now() + SETS_WAIT_MS
  let held = await own.offer()
  const keeps = memory.keepsOf(kept, ({ message, action }) =>
    events.of(holder).warn('blocks of disks are not kept', { error: message, hint: action }),
  )
  for (;;) {
    const { sets, cold } = common(hello, held, setsMax, usesCold)
    const grant = memory.ring(holder, ring)
    ring = Math.floor(grant.bytes / PAGE_BYTES)
    try {
      const setsMs = Math.max(0, untilMs - performance.now())
      const pool = await memory.open({ sets, cold, store, ringPages: ring, places, keeps, setsMs })
      return { sets, cold, places, pool, grant, kept, version: held.version }
    } catch (error) {
      grant.release()
      if (own.exclude(error)) {
        held = own.stillOf(held)
        continue
      }
      if (!isProxyError(error, 'LIMIT_EXCEEDED') || (ring === 0 && setsMax === 0)) throw error
      // a smaller ring leaves room for sets; where other sessions have taken what sets may have, those wanted most are left
      if (ring > ringMost >> 4) ring >>= 1
      else {
        setsMax = sets.length >> 1
        ring = sets.length === 0 ? 0 : ringMost
      }
    }
  }
}

/** Sets that both sides have: so many in memory at most, and on the disk what has no room in this side's, or in the other's. */
function common(
  { sets: offered, cold: offeredCold = [] }: ClientHello,
  { hot, cold }: OfferedSets,
  setsMax: number,
  usesCold: boolean,
): Pick<Taken, 'sets' | 'cold'> {
  const sets = offered.filter(digest => hot.includes(digest)).slice(0, setsMax)
  const others = new Set(usesCold ? [...hot, ...cold] : [])
  for (const digest of sets) others.delete(digest)
  return { sets, cold: [...offered, ...offeredCold].filter(digest => others.has(digest)) }
}
