/**
 * Big-endian integers in byte arrays. 64-bit values are split in two 32-bit halves, or joined to a number where they
 * stay below 2^53; no BigInt, because these run once per page record.
 */

/** 2^32, the weight of the high half of a u64. */
export const TWO_32 = 0x1_0000_0000

/** High halves from here on make a u64 of 2^53 or more, which a number does not hold exactly. */
export const HIGH_HALF_END = 0x20_0000

/** The unsigned 16-bit integer at `at`. */
export function readU16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!
}

/** The unsigned 32-bit integer at `at`. */
export function readU32(bytes: Uint8Array, at: number): number {
  return ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0
}

/** The unsigned 64-bit integer at `at`, or -1 where it is 2^53 or more. */
export function readU64(bytes: Uint8Array, at: number): number {
  const high = readU32(bytes, at)
  return high < HIGH_HALF_END ? high * TWO_32 + readU32(bytes, at + 4) : -1
}

/** Writes `value`, 0 to 65535, at `at`. */
export function writeU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8
  bytes[at + 1] = value
}

/** Writes `value`, 0 to 2^32 - 1, at `at`. */
export function writeU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24
  bytes[at + 1] = value >>> 16
  bytes[at + 2] = value >>> 8
  bytes[at + 3] = value
}

/** Writes `value`, 0 to 2^53 - 1, as 8 bytes at `at`. */
export function writeU64(bytes: Uint8Array, at: number, value: number): void {
  writeU32(bytes, at, Math.floor(value / TWO_32))
  writeU32(bytes, at + 4, value % TWO_32)
}
