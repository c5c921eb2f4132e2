/**
 * CPU of one stream by effort and stage, in a process that has done it before: the child of ladder.ts.
 *
 *   ladder-warm.ts TREE STREAM EFFORTS ROUNDS     TREE: the checkout whose src is measured; prints a WarmCost[] as JSON. Effort 0.5 is the one that
 * `auto` alone takes: docs/adr/0004-compression.md
 *
 * Each effort once in each round, encoded and decoded in memory; the first round warms up and does not count. Stages are
 * the main thread's CPU time within a call; what is beside them on that thread, and on all others, is told too.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import type * as ArenaPool from '../../src/transfer/pool.ts'
import { median } from '../harness/median.ts'

/** CPU seconds, medians over the rounds. */
export interface WarmCost {
  readonly effort: number
  readonly rawBytes: number
  readonly bytes: number
  readonly encode: Readonly<Record<'parse' | 'match' | 'pack' | 'mainRest' | 'otherThreads' | 'all', number>>
  readonly decode: Readonly<Record<'unpack' | 'expand' | 'mainRest' | 'otherThreads' | 'all', number>>
}

const CHUNK = 512 * 1024
const RING_PAGES = 65536
const SEED = [1, 2] as const

const [tree, stream, efforts, rounds] = process.argv.slice(2)

async function load<T>(path: string): Promise<T> {
  return (await import(pathToFileURL(join(tree!, 'src', path)).href)) as T
}

const { FlowEncoder } = await load<typeof import('../../src/codec/flow-encoder.ts')>('codec/flow-encoder.ts')
const { FlowExpander } = await load<typeof import('../../src/codec/flow-expander.ts')>('codec/flow-expander.ts')
const { BatchEncoder } = await load<typeof import('../../src/codec/encoder.ts')>('codec/encoder.ts')
const { BatchExpander } = await load<typeof import('../../src/codec/expander.ts')>('codec/expander.ts')
const { PoolRegions } = await load<typeof import('../../src/codec/places.ts')>('codec/places.ts')
const { ColumnPacker } =
  await load<typeof import('../../src/compression/column-packer.ts')>('compression/column-packer.ts')
const { ColumnUnpacker } = await load<typeof import('../../src/compression/column-unpacker.ts')>(
  'compression/column-unpacker.ts',
)
const { EFFORTS, LZ4 } = await load<typeof import('../../src/compression/effort.ts')>('compression/effort.ts')
const { MainStreamParser } = await load<typeof import('../../src/qemu/main-stream.ts')>('qemu/main-stream.ts')
const { ChannelBuffer } =
  await load<typeof import('../../src/transfer/channel-buffer.ts')>('transfer/channel-buffer.ts')
const { Inbound } = await load<typeof import('../../src/transfer/inbound.ts')>('transfer/inbound.ts')
const { Outbound } = await load<typeof import('../../src/transfer/outbound.ts')>('transfer/outbound.ts')
const { openPool } = await load<typeof ArenaPool>('transfer/pool.ts')

const seconds = ({ user, system }: NodeJS.CpuUsage): number => (user + system) / 1e6

/** CPU seconds of the main thread within calls, by stage. */
const spent = new Map<string, number>()

/** Has the main thread's time in this method counted. */
function timed(stage: string, prototype: object, method: string): void {
  const methods = prototype as Record<string, (...args: unknown[]) => unknown>
  const inner = methods[method]!
  methods[method] = function (this: unknown, ...args: unknown[]): unknown {
    const before = process.threadCpuUsage()
    try {
      return inner.apply(this, args)
    } finally {
      spent.set(stage, (spent.get(stage) ?? 0) + seconds(process.threadCpuUsage(before)))
    }
  }
}

timed('parse', FlowEncoder.prototype, 'push')
timed('match', BatchEncoder.prototype, 'encode')
timed('pack', ColumnPacker.prototype, 'pack')
timed('unpack', ColumnUnpacker.prototype, 'unpack')
timed('expand', BatchExpander.prototype, 'expand')

/** CPU of `work`: of the stages, of the rest of the main thread, of the other threads. */
async function cost(stages: readonly string[], work: () => Promise<void>): Promise<Record<string, number>> {
  spent.clear()
  const before = process.cpuUsage()
  const mainBefore = process.threadCpuUsage()
  await work()
  const main = seconds(process.threadCpuUsage(mainBefore))
  const all = seconds(process.cpuUsage(before))
  const got: Record<string, number> = {}
  let inStages = 0
  for (const stage of stages) {
    got[stage] = spent.get(stage) ?? 0
    inStages += got[stage]
  }
  return { ...got, mainRest: main - inStages, otherThreads: all - main, all }
}

const raw = readFileSync(stream!)
const request = { sets: [], store: undefined, ringPages: RING_PAGES, places: 1 << 20, workspaces: 4 }
const encoders = await openPool({
  ...request,
  role: 'encoder',
  slots: 1,
  slotBytes: CHUNK + 65536,
  longMatch: true,
})
await encoders.ready
await encoders.warm()
const decoders = await openPool({ ...request, role: 'decoder', slots: 8, slotBytes: 1 << 20, longMatch: false })
await decoders.ready

const fail = (error: Error): never => {
  throw error
}

/** What is encoded, one batch behind the other: nothing of the measurement is garbage. */
const encoded = Buffer.alloc(raw.length + (raw.length >> 4))

/** Resolves when threads that were started have nothing more to do. */
async function rest(): Promise<void> {
  for (let before = Number.NEGATIVE_INFINITY, now = 0; now - before > 0.002; ) {
    before = seconds(process.cpuUsage())
    await setTimeout(100)
    now = seconds(process.cpuUsage())
  }
}

async function encode(level: number): Promise<{ batches: Buffer[]; cost: Record<string, number> }> {
  encoders.kernel.reset()
  const batches: Buffer[] = []
  let encodedBytes = 0
  const take = (_channel: unknown, parts: readonly Uint8Array[], _report: unknown, release?: () => void): void => {
    const start = encodedBytes
    for (const part of parts) {
      encoded.set(part, encodedBytes)
      encodedBytes += part.length
    }
    batches.push(encoded.subarray(start, encodedBytes))
    release?.() // as if the peer had acknowledged it
  }
  const outbound = new Outbound(encoders, SEED, take, fail)
  outbound.warm()
  await rest()
  const memory = encoders.kernel.bytes
  const encoder = new FlowEncoder(1, PoolRegions.of(encoders.kernel.layout))
  encoder.parser = new MainStreamParser(encoder)
  const buffer = new ChannelBuffer(memory, encoders.slots[0]!, encoders.slotBytes)
  const used = await cost(['parse', 'match', 'pack'], async () => {
    for (let at = 0; at < raw.length; ) {
      const take = Math.min(CHUNK - buffer.waiting, raw.length - at)
      raw.copy(buffer.writable(take, take)!, 0, at, at + take) // stands for the socket's read
      encoder.push(memory, buffer.filled(take), take)
      at += take
      await outbound.room()
      outbound.encode({ encoder, buffer }, level === LZ4.level ? LZ4 : EFFORTS[level]!, at === raw.length)
    }
    await outbound.idle()
  })
  await outbound.close()
  return { batches, cost: used }
}

async function decode(batches: readonly Buffer[], isCompared: boolean): Promise<Record<string, number>> {
  decoders.kernel.reset()
  const inbound = new Inbound(decoders, SEED, fail)
  let at = 0
  const channel = {
    expander: new FlowExpander(1, PoolRegions.of(decoders.kernel.layout)),
    expanded(bytes: Uint8Array, release: () => void): void {
      if (isCompared && Buffer.compare(bytes, raw.subarray(at, at + bytes.length)) !== 0)
        throw new Error('other bytes came out')
      at += bytes.length
      release()
    },
  }
  const used = await cost(['unpack', 'expand'], async () => {
    for (const batch of batches) {
      inbound.push(channel, [batch])
      await inbound.idle()
    }
  })
  inbound.close()
  if (at !== raw.length) throw new Error(`${at} bytes came out`)
  return used
}

const levels = efforts!.split(',').map(Number)
const samples = new Map(
  levels.map(level => [
    level,
    { bytes: 0, encode: [] as Record<string, number>[], decode: [] as Record<string, number>[] },
  ]),
)
for (let round = 0; round <= Number(rounds); round++) {
  for (const level of levels) {
    const { batches, cost: encoding } = await encode(level)
    const decoding = await decode(batches, round === 0)
    if (round === 0) continue
    const sample = samples.get(level)!
    sample.bytes = batches.reduce((sum, batch) => sum + batch.length, 0)
    sample.encode.push(encoding)
    sample.decode.push(decoding)
  }
}

function medians(costs: readonly Record<string, number>[]): Record<string, number> {
  const keys = Object.keys(costs[0]!)
  return Object.fromEntries(keys.map(key => [key, Number(median(costs.map(one => one[key]!)).toFixed(4))]))
}

const result = [...samples].map(([effort, { bytes, encode: encoding, decode: decoding }]) => ({
  effort,
  rawBytes: raw.length,
  bytes,
  encode: medians(encoding),
  decode: medians(decoding),
}))
process.stdout.write(`${JSON.stringify(result)}\n`)
await encoders.close()
await decoders.close()
