/**
 * What a CA of `keygen x509` is for later: new certificates for the sites that it has, and a further site. Keys stay, so
 * that old and new certificates, of sites and of the CA, fit together in every mix: a site may be renewed before the other,
 * and a proxy may read the folder at any moment.
 */
import { createPrivateKey, createPublicKey, type KeyObject, randomBytes, webcrypto, X509Certificate } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { ProxyError } from '../errors.ts'
import { CREDENTIAL_FILE } from './credential-files.ts'
import {
  BACKDATE_MS,
  CA_KEY_FILE,
  type CredentialFile,
  checkSites,
  DAY_MS,
  inFolder,
  makeCertificate,
  makeSite,
  naming,
  openFolder,
  type SiteNames,
} from './keygen.ts'

const P256 = 'prime256v1'
const CERTIFICATE = /-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----\n?/g
/** No file of keygen's is near this size. */
const FILE_BYTES_MAX = 1 << 20

/** A site whose certificates are new. */
export interface RenewedSite {
  readonly name: string
  readonly names: readonly string[]
}

export interface Renewed {
  readonly sites: readonly RenewedSite[]
  /** Paths below the directory. */
  readonly files: readonly string[]
  readonly until: Date
}

/** A CA that `keygen x509` made. */
interface Authority {
  readonly name: string
  readonly keys: webcrypto.CryptoKeyPair
  readonly publicKey: KeyObject
  /** Its certificate that is valid for longest. */
  readonly certificate: X509Certificate
  readonly sites: readonly string[]
}

/**
 * Writes new certificates of sites and of their CA, with the same names and keys, each file whole or not at all, with the
 * mode and owner of the one before.
 * @param only sites by their folders; none: all
 * @throws ProxyError USAGE (not what keygen made, no such site), IO
 */
export async function renewX509(directory: string, days: number, only: readonly string[] = []): Promise<Renewed> {
  const authority = await readAuthority(directory)
  const missing = only.find(name => !authority.sites.includes(name))
  if (missing !== undefined) {
    const hint = `sites are: ${authority.sites.join(', ')}; \`pageferry keygen add\` makes another one`
    throw new ProxyError('USAGE', `no site ${JSON.stringify(missing)} in ${directory}`, undefined, hint)
  }
  const notBefore = new Date(Date.now() - BACKDATE_MS)
  const until = new Date(Date.now() + days * DAY_MS)
  const period = { notBefore, notAfter: until }
  const { name, keys, publicKey } = authority
  const caCert = await makeCertificate({ name, keys, issuer: authority, ...period })
  const sites: RenewedSite[] = []
  const files: CredentialFile[] = []
  for (const site of authority.sites.filter(one => only.length === 0 || only.includes(one))) {
    const at = (file: string): string => path.join(site, file)
    const bundle = readText(directory, at(CREDENTIAL_FILE.ca))
    const others = bundle.replaceAll(CERTIFICATE, one => (isOf(one, publicKey) ? '' : one))
    files.push({ path: at(CREDENTIAL_FILE.ca), content: `${caCert}${others}` })
    for (const use of ['server', 'client'] as const) {
      const certFile = at(use === 'server' ? CREDENTIAL_FILE.serverCert : CREDENTIAL_FILE.clientCert)
      const old = readCertificate(directory, certFile)
      if (old === undefined) continue // a host that only receives
      const names = namesOf(old, path.join(directory, certFile))
      const ownKeys = await publicKeysOf(old, path.join(directory, certFile))
      const leaf = { use, names }
      files.push({
        path: certFile,
        content: await makeCertificate({ name: names[0], keys: ownKeys, issuer: authority, ...period, leaf }),
      })
      if (!sites.some(one => one.name === site)) sites.push({ name: site, names })
    }
  }
  replaceFiles(directory, files)
  return { sites, files: files.map(file => file.path), until }
}

/**
 * Files of one more site under the CA of a directory. Its certificates end with the CA's at the latest.
 * @throws ProxyError USAGE, IO
 */
export async function addX509(
  directory: string,
  site: SiteNames,
  days: number,
): Promise<{ readonly files: CredentialFile[]; readonly until: Date; readonly sites: readonly string[] }> {
  const authority = await readAuthority(directory)
  checkSites(site)
  const { certificate, sites } = authority
  const untilMs = Math.min(Date.now() + days * DAY_MS, Date.parse(certificate.validTo))
  if (untilMs <= Date.now()) {
    const hint = `pageferry keygen renew --dir ${directory}`
    throw new ProxyError('USAGE', `the CA in ${directory} expired on ${certificate.validTo}`, undefined, hint)
  }
  const period = { notBefore: new Date(Date.now() - BACKDATE_MS), notAfter: new Date(untilMs) }
  const files = await makeSite(site, authority, certificate.toString(), period)
  return { files, until: period.notAfter, sites }
}

/** @throws ProxyError USAGE, IO */
async function readAuthority(directory: string): Promise<Authority> {
  const keyFile = path.join(directory, CA_KEY_FILE)
  let key: KeyObject
  try {
    key = createPrivateKey(readText(directory, CA_KEY_FILE))
  } catch (error) {
    if (error instanceof ProxyError) throw error
    throw notOurs(keyFile, 'no private key in PEM', error)
  }
  if (key.asymmetricKeyDetails?.namedCurve !== P256) throw notOurs(keyFile, 'not of the kind that keygen makes')
  const publicKey = createPublicKey(key)
  const sites = naming(directory, () =>
    fs
      .readdirSync(directory, { withFileTypes: true })
      .filter(entry => entry.isDirectory() && fs.existsSync(path.join(directory, entry.name, CREDENTIAL_FILE.ca)))
      .map(({ name }) => name)
      .sort(),
  )
  const found = sites.flatMap(site =>
    (readText(directory, path.join(site, CREDENTIAL_FILE.ca)).match(CERTIFICATE) ?? [])
      .filter(one => isOf(one, publicKey))
      .map(one => new X509Certificate(one)),
  )
  found.sort((a, b) => Date.parse(b.validTo) - Date.parse(a.validTo))
  const [certificate] = found
  const name = /^CN=(.+)$/.exec(certificate?.subject ?? '')?.[1]
  if (certificate === undefined || name === undefined) {
    const hint = 'give the folder that `pageferry keygen x509` made: it has ca-key.pem, and a folder for each site'
    throw new ProxyError('USAGE', `${directory}: no site has a certificate of the CA of ${keyFile}`, undefined, hint)
  }
  const imported = await webcrypto.subtle.importKey(
    'pkcs8',
    key.export({ format: 'der', type: 'pkcs8' }),
    { name: 'ECDSA', namedCurve: 'P-256' },
    true,
    ['sign'],
  )
  return { name, certificate, sites, publicKey, keys: { privateKey: imported, publicKey: await imports(publicKey) } }
}

/** Whether a certificate in PEM has this key; one that is damaged has not. */
function isOf(pem: string, publicKey: KeyObject): boolean {
  try {
    return new X509Certificate(pem).publicKey.equals(publicKey)
  } catch {
    return false
  }
}

function imports(publicKey: KeyObject): Promise<webcrypto.CryptoKey> {
  const der = publicKey.export({ format: 'der', type: 'spki' })
  return webcrypto.subtle.importKey('spki', der, { name: 'ECDSA', namedCurve: 'P-256' }, true, ['verify'])
}

/** The key that a certificate is about: its owner keeps the private one. @throws USAGE */
async function publicKeysOf(
  certificate: X509Certificate,
  file: string,
): Promise<Pick<webcrypto.CryptoKeyPair, 'publicKey'>> {
  if (certificate.publicKey.asymmetricKeyDetails?.namedCurve !== P256)
    throw notOurs(file, 'its key is not of the kind that keygen makes')
  return { publicKey: await imports(certificate.publicKey) }
}

/** @throws USAGE */
function namesOf(certificate: X509Certificate, file: string): SiteNames {
  const { subject, subjectAltName = '' } = certificate
  const first = /^CN=(.+)$/.exec(subject)?.[1]
  const alternative = subjectAltName.split(', ').map(name => /^(?:DNS|IP Address):(.+)$/.exec(name)?.[1] ?? '')
  if (first === undefined || alternative.includes('')) throw notOurs(file, 'names of a kind that keygen does not make')
  const names = alternative.length > 0 ? alternative : [first]
  const inOrder: SiteNames = [first, ...names.filter(name => name !== first)]
  checkSites(inOrder)
  return inOrder
}

function notOurs(file: string, what: string, cause?: unknown): ProxyError {
  const hint = '`pageferry keygen x509` makes what this renews; renew others where they were made'
  return new ProxyError('USAGE', `${file}: ${what}`, undefined, hint, { cause })
}

/** @throws IO, USAGE */
function readText(directory: string, name: string): string {
  const file = path.join(directory, name)
  return naming(
    file,
    () => {
      const fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK) // a FIFO would be waited for
      try {
        const stat = fs.fstatSync(fd)
        if (!stat.isFile() || stat.size > FILE_BYTES_MAX) throw notOurs(file, 'not a credential file')
        return fs.readFileSync(fd, 'latin1')
      } finally {
        fs.closeSync(fd)
      }
    },
    'give the folder that `pageferry keygen x509` made, with its ca-key.pem',
  )
}

/** @returns undefined where there is none. @throws IO, USAGE */
function readCertificate(directory: string, name: string): X509Certificate | undefined {
  if (!fs.existsSync(path.join(directory, name))) return undefined
  try {
    return new X509Certificate(readText(directory, name))
  } catch (error) {
    if (error instanceof ProxyError) throw error
    throw notOurs(path.join(directory, name), 'no certificate in PEM', error)
  }
}

/**
 * Replaces files that are there, each whole or not at all: all are written beside their places before the first takes its.
 * Folders of sites must be ours alone, as where they were made. @throws USAGE, IO
 */
function replaceFiles(directory: string, files: readonly CredentialFile[]): void {
  const open: number[] = []
  const temporary: string[] = []
  try {
    const root = openFolder(directory, directory, open)
    const folders = new Map<string, number>()
    const steps = files.map(({ path: name, content }) => {
      const site = path.dirname(name)
      const shown = path.join(directory, name)
      const folder = folders.get(site) ?? openFolder(inFolder(root, site), path.join(directory, site), open)
      folders.set(site, folder)
      const target = inFolder(folder, path.basename(name))
      const beside = inFolder(folder, `.${path.basename(name)}.${randomBytes(4).toString('hex')}.tmp`)
      naming(shown, () => {
        const old = fs.lstatSync(target)
        if (!old.isFile()) throw notOurs(shown, 'not a credential file')
        const fd = fs.openSync(beside, 'wx', 0o600)
        temporary.push(beside)
        try {
          fs.writeFileSync(fd, content)
          if (old.uid !== process.geteuid?.() || old.gid !== process.getegid?.()) fs.fchownSync(fd, old.uid, old.gid)
          fs.fchmodSync(fd, old.mode & 0o777)
          fs.fsyncSync(fd)
        } finally {
          fs.closeSync(fd)
        }
      })
      return { beside, target, shown }
    })
    for (const { beside, target, shown } of steps) naming(shown, () => fs.renameSync(beside, target))
    temporary.length = 0
    for (const fd of folders.values()) fs.fsyncSync(fd)
  } finally {
    for (const name of temporary) fs.rmSync(name, { force: true })
    for (const fd of open) fs.closeSync(fd)
  }
}
