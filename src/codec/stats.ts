/** What became of a channel's bytes: counted by the encoder, printed by summaries, `estimate` and metrics. */

import { COLUMN_COUNT, PAGE_SIZE } from './wire.ts'

/** Counts of pages and bytes by class, of one batch or of many. */
export class BatchCounts {
  /** Bytes of the channel that were encoded. */
  rawBytes = 0
  /** Bytes of all batches as they cross the WAN, frames excluded. */
  packedBytes = 0
  batches = 0
  /** ZERO records. */
  zeroPages = 0
  /** Pages of one repeated byte. */
  fillPages = 0
  /** Pages equal to what their place received last. */
  samePages = 0
  /** Pages found in a template set. */
  templatePages = 0
  /** Pages found in a set on the disk. */
  coldPages = 0
  /** Pages found among those that passed in this session: in the ring, or among blocks of disks that are kept. */
  earlierPages = 0
  /** Pages made of parts of the pool. */
  patchPages = 0
  /** Literal bytes within those. */
  patchLiteral = 0
  /** Pages sent whole, as they are or as words. */
  newPages = 0
  /** Pages sent whole that looked incompressible. */
  densePages = 0
  /** Pages that passed as they were, at which nobody looked (but at no zero page): raw batches. */
  rawPages = 0
  /** Pages that came as XBZRLE or compressed by QEMU: relayed as they are, within `other`. */
  opaquePages = 0
  /** Bytes of record heads, zero records and packet headers. */
  heads = 0
  /** Bytes that are no page records: device state, sections, XBZRLE, everything not understood. */
  other = 0

  /** Pages that were counted, those that were sent again too. */
  get pages(): number {
    return (
      this.zeroPages +
      this.fillPages +
      this.samePages +
      this.templatePages +
      this.coldPages +
      this.earlierPages +
      this.patchPages +
      this.newPages +
      this.densePages +
      this.rawPages +
      this.opaquePages
    )
  }

  /** Raw bytes that cost time: of pages that were not known as a whole, and of what is no page. */
  get newBytes(): number {
    return (this.patchPages + this.newPages + this.densePages + this.rawPages) * PAGE_SIZE + this.other
  }

  /** Adds another's counts to these: field by field, because it is done for every batch. */
  add(from: BatchCounts): void {
    this.rawBytes += from.rawBytes
    this.packedBytes += from.packedBytes
    this.batches += from.batches
    this.zeroPages += from.zeroPages
    this.fillPages += from.fillPages
    this.samePages += from.samePages
    this.templatePages += from.templatePages
    this.coldPages += from.coldPages
    this.earlierPages += from.earlierPages
    this.patchPages += from.patchPages
    this.patchLiteral += from.patchLiteral
    this.newPages += from.newPages
    this.densePages += from.densePages
    this.rawPages += from.rawPages
    this.opaquePages += from.opaquePages
    this.heads += from.heads
    this.other += from.other
  }
}

/** What became of a channel, or of several. All plain numbers, so that they add up and print as JSON. */
export class BatchStats extends BatchCounts {
  /** Packed bytes by column. */
  readonly columns = new Float64Array(COLUMN_COUNT)
}
