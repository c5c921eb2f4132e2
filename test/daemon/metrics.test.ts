/** Metrics: what they say of a pair that runs, counters that never fall, and what Prometheus' own tool says of them. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import http from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Control } from '../../src/daemon/control.ts'
import type { SiteStatus } from '../../src/daemon/control-api.ts'
import { Events } from '../../src/daemon/events.ts'
import { Metrics } from '../../src/daemon/metrics.ts'
import { SetMetrics } from '../../src/daemon/set-metrics.ts'
import { Site } from '../../src/daemon/site.ts'
import { METRICS_PEERS_MAX, METRICS_SET_IDLE_MS, METRICS_SETS_MAX } from '../../src/limits.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { arrived, departed } from '../helpers/ended-migrations.ts'
import { until } from '../helpers/until.ts'
import { Daemons, MAIN } from './daemons.ts'

t.setTimeout(600_000) // the machine may be busy

/** Values by name and labels, as the text has them. */
function valuesOf(text: string): Record<string, number> {
  const lines = text.split('\n').filter(line => line !== '' && !line.startsWith('#'))
  return Object.fromEntries(lines.map(line => [line.slice(0, line.lastIndexOf(' ')), Number(line.split(' ').at(-1))]))
}

const NOTHING: SiteStatus = { api: 1, version: '1.2.3', process: 1, started: '', sources: [], destination: undefined }

/** What is true of a proxy, and its metrics. */
async function world(status: Partial<SiteStatus> = {}) {
  const events = new Events()
  const told = { ...NOTHING, ...status }
  const metrics = await Metrics.load(() => told, events, 0)
  return { events, metrics, told, values: async () => valuesOf(await metrics.text()) }
}

/** A disk transfer that runs, and one whose writes are answered early. */
const DISKS = [
  { connections: 2, bytes: 100, bytesWan: 10, bytesBack: 40, bytesBackWan: 4 },
  { connections: 3, bytes: 200, bytesWan: 20, bytesBack: 1, bytesBackWan: 1, owed: { writes: 2, bytes: 8192 } },
]

const source = (peer: string, migrations: readonly object[] | undefined) =>
  ({
    ...{ role: 'source', peer, address: '192.0.2.7:9444', rate: 1000, listening: [], stopping: false, waiting: 2 },
    ...{ connections: 0, certificates: [{ file: 'a', expires: '2030-01-01T00:00:00.000Z' }] },
    left: [{ disks: [DISKS[1]] }, { disks: [] }],
    session: migrations && {
      ...{ link: 'a', peer, sets: 3, coldSets: 1, migrations, disks: [DISKS[0]] },
      stats: { rttMs: 20, rate: 5000 },
    },
  }) as unknown as SiteStatus['sources'][number]

t.test('the cap on all peers is one more', async t => {
  const all = { rate: 5000, cap: { by: 'settings' } } as const
  const { values } = await world({ all, sources: [source('dc2', undefined)] })
  t.match(await values(), {
    'pageferry_rate_limit_bytes_per_second{peer="all"}': 5000,
    'pageferry_rate_limit_bytes_per_second{peer="dc2"}': 1000,
  })
})

t.test('what has ended is counted', async t => {
  const { events, values } = await world()
  for (let i = 1; i <= 3; i++) events.info('migration ended', departed(i))
  events.error('migration ended', arrived(4))
  const range = [8, 12] as const
  const forecast = { atSeconds: 5, effort: 2, seconds: range, bytesIn: range, bytesWan: range }
  const firstPass = { seconds: 10, bytesIn: 900, bytesWan: 90 }
  for (const [i, seconds] of [8, 12, 16, 4].entries()) // the last two a quarter over it, and as much again below
    events.info('migration ended', {
      ...departed(5 + i),
      forecast,
      pauseSeconds: 0.25,
      firstPass: { ...firstPass, seconds },
    })
  events.warn('template set not used', { error: 'damaged', set: 'a' })
  events.of('192.0.2.9:1').warn('WAN connection lost', { connection: 0, error: 'x' })
  const down = { link: 'a', identity: 'x509:ams', connection: 0, peer: '192.0.2.1' }
  events.byFields().warn('link.down', { ...down, reason: 'closed' })
  events.byFields().debug('link.down', { ...down, reason: undefined }) // in order
  events.byFields().debug('link.down', { ...down, reason: 'ECONNRESET' }) // when its session was over
  events.of('192.0.2.9:1').warn('link.down', { ...down, reason: 'closed' }) // a source's own, said above
  t.match(await values(), {
    'pageferry_build_info{version="1.2.3",role="destination"}': 1,
    'pageferry_migrations_total{peer="dc2",direction="out",result="completed"}': 7,
    'pageferry_migrations_total{peer="dc1",direction="in",result="failed"}': 1,
    'pageferry_migration_bytes_total{peer="dc2",direction="out",side="qemu"}': 7000,
    'pageferry_migration_bytes_total{peer="dc2",direction="out",side="wan"}': 700,
    'pageferry_migration_bytes_total{peer="dc1",direction="in",side="qemu"}': 500,
    'pageferry_pages_total{class="template"}': 21,
    'pageferry_migration_duration_seconds_bucket{le="10",direction="out"}': 0,
    'pageferry_migration_duration_seconds_bucket{le="20",direction="out"}': 7,
    'pageferry_migration_duration_seconds_sum{direction="out"}': 87.5,
    pageferry_migration_pause_seconds_count: 4,
    'pageferry_migration_pause_seconds_bucket{le="0.2"}': 0,
    'pageferry_migration_pause_seconds_bucket{le="0.3"}': 4,
    pageferry_forecast_error_ratio_count: 4,
    pageferry_forecast_error_ratio_sum: 1.25,
    'pageferry_forecast_error_ratio_bucket{le="0"}': 2,
    'pageferry_forecast_error_ratio_bucket{le="0.25"}': 3,
    'pageferry_forecast_error_ratio_bucket{le="1"}': 4,
    pageferry_template_damaged_total: 1,
    'pageferry_session_breaks_total{peer="192.0.2.9:1"}': 1,
    'pageferry_session_breaks_total{peer="x509:ams"}': 1,
  })
})

t.test('what sets brought', async t => {
  const { events, values } = await world()
  const setOf = (i: number): string => i.toString(16).padStart(12, '0').padEnd(64, '0')
  const nameOf = (i: number): string => setOf(i).slice(0, 12)
  const bring = (...sets: number[]): void => {
    const gains = sets.map(i => ({ set: setOf(i), pages: 10, bytes: 50_000 }))
    events.info('migration ended', { ...departed(1), sets: gains })
  }
  const bytes = async (): Promise<Record<string, number>> =>
    Object.fromEntries(
      Object.entries(await values()).flatMap(([name, value]) => {
        const [, set] = /^pageferry_template_set_bytes_total\{set="(.*)"\}$/.exec(name) ?? []
        return set === undefined ? [] : [[set, value]]
      }),
    )
  t.same(await bytes(), {})
  bring(1, 2)
  t.same(await bytes(), { [nameOf(1)]: 0, [nameOf(2)]: 0 }, 'a counter begins at 0')
  t.same(await bytes(), { [nameOf(1)]: 50_000, [nameOf(2)]: 50_000 })
  bring(2)
  t.equal((await values())[`pageferry_template_set_pages_total{set="${nameOf(2)}"}`], 20)
  bring(...Array.from({ length: 20 }, (_, i) => 3 + i))
  await bytes()
  const some = await bytes()
  t.equal(Object.keys(some).length, 2 + 8 + 1, 'the eight that brought most, and the rest together')
  t.equal(some.others, 12 * 50_000)
  for (let i = 100; i < 200; i++) bring(i)
  await bytes()
  const all = await bytes()
  t.equal(Object.keys(all).length, METRICS_SETS_MAX + 1, 'there are only so many')
  t.equal(
    Object.values(all).reduce((sum, each) => sum + each, 0),
    (3 + 20 + 100) * 50_000,
    'and nothing is lost',
  )
  const told = events as unknown as { info(event: string, fields: object): void }
  told.info('disk transfer ended', { sets: [{ set: setOf(1), pages: 1, bytes: 4096 }] })
  t.equal((await bytes())[nameOf(1)], 54_096, 'disks count too')
})

t.test('a set that brings nothing any more gives its place to another', async t => {
  let nowMs = 0
  const client = await import('prom-client')
  const registry = new client.Registry()
  const metrics = new SetMetrics(client, [registry], () => nowMs)
  const bring = (i: number): void => metrics.take([{ set: `${i}`.padStart(12, '0'), pages: 1, bytes: 4096 }])
  const sets = async (): Promise<string[]> => {
    metrics.collect()
    return [...(await registry.metrics()).matchAll(/set_pages_total\{set="0*(\w+)"\}/g)].map(([, set]) => set!)
  }
  for (let i = 1; i <= METRICS_SETS_MAX; i++) bring(i)
  nowMs = METRICS_SET_IDLE_MS - 1
  bring(1)
  bring(99)
  t.notOk((await sets()).includes('99'), 'within a day')
  nowMs++
  bring(100)
  const after = await sets()
  t.ok(after.includes('100') && after.includes('1') && !after.includes('2'), 'the one that was silent longest')
  t.equal(after.length, METRICS_SETS_MAX + 1)
})

t.test('what runs is told, and its counters never fall', async t => {
  const one = { id: 'a-1', bytes: 1000, bytesWan: 100, effort: 3 }
  const { events, told, values } = await world({ sources: [source('dc2', [one])] })
  const bytes = 'pageferry_migration_bytes_total{peer="dc2",direction="out",side="qemu"}'
  t.match(await values(), {
    'pageferry_build_info{version="1.2.3",role="source"}': 1,
    'pageferry_session_up{peer="dc2"}': 1,
    'pageferry_link_round_trip_seconds{peer="dc2"}': 0.02,
    'pageferry_link_rate_bytes_per_second{peer="dc2"}': 5000,
    'pageferry_rate_limit_bytes_per_second{peer="dc2"}': 1000,
    'pageferry_effort{peer="dc2"}': 3,
    'pageferry_connections_waiting{peer="dc2"}': 2,
    'pageferry_template_sets{peer="dc2",place="memory"}': 3,
    'pageferry_template_sets{peer="dc2",place="disk"}': 1,
    'pageferry_migrations_running{peer="dc2",direction="out"}': 1,
    'pageferry_disk_connections{peer="dc2",direction="out"}': 5,
    'pageferry_disk_transfers_running{peer="dc2",direction="out"}': 2,
    'pageferry_disk_owed_bytes{peer="dc2"}': 8192,
    'pageferry_sessions_left{peer="dc2"}': 2,
    'pageferry_disk_bytes_total{peer="dc2",direction="out",side="qemu"}': 300,
    'pageferry_disk_bytes_total{peer="dc2",direction="out",side="wan"}': 30,
    'pageferry_disk_back_bytes_total{peer="dc2",direction="out",side="qemu"}': 41,
    'pageferry_disk_back_bytes_total{peer="dc2",direction="out",side="wan"}': 5,
    'pageferry_certificate_expiry_timestamp_seconds{role="source"}': 1893456000,
    [bytes]: 1000,
    'pageferry_migrations_total{peer="dc2",direction="out",result="failed"}': 0,
    'pageferry_session_breaks_total{peer="dc2"}': 0,
  })
  const set = (migrations: readonly object[] | undefined): void => {
    Object.assign(told, { sources: [source('dc2', migrations)] })
  }
  set([{ ...one, bytes: 3000 }])
  t.equal((await values())[bytes], 3000)
  set([{ ...one, bytes: 10 }])
  t.equal((await values())[bytes], 3000, 'it began anew in another session')
  set([])
  events.info('migration ended', { ...departed(1), bytesIn: 5000 })
  t.equal((await values())[bytes], 5000, 'what it had when it ended')
  set(undefined)
  const later = await values()
  t.match(later, { 'pageferry_session_up{peer="dc2"}': 0, [bytes]: 5000 })
  t.notOk('pageferry_effort{peer="dc2"}' in later)
})

t.test('disk transfers that have ended, at either side', async t => {
  const { events, values } = await world({ sources: [source('dc2', [])] })
  const told = events as unknown as Record<'info' | 'warn', (event: string, fields: object) => void>
  const ended = { peer: 'dc2', bytesBack: 1000, bytesBackWan: 100 }
  const name = (metric: string, direction: string, side: string) =>
    `pageferry_disk_${metric}_total{peer="dc2",direction="${direction}",side="${side}"}`
  t.match(await values(), { [name('bytes', 'out', 'qemu')]: 300, [name('back_bytes', 'out', 'wan')]: 5 })
  told.info('disk transfer ended', { ...ended, bytesIn: 5000, bytesWan: 500 })
  told.warn('disk transfer ended', { ...ended, bytesOut: 7000 })
  const after = await values()
  t.match(after, {
    [name('bytes', 'out', 'qemu')]: 5300,
    [name('bytes', 'out', 'wan')]: 530,
    [name('back_bytes', 'out', 'qemu')]: 1041,
    [name('back_bytes', 'out', 'wan')]: 105,
    [name('bytes', 'in', 'qemu')]: 7000,
    [name('back_bytes', 'in', 'qemu')]: 1000,
    [name('back_bytes', 'in', 'wan')]: 100,
    'pageferry_disk_transfers_total{peer="dc2",direction="out",result="ended"}': 1,
    'pageferry_disk_transfers_total{peer="dc2",direction="out",result="broken"}': 0,
    'pageferry_disk_transfers_total{peer="dc2",direction="in",result="broken"}': 1,
  })
  t.notOk(name('bytes', 'in', 'wan') in after, 'the other side knows')
})

t.test('a peer that was here is down when it has gone', async t => {
  const { told, values } = await world()
  const sessions = (...peers: string[]): void => {
    const stats = { rttMs: 1, rate: 1 }
    const some = peers.map(peer => ({
      link: '',
      peer,
      sets: 0,
      coldSets: 0,
      stats,
      migrations: [{ bytes: 7 }],
      disks: [{ connections: 1, bytes: 5, bytesBack: 3, bytesBackWan: 2 }],
    }))
    const destination = { role: 'destination', certificates: [], listening: [], stopping: false, sessions: some }
    Object.assign(told, { destination })
  }
  sessions('ams', 'ams', 'evil"} 1\npageferry_build_info 2')
  t.match(await values(), {
    'pageferry_session_up{peer="ams"}': 1,
    'pageferry_migrations_running{peer="ams",direction="in"}': 2,
    'pageferry_disk_connections{peer="ams",direction="in"}': 2,
    'pageferry_disk_transfers_running{peer="ams",direction="in"}': 2,
    'pageferry_disk_bytes_total{peer="ams",direction="in",side="qemu"}': 10,
    'pageferry_disk_back_bytes_total{peer="ams",direction="in",side="wan"}': 4,
    'pageferry_migration_bytes_total{peer="ams",direction="in",side="qemu"}': 14,
    'pageferry_session_up{peer="evil\\"} 1\\npageferry_build_info 2"}': 1,
  })
  sessions()
  t.match(await values(), {
    'pageferry_session_up{peer="ams"}': 0,
    'pageferry_migrations_running{peer="ams",direction="in"}': 0,
    'pageferry_disk_transfers_running{peer="ams",direction="in"}': 0,
    'pageferry_disk_bytes_total{peer="ams",direction="in",side="qemu"}': 10,
    'pageferry_migrations_total{peer="ams",direction="in",result="failed"}': 0,
  })
  sessions(...Array.from({ length: 1000 }, (_, i) => `p${i}`))
  const text = Object.keys(await values()).filter(name => name.startsWith('pageferry_session_up'))
  t.equal(text.length, METRICS_PEERS_MAX + 1, 'there are only so many peers')
  t.ok(text.includes('pageferry_session_up{peer="others"}'))
})

t.test('a rendering serves all who ask while it is fresh', async t => {
  for (const [freshMs, renderings] of [
    [Number.POSITIVE_INFINITY, 2],
    [0, 101],
  ] as const) {
    let asked = 0
    const status = (): SiteStatus => {
      if (++asked === 1) throw new Error('of the first')
      return NOTHING
    }
    const metrics = await Metrics.load(status, new Events(), freshMs)
    await t.rejects(metrics.text(), { message: 'of the first' })
    const texts = await Promise.all(Array.from({ length: 100 }, () => metrics.text()))
    t.equal(asked, renderings, 'one that failed serves nobody else')
    t.ok(texts.every(text => text.includes('pageferry_build_info')))
  }
})

/** Asks as Prometheus does. */
function scrape(port: number): Promise<string> {
  return new Promise((done, failed) => {
    http
      .get({ host: '127.0.0.1', port, path: '/metrics' }, response => {
        let text = ''
        response.setEncoding('utf8').on('data', (chunk: string) => {
          text += chunk
        })
        response.on('end', () => done(text))
      })
      .on('error', failed)
  })
}

t.test('of a pair with a migration that runs', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-metrics-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const events = new Events()
  await using pair = await Daemons.start({ events })
  const settings = { control: join(folder, 'control'), metrics: parseAddress('tcp:127.0.0.1:0') }
  const control = new Control(settings, new Site([pair.source], pair.destination), events)
  await control.start()
  t.teardown(() => control.close())
  const [, port] = /:(\d+)$/.exec(control.addresses[0]!)!
  const qemu = await pair.dial()
  qemu.write(Buffer.concat([MAIN, Buffer.alloc(100_000)]))
  const { peer } = pair.source.status()
  const text = await until('bytes at both ends', async () => {
    const text = await scrape(Number(port))
    const values = valuesOf(text)
    const of = (direction: string) =>
      values[
        `pageferry_migration_bytes_total{peer="${direction === 'out' ? peer : 'plain 127.0.0.1'}",direction="${direction}",side="qemu"}`
      ]
    return of('out')! > 50_000 && of('in')! > 50_000 && text
  })
  t.match(valuesOf(text), { [`pageferry_session_up{peer="${peer}"}`]: 1, process_resident_memory_bytes: /^\d{7,}$/ })
  t.match(await scrape(Number(port)), /role="serve"/, 'over and over')

  const promtool = spawnSync('promtool', ['check', 'metrics'], { input: text, encoding: 'utf8' })
  if (promtool.error) t.comment('skipped: promtool is not there: apt-get install prometheus')
  else t.same([promtool.status, promtool.stdout, promtool.stderr], [0, '', ''], 'promtool has nothing to say')

  pair.target.sockets[0]!.destroy()
  qemu.destroy()
  await until('its end', async () => /migrations_total\{.*out/.test(await scrape(Number(port))))
})
