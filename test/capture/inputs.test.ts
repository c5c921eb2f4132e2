/** The one way in: what an input is taken for, and what is said of everything else, by every command. */
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import t from 'tap'
import { recognize } from '../../src/capture/formats.ts'
import { Input } from '../../src/capture/input.ts'
import { MappedRamReader } from '../../src/capture/mapped-ram.ts'
import { readOneChannel } from '../../src/capture/one-channel.ts'
import { PageInput } from '../../src/capture/pages.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { until } from '../helpers/until.ts'
import { pageferry } from '../template/cli-harness.ts'
import {
  connection,
  elfCore,
  failure,
  migration,
  multifdChannel,
  PAGE,
  page,
  pcap,
  pcapng,
  putPages,
  scratch,
} from '../template/makers.ts'
import { pageNumbers } from './page-numbers.ts'

const HARNESS = new URL('../template/cli-harness.ts', import.meta.url).pathname
const GUEST = Array.from({ length: 40 }, (_, i) => page(i + 1))
const STREAM = migration(GUEST)
const OTHER = migration(GUEST.slice(0, 9))

t.setTimeout(590_000) // the machine may be busy

/** Bytes with these at these places. */
function bytesWith(length: number, ...places: readonly [at: number, text: string][]): Buffer {
  const bytes = Buffer.alloc(length)
  for (const [at, text] of places) bytes.write(text, at, 'latin1')
  return bytes
}

t.test('what bytes are taken for', t => {
  const read: [Buffer, string | undefined][] = [
    [STREAM, 'stream'],
    [multifdChannel(0, GUEST), 'stream'],
    [pcap(connection(STREAM)), 'pcap'],
    [pcap(connection(STREAM), { littleEndian: false, nano: true }), 'pcap'],
    [pcapng(connection(STREAM)), 'pcapng'],
    [elfCore([GUEST]), 'elf-core'],
    [elfCore([GUEST], { wide: false, little: false }), 'elf-core'],
    [bytesWith(600, [0, 'KDUMP   ']), 'memory'],
    [bytesWith(600, [0, 'makedumpfile\0']), 'memory'],
    [bytesWith(600, [0, 'QFI\xfb']), 'disk'],
    [bytesWith(600, [64, '\x7f\x10\xda\xbe']), 'disk'],
    [bytesWith(600, [510, '\x55\xaa']), 'disk'],
    [bytesWith(2000, [1080, '\x53\xef']), 'disk'],
  ]
  for (const [bytes, format] of read) t.equal(recognize(bytes.subarray(0, 4096)).format, format)
  const refused: [Buffer, RegExp][] = [
    [Buffer.alloc(0), /^empty$/],
    [Buffer.from('QE'), /too short/],
    [Buffer.from('root:x:0:0:root:/root:/bin/bash\n'), /neither a migration stream nor a capture/],
    [Buffer.alloc(5000), /neither/],
    [Buffer.from([0x16, 3, 1, 2, 0, 1]), /TLS/],
    [Buffer.from([8, 0, 10, 0, 0]), /postcopy recovery/],
    [bytesWith(600, [0, '\x34\xcd\xb2\xa1']), /its maker/],
    [bytesWith(600, [0, 'LibvirtQemudPart']), /libvirt save image that was not finished/],
    [bytesWith(600, [0, '\x7fELF\x02\x01\x01'], [16, '\x02']), /a program/],
    [bytesWith(600, [0, 'DISKDUMP']), /diskdump/],
    [bytesWith(600, [0, '\x04\x22\x4d\x18']), /lz4/],
    [bytesWith(600, [257, 'ustar']), /tar/],
    [bytesWith(600, [0, 'PGFY\r\n\x1a\n']), /pageferry encode/],
    [bytesWith(600, [0, '\x89PFSET\r\n']), /template set/],
    [bytesWith(600, [0, '\x89PFENC\r\n']), /template set/],
  ]
  for (const [bytes, name] of refused) {
    const found = recognize(bytes.subarray(0, 4096))
    t.match(found, { format: undefined, name, hint: /\w/ }, String(name))
  }
  t.end()
})

t.test('cores and disks have pages', async t => {
  const { put } = scratch(t.teardown)
  const ids = GUEST.map((_, i) => i + 1)
  const runs = [GUEST.slice(0, 7), GUEST.slice(7, 8), GUEST.slice(8)]
  for (const wide of [true, false]) {
    for (const little of [true, false]) {
      t.same(await pageNumbers(put('core', elfCore(runs, { wide, little }))), ids, `${wide ? 64 : 32} bits, ${little}`)
    }
  }
  t.same(await pageNumbers(put('core', elfCore(runs, { address: 100 }))), ids, 'segments that begin within a page')
  t.same(await pageNumbers(put('core.zst', zstdCompressSync(elfCore(runs)))), ids, 'packed')
  const core = elfCore(runs)
  const early = put('early', core.subarray(0, -5000))
  t.match(await failure(() => pageNumbers(early)), /^QEMU_TRUNCATED/)
  t.same(await pageNumbers(early, { partial: true }), ids.slice(0, -2), 'what is there of one that ends early')
  t.match(await failure(() => pageNumbers(put('head', core.subarray(0, 100)))), /^QEMU_TRUNCATED/)
  const wrong = (at: number, value: number, length = 8): Promise<string | undefined> => {
    const bytes = Buffer.from(core)
    if (length === 8) bytes.writeBigUInt64LE(BigInt(value), at)
    else bytes.writeUInt16LE(value, at)
    return failure(() => pageNumbers(put('wrong', bytes)))
  }
  t.equal(await wrong(32, 2 ** 40), 'CAPTURE_FORMAT at 32', 'a table far away')
  t.equal(await wrong(32, 8), 'CAPTURE_FORMAT at 32', 'a table within the header')
  t.equal(await wrong(56, 0xffff, 2), 'CAPTURE_FORMAT at 56', 'segments without end')
  t.equal(await wrong(54, 8, 2), 'CAPTURE_FORMAT at 32', 'entries that are too short')
  t.equal(await wrong(64 + 56 + 8, 70), 'CAPTURE_FORMAT at 64', 'a segment within the table')
  t.equal(await wrong(64 + 2 * 56 + 32, 2 ** 50), 'CAPTURE_FORMAT at 64', 'segments that overlap')

  const disk = Buffer.concat([bytesWith(PAGE, [8, '\x29'], [510, '\x55\xaa']), ...GUEST, Buffer.alloc(100, 7)])
  const input = await PageInput.open(put('disk', disk))
  let blocks = 0
  for await (const batch of input.pages()) {
    blocks += batch.count
    batch.release()
  }
  t.equal(blocks, 41, 'whole blocks of a disk')
})

/** A mapped-ram file of RAMBlocks, each a list of pages with holes; `change` bends numbers before they are written. */
function mappedRam(blocks: readonly (readonly (Buffer | undefined)[])[], change: Record<string, number> = {}): Buffer {
  const numbers: Buffer[] = []
  const u32 = (value: number): Buffer => {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32BE(value)
    return bytes
  }
  const u64 = (value: number): Buffer => Buffer.concat([u32(Math.floor(value / 2 ** 32)), u32(value % 2 ** 32)])
  const total = blocks.reduce((sum, pages) => sum + pages.length * PAGE, 0)
  const ram = Buffer.concat([Buffer.from('\x03ram'), u32(0), u32(4), u64((change.total ?? total) + 4)])
  numbers.push(Buffer.from('QEVM\0\0\0\x03'), Buffer.from('\x05\x0amapped-ram', 'latin1'))
  numbers.push(Buffer.from([1]), u32(2), ram)
  for (const [i, pages] of blocks.entries()) {
    const idstr = Buffer.from(`block ${i}`)
    const at = numbers.reduce((sum, { length }) => sum + length, 0) + 1 + idstr.length + 8 + 28
    const bitmap = Buffer.alloc(Math.ceil(pages.length / 64) * 8)
    for (const [page, bytes] of pages.entries()) if (bytes) bitmap[page >> 3]! |= 1 << (page & 7)
    const pagesAt = Math.ceil((at + 100 + bitmap.length) / PAGE) * PAGE
    numbers.push(Buffer.from([idstr.length]), idstr, u64(pages.length * PAGE), u32(change.version ?? 1))
    numbers.push(u64(change.pageSize ?? PAGE), u64(change.bitmapAt ?? at + 100), u64(change.pagesAt ?? pagesAt))
    numbers.push(Buffer.alloc(100, 0xee), bitmap, Buffer.alloc(pagesAt - at - 100 - bitmap.length, 0xee))
    numbers.push(...pages.map(bytes => bytes ?? Buffer.alloc(PAGE)))
  }
  return Buffer.concat([...numbers, Buffer.alloc(5000, 'device state')])
}

t.test('mapped-ram files have pages', async t => {
  const { put } = scratch(t.teardown)
  const ids = GUEST.map((_, i) => i + 1)
  const holes = [undefined, ...GUEST.slice(0, 13), undefined, undefined, ...GUEST.slice(13, 30)]
  const blocks = [holes, [undefined], GUEST.slice(30)]
  const file = mappedRam(blocks)
  t.equal(recognize(file.subarray(0, 4096)).format, 'mapped-ram')
  t.same(await pageNumbers(put('mapped', file)), ids)
  t.same(await pageNumbers(put('mapped.gz', gzipSync(file))), ids, 'packed')
  for (const step of [1, 7, 4095, 10_001]) {
    const found: number[] = []
    let page = Buffer.alloc(0)
    const reader = new MappedRamReader('mapped', {
      beginRun: () => {
        page = Buffer.alloc(0)
      },
      memory: (chunk, at, length) => {
        page = Buffer.concat([page, chunk.subarray(at, at + length)])
        if (page.length === PAGE) found.push(page.readUInt32LE(8))
      },
    })
    for (let at = 0; at < file.length; at += step) reader.push(Buffer.from(file.subarray(at, at + step)))
    reader.end()
    t.same(found, ids, `by ${step}`)
  }
  t.match(await failure(() => pageNumbers(put('early', file.subarray(0, -20_000)))), /^QEMU_TRUNCATED/)
  t.ok(
    (await pageNumbers(put('early', file.subarray(0, -20_000)), { partial: true })).length > 30,
    'what is there of it',
  )
  for (const change of [{ version: 2 }, { pageSize: 16_384 }, { bitmapAt: 5 }, { pagesAt: 5 }, { total: PAGE }]) {
    const error = await failure(() => pageNumbers(put('wrong', mappedRam(blocks, change))))
    t.match(error, /^CAPTURE_FORMAT/, JSON.stringify(change))
  }
  const migration = { migration: true }
  t.match(await failure(() => Input.open(put('mapped', file), migration)), /^CAPTURE_FORMAT/, 'and are no migration')
})

/** As libvirt saves: header, description, stream. */
function saveImage(stream: Buffer, format = 0, little = true, version = 2): Buffer {
  const header = bytesWith(92, [0, 'LibvirtQemudSave'])
  const description = Buffer.from('<domain type="kvm"/>\0')
  for (const [at, value] of [
    [16, version],
    [20, description.length],
    [24, 1],
    [28, format],
  ] as const) {
    if (little) header.writeUInt32LE(value, at)
    else header.writeUInt32BE(value, at)
  }
  return Buffer.concat([header, description, stream])
}

t.test('libvirt save images', async t => {
  const { put } = scratch(t.teardown)
  for (const [name, bytes] of [
    ['raw', saveImage(STREAM)],
    ['of a big-endian host', saveImage(STREAM, 0, false)],
    ['gzip', saveImage(gzipSync(STREAM), 1)],
    ['zstd', saveImage(zstdCompressSync(STREAM), 5)],
    ['and packed again', gzipSync(saveImage(zstdCompressSync(STREAM), 5))],
  ] as const) {
    t.ok((await channelOf(put('save', bytes))).equals(STREAM), name)
  }
  const unknown = await Input.open(put('save', saveImage(STREAM, 77))).catch(caught => caught)
  t.match(unknown, { code: 'CAPTURE_FORMAT', what: /packed by method 77/, action: /save_image_format/ })
  t.equal(await failure(() => Input.open(put('save', saveImage(STREAM, 0, true, 3)))), 'CAPTURE_FORMAT at 16')
  for (const length of [20, 91, 100]) {
    t.match(await failure(() => Input.open(put('save', saveImage(STREAM).subarray(0, length)))), /^QEMU_TRUNCATED/)
  }
  const endless = saveImage(STREAM)
  endless.writeUInt32LE(0xffffffff, 20)
  t.match(await failure(() => Input.open(put('save', endless))), /^QEMU_TRUNCATED/, 'a description of 4 GiB')
  let nested = STREAM
  for (let i = 0; i < 6; i++) nested = gzipSync(nested)
  t.equal(await failure(() => Input.open(put('nested', nested))), 'CAPTURE_FORMAT at 0', 'wrapped too often')
})

/** All bytes of the channel that is chosen. */
async function channelOf(path: string, channel?: number, notes: string[] = []): Promise<Buffer> {
  const input = await Input.open(path)
  const chunks: Buffer[] = []
  for await (const chunk of readOneChannel(input, { channel, note: text => notes.push(text) })) {
    chunks.push(Buffer.from(chunk))
  }
  return Buffer.concat(chunks)
}

t.test('the channel of an input', async t => {
  const { folder, put } = scratch(t.teardown)
  const single = pcap(connection(STREAM))
  const inputs = {
    raw: STREAM,
    zst: zstdCompressSync(STREAM),
    gz: gzipSync(STREAM),
    pcap: single,
    'pcap.gz': gzipSync(single),
    pcapng: zstdCompressSync(pcapng(connection(STREAM, { lengths: [3, 5000] }))),
  }
  for (const [name, bytes] of Object.entries(inputs)) t.ok((await channelOf(put(name, bytes))).equals(STREAM), name)

  const fifo = join(folder, 'fifo')
  execFileSync('mkfifo', [fifo])
  for (const bytes of [STREAM, inputs['pcap.gz']]) {
    const reading = channelOf(fifo) // waits for who writes
    const writer = await open(fifo, 'w')
    await writer.write(bytes.subarray(0, 2))
    await writer.write(bytes.subarray(2, 50_000))
    await writer.writeFile(bytes.subarray(50_000))
    await writer.close()
    t.ok((await reading).equals(STREAM), 'a FIFO')
  }
  const input = await Input.open(put('early', STREAM))
  for await (const _ of input.chunks()) break
  t.equal(input.identity, (await Input.open(join(folder, 'early'))).identity)

  const multifd = put(
    'multifd.pcap',
    pcap([...connection(multifdChannel(0, GUEST), { from: 2 }), ...connection(STREAM, { from: 1 })]),
  )
  const notes: string[] = []
  t.ok((await channelOf(multifd, undefined, notes)).equals(STREAM), 'the main channel of several')
  t.match(notes, [/this is channel 2 of 2, .*left out: --channel 1 \(multifd, \d+ bytes, 10.0.0.1:2 > 10.0.0.2:4444\)/])
  t.ok((await channelOf(multifd, 1)).equals(multifdChannel(0, GUEST)), 'another one where it is asked for')
  const two = put('two.pcap', pcap([...connection(STREAM, { from: 1 }), ...connection(OTHER, { from: 2 })]))
  t.ok((await channelOf(two, 2)).equals(OTHER))
  const error = await channelOf(two).catch(caught => caught)
  t.match(error, { code: 'USAGE', what: /^2 migrations in/, action: /--channel 1 \(main, .*--channel 2 \(main, / })
  t.equal(await failure(() => channelOf(two, 3)), 'USAGE')
  t.equal(await failure(() => channelOf(put('raw2', STREAM), 2)), 'USAGE')
  const lossy = connection(STREAM).filter((_, i) => i !== 30)
  t.match(await failure(() => channelOf(put('lossy', pcap(lossy)))), /^CAPTURE_GAP at \d+$/)
  t.equal(
    await failure(() => channelOf(put('http', pcap(connection(Buffer.from('GET / HTTP/1.1\r\n')))))),
    'CAPTURE_FORMAT at 0',
  )

  for (const [path, code] of [
    [put('empty', Buffer.alloc(0)), 'CAPTURE_FORMAT at 0'],
    [put('text', Buffer.from('a text\n')), 'CAPTURE_FORMAT at 0'],
    [put('text.gz', gzipSync('a text\n')), 'CAPTURE_FORMAT at 0'],
    [put('nothing.zst', zstdCompressSync('')), 'CAPTURE_FORMAT at 0'],
    [put('cut.zst', inputs.zst.subarray(0, -1000)), 'QEMU_TRUNCATED'],
    [folder, 'IO'],
    [join(folder, 'none'), 'IO'],
    ['/dev/null', 'CAPTURE_FORMAT at 0'],
    ['/dev/zero', 'CAPTURE_FORMAT at 0'],
  ] as const) {
    t.match(await failure(() => channelOf(path)), code, path)
  }
  t.equal(await failure(() => Input.open(fifo, { repeatable: true })), 'USAGE', 'what is read several times')
})

t.test('every command says what an input is not', async t => {
  const { folder, put } = scratch(t.teardown)
  const store = join(folder, 'store')
  const good = put('good', STREAM)
  const wrong: [string, RegExp][] = [
    [put('passwd', Buffer.from('root:x:0:0:root:/root:/bin/sh\n')), /neither a migration stream nor a capture/],
    [put('nothing', Buffer.alloc(0)), /empty/],
    [put('packed.xz', bytesWith(600, [0, '\xfd7zXZ\0'])), /xz/],
  ]
  for (const [path, what] of wrong) {
    for (const args of [
      ['estimate', path],
      ['encode', path, '-o', join(folder, 'out')],
      ['template', 'build', '--store', store, good, path],
    ]) {
      const { status, out, err } = await pageferry(...args)
      t.equal(status, 3, args.join(' '))
      t.match(err, what)
      t.match(err, /^hint: /m)
      t.equal(out, '')
    }
  }
  const dash = await pageferry('template', 'build', '--store', store, '-', good)
  t.equal(dash.status, 2)
  t.match(dash.err, /standard input can be read once only/, 'standard input is not left out without a word')
  const rate = await pageferry('estimate', '-', '--rate', '1Gbit')
  t.match([rate.status, rate.err], [2, /standard input can be read once only.*\nhint: .*several times/])
  t.match((await pageferry('estimate', '-', '-')).err, /standard input twice/)
  const forecasts = await pageferry('estimate', good, '--rate', '1Gbit', '--json')
  const [estimate] = JSON.parse(forecasts.out) as { forecast: { effort: number }[] }[]
  t.same(
    estimate!.forecast.map(({ effort }) => effort),
    [0, 0.5, 1, 2, 3, 4],
    'all that auto takes',
  )
  t.equal(
    (await pageferry('estimate', good, '--store', join(folder, 'nowhere'))).status,
    1,
    'a store that is not there',
  )

  const encoded = join(folder, 'encoded')
  const decoded = join(folder, 'decoded')
  t.equal(
    (await pageferry('encode', put('c.pcap.zst', zstdCompressSync(pcap(connection(STREAM)))), '-o', encoded)).status,
    0,
  )
  t.equal((await pageferry('decode', encoded, '-o', decoded)).status, 0)
  t.ok(readFileSync(decoded).equals(STREAM), 'a capture is encoded as the stream that it holds')
  t.match((await pageferry('estimate', encoded)).err, /pageferry encode.*\nhint: decode it first/)

  const child = spawn(process.execPath, [HARNESS, 'estimate', '-', '--json'], { stdio: ['pipe', 'pipe', 'inherit'] })
  let text = ''
  child.stdout.on('data', chunk => {
    text += chunk
  })
  child.stdin.end(zstdCompressSync(STREAM))
  await once(child, 'close')
  t.match(JSON.parse(text), [{ input: '-', qemuBytes: STREAM.length, pages: { zero: 6 } }], 'standard input is read')
})

t.test('a damaged set is said, and the sound ones are used', async t => {
  const { folder, put } = scratch(t.teardown)
  const store = new TemplateStore(join(folder, 'store'))
  const sound = await putPages(store, GUEST.slice(0, 30))
  const damaged = await putPages(store, GUEST.slice(20))
  const bytes = readFileSync(store.pathOf(damaged))
  bytes[bytes.length - 1]! ^= 1 // a page: the head is sound
  writeFileSync(store.pathOf(damaged), bytes)
  copyFileSync(store.pathOf(sound), store.pathOf('0'.repeat(64))) // a head that is not
  const guest = put('guest', STREAM)
  const { status, out, err } = await pageferry('estimate', guest, '--store', store.folder, '--json')
  t.equal(status, 0)
  t.match(JSON.parse(out), [{ pages: { template: 30 } }])
  t.match(
    err,
    /^note: TEMPLATE_DAMAGED: this is set .*\nnote: TEMPLATE_DAMAGED: page 19 of the template set is damaged/,
  )
  t.equal((await pageferry('encode', guest, '-o', join(folder, 'out'), '--store', store.folder)).status, 0)
  const asked = await pageferry('estimate', guest, '--store', store.folder, '--set', damaged)
  t.match([asked.status, asked.err], [4, /damaged/], 'one that was asked for is needed')
})

t.test('Ctrl-C ends the waiting for input', async t => {
  const { folder } = scratch(t.teardown)
  const out = join(folder, 'out')
  const child = spawn(process.execPath, [HARNESS, 'encode', '-', '-o', out], { stdio: ['pipe', 'inherit', 'pipe'] })
  let told = ''
  child.stderr.on('data', chunk => {
    told += chunk
  })
  child.stdin.on('error', () => {}) // it may end before it has taken all
  child.stdin.write(Buffer.concat([STREAM, Buffer.alloc(2 << 20, 'device state')])) // and nothing more, without an end
  // The signal's handler is there once the file is.
  await until('a temporary file', () => readdirSync(folder).length > 0)
  child.kill('SIGINT')
  const [status, signal] = await once(child, 'close')
  t.ok(status === 130 || signal === 'SIGINT', `${status} ${signal}`)
  t.match(told, /interrupted/)
  t.same(readdirSync(folder), [], 'and leaves nothing')
})
