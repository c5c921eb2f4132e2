/**
 * Frames under way on one connection, oldest first, each with what was known when it was sent: in rings that grow, plain
 * arrays by field.
 */

/** Rings up to this stay as they are: 46 KB. */
const SIZE_KEPT = 1024

export class SentRecords {
  sentFrames = 0
  /** Frames of those that the peer has counted. */
  deliveredFrames = 0
  private sequences = new Float64Array(256)
  private sizes = new Uint16Array(256)
  private sentAtMs = new Float64Array(256)
  private deliveredThen = new Float64Array(256)
  private deliveredAtThen = new Float64Array(256)
  private firstSentThen = new Float64Array(256)
  private limitedThen = new Uint8Array(256)

  /** @param delivered, deliveredAtMs, firstSentAtMs, limited what DeliveryRate knows at the moment */
  push(
    sequence: number,
    size: number,
    nowMs: number,
    delivered: number,
    deliveredAtMs: number,
    firstSentAtMs: number,
    limited: boolean,
  ): void {
    const used = this.sentFrames - this.deliveredFrames
    if (used === this.sizes.length) this.resize(2 * used)
    // sixteen connections that were full one after the other must not keep what one may need
    else if (used < this.sizes.length / 4 && this.sizes.length > SIZE_KEPT) this.resize(this.sizes.length / 2)
    const at = this.sentFrames++ & (this.sizes.length - 1)
    this.sequences[at] = sequence
    this.sizes[at] = size
    this.sentAtMs[at] = nowMs
    this.deliveredThen[at] = delivered
    this.deliveredAtThen[at] = deliveredAtMs
    this.firstSentThen[at] = firstSentAtMs
    this.limitedThen[at] = limited ? 1 : 0
  }

  /** The oldest has arrived. @returns its slot, valid until the next push */
  take(): number {
    return this.deliveredFrames++ & (this.sizes.length - 1)
  }

  /** Slot of the one that was taken last. */
  get lastTaken(): number {
    return (this.deliveredFrames - 1) & (this.sizes.length - 1)
  }

  sequence(slot: number): number {
    return this.sequences[slot]!
  }

  size(slot: number): number {
    return this.sizes[slot]!
  }

  sentAt(slot: number): number {
    return this.sentAtMs[slot]!
  }

  /** Bytes that had been delivered when it was sent, when the last of them had, and when the first frame of that stretch was sent. */
  delivered(slot: number): number {
    return this.deliveredThen[slot]!
  }

  deliveredAt(slot: number): number {
    return this.deliveredAtThen[slot]!
  }

  firstSentAt(slot: number): number {
    return this.firstSentThen[slot]!
  }

  /** Nothing waited behind it. */
  isLimited(slot: number): boolean {
    return this.limitedThen[slot] === 1
  }

  /** Calls back with the sequence number of each frame that the peer has not counted. */
  eachUndelivered(call: (sequence: number) => void): void {
    for (let i = this.deliveredFrames; i < this.sentFrames; i++) call(this.sequences[i & (this.sizes.length - 1)]!)
  }

  private resize(size: number): void {
    const before = this.sizes.length
    const old = [
      this.sequences,
      this.sizes,
      this.sentAtMs,
      this.deliveredThen,
      this.deliveredAtThen,
      this.firstSentThen,
      this.limitedThen,
    ] as const
    const ring = [
      new Float64Array(size),
      new Uint16Array(size),
      new Float64Array(size),
      new Float64Array(size),
      new Float64Array(size),
      new Float64Array(size),
      new Uint8Array(size),
    ] as const
    for (let i = this.deliveredFrames; i < this.sentFrames; i++) {
      for (let field = 0; field < ring.length; field++) ring[field]![i & (size - 1)] = old[field]![i & (before - 1)]!
    }
    this.sequences = ring[0]
    this.sizes = ring[1]
    this.sentAtMs = ring[2]
    this.deliveredThen = ring[3]
    this.deliveredAtThen = ring[4]
    this.firstSentThen = ring[5]
    this.limitedThen = ring[6]
  }
}
