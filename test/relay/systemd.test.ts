/**
 * What systemd and we say to each other: sockets passed in, messages sent out, the watchdog, and the unit files. A fake
 * of systemd's side is a few lines of Python, because Node opens no datagram socket of the Unix kind.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { Notifier, takeListenFds } from '../../src/daemon/systemd.ts'
import { isProxyError } from '../../src/errors.ts'
import { PAGEFERRY } from '../cli/command.ts'
import { ownHost } from '../helpers/own-host.ts'
import { until } from '../helpers/until.ts'

t.setTimeout(590_000) // the machine may be busy

const folder = mkdtempSync(join(tmpdir(), 'pageferry-systemd-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

const units = fileURLToPath(new URL('../../systemd/', import.meta.url))
const activated = fileURLToPath(new URL('activated.ts', import.meta.url))

/** False where a program runs, else the reason to skip. */
function lacking(...programs: string[]): string | false {
  const missing = programs.filter(name => spawnSync(name, ['--version']).status !== 0)
  return missing.length > 0 ? `not installed: ${missing.join(', ')}` : false
}

const RECEIVER = `
import json, os, socket, struct, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print('"up"', flush=True)
while True:
    data, rights, _, _ = s.recvmsg(4096, 4096)
    for level, kind, fds in rights:
        n = len(fds) // 4
        for fd in struct.unpack('%di' % n, fds[:n * 4]): os.close(fd)
    if data != b'BARRIER=1': print(json.dumps(data.decode()), flush=True)
`

/** systemd's end of NOTIFY_SOCKET. */
class FakeSystemd {
  readonly path: string
  readonly messages: string[] = []
  private readonly process: ChildProcess
  private rest = ''

  private constructor(path: string) {
    this.path = path
    this.process = spawn('python3', ['-c', RECEIVER, path], { stdio: ['ignore', 'pipe', 'inherit'] })
    this.process.stdout?.on('data', (chunk: Buffer) => {
      const lines = (this.rest + chunk).split('\n')
      this.rest = lines.pop() ?? ''
      for (const line of lines) this.messages.push(JSON.parse(line) as string)
    })
  }

  static async start(name: string): Promise<FakeSystemd> {
    const fake = new FakeSystemd(join(folder, name))
    await until('receiver', () => fake.messages.length === 1)
    fake.messages.length = 0
    return fake
  }

  stop(): void {
    this.process.kill()
  }
}

/** Processes whose parent we are, that run the helper. */
function helpers(): number[] {
  return readdirSync('/proc')
    .filter(name => /^\d+$/.test(name))
    .filter(pid => {
      try {
        const parent = / \w (\d+)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\)/, ''))?.[1]
        return Number(parent) === process.pid && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('systemd-notify')
      } catch {
        return false
      }
    })
    .map(Number)
}

t.test('LISTEN_FDS', async t => {
  const cases: readonly [string, Record<string, string>, [string, number[]][]][] = [
    ['none', {}, []],
    ['one with a name', { LISTEN_PID: '7', LISTEN_FDS: '1', LISTEN_FDNAMES: 'qemu' }, [['qemu', [3]]]],
    [
      'several of one name, and two names',
      { LISTEN_PID: '7', LISTEN_FDS: '4', LISTEN_FDNAMES: 'qemu:wan:qemu:qemu' },
      [
        ['qemu', [3, 5, 6]],
        ['wan', [4]],
      ],
    ],
    ['without names', { LISTEN_PID: '7', LISTEN_FDS: '2' }, [['unknown', [3, 4]]]],
    [
      'fewer names than sockets',
      { LISTEN_PID: '7', LISTEN_FDS: '3', LISTEN_FDNAMES: 'a:' },
      [
        ['a', [3]],
        ['unknown', [4, 5]],
      ],
    ],
    ['for another process', { LISTEN_PID: '8', LISTEN_FDS: '1', LISTEN_FDNAMES: 'qemu' }, []],
    ['no process at all', { LISTEN_FDS: '1' }, []],
    ['zero', { LISTEN_PID: '7', LISTEN_FDS: '0' }, []],
  ]
  for (const [name, vars, expected] of cases) {
    const env: Record<string, string | undefined> = { ...vars, OTHER: 'stays' }
    t.same([...takeListenFds(env, 7)], expected, name)
    t.same(env, { OTHER: 'stays' }, `${name}: the variables are gone`)
  }
  for (const count of ['-1', 'x', '1.5', '', '9999999']) {
    try {
      takeListenFds({ LISTEN_PID: '7', LISTEN_FDS: count }, 7)
      t.fail(`${count} is no count`)
    } catch (error) {
      t.ok(isProxyError(error, 'USAGE'), `LISTEN_FDS=${count}`)
    }
  }
})

t.test('without systemd nothing happens', async t => {
  for (const env of [{}, { NOTIFY_SOCKET: '', WATCHDOG_USEC: '1000000' }]) {
    const notifier = new Notifier(() => t.fail('no complaint'), env)
    t.notOk(notifier.enabled)
    t.equal(notifier.watchdogMs, undefined)
    notifier.ready('x')
    notifier.status('x')
    notifier.reloading()
    notifier.startWatchdog()
    notifier.stopping()
    await notifier.close()
  }
  t.same(helpers(), [])
})

t.test('messages to systemd', { skip: lacking('python3', 'systemd-notify') }, async t => {
  const fake = await FakeSystemd.start('messages')
  t.teardown(() => fake.stop())
  const env: Record<string, string | undefined> = { ...process.env, NOTIFY_SOCKET: fake.path }
  const notifier = new Notifier(why => t.fail(why), env)
  t.ok(notifier.enabled)
  t.equal(env.NOTIFY_SOCKET, undefined, 'the variable is gone')
  t.equal(helpers().length, 1)

  notifier.ready('serving, *, "quotes", $HOME, `x`, \\n, a\nREADY=0, \x1f, é')
  await until('READY', () => fake.messages.length === 1)
  t.equal(fake.messages[0], 'READY=1\nSTATUS=serving, *, "quotes", $HOME, `x`, \\n, a\\nREADY=0, \\u001f, é')

  fake.messages.length = 0
  for (let i = 0; i < 1000; i++) notifier.status(`migration ${i}`)
  await until('two STATUS', () => fake.messages.length === 2)
  await sleep(100)
  t.same(fake.messages, ['STATUS=migration 0', 'STATUS=migration 999'], 'the first at once, then the last')

  fake.messages.length = 0
  const before = Number(process.hrtime.bigint() / 1000n)
  notifier.reloading()
  notifier.ready()
  await until('RELOADING', () => fake.messages.length === 2)
  const usec = Number(/^RELOADING=1\nMONOTONIC_USEC=(\d+)$/.exec(fake.messages[0] ?? '')?.[1])
  t.ok(usec >= before && usec < before + 5e6, 'with the monotonic time')
  const uptime = Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0])
  t.ok(Math.abs(uptime - usec / 1e6) < 3600, 'of the clock that systemd reads')
  t.equal(fake.messages[1], 'READY=1')

  fake.messages.length = 0
  const [helper] = helpers()
  for (const signal of ['SIGHUP', 'SIGTERM', 'SIGINT'] as const) process.kill(helper!, signal)
  await sleep(50)
  t.same(helpers(), [helper], 'systemctl kill does not end the helper')
  process.kill(helper!, 'SIGKILL')
  await until('a new helper', () => {
    const [now] = helpers() // asked twice, the old one could be there the first time and gone the second
    return now !== undefined && now !== helper
  })
  notifier.stopping('bye')
  await notifier.close(60_000) // as long as it takes here to run systemd-notify
  t.same(helpers(), [], 'close() leaves nothing behind')
  await until('STOPPING', () => fake.messages.length > 1)
  // the old helper may have died with READY unsaid
  t.same(fake.messages, ['READY=1', 'STOPPING=1\nSTATUS=bye'])
  await notifier.close()
})

t.test('the watchdog', { skip: lacking('python3', 'systemd-notify') }, async t => {
  const fake = await FakeSystemd.start('watchdog')
  t.teardown(() => fake.stop())
  const base = { ...process.env, NOTIFY_SOCKET: fake.path }
  t.equal(new Notifier(() => {}, { WATCHDOG_USEC: '1000000' }).watchdogMs, undefined, 'not without NOTIFY_SOCKET')
  const other = new Notifier(() => {}, { ...base, WATCHDOG_USEC: '1000000', WATCHDOG_PID: '1' })
  t.equal(other.watchdogMs, undefined, 'not for another process')
  await other.close()
  const mine = new Notifier(() => {}, { ...base, WATCHDOG_USEC: '400000', WATCHDOG_PID: String(process.pid) })
  t.equal(mine.watchdogMs, 200, 'half the interval')
  let alive = true
  await sleep(1) // a timer counts from where its turn of the event loop began
  const startMs = performance.now()
  mine.startWatchdog(() => alive)
  await until('three signs of life', () => fake.messages.length >= 3)
  const beats = fake.messages.length
  const tookMs = performance.now() - startMs
  t.ok(beats <= 1 + (tookMs + 20) / 200, `${beats} signs of life in ${Math.round(tookMs)} ms`)
  t.ok(fake.messages.every(message => message === 'WATCHDOG=1'))
  alive = false
  mine.status('the last one') // messages keep their order: no sign of life is on its way behind it
  await until('the last one', () => fake.messages.at(-1) === 'STATUS=the last one')
  fake.messages.length = 0
  await sleep(500)
  t.same(fake.messages, [], 'none from a service that says that it is not well')
  await mine.close()
})

t.test('where systemd-notify is missing', async t => {
  const complaints: string[] = []
  const empty = join(folder, 'empty')
  mkdirSync(empty)
  const notifier = new Notifier(why => complaints.push(why), { PATH: empty, NOTIFY_SOCKET: join(folder, 'nobody') })
  notifier.ready()
  await until('complaint', () => complaints.length === 1)
  t.match(complaints[0], /no systemd-notify/)
  notifier.status('x')
  await notifier.close()
})

t.test('socket activation', { skip: lacking('systemd-socket-activate') }, async t => {
  const skip = lacking('python3', 'systemd-notify')
  const port = await claimPort()
  const path = join(folder, 'activated.sock')
  const fake = skip ? undefined : await FakeSystemd.start('activation')
  t.teardown(() => fake?.stop())
  const notify = fake ? ['-E', `NOTIFY_SOCKET=${fake.path}`] : []
  const args = [
    '-l',
    `127.0.0.1:${port}`,
    '-l',
    path,
    '--fdname=qemu:local',
    '-E',
    `PATH=${process.env.PATH}`,
    ...notify,
  ]
  const service = spawn('systemd-socket-activate', [...args, process.execPath, activated, 'qemu', 'local'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  t.teardown(() => service.kill('SIGKILL'))
  const said: Record<string, unknown>[] = []
  let rest = ''
  service.stdout?.on('data', (chunk: Buffer) => {
    const lines = (rest + chunk).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) said.push(JSON.parse(line) as Record<string, unknown>)
  })
  const ended = once(service, 'exit')
  await until('the socket', () => existsSync(path))

  /** Sends and gets back. */
  const echo = async (where: net.NetConnectOpts, text: string): Promise<string> => {
    const peer = net.connect({ ...where, allowHalfOpen: true })
    peer.end(text)
    const got: Buffer[] = []
    for await (const chunk of peer) got.push(chunk as Buffer)
    return Buffer.concat(got).toString()
  }
  // It is this connection that starts the service; the kernel holds its bytes meanwhile.
  t.equal(await echo({ port, host: '127.0.0.1' }, 'over TCP'), 'over TCP')
  t.equal(await echo({ path }, 'over a Unix socket'), 'over a Unix socket')
  const about = said[0]!
  t.same(about.fds, [
    ['qemu', [3]],
    ['local', [4]],
  ])
  t.match(about.child, /^0 1 2( 3)?$/, 'children inherit no socket (3 is the folder that ls reads)')
  const { listening } = said.find(line => 'listening' in line)!
  t.same(listening, [`tcp:127.0.0.1:${port}`, `unix:${path}`], 'where they are, not how systemd calls them')
  t.same(
    said.filter(line => 'accepted' in line),
    [
      { accepted: 'qemu', port },
      { accepted: 'local', port: null },
    ],
  )
  if (fake) await until('READY', () => fake.messages.includes('READY=1\nSTATUS=serving qemu local'))

  const last = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  last.write('a')
  await once(last, 'data')
  service.kill('SIGTERM')
  if (fake) await until('STOPPING', () => fake.messages.includes('STOPPING=1\nSTATUS=finishing 1'))
  await sleep(200)
  t.equal(service.exitCode, null, 'a clean stop waits for what runs')
  last.write('b')
  const [answer] = (await once(last, 'data')) as [Buffer]
  t.equal(answer.toString(), 'b')
  last.end()
  const [code] = (await ended) as [number]
  t.equal(code, 0)
})

t.test('several sockets under one name', { skip: lacking('systemd-socket-activate') }, async t => {
  const path = join(folder, 'several.sock')
  const host = ownHost()
  const args = ['-l', `${host}:40000`, '-l', `${host}:40001`, '-l', path, '--fdname=qemu:qemu:qemu']
  const source = ['source', '--listen', 'web=fd:qemu', '--peer', '127.0.0.1:1', '--plaintext', '--json']
  const service = spawn('systemd-socket-activate', [...args, '-E', `PATH=${process.env.PATH}`, PAGEFERRY, ...source], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => service.kill('SIGKILL'))
  const targets: unknown[] = []
  createInterface({ input: service.stdout! }).on('line', line => {
    const { msg, target } = JSON.parse(line) as Record<string, unknown>
    if (msg === 'connection waits for a session') targets.push(target)
  })
  await until('the socket', () => existsSync(path))
  const sent: net.Socket[] = []
  for (const where of [{ host, port: 40001 }, { path }, { host, port: 40000 }, { host, port: 40001 }]) {
    sent.push(net.connect(where).on('error', () => {}))
    await until('its line', () => targets.length === sent.length)
  }
  t.same(targets, ['web:40001', 'web', 'web:40000', 'web:40001'], 'each port keeps its number')
  for (const socket of sent) socket.destroy()
  const ended = once(service, 'exit')
  service.kill('SIGTERM')
  t.same(await ended, [0, null])
})

t.test(
  'a service that ends without close() is not held up by the helper',
  { skip: lacking('systemd-notify') },
  async t => {
    const script = join(folder, 'ends.ts')
    const module = new URL('../../src/daemon/systemd.ts', import.meta.url).href
    writeFileSync(script, `import { Notifier } from '${module}'; new Notifier().ready(); setTimeout(() => {}, 50)`)
    const run = spawnSync(process.execPath, [script], {
      env: { ...process.env, NOTIFY_SOCKET: join(folder, 'nobody') },
      timeout: 60_000,
    })
    t.equal(run.status, 0)
  },
)

t.test('unit files', { skip: lacking('systemd-analyze') }, async t => {
  const names = readdirSync(units).filter(name => /\.(service|socket)$/.test(name))
  t.same(names.toSorted(), [
    'pageferry-destination.service',
    'pageferry-destination.socket',
    'pageferry-serve.service',
    'pageferry-serve.socket',
    'pageferry-source-disks.socket',
    'pageferry-source.service',
    'pageferry-source.socket',
  ])
  // A root of its own, in which the commands and documents that the units name exist.
  const root = join(folder, 'root')
  const files: [string, number][] = [
    ['usr/bin/pageferry', 0o755],
    ['bin/kill', 0o755],
    ['usr/share/doc/pageferry/docs/operations.md', 0o644],
  ]
  for (const [path, mode] of files) {
    mkdirSync(join(root, path, '..'), { recursive: true })
    writeFileSync(join(root, path), '#!/bin/sh\n')
    chmodSync(join(root, path), mode)
  }
  cpSync('/lib/systemd/system', join(root, 'lib/systemd/system'), { recursive: true, verbatimSymlinks: true })
  mkdirSync(join(root, 'etc/systemd/system'), { recursive: true })
  for (const name of names) cpSync(join(units, name), join(root, 'etc/systemd/system', name))
  const verify = spawnSync('systemd-analyze', ['verify', `--root=${root}`, ...names], { encoding: 'utf8' })
  t.equal(verify.status, 0, 'systemd-analyze verify')
  t.equal(verify.stderr.trim(), '', 'without a word')

  for (const name of names.filter(name => name.endsWith('.service'))) {
    const security = spawnSync('systemd-analyze', ['security', '--offline=true', '--no-pager', join(units, name)], {
      encoding: 'utf8',
    })
    const score = Number(/Overall exposure level for \S+: ([\d.]+)/.exec(security.stdout)?.[1])
    t.ok(score <= 2, `systemd-analyze security ${name}: ${score}`)
    const text = readFileSync(join(units, name), 'utf8')
    t.ok(
      text.split('\n').every(line => line.length <= 150 || line.startsWith('ExecStart=')),
      'no long lines',
    )
  }
})
