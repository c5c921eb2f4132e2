/** What QEMU itself writes of one guest, in its several ways: the same pages come out of each as input of template build. */
import { createHash } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { bootSector } from '../../scripts/harness/guest/boot-sector.ts'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { qemuVersions } from '../../scripts/harness/qemu/versions.ts'
import { PageInput } from '../../src/capture/pages.ts'

t.setTimeout(300_000)
const { qemus, skips } = await qemuVersions()
for (const skip of skips) t.comment(`skipped: ${skip}`)
const folder = temporaryFolder('inputs')
t.teardown(folder.remove)
const at = (name: string): string => join(folder.path, name)

/** Digests of the pages that are not one byte repeated: what a template may be made of. */
async function pagesOf(path: string): Promise<Set<string>> {
  const input = await PageInput.open(path)
  const found = new Set<string>()
  for await (const batch of input.pages()) {
    for (let i = 0; i < batch.count; i++) {
      const page = batch.pages[i]!
      if (!page.equals(Buffer.alloc(4096, page[0]!))) found.add(createHash('sha256').update(page).digest('hex'))
    }
    batch.release()
  }
  input.close()
  return found
}

/** The same of a file that is memory and nothing else. */
function pagesIn(memory: Buffer): Set<string> {
  const found = new Set<string>()
  for (let from = 0; from < memory.length; from += 4096) {
    const page = memory.subarray(from, from + 4096)
    if (!page.equals(Buffer.alloc(4096, page[0]!))) found.add(createHash('sha256').update(page).digest('hex'))
  }
  return found
}

const missing = (some: Set<string>, all: Set<string>): number => [...some].filter(digest => !all.has(digest)).length

for (const qemu of qemus) {
  t.test(`QEMU ${qemu.version}: stream and core of one guest`, async t => {
    await using guest = await QemuGuest.start({ qemu, memoryMb: 16, bootSector: bootSector() })
    await guest.waitSerial(/\n/)
    await guest.qmp.execute('stop')
    const names = { stream: `stream-${qemu.major}`, core: `core-${qemu.major}`, flat: `flat-${qemu.major}` }
    await guest.qmp.execute('pmemsave', { val: 0, size: 16 << 20, filename: at(names.flat) })
    await guest.qmp.execute('dump-guest-memory', { paging: false, protocol: `file:${at(names.core)}` })
    await guest.migrate(`exec:cat > ${at(names.stream)}`)
    t.ok(statSync(at(names.core)).size > 16 << 20)
    const [stream, core] = [await pagesOf(at(names.stream)), await pagesOf(at(names.core))]
    const memory = pagesIn(readFileSync(at(names.flat)))
    t.ok(memory.size > 100, `${memory.size} pages`)
    t.equal(missing(memory, core), 0, 'the core has all of memory')
    t.equal(missing(memory, stream), 0, 'and so has the stream')
    t.equal(missing(core, stream), 0, 'the core has no page that the stream has not')
  })

  const old = qemu.major < 9 && `QEMU ${qemu.version} has no mapped-ram`
  t.test(`QEMU ${qemu.version}: stream and mapped-ram file of one guest`, { skip: old }, async t => {
    await using guest = await QemuGuest.start({ qemu, memoryMb: 16, bootSector: bootSector() })
    await guest.waitSerial(/\n/)
    await guest.qmp.execute('stop')
    await guest.qmp.execute('pmemsave', { val: 0, size: 16 << 20, filename: at('flat') })
    await guest.migrate(`file:${at('mapped')}`, { capabilities: { 'mapped-ram': true } })
    const mapped = await pagesOf(at('mapped'))
    const memory = pagesIn(readFileSync(at('flat')))
    t.ok(memory.size > 100, `${memory.size} pages`)
    t.equal(missing(memory, mapped), 0, 'the file has all of memory')
    t.ok(mapped.size < memory.size + 200, `${mapped.size} with its ROMs`)
  })
}
