/**
 * An operator's hundred: invocations and mishaps of the real command, each with what it must print and its exit status
 * (docs/operations.md). Whatever goes wrong, every one of them ends, says what is wrong in one line and what to do in the
 * next, and prints neither a stack trace nor a character that a terminal obeys.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  chmodSync,
  closeSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { ModelQemu, serveModel } from '../qmp/model-qemu.ts'
import { connection, migration, page, pcap } from '../template/makers.ts'
import { type CommandOptions, type Outcome, PAGEFERRY, run } from './command.ts'
import { serveQmp } from './fake-qmp.ts'

/** How many run at once: two, so that a CI machine with two cores is used and not overrun. */
const AT_ONCE = 2

interface Expected extends Omit<CommandOptions, 'cwd'> {
  /** Exit status, or the signal that ended it. */
  readonly status: number | NodeJS.Signals
  /** What standard output must match; '' where it must be empty, nothing where the case is not about it. */
  readonly out?: RegExp | ''
  /** What `error:` must match, and `hint:` in the next line. */
  readonly err?: RegExp
  readonly hint?: RegExp
  /** Standard error as a whole, where it is not an error and its hint. */
  readonly raw?: RegExp | ''
  /** It only waits: beside the others. */
  readonly waits?: boolean
  /** Why this case cannot run here. */
  readonly skip?: string | false
  /** What must be true afterwards. @returns a complaint */
  readonly after?: (outcome: Outcome) => string | undefined
}

/** Nothing of such a name is left on the small disk, where other cases may be at work too. */
const leavesNothing = (names: RegExp) => (): string | undefined =>
  readdirSync(disk).some(name => names.test(name)) ? 'a part is left' : undefined

type Case = readonly [name: string, args: readonly string[], expected: Expected]

/** Proxies run here as units, which `pageferry status` finds. */
const hasUnits = readdirSync('/run').some(name => name.startsWith('pageferry-')) && 'a proxy runs on this host'
const isRoot = process.getuid?.() === 0
const NOBODY = 65534
/** A group that we may give files to, another than our own where we may. */
const GROUP = isRoot ? NOBODY : process.getgid!()

t.setTimeout(590_000) // the machine may be busy

const folder = mkdtempSync(join(tmpdir(), 'pageferry-hundred-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
const at = (name: string): string => join(folder, name)

/**
 * 60 pages, as QEMU of Proxmox VE sends them: with a section pbs-state behind the START of ram, whose bytes say here that
 * they end early, and then a page.
 */
function proxmoxStream(): Buffer {
  const pages = Array.from({ length: 60 }, (_, i) => page(i + 1))
  const footer = new StreamEmitter().footer(2).bytes()
  const state = new StreamEmitter().footer(3).sectionPart(2).page(0, page(1000), 'pc.ram').eos().footer(2).bytes()
  const length = Buffer.alloc(8)
  length.writeBigUInt64BE(BigInt(state.length))
  const section = new StreamEmitter().sectionStart(3, 'pbs-state').raw(length).raw(state).footer(3).bytes()
  const whole = migration(pages)
  const at = whole.indexOf(footer) + footer.length
  return Buffer.concat([whole.subarray(0, at), section, whole.subarray(at)])
}

// --- what lies about on this host

chmodSync(folder, 0o755) // for the cases that run as nobody
for (const name of ['keys', 'store', 'empty', 'planted', 'elsewhere', 'qmp', 'host', 'host2', 'disk', 'proxmox'])
  mkdirSync(at(name))
execFileSync(PAGEFERRY, ['keygen', 'x509', '--dir', at('pki'), '--name', 'ams', '--peer-name', 'fra'])
execFileSync(PAGEFERRY, ['keygen', 'psk', '--dir', at('psk'), '--name', 'ams', '--peer-name', 'fra'])
execFileSync('cp', ['-r', at('pki/ams'), at('receives')])
execFileSync('cp', ['-r', at('pki/ams'), at('mixed')])
for (const name of ['client-cert.pem', 'client-key.pem']) rmSync(at(`receives/${name}`))
execFileSync('cp', ['-a', at('pki'), at('renewed')])
for (const name of ['fifo-ca', 'turns']) execFileSync('cp', ['-r', at('pki/ams'), at(name)])
rmSync(at('fifo-ca/ca-cert.pem'))
spawnSync('mkfifo', [at('fifo-ca/ca-cert.pem')])
writeFileSync(at('mixed/client-key.pem'), readFileSync(at('pki/fra/client-key.pem')))
symlinkSync('../elsewhere', at('planted/ams'))
for (const name of ['fifo', 'unread']) spawnSync('mkfifo', [at(name)])
writeFileSync(at('a-file'), 'x')
writeFileSync(at('garbage'), Buffer.from('\0\x01\x02QEVM\xff'.repeat(100), 'latin1'))
writeFileSync(at('open-key'), `${'ab'.repeat(32)}\n`, { mode: 0o644 })
writeFileSync(at('short-key'), 'abcd\n', { mode: 0o600 })
writeFileSync(at('no-rate'), 'fast\n')
writeFileSync(at('rate'), '# a cap\n20Mbit\n')
writeFileSync(at('rates'), '# at work\nmon-fri 8:00-18:00 20Mbit # less\nnone\n')
const ESC = 'esc\x1b[31m\nerror: forged\u202e'
writeFileSync(at(ESC), 'x')

// streams, captures, sets
const fixtures = fileURLToPath(new URL('../../pcap-fixtures/', import.meta.url))
const streams = fileURLToPath(new URL('../vectors/qemu/streams/', import.meta.url))
const stream = zstdDecompressSync(readFileSync(join(streams, '7.2-no-footers.0-main.zst')))
writeFileSync(at('a.stream'), stream)
writeFileSync(at(`${ESC}.stream`), stream)
writeFileSync(at('half.stream'), stream.subarray(0, stream.length >> 1))
writeFileSync(at('empty.stream'), '')
writeFileSync(at('noise'), randomBytes(100_000))
writeFileSync(at('noise.stream'), migration(Array.from({ length: 60 }, () => randomBytes(4096))))
cpSync(join(streams, '7.2-uuid-ignore-shared.0-main.zst'), at('b.zst'))
for (const name of ['proxmox.stream', 'proxmox2.stream']) writeFileSync(at(name), proxmoxStream())
cpSync(join(fixtures, 'qemu-7.2-precopy.pcap'), at('c.pcap'))
cpSync(join(fixtures, 'qemu-10-multifd.pcapng'), at('multifd.pcapng'))
writeFileSync(at('disk.qcow2'), Buffer.from('QFI\xfb\0\0\0\x03'.padEnd(600, '\0'), 'latin1'))
writeFileSync(at('a.xz'), Buffer.from('\xfd7zXZ\0'.padEnd(600, '\0'), 'latin1'))
const packets = connection(stream)
writeFileSync(at('two.pcap'), pcap([...packets, ...connection(stream, { from: 50_001 })]))
writeFileSync(at('lossy.pcap'), pcap(packets.filter((_, i) => i !== 50)))
const build = ['template', 'build', at('a.stream'), at('b.zst'), '--store']
for (const store of ['full', 'damaged', 'odd', 'locked', 'twin', 'noted']) mkdirSync(at(store))
execFileSync(PAGEFERRY, [...build, at('full')], { stdio: 'ignore' })
const [SET = ''] = readdirSync(at('full'))
const DIGEST = SET.slice(0, 12)
for (const store of ['damaged', 'odd', 'twin', 'noted']) cpSync(at(`full/${SET}`), at(`${store}/${SET}`))
writeFileSync(at('noted/.uses.json'), '{"version":1,\x1b[31m')
const damaged = readFileSync(at(`full/${SET}`))
damaged[damaged.length - 100]! ^= 1
writeFileSync(at(`damaged/${SET}`), damaged)
spawnSync('mkfifo', [at(`odd/${'a'.repeat(64)}.pfset`)])
writeFileSync(at(`odd/${'b'.repeat(64)}.pfset`), '')
writeFileSync(at(`odd/\x1b[31m\n.pfset`), 'x')
chmodSync(at('locked'), 0o500)
mkdirSync(at('shown'), 0o755)
execFileSync(PAGEFERRY, ['encode', at('a.stream'), '-o', at('a.pfy'), '--store', at('full')], { stdio: 'ignore' })
symlinkSync('a.pfy', at('link.pfy'))
writeFileSync(at('cut.pfy'), readFileSync(at('a.pfy')).subarray(0, -40))
const bent = readFileSync(at('a.pfy'))
bent[bent.length >> 1]! ^= 0xff
writeFileSync(at('bent.pfy'), bent)

/** A disk of 64 KiB, all but full; '' where none can be mounted. */
const disk =
  isRoot && spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', at('disk')]).status === 0 ? at('disk') : ''
if (disk !== '') {
  t.teardown(() => spawnSync('umount', ['-l', disk]))
  writeFileSync(join(disk, 'filler'), Buffer.alloc(60 << 10))
}
const noDisk = disk === '' && 'a tmpfs is mounted: as root only'

const stopQmp = await serveQmp(at('qmp'))
t.teardown(stopQmp)
// QEMUs that go on from one command to the next: each is for one case
for (const name of ['plain', 'watched', 'fixed', 'ssh', 'idle']) {
  const [near, far] = [new ModelQemu(), new ModelQemu(name === 'idle' ? {} : { incoming: 'defer' })]
  near.destination = far
  t.teardown(await serveModel(near, at(`qmp/${name}-near`)))
  t.teardown(await serveModel(far, at(`qmp/${name}-far`)))
}
/** A port that is taken for as long as the test runs. */
const taken = net.createServer().listen(0, '127.0.0.1')
await new Promise<void>(done => taken.once('listening', done))
t.teardown(() => void taken.close())
const TAKEN = (taken.address() as net.AddressInfo).port

const site = (name: string, text: string): string => {
  writeFileSync(at(name), text)
  return at(name)
}
const RECEIVES = `tls-creds: ${at('receives')}
wan: { listen: ["tcp:127.0.0.1:0"] }
targets: { default: "unix:${at('nobody.sock')}" }
`
const SENDS = (peer: string, at: string): string => `plaintext: true
peers: { fra: { address: "127.0.0.1:1" } }
listeners: [{ at: "${at}", peer: ${peer} }]
`

/** A proxy that runs, and the socket of one that was killed. */
const proxy = spawn(
  PAGEFERRY,
  ['source', '--listen', 'tcp:127.0.0.1:0', '--peer', 'fra:1', '--plaintext', '--control', at('ctl')],
  { stdio: ['ignore', 'pipe', 'inherit'] },
)
t.teardown(() => proxy.kill('SIGKILL'))
await new Promise<void>(done => {
  proxy.stdout!.setEncoding('utf8').on('data', text => /listening/.test(text) && done())
})
for (const name of ['stale', 'left'])
  spawnSync(process.execPath, [
    '-e',
    `require('net').createServer().listen(${JSON.stringify(at(name))}, () => process.kill(process.pid, 'SIGKILL'))`,
  ])

const SOURCE = ['source', '--listen', 'tcp:127.0.0.1:0', '--peer', '127.0.0.1:1', '--plaintext']
const DESTINATION = ['destination', '--listen', 'tcp:127.0.0.1:0', '--target', `unix:${at('q.sock')}`, '--plaintext']
const DISKS = ['--disks', 'tcp:127.0.0.1:2']
const X509 = ['keygen', 'x509', '--name', 'ams', '--peer-name', 'fra']

// --- the table

const general: Case[] = [
  ['the version', ['--version'], { status: 0, out: /^\d+\.\d+\.\d+\n$/, raw: '' }],
  ['what this is made of', ['--version', '--json'], { status: 0, out: /^\{\n {2}"version": "\d[\s\S]*"lz4"/, raw: '' }],
  ['the version beside a command', ['status', '--version'], { status: 0, out: /^\d+\.\d+\.\d+\n$/, raw: '' }],
  ['help', ['--help'], { status: 0, out: /Commands:[\s\S]*pageferry source[\s\S]*doctor/, raw: '' }],
  ['help, the short way', ['-h'], { status: 0, out: /Commands:/, raw: '' }],
  ['no command', [], { status: 2, out: '', err: /a command is missing/, hint: /--help/ }],
  ['a command that is not', ['sorce'], { status: 2, out: '', err: /Did you mean source\?/ }],
  [
    'a group without its command',
    ['template'],
    { status: 2, err: /is missing behind `pageferry template`/, hint: /`pageferry template --help`/ },
  ],
  [
    'a command that is not, of a group',
    ['template', 'store'],
    { status: 2, err: /no command: `pageferry template store`/, hint: /`pageferry template --help`/ },
  ],
  ['one that nearly is', ['store', 'lst'], { status: 2, err: /Did you mean list\?/, hint: /`pageferry store --help`/ }],
  [
    'a command of a group without what it is for',
    ['template', 'build'],
    { status: 2, err: /missing behind `pageferry template build`/, hint: /`pageferry template build --help`/ },
  ],
  ['an option that a command needs', ['source'], { status: 2, err: /peer/, hint: /`pageferry source --help`/ }],
  ['an option that is not', ['--frobnicate'], { status: 2, out: '' }],
  ['an option that is not, of a command', [...SOURCE, '--frobnicate'], { status: 2, err: /frobnicate/ }],
  ['an option without its value', ['source', '--peer'], { status: 2, err: /peer/ }],
  [
    'the version to a full disk',
    ['--version'],
    { status: 1, stdout: openSync('/dev/full', 'w'), err: /standard output cannot be written: ENOSPC/ },
  ],
  ['help to a full disk', ['--help'], { status: 1, stdout: openSync('/dev/full', 'w'), err: /cannot be written/ }],
  ['help to a reader that has gone', ['--help'], { status: 0, stdout: 'closed', raw: '' }],
  ['an error that nobody can read', ['sorce'], { status: 2, stderr: openSync('/dev/full', 'w') }],
  ['an error to a reader that has gone', ['sorce'], { status: 2, stderr: 'closed' }],
  ['an error as JSON', ['sorce', '--json'], { status: 2, raw: /^\{"error":\{"code":"USAGE","what":"[^\n]+\}\n$/ }],
  [
    'a command that would write to the terminal',
    ['\x1b[31m\n\u202e'],
    { status: 2, err: /Unknown argument: \\u001b\[31m/ },
  ],
  ['a command with a name of Object', ['constructor'], { status: 2 }],
  ['an option with a name of Object', [...SOURCE, '--constructor', 'x'], { status: 2, err: /constructor/ }],
]
for (const command of [
  'source',
  'destination',
  'serve',
  'template',
  'store',
  'encode',
  'decode',
  'estimate',
  'keygen',
  'doctor',
  'migrate',
  'status',
  'rate',
  'cancel',
  'check',
  'dashboard',
])
  general.push([
    `help of ${command}`,
    [command, '--help'],
    { status: 0, out: new RegExp(`^pageferry ${command}`), raw: '' },
  ])

const proxies: Case[] = [
  ['source without a peer', ['source', '--plaintext'], { status: 2, err: /Missing required argument: peer/ }],
  ['a peer without a port', ['source', '--plaintext', '--peer', 'fra'], { status: 2, err: /fra/, hint: /HOST:PORT/ }],
  ['port 0 of a peer', ['source', '--plaintext', '--peer', 'fra:0'], { status: 2, hint: /HOST:PORT/ }],
  ['a port that does not exist', ['source', '--plaintext', '--peer', 'fra:99999'], { status: 2 }],
  ['neither keys nor plaintext', ['source', '--peer', 'fra:1'], { status: 2, err: /--tls-creds/, hint: /keygen/ }],
  ['keys and plaintext', [...SOURCE, '--tls-creds', at('pki/ams')], { status: 2, hint: /one of them/ }],
  ['no folder of keys', ['source', '--peer', 'fra:1', '--tls-creds', at('none')], { status: 1, err: /none/ }],
  ['a folder without keys', ['source', '--peer', 'fra:1', '--tls-creds', at('empty')], { status: 1, err: /empty/ }],
  ['a file for a folder of keys', ['source', '--peer', 'fra:1', '--tls-creds', at('a-file')], { status: 1 }],
  [
    'two listeners of a source at one Unix socket',
    ['source', '--plaintext', '--peer', 'fra:1', '--listen', 'unix:a.sock', '--listen', 'b=unix:a.sock'],
    { status: 2, err: /unix:a\.sock is listened at twice/ },
  ],
  [
    'two listeners of a destination at one port',
    [...DESTINATION, '--listen', `tcp:127.0.0.1:${TAKEN}`, '--listen', `tcp:127.0.0.1:${TAKEN}`],
    { status: 2, err: /is listened at twice/ },
  ],
  [
    'a FIFO for a certificate',
    ['source', '--peer', 'fra:1', '--tls-creds', at('fifo-ca')],
    { status: 2, err: /ca-cert\.pem: not a credential file/ },
  ],
  ["another's key", ['source', '--peer', 'fra:1', '--tls-creds', at('mixed')], { status: 2, err: /not the key of/ }],
  [
    'keys that may not be read',
    ['source', '--peer', 'fra:1', '--tls-creds', at('pki/ams')],
    { status: 1, err: /EACCES|ermission/, uid: NOBODY, skip: !isRoot && 'as root only' },
  ],
  [
    'a sender that has no client certificate',
    ['source', '--peer', 'fra:1', '--tls-creds', at('receives')],
    { status: 1, err: /client-cert\.pem/ },
  ],
  ['an address of another tool', [...SOURCE, '--listen', 'exec:cat'], { status: 2, hint: /tcp: and unix:/ }],
  ['an address as a URL', [...SOURCE, '--listen', 'tcp://127.0.0.1:4444'], { status: 2, hint: /slashes/ }],
  ['no IPv4 address', [...SOURCE, '--listen', 'tcp:1.2.3:4444'], { status: 2, err: /no IPv4 address/ }],
  ['an IPv6 address without brackets', [...SOURCE, '--listen', 'tcp:::1:4444'], { status: 2, hint: /brackets/ }],
  ['a range the wrong way round', [...SOURCE, '--listen', 'tcp:127.0.0.1:9-1'], { status: 2, err: /no range/ }],
  ['a range that is too wide', [...SOURCE, '--listen', 'tcp:127.0.0.1:1-65535'], { status: 2, err: /65535 ports/ }],
  ['an address that others reach', [...SOURCE, '--listen', 'tcp:0.0.0.0:0'], { status: 2, err: /other hosts/ }],
  [
    'a host that does not exist',
    [...SOURCE, '--listen', 'tcp:no-such-host.invalid:4444'],
    { status: 1, err: /cannot listen/ },
  ],
  [
    'a port that is taken',
    [...SOURCE, '--listen', `tcp:127.0.0.1:${TAKEN}`],
    { status: 1, err: /EADDRINUSE/, hint: /another program/ },
  ],
  ['a socket in no folder', [...SOURCE, '--listen', `unix:${at('none/s')}`], { status: 1, err: /ENOENT|EACCES/ }],
  ['a socket in place of a file', [...SOURCE, '--listen', `unix:${at('a-file')}`], { status: 1, err: /is no socket/ }],
  [
    'a socket with a path that is too long',
    [...SOURCE, '--listen', `unix:/${'x'.repeat(108)}`],
    { status: 2, hint: /107/ },
  ],
  [
    'a socket of systemd that is not passed',
    [...SOURCE, '--listen', 'fd:qemu'],
    { status: 2, err: /systemd passed no socket/ },
  ],
  ['nonsense from systemd', SOURCE, { status: 2, env: { LISTEN_FDS: 'x' }, err: /LISTEN_FDS/, activated: true }],
  ['no mode of a socket', [...SOURCE, '--socket-mode', '0999'], { status: 2, hint: /three octal digits/ }],
  ['no group of a socket', [...SOURCE, '--socket-group', '-'], { status: 2, hint: /libvirt-qemu/ }],
  ['a rate of 0', [...SOURCE, '--rate', '0Mbit'], { status: 2, hint: /nothing would ever arrive/ }],
  ['no rate', [...SOURCE, '--rate', 'fast'], { status: 2, hint: /200Mbit/ }],
  ['two rates', [...SOURCE, '--rate', '1Mbit', '--rate-file', at('rate')], { status: 2, err: /mutually exclusive/ }],
  ['no file of a rate', [...SOURCE, '--rate-file', at('none')], { status: 1, err: /--rate-file/ }],
  ['a FIFO of a rate', [...SOURCE, '--rate-file', at('fifo')], { status: 1, err: /is no file/ }],
  ['a device of a rate', [...SOURCE, '--rate-file', '/dev/zero'], { status: 1, err: /is no file/ }],
  ['a file without a rate', [...SOURCE, '--rate-file', at('no-rate')], { status: 2, err: /"fast"/ }],
  [
    'a schedule and a file of a rate',
    [...SOURCE, '--rate-schedule', 'mon 1Mbit', '--rate-file', at('rate')],
    { status: 2, err: /mutually exclusive/ },
  ],
  [
    'no schedule',
    [...SOURCE, '--rate-schedule', ''],
    { status: 2, err: /--rate-schedule: nothing in it/, hint: /mon-fri/ },
  ],
  [
    'days of no week',
    [...SOURCE, '--rate-schedule', 'mon-fry 1Mbit'],
    { status: 2, err: /"mon-fry"/, hint: /mon-fri/ },
  ],
  [
    'times without minutes',
    [...SOURCE, '--rate-schedule', 'mon-fri 8-18 200Mbit'],
    { status: 2, err: /--rate-schedule: "8-18"/, hint: /08:00-18:00/ },
  ],
  ['a time without a rate', [...SOURCE, '--rate-schedule', 'mon 8:00-9:00'], { status: 2, err: /has no rate/ }],
  [
    'no time',
    [...SOURCE, '--rate-schedule', 'mon 8:00-8:00 1Mbit'],
    { status: 2, err: /"8:00-8:00"/, hint: /08:00-18:00/ },
  ],
  [
    'no time zone',
    [...SOURCE, '--time-zone', 'Mars'],
    { status: 2, err: /--time-zone "Mars"/, hint: /Europe\/Amsterdam/ },
  ],
  [
    'a schedule that would write to the terminal',
    [...SOURCE, '--rate-schedule', '\x1b[31m 1Mbit', '--check'],
    { status: 2, raw: /u001b\[31m/ },
  ],
  [
    'source with a schedule, looked at',
    [...SOURCE, '--rate', '1Gbit', '--rate-schedule', 'mon-fri 8:00-18:00 200Mbit, sat none', '--check'],
    { status: 0, out: /^no mistakes\n$/, raw: '' },
  ],
  [
    'source with a schedule says what counts now',
    [...SOURCE, '--rate', '1Gbit', '--rate-schedule', 'mon-sun 0:00-24:00 200Mbit', '--time-zone', 'Asia/Kathmandu'],
    {
      status: 0,
      out: /to 127\.0\.0\.1:1 at most 200\.0 Mbit\/s/,
      raw: '',
      when: [[/listening/, command => command.kill('SIGTERM')]],
    },
  ],
  ['no connections', [...SOURCE, '--connections', '0'], { status: 2 }],
  ['too many connections', [...SOURCE, '--connections', '17'], { status: 2, hint: /1 to 16/ }],
  ['no effort', [...SOURCE, '--effort', '6'], { status: 2 }],
  ['no size', [...SOURCE, '--pool-memory', 'lots'], { status: 2, hint: /64MiB/ }],
  ['more memory than there is', [...SOURCE, '--pool-memory', '100000GiB'], { status: 2, err: /there are \d+ MiB/ }],
  [
    'more memory than a session can have',
    [...SOURCE, '--pool-memory', '4GiB'],
    { status: 2, err: /4GiB: (a session can have|there are) \d+ MiB/, hint: /less/ },
  ],
  [
    'more memory than there is, at the other side',
    ['destination', '--plaintext', '--listen', 'tcp:127.0.0.1:0', '--target', 'unix:q', '--pool-memory', '100000GiB'],
    { status: 2, err: /there are \d+ MiB/ },
  ],
  ['no duration', [...SOURCE, '--patience', 'never'], { status: 2, hint: /30s/ }],
  ['a duration without a unit', [...SOURCE, '--queue-target', '50'], { status: 2, hint: /ms/ }],
  ['learning without a store', [...SOURCE, '--learn', 'all'], { status: 2, err: /without --store/ }],
  ['no way to learn', [...SOURCE, '--learn', 'sometimes'], { status: 2, err: /sometimes/ }],
  [
    'a store key that everyone may read',
    [...SOURCE, '--store', at('store'), '--store-key', at('open-key')],
    { status: 2, hint: /chmod 600/ },
  ],
  [
    'a store key that is none',
    [...SOURCE, '--store', at('store'), '--store-key', at('short-key')],
    { status: 2, err: /not a key/ },
  ],
  ['no store key', [...SOURCE, '--store', at('store'), '--store-key', at('none')], { status: 1, err: /none/ }],
  [
    'source starts and stops',
    SOURCE,
    {
      status: 0,
      out: /listening for QEMU[\s\S]*stopped\n$/,
      raw: '',
      when: [[/listening/, command => command.kill('SIGTERM')]],
    },
  ],
  [
    "source with a socket for QEMU's group",
    [...SOURCE, '--listen', `unix:${at('group.sock')}`, '--socket-mode', '0660', '--socket-group', String(GROUP)],
    {
      status: 0,
      raw: '',
      when: [
        [
          /listening[^\n]*group\.sock/,
          command => {
            const { mode, gid } = lstatSync(at('group.sock'))
            command.kill((mode & 0o777) === 0o660 && gid === GROUP ? 'SIGTERM' : 'SIGKILL')
          },
        ],
      ],
    },
  ],
  [
    'source, interrupted once, with JSON',
    [...SOURCE, '--json'],
    {
      status: 0,
      out: /^(\{"level":\d+,"time":[^\n]+\}\n)+$/,
      raw: '',
      when: [[/listening/, command => command.kill('SIGINT')]],
    },
  ],
  [
    'source with a cap in a file, read again',
    [...SOURCE, '--rate-file', at('rate')],
    {
      status: 0,
      out: /settings read again counting=cap\n/,
      when: [
        [/listening/, command => command.kill('SIGHUP')],
        [/settings read/, command => command.kill('SIGTERM')],
      ],
    },
  ],
  [
    'source with a schedule in a file, looked at',
    [...SOURCE, '--rate-file', at('rates'), '--check'],
    { status: 0, out: /^no mistakes\n$/, raw: '' },
  ],
  [
    'destination without a listener',
    ['destination', '--target', 'tcp:127.0.0.1:1', '--plaintext'],
    { status: 2, err: /listen/ },
  ],
  [
    'destination without a target',
    ['destination', '--listen', 'tcp:127.0.0.1:0', '--plaintext'],
    { status: 2, err: /target/ },
  ],
  ['two disks of one name', [...DESTINATION, ...DISKS, ...DISKS], { status: 2, hint: /a second target default/ }],
  [
    'a disk where migrations are dialled',
    [...DESTINATION, '--target', 'web=tcp:127.0.0.1:1', '--disks', 'tcp:127.0.0.1:1'],
    { status: 2, err: /is a target of migrations, too/, hint: /a port of its own/ },
  ],
  ['a disk with slashes', [...SOURCE, '--disks', 'tcp://127.0.0.1:1'], { status: 2, hint: /drop the slashes/ }],
  [
    'a disk at the port for memory',
    [...SOURCE, '--listen', 'tcp:127.0.0.1:1', '--disks', 'tcp:127.0.0.1:1'],
    { status: 2, err: /is listened at twice/ },
  ],
  ['answers from nowhere', [...SOURCE, '--disk-answers', 'soon'], { status: 2, err: /"soon".*"far", "early"/s }],
  ['answers without a word', [...SOURCE, '--disk-answers'], { status: 2, err: /disk-answers/ }],
  ['zeroes that are none', [...DESTINATION, '--disk-zeroes', 'sparse'], { status: 2, err: /"as-said", "unmap"/ }],
  [
    'zeroes at the wrong side',
    [...SOURCE, '--disk-zeroes', 'unmap'],
    { status: 2, err: /disk-zeroes/, hint: /of `pageferry destination`/ },
  ],
  ['shares at the wrong side', [...DESTINATION, '--shares', 'disks=2'], { status: 2, hint: /of `pageferry source`/ }],
  [
    'early answers to no disk',
    [...SOURCE, '--disk-answers', 'early'],
    { status: 2, err: /--disk-answers early without --disks/, hint: /--disks/ },
  ],
  [
    'the same, looked at',
    [...SOURCE, '--disk-answers', 'early', '--check'],
    { status: 2, raw: /^--disk-answers early without --disks\n +hint: /m },
  ],
  [
    'zeroes of no disk',
    [...DESTINATION, '--disk-zeroes', 'unmap'],
    { status: 2, err: /--disk-zeroes unmap without --disks/, hint: /--disks/ },
  ],
  ['a disk for everyone', [...SOURCE, '--disks', 'tcp:0.0.0.0:0'], { status: 2, hint: /listen on 127/ }],
  [
    'source with disks says where',
    [...SOURCE, '--disks', `unix:${at('d')}`],
    {
      status: 0,
      out: /listening for QEMU.* disks=unix:\S+\/d\n/,
      when: [[/listening/, command => command.kill('SIGTERM')]],
    },
  ],
  ['two targets of one name', [...DESTINATION, '--target', 'tcp:127.0.0.1:1'], { status: 2, hint: /NAME=ADDRESS/ }],
  [
    'plaintext for everyone',
    ['destination', '--listen', 'tcp:0.0.0.0:0', '--target', 'tcp:127.0.0.1:1', '--plaintext'],
    { status: 2, hint: /--plaintext-anywhere/ },
  ],
  ['a WAN side on a socket', [...DESTINATION, '--listen', `unix:${at('w')}`], { status: 2, hint: /tcp:HOST:PORT/ }],
  ['a WAN side on a range', [...DESTINATION, '--listen', 'tcp:127.0.0.1:1-2'], { status: 2, hint: /one TCP port/ }],
  [
    'a WAN port that is taken',
    [...DESTINATION, '--listen', `tcp:127.0.0.1:${TAKEN}`],
    { status: 1, err: /EADDRINUSE/, hint: /another program/ },
  ],
  [
    'source, whose every option that both proxies have is wrong',
    [
      ...[...SOURCE, '--threads', '99', '--patience', '5', '--pool-memory', 'lots', '--metrics', 'x'],
      ...['--store', at('none'), '--check'],
    ],
    {
      status: 2,
      raw: /^--pool-memory [\s\S]+\n--threads 99\n[\s\S]+\n--patience "5"\n[\s\S]+\nthe store [\s\S]+\nerror: 5 mistakes /,
    },
  ],
  ['source, looked at before a start', [...SOURCE, '--check'], { status: 0, out: /^no mistakes\n$/, raw: '' }],
  ['the same as JSON', [...SOURCE, '--check', '--json'], { status: 0, out: /^\[\]\n$/, raw: '' }],
  [
    'source with one mistake after the other',
    [
      ...['source', '--peer', 'fra', '--tls-creds', at('mixed'), '--store', at('none'), '--effort', '6', '--rate', 'x'],
      ...['--listen', 'tcp:0.0.0.0:0', '--listen', `unix:${at('a-file')}`, '--listen', `unix:${at('none/s')}`],
      ...['--pool-memory', '100000GiB', '--metrics', '192.0.2.1:1', '--control', at('a-file'), '--check'],
    ],
    { status: 2, raw: /^(.+\n {2}hint: .+\n){11}error: 11 mistakes in the options\nhint: .+\n$/ },
  ],
  [
    'mistakes of a source as JSON',
    [...SOURCE, '--effort', '6', '--check', '--json'],
    { status: 2, out: /^\[\n {2}\{\n {4}"what": /, raw: /^\{"error":\{"code":"USAGE","what":"1 mistake in/ },
  ],
  [
    'source with mistakes in each option of its cap',
    [...SOURCE, '--rate', '100', '--rate-schedule', 'mon 8:00-9:00', '--time-zone', 'Mars', '--check'],
    {
      status: 2,
      raw: /^--rate "100"\n.*\n--rate-schedule: "mon 8:00-9:00" has no rate\n.*\n--time-zone "Mars"\n.*\nerror: 3 mistakes /,
    },
  ],
  [
    'source with a store that is not there, looked at',
    [...SOURCE, '--store', at('none'), '--check'],
    { status: 2, raw: /^the store \S*none does not exist\n {2}hint: make it.*\nerror: 1 mistake / },
  ],
  [
    'source with a store whose sets are of another user, looked at',
    [...SOURCE, '--store', at('full'), '--learn', 'off', '--check'],
    {
      status: 2,
      raw: /^the store \S*full: 1 of 1 sets may not be read by this user, such as [0-9a-f]{64}\.pfset\n {2}hint: .*chown.*\nerror: 1 /,
      uid: NOBODY,
      skip: !isRoot && 'as root only',
    },
  ],
  [
    'source with sockets at one path, looked at',
    [...SOURCE, '--listen', 'unix:a.sock', '--listen', 'b=unix:a.sock', '--check'],
    { status: 2, raw: /a\.sock is listened at twice/ },
  ],
  [
    'source of a unit, looked at by hand',
    ['source', '--listen', 'fd:qemu', ...SOURCE.slice(3), '--check'],
    { status: 0 },
  ],
  [
    'source that runs already, looked at',
    [...SOURCE, '--listen', `tcp:127.0.0.1:${TAKEN}`, '--control', at('ctl'), '--check'],
    { status: 0, out: /no mistakes/, raw: '' },
  ],
  [
    'destination, looked at before a start',
    [...DESTINATION, '--check'],
    { status: 0, out: /^no mistakes\n$/, raw: '' },
  ],
  [
    'destination with one mistake after the other',
    [
      ...['destination', '--plaintext', '--listen', 'tcp:0.0.0.0:0', '--listen', `unix:${at('w')}`],
      ...['--target', 'tcp:127.0.0.1:1', '--target', 'tcp:127.0.0.1:2', '--sessions-max', '1', '--store', at('none')],
      '--check',
    ],
    { status: 2, raw: /^(.+\n {2}hint: .+\n){5}error: 5 mistakes in the options\nhint: .+\n$/ },
  ],
  [
    'destination with keys that may not be read, looked at',
    [...DESTINATION.slice(0, -1), '--tls-creds', at('pki/ams'), '--check'],
    { status: 2, raw: /EACCES|ermission/, uid: NOBODY, skip: !isRoot && 'as root only' },
  ],
  ['a hook that is not there', [...SOURCE, '--hook', at('none')], { status: 2, err: /hook .*none/, hint: /chmod 755/ }],
  ['a hook that nobody may run', [...SOURCE, '--hook', at('a-file')], { status: 2, err: /EACCES/, hint: /chmod 755/ }],
  [
    'a hook that is a folder, looked at',
    [...SOURCE, '--hook', at('empty'), '--check'],
    { status: 2, raw: /: no file/ },
  ],
  ['no level of the log', [...SOURCE, '--log-level', 'loud'], { status: 2, err: /loud/ }],
  [
    'source with a hook, which says how it runs',
    [...SOURCE, '--hook', '/bin/true', '--rate', '8Mbit'],
    {
      status: 0,
      out: /^\S+ pageferry 0\S+, source: no TLS, no store, to 127\.0\.0\.1:1 at most 8\.0 Mbit\/s, Node \d[\s\S]*stopped\n$/,
      raw: '',
      when: [[/listening/, command => command.kill('SIGTERM')]],
    },
  ],
  [
    'source that says only what is to be looked at',
    [...SOURCE, '--log-level', 'warn', '--json'],
    {
      status: 0,
      out: /^(\{"level":[45]0[^\n]+\}\n)+$/,
      raw: '',
      when: [[/link\.dial/, command => command.kill('SIGTERM')]],
    },
  ],
  [
    'destination starts and stops',
    DESTINATION,
    {
      status: 0,
      out: /listening for source proxies[\s\S]*stopped\n$/,
      when: [[/listening for/, command => command.kill('SIGTERM')]],
    },
  ],
]

const serve: Case[] = [
  ['serve without a file', ['serve'], { status: 2, err: /config/ }],
  ['no such file', ['serve', '--config', at('none')], { status: 1, err: /none/ }],
  ['a folder', ['serve', '--config', at('empty')], { status: 1, err: /is no file/ }],
  ['a FIFO', ['serve', '--config', at('fifo'), '--check'], { status: 1, err: /is no file/ }],
  ['a device', ['serve', '--config', '/dev/zero'], { status: 1, err: /is no file/ }],
  [
    'an empty file',
    ['serve', '--config', site('e.yaml', ''), '--check'],
    { status: 2, raw: /e\.yaml:1: neither tls-creds[\s\S]*error: 2 mistakes/ },
  ],
  ['no YAML', ['serve', '--config', site('a.yaml', 'a: ['), '--check'], { status: 2, raw: /a\.yaml:\d+: / }],
  ['bytes', ['serve', '--config', at('garbage'), '--check'], { status: 2, raw: /garbage:1: / }],
  [
    'an alias that is not there',
    ['serve', '--config', site('b.yaml', 'plaintext: true\nstore: *none\n'), '--check'],
    { status: 2, raw: /b\.yaml:2: Unresolved alias[\s\S]*hint: [^\n]*quotes/ },
  ],
  [
    'a billion aliases',
    [
      'serve',
      '--config',
      site(
        'c.yaml',
        `a: &a [${'x,'.repeat(20)}]\n${[...'bcdefgh'].map((name, i) => `${name}: &${name} [${`*${'abcdefgh'[i]},`.repeat(20)}]`).join('\n')}\n`,
      ),
      '--check',
    ],
    { status: 2, raw: /Excessive alias count/ },
  ],
  [
    'a peer with a name of Object',
    ['serve', '--config', site('d.yaml', SENDS('toString', 'tcp:127.0.0.1:0')), '--check'],
    { status: 2, raw: /d\.yaml:3: no peer "toString"/ },
  ],
  [
    'shares and caps of all peers, looked at',
    [
      'serve',
      '--config',
      site(
        'shares.yaml',
        `plaintext: true
rate: 1Gbit
rate-schedule: mon-fri 08:00-18:00 200Mbit
shares: { memory: 3 }
peers: { a: { address: "h:1", share: 2 } }
listeners: [{ at: "tcp:127.0.0.1:0", peer: a }]
`,
      ),
      '--check',
    ],
    { status: 0, out: /shares\.yaml: no mistakes\n$/, raw: '' },
  ],
  [
    'settings spelled as the options are, and in the wrong place',
    [
      'serve',
      '--config',
      site(
        'spelled.yaml',
        `${RECEIVES}shares: disks=1,memory=3
disks: tcp:127.0.0.1:2
rate-schedule: { mon: 1Mbit }
share: 3
peers:
  a: { address: "h:1", share: 0, time-zone: Europe/Amsterdam }
`,
      ),
      '--check',
    ],
    {
      status: 2,
      raw: new RegExp(
        [
          ':4: shares: .*\\n +hint: write shares: \\{ disks: 1, memory: 3 \\}',
          ':5: disks: .*\\n +hint: write targets by name',
          ':6: rate-schedule: .*\\n +hint: write a text, or a list',
          ':7: unknown setting "share"\\n +hint: it is a setting of a peer',
          ':9: peers\\.a\\.share: .*\\n +hint: write of a peer: a whole number from 1 to 100',
          ':9: unknown setting "time-zone"\\n +hint: it stands at the top',
        ].join('[\\s\\S]*'),
      ),
    },
  ],
  [
    'what is of disks, and no disks',
    ['serve', '--config', site('no-disks.yaml', `${RECEIVES}disk-answers: early\ndisk-zeroes: unmap\n`), '--check'],
    { status: 2, raw: /:4: disk-answers: early, and no listener[\s\S]*:5: disk-zeroes: unmap without disks/ },
  ],
  [
    'shares that are none',
    [
      'serve',
      '--config',
      site(
        'no-shares.yaml',
        `plaintext: true
shares: { memory: 0, cpu: 1 }
peers: { a: { address: "h:1", share: 101 }, all: { address: "h:2" } }
listeners: [{ at: "tcp:127.0.0.1:0", peer: a }]
`,
      ),
      '--check',
    ],
    { status: 2, raw: /:2: shares\.memory: [\s\S]*:2: unknown setting "cpu"[\s\S]*:3: peers\.a\.share: / },
  ],
  [
    'a peer called all',
    [
      'serve',
      '--config',
      site(
        'all.yaml',
        'plaintext: true\npeers: { all: { address: "h:2" } }\nlisteners: [{ at: "tcp:127.0.0.1:0", peer: all }]\n',
      ),
      '--check',
    ],
    { status: 2, raw: /:2: a peer called all\n +hint: / },
  ],
  [
    'a schedule that is none',
    [
      'serve',
      '--config',
      site(
        'times.yaml',
        'plaintext: true\npeers:\n  a:\n    address: "h:1"\n    rate-schedule: [ "mon 1Mbit", "tue" ]\n',
      ),
      '--check',
    ],
    { status: 2, raw: /times\.yaml:5: rate-schedule: "tue" has no rate\n +hint: / },
  ],
  [
    'a peer __proto__',
    ['serve', '--config', site('f.yaml', 'plaintext: true\npeers: { __proto__: { address: "h:1" } }\n'), '--check'],
    { status: 2, raw: /f\.yaml:2: a key __proto__/ },
  ],
  [
    'a setting that would write to the terminal',
    ['serve', '--config', site('g.yaml', '"\\e[31m\\n": 1\nplaintext: true\n'), '--check'],
    { status: 2, raw: /unknown setting [^\n]*u001b/ },
  ],
  [
    'a peer at a port that does not exist',
    ['serve', '--config', site('h.yaml', SENDS('fra', 'tcp:127.0.0.1:0').replace(':1"', ':99999"')), '--check'],
    { status: 2, raw: /peers\.fra\.address/ },
  ],
  [
    'no mistakes',
    ['serve', '--config', site('i.yaml', RECEIVES), '--check'],
    { status: 0, out: /no mistakes/, raw: '' },
  ],
  ['no mistakes, as JSON', ['serve', '--config', at('i.yaml'), '--check', '--json'], { status: 0, out: /^\[\]\n$/ }],
  [
    'mistakes as JSON',
    ['serve', '--config', at('d.yaml'), '--check', '--json'],
    { status: 2, out: /^\[\n {2}\{\n {4}"line": \d+,/, raw: /"code":"USAGE"/ },
  ],
  [
    'keys that are not there',
    ['serve', '--config', site('j.yaml', RECEIVES.replace('receives', 'none')), '--check'],
    { status: 2, raw: /j\.yaml:1: .*none/ },
  ],
  [
    'a key of another certificate',
    [
      'serve',
      '--config',
      site('k.yaml', SENDS('fra', 'tcp:127.0.0.1:0').replace('plaintext: true', `tls-creds: ${at('mixed')}`)),
      '--check',
    ],
    { status: 2, raw: /k\.yaml:1: .*not the key of/ },
  ],
  [
    'a store that is not there',
    ['serve', '--config', site('l.yaml', `${RECEIVES}store: ${at('none')}\n`), '--check'],
    { status: 2, raw: /l\.yaml:4: .*none[\s\S]*install -d/ },
  ],
  [
    'a store that is a file',
    ['serve', '--config', site('m.yaml', `${RECEIVES}store: ${at('a-file')}\n`), '--check'],
    { status: 2, raw: /m\.yaml:4: .*no folder/ },
  ],
  [
    'a store that may only be read, where nothing writes to it',
    [
      'serve',
      '--config',
      site('p.yaml', `${SENDS('fra', 'tcp:127.0.0.1:0')}store: ${at('shown')}\nlearn: off\n`),
      '--check',
    ],
    { status: 0, out: /no mistakes/, raw: '', uid: NOBODY, skip: !isRoot && 'as root only' },
  ],
  [
    'a store that may only be read, where learning writes to it',
    ['serve', '--config', site('q.yaml', `${SENDS('fra', 'tcp:127.0.0.1:0')}store: ${at('shown')}\n`), '--check'],
    { status: 2, raw: /q\.yaml:4: EACCES/, uid: NOBODY, skip: !isRoot && 'as root only' },
  ],
  [
    'an address for a server name',
    [
      'serve',
      '--config',
      site('r.yaml', SENDS('fra', 'tcp:127.0.0.1:0').replace('1" }', '1", tls-server-name: "192.0.2.1" }')),
      '--check',
    ],
    { status: 2, raw: /r\.yaml:2: .*tls-server-name: server name "192\.0\.2\.1"/ },
  ],
  [
    'two listeners at one Unix socket',
    [
      'serve',
      '--config',
      site(
        's.yaml',
        `${SENDS('fra', 'unix:/run/q.sock')}  - { at: "unix:/run/q.sock", peer: fra, target: b }\n`
          .replace('[{', '\n  - {')
          .replace('}]', '}'),
      ),
      '--check',
    ],
    { status: 2, raw: /s\.yaml:5: unix:\/run\/q\.sock is listened at twice/ },
  ],
  [
    'a listener within the range of another',
    [
      'serve',
      '--config',
      site(
        't.yaml',
        `${SENDS('fra', 'tcp:127.0.0.1:4444-4446')}  - { at: "tcp:127.0.0.1:4445", peer: fra, target: b }\n`
          .replace('[{', '\n  - {')
          .replace('}]', '}'),
      ),
      '--check',
    ],
    { status: 2, raw: /t\.yaml:5: tcp:127\.0\.0\.1:4445 is listened at twice/ },
  ],
  [
    'the WAN at the port of a listener',
    [
      'serve',
      '--config',
      site(
        'u.yaml',
        `tls-creds: ${at('pki/ams')}
wan: { listen: ["tcp:0.0.0.0:9444"] }
targets: { default: "unix:${at('nobody.sock')}" }
${SENDS('fra', 'tcp:127.0.0.1:9444').replace('plaintext: true\n', '')}`,
      ),
      '--check',
    ],
    { status: 2, raw: /u\.yaml:2: tcp:0\.0\.0\.0:9444 is listened at twice/ },
  ],
  [
    'a socket in a folder that systemd makes',
    ['serve', '--config', site('v.yaml', SENDS('fra', 'unix:/run/pageferry-none/in.sock')), '--check'],
    { status: 0, out: /no mistakes/, raw: '' },
  ],
  [
    'a hook that is not there, in a file',
    [
      'serve',
      '--config',
      site('w.yaml', `${SENDS('fra', 'unix:/run/pageferry-none/in.sock')}hook: ${at('none')}\n`),
      '--check',
    ],
    { status: 2, raw: /w\.yaml:4: hook .*none/ },
  ],
  [
    'a level of the log that is none',
    ['serve', '--config', site('y.yaml', `${RECEIVES}log-level: loud\n`), '--check'],
    { status: 2, raw: /y\.yaml:4: log-level: / },
  ],
  [
    'answers and zeroes that are none',
    ['serve', '--config', site('da.yaml', `${RECEIVES}disk-answers: soon\ndisk-zeroes: sparse\n`), '--check'],
    { status: 2, raw: /da\.yaml:4: disk-answers: [\s\S]*da\.yaml:5: disk-zeroes: / },
  ],
  [
    'a store key that is not there',
    ['serve', '--config', site('n.yaml', `${RECEIVES}store: ${at('store')}\nstore-key: ${at('none')}\n`), '--check'],
    { status: 2, raw: /n\.yaml:5: / },
  ],
  [
    'a host that only receives needs no client certificate',
    ['serve', '--config', at('i.yaml')],
    { status: 0, out: /serving[\s\S]*stopped\n$/, raw: '', when: [[/ serving/, command => command.kill('SIGTERM')]] },
  ],
  [
    'a certificate that has become a FIFO ends nothing',
    ['serve', '--config', site('turns.yaml', RECEIVES.replace('receives', 'turns'))],
    {
      status: 0,
      out: /certificates and keys not read: the old ones stay[^\n]*not a credential file[\s\S]*stopped\n$/,
      raw: '',
      when: [
        [
          / serving/,
          command => {
            rmSync(at('turns/ca-cert.pem'))
            spawnSync('mkfifo', [at('turns/ca-cert.pem')])
            command.kill('SIGHUP')
          },
        ],
        [/the old ones stay/, command => command.kill('SIGTERM')],
      ],
    },
  ],
  [
    'a file that has become wrong ends nothing',
    ['serve', '--config', site('o.yaml', RECEIVES)],
    {
      status: 0,
      out: /mistake in the settings at="?[^ ]*o\.yaml:4"? what="Unresolved alias[\s\S]*settings not read: the old ones stay[\s\S]*stopped\n$/,
      raw: '',
      when: [
        [
          / serving/,
          command => {
            site('o.yaml', `${RECEIVES}store: *none\n`)
            command.kill('SIGHUP')
          },
        ],
        [/settings not read/, command => command.kill('SIGTERM')],
      ],
    },
  ],
]

/** What keygen prints, run by a shell in which `ssh` is this host and /etc a folder of ours. */
function copiesKeys(dir: string, host: string): (outcome: Outcome) => string | undefined {
  return ({ stdout }) => {
    const bin = join(dir, 'bin')
    mkdirSync(bin)
    writeFileSync(join(bin, 'ssh'), `#!/bin/sh\nexec sh -c "$(printf %s "$2" | sed "s:/etc/:${host}/etc/:g")"\n`, {
      mode: 0o755,
    })
    const lines = stdout.split('\n').filter(line => line.trim().startsWith('tar '))
    if (lines.length !== 2) return `${lines.length} commands`
    // twice, because a second copy must not nest
    for (const line of [lines[0]!, lines[0]!]) {
      const copied = spawnSync('sh', ['-c', line], { env: { PATH: `${bin}:${process.env.PATH}` }, encoding: 'utf8' })
      if (copied.status !== 0) return `${line}: ${copied.stderr}`
    }
    const tls = join(host, 'etc/pageferry/tls')
    const names = readdirSync(tls).sort().join(' ')
    if (names !== 'ca-cert.pem client-cert.pem client-key.pem server-cert.pem server-key.pem') return names
    if ((lstatSync(join(tls, 'client-key.pem')).mode & 0o777) !== 0o600) return 'a key that others may read'
    return (lstatSync(tls).mode & 0o777) === 0o700 ? undefined : 'a folder that others may read'
  }
}

const keygen: Case[] = [
  [
    'keygen for no days',
    ['keygen', 'x509', '--dir', at('k0'), '--days', 'abc'],
    { status: 2, err: /--days abc/, hint: /whole/ },
  ],
  ['keygen for ever', ['keygen', 'x509', '--dir', at('k0'), '--days', '36501'], { status: 2, hint: /36500/ }],
  [
    'keygen of what',
    ['keygen', '--dir', at('k1')],
    { status: 2, err: /an argument is missing behind `pageferry keygen`/, hint: /`pageferry keygen --help`/ },
  ],
  ['keygen of nothing', ['keygen'], { status: 2, err: /is missing behind `pageferry keygen`/ }],
  ['keygen of something else', ['keygen', 'ssh', '--dir', at('k1')], { status: 2, err: /psk/ }],
  ['keygen to where', ['keygen', 'psk'], { status: 2, err: /dir/ }],
  ['keys below /proc', ['keygen', 'psk', '--dir', '/proc/x'], { status: 1, err: /\/proc\/x: ENOENT/ }],
  ['keys deep below /proc', ['keygen', 'x509', '--dir', '/proc/x/y/z'], { status: 1, err: /ENOENT/ }],
  ['keys below a file', ['keygen', 'psk', '--dir', at('a-file/x')], { status: 1, err: /ENOTDIR/ }],
  [
    'keys into a folder that may not be written to',
    ['keygen', 'psk', '--dir', at('empty/x')],
    { status: 1, err: /EACCES/, uid: NOBODY, skip: !isRoot && 'as root only' },
  ],
  [
    'keys into a folder where a link was planted',
    [...X509, '--dir', at('planted')],
    {
      status: 2,
      err: /is a link/,
      after: () =>
        readdirSync(at('elsewhere')).length === 0 && !existsSync(at('planted/ca-key.pem'))
          ? undefined
          : 'keys have gone there',
    },
  ],
  ['keys that are there', [...X509, '--dir', at('pki')], { status: 2, err: /ca-key\.pem exists/ }],
  [
    'one name for two sites',
    ['keygen', 'psk', '--dir', at('k2'), '--name', 'a', '--peer-name', 'a'],
    { status: 2, err: /both sites/ },
  ],
  ['a name that is a path', ['keygen', 'psk', '--dir', at('k2'), '--name', '../a'], { status: 2, err: /name/ }],
  [
    'a name that would write to the terminal',
    ['keygen', 'psk', '--dir', at('k2'), '--name', 'a\x1b[31m'],
    { status: 2, err: /u001b/ },
  ],
  [
    'a username with a space',
    ['keygen', 'psk', '--dir', at('k2'), '--username', 'a b'],
    { status: 2, err: /username/ },
  ],
  ['certificates of no days', [...X509, '--dir', at('k2'), '--days', '0'], { status: 2, err: /--days/ }],
  ['certificates of how many days', [...X509, '--dir', at('k2'), '--days', 'x'], { status: 2, err: /--days/ }],
  [
    'certificates, and how they are copied',
    [...X509, '--dir', at('k3')],
    { status: 0, out: /--peer-name fra/, raw: '', after: copiesKeys(at('k3'), at('host')) },
  ],
  [
    'a key, with JSON',
    ['keygen', 'psk', '--dir', at('k4'), '--json'],
    { status: 0, out: /^\{"files":\[".*keys\.psk"/ },
  ],
  [
    'renew, of a folder that is none',
    ['keygen', 'renew', '--dir', at('none')],
    { status: 1, err: /ca-key\.pem: ENOENT/ },
  ],
  [
    'renew, of a site alone',
    ['keygen', 'renew', '--dir', at('pki/ams')],
    { status: 1, err: /ENOENT/, hint: /ca-key\.pem/ },
  ],
  ['renew, of a key', ['keygen', 'renew', '--dir', at('psk')], { status: 1, hint: /ca-key\.pem/ }],
  [
    'renew of no such site',
    ['keygen', 'renew', '--dir', at('pki'), '--name', 'x'],
    { status: 2, err: /no site "x"/, hint: /ams, fra/ },
  ],
  [
    'renew of the other site',
    ['keygen', 'renew', '--dir', at('pki'), '--peer-name', 'x'],
    { status: 2, err: /--peer-name/ },
  ],
  ['renew for no days', ['keygen', 'renew', '--dir', at('pki'), '--days', '0'], { status: 2, err: /--days/ }],
  [
    'renew',
    ['keygen', 'renew', '--dir', at('renewed'), '--days', '900'],
    {
      status: 0,
      out: /^Renewed until 20\d\d-\d\d-\d\d.*\n {2}.*ams\/ {2}is for/,
      raw: '',
      after: copiesKeys(at('renewed'), at('host2')),
    },
  ],
  [
    'renew, as JSON',
    ['keygen', 'renew', '--dir', at('pki'), '--json'],
    { status: 0, out: /^\{"files":\[".*ams\/ca-cert\.pem"/ },
  ],
  ['add of nobody', ['keygen', 'add', '--dir', at('pki')], { status: 2, err: /add without --name/ }],
  [
    'add of a site that is there',
    ['keygen', 'add', '--dir', at('pki'), '--name', 'fra'],
    { status: 2, err: /fra\/ca-cert\.pem exists/ },
  ],
  ['add of a path', ['keygen', 'add', '--dir', at('pki'), '--name', '../x'], { status: 2, err: /name "\.\.\/x"/ }],
  [
    'add',
    ['keygen', 'add', '--dir', at('pki'), '--name', 'lon', '192.0.2.9'],
    {
      status: 0,
      out: /^Made certificates for lon under the CA of ams, fra/,
      raw: '',
      after: () => (existsSync(at('pki/lon/client-key.pem')) ? undefined : 'no keys'),
    },
  ],
  [
    'a key to a full disk',
    ['keygen', 'psk', '--dir', at('k5')],
    { status: 1, stdout: openSync('/dev/full', 'w'), err: /cannot be written/ },
  ],
]

const qmp = (name: string): string[] => ['doctor', '--qmp', at(`qmp/${name}`)]
const doctor: Case[] = [
  ['doctor of whom', ['doctor'], { status: 2, err: /qmp/ }],
  ['no socket', ['doctor', '--qmp', at('none')], { status: 1, err: /ENOENT/, hint: /-qmp unix/ }],
  ['a file', ['doctor', '--qmp', at('a-file')], { status: 1, err: /ECONNREFUSED|ENOTSOCK/ }],
  [
    'a file whose name would write to the terminal',
    ['doctor', '--qmp', at(ESC)],
    { status: 1, err: /\\u001b\[31m\\nerror: forged\\u202e/ },
  ],
  [
    'a QEMU that is set well',
    qmp('sound'),
    { status: 0, out: /^source: QEMU 7\.2\.22\nnothing to change\n$/, raw: '' },
  ],
  [
    'a QEMU to mend, whose names would write to the terminal',
    qmp('matters'),
    { status: 11, out: /! source: tls-creds .*forged[\s\S]*max-bandwidth/, raw: '' },
  ],
  [
    'the same as JSON',
    [...qmp('matters'), '--json'],
    {
      status: 11,
      out: /^\{[\s\S]*"severity": "matters"/,
      raw: '',
      after: ({ stdout }) => (Array.isArray(JSON.parse(stdout).advice) ? undefined : 'no advice'),
    },
  ],
  ['two QEMUs', [...qmp('sound'), '--far-qmp', at('qmp/matters')], { status: 11, out: /destination: QEMU/, raw: '' }],
  [
    'keep what nobody sets',
    [...qmp('sound'), '--fix', '--keep', 'max-bandwith'],
    { status: 2, err: /"max-bandwith"/, hint: /max-bandwidth/ },
  ],
  [
    'keep what is not set anyway',
    [...qmp('sound'), '--keep', 'max-bandwidth'],
    { status: 2, err: /--keep without --fix/ },
  ],
  [
    'the other QEMU by its old name, and by its new one',
    [...qmp('sound'), '--qmp-destination', at('none'), '--far-qmp', at('none')],
    { status: 2, err: /mutually exclusive/ },
  ],
  [
    'the other QEMU by the name of before',
    [...qmp('sound'), '--qmp-destination', at('none')],
    { status: 1, err: /none/ },
  ],
  ['no rate of the link', [...qmp('sound'), '--rate', 'x'], { status: 2, hint: /200Mbit/ }],
  [
    'a QEMU that is mended',
    [...qmp('fixed-near'), '--fix'],
    { status: 0, out: /^set: source: max-bandwidth: 134217728 -> 0$/m, raw: '' },
  ],
  [
    'one that takes it, and stays as it was',
    [...qmp('matters'), '--fix'],
    { status: 11, out: /set: source: tls-creds: .*forged[\s\S]*! source: tls-creds/, raw: '' },
  ],
  [
    'two, of which one is far away',
    [...qmp('sound'), '--far-qmp', 'ssh:-oProxyCommand=touch:/q'],
    { status: 2, err: /ProxyCommand/, hint: /ssh:HOST:\/PATH/ },
  ],
  ['the human monitor', qmp('human'), { status: 1, err: /human monitor/, hint: /-qmp unix/ }],
  ['the human monitor, with a line', qmp('human-asked'), { status: 1, err: /human monitor/ }],
  ['null', qmp('null'), { status: 1, err: /not QMP/ }],
  ['a list', qmp('array'), { status: 1, err: /not QMP/ }],
  ['no version', qmp('no-version'), { status: 1, err: /without a version/ }],
  ['a version that is none', qmp('odd-version'), { status: 1, err: /without a version/ }],
  ['null for answers', qmp('null-answers'), { status: 1, err: /query-migrate-capabilities/ }],
  ['other answers', qmp('odd-answers'), { status: 1, err: /query-migrate-capabilities/ }],
  ['other parameters', qmp('odd-parameters'), { status: 1, err: /query-migrate-parameters/ }],
  ['a QEMU that refuses', qmp('refuses'), { status: 1, err: /no\\n\\u001b\[31m/ }],
  ['a QEMU that closes', qmp('closes'), { status: 1, err: /closed QMP/ }],
  ['silence', qmp('silent'), { status: 1, err: /did not greet for 10 s/, waits: true }],
  ['no answer', qmp('never-answers'), { status: 1, err: /no answer for 10 s/, waits: true }],
  ['events without end', qmp('events'), { status: 1, err: /without an answer/ }],
  ['a greeting, then events without end', qmp('events-greeted'), { status: 1, err: /without an answer/ }],
  ['a line without end', qmp('a-line'), { status: 1, err: /a line of more than/ }],
]

const moves = (name: string, ...more: string[]): string[] => [
  ...['migrate', '--qmp', at(`qmp/${name}`), '--to', 'tcp:127.0.0.1:4444', ...more],
]
const pairOf = (name: string, ...more: string[]): string[] =>
  moves(`${name}-near`, '--far-qmp', at(`qmp/${name}-far`), '--incoming', 'tcp:127.0.0.1:5555', ...more)
const migrates: Case[] = [
  ['migrate what', ['migrate'], { status: 2, err: /qmp/ }],
  ['migrate where to', ['migrate', '--qmp', at('qmp/sound')], { status: 2, err: /to/ }],
  [
    'an option that is given twice',
    ['migrate', '--qmp', at('none'), '--qmp', at('none'), '--to', 'tcp:fra:1'],
    { status: 2, err: /--qmp is given twice/ },
  ],
  [
    'keep what nobody sets, of a migration',
    ['migrate', '--qmp', at('none'), '--to', 'tcp:fra:1', '--keep', 'downtime-limt'],
    { status: 2, err: /--keep "downtime-limt"/, hint: /tls-creds/ },
  ],
  ['no address', ['migrate', '--qmp', at('none'), '--to', 'fra'], { status: 2, err: /fra/, hint: /tcp:HOST:PORT/ }],
  ['an address of libvirt', ['migrate', '--qmp', at('none'), '--to', 'tcp://fra:1'], { status: 2, hint: /slashes/ }],
  ['a program', ['migrate', '--qmp', at('none'), '--to', 'exec:rm'], { status: 2, hint: /only tcp: and unix:/ }],
  ['several ports', ['migrate', '--qmp', at('none'), '--to', 'tcp:fra:1-2'], { status: 2, hint: /one address/ }],
  ['no port', ['migrate', '--qmp', at('none'), '--to', 'tcp:fra:0'], { status: 2, hint: /one address/ }],
  ['no QEMU', moves('none'), { status: 1, err: /ENOENT/, hint: /-qmp unix/ }],
  ['who listens', moves('sound', '--incoming', 'tcp:127.0.0.1:1'), { status: 2, err: /without --far-qmp/ }],
  ['no percentage', moves('sound', '--auto-converge', '--throttle-max', '100'), { status: 2, hint: /1 to 99/ }],
  ['a throttle of what', moves('sound', '--throttle-max', '50'), { status: 2, hint: /--auto-converge/ }],
  ['no time', moves('sound', '--timeout', 'soon'), { status: 2, hint: /30s/ }],
  ['no pass', moves('sound', '--postcopy-after', '0'), { status: 2, hint: /from 1/ }],
  ['no bandwidth', moves('sound', '--max-bandwidth', '0'), { status: 2 }],
  ['no host', moves('sound', '--far-qmp', 'ssh:fra'), { status: 2, hint: /ssh:HOST:\/PATH/ }],
  ['an option of ssh', moves('sound', '--far-qmp', 'ssh:-x:/q'), { status: 2, err: /--far-qmp/ }],
  ['a shell over there', moves('sound', '--far-qmp', "ssh:fra:/q'$(id)"), { status: 2, hint: /letters, digits/ }],
  ['no control socket', moves('sound', '--control', at('none')), { status: 1, err: /ENOENT/ }],
  ['the human monitor of one that moves', moves('human'), { status: 1, err: /human monitor/ }],
  ['a QEMU that refuses to move', moves('refuses'), { status: 1, err: /no\\n\\u001b\[31m/ }],
  ['null for its state', moves('null-state'), { status: 1, err: /query-status/ }],
  ['events without end from one that moves', moves('events-greeted'), { status: 1, err: /without an answer/ }],
  [
    'a guest that moves',
    pairOf('plain'),
    {
      status: 0,
      out: /^completed after 3\.0 s: .*42 ms.*\n.*destination QEMU: running/,
      raw: /^set at[\s\S]*put back/,
    },
  ],
  [
    'the same, watched by a proxy that does not see it',
    pairOf('watched', '--control', at('ctl'), '--json'),
    { status: 0, out: /"event":"ended","result":"completed"/, raw: '' },
  ],
  [
    'a destination that runs already',
    pairOf('idle'),
    { status: 16, err: /does not wait for a guest: it is running/, hint: /-incoming defer/ },
  ],
  [
    'a destination that nobody tells where to listen',
    moves('fixed-near', '--far-qmp', at('qmp/fixed-far')),
    { status: 16, err: /waits to be told/, hint: /--incoming URI/ },
  ],
  [
    'no ssh',
    moves('ssh-near', '--far-qmp', `ssh:nowhere.invalid:${at('qmp/ssh-far')}`),
    { status: 1, err: /ssh:nowhere\.invalid.*(ssh says|no ssh)/, hint: /-qmp unix|openssh-client/, waits: true },
  ],
]

const asked = (...args: string[]): string[] => [...args, '--control', at('ctl')]
const control: Case[] = [
  [
    'status',
    asked('status'),
    { status: 0, out: /^pageferry 0[^\n]*\nto fra:1: no session(: [^\n]+)?\n {2}QEMU connects/, raw: '' },
  ],
  [
    'status as JSON',
    asked('status', '--json'),
    { status: 0, after: ({ stdout }) => (JSON.parse(stdout).sources[0].peer === 'fra:1' ? undefined : 'another peer') },
  ],
  [
    'status, watched',
    asked('status', '--watch', '--json'),
    {
      status: 'SIGINT',
      out: /^(\{"api":1,[^\n]+\}\n)+$/,
      raw: '',
      when: [[/\n.+\n/, command => command.kill('SIGINT')]],
    },
  ],
  [
    'status to a full disk',
    asked('status'),
    { status: 1, stdout: openSync('/dev/full', 'w'), err: /cannot be written/ },
  ],
  ['status, watched by a reader that has gone', asked('status', '--watch'), { status: 0, stdout: 'closed', raw: '' }],
  ['status of nobody', ['status'], { status: 1, err: /no control socket: \/run/, hint: /--control/, skip: hasUnits }],
  [
    'status of no socket',
    ['status', '--control', at('none')],
    { status: 1, err: /ENOENT/, hint: /is the proxy running/ },
  ],
  ['status of a file', ['status', '--control', at('a-file')], { status: 1, err: /ECONNREFUSED|ENOTSOCK/ }],
  ['status of a proxy that is gone', ['status', '--control', at('stale')], { status: 1, hint: /start it again/ }],
  [
    'status by somebody else',
    asked('status'),
    { status: 1, err: /EACCES/, hint: /as root/, uid: NOBODY, skip: !isRoot && 'as root only' },
  ],
  ['status of a QEMU', ['status', '--control', at('qmp/human')], { status: 1, err: /is no proxy/ }],
  ['status of silence', ['status', '--control', at('qmp/silent')], { status: 1, err: /no answer/, waits: true }],
  ['status at a path that is too long', ['status', '--control', `/${'x'.repeat(108)}`], { status: 2, hint: /107/ }],
  ['a path that would write to the terminal', ['status', '--control', at(ESC)], { status: 1, err: /\\u001b\[31m/ }],
  [
    'the page',
    asked('dashboard'),
    {
      status: 0,
      out: /^the page is at http:\/\/127\.0\.0\.1:\d+\/[\w-]{22}\/\n$/,
      raw: '',
      when: [[/page is at/, command => command.kill('SIGINT')]],
    },
  ],
  [
    'the page at a socket',
    asked('dashboard', '--listen', `unix:${at('page')}`),
    {
      status: 0,
      out: /^the page is at unix:.*\/page\n$/,
      raw: '',
      when: [
        [/page is at/, command => command.kill((lstatSync(at('page')).mode & 0o777) === 0o600 ? 'SIGTERM' : 'SIGKILL')],
      ],
      after: () => (existsSync(at('page')) ? 'it is left' : undefined),
    },
  ],
  ['the page for other hosts', asked('dashboard', '--listen', '0.0.0.0:0'), { status: 2, err: /other hosts/ }],
  ['the page at no address', asked('dashboard', '--listen', 'here'), { status: 2, out: '', err: /here/ }],
  ['the page at a range', asked('dashboard', '--listen', '127.0.0.1:1-9'), { status: 2, err: /--listen at/ }],
  [
    'the page at a port that is taken',
    asked('dashboard', '--listen', `127.0.0.1:${TAKEN}`),
    { status: 1, out: '', err: /EADDRINUSE/, hint: /another program/ },
  ],
  [
    'the page in place of a file',
    asked('dashboard', '--listen', `unix:${at('a-file')}`),
    { status: 1, out: '', err: /is no socket/ },
  ],
  [
    'the page of nobody',
    ['dashboard', '--control', at('none')],
    { status: 1, out: '', err: /ENOENT/, hint: /is the proxy running/ },
  ],
  ['the page of a proxy that is gone', ['dashboard', '--control', at('stale')], { status: 1, hint: /start it again/ }],
  ['the page of a QEMU', ['dashboard', '--control', at('qmp/human')], { status: 1, err: /is no proxy/ }],
  [
    'where the page is, to a full disk',
    asked('dashboard'),
    { status: 1, stdout: openSync('/dev/full', 'w'), err: /cannot be written/ },
  ],
  [
    'rate of a peer',
    asked('rate', 'fra:1', '80Mbit'),
    { status: 0, out: /^fra:1: cap 80\.0 Mbit\/s by command; it was [^\n]+\n$/, raw: '' },
  ],
  [
    'rate of a peer, as the settings say it',
    asked('rate', 'fra:1', 'schedule'),
    { status: 0, out: /^fra:1: no cap; it was [^\n]+\n$/, raw: '' },
  ],
  ['rate as JSON', asked('rate', 'fra:1', 'none', '--json'), { status: 0, out: /^\{"peer":"fra:1"[^\n]*\}\n$/ }],
  ['rate of all peers, of a proxy with one', asked('rate', 'all', '1Mbit'), { status: 2, err: /"all"/, hint: /fra:1/ }],
  ['rate of whom', asked('rate'), { status: 2, err: /missing behind `pageferry rate`/ }],
  ['rate of a peer that is not known', asked('rate', 'ams', '80Mbit'), { status: 2, err: /"ams"/, hint: /fra:1/ }],
  [
    'no rate of a peer',
    asked('rate', 'fra:1', 'fast'),
    { status: 2, err: /"fast"/, hint: /200Mbit.*none, or schedule/ },
  ],
  ['times by hand', asked('rate', 'fra:1', '8:00-9:00 1Mbit'), { status: 2, hint: /none, or schedule/ }],
  ['rate of nobody', ['rate', 'fra:1', '1Mbit', '--control', at('none')], { status: 1, err: /ENOENT/ }],
  ['cancel of what', asked('cancel'), { status: 2, err: /missing/ }],
  ['cancel of nothing that runs', asked('cancel', '0-1'), { status: 14, err: /no migration 0-1/, hint: /status/ }],
  ['cancel of what would write to the terminal', asked('cancel', '\x1b[31m'), { status: 14, err: /\\u001b\[31m/ }],
  [
    'a control socket that is served',
    [...SOURCE, '--control', at('ctl')],
    { status: 1, err: /--control: .*ctl is served by a process that runs/, hint: /choose another path/ },
  ],
  [
    'a control socket in no folder',
    [...SOURCE, '--control', at('none/c')],
    { status: 1, err: /--control: .*(ENOENT|EACCES)/ },
  ],
  ['a control socket in place of a file', [...SOURCE, '--control', at('a-file')], { status: 1, err: /is no socket/ }],
  [
    'a control socket with a path that is too long',
    [...SOURCE, '--control', `/${'x'.repeat(108)}`],
    { status: 2, hint: /107/ },
  ],
  [
    'a control socket of a proxy that was killed',
    [...SOURCE, '--control', at('left')],
    {
      status: 0,
      out: /listening[\s\S]*stopped\n$/,
      raw: '',
      when: [[/listening/, command => command.kill('SIGTERM')]],
      after: () => (existsSync(at('left')) ? 'it is left' : undefined),
    },
  ],
]

const CHECK = ['check', '--peer', `127.0.0.1:${TAKEN}`, '--tls-creds', at('pki/ams')]
const check: Case[] = [
  ['check of nobody', ['check'], { status: 1, err: /no control socket: \/run/, hint: /--control/, skip: hasUnits }],
  [
    'check by a proxy that runs',
    ['check', '--control', at('ctl')],
    { status: 15, out: /fra:1\n {2}WRONG {4}session/, raw: '' },
  ],
  [
    'check with keys and nobody to dial',
    ['check', '--control', at('none'), '--tls-creds', at('pki/ams')],
    { status: 2, err: /--tls-creds without --peer/, hint: /--config FILE/ },
  ],
  [
    'check with what the file says',
    ['check', '--config', at('i.yaml'), '--peer-name', 'fra'],
    { status: 2, err: /--peer-name with --config/ },
  ],
  ['check of a peer without a port', ['check', '--peer', 'fra', '--plaintext'], { status: 2, hint: /HOST:PORT/ }],
  ['check without keys', ['check', '--peer', 'fra:1'], { status: 2, err: /--tls-creds/, hint: /--plaintext/ }],
  ['check with keys and without', [...CHECK, '--plaintext'], { status: 2, err: /--plaintext and --tls-creds/ }],
  ['check of a file and of keys', [...CHECK, '--config', at('i.yaml')], { status: 2, err: /mutually exclusive/ }],
  [
    'check of a peer that is not there',
    ['check', '--peer', '127.0.0.1:1', '--plaintext'],
    { status: 15, out: /WRONG {4}peer .*ECONNREFUSED\n +mend: at 127\.0\.0\.1: systemctl start/, raw: '' },
  ],
  [
    'check of what never answers',
    CHECK,
    { status: 15, out: /WRONG {4}certificate .*no answer within 10 s/, raw: '', waits: true },
  ],
  [
    'check with keys that are not there',
    ['check', '--peer', 'fra:1', '--tls-creds', at('none')],
    { status: 15, out: /^this site\n {2}WRONG {4}keys .*\n +mend: `pageferry keygen/, raw: '' },
  ],
  [
    'check of a store that is not there, as JSON',
    ['check', '--peer', '127.0.0.1:1', '--plaintext', '--store', at('none'), '--json'],
    { status: 15, out: /"what": "store",\s+"state": "wrong"/, raw: '' },
  ],
  [
    'check of a site that only receives',
    ['check', '--config', at('i.yaml')],
    { status: 0, out: /guests only come here/ },
  ],
  [
    'check of no such peer',
    ['check', '--config', at('x.yaml'), '--peer', 'x'],
    { status: 2, err: /no peer "x"/, hint: /fra/ },
  ],
  [
    'check of a file with mistakes',
    ['check', '--config', at('d.yaml')],
    { status: 2, err: /d\.yaml:2: no listener leads to peer/, hint: /has all 2/ },
  ],
  ['check of no file', ['check', '--config', at('none')], { status: 1, err: /none/ }],
  ['check with a rate that is none', [...CHECK, '--throughput', '--rate', 'x'], { status: 2, hint: /200Mbit/ }],
]
site('x.yaml', SENDS('fra', 'tcp:127.0.0.1:0'))

const estimate = (...args: string[]): string[] => ['estimate', ...args]
const inputs: Case[] = [
  ['estimate of what', ['estimate'], { status: 2, err: /missing/ }],
  ['estimate of a stream', estimate(at('a.stream')), { status: 0, out: /960\.7 kB of QEMU, [\d.]+ kB on the WAN/ }],
  ['of one on standard input', estimate('-'), { status: 0, input: stream, out: /960\.7 kB of QEMU/ }],
  ['of one that zstd packed', estimate(at('b.zst')), { status: 0, out: /of QEMU/ }],
  ['of a capture', estimate(at('c.pcap')), { status: 0, out: /of QEMU/ }],
  ['of an empty file', estimate(at('empty.stream')), { status: 3, err: /empty/ }],
  ['of nothing on standard input', estimate('-'), { status: 3, input: '', err: /empty/ }],
  [
    'of users',
    estimate('/etc/passwd'),
    { status: 3, err: /neither a migration stream nor a capture/, hint: /pcap.*raw disks with --as disk/ },
  ],
  ['of noise', estimate(at('noise')), { status: 3, err: /neither/ }],
  [
    'of half a stream',
    estimate(at('half.stream')),
    { status: 0, out: /480\.3 kB of QEMU[\s\S]*the migration ends early, at byte [0-9,]+; if the capture .*mergecap/ },
  ],
  ['of no file', estimate(at('none')), { status: 1, err: /none: it does not exist \(ENOENT\)$/ }],
  ['of a folder', estimate(at('empty')), { status: 1, err: /empty: it is a folder$/ }],
  [
    'to a FIFO that nobody reads',
    ['encode', at('a.stream'), '-o', at('unread')],
    { status: 1, err: /nobody has read from .*unread for 10 s/, hint: /start what reads/, waits: true },
  ],
  [
    'of a FIFO that nobody writes',
    estimate(at('fifo')),
    { status: 1, err: /nobody has written to .*fifo for 10 s/, hint: /start what writes/ },
  ],
  ['of what encode made', estimate(at('a.pfy')), { status: 3, err: /pageferry encode/, hint: /decode it first/ }],
  ['of a template set', estimate(at(`full/${SET}`)), { status: 3, err: /a template set/, hint: /--store/ }],
  [
    'of a disk that is damaged, or without qemu-nbd',
    estimate(at('disk.qcow2')),
    { status: 1, err: /cannot read .*disk\.qcow2/, hint: /qemu-img check|qemu-utils/ },
  ],
  ['of what xz did not pack', estimate(at('a.xz')), { status: 3, err: /xz data are damaged/, hint: /copy it again/ }],
  [
    'of a channel that a stream does not have',
    estimate(at('a.stream'), '--channel', '2'),
    { status: 2, hint: /leave/ },
  ],
  ['of no channel', estimate(at('c.pcap'), '--channel', 'x'), { status: 2, err: /--channel x/ }],
  [
    'of a capture with several channels',
    estimate(at('multifd.pcapng')),
    { status: 0, raw: /this is channel \d of \d.*left out: --channel \d \(multifd/ },
  ],
  [
    'of two migrations in one capture',
    estimate(at('two.pcap')),
    { status: 2, err: /2 migrations/, hint: /--channel 2/ },
  ],
  [
    'encode of a capture that lacks packets',
    ['encode', at('lossy.pcap'), '-o', at('x.pfy')],
    {
      status: 3,
      err: /bytes are missing/,
      hint: /tcpdump .*-B/,
      after: () => (existsSync(at('x.pfy')) ? 'x.pfy' : undefined),
    },
  ],
  [
    'estimate of a capture that lacks packets',
    estimate(at('lossy.pcap')),
    { status: 0, raw: /bytes are missing at byte/ },
  ],
  [
    'of a file that may not be read',
    estimate('/etc/shadow'),
    { status: 1, err: /EACCES|ermission|not allowed/, uid: NOBODY, skip: !isRoot && 'as root only' },
  ],
  ['of a file whose name would write to the terminal', estimate(at(`${ESC}.stream`)), { status: 0, out: /of QEMU/ }],
  ['without the store', estimate(at('a.stream'), '--store', at('none')), { status: 1, err: /none.*does not exist/ }],
  ['with a store that is a file', estimate(at('a.stream'), '--store', at('a-file')), { status: 1, err: /a-file/ }],
  [
    'with a damaged set: without it',
    estimate(at('a.stream'), '--store', at('damaged')),
    { status: 0, out: /of QEMU/, raw: /damaged/i },
  ],
  [
    'with a set that is not there',
    estimate(at('a.stream'), '--store', at('full'), '--set', 'ffff'),
    { status: 4, err: /ffff/ },
  ],
  ['at no rate', estimate(at('a.stream'), '--rate', '0Mbit'), { status: 2 }],
  ['at an effort that is none', estimate(at('a.stream'), '--effort', 'hard'), { status: 2 }],
  [
    'as JSON',
    estimate(at('a.stream'), '--json'),
    { status: 0, after: ({ stdout }) => (typeof JSON.parse(stdout) === 'object' ? undefined : 'no JSON') },
  ],
  [
    'to a full disk',
    estimate(at('a.stream')),
    { status: 1, stdout: openSync('/dev/full', 'w'), err: /cannot be written|cannot write/ },
  ],
  ['encode over its input', ['encode', at('a.stream'), '-o', at('a.stream')], { status: 2, err: /what is to be read/ }],
  ['decode over it by a link', ['decode', at('a.pfy'), '-o', at('link.pfy')], { status: 2, err: /what is to be read/ }],
  ['encode to nowhere', ['encode', at('a.stream'), '-o', at('none/x')], { status: 1, err: /ENOENT/ }],
  [
    'encode to a disk that is full',
    ['encode', at('noise.stream'), '-o', join(disk, 'x.pfy')],
    {
      status: 1,
      err: /ENOSPC|no space/i,
      skip: noDisk,
      after: leavesNothing(/^x\.pfy/),
    },
  ],
  [
    'keys to a disk that is full',
    [...X509, '--dir', join(disk, 'k')],
    {
      status: 1,
      err: /ENOSPC/,
      skip: noDisk,
      after: leavesNothing(/^k/),
    },
  ],
  [
    'templates to a disk that is full',
    [...build, disk],
    {
      status: 1,
      err: /ENOSPC|no space/i,
      skip: noDisk,
      after: leavesNothing(/pfset$|^\.put/),
    },
  ],
  ['encode to a folder', ['encode', at('a.stream'), '-o', at('empty')], { status: 1 }],
  [
    'encode to a full disk',
    ['encode', at('a.stream'), '-o', '-'],
    { status: 1, stdout: openSync('/dev/full', 'w'), err: /ENOSPC/ },
  ],
  ['encode without an output', ['encode', at('a.stream')], { status: 2, err: /output/ }],
  [
    'encode of a disk',
    ['encode', at('disk.qcow2'), '-o', at('x.pfy')],
    { status: 3, err: /qcow2 disk image, which is no migration/, hint: /templates.*estimate/ },
  ],
  [
    'encode of users',
    ['encode', '/etc/passwd', '-o', at('x.pfy')],
    { status: 3, err: /neither/, after: () => (existsSync(at('x.pfy')) ? 'a file is left' : undefined) },
  ],
  [
    'decode',
    ['decode', at('a.pfy'), '-o', at('back.stream'), '--store', at('full')],
    { status: 0, after: () => (readFileSync(at('back.stream')).equals(stream) ? undefined : 'other bytes') },
  ],
  [
    'decode without the sets',
    ['decode', at('a.pfy'), '-o', at('y')],
    { status: 4, err: /template set/, hint: /--store/ },
  ],
  ['decode of a stream', ['decode', at('a.stream'), '-o', at('y')], { status: 6, err: /not an encoded file/ }],
  ['decode of an empty file', ['decode', at('empty.stream'), '-o', at('y')], { status: 5, err: /empty/ }],
  [
    'decode of a file that ends early',
    ['decode', at('cut.pfy'), '-o', at('y'), '--store', at('full')],
    { status: 5, after: () => (existsSync(at('y')) ? 'a file is left' : undefined) },
  ],
  [
    'decode of a bent file',
    ['decode', at('bent.pfy'), '-o', at('y'), '--store', at('full')],
    { status: 5, after: () => (existsSync(at('y')) ? 'a file is left' : undefined) },
  ],
  ['template of what', ['template'], { status: 2 }],
  [
    'template of standard input',
    ['template', 'build', '-', '--store', at('full')],
    { status: 2, input: stream, err: /once/ },
  ],
  [
    'template of a disk that is damaged, or without qemu-nbd',
    ['template', 'build', at('disk.qcow2'), '--store', at('twin')],
    { status: 1, err: /cannot read .*disk\.qcow2/, hint: /qemu-img check|qemu-utils/ },
  ],
  [
    'template of guests of Proxmox VE',
    ['template', 'build', at('proxmox.stream'), at('proxmox2.stream'), '--store', at('proxmox')],
    {
      status: 0,
      out: /2 VMs, 503\.1 kB, 120 pages, counted in one pass\nset {6}60 pages, /,
      raw: /^(?:(?:counting, pass 1|storing): .*\n)*$/,
    },
  ],
  ['template of one VM', ['template', 'build', at('a.stream'), '--store', at('twin')], { status: 2 }],
  [
    'template of an empty file',
    ['template', 'build', at('a.stream'), at('empty.stream'), '--store', at('twin')],
    { status: 3, err: /empty/ },
  ],
  ['template into no store', ['template', 'build', at('a.stream'), at('b.zst')], { status: 2, err: /store/ }],
  [
    'template into a store that may not be written to',
    [...build, at('locked')],
    { status: 1, err: /EACCES|ermission|not allowed/, uid: NOBODY, skip: !isRoot && 'as root only' },
  ],
  ['templates with a size that is none', [...build, at('twin'), '--max-size', 'lots'], { status: 2 }],
  ['inspect of a set', ['template', 'inspect', DIGEST, '--store', at('full')], { status: 0, out: /pages/ }],
  ['inspect of no set', ['template', 'inspect', 'ffff', '--store', at('full')], { status: 4, err: /ffff/ }],
  ['inspect of a stream', ['template', 'inspect', at('a.stream'), '--store', at('full')], { status: 4 }],
  ['verify', ['template', 'verify', '--store', at('full')], { status: 0, out: /sound/ }],
  [
    'verify of a damaged set',
    ['template', 'verify', '--store', at('damaged')],
    { status: 4, out: /damaged/i, raw: /./ },
  ],
  ['a store that is not there', ['store', 'list', '--store', at('none')], { status: 1, err: /does not exist/ }],
  ['an empty store', ['store', 'list', '--store', at('store')], { status: 0, out: /no template sets/ }],
  ['a store with what is no set', ['store', 'list', '--store', at('odd')], { status: 0, out: new RegExp(DIGEST) }],
  [
    'verify of a store with what is no set',
    ['store', 'verify', '--store', at('odd')],
    { status: 4, out: /sound/, raw: /./ },
  ],
  [
    'verify of an empty store',
    ['store', 'verify', '--store', at('store')],
    { status: 0, out: /^no template sets in this store\n$/, raw: '' },
  ],
  ['what sets brought', ['store', 'list', '--store', at('full')], { status: 0, out: /brought.*nothing/s }],
  [
    'what sets brought, where it is noted no more',
    ['store', 'list', '--store', at('noted')],
    { status: 0, out: new RegExp(DIGEST), raw: /warning: .*is damaged.*begun anew/ },
  ],
  [
    'prune by what cannot be read',
    ['store', 'prune', '--store', at('noted'), '--max-unused', '1d'],
    { status: 1, hint: /--by age/, after: () => (existsSync(at(`noted/${SET}`)) ? undefined : 'the set is gone') },
  ],
  ['prune by nothing that is known', ['store', 'prune', '--store', at('full'), '--by', 'luck'], { status: 2 }],
  ['prune with a time that is none', ['store', 'prune', '--store', at('full'), '--max-unused', 'long'], { status: 2 }],
  ['sign without a key', ['store', 'sign', DIGEST, '--store', at('full')], { status: 2, err: /key/ }],
  ['sign with what is no key', ['store', 'sign', DIGEST, '--store', at('full'), '--key', at('garbage')], { status: 2 }],
  [
    'sign with a key that is not there',
    ['store', 'sign', DIGEST, '--store', at('full'), '--key', at('none')],
    { status: 1, err: /does not exist/ },
  ],
  [
    'verify against what are no keys',
    ['store', 'verify', '--store', at('full'), '--signers', at('garbage')],
    { status: 2, err: /no public key/ },
  ],
  [
    'signers without a store',
    ['source', '--peer', '192.0.2.7:9444', '--plaintext', '--signers', at('garbage')],
    { status: 2, err: /--signers without --store/ },
  ],
  [
    'signers, and learning what nobody signs',
    [
      ...['source', '--peer', '192.0.2.7:9444', '--plaintext', '--store', at('full')],
      ...['--signers', at('garbage'), '--learn', 'shared'],
    ],
    { status: 2, hint: /signed by nobody/ },
  ],
  ['prune of how much', ['store', 'prune', '--store', at('full')], { status: 0, out: /removed 0 sets/ }],
  [
    'prune, to look',
    ['store', 'prune', '--store', at('full'), '--max-size', '1', '--dry-run'],
    { status: 0, after: () => (existsSync(at(`full/${SET}`)) ? undefined : 'the set is gone') },
  ],
]

// --- how they are run

/** Anything that a terminal would obey, but for line feeds. */
const OBEYED = /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u

/** @returns what is wrong with an outcome */
function complaints(outcome: Outcome, expected: Expected): string[] {
  const { status, stdout, stderr } = outcome
  const found: string[] = []
  const want = (isSo: boolean, what: string): void => {
    if (!isSo) found.push(what)
  }
  want(status === expected.status, `status ${status} in place of ${expected.status}`)
  if (expected.out !== undefined)
    want(expected.out === '' ? stdout === '' : expected.out.test(stdout), `stdout is not ${expected.out}`)
  const readable = expected.stderr === undefined
  if (expected.raw !== undefined)
    want(expected.raw === '' ? stderr === '' : expected.raw.test(stderr), `stderr is not ${expected.raw}`)
  else if (readable && expected.status !== 0) {
    const [, error, hint] = /(?:^|\n)error: (.+)\nhint: (.+)\n$/.exec(stderr) ?? []
    want(error !== undefined, 'stderr is not an error and a hint')
    if (expected.err) want(expected.err.test(error ?? ''), `the error is not ${expected.err}`)
    if (expected.hint) want(expected.hint.test(hint ?? ''), `the hint is not ${expected.hint}`)
  }
  want(!/^ +at .*:\d+/m.test(stderr), 'a stack trace')
  want(!OBEYED.test((stdout + stderr).replaceAll('\n', '')), 'a character that a terminal obeys')
  const later = found.length === 0 ? expected.after?.(outcome) : undefined
  if (later !== undefined) found.push(later)
  return found
}

/** Two halves of about the same length, which run beside each other: together they take minutes. */
const HALVES = {
  proxies: [...general, ...proxies, ...serve, ...check],
  tools: [...keygen, ...doctor, ...migrates, ...control, ...inputs],
}
/** HUNDRED='^renew' runs those whose names it matches. */
const ONLY = process.env.HUNDRED === undefined ? undefined : new RegExp(process.env.HUNDRED)

export function operatorsHundred(half: keyof typeof HALVES): void {
  t.test(`an operator's hundred: ${half}`, async t => {
    const cases = ONLY ? HALVES[half].filter(([name]) => ONLY.test(name)) : HALVES[half]
    let ran = 0
    const queue = cases.filter(([, , { waits }]) => !waits)
    const waiting = cases.filter(([, , { waits }]) => waits)
    const slowest: [number, string][] = []
    const runAll = async (queue: Case[]): Promise<void> => {
      for (let next = queue.shift(); next; next = queue.shift()) {
        const [name, args, expected] = next
        if (expected.skip) {
          t.comment(`skipped: ${name}: ${expected.skip}`)
          continue
        }
        ran++
        const outcome = await run(args, { ...expected, cwd: folder })
        slowest.push([outcome.seconds, name])
        const wrong = complaints(outcome, expected)
        const shown = { args, ...outcome, stdout: outcome.stdout.slice(0, 2000), stderr: outcome.stderr.slice(0, 2000) }
        if (wrong.length === 0) t.pass(name)
        else t.fail(`${name}: ${wrong.join('; ')}`, shown)
      }
    }
    await Promise.all([...waiting.map(one => runAll([one])), ...Array.from({ length: AT_ONCE }, () => runAll(queue))])
    slowest.sort((a, b) => b[0] - a[0])
    t.comment(
      `slowest: ${slowest
        .slice(0, 5)
        .map(([seconds, name]) => `${name} ${seconds} s`)
        .join(', ')}`,
    )
    t.ok(ran >= (ONLY ? 0 : 100), `${ran} cases`)
  })
  for (const [, , { stdout, stderr }] of HALVES[half])
    for (const fd of [stdout, stderr]) if (typeof fd === 'number') t.teardown(() => closeSync(fd))
}
