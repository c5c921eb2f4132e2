/**
 * Reads TAP 14 as `tap -R tap` writes it, one run or several behind one another, and closes with what failed, shortly
 * (tap-failures.ts), and the plain line `N passed, N failed[, N skipped]`, in which N counts assertions. Exit status 1 when
 * anything failed, a run bailed out or was cut off, or nothing ran.
 *
 *   { tap -R tap ...; tap -R tap ...; } | node scripts/tap-total.ts --runs 2 [--brief]
 *
 * --brief shows a line a file, and of files that fail what failed, instead of everything.
 */
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { TapFailures } from './tap-failures.ts'

const { values } = parseArgs({ options: { runs: { type: 'string', default: '1' }, brief: { type: 'boolean' } } })
const runs = Number(values.runs)

const totals = new Map<string, number>()
let summaries = 0
let plans = 0
let broken = 0
const failures = new TapFailures()
/** Lines of the file that is being read, for --brief. */
let held: string[] = []

for await (const line of createInterface({ input: process.stdin })) {
  // each run closes with its totals at the margin; those of subtests are indented
  const summary = /^# \{ (.*) \}$/.exec(line)
  if (summary) {
    summaries++
    for (const part of summary[1]!.split(', ')) {
      const [name, count] = part.split(': ') as [string, string]
      totals.set(name, (totals.get(name) ?? 0) + Number(count))
    }
  } else if (/^1\.\.\d/.test(line)) plans++
  else if (/^not ok/.test(line) && !/ # (?:skip|todo)/i.test(line)) broken++
  else if (/^ *Bail out!/.test(line)) broken++
  failures.take(line)
  if (values.brief) showBriefly(line)
  else process.stdout.write(`${line}\n`)
}
for (const line of held) if (!/^# /.test(line)) process.stdout.write(`${line}\n`)

const passed = totals.get('pass') ?? 0
const skipped = (totals.get('skip') ?? 0) + (totals.get('todo') ?? 0)
// A run without its plan and totals was cut off: that is the failure it looks like.
const cutOff = Math.max(runs - summaries, runs - plans, 0)
const failed = Math.max(totals.get('fail') ?? 0, broken > 0 ? 1 : 0) + cutOff
for (const line of failures.lines()) process.stdout.write(`${line}\n`)
const within = failures.unfinished && `, within ${failures.unfinished}`
if (cutOff > 0) process.stdout.write(`# a test run ended before its end${within}\n`)
else if (passed + failed === 0) process.stdout.write('# no test ran\n')
process.stdout.write(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0

/** A file's subtests come before the line that sums it up. */
function showBriefly(line: string): void {
  const result = /^(not )?ok \d+ - (.*?)(?: # time=([\d.]+)ms)?(?: \{)?$/.exec(line)
  if (!result) {
    if (!/^(?:TAP version|1\.\.|# (?:time|\{|No coverage))/.test(line)) held.push(line)
    return
  }
  const [, not, name, milliseconds] = result
  const seconds = milliseconds === undefined ? '' : `  ${(Number(milliseconds) / 1000).toFixed(1)} s`
  for (const skip of held) {
    const found = /^ +ok \d+ - (.*) # SKIP(.*)$/i.exec(skip)
    if (found) process.stdout.write(`     skipped: ${found[1]}${found[2] ? `:${found[2]}` : ''}\n`)
  }
  process.stdout.write(`${not ? 'not ok' : 'ok    '} ${name}${seconds}\n`)
  if (not) for (const detail of details(held)) process.stdout.write(`${detail}\n`)
  held = []
}

/** Failed lines with what is said of each, down to the assertions. */
function details(lines: readonly string[]): string[] {
  const shown: string[] = []
  let inside = false
  for (const line of lines) {
    if (/^ *(?:not ok|Bail out!)/.test(line)) inside = !/ # (?:skip|todo)/i.test(line)
    else if (/^ *(?:ok \d|1\.\.|\}$|# )/.test(line)) inside = false
    if (inside || /^\S/.test(line)) shown.push(line)
  }
  return shown
}
