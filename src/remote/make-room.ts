/** Keeps what came from remote stores under a size. docs/adr/0012-remote-stores.md, 10. */
import { stat, statfs } from 'node:fs/promises'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { STORE_FREE_BYTES_MIN } from '../limits.ts'
import { formatSize } from '../quantity.ts'
import type { TemplateStore } from '../store/template-store.ts'
import type { HostChannels } from './host-channels.ts'

export interface RoomRule {
  /** Bytes that sets from remote stores may have; undefined: as much as the disk has. */
  readonly maxBytes: number | undefined
  /** Sets that are about to be needed: they stay, as those in force do. */
  readonly keep: ReadonlySet<string>
}

/**
 * Removes sets that came from remote stores and are in no channel in force, those first that have been unused for longest,
 * until one of so many bytes fits.
 *
 * @returns digests of what was removed
 * @throws IO where it does not fit though they are gone
 */
export async function makeRoom(
  store: TemplateStore,
  channels: HostChannels,
  needBytes: number,
  { maxBytes = Number.POSITIVE_INFINITY, keep }: RoomRule,
  nowMs: number,
): Promise<string[]> {
  const { now, before, fetched } = await channels.inForce(nowMs)
  const there: { digest: string; bytes: number; usedMs: number }[] = []
  let haveBytes = 0
  for (const digest of fetched) {
    const found = await stat(store.pathOf(digest)).catch(() => undefined)
    if (found === undefined) {
      if (!keep.has(digest)) await channels.forgetFetched(digest)
      continue
    }
    haveBytes += found.size
    there.push({ digest, bytes: found.size, usedMs: Math.max(found.mtimeMs, await channels.usedMs(digest)) })
  }
  const removed: string[] = []
  const idle = there
    .filter(({ digest }) => !keep.has(digest) && !now.has(digest))
    .sort((a, b) => Number(before.has(a.digest)) - Number(before.has(b.digest)) || a.usedMs - b.usedMs)
  for (;;) {
    const freeBytes = await freeBytesOf(store.folder)
    if (haveBytes + needBytes <= maxBytes && needBytes + STORE_FREE_BYTES_MIN <= freeBytes) return removed
    const oldest = idle.shift()
    if (oldest === undefined) {
      const isFull = haveBytes + needBytes <= maxBytes
      const what = isFull
        ? `${store.folder} has ${formatSize(freeBytes)} free, and a set needs ${formatSize(needBytes)}`
        : `a set of ${formatSize(needBytes)} beside ${formatSize(haveBytes)} in force or about to be: more than ${formatSize(maxBytes)}`
      const action = isFull ? 'make room on that disk' : 'give more to --store-size, or promote fewer sets'
      throw new ProxyError('IO', what, { stream: store.folder }, `${action}; what is in force stays`)
    }
    await store.remove(oldest.digest)
    await channels.forgetFetched(oldest.digest)
    haveBytes -= oldest.bytes
    removed.push(oldest.digest)
  }
}

async function freeBytesOf(folder: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(folder)
    return bavail * bsize
  } catch (error) {
    throw ioError(error, 'cannot look at', folder)
  }
}
