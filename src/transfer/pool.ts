/**
 * The memory of one session direction: template sets loaded from a store, the ring, places, tables, and room for what is
 * under way. Who owns what in it: docs/adr/0003-memory.md.
 */
import { randomBytes } from 'node:crypto'
import { WORKSPACE_BYTES, Workspace } from '../codec/workspace.ts'
import { type Kernel, layoutMemory, loadKernel, longEntriesFor, PAGE_BYTES } from '../kernel/kernel.ts'
import type { SetFile } from '../store/set-file.ts'
import type { TemplateStore } from '../store/template-store.ts'

/** What both sides of a session agree on. */
export interface PoolTerms {
  /** Digests of the sets, in the order of their slots. */
  readonly sets: readonly string[]
  readonly ringPages: number
  /** Entries of the place table: a power of two, or 0. */
  readonly places: number
}

export interface PoolRequest extends PoolTerms {
  readonly role: 'encoder' | 'decoder'
  /** Where the sets are; undefined where `sets` is empty. */
  readonly store: TemplateStore | undefined
  readonly workspaces: number
  /** Areas of the same size besides the workspaces: socket slots or outputs. */
  readonly slots: number
  readonly slotBytes: number
  /** Whether long matches may be asked for (encoder): costs a table of 4 bytes for each 64 bytes of the pool. */
  readonly longMatch: boolean
}

/** Bytes of a ring that are committed when a session opens, rather than one page after the other under load. */
const COMMIT_MAX = 256 << 20

/** A kernel with its areas. */
export interface Pool {
  readonly kernel: Kernel
  readonly workspaces: readonly Workspace[]
  /** Address of each slot. */
  readonly slots: readonly number[]
  readonly slotBytes: number
}

/**
 * Reserves the memory and loads the sets into it, each page verified against its digest.
 * @throws TEMPLATE_*, LIMIT_EXCEEDED (more than 4 GiB), IO
 */
export async function openPool(request: PoolRequest): Promise<Pool> {
  const files: SetFile[] = []
  try {
    let templatePages = 0
    for (const digest of request.sets) {
      const file = await request.store!.open(digest)
      files.push(file)
      templatePages += file.head.pageCount
    }
    const pages = templatePages + request.ringPages
    const longEntries = request.role === 'encoder' && request.longMatch ? longEntriesFor(pages) : 0
    const layout = layoutMemory({
      role: request.role,
      templatePages,
      ringPages: request.ringPages,
      places: request.places,
      ioBytes: request.workspaces * WORKSPACE_BYTES + request.slots * request.slotBytes,
      longEntries,
    })
    const kernel = loadKernel(layout, request.role === 'encoder' ? { key: randomBytes(256) } : {})
    let at = layout.pool
    for (const file of files) {
      await file.load(kernel.bytes, at)
      at += file.head.pageCount * PAGE_BYTES
    }
    if (request.role === 'encoder' && templatePages > 0) kernel.indexTemplates(0, templatePages)
    kernel.commit(at, Math.min(COMMIT_MAX, request.ringPages * PAGE_BYTES))
    let next = layout.io
    const workspaces: Workspace[] = []
    for (let i = 0; i < request.workspaces; i++, next += WORKSPACE_BYTES)
      workspaces.push(new Workspace(kernel.bytes, next))
    const slots: number[] = []
    for (let i = 0; i < request.slots; i++, next += request.slotBytes) slots.push(next)
    return { kernel, workspaces, slots, slotBytes: request.slotBytes }
  } finally {
    for (const file of files) await file.close()
  }
}

/**
 * Keeps the pool of the last session, so that the next one with the same terms neither loads its sets again nor waits
 * until the memory of the one before is collected.
 */
export class PoolKeeper {
  private kept: { readonly terms: string; readonly pool: Pool } | undefined

  /** A pool with an empty ring. @throws as openPool */
  async take(request: PoolRequest): Promise<Pool> {
    const { store: _, ...plain } = request
    const terms = JSON.stringify(plain)
    const { kept } = this
    this.kept = undefined
    if (kept?.terms === terms) {
      kept.pool.kernel.reset()
      return kept.pool
    }
    const pool = await openPool(request)
    this.termsOf.set(pool, terms)
    return pool
  }

  private readonly termsOf = new WeakMap<Pool, string>()

  /** A session is over, and nothing writes to its memory any more. */
  give(pool: Pool): void {
    const terms = this.termsOf.get(pool)
    if (terms !== undefined) this.kept = { terms, pool }
  }
}
