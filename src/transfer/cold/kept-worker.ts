/** A thread that writes blocks of disks into a file and digests them: kept-blocks.ts says why. */
import { writeSync } from 'node:fs'
import { constants, setPriority } from 'node:os'
import { parentPort, workerData } from 'node:worker_threads'
import { PROOF_WORDS, writeProof } from '../../store/cold-set.ts'
import { PAGE_SIZE } from '../../template/wire.ts'

export interface KeptWorkerData {
  readonly fd: number
  /** PROOF_WORDS for each place of the file, in shared memory. */
  readonly proofs: Uint32Array
  /** Places of the file: behind the last comes the first. */
  readonly blocks: number
}

/** Blocks from number `first` on: that of the place, but for whole turns. */
interface BlocksToWrite {
  readonly first: number
  readonly pages: Uint8Array
}

/** What became of them. */
export interface WrittenBlocks {
  readonly first: number
  readonly count: number
  readonly failure: { readonly code: string; readonly message: string } | undefined
}

const { fd, proofs, blocks } = workerData as KeptWorkerData

try {
  setPriority(0, constants.priority.PRIORITY_BELOW_NORMAL) // of this thread: no batch waits for what it does
} catch {
  // forbidden by whatever started the process
}

function write(bytes: Uint8Array, position: number): void {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(fd, bytes, done, bytes.length - done, position + done)
  }
}

parentPort!.on('message', ({ first, pages }: BlocksToWrite) => {
  const count = pages.length / PAGE_SIZE
  let failure: WrittenBlocks['failure']
  try {
    const from = first % blocks
    const toEnd = Math.min(count, blocks - from) * PAGE_SIZE
    write(pages.subarray(0, toEnd), from * PAGE_SIZE)
    write(pages.subarray(toEnd), 0)
    for (let i = 0; i < count; i++) {
      const place = (first + i) % blocks
      writeProof(pages.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE), proofs, place * PROOF_WORDS)
    }
  } catch (error) {
    const { code = 'EIO', message } = error as NodeJS.ErrnoException
    failure = { code, message }
  }
  parentPort!.postMessage({ first, count, failure } satisfies WrittenBlocks)
})
