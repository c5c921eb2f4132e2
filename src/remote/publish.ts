/** What an operator does to a remote store: puts sets there, and says which are in force. docs/adr/0012-remote-stores.md. */
import { createPublicKey, type KeyObject } from 'node:crypto'
import { isProxyError, ProxyError } from '../errors.ts'
import { CHANNEL_BYTES_MAX } from '../limits.ts'
import type { SetFile } from '../store/set-file.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { digestOfFileName } from '../template/wire.ts'
import { type Channel, type ChannelDocument, checkSignature, decodeChannel, encodeChannel } from './channel.ts'
import {
  keyOfChannel,
  keyOfOldChannel,
  keyOfSet,
  oldChannelsOf,
  type RemoteStore,
  SETS,
  serialOfOldChannel,
  writerOf,
} from './remote-store.ts'
import { pushSignature } from './set-signature.ts'

export interface Pushed {
  readonly digest: string
  readonly lengthBytes: number
  /** It was there already. */
  readonly existed: boolean
}

/**
 * Puts a set of a host's own store into a remote one, every page checked before, and who signed it.
 * @param key of this host, where its sets are kept encrypted; in the remote store they are not
 * @param progress told how many bytes have gone, of all
 * @throws USAGE, TEMPLATE_*, IO, STORE_*, the signal's reason
 */
export async function pushSet(
  store: TemplateStore,
  remote: RemoteStore,
  digest: string,
  progress?: (doneBytes: number, totalBytes: number) => void,
  signal?: AbortSignal,
): Promise<Pushed> {
  const writer = writerOf(remote)
  const set = await store.open(digest)
  try {
    const { lengthBytes } = set.bytes
    const key = keyOfSet(set.head.digest)
    const there = await remote.lengthOf(key, signal)
    if (there !== undefined && there !== lengthBytes) throw otherLength(remote, set.head.digest, there, lengthBytes)
    if (there === undefined) await requireSound(set)
    let doneBytes = 0
    const more = (bytes: number): void => {
      doneBytes += bytes
      progress?.(doneBytes, lengthBytes)
    }
    const isPut = there === undefined && (await writer.put(key, set.bytes, more, signal))
    await pushSignature(store.folder, remote, set.head.digest)
    return { digest: set.head.digest, lengthBytes, existed: !isPut }
  } finally {
    await set.close()
  }
}

async function requireSound(set: SetFile): Promise<void> {
  if (await set.isSound()) return
  const where = { stream: set.path }
  throw new ProxyError('TEMPLATE_DAMAGED', `${set.path} is damaged`, where, 'nothing was written; build the set again')
}

function otherLength(remote: RemoteStore, digest: string, there: number, here: number): ProxyError {
  const what = `${remote.name}: set ${digest.slice(0, 12)} has ${there} bytes there and ${here} here`
  return new ProxyError('TEMPLATE_DAMAGED', what, undefined, `what is there is not sound: remove ${keyOfSet(digest)}`)
}

/**
 * The one set of a remote store whose digest starts so. A whole digest is not looked for.
 * @throws TEMPLATE_MISSING, USAGE where there are several, or digits are missing and the store cannot be listed; STORE_*
 */
export async function findRemoteSet(remote: RemoteStore, prefix: string): Promise<string> {
  const wanted = (digestOfFileName(prefix) ?? prefix).toLowerCase()
  if (/^[0-9a-f]{64}$/.test(wanted)) return wanted
  if (!/^[0-9a-f]+$/.test(wanted)) throw new ProxyError('USAGE', `${prefix} is no digest`, undefined, 'give its digits')
  if (!remote.writer) {
    const action = 'give all 64 digits'
    throw new ProxyError('USAGE', `${remote.name} cannot be listed, to find set ${prefix}`, undefined, action)
  }
  const found: string[] = []
  for await (const { key } of remote.writer.list(SETS + wanted)) {
    const digest = digestOfFileName(key.slice(SETS.length))
    if (digest !== undefined) found.push(digest)
  }
  if (found.length === 1) return found[0]!
  if (found.length > 1) {
    const what = `${found.length} template sets of ${remote.name} begin with ${prefix}`
    throw new ProxyError('USAGE', what, undefined, 'give more digits')
  }
  const what = `no template set ${prefix} in ${remote.name}`
  throw new ProxyError('TEMPLATE_MISSING', what, undefined, '`pageferry store push` puts one there')
}

export interface PublishOptions {
  readonly remote: RemoteStore
  readonly channel: string
  /** That sign: one, or two while hosts learn to trust another one. */
  readonly keys: readonly KeyObject[]
  /** Public halves that may have signed what is there, beside the keys' own. */
  readonly trusted: readonly KeyObject[]
  readonly expiresMs: number
  readonly notBeforeMs: number
  readonly overlapMs: number
  /** In place of counting on, where what is there cannot be believed. */
  readonly serial?: number | undefined
  readonly nowMs: number
}

/**
 * Says that these sets are in force.
 * @param digests whole ones; the sets have to be in the store
 * @throws USAGE, CHANNEL_CONFLICT, CHANNEL_UNTRUSTED, CHANNEL_FORMAT, STORE_*
 */
export async function promote(options: PublishOptions, digests: readonly string[]): Promise<Channel> {
  const current = await readCurrent(options)
  return await put(options, current, digests)
}

/**
 * Says that the sets of an earlier document are in force again: a new document with the next serial.
 * @param toSerial undefined: the last one before that names other sets
 * @throws as {@link promote}; CHANNEL_MISSING where there is no such document
 */
export async function rollback(options: PublishOptions, toSerial?: number): Promise<Channel & { from: number }> {
  const { remote, channel } = options
  const writer = writerOf(remote)
  const current = await readCurrent(options)
  const setsOf = (sets: Channel['sets']): string => sets.map(({ digest }) => digest).join()
  const serials: number[] = []
  for await (const { key } of writer.list(oldChannelsOf(channel))) {
    const serial = serialOfOldChannel(channel, key)
    if (serial === undefined || (current && serial >= current.document.channel.serial)) continue
    if (toSerial === undefined || serial === toSerial) serials.push(serial)
  }
  for (const serial of serials.sort((a, b) => b - a)) {
    const old = await remote.read(keyOfOldChannel(channel, serial), CHANNEL_BYTES_MAX)
    if (old === undefined || old === 'unchanged') continue
    // whoever may write to the store must not choose what is signed anew
    const document = believed(old.bytes, options)
    if (document.channel.serial !== serial) continue
    const { sets } = document.channel
    if (toSerial === undefined && current && setsOf(sets) === setsOf(current.document.channel.sets)) continue
    const said = await put(
      options,
      current,
      sets.map(({ digest }) => digest),
    )
    return { ...said, from: serial }
  }
  const what = `channel of sets ${channel} of ${remote.name} has no earlier document ${toSerial === undefined ? 'with other sets' : `of serial ${toSerial}`}`
  throw new ProxyError('CHANNEL_MISSING', what, undefined, '`pageferry store promote` names sets by hand')
}

interface Current {
  readonly document: ChannelDocument
  readonly tag: string | undefined
}

/** What is there now. @throws CHANNEL_* where it is not to be believed, and no serial is given */
async function readCurrent({ remote, channel, ...options }: PublishOptions): Promise<Current | undefined> {
  const found = await remote.read(keyOfChannel(channel), CHANNEL_BYTES_MAX)
  if (found === undefined || found === 'unchanged') return undefined
  return { document: believed(found.bytes, { remote, channel, ...options }), tag: found.tag }
}

function believed(bytes: Uint8Array, { channel, keys, trusted }: PublishOptions): ChannelDocument {
  try {
    const document = decodeChannel(bytes, channel)
    checkSignature(document, [...keys.map(key => createPublicKey(key)), ...trusted])
    return document
  } catch (error) {
    if (!isProxyError(error)) throw error
    const action =
      'who wrote it? --trust takes a key that may have; or remove it, and promote with --serial, higher than hosts have seen'
    throw new ProxyError(error.code, error.what, undefined, action, { cause: error })
  }
}

async function put(
  options: PublishOptions,
  current: Current | undefined,
  digests: readonly string[],
): Promise<Channel> {
  const { remote, channel, keys, expiresMs, notBeforeMs, overlapMs, nowMs } = options
  const writer = writerOf(remote)
  const sets: Channel['sets'][number][] = []
  for (const digest of new Set(digests)) {
    const bytes = await remote.lengthOf(keyOfSet(digest))
    if (bytes === undefined) {
      const what = `${remote.name} does not have set ${digest}`
      throw new ProxyError('CHANNEL_CONFLICT', what, undefined, 'nothing was changed; push it first')
    }
    sets.push({ digest, bytes })
  }
  const last = current?.document.channel.serial ?? 0
  const serial = options.serial ?? last + 1
  if (serial <= last) {
    throw new ProxyError('USAGE', `serial ${serial}, and ${last} is in force`, undefined, 'give a higher one, or none')
  }
  const said: Channel = { channel, expiresMs, issuedMs: nowMs, notBeforeMs, overlapMs, serial, sets }
  const bytes = encodeChannel(said, keys)
  if (current) await writer.replace(keyOfOldChannel(channel, last), current.document.bytes, undefined)
  if (!(await writer.replace(keyOfChannel(channel), bytes, current?.tag))) {
    const what = `channel of sets ${channel} of ${remote.name} was changed by somebody else meanwhile`
    throw new ProxyError(
      'CHANNEL_CONFLICT',
      what,
      undefined,
      'nothing was changed; look what is in force, and try again',
    )
  }
  return decodeChannel(bytes, channel).channel
}
