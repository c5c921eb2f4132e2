/** Copies between byte arrays, and text of byte arrays. */

/** Copies `length` bytes, in a loop: for short fields a loop is faster than a view, and it allocates nothing. */
export function copyBytes(from: Uint8Array, fromAt: number, to: Uint8Array, toAt: number, length: number): void {
  for (let i = 0; i < length; i++) to[toAt + i] = from[fromAt + i]!
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
