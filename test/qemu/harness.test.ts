/**
 * The harness itself, on direct migrations without any proxy: what it says about a guest must be true before it judges
 * Pageferry.
 */
import { existsSync, readdirSync } from 'node:fs'
import t from 'tap'
import { bootSector } from '../../scripts/harness/guest/boot-sector.ts'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { reportHeartbeats } from '../../scripts/harness/qemu/heartbeat.ts'
import { compareMemory } from '../../scripts/harness/qemu/memory.ts'
import { qemu10, systemQemu } from '../../scripts/harness/qemu/versions.ts'
import { formatLink, LINK_PROFILES, parseLink } from '../../scripts/harness/wan/link.ts'
import { PacketLink, packetLinkSupport } from '../../scripts/harness/wan/packet-link.ts'
import { RelayLink } from '../../scripts/harness/wan/relay-link.ts'

t.setTimeout(590_000)
const [system, ten] = [await systemQemu(), await qemu10()]
const tiny = { bootSector: bootSector(), memoryMb: 16 }
const workload = { workload: 'busy', rate: 2, busymb: 4, content: 7, contentmb: 4 } as const

t.test('a stopped guest of the system QEMU arrives whole and runs on', { skip: system.skip ?? false }, async t => {
  await using source = await QemuGuest.start({ qemu: system.qemu!, name: 'source', workload, booted: true })
  await using destination = await QemuGuest.start({
    ...source.options,
    name: 'destination',
    incoming: 'defer',
    paused: true,
  })
  await source.waitHeartbeats(5)
  const sums = await source.sums()
  await source.stop()
  const stats = await source.migrate(await destination.listen(), { parameters: { 'max-bandwidth': 0 } })
  await destination.waitStatus('paused')
  t.equal(await source.status(), 'postmigrate')
  t.match(await compareMemory(await source.snapshot(), await destination.snapshot()), {
    pages: 32_768,
    differingPages: 0,
  })
  t.ok(stats.transferredBytes > 20e6, `${stats.transferredBytes} bytes in ${stats.totalMs} ms`)
  await destination.cont()
  await destination.waitHeartbeats(5)
  const report = reportHeartbeats(source.heartbeats, destination.heartbeats)
  t.equal(report.disorder, 0)
  t.ok(report.missing <= 1, `${report.missing} heartbeats missing, down for ${Math.round(report.downtimeMs)} ms`)
  t.ok((await destination.checkBusy()).ok, 'the busy file holds what the workload wrote')
  const { busy: _, ...still } = sums
  t.match(await destination.sums(), still, 'files that nobody writes have the same sums inside the guest')
})

t.test('a running guest of QEMU 10 arrives whole and runs on', { skip: ten.skip ?? false }, async t => {
  await using source = await QemuGuest.start({ qemu: ten.qemu!, name: 'source', workload, booted: true })
  await using destination = await QemuGuest.start({
    ...source.options,
    name: 'destination',
    incoming: 'defer',
    paused: true,
  })
  await source.waitHeartbeats(5)
  const capabilities = { 'return-path': true }
  const uri = await destination.listen('tcp:127.0.0.1:0', { capabilities })
  const stats = await source.migrate(uri, { capabilities, parameters: { 'max-bandwidth': 0 } })
  await destination.waitStatus('paused')
  t.match(await compareMemory(await source.snapshot(), await destination.snapshot()), {
    pages: 32_768,
    differingPages: 0,
  })
  t.ok(stats.passes >= 2, `${stats.passes} passes, ${stats.totalMs} ms, QEMU's downtime ${stats.downtimeMs} ms`)
  await destination.cont()
  await destination.waitHeartbeats(5)
  const report = reportHeartbeats(source.heartbeats, destination.heartbeats)
  t.match(report, { disorder: 0 })
  t.ok(report.downtimeMs > 0 && report.missing <= 1, JSON.stringify(report))
  const { ok, blocks } = await destination.checkBusy()
  t.ok(ok && blocks > 0, `the busy file holds what the workload wrote, ${blocks} blocks`)
})

t.test('a difference in memory is found', { skip: system.skip ?? false }, async t => {
  await using guest = await QemuGuest.start({ qemu: system.qemu!, ...tiny })
  await guest.waitSerial(/\n\n/)
  await guest.stop()
  const before = await guest.snapshot()
  await guest.cont()
  await guest.waitSerial(/\n{5}/)
  await guest.stop()
  const { differingPages, addresses } = await compareMemory(before, await guest.snapshot())
  t.ok(differingPages >= 8 && addresses.includes(0x160000), `${differingPages} pages`)
})

t.test('what fails says why and leaves nothing behind', { skip: system.skip ?? false }, async t => {
  // A temporary folder of its own, since other tests use the system's meanwhile.
  const { path: folder, remove } = temporaryFolder('test')
  const usual = process.env.TMPDIR
  process.env.TMPDIR = folder
  t.teardown(() => {
    remove()
    if (usual === undefined) delete process.env.TMPDIR
    else process.env.TMPDIR = usual
  })
  const failure = (promise: Promise<unknown>) => promise.catch((error: unknown) => error)
  const qemu = system.qemu!
  const device = await failure(QemuGuest.start({ qemu, ...tiny, args: ['-device', 'no-such-device'] }))
  t.match(device, { name: 'QemuExitedError', exitCode: 1, stderrTail: /no-such-device/ })
  const command = await failure(QemuGuest.start({ qemu: { ...qemu, command: '/no/such/qemu' }, ...tiny }))
  t.match(command, { name: 'QemuExitedError' })
  const guest = await QemuGuest.start({ qemu, name: 'lonely', ...tiny })
  try {
    t.match(await failure(guest.migrate('tcp:127.0.0.1:1')), {
      name: 'MigrationFailedError',
      info: { status: 'failed' },
    })
    t.equal(await guest.status(), 'running')
    t.match(await failure(guest.waitSerial(/never/, 100)), { name: 'GuestTimeoutError' })
    t.match(await failure(guest.qmp.execute('no-such-command')), { errorClass: 'CommandNotFound' })
    process.kill(guest.pid, 'SIGKILL')
    t.match(await failure(guest.waitSerial(/never/)), { name: 'QemuExitedError', signal: 'SIGKILL' })
  } finally {
    await guest.quit()
  }
  t.notOk(existsSync(`/proc/${guest.pid}`))
  t.same(readdirSync(folder), [])
})

t.test('links: their descriptions', t => {
  for (const description of [
    ...Object.keys(LINK_PROFILES),
    '100Mbit,40ms,loss=0.1%,jitter=2ms,outage=5s@30s,queue=300kB,seed=9',
  ]) {
    const link = parseLink(description)
    t.same(parseLink(formatLink(link)), link, formatLink(link))
  }
  t.match(parseLink('intercontinental,20Mbit,loss=1%'), { bitsPerSecond: 20e6, roundTripMs: 140, lossPart: 0.01 })
  t.match(parseLink('100Mbit,40ms,outage=5s@30s'), { outages: [{ startMs: 30_000, lengthMs: 5000 }], queueBytes: 1e6 })
  for (const wrong of [
    '',
    '100',
    '100Mbit,lte',
    'loss=3',
    'loss=101%',
    'lost=1%',
    'outage=5s',
    '0Mbit',
    '10ms,jitter=6ms',
    'seed=x',
  ]) {
    t.throws(() => parseLink(wrong), { name: 'LinkSyntaxError' }, `'${wrong}' is refused`)
  }
  t.end()
})

t.test('links: a relay delivers what its description says', async t => {
  const { bitsPerSecond, roundTripMs } = await RelayLink.measure(parseLink('20Mbit,40ms'), 600)
  t.ok(bitsPerSecond > 14e6 && bitsPerSecond < 23e6, `${bitsPerSecond} bit/s`)
  t.ok(roundTripMs >= 39 && roundTripMs < 80, `${roundTripMs} ms`)
})

const support = await packetLinkSupport()
const noWan = system.skip ?? ('skip' in support ? support.skip : false)
t.test('links: a migration between two namespaces', { skip: noWan }, async t => {
  await using link = await PacketLink.open(parseLink('20Mbit,40ms'))
  const measured = await link.measure()
  t.ok(measured.bitsPerSecond > 14e6 && measured.bitsPerSecond < 21e6, `${link.kind}: ${measured.bitsPerSecond} bit/s`)
  t.ok(measured.roundTripMs >= 39 && measured.roundTripMs < 80, `${measured.roundTripMs} ms`)
  const guest = { qemu: system.qemu!, ...tiny }
  await using source = await QemuGuest.start({ ...guest, name: 'source', netns: link.source.netns })
  await using destination = await QemuGuest.start({
    ...guest,
    name: 'destination',
    netns: link.destination.netns,
    incoming: 'defer',
    paused: true,
  })
  await source.waitSerial(/\n{3}/)
  await source.stop()
  const uri = await destination.listen(`tcp:${link.destination.address}:0`)
  const before = await link.counters()
  const stats = await source.migrate(uri)
  await destination.waitStatus('paused')
  const sentBytes = (await link.counters()).sentBytes - before.sentBytes
  t.ok(sentBytes > stats.transferredBytes, `${stats.transferredBytes} bytes by QEMU are ${sentBytes} on the link`)
  t.match(await compareMemory(await source.snapshot(), await destination.snapshot()), { differingPages: 0 })
})
