/** Who made a set: signed, carried along, and believed of nobody else. */
import { createPrivateKey, createPublicKey, type KeyObject } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { SessionSets } from '../../src/daemon/session-sets.ts'
import { SET_SIGNATURE_BYTES_MAX, SET_SIGNATURES_MAX } from '../../src/limits.ts'
import { keyIdOf } from '../../src/remote/channel.ts'
import { makeChannelKey } from '../../src/remote/channel-keys.ts'
import { FolderStore } from '../../src/remote/folder-store.ts'
import { pushSet } from '../../src/remote/publish.ts'
import type { RemoteStore } from '../../src/remote/remote-store.ts'
import {
  decodeSetSignature,
  fetchSignature,
  readSetSignature,
  type SetSignature,
  SetSigners,
  signerOf,
  signSet,
  writeSetSignature,
} from '../../src/remote/set-signature.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { floorsOf } from '../daemon/store-of.ts'
import { failure, page, putPages, scratch } from '../template/makers.ts'
import { host, operator } from './sites.ts'

t.setTimeout(590_000)

const NOW = Date.parse('2027-01-31T03:00:00.000Z')
const A = 'a'.repeat(64)
const B = 'b'.repeat(64)

interface Key {
  readonly secret: KeyObject
  readonly open: KeyObject
  readonly pem: string
  readonly id: string
}

function makeKey(): Key {
  const { privatePem, publicPem } = makeChannelKey()
  const secret = createPrivateKey(privatePem)
  return { secret, open: createPublicKey(secret), pem: publicPem, id: keyIdOf(secret) }
}

const [first, second, stranger] = [makeKey(), makeKey(), makeKey()]

/** As it lies beside a set. */
async function written(document: SetSignature, t_: { teardown: (end: () => void) => void }): Promise<Buffer> {
  const { folder } = scratch(t_.teardown)
  await writeSetSignature(folder, document)
  return readFileSync(join(folder, `${document.digest}.pfset.sig`))
}

const code = (run: () => unknown): Promise<string | undefined> => failure(run)

t.test('a signature, another beside it, and one anew', async t => {
  const one = signSet(A, first.secret, NOW)
  const both = signSet(A, second.secret, NOW + 1000, one)
  t.same(
    both.signatures.map(({ key }) => key),
    [first.id, second.id],
  )
  t.equal(both.signedMs, NOW, 'what was signed first stays')
  const bytes = await written(both, t)
  t.match(bytes.toString(), new RegExp(`^{"set":{"digest":"${A}","signed":"2027-01-31T03:00:00.000Z","version":1}`))
  const read = decodeSetSignature(bytes, A)
  t.equal(signerOf(read, [stranger.open, second.open]), second.id)
  t.equal(signerOf(read, [first.open]), first.id)
  t.equal(await code(() => signerOf(read, [stranger.open])), 'TEMPLATE_UNTRUSTED')
  t.equal(await code(() => signerOf(read, [])), 'TEMPLATE_UNTRUSTED')
  t.same(signSet(A, first.secret, NOW + 5, both).signatures.length, 2, 'who signs again signs once')
})

t.test('no other key, no other set, not a byte otherwise', async t => {
  const document = signSet(A, first.secret, NOW)
  const [{ signature }] = document.signatures as [SetSignature['signatures'][number]]
  const as = (digest: string, id: string): SetSignature => ({
    ...document,
    digest,
    signatures: [{ key: id, signature }],
  })
  t.equal(await code(() => signerOf(as(B, first.id), [first.open])), 'TEMPLATE_UNTRUSTED', 'of another set')
  t.equal(await code(() => signerOf({ ...document, signedMs: NOW + 1 }, [first.open])), 'TEMPLATE_UNTRUSTED')
  t.equal(await code(() => signerOf(as(A, stranger.id), [stranger.open])), 'TEMPLATE_UNTRUSTED', 'under another name')
  const bytes = await written(document, t)
  t.equal(await code(() => decodeSetSignature(bytes, B)), 'TEMPLATE_UNTRUSTED')
  const believed: number[] = []
  for (let at = 0; at < bytes.length; at++) {
    for (const flip of [1, 0x20]) {
      const other = Buffer.from(bytes)
      other[at]! ^= flip
      try {
        signerOf(decodeSetSignature(other, A), [first.open])
        believed.push(at)
      } catch (error) {
        t.match(error, { code: 'TEMPLATE_UNTRUSTED' })
      }
    }
  }
  t.same(believed, [])
})

t.test('documents that are none', async t => {
  const text = (await written(signSet(A, first.secret, NOW), t)).toString()
  const value = JSON.parse(text)
  const many = new Array(SET_SIGNATURES_MAX + 1).fill(value.signatures[0])
  for (const [name, bytes] of [
    ['empty', ''],
    ['cut', text.slice(0, 50)],
    ['null', 'null\n'],
    ['a space more', text.replace('{', '{ ')],
    ['a field more', text.replace('"version"', '"more":1,"version"')],
    ['a later version', text.replace('"version":1', '"version":2')],
    ['no line feed', text.trimEnd()],
    ['a time that is none', text.replace('2027-01-31T03:00:00.000Z', '2027-13-31T03:00:00.000Z')],
    ['too many', `${JSON.stringify({ ...value, signatures: many })}\n`],
    ['too long', text + ' '.repeat(SET_SIGNATURE_BYTES_MAX)],
    ['no list', `${JSON.stringify({ ...value, signatures: {} })}\n`],
    ['no key', `${JSON.stringify({ ...value, signatures: [{ signature: value.signatures[0].signature }] })}\n`],
    ['a short signature', `${JSON.stringify({ ...value, signatures: [{ key: first.id, signature: 'AAAA' }] })}\n`],
    ['not UTF-8', Buffer.from([0x7b, 0xff, 0x7d])],
  ] as const)
    t.equal(await code(() => decodeSetSignature(Buffer.from(bytes), A)), 'TEMPLATE_UNTRUSTED', name)
  let full = signSet(A, first.secret, NOW)
  full = {
    ...full,
    signatures: many.slice(1).map((_, i) => ({ key: `${i}`.padStart(16, '0'), signature: Buffer.alloc(64) })),
  }
  t.ok((await written(full, t)).length <= SET_SIGNATURE_BYTES_MAX, 'as many as may be fit')
  t.equal(await code(() => signSet(A, second.secret, NOW, full)), 'USAGE')
})

t.test('beside a set', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const digest = await putPages(store, [page(1)])
  t.equal(await readSetSignature(folder, digest), undefined)
  const document = signSet(digest, first.secret, NOW)
  await writeSetSignature(folder, document)
  t.same(await readSetSignature(folder, digest), document)
  t.same(readdirSync(folder).sort(), [`${digest}.pfset`, `${digest}.pfset.sig`])
  t.same((await store.list()).length, 1, 'it is no set')
  await store.remove(digest)
  t.same(readdirSync(folder), [], 'it goes with its set')
  symlinkSync('/dev/null', join(folder, `${digest}.pfset.sig`))
  t.equal(await code(() => readSetSignature(folder, digest)), 'IO', 'a link is not followed')
  t.equal(await code(() => writeSetSignature(join(folder, 'none'), document)), 'IO')
})

t.test('sessions of a site that asks for it have no other sets', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(join(folder, 'store'))
  const keys = join(folder, 'keys.pub')
  writeFileSync(keys, first.pem + second.pem)
  const [one, two, three] = [
    await putPages(store, [page(1)]),
    await putPages(store, [page(2)]),
    await putPages(store, [page(3)]),
  ] as const
  await writeSetSignature(store.folder, signSet(one, second.secret, NOW))
  await writeSetSignature(store.folder, signSet(two, stranger.secret, NOW))
  const events = new Events()
  const told: string[] = []
  events.subscribe(({ event, fields }) => {
    if (event === 'template set not used') told.push(`${fields.set.split('/').at(-1)!.slice(0, 4)} ${fields.error}`)
  })
  const sets = new SessionSets(store, events, undefined, new SetSigners(store.folder, keys))
  t.same(await floorsOf(sets), { hot: [one], cold: [] })
  t.match(told.toSorted(), [
    new RegExp(two.slice(0, 4) < three.slice(0, 4) ? stranger.id : 'nobody'),
    new RegExp(two.slice(0, 4) < three.slice(0, 4) ? 'nobody' : stranger.id),
  ])
  t.same(await floorsOf(sets), { hot: [one], cold: [] })
  t.equal(told.length, 2, 'told once')
  t.notOk(sets.changed)
  await writeSetSignature(store.folder, signSet(three, first.secret, NOW))
  await (sets as unknown as { look: () => Promise<void> }).look()
  t.ok(sets.changed, 'a signature that came is seen')
  t.same(new Set((await sets.offer()).hot), new Set([one, three]))
  // a key that is not trusted any more
  writeFileSync(keys, first.pem)
  await (sets as unknown as { look: () => Promise<void> }).look()
  t.ok(sets.changed)
  t.same((await sets.offer()).hot, [three])
  rmSync(keys)
  t.same((await sets.offer()).hot, [], 'nothing is believed without keys')
  t.same(new Set((await new SessionSets(store, events).offer()).hot), new Set([one, two, three]), 'where nobody asks')
  t.equal(await code(() => new SetSigners(store.folder, keys)), 'IO')
})

t.test('it goes with a set to a remote store and from there to hosts', async t => {
  const site = operator(t.teardown)
  const { remote, folder, promote } = site
  const made = scratch(t.teardown)
  const built = new TemplateStore(made.folder)
  const digest = await putPages(
    built,
    Array.from({ length: 50 }, (_, i) => page(i + 1)),
  )
  await pushSet(built, remote, digest)
  const there = join(folder, `sets/${digest}.pfset.sig`)
  t.notOk(existsSync(there), 'nobody has signed it')
  await writeSetSignature(built.folder, signSet(digest, first.secret, NOW))
  await pushSet(built, remote, digest)
  t.ok(existsSync(there), 'signed later, and pushed again')
  await writeSetSignature(
    built.folder,
    signSet(digest, second.secret, NOW, await readSetSignature(built.folder, digest)),
  )
  await pushSet(built, remote, digest)
  t.equal((await promote([digest])).sets.length, 1)
  const far = host(t.teardown, site)
  await far.sync()
  t.equal(signerOf((await readSetSignature(far.store.folder, digest))!, [second.open]), second.id)
})

t.test('signed when it is in force already', async t => {
  const site = operator(t.teardown)
  const { remote, folder, promote } = site
  const made = scratch(t.teardown)
  const built = new TemplateStore(made.folder)
  const digests = [await putPages(built, [page(1)]), await putPages(built, [page(2)])].sort() as [string, string]
  for (const digest of digests) await pushSet(built, remote, digest)
  await promote(digests)
  const far = host(t.teardown, site)
  const keysOf = async (digest: string): Promise<string[]> =>
    (await readSetSignature(far.store.folder, digest))?.signatures.map(({ key }) => key) ?? []
  await far.sync()
  const told = far.events.length
  const sign = async (digest: string, key: Key): Promise<void> => {
    const before = await readSetSignature(built.folder, digest)
    await writeSetSignature(built.folder, signSet(digest, key.secret, NOW, before))
    await pushSet(built, remote, digest)
  }
  await sign(digests[0], first)
  await far.sync()
  t.same(await keysOf(digests[0]), [first.id])
  t.same(await keysOf(digests[1]), [])
  t.match(far.events.slice(told), [{ kind: 'signed', channel: 'stable', digest: digests[0] }], 'nothing else is told')

  // a second one beside it: asked for where the first is not enough
  await sign(digests[0], second)
  await far.sync()
  t.same(await keysOf(digests[0]), [first.id], 'whoever signed it will do')
  await far.sync({ signers: () => [second.open] })
  t.same(await keysOf(digests[0]), [first.id, second.id])
  await far.sync({ signers: () => [stranger.open] })
  t.same(await keysOf(digests[0]), [first.id, second.id], 'there is nothing better')

  // somebody takes one away at the store: it stays here, until this host wants who signed there
  const there = join(folder, `sets/${digests[0]}.pfset.sig`)
  writeFileSync(there, await written(signSet(digests[0], stranger.secret, NOW), t))
  await far.sync({ signers: () => [makeKey().open] })
  t.same(await keysOf(digests[0]), [first.id, second.id])
  await far.sync({ signers: () => [stranger.open] })
  t.same(await keysOf(digests[0]), [stranger.id])
})

t.test('a store that lies about it, or is away', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  for (const name of ['liar', 'honest', 'empty']) mkdirSync(at(`${name}/sets`), { recursive: true })
  await writeSetSignature(at('honest/sets'), signSet(A, first.secret, NOW))
  writeFileSync(at(`liar/sets/${A}.pfset.sig`), await written(signSet(B, first.secret, NOW), t))
  const stores = (...names: string[]): RemoteStore[] => names.map(name => new FolderStore(at(name)))
  const own = at('own')
  await fetchSignature(stores('empty', 'liar'), own, A)
  t.equal(await readSetSignature(own, A), undefined, 'of another set: nothing')
  await fetchSignature(stores('liar', 'honest'), own, A)
  t.ok(await readSetSignature(own, A), 'the next store has it')
  rmSync(at(`own/${A}.pfset.sig`))
  t.equal(await code(() => fetchSignature(stores('nowhere'), own, A)), 'STORE_LOST')
  await fetchSignature(stores('nowhere', 'empty'), own, A)
  t.equal(await readSetSignature(own, A), undefined, 'one is away, and the other has none')
  await fetchSignature(stores('nowhere', 'honest'), own, A)
  t.ok(await readSetSignature(own, A))
  writeFileSync(at(`own/${A}.pfset.sig`), 'rubbish')
  await fetchSignature(stores('honest'), own, A)
  t.ok(await readSetSignature(own, A), 'what is none is replaced')
})
