/** A session's memory as the twin sees it: views, made once, and where slots are. As assembly/state.ts. */
import { PAGE_BITS, PAGE_BYTES } from '../constants.ts'
import type { SessionLayout } from '../layout.ts'

export interface TwinMemory {
  readonly layout: SessionLayout
  readonly bytes: Uint8Array
  readonly words: Int32Array
  /** The same, with native copies and compares. */
  readonly raw: Buffer
  /** Pages of templates and ring. */
  readonly poolPages: number
  readonly poolBytes: number
  /** Address of slot 0, were all slots where the ring is: may be negative. */
  readonly ringOrigin: number
  /** Address of a slot's page. */
  slotAddress(slot: number): number
  /** Address of a byte of the pool. */
  byteAddress(source: number): number
  /** The four bytes at any address. */
  word(at: number): number
}

export function twinMemory(buffer: ArrayBufferLike, layout: SessionLayout): TwinMemory {
  const { templatePages, templatesAt, ringPages } = layout
  const bytes = new Uint8Array(buffer)
  const words = new Int32Array(buffer, 0, buffer.byteLength >>> 2)
  const templateMap = layout.templateMap >>> 2
  const ringOrigin = layout.ring - templatePages * PAGE_BYTES
  const poolPages = templatePages + ringPages
  function slotAddress(slot: number): number {
    if (slot >= templatePages) return ringOrigin + slot * PAGE_BYTES
    return templatesAt !== 0 ? templatesAt + slot * PAGE_BYTES : words[templateMap + slot]! >>> 0
  }
  return {
    layout,
    bytes,
    words,
    raw: Buffer.from(buffer, 0, buffer.byteLength),
    poolPages,
    poolBytes: poolPages * PAGE_BYTES,
    ringOrigin,
    slotAddress,
    byteAddress: source => slotAddress(source >>> PAGE_BITS) + (source & (PAGE_BYTES - 1)),
    word: at => bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24),
  }
}
