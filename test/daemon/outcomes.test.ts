/** How migrations end, as both daemons tell it: recorded streams through a pair, and what breaks on the way. */
import { readFileSync } from 'node:fs'
import type net from 'node:net'
import { zstdDecompressSync } from 'node:zlib'
import t, { type Test } from 'tap'
import type { Outcome } from '../../src/migration/outcome.ts'
import { until } from '../helpers/until.ts'
import { closed, Daemons, MULTIFD } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy

function recording(name: string): Buffer {
  return zstdDecompressSync(readFileSync(new URL(`../vectors/qemu/streams/${name}.zst`, import.meta.url)))
}
const PRECOPY = recording('10-virtio-mem.0-main') // with a return path
const PRECOPY_BACK = recording('10-virtio-mem.0-return')
const SILENT = recording('7.2-dirty-bitmaps.0-main') // without
const POSTCOPY = recording('10-hugepages-postcopy.0-main')
const POSTCOPY_BACK = recording('10-hugepages-postcopy.0-return')

/** A migration through a pair: both QEMUs' ends of its main channel. */
async function migrate(pair: Daemons, bytes: Buffer): Promise<{ source: net.Socket; destination: net.Socket }> {
  const before = pair.target.sockets.length
  await until('a session', () => pair.count('session open') >= 2) // a short patience is not for it
  const source = await pair.dial()
  source.resume()
  source.write(bytes)
  await until('the bytes at the destination', () => pair.target.received[before]?.length === bytes.length)
  return { source, destination: pair.target.sockets[before]! }
}

/** What both sides say of the migration that ended last. */
async function told(t: Test, pair: Daemons, source: Outcome, destination: Outcome, reason: RegExp) {
  await until('both summaries', () => pair.summaries.length > 0 && pair.arrivals.length > 0)
  const [summary, arrival] = [pair.summaries.pop()!, pair.arrivals.pop()!]
  t.match(summary, { outcome: source, reason }, `source: ${summary.reason}`)
  t.match(arrival, { outcome: destination }, `destination: ${arrival.reason}`)
  t.equal(arrival.id, summary.id, `one name for it at both sites: ${summary.id}`)
  t.equal(arrival.machine, summary.machine)
  return [summary, arrival]
}

t.test('a migration that is completed', async t => {
  await using pair = await Daemons.start()
  const { source, destination } = await migrate(pair, PRECOPY)
  destination.end(PRECOPY_BACK)
  source.on('end', () => source.end())
  await told(t, pair, 'completed', 'completed', /has taken over/)

  const silent = await migrate(pair, SILENT)
  silent.source.end()
  silent.destination.on('end', () => silent.destination.end())
  await told(t, pair, 'completed', 'completed', /no QEMU confirms/)

  const postcopy = await migrate(pair, POSTCOPY)
  postcopy.destination.end(POSTCOPY_BACK)
  postcopy.source.on('end', () => postcopy.source.end())
  await told(t, pair, 'completed', 'completed', /has taken over/)
})

t.test('a migration that is cancelled', async t => {
  await using pair = await Daemons.start()
  for (const stream of [PRECOPY, SILENT]) {
    const { source, destination } = await migrate(pair, stream.subarray(0, 500_000))
    destination.on('end', () => destination.end(Buffer.from('0001000400000001', 'hex'))) // 9.1 and up says so
    source.end()
    await told(t, pair, 'cancelled', 'cancelled', /in the middle/)
  }
})

t.test('a migration that an operator cancels', async t => {
  await using pair = await Daemons.start()
  const { source, destination } = await migrate(pair, PRECOPY.subarray(0, 500_000))
  const { id } = pair.source.status().session!.migrations[0]!
  t.equal(pair.source.cancel('00000000-1'), undefined)
  t.same(pair.source.cancel(id), { migration: 1, id })
  await Promise.all([closed(source), closed(destination)])
  await told(t, pair, 'cancelled', 'cancelled', /operator of the source proxy/)
  t.equal(pair.count('migration cancelled'), 1)
  t.equal(pair.source.cancel(id), undefined, 'it is over')

  for (const [stream, why] of [
    [PRECOPY, /handed over/],
    [POSTCOPY, /postcopy/],
  ] as const) {
    const { source, destination } = await migrate(pair, stream)
    const { id } = pair.source.status().session!.migrations[0]!
    t.throws(() => pair.source.cancel(id), { code: 'CANCEL_REFUSED', what: why })
    destination.end(stream === PRECOPY ? PRECOPY_BACK : POSTCOPY_BACK)
    source.on('end', () => source.end())
    await told(t, pair, 'completed', 'completed', /has taken over/)
  }
})

t.test('a source QEMU that closes behind its stream, before it has heard of the destination', async t => {
  await using pair = await Daemons.start()
  // too late to hold anything back
  const late = await migrate(pair, PRECOPY)
  late.source.end()
  await closed(late.destination)
  const [summary, arrival] = await told(t, pair, 'failed', 'failed', /source QEMU closed, .*runs once/)
  t.same([summary!.level, arrival!.level], ['error', 'error'])

  // its answer is on the way
  const crossed = await migrate(pair, PRECOPY)
  pair.wan.still = true
  crossed.destination.end(PRECOPY_BACK)
  crossed.source.end()
  await closed(crossed.source)
  pair.wan.cut()
  pair.wan.still = false
  await told(t, pair, 'failed', 'completed', /never said.*runs once/)
})

t.test('a migration that fails', async t => {
  await using pair = await Daemons.start()
  const dies = await migrate(pair, PRECOPY.subarray(0, 500_000))
  dies.source.on('end', () => dies.source.end())
  dies.destination.destroy()
  await told(t, pair, 'failed', 'failed', /destination QEMU/)

  const load = await migrate(pair, PRECOPY)
  load.source.on('end', () => load.source.end())
  load.destination.end(Buffer.from('0001000400000001', 'hex'))
  await told(t, pair, 'failed', 'failed', /reports error 1/)

  const unsaid = await migrate(pair, PRECOPY)
  unsaid.source.on('end', () => unsaid.source.end())
  unsaid.destination.end()
  await told(t, pair, 'failed', 'failed', /never said/)

  const crash = await migrate(pair, PRECOPY.subarray(0, 500_000))
  crash.source.resetAndDestroy()
  await told(t, pair, 'failed', 'failed', /source QEMU broke off/)

  const paused = await migrate(pair, POSTCOPY.subarray(0, -100))
  paused.destination.write(POSTCOPY_BACK.subarray(0, -8))
  await until('what it says', () => paused.source.bytesRead === POSTCOPY_BACK.length - 8)
  paused.destination.on('end', () => paused.destination.end())
  paused.source.end()
  await told(t, pair, 'failed', 'failed', /in postcopy.*migrate-recover/)
})

t.test('a WAN that stays away', async t => {
  await using pair = await Daemons.start({ patienceMs: 2000 })
  await migrate(pair, PRECOPY.subarray(0, 500_000))
  pair.wan.cut(true)
  await told(t, pair, 'failed', 'failed', /no connection/)
})

t.test('a WAN that stays away ends every channel, at both sides', async t => {
  await using pair = await Daemons.start({ patienceMs: 500, patiencePostcopyMs: 60_000 })
  const { source } = await migrate(pair, PRECOPY.subarray(0, 500_000))
  const sources = [source]
  for (let i = 1; i <= 3; i++) {
    const multifd = await pair.dial()
    multifd.resume()
    multifd.write(MULTIFD)
    await until('its bytes at the destination', () => pair.target.received[i]?.length === MULTIFD.length)
    sources.push(multifd)
  }
  pair.wan.cut(true)
  await Promise.all([...sources, ...pair.target.sockets].map(socket => closed(socket.resume())))
  t.equal(pair.count('migration given up'), 2, 'said once at each side')
  pair.wan.restore()
  await told(t, pair, 'failed', 'failed', /no connection/)
})

t.test('a multifd channel that has ended in order before the WAN goes', async t => {
  await using pair = await Daemons.start({ patienceMs: 2000 })
  await migrate(pair, PRECOPY.subarray(0, 500_000))
  const multifd = await pair.dial()
  multifd.end(MULTIFD)
  await until('its end at the destination', () => pair.target.sockets[1]?.readableEnded === true)
  pair.wan.cut(true)
  await told(t, pair, 'failed', 'failed', /no connection/)
})

t.test('a WAN that goes away with the last word', async t => {
  await using pair = await Daemons.start({ patienceMs: 2000 })
  const { destination } = await migrate(pair, PRECOPY)
  pair.wan.still = true
  destination.end(PRECOPY_BACK)
  await until('the end at the destination', () => pair.target.sockets[0]!.writableFinished)
  pair.wan.cut(true)
  await until('both summaries', () => pair.summaries.length > 0 && pair.arrivals.length > 0)
  t.match(pair.summaries[0], { outcome: 'failed', level: 'error' }, 'the source guest goes on')
  t.match(pair.arrivals[0], { outcome: 'completed', level: 'error', reason: /runs once/ }, 'and may run there too')
})

for (const postcopyWaits of [true, false]) {
  t.test(`patience ends before ${postcopyWaits ? 'the switch to postcopy' : 'that of precopy'} alone`, async t => {
    const times = postcopyWaits
      ? { patienceMs: 400, patiencePostcopyMs: 60_000 }
      : { patienceMs: 60_000, patiencePostcopyMs: 400 }
    await using pair = await Daemons.start(times)
    const postcopy = await migrate(pair, POSTCOPY.subarray(0, -100))
    postcopy.destination.write(POSTCOPY_BACK.subarray(0, -8))
    await until('what it says', () => postcopy.source.bytesRead === POSTCOPY_BACK.length - 8)
    const precopy = await migrate(pair, PRECOPY.subarray(0, 500_000))
    const [gone, stays] = postcopyWaits ? [precopy, postcopy] : [postcopy, precopy]
    pair.wan.cut(true)
    await Promise.all([closed(gone.source), closed(gone.destination.resume())])
    t.equal(pair.count('migration given up'), 2, 'both sides say so')
    t.notOk(stays.source.closed || stays.destination.closed, 'the other one waits on')
    pair.wan.restore()
    await told(t, pair, 'failed', 'failed', /no connection to the other proxy for 0\.4 s/)
    const [number, sent] = postcopyWaits ? [0, POSTCOPY] : [1, PRECOPY]
    stays.source.write(sent.subarray(pair.target.received[number]!.length))
    await until('all of the other', () => pair.target.received[number]!.length === sent.length)
    t.ok(pair.target.received[number]!.equals(sent), 'it goes on at the exact byte')
    t.equal(pair.count('session open'), 2, 'in the same session')
  })
}

t.test('how both proxies are, while a migration runs and after it', async t => {
  await using pair = await Daemons.start()
  const { peer } = pair.source.status()
  t.match(pair.source.status(), { role: 'source', stopping: false, waiting: 0, connections: 0, address: peer })
  const { source, destination } = await migrate(pair, PRECOPY.subarray(0, 500_000))
  const [here, there] = [pair.source.status(), pair.destination.status()]
  t.same(structuredClone([here, there]), [here, there], 'plain data')
  const [departure] = here.session!.migrations
  const [arrival] = there.sessions[0]!.migrations
  t.match(departure, { target: 'default', machine: /^pc-/, channels: 1, postcopy: false, bytesWan: Number })
  t.match(arrival, { id: departure!.id, machine: departure!.machine, bytes: 500_000, channels: 1 })
  t.equal(here.session!.link, there.sessions[0]!.link)
  t.equal(here.session!.stats.state, 'live')
  t.ok(departure!.bytes > 400_000 && departure!.bytesWan > 0, `${departure!.bytes} bytes`)
  destination.on('end', () => destination.end())
  source.end()
  t.match(here.session, { peer, sets: 0, coldSets: 0 })
  const ends = await told(t, pair, 'cancelled', 'cancelled', /middle/)
  t.same(
    ends.map(({ peer }) => peer),
    [peer, there.sessions[0]!.peer],
    'each says who the other is',
  )
  t.same([pair.source.status().session!.migrations, pair.destination.status().sessions[0]!.migrations], [[], []])
})
