/**
 * Sets that came too late for a session: they are kept in memory, or open, until the next one, however long the other side
 * takes for its own. Else each side would let go of a set while the other reads it, in turn, and no session would have it.
 */
export class KeptSets {
  /** How many want it kept. */
  private readonly wanted = new Map<string, number>()

  /** @returns to be called once for each, when its set is not wanted any more */
  keep(digests: readonly string[]): (digest: string) => void {
    const left = new Set(digests)
    for (const digest of left) this.wanted.set(digest, (this.wanted.get(digest) ?? 0) + 1)
    return digest => {
      if (!left.delete(digest)) return
      const others = this.wanted.get(digest)! - 1
      if (others === 0) this.wanted.delete(digest)
      else this.wanted.set(digest, others)
    }
  }

  has(digest: string): boolean {
    return this.wanted.has(digest)
  }
}
