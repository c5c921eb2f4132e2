/** Disk images as inputs of template build: raw ones, and those that qemu-nbd reads for us. */
import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { zstdCompressSync } from 'node:zlib'
import t from 'tap'
import { PageInput } from '../../src/capture/pages.ts'
import { pageferry } from '../template/cli-harness.ts'
import { failure, PAGE, page, scratch, sha256 } from '../template/makers.ts'

t.setTimeout(120_000)
const missing = ['qemu-img', 'qemu-nbd'].filter(tool => spawnSync(tool, ['--version']).status !== 0)
const skip = missing.length > 0 && `${missing.join(', ')}: not installed`
const { folder, put } = scratch(t.teardown)
const img = (...args: string[]): void => void execFileSync('qemu-img', args, { cwd: folder, stdio: 'ignore' })

/** A disk with a boot sector, 300 blocks, a hole of 8 MiB, and 100 blocks more. */
const BLOCKS = Array.from({ length: 400 }, (_, i) => page(i + 1))
const HOLE = 8 << 20
const first = Buffer.alloc(PAGE, 9)
first[510] = 0x55
first[511] = 0xaa
const DISK = Buffer.concat([first, ...BLOCKS.slice(0, 300), Buffer.alloc(HOLE), ...BLOCKS.slice(300)])
put('disk.raw', DISK)

/** SHA-256 of all the blocks that an input gives, how many there are, and what was said. */
async function disk(name: string): Promise<{ blocks: number; sum: string; notes: string[] }> {
  const notes: string[] = []
  const input = await PageInput.open(join(folder, name), { note: ({ text }) => notes.push(text) })
  try {
    let sums = ''
    let blocks = 0
    // Twice, as counting and copying do; the first time not to the end.
    for await (const batch of input.pages()) {
      batch.release()
      break
    }
    for await (const batch of input.pages()) {
      sums += sha256(batch.bytes.subarray(0, batch.count * PAGE))
      blocks += batch.count
      batch.release()
    }
    return { blocks, sum: sha256(Buffer.from(sums)), notes }
  } finally {
    input.close()
  }
}

t.test('images of every format give the same blocks', { skip }, async t => {
  const raw = await disk('disk.raw')
  t.equal(raw.blocks, DISK.length / PAGE)
  t.match(raw.notes, [/taken for a disk image/])
  for (const [format, ...options] of [['qcow2'], ['qcow2', '-c'], ['vmdk'], ['vdi'], ['vhdx']] as const) {
    const name = `disk.${format}`
    img('convert', '-f', 'raw', '-O', format, ...options, 'disk.raw', name)
    t.same(await disk(name), raw, `${format} ${options}`)
  }

  // What was written later lies in an overlay.
  img('convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', 'base.qcow2')
  img('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'top.qcow2')
  const later = Buffer.concat([page(7000), page(7001)])
  put('later', later)
  execFileSync('qemu-io', ['-f', 'qcow2', '-c', `write -s later ${5 * PAGE} ${later.length}`, 'top.qcow2'], {
    cwd: folder,
  })
  const changed = Buffer.from(DISK)
  changed.set(later, 5 * PAGE)
  put('changed.raw', changed)
  t.equal((await disk('top.qcow2')).sum, (await disk('changed.raw')).sum, 'a backing chain')
})

t.test('a template of a golden image', { skip }, async t => {
  img('convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', 'golden.qcow2')
  const store = join(folder, 'store')
  const built = await pageferry('template', 'build', '--store', store, '--json', join(folder, 'golden.qcow2'))
  t.equal(built.status, 0, built.err)
  const { metadata, pages, notes, totals } = JSON.parse(built.out)
  t.same(metadata, { minVms: 1, vms: 1 }, 'one image is enough')
  t.equal(pages, 401, 'its blocks without those of one repeated byte')
  t.match(notes, [{ text: /taken for a disk image/ }])
  t.equal(totals.pages, DISK.length / PAGE)
  const raw = await pageferry('template', 'build', '--store', store, '--json', join(folder, 'disk.raw'))
  t.equal(JSON.parse(raw.out).digest, JSON.parse(built.out).digest, 'the same set as of the raw image')
  const estimate = await pageferry('estimate', join(folder, 'golden.qcow2'))
  t.match(
    [estimate.status, estimate.err],
    [3, /a qcow2 disk image, which is no migration.*\nhint: templates can be built/],
  )
})

t.test('images that cannot be read', { skip }, async t => {
  img('convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', 'good.qcow2')
  const bytes = readFileSync(join(folder, 'good.qcow2'))
  const bad = Buffer.from(bytes)
  bad.writeUInt32BE(99, 4)
  put('version.qcow2', bad)
  const error = await PageInput.open(join(folder, 'version.qcow2')).catch(caught => caught)
  t.match(error, { code: 'IO', what: /cannot read .*version/i, action: /qemu-img check/ })
  put('packed.zst', zstdCompressSync(bytes))
  t.match(await PageInput.open(join(folder, 'packed.zst')).catch(caught => caught), {
    code: 'CAPTURE_FORMAT',
    what: /not as a file/,
  })
  img('create', '-q', '-f', 'qcow2', '-u', '-b', 'nowhere.qcow2', '-F', 'qcow2', 'orphan.qcow2', '1M')
  t.equal(await failure(() => PageInput.open(join(folder, 'orphan.qcow2'))), 'IO', 'a chain that is broken')

  // A table of blocks that leads nowhere: found while reading.
  const torn = Buffer.from(bytes)
  const tableAt = Number(torn.readBigUInt64BE(40))
  torn.writeBigUInt64BE(0x8000_0000_0001_0200n, tableAt) // not at a cluster
  put('torn.qcow2', torn)
  t.match(await failure(() => disk('torn.qcow2')), /^IO/)

  const path = process.env.PATH
  process.env.PATH = folder
  t.teardown(() => {
    process.env.PATH = path
  })
  const without = await PageInput.open(join(folder, 'good.qcow2')).catch(caught => caught)
  t.match(without, { code: 'IO', what: /qemu-nbd is not installed/, action: /qemu-utils/ })
})

t.test('a server that ends in the middle', { skip }, async t => {
  const path = put('fake.qcow2', Buffer.from('QFI\xfb'.padEnd(600, '\0'), 'latin1'))
  // Greets as an NBD server of 16 MiB and goes away.
  const fake = join(folder, 'bin')
  execFileSync('mkdir', [fake])
  const script = `#!${process.execPath}
const at = process.argv.find(arg => arg.startsWith('--socket=')).slice(9)
require('node:net').createServer(socket => {
  const hello = Buffer.alloc(18)
  hello.write('NBDMAGICIHAVEOPT', 'latin1')
  hello[17] = 3
  socket.write(hello)
  socket.once('data', () => {
    const size = Buffer.alloc(10)
    size.writeBigUInt64BE(16n << 20n)
    socket.write(size)
    socket.once('data', () => process.exit(0))
  })
}).listen(at)
`
  writeFileSync(join(fake, 'qemu-nbd'), script, { mode: 0o755 })
  writeFileSync(join(fake, 'package.json'), '{"type":"commonjs"}')
  const before = process.env.PATH
  process.env.PATH = `${fake}:${before}`
  t.teardown(() => {
    process.env.PATH = before
  })
  const input = await PageInput.open(path)
  const error = await (async () => {
    for await (const batch of input.pages()) batch.release()
  })().catch(caught => caught)
  input.close()
  t.match(error, { code: 'IO', what: /qemu-nbd went away/ })
})
