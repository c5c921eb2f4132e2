/** What QEMU itself writes of one guest, in its several ways: the same pages come out of each as input of template build. */
import { spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, openSync, readFileSync, statSync, unlinkSync, writeFileSync, writeSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { bootSector } from '../../scripts/harness/guest/boot-sector.ts'
import { endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { readPcap, reassemble } from '../../scripts/harness/qemu/packets.ts'
import { qemuVersions } from '../../scripts/harness/qemu/versions.ts'
import { Input } from '../../src/capture/input.ts'
import { readOneChannel } from '../../src/capture/one-channel.ts'
import { PageInput, type PageInputOptions } from '../../src/capture/pages.ts'
import { buildSet } from '../../src/store/build.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { until } from '../helpers/until.ts'

t.setTimeout(590_000)
const { qemus, skips } = await qemuVersions()
for (const skip of skips) t.comment(`skipped: ${skip}`)
const folder = temporaryFolder('inputs')
t.teardown(folder.remove)
const at = (name: string): string => join(folder.path, name)

/** Digests of the pages that are not one byte repeated: what a template may be made of. */
async function pagesOf(path: string, options: PageInputOptions = {}): Promise<Set<string>> {
  const input = await PageInput.open(path, options)
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

/** What an input lacks of a guest's memory, and has besides. */
interface Difference {
  readonly lacks: number
  readonly has: number
}

function compare(memory: Set<string>, found: Set<string>): Difference {
  return {
    lacks: [...memory].filter(digest => !found.has(digest)).length,
    has: [...found].filter(digest => !memory.has(digest)).length,
  }
}

/** Digest of the template set of an input's pages. */
async function setOf(path: string): Promise<string> {
  const store = new TemplateStore(`${path}.store`)
  const { digest } = await buildSet(
    [await PageInput.open(path)],
    { minVms: 1, maxBytes: undefined, memoryBytes: 1 << 28 },
    store,
  )
  return digest
}

const SAVE_HEADER_LENGTH = 92
/** Where libvirt's stream begins: behind its header, a description and 64 KiB for a longer one. */
const SAVE_STREAM_AT = SAVE_HEADER_LENGTH + 66_000

/** What libvirt writes before the stream. @param format 0: raw; 6: sparse */
function saveHeader(format: number): Buffer {
  const header = Buffer.alloc(SAVE_STREAM_AT)
  header.write('LibvirtQemudSave', 'latin1')
  header.writeUInt32LE(2, 16)
  header.writeUInt32LE(SAVE_STREAM_AT - SAVE_HEADER_LENGTH, 20)
  header.writeUInt32LE(format, 28)
  return header
}

/** Bytes that came to a port, by a capture that may still be written: a packet by half, one that comes later. */
function capturedTo(port: number, path: string): number {
  try {
    const streams = [...reassemble(readPcap(readFileSync(path)))]
    return streams.find(([key]) => key.endsWith(`:${port}`))?.[1].length ?? 0
  } catch {
    return 0
  }
}

/** Has tcpdump watch a migration to a socket that only takes bytes. @returns why there is no capture; undefined: it is there */
async function captureMigration(guest: QemuGuest, path: string): Promise<string | undefined> {
  let length = 0
  await using sink = net.createServer(socket => socket.on('data', chunk => (length += chunk.length)))
  sink.listen(0, '127.0.0.1')
  await once(sink, 'listening')
  const { port } = sink.address() as net.AddressInfo
  const watch = ['-i', 'lo', '-n', '-s', '262144', '-B', '65536', '-U', '--immediate-mode', '-Z', 'root', '-w', path]
  const tcpdump = spawnOwned(['tcpdump', ...watch, 'tcp', 'port', `${port}`], { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  tcpdump.stderr!.setEncoding('utf8').on('data', (text: string) => (said += text))
  try {
    await until('tcpdump', () => said.includes('listening on') || tcpdump.exitCode !== null || !tcpdump.pid)
    if (tcpdump.exitCode !== null || !tcpdump.pid) return said.trim() || 'tcpdump cannot be started'
    await guest.migrate(`tcp:127.0.0.1:${port}`)
    await until('all that was sent in the capture', () => capturedTo(port, path) === length)
    return undefined
  } finally {
    await endChild(tcpdump)
  }
}

for (const qemu of qemus) {
  t.test(`QEMU ${qemu.version}: one guest in every form that it writes`, async t => {
    await using guest = await QemuGuest.start({ qemu, memoryMb: 16, bootSector: bootSector() })
    await guest.waitSerial(/\n/)
    await guest.qmp.execute('stop')
    const at = (form: string): string => join(folder.path, `${form}-${qemu.major}`)
    const dump = (form: string, format?: string): Promise<unknown> =>
      guest.qmp.execute('dump-guest-memory', { paging: false, protocol: `file:${at(form)}`, ...(format && { format }) })
    await guest.qmp.execute('pmemsave', { val: 0, size: 16 << 20, filename: at('flat') })
    await dump('core')
    await dump('kdump', 'kdump-zlib')
    if (qemu.major >= 9) await dump('kdump-raw', 'kdump-raw-zlib')
    await guest.migrate(`exec:cat > ${at('stream')}`)

    const memory = pagesIn(readFileSync(at('flat')))
    t.ok(memory.size > 100, `${memory.size} pages`)
    t.same(await pagesOf(at('flat'), { as: 'memory' }), memory, 'flat memory')
    const core = await pagesOf(at('core'))
    t.equal(compare(memory, core).lacks, 0, 'the core has all of memory')
    const stream = await pagesOf(at('stream'))
    t.equal(compare(core, stream).lacks, 0, 'the stream has all of the core')
    t.ok(compare(core, stream).has < 50, 'and little besides: what is no memory of the machine')

    // What a migration sends, in every shape in which an operator may have it.
    const again = async (): Promise<QemuGuest> => {
      // A QEMU migrates a guest at rest once: each time another one, that has the guest from the stream.
      const incoming = `exec:cat ${at('stream')}`
      const twin = await QemuGuest.start({ ...guest.options, paused: true, incoming })
      await twin.waitStatus(['paused', 'prelaunch'])
      return twin
    }
    await using captured = await again()
    const lacks = await captureMigration(captured, at('pcap'))
    if (lacks !== undefined) t.pass('a capture of a migration', { skip: lacks })
    writeFileSync(at('save'), Buffer.concat([saveHeader(0), readFileSync(at('stream'))]))
    const shapes = ['save', ...(lacks === undefined ? ['pcap'] : [])]
    if (qemu.major >= 9) {
      await using mapped = await again()
      await mapped.migrate(`file:${at('mapped-ram')}`, { capabilities: { 'mapped-ram': true } })
      shapes.push('mapped-ram')
    }
    const set = await setOf(at('stream'))
    for (const shape of shapes) {
      t.same(await pagesOf(at(shape)), stream, `${shape} has the pages of the stream`)
      t.equal(await setOf(at(shape)), set, `${shape}: so it makes the same set`)
    }

    t.same(await pagesOf(at('kdump')), core, 'the flattened kdump file has what the core has')
    if (qemu.major >= 9) t.same(await pagesOf(at('kdump-raw')), core, 'and so has the one that is not')
    const deflated = spawnSync('makedumpfile', ['-R', at('deflated')], { input: readFileSync(at('kdump')) })
    if (deflated.error) t.comment('not compared with what makedumpfile makes of it: it is not installed')
    else t.same(await pagesOf(at('deflated')), core, 'and so has what makedumpfile makes of it')

    // A volume of Proxmox VE: the stream, and whatever was there before.
    writeFileSync(
      at('volume'),
      Buffer.concat([readFileSync(at('stream')), randomBytes(3 << 20), readFileSync(at('stream'))]),
    )
    t.same(await pagesOf(at('volume')), stream, 'a volume')
    const notes: string[] = []
    let length = 0
    const volume = await Input.open(at('volume'))
    for await (const chunk of readOneChannel(volume, { estimate: true, note: text => notes.push(text) }))
      length += chunk.length
    t.same([length, notes.length], [statSync(at('stream')).size, 1], 'its end is found to the byte')
  })

  const old = qemu.major < 9 && `QEMU ${qemu.version} has no mapped-ram`
  t.test(`QEMU ${qemu.version}: mapped-ram files, with and without something before`, { skip: old }, async t => {
    for (const startsAt of [0, SAVE_STREAM_AT]) {
      await using guest = await QemuGuest.start({ qemu, memoryMb: 16, bootSector: bootSector() })
      await guest.waitSerial(/\n/)
      await guest.qmp.execute('stop')
      await guest.qmp.execute('pmemsave', { val: 0, size: 16 << 20, filename: at('flat') })
      await guest.migrate(`file:${at('mapped')},offset=${startsAt}`, { capabilities: { 'mapped-ram': true } })
      if (startsAt > 0) {
        // As libvirt 11 has QEMU write a save image of the format `sparse`.
        const file = openSync(at('mapped'), 'r+')
        writeSync(file, saveHeader(6), 0, SAVE_HEADER_LENGTH, 0)
        closeSync(file)
      }
      const mapped = await pagesOf(at('mapped'))
      const memory = pagesIn(readFileSync(at('flat')))
      t.ok(memory.size > 100, `${memory.size} pages`)
      t.equal(compare(memory, mapped).lacks, 0, 'the file has all of memory')
      t.ok(mapped.size < memory.size + 200, `${mapped.size} with its ROMs`)
      unlinkSync(at('mapped'))
    }
  })
}
