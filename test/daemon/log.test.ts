/** The log: one event is one line, nobody gets more lines than are his, and nothing waits for who reads it. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { LineBudget } from '../../src/daemon/line-budget.ts'
import type { Log } from '../../src/daemon/log.ts'
import { makeLog } from '../../src/daemon/text-log.ts'
import { PEER_LINES_PER_MINUTE } from '../../src/limits.ts'

const folder = mkdtempSync(join(tmpdir(), 'pageferry-log-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

/** What a log wrote to a file. */
async function written(json: boolean, use: (log: Log) => void): Promise<string> {
  const path = join(folder, 'log')
  const fd = openSync(path, 'w')
  const log = makeLog(json, fd)
  use(log)
  await log.settle()
  closeSync(fd)
  return readFileSync(path, 'utf8')
}

const HOSTILE = 'a\n2026-01-01T00:00:00.000Z error: forged\x1b[2J\x9b\u2028\u202e\x7f"\\'

t.test('one event is one line', async t => {
  const fields = { text: HOSTILE, [HOSTILE]: 1, deep: [{ [HOSTILE]: HOSTILE }], none: undefined, plain: 'tcp:[::1]:9' }
  for (const json of [false, true]) {
    const lines = (await written(json, log => log.warn(HOSTILE, fields))).split('\n')
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
    const all = await written(json, log => {
      log.info('a', { big: 1n })
      log.info('b', { circle })
      log.info('c', { empty: '' })
    })
    t.equal(all.trim().split('\n').length, 3)
    t.match(all, /cannot be written: .*BigInt/)
  }
})

t.test('a budget', async t => {
  let nowMs = 0
  let timers: { at: number; run: () => void }[] = []
  const lines: { at: number; event: string; fields: Record<string, unknown> }[] = []
  const write = (event: string, fields: object = {}): void =>
    void lines.push({ at: nowMs, event, fields: { ...fields } })
  const budget = new LineBudget(
    { info: write, warn: write, error: write },
    { now: () => nowMs, after: (ms, run) => void timers.push({ at: nowMs + ms, run }) },
  )
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
  let said = 0
  const flood = budget.of('flood')
  for (let i = 0; i < 10_000; i++) {
    flood.info('x')
    said++
    if (i % 7 === 0) budget.byFields().warn('y', { identity: 'flood' })
    if (i % 7 === 0) said++
    advance(i % 100 === 0 ? 4321 : 33)
  }
  advance(60_000)
  const mine = lines.splice(0)
  let most = 0
  for (const { at } of mine) most = Math.max(most, mine.filter(line => line.at > at - 60_000 && line.at <= at).length)
  t.ok(most <= PEER_LINES_PER_MINUTE && most > PEER_LINES_PER_MINUTE - 10, `${most} lines in the fullest minute`)
  const counts = mine.filter(({ event }) => event.startsWith('lines left out'))
  const leftOut = counts.reduce((sum, { fields }) => sum + Number(fields.lines), 0)
  t.equal(mine.length - counts.length + leftOut, said, 'each line is written or counted')
  t.same(counts[0]?.fields.cause, 'flood')

  for (let i = 0; i < 1000; i++) {
    budget.byFields().warn('link.refused', { peer: '192.0.2.1' })
    budget.byFields().error('link.listen', { reason: 'ours' })
  }
  budget.of('another').info('is heard')
  const now = lines.map(({ event }) => event)
  t.ok(now.filter(event => event === 'link.refused').length < PEER_LINES_PER_MINUTE, 'strangers share one budget')
  t.equal(now.filter(event => event === 'link.listen').length, 1000, 'our own lines are not counted')
  t.ok(now.includes('is heard'), "nobody takes another's lines")
})

// --- a process of its own whose standard output is in trouble

const SCRIPT = `
import { makeLog } from ${JSON.stringify(fileURLToPath(new URL('../../src/daemon/text-log.ts', import.meta.url)))}
const log = makeLog(process.argv[1] === 'json')
process.on('message', count => {
  const start = performance.now()
  for (let i = 0; i < count; i++) log.info('event ' + 'x'.repeat(100), { i })
  const tookMs = performance.now() - start
  setTimeout(() => process.send({ tookMs, rss: process.memoryUsage.rss() }), 100)
})
process.on('disconnect', async () => { await log.settle(); process.exit() })
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

for (const json of [false, true]) {
  t.test(`a pipe that nobody reads costs lines and nothing else (json ${json})`, async t => {
    const child = logger(json, 'pipe')
    t.teardown(() => child.kill('SIGKILL'))
    await once(child, 'message')
    const first = await logs(child, 100)
    const { rss } = await logs(child, 50_000)
    t.ok(rss - first.rss < 64 << 20, `${Math.round((rss - first.rss) / 2 ** 20)} MiB more for 50,000 lines`)
    const all = text(child.stdout!)
    await logs(child, 1) // it reads again
    child.disconnect()
    const lines = (await all).trimEnd().split('\n')
    const lost = lines.filter(line => line.includes('log lines were lost'))
    const count = lost.reduce((sum, line) => sum + Number(/lines"?[=:](\d+)/.exec(line)?.[1]), 0)
    t.ok(lost.length >= 1 && count > 0, `${count} lost lines are told`)
    t.equal(lines.length - lost.length + count, 50_101, 'and each is written or counted')
  })

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
