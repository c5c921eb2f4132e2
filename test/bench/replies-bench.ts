/**
 * `node test/bench/replies-bench.ts IMAGE [GOLDEN]`: bytes that are left of an image which is read through the way back of a
 * disk, by pages of its ring, with and without long matches, with and without a set of another image's blocks; then of
 * places that are read again and again, where one block in sixteen is another each time. docs/adr/0021-disk-replies.md.
 * Encoding alone, effort 2, CPU seconds of all threads; no sockets, no TLS.
 */
import { closeSync, openSync, readSync, statSync } from 'node:fs'
import { random } from '../../scripts/harness/random.ts'
import { DiskConnection } from '../../src/codec/disk-connection.ts'
import { FlowEncoder } from '../../src/codec/flow-encoder.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { WORKSPACE_BYTES, Workspace } from '../../src/codec/workspace.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { layoutMemory, loadKernel, longEntriesFor } from '../../src/kernel/kernel.ts'
import { ChannelBuffer } from '../../src/transfer/channel-buffer.ts'
import { EVENT_LOOP } from '../../src/transfer/event-loop.ts'
import { Outbound } from '../../src/transfer/outbound.ts'
import type { Pool } from '../../src/transfer/pool.ts'
import { Turns } from '../../src/transfer/turns.ts'
import { conversation } from '../vectors/nbd/conversations.ts'

const PAGE = 4096
const CHUNK = 256 * 1024
const SLOT = 2 * CHUNK + 65536
const IMAGE_BYTES = 400 << 20
const GOLDEN_BYTES = 640 << 20
const READ = 256 * 1024

/** Into transmission, with chunks. */
const OPENING = conversation([
  'S "NBDMAGIC" "IHAVEOPT" 0003',
  'C 00000003 "IHAVEOPT" 00000008 00000000',
  'S 0003e889045565a9 00000008 00000001 00000000',
  'C "IHAVEOPT" 00000007 00000007 00000001 "d" 0000',
  'S 0003e889045565a9 00000007 00000003 0000000c 0000 0000000040000000 0ded',
  'S 0003e889045565a9 00000007 00000001 00000000',
]).steps

interface Read {
  readonly offset: number
  readonly data: Uint8Array
}

function beginningOf(file: string, most: number): Uint8Array {
  const bytes = new Uint8Array(Math.min(most, statSync(file).size))
  const descriptor = openSync(file, 'r')
  readSync(descriptor, bytes)
  closeSync(descriptor)
  return bytes
}

const isZero = (page: Uint8Array): boolean => page.every(byte => byte === 0)

/** Its blocks, each once. */
function blocksOf(image: Uint8Array): Uint8Array[] {
  const seen = new Set<string>()
  const blocks: Uint8Array[] = []
  for (let at = 0; at + PAGE <= image.length; at += PAGE) {
    const page = image.subarray(at, at + PAGE)
    const key = Buffer.from(page).toString('latin1', 0, 64) + Buffer.from(page).toString('latin1', 2000, 2100)
    if (seen.has(key) || isZero(page)) continue
    seen.add(key)
    blocks.push(page)
  }
  return blocks
}

function poolOf(blocks: readonly Uint8Array[], ringPages: number, longMatch: boolean): Pool {
  const layout = layoutMemory({
    role: 'encoder',
    templatePages: blocks.length,
    ringPages,
    places: 65536,
    ioBytes: 4 * WORKSPACE_BYTES + SLOT,
    longEntries: longMatch ? longEntriesFor(blocks.length + ringPages) : 0,
  })
  const kernel = loadKernel(layout)
  for (const [i, block] of blocks.entries()) kernel.bytes.set(block, layout.templatesAt + i * PAGE)
  kernel.indexTemplates(0, blocks.length)
  if (longMatch) kernel.rememberTemplates(0, blocks.length)
  return {
    kernel,
    workspaces: Array.from({ length: 4 }, (_, i) => new Workspace(kernel.bytes, layout.io + i * WORKSPACE_BYTES)),
    slots: [layout.io + 4 * WORKSPACE_BYTES],
    slotBytes: SLOT,
    turns: new Turns(EVENT_LOOP),
    warm: async () => {},
    migrates: () => {},
  }
}

async function encode(reads: Iterable<Read>, pool: Pool): Promise<{ raw: number; left: number; seconds: number }> {
  let left = 0
  const fail = (error: Error): never => {
    throw error
  }
  const outbound = new Outbound(pool, [1, 2], (_, _parts, { packedLength }) => (left += packedLength), fail)
  const encoder = new FlowEncoder(1, PoolRegions.of(pool.kernel.layout))
  const buffer = new ChannelBuffer(pool.kernel.bytes, pool.slots[0]!, SLOT)
  const connection = new DiskConnection(encoder, 'server')
  const push = (bytes: Uint8Array): void => {
    buffer.writable(bytes.length, bytes.length)!.set(bytes)
    encoder.push(pool.kernel.bytes, buffer.filled(bytes.length), bytes.length)
  }
  for (const { from, bytes } of OPENING) {
    if (from === 'server') push(bytes)
    else connection.listen(bytes, 0, bytes.length)
  }
  let raw = 0
  let cookie = 0
  const before = process.cpuUsage()
  for (const { offset, data } of reads) {
    const asked = Buffer.alloc(28)
    asked.writeUInt32BE(0x25609513)
    asked.writeUInt32BE(++cookie, 12)
    asked.writeBigUInt64BE(BigInt(offset), 16)
    asked.writeUInt32BE(data.length, 24)
    connection.listen(asked, 0, 28)
    const head = Buffer.alloc(28)
    head.writeUInt32BE(0x668e33ef)
    head.writeUInt32BE(0x00010001, 4)
    head.writeUInt32BE(cookie, 12)
    head.writeUInt32BE(data.length + 8, 16)
    head.writeBigUInt64BE(BigInt(offset), 20)
    push(head)
    push(data)
    raw += 28 + data.length
    if (encoder.ready < CHUNK) continue
    await outbound.room()
    outbound.encode({ encoder, buffer }, EFFORTS[2]!, false)
  }
  outbound.encode({ encoder, buffer }, EFFORTS[2]!, true)
  await outbound.idle()
  const { user, system } = process.cpuUsage(before)
  await outbound.close()
  return { raw, left, seconds: (user + system) / 1e6 }
}

/** The image once, from its beginning; holes are not read, as clients do. */
function* once(image: Uint8Array): Generator<Read> {
  for (let offset = 0; offset < image.length; offset += READ) {
    const data = image.subarray(offset, offset + READ)
    if (!isZero(data)) yield { offset, data }
  }
}

/** Places of 64 KiB over and over, in each of which one block has been written since. */
function* again(image: Uint8Array, places: number, times: number): Generator<Read> {
  const rand = random(places)
  const disk = image.slice(0, places * 65536)
  for (let round = 0; round <= times; round++) {
    for (let place = 0; place < places; place++) {
      const offset = place * 65536
      if (round > 0) {
        const at = offset + rand(16) * PAGE
        const from = rand(image.length / PAGE) * PAGE
        disk.set(image.subarray(from, from + PAGE), at)
      }
      yield { offset, data: disk.slice(offset, offset + 65536) }
    }
  }
}

const [file, goldenFile] = process.argv.slice(2)
const image = beginningOf(file!, IMAGE_BYTES)
const golden = goldenFile ? blocksOf(beginningOf(goldenFile, GOLDEN_BYTES)) : []
console.log(`set of ${golden.length} blocks`)
console.log('what | set | ring pages | long matches | % of the bytes | encode s/GB')
const figures = async (
  name: string,
  reads: Iterable<Read>,
  set: readonly Uint8Array[],
  ring: number,
  long: boolean,
) => {
  const { raw, left, seconds } = await encode(reads, poolOf(set, ring, long))
  const share = ((100 * left) / raw).toFixed(2)
  console.log(`${name} | ${set.length} | ${ring} | ${long} | ${share} | ${((seconds * 1e9) / raw).toFixed(2)}`)
}
for (const set of goldenFile ? [golden, []] : [[]]) {
  for (const ring of [0, 1024, 4096, 16384, 65536]) await figures('once', once(image), set, ring, false)
  for (const ring of [0, 4096, 65536]) await figures('once', once(image), set, ring, true)
}
for (const places of [100, 250, 1000]) {
  for (const ring of [0, 1024, 4096, 16384])
    await figures(`${places} places, 5 times again`, again(image, places, 5), golden, ring, false)
}
