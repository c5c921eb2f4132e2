/** Sets whose pages stay in their files: what is read is proven, whatever happens to the file meanwhile. */
import { closeSync, openSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { readStoreKey } from '../../src/store/cipher.ts'
import { ColdSet, type PageBytes, PROOF_WORDS, writeProof } from '../../src/store/cold-set.ts'
import { SetFile } from '../../src/store/set-file.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { encodeHead, type SetRecords } from '../../src/template/format.ts'
import { PAGE_SIZE, RECORD_LENGTH, setLayout } from '../../src/template/wire.ts'
import { failure, page, putPages, random, scratch, sha256 } from '../template/makers.ts'

t.setTimeout(590_000)

const PAGES = 100
const pages = Array.from({ length: PAGES }, (_, i) => page(i + 1))

/** A store with one set. */
async function storeWith(
  t: { teardown: (after: () => void) => void },
  key?: string,
): Promise<{ store: TemplateStore; digest: string; path: string }> {
  const { folder } = scratch(t.teardown)
  let storeKey: ReturnType<typeof readStoreKey> | undefined
  if (key !== undefined) {
    const file = join(folder, 'key')
    writeFileSync(file, key, { mode: 0o600 })
    storeKey = readStoreKey(file)
  }
  const store = new TemplateStore(join(folder, 'store'), storeKey)
  const digest = await putPages(store, pages)
  return { store, digest, path: store.pathOf(digest) }
}

/** Reads a run and proves each page: the first that is not the page of its index, or undefined. */
async function firstWrong(set: ColdSet, first: number, count: number): Promise<number | undefined> {
  const into = Buffer.alloc(count * PAGE_SIZE)
  await set.read(first, count, into)
  for (let i = 0; i < count; i++) {
    const body = into.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE)
    const isPage = set.isPage(first + i, body)
    if (isPage !== body.equals(pages[first + i]!)) throw new Error(`page ${first + i} was proven to be what it is not`)
    if (!isPage) return first + i
  }
  return undefined
}

for (const key of [undefined, 'ab'.repeat(32)]) {
  t.test(key ? 'an encrypted set' : 'a set', async t => {
    const { store, digest, path } = await storeWith(t, key)
    const set = await store.openCold(digest)
    t.teardown(() => set.close())
    t.equal(set.digest, digest)
    t.equal(set.pageCount, PAGES)
    t.equal(set.proofs.length, PAGES * PROOF_WORDS, '16 bytes a page')
    const proof = new Uint32Array(PROOF_WORDS)
    writeProof(pages[7]!, proof, 0)
    t.same(proof, set.proofs.slice(7 * PROOF_WORDS, 8 * PROOF_WORDS))
    t.equal(Buffer.from(proof.buffer).toString('hex'), sha256(pages[7]!).slice(0, 32))

    const rand = random(7)
    const runs = Array.from({ length: 40 }, () => {
      const first = rand(PAGES)
      return [first, 1 + rand(PAGES - first)] as const
    })
    const wrong = await Promise.all(runs.map(([first, count]) => firstWrong(set, first, count)))
    t.same(new Set(wrong), new Set([undefined]), 'runs read at the same time')

    renameSync(path, `${path}.away`)
    writeFileSync(path, 'something else')
    t.equal(await firstWrong(set, 0, PAGES), undefined, 'an open file stays what it is when its name goes')
    rmSync(`${path}.away`)
    t.equal(await firstWrong(set, 0, PAGES), undefined, 'and when it is removed')
  })

  t.test(`damage under our hands${key ? ' to an encrypted set' : ''}`, async t => {
    const { store, digest, path } = await storeWith(t, key)
    const set = await store.openCold(digest)
    t.teardown(() => set.close())
    const { dataAt, lengthBytes } = set.outline.layout
    const fd = openSync(path, 'r+')
    // in an encrypted file some bytes further, in the same chunk
    writeSync(fd, Buffer.from([0xff, 0xfe, 0xfd]), 0, 3, dataAt + 30 * PAGE_SIZE + 999)
    closeSync(fd)
    if (key) {
      t.match(await failure(() => firstWrong(set, 30, 1)), /^TEMPLATE_DAMAGED at \d/, 'the cipher tells')
    } else {
      t.equal(await firstWrong(set, 0, PAGES), 30)
      t.equal(await firstWrong(set, 31, PAGES - 31), undefined, 'others are what they were')
      t.match(set.damaged(30), { code: 'TEMPLATE_DAMAGED', where: { stream: path, offset: dataAt + 30 * PAGE_SIZE } })
    }
    truncateSync(path, lengthBytes - 20 * PAGE_SIZE)
    t.match(await failure(() => firstWrong(set, PAGES - 1, 1)), /^TEMPLATE_TRUNCATED at \d/)
  })
}

t.test('a head that is not sound', async t => {
  const { store, digest, path } = await storeWith(t)
  const whole = Buffer.concat([
    ...encodeHead({ minVms: 2, vms: 2 }, recordsOfHashes(PAGES)),
    Buffer.alloc(PAGES * PAGE_SIZE),
  ])
  await t.rejects(ColdSet.open(`${path}x`, undefined), { code: 'IO' }, 'no such file')
  const tableAt = setLayout(PAGES, 20).tableAt
  for (const [name, at, length, expected] of [
    ['the magic', 0, 1, 'TEMPLATE_FORMAT at 0'],
    ['a digest', tableAt + 5 * RECORD_LENGTH, 1, `TEMPLATE_DAMAGED at ${setLayout(PAGES, 20).sealAt}`],
    ['a hole', tableAt + 5 * RECORD_LENGTH, RECORD_LENGTH, `TEMPLATE_DAMAGED at ${tableAt + 5 * RECORD_LENGTH}`],
  ] as const) {
    const bytes = Buffer.from(whole)
    if (length === 1) bytes[at]! ^= 1
    else bytes.fill(0, at, at + length)
    writeFileSync(path, bytes)
    t.equal(await failure(() => store.openCold(digest)), expected, name)
  }
  writeFileSync(path, whole.subarray(0, -1))
  t.equal(await failure(() => store.openCold(digest)), `TEMPLATE_TRUNCATED at ${whole.length - 1}`)
})

t.test('a file system that fails', async t => {
  const { store, digest } = await storeWith(t)
  const sound = await store.openCold(digest)
  t.teardown(() => sound.close())
  const failing: PageBytes = {
    sealed: false,
    read: async () => {
      throw Object.assign(new Error('i/o error, read'), { code: 'EIO' })
    },
    close: async () => {},
  }
  const set = new ColdSet(sound.path, sound.outline, sound.proofs, failing)
  t.match(await set.read(0, 1, Buffer.alloc(PAGE_SIZE)).catch(error => error), {
    code: 'IO',
    what: /the device failed/,
  })
  // pieces as small as a file system likes
  const bytes = await SetFile.open(sound.path)
  t.teardown(() => bytes.close())
  const all = Buffer.alloc(bytes.pagesLength)
  await bytes.load(all)
  const { dataAt } = sound.outline.layout
  const slow = new ColdSet(sound.path, sound.outline, sound.proofs, {
    ...failing,
    read: async (into, at, length, position) => {
      const bytesRead = Math.min(length, 777)
      into.set(all.subarray(position - dataAt, position - dataAt + bytesRead), at)
      return { bytesRead }
    },
  })
  t.equal(await firstWrong(slow, 3, 30), undefined)
})

/** Records of pages that nobody has, all different. */
function recordsOfHashes(count: number): SetRecords {
  return {
    count,
    vms: () => 2,
    occurrences: () => 2,
    copyDigest: (place, into, at) => {
      into.fill(0xa5, at, at + 32)
      for (let i = 0; i < 4; i++) into[at + i] = place >>> (8 * i)
    },
  }
}

t.test('a million pages take 16 MB', async t => {
  const count = 1_000_000
  const { folder } = scratch(t.teardown)
  const path = join(folder, 'large.pfset')
  const fd = openSync(path, 'w')
  for (const piece of encodeHead({ minVms: 2, vms: 2 }, recordsOfHashes(count))) writeSync(fd, piece)
  closeSync(fd)
  truncateSync(path, setLayout(count, 20).lengthBytes) // its pages are a hole: nobody reads them
  const before = process.memoryUsage.rss()
  const set = await ColdSet.open(path, undefined)
  t.teardown(() => set.close())
  const grown = process.memoryUsage.rss() - before
  t.equal(set.proofs.byteLength, 16 * count)
  t.ok(grown < 48e6, `${grown} bytes more are resident`)
  t.notOk(set.isPage(count - 1, Buffer.alloc(PAGE_SIZE)))
  await set.read(count - 1, 1, Buffer.alloc(PAGE_SIZE))
})

t.test('what a listing has read of a set is not read again to open it', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const [one, two] = [await putPages(store, [page(1), page(2), page(3)]), await putPages(store, [page(4)])]
  const tables = (store as unknown as { tables: Map<string, { proofs: Uint32Array }> }).tables
  t.equal((await store.list()).length, 2)
  t.equal(tables.size, 0, 'a command that lists keeps nothing')
  const fresh = new TemplateStore(folder)
  const own = (fresh as unknown as { tables: typeof tables }).tables
  await fresh.list(true)
  t.equal(own.size, 2)
  const proofs = own.get(fresh.pathOf(one))!.proofs
  const opened = await fresh.openCold(one)
  t.equal(opened.proofs, proofs, 'the very ones')
  const other = await store.openCold(one)
  t.same(opened.proofs, other.proofs, 'which are those in the file')
  await other.close()
  t.ok(opened.isPage(2, page(3)) && !opened.isPage(1, page(3)))
  t.equal(own.size, 1, 'kept for one who opens it')
  fresh.dropTables([two])
  t.equal(own.size, 1)
  fresh.dropTables()
  t.equal(own.size, 0)
  await opened.close()

  // another file in its place, or a damaged one: read anew, and told
  const last = new TemplateStore(folder)
  await last.list(true)
  const bytes = readFileSync(last.pathOf(one))
  bytes[bytes.indexOf(Buffer.from(sha256(page(2)), 'hex')) + 3]! ^= 1
  writeFileSync(last.pathOf(one), bytes)
  t.equal(await failure(() => last.openCold(one)), await failure(() => new TemplateStore(folder).openCold(one)))
  t.equal((await failure(() => last.openCold(one)))?.startsWith('TEMPLATE_DAMAGED'), true)
  const set = await last.openCold(two)
  t.ok(set.isPage(0, page(4)))
  await set.close()
})
