/**
 * The cold sets of a process: each opened once, whoever uses it, and what finds the pages of a list of them made once. What no
 * session uses stays a while, because the next one comes soon.
 */
import { randomInt } from 'node:crypto'
import { ProxyError } from '../../errors.ts'
import { COLD_PAGES_MAX } from '../../limits.ts'
import type { ColdSet } from '../../store/cold-set.ts'
import { OneAtATime } from '../../store/one-at-a-time.ts'
import type { TemplateStore } from '../../store/template-store.ts'
import { EVENT_LOOP, type EventLoop } from '../event-loop.ts'
import { ColdIndex } from './cold-index.ts'
import { ColdList } from './cold-list.ts'
import { DigestThreads } from './digest-threads.ts'
import { DiskReads } from './disk-reads.ts'
import { KeptBlocks, type KeptBlocksOptions } from './kept-blocks.ts'
import { NamedPages } from './named-pages.ts'

/** What a session has of them. */
export interface ColdLease {
  readonly list: ColdList
  /** Blocks of disks that the session keeps; undefined: none. */
  readonly kept: KeptBlocks | undefined
  /** Encoders only: finds what it has been filled with so far, and is filled by whoever uses it. */
  readonly index: ColdIndex | undefined
  /** Pages that this session has named to its peer. */
  readonly named: NamedPages
  /** Of all sessions. */
  readonly reads: DiskReads
  readonly digesters: DigestThreads
  /** A set turned out to be damaged: who opens it next reads it anew. */
  forget(digest: string): void
  /** The session is over: what nobody else uses is closed by `ColdSets.forget`. */
  release(): void
}

interface Held<T> {
  users: number
  /** When the last of them ended, in ms. */
  unusedMs: number
  readonly value: Promise<T>
  isThere: boolean
}

export class ColdSets {
  readonly reads: DiskReads
  readonly digesters = new DigestThreads()
  private readonly loop: EventLoop
  private readonly opening: OneAtATime
  private readonly sets = new Map<string, Held<ColdSet>>()
  private readonly indices = new Map<string, Held<ColdIndex>>()

  /** @param opening in whose turns sets are opened */
  constructor(loop: EventLoop = EVENT_LOOP, opening = new OneAtATime()) {
    this.loop = loop
    this.opening = opening
    this.reads = new DiskReads(loop)
  }

  /** Sets that are open, used or not. */
  get setCount(): number {
    return this.sets.size
  }

  /** Whether a set has been opened. */
  hasOpen(digest: string): boolean {
    return this.sets.get(digest)?.isThere === true
  }

  /**
   * Opens those that are not open, in this order.
   * @param indexed whether pages are to be found by their content
   * @param keeps blocks of disks that the session keeps, too
   * @throws TEMPLATE_*, IO, LIMIT_EXCEEDED (more pages than a session may have)
   */
  async open(
    digests: readonly string[],
    store: TemplateStore | undefined,
    indexed: boolean,
    keeps?: Pick<KeptBlocksOptions, 'blocks' | 'space' | 'onFailure'>,
  ): Promise<ColdLease> {
    const taken: Held<unknown>[] = []
    const take = <T>(all: Map<string, Held<T>>, key: string, make: () => Promise<T>): Promise<T> => {
      let held = all.get(key)
      if (held === undefined) {
        const made: Held<T> = { users: 0, unusedMs: 0, value: make(), isThere: false }
        all.set(key, made)
        made.value.then(
          () => {
            made.isThere = true
          },
          () => all.delete(key), // whoever comes next tries it anew
        )
        held = made
      }
      held.users++
      taken.push(held)
      return held.value
    }
    let kept: KeptBlocks | undefined
    const release = (): void => {
      const nowMs = this.loop.nowMs()
      kept?.close()
      for (const held of taken.splice(0)) {
        held.users--
        held.unusedMs = nowMs
      }
    }
    try {
      const opening = digests.map(digest =>
        take(this.sets, digest, () => this.opening.run(() => store!.openCold(digest))),
      )
      const results = await Promise.allSettled(opening)
      const failed = results.find(result => result.status === 'rejected')
      if (failed) throw failed.reason
      const sets = new ColdList(await Promise.all(opening))
      if (sets.pages > COLD_PAGES_MAX) throw tooMany(sets.pages)
      const index = indexed
        ? await take(this.indices, digests.join(' '), async () => new ColdIndex(sets, randomInt(2 ** 32)))
        : undefined
      if (index && digests.length > 0) this.digesters.start()
      if (keeps) kept = new KeptBlocks({ ...keeps, indexed, loop: this.loop })
      const list = new ColdList(sets.sets, kept)
      const { reads, digesters } = this
      const forget = (digest: string): void => this.forgetSet(digest)
      return { list, kept, index, named: new NamedPages(), reads, digesters, forget, release }
    } catch (error) {
      release()
      throw error
    }
  }

  /** A set turned out to be damaged: who comes next opens it anew. Sessions that have it keep it. */
  forgetSet(digest: string): void {
    const held = this.sets.get(digest)
    if (held === undefined) return
    this.sets.delete(digest)
    this.retired.add(held)
    for (const key of [...this.indices.keys()]) if (key.includes(digest)) this.indices.delete(key)
  }
  private readonly retired = new Set<Held<ColdSet>>()

  /** Closes what no session has had since `untilMs`, but sets that are kept. @returns whether anything is left that nobody uses */
  async forget(untilMs: number, isKept: (digest: string) => boolean = () => false): Promise<boolean> {
    const isOld = (held: Held<unknown>): boolean => held.users === 0 && held.unusedMs <= untilMs
    for (const [key, held] of this.indices) if (isOld(held)) this.indices.delete(key)
    const closing: Promise<void>[] = []
    const close = (held: Held<ColdSet>): void => {
      closing.push(
        held.value.then(
          set => set.close(),
          () => {},
        ),
      )
    }
    for (const [digest, held] of this.sets) {
      if (!isOld(held) || isKept(digest)) continue
      this.sets.delete(digest)
      close(held)
    }
    for (const held of this.retired) {
      if (held.users > 0) continue
      this.retired.delete(held)
      close(held)
    }
    await Promise.all(closing)
    if (this.sets.size + this.retired.size === 0) this.reads.threads.rest()
    if (this.indices.size === 0) this.digesters.rest()
    return [...this.sets.values(), ...this.indices.values(), ...this.retired].some(({ users }) => users === 0)
  }
}

function tooMany(pages: number): ProxyError {
  const gib = Math.ceil(pages / 2 ** 18)
  const what = `${gib} GiB of template sets on the disk`
  const action = `a session uses ${COLD_PAGES_MAX / 2 ** 18} at most: remove sets (pageferry store prune)`
  return new ProxyError('LIMIT_EXCEEDED', what, undefined, action)
}
