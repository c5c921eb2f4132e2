/**
 * One batch on its way through the encoding half. Its fields say who sets them and who reads them, so that each step may
 * run in another place than the one before.
 */
import type { PackedColumn } from '../codec/batch.ts'
import type { FlowEncoder } from '../codec/flow-encoder.ts'
import type { BatchCounts } from '../codec/stats.ts'
import type { Workspace } from '../codec/workspace.ts'
import type { LaidBatch } from '../compression/column-packer.ts'
import type { Effort } from '../compression/effort.ts'
import type { ChannelBuffer, Loan } from './channel-buffer.ts'
import type { LongGain } from './long-gain.ts'

/** A channel as the encoding half sees it. */
export interface OutboundChannel {
  readonly encoder: FlowEncoder
  readonly buffer: ChannelBuffer
}

export interface BatchJob<C extends OutboundChannel> {
  /** Set by Outbound, read by all. */
  readonly channel: C
  readonly effort: Effort
  /** It may name pages that the other side has to read from its disk: set by Outbound, read by the encoder. */
  readonly useCold: boolean
  /** New blocks of a disk are kept: likewise. */
  readonly keep: boolean
  /** Set by Outbound, filled by the encoder, read by the packer; Outbound's again when the batch is out. */
  readonly workspace: Workspace
  /** The channel's bytes: set by Outbound, read by the encoder, given back behind it. */
  readonly loan: Loan
  /** Whether long matches were looked for, and who wants to know what came of it; undefined: nobody. Set before the encoder. */
  looked: boolean
  gain: LongGain | undefined
  /** What became of them: set by the encoder, read by the sink. */
  counts: BatchCounts | undefined
  /** 8 bytes as the kernel writes them: set behind the encoder, read when the batch is put together. */
  checksum: Uint8Array | undefined
  /** Set by the packer, read when the batch is put together. */
  columns: readonly PackedColumn[] | undefined
  /** Of a raw batch, with them: as it goes out. */
  laid: LaidBatch | undefined
}

/** A finished batch in numbers. */
export interface BatchReport {
  /** Bytes that it expands to. */
  readonly rawLength: number
  /** Its bytes on the wire, frames excluded. */
  readonly packedLength: number
  /** Default: one that is not told. */
  readonly effort?: Effort
  /** Raw bytes that cost time: BatchCounts.newBytes. */
  readonly newBytes: number
  /** Its parts are as frames carry them: src/codec/laid-batch.ts. */
  readonly isLaid?: boolean
}
