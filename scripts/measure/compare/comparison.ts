/** A comparison from beginning to end: guests and templates prepared, every job run, results kept after each. */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, release, totalmem } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Estimate } from '../../../src/cli/codec-command.ts'
import { formatSize } from '../../../src/quantity.ts'
import { pageferry } from '../../harness/proxies.ts'
import type { QemuVersion } from '../../harness/qemu/versions.ts'
import { LINK_PROFILES, parseLink } from '../../harness/wan/link.ts'
import { type OpenedWan, openWan } from '../../harness/wan/open.ts'
import { Manifest } from '../../lab/manifest.ts'
import { installTools } from '../../lab/tools.ts'
import { moveWithDisk } from './disk-move.ts'
import { convergeLimitMs, guestNamed, type PreparedGuest, prepareGuest } from './guests.ts'
import { PROGRAMS, whyNot } from './methods.ts'
import { type EstimateJob, estimateSeconds, type Job, keysOf, type Step, stepKey, stepText } from './plan.ts'
import type { DiskRun, Method, Results, Run, Told } from './results.ts'
import { runMigration } from './run.ts'
import { IMAGE_ALONE, type Knowledge, knowledgeOf, type TemplateSet, TemplateSets } from './templates.ts'

const root = fileURLToPath(new URL('../../..', import.meta.url))
const cache = join(root, '.cache/compare')

/** What to do. */
export interface ComparisonOptions {
  readonly steps: readonly Step[]
  readonly qemu: QemuVersion
  /** File of the results; written anew after each step. */
  readonly out: string
  /** Keep what the file has already. */
  readonly resume: boolean
  /** From when all is prepared; steps that would end later are left out. */
  readonly limitMs: number
  /** What to type to get such a file again. */
  readonly command: string
  /** One line a step. */
  readonly report: (text: string) => void
  /** For tests: guests are hardly warmed up. */
  readonly fast?: boolean
}

type Draft = { -readonly [K in keyof Results]: Results[K] }

/** A link by its profile's name, or as it describes itself. */
export function linkNamed(name: string): string {
  return Object.hasOwn(LINK_PROFILES, name) ? LINK_PROFILES[name as keyof typeof LINK_PROFILES] : name
}

/** Guests and sets that steps need, and what cannot be had. */
export interface Prepared {
  readonly guests: ReadonlyMap<string, PreparedGuest>
  /** @returns what is known when this guest is migrated by this method; undefined: nothing, as no set is made for it */
  readonly sets: (guest: string, method: Method | 'disk') => TemplateSet | undefined
  readonly missing: readonly { readonly what: string; readonly reason: string }[]
  /** Why a step cannot be made; undefined where it can. */
  readonly whyNot: (step: Step) => string | undefined
}

/** Boots and keeps the guests that are not there yet, two at a time, and makes the sets: minutes each. */
export async function prepare(
  steps: readonly Step[],
  qemu: QemuVersion,
  report: (text: string) => void,
): Promise<Prepared> {
  const packages = methodsOf(steps)
    .flatMap(method => PROGRAMS[method] ?? [])
    .filter((tool): tool is readonly [string, string] => tool[1] !== undefined)
  try {
    installTools(packages, report)
  } catch {
    // whyNot() tells of each
  }
  const missing: { what: string; reason: string }[] = []
  const absent = new Map<Method, string>()
  for (const method of methodsOf(steps)) {
    const reason = whyNot(method)
    if (reason === undefined) continue
    absent.set(method, reason)
    missing.push({ what: `method ${method}`, reason })
  }
  const sets = await setsOf(steps, report)
  const guests = new Map<string, PreparedGuest>()
  const accel = probedAccelerator()
  const queue = [...new Set(steps.map(({ guest }) => guest))]
  // a core each
  await Promise.all(
    Array.from({ length: Math.min(2, cpus().length) }, async () => {
      for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
        try {
          guests.set(name, await prepareGuest(guestNamed(name), qemu, accel, join(cache, 'guests'), report))
        } catch (error) {
          missing.push({ what: `guest ${name}`, reason: (error as Error).message })
        }
      }
    }),
  )
  return {
    guests,
    missing,
    sets: (guest, method) => sets.get(knowledgeKey(guest, method) ?? ''),
    whyNot: step => {
      if (!guests.has(step.guest)) return `guest ${step.guest} is missing`
      const method = 'method' in step ? step.method : undefined
      if (method === undefined) return undefined
      if (absent.has(method)) return absent.get(method)
      return knowledgeKey(step.guest, method) === undefined ? 'the lab has no other guest of its kernel' : undefined
    },
  }
}

/** By `knowledgeKey`. */
async function setsOf(
  steps: readonly Step[],
  report: (text: string) => void,
): Promise<Map<string, TemplateSet | undefined>> {
  const maker = new TemplateSets(join(cache, 'templates'), report)
  const sets = new Map<string, TemplateSet | undefined>()
  for (const step of steps) {
    const method = 'method' in step ? step.method : 'estimate' in step ? step.estimate : 'disk'
    const key = knowledgeKey(step.guest, method)
    if (key === undefined || sets.has(key)) continue
    sets.set(key, await maker.store(knowledgeFor(step.guest, method)!))
  }
  return sets
}

function knowledgeFor(guest: string, method: Method | 'disk'): Knowledge | undefined {
  return method === 'disk' ? IMAGE_ALONE : knowledgeOf(guestNamed(guest), method)
}

function knowledgeKey(guest: string, method: Method | 'disk'): string | undefined {
  const knowledge = knowledgeFor(guest, method)
  return knowledge && JSON.stringify(knowledge)
}

/** Carries out a comparison. @returns the results, which are in the file too */
export async function compare(options: ComparisonOptions): Promise<Results> {
  const { report, out, qemu, steps } = options
  const prepared = await prepare(steps, qemu, report)
  const startMs = performance.now()
  const results = startResults(options, probedAccelerator())
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
  const asked = methodsOf(steps).map(method => `method ${method}`)
  results.skipped = results.skipped.filter(({ what }) => what.startsWith('method ') && !asked.includes(what))
  for (const { what, reason } of prepared.missing) skip(what, reason)

  const kept = keysOf(results)
  const todo: Step[] = []
  for (const step of steps) {
    if (kept.has(stepKey(step))) continue
    const reason = prepared.whyNot(step)
    if (reason === undefined) todo.push(step)
    else if ('method' in step && prepared.guests.has(step.guest) && !reason.startsWith('no program'))
      skip(`${step.method} of ${step.guest}`, reason)
  }
  describeGuests(results, todo, prepared)

  const secondsOf = (step: Step) =>
    estimateSeconds(step, results, guestNamed(step.guest), linkNamed(step.profile)) * (options.fast ? 0.4 : 1)
  const secondsLeft = (from: number) => todo.slice(from).reduce((sum, step) => sum + secondsOf(step), 0)
  const limitSeconds = (options.limitMs - (performance.now() - startMs)) / 1000
  report(
    `${todo.length} steps, about ${minutes(secondsLeft(0))}` +
      (secondsLeft(0) > limitSeconds ? `, of which as many as ${minutes(limitSeconds)} hold` : ''),
  )
  save()

  let open: { readonly profile: string; readonly wan: OpenedWan } | undefined
  try {
    for (const [i, step] of todo.entries()) {
      if (performance.now() - startMs + secondsOf(step) * 1000 > options.limitMs) {
        skip(stepText(step), 'the time was over')
        continue
      }
      if (open?.profile !== step.profile) {
        await open?.wan[Symbol.asyncDispose]()
        open = undefined
        open = { profile: step.profile, wan: await openWan(linkNamed(step.profile)) }
        await describe(results, step.profile, open.wan, report)
      }
      const said = await take(step, open.wan, prepared, results, options.fast ?? false)
      save()
      const left = Math.min(secondsLeft(i + 1), (options.limitMs - (performance.now() - startMs)) / 1000)
      report(`${`${i + 1}`.padStart(3)}/${todo.length}, ${minutes(left)} left  ${said}`)
    }
  } finally {
    await open?.wan[Symbol.asyncDispose]()
    save()
  }
  return results
}

/** Makes one step and adds what came out. @returns a line about it */
async function take(step: Step, wan: OpenedWan, prepared: Prepared, results: Draft, fast: boolean): Promise<string> {
  const guest = prepared.guests.get(step.guest)!
  if ('disk' in step) {
    const run = { ...step, ...(await moveWithDisk(guest, step.disk, wan, prepared.sets(step.guest, 'disk'))) }
    results.disks = [...(results.disks ?? []), run]
    return diskLine(run)
  }
  if ('estimate' in step) {
    const told = await estimateOf(step, guest, prepared.sets(step.guest, step.estimate))
    if (told) results.estimates = [...(results.estimates ?? []), told]
    const least = Math.min(...(told?.efforts ?? []).map(({ seconds }) => seconds))
    return `${stepText(step)}: ${told ? `${least.toFixed(1)} s` : 'nothing'}`
  }
  // a test asks whether it ends, on a machine that may be very busy
  const limitMs = convergeLimitMs(linkNamed(step.profile)) * (fast ? 8 : 1)
  const sets = prepared.sets(step.guest, step.method)
  const { run, log } = await runMigration(guest, step.method, wan, sets, limitMs, fast)
  results.runs = [...results.runs, { ...step, ...run }]
  if (run.outcome === 'failed') keepLog(step, run.reason, log)
  return line(step, run)
}

/** What `pageferry estimate` says of the guest as it is kept, over this link. */
async function estimateOf(
  { guest, profile, estimate: method }: EstimateJob,
  { state }: PreparedGuest,
  sets: TemplateSet | undefined,
): Promise<Told | undefined> {
  if (state === undefined) return undefined
  const rate = `${parseLink(linkNamed(profile)).bitsPerSecond / 1e6}Mbit`
  const store = sets ? ['--store', sets.store] : []
  const [said] = JSON.parse(await pageferry('estimate', '--json', '--rate', rate, ...store, state)) as Estimate[]
  const { qemuBytes: bytesIn, forecast: efforts = [], directSeconds = 0 } = said!
  return { guest, profile, method, bytesIn, efforts, directSeconds }
}

/** What a reader of the results must know of the guests of these steps, and of the sets. */
function describeGuests(results: Draft, steps: readonly Step[], prepared: Prepared): void {
  for (const name of new Set(steps.map(({ guest }) => guest))) {
    const { workload, memoryMb, templates } = guestNamed(name)
    const image = knowledgeOf(guestNamed(name), 'pair-image')?.flat()
    const description = { name, workload, memoryBytes: memoryMb * 2 ** 20, templates, ...(image && { image }) }
    results.guests = [...results.guests.filter(guest => guest.name !== name), description]
  }
  for (const step of steps) {
    if (!('method' in step)) continue
    const set = prepared.sets(step.guest, step.method)
    if (!set) continue
    const { from, pages, bytes } = set
    if (!step.method.startsWith('pair-image')) {
      if (results.templates.from.length === 0) results.templates = { from, pages, bytes }
      continue
    }
    const name = from.join(', ')
    const others = (results.images ?? []).filter(other => other.name !== name)
    results.images = [...others, { name, pages, bytes }]
  }
}

function methodsOf(steps: readonly Step[]): Method[] {
  return [...new Set(steps.flatMap(step => ('method' in step ? [step.method] : [])))]
}

function startResults({ resume, out, command, qemu }: ComparisonOptions, accelerator: string): Draft {
  if (existsSync(out)) {
    const old = JSON.parse(readFileSync(out, 'utf8')) as Results
    // a failure may be the machine's: it gets another try
    if (resume) {
      const disks = old.disks?.filter(({ outcome }) => outcome !== 'failed')
      return { ...old, runs: old.runs.filter(({ outcome }) => outcome !== 'failed'), ...(disks && { disks }) }
    }
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
  writeFileSync(join(folder, `${stepKey(job).replaceAll(' ', '_')}.log`), `${reason}\n${log}\n`)
}

function diskLine({ guest, profile, disk, outcome, reason, mirror, memory }: DiskRun): string {
  const where = `${profile} ${guest} with its disk, ${disk}`
  if (outcome !== 'completed') return `${where}: failed (${reason})`
  const parts = [mirror, memory].filter(part => part !== undefined)
  const text = parts.map(({ seconds, wanBytes }) => `${seconds.toFixed(1)} s, ${formatSize(wanBytes)}`)
  return `${where}: ${text.join('; ')}`
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
