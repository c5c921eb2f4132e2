/**
 * A link's first bytes, told from those of a QEMU: who dials a port that is meant for QEMU must not have them relayed to
 * one that waits, because it would exit over them.
 */
import { readU16 } from '../bytes/big-endian.ts'
import { latin1 } from '../bytes/copy.ts'
import { ALPN_PREFIX, MAGIC } from './wire.ts'

/**
 * Bytes of a ClientHello after which {@link bearsMark} always answers. OpenSSL puts ALPN before all that may be long but
 * a server name of 255: the mark ends within 512.
 */
export const MARK_BYTES_MAX = 1024

/** Head of the record, length of the record behind type and version. */
const RECORD = { HEAD: 5, LENGTH_AT: 3 } as const
/** Where a ClientHello's session id begins: behind the heads of record and handshake, version and random. */
const SESSION_ID_AT = RECORD.HEAD + 4 + 2 + 32
/** Extension 16 (RFC 7301): u16 length of the list, then names, each behind a u8 length. */
const ALPN_TYPE = 16

/** Whether it is a hello in clear. @returns undefined while that is not told */
export function isOwnHello(bytes: Uint8Array): boolean | undefined {
  const count = Math.min(bytes.length, MAGIC.length)
  for (let i = 0; i < count; i++) if (bytes[i] !== MAGIC[i]) return false
  return count === MAGIC.length ? true : undefined
}

/**
 * Whether a TLS client is one of a link, by the ALPN of its ClientHello. It looks at the first record alone.
 * @returns undefined while that is not told, which it is at the record's end, or {@link MARK_BYTES_MAX}
 */
export function bearsMark(bytes: Uint8Array): boolean | undefined {
  const { length } = bytes
  if (length < RECORD.HEAD) return undefined
  const end = Math.min(RECORD.HEAD + readU16(bytes, RECORD.LENGTH_AT), MARK_BYTES_MAX)
  let at = SESSION_ID_AT
  // session id, cipher suites, compression methods
  for (const width of [1, 2, 1]) {
    if (at + width > end) return false
    if (at + width > length) return undefined
    at += width + (width === 1 ? bytes[at]! : readU16(bytes, at))
  }
  at += 2 // length of all extensions
  while (at + 4 <= end) {
    if (at + 4 > length) return undefined
    const next = at + 4 + readU16(bytes, at + 2)
    if (readU16(bytes, at) === ALPN_TYPE) {
      if (next > end) return false
      return next > length ? undefined : namesUs(bytes, at + 6, next)
    }
    at = next
  }
  return false
}

function namesUs(bytes: Uint8Array, from: number, end: number): boolean {
  for (let at = from; at < end; at += 1 + bytes[at]!) {
    if (latin1(bytes, at + 1, Math.min(bytes[at]!, end - at - 1)).startsWith(ALPN_PREFIX)) return true
  }
  return false
}
