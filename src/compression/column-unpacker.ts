/** Unpacks the columns of batches, in their order, into a workspace. One unpacker a session and direction. */
import { copyRange } from '../bytes/copy.ts'
import type { ArrivedBatch } from '../codec/batch.ts'
import { COLUMN_COUNT, freshStreamsMax, METHOD, windowLogMax } from '../codec/wire.ts'
import type { Workspace } from '../codec/workspace.ts'
import { ProxyError } from '../errors.ts'
import { loadLz4 } from './lz4.ts'
import { ZstdUnpacker } from './zstd-stream.ts'

/** Where columns go: what of a workspace an unpacker needs. */
export type UnpackedColumns = Pick<Workspace, 'bytes' | 'columnAt' | 'columnLength' | 'clear'>

export class ColumnUnpacker {
  private readonly zstd: (ZstdUnpacker | undefined)[] = new Array(COLUMN_COUNT).fill(undefined)
  private rawBytes = 0
  private freshStreams = 0

  /**
   * Fills the workspace's columns with the raw bytes of a batch. One call at a time, in order.
   * @returns undefined where all is done already: batches without zstd wait for nothing
   * @throws BATCH_FORMAT (also as rejection) where a column is damaged
   */
  unpack(batch: Pick<ArrivedBatch, 'rawLength' | 'columns'>, workspace: UnpackedColumns): Promise<unknown> | undefined {
    workspace.clear()
    let zstd = false
    this.rawBytes += batch.rawLength
    // these first: an error in them must not leave a stream at work on a workspace that others use again
    for (const { column, method, rawLength, packed } of batch.columns) {
      const at = workspace.columnAt[column]!
      workspace.columnLength[column] = rawLength
      if (method === METHOD.STORED) {
        let to = at
        for (const part of packed) {
          copyRange(part, 0, part.length, workspace.bytes, to)
          to += part.length
        }
      } else if (method === METHOD.LZ4) {
        loadLz4().decodeBlock(joined(packed), Buffer.from(workspace.bytes.buffer, at, rawLength))
      } else {
        zstd = true
        if (method === METHOD.ZSTD && !this.zstd[column])
          throw bad(`column ${column} continues a zstd stream that never began`)
        if (method === METHOD.ZSTD_FRESH && ++this.freshStreams > freshStreamsMax(this.rawBytes))
          throw bad(`${this.freshStreams} zstd streams begun within ${this.rawBytes} bytes`)
      }
    }
    return zstd ? this.unpackStreams(batch, workspace) : undefined
  }

  close(): void {
    for (const stream of this.zstd) stream?.close()
  }

  private unpackStreams(
    batch: Pick<ArrivedBatch, 'columns'>,
    workspace: UnpackedColumns,
  ): Promise<unknown> | undefined {
    let streams: Promise<void>[] | undefined
    for (const { column, method, rawLength, packed } of batch.columns) {
      if (method < METHOD.ZSTD) continue
      const stream = this.stream(column, method === METHOD.ZSTD_FRESH)
      const at = workspace.columnAt[column]!
      const later = stream.unpack(joined(packed), workspace.bytes.subarray(at, at + rawLength))
      if (later !== undefined) {
        streams ??= []
        streams.push(later)
      }
    }
    return streams && settled(streams)
  }

  private stream(column: number, fresh: boolean): ZstdUnpacker {
    if (fresh) {
      this.zstd[column]?.close()
      this.zstd[column] = new ZstdUnpacker(windowLogMax(column))
    }
    return this.zstd[column]!
  }
}

function bad(what: string): ProxyError {
  return new ProxyError('BATCH_FORMAT', what, undefined, 'the session ends and the source guest goes on')
}

/** Waits for all, also where one fails: the others are at work on the workspace. */
async function settled(streams: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(streams)) if (result.status === 'rejected') throw result.reason
}

/** For codecs that want one piece: a copy only where there are several. */
function joined(parts: readonly Uint8Array[]): Buffer {
  const [part] = parts
  if (parts.length !== 1) return Buffer.concat(parts)
  return Buffer.from(part!.buffer, part!.byteOffset, part!.length)
}
