import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import tls from 'node:tls'
import t from 'tap'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { Random, random } from '../../scripts/harness/random.ts'
import { ProxyError } from '../../src/errors.ts'
import { RETURNER_HANDSHAKES_MAX, RETURNERS_MAX, SESSION_IDLE_MS } from '../../src/limits.ts'
import { LinkClient } from '../../src/link/client.ts'
import { parsePsk } from '../../src/link/credential-files.ts'
import { areRelated, Credentials } from '../../src/link/credentials.ts'
import { makeX509, writeCredentialFiles } from '../../src/link/keygen.ts'
import { LinkServer } from '../../src/link/server.ts'
import { type ClientHello, encodeClientHello, HelloDecoder } from '../../src/wan/hello.ts'
import { CODE } from '../../src/wan/wire.ts'
import { stopwatch } from '../helpers/own-time.ts'
import { until } from '../helpers/until.ts'
import { type CrlOptions, makeCrl } from './crl.ts'
import {
  credentials,
  End,
  fastClock,
  makeClient,
  makeCredentials,
  offer,
  type PairOptions,
  Relay,
  sleep,
  type TestClient,
  TestServer,
} from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

type Test = Parameters<Parameters<typeof t.test>[0]>[0]

/** Credentials of both ends of a link, one server's and one client's. */
async function pairOf(kind: string, test: { teardown(run: () => void): void }): Promise<PairOptions> {
  if (kind === 'plain') return {}
  const directory = await makeCredentials(kind as 'x509' | 'psk', test)
  const named = kind === 'x509'
  return {
    serverCredentials: credentials(`${directory}/site-b`, { role: 'server', ...(named && { peerName: 'site-a' }) }),
    clientCredentials: credentials(`${directory}/site-a`, { role: 'client', ...(named && { peerName: 'site-b' }) }),
  }
}

async function start(test: Test, options: PairOptions): Promise<TestServer> {
  const server = await new TestServer(options).listen()
  test.teardown(() => server.server.close(0))
  return server
}

function join(test: Test, port: number, options: PairOptions): TestClient {
  const client = makeClient(port, options)
  test.teardown(() => void client.client.link.abort(new ProxyError('QEMU_LOST', 'the test is over', undefined, '')))
  return client
}

/** Everything that was asked for has come, on both sides, and nothing else. */
function checkBytes(test: Test, server: TestServer, client: TestClient, sent: number, back: number): void {
  test.same(client.end.mistakes, [], 'client got every byte in order, once')
  test.same(server.ends[0]!.mistakes, [], 'server got every byte in order, once')
  test.equal(server.ends[0]!.bytesIn, sent, 'all bytes to the server')
  test.equal(client.end.bytesIn, back, 'all bytes back')
}

/** Opens flows of every kind. @returns how many, and bytes each way */
function openMany(client: TestClient, count: number, scale: number): { count: number; sent: number; back: number } {
  let sent = 0
  let back = 0
  for (let i = 0; i < count; i++) {
    const total = Math.floor((1000 + 70_001 * (i % 7)) * scale)
    const answer = Math.floor((5 + 30_011 * (i % 5)) * scale)
    client.end.open(total, answer, i % 3 === 0, 1 + (i % 4))
    sent += total
    back += answer
  }
  return { count, sent, back }
}

const refusals = (server: TestServer): string[] =>
  server.log.of('link.refused').map(line => `${line.fields.code}: ${line.fields.reason}`)

t.test('credentials', async t => {
  const directory = await makeCredentials('x509', t)
  const other = await makeCredentials('x509', t)
  const psk = await makeCredentials('psk', t)
  const copy = (from: string, change: (dir: string) => void): string => {
    const dir = fs.mkdtempSync(path.join(directory, 'case-'))
    fs.cpSync(from, dir, { recursive: true })
    change(dir)
    return dir
  }
  const fails = (dir: string, code: string, what: RegExp, role: 'client' | 'server' = 'server') => {
    t.throws(() => new Credentials({ role, directory: dir }), { code, what }, `${code} ${what}`)
  }
  const good = credentials(`${directory}/site-a`, { role: 'server' })
  t.equal(good.kind, 'x509')
  t.same(good.warnings, [])
  t.match(good.describe, /^x509 [0-9A-F:]{95}$/)
  t.equal(credentials(`${psk}/site-a`, {}).kind, 'psk')
  t.equal(credentials(`${psk}/site-a`, {}).describe, 'psk qemu')

  for (const file of ['ca-cert.pem', 'server-cert.pem', 'server-key.pem']) {
    fails(
      copy(`${directory}/site-a`, d => fs.rmSync(`${d}/${file}`)),
      'IO',
      new RegExp(`${file}: no such file`),
    )
  }
  fails(
    copy(`${directory}/site-a`, d => fs.writeFileSync(`${d}/ca-cert.pem`, 'no')),
    'USAGE',
    /ca-cert.pem: no certificate/,
  )
  const damaged = '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n'
  fails(
    copy(`${directory}/site-a`, d => fs.writeFileSync(`${d}/server-cert.pem`, damaged)),
    'USAGE',
    /server-cert.pem: a certificate is damaged/,
  )
  fails(
    copy(`${directory}/site-a`, d => fs.writeFileSync(`${d}/server-key.pem`, 'no')),
    'USAGE',
    /server-key.pem: not an unencrypted private key/,
  )
  fails(
    copy(`${directory}/site-a`, d => fs.writeFileSync(`${d}/ca-crl.pem`, 'no')),
    'USAGE',
    /ca-crl.pem: not a CRL/,
  )
  fails(
    copy(`${directory}/site-a`, d => fs.copyFileSync(`${other}/site-a/server-key.pem`, `${d}/server-key.pem`)),
    'USAGE',
    /server-key.pem: not the key of/,
  )
  fails(
    copy(`${directory}/site-a`, d => fs.writeFileSync(`${d}/server-key.pem`, Buffer.alloc(2 << 20))),
    'USAGE',
    /not a credential file/,
  )
  const open = copy(`${directory}/site-a`, d => fs.chmodSync(`${d}/server-key.pem`, 0o640))
  t.match(credentials(open, { role: 'server' }).warnings, [
    /server-key.pem: others can reach this secret \(mode 0640\); chmod 600/,
  ])

  const old = fs.mkdtempSync(path.join(directory, 'old-'))
  writeCredentialFiles(old, await makeX509(['a'], ['b'], -1 / 48))
  fails(`${old}/a`, 'USAGE', /ca-cert.pem: expired on/)
  const soon = fs.mkdtempSync(path.join(directory, 'soon-'))
  writeCredentialFiles(soon, await makeX509(['a'], ['b'], 3))
  t.match(credentials(`${soon}/a`, {}).warnings, [/ca-cert.pem: expires on/, /client-cert.pem: expires on/])

  const key = 'ab'.repeat(32)
  t.same([...parsePsk(`# ours\n\nalice:${key}\r\nb:c:${key.toUpperCase()}\n`, 'f').keys()], ['alice', 'b:c'])
  for (const [content, what] of [
    ['', /^f: no key/],
    ['alice', /^f:1: not username/],
    [`:${key}`, /^f:1: not username/],
    ['a:xyz', /^f:1: not username/],
    ['a:abc', /^f:1: not username/],
    ['\na:ab', /^f:2: key too short/],
    [`a:${'ab'.repeat(257)}`, /^f:1: key too long/],
    [`${'x'.repeat(129)}:${key}`, /^f:1: username too long/],
    [`a:${key}\na:${key}`, /^f:2: username "a" occurs twice/],
    [`#6162:${key}`, /^f:1: a username in hexadecimal/],
  ] as const) {
    t.throws(() => parsePsk(content, 'f'), { code: 'USAGE', what }, String(what))
  }
  const two = copy(`${psk}/site-a`, d => fs.writeFileSync(`${d}/keys.psk`, `a:${key}\nb:${key}\n`, { mode: 0o600 }))
  fails(two, 'USAGE', /no line for username "qemu"/, 'client')
  t.equal(credentials(two, { pskUsername: 'b' }).describe, 'psk b')
  t.equal(credentials(two, { role: 'server' }).describe, 'psk 2 keys')

  // A failed reload leaves what works in use.
  const changing = copy(`${directory}/site-a`, () => {})
  const kept = credentials(changing, { role: 'server' })
  const before = kept.describe
  fs.rmSync(`${changing}/server-key.pem`)
  t.throws(() => kept.reload(), { code: 'IO' })
  t.equal(kept.describe, before)

  t.throws(() => new LinkServer({ accept: () => ({}) as never, logger: console as never }), { code: 'USAGE' })
  const base = { host: 'h', port: 1, offer: offer(), logger: console as never }
  t.throws(() => new LinkClient(base), { code: 'USAGE', what: /no TLS credentials/ })
  t.throws(() => new LinkClient({ ...base, credentials: good, plaintext: true }), { code: 'USAGE', what: /both/ })
  t.throws(() => new LinkClient({ ...base, plaintext: true, connections: 17 }), { code: 'USAGE' })
})

t.test('keygen refuses to overwrite and to make nonsense', async t => {
  const { keygen } = await import('../../src/cli/keygen-command.ts')
  const dir = t.testdir()
  const args = {
    dir,
    name: ['a.example', '192.0.2.1'],
    peerName: ['b', '::1', '2001:db8::7'],
    username: 'qemu',
    days: '9',
  }
  const { files } = await keygen({ ...args, kind: 'x509' })
  t.equal(files.length, 11)
  for (const file of files) t.equal(fs.statSync(path.join(dir, file)).mode & 0o777, 0o600, file)
  t.notOk(fs.existsSync(`${dir}/a.example/ca-key.pem`), 'no site gets the CA key')
  await t.rejects(keygen({ ...args, kind: 'x509' }), { code: 'USAGE', what: /ca-key.pem exists/ })
  await keygen({ ...args, kind: 'psk' })
  await t.rejects(keygen({ ...args, kind: 'psk' }), { code: 'USAGE', what: /keys.psk exists/ })
  t.equal(fs.readFileSync(`${dir}/b/keys.psk`, 'utf8'), fs.readFileSync(`${dir}/a.example/keys.psk`, 'utf8'))
  for (const wrong of [{ name: [] }, { name: ['../x'] }, { name: ['b'] }, { days: '0' }, { name: ['.'] }]) {
    await t.rejects(keygen({ ...args, dir: `${dir}/new`, kind: 'x509', ...wrong }), { code: 'USAGE' })
  }
  await t.rejects(keygen({ ...args, dir: `${dir}/new`, kind: 'psk', username: 'a b' }), { code: 'USAGE' })
  await t.rejects(keygen({ ...args, dir: `${dir}/ca-key.pem/x`, kind: 'psk' }), { code: 'IO' })
  const { X509Certificate } = await import('node:crypto')
  const read = (name: string) => new X509Certificate(fs.readFileSync(`${dir}/b/${name}`))
  const [ca, cert] = [read('ca-cert.pem'), read('server-cert.pem')]
  t.ok(cert.checkIssued(ca) && cert.verify(ca.publicKey) && ca.verify(ca.publicKey))
  t.ok(cert.checkHost('b') && cert.checkIP('::1') && cert.checkIP('2001:db8::7'))
  t.notOk(cert.ca)
  t.ok(ca.ca)
})

for (const kind of ['plain', 'x509', 'psk']) {
  t.test(`${kind}: many flows over several connections`, async t => {
    const options = await pairOf(kind, t)
    const server = await start(t, options)
    const client = join(t, server.port, { ...options, client: { connections: 3 } })
    const protocols = new Set<string | null>()
    const hello = await client.client.open()
    t.same(hello.sets, offer().sets.slice(0, 1))
    t.same(hello.targets, ['vm'])
    await until('three connections', () => client.client.link.connections === 3)
    const { count, sent, back } = openMany(client, 40, 3)
    await until('all flows to end', () => client.end.finished === count)
    checkBytes(t, server, client, sent, back)
    if (kind !== 'plain') {
      // What was negotiated, seen from a connection of our own with the same credentials.
      const raw = net.connect(server.port, '127.0.0.1')
      const { socket } = await options.clientCredentials!.connect(raw, 'site-b')
      protocols.add(socket.getProtocol())
      t.equal(socket.getCipher().name, 'TLS_AES_128_GCM_SHA256')
      socket.destroy()
      t.same([...protocols], ['TLSv1.3'])
      t.equal(server.server.links[0]!.identity, kind === 'psk' ? 'psk:qemu' : 'x509:CN=site-a;DNS:site-a')
    } else {
      t.equal(server.log.of('link.plaintext').length, 1, 'plaintext is said aloud')
      t.equal(client.log.of('link.plaintext').length, 1)
    }
    t.equal(await client.client.close(), undefined)
    await until('server to end', () => server.server.links.length === 0)
    t.equal(server.ends[0]!.bye, 0)
    t.equal(server.ends[0]!.dead, undefined)
  })
}

for (const [kind, connections] of [
  ['plain', 1],
  ['x509', 1],
  ['psk', 3],
] as const) {
  t.test(`${kind}, ${connections} connections: killed 50 times at random moments`, async t => {
    const seed = Number(process.env.LINK_SEED ?? 0xc0ffee) + connections
    t.comment(`seed ${seed}`)
    const random = new Random(seed)
    const clock = fastClock(10)
    const options = { ...(await pairOf(kind, t)), clock }
    const server = await start(t, options)
    const relay = await new Relay(server.port).listen()
    t.teardown(() => relay.close())
    const client = join(t, relay.port, { ...options, client: { connections } })
    await client.client.open()
    let total = { count: 0, sent: 0, back: 0 }
    const more = (): void => {
      const added = openMany(client, 12, 4)
      total = { count: total.count + added.count, sent: total.sent + added.sent, back: total.back + added.back }
    }
    more()
    let ups = 0
    for (let kill = 0; kill < 50; kill++) {
      const before: number = ups
      await until('a new connection', () => client.end.ups > before && relay.pairs.size > 0)
      ups = client.end.ups
      await sleep(random.between(0, 25))
      if (client.end.finished > total.count - 6) more()
      const dice = random.next()
      if (dice < 0.4) relay.cut(true)
      else if (dice < 0.7) relay.cut(false)
      else {
        // One end only, in the middle of whatever it is doing.
        for (const [near, far] of relay.pairs) (dice < 0.85 ? near : far).resetAndDestroy()
      }
    }
    await until('all flows to end', () => client.end.finished === total.count, 60_000)
    checkBytes(t, server, client, total.sent, total.back)
    t.equal(client.end.dead, undefined)
    t.ok(client.end.ups > 50, `${client.end.ups} connections were made`)
    t.equal(await client.client.close(), undefined)
  })
}

t.test('a link that swallows everything is found by the heartbeat', async t => {
  const clock = fastClock(10)
  const options = { ...(await pairOf('x509', t)), clock }
  const server = await start(t, options)
  const relay = await new Relay(server.port).listen()
  t.teardown(() => relay.close())
  const client = join(t, relay.port, options)
  await client.client.open()
  const { count, sent, back } = openMany(client, 20, 20)
  for (let i = 0; i < 3; i++) {
    await sleep(20)
    const before = client.end.ups
    const startMs = clock.now()
    relay.swallow()
    await until('a new connection', () => client.end.ups > before)
    const tookMs = clock.now() - startMs
    // 5 s of this clock, which runs on while a busy machine lets this process wait
    t.ok(tookMs > 3000 && tookMs < 90_000, `found and replaced after ${Math.round(tookMs)} ms`)
  }
  await until('all flows to end', () => client.end.finished === count)
  checkBytes(t, server, client, sent, back)
  t.equal(client.log.of('link.down').filter(l => /nothing arrived/.test(String(l.fields.reason))).length, 3)
  await client.client.close()
})

t.test('a link that stalls and goes on costs nothing but time', async t => {
  const options = { ...(await pairOf('plain', t)), clock: fastClock(10) }
  const server = await start(t, options)
  const relay = await new Relay(server.port).listen()
  t.teardown(() => relay.close())
  const client = join(t, relay.port, options)
  await client.client.open()
  const { count, sent, back } = openMany(client, 20, 30)
  for (let i = 0; i < 5; i++) {
    relay.stall(true)
    await sleep(200) // 2 s of the link's time
    relay.stall(false)
    await sleep(5)
  }
  await until('all flows to end', () => client.end.finished === count)
  checkBytes(t, server, client, sent, back)
  t.equal(client.end.ups, 1, 'on the first connection')
  await client.client.close()
})

t.test('the patience ends on both sides', async t => {
  const options = { clock: fastClock(20) }
  const server = await start(t, { ...options, serverSession: { patienceMs: 20_000 } })
  const relay = await new Relay(server.port).listen()
  t.teardown(() => relay.close())
  const client = join(t, relay.port, { ...options, client: { session: { patienceMs: 20_000 } } })
  await client.client.open()
  client.end.open(1e9, 0, true)
  await until('bytes to flow', () => (server.ends[0]?.bytesIn ?? 0) > 0)
  relay.refusing = true
  relay.cut(true)
  const ended = await client.client.link.ended
  t.equal(ended?.code, 'PEER_LOST')
  t.equal(client.end.dead?.code, 'PEER_LOST')
  await until('server to give up', () => server.server.links.length === 0)
  t.equal(server.ends[0]!.dead?.code, 'PEER_LOST')
  const dials = relay.accepted
  await sleep(400)
  t.equal(relay.accepted, dials, 'nothing is dialled any more')
  t.ok(dials > 6 && dials < 16, `${dials} dials: with pauses that grow`)
  t.ok(client.log.of('link.dial').length < 4, 'the same reason is logged once')
  relay.refusing = false
  const again = join(t, relay.port, options)
  await again.client.open()
  t.equal(server.server.links.length, 1, 'a new session works')
})

t.test('opening: nobody there, then somebody; or nobody at all', async t => {
  const clock = fastClock(20)
  const port = await claimPort()
  const late = join(t, port, { clock })
  const opening = late.client.open()
  await until('a dial that is refused', () => late.log.of('link.dial').length > 0)
  const server = new TestServer({ clock })
  t.teardown(() => server.server.close(0))
  await server.listen(port)
  await opening
  t.equal(late.client.link.connections, 1)
  t.match(late.log.of('link.dial')[0]!.fields.reason, /ECONNREFUSED/)

  await server.server.close(1000)
  const never = join(t, port, { clock, client: { openMs: 3000 } })
  await t.rejects(never.client.open(), { code: 'PEER_LOST', what: /ECONNREFUSED/ })
  t.equal(never.end.dead?.code, 'PEER_LOST')
  const closed = join(t, port, { clock })
  const given = closed.client.open()
  given.catch(() => {})
  await closed.client.close()
  await t.rejects(given, { code: 'PEER_LOST' })
  // Somebody who takes connections and says nothing: closing does not wait for the deadline of the hello.
  const hole = net.createServer(() => {})
  t.teardown(() => hole.close())
  await new Promise<void>(resolve => hole.listen(0, '127.0.0.1', resolve))
  const waiting = join(t, (hole.address() as net.AddressInfo).port, {})
  const held = waiting.client.open()
  held.catch(() => {})
  await sleep(50)
  const startMs = performance.now()
  await waiting.client.close()
  await t.rejects(held, { code: 'PEER_LOST', what: /the session was closed/ })
  t.ok(performance.now() - startMs < 2000)
  const nowhere = join(t, 1, { clock, client: { host: 'no-such-host.invalid', openMs: 500 } })
  await t.rejects(nowhere.client.open(), { code: 'PEER_LOST', what: /ENOTFOUND|EAI_AGAIN/ })
})

/** Says a hello of our making. @returns the answer's body, or how the connection ended */
async function say(
  port: number,
  bytes: Uint8Array,
  secure?: Credentials,
  name = 'site-b',
): Promise<Record<string, unknown> | string> {
  const raw = net.connect(port, '127.0.0.1')
  const socket = secure ? (await secure.connect(raw, name)).socket : raw
  socket.on('error', () => {})
  socket.write(bytes)
  return new Promise(resolve => {
    const decoder = new HelloDecoder()
    socket.on('data', chunk => {
      const hello = decoder.push(chunk)
      if (hello) {
        resolve(hello.body)
        socket.destroy()
      }
    })
    socket.on('close', () => resolve('closed'))
  })
}

t.test('nobody takes over a session', async t => {
  const directory = await makeCredentials('x509', t)
  // A third site of the same CA: what an operator would make for a further peer.
  const serverCredentials = credentials(`${directory}/site-b`, { role: 'server' })
  const site = credentials(`${directory}/site-a`, { peerName: 'site-b' })
  const third = credentials(`${directory}/site-b`, { peerName: 'site-b' })
  const server = await start(t, { serverCredentials })
  const client = join(t, server.port, { clientCredentials: site })
  const { token } = await client.client.open()
  client.end.open(10_000, 10_000, false)
  await until('a flow', () => client.end.finished === 1)
  const hello = (change: Partial<ClientHello>): Uint8Array =>
    encodeClientHello({
      agent: 'thief',
      ...offer(),
      session: client.client.link.id,
      connection: 0,
      connections: 1,
      token: null,
      received: 0,
      credit: 65536,
      ...change,
    })
  const refusal = async (change: Partial<ClientHello>, who: Credentials) => {
    const body = (await say(server.port, hello(change), who)) as { refuse?: { code: string; text: string } }
    return body.refuse ? `${body.refuse.code}: ${body.refuse.text}` : 'taken'
  }
  t.equal(await refusal({}, site), 'PEER_AUTH: this session belongs to somebody', 'no token')
  t.equal(await refusal({}, third), 'PEER_AUTH: this session belongs to somebody', 'no token, another certificate')
  const guess = randomBytes(32).toString('hex')
  t.equal(await refusal({ token: guess }, site), 'PEER_AUTH: wrong token for this session')
  t.equal(
    await refusal({ token }, third),
    'PEER_AUTH: this session belongs to "x509:CN=site-a;DNS:site-a", not to "x509:CN=site-b;DNS:site-b"',
    'the right token, another certificate',
  )
  t.match(await refusal({ token, session: 'f'.repeat(32) }, site), /^PEER_LOST: no such session/)
  t.equal(server.log.of('link.refused').length, 5)
  client.end.open(10_000, 10_000, false)
  await until('a flow', () => client.end.finished === 2)
  t.equal(client.end.downs, 0, 'the session has not noticed')
  const body = (await say(server.port, hello({ token, received: 0 }), site)) as { token?: string }
  t.equal(body.token, token, 'its owner may replace the connection')
  await until('the client to come back', () => client.end.ups === 2)
  client.end.open(10_000, 10_000, false)
  await until('a flow', () => client.end.finished === 3)
  t.same(client.end.mistakes, [])
  await client.client.close()
})

t.test('rubbish behind a good hello ends the connection, not the session', async t => {
  const server = await start(t, { serverSession: { patienceMs: 10_000 }, clock: fastClock(20) })
  const hello = {
    agent: '',
    ...offer(),
    session: 'b'.repeat(32),
    connection: 0,
    connections: 1,
    token: null,
    received: 0,
    credit: 65536,
  }
  const next = random(77)
  for (let i = 0; i < 20; i++) {
    const id = i.toString(16).padStart(32, '0')
    const socket = net.connect(server.port, '127.0.0.1')
    socket.on('error', () => {})
    socket.write(encodeClientHello({ ...hello, session: id }))
    await new Promise(resolve => socket.once('data', resolve))
    const bytes = Buffer.alloc(1 + next(5000))
    for (let at = 0; at < bytes.length; at++) bytes[at] = next(256)
    socket.end(bytes)
    socket.resume()
    await new Promise(resolve => socket.once('close', resolve))
  }
  await until('all to be down', () => server.log.of('link.down').length === 20)
  await until('all sessions to be given up', () => server.server.links.length === 0)
})

t.test('after a pause of this process the peer is heard before it is declared dead', async t => {
  const child = spawn(process.execPath, ['--input-type=module', '-e', SLOWER_SERVER, import.meta.dirname], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => child.kill())
  const port = await new Promise<number>(resolve => child.stdout.once('data', data => resolve(Number(data))))
  const client = join(t, port, { clock: fastClock(10) })
  await client.client.open()
  for (let i = 0; i < 3; i++) {
    await sleep(300)
    const end = performance.now() + 700 // 7 s of our clock, 3.5 s of the peer's
    while (performance.now() < end);
  }
  await sleep(100)
  t.equal(client.end.ups, 1)
  t.equal(client.end.downs, 0)
})

/** A server whose clock runs five times as fast as the wall's, where the client's runs ten times as fast. */
const SLOWER_SERVER = `
const { TestServer, fastClock } = await import(process.argv[1] + '/harness.ts')
const server = await new TestServer({ clock: fastClock(5) }).listen()
console.log(server.port)
`

t.test('an opening whose answer was lost may be said again', async t => {
  const server = await start(t, {})
  const id = 'a'.repeat(32)
  const hello = {
    agent: '',
    ...offer(),
    session: id,
    connection: 0,
    connections: 1,
    token: null,
    received: 0,
    credit: 65536,
  }
  const first = (await say(server.port, encodeClientHello(hello))) as { token: string }
  const second = (await say(server.port, encodeClientHello(hello))) as { token: string }
  t.not(first.token, second.token)
  t.equal(server.server.links.length, 1)
  t.ok(server.ends[0]!.dead, 'the first is gone')
  t.equal(server.ends[1]!.dead, undefined)
})

t.test('strangers on a TLS listener', async t => {
  const directory = await makeCredentials('x509', t)
  const otherCa = await makeCredentials('x509', t)
  const psk = await makeCredentials('psk', t)
  const wrongPsk = await makeCredentials('psk', t)
  for (const kind of ['x509', 'psk'] as const) {
    const serverCredentials =
      kind === 'x509'
        ? credentials(`${directory}/site-b`, { role: 'server', peerName: 'site-a' })
        : credentials(`${psk}/site-b`, { role: 'server' })
    const owner =
      kind === 'x509' ? credentials(`${directory}/site-a`, { peerName: 'site-b' }) : credentials(`${psk}/site-a`, {})
    const server = await start(t, { serverCredentials, clock: fastClock(10) })
    const good = join(t, server.port, { clientCredentials: owner, clock: fastClock(10) })
    await good.client.open()
    const port = server.port

    const refused = async (what: string, run: () => Promise<unknown>, log: RegExp, code = 'PEER_AUTH') => {
      const before = server.log.of('link.refused').length
      await run()
      await until(`a log line: ${what}`, () => server.log.of('link.refused').length > before)
      await sleep(20)
      const lines = server.log.of('link.refused').slice(before)
      t.equal(lines.length, 1, `${kind}: ${what}: one line`)
      t.match(lines[0]!.fields, { code, reason: log, peer: /^127\.0\.0\.1:\d+$/ }, `${kind}: ${what}`)
    }
    const link = (clientCredentials: Credentials | undefined, expected: object) => async () => {
      const stranger = join(t, port, { ...(clientCredentials && { clientCredentials }), client: { openMs: 1 } })
      await t.rejects(stranger.client.open(), expected as { code: string }, `${kind}: the client is told`)
    }
    const raw = (bytes: Uint8Array | string) => async () => {
      const socket = net.connect(port, '127.0.0.1')
      socket.on('error', () => {})
      const answer: Buffer[] = []
      socket.on('data', chunk => answer.push(chunk))
      socket.write(bytes)
      await new Promise(resolve => socket.on('close', resolve))
      t.notMatch(Buffer.concat(answer).toString('latin1'), /PGFY/, 'no word of us')
    }
    const secure = (options: tls.ConnectionOptions) => async () => {
      const socket = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false, ...options })
      socket.on('error', () => {})
      socket.resume()
      await new Promise(resolve => socket.on('close', resolve))
    }

    if (kind === 'x509') {
      await refused(
        'certificate of another CA, which is not ours either',
        link(credentials(`${otherCa}/site-a`, { peerName: 'site-b' }), { code: 'PEER_AUTH', what: /not trusted/ }),
        /closed during the TLS handshake/,
      )
      await refused(
        'certificate of another CA, ours trusted',
        link(credentials(mixed(t, { from: `${otherCa}/site-a`, ca: `${directory}/site-a` }), { peerName: 'site-b' }), {
          code: 'PEER_AUTH',
          what: /the server refuses: client certificate "x509:CN=site-a;DNS:site-a" is not trusted/,
        }),
        /is not trusted: /,
      )
      await refused(
        'a name that is not the peer name',
        link(credentials(`${directory}/site-b`, { peerName: 'site-b' }), {
          code: 'PEER_AUTH',
          what: /does not carry the peer name/,
        }),
        /"x509:CN=site-b;DNS:site-b" does not carry the peer name/,
      )
      await refused(
        'the wrong name of ours',
        link(credentials(`${directory}/site-a`, { peerName: 'site-c' }), {
          code: 'PEER_AUTH',
          what: /certificate does not carry the name "site-c"/,
        }),
        /closed during the TLS handshake/,
        undefined,
      )
      await refused(
        "a server's certificate as client",
        secure({
          minVersion: 'TLSv1.3',
          cert: fs.readFileSync(`${directory}/site-a/server-cert.pem`),
          key: fs.readFileSync(`${directory}/site-a/server-key.pem`),
        }),
        /not trusted: .*PURPOSE/i,
      )
      await refused('no certificate', secure({ minVersion: 'TLSv1.3' }), /no client certificate/)
      await refused(
        'a self-signed certificate',
        secure({
          cert: fs.readFileSync(`${otherCa}/site-a/client-cert.pem`),
          key: fs.readFileSync(`${otherCa}/site-a/client-key.pem`),
        }),
        /is not trusted/,
      )
      await refused(
        'PSK',
        link(credentials(`${psk}/site-a`, {}), { code: 'PEER_AUTH' }),
        /closed during the TLS handshake/,
      )
    } else {
      await refused(
        'wrong key',
        link(credentials(`${wrongPsk}/site-a`, {}), { code: 'PEER_AUTH', what: /does not accept our username or key/ }),
        /wrong key for PSK username "qemu"/,
      )
      const unknown = fs.mkdtempSync(path.join(psk, 'unknown-'))
      fs.writeFileSync(`${unknown}/keys.psk`, `mallory\u00e9:${'ab'.repeat(32)}\n`, { mode: 0o600 })
      await refused(
        'unknown name',
        link(credentials(unknown, {}), { code: 'PEER_AUTH', what: /does not accept our username or key/ }),
        /unknown PSK username "mallory\?/,
      )
      await refused(
        'X.509',
        link(credentials(`${directory}/site-a`, { peerName: 'site-b' }), { code: 'PEER_AUTH' }),
        /no pre-shared key offered/,
      )
      await refused('no key', secure({ minVersion: 'TLSv1.3' }), /no pre-shared key offered/)
    }
    // A ticket of a good connection proves nothing later on: neither key nor certificate would be looked at again.
    const ticketed = (await owner.connect(net.connect(port, '127.0.0.1'), 'site-b')).socket
    const ticket = await new Promise<Buffer>(resolve => ticketed.once('session', resolve))
    const lines = server.log.of('link.refused').length
    ticketed.destroy()
    await until('its line', () => server.log.of('link.refused').length > lines)
    await refused(
      'a resumed TLS session',
      secure({ session: ticket }),
      /^no client certificate|^no pre-shared key offered/,
    )
    await refused('TLS 1.2', secure({ maxVersion: 'TLSv1.2' }), /does not speak TLS 1.3/)
    await refused(
      'plain hello',
      raw(
        encodeClientHello({
          agent: '',
          ...offer(),
          session: '0'.repeat(32),
          connection: 0,
          connections: 1,
          token: null,
          received: 0,
          credit: 65536,
        }),
      ),
      /does not speak TLS/,
    )
    await refused('HTTP', raw('GET / HTTP/1.1\r\nHost: x\r\n\r\n'), /does not speak TLS/)
    // with 22 in front it would be a handshake whose rest is waited for, one time in 256
    await refused('garbage', raw(Buffer.concat([Buffer.of(0x80), randomBytes(4999)])), /TLS/)
    await refused('a plain client', link(undefined, { code: 'PEER_LOST' }), /does not speak TLS/)
    await refused(
      'a port scan',
      async () => {
        const socket = net.connect(port, '127.0.0.1')
        await new Promise(resolve => socket.on('connect', resolve))
        socket.destroy()
      },
      /closed before it said anything/,
      'PEER_LOST',
    )
    await refused('silence', raw(''), /no handshake and hello within 10 s/, 'PEER_LOST')
    await refused(
      'silence after the handshake',
      async () => {
        const socket = net.connect(port, '127.0.0.1')
        const secured = await owner.connect(socket, 'site-b')
        secured.socket.resume()
        await new Promise(resolve => secured.socket.on('close', resolve))
      },
      /no handshake and hello within 10 s/,
      'PEER_LOST',
    )
    await refused(
      'garbage after the handshake',
      async () => t.equal(await say(port, randomBytes(100), owner), 'closed'),
      /does not speak Pageferry/,
      'PROTOCOL_SYNTAX',
    )
    await refused(
      'another version',
      async () => {
        const bytes = Buffer.from(
          encodeClientHello({
            agent: '',
            ...offer(),
            session: '0'.repeat(32),
            connection: 0,
            connections: 1,
            token: null,
            received: 0,
            credit: 65536,
          }),
        )
        bytes.writeUInt16BE(7, 8)
        t.match(await say(port, bytes, owner), { refuse: { code: 'PROTOCOL_VERSION', text: /speaks version 7/ } })
      },
      /speaks version 7/,
      'PROTOCOL_VERSION',
    )
    await refused(
      'frames before our hello',
      async () => {
        const hello = encodeClientHello({
          agent: '',
          ...offer(),
          session: '0'.repeat(32),
          connection: 0,
          connections: 1,
          token: null,
          received: 0,
          credit: 65536,
        })
        t.match(await say(port, Buffer.concat([hello, Buffer.alloc(40)]), owner), {
          refuse: { code: 'PROTOCOL_STATE' },
        })
      },
      /before our hello/,
      'PROTOCOL_STATE',
    )
    await refused(
      'a hello that is too long',
      async () => {
        const head = Buffer.from(
          encodeClientHello({
            agent: '',
            ...offer(),
            session: '0'.repeat(32),
            connection: 0,
            connections: 1,
            token: null,
            received: 0,
            credit: 65536,
          }),
        ).subarray(0, 16)
        head.writeUInt32BE(1 << 30, 12)
        t.match(await say(port, head, owner), { refuse: { code: 'LIMIT_EXCEEDED' } })
      },
      /hello of 1073741824 bytes/,
      'LIMIT_EXCEEDED',
    )
    good.end.open(100_000, 100_000, false)
    await until('the good one to be served', () => good.end.finished === 1)
    t.equal(good.end.downs, 0, 'service to others unharmed')
    t.equal(server.ends.length, 1)
    t.equal(server.server.stats.strangers + server.server.stats.greeters, 0, 'nobody is left waiting')
    await good.client.close()
  }
})

/** A directory with the certificates of one place and the CA of another. */
function mixed(test: Pick<Test, 'testdir'>, { from, ca }: { from: string; ca: string }): string {
  const dir = test.testdir({})
  fs.cpSync(from, dir, { recursive: true })
  fs.copyFileSync(`${ca}/ca-cert.pem`, `${dir}/ca-cert.pem`)
  return dir
}

t.test('1,000 slow handshakes leave room for others', async t => {
  const options = await pairOf('x509', t)
  const server = await start(t, options)
  const good = join(t, server.port, options)
  await good.client.open()
  const slow: net.Socket[] = []
  t.teardown(() => {
    for (const socket of slow) socket.destroy()
  })
  for (let i = 0; i < 1000; i++) {
    const socket = net.connect(server.port, '127.0.0.1')
    socket.on('error', () => {})
    // Half of them drip a real ClientHello's first bytes, half say nothing.
    if (i % 2) socket.write(Buffer.from('16030100', 'hex').subarray(0, 1 + (i % 4)))
    slow.push(socket)
  }
  await until('all to arrive', () => server.server.stats.connectionsAccepted >= 1001)
  const ownMs = stopwatch()
  const newcomer = join(t, server.port, options)
  await newcomer.client.open()
  newcomer.end.open(1_000_000, 1_000_000, false)
  good.end.open(1_000_000, 1_000_000, true)
  await until('both to be served', () => newcomer.end.finished === 1 && good.end.finished === 1)
  const tookMs = ownMs()
  t.ok(tookMs < 3000, `a newcomer was served in ${Math.round(tookMs)} ms`)
  t.equal(good.end.downs, 0)
  const { strangers, crowdedOut } = server.server.stats
  const places = RETURNERS_MAX * 2 + RETURNER_HANDSHAKES_MAX // the address is that of a peer
  t.ok(strangers <= places, `${strangers} are kept waiting`)
  t.equal(crowdedOut, 1000 - strangers)
  await good.client.close()
  await newcomer.client.close()
})

t.test('certificates are read again', async t => {
  const dir = await makeCredentials('x509', t)
  const renewed = await makeCredentials('x509', t)
  const serverCredentials = credentials(`${dir}/site-b`, { role: 'server', peerName: 'site-a' })
  const clientCredentials = credentials(`${dir}/site-a`, { peerName: 'site-b' })
  const server = await start(t, { serverCredentials, clock: fastClock(10) })
  const relay = await new Relay(server.port).listen()
  t.teardown(() => relay.close())
  const client = join(t, relay.port, { clientCredentials, clock: fastClock(10) })
  await client.client.open()
  const before = serverCredentials.describe
  fs.cpSync(`${renewed}/site-b`, `${dir}/site-b`, { recursive: true })
  serverCredentials.reload()
  t.not(serverCredentials.describe, before)
  client.end.open(100_000, 100_000, false)
  await until('the running connection goes on', () => client.end.finished === 1)
  t.equal(client.end.ups, 1)
  relay.cut(true)
  await until('a refusal', () => client.log.of('link.dial').length > 0)
  t.match(client.log.of('link.dial')[0]!.fields, { code: 'PEER_AUTH', reason: /not trusted/ }, 'the new one is used')
  client.end.open(100_000, 100_000, false)
  fs.cpSync(`${renewed}/site-a`, `${dir}/site-a`, { recursive: true })
  clientCredentials.reload()
  await until('the session to resume under the renewed certificates', () => client.end.finished === 2)
  t.equal(server.ends.length, 1, 'the same session')
  await client.client.close()
})

t.test('certificates are renewed with other names while a session is broken', async t => {
  for (const rule of [true, false]) {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'pageferry-link-'))
    t.teardown(() => fs.rmSync(dir, { recursive: true, force: true }))
    writeCredentialFiles(
      dir,
      await makeX509(['far'], ['near', 'old.example'], 9, ['near2', 'near'], ['stranger', 'near3']),
    )
    const serverCredentials = credentials(`${dir}/far`, { role: 'server', ...(rule && { peerName: 'near' }) })
    const clientCredentials = credentials(`${dir}/near`, { peerName: 'far' })
    const clock = fastClock(10)
    const server = await start(t, { serverCredentials, clock })
    const relay = await new Relay(server.port).listen()
    t.teardown(() => relay.close())
    const session = { patienceMs: 20_000 }
    const client = join(t, relay.port, { clientCredentials, clock, client: { session } })
    await client.client.open()
    const renew = async (site: string): Promise<void> => {
      relay.refusing = true
      relay.cut(true)
      for (const file of ['client-cert.pem', 'client-key.pem'])
        fs.copyFileSync(`${dir}/${site}/${file}`, `${dir}/near/${file}`)
      clientCredentials.reload()
      relay.refusing = false
    }
    await renew('near2')
    client.end.open(100_000, 100_000, false)
    await until('the session to resume', () => client.end.finished === 1)
    t.equal(server.ends.length, 1)
    t.match(server.log.of('link.renamed'), [{ fields: { identity: /near2/, before: /old.example/ } }])
    client.end.open(1e9, 0, true)
    await renew('stranger')
    t.match(await client.client.link.ended, {
      code: 'PEER_LOST',
      what: rule
        ? /no connection .* last attempt: .*does not carry the peer name/
        : /last attempt: .*belongs to .*near2/,
    })
  }
})

/** Credentials of two sites with a revocation list at site-b. */
async function withCrl(t: Test, options: CrlOptions): Promise<string> {
  const dir = await makeCredentials('x509', t)
  fs.writeFileSync(`${dir}/site-b/ca-crl.pem`, await makeCrl(dir, options))
  return dir
}

t.test('a revoked certificate', async t => {
  const dir = await makeCredentials('x509', t)
  const serverCredentials = credentials(`${dir}/site-b`, { role: 'server' })
  const clientCredentials = credentials(`${dir}/site-a`, { peerName: 'site-b' })
  const server = await start(t, { serverCredentials })
  const first = join(t, server.port, { clientCredentials })
  await first.client.open()
  await first.client.close()
  const other = await makeCredentials('x509', t)
  const clean = await makeCrl(dir, {})
  const revoking = await makeCrl(dir, { revoked: `${dir}/site-a/client-cert.pem` })
  const cases: [name: string, content: string, refused: RegExp | undefined][] = [
    ['nothing', '', undefined],
    ['only a comment, as from systemd', '# no list\n', undefined],
    ['a list', clean, undefined],
    ["after another CA's list", `${await makeCrl(other, {})}${clean}`, undefined],
    ['revoked', revoking, /CERT_REVOKED/],
    ["revoked, after another CA's list", `${await makeCrl(other, {})}${revoking}`, /CERT_REVOKED/],
    ['no list of this CA', await makeCrl(other, {}), /UNABLE_TO_GET_CRL/],
  ]
  for (const [name, content, refused] of cases) {
    fs.writeFileSync(`${dir}/site-b/ca-crl.pem`, content)
    serverCredentials.reload()
    const client = join(t, server.port, { clientCredentials })
    if (!refused) {
      await client.client.open()
      await client.client.close()
      t.pass(name)
    } else await t.rejects(client.client.open(), { code: 'PEER_AUTH', what: refused }, name)
  }
  t.match(
    server.log.of('link.refused').map(({ fields }) => fields.hint),
    [/has revoked it/, /has revoked it/, /has no list of the CA/],
  )
})

t.test('revocation lists near their end, and past it', async t => {
  const hour = 3_600_000
  const far = await withCrl(t, { fromMs: -24 * hour, toMs: 7 * 24 * hour })
  t.same(credentials(`${far}/site-b`, { role: 'server' }).warnings, [], 'a list of a week is young after a day')
  const near = await withCrl(t, { fromMs: -6 * 24 * hour, toMs: 24 * hour })
  t.match(credentials(`${near}/site-b`, { role: 'server' }).warnings, [
    /ca-crl.pem: expires on 20\d\d-\d\d-\d\d \d\d:\d\d UTC/,
  ])
  const endless = await withCrl(t, { toMs: undefined })
  t.same(credentials(`${endless}/site-b`, { role: 'server' }).warnings, [], 'no nextUpdate')
  const future = await withCrl(t, { fromMs: hour, toMs: 2 * hour })
  t.throws(() => credentials(`${future}/site-b`, { role: 'server' }), { code: 'USAGE', what: /not valid before/ })
  const late = await withCrl(t, { fromMs: -2 * hour, toMs: -hour })
  t.throws(() => credentials(`${late}/site-b`, { role: 'server' }), {
    code: 'USAGE',
    what: /ca-crl.pem: expired on/,
    action: /get the new list/,
  })
  // A proxy that runs when the list expires says so, refuses with the reason, and takes the new list.
  const dir = await withCrl(t, { toMs: 2000 })
  const serverCredentials = credentials(`${dir}/site-b`, { role: 'server' })
  const clientCredentials = credentials(`${dir}/site-a`, { peerName: 'site-b' })
  t.match(serverCredentials.warnings, [/ca-crl.pem: expires on/])
  const server = await start(t, { serverCredentials })
  await until('the list to expire', () => /expired on/.test(serverCredentials.warnings[0]!))
  await t.rejects(join(t, server.port, { clientCredentials }).client.open(), {
    code: 'PEER_AUTH',
    what: /CRL_HAS_EXPIRED/,
  })
  t.match(server.log.of('link.refused')[0]!.fields.hint, /our ca-crl.pem, is not valid today/)
  t.throws(() => serverCredentials.reload(), { code: 'USAGE', what: /expired on/ })
  fs.writeFileSync(`${dir}/site-b/ca-crl.pem`, await makeCrl(dir, {}))
  serverCredentials.reload()
  await join(t, server.port, { clientCredentials }).client.open()
})

t.test('a CA in a bundle that has expired, beside its successor', async t => {
  const old = fs.mkdtempSync(path.join(os.tmpdir(), 'pageferry-link-'))
  t.teardown(() => fs.rmSync(old, { recursive: true, force: true }))
  writeCredentialFiles(old, await makeX509(['a'], ['b'], -1 / 48))
  const dir = await makeCredentials('x509', t)
  for (const site of ['site-a', 'site-b']) {
    const file = `${dir}/${site}/ca-cert.pem`
    fs.writeFileSync(file, `${fs.readFileSync(`${old}/a/ca-cert.pem`)}${fs.readFileSync(file)}`)
  }
  const serverCredentials = credentials(`${dir}/site-b`, { role: 'server' })
  t.match(serverCredentials.warnings, [/ca-cert.pem: expired on/])
  const server = await start(t, { serverCredentials })
  await join(t, server.port, { clientCredentials: credentials(`${dir}/site-a`, { peerName: 'site-b' }) }).client.open()
})

t.test('server name indication: only where it is asked for', async t => {
  const dir = await makeCredentials('x509', t)
  const names: unknown[] = []
  const server = tls.createServer({
    key: fs.readFileSync(`${dir}/site-b/server-key.pem`),
    cert: fs.readFileSync(`${dir}/site-b/server-cert.pem`),
  })
  server.on('secureConnection', socket => {
    names.push(socket.servername)
    socket.on('error', () => {}).destroy()
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  const { port } = server.address() as net.AddressInfo
  for (const serverName of [undefined, 'gateway.example']) {
    const who = credentials(`${dir}/site-a`, { peerName: 'site-b', ...(serverName && { serverName }) })
    const { socket } = await who.connect(net.connect(port, '127.0.0.1'), '127.0.0.1')
    await new Promise(resolve => socket.on('close', resolve).resume())
  }
  t.same(names, [false, 'gateway.example'])
  for (const serverName of ['', '192.0.2.1', '::1'])
    t.throws(() => credentials(`${dir}/site-a`, { serverName }), { code: 'USAGE', what: /server name/ })
})

t.test('DRAIN: no new flows, running ones end, new sessions are refused', async t => {
  const server = await start(t, {})
  const client = join(t, server.port, {})
  await client.client.open()
  const far = server.ends[0]!
  far.stuck = true // or it may be over before it is seen
  const flow = client.end.open(3_000_000, 1_000_000, true)
  await until('the flow to be open', () => far.flows.size === 1)
  server.server.drain()
  await until('the client to hear of it', () => client.end.drained)
  t.throws(() => client.end.open(1, 1, false, 2), { code: 'PROTOCOL_STATE' }, 'of another migration')
  far.stuck = false
  far.link.session.consumed(flow, far.flows.get(flow)!.got)
  await until('the running flow to end', () => client.end.finished === 1)
  t.same([...client.end.mistakes, ...far.mistakes], [])
  const late = join(t, server.port, { client: { openMs: 200 } })
  await t.rejects(late.client.open(), { code: 'LIMIT_EXCEEDED', what: /takes no new sessions/ })
  await server.server.close(5000)
  await client.client.link.ended
  t.equal(client.end.bye, 0, 'BYE 0: nothing was owed')
})

t.test('closing delivers what was handed in', async t => {
  const options = await pairOf('psk', t)
  const server = await start(t, options)
  const client = join(t, server.port, { ...options, client: { connections: 2 } })
  await client.client.open()
  for (let i = 0; i < 10; i++) client.end.open(100_000, 0, i % 2 === 0)
  const sent = [...client.end.flows.values()].reduce((sum, flow) => sum + flow.sent, 0)
  t.equal(await client.client.close(), undefined)
  t.same(server.ends[0]!.mistakes, [])
  t.ok(server.ends[0]!.bytesIn >= sent, `${server.ends[0]!.bytesIn} of ${sent} bytes handed in arrived`)
  t.equal(server.ends[0]!.bye, 0)
})

t.test('a server that is restarted: the session dies, a new one works', async t => {
  const options = { ...(await pairOf('x509', t)), clock: fastClock(10) }
  const server = await start(t, options)
  const relay = await new Relay(server.port).listen()
  t.teardown(() => relay.close())
  const client = join(t, relay.port, options)
  await client.client.open()
  client.end.open(1e9, 0, true)
  await until('bytes to flow', () => server.ends[0]!.bytesIn > 0)
  // A crash: everything is gone without a word, and one that knows nothing takes its place.
  const second = await start(t, options)
  relay.cut(true)
  relay.target = second.port
  const ended = await client.client.link.ended
  t.equal(ended?.code, 'PEER_LOST')
  t.match(ended?.what, /no such session/)
  t.equal(client.end.dead?.code, 'PEER_LOST')
  const again = join(t, relay.port, options)
  await again.client.open()
  again.end.open(100_000, 100_000, true)
  await until('a flow', () => again.end.finished === 1)
  await again.client.close()
})

/** A server on descriptor 3; argument: this directory. */
const FD_SERVER = `
const { TestServer } = await import(process.argv[1] + '/harness.ts')
const at = await new TestServer({}).server.listen({ fd: 3 })
console.log(at.address + ':' + at.port)
`

t.test('sessions that are being opened, or given up, count', async t => {
  let asked = 0 // half of 8: all are of one peer
  const gates: (() => void)[] = []
  const server: TestServer = await start(t, {
    server: {
      sessionsMax: 8,
      accept: async hello => {
        asked++
        await new Promise<void>(resolve => gates.push(resolve))
        return server.accept(hello, 'plain', 'plain', 'here')
      },
    },
  })
  const hello = (session: number) =>
    encodeClientHello({
      agent: '',
      ...offer(),
      session: String(session).padStart(32, '0'),
      connection: 0,
      connections: 1,
      token: null,
      received: 0,
      credit: 65536,
    })
  const answers = Array.from({ length: 40 }, (_, i) => say(server.port, hello(i % 20)))
  await until('36 refusals', () => server.log.of('link.refused').length === 36)
  t.equal(asked, 4, 'memory is asked for four times')
  for (const open of gates.splice(0)) open()
  await Promise.all(answers)
  await until('all to be gone again', () => server.server.links.every(link => link.connections === 0))
  t.equal(server.server.links.length, 4)
  // Nothing was ever said on these four: they make room for others, one for each.
  const later = Array.from({ length: 40 }, (_, i) => say(server.port, hello(100 + i)))
  await until('36 more', () => server.log.of('link.refused').length === 72)
  t.equal(asked, 8)
  for (const open of gates.splice(0)) open()
  await Promise.all(later)
  // An opening said again and again takes the place of the one before only when that has gone.
  const sockets: net.Socket[] = []
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
  })
  for (let i = 0; i < 20; i++) {
    const socket = net.connect({ port: server.port, host: '127.0.0.1', allowHalfOpen: true }) // and does not close
    sockets.push(socket)
    socket.on('error', () => {})
    socket.write(hello(100))
    await sleep(10)
    for (const open of gates.splice(0)) open()
  }
  t.ok(asked <= 8 + 4, `asked ${asked} times`)
})

t.test('sessions are bounded; a socket that somebody else opened serves; IPv6', async t => {
  const server = await start(t, { server: { sessionsMax: 4 } })
  const first = join(t, server.port, {})
  const second = join(t, server.port, {})
  await first.client.open()
  await second.client.open()
  await until('frames', () => server.server.links.every(link => link.heard))
  const third = join(t, server.port, { client: { openMs: 50 } })
  await t.rejects(third.client.open(), {
    code: 'LIMIT_EXCEEDED',
    what: /2 of 4 sessions are open, 2 of them this peer's/,
  })
  await first.client.close()
  await until('a free place', () => server.server.links.length === 1)
  const fourth = join(t, server.port, {})
  await fourth.client.open()

  await fourth.client.close()
  // As systemd hands it over: a process is born with the descriptor of a listening socket.
  const opened = net.createServer()
  await new Promise<void>(resolve => opened.listen(0, '127.0.0.1', resolve))
  const { port } = opened.address() as net.AddressInfo
  const child = spawn(process.execPath, ['--input-type=module', '-e', FD_SERVER, import.meta.dirname], {
    stdio: ['ignore', 'pipe', 'inherit', (opened as unknown as { _handle: object })._handle as never],
  })
  t.teardown(() => child.kill())
  const line = await new Promise(resolve => child.stdout!.once('data', data => resolve(String(data).trim())))
  t.equal(line, `127.0.0.1:${port}`)
  opened.close()
  const fifth = join(t, port, {})
  await fifth.client.open()
  fifth.end.open(10_000, 10_000, false)
  await until('a flow', () => fifth.end.finished === 1)
  await fifth.client.close()

  const six = await server.server.listen({ host: '::1', port: 0 }).catch(() => undefined)
  if (!six) t.comment('no IPv6 here')
  else {
    const client = join(t, six.port, { client: { host: '::1' } })
    await client.client.open()
    t.equal(server.log.of('link.up').at(-1)!.fields.peer?.toString().startsWith('[::1]:'), true)
    await client.client.close()
  }
  await t.rejects(server.server.listen({ host: '127.0.0.1', port: server.port }), { code: 'IO' })
})

t.test('sessions: an identity has its share, idle ones make room', async t => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'pageferry-link-'))
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }))
  writeCredentialFiles(directory, await makeX509(['far'], ['greedy'], 9, ['other'], ['third']))
  const clock = fastClock(10)
  const serverCredentials = credentials(`${directory}/far`, { role: 'server' })
  const server = await start(t, { serverCredentials, clock, server: { sessionsMax: 4 } })
  const as = (name: string): TestClient =>
    join(t, server.port, {
      clientCredentials: credentials(`${directory}/${name}`, { peerName: 'far' }),
      clock,
      client: { openMs: 1 },
    })
  const first = as('greedy')
  const busy = as('greedy')
  await first.client.open()
  await busy.client.open()
  await t.rejects(as('greedy').client.open(), {
    code: 'LIMIT_EXCEEDED',
    what: /2 of 4 sessions are open, 2 of them this peer's/,
  })
  busy.end.open(1e9, 0, true)
  server.ends[1]!.stuck = true
  await until('the flow', () => server.ends[1]!.flows.size === 1)
  await as('other').client.open()
  t.equal(server.server.links.length, 3, 'another one finds a place')
  await t.rejects(as('other').client.open(), { code: 'LIMIT_EXCEEDED' }, 'but not two')
  await until('sessions to be idle', () => server.server.links[0]!.idleMs(clock.now()) > SESSION_IDLE_MS)
  await as('greedy').client.open()
  await first.client.link.ended
  t.equal(first.end.bye, CODE.PEER_LOST, 'the idle one was told')
  t.notOk(busy.client.link.over, 'a session with a flow is not idle')
  await as('third').client.open()
  t.equal(server.server.links.length, 4)
  t.match(refusals(server), [/LIMIT_EXCEEDED/, /LIMIT_EXCEEDED/])
  t.match(server.log.of('link.refused')[0]!.fields, { identity: /CN=greedy/ }, 'said of whom')
})

t.test('a defect that one connection finds ends that connection alone', async t => {
  const options = await pairOf('x509', t)
  const server = await start(t, options)
  const good = join(t, server.port, options)
  await good.client.open()
  const { serverCredentials } = options
  const accept = serverCredentials!.accept
  serverCredentials!.accept = () => Promise.reject(new TypeError('planted'))
  await t.rejects(join(t, server.port, { ...options, client: { openMs: 1 } }).client.open())
  serverCredentials!.accept = accept
  t.match(server.log.of('link.defect'), [{ level: 'error', fields: { stack: /planted/ } }])
  t.match(server.log.of('link.refused'), [{ fields: { code: 'INTERNAL' } }])
  good.end.open(10_000, 10_000, false)
  await until('the others to go on', () => good.end.finished === 1)
})

t.test('a proxy that was started anew ends what its dead process left behind', async t => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'pageferry-link-'))
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }))
  writeCredentialFiles(directory, await makeX509(['far'], ['one'], 9, ['other']))
  const clock = fastClock(10)
  const server = await start(t, { serverCredentials: credentials(`${directory}/far`, { role: 'server' }), clock })
  /** Opens a session, with a flow, over a relay of its own. */
  const open = async (name: string, instance: string | undefined, process: string) => {
    const relay = await new Relay(server.port).listen()
    t.teardown(() => relay.close())
    const clientCredentials = credentials(`${directory}/${name}`, { peerName: 'far' })
    const told = { ...offer(), process, ...(instance !== undefined && { instance }) }
    const client = join(t, relay.port, { clientCredentials, clock, client: { offer: told } })
    await client.client.open()
    const far = server.ends.at(-1)!
    far.stuck = true
    client.end.open(1e9, 0, true)
    await until('a flow', () => far.flows.size === 1)
    return { client, far, relay }
  }
  /** Its process is killed: connections end, and nothing comes back. */
  const kill = async ({ relay, far }: { relay: Relay; far: { link: { connections: number } } }): Promise<void> => {
    relay.refusing = true
    relay.cut(true)
    await until('the break', () => far.link.connections === 0)
  }
  const dead = await open('one', 'a', '1')
  const waits = [await open('one', 'b', '1'), await open('one', undefined, '1'), await open('other', 'a', '1')]
  for (const one of [dead, ...waits]) await kill(one)
  const silent = await open('one', 'c', '1')
  silent.relay.refusing = true // its host lost power: no FIN, no RST, and nobody who dials again
  silent.relay.swallow()
  const lives = await open('one', 'd', '1')
  for (const [instance, process] of [
    ['a', '2'],
    ['b', '1'],
    [undefined, '2'],
    ['c', '2'],
    ['d', '2'],
  ] as const)
    await open('one', instance, process)
  await until('the end of the dead one', () => dead.far.dead !== undefined)
  t.match(dead.far.dead, { code: 'PEER_LOST', what: /started anew/ })
  await until('the end of the silent one', () => silent.far.dead !== undefined)
  t.match(silent.far.dead, { code: 'PEER_LOST', what: /started anew/ })
  t.same(
    waits.map(({ far }) => far.dead),
    [undefined, undefined, undefined],
    'the same process, one without a name, another identity: they wait',
  )
  const sinceMs = clock.now()
  await until('word of the one that lives', () => lives.far.link.heardMs > sinceMs)
  await kill(lives)
  t.equal(lives.far.dead, undefined, 'it has said something since: it waits for its patience, like any other')
})

t.test('what is wrong with the server itself is told as such, and tried again', async t => {
  const options = await pairOf('x509', t)
  let failures = 0
  const server: TestServer = await start(t, {
    ...options,
    server: {
      accept: (...came) => {
        if (failures++ < 2) throw new TypeError('planted')
        return server.accept(...came)
      },
    },
  })
  await t.rejects(join(t, server.port, { ...options, client: { openMs: 1 } }).client.open(), {
    message: /^INTERNAL: the server refuses: our own defect: planted;/,
  })
  await join(t, server.port, options).client.open()
  t.equal(failures, 3)
})

t.test('a defect that the layer above meets ends that session alone', async t => {
  const server = await start(t, {})
  const [bad, good] = [join(t, server.port, {}), join(t, server.port, {})]
  await bad.client.open()
  await good.client.open()
  const far = server.ends[0]!
  far.onData = () => {
    throw new TypeError('planted')
  }
  bad.end.open(10_000, 10_000, false)
  t.equal((await far.link.ended)?.code, 'INTERNAL')
  await bad.client.link.ended
  t.equal(bad.end.bye, CODE.INTERNAL)
  far.onWork = () => {
    throw new TypeError('planted')
  }
  server.ends[1]!.onWork = far.onWork
  good.end.open(10, 10, false)
  t.equal((await server.ends[1]!.link.ended)?.code, 'INTERNAL')
  t.match(server.log.of('link.defect'), [{ fields: { stack: /planted/ } }, { fields: { stack: /planted/ } }])
  await join(t, server.port, {}).client.open()
})

t.test('what is said of a session before anybody serves it is told then', async t => {
  const server = await start(t, {})
  const client = new LinkClient({
    ...{ host: '127.0.0.1', port: server.port, plaintext: true, offer: offer(), logger: server.log },
  })
  await client.open()
  server.ends[0]!.link.session.coldPages.ask([7])
  server.server.drain()
  await until('DRAIN', () => (client.session as unknown as { peerDraining: boolean }).peerDraining)
  await server.ends[0]!.link.close()
  await client.link.ended
  const end = new End(client.link)
  client.link.serve(end)
  t.same(end.wanted, [7])
  t.ok(end.drained)
  t.equal(end.bye, CODE.NONE)
  t.throws(() => client.link.serve(end), { code: 'INTERNAL' })
})

t.test('which certificate renews which', t => {
  const before = 'x509:CN=site-a;DNS:site-a, DNS:a.example, IP Address:192.0.2.1'
  const cases: [identity: string, related: boolean][] = [
    [before, true],
    ['x509:CN=site-a;', true],
    ['x509:CN=other;DNS:x, DNS:a.example', true],
    ['x509:CN=other;IP Address:192.0.2.1', true],
    ['x509:CN=other;DNS:b.example', false],
    ['x509:CN=other;DNS:192.0.2.1', false],
    ['x509:CN=a.example;', false],
    ['x509:CN=other;DNS:"x, DNS:a.example, y"', false],
    ['x509:;', false],
    ['psk:site-a', false],
    ['plain', false],
  ]
  for (const [identity, related] of cases) t.equal(areRelated(before, identity), related, identity)
  t.notOk(areRelated('x509:;', 'x509:;'), 'no names at all')
  t.end()
})

t.test('in quiet times TLS is there before the first bytes, and reads them itself', async t => {
  const options = await pairOf('x509', t)
  const { server, port } = await start(t, options)
  const take = server.take.bind(server)
  const read: boolean[] = []
  server.take = raw => {
    take(raw)
    read.push(raw.listenerCount('readable') > 0)
  }
  await join(t, port, options).client.open()
  t.same(read, [false], 'what Node.js is given of an earlier read sets the length of all that follow')
})
