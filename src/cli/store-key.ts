/** `--store-key`, for every command that reads or writes a store. */
import { ProxyError } from '../errors.ts'
import { isRemoteName } from '../remote/remote-store.ts'
import { readStoreKey, type StoreKey } from '../store/cipher.ts'
import { TemplateStore } from '../store/template-store.ts'

export const STORE_KEY_OPTION = {
  describe: 'File with the key of this host (32 bytes, or 64 hex digits): sets are stored encrypted',
  type: 'string',
  requiresArg: true,
} as const

/** The key of `--store-key`. @throws USAGE, IO */
export function storeKeyOf(path: string | undefined): StoreKey | undefined {
  return path === undefined ? undefined : readStoreKey(path)
}

/** The store of `--store` and `--store-key`, which has to be there. @throws USAGE, IO */
export async function existingStore(folder: string, keyPath: string | undefined): Promise<TemplateStore> {
  const store = openStore(folder, keyPath)
  await store.requireThere()
  return store
}

/** The store of `--store` and `--store-key`, which may still have to be made. @throws USAGE, IO */
export function openStore(folder: string, keyPath: string | undefined): TemplateStore {
  if (isRemoteName(folder)) {
    const hint = 'give a folder; `pageferry store pull` and `store push` bring sets from one to the other'
    throw new ProxyError('USAGE', `${folder} is a remote store`, undefined, hint)
  }
  return new TemplateStore(folder, storeKeyOf(keyPath))
}
