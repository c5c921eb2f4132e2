/**
 * `make bench-memory`: the most memory that each proxy had resident (VmHWM), with one guest and four at once, beside what
 * docs/operations.md says. Needs the lab's streams (`make lab`). `node test/bench/memory.ts [LINK] [CASE]`, default 1Gbit,20ms and all.
 */
import { cpSync, statSync } from 'node:fs'
import { join } from 'node:path'
import Table from 'cli-table3'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { PageInput } from '../../src/capture/pages.ts'
import { parseSize } from '../../src/quantity.ts'
import { buildSet } from '../../src/store/build.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { POOL_MEMORY_DEFAULT } from '../../src/transfer/pool.ts'
import { Replay, streamPath } from './replay.ts'

const [link = '1Gbit,20ms', only = ''] = process.argv.slice(2)
const TEMPLATES_OF = ['idle', 'nginx', 'redis', 'compiling']
const GUESTS = ['postgres-limited', 'nginx-k2', 'postgres', 'python']
const SET_BYTES_MAX = 100e6
const POOL_BYTES = parseSize(POOL_MEMORY_DEFAULT, 'pool-memory')

const folder = temporaryFolder('memory')
const built = join(folder.path, 'built')
{
  const inputs: PageInput[] = []
  for (const name of TEMPLATES_OF) inputs.push(await PageInput.open(streamPath(name)))
  await buildSet(inputs, { minVms: 1, maxBytes: SET_BYTES_MAX, memoryBytes: 512 << 20 }, new TemplateStore(built))
}
const store = new TemplateStore(built)
const setBytes = statSync(store.pathOf((await store.digests())[0]!)).size

const mb = (bytes: number): string => (bytes / 1e6).toFixed(0)
const table = new Table({
  head: ['case', 'side', 'set', 'pool', 'before', 'peak', 'peak - set - pool'],
  colAligns: ['left', 'left', 'right', 'right', 'right', 'right', 'right'],
  style: { head: [], border: [], compact: true },
})
for (const [name, guests, learn, sets] of [
  ['1 guest', 1, undefined, false],
  ['4 guests', 4, undefined, false],
  ['1 guest, templates', 1, 'off', true],
  ['4 guests, templates', 4, 'off', true],
  ['1 guest, templates, learning', 1, 'shared', true],
  ['4 guests, templates, learning', 4, 'shared', true],
  ['4 guests, templates, learning all', 4, 'all', true],
  ['4 guests, templates, QEMUs stall', 4, 'off', true],
] as const) {
  if (!name.includes(only)) continue
  const stores = ['source', 'destination'].map(side => {
    if (!sets) return []
    const own = join(folder.path, `${name} ${side}`)
    cpSync(built, own, { recursive: true })
    return ['--store', own, '--learn', learn!]
  })
  await using replay = await Replay.start({
    link: link === 'none' ? undefined : link,
    gates: guests,
    stall: name.endsWith('stall') ? { atBytes: 100e6, ms: 5000 } : undefined,
    sourceArgs: stores[0]!,
    destinationArgs: stores[1]!,
  })
  const sides = ['source', 'destination'] as const
  const before = sides.map(side => replay.use(side))
  await replay.play(GUESTS.slice(0, guests).map(streamPath))
  for (const [i, side] of sides.entries()) {
    const { peakBytes } = replay.use(side)
    const set = sets ? setBytes : 0
    table.push([
      name,
      side,
      mb(set),
      mb(POOL_BYTES),
      mb(before[i]!.residentBytes),
      mb(peakBytes),
      mb(peakBytes - set - POOL_BYTES),
    ])
  }
  process.stderr.write(`${name}: done\n`)
}
console.log(`MB, over ${link}; guests: ${GUESTS.join(', ')}`)
console.log(table.toString())
folder.remove()
