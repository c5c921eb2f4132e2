/** Real servers: S3 as Ceph's radosgw and OpenStack Swift speak it, and nginx with HTTPS. A promotion through each of them, as people type it. */
import { mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { fetchSet } from '../../src/remote/fetcher.ts'
import { keyOfChannel, keyOfSet, type RemoteStore, SETS, wholeBody } from '../../src/remote/remote-store.ts'
import { S3Store } from '../../src/remote/s3-store.ts'
import { SetBytes } from '../../src/store/set-bytes.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { run } from '../cli/command.ts'
import { failure, page, putPages, scratch, sha256 } from '../template/makers.ts'
import { missing, nginx, RADOSGW_PROGRAMS, radosgw, type S3Engine, SWIFT_PROGRAMS, swift } from './engines.ts'

t.setTimeout(590_000) // they take their time to start

const noRadosgw = missing(...RADOSGW_PROGRAMS) ?? false
const noSwift = missing(...SWIFT_PROGRAMS) ?? false
const noNginx = missing('nginx') ?? false

/** A range, by hand. */
async function part(store: RemoteStore, key: string, from: number, tag?: string): Promise<string> {
  const opened = await store.open(key, { from, tag })
  if (!opened) return 'none'
  const bytes = await wholeBody(opened.body, opened.lengthBytes - opened.from)
  return `${opened.from} ${sha256(bytes)}`
}

async function s3(t: Test, { endpoint, accessKey, secretKey }: S3Engine): Promise<void> {
  const env = {
    AWS_ENDPOINT_URL: endpoint,
    AWS_ACCESS_KEY_ID: accessKey,
    AWS_SECRET_ACCESS_KEY: secretKey,
    AWS_CONFIG_FILE: '/dev/null',
    AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
  }
  Object.assign(process.env, env)
  const { folder } = scratch(t.teardown)
  const name = 's3://sets/eu'
  const store = await S3Store.of(name, { partBytes: 5 << 20 })
  t.teardown(() => store.close())
  t.equal(await failure(() => store.read('x', 10)), 'STORE_REFUSED', 'no bucket')
  const client = new S3Client({ region: 'us-east-1', forcePathStyle: true })
  await client.send(new CreateBucketCommand({ Bucket: 'sets' }))
  client.destroy()

  await t.test('objects', async t => {
    t.equal(await store.read('channels/a.json', 100), undefined)
    t.equal(await store.replace('channels/a.json', Buffer.from('one'), '"some"'), false, 'there is none yet')
    t.equal(await store.replace('channels/a.json', Buffer.from('one'), undefined), true)
    t.equal(await store.replace('channels/a.json', Buffer.from('two'), undefined), false, 'there is one')
    const found = await store.read('channels/a.json', 100)
    if (typeof found !== 'object') throw new Error('not read')
    t.equal(Buffer.from(found.bytes).toString(), 'one')
    t.equal(await store.read('channels/a.json', 100, { unlessTag: found.tag }), 'unchanged')
    t.equal(await store.replace('channels/a.json', Buffer.from('two'), found.tag), true)
    t.equal(await store.replace('channels/a.json', Buffer.from('three'), found.tag), false, 'it is another one now')
    t.equal(await failure(() => store.read('channels/a.json', 2)), 'STORE_ANSWER')
  })

  const built = new TemplateStore(join(folder, 'built'))
  const digest = await putPages(
    built,
    Array.from({ length: 3000 }, (_, i) => page(i + 1)),
  ) // three parts
  const bytes = readFileSync(built.pathOf(digest))
  const key = keyOfSet(digest)

  await t.test('a large object, in parts', async t => {
    const source = await SetBytes.open(built.pathOf(digest), undefined)
    t.teardown(() => source.close())
    let sent = 0
    t.equal(await store.put(key, source, count => (sent += count)), true)
    t.equal(sent, bytes.length)
    t.equal(await store.put(key, source), false)
    t.equal(await store.lengthOf(key), bytes.length)
    const keys: string[] = []
    for await (const found of store.list(SETS)) keys.push(`${found.key} ${found.lengthBytes}`)
    t.same(keys, [`${key} ${bytes.length}`])
    const opened = await store.open(key)
    await opened!.body.return()
    t.equal(await part(store, key, 9_999_999, opened!.tag), `9999999 ${sha256(bytes.subarray(9_999_999))}`)
    t.equal(await part(store, key, 9_999_999, '"another"'), `0 ${sha256(bytes)}`, 'changed: all of it')
    const into = new TemplateStore(join(folder, 'fetched'))
    await fetchSet([store], into, digest)
    t.ok(readFileSync(into.pathOf(digest)).equals(bytes))
    const broken = { ...source, lengthBytes: bytes.length, read: async () => ({ bytesRead: 0 }) }
    t.equal(await failure(() => store.put(`${SETS}x.pfset`, broken)), 'IO')
    t.equal(await store.lengthOf(`${SETS}x.pfset`), undefined, 'an upload that broke off is nothing')
    await store.remove(key)
    t.equal(await store.lengthOf(key), undefined)
  })

  await t.test('as people type it', async t => {
    const store = async (...args: string[]): Promise<string> => {
      const { status, stdout, stderr } = await run(['store', ...args], { cwd: folder, env })
      return `${status} ${stdout}${stderr}`
    }
    const promoting = ['--key', 'key', '--store', name]
    const syncing = ['sync', '--channel', 'stable', '--trust', 'key.pub', '--store', 'host', '--store', name]
    t.match(await store('key', 'key'), /^0 /)
    t.match(await store('push', '--all', '--store', 'built', '--store', name), /^0 .*put: s3:/)
    t.match(await store('promote', 'stable', digest.slice(0, 9), ...promoting), /^0 .*serial 1/)
    t.match(await store(...syncing), /^0 .*fetched\n.*serial 1 is in force/s)
    t.ok(readFileSync(join(folder, 'host', `${digest}.pfset`)).equals(bytes))
    t.match(await store('promote', 'stable', digest, ...promoting), /^0 .*serial 2/)
    t.match(await store('rollback', 'stable', '--to', '1', ...promoting), /^0 .*serial 3, with the sets of 1/)
    t.match(await store(...syncing), /^0 .*serial 3 is in force/)
    const wrong = await run(['store', ...syncing], { cwd: folder, env: { ...env, AWS_SECRET_ACCESS_KEY: 'x' } })
    t.equal(wrong.status, 12)
    t.match(wrong.stderr, /check the credentials/)
  })
}

t.test("S3 as Ceph's radosgw speaks it", { skip: noRadosgw }, async t => s3(t, await radosgw(t.teardown)))
t.test('S3 as Swift speaks it', { skip: noSwift }, async t => s3(t, await swift(t.teardown)))

t.test('HTTPS', { skip: noNginx }, async t => {
  const { folder } = scratch(t.teardown)
  mkdirSync(join(folder, 'remote'))
  const { url, caFile } = await nginx(join(folder, 'remote'), t.teardown)
  const built = new TemplateStore(join(folder, 'built'))
  const digest = await putPages(
    built,
    Array.from({ length: 1000 }, (_, i) => page(i + 1)),
  )
  const env = { NODE_EXTRA_CA_CERTS: caFile }
  const store = async (...args: string[]): Promise<string> => {
    const { status, stdout, stderr } = await run(['store', ...args], { cwd: folder, env })
    return `${status} ${stdout}${stderr}`
  }
  const remote = pathToFileURL(join(folder, 'remote')).href
  const syncing = ['sync', '--channel', 'stable', '--trust', 'key.pub', '--store', 'host', '--store', url]
  await store('key', 'key')
  t.match(await store('push', '--all', '--store', 'built', '--store', remote), /^0 /)
  t.match(await store('promote', 'stable', digest, '--key', 'key', '--store', remote), /^0 /)
  t.match(await store(...syncing), /^0 .*fetched\n.*serial 1 is in force/s)
  t.equal(await store(...syncing), '0 nothing new\n')
  t.ok(readFileSync(join(folder, 'host', `${digest}.pfset`)).equals(readFileSync(built.pathOf(digest))))
  const stranger = await run(['store', ...syncing], { cwd: folder })
  t.equal(stranger.status, 12, 'a certificate of a CA that nobody knows')
  t.match(stranger.stderr, /self-signed|unable to/)
  rmSync(join(folder, 'remote', keyOfChannel('stable')))
  t.match(await store(...syncing), /^13 .*no store has channel of sets stable/s)
})
