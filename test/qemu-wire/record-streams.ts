/**
 * Records test/vectors/qemu/streams/: small real streams of what pcap-fixtures/ does not have.
 *
 *   node test/qemu-wire/record-streams.ts [NAME...]      needs QEMU 7.2 and 10; hugepages are skipped where there are none
 *
 * The guests never run, or halt at once: a few pages are loaded into their memory, the BIOS is nearly empty, so that a
 * stream is small.
 */
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { constants, zstdCompressSync } from 'node:zlib'
import { type MigrationSettings, QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { type Recording, RecordingRelay } from '../../scripts/harness/qemu/recording-relay.ts'
import { type QemuVersion, qemu10, systemQemu } from '../../scripts/harness/qemu/versions.ts'
import { channelKind } from '../../src/qemu/channel-kind.ts'
import { until } from '../helpers/until.ts'
import { LOADED_AT, loadedPages } from './loaded-pages.ts'

const folder = fileURLToPath(new URL('../vectors/qemu/streams/', import.meta.url))

/** One migration to record. */
interface Plan {
  readonly name: string
  readonly why: string
  readonly qemu: '7.2' | '10'
  readonly settings?: MigrationSettings
  readonly machine?: string
  readonly memoryMb?: number
  /** Arguments of both QEMUs; $DIR is a folder that both see. */
  readonly args?: readonly string[]
  /** Commands for both before the migration. */
  readonly before?: readonly (readonly [string, Record<string, unknown>])[]
  /** Only for the `migrate` command. */
  readonly migrate?: Record<string, unknown>
  readonly postcopy?: boolean
  /** Break the connections in postcopy, and recover. */
  readonly recover?: boolean
  /** To a file instead of a destination. */
  readonly file?: boolean
}

/** What index.json says of one stream. */
export interface StreamNote {
  readonly channel: 'main' | 'multifd' | 'preempt' | 'recovery' | 'return'
  readonly file: string
  readonly lengthBytes: number
  readonly sha256: string
  /** Of a connection that was broken. */
  readonly broken?: boolean
}

/** One entry of index.json. */
export interface RecordingNote {
  readonly name: string
  readonly why: string
  readonly qemu: string
  readonly command: string
  readonly capabilities: readonly string[]
  readonly streams: readonly StreamNote[]
}

const bitmap = [
  ['blockdev-add', { driver: 'null-co', 'node-name': 'drive0', size: 1 << 30, 'read-zeroes': true }],
  ['block-dirty-bitmap-add', { node: 'drive0', name: 'bitmap0', granularity: 65536 }],
] as const

const plans: readonly Plan[] = [
  {
    name: '7.2-no-footers',
    why: 'a machine type of 2.3: no configuration section, no footers',
    qemu: '7.2',
    machine: 'pc-i440fx-2.3',
  },
  {
    name: '7.2-uuid-ignore-shared',
    why: 'configuration subsections, guest addresses in the block list, RAM that is not sent',
    qemu: '7.2',
    settings: { capabilities: { 'x-ignore-shared': true, 'validate-uuid': true } },
    machine: 'pc,memory-backend=mem0',
    args: [
      ...['-object', 'memory-backend-file,id=mem0,size=8M,share=on,mem-path=$DIR/ram'],
      ...['-uuid', '00112233-4455-6677-8899-aabbccddeeff'],
    ],
  },
  {
    name: '7.2-background-snapshot',
    why: 'device state without END of ram',
    qemu: '7.2',
    settings: { capabilities: { 'background-snapshot': true } },
    file: true,
  },
  {
    name: '7.2-dirty-bitmaps',
    why: 'START, PART and END of dirty-bitmap beside ram; ADVISE of length 0',
    qemu: '7.2',
    settings: { capabilities: { 'dirty-bitmaps': true } },
    before: bitmap,
  },
  {
    name: '10-dirty-bitmaps-postcopy',
    why: 'dirty-bitmap goes on behind the package, END of ram before it',
    qemu: '10',
    settings: { capabilities: { 'dirty-bitmaps': true, 'postcopy-ram': true } },
    before: bitmap,
    postcopy: true,
  },
  {
    name: '7.2-block',
    why: 'block migration: chunks of 1 MiB and of zeros',
    qemu: '7.2',
    args: ['-drive', 'file=$DIR/disk-$SIDE,format=raw,if=none,id=disk0', '-device', 'virtio-blk-pci,drive=disk0'],
    migrate: { blk: true },
  },
  {
    name: '10-virtio-mem',
    why: 'a FULL between START and the first PART of ram; SWITCHOVER_ACK',
    qemu: '10',
    settings: { capabilities: { 'switchover-ack': true, 'return-path': true } },
    memoryMb: 8,
    args: [
      ...['-m', '8M,maxmem=1G', '-object', 'memory-backend-ram,id=vmem0,size=256M'],
      ...['-device', 'virtio-mem-pci,memdev=vmem0,requested-size=0'],
    ],
  },
  {
    name: '7.2-multifd-zlib',
    why: 'compressed packets',
    qemu: '7.2',
    settings: { capabilities: { multifd: true }, parameters: { 'multifd-compression': 'zlib' } },
  },
  {
    name: '10-multifd-zstd',
    why: 'compressed packets with zero pages',
    qemu: '10',
    settings: { capabilities: { multifd: true }, parameters: { 'multifd-compression': 'zstd' } },
  },
  {
    name: '10-multifd-legacy',
    why: 'a machine type of 8.0: zero pages on main, SYNC at every EOS',
    qemu: '10',
    machine: 'pc-i440fx-8.0',
    settings: { capabilities: { multifd: true } },
  },
  {
    name: '7.2-postcopy-preempt',
    why: 'the EOS that ends a preempt channel of 7.2',
    qemu: '7.2',
    settings: { capabilities: { 'postcopy-ram': true, 'postcopy-preempt': true } },
    postcopy: true,
  },
  {
    name: '7.2-recovery',
    why: 'a postcopy that breaks and recovers',
    qemu: '7.2',
    settings: { capabilities: { 'postcopy-ram': true } },
    postcopy: true,
    recover: true,
  },
  {
    name: '10-recovery-preempt',
    why: 'a postcopy that breaks and recovers, with a preempt channel each time',
    qemu: '10',
    settings: { capabilities: { 'postcopy-ram': true, 'postcopy-preempt': true } },
    postcopy: true,
    recover: true,
  },
  {
    name: '10-hugepages-postcopy',
    why: 'page sizes in the block list, which nothing announces; one guest hugepage after the other',
    qemu: '10',
    settings: { capabilities: { 'postcopy-ram': true } },
    machine: 'pc,memory-backend=mem0',
    args: ['-object', 'memory-backend-memfd,id=mem0,size=8M,hugetlb=on,hugetlbsize=2M,share=on'],
    postcopy: true,
  },
]

const wanted = new Set(process.argv.slice(2))
mkdirSync(folder, { recursive: true })
const notes: RecordingNote[] = []
for (const plan of plans) {
  if (wanted.size > 0 && !wanted.has(plan.name)) continue
  const { qemu, skip } = plan.qemu === '10' ? await qemu10() : await systemQemu()
  if (!qemu) throw new Error(skip)
  const directory = mkdtempSync(join(tmpdir(), 'wire-'))
  try {
    notes.push(await record(plan, qemu, directory))
    console.log(
      plan.name,
      notes
        .at(-1)!
        .streams.map(stream => `${stream.channel} ${stream.lengthBytes}`)
        .join(', '),
    )
  } catch (error) {
    if (wanted.size > 0) throw error
    console.error(`${plan.name}: ${(error as Error).message}`)
    process.exitCode = 1
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}
if (wanted.size === 0 && !process.exitCode) writeFileSync(`${folder}index.json`, `${JSON.stringify(notes, null, 2)}\n`)

async function record(plan: Plan, qemu: QemuVersion, directory: string): Promise<RecordingNote> {
  const bios = new Uint8Array(65536)
  bios.set([0xfa, 0xf4, 0xeb, 0xfd], 65520) // at the reset vector: cli, hlt, again
  writeFileSync(join(directory, 'bios'), bios)
  writeFileSync(join(directory, 'pages'), loadedPages())
  for (const side of ['source', 'destination']) {
    const disk = new Uint8Array(3 << 20)
    if (side === 'source') disk.fill(0x7e, 1 << 20, (1 << 20) + 9)
    writeFileSync(join(directory, `disk-${side}`), disk)
  }
  const options = (name: string) => ({
    qemu,
    name,
    machine: plan.machine ?? 'pc',
    memoryMb: plan.memoryMb ?? 8,
    bootSector: new Uint8Array(512),
    paused: true,
    args: [
      ...['-bios', join(directory, 'bios'), '-device', `loader,file=${directory}/pages,addr=${LOADED_AT},force-raw=on`],
      ...(plan.args ?? []).map(word => word.replace('$DIR', directory).replace('$SIDE', name)),
    ],
  })
  await using source = await QemuGuest.start(options('source'))
  await using destination = plan.file
    ? undefined
    : await QemuGuest.start({ ...options('destination'), incoming: 'defer' })
  for (const [command, argument] of plan.before ?? []) {
    await source.qmp.execute(command, argument)
    if (command === 'blockdev-add') await destination?.qmp.execute(command, argument)
  }
  const settings = {
    ...plan.settings,
    parameters: {
      ...plan.settings?.parameters,
      ...(plan.postcopy ? { 'max-bandwidth': 100_000, 'max-postcopy-bandwidth': 60_000 } : {}),
    },
  }
  await source.configure(settings)
  const recordings: Recording[] = []
  let broken = 0
  if (!destination) {
    const uri = `exec:cat > ${directory}/stream`
    await source.cont() // a background snapshot is of a running guest
    await source.qmp.execute('migrate', { uri })
    await source.waitMigration()
    recordings.push({ sourcePort: 0, forward: [readFileSync(join(directory, 'stream'))], back: [], order: [] })
  } else {
    const { parameters: _, ...capabilities } = settings
    const compression = plan.settings?.parameters?.['multifd-compression']
    const uri = await destination.listen('tcp:127.0.0.1:0', {
      ...capabilities,
      ...(compression ? { parameters: { 'multifd-compression': compression } } : {}),
    })
    let relay = await relayTo(uri)
    await source.qmp.execute('migrate', { uri: relay.uri, ...plan.migrate })
    if (plan.postcopy) {
      await untilInfo(source, info => (info.ram?.transferred ?? 0) > 20_000)
      await source.qmp.execute('migrate-start-postcopy')
      if (plan.recover) {
        await untilInfo(source, info => info.status === 'postcopy-active' && (info.ram?.remaining ?? 0) < 7_000_000)
        await relay.relay[Symbol.asyncDispose]()
        recordings.push(...relay.relay.recordings)
        broken = recordings.length
        await untilInfo(source, info => info.status === 'postcopy-paused')
        await untilInfo(destination, info => info.status === 'postcopy-paused')
        await destination.qmp.execute('migrate-recover', { uri: 'tcp:127.0.0.1:0' })
        relay = await relayTo(await destination.incomingAddress())
        await source.qmp.execute('migrate', { uri: relay.uri, resume: true })
      }
      await source.configure({ parameters: { 'max-postcopy-bandwidth': 0 } })
    }
    await source.waitMigration()
    await relay.relay.close()
    recordings.push(...relay.relay.recordings)
  }
  const streams = recordings.flatMap((recording, i) => {
    const forward = Buffer.concat(recording.forward)
    const kind = channelKind(forward)
    const channel = kind === 'main' || kind === 'multifd' || kind === 'recovery' ? kind : 'preempt'
    const both = [keep(`${plan.name}.${i}-${channel}`, channel, forward, i < broken)]
    const back = Buffer.concat(recording.back)
    if (back.length > 0) both.push(keep(`${plan.name}.${i}-return`, 'return', back, i < broken))
    return both
  })
  return {
    name: plan.name,
    why: plan.why,
    qemu: source.qmp.version,
    command: source.command.map(word => word.replaceAll(/\/\S*\//g, '')).join(' '),
    capabilities: Object.keys(plan.settings?.capabilities ?? {}),
    streams,
  }
}

async function relayTo(uri: string): Promise<{ relay: RecordingRelay; uri: string }> {
  // The relay listens right above the port that the destination took.
  const port = Number(uri.split(':').at(-1))
  const host = '127.0.0.1'
  for (let near = port + 1; ; near++) {
    try {
      const relay = await RecordingRelay.start({ host, port: near }, { host, port })
      return { relay, uri: `tcp:${host}:${near}` }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE' || near > port + 20) throw error
    }
  }
}

async function untilInfo(guest: QemuGuest, ready: (info: Awaited<ReturnType<QemuGuest['migrationInfo']>>) => boolean) {
  await until(`${guest.name} to get on`, async () => {
    const info = await guest.migrationInfo()
    if (info.status === 'failed') throw new Error(`${guest.name}: ${info.status} ${info['error-desc']}`)
    return ready(info)
  })
}

function keep(name: string, channel: StreamNote['channel'], bytes: Buffer, broken: boolean): StreamNote {
  const file = `${name}.zst`
  const params = { [constants.ZSTD_c_compressionLevel]: 19, [constants.ZSTD_c_checksumFlag]: 1 }
  writeFileSync(folder + file, zstdCompressSync(bytes, { params }))
  const sha256 = createHash('sha256').update(bytes).digest('hex')
  return { channel, file, lengthBytes: bytes.length, sha256, ...(broken ? { broken } : {}) }
}
