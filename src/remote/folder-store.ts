/** A remote store in a folder: a disk that hosts share, or what a web server gives out. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, link, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { isProxyError, type ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { shareAsFolder, syncFolder } from '../store/template-store.ts'
import { FileLock } from './file-lock.ts'
import {
  bodyOf,
  type ListedObject,
  lost,
  type OpenObject,
  type OpenOptions,
  type ReadAt,
  type RemoteStore,
  readFully,
  refused,
  type SmallObject,
  type StoreWriter,
  strange,
  wholeBody,
} from './remote-store.ts'

const FOLDER_MODE = 0o700
const FILE_MODE = 0o600
/** Bytes of one write. */
const WRITE_LENGTH = 1 << 20
/** What is being written begins so: it is in no listing. */
const TEMPORARY = '.put-'

export class FolderStore implements RemoteStore, StoreWriter {
  readonly name: string
  readonly writer = this
  private readonly folder: string

  /** @param folder has to be there, once something is asked: a disk that is not mounted is no empty store */
  constructor(folder: string, name = folder) {
    this.folder = folder
    this.name = name
  }

  async read(
    key: string,
    maxBytes: number,
    { unlessTag, signal }: { unlessTag?: string | undefined; signal?: AbortSignal | undefined } = {},
  ): Promise<SmallObject | 'unchanged' | undefined> {
    const opened = await this.open(key, { signal })
    if (opened === undefined) return undefined
    const { lengthBytes, tag, body } = opened
    try {
      if (tag === unlessTag) return 'unchanged'
      if (lengthBytes > maxBytes) throw strange(this.name, `${key} of ${lengthBytes} bytes: at most ${maxBytes}`)
      return { bytes: await wholeBody(body, lengthBytes), tag }
    } finally {
      await body.return()
    }
  }

  async open(key: string, { from = 0, tag, signal }: OpenOptions = {}): Promise<OpenObject | undefined> {
    const file = await this.openFile(key)
    if (file === undefined) return undefined
    try {
      const found = await file.stat({ bigint: true })
      if (!found.isFile()) throw strange(this.name, `${key} is no file`)
      const current = tagOf(found)
      const lengthBytes = Number(found.size)
      const start = from <= lengthBytes && (tag === undefined || tag === current) ? from : 0
      // a file that grows is none of a store's, and cut off where it ended; a stream of no bytes cannot be asked for
      const stream = file.createReadStream({ start, end: Math.max(start, lengthBytes - 1) })
      const body = bodyOf(stream, lengthBytes - start, this.name, signal)
      return { lengthBytes, tag: current, from: start, body }
    } catch (error) {
      await file.close()
      throw error
    }
  }

  async lengthOf(key: string): Promise<number | undefined> {
    try {
      const found = await stat(this.pathOf(key)).catch(notThere)
      if (found === undefined) await this.requireThere()
      return found?.size
    } catch (error) {
      throw isProxyError(error) ? error : this.unreadable(error)
    }
  }

  close(): void {}

  async *list(prefix: string): AsyncGenerator<ListedObject, void> {
    const under = prefix.slice(0, prefix.lastIndexOf('/') + 1)
    const entries = await readdir(join(this.folder, under), { withFileTypes: true })
      .catch(notThere)
      .catch(error => {
        throw this.unreadable(error)
      })
    if (entries === undefined) return await this.requireThere()
    for (const entry of entries) {
      const key = under + entry.name
      if (!key.startsWith(prefix) || !entry.isFile() || entry.name.startsWith('.')) continue
      const lengthBytes = await this.lengthOf(key)
      if (lengthBytes !== undefined) yield { key, lengthBytes }
    }
  }

  async put(key: string, source: ReadAt, progress?: (bytes: number) => void, signal?: AbortSignal): Promise<boolean> {
    if ((await this.lengthOf(key)) !== undefined) return false
    return await this.write(
      key,
      async file => {
        const buffer = Buffer.allocUnsafe(WRITE_LENGTH)
        for (let at = 0; at < source.lengthBytes; ) {
          signal?.throwIfAborted()
          const piece = buffer.subarray(0, Math.min(buffer.length, source.lengthBytes - at))
          await readFully(source, at, piece)
          await file.writeFile(piece)
          at += piece.length
          progress?.(piece.length)
        }
      },
      async temporary => {
        try {
          await link(temporary, this.pathOf(key)) // a rename would take the place of what came meanwhile
          return true
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
          throw error
        }
      },
      signal,
    )
  }

  async replace(key: string, bytes: Uint8Array, tag: string | undefined): Promise<boolean> {
    await this.requireThere()
    return await this.write(
      key,
      file => file.writeFile(bytes),
      async temporary => {
        const path = `${this.pathOf(key)}.lock`
        // comparing and renaming are one step; whoever has the lock has it for a moment, so that nobody waits
        const lock = await FileLock.takeNow(path)
        if (lock === undefined) throw lost(this.name, `${path}: somebody else is writing`)
        try {
          const found = await stat(this.pathOf(key), { bigint: true }).catch(notThere)
          if ((found && tagOf(found)) !== tag) return false
          if (!(await lock.isHeld())) throw lost(this.name, `${path}: somebody else was quicker`) // this process was stopped
          await rename(temporary, this.pathOf(key))
          return true
        } finally {
          await lock.release()
        }
      },
    )
  }

  async remove(key: string): Promise<void> {
    try {
      await rm(this.pathOf(key), { force: true })
    } catch (error) {
      throw ioError(error, 'cannot remove', this.pathOf(key))
    }
  }

  /** Fills a temporary file beside the key's, and puts it there by `place`, both on the disk. */
  private async write(
    key: string,
    fill: (file: FileHandle) => Promise<void>,
    place: (temporary: string) => Promise<boolean>,
    signal?: AbortSignal,
  ): Promise<boolean> {
    const folder = dirname(this.pathOf(key))
    const temporary = join(folder, `${TEMPORARY}${process.pid}-${randomBytes(8).toString('hex')}.tmp`)
    try {
      await mkdir(folder, { recursive: true, mode: FOLDER_MODE })
      const file = await open(temporary, 'wx', FILE_MODE)
      try {
        await shareAsFolder(file, folder)
        await fill(file)
        await file.sync()
      } finally {
        await file.close()
      }
      const placed = await place(temporary)
      await syncFolder(folder)
      return placed
    } catch (error) {
      if (signal?.aborted && error === signal.reason) throw error
      throw ioError(error, 'cannot write', this.pathOf(key))
    } finally {
      await rm(temporary, { force: true }).catch(() => {})
    }
  }

  private async openFile(key: string): Promise<FileHandle | undefined> {
    try {
      return await open(this.pathOf(key), constants.O_RDONLY | constants.O_NONBLOCK) // a FIFO would be waited for
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw this.unreadable(error)
      await this.requireThere()
      return undefined
    }
  }

  /** As another kind of store would say it: an IO of ours is about this host's own disk. */
  private unreadable(error: unknown): ProxyError {
    const { code = '', message } = error as NodeJS.ErrnoException
    if (!['EACCES', 'EPERM'].includes(code)) return lost(this.name, 'cannot be read', error)
    return refused(this.name, message, 'check who may read it', error)
  }

  /** A disk that is not mounted is no empty store. @throws STORE_LOST */
  private async requireThere(): Promise<void> {
    try {
      await readdir(this.folder)
    } catch (error) {
      throw this.unreadable(error)
    }
  }

  private pathOf(key: string): string {
    return join(this.folder, key)
  }
}

function tagOf({ ino, size, mtimeNs }: { ino: bigint; size: bigint; mtimeNs: bigint }): string {
  return `"${ino}-${size}-${mtimeNs}"`
}

function notThere(error: NodeJS.ErrnoException): undefined {
  if (error.code === 'ENOENT') return undefined
  throw error
}
