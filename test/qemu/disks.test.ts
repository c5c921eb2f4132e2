/** Disks of real QEMUs through the pair: a mirror, the WAN broken in it, and the guest's memory behind it. */
import { createHash, randomBytes } from 'node:crypto'
import { closeSync, openSync, readFileSync, readSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { type CopyMode, exportDisk, Mirror } from '../../scripts/harness/qemu/mirror.ts'
import { type FoundQemu, type QemuVersion, qemu10, systemQemu } from '../../scripts/harness/qemu/versions.ts'
import type { Estimate } from '../../src/cli/codec-command.ts'
import type { DiskAnswers } from '../../src/daemon/settings.ts'
import type { DiskDepartureSummary } from '../../src/migration/summary.ts'
import { run } from '../cli/command.ts'
import { until } from '../helpers/until.ts'
import { pageferry } from '../template/cli-harness.ts'
import { Pair } from './pair.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20
const PAGE = 4096
const HOLE = 65_536
const DISK_BYTES = 16 * MIB
/** Where the guest has blocks of its disk in memory: its page cache. */
const CACHE = { at: 2 * MIB, bytes: 10 * MIB }
const RETURN_PATH = { capabilities: { 'return-path': true } }

/** Half of it in use: noise, which nothing compresses. */
function image(): Buffer {
  const disk = Buffer.alloc(DISK_BYTES)
  for (const [from, length] of [
    [0, 5],
    [8, 4],
    [14, 1],
  ] as const)
    randomBytes(length * MIB).copy(disk, from * MIB)
  return disk
}

const digest = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex')

/** A guest that does nothing, with a disk; its memory holds what is in `cache`. */
async function guest(
  qemu: QemuVersion,
  folder: string,
  name: string,
  cache?: string,
  more: readonly string[] = [],
): Promise<QemuGuest> {
  const bios = new Uint8Array(65536)
  bios.set([0xfa, 0xf4, 0xeb, 0xfd], 65520) // at the reset vector: cli, hlt, again
  writeFileSync(join(folder, 'bios'), bios)
  return await QemuGuest.start({
    ...{ qemu, name, machine: 'pc-i440fx-7.2', memoryMb: 16, bootSector: new Uint8Array(512), paused: true },
    ...(cache === undefined ? { incoming: 'defer' } : {}),
    args: [
      ...['-bios', join(folder, 'bios')],
      ...['-blockdev', `driver=raw,node-name=disk,file.driver=file,file.filename=${join(folder, name)}`],
      ...['-device', 'virtio-blk-pci,drive=disk,id=vd0'],
      ...(cache === undefined ? [] : ['-device', `loader,file=${cache},addr=${CACHE.at},force-raw=on`]),
      ...more,
    ],
  })
}

/** Writes as the guest would. */
async function writes(source: QemuGuest, ...commands: readonly string[]): Promise<void> {
  for (const command of commands) {
    const line = `qemu-io -d /machine/peripheral/vd0/virtio-backend "${command}"`
    const said = await source.qmp.execute('human-monitor-command', { 'command-line': line })
    if (typeof said === 'string' && /error|failed/i.test(said)) throw new Error(said)
  }
}

const [old, young] = [await systemQemu(), await qemu10()]
const finds: readonly (readonly [string, FoundQemu, CopyMode, DiskAnswers])[] = [
  ['7.2', old, 'background', 'far'],
  ['7.2', old, 'write-blocking', 'early'],
  ['10', young, 'write-blocking', 'far'],
  ['10', young, 'background', 'early'],
]
for (const [version, { qemu, skip }] of [
  ['7.2', old],
  ['10', young],
] as const) {
  t.test(`QEMU ${version}: pageferry migrate ends the mirror`, { skip: skip ?? false }, async t => {
    const folder = t.testdir()
    const disk = image()
    writeFileSync(join(folder, 'source'), disk)
    writeFileSync(join(folder, 'destination'), Buffer.alloc(DISK_BYTES))
    writeFileSync(join(folder, 'cache'), disk.subarray(0, CACHE.bytes))
    const qmp = (name: string) => ['-qmp', `unix:${join(folder, name)},server=on,wait=off`]
    await using pair = await Pair.start({ disks: true, effort: 1 })
    await using source = await guest(qemu!, folder, 'source', join(folder, 'cache'), qmp('near'))
    await using destination = await guest(qemu!, folder, 'destination', undefined, qmp('far'))
    const migrate = (...more: readonly string[]) =>
      run(
        [
          ...['migrate', '--qmp', join(folder, 'near'), '--far-qmp', join(folder, 'far'), '--json'],
          ...['--to', pair.sourceUri(), '--incoming', pair.targetUri(), ...more],
        ],
        { cwd: folder },
      )
    const none = await migrate('--mirror', 'mirror')
    t.equal(none.status, 16, 'there is no such mirror: nothing begins')
    await exportDisk(destination, pair.diskFar)
    const mirror = await Mirror.begin(source, pair.diskNear, { copyMode: 'background' })
    await mirror.ready()
    await writes(source, 'write -P 0x5a 1024 512', 'write -P 0x77 9437184 262144')
    const moved = await migrate('--mirror', 'mirror')
    t.equal(moved.status, 0, moved.stderr)
    t.match(moved.stdout, /the mirrors have ended in sync/)
    t.match(JSON.parse(moved.stdout.trim().split('\n').at(-1)!), { result: 'completed', left: [] })
    t.same(await mirror.jobs(), [])
    t.equal(digest(join(folder, 'destination')), digest(join(folder, 'source')), 'both disks are equal')
    await writes(destination, 'write -P 0x11 4096 4096', 'flush')
    await t.rejects(destination.qmp.execute('nbd-server-stop'), /not running/, 'nobody else writes to it any more')
  })
}

for (const [version, { qemu, skip }, copyMode, diskAnswers] of finds) {
  const how = `${copyMode}, answers ${diskAnswers}`
  t.test(`QEMU ${version} mirrors its disk (${how}), and its memory follows`, { skip: skip ?? false }, async t => {
    const folder = t.testdir()
    const disk = image()
    writeFileSync(join(folder, 'source'), disk)
    writeFileSync(join(folder, 'destination'), Buffer.alloc(DISK_BYTES))
    writeFileSync(join(folder, 'cache'), disk.subarray(0, CACHE.bytes))
    await using pair = await Pair.start({ disks: true, diskAnswers, effort: 2, tls: 'psk' })
    await using source = await guest(qemu!, folder, 'source', join(folder, 'cache'))
    await using destination = await guest(qemu!, folder, 'destination')
    await exportDisk(destination, pair.diskFar)
    const cut = pair.wan.cutAfter('forward', 2 * MIB)
    const mirror = await Mirror.begin(source, pair.diskNear, { copyMode })
    await cut
    await pair.breakWan('reset', 300)
    await mirror.ready()
    await writes(source, 'write -P 0x5a 1024 512', 'write -P 0x33 2097152 65536', 'write -z 65536 8192', 'flush')
    await pair.breakWan('drop', 300)
    await writes(source, 'write -f -P 0x44 3000000 100', 'write -P 0x77 9437184 262144')
    await mirror.complete()
    t.equal(digest(join(folder, 'destination')), digest(join(folder, 'source')), 'both disks are equal')
    t.not(digest(join(folder, 'source')), createHash('sha256').update(disk).digest('hex'), 'the guest wrote')
    await destination.qmp.execute('nbd-server-stop')
    const told = await pair.waitLog(
      ({ side, event }) => side === 'source' && event === 'disk transfer ended',
      'the end of the disk transfer',
    )
    const disks = told.fields as unknown as DiskDepartureSummary
    t.match(disks, { exports: ['disk'], endedBy: 'both sides closed' })
    t.equal(pair.log.filter(({ event }) => event === 'relayed raw').length, 0, 'all of it is understood')
    t.equal(pair.log.filter(({ event }) => event === 'early answers were wrong').length, 0)

    await destination.listen(pair.targetUri(), RETURN_PATH)
    await source.migrate(pair.sourceUri(), RETURN_PATH)
    const memory = await pair.summary()
    t.equal(memory.outcome, 'completed')
    t.ok(memory.pages.earlier > 1700, `${memory.pages.earlier} pages stood in the disk`)
    t.comment(
      `QEMU ${version}: the disk ${disks.bytesIn} bytes, ${disks.bytesWan} on the WAN; ` +
        `memory ${memory.bytesIn}, ${memory.bytesWan} on the WAN, ${memory.pages.earlier} pages of the disk`,
    )
    t.ok(memory.bytesWan < 0.05 * CACHE.bytes, 'so its memory costs next to nothing')
  })

  for (const who of ['the destination proxy', 'the source proxy', 'the far server'] as const) {
    if (diskAnswers === 'far' && who !== 'the destination proxy') continue
    t.test(
      `QEMU ${version}: ${who} dies (${how}), the mirror fails, the guest goes on`,
      { skip: skip ?? false },
      async t => {
        const folder = t.testdir()
        writeFileSync(join(folder, 'source'), image())
        writeFileSync(join(folder, 'destination'), Buffer.alloc(DISK_BYTES))
        writeFileSync(join(folder, 'cache'), Buffer.alloc(PAGE))
        await using pair = await Pair.start({ disks: true, diskAnswers })
        await using source = await guest(qemu!, folder, 'source', join(folder, 'cache'))
        await using destination = await guest(qemu!, folder, 'destination')
        await exportDisk(destination, pair.diskFar)
        const mirror = await Mirror.begin(source, pair.diskNear, { copyMode })
        await mirror.ready()
        // what it has an answer to, and the far server may never have
        if (diskAnswers === 'early') await writes(source, 'write -P 0x66 131072 65536')
        if (who === 'the far server') await destination.quit()
        else await pair.kill(who === 'the source proxy' ? 'source' : 'destination')
        // a client that waits for nothing hears of its server's end with what it asks next
        if (who !== 'the far server') {
          await until('the source to break off', () => pair.log.some(({ event }) => event === 'disk transfer ended'))
        }
        await writes(source, 'write -P 0x11 0 65536', 'flush')
        const error = await mirror.concluded()
        t.type(error, 'string', `the job ended with: ${error}`)
        await source.qmp.execute('cont')
        t.equal(await source.status(), 'running')
        await writes(source, 'write -P 0x22 0 65536', 'flush')
      },
    )
  }
}

/** A disk as images are: code, some of it twice, and holes wherever 64 KiB are zero: those that QEMU does not send. */
function realImage(path: string): void {
  const code = Buffer.alloc(24 * MIB)
  const program = openSync(process.execPath, 'r')
  readSync(program, code, 0, code.length, 40 * MIB)
  closeSync(program)
  writeFileSync(path, '')
  truncateSync(path, 48 * MIB)
  const file = openSync(path, 'r+')
  for (const [to, from, length] of [
    [0, 0, 12],
    [20, 12, 12],
    [40, 14, 3],
  ] as const) {
    for (let at = 0; at < length * MIB; at += HOLE) {
      const piece = code.subarray(from * MIB + at, from * MIB + at + HOLE)
      if (piece.some(byte => byte !== 0)) writeSync(file, piece, 0, HOLE, to * MIB + at)
    }
  }
  closeSync(file)
}

for (const [version, { qemu, skip }, copyMode, diskAnswers] of finds) {
  if (diskAnswers === 'early') continue
  t.test(`QEMU ${version}: a mirror costs what was estimated`, { skip: skip ?? false }, async t => {
    const folder = t.testdir()
    const [disk, store, half] = ['source', 'store', 'half'].map(name => join(folder, name)) as [string, string, string]
    realImage(disk)
    writeFileSync(half, readFileSync(disk).subarray(0, 12 * MIB))
    writeFileSync(join(folder, 'destination'), '')
    truncateSync(join(folder, 'destination'), 48 * MIB)
    const built = await pageferry('template', 'build', '--as', 'disk', '--store', store, half)
    t.equal(built.status, 0, built.err)
    const said = await pageferry('estimate', '--as', 'disk', '--store', store, '--pool-memory', '32MiB', '--json', disk)
    t.equal(said.status, 0, said.err)
    const [estimate] = JSON.parse(said.out) as [Estimate]

    const stores = { sourceStore: store, destinationStore: store }
    await using pair = await Pair.start({ ...stores, disks: true, effort: 3, tls: 'psk' })
    await using source = await guest(qemu!, folder, 'source', half)
    await using destination = await guest(qemu!, folder, 'destination')
    await exportDisk(destination, pair.diskFar)
    const mirror = await Mirror.begin(source, pair.diskNear, { copyMode })
    await mirror.ready()
    await mirror.complete()
    t.equal(digest(join(folder, 'destination')), digest(disk), 'both disks are equal')
    const told = await pair.waitLog(
      ({ side, event }) => side === 'source' && event === 'disk transfer ended',
      'the end of the disk transfer',
    )
    const { bytesWan, bytesIn, blocks } = told.fields as unknown as DiskDepartureSummary
    const { wanBytes, qemuBytes, pages } = estimate
    t.comment(`estimated ${wanBytes} of ${qemuBytes} bytes, and it took ${bytesWan} of ${bytesIn}`)
    t.ok(Math.abs(wanBytes - bytesWan) < 0.1 * bytesWan, `${wanBytes} bytes were estimated, ${bytesWan} it took`)
    t.ok(Math.abs(qemuBytes - bytesIn) < 0.02 * bytesIn, `${qemuBytes} of QEMU, ${bytesIn}`)
    t.ok(pages.template! > 2000 && Math.abs(pages.template! - blocks.template) <= 20, `${blocks.template} were known`)
    t.ok(pages.earlier! > 400 && Math.abs(pages.earlier! - blocks.earlier) <= 50, `${blocks.earlier} passed before`)
  })
}
