/** Which kind of store a name means. */
import { fileURLToPath } from 'node:url'
import { ProxyError } from '../errors.ts'
import { FolderStore } from './folder-store.ts'
import { isRemoteName, type RemoteStore } from './remote-store.ts'

export interface OpenStoreOptions {
  /** Allows `http://` to other hosts: sets cross readable by all on the way. */
  readonly insecure?: boolean | undefined
}

/**
 * Opens what a name stands for: `s3://BUCKET/PREFIX`, `https://HOST/PATH`, or `file:///PATH`. Asks nobody yet.
 * @throws USAGE
 */
export async function openRemoteStore(name: string, options: OpenStoreOptions = {}): Promise<RemoteStore> {
  if (name.startsWith('s3://')) {
    const { S3Store } = await import('./s3-store.ts') // loads in a tenth of a second, and needs a package
    return await S3Store.of(name, options)
  }
  if (/^https?:\/\//.test(name)) {
    const { HttpStore } = await import('./http-store.ts') // node:http costs every command that starts 30 ms
    return new HttpStore(name, options)
  }
  if (/^file:\/\/\/[^?#]/.test(name) && URL.canParse(name)) return new FolderStore(fileURLToPath(name), name)
  const action = 'give s3://BUCKET/PREFIX, https://HOST/PATH, or file:///PATH'
  throw new ProxyError('USAGE', `${name}: no such kind of store`, undefined, action)
}

export interface StoreNames {
  /** Folder of the host's own. */
  readonly own: string | undefined
  readonly remote: readonly string[]
}

/** Which is which. @throws USAGE where several are the host's own */
export function storeNames(names: readonly string[] | undefined): StoreNames {
  const remote = (names ?? []).filter(isRemoteName)
  const own = (names ?? []).filter(name => !isRemoteName(name))
  if (own.length > 1) {
    const hint = "the first is this host's own: write a shared folder as file:///PATH"
    throw new ProxyError('USAGE', `--store ${own[0]} and --store ${own[1]}`, undefined, hint)
  }
  return { own: own[0], remote }
}
