/** A thread that packs LZ4 blocks within the kernel's memory, so that sockets do not wait for them. */
import { parentPort, workerData } from 'node:worker_threads'
import { type Lz4Job, loadLz4, packLz4 } from './lz4.ts'

const { buffer } = workerData as { buffer: SharedArrayBuffer }
loadLz4() // no job waits for it

// One message a batch: its jobs. The answer: packed length of each.
parentPort!.on('message', (jobs: Lz4Job[]) => parentPort!.postMessage(packLz4(buffer, jobs)))
