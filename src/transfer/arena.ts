/**
 * One memory that many sessions share: template sets, each loaded once, what finds their pages, and a block of its own for
 * each session. A session's references reach the sets that it agreed on and its own ring, and nothing else: the kernel
 * checks slots against these before it turns them into addresses. What a session gives back is zeroed before another gets it.
 */
import { assert } from '../errors.ts'
import {
  createMemory,
  type Kernel,
  type KeyLayout,
  kernelOver,
  type LayoutRequest,
  layoutBlock,
  layoutKeys,
  layoutTemplates,
  MEMORY_PAGES_MAX,
  PAGE_BYTES,
  type SessionLayout,
  SLACK_BYTES,
  type TemplateLayout,
  WASM_PAGE_BYTES,
  writeConfig,
  writeKeys,
} from '../kernel/kernel.ts'
import type { OneAtATime } from '../store/one-at-a-time.ts'
import type { SetFile } from '../store/set-file.ts'
import { type EventLoop, nextTurn } from './event-loop.ts'
import { Space } from './space.ts'
import { SparePages } from './warmth.ts'

/** Template pages that are put into a table in one turn of the event loop: about 1 ms. */
const INDEX_STEP = 1024
/** How long a turn may take of others for zeroing: what that is in bytes, memory decides, which may be ten times as slow. */
const CLEAN_TURN_MS = 0.5
/** Bytes that are zeroed, or found to be zero, before it is looked whether the turn is over. */
const CLEAN_STEP_BYTES = 256 << 10

/** A template set in memory. */
interface LoadedSet {
  readonly digest: string
  readonly at: number
  readonly pages: number
  /** Sessions that have it, or wait for it. */
  users: number
  /** When the last of them ended, in ms. */
  unusedMs: number
  /** Settles when all pages are there and verified. */
  loaded: Promise<void>
  isThere: boolean
  failed: boolean
}

/** What finds the pages of one list of sets. */
interface TemplateIndex {
  readonly key: string
  readonly sets: readonly LoadedSet[]
  readonly at: number
  readonly bytes: number
  readonly layout: TemplateLayout
  users: number
  unusedMs: number
  ready: Promise<void> | undefined
}

/** What a session takes of an arena. */
export interface Lease {
  readonly layout: SessionLayout
  readonly index: TemplateIndex
  /** Nothing is kept of the index that this session needed alone. */
  readonly forgetsTables: boolean
}

/** A set that a session needs: the file is opened only where no arena has it. */
export interface WantedSet {
  readonly digest: string
  readonly pages: number
}

export class Arena {
  readonly memory: WebAssembly.Memory
  readonly sparePages: SparePages
  /** Sessions that live. */
  sessions = 0
  /** When the last of them ended, in ms. */
  idleMs = 0
  private readonly keys: KeyLayout
  private readonly space: Space
  private readonly sets = new Map<string, LoadedSet>()
  private readonly indices = new Map<string, TemplateIndex>()
  private readonly pagesMax: number
  private readonly loop: EventLoop
  private readonly opening: OneAtATime

  /**
   * @param pageKey 256 random bytes
   * @param opening in whose turns sets are loaded
   * @throws LIMIT_EXCEEDED where no addresses can be had for `leastBytes`
   */
  constructor(pageKey: Uint8Array, leastBytes: number, loop: EventLoop, opening: OneAtATime) {
    this.loop = loop
    this.opening = opening
    const { keys, end } = layoutKeys()
    this.keys = keys
    let pagesMax = MEMORY_PAGES_MAX
    let memory: WebAssembly.Memory | undefined
    while (memory === undefined) {
      try {
        memory = createMemory(1, pagesMax)
      } catch (error) {
        // a host that gives out addresses sparingly: what is needed, and no more sessions in the same
        const less = Math.max(Math.ceil((end + leastBytes + SLACK_BYTES) / WASM_PAGE_BYTES), pagesMax >> 1)
        if (less >= pagesMax) throw error
        pagesMax = less
      }
    }
    this.memory = memory
    this.pagesMax = pagesMax
    this.sparePages = new SparePages(pagesMax * WASM_PAGE_BYTES)
    this.space = new Space(end, pagesMax * WASM_PAGE_BYTES - SLACK_BYTES)
    writeKeys(memory.buffer, keys, pageKey)
  }

  /** Pages of a set that is here; undefined: it is not. */
  pagesOf(digest: string): number | undefined {
    return this.sets.get(digest)?.pages
  }

  /** Whether all pages of a set are here. */
  hasLoaded(digest: string): boolean {
    return this.sets.get(digest)?.isThere === true
  }

  /** Sets that are here, used or not. */
  get setCount(): number {
    return this.sets.size
  }

  /** Lists of sets that sessions have agreed on. */
  get listCount(): number {
    return this.indices.size
  }

  /** Bytes of the sets that are here. */
  get setBytes(): number {
    let bytes = 0
    for (const { pages } of this.sets.values()) bytes += pages * PAGE_BYTES
    return bytes
  }

  /** Whether there is anything that no session has: sets, or all of it. */
  get hasUnused(): boolean {
    return this.sessions === 0 || [...this.sets.values(), ...this.indices.values()].some(({ users }) => users === 0)
  }

  /** Bytes that the memory has grown to: more is never resident. */
  get bytes(): number {
    return this.memory.buffer.byteLength
  }

  /**
   * Takes room for a session, all of it or none.
   * @param open the file of a set that is not here; it is closed here
   * @returns undefined where there is no room
   */
  lease(
    request: Omit<LayoutRequest, 'templatePages'> & { readonly forgetsTables?: boolean },
    wanted: readonly WantedSet[],
    open: (digest: string) => SetFile,
  ): Lease | undefined {
    const taken: { at: number; length: number }[] = []
    const take = (length: number): number | undefined => {
      if (length === 0) return 0
      const at = this.space.take(length)
      if (at !== undefined) taken.push({ at, length })
      return at
    }
    const giveUp = (): undefined => {
      for (const { at, length } of taken) this.space.give(at, length) // nobody has touched it
    }
    const fresh: LoadedSet[] = []
    const sets: LoadedSet[] = []
    let templatePages = 0
    for (const { digest, pages } of wanted) {
      let set = this.sets.get(digest)
      if (!set) {
        const at = take(pages * PAGE_BYTES)
        if (at === undefined) return giveUp()
        set = { digest, at, pages, users: 0, unusedMs: 0, loaded: Promise.resolve(), isThere: false, failed: false }
        fresh.push(set)
      }
      sets.push(set)
      templatePages += pages
    }
    const key = [request.role, ...wanted.map(({ digest }) => digest)].join(' ')
    let index = this.indices.get(key)
    if (!index) {
      const templatesAt = inOnePiece(sets)
      const bytes = wholePages(layoutTemplates(request.role, templatePages, templatesAt, 0).end)
      const at = take(bytes)
      if (at === undefined) return giveUp()
      const { templates } = layoutTemplates(request.role, templatePages, templatesAt, at)
      index = { key, sets, at, bytes, layout: templates, users: 0, unusedMs: 0, ready: undefined }
    }
    const { blockBytes } = layoutBlock({ ...request, templatePages }, 0)
    const block = take(blockBytes)
    if (block === undefined || !this.grow()) return giveUp()

    this.indices.set(key, index)
    index.users++
    for (const set of fresh) {
      this.sets.set(set.digest, set)
      const file = open(set.digest)
      set.loaded = this.opening.run(() => this.load(set, file))
      set.loaded.catch(() => {}) // whoever waits for it hears
    }
    for (const set of sets) set.users++
    this.sessions++
    const layout = { ...this.keys, ...index.layout, ...layoutBlock({ ...request, templatePages }, block) }
    return { layout, index, forgetsTables: request.forgetsTables === true }
  }

  /** Makes the memory as large as what is taken of it. False where the system gives no more. */
  private grow(): boolean {
    const pages = Math.ceil((this.space.highest + SLACK_BYTES) / WASM_PAGE_BYTES)
    const missing = pages - this.memory.buffer.byteLength / WASM_PAGE_BYTES
    if (missing <= 0) return true
    assert(pages <= this.pagesMax, 'an arena is larger than its memory may be')
    try {
      this.memory.grow(missing)
      return true
    } catch {
      return false
    }
  }

  private async load(set: LoadedSet, file: SetFile): Promise<void> {
    try {
      await file.load(new Uint8Array(this.memory.buffer), set.at)
      set.isThere = true
    } catch (error) {
      // whoever comes next reads it anew, into another place: those that wait for it here give theirs back
      set.failed = true
      this.sets.delete(set.digest)
      for (const index of this.indices.values()) if (index.sets.includes(set)) this.indices.delete(index.key)
      throw error
    } finally {
      await file.close()
    }
  }

  /**
   * The kernel of a session, once its sets are there.
   * @throws TEMPLATE_*, IO: the lease is to be given back then, too
   */
  async kernel(lease: Lease, implementation?: 'simd' | 'twin'): Promise<Kernel> {
    const { index, layout } = lease
    const results = await Promise.allSettled(index.sets.map(set => set.loaded))
    const failed = results.find(result => result.status === 'rejected')
    if (failed) throw failed.reason
    writeConfig(this.memory.buffer, layout)
    const kernel = kernelOver(this.memory, layout, implementation ? { implementation } : {})
    index.ready ??= makeIndex(index, kernel, this.loop)
    await index.ready
    return kernel
  }

  /** A session is over, and nothing writes to its block any more. Resolves when the block is clean, and another's to take. */
  async giveBack(lease: Lease, kernel: Kernel | undefined, nowMs: number): Promise<void> {
    const { index, layout, forgetsTables } = lease
    const { block, blockBytes } = layout
    this.sessions--
    if (this.sessions === 0) this.idleMs = nowMs
    index.users--
    index.unusedMs = nowMs
    for (const set of index.sets) {
      set.users--
      set.unusedMs = nowMs
    }
    const cleaned: Promise<void>[] = []
    const isFailed = index.sets.some(set => set.failed)
    // a map is made in no time, and whoever names sets in ever other orders must not fill the memory with maps
    if (index.users === 0 && (isFailed || forgetsTables || index.layout.templateEntries === 0)) {
      this.indices.delete(index.key)
      cleaned.push(this.free(index.at, index.bytes))
      for (const set of index.sets) if (set.failed && set.users === 0) cleaned.push(this.freeSet(set))
    }
    // of the ring only what was written: looking at the rest would cost time for nothing
    const writtenTo = kernel ? layout.ring + kernel.ringUsed * PAGE_BYTES : layout.io
    cleaned.push(this.free(block, blockBytes, writtenTo - block))
    await Promise.all(cleaned)
  }

  /** Whether it has any of such sets, loaded or not. */
  hasAny(isSuch: (digest: string) => boolean): boolean {
    return [...this.sets.keys()].some(isSuch)
  }

  /** Frees what no session has had since `untilMs`, but sets that are kept. @returns whether there was anything */
  async forget(untilMs: number, isKept: (digest: string) => boolean): Promise<boolean> {
    const freed: Promise<void>[] = []
    const isOld = (entry: { users: number; unusedMs: number }) => entry.users === 0 && entry.unusedMs <= untilMs
    for (const index of this.indices.values()) {
      if (!isOld(index)) continue
      this.indices.delete(index.key)
      freed.push(this.free(index.at, index.bytes))
    }
    for (const set of this.sets.values()) {
      if (!isOld(set) || isKept(set.digest) || [...this.indices.values()].some(index => index.sets.includes(set)))
        continue
      this.sets.delete(set.digest)
      freed.push(this.freeSet(set))
    }
    await Promise.all(freed)
    return freed.length > 0
  }

  private async freeSet(set: LoadedSet): Promise<void> {
    await set.loaded.catch(() => {}) // until nothing is read into it any more
    await this.free(set.at, set.pages * PAGE_BYTES)
  }

  /** Zeroes what is not zero of the first `touched` bytes, a little at a time, then lets others take all of it. */
  private async free(at: number, length: number, touched = length): Promise<void> {
    if (length === 0) return
    const bytes = new Uint8Array(this.memory.buffer, at, length)
    let turnMs = this.loop.nowMs()
    for (let from = 0; from < touched; from += CLEAN_STEP_BYTES) {
      const to = Math.min(touched, from + CLEAN_STEP_BYTES)
      for (let page = from; page < to; page += PAGE_BYTES) {
        const end = Math.min(length, page + PAGE_BYTES)
        // pages that nobody wrote to are left alone, or they would take memory now
        if (!isZero(bytes, page, end)) bytes.fill(0, page, end)
      }
      if (to < touched && this.loop.nowMs() - turnMs < CLEAN_TURN_MS) continue
      await nextTurn(this.loop)
      turnMs = this.loop.nowMs()
    }
    this.space.give(at, length)
  }
}

const ZEROS = Buffer.alloc(PAGE_BYTES)

function isZero(bytes: Uint8Array, from: number, to: number): boolean {
  return ZEROS.compare(bytes, from, to, 0, to - from) === 0
}

function wholePages(bytes: number): number {
  return Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES
}

/** Where the first set begins, if each begins where the one before ends; else 0. */
function inOnePiece(sets: readonly LoadedSet[]): number {
  let next = sets[0]?.at ?? 0
  for (const { at, pages } of sets) {
    if (at !== next) return 0
    next = at + pages * PAGE_BYTES
  }
  return sets[0]?.at ?? 0
}

/** Fills map and table, a little at a time. */
async function makeIndex({ layout, sets }: TemplateIndex, kernel: Kernel, loop: EventLoop): Promise<void> {
  const { templateMap, templateEntries, templatePages } = layout
  if (templateMap !== 0) {
    const map = new Uint32Array(kernel.memory.buffer, templateMap, templatePages)
    let slot = 0
    for (const { at, pages } of sets) for (let i = 0; i < pages; i++) map[slot++] = at + i * PAGE_BYTES
  }
  if (templateEntries === 0) return
  for (let from = 0; from < templatePages; from += INDEX_STEP) {
    kernel.indexTemplates(from, Math.min(templatePages, from + INDEX_STEP))
    await nextTurn(loop)
  }
}
