/** The store as a folder that others write to as well: files that are no sets, claims without bytes, owners and modes. */
import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  mkdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import type { SiteLog } from '../../src/daemon/events.ts'
import { SessionSets } from '../../src/daemon/session-sets.ts'
import { readStoreKey } from '../../src/store/cipher.ts'
import { SetFile } from '../../src/store/set-file.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { encodeHead, HeadDecoder } from '../../src/template/format.ts'
import { PAGES_MAX, setLayout } from '../../src/template/wire.ts'
import { floorsOf } from '../daemon/store-of.ts'
import { stopwatch } from '../helpers/own-time.ts'
import { failure, page, putPages, recordsOf, scratch, setBytes, sha256 } from '../template/makers.ts'

const root = process.geteuid?.() === 0
/** Somebody who is not root and owns nothing: `nobody` on every Linux. */
const NOBODY = 65534

t.test('what stands under a name of a set and is no file', { timeout: 30_000 }, async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(join(folder, 'store'))
  const sound = await putPages(store, [page(1), page(2)])
  const name = (digit: string): string => store.pathOf(digit.repeat(64))
  execFileSync('mkfifo', [name('0')])
  mkdirSync(name('1'))
  symlinkSync(store.pathOf(sound), name('2'))
  const server = createServer()
  t.teardown(() => server.close())
  await new Promise<void>(done => server.listen(`${store.folder}/3`, done))
  renameSync(`${store.folder}/3`, name('3')) // its path is too long to listen at
  const listed = await store.list()
  t.same(
    listed
      .map(({ digest, problem }) => [digest[0] === sound[0] && digest === sound ? 'sound' : digest[0], problem?.code])
      .sort(),
    [
      ['0', 'TEMPLATE_FORMAT'],
      ['1', 'TEMPLATE_FORMAT'],
      ['2', 'TEMPLATE_FORMAT'],
      ['3', 'TEMPLATE_FORMAT'],
      ['sound', undefined],
    ],
    'each is told for what it is, at once, and the sound one is there',
  )
  t.equal(await failure(() => store.open('00')), 'TEMPLATE_FORMAT at 0', 'a FIFO is not waited for')
  t.equal(await store.holds('0'.repeat(64)), false)
  t.match(listed.find(({ digest }) => digest === '2'.repeat(64))?.problem?.what, /symbolic link/)
  t.equal((await SetFile.outline(store.pathOf(sound))).pageCount, 2)
  const link = join(folder, 'link')
  symlinkSync(store.pathOf(sound), link)
  const followed = await SetFile.open(link)
  t.equal(followed.head.digest, sound, 'outside of a store a link is followed')
  await followed.close()
  const key = join(folder, 'key')
  execFileSync('mkfifo', ['-m', '600', key])
  t.throws(() => readStoreKey(key), { code: 'USAGE', what: /not a regular file/ })
})

t.test('a sparse file is not paid for', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const head = Buffer.from(setBytes([page(1)]).subarray(0, 52 + 40))
  head.writeBigUInt64BE(BigInt(PAGES_MAX), 16)
  const { tableAt, lengthBytes } = setLayout(PAGES_MAX, 20)
  const path = store.pathOf('a'.repeat(64))
  writeFileSync(path, head)
  truncateSync(path, lengthBytes)
  t.ok(lengthBytes > 64e9 && statSync(path).blocks < 100, 'a claim of 64 GiB on a few blocks')
  const before = process.memoryUsage().arrayBuffers
  for (const operation of [() => SetFile.open(path), () => SetFile.outline(path)]) {
    t.equal(await failure(operation), `TEMPLATE_DAMAGED at ${tableAt + 40}`, 'ends at the first record of the hole')
  }
  t.equal((await store.list())[0]?.problem?.code, 'TEMPLATE_DAMAGED')
  t.ok(process.memoryUsage().arrayBuffers - before < 4 << 20, 'and takes no memory')
})

t.test('digests that are none', async t => {
  const count = 100_000
  const twisted = {
    ...recordsOf([]),
    count,
    // The same first word in all of them: they would all look for one slot.
    copyDigest: (place: number, into: Uint8Array, at: number) => {
      into.fill(7, at, at + 32)
      new DataView(into.buffer, into.byteOffset).setUint32(at + 28, place)
    },
  }
  const head = Buffer.concat([...encodeHead({ minVms: 2, vms: 2 }, twisted)])
  const ownMs = stopwatch()
  const decoder = new HeadDecoder('set')
  t.match(await failure(() => decoder.push(head)), /^TEMPLATE_FORMAT at \d+$/)
  t.ok(ownMs() < 10_000, 'without comparing each with all others')
  const outline = new HeadDecoder('set', undefined, false)
  const honest = setBytes(Array.from({ length: 300 }, (_, i) => page(i + 1)))
  for (let at = 0; at < honest.length && outline.outline === undefined; at += 37)
    outline.push(honest.subarray(at, at + 37))
  t.equal(outline.head, undefined)
  t.match(outline.outline, { digest: sha256(honest.subarray(0, outline.outline!.layout.sealAt)), pageCount: 300 })
})

t.test('owner and mode follow the folder', { skip: !root && 'only root can give files away' }, async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(join(folder, 'service'))
  mkdirSync(store.folder, { mode: 0o700 })
  chownSync(store.folder, NOBODY, NOBODY)
  const { uid, gid, mode } = statSync(store.pathOf(await putPages(store, [page(1)])))
  t.same([uid, gid, mode & 0o777], [NOBODY, NOBODY, 0o600], 'what root puts is for whom the folder is')
  const shared = new TemplateStore(join(folder, 'shared'))
  mkdirSync(shared.folder)
  chownSync(shared.folder, 0, NOBODY)
  chmodSync(shared.folder, 0o2750)
  const before = process.umask(0o077)
  t.teardown(() => process.umask(before))
  const found = statSync(shared.pathOf(await putPages(shared, [page(1)])))
  t.same([found.uid, found.gid, found.mode & 0o777], [0, NOBODY, 0o640], 'a folder for a group')
})

/** Waits until it holds, for as long as two looks at the store take on a busy machine. */
async function comes(condition: () => boolean): Promise<boolean> {
  for (let i = 0; i < 600 && !condition(); i++) await sleep(50)
  return condition()
}

t.test('a proxy goes on without a store that it cannot read, and takes it up later', async t => {
  const { folder } = scratch(t.teardown)
  const warnings: { text: string; fields: Record<string, unknown> }[] = []
  const warn = (text: string, fields: Record<string, unknown> = {}) => void warnings.push({ text, fields })
  const log = { warn, info: () => {}, error: () => {}, debug: () => {} } as unknown as SiteLog
  const store = new TemplateStore(join(folder, 'store'))
  const sets = new SessionSets(store, log)
  t.same(await floorsOf(sets), { hot: [], cold: [] }, 'not there')
  t.same(await floorsOf(sets), { hot: [], cold: [] })
  t.match(
    warnings,
    [{ text: /cannot be read/, fields: { error: /does not exist/, hint: 'check the path' } }],
    'told once',
  )
  const digest = await putPages(store, [page(1)])
  t.ok(await comes(() => sets.changed), 'seen when it comes')
  t.same(await floorsOf(sets), { hot: [digest], cold: [] })
  t.notOk(sets.changed)

  rmSync(store.folder, { recursive: true })
  writeFileSync(store.folder, 'a file')
  t.same(await floorsOf(sets), { hot: [], cold: [] }, 'no folder')
  t.equal(warnings.length, 2, 'told anew')
  rmSync(store.folder)
})

t.test('sets of another user', { skip: !root && 'only root can become somebody else' }, async t => {
  const { folder } = scratch(t.teardown)
  chmodSync(folder, 0o755)
  const warnings: string[] = []
  const log = { warn: (_: string, { error, hint }: Record<string, string>) => warnings.push(`${error}; ${hint}`) }
  const store = new TemplateStore(join(folder, 'store'))
  const digest = await putPages(store, [page(1)])
  const sets = new SessionSets(store, log as unknown as SiteLog)
  process.seteuid!(NOBODY)
  t.teardown(() => process.seteuid!(0))
  t.same(await floorsOf(sets), { hot: [], cold: [] }, 'the folder is for root alone')
  t.match(warnings, [/permission denied/])
  process.seteuid!(0)
  chmodSync(store.folder, 0o755)
  process.seteuid!(NOBODY)
  t.ok(await comes(() => sets.changed), 'the folder can be read')
  t.same(await floorsOf(sets), { hot: [], cold: [] }, 'its set cannot')
  t.match(warnings[1], /permission denied.*check who may read/)
  t.equal(warnings.length, 2)
  process.seteuid!(0)
  chownSync(store.pathOf(digest), NOBODY, NOBODY)
  process.seteuid!(NOBODY)
  t.ok(await comes(() => sets.changed), 'its owner changed: that is seen')
  t.same(await floorsOf(sets), { hot: [digest], cold: [] })
  process.seteuid!(0)
})
