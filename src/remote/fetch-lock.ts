/**
 * Who fetches a set, of all processes that fill one folder. It saves transfers and nothing hangs on it: a process that was
 * stopped for an hour may believe that it holds one, and does no harm (docs/adr/0012-remote-stores.md, 9).
 */
import { randomBytes } from 'node:crypto'
import { open, rename, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { ioError } from '../io-error.ts'
import { FETCH_LOCK_IDLE_MS, FETCH_LOCK_TOUCH_MS } from '../limits.ts'

/** How often those who wait look. */
const LOOK_MS = 250

export class FetchLock {
  /** Of somebody who did not give it back: killed, or stopped for long. What it wrote may still be written to. */
  readonly isTakenOver: boolean
  /** Somebody else had it first, and gave it back. */
  readonly hasWaited: boolean
  private readonly path: string
  private readonly ino: number
  private readonly touching: NodeJS.Timeout

  private constructor(path: string, ino: number, isTakenOver: boolean, hasWaited: boolean) {
    this.path = path
    this.ino = ino
    this.isTakenOver = isTakenOver
    this.hasWaited = hasWaited
    this.touching = setInterval(() => {
      const now = new Date()
      utimes(path, now, now).catch(() => {}) // taken over, or the folder is gone: what is fetched tells
    }, FETCH_LOCK_TOUCH_MS).unref()
  }

  /** Waits for it as long as somebody touches it. @param folder has to be there @throws IO, the signal's reason */
  static async take(
    folder: string,
    digest: string,
    signal?: AbortSignal,
    idleMs = FETCH_LOCK_IDLE_MS,
  ): Promise<FetchLock> {
    const path = join(folder, `.fetch-${digest}.lock`)
    let isTakenOver = false
    for (let hasWaited = false; ; hasWaited = true) {
      signal?.throwIfAborted()
      try {
        const file = await open(path, 'wx', 0o600)
        const { ino } = await file.stat()
        await file.close()
        return new FetchLock(path, ino, isTakenOver, hasWaited)
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw ioError(error, 'cannot lock', path)
      }
      const found = await stat(path).catch(() => undefined)
      if (found !== undefined && Date.now() - found.mtimeMs > idleMs) {
        isTakenOver = await takeAway(path, found.ino)
        continue
      }
      await pause(LOOK_MS, undefined, { signal }).catch(() => signal?.throwIfAborted())
    }
  }

  /** Whether nobody has taken it over: after a pause of this process somebody may have. */
  async isHeld(): Promise<boolean> {
    return (await stat(this.path).catch(() => undefined))?.ino === this.ino
  }

  async release(): Promise<void> {
    clearInterval(this.touching)
    if (await this.isHeld()) await rm(this.path, { force: true }).catch(() => {}) // else it is another's by now
  }
}

/** Several may want to: a rename has one winner. */
async function takeAway(path: string, ino: number): Promise<boolean> {
  const aside = `${path}-${randomBytes(8).toString('hex')}`
  try {
    await rename(path, aside)
  } catch {
    return false
  }
  const { ino: got } = await stat(aside)
  await rm(aside, { force: true })
  return got === ino
}
