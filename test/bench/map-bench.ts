/**
 * What the map of a guest's memory costs a source proxy: a stream parsed and encoded at effort 0, the least that a page can
 * cost, without a map, with one, and with one that is kept up twenty times. CPU time of the thread that does it, by turns,
 * medians; packing and sockets, which a migration also pays for, are left out.
 *
 *   node test/bench/map-bench.ts [ROUNDS] [FILE...]     FILE: main streams, else some are made
 */
import { readFileSync } from 'node:fs'
import { median } from '../../scripts/harness/median.ts'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { BatchEncoder } from '../../src/codec/encoder.ts'
import { FlowEncoder } from '../../src/codec/flow-encoder.ts'
import { MemoryMap } from '../../src/codec/memory-map.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import type { RecordList } from '../../src/codec/records.ts'
import { BlockTable } from '../../src/qemu/block-table.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { ChannelBuffer } from '../../src/transfer/channel-buffer.ts'
import type { Pool } from '../../src/transfer/pool.ts'
import { poolOf, SIMD, SLOT_BYTES } from '../codec/harness.ts'
import { realPages, streamOf } from './streams.ts'

const TIMES = 20
/** Of a read of the socket. */
const CHUNK = 256 * 1024

/** Keeps the map up more often than once. */
class Often extends FlowEncoder {
  override finished(records: RecordList, kinds: Uint8Array): void {
    const again = this as unknown as { enter(map: MemoryMap, records: RecordList, kinds: Uint8Array): void }
    for (let i = 1; i < TIMES; i++) again.enter(this.map!, records, kinds)
    super.finished(records, kinds)
  }
}

type Maps = 'none' | 'one' | 'twenty'

/** Microseconds of CPU time. */
function encode(pool: Pool, stream: Uint8Array, maps: Maps): number {
  const { kernel } = pool
  kernel.reset()
  const blocks = new BlockTable()
  const regions = PoolRegions.of(kernel.layout)
  const flow = maps === 'twenty' ? new Often(1, regions) : new FlowEncoder(1, regions)
  flow.parser = new MainStreamParser(flow, { blocks })
  if (maps !== 'none') flow.map = new MemoryMap(blocks)
  const encoder = new BatchEncoder(kernel, 1, 2)
  const buffer = new ChannelBuffer(kernel.bytes, pool.slots[0]!, SLOT_BYTES)
  const before = process.threadCpuUsage()
  for (let at = 0; at < stream.length; ) {
    const take = Math.min(CHUNK, stream.length - at)
    buffer.writable(take, take)!.set(stream.subarray(at, at + take))
    flow.push(kernel.bytes, buffer.filled(take), take)
    at += take
    const length = at === stream.length ? flow.waiting : flow.ready
    if (length === 0) continue
    const loan = buffer.lend(length)
    flow.stats.add(encoder.encode(flow, loan, pool.workspaces[0]!, 0))
    loan.release()
  }
  const { user, system } = process.threadCpuUsage(before)
  return user + system
}

/** A guest of which one page in ten is not empty. */
function emptyStream(pages: number, filled: Uint8Array): Uint8Array {
  const emitter = new StreamEmitter().header('pc').ramStart(2, [{ idstr: 'pc.ram', lengthBytes: pages * 4096 }])
  emitter.eos().footer(2).sectionPart(2)
  for (let i = 0; i < pages; i++) {
    const name = i === 0 ? 'pc.ram' : undefined
    if (i % 10 === 3) emitter.page(i * 4096, filled.subarray((i * 4096) % filled.length).subarray(0, 4096), name)
    else emitter.zero(i * 4096, name)
  }
  return emitter.eos().footer(2).sectionEnd(2).eos().footer(2).eof().bytes()
}

const [rounds = '41', ...files] = process.argv.slice(2)
const templatePages = realPages(8192)
const templates = Array.from({ length: 8192 }, (_, i) => templatePages.subarray(i * 4096, (i + 1) * 4096))
const pool = poolOf('encoder', SIMD, { templates, ring: 16_384, places: 1 << 18 })
const streams: [string, Uint8Array][] =
  files.length > 0
    ? files.map(path => [path.split('/').at(-1)!, readFileSync(path)])
    : [
        ['all pages match', streamOf(templatePages, 1, 16_384)],
        ['none match', streamOf(templatePages, 0, 16_384)],
        ['nine of ten are empty', emptyStream(163_840, templatePages)],
      ]
const VARIANTS: readonly Maps[] = ['none', 'one', 'twenty']
for (const [name, stream] of streams) {
  const times: Record<Maps, number[]> = { none: [], one: [], twenty: [] }
  for (const maps of VARIANTS) encode(pool, stream, maps) // compiled before it is timed
  for (let round = 0; round < Number(rounds); round++)
    for (let i = 0; i < VARIANTS.length; i++) {
      const maps = VARIANTS[(round + i) % VARIANTS.length]!
      times[maps].push(encode(pool, stream, maps))
    }
  const [none, one, twenty] = VARIANTS.map(maps => median(times[maps])) as [number, number, number]
  const share = (of: number): string => `${((100 * of) / none).toFixed(2)} %`
  console.log(
    `${name}: ${(none / 1000).toFixed(1)} ms without, one map ${share(one - none)} more, ` +
      `twenty ${share(twenty - none)}: ${share((twenty - none) / TIMES)} each`,
  )
}
