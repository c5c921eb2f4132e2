/** `--check` of the proxies: everything that a start would find wrong, with nothing bound, dialled or written. */
import { accessSync, constants, statSync } from 'node:fs'
import { join } from 'node:path'
import { requireHook } from '../daemon/hook.ts'
import type { CommonSettings } from '../daemon/settings.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { Credentials, type CredentialsOptions } from '../link/credentials.ts'
import { type Address, parseAddress, requireApart } from '../relay/address.ts'
import { checkListen, type ListenOptions } from '../relay/listener.ts'
import { readTrustedKeys } from '../remote/channel-keys.ts'
import { openRemoteStore } from '../remote/open-store.ts'
import { TemplateStore } from '../store/template-store.ts'
import { setFileName } from '../template/wire.ts'
import { print, printLines, tell } from './output.ts'
import { storeKeyOf } from './store-key.ts'

/** One thing that is wrong with settings. */
export interface Shortcoming {
  readonly what: string
  readonly hint: string
}

/** Runs, and notes what it throws. @param key of the setting, in a file, or the option */
export type Look = (key: string | readonly PropertyKey[], look: () => unknown) => Promise<void>

/** @param note is handed what was wrong, and with which setting */
export function looker(note: (key: string | readonly PropertyKey[], error: ProxyError) => void): Look {
  return async (key, look) => {
    try {
      await look()
    } catch (error) {
      if (!isProxyError(error)) throw error
      note(key, error)
    }
  }
}

/** What settings name and this host does not have, or may not read: keys, certificates, stores. */
export async function missingThings(
  settings: CommonSettings,
  roles: readonly Omit<CredentialsOptions, 'directory'>[],
  look: Look,
): Promise<void> {
  const { tlsCreds, store, storeKey, signers, supply, learn, control, metrics, hook } = settings
  const isWritten = learn !== 'off' || supply !== undefined
  if (tlsCreds !== undefined)
    for (const role of roles) await look('tls-creds', () => void new Credentials({ ...role, directory: tlsCreds }))
  if (store !== undefined) await look('store', () => checkStore(store, isWritten))
  if (storeKey !== undefined) await look('store-key', () => void storeKeyOf(storeKey))
  if (signers !== undefined) await look('signers', () => void readTrustedKeys(signers))
  if (supply !== undefined) {
    const { trust, remote, insecure } = supply
    await look('trust', () => void readTrustedKeys(trust))
    for (const [i, name] of remote.entries())
      await look(['remote-stores', i], async () => (await openRemoteStore(name, { insecure })).close())
  }
  if (control !== undefined) await look('control', () => checkListen(parseAddress(`unix:${control}`)))
  if (metrics !== undefined) await look('metrics', () => checkListen(metrics))
  if (hook !== undefined) await look('hook', () => void requireHook(hook))
}

/** @throws IO */
async function checkStore(path: string, isWritten: boolean): Promise<void> {
  checkFolder(path, isWritten)
  // what somebody else put there, root for one: a start goes on without these
  const names = (await new TemplateStore(path).digests()).map(setFileName)
  const shut = names.filter(name => isShut(join(path, name)))
  if (shut.length === 0) return
  const what = `the store ${path}: ${shut.length} of ${names.length} sets may not be read by this user, such as ${shut[0]}`
  throw new ProxyError('IO', what, undefined, 'give them to the user that the proxy runs as: chown -R USER: FOLDER')
}

function isShut(path: string): boolean {
  try {
    accessSync(path, constants.R_OK)
    return false
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EACCES'
  }
}

/** @throws IO */
function checkFolder(path: string, isWritten: boolean): void {
  try {
    if (!statSync(path).isDirectory()) throw new ProxyError('IO', `${path} is no folder`, undefined, 'give a folder')
    accessSync(path, constants.R_OK | constants.X_OK | (isWritten ? constants.W_OK : 0))
  } catch (error) {
    if (isProxyError(error)) throw error
    const hint = 'make it, for the user that the proxy runs as: install -d -m 700 -o USER FOLDER'
    const { code, message } = error as NodeJS.ErrnoException
    const what = code === 'ENOENT' ? `the store ${path} does not exist` : message
    throw new ProxyError('IO', what, undefined, hint, { cause: error })
  }
}

export interface CheckedOptions {
  readonly json: boolean
  /** Reads those that both proxies have; `note` is handed each that is wrong, which is left out. */
  readonly common: (note: (error: ProxyError) => void) => CommonSettings
  /** What is wrong beside that, with memory or keys, once they are read. @throws ProxyError */
  readonly memory: (settings: CommonSettings) => unknown
  /** Read those of this proxy, each by itself: a start stops at the first that is wrong. @throws ProxyError from each */
  readonly own: readonly (() => unknown)[]
  readonly role: Omit<CredentialsOptions, 'directory'>
}

/** `--check` of options. @throws USAGE where something is wrong, after each was told */
export async function checkOptions({ json, common, memory, own, role }: CheckedOptions): Promise<void> {
  const mistakes: Shortcoming[] = []
  const look = looker((_, { what, action }) => mistakes.push({ what, hint: action }))
  const settings = common(({ what, action }) => mistakes.push({ what, hint: action }))
  const isKnown = mistakes.length === 0
  for (const read of own) await look('', read)
  if (isKnown) await look('', () => memory(settings))
  await missingThings(settings, [role], look)
  if (mistakes.length === 0) {
    print(json ? '[]' : 'no mistakes')
    return
  }
  tellMistakes(json, mistakes, () => '')
  throw wrong('the options', mistakes.length)
}

/** For `CheckedOptions.own`. @param read a text of `--listen`. @throws from each, as a start would */
export function listenChecks(
  listen: readonly string[],
  read: (text: string) => Address,
  options: ListenOptions,
): (() => unknown)[] {
  const addresses: Address[] = []
  const each = listen.map(text => async () => {
    const address = read(text)
    addresses.push(address)
    await checkListen(address, options)
  })
  return [...each, () => requireApart(addresses)]
}

/** @param where stands before what is wrong */
export function tellMistakes<M extends Shortcoming>(
  json: boolean,
  mistakes: readonly M[],
  where: (mistake: M) => string,
): void {
  if (json) printLines(JSON.stringify(mistakes, null, 2))
  else
    for (const mistake of mistakes) {
      tell(`${where(mistake)}${mistake.what}`)
      tell(`  hint: ${mistake.hint}`)
    }
}

export function wrong(place: string, count: number): ProxyError {
  const what = `${count} mistake${count === 1 ? '' : 's'} in ${place}`
  return new ProxyError('USAGE', what, undefined, 'mend them and try `--check` again')
}
