/** Real migrations through a pair of proxies, and what goes wrong on the way. */

import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { MigrationFailedError, type MigrationSettings, type QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { reportHeartbeats } from '../../scripts/harness/qemu/heartbeat.ts'
import { compareMemory } from '../../scripts/harness/qemu/memory.ts'
import { type FoundQemu, type QemuVersion, qemu10, systemQemu } from '../../scripts/harness/qemu/versions.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { until } from '../helpers/until.ts'
import { FAULTS, Guests, type GuestsOptions, LINUX, Pair } from './pair.ts'

t.setTimeout(590_000)

const pageferry = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))
const unlimited = { 'max-bandwidth': 0 }
/** Slow enough that something can happen in the middle: 6 MB take 3 s. */
const slow = { 'max-bandwidth': 2_000_000 }

interface Mode {
  readonly name: string
  readonly settings?: MigrationSettings
  readonly guests?: Partial<GuestsOptions>
  /** Passes over dirty pages before the migration may complete. */
  readonly passes?: number
  readonly postcopy?: boolean
  /** For the source and destination alone. */
  readonly only?: readonly [MigrationSettings, MigrationSettings]
  readonly channels: string
}

const anonymous = (side: string) => ['-object', `tls-creds-anon,id=tls0,endpoint=${side}`]
const modes: readonly Mode[] = [
  { name: 'plain', channels: 'main' },
  { name: 'return path', settings: { capabilities: { 'return-path': true } }, channels: 'main' },
  {
    name: 'multifd with 4 channels',
    settings: { capabilities: { multifd: true }, parameters: { 'multifd-channels': 4 } },
    channels: 'main, 4 multifd',
  },
  { name: 'xbzrle', settings: { capabilities: { xbzrle: true } }, passes: 4, channels: 'main' },
  { name: 'postcopy', settings: { capabilities: { 'postcopy-ram': true } }, postcopy: true, channels: 'main' },
  {
    name: 'postcopy with preempt',
    settings: { capabilities: { 'postcopy-ram': true, 'postcopy-preempt': true } },
    guests: { machine: 'pc' }, // from 8.0 on the channel comes late, and silent
    postcopy: true,
    channels: 'main, preempt',
  },
]

/** Migrates over `gate`, and ends with both guests stopped. */
async function move(pair: Pair, guests: Guests, mode: Omit<Mode, 'name' | 'channels'> = {}, gate = 0) {
  const { settings = {}, passes = 0, postcopy } = mode
  const { source, destination } = guests
  await destination.listen(pair.targetUri(gate), settings)
  const strict = passes > 0 || postcopy
  let letGo = !strict
  const stats = await source.migrate(pair.sourceUri(gate), {
    ...settings,
    parameters: {
      ...(strict ? { 'max-bandwidth': postcopy ? 1_000_000 : 20_000_000, 'downtime-limit': 1 } : unlimited),
      ...settings.parameters,
    },
    onProgress: ({ ram }) => {
      if (letGo) return
      if (postcopy) {
        if ((ram?.transferred ?? 0) < 200_000) return
        void source.qmp.execute('migrate-start-postcopy').catch(() => {})
        letGo = true
      } else if ((ram?.['dirty-sync-count'] ?? 0) >= passes) {
        void source.configure({ parameters: { 'downtime-limit': 2000 } }).catch(() => {})
        letGo = true
      }
    },
  })
  return stats
}

/** A source guest that must not have noticed anything. */
async function goesOnAtSource(t: Test, source: QemuGuest): Promise<void> {
  t.equal(await source.waitStatus('running'), 'running', 'the guest runs at the source')
  const lines = source.serial.length
  await until('the guest at the source to go on', () => source.serial.length > lines + 2)
}

/** Waits until the migration at the source ends otherwise than completed. */
async function fails(source: QemuGuest, timeoutMs = 20_000): Promise<string> {
  try {
    await source.waitMigration({ timeoutMs })
    return 'completed'
  } catch (error) {
    if (error instanceof MigrationFailedError) return error.info.status ?? ''
    throw error
  }
}

async function exits(guest: QemuGuest, timeoutMs = 60_000): Promise<void> {
  await until('the end of the destination QEMU', () => guest.ended, timeoutMs)
}

/** Starts a slow migration and waits until it is in the middle. */
async function begin(pair: Pair, guests: Guests, settings: MigrationSettings = {}, gate = 0): Promise<void> {
  await guests.destination.listen(pair.targetUri(gate), settings)
  await guests.source.startMigration(pair.sourceUri(gate), {
    ...settings,
    parameters: { ...slow, ...settings.parameters },
  })
  await until(
    'the migration to get going',
    async () => ((await guests.source.migrationInfo()).ram?.transferred ?? 0) > 500_000,
  )
}

for (const [name, find] of [
  ['QEMU 7.2', systemQemu],
  ['QEMU 10', qemu10],
] as const) {
  const found: FoundQemu = await find()
  t.test(name, found.skip === undefined ? {} : { skip: found.skip }, async t => {
    const qemu = found.qemu!
    await using pair = await Pair.start({ gates: 2, patienceMs: 15_000 })
    let count = 0

    for (const mode of modes) {
      await t.test(mode.name, async t => {
        await using guests = await Guests.start({ qemu, ...mode.guests })
        const before = pair.wan.counters().forwardBytes
        const stats = await move(pair, guests, mode)
        await guests.destination.waitStatus('paused')
        t.equal(await guests.differingPages(), 0, 'memory is equal')
        if (mode.passes) t.ok(stats.passes >= mode.passes, 'dirty pages were sent again')
        await guests.goesOn()
        const summary = await pair.summary(++count)
        const arrival = await pair.arrival(count)
        t.match(
          [summary, arrival],
          [{ outcome: 'completed' }, { outcome: 'completed', id: summary.id }],
          summary.reason,
        )
        t.match([summary.machine, arrival.machine], [/^pc/, /^pc/], 'the guest is named')
        t.equal(summary.channels, mode.channels)
        t.equal(arrival.bytesOut, summary.bytesIn, 'QEMU was given as many bytes as QEMU sent')
        t.equal(arrival.bytesBack, summary.bytesBack)
        t.ok(summary.bytesIn >= stats.transferredBytes * 0.98, `${summary.bytesIn} of ${stats.transferredBytes} bytes`)
        t.ok(summary.bytesWan < summary.bytesIn)
        const wan = pair.wan.counters().forwardBytes - before
        t.ok(
          wan >= summary.bytesWan && wan < summary.bytesWan * 1.02 + 20_000,
          `${wan} bytes on the WAN, and it says so`,
        )
        if (mode.postcopy) t.ok(stats.info.ram!['postcopy-bytes']! > 1_000_000, 'most pages came after the switch')
      })
    }

    await t.test('a Linux guest at work', async t => {
      const running = qemu.tcgTracksDirtyPages
      const options = { qemu, workload: LINUX, paused: !running, runs: running } as const
      await using guests = await Guests.start(options)
      const { source, destination } = guests
      if (running) await source.waitHeartbeats(3)
      await move(pair, guests, { settings: { capabilities: { 'return-path': true } } })
      await destination.waitStatus(running ? 'running' : 'paused')
      if (!running) t.equal(await guests.differingPages(), 0, 'memory is equal')
      await guests.goesOn()
      await destination.waitHeartbeats(3)
      const { disorder, missing } = reportHeartbeats(source.heartbeats, destination.heartbeats)
      t.equal(disorder, 0)
      t.ok(missing <= 1, 'the heartbeat goes on')
      const check = await destination.checkBusy()
      t.ok(check.ok && check.blocks > 0, 'the guest finds its own memory right')
      const { forecast, bytesIn } = await pair.summary(++count)
      t.ok(forecast, `of ${bytesIn} bytes ${forecast?.bytesIn} were forecast`)
      t.ok(forecast!.bytesIn[0] <= bytesIn, 'at least')
    })

    await t.test('TLS from QEMU is passed through', async t => {
      const source = await Guests.startSource({ qemu, args: anonymous('client') })
      const destination = await Guests.startDestination({ qemu, args: anonymous('server') })
      await using guests = {
        source,
        destination,
        [Symbol.asyncDispose]: () => Promise.all([source.quit(), destination.quit()]),
      } as never as Guests
      const settings = { capabilities: { multifd: true }, parameters: { 'tls-creds': 'tls0' } }
      await move(pair, guests, { settings })
      await destination.waitStatus('paused')
      const difference = await compareMemory(await source.snapshot(), await destination.snapshot())
      t.equal(difference.differingPages, 0, 'memory is equal')
      t.match(await pair.summary(++count), { channels: '3 tls', outcome: 'unknown', level: 'warn' })
      t.ok(
        pair.log.some(line => line.event === 'relayed raw' && /encrypts/.test(String(line.fields.reason))),
        'and said',
      )
    })

    await t.test('two migrations at once', async t => {
      await using one = await Guests.start({ qemu, name: 'one ' })
      await using two = await Guests.start({ qemu, name: 'two ' })
      const settings = { capabilities: { 'return-path': true, multifd: true } }
      await Promise.all([
        move(pair, one, { settings: { ...settings, parameters: slow } }, 0),
        move(pair, two, { settings: { ...settings, parameters: slow } }, 1),
      ])
      for (const { destination } of [one, two]) await destination.waitStatus('paused')
      t.equal(await one.differingPages(), 0)
      t.equal(await two.differingPages(), 0)
      count += 2
      await pair.summary(count)
    })

    await t.test('ten migrations of one guest after each other, over one session', async t => {
      // a fixed effort: `auto` lets pages pass as they are where a link takes more than is made, known ones too
      await using pair = await Pair.start({ gates: 2, patienceMs: 15_000, effort: 2 })
      const hops = 10
      let here = await Guests.startSource({ qemu, paused: true })
      t.teardown(() => here.quit())
      const first = join(pair.folder, 'first')
      await here.qmp.execute('pmemsave', { val: 0, size: here.memoryBytes, filename: first })
      const uris = [pair.sourceUri(0), pair.sourceUri(1)]
      const bytes: number[] = []
      for (let hop = 0; hop < hops; hop++) {
        const next = await Guests.startDestination({ qemu, name: `hop ${hop} ` })
        await next.listen(pair.targetUri(hop % 2))
        await here.migrate(uris[hop % 2]!, { parameters: unlimited })
        await next.waitStatus('paused')
        await here.quit()
        here = next
        bytes.push((await pair.summary(hop + 1)).bytesWan)
      }
      const difference = await compareMemory({ path: first, lengthBytes: here.memoryBytes }, await here.snapshot())
      t.equal(difference.differingPages, 0, 'memory is as at the start')
      t.ok(Math.max(...bytes.slice(1)) < 100_000, `6 MB that the other side knows are not sent again: ${bytes} bytes`)
      await here.cont()
      const lines = here.serial.length
      await until('the guest to go on', () => here.serial.length > lines + 2)
      t.equal(pair.log.filter(line => line.side === 'source' && line.event === 'session open').length, 1)
    })

    await t.test('all of it was one session', async t => {
      t.equal(pair.log.filter(line => line.side === 'source' && line.event === 'session open').length, 1)
      t.same(
        pair.log.filter(line => line.level === 'error'),
        [],
      )
    })

    await t.test('over Unix sockets and TLS between the proxies', async t => {
      await using unix = await Pair.start({ unix: true, tls: 'psk' })
      await using guests = await Guests.start({ qemu })
      await move(unix, guests, { settings: { capabilities: { multifd: true, 'return-path': true } } })
      await guests.destination.waitStatus('paused')
      t.equal(await guests.differingPages(), 0, 'memory is equal')
      t.match((await unix.summary()).channels, 'main, 2 multifd')
    })

    await t.test('the WAN breaks for a second, and comes back', async t => {
      await using broken = await Pair.start({ patienceMs: 15_000 })
      await using guests = await Guests.start({ qemu })
      await begin(broken, guests, { capabilities: { 'return-path': true }, parameters: { 'max-bandwidth': 700_000 } })
      // a silent loss is found by the heartbeat, which takes 5 s: once is enough
      for (const fault of qemu.major >= 10 ? FAULTS : (['reset', 'stall'] as const)) {
        await broken.breakWan(fault, 1000)
        await sleep(300)
        t.match((await guests.source.migrationInfo()).status, 'active', `${fault}: QEMU has not noticed`)
      }
      await guests.source.configure({ parameters: unlimited })
      await guests.source.waitMigration()
      await guests.destination.waitStatus('paused')
      t.equal(await guests.differingPages(), 0, 'memory is equal')
      t.ok(broken.wan.connections >= 2, `${broken.wan.connections} connections`)
      await guests.goesOn()
    })
  })
}

const newest: FoundQemu = (await qemu10()).qemu ? await qemu10() : await systemQemu()
t.test('Bad', newest.skip === undefined ? {} : { skip: newest.skip }, async t => {
  const qemu: QemuVersion = newest.qemu!
  const returnPath = { capabilities: { 'return-path': true } }
  await using pair = await Pair.start({ patienceMs: 2500, gates: 2 })

  /** After each mishap: the pair serves the next migration. */
  async function serves(t: Test, through = pair): Promise<void> {
    await using guests = await Guests.start({ qemu })
    await move(through, guests, { settings: returnPath }, 1)
    await guests.destination.waitStatus('paused')
    t.equal(await guests.differingPages(), 0, 'the next migration succeeds')
  }

  await t.test('the destination QEMU is not there', async t => {
    await using source = await Guests.startSource({ qemu })
    await source.startMigration(pair.sourceUri(), returnPath)
    t.equal(await fails(source), 'failed')
    await goesOnAtSource(t, source)
    const line = await pair.waitLog(l => l.event === 'target refused', 'refusal')
    t.match(line.fields.error, /refused the connection/)
    t.match(await pair.summary(1), { endedBy: /refused/, outcome: 'failed', reason: /refused/, level: 'error' })
  })

  await t.test('the destination QEMU refuses: it has less memory', async t => {
    await using source = await Guests.startSource({ qemu })
    await using destination = await Guests.startDestination({ qemu, memoryMb: 12 })
    await destination.listen(pair.targetUri(), returnPath)
    await source.startMigration(pair.sourceUri(), { ...returnPath, parameters: slow })
    t.equal(await fails(source), 'failed')
    await goesOnAtSource(t, source)
    await exits(destination)
  })

  await t.test('the destination QEMU dies', async t => {
    await using guests = await Guests.start({ qemu })
    await begin(pair, guests, returnPath)
    process.kill(guests.destination.pid, 'SIGKILL')
    t.equal(await fails(guests.source), 'failed')
    await goesOnAtSource(t, guests.source)
    t.match(await pair.summary(3), { endedBy: /other side broke off|destination QEMU/, outcome: 'failed' })
    t.match(await pair.arrival(3), { outcome: 'failed', level: 'error', id: (await pair.summary(3)).id })
  })

  /** Starts postcopy with preempt, and waits until the guest's pages are asked for. */
  async function intoPostcopy(through: Pair, { source, destination }: Guests, listening = false): Promise<void> {
    const settings = { capabilities: { 'postcopy-ram': true, 'postcopy-preempt': true } }
    if (!listening) await destination.listen(through.targetUri(), settings)
    await source.startMigration(through.sourceUri(), {
      ...settings,
      parameters: { 'max-bandwidth': 1_000_000, 'max-postcopy-bandwidth': 500_000, 'downtime-limit': 1 },
    })
    await until(
      'the migration to get going',
      async () => ((await source.migrationInfo()).ram?.transferred ?? 0) > 300_000,
    )
    await source.qmp.execute('migrate-start-postcopy')
    await statusOf(source, 'postcopy-active')
    await destination.waitStatus(['paused', 'prelaunch'], 60_000)
  }

  async function statusOf(guest: QemuGuest, status: string): Promise<void> {
    await until(
      () => `${guest.name} to be ${status}`,
      async () => (await guest.migrationInfo()).status === status,
    )
  }

  await t.test('a recovery comes in at another gate', async t => {
    await using gates = await Pair.start({ gates: 2 })
    await using guests = await Guests.start({ qemu, paused: true, machine: 'pc' })
    const { source, destination } = guests
    await intoPostcopy(gates, guests)
    await sleep(300)
    await source.qmp.execute('migrate-pause')
    await statusOf(source, 'postcopy-paused')
    await statusOf(destination, 'postcopy-paused')
    await source.configure({ parameters: { 'max-postcopy-bandwidth': 0 } })
    await destination.qmp.execute('migrate-recover', { uri: gates.targetUri(1) })
    await source.qmp.execute('migrate', { uri: gates.sourceUri(1), resume: true })
    await source.waitMigration()
    t.equal(await guests.differingPages(), 0, 'memory is equal')
    t.match(await gates.summary(1), { outcome: 'failed', reason: /postcopy/ })
    t.match(await gates.arrival(1), { outcome: 'failed', reason: /postcopy/ })
    t.match([await gates.summary(2), await gates.arrival(2)], [{ outcome: 'completed' }, { outcome: 'completed' }])
    const { channels, pages } = await gates.summary(2)
    t.match(channels, 'recovery')
    const seen = Object.values(pages).reduce((sum, count) => sum + count, 0)
    t.ok(seen > 1000, `${seen} pages were recognised`)
  })

  await t.test('strangers connect while a migration waits for its preempt channel', async t => {
    await using gates = await Pair.start()
    await using guests = await Guests.start({ qemu, paused: true, machine: 'pc' })
    const address = parseAddress(gates.sourceUri())
    if (address.kind !== 'tcp') throw new Error('a TCP address was expected')
    const { host, port } = address
    const knock = (localAddress: string): net.Socket => net.connect({ host, port, localAddress }).on('error', () => {})
    await guests.destination.listen(gates.targetUri(), {
      capabilities: { 'postcopy-ram': true, 'postcopy-preempt': true },
    })
    for (const said of ['GET / HTTP/1.0\r\n\r\n', '\0'.repeat(64), 'QEVM']) {
      const probe = knock('127.0.0.1')
      probe.write(said)
      if (said === 'QEVM') probe.end()
      await new Promise(done => probe.resume().once('close', done))
    }
    const silent = knock('127.0.0.9') // as a monitor of another host that forgets to go
    t.teardown(() => silent.destroy())
    const probes = setInterval(() => {
      const probe = knock('127.0.0.1')
      probe.once('connect', () => probe.destroy())
    }, 20) // one that a busy machine leaves open and silent for 200 ms is not to be told from a preempt channel
    t.teardown(() => clearInterval(probes))
    await intoPostcopy(gates, guests, true)
    await sleep(300)
    await guests.source.configure({ parameters: { 'max-postcopy-bandwidth': 0 } })
    await guests.source.waitMigration()
    clearInterval(probes)
    t.equal(await guests.differingPages(), 0, 'memory is equal')
    t.equal((await gates.summary()).channels, 'main, preempt')
    t.same(
      gates.log.filter(line => line.event === 'target refused'),
      [],
      'the destination QEMU saw none of them',
    )
  })

  await t.test('the source QEMU dies', async t => {
    await using guests = await Guests.start({ qemu })
    await begin(pair, guests, returnPath)
    process.kill(guests.source.pid, 'SIGKILL')
    await exits(guests.destination)
    t.match(await pair.summary(4), { endedBy: /source QEMU/, outcome: /cancelled|failed/ })
  })

  await t.test('the operator cancels', async t => {
    await using guests = await Guests.start({ qemu })
    await begin(pair, guests, { ...returnPath, capabilities: { 'return-path': true, multifd: true } })
    await guests.source.qmp.execute('migrate_cancel')
    t.equal(await fails(guests.source), 'cancelled')
    t.match(await pair.summary(5), { outcome: 'cancelled', level: 'warn' })
    t.match(await pair.arrival(5), { outcome: 'cancelled', level: 'warn' })
    await goesOnAtSource(t, guests.source)
    await exits(guests.destination)
    await serves(t)
    // and the same guest may try again
    const next = await Guests.startDestination({ qemu })
    t.teardown(() => next.quit())
    await next.listen(pair.targetUri(), { capabilities: { 'return-path': true, multifd: true } })
    await guests.source.migrate(pair.sourceUri(), { parameters: unlimited })
    await next.waitStatus('paused')
  })

  await t.test('the WAN stays down longer than the patience', async t => {
    await using guests = await Guests.start({ qemu })
    await begin(pair, guests, returnPath)
    const at = pair.log.length
    pair.wan.refuse()
    pair.wan.cut()
    t.equal(await fails(guests.source), 'failed')
    await goesOnAtSource(t, guests.source)
    await exits(guests.destination)
    for (const side of ['source', 'destination'] as const) {
      const dead = pair.log.slice(at).find(line => line.side === side && line.event === 'link.dead')
      t.match(dead?.fields.reason, /no connection to the peer for/, `the ${side} proxy says why`)
    }
    pair.wan.restore()
    await serves(t)
  })

  await t.test('the destination proxy is not there', async t => {
    await using alone = await Pair.start({ patienceMs: 2000, peer: { host: '127.0.0.1', port: 1 } })
    await using source = await Guests.startSource({ qemu })
    const start = performance.now()
    await source.startMigration(alone.sourceUri(), returnPath)
    await sleep(1000)
    t.match((await source.migrationInfo()).status, /setup|active/, 'QEMU waits')
    t.equal(await fails(source), 'failed')
    t.ok(performance.now() - start < 8000, 'not much longer than the patience')
    await goesOnAtSource(t, source)
    t.ok(alone.log.some(line => line.event === 'connection refused'))
  })

  await t.test('the destination proxy comes while QEMU waits', async t => {
    await using late = await Pair.start({ patienceMs: 10_000, gates: 2 })
    await late.kill('destination')
    await using guests = await Guests.start({ qemu })
    await guests.destination.listen(late.targetUri(), returnPath)
    await guests.source.startMigration(late.sourceUri(), { ...returnPath, parameters: unlimited })
    await sleep(500)
    await late.startDestination()
    await guests.source.waitMigration()
    await guests.destination.waitStatus('paused')
    t.equal(await guests.differingPages(), 0)
  })

  await t.test('the destination proxy is restarted while nothing runs', async t => {
    await using restarted = await Pair.start({ processes: true, gates: 2, patienceMs: 10_000 })
    await restarted.kill('destination')
    await using guests = await Guests.start({ qemu })
    await guests.destination.listen(restarted.targetUri(), returnPath)
    const migrated = guests.source.migrate(restarted.sourceUri(), { ...returnPath, parameters: unlimited })
    await sleep(200)
    await restarted.startDestination()
    await migrated
    await guests.destination.waitStatus('paused')
    t.equal(await guests.differingPages(), 0, 'a migration that begins meanwhile waits, and succeeds')
  })

  await t.test('a peer of another protocol version', async t => {
    const server = net.createServer(socket => {
      // magic, version 2.0, an empty body
      socket.on('error', () => {})
      socket.end(Buffer.from('504746590d0a1a0a00020000000000027b7d', 'hex'))
      socket.resume()
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.teardown(() => server.close())
    const { port } = server.address() as net.AddressInfo
    await using old = await Pair.start({ patienceMs: 1500, peer: { host: '127.0.0.1', port } })
    await using source = await Guests.startSource({ qemu })
    await source.startMigration(old.sourceUri(), returnPath)
    t.equal(await fails(source), 'failed')
    await goesOnAtSource(t, source)
    const line = await old.waitLog(l => l.event === 'no session', 'no session')
    t.match(line.fields.error, /version 2/)

    // and the other way round: an old source proxy
    const client = net.connect({ host: '127.0.0.1', port: pair.wan.port })
    client.write(Buffer.from('504746590d0a1a0a00020000000000027b7d', 'hex'))
    const [answer] = (await once(client, 'data')) as [Buffer]
    t.match(answer.toString('latin1'), /PROTOCOL_VERSION/)
    client.destroy()
    await pair.waitLog(l => l.event === 'link.refused' && l.fields.code === 'PROTOCOL_VERSION', 'refusal')
    await serves(t)
  })

  await t.test('a template set that is damaged on disk', async t => {
    const { path, remove } = temporaryFolder('sets')
    t.teardown(remove)
    await using guest = await Guests.startSource({ qemu, paused: true })
    await guest.migrate(`exec:cat > ${path}/stream`, { parameters: unlimited })
    const args = ['template', 'build', '--min-vms', '1', '--store', join(path, 'near'), join(path, 'stream')]
    await promisify(execFile)(pageferry, args)
    cpSync(join(path, 'near'), join(path, 'far'), { recursive: true })
    const run = async (): Promise<{ pair: Pair; bytes: number; template: number }> => {
      const stores = { sourceStore: join(path, 'near'), destinationStore: join(path, 'far') }
      const through = await Pair.start(stores)
      t.teardown(() => through[Symbol.asyncDispose]())
      await using guests = await Guests.start({ qemu, paused: true })
      await move(through, guests, {})
      await guests.destination.waitStatus('paused')
      t.equal(await guests.differingPages(), 0, 'memory is equal')
      const { bytesWan, pages } = await through.summary()
      return { pair: through, bytes: bytesWan, template: pages.template }
    }
    const sound = await run()
    t.ok(sound.template > 1000, `${sound.template} template pages`)
    const [file] = readdirSync(join(path, 'far')).filter(found => found.endsWith('.pfset'))
    const set = join(path, 'far', file!)
    const bytes = readFileSync(set)
    bytes[bytes.length - 5000]! ^= 1
    writeFileSync(set, bytes)
    const damaged = await run()
    t.equal(damaged.template, 0)
    t.ok(damaged.bytes > 2 * sound.bytes, `${damaged.bytes} bytes instead of ${sound.bytes}`)
    const line = await damaged.pair.waitLog(l => l.event === 'template set not used', 'the damage')
    t.equal(line.side, 'destination')
    t.match(line.fields.set, file)
  })

  await t.test('a target that does not exist', async t => {
    await using guests = await Guests.start({ qemu })
    pair.retarget(0, parseAddress(`unix:${pair.folder}/nobody`))
    await guests.source.startMigration(pair.sourceUri(), returnPath)
    t.equal(await fails(guests.source), 'failed')
    await goesOnAtSource(t, guests.source)
  })
})
