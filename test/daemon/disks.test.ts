/** Disks through both daemons over loopback, with servers and clients that nobody here wrote. */
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { until } from '../helpers/until.ts'
import { Daemons } from './daemons.ts'
import { NBD_SKIP, Nbdkit, nbdcopy, nbdsh } from './nbd.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20
const RING_PAGES = 8192

/** A disk as guests have them: text, noise, repetitions and holes, and an end that is no whole block. */
function image(bytes: number): Buffer {
  const disk = Buffer.alloc(bytes)
  const noise = randomBytes(MIB)
  for (let at = 0; at < bytes; at += MIB) {
    const part = (at / MIB) % 4
    if (part === 0) noise.copy(disk, at, 0, Math.min(MIB, bytes - at))
    else if (part === 1) disk.fill(`line ${at} of a file that compresses well\n`, at, Math.min(bytes, at + MIB))
    else if (part === 2) randomBytes(Math.min(MIB / 2, bytes - at)).copy(disk, at + 512)
  }
  return disk
}

const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

t.test('a disk is pushed by nbdcopy, block for block, over several connections', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const disk = image(24 * MIB + 1536)
  writeFileSync(join(folder, 'near'), disk)
  writeFileSync(join(folder, 'far'), Buffer.alloc(disk.length))
  await using server = await Nbdkit.start('file', join(folder, 'far'))
  await using daemons = await Daemons.start({ disks: `unix:${server.socket}`, ringPages: RING_PAGES })
  await nbdcopy(join(folder, 'near'), `nbd://127.0.0.1:${daemons.diskPort}`, '--flush')
  t.equal(digest(readFileSync(join(folder, 'far'))), digest(disk))
  await until('both summaries', () => daemons.disksEnded.length === 2)
  console.log(daemons.disksEnded, daemons.told)
})
