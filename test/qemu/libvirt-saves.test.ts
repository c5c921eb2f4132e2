/**
 * Save images that a real libvirt writes of one guest, in every format that it has: the same pages come out of each. A
 * libvirtd of its own for each format, in namespaces of its own, for the format is a setting of the daemon's.
 */
import { execFile, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'
import { bootSector } from '../../scripts/harness/guest/boot-sector.ts'
import { endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { PageInput, type PageInputOptions } from '../../src/capture/pages.ts'

const run = promisify(execFile)
const HOST = fileURLToPath(new URL('../../scripts/libvirt/host.sh', import.meta.url))
/** Those of libvirt 9, zstd of a later one, sparse of libvirt 11. */
const FORMATS = ['raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse'] as const
/** A format with a program that packs. */
const withoutTool = (format: string): boolean => format === 'raw' || format === 'sparse'
const START_MS = 60_000
const MEMORY_MB = 16

t.setTimeout(600_000)
const folder = temporaryFolder('saves')
t.teardown(folder.remove)

/** Why there can be no libvirt here; undefined: there can. */
function lacking(): string | undefined {
  if (process.getuid?.() !== 0) return 'libvirt in namespaces of its own takes root'
  const path = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` }
  for (const tool of ['libvirtd', 'virsh', 'qemu-system-x86_64']) {
    if (spawnSync(tool, ['--version'], { env: path }).error) return `${tool} is not installed`
  }
  if (spawnSync('unshare', ['--mount', '--net', '--pid', '--fork', 'true']).status !== 0) return 'no namespaces here'
  return undefined
}

function domainXml(disk: string): string {
  return `<domain type='qemu'>
  <name>guest</name><memory unit='MiB'>${MEMORY_MB}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='fd'/></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='${disk}'/><target dev='fda'/></disk>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>`
}

/** One guest, saved by a libvirt with this setting, and its memory at that moment. */
async function save(format: string): Promise<{ image: string; flat: string }> {
  const [image, flat] = [join(folder.path, `save.${format}`), join(folder.path, `flat.${format}`)]
  const [disk, xml] = [join(folder.path, 'floppy'), join(folder.path, 'guest.xml')]
  const floppy = Buffer.alloc(1_474_560)
  floppy.set(bootSector())
  writeFileSync(disk, floppy)
  writeFileSync(xml, domainXml(disk))
  // Its network is its own too: nobody else reaches the port on which its libvirtd takes connections.
  const namespaces = ['--mount', '--uts', '--pid', '--net', '--mount-proc', '--fork', '--kill-child']
  const uuid = '3c1b2fd0-7d6c-4b86-9a3e-5f0f3a4f1c78'
  const script = 'ip link set lo up && exec sh "$@"'
  const conf = `save_image_format = "${format}"`
  const child = spawnOwned(
    ['unshare', ...namespaces, 'sh', '-c', script, 'sh', HOST, 'saves', uuid, '127.0.0.1', conf],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  )
  let said = ''
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-2000)
  })
  try {
    const virsh = async (...args: string[]): Promise<string> => {
      const init = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'latin1').trim().split(' ')[0]
      const uri = `qemu:///system?socket=/proc/${init}/root/run/libvirt/libvirt-sock`
      return (await run('virsh', ['--quiet', '--connect', uri, ...args], { timeout: 120_000 })).stdout
    }
    // virsh has no word for "as soon as there is a daemon".
    for (const untilMs = performance.now() + START_MS; ; await sleep(100)) {
      if (child.exitCode !== null) throw new Error(`libvirtd ended with ${child.exitCode}: ${said}`)
      const up = await virsh('list').then(
        () => true,
        (error: Error) => performance.now() > untilMs && Promise.reject(error),
      )
      if (up) break
    }
    await virsh('create', xml)
    const monitor = (command: object): Promise<string> =>
      virsh('qemu-monitor-command', 'guest', JSON.stringify(command))
    await virsh('suspend', 'guest')
    await monitor({ execute: 'pmemsave', arguments: { val: 0, size: MEMORY_MB << 20, filename: flat } })
    await virsh('save', 'guest', image)
    return { image, flat }
  } finally {
    await endChild(child, 500)
  }
}

/** Digests of the pages that are not one byte repeated. */
async function pagesOf(
  path: string,
  options: PageInputOptions = {},
): Promise<{ takenFor: string; pages: Set<string> }> {
  const input = await PageInput.open(path, options)
  const pages = new Set<string>()
  for await (const batch of input.pages()) {
    for (let i = 0; i < batch.count; i++) {
      const page = batch.pages[i]!
      if (!page.equals(Buffer.alloc(4096, page[0]!))) pages.add(createHash('sha256').update(page).digest('hex'))
    }
    batch.release()
  }
  input.close()
  return { takenFor: input.takenFor, pages }
}

const skip = lacking() ?? false
if (skip) t.comment(`skipped: ${skip}`)
for (const format of FORMATS) {
  t.test(`virsh save as ${format}`, { skip }, async t => {
    if (!withoutTool(format) && spawnSync(format, ['--version']).error) {
      t.comment(`skipped: ${format} is not installed, and libvirt packs with it`)
      return
    }
    const made = await save(format).catch((error: Error) => error)
    if (made instanceof Error) {
      // It is known by what libvirt says of it: nothing else tells what a build can do.
      t.match(made.message, /Invalid save image format/, 'saved, or a format that this libvirt does not know')
      t.comment(`skipped: this libvirt has no format ${format}`)
      return
    }
    const { image, flat } = made
    const saved = await pagesOf(image)
    const { pages: memory } = await pagesOf(flat, { as: 'memory' })
    const inside = format === 'sparse' ? 'a mapped-ram file' : "QEMU's main stream"
    t.equal(saved.takenFor, `a libvirt save image${withoutTool(format) ? '' : `, ${format}`}: ${inside}`)
    t.ok(memory.size > 0, `${memory.size} pages`)
    t.same(
      [...memory].filter(digest => !saved.pages.has(digest)),
      [],
      'the image has all of memory',
    )
    t.ok(saved.pages.size < memory.size + 200, `${saved.pages.size} pages with its ROMs`)
  })
}
