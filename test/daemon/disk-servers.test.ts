/**
 * What servers and clients of NBD that nobody here wrote do beyond copying: nbd-server, with its ways, and nbdkit with filters
 * that fail, wait and write down what reaches it.
 */
import { execFile } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { Events, type SiteEvent } from '../../src/daemon/events.ts'
import { until } from '../helpers/until.ts'
import { Daemons } from './daemons.ts'
import { NBD_SKIP, Nbdkit, nbdcopy, nbdsh, QEMU_IMG_SKIP, qemuImg } from './nbd.ts'

t.setTimeout(590_000) // the machine may be busy

const run = promisify(execFile)
const MIB = 1 << 20
/** Some systems have these programs where users do not look. */
const PATH_WITH_SBIN = `${process.env.PATH}:/usr/sbin:/sbin`
const digest = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex')
const has = (command: string): boolean => PATH_WITH_SBIN.split(':').some(f => existsSync(join(f, command)))
const SERVER_SKIP = (!has('nbd-server') && 'needs nbd-server: apt-get install nbd-server') || NBD_SKIP || QEMU_IMG_SKIP

/** A disk of noise and holes, whose end is no whole block. */
function image(bytes: number): Buffer {
  const disk = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; at += 2 * MIB) randomBytes(Math.min(MIB, bytes - at)).copy(disk, at)
  return disk
}

/** A pair whose target for disks is there, what it tells, and how a client reaches it. */
async function pairTo(t: Test, at: string) {
  const events = new Events()
  const told: SiteEvent[] = []
  events.subscribe(event => told.push(event))
  const daemons = await Daemons.start({ disks: at, ringPages: 8192, effort: 1, events })
  t.teardown(() => daemons[Symbol.asyncDispose]())
  const raw = () => told.flatMap(({ event, fields }) => (event === 'relayed raw' ? [fields] : []))
  return { daemons, told, raw, uri: (name: string) => `nbd://127.0.0.1:${daemons.diskPort}/${name}` }
}

/** nbd-server at a Unix socket: `disk`, the same without writes as `fixed`, and with what is written lost as `lost`. */
async function nbdServer(t: Test, disk: string): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-nbd-')) // a socket's path is short
  const socket = join(folder, 's')
  const exported = (name: string, ...more: string[]) => [`[${name}]`, `exportname = ${disk}`, ...more]
  const lines = [
    ...['[generic]', `unixsock = ${socket}`, 'allowlist = true'],
    ...exported('disk', 'flush = true', 'fua = true', 'trim = true'),
    ...exported('fixed', 'readonly = true'),
    ...exported('lost', 'copyonwrite = true'),
  ]
  writeFileSync(join(folder, 'config'), `${lines.join('\n')}\n`)
  // It serves one connection alone unless it goes into the background, as the leader of a group with a child for each.
  const pidFile = join(folder, 'pid')
  const env = { ...process.env, PATH: PATH_WITH_SBIN }
  await run('nbd-server', ['-C', join(folder, 'config'), '-p', pidFile], { env })
  await until('nbd-server listens', () => existsSync(socket) && existsSync(pidFile) && readFileSync(pidFile, 'utf8'))
  const pid = Number(readFileSync(pidFile, 'utf8'))
  t.teardown(() => {
    process.kill(-pid, 'SIGKILL')
    rmSync(folder, { recursive: true })
  })
  return socket
}

t.test('nbd-server: what others copy to it and from it', { skip: SERVER_SKIP }, async t => {
  const folder = t.testdir()
  const [near, far, back] = ['near', 'far', 'back'].map(name => join(folder, name)) as [string, string, string]
  writeFileSync(near, image(12 * MIB + 512))
  writeFileSync(far, Buffer.alloc(12 * MIB + 512))
  const pair = await pairTo(t, `unix:${await nbdServer(t, far)}`)
  await nbdcopy(near, pair.uri('disk'), '--flush')
  t.equal(digest(far), digest(near), 'nbdcopy to it')
  await nbdcopy(pair.uri('disk'), back)
  t.equal(digest(back), digest(near), 'nbdcopy from it')

  writeFileSync(near, image(12 * MIB + 512))
  await qemuImg('convert', '-n', '-f', 'raw', '-O', 'raw', near, pair.uri('disk'))
  t.equal(digest(far), digest(near), 'qemu-img to it')
  await qemuImg('convert', '-f', 'raw', '-O', 'raw', pair.uri('disk'), back)
  t.equal(digest(back), digest(near), 'qemu-img from it')
  t.match(await qemuImg('compare', '-f', 'raw', '-F', 'raw', near, pair.uri('fixed')), /identical/)
  t.same(pair.raw(), [], 'all of it is understood')
})

t.test('nbd-server: what it refuses, and what it lists', { skip: SERVER_SKIP }, async t => {
  const folder = t.testdir()
  const far = join(folder, 'far')
  writeFileSync(far, image(3 * MIB))
  const pair = await pairTo(t, `unix:${await nbdServer(t, far)}`)
  const printed = await nbdsh(
    pair.uri('disk'),
    'import errno',
    'model = bytearray(h.pread(h.get_size(), 0))',
    'for at, n in [(0, 1), (511, 2), (4096, 4096), (70001, 99999), (3 * 1048576 - 1, 1)]:',
    '    data = bytes([at % 251]) * n',
    '    h.pwrite(data, at, nbd.CMD_FLAG_FUA if h.can_fua() else 0); model[at:at+n] = data',
    'if h.can_trim(): h.trim(65536, 1048576); model[1048576:1048576+65536] = h.pread(65536, 1048576)',
    'h.flush()',
    'assert h.pread(len(model), 0) == model',
    'try:',
    '    h.set_strict_mode(0); h.pread(4096, 3 * 1048576 - 1)',
    'except nbd.Error as e: print(errno.errorcode[e.errnum])',
    'h.pread(1, 0); print(h.get_structured_replies_negotiated())',
  )
  t.match(printed, /^E(INVAL|NOSPC)\nFalse\n$/, 'a place beyond its end; and it goes on')
  t.match(
    await nbdsh(
      pair.uri('fixed'),
      'import errno',
      'h.set_strict_mode(0)',
      'try: h.pwrite(b"x" * 512, 0)',
      'except nbd.Error as e: print(errno.errorcode[e.errnum])',
    ),
    /EPERM/,
  )
  const before = digest(far)
  await nbdsh(pair.uri('lost'), 'h.pwrite(b"y" * 8192, 4096)', 'assert h.pread(8192, 4096) == b"y" * 8192')
  t.equal(digest(far), before, 'copyonwrite')
  const failed = await nbdsh(pair.uri('nobody')).catch((error: Error) => error.message)
  t.match(failed, /nobody|export|server/i, 'an export that is not there')
  const list = await run('nbdinfo', ['--list', pair.uri('')])
  for (const name of ['disk', 'fixed', 'lost']) t.match(list.stdout, new RegExp(`"${name}"`))
  t.same(pair.raw(), [])
})

// nbd-client hands its socket to the kernel's module `nbd`; only its list of exports does without.
const CLIENT_SKIP = SERVER_SKIP || (!has('nbd-client') && 'needs nbd-client: apt-get install nbd-client')
t.test('nbd-client lists', { skip: CLIENT_SKIP }, async t => {
  const folder = t.testdir()
  const far = join(folder, 'far')
  writeFileSync(far, Buffer.alloc(MIB))
  const pair = await pairTo(t, `unix:${await nbdServer(t, far)}`)
  const env = { ...process.env, PATH: PATH_WITH_SBIN }
  const { stdout } = await run('nbd-client', ['-l', '127.0.0.1', String(pair.daemons.diskPort)], { env })
  for (const name of ['disk', 'fixed', 'lost']) t.match(stdout, new RegExp(`^${name}$`, 'm'))
})

/** What nbdkit's log filter wrote down of connections, without times and numbers. */
function requestsIn(log: string): string[] {
  const lines = readFileSync(log, 'utf8').split('\n')
  return lines
    .filter(line => line.includes('connection='))
    .map(line => line.replace(/^\S+ \S+ /, '').replace(/(connection|id)=\d+ ?/g, ''))
}

t.test('nbdkit writes down the same requests as without the pair', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const logs: string[][] = []
  for (const through of [false, true]) {
    const log = join(folder, `log-${through}`)
    await using kit = await Nbdkit.start('--filter=log', 'memory', '8M', `logfile=${log}`)
    const pair = through ? await pairTo(t, `unix:${kit.socket}`) : undefined
    await nbdsh(
      pair ? pair.uri('') : kit.uri,
      'h.pwrite(b"a" * 65536, 0)',
      'h.pwrite(bytes(8192), 65536)',
      'h.pwrite(b"b" * 700, 100001, nbd.CMD_FLAG_FUA)',
      'h.zero(1048576, 1048576)',
      'h.zero(4096, 3145728, nbd.CMD_FLAG_NO_HOLE)',
      'h.zero(4096, 3149824, nbd.CMD_FLAG_FUA)',
      'h.trim(65536, 4194304)',
      'h.flush()',
      'h.cache(4096, 0)',
      'h.pread(5000, 3)',
      'h.pwrite(b"c" * 4096, 8 * 1048576 - 4096)',
      'h.flush()',
      'h.shutdown()',
    )
    logs.push(
      await until('the end of the log', () => {
        const lines = requestsIn(log)
        return lines.some(line => line.startsWith('Disconnect')) ? lines : undefined
      }),
    )
  }
  const [direct, through] = logs as [string[], string[]]
  t.ok(direct.length > 12, `${direct.length} lines`)
  t.same(through, direct)
})

t.test('answers that come late, and in another order than they were asked for', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const [near, back] = [join(folder, 'near'), join(folder, 'back')]
  writeFileSync(near, image(12 * MIB))
  await using slow = await Nbdkit.start('--filter=delay', 'memory', '12M', 'delay-write=30ms', 'delay-read=10ms')
  const pair = await pairTo(t, `unix:${slow.socket}`)
  await nbdcopy(near, pair.uri(''), '--flush')
  await nbdcopy(pair.uri(''), back)
  t.equal(digest(back), digest(near))

  // A read that is never answered does not hold up what is asked behind it.
  await using stuck = await Nbdkit.start('--filter=delay', 'memory', '1M', 'delay-read=3600')
  const other = await pairTo(t, `unix:${stuck.socket}`)
  const printed = await nbdsh(
    other.uri(''),
    'buffer = nbd.Buffer(4096)',
    'cookie = h.aio_pread(buffer, 0)',
    'for i in range(20): h.pwrite(bytes([i]) * 50000, i * 50000); h.flush()',
    'print(h.aio_command_completed(cookie), h.aio_in_flight())',
  )
  t.equal(printed.trim(), 'False 1')
  t.same([...pair.raw(), ...other.raw()], [])
})

t.test('errors of a server reach the client, at the request that they are about', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const switches = Object.fromEntries(['pwrite', 'pread', 'zero', 'trim'].map(what => [what, join(folder, what)]))
  const errors = { pwrite: 'ENOSPC', pread: 'EIO', zero: 'EPERM', trim: 'EIO' }
  const settings = Object.entries(errors).flatMap(([what, error]) => [
    ...[`error-${what}=${error}`, `error-${what}-rate=100%`, `error-${what}-file=${switches[what]}`],
  ])
  await using kit = await Nbdkit.start('--filter=error', 'memory', '4M', ...settings)
  const pair = await pairTo(t, `unix:${kit.socket}`)
  const printed = await nbdsh(
    pair.uri(''),
    'import errno, os',
    'def tried(what, name):',
    '    try: what(); print(name, "ok")',
    '    except nbd.Error as e: print(name, errno.errorcode[e.errnum])',
    `files = ${JSON.stringify(switches)}`,
    'asks = {"pwrite": lambda: h.pwrite(b"x" * 70000, 512), "pread": lambda: h.pread(70000, 512),',
    '        "zero": lambda: h.zero(65536, 0), "trim": lambda: h.trim(65536, 0)}',
    'for name, ask in asks.items():',
    '    tried(ask, name); open(files[name], "w").close(); tried(ask, name)',
    '    os.unlink(files[name]); tried(ask, name)',
    'h.pwrite(b"z" * 4096, 0); assert h.pread(4096, 0) == b"z" * 4096; h.flush(); print("goes on")',
  )
  const expected = Object.entries(errors).flatMap(([what, error]) => [`${what} ok`, `${what} ${error}`, `${what} ok`])
  t.same(printed.trim().split('\n'), [...expected, 'goes on'])
  t.same(pair.raw(), [])
})
