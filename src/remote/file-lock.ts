/**
 * A file that says who is at something, of all processes that see its folder. It saves work, and no set hangs on it: a process
 * that was stopped for an hour may believe that it holds one, and does no harm (docs/adr/0012-remote-stores.md, 9).
 */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, link, open, rename, rm } from 'node:fs/promises'
import { setTimeout as pause } from 'node:timers/promises'
import { ioError } from '../io-error.ts'
import { FETCH_LOCK_IDLE_MS, FETCH_LOCK_TOUCH_MS } from '../limits.ts'

/** How often those who wait look. */
const LOOK_MS = 250
const TOKEN_LENGTH = 16
/** Tells nothing: whoever may look into the folder may read it. */
const MODE = 0o644

/** A lock as it lies in the folder. */
interface Found {
  readonly mtimeMs: number
  /** Its owner's; shorter where that has just begun, or was killed in between. */
  readonly token: string
}

export class FileLock {
  /** Somebody else had it first, and gave it back, or was killed. */
  readonly hasWaited: boolean
  private readonly path: string
  /** What the lock says while it is ours. Not its inode: the file of who took it over may get the same. */
  private readonly token: string
  /** Of our own file, wherever it lies by now: another's must not be touched. */
  private readonly file: FileHandle
  private readonly touching: NodeJS.Timeout

  private constructor(path: string, token: string, file: FileHandle, hasWaited: boolean) {
    this.path = path
    this.token = token
    this.file = file
    this.hasWaited = hasWaited
    this.touching = setInterval(() => {
      const now = new Date()
      file.utimes(now, now).catch(() => {}) // the folder is gone: what is fetched tells
    }, FETCH_LOCK_TOUCH_MS).unref()
  }

  /** Waits for it as long as somebody touches it. @param path its folder has to be there @throws IO, the signal's reason */
  static async take(path: string, signal?: AbortSignal, idleMs = FETCH_LOCK_IDLE_MS): Promise<FileLock> {
    for (let hasWaited = false; ; hasWaited = true) {
      signal?.throwIfAborted()
      const taken = await create(path)
      if (taken !== undefined) return new FileLock(path, taken.token, taken.file, hasWaited)
      if (await isTaken(path, idleMs)) await pause(LOOK_MS, undefined, { signal }).catch(() => signal?.throwIfAborted())
    }
  }

  /** @returns undefined where somebody else has it @throws IO */
  static async takeNow(path: string, idleMs = FETCH_LOCK_IDLE_MS): Promise<FileLock | undefined> {
    const taken = (await create(path)) ?? ((await isTaken(path, idleMs)) ? undefined : await create(path))
    return taken && new FileLock(path, taken.token, taken.file, false)
  }

  /** Whether nobody has taken it over: after a pause of this process somebody may have. @throws IO */
  async isHeld(): Promise<boolean> {
    return (await look(this.path))?.token === this.token
  }

  async release(): Promise<void> {
    clearInterval(this.touching)
    try {
      if (await this.isHeld()) await rm(this.path, { force: true }) // else it is another's by now
    } catch {
      // it grows old
    }
    await this.file.close().catch(() => {})
  }
}

/** @returns undefined where there is one @throws IO */
async function create(path: string): Promise<{ token: string; file: FileHandle } | undefined> {
  const token = randomBytes(TOKEN_LENGTH / 2).toString('hex')
  let file: FileHandle | undefined
  try {
    file = await open(path, 'wx', MODE)
    await file.chmod(MODE) // whatever the umask says
    await file.writeFile(token)
    return { token, file }
  } catch (error) {
    if (file === undefined && (error as NodeJS.ErrnoException).code === 'EEXIST') return undefined
    if (file !== undefined) await rm(path, { force: true }).catch(() => {})
    await file?.close().catch(() => {})
    throw ioError(error, 'cannot lock', path)
  }
}

/** @returns undefined where there is none @throws IO */
async function look(path: string): Promise<Found | undefined> {
  let file: FileHandle | undefined
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
    const { mtimeMs } = await file.stat()
    const bytes = Buffer.alloc(TOKEN_LENGTH + 1)
    const { bytesRead } = await file.read(bytes, 0, bytes.length, 0)
    return { mtimeMs, token: bytes.toString('latin1', 0, bytesRead) }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw ioError(error, 'cannot look at lock', path)
  } finally {
    await file?.close().catch(() => {})
  }
}

/** Whether somebody has it who lives; one of who does not is taken away. @throws IO */
async function isTaken(path: string, idleMs: number): Promise<boolean> {
  const found = await look(path)
  if (found === undefined) return false
  if (Date.now() - found.mtimeMs <= idleMs) return true
  await takeAway(path, found.token)
  return false
}

/**
 * An old lock. Several may want to: a rename has one winner, and the one that comes late may hold the winner's new lock then.
 * @param token of the old one
 * @throws IO
 */
async function takeAway(path: string, token: string): Promise<void> {
  const aside = `${path}-${randomBytes(8).toString('hex')}`
  try {
    await rename(path, aside)
    const got = await look(aside)
    if (got === undefined) return
    // where a third one was quicker there are two owners: that costs a transfer
    if (got.token !== token) await link(aside, path).catch(() => {})
    await rm(aside, { force: true })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
    throw ioError(error, 'cannot take over', path)
  }
}
