/**
 * Passes TAP 14 through, as `tap -R tap` writes it, and closes with the plain line `N passed, N failed[, N skipped]`, in
 * which N counts assertions. Exit status 1 when anything failed, tap bailed out or was cut off, or nothing ran.
 *
 *   tap -R tap ... | node scripts/tap-total.ts
 */
import { createInterface } from 'node:readline'

/** What a TAP stream says of its assertions: tap closes each level with `# { total: 7, pass: 5, todo: 1, skip: 1 }`. */
const SUMMARY = /^# \{ (.*) \}$/

let summary: Map<string, number> | undefined
let broken = false
let planned = false
for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${line}\n`)
  const found = SUMMARY.exec(line)
  if (found) {
    summary = new Map(
      found[1]!.split(', ').map(part => {
        const [name, count] = part.split(': ')
        return [name!, Number(count)]
      }),
    )
  } else if (/^1\.\.\d+/.test(line)) planned = true
  else if (/^not ok|^ *Bail out!/.test(line) && !/# (?:SKIP|TODO)/i.test(line)) broken = true
}

const count = (name: string): number => summary?.get(name) ?? 0
const passed = count('pass')
const skipped = count('skip') + count('todo')
// A run that ends without its plan or its summary was cut off: count that as the failure it is.
const cutOff = !planned || summary === undefined
const failed = Math.max(count('fail'), broken || cutOff ? 1 : 0)
if (cutOff) process.stdout.write('# the test run was cut off before its end\n')
else if (passed + failed === 0) process.stdout.write('# no test ran\n')
process.stdout.write(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0
