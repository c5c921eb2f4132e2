/** Lists of revoked certificates, which `pageferry keygen` does not make. */
import { webcrypto, X509Certificate } from 'node:crypto'
import fs from 'node:fs'
import * as asn1 from 'asn1js'
import * as pki from 'pkijs'

export interface CrlOptions {
  /** From now. */
  readonly fromMs?: number
  readonly toMs?: number | undefined
  /** File of the certificate that it revokes. */
  readonly revoked?: string
}

/** A list of the CA that `pageferry keygen` made in `dir`, whose certificate a site there has. @returns PEM */
export async function makeCrl(dir: string, options: CrlOptions = {}, site = 'site-a'): Promise<string> {
  const { fromMs = -60_000, toMs, revoked } = { toMs: 3_600_000, ...options }
  const pem = fs.readFileSync(`${dir}/${site}/ca-cert.pem`)
  const ca = pki.Certificate.fromBER(new Uint8Array(new X509Certificate(pem).raw).buffer)
  const der = Buffer.from(fs.readFileSync(`${dir}/ca-key.pem`, 'utf8').replaceAll(/-----.*-----|\s/g, ''), 'base64')
  const key = await webcrypto.subtle.importKey('pkcs8', der, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign'])
  const crl = new pki.CertificateRevocationList()
  crl.version = 1
  crl.issuer = ca.subject
  crl.thisUpdate = new pki.Time({ type: 0, value: new Date(Date.now() + fromMs) })
  if (toMs !== undefined) crl.nextUpdate = new pki.Time({ type: 0, value: new Date(Date.now() + toMs) })
  if (revoked) {
    const serial = new X509Certificate(fs.readFileSync(revoked)).serialNumber
    crl.revokedCertificates = [
      new pki.RevokedCertificate({
        userCertificate: new asn1.Integer({ valueHex: new Uint8Array(Buffer.from(serial, 'hex')).buffer }),
        revocationDate: new pki.Time({ type: 0, value: new Date(Date.now() - 30_000) }),
      }),
    ]
  }
  await crl.sign(key, 'SHA-256')
  const text = Buffer.from(crl.toSchema(true).toBER(false))
    .toString('base64')
    .match(/.{1,64}/g)!
    .join('\n')
  return `-----BEGIN X509 CRL-----\n${text}\n-----END X509 CRL-----\n`
}
