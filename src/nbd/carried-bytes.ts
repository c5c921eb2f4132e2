const NOTHING = new Uint8Array(0)

/** The bytes of one direction in a call: the end of those before, where a head was cut, and those that came. */
export class CarriedBytes {
  bytes: Uint8Array = NOTHING
  /** Position of the first. */
  base = 0

  /** @param position of the first of `bytes` */
  take(bytes: Uint8Array, position: number): void {
    const kept = this.bytes
    this.base = position - kept.length
    if (kept.length === 0) {
      this.bytes = bytes
      return
    }
    this.bytes = new Uint8Array(kept.length + bytes.length)
    this.bytes.set(kept)
    this.bytes.set(bytes, kept.length)
  }

  /** Keeps a copy of the last so many bytes, and no reference to the others. */
  keep(count: number): void {
    this.bytes = count === 0 ? NOTHING : new Uint8Array(this.bytes.subarray(this.bytes.length - count))
  }
}
