/** Keys that sign channels, in files: PEM, as `openssl genpkey -algorithm ed25519` writes them too. */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'

/** A file of keys: some hundred public ones. */
const FILE_BYTES_MAX = 65_536
const PUBLIC_PEM = /-----BEGIN PUBLIC KEY-----[^-]*-----END PUBLIC KEY-----/g

/** PEM of both halves of a new key. */
export function makeChannelKey(): { readonly privatePem: string; readonly publicPem: string } {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  return {
    privatePem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string,
    publicPem: publicKey.export({ format: 'pem', type: 'spki' }) as string,
  }
}

/** The key that signs. @throws USAGE where it is none, or others may use it; IO */
export function readSigningKey(path: string): KeyObject {
  const { text, mode } = readKeyFile(path)
  if ((mode & 0o007) !== 0) throw bad(path, 'everyone on this host may use it', `chmod 600 ${path}`)
  try {
    return requireEd25519(createPrivateKey(text), path)
  } catch (error) {
    if (error instanceof ProxyError) throw error
    throw bad(path, 'no private key', 'give the file that signs: `pageferry store key` makes one', error)
  }
}

/** Keys that are trusted: one public key in PEM or several, one after the other. @throws USAGE, IO */
export function readTrustedKeys(path: string): KeyObject[] {
  const { text } = readKeyFile(path)
  // createPublicKey takes a private key too: a host that has it is not meant to
  const found = text.match(PUBLIC_PEM) ?? []
  if (found.length === 0) throw bad(path, 'no public key', 'give the file NAME.pub that `pageferry store key` made')
  return found.map(pem => {
    try {
      return requireEd25519(createPublicKey(pem), path)
    } catch (error) {
      if (error instanceof ProxyError) throw error
      throw bad(path, 'a damaged public key', 'copy it again', error)
    }
  })
}

function requireEd25519(key: KeyObject, path: string): KeyObject {
  if (key.asymmetricKeyType === 'ed25519') return key
  throw bad(path, `a key of ${key.asymmetricKeyType}`, 'give an Ed25519 key: `pageferry store key` makes one')
}

function readKeyFile(path: string): { text: string; mode: number } {
  let fd = -1
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK) // a FIFO would be waited for, for ever
    const found = fstatSync(fd)
    if (!found.isFile()) throw bad(path, 'not a regular file', 'give a file with a key')
    const bytes = Buffer.alloc(FILE_BYTES_MAX + 1)
    const length = readSync(fd, bytes)
    if (length > FILE_BYTES_MAX) throw bad(path, `more than ${FILE_BYTES_MAX} bytes`, 'give a file with keys only')
    return { text: bytes.toString('latin1', 0, length), mode: found.mode }
  } catch (error) {
    throw ioError(error, 'cannot read key', path)
  } finally {
    if (fd >= 0) closeSync(fd)
  }
}

function bad(path: string, what: string, action: string, cause?: unknown): ProxyError {
  return new ProxyError('USAGE', `${path}: ${what}`, undefined, action, { cause })
}
