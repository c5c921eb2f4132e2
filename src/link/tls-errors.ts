/** What OpenSSL and Node say about a handshake or a key file, in words that an operator can act on. */
import { ProxyError } from '../errors.ts'
import type { Role } from '../session/api.ts'

export const CA_HINT = 'both sides need certificates of the CA in ca-cert.pem; `pageferry keygen x509` makes a set'
export const NAME_HINT = 'set the peer name to a name in the peer certificate, or make a certificate for this name'

/** What to do about a certificate that OpenSSL does not trust. @param code OpenSSL's, without X509_V_ERR_ */
export function trustHint(code: string): string {
  switch (code) {
    case 'CRL_HAS_EXPIRED':
    case 'CRL_NOT_YET_VALID':
      return 'the revocation list of its CA, in our ca-crl.pem, is not valid today: get the new one'
    case 'UNABLE_TO_GET_CRL':
      return 'our ca-crl.pem has no list of the CA that signed it: add one for every CA, or remove the file'
    case 'CERT_REVOKED':
      return 'the CA has revoked it (ca-crl.pem): make the other side a new one'
    case 'CERT_HAS_EXPIRED':
      return 'the other side needs a new certificate, or its CA has expired'
    case 'CERT_NOT_YET_VALID':
      return 'check the clocks of both hosts'
    default:
      return CA_HINT
  }
}

/** The peer is not who it must be. */
export function auth(what: string, action: string, cause?: unknown): ProxyError {
  return new ProxyError('PEER_AUTH', what, undefined, action, cause === undefined ? undefined : { cause })
}

/** A stranger's text for the log: short, and without control characters. */
export function quote(value: string): string {
  const clean = value.replaceAll(/[^\x20-\x7e]/g, '?')
  return JSON.stringify(clean.length > 100 ? `${clean.slice(0, 100)}...` : clean)
}

/** Turns what OpenSSL and Node say about a failed handshake into what an operator can act on. */
export function explain(
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
        "see the log of the other side; a source proxy's --listen is for QEMU, not for proxies",
        error && { cause: error },
      )
  }
  const said = error ? (code && !error.message.includes(code) ? `${code}: ` : '') + firstLine(error.message) : 'closed'
  const trust = /CERT|ISSUER|CRL|CHAIN/.test(code)
  if (trust && role === 'client')
    return auth(`the server's certificate is not trusted: ${said}`, trustHint(code), error)
  return auth(`TLS handshake with the ${peer} failed: ${said}`, both, error)
}

function firstLine(message: string): string {
  const line = message.trim().split('\n')[0] ?? ''
  // OpenSSL: thread:error:number:SSL routines:function:reason:file:line:
  const parts = line.split(':')
  return parts.length >= 6 && parts[1] === 'error' ? parts[5]! : line.slice(0, 200)
}

/** Why a certificate, key and CRL make no TLS context. */
export function badContext(error: Error & { code?: string }, certFile: string, keyFile: string): ProxyError {
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
  return new ProxyError(
    'USAGE',
    `${keyFile}: not an unencrypted private key in PEM (${error.code ?? firstLine(error.message)})`,
    undefined,
    'PKCS#8 or traditional PEM without a passphrase',
    options,
  )
}
