/**
 * Threads of helpers as they start. One takes 0.1 s, in which a command that is to use it loads the rest of its own code: so
 * that may start one before it is known what for.
 */
import { Worker } from 'node:worker_threads'
import type { HelperData } from './helper-messages.ts'

/** What one that is started early has in place of its data, which is its first message. */
export interface EarlyStart {
  /** One word; 1: the message is there. */
  readonly gate: SharedArrayBuffer
}

interface Early extends EarlyStart {
  readonly worker: Worker
}

let early: Early | undefined

/** Starts a helper that the next `startHelper` takes. Where the system has no thread, or it fails, there is none. */
export function startEarly(): void {
  if (early !== undefined) return
  const gate = new SharedArrayBuffer(4)
  try {
    const started: Early = { gate, worker: workerWith({ gate }) }
    const forget = (): void => {
      if (early === started) early = undefined
    }
    started.worker.on('error', forget).on('exit', forget)
    started.worker.unref() // it keeps no process alive that does not need it
    early = started
  } catch {
    // who needs one tries again
  }
}

/** @throws where the system has no more threads */
export function startHelper(data: HelperData): Worker {
  if (early === undefined) return workerWith(data)
  const { gate, worker } = early
  early = undefined
  worker.removeAllListeners('error').removeAllListeners('exit')
  worker.ref()
  worker.postMessage(data)
  const word = new Int32Array(gate)
  Atomics.store(word, 0, 1)
  Atomics.notify(word, 0)
  return worker
}

function workerWith(workerData: HelperData | EarlyStart): Worker {
  // sources run as they are; a built package has JavaScript
  const file = import.meta.url.endsWith('.ts') ? './helper-worker.ts' : './helper-worker.js'
  return new Worker(new URL(file, import.meta.url), { workerData })
}
