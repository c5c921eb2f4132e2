/** Stores that hosts share, as people type it: keys, push, promote, sync, roll back, pull. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { COMMANDS } from '../../src/cli/commands.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { page, putPages, scratch } from '../template/makers.ts'
import { type Outcome, PAGEFERRY, run } from './command.ts'

t.setTimeout(590_000) // the machine may be busy

const { folder } = scratch(t.teardown)
const at = (name: string): string => join(folder, name)
const remote = pathToFileURL(at('remote')).href
mkdirSync(at('remote'))
const built = new TemplateStore(at('built'))
const [one, two] = [
  await putPages(
    built,
    Array.from({ length: 40 }, (_, i) => page(i + 1)),
  ),
  await putPages(
    built,
    Array.from({ length: 40 }, (_, i) => page(i + 500)),
  ),
] as [string, string]

async function store(...args: readonly string[]): Promise<Outcome> {
  return await run(['store', ...args], { cwd: folder })
}

async function good(...args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await store(...args)
  if (status !== 0) throw new Error(`${args.join(' ')}: ${status} ${stderr}`)
  return stdout
}

const PROMOTE = ['--key', 'channel.key', '--store', remote]
const SYNC = ['sync', '--channel', 'stable', '--trust', 'channel.key.pub', '--store', 'here', '--store', remote]

t.test('from a key to what is in force, and back', async t => {
  t.match(await good('key', 'channel.key'), /key [0-9a-f]{16}\n.*--trust channel\.key\.pub/s)
  t.equal(statSync(at('channel.key')).mode & 0o777, 0o600)
  t.match(await good('push', one.slice(0, 12), '--store', 'built', '--store', remote), /put: file:/)
  t.match(await good('push', '--all', '--store', 'built', '--store', remote), /there already.*put|put.*there already/s)
  t.match(await good('promote', 'stable', one.slice(0, 12), ...PROMOTE), new RegExp(`serial 1\n.*${one}`, 's'))
  const synced = await good(...SYNC)
  t.match(synced, /fetched/)
  t.match(synced, /serial 1 is in force, 1 sets/)
  t.equal(await good(...SYNC), 'nothing new\n')
  t.ok(readFileSync(at(`here/${one}.pfset`)).equals(readFileSync(at(`built/${one}.pfset`))))
  await good('promote', 'stable', one, two, ...PROMOTE, '--at', '2026-01-01T00:00Z', '--expires', '30d')
  t.match(JSON.parse(await good(...SYNC, '--json')), [
    { kind: 'fetched', digest: two },
    { kind: 'in force', serial: 2 },
  ])
  t.match(JSON.parse(await good('rollback', 'stable', ...PROMOTE, '--json')), { serial: 3, sets: [{ digest: one }] })
  t.match(
    await good('show', 'stable', '--trust', 'channel.key.pub', '--store', remote),
    new RegExp(`serial 3, signed by [0-9a-f]{16} \\(trusted: .*\n${one}`, 's'),
  )
  const pulled = await good('pull', two, '--store', 'there', '--store', remote, '--json')
  t.match(JSON.parse(pulled), [{ digest: two, existed: false }])
  t.ok(existsSync(at(`here/.fetched-${two}`)))
  t.match(await good('pull', two, '--store', 'here', '--store', remote), /is there already/)
  t.notOk(existsSync(at(`here/.fetched-${two}`)), 'stays, whatever the channel says')
})

t.test('what people do wrong', async t => {
  const cases: readonly (readonly [string, readonly string[], number, RegExp])[] = [
    ['no sets', ['push', '--store', 'built', '--store', remote], 2, /no sets/],
    ['a store that is not there', ['push', '--all', '--store', 'nowhere', '--store', remote], 1, /nowhere/],
    ['no remote store', ['push', '--all', '--store', 'built'], 2, /no remote store/],
    ['two own stores', ['push', '--all', '--store', 'built', '--store', 'remote'], 2, /file:\/\/\/PATH/],
    [
      'one that can only be read',
      ['push', '--all', '--store', 'built', '--store', 'https://x.invalid'],
      2,
      /only be read/,
    ],
    ['a remote store as the own one', ['list', '--store', remote], 2, /is a remote store/],
    ['no such kind', ['push', '--all', '--store', 'built', '--store', 'ftp://x/y'], 2, /no such kind/],
    ['http over the net', ['pull', one, '--store', 'here', '--store', 'http://192.0.2.1/'], 2, /http:\/\/ shows/],
    [
      'a remote store that is not there',
      ['pull', one, '--store', 'x', '--store', 'file:///nowhere/y'],
      12,
      /cannot be read/,
    ],
    ['a set that nobody has', ['pull', 'ab'.repeat(32), '--store', 'x', '--store', remote], 4, /no remote store has/],
    [
      'a set that nobody has, by its beginning',
      ['pull', 'abcdef', '--store', 'x', '--store', remote],
      4,
      /no template set/,
    ],
    ['a channel that is none', ['promote', 'Stable', one, ...PROMOTE], 2, /small letters/],
    ['a set that was not pushed', ['promote', 'stable', 'ab'.repeat(32), ...PROMOTE], 13, /push it first/],
    [
      'a key that is none',
      ['promote', 'stable', one, '--key', 'channel.key.pub', '--store', remote],
      2,
      /channel\.key\.pub/,
    ],
    ['a time that is none', ['promote', 'stable', one, ...PROMOTE, '--at', 'tomorrow'], 2, /2027-01-31T03:00Z/],
    ['a key that is there', ['key', 'channel.key'], 1, /channel\.key/],
    ['no such channel', ['show', 'other', '--store', remote], 13, /no channel of sets other/],
    ['nothing before', ['rollback', 'other', ...PROMOTE], 13, /no earlier document/],
    ['no private key for hosts', [...SYNC.map(arg => arg.replace('.key.pub', '.key'))], 2, /no public key/],
  ]
  for (const [what, args, status, err] of cases) {
    const outcome = await store(...args)
    t.equal(outcome.status, status, what)
    t.match(outcome.stderr, err, what)
    t.match(outcome.stderr, /^error: .*\nhint: /m, what)
  }
})

t.test('a document that an untrusted key signed', async t => {
  await good('key', 'other.key')
  const forced = ['--key', 'other.key', '--trust', 'channel.key.pub', '--store', remote]
  await good('promote', 'stable', two, ...forced)
  const { status, stderr } = await store(...SYNC)
  t.equal(status, 13)
  t.match(stderr, /not signed by a trusted key/)
  rmSync(at('remote/channels'), { recursive: true })
  mkdirSync(at('remote/channels'))
  await good('promote', 'stable', two, ...PROMOTE)
  const stale = await store(...SYNC)
  t.equal(stale.status, 13)
  t.match(stale.stderr, /serial 1, and 2 was there already/)
  rmSync(at('remote/channels/stable.json'))
  await good('promote', 'stable', two, ...PROMOTE, '--serial', '9')
  t.match(await good(...SYNC), /serial 9/)
})

t.test('Ctrl-C while a store does not answer', async t => {
  let command: ChildProcess | undefined
  const server = createServer(() => command!.kill('SIGINT')) // and never an answer
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const env = {
    ...process.env,
    NODE_OPTIONS: '',
    AWS_ENDPOINT_URL: url,
    AWS_ACCESS_KEY_ID: 'a',
    AWS_SECRET_ACCESS_KEY: 'b',
    AWS_CONFIG_FILE: '/dev/null',
    AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
  }
  for (const [args, hint] of [
    [['push', '--all', '--store', 'built', '--store', 's3://sets'], 'what was put whole stays there'],
    [['pull', one, '--store', 'new', '--store', url], 'what was fetched is gone on with the next time'],
    [
      ['sync', '--channel', 'stable', '--trust', 'channel.key.pub', '--store', 'new', '--store', url],
      'what is in force',
    ],
  ] as const) {
    command = spawn(PAGEFERRY, ['store', ...args], { cwd: folder, env, stdio: ['ignore', 'ignore', 'pipe'] })
    let told = ''
    command.stderr!.setEncoding('utf8').on('data', text => (told += text))
    const [status] = await once(command, 'close')
    t.equal(status, 130, `${args[0]}: ${told}`)
    t.ok(told.startsWith(`error: interrupted\nhint: ${hint}`), told)
  }
})

t.test('without the client of S3 all but s3:// works', t => {
  const hooks = `import { registerHooks } from 'node:module'
    registerHooks({ resolve(name, context, next) {
      if (/^@(aws|smithy)/.test(name)) throw Object.assign(new Error(name), { code: 'ERR_MODULE_NOT_FOUND' })
      return next(name, context)
    } })`
  const main = new URL('../../src/cli/main.ts', import.meta.url).pathname
  const without = (...args: readonly string[]) =>
    spawnSync(process.execPath, ['--import', `data:text/javascript,${encodeURIComponent(hooks)}`, main, ...args], {
      cwd: folder,
      encoding: 'utf8',
    })
  const bucket = without('store', 'push', '--all', '--store', 'built', '--store', 's3://sets')
  t.equal(bucket.status, 2)
  t.match(
    bucket.stderr,
    /@aws-sdk\/client-s3, which is not installed\nhint: npm install --no-save @aws-sdk\/client-s3@/,
  )
  for (const args of [
    ...COMMANDS.map(({ command }) => [command.split(' ')[0]!, '--help']),
    ['store', 'push', '--all', '--store', 'built', '--store', remote],
    ['store', 'promote', 'spare', one, ...PROMOTE],
    ['store', 'show', 'spare', '--store', remote],
    ['store', 'pull', one, '--store', 'other', '--store', remote],
    ['store', 'sync', '--channel', 'spare', ...SYNC.slice(3)],
    ['store', 'list', '--store', 'other'],
  ]) {
    const { status, stderr } = without(...args)
    t.equal(status, 0, `${args.join(' ')}: ${stderr}`)
  }
  const { peerDependencies } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
  t.ok(bucket.stderr.includes(`client-s3@${peerDependencies['@aws-sdk/client-s3']}\n`), 'the version that is tested')
  t.end()
})
