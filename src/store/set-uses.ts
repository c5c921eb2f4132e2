/**
 * What each set of a store has brought to the migrations of this host, in a small file beside the sets. It decides what is
 * removed first and nothing else, so where it is damaged it is begun anew. docs/adr/0016-life-of-a-set.md.
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import type { SetGain } from '../codec/set-gains.ts'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { SET_USES_BYTES_MAX, SET_USES_MAX } from '../limits.ts'
import { newestFirst } from './prune.ts'
import { putBeside, type StoredSet } from './template-store.ts'

const FILE = '.uses.json'
const VERSION = 1
/** What a set brought counts half after so long: guests change, and sets with them. */
const HALF_LIFE_MS = 30 * 86_400_000

/** What a set has brought, all migrations of this host together. */
export interface SetUse {
  readonly migrations: number
  /** Pages of guests that it had whole. */
  readonly pages: number
  /** Bytes of guests that came out of it, parts of pages counted; before they would have been packed. */
  readonly bytes: number
  readonly firstMs: number
  readonly lastMs: number
  /** Of `bytes` what counts at `lastMs`, by its age. */
  readonly recentBytes: number
}

/** By digest. */
export type SetUses = ReadonlyMap<string, SetUse>

export interface ReadUses {
  readonly uses: SetUses
  /** Why the file could not be made sense of: what was in it is lost, unless `isKept`. */
  readonly problem?: ProxyError
  /** It is of a later version: nothing may take its place. */
  readonly isKept?: boolean
}

/** What it brought lately, bytes: half of what it was for each HALF_LIFE_MS since. */
export function recentBytesAt(use: SetUse | undefined, nowMs: number): number {
  if (use === undefined) return 0
  return use.recentBytes * 2 ** (-Math.max(0, nowMs - use.lastMs) / HALF_LIFE_MS)
}

/** When a set brought something last; where it never did, when it was put: nobody can have used it before. */
export function usedMs(uses: SetUses, { digest, modified }: Pick<StoredSet, 'digest' | 'modified'>): number {
  return Math.max(uses.get(digest)?.lastMs ?? 0, modified.getTime())
}

/**
 * Orders sets for who has to let some go: those that were put within `graceMs`, the newest first, as nobody can know yet what
 * they will bring; then by what they brought lately for each byte that they take; then those that brought nothing, the newest first.
 */
export function byGain(uses: SetUses, graceMs: number, nowMs: number): (a: StoredSet, b: StoredSet) => number {
  const isFresh = ({ modified }: StoredSet): boolean => nowMs - modified.getTime() <= graceMs
  const worth = (set: StoredSet): number =>
    isFresh(set) ? 0 : recentBytesAt(uses.get(set.digest), nowMs) / Math.max(1, set.fileBytes)
  return (a, b) => Number(isFresh(b)) - Number(isFresh(a)) || worth(b) - worth(a) || newestFirst(a, b)
}

/** These, and what a migration had of sets beside it. Of too many those go that were used least lately. */
export function withMigration(uses: SetUses, gains: readonly SetGain[], nowMs: number): SetUses {
  const all = new Map(uses)
  for (const { set, pages, bytes } of gains) {
    const before = all.get(set)
    all.set(set, {
      migrations: (before?.migrations ?? 0) + 1,
      pages: (before?.pages ?? 0) + pages,
      bytes: (before?.bytes ?? 0) + bytes,
      firstMs: before?.firstMs ?? nowMs,
      lastMs: Math.max(before?.lastMs ?? 0, nowMs),
      recentBytes: recentBytesAt(before, nowMs) + bytes,
    })
  }
  return bounded(all)
}

function bounded(uses: SetUses): SetUses {
  if (uses.size <= SET_USES_MAX) return uses
  return new Map([...uses].sort(([, a], [, b]) => b.lastMs - a.lastMs).slice(0, SET_USES_MAX))
}

/** What is noted in a store; nothing where nothing was yet. @throws IO where it cannot be read */
export async function readUses(folder: string): Promise<ReadUses> {
  const path = join(folder, FILE)
  let file: FileHandle | undefined
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
    const bytes = Buffer.alloc(SET_USES_BYTES_MAX + 1)
    let length = 0
    for (let read = -1; read !== 0 && length < bytes.length; length += read)
      read = (await file.read(bytes, length, bytes.length - length, length)).bytesRead
    if (length > SET_USES_BYTES_MAX) return damaged(path, `more than ${SET_USES_BYTES_MAX} bytes`)
    return decode(path, bytes.toString('utf8', 0, length))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { uses: new Map() }
    throw ioError(error, 'cannot read', path)
  } finally {
    await file?.close()
  }
}

/** Whole, and on the disk. @throws IO */
export async function writeUses(folder: string, uses: SetUses): Promise<void> {
  const sets = Array.from(bounded(uses), ([digest, { firstMs, lastMs, recentBytes, ...use }]) => ({
    digest,
    ...use,
    recentBytes: Math.round(recentBytes),
    first: new Date(firstMs).toISOString(),
    last: new Date(lastMs).toISOString(),
  }))
  await putBeside(join(folder, FILE), `${JSON.stringify({ version: VERSION, sets })}\n`)
}

function decode(path: string, text: string): ReadUses {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return damaged(path, 'no JSON')
  }
  const { version, sets } = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  if (Number.isSafeInteger(version) && (version as number) > VERSION) {
    const what = `${path} is of version ${version}, which this version does not know`
    const action = 'it stays as it is: use the version that wrote it, or remove it'
    return { uses: new Map(), problem: new ProxyError('IO', what, { stream: path }, action), isKept: true }
  }
  if (version !== VERSION || !Array.isArray(sets)) return damaged(path, 'no list of sets')
  if (sets.length > SET_USES_MAX) return damaged(path, `more than ${SET_USES_MAX} sets`)
  const uses = new Map<string, SetUse>()
  for (const entry of sets) {
    const use = useIn(entry)
    if (use === undefined) return damaged(path, 'an entry that is none')
    uses.set(...use)
  }
  return { uses }
}

function damaged(path: string, why: string): ReadUses {
  const what = `${path} is damaged: ${why}`
  const action = 'it is begun anew with the next migration; sets are not harmed'
  return { uses: new Map(), problem: new ProxyError('IO', what, { stream: path }, action) }
}

function useIn(entry: unknown): [string, SetUse] | undefined {
  if (typeof entry !== 'object' || entry === null) return undefined
  const { digest, migrations, pages, bytes, recentBytes, first, last } = entry as Record<string, unknown>
  if (typeof digest !== 'string' || !/^[0-9a-f]{64}$/.test(digest)) return undefined
  const counts = [migrations, pages, bytes, recentBytes]
  if (!counts.every(count => typeof count === 'number' && Number.isFinite(count) && count >= 0)) return undefined
  const [firstMs, lastMs] = [first, last].map(time => (typeof time === 'string' ? Date.parse(time) : Number.NaN))
  if (!Number.isFinite(firstMs) || !Number.isFinite(lastMs)) return undefined
  const [m, p, b, r] = counts as number[]
  return [digest, { migrations: m!, pages: p!, bytes: b!, recentBytes: r!, firstMs: firstMs!, lastMs: lastMs! }]
}
