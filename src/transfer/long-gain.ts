/**
 * Whether long matches are worth looking for in a disk at the effort that is chosen for speed: in blocks of an image of which
 * nothing is known they cover most, take half of all CPU time, and leave a twelfth less of the bytes, because zstd finds by
 * itself what is near. Where they leave much less (another release of a known image, blocks that are written again) they stay.
 * Batches are made in both ways, now and then in the one that is worse, and what they are packed to is compared. Pure.
 */

/** They have to leave so much less of the bytes of what is not known. */
const WORTH = 0.8
/** Bytes of that which have to be seen in either way before one is preferred; of more the older ones count less. */
const SAMPLE_BYTES = 2 << 20
/** One batch in so many is made in the way that is not preferred. */
const OTHER_EVERY = 8

interface Way {
  newBytes: number
  packedBytes: number
}

export class LongGain {
  private readonly looked: Way = { newBytes: 0, packedBytes: 0 }
  private readonly not: Way = { newBytes: 0, packedBytes: 0 }
  private batches = 0

  /** Whether long matches are looked for in the next batch. */
  next(): boolean {
    const { looked, not } = this
    this.batches++
    if (Math.min(looked.newBytes, not.newBytes) < SAMPLE_BYTES) return this.batches % 2 === 0
    const areWorth = looked.packedBytes * not.newBytes < WORTH * not.packedBytes * looked.newBytes
    return this.batches % OTHER_EVERY === 0 ? !areWorth : areWorth
  }

  /** What became of one. @param newBytes of its bytes that were not known as a whole */
  packed(wasLooked: boolean, newBytes: number, packedBytes: number): void {
    const way = wasLooked ? this.looked : this.not
    way.newBytes += newBytes
    way.packedBytes += packedBytes
    if (way.newBytes <= 2 * SAMPLE_BYTES) return
    way.newBytes /= 2
    way.packedBytes /= 2
  }
}
