/** `keygen renew` and `keygen add`: old and new certificates in every mix, and what must stay as it was. */
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import t from 'tap'
import { isProxyError, type ProxyError } from '../../src/errors.ts'
import { makePsk, makeX509, writeCredentialFiles } from '../../src/link/keygen.ts'
import { addX509, renewX509 } from '../../src/link/keygen-renew.ts'
import { credentials } from './harness.ts'

t.setTimeout(590_000)

const CERTIFICATES = ['ca-cert.pem', 'server-cert.pem', 'client-cert.pem']
const read = (file: string): X509Certificate => new X509Certificate(fs.readFileSync(file))

/** @returns what both sides took each other for */
async function shake(client: string, server: string, name: string): Promise<readonly [string, string]> {
  const far = credentials(server, { role: 'server' })
  const near = credentials(client, { role: 'client', peerName: name })
  const listener = net.createServer().listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const raw = net.connect((listener.address() as net.AddressInfo).port, '127.0.0.1')
  const [accepted] = (await once(listener, 'connection')) as [net.Socket]
  try {
    const [there, here] = await Promise.all([far.accept(accepted), near.connect(raw, 'x')])
    if (there.refusal) throw there.refusal
    return [here.identity, there.identity]
  } finally {
    raw.destroy()
    accepted.destroy()
    listener.close()
  }
}

async function failure(run: () => Promise<unknown>): Promise<ProxyError> {
  try {
    await run()
  } catch (error) {
    if (isProxyError(error)) return error
    throw error
  }
  throw new Error('it did not fail')
}

t.test('renewed sites and sites of before prove themselves to each other, under the same names', async t => {
  const dir = t.testdir()
  const [old, now] = [path.join(dir, 'old'), path.join(dir, 'now')]
  writeCredentialFiles(now, await makeX509(['ams', 'ams.example', '192.0.2.1', '2001:db8::7'], ['fra'], 3))
  fs.cpSync(now, old, { recursive: true })
  fs.chmodSync(`${now}/ams/client-cert.pem`, 0o640)
  const others = fs.readFileSync(`${old}/fra/client-key.pem`, 'utf8')
  const { sites, files, until } = await renewX509(now, 700)
  t.same(
    sites.map(({ name }) => name),
    ['ams', 'fra'],
  )
  t.same([...files].sort(), ['ams', 'fra'].flatMap(site => CERTIFICATES.map(file => `${site}/${file}`)).sort())
  for (const site of ['ams', 'fra']) {
    for (const file of CERTIFICATES) {
      const [before, after] = [read(`${old}/${site}/${file}`), read(`${now}/${site}/${file}`)]
      t.same([after.subject, after.subjectAltName], [before.subject, before.subjectAltName], `${site} ${file}`)
      t.ok(after.publicKey.equals(before.publicKey), 'the same key')
      t.not(after.serialNumber, before.serialNumber)
      t.ok(Math.abs(Date.parse(after.validTo) - until.getTime()) < 2000, after.validTo)
    }
    t.same(fs.readdirSync(`${now}/${site}`), fs.readdirSync(`${old}/${site}`), 'nothing is left beside')
  }
  t.equal(fs.statSync(`${now}/ams/client-cert.pem`).mode & 0o777, 0o640, 'its mode')
  t.equal(fs.statSync(`${now}/ams/ca-cert.pem`).mode & 0o777, 0o600)
  t.equal(fs.readFileSync(`${now}/fra/client-key.pem`, 'utf8'), others)
  const expected = ['x509:CN=fra;DNS:fra', /^x509:CN=ams;DNS:ams, DNS:ams\.example, IP Address:192\.0\.2\.1, /] as const
  for (const [client, server] of [
    [now, now],
    [now, old],
    [old, now],
  ] as const)
    t.match(await shake(`${client}/ams`, `${server}/fra`, 'fra'), expected)

  // a file of the one and files of the other, as a proxy may find them in the middle of it
  fs.cpSync(`${old}/fra/ca-cert.pem`, `${now}/fra/ca-cert.pem`)
  t.match(await shake(`${now}/ams`, `${now}/fra`, 'fra'), expected)
  t.match(await shake(`${old}/ams`, `${now}/fra`, 'fra'), expected)
})

t.test('one site alone, one that only receives, and a bundle of CAs', async t => {
  const dir = t.testdir()
  writeCredentialFiles(dir, await makeX509(['ams'], ['fra'], 3))
  const other = `${dir}-other`
  t.teardown(() => fs.rmSync(other, { recursive: true }))
  writeCredentialFiles(other, await makeX509(['x'], ['y'], 3))
  fs.rmSync(`${dir}/fra/client-cert.pem`)
  fs.appendFileSync(`${dir}/fra/ca-cert.pem`, fs.readFileSync(`${other}/x/ca-cert.pem`))
  const before = fs.readFileSync(`${dir}/ams/server-cert.pem`, 'utf8')
  const { files } = await renewX509(dir, 9, ['fra'])
  t.same([...files].sort(), ['fra/ca-cert.pem', 'fra/server-cert.pem'])
  t.equal(fs.readFileSync(`${dir}/ams/server-cert.pem`, 'utf8'), before)
  const bundle = fs.readFileSync(`${dir}/fra/ca-cert.pem`, 'utf8').match(/BEGIN CERTIFICATE/g)
  t.equal(bundle?.length, 2, 'the other CA is still trusted')
  t.match(await shake(`${other}/x`, `${other}/y`, 'y'), ['x509:CN=y;DNS:y'])
})

t.test('a further site is known to the others, and renewed with them', async t => {
  const dir = t.testdir()
  writeCredentialFiles(dir, await makeX509(['ams'], ['fra'], 30))
  const { files, until } = await addX509(dir, ['lon', '192.0.2.9'], 3650)
  writeCredentialFiles(dir, files)
  t.ok(until.getTime() <= Date.parse(read(`${dir}/ams/ca-cert.pem`).validTo), 'not longer than its CA')
  t.match(await shake(`${dir}/lon`, `${dir}/fra`, 'fra'), [/CN=fra/, /CN=lon/])
  t.match(await shake(`${dir}/ams`, `${dir}/lon`, '192.0.2.9'), [/CN=lon/, /CN=ams/])
  const { sites } = await renewX509(dir, 90)
  t.same(
    sites.map(({ name }) => name),
    ['ams', 'fra', 'lon'],
  )
  t.match(await shake(`${dir}/lon`, `${dir}/ams`, 'ams'), [/CN=ams/, /CN=lon/])
})

t.test('certificates that have expired are renewed too', async t => {
  const dir = t.testdir()
  writeCredentialFiles(dir, await makeX509(['ams'], ['fra'], -1 / 48))
  t.match(await failure(() => addX509(dir, ['lon'], 9)), { code: 'USAGE', action: /keygen renew/ })
  await renewX509(dir, 9)
  t.match(await shake(`${dir}/ams`, `${dir}/fra`, 'fra'), [/CN=fra/, /CN=ams/])
})

t.test('what keygen did not make stays as it is', async t => {
  const dir = t.testdir()
  writeCredentialFiles(`${dir}/a`, await makeX509(['ams'], ['fra'], 9))
  writeCredentialFiles(`${dir}/b`, await makeX509(['ams'], ['fra'], 9))
  writeCredentialFiles(`${dir}/psk`, makePsk(['ams'], ['fra']))
  const state = (folder: string): string =>
    fs
      .readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .filter(name => fs.statSync(`${folder}/${name}`).isFile())
      .sort()
      .map(name => `${name} ${fs.statSync(`${folder}/${name}`).mtimeMs}`)
      .join('\n')
  const stays = async (folder: string, expected: object): Promise<void> => {
    const before = state(folder)
    t.match(await failure(() => renewX509(folder, 9)), expected)
    t.equal(state(folder), before)
  }
  t.match(await failure(() => renewX509(`${dir}/psk`, 9)), { code: 'IO', what: /ca-key\.pem: ENOENT/ })
  fs.cpSync(`${dir}/b/ca-key.pem`, `${dir}/a/ca-key.pem`)
  await stays(`${dir}/a`, { code: 'USAGE', what: /no site has a certificate of the CA/ })
  fs.writeFileSync(`${dir}/a/ca-key.pem`, 'no key')
  await stays(`${dir}/a`, { code: 'USAGE', what: /no private key/ })
  // the last file of the last site: what comes before it is not written either
  fs.writeFileSync(`${dir}/b/fra/client-cert.pem`, 'no certificate')
  await stays(`${dir}/b`, { code: 'USAGE', what: /fra\/client-cert\.pem: no certificate/ })
  fs.rmSync(`${dir}/b/fra/client-cert.pem`)
  fs.symlinkSync(`${dir}/b/fra/server-cert.pem`, `${dir}/b/fra/client-cert.pem`)
  await stays(`${dir}/b`, { code: 'USAGE', what: /fra\/client-cert\.pem: not a credential file/ })
  fs.rmSync(`${dir}/b/fra/client-cert.pem`)
  fs.chmodSync(`${dir}/b/fra`, 0o777)
  await stays(`${dir}/b`, { code: 'USAGE', what: /can be written to by others/ })
})
