/**
 * The expanding half of a session: batches in the order in which they were numbered, one at a time, into memory that is
 * lent to QEMU's sockets.
 *
 * Where the pool has helpers for it (`decoding`), batches are unpacked by them before their turn, as far as the session has
 * slots for that. In what order they take effect, and when a damaged one is an error, is as ever.
 *
 * What waits for QEMU takes no more memory than its raw bytes, which credit bounds, and some 300 bytes a piece, which
 * PIECES_MAX bounds: a batch lies alone in a slot of the pool, of which there is a fixed number, or in a copy of exactly
 * its length. What waits to be expanded takes its packed bytes, which protocol.md §4 bounds by the raw ones.
 */
import { CHUNKS } from '../bytes/chunks.ts'
import { copyOfRange } from '../bytes/copy.ts'
import { type ArrivedBatch, parseBatch } from '../codec/batch.ts'
import { BatchExpander } from '../codec/expander.ts'
import type { FlowExpander } from '../codec/flow-expander.ts'
import type { PageObserver } from '../codec/observer.ts'
import type { SetGains } from '../codec/set-gains.ts'
import { ColumnUnpacker } from '../compression/column-unpacker.ts'
import { assert, ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import { BATCH_RAW_BYTES_MAX } from '../limits.ts'
import { ColdFetcher, type ColdFetcherOptions } from './cold/cold-fetcher.ts'
import { type BatchToExpand, ExpandQueue, WORK_PER_BATCH, WORK_PER_MARK } from './expand-queue.ts'
import { type AheadBatch, UnpackAhead } from './helpers/unpack-ahead.ts'
import { gainsOf, type Pool } from './pool.ts'
import type { Turns } from './turns.ts'

/** Batches up to this size are copied out instead of holding a slot of a whole megabyte. */
const COPY_MAX = 65536

/** A channel as the expanding half sees it. */
export interface InboundChannel {
  readonly expander: FlowExpander
  /** Takes expanded bytes, in order. `release` gives the memory back: call it once the bytes have been used. */
  expanded(bytes: Uint8Array, release: () => void): void
}

/** A batch in its turn. */
interface UnpackedBatch extends Pick<ArrivedBatch, 'rawLength' | 'checksum'> {
  /** Where a thread unpacked it; undefined: into the workspace. */
  readonly ahead: AheadBatch | undefined
  /** What is to be waited for first. */
  readonly unpacking: Promise<unknown> | undefined
}

export class Inbound {
  readonly pool: Pool
  /** What sets bring to the migrations that it is told of; undefined: there are none. */
  readonly gains: SetGains | undefined
  private readonly turns: Turns
  private readonly expander: BatchExpander
  private readonly unpacker = new ColumnUnpacker()
  /** Undefined where all is unpacked on this thread. */
  private readonly ahead: UnpackAhead | undefined
  /** Undefined where no sets on the disk were agreed. */
  private readonly fetcher: ColdFetcher | undefined
  private readonly onError: (error: ProxyError) => void
  private readonly holder: string
  /** The last slot is where batches are expanded that are copied out. */
  private readonly scratch: number
  private readonly free: number[]
  private readonly jobs: ExpandQueue<InboundChannel>
  private running = false
  private failed = false

  /**
   * @param seed of the batch checksum, two u32
   * @param onError a batch was damaged: pools may differ, nothing more is expanded
   * @param holder who gets turns for it: an identity, whose sessions share them
   * @param memory pays for packed bytes that wait and that credit has not paid for; closed with this
   * @param cold what to do where a page of a set cannot be read
   */
  constructor(
    pool: Pool,
    seed: readonly [number, number],
    onError: (error: ProxyError) => void,
    holder = '',
    memory?: Share,
    cold: Pick<ColdFetcherOptions, 'ask' | 'onFailure'> = {},
  ) {
    assert(
      pool.slots.length > 0 && pool.slotBytes >= BATCH_RAW_BYTES_MAX,
      'an expanding pool needs slots of a whole batch',
    )
    this.pool = pool
    this.turns = pool.turns
    this.expander = new BatchExpander(pool.kernel, seed[0], seed[1])
    this.gains = gainsOf(pool)
    this.expander.gains = this.gains
    this.expander.kept = pool.cold?.kept
    if (pool.cold) this.fetcher = new ColdFetcher({ ...pool.cold, ...cold, gains: this.gains })
    this.onError = onError
    this.holder = holder
    if (pool.decoding) this.ahead = new UnpackAhead(pool.decoding.help, pool.kernel.bytes, pool.decoding.slots, holder)
    this.jobs = new ExpandQueue(memory, this.ahead)
    this.free = pool.slots.slice(0, -1)
    this.scratch = pool.slots.at(-1)!
  }

  /** Who looks on as pages pass: learning. */
  set observer(observer: PageObserver | undefined) {
    this.expander.observer = observer
  }

  /** The next batch, whole, in pieces. */
  push(channel: InboundChannel, parts: readonly Uint8Array[]): void {
    if (this.failed) return
    // one that is expanded at once need not be kept apart from the chunk that it came in
    const refused = this.jobs.push(channel, parts, this.running || !this.turns.hasTime || this.free.length === 0)
    if (refused) {
      this.fail(refused)
      return
    }
    this.pool.warm().catch(error => this.defect(error))
    if (!this.running) void this.run()
  }

  /**
   * Calls back once all batches so far are expanded: at once where none is under way, and this turn has time.
   * @param channel whose `rawBytes` wait for it. Default: none do
   */
  mark(then: () => void, channel?: InboundChannel, rawBytes = 0): void {
    if (!this.running && (this.failed || this.turns.hasTime)) {
      this.turns.spend(WORK_PER_MARK)
      then()
      return
    }
    this.jobs.mark(then, channel, rawBytes)
    if (!this.running) void this.run()
  }

  /** Nothing comes for this channel any more, and its credit was given back: what waits of it is paid for otherwise. */
  orphan(channel: InboundChannel): void {
    this.jobs.orphan(channel)
  }

  /** Whether the session carries disks. */
  set disks(carries: boolean) {
    this.expander.disks = carries
  }

  /** Batches and marks that wait for their turn. */
  get waiting(): number {
    return this.jobs.length
  }

  /** Resolves when all batches so far are expanded, or one failed. */
  async idle(): Promise<void> {
    while (this.running) await new Promise<void>(done => this.waiters.push(done))
  }

  private waiters: (() => void)[] = []

  /** Resolves when nothing of what was pushed is needed where it came any more. */
  async taken(): Promise<void> {
    if (this.ahead === undefined) return this.idle()
    while (this.running && !this.jobs.isKept) await new Promise<void>(done => this.takers.push(done))
  }

  private takers: (() => void)[] = []

  close(): void {
    this.failed = true
    this.jobs.close()
    this.unpacker.close()
    this.ahead?.close()
    this.fetcher?.close()
  }

  private async run(): Promise<void> {
    this.running = true
    try {
      while (!this.failed && this.jobs.length > 0) {
        const unpacking = this.unpacking()
        if (unpacking !== undefined) await unpacking
        if (this.failed) break
        if (!this.turns.hasTime || this.lacksSlot) {
          await this.turns.next(this.holder)
          if (this.failed) break
          this.isStuck = this.free.length === 0
        }
        const job = this.jobs.next()!
        if ('then' in job) {
          this.turns.spend(WORK_PER_MARK)
          job.then()
          continue
        }
        const workBefore = this.expander.work
        this.gains?.begin(job.channel.expander.migration)
        const batch = this.unpack(job)
        if (batch.unpacking !== undefined) await batch.unpacking
        if (this.failed) break
        if (batch.ahead) this.ahead!.lay(batch.ahead, this.pool.workspaces[0]!)
        const fetching = this.fetcher?.fetch(job.channel.expander, this.pool.workspaces[0]!, batch.rawLength)
        if (fetching !== undefined) await fetching
        if (!this.failed) this.expand(job.channel, batch)
        if (batch.ahead) this.ahead!.release(batch.ahead)
        // Not before: the checksum lies there too. What a stream unpacked elsewhere goes to the collector; a thread has a copy.
        if (batch.ahead || batch.unpacking === undefined) CHUNKS.giveBack(job.parts)
        this.jobs.offerMore()
        if (this.jobs.isKept) for (const done of this.takers.splice(0)) done()
        this.turns.spend(WORK_PER_BATCH + this.expander.work - workBefore)
      }
    } catch (error) {
      if (error instanceof ProxyError) this.fail(error)
      else this.defect(error)
    } finally {
      this.running = false
      for (const done of [...this.waiters.splice(0), ...this.takers.splice(0)]) done()
    }
  }

  /** A turn gave no slot back: who has them does not read, and is not waited for until it does. */
  private isStuck = false

  /**
   * The batch at the front would be copied for want of a slot: sockets get a turn first, which gives some back. One that
   * does not read gets copies all the same, and holds up no other.
   */
  private get lacksSlot(): boolean {
    const front = this.jobs.peek()!
    return this.free.length === 0 && !this.isStuck && 'parts' in front && front.rawBytes > COPY_MAX
  }

  /** What the batch at the front waits for, where a thread has it. @throws as `unpack` */
  private unpacking(): Promise<void> | undefined {
    const front = this.jobs.peek()!
    return 'parts' in front && front.ahead ? this.ahead!.finished(front.ahead) : undefined
  }

  /** @throws BATCH_FORMAT, also as rejection of `unpacking`; there INTERNAL too */
  private unpack({ parts, ahead }: BatchToExpand<InboundChannel>): UnpackedBatch {
    const [workspace] = this.pool.workspaces
    if (ahead && 'error' in ahead) throw ahead.error
    if (ahead) return { ...ahead, ahead, unpacking: undefined }
    if (this.ahead) {
      const taken = this.ahead.take(parts, workspace!)
      return { ...taken, ahead: taken, unpacking: this.ahead.finished(taken) }
    }
    const batch = parseBatch(parts)
    return { ...batch, ahead: undefined, unpacking: this.unpacker.unpack(batch, workspace!) }
  }

  private defect(error: unknown): void {
    const what = `a batch could not be expanded: ${(error as Error).message}`
    this.fail(new ProxyError('INTERNAL', what, undefined, 'please report this', { cause: error }))
  }

  private fail(error: ProxyError): void {
    if (this.failed) return
    this.failed = true
    this.jobs.clear()
    this.onError(error)
  }

  private expand(channel: InboundChannel, batch: Pick<ArrivedBatch, 'rawLength' | 'checksum'>): void {
    const { rawLength, checksum } = batch
    const memory = this.pool.kernel.bytes
    const slot = rawLength > COPY_MAX ? this.free.pop() : undefined
    const out = slot ?? this.scratch
    this.expander.expand(channel.expander, this.pool.workspaces[0]!, rawLength, checksum, out)
    if (slot === undefined) channel.expanded(copyOfRange(memory, out, out + rawLength), () => {})
    else
      channel.expanded(memory.subarray(out, out + rawLength), () => {
        this.free.push(slot)
        this.isStuck = false
      })
  }
}
