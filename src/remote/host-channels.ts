/**
 * What is in force on this host: documents that were accepted, each with the one before, and which sets came from remote
 * stores, in small files of the host's own store. docs/adr/0012-remote-stores.md, 6 and 7.
 */
import { constants } from 'node:fs'
import { type FileHandle, lstat, open, rm, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { isProxyError, ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { CHANNEL_BYTES_MAX } from '../limits.ts'
import { digestOfFetched, namesIn, putBeside } from '../store/template-store.ts'
import { type ChannelDocument, decodeChannel } from './channel.ts'
import { FileLock } from './file-lock.ts'
import { isChannelName } from './remote-store.ts'

const ACCEPTED = /^\.channel-([a-z0-9-]+)\.json$/

/** Which sets a host uses at a moment. */
export interface InForce {
  /** Sets of documents that were accepted. */
  readonly now: ReadonlySet<string>
  /** Sets of the documents before, while these are still used. */
  readonly before: ReadonlySet<string>
  /** Sets that came from remote stores. */
  readonly fetched: ReadonlySet<string>
  /** Why a document cannot be read: its sets are not in force then. */
  readonly problem: ProxyError | undefined
}

/** Whether sessions may use the set: what people put and proxies learned always, what was fetched while it is in force. */
export function isUsable({ now, before, fetched }: InForce, digest: string): boolean {
  return !fetched.has(digest) || now.has(digest) || before.has(digest)
}

interface KeptDocument {
  readonly state: string
  readonly document: ChannelDocument
  readonly acceptedMs: number
}

export class HostChannels {
  readonly folder: string
  /** By path: a file that has not changed is not read again. */
  private readonly kept = new Map<string, KeptDocument>()

  /** @param folder of the host's own store */
  constructor(folder: string) {
    this.folder = folder
  }

  /**
   * The document of a channel that this host accepted last.
   * @throws CHANNEL_FORMAT where it is damaged: nothing may take its place then, lest an older one does; IO
   */
  async accepted(name: string): Promise<ChannelDocument | undefined> {
    return (await this.read(this.pathOf(name), name))?.document
  }

  /** @throws IO where the folder cannot be read */
  async inForce(nowMs: number): Promise<InForce> {
    const now = new Set<string>()
    const before = new Set<string>()
    const fetched = new Set<string>()
    let problem: ProxyError | undefined
    for (const file of await namesIn(this.folder)) {
      const digest = digestOfFetched(file)
      if (digest !== undefined) fetched.add(digest)
      const name = ACCEPTED.exec(file)?.[1]
      if (name === undefined || !isChannelName(name)) continue
      try {
        await this.addChannel(name, nowMs, now, before)
      } catch (error) {
        if (!isProxyError(error)) throw error
        problem = error
      }
    }
    for (const digest of now) before.delete(digest)
    return { now, before, fetched, problem }
  }

  private async addChannel(name: string, nowMs: number, now: Set<string>, before: Set<string>): Promise<void> {
    const current = await this.read(this.pathOf(name), name)
    if (current === undefined) return
    for (const { digest } of current.document.channel.sets) now.add(digest)
    if (nowMs >= current.acceptedMs + current.document.channel.overlapMs) return
    const previous = await this.read(this.pathOf(name, '.before'), name)
    for (const { digest } of previous?.document.channel.sets ?? []) before.add(digest)
  }

  /**
   * Puts a document in force, in place of the one that was there: one rename. Another process of this host may have been
   * quicker, with this one or a later one: that stays.
   * @param document checked, and its sets all there
   * @returns what is in force now
   * @throws IO: what was in force stays; the signal's reason
   */
  async accept(document: ChannelDocument, signal?: AbortSignal): Promise<ChannelDocument> {
    const { channel: name, serial } = document.channel
    // looking, comparing and renaming are one step: of two processes the one with the earlier document must not end last
    const lock = await FileLock.take(join(this.folder, `.fetch-channel-${name}.lock`), signal)
    try {
      const current = (await this.read(this.pathOf(name), name))?.document
      if (current !== undefined) {
        if (current.channel.serial >= serial) return current
        await this.noteUsed(current.channel.sets.map(({ digest }) => digest))
        await this.write(this.pathOf(name, '.before'), current.bytes, lock)
      }
      await this.write(this.pathOf(name), document.bytes, lock)
      return document
    } finally {
      await lock.release()
    }
  }

  /** Notes that a set comes from a remote store, before it is there. @throws IO */
  async noteFetched(digest: string): Promise<void> {
    await this.write(join(this.folder, `.fetched-${digest}`), new Uint8Array(0))
  }

  /** When the set was in force last, as far as is known; 0 where it never was. */
  async usedMs(digest: string): Promise<number> {
    return (await lstat(join(this.folder, `.fetched-${digest}`)).catch(() => undefined))?.mtimeMs ?? 0
  }

  /** The set is gone. @throws IO */
  async forgetFetched(digest: string): Promise<void> {
    const path = join(this.folder, `.fetched-${digest}`)
    await rm(path, { force: true }).catch(error => {
      throw ioError(error, 'cannot remove', path)
    })
  }

  private async noteUsed(digests: readonly string[]): Promise<void> {
    const now = new Date()
    for (const digest of digests) await utimes(join(this.folder, `.fetched-${digest}`), now, now).catch(() => {})
  }

  private pathOf(name: string, which = ''): string {
    return join(this.folder, `.channel-${name}${which}.json`)
  }

  private async read(path: string, name: string): Promise<KeptDocument | undefined> {
    let file: FileHandle | undefined
    try {
      const found = await lstat(path)
      const state = `${found.ino} ${found.size} ${found.mtimeMs} ${found.ctimeMs}`
      const kept = this.kept.get(path)
      if (kept?.state === state) return kept
      file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
      const bytes = Buffer.alloc(CHANNEL_BYTES_MAX + 1)
      const { bytesRead } = await file.read(bytes, 0, bytes.length, 0)
      const document = decodeKept(bytes.subarray(0, bytesRead), name, path)
      const read = { state, document, acceptedMs: found.mtimeMs }
      this.kept.set(path, read)
      return read
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      if (isProxyError(error)) throw error
      throw ioError(error, 'cannot read', path)
    } finally {
      await file?.close()
    }
  }

  /** Whole, and on the disk. @param lock has to be ours still */
  private write(path: string, bytes: Uint8Array, lock?: FileLock): Promise<void> {
    return putBeside(path, bytes, async () => {
      // whoever was stopped for a minute has lost it
      if (lock && !(await lock.isHeld())) throw new Error('another process was quicker; it is tried again')
    })
  }
}

/** What is damaged here is not mended by another promotion. @throws CHANNEL_FORMAT */
function decodeKept(bytes: Uint8Array, name: string, path: string): ChannelDocument {
  try {
    return decodeChannel(bytes, name)
  } catch (error) {
    if (!isProxyError(error)) throw error
    const action =
      'no other takes its place, lest an older one does: remove it, and what the channel says is fetched anew'
    throw new ProxyError(error.code, `${path}: ${error.what}`, { stream: path }, action, { cause: error })
  }
}
