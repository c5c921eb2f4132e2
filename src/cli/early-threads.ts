/** Starts what a command will need while the rest of its code is loaded, which takes as long. */
import { startEarly } from '../transfer/helpers/helper-thread.ts'
import { commandThreads, parseThreads } from '../transfer/helpers/thread-count.ts'

const WITH_THREADS = ['encode', 'decode', 'estimate']

/** Begins to start the first helper of a command that will have one, as far as its arguments tell; yargs reads them later. */
export function startThreadsEarly([command = '', ...args]: readonly string[]): void {
  if (!WITH_THREADS.includes(command) || args.includes('--help')) return
  const at = args.findIndex(arg => arg === '--threads' || arg.startsWith('--threads='))
  const text = at < 0 ? 'auto' : (args[at]!.split('=')[1] ?? args[at + 1] ?? '')
  try {
    if (commandThreads(parseThreads(text)) > 1) startEarly()
  } catch {
    // a mistake, which is told once all arguments are read
  }
}
