/** S3 that is not there, fails, stalls and lies: always an error with a code, in bounded time and memory. */
import t from 'tap'
import { type RemoteStore, wholeBody } from '../../src/remote/remote-store.ts'
import { S3Store } from '../../src/remote/s3-store.ts'
import { failure } from '../template/makers.ts'
import { type Answer, breaksAfter, honest, hostileServer, says } from './hostile-server.ts'

t.setTimeout(590_000) // the machine may be busy

const OBJECT = Buffer.alloc(300_000, 'content of an object. ')

/** What the client would find of this host's own is not for a test. */
for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name]
Object.assign(process.env, {
  AWS_CONFIG_FILE: '/dev/null',
  AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
  AWS_EC2_METADATA_DISABLED: 'true',
})

function withKeys(endpoint: string): void {
  Object.assign(process.env, {
    AWS_ENDPOINT_URL: endpoint,
    AWS_ACCESS_KEY_ID: 'test',
    AWS_SECRET_ACCESS_KEY: 'secret',
  })
}

async function rest(store: RemoteStore, from = 0, tag?: string): Promise<string> {
  const opened = await store.open('o', { from, tag })
  if (!opened) return 'none'
  const bytes = await wholeBody(opened.body, opened.lengthBytes - opened.from)
  const same = Buffer.compare(bytes, OBJECT.subarray(opened.from)) === 0
  return `${opened.lengthBytes} from ${opened.from}, ${same ? 'same' : 'other'}`
}

t.test('names', async t => {
  for (const name of ['s3://', 's3:///x', 's3://UPPER', 's3://a:b@c/x', 's3://bucket/x?y', 's3://b'])
    t.equal(await failure(() => S3Store.of(name)), 'USAGE', name)
  const without = (): Promise<never> =>
    Promise.reject(Object.assign(new Error('no package'), { code: 'ERR_MODULE_NOT_FOUND' }))
  await t.rejects(S3Store.of('s3://bucket', { load: without }), { code: 'USAGE', action: /@aws-sdk\/client-s3/ })
})

t.test('no credentials, and an endpoint that everyone can listen to', async t => {
  process.env.AWS_ENDPOINT_URL = 'http://127.0.0.1:9'
  const store = await S3Store.of('s3://bucket/x')
  t.equal(await failure(() => store.read('o', 10)), 'STORE_REFUSED')
  store.close()
  withKeys('http://192.0.2.1:9')
  const open = await S3Store.of('s3://bucket/x')
  t.equal(await failure(() => open.read('o', 10)), 'USAGE')
  open.close()
  withKeys('http://127.0.0.1:9')
  const away = await S3Store.of('s3://bucket/x', { answerMs: 20_000 })
  t.equal(await failure(() => away.read('o', 10)), 'STORE_LOST', 'nobody listens')
  await t.rejects(away.read('o', 10, { signal: AbortSignal.abort(new Error('no more')) }), /no more/)
  away.close()
})

t.test('what it has, what it has not, and its parts', async t => {
  const server = await hostileServer(t.teardown)
  server.objects.set('o', OBJECT)
  withKeys(new URL(server.url).origin)
  const store = await S3Store.of('s3://store')
  t.teardown(() => store.close())
  t.equal(await rest(store), '300000 from 0, same')
  t.equal(await rest(store, 65_537), '300000 from 65537, same')
  t.equal(await store.lengthOf('o'), OBJECT.length)
  t.equal(await store.lengthOf('p'), undefined)
  t.equal(await store.read('p', 10), undefined)
  const found = await store.read('o', OBJECT.length)
  if (typeof found !== 'object') throw new Error('not read')
  t.equal(await store.read('o', OBJECT.length, { unlessTag: found.tag }), 'unchanged')
  t.equal(await failure(() => store.read('o', OBJECT.length - 1)), 'STORE_ANSWER')
  t.match(server.requests[0], /^GET \/store\/o\?x-id=GetObject$/, 'the bucket is in the path')
})

t.test('what it can do wrong', async t => {
  const server = await hostileServer(t.teardown)
  server.objects.set('o', OBJECT)
  withKeys(new URL(server.url).origin)
  const store = await S3Store.of('s3://store', { answerMs: 1500, stallMs: 1000 })
  t.teardown(() => store.close())
  const length = OBJECT.length
  const get = (): Promise<string> => rest(store)
  const part = (): Promise<string> => rest(store, 100)
  const list = async (): Promise<void> => {
    for await (const _ of store.list('sets/'));
  }
  const xml = (body: string): Answer => says(200, { 'content-type': 'application/xml' }, body)
  const error = (status: number, code: string): Answer =>
    says(status, { 'content-type': 'application/xml' }, `<Error><Code>${code}</Code><Message>so</Message></Error>`)
  const endless: Answer = (_, response) => {
    response.writeHead(200, { 'content-type': 'application/xml' })
    const more = (): void => {
      while (!response.destroyed && response.write('<a>'.repeat(100_000)));
    }
    response.on('drain', more)
    more()
  }
  const listing = (inside: string): string => `<ListBucketResult><Name>store</Name>${inside}</ListBucketResult>`
  const cases: readonly (readonly [string, string, () => Promise<unknown>, Answer, number?])[] = [
    ['no answer', 'STORE_LOST', get, () => {}],
    ['a head that does not end', 'STORE_LOST', get, (_, answer) => void answer.socket!.write('HTTP/1.1 200 OK\r\n')],
    ['in trouble', 'STORE_LOST', get, error(503, 'SlowDown'), 3],
    ['no permission', 'STORE_REFUSED', get, error(403, 'AccessDenied')],
    ['an unknown key', 'STORE_REFUSED', get, error(403, 'InvalidAccessKeyId')],
    ['no bucket', 'STORE_REFUSED', get, error(404, 'NoSuchBucket')],
    ['another region', 'STORE_REFUSED', get, error(301, 'PermanentRedirect')],
    ['what nobody asked for', 'STORE_ANSWER', get, error(418, 'Teapot')],
    ['packed', 'STORE_ANSWER', get, says(200, { 'content-encoding': 'gzip', 'content-length': 4 }, 'abcd')],
    [
      'a page without a length',
      'STORE_ANSWER',
      get,
      (_, answer) => void answer.writeHead(200).write('<', () => answer.end()),
    ],
    ['fewer bytes than promised', 'STORE_LOST', get, breaksAfter(server.objects, 1000)],
    [
      'a stall',
      'STORE_LOST',
      get,
      (_, answer) => void answer.writeHead(200, { 'content-length': length }).write('abc'),
    ],
    [
      'a part from elsewhere',
      'STORE_ANSWER',
      part,
      says(206, { 'content-range': `bytes 99-${length - 1}/${length}`, 'content-length': length - 99 }),
    ],
    ['a part that cannot be', 'STORE_ANSWER', part, error(416, 'InvalidRange')],
    ['an error without an end', 'STORE_ANSWER', list, endless],
    ['a listing that is none', 'STORE_ANSWER', list, xml('<html>log in')],
    [
      'a listing of other names',
      'STORE_ANSWER',
      list,
      xml(listing('<Contents><Key>../x</Key><Size>1</Size></Contents>')),
    ],
    [
      'a listing that never moves on',
      'STORE_ANSWER',
      list,
      xml(listing('<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>')),
      1000,
    ],
  ]
  for (const [what, code, act, answer, times = 1] of cases) {
    server.script.length = 0
    for (let i = 0; i < times; i++) server.script.push(answer)
    t.equal(await failure(act), code, what)
  }
  server.script.length = 0
  t.equal(await get(), '300000 from 0, same', 'and it works as before')
})

t.test('what is written on a condition', async t => {
  const server = await hostileServer(t.teardown)
  const { objects, script } = server
  withKeys(new URL(server.url).origin)
  const store = await S3Store.of('s3://store', { answerMs: 20_000, stallMs: 20_000 })
  t.teardown(() => store.close())
  const [ours, theirs, longer] = ['ours', 'their', "another's"].map(text => Buffer.from(text)) as [
    Buffer,
    Buffer,
    Buffer,
  ]
  const serve = honest(objects)
  /** Somebody, perhaps we, has written this before the request is refused. */
  const refusedFor = (bytes: Buffer): Answer => {
    return (request, response) => {
      objects.set('o', bytes)
      request.resume().on('end', () => says(412)(request, response))
    }
  }
  const answerLost: Answer = request => {
    request.resume().on('end', () => {
      objects.set('o', ours)
      request.socket.destroy()
    })
  }

  script.push(serve, answerLost, refusedFor(ours))
  t.equal(await store.replace('o', ours, undefined), true, 'it was we who wrote it')
  t.equal(script.length, 0)
  objects.set('o', theirs)
  const found = await store.read('o', 100)
  if (typeof found !== 'object') throw new Error('not read')
  script.push(serve, answerLost, refusedFor(ours))
  t.equal(await store.replace('o', ours, found.tag), true, 'also in place of another')

  // Ceph's radosgw knows its tags without the quotes that it gives out with them
  objects.set('o', theirs)
  const asked: (string | undefined)[] = []
  const like = (bare: string): Answer => {
    return (request, response) => {
      asked.push(request.headers['if-match'])
      const holds = request.headers['if-match'] === bare
      request.resume().on('end', () => {
        if (holds) objects.set('o', ours)
        says(holds ? 200 : 412)(request, response)
      })
    }
  }
  const bare = found.tag!.slice(1, -1)
  script.push(serve, like(bare), serve, like(bare))
  t.equal(await store.replace('o', ours, found.tag), true, 'quotes are no reason')
  t.same(asked, [found.tag, bare])
  objects.set('o', theirs)
  script.push(serve, like('another'), serve, like('another'))
  t.equal(await store.replace('o', ours, found.tag), false, 'changed meanwhile, without quotes too')
  t.same(asked, [found.tag, bare, found.tag, bare])
  script.push(serve, refusedFor(longer))
  t.equal(await store.replace('o', ours, found.tag), false, 'what was refused because it is another now')
  t.equal(script.length, 0)

  for (const bytes of [Buffer.from('OURS'), longer]) {
    objects.delete('o')
    script.push(serve, refusedFor(bytes))
    t.equal(await store.replace('o', ours, undefined), false, 'somebody else was quicker')
  }

  // what stands there is not what was read, and as long as it likes
  let sent = 0
  const given = Promise.withResolvers<void>()
  const endless: Answer = (_, response) => {
    response.writeHead(200, { etag: '"new"', 'content-length': 2 ** 40 })
    const more = (): void => {
      while (!response.destroyed && response.write(Buffer.alloc(1 << 16))) sent += 1 << 16
    }
    response.on('drain', more).on('close', given.resolve)
    more()
  }
  script.push(endless)
  t.equal(await store.replace('o', ours, found.tag), false)
  t.ok(sent < 64 << 20, `${sent} bytes`)
  await given.promise

  // nor what stands there when it was refused: its connection is given back
  objects.set('o', theirs)
  const again = Promise.withResolvers<void>()
  script.push(serve, refusedFor(longer), (request, response) => {
    response.on('close', again.resolve)
    endless(request, response)
  })
  t.equal(await store.replace('o', ours, found.tag), false)
  await again.promise
})
