/**
 * The wire between two tap devices, a process of its own so that nothing else delays its packets. Started by
 * packet-link.ts:
 *
 *   node wire.ts DESCRIPTION DEVICE SOURCE_NETNS DESTINATION_NETNS
 *
 * Each end is a vde_plug in its namespace, which carries Ethernet frames between the tap and a stream: u16 length,
 * frame. (vde2 has a wirefilter for the middle, but under load its streams lose their framing and the link goes dead.)
 * Over Node's IPC it takes Order and sends Report.
 */
import type { Readable, Writable } from 'node:stream'
import { endChild, spawnOwned } from '../qemu/cleanup.ts'
import { type Link, parseLink } from './link.ts'
import { PathModel } from './path-model.ts'

/** From the parent. */
export type Order = { readonly clock: true } | { readonly down: boolean } | { readonly counts: number }

/** To the parent. */
export type Report =
  | { readonly ready: true }
  | { readonly counts: number; readonly forward: PathModel['counts']; readonly back: PathModel['counts'] }

/** Frames of one direction. */
class Way {
  readonly model: PathModel
  private readonly output: Writable
  private tail: Buffer = Buffer.alloc(0)
  // Under way, in order of arrival; `from` is the first that has not arrived.
  private frames: Buffer[] = []
  private arrivals: number[] = []
  private from = 0
  private waiting = false

  constructor(link: Link, way: number, input: Readable, output: Writable) {
    this.model = new PathModel(link, way, performance.now())
    this.output = output
    input.on('data', (chunk: Buffer) => this.take(chunk))
    output.on('error', () => process.exit(1))
  }

  private take(chunk: Buffer): void {
    const bytes = this.tail.length > 0 ? Buffer.concat([this.tail, chunk]) : chunk
    const nowMs = performance.now()
    let at = 0
    while (bytes.length - at >= 2) {
      const length = bytes.readUInt16BE(at)
      if (bytes.length - at < 2 + length) break
      const arrival = this.model.send(nowMs, length)
      if (arrival >= 0) {
        this.frames.push(bytes.subarray(at, at + 2 + length))
        this.arrivals.push(arrival)
      }
      at += 2 + length
    }
    this.tail = bytes.subarray(at)
    if (!this.waiting) this.deliver()
  }

  private deliver(): void {
    this.waiting = false
    const { frames, arrivals } = this
    // A timer is a millisecond coarse: what is due within half of one goes now.
    const dueMs = performance.now() + 0.5
    const first = this.from
    while (this.from < frames.length && arrivals[this.from]! <= dueMs) this.from++
    if (this.from > first) this.output.write(Buffer.concat(frames.slice(first, this.from)))
    if (this.from === frames.length) {
      this.frames = []
      this.arrivals = []
      this.from = 0
      return
    }
    if (this.from > 10_000) {
      this.frames = frames.slice(this.from)
      this.arrivals = arrivals.slice(this.from)
      this.from = 0
    }
    this.waiting = true
    setTimeout(() => this.deliver(), Math.max(1, Math.round(this.arrivals[this.from]! - performance.now())))
  }
}

const [description = '', device = '', ...namespaces] = process.argv.slice(2)
const link = parseLink(description)
let ending = false
const [source, destination] = namespaces.map(netns => {
  const plug = spawnOwned(['ip', 'netns', 'exec', netns, 'vde_plug', `tap://${device}`], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  plug.once('exit', () => {
    if (!ending) process.exit(1)
  })
  return plug
})
const forward = new Way(link, 0, source!.stdout!, destination!.stdin!)
const back = new Way(link, 1, destination!.stdout!, source!.stdin!)
const report = (message: Report) => process.send?.(message)
async function end(): Promise<void> {
  ending = true
  // Waited for here: not every machine's first process takes care of orphans.
  await Promise.all([source, destination].map(plug => endChild(plug!)))
  process.exit(0)
}
process.on('disconnect', end)
process.on('SIGTERM', end)
process.on('message', (order: Order) => {
  if ('clock' in order) forward.model.clockStartMs = back.model.clockStartMs = performance.now()
  else if ('down' in order) forward.model.down = back.model.down = order.down
  else report({ counts: order.counts, forward: forward.model.counts, back: back.model.counts })
})
report({ ready: true })
