/** Helpers of a process, each with the same fault. */
import { Worker } from 'node:worker_threads'
import type { StartHelper } from '../../src/transfer/helpers/helper.ts'
import { until } from '../helpers/until.ts'
import type { Fault } from './faulty-helper.ts'

export class FaultyHelpers {
  readonly gate = new Int32Array(new SharedArrayBuffer(8))
  /** That run. */
  live = 0
  /** That ran at a time, at most. */
  most = 0
  readonly start: StartHelper

  constructor({ at, what, after = 0 }: Omit<Fault, 'after' | 'gate'> & Partial<Fault>) {
    const fault: Fault = { at, what, after, gate: this.gate }
    this.start = data => {
      const file = new URL('./faulty-helper.ts', import.meta.url)
      const worker = new Worker(file, { workerData: { ...data, fault } })
      this.most = Math.max(this.most, ++this.live)
      worker.once('exit', () => this.live--)
      return worker
    }
  }

  /** How often the fault was there. */
  get faults(): number {
    return Atomics.load(this.gate, 1)
  }

  /** Resolves when it is. */
  async failing(): Promise<void> {
    await until('the fault', () => this.faults > 0)
  }
}
