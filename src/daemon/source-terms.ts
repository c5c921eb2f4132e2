/**
 * What a source proxy brings into a session, and what it has of it once the other side has said what it takes: template
 * sets, a ring, learning.
 */
import { randomBytes } from 'node:crypto'
import { isProxyError, type ProxyError } from '../errors.ts'
import type { Learning, SessionLearning } from '../learning/learning.ts'
import { SETS_WAIT_MS } from '../limits.ts'
import type { LinkClientOptions } from '../link/client.ts'
import type { SetSigners } from '../remote/set-signature.ts'
import type { TemplateStore } from '../store/template-store.ts'
import type { KeptGrant } from '../transfer/cold/kept-space.ts'
import { type OpenPool, PAGE_BYTES } from '../transfer/pool.ts'
import type { RingGrant } from '../transfer/ring-shares.ts'
import { type ServerHello, seedWords } from '../wan/hello.ts'
import { FEATURE } from '../wan/wire.ts'
import type { OfferedSets, SessionSets } from './session-sets.ts'
import type { ListenFor } from './source-listeners.ts'
import type { SourceMemory } from './source-memory.ts'
import { AGENT } from './version.ts'

/** Who brings in what is learned here: the guests of this host, whichever peer they go to. */
const OWN_GUESTS = ''

export interface SourceTermsOptions {
  readonly places: number
  readonly store: TemplateStore | undefined
  /** Whose signatures its sets must have; undefined: it is not asked for. */
  readonly signers?: SetSigners | undefined
  readonly learning?: Learning | undefined
  /** Where disks' clients connect. */
  readonly disks?: readonly ListenFor[]
  /** Blocks of disks cannot be kept here any more. */
  readonly onKeptFailure?: (error: ProxyError) => void
}

/** What both sides have agreed on. */
export interface AgreedTerms {
  /** Name and version of the other proxy. */
  readonly agent: string
  /** Digests of sets: in memory, and on the disk. */
  readonly sets: readonly string[]
  readonly cold: readonly string[]
  readonly pool: OpenPool
  /** Two u32 of the hash seed, low word first. */
  readonly seed: readonly [number, number]
  readonly learning: SessionLearning | undefined
  /** The other side can take disks. */
  readonly disks: boolean
  /** Where what they are read of is expanded; undefined: it comes as it is. */
  readonly replies: OpenPool | undefined
}

/** Of one session. `close` it. */
export class SourceTerms {
  /** For the hello. */
  readonly offer: LinkClientOptions['offer']
  private readonly options: SourceTermsOptions
  private readonly memory: SourceMemory
  private readonly sets: SessionSets
  private readonly held: OfferedSets
  /** What is left of SETS_WAIT_MS: waiting for the other side takes none of it. */
  private readonly setsMs: number
  /** Stands for what learning has counted: goes as a set without pages, which both sides have, or begin anew. */
  private readonly counted: readonly string[]
  private readonly seed = randomBytes(8)
  private grant: RingGrant
  /** For blocks of disks. */
  private readonly kept: KeptGrant | undefined
  private pool: OpenPool | undefined
  private replies: OpenPool | undefined
  private learning: SessionLearning | undefined

  private constructor(
    options: SourceTermsOptions,
    memory: SourceMemory,
    sets: SessionSets,
    held: OfferedSets,
    counted: readonly string[],
    setsMs: number,
  ) {
    this.options = options
    this.memory = memory
    this.sets = sets
    this.held = held
    this.counted = counted
    this.setsMs = setsMs
    this.grant = memory.ring(memory.ringPagesMax)
    const hasDisks = (options.disks?.length ?? 0) > 0
    this.kept = hasDisks ? memory.keptBlocks() : undefined
    const kept = this.kept?.blocks ?? 0
    this.offer = {
      agent: AGENT,
      sets: [...held.hot, ...counted],
      ring: Math.floor(this.grant.bytes / PAGE_BYTES),
      places: options.places,
      seed: this.seed.toString('hex'),
      features: [
        ...[FEATURE.COLD_SETS, FEATURE.DISKS],
        ...(hasDisks ? [FEATURE.DISK_REPLIES] : []),
        ...(kept > 0 ? [FEATURE.KEPT_BLOCKS] : []),
      ],
      ...(kept > 0 && { kept }),
      ...(held.cold.length > 0 && { cold: held.cold }),
    }
  }

  /** @returns what there is to offer now; undefined where `isOver` says meanwhile that nobody wants it */
  static async make(
    options: SourceTermsOptions,
    memory: SourceMemory,
    sets: SessionSets,
    isOver: () => boolean,
  ): Promise<SourceTerms | undefined> {
    const counted = options.learning?.states ?? []
    const untilMs = performance.now() + SETS_WAIT_MS
    const held = await sets.offer(counted.length)
    const setsMs = Math.max(0, untilMs - performance.now())
    return isOver() ? undefined : new SourceTerms(options, memory, sets, held, counted, setsMs)
  }

  /** Opens sets on the disk while the other side is asked which it has. */
  warm(): Promise<void> {
    return this.memory.warmCold(this.held.cold, this.options.store)
  }

  /** @param hello the other side's answer to `offer`. @throws as Pools.open */
  async agree({
    agent,
    sets: taken,
    cold = [],
    ring: ringPages,
    places,
    kept: blocks = 0,
    features,
  }: ServerHello): Promise<AgreedTerms> {
    const { setsMs } = this
    const { store, learning } = this.options
    const sets = taken.filter(digest => !this.counted.includes(digest))
    this.grant.release()
    this.grant = this.memory.ring(ringPages)
    const keeps = blocks > 0 ? { blocks, space: this.memory.kept!, onFailure: this.options.onKeptFailure } : undefined
    const pool = await this.memory.open({ sets, cold, store, ringPages, places, keeps, setsMs }).catch(error => {
      if (isProxyError(error, 'LIMIT_EXCEEDED')) this.sets.takeFewer()
      throw error
    })
    this.pool = pool
    const seed = seedWords(this.seed)
    this.learning = learning?.begin(taken, seed, pool, OWN_GUESTS)
    const can = (feature: string): boolean => features?.includes(feature) === true
    const disks = can(FEATURE.DISKS)
    if (disks && can(FEATURE.DISK_REPLIES)) {
      this.replies = await this.memory.openReplies({ sets, store, ringPages, places })
    }
    return { agent, sets, cold, pool, seed, learning: this.learning, disks, replies: this.replies }
  }

  /** The session is over. @returns when its memory is clean for the next one */
  async close(): Promise<void> {
    this.grant.release()
    this.kept?.release()
    const closed = [this.pool?.close(), this.replies?.close()]
    this.learning?.end()
    await Promise.all(closed)
  }
}
