/** Sets that a session waited for in vain: it opens without them, and they are read on for the next one. */
import { ProxyError } from '../errors.ts'
import { SETS_WAIT_MS } from '../limits.ts'

export class SetsLate extends ProxyError {
  /** Digests of those that have not come. */
  readonly sets: readonly string[]
  /** Settles when they have, with undefined, or will not, with the reason; never rejects. */
  readonly settled: Promise<unknown>
  /** They are kept for the next session until this is called for each: it is not wanted any more. */
  readonly letGo: (digest: string) => void

  constructor(sets: readonly string[], settled: Promise<unknown>, letGo: (digest: string) => void) {
    const action = 'used in the next session once it has been read; look at the disk of the store'
    const what = `the disk has not given it, or a set that is read before it, in ${SETS_WAIT_MS / 1000} s`
    super('IO', what, undefined, action)
    this.sets = sets
    this.settled = settled
    this.letGo = letGo
  }
}
