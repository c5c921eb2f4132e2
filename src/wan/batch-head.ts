/** The first bytes of a batch (protocol.md §4), as far as they are looked at before it is unpacked. */

const FORMAT = 1
/** 4 bytes of a varint hold more than any batch. */
const LENGTH_BYTES_MAX = 4

/** Raw length of a batch in pieces cut anywhere: u8 format, varint raw length. @returns -1 where it cannot be read */
export function batchRawLength(parts: readonly Uint8Array[]): number {
  let value = 0
  let scale = 1
  let index = 0
  for (const part of parts) {
    for (const byte of part.subarray(0, 1 + LENGTH_BYTES_MAX + 1)) {
      const at = index++
      if (at === 0) {
        if (byte !== FORMAT) return -1
        continue
      }
      if (at > LENGTH_BYTES_MAX) return -1
      value += (byte & 0x7f) * scale
      if (byte < 0x80) return value
      scale *= 128
    }
  }
  return -1
}
