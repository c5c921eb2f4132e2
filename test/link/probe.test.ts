/** A look at the other side over real sockets: what it finds, where it stops, and that it leaves nothing behind. */
import { once } from 'node:events'
import net from 'node:net'
import t from 'tap'
import { ProxyError } from '../../src/errors.ts'
import { type ProbeOptions, probe } from '../../src/link/probe.ts'
import { FEATURE } from '../../src/wan/wire.ts'
import { until } from '../helpers/until.ts'
import { credentials, makeClient, makeCredentials, TestServer } from './harness.ts'

t.setTimeout(590_000)

const DIGEST = '0123456789abcdef'.repeat(4)
const OFFER = { agent: 'probe', sets: [], cold: [DIGEST], features: [FEATURE.COLD_SETS] }
const base = { host: '127.0.0.1', credentials: undefined, offer: OFFER, pings: 3 } satisfies Partial<ProbeOptions>

t.test('over TLS: who it is, what it has, how far it is, and a session that is over', async t => {
  const directory = await makeCredentials('x509', t, ['near', 'far'])
  const server = await new TestServer({
    serverCredentials: credentials(`${directory}/far`, { role: 'server' }),
    server: {
      accept: hello => ({
        ...{ sets: [], ring: hello.ring, places: hello.places, targets: ['vm'] },
        cold: hello.cold!,
        serve: link => {
          sessions.push(link.ended)
          return silent
        },
      }),
    },
  }).listen()
  const sessions: Promise<ProxyError | undefined>[] = []
  const silent = new Proxy({}, { get: () => () => {} }) as never
  t.teardown(() => server.server.close(0))
  const near = credentials(`${directory}/near`, { role: 'client', peerName: 'far' })
  const found = await probe({ ...base, credentials: near, port: server.port })
  t.equal(found.failure, undefined)
  t.match(found, { address: '127.0.0.1', identity: /^x509:CN=far/, certificate: { names: ['far'], subject: 'CN=far' } })
  t.match(found.hello, { targets: ['vm'], cold: [DIGEST], ring: 0, places: 0 })
  t.equal(found.roundTripsMs?.length, 3)
  t.ok(found.roundTripsMs!.every(ms => ms > 0))
  t.equal(found.bytesPerSecond, undefined, 'not asked for')
  t.equal(sessions.length, 1)
  t.equal(await sessions[0], undefined, 'the session ended in order, and waits for nobody')
  t.match(server.log.of('link.bye'), [{ fields: { code: 0, text: 'checked' } }])
  await until('no session', () => server.server.stats.sessions === 0)

  const wrong = credentials(`${directory}/near`, { role: 'client', peerName: 'elsewhere' })
  const other = await probe({ ...base, credentials: wrong, port: server.port })
  t.match(other.failure, { stage: 'tls', error: { code: 'PEER_AUTH', what: /does not carry the name "elsewhere"/ } })
  t.same(other.certificate?.names, ['far'], 'its names are told all the same')
})

t.test('the session of a proxy that runs goes on beside it, under the same name', async t => {
  const directory = await makeCredentials('x509', t, ['near', 'far'])
  const server = await new TestServer({
    serverCredentials: credentials(`${directory}/far`, { role: 'server' }),
    server: { sessionsMax: 4 },
  }).listen()
  t.teardown(() => server.server.close(0))
  const near = credentials(`${directory}/near`, { role: 'client', peerName: 'far' })
  const running = makeClient(server.port, {
    clientCredentials: near,
    client: { offer: { sets: [], ring: 0, places: 0, seed: '0'.repeat(16), instance: 'a', process: 'b' } },
  })
  await running.client.open()
  for (let i = 0; i < 3; i++)
    t.equal((await probe({ ...base, credentials: near, port: server.port })).failure, undefined)
  t.equal(running.client.link.over, false)
  t.same(server.log.of('link.dead'), [])
  await until('that one alone', () => server.server.stats.sessions === 1)
  await running.client.close()
})

t.test('what the link carries, below a cap and without one', async t => {
  const server = await new TestServer({}).listen()
  t.teardown(() => server.server.close(0))
  const capped = await probe({ ...base, port: server.port, throughput: { forMs: 1000, rateMax: 400_000 } })
  t.equal(capped.failure, undefined)
  t.ok(capped.bytesPerSecond! > 50_000 && capped.bytesPerSecond! < 600_000, `${capped.bytesPerSecond} of 400000`)
  const free = await probe({
    ...base,
    port: server.port,
    throughput: { forMs: 500, rateMax: Number.POSITIVE_INFINITY },
  })
  t.equal(free.failure, undefined)
  t.ok(free.bytesPerSecond! > 1_000_000, `${free.bytesPerSecond}`)
  await until('each took its leave', () => server.server.stats.sessions === 0)
})

t.test('each stage fails as itself', async t => {
  const nobody = net.createServer().listen(0, '127.0.0.1')
  await once(nobody, 'listening')
  const { port } = nobody.address() as net.AddressInfo
  nobody.close()
  await once(nobody, 'close')
  t.match((await probe({ ...base, port })).failure, { stage: 'connect', error: { code: 'PEER_LOST', what: /REFUSED/ } })

  const server = await new TestServer({
    server: {
      accept: () => {
        throw new ProxyError('LIMIT_EXCEEDED', 'full', undefined, '')
      },
    },
  }).listen()
  t.teardown(() => server.server.close(0))
  t.match((await probe({ ...base, port: server.port })).failure, {
    stage: 'hello',
    error: { code: 'LIMIT_EXCEEDED', what: 'the other side refuses: full' },
  })

  const other = net.createServer(socket => socket.on('error', () => {}).end('HTTP/1.1 400 Bad Request\r\n\r\n'))
  other.listen(0, '127.0.0.1')
  await once(other, 'listening')
  t.teardown(() => void other.close())
  const { port: otherPort } = other.address() as net.AddressInfo
  t.match((await probe({ ...base, port: otherPort })).failure, { stage: 'hello', error: { code: 'PROTOCOL_SYNTAX' } })
  const directory = await makeCredentials('psk', t)
  const tls = credentials(`${directory}/site-a`, { role: 'client' })
  t.match((await probe({ ...base, port: otherPort, credentials: tls })).failure, { stage: 'tls' })
})

t.test('a server that goes away behind its hello is told, not waited for', async t => {
  const server = await new TestServer({
    server: {
      accept: hello => ({
        ...{ sets: [], ring: hello.ring, places: hello.places, targets: [] },
        serve: link => {
          void link.close('renewed')
          return new Proxy({}, { get: () => () => {} }) as never
        },
      }),
    },
  }).listen()
  t.teardown(() => server.server.close(0))
  const { failure, hello } = await probe({ ...base, port: server.port, pings: 1000 })
  t.ok(hello)
  t.match(failure, { stage: 'link', error: { what: /ended the session: renewed|closed the connection/ } })
})
