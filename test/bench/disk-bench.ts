/**
 * `node test/bench/disk-bench.ts [IMAGE]`: CPU seconds that a GB of a disk takes to encode and to expand, as WRITEs of 1 MiB
 * and of 64 KiB in random order, and as pages of RAM. All blocks are known, 90 %, or none, and then they are like known
 * ones but for a word; or they are the first 200 MB of a file, and nothing is like them. All threads, no sockets, no TLS;
 * the least of three rounds.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { random } from '../../scripts/harness/random.ts'
import { parseBatch } from '../../src/codec/batch.ts'
import { DiskConnection } from '../../src/codec/disk-connection.ts'
import { BatchExpander } from '../../src/codec/expander.ts'
import { FlowEncoder } from '../../src/codec/flow-encoder.ts'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { WORKSPACE_BYTES, Workspace } from '../../src/codec/workspace.ts'
import { ColumnUnpacker } from '../../src/compression/column-unpacker.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { assert } from '../../src/errors.ts'
import { layoutMemory, loadKernel } from '../../src/kernel/kernel.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { ChannelBuffer } from '../../src/transfer/channel-buffer.ts'
import { EVENT_LOOP } from '../../src/transfer/event-loop.ts'
import { Outbound } from '../../src/transfer/outbound.ts'
import type { Pool } from '../../src/transfer/pool.ts'
import { Turns } from '../../src/transfer/turns.ts'
import { conversation } from '../vectors/nbd/conversations.ts'
import { pagesIn } from './stream-pages.ts'
import { realPages, streamOf } from './streams.ts'

const ROUNDS = 3
const PAGE = 4096
/** Templates: 100 MB; a disk: 200 MB of them. */
const TEMPLATE_PAGES = 25_600
const DISK_PAGES = 51_200
const CHUNK = 512 * 1024
const SLOT = CHUNK + 65536
const SEED = [1, 2] as const

/** Into transmission, with extended headers. */
const OPENING = conversation([
  'S "NBDMAGIC" "IHAVEOPT" 0003',
  'C 00000003 "IHAVEOPT" 0000000b 00000000',
  'S 0003e889045565a9 0000000b 00000001 00000000',
  'C "IHAVEOPT" 00000007 00000007 00000001 "d" 0000',
  'S 0003e889045565a9 00000007 00000003 0000000c 0000 0000000040000000 0ded',
  'S 0003e889045565a9 00000007 00000001 00000000',
]).steps

/** What a mirror of a disk says, which nobody answers: 4096 requests may be under way. */
function mirrorOf(disk: Uint8Array, writeBytes: number): Uint8Array {
  const rand = random(writeBytes)
  const order = Array.from({ length: disk.length / writeBytes }, (_, i) => i)
  for (let i = order.length - 1; i > 0; i--) {
    const other = rand(i + 1)
    ;[order[i], order[other]] = [order[other]!, order[i]!]
  }
  const parts = OPENING.filter(({ from }) => from === 'client').map(({ bytes }) => bytes)
  for (const [i, at] of order.entries()) {
    const head = Buffer.alloc(32)
    head.writeUInt32BE(0x21e41c71)
    head.writeUInt16BE(1, 6)
    head.writeUInt32BE(i + 1, 12)
    head.writeBigUInt64BE(BigInt(at * writeBytes), 16)
    head.writeUInt32BE(writeBytes, 28)
    parts.push(head, disk.subarray(at * writeBytes, (at + 1) * writeBytes))
  }
  return Buffer.concat(parts)
}

function poolOf(role: 'encoder' | 'decoder', templates: Uint8Array): Pool {
  const workspaces = role === 'encoder' ? 4 : 1
  const layout = layoutMemory({
    role,
    templatePages: TEMPLATE_PAGES,
    ringPages: 16384,
    places: 1 << 18,
    ioBytes: workspaces * WORKSPACE_BYTES + (1 << 20),
    longEntries: role === 'encoder' ? 1 << 22 : 0,
  })
  const kernel = loadKernel(layout)
  kernel.bytes.set(templates, layout.templatesAt)
  if (role === 'encoder') {
    kernel.indexTemplates(0, TEMPLATE_PAGES)
    kernel.rememberTemplates(0, TEMPLATE_PAGES)
  }
  return {
    kernel,
    workspaces: Array.from(
      { length: workspaces },
      (_, i) => new Workspace(kernel.bytes, layout.io + i * WORKSPACE_BYTES),
    ),
    slots: [layout.io + workspaces * WORKSPACE_BYTES],
    slotBytes: 1 << 20,
    turns: new Turns(EVENT_LOOP),
    warm: async () => {},
    migrates: () => {},
  }
}

/** CPU seconds of this process, all threads, while `work` runs. */
async function cpu(work: () => Promise<void>): Promise<number> {
  const before = process.cpuUsage()
  await work()
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1e6
}

interface Case {
  readonly name: string
  readonly stream: Uint8Array
  readonly isDisk: boolean
}

async function encode(
  { stream, isDisk }: Case,
  pool: Pool,
  level: number,
): Promise<{ batches: Buffer[]; seconds: number }> {
  pool.kernel.reset()
  const batches: Buffer[] = []
  const fail = (error: Error): never => {
    throw error
  }
  const outbound = new Outbound(pool, SEED, (_, parts) => batches.push(Buffer.concat(parts)), fail)
  const encoder = new FlowEncoder(1, PoolRegions.of(pool.kernel.layout))
  const buffer = new ChannelBuffer(pool.kernel.bytes, pool.slots[0]!, SLOT)
  const opening = isDisk ? new DiskConnection(encoder, 'client') : undefined
  if (!opening) encoder.parser = new MainStreamParser(encoder)
  const push = (bytes: Uint8Array): void => {
    buffer.writable(bytes.length, bytes.length)!.set(bytes)
    encoder.push(pool.kernel.bytes, buffer.filled(bytes.length), bytes.length)
  }
  let at = 0
  for (const { from, bytes } of opening ? OPENING : []) {
    if (from === 'server') opening!.listen(bytes, 0, bytes.length)
    else {
      push(bytes)
      at += bytes.length
    }
  }
  const seconds = await cpu(async () => {
    while (at < stream.length) {
      const take = Math.min(CHUNK - buffer.waiting, stream.length - at)
      push(stream.subarray(at, at + take))
      at += take
      await outbound.room()
      outbound.encode({ encoder, buffer }, EFFORTS[level]!, at === stream.length)
    }
    await outbound.idle()
  })
  await outbound.close()
  return { batches, seconds }
}

async function expand(batches: readonly Buffer[], { stream }: Case, pool: Pool): Promise<number> {
  pool.kernel.reset()
  const expander = new BatchExpander(pool.kernel, ...SEED)
  expander.disks = true
  const unpacker = new ColumnUnpacker()
  const flow = new FlowExpander(1, PoolRegions.of(pool.kernel.layout))
  const [workspace, out] = [pool.workspaces[0]!, pool.slots[0]!]
  let at = 0
  let same = true
  const seconds = await cpu(async () => {
    for (const bytes of batches) {
      const batch = parseBatch([bytes])
      await unpacker.unpack(batch, workspace)
      expander.expand(flow, workspace, batch.rawLength, batch.checksum, out)
      same &&=
        Buffer.compare(
          pool.kernel.bytes.subarray(out, out + batch.rawLength),
          stream.subarray(at, at + batch.rawLength),
        ) === 0
      at += batch.rawLength
    }
  })
  unpacker.close()
  assert(same && at === stream.length, 'the expander gave other bytes')
  return seconds
}

const templates = realPages(TEMPLATE_PAGES)
const pools = { encoder: poolOf('encoder', templates), decoder: poolOf('decoder', templates) }
function beginningOf(file: string): Uint8Array {
  const bytes = new Uint8Array(DISK_PAGES * PAGE)
  const descriptor = openSync(file, 'r')
  readSync(descriptor, bytes)
  closeSync(descriptor)
  return bytes
}

console.log('known | as | effort | encode s/GB | expand s/GB | % of the bytes')
const image = process.argv[2]
for (const share of image ? [image] : [1, 0.9, 0]) {
  const ram = typeof share === 'string' ? undefined : streamOf(templates, share, DISK_PAGES)
  const disk = ram ? pagesIn(ram, DISK_PAGES) : beginningOf(image!)
  const cases: Case[] = [
    ...(ram ? [{ name: 'RAM', stream: ram, isDisk: false }] : []),
    { name: 'WRITE 1 MiB', stream: mirrorOf(disk, 1 << 20), isDisk: true },
    { name: 'WRITE 64 KiB', stream: mirrorOf(disk, 1 << 16), isDisk: true },
  ]
  for (const level of [0, 2]) {
    for (const one of cases) {
      let [encoded, expanded, bytes] = [Infinity, Infinity, 0]
      for (let round = 0; round < ROUNDS; round++) {
        const { batches, seconds } = await encode(one, pools.encoder, level)
        encoded = Math.min(encoded, seconds)
        expanded = Math.min(expanded, await expand(batches, one, pools.decoder))
        bytes = batches.reduce((sum, { length }) => sum + length, 0)
      }
      const perGB = (seconds: number) => ((seconds * 1e9) / one.stream.length).toFixed(2)
      const left = ((100 * bytes) / one.stream.length).toFixed(2)
      const known = typeof share === 'string' ? share : `${100 * share} %`
      console.log(`${known} | ${one.name} | ${level} | ${perGB(encoded)} | ${perGB(expanded)} | ${left}`)
    }
  }
}
