/**
 * A set file kept encrypted: the same bytes in sealed chunks. docs/template-format.md, "Encrypted files". AES-256-GCM
 * under a key of the file, derived from the host's: chunks cannot be changed, cut off, swapped or taken from another file.
 */
import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto'
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { readU32, readU64, writeU32, writeU64 } from '../bytes/big-endian.ts'
import { copyOf } from '../bytes/copy.ts'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { SEALED_MAGIC as MAGIC } from '../template/wire.ts'

export const SEALED_MAGIC = Buffer.from(MAGIC)
const VERSION = 1
/** Offsets in the header. */
const HEADER = { VERSION: 8, CHUNK: 12, LENGTH: 16, KEY_ID: 24, SALT: 32 } as const
export const SEALED_HEADER_LENGTH = 64
const KEY_LENGTH = 32
/** A key as text: digits and a line end. */
const KEY_TEXT_LENGTH_MAX = 2 * KEY_LENGTH + 2
const KEY_ID_LENGTH = 8
const TAG_LENGTH = 16
const NONCE_LENGTH = 12
/** Plain bytes of a chunk: a read of 1 MiB takes 16 of them, and a head that is read alone wastes little. */
export const CHUNK_LENGTH = 65_536
const CIPHER = 'aes-256-gcm'

/** The key of a host, and how it is known without being told. */
export class StoreKey {
  /** First bytes of a value derived from it: tells a wrong key from a damaged file. */
  readonly id: Buffer
  private readonly key: Uint8Array

  constructor(key: Uint8Array) {
    this.key = key
    this.id = Buffer.from(hkdfSync('sha256', key, '', 'pageferry store key id', KEY_ID_LENGTH))
  }

  /** The key under which page counts tell pages apart, derived: counts do not open sets. */
  countKey(): Uint8Array {
    return new Uint8Array(hkdfSync('sha256', this.key, '', 'pageferry page counts', KEY_LENGTH))
  }

  fileKey(salt: Uint8Array): Uint8Array {
    return new Uint8Array(hkdfSync('sha256', this.key, salt, 'pageferry set file', KEY_LENGTH))
  }
}

/**
 * Reads a key file: 32 bytes, or 64 hexadecimal digits and at most a line end.
 * @throws USAGE where it is no key, or everyone may read it; IO
 */
export function readStoreKey(path: string, option = '--store-key'): StoreKey {
  const bad = (what: string, action: string): ProxyError =>
    new ProxyError('USAGE', `${option} ${path}: ${what}`, undefined, action)
  let bytes = Buffer.alloc(KEY_TEXT_LENGTH_MAX + 1)
  let fd = -1
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK) // a FIFO would be waited for, for ever
    const stat = fstatSync(fd)
    if (!stat.isFile()) throw bad('not a regular file', 'give a file with a key: openssl rand -hex 32')
    if ((stat.mode & 0o007) !== 0) throw bad('everyone on this host may use it', `chmod 600 ${path}`)
    bytes = bytes.subarray(0, readSync(fd, bytes))
  } catch (error) {
    throw ioError(error, `cannot read ${option}`, path)
  } finally {
    if (fd >= 0) closeSync(fd)
  }
  if (bytes.length === KEY_LENGTH) return new StoreKey(bytes)
  const text = /^([0-9a-f]{64})\r?\n?$/i.exec(bytes.toString('latin1'))
  if (text === null) throw bad('not a key', 'give 32 random bytes, or 64 hexadecimal digits: openssl rand -hex 32')
  return new StoreKey(Buffer.from(text[1]!, 'hex'))
}

/** Seals a file of known length, whose bytes come in any pieces. */
export class Sealer {
  readonly header: Buffer
  private readonly key: Uint8Array
  private readonly chunk = Buffer.allocUnsafe(CHUNK_LENGTH)
  private have = 0
  private index = 0

  constructor(storeKey: StoreKey, lengthBytes: number) {
    const header = Buffer.alloc(SEALED_HEADER_LENGTH)
    header.set(SEALED_MAGIC)
    writeU32(header, HEADER.VERSION, VERSION)
    writeU32(header, HEADER.CHUNK, CHUNK_LENGTH)
    writeU64(header, HEADER.LENGTH, lengthBytes)
    header.set(storeKey.id, HEADER.KEY_ID)
    header.set(randomBytes(SEALED_HEADER_LENGTH - HEADER.SALT), HEADER.SALT)
    this.header = header
    this.key = storeKey.fileKey(header.subarray(HEADER.SALT))
  }

  /** Takes the next bytes. Yields whole sealed chunks; they are the caller's. */
  *push(bytes: Uint8Array): Generator<Uint8Array> {
    for (let at = 0; at < bytes.length; ) {
      const take = Math.min(bytes.length - at, CHUNK_LENGTH - this.have)
      this.chunk.set(bytes.subarray(at, at + take), this.have)
      this.have += take
      at += take
      if (this.have === CHUNK_LENGTH) yield* this.seal()
    }
  }

  /** The last chunk. */
  *end(): Generator<Uint8Array> {
    if (this.have > 0) yield* this.seal()
  }

  private *seal(): Generator<Uint8Array> {
    const cipher = createCipheriv(CIPHER, this.key, nonce(this.index++)).setAAD(this.header)
    yield cipher.update(this.chunk.subarray(0, this.have))
    cipher.final()
    yield cipher.getAuthTag()
    this.have = 0
  }
}

/** Opens the chunks of a sealed file. */
export class Unsealer {
  /** Bytes of the set file inside. */
  readonly lengthBytes: number
  private readonly header: Uint8Array
  private readonly key: Uint8Array
  private readonly path: string

  /**
   * @param header SEALED_HEADER_LENGTH bytes
   * @throws USAGE where the key is missing or another, TEMPLATE_FORMAT, TEMPLATE_TRUNCATED, TEMPLATE_DAMAGED
   */
  constructor(path: string, header: Uint8Array, fileLength: number, storeKey: StoreKey | undefined) {
    const bad = (code: 'TEMPLATE_FORMAT' | 'TEMPLATE_TRUNCATED' | 'TEMPLATE_DAMAGED', what: string, offset: number) =>
      new ProxyError(code, what, { stream: path, offset }, 'not used; copy it again, or build it again')
    if (header.length < SEALED_HEADER_LENGTH)
      throw bad('TEMPLATE_TRUNCATED', 'the encrypted set ends early', fileLength)
    if (readU32(header, HEADER.VERSION) !== VERSION || readU32(header, HEADER.CHUNK) !== CHUNK_LENGTH)
      throw bad('TEMPLATE_FORMAT', 'an encrypted set of an unknown version', HEADER.VERSION)
    if (storeKey === undefined) {
      const what = `${path} is encrypted`
      throw new ProxyError('USAGE', what, undefined, 'give --store-key with the key of this host')
    }
    if (!storeKey.id.equals(header.subarray(HEADER.KEY_ID, HEADER.SALT))) {
      const what = `${path} is encrypted with another key`
      throw new ProxyError('USAGE', what, undefined, 'give --store-key with the key under which it was stored')
    }
    this.path = path
    this.header = copyOf(header)
    this.lengthBytes = readU64(header, HEADER.LENGTH)
    const sealed = sealedLength(this.lengthBytes)
    if (fileLength < sealed) throw bad('TEMPLATE_TRUNCATED', 'the encrypted set ends early', fileLength)
    if (fileLength > sealed) throw bad('TEMPLATE_DAMAGED', 'bytes behind the encrypted set', sealed)
    this.key = storeKey.fileKey(header.subarray(HEADER.SALT))
  }

  /** Where chunk `index` stands in the file, and its length with the tag. */
  place(index: number): { offset: number; length: number } {
    const plain = Math.min(CHUNK_LENGTH, this.lengthBytes - index * CHUNK_LENGTH)
    return { offset: SEALED_HEADER_LENGTH + index * (CHUNK_LENGTH + TAG_LENGTH), length: plain + TAG_LENGTH }
  }

  /** The plain bytes of a chunk. @throws TEMPLATE_DAMAGED */
  open(index: number, sealed: Uint8Array): Uint8Array {
    const end = sealed.length - TAG_LENGTH
    const cipher = createDecipheriv(CIPHER, this.key, nonce(index)).setAAD(this.header)
    cipher.setAuthTag(sealed.subarray(end))
    const plain = cipher.update(sealed.subarray(0, end))
    try {
      cipher.final()
    } catch (cause) {
      const where = { stream: this.path, offset: this.place(index).offset }
      const action = 'not used; copy it again, or build it again'
      throw new ProxyError('TEMPLATE_DAMAGED', 'the encrypted set was changed', where, action, { cause })
    }
    return plain
  }
}

/** Bytes of the file that holds so many. */
export function sealedLength(lengthBytes: number): number {
  return SEALED_HEADER_LENGTH + lengthBytes + Math.ceil(lengthBytes / CHUNK_LENGTH) * TAG_LENGTH
}

/** The number of the chunk: a key is used for one file. */
function nonce(index: number): Buffer {
  const bytes = Buffer.alloc(NONCE_LENGTH)
  writeU64(bytes, NONCE_LENGTH - 8, index)
  return bytes
}
