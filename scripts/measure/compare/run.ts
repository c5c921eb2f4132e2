/** One migration, from a kept guest to what it cost. */
import { setTimeout as sleep } from 'node:timers/promises'
import { temporaryFolder } from '../../harness/qemu/cleanup.ts'
import { type MigrationInfo, QemuGuest } from '../../harness/qemu/guest.ts'
import { type Heartbeat, reportHeartbeats } from '../../harness/qemu/heartbeat.ts'
import type { OpenedWan, SiteName } from '../../harness/wan/open.ts'
import { ownSeconds, threadSeconds } from './cpu.ts'
import type { PreparedGuest, StartedGuest } from './guests.ts'
import { openRoute, type Route, type Templates } from './methods.ts'
import type { Method, Run } from './results.ts'

/** From where it was kept, the guest runs so long before it migrates: caches and working set are warm. */
const WARM_MS = 3000
/** Then its speed is measured for so long. */
const SPEED_MS = 4000
const SAMPLE_MS = 250
/** What the settings of all methods share: QEMU's own estimate decides when the guest is stopped. */
const PARAMETERS = { 'max-bandwidth': 10_000_000_000, 'downtime-limit': 300 }
/** Heartbeats that a guest must have had at the destination. */
const BEATS = 20

/** What one run measured, and what its programs said where it did not complete. */
export interface Outcome {
  readonly run: Omit<Run, 'guest' | 'profile' | 'method' | 'round'>
  readonly log: string
}

/**
 * Migrates a guest once. What goes wrong is an outcome too.
 * @param limitMs when it has not ended by then it is given up, as one that does not converge
 * @param fast a test's guest: nothing is warmed up for long
 */
export async function runMigration(
  guest: PreparedGuest,
  method: Method,
  wan: OpenedWan,
  templates: Templates | undefined,
  limitMs: number,
  fast = false,
): Promise<Outcome> {
  const { path: folder, remove } = temporaryFolder('compare')
  const started = performance.now()
  // neither waits for the other: half of what a run takes is what is around the migration
  const [opened, began] = await Promise.allSettled([
    openRoute(method, wan, folder, templates),
    guest.start(folder, at(wan, 'source')),
  ])
  const route = opened.status === 'fulfilled' ? opened.value : undefined
  try {
    if (opened.status === 'rejected') throw opened.reason
    if (began.status === 'rejected') throw began.reason
    return { run: await migrate(began.value, opened.value, wan, limitMs, fast ? 0.25 : 1), log: opened.value.log }
  } catch (error) {
    return { run: failure((error as Error).message, performance.now() - started), log: route?.log ?? '' }
  } finally {
    if (began.status === 'fulfilled') await began.value.source[Symbol.asyncDispose]()
    await route?.[Symbol.asyncDispose]()
    remove()
  }
}

function at(wan: OpenedWan, site: SiteName): { netns?: string } {
  const netns = wan.netns(site)
  return netns === undefined ? {} : { netns }
}

function failure(reason: string, totalMs: number): Outcome['run'] {
  return {
    outcome: 'failed',
    reason,
    totalMs,
    downtimeMs: null,
    guestPauseMs: null,
    wanBytes: { forward: 0, back: 0 },
    passes: null,
    qemuBytes: null,
    cpuSeconds: {},
    guestSpeed: null,
    progress: [],
    classes: null,
  }
}

async function migrate(
  { source, destination: twin }: StartedGuest,
  route: Route,
  wan: OpenedWan,
  limitMs: number,
  patience: number,
): Promise<Outcome['run']> {
  await source.cont()
  await using destination = await QemuGuest.start({
    ...twin,
    ...at(wan, 'destination'),
    name: 'destination',
    incoming: 'defer',
  })
  await destination.configure(route.destination)
  await destination.qmp.execute('migrate-incoming', { uri: route.targetUri })
  await sleep(WARM_MS * patience)
  const speedFromMs = performance.now()
  await sleep(SPEED_MS * patience)

  // QEMU's threads that run the guest: what they take is the guest's own, not the migration's.
  const [sourceVcpus, destinationVcpus] = [await vcpuThreads(source), await vcpuThreads(destination)]
  const cpu = () => ({
    'source qemu': ownSeconds(source.pid) - vcpuSeconds(source, sourceVcpus),
    'destination qemu': ownSeconds(destination.pid) - vcpuSeconds(destination, destinationVcpus),
    ...route.cpuSeconds(source, destination),
  })
  const passed = await wan.counters()
  const wanBytes = async () => {
    const now = await wan.counters()
    return { forward: now.forward - passed.forward, back: now.back - passed.back }
  }
  await source.configure({ ...route.source, parameters: { ...PARAMETERS, ...route.source.parameters } })
  const cpuBefore = cpu()
  const startMs = performance.now()
  const resumed = destination.qmp
    .waitEvent('RESUME', limitMs + 60_000)
    .then(({ atMs }) => atMs)
    .catch(() => undefined)
  await source.qmp.execute('migrate', { uri: route.sourceUri })

  const progress: Run['progress'][number][] = []
  let info: MigrationInfo = {}
  let outcome: Run['outcome'] = 'completed'
  let reason: string | undefined
  let resumedMs: number | undefined
  for (;;) {
    resumedMs = await Promise.race([resumed, sleep(SAMPLE_MS, undefined)])
    info = await source.migrationInfo()
    const ms = performance.now() - startMs
    if (info.ram) {
      progress.push({
        ms: Math.round(ms),
        pass: info.ram['dirty-sync-count'] ?? 0,
        remainingBytes: info.ram.remaining,
        transferredBytes: info.ram.transferred,
        wanBytes: (await wanBytes()).forward,
      })
    }
    if (resumedMs !== undefined) break
    if (info.status === 'failed' || info.status === 'cancelled') {
      outcome = 'failed'
      reason = info['error-desc'] ?? `migration ${info.status}`
      break
    }
    if (destination.ended) {
      outcome = 'failed'
      reason = 'the destination QEMU ended'
      break
    }
    if (ms > limitMs) {
      outcome = 'did-not-converge'
      reason = `not over after ${Math.round(limitMs / 1000)} s`
      break
    }
  }
  const endMs = resumedMs ?? performance.now()
  const cpuAfter = cpu()
  const bytes = await wanBytes()
  const stoppedMs = source.qmp.events.find(({ event, atMs }) => event === 'STOP' && atMs > startMs)?.atMs ?? endMs

  let guestPauseMs: number | null = null
  if (outcome === 'completed') {
    // The source learns of the end by the return path, a round trip later.
    for (let i = 0; info.status !== 'completed' && i < 200; i++) {
      if (info.status === 'failed') break
      await sleep(50)
      info = await source.migrationInfo()
    }
    if (source.heartbeats.length > 0) {
      await destination.waitHeartbeats(BEATS, 30_000)
      const { disorder } = reportHeartbeats(source.heartbeats, destination.heartbeats)
      if (disorder > 0) {
        outcome = 'failed'
        reason = `the heartbeat went back ${disorder} times`
      }
      guestPauseMs = Math.round(longestSilenceMs([...source.heartbeats, ...destination.heartbeats], stoppedMs, endMs))
    }
  } else {
    if (outcome === 'did-not-converge') await source.qmp.execute('migrate_cancel')
    for (let i = 0; info.status !== 'cancelled' && info.status !== 'failed' && i < 100; i++) {
      await sleep(50)
      info = await source.migrationInfo()
    }
  }
  const before = workRate(source.heartbeats, speedFromMs, startMs)
  const during = workRate(source.heartbeats, startMs, stoppedMs)
  const cpuSeconds: Record<string, number> = {}
  for (const [part, seconds] of Object.entries(cpuAfter)) {
    cpuSeconds[part] = round(seconds - ((cpuBefore as Record<string, number>)[part] ?? 0))
  }
  return {
    outcome,
    ...(reason === undefined ? {} : { reason }),
    totalMs: Math.round(endMs - startMs),
    downtimeMs: outcome === 'completed' ? (info.downtime ?? null) : null,
    guestPauseMs,
    wanBytes: bytes,
    passes: info.ram?.['dirty-sync-count'] ?? null,
    qemuBytes: info.ram?.transferred ?? null,
    cpuSeconds,
    guestSpeed: before && during !== undefined ? round(during / before) : null,
    progress,
    ...(outcome === 'completed' ? await route.account() : { classes: null }),
  }
}

const round = (value: number): number => Math.round(value * 1000) / 1000

async function vcpuThreads(guest: QemuGuest): Promise<number[]> {
  const vcpus = await guest.qmp.execute<{ 'thread-id': number }[]>('query-cpus-fast')
  return vcpus.map(vcpu => vcpu['thread-id'])
}

function vcpuSeconds(guest: QemuGuest, threads: readonly number[]): number {
  return threads.reduce((sum, thread) => sum + threadSeconds(guest.pid, thread), 0)
}

/** The longest time without a heartbeat that touches the time from `fromMs` to `toMs`. */
function longestSilenceMs(beats: readonly Heartbeat[], fromMs: number, toMs: number): number {
  let longest = 0
  for (let i = 1; i < beats.length; i++) {
    const [start, end] = [beats[i - 1]!.atMs, beats[i]!.atMs]
    if (end >= fromMs && start <= toMs) longest = Math.max(longest, end - start)
  }
  return longest
}

/**
 * Work a second between the first and the last change of the count that were seen in a time; undefined where it changed
 * too seldom to tell.
 */
function workRate(beats: readonly Heartbeat[], fromMs: number, toMs: number): number | undefined {
  const inside = beats.filter(({ atMs, work }) => work !== undefined && atMs >= fromMs && atMs <= toMs)
  const changes = inside.filter(({ work }, i) => i > 0 && work !== inside[i - 1]!.work)
  const [first, last] = [changes[0], changes.at(-1)]
  if (changes.length < 3 || !first || !last) return undefined
  return (last.work! - first.work!) / (last.atMs - first.atMs)
}
