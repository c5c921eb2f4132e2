/** Numbers that follow from a seed, so that runs repeat: mulberry32. */

export class Random {
  private state: number

  /** @param seed any whole number, of which 32 bits count */
  constructor(seed: number) {
    this.state = seed >>> 0
  }

  /** 0 <= x < 1, one of 2^32. */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0
    let t = this.state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 0x1_0000_0000
  }

  /** from <= x < to. */
  between(from: number, to: number): number {
    return from + this.next() * (to - from)
  }

  /** An integer, 0 <= x < limit; 2^32 at most. */
  below(limit: number): number {
    return Math.floor(this.next() * limit)
  }

  /** An integer, low <= x <= high. */
  int(low: number, high: number): number {
    return low + this.below(high - low + 1)
  }

  chance(p: number): boolean {
    return this.next() < p
  }

  pick<T>(of: readonly T[]): T {
    return of[this.below(of.length)]!
  }
}

/** {@link Random.below} alone, for who needs no more. */
export function random(seed: number): (limit: number) => number {
  const numbers = new Random(seed)
  return limit => numbers.below(limit)
}
