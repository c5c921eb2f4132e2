/** The destination proxy: takes sessions of source proxies, and dials the destination QEMUs of its configuration. */
import { setTimeout as sleep } from 'node:timers/promises'
import { loadLz4 } from '../compression/lz4.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { FairShares } from '../fair-shares.ts'
import type { Learning } from '../learning/learning.ts'
import {
  BATCH_RAW_BYTES_MAX,
  MEMORY_BUDGET_BYTES,
  PIECES_MAX,
  REPLIES_CHANNELS_MAX,
  REPLIES_MEMORY_BYTES,
  REPLIES_PLACES_MAX,
  SETS_WAIT_MS,
} from '../limits.ts'
import type { Credentials } from '../link/credentials.ts'
import type { Link } from '../link/link.ts'
import { type Accepted, LinkServer, type ListenAt } from '../link/server.ts'
import { BehindDisks } from '../migration/behind-disks.ts'
import type { PatienceTimes } from '../migration/patience.ts'
import type { Address } from '../relay/address.ts'
import type { SetSigners } from '../remote/set-signature.ts'
import type { TemplateStore } from '../store/template-store.ts'
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
import { type ClientHello, seedWords } from '../wan/hello.ts'
import { FEATURE } from '../wan/wire.ts'
import { DestinationSession, type DestinationSessionOptions } from './destination-session.ts'
import type { Events } from './events.ts'
import { RENEW_MS, SessionSets } from './session-sets.ts'
import type { DiskZeroes } from './settings.ts'
import { type DestinationStatus, expiriesOf, type LinkStatus, withoutFlows } from './status.ts'
import { AGENT } from './version.ts'

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

/** What a session has to deliver its last frames and BYE, once no migration runs any more. */
const CLOSE_GRACE_MS = 5000

export interface DestinationOptions {
  /** Where source proxies connect. */
  readonly listen: readonly ListenAt[]
  /** What may be dialled, by name; `setTargets` changes it. */
  readonly targets: ReadonlyMap<string, Address>
  /** What may be dialled for disks, by name; likewise. Default: nothing. */
  readonly disks?: ReadonlyMap<string, Address>
  /** What becomes of zeroes that are written to them. Default: what was said. */
  readonly diskZeroes?: DiskZeroes
  /** undefined: plain text, because the operator said so. */
  readonly credentials: Credentials | undefined
  readonly store: TemplateStore | undefined
  /** Whose signatures its sets must have; undefined: it is not asked for. */
  readonly signers?: SetSigners | undefined
  readonly learning?: Learning | undefined
  /** Most pages of ring that a session may have. */
  readonly ringPagesMax: number
  readonly placesMax: number
  /** Memories and shares of rings, where this process has several proxies. */
  readonly pools?: Pools
  readonly shares?: RingShares
  /** MEMORY_BUDGET_BYTES, likewise. */
  readonly memory?: FairShares | undefined
  /** Sessions at once. Default SESSIONS_MAX. */
  readonly sessionsMax?: number | undefined
  readonly queueTargetMs: number
  /** How often idle sessions are looked at. */
  readonly renewMs?: number
  readonly patienceMs: number
  /** The same after a migration's switch to postcopy. Default: patienceMs. */
  readonly patiencePostcopyMs?: number
  /** Where it tells what happens: everything that a test or a log wants to know. */
  readonly events: Events
  readonly onStatus?: (status: string) => void
}

export class DestinationDaemon {
  private readonly options: DestinationOptions
  private targets: ReadonlyMap<string, Address>
  private disks: ReadonlyMap<string, Address>
  private readonly server: LinkServer
  private readonly sets: SessionSets
  private readonly sessions = new Map<Link, DestinationSession>()
  private readonly pools: Pools
  private readonly shares: RingShares
  private readonly grants = new Map<Link, RingGrant>()
  /** Of each session of `sessions`: who the other proxy says it is, and which sets are used. */
  private readonly terms = new WeakMap<Link, Pick<LinkStatus, 'agent' | 'sets' | 'coldSets'>>()
  /** Likewise: of the sets that were offered when it was opened. */
  private readonly setsVersions = new WeakMap<Link, string>()
  /** Sessions that were asked to end: idle ones, so that their rings can be shared anew, and such that have disks alone. */
  private readonly asked = new WeakSet<Link>()
  private readonly behind = new WeakMap<Link, BehindDisks>()
  private readonly patience: PatienceTimes
  /** Pieces that wait for QEMUs. */
  private readonly pieces = new FairShares(PIECES_MAX)
  private readonly memory: FairShares
  private stopping = false
  /** Where it listens, once started. */
  readonly addresses: { address: string; port: number }[] = []

  constructor(options: DestinationOptions) {
    this.options = options
    this.targets = options.targets
    this.disks = options.disks ?? new Map()
    const { patienceMs, patiencePostcopyMs = patienceMs } = options
    this.patience = { precopyMs: patienceMs, postcopyMs: patiencePostcopyMs }
    this.pools = options.pools ?? new Pools()
    this.shares = options.shares ?? new RingShares(2 * options.ringPagesMax * PAGE_BYTES, true)
    this.memory = options.memory ?? new FairShares(MEMORY_BUDGET_BYTES)
    // a ring is made smaller where it does not fit beside the sets
    this.sets = new SessionSets(
      options.store,
      options.events,
      Math.min(templatePagesMax(SHAPE, 0, options.placesMax), Math.floor(this.pools.setsBytesMax / PAGE_BYTES)),
      options.signers,
    )
    this.server = new LinkServer({
      ...(options.credentials ? { credentials: options.credentials } : { plaintext: true }),
      accept: (hello, _identity, holder, peer) => this.acceptSession(hello, holder, peer),
      logger: options.events.byFields(),
      memory: this.memory,
      ...(options.sessionsMax !== undefined && { sessionsMax: options.sessionsMax }),
      agent: AGENT,
    })
  }

  /** How it is just now. */
  status(): DestinationStatus {
    return {
      role: 'destination',
      certificates: expiriesOf(this.options.credentials),
      listening: this.addresses.map(({ address, port }) => `${address}:${port}`),
      stopping: this.stopping,
      sessions: Array.from(this.sessions, ([link, session]) => ({
        link: link.id.slice(0, 8),
        peer: link.identity,
        ...this.terms.get(link)!,
        stats: withoutFlows(link.session.stats()),
        ...session.status(),
      })),
    }
  }

  /** Channels that are open. */
  get running(): number {
    let channels = 0
    for (const session of this.sessions.values()) channels += session.channelCount
    return channels
  }

  /** @throws IO */
  async start(): Promise<void> {
    loadLz4() // takes 100 ms, which the first migration, or the switch to postcopy, would wait for
    const { cold } = await this.sets.offer() // damaged sets are told now, not when the first peer comes
    this.pools.warmCold(cold, this.options.store, SHAPE.role).catch(error => this.tellDefect(error))
    for (const at of this.options.listen) {
      const { address, port } = await this.server.listen(at)
      this.addresses.push({ address, port })
    }
    const renew = (): void => {
      try {
        this.renewIdle()
      } catch (error) {
        this.tellDefect(error)
      }
    }
    setInterval(renew, this.options.renewMs ?? RENEW_MS).unref()
  }

  /** Reads certificates and keys again. */
  reload(): void {
    const { credentials } = this.options
    if (!credentials) return
    credentials.reload()
    // what was read may revoke who was let in: each proves itself again, as soon as its migrations are over
    for (const link of this.server.links) link.session.drain()
  }

  /** What an operator should mend in the credentials. */
  get warnings(): readonly string[] {
    return this.options.credentials?.warnings ?? []
  }

  /** What may be dialled from now on; connections to a target that is gone go on. */
  setTargets(targets: ReadonlyMap<string, Address>, disks: ReadonlyMap<string, Address> = new Map()): void {
    this.targets = targets
    this.disks = disks
  }

  /** Takes no more sessions and flows; running migrations finish. */
  async stop(): Promise<void> {
    this.stopping = true
    if (this.running > 0) {
      this.options.onStatus?.(`stopping: ${this.running} channels finish`)
      this.options.events.info('stopping: running migrations finish first', { channels: this.running })
    }
    this.server.drain()
    while (this.running > 0) await sleep(50)
    // Ends of flows may still be owed to a source whose WAN is cut just now: it is listened for until they are delivered.
    const delivered = Promise.all(this.server.links.map(link => link.close()))
    await Promise.race([delivered, sleep(this.options.patienceMs, undefined, { ref: false })])
    await this.server.close(CLOSE_GRACE_MS)
    await this.options.learning?.settled()
  }

  /** Ends everything now. */
  async abort(): Promise<void> {
    const stopped = 'the destination proxy was stopped'
    for (const [link, session] of this.sessions) {
      if (!link.over) void link.abort(new ProxyError('QEMU_LOST', stopped, undefined, 'start the migration again'))
      session.abandon(stopped)
    }
    await this.server.close(CLOSE_GRACE_MS)
  }

  private async acceptSession(hello: ClientHello, holder: string, from: string): Promise<Accepted> {
    const { options } = this
    if (this.stopping) throw new ProxyError('PEER_LOST', 'this proxy is stopping', undefined, 'it will be back')
    // what learning has counted looks like a set without pages
    const counted = options.learning?.states ?? []
    const places = Math.min(hello.places, options.placesMax)
    const usesCold = hello.features?.includes(FEATURE.COLD_SETS) === true
    let sets: string[]
    let cold: string[]
    let pool: OpenPool
    let grant: RingGrant
    const ringMost = Math.min(hello.ring, options.ringPagesMax, ringPagesMax(SHAPE, places))
    let ring = ringMost
    let setsMax = hello.sets.length
    const untilMs = performance.now() + SETS_WAIT_MS
    let held = await this.sets.offer()
    for (;;) {
      sets = hello.sets.filter(digest => held.hot.includes(digest)).slice(0, setsMax)
      // what has no room in this side's memory, or in the other's
      const others = new Set(usesCold ? [...held.hot, ...held.cold] : [])
      for (const digest of sets) others.delete(digest)
      cold = [...hello.sets, ...(hello.cold ?? [])].filter(digest => others.has(digest))
      grant = this.shares.take(holder, ring * PAGE_BYTES)
      ring = Math.floor(grant.bytes / PAGE_BYTES)
      try {
        pool = await this.pools.open({
          ...SHAPE,
          sets,
          cold,
          store: options.store,
          ringPages: ring,
          places,
          setsMs: Math.max(0, untilMs - performance.now()),
        })
        break
      } catch (error) {
        grant.release()
        if (this.sets.exclude(error)) {
          held = this.sets.stillOf(held)
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
    const agreed = hello.sets.filter(digest => sets.includes(digest) || counted.includes(digest))
    const seed = seedWords(Buffer.from(hello.seed, 'hex'))
    return {
      sets: agreed,
      ...(cold.length > 0 && { cold }),
      ring,
      places,
      targets: [...this.targets.keys()],
      session: {
        patienceMs: Math.max(this.patience.precopyMs, this.patience.postcopyMs),
        queueTargetMs: options.queueTargetMs,
      },
      // big sets may take longer than the peer waits: the next try finds them loaded
      discard: () => {
        grant.release()
        pool.close().catch(error => this.tellDefect(error))
      },
      serve: link => {
        const learning = options.learning?.begin(agreed, seed, pool, holder)
        const can = (feature: string): boolean => hello.features?.includes(feature) === true
        const disks = can(FEATURE.DISKS)
        const replies = (ringPages: number) => this.openReplies(holder, { sets, ringPages, places })
        const session = this.makeSession(link, {
          ...{ holder, pool, seed, learning, disks },
          replies: disks && can(FEATURE.DISK_REPLIES) ? replies : undefined,
        })
        options.events.of(holder).info('session open', {
          identity: holder,
          agent: hello.agent,
          from,
          sets: sets.map(digest => digest.slice(0, 12)),
          ...(cold.length > 0 && { cold: cold.map(digest => digest.slice(0, 12)) }),
          link: link.id.slice(0, 8),
        })
        this.sessions.set(link, session)
        this.terms.set(link, { agent: hello.agent, sets: sets.length, coldSets: cold.length })
        this.setsVersions.set(link, held.version)
        this.grants.set(link, grant)
        options.onStatus?.(`${this.sessions.size} sessions`)
        const over = async (): Promise<void> => {
          await link.ended
          try {
            session.end('the session has ended')
            learning?.end()
            await session.paid
          } finally {
            this.sessions.delete(link)
            grant.release()
            this.grants.delete(link)
            options.onStatus?.(`${this.sessions.size} sessions`)
            await pool.close()
          }
        }
        over().catch(error => this.tellDefect(error))
        return session
      },
    }
  }

  /** A pool for what a session's disks are read of. @returns undefined where there is no memory for it */
  private async openReplies(
    holder: string,
    { places, ...terms }: Pick<PoolRequest, 'sets' | 'ringPages' | 'places'>,
  ): Promise<OpenPool | undefined> {
    const share = this.memory.share(holder)
    if (!share.take(REPLIES_MEMORY_BYTES)) return undefined
    try {
      const pool = await this.pools.open({
        ...REPLIES_SHAPE,
        ...terms,
        places: Math.min(places, REPLIES_PLACES_MAX),
        store: this.options.store,
        isBeside: true,
      })
      return { ...pool, close: () => pool.close().finally(() => share.close()) }
    } catch (error) {
      share.close()
      if (!isProxyError(error, 'LIMIT_EXCEEDED')) throw error
      return undefined
    }
  }

  private makeSession(
    link: Link,
    {
      holder,
      pool,
      seed,
      learning,
      disks,
      replies,
    }: Pick<DestinationSessionOptions, 'holder' | 'pool' | 'seed' | 'learning' | 'replies'> & { disks: boolean },
  ): DestinationSession {
    const log = this.options.events.of(holder)
    return new DestinationSession({
      session: link.session,
      sessionId: link.id,
      pool,
      seed,
      holder,
      learning,
      replies,
      wake: () => link.wake(),
      queueTargetMs: this.options.queueTargetMs,
      targets: () => this.targets,
      disks: disks ? () => this.disks : undefined,
      diskZeroes: this.options.diskZeroes,
      patience: this.patience,
      pieces: this.pieces.share(holder),
      waiting: this.memory.share(holder),
      log,
      now: () => performance.now(),
      onFailure: error => void link.abort(error),
      onSetFailure: error => void this.sets.exclude(error, true), // the next session goes without
      onMigrationEnd: ({ level, ...summary }) => log[level]('migration ended', { ...summary, peer: holder }),
      onDiskEnd: ({ level, ...summary }) => log[level]('disk transfer ended', { ...summary, peer: holder }),
    })
  }

  /** One of ours that no session met while it lived. */
  private tellDefect(error: unknown): void {
    this.options.events.byFields().error('link.defect', { stack: (error as Error).stack })
  }

  /**
   * Lets idle sessions go when there are other template sets, or when rings can be shared more fairly: the source proxy
   * opens a new one. Whoever holds more of the rings than its share and does not go is closed.
   */
  private renewIdle(): void {
    if (this.stopping) return
    for (const link of this.server.links) {
      const session = this.sessions.get(link)
      if (session && session.channelCount > 0) {
        this.renewBeside(link, session)
        continue
      }
      const grant = this.grants.get(link)
      if (grant?.isExcessive && this.asked.has(link)) this.dismiss(link)
      else if (this.hasOtherSets(link) || grant?.isExcessive || grant?.isStarved) {
        this.asked.add(link)
        link.session.drain()
      }
    }
  }

  /** Whether there are other sets than when a session was opened. */
  private hasOtherSets(link: Link): boolean {
    const version = this.setsVersions.get(link)
    return version !== undefined && this.sets.changedSince(version)
  }

  /** A session that has disks alone, which may take hours, is left to them where there are other template sets. */
  private renewBeside(link: Link, session: DestinationSession): void {
    if (session.migrationChannelCount > 0 || !this.hasOtherSets(link) || this.asked.has(link)) return
    const behind = this.behind.get(link) ?? new BehindDisks()
    this.behind.set(link, behind)
    if (behind.isKept(session.transfers)) return
    this.asked.add(link)
    link.session.drain()
  }

  /** Closes an idle session that stays though it was asked to go. */
  private dismiss(link: Link): void {
    const { state } = link.session
    if (state !== 'live' && state !== 'broken') return // it is being closed: what it owes is on its way, or its WAN is away
    const reason = 'it holds more memory than its share, and stayed when it was asked to go'
    this.options.events.of(link.identity).info('idle session closed', {
      link: link.id.slice(0, 8),
      identity: link.identity,
      reason,
    })
    void link.close(reason)
  }
}
