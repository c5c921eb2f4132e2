/** How many threads match, pack and unpack: `--threads`, for proxies, `encode` and `decode` alike. */
import { availableParallelism } from 'node:os'
import { ProxyError } from '../../errors.ts'

/** Most that can be asked for: each has a stack and a heap of its own. */
export const THREADS_MAX = 16
/** What `auto` takes at most: the thread that does all that has an order has no time for more helpers. */
const THREADS_AUTO_MAX = 4

/** As an operator gives it: 1 is the main thread alone. */
export type Threads = number | 'auto'

/**
 * A count, or `auto`.
 * @param option what the error calls it
 * @throws USAGE
 */
export function parseThreads(text: string, option = '--threads'): Threads {
  if (text === 'auto') return text
  const count = /^\d+$/.test(text) ? Number(text) : 0
  if (count >= 1 && count <= THREADS_MAX) return count
  throw new ProxyError('USAGE', `${option} ${text}`, undefined, `give 1 to ${THREADS_MAX}, or auto`)
}

/**
 * Threads that are used, the main one counted. By itself one core is left to QEMU, whose guest runs, and to the system.
 * @param cores that this process may have
 */
export function threadCount(threads: Threads, cores: number = availableParallelism()): number {
  return threads === 'auto' ? Math.min(THREADS_AUTO_MAX, Math.max(1, cores - 1)) : threads
}

/** The same for a command, which has no QEMU beside it: by itself all cores. */
export function commandThreads(threads: Threads, cores: number = availableParallelism()): number {
  return threads === 'auto' ? Math.min(THREADS_AUTO_MAX, cores) : threads
}
