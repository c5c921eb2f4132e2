/** Kernels as boot loaders take them: the pages of the program in them, however it is packed, and what is none. */
import { execFileSync, spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import t from 'tap'
import { Input } from '../../src/capture/input.ts'
import { kernelProgram } from '../../src/capture/linux-kernel.ts'
import { PageInput } from '../../src/capture/pages.ts'
import { pageferry } from '../template/cli-harness.ts'
import { elfCore, failure, page, scratch } from '../template/makers.ts'
import {
  kernel,
  withLength as lengthBehind,
  PAYLOAD_OFFSET,
  program as programOf,
  SETUP_SECTORS,
} from './kernel-maker.ts'
import { pageNumbers } from './page-numbers.ts'

t.setTimeout(590_000)
const { folder, put } = scratch(t.teardown)
const PAGES = Array.from({ length: 40 }, (_, i) => page(i + 1))
const IDS = PAGES.map((_, i) => i + 1)
/** Bytes before what is packed. */
const HEAD_LENGTH = (SETUP_SECTORS + 1) * 512 + PAYLOAD_OFFSET

const program = programOf(IDS)

const withLength = (packed: Buffer): Buffer => lengthBehind(packed, program)
const tool = (name: string, ...args: string[]): Buffer => execFileSync(name, [...args, '-c'], { input: program })
const absent = (name: string): string | false => spawnSync(name, ['--version']).error !== undefined && `no ${name} here`

for (const [packing, skip, pack] of [
  ['gzip', false, () => gzipSync(program)],
  ['zstd', false, () => withLength(zstdCompressSync(program))],
  ['xz', absent('xz'), () => withLength(tool('xz', '--check=crc32', '--x86', '--lzma2'))],
  ['bzip2', absent('bzip2'), () => withLength(tool('bzip2'))],
  ['lz4', absent('lz4'), () => withLength(tool('lz4', '-l'))],
] as const) {
  t.test(`packed with ${packing}`, { skip }, async t => {
    const whole = kernel(pack())
    t.same(await pageNumbers(put('vmlinuz', whole)), IDS)
    const input = await PageInput.open(put('vmlinuz', whole))
    t.equal(input.takenFor, `a Linux kernel, ${packing}: its program`)
    input.close()
    const cut = HEAD_LENGTH + (pack().length >> 1)
    t.match(await failure(() => pageNumbers(put('cut', whole.subarray(0, cut)))), /^QEMU_TRUNCATED/)
  })
}

t.test('not packed, and wherever it is cut', async t => {
  t.same(await pageNumbers(put('vmlinuz', kernel(withLength(program)))), IDS)
  t.same(await pageNumbers(put('vmlinuz', kernel(gzipSync(program), { sectors: 0 }))), IDS, '0 sectors are four')
  for (const packed of [gzipSync(program), zstdCompressSync(program)]) {
    const whole = kernel(packed[0] === 0x1f ? packed : withLength(packed))
    for (const length of [1, 3, 590, 4096, whole.length]) {
      async function* pieces(): AsyncGenerator<Buffer> {
        for (let at = 0; at < whole.length; at += length) {
          const piece = Buffer.from(whole.subarray(at, at + length))
          yield piece
          piece.fill(0xee) // it is valid until the next one
        }
      }
      const found: Buffer[] = []
      for await (const piece of kernelProgram('vmlinuz', pieces())) found.push(Buffer.from(piece))
      t.ok(Buffer.concat(found).equals(packed), `pieces of ${length}`)
    }
  }
})

t.test('what is no kernel, or not all of one', async t => {
  const packed = gzipSync(program)
  const fails = (bytes: Buffer): Promise<string | undefined> => failure(() => pageNumbers(put('vmlinuz', bytes)))
  t.equal(await fails(kernel(packed, { from: 2 ** 31 })), 'CAPTURE_FORMAT at 584', 'far away')
  t.equal(await fails(kernel(packed, { length: 0 })), 'CAPTURE_FORMAT at 584', 'nothing')
  t.match(await fails(kernel(packed, { length: 2 ** 31 })), /^(CAPTURE_FORMAT|QEMU_TRUNCATED)/, 'more than there is')
  t.match(await fails(kernel(gzipSync(Buffer.from('no program')))), /^CAPTURE_FORMAT/, 'something else in it')
  const old = await Input.open(put('old', kernel(packed, { protocol: 0x207 })))
  t.equal(old.format, 'disk', 'before version 2.08 nothing says where it lies: a boot sector')
  old.close()
  const migration = await Input.open(put('vmlinuz', kernel(packed)), { migration: true }).catch(caught => caught)
  t.match(migration, { code: 'CAPTURE_FORMAT', what: /its program, which is no migration/ })
})

t.test('an image with its kernel is one image', async t => {
  const store = join(folder, 'store')
  const vmlinuz = put('vmlinuz-6.1', kernel(gzipSync(program)))
  const boot = page(100)
  boot.writeUInt16LE(0xaa55, 510)
  const disk = put('golden.raw', Buffer.concat([boot, ...Array.from({ length: 10 }, (_, i) => page(101 + i))]))
  const core = put('guest', elfCore([PAGES]))
  const build = (...args: string[]) => pageferry('template', 'build', '--store', store, ...args)
  const alone = await build(vmlinuz)
  t.match(alone.out, /taken for a Linux kernel, gzip: its program/)
  t.match(alone.out, /inputs {3}1 kernel, .*\nset {6}40 pages/, 'all of it')
  const both = await build(disk, vmlinuz)
  t.match(both.out, /inputs {3}1 disk and 1 kernel, .*\nset {6}51 pages/)
  t.match((await build(vmlinuz, core)).out, /inputs {3}1 VM and 1 kernel, .*\nset {6}40 pages/, 'with a guest: in both')
})
