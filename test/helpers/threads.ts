/**
 * How many threads proxies of tests have, their main one counted: `THREADS=2 node test/...`, or several by turns,
 * `THREADS=1,2,4`, so that one run of many seeds has them all.
 */
import { parseThreads, threadCount } from '../../src/transfer/helpers/thread-count.ts'

/** What is tried where nothing else is said: no helper, one that does all, and several between which work is shared. */
export const THREAD_COUNTS: readonly number[] = [1, 2, 4]

/** Those of the environment, in its order. @param otherwise where it says nothing */
export function threadsAsked(otherwise: readonly number[]): readonly number[] {
  const text = process.env.THREADS
  return text === undefined ? otherwise : text.split(',').map(count => threadCount(parseThreads(count, 'THREADS')))
}

/** Of every proxy of a test; undefined: nothing is said, and they have what is the default. */
export function proxyThreads(): number | undefined {
  return threadsAsked([]).at(0)
}

/** For the run of this number or seed. */
export function threadsOf(turn: number, counts: readonly number[]): number {
  return counts[turn % counts.length]!
}
