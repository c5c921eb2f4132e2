/**
 * Time as a thread had it: without that in which it wanted a core and other programs had them all. A limit on it holds on a
 * quiet machine and on a busy one.
 */
import { readFileSync } from 'node:fs'

/**
 * Milliseconds that a process's first thread has been ready to run without a core, 0 where the kernel does not count them.
 * A wait counts when it is over. Source: Linux, scheduler/sched-stats.rst
 */
export function corelessMs(pid: number = process.pid): number {
  try {
    return Number(readFileSync(`/proc/${pid}/task/${pid}/schedstat`, 'latin1').split(' ')[1]) / 1e6
  } catch (error) {
    if (isCounted) throw error // the process is no more
    return 0
  }
}

/** CONFIG_SCHED_INFO, which gVisor, for one, has not. */
export const isCounted = ((): boolean => {
  try {
    return /^\d+ \d+ /.test(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'latin1'))
  } catch {
    return false
  }
})()

/** @returns milliseconds since, of this thread's own time: call it on the main thread */
export function stopwatch(): () => number {
  const coreless = corelessMs()
  const startMs = performance.now()
  return () => performance.now() - startMs - (corelessMs() - coreless)
}
