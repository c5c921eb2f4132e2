/**
 * Learning for a proxy: watches sessions as their pages pass, puts what was learned into the store at a migration's end,
 * and carries the counts from one session to the next where both sides can show that they hold the same.
 */
import { createHash, randomBytes } from 'node:crypto'
import { resolve } from 'node:path'
import type { PageObserver } from '../codec/observer.ts'
import { BATCH_PAGES_MAX, type Workspace } from '../codec/workspace.ts'
import { FairShares } from '../fair-shares.ts'
import type { Kernel } from '../kernel/kernel.ts'
import { LEARN_MEMORY_BYTES } from '../limits.ts'
import type { Log } from '../log.ts'
import { MULTIFD } from '../qemu/wire.ts'
import { pruneStore } from '../store/prune.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { writeDigest } from '../template/digest.ts'
import { digestOfSet, type SetMetadata, type SetRecords } from '../template/format.ts'
import { DIGEST_LENGTH, PAGE_SIZE, pagesWithin, setLayout } from '../template/wire.ts'
import { type OwnedSet, SET_SHARE, SETS_SHARE, setsThatGo, WAITING_SHARE } from './disk-room.ts'
import { LEARN_PAGES_MAX, type LearnedSet, Learner } from './learner.ts'
import { ownerOf, readOwners, writeOwners } from './set-owners.ts'
import { BLOCK_LENGTH, EncryptedSpool } from './spool.ts'

export type LearnMode = 'off' | 'shared' | 'all'

/** States without a session that a destination proxy keeps: one for each source proxy that is away. */
export const STATES_MAX = 4
/** Longest metadata of a learned set, with room. */
const METADATA_LENGTH = 128
/** Pages that are read from the spool at once while a set is put. */
const READ_PAGES = 4096

export interface LearningOptions {
  readonly mode: 'shared' | 'all'
  readonly store: TemplateStore
  /**
   * Bytes on the disk for all that is learned, in sets and waiting: disk-room.ts. One set may have an eighth of it. Both
   * sides must say the same.
   */
  readonly maxBytes: number
  /** Learned sets that are older are removed. */
  readonly maxAgeMs: number
  readonly log: Log<LearningEvents>
  /** Both sides must say the same. */
  readonly pagesMax?: number
  /** States that are kept while no session uses them: a source proxy has one peer, so one. */
  readonly statesMax?: number
  /** A set was put, for tests and metrics. */
  readonly onSet?: (digest: string, pages: number) => void
}

/** What learning tells. */
export interface LearningEvents {
  learned: { readonly migration: number; readonly set: string; readonly pages: number; readonly seconds: number }
  'learned pages were not kept': { readonly migration: number; readonly error: string }
  'learned pages were not kept: other peers have their share of --learn-size': { readonly migration: number }
  'learning stops until the next session': { readonly error: string }
}

/** What learning needs of a session's pool. */
export interface LearnedPool {
  readonly kernel: Kernel
  readonly workspaces: readonly Workspace[]
}

/** What one chain of sessions has counted. */
interface State {
  readonly learner: Learner
  readonly spool: EncryptedSpool
  /** Who brings the pages in. */
  readonly owner: string
  /** Words of the hash seed: those of the first session, which no guest knows. */
  readonly seedLo: number
  readonly seedHi: number
  /** Sets of it that are being put. */
  puts: number
  closed: boolean
}

/** Room for a few blocks of the spool however small `--learn-size` is: less would end learning with its first page. */
const WAITING_BYTES_MIN = 8 * BLOCK_LENGTH

/** By folder: several proxies of one process may use one store. */
const rooms = new Map<string, FairShares>()
/** Of the process. */
const memory = new FairShares(LEARN_MEMORY_BYTES)

export class Learning {
  readonly options: LearningOptions
  readonly pagesMax: number
  readonly keepMax: number
  private readonly statesMax: number
  /** Those that no session uses, the last one first. */
  private idle: State[] = []
  private putting: Promise<void> = Promise.resolve()

  constructor(options: LearningOptions) {
    this.options = options
    this.pagesMax = options.pagesMax ?? LEARN_PAGES_MAX
    this.statesMax = options.statesMax ?? STATES_MAX
    // in whole blocks of the spool, less one that is partly used
    const blocks = Math.floor((SET_SHARE * options.maxBytes) / BLOCK_LENGTH) - 1
    const pages = Math.max(1, blocks) * (BLOCK_LENGTH / PAGE_SIZE)
    this.keepMax = Math.min(pages, pagesWithin(SETS_SHARE * options.maxBytes, METADATA_LENGTH))
    const folder = resolve(options.store.folder)
    const room = rooms.get(folder)
    this.room = room ?? new FairShares(Math.max(WAITING_SHARE * options.maxBytes, WAITING_BYTES_MIN))
    if (room === undefined) rooms.set(folder, this.room)
  }

  private readonly room: FairShares

  /**
   * Digests that stand for the counts at hand, to be said in a hello like sets without pages: only a side that has
   * counted the same pages in the same order agrees to one.
   */
  get states(): string[] {
    return this.idle.map(state => this.digestOf(state))
  }

  /** Bytes on the disk of pages that wait to become a set, of all sessions that use this store. */
  get waitingBytes(): number {
    return this.room.used
  }

  /** Resolves when all sets so far are in the store, or failed. */
  async settled(): Promise<void> {
    await this.putting
  }

  /**
   * A session begins. Counts that both sides agreed on go on, others begin anew.
   * @param agreed all digests that the hellos agreed on
   * @param seed of the session: two u32, low word first
   * @param identity of who brings pages in: it shares the disk with the others
   */
  begin(
    agreed: readonly string[],
    seed: readonly [number, number],
    pool: LearnedPool,
    identity: string,
  ): SessionLearning {
    const owner = ownerOf(identity)
    const found = this.idle.findIndex(state => state.owner === owner && agreed.includes(this.digestOf(state)))
    void this.makeRoom(owner, 0).catch(() => {}) // said where a set is put
    if (found < 0) this.dropIdle(owner, this.statesMax - 1, 0)
    const state = found >= 0 ? this.idle.splice(found, 1)[0]! : this.fresh(seed, owner)
    return new SessionLearning(this, state, pool)
  }

  /** A session has ended. */
  give(state: State): void {
    const { learner } = state
    // migrations that broke off did so at different points on the two sides
    if (learner.broken || learner.running > 0 || learner.pages === 0) this.drop(state)
    else this.idle.unshift(state)
    this.dropIdle(state.owner, this.statesMax, 1)
  }

  /** Keeps at most so many states without a session: of `owner` the oldest beyond `ownMost` go before any other's. */
  private dropIdle(owner: string, most: number, ownMost: number): void {
    while (this.idle.length > most) {
      const own = this.idle.filter(state => state.owner === owner).length
      const at = own > ownMost ? this.idle.findLastIndex(state => state.owner === owner) : this.idle.length - 1
      this.drop(this.idle.splice(at, 1)[0]!)
    }
  }

  /** Puts a set while migrations go on, one after the other. */
  put(state: State, migration: number, set: LearnedSet): void {
    state.puts++
    this.putting = this.putting.then(() => this.write(state, migration, set)).catch(() => {})
  }

  private async write(state: State, migration: number, set: LearnedSet): Promise<void> {
    const { store, log, onSet } = this.options
    const { places, pageVms, vms, mode } = set
    const startMs = performance.now()
    try {
      const digests = Buffer.allocUnsafe(places.length * DIGEST_LENGTH)
      for await (const { from, pages } of spooled(state.spool, places)) {
        for (let at = 0; at < pages.length; at += PAGE_SIZE)
          writeDigest(pages.subarray(at, at + PAGE_SIZE), digests, (from + at / PAGE_SIZE) * DIGEST_LENGTH)
      }
      const metadata: SetMetadata = { learned: mode, minVms: mode === 'all' ? 1 : 2, vms }
      const records: SetRecords = {
        count: places.length,
        vms: place => pageVms[place]!,
        occurrences: place => pageVms[place]!, // how often it passed is not counted
        copyDigest: (place, into, at) =>
          into.set(digests.subarray(place * DIGEST_LENGTH, (place + 1) * DIGEST_LENGTH), at),
      }
      const digest = digestOfSet(metadata, records)
      const { lengthBytes } = setLayout(places.length, METADATA_LENGTH)
      const isThere = (await store.digests()).includes(digest)
      if (!isThere && !(await this.makeRoom(state.owner, lengthBytes))) {
        log.info('learned pages were not kept: other peers have their share of --learn-size', { migration })
        return
      }
      const result = await store.put(metadata, records, async function* () {
        for await (const { pages } of spooled(state.spool, places)) yield pages
      })
      log.info('learned', {
        migration,
        set: result.digest.slice(0, 12),
        pages: records.count,
        seconds: Math.round(performance.now() - startMs) / 1000,
      })
      onSet?.(result.digest, records.count)
      if (!isThere) await this.own(result.digest, state.owner)
    } catch (error) {
      // the other side may have put it: these counts no longer tell the truth
      state.learner.broken = true
      log.warn('learned pages were not kept', { migration, error: (error as Error).message })
    } finally {
      for (const place of places) state.spool.free(place)
      state.puts--
      if (state.closed && state.puts === 0) state.spool.close()
    }
  }

  /**
   * Removes learned sets that are too old, and so many that `bytes` more of this owner fit.
   * @returns whether they do
   */
  private async makeRoom(owner: string, bytes: number): Promise<boolean> {
    const { store, maxBytes, maxAgeMs } = this.options
    const owners = await readOwners(store.folder)
    let fits = true
    await pruneStore(store, {
      maxAgeMs,
      learnedOnly: true,
      choose: sets => {
        const owned = sets.map(
          ({ digest, fileBytes, modified }): OwnedSet => ({
            digest,
            bytes: fileBytes,
            modifiedMs: modified.getTime(),
            owner: owners.get(digest) ?? '',
          }),
        )
        const gone = setsThatGo(owned, owner, bytes, SETS_SHARE * maxBytes)
        fits = gone !== undefined
        return gone ?? []
      },
    })
    return fits
  }

  /** Writes down who brought a set in; the list forgets sets that are gone. */
  private async own(digest: string, owner: string): Promise<void> {
    const { store } = this.options
    const held = new Set(await store.digests())
    const owners = await readOwners(store.folder)
    for (const known of owners.keys()) if (!held.has(known)) owners.delete(known)
    owners.set(digest, owner)
    await writeOwners(store.folder, owners)
  }

  private fresh(seed: readonly [number, number], owner: string): State {
    const { mode, store, log } = this.options
    const own = memory.share(owner) // the spool closes it
    const ends = (error: Error): void => {
      log.warn('learning stops until the next session', { error: error.message })
    }
    const spool = new EncryptedSpool(store.folder, this.room.share(owner), ends, own)
    const counts = {
      take: (bytes: number): boolean => {
        const taken = own.take(bytes)
        if (!taken) ends(new Error('other sessions have all memory for learning'))
        return taken
      },
    }
    const random = randomBytes(8)
    const key = [random.readUInt32LE(0), random.readUInt32LE(4)] as const
    const learner = new Learner({ mode, pagesMax: this.pagesMax, keepMax: this.keepMax, spool, memory: counts, key })
    return { learner, spool, owner, seedLo: seed[0], seedHi: seed[1], puts: 0, closed: false }
  }

  private drop(state: State): void {
    state.closed = true
    if (state.puts === 0) state.spool.close()
  }

  private digestOf({ learner, seedLo, seedHi }: State): string {
    const words = [learner.mode, this.pagesMax, this.keepMax, seedLo, seedHi, ...learner.fold, learner.broken]
    return createHash('sha256')
      .update(`pageferry learning 1 ${words.join(' ')}`)
      .digest('hex')
  }
}

/** Learning in one session: what the codec calls as pages pass. */
export class SessionLearning implements PageObserver {
  private readonly learning: Learning
  private readonly state: State
  private readonly kernel: Kernel
  private readonly scratch: number
  private readonly hash: Uint32Array
  /** Pages of the batch at hand. */
  private readonly addresses = new Uint32Array(BATCH_PAGES_MAX)
  private readonly pages = new Float64Array(BATCH_PAGES_MAX)
  private count = 0
  private over = false

  constructor(learning: Learning, state: State, { kernel, workspaces }: LearnedPool) {
    this.learning = learning
    this.state = state
    this.kernel = kernel
    this.scratch = workspaces[0]!.observerAt
    this.hash = new Uint32Array(kernel.memory.buffer, this.scratch, 2)
  }

  get learner(): Learner {
    return this.state.learner
  }

  page(address: number, page: number): void {
    this.addresses[this.count] = address
    this.pages[this.count++] = page
  }

  batch(migration: number, position: number, address: number, length: number): void {
    const { count, kernel, scratch, hash, addresses, pages } = this
    const { learner, seedLo, seedHi } = this.state
    this.count = 0
    if (learner.broken || this.over) return
    if (position === 0) this.identify(migration, address, length)
    if (count === 0) return
    const slot = learner.slot(migration)
    const { bytes } = kernel
    for (let i = 0; i < count; i++) {
      const at = addresses[i]!
      kernel.checksum(at, PAGE_SIZE, seedLo, seedHi, scratch)
      learner.page(slot, hash[0]!, hash[1]!, pages[i]!, bytes, at)
    }
  }

  /** All flows of the migration have ended: called in the order of END on both sides, after all its batches. */
  migrationEnded(migration: number): void {
    const { learner } = this.state
    if (learner.broken || this.over) return
    const set = learner.ended(migration)
    if (set) this.learning.put(this.state, migration, set)
  }

  /** The session is over. */
  end(): void {
    if (this.over) return
    this.over = true
    this.learning.give(this.state)
  }

  private identify(migration: number, address: number, length: number): void {
    if (length < MULTIFD.HELLO_ID_AT) return
    const hello = Buffer.from(this.kernel.bytes.buffer, address, MULTIFD.HELLO_ID_AT)
    if (hello.readUInt32BE(0) !== MULTIFD.MAGIC) return
    const uuid = hello.toString('hex', MULTIFD.HELLO_UUID_AT)
    const { learner } = this.state
    learner.identify(learner.slot(migration), uuid)
  }
}

/** Pages of the spool in the order of `places`. A piece is valid until the next. */
async function* spooled(
  spool: EncryptedSpool,
  places: Uint32Array,
): AsyncGenerator<{ readonly from: number; readonly pages: Buffer }> {
  const memory = Buffer.allocUnsafe(Math.min(READ_PAGES, places.length) * PAGE_SIZE)
  for (let from = 0; from < places.length; from += READ_PAGES) {
    const to = Math.min(from + READ_PAGES, places.length)
    await spool.read(places, from, to, memory)
    yield { from, pages: memory.subarray(0, (to - from) * PAGE_SIZE) }
  }
}
