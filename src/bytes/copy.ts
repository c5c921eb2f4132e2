/** Copies between byte arrays, and text of byte arrays. */

/** Copies `length` bytes, in a loop: for short fields a loop is faster than a view, and it allocates nothing. */
export function copyBytes(from: Uint8Array, fromAt: number, to: Uint8Array, toAt: number, length: number): void {
  for (let i = 0; i < length; i++) to[toAt + i] = from[fromAt + i]!
}

const copyBuffer = Buffer.prototype.copy

/**
 * Copies the bytes from `fromAt` up to `fromEnd` to `toAt`, within one array too. For what may be more than a few, where one
 * side lies in shared memory: V8's own `set`, `copyWithin` and `slice` go there byte by byte, at 2 GB/s, unless both sides
 * are aligned alike, and Buffer's `copy`, at 20 GB/s and more, does so only of a whole array.
 *
 * @throws RangeError where it does not fit
 */
export function copyRange(from: Uint8Array, fromAt: number, fromEnd: number, to: Uint8Array, toAt: number): void {
  const length = fromEnd - fromAt
  if (length < 0 || fromEnd > from.length || toAt + length > to.length) throw new RangeError('a copy does not fit')
  if (length === 0) return
  if (length < from.length) copyBuffer.call(from, to, toAt, fromAt, fromEnd)
  else {
    const last = from[length - 1]! // another view of the same memory may reach over it
    copyBuffer.call(from, to, toAt, 0, length - 1)
    to[toAt + length - 1] = last
  }
}

/** The bytes from `at` up to `end`, in memory of its own. */
export function copyOfRange(from: Uint8Array, at: number, end: number): Uint8Array {
  const copy = Buffer.allocUnsafeSlow(end - at) // not cleared first
  copyRange(from, at, end, copy, 0)
  return copy
}

/** A copy in memory of its own. The `slice` of a Buffer copies nothing, and a Uint8Array from outside may be one. */
export function copyOf(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(bytes)
}

/** True where `length` bytes of both arrays are the same. */
export function sameBytes(a: Uint8Array, aAt: number, b: Uint8Array, bAt: number, length: number): boolean {
  for (let i = 0; i < length; i++) if (a[aAt + i] !== b[bAt + i]) return false
  return true
}

/** The bytes as text, one UTF-16 unit a byte: lossless for any bytes, which UTF-8 is not. */
export function latin1(bytes: Uint8Array, at: number, length: number): string {
  let text = ''
  for (let i = 0; i < length; i++) text += String.fromCharCode(bytes[at + i]!)
  return text
}

/** The bytes of a latin1 text; the other way of {@link latin1}. The caller owns the result. */
export function latin1Bytes(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length)
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i)
  return bytes
}
