/** How a run of the tests ends: what failed, then the totals. Fed with what `tap -R tap` printed of runs that fail. */
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('../../', import.meta.url))
const recorded = (name: string): string => readFileSync(`${root}test/vectors/tap/${name}.tap`, 'utf8')
const FAILING = recorded('failing')

/** What it prints of a run, and its exit status. */
function total(input: string, ...args: string[]): { lines: string[]; status: number | null } {
  const { stdout, status } = spawnSync(process.execPath, ['scripts/tap-total.ts', ...args], {
    ...{ cwd: root, input, encoding: 'utf8' },
  })
  return { lines: stdout.trimEnd().split('\n'), status }
}

const AT_THE_END = `
not ok - test/relay/relay.test.ts > a relay > an address > one is two
    at: test/relay/relay.test.ts:5:7
      -2
      +1
not ok - test/relay/relay.test.ts > a relay > an address > fields
    at: test/relay/relay.test.ts:7:7
       Object {
      -  "a": 2,
      +  "a": 1,
       }
not ok - test/relay/relay.test.ts > a relay > a listener > it broke
    at: test/relay/relay.test.ts:12:11
    tapCaught: returnedPromiseRejection
not ok - test/relay/relay.test.ts > unfinished > test unfinished
    at: test/relay/relay.test.ts:15:3
not ok - test/link/link.test.ts
    exitCode: null
    signal: SIGKILL
22 passed, 5 failed, 2 skipped`
  .trim()
  .split('\n')

t.test('what failed stands at the end, each once, where it failed; what is skipped or to be done does not', async t => {
  for (const args of [['--brief'], []]) {
    const { lines, status } = total(FAILING, ...args)
    t.same(lines.slice(-AT_THE_END.length), AT_THE_END, args.join(' '))
    t.equal(status, 1)
  }
})

t.test('nothing of it where all passed', async t => {
  const passing = 'TAP version 14\nok 1 - test/a.test.ts # time=1ms\n1..1\n# { total: 3, pass: 3 }\n'
  t.same(total(passing, '--brief'), { lines: ['ok     test/a.test.ts  0.0 s', '3 passed, 0 failed'], status: 0 })
})

t.test('a run that bailed out, which is said at every depth', async t => {
  const { lines, status } = total(recorded('bail-out'), '--brief')
  t.same(lines.slice(-2), ['not ok - test/file/disk.test.ts > a disk > Bail out! no space', '1 passed, 1 failed'])
  t.equal(status, 1)
})

t.test('cut off: it is said, with what was under way, and what had failed', async t => {
  const whole = FAILING.split('\n')
  const at = whole.findIndex(line => / not ok 3 - fields/.test(line))
  const { lines, status } = total(whole.slice(0, at).join('\n'), '--brief')
  t.same(lines.slice(-6), [
    ...AT_THE_END.slice(0, 4),
    '# a test run ended before its end, within test/relay/relay.test.ts > a relay > an address',
    '0 passed, 1 failed',
  ])
  t.equal(status, 1)
})

t.test('the check of types says what was wrong before it says that something was', async t => {
  const check = [
    'TAP version 14',
    ...Array.from({ length: 9 }, (_, i) => `# src/a.ts(${i}): error`),
    'not ok 1 - types, lint, layers: npm run check',
    '1..1',
    '# { total: 1, pass: 0, fail: 1 }',
  ].join('\n')
  t.same(total(`${check}\n`).lines.slice(-8), [
    'not ok - types, lint, layers: npm run check',
    ...Array.from({ length: 6 }, (_, i) => `    src/a.ts(${i + 3}): error`),
    '0 passed, 1 failed',
  ])
})

t.test('many failures, and long ones', async t => {
  const failure = (n: number): string => {
    const diff = Array.from({ length: 50 }, (_, i) => `        -${i} ${'x'.repeat(300)}\n`).join('')
    return `    not ok ${n} - one\n      ---\n      diff: |\n${diff}      ...\n`
  }
  const file = `# Subtest: test/a.test.ts\n${Array.from({ length: 40 }, (_, i) => failure(i + 1)).join('')}    1..40\n`
  const { lines } = total(
    `TAP version 14\n${file}not ok 1 - test/a.test.ts\n1..1\n# { total: 40, pass: 0, fail: 40 }\n`,
  )
  const from = lines.lastIndexOf('# { total: 40, pass: 0, fail: 40 }')
  const list = lines.slice(from + 1)
  t.equal(list.length, 12 * (1 + 6) + 2)
  t.same(list.slice(-2), ['... and 28 more', '0 passed, 40 failed'])
  t.ok(list.every(line => line.length <= 200))
})
