/**
 * Throughput of the session over loopback, one process a side: node test/link/link-bench.ts [plain|x509|psk] [connections]
 * [seconds] [bytes of a batch]. Prints MB/s of the wall and of each side's CPU time.
 */
import { fork } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { LinkLogger } from '../../src/link/api.ts'
import { LinkClient } from '../../src/link/client.ts'
import { Credentials } from '../../src/link/credentials.ts'
import { makePsk, makeX509, writeCredentialFiles } from '../../src/link/keygen.ts'
import type { Link } from '../../src/link/link.ts'
import { LinkServer } from '../../src/link/server.ts'
import { SilentSink } from '../helpers/silent-sink.ts'

const quiet: LinkLogger = { debug() {}, info() {}, warn() {}, error: console.error }
const offer = { sets: [], ring: 0, places: 0, seed: '0'.repeat(16) }

/** Takes everything and gives credit at once, or sends batches without end. */
class Mill extends SilentSink {
  bytes = 0
  flows = 0
  readonly #link: Link
  #flow = 0
  readonly #batch: Uint8Array[]
  readonly #raw: number

  constructor(link: Link, batchBytes: number) {
    super()
    this.#link = link
    this.#raw = 256 * 1024
    // Format, raw length 256 KiB as a varint.
    this.#batch = [Uint8Array.of(1, 0x80, 0x80, 0x10), new Uint8Array(batchBytes).fill(0x5a)]
  }
  start(): void {
    this.#flow = this.#link.session.openFlow({ target: 'x', migration: 1, kind: 'main' })
  }
  override onData(flow: number, payload: Uint8Array): void {
    this.#link.session.consumed(flow, payload.length)
  }
  override onBatch(flow: number, parts: readonly Uint8Array[], raw: number): void {
    for (const part of parts) this.bytes += part.length
    this.#link.session.consumed(flow, raw)
  }
  override onWork(): void {
    if (this.#flow === 0) return
    const { session } = this.#link
    const now = this.#link.now()
    while (session.bulkRoom(now) > 0 && session.credit(this.#flow) >= this.#raw) {
      session.pickFlow([this.#flow], now)
      session.sendBatch(this.#flow, this.#raw, this.#batch)
    }
  }
}

const [kind = 'plain', connections = '1', seconds = '4', batchBytes = '65536', directory = ''] = process.argv.slice(2)

if (process.send) {
  const mills: Mill[] = []
  const server = new LinkServer({
    ...(kind === 'plain'
      ? { plaintext: true }
      : { credentials: new Credentials({ role: 'server', directory: `${directory}/b` }) }),
    accept: () => ({
      sets: [],
      ring: 0,
      places: 0,
      targets: [],
      serve: link => {
        const mill = new Mill(link, 0)
        mills.push(mill)
        return mill
      },
    }),
    logger: quiet,
  })
  const { port } = await server.listen({ host: '127.0.0.1', port: 0 })
  process.send({ port })
  let cpu = process.cpuUsage()
  let bytes = 0
  process.on('message', what => {
    if (what === 'start') {
      cpu = process.cpuUsage()
      bytes = mills[0]!.bytes
    } else {
      const used = process.cpuUsage(cpu)
      process.send!({ bytes: mills[0]!.bytes - bytes, cpuMs: (used.user + used.system) / 1000 })
      process.exit()
    }
  })
} else {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'pageferry-bench-'))
  if (kind !== 'plain')
    writeCredentialFiles(dir, kind === 'psk' ? makePsk(['a'], ['b']) : await makeX509(['a'], ['b'], 9))
  const child = fork(import.meta.filename, [kind, connections, seconds, batchBytes, dir])
  const message = <T>(): Promise<T> => new Promise(resolve => child.once('message', resolve as never))
  const { port } = await message<{ port: number }>()
  const client = new LinkClient({
    host: '127.0.0.1',
    port,
    ...(kind === 'plain'
      ? { plaintext: true }
      : {
          credentials: new Credentials({
            role: 'client',
            directory: `${dir}/a`,
            ...(kind === 'x509' && { peerName: 'b' }),
          }),
        }),
    connections: Number(connections),
    offer,
    logger: quiet,
  })
  const mill = new Mill(client.link, Number(batchBytes))
  client.link.serve(mill)
  await client.open()
  mill.start()
  await new Promise(resolve => setTimeout(resolve, 1500))
  child.send('start')
  const cpu = process.cpuUsage()
  const startMs = performance.now()
  await new Promise(resolve => setTimeout(resolve, Number(seconds) * 1000))
  const used = process.cpuUsage(cpu)
  const wallMs = performance.now() - startMs
  const stats = client.session.stats()
  child.send('stop')
  const result = await message<{ bytes: number; cpuMs: number }>()
  const clientMs = (used.user + used.system) / 1000
  const rate = (ms: number): string => (result.bytes / ms / 1000).toFixed(0)
  console.log(
    `${kind} x${connections}, batches of ${batchBytes}: ${rate(wallMs)} MB/s wall, ` +
      `${rate(clientMs)} per sender CPU s, ${rate(result.cpuMs)} per receiver CPU s; ` +
      `rtt ${stats.rttMs.toFixed(2)} ms (min ${stats.connections[0]?.rttMinMs.toFixed(2)}), window ${(stats.window / 1e6).toFixed(1)} MB, in flight ${(stats.inFlight / 1e6).toFixed(1)} MB`,
  )
  await client.link.abort(new (await import('../../src/errors.ts')).ProxyError('QEMU_LOST', 'end', undefined, ''))
  fs.rmSync(dir, { recursive: true })
}
