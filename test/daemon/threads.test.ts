/** Pairs whose source proxy has helping threads: guests arrive whole, several at once; a helper that dies ends a session, and the next one has others. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import type { Worker } from 'node:worker_threads'
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { kernelModule } from '../../src/kernel/kernel.ts'
import { startHelper } from '../../src/transfer/helpers/helper-thread.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { PAGEFERRY } from '../cli/command.ts'
import { madeUp } from '../codec/harness.ts'
import { until } from '../helpers/until.ts'
import { scratch } from '../template/makers.ts'
import { closed, Daemons } from './daemons.ts'
import { RunningPair } from './running.ts'

t.setTimeout(590_000) // the machine may be busy

const skip = kernelModule() === undefined && 'the kernel is not built, and the twin has no helpers'

t.test('a pair of processes with --threads 2: guests arrive whole, and it says how many threads', { skip }, async t => {
  const { folder } = scratch(t.teardown)
  const control = join(folder, 'control')
  const common = ['--learn', 'off', '--threads', '2', '--pool-memory', '64MiB']
  await using pair = await RunningPair.start(folder, {
    near: [...common, '--effort', '3', '--control', control],
    far: common,
  })
  await pair.near.said('session open')
  t.match(pair.near.of('started'), [{ threads: 2 }])
  const { stdout } = spawnSync(PAGEFERRY, ['status', '--control', control], { encoding: 'utf8' })
  t.match(stdout, /, up .*, 2 threads/)
  for (const seed of [1, 2]) {
    const bytes = madeUp(seed, 1200)
    const { arrived } = await pair.migrate(bytes)
    t.ok(arrived.equals(bytes), `guest ${seed}: ${arrived.length} of ${bytes.length} bytes`)
  }
})

t.test('several guests at once, in one session with helpers', { skip }, async t => {
  const pools = new Pools({ threads: 3 })
  await using pair = await Daemons.start({ pools, ringPages: 4096, effort: 2 })
  const guests = [3, 4, 5].map(seed => madeUp(seed, 1000))
  const arrived = await pair.migrateAtOnce(guests)
  for (const bytes of guests)
    t.ok(
      arrived.some(got => got.equals(bytes)),
      `${bytes.length} bytes`,
    )
})

t.test(
  'a helper that dies ends the session: a migration that had begun fails, and the next one has another',
  { skip },
  async t => {
    const helpers: Worker[] = []
    const pools = new Pools({
      threads: 2,
      startHelper: data => {
        const helper = startHelper(data)
        helpers.push(helper)
        return helper
      },
    })
    const events = new Events()
    const outcomes: unknown[] = []
    events.subscribe(({ event, fields }) => {
      if (event === 'migration ended' && 'bytesWan' in fields) outcomes.push(fields.outcome)
    })
    await using pair = await Daemons.start({ pools, ringPages: 4096, effort: 2, events })
    await until('a session', () => pair.count('session open') >= 2)
    const bytes = madeUp(6, 1500)
    const { received, sockets } = pair.target
    const first = await pair.dial()
    first.resume() // or its end is never seen
    first.write(bytes.subarray(0, 2_000_000))
    await until('what was sent first', () => (received[0]?.length ?? 0) > 1_000_000)
    await helpers[0]!.terminate()
    first.write(bytes.subarray(2_000_000))
    await closed(first)
    await until('how it ended', () => outcomes.length > 0)
    t.same(outcomes, ['failed'])
    t.ok(received[0]!.equals(bytes.subarray(0, received[0]!.length)), 'what arrived of it is right')
    const second = await pair.dial()
    second.resume()
    second.end(bytes)
    await until('all bytes', () => (received.at(-1)?.length ?? 0) >= bytes.length)
    t.ok(received.at(-1)!.equals(bytes), 'migrated again, it arrives')
    sockets.at(-1)!.end()
    await closed(second)
    t.equal(helpers.length, 2, 'with another helper')
  },
)
