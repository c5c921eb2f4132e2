/** Kernels within disk images: made-up ones in made-up images, and one in a file system of mke2fs. */
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import t from 'tap'
import { KernelFinder, type PackedKernel, unpackKernel } from '../../src/capture/kernels-in-image.ts'
import { KERNEL_PAYLOAD_MAX, KERNELS_AT_ONCE, KERNELS_MAX, KERNELS_TOLD_MAX } from '../../src/capture/limits.ts'
import { PageInput } from '../../src/capture/pages.ts'
import { stopwatch } from '../helpers/own-time.ts'
import { pageferry } from '../template/cli-harness.ts'
import { elfCore, failure, PAGE, page, random, scratch } from '../template/makers.ts'
import { kernel, program, withLength } from './kernel-maker.ts'

t.setTimeout(590_000)
const { folder, put } = scratch(t.teardown)
const VERSION = '6.1.0-50-cloud-amd64'
const range = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i)
const IDS = range(1, 40)
const PROGRAM = program(IDS)
const ZSTD = kernel(withLength(zstdCompressSync(PROGRAM), PROGRAM), { version: VERSION })
const GZIP = kernel(gzipSync(PROGRAM), { version: VERSION })
/** Long enough that its file has several blocks, each different. */
const LOOSE = kernel(withLength(PROGRAM, PROGRAM), { version: VERSION })

/** A boot sector, and the parts each at the next block of so many bytes, with blocks of their own before and behind. */
function image(parts: readonly Buffer[], block = PAGE): Buffer {
  const boot = page(1000)
  boot.writeUInt16LE(0xaa55, 510)
  const pieces = [boot, page(1001)]
  for (const part of parts) pieces.push(part, Buffer.alloc((block - (part.length % block)) % block))
  const bytes = Buffer.concat([...pieces, page(1002)])
  return Buffer.concat([bytes, Buffer.alloc((PAGE - (bytes.length % PAGE)) % PAGE)])
}

interface Reading {
  /** Numbers of the kernels' pages, those of the image left out. */
  readonly ids: number[]
  readonly kernels: PageInput['kernels']
  readonly notes: string[]
  readonly pages: number
}

async function read(bytes: Buffer, name = 'disk.raw', kernels = true): Promise<Reading> {
  const notes: string[] = []
  const input = await PageInput.open(put(name, bytes), { kernels, note: ({ text }) => notes.push(text) })
  const ids: number[] = []
  let pages = 0
  // twice, as counting and copying do: the same both times, and each note once
  for (let pass = 0; pass < 2; pass++) {
    ids.length = 0
    pages = 0
    for await (const batch of input.pages()) {
      for (let i = 0; i < batch.count; i++) {
        const at = batch.bytes.subarray(i * PAGE, (i + 1) * PAGE)
        const id = at.readUInt32LE(8)
        if (id > 0 && id < 1000 && page(id).equals(at)) ids.push(id)
      }
      pages += batch.count
      batch.release()
    }
  }
  input.close()
  return { ids, kernels: input.kernels, notes, pages }
}

t.test('a kernel in one piece is found, wherever blocks of a file system begin', async t => {
  for (const [name, bytes] of [
    ['zstd', ZSTD],
    ['gzip', GZIP],
    ['not packed', LOOSE],
  ] as const) {
    for (const before of [0, 512, 1024, 2560, 4096]) {
      const disk = image([Buffer.alloc(before, 0x11), bytes], 512)
      const { ids, kernels, notes, pages } = await read(disk)
      t.same(ids, IDS, `${name}, ${before} bytes behind a page`)
      t.same(kernels, [{ version: VERSION, offset: 2 * PAGE + before, pages: IDS.length }])
      t.same(notes, [])
      t.equal(pages, disk.length / PAGE + IDS.length, 'and all of the image itself')
    }
  }
  t.same((await read(image([Buffer.alloc(100, 0x11), ZSTD], 1))).kernels, [], 'no block begins there')
  const { ids, kernels, pages } = await read(image([ZSTD]), 'disk.raw', false)
  t.same([ids, kernels, pages], [[], undefined, image([ZSTD]).length / PAGE], 'where none are wanted')
  const core = elfCore([Array.from({ length: ZSTD.length / PAGE }, (_, i) => ZSTD.subarray(i * PAGE, (i + 1) * PAGE))])
  t.equal((await read(core, 'core')).kernels, undefined, 'a guest that has the file in its memory is no image')
})

t.test('several, and one within the claim of another', async t => {
  const other = program(range(100, 30))
  const second = kernel(withLength(zstdCompressSync(other), other), { version: '6.12.1' })
  const two = await read(image([ZSTD, second]))
  t.same(two.ids, [...IDS, ...range(100, 30)])
  t.match(two.kernels, [
    { version: VERSION, pages: 40 },
    { version: '6.12.1', pages: 30 },
  ])
  // a deleted one, of which the beginning is left
  const beginning = Buffer.from(LOOSE.subarray(0, 8 * PAGE))
  const left = await read(image([beginning, second, ZSTD, Buffer.alloc(LOOSE.length)]))
  t.match(left.kernels, [{ version: '6.12.1' }, { version: VERSION }])
  t.same(left.notes, [], 'the same kernel is there whole: nobody misses anything')
})

t.test('in pieces, cut or broken: said in a line, and nothing of it is used', async t => {
  const pieces = image([LOOSE.subarray(0, 10 * PAGE), page(2000), LOOSE.subarray(10 * PAGE)])
  // what is not packed has no checksum: its length would do
  const packed = withLength(zstdCompressSync(PROGRAM), PROGRAM)
  const noisy = Buffer.concat([packed.subarray(0, 300), Buffer.alloc(PAGE, 0x77), packed.subarray(300)])
  const broken = kernel(noisy, { version: VERSION, length: packed.length })
  for (const [name, disk, why] of [
    ['in pieces', pieces, /its end is not that of a kernel|another length/],
    ['broken', image([broken]), /its end is not|damaged/],
    ['cut', image([LOOSE]).subarray(0, 20 * PAGE), /the image ends before it does/],
  ] as const) {
    const { ids, kernels, notes, pages } = await read(disk, 'golden.raw')
    t.same(kernels, [], name)
    t.equal(pages, Math.floor(disk.length / PAGE), `${name}: the image's pages`)
    t.ok(ids.length <= 40)
    t.equal(notes.length, 1, name)
    t.match(notes[0], why)
    t.match(
      notes[0],
      /^what begins as the Linux kernel 6\.1\.0-50-cloud-amd64 at byte 8192 does not unpack .*: its file lies in pieces, or was deleted; where guests run it, give \/boot\/vmlinuz-6\.1\.0-50-cloud-amd64 as an input of its own, too$/,
    )
  }
})

t.test('thousands of headers that are none cost nothing and say nothing', async t => {
  const shapes = [
    kernel(Buffer.alloc(100, 0x33)), // nothing that is packed
    kernel(ZSTD, { length: 0 }),
    kernel(ZSTD, { from: 2 ** 31 }),
    kernel(ZSTD, { length: 2 ** 31 }),
    kernel(ZSTD, { protocol: 0x207 }),
    kernel(Buffer.alloc(3), { length: 5 }),
  ].map(bytes => bytes.subarray(0, 2 * 512))
  const next = random(7)
  const headers = Array.from({ length: 8000 }, () => shapes[next(shapes.length)]!)
  const { kernels, notes, ids } = await read(image([...headers, Buffer.alloc(64 * PAGE), ZSTD], 512))
  t.match(kernels, [{ version: VERSION }])
  t.same([notes, ids], [[], IDS])
})

t.test('what lies about being kernels is bounded', async t => {
  const damaged = zstdCompressSync(PROGRAM).fill(0xee, 100)
  const lie = (version: string): Buffer => kernel(withLength(damaged, PROGRAM), { version })
  const many = await read(image(range(0, KERNELS_MAX + 20).map(i => lie(`6.0.${i}`))))
  t.same(many.kernels, [])
  t.equal(many.notes.length, KERNELS_TOLD_MAX + 2)
  t.match(many.notes.at(-2), `${KERNELS_MAX - KERNELS_TOLD_MAX} others that begin as Linux kernels do not unpack`)
  t.match(many.notes.at(-1), /^20 others .* are left out$/)

  // one in the other, all of them as long as the image
  const nested = Array.from({ length: 50 }, (_, i) =>
    kernel(zstdCompressSync(PROGRAM), { version: `${i}`, sectors: 2, length: 1 << 20 }).subarray(
      0,
      3 * 512 + 716 + 100,
    ),
  )
  const { kernels, notes } = await read(image([...nested, Buffer.alloc(2 << 20)]))
  t.same(kernels, [])
  t.equal(notes.length, KERNELS_AT_ONCE + 1)
  t.match(notes.at(-1), new RegExp(`^${50 - KERNELS_AT_ONCE} others`))

  const bomb = zstdCompressSync(Buffer.alloc(300 << 20))
  const claims = (length: number): Buffer => {
    const behind = Buffer.alloc(4)
    behind.writeUInt32LE(length)
    return kernel(Buffer.concat([bomb, behind]), { version: 'bomb' })
  }
  t.match((await read(image([claims(300 << 20)]))).notes, [/its end is not that of a kernel/], 'too much of so little')
  t.match((await read(image([claims(100_000)]))).notes, [/it has another length than it says/], 'more than it says')
  // each frame is a decompressor of its own
  const empty = zstdCompressSync(Buffer.alloc(0))
  const frames = Buffer.concat([...Array(20_000).fill(empty), zstdCompressSync(PROGRAM)])
  const spent = stopwatch()
  t.match((await read(image([kernel(withLength(frames, PROGRAM), { version: 'frames' })]))).notes, [/zstd frames/])
  t.ok(spent() < 1000, `${spent()} ms`)
  const vast = kernel(bomb, { version: 'vast', length: KERNEL_PAYLOAD_MAX + 1 })
  t.same((await read(image([vast]))).notes, [], 'longer than any: no kernel')
})

t.test('the finder gives the same wherever the image is cut', async t => {
  const disk = image([LOOSE.subarray(0, 8 * PAGE), ZSTD, GZIP], 512)
  const found = (length: number): PackedKernel[] => {
    const finder = new KernelFinder()
    const kernels: PackedKernel[] = []
    for (let at = 0; at < disk.length; at += length) {
      const chunk = Buffer.from(disk.subarray(at, at + length))
      kernels.push(...finder.push(chunk))
      chunk.fill(0xee) // it is valid until return
    }
    return [...kernels, ...finder.end()]
  }
  const whole = found(disk.length)
  t.match(whole, [{ version: VERSION }, { version: VERSION }, { version: VERSION, payload: undefined }])
  for (const length of [1, 3, 511, 512, 513, 592, 1000, 4096, 5000]) t.same(found(length), whole, `${length} bytes`)
  const packed = whole[0]!
  t.ok(Buffer.concat(await unpackKernel('disk', packed, AbortSignal.timeout(60_000))).equals(PROGRAM))
  const lost = { ...packed, payload: undefined }
  t.equal(
    await failure(() => unpackKernel('disk', lost, new AbortController().signal)),
    `CAPTURE_FORMAT at ${packed.offset}`,
  )
})

t.test('of claims that lie in each other the finder takes the same ones, wherever the image is cut', t => {
  for (let seed = 1; seed <= 20; seed++) {
    const next = random(seed)
    const blocks = 1500
    const disk = Buffer.alloc(blocks * 512)
    const headers = seed % 10 === 0 ? 1300 : 20 + next(150)
    for (let i = 0; i < headers; i++) {
      const at = next(blocks - 4) * 512
      const sectors = 1 + next(3)
      const from = next(2) ? next(3000) : next(blocks * 512)
      const header = kernel(Buffer.alloc(0), { sectors, from, length: 20 + next(next(2) ? 3000 : 400_000) })
      header.copy(disk, at, 0, 0x250)
      disk.write('\x1f\x8b', Math.min(disk.length - 2, at + (sectors + 1) * 512 + from), 'latin1')
    }
    const found = (cut: () => number): unknown => {
      const finder = new KernelFinder()
      const kernels: PackedKernel[] = []
      for (let at = 0; at < disk.length; ) {
        const length = cut()
        kernels.push(...finder.push(disk.subarray(at, at + length)))
        at += length
      }
      const cutOff = finder.end().map(({ offset }) => offset)
      return [kernels.map(({ offset, payload }) => [offset, payload?.length]), cutOff, finder.passedOver]
    }
    const whole = found(() => disk.length)
    for (const length of [512, 4096, 100_000])
      t.same(
        found(() => length),
        whole,
        `seed ${seed}, ${length} bytes`,
      )
    t.same(
      found(() => 1 + next(2000)),
      whole,
      `seed ${seed}, cut at random`,
    )
  }
  t.end()
})

t.test('a version that is no text is none', async t => {
  for (const version of ['\x1b[31mred', '', 'x'.repeat(90)]) {
    const bytes = kernel(gzipSync(PROGRAM), { version })
    t.match((await read(image([bytes]))).kernels, [{ version: '', pages: 40 }], JSON.stringify(version))
  }
})

t.test('a kernel whose tool is not here', async t => {
  const store = join(folder, 'without-tools')
  const magic = Buffer.from('\x02\x21\x4c\x18', 'latin1')
  const disk = put(
    'lz4.raw',
    image([kernel(withLength(Buffer.concat([magic, PROGRAM]), PROGRAM), { version: VERSION })]),
  )
  const { PATH } = process.env
  process.env.PATH = folder
  try {
    const notes: string[] = []
    const input = await PageInput.open(disk, { kernels: true, note: ({ text }) => notes.push(text) })
    for await (const batch of input.pages()) batch.release()
    t.match(notes, [/^what begins as .* at byte 8192 is packed with lz4, which is not installed here: install lz4/])
  } finally {
    process.env.PATH = PATH
  }
  const built = await pageferry('template', 'build', '--store', store, disk)
  t.equal(built.status, 0, 'and the set is built')
  t.match(built.err, /note: .*lz4\.raw: what begins as the Linux kernel 6\.1\.0-50-cloud-amd64 at byte 8192/)
})

t.test('build, count, choose and build of the choice', async t => {
  const store = join(folder, 'store')
  const golden = put('golden.raw', image([ZSTD]))
  const run = async (...args: string[]): Promise<string> => {
    const { status, out, err } = await pageferry('template', ...args)
    t.equal(status, 0, err)
    return out
  }
  const text = await run('build', '--store', store, golden)
  t.match(text, `golden.raw: taken for a disk image; in it Linux ${VERSION} at byte 8192 (40 pages)\n`)
  t.match(text, /inputs {3}1 disk, /, 'one image: all its pages')
  const built = JSON.parse(await run('build', '--store', store, '--json', golden))
  t.match(built.inputs, [{ takenFor: 'a disk image', kernels: [{ version: VERSION, offset: 8192, pages: 40 }] }])
  const without = JSON.parse(await run('build', '--store', store, '--json', '--no-kernels', golden))
  t.equal(built.pages - without.pages, 40)
  t.equal(without.inputs[0].kernels, undefined)
  const [counts, choice] = [join(folder, 'golden.parquet'), join(folder, 'choice.parquet')]
  const counted = JSON.parse(await run('count', golden, '-o', counts, '--json'))
  t.match(counted.inputs, [{ kernels: [{ version: VERSION, pages: 40 }] }])
  t.match(await run('count', golden, '-o', join(folder, 'again.parquet')), `; in it Linux ${VERSION} at byte`)
  await run('choose', counts, '-o', choice, '--min-vms', '1')
  const chosen = JSON.parse(await run('build', '--store', store, '--json', '--choice', choice, golden))
  t.equal(chosen.digest, built.digest, 'the same set')
  t.equal(chosen.missing, 0)
  const moved = await pageferry('estimate', golden, '--store', store, '--json')
  t.equal(JSON.parse(moved.out)[0].pages.template, without.pages, 'a mirror moves what is on the disk, and no more')
})

const TOOLS = ['mke2fs', 'qemu-img', 'qemu-nbd', 'xz', 'lz4']
const PATHS = `${process.env.PATH}:/usr/sbin:/sbin`
const missing = TOOLS.filter(
  name => spawnSync(name, ['-V'], { env: { ...process.env, PATH: PATHS } }).error !== undefined,
)

t.test('in a file system, raw and qcow2', { skip: missing.length > 0 && `no ${missing.join(', ')} here` }, async t => {
  const tree = join(folder, 'tree')
  mkdirSync(join(tree, 'boot'), { recursive: true })
  const large = program(range(200, 600))
  const tool = (name: string, ...args: string[]): Buffer =>
    withLength(execFileSync(name, [...args, '-c'], { input: large, maxBuffer: 1 << 28 }), large)
  writeFileSync(join(tree, 'boot/initrd.img'), Buffer.alloc(3_000_000, 0x5a))
  writeFileSync(
    join(tree, 'boot/vmlinuz-6.1'),
    kernel(tool('xz', '--check=crc32', '--x86', '--lzma2'), { version: '6.1' }),
  )
  writeFileSync(join(tree, 'boot/vmlinuz-6.12'), kernel(tool('lz4', '-l'), { version: '6.12' }))
  for (const block of ['1024', '4096']) {
    const raw = join(folder, `ext4-${block}.raw`)
    execFileSync('mke2fs', ['-q', '-t', 'ext4', '-b', block, '-d', tree, raw, '32m'], {
      env: { ...process.env, PATH: PATHS },
      stdio: 'ignore',
    })
    execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-c', raw, `${raw}.qcow2`])
    for (const path of [raw, `${raw}.qcow2`]) {
      const input = await PageInput.open(path, { kernels: true, as: undefined })
      for await (const batch of input.pages()) batch.release()
      const found = [...input.kernels!].sort((a, b) => (a.version < b.version ? -1 : 1))
      t.match(found, [
        { version: '6.1', pages: 600 },
        { version: '6.12', pages: 600 },
      ])
      input.close()
    }
  }
})
