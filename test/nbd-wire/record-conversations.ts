/**
 * Records test/vectors/nbd/streams/: small real conversations of NBD clients and servers, through a relay.
 *
 *   node test/nbd-wire/record-conversations.ts [NAME...]
 *
 * Needs QEMU 7.2 and 10, qemu-utils, and of Debian 12: nbdkit, libnbd-bin, python3-libnbd, nbd-server, nbd-client.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { constants, zstdCompressSync } from 'node:zlib'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { type Recording, RecordingRelay } from '../../scripts/harness/qemu/recording-relay.ts'
import { type QemuVersion, qemu10, systemQemu } from '../../scripts/harness/qemu/versions.ts'
import { random } from '../../scripts/harness/random.ts'
import { until } from '../helpers/until.ts'

const folder = fileURLToPath(new URL('../vectors/nbd/streams/', import.meta.url))
const run = promisify(execFile)
/** Debian's Python, which has the module of nbdsh, whatever other Python is here. */
const env = { ...process.env, PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }
const MIB = 1 << 20
/** The flag of a listening socket in /proc/net/unix. */
const LISTENING = '00010000'

/** One connection of a recording. */
export interface ConversationNote {
  /** Bytes said at once, in the order in which the relay took them, with spaces between; those of the server negative. */
  readonly order: string
  readonly client: StreamNote
  readonly server: StreamNote
}

interface StreamNote {
  readonly file: string
  readonly lengthBytes: number
  readonly sha256: string
}

/** One entry of index.json. */
export interface RecordingNote {
  readonly name: string
  readonly why: string
  readonly client: string
  readonly server: string
  readonly connections: readonly ConversationNote[]
}

/** Where a plan's files and sockets are, and the relay's port. */
interface Place {
  readonly directory: string
  readonly socket: string
  readonly port: number
  /** Where the relay goes in place of the socket, for a plan of `tcp`. */
  readonly serverPort: number
}

interface Plan {
  readonly name: string
  readonly why: string
  readonly client: string
  readonly server: string
  /** The server cannot do with a Unix socket. */
  readonly tcp?: boolean
  /** Runs a server that listens on the place's socket while the client talks to the relay. */
  readonly talk: (place: Place) => Promise<void>
}

/** A sparse disk of 4 MiB and an odd end, with blocks of eight kinds here and there. */
function writeDisk(path: string, filled: boolean): void {
  const rand = random(83)
  const kinds = Array.from({ length: 8 }, () => Uint8Array.from({ length: 4096 }, () => 97 + rand(26)))
  const parts = [
    [65536, 16],
    [MIB, 3],
    [2 * MIB, 75],
    [4 * MIB - 8192, 2],
  ] as const
  const file = openSync(path, 'w')
  ftruncateSync(file, 4 * MIB + 512)
  for (const [from, blocks] of filled ? parts : []) {
    for (let i = 0; i < blocks; i++) writeSync(file, kinds[rand(8)]!, 0, 4096, from + 4096 * i)
  }
  closeSync(file)
}

/** Runs a server until the client is done. */
async function beside(
  target: { readonly socket: string; readonly port: number },
  command: string,
  args: readonly string[],
  client: () => Promise<unknown>,
): Promise<void> {
  const server: ChildProcess = spawn(command, args, { env, stdio: 'ignore' })
  try {
    // Not found out by connecting: nbd-server that does not fork serves one client.
    await until(`${command} to listen`, () => {
      if (server.exitCode !== null) throw new Error(`${command} ended with ${server.exitCode}`)
      if (target.port > 0) {
        const address = `0100007F:${target.port.toString(16).toUpperCase().padStart(4, '0')}`
        return readFileSync('/proc/net/tcp', 'latin1').includes(`: ${address} 00000000:0000 0A`)
      }
      const sockets = readFileSync('/proc/net/unix', 'latin1').split('\n')
      return sockets.some(line => line.split(' ')[3] === LISTENING && line.endsWith(` ${target.socket}`))
    })
    await client()
  } finally {
    if (server.exitCode === null) {
      server.kill()
      await once(server, 'exit')
    }
  }
}

const nbdkit = (place: Place, args: readonly string[], client: () => Promise<unknown>) =>
  beside({ ...place, port: 0 }, 'nbdkit', ['-f', '-U', place.socket, ...args], client)

const memory = ['memory', '4194816']
const qemuNbd = (place: Place, filled: boolean, args: readonly string[], client: () => Promise<unknown>) => {
  writeDisk(join(place.directory, 'disk'), filled)
  const all = ['-t', '-e', '9', '-f', 'raw', '-k', place.socket, '-x', 'disk', ...args, join(place.directory, 'disk')]
  return beside({ ...place, port: 0 }, 'qemu-nbd', all, client)
}

async function nbdServer(place: Place, client: () => Promise<unknown>): Promise<void> {
  const { directory, serverPort } = place
  writeDisk(join(directory, 'disk'), true)
  const config = `[generic]\nallowlist = true\nlistenaddr = 127.0.0.1\nport = ${serverPort}\n[disk]\nexportname = ${directory}/disk\ntrim = true\nflush = true\nfua = true\n`
  writeFileSync(join(directory, 'config'), config)
  await beside({ socket: '', port: place.serverPort }, 'nbd-server', ['-d', '-C', join(directory, 'config')], client)
}

/** What a client says to the end, whether it goes well or not. */
const attempt = async (command: string, args: readonly string[]) => {
  try {
    return await run(command, args, { env })
  } catch (error) {
    return error
  }
}

/** Runs lines of Python with `h`, a handle of libnbd that is not connected. */
async function nbdsh({ directory, port }: Place, lines: readonly string[]): Promise<void> {
  const script = join(directory, 'script.py')
  writeFileSync(script, `${[`port = ${port}`, ...lines].join('\n')}\n`)
  await run('nbdsh', ['-c', `exec(open('${script}').read(), globals())`], { env })
}

const CONNECT = "h.connect_tcp('127.0.0.1', str(port))"
/** Every command that libnbd has, several reads at once, and errors. */
const ALL_COMMANDS = [
  'h.set_strict_mode(0)',
  'def tried(f):',
  '    try: f()',
  '    except nbd.Error: pass',
  "tried(lambda: h.pwrite(b'0123456789abcdef' * 256, 4096))",
  "tried(lambda: h.pwrite(b'odd', 1234567, nbd.CMD_FLAG_FUA))",
  'tried(lambda: h.zero(65536, 131072))',
  'tried(lambda: h.zero(65536, 131072, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO))',
  'tried(lambda: h.trim(65536, 262144, nbd.CMD_FLAG_FUA))',
  'tried(lambda: h.cache(4096, 4096))',
  'tried(lambda: h.flush())',
  'buffers = [nbd.Buffer(5000 + i) for i in range(6)]',
  'cookies = [h.aio_pread(buffer, 3000 + 777 * i) for i, buffer in enumerate(buffers)]',
  'while cookies:',
  '    h.poll(-1)',
  '    cookies = [one for one in cookies if not h.aio_command_completed(one)]',
  'tried(lambda: h.pread(4096, 0, nbd.CMD_FLAG_DF))',
  'tried(lambda: h.pread(4096, 4194816 - 5))',
  "tried(lambda: h.pwrite(b'beyond', 4194816 - 5))",
  'tried(lambda: h.block_status(4194816, 0, lambda *a: 0))',
  'tried(lambda: h.block_status(65536, 4096, lambda *a: 0, nbd.CMD_FLAG_REQ_ONE))',
  'tried(lambda: h.pread(1 << 16, 1 << 20))',
]

const nbdshTo = (
  name: string,
  server: string,
  why: string,
  start: (place: Place, client: () => Promise<unknown>) => Promise<void>,
  before: readonly string[] = [],
): Plan => ({
  name,
  why,
  client: 'nbdsh (libnbd 1.14)',
  server,
  talk: place => start(place, () => nbdsh(place, [...before, CONNECT, ...ALL_COMMANDS, 'h.shutdown()'])),
})

/** A QEMU that never runs its guest, with a disk. */
async function halted(qemu: QemuVersion, directory: string, name: string, args: readonly string[]): Promise<QemuGuest> {
  const bios = new Uint8Array(65536)
  bios.set([0xfa, 0xf4, 0xeb, 0xfd], 65520) // at the reset vector: cli, hlt, again
  writeFileSync(join(directory, 'bios'), bios)
  const boot = { memoryMb: 8, bootSector: new Uint8Array(512), paused: true }
  return await QemuGuest.start({ qemu, name, ...boot, args: ['-bios', join(directory, 'bios'), ...args] })
}

interface MirrorOptions {
  readonly copyMode?: 'background' | 'write-blocking'
  /** Options of the source's NBD node. */
  readonly node?: Readonly<Record<string, unknown>>
  /** The other way: the destination's QEMU reads the source's export. */
  readonly pull?: boolean
}

function mirror(name: string, why: string, near: '7.2' | '10', far: '7.2' | '10', options: MirrorOptions = {}): Plan {
  const of = async (version: string) => {
    const { qemu, skip } = version === '10' ? await qemu10() : await systemQemu()
    if (!qemu) throw new Error(skip)
    return qemu
  }
  const talk = async ({ directory, socket, port }: Place) => {
    writeDisk(join(directory, 'near'), true)
    writeDisk(join(directory, 'far'), options.pull === true)
    const device = ['-device', 'virtio-blk-pci,drive=disk,id=vd0']
    const disk = (side: string) => `driver=raw,node-name=disk,file.driver=file,file.filename=${directory}/${side}`
    await using source = await halted(await of(near), directory, 'source', ['-blockdev', disk('near'), ...device])
    await using destination = await halted(await of(far), directory, 'destination', ['-blockdev', disk('far')])
    await destination.qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } })
    const exported = { type: 'nbd', id: 'export', 'node-name': 'disk', name: 'disk', writable: true }
    await destination.qmp.execute('block-export-add', exported)
    await source.qmp.execute('blockdev-add', {
      'node-name': 'remote',
      driver: 'raw',
      file: { driver: 'nbd', server: { type: 'inet', host: '127.0.0.1', port: String(port) }, export: 'disk' },
      ...options.node,
    })
    if (options.pull) {
      writeDisk(join(directory, 'copy'), false)
      const file = { driver: 'file', filename: join(directory, 'copy') }
      await source.qmp.execute('blockdev-add', { 'node-name': 'copy', driver: 'raw', file })
    }
    const [from, to] = options.pull ? ['remote', 'copy'] : ['disk', 'remote']
    await source.qmp.execute('blockdev-mirror', {
      'job-id': 'mirror',
      device: from,
      target: to,
      sync: 'full',
      'copy-mode': options.copyMode ?? 'background',
    })
    type Jobs = { ready?: boolean }[]
    const jobs = async () => (await source.qmp.execute('query-block-jobs')) as unknown as Jobs
    await until('the mirror to be ready', async () => {
      const all = await jobs()
      if (all.length === 0) throw new Error('the mirror failed')
      return all[0]!.ready
    })
    if (!options.pull) {
      for (const command of [
        'write -P 0x5a 1024 512',
        'write -P 0x33 2097152 65536',
        'write -z 65536 8192',
        'flush',
        'write -f -P 0x44 3000000 100',
      ]) {
        const said = await source.qmp.execute('human-monitor-command', {
          'command-line': `qemu-io -d /machine/peripheral/vd0/virtio-backend "${command}"`,
        })
        if (/rror|nvalid/.test(String(said))) throw new Error(String(said))
      }
    }
    await source.qmp.execute('block-job-cancel', { device: 'mirror' })
    await until('the mirror to end', async () => (await jobs()).length === 0)
    await source.qmp.execute('blockdev-del', { 'node-name': 'remote' })
    if (!options.pull) await run('cmp', [join(directory, 'near'), join(directory, 'far')])
  }
  const client = options.pull ? 'blockdev-mirror from it' : `blockdev-mirror, ${options.copyMode ?? 'background'}`
  return { name, why, client: `QEMU ${near}, ${client}`, server: `QEMU ${far}, nbd-server-start`, talk }
}

/** qemu-io on the NBD node of a QEMU 10: what a mirror does not send. */
const COMMANDS: readonly string[] = [
  'write -P 0x41 4096 4096',
  'write -f -P 0x42 8192 512',
  'write -z 65536 65536',
  'write -z -u 131072 65536',
  'discard 262144 65536',
  'flush',
  'read 0 12288',
  'read -v 8192 16',
  'write 1048576 4096', // the server's disk fails here
  'read 1048576 4096', // and its connection ends
]

const extendedCommands: Plan = {
  name: 'commands-10-to-10',
  why: 'extended headers: FUA, TRIM, ERROR; a context that is not base:allocation',
  client: 'QEMU 10, qemu-io on its NBD node',
  server: 'QEMU 10, nbd-server-start over blkdebug',
  talk: async ({ directory, socket, port }) => {
    const { qemu, skip } = await qemu10()
    if (!qemu) throw new Error(skip)
    writeDisk(join(directory, 'far'), true)
    const file = { driver: 'file', filename: join(directory, 'far'), discard: 'unmap' }
    const failing = ['read', 'write'].map(iotype => ({ event: 'none', iotype, sector: 2048, errno: 5 }))
    const disk = { driver: 'blkdebug', 'node-name': 'disk', image: file, 'inject-error': failing, discard: 'unmap' }
    await using near = await halted(qemu, directory, 'near', [])
    await using far = await halted(qemu, directory, 'far', ['-blockdev', JSON.stringify(disk)])
    await far.qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } })
    const exported = { type: 'nbd', id: 'export', 'node-name': 'disk', name: 'disk', writable: true }
    await far.qmp.execute('block-export-add', { ...exported, 'allocation-depth': true })
    await near.qmp.execute('blockdev-add', {
      'node-name': 'remote',
      driver: 'nbd',
      server: { type: 'inet', host: '127.0.0.1', port: String(port) },
      export: 'disk',
      discard: 'unmap',
      'x-dirty-bitmap': 'qemu:allocation-depth',
    })
    for (const command of COMMANDS) {
      await near.qmp.execute('human-monitor-command', { 'command-line': `qemu-io remote "${command}"` })
    }
    await near.qmp.execute('blockdev-del', { 'node-name': 'remote' })
  },
}

const uri = ({ port }: Place, name = 'disk') => `nbd://127.0.0.1:${port}/${name}`

const plans: readonly Plan[] = [
  mirror('mirror-7.2-to-7.2', 'structured replies agreed, simple ones given', '7.2', '7.2'),
  mirror('mirror-7.2-to-10', 'an older client', '7.2', '10'),
  mirror('mirror-10-to-7.2', 'EXTENDED_HEADERS refused, then STRUCTURED_REPLY', '10', '7.2'),
  mirror('mirror-10-to-10', 'extended headers', '10', '10'),
  mirror('mirror-10-thin', 'zeroes without NO_HOLE', '10', '10', {
    node: { discard: 'unmap', 'detect-zeroes': 'unmap' },
  }),
  mirror('mirror-10-write-blocking', "the guest's own writes as they are", '10', '10', { copyMode: 'write-blocking' }),
  mirror('mirror-7.2-write-blocking', 'the same of 7.2', '7.2', '7.2', { copyMode: 'write-blocking' }),
  extendedCommands,
  mirror('pull-10-from-10', 'READ and BLOCK_STATUS with extended headers', '10', '10', { pull: true }),
  mirror('pull-10-from-7.2', 'the same with structured replies', '10', '7.2', { pull: true }),
  {
    name: 'convert-from-qemu-nbd',
    why: 'READ and BLOCK_STATUS of another client',
    client: 'qemu-img 7.2 convert',
    server: 'qemu-nbd 7.2',
    talk: place =>
      qemuNbd(place, true, ['-r'], () =>
        run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri(place), join(place.directory, 'out')]),
      ),
  },
  {
    name: 'convert-to-nbdkit',
    why: 'another server; errors of its error filter, which end the copy',
    client: 'qemu-img 7.2 convert -n',
    server: 'nbdkit 1.32 memory, error',
    talk: place => {
      writeDisk(join(place.directory, 'disk'), true)
      const from = join(place.directory, 'disk')
      return nbdkit(place, ['--filter=error', ...memory, 'error-pwrite=ENOSPC', 'error-pwrite-rate=50%'], () =>
        attempt('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', from, uri(place)]),
      )
    },
  },
  {
    name: 'list-qemu-nbd',
    why: 'LIST, INFO and LIST_META_CONTEXT for each export, then ABORT',
    client: 'qemu-nbd 7.2 --list',
    server: 'qemu-nbd 7.2 with a description',
    talk: place =>
      qemuNbd(place, true, ['-D', 'a disk'], () =>
        run('qemu-nbd', ['-L', '-b', '127.0.0.1', '-p', String(place.port)]),
      ),
  },
  {
    name: 'nbdinfo-list',
    why: 'the same of libnbd',
    client: 'nbdinfo 1.14 --list',
    server: 'qemu-nbd 7.2',
    talk: place => qemuNbd(place, true, [], () => run('nbdinfo', ['--list', `nbd://127.0.0.1:${place.port}`], { env })),
  },
  {
    name: 'nbdcopy-from-nbdkit',
    why: 'several connections; READ in parallel',
    client: 'nbdcopy 1.14',
    server: 'nbdkit 1.32 file',
    talk: place => {
      writeDisk(join(place.directory, 'disk'), true)
      return nbdkit(place, ['file', join(place.directory, 'disk')], () =>
        run('nbdcopy', ['--connections=2', uri(place), join(place.directory, 'out')], { env }),
      )
    },
  },
  {
    name: 'nbdcopy-to-qemu-nbd',
    why: 'writes of a client that is not QEMU, zeroes with NO_HOLE or not',
    client: 'nbdcopy 1.14 --flush',
    server: 'qemu-nbd 7.2',
    talk: place =>
      qemuNbd(place, false, [], async () => {
        writeDisk(join(place.directory, 'in'), true)
        await run('nbdcopy', ['--flush', '--connections=1', join(place.directory, 'in'), uri(place)], { env })
      }),
  },
  nbdshTo(
    'nbdsh-to-nbdkit',
    'nbdkit 1.32 memory',
    'every command, with chunks',
    (place, client) => nbdkit(place, memory, client),
    ["h.add_meta_context('base:allocation')"],
  ),
  nbdshTo(
    'nbdsh-to-nbdkit-simple',
    'nbdkit 1.32 memory, error; --no-sr',
    'simple replies with data, out of order, with errors',
    (place, client) =>
      nbdkit(
        place,
        [
          '--no-sr',
          '--filter=delay',
          '--filter=error',
          ...memory,
          'delay-read=10ms',
          'error-pread-rate=0%',
          'error-zero=ENOSPC',
        ],
        client,
      ),
  ),
  nbdshTo(
    'nbdsh-to-qemu-nbd',
    'qemu-nbd 7.2',
    'every command, two contexts',
    (place, client) => qemuNbd(place, true, ['-A'], client),
    [
      "h.set_export_name('disk')",
      "h.add_meta_context('base:allocation')",
      "h.add_meta_context('qemu:allocation-depth')",
    ],
  ),
  {
    ...nbdshTo('nbdsh-to-nbd-server', 'nbd-server 3.24', 'the first of all servers', nbdServer, [
      "h.set_export_name('disk')",
    ]),
    tcp: true,
  },
  {
    name: 'nbdsh-options',
    why: 'options one by one: INFO of what is not there, contexts, ABORT',
    client: 'nbdsh (libnbd 1.14), opt mode',
    server: 'qemu-nbd 7.2',
    talk: place =>
      qemuNbd(place, true, [], () =>
        nbdsh(place, [
          'h.set_opt_mode(True)',
          'h.set_request_structured_replies(True)',
          CONNECT,
          "h.set_export_name('none')",
          'try: h.opt_info()',
          'except nbd.Error: pass',
          'try: h.opt_go()',
          'except nbd.Error: pass',
          'h.opt_list(lambda *a: 0)',
          "h.set_export_name('disk')",
          'h.opt_info()',
          'h.opt_list_meta_context(lambda *a: 0)',
          'h.opt_abort()',
        ]),
      ),
  },
  {
    name: 'nbd-client-list',
    why: 'LIST and ABORT of the first of all clients',
    client: 'nbd-client 3.24 --list',
    server: 'nbd-server 3.24',
    tcp: true,
    talk: place => nbdServer(place, () => attempt('nbd-client', ['-l', '127.0.0.1', String(place.port)])),
  },
  {
    name: 'export-name',
    why: 'newstyle that is not fixed: EXPORT_NAME and 124 zeroes',
    client: 'nbdsh (libnbd 1.14)',
    server: 'nbdkit 1.32 --mask-handshake=0',
    talk: place =>
      nbdkit(place, ['--mask-handshake=0', ...memory], () =>
        nbdsh(place, [
          "h.set_export_name('name')",
          CONNECT,
          "h.pwrite(b'x' * 512, 0)",
          'h.pread(1024, 0)',
          'h.shutdown()',
        ]),
      ),
  },
  {
    name: 'export-name-no-zeroes',
    why: 'EXPORT_NAME without zeroes: a server that knows GO not',
    client: 'nbdsh (libnbd 1.14)',
    server: 'nbdkit 1.32 --mask-handshake=2',
    talk: place =>
      nbdkit(place, ['--mask-handshake=2', ...memory], () =>
        nbdsh(place, [CONNECT, 'h.pread(1024, 0)', 'h.flush()', 'h.shutdown()']),
      ),
  },
  {
    name: 'oldstyle',
    why: 'a handshake that is not read',
    client: 'nbdsh (libnbd 1.14)',
    server: 'nbdkit 1.32 --oldstyle',
    talk: place => nbdkit(place, ['-o', ...memory], () => nbdsh(place, [CONNECT, 'h.pread(1024, 0)', 'h.shutdown()'])),
  },
  {
    name: 'tls',
    why: 'STARTTLS agreed: nothing behind it is read',
    client: 'nbdsh (libnbd 1.14), pre-shared key',
    server: 'nbdkit 1.32 --tls=require',
    talk: place => {
      const keys = join(place.directory, 'keys.psk')
      writeFileSync(keys, `nbd:${'5a'.repeat(32)}\n`)
      return nbdkit(place, ['--tls=require', `--tls-psk=${keys}`, ...memory], () =>
        nbdsh(place, [
          'h.set_tls(nbd.TLS_REQUIRE)',
          `h.set_tls_psk_file('${keys}')`,
          "h.set_tls_username('nbd')",
          CONNECT,
          'h.pread(1024, 0)',
          'h.shutdown()',
        ]),
      )
    },
  },
  {
    name: 'tls-refused',
    why: 'STARTTLS refused, and on without; a server that wants TLS of one that has none',
    client: 'nbdsh (libnbd 1.14)',
    server: 'nbdkit 1.32 --tls=off, then --tls=require',
    talk: async place => {
      const keys = join(place.directory, 'keys.psk')
      writeFileSync(keys, `nbd:${'5a'.repeat(32)}\n`)
      await nbdkit(place, memory, () =>
        nbdsh(place, [
          'h.set_tls(nbd.TLS_ALLOW)',
          `h.set_tls_psk_file('${keys}')`,
          "h.set_tls_username('nbd')",
          CONNECT,
          'h.pread(1024, 0)',
          'h.shutdown()',
        ]),
      )
      rmSync(place.socket, { force: true })
      await nbdkit(place, ['--tls=require', `--tls-psk=${keys}`, ...memory], () =>
        attempt('nbdinfo', [`nbd://127.0.0.1:${place.port}/`]),
      )
    },
  },
]

function keep(file: string, bytes: Buffer): StreamNote {
  const params = { [constants.ZSTD_c_compressionLevel]: 19, [constants.ZSTD_c_checksumFlag]: 1 }
  writeFileSync(folder + file, zstdCompressSync(bytes, { params }))
  return { file, lengthBytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') }
}

function note(name: string, i: number, { forward, back, order }: Recording): ConversationNote {
  const joined: number[] = []
  for (const length of order) {
    if (joined.length > 0 && joined.at(-1)! > 0 === length > 0) joined[joined.length - 1]! += length
    else joined.push(length)
  }
  return {
    order: joined.join(' '),
    client: keep(`${name}.${i}-client.zst`, Buffer.concat(forward)),
    server: keep(`${name}.${i}-server.zst`, Buffer.concat(back)),
  }
}

async function record(plan: Plan): Promise<RecordingNote> {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'))
  const socket = join(directory, 'socket')
  try {
    const serverPort = plan.tcp ? await claimPort() : 0
    const target = plan.tcp ? { host: '127.0.0.1', port: serverPort } : { path: socket }
    await using relay = await RecordingRelay.start({ host: '127.0.0.1', port: 0 }, target)
    await plan.talk({ directory, socket, port: relay.port, serverPort })
    await relay.close()
    const { name, why, client, server } = plan
    return { name, why, client, server, connections: relay.recordings.map((one, i) => note(name, i, one)) }
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

if (import.meta.main) {
  const wanted = new Set(process.argv.slice(2))
  mkdirSync(folder, { recursive: true })
  const notes: RecordingNote[] = []
  for (const plan of plans) {
    if (wanted.size > 0 && !wanted.has(plan.name)) continue
    try {
      notes.push(await record(plan))
      const sizes = notes.at(-1)!.connections.map(one => `${one.client.lengthBytes}+${one.server.lengthBytes}`)
      console.log(plan.name, sizes.join(', '))
    } catch (error) {
      console.error(`${plan.name}: ${(error as Error).stack}`)
      process.exitCode = 1
    }
  }
  if (!process.exitCode) {
    const before = wanted.size === 0 ? [] : (JSON.parse(readFileSync(`${folder}index.json`, 'utf8')) as RecordingNote[])
    const all = [...before.filter(one => !wanted.has(one.name)), ...notes]
    const place = (one: RecordingNote) => plans.findIndex(plan => plan.name === one.name)
    all.sort((a, b) => place(a) - place(b))
    writeFileSync(`${folder}index.json`, `${JSON.stringify(all, null, 2)}\n`)
  }
}
