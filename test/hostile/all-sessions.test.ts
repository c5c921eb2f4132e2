/**
 * One identity with as many sessions as it may have, each of which takes all that it can: windows of its zstd streams, places
 * and ring, batches that wait, flows to a target that reads nothing. It costs what docs/security.md says, and nobody else.
 */
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { constants, createZstdCompress } from 'node:zlib'
import t from 'tap'
import { METHOD } from '../../src/codec/wire.ts'
import { BATCHES_WAITING_UNPAID_BYTES, MEMORY_BUDGET_BYTES, SESSIONS_MAX } from '../../src/limits.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { handBatch } from '../codec/hand-batch.ts'
import { checksum } from '../codec/second-decoder.ts'
import { begun, CHANNEL_START, Credit, greedyTarget, plainBatch, sendBatch } from './greedy.ts'
import { Siege, unharmed } from './harness.ts'
import { type Peer, usualHello } from './peer.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20
const PAGE = 4096
const PAGES_PER_BATCH = 15
const SEED = BigInt(`0x${usualHello().seed}`)
const POOL_MIB = 16

/** Pages of one zstd stream with a window of 8 MiB, in pieces of a batch each: more than the window in all. */
async function streamed(): Promise<{ rawLength: number; payload: Buffer }[]> {
  const stream = createZstdCompress({
    params: { [constants.ZSTD_c_windowLog]: 23, [constants.ZSTD_c_compressionLevel]: 1 },
  })
  const parts: Buffer[] = []
  stream.on('data', part => parts.push(part))
  const batches: { rawLength: number; payload: Buffer }[] = []
  for (let first = 0; first * PAGE < 9 * MIB; first += PAGES_PER_BATCH) {
    const pages = Buffer.alloc(PAGES_PER_BATCH * PAGE, 0x55)
    const records = Array.from({ length: PAGES_PER_BATCH }, (_, i) => {
      pages.writeUInt32BE(first + i, i * PAGE)
      const head = Buffer.alloc(8)
      head.writeBigUInt64BE(BigInt((first + i) * PAGE + 0x28))
      return Buffer.concat([head, pages.subarray(i * PAGE, (i + 1) * PAGE)])
    })
    stream.write(pages)
    await new Promise<void>(done => stream.flush(done))
    const packed = Buffer.concat(parts.splice(0))
    const gives = Buffer.concat(records)
    batches.push({
      rawLength: gives.length,
      payload: handBatch(gives.length, checksum(gives, SEED), [
        { column: 0, method: 0, rawLength: 1, packed: Buffer.of(0x40 | PAGES_PER_BATCH) },
        {
          ...{ column: 3, method: first === 0 ? METHOD.ZSTD_FRESH : METHOD.ZSTD },
          ...{ rawLength: pages.length, packed },
        },
      ]),
    })
  }
  stream.destroy()
  return batches
}

/** A target that takes connections and reads nothing. */
async function hole(): Promise<{ address: string } & AsyncDisposable> {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-hole-'))
  const sockets: net.Socket[] = []
  const server = net.createServer({ pauseOnConnect: true }, socket => {
    sockets.push(socket.on('error', () => {}))
  })
  const path = join(folder, 'hole.sock')
  await once(server.listen(path), 'listening')
  return {
    address: `unix:${path}`,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      server.close()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** Batches that give nothing that they pay for, until the proxy ends the session or has taken them. */
async function floodWaiting(peer: Peer): Promise<void> {
  const columns = Array.from({ length: 10 }, (_, column) => ({ column, method: 0, rawLength: 1026 }))
  const long = handBatch(
    1,
    0n,
    columns.map(column => ({ ...column, packed: Buffer.alloc(1026) })),
  )
  for (let bytes = 0; bytes < 8 * MIB && !peer.isClosed; bytes += long.length) {
    sendBatch(peer, 1, long)
    await peer.flushed()
  }
}

t.test('every session of an identity takes all that it can', async t => {
  const batches = await streamed()
  await using greedy = await greedyTarget()
  await using deaf = await hole()
  await using siege = await Siege.start({
    poolMemory: `${POOL_MIB}MiB`,
    destinationArguments: ['--target', `greedy=${greedy.address}`, '--target', `hole=${deaf.address}`],
  })
  let sessions = 0
  let flows = 0
  const figures = await siege.under(async () => {
    const first: Awaited<ReturnType<typeof begun>>[] = []
    for (let refused = false; !refused; ) {
      try {
        first.push(await begun(() => siege.peer({ ring: 2 ** 22, places: 2 ** 20 }), 'greedy'))
      } catch (error) {
        t.match((error as Error).message, /LIMIT_EXCEEDED/)
        refused = true
      }
    }
    const peers = first.map(({ peer }) => peer)
    sessions = peers.length
    for (const { peer, credit } of first) {
      // its zstd windows, its ring, its places
      for (const { rawLength, payload } of batches) {
        while (!credit.send(1, rawLength, payload) && !peer.isClosed) await credit.changed(Number.POSITIVE_INFINITY)
        await peer.flushed()
      }
      if (peer.isClosed) t.fail(`a session that keeps the rules has ended: ${peer.goodbye}`)
    }
    for (const peer of peers) {
      // flows to a target that reads nothing, with as many bytes as credit and the budget allow
      const credit = new Credit(peer)
      for (let flow = 2; flow < 120; flow++) {
        peer.open(flow, 'hole', 2)
        flows++
        await peer.flushed()
      }
      await credit.changed(performance.now() + 1000)
      for (let flow = 2; flow < 120; flow++) {
        sendBatch(peer, flow, plainBatch(CHANNEL_START))
        peer.send(FRAME.DATA, Buffer.alloc(16_000), flow)
        peer.send(FRAME.DATA, Buffer.alloc(16_000), flow)
        await peer.flushed()
      }
    }
    await Promise.all(peers.map(floodWaiting))
  })
  t.comment(`${sessions} sessions, ${flows} flows`)
  t.ok(sessions >= SESSIONS_MAX / 2 - 2, `${sessions} sessions`)
  // docs/security.md: what a session has, the rings, the initial credit of its flows, and half of the budget
  const session = 20 * MIB + 8 * MIB + BATCHES_WAITING_UNPAID_BYTES
  const documented = sessions * session + POOL_MIB * MIB + flows * 65_536 + MEMORY_BUDGET_BYTES / 2
  unharmed(t, figures, { grownBytesMax: documented + 64 * MIB })
})
