/** Which template sets a side brings into a session: the sound ones of its store that are in force. */
import { basename } from 'node:path'
import { isProxyError, ProxyError } from '../errors.ts'
import { HELLO_SETS_MAX, SETS_WAIT_MS } from '../limits.ts'
import { HostChannels, type InForce, isUsable } from '../remote/host-channels.ts'
import type { SetSigners } from '../remote/set-signature.ts'
import { OneAtATime } from '../store/one-at-a-time.ts'
import { floorsOf, type SetFloors } from '../store/set-floors.ts'
import type { StoredSet, TemplateStore } from '../store/template-store.ts'
import { digestOfFileName } from '../template/wire.ts'
import { SetsLate } from '../transfer/sets-late.ts'
import type { SiteLog } from './events.ts'
import { SetNotices } from './set-notices.ts'

/** What to bring into a session. */
export interface OfferedSets extends Pick<SetFloors, 'hot' | 'cold'> {
  /** For `changedSince`. */
  readonly version: string
}

/** A set that a session waited for in vain. */
interface LateSet {
  /** It has not been read yet: it has its place, and is not offered. */
  isComing: boolean
  /** It is not wanted any more. */
  readonly letGo: () => void
}

/** In place of a file's state: whatever it is when it is looked at next. */
const AS_IT_IS = 'as it is'

/** How often an idle session is looked at, whether other sets are worth a new one. */
export const RENEW_MS = 5000

/** What a listing has read of sets is kept for the session that opens them. */
const TABLES_KEPT_MS = 60_000

/** Who looks at a store, among all proxies of the process that use it. */
const lookers = new WeakMap<TemplateStore, OneAtATime>()

function lookersAt(store: TemplateStore): OneAtATime {
  const known = lookers.get(store) ?? new OneAtATime()
  lookers.set(store, known)
  return known
}

export class SessionSets {
  private readonly store: TemplateStore | undefined
  /** Tells of them. */
  private readonly notices: SetNotices
  private readonly signers: SetSigners | undefined
  /** What channels say of the store's sets. */
  private readonly channels: HostChannels | undefined
  private looking = false
  private listedMs = 0
  /** Its disk does not answer who wants to offer sets. */
  private stuck = false
  /** Sets that were offered, and sets that must not be: digest to what tells one file from the next of that name. */
  private readonly states = new Map<string, { readonly state: string; readonly path: string }>()
  private readonly excluded = new Map<string, string>()
  /** The store's fingerprint; '' before sets were offered. */
  private current = ''
  /** The version of what was offered last. */
  private offered = ''
  /** How often something has been read that came too late for a session: the next one would be better than those before. */
  private arrivals = 0
  private readonly late = new Map<string, LateSet>()
  /** Template pages that fit into a session, whatever else it needs. */
  private pagesMax: number
  /** Template pages that were offered last. */
  private offeredPages = 0

  /** @param signers whose signatures sets must have; undefined: it is not asked for */
  constructor(
    store: TemplateStore | undefined,
    log: SiteLog,
    pagesMax = Number.POSITIVE_INFINITY,
    signers?: SetSigners | undefined,
  ) {
    this.store = store
    this.signers = signers
    this.channels = store && new HostChannels(store.folder)
    this.pagesMax = pagesMax
    this.notices = new SetNotices(log)
    if (store) setInterval(() => void this.look(), 2000).unref()
  }

  /** Whether there are other sets than were offered last. */
  get changed(): boolean {
    return this.changedSince(this.offered)
  }

  /**
   * Whether there are other sets than were offered then: the store holds others, or became readable, which is looked at
   * every two seconds, or some have been read that came too late.
   */
  changedSince(version: string): boolean {
    return this.store !== undefined && this.current !== '' && version !== this.version
  }

  private get version(): string {
    return `${this.arrivals} ${this.current}`
  }

  private get none(): OfferedSets {
    return { hot: [], cold: [], version: this.version }
  }

  private offers(sets: OfferedSets): OfferedSets {
    this.offered = sets.version
    return sets
  }

  /**
   * Digests of the sets to offer, newest first. Their pages are verified when they are loaded or read: see `exclude`. A set
   * whose head is damaged is told once and left out. Of a store that is not there or cannot be read there are none, which is
   * told once: migrations go on without. Of more than fit into memory the newest are held there, and the others stay on the
   * disk; so many that even their proofs would take too much are left out.
   * Of a store that does not answer in SETS_WAIT_MS there are none until it has.
   * @param taken places among the sets of a hello that something else has: what learning has counted
   */
  async offer(taken = 0): Promise<OfferedSets> {
    if (!this.store || this.stuck) return this.offers(this.none)
    const { store } = this
    const looking = lookersAt(store).run(() => this.lookUp(store, taken))
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<undefined>(done => {
      timer = setTimeout(done, SETS_WAIT_MS, undefined)
    })
    const offered = await Promise.race([looking, late]).finally(() => clearTimeout(timer))
    if (offered) return this.offers(offered)
    this.stuck = true
    const what = `the disk has not answered in ${SETS_WAIT_MS / 1000} s`
    this.notices.store(new ProxyError('IO', what, undefined, 'look at the disk of the store'))
    const answered = (): void => {
      this.stuck = false
      this.arrivals++
    }
    void looking.then(answered, answered) // an error comes again
    return this.offers(this.none)
  }

  private async lookUp(store: TemplateStore, taken: number): Promise<OfferedSets> {
    let sets: Awaited<ReturnType<TemplateStore['list']>>
    let inForce: InForce
    try {
      inForce = await this.channels!.inForce(Date.now())
      const fingerprint = await this.fingerprint(inForce)
      sets = await this.trusted((await store.list(true)).filter(({ digest }) => isUsable(inForce, digest)))
      this.current = fingerprint
      this.notices.store(undefined)
    } catch (error) {
      if (!isProxyError(error, 'IO')) throw error
      this.current = unreadable(error)
      this.notices.store(error)
      return this.none
    }
    this.notices.inForce(inForce)
    const sound: StoredSet[] = []
    for (const set of sets) {
      const { digest, path, problem, modified, changed, fileBytes } = set
      const state = `${digest} ${modified.getTime()} ${changed.getTime()} ${fileBytes}`
      if (this.excluded.get(digest) === AS_IT_IS) this.excluded.set(digest, state)
      if (this.excluded.get(digest) === state) continue
      if (problem) this.tell(digest, state, path, problem)
      else {
        this.states.set(digest, { state, path })
        sound.push(set)
      }
    }
    const { hot, hotPages, cold, others } = floorsOf(sound, this.pagesMax, HELLO_SETS_MAX - taken, digest =>
      inForce.before.has(digest),
    )
    this.offeredPages = hotPages
    store.dropTables(cold)
    this.listedMs = performance.now()
    this.notices.stayOnDisk(cold)
    this.notices.leftOut(others)
    this.keepLate(new Set([...hot, ...cold]))
    return this.stillOf({ hot, cold, version: this.version })
  }

  /** Of late sets those that would be offered are kept until a session has them. */
  private keepLate(wanted: ReadonlySet<string>): void {
    for (const [digest, { letGo }] of this.late) {
      if (wanted.has(digest)) continue
      this.late.delete(digest)
      letGo()
    }
  }

  /** Those that are signed as they must be; each of the others is told once. */
  private async trusted(sets: readonly StoredSet[]): Promise<StoredSet[]> {
    if (!this.signers) return [...sets]
    const refused = await this.signers.refusals(sets.map(({ digest }) => digest))
    this.notices.untrusted(sets, refused)
    return sets.filter(({ digest }) => !refused.has(digest))
  }

  /** What of this was not excluded since it was offered, and is not late. */
  stillOf({ hot, cold, version }: OfferedSets): OfferedSets {
    const isStill = (digest: string): boolean => {
      if (this.late.get(digest)?.isComing) return false
      const excluded = this.excluded.get(digest)
      return excluded === undefined || (excluded !== AS_IT_IS && excluded !== this.states.get(digest)?.state)
    }
    return { hot: hot.filter(isStill), cold: cold.filter(isStill), version }
  }

  /** What was offered last did not fit beside what other sessions have: half of it next time. */
  takeFewer(): void {
    this.pagesMax = Math.floor(Math.min(this.pagesMax, this.offeredPages) / 2)
  }

  /**
   * A set could not be loaded: it is told, and not offered again as it is.
   * @param inUse it was sound when it was offered, and is not any more: its file may have changed since
   * @returns false where the error is not about a set: nothing was done
   */
  exclude(error: unknown, inUse = false): boolean {
    if (error instanceof SetsLate) return this.excludeLate(error)
    const aboutSet = isProxyError(error) && (error.code.startsWith('TEMPLATE_') || error.code === 'IO')
    if (!aboutSet || !error.where) return false
    const digest = digestOfFileName(basename(error.where.stream))
    const known = digest === undefined ? undefined : this.states.get(digest)
    if (digest === undefined || known === undefined) return false
    const told = inUse && this.excluded.get(digest) === AS_IT_IS
    if (!told) this.tell(digest, inUse ? AS_IT_IS : known.state, known.path, error)
    return true
  }

  /**
   * They are offered again when they have been read, and kept until then and from then on: the other side may take as long
   * for its own. @returns false where none of them was offered
   */
  private excludeLate(late: SetsLate): boolean {
    const { sets, settled, letGo } = late
    const coming = new Map<string, LateSet>()
    for (const digest of sets) {
      const known = this.states.get(digest)
      if (known === undefined) {
        letGo(digest)
        continue
      }
      coming.set(digest, { isComing: true, letGo: () => letGo(digest) })
      this.notices.late(digest, known.path, late)
    }
    for (const [digest, set] of coming) {
      this.late.get(digest)?.letGo() // this one keeps it
      this.late.set(digest, set)
    }
    void settled.then(error => {
      for (const set of coming.values()) set.isComing = false
      // one that is damaged behind what has been read must not be read again and again
      if (error === undefined || this.exclude(error)) this.arrivals++
    })
    return coming.size > 0
  }

  private tell(digest: string, state: string, path: string, error: ProxyError): void {
    this.excluded.set(digest, state)
    this.notices.damaged(path, error)
  }

  private async fingerprint(inForce: InForce): Promise<string> {
    const files = await this.store!.fingerprint(digest => isUsable(inForce, digest))
    const signatures = this.signers ? await this.signers.fingerprint(await this.store!.digests()) : ''
    return `${files} ${[...inForce.before].join()} ${signatures}`
  }

  private async look(): Promise<void> {
    // whoever opens them has done so by now, or another proxy of this process had them open
    if (performance.now() - this.listedMs > TABLES_KEPT_MS) this.store!.dropTables()
    // of a disk that hangs each look would keep one of libuv's threads, until zstd finds none
    if (this.looking) return
    this.looking = true
    try {
      this.current = await lookersAt(this.store!).run(async () =>
        this.fingerprint(await this.channels!.inForce(Date.now())),
      )
    } catch (error) {
      this.current = unreadable(error as Error)
    } finally {
      this.looking = false
    }
  }
}

/** In place of a fingerprint: it changes when the store can be read. */
function unreadable({ message }: Error): string {
  return `unreadable: ${message}`
}
