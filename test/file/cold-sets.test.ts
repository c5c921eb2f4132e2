/**
 * Encoding against sets that stay on the disk, and back: the same bytes or a typed error, whatever happens to the files of
 * either side.
 */
import { cpSync, readdirSync, readFileSync, readlinkSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { EFFORTS } from '../../src/compression/effort.ts'
import { isProxyError } from '../../src/errors.ts'
import { decodeStream } from '../../src/file/encoded-file-reader.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { PAGE_SIZE } from '../../src/template/wire.ts'
import { decodeFile } from '../codec/second-decoder.ts'
import { migration, multifdChannel, page, putPages, random, scratch } from '../template/makers.ts'

t.setTimeout(590_000)

const RING = { ringPages: 256, places: 1 << 12 }

/** An image of 600 pages, and a guest that has parts of it: in runs, alone, changed, again. */
const image = Array.from({ length: 600 }, (_, i) => page(i + 1))
function guestPages(seed: number): Buffer[] {
  const rand = random(seed)
  const pages: Buffer[] = []
  while (pages.length < 900) {
    const from = rand(image.length)
    switch (rand(5)) {
      case 0:
        pages.push(...image.slice(from, from + 1 + rand(80)))
        break
      case 1:
        pages.push(image[from]!)
        break
      case 2: {
        const changed = Buffer.from(image[from]!)
        changed.writeUInt32LE(rand(2 ** 32), 4 * rand(1000))
        pages.push(changed)
        break
      }
      case 3:
        pages.push(pages[rand(pages.length)] ?? page(0))
        break
      default:
        pages.push(page(10_000 + rand(1 << 20)))
    }
  }
  return pages
}

async function* pieces(bytes: Uint8Array, length = 60_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length)
}

interface Sides {
  readonly source: TemplateStore
  readonly destination: TemplateStore
  /** Path of the destination's file. */
  readonly path: string
  readonly digest: string
}

/** Two stores with the image. */
async function sides(folder: string): Promise<Sides> {
  const source = new TemplateStore(join(folder, 'source'))
  const digest = await putPages(source, image)
  cpSync(source.folder, join(folder, 'destination'), { recursive: true })
  const destination = new TemplateStore(join(folder, 'destination'))
  return { source, destination, path: destination.pathOf(digest), digest }
}

async function encoded(input: Uint8Array, { source, digest }: Sides, effort: number) {
  const out: Uint8Array[] = []
  const { stats } = await encodeStream(pieces(input), bytes => void out.push(bytes.slice()), {
    ...RING,
    store: source,
    sets: [],
    cold: [digest],
    effort: EFFORTS[effort]!,
  })
  return { file: Buffer.concat(out), stats }
}

/** The bytes that came out, and the error's code. */
async function decoded(file: Uint8Array, store: TemplateStore): Promise<{ bytes: Buffer; code: string }> {
  const out: Buffer[] = []
  try {
    await decodeStream(pieces(file), async bytes => void out.push(Buffer.from(bytes)), { store, name: 'file' })
    return { bytes: Buffer.concat(out), code: '' }
  } catch (error) {
    if (!isProxyError(error)) throw error
    return { bytes: Buffer.concat(out), code: error.code }
  }
}

t.test('there and back, at every effort', async t => {
  const pair = await sides(scratch(t.teardown).folder)
  const pages = guestPages(1)
  for (const [kind, input] of [
    ['main', migration(pages)],
    ['multifd', multifdChannel(0, pages)],
  ] as const) {
    for (let effort = 0; effort < EFFORTS.length; effort++) {
      const { file, stats } = await encoded(input, pair, effort)
      const what = `${kind}, effort ${effort}`
      t.ok(stats.coldPages > 200, `${what}: ${stats.coldPages} pages of ${pages.length} from the disk`)
      t.ok(file.length < input.length / 2, `${file.length} of ${input.length} bytes`)
      t.same(await decoded(file, pair.destination), { bytes: input, code: '' }, what)
      t.ok(decodeFile(file, () => readFileSync(pair.path)).equals(input), `${what}: second decoder`)
    }
  }
})

/** Sets that this process has open. */
function openSets(): string[] {
  return readdirSync('/proc/self/fd').flatMap(fd => {
    try {
      const path = readlinkSync(`/proc/self/fd/${fd}`)
      return path.endsWith('.pfset') ? [path] : []
    } catch {
      return [] // the one that listed them
    }
  })
}

t.test('however it ends, no set stays open', async t => {
  const pair = await sides(scratch(t.teardown).folder)
  const { source, destination, digest } = pair
  const damaged = await putPages(
    source,
    image.map((_, i) => page(5000 + i)),
  )
  const bytes = readFileSync(source.pathOf(damaged))
  bytes[bytes.length - 1]! ^= 1
  writeFileSync(source.pathOf(damaged), bytes)
  const failing = new Error('no more')
  const fail = (): never => {
    throw failing
  }
  async function* cut(): AsyncGenerator<Uint8Array> {
    yield migration(image)
    throw failing
  }
  const encode = (
    input: AsyncIterable<Uint8Array>,
    { sets = [], cold = [digest], write = () => {} }: { sets?: string[]; cold?: string[]; write?: () => void },
  ) => encodeStream(input, write, { ...RING, store: source, sets, cold, effort: EFFORTS[3]! })
  const guest = () => pieces(migration(guestPages(4)))
  await encode(guest(), {})
  t.same(openSets(), [], 'in order')
  await t.rejects(encode(guest(), { sets: [damaged] }), { code: 'TEMPLATE_DAMAGED' })
  t.same(openSets(), [], 'a set that was to be loaded is damaged')
  await t.rejects(encode(guest(), { cold: [digest, 'f'.repeat(64)] }), { code: 'TEMPLATE_MISSING' })
  t.same(openSets(), [], 'one that was to stay on the disk is not there')
  await t.rejects(encode(cut(), {}), failing)
  t.same(openSets(), [], 'the input fails')
  await t.rejects(encode(guest(), { write: fail }), failing)
  t.same(openSets(), [], 'the output fails')

  const { file } = await encoded(migration(guestPages(4)), pair, 3)
  await t.rejects(
    decodeStream(pieces(file), async () => fail(), { store: destination, name: 'file' }),
    failing,
  )
  t.same(openSets(), [], 'nor behind decode')
})

t.test('the source reads no page', async t => {
  const pair = await sides(scratch(t.teardown).folder)
  const input = migration(guestPages(2))
  const path = pair.source.pathOf(pair.digest)
  const bytes = readFileSync(path)
  bytes.fill(0xee, bytes.length - image.length * PAGE_SIZE)
  writeFileSync(path, bytes)
  const { file, stats } = await encoded(input, pair, 2)
  t.ok(stats.coldPages > 200)
  t.same(await decoded(file, pair.destination), { bytes: input, code: '' }, 'what is wrong there is never named')
  bytes[60]! ^= 1 // in the table
  writeFileSync(path, bytes)
  const error = await encoded(input, pair, 2).catch(thrown => thrown)
  t.match(error, { code: 'TEMPLATE_DAMAGED' }, 'a table that is not sound is not used')
})

t.test('the destination gives the right bytes, or none', async t => {
  const { folder } = scratch(t.teardown)
  const pair = await sides(folder)
  const pages = guestPages(3)
  const input = migration(pages)
  const { file } = await encoded(input, pair, 3)
  const sound = readFileSync(pair.path)
  const firstPage = sound.length - image.length * PAGE_SIZE
  const unused = image.flatMap((one, i) => (pages.some(page => page.equals(one)) ? [] : [i]))
  t.ok(unused.length > 10, `${unused.length} pages of the image are not the guest's`)
  const unread = Buffer.from(sound)
  for (const i of unused) unread[firstPage + i * PAGE_SIZE]! ^= 1
  writeFileSync(pair.path, unread)
  t.same(await decoded(file, pair.destination), { bytes: input, code: '' }, 'damage where nobody looks')
  let failed = 0
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(sound.length - firstPage - 1), fc.integer({ min: 1, max: 255 })), {
        minLength: 1,
        maxLength: 6,
      }),
      async damages => {
        const bytes = Buffer.from(sound)
        for (const [at, change] of damages) bytes[firstPage + at]! ^= change
        writeFileSync(pair.path, bytes)
        const got = await decoded(file, pair.destination)
        if (!got.bytes.equals(input.subarray(0, got.bytes.length))) throw new Error('wrong bytes came out')
        if (got.code === '' && got.bytes.length !== input.length) throw new Error('bytes are missing')
        if (got.code !== '' && got.code !== 'TEMPLATE_DAMAGED') throw new Error(got.code)
        if (got.code !== '') failed++
      },
    ),
    { numRuns: 40 },
  )
  t.ok(failed > 5, `${failed} of 40 damages were met`)

  const cases: [string, () => void, string][] = [
    ['a set that is gone', () => rmSync(pair.path), 'TEMPLATE_MISSING'],
    ['one that is cut', () => truncateSync(pair.path, sound.length - 1), 'TEMPLATE_TRUNCATED'],
    ['another set under its name', () => writeFileSync(pair.path, other), 'TEMPLATE_DAMAGED'],
    ['zeros', () => writeFileSync(pair.path, Buffer.alloc(sound.length)), 'TEMPLATE_FORMAT'],
  ]
  const otherStore = new TemplateStore(join(folder, 'other'))
  const other = readFileSync(otherStore.pathOf(await putPages(otherStore, image.toReversed())))
  for (const [name, make, code] of cases) {
    writeFileSync(pair.path, sound)
    make()
    t.same(await decoded(file, pair.destination), { bytes: Buffer.alloc(0), code }, name)
  }
  writeFileSync(pair.path, sound)
  t.same(await decoded(file, pair.destination), { bytes: input, code: '' }, 'and whole again')
})
