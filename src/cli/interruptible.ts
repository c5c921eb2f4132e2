/** Work that Ctrl-C may end before it is done. */
import { Interruption } from '../system/interruption.ts'

/**
 * Does the work. Where a signal ended it the process ends with the status that says so; work that was done all the same
 * counts as done.
 *
 * @param atLast what has to be done at once where clearing up takes too long: the process ends right after it
 * @param left what is left then, for people
 */
export async function interruptible<T>(
  atLast: () => void,
  left: string,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const interruption = new Interruption(atLast, left)
  try {
    return await work(interruption.signal)
  } catch (error) {
    process.exitCode ??= interruption.status
    throw error
  } finally {
    interruption.end()
  }
}
