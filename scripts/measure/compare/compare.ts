/**
 * `make bench-migrate`: the same running guests migrated by every method, over every link, in one run. docs/lab.md
 *
 *   node scripts/measure/compare/compare.ts [options]
 */
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { qemu10 } from '../../harness/qemu/versions.ts'
import { parseLink } from '../../harness/wan/link.ts'
import { compare, prepare } from './comparison.ts'
import { GUESTS, guestNamed } from './guests.ts'
import { ALL_LINKS, ALL_METHODS, defaultPlan, type Matrix, planJobs } from './plan.ts'
import type { Method, Results } from './results.ts'
import { resultTables } from './table.ts'

const file = fileURLToPath(new URL('../../../.cache/compare/results.json', import.meta.url))
const usage = `usage: compare.ts [options]

Migrates the lab's guests by every method, over every link, and keeps what it measured. As root, after \`make lab\`.

  --guests A,B      of ${GUESTS.map(({ name }) => name).join(', ')}
  --profiles A,B    of ${ALL_LINKS.join(', ')}, or one description such as 100Mbit,40ms
  --methods A,B     of ${ALL_METHODS.join(', ')}
  --rounds N        how often each, where time is left (3)
  --full            all of all, as often as --rounds says: hours
  --prepare         boot and keep the guests, make the template sets, and stop: what is there is not made again
  --time-limit-minutes N   from when all is prepared: start nothing that would end later; 0: no limit (30; 0 with --full)
  --out FILE        where the results go (.cache/compare/results.json)
  --resume          keep what FILE has, and go on
  --table           print the tables of FILE and stop
  --json            print the results instead of tables
  --help            print this

Without --guests, --profiles and --methods, in this order: what the marks ask for of seven guests over wan, all links, a
guest with its disk, all peers, what is said of migrations beforehand, then second rounds and hard cases.
`

function list(text: string | undefined, known: readonly string[]): string[] | undefined {
  const names = text?.split(',').filter(Boolean)
  for (const name of names ?? []) {
    if (!known.includes(name)) throw new Error(`'${name}' is not one of ${known.join(', ')}`)
  }
  return names
}

function numberOf(text: string, option: string, least: number): number {
  const value = Number(text)
  if (!(value >= least)) throw new Error(`${option} takes a number, ${least} or more, not '${text}'`)
  return value
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      guests: { type: 'string' },
      profiles: { type: 'string' },
      methods: { type: 'string' },
      rounds: { type: 'string', default: '3' },
      full: { type: 'boolean', default: false },
      'time-limit-minutes': { type: 'string' },
      out: { type: 'string', default: file },
      prepare: { type: 'boolean', default: false },
      resume: { type: 'boolean', default: false },
      table: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    console.log(usage.trimEnd())
    return 0
  }
  const show = (results: Results) =>
    console.log(values.json ? JSON.stringify(results, null, 1) : `\n${resultTables(results)}`)
  if (values.table) {
    if (!existsSync(values.out)) throw new Error(`there is no ${values.out}`)
    show(JSON.parse(readFileSync(values.out, 'utf8')) as Results)
    return 0
  }
  const rounds = Math.round(numberOf(values.rounds, '--rounds', 1))
  const profiles = profilesOf(values.profiles)
  const methods = list(values.methods, ALL_METHODS) as Method[] | undefined
  const guests = values.guests?.split(',').map(name => guestNamed(name).name)
  const chosen = values.full || guests || profiles || methods
  const matrix: Matrix = {
    guests: guests ?? (values.full ? GUESTS.map(({ name }) => name) : ['nginx-k2', 'postgres', 'python']),
    profiles: profiles ?? (values.full ? ALL_LINKS : ['wan']),
    methods: methods ?? ALL_METHODS,
    rounds,
  }
  const steps = chosen ? planJobs(matrix) : defaultPlan(rounds)
  const limit = numberOf(values['time-limit-minutes'] ?? (values.full ? '0' : '30'), '--time-limit-minutes', 0)
  const { qemu, skip } = await qemu10()
  if (!qemu) throw new Error(`running guests need QEMU 10: ${skip}`)
  const started = performance.now()
  const report = (text: string): void => {
    const seconds = Math.round((performance.now() - started) / 1000)
    const clock = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`
    console.error(`${clock.padStart(6)}  ${text}`)
  }
  if (values.prepare) {
    const { missing } = await prepare(steps, qemu, report)
    for (const { what, reason } of missing) report(`${what}: ${reason}`)
    report('prepared')
    return missing.some(({ what }) => what.startsWith('guest ')) ? 1 : 0
  }
  const results = await compare({
    steps,
    qemu,
    out: values.out,
    resume: values.resume,
    limitMs: limit === 0 ? Infinity : limit * 60_000,
    command: ['make lab &&', 'node scripts/measure/compare/compare.ts', ...process.argv.slice(2)].join(' '),
    report,
  })
  show(results)
  return results.runs.length === 0 ? 1 : 0
}

/** Names of profiles, or one link as it describes itself, which has commas of its own. */
function profilesOf(text: string | undefined): string[] | undefined {
  const names = text?.split(',')
  if (!names || names.every(name => ALL_LINKS.includes(name))) return names
  parseLink(text!)
  return [text!]
}

try {
  process.exitCode = await main()
} catch (error) {
  console.error(`error: ${(error as Error).message}`)
  process.exitCode = 1
}
