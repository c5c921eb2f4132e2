/**
 * The encoding half of a session: takes what flows have waiting, encodes it against the shared pool, has the columns
 * packed, and hands the batches on in the order in which they were encoded.
 */
import { assembleBatch, type PackedColumn } from '../codec/batch.ts'
import { BatchEncoder, type FlowEncoder, type PageObserver } from '../codec/encoder.ts'
import type { Workspace } from '../codec/workspace.ts'
import { ColumnPacker } from '../compression/column-packer.ts'
import type { Effort } from '../compression/effort.ts'
import { ProxyError } from '../errors.ts'
import type { Pool } from './pool.ts'

/**
 * Takes finished batches, in order. `parts` are not written again. `newBytes`: as BatchStats counts them.
 */
export type BatchSink = (
  flow: FlowEncoder,
  rawLength: number,
  parts: Uint8Array[],
  packedLength: number,
  newBytes: number,
) => void

interface Work {
  readonly flow: FlowEncoder
  readonly workspace: Workspace
  readonly rawLength: number
  readonly checksum: Uint8Array
  readonly newBytes: number
  columns: PackedColumn[] | undefined
}

export class Outbound {
  readonly pool: Pool
  private readonly encoder: BatchEncoder
  private readonly packer: ColumnPacker
  private readonly sink: BatchSink
  private readonly onError: (error: ProxyError) => void
  private readonly free: Workspace[]
  /** Batches being packed, oldest first. */
  private readonly work: Work[] = []
  private closed = false

  /**
   * @param seed of the batch checksum, two u32
   * @param onError a column could not be packed: a defect, after which nothing more comes out
   */
  constructor(pool: Pool, seed: readonly [number, number], sink: BatchSink, onError: (error: ProxyError) => void) {
    this.pool = pool
    this.encoder = new BatchEncoder(pool.kernel, seed[0], seed[1])
    this.packer = new ColumnPacker(pool.kernel.memory.buffer as unknown as SharedArrayBuffer)
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
    return this.work.length
  }

  /** Whether another batch could be encoded now. */
  get hasRoom(): boolean {
    return this.free.length > 0
  }

  /**
   * Encodes one batch of what `flow` has ready; it comes out of the sink later. Needs `hasRoom`.
   * @param release sends an incomplete record too, because its source idles
   * @returns raw bytes taken; 0: there was nothing to take
   */
  encode(flow: FlowEncoder, effort: Effort, release: boolean): number {
    const workspace = this.free.pop()!
    const newBefore = flow.stats.newBytes
    const rawLength = this.encoder.encode(flow, workspace, { longMatch: effort.longMatch, release })
    if (rawLength === 0) {
      this.free.push(workspace)
      return 0
    }
    const checksum = workspace.bytes.slice(workspace.checksumAt, workspace.checksumAt + 8)
    const newBytes = flow.stats.newBytes - newBefore
    void this.pool.warm()
    const work: Work = { flow, workspace, rawLength, checksum, newBytes, columns: undefined }
    this.work.push(work)
    this.packer.pack(workspace, rawLength, effort).then(
      columns => {
        work.columns = columns
        this.drain()
      },
      cause => {
        if (this.closed) return
        this.closed = true
        for (const done of this.waiters.splice(0)) done()
        const what = `a batch could not be packed: ${(cause as Error).message}`
        this.onError(new ProxyError('INTERNAL', what, undefined, 'please report this', { cause }))
      },
    )
    return rawLength
  }

  /** Resolves when all batches so far have come out. */
  async idle(): Promise<void> {
    while (this.work.length > 0 && !this.closed) await this.drained()
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
    for (const done of this.waiters.splice(0)) done()
    await this.packer.close()
  }

  private drain(): void {
    while (this.work[0]?.columns !== undefined && !this.closed) {
      const { flow, workspace, rawLength, checksum, newBytes, columns } = this.work.shift()!
      const parts = assembleBatch(rawLength, checksum, columns!)
      let packedLength = parts[0]!.length
      for (const column of columns!) {
        packedLength += column.packedLength
        flow.stats.columns[column.column]! += column.packedLength
      }
      flow.stats.packedBytes += packedLength
      this.free.push(workspace)
      this.sink(flow, rawLength, parts, packedLength, newBytes)
    }
    for (const done of this.waiters.splice(0)) done()
  }
}
