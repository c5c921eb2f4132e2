/**
 * What answers beside the source bring: scattered rewrites of 64 KiB, 16 under way as QEMU's mirror has them, and one write
 * at a time, as a guest in copy mode write-blocking waits for it; with a pair whose disks are answered early or by the far
 * side, and with no pair. Figures, no verdicts.
 *
 *     node test/bench/early-bench.ts [LINK] [MIB]     # 200Mbit,150ms 96
 */
import { spawn } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { parseLink } from '../../scripts/harness/wan/link.ts'
import { RelayLink } from '../../scripts/harness/wan/relay-link.ts'
import { Pair } from '../qemu/pair.ts'

const [link = '200Mbit,150ms', mib = '96'] = process.argv.slice(2)
const REQUEST = 65536
const DISK = 1 << 30
const MIRROR_DEPTH = 16

/** A client of NBD with simple replies, that counts. */
class Client {
  private readonly socket: net.Socket
  private heard: Buffer = Buffer.alloc(0)
  private wakes: (() => void)[] = []

  private constructor(socket: net.Socket) {
    this.socket = socket
    socket.on('data', (chunk: Buffer) => {
      this.heard = this.heard.length === 0 ? chunk : Buffer.concat([this.heard, chunk])
      for (const wake of this.wakes.splice(0)) wake()
    })
  }

  static async open(at: net.NetConnectOpts): Promise<Client> {
    const socket = net.connect(at)
    await once(socket, 'connect')
    socket.setNoDelay(true)
    const client = new Client(socket)
    await client.take(18)
    socket.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), Buffer.from('IHAVEOPT\0\0\0\x01\0\0\0\0', 'latin1')]))
    await client.take(10)
    return client
  }

  private async take(count: number): Promise<Buffer> {
    while (this.heard.length < count) await new Promise<void>(done => this.wakes.push(done))
    const taken = this.heard.subarray(0, count)
    this.heard = this.heard.subarray(count)
    return taken
  }

  private ask(type: number, offset: number, payload = Buffer.alloc(0)): void {
    const head = Buffer.alloc(28)
    head.writeUInt32BE(0x25609513, 0)
    head.writeUInt16BE(type, 6)
    head.writeUInt32BE(this.cookie++, 12)
    head.writeUInt32BE(offset, 20)
    head.writeUInt32BE(payload.length, 24)
    this.socket.write(head)
    if (payload.length > 0) this.socket.write(payload)
  }
  private cookie = 0

  private async answered(): Promise<void> {
    const reply = await this.take(16)
    if (reply.readUInt32BE(4) !== 0) throw new Error(`error ${reply.readUInt32BE(4)}`)
  }

  /** Scattered writes of noise, so many under way. @returns bytes a second, the FLUSH behind them counted */
  async rewrites(bytes: number, depth: number): Promise<number> {
    const began = performance.now()
    let underWay = 0
    for (let left = bytes; left > 0; left -= REQUEST) {
      if (underWay === depth) await this.answered()
      else underWay++
      this.ask(1, REQUEST * Math.floor((Math.random() * DISK) / REQUEST), randomFillSync(Buffer.alloc(REQUEST)))
    }
    while (underWay-- > 0) await this.answered()
    await this.flush()
    return (bytes / (performance.now() - began)) * 1000
  }

  async flush(): Promise<void> {
    this.ask(3, 0)
    await this.answered()
  }

  /** Writes of 4 KiB, one at a time, `everyMs`. @returns how long each took, in order of size */
  async latencies(count: number, everyMs: number): Promise<number[]> {
    const took: number[] = []
    for (let i = 0; i < count; i++) {
      const began = performance.now()
      this.ask(1, 4096 * Math.floor(Math.random() * 1000), randomFillSync(Buffer.alloc(4096)))
      await this.answered()
      took.push(performance.now() - began)
      await new Promise(done => setTimeout(done, everyMs))
    }
    return took.sort((a, b) => a - b)
  }

  close(): void {
    this.socket.destroy()
  }
}

async function measure(name: string, client: Client): Promise<void> {
  const full = parseLink(link).bitsPerSecond / 8
  await client.rewrites(8 << 20, MIRROR_DEPTH) // windows grow
  const rate = await client.rewrites(Number(mib) << 20, MIRROR_DEPTH)
  const took = await client.latencies(60, 20)
  const began = performance.now()
  await client.flush()
  const flush = performance.now() - began
  const at = (part: number): string => `${took[Math.floor(part * took.length)]!.toFixed(1)} ms`
  console.log(
    `${name}: ${(rate / 1e6).toFixed(1)} MB/s (${(rate / full).toFixed(2)} of the link), ` +
      `a write ${at(0.5)}, 9 of 10 below ${at(0.9)}, FLUSH ${flush.toFixed(0)} ms`,
  )
  client.close()
}

async function nbdkit(...args: string[]): Promise<AsyncDisposable> {
  const child = spawn('nbdkit', ['--foreground', '--exit-with-parent', ...args, 'memory', String(DISK)], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  await new Promise(done => setTimeout(done, 500))
  return {
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL')
      await once(child, 'exit')
    },
  }
}

{
  const port = await claimPort()
  await using _kit = await nbdkit('-p', String(port), '-i', '127.0.0.1')
  const relay = await RelayLink.open(parseLink(link), { host: '127.0.0.1', port })
  await measure('no pair', await Client.open({ host: relay.host, port: relay.port }))
  const local = await Client.open({ host: '127.0.0.1', port })
  const took = await local.latencies(60, 20)
  console.log(`on the server's host: a write ${took[30]!.toFixed(1)} ms`)
  local.close()
  await relay[Symbol.asyncDispose]()
}
for (const diskAnswers of ['far', 'early'] as const) {
  await using pair = await Pair.start({ disks: true, processes: true, wan: link, diskAnswers })
  await using _kit = await nbdkit('-U', pair.diskFar)
  await measure(`a pair, answers ${diskAnswers}`, await Client.open({ path: pair.diskNear }))
}
