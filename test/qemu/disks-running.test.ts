/** Disks of guests that go on writing, by real QEMUs through the pair: moved with their memory, and what goes wrong. */
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, openSync, rmSync, symlinkSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { diskWriterSector } from '../../scripts/harness/guest/disk-writer.ts'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { compareMemory } from '../../scripts/harness/qemu/memory.ts'
import { type CopyMode, exportDisk, Mirror } from '../../scripts/harness/qemu/mirror.ts'
import { type FoundQemu, type QemuVersion, qemu10, systemQemu } from '../../scripts/harness/qemu/versions.ts'
import { NBD_SKIP, Nbdkit, QEMU_IMG_SKIP } from '../daemon/nbd.ts'
import { until } from '../helpers/until.ts'
import { FAULTS, Pair } from './pair.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20
const DISK_BYTES = 64 * MIB
/** Writes at each of 18 ticks a second: 1.2 MB/s here and there, so a mirror has something to do again and again. */
const WRITES = 16
const SLOW = 4_000_000

/** A disk of which an eighth is in use: noise, which nothing compresses. */
function image(path: string): void {
  writeFileSync(path, '')
  truncateSync(path, DISK_BYTES)
  const file = openSync(path, 'r+')
  for (let at = 0; at < DISK_BYTES; at += 8 * MIB) writeSync(file, randomBytes(MIB), 0, MIB, at)
  closeSync(file)
}

/** A guest on its disk, which writes once it runs; or the QEMU that waits for it, with an empty one. */
async function guest(qemu: QemuVersion, folder: string, name: 'source' | 'destination'): Promise<QemuGuest> {
  const path = join(folder, name)
  if (name === 'source') image(path)
  else {
    writeFileSync(path, '')
    truncateSync(path, DISK_BYTES)
  }
  return await QemuGuest.start({
    ...{ qemu, name, machine: 'pc-i440fx-7.2', memoryMb: 16, bootSector: diskWriterSector(WRITES, DISK_BYTES) },
    ...(name === 'destination' ? { incoming: 'defer', paused: true } : {}),
    args: [
      ...['-boot', 'a', '-blockdev', `driver=raw,node-name=disk,file.driver=file,file.filename=${path}`],
      ...['-device', 'virtio-blk-pci,drive=disk,id=vd0'],
    ],
  })
}

/** Waits until the guest has written on for so many ticks more, without an error. */
async function writesOn(running: QemuGuest, ticks = 4): Promise<void> {
  const from = running.serial.length
  await running.waitSerial(new RegExp(`\\n{${ticks}}`), 60_000, from)
  if (running.serial.includes('E')) throw new Error(`${running.name}: a write of the guest failed`)
}

const BACKGROUND = { copyMode: 'background' } as const

/** The guest moves behind a mirror that is ready; disks and memory are equal, and it writes on. */
async function arrives(
  t: Test,
  pair: Pair,
  qemu: QemuVersion,
  folder: string,
  source: QemuGuest,
  destination: QemuGuest,
  mirror: Mirror,
): Promise<void> {
  await writesOn(source)
  const uris = { source: pair.sourceUri(), target: pair.targetUri() }
  await mirror.follow(destination, uris, { parameters: { 'downtime-limit': 2000, 'max-bandwidth': 0 } })
  t.notMatch(source.serial, /E/, 'no write of the guest failed')
  const memory = await compareMemory(await source.snapshot(), await destination.snapshot())
  // QEMU before 9 loses dirty pages of a running guest without KVM.
  if (qemu.tcgTracksDirtyPages) t.equal(memory.differingPages, 0, `${memory.pages} pages of memory are equal`)
  const images = ['source', 'destination'].map(name => join(folder, name))
  const compared = execFileSync('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'raw', ...images], {
    encoding: 'utf8',
  })
  t.match(compared, /Images are identical/)
  await destination.cont()
  await writesOn(destination)
  t.notMatch(destination.serial, /E/)
}

const finds: readonly (readonly [FoundQemu, CopyMode])[] = [
  [await systemQemu(), 'write-blocking'],
  [await qemu10(), 'background'],
]
for (const [{ qemu, skip: missing }, copyMode] of finds) {
  const skip = missing ?? QEMU_IMG_SKIP
  const name = qemu ? `QEMU ${qemu.major}` : 'QEMU'
  t.test(`${name}: a guest that writes moves with its disk (${copyMode}) over a WAN that breaks`, { skip }, async t => {
    const folder = t.testdir()
    await using pair = await Pair.start({ disks: true, effort: 2, tls: 'psk', wan: '200Mbit,10ms' })
    await using source = await guest(qemu!, folder, 'source')
    await using destination = await guest(qemu!, folder, 'destination')
    await writesOn(source)
    await exportDisk(destination, pair.diskFar)
    let cut = pair.wan.cutAfter('forward', MIB)
    const mirror = await Mirror.begin(source, pair.diskNear, { copyMode })
    for (const fault of [...FAULTS, ...FAULTS]) {
      await cut
      await pair.breakWanOnce(fault, fault === 'drop' ? 0 : 200)
      cut = pair.wan.cutAfter('forward', MIB / 2)
    }
    await mirror.ready()
    await arrives(t, pair, qemu!, folder, source, destination, mirror)
    t.same(
      pair.log.filter(({ event }) => event === 'relayed raw').map(({ fields }) => fields),
      [],
    )
  })
}

const { qemu, skip: missing } = await qemu10()
const skip = missing ?? QEMU_IMG_SKIP

t.test(
  'a mirror that is cancelled, one whose server fails, and a guest that dies',
  { skip: skip || NBD_SKIP },
  async t => {
    const folder = t.testdir()
    await using pair = await Pair.start({ disks: true, effort: 1 })
    await using source = await guest(qemu!, folder, 'source')
    await writesOn(source)
    const ends = (): number =>
      pair.log.filter(({ side, event }) => side === 'source' && event === 'disk transfer ended').length

    await t.test('cancelled', async t => {
      await using destination = await guest(qemu!, folder, 'destination')
      await exportDisk(destination, pair.diskFar)
      const mirror = await Mirror.begin(source, pair.diskNear, { ...BACKGROUND, speed: SLOW })
      await until('something to be copied', async () => ((await mirror.jobs())[0]?.offset ?? 0) > 0)
      await mirror.cancel()
      await until('the end of the transfer', () => ends() === 1)
      await writesOn(source)
      t.equal((await source.qmp.execute<{ running: boolean }>('query-status')).running, true)
    })

    for (const copyMode of ['background', 'write-blocking'] as const) {
      await t.test(`a server that fails (${copyMode})`, async t => {
        const failing = join(folder, `fail-${copyMode}`)
        const error = ['error-pwrite=ENOSPC', 'error-pwrite-rate=100%', `error-pwrite-file=${failing}`]
        await using kit = await Nbdkit.start('-e', 'disk', '--filter=error', 'memory', `${DISK_BYTES}`, ...error)
        rmSync(pair.diskFar, { force: true }) // a QEMU that has ended leaves its socket
        symlinkSync(kit.socket, pair.diskFar)
        const before = ends()
        const mirror = await Mirror.begin(source, pair.diskNear, { copyMode })
        await mirror.ready()
        await writesOn(source)
        writeFileSync(failing, '')
        t.match(await mirror.end(), /No space|Input\/output/, 'the job says so')
        await mirror.release()
        await until('the end of the transfer', () => ends() > before)
        await writesOn(source)
        rmSync(pair.diskFar)
      })
    }

    await t.test('and then it moves', async t => {
      await writesOn(source)
      await using destination = await guest(qemu!, folder, 'destination')
      await exportDisk(destination, pair.diskFar)
      const mirror = await Mirror.begin(source, pair.diskNear, BACKGROUND)
      await mirror.ready()
      const change = { id: 'mirror', type: 'mirror', 'copy-mode': 'write-blocking' }
      await source.qmp.execute('block-job-change', change) // as Proxmox VE does
      await arrives(t, pair, qemu!, folder, source, destination, mirror)
    })

    await t.test('a guest that dies', async t => {
      const before = ends()
      await using other = await guest(qemu!, folder, 'source')
      await using destination = await guest(qemu!, folder, 'destination')
      await exportDisk(destination, pair.diskFar)
      await writesOn(other)
      const mirror = await Mirror.begin(other, pair.diskNear, { ...BACKGROUND, speed: SLOW })
      await until('something to be copied', async () => ((await mirror.jobs())[0]?.offset ?? 0) > 0)
      process.kill(other.pid, 'SIGKILL')
      await until('the end of the transfer', () => ends() > before)
      await destination.qmp.execute('nbd-server-stop') // would wait for a client that hangs on
      t.equal(await destination.status(), 'inmigrate')
    })
  },
)

t.test('proxies that die: the job fails, the guest goes on', { skip }, async t => {
  const folder = t.testdir()
  await using source = await guest(qemu!, folder, 'source')
  await writesOn(source)
  for (const side of ['source', 'destination'] as const) {
    await using pair = await Pair.start({ disks: true, patienceMs: 1000 })
    await using destination = await guest(qemu!, folder, 'destination')
    await exportDisk(destination, pair.diskFar)
    const mirror = await Mirror.begin(source, pair.diskNear, { copyMode: 'write-blocking' })
    await mirror.ready()
    await writesOn(source)
    await pair.kill(side)
    t.type(await mirror.end(), 'string', `the ${side} proxy's death fails the job`)
    await mirror.release()
    await writesOn(source)
    t.notMatch(source.serial, /E/, 'and no write of the guest')
  }
})
