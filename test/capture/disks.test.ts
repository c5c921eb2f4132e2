/** Disk images as inputs of template build: raw ones, and those that qemu-nbd reads for us. */
import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { zstdCompressSync } from 'node:zlib'
import t from 'tap'
import { DiskMirror } from '../../src/capture/disk-mirror.ts'
import { Input } from '../../src/capture/input.ts'
import { PageInput } from '../../src/capture/pages.ts'
import { ClientParser } from '../../src/nbd/client-stream.ts'
import { Dialogue } from '../../src/nbd/dialogue.ts'
import { ServerParser } from '../../src/nbd/server-stream.ts'
import type { NbdSink } from '../../src/nbd/sink.ts'
import { COMMAND } from '../../src/nbd/wire.ts'
import { pageferry } from '../template/cli-harness.ts'
import { failure, migration, PAGE, page, scratch, sha256 } from '../template/makers.ts'

t.setTimeout(590_000)
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
async function disk(name: string, snapshot?: string): Promise<{ blocks: number; sum: string }> {
  const input = await PageInput.open(join(folder, name), { snapshot })
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
    return { blocks, sum: sha256(Buffer.from(sums)) }
  } finally {
    input.close()
  }
}

t.test('images of every format give the same blocks', { skip }, async t => {
  const raw = await disk('disk.raw')
  t.equal(raw.blocks, DISK.length / PAGE)
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
  const { metadata, pages, inputs, totals } = JSON.parse(built.out)
  t.same(metadata, { minVms: 1, vms: 1 }, 'one image is enough')
  t.equal(pages, 401, 'its blocks without those of one repeated byte')
  t.match(inputs, [{ input: /golden.qcow2$/, takenFor: 'a qcow2 disk image', lengthBytes: DISK.length }])
  t.equal(totals.pages, DISK.length / PAGE)
  const raw = await pageferry('template', 'build', '--store', store, '--json', join(folder, 'disk.raw'))
  t.equal(JSON.parse(raw.out).digest, JSON.parse(built.out).digest, 'the same set as of the raw image')
  const encode = await pageferry('encode', join(folder, 'golden.qcow2'), '-o', join(folder, 'encoded'))
  t.match([encode.status, encode.err], [3, /a qcow2 disk image, which is no migration.*\nhint: templates can be built/])
})

t.test('what moving a disk would cost', { skip }, async t => {
  img('convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', 'moved.qcow2')
  const store = join(folder, 'known')
  await pageferry('template', 'build', '--store', store, put('half.raw', DISK.subarray(0, 201 * PAGE)))
  const { status, out, err } = await pageferry('estimate', join(folder, 'moved.qcow2'), '--store', store, '--json')
  t.equal(status, 0, err)
  const zeros = HOLE / PAGE
  t.match(JSON.parse(out), [
    {
      ...{ takenFor: 'a qcow2 disk image', carriedBy: 'mirror', endsEarly: false },
      pages: { zero: zeros, template: 201, opaque: 0 },
    },
  ])
  const [{ qemuBytes, degraded }] = JSON.parse(out)
  t.equal(degraded, undefined)
  // A mirror looks at 64 KiB at a time: 16 blocks beside the hole's edges are written, too.
  t.ok(Math.abs(qemuBytes - 417 * PAGE) < 500, `${qemuBytes} bytes`)
  const text = await pageferry('estimate', join(folder, 'moved.qcow2'), '--store', store)
  t.match(text.out, /moved.qcow2: taken for a qcow2 disk image\n/)
  t.match(text.out, /in a template set \D* 201 /)
})

t.test('the mirror that is estimated says all of a disk, each byte once, and is answered', async t => {
  const input = await Input.open(join(folder, 'disk.raw'))
  const mirror = new DiskMirror(PageInput.of(input))
  const made = Buffer.alloc(DISK.length, 0xee)
  let [said, covered, answered] = [Buffer.alloc(0), 0, 0]
  const writes: { start: number; end: number; offset: number }[] = []
  const raw: string[] = []
  const nothing = (): void => {}
  const sink: NbdSink = {
    ...{ begins: nothing, chunk: nothing, readData: nothing, readHole: nothing },
    request: (_start, _headEnd, { type, offset, lengthBytes }) => {
      if (type === COMMAND.WRITE_ZEROES) made.fill(0, offset, offset + lengthBytes)
      if (type === COMMAND.WRITE_ZEROES || type === COMMAND.WRITE) covered += lengthBytes
    },
    writeData: (start, end, { offset }) => void writes.push({ start, end, offset }),
    reply: () => answered++,
    raw: (direction, position, reason) => void raw.push(`${direction} ${position} ${reason}`),
  }
  const dialogue = new Dialogue()
  const [client, server] = [new ClientParser(sink, dialogue), new ServerParser(sink, dialogue)]
  const hear = (bytes: Uint8Array): void => server.push(bytes, 0, bytes.length)
  hear(mirror.answer())
  for await (const chunk of mirror.chunks()) {
    said = Buffer.concat([said, chunk])
    client.push(chunk, 0, chunk.length)
    hear(mirror.answer())
  }
  input.close()
  for (const { start, end, offset } of writes) said.copy(made, offset, start, end)
  t.same(raw, [])
  t.ok(made.equals(DISK))
  t.equal(covered, DISK.length)
  t.equal(dialogue.requests.count, 0, 'nothing is left to be answered')
  t.ok(answered > writes.length)
})

t.test('pages of several images and guests', { skip }, async t => {
  const one = put('one.raw', Buffer.concat([first, ...BLOCKS.slice(0, 50)]))
  const two = put('two.raw', Buffer.concat([first, ...BLOCKS.slice(30, 80)]))
  const guest = put('guest', migration([...BLOCKS.slice(40, 60), ...BLOCKS.slice(70, 100)]))
  const store = join(folder, 'several')
  for (const [minVms, pages] of [
    ['1', 101],
    [undefined, 21 + 20],
    ['3', 10],
  ] as const) {
    const rule = minVms === undefined ? [] : ['--min-vms', minVms]
    const built = await pageferry('template', 'build', '--store', store, '--json', ...rule, one, two, guest)
    t.equal(built.status, 0, built.err)
    t.match(JSON.parse(built.out), { pages }, `in ${minVms ?? 'two'} or more`)
  }
  const text = await pageferry('template', 'build', '--store', store, one, two, guest)
  t.match(text.out, /^input {4}.*one.raw: taken for a disk image$/m)
  t.match(text.out, /^input {4}.*guest: taken for QEMU's main stream$/m)
  t.match(text.out, /^inputs {3}1 VM and 2 disks, /m)
})

t.test('snapshots within an image', { skip }, async t => {
  img('convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', 'snapped.qcow2')
  for (const name of ['before', 'with, comma', 'snapshot.odd']) img('snapshot', '-c', name, 'snapped.qcow2')
  put('later2', page(8000))
  execFileSync('qemu-io', ['-f', 'qcow2', '-c', `write -s later2 ${PAGE} ${PAGE}`, 'snapped.qcow2'], { cwd: folder })
  const now = await disk('snapped.qcow2')
  const before = await disk('disk.raw')
  t.not(now.sum, before.sum)
  for (const name of ['before', '1', 'with, comma', 'snapshot.odd']) {
    t.equal((await disk('snapped.qcow2', name)).sum, before.sum, name)
  }
  const at = join(folder, 'snapped.qcow2')
  const store = join(folder, 'snaps')
  const built = await pageferry('template', 'build', '--store', store, '--json', '--snapshot', 'before', at)
  t.match(JSON.parse(built.out), { inputs: [{ takenFor: 'a qcow2 disk image, its snapshot before' }] })
  const none = await PageInput.open(at, { snapshot: 'none' }).catch(caught => caught)
  t.match(none, { code: 'IO', what: /snapshot/i })
  t.equal(await failure(() => PageInput.open(join(folder, 'disk.raw'), { snapshot: 'before' })), 'USAGE')
})

t.test('what an image stands on', { skip }, async t => {
  const open = async (name: string): Promise<string> => {
    const input = await PageInput.open(join(folder, name))
    input.close()
    return input.takenFor
  }
  img('convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', 'ground.qcow2')
  img('create', '-q', '-f', 'qcow2', '-b', 'ground.qcow2', '-F', 'qcow2', 'middle.qcow2')
  img('create', '-q', '-f', 'qcow2', '-b', join(folder, 'middle.qcow2'), '-F', 'qcow2', 'upper.qcow2')
  t.equal(
    await open('upper.qcow2'),
    `a qcow2 disk image, on ${join(folder, 'middle.qcow2')}, on ${join(folder, 'ground.qcow2')}`,
  )
  /** An image that says it stands on this. */
  const on = (name: string, backing: string): string => {
    img('create', '-q', '-f', 'qcow2', '-u', '-b', backing, '-F', 'raw', name, '1M')
    return name
  }
  const wrong = (name: string): Promise<string | undefined> => failure(() => open(name))
  t.match(await wrong(on('net.qcow2', 'nbd:unix:/run/secret')), /^CAPTURE_FORMAT/, 'no file')
  t.match(await wrong(on('json.qcow2', 'json:{"driver":"raw"}')), /^CAPTURE_FORMAT/)
  on('round.qcow2', 'again.qcow2')
  on('again.qcow2', 'round.qcow2')
  t.equal(await wrong('round.qcow2'), 'CAPTURE_FORMAT at 8', 'a chain that comes back')
  execFileSync('mkfifo', [join(folder, 'pipe')])
  t.equal(await wrong(on('pipe.qcow2', 'pipe')), 'CAPTURE_FORMAT at 0', 'a FIFO is not waited for')
  img('create', '-q', '-f', 'qcow2', '-o', 'data_file=data.raw', 'outside.qcow2', '1M')
  t.equal(await wrong('outside.qcow2'), 'CAPTURE_FORMAT at 72', 'data elsewhere')
  img('create', '-q', '-f', 'qcow2', 'huge.qcow2', '1P')
  t.match(await wrong('huge.qcow2'), /^LIMIT_EXCEEDED/, 'a petabyte of nothing')
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
