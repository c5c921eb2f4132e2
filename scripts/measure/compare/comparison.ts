/** A comparison from beginning to end: guests and templates prepared, every job run, results kept after each. */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, release, totalmem } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { formatSize } from '../../../src/quantity.ts'
import type { QemuVersion } from '../../harness/qemu/versions.ts'
import { LINK_PROFILES, parseLink } from '../../harness/wan/link.ts'
import { type OpenedWan, openWan } from '../../harness/wan/open.ts'
import { Manifest } from '../../lab/manifest.ts'
import { installTools } from '../../lab/tools.ts'
import { BUSYBOX, type ComparedGuest, convergeLimitMs, GUESTS, type PreparedGuest, prepareGuest } from './guests.ts'
import { PROGRAMS, whyNot } from './methods.ts'
import { estimateSeconds, type Job, jobKey } from './plan.ts'
import type { Method, Results, Run } from './results.ts'
import { runMigration } from './run.ts'
import { type TemplateSet, templateSet } from './templates.ts'

const root = fileURLToPath(new URL('../../..', import.meta.url))
const cache = join(root, '.cache/compare')

/** What to do. */
export interface ComparisonOptions {
  readonly jobs: readonly Job[]
  readonly qemu: QemuVersion
  /** File of the results; written anew after each run. */
  readonly out: string
  /** Keep what the file has already. */
  readonly resume: boolean
  /** From the start of this command; jobs that would end later are left out. */
  readonly limitMs: number
  /** What to type to get such a file again. */
  readonly command: string
  /** One line a step. */
  readonly report: (text: string) => void
  /** For tests: guests are hardly warmed up. */
  readonly fast?: boolean
}

type Draft = { -readonly [K in keyof Results]: Results[K] }

/** A guest of the comparison by its name. @throws Error */
export function guestNamed(name: string): ComparedGuest {
  const found = [...GUESTS, BUSYBOX].find(guest => guest.name === name)
  if (!found) throw new Error(`no guest is called '${name}'; there are ${GUESTS.map(guest => guest.name).join(', ')}`)
  return found
}

/** A link by its profile's name, or as it describes itself. */
export function linkNamed(name: string): string {
  return Object.hasOwn(LINK_PROFILES, name) ? LINK_PROFILES[name as keyof typeof LINK_PROFILES] : name
}

/** Carries out a comparison. @returns the results, which are in the file too */
export async function compare(options: ComparisonOptions): Promise<Results> {
  const startMs = performance.now()
  const { report, out, qemu } = options
  const accel = probedAccelerator()
  const results = startResults(options, accel)
  const save = () => {
    mkdirSync(dirname(out), { recursive: true })
    writeFileSync(`${out}.part`, `${JSON.stringify(results, null, 1)}\n`)
    renameSync(`${out}.part`, out)
  }
  const skip = (what: string, reason: string) => {
    if (results.skipped.some(skipped => skipped.what === what)) return
    results.skipped = [...results.skipped, { what, reason }]
    report(`left out: ${what}: ${reason}`)
  }
  // of methods that are not asked for this time what was found out still holds
  const asked = methodsOf(options.jobs).map(method => `method ${method}`)
  results.skipped = results.skipped.filter(({ what }) => what.startsWith('method ') && !asked.includes(what))

  const kept = new Set(results.runs.map(jobKey))
  const packages = methodsOf(options.jobs)
    .flatMap(method => PROGRAMS[method] ?? [])
    .filter((tool): tool is readonly [string, string] => tool[1] !== undefined)
  try {
    installTools(packages, report)
  } catch {
    // whyNot() tells of each
  }
  const methods = new Map(methodsOf(options.jobs).map(method => [method, whyNot(method)]))
  for (const [method, reason] of methods) if (reason !== undefined) skip(`method ${method}`, reason)
  const wanted = options.jobs.filter(job => methods.get(job.method) === undefined && !kept.has(jobKey(job)))

  const names = [...new Set(wanted.map(({ guest }) => guest))]
  const guests = new Map<string, { prepared: PreparedGuest; templates: TemplateSet | undefined }>()
  const sets = new Map<string, Promise<TemplateSet>>()
  for (const { templates } of names.map(guestNamed)) {
    const key = templates.join()
    if (templates.length > 0 && !sets.has(key)) sets.set(key, templateSet(templates, join(cache, 'templates')))
    await sets.get(key)
  }
  const [first] = sets.values()
  if (first) {
    const { from, pages, bytes } = await first
    results.templates = { from, pages, bytes }
  }
  const queue = [...names]
  // a core each
  await Promise.all(
    Array.from({ length: Math.min(2, cpus().length) }, async () => {
      for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
        const guest = guestNamed(name)
        try {
          const prepared = await prepareGuest(guest, qemu, accel, join(cache, 'guests'), report)
          guests.set(name, { prepared, templates: await sets.get(guest.templates.join()) })
        } catch (error) {
          skip(`guest ${name}`, (error as Error).message)
        }
      }
    }),
  )
  for (const name of names.filter(name => guests.has(name))) {
    const { workload, memoryMb, templates } = guestNamed(name)
    const description = { name, workload, memoryBytes: memoryMb * 2 ** 20, templates }
    results.guests = [...results.guests.filter(guest => guest.name !== name), description]
  }

  const todo = wanted.filter(job => guests.has(job.guest))
  const secondsOf = (job: Job) =>
    estimateSeconds(job, results.runs, guestNamed(job.guest), linkNamed(job.profile)) * (options.fast ? 0.4 : 1)
  const secondsLeft = (from: number) => todo.slice(from).reduce((sum, job) => sum + secondsOf(job), 0)
  const limitSeconds = (options.limitMs - (performance.now() - startMs)) / 1000
  report(
    `${todo.length} migrations, about ${minutes(secondsLeft(0))}` +
      (secondsLeft(0) > limitSeconds ? `, of which as many as ${minutes(limitSeconds)} hold` : ''),
  )
  save()

  let open: { readonly profile: string; readonly wan: OpenedWan } | undefined
  try {
    for (const [i, job] of todo.entries()) {
      if (performance.now() - startMs + secondsOf(job) * 1000 > options.limitMs) {
        skip(`${job.method} of ${job.guest} over ${job.profile}, round ${job.round}`, 'the time was over')
        continue
      }
      if (open?.profile !== job.profile) {
        await open?.wan[Symbol.asyncDispose]()
        open = undefined
        open = { profile: job.profile, wan: await openWan(linkNamed(job.profile)) }
        await describe(results, job.profile, open.wan, report)
      }
      const { prepared, templates } = guests.get(job.guest)!
      const limitMs = convergeLimitMs(linkNamed(job.profile))
      const { run, log } = await runMigration(prepared, job.method, open.wan, templates, limitMs, options.fast)
      results.runs = [...results.runs, { ...job, ...run }]
      save()
      if (run.outcome === 'failed') keepLog(job, run.reason, log)
      const left = Math.min(secondsLeft(i + 1), (options.limitMs - (performance.now() - startMs)) / 1000)
      report(`${`${i + 1}`.padStart(3)}/${todo.length}, ${minutes(left)} left  ${line(job, run)}`)
    }
  } finally {
    await open?.wan[Symbol.asyncDispose]()
    save()
  }
  return results
}

const methodsOf = (jobs: readonly Job[]): Method[] => [...new Set(jobs.map(({ method }) => method))]

function startResults({ resume, out, command, qemu }: ComparisonOptions, accelerator: string): Draft {
  if (existsSync(out)) {
    const old = JSON.parse(readFileSync(out, 'utf8')) as Results
    // a failure may be the machine's: it gets another try
    if (resume) return { ...old, runs: old.runs.filter(({ outcome }) => outcome !== 'failed') }
    renameSync(out, `${out}.old`)
  }
  const [cpu] = cpus()
  return {
    format: 1,
    startedAt: new Date().toISOString(),
    commit: ask('git', '-C', root, 'describe', '--always', '--dirty'),
    command,
    machine: {
      cpu: cpu?.model ?? 'unknown',
      cores: cpus().length,
      memoryBytes: totalmem(),
      kernel: release(),
      accelerator,
      loadAverage: Math.round(loadavg()[0]! * 100) / 100,
    },
    versions: {
      qemu: qemu.version,
      node: process.versions.node,
      zstd: /v(\d[\d.]+)/.exec(ask('zstd', '--version'))?.[1] ?? 'none',
      pageferry: (JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }).version,
    },
    profiles: [],
    guests: [],
    templates: { from: [], pages: 0, bytes: 0 },
    skipped: [],
    runs: [],
  }
}

function ask(program: string, ...args: string[]): string {
  try {
    return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
  } catch {
    return 'unknown'
  }
}

/** What the lab found out by booting; TCG runs everywhere. */
function probedAccelerator(): 'kvm' | 'tcg' {
  const folder = join(root, '.cache/lab/streams')
  const entries = existsSync(folder) ? new Manifest(folder).list() : []
  return entries.length > 0 && entries.every(({ accel }) => accel === 'kvm') ? 'kvm' : 'tcg'
}

/** Notes what a link really delivers, before the first run over it. */
async function describe(results: Draft, name: string, wan: OpenedWan, report: (text: string) => void): Promise<void> {
  if (results.profiles.some(profile => profile.name === name)) return
  // On a machine that is busy with something else the first answer may be about that.
  const wanted = parseLink(linkNamed(name)).bitsPerSecond
  let measured = await wan.measure()
  for (let i = 0; i < 2 && measured.bitsPerSecond < 0.8 * wanted; i++) {
    const again = await wan.measure()
    if (again.bitsPerSecond > measured.bitsPerSecond) measured = again
  }
  results.profiles = [...results.profiles, { name, link: linkNamed(name), kind: wan.linkKind, measured }]
  const { bitsPerSecond, roundTripMs } = measured
  report(`${name}: ${wan.kind}; ${(bitsPerSecond / 1e6).toFixed(0)} Mbit/s, ${roundTripMs.toFixed(1)} ms`)
}

function keepLog(job: Job, reason: string | undefined, log: string): void {
  const folder = join(cache, 'logs')
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, `${jobKey(job).replaceAll(' ', '_')}.log`), `${reason}\n${log}\n`)
}

export function minutes(seconds: number): string {
  return seconds < 90 ? `${Math.max(0, seconds).toFixed(0)} s` : `${(seconds / 60).toFixed(0)} min`
}

function line(job: Job, run: Omit<Run, keyof Job>): string {
  const where = `${job.profile} ${job.guest} ${job.method} #${job.round}`
  const bytes = formatSize(run.wanBytes.forward + run.wanBytes.back)
  if (run.outcome !== 'completed') return `${where}: ${run.outcome} (${run.reason}), ${bytes}`
  return `${where}: ${(run.totalMs / 1000).toFixed(1)} s, ${bytes}, ${run.downtimeMs} ms down, ${run.passes} passes`
}
