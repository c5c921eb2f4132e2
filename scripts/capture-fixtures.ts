/**
 * Makes pcap-fixtures/: small captures and streams of real migrations, README.md and index.json about them.
 *
 *   node scripts/capture-fixtures.ts          all of them; root, two minutes; installs tcpdump where it is missing
 *
 * Everything runs on the loopback device of a network namespace of its own, which ends with this script. The source
 * QEMU migrates to a recording relay, tcpdump watches that connection, and the relay hands on to the destination QEMU.
 * So what a capture must reassemble to is known from sockets, not from the capture. Then each capture is put together
 * by a simple second reader, and compared.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { constants, zstdCompressSync } from 'node:zlib'
import { bootSector } from './harness/guest/boot-sector.ts'
import { endChild, spawnOwned, temporaryFolder } from './harness/qemu/cleanup.ts'
import { type MigrationInfo, type MigrationSettings, QemuGuest } from './harness/qemu/guest.ts'
import { compareMemory } from './harness/qemu/memory.ts'
import { type Capture, disorder, readPcap, reassemble, writePcap, writePcapng } from './harness/qemu/packets.ts'
import { type Recording, RecordingRelay } from './harness/qemu/recording-relay.ts'
import { type QemuVersion, qemu10, systemQemu } from './harness/qemu/versions.ts'

const folder = fileURLToPath(new URL('../pcap-fixtures', import.meta.url))
const relayPort = 4444
const destinationPort = 4445

/** One direction of one connection, or one file: what it must contain. */
interface StreamNote {
  /** `main`, `multifd`, `preempt` or `return`. */
  readonly channel: string
  /** In captures: ports of sender and receiver. */
  readonly sourcePort?: number
  readonly destinationPort?: number
  readonly lengthBytes: number
  readonly sha256: string
  /** The zstd file that holds it. */
  readonly file: string
}

/** One entry of index.json. */
interface FixtureNote {
  readonly name: string
  /** The capture; absent where there are only streams. */
  readonly file?: string
  readonly fileSha256?: string
  readonly qemu: string
  readonly machine: string
  readonly what: string
  readonly capabilities: readonly string[]
  readonly sourceCommand: string
  readonly destinationCommand: string
  readonly streams: readonly StreamNote[]
}

interface Plan {
  readonly name: string
  readonly what: string
  readonly qemu: '7.2' | '10'
  readonly settings: MigrationSettings
  /** Pass over dirty pages after which the migration may complete. */
  readonly passes?: number
  readonly postcopy?: boolean
  /** Capture packets: on `lo` with whole writes, on `lo` with Ethernet's segments, or on `any` over IPv6. */
  readonly capture?: 'loopback' | 'ethernet' | 'any6'
}

// So slow that the guest on the destination asks for pages before the background reaches them.
const slowPostcopy = { 'max-postcopy-bandwidth': 100_000 }

const plans: readonly Plan[] = [
  {
    name: 'qemu-7.2-precopy',
    what: 'precopy without return path; segments as large as QEMU writes, microseconds',
    qemu: '7.2',
    settings: {},
    capture: 'loopback',
  },
  {
    name: 'qemu-10-return-path',
    what: 'precopy with return path; segments of 1448 bytes, nanoseconds',
    qemu: '10',
    settings: { capabilities: { 'return-path': true } },
    capture: 'ethernet',
  },
  {
    name: 'qemu-10-multifd',
    what: 'multifd, two channels, over IPv6; pcapng of two interfaces, Linux cooked v2',
    qemu: '10',
    settings: { capabilities: { multifd: true, 'return-path': true } },
    passes: 3,
    capture: 'any6',
  },
  {
    name: 'qemu-7.2-multifd',
    what: 'multifd, two channels',
    qemu: '7.2',
    settings: { capabilities: { multifd: true } },
    passes: 3,
  },
  {
    name: 'qemu-7.2-compress',
    what: 'compress: COMPRESS_PAGE records, removed in 9.1',
    qemu: '7.2',
    settings: { capabilities: { compress: true }, parameters: { 'compress-threads': 2, 'decompress-threads': 2 } },
    passes: 3,
  },
  {
    name: 'qemu-10-xbzrle',
    what: 'xbzrle: deltas from the second pass on',
    qemu: '10',
    settings: { capabilities: { xbzrle: true } },
    passes: 5,
  },
  {
    name: 'qemu-10-postcopy',
    what: 'precopy, then postcopy, with return path',
    qemu: '10',
    settings: { capabilities: { 'postcopy-ram': true }, parameters: slowPostcopy },
    postcopy: true,
  },
  {
    name: 'qemu-10-postcopy-preempt',
    what: 'the same with a preempt channel',
    qemu: '10',
    settings: { capabilities: { 'postcopy-ram': true, 'postcopy-preempt': true }, parameters: slowPostcopy },
    postcopy: true,
  },
]

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
const wanted = new Set(process.argv.slice(2).filter(word => !word.startsWith('-')))

/** Checks what is needed, then runs this file again in a network namespace of its own. */
function outside(): void {
  if (process.getuid!() !== 0) fail('captures need root', 'sudo make fixtures')
  if (spawnSync('tcpdump', ['--version']).error) {
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
    const install = () => spawnSync('apt-get', ['-qq', 'install', '-y', '--no-install-recommends', 'tcpdump'], { env })
    if (install().status !== 0) {
      spawnSync('apt-get', ['-qq', 'update'], { env })
      if (install().status !== 0) fail('tcpdump is missing', 'apt-get install tcpdump')
    }
  }
  const { status } = spawnSync(
    'unshare',
    ['--net', process.execPath, ...process.execArgv, fileURLToPath(import.meta.url), '--inside', ...wanted],
    { stdio: 'inherit' },
  )
  process.exitCode = status ?? 1
}

function fail(what: string, hint: string): never {
  console.error(`error: ${what}\nhint: ${hint}`)
  process.exit(1)
}

async function inside(): Promise<void> {
  execFileSync('ip', ['link', 'set', 'lo', 'up'])
  const qemus = { '7.2': await systemQemu(), '10': await qemu10() }
  mkdirSync(join(folder, 'streams'), { recursive: true })
  const notes: FixtureNote[] = []
  for (const plan of plans) {
    if (wanted.size > 0 && !wanted.has(plan.name)) continue
    const { qemu, skip } = qemus[plan.qemu]
    if (!qemu) fail(skip, 'fixtures are made with both QEMUs, or not at all')
    if (!qemu.version.startsWith(`${plan.qemu}.`))
      fail(`${plan.name} needs QEMU ${plan.qemu}, here is ${qemu.version}`, 'Debian 12')
    for (let attempt = 1; ; attempt++) {
      try {
        notes.push(...(await make(plan, qemu)))
        break
      } catch (error) {
        // A loaded machine can end a migration in fewer passes than planned, or drop packets before tcpdump saw them.
        if (attempt === 5) throw error
        console.error(`${plan.name}: ${(error as Error).message}; again`)
      }
    }
    console.log(plan.name)
  }
  if (wanted.size > 0) return console.log('index.json and README.md are written when all are made')
  writeFileSync(join(folder, 'index.json'), `${JSON.stringify(notes, null, 2)}\n`)
  writeFileSync(join(folder, 'README.md'), readme(notes))
  const kept = new Set(notes.flatMap(note => [note.file, ...note.streams.map(stream => stream.file)]))
  let bytes = 0
  for (const file of readdirSync(folder, { recursive: true, encoding: 'utf8' })) {
    if (!statSync(join(folder, file)).isFile()) continue
    if (!kept.has(file) && file !== 'index.json' && file !== 'README.md') rmSync(join(folder, file))
    else bytes += statSync(join(folder, file)).size
  }
  console.log(`${(bytes / 1e6).toFixed(2)} MB in all`)
}

/** One migration; writes its files and describes them. */
async function make(plan: Plan, qemu: QemuVersion): Promise<FixtureNote[]> {
  const host = plan.capture === 'any6' ? '::1' : '127.0.0.1'
  const uriHost = plan.capture === 'any6' ? '[::1]' : host
  // Whole writes of up to 64 KB pass loopback, unless its packets must fit Ethernet's and are never merged.
  const ethernet = plan.capture === 'ethernet' || plan.capture === 'any6'
  execFileSync('ip', [
    'link',
    'set',
    'lo',
    'mtu',
    ethernet ? '1500' : '65536',
    'gso_max_segs',
    ethernet ? '1' : '65535',
  ])

  await using source = await QemuGuest.start({ qemu, name: 'source', bootSector: bootSector(), memoryMb: 16 })
  await using destination = await QemuGuest.start({
    ...source.options,
    name: 'destination',
    incoming: 'defer',
    paused: !plan.postcopy,
  })
  await source.waitSerial(/\n{10}/)
  await destination.listen(`tcp:${uriHost}:${destinationPort}`, plan.settings)
  await using relay = await RecordingRelay.start({ host, port: relayPort }, { host, port: destinationPort })
  await using tcpdump = plan.capture
    ? await Tcpdump.start(plan.capture === 'any6' ? 'any' : 'lo', plan.capture !== 'loopback')
    : undefined

  const passes = plan.passes ?? 5
  let letGo = false
  const stats = await source.migrate(`tcp:${uriHost}:${relayPort}`, {
    ...plan.settings,
    // Slow and strict at first, so that the guest dirties pages between passes and QEMU sends them again.
    parameters: { 'max-bandwidth': 1_000_000, 'downtime-limit': 1, ...plan.settings.parameters },
    onProgress: info => {
      if (letGo || !ready(info)) return
      letGo = true
      if (plan.postcopy) void source.qmp.execute('migrate-start-postcopy').catch(() => {})
      else void source.configure({ parameters: { 'downtime-limit': 2000 } }).catch(() => {})
    },
  })
  function ready({ ram }: MigrationInfo): boolean {
    // Postcopy begins early in the first pass, long before the pages that the guest writes.
    return plan.postcopy ? (ram?.transferred ?? 0) > 100_000 : (ram?.['dirty-sync-count'] ?? 0) >= passes
  }
  await destination.waitStatus(plan.postcopy ? 'running' : 'paused')
  await relay.close()
  const capture = await tcpdump?.stop()
  if (!plan.postcopy) {
    if (stats.passes < passes) throw new Error(`${stats.passes} passes`)
    const { differingPages } = await compareMemory(await source.snapshot(), await destination.snapshot())
    if (differingPages > 0) throw new Error(`${differingPages} pages of the destination differ`)
  } else {
    await destination.waitSerial(/\n{5}/)
    if (stats.info.ram!['postcopy-requests'] === 0) throw new Error('no page was asked for')
  }
  return write(plan, { source, destination, recordings: relay.recordings, capture })
}

interface Made {
  readonly source: QemuGuest
  readonly destination: QemuGuest
  readonly recordings: readonly Recording[]
  readonly capture: { readonly raw: Buffer; readonly parsed: Capture } | undefined
}

function write(plan: Plan, { source, destination, recordings, capture }: Made): FixtureNote[] {
  const channels = recordings.flatMap(({ sourcePort, forward, back }) => {
    const bytes = Buffer.concat(forward)
    const channel = channelOf(bytes)
    const ways = [{ channel, bytes, from: sourcePort, to: relayPort }]
    if (back.length > 0) ways.push({ channel: 'return', bytes: Buffer.concat(back), from: relayPort, to: sourcePort })
    return ways
  })
  const command = (guest: QemuGuest) =>
    // Paths of this machine say nothing to the reader.
    [...guest.command]
      .map(word => word.replace(/\S*qemu10$/, 'qemu10').replaceAll(/(path|file)=[^,]*\//g, '$1='))
      .join(' ')
  const note = {
    qemu: source.qmp.version,
    machine: 'pc',
    what: plan.what,
    capabilities: Object.keys(plan.settings.capabilities ?? {}),
    sourceCommand: command(source),
    destinationCommand: command(destination),
  }
  const streams: StreamNote[] = channels.map(({ channel, bytes, from, to }, i) => {
    const twin = channels.filter(other => other.channel === channel).length > 1
    const file = `streams/${plan.name}.${twin ? `${i}-` : ''}${channel}.zst`
    const params = { [constants.ZSTD_c_compressionLevel]: 19, [constants.ZSTD_c_checksumFlag]: 1 }
    writeFileSync(join(folder, file), zstdCompressSync(bytes, { params }))
    const ports = capture ? { sourcePort: from, destinationPort: to } : {}
    return { channel, ...ports, lengthBytes: bytes.length, sha256: sha256(bytes), file }
  })
  if (!capture) return [{ name: plan.name, ...note, streams }]
  const keep = (name: string, extension: string, what: string, bytes: Buffer, parsed: Capture): FixtureNote => {
    check(parsed, channels)
    const file = `${name}.${extension}`
    writeFileSync(join(folder, file), bytes)
    return { name, file, fileSha256: sha256(bytes), ...note, what, streams }
  }
  if (plan.capture === 'any6') {
    const pcapng = writePcapng(capture.parsed, `made by tcpdump, then scripts/capture-fixtures.ts: ${plan.what}`)
    return [keep(plan.name, 'pcapng', plan.what, pcapng, capture.parsed)]
  }
  const notes = [keep(plan.name, 'pcap', plan.what, capture.raw, capture.parsed)]
  if (plan.capture === 'ethernet') {
    const parsed = disorder(capture.parsed)
    const what = `${plan.name} with segments swapped, sent again, sent again in other cuts, and late`
    notes.push(keep(`${plan.name}-disordered`, 'pcap', what, writePcap(parsed), parsed))
  }
  return notes
}

/** By the first bytes, as a proxy does it. */
function channelOf(bytes: Buffer): string {
  const magic = bytes.length >= 4 ? bytes.readUInt32BE(0) : 0
  return magic === 0x5145564d ? 'main' : magic === 0x11223344 ? 'multifd' : 'preempt'
}

/** A capture must hold what the sockets carried, no more and no less. */
function check(capture: Capture, channels: readonly { bytes: Buffer; from: number; to: number }[]): void {
  const streams = reassemble(capture)
  const find = (from: number, to: number) =>
    [...streams].find(([key]) => key.split(' ')[0]!.endsWith(`:${from}`) && key.endsWith(`:${to}`))?.[1] ??
    Buffer.alloc(0)
  for (const { bytes, from, to } of channels) {
    if (!find(from, to).equals(bytes)) throw new Error(`the capture from ${from} to ${to} lacks packets`)
  }
}

/** A tcpdump at work. */
class Tcpdump implements AsyncDisposable {
  private readonly child: ReturnType<typeof spawnOwned>
  private readonly folder: ReturnType<typeof temporaryFolder>
  private said = ''

  private constructor(device: string, nano: boolean) {
    this.folder = temporaryFolder('tcpdump')
    const options = [
      '-i',
      device,
      '-s',
      '262144',
      '-B',
      '65536',
      '-n',
      '-w',
      join(this.folder.path, 'pcap'),
      '-Z',
      'root',
    ]
    if (nano) options.push('--time-stamp-precision=nano')
    this.child = spawnOwned(['tcpdump', ...options, 'tcp', 'port', `${relayPort}`], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.said += text
    })
  }

  static async start(device: string, nano: boolean): Promise<Tcpdump> {
    const tcpdump = new Tcpdump(device, nano)
    for (let waitMs = 0; !tcpdump.said.includes('listening on'); waitMs += 10) {
      if (waitMs > 10_000) throw new Error(`tcpdump: ${tcpdump.said}`)
      await sleep(10)
    }
    return tcpdump
  }

  async stop(): Promise<{ readonly raw: Buffer; readonly parsed: Capture }> {
    await sleep(1500) // tcpdump sees a packet up to a second after the kernel did
    await endChild(this.child)
    const raw = readFileSync(join(this.folder.path, 'pcap'))
    this.folder.remove()
    if (!/^0 packets dropped by kernel/m.test(this.said)) throw new Error(`tcpdump: ${this.said}`)
    return { raw, parsed: readPcap(raw) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endChild(this.child)
    this.folder.remove()
  }
}

function readme(notes: readonly FixtureNote[]): string {
  const captures = notes.flatMap(({ file, qemu, what, streams, fileSha256 }) =>
    file === undefined ? [] : `| ${file} | ${qemu} | ${what} | ${streams.length} | ${fileSha256!.slice(0, 16)} |`,
  )
  // The disordered capture shares the streams of the one it was made from, which comes first.
  const files = Map.groupBy(
    notes.flatMap(note => note.streams.map(stream => ({ ...note, ...stream }))),
    stream => stream.file,
  )
  const streams = [...files.values()]
    .map(([first]) => first!)
    .map(
      ({ file, qemu, what, channel, lengthBytes, sha256 }) =>
        `| ${file} | ${qemu} | ${channel === 'main' ? what.split(';')[0] : ''} | ${lengthBytes} | ${sha256.slice(0, 16)} |`,
    )
  const commands = Map.groupBy(notes, note => `    ${note.sourceCommand}\n    ${note.destinationCommand}\n`)
  const list = [...commands].map(([lines, same]) => {
    const names = same.map(({ name, capabilities }) => `- ${name}: ${capabilities.join(', ') || 'no capabilities'}`)
    return `${names.join('\n')}\n\n${lines}`
  })
  return `# Captures and streams of real migrations

Made by \`make fixtures\` (scripts/capture-fixtures.ts), which writes this file too. \`index.json\` holds the same for tests: for every
capture the SHA-256 of the file, and the length and SHA-256 of the bytes that each direction of each connection must reassemble to, taken
from the sockets of a relay on the path and not from the capture.

The guest: 16 MB, the boot sector of scripts/harness/guest/boot-sector.S. \`max-bandwidth\` 1 MB/s and \`downtime-limit\` 1 ms hold each migration
until its planned number of passes over dirty pages. In precopy the memory of source and destination was compared afterwards: equal.
To make them again changes times, ports and so every hash: commit all files together.

## Captures

tcpdump on loopback, whole packets, both directions, port ${relayPort}; TCP checksums are the unfinished ones of loopback.

| file | QEMU | what | streams | SHA-256 of the file |
| --- | --- | --- | --- | --- |
${captures.join('\n')}

## Streams

Bytes of one direction of one connection, zstd; those of the captures are among them. \`return\` is the return path of \`main\`.

| file | QEMU | what | bytes | SHA-256 of the bytes |
| --- | --- | --- | --- | --- |
${streams.join('\n')}

## Command lines

Source, then destination; \`serial\` and \`qmp\` are unix sockets of the harness.

${list.join('\n')}`
}

if (process.argv.includes('--inside')) await inside()
else outside()
