/** The files of monitoring/: what promtool says of them, that they name what is there, and a real Prometheus with them. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { parse, stringify } from 'yaml'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { Control } from '../../src/daemon/control.ts'
import { Events } from '../../src/daemon/events.ts'
import { Metrics } from '../../src/daemon/metrics.ts'
import { Site } from '../../src/daemon/site.ts'
import { Credentials } from '../../src/link/credentials.ts'
import { makeX509, writeCredentialFiles } from '../../src/link/keygen.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { Daemons, MAIN } from '../daemon/daemons.ts'
import { DiskClient } from '../daemon/disk-client.ts'
import { NBD_SKIP, Nbdkit } from '../daemon/nbd.ts'
import { departed } from '../helpers/ended-migrations.ts'
import { until } from '../helpers/until.ts'

t.setTimeout(590_000) // the machine may be busy

const file = (name: string): string => fileURLToPath(new URL(`../../${name}`, import.meta.url))
const RULES = file('monitoring/pageferry.rules.yaml')
const UNIT_TESTS = ['alerts.yaml', 'alerts-of-days.yaml'].map(name => file(`test/monitoring/${name}`))

interface Rule {
  alert: string
  expr: string
  for?: string
  readonly labels: { readonly severity: string }
  readonly annotations: { readonly summary: string; readonly description: string; readonly runbook_url: string }
}
interface Rules {
  readonly groups: readonly { readonly name: string; readonly rules: readonly Rule[] }[]
}
interface UnitTests {
  readonly tests: readonly {
    readonly promql_expr_test: readonly { readonly expr: string; readonly exp_samples: readonly object[] }[]
  }[]
}
interface Panel {
  readonly id: number
  readonly type: string
  readonly title: string
  readonly description?: string
  readonly targets?: readonly { readonly expr: string }[]
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number }
}
interface Dashboard {
  readonly panels: readonly Panel[]
  readonly templating: { readonly list: readonly { readonly name: string; readonly definition?: string }[] }
  readonly annotations: { readonly list: readonly { readonly expr: string }[] }
}

const rulesText = readFileSync(RULES, 'utf8')
const rules = (parse(rulesText) as Rules).groups.flatMap(group => group.rules)
const dashboard = JSON.parse(readFileSync(file('monitoring/grafana-dashboard.json'), 'utf8')) as Dashboard

/** As Grafana asks it, with all that there is chosen. */
const asked = (expr: string): string =>
  expr.replaceAll('$__rate_interval', '1m').replace(/\$(job|instance|peer)\b/g, '.+')
const queries = dashboard.panels.flatMap(({ title, targets = [] }) =>
  targets.map(({ expr }) => ({ title, expr: asked(expr) })),
)

const lacking = (program: string): string | false =>
  spawnSync(program, ['--version']).error ? `${program} is not there: apt-get install prometheus` : false

function promtool(...args: string[]): { readonly status: number | null; readonly said: string } {
  const { status, stdout, stderr } = spawnSync('promtool', args, { encoding: 'utf8' })
  return { status, said: stdout + stderr }
}

const folder = temporaryFolder('monitoring')

/** Of both sides, so that there is something that expires. */
async function credentials(): Promise<{ readonly source: Credentials; readonly destination: Credentials }> {
  writeCredentialFiles(folder.path, await makeX509(['near'], ['far', '127.0.0.1'], 1))
  return {
    source: new Credentials({ role: 'client', directory: join(folder.path, 'near') }),
    destination: new Credentials({ role: 'server', directory: join(folder.path, 'far') }),
  }
}
t.teardown(folder.remove)

t.test('promtool takes the alerts, and each fires where it should', { skip: lacking('promtool') }, t => {
  t.match(promtool('check', 'rules', RULES), { status: 0, said: `SUCCESS: ${rules.length} rules found` })
  t.match(promtool('test', 'rules', ...UNIT_TESTS), { status: 0, said: 'SUCCESS' })
  t.end()
})

t.test('each alert is shown to fire and to be silent, and says what to do', t => {
  const shown = UNIT_TESTS.flatMap(path => (parse(readFileSync(path, 'utf8')) as UnitTests).tests).flatMap(
    one => one.promql_expr_test,
  )
  const operations = readFileSync(file('docs/operations.md'), 'utf8')
  for (const { alert, labels, annotations } of rules) {
    const of = shown.filter(({ expr }) => expr === `ALERTS{alertname="${alert}",alertstate="firing"}`)
    t.ok(
      of.some(({ exp_samples }) => exp_samples.length > 0),
      `${alert} fires`,
    )
    t.ok(
      of.some(({ exp_samples }) => exp_samples.length === 0),
      `${alert} is silent`,
    )
    t.match(alert, /^Pageferry[A-Z]\w+$/)
    t.match(labels.severity, /^(critical|warning|info)$/)
    t.ok(annotations.summary && annotations.description, 'it says what and what of it')
    t.equal(
      annotations.runbook_url,
      `file:///usr/share/doc/pageferry/docs/operations.md#${alert.toLowerCase()}`,
      'where the package has it',
    )
    t.match(operations, `\n#### ${alert}\n`, `docs/operations.md has ${alert}`)
  }
  const sections = [...operations.matchAll(/^#### (Pageferry\w+)$/gm)].map(([, name]) => name)
  t.same(
    sections,
    rules.map(({ alert }) => alert),
    'and no other',
  )
  t.end()
})

/** Names and labels of metrics that a query speaks of. */
function metricsIn(expr: string): { readonly name: string; readonly labels: readonly string[] }[] {
  return [...expr.matchAll(/\b(pageferry_\w+|process_\w+|up|ALERTS)\b(?:\{([^}]*)\})?/g)].map(
    ([, name, matchers = '']) => ({
      name: name!,
      labels: [...matchers.matchAll(/(\w+)\s*(?:=~|!~|!=|=)/g)].map(([, label]) => label!),
    }),
  )
}

t.test('they name only metrics and labels that there are', async t => {
  const nothing = { api: 1, version: '', process: 1, started: '', sources: [], destination: undefined } as const
  const metrics = await Metrics.load(() => nothing, new Events())
  const text = await metrics.text()
  metrics.close()
  const documented = readFileSync(file('docs/operations.md'), 'utf8')
  const known = new Map<string, ReadonlySet<string>>()
  const OF_PROMETHEUS = ['job', 'instance']
  // labels as the documents have them: a metric that has no series yet shows none
  for (const [, names, labels] of documented.matchAll(/^\| (`(?:pageferry|process)_.*?) \| (.*?) \|/gm))
    for (const [, name] of names!.matchAll(/`(\w+)`/g))
      known.set(name!, new Set([...labels!.split(/[,;] /), ...OF_PROMETHEUS]))
  for (const [, name, kind] of text.matchAll(/^# TYPE (\w+) (\w+)$/gm)) {
    t.ok(known.has(name!), `docs/operations.md has ${name}`)
    if (kind !== 'histogram') continue
    const labels = known.get(name!)!
    for (const part of ['sum', 'count']) known.set(`${name}_${part}`, labels)
    known.set(`${name}_bucket`, new Set([...labels, 'le']))
  }
  known.set('up', new Set(OF_PROMETHEUS))
  known.set('ALERTS', new Set(['alertname', 'alertstate', ...OF_PROMETHEUS]))
  const spoken = [
    ...queries.map(({ title, expr }) => [title, expr] as const),
    ...rules.map(({ alert, expr }) => [alert, expr] as const),
    ...dashboard.templating.list.map(({ name, definition = '' }) => [name, definition] as const),
    ...dashboard.annotations.list.map(({ expr }) => ['annotations', expr] as const),
  ]
  for (const [where, expr] of spoken)
    for (const { name, labels } of metricsIn(expr)) {
      const has = known.get(name)
      t.ok(has, `${where}: ${name}`)
      for (const label of labels) t.ok(has?.has(label), `${where}: ${name}{${label}}`)
    }
  t.ok(spoken.flatMap(([, expr]) => metricsIn(expr)).length > 40, 'all of them were looked at')
})

t.test('the dashboard: panels have titles and stand beside each other, queries are no nonsense', t => {
  const { panels } = dashboard
  t.equal(new Set(panels.map(({ id }) => id)).size, panels.length, 'ids')
  for (const { title, type, description, targets } of panels) {
    t.ok(title, 'a title')
    if (type !== 'row') t.ok(description && targets!.length > 0, `${title}: what it shows`)
  }
  const cells = new Set<string>()
  for (const { title, gridPos } of panels) {
    const { x, y, w, h } = gridPos
    t.ok(x + w <= 24, `${title} is within`)
    for (let i = x; i < x + w; i++)
      for (let j = y; j < y + h; j++) {
        if (cells.has(`${i} ${j}`)) t.fail(`${title} covers another`)
        cells.add(`${i} ${j}`)
      }
  }
  if (lacking('promtool')) t.comment('skipped: queries are not parsed, promtool is not there')
  else {
    const path = join(folder.path, 'queries.yaml')
    const recorded = queries.map(({ expr }, i) => ({ record: `query_${i}`, expr }))
    writeFileSync(path, stringify({ groups: [{ name: 'dashboard', rules: recorded }] }))
    t.match(promtool('check', 'rules', path), { status: 0, said: `SUCCESS: ${queries.length} rules found` })
  }
  t.end()
})

// --- a real one

interface ApiAlert {
  readonly labels: Record<string, string>
  readonly annotations: Record<string, string>
  readonly state: string
}

/** A Prometheus of the distribution, with its data in a folder of ours. */
class Prometheus implements AsyncDisposable {
  private readonly child: ReturnType<typeof spawn>
  private readonly base: string
  private said = ''

  private constructor(child: ReturnType<typeof spawn>, base: string) {
    this.child = child
    this.base = base
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.said = (this.said + text).slice(-4000)
    })
  }

  static async start(path: string, config: object): Promise<Prometheus> {
    mkdirSync(path)
    const port = await claimPort()
    writeFileSync(join(path, 'prometheus.yaml'), stringify(config))
    const args = [
      `--config.file=${join(path, 'prometheus.yaml')}`,
      `--storage.tsdb.path=${join(path, 'data')}`,
      `--web.listen-address=127.0.0.1:${port}`,
    ]
    const child = spawn('prometheus', args, { stdio: ['ignore', 'ignore', 'pipe'] })
    const prometheus = new Prometheus(child, `http://127.0.0.1:${port}`)
    await until(
      () => `Prometheus: ${prometheus.said}`,
      async () => {
        if (child.exitCode !== null) throw new Error(`Prometheus ended with ${child.exitCode}: ${prometheus.said}`)
        return await fetch(`${prometheus.base}/-/ready`).then(
          ({ ok }) => ok,
          () => false,
        )
      },
      180_000,
    )
    return prometheus
  }

  async query(expr: string): Promise<readonly { readonly metric: object; readonly value: [number, string] }[]> {
    const { data } = (await this.get(`query?query=${encodeURIComponent(expr)}`)) as {
      data: { result: { metric: object; value: [number, string] }[] }
    }
    return data.result
  }

  async alerts(): Promise<readonly ApiAlert[]> {
    return ((await this.get('alerts')) as { data: { alerts: ApiAlert[] } }).data.alerts
  }

  /** @throws Error where it says that this is no query */
  private async get(path: string): Promise<unknown> {
    const answer = await fetch(`${this.base}/api/v1/${path}`)
    const body = (await answer.json()) as { status: string; error?: string }
    if (body.status !== 'success') throw new Error(`${path}: ${body.error}`)
    return body
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.child, 'exit')
    if (this.child.exitCode === null && this.child.kill('SIGKILL')) await ended
  }
}

/** A Prometheus that scrapes a pair each second, with the same alerts, which do not wait for minutes. */
async function watching(
  t: { teardown(run: () => unknown): void },
  name: string,
  { source, destination }: Daemons,
  events: Events,
): Promise<{ readonly prometheus: Prometheus; readonly target: string }> {
  const settings = { control: undefined, metrics: parseAddress('tcp:127.0.0.1:0') }
  const control = new Control(settings, new Site([source], destination), events)
  await control.start()
  t.teardown(() => control.close())
  const [, target = ''] = /^tcp:(.*)$/.exec(control.addresses[0]!) ?? []
  const soon = parse(rulesText.replaceAll('[2m]', '[10s]')) as Rules
  for (const rule of soon.groups.flatMap(group => group.rules)) if (rule.for !== undefined) rule.for = '1s'
  const alerts = join(folder.path, `${name}.yaml`)
  writeFileSync(alerts, stringify(soon))
  const prometheus = await Prometheus.start(join(folder.path, name), {
    global: { scrape_interval: '1s', evaluation_interval: '1s' },
    rule_files: [alerts],
    scrape_configs: [{ job_name: 'pageferry', static_configs: [{ targets: [target] }] }],
  })
  await until('its first scrape', async () => (await prometheus.query('pageferry_session_up == 1')).length > 0, 120_000)
  return { prometheus, target }
}

t.test(
  'a real Prometheus sees a migration that stands still, and how it failed',
  { skip: lacking('prometheus') },
  async t => {
    const events = new Events()
    const cap = 50_000_000
    await using pair = await Daemons.start({ events, rate: cap, credentials: await credentials() })
    const { prometheus, target } = await watching(t, 'memory', pair, events)
    await using _ = prometheus

    const { peer } = pair.source.status()
    const qemu = await pair.dial()
    const feed = setInterval(() => qemu.write(Buffer.alloc(20_000)), 100)
    t.teardown(() => clearInterval(feed))
    qemu.write(Buffer.concat([MAIN, Buffer.alloc(100_000)]))
    const of = `peer="${peer}",direction="out"`
    await until(
      'a rate of bytes at both sides',
      async () =>
        (await prometheus.query(`rate(pageferry_migration_bytes_total{${of},side="qemu"}[10s]) > 0`)).length === 1 &&
        (await prometheus.query('rate(pageferry_migration_bytes_total{direction="in"}[10s]) > 0')).length === 1,
      120_000,
    )
    await shows('Effort') // that of the next batch
    t.match(await prometheus.query('pageferry_rate_limit_bytes_per_second'), [{ value: [Number, `${cap}`] }])
    t.match(await prometheus.query(`pageferry_migrations_running{${of}}`), [{ value: [Number, '1'] }])
    t.match(await prometheus.query('up{job="pageferry"}'), [{ value: [Number, '1'] }])
    const firing = async (name: string): Promise<ApiAlert | undefined> =>
      (await prometheus.alerts()).find(
        ({ labels, state }) => labels.alertname === name && labels.direction === 'out' && state === 'firing',
      )
    t.equal(await firing('PageferryMigrationStalled'), undefined, 'not while it goes on')

    clearInterval(feed)
    const stalled = await until('the alert', () => firing('PageferryMigrationStalled'), 120_000)
    t.match(stalled, {
      labels: { severity: 'critical', peer, job: 'pageferry', instance: target },
      annotations: { summary: `No byte of 1 migrations between ${target} and ${peer} for minutes` },
    })

    // the destination QEMU dies
    const reset = new Promise(done => qemu.on('error', () => {}).on('close', done))
    pair.target.sockets[0]!.resetAndDestroy()
    await reset
    const failed = await until('how it ended', () => firing('PageferryMigrationFailed'), 120_000)
    t.match(failed, { labels: { result: 'failed', peer }, annotations: { description: /^Direction out\./ } })
    await until(
      'nothing that stands still',
      async () => (await firing('PageferryMigrationStalled')) === undefined,
      120_000,
    )

    // what completes: each is counted from the one before on, so that the first says nothing by itself
    const forecast = { atSeconds: 5, effort: 2, seconds: [8, 12], bytesIn: [8, 12], bytesWan: [8, 12] } as const
    const firstPass = { seconds: 10, bytesIn: 900, bytesWan: 90 }
    const completed = async (count: number): Promise<void> => {
      events.info('migration ended', { ...departed(100 + count, peer), forecast, firstPass, pauseSeconds: 0.2 })
      const counted = `pageferry_forecast_error_ratio_count == ${count}`
      await until('that it is counted', async () => (await prometheus.query(counted)).length > 0, 120_000)
    }
    await completed(1)
    await completed(2)

    // a QEMU that comes while there is no session
    pair.wan.cut(true)
    await until('no session', async () => (await prometheus.query('pageferry_session_up == 0')).length > 0, 120_000)
    const waits = await pair.dial()
    waits.on('error', () => {}).write(MAIN)
    await shows('Migrations that run, and that wait')
    waits.destroy()
    pair.wan.restore()

    const titles = new Set(queries.map(({ title }) => title))
    titles.delete('Effort') // of one that runs: seen above
    titles.delete('Migrations that run, and that wait')
    for (const title of titles) await shows(title)
    t.ok(titles.size > 15, `all other panels show something: ${titles.size}`)

    /** Each query of a panel gives something. */
    async function shows(title: string): Promise<void> {
      const own = queries.filter(one => one.title === title)
      if (own.length === 0) throw new Error(`no panel ${title}`)
      for (const { expr } of own) {
        const isThere = async (): Promise<boolean> => (await prometheus.query(expr)).length > 0
        await until(`what ${title} shows: ${expr}`, isThere, 120_000)
      }
    }
  },
)

t.test(
  'a real Prometheus sees disks: what passes, writes that nobody answers, a session that is left, a break',
  { skip: lacking('prometheus') || NBD_SKIP },
  async t => {
    const events = new Events()
    await using kit = await Nbdkit.start('memory', '8M')
    await using pair = await Daemons.start({
      events,
      disks: `unix:${kit.socket}`,
      diskAnswers: 'early',
      ringPages: 8192,
    })
    const { prometheus } = await watching(t, 'disks', pair, events)
    await using _ = prometheus
    const { peer } = pair.source.status()
    const is = (expr: string): Promise<unknown> =>
      until(expr, async () => (await prometheus.query(expr)).length > 0, 120_000)
    const firing = async (name: string): Promise<ApiAlert | undefined> =>
      (await prometheus.alerts()).find(({ labels, state }) => labels.alertname === name && state === 'firing')

    const disk = await DiskClient.open(pair.diskPort)
    await is('pageferry_disk_connections{direction="out"} == 1')
    await disk.write(0, Buffer.alloc(1 << 20, 'once'))
    await disk.flush()
    await is('rate(pageferry_disk_bytes_total{direction="out",side="wan"}[10s]) > 0')
    await is('rate(pageferry_disk_bytes_total{direction="in",side="qemu"}[10s]) > 1e4')
    await is('rate(pageferry_disk_back_bytes_total{direction="out",side="wan"}[10s]) > 0')
    await is('pageferry_disk_owed_bytes == 0')

    kit.child.kill('SIGSTOP')
    await disk.write(1 << 20, Buffer.alloc(65_536, 'more'))
    await is('pageferry_disk_owed_bytes == 65536')
    const waits = await until('the alert', () => firing('PageferryDiskWritesWait'), 120_000)
    t.match(waits, {
      labels: { peer },
      annotations: { summary: `64kiB of disk writes to ${peer} have waited for minutes` },
    })
    kit.child.kill('SIGCONT')
    await is('pageferry_disk_owed_bytes == 0')
    await until('no alert', async () => (await firing('PageferryDiskWritesWait')) === undefined, 120_000)

    pair.source.renew()
    await is('pageferry_sessions_left == 1')
    t.match(await until('the alert', () => firing('PageferrySessionLeftLong'), 120_000), { labels: { peer } })
    t.equal(await firing('PageferrySessionsLeft'), undefined)
    t.equal(await firing('PageferryDiskBroken'), undefined)

    kit.child.kill('SIGKILL')
    const broken = await until('the alert', () => firing('PageferryDiskBroken'), 120_000)
    t.match(broken, { labels: { result: 'broken' }, annotations: { summary: /^A disk transfer between / } })
    await is('pageferry_sessions_left == 0')
    await is('sum(pageferry_disk_connections) == 0')
  },
)
