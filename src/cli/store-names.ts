/** `--store`, given several times: a host's own store, and remote ones. */
import { ProxyError } from '../errors.ts'
import { openRemoteStore, type StoreNames } from '../remote/open-store.ts'
import type { RemoteStore } from '../remote/remote-store.ts'

/** Takes one name each time. */
export const STORES_OPTION = {
  describe:
    "A folder: this host's own store; s3://BUCKET/PREFIX, https://HOST/PATH, file:///PATH: remote ones. May be given several times",
  type: 'string',
  array: true,
  nargs: 1,
  requiresArg: true,
} as const

export const STORE_INSECURE_OPTION = {
  describe: 'Lets --store name http:// of another host: everyone on the way reads the pages',
  type: 'boolean',
  default: false,
} as const

export const CHANNEL_OPTION = {
  describe:
    'Channel of sets to follow: those that it names are fetched from the remote stores; may be given several times',
  type: 'string',
  array: true,
  nargs: 1,
  requiresArg: true,
} as const

export const TRUST_OPTION = {
  describe: 'File with the public keys that may sign channels of sets',
  type: 'string',
  requiresArg: true,
} as const

export const SIGNERS_OPTION = {
  describe: 'File with the public keys that may sign template sets',
  type: 'string',
  requiresArg: true,
} as const

export const STORE_SIZE_OPTION = {
  describe: 'Bytes that sets of remote stores may have here: those out of force and longest unused go',
  type: 'string',
  requiresArg: true,
  defaultDescription: 'as much as the disk has',
} as const

/** The host's own. @throws USAGE where none is named */
export function requireOwn({ own }: StoreNames): string {
  if (own !== undefined) return own
  throw new ProxyError('USAGE', "no folder under --store, for this host's own sets", undefined, 'give --store DIR')
}

/** Opens the remote ones; asks none of them yet. @throws USAGE where there are none */
export async function openRemotes({ remote }: StoreNames, insecure: boolean): Promise<RemoteStore[]> {
  if (remote.length === 0) {
    const hint = 'give --store s3://BUCKET/PREFIX, https://HOST/PATH, or file:///PATH'
    throw new ProxyError('USAGE', 'no remote store under --store', undefined, hint)
  }
  return await Promise.all(remote.map(name => openRemoteStore(name, { insecure })))
}

/** The one that can be written. @throws USAGE where there is none, or several */
export async function openWritable(names: StoreNames, insecure: boolean): Promise<RemoteStore> {
  const stores = await openRemotes(names, insecure)
  const writable = stores.filter(({ writer }) => writer !== undefined)
  if (writable.length === 1) return writable[0]!
  const what = writable.length === 0 ? `${stores[0]!.name} can only be read` : 'several stores that can be written'
  throw new ProxyError('USAGE', what, undefined, 'give one of s3://BUCKET/PREFIX or file:///PATH')
}
