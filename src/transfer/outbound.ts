/**
 * The encoding half of a session: takes what flows have waiting, encodes it against the shared pool, has the columns
 * packed, and hands the batches on in the order in which they were encoded.
 */
import { assembleBatch } from '../codec/batch.ts'
import { BatchEncoder, type BegunBatch } from '../codec/encoder.ts'
import type { PageObserver } from '../codec/observer.ts'
import type { SetGains } from '../codec/set-gains.ts'
import type { BatchCounts } from '../codec/stats.ts'
import type { Workspace } from '../codec/workspace.ts'
import { ColumnPacker } from '../compression/column-packer.ts'
import { EFFORTS, type Effort } from '../compression/effort.ts'
import { ProxyError } from '../errors.ts'
import type { BatchJob, BatchReport, OutboundChannel } from './batch-job.ts'
import { ColdFinder } from './cold/cold-finder.ts'
import type { ColdIndex } from './cold/cold-index.ts'
import type { ColdLease } from './cold/cold-sets.ts'
import { LongGain } from './long-gain.ts'
import { gainsOf, type Pool } from './pool.ts'

/**
 * Takes finished batches, in order. `parts` are not written again, unless `release` is called: once nobody reads them. Who
 * never calls it leaves them to the collector.
 */
export type BatchSink<C> = (channel: C, parts: Uint8Array[], report: BatchReport, release?: () => void) => void

function finderOf({ named, digesters, kept }: ColdLease, index: ColdIndex): ColdFinder {
  return new ColdFinder(index, named, digesters, kept)
}

/** @typeParam C the channels whose batches it makes, as the sink wants them back */
export class Outbound<C extends OutboundChannel> {
  readonly pool: Pool
  /** What sets bring, by migration; undefined: there are none. */
  readonly gains: SetGains | undefined
  private readonly encoder: BatchEncoder
  private readonly packer: ColumnPacker
  private readonly sink: BatchSink<C>
  private readonly onError: (error: ProxyError) => void
  private readonly free: Workspace[]
  /** Of disks: whether long matches are worth it. */
  private readonly longGains = new WeakMap<C, LongGain>()
  /** Batches being packed, oldest first. */
  private readonly jobs: BatchJob<C>[] = []
  /** The last of them, where parts of its pages are still looked for. */
  private begun: { readonly job: BatchJob<C>; readonly batch: BegunBatch } | undefined
  private closed = false

  /**
   * @param seed of the batch checksum, two u32
   * @param onError a column could not be packed, or a batch handed on: a defect, after which nothing more comes out
   */
  constructor(pool: Pool, seed: readonly [number, number], sink: BatchSink<C>, onError: (error: ProxyError) => void) {
    this.pool = pool
    this.encoder = new BatchEncoder(pool.kernel, seed[0], seed[1])
    if (pool.cold?.index) this.encoder.cold = finderOf(pool.cold, pool.cold.index)
    this.encoder.kept = pool.cold?.kept
    this.gains = gainsOf(pool)
    this.encoder.gains = this.gains
    this.encoder.finder = pool.encoding
    this.packer = new ColumnPacker(pool.kernel.memory.buffer as unknown as SharedArrayBuffer, pool.encoding)
    this.sink = sink
    this.onError = onError
    this.free = [...pool.workspaces]
  }

  /** Who looks on as pages pass: learning. */
  set observer(observer: PageObserver | undefined) {
    this.encoder.observer = observer
  }

  /** Makes ready for batches that must not wait: `ColumnPacker.warm`. */
  warm(): void {
    this.packer.warm()
  }

  /** Batches being packed. */
  get underWay(): number {
    return this.jobs.length
  }

  /** Whether another batch could be encoded now. */
  get hasRoom(): boolean {
    return this.free.length > 0
  }

  /**
   * Encodes one batch of what a channel has ready; it comes out of the sink later. Needs `hasRoom`.
   * @param release sends an incomplete record too, because its source idles
   * @param useCold it may name pages that the other side has to read from its disk
   * @param keep new blocks of a disk are kept by both sides
   * @returns raw bytes taken; 0: there was nothing to take
   */
  encode(channel: C, effort: Effort, release: boolean, useCold = true, keep = false): number {
    this.finishBegun()
    const job = this.jobOf(channel, effort, release, useCold, keep)
    if (job === undefined) return 0
    const { length } = job.loan
    this.match(job)
    void this.pack(job) // what is raw is copied here
    job.loan.release()
    return length
  }

  /**
   * The same of a channel that is no disk's, but while helpers look for parts of its pages, the next batch is begun: it comes
   * out behind the next call of either, or `finishBegun`. Until then its bytes stay in the channel's buffer.
   */
  encodeAhead(channel: C, effort: Effort): number {
    const job = this.jobOf(channel, effort, false, true, false)
    if (job === undefined) {
      this.finishBegun()
      return 0
    }
    const { begun: before, encoder } = this
    this.begun = undefined
    const { workspace, loan } = job
    const batch = encoder.begin(channel.encoder, loan, workspace, effort.longMatch)
    if (before) encoder.settle(before.batch)
    const isAhead = encoder.lookAhead(batch)
    if (before) this.finish(before.job, before.batch)
    if (isAhead) this.begun = { job, batch }
    else {
      encoder.settle(batch)
      this.finish(job, batch)
    }
    return loan.length
  }

  /** Nothing follows for a while. */
  finishBegun(): void {
    const { begun } = this
    if (begun === undefined) return
    this.begun = undefined
    this.encoder.settle(begun.batch)
    this.finish(begun.job, begun.batch)
  }

  private finish(job: BatchJob<C>, batch: BegunBatch): void {
    job.counts = this.encoder.write(batch)
    this.matched(job, job.counts)
    void this.pack(job)
    job.loan.release()
  }

  /** @returns undefined where there is nothing to encode */
  private jobOf(
    channel: C,
    effort: Effort,
    release: boolean,
    useCold: boolean,
    keep: boolean,
  ): BatchJob<C> | undefined {
    const { encoder, buffer } = channel
    const rawLength = release ? encoder.waiting : encoder.ready
    if (rawLength === 0) return undefined
    const job: BatchJob<C> = {
      channel,
      effort: effort.method === 'raw' && encoder.isDisk ? EFFORTS[0]! : effort,
      useCold,
      keep,
      workspace: this.free.pop()!,
      loan: buffer.lend(rawLength),
      looked: false,
      gain: undefined,
      counts: undefined,
      checksum: undefined,
      columns: undefined,
      laid: undefined,
    }
    this.jobs.push(job)
    this.pool.warm().catch(cause => this.fail(cause))
    this.gains?.open(channel.encoder.migration)
    this.gains?.begin(channel.encoder.migration)
    return job
  }

  /** It comes out later, also where it is packed at once: who encodes counts it first. */
  private async pack(job: BatchJob<C>): Promise<void> {
    try {
      if (job.effort.method === 'raw') {
        job.laid = this.packer.lay(job.workspace, job.loan.length, job.checksum!)
        job.columns = await job.laid.columns
      } else job.columns = await this.packer.pack(job.workspace, job.loan.length, job.effort)
      this.drain()
    } catch (cause) {
      this.fail(cause)
    }
  }

  /** A defect: nothing comes out any more. */
  private fail(cause: unknown): void {
    if (this.closed) return
    this.closed = true
    for (const done of this.waiters.splice(0)) done()
    const what = `a batch could not be sent: ${(cause as Error).message}`
    this.onError(new ProxyError('INTERNAL', what, undefined, 'please report this', { cause }))
  }

  /** Here and at once: the encoder takes all that it needs of the channel's bytes, but of a raw batch. */
  private match(job: BatchJob<C>): void {
    const { channel, effort, useCold, keep, workspace, loan } = job
    if (effort.method === 'raw') {
      job.counts = this.encoder.pass(channel.encoder, loan, workspace)
      this.matched(job, job.counts)
      return
    }
    job.gain = channel.encoder.isDisk && effort.isSelective ? this.longGain(channel) : undefined
    job.looked = effort.longMatch > 0 && (job.gain?.next() ?? true)
    const longMatch = job.looked ? effort.longMatch : 0
    job.counts = this.encoder.encode(channel.encoder, loan, workspace, longMatch, useCold, keep)
    this.matched(job, job.counts)
  }

  private matched(job: BatchJob<C>, counts: BatchCounts): void {
    const { workspace } = job
    job.checksum = workspace.bytes.slice(workspace.checksumAt, workspace.checksumAt + 8)
    job.channel.encoder.stats.add(counts)
  }

  /** Of a disk. */
  private longGain(channel: C): LongGain {
    let gain = this.longGains.get(channel)
    if (gain === undefined) {
      gain = new LongGain()
      this.longGains.set(channel, gain)
    }
    return gain
  }

  /** Resolves when all batches so far have come out. */
  async idle(): Promise<void> {
    while (this.jobs.length > 0 && !this.closed) await this.drained()
  }

  /** Resolves when another batch can be encoded, or nothing comes out any more. */
  async room(): Promise<void> {
    while (!this.hasRoom && !this.closed) await this.drained()
  }

  private drained(): Promise<void> {
    return new Promise(done => this.waiters.push(done))
  }

  private waiters: (() => void)[] = []

  async close(): Promise<void> {
    this.closed = true
    this.pool.encoding?.leave()
    for (const done of this.waiters.splice(0)) done()
    await this.packer.close()
  }

  private drain(): void {
    while (this.jobs[0]?.columns !== undefined && !this.closed) {
      const { channel, effort, workspace, loan, counts, checksum, columns, laid, gain, looked } = this.jobs.shift()!
      const parts = laid?.parts ?? assembleBatch(loan.length, checksum!, columns!)
      const { stats } = channel.encoder
      let packedLength = 0
      for (const part of parts) packedLength += part.length
      for (const column of columns!) stats.columns[column.column]! += column.packedLength
      stats.packedBytes += packedLength
      gain?.packed(looked, counts!.newBytes, packedLength)
      this.free.push(workspace)
      const report = {
        ...{ rawLength: loan.length, packedLength, newBytes: counts!.newBytes, isLaid: laid !== undefined },
        ...(!channel.encoder.isDisk && { effort }), // a disk's say nothing of RAM that passes raw
      }
      this.sink(channel, parts, report, () => this.packer.giveBack(columns!, laid))
    }
    for (const done of this.waiters.splice(0)) done()
  }
}
