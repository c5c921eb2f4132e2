/** Sets that are fetched: whole and verified or not at all, gone on with where it ended, whatever the store does. */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Random } from '../../scripts/harness/random.ts'
import { isProxyError } from '../../src/errors.ts'
import { type FetchOptions, fetchSet } from '../../src/remote/fetcher.ts'
import { FolderStore } from '../../src/remote/folder-store.ts'
import { HttpStore } from '../../src/remote/http-store.ts'
import { keyOfSet, type RemoteStore } from '../../src/remote/remote-store.ts'
import { readStoreKey } from '../../src/store/cipher.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { encodeHead } from '../../src/template/format.ts'
import { setFileName } from '../../src/template/wire.ts'
import { until } from '../helpers/until.ts'
import { failure, page, recordsOf, scratch, setBytes, sha256 } from '../template/makers.ts'
import { type Answer, breaksAfter, type HostileServer, honest, hostileServer, says } from './hostile-server.ts'

const PAGES = Array.from({ length: 300 }, (_, i) => page(i + 1))
const SET = setBytes(PAGES)
const DIGEST = digestOf(PAGES)
const KEY = keyOfSet(DIGEST)
const HEAD_LENGTH = SET.length - 300 * 4096

function digestOf(pages: readonly Buffer[]): string {
  const pieces = encodeHead({ minVms: 2, vms: 2 }, recordsOf(pages))
  for (let step = pieces.next(); ; step = pieces.next()) if (step.done) return step.value
}

interface Place {
  readonly server: HostileServer
  readonly remote: HttpStore
  readonly store: TemplateStore
  readonly fetch: (options?: FetchOptions, stores?: readonly RemoteStore[]) => ReturnType<typeof fetchSet>
  /** What is in the host's folder. */
  readonly names: () => string[]
}

async function place(
  t: { readonly teardown: (end: () => void) => void },
  objects: Record<string, Buffer> = { [KEY]: SET },
): Promise<Place> {
  const server = await hostileServer(t.teardown)
  for (const [key, bytes] of Object.entries(objects)) server.objects.set(key, bytes)
  const remote = new HttpStore(server.url, { answerMs: 20_000, stallMs: 20_000 })
  t.teardown(() => remote.close())
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(join(folder, 'store'))
  return {
    server,
    remote,
    store,
    fetch: (options, stores = [remote]) => fetchSet(stores, store, DIGEST, { pauseMs: () => 0, ...options }),
    names: () =>
      existsSync(store.folder) ? readdirSync(store.folder).map(name => name.replace(/-[0-9a-f]{16}\./, '-X.')) : [],
  }
}

/** One that is kept encrypted. */
function sealedStore(teardown: (end: () => void) => void): TemplateStore {
  const { folder, put } = scratch(teardown)
  const keyFile = put('key', randomBytes(32))
  chmodSync(keyFile, 0o600)
  return new TemplateStore(join(folder, 'store'), readStoreKey(keyFile))
}

/** As a crash may leave it: half a head that is the set's, and half of it not. */
function leaveHead({ folder }: TemplateStore): void {
  mkdirSync(folder)
  const wrong = Buffer.concat([SET.subarray(0, 3000), Buffer.alloc(1500, 0x55)])
  writeFileSync(join(folder, `.fetch-${DIGEST}-${'0'.repeat(16)}.part`), wrong)
}

const WHOLE = [setFileName(DIGEST)]
/** Of a fetch that has ended. */
const REST = [`.fetch-${DIGEST}-left-X.part`]

t.test('a set is fetched once, and is the same', { timeout: 60_000 }, async t => {
  const { fetch, store, names, server } = await place(t)
  const told: number[] = []
  const first = await fetch({ progress: (done, total) => told.push(done, total) })
  t.match(first, { digest: DIGEST, fileBytes: SET.length, existed: false, receivedBytes: SET.length })
  t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET))
  t.equal(statSync(store.pathOf(DIGEST)).mode & 0o777, 0o600)
  t.same(told.slice(-2), [SET.length, SET.length])
  t.match(await fetch(), { existed: true, receivedBytes: 0 })
  t.same(names(), WHOLE, 'nothing else is left')
  t.equal(server.requests.length, 1)
  truncateSync(store.pathOf(DIGEST), SET.length - 1)
  t.match(await fetch({ lengthBytes: SET.length }), { existed: false }, 'one that was damaged is fetched again')
  t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET))
})

t.test('a connection that breaks is gone on with', { timeout: 60_000 }, async t => {
  const { fetch, store, server, names } = await place(t)
  const cuts = [1, 31, 4000, HEAD_LENGTH - 7, 1, 5000, 4096, 100_000, 0, 7 * 4096, 0, 0, 0]
  for (const count of cuts) server.script.push(breaksAfter(server.objects, count))
  const { receivedBytes } = await fetch()
  t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET))
  t.same(names(), WHOLE)
  t.equal(receivedBytes, SET.length, 'no byte that was kept was fetched twice')
  t.equal(server.requests.length, cuts.length + 1)
  t.match(server.requests.at(-1), /bytes=\d{6}-$/)
})

t.test('a store that has gone is given up after a while, and the rest fetched later', { timeout: 60_000 }, async t => {
  const { fetch, store, server, names } = await place(t)
  server.script.push(breaksAfter(server.objects, 500_000))
  for (let i = 0; i < 4; i++) server.script.push(says(503))
  t.equal(await failure(() => fetch()), 'STORE_LOST')
  t.same(names(), REST)
  t.equal(server.requests.length, 5)
  const { receivedBytes } = await fetch()
  t.ok(receivedBytes <= SET.length - 300_000, 'what was there is not fetched again')
  t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET))
  t.same(names(), WHOLE)
})

t.test('what a crash made of a part', { timeout: 60_000 }, async t => {
  const parts: readonly (readonly [string, Buffer, number])[] = [
    [
      'zeros in a page',
      Buffer.concat([SET.subarray(0, 500_000), Buffer.alloc(4096), SET.subarray(504_096, 600_000)]),
      500_000,
    ],
    ['zeros in the head', Buffer.concat([SET.subarray(0, 3000), Buffer.alloc(600_000)]), 0],
    ['nothing', Buffer.alloc(0), 0],
    ['a part of the head', SET.subarray(0, 5000), 5000],
    ['bytes behind the end', Buffer.concat([SET, Buffer.alloc(50)]), SET.length],
    ['all of it', SET, SET.length],
  ]
  for (const [what, bytes, goodBytes] of parts) {
    for (const lengthBytes of [undefined, SET.length]) {
      const { fetch, store, names } = await place(t)
      mkdirSync(store.folder)
      writeFileSync(join(store.folder, `.fetch-${DIGEST}-${'0'.repeat(16)}.part`), bytes)
      const { receivedBytes } = await fetch({ lengthBytes })
      t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET), what)
      t.ok(receivedBytes <= SET.length - goodBytes + 4096, `${what}: the good part was kept`)
      t.same(names(), WHOLE)
    }
  }
  for (const lengthBytes of [undefined, SET.length]) {
    const { fetch, store, server } = await place(t)
    leaveHead(store)
    await fetch({ lengthBytes })
    t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET), 'half a head that is wrong: the whole of it once more')
    t.equal(server.requests.at(-1), `GET /store/${KEY}`)
  }
})

t.test('a store that has nothing good is not asked for ever', { timeout: 60_000 }, async t => {
  const bad = new Map([[KEY, Buffer.from(SET)]])
  bad.get(KEY)![4500]! ^= 1
  // breaks off once what it gave has been kept
  let cut = (): void => {}
  const half: Answer = (_, response) => {
    cut = () => void response.destroy()
    response.writeHead(200, { 'content-length': SET.length }).write(SET.subarray(0, 1000))
  }
  const progress = (done: number): void => {
    if (done === 1000) cut()
  }

  const mixed = await place(t)
  leaveHead(mixed.store)
  mixed.server.script.push(honest(mixed.server.objects), ...Array.from({ length: 30 }, () => says(403)))
  t.equal(await failure(() => mixed.fetch({ lengthBytes: SET.length })), 'STORE_REFUSED', 'after a head of two halves')
  t.equal(mixed.server.requests.length, 2)

  const halves = await place(t)
  for (let i = 0; i < 15; i++) halves.server.script.push(half, honest(bad))
  t.match(await failure(() => halves.fetch({ progress })), /^TEMPLATE_DAMAGED/, 'halves that do not go together')
  t.equal(halves.server.requests.length, 4, 'begun anew once')

  const one = await place(t)
  const other = await hostileServer(t.teardown)
  other.objects.set(KEY, SET)
  for (const { script } of [one.server, other]) script.push(...Array.from({ length: 30 }, () => half))
  const second = new HttpStore(other.url)
  t.teardown(() => second.close())
  const pauses: number[] = []
  const pauseMs = (attempt: number): number => {
    pauses.push(attempt)
    return 0
  }
  // which keeps nothing of a head on the disk
  const sealed = sealedStore(t.teardown)
  const fetch = () => fetchSet([one.remote, second], sealed, DIGEST, { pauseMs, progress })
  t.equal(await failure(fetch), 'STORE_LOST', 'two that break off in the head')
  t.same(pauses, [1, 2, 3, 4])
})

t.test('what is not the set', { timeout: 60_000 }, async t => {
  const changed = (at: number): Buffer => {
    const bytes = Buffer.from(SET)
    bytes[at]! ^= 1
    return bytes
  }
  const cases: readonly (readonly [string, string, Buffer])[] = [
    ['another set', 'TEMPLATE_DAMAGED', setBytes(PAGES.slice(1))],
    ['a table that was changed', 'TEMPLATE_DAMAGED', changed(3000)],
    ['a page that was changed', 'TEMPLATE_DAMAGED at', changed(HEAD_LENGTH + 50 * 4096 + 7)],
    ['the last byte changed', 'TEMPLATE_DAMAGED at', changed(SET.length - 1)],
    ['cut off', 'TEMPLATE_TRUNCATED', SET.subarray(0, SET.length - 1)],
    ['longer', 'TEMPLATE_DAMAGED', Buffer.concat([SET, Buffer.alloc(1)])],
    ['nothing', 'TEMPLATE_FORMAT', Buffer.alloc(0)],
    ['something', 'TEMPLATE_FORMAT', Buffer.alloc(10_000, '<html>')],
  ]
  for (const [what, code, bytes] of cases) {
    const { fetch, store, names, server, remote } = await place(t, { [KEY]: bytes })
    t.match(await failure(() => fetch()), new RegExp(`^${code}`), what)
    t.notOk(existsSync(store.pathOf(DIGEST)))
    t.ok(
      names().every(name => name.endsWith('.part')),
      'nothing that could be taken for a set',
    )
    t.ok(server.requests.length <= 2, 'a lie is not asked for again and again')
    const good = await hostileServer(t.teardown)
    good.objects.set(KEY, SET)
    const other = new HttpStore(good.url)
    t.teardown(() => other.close())
    await fetch({}, [remote, other])
    t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET), `${what}: the next store has it`)
    t.same(names(), WHOLE)
  }
  const { fetch } = await place(t)
  t.equal(
    await failure(() => fetch({ lengthBytes: SET.length + 4096 })),
    'STORE_ANSWER',
    'another length than the channel tells',
  )
})

t.test('a page that one store has damaged, another gives alone', { timeout: 60_000 }, async t => {
  const bad = Buffer.from(SET)
  bad[HEAD_LENGTH + 50 * 4096]! ^= 1
  const { fetch, store, remote } = await place(t, { [KEY]: bad })
  const good = await hostileServer(t.teardown)
  good.objects.set(KEY, SET)
  const other = new HttpStore(good.url)
  t.teardown(() => other.close())
  await fetch({}, [remote, other])
  t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET))
  t.same(good.requests, [`GET /store/${KEY} bytes=${HEAD_LENGTH + 50 * 4096}-`])
})

t.test('a store without it, one that does not let us, one that knows no ranges', { timeout: 60_000 }, async t => {
  const { fetch, store, server, remote } = await place(t)
  const empty = await hostileServer(t.teardown)
  const closed = await hostileServer(t.teardown)
  const stores = [new HttpStore(empty.url), new HttpStore(closed.url), remote]
  t.teardown(() => stores.forEach(each => void each.close()))
  t.equal(await failure(() => fetch({}, [stores[0]!])), 'TEMPLATE_MISSING')
  closed.script.push(says(403))
  t.equal(
    await failure(() => fetch({}, stores.slice(0, 2))),
    'STORE_REFUSED',
    'what failed is told rather than what is missing',
  )
  closed.script.push(says(403))
  const whole: Answer = (request, response) => {
    delete request.headers.range
    honest(server.objects)(request, response)
  }
  server.script.push(breaksAfter(server.objects, 700_000), whole)
  const { receivedBytes } = await fetch({}, stores)
  t.equal(receivedBytes, SET.length, 'what it gave twice was passed over')
  t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET))
})

t.test('whoever fetches at the same time waits', { timeout: 60_000 }, async t => {
  const { fetch, server, names } = await place(t)
  const results = await Promise.all([fetch(), fetch(), fetch()])
  t.equal(results.filter(({ existed }) => !existed).length, 1)
  t.equal(server.requests.length, 1)
  t.same(names(), WHOLE)
})

t.test('given up by whoever asked for it', { timeout: 60_000 }, async t => {
  const { fetch, server, names } = await place(t)
  server.script.push((_, response) => {
    response.writeHead(200, { 'content-length': SET.length })
    response.write(SET.subarray(0, 300_000))
  })
  const controller = new AbortController()
  const reason = new Error('enough')
  const given = fetch({
    signal: controller.signal,
    progress: done => void (done > 250_000 && controller.abort(reason)),
  })
  await t.rejects(given, /enough/)
  t.same(names(), REST, 'no lock is left')
  await t.rejects(fetch({ signal: controller.signal }), /enough/)
})

t.test('killed in the middle: the next process goes on', { timeout: 120_000 }, async t => {
  const { fetch, server, store, names } = await place(t)
  server.script.push((_, response) => {
    response.writeHead(200, { 'content-length': SET.length })
    response.write(SET.subarray(0, 900_000))
  })
  const child = spawn(process.execPath, [
    fileURLToPath(new URL('fetch-child.ts', import.meta.url)),
    server.url,
    store.folder,
    DIGEST,
  ])
  t.teardown(() => child.kill('SIGKILL'))
  const exited = once(child, 'exit')
  const size = (): number =>
    existsSync(store.folder)
      ? Math.max(
          0,
          ...readdirSync(store.folder)
            .filter(name => name.endsWith('.part'))
            .map(name => statSync(join(store.folder, name)).size),
        )
      : 0
  await until('bytes of it', () => size() > 850_000)
  child.kill('SIGKILL')
  await exited
  t.same(names().sort(), [`.fetch-${DIGEST}-X.part`, `.fetch-${DIGEST}.lock`])
  // as if a minute had passed
  const past = new Date(Date.now() - 61_000)
  utimesSync(join(store.folder, `.fetch-${DIGEST}.lock`), past, past)
  const { receivedBytes } = await fetch()
  t.ok(receivedBytes < SET.length - 850_000)
  t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET))
  t.same(names(), WHOLE)
})

t.test('a part whose owner is stopped, and writes to it long after', { timeout: 60_000 }, async t => {
  const { fetch, store, names } = await place(t)
  mkdirSync(store.folder)
  const part = join(store.folder, `.fetch-${DIGEST}-${'0'.repeat(16)}.part`)
  writeFileSync(part, SET.subarray(0, 500_000))
  const owners = openSync(part, 'r+')
  t.teardown(() => closeSync(owners))
  const { receivedBytes } = await fetch()
  t.ok(receivedBytes <= SET.length - 500_000 + 4096, 'it is gone on with')
  writeSync(owners, Buffer.alloc(3000), 0, 3000, 2000) // of a head that is not verified yet
  t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET))
  t.same(names(), WHOLE)
})

t.test('into a store that is kept encrypted', { timeout: 60_000 }, async t => {
  const { server, remote } = await place(t)
  const store = sealedStore(t.teardown)
  server.script.push(breaksAfter(server.objects, 200_000), breaksAfter(server.objects, 5000))
  t.match(await fetchSet([remote], store, DIGEST, { pauseMs: () => 0 }), { existed: false, receivedBytes: SET.length })
  t.equal(await store.holds(DIGEST), true)
  const bytes = readFileSync(store.pathOf(DIGEST))
  t.equal(bytes.indexOf(PAGES[17]!.subarray(0, 64)), -1)
  t.same(readdirSync(store.folder), WHOLE)
  const bad = Buffer.from(SET)
  bad[SET.length - 1]! ^= 1
  server.objects.set(KEY, bad)
  const other = sealedStore(t.teardown)
  t.match(await failure(() => fetchSet([remote], other, DIGEST)), /^TEMPLATE_DAMAGED/)
  t.same(readdirSync(other.folder), [])
})

t.test('from a folder', { timeout: 60_000 }, async t => {
  const { fetch, store } = await place(t)
  const { folder } = scratch(t.teardown)
  mkdirSync(join(folder, 'sets'))
  writeFileSync(join(folder, KEY), SET)
  await fetch({}, [new FolderStore(folder)])
  t.ok(readFileSync(store.pathOf(DIGEST)).equals(SET))
})

t.test('by chance: whatever happens, what stands under the name is the set', { timeout: 120_000 }, async t => {
  const chance = new Random(Number(process.env.LINK_SEED ?? 20_261_129))
  const below = (limit: number): number => Math.floor(chance.next() * limit)
  let whole = 0
  for (let round = 0; round < 60; round++) {
    const { fetch, store, server, names } = await place(t)
    for (let i = below(6); i > 0; i--) {
      const bad = new Map([[KEY, Buffer.from(SET)]])
      if (chance.next() < 0.3) bad.get(KEY)![below(SET.length)]! ^= 1 << below(8)
      server.script.push(chance.next() < 0.2 ? says(500 + below(4)) : breaksAfter(bad, below(SET.length)))
    }
    for (let tries = 0; tries < 20; tries++) {
      try {
        await fetch()
        break
      } catch (error) {
        if (!isProxyError(error)) throw error
        if (existsSync(store.pathOf(DIGEST))) t.fail(`round ${round}: a set after ${error.code}`)
      }
    }
    if (sha256(readFileSync(store.pathOf(DIGEST))) === sha256(SET) && names().length === 1) whole++
  }
  t.equal(whole, 60)
})
