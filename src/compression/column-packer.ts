/**
 * Packs the raw columns of batches, in their order; large ones off the I/O thread: zstd streams in libuv's pool, LZ4 in a
 * thread of its own. One packer a session and direction, because the zstd streams reach back over its batches.
 */

import { Worker, type WorkerOptions } from 'node:worker_threads'
import { copyOfRange, copyRange } from '../bytes/copy.ts'
import { assembleBatch, type PackedColumn } from '../codec/batch.ts'
import { laidBytes, layBatch } from '../codec/laid-batch.ts'
import { COLUMN, COLUMN_COUNT, freshStreamsMax, METHOD } from '../codec/wire.ts'
import type { Workspace } from '../codec/workspace.ts'
import { ColumnBuffers } from './column-buffers.ts'
import type { Effort, ZstdSettings } from './effort.ts'
import { type Lz4Job, loadLz4, packLz4 } from './lz4.ts'
import { ZstdPacker } from './zstd-stream.ts'

/** Columns below this size are sent as they are: a codec's own head would cost as much as it saves. */
const PACK_MIN = 48
/** LZ4 of columns up to this size is done on the spot: less than handing them over costs. */
const INLINE_MAX = 4096
/** Columns below this size go no further than LZ4: zstd's table heads cost more than it saves. */
const ZSTD_MIN = 128

/** So much and no more is told by one sample: what packs may be as little as half of a batch. */
const SAMPLED_MAX = 640 * 1024
/** Samples and distinct byte values among them from which a column counts as random: 256 random bytes have 162 on average. */
const DENSE_SAMPLES = 256
const DENSE_DISTINCT = 150

/** One column's zstd stream, wherever it is packed; ZstdPacker is one. */
export interface ColumnStream {
  readonly settings: ZstdSettings
  /** Another thread packs it. */
  readonly isHelped: boolean
  /** The packed bytes of `bytes`, which stay as they are until then. In the order of the calls. */
  pack(bytes: Uint8Array): Promise<Uint8Array[]> | Uint8Array[]
  close(): void
  /** Closes after the pieces that were given. */
  closeWhenIdle(): void
}

/** Who packs streams on other threads. */
export interface StreamSupply {
  /** Whether it would take one of this column now. */
  takes(column: number, settings: ZstdSettings): boolean
  /** Begins one that it takes. */
  stream(column: number, settings: ZstdSettings): ColumnStream
  /** All of a batch is handed to its streams: it may begin. */
  begin(): void
}

/** A batch of columns that are sent as they are. */
export interface LaidBatch {
  readonly columns: readonly PackedColumn[]
  /** All of it, as frames carry it: src/codec/laid-batch.ts. */
  readonly parts: Uint8Array[]
  /** Memory of these, which comes back when the peer has acknowledged the batch. */
  readonly lent: Buffer
}

export class ColumnPacker {
  private readonly zstd: (ColumnStream | undefined)[] = new Array(COLUMN_COUNT).fill(undefined)
  private readonly buffers = new ColumnBuffers()
  private readonly buffer: SharedArrayBuffer
  private readonly supply: StreamSupply | undefined
  private readonly startWorker: (options: WorkerOptions) => Worker
  /** Null: the system gave none. */
  private worker: Worker | null | undefined
  private readonly answers: {
    readonly done: (lengths: number[]) => void
    readonly failed: (error: unknown) => void
  }[] = []
  /** Why its thread has ended. */
  private failure: unknown
  private rawBytes = 0
  private freshStreams = 0

  /**
   * @param buffer of the kernel's memory, which the workspaces lie in
   * @param supply who packs on other threads; undefined: zstd does in libuv's, or here
   * @param startWorker may throw
   */
  constructor(
    buffer: SharedArrayBuffer,
    supply?: StreamSupply,
    startWorker = (options: WorkerOptions) => new Worker(new URL(workerFile(), import.meta.url), options),
  ) {
    this.buffer = buffer
    this.supply = supply
    this.startWorker = startWorker
  }

  /**
   * Packs all columns of a workspace. Calls must come in the order of the batches; they may overlap. The workspace must
   * stay untouched until the promise settles.
   * @param rawLength bytes that the batch expands to
   * @returns at once where no column needs a thread: a batch of references, which costs little else
   */
  pack(workspace: Workspace, rawLength: number, effort: Effort): PackedColumn[] | Promise<PackedColumn[]> {
    this.rawBytes += rawLength
    const ready: PackedColumn[] = []
    const pending: Promise<PackedColumn>[] = []
    const jobs: Lz4Job[] = []
    const jobColumns: number[] = []
    let packedAt = workspace.packedAt
    for (let column = 0; column < COLUMN_COUNT; column++) {
      const length = workspace.columnLength[column]!
      if (length === 0) continue
      if (
        effort.method === 'raw' ||
        length < PACK_MIN ||
        column === COLUMN.DENSE ||
        (length > INLINE_MAX && looksRandom(workspace.column(column)))
      ) {
        ready.push(this.stored(workspace, column))
      } else if (effort.zstd && length >= ZSTD_MIN && this.mayPackZstd(column)) {
        const packed = this.packZstd(workspace, column, ofPages(column) ? effort.zstd.pages : effort.zstd.others)
        if (packed instanceof Promise) pending.push(packed)
        else ready.push(packed)
      } else if (effort.method === 'stored' && column === COLUMN.PAGES) {
        ready.push(this.stored(workspace, column))
      } else if (length <= INLINE_MAX) {
        ready.push(packInline(workspace, column) ?? this.stored(workspace, column))
      } else {
        const room = length - (length >> 5) // a gain of 3 % or none
        jobs.push({ at: workspace.columnAt[column]!, length, out: packedAt, room })
        jobColumns.push(column)
        packedAt += room
      }
    }
    if (pending.length === 0 && jobs.length === 0) return ready // in the order of columns
    this.supply?.begin()
    return this.gather(workspace, ready, pending, jobs, jobColumns)
  }

  /** In place of `pack`, of a raw batch: all columns as they are, put together and copied once. @param checksum as `assembleBatch` */
  lay(workspace: Workspace, rawLength: number, checksum: Uint8Array): LaidBatch {
    this.rawBytes += rawLength
    const columns: PackedColumn[] = []
    for (let column = 0; column < COLUMN_COUNT; column++) {
      const length = workspace.columnLength[column]!
      if (length > 0) columns.push(packedColumn(column, METHOD.STORED, length, [workspace.column(column)]))
    }
    const parts = assembleBatch(rawLength, checksum, columns)
    let length = 0
    for (const part of parts) length += part.length
    const lent = this.buffers.take(laidBytes(length))
    return { columns, parts: layBatch(parts, lent), lent }
  }

  /** The peer has acknowledged a batch of these columns: nobody reads them any more. @param laid where it was */
  giveBack(columns: readonly PackedColumn[], laid?: LaidBatch): void {
    if (laid) this.buffers.give(laid.lent)
    for (const { lent } of columns) if (lent !== undefined) this.buffers.give(lent)
  }

  /** As it is, copied: the workspace is used again before the peer has acknowledged the batch. */
  private stored(workspace: Workspace, column: number): PackedColumn {
    const at = workspace.columnAt[column]!
    const length = workspace.columnLength[column]!
    const lent = this.buffers.take(length)
    copyRange(workspace.bytes, at, at + length, lent, 0)
    return { ...packedColumn(column, METHOD.STORED, length, [lent.subarray(0, length)]), lent }
  }

  private async gather(
    workspace: Workspace,
    columns: PackedColumn[],
    pending: readonly Promise<PackedColumn>[],
    jobs: readonly Lz4Job[],
    jobColumns: readonly number[],
  ): Promise<PackedColumn[]> {
    // both at once: what fails while nobody waits for it would end the process
    const [packed, lengths] = await Promise.all([Promise.all(pending), jobs.length > 0 ? this.runLz4(jobs) : []])
    columns.push(...packed)
    for (const [i, { length, out }] of jobs.entries()) {
      const column = jobColumns[i]!
      const end = out + lengths[i]!
      columns.push(
        end === out
          ? this.stored(workspace, column)
          : packedColumn(column, METHOD.LZ4, length, [copyOfRange(workspace.bytes, out, end)]),
      )
    }
    return columns.sort((a, b) => a.column - b.column)
  }

  /** Ends threads and streams. */
  async close(): Promise<void> {
    for (const stream of this.zstd) stream?.close()
    await this.worker?.terminate()
  }

  /** Whether the column has a stream, or another may begin: protocol.md §4 bounds how many do. */
  private mayPackZstd(column: number): boolean {
    return this.zstd[column] !== undefined || this.mayBegin
  }

  private get mayBegin(): boolean {
    return this.freshStreams < freshStreamsMax(this.rawBytes)
  }

  private packZstd(workspace: Workspace, column: number, settings: ZstdSettings): PackedColumn | Promise<PackedColumn> {
    let method: 2 | 3 = METHOD.ZSTD
    let stream = this.zstd[column]
    // where none may begin now, the one that is there goes on at its level
    const isHelped = this.supply?.takes(column, settings) === true
    if (stream === undefined || ((stream.settings !== settings || (isHelped && !stream.isHelped)) && this.mayBegin)) {
      this.freshStreams++
      stream?.closeWhenIdle()
      stream = isHelped ? this.supply!.stream(column, settings) : new ZstdPacker(settings)
      this.zstd[column] = stream
      method = METHOD.ZSTD_FRESH
    }
    const raw = workspace.column(column)
    const packed = stream.pack(raw)
    if (Array.isArray(packed)) return packedColumn(column, method, raw.length, packed)
    return packed.then(parts => packedColumn(column, method, raw.length, parts))
  }

  /** Starts the thread for LZ4, which takes 90 ms: a guest that waits for its first batch should not wait for that, too. */
  warm(): void {
    if (this.worker !== undefined) return
    try {
      this.worker = this.startThread()
    } catch {
      this.worker = null // no more threads for this process: all is packed here
    }
  }

  private runLz4(jobs: readonly Lz4Job[]): number[] | Promise<number[]> {
    this.warm()
    const { worker } = this
    if (!worker) return packLz4(this.buffer, jobs)
    worker.ref()
    return new Promise((done, failed) => {
      if (this.failure !== undefined) {
        failed(this.failure)
        return
      }
      this.answers.push({ done, failed })
      worker.postMessage(jobs)
    })
  }

  private startThread(): Worker {
    const worker = this.startWorker({ workerData: { buffer: this.buffer } })
    worker.on('message', (lengths: number[]) => {
      this.answers.shift()!.done(lengths)
      if (this.answers.length === 0) worker.unref()
    })
    worker.on('error', error => {
      this.failure = error
      for (const { failed } of this.answers.splice(0)) failed(error)
    })
    worker.unref() // an idle thread keeps no process alive
    return worker
  }
}

function ofPages(column: number): boolean {
  return column === COLUMN.PAGES || column === COLUMN.WORDS
}

/** Sources run as they are; a built package has JavaScript. */
function workerFile(): string {
  return import.meta.url.endsWith('.ts') ? './lz4-worker.ts' : './lz4-worker.js'
}

function packedColumn(
  column: number,
  method: PackedColumn['method'],
  rawLength: number,
  parts: Uint8Array[],
): PackedColumn {
  let packedLength = 0
  for (const part of parts) packedLength += part.length
  return { column, method, rawLength, parts, packedLength }
}

const inlineOut = Buffer.alloc(INLINE_MAX)

/** Undefined where nothing would be gained. */
function packInline(workspace: Workspace, column: number): PackedColumn | undefined {
  const at = workspace.columnAt[column]!
  const length = workspace.columnLength[column]!
  const out = inlineOut.subarray(0, length - 1)
  const packed = loadLz4().encodeBlock(Buffer.from(workspace.bytes.buffer, at, length), out)
  if (packed === 0) return undefined
  return packedColumn(column, METHOD.LZ4, length, [new Uint8Array(out.subarray(0, packed))])
}

/** Whether a sample of the bytes looks like ciphertext or packed data, which no codec gains on. Of a large column both halves must. */
function looksRandom(bytes: Uint8Array): boolean {
  if (bytes.length > SAMPLED_MAX) {
    const half = bytes.length >>> 1
    return looksRandom(bytes.subarray(0, half)) && looksRandom(bytes.subarray(half))
  }
  const seen = new Uint8Array(256)
  let distinct = 0
  const step = Math.floor(bytes.length / DENSE_SAMPLES)
  for (let i = 0; i < DENSE_SAMPLES; i++) {
    const byte = bytes[i * step]!
    if (seen[byte] === 0) {
      seen[byte] = 1
      distinct++
    }
  }
  return distinct >= DENSE_DISTINCT
}
