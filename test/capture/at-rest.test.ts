/** Memory at rest: kdump files, flat memory, volumes with something behind the stream; from files, pipes and FIFOs. */
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { deflateSync, gzipSync, zstdCompressSync } from 'node:zlib'
import t from 'tap'
import { Input } from '../../src/capture/input.ts'
import { readOneChannel } from '../../src/capture/one-channel.ts'
import { type InputNote, PageInput } from '../../src/capture/pages.ts'
import { pageferry } from '../template/cli-harness.ts'
import { type Descriptor, flattened, type KdumpShape, kdump } from '../template/dumps.ts'
import { elfCore, failure, migration, PAGE, page, scratch } from '../template/makers.ts'
import { pageNumbers } from './page-numbers.ts'

const HARNESS = new URL('../template/cli-harness.ts', import.meta.url).pathname
t.setTimeout(590_000)
const { folder, put } = scratch(t.teardown)
const GUEST = Array.from({ length: 40 }, (_, i) => page(i + 1))
const IDS = GUEST.map((_, i) => i + 1)

t.test('kdump files have pages', async t => {
  const guest = [...GUEST.slice(0, 20), page(0), page(0), ...GUEST.slice(20)]
  const ids = [...IDS.slice(0, 20), 0, 0, ...IDS.slice(20)]
  for (const wide of [true, false]) {
    for (const little of [true, false]) {
      const file = kdump(guest, { wide, little })
      t.same(await pageNumbers(put('dump', file)), ids, `${wide ? 64 : 32} bits, ${little ? 'little' : 'big'}-endian`)
      t.same(await pageNumbers(put('flat', flattened(file))), ids, 'and flattened')
    }
  }
  const blocks = await pageNumbers(put('large', kdump([...GUEST, ...GUEST.slice(0, 8)], { blockSize: 16_384 })))
  t.same(blocks, [...IDS, ...IDS.slice(0, 8)], 'pages of 16 KiB')
  for (const length of [17, 4096, 1 << 20]) {
    t.same(await pageNumbers(put('flat', flattened(kdump(guest), length))), ids, `pieces of ${length}`)
  }
  // More than a window of descriptors, and of data.
  const many = Array.from({ length: 20_000 }, (_, i) => page((i * 7919) % 300))
  const found = await pageNumbers(
    put(
      'many',
      kdump(many, { blockSize: PAGE * 4, pack: bytes => ({ flags: 1, bytes: deflateSync(bytes, { level: 1 }) }) }),
    ),
  )
  t.same(
    found,
    many.map(bytes => bytes.readUInt32LE(8)),
  )

  const input = await PageInput.open(put('dump', kdump(guest)))
  t.match(input, { takenFor: 'a kdump file', lengthBytes: guest.length * PAGE })
  input.close()
})

t.test('kdump files that are damaged, cut, or not read', async t => {
  const fails = (shape: KdumpShape): Promise<string | undefined> =>
    failure(() => pageNumbers(put('dump', kdump(GUEST, shape))))
  const said = (shape: KdumpShape): Promise<unknown> =>
    pageNumbers(put('dump', kdump(GUEST, shape))).catch(caught => caught)
  const hint = { code: 'CAPTURE_FORMAT', action: /kdump-zlib/ }
  t.match(await said({ status: 2 }), { ...hint, what: /packed with lzo/ })
  t.match(await said({ status: 4 }), { ...hint, what: /packed with snappy/ })
  t.match(
    await said({ bend: () => ({ flags: 2 }) }),
    { ...hint, what: /lzo/ },
    'a page that its header did not tell of',
  )
  t.match(await said({ split: 1 }), { code: 'CAPTURE_FORMAT', action: /--reassemble/ })
  t.equal(await fails({ status: 9 }), 'QEMU_TRUNCATED at 424', 'its maker had no room')
  t.equal(await fails({ version: 7 }), 'CAPTURE_FORMAT at 8')
  t.equal(await fails({ bitmapBlocks: 2 ** 31 }), 'CAPTURE_FORMAT at 436', 'bitmaps of 8 TiB')
  t.match(await fails({ bitmapBlocks: 1000 }), /^QEMU_TRUNCATED/)
  t.equal(await fails({ subHeader: 2 ** 31 }), 'CAPTURE_FORMAT at 428')
  const at = 4 * PAGE + 3 * 24
  const third = (bent: Partial<Descriptor>): KdumpShape => ({ bend: page => (page === 3 ? bent : {}) })
  t.equal(await fails(third({ length: 0 })), `CAPTURE_FORMAT at ${at}`)
  t.equal(await fails(third({ length: PAGE + 1 })), `CAPTURE_FORMAT at ${at}`)
  t.equal(await fails(third({ at: 2 ** 53 })), `CAPTURE_FORMAT at ${at}`)
  t.equal(await fails(third({ at: 2 ** 45 })), `QEMU_TRUNCATED at ${2 ** 45}`)
  t.equal(await fails(third({ at: 0 })), `CAPTURE_FORMAT at ${at}`, 'the header as a page')
  t.equal(await fails(third({ flags: 0x23 })), `CAPTURE_FORMAT at ${at}`)
  const bomb = { pack: () => ({ flags: 1, bytes: deflateSync(Buffer.alloc(1 << 20)) }) }
  t.equal(await fails(bomb), `CAPTURE_FORMAT at ${4 * PAGE}`, 'a page that unpacks to a megabyte')

  const whole = kdump(GUEST)
  for (const [name, bytes] of [
    ['plain', whole.subarray(0, -9000)],
    ['flattened', flattened(whole).subarray(0, -9000)],
    ['flattened without its end', flattened(whole, 5000, false).subarray(0, -9000)],
  ] as const) {
    t.match(await failure(() => pageNumbers(put('cut', bytes))), /^QEMU_TRUNCATED/, name)
    const notes: InputNote[] = []
    const some = await pageNumbers(put('cut', bytes), { partial: true, note: note => notes.push(note) })
    t.same(some, IDS.slice(0, some.length), 'what is there')
    t.ok(some.length > 10, `${some.length} pages`)
    t.match(notes, [{ text: /ends early; the pages up to there are used/ }])
  }
  t.match(await failure(() => pageNumbers(put('head', whole.subarray(0, 300)))), /^QEMU_TRUNCATED/)
  const wrong = flattened(whole)
  wrong.writeBigInt64BE(-5n, 4096 + 8)
  t.equal(await failure(() => pageNumbers(put('wrong', wrong))), 'CAPTURE_FORMAT at 4096', 'a piece of negative length')
  t.match(await failure(() => Input.open(put('dump.gz', gzipSync(whole)))), /^CAPTURE_FORMAT/, 'packed: not as a file')
})

t.test('flat memory', async t => {
  const flat = Buffer.concat(GUEST)
  t.match(await failure(() => pageNumbers(put('flat', flat))), /^CAPTURE_FORMAT/, 'is nothing by itself')
  t.same(await pageNumbers(put('flat', flat), { as: 'memory' }), IDS)
  t.same(
    await pageNumbers(put('flat', Buffer.concat([flat, Buffer.alloc(99)])), { as: 'memory' }),
    IDS,
    'whole pages of it',
  )
  t.same(await pageNumbers(put('flat.zst', zstdCompressSync(flat)), { as: 'memory' }), IDS, 'packed')
  const disguised = Buffer.concat([migration(GUEST).subarray(0, 200), Buffer.alloc(PAGE - 200), flat])
  let pages = 0
  for await (const batch of (await PageInput.open(put('flat', disguised), { as: 'memory' })).pages()) {
    pages += batch.count
    batch.release()
  }
  t.equal(pages, GUEST.length + 1, 'whatever it looks like')

  const store = join(folder, 'store')
  const built = await pageferry(
    'template',
    'build',
    '--store',
    store,
    '--json',
    '--min-vms',
    '1',
    '--as',
    'memory',
    put('flat', flat),
  )
  t.equal(built.status, 0, built.err)
  t.match(JSON.parse(built.out), {
    pages: GUEST.length,
    inputs: [{ takenFor: 'flat memory', lengthBytes: flat.length }],
  })
  const estimate = await pageferry('estimate', '--as', 'memory', '--json', '--store', store, join(folder, 'flat'))
  t.match(JSON.parse(estimate.out), [{ takenFor: 'flat memory', pages: { template: GUEST.length } }])
  t.match(await pageferry('template', 'build', '--store', store, '--as', 'tape', 'x'), { status: 2 })
})

t.test('a volume with something behind the stream', async t => {
  const description = Buffer.from('{"configuration": {}, "page_size": 4096, "devices": []}')
  const head = Buffer.from([0, 6, 0, 0, 0, description.length])
  // Device state that looks like a description, and memory that has one in it.
  const trap = page(41)
  Buffer.concat([head, description]).copy(trap, 100)
  const pages = [...GUEST, trap]
  const stream = Buffer.concat([
    migration(pages).subarray(0, -3),
    Buffer.from([0, 6, 0, 0, 0, 9]),
    Buffer.from('{"device" '),
    head,
    description,
  ])
  const before = migration(Array.from({ length: 300 }, (_, i) => page(1000 + i)))
  const volume = Buffer.concat([stream, Buffer.alloc(3 << 20), before])
  const input = await PageInput.open(put('volume', volume))
  let found = 0
  for await (const batch of input.pages()) {
    found += batch.count
    batch.release()
  }
  t.equal(found, pages.length, 'no page of what was there before')
  const estimated = async (bytes: Buffer): Promise<{ length: number; notes: string[] }> => {
    const notes: string[] = []
    let length = 0
    const input = await Input.open(put('volume', bytes))
    for await (const chunk of readOneChannel(input, { estimate: true, note: text => notes.push(text) })) {
      length += chunk.length
    }
    return { length, notes }
  }
  t.match(await estimated(volume), { length: stream.length, notes: [/behind the end of the migration/] })
  t.same(await estimated(stream), { length: stream.length, notes: [] }, 'where nothing is behind')
  const padded = Buffer.concat([stream, Buffer.alloc((1 << 20) - (stream.length % (1 << 20))), before])
  t.match(await estimated(padded), { length: stream.length })
  const bare = migration(GUEST)
  t.same(await estimated(bare), { length: bare.length, notes: [] }, 'a stream without a description')
})

t.test('pipes, where one reading is enough', async t => {
  const flat = Buffer.concat(GUEST)
  const core = elfCore([GUEST.slice(0, 9), GUEST.slice(9)])
  const estimate = async (bytes: Buffer, ...args: string[]): Promise<unknown> => {
    const child = spawn(process.execPath, [HARNESS, 'estimate', '-', '--json', ...args], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    let text = ''
    child.stdout.on('data', chunk => {
      text += chunk
    })
    child.stdin.end(bytes)
    await once(child, 'close')
    return JSON.parse(text)
  }
  const same = { qemuBytes: 164_263, pages: { zero: 0, opaque: 0 }, endsEarly: false }
  t.match(await estimate(flat, '--as', 'memory'), [{ input: '-', takenFor: 'flat memory', ...same }])
  t.match(await estimate(zstdCompressSync(core)), [{ takenFor: 'zstd: an ELF core', ...same }])
  const fifo = join(folder, 'fifo')
  execFileSync('mkfifo', [fifo])
  const reading = Input.open(fifo)
  const writer = await open(fifo, 'w')
  const writing = writer.writeFile(kdump(GUEST)).catch(() => {}) // who reads goes away
  const error = await reading.catch(caught => caught)
  t.match(error, { code: 'CAPTURE_FORMAT', what: /a kdump file, not as a file/, action: /give it as a file/ })
  await writing
  await writer.close().catch(() => {})
  t.match(await failure(() => PageInput.open(fifo)), 'USAGE', 'several readings')
})
