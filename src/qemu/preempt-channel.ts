import { assert } from '../errors.ts'
import type { BlockTable } from './block-table.ts'
import { type RamCounts, RamRecordReader, READ } from './ram-records.ts'
import type { RecordSink } from './stream-sink.ts'

/**
 * Reads a preempt channel, cut anywhere: bare RAM records without header, section or footer, with a CONTINUE state of
 * its own. It may stay empty for a whole migration. Source: qemu-wire-format 5.3.
 */
export class PreemptParser {
  /** Live counts. */
  readonly counts: RamCounts
  private readonly sink: RecordSink
  private readonly records: RamRecordReader
  private streamPosition = 0
  private degradedAt: number | undefined = undefined

  /** @param blocks the RAMBlocks of the migration, as its main channel filled them */
  constructor(sink: RecordSink, blocks: BlockTable) {
    this.sink = sink
    this.records = new RamRecordReader(sink, blocks)
    this.counts = this.records.counts
  }

  /** Bytes of the stream taken so far. */
  get position(): number {
    return this.streamPosition
  }

  /** As MainStreamParser's. */
  get pending(): number {
    return this.raw ? 0 : this.records.pending
  }

  /** True where everything from here on is raw. */
  get raw(): boolean {
    return this.degradedAt !== undefined
  }

  /** Takes the next `length` bytes of the channel, which lie in `chunk` from `at`, cut anywhere. Keeps no reference. */
  push(chunk: Uint8Array, at: number, length: number): void {
    const { records } = this
    const end = at + length
    assert(at >= 0 && length >= 0 && end <= chunk.length, 'bytes outside their chunk')
    const base = this.streamPosition - at
    while (at < end && !this.raw) {
      at = records.read(chunk, at, end, base)
      // An EOS ends the channel of machine types up to 7.2; nothing follows it, and if it did it would be records.
      if (records.outcome === READ.BAD) this.degrade(records.badPosition, records.badReason)
      else if (records.outcome === READ.MEM_SIZE) this.degrade(base + at - 8, 'block list on a preempt channel')
    }
    this.streamPosition = base + end
  }

  /** The stream ended: whether inside a record, and where it was not understood. */
  finish(): { cut: boolean; degradedAt: number | undefined } {
    return { cut: !this.raw && this.records.midRecord, degradedAt: this.degradedAt }
  }

  private degrade(position: number, reason: string): void {
    this.degradedAt = position
    this.sink.degraded(position, reason)
  }
}
