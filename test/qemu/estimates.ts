/**
 * What is said of real migrations on their way, held against how they ended: guests of QEMU that rewrite memory at several
 * rates, over a link that takes so much. Not part of the tests: figures, by the clock.
 *
 *   node test/qemu/estimates.ts [RATE,RATE] [LINK MB/s]      MB/s that the guests rewrite (default 1,2,4), what QEMU may send (8)
 */
import { parseArgs } from 'node:util'
import { qemu10 } from '../../scripts/harness/qemu/versions.ts'
import type { MigrationProgress } from '../../src/migration/progress.ts'
import { until } from '../helpers/until.ts'
import { Guests, Pair } from './pair.ts'

const { positionals } = parseArgs({ allowPositionals: true })
const rates = (positionals[0] ?? '1,2,4').split(',').map(Number)
const linkMb = Number(positionals[1] ?? 8)

const found = await qemu10()
if (!found.qemu) throw new Error(found.skip)

await using pair = await Pair.start({ wan: '0ms' })
let count = 0
for (const rate of rates) {
  const workload = { workload: 'busy', rate, content: 1, contentmb: 24 } as const
  await using guests = await Guests.start({ qemu: found.qemu, workload })
  await guests.destination.listen(pair.targetUri(), { capabilities: { 'return-path': true } })
  const beganMs = performance.now()
  await guests.source.startMigration(pair.sourceUri(), {
    capabilities: { 'return-path': true },
    parameters: { 'max-bandwidth': linkMb * 1_000_000, 'downtime-limit': 300 },
  })
  const said: { readonly seconds: number; readonly progress: MigrationProgress }[] = []
  let isOver = false
  const ended = guests.source.waitMigration().finally(() => {
    isOver = true
  })
  await until(
    'its end',
    () => {
      const [migration] = pair.source!.status().session?.migrations ?? []
      if (migration?.progress) said.push({ seconds: migration.seconds, progress: migration.progress })
      return isOver
    },
    300_000,
  )
  await ended
  const { seconds } = await pair.summary(++count)
  const half = said.find(one => one.seconds >= seconds / 2)
  const { pass, share, secondsBetween = [], seconds: left, passSeconds = 0 } = half?.progress ?? {}
  const range = secondsBetween.map(value => value + half!.seconds)
  const isHeld = seconds >= (range[0] ?? Number.POSITIVE_INFINITY) * 0.99 && seconds <= range[1]! * 1.01
  console.log(
    [
      `rewrites ${rate} MB/s of ${linkMb}: ${seconds.toFixed(1)} s (${((performance.now() - beganMs) / 1000).toFixed(1)} by QEMU)`,
      `passes ${said.at(-1)?.progress.pass}`,
      `at half in pass ${pass} at ${share}: ${((half?.seconds ?? 0) + (left ?? passSeconds)).toFixed(1)} s`,
      `between ${range.map(value => value.toFixed(1)).join(' and ')} s: ${isHeld ? 'held' : 'NOT HELD'}`,
    ].join(', '),
  )
}
