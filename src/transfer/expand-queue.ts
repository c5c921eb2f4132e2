/**
 * What a session expands next: batches, and what is to be done between them, strictly in the order in which they came,
 * whatever their channels; how much of them may wait; what each costs of a turn (turns.ts). Pure.
 */
import { CHUNKS } from '../bytes/chunks.ts'
import { rawLengthOf } from '../codec/batch-head.ts'
import { ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import { BATCHES_WAITING_FREE_BYTES, BATCHES_WAITING_PER_RAW_BYTE, BATCHES_WAITING_UNPAID_BYTES } from '../limits.ts'
import { Deque } from '../session/deque.ts'
import { keptParts } from '../session/kept-payloads.ts'
import type { AheadBatch, UnpackAhead, WrongAhead } from './helpers/unpack-ahead.ts'

/** What a batch costs besides its work, however small it is: some 30 us. */
export const WORK_PER_BATCH = 1 << 17
/** What a piece costs that needs no expanding, or an end of a flow: some 5 us. */
export const WORK_PER_MARK = 1 << 14

/** A whole batch, in pieces. @typeParam C - whose bytes it has */
export interface BatchToExpand<C> {
  readonly channel: C
  /** Empty once a thread has it. */
  parts: readonly Uint8Array[]
  /** What a thread makes of it before its turn; undefined: it waits for that. */
  ahead?: AheadBatch | WrongAhead | undefined
  readonly packedBytes: number
  readonly rawBytes: number
}

/** Something to do once all batches before it are expanded. */
interface Mark<C> {
  readonly then: () => void
  /** Whose bytes wait for it; undefined: none do. */
  readonly channel?: C | undefined
  readonly rawBytes: number
}

export type ExpandJob<C> = BatchToExpand<C> | Mark<C>

export class ExpandQueue<C> {
  private readonly jobs = new Deque<ExpandJob<C>>()
  /** Batches among them that no thread has. */
  private readonly packed = new Deque<BatchToExpand<C>>()
  /** Gives batches to threads before their turn; undefined: all are unpacked in it. */
  private readonly ahead: Pick<UnpackAhead, 'offer'> | undefined
  /** Of the batches among them. */
  private packedBytes = 0
  private rawBytes = 0
  /** Raw bytes of batches and marks by channel, as credit counts them. */
  private readonly rawOf = new Map<C, number>()
  /** Channels among them whose credit was given back, and raw bytes of all of these. */
  private readonly orphans = new Set<C>()
  private orphanBytes = 0
  private readonly memory: Share | undefined

  /** @param memory pays for packed bytes that wait and that credit has not paid for. Default: nobody does */
  constructor(memory?: Share, ahead?: Pick<UnpackAhead, 'offer'>) {
    this.memory = memory
    this.ahead = ahead
  }

  get length(): number {
    return this.jobs.length
  }

  /** What is at the front, and waits on. */
  peek(): ExpandJob<C> | undefined {
    return this.jobs.peek()
  }

  /** Whether all that was pushed is in other memory than it came in. */
  get isKept(): boolean {
    return this.packed.length === 0
  }

  /**
   * @param waits it is not taken at once
   * @returns LIMIT_EXCEEDED where more packed bytes wait than their raw ones may have, or can be paid for: it is not taken
   */
  push(channel: C, parts: readonly Uint8Array[], waits = true): ProxyError | undefined {
    let packedBytes = 0
    for (const part of parts) packedBytes += part.length
    const rawBytes = Math.max(0, rawLengthOf(parts))
    const packed = this.packedBytes + packedBytes
    const raw = this.rawBytes + rawBytes
    if (packed > BATCHES_WAITING_FREE_BYTES + BATCHES_WAITING_PER_RAW_BYTE * raw || !this.pay(packed, raw)) {
      const what = `batches of ${packed} bytes wait that expand to ${raw}`
      return new ProxyError('LIMIT_EXCEEDED', what, undefined, 'the session ends and the source guest goes on')
    }
    this.packedBytes = packed
    this.rawBytes = raw
    this.count(channel, rawBytes)
    const ahead = this.packed.length === 0 ? this.ahead?.offer(parts) : undefined
    const kept = ahead ? [] : waits ? keptParts(parts) : parts
    if (kept !== parts) CHUNKS.giveBack(parts) // all of it is elsewhere, or wrong
    const job: BatchToExpand<C> = { channel, parts: kept, ahead, packedBytes, rawBytes }
    this.jobs.push(job)
    if (ahead === undefined) this.packed.push(job)
    return undefined
  }

  /** A slot may be free: gives threads what they have not got yet, in its order. */
  offerMore(): void {
    for (let job = this.packed.peek(); job !== undefined; job = this.packed.peek()) {
      job.ahead = this.ahead?.offer(job.parts)
      if (job.ahead === undefined) return
      CHUNKS.giveBack(job.parts)
      job.parts = []
      this.packed.shift()
    }
  }

  /**
   * Nothing comes for a channel any more, and its credit is another's: the budget pays for what still waits of it. Where that
   * has not as much, the next batch is not taken.
   */
  orphan(channel: C): void {
    const raw = this.rawOf.get(channel)
    if (raw === undefined || this.orphans.has(channel)) return
    this.orphans.add(channel)
    this.orphanBytes += raw
    this.pay(this.packedBytes, this.rawBytes)
  }

  /** Something to do behind all that waits. @param rawBytes that wait for it, of a channel */
  mark(then: () => void, channel?: C, rawBytes = 0): void {
    if (channel !== undefined) this.count(channel, rawBytes)
    this.jobs.push({ then, channel, rawBytes })
  }

  /** The next, which waits no more. */
  next(): ExpandJob<C> | undefined {
    const job = this.jobs.shift()
    if (job === undefined) return undefined
    if (job.channel !== undefined) this.count(job.channel, -job.rawBytes)
    if ('parts' in job) {
      this.packedBytes -= job.packedBytes
      this.rawBytes -= job.rawBytes
      if (job.ahead === undefined) this.packed.shift() // none before it is left
    }
    this.pay(this.packedBytes, this.rawBytes)
    return job
  }

  private count(channel: C, rawBytes: number): void {
    const raw = (this.rawOf.get(channel) ?? 0) + rawBytes
    if (this.orphans.has(channel)) this.orphanBytes += rawBytes
    if (raw > 0) this.rawOf.set(channel, raw)
    else {
      this.rawOf.delete(channel)
      this.orphans.delete(channel)
    }
  }

  clear(): void {
    this.jobs.clear()
    this.packed.clear()
    this.packedBytes = 0
    this.rawBytes = 0
    this.rawOf.clear()
    this.orphans.clear()
    this.orphanBytes = 0
    this.pay(0, 0)
  }

  /** Nothing waits any more, nor ever will. */
  close(): void {
    this.clear()
    this.memory?.close()
  }

  /** Takes or gives back what so many bytes that wait are to be paid for. @returns false where there is not as much */
  private pay(packedBytes: number, rawBytes: number): boolean {
    const { memory } = this
    if (memory === undefined) return true
    const need = Math.max(0, packedBytes - (rawBytes - this.orphanBytes) - BATCHES_WAITING_UNPAID_BYTES)
    if (need === memory.held) return true
    if (need > memory.held) return memory.take(need - memory.held)
    memory.give(memory.held - need)
    return true
  }
}
