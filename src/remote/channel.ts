/**
 * The document of a channel: which sets are in force, signed. docs/adr/0012-remote-stores.md, 5 and 6. One line of JSON in
 * one form only: bytes that are not what {@link encodeChannel} would write are refused, so nothing is to be normalised
 * before a signature is checked. Pure: the time comes in.
 */
import { createHash, type KeyObject, sign, verify } from 'node:crypto'
import { type ErrorCode, ProxyError } from '../errors.ts'
import { CHANNEL_BYTES_MAX, CHANNEL_SETS_MAX, CHANNEL_SIGNATURES_MAX } from '../limits.ts'
import { METADATA_LENGTH_MAX, PAGES_MAX, setLayout } from '../template/wire.ts'
import { isChannelName } from './remote-store.ts'

const VERSION = 1
/** What is signed begins so: no signature of ours can be taken for one of another purpose. */
const CONTEXT = 'pageferry channel 1\n'
/** Hexadecimal digits of a key's name. */
const KEY_ID_LENGTH = 16
const SIGNATURE_LENGTH = 64
const SET_BYTES_MAX = setLayout(PAGES_MAX, METADATA_LENGTH_MAX).lengthBytes
/** A year: longer than sets of before are worth anything. */
const OVERLAP_SECONDS_MAX = 366 * 86_400
const DIGEST = /^[0-9a-f]{64}$/
const KEY_ID = /^[0-9a-f]{16}$/

/** A set in force. */
export interface ChannelSet {
  /** Bytes of its file. */
  readonly bytes: number
  readonly digest: string
}

/** What a channel says. */
export interface Channel {
  readonly channel: string
  /** Not accepted from then on; what is in force stays. Milliseconds since 1970, as all times here. */
  readonly expiresMs: number
  readonly issuedMs: number
  /** Not in force before: hosts fetch its sets, and wait. */
  readonly notBeforeMs: number
  /**
   * How long a host goes on using the sets that were in force before, after those here: other hosts may not have these yet,
   * and a session uses what both sides hold. Whole seconds.
   */
  readonly overlapMs: number
  /** Counts up by one or more with each document. */
  readonly serial: number
  /** By digest, ascending. */
  readonly sets: readonly ChannelSet[]
}

export interface ChannelSignature {
  /** Name of the key: {@link keyIdOf}. */
  readonly key: string
  readonly signature: Uint8Array
}

/** A document whose form is sound; whether it is to be believed is another matter: {@link checkSignature}. */
export interface ChannelDocument {
  /** All of it. */
  readonly bytes: Uint8Array
  readonly channel: Channel
  readonly signatures: readonly ChannelSignature[]
  /** What was signed. */
  readonly signed: Uint8Array
}

/** As people type it. @throws USAGE */
export function requireChannelName(name: string): void {
  if (isChannelName(name)) return
  const action = 'small letters, digits, and "-" between them; 64 at most'
  throw new ProxyError('USAGE', `no name of a channel of sets: ${JSON.stringify(name)}`, undefined, action)
}

/** How a key is known: the beginning of the SHA-256 of its public half (the 32 bytes of RFC 8032). */
export function keyIdOf(key: KeyObject): string {
  const { x } = key.export({ format: 'jwk' })
  return createHash('sha256').update(Buffer.from(x!, 'base64url')).digest('hex').slice(0, KEY_ID_LENGTH)
}

/** Text of the `signed` part, keys in order. */
function signedText({ channel, expiresMs, issuedMs, notBeforeMs, overlapMs, serial, sets }: Channel): string {
  const [expires, issued, notBefore] = [expiresMs, issuedMs, notBeforeMs].map(ms => new Date(ms).toISOString())
  const inOrder = sets.map(({ bytes, digest }) => ({ bytes, digest }))
  const overlap = overlapMs / 1000
  return JSON.stringify({ channel, expires, issued, notBefore, overlap, serial, sets: inOrder, version: VERSION })
}

function documentText(channel: Channel, signatures: readonly ChannelSignature[]): string {
  const listed = signatures.map(({ key, signature }) => ({ key, signature: Buffer.from(signature).toString('base64') }))
  return `{"signatures":${JSON.stringify(listed)},"signed":${signedText(channel)}}\n`
}

/**
 * Signs what a channel says and writes it down.
 * @param keys private halves, Ed25519; one, or two while a key is being replaced
 * @throws USAGE where the channel is none that {@link decodeChannel} takes
 */
export function encodeChannel(channel: Channel, keys: readonly KeyObject[]): Uint8Array {
  const sets = channel.sets.toSorted((a, b) => (a.digest < b.digest ? -1 : 1))
  const sorted = { ...channel, sets }
  const signed = Buffer.from(CONTEXT + signedText(sorted))
  const signatures = keys.map(key => ({ key: keyIdOf(key), signature: sign(null, signed, key) }))
  const bytes = Buffer.from(documentText(sorted, signatures))
  try {
    decodeChannel(bytes, channel.channel)
  } catch (error) {
    if (!(error instanceof ProxyError)) throw error
    throw new ProxyError('USAGE', error.what, undefined, 'nothing was written', { cause: error })
  }
  return bytes
}

/**
 * Reads a document and checks its form.
 * @param name of the channel that it was asked for as: a document of another one in its place is refused
 * @throws CHANNEL_FORMAT
 */
export function decodeChannel(bytes: Uint8Array, name: string): ChannelDocument {
  if (bytes.length > CHANNEL_BYTES_MAX) throw wrong(name, `${bytes.length} bytes`)
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (cause) {
    throw wrong(name, 'no JSON', { cause })
  }
  const { signatures, signed } = record(name, value, 'the document')
  const said = record(name, signed, 'signed')
  // before anything else: a later version may have other fields
  if (said.version !== VERSION)
    throw wrong(name, `version ${JSON.stringify(said.version)}, which this version does not know`)
  if (said.channel !== name || !isChannelName(name))
    throw wrong(name, `it is of channel ${JSON.stringify(said.channel)}`)
  const channel: Channel = {
    channel: name,
    expiresMs: time(name, said.expires, 'expires'),
    issuedMs: time(name, said.issued, 'issued'),
    notBeforeMs: time(name, said.notBefore, 'notBefore'),
    overlapMs: count(name, said.overlap, 'overlap', OVERLAP_SECONDS_MAX, 0) * 1000,
    serial: count(name, said.serial, 'serial', Number.MAX_SAFE_INTEGER),
    sets: list(name, said.sets, 'sets', CHANNEL_SETS_MAX).map(set => {
      const { bytes: length, digest } = record(name, set, 'a set')
      return { bytes: count(name, length, 'bytes', SET_BYTES_MAX), digest: text(name, digest, 'digest', DIGEST) }
    }),
  }
  for (let i = 1; i < channel.sets.length; i++) {
    if (channel.sets[i - 1]!.digest >= channel.sets[i]!.digest) throw wrong(name, 'sets that are not in order')
  }
  const found = list(name, signatures, 'signatures', CHANNEL_SIGNATURES_MAX).map(entry => {
    const { key, signature } = record(name, entry, 'a signature')
    const decoded = Buffer.from(text(name, signature, 'signature', /^[\w+/=]{88}$/), 'base64')
    return { key: text(name, key, 'key', KEY_ID), signature: decoded }
  })
  // one form only: no field that is not known, no other order, no other way to write the same
  if (!Buffer.from(documentText(channel, found)).equals(bytes)) throw wrong(name, 'not in canonical form')
  if (found.some(({ signature }) => signature.length !== SIGNATURE_LENGTH))
    throw wrong(name, 'a signature of another length')
  return {
    bytes: Uint8Array.from(bytes),
    channel,
    signatures: found,
    signed: Buffer.from(CONTEXT + signedText(channel)),
  }
}

/**
 * That somebody signed whom this host trusts.
 * @param trusted public halves; one good signature is enough
 * @returns the name of the key
 * @throws CHANNEL_UNTRUSTED
 */
export function checkSignature(
  { channel, signatures, signed }: ChannelDocument,
  trusted: readonly KeyObject[],
): string {
  for (const key of trusted) {
    const id = keyIdOf(key)
    for (const { key: named, signature } of signatures) {
      if (named === id && verify(null, signed, key, signature)) return id
    }
  }
  const by = signatures.length === 0 ? 'nobody' : signatures.map(({ key }) => key).join(', ')
  const action = `what is in force stays; keys that this host trusts: ${trusted.map(keyIdOf).join(', ') || 'none'}`
  throw error('CHANNEL_UNTRUSTED', channel.channel, `not signed by a trusted key, but by ${by}`, action)
}

/**
 * That a document may follow what this host accepted last.
 * @param last undefined: nothing yet
 * @returns false where it is the one that was accepted last
 * @throws CHANNEL_STALE where somebody shows an older one again, or its time is over
 */
export function checkFreshness(next: ChannelDocument, last: ChannelDocument | undefined, nowMs: number): boolean {
  const { channel, serial, expiresMs } = next.channel
  const stale = (what: string, action: string): ProxyError => error('CHANNEL_STALE', channel, what, action)
  if (last !== undefined && last.channel.channel !== channel) throw new RangeError('documents of two channels')
  if (last !== undefined && serial <= last.channel.serial) {
    const had = last.channel.serial
    if (serial < had) {
      const action = 'what is in force stays; to go back, use `pageferry store rollback`, which counts on'
      throw stale(`serial ${serial}, and ${had} was there already`, action)
    }
    if (Buffer.compare(next.signed, last.signed) === 0) return false
    throw stale(`serial ${serial} again, with other content`, 'what is in force stays; promote once more, to count on')
  }
  if (nowMs >= expiresMs) {
    throw stale(
      `expired at ${new Date(expiresMs).toISOString()}`,
      "what is in force stays; promote again, or set this host's clock",
    )
  }
  return true
}

function error(code: ErrorCode, name: string, what: string, action: string, options?: ErrorOptions): ProxyError {
  return new ProxyError(code, `channel of sets ${name}: ${what}`, undefined, action, options)
}

function wrong(name: string, what: string, options?: ErrorOptions): ProxyError {
  return error(
    'CHANNEL_FORMAT',
    name,
    `its document is none: ${what}`,
    'what is in force stays; promote again',
    options,
  )
}

function record(name: string, value: unknown, what: string): Record<string, unknown> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  throw wrong(name, `${what} is no object`)
}

function list(name: string, value: unknown, what: string, most: number): unknown[] {
  if (Array.isArray(value) && value.length <= most) return value
  throw wrong(name, `${what} is no list of at most ${most}`)
}

function count(name: string, value: unknown, what: string, most: number, least = 1): number {
  if (Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most) return value as number
  throw wrong(name, `${what} is no count of at most ${most}`)
}

function text(name: string, value: unknown, what: string, pattern: RegExp): string {
  if (typeof value === 'string' && pattern.test(value)) return value
  throw wrong(name, `${what} is none`)
}

/** Years of four digits only: others are written differently. */
function time(name: string, value: unknown, what: string): number {
  const ms = Date.parse(text(name, value, what, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/))
  if (Number.isNaN(ms)) throw wrong(name, `${what} is no time`)
  return ms
}
