/** How a proxy's process ends where a disk hangs. */
import { accessSync, constants } from 'node:fs'
import { EXIT_MS_MAX } from '../limits.ts'

/**
 * All is done, and the process ends by itself; where a read that no disk answers keeps it, a little later. Such a read keeps
 * a thread, for which every ordinary exit of Node waits. Another program in this one's place ends all threads, and has its
 * exit status.
 */
export function leave(): void {
  setTimeout(() => {
    // as it is now: an upgrade may have removed its file
    const node = '/proc/self/exe'
    try {
      accessSync(node, constants.X_OK) // one that fails would abort this process, and leave a core
      process.execve!(node, [node, '-e', `process.exitCode = ${process.exitCode ?? 0}`], {})
    } catch {
      process.kill(process.pid, 'SIGKILL')
    }
  }, EXIT_MS_MAX).unref()
}
