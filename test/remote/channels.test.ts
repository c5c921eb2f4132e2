/** Promotions as they reach a host: whole, once, and never back unless the operator says so. */
import { createPrivateKey, createPublicKey } from 'node:crypto'
import {
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { ProxyError } from '../../src/errors.ts'
import { decodeChannel, encodeChannel } from '../../src/remote/channel.ts'
import { makeChannelKey } from '../../src/remote/channel-keys.ts'
import { FolderStore } from '../../src/remote/folder-store.ts'
import { followChannels } from '../../src/remote/follow-channels.ts'
import { HostChannels } from '../../src/remote/host-channels.ts'
import { keyOfChannel, keyOfOldChannel, keyOfSet, type RemoteStore } from '../../src/remote/remote-store.ts'
import { keyOfSignature } from '../../src/remote/set-signature.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { until } from '../helpers/until.ts'
import { failure, page, putPages } from '../template/makers.ts'
import { host, operator } from './sites.ts'

t.setTimeout(590_000) // the machine may be busy

t.test('push, promote, sync; promote, roll back', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const one = await site.push(1)
  const two = await site.push(100)
  t.equal(await failure(() => here.sync()), 'CHANNEL_MISSING')
  t.match(await site.promote([one]), { serial: 1, sets: [{ digest: one }] })
  await here.sync()
  t.same(await here.usable(), [one])
  t.ok(readFileSync(here.store.pathOf(one)).equals(readFileSync(join(site.folder, keyOfSet(one)))))
  t.match(here.events.slice(-2), [
    { kind: 'fetched', digest: one },
    { kind: 'in force', serial: 1 },
  ])
  const told = here.events.length
  await here.sync()
  t.equal(here.events.length, told, 'nothing new')

  t.match(await site.promote([two, one]), { serial: 2 })
  t.same(await here.usable(), [one], 'not before it was looked')
  await here.sync()
  t.same(await here.usable(), [one, two].sort())
  t.match(await site.promote([two]), { serial: 3 })
  await here.sync()
  t.same(await here.usable(), [two], 'what is not in force any more is not used, though it is there')
  t.match(await site.rollback(), { serial: 4, from: 2 })
  await here.sync()
  t.same(await here.usable(), [one, two].sort())
  t.match(await site.rollback(1), { serial: 5, from: 1 })
  await here.sync()
  t.same(await here.usable(), [one])
  t.equal(await failure(() => site.rollback(17)), 'CHANNEL_MISSING')
  t.same(
    readdirSync(join(site.folder, 'channels/stable')),
    [1, 2, 3, 4].map(n => `000000000${n}.json`),
  )
})

t.test('sets that people put stay in use', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const mine = await putPages(here.store, [page(7000)])
  const one = await site.push(1)
  const two = await site.push(100)
  await site.promote([one])
  await here.sync()
  await site.promote([two])
  await here.sync()
  t.same(await here.usable(), [mine, two].sort())
  // one that somebody has built here too, and that a channel names for a while
  await putPages(
    here.store,
    Array.from({ length: 50 }, (_, i) => page(300 + i)),
  )
  const three = await site.push(300)
  await site.promote([three])
  await here.sync()
  await site.promote([two])
  await here.sync()
  t.same(await here.usable(), [mine, two, three].sort())
})

t.test('two sites that do not switch at one moment use what was in force before', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const one = await site.push(1)
  const two = await site.push(100)
  await site.promote([one])
  await here.sync()
  await site.promote([two], { overlapMs: 3_600_000 })
  await here.sync()
  t.same(await here.usable(), [one, two].sort(), 'the other site may not have the new one yet')
  t.same(await here.usable(Date.now() + 3_601_000), [two], 'for an hour')
  await site.rollback()
  await here.sync()
  t.same(await here.usable(), [one], 'what is taken back is out of use at once')
})

t.test('a channel that is not followed any more stays in force until its documents are removed', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const [one, two, three] = [await site.push(1), await site.push(100), await site.push(200)]
  for (const digest of [one, two]) {
    await site.promote([digest], { overlapMs: 3_600_000 })
    await here.sync()
  }
  await site.promote([three], { channel: 'other' })
  await here.sync({ channels: ['other'] })
  t.same(await here.usable(), [one, two, three].sort())
  for (const name of ['.channel-stable.json', '.channel-stable.before.json']) rmSync(join(here.store.folder, name))
  t.same(await here.usable(), [three])
})

t.test('a store that says again what was in force', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const one = await site.push(1)
  const two = await site.push(100)
  await site.promote([one])
  await site.promote([two])
  await here.sync()
  copyFileSync(join(site.folder, keyOfOldChannel('stable', 1)), join(site.folder, keyOfChannel('stable')))
  t.equal(await failure(() => here.sync()), 'CHANNEL_STALE')
  t.same(await here.usable(), [two])
  t.equal(await failure(() => site.promote([one], { serial: 1 })), 'USAGE')
  await site.promote([one], { serial: 3 })
  await here.sync()
  t.same(await here.usable(), [one])
  // a host that has lost what it accepted must not be led back by it
  const accepted = join(here.store.folder, '.channel-stable.json')
  truncateSync(accepted, 20)
  t.equal(await failure(() => here.sync()), 'CHANNEL_FORMAT')
  t.same(await here.usable(), [], 'nor are its sets used')
})

t.test('whoever may write to the store, and has no key', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const one = await site.push(1)
  const two = await site.push(100)
  await site.promote([one])
  await here.sync()
  const stranger = createPrivateKey(makeChannelKey().privatePem)
  t.equal(await failure(() => site.promote([two], { keys: [stranger] })), 'CHANNEL_UNTRUSTED', 'told who promotes')
  await site.promote([two], { keys: [stranger], trusted: site.trusted })
  t.equal(await failure(() => here.sync()), 'CHANNEL_UNTRUSTED')
  t.same(await here.usable(), [one])
  t.equal(await failure(() => site.promote([one])), 'CHANNEL_UNTRUSTED', 'nor is it counted on from that')
  // an earlier document in which other sets stand must not be what a rollback signs
  await site.promote([one], { trusted: [createPublicKey(stranger)] })
  t.equal(await failure(() => site.rollback()), 'CHANNEL_UNTRUSTED')
  t.match(await site.rollback(undefined, { trusted: [createPublicKey(stranger)] }), { serial: 4, from: 2 })
  writeFileSync(join(site.folder, keyOfChannel('stable')), 'hello')
  t.equal(await failure(() => here.sync()), 'CHANNEL_FORMAT')
  t.same(await here.usable(), [one])
})

t.test('two that promote at the same time', async t => {
  const site = operator(t.teardown)
  const one = await site.push(1)
  const two = await site.push(100)
  await site.promote([one])
  const both = await Promise.allSettled([site.promote([one]), site.promote([two])])
  const won = both.filter(({ status }) => status === 'fulfilled')
  t.ok(won.length <= 1, 'one at most')
  for (const result of both) {
    if (result.status === 'rejected') t.match(result.reason.code, /CHANNEL_CONFLICT|STORE_LOST/)
  }
  t.equal(await failure(() => site.promote(['ab'.repeat(32)])), 'CHANNEL_CONFLICT', 'a set that is not there')
})

t.test('ended in the middle: what was in force stays, and the rest is fetched later', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const one = await site.push(1)
  await site.promote([one])
  await here.sync()
  const [two, three] = [await site.push(100), await site.push(200)].sort() as [string, string]
  await site.promote([two, three])
  const stop = new AbortController()
  const reason = new Error('enough')
  await t.rejects(
    here.sync({
      signal: stop.signal,
      tell: event => void (event.kind === 'fetched' && event.digest === two && stop.abort(reason)),
    }),
    /enough/,
  )
  t.same(await here.usable(), [one])
  t.ok((await here.store.digests()).includes(two), 'though one of the two is there')
  rmSync(join(site.folder, keyOfSet(three)))
  t.equal(await failure(() => here.sync()), 'TEMPLATE_MISSING', 'nor where one of them is gone')
  t.same(await here.usable(), [one])
  await site.push(100)
  await site.push(200)
  await here.sync()
  t.same(await here.usable(), [two, three])
})

t.test('the next store, where the first one fails', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const one = await site.push(1)
  await site.promote([one])
  const away = new FolderStore(join(site.folder, 'nowhere'))
  await here.sync({ stores: [away, site.remote] })
  t.same(await here.usable(), [one])
  t.equal(await failure(() => here.sync({ stores: [away] })), 'STORE_LOST')
})

t.test('kept under a size', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const mine = await putPages(
    here.store,
    Array.from({ length: 60 }, (_, i) => page(5000 + i)),
  )
  const sets: string[] = []
  for (let i = 0; i < 4; i++) sets.push(await site.push(100 * (i + 1)))
  const bytes = statSync(join(site.folder, keyOfSet(sets[0]!))).size
  const maxBytes = 2 * bytes + 100
  for (let i = 0; i < 4; i++) {
    await site.promote([sets[i]!])
    await here.sync({ maxBytes })
    // as if days lay between
    for (let j = 0; j <= i; j++) {
      const used = new Date(Date.now() - (10 - j) * 86_400_000)
      for (const path of [join(here.store.folder, `.fetched-${sets[j]}`), here.store.pathOf(sets[j]!)]) {
        try {
          utimesSync(path, used, used)
        } catch {}
      }
    }
  }
  t.same(await here.store.digests(), [mine, sets[2]!, sets[3]!].sort(), 'those longest out of force go')
  t.same(
    here.events.flatMap(event => (event.kind === 'removed' ? [event.digest] : [])),
    [sets[0], sets[1]],
  )
  t.notOk(here.names().includes(`.fetched-${sets[0]}`))
  await site.promote(sets.slice(0, 3))
  t.equal(await failure(() => here.sync({ maxBytes })), 'IO', 'more than there is room for: not begun')
  t.same(await here.usable(), [mine, sets[3]!].sort())
  await site.promote([sets[0]!, sets[1]!])
  t.equal(await failure(() => here.sync({ maxBytes })), 'IO', 'what is in force stays until the new ones are there')
  t.same(await here.usable(), [mine, sets[3]!].sort())
})

t.test('sets that go before what names them is in force', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const [one, two] = [await site.push(1), await site.push(100)].sort() as [string, string]
  await site.promote([one, two])
  let removals = 0
  await here.sync({
    tell: event => {
      if (event.kind !== 'fetched' || event.digest !== two) return
      removals++
      rmSync(here.store.pathOf(one)) // another process makes room
    },
  })
  t.equal(removals, 1)
  t.same(await here.store.digests(), [one, two], 'fetched again')
  t.same(await here.usable(), [one, two])

  await site.promote([one])
  await here.sync()
  rmSync(here.store.pathOf(two))
  await site.promote([two, one])
  removals = 0
  const error = await here
    .sync({
      tell: event => {
        if (event.kind !== 'fetched') return
        removals++
        rmSync(here.store.pathOf(event.digest))
      },
    })
    .catch((error: unknown) => error)
  t.match(error, { code: 'IO', what: /again and again/ })
  t.equal(removals, 2)
  t.match((await here.channels.accepted('stable'))?.channel, { serial: 2 }, 'never in force without it')
})

t.test('two processes that accept at the same time', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const one = await site.push(1)
  await site.promote([one])
  await here.sync()
  const documents = Array.from({ length: 5 }, (_, i) => {
    const { channel } = decodeChannel(readFileSync(join(site.folder, keyOfChannel('stable'))), 'stable')
    return decodeChannel(encodeChannel({ ...channel, serial: 6 - i }, [site.key]), 'stable')
  })
  const accepted = await Promise.all(documents.map(each => new HostChannels(here.store.folder).accept(each)))
  t.equal((await here.channels.accepted('stable'))?.channel.serial, 6, 'the last one stays')
  t.ok(accepted.every(({ channel }, i) => channel.serial >= 6 - i))
  t.same(
    here.names().filter(name => name.endsWith('.lock')),
    [],
  )
})

t.test('room is made for one channel, and not of another', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const [one, two, three] = [await site.push(1), await site.push(100), await site.push(200)]
  const bytes = statSync(join(site.folder, keyOfSet(one))).size
  const maxBytes = 2 * bytes + 100
  await site.promote([one])
  await here.sync()
  await site.promote([two], { channel: 'other' })
  await here.sync({ channels: ['other'] })
  // a document that cannot be read: nobody knows which sets are in force
  const path = join(here.store.folder, '.channel-stable.json')
  const kept = readFileSync(path)
  truncateSync(path, 20)
  await site.promote([three], { channel: 'other' })
  const told = await here.sync({ channels: ['other'], maxBytes }).catch((error: unknown) => error)
  t.match(told, { code: 'CHANNEL_FORMAT', what: /^no room for .*: .*channel of sets stable/, where: { stream: path } })
  t.equal(await here.store.holds(one), true)
  writeFileSync(path, kept)

  // fetched ahead for one, and not removed for the other
  const ahead = { notBeforeMs: Date.now() + 3_600_000 }
  await site.promote([three], ahead)
  await here.sync()
  await site.promote([await site.push(300)], { channel: 'other' })
  t.equal(await failure(() => here.sync({ channels: ['stable', 'other'], maxBytes: 3 * bytes + 100 })), 'IO')
  t.equal(await here.store.holds(three), true)

  // what nobody needs goes all the same
  truncateSync(path, 20)
  const part = join(here.store.folder, `.fetch-${'0'.repeat(64)}-left-0123456789abcdef.part`)
  writeFileSync(part, Buffer.alloc(bytes))
  writeFileSync(join(here.store.folder, `.fetched-${'0'.repeat(64)}`), '')
  const idle = new Date(Date.now() - 3_600_000)
  utimesSync(part, idle, idle)
  await here.sync({ channels: ['other'], maxBytes: 4 * bytes + 100 })
  t.equal(existsSync(part), false)
})

t.test('what a fetch has left counts as well, and a note of what is just fetched stays', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const [one, two, three] = [await site.push(1), await site.push(100), await site.push(200)]
  const bytes = statSync(join(site.folder, keyOfSet(one))).size
  await site.promote([one])
  await here.sync()
  const part = (digest: string): string => join(here.store.folder, `.fetch-${digest}-0123456789abcdef.part`)
  for (const digest of [two, three]) {
    copyFileSync(join(site.folder, keyOfSet(digest)), part(digest))
    truncateSync(part(digest), bytes - 1000)
    writeFileSync(join(here.store.folder, `.fetched-${digest}`), '')
  }
  // another of the one that is wanted: only the longest is gone on with
  const spare = part(two).replace('-0123', '-1123')
  writeFileSync(spare, Buffer.alloc(bytes - 2000))
  await site.promote([two])
  const maxBytes = 2 * bytes + 100
  t.equal(await failure(() => here.sync({ maxBytes })), 'IO', 'somebody is writing it')
  const idle = new Date(Date.now() - 3_600_000)
  for (const path of [part(three), spare]) utimesSync(path, idle, idle)
  await here.sync({ maxBytes })
  t.same(await here.usable(), [two])
  t.notOk(
    here.names().some(name => name.endsWith('.part')),
    'nobody needs it',
  )

  await site.promote([one])
  await here.sync()
  t.ok(here.names().includes(`.fetched-${three}`), 'another process may be about to fetch it')
  const old = new Date(Date.now() - 90_000_000)
  utimesSync(join(here.store.folder, `.fetched-${three}`), old, old)
  await site.promote([await site.push(300)])
  await here.sync()
  t.notOk(here.names().includes(`.fetched-${three}`))
})

t.test('another process that makes room while a set is fetched', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const [one, two] = [await site.push(1), await site.push(100)]
  const bytes = statSync(join(site.folder, keyOfSet(one))).size
  await site.promote([one])
  await here.sync({ progress: digest => rmSync(join(here.store.folder, `.fetched-${digest}`), { force: true }) })
  t.ok(here.names().includes(`.fetched-${one}`), 'it forgot a set that was not there yet')
  await site.promote([two])
  await here.sync()
  t.same(await here.usable(), [two], 'out of force is out of use')
  // it removes what this one is about to
  const three = await site.push(200)
  const removing = here.store.remove.bind(here.store)
  here.store.remove = async digest => {
    rmSync(here.store.pathOf(digest))
    await removing(digest)
  }
  await site.promote([three])
  await here.sync({ maxBytes: 2 * bytes + 100 })
  t.same(await here.usable(), [three])
})

t.test('removed by hand, damaged by hand', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const one = await site.push(1)
  await site.promote([one])
  await here.sync()
  rmSync(here.store.pathOf(one))
  await here.sync()
  t.equal(await here.store.holds(one), true, 'it is fetched again')
  truncateSync(here.store.pathOf(one), 10_000)
  await site.promote([one])
  await here.sync()
  t.equal(await here.store.holds(one), true)
})

t.test('followed for as long as it runs, by two processes of a host', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const stop = new AbortController()
  const options = (events: unknown[]) => ({
    stores: [site.remote],
    into: new TemplateStore(here.store.folder),
    channels: ['stable', 'other'],
    trusted: () => site.trusted,
    tell: (event: unknown) => events.push(event),
    signal: stop.signal,
  })
  const events: { kind: string }[][] = [[], []]
  const running = events.map(each => followChannels(options(each)))
  const one = await site.push(1)
  const two = await site.push(100)
  const now = (): void => {
    for (const { askNow } of running) askNow()
  }
  await until('a failure', () => events.every(each => each.some(({ kind }) => kind === 'failed')))
  for (const digests of [[one], [two], [one, two]]) {
    await site.promote(digests)
    now()
    await until('it to be in force', async () => (await here.usable()).join() === digests.toSorted().join())
  }
  await site.rollback()
  now()
  await until('it to be taken back', async () => (await here.usable()).join() === two)
  stop.abort()
  await Promise.all(running.map(({ ended }) => ended))
  const fetched = events.flat().filter(({ kind }) => kind === 'fetched')
  t.equal(fetched.length, 2, 'each set was fetched once')
})

/** A store of which a test sees what it is asked, and holds an answer back. */
function watched({ remote }: { readonly remote: RemoteStore }): {
  readonly store: RemoteStore
  readonly asked: string[]
  before: (key: string) => Promise<void> | void
} {
  const asked: string[] = []
  const seen = async (key: string): Promise<void> => {
    asked.push(key)
    await watching.before(key)
  }
  const store: RemoteStore = {
    name: remote.name,
    writer: undefined,
    read: async (key, ...rest) => {
      await seen(key)
      return await remote.read(key, ...rest)
    },
    open: async (key, ...rest) => {
      await seen(key)
      return await remote.open(key, ...rest)
    },
    lengthOf: (key, signal) => remote.lengthOf(key, signal),
    close: () => {},
  }
  const watching: ReturnType<typeof watched> = { store, asked, before: () => {} }
  return watching
}

t.test('asked for again and again while a set is fetched', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const [one, two, three] = [await site.push(1), await site.push(100), await site.push(200)]
  await site.promote([one, two])
  const [first] = decodeChannel(readFileSync(join(site.folder, keyOfChannel('stable'))), 'stable').channel.sets
  const watching = watched(site)
  let release = (): void => {}
  const held = new Promise<void>(done => (release = done))
  let begun = (): void => {}
  const underWay = new Promise<void>(done => (begun = done))
  watching.before = key => {
    if (key !== keyOfSet(first!.digest)) return
    begun()
    return held
  }
  const stop = new AbortController()
  t.teardown(() => stop.abort())
  const { ended, askNow } = followChannels({
    stores: [watching.store],
    into: here.store,
    channels: ['stable'],
    trusted: () => site.trusted,
    tell: event => here.events.push(event),
    signal: stop.signal,
  })
  await underWay
  await site.promote([three])
  for (let i = 0; i < 3; i++) askNow()
  release()
  await until('the other one to be in force', async () => (await here.usable()).join() === three)
  stop.abort()
  await ended
  const document = keyOfChannel('stable')
  const [early, late] = [first!.digest, three].map(digest => [keyOfSignature(digest), keyOfSet(digest)])
  t.same(watching.asked, [document, ...early!, document, ...late!], 'one fetch at a time, and asked once in between')
  t.notOk(
    here.events.some(({ kind }) => kind === 'failed'),
    'what was under way ended as ever',
  )
  t.match(
    here.events.filter(({ kind }) => kind === 'in force'),
    [{ serial: 2 }],
  )
})

t.test('asked for while a question is under way that fails', async t => {
  const site = operator(t.teardown)
  const here = host(t.teardown, site)
  const [one, two] = [await site.push(1), await site.push(100)]
  await site.promote([one])
  const watching = watched(site)
  const stop = new AbortController()
  t.teardown(() => stop.abort())
  const { ended, askNow } = followChannels({
    stores: [watching.store],
    into: here.store,
    channels: ['stable'],
    trusted: () => site.trusted,
    tell: event => here.events.push(event),
    signal: stop.signal,
  })
  await until('the first one to be in force', async () => (await here.usable()).join() === one)
  await site.promote([two])
  let isAway = true
  watching.before = () => {
    if (!isAway) return
    isAway = false
    askNow()
    throw new ProxyError('STORE_LOST', 'away', undefined, 'try again')
  }
  askNow()
  await until('the other one to be in force', async () => (await here.usable()).join() === two, 30_000)
  stop.abort()
  await ended
  t.match(
    here.events.filter(({ kind }) => kind !== 'fetched'),
    [{ serial: 1 }, { kind: 'failed' }, { serial: 2 }],
  )
})
