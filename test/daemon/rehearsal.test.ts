/** Rehearsals: before a proxy listens, of guests that never were, in sight of nobody; and whatever goes wrong, it starts. */
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Events, type SiteEvent } from '../../src/daemon/events.ts'
import { GUEST_PAGES, madeUpGuest } from '../../src/daemon/made-up-guest.ts'
import { Metrics } from '../../src/daemon/metrics.ts'
import { rehearse } from '../../src/daemon/rehearsal.ts'
import { Site } from '../../src/daemon/site.ts'
import { SourceDaemon } from '../../src/daemon/source-daemon.ts'
import { ProxyError } from '../../src/errors.ts'
import { REHEARSAL_MS } from '../../src/limits.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { until } from '../helpers/until.ts'
import { scratch } from '../template/makers.ts'
import { Running } from './running.ts'

t.setTimeout(590_000) // the machine may be busy

/** Long enough on any machine. */
const LIMIT_MS = 300_000

/** What a process tells meanwhile. */
function listen(): { readonly events: Events; readonly told: SiteEvent[] } {
  const events = new Events()
  const told: SiteEvent[] = []
  events.subscribe(one => void told.push(one))
  return { events, told }
}

t.test('a guest that never was parses to its end, has pages of all kinds, and is the same each time', t => {
  const stream = madeUpGuest(1)
  t.same(Buffer.compare(stream, madeUpGuest(1)), 0)
  t.not(Buffer.compare(stream, madeUpGuest(2)), 0)
  const phases: string[] = []
  const sent = new Set<string>()
  let records = 0
  let zeroes = 0
  const parser = new MainStreamParser({
    block: () => {},
    zeroRecord: () => void zeroes++,
    opaquePage: () => t.fail('no page is opaque'),
    pageRecord: (_start, _end, block, offset) => {
      records++
      sent.add(`${block} ${offset}`)
    },
    phase: phase => void phases.push(phase),
    degraded: (_at, reason) => t.fail(reason),
  })
  parser.push(stream, 0, stream.length)
  t.same(phases, ['header', 'return-path', 'ram-start', 'ram-end'])
  t.ok(zeroes > GUEST_PAGES / 20, 'pages without anything')
  t.ok(sent.size > GUEST_PAGES / 2 && records > sent.size * 1.2, 'pages that come again')
  t.end()
})

for (const tls of [false, true]) {
  t.test(`nothing of a rehearsal is seen, ${tls ? 'with' : 'without'} TLS`, async t => {
    const { folder } = scratch(t.teardown)
    const { TMPDIR } = process.env
    process.env.TMPDIR = folder
    t.teardown(() => {
      if (TMPDIR === undefined) delete process.env.TMPDIR
      else process.env.TMPDIR = TMPDIR
    })
    const pools = new Pools()
    const { events, told } = listen()
    const metrics = await Metrics.load(() => new Site([], undefined).status(), events)
    const before = await metrics.text()
    await rehearse({ pools, effort: 'auto', tls, limitMs: LIMIT_MS }, events)
    t.match(told, [{ level: 'debug', event: 'rehearsed', fields: { guests: 4 } }], 'all guests were moved')
    t.equal(told.length, 1, 'history, metrics, hooks and log hear of no migration')
    const migrations = (text: string): string[] => text.split('\n').filter(line => /^pageferry_migration/.test(line))
    t.same(migrations(await metrics.text()), migrations(before))
    t.same(readdirSync(folder), [], 'no key is left')
    metrics.close()
    await until(
      () => `no session is left: ${JSON.stringify(pools.stats)}`,
      () => pools.stats.every(({ sessions, sets }) => sessions === 0 && sets === 0),
    )
  })
}

t.test('one that fails is told, and no more', async t => {
  const { folder } = scratch(t.teardown)
  const { TMPDIR } = process.env
  process.env.TMPDIR = join(folder, 'missing')
  t.teardown(() => {
    if (TMPDIR === undefined) delete process.env.TMPDIR
    else process.env.TMPDIR = TMPDIR
  })
  const { events, told } = listen()
  await rehearse({ pools: new Pools(), tls: true, limitMs: LIMIT_MS }, events)
  t.match(told, [{ level: 'warn', event: 'rehearsal failed', fields: { error: /missing/ } }])
  t.notOk(existsSync(join(folder, 'missing')))
})

t.test('one whose time is over ends, however far it is; without time there is none', async t => {
  const pools = new Pools()
  const { events, told } = listen()
  await rehearse({ pools, effort: 3, tls: false, limitMs: 1 }, events)
  t.match(told, [{ event: 'rehearsed', fields: { guests: 0 } }])
  await rehearse({ pools, tls: false, limitMs: 0 }, events)
  t.equal(told.length, 1)
  await until(
    () => `no session is left: ${JSON.stringify(pools.stats)}`,
    () => pools.stats.every(({ sessions }) => sessions === 0),
  )
})

t.test('one that is told to end does, and says nothing else', async t => {
  const { events, told } = listen()
  const ending = new AbortController()
  const ended = rehearse({ pools: new Pools(), tls: false, limitMs: LIMIT_MS }, events, ending.signal)
  ending.abort()
  await ended
  t.match(told, [{ event: 'rehearsed', fields: { guests: 0 } }])
  await rehearse({ pools: new Pools(), tls: false, limitMs: LIMIT_MS }, events, ending.signal)
  t.equal(told.length, 1, 'one that was told before does not begin')
})

t.test('a session that never opens is told', async t => {
  class NoMemory extends Pools {
    override open(): Promise<never> {
      return Promise.reject(new Error('none'))
    }
  }
  const { events, told } = listen()
  await rehearse({ pools: new NoMemory(), tls: false, limitMs: REHEARSAL_MS }, events)
  t.match(told, [{ level: 'warn', event: 'rehearsal failed' }])
})

for (const [role, side] of [
  ['decoder', 'destination'],
  ['encoder', 'source'],
] as const) {
  t.test(`a guest that fails at its ${side} proxy is told once, with where, and no other comes`, async t => {
    class Failing extends Pools {
      override async open(...[request, ...rest]: Parameters<Pools['open']>): ReturnType<Pools['open']> {
        const pool = await super.open(request, ...rest)
        if (request.role !== role) return pool
        return { ...pool, warm: () => Promise.reject(new ProxyError('IO', 'planted', undefined, '')) }
      }
    }
    const pools = new Failing()
    const { events, told } = listen()
    await rehearse({ pools, effort: 2, tls: false, limitMs: LIMIT_MS }, events)
    t.equal(told.length, 1, JSON.stringify(told))
    const [warning] = told
    t.match(warning, { level: 'warn', event: 'rehearsal failed' })
    t.match(
      (warning as { fields: { error: string } }).fields.error,
      /: (source|destination) proxy: .*guest 1 of 4, effort 2/,
    )
    await until(
      () => `no session is left: ${JSON.stringify(pools.stats)}`,
      () => pools.stats.every(({ sessions }) => sessions === 0),
    )
  })
}

t.test('a source proxy that could not start is closed, and is not waited for', async t => {
  const { start, abort } = SourceDaemon.prototype
  let aborted = 0
  Object.assign(SourceDaemon.prototype, {
    start: () => Promise.reject(new ProxyError('ADDRESS', 'planted', undefined, '')),
    abort(this: SourceDaemon) {
      aborted++
      return abort.call(this)
    },
  })
  t.teardown(() => Object.assign(SourceDaemon.prototype, { start, abort }))
  const { events, told } = listen()
  await rehearse({ pools: new Pools(), tls: false, limitMs: LIMIT_MS }, events)
  t.match(told, [{ level: 'warn', event: 'rehearsal failed', fields: { error: 'planted' } }])
  t.equal(aborted, 1)
})

t.test('signals while a proxy rehearses', async t => {
  const { folder } = scratch(t.teardown)
  const start = async (name: string): Promise<Running> => {
    const control = join(folder, name)
    const where = ['--listen', 'tcp:127.0.0.1:0', '--target', 'tcp:127.0.0.1:1']
    const proxy = new Running(
      'destination',
      ...where,
      '--control',
      control,
      '--log-level',
      'debug',
      '--rehearsal',
      '60s',
    )
    await until('it hears signals', () => existsSync(control)) // which is right before it rehearses
    return proxy
  }
  await using stopped = await start('stopped')
  stopped.child.kill('SIGTERM')
  t.same(await stopped.exit, [0, null])
  await stopped.said('stopped')
  const guests = Number(stopped.of('rehearsed')[0]?.guests ?? 0)
  t.ok(guests === 4 || stopped.of('listening for source proxies').length === 0, 'it does not begin to listen')
  await using reread = await start('reread')
  reread.child.kill('SIGHUP')
  await reread.said('certificates and keys read again')
})

for (const [role, where, ready] of [
  ['source', ['--listen', 'tcp:127.0.0.1:0', '--peer', '127.0.0.1:1'], 'listening for QEMU'],
  ['destination', ['--listen', 'tcp:127.0.0.1:0', '--target', 'tcp:127.0.0.1:1'], 'listening for source proxies'],
] as const) {
  t.test(`a ${role} proxy is ready behind its rehearsal`, async t => {
    await using proxy = new Running(role, ...where, '--log-level', 'debug', '--rehearsal', '60s')
    await proxy.said(ready)
    const names = proxy.lines.map(({ msg }) => msg)
    t.ok(names.indexOf('rehearsed') >= 0 && names.indexOf('rehearsed') < names.indexOf(ready), names.join(', '))
  })

  t.test(`a ${role} proxy without one`, async t => {
    await using proxy = new Running(role, ...where, '--log-level', 'debug', '--rehearsal', '0s')
    await proxy.said(ready)
    t.same(proxy.of('rehearsed'), [])
  })
}
