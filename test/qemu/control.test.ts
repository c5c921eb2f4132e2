/** Real migrations as they are asked about and told over the control sockets: how far they are, a cap, a cancel. */
import { join } from 'node:path'
import t from 'tap'
import { MigrationFailedError } from '../../scripts/harness/qemu/guest.ts'
import { qemu10 } from '../../scripts/harness/qemu/versions.ts'
import { Control } from '../../src/daemon/control.ts'
import type { SiteHistory, SiteStatus } from '../../src/daemon/control-api.ts'
import { Events } from '../../src/daemon/events.ts'
import { Site } from '../../src/daemon/site.ts'
import type { DepartureStatus } from '../../src/migration/summary.ts'
import { askProxy } from '../../src/system/control-client.ts'
import { until } from '../helpers/until.ts'
import { Guests, Pair } from './pair.ts'

t.setTimeout(590_000)

const found = await qemu10()
const RETURN_PATH = { capabilities: { 'return-path': true } }

t.test('a guest moves, is watched, and stays where that is said', { skip: found.skip ?? false }, async t => {
  await using pair = await Pair.start({ wan: '0ms' })
  const events = new Events()
  const control = join(pair.folder, 'control')
  const asked = new Control({ control }, new Site([pair.source!], pair.destination!), events)
  await asked.start()
  t.teardown(() => asked.close())
  const running = async (): Promise<DepartureStatus | undefined> =>
    ((await askProxy(control, 'GET /status')) as SiteStatus).sources[0]!.session?.migrations[0]

  await t.test('cancelled over the socket', async t => {
    await using guests = await Guests.start({ qemu: found.qemu! })
    await guests.destination.listen(pair.targetUri(), RETURN_PATH)
    const slow = { ...RETURN_PATH, parameters: { 'max-bandwidth': 1_000_000 } }
    await guests.source.startMigration(pair.sourceUri(), slow)
    const shares = new Set<number>()
    const { id } = await until('a quarter of the first pass', async () => {
      const status = await running()
      if (!status?.progress) return undefined
      shares.add(status.progress.share)
      return status.progress.share > 0.25 && status
    })
    t.ok([...shares].every(share => share >= 0 && share <= 1))
    t.match(await askProxy(control, 'POST /cancel', { migration: id }), { id })
    await t.rejects(guests.source.waitMigration(), MigrationFailedError)
    t.equal(await guests.source.status(), 'running', 'the guest goes on at the source')
    const { outcome } = await pair.summary(1)
    t.equal(outcome, 'cancelled')
    t.equal((await pair.arrival(1)).outcome, 'cancelled', 'the other site says so, too')
  })

  await t.test('cancelled at QEMU when it has sent all, and waits for the answer', async t => {
    await using guests = await Guests.start({ qemu: found.qemu!, runs: true })
    const { source } = guests
    await guests.destination.listen(pair.targetUri(), RETURN_PATH)
    const { peer } = ((await askProxy(control, 'GET /status')) as SiteStatus).sources[0]!
    await askProxy(control, 'POST /rate', { peer, rate: '4Mbit' })
    const atOnce = { 'max-bandwidth': 0, 'downtime-limit': 1_000_000, 'avail-switchover-bandwidth': 1_000_000_000 }
    await source.startMigration(pair.sourceUri(), { ...RETURN_PATH, parameters: atOnce })
    let last = -1
    let same = 0
    await until('QEMU to have sent all', async () => {
      const { ram } = (await source.qmp.execute('query-migrate')) as { ram?: { transferred: number } }
      same = ram?.transferred === last && (await source.status()) === 'finish-migrate' ? same + 1 : 0
      last = ram?.transferred ?? -1
      return same === 20
    })
    await source.qmp.execute('migrate_cancel')
    await t.rejects(source.waitMigration(), MigrationFailedError)
    t.equal(await source.status(), 'running', 'the guest goes on at the source')
    t.match(await pair.summary(2, 180_000), { outcome: 'failed', level: 'error', reason: /runs once/ })
    // as much as had left when the cancel was seen
    const { outcome, reason } = await pair.arrival(2, 180_000)
    t.match(reason, outcome === 'cancelled' ? /before it heard/ : /runs once/)
    await askProxy(control, 'POST /rate', { peer, rate: 'none' })
  })

  await t.test('watched to its end', async t => {
    await using guests = await Guests.start({ qemu: found.qemu! })
    await guests.destination.listen(pair.targetUri(), RETURN_PATH)
    // QEMU stops before its last pass until it is told: on a busy machine the guest may dirty nothing in the second, and
    // a migration that ends of itself is gone before anybody looks
    const strict = {
      capabilities: { ...RETURN_PATH.capabilities, 'pause-before-switchover': true },
      parameters: { 'max-bandwidth': 3_000_000, 'downtime-limit': 1 },
    }
    await guests.source.startMigration(pair.sourceUri(), strict)
    let last = 0
    const second = await until('a second pass', async () => {
      const status = await running()
      const { pass = 0, share = 0 } = status?.progress ?? {}
      if (pass === 1 && share < last - 0.001) t.fail(`from ${last} back to ${share}`)
      last = pass === 1 ? share : last
      return pass > 1 && status
    })
    t.ok(last > 0, `the first pass was seen to ${last}`)
    const sync = (await guests.source.qmp.execute('query-migrate')) as { ram: { 'dirty-sync-count': number } }
    t.ok(sync.ram['dirty-sync-count'] >= 2, 'QEMU is in a later pass, too')
    t.match(second.progress, { bytesPerSecond: Number, wanBytesPerSecond: Number })
    await guests.source.configure({ parameters: { 'downtime-limit': 2000, 'max-bandwidth': 0 } })
    await until('QEMU before its last pass', async () => {
      const { status } = (await guests.source.qmp.execute('query-migrate')) as { status: string }
      return status === 'pre-switchover'
    })
    await guests.source.qmp.execute('migrate-continue', { state: 'pre-switchover' })
    await guests.source.waitMigration()
    t.equal(await guests.differingPages(), 0)
    const { outcome, pauseSeconds = -1 } = await pair.summary(3)
    t.equal(outcome, 'completed')
    // what the proxy sees of the guest's stop lies within what QEMU counts, to the millisecond in which both do
    const { downtime = 0 } = (await guests.source.qmp.execute('query-migrate')) as { downtime?: number }
    t.ok(pauseSeconds > 0 && 1000 * pauseSeconds <= downtime + 2, `${pauseSeconds} s of ${downtime} ms`)
    // this history listens to other events than the pair's: it has none, and says so
    t.match((await askProxy(control, 'GET /history')) as SiteHistory, { migrations: [] })
  })
})
