/**
 * Who we are and whom we trust on the WAN: TLS 1.3 and nothing older, both sides proven, from a directory in the layout
 * of QEMU's tls-creds objects, so that the files made for QEMU's own TLS serve here as they are.
 * Source: QEMU crypto/tlscredsx509.c, crypto/tlscredspsk.c.
 */
import { randomBytes, X509Certificate } from 'node:crypto'
import fs from 'node:fs'
import type net from 'node:net'
import path from 'node:path'
import tls from 'node:tls'
import { ProxyError } from '../errors.ts'

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

/** Identity of a peer on a plain link: nobody was proven. */
export const PLAIN_IDENTITY = 'plain'

/**
 * OpenSSL hands out an external key as a TLS 1.3 PSK through its older callback, which ties the key to SHA-256: of the
 * suites with that hash, this one is the fast one on every CPU with AES instructions.
 */
const PSK_CIPHERS = 'TLS_AES_128_GCM_SHA256'
/** AES-128 first: the link is CPU bound, and nothing in our use weakens it. */
const X509_CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256'
/**
 * SSL_OP_NO_TICKET. A resumed TLS session would prove nothing about the certificates and keys of today, and our own
 * sessions resume by themselves. In TLS 1.3 OpenSSL then only hands out stateful tickets, which nothing here accepts.
 */
const NO_TICKET = 0x4000
/** No credential file is near this size; a wrong path to a disk image must not be read whole. */
const FILE_BYTES_MAX = 1 << 20
/** 128 bits: a shorter key could be guessed offline from one recorded handshake. */
const PSK_BYTES_MIN = 16
/** OpenSSL's PSK_MAX_PSK_LEN of the callback that Node uses. */
const PSK_BYTES_MAX = 256
const PSK_NAME_BYTES_MAX = 128
const EXPIRY_WARNING_DAYS = 30
const DAY_MS = 86_400_000

/** Which of the two ends: it decides which certificate is ours, and who checks what. */
export type Role = 'client' | 'server'

/** How to find credentials. */
export interface CredentialsOptions {
  readonly role: Role
  /** Directory in QEMU's tls-creds layout. */
  readonly directory: string
  /** Default: PSK where the directory has keys.psk and no ca-cert.pem, else X.509. */
  readonly kind?: 'x509' | 'psk'
  /**
   * Client: the name that the server's certificate must carry; default: the host that is dialled. Server: the name
   * that the client's certificate must carry (or, with PSK, its username); default: any that the CA (or keys.psk) knows.
   */
  readonly peerName?: string
  /** PSK client: which line of keys.psk; default: the only one, else `qemu`. */
  readonly pskUsername?: string
}

/** A connection after its TLS handshake. */
export interface SecuredSocket {
  readonly socket: tls.TLSSocket
  /** Stable over renewal of the certificate: `x509:` subject and alternative names, or `psk:` username. */
  readonly identity: string
}

/** What one reading of the directory gave. Immutable: connections that began with it keep it. */
interface Loaded {
  readonly kind: 'x509' | 'psk'
  readonly context: tls.SecureContext
  readonly keys: ReadonlyMap<string, Buffer>
  /** PSK client: what we call ourselves. */
  readonly username: string
  readonly warnings: readonly string[]
  /** X.509: SHA-256 of our certificate, for the log. */
  readonly fingerprint: string
  /** Server only: never listens; it is handed sockets. */
  readonly acceptor: tls.Server | undefined
}

/** How one accepted socket's handshake ends. */
interface Waiter {
  done(socket: tls.TLSSocket): void
  failed(error: Error | undefined): void
  pskName: string | undefined
  pskKnown: boolean
}

/** TLS 1.3 credentials of one side of a link; `reload` reads the files again for connections made from then on. */
export class Credentials {
  readonly role: Role
  readonly directory: string
  readonly peerName: string | undefined
  readonly #options: CredentialsOptions
  /** By the TLS socket's underlying socket: the acceptor's events name only sockets. */
  readonly #waiting = new WeakMap<object, Waiter>()
  #loaded: Loaded

  /** @throws ProxyError IO (file missing or unreadable), USAGE (file is not what it must be) */
  constructor(options: CredentialsOptions) {
    this.role = options.role
    this.directory = options.directory
    this.peerName = options.peerName
    this.#options = options
    this.#loaded = this.#load()
  }

  /** Which of QEMU's two layouts is in use. */
  get kind(): 'x509' | 'psk' {
    return this.#loaded.kind
  }

  /** What an operator should mend, though the files work: key files that others can read, certificates near their end. */
  get warnings(): readonly string[] {
    return this.#loaded.warnings
  }

  /** SHA-256 of our certificate (X.509) or our username (PSK client), for the log. */
  get describe(): string {
    const l = this.#loaded
    return l.kind === 'psk' ? `psk ${l.username || `${l.keys.size} keys`}` : `x509 ${l.fingerprint}`
  }

  /**
   * Reads the files again (SIGHUP). Connections that stand keep what they began with. On failure the old ones stay in use.
   * @returns the warnings of the new files
   * @throws ProxyError IO, USAGE
   */
  reload(): readonly string[] {
    this.#loaded = this.#load()
    return this.#loaded.warnings
  }

  /**
   * TLS as the client on a connected socket; checks the server's certificate and name.
   * The caller sets the deadline: destroying `raw` ends the handshake.
   * @param host what was dialled, checked where no peer name was given
   * @throws ProxyError PEER_AUTH, PEER_LOST
   */
  connect(raw: net.Socket, host: string): Promise<SecuredSocket> {
    const loaded = this.#loaded
    const name = this.peerName ?? host
    let offered = false
    return new Promise((resolve, reject) => {
      const socket = tls.connect({
        socket: raw,
        secureContext: loaded.context,
        minVersion: 'TLSv1.3',
        maxVersion: 'TLSv1.3',
        rejectUnauthorized: true,
        // Checked here, not by tls.connect's `host`, which would also send the name in clear as SNI.
        checkServerIdentity: (_host, cert) =>
          loaded.kind === 'psk' ? new Error('a certificate') : checkName(name, cert),
        ...(loaded.kind === 'psk' && {
          pskCallback: () => {
            offered = true
            return { psk: loaded.keys.get(loaded.username)!, identity: loaded.username }
          },
        }),
      })
      const failed = (error: Error | undefined): void => {
        cleanUp()
        socket.destroy()
        reject(explain(error, 'client', loaded.kind, name))
      }
      const closed = (): void => failed(undefined)
      const cleanUp = (): void => {
        socket.off('error', failed).off('close', closed).off('secureConnect', secured)
        socket.on('error', ignore) // an error after this belongs to whoever attaches; until then it must not crash us
      }
      const secured = (): void => {
        cleanUp()
        try {
          assertTls13(socket)
          if (loaded.kind === 'psk') {
            // In TLS 1.3 an accepted external key looks like a resumed session, and the server then sends no certificate.
            if (!offered || !socket.isSessionReused() || socket.getPeerX509Certificate()) {
              throw auth('the server did not prove the pre-shared key', 'both sides need the same line in keys.psk')
            }
            resolve({ socket, identity: `psk:${loaded.username}` })
          } else {
            if (!socket.authorized) throw auth(`the server's certificate is not trusted: ${text(socket)}`, CA_HINT)
            resolve({ socket, identity: certificateIdentity(socket) })
          }
        } catch (error) {
          socket.destroy()
          reject(error)
        }
      }
      socket.on('error', failed).on('close', closed).on('secureConnect', secured)
    })
  }

  /**
   * TLS as the server on an accepted socket; checks the client's certificate, and its name where one was given.
   * The caller sets the deadline: destroying `raw` ends the handshake.
   * @returns also where the client is not to be let in, with `refusal`, so that it can be told why through the link
   * @throws ProxyError PEER_AUTH where no TLS connection came to be
   */
  accept(raw: net.Socket): Promise<SecuredSocket & { readonly refusal: ProxyError | undefined }> {
    const loaded = this.#loaded
    return new Promise((resolve, reject) => {
      const closed = (): void => waiter.failed(undefined)
      const waiter: Waiter = {
        pskName: undefined,
        pskKnown: false,
        failed: error => {
          raw.off('close', closed)
          this.#waiting.delete(raw)
          raw.destroy()
          reject(explain(error, 'server', loaded.kind, waiter.pskName, waiter.pskKnown))
        },
        done: socket => {
          raw.off('close', closed)
          this.#waiting.delete(raw)
          socket.on('error', ignore)
          try {
            assertTls13(socket)
            resolve({ socket, ...this.#identify(socket, loaded, waiter) })
          } catch (error) {
            socket.destroy()
            reject(error)
          }
        },
      }
      this.#waiting.set(raw, waiter)
      raw.on('close', closed).on('error', ignore)
      loaded.acceptor!.emit('connection', raw)
    })
  }

  /** Who an accepted TLS client is, and why it may not come in. */
  #identify(
    socket: tls.TLSSocket,
    loaded: Loaded,
    waiter: Waiter,
  ): { identity: string; refusal: ProxyError | undefined } {
    const name = this.peerName
    if (loaded.kind === 'psk') {
      // Only a handshake in which our own callback gave out the key counts, never a resumed one.
      if (waiter.pskName === undefined || !waiter.pskKnown || !socket.isSessionReused()) {
        throw auth('the client did not prove a pre-shared key', 'both sides need the same line in keys.psk')
      }
      const identity = `psk:${waiter.pskName}`
      if (name === undefined || name === waiter.pskName) return { identity, refusal: undefined }
      return { identity, refusal: auth(`PSK username ${quote(waiter.pskName)} is not the peer name`, NAME_HINT) }
    }
    const cert = socket.getPeerX509Certificate()
    if (!cert) return { identity: '', refusal: auth('no client certificate', CA_HINT) }
    const identity = certificateIdentity(socket)
    if (!socket.authorized) {
      return {
        identity,
        refusal: auth(`client certificate ${quote(identity)} is not trusted: ${text(socket)}`, CA_HINT),
      }
    }
    const wrong = name === undefined ? undefined : checkName(name, socket.getPeerCertificate())
    return {
      identity,
      refusal: wrong && auth(`client certificate ${quote(identity)} does not carry the peer name`, NAME_HINT),
    }
  }

  #load(): Loaded {
    const { directory, role } = this.#options
    const warnings: string[] = []
    const kind =
      this.#options.kind ??
      (isThere(directory, CREDENTIAL_FILE.ca) ? 'x509' : undefined) ??
      (isThere(directory, CREDENTIAL_FILE.psk) ? 'psk' : 'x509')
    const common = {
      minVersion: 'TLSv1.3',
      maxVersion: 'TLSv1.3',
      honorCipherOrder: true,
      secureOptions: NO_TICKET,
    } as const
    if (kind === 'psk') {
      const file = path.join(directory, CREDENTIAL_FILE.psk)
      const keys = parsePsk(read(file, true, warnings).toString('utf8'), file)
      const username = role === 'client' ? pickUsername(keys, this.#options.pskUsername, file) : ''
      // No CA at all: with Node's built-in ones a server could take a public certificate in place of the key.
      const context = tls.createSecureContext({ ...common, ciphers: PSK_CIPHERS, ca: [] })
      const acceptor = role === 'server' ? this.#acceptor({ ...common, ciphers: PSK_CIPHERS, ca: [] }, keys) : undefined
      return { kind, context, keys, username, warnings, fingerprint: '', acceptor }
    }
    const caFile = path.join(directory, CREDENTIAL_FILE.ca)
    const certFile = path.join(directory, role === 'client' ? CREDENTIAL_FILE.clientCert : CREDENTIAL_FILE.serverCert)
    const keyFile = path.join(directory, role === 'client' ? CREDENTIAL_FILE.clientKey : CREDENTIAL_FILE.serverKey)
    const crlFile = path.join(directory, CREDENTIAL_FILE.crl)
    const ca = read(caFile, false, warnings)
    const cert = read(certFile, false, warnings)
    const key = read(keyFile, true, warnings)
    const crl = isThere(directory, CREDENTIAL_FILE.crl) ? read(crlFile, false, warnings) : undefined
    for (const c of certificates(ca, caFile)) checkDates(c, caFile, warnings)
    const own = certificates(cert, certFile)[0]!
    checkDates(own, certFile, warnings)
    const options: tls.SecureContextOptions = {
      ...common,
      ciphers: X509_CIPHERS,
      ca,
      cert,
      key,
      ...(crl && { crl }),
    }
    let context: tls.SecureContext
    try {
      context = tls.createSecureContext(options)
    } catch (error) {
      throw badContext(error as Error & { code?: string }, certFile, keyFile, crl && crlFile)
    }
    const acceptor = role === 'server' ? this.#acceptor(options, undefined) : undefined
    return { kind, context, keys: new Map(), username: '', warnings, fingerprint: own.fingerprint256, acceptor }
  }

  /** A TLS server that never listens: sockets are handed to it, so that it can be one that systemd opened. */
  #acceptor(options: tls.SecureContextOptions, keys: ReadonlyMap<string, Buffer> | undefined): tls.Server {
    const server = tls.createServer({
      ...options,
      requestCert: keys === undefined,
      // We refuse by ourselves right after the handshake: so the log can say why, and the client be told.
      rejectUnauthorized: false,
      ...(keys && {
        pskCallback: (socket: tls.TLSSocket, name: string) => {
          const waiter = this.#waiting.get(rawOf(socket))
          if (waiter === undefined) return null
          waiter.pskName = name
          const key = keys.get(name)
          waiter.pskKnown = key !== undefined
          // A random key for an unknown name: the answer does not tell a stranger which names exist.
          return (key ?? randomBytes(32)) as NodeJS.ArrayBufferView
        },
      }),
    } as tls.TlsOptions)
    server.on('secureConnection', socket => {
      const waiter = this.#waiting.get(rawOf(socket))
      if (waiter) waiter.done(socket)
      else socket.destroy() // its deadline passed in the same turn
    })
    server.on('tlsClientError', (error, socket) => {
      this.#waiting.get(rawOf(socket))?.failed(error)
      socket.destroy()
    })
    return server
  }
}

const CA_HINT = 'both sides need certificates of the CA in ca-cert.pem; `pageferry keygen x509` makes a set'
const NAME_HINT = 'set the peer name to a name in the peer certificate, or make a certificate for this name'

function ignore(): void {}

/** The TCP socket beneath a TLS socket. Node keeps it as `_parent`; @types/node does not know it. */
function rawOf(socket: tls.TLSSocket): object {
  return (socket as unknown as { _parent?: object })._parent ?? socket
}

function auth(what: string, action: string, cause?: unknown): ProxyError {
  return new ProxyError('PEER_AUTH', what, undefined, action, cause === undefined ? undefined : { cause })
}

/** A stranger's text for the log: short, and without control characters. */
export function quote(value: string): string {
  const clean = value.replaceAll(/[^\x20-\x7e]/g, '?')
  return JSON.stringify(clean.length > 100 ? `${clean.slice(0, 100)}...` : clean)
}

function text(socket: tls.TLSSocket): string {
  return String(socket.authorizationError ?? 'unknown reason')
}

function assertTls13(socket: tls.TLSSocket): void {
  if (socket.getProtocol() !== 'TLSv1.3') {
    throw auth(`negotiated ${socket.getProtocol()} in place of TLSv1.3`, 'the connection is closed')
  }
}

function checkName(name: string, cert: tls.PeerCertificate): Error | undefined {
  return tls.checkServerIdentity(name, cert)
}

/** Subject and alternative names, not the fingerprint: a renewed certificate is still the same peer. */
function certificateIdentity(socket: tls.TLSSocket): string {
  const cert = socket.getPeerX509Certificate()
  if (!cert) return ''
  return `x509:${cert.subject.replaceAll('\n', ',')};${cert.subjectAltName ?? ''}`
}

/** Turns what OpenSSL and Node say about a failed handshake into what an operator can act on. */
function explain(
  error: (Error & { code?: string }) | undefined,
  role: Role,
  kind: 'x509' | 'psk',
  name: string | undefined,
  pskKnown = false,
): ProxyError {
  const code = error?.code ?? ''
  const peer = role === 'client' ? 'server' : 'client'
  const both = 'both sides need the same kind of credentials: X.509 or PSK'
  if (kind === 'psk' && role === 'server') {
    if (name !== undefined && pskKnown) {
      return auth(`wrong key for PSK username ${quote(name)}`, 'both sides need the same line in keys.psk', error)
    }
    if (name !== undefined) return auth(`unknown PSK username ${quote(name)}`, 'add it to keys.psk', error)
    if (code === 'ERR_SSL_NO_SUITABLE_SIGNATURE_ALGORITHM') return auth('no pre-shared key offered', both, error)
  }
  switch (code) {
    case 'ERR_TLS_CERT_ALTNAME_INVALID':
      return auth(`the server's certificate does not carry the name ${quote(name ?? '')}`, NAME_HINT, error)
    case 'ERR_SSL_WRONG_VERSION_NUMBER':
    case 'ERR_SSL_PACKET_LENGTH_TOO_LONG':
    case 'ERR_SSL_HTTP_REQUEST':
    case 'ERR_SSL_RECORD_LAYER_FAILURE':
    case 'ERR_SSL_RECORD_TOO_SMALL':
    case 'ERR_SSL_UNEXPECTED_MESSAGE':
    case 'ERR_SSL_BAD_RECORD_TYPE':
      return auth(`the ${peer} does not speak TLS`, 'both sides need TLS, or plaintext on both', error)
    case 'ERR_SSL_UNSUPPORTED_PROTOCOL':
    case 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION':
      return auth(`the ${peer} does not speak TLS 1.3`, 'older versions are never used', error)
    case 'ERR_SSL_TLSV1_ALERT_DECRYPT_ERROR':
      if (kind === 'psk') {
        return auth(
          'the server does not accept our username or key',
          'both sides need the same line in keys.psk',
          error,
        )
      }
      break
    case 'ERR_SSL_SSL/TLS_ALERT_HANDSHAKE_FAILURE':
      return auth(`the ${peer} offers nothing that fits our ${kind} credentials`, both, error)
    case 'ECONNRESET':
    case 'EPIPE':
    case '':
      if (role === 'server') {
        const hint = 'a probe, or a client that does not accept our certificate or its name: see its log'
        return auth('the client closed during the TLS handshake', hint, error)
      }
      return new ProxyError(
        'PEER_LOST',
        'the server closed the connection during the TLS handshake',
        undefined,
        'see the log of the other side',
        error && { cause: error },
      )
  }
  const said = error ? (code && !error.message.includes(code) ? `${code}: ` : '') + firstLine(error.message) : 'closed'
  const trust = /CERT|ISSUER|CRL|CHAIN/.test(code)
  if (trust && role === 'client') return auth(`the server's certificate is not trusted: ${said}`, CA_HINT, error)
  return auth(`TLS handshake with the ${peer} failed: ${said}`, both, error)
}

function firstLine(message: string): string {
  const line = message.trim().split('\n')[0] ?? ''
  // OpenSSL: thread:error:number:SSL routines:function:reason:file:line:
  const parts = line.split(':')
  return parts.length >= 6 && parts[1] === 'error' ? parts[5]! : line.slice(0, 200)
}

function isThere(directory: string, name: string): boolean {
  return fs.existsSync(path.join(directory, name))
}

/** Reads a whole file; a secret one that others can read gives a warning. */
function read(file: string, secret: boolean, warnings: string[]): Buffer {
  let fd: number
  try {
    fd = fs.openSync(file, 'r')
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

/** As QEMU does: what is not valid today is refused at the start, not at the first migration. */
function checkDates(cert: X509Certificate, file: string, warnings: string[]): void {
  const now = Date.now()
  const from = Date.parse(cert.validFrom)
  const to = Date.parse(cert.validTo)
  if (now < from) {
    throw new ProxyError(
      'USAGE',
      `${file}: not valid before ${cert.validFrom}`,
      undefined,
      'check the clock of this host',
    )
  }
  if (now > to) throw new ProxyError('USAGE', `${file}: expired on ${cert.validTo}`, undefined, 'renew the certificate')
  if (to - now < EXPIRY_WARNING_DAYS * DAY_MS) warnings.push(`${file}: expires on ${cert.validTo}`)
}

function badContext(
  error: Error & { code?: string },
  certFile: string,
  keyFile: string,
  crlFile: string | undefined,
): ProxyError {
  const options = { cause: error }
  if (error.code === 'ERR_OSSL_X509_KEY_VALUES_MISMATCH' || error.code === 'ERR_OSSL_X509_KEY_TYPE_MISMATCH') {
    return new ProxyError(
      'USAGE',
      `${keyFile}: not the key of ${certFile}`,
      undefined,
      'put the two that belong together',
      options,
    )
  }
  if (/CRL/i.test(error.message) && crlFile !== undefined) {
    return new ProxyError('USAGE', `${crlFile}: not a CRL in PEM`, undefined, 'write it again or remove it', options)
  }
  return new ProxyError(
    'USAGE',
    `${keyFile}: not an unencrypted private key in PEM (${error.code ?? firstLine(error.message)})`,
    undefined,
    'PKCS#8 or traditional PEM without a passphrase',
    options,
  )
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
