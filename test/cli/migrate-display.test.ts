/** What `pageferry migrate` shows: a line that changes on a terminal, lines elsewhere, JSON. */
import t, { type Test } from 'tap'
import { MigrateDisplay, progressText } from '../../src/cli/migrate-display.ts'
import type { Told } from '../../src/qmp/migration-course.ts'
import { readMigrationInfo } from '../../src/qmp/migration-info.ts'

const info = (status: string, pass: number, share: number) =>
  readMigrationInfo({
    status,
    ram: { total: 1e9, remaining: 1e9 * (1 - share), 'dirty-sync-count': pass, mbps: 800, 'dirty-pages-rate': 1000 },
  })
const progress = (seconds: number, status: string, pass: number, share: number): Told => ({
  event: 'progress',
  seconds,
  info: info(status, pass, share),
})
const NOTE: Told = { event: 'note', text: 'so \x1b[31m\nit is' }

function shown(t: Test, options: { json?: boolean; columns?: number }, told: readonly Told[]): string {
  const out = t.capture(process.stdout, 'write', () => true)
  const err = t.capture(process.stderr, 'write', () => true)
  const display = new MigrateDisplay({ json: false, columns: undefined, bytesWan: () => 5e6, ...options })
  for (const one of told) display.told(one)
  display.ended({ result: 'completed', began: true, left: [] }, 5e6)
  const texts = [...out(), ...err()].map(({ args }) => String(args[0]))
  out.restore()
  err.restore()
  return texts.join('')
}

t.test('lines: each tenth, each pass, every ten seconds, and none in between', t => {
  const told = [
    progress(0, 'setup', 0, 0),
    ...Array.from({ length: 200 }, (_, i) => progress(1 + i / 100, 'active', 1, 0.01)),
    ...Array.from({ length: 100 }, (_, i) => progress(4 + i / 4, 'active', 1, 0.011)),
    progress(40, 'active', 1, 0.19),
    progress(40.1, 'active', 1, 0.29),
    progress(40.2, 'active', 2, 0.29),
  ]
  const lines = shown(t, {}, told).split('\n')
  t.same(
    lines.filter(line => / s[,:]/.test(line)).map(line => line.replace(/: .*/, '')),
    ['0.0 s', '1.0 s, pass 1', '11.0 s, pass 1', '21.0 s, pass 1', '40.0 s, pass 1', '40.2 s, pass 2'],
  )
  t.end()
})

t.test('on a terminal one line, which is no longer than that is', t => {
  const text = shown(t, { columns: 40 }, [progress(1, 'active', 1, 0.5), progress(2, 'active', 1, 0.6), NOTE])
  const [first, second, rest] = text.slice(text.indexOf('\r')).split('\r\x1b[K').slice(1)
  t.equal(first, '1.0 s, pass 1: 50 %, 500.0 MB of 1.0 GB')
  t.equal(second, '2.0 s, pass 1: 60 %, 400.0 MB of 1.0 GB')
  t.match(rest, /^so \\u001b\[31m\\nit is\n/, 'what is said stands by itself, escaped')
  t.end()
})

t.test('JSON: an object a line, a second apart', t => {
  const told = Array.from({ length: 30 }, (_, i) => progress(i / 10, 'active', 1, 0.1 + i / 100))
  const lines = shown(t, { json: true }, [NOTE, ...told])
    .trim()
    .split('\n')
  const all = lines.map(line => JSON.parse(line) as Record<string, unknown>)
  t.same(
    all.map(({ event, seconds }) => [event, seconds]),
    [
      ['note', undefined],
      ['progress', 0],
      ['progress', 1],
      ['progress', 2],
      ['ended', undefined],
    ],
  )
  t.match(all[1], { status: 'active', pass: 1, remainingBytes: 9e8, totalBytes: 1e9, bytesWan: 5e6 })
  t.match(all.at(-1), { result: 'completed', bytesWan: 5e6 })
  t.end()
})

t.test('the last line of progress has no bytes on the WAN of before', t => {
  const told = [progress(1, 'active', 1, 0.5), progress(3, 'completed', 1, 1)]
  const lines = shown(t, {}, told).split('\n')
  t.match(
    lines.find(line => line.startsWith('1.0 s')),
    /5\.0 MB on the WAN$/,
  )
  const last = lines.find(line => line.startsWith('3.0 s'))
  t.match(last, /completed, 100 %/)
  t.notMatch(last, /WAN/)
  const all = shown(t, { json: true }, told)
    .trim()
    .split('\n')
    .map(line => JSON.parse(line) as Record<string, unknown>)
  t.same(
    all.map(({ status, bytesWan }) => [status, bytesWan]),
    [
      ['active', 5e6],
      ['completed', undefined],
      [undefined, 5e6],
    ],
  )
  t.end()
})

t.test('what a line says', t => {
  t.equal(
    progressText(75, info('active', 2, 0.5), 5e6),
    '1 min 15 s, pass 2: 50 %, 500.0 MB of 1.0 GB left, 800.0 Mbit/s from QEMU, the guest writes 4.1 MB/s, 5.0 MB on the WAN',
  )
  t.equal(progressText(1, readMigrationInfo({ status: 'setup' }), undefined), '1.0 s: setup')
  t.end()
})
