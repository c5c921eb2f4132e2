/** What packs and expands in virtual time: bytes as they are, numbered, so that order over all flows is seen. */
import type { Random } from '../../scripts/harness/random.ts'
import { BATCH_FORMAT } from '../../src/codec/wire.ts'
import type { DestinationUnpacker } from '../../src/daemon/destination-parts.ts'
import { ProxyError } from '../../src/errors.ts'
import { CHANNEL_UNITS } from '../../src/limits.ts'
import type { BatchReport } from '../../src/transfer/batch-job.ts'
import type { InboundChannel } from '../../src/transfer/inbound.ts'
import type { Pool } from '../../src/transfer/pool.ts'
import type { SenderPacker } from '../../src/transfer/sender.ts'
import type { SendingChannel } from '../../src/transfer/sending-channel.ts'
import { SLOT_UNIT_BYTES } from '../../src/transfer/slot-arena.ts'
import type { VirtualTime } from '../helpers/virtual-time.ts'

/** Memories of source sessions that nobody has: the one that was given back last comes last. */
let free: Uint8Array[] = []
let all: Uint8Array[] = []
/** So many others come first: a session before may still be written to by sockets that close. */
const RESTING = 2

/** A run begins: nobody has any. */
export function freshPools(): void {
  free = [...all]
}

/** A session's is over. */
export function givePool({ kernel }: Pool): void {
  free.push(kernel.bytes)
}

function takeMemory(): Uint8Array {
  if (free.length > RESTING) return free.shift()!
  const memory = new Uint8Array(CHANNEL_UNITS * SLOT_UNIT_BYTES)
  all = [...all, memory]
  return memory
}

/** A pool without a kernel: what the halves ask of it. */
export function barePool(): Pool {
  const bytes = takeMemory()
  return {
    kernel: { bytes, layout: { templatePages: 0, ringPages: 0 } },
    workspaces: [],
    slots: Array.from({ length: CHANNEL_UNITS }, (_, i) => i * SLOT_UNIT_BYTES),
    slotBytes: SLOT_UNIT_BYTES,
    warm: async () => {},
    migrates: () => {},
  } as unknown as Pool
}

/** Threads beside the main one, as a session has them: what they are given they do at once, each in its own time. */
export interface Helping {
  /** The main one counted. */
  readonly threads: number
  /** One of them has failed. */
  readonly onFailure: (error: ProxyError) => void
}

/** Of a process whose main thread does all. */
const ALONE: Helping = {
  threads: 1,
  onFailure: () => {},
}

/** What src/transfer/helpers/helper.ts says of one that does nothing any more. */
function helperFails(what: string): ProxyError {
  return new ProxyError('INTERNAL', `a helping thread ${what}`, undefined, 'the session ends')
}

export interface Packing {
  /** A thread is done with it. */
  isPacked: boolean
  readonly channel: SendingChannel
  readonly parts: Uint8Array[]
  readonly report: BatchReport
}

type Sink = (channel: SendingChannel, parts: Uint8Array[], report: BatchReport) => void

/** Packs nothing, and takes its time. With helpers several batches are under way at once, and come out in their order. */
export class SlowPacker implements SenderPacker {
  readonly pool: Pool
  observer: undefined
  private readonly help: Helping
  private helpersHang = false
  private readonly time: VirtualTime
  private readonly random: Random
  private readonly sink: Sink
  protected readonly jobs: Packing[] = []
  private batches = 0
  private closed = false

  constructor(pool: Pool, time: VirtualTime, random: Random, sink: Sink, help = ALONE) {
    this.help = help
    this.pool = pool
    this.time = time
    this.random = random
    this.sink = sink
  }

  get underWay(): number {
    return this.jobs.length
  }

  get hasRoom(): boolean {
    return this.jobs.length < 4
  }

  warm(): void {}

  encode(channel: SendingChannel, _effort: unknown, release: boolean): number {
    const { encoder, buffer } = channel
    const rawLength = release ? encoder.waiting : encoder.ready
    if (rawLength === 0) return 0
    const loan = buffer.lend(rawLength)
    const head = [BATCH_FORMAT]
    let value = rawLength
    for (; value > 127; value >>>= 7) head.push((value & 127) | 128)
    head.push(value)
    const number = new Uint8Array(4)
    new DataView(number.buffer).setUint32(0, this.batches++)
    const body = this.copy(loan.at, rawLength)
    encoder.batched(rawLength, new Uint8Array(encoder.records.pages))
    loan.release()
    encoder.stats.rawBytes += rawLength
    const parts = [new Uint8Array(head), number, body]
    const report = { rawLength, packedLength: rawLength + 9, newBytes: rawLength }
    const job: Packing = { channel, parts, report, isPacked: false }
    this.jobs.push(job)
    if (this.help.threads > 1) this.begin()
    else if (this.jobs.length === 1) this.next()
    return rawLength
  }

  /** A helper dies, or stands still and is given up so many ms later. @param told hears it before the session does */
  fails(afterMs: number, told: () => void): void {
    if (this.closed || this.helpersHang) return
    this.helpersHang = true
    this.time.after(afterMs, () => {
      if (this.closed) return
      told()
      this.help.onFailure(helperFails(afterMs > 0 ? 'does not answer' : 'has ended'))
    })
  }

  /** Gives helpers what they have not got. */
  private begin(): void {
    const { help, given } = this
    for (const job of this.jobs) {
      if (given.size >= help.threads - 1 || this.helpersHang) return
      if (given.has(job) || job.isPacked) continue
      given.add(job)
      this.time.after(this.random.next() * this.random.pick([0.2, 1, 5]), () => {
        if (this.closed || this.helpersHang) return
        given.delete(job)
        job.isPacked = true
        while (this.jobs[0]?.isPacked) {
          const { channel, parts, report } = this.out()
          this.sink(channel, parts, report)
        }
        this.begin()
      })
    }
  }

  /** What helpers are at. */
  private readonly given = new Set<Packing>()

  /** The bytes that are lent, which may be others as soon as they are given back. */
  protected copy(at: number, length: number): Uint8Array {
    return this.pool.kernel.bytes.slice(at, at + length)
  }

  private next(): void {
    this.time.after(this.random.next() * this.random.pick([0.2, 1, 5]), () => {
      if (this.closed) return
      const { channel, parts, report } = this.out()
      if (this.jobs.length > 0) this.next()
      this.sink(channel, parts, report)
    })
  }

  /** The batch that is packed now: the oldest. */
  protected out(): Packing {
    return this.jobs.shift()!
  }

  async close(): Promise<void> {
    this.closed = true
  }
}

interface ArrivedBatch {
  readonly channel: InboundChannel
  readonly parts: readonly Uint8Array[]
  /** A helper has it before its turn; 'ready': it is done with it. */
  ahead: boolean | 'ready'
}
type Arrived = ArrivedBatch | { readonly then: () => void }

/** Batches that helpers have before their turn: src/limits.ts, UNPACK_SLOTS. */
const AHEAD_MAX = 4

/** Expands what SlowPacker made, one after the other; helpers unpack some of it before its turn. */
export class SlowUnpacker implements DestinationUnpacker {
  private readonly help: Helping
  private helpersHang = false
  observer: undefined
  /** Batches whose bytes nobody has given back. */
  lent = 0
  private readonly time: VirtualTime
  private readonly random: Random
  private readonly fail: (what: string) => void
  private readonly jobs: Arrived[] = []
  private batches = 0
  private running = false
  private closed = false

  constructor(time: VirtualTime, random: Random, fail: (what: string) => void, help = ALONE) {
    this.help = help
    this.time = time
    this.random = random
    this.fail = fail
  }

  push(channel: InboundChannel, parts: readonly Uint8Array[]): void {
    if (this.closed) return
    this.jobs.push({ channel, parts, ahead: false })
    this.offer()
    this.run()
  }

  /** A helper dies, or stands still and is given up so many ms later: told to whoever waits for it. */
  fails(afterMs: number, told: () => void): void {
    if (this.closed || this.helpersHang) return
    this.helpersHang = true
    this.time.after(afterMs, () => {
      if (this.closed) return
      told()
      this.help.onFailure(helperFails(afterMs > 0 ? 'does not answer' : 'has ended'))
    })
  }

  /** Gives helpers what is not theirs yet, in its order. */
  private offer(): void {
    if (this.help.threads === 1 || this.helpersHang) return
    const batches = this.jobs.filter((job): job is ArrivedBatch => 'channel' in job)
    let given = batches.filter(({ ahead }) => ahead !== false).length
    for (const job of batches) {
      if (job.ahead !== false) continue
      if (given++ >= AHEAD_MAX) return
      job.ahead = true
      this.time.after(this.random.next() * this.random.pick([0.1, 0.5, 3]), () => {
        if (this.closed || this.helpersHang) return
        job.ahead = 'ready'
        this.run()
      })
    }
  }

  /** Its turn has come, and a helper has it. */
  private get isAwaited(): boolean {
    const job = this.jobs.find(job => 'channel' in job)
    return job !== undefined && 'channel' in job && (job.ahead === true || this.helpersHang)
  }

  mark(then: () => void): void {
    if (!this.running && this.jobs.length === 0) {
      then()
      return
    }
    this.jobs.push({ then })
  }

  close(): void {
    this.closed = true
    this.jobs.length = 0
  }

  private run(): void {
    if (this.running || this.isAwaited) return
    this.running = true
    this.time.after(this.random.next() * this.random.pick([0.1, 0.5, 3]), () => {
      this.running = false
      while (this.jobs[0] && 'then' in this.jobs[0]) (this.jobs.shift() as { then: () => void }).then()
      const job = this.jobs.shift()
      if (job && 'channel' in job) this.expand(job.channel, Buffer.concat(job.parts))
      while (this.jobs[0] && 'then' in this.jobs[0]) (this.jobs.shift() as { then: () => void }).then()
      this.offer()
      if (this.jobs.length > 0) this.run()
    })
  }

  private expand(channel: InboundChannel, batch: Buffer): void {
    let at = 1
    while (batch[at]! > 127) at++
    const number = batch.readUInt32BE(at + 1)
    if (number !== this.batches++) this.fail(`batch ${number} is expanded as number ${this.batches - 1}`)
    this.lent++
    let given = false
    // memory that is lent is written again once it is given back
    const bytes = new Uint8Array(batch.subarray(at + 5))
    this.give(channel, bytes, () => {
      if (given) this.fail('memory of a batch is given back twice')
      given = true
      this.lent--
      bytes.fill(0xee)
    })
  }

  protected give(channel: InboundChannel, bytes: Uint8Array, release: () => void): void {
    channel.expanded(bytes, release)
  }
}
