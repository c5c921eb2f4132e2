/**
 * Who we are and whom we trust on the WAN: TLS 1.3 and nothing older, both sides proven, from a directory in the layout
 * of QEMU's tls-creds objects, so that the files made for QEMU's own TLS serve here as they are.
 * Source: QEMU crypto/tlscredsx509.c, crypto/tlscredspsk.c.
 */
import { createHash, randomBytes, type X509Certificate } from 'node:crypto'
import net from 'node:net'
import tls from 'node:tls'
import { ProxyError } from '../errors.ts'
import type { Role } from '../session/api.ts'
import { ALPN } from '../wan/wire.ts'
import { complaints, kindOf, type Period, readPsk, readX509 } from './credential-files.ts'
import { auth, badContext, CA_HINT, explain, NAME_HINT, quote, trustHint } from './tls-errors.ts'

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
  /** Client: sent in clear as TLS server name indication, for a gateway that chooses by it. Default: none is sent. */
  readonly serverName?: string
}

/** A name for TLS server name indication, as it is. @throws ProxyError USAGE */
export function requireServerName(name: string): string {
  if (name !== '' && net.isIP(name) === 0) return name
  const hint = 'TLS sends names only, not addresses (RFC 6066)'
  throw new ProxyError('USAGE', `server name ${quote(name)}`, undefined, hint)
}

/** A connection after its TLS handshake. */
export interface SecuredSocket {
  readonly socket: tls.TLSSocket
  /** Stable over renewal of the certificate: `x509:` subject and alternative names, or `psk:` username. */
  readonly identity: string
  /** The peer's, where it has one: a TLS socket of Node's gives it away once. */
  readonly certificate: X509Certificate | undefined
}

/** What one reading of the directory gave. Immutable: connections that began with it keep it. */
interface Loaded {
  readonly kind: 'x509' | 'psk'
  readonly context: tls.SecureContext
  readonly keys: ReadonlyMap<string, Buffer>
  /** PSK client: what we call ourselves. */
  readonly username: string
  readonly warnings: readonly string[]
  readonly periods: readonly Period[]
  /** X.509: SHA-256 of our certificate, for the log. */
  readonly fingerprint: string
  /** Of all that was read: two readings that differ have different ones. */
  readonly digest: string
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
    if (options.serverName !== undefined) requireServerName(options.serverName)
    this.#loaded = this.#load()
  }

  /** Which of QEMU's two layouts is in use. */
  get kind(): 'x509' | 'psk' {
    return this.#loaded.kind
  }

  /** What an operator should mend, now: key files that others can read, certificates and revocation lists near their end. */
  get warnings(): readonly string[] {
    return [...this.#loaded.warnings, ...complaints(this.#loaded.periods)]
  }

  /** From when to when certificates and revocation lists are valid. */
  get periods(): readonly Period[] {
    return this.#loaded.periods
  }

  /** SHA-256 of our certificate (X.509) or our username (PSK client), for the log. */
  get describe(): string {
    const l = this.#loaded
    return l.kind === 'psk' ? `psk ${l.username || `${l.keys.size} keys`}` : `x509 ${l.fingerprint}`
  }

  /**
   * Reads the files again (SIGHUP). Connections that stand keep what they began with. On failure the old ones stay in use.
   * @returns whether they say something else than before: whom they let in, or who we are
   * @throws ProxyError IO, USAGE
   */
  reload(): boolean {
    const { digest } = this.#loaded
    this.#loaded = this.#load()
    return this.#loaded.digest !== digest
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
        ALPNProtocols: [ALPN],
        ...(this.#options.serverName !== undefined && { servername: this.#options.serverName }),
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
            resolve({ socket, identity: `psk:${loaded.username}`, certificate: undefined })
          } else {
            if (!socket.authorized)
              throw auth(`the server's certificate is not trusted: ${text(socket)}`, trustHint(text(socket)))
            const certificate = socket.getPeerX509Certificate()
            resolve({ socket, identity: certificateIdentity(certificate), certificate })
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
  accept(raw: net.Socket): Promise<Omit<SecuredSocket, 'certificate'> & { readonly refusal: ProxyError | undefined }> {
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
    const identity = certificateIdentity(cert)
    if (!socket.authorized) {
      return {
        identity,
        refusal: auth(`client certificate ${quote(identity)} is not trusted: ${text(socket)}`, trustHint(text(socket))),
      }
    }
    const wrong = name === undefined ? undefined : checkName(name, socket.getPeerCertificate())
    return {
      identity,
      refusal: wrong && auth(`client certificate ${quote(identity)} does not carry the peer name`, NAME_HINT),
    }
  }

  #load(): Loaded {
    const { directory, role, kind = kindOf(directory), pskUsername } = this.#options
    const common = {
      minVersion: 'TLSv1.3',
      maxVersion: 'TLSv1.3',
      honorCipherOrder: true,
      secureOptions: NO_TICKET,
    } as const
    if (kind === 'psk') {
      const file = readPsk(directory, role, pskUsername)
      // No CA at all: with Node's built-in ones a server could take a public certificate in place of the key.
      const options = { ...common, ciphers: PSK_CIPHERS, ca: [] }
      const acceptor = role === 'server' ? this.#acceptor(options, file.keys) : undefined
      const digest = digestOf([file.username, ...[...file.keys].flat()])
      return {
        ...file,
        kind,
        periods: [],
        context: tls.createSecureContext(options),
        fingerprint: '',
        digest,
        acceptor,
      }
    }
    const { certFile, keyFile, crl, ca, cert, key, ...found } = readX509(directory, role)
    const options: tls.SecureContextOptions = {
      ...common,
      ciphers: X509_CIPHERS,
      ...{ ca, cert, key },
      ...(crl.length > 0 && { crl: [...crl] }),
    }
    let context: tls.SecureContext
    try {
      context = tls.createSecureContext(options)
    } catch (error) {
      throw badContext(error as Error & { code?: string }, certFile, keyFile)
    }
    const acceptor = role === 'server' ? this.#acceptor(options, undefined) : undefined
    const digest = digestOf([ca, cert, key, ...crl])
    return { ...found, kind, context, keys: new Map(), username: '', digest, acceptor }
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

function ignore(): void {}

/** Of several parts, each with its length: no two lists of parts give the same bytes. */
function digestOf(parts: readonly (Buffer | string)[]): string {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(`${Buffer.byteLength(part)}:`).update(part)
  return hash.digest('base64')
}

/** The TCP socket beneath a TLS socket. Node keeps it as `_parent`; @types/node does not know it. */
function rawOf(socket: tls.TLSSocket): object {
  return (socket as unknown as { _parent?: object })._parent ?? socket
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
  try {
    return tls.checkServerIdentity(name, cert)
  } catch (error) {
    return error as Error // names that cannot be parsed; it would be thrown out of a socket's event
  }
}

/** Subject and alternative names, not the fingerprint: a renewed certificate is still the same peer. */
function certificateIdentity(cert: X509Certificate | undefined): string {
  if (!cert) return ''
  return `x509:${cert.subject.replaceAll('\n', ',')};${cert.subjectAltName ?? ''}`
}

/** Whether two certificates' identities have the subject or an alternative name in common: one renews the other. */
export function areRelated(before: string, after: string): boolean {
  const names = (identity: string): string[] => {
    const [, subject, alternative = ''] = /^x509:(.*);(.*?)$/.exec(identity) ?? []
    // Node quotes names in which commas could forge others: no two such are alike to us
    if (!subject || alternative.includes('"')) return []
    return [`subject ${subject}`, ...alternative.split(', ').filter(name => name !== '')]
  }
  const known = new Set(names(before))
  return names(after).some(name => known.has(name))
}
