/**
 * Looks on as pages pass that no template set holds: src/learning. Both sides call it alike, in the order of batches.
 * Bytes are all there when `batch` is called, and stay where they are until it returns.
 */
export interface PageObserver {
  /** A page of the batch at hand. @param page its number in its RAMBlock */
  page(address: number, page: number): void
  /** All of the batch: `length` bytes of the channel from byte `position` on. */
  batch(migration: number, position: number, address: number, length: number): void
}
