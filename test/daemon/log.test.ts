/** The log: one event is one line, nobody gets more lines than are his, and nothing waits for who reads it. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, createReadStream, fstatSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Events, QEMUS, type SiteEvent } from '../../src/daemon/events.ts'
import { LineBudget } from '../../src/daemon/line-budget.ts'
import { EventLog } from '../../src/daemon/text-log.ts'
import { PEER_LINES_PER_MINUTE, PEER_OUTCOMES_PER_MINUTE, QEMU_OUTCOMES_PER_MINUTE } from '../../src/limits.ts'
import { until } from '../helpers/until.ts'
import { Daemons } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy

/** For whoever reads a log here: on a busy machine this process may not run for seconds. */
const READER_MS = 60_000

const folder = mkdtempSync(join(tmpdir(), 'pageferry-log-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

/** What a log wrote to a file about events that are none of ours. */
async function written(
  json: boolean,
  ...events: readonly (readonly [event: string, fields: object])[]
): Promise<string> {
  const path = join(folder, 'log')
  const fd = openSync(path, 'w')
  const log = new EventLog(json, undefined, fd)
  for (const [event, fields] of events) log.take({ level: 'warn', event, fields } as unknown as SiteEvent)
  await log.settle(READER_MS)
  closeSync(fd)
  return readFileSync(path, 'utf8')
}

const HOSTILE = 'a\n2026-01-01T00:00:00.000Z error: forged\x1b[2J\x9b\u2028\u202e\x7f"\\'

t.test('one event is one line', async t => {
  const fields = { text: HOSTILE, [HOSTILE]: 1, deep: [{ [HOSTILE]: HOSTILE }], none: undefined, plain: 'tcp:[::1]:9' }
  for (const json of [false, true]) {
    const lines = (await written(json, [HOSTILE, fields])).split('\n')
    t.equal(lines.length, 2, `json ${json}: a line and its end`)
    t.notMatch(lines[0], /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u)
    if (json) {
      const { time, ...rest } = JSON.parse(lines[0]!) as Record<string, unknown>
      const { none, ...expected } = fields
      t.same(rest, { level: 40, msg: HOSTILE, ...expected }, 'and means the same')
      t.match(time, /^\d{4}-/)
    } else t.match(lines[0], /^\S+Z warning: a\\n2026.* plain="tcp:\[::1\]:9"$/)
  }
})

t.test('what has no JSON is said, and ends nothing', async t => {
  const circle: Record<string, unknown> = {}
  circle.circle = circle
  for (const json of [false, true]) {
    const all = await written(json, ['a', { big: 1n }], ['b', { circle }], ['c', { empty: '' }])
    t.equal(all.trim().split('\n').length, 3)
    t.match(all, /cannot be written: .*BigInt/)
  }
})

t.test('a budget', async t => {
  let nowMs = 0
  let timers: { at: number; run: () => void }[] = []
  const advance = (ms: number): void => {
    const end = nowMs + ms
    for (;;) {
      const next = timers.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0]
      if (!next) break
      timers = timers.filter(timer => timer !== next)
      nowMs = next.at
      next.run()
    }
    nowMs = end
  }
  const written: number[] = []
  let leftOut = 0
  const budget = new LineBudget(
    (cause, lines) => {
      t.equal(cause, 'flood')
      written.push(nowMs)
      leftOut += lines
    },
    {
      nowMs: () => nowMs,
      after: (ms, run) => {
        timers.push({ at: nowMs + ms, run })
        return () => {}
      },
    },
  )
  let taken = 0
  for (let i = 0; i < 10_000; i++) {
    if (budget.takes('flood')) {
      taken++
      written.push(nowMs)
    }
    advance(i % 100 === 0 ? 4321 : 33)
  }
  t.ok(budget.takes('another'), "nobody takes another's lines")
  advance(60_000)
  let most = 0
  for (const end of written) most = Math.max(most, written.filter(at => at > end - 60_000 && at <= end).length)
  t.ok(most <= PEER_LINES_PER_MINUTE && most > PEER_LINES_PER_MINUTE - 10, `${most} lines in the fullest minute`)
  t.equal(taken + leftOut, 10_000, 'each line is written or counted')
})

t.test('who hears of an event, and who caused it', async t => {
  const events = new Events()
  const heard: SiteEvent[] = []
  const end = events.subscribe(event => heard.push(event))
  events.info('stopped')
  events.of('a peer').warn('no session', { error: 'x' })
  const link = events.byFields()
  const reason = { code: 'PEER_AUTH', reason: 'r', hint: 'h' }
  link.warn('link.refused', { peer: '192.0.2.1', ...reason })
  link.warn('link.refused', { peer: '192.0.2.1', identity: 'fra', ...reason })
  link.error('link.listen', { reason: 'ours' })
  end()
  events.info('stopped')
  t.same(
    heard.map(({ level, event, cause }) => [level, event, cause]),
    [
      ['info', 'stopped', undefined],
      ['warn', 'no session', 'a peer'],
      ['warn', 'link.refused', 'strangers'],
      ['warn', 'link.refused', 'fra'],
      ['error', 'link.listen', undefined],
    ],
  )
})

t.test('the log gives each cause its lines, and others hear all', async t => {
  const path = join(folder, 'budget')
  const fd = openSync(path, 'w')
  const log = new EventLog(true, undefined, fd)
  const events = new Events()
  events.subscribe(log.take)
  let heard = 0
  events.subscribe(() => heard++)
  const refused = { peer: '192.0.2.1', code: 'PEER_AUTH', reason: 'r', hint: 'h' }
  for (let i = 0; i < 1000; i++) events.byFields().warn('link.refused', refused)
  for (let i = 0; i < 1000; i++) events.info('stopped')
  await log.settle(READER_MS)
  closeSync(fd)
  const lines = readFileSync(path, 'utf8').trim().split('\n')
  t.ok(lines.filter(line => line.includes('link.refused')).length < PEER_LINES_PER_MINUTE)
  t.equal(lines.filter(line => line.includes('stopped')).length, 1000, 'our own lines are not counted')
  t.equal(heard, 2000)
})

// --- a process of its own whose standard output is in trouble

const SCRIPT = `
import { EventLog } from ${JSON.stringify(fileURLToPath(new URL('../../src/daemon/text-log.ts', import.meta.url)))}
const log = new EventLog(process.argv[1] === 'json')
process.on('message', count => {
  const start = performance.now()
  for (let i = 0; i < count; i++) log.take({ level: 'info', event: 'event ' + 'x'.repeat(100), fields: { i } })
  const tookMs = performance.now() - start
  setTimeout(() => process.send({ tookMs, rss: process.memoryUsage.rss() }), 100)
})
process.on('disconnect', async () => { await log.settle(${READER_MS}); process.exit() })
process.send('up')
`

function logger(json: boolean, stdout: number | 'pipe'): ChildProcess {
  const args = ['--input-type=module', '-e', SCRIPT, json ? 'json' : 'text']
  return spawn(process.execPath, args, { stdio: ['ignore', stdout, 'inherit', 'ipc'] })
}

async function logs(child: ChildProcess, count: number): Promise<{ tookMs: number; rss: number }> {
  child.send(count)
  const [answer] = (await once(child, 'message')) as [{ tookMs: number; rss: number }]
  return answer
}

for (const [json, kind] of [
  [false, 'socket'],
  [true, 'socket'],
  [true, 'pipe'],
] as const) {
  t.test(`a ${kind} that nobody reads costs lines and nothing else (json ${json})`, async t => {
    const fifo = join(folder, 'fifo')
    if (kind === 'pipe') spawnSync('mkfifo', [fifo])
    // what Node calls a pipe is a socket, as the journal is; open at both ends, so that neither waits for the other
    const ends = kind === 'pipe' ? [openSync(fifo, 'r+'), openSync(fifo, 'w')] : []
    const child = logger(json, ends[1] ?? 'pipe')
    t.teardown(() => child.kill('SIGKILL'))
    await once(child, 'message')
    const first = await logs(child, 100)
    const { rss } = await logs(child, 50_000)
    t.ok(rss - first.rss < 64 << 20, `${Math.round((rss - first.rss) / 2 ** 20)} MiB more for 50,000 lines`)
    const read = child.stdout ?? createReadStream(fifo)
    const all = text(read)
    if (kind === 'pipe') await once(read, 'open') // else nobody has it open to read for a moment
    for (const end of ends) closeSync(end)
    await logs(child, 1) // it is read again
    child.disconnect()
    const lines = (await all).trimEnd().split('\n')
    const lost = lines.filter(line => line.includes('log lines were lost'))
    const count = lost.reduce((sum, line) => sum + Number(/lines"?[=:](\d+)/.exec(line)?.[1]), 0)
    t.ok(lost.length >= 1 && count > 0, `${count} lost lines are told`)
    t.equal(lines.length - lost.length + count, 50_101, 'and each is written or counted')
  })
}

for (const json of [false, true]) {
  t.test(`a full disk, a reader that went (json ${json})`, async t => {
    const full = logger(json, openSync('/dev/full', 'w'))
    t.teardown(() => full.kill('SIGKILL'))
    await once(full, 'message')
    await logs(full, 1000)
    await logs(full, 1000)
    const ended = once(full, 'exit')
    full.disconnect()
    t.same(await ended, [0, null], '/dev/full')

    const closed = logger(json, 'pipe')
    t.teardown(() => closed.kill('SIGKILL'))
    await once(closed, 'message')
    closed.stdout!.destroy()
    await logs(closed, 1000)
    await logs(closed, 1000)
    const closedEnded = once(closed, 'exit')
    closed.disconnect()
    t.same(await closedEnded, [0, null], 'a closed pipe')
  })
}

const root = process.getuid?.() === 0
t.test('a disk that is full, and has room again', { skip: !root && 'mounts a tmpfs: as root only' }, async t => {
  const disk = mkdtempSync(join(folder, 'disk-'))
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', disk])
  if (mounted.status !== 0) {
    t.comment(`skipped: no tmpfs can be mounted: ${mounted.stderr}`)
    return
  }
  t.teardown(() => spawnSync('umount', ['-l', disk]))
  const path = join(disk, 'log')
  const child = logger(true, openSync(path, 'a'))
  t.teardown(() => child.kill('SIGKILL'))
  await once(child, 'message')
  await logs(child, 2000)
  const kept = readFileSync(path, 'utf8')
  t.equal(kept.length, 65536, 'full')
  spawnSync('truncate', ['-s', '0', path])
  await logs(child, 1)
  child.disconnect()
  await once(child, 'exit')
  const [torn, note, last, end] = readFileSync(path, 'utf8').split('\n')
  t.equal(torn, '', 'the line that was cut off has ended')
  const lost = JSON.parse(note!) as { lines: number; msg: string }
  t.match(lost.msg, /lost/)
  t.equal(lost.lines + kept.split('\n').length - 1, 2000, 'each line is written or counted')
  t.equal((JSON.parse(last!) as { i: number }).i, 0)
  t.equal(end, '')
})

t.test('noise does not push outcomes out, and both are bounded', async t => {
  for (const json of [false, true])
    for (const [cause, room] of [
      [QEMUS, QEMU_OUTCOMES_PER_MINUTE],
      ['x509:CN=hostile;', PEER_OUTCOMES_PER_MINUTE],
    ] as const) {
      const path = join(folder, 'outcomes')
      const fd = openSync(path, 'w')
      const log = new EventLog(json, undefined, fd)
      const tell = (event: string, times: number): void => {
        for (let i = 0; i < times; i++) log.take({ level: 'error', event, fields: {}, cause } as unknown as SiteEvent)
      }
      tell('target refused', 1000)
      tell('migration ended', 1)
      tell('migration ended', 1000)
      await log.settle(READER_MS)
      closeSync(fd)
      const lines = readFileSync(path, 'utf8').trim().split('\n')
      const ended = lines.filter(line => line.includes('migration ended')).length
      t.ok(ended > room - 10 && ended <= room, `${cause}: ${ended} outcomes`)
      const noise = lines.length - ended
      t.ok(noise > 0 && noise <= PEER_LINES_PER_MINUTE - PEER_OUTCOMES_PER_MINUTE, `${noise} others`)
    }
})

t.test('levels, and priorities for the journal', async t => {
  const path = join(folder, 'levels')
  const lines = async (
    level: 'debug' | 'info' | 'warn' | 'error',
    isJournal: boolean,
    json = false,
  ): Promise<string[]> => {
    const fd = openSync(path, 'w')
    const log = new EventLog(json, undefined, fd, level, isJournal)
    for (const one of ['debug', 'info', 'warn', 'error'] as const)
      log.take({ level: one, event: one, fields: {} } as unknown as SiteEvent)
    await log.settle(READER_MS)
    closeSync(fd)
    return readFileSync(path, 'utf8').trim().split('\n')
  }
  t.equal((await lines('info', false)).length, 3)
  t.equal((await lines('debug', false)).length, 4)
  t.match(await lines('debug', true), [/^<7>\d.* debug$/, /^<6>/, /^<4>/, /^<3>/])
  t.match(await lines('debug', false, true), [/^\{"level":20,/, /30/, /40/, /50/])
  t.match(await lines('warn', false), [/ warning: warn$/, / error: error$/])
  t.match(await lines('error', false), [/^\d.* error: error$/])
  t.match(await lines('info', true), [/^<6>\d.* info$/, /^<4>\d.* warning: warn$/, /^<3>\d.* error: error$/])
  t.match(await lines('error', true, true), [/^<3>\{"level":50,/])
})

t.test('it is the journal only where that reads this descriptor', async t => {
  const path = join(folder, 'stream')
  const fd = openSync(path, 'w')
  t.teardown(() => {
    closeSync(fd)
    delete process.env.JOURNAL_STREAM
  })
  const { dev, ino } = fstatSync(fd)
  for (const stream of ['1:2', `${dev}:${ino}`]) {
    process.env.JOURNAL_STREAM = stream
    const log = new EventLog(false, undefined, fd)
    log.take({ level: 'info', event: 'stopped', fields: {}, cause: undefined })
    await log.settle(READER_MS)
  }
  t.match(readFileSync(path, 'utf8').trim().split('\n'), [/^\d.* stopped$/, /^<6>\d.* stopped$/])
})

t.test('that there is a session is told once at either side', async t => {
  const events = new Events()
  const told: { event: string; level: string; fields: object }[] = []
  events.subscribe(({ event, level, fields }) => told.push({ event, level, fields }))
  await using pair = await Daemons.start({ events })
  await until('the session', () => pair.count('session open') === 2)
  const logged = told.filter(({ level, event }) => level !== 'debug' && event !== 'link.plaintext')
  const about = logged.filter(({ event }) => /^(session|link)/.test(event))
  t.same(
    about.map(({ event }) => event),
    ['session open', 'session open'],
  )
  for (const { fields } of about) t.match(fields, { link: /^[0-9a-f]{8}$/, agent: /^pageferry \d/ })
  t.match(
    about.find(({ fields }) => 'identity' in fields),
    { fields: { from: /^127\.0\.0\.1:\d+$/ } },
    'with the address that it came from',
  )
  const details = told.filter(({ level }) => level === 'debug').map(({ event }) => event)
  t.same(details.sort(), ['link.open', 'link.open', 'link.up', 'link.up'], 'the rest is for who wants it in detail')

  told.length = 0
  pair.wan.cut()
  await until('the way back', () => told.filter(({ event }) => event === 'link.up').length === 2)
  const broke = told.filter(({ level }) => level !== 'debug').map(({ event, level }) => `${event} ${level}`)
  t.same(
    broke.filter(text => !text.startsWith('link.plaintext')).sort(),
    ['WAN connection lost warn', 'link.down warn', 'link.up info', 'link.up info'],
    'a break once at either side, and that it is over',
  )
})
