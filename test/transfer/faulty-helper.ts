/** A helper with a fault, which whoever starts it hands over with its data. */
import { syncBuiltinESMExports } from 'node:module'
import threads from 'node:worker_threads'
import type { ToHelper } from '../../src/transfer/helpers/helper-messages.ts'
import { PartsBoard } from '../../src/transfer/helpers/parts-board.ts'

export interface Fault {
  /** At which message: that of its kind behind the first so many. */
  readonly at: ToHelper['kind'] | 'start'
  readonly after: number
  /** `late` goes on once the gate is open; `idle` does nothing of what it claims of pages' parts. */
  readonly what: 'exit' | 'throw' | 'hang' | 'late' | 'idle'
  /** The first word: opened by the test; the second: how often it was here. */
  readonly gate: Int32Array
}

const { at, after, what, gate } = (threads.workerData as { fault: Fault }).fault
let left = after

function fail(): void {
  Atomics.add(gate, 1, 1)
  Atomics.notify(gate, 1)
  if (what === 'exit') process.exit(3)
  if (what === 'throw') throw new Error('planted')
  while (what === 'hang');
  if (what === 'late') Atomics.wait(gate, 0, 0)
}

if (what === 'idle') PartsBoard.prototype.done = fail
else if (at === 'start') fail()

const { receiveMessageOnPort } = threads
threads.receiveMessageOnPort = port => {
  const received = receiveMessageOnPort(port) as { readonly message: ToHelper } | undefined
  if (received?.message.kind === at && left-- === 0) fail()
  return received
}
syncBuiltinESMExports()

await import('../../src/transfer/helpers/helper-worker.ts')
