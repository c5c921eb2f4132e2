/**
 * How long a guest that stands still waits for its disk, while the memory of another guest takes the link: real QEMUs, a
 * mirror that is ready, `stop`, and block-job-cancel, which writes what is dirty and flushes. Figures, no verdicts.
 *
 *   node test/qemu/disk-switchover.ts                                   20 Mbit/s, 20 ms
 *   node test/qemu/disk-switchover.ts --link 100Mbit,40ms --rounds 30
 */
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { type QemuVersion, qemu10 } from '../../scripts/harness/qemu/versions.ts'
import { until } from '../helpers/until.ts'
import { Pair } from './pair.ts'

const MIB = 1 << 20
const DISK_BYTES = 16 * MIB
const { values } = parseArgs({
  options: { link: { type: 'string', default: '20Mbit,20ms' }, rounds: { type: 'string', default: '15' } },
})
const rounds = Number(values.rounds)

/** A guest that does nothing, with this in its memory, and a disk. */
async function guest(qemu: QemuVersion, folder: string, name: string, memory?: string): Promise<QemuGuest> {
  const bios = new Uint8Array(65536)
  bios.set([0xfa, 0xf4, 0xeb, 0xfd], 65520) // at the reset vector: cli, hlt, again
  writeFileSync(join(folder, 'bios'), bios)
  writeFileSync(join(folder, name), Buffer.alloc(DISK_BYTES))
  return await QemuGuest.start({
    ...{ qemu, name, machine: 'pc-i440fx-7.2', memoryMb: 128, bootSector: new Uint8Array(512), paused: true },
    ...(/far/.test(name) ? { incoming: 'defer' } : {}),
    args: [
      ...['-bios', join(folder, 'bios')],
      ...['-blockdev', `driver=raw,node-name=disk,file.driver=file,file.filename=${join(folder, name)}`],
      ...['-device', 'virtio-blk-pci,drive=disk,id=vd0'],
      ...(memory ? ['-device', `loader,file=${memory},addr=${2 * MIB},force-raw=on`] : []),
    ],
  })
}

/** Milliseconds from block-job-cancel of a mirror that is ready to its end. @param dirtyBytes written just before */
async function completes({ qmp }: QemuGuest, dirtyBytes: number): Promise<number> {
  const jobs = async () => (await qmp.execute('query-block-jobs')) as unknown as readonly { readonly ready?: boolean }[]
  await qmp.execute('blockdev-mirror', { 'job-id': 'mirror', device: 'disk', target: 'remote', sync: 'none' })
  await until('the mirror to be ready', async () => (await jobs())[0]?.ready)
  if (dirtyBytes > 0) {
    const line = `qemu-io -d /machine/peripheral/vd0/virtio-backend "write -s ${noise} 0 ${dirtyBytes}"`
    await qmp.execute('human-monitor-command', { 'command-line': line })
  }
  const beganMs = performance.now()
  await qmp.execute('block-job-cancel', { device: 'mirror' })
  while ((await jobs()).length > 0) await sleep(1)
  return performance.now() - beganMs
}

const folder = mkdtempSync(join(tmpdir(), 'pageferry-switchover-'))
const noise = join(folder, 'noise')
try {
  const { qemu, skip } = await qemu10()
  if (!qemu) throw new Error(skip)
  writeFileSync(noise, randomBytes(100 * MIB))
  await using pair = await Pair.start({ disks: true, effort: 'auto', tls: 'psk', wan: values.link })
  await using near = await guest(qemu, folder, 'near')
  await using far = await guest(qemu, folder, 'far')
  await using other = await guest(qemu, folder, 'other', noise)
  await using otherFar = await guest(qemu, folder, 'other-far')
  await far.qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: pair.diskFar } } })
  const exported = { type: 'nbd', id: 'export', 'node-name': 'disk', name: 'disk', writable: true }
  await far.qmp.execute('block-export-add', exported)
  const server = { type: 'unix', path: pair.diskNear }
  const remote = { 'node-name': 'remote', driver: 'raw', file: { driver: 'nbd', server, export: 'disk' } }
  await near.qmp.execute('blockdev-add', remote)
  const rows: string[] = []
  const measure = async (name: string, dirtyBytes: number): Promise<void> => {
    const all: number[] = []
    for (let i = 0; i < rounds; i++) {
      all.push(await completes(near, dirtyBytes))
      await sleep(50 + 20 * (i % 7)) // not in step with what the other guest sends
    }
    all.sort((a, b) => a - b)
    const at = (part: number): string => all[Math.floor(part * (all.length - 1))]!.toFixed(0)
    rows.push(`${name}: median ${at(0.5)} ms, 90 % ${at(0.9)}, least ${at(0)}, most ${at(1)}`)
  }
  await measure('alone, nothing dirty', 0)
  await otherFar.listen(pair.targetUri())
  await other.startMigration(pair.sourceUri(), { parameters: { 'downtime-limit': 1 } })
  await sleep(2000) // the link is busy, the effort settled
  await measure('beside memory, nothing dirty', 0)
  await measure('beside memory, 64 KiB dirty', 65_536)
  const { status } = (await other.qmp.execute('query-migrate')) as { status: string }
  console.log(`${values.link}, ${rounds} rounds; the other guest was ${status} all the time`)
  for (const row of rows) console.log(row)
  await other.qmp.execute('migrate_cancel')
} finally {
  rmSync(folder, { recursive: true })
}
