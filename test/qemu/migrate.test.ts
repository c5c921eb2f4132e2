/** `pageferry migrate` with real QEMUs, through a pair that is asked what crosses the WAN. */
import { once } from 'node:events'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import type { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { type FoundQemu, qemu10, systemQemu } from '../../scripts/harness/qemu/versions.ts'
import { type CommandOptions, type Outcome, run } from '../cli/command.ts'
import { Guests, type GuestsOptions, Pair } from './pair.ts'

t.setTimeout(590_000)

const { path: folder, remove } = temporaryFolder('migrate')
t.teardown(remove)
const control = join(folder, 'control')
const [ten, seven] = [await qemu10(), await systemQemu()]
const skipOf = ({ skip }: FoundQemu): { skip: string | false } => ({ skip: skip ?? false })

const pair = await Pair.start({ processes: true, wan: '0ms', effort: 1, sourceArgs: ['--control', control] })
t.teardown(() => pair[Symbol.asyncDispose]())
let count = 0

/** Two QEMUs, with a QMP socket each for the command: the tests have their own. */
async function start(t: Test, options: GuestsOptions) {
  const [near, far] = [join(folder, `near-${count}`), join(folder, `far-${count++}`)]
  const qmp = (path: string) => ['-qmp', `unix:${path},server=on,wait=off`]
  const guests = await Guests.start({ ...options, sideArgs: { source: qmp(near), destination: qmp(far) } })
  t.teardown(() => guests[Symbol.asyncDispose]())
  const { source, destination } = guests
  const before = [await settings(source), await settings(destination)]
  return { source, destination, near, far, before, guests }
}

async function settings(guest: QemuGuest): Promise<unknown> {
  return [await guest.qmp.execute('query-migrate-capabilities'), await guest.qmp.execute('query-migrate-parameters')]
}

const migrate = (
  near: string,
  far: string,
  more: readonly string[],
  options: Partial<CommandOptions> = {},
): Promise<Outcome> =>
  run(
    [
      ...['migrate', '--qmp', near, '--far-qmp', far, '--to', pair.sourceUri(), '--incoming', pair.targetUri()],
      ...['--control', control, '--json', ...more],
    ],
    { cwd: folder, ...options },
  )
const last = ({ stdout }: Outcome): Record<string, unknown> => JSON.parse(stdout.trim().split('\n').at(-1)!)
/** Slow enough to be met on its way: the guest has 6 MB. */
const SLOW = ['--max-bandwidth', '1MB/s', '--downtime-limit', '1ms']

for (const [name, found] of [
  ['10', ten],
  ['7.2', seven],
] as const)
  t.test(`QEMU ${name}: completed`, skipOf(found), async t => {
    // QEMU 7.2's TCG loses writes of a guest that runs
    const paused = !found.qemu!.tcgTracksDirtyPages
    const { near, far, source, destination, before, guests } = await start(t, { qemu: found.qemu!, paused })
    const outcome = await migrate(near, far, [])
    t.equal(outcome.status, 0, outcome.stderr)
    const end = last(outcome)
    t.match(end, { event: 'ended', result: 'completed', totalMs: Number, downtimeMs: Number, setupMs: Number })
    t.match(end, { source: 'postmigrate', destination: 'paused', transferredBytes: Number, left: [] })
    const { bytesWan } = await pair.summary(pair.summaries.length || 1)
    t.equal(end.bytesWan, bytesWan, 'bytes of the WAN as the proxy tells them')
    t.equal(await guests.differingPages(), 0)
    t.same([await settings(source), await settings(destination)], before, 'settings are as they were')
    await guests.goesOn()
  })

t.test('Ctrl-C while it runs', skipOf(ten), async t => {
  const { near, far, source, before } = await start(t, { qemu: ten.qemu! })
  const when: CommandOptions['when'] = [[/"transferredBytes":\d{6}/, command => command.kill('SIGINT')]]
  const outcome = await migrate(near, far, SLOW, { when })
  t.equal(outcome.status, 130, outcome.stderr)
  t.match(last(outcome), { result: 'cancelled', source: 'running' })
  t.equal(await source.status(), 'running', 'the guest goes on at the source')
  const lines = source.serial.length
  await source.waitSerial(/\n/, 60_000, lines)
  t.same(await settings(source), before[0], 'settings are as they were')
  t.match(
    (last(outcome).left as { side: string }[]).filter(({ side }) => side === 'source'),
    [],
  )
})

t.test('the switch to postcopy', skipOf(ten), async t => {
  const { near, far, source, destination, before, guests } = await start(t, { qemu: ten.qemu!, runs: true })
  const outcome = await migrate(near, far, [...SLOW, '--postcopy-after', '1'])
  if (outcome.status === 16 && /userfault|not supported/i.test(outcome.stderr)) {
    t.pass('the switch', { skip: `this host has no postcopy: ${outcome.stderr}` })
    return
  }
  t.equal(outcome.status, 0, outcome.stderr)
  t.match(outcome.stdout, /"status":"postcopy-active"/)
  t.match(last(outcome), { result: 'completed', destination: 'running', left: [] })
  t.ok((last(outcome).postcopyBytes as number) > 0, 'pages came behind the switch')
  t.same([await settings(source), await settings(destination)], before)
  await guests.goesOn()
})

t.test('the destination QEMU dies', skipOf(ten), async t => {
  const { near, far, source, destination, before } = await start(t, { qemu: ten.qemu! })
  const gone = once(destination.qmp, 'close')
  const when: CommandOptions['when'] = [
    [/"transferredBytes":\d{6}/, () => void process.kill(destination.pid, 'SIGKILL')],
  ]
  const outcome = await migrate(near, far, SLOW, { when })
  await gone
  t.equal(outcome.status, 17, outcome.stderr)
  t.match(JSON.parse(outcome.stderr), { error: { code: 'MIGRATION_FAILED', action: /running at the source/ } })
  t.match(last(outcome), { result: 'failed', source: 'running' })
  t.equal(await source.status(), 'running')
  t.same(await settings(source), before[0])
})

t.test('doctor --fix on a QEMU that runs', skipOf(seven), async t => {
  const { near, far, source, destination } = await start(t, { qemu: seven.qemu! })
  const outcome = await run(['doctor', '--qmp', near, '--far-qmp', far, '--fix', '--json'], { cwd: folder })
  t.equal(outcome.status, 0, outcome.stderr)
  const { fixed, advice } = JSON.parse(outcome.stdout)
  t.same(
    fixed.map(({ side, name }: { side: string; name: string }) => `${side} ${name}`),
    ['source return-path', 'source max-bandwidth', 'destination return-path'],
  )
  t.same(advice, [])
  for (const guest of [source, destination]) {
    const states = await guest.qmp.execute<{ capability: string; state: boolean }[]>('query-migrate-capabilities')
    t.equal(states.find(({ capability }) => capability === 'return-path')?.state, true, guest.name)
  }
})
