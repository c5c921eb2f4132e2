/**
 * Two sessions over steady links in virtual time, to see what the windows do: throughput, what stands in queues, and
 * who gets how much. Nothing fails here; simulation.ts is for that.
 */

import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/limits.ts'
import type { Weights } from '../../src/session/fairness.ts'
import { RateBucket } from '../../src/session/rate-cap.ts'
import { Session } from '../../src/session/session.ts'
import type { CapShare } from '../../src/session/shared-cap.ts'
import type { WarmUp } from '../../src/session/warm-up.ts'
import { FrameDecoder } from '../../src/wan/frames.ts'
import { KIND_DISK } from '../../src/wan/wire.ts'
import { type SilentSink, sinkOf } from '../helpers/silent-sink.ts'

export interface LinkOptions {
  /** Bytes a millisecond, for each connection. */
  readonly rates: number[]
  /** Round trip without queues, for each connection. */
  readonly rttMs: number[]
  readonly targetMs?: number
  readonly rate?: number
  /** What the encoder makes of a batch at most. */
  readonly batchBytes?: number
  /** Raw bytes for each byte on the WAN. */
  readonly ratio?: number
  /** Migration of each flow; below 0: a disk transfer. */
  readonly flows?: readonly number[]
  /** Of the client. */
  readonly weights?: Weights
  readonly shared?: CapShare
  /** Of the client: it may find out what connections take, before its flows are opened by `open`. */
  readonly warmUp?: WarmUp
  /** The server does nothing for so long, so often: its host has others to serve. */
  readonly still?: { readonly everyMs: number; readonly ms: number }
}

interface Chunk {
  readonly at: number
  readonly bytes: Uint8Array
}

/** One direction: bytes leave at `rate`, wait in a queue without end, and arrive half a round trip later. */
class Half {
  private freeAt = 0
  readonly chunks: Chunk[] = []

  send(bytes: Uint8Array, now: number, rate: number, delayMs: number): void {
    this.freeAt = Math.max(this.freeAt, now) + bytes.length / rate
    const last = this.chunks.at(-1)
    this.chunks.push({ at: Math.max(this.freeAt + delayMs, last ? last.at : 0), bytes })
  }

  /** How long what is sent now waits before it leaves. */
  queueMs(now: number): number {
    return Math.max(0, this.freeAt - now)
  }
}

export class Link {
  readonly options: LinkOptions
  readonly client: Session
  readonly server: Session
  now = 0
  /** Raw bytes that arrived, by migration; bytes of batches that arrived. */
  readonly rawBy = new Map<number, number>()
  arrivedBytes = 0
  /** All that the client sent. */
  upBytes = 0
  /** Longest delay of urgent data, from sendData to onData. */
  urgentMsMax = 0
  private urgentSentAt = -1
  queueMsMax = 0
  unackedMax = 0
  reorderedMax = 0
  /** False: nothing is encoded. */
  feeding = true
  private readonly flows: number[] = []
  private readonly up: Half[] = []
  private readonly down: Half[] = []
  private readonly atServer: FrameDecoder[] = []
  private readonly atClient: FrameDecoder[] = []
  private readonly filler = new Uint8Array(1 << 20)
  private stepMs = 0.25

  constructor(options: LinkOptions) {
    this.options = options
    const sink = (side: 'client' | 'server'): SilentSink =>
      sinkOf({
        onData: flow => {
          if (side === 'client') return
          this.urgentMsMax = Math.max(this.urgentMsMax, this.now - this.urgentSentAt)
          this.urgentSentAt = -1
          this.server.consumed(flow, 1)
        },
        onBatch: (flow, parts, rawLength) => {
          const migration = (this.options.flows ?? [1])[flow - 1]!
          this.rawBy.set(migration, (this.rawBy.get(migration) ?? 0) + rawLength)
          for (const part of parts) this.arrivedBytes += part.length
          this.server.consumed(flow, rawLength)
        },
        onDead: error => {
          throw error
        },
        onLost: (connection, error) => {
          throw new Error(`connection ${connection}`, { cause: error })
        },
      })
    const { weights, shared, warmUp, rate = Number.POSITIVE_INFINITY, targetMs: queueTargetMs = 50 } = options
    const session = (role: 'client' | 'server'): Session => {
      const hears = sink(role)
      const ofRole =
        role === 'client' ? { rate: new RateBucket(rate, shared), weights, ...(warmUp && { warmUp }) } : { rate }
      const made = new Session({ role, transport: hears, queueTargetMs, ...ofRole })
      made.serve(hears)
      return made
    }
    this.client = session('client')
    this.server = session('server')
    options.rates.forEach((_, connection) => {
      this.up.push(new Half())
      this.down.push(new Half())
      this.atServer.push(new FrameDecoder(frame => this.server.receive(connection, frame, this.now)))
      this.atClient.push(new FrameDecoder(frame => this.client.receive(connection, frame, this.now)))
      this.client.attach(connection, 0, 0)
      this.server.attach(connection, 0, 0)
    })
    if (!warmUp) this.open()
  }

  /** Opens all flows. */
  open(): void {
    for (const migration of this.options.flows ?? [1]) {
      const kind = migration < 0 ? KIND_DISK : 'main'
      this.flows.push(this.client.openFlow({ target: 'vm', migration: Math.abs(migration), kind }))
    }
  }

  /** Lets time pass. */
  run(ms: number): void {
    const end = this.now + ms
    while (this.now < end) {
      this.now += this.stepMs
      this.step()
    }
  }

  /** Puts one byte of data on the first flow; its delay counts in urgentMsMax. */
  sendUrgent(flow = this.flows[0]!): void {
    if (this.urgentSentAt >= 0) return
    this.urgentSentAt = this.now
    this.client.sendData(flow, new Uint8Array(1))
  }

  /** Sets arrivedBytes, rawBy and the maxima back, to measure from here. */
  resetFigures(): void {
    this.arrivedBytes = 0
    this.rawBy.clear()
    this.urgentMsMax = 0
    this.queueMsMax = 0
    this.unackedMax = 0
    this.reorderedMax = 0
  }

  private step(): void {
    const { now, client, server, options } = this
    const { everyMs, ms } = options.still ?? { everyMs: 1, ms: 0 }
    const isStill = now % everyMs < ms
    if (!isStill) this.deliver(this.up, this.atServer)
    this.deliver(this.down, this.atClient)
    for (const session of isStill ? [client] : [client, server]) if (session.nextTickMs <= now) session.tick(now)
    if (!isStill) this.pump(server, this.down)
    for (let more = true; more; ) {
      more = this.encode()
      if (this.pump(client, this.up)) more = true
    }
    for (const half of this.up) this.queueMsMax = Math.max(this.queueMsMax, half.queueMs(now))
    if (Math.round(now * 4) % 64 !== 0) return
    this.unackedMax = Math.max(this.unackedMax, client.stats().unacked)
    this.reorderedMax = Math.max(this.reorderedMax, server.stats().reordered)
  }

  private deliver(halves: Half[], decoders: FrameDecoder[]): void {
    halves.forEach((half, connection) => {
      while (half.chunks.length > 0 && half.chunks[0]!.at <= this.now)
        decoders[connection]!.push(half.chunks.shift()!.bytes)
    })
  }

  private pump(session: Session, halves: Half[]): boolean {
    let any = false
    halves.forEach((half, connection) => {
      for (;;) {
        const out: Uint8Array[] = []
        if (session.pull(connection, 65536, this.now, out) === 0) return
        any = true
        for (const view of out) {
          if (halves === this.up) this.upBytes += view.length
          half.send(view, this.now, this.options.rates[connection]!, this.options.rttMs[connection]! / 2)
        }
      }
    })
    return any
  }

  private encode(): boolean {
    if (!this.feeding) return false
    const { client, now, options } = this
    let any = false
    for (;;) {
      const room = client.bulkRoom(now)
      if (room <= 0) return any
      const packed = Math.max(100, Math.min(options.batchBytes ?? 3 * FRAME_PAYLOAD_BYTES_MAX, room))
      const raw = Math.min(1 << 20, Math.round(packed * (options.ratio ?? 4)))
      const able = this.flows.filter(flow => client.credit(flow) >= raw)
      const flow = client.pickFlow(able, now)
      if (flow < 0) return any
      const head = [1]
      let value = raw
      for (; value > 127; value >>>= 7) head.push((value & 127) | 128)
      head.push(value)
      client.sendBatch(flow, raw, [new Uint8Array(head), this.filler.subarray(0, packed - head.length)])
      any = true
    }
  }
}
