/** The first bytes of a batch, which a session reads too: what credit it takes. docs/protocol.md §4. */
import { BATCH_FORMAT } from './wire.ts'

/** Bytes of a raw length: more would be more than any batch. */
const LENGTH_BYTES_MAX = 4

/**
 * What a batch says it expands to, whatever else it holds.
 * @param parts the batch from its first byte on, cut anywhere
 * @returns -1 where it begins with no format that we know and no length
 */
export function rawLengthOf(parts: readonly Uint8Array[]): number {
  let value = 0
  let scale = 1
  let at = 0
  for (const part of parts) {
    for (const byte of part.subarray(0, 1 + LENGTH_BYTES_MAX)) {
      if (at++ === 0) {
        if (byte !== BATCH_FORMAT) return -1
        continue
      }
      if (at > 1 + LENGTH_BYTES_MAX) return -1
      value += (byte & 0x7f) * scale
      if (byte < 0x80) return value
      scale *= 128
    }
  }
  return -1
}
