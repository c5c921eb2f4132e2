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
import { readOneChannel } from '../../src/capture/one-channel.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { until } from '../helpers/until.ts'
import { pageferry } from '../template/cli-harness.ts'
import {
  connection,
  failure,
  migration,
  multifdChannel,
  page,
  pcap,
  pcapng,
  putPages,
  scratch,
} from '../template/makers.ts'

const HARNESS = new URL('../template/cli-harness.ts', import.meta.url).pathname
const GUEST = Array.from({ length: 40 }, (_, i) => page(i + 1))
const STREAM = migration(GUEST)
const OTHER = migration(GUEST.slice(0, 9))

t.setTimeout(600_000) // the machine may be busy

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
    [bytesWith(600, [0, 'LibvirtQemudSave']), /libvirt save image/],
    [bytesWith(600, [0, '\x7fELF']), /ELF core/],
    [bytesWith(600, [0, 'KDUMP   ']), /kdump/],
    [bytesWith(600, [0, 'QFI\xfb']), /qcow2/],
    [bytesWith(600, [64, '\x7f\x10\xda\xbe']), /VDI/],
    [bytesWith(600, [510, '\x55\xaa']), /disk image/],
    [bytesWith(2000, [1080, '\x53\xef']), /disk image/],
    [bytesWith(600, [0, '\xfd7zXZ\0']), /xz/],
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
    [folder, 'IO at 0'],
    [join(folder, 'none'), 'IO at 0'],
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
