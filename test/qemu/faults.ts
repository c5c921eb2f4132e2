/**
 * Long runs of real migrations over a WAN that breaks, and of everything else that can break. Exit status 1 where one fails.
 *
 *   node test/qemu/faults.ts                             all scenarios: an hour
 *   node test/qemu/faults.ts cuts multifd --runs 100     some, with so many cuts or mishaps each
 *   node test/qemu/faults.ts mishaps --seed 7            another run of chance; --seed repeats the choices, not the timing of a loaded machine
 *   node test/qemu/faults.ts cuts --threads 4 --effort 3 proxies with so many threads, which help at efforts 2 and 3
 *
 * cuts        one guest that dirties memory, the WAN breaks again and again: RST, silence, stall
 * four        the same with four migrations at once
 * multifd     the same with four channels
 * postcopy    the same while the guest already runs at the destination
 * mishaps     cancel, either QEMU killed, either proxy killed, at any moment
 * held        main, multifd, return path, or the whole WAN stands still for 30 s
 * helpers     a helping thread of either proxy dies, throws or stands still (with --threads 2 or more)
 * disks       Debian guests that write files (QEMU 7.2 and 10; `make lab` first), their disks mirrored, 20 cuts in each mirror
 *             and the memory behind it; either proxy killed
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import type { MigrationSettings, QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { compareMemory } from '../../scripts/harness/qemu/memory.ts'
import { qemu10, systemQemu } from '../../scripts/harness/qemu/versions.ts'
import { Random } from '../../scripts/harness/random.ts'
import { parseAddress } from '../../src/relay/address.ts'
import type { StartHelper } from '../../src/transfer/helpers/helper.ts'
import { startHelper } from '../../src/transfer/helpers/helper-thread.ts'
import { until } from '../helpers/until.ts'
import { FaultyHelpers } from '../transfer/faulty-helpers.ts'
import { diskFaults, diskFaultsSkip } from './disk-faults.ts'
import { ChannelRelay, FAULTS, type Fault, Guests, LINUX, Pair } from './pair.ts'

const scenarios = ['cuts', 'four', 'multifd', 'postcopy', 'mishaps', 'helpers', 'held', 'disks'] as const
type Scenario = (typeof scenarios)[number]
/** How often the WAN breaks in one migration. */
const CUTS_PER_MIGRATION = 10
const RUNS: Record<Scenario, number> = {
  cuts: 100,
  four: 100,
  multifd: 100,
  postcopy: 100,
  mishaps: 50,
  helpers: 20,
  held: 4,
  disks: 2,
}
/** A migration of a busy machine ends before. */
const HANGS_MS = 300_000
const HELD_MS = 30_000
/** First bytes of a main and of a multifd channel. */
const MAIN = '5145564d'
const MULTIFD = '11223344'
/** So slow that the guest is faster: QEMU sees no moment in which it could finish, until it is let go. */
const ENDLESS = { 'max-bandwidth': 2_000_000, 'downtime-limit': 1, 'avail-switchover-bandwidth': 1 }
const LET_GO = { 'max-bandwidth': 0, 'downtime-limit': 2000, 'avail-switchover-bandwidth': 0 }

const HELP = `usage: node test/qemu/faults.ts [SCENARIO]... [--runs N] [--seed N] [--threads N] [--effort N]

Real migrations over a WAN that breaks, and everything else that can break. Exit status 1 where one fails.

  cuts        ${RUNS.cuts} cuts (RST, silence, stall) of one guest that dirties memory
  four        ${RUNS.four} with four migrations at once
  multifd     ${RUNS.multifd} with four channels
  postcopy    ${RUNS.postcopy} while the guest already runs at the destination
  mishaps     ${RUNS.mishaps} times cancel, either QEMU killed, either proxy killed, at any moment
  helpers     ${RUNS.helpers} times a helping thread of either proxy dies, throws or stands still
  held        ${RUNS.held} times main, multifd, return path, or the whole WAN stands still for ${HELD_MS / 1000} s
  disks       ${RUNS.disks} Debian guests moved with their disks, 20 cuts each, by each QEMU; either proxy killed

  --runs N    so many cuts or mishaps of each scenario
  --seed N    another run of chance; default 1
  --threads N threads of each proxy; default 1
  --effort N  of the source proxy; default auto
`

/** Arguments; ends the process where they are wrong, or ask for help. */
function readArguments() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        runs: { type: 'string' },
        seed: { type: 'string', default: '1' },
        threads: { type: 'string', default: '1' },
        effort: { type: 'string' },
        help: { type: 'boolean', short: 'h', default: false },
      },
    })
    if (values.help) {
      process.stdout.write(HELP)
      process.exit(0)
    }
    const unknown = positionals.find(word => !scenarios.some(name => name === word))
    if (unknown !== undefined) throw new Error(`there is no scenario ${unknown}`)
    for (const name of ['runs', 'seed', 'threads', 'effort'] as const) {
      if (values[name] !== undefined && !/^\d+$/.test(values[name])) throw new Error(`--${name} takes a number`)
    }
    return { values, positionals }
  } catch (error) {
    process.stderr.write(`error: ${(error as Error).message}\n\n${HELP}`)
    process.exit(2)
  }
}

const { values, positionals } = readArguments()
process.env.THREADS = values.threads // of every pair that is started
const EFFORT = values.effort === undefined ? {} : { effort: Number(values.effort) }
const found = await qemu10()
if (found.skip !== undefined) {
  console.log(`skipped: ${found.skip}`)
  process.exit(0)
}
const qemu = found.qemu!

interface Outcome {
  failures: number
  readonly notes: string[]
}

// The WAN breaks ------------------------------------------------------------------------------------------------------

interface CutPlan {
  readonly migrations: number
  readonly settings: MigrationSettings
  readonly postcopy?: boolean
}

const cutPlans: Record<'cuts' | 'four' | 'multifd' | 'postcopy', CutPlan> = {
  cuts: { migrations: 1, settings: { capabilities: { 'return-path': true } } },
  four: { migrations: 4, settings: { capabilities: { 'return-path': true } } },
  multifd: {
    migrations: 1,
    settings: { capabilities: { 'return-path': true, multifd: true }, parameters: { 'multifd-channels': 4 } },
  },
  postcopy: { migrations: 1, settings: { capabilities: { 'postcopy-ram': true } }, postcopy: true },
}

/** Breaks the WAN once and waits until it stands again. */
async function cutOnce(pair: Pair, chance: Random): Promise<Fault> {
  const fault = chance.pick(FAULTS)
  const forMs = fault === 'drop' ? 0 : fault === 'reset' ? chance.between(0, 500) : chance.between(20, 2000)
  await pair.breakWanOnce(fault, forMs)
  return fault
}

async function cuts(plan: CutPlan, total: number, chance: Random, progress: (text: string) => void): Promise<Outcome> {
  const outcome: Outcome = { failures: 0, notes: [] }
  const counts: Record<Fault, number> = { reset: 0, drop: 0, stall: 0 }
  let done = 0
  let moved = 0
  await using pair = await Pair.start({ ...EFFORT, gates: plan.migrations, patienceMs: 30_000, wan: '200Mbit,10ms' })
  while (done < total) {
    const all: Guests[] = []
    try {
      for (let i = 0; i < plan.migrations; i++) all.push(await Guests.start({ qemu, workload: LINUX }))
      for (const [i, { source, destination }] of all.entries()) {
        await destination.listen(pair.targetUri(i), plan.settings)
        await source.startMigration(pair.sourceUri(i), {
          ...plan.settings,
          parameters: {
            ...{ ...ENDLESS, ...plan.settings.parameters },
            ...(plan.postcopy ? { 'max-postcopy-bandwidth': 1_500_000 } : {}),
          },
        })
      }
      if (plan.postcopy) {
        for (const { source } of all) {
          await until(
            'the migration to get going',
            async () => ((await source.migrationInfo()).ram?.transferred ?? 0) > 300_000,
          )
          await source.qmp.execute('migrate-start-postcopy')
        }
      }
      const cutsNow = Math.min(CUTS_PER_MIGRATION, total - done)
      let active = true
      for (let i = 0; i < cutsNow && active; i++) {
        await sleep(chance.between(0, 600))
        for (const { source } of all) {
          const { status } = await source.migrationInfo()
          if (status === 'completed') active = false
          else if (!/active|device|setup/.test(status ?? '')) throw new Error(`QEMU noticed: ${status}`)
        }
        if (!active) break
        // the last one falls into the end
        if (i === cutsNow - 1) await letGo(all, plan)
        counts[await cutOnce(pair, chance)]++
        done++
        progress(`${done}/${total} cuts, ${moved} migrations`)
      }
      await letGo(all, plan)
      for (const [i, guests] of all.entries()) {
        await guests.source.waitMigration({ timeoutMs: HANGS_MS })
        await guests.destination.waitStatus(['paused', 'prelaunch'], HANGS_MS)
        const pages = await guests.differingPages()
        if (pages > 0) throw new Error(`migration ${i}: ${pages} pages differ`)
        await guests.goesOn()
        moved++
      }
    } catch (error) {
      outcome.failures++
      outcome.notes.push(`after ${done} cuts: ${(error as Error).message}; ${lastWords(pair)}`)
      if (outcome.failures >= 5) break
    } finally {
      for (const guests of all) await guests[Symbol.asyncDispose]()
    }
  }
  outcome.notes.push(`${done} cuts (${FAULTS.map(f => `${counts[f]} ${f}`).join(', ')}) in ${moved} migrations`)
  return outcome
}

function letGo(all: readonly Guests[], plan: CutPlan): Promise<unknown> {
  const parameters: Record<string, unknown> = plan.postcopy ? { 'max-postcopy-bandwidth': 0 } : LET_GO
  return Promise.all(all.map(({ source }) => source.configure({ parameters }).catch(() => {})))
}

function lastWords(pair: Pair): string {
  const lines = pair.log.filter(line => line.level !== 'info' && line.level !== 'debug').slice(-4)
  return lines.map(line => `${line.side}: ${line.event} ${JSON.stringify(line.fields)}`).join('; ')
}

// Everything else breaks ------------------------------------------------------------------------------------------------

const MISHAPS = ['cancel', 'source QEMU', 'destination QEMU', 'source proxy', 'destination proxy'] as const

/** What a QEMU says that may end or hang at any moment. */
async function said(guest: QemuGuest, ask: () => Promise<string | undefined>): Promise<string> {
  if (guest.ended) return 'gone'
  try {
    return (await Promise.race([ask(), sleep(2000, 'stuck')])) ?? ''
  } catch {
    return 'gone'
  }
}

/** Where a guest is. */
function stateOf(guest: QemuGuest): Promise<string> {
  return said(guest, () => guest.status())
}

async function mishaps(total: number, chance: Random, progress: (text: string) => void): Promise<Outcome> {
  const outcome: Outcome = { failures: 0, notes: [] }
  const ends = new Map<string, number>()
  const settings: MigrationSettings = { capabilities: { 'return-path': true } }
  await using pair = await Pair.start({ ...EFFORT, processes: true, patienceMs: 2000, wan: '200Mbit,5ms' })
  for (let i = 0; i < total; i++) {
    const mishap = chance.pick(MISHAPS)
    const afterMs = chance.between(0, 1600)
    const back = chance.next() < 0.5
    const multifd = chance.next() < 0.3
    const modeSettings = multifd ? { capabilities: { ...settings.capabilities, multifd: true } } : settings
    await using guests = await Guests.start({ qemu, machine: 'pc-i440fx-10.0', runs: true })
    const { source, destination } = guests
    let both = false
    let watching = true
    const watch = (async () => {
      while (watching) {
        // the destination first: who leaves the source arrives there later
        const there = await stateOf(destination)
        if (there === 'running' && (await stateOf(source)) === 'running') both = true
        await sleep(20)
      }
    })()
    await destination.listen(pair.targetUri(), modeSettings)
    await source.startMigration(pair.sourceUri(), { ...modeSettings, parameters: { 'max-bandwidth': 8_000_000 } })
    await sleep(afterMs)
    if (mishap === 'cancel') await source.qmp.execute('migrate_cancel').catch(() => {})
    else if (mishap === 'source QEMU') process.kill(source.pid, 'SIGKILL')
    else if (mishap === 'destination QEMU') process.kill(destination.pid, 'SIGKILL')
    else {
      const side = mishap === 'source proxy' ? 'source' : 'destination'
      await pair.kill(side)
      if (!back) await sleep(3000) // longer than the patience
      await (side === 'source' ? pair.startSource() : pair.startDestination())
    }
    let here = ''
    let there = ''
    let migration = ''
    try {
      await until(
        () => `an end: source ${here}, destination ${there}, migration ${migration}`,
        async () => {
          here = await stateOf(source)
          there = await stateOf(destination)
          migration = await said(source, async () => (await source.migrationInfo()).status)
          // Where nothing reached the destination QEMU, it waits on. With multifd it hangs by itself where a channel ends while its main
          // thread waits for that channel's SYNC: 7.2 and 10 do, without proxies, too.
          const untouched =
            there === 'inmigrate' &&
            (await said(destination, async () => (await destination.migrationInfo()).status)) !== 'active'
          return (
            /gone|running|postmigrate/.test(here) &&
            (/gone|running/.test(there) || untouched || (multifd && there === 'stuck')) &&
            /gone|completed|failed|cancelled/.test(migration)
          )
        },
      )
    } catch (error) {
      outcome.failures++
      outcome.notes.push(
        `run ${i}, ${mishap} after ${Math.round(afterMs)} ms: ${(error as Error).message}; ${lastWords(pair)}`,
      )
    }
    watching = false
    await watch
    const running = [here, there].filter(state => state === 'running').length
    const end = `${mishap}: source ${here} (${migration}), destination ${there}`
    ends.set(end, (ends.get(end) ?? 0) + 1)
    // Whoever holds the guest and is killed takes it along; that is not ours.
    const killedOwner =
      (mishap === 'source QEMU' && there !== 'running') ||
      (mishap === 'destination QEMU' && there === 'gone' && here === 'postmigrate' && migration === 'completed')
    // Wire format 1.6: the destination has all of the guest and runs it, but its SHUT reaches nobody. QEMU that is cancelled in the
    // state `device` does the same without proxies, every time.
    const shutLost = (mishap === 'cancel' || / proxy$/.test(mishap)) && /failed|cancelled/.test(migration)
    if (shutLost && there === 'running') {
      outcome.notes.push(`run ${i}: ${end}: after QEMU's last byte (${Math.round(afterMs)} ms): qemu-wire-format 1.6`)
    } else if (both || running === 2 || (running === 0 && !killedOwner)) {
      outcome.failures++
      outcome.notes.push(
        `run ${i}: ${end}${both ? ', RAN ON BOTH SIDES' : ''} (after ${Math.round(afterMs)} ms); ${lastWords(pair)}`,
      )
    }
    progress(`${i + 1}/${total} mishaps`)
  }
  for (const [end, count] of [...ends].sort()) outcome.notes.push(`${count} x ${end}`)
  // and after all that, one that goes well
  await using guests = await Guests.start({ qemu })
  await guests.destination.listen(pair.targetUri(), settings)
  await guests.source.migrate(pair.sourceUri(), {
    ...settings,
    parameters: { 'max-bandwidth': 0 },
    timeoutMs: HANGS_MS,
  })
  await guests.destination.waitStatus('paused')
  if ((await guests.differingPages()) > 0) throw new Error('the migration after the mishaps brought wrong memory')
  return outcome
}

// A thread fails ---------------------------------------------------------------------------------------------------------

const HELPER_FAULTS = ['exit', 'throw', 'hang'] as const

/** The guest runs on at the source, and its next migration arrives. */
async function movesAgain(pair: Pair, { source, destination }: Guests, settings: MigrationSettings): Promise<void> {
  const beats = source.heartbeats.length
  await until('the guest to go on at the source', () => source.heartbeats.length > beats + 2)
  await destination.quit() // it listens still where nothing had reached it
  await using next = await Guests.startDestination({ qemu, workload: LINUX })
  await next.listen(pair.targetUri(), settings)
  await source.migrate(pair.sourceUri(), { ...settings, parameters: LET_GO, timeoutMs: HANGS_MS })
  await next.waitStatus(['paused', 'prelaunch'], HANGS_MS)
  const { differingPages } = await compareMemory(await source.snapshot(), await next.snapshot())
  if (differingPages > 0) throw new Error(`${differingPages} pages differ`)
}

/** Its migration, which another session has taken, comes to its end. */
async function arrives(guests: Guests): Promise<void> {
  const { source, destination } = guests
  await source.configure({ parameters: LET_GO })
  await source.waitMigration({ timeoutMs: HANGS_MS })
  await destination.waitStatus(['paused', 'prelaunch'], HANGS_MS)
  const pages = await guests.differingPages()
  if (pages > 0) throw new Error(`sent again: ${pages} pages differ`)
  await guests.goesOn()
}

/**
 * One helper of one proxy fails: its session ends, the guest goes on at the source, and the next migration has others. A
 * migration that the other side had not taken goes on itself, in the next session.
 */
async function helpers(total: number, chance: Random, progress: (text: string) => void): Promise<Outcome> {
  const outcome: Outcome = { failures: 0, notes: [] }
  if (values.threads === '1') return { failures: 0, notes: ['skipped: there are none without --threads 2 or more'] }
  const ends = new Map<string, number>()
  const settings: MigrationSettings = { capabilities: { 'return-path': true } }
  for (let i = 0; i < total; i++) {
    const side = chance.pick(['source', 'destination'] as const)
    const what = chance.pick(HELPER_FAULTS)
    const after = Math.floor(chance.between(0, 4))
    const faulty = new FaultyHelpers({ at: side === 'source' ? 'pack' : 'unpack', what, after })
    let isFirst = true
    const startHelpers: StartHelper = data => {
      const start = isFirst ? faulty.start : startHelper
      isFirst = false
      return start(data)
    }
    const name = `${what} at the ${side}`
    let heard = ''
    try {
      await using pair = await Pair.start({
        effort: 3,
        ...EFFORT,
        helpers: { [side]: startHelpers },
        wan: '200Mbit,10ms',
      })
      using words = new DisposableStack()
      words.defer(() => {
        heard = lastWords(pair)
      })
      await using guests = await Guests.start({ qemu, workload: LINUX })
      await guests.destination.listen(pair.targetUri(), settings)
      await guests.source.startMigration(pair.sourceUri(), { ...settings, parameters: ENDLESS })
      await faulty.failing()
      const { source } = guests
      const end = await until(
        () => `an end of the migration: ${lastWords(pair)}`,
        async () => {
          const { status } = await source.migrationInfo()
          if (/failed|completed/.test(status ?? '')) return status
          // the other side had not taken it: it goes on in another session, and QEMU sees nothing of it
          const starts = pair.log.filter(({ side, event }) => side === 'source' && event === 'migration starts')
          return starts.length > 1 && 'sent again'
        },
        HANGS_MS,
      )
      ends.set(`${name}: ${end}`, (ends.get(`${name}: ${end}`) ?? 0) + 1)
      if (!pair.log.some(({ fields }) => /helping thread/.test(JSON.stringify(fields))))
        throw new Error('it is not told why')
      if (end === 'failed') await movesAgain(pair, guests, settings)
      else await arrives(guests)
    } catch (error) {
      outcome.failures++
      outcome.notes.push(`run ${i}, ${name} after ${after}: ${(error as Error).message}; ${heard}`)
    }
    progress(`${i + 1}/${total} helpers`)
  }
  for (const [end, count] of [...ends].sort()) outcome.notes.push(`${count} x ${end}`)
  return outcome
}

// Something stands still ------------------------------------------------------------------------------------------------

async function held(total: number, chance: Random, progress: (text: string) => void): Promise<Outcome> {
  const outcome: Outcome = { failures: 0, notes: [] }
  const what = ['main', 'multifd', 'return path', 'WAN'] as const
  for (let i = 0; i < total; i++) {
    const which = what[i % what.length]!
    try {
      await using pair = await Pair.start({ ...EFFORT, gates: 2, patienceMs: 60_000, wan: '200Mbit,10ms' })
      await using guests = await Guests.start({ qemu, workload: LINUX })
      const settings = { capabilities: { 'return-path': true, multifd: true }, parameters: { 'multifd-channels': 4 } }
      const delayMs = chance.between(0, 30)
      const address = parseAddress(await guests.destination.listen('tcp:127.0.0.1:0', settings))
      if (address.kind !== 'tcp') throw new Error('a TCP address was expected')
      await using relay = await ChannelRelay.start(address)
      pair.retarget(0, parseAddress(`tcp:127.0.0.1:${relay.port}`))
      const head = which === 'multifd' ? MULTIFD : MAIN
      const held = new Promise<void>(done => {
        relay.onChannel = channel => {
          if (channel.head !== head) return
          relay.onChannel = () => {}
          setTimeout(() => {
            if (which === 'WAN') pair.wan.stall()
            else channel.hold(which === 'return path' ? 'back' : 'forward')
            done()
          }, delayMs)
        }
      })
      // all that QEMU has, as fast as it can: more than the sockets on the way take
      await guests.source.startMigration(pair.sourceUri(0), {
        ...settings,
        parameters: { ...settings.parameters, 'max-bandwidth': 0 },
      })
      await held
      const start = performance.now()
      if (which !== 'WAN') {
        await using bystander = await Guests.start({ qemu })
        await bystander.destination.listen(pair.targetUri(1))
        await bystander.source.migrate(pair.sourceUri(1), { parameters: { 'max-bandwidth': 0 }, timeoutMs: HANGS_MS })
        await bystander.destination.waitStatus('paused')
        if ((await bystander.differingPages()) > 0) throw new Error('wrong memory beside it')
        outcome.notes.push(`${which} held: a migration beside it took ${Math.round(performance.now() - start)} ms`)
      }
      while (performance.now() - start < HELD_MS) {
        await sleep(500)
        // QEMU's monitor stands still, too, where the migration thread waits for a channel at the end
        const info = await Promise.race([guests.source.migrationInfo(), sleep(500)])
        if (info && !/active|device|pre-switchover/.test(info.status ?? '')) {
          throw new Error(`${which} held: QEMU says ${info.status}`)
        }
      }
      const releasedMs = performance.now()
      if (which === 'WAN') pair.wan.resume()
      for (const channel of relay.channels) channel.release()
      await guests.source.waitMigration({ timeoutMs: HANGS_MS })
      await guests.destination.waitStatus(['paused', 'prelaunch'], HANGS_MS)
      const pages = await guests.differingPages()
      if (pages > 0) throw new Error(`${which} held: ${pages} pages differ`)
      await guests.goesOn()
      outcome.notes.push(
        `${which} held for ${HELD_MS / 1000} s: completed ${Math.round(performance.now() - releasedMs)} ms after`,
      )
    } catch (error) {
      outcome.failures++
      outcome.notes.push(`${which}: ${(error as Error).message}`)
    }
    progress(`${i + 1}/${total} held`)
  }
  return outcome
}

// Disks ----------------------------------------------------------------------------------------------------------------

async function disks(total: number, chance: Random, progress: (text: string) => void): Promise<Outcome> {
  const skip = diskFaultsSkip()
  if (skip !== undefined) return { failures: 0, notes: [`skipped: ${skip}`] }
  const { qemu: old, skip: missing } = await systemQemu()
  const outcome = await diskFaults(old ? [old, qemu] : [qemu], total, chance, progress)
  if (!old) outcome.notes.push(`one QEMU alone: ${missing}`)
  return outcome
}

// ----------------------------------------------------------------------------------------------------------------------

let failed = 0
const wanted = positionals.length > 0 ? scenarios.filter(name => positionals.includes(name)) : scenarios
for (const name of wanted) {
  const chance = new Random(Number(values.seed))
  const runs = values.runs === undefined ? RUNS[name] : Number(values.runs)
  const start = performance.now()
  const progress = (text: string): void => {
    if (process.stdout.isTTY) process.stdout.write(`\r${name}: ${text}   `)
    else console.log(`${name}: ${text}`)
  }
  let outcome: Outcome
  if (name === 'mishaps') outcome = await mishaps(runs, chance, progress)
  else if (name === 'disks') outcome = await disks(runs, chance, progress)
  else if (name === 'helpers') outcome = await helpers(runs, chance, progress)
  else if (name === 'held') outcome = await held(runs, chance, progress)
  else outcome = await cuts(cutPlans[name], runs, chance, progress)
  if (process.stdout.isTTY) process.stdout.write('\n')
  for (const note of outcome.notes) console.log(`  ${note}`)
  const seconds = Math.round((performance.now() - start) / 1000)
  console.log(`${name}: ${runs} runs, ${outcome.failures} failures, seed ${values.seed}, ${seconds} s`)
  failed += outcome.failures
}
process.exit(failed > 0 ? 1 : 0)
