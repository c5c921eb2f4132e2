/** A thread that packs LZ4 blocks within the kernel's memory, so that sockets do not wait for them. */
import { parentPort, workerData } from 'node:worker_threads'
import { loadLz4 } from './lz4.ts'

/** Addresses in the shared memory: pack [at, at + length) to `out`, where `room` bytes are free. */
export interface Lz4Job {
  readonly at: number
  readonly length: number
  readonly out: number
  readonly room: number
}

const memory = (workerData as { buffer: SharedArrayBuffer }).buffer
const lz4 = loadLz4()

// One message a batch: its jobs. The answer: packed length of each, 0 where it did not fit.
parentPort!.on('message', (jobs: Lz4Job[]) => {
  parentPort!.postMessage(
    jobs.map(job => lz4.encodeBlock(Buffer.from(memory, job.at, job.length), Buffer.from(memory, job.out, job.room))),
  )
})
