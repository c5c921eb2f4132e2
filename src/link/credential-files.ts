/**
 * The files of a credentials directory, in the layout of QEMU's tls-creds objects: read, parsed, and looked at for what an
 * operator should mend before it stops a migration. Source: QEMU crypto/tlscredsx509.c, crypto/tlscredspsk.c.
 */
import { X509Certificate } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { ProxyError } from '../errors.ts'
import type { Role } from '../session/api.ts'
import { quote } from './tls-errors.ts'

/** File names of QEMU's tls-creds-x509 and tls-creds-psk. */
export const CREDENTIAL_FILE = {
  ca: 'ca-cert.pem',
  crl: 'ca-crl.pem',
  serverCert: 'server-cert.pem',
  serverKey: 'server-key.pem',
  clientCert: 'client-cert.pem',
  clientKey: 'client-key.pem',
  psk: 'keys.psk',
} as const

/** What a PSK client calls itself where nothing else is said. Source: QEMU crypto/tlscredspsk.c, `username`. */
export const PSK_USERNAME_DEFAULT = 'qemu'

/** No credential file is near this size; a wrong path to a disk image must not be read whole. */
const FILE_BYTES_MAX = 1 << 20
/** 128 bits: a shorter key could be guessed offline from one recorded handshake. */
const PSK_BYTES_MIN = 16
/** OpenSSL's PSK_MAX_PSK_LEN of the callback that Node uses. */
const PSK_BYTES_MAX = 256
const PSK_NAME_BYTES_MAX = 128
const EXPIRY_WARNING_DAYS = 30
/** Of a revocation list, which lives for days, at most this part of its time. */
const CRL_WARNING_SHARE = 0.25
const DAY_MS = 86_400_000

function isThere(directory: string, name: string): boolean {
  return fs.existsSync(path.join(directory, name))
}

/** Reads a whole file; a secret one that others can read gives a warning. */
function read(file: string, secret: boolean, warnings: string[]): Buffer {
  let fd: number
  try {
    fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK) // a FIFO would be waited for, for ever
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT'
    throw new ProxyError(
      'IO',
      `${file}: ${missing ? 'no such file' : ((error as NodeJS.ErrnoException).code ?? 'cannot be read')}`,
      undefined,
      missing
        ? '`pageferry keygen` makes the files for a first set-up'
        : 'make it readable for the user of this process',
      { cause: error },
    )
  }
  try {
    const stat = fs.fstatSync(fd)
    if (!stat.isFile() || stat.size > FILE_BYTES_MAX) {
      throw new ProxyError(
        'USAGE',
        `${file}: not a credential file`,
        undefined,
        `a file of at most ${FILE_BYTES_MAX} bytes`,
      )
    }
    if (secret && (stat.mode & 0o077) !== 0) {
      const mode = (stat.mode & 0o777).toString(8).padStart(4, '0')
      warnings.push(`${file}: others can reach this secret (mode ${mode}); chmod 600 ${file}`)
    }
    return fs.readFileSync(fd)
  } finally {
    fs.closeSync(fd)
  }
}

function certificates(pem: Buffer, file: string): X509Certificate[] {
  const blocks = pem.toString('latin1').match(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g) ?? []
  try {
    const list = blocks.map(block => new X509Certificate(block))
    if (list.length > 0) return list
  } catch (error) {
    throw new ProxyError('USAGE', `${file}: a certificate is damaged`, undefined, 'write it again', { cause: error })
  }
  throw new ProxyError('USAGE', `${file}: no certificate in it`, undefined, 'it must be PEM, BEGIN CERTIFICATE')
}

/** From when to when something is valid. */
export interface Period {
  readonly file: string
  readonly fromMs: number
  /** Infinity where it says no end. */
  readonly toMs: number
  /** How long before its end an operator is told. */
  readonly warnMs: number
}

/** @returns undefined while it is valid and will be for some time */
function complaint({ file, fromMs, toMs, warnMs }: Period, nowMs: number): string | undefined {
  if (nowMs < fromMs) return `${file}: not valid before ${date(fromMs)}`
  if (nowMs > toMs) return `${file}: expired on ${date(toMs)}`
  return toMs - nowMs < warnMs ? `${file}: expires on ${date(toMs)}` : undefined
}

function date(ms: number): string {
  return new Date(ms)
    .toISOString()
    .replace(/:\d\d\.\d+Z/, ' UTC')
    .replace('T', ' ')
}

/** What has expired, or will soon: looked at again from time to time, since a proxy runs for longer than a list is valid. */
export function complaints(periods: readonly Period[]): string[] {
  const nowMs = Date.now()
  return periods.flatMap(period => complaint(period, nowMs) ?? [])
}

/**
 * As QEMU does: what is not valid today is refused at the start, not at the first migration.
 * @throws ProxyError USAGE
 */
function requireValid(period: Period, action: string): void {
  const nowMs = Date.now()
  const what = complaint(period, nowMs)
  if (nowMs < period.fromMs) throw new ProxyError('USAGE', what!, undefined, 'check the clock of this host')
  if (nowMs > period.toMs) throw new ProxyError('USAGE', what!, undefined, action)
}

function periodOf(cert: X509Certificate, file: string): Period {
  const warnMs = EXPIRY_WARNING_DAYS * DAY_MS
  return { file, warnMs, fromMs: Date.parse(cert.validFrom), toMs: Date.parse(cert.validTo) }
}

/** Of a bundle one CA has to be valid: an old one beside its successor does no harm. */
function caPeriods(ca: Buffer, file: string): Period[] {
  const periods = certificates(ca, file).map(cert => periodOf(cert, file))
  const nowMs = Date.now()
  const valid = periods.some(({ fromMs, toMs }) => nowMs >= fromMs && nowMs <= toMs)
  if (!valid) for (const period of periods) requireValid(period, 'renew the CA, and the certificates with it')
  return periods
}

/** Revocation lists: each in PEM, and how long they are valid. */
interface RevocationLists {
  readonly pem: readonly string[]
  readonly periods: readonly Period[]
}

/**
 * The lists of ca-crl.pem. Only comments (lines that begin with #) or nothing: none, so that systemd can hand one over
 * that is not there (SetCredential=).
 */
function revocationLists(content: string, file: string): RevocationLists {
  if (content.split('\n').every(line => /^\s*(#|$)/.test(line))) return { pem: [], periods: [] }
  const pem = content.match(/-----BEGIN X509 CRL-----[\s\S]+?-----END X509 CRL-----/g) ?? []
  if (pem.length === 0) throw notCrl(file)
  const periods = pem.map(block => {
    try {
      const { fromMs, toMs } = crlPeriod(Buffer.from(block.replaceAll(/-----.*-----|\s/g, ''), 'base64'))
      const warnMs = Math.min(EXPIRY_WARNING_DAYS * DAY_MS, (toMs - fromMs) * CRL_WARNING_SHARE)
      return { file, fromMs, toMs, warnMs }
    } catch (error) {
      throw notCrl(file, error)
    }
  })
  // OpenSSL refuses every peer whose CA's list has expired, and we do not know whose that is.
  for (const period of periods) requireValid(period, 'get the new list from the CA, or remove the file')
  return { pem, periods }
}

/**
 * thisUpdate and nextUpdate of a list in DER. Source: RFC 5280, 5.1.
 * @throws Error where it is no list
 */
function crlPeriod(der: Buffer): { fromMs: number; toMs: number } {
  const element = (at: number): { tag: number; from: number; to: number } => {
    const [tag, first] = [der[at], der[at + 1]]
    if (tag === undefined || first === undefined) throw new Error('ends early')
    const lengthBytes = first < 0x80 ? 0 : first & 0x7f
    if (lengthBytes > 4) throw new Error('a length')
    const from = at + 2 + lengthBytes
    const to = from + (lengthBytes === 0 ? first : der.readUIntBE(at + 2, lengthBytes))
    if (to > der.length) throw new Error('ends early')
    return { tag, from, to }
  }
  const list = element(element(0).from)
  let at = list.from
  if (element(at).tag === 0x02) at = element(at).to // version
  at = element(element(at).to).to // signature, issuer
  const time = (from: number): number => {
    const { tag, from: begin, to } = element(from)
    const text = der.toString('latin1', begin, to)
    const [, year = '', rest = ''] = (tag === 0x17 ? /^(\d{2})(\d{10})Z$/ : /^(\d{4})(\d{10})Z$/).exec(text) ?? []
    const full = tag === 0x17 ? String(Number(year) + (Number(year) < 50 ? 2000 : 1900)) : year
    const ms = Date.parse(`${full}-${rest.replace(/^(..)(..)(..)(..)(..)$/, '$1-$2T$3:$4:$5Z')}`)
    if (Number.isNaN(ms)) throw new Error('a time')
    return ms
  }
  const next = element(at).to
  const hasEnd = next < list.to && (element(next).tag === 0x17 || element(next).tag === 0x18)
  return { fromMs: time(at), toMs: hasEnd ? time(next) : Number.POSITIVE_INFINITY }
}

function notCrl(file: string, cause?: unknown): ProxyError {
  return new ProxyError('USAGE', `${file}: not a CRL in PEM`, undefined, 'write it again or remove it', { cause })
}

/** What a directory holds for one role. */
export interface X509Files {
  readonly ca: Buffer
  readonly cert: Buffer
  readonly key: Buffer
  /** PEM, a list each: Node takes one from each of its texts. */
  readonly crl: readonly string[]
  readonly certFile: string
  readonly keyFile: string
  /** SHA-256 of our certificate. */
  readonly fingerprint: string
  readonly periods: readonly Period[]
  readonly warnings: readonly string[]
}

/** @throws ProxyError IO (file missing or unreadable), USAGE (file is not what it must be) */
export function readX509(directory: string, role: Role): X509Files {
  const warnings: string[] = []
  const file = (name: keyof typeof CREDENTIAL_FILE): string => path.join(directory, CREDENTIAL_FILE[name])
  const certFile = file(role === 'client' ? 'clientCert' : 'serverCert')
  const keyFile = file(role === 'client' ? 'clientKey' : 'serverKey')
  const ca = read(file('ca'), false, warnings)
  const cert = read(certFile, false, warnings)
  const key = read(keyFile, true, warnings)
  const hasCrl = isThere(directory, CREDENTIAL_FILE.crl)
  const periods = caPeriods(ca, file('ca'))
  const own = certificates(cert, certFile)[0]!
  const ownPeriod = periodOf(own, certFile)
  requireValid(ownPeriod, 'renew the certificate')
  const crl = hasCrl ? revocationLists(read(file('crl'), false, warnings).toString('latin1'), file('crl')) : undefined
  return {
    ...{ ca, cert, key, certFile, keyFile, warnings },
    crl: crl?.pem ?? [],
    fingerprint: own.fingerprint256,
    periods: [...periods, ownPeriod, ...(crl?.periods ?? [])],
  }
}

export interface PskFile {
  readonly keys: ReadonlyMap<string, Buffer>
  /** Client: what we call ourselves. */
  readonly username: string
  readonly warnings: readonly string[]
}

/** @throws ProxyError IO, USAGE */
export function readPsk(directory: string, role: Role, wanted: string | undefined): PskFile {
  const warnings: string[] = []
  const file = path.join(directory, CREDENTIAL_FILE.psk)
  const keys = parsePsk(read(file, true, warnings).toString('utf8'), file)
  return { keys, username: role === 'client' ? pickUsername(keys, wanted, file) : '', warnings }
}

/** Which of QEMU's two layouts a directory has. */
export function kindOf(directory: string): 'x509' | 'psk' {
  return !isThere(directory, CREDENTIAL_FILE.ca) && isThere(directory, CREDENTIAL_FILE.psk) ? 'psk' : 'x509'
}

/**
 * Parses QEMU's keys.psk: one `username:hexkey` a line. Source: GnuTLS lib/auth/psk_passwd.c.
 * @throws ProxyError USAGE with file and line
 */
export function parsePsk(content: string, file: string): Map<string, Buffer> {
  const keys = new Map<string, Buffer>()
  for (const [i, raw] of content.split('\n').entries()) {
    const line = raw.trim()
    const bad = (what: string, action: string): never => {
      throw new ProxyError('USAGE', `${file}:${i + 1}: ${what}`, undefined, action) // never the line itself: it is a secret
    }
    if (line === '') continue
    if (line.startsWith('#')) {
      if (/^#[0-9a-fA-F]+:/.test(line)) bad('a username in hexadecimal', 'write it as plain text')
      continue
    }
    const colon = line.lastIndexOf(':')
    const name = line.slice(0, Math.max(colon, 0))
    const hex = line.slice(colon + 1)
    if (colon < 1 || !/^([0-9a-fA-F]{2})+$/.test(hex)) bad('not username:hexkey', '`pageferry keygen psk` makes one')
    if (Buffer.byteLength(name) > PSK_NAME_BYTES_MAX) bad('username too long', `at most ${PSK_NAME_BYTES_MAX} bytes`)
    const key = Buffer.from(hex, 'hex')
    if (key.length < PSK_BYTES_MIN) bad('key too short', `at least ${PSK_BYTES_MIN} bytes; 32 are usual`)
    if (key.length > PSK_BYTES_MAX) bad('key too long', `at most ${PSK_BYTES_MAX} bytes; 32 are usual`)
    if (keys.has(name)) bad(`username ${quote(name)} occurs twice`, 'remove one')
    keys.set(name, key)
  }
  if (keys.size === 0)
    throw new ProxyError('USAGE', `${file}: no key in it`, undefined, '`pageferry keygen psk` makes one')
  return keys
}

function pickUsername(keys: ReadonlyMap<string, Buffer>, wanted: string | undefined, file: string): string {
  if (wanted === undefined && keys.size === 1) return keys.keys().next().value!
  const name = wanted ?? PSK_USERNAME_DEFAULT
  if (keys.has(name)) return name
  const action = wanted === undefined ? 'say which of its usernames is ours' : 'add the line, or name another'
  throw new ProxyError('USAGE', `${file}: no line for username ${quote(name)}`, undefined, action)
}
