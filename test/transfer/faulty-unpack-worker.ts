/** The thread that unpacks, with a fault, at the batch behind the first so many: a `Fault` that its parent has set as environment data. */
import { getEnvironmentData, parentPort } from 'node:worker_threads'
import type { ThreadMessage } from '../../src/transfer/ahead/unpack-message.ts'

export interface Fault {
  /** `late` is none: nothing is done before `gate` is not 0. */
  readonly fault: 'exit' | 'throw' | 'hang' | 'late'
  readonly after: number
  readonly gate: Int32Array
}

const { fault, after, gate } = getEnvironmentData('fault') as unknown as Fault
let left = after

const port = parentPort!
const on = port.on.bind(port) as (event: string, listener: (message: ThreadMessage) => void) => typeof port
port.on = ((event: string, listener: (message: ThreadMessage) => void) =>
  on(event, message => {
    if (message.kind === 'unpack' && left-- === 0) {
      if (fault === 'exit') process.exit(3)
      if (fault === 'throw') throw new Error('planted')
      if (fault === 'late') Atomics.wait(gate, 0, 0)
      while (fault === 'hang');
    }
    listener(message)
  })) as typeof port.on

await import('../../src/transfer/ahead/unpack-worker.ts')
