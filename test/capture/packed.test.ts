/** Inputs that are packed: by every program that libvirt packs with, damaged, and packed to nothing that is much. */
import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import t from 'tap'
import { Input } from '../../src/capture/input.ts'
import { isProxyError } from '../../src/errors.ts'
import { until } from '../helpers/until.ts'
import { failure, migration, page, scratch } from '../template/makers.ts'

t.setTimeout(590_000)
const TOOLS = ['bzip2', 'xz', 'lzop'] as const
const skipOf = (tool: string): string | false => spawnSync(tool, ['--version']).error !== undefined && `no ${tool} here`
const STREAM = migration(Array.from({ length: 500 }, (_, i) => page(i + 1)))
const { folder, put } = scratch(t.teardown)

async function bytesOf(path: string): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of (await Input.open(path)).chunks()) chunks.push(Buffer.from(chunk))
  return Buffer.concat(chunks)
}

for (const tool of TOOLS) {
  t.test(`${tool}: packed, damaged, cut`, { skip: skipOf(tool) }, async t => {
    const pack = (bytes: Buffer, ...args: string[]): Buffer =>
      execFileSync(tool, ['-c', ...args], { input: bytes, maxBuffer: 1 << 30 })
    const packed = pack(STREAM)
    t.ok((await bytesOf(put('packed', packed))).equals(STREAM))
    const input = await Input.open(put('packed', packed))
    t.equal(input.takenFor, `${tool}: QEMU's main stream`)
    for await (const _ of input.chunks()) break // and nothing of it is left running
    t.ok((await bytesOf(put('twice', gzipSync(packed)))).equals(STREAM), 'in gzip')
    t.ok((await bytesOf(put('two', Buffer.concat([packed, pack(Buffer.from('more'))])))).length > STREAM.length)

    const middle = packed.length >> 1
    const cut = await failure(() => bytesOf(put('cut', packed.subarray(0, middle))))
    t.match(cut, /^QEMU_TRUNCATED at [1-9]/)
    const damaged = Buffer.from(packed)
    damaged.fill(0xa5, middle, middle + 64)
    t.match(await failure(() => bytesOf(put('damaged', damaged))), /^CAPTURE_FORMAT at \d/)
    // A fault inside comes out as what it is, and not as one of the program that then has half of its input.
    t.match(await failure(() => bytesOf(put('inside', gzipSync(packed).subarray(0, -1000)))), /^QEMU_TRUNCATED/)

    process.env.XZ_OPT = '--no-such-option'
    process.env.LZOP = '--no-such-option'
    process.env.BZIP = '--no-such-option'
    t.teardown(() => {
      for (const name of ['XZ_OPT', 'LZOP', 'BZIP']) delete process.env[name]
    })
    t.ok((await bytesOf(put('packed', packed))).equals(STREAM), "the user's settings do not matter")

    const path = process.env.PATH
    process.env.PATH = folder
    t.teardown(() => {
      process.env.PATH = path
    })
    const without = await Input.open(put('packed', packed)).catch(caught => caught)
    t.match(without, { code: 'IO', what: new RegExp(`packed with ${tool}, which is not installed`), action: /install/ })
  })
}

t.test('xz that wants too much memory', { skip: skipOf('xz') }, async t => {
  const greedy = execFileSync('xz', ['-c', '--lzma2=dict=512MiB,mode=fast,mf=hc3,nice=4'], {
    input: STREAM.subarray(0, 9000),
  })
  const error = await bytesOf(put('greedy.xz', greedy)).catch(caught => caught)
  t.match(error, { code: 'CAPTURE_FORMAT', what: /more than 128 MiB to unpack/ })
})

t.test('a program that does not end is ended', async t => {
  const bin = join(folder, 'bin')
  mkdirSync(bin)
  const pids = join(folder, 'pids')
  // Gives what it is given, and nothing more for ever. That is packed with xz again, as its first bytes say.
  writeFileSync(join(bin, 'xz'), `#!/bin/sh\necho $$ >> ${pids}\n/usr/bin/head -c 100000\nexec /usr/bin/sleep 1000\n`)
  chmodSync(join(bin, 'xz'), 0o755)
  const path = process.env.PATH
  process.env.PATH = `${bin}:${path}`
  t.teardown(() => {
    process.env.PATH = path
  })
  const fake = put('fake.xz', Buffer.concat([Buffer.from('\xfd7zXZ\0', 'latin1'), STREAM]))
  t.equal(await failure(() => Input.open(fake)), 'CAPTURE_FORMAT at 0', 'one in the other, too often')
  const children = readFileSync(pids, 'utf8').trim().split('\n').map(Number)
  t.ok(children.length > 2, `${children.length} programs`)
  const runs = (child: number): boolean => {
    try {
      return process.kill(child, 0)
    } catch {
      return false
    }
  }
  await until('the programs to end', () => !children.some(runs))
  t.notOk(children.some(runs), 'all are ended')
})

t.test('bombs', async t => {
  // 4 GiB of zeros behind a stream, so that they are taken for one.
  const members = Buffer.concat(Array(64).fill(gzipSync(Buffer.alloc(64 << 20))))
  const deep = gzipSync(Buffer.concat([gzipSync(STREAM), members]))
  const bombs: [string, Buffer][] = [['gzip in gzip', deep]]
  const zeros = zstdCompressSync(Buffer.alloc(256 << 20))
  bombs.push(['zstd', Buffer.concat([zstdCompressSync(STREAM.subarray(0, 5000)), ...Array(16).fill(zeros)])])
  for (const [name, bytes] of bombs) {
    let unpacked = 0
    const input = await Input.open(put('bomb', bytes))
    try {
      for await (const chunk of input.chunks()) unpacked += chunk.length
      t.fail(`${name}: ${unpacked} bytes of ${bytes.length}`)
    } catch (error) {
      if (!isProxyError(error)) throw error
      t.match(error, { code: 'LIMIT_EXCEEDED', what: /packed more than/, where: { offset: bytes.length } }, name)
      t.ok(unpacked < 6 * 2 ** 30)
    }
  }
})

t.test('files that are holes', async t => {
  const path = put('holes.raw', Buffer.concat([Buffer.alloc(510), Buffer.from([0x55, 0xaa])]))
  truncateSync(path, 2 ** 43)
  const error = await Input.open(path).catch(caught => caught)
  t.match(error, { code: 'LIMIT_EXCEEDED', what: /of which \d+ are there/ })
  truncateSync(path, 64 << 20)
  t.equal((await Input.open(path)).takenFor, 'a disk image', 'a usual one is read')
})
