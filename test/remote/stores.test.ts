/** What every remote store does alike, and what a web server can do wrong. */
import { mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { FolderStore } from '../../src/remote/folder-store.ts'
import { HttpStore } from '../../src/remote/http-store.ts'
import { type ReadAt, type RemoteStore, wholeBody, writerOf } from '../../src/remote/remote-store.ts'
import { until } from '../helpers/until.ts'
import { failure, scratch } from '../template/makers.ts'
import { breaksAfter, honest, hostileServer, says } from './hostile-server.ts'

const OBJECT = Buffer.alloc(300_000, 'content of an object. ')

/** Bytes as they are read to be put. */
function readable(bytes: Buffer): ReadAt {
  return {
    lengthBytes: bytes.length,
    read: async (into, at, length, position) => ({
      bytesRead: bytes.copy(into, at, position, position + Math.min(length, 70_000)),
    }),
  }
}

/** The object from a byte on. */
async function rest(store: RemoteStore, key: string, from = 0, tag?: string): Promise<string> {
  const opened = await store.open(key, { from, tag })
  if (!opened) return 'none'
  const bytes = await wholeBody(opened.body, opened.lengthBytes - opened.from)
  const same = Buffer.compare(bytes, OBJECT.subarray(opened.from)) === 0
  return `${opened.lengthBytes} from ${opened.from}, ${same ? 'same' : 'other'}`
}

for (const kind of ['folder', 'web server'] as const) {
  t.test(`${kind}: what it has, what it has not, and its parts`, { timeout: 60_000 }, async t => {
    const { folder } = scratch(t.teardown)
    let store: RemoteStore
    if (kind === 'folder') {
      mkdirSync(join(folder, 'channels'))
      writeFileSync(join(folder, 'channels/a.json'), OBJECT)
      store = new FolderStore(folder)
    } else {
      const server = await hostileServer(t.teardown)
      server.objects.set('channels/a.json', OBJECT)
      store = new HttpStore(server.url)
      t.teardown(() => store.close())
    }
    t.equal(await store.lengthOf('channels/a.json'), OBJECT.length)
    t.equal(await store.lengthOf('channels/b.json'), undefined)
    t.equal(await store.read('channels/b.json', 10), undefined)
    t.equal(await rest(store, 'channels/b.json'), 'none')
    const found = await store.read('channels/a.json', OBJECT.length)
    if (found === undefined || found === 'unchanged') throw new Error('not read')
    t.ok(Buffer.compare(found.bytes, OBJECT) === 0)
    t.equal(await store.read('channels/a.json', OBJECT.length, { unlessTag: found.tag }), 'unchanged')
    t.equal(await failure(() => store.read('channels/a.json', OBJECT.length - 1)), 'STORE_ANSWER')
    t.equal(await rest(store, 'channels/a.json'), '300000 from 0, same')
    t.equal(await rest(store, 'channels/a.json', 65_537, found.tag), '300000 from 65537, same')
    t.equal(await rest(store, 'channels/a.json', 65_537), '300000 from 65537, same', 'without a tag as well')
    t.equal(await rest(store, 'channels/a.json', 65_537, '"another"'), '300000 from 0, same', 'changed: all of it')
    const opened = await store.open('channels/a.json')
    await opened!.body.return()
    await t.rejects(store.read('channels/a.json', 1e6, { signal: AbortSignal.abort(new Error('no more')) }), /no more/)
    if (kind === 'web server') t.equal(await failure(async () => writerOf(store)), 'USAGE')
  })
}

/** Files and sockets that this process has open. */
function openOnes(): number {
  return readdirSync('/proc/self/fd').length
}

t.test('what was opened and is not read is closed', { timeout: 60_000 }, async t => {
  const { folder } = scratch(t.teardown)
  writeFileSync(join(folder, 'o'), OBJECT)
  const store = new FolderStore(folder)
  const { tag } = (await store.read('o', OBJECT.length)) as { tag: string }
  const before = openOnes()
  for (let i = 0; i < 20; i++) {
    t.equal(await store.read('o', OBJECT.length, { unlessTag: tag }), 'unchanged')
    t.equal(await failure(() => store.read('o', 10)), 'STORE_ANSWER')
    await (await store.open('o'))!.body.return()
  }
  await until(`${before} files`, () => openOnes() <= before)

  let sockets = 0
  const server = await hostileServer(t.teardown)
  server.objects.set('o', Buffer.alloc(8 << 20)) // more than the buffers of a socket take
  const remote = new HttpStore(server.url)
  t.teardown(() => remote.close())
  for (let i = 0; i < 20; i++) {
    server.script.push((request, response) => {
      sockets++
      request.socket.on('close', () => sockets--)
      honest(server.objects)(request, response)
    })
    await (await remote.open('o'))!.body.return()
  }
  await until('no sockets', () => sockets === 0)
})

t.test('a folder is written whole, and by one at a time', { timeout: 60_000 }, async t => {
  const { folder } = scratch(t.teardown)
  const root = join(folder, 'store')
  const store = new FolderStore(root)
  t.equal(await failure(() => store.read('channels/a.json', 10)), 'STORE_LOST', 'a disk that is not mounted')
  t.equal(await failure(() => store.put('sets/x.pfset', readable(OBJECT))), 'STORE_LOST')
  t.equal(await failure(() => store.replace('channels/a.json', Buffer.from('one'), undefined)), 'STORE_LOST')
  mkdirSync(root)
  let gone = 0
  t.equal(await store.put('sets/x.pfset', readable(OBJECT), bytes => (gone += bytes)), true)
  t.equal(gone, OBJECT.length)
  t.equal(await store.put('sets/x.pfset', readable(Buffer.alloc(5))), false, 'what is there stays')
  t.ok(Buffer.compare(readFileSync(join(root, 'sets/x.pfset')), OBJECT) === 0)
  t.equal(statSync(join(root, 'sets/x.pfset')).mode & 0o777, 0o600)

  t.equal(await store.replace('channels/a.json', Buffer.from('one'), '"some"'), false, 'there is none yet')
  t.equal(await store.replace('channels/a.json', Buffer.from('one'), undefined), true)
  t.equal(await store.replace('channels/a.json', Buffer.from('two'), undefined), false, 'there is one')
  const found = await store.read('channels/a.json', 100)
  if (found === undefined || found === 'unchanged') throw new Error('not read')
  const both = await Promise.allSettled(
    ['two', 'three'].map(text => store.replace('channels/a.json', Buffer.from(text), found.tag)),
  )
  const won = both.filter(result => result.status === 'fulfilled' && result.value)
  t.equal(won.length, 1, 'of two that replace the same one, one does')
  writeFileSync(join(root, 'channels/a.json.lock'), '')
  const now = await store.read('channels/a.json', 100)
  t.equal(
    await failure(() => store.replace('channels/a.json', Buffer.from('x'), (now as { tag: string }).tag)),
    'STORE_LOST',
  )
  const past = new Date(Date.now() - 61_000)
  utimesSync(join(root, 'channels/a.json.lock'), past, past)
  t.equal(await store.replace('channels/a.json', Buffer.from('x'), (now as { tag: string }).tag), true, 'of one killed')
  t.same(readdirSync(join(root, 'channels')), ['a.json'])

  const keys: string[] = []
  for await (const { key, lengthBytes } of store.list('sets/')) keys.push(`${key} ${lengthBytes}`)
  t.same(keys, ['sets/x.pfset 300000'])
  await store.remove('sets/x.pfset')
  t.same(readdirSync(join(root, 'sets')), [], 'nothing is left of what was written')
  const short = { ...readable(OBJECT), lengthBytes: OBJECT.length + 1 }
  t.equal(await failure(() => store.put('sets/y.pfset', short)), 'IO', 'a file that becomes shorter')
  t.same(readdirSync(join(root, 'sets')), [])
})

t.test('a web server that is none, or one that lies', { timeout: 60_000 }, async t => {
  const server = await hostileServer(t.teardown)
  server.objects.set('o', OBJECT)
  const store = new HttpStore(server.url, { answerMs: 300, stallMs: 300 })
  t.teardown(() => store.close())
  const get = () => rest(store, 'o')
  const part = () => rest(store, 'o', 100, '"x"')
  const length = OBJECT.length
  const cases: readonly (readonly [string, string, () => Promise<string>, (typeof server.script)[0]])[] = [
    ['no answer', 'STORE_LOST', get, () => {}],
    ['a head that does not end', 'STORE_LOST', get, (_, answer) => void answer.socket!.write('HTTP/1.1 200 OK\r\n')],
    [
      'a head without end',
      'STORE_LOST',
      get,
      (_, answer) => void answer.socket!.write(`HTTP/1.1 200 OK\r\nx: ${'y'.repeat(1 << 20)}`),
    ],
    ['what is no HTTP', 'STORE_LOST', get, (_, answer) => void answer.socket!.end('SSH-2.0-OpenSSH\r\n')],
    ['a connection that closes', 'STORE_LOST', get, (_, answer) => void answer.socket!.destroy()],
    ['a server in trouble', 'STORE_LOST', get, says(503, { 'retry-after': 100 })],
    ['a server that is asked too often', 'STORE_LOST', get, says(429)],
    ['no permission', 'STORE_REFUSED', get, says(403)],
    ['no name', 'STORE_REFUSED', get, says(401)],
    [
      'a page of a portal without a length',
      'STORE_ANSWER',
      get,
      (_, answer) => void answer.writeHead(200).write('<html>log in', () => answer.end()),
    ],
    ['packed', 'STORE_ANSWER', get, says(200, { 'content-encoding': 'gzip', 'content-length': 4 }, 'abcd')],
    ['a status that means nothing here', 'STORE_ANSWER', get, says(204)],
    ['nothing new, which nobody asked for', 'STORE_ANSWER', get, says(304)],
    ['a redirect to another host', 'STORE_ANSWER', get, says(302, { location: 'http://other.example/o' })],
    ['a redirect to another scheme', 'STORE_ANSWER', get, says(302, { location: 'file:///etc/passwd' })],
    ['a redirect to nowhere', 'STORE_ANSWER', get, says(302)],
    ['fewer bytes than promised', 'STORE_LOST', get, breaksAfter(server.objects, 1000)],
    [
      'a part from elsewhere',
      'STORE_ANSWER',
      part,
      says(206, { 'content-range': `bytes 99-${length - 1}/${length}`, 'content-length': length - 99 }),
    ],
    [
      'a part of a part',
      'STORE_ANSWER',
      part,
      says(206, { 'content-range': `bytes 100-199/${length}`, 'content-length': 100 }),
    ],
    [
      'a part with another length',
      'STORE_ANSWER',
      part,
      says(206, { 'content-range': `bytes 100-${length - 1}/${length}`, 'content-length': 7 }),
    ],
    ['a part without its place', 'STORE_ANSWER', part, says(206, { 'content-length': 7 })],
    [
      'a part of unknown length',
      'STORE_ANSWER',
      part,
      says(206, { 'content-range': `bytes 100-${length - 1}/*`, 'content-length': 7 }),
    ],
    ['a part that cannot be', 'STORE_ANSWER', part, says(416)],
    [
      'a stall',
      'STORE_LOST',
      get,
      (_, answer) => void answer.writeHead(200, { 'content-length': length }).write('abc'),
    ],
    [
      'a trickle',
      'STORE_LOST',
      get,
      (_, answer) => {
        answer.writeHead(200, { 'content-length': length })
        const drip = setInterval(() => answer.write('a'), 20)
        answer.on('close', () => clearInterval(drip))
      },
    ],
  ]
  for (const [what, code, act, answer] of cases) {
    server.script.push(answer)
    t.equal(await failure(act), code, what)
  }
  server.script.push(...Array.from({ length: 4 }, () => says(301, { location: '/store/o' })))
  t.equal(await failure(get), 'STORE_ANSWER', 'round in circles')
  server.script.push(says(301, { location: '/store/o' }))
  t.equal(await get(), '300000 from 0, same', 'a redirect within the host')
  server.script.push(
    says(206, { 'content-range': `bytes 0-${length - 1}/${length}`, 'content-length': length }, OBJECT),
  )
  t.equal(await failure(get), 'STORE_ANSWER', 'a part where all was asked for')
})

t.test('a reader that takes its time is no stall', { timeout: 60_000 }, async t => {
  const server = await hostileServer(t.teardown)
  server.objects.set('o', Buffer.alloc(8 << 20))
  const store = new HttpStore(server.url, { stallMs: 50 })
  t.teardown(() => store.close())
  const opened = await store.open('o')
  let have = 0
  for await (const piece of opened!.body) {
    // the reader holds the first piece for several windows
    if (have === 0) for (let i = 0; i < 5; i++) await new Promise(done => setTimeout(done, 50))
    have += piece.length
  }
  t.equal(have, 8 << 20)
})

t.test('addresses', async t => {
  const bad = [
    'http://store.example/',
    'https://a:secret@store.example/',
    'https://store.example/?x',
    'ftp://x/',
    'https://',
  ]
  for (const address of bad) t.equal(await failure(async () => new HttpStore(address)), 'USAGE', address)
  for (const address of ['https://store.example', 'http://[::1]:1/', 'http://localhost/x']) t.ok(new HttpStore(address))
  t.ok(new HttpStore('http://store.example/', { insecure: true }))
})
