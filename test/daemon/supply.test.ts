/** Proxies whose sets come from a channel, as processes: migrations never wait for it, whatever the store does. */
import { fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { SetSupply, type SupplySettings } from '../../src/daemon/set-supply.ts'
import { makeChannelKey } from '../../src/remote/channel-keys.ts'
import { PAGEFERRY } from '../cli/command.ts'
import { until } from '../helpers/until.ts'
import { type Answer, breaksAfter, honest, hostileServer, says } from '../remote/hostile-server.ts'
import { operator, publish } from '../remote/sites.ts'
import { migration, page, scratch } from '../template/makers.ts'
import { isSupplier, Running, RunningPair } from './running.ts'

t.setTimeout(590_000) // the machine may be busy

/** Of a supply whose process cannot be started. */
const NOWHERE: SupplySettings = {
  own: '/nonexistent/own',
  storeKey: undefined,
  remote: ['nowhere:'],
  insecure: false,
  channels: ['stable'],
  trust: '/nonexistent/channel.pub',
  signers: undefined,
  maxBytes: undefined,
}

t.test('a host on which no process can be started', async t => {
  const told: unknown[] = []
  const events = new Events()
  events.subscribe(({ fields }) => told.push((fields as { error: unknown }).error))
  const supply = new SetSupply(NOWHERE, events)
  const { execPath } = process
  t.teardown(() => (process.execPath = execPath))
  process.execPath = 'no such\0name' // thrown, as ENOMEM is
  supply.start()
  t.match(told, [/null bytes/])
  process.execPath = '/nonexistent/node' // reported by an event
  await until('another attempt', () => told.length === 2)
  t.match(told[1], /ENOENT/)
  process.execPath = execPath
  await until('a process that starts, and finds its settings wrong', () =>
    told.some(error => /no such kind/.test(`${error}`)),
  )

  // descriptors: such a child has neither pipes nor a channel
  const child = fork(new URL('starved-child.ts', import.meta.url), [], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const said: unknown[] = []
  child.on('message', message => said.push(message))
  const [status] = await once(child, 'exit')
  t.equal(status, 0)
  t.match(said, [/EMFILE/, /no such kind/], 'told, and started once there are descriptors')
})

t.test('settings that no other attempt makes right end the start', async t => {
  const { folder } = scratch(t.teardown)
  const trust = join(folder, 'channel.pub')
  const none = join(folder, 'none.pub')
  writeFileSync(trust, makeChannelKey().publicPem)
  writeFileSync(none, 'no key')
  const config = join(folder, 'site.yaml')
  const cases: readonly (readonly [string, string, RegExp])[] = [
    ['http://192.0.2.1/sets', trust, /192\.0\.2\.1/],
    ['https://', trust, /https:/],
    [`file://${folder}`, none, /no public key/],
  ]
  for (const [remote, keys, said] of cases) {
    const supply = ['--store', folder, '--store', remote, '--channel', 'stable', '--trust', keys, '--plaintext']
    const file = { store: folder, 'remote-stores': [remote], channels: ['stable'], trust: keys, plaintext: true }
    const wan = { wan: { listen: ['tcp:127.0.0.1:0'] }, targets: { a: `unix:${folder}/qemu.sock` } }
    writeFileSync(config, JSON.stringify({ ...file, ...wan }, null, 2)) // JSON is YAML
    const commands = [
      ['source', '--listen', `unix:${folder}/source.sock`, '--peer', '127.0.0.1:1', ...supply],
      ['destination', '--listen', 'tcp:127.0.0.1:0', '--target', `unix:${folder}/qemu.sock`, ...supply],
      ['serve', '--config', config],
      ['serve', '--config', config, '--check'],
    ]
    await Promise.all(
      commands.map(async args => {
        const child = spawn(PAGEFERRY, args, { stdio: ['ignore', 'ignore', 'pipe'] })
        const [text, status] = await Promise.all([
          child.stderr.toArray().then(parts => Buffer.concat(parts).toString()),
          once(child, 'exit').then(([status]) => status),
        ])
        t.equal(status, 2, args.join(' '))
        t.match(text, said)
      }),
    )
  }
})

t.test('a proxy that ends while a set is fetched', async t => {
  const { folder } = scratch(t.teardown)
  const site = operator(t.teardown)
  const server = await hostileServer(t.teardown)
  const trust = join(folder, 'channel.pub')
  writeFileSync(trust, site.trusted[0]!.export({ format: 'pem', type: 'spki' }))
  await site.promote([await site.push(1)])
  publish(server, site)
  server.script.push(honest(server.objects), honest(server.objects), () => {}) // the document, no signature, and no set
  const own = join(folder, 'own')
  await using proxy = new Running(
    ...['destination', '--listen', 'tcp:127.0.0.1:0', '--target', `unix:${folder}/qemu.sock`, '--learn', 'off'],
    ...['--store', own, '--store', server.url, '--channel', 'stable', '--trust', trust],
  )
  await until('the set to be asked for', () => server.requests.length === 3)
  const locks = (): string[] => readdirSync(own).filter(name => name.endsWith('.lock'))
  t.equal(locks().length, 1)
  const supplier = await proxy.supplier()
  proxy.child.kill('SIGKILL')
  await until('the end of the process that fetches', () => !isSupplier(supplier))
  t.same(locks(), [], 'the next one need not wait until its lock is old')
})

t.test('a pair that follows a channel', async t => {
  const { folder } = scratch(t.teardown)
  const site = operator(t.teardown)
  const server = await hostileServer(t.teardown)
  const trust = join(folder, 'channel.pub')
  writeFileSync(trust, site.trusted[0]!.export({ format: 'pem', type: 'spki' }))
  const following = (own: string): string[] => [
    ...['--store', join(folder, own), '--store', server.url],
    ...['--channel', 'stable', '--trust', trust, '--store-size', '1GB', '--learn', 'off'],
  ]
  const one = await site.push(1, 300)
  await site.promote([one])
  publish(server, site)

  await using pair = await RunningPair.start(folder, { near: following('near'), far: following('far') })
  const { near, far } = pair
  const both = [near, far]
  const migrate = async (pages: readonly Buffer[]): Promise<void> => {
    const stream = migration(pages)
    t.ok((await pair.migrate(stream)).arrived.equals(stream), 'the bytes are right')
  }
  const guest = Array.from({ length: 300 }, (_, i) => page(i + 1))
  /** A session that was open before is renewed for the migration that comes once the change was seen. */
  const migrateUntilUsed = (digest: string): Promise<unknown> =>
    until(`a session with ${digest}`, async () => {
      await migrate(guest)
      return near.of('session open').some(({ sets }) => (sets as string[]).includes(digest.slice(0, 12)))
    })

  for (const each of both) await each.said('template sets in force', ({ serial }) => serial === 1)
  await migrateUntilUsed(one)
  await until('a migration that what was fetched made small', async () => {
    await migrate(guest)
    return near.of('migration ended').some(({ bytesIn, bytesWan }) => Number(bytesWan) < Number(bytesIn) / 20)
  })
  for (const each of both) {
    const nice = readFileSync(`/proc/${await each.supplier()}/stat`, 'latin1')
      .split(') ')[1]!
      .split(' ')[16]
    t.equal(nice, '19', 'at the lowest priority')
  }

  // one side after the other: in between both have the set of before
  const two = await site.push(1000, 300)
  await site.promote([two], { overlapMs: 3_600_000 })
  publish(server, site)
  near.child.kill('SIGHUP')
  await near.said('template sets in force', ({ serial }) => serial === 2)
  await migrate(guest)
  far.child.kill('SIGHUP')
  await far.said('template sets in force', ({ serial }) => serial === 2)
  await migrateUntilUsed(two)
  await migrate([...guest, ...Array.from({ length: 300 }, (_, i) => page(1000 + i))])

  // a store that accepts connections and answers nothing, one that lies, one that is gone
  await site.promote([one, two])
  publish(server, site)
  const lie = Buffer.from(server.objects.get('channels/stable.json')!)
  lie[lie.length - 100]! ^= 1
  server.objects.set('channels/stable.json', lie)
  near.child.kill('SIGHUP')
  await near.said('sets are not fetched', ({ channel }) => channel === 'stable')
  server.script.push(...Array.from({ length: 20 }, () => () => {}))
  const asked = server.requests.length
  far.child.kill('SIGHUP')
  await until('a question that is not answered', () => server.requests.length > asked)
  await migrate(guest)
  t.equal(far.of('template sets in force').length, 2, 'what was in force stays')

  // the process that fetches dies, and the proxy dies
  const before = await far.supplier()
  process.kill(before, 'SIGKILL')
  await far.said('sets are not fetched', ({ error }) => error === 'SIGKILL')
  await until('another one', async () => (await far.supplier()) !== before)
  await migrate(guest)
  const last = await far.supplier()
  far.child.kill('SIGTERM')
  t.same(await far.exit, [0, null], 'a proxy ends though its process waits for a store')
  await until('its end', () => !isSupplier(last))
  const other = await near.supplier()
  near.child.kill('SIGKILL')
  await until('the end of the other', () => !isSupplier(other))
})

t.test('a pair whose sets come from an S3 that fails, stalls and lies', async t => {
  const { folder } = scratch(t.teardown)
  const site = operator(t.teardown)
  const server = await hostileServer(t.teardown)
  const { objects, script } = server
  const trust = join(folder, 'channel.pub')
  writeFileSync(trust, site.trusted[0]!.export({ format: 'pem', type: 'spki' }))
  const mine = Object.keys(process.env).filter(name => name.startsWith('AWS_'))
  for (const name of mine) delete process.env[name]
  const settings = {
    AWS_ENDPOINT_URL: new URL(server.url).origin,
    AWS_ACCESS_KEY_ID: 'test',
    AWS_SECRET_ACCESS_KEY: 'secret',
    AWS_CONFIG_FILE: '/dev/null',
    AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
  }
  Object.assign(process.env, settings) // proxies inherit it
  t.teardown(() => {
    for (const name of Object.keys(settings)) delete process.env[name]
  })
  const following = (own: string): string[] => [
    ...['--store', join(folder, own), '--store', 's3://store'],
    ...['--channel', 'stable', '--trust', trust, '--learn', 'off'],
  ]
  const one = await site.push(1, 300)
  await site.promote([one])
  publish(server, site)
  await using pair = await RunningPair.start(folder, { near: following('near'), far: following('far') })
  const both = [pair.near, pair.far]
  const guest = migration(Array.from({ length: 400 }, (_, i) => page(i + 1)))
  const migrate = async (what: string): Promise<void> => {
    t.ok((await pair.migrate(guest)).arrived.equals(guest), `${what}: the bytes are right`)
  }
  for (const each of both) await each.said('template sets in force', ({ serial }) => serial === 1)
  await migrate('in force')

  // each at the destination alone, which asks first for the document and then for its set
  const two = await site.push(1000, 300)
  await site.promote([one, two])
  publish(server, site)
  const set = objects.get(`sets/${two}.pfset`)!
  const lie = Buffer.from(set)
  lie[lie.length - 5000]! ^= 1
  const trouble = says(503, { 'content-type': 'application/xml' }, '<Error><Code>SlowDown</Code></Error>')
  const setsAlone =
    (answer: Answer): Answer =>
    (request, response) =>
      (request.url!.includes('.pfset?') ? answer : honest(objects))(request, response)
  const document = objects.get('channels/stable.json')!
  const forged = Buffer.from(document)
  forged[forged.length - 100]! ^= 1
  const { far } = pair
  const faults: readonly (readonly [string, Answer])[] = [
    ['it is in trouble', trouble],
    ['it lets nobody in', says(403, { 'content-type': 'application/xml' }, '<Error><Code>AccessDenied</Code></Error>')],
    ['it says what nobody signed', says(200, { 'content-length': forged.length, etag: '"x"' }, forged)],
    ['it gives no set', setsAlone(trouble)],
    ['it gives another one', setsAlone(says(200, { 'content-length': lie.length, etag: '"y"' }, lie))],
  ]
  for (const [what, answer] of faults) {
    const before = far.of('sets are not fetched').length
    script.push(...Array.from({ length: 60 }, () => answer))
    far.child.kill('SIGHUP')
    await until(what, () => far.of('sets are not fetched').length > before)
    script.length = 0
    await migrate(what)
  }
  t.equal(far.of('template sets in force').length, 1, 'what was in force stays')

  script.push(...Array.from({ length: 8 }, () => setsAlone(breaksAfter(objects, 100_000))))
  far.child.kill('SIGHUP')
  await far.said('template sets in force', ({ serial }) => serial === 2)
  await migrate('it breaks off, and is gone on with')

  const asked = server.requests.length
  script.push(() => {})
  far.child.kill('SIGHUP')
  await until('a question that is not answered', () => server.requests.length > asked)
  await migrate('it is silent')
})
