/**
 * Fetches sets from remote stores into a host's own: whole and verified, or not at all; gone on with where it ended, by
 * whichever process comes next. docs/adr/0012-remote-stores.md, 8 and 9.
 */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { copyFile, type FileHandle, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { assert, isProxyError, ProxyError } from '../errors.ts'
import { ioError, NO_ROOM } from '../io-error.ts'
import { FETCH_ATTEMPTS_MAX } from '../limits.ts'
import { shareAsFolder, syncFolder, type TemplateStore } from '../store/template-store.ts'
import { occurrencesOfPage, type SetHead, type SetRecords, vmsOfPage } from '../template/format.ts'
import { DIGEST_LENGTH, METADATA_LENGTH_MAX, PAGES_MAX, RECORD, RECORD_LENGTH, setLayout } from '../template/wire.ts'
import { FileLock } from './file-lock.ts'
import { keyOfSet, type RemoteStore, strange } from './remote-store.ts'
import { type GoodPiece, SetVerifier } from './set-verifier.ts'

/** Longest pause between two attempts. */
const PAUSE_MS_MAX = 30_000
const SET_BYTES_MAX = setLayout(PAGES_MAX, METADATA_LENGTH_MAX).lengthBytes
/** Bytes of one read of what is there already. */
const READ_LENGTH = 1 << 20
/** In the name of a part whose owner has ended and closed it. */
const LEFT = 'left-'

export interface FetchOptions {
  /** Bytes of the set, where a channel tells them. */
  readonly lengthBytes?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** Called with the bytes that are there, of all. */
  readonly progress?: (doneBytes: number, totalBytes: number) => void
  /** How long to wait before attempt 1, 2 ... in a row that brought nothing. */
  readonly pauseMs?: (attempt: number) => number
  readonly lockIdleMs?: number
}

export interface Fetched {
  readonly digest: string
  readonly path: string
  readonly fileBytes: number
  /** It was there already, sound, or another process fetched it meanwhile. */
  readonly existed: boolean
  /** Bytes that came over the network and were kept. */
  readonly receivedBytes: number
}

/**
 * Fetches one set.
 *
 * @param stores in the order in which they are asked: the next one where one does not have it, fails, or gives what is not it
 * @throws TEMPLATE_MISSING where no store has it; what the last one failed with; IO; the signal's reason
 */
export async function fetchSet(
  stores: readonly RemoteStore[],
  into: TemplateStore,
  digest: string,
  options: FetchOptions = {},
): Promise<Fetched> {
  const path = into.pathOf(digest)
  const existing = async (): Promise<Fetched | undefined> => {
    if (!(await into.holds(digest))) return undefined
    return { digest, path, fileBytes: (await stat(path)).size, existed: true, receivedBytes: 0 }
  }
  const there = await existing()
  if (there) return there
  await mkdir(into.folder, { recursive: true, mode: 0o700 }).catch(error => {
    throw ioError(error, 'cannot use store', into.folder)
  })
  const lock = await FileLock.take(join(into.folder, `.fetch-${digest}.lock`), options.signal, options.lockIdleMs)
  try {
    const meanwhile = lock.hasWaited ? await existing() : undefined
    return meanwhile ?? (await (into.encrypts ? fetchSealed : fetchPlain)(stores, into, digest, options))
  } finally {
    await lock.release()
  }
}

/** Into a file beside its place. What a failure leaves of it is gone on with the next time. */
async function fetchPlain(
  stores: readonly RemoteStore[],
  into: TemplateStore,
  digest: string,
  options: FetchOptions,
): Promise<Fetched> {
  const path = into.pathOf(digest)
  const part = await ownPart(into.folder, digest)
  let file: FileHandle | undefined
  try {
    file = await open(part, constants.O_RDWR | constants.O_CREAT, 0o600)
    const transfer = new Transfer(stores, digest, options)
    await transfer.begin(file)
    for await (const { at, bytes } of transfer.pieces()) await writeAt(file, bytes, at)
    const { lengthBytes, receivedBytes } = transfer
    await file.truncate(lengthBytes)
    await shareAsFolder(file, into.folder)
    await file.sync()
    await file.close()
    file = undefined
    await rename(part, path)
    await syncFolder(into.folder)
    return { digest, path, fileBytes: lengthBytes, existed: false, receivedBytes }
  } catch (error) {
    await file?.close().catch(() => {})
    const isEnded = options.signal?.aborted && error === options.signal.reason
    const told = isEnded ? undefined : ioError(error, 'cannot keep set in', into.folder)
    // a full disk is left as it was; anything else may go on from there
    if (told?.code === 'IO') await rm(part, { force: true }).catch(() => {})
    else await rename(part, leftPath(into.folder, digest)).catch(() => {})
    throw told ?? error
  }
}

/** Into a store that is kept encrypted: no plain byte reaches the disk, so that another process begins anew. */
async function fetchSealed(
  stores: readonly RemoteStore[],
  into: TemplateStore,
  digest: string,
  options: FetchOptions,
): Promise<Fetched> {
  const transfer = new Transfer(stores, digest, options)
  await transfer.begin()
  const pieces = transfer.pieces()
  try {
    let next = await pieces.next()
    while (!next.done && transfer.head === undefined) next = await pieces.next()
    // the piece that ended the head is the head's; a set without pages ends with it
    const head = transfer.head!
    const put = await into.put(
      head.metadata,
      recordsOf(head),
      async function* () {
        for await (const { bytes } of pieces) yield bytes
      },
      options.signal,
    )
    const { path, fileBytes, existed } = put
    assert(put.digest === digest, `a set ${digest} that is written as ${put.digest}`)
    return { digest, path, fileBytes, existed, receivedBytes: transfer.receivedBytes }
  } finally {
    await pieces.return()
  }
}

/** The pieces of a set, in order and good, from whichever store gives them. */
class Transfer {
  receivedBytes = 0
  private readonly stores: RemoteStore[]
  private readonly digest: string
  private readonly options: FetchOptions
  private readonly tags = new Map<RemoteStore, string | undefined>()
  private verifier: SetVerifier | undefined
  /** What stands before this byte is not from the answer that came last; 0 where none came. */
  private beganAt = 0
  /** What was there before, to be looked at once the set's length is known. */
  private part: FileHandle | undefined

  constructor(stores: readonly RemoteStore[], digest: string, options: FetchOptions) {
    this.stores = [...stores]
    this.digest = digest
    this.options = options
  }

  get head(): SetHead | undefined {
    return this.verifier?.head
  }

  get lengthBytes(): number {
    return this.verifier!.lengthBytes
  }

  /** @param part what is there already of it, perhaps; stays the caller's @throws IO */
  async begin(part?: FileHandle): Promise<void> {
    this.part = part
    if (this.options.lengthBytes !== undefined) await this.setLength(this.options.lengthBytes)
  }

  /** @throws as {@link fetchSet} */
  async *pieces(): AsyncGenerator<GoodPiece, void> {
    const { options } = this
    let last: ProxyError | undefined
    let farthest = this.verifier?.position ?? 0
    const begunAnew = new Set<RemoteStore>()
    for (let attempts = 0; !this.verifier?.isWhole; ) {
      const [store] = this.stores
      if (store === undefined) throw last ?? this.missing()
      try {
        if (!(yield* this.from(store))) this.giveUp()
      } catch (error) {
        options.signal?.throwIfAborted()
        if (!isProxyError(error) || error.code === 'IO') throw error
        this.verifier?.breakOff()
        last = error
        // bytes of a head that were taken back are nothing gained, however often they come
        const position = this.verifier?.position ?? 0
        if (position > farthest) {
          farthest = position
          attempts = 0
        }
        // a head of which one half is another store's, or what a crash made of a file: once more from this one alone
        const isMixed = position === 0 && this.beganAt > 0 && !begunAnew.has(store)
        if (error.code === 'STORE_LOST') {
          if (++attempts === FETCH_ATTEMPTS_MAX * this.stores.length) throw error
          this.takeNext()
          if (attempts % this.stores.length === 0) await this.pause(attempts / this.stores.length)
        } else if (isMixed) {
          begunAnew.add(store)
          farthest = 0
        } else {
          this.giveUp()
          attempts = 0
        }
      }
    }
  }

  /** The first store is asked no more. */
  private giveUp(): void {
    this.stores.shift()
    this.forgetLength()
  }

  /** The first store is asked again after the others. */
  private takeNext(): void {
    if (this.stores.length < 2) return
    this.stores.push(this.stores.shift()!)
    this.forgetLength()
  }

  /** The length that a store told binds no other, unless a sound head proves it. */
  private forgetLength(): void {
    if (this.options.lengthBytes === undefined && this.head === undefined) this.verifier = undefined
  }

  /** @returns false where the store does not have it */
  private async *from(store: RemoteStore): AsyncGenerator<GoodPiece, boolean> {
    const { signal, progress } = this.options
    this.beganAt = 0
    const from = this.verifier?.position ?? 0
    let opened = await store.open(keyOfSet(this.digest), { from, tag: this.tags.get(store), signal })
    if (opened === undefined) return false
    try {
      if (opened.lengthBytes > SET_BYTES_MAX) throw strange(store.name, `a set of ${opened.lengthBytes} bytes`)
      if (this.verifier === undefined) {
        await this.setLength(opened.lengthBytes)
        if (this.verifier!.position > 0) {
          // only now is it known how much is there already
          await opened.body.return()
          const { position } = this.verifier!
          if (this.verifier!.isWhole) return true
          opened = await store.open(keyOfSet(this.digest), { from: position, tag: opened.tag, signal })
          if (opened === undefined) return false
        }
      }
      const verifier = this.verifier!
      if (opened.lengthBytes !== verifier.lengthBytes) {
        const what = `set ${this.digest.slice(0, 12)} of ${opened.lengthBytes} bytes, not ${verifier.lengthBytes}`
        throw strange(store.name, what)
      }
      this.tags.set(store, opened.tag)
      this.beganAt = verifier.position
      // a store that can only begin at the start
      let skip = verifier.position - opened.from
      for await (const chunk of opened.body) {
        const dropped = Math.min(skip, chunk.length)
        skip -= dropped
        for (const piece of verifier.push(chunk.subarray(dropped))) {
          this.receivedBytes += piece.bytes.length
          yield piece
          progress?.(verifier.position, verifier.lengthBytes)
        }
      }
      verifier.end()
      return true
    } finally {
      await opened?.body.return()
    }
  }

  /** Checks what is there already, as far as it is good. */
  private async setLength(lengthBytes: number): Promise<void> {
    const verifier = new SetVerifier(this.digest, lengthBytes)
    this.verifier = verifier
    if (!this.part) return
    const chunk = Buffer.allocUnsafe(READ_LENGTH)
    try {
      for (let at = 0; at < lengthBytes; ) {
        this.options.signal?.throwIfAborted()
        const { bytesRead } = await this.part.read(chunk, 0, Math.min(chunk.length, lengthBytes - at), at)
        if (bytesRead === 0) break
        for (const _ of verifier.push(chunk.subarray(0, bytesRead)));
        at += bytesRead
      }
    } catch (error) {
      if (!isProxyError(error)) throw error
      // up to there it is good
    }
    verifier.breakOff()
    this.options.progress?.(verifier.position, lengthBytes)
  }

  private async pause(attempt: number): Promise<void> {
    const { signal, pauseMs = pauseOf } = this.options
    await pause(pauseMs(attempt), undefined, { signal }).catch(() => signal?.throwIfAborted())
  }

  private missing(): ProxyError {
    const what = `no remote store has template set ${this.digest}`
    return new ProxyError('TEMPLATE_MISSING', what, undefined, '`pageferry store push` puts one there')
  }
}

/** Longer each time, and not the same for all hosts that lost a store at the same moment. */
function pauseOf(attempt: number): number {
  return Math.min(PAUSE_MS_MAX, 1000 * 2 ** (attempt - 1)) * (0.5 + Math.random() / 2)
}

/** Where a fetch that ends lays its part, closed: nobody writes to it any more. */
function leftPath(folder: string, digest: string): string {
  return join(folder, `.fetch-${digest}-${LEFT}${randomBytes(8).toString('hex')}.part`)
}

/** A file for this process alone, with the most that others have of the set. @returns its path @throws IO */
async function ownPart(folder: string, digest: string): Promise<string> {
  const own = join(folder, `.fetch-${digest}-${randomBytes(8).toString('hex')}.part`)
  try {
    const parts = (await partsOf(folder, digest)).sort((a, b) => b.size - a.size)
    for (const part of parts) if (await takePart(part, own)) break
    for (const { path } of parts) await rm(path, { force: true })
    return own
  } catch (error) {
    await rm(own, { force: true }).catch(() => {})
    throw ioError(error, 'cannot use store', folder)
  }
}

/** @returns false where it is gone */
async function takePart({ path, isLeft }: Part, own: string): Promise<boolean> {
  try {
    // of what was not left by its owner nobody knows whether that is dead, or was stopped and will write to it again
    if (isLeft) await rename(path, own)
    else await copyFile(path, own, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE)
    return true
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return false
    if (isLeft || !NO_ROOM.includes(code)) throw error
    await rm(own, { force: true }) // anew then: what is there makes room for it
    return true
  }
}

interface Part {
  readonly path: string
  readonly size: number
  /** Closed by its owner. */
  readonly isLeft: boolean
}

async function partsOf(folder: string, digest: string): Promise<Part[]> {
  const parts: Part[] = []
  const begin = `.fetch-${digest}-`
  for (const name of await readdir(folder)) {
    if (!name.startsWith(begin) || !name.endsWith('.part')) continue
    const path = join(folder, name)
    const found = await stat(path).catch(() => undefined)
    if (found?.isFile()) parts.push({ path, size: found.size, isLeft: name.startsWith(LEFT, begin.length) })
  }
  return parts
}

async function writeAt(file: FileHandle, bytes: Uint8Array, at: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, at + done)
    done += bytesWritten
  }
}

function recordsOf(head: SetHead): SetRecords {
  return {
    count: head.pageCount,
    vms: place => vmsOfPage(head, place),
    occurrences: place => occurrencesOfPage(head, place),
    copyDigest: (place, into, at) => {
      const from = place * RECORD_LENGTH + RECORD.DIGEST
      into.set(head.table.subarray(from, from + DIGEST_LENGTH), at)
    },
  }
}
