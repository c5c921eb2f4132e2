/**
 * What both sides of a flow expect next, kept alike from batch to batch: docs/protocol.md §6. The encoder says only what
 * comes otherwise.
 */
import { BlockNames } from './block-names.ts'
import type { DiskMessages } from './disk-messages.ts'
import type { PoolRegions } from './places.ts'

export class Prediction {
  /** RAMBlocks that the flow has named. */
  readonly names = new BlockNames()
  /** The RAMBlock of the next record. */
  block = 0
  /** Its page number. */
  page = 0
  /** The slot that a REF or PATCH would name next, in each region. */
  readonly next: number[]
  /** The cold page that a run would begin with. */
  cold = 0
  /** The next message of a disk's connection; undefined before an EXPORT. */
  messages: DiskMessages | undefined = undefined

  constructor(regions: PoolRegions) {
    this.next = [...regions.starts]
  }
}
