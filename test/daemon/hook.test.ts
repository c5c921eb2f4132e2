/** The program of --hook: what it is told, in which order, how many run, and that nothing waits for it. */
import { chmodSync, closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Control } from '../../src/daemon/control.ts'
import { Events, type SiteEvents } from '../../src/daemon/events.ts'
import { Hook, requireHook } from '../../src/daemon/hook.ts'
import { Site } from '../../src/daemon/site.ts'
import { HOOKS_RUNNING_MAX, HOOKS_WAITING_MAX } from '../../src/limits.ts'
import { until } from '../helpers/until.ts'
import { Daemons, MAIN } from './daemons.ts'

t.setTimeout(590_000)

const folder = mkdtempSync(join(tmpdir(), 'pageferry-hook-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

/** A program, and the file in which it leaves a block of lines for each run. */
function program(name: string, script: string): { readonly path: string; readonly lines: () => string[] } {
  const [path, out] = [join(folder, name), join(folder, `${name}.out`)]
  writeFileSync(path, `#!/bin/sh\nOUT='${out}'\n${script}\n`)
  chmodSync(path, 0o755)
  return { path, lines: () => (existsSync(out) ? readFileSync(out, 'utf8').trim().split('\n') : []) }
}

const ARRIVES: SiteEvents['migration arrives'] = { migration: 1, id: 'a-1', target: 'default', kind: 'main' }
const ends = (id: string, more: object = {}) =>
  ({
    ...{ migration: 1, id, target: 'default', seconds: 1.5, bytesBack: 0, bytesOut: 7, peer: 'x509:CN=ams' },
    ...{ outcome: 'completed', reason: 'taken over', endedBy: '', level: 'info' },
    ...more,
  }) as unknown as SiteEvents['migration ended']

t.test('a migration between two sites', async t => {
  const { path, lines } = program(
    'tells',
    // what it was given; tap hands processes of tests more
    'tr "\\n\\0" " \\n" < /proc/$$/environ | grep -v "^_TAPJS_\\|^NODE_OPTIONS=" | sort | tr "\\n" "|" >> "$OUT"; echo "$# $(pwd)" >> "$OUT"',
  )
  const events = new Events()
  await using pair = await Daemons.start({ events })
  // one process tells for both here
  const control = new Control({ control: undefined, hook: path }, new Site([pair.source], pair.destination), events)
  await control.start()
  const qemu = await pair.dial()
  qemu.write(MAIN)
  await until('its bytes', () => pair.target.received[0]?.length === MAIN.length)
  await until('both starts', () => lines().length === 2)
  qemu.resetAndDestroy()
  await until('both ends', () => pair.count('migration ended') === 2)
  await control.close()
  t.equal(lines().length, 4, 'the end waits for what runs')
  const runs = lines().map(line => {
    const fields = line.split('|')
    t.equal(fields.pop(), '0 /', 'no arguments, in /')
    t.match(fields, [/^PAGEFERRY_/], 'PATH comes last')
    return Object.fromEntries(fields.map(field => field.split(/=(.*)/s)))
  })
  t.same(
    new Set(runs.flatMap(run => Object.keys(run).filter(name => !name.startsWith('PAGEFERRY_')))),
    new Set(['PATH']),
  )
  const of = (event: string, direction: string) =>
    runs.find(run => run.PAGEFERRY_EVENT === event && run.PAGEFERRY_DIRECTION === direction)
  const { peer } = pair.source.status()
  t.match(of('start', 'out'), { PAGEFERRY_PEER: peer, PAGEFERRY_TARGET: 'default' })
  t.match(of('start', 'in'), { PAGEFERRY_PEER: /^plain/, PAGEFERRY_TARGET: 'default' })
  t.match(of('end', 'out'), {
    PAGEFERRY_PEER: peer,
    PAGEFERRY_BYTES: String(MAIN.length),
    PAGEFERRY_BYTES_WAN: /^\d+$/,
  })
  t.match(of('end', 'in'), { PAGEFERRY_OUTCOME: /./, PAGEFERRY_REASON: /./, PAGEFERRY_LEVEL: /^(warn|error)$/ })
  t.equal(new Set(runs.map(run => run.PAGEFERRY_MIGRATION)).size, 1, 'the same id everywhere')
})

t.test('text from outside stays one line of one variable, for a shell too', async t => {
  const { path, lines } = program('escapes', 'printf "%s\\n" "$PAGEFERRY_TARGET" "$PAGEFERRY_PEER" >> "$OUT"')
  const events = new Events()
  const hook = new Hook(path, events, () => undefined)
  const target = `$(touch ${folder}/owned)\n\x1b[2J\0; x\u202e`
  events.of('`id`'.padEnd(1000, 'x')).info('migration arrives', { ...ARRIVES, target })
  await hook.close()
  t.same(lines()[0], `$(touch ${folder}/owned)\\n\\u001b[2J\\u0000; x\\u202e`)
  t.equal(lines()[1]?.length, 300, 'and no longer than that')
  t.notOk(existsSync(`${folder}/owned`))
})

t.test('halfway', async t => {
  const { path, lines } = program(
    'half',
    'echo "$PAGEFERRY_EVENT $PAGEFERRY_SECONDS_LEAST $PAGEFERRY_BYTES_WAN_MOST" >> "$OUT"',
  )
  const events = new Events()
  const hook = new Hook(path, events, () => undefined)
  const range = [3.4, 9.6] as const
  const forecast = { atSeconds: 1, effort: 3, seconds: range, bytesIn: range, bytesWan: [1, 2000] as const }
  events.info('migration halfway', { migration: 1, id: 'a-1', ...forecast })
  await hook.close()
  t.same(lines(), ['half 3 2000'])
})

t.test('those of one migration in their order, a few at once, and no more than may wait', async t => {
  const { path, lines } = program(
    'many',
    'echo "+ $PAGEFERRY_MIGRATION $PAGEFERRY_EVENT" >> "$OUT"; sleep 0.05; echo "- $PAGEFERRY_MIGRATION" >> "$OUT"',
  )
  const events = new Events()
  const left: unknown[] = []
  events.subscribe(({ event, fields }) => event === 'hook left out' && left.push(fields))
  const hook = new Hook(path, events, () => undefined)
  const migrations = 12
  for (let i = 0; i < migrations; i++) {
    events.info('migration arrives', { ...ARRIVES, id: `a-${i}` })
    events.info('migration ended', ends(`a-${i}`))
  }
  await until('all of them', () => lines().filter(line => line.startsWith('-')).length === 2 * migrations)
  let running = 0
  let most = 0
  for (const line of lines()) {
    running += line.startsWith('+') ? 1 : -1
    most = Math.max(most, running)
  }
  t.ok(most > 1 && most <= HOOKS_RUNNING_MAX, `${most} at once`)
  for (let i = 0; i < migrations; i++) {
    const own = lines().filter(line => line.split(' ')[1] === `a-${i}`)
    t.same(own, [`+ a-${i} start`, `- a-${i}`, `+ a-${i} end`, `- a-${i}`])
  }
  t.same(left, [])
  await hook.close()
  // another one, of which none runs: the last of the others may have written its line and not yet be gone
  const crowded = new Hook(path, events, () => undefined)
  for (let i = 0; i <= HOOKS_WAITING_MAX; i++) events.info('migration arrives', { ...ARRIVES, id: `b-${i}` })
  await new Promise(setImmediate)
  t.same(left, [{ at: 'start', migration: `b-${HOOKS_WAITING_MAX}` }], 'the one too many is told')
  await crowded.close()
})

t.test('one that fails, and one that never ends', async t => {
  const events = new Events()
  const failed: SiteEvents['hook failed'][] = []
  events.subscribe(({ event, fields }) => event === 'hook failed' && failed.push(fields as SiteEvents['hook failed']))
  const bad = new Hook(program('fails', 'echo no such server >&2; exit 3').path, events, () => undefined)
  events.info('migration arrives', ARRIVES)
  await until('its failure', () => failed.length === 1)
  t.match(failed[0], { at: 'start', migration: 'a-1', error: 'status 3: no such server' })
  await bad.close()

  const { path, lines } = program('hangs', 'trap "" TERM; echo $$ >> "$OUT"; sleep 1000 & echo $! >> "$OUT"; wait')
  const slow = new Hook(path, events, () => undefined)
  events.info('migration arrives', ARRIVES)
  await until('it runs', () => lines().length === 2)
  await until('its end', () => failed.length === 2)
  t.match(failed[1], { error: 'killed: it ran for 10 s' })
  const lives = (pid: number): boolean => {
    try {
      return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
    } catch {
      return false
    }
  }
  await until('it and what it started are gone', () => lines().every(pid => !lives(Number(pid))))
  await slow.close()
})

t.test('one that is being replaced fails, and those that wait behind it do not', async t => {
  const { path, lines } = program('busy', 'echo "$PAGEFERRY_MIGRATION" >> "$OUT"')
  const events = new Events()
  const failed: SiteEvents['hook failed'][] = []
  events.subscribe(({ event, fields }) => event === 'hook failed' && failed.push(fields as SiteEvents['hook failed']))
  const asked: string[] = []
  const hook = new Hook(path, events, id => {
    asked.push(id)
    return undefined
  })
  const writing = openSync(path, 'r+')
  events.info('migration arrives', ARRIVES)
  await until('its failure', () => failed.length === 1)
  t.match(failed[0], { at: 'start', migration: 'a-1', error: /ETXTBSY/ })
  closeSync(writing)
  events.of('x509:CN=ams').info('migration arrives', { ...ARRIVES, id: 'a-2' })
  await until('the next', () => lines().length > 0)
  await hook.close()
  t.same(lines(), ['a-2'])
  t.equal(failed.length, 1, 'the process that runs it lives')
  t.same(asked, ['a-1'], 'whose peer is told is not looked for')
})

t.test('its process is started again', async t => {
  const { path, lines } = program('again', 'echo "$PAGEFERRY_MIGRATION" >> "$OUT"')
  const events = new Events()
  const told: string[] = []
  events.subscribe(({ event }) => told.push(event))
  const hook = new Hook(path, events, () => undefined)
  const childOf = () => (hook as unknown as { child: { pid: number; kill(signal: string): void } | undefined }).child
  const first = childOf()!
  first.kill('SIGKILL')
  await until('another one', () => childOf() !== undefined && childOf() !== first)
  t.ok(told.includes('hook failed'))
  events.info('migration arrives', ARRIVES)
  await hook.close()
  t.same(lines(), ['a-1'])
})

t.test('what cannot be run is no setting', t => {
  writeFileSync(join(folder, 'plain'), 'x', { mode: 0o644 })
  for (const name of ['none', 'plain', ''])
    t.throws(() => requireHook(join(folder, name)), { code: 'USAGE', what: /^hook / }, name || 'a folder')
  t.end()
})
