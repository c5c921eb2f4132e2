/** `pageferry migrate` and `doctor --fix` as commands, against QEMUs that are models: output, signals, exit statuses. */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { join } from 'node:path'
import t from 'tap'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { COMPLETES, GOES_ON, type ModelOptions, ModelQemu, serveModel } from '../qmp/model-qemu.ts'
import { type CommandOptions, type Outcome, run } from './command.ts'

t.setTimeout(590_000)

const { path: folder, remove } = temporaryFolder('migrate')
t.teardown(remove)
mkdirSync(join(folder, 'bin'))

/** In place of ssh: runs what it is to run on the other host here, as a shell there would. */
writeFileSync(
  join(folder, 'bin/ssh'),
  `#!/bin/sh
echo "$@" >> '${folder}/ssh.log'
while [ "$1" != -- ]; do shift; done
[ "$2" = away ] && { echo 'ssh: connect to host away port 22: No route to host' >&2; exit 255; }
exec sh -c "$3"
`,
)
/** In place of socat: what it does with these arguments. */
writeFileSync(
  join(folder, 'bin/socat'),
  `#!${process.execPath}
const socket = require('net').connect(process.argv[3].replace('UNIX-CONNECT:', ''))
socket.on('error', error => { console.error('socat: ' + error.message); process.exit(1) })
socket.on('close', () => process.exit())
process.stdin.pipe(socket).pipe(process.stdout)
`,
)
for (const name of ['ssh', 'socat']) chmodSync(join(folder, 'bin', name), 0o755)
const env = { PATH: `${join(folder, 'bin')}:${process.env.PATH}` }

let pairs = 0
/** Two QEMUs at sockets of their own. */
async function models(
  t: { teardown(undo: () => void): void },
  source: ModelOptions = {},
  destination: ModelOptions = {},
): Promise<{ near: string; far: string; source: ModelQemu; destination: ModelQemu }> {
  const [near, far] = [join(folder, `near-${pairs}`), join(folder, `far-${pairs++}`)]
  const both = { source: new ModelQemu(source), destination: new ModelQemu({ incoming: 'defer', ...destination }) }
  both.source.destination = both.destination
  t.teardown(await serveModel(both.source, near))
  t.teardown(await serveModel(both.destination, far))
  return { near, far, ...both }
}

const TO = ['--to', 'tcp:127.0.0.1:4444', '--incoming', 'tcp:127.0.0.1:5555']
const migrate = (
  near: string,
  far: string,
  more: readonly string[] = [],
  options: Partial<CommandOptions> = {},
): Promise<Outcome> => run(['migrate', '--qmp', near, '--far-qmp', far, ...TO, ...more], { cwd: folder, ...options })
const events = ({ stdout }: Outcome): Record<string, unknown>[] =>
  stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line) as Record<string, unknown>)

t.test('completed', async t => {
  const { near, far, source, destination } = await models(t)
  const before = [source.settings, destination.settings]
  const outcome = await migrate(near, far)
  t.equal(outcome.status, 0, outcome.stderr)
  t.match(outcome.stdout, /^completed after 3\.0 s: the guest stood still for 42 ms, 1\.1 GB from QEMU in 3 passes\n/)
  t.match(outcome.stdout, /destination QEMU: running, source QEMU: postmigrate\n.*`quit` it/)
  t.match(outcome.stderr, /^set at the destination: return-path: off -> on \(/)
  t.match(outcome.stderr, /set at the source: max-bandwidth: 134217728 -> 0/)
  t.match(outcome.stderr, /listens at tcp:127\.0\.0\.1:5555\n/)
  t.match(outcome.stderr, /migrating to tcp:127\.0\.0\.1:4444\n/)
  t.match(outcome.stderr, /pass 1: .* % *, [\d.]+ MB of 1\.1 GB left, 800\.0 Mbit\/s from QEMU/)
  t.match(outcome.stderr, /put back at the source: max-bandwidth: 134217728\n/)
  t.same([source.settings, destination.settings], before)
})

t.test('nobody reads what it says, and it is done all the same', async t => {
  const { near, far, source, destination } = await models(t)
  const before = source.settings
  const outcome = await migrate(near, far, ['--json'], { stdout: 'closed' })
  t.equal(outcome.status, 0, outcome.stderr)
  t.equal(destination.state, 'running')
  t.same(source.settings, before)
})

t.test('as JSON, from another host, by ssh', async t => {
  const { near, far } = await models(t, { version: '7.2.22' }, { version: '7.2.22' })
  const outcome = await migrate(near, `ssh:root@fra:${far}`, ['--json'], { env })
  t.equal(outcome.status, 0, outcome.stderr)
  t.equal(outcome.stderr, '')
  const all = events(outcome)
  t.same([...new Set(all.map(({ event }) => event))], ['set', 'listening', 'started', 'progress', 'put back', 'ended'])
  t.match(all.at(-1), {
    result: 'completed',
    began: true,
    downtimeMs: 42,
    totalMs: 3000,
    pass: 3,
    destination: 'running',
    left: [],
  })
  t.match(
    all.find(({ event }) => event === 'set'),
    { side: 'destination', name: 'return-path', before: false, value: true },
  )
})

t.test('ssh that does not get there, or finds no socket', async t => {
  const { near, far } = await models(t)
  const away = await migrate(near, `ssh:away:${far}`, [], { env })
  t.equal(away.status, 1)
  t.match(away.stderr, /^error: no answer from QEMU at ssh:away:.*; ssh says: ssh: connect .*No route to host\nhint: /)
  const none = await migrate(near, `ssh:fra:${folder}/none`, [], { env })
  t.equal(none.status, 1)
  t.match(none.stderr, /ssh says: socat: .*ENOENT/)
})

t.test('a host without anything for Unix sockets', async t => {
  const { near, far } = await models(t)
  const bare = join(folder, 'bare')
  mkdirSync(bare)
  writeFileSync(
    join(bare, 'ssh'),
    `#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nPATH=${bare} exec /bin/sh -c "$3"\n`,
  )
  symlinkSync('/bin/sh', join(bare, 'sh'))
  chmodSync(join(bare, 'ssh'), 0o755)
  const outcome = await migrate(near, `ssh:fra:${far}`, [], { env: { PATH: `${bare}:${process.env.PATH}` } })
  t.equal(outcome.status, 1)
  t.match(
    outcome.stderr,
    /^error: no answer from QEMU at ssh:fra:.*: neither socat nor nc is there\nhint: install socat/,
  )
})

t.test('a host without ssh', async t => {
  const { near, far } = await models(t)
  const bare = join(folder, 'without-ssh')
  mkdirSync(bare)
  for (const name of ['sh', 'readlink', 'node']) {
    const at = process.env.PATH?.split(':').find(one => existsSync(join(one, name)))
    if (at !== undefined) symlinkSync(join(at, name), join(bare, name))
  }
  const outcome = await migrate(near, `ssh:fra:${far}`, [], { env: { PATH: bare } })
  t.equal(outcome.status, 1)
  t.match(
    outcome.stderr,
    /^error: no answer from QEMU at ssh:fra:.*: there is no ssh on this host\nhint: apt-get install openssh-client\n/,
  )
})

/** A source proxy that tells of one migration once it is over. @returns its control socket */
async function proxyThat(t: { teardown(run: () => void): void }, past: object): Promise<string> {
  let looks = 0
  const control = join(mkdtempSync(join(folder, 'proxy-')), 'control')
  const proxy = createServer((request, response) => {
    const migrations = looks++ < 2 ? [] : [past] // status and history before it begins
    response.end(JSON.stringify(request.url === '/history' ? { api: 1, migrations } : { api: 1, sources: [] }))
  })
  await new Promise<void>(done => proxy.listen(control, done))
  t.teardown(() => void proxy.close())
  return control
}

/** A source proxy at `--to`, as it tells of itself each time, the last for ever. @returns its control socket */
async function proxyOf(t: { teardown(run: () => void): void }, ...told: readonly object[]): Promise<string> {
  let looks = 0
  const control = join(mkdtempSync(join(folder, 'proxy-')), 'control')
  const proxy = createServer((request, response) => {
    const now = request.url === '/history' ? {} : told[Math.min(looks++, told.length - 1)]
    const source = { peer: 'fra', listening: ['tcp:127.0.0.1:4444'], ...now }
    response.end(JSON.stringify({ api: 1, migrations: [], sources: [source] }))
  })
  await new Promise<void>(done => proxy.listen(control, done))
  t.teardown(() => void proxy.close())
  return control
}

const failed = (times: number): object => ({ failure: { what: 'fra refused', hint: 'is it running?', times } })

t.test('a proxy that gets no session: it ends before anything has begun, with the reason', async t => {
  const { near, far, source } = await models(t)
  const outcome = await migrate(near, far, ['--control', await proxyOf(t, failed(3), failed(3), failed(4))])
  t.equal(outcome.status, 8, outcome.stderr)
  t.match(
    outcome.stderr,
    /^the source proxy has no session with fra: fra refused; waiting for its next try\nerror: the source proxy has no session with fra: fra refused\nhint: nothing has begun; is it running\?\n$/,
  )
  t.same(source.log, [])
})

t.test('a proxy whose next try opens one, and one that has not tried yet', async t => {
  const courses: [string, readonly object[]][] = [
    ['the other one is back', [failed(3), { session: { migrations: [] } }]],
    ['it has not tried', [{}]],
  ]
  for (const [name, told] of courses) {
    const { near, far } = await models(t)
    const outcome = await migrate(near, far, ['--control', await proxyOf(t, ...told)])
    t.equal(outcome.status, 0, `${name}: ${outcome.stderr}`)
  }
})

const BREAKS = { course: ['active', { status: 'failed', 'error-desc': 'Bad file descriptor' }] }

t.test('why it failed, as the proxy tells it', async t => {
  const { near, far } = await models(t, BREAKS)
  const past = { id: '5-1', direction: 'out', outcome: 'failed', reason: 'tcp:127.0.0.1:4444 refused the connection' }
  const outcome = await migrate(near, far, ['--control', await proxyThat(t, past)])
  t.equal(outcome.status, 17, outcome.stderr)
  t.match(
    outcome.stderr,
    /error: the migration failed: Bad file descriptor; the source proxy: tcp:127\.0\.0\.1:4444 refused the connection\n/,
  )
})

t.test('`pageferry cancel` is a cancel here too, though QEMU only sees its socket break', async t => {
  const past = { id: '5-1', direction: 'out', outcome: 'cancelled' }
  const { near, far } = await models(t, BREAKS)
  const reason = 'cancelled by the operator of the source proxy'
  const outcome = await migrate(near, far, ['--control', await proxyThat(t, { ...past, reason })])
  t.equal(outcome.status, 18, outcome.stderr)
  t.match(outcome.stdout, /^cancelled/)
  t.match(
    outcome.stderr,
    /error: cancelled by the operator of the source proxy\nhint: the guest is running at the source/,
  )

  const other = await models(t, BREAKS)
  const closed = 'the source QEMU closed in the middle of its stream: cancelled there, or that QEMU is gone'
  const failed = await migrate(other.near, other.far, ['--control', await proxyThat(t, { ...past, reason: closed })])
  t.equal(failed.status, 17, 'where QEMU closed, QEMU knows why')
})

t.test('Ctrl-C cancels, and waits until the guest goes on', async t => {
  const { near, far, source, destination } = await models(t, { course: GOES_ON })
  const before = [source.settings, destination.settings]
  const outcome = await migrate(near, far, [], { when: [[/pass 2/, command => command.kill('SIGINT')]] })
  t.equal(outcome.status, 130, outcome.stderr)
  t.match(outcome.stderr, /interrupted: cancelling, the guest goes on at the source\n/)
  t.match(outcome.stderr, /error: cancelled: interrupted\nhint: the guest is running at the source\n$/)
  t.match(outcome.stdout, /^cancelled/)
  t.ok(source.log.includes('migrate_cancel'))
  t.same([source.settings, destination.settings], before)
})

t.test('SIGTERM does the same', async t => {
  const { near, far, source } = await models(t, { course: GOES_ON })
  const outcome = await migrate(near, far, ['--json'], { when: [[/"pass":2/, command => command.kill('SIGTERM')]] })
  t.equal(outcome.status, 143, outcome.stderr)
  t.match(events(outcome).at(-1), { event: 'ended', result: 'cancelled', source: 'running', left: [] })
  t.match(JSON.parse(outcome.stderr), { error: { code: 'MIGRATION_CANCELLED' } })
  t.ok(source.log.includes('migrate_cancel'))
})

t.test('Ctrl-C twice ends the command alone, and says what is left', async t => {
  // it never has cancelled
  const instead: ModelOptions['instead'] = command => (command === 'migrate_cancel' ? { return: {} } : undefined)
  const { near, far, source } = await models(t, { course: GOES_ON, instead })
  const when: CommandOptions['when'] = [
    [/pass 2/, command => command.kill('SIGINT')],
    [/cancelling, the guest/, command => command.kill('SIGINT')],
  ]
  const outcome = await migrate(near, far, [], { when })
  t.equal(outcome.status, 130, outcome.stderr)
  t.match(outcome.stderr, /not put back at the source \(interrupted\): .*max-bandwidth 0, was 134217728/)
  t.match(outcome.stderr, /error: interrupted twice: the migration is active\nhint: .*query-migrate/)
  t.match(source.settings, { 'max-bandwidth': 0 })
})

t.test('Ctrl-C while QEMU answers nothing: the second one ends it', async t => {
  const instead: ModelOptions['instead'] = (command, count) =>
    command === 'query-migrate' && count > 3 ? 'silent' : undefined
  const { near, far } = await models(t, { course: GOES_ON, instead })
  const when: CommandOptions['when'] = [
    [/does not answer for now/, command => command.kill('SIGINT')],
    [/once more ends/, command => command.kill('SIGINT')],
  ]
  const outcome = await migrate(near, far, [], { when })
  t.equal(outcome.status, 130, outcome.stderr)
  t.match(outcome.stderr, /error: interrupted twice/)
})

t.test('Ctrl-C in postcopy is refused, and it goes on', async t => {
  const postcopy = [...Array.from({ length: 20 }, () => 'postcopy-active'), ...COMPLETES.slice(-1)]
  const { near, far, source } = await models(t, { course: GOES_ON, postcopy })
  const when: CommandOptions['when'] = [[/from here on it cannot be cancelled/, command => command.kill('SIGINT')]]
  const outcome = await migrate(near, far, ['--postcopy-after', '1'], { when })
  t.equal(outcome.status, 0, outcome.stderr)
  t.match(outcome.stderr, /not cancelled: in postcopy the guest is at the destination.*"migrate-pause"/)
  t.notMatch(source.log.join(), /migrate_cancel/)
})

const statuses: [string, ModelOptions, readonly string[], number, RegExp][] = [
  [
    'failed',
    { course: ['active', { status: 'failed', 'error-desc': 'no\n\x1b[31m' }] },
    [],
    17,
    /error: the migration failed: no\\n\\u001b\[31m\nhint: the guest is running/,
  ],
  ['too long', { course: GOES_ON }, ['--timeout', '1s'], 18, /error: cancelled: not done after 1 s \(--timeout\)/],
  [
    'paused',
    { course: GOES_ON, postcopy: ['postcopy-paused'] },
    ['--postcopy-after', '1'],
    19,
    /error: .*paused in postcopy[^\n]*\nhint: .*migrate-recover/,
  ],
  [
    'refused',
    { instead: command => (command === 'migrate' ? { error: 'no such block device' } : undefined) },
    [],
    16,
    /error: the source QEMU does not migrate: migrate: no such block device/,
  ],
  [
    'gone',
    { course: GOES_ON, instead: (command, count) => (command === 'query-migrate' && count > 3 ? 'close' : undefined) },
    [],
    10,
    /error: the source QEMU cannot be asked any more/,
  ],
  [
    'not QMP',
    {
      course: GOES_ON,
      instead: (command, count) => (command === 'query-migrate' && count > 3 ? { raw: 'null\n' } : undefined),
    },
    [],
    10,
    /cannot be asked any more: not QMP/,
  ],
  [
    'a line without end',
    {
      course: GOES_ON,
      instead: (command, count) =>
        command === 'query-migrate' && count > 3 ? { raw: 'x'.repeat(5 << 20) } : undefined,
    },
    [],
    10,
    /a line of more than/,
  ],
  [
    'events without end',
    {
      course: GOES_ON,
      instead: (command, count) =>
        command === 'query-migrate' && count > 3
          ? { raw: '{"event":"MIGRATION_PASS","data":{}}\n'.repeat(500_000) }
          : undefined,
    },
    [],
    10,
    /more than \d+ characters without an answer/,
  ],
]
for (const [name, source, more, status, err] of statuses)
  t.test(`${name}: status ${status}`, async t => {
    const { near, far } = await models(t, source)
    const outcome = await migrate(near, far, more)
    t.equal(outcome.status, status, outcome.stderr)
    t.match(outcome.stderr, err)
  })

t.test('doctor --fix', async t => {
  const { near, far, source, destination } = await models(t, { parameters: { 'tls-creds': 'tls0' } })
  const args = ['doctor', '--qmp', near, '--far-qmp', far, '--fix']
  const outcome = await run([...args, '--rate', '100Mbit'], { cwd: folder })
  t.equal(outcome.status, 0, outcome.stderr)
  t.match(outcome.stdout, /^source: QEMU 10\.0\.13\ndestination: QEMU 10\.0\.13\n/)
  t.match(outcome.stdout, /\nset: source: return-path: off -> on\n/)
  t.match(outcome.stdout, /\nset: source: tls-creds: "tls0" -> ""\n/)
  t.match(outcome.stdout, /\nset: source: avail-switchover-bandwidth: 0 -> 12500000\n/)
  t.match(outcome.stdout, /\nset: destination: return-path: off -> on\n/)
  t.match(outcome.stdout, /\nnothing is left to change\n$/)
  t.match(source.settings, { 'return-path': true, 'tls-creds': '', 'max-bandwidth': 0 })
  t.match(destination.settings, { 'return-path': true })
  const again = await run([...args, '--json', '--rate', '100Mbit'], { cwd: folder })
  t.equal(again.status, 0)
  t.match(JSON.parse(again.stdout), { fixed: [], advice: [] }, 'nothing is set twice')
})

t.test('doctor of a QEMU below 9.0 without KVM warns, and fails for nothing', async t => {
  const sound = { capabilities: { 'return-path': true }, parameters: { 'max-bandwidth': 0 } }
  const { near } = await models(t, { ...sound, version: '7.2.22', isTcg: true })
  const outcome = await run(['doctor', '--qmp', near], { cwd: folder })
  t.equal(outcome.status, 0, outcome.stderr)
  t.match(outcome.stdout, /^source: QEMU 7\.2\.22\nsource: warning: QEMU 7\.2\.22 without KVM .*\nnothing to change\n$/)
  const { stdout } = await run(['doctor', '--qmp', near, '--json'], { cwd: folder })
  t.match(JSON.parse(stdout), { qemus: [{ side: 'source', warning: /loses pages/ }], advice: [] })
})

t.test('doctor --fix that loses a QEMU on its way tells what it has set', async t => {
  for (const more of [[], ['--json']]) {
    // answers once, and not when it is looked what has become of it
    const instead: ModelOptions['instead'] = (command, count) =>
      command === 'query-migrate-parameters' && count > 0 ? 'close' : undefined
    const { near, far, source } = await models(t, {}, { instead })
    const outcome = await run(['doctor', '--qmp', near, '--far-qmp', far, '--fix', ...more], { cwd: folder })
    t.equal(outcome.status, 1, outcome.stderr)
    t.match(source.settings, { 'return-path': true, 'max-bandwidth': 0 })
    if (more.length === 0) t.match(outcome.stdout, /\nset: source: max-bandwidth: 134217728 -> 0\n/)
    else t.match(JSON.parse(outcome.stdout), { fixed: [{ name: 'return-path', before: false }, {}, {}] })
  }
})

t.test('doctor --fix that QEMU refuses, and what is kept', async t => {
  const instead: ModelOptions['instead'] = command =>
    command === 'migrate-set-capabilities' ? { error: 'There is a migration process in progress' } : undefined
  const { near, source } = await models(t, { instead })
  const outcome = await run(['doctor', '--qmp', near, '--fix', '--json'], { cwd: folder })
  t.equal(outcome.status, 11, outcome.stderr)
  const { fixed, advice } = JSON.parse(outcome.stdout)
  t.match(fixed, [
    { name: 'return-path', before: false, value: true, refused: /in progress/ },
    { name: 'max-bandwidth', value: 0 },
  ])
  t.equal(fixed[1].refused, undefined)
  t.match(advice[0], { setting: 'return-path off', change: { name: 'return-path' } }, 'what is left, with the command')
  t.match(source.settings, { 'return-path': false, 'max-bandwidth': 0 })
  const kept = await run(['doctor', '--qmp', near, '--fix', '--keep', 'return-path'], { cwd: folder })
  t.equal(kept.status, 0, 'what is kept is not complained of')
})
