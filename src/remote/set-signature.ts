/**
 * Who made a set: a small signed document beside its file, here and in remote stores. docs/adr/0016-life-of-a-set.md. The
 * digest in it is of all that the set is, so whoever signs it signs every page. Written in one form only, as a channel's
 * document is, with the same kind of keys.
 */
import { type KeyObject, sign, verify } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, lstat, mkdir, open } from 'node:fs/promises'
import { join } from 'node:path'
import { isProxyError, ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { SET_SIGNATURE_BYTES_MAX, SET_SIGNATURES_MAX } from '../limits.ts'
import { putBeside } from '../store/template-store.ts'
import { signatureFileName } from '../template/wire.ts'
import { keyIdOf } from './channel.ts'
import { readTrustedKeys } from './channel-keys.ts'
import { lost, type RemoteStore, SETS, writerOf } from './remote-store.ts'

const VERSION = 1
/** What is signed begins so: no signature of ours can be taken for one of another purpose. */
const CONTEXT = 'pageferry set 1\n'
const SIGNATURE_LENGTH = 64
/** Somebody else signs in the same moment: once is a chance, more often is something else. */
const PUT_TRIES = 4
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/

/** A document whose form is sound; whether it is to be believed is another matter: {@link signerOf}. */
export interface SetSignature {
  readonly digest: string
  /** When it was signed first, as the signer's clock had it. */
  readonly signedMs: number
  readonly signatures: readonly { readonly key: string; readonly signature: Uint8Array }[]
}

function signedText({ digest, signedMs }: Pick<SetSignature, 'digest' | 'signedMs'>): string {
  return JSON.stringify({ digest, signed: new Date(signedMs).toISOString(), version: VERSION })
}

function bytesOf(document: SetSignature): Buffer {
  const listed = document.signatures.map(({ key, signature }) => ({
    key,
    signature: Buffer.from(signature).toString('base64'),
  }))
  return Buffer.from(`{"set":${signedText(document)},"signatures":${JSON.stringify(listed)}}\n`)
}

const signedBytes = (document: Pick<SetSignature, 'digest' | 'signedMs'>): Buffer =>
  Buffer.from(CONTEXT + signedText(document))

/**
 * Signs a set, beside those who have.
 * @param before what there is of it already
 * @throws USAGE where too many have
 */
export function signSet(digest: string, key: KeyObject, nowMs: number, before?: SetSignature): SetSignature {
  const said = { digest, signedMs: before?.signedMs ?? nowMs }
  const id = keyIdOf(key)
  const others = before?.signatures.filter(({ key: other }) => other !== id) ?? []
  if (others.length >= SET_SIGNATURES_MAX) {
    const what = `set ${digest.slice(0, 12)} has ${others.length} signatures already`
    throw new ProxyError('USAGE', what, undefined, 'remove its .sig file, and sign it anew')
  }
  return { ...said, signatures: [...others, { key: id, signature: sign(null, signedBytes(said), key) }] }
}

/**
 * Reads a document and checks its form.
 * @param digest of the set that it lies beside: one of another set in its place is refused
 * @throws TEMPLATE_UNTRUSTED
 */
export function decodeSetSignature(bytes: Uint8Array, digest: string): SetSignature {
  const wrong = (why: string, cause?: unknown): ProxyError =>
    untrusted(digest, `its signature is none: ${why}`, 'sign it again: `pageferry store sign`', cause)
  if (bytes.length > SET_SIGNATURE_BYTES_MAX) throw wrong(`more than ${SET_SIGNATURE_BYTES_MAX} bytes`)
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (cause) {
    throw wrong('no JSON', cause)
  }
  const fieldsOf = (part: unknown): Record<string, unknown> =>
    typeof part === 'object' && part !== null ? (part as Record<string, unknown>) : {}
  const { set, signatures } = fieldsOf(value)
  const said = fieldsOf(set)
  if (said.version !== VERSION) throw wrong(`version ${JSON.stringify(said.version)}, which this version does not know`)
  if (said.digest !== digest) throw wrong('it is of another set')
  const signedMs = typeof said.signed === 'string' && TIME.test(said.signed) ? Date.parse(said.signed) : Number.NaN
  if (Number.isNaN(signedMs)) throw wrong('no time')
  if (!Array.isArray(signatures) || signatures.length > SET_SIGNATURES_MAX) throw wrong('no list of signatures')
  const document: SetSignature = {
    digest,
    signedMs,
    signatures: signatures.map(entry => {
      const { key, signature } = fieldsOf(entry)
      if (typeof key !== 'string' || !/^[0-9a-f]{16}$/.test(key)) throw wrong('a key without a name')
      if (typeof signature !== 'string') throw wrong('a key without a signature')
      return { key, signature: Buffer.from(signature, 'base64') }
    }),
  }
  // one form only: no field that is not known, no other order, no other way to write the same
  if (!bytesOf(document).equals(bytes)) throw wrong('not in canonical form')
  if (document.signatures.some(({ signature }) => signature.length !== SIGNATURE_LENGTH))
    throw wrong('a signature of another length')
  return document
}

/**
 * That somebody signed the set whom this host trusts.
 * @param trusted public halves; one good signature is enough
 * @returns the name of the key
 * @throws TEMPLATE_UNTRUSTED
 */
export function signerOf(document: SetSignature, trusted: readonly KeyObject[]): string {
  const signed = signedBytes(document)
  for (const key of trusted) {
    const id = keyIdOf(key)
    for (const { key: named, signature } of document.signatures)
      if (named === id && verify(null, signed, key, signature)) return id
  }
  const by = document.signatures.map(({ key }) => key).join(', ') || 'nobody'
  const action = `keys that this host trusts: ${trusted.map(keyIdOf).join(', ') || 'none'}`
  throw untrusted(document.digest, `not signed by a trusted key, but by ${by}`, action)
}

function untrusted(digest: string, what: string, action: string, cause?: unknown): ProxyError {
  return new ProxyError('TEMPLATE_UNTRUSTED', `set ${digest.slice(0, 12)}: ${what}`, undefined, action, { cause })
}

// --- beside a host's own sets

/** What lies beside a set; undefined: nothing. @throws TEMPLATE_UNTRUSTED where it is none, IO */
export async function readSetSignature(folder: string, digest: string): Promise<SetSignature | undefined> {
  const path = join(folder, signatureFileName(digest))
  let file: FileHandle | undefined
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
    const bytes = Buffer.alloc(SET_SIGNATURE_BYTES_MAX + 1)
    const { bytesRead } = await file.read(bytes, 0, bytes.length, 0)
    return decodeSetSignature(bytes.subarray(0, bytesRead), digest)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw ioError(error, 'cannot read', path)
  } finally {
    await file?.close()
  }
}

/** Whole, and on the disk. @throws IO */
export async function writeSetSignature(folder: string, document: SetSignature): Promise<void> {
  await putBeside(join(folder, signatureFileName(document.digest)), bytesOf(document))
}

// --- beside sets of remote stores

/** Where the signature of a set stands. */
export function keyOfSignature(digest: string): string {
  return SETS + signatureFileName(digest)
}

/** Puts what lies beside a set here beside it there. @returns whether there is something @throws TEMPLATE_UNTRUSTED, IO, STORE_* */
export async function pushSignature(folder: string, remote: RemoteStore, digest: string): Promise<boolean> {
  const document = await readSetSignature(folder, digest)
  if (document === undefined) return false
  const key = keyOfSignature(digest)
  const bytes = bytesOf(document)
  for (let tries = 0; tries < PUT_TRIES; tries++) {
    const there = await remote.read(key, SET_SIGNATURE_BYTES_MAX)
    if (there !== undefined && there !== 'unchanged' && bytes.equals(there.bytes)) return true
    const tag = there === undefined || there === 'unchanged' ? undefined : there.tag
    if (await writerOf(remote).replace(key, bytes, tag)) return true
  }
  throw lost(remote.name, `the signature of set ${digest.slice(0, 12)} is changed again and again by somebody else`)
}

export interface FetchSignatureOptions {
  /** Whether what lies here will do, so that no store is asked; default: whatever it is. */
  readonly isEnough?: (here: SetSignature) => boolean
  readonly signal?: AbortSignal | undefined
}

/**
 * Brings the signature of a set here, where a store has one that says more than what lies here. What is none is left: it
 * says nothing.
 * @returns whether something was brought
 * @throws IO, STORE_* where none of the stores answered, the signal's reason, what `isEnough` throws
 */
export async function fetchSignature(
  stores: readonly RemoteStore[],
  folder: string,
  digest: string,
  { isEnough = () => true, signal }: FetchSignatureOptions = {},
): Promise<boolean> {
  const here = await readSetSignature(folder, digest).catch(error => {
    if (isProxyError(error, 'TEMPLATE_UNTRUSTED')) return undefined
    throw error
  })
  if (here && isEnough(here)) return false
  let failure: unknown
  let isAnswered = false
  for (const store of stores) {
    try {
      const found = await store.read(keyOfSignature(digest), SET_SIGNATURE_BYTES_MAX, { signal })
      isAnswered = true
      if (found === undefined || found === 'unchanged') continue
      const document = decodeSetSignature(found.bytes, digest)
      // a store that lacks one of ours takes none away, but for what this host wants
      if (here && !saysMore(document, here) && !isEnough(document)) continue
      await mkdir(folder, { recursive: true, mode: 0o700 }).catch(error => {
        throw ioError(error, 'cannot use store', folder)
      })
      await writeSetSignature(folder, document)
      return true
    } catch (error) {
      if (!isProxyError(error)) throw error
      if (error.code !== 'TEMPLATE_UNTRUSTED') failure ??= error
    }
  }
  // of several stores one may be away: the set comes from another
  if (failure && !isAnswered) throw failure
  return false
}

/** Whether all that signed here signed there, and somebody else too. */
function saysMore(there: SetSignature, here: SetSignature): boolean {
  const has = ({ key, signature }: SetSignature['signatures'][number]): boolean =>
    there.signatures.some(other => other.key === key && Buffer.compare(other.signature, signature) === 0)
  return there.signatures.length > here.signatures.length && here.signatures.every(has)
}

// --- where a site asks for it

/** Whose signatures a site wants on its sets. */
export class SetSigners {
  private readonly folder: string
  private readonly keys: string

  /**
   * @param folder of the host's own store
   * @param keys file with public keys; read each time, as things are
   * @throws USAGE, IO where it is none
   */
  constructor(folder: string, keys: string) {
    this.folder = folder
    this.keys = keys
    readTrustedKeys(keys)
  }

  /** Why sets must not be used, by digest; none of those that are signed as they must be. Never rejects. */
  async refusals(digests: readonly string[]): Promise<ReadonlyMap<string, ProxyError>> {
    const refused = new Map<string, ProxyError>()
    const refuse = (digest: string, error: unknown): void => {
      if (!isProxyError(error)) throw error
      refused.set(digest, error)
    }
    let trusted: readonly KeyObject[]
    try {
      trusted = readTrustedKeys(this.keys)
    } catch (error) {
      for (const digest of digests) refuse(digest, error)
      return refused
    }
    for (const digest of digests) {
      try {
        const document = await readSetSignature(this.folder, digest)
        if (document === undefined) throw untrusted(digest, 'nobody has signed it', SIGN_IT)
        signerOf(document, trusted)
      } catch (error) {
        refuse(digest, error)
      }
    }
    return refused
  }

  /** Another text as soon as signatures come, go or change, or the keys do. */
  async fingerprint(digests: readonly string[]): Promise<string> {
    const paths = [this.keys, ...digests.map(digest => join(this.folder, signatureFileName(digest)))]
    const states: string[] = []
    for (const path of paths) {
      const found = await lstat(path).catch(() => undefined)
      states.push(`${found?.size} ${found?.mtimeMs} ${found?.ctimeMs}`)
    }
    return states.join()
  }
}

const SIGN_IT = 'who made it signs it: `pageferry store sign`; learned sets are signed by nobody'
