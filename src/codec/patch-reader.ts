/** PATCH pages: columns in, the kernel's tokens out. docs/protocol.md §6. */
import { NONE } from '../kernel/kernel.ts'
import { PATCH_COPIES_MAX } from '../limits.ts'
import type { BatchColumns } from './batch-columns.ts'
import type { FlowExpander } from './flow-expander.ts'
import type { PoolRegions } from './places.ts'
import { PAGE_SIZE } from './wire.ts'

export class PatchReader {
  /** Tokens of the page that was read, 8 bytes each, and how many of its bytes are literals. */
  tokens = 0
  literalBytes = 0
  /** The kernel's memory. */
  private readonly words: Uint32Array
  private readonly regions: PoolRegions

  constructor(bytes: Uint8Array, regions: PoolRegions) {
    this.words = new Uint32Array(bytes.buffer)
    this.regions = regions
  }

  /**
   * Reads what makes a page.
   *
   * @param before slot of the page that its place had, or NONE
   * @param tokensAt where the tokens go: a multiple of 4
   * @throws BATCH_FORMAT
   */
  read(flow: FlowExpander, columns: BatchColumns, before: number, tokensAt: number): void {
    const { words, regions } = this
    const { lengths, sources, shifts } = columns
    const { next } = flow.prediction
    const literalMax = columns.pages.left
    const poolBytes = regions.pages * PAGE_SIZE
    let displacement = before === NONE ? Number.NaN : before * PAGE_SIZE
    let token = tokensAt >>> 2
    let copies = 0
    let literal = 0
    let lastRegion = -1
    let q = 0
    while (q < PAGE_SIZE) {
      const literalBytes = lengths.next()
      if (literalBytes > PAGE_SIZE - q || literal + literalBytes > literalMax) {
        throw flow.bad('PATCH with a literal beyond its page or column')
      }
      literal += literalBytes
      q += literalBytes
      let copy = 0
      let source = 0
      if (q < PAGE_SIZE) {
        copy = lengths.next()
        if (copies++ === PATCH_COPIES_MAX) throw flow.bad(`PATCH with more than ${PATCH_COPIES_MAX} copies`)
        if (copy === 0 || copy > PAGE_SIZE - q) throw flow.bad(`PATCH with a copy of ${copy} bytes at ${q}`)
        const v = sources.next()
        if (v === 0) source = displacement + q
        else {
          const region = regions.regionIn(v - 1)
          const slot = next[region]! + regions.deltaIn(v - 1)
          const shift = shifts.next()
          if (slot < 0 || shift >= PAGE_SIZE) throw flow.bad('PATCH from outside the pool')
          source = slot * PAGE_SIZE + shift
          displacement = source - q
          next[region] = slot
          lastRegion = region
        }
        if (!(source >= 0 && source + copy <= poolBytes)) throw flow.bad('PATCH from outside the pool')
        q += copy
      }
      // two u16 and a u32, little-endian as WebAssembly has them
      words[token] = literalBytes | (copy << 16)
      words[token + 1] = source
      token += 2
    }
    if (lastRegion >= 0) next[lastRegion]!++
    this.tokens = (token - (tokensAt >>> 2)) >> 1
    this.literalBytes = literal
  }
}
