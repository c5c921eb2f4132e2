/**
 * What moving a running Debian guest with its disk costs: mirrored by QEMU 10, then its memory, over one link; past the pair,
 * and through it with the golden image in both stores and with nothing known. As root, after `make lab` (or its base image:
 * `node scripts/lab/lab.ts --base-only`). `make bench-migrate` has four of these cases in its run; here are all, one by one.
 *
 *   node scripts/measure/disks.ts [--link 100Mbit,40ms] [--cases direct,known,held,unknown,large,memory] [--effort N] [--out FILE]
 *
 *   direct     past the pair
 *   known      the image that the guest's disk began as is in both stores
 *   held       the same, and --set-memory holds all of it, so that none is read from a disk
 *   unknown    nothing is known
 *   large      nothing is known, and the pool (--pool-memory) holds all of the disk that is in use
 *   memory     the memory alone, nothing is known: its disk is shared
 *
 * Bytes are those of packets on the link, both ways. Seconds count from the start of the mirror; CPU is that of both proxies.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { qemu10 } from '../harness/qemu/versions.ts'
import { openWan } from '../harness/wan/open.ts'
import { knowsImage, moveWithDisk } from './compare/disk-move.ts'
import { DISK_GUEST, guestNamed, prepareGuest } from './compare/guests.ts'
import { DISK_CASES, type DiskRun } from './compare/results.ts'
import { diskTable } from './compare/table.ts'
import { IMAGE_ALONE, TemplateSets } from './compare/templates.ts'

const cache = fileURLToPath(new URL('../../.cache/compare', import.meta.url))

const { values } = parseArgs({
  options: {
    link: { type: 'string', default: '100Mbit,40ms' },
    cases: { type: 'string', default: DISK_CASES.join(',') },
    effort: { type: 'string', default: 'auto' },
    out: { type: 'string', default: join(cache, 'disks.json') },
  },
})
const wanted = values.cases.split(',')
const unknown = wanted.find(name => !DISK_CASES.some(known => known === name))
if (unknown !== undefined) throw new Error(`there is no case ${unknown}: ${DISK_CASES.join(', ')}`)
const { qemu, skip } = await qemu10()
if (!qemu) throw new Error(skip)
const report = (text: string) => console.error(`${(performance.now() / 1000).toFixed(0)} s  ${text}`)
const guest = await prepareGuest(guestNamed(DISK_GUEST), qemu, 'tcg', join(cache, 'guests'), report)
const cases = DISK_CASES.filter(name => wanted.includes(name))
const sets = new TemplateSets(join(cache, 'templates'), report)
const templates = cases.some(knowsImage) ? await sets.store(IMAGE_ALONE) : undefined
const results: DiskRun[] = []
await using wan = await openWan(values.link)
for (const disk of cases) {
  report(disk)
  const run = await moveWithDisk(guest, disk, wan, templates, values.effort)
  results.push({ guest: DISK_GUEST, profile: values.link, disk, round: 0, ...run })
  writeFileSync(values.out, `${JSON.stringify(results, null, 1)}\n`)
}
console.log(diskTable(results))
