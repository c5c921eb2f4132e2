/**
 * What the local side costs: GB/s per second of CPU time of this process, for receiving alone and for relaying, in both
 * ways of reading. Source and sink are processes of their own, over loopback. `node test/relay/relay-bench.ts [GB]
 * [SLOT_KIB] [ROUNDS]`
 */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { median } from '../../scripts/harness/median.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { dial } from '../../src/relay/dialer.ts'
import { listen } from '../../src/relay/listener.ts'
import type { QemuSocket, ReadMode, SocketSink } from '../../src/relay/qemu-socket.ts'

const total = Number(process.argv[2] ?? 2) * 1e9
const slotBytes = Number(process.argv[3] ?? 512) * 1024
const rounds = Number(process.argv[4] ?? 5)
const SLOTS = 8

const SOURCE = `const s = require('net').connect(+process.argv[1], '127.0.0.1', () => {
  const b = Buffer.alloc(1 << 20, 1); let left = +process.argv[2]
  const go = () => { while (left > 0) { left -= b.length; if (!s.write(b)) return s.once('drain', go) } s.end() }; go() })`
const SINK = `const net = require('net'), b = Buffer.alloc(1 << 20)
  net.createServer({ pauseOnConnect: true }, c => { const h = c._handle; c._handle = null; h.reading = false
    const s = new net.Socket({ handle: h, onread: { buffer: b, callback: () => true } }); s.on('end', () => process.exit()); s.resume()
  }).listen(0, '127.0.0.1', function () { console.log(this.address().port) })`

const memory = new WebAssembly.Memory({ initial: 1024, maximum: 1024, shared: true })
const ring = Array.from({ length: SLOTS }, (_, i) => new Uint8Array(memory.buffer, i * slotBytes, slotBytes))

/** Counts and forgets. */
function receiver(socket: QemuSocket, ended: () => void, count: { reads: number; pauses: number }): SocketSink {
  return {
    nextSlot: () => ring[0],
    onBytes: () => void count.reads++,
    onEnd: () => socket.finish(),
    onClosed: ended,
  }
}

function relay(
  from: QemuSocket,
  to: QemuSocket,
  ended: () => void,
  count: { reads: number; pauses: number },
): SocketSink {
  let next = 0
  let busy = 0
  const done = (): void => {
    busy--
    from.resume()
  }
  return {
    nextSlot() {
      if (busy < SLOTS) return ring[next]
      count.pauses++
      return undefined
    },
    onBytes(bytes) {
      count.reads++
      busy++
      to.write(ring[next]!.subarray(0, bytes), done)
      next = (next + 1) % SLOTS
    },
    onEnd: () => to.finish(),
    onClosed: ended,
  }
}

async function run(mode: ReadMode, what: 'receive' | 'relay'): Promise<{ cpu: number; wall: number; note: string }> {
  const sink = what === 'relay' ? spawn(process.execPath, ['-e', SINK]) : undefined
  const sinkPort = sink ? Number(((await once(sink.stdout!, 'data')) as [Buffer])[0]) : 0
  const out = sink ? await dial({ kind: 'tcp', host: '127.0.0.1', port: sinkPort, portTo: sinkPort }) : undefined
  const count = { reads: 0, pauses: 0 }
  let begin: NodeJS.CpuUsage | undefined
  let at = 0
  const finished = Promise.withResolvers<void>()
  const listener = await listen(
    parseAddress('tcp:127.0.0.1:0'),
    socket => {
      begin = process.cpuUsage()
      at = performance.now()
      const sinkOf = out ? relay(socket, out, () => {}, count) : receiver(socket, finished.resolve, count)
      socket.start(sinkOf)
      out?.start({ nextSlot: () => ring[0], onBytes: () => {}, onEnd: () => {}, onClosed: () => finished.resolve() })
    },
    { readMode: mode },
  )
  const at0 = listener.addresses[0] as { port: number }
  const source = spawn(process.execPath, ['-e', SOURCE, String(at0.port), String(total)])
  const gone = once(source, 'close')
  if (sink) await once(sink, 'close')
  else await finished.promise
  const used = process.cpuUsage(begin)
  const wall = (performance.now() - at) / 1e3
  out?.reset()
  source.kill()
  await gone
  await listener.close()
  const cpu = (used.user + used.system) / 1e6
  return {
    cpu: total / 1e9 / cpu,
    wall: total / 1e9 / wall,
    note: `${Math.round(total / count.reads / 1024)} KiB a read, ${count.pauses} pauses, user ${(used.user / 1e6).toFixed(2)} s`,
  }
}

const results = new Map<string, { cpu: number[]; wall: number[]; note: string }>()
for (let round = 0; round < rounds; round++) {
  for (const what of ['receive', 'relay'] as const) {
    for (const mode of ['onread', 'data'] as const) {
      const got = await run(mode, what)
      const key = `${what} ${mode}`
      const all = results.get(key) ?? { cpu: [], wall: [], note: '' }
      all.cpu.push(got.cpu)
      all.wall.push(got.wall)
      all.note = got.note
      results.set(key, all)
    }
  }
}
console.log(`${total / 1e9} GB, ${SLOTS} slots of ${slotBytes >> 10} KiB, median (min to max) of ${rounds}`)
for (const [key, { cpu, wall, note }] of results) {
  const range = `${Math.min(...cpu).toFixed(2)} to ${Math.max(...cpu).toFixed(2)}`
  console.log(
    `${key.padEnd(15)} ${median(cpu).toFixed(2)} GB/s per core (${range}), wall ${median(wall).toFixed(2)}; ${note}`,
  )
}
process.exit(0)
