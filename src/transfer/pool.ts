/**
 * What a session direction works on: a kernel with the agreed template sets and a ring of its own, and room for what is under
 * way. All sessions of a process share memories (arena.ts). Who owns what in them: docs/adr/0003-memory.md.
 */
import { randomBytes } from 'node:crypto'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { type NumberedSets, SetGains } from '../codec/set-gains.ts'
import { WORKSPACE_BYTES, Workspace } from '../codec/workspace.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import {
  type Kernel,
  kernelModule,
  layoutBlock,
  layoutKeys,
  layoutTemplates,
  longEntriesFor,
  MEMORY_PAGES_MAX,
  PAGE_BYTES,
  SLACK_BYTES,
  WASM_PAGE_BYTES,
} from '../kernel/kernel.ts'
import { UNPACK_SLOTS } from '../limits.ts'
import { OneAtATime } from '../store/one-at-a-time.ts'
import type { SetFile } from '../store/set-file.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { Arena, type Lease, type WantedSet } from './arena.ts'
import { type ColdLease, ColdSets } from './cold/cold-sets.ts'
import type { KeptBlocksOptions } from './cold/kept-blocks.ts'
import { EVENT_LOOP, type EventLoop } from './event-loop.ts'
import { DecodingHelp } from './helpers/decoding-help.ts'
import { EncodingHelp } from './helpers/encoding-help.ts'
import type { StartHelper } from './helpers/helper.ts'
import { type HelpedSession, Helpers } from './helpers/helpers.ts'
import { AHEAD_SLOT_BYTES } from './helpers/unpack-ahead.ts'
import { KeptSets } from './kept-sets.ts'
import { SetsLate } from './sets-late.ts'
import { Turns } from './turns.ts'
import { type RingInAdvance, SpareRing, Warmth } from './warmth.ts'

export { PAGE_BYTES } from '../kernel/kernel.ts'

/** Ring of a session's pages, unless said otherwise: what the far side keeps besides its sets. */
export const POOL_MEMORY_DEFAULT = '256MiB'
/** Places whose last page is remembered: 4 MiB of memory on each side, 4 GiB of guest. */
export const PLACES = 1 << 20
/** Tables of POOL_MEMORY_DEFAULT and PLACES: 8 ms. */
const TABLES_COMMITTED_MAX = 32 << 20

/** What both sides of a session agree on. */
export interface PoolTerms {
  /** Digests of the sets, in the order of their slots. */
  readonly sets: readonly string[]
  /** Digests of those whose pages stay on the disk, in the order of their pages. */
  readonly cold?: readonly string[] | undefined
  readonly ringPages: number
  /** Entries of the place table: a power of two, or 0. */
  readonly places: number
  /** Blocks of disks that both sides keep on their own disks, and where this one does. Default: none. */
  readonly keeps?: Pick<KeptBlocksOptions, 'blocks' | 'space' | 'onFailure'> | undefined
}

/** What a session needs besides. */
export interface PoolShape {
  readonly role: 'encoder' | 'decoder'
  readonly workspaces: number
  /** Areas of the same size besides the workspaces: socket slots or outputs. */
  readonly slots: number
  readonly slotBytes: number
  /** Batches that helpers may have unpacked at a time, where the process has some (decoder). Default: none. */
  readonly ahead?: number
  /** Whether long matches may be asked for (encoder): costs a table of 4 bytes for each 64 bytes of the pool. */
  readonly longMatch: boolean
  /** Threads of the process, this one counted, which help to encode where there are long matches. Default: 1. */
  readonly threads?: number
  /** What of the ring is committed before a migration comes, in turns that have time. Default: never. */
  readonly ringInAdvance?: RingInAdvance
  /**
   * Tables that find its pages are committed at once, as far as TABLES_COMMITTED_MAX goes: after a few hundred pages each of
   * their own is in use, and one that is read first is mapped twice, with an interrupt of the other cores. Default: false.
   */
  readonly tablesInAdvance?: boolean
  /** Bytes of the ring ahead of what has passed that are committed while a migration runs. Default: Warmth's. */
  readonly commitAheadBytes?: number
  /**
   * What finds the pages of its sets goes with the last session that has them in this order: a peer decides over that, and
   * must not fill the memory with such tables. Default: it is kept for a while.
   */
  readonly forgetsTables?: boolean
}

export interface PoolRequest extends PoolTerms, PoolShape {
  /** Where the sets are; undefined where there are none. */
  readonly store: TemplateStore | undefined
  /** How long sets are waited for. Default: as long as it takes. */
  readonly setsMs?: number
  /** Only in a memory that has all of the sets: beside another session, and never a reason to load them again. */
  readonly isBeside?: boolean
}

/** A kernel with its areas. */
export interface Pool {
  readonly kernel: Kernel
  readonly workspaces: readonly Workspace[]
  /** Address of each slot. */
  readonly slots: readonly number[]
  readonly slotBytes: number
  /** The sets in memory, by their slots; undefined: it is not asked. */
  readonly sets?: NumberedSets | undefined
  /** The sets whose pages stay on the disk; undefined: none. */
  readonly cold?: ColdLease | undefined
  /** Who helps to encode; undefined: this thread does all. */
  readonly encoding?: EncodingHelp | undefined
  /** Who unpacks batches before their turn, and addresses of AHEAD_SLOT_BYTES each for that; undefined: nobody does. */
  readonly decoding?: { readonly help: DecodingHelp; readonly slots: readonly number[] } | undefined
  /** Whose turn it is to expand, among all pools of the process. */
  readonly turns: Turns
  /**
   * A migration has begun, or a batch has passed: what it will soon need is made ready, a little in each turn of the event
   * loop. Cheap where nothing is to do. @returns settles when long matches of the templates are known, and
   * pages of sets on the disk
   */
  warm(): Promise<void>
  /** Whether it has migrations: what is not for them is made ready when none runs. */
  migrates(isRunning: boolean): void
}

/** A pool of the process's memory. */
export interface OpenPool extends Pool {
  /** Resolves when what was asked for in advance is ready, or is not waited for: a migration has begun, or the session is over. */
  readonly ready: Promise<void>
  /** The session is over, and nothing writes to its areas any more. Resolves when they are clean for the next one. */
  close(): Promise<void>
}

/** How long sets that no session uses stay in memory, and a memory without sessions stays: the next session comes soon. */
const UNUSED_MS = 60_000

/** Bytes of a memory that sessions can take of. */
const ARENA_BYTES = MEMORY_PAGES_MAX * WASM_PAGE_BYTES - SLACK_BYTES - layoutKeys().end

/** How far an opening is. */
interface Opening {
  /** Sets whose files are opened to be loaded, whether or not another memory has them. */
  readonly asked: Set<string>
  lease?: Lease
}

/** All memories of a process. */
export class Pools {
  private readonly implementation: 'simd' | 'twin' | undefined
  private readonly unusedMs: number
  readonly setsBytesMax: number
  /** Threads that work on all sessions, this one counted. */
  readonly threads: number
  private readonly helpers: Helpers | undefined
  private arenas: Arena[] = []
  private readonly coldSets: ColdSets
  /** Sets are opened and loaded in its turns. */
  private readonly setsInTurn = new OneAtATime()
  private readonly kept = new KeptSets()
  /** Openings that were given up, and whose sets have not come yet: who is behind them waits in vain. */
  private late = 0
  /** Blocks that are being zeroed. */
  private readonly cleaning = new Set<Promise<void>>()
  private sweepDue = false
  private readonly loop: EventLoop
  private readonly turns: Turns
  private readonly spare = new SpareRing(() => this.arenas.reduce((sum, { sparePages }) => sum + sparePages.bytes, 0))

  /**
   * @param options.setsBytesMax bytes that sets may take in all memories together: where sessions do not fit into one memory
   *   another one has the same sets again
   * @param options.threads that work on all sessions, this one counted. Default: 1
   * @param options.unusedMs how long what no session uses is kept for the next one; 0: nothing is, for there is none
   */
  constructor(
    options: {
      readonly implementation?: 'simd' | 'twin'
      readonly unusedMs?: number
      readonly setsBytesMax?: number
      readonly loop?: EventLoop
      readonly threads?: number
      readonly startHelper?: StartHelper
    } = {},
  ) {
    this.threads = options.threads ?? 1
    this.loop = options.loop ?? EVENT_LOOP
    if (this.threads > 1) this.helpers = new Helpers(this.threads, this.loop, options.startHelper)
    this.turns = new Turns(this.loop)
    this.coldSets = new ColdSets(this.loop, this.setsInTurn)
    this.setsBytesMax = options.setsBytesMax ?? Number.POSITIVE_INFINITY
    this.implementation = options.implementation
    this.unusedMs = options.unusedMs ?? UNUSED_MS
    // now, not with the first session: by then an upgrade may have put another version's beside the program that runs
    if (this.implementation !== 'twin') kernelModule()
  }

  /** Batches of a decoder that are unpacked before their turn: PoolShape.ahead. */
  get aheadSlots(): number {
    return this.helpers ? UNPACK_SLOTS : 0
  }

  private get setBytes(): number {
    return this.arenas.reduce((sum, arena) => sum + arena.setBytes, 0)
  }

  /** Memories, the sets in each, and bytes that they can have resident at most. */
  get stats(): {
    readonly sessions: number
    readonly sets: number
    readonly lists: number
    readonly bytes: number
  }[] {
    return this.arenas.map(({ sessions, setCount: sets, listCount: lists, bytes }) => ({
      sessions,
      sets,
      lists,
      bytes,
    }))
  }

  /**
   * Opens a session's pool: loads those sets that no session has loaded, each page verified against its digest, and opens
   * those that stay on the disk.
   * @throws TEMPLATE_*, LIMIT_EXCEEDED (more than 4 GiB, or than sets may take), IO; SetsLate after `setsMs`: what has not
   * come is read on, and kept for the next session until that has been let go, as long as there are sessions at all and nobody
   * else needs its place. Sets are read one at a time, so those behind a late one are late too; while there is one nothing is
   * waited for.
   */
  async open(request: PoolRequest): Promise<OpenPool> {
    const { setsMs } = request
    const progress: Opening = { asked: new Set() }
    const opening = this.openAll(request, progress)
    if (setsMs === undefined) return opening
    const isLate = await this.isLate(opening, this.late > 0 ? 0 : setsMs)
    if (!isLate) return opening
    const missing = this.missing(request, progress)
    if (missing.length === 0) return opening // it computes
    this.late++
    const settled = opening
      .then(pool => pool.close())
      .catch((error: unknown) => error) // who comes next tries it anew
      .finally(() => this.late--)
    throw new SetsLate(missing, settled, this.kept.keep(missing))
  }

  /** Sets that an opening still waits for. */
  private missing({ sets, cold = [] }: PoolRequest, { asked, lease }: Opening): string[] {
    const isThere = (digest: string): boolean =>
      !asked.has(digest) && this.arenas.some(arena => arena.hasLoaded(digest))
    return [
      ...cold.filter(digest => !this.coldSets.hasOpen(digest)),
      // another memory may have it: what counts is the one that the session is in
      ...(lease
        ? lease.index.sets.filter(set => !set.isThere).map(set => set.digest)
        : sets.filter(set => !isThere(set))),
    ]
  }

  /** @returns whether this takes longer than so many ms */
  private async isLate(opening: Promise<unknown>, ms: number): Promise<boolean> {
    let takeBack = (): void => {}
    const late = new Promise<boolean>(done => {
      takeBack = this.loop.after(ms, () => done(true))
    })
    const opened = opening.then(
      () => false,
      () => false,
    )
    return Promise.race([opened, late]).finally(takeBack)
  }

  private async openAll(request: PoolRequest, progress: Opening): Promise<OpenPool> {
    await Promise.all(this.cleaning) // what is about to be free is better than what nobody has touched yet
    const files = new Map<string, SetFile>()
    const { cold: coldSets = [], keeps, store, role } = request
    this.helpersFor(request)?.start() // which takes as long as to make memory and sets ready
    let cold: ColdLease | undefined
    try {
      if (coldSets.length > 0 || keeps) cold = await this.coldSets.open(coldSets, store, role === 'encoder', keeps)
      const { arena, lease } = await this.lease(request, files, progress)
      progress.lease = lease
      let kernel: Kernel | undefined
      try {
        kernel = await arena.kernel(lease, this.implementation)
        await this.helpers?.ending // there is no place for others before
        return this.pool(request, arena, lease, kernel, cold)
      } catch (error) {
        await this.giveBack(arena, lease, kernel)
        throw error
      }
    } catch (error) {
      await this.releaseCold(cold)
      if (this.unusedMs === 0) await this.helpers?.endIdle()
      else this.sweepLater()
      throw error
    } finally {
      for (const file of files.values()) await file.close()
    }
  }

  /** Who helps a session; undefined: it is not asked for, or this host has no kernel that threads can share. */
  private helpersFor(size: PoolShape): Helpers | undefined {
    if (size.role === 'decoder') return size.ahead ? this.helpers : undefined
    return threadsOf(size) > 1 && this.implementation !== 'twin' && kernelModule() ? this.helpers : undefined
  }

  /** No helper touches anything of a session any more. */
  private async leaveHelpers(session: HelpedSession | undefined): Promise<void> {
    await session?.close()
    if (this.unusedMs === 0) await this.helpers?.endIdle()
  }

  /** Room in the memory that has most of the sets, or in the next; else in a new one. Opens files only of sets to be loaded. */
  private async lease(
    request: PoolRequest,
    files: Map<string, SetFile>,
    { asked }: Opening,
  ): Promise<{ arena: Arena; lease: Lease }> {
    for (let forgotten: 'nothing' | 'unused' | 'kept' = 'nothing'; ; ) {
      // nothing may come between what is looked up and what is taken: all of this happens in one turn
      const missing = new Set<string>()
      const pagesOf = (arena: Arena | undefined, digest: string): number => {
        const pages = arena?.pagesOf(digest) ?? files.get(digest)?.head.pageCount
        if (pages === undefined) missing.add(digest)
        return pages ?? 0
      }
      const take = (arena: Arena): Lease | undefined => {
        const missingBefore = missing.size
        const wanted = request.sets.map((digest): WantedSet => ({ digest, pages: pagesOf(arena, digest) }))
        if (missing.size > missingBefore) return undefined
        const fresh = wanted.filter(({ digest }) => arena.pagesOf(digest) === undefined)
        if (this.setBytes + pagesIn(fresh) * PAGE_BYTES > this.setsBytesMax) return undefined
        return arena.lease(blockRequest(request, pagesIn(wanted)), wanted, digest => {
          const file = files.get(digest)!
          files.delete(digest) // the arena closes it
          return file
        })
      }
      const known = (arena: Arena): number => request.sets.filter(set => arena.pagesOf(set) !== undefined).length
      const { isBeside = false } = request
      for (const arena of this.arenas.toSorted((a, b) => known(b) - known(a))) {
        if (isBeside && known(arena) < request.sets.length) break
        const lease = take(arena)
        if (lease) return { arena, lease }
        if (missing.size > 0) break // with the file it may fit
      }
      if (isBeside) throw noRoomBeside(request)
      if (missing.size === 0) {
        if (forgotten === 'nothing') {
          forgotten = 'unused'
          if (await this.forget(digest => this.kept.has(digest))) continue
        }
        const pages = request.sets.reduce((sum, digest) => sum + pagesOf(undefined, digest), 0)
        if (missing.size === 0) {
          const bytes = poolBytes(request, pages)
          if (bytes > ARENA_BYTES) throw tooLarge(request, pages, bytes)
          let failure = tooLarge(request, pages, bytes)
          try {
            const arena = new Arena(randomBytes(256), bytes, this.loop, this.setsInTurn)
            const lease = take(arena)
            if (lease) {
              this.arenas.push(arena)
              return { arena, lease }
            }
          } catch (error) {
            if (!isProxyError(error, 'LIMIT_EXCEEDED')) throw error
            failure = error
          }
          if (forgotten === 'kept') throw failure
          forgotten = 'kept'
          if (await this.forget(() => false)) continue
          throw failure
        }
      }
      for (const digest of missing) asked.add(digest)
      for (const digest of missing) files.set(digest, await this.setsInTurn.run(() => request.store!.open(digest)))
    }
  }

  /** Lets go of what no session has. @returns whether there was anything */
  private async forget(isKept: (digest: string) => boolean): Promise<boolean> {
    let freed = false
    for (const arena of this.arenas) freed = (await arena.forget(Number.POSITIVE_INFINITY, isKept)) || freed
    return freed
  }

  private pool(
    request: PoolRequest,
    arena: Arena,
    lease: Lease,
    kernel: Kernel,
    cold: ColdLease | undefined,
  ): OpenPool {
    let next = lease.layout.io
    const workspaces: Workspace[] = []
    for (let i = 0; i < request.workspaces; i++, next += WORKSPACE_BYTES)
      workspaces.push(new Workspace(kernel.bytes, next))
    const slots: number[] = []
    for (let i = 0; i < request.slots; i++, next += request.slotBytes) slots.push(next)
    const ahead: number[] = []
    for (let i = 0; i < (request.ahead ?? 0); i++, next += AHEAD_SLOT_BYTES) ahead.push(next)
    const module = kernelModule()
    const parts = request.role === 'encoder' && module ? { module, layout: kernel.layout } : undefined
    const helped = this.helpersFor(request)?.open(kernel.memory, parts)
    const sets = numbered(lease.index.sets)
    const inAdvance = request.ringInAdvance ?? 'never'
    const { placeTable, ring } = kernel.layout
    if (request.tablesInAdvance) kernel.commit(placeTable, Math.min(ring - placeTable, TABLES_COMMITTED_MAX))
    const warmth = new Warmth(
      kernel,
      this.loop,
      inAdvance,
      this.spare,
      arena.sparePages,
      sets.starts,
      (at, length) => helped?.commit(at, length),
      request.commitAheadBytes,
    )
    const index = cold?.index
    // behind what a session's opening waits for: of 20 GB it takes a second, in which pages may pass that it would know
    void warmth.ready.then(() => index?.fill(this.loop))
    const warm = async (): Promise<void> => {
      await Promise.all([warmth.warm(), index?.fill(this.loop)])
    }
    let closed: Promise<void> | undefined
    return {
      kernel,
      workspaces,
      slots,
      slotBytes: request.slotBytes,
      sets,
      cold,
      encoding: parts && helped && new EncodingHelp(helped, kernel),
      decoding: parts === undefined && helped ? { help: new DecodingHelp(helped), slots: ahead } : undefined,
      turns: this.turns,
      ready:
        helped && inAdvance === 'always' ? Promise.all([warmth.ready, helped.started]).then(() => {}) : warmth.ready,
      warm: () => (index === undefined || index.isFilled ? warmth.warm() : warm()),
      migrates: isRunning => warmth.migrates(isRunning),
      close: () => {
        warmth.end()
        const giveBack = (): Promise<void> => this.giveBack(arena, lease, kernel)
        const given = (): Promise<void> => this.clean(this.leaveHelpers(helped).then(giveBack))
        closed ??= Promise.all([this.releaseCold(cold), given()]).then(() => {})
        return closed
      },
    }
  }

  /**
   * Opens sets that a session is likely to have on the disk: of a large store that takes seconds, in which the other side can
   * do the same. Without a session they are let go as others are. What goes wrong is told when they are needed.
   */
  async warmCold(digests: readonly string[], store: TemplateStore | undefined, role: PoolShape['role']): Promise<void> {
    if (digests.length === 0) return
    let cold: ColdLease | undefined
    try {
      cold = await this.coldSets.open(digests, store, role === 'encoder')
    } catch (error) {
      if (!isProxyError(error)) throw error
    }
    await this.releaseCold(cold)
  }

  /** @param cold undefined: its sets could not all be opened */
  private async releaseCold(cold: ColdLease | undefined): Promise<void> {
    cold?.release()
    if (this.unusedMs === 0) await this.coldSets.forget(Number.POSITIVE_INFINITY)
    else if (cold !== undefined || this.coldSets.setCount > 0) this.sweepLater()
  }

  private async giveBack(arena: Arena, lease: Lease, kernel: Kernel | undefined): Promise<void> {
    if (this.unusedMs === 0 && arena.sessions === 1) {
      this.arenas = this.arenas.filter(other => other !== arena) // as it is: nobody comes who wants it clean
      return
    }
    await this.clean(arena.giveBack(lease, kernel, this.loop.nowMs()))
    this.sweepLater()
  }

  /** Who opens a pool waits for it. */
  private async clean(cleaned: Promise<void>): Promise<void> {
    this.cleaning.add(cleaned)
    await cleaned
    this.cleaning.delete(cleaned)
  }

  private sweepLater(): void {
    if (this.sweepDue) return
    this.sweepDue = true
    this.loop.after(this.unusedMs, () => void this.sweep())
  }

  /** Lets go of what nobody has used for a while. */
  private async sweep(): Promise<void> {
    await Promise.all(this.cleaning) // who cleans a memory knows it
    const untilMs = this.loop.nowMs() - this.unusedMs + 1
    const before = this.arenas.length
    const isLive = ({ sessions, idleMs }: Arena): boolean => sessions > 0 || idleMs > untilMs
    // without sessions nothing is wanted so much that an idle process would hold it
    const hasLive = this.arenas.some(isLive)
    const isKept = (digest: string): boolean => hasLive && this.kept.has(digest)
    for (const arena of [...this.arenas]) {
      const isOnly = (digest: string): boolean =>
        isKept(digest) && !this.arenas.some(other => other !== arena && other.hasLoaded(digest))
      if (isLive(arena) || arena.hasAny(isOnly)) await arena.forget(untilMs, isOnly)
      else this.arenas = this.arenas.filter(other => other !== arena)
    }
    const coldLeft = await this.coldSets.forget(untilMs, isKept)
    this.sweepDue = false
    if (!hasLive) await this.helpers?.endIdle()
    if (coldLeft || this.arenas.some(arena => arena.hasUnused)) this.sweepLater()
    // V8 gives a shared memory back when it collects it, which a process that idles may never do; in a turn of its own, for
    // what runs here knew the memory
    if (this.arenas.length < before) this.loop.soon(() => void collectGarbage(this.helpers))
  }
}

/** Counts what the sets of a pool bring; undefined where there are none. */
export function gainsOf({ sets, cold }: Pool): SetGains | undefined {
  if (!cold && (sets?.pages ?? 0) === 0) return undefined
  return new SetGains(sets ?? numbered([]), cold?.list)
}

function numbered(sets: readonly WantedSet[]): NumberedSets {
  let pages = 0
  const starts = sets.map(set => {
    pages += set.pages
    return pages - set.pages
  })
  return { digests: sets.map(({ digest }) => digest), starts, pages }
}

/** A pool in a memory of its own, for commands: `close` lets go of it, and closes all files. @throws as Pools.open */
export function openPool(request: PoolRequest): Promise<OpenPool> {
  return new Pools({ unusedMs: 0, threads: request.threads ?? 1 }).open(request)
}

/**
 * Template pages that fit into a memory beside the rest of a session.
 * @returns 0 where not even the rest fits
 */
export function templatePagesMax(shape: PoolShape, ringPages: number, places: number): number {
  return mostThatFits(pages => poolBytes({ ...shape, ringPages, places }, pages))
}

/** Pages that a session's ring can have at most, without template sets. */
export function ringPagesMax(shape: PoolShape, places: number): number {
  return mostThatFits(ringPages => poolBytes({ ...shape, ringPages, places }, 0))
}

function mostThatFits(bytesOf: (pages: number) => number): number {
  let fits = 0
  let least = 0
  for (let most = Math.floor(ARENA_BYTES / PAGE_BYTES); least <= most; ) {
    const pages = Math.floor((least + most) / 2)
    if (bytesOf(pages) > ARENA_BYTES) most = pages - 1
    else {
      fits = pages
      least = pages + 1
    }
  }
  return fits
}

/** Threads that a session's memory needs room for. */
function threadsOf({ role, longMatch, threads = 1 }: PoolShape): number {
  return role === 'encoder' && longMatch ? threads : 1
}

type PoolSize = PoolShape & Pick<PoolTerms, 'ringPages' | 'places'>

function blockRequest(size: PoolSize, templatePages: number) {
  const { role, ringPages, places, workspaces, slots, slotBytes, ahead = 0, longMatch, forgetsTables = false } = size
  const threads = threadsOf(size)
  const longEntries = role === 'encoder' && longMatch ? longEntriesFor(templatePages + ringPages) : 0
  const ioBytes = workspaces * WORKSPACE_BYTES + slots * slotBytes + ahead * AHEAD_SLOT_BYTES
  return { role, ringPages, places, ioBytes, longEntries, forgetsTables, threads }
}

/** Bytes that a session takes of a memory, its sets counted. */
function poolBytes(size: PoolSize, templatePages: number): number {
  const { blockBytes } = layoutBlock({ ...blockRequest(size, templatePages), templatePages }, 0)
  const index = layoutTemplates(size.role, templatePages, 0, 0).end
  return templatePages * PAGE_BYTES + Math.ceil(index / PAGE_BYTES) * PAGE_BYTES + blockBytes
}

function pagesIn(sets: readonly WantedSet[]): number {
  return sets.reduce((sum, { pages }) => sum + pages, 0)
}

function noRoomBeside({ sets }: PoolTerms): ProxyError {
  const what = `no memory that has these ${sets.length} sets has room for more`
  return new ProxyError('LIMIT_EXCEEDED', what, undefined, 'it goes on without')
}

function tooLarge(size: PoolSize, templatePages: number, bytes: number): ProxyError {
  const mib = (n: number): number => Math.ceil(n / 1048576)
  return new ProxyError(
    'LIMIT_EXCEEDED',
    `${mib(bytes)} MiB of memory are needed (templates ${mib(templatePages * PAGE_BYTES)}, ring ` +
      `${mib(size.ringPages * PAGE_BYTES)}), and could not be had: ${mib(ARENA_BYTES)} can be addressed`,
    undefined,
    'use fewer template sets or a smaller --pool-memory',
  )
}

/** A full collection now, as with --expose-gc, on each thread that may know the memory. */
async function collectGarbage(helpers: Helpers | undefined): Promise<void> {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  collect()
  await helpers?.collectGarbage() // their contexts are made with the same flags
  setFlagsFromString('--no-expose-gc')
}
