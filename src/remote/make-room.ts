/** Keeps what came from remote stores under a size. docs/adr/0012-remote-stores.md, 10. */
import { rm, stat, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { FETCH_LOCK_IDLE_MS, STORE_FREE_BYTES_MIN } from '../limits.ts'
import { formatSize } from '../quantity.ts'
import { namesIn, type TemplateStore } from '../store/template-store.ts'
import type { ChannelSet } from './channel.ts'
import type { HostChannels } from './host-channels.ts'

/** What a fetch writes to, and leaves where it is ended: fetcher.ts goes on from there. */
const PART = /^\.fetch-([0-9a-f]{64})-(?:left-)?[0-9a-f]+\.part$/
/** What was noted as fetched and is not there: somebody may be just about to fetch it. After so long nobody is. */
const FORGET_MS = 24 * 3_600_000

export interface RoomRule {
  /** Bytes that sets from remote stores may have; undefined: as much as the disk has. */
  readonly maxBytes: number | undefined
  /** Sets that are about to be needed: they stay, as those in force do. */
  readonly keep: ReadonlySet<string>
}

/** A set that came from a remote store, or what is there of one. */
interface Fetched {
  readonly digest: string
  readonly bytes: number
  readonly usedMs: number
  /** Path of what a fetch has left; undefined: it is whole. */
  readonly part: string | undefined
}

/**
 * Removes sets that came from remote stores and are in no channel in force, those first that have been unused for longest,
 * until those that are wanted fit; before them, what is left of fetches that nobody needs any more.
 *
 * @param wanted the sets to have; what is there of them counts
 * @returns digests of what was removed
 * @throws IO where it does not fit though they are gone; by its own code what is wrong with a document in force, where it does
 * not fit: its sets are not known then, so that no set is removed
 */
export async function makeRoom(
  store: TemplateStore,
  channels: HostChannels,
  wanted: readonly ChannelSet[],
  { maxBytes = Number.POSITIVE_INFINITY, keep }: RoomRule,
  nowMs: number,
): Promise<string[]> {
  const { now, before, fetched, problem } = await channels.inForce(nowMs)
  const isNeeded = (digest: string): boolean => keep.has(digest) || now.has(digest)
  const noted = new Set([...fetched, ...wanted.map(({ digest }) => digest)])
  const parts = (await partsIn(store.folder)).filter(({ digest }) => noted.has(digest))
  const there: Fetched[] = [...parts]
  // a fetch goes on with one, and removes the others
  const longest = new Map<string, Fetched>()
  for (const part of parts) if (part.bytes > (longest.get(part.digest)?.bytes ?? -1)) longest.set(part.digest, part)
  let needBytes = 0
  const wantedBytes = new Map(wanted.map(({ digest, bytes }) => [digest, bytes]))
  for (const digest of noted) {
    const found = await stat(store.pathOf(digest)).catch(() => undefined)
    const usedMs = await channels.usedMs(digest)
    if (found === undefined) {
      const left = longest.get(digest)?.bytes ?? 0
      needBytes += Math.max(0, (wantedBytes.get(digest) ?? 0) - left)
      // 0: its note has gone meanwhile, and a new one may come
      const isOld = usedMs > 0 && nowMs - usedMs > FORGET_MS
      if (isOld && left === 0 && !isNeeded(digest) && !before.has(digest)) await channels.forgetFetched(digest)
    } else if (fetched.has(digest)) {
      there.push({ digest, bytes: found.size, usedMs: Math.max(found.mtimeMs, usedMs), part: undefined })
    }
  }
  let haveBytes = there.reduce((sum, { bytes }) => sum + bytes, 0)
  const removed: string[] = []
  const rank = ({ digest, part }: Fetched): number => (part !== undefined ? 0 : before.has(digest) ? 2 : 1)
  const idle = there
    .filter(each => {
      const { digest, usedMs, part } = each
      if (part === undefined) return problem === undefined && !isNeeded(digest)
      const isWritten = nowMs - usedMs <= FETCH_LOCK_IDLE_MS
      return !isWritten && (!isNeeded(digest) || longest.get(digest) !== each)
    })
    .sort((a, b) => rank(a) - rank(b) || a.usedMs - b.usedMs)
  for (;;) {
    const freeBytes = await freeBytesOf(store.folder)
    if (haveBytes + needBytes <= maxBytes && needBytes + STORE_FREE_BYTES_MIN <= freeBytes) return removed
    const oldest = idle.shift()
    if (oldest === undefined) {
      if (problem) throw noRoom(needBytes, problem)
      const isFull = haveBytes + needBytes <= maxBytes
      const what = isFull
        ? `${store.folder} has ${formatSize(freeBytes)} free, and a set needs ${formatSize(needBytes)}`
        : `a set of ${formatSize(needBytes)} beside ${formatSize(haveBytes)} in force or about to be: more than ${formatSize(maxBytes)}`
      const action = isFull ? 'make room on that disk' : 'give more to --store-size, or promote fewer sets'
      throw new ProxyError('IO', what, { stream: store.folder }, `${action}; what is in force stays`)
    }
    haveBytes -= oldest.bytes
    if (oldest.part !== undefined) await removePart(oldest.part)
    else {
      await store.remove(oldest.digest)
      await channels.forgetFetched(oldest.digest)
      removed.push(oldest.digest)
    }
  }
}

function noRoom(needBytes: number, problem: ProxyError): ProxyError {
  const what = `no room for ${formatSize(needBytes)}, as it is not known which sets are in force: ${problem.what}`
  return new ProxyError(problem.code, what, problem.where, problem.action, { cause: problem })
}

async function partsIn(folder: string): Promise<Fetched[]> {
  const parts: Fetched[] = []
  for (const name of await namesIn(folder)) {
    const digest = PART.exec(name)?.[1]
    if (digest === undefined) continue
    const part = join(folder, name)
    const found = await stat(part).catch(() => undefined)
    if (found?.isFile()) parts.push({ digest, bytes: found.size, usedMs: found.mtimeMs, part })
  }
  return parts
}

async function removePart(path: string): Promise<void> {
  await rm(path, { force: true }).catch(error => {
    throw ioError(error, 'cannot remove', path)
  })
}

async function freeBytesOf(folder: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(folder)
    return bavail * bsize
  } catch (error) {
    throw ioError(error, 'cannot look at', folder)
  }
}
