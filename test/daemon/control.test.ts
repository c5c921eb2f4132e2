/** The control socket: what it says and does over real daemons, and what those who misuse it cost. */
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { lstatSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { CapKeeper } from '../../src/daemon/cap-keeper.ts'
import { Control } from '../../src/daemon/control.ts'
import type { SiteStatus } from '../../src/daemon/control-api.ts'
import { ControlServer, json } from '../../src/daemon/control-server.ts'
import { Events } from '../../src/daemon/events.ts'
import { type ControlledDestination, type ControlledSource, Site } from '../../src/daemon/site.ts'
import { ProxyError } from '../../src/errors.ts'
import { CONTROL_BODY_BYTES_MAX, CONTROL_CLIENTS_MAX, CONTROL_HEAD_BYTES_MAX } from '../../src/limits.ts'
import { RateSchedule } from '../../src/rate-schedule.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { askProxy } from '../../src/system/control-client.ts'
import { closed, Daemons, MAIN } from './daemons.ts'

t.setTimeout(600_000) // the machine may be busy

const folder = mkdtempSync(join(tmpdir(), 'pageferry-control-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

async function failure(run: () => Promise<unknown>): Promise<ProxyError> {
  try {
    await run()
  } catch (error) {
    if (error instanceof ProxyError) return error
    throw error
  }
  throw new Error('it did not fail')
}

t.test('both proxies of a pair are asked and told', async t => {
  const events = new Events()
  await using pair = await Daemons.start({ events })
  const [near, far] = [join(folder, 'near'), join(folder, 'far')]
  const controls = [
    new Control({ control: near }, new Site([pair.source], undefined), events),
    new Control({ control: far }, new Site([], pair.destination), events),
  ]
  for (const control of controls) await control.start()
  t.teardown(() => Promise.all(controls.map(control => control.close())))
  t.equal(lstatSync(near).mode & 0o777, 0o600)
  const statusOf = async (path: string): Promise<SiteStatus> => (await askProxy(path, 'GET /status')) as SiteStatus

  const source = await pair.dial()
  source.write(MAIN)
  const running = async (): Promise<string> => {
    for (;;) {
      const [status, there] = [await statusOf(near), await statusOf(far)]
      const { id } = status.sources[0]!.session?.migrations[0] ?? {}
      if (id !== undefined && there.destination!.sessions[0]?.migrations[0]?.id === id) return id
    }
  }
  const id = await running()
  const { peer } = (await statusOf(near)).sources[0]!
  t.match(await statusOf(near), { api: 1, process: process.pid, sources: [{ role: 'source', stopping: false }] })

  t.same(await askProxy(near, 'POST /rate', { peer, rate: '80Mbit' }), { peer, rate: 10_000_000, by: 'command' })
  t.match((await statusOf(near)).sources, [{ rate: 10_000_000, cap: { by: 'command' } }])
  t.same(await askProxy(near, 'POST /rate', { peer, rate: 'none' }), {
    ...{ peer, before: 10_000_000, by: 'command' },
  })
  t.same(await askProxy(near, 'POST /rate', { peer, rate: 'schedule' }), { peer, by: 'settings' })
  t.equal(pair.count('rate'), 3)
  const refusals: [string, string, object | undefined, object][] = [
    [near, 'POST /rate', { peer: 'x', rate: 'none' }, { code: 'USAGE', action: new RegExp(peer) }],
    [near, 'POST /rate', { peer, rate: '0Mbit' }, { code: 'USAGE', action: /nothing would ever arrive/ }],
    [near, 'POST /rate', { peer }, { code: 'USAGE', what: /no "rate"/ }],
    [near, 'POST /rate', undefined, { code: 'USAGE', what: /no "peer"/ }],
    [near, 'POST /cancel', { migration: 7 }, { code: 'USAGE' }],
    [far, 'POST /rate', { peer, rate: 'none' }, { code: 'USAGE', action: /only receives/ }],
    [near, 'POST /cancel', { migration: '0-1' }, { code: 'MIGRATION_MISSING' }],
    [far, 'POST /cancel', { migration: id }, { code: 'MIGRATION_MISSING', action: /site that its guest leaves/ }],
    [far, 'POST /cancel', { migration: '1' }, { code: 'MIGRATION_MISSING', what: new RegExp(id) }],
    [near, 'POST /cancel', { migration: '2' }, { code: 'MIGRATION_MISSING', what: /^no migration 2 leaves here$/ }],
    // what follows the head is nothing that a parser knows
    [near, 'POST /cancel', { migration: id }, { code: 'CANCEL_REFUSED', what: /not understood/ }],
    [near, 'POST /cancel', { migration: '1' }, { code: 'CANCEL_REFUSED', what: new RegExp(id) }],
    [near, 'GET /elsewhere', undefined, { code: 'USAGE', what: /GET \/status/ }],
    [near, 'GET /rate', undefined, { code: 'USAGE' }],
  ]
  for (const [path, request, body, error] of refusals)
    t.match(await failure(() => askProxy(path, request, body)), error, `${request} ${JSON.stringify(body)}`)
  t.notOk(source.closed, 'and nothing came of these')
  source.end()
  for (const control of controls) await control.close()
  t.match(await failure(() => statusOf(near)), { code: 'IO', what: /ENOENT/ }, 'its file is gone')
})

t.test('a migration by its number, where no other has it', async t => {
  const cancelled: string[] = []
  const leaving = (...ids: string[]): ControlledSource =>
    ({
      status: () => ({ session: { migrations: ids.map(id => ({ id, migration: Number(id.split('-')[1]) })) } }),
      cancel: (id: string) => (ids.includes(id) ? { id, migration: cancelled.push(id) } : undefined),
    }) as unknown as ControlledSource
  const arriving = { status: () => ({ sessions: [{ migrations: [{ id: 'c-3', migration: 3 }] }] }) }
  const site = new Site(
    [leaving('a-1', 'a-2'), leaving('b-1', 'b-3', 'b-12'), leaving()],
    arriving as unknown as ControlledDestination,
  )
  t.equal(site.cancel('2').id, 'a-2')
  t.equal(site.cancel('12').id, 'b-12', 'and of no digits of it')
  t.match(await failure(async () => site.cancel('1')), { code: 'USAGE', action: 'say which: a-1, b-1' })
  t.match(await failure(async () => site.cancel('3')), { code: 'USAGE', action: /b-3, c-3/ }, 'one arrives')
  t.match(await failure(async () => site.cancel('4')), { code: 'MIGRATION_MISSING' })
  t.equal(site.cancel('b-1').id, 'b-1')
  t.same(cancelled, ['a-2', 'b-12', 'b-1'], 'and no other was')
})

t.test('a cap on all peers together', async t => {
  const told: number[] = []
  const schedule = RateSchedule.always(Number.POSITIVE_INFINITY)
  const caps = new CapKeeper({ schedule, apply: bytes => told.push(bytes), tell: () => {} })
  const site = new Site([], undefined, caps)
  t.same(site.status().all, { rate: undefined, cap: { by: 'settings' } })
  t.same(site.setRate('all', 1000), { peer: 'all', before: undefined, rate: 1000, by: 'command' })
  t.same(site.status().all, { rate: 1000, cap: { by: 'command' } })
  t.same(site.setRate('all', 'schedule'), { peer: 'all', before: 1000, rate: undefined, by: 'settings' })
  t.same(told, [1000, Number.POSITIVE_INFINITY])
  t.match(await failure(async () => site.setRate('a', 1)), { code: 'USAGE', action: 'peers are: all' })
})

t.test('who asks again does so over the same connection, and over another where that was closed', async t => {
  const path = join(folder, 'asked-again')
  const asked: number[] = []
  const sockets: net.Socket[] = []
  const proxy = http.createServer((request, response) => {
    const number = sockets.indexOf(request.socket)
    asked.push(number)
    // as a proxy that has closed it just as this question came
    if (number === 0 && asked.length === 3) request.socket.destroy()
    else response.end('{"api":1}')
  })
  proxy.on('connection', socket => void sockets.push(socket))
  proxy.listen(path)
  await once(proxy, 'listening')
  for (let i = 0; i < 3; i++) t.same(await askProxy(path, 'GET /status'), { api: 1 })
  t.same(asked, [0, 0, 0, 1])
  proxy.closeAllConnections()
  proxy.close()
})

t.test('a proxy that ends in the middle of an answer is told once, and asked once more', async t => {
  const path = join(folder, 'ends-within')
  const connections: net.Socket[] = []
  const proxy = net.createServer(socket => void connections.push(socket)).listen(path)
  await once(proxy, 'listening')
  const first = askProxy(path, 'GET /status')
  await once(proxy, 'connection')
  const [socket] = connections as [net.Socket]
  await once(socket, 'data')
  socket.pause().write('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"api":1}')
  t.same(await first, { api: 1 })
  const again = askProxy(path, 'GET /status')
  await new Promise(done => setImmediate(done)) // it is free again in the next turn
  proxy.close()
  // it is closed with that question unread: a reset, of the question and of the answer
  socket.write('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{', () => socket.destroy())
  await t.rejects(again, { code: 'IO' })
  await new Promise(done => setImmediate(done)) // or else a rejection that nobody takes ends this process
})

t.test('a socket that is there', async t => {
  const path = join(folder, 'there')
  const address = parseAddress(`unix:${path}`)
  const server = (): ControlServer => new ControlServer(new Map([['GET /a', () => json(1)]]), () => t.fail())
  const first = server()
  await first.listen(address)
  t.match(await failure(() => server().listen(address)), { code: 'IO', what: /served by a process that runs/ })
  t.equal(await askProxy(path, 'GET /a'), 1, 'it was not touched')
  await first.close()

  // a process that was killed leaves its file behind
  const killed = join(folder, 'killed')
  spawnSync(process.execPath, [
    '-e',
    `require('net').createServer().listen(${JSON.stringify(killed)}, () => process.kill(process.pid, 'SIGKILL'))`,
  ])
  t.ok(lstatSync(killed).isSocket())
  t.match(await failure(() => askProxy(killed, 'GET /a')), {
    code: 'IO',
    what: /ECONNREFUSED/,
    action: /start it again/,
  })
  const second = server()
  await second.listen(parseAddress(`unix:${killed}`))
  t.equal(await askProxy(killed, 'GET /a'), 1, 'it is replaced')
  await second.close()

  const file = join(folder, 'file')
  writeFileSync(file, 'x')
  t.match(await failure(() => server().listen(parseAddress(`unix:${file}`))), { code: 'IO', what: /is no socket/ })
})

t.test('who answers is no proxy', async t => {
  for (const [said, what] of [
    ['SSH-2.0-OpenSSH_9.2\r\n', /is no proxy/],
    ['HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno', /is no proxy/],
    ['HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"error": 1}', /is no proxy/],
    ['', /no proxy answers/],
  ] as const) {
    const path = join(folder, 'other')
    const other = net.createServer(socket => void socket.resume().end(said))
    other.listen(path)
    await once(other, 'listening')
    t.match(await failure(() => askProxy(path, 'GET /status')), { code: 'IO', what }, JSON.stringify(said))
    other.close()
    await once(other, 'close')
  }
})

t.test('those who stall, flood or never read', async t => {
  const path = join(folder, 'patient')
  const large = 'x'.repeat(8 << 20)
  const server = new ControlServer(
    new Map([
      ['GET /a', () => json(1)],
      ['GET /large', () => json(large)],
      [
        'GET /broken',
        () => {
          throw new Error('ours')
        },
      ],
    ]),
    error => t.equal((error as Error).message, 'ours'),
    { clientMs: 500 },
  )
  await server.listen(parseAddress(`unix:${path}`))
  const connect = async (text = ''): Promise<net.Socket> => {
    const socket = net.connect(path)
    socket.on('error', () => {})
    await once(socket, 'connect')
    socket.write(text)
    return socket
  }
  const said = async (text: string): Promise<string> => {
    const socket = await connect(text)
    let answer = ''
    socket.setEncoding('utf8').on('data', data => {
      answer += data
    })
    await closed(socket)
    return answer
  }
  const ends = async (socket: net.Socket, what: string): Promise<void> => {
    socket.resume()
    await closed(socket)
    t.pass(what)
  }
  await ends(await connect(), 'silence is ended')
  await ends(await connect('GET /a HT'), 'half a line')
  await ends(await connect('GET /a HTTP/1.1\r\nhost: x\r\n'), 'half a head')
  await ends(await connect('POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx'), 'half a body')
  t.match(await said(`GET /a HTTP/1.1\r\nhost: ${'x'.repeat(CONTROL_HEAD_BYTES_MAX)}\r\n\r\n`), /^HTTP\/1.1 431 /)
  const body = 'x'.repeat(CONTROL_BODY_BYTES_MAX + 1)
  t.match(await said(`GET /a HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`), /^HTTP\/1.1 413 /)
  t.match(await said('\x16\x03\x01 no HTTP\r\n\r\n'), /^HTTP\/1.1 400 /)
  t.match(await said('PUT /a HTTP/1.1\r\nhost: x\r\n\r\n'), /^HTTP\/1.1 405 /)
  t.match(await said('GET /broken HTTP/1.1\r\nhost: x\r\n\r\n'), /^HTTP\/1.1 500 /)
  const one = 'GET /a HTTP/1.1\r\nhost: x\r\n\r\n'
  t.match((await said(one.repeat(1000))).split('HTTP/1.1 200').length - 1, /^[01]$/, 'one request at a time')

  const unread = await connect('GET /large HTTP/1.1\r\nhost: x\r\n\r\n')
  unread.pause()
  const crowd = await Promise.all(Array.from({ length: CONTROL_CLIENTS_MAX }, () => connect()))
  await closed(unread.resume())
  t.ok(unread.bytesRead < large.length, 'who does not read makes room')
  t.equal(await askProxy(path, 'GET /a'), 1, 'and others are answered')
  await closed(crowd[0]!.resume())
  await server.close()
  await Promise.all(crowd.map(socket => closed(socket.resume())))
})

t.test('who asks again and again has one connection', async t => {
  const path = join(folder, 'kept')
  const routes = new Map([['GET /a', () => json(1)]])
  const server = new ControlServer(routes, () => t.fail())
  await server.listen(parseAddress(`unix:${path}`))
  t.teardown(() => server.close())
  /** Asks on a connection that stays. */
  const connect = (at = path) => {
    const socket = net.connect(at)
    socket.on('error', () => {}).setEncoding('utf8')
    const ask = async (route: string): Promise<string> => {
      socket.write(`GET ${route} HTTP/1.1\r\nhost: x\r\n\r\n`)
      const [answer] = (await once(socket, 'data')) as [string]
      return answer
    }
    return { socket, ask }
  }
  const first = connect()
  for (let i = 0; i < 100; i++) {
    const answer = await first.ask('/a')
    if (!/^HTTP\/1\.1 200 /.test(answer) || /connection: close/i.test(answer)) t.fail(answer)
  }
  const others = Array.from({ length: CONTROL_CLIENTS_MAX - 1 }, () => connect())
  for (const one of others.slice(0, 5)) await one.ask('/a') // the rest ask nothing yet
  for (const { socket } of others) if (socket.connecting) await once(socket, 'connect')
  await first.ask('/a')
  const more = connect()
  await closed(others[0]!.socket.resume())
  t.match(await more.ask('/a'), /^HTTP\/1\.1 200 /, 'a newcomer gets the place of who was answered longest ago')
  t.match(await first.ask('/a'), /^HTTP\/1\.1 200 /, 'who asked lately stays')
  t.match(await first.ask('/b'), /^HTTP\/1\.1 404 [\s\S]*connection: close/i)
  await closed(first.socket)
  for (const { socket } of [more, ...others]) socket.destroy()

  const hurried = new ControlServer(routes, () => t.fail(), { clientMs: 2000, idleMs: 1 })
  await hurried.listen(parseAddress(`unix:${path}-hurried`))
  t.teardown(() => hurried.close())
  const asked = connect(`${path}-hurried`)
  await asked.ask('/a')
  await closed(asked.socket.resume())
  t.pass('who asks no more is let go')
})

t.test('on a port a browser that was lured there gets nothing', async t => {
  const server = new ControlServer(new Map([['GET /a', () => json(1)]]), () => t.fail())
  await server.listen(parseAddress('tcp:127.0.0.1:0'))
  const [address] = server.addresses
  const port = address!.kind === 'tcp' ? address!.port : 0
  const statusFor = async (host: string): Promise<number> => {
    return new Promise((done, failed) => {
      http
        .get({ host: '127.0.0.1', port, path: '/a', headers: { host } }, response =>
          done(response.resume().statusCode!),
        )
        .on('error', failed)
    })
  }
  for (const host of [`127.0.0.1:${port}`, 'localhost', `[::1]:${port}`]) t.equal(await statusFor(host), 200, host)
  for (const host of ['evil.example', `evil.example:${port}`, '127.0.0.1.evil.example'])
    t.equal(await statusFor(host), 403, host)
  await server.close()
})
