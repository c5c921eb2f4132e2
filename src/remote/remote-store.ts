/**
 * A remote store: template sets under their digests, and channels that name those in force, in a folder, behind HTTPS, or
 * in S3. docs/adr/0012-remote-stores.md. What it answers is believed by nobody: sets are verified, channels are signed.
 */
import type { Readable } from 'node:stream'
import { isProxyError, ProxyError } from '../errors.ts'
import { STORE_STALL_BYTES, STORE_STALL_MS } from '../limits.ts'
import { setFileName } from '../template/wire.ts'

/** Whether it names a remote store: it has a scheme. Anything else is a folder, a host's own store. */
export function isRemoteName(name: string): boolean {
  return /^[a-z][a-z0-9+.-]*:\/\//i.test(name)
}

/** A small object, whole. */
export interface SmallObject {
  readonly bytes: Uint8Array
  /** Another one as soon as the object changes; undefined where the store tells none. */
  readonly tag: string | undefined
}

/** A large object, opened. */
export interface OpenObject {
  /** Bytes of the whole object. */
  readonly lengthBytes: number
  readonly tag: string | undefined
  /** Where `body` begins: what was asked for, or 0 where the object has changed or the store cannot begin elsewhere. */
  readonly from: number
  /**
   * Exactly the bytes from there to the end. Whoever does not read it to the end leaves the loop or calls `return`, which
   * closes the connection, also of a body that was never begun. @throws STORE_LOST where it breaks off or stalls
   */
  readonly body: AsyncGenerator<Uint8Array, void>
}

export interface OpenOptions {
  /** Byte to begin at. */
  readonly from?: number | undefined
  /** Of the object whose beginning we have. */
  readonly tag?: string | undefined
  readonly signal?: AbortSignal | undefined
}

export interface ListedObject {
  readonly key: string
  readonly lengthBytes: number
}

/** All that hosts need. Every method throws STORE_LOST, STORE_REFUSED, STORE_ANSWER, and the signal's reason. */
export interface RemoteStore {
  /** As the operator gave it. */
  readonly name: string
  /**
   * A small object.
   * @param unlessTag of what is known: then there is no need for the bytes
   * @returns undefined where there is none
   * @throws STORE_ANSWER where it is longer than `maxBytes`
   */
  read(
    key: string,
    maxBytes: number,
    options?: { readonly unlessTag?: string | undefined; readonly signal?: AbortSignal | undefined },
  ): Promise<SmallObject | 'unchanged' | undefined>
  /** @returns undefined where there is none */
  open(key: string, options?: OpenOptions): Promise<OpenObject | undefined>
  /** @returns undefined where there is none */
  lengthOf(key: string, signal?: AbortSignal): Promise<number | undefined>
  /** Where it can be written. */
  readonly writer: StoreWriter | undefined
  /** Ends idle connections. */
  close(): void
}

/** Bytes that are read from where one wants them, one read at a time: `SetBytes`, for one. */
export interface ReadAt {
  readonly lengthBytes: number
  /** As `FileHandle.read`. */
  read(into: Uint8Array, at: number, length: number, position: number): Promise<{ readonly bytesRead: number }>
}

/** What writing needs beside that. */
export interface StoreWriter {
  /** Objects whose keys begin so, in no order. */
  list(prefix: string): AsyncGenerator<ListedObject, void>
  /**
   * Puts a large object under a key where there is nothing: whole, or not at all. A key of a set stands for its content, so
   * whoever comes second changes nothing.
   * @param progress told how many bytes more have gone
   * @returns false where something is there already
   * @throws IO where it cannot be read
   */
  put(key: string, source: ReadAt, progress?: (bytes: number) => void, signal?: AbortSignal): Promise<boolean>
  /**
   * Puts a small object in place of the one with this tag.
   * @param tag undefined: there must be none
   * @returns false where another one is there, and nothing was done
   */
  replace(key: string, bytes: Uint8Array, tag: string | undefined, signal?: AbortSignal): Promise<boolean>
  /** Removes what is there. */
  remove(key: string): Promise<void>
}

/** Where sets stand. */
export const SETS = 'sets/'

export function keyOfSet(digest: string): string {
  return SETS + setFileName(digest)
}

/** @param name checked: {@link isChannelName} */
export function keyOfChannel(name: string): string {
  return `channels/${name}.json`
}

/** What was in force. Ten digits, so that a listing has them in order. */
export function keyOfOldChannel(name: string, serial: number): string {
  return `channels/${name}/${String(serial).padStart(10, '0')}.json`
}

/** What was in force, in order: a listing of this prefix. */
export function oldChannelsOf(name: string): string {
  return `channels/${name}/`
}

/** @returns undefined where it is not the key of such a document */
export function serialOfOldChannel(name: string, key: string): number | undefined {
  const serial = Number(/^(\d{10,16})\.json$/.exec(key.slice(oldChannelsOf(name).length))?.[1])
  return Number.isSafeInteger(serial) && key === keyOfOldChannel(name, serial) ? serial : undefined
}

/** Channel names are parts of paths and of URLs, as they are. */
export function isChannelName(name: string): boolean {
  return /^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$/.test(name)
}

/** @throws USAGE where the store can only be read */
export function writerOf(store: RemoteStore): StoreWriter {
  if (store.writer) return store.writer
  throw new ProxyError(
    'USAGE',
    `${store.name} can only be read`,
    undefined,
    'write to a folder, or to s3://BUCKET/PREFIX',
  )
}

/** @param store its name @param cause an error of the system, whose code tells more than its text */
export function lost(store: string, what: string, cause?: unknown): ProxyError {
  const why = cause === undefined ? '' : `: ${reasonOf(cause)}`
  const action =
    'what is there stays in use; it is tried again by itself, or run the command again: it goes on where it ended'
  return new ProxyError('STORE_LOST', `${store}: ${what}${why}`, undefined, action, { cause })
}

export function refused(store: string, what: string, action: string, cause?: unknown): ProxyError {
  return new ProxyError('STORE_REFUSED', `${store}: ${what}`, undefined, action, { cause })
}

export function strange(store: string, what: string): ProxyError {
  const action = 'nothing of it is used; is this address a store, and nothing between that changes what it says?'
  return new ProxyError('STORE_ANSWER', `${store}: ${what}`, undefined, action)
}

/** Several addresses of one host fail together, without a text of their own. */
function reasonOf(cause: unknown): string {
  if (cause instanceof AggregateError && cause.message === '') return cause.errors.map(reasonOf).join(', ')
  return cause instanceof Error ? cause.message || ((cause as NodeJS.ErrnoException).code ?? cause.name) : String(cause)
}

/**
 * A body of so many bytes, no fewer and no more, that comes at a bearable pace.
 *
 * @param stream ours: destroyed at the end, whichever it is
 * @throws STORE_LOST where it stalls or ends early, STORE_ANSWER where there is more, the signal's reason
 */
export function bodyOf(
  stream: Readable,
  lengthBytes: number,
  store: string,
  signal?: AbortSignal,
  stallMs = STORE_STALL_MS,
): AsyncGenerator<Uint8Array, void> {
  const body = piecesOf(stream, lengthBytes, store, signal, stallMs)
  const end = body.return.bind(body)
  // a generator that was never begun runs no `finally`
  body.return = value => {
    stream.destroy()
    return end(value)
  }
  stream.on('error', () => {}) // whoever reads it is told; what nobody reads may break
  return body
}

async function* piecesOf(
  stream: Readable,
  lengthBytes: number,
  store: string,
  signal: AbortSignal | undefined,
  stallMs: number,
): AsyncGenerator<Uint8Array, void> {
  let have = 0
  let seen = 0
  // what the reader takes for a piece is its own affair, and no stall of the store
  let readerSinceMs: number | undefined
  let readerMs = 0
  const watch = setInterval(() => {
    const isReaders = readerSinceMs !== undefined || readerMs > stallMs / 2
    if (!isReaders && have - seen < STORE_STALL_BYTES) {
      stream.destroy(lost(store, `stalls: ${have - seen} bytes in ${stallMs / 1000} s`))
    }
    seen = have
    readerMs = 0
  }, stallMs)
  const abort = (): void => void stream.destroy(signal!.reason)
  signal?.addEventListener('abort', abort)
  try {
    signal?.throwIfAborted()
    for await (const chunk of stream as AsyncIterable<Uint8Array>) {
      if (have + chunk.length > lengthBytes) throw strange(store, `more than the ${lengthBytes} bytes that it promised`)
      have += chunk.length
      readerSinceMs = performance.now()
      yield chunk
      readerMs += performance.now() - readerSinceMs
      readerSinceMs = undefined
    }
    if (have < lengthBytes) throw lost(store, `broke off after ${have} of ${lengthBytes} bytes`)
  } catch (error) {
    if (signal?.aborted) throw signal.reason
    throw isProxyError(error) ? error : lost(store, `broke off after ${have} of ${lengthBytes} bytes`, error)
  } finally {
    clearInterval(watch)
    signal?.removeEventListener('abort', abort)
    stream.destroy()
  }
}

/** So many bytes from there, all of them. @throws IO where it has become shorter */
export async function readFully(source: ReadAt, position: number, into: Uint8Array): Promise<void> {
  for (let have = 0; have < into.length; ) {
    const { bytesRead } = await source.read(into, have, into.length - have, position + have)
    if (bytesRead === 0) {
      const what = `what is sent became shorter than ${source.lengthBytes} bytes while it was read`
      throw new ProxyError('IO', what, undefined, 'nothing was written')
    }
    have += bytesRead
  }
}

/** A body in one piece. @throws as {@link bodyOf} */
export async function wholeBody(body: AsyncIterable<Uint8Array>, lengthBytes: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(lengthBytes)
  let at = 0
  for await (const piece of body) {
    bytes.set(piece, at)
    at += piece.length
  }
  return bytes
}
