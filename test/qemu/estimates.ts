/**
 * What is said of real migrations on their way, held against how they ended: guests of QEMU that write at several rates, over
 * a link that takes so much of QEMU. Not part of the tests: figures, by the clock.
 *
 *   node test/qemu/estimates.ts [RATE,RATE] [LINK]     MB/s that the guests write (1,2,3), that QEMU may send (4)
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { writerSector } from '../../scripts/harness/guest/writer.ts'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { qemu10 } from '../../scripts/harness/qemu/versions.ts'
import type { MigrationProgress } from '../../src/migration/progress.ts'
import { until } from '../helpers/until.ts'
import { Pair } from './pair.ts'

const [rates = '1,2,3', link = '4'] = process.argv.slice(2)
const TICKS_PER_SECOND = 18.2
const PAGE = 4096
const MEMORY_MB = 64
/** Of program code, from 2 MiB on, of which the guest writes the first 32 MiB. */
const CONTENT_MB = 48
const WRITTEN_PAGES = 8192
const RETURN_PATH = { 'return-path': true }

const found = await qemu10()
if (!found.qemu) throw new Error(`no QEMU 10: ${found.skip}`)

await using pair = await Pair.start({ wan: '0ms' })
const content = join(pair.folder, 'content')
writeFileSync(content, readFileSync(process.execPath).subarray(8 << 20, (8 + CONTENT_MB) << 20))
let count = 0
for (const rate of rates.split(',').map(Number)) {
  const common = {
    ...{ qemu: found.qemu, machine: 'pc-i440fx-7.2', memoryMb: MEMORY_MB },
    bootSector: writerSector(Math.round((rate * 1e6) / PAGE / TICKS_PER_SECOND), WRITTEN_PAGES),
    args: ['-device', `loader,file=${content},addr=0x200000,force-raw=on`],
  }
  await using source = await QemuGuest.start({ ...common, name: 'source' })
  await source.waitSerial(/\n{4}/)
  await using destination = await QemuGuest.start({ ...common, name: 'destination', incoming: 'defer', paused: true })
  await destination.listen(pair.targetUri(), { capabilities: RETURN_PATH })
  await source.startMigration(pair.sourceUri(), {
    capabilities: RETURN_PATH,
    parameters: { 'max-bandwidth': Number(link) * 1e6, 'downtime-limit': 300 },
  })
  const said: { readonly seconds: number; readonly progress: MigrationProgress }[] = []
  await until(
    'its end',
    () => {
      const [migration] = pair.source!.status().session?.migrations ?? []
      if (migration?.progress) said.push({ seconds: migration.seconds, progress: migration.progress })
      return pair.summaries.length > count
    },
    300_000,
  )
  await source.waitMigration()
  const { seconds, outcome } = await pair.summary(++count)
  const passes = said.at(-1)?.progress.pass
  console.log(`writes ${rate} MB/s, QEMU may send ${link}: ${outcome} in ${seconds.toFixed(1)} s, in pass ${passes}`)
  // halfway through its time, and once anything is said of the end
  for (const from of [seconds / 2, (seconds * 3) / 4]) {
    const then = said.find(one => one.seconds >= from && (one.progress.secondsBetween || !one.progress.passSeconds))
    const range = then?.progress.secondsBetween?.map(value => value + then.seconds)
    if (!then || !range) {
      console.log(`  from ${from.toFixed(1)} s on: nothing was said`)
      continue
    }
    const { pass, share, seconds: left } = then.progress
    const isHeld = seconds >= range[0]! - 0.1 && seconds <= range[1]! + 0.1
    const middle = left === undefined ? '' : `, ${(then.seconds + left).toFixed(1)} s if each pass shrinks as this one`
    console.log(
      `  at ${then.seconds.toFixed(1)} s, pass ${pass} at ${share}: between ${range.map(value => value.toFixed(1)).join(' and ')} s${middle}: ${isHeld ? 'held' : 'not held'}`,
    )
  }
}
