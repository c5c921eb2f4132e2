/** Sets that a session waited for in vain: it opens without them, and they are read on for the next one. */
import { ProxyError } from '../errors.ts'

export class SetsLate extends ProxyError {
  /** Digests of those that have not come. */
  readonly sets: readonly string[]
  /** Settles when they have, or will not; never rejects. */
  readonly settled: Promise<void>

  constructor(sets: readonly string[], settled: Promise<void>, ms: number) {
    const action = 'used in the next session once it has been read; look at the disk of the store'
    super('IO', `the disk has not given it in ${ms / 1000} s`, undefined, action)
    this.sets = sets
    this.settled = settled
  }
}
