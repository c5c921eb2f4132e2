/**
 * `make bench`: encode and decode of one stream in which all pages, 90 % or none are in a template set, beside lz4 and
 * zstd of the same bytes. Rates are bytes of the channel per second of CPU time of this process, all threads; medians of
 * five rounds, every variant once in each round. Give a recorded stream to bench that instead: `bench.ts FILE STORE`.
 */

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import Table from 'cli-table3'
import { median } from '../../scripts/harness/median.ts'
import { FlowEncoder } from '../../src/codec/flow-encoder.ts'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { WORKSPACE_BYTES, Workspace } from '../../src/codec/workspace.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { assert } from '../../src/errors.ts'
import { type Kernel, layoutMemory, loadKernel } from '../../src/kernel/kernel.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { ChannelBuffer } from '../../src/transfer/channel-buffer.ts'
import { EVENT_LOOP } from '../../src/transfer/event-loop.ts'
import { Inbound } from '../../src/transfer/inbound.ts'
import { Outbound } from '../../src/transfer/outbound.ts'
import { openPool, type Pool } from '../../src/transfer/pool.ts'
import { Turns } from '../../src/transfer/turns.ts'
import { realPages, streamOf } from './streams.ts'

const ROUNDS = 5
/** Templates: 100 MB; stream: 200 MB of them in random order, so that every page and template is cold. */
const TEMPLATE_PAGES = 25_600
const STREAM_PAGES = 51_200
const CHUNK = 512 * 1024
const SLOT = CHUNK + 65536

function poolOf(role: 'encoder' | 'decoder', templates: Uint8Array): Pool {
  const workspaces = 4
  const slots = role === 'encoder' ? 1 : 8
  const slotBytes = role === 'encoder' ? SLOT : 1 << 20
  const layout = layoutMemory({
    role,
    templatePages: TEMPLATE_PAGES,
    ringPages: 16384,
    places: 1 << 18,
    ioBytes: workspaces * WORKSPACE_BYTES + slots * slotBytes,
    longEntries: role === 'encoder' ? 1 << 22 : 0,
  })
  const kernel: Kernel = loadKernel(layout)
  kernel.bytes.set(templates, layout.templatesAt)
  if (role === 'encoder') {
    kernel.indexTemplates(0, TEMPLATE_PAGES)
    kernel.rememberTemplates(0, TEMPLATE_PAGES)
  }
  let at = layout.io
  const spaces: Workspace[] = []
  for (let i = 0; i < workspaces; i++, at += WORKSPACE_BYTES) spaces.push(new Workspace(kernel.bytes, at))
  return {
    kernel,
    workspaces: spaces,
    slots: Array.from({ length: slots }, (_, i) => at + i * slotBytes),
    slotBytes,
    turns: new Turns(EVENT_LOOP),
    warm: async () => {},
    migrates: () => {},
  }
}

const SEED = [1, 2] as const

interface Encoded {
  readonly batches: Uint8Array[]
  readonly bytes: number
  readonly cpuSeconds: number
  /** Of these, for bringing the stream into the pool's memory. */
  readonly copySeconds: number
}

/** CPU seconds of this process, all threads, while `work` runs. */
async function cpu(work: () => Promise<void>): Promise<number> {
  const before = process.cpuUsage()
  await work()
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1e6
}

async function encode(stream: Uint8Array, pool: Pool, level: number): Promise<Encoded> {
  pool.kernel.reset()
  const batches: Uint8Array[] = []
  let bytes = 0
  const outbound = new Outbound(
    pool,
    SEED,
    (_channel, parts, { packedLength }) => {
      batches.push(Buffer.concat(parts))
      bytes += packedLength
    },
    error => {
      throw error
    },
  )
  const memory = pool.kernel.bytes
  const channelOf = (migration: number) => ({
    encoder: new FlowEncoder(migration, PoolRegions.of(pool.kernel.layout)),
    buffer: new ChannelBuffer(memory, pool.slots[0]!, CHUNK),
  })
  const channel = channelOf(1)
  const { encoder, buffer } = channel
  encoder.parser = new MainStreamParser(encoder)
  // the packer's thread starts before the clock does: a proxy starts it once a session
  if (EFFORTS[level]!.method === 'lz4') {
    const warm = channelOf(2)
    warm.buffer.writable(CHUNK)!.set(stream.subarray(stream.length - CHUNK))
    warm.encoder.push(memory, warm.buffer.filled(CHUNK), CHUNK)
    outbound.encode(warm, EFFORTS[level]!, true)
    await outbound.idle()
    pool.kernel.reset()
    batches.length = 0
    bytes = 0
  }
  let copySeconds = 0
  const cpuSeconds = await cpu(async () => {
    for (let at = 0; at < stream.length; ) {
      const take = Math.min(CHUNK - buffer.waiting, stream.length - at)
      const room = buffer.writable(take, take)!
      // stands for the read of the socket, which brings the bytes here; measured by itself, where it happens
      copySeconds += await cpu(async () => room.set(stream.subarray(at, at + take)))
      encoder.push(memory, buffer.filled(take), take)
      at += take
      await outbound.room()
      outbound.encode(channel, EFFORTS[level]!, at === stream.length)
    }
    await outbound.idle()
  })
  await outbound.close()
  return { batches, bytes, cpuSeconds, copySeconds }
}

async function decode(encoded: Encoded, pool: Pool, stream: Uint8Array, compare: boolean): Promise<number> {
  pool.kernel.reset()
  let at = 0
  const inbound = new Inbound(pool, SEED, error => {
    throw error
  })
  const flow = {
    expander: new FlowExpander(1, PoolRegions.of(pool.kernel.layout)),
    expanded(view: Uint8Array, release: () => void) {
      if (compare) assert(Buffer.compare(view, stream.subarray(at, at + view.length)) === 0, 'decoded bytes differ')
      at += view.length
      release()
    },
  }
  const seconds = await cpu(async () => {
    for (const batch of encoded.batches) {
      inbound.push(flow, [batch])
      await inbound.idle()
    }
    await inbound.idle()
  })
  assert(at === stream.length, 'the decoder gave another number of bytes')
  inbound.close()
  // what zstd held is given back in a later turn, which is not to be the next decoding's
  await setImmediate()
  return seconds
}

/** CPU seconds of a compressor's own command on a file. undefined where it is not installed. */
function peer(command: string, file: string): { seconds: number; bytes: number } | undefined {
  const out = `${file}.out`
  const run = spawnSync(
    'bash',
    ['-c', `TIMEFORMAT='%U %S'; time ${command} -c "$1" > "$2" 2>/dev/null`, 'bash', file, out],
    {
      encoding: 'utf8',
    },
  )
  const times = /([\d.]+) ([\d.]+)\s*$/.exec(run.stderr)
  const bytes = statSync(out, { throwIfNoEntry: false })?.size ?? 0
  if (!times || bytes === 0) return undefined
  return { seconds: Number(times[1]) + Number(times[2]), bytes }
}

async function main(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-bench-'))
  try {
    const cases: { name: string; stream: Uint8Array; file: string }[] = []
    let encoderPool: Pool
    let decoderPool: Pool
    const [file, storeFolder] = process.argv.slice(2)
    if (file) {
      const store = storeFolder === undefined ? undefined : new TemplateStore(storeFolder)
      const request = {
        sets: store ? await store.digests() : [],
        store,
        ringPages: 65536,
        places: 1 << 20,
        workspaces: 4,
      }
      encoderPool = await openPool({ ...request, role: 'encoder', slots: 1, slotBytes: SLOT, longMatch: true })
      await encoderPool.warm()
      decoderPool = await openPool({ ...request, role: 'decoder', slots: 8, slotBytes: 1 << 20, longMatch: false })
      cases.push({ name: file.split('/').at(-1)!, stream: readFileSync(file), file })
    } else {
      process.stderr.write('making streams of real pages: 200 MB each\n')
      const templates = realPages(TEMPLATE_PAGES)
      encoderPool = poolOf('encoder', templates)
      decoderPool = poolOf('decoder', templates)
      for (const [name, share] of [
        ['all pages match', 1],
        ['90 % match', 0.9],
        ['none match', 0],
      ] as const) {
        const stream = streamOf(templates, share, STREAM_PAGES)
        const path = join(folder, `${share}.stream`)
        writeFileSync(path, stream)
        cases.push({ name, stream, file: path })
      }
    }
    const levels = [0, 1, 2, 3]
    const peers = ['lz4 -1', 'zstd -1', 'zstd -3']
    const rows = new Map<string, { encode: number[]; codec: number[]; decode: number[]; bytes: number; raw: number }>()
    const row = (name: string, raw: number) => {
      let found = rows.get(name)
      if (!found) {
        found = { encode: [], codec: [], decode: [], bytes: 0, raw }
        rows.set(name, found)
      }
      return found
    }
    for (let round = 0; round < ROUNDS; round++) {
      process.stderr.write(`round ${round + 1} of ${ROUNDS}\n`)
      for (const { name, stream, file: path } of cases) {
        for (const level of levels) {
          const encoded = await encode(stream, encoderPool, level)
          const seconds = await decode(encoded, decoderPool, stream, round === 0)
          const r = row(`${name}\tpageferry, effort ${level} (${EFFORTS[level]!.name})`, stream.length)
          r.encode.push(encoded.cpuSeconds)
          r.codec.push(encoded.cpuSeconds - encoded.copySeconds)
          if (round > 0) r.decode.push(seconds) // the first round compares every byte, too
          r.bytes = encoded.bytes
        }
        for (const command of peers) {
          const got = peer(command, path)
          if (!got) continue
          const r = row(`${name}\t${command}`, stream.length)
          r.encode.push(got.seconds)
          r.bytes = got.bytes
        }
      }
    }
    const table = new Table({
      head: ['stream', 'by', 'encode MB/s', 'without copy-in', 'decode MB/s', '% of the bytes'],
      colAligns: ['left', 'left', 'right', 'right', 'right', 'right'],
      style: { head: [], border: [], compact: true },
    })
    for (const [name, r] of rows) {
      const rate = (seconds: number[]): string =>
        seconds.length === 0 ? '' : (r.raw / 1e6 / median(seconds)).toFixed(0)
      table.push([
        ...name.split('\t'),
        rate(r.encode),
        rate(r.codec),
        rate(r.decode),
        ((100 * r.bytes) / r.raw).toFixed(1),
      ])
    }
    process.stdout.write(
      `${table.toString()}\nMB of the channel per second of CPU time, all threads; medians of ${ROUNDS}\n`,
    )
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

await main()
