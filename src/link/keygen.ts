/**
 * Credentials for a first set-up: one pre-shared key, or a private CA with the certificates of both sites, in the layout
 * that `Credentials` and QEMU read. A site gets both a server's and a client's certificate, because guests move both ways.
 */
import { randomBytes, webcrypto } from 'node:crypto'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { isProxyError, ProxyError } from '../errors.ts'
import { CREDENTIAL_FILE, PSK_USERNAME_DEFAULT } from './credential-files.ts'

/** One file to write, path relative to the chosen directory. */
export interface CredentialFile {
  readonly path: string
  readonly content: string
}

/** One site: the first name is also its directory and its certificate's common name; all are alternative names. */
export type SiteNames = readonly [string, ...string[]]

/** 256 bits, as GnuTLS's psktool makes. */
const PSK_BYTES = 32
/** A clock that is a little behind must not find the new certificates to be of the future. */
export const BACKDATE_MS = 3_600_000
export const DAY_MS = 86_400_000
/** Where the CA's private key goes: beside the sites' directories, so that copying one of them does not take it along. */
export const CA_KEY_FILE = 'ca-key.pem'

/** X.509 object identifiers that pkijs has no names for. Source: RFC 5280. */
const OID = {
  commonName: '2.5.4.3',
  subjectKeyId: '2.5.29.14',
  keyUsage: '2.5.29.15',
  altName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  authorityKeyId: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  serverAuth: '1.3.6.1.5.5.7.3.1',
  clientAuth: '1.3.6.1.5.5.7.3.2',
} as const

/**
 * One key for two sites.
 * @throws ProxyError USAGE for a name that cannot be a directory, or a username that cannot stand in the file
 */
export function makePsk(site: SiteNames, peer: SiteNames, username = PSK_USERNAME_DEFAULT): CredentialFile[] {
  checkSites(site, peer)
  if (!/^[\x21-\x7e]+$/.test(username) || username.startsWith('#') || username.length > 128) {
    throw new ProxyError('USAGE', `username ${JSON.stringify(username)}`, undefined, 'printable ASCII, no spaces')
  }
  const content = `${username}:${randomBytes(PSK_BYTES).toString('hex')}\n`
  return [site, peer].map(names => ({ path: path.join(names[0], CREDENTIAL_FILE.psk), content }))
}

/**
 * A CA of its own and both sites' certificates, ECDSA P-256.
 * @param days how long all of them are valid
 * @param more further sites of the same CA
 * @throws ProxyError USAGE for a name that cannot be a directory
 */
export async function makeX509(
  site: SiteNames,
  peer: SiteNames,
  days: number,
  ...more: readonly SiteNames[]
): Promise<CredentialFile[]> {
  checkSites(site, peer, ...more)
  const notBefore = new Date(Date.now() - BACKDATE_MS)
  const notAfter = new Date(Date.now() + days * DAY_MS)
  // The name takes a random part: two CAs of one name would be mixed up by whoever holds both.
  const caName = `Pageferry CA ${randomBytes(4).toString('hex')}`
  const caKeys = await generateKeys()
  const issuer = { name: caName, keys: caKeys }
  const caCert = await makeCertificate({ name: caName, keys: caKeys, issuer, notBefore, notAfter })
  const files: CredentialFile[] = [{ path: CA_KEY_FILE, content: await keyPem(caKeys) }]
  for (const names of [site, peer, ...more])
    files.push(...(await makeSite(names, issuer, caCert, { notBefore, notAfter })))
  return files
}

/** Keys and certificates of one site. @param caCert in PEM, of the issuer */
export async function makeSite(
  names: SiteNames,
  issuer: CertificateSpec['issuer'],
  caCert: string,
  period: Pick<CertificateSpec, 'notBefore' | 'notAfter'>,
): Promise<CredentialFile[]> {
  const files: CredentialFile[] = []
  const add = (name: string, content: string): unknown => files.push({ path: path.join(names[0], name), content })
  add(CREDENTIAL_FILE.ca, caCert)
  for (const use of ['server', 'client'] as const) {
    const keys = await generateKeys()
    const cert = await makeCertificate({ name: names[0], keys, issuer, ...period, leaf: { use, names } })
    add(use === 'server' ? CREDENTIAL_FILE.serverCert : CREDENTIAL_FILE.clientCert, cert)
    add(use === 'server' ? CREDENTIAL_FILE.serverKey : CREDENTIAL_FILE.clientKey, await keyPem(keys))
  }
  return files
}

/**
 * Writes the files, readable by their owner only, into directories of the same kind. Overwrites nothing: where one of
 * them is there, or one cannot be written, none is left behind. A link in the directory is not followed: whoever planted
 * it would get the keys, so paths go through descriptors of directories that were looked at.
 * @throws ProxyError USAGE (one exists, a site's directory is not ours alone), IO
 */
export function writeCredentialFiles(directory: string, files: readonly CredentialFile[]): void {
  /** What an error takes back, last first; descriptors are closed in any case, after that. */
  const undo: (() => void)[] = []
  const open: number[] = []
  try {
    makeFolders(directory, undo)
    const root = openFolder(directory, directory, open)
    const folders = new Map([['.', root]])
    for (const site of new Set(files.map(file => path.dirname(file.path)))) {
      if (folders.has(site)) continue
      if (makeFolder(inFolder(root, site))) undo.push(() => fs.rmdirSync(inFolder(root, site)))
      folders.set(site, openFolder(inFolder(root, site), path.join(directory, site), open))
    }
    const places = files.map(({ path: name, content }) => ({
      at: inFolder(folders.get(path.dirname(name))!, path.basename(name)),
      name: path.join(directory, name),
      content,
    }))
    for (const { at, name } of places) if (fs.lstatSync(at, { throwIfNoEntry: false })) throw exists(name)
    for (const { at, name, content } of places) {
      naming(name, () => {
        const fd = fs.openSync(at, 'wx', 0o600)
        undo.push(() => fs.rmSync(at, { force: true }))
        try {
          fs.writeFileSync(fd, content)
        } finally {
          fs.closeSync(fd)
        }
      })
    }
    undo.length = 0
  } finally {
    for (const step of undo.reverse()) {
      try {
        step()
      } catch {
        // the error that brought us here says more
      }
    }
    for (const fd of open) fs.closeSync(fd)
  }
}

/** A name in an open directory, whatever happens to the path that led there. */
export function inFolder(fd: number, name: string): string {
  return `/proc/self/fd/${fd}/${name}`
}

/** Runs, with errors of the system as ours. */
export function naming<T>(name: string, run: () => T, hint = 'choose another directory'): T {
  try {
    return run()
  } catch (error) {
    if (isProxyError(error)) throw error
    const code = (error as NodeJS.ErrnoException).code ?? 'cannot be written'
    if (code === 'EEXIST') throw exists(name)
    throw new ProxyError('IO', `${name}: ${code}`, undefined, hint, { cause: error })
  }
}

/** @returns false where it was there */
function makeFolder(at: string): boolean {
  try {
    fs.mkdirSync(at, 0o700)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  }
}

/** Not by mkdir's `recursive`, which never ends below /proc. */
function makeFolders(directory: string, undo: (() => void)[]): void {
  const missing: string[] = []
  for (let at = path.resolve(directory); !fs.existsSync(at); at = path.dirname(at)) missing.unshift(at)
  for (const at of missing) {
    naming(at, () => {
      if (makeFolder(at)) undo.push(() => fs.rmdirSync(at))
    })
  }
}

/** Opens a directory; one of a site must be no link, and ours alone. */
export function openFolder(at: string, name: string, open: number[]): number {
  const isSite = at !== name
  const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = fs.constants
  return naming(name, () => {
    if (isSite && fs.lstatSync(at).isSymbolicLink()) throw notOurs(name, 'is a link')
    const fd = fs.openSync(at, O_RDONLY | O_DIRECTORY | (isSite ? O_NOFOLLOW : 0))
    open.push(fd)
    const { uid, mode } = fs.fstatSync(fd)
    if (isSite && uid !== process.geteuid?.()) throw notOurs(name, 'belongs to another user')
    if (isSite && (mode & 0o022) !== 0) throw notOurs(name, 'can be written to by others')
    return fd
  })
}

function notOurs(folder: string, what: string): ProxyError {
  return new ProxyError(
    'USAGE',
    `${folder} ${what}`,
    undefined,
    'keys would be read there by others: choose another directory',
  )
}

function exists(file: string): ProxyError {
  return new ProxyError('USAGE', `${file} exists`, undefined, 'choose another directory; keygen never overwrites')
}

export function checkSites(...sites: readonly SiteNames[]): void {
  for (const name of sites.flat()) {
    if (!net.isIP(name) && !/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) {
      throw new ProxyError(
        'USAGE',
        `name ${JSON.stringify(name)}`,
        undefined,
        'a host name or address: letters, digits, dots, dashes, at most 64 characters',
      )
    }
  }
  for (const [i, [name]] of sites.entries()) {
    if (sites.findIndex(([other]) => other === name) < i)
      throw new ProxyError('USAGE', `both sites are called ${name}`, undefined, 'give each a name of its own')
  }
}

function generateKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify'])
}

async function keyPem(keys: webcrypto.CryptoKeyPair): Promise<string> {
  return pem('PRIVATE KEY', await webcrypto.subtle.exportKey('pkcs8', keys.privateKey))
}

function pem(label: string, der: ArrayBuffer): string {
  const lines =
    Buffer.from(der)
      .toString('base64')
      .match(/.{1,64}/g) ?? []
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`
}

interface CertificateSpec {
  readonly name: string
  readonly keys: Pick<webcrypto.CryptoKeyPair, 'publicKey'>
  readonly issuer: { readonly name: string; readonly keys: webcrypto.CryptoKeyPair }
  readonly notBefore: Date
  readonly notAfter: Date
  /** Absent: a CA that signs leaves only. */
  readonly leaf?: { readonly use: 'server' | 'client'; readonly names: SiteNames }
}

export async function makeCertificate(spec: CertificateSpec): Promise<string> {
  // Loaded here: a proxy that runs has no use for them. adr/0007
  const [asn1, pki] = await Promise.all([import('asn1js'), import('pkijs')])
  const cert = new pki.Certificate()
  cert.version = 2 // v3
  cert.serialNumber = new asn1.Integer({ valueHex: serial() })
  const called = (name: string) =>
    new pki.AttributeTypeAndValue({ type: OID.commonName, value: new asn1.Utf8String({ value: name }) })
  cert.issuer.typesAndValues.push(called(spec.issuer.name))
  cert.subject.typesAndValues.push(called(spec.name))
  cert.notBefore.value = spec.notBefore
  cert.notAfter.value = spec.notAfter
  await cert.subjectPublicKeyInfo.importKey(spec.keys.publicKey)

  const extension = (extnID: string, critical: boolean, value: { toBER(sizeOnly: boolean): ArrayBuffer }) =>
    new pki.Extension({ extnID, critical, extnValue: value.toBER(false) })
  const leaf = spec.leaf
  const basic = new pki.BasicConstraints(leaf ? { cA: false } : { cA: true, pathLenConstraint: 0 })
  // digitalSignature (bit 0), or keyCertSign and cRLSign (bits 5 and 6): bit 0 is the highest of the byte.
  const usage = leaf ? { bits: 0x80, unused: 7 } : { bits: 0x06, unused: 1 }
  cert.extensions = [
    extension(OID.basicConstraints, true, basic.toSchema()),
    extension(
      OID.keyUsage,
      true,
      new asn1.BitString({ valueHex: Uint8Array.of(usage.bits).buffer, unusedBits: usage.unused }),
    ),
    extension(OID.subjectKeyId, false, new asn1.OctetString({ valueHex: await keyId(spec.keys) })),
    extension(
      OID.authorityKeyId,
      false,
      new pki.AuthorityKeyIdentifier({
        keyIdentifier: new asn1.OctetString({ valueHex: await keyId(spec.issuer.keys) }),
      }).toSchema(),
    ),
  ]
  if (leaf) {
    const purpose = leaf.use === 'server' ? OID.serverAuth : OID.clientAuth
    cert.extensions.push(
      extension(OID.extendedKeyUsage, false, new pki.ExtKeyUsage({ keyPurposes: [purpose] }).toSchema()),
    )
    const altNames = leaf.names.map(
      name =>
        net.isIP(name)
          ? new pki.GeneralName({ type: 7, value: new asn1.OctetString({ valueHex: addressBytes(name) }) }) // iPAddress
          : new pki.GeneralName({ type: 2, value: name }), // dNSName
    )
    cert.extensions.push(extension(OID.altName, false, new pki.AltName({ altNames }).toSchema()))
  }
  await cert.sign(spec.issuer.keys.privateKey, 'SHA-256')
  return pem('CERTIFICATE', cert.toSchema(true).toBER(false))
}

/** 126 random bits; positive, and of full length, so that the DER needs no padding. */
function serial(): ArrayBuffer {
  const bytes = new Uint8Array(randomBytes(16))
  bytes[0] = (bytes[0]! & 0x3f) | 0x40
  return bytes.buffer
}

/** RFC 7093, method 1: the leftmost 160 bits of the SHA-256 of the public key. */
async function keyId(keys: Pick<webcrypto.CryptoKeyPair, 'publicKey'>): Promise<ArrayBuffer> {
  const raw = await webcrypto.subtle.exportKey('raw', keys.publicKey)
  return (await webcrypto.subtle.digest('SHA-256', raw)).slice(0, 20)
}

/** Network order, 4 or 16 bytes. */
function addressBytes(address: string): ArrayBuffer {
  if (net.isIPv4(address)) return Uint8Array.from(address.split('.'), Number).buffer
  const [head = '', tail] = address.replace(/%.*$/, '').split('::') as [string, string?]
  const groups = (part: string): number[] =>
    part === ''
      ? []
      : part.split(':').flatMap(group => {
          if (!group.includes('.')) return [Number.parseInt(group, 16)]
          const [a = 0, b = 0, c = 0, d = 0] = group.split('.').map(Number) // ::ffff:10.0.0.1
          return [a * 256 + b, c * 256 + d]
        })
  const front = groups(head)
  const back = tail === undefined ? [] : groups(tail)
  const all = [...front, ...new Array<number>(8 - front.length - back.length).fill(0), ...back]
  return Uint8Array.from(all.flatMap(group => [group >> 8, group & 0xff])).buffer
}
