/** A thread that reads pages of files and digests them, so that neither a disk nor SHA-256 holds up whoever waits for sockets. */
import { readSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { writeDigest } from '../../template/digest.ts'
import { DIGEST_LENGTH, PAGE_SIZE } from '../../template/wire.ts'

/** A stretch of a file, and which of its pages to digest. */
export interface ReadingRun {
  readonly fd: number
  /** In bytes from the file's start. */
  readonly position: number
  readonly length: number
  /** Where in the shared memory the bytes go, and the digests. */
  readonly at: number
  readonly digestsAt: number
  /** Pages from the start of the stretch. */
  readonly wanted: readonly number[]
}

/** Why a run could not be read: the system's error, or '' where the file ends early. */
export interface ReadingFailure {
  readonly code: string
  readonly message: string
}

const memory = Buffer.from((workerData as { memory: SharedArrayBuffer }).memory)

function read({ fd, position, length, at, digestsAt, wanted }: ReadingRun): ReadingFailure | undefined {
  try {
    for (let have = 0; have < length; ) {
      const bytes = readSync(fd, memory, at + have, length - have, position + have)
      if (bytes === 0) return { code: '', message: 'ends early' }
      have += bytes
    }
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException
    return { code: code || 'EIO', message }
  }
  for (const [i, page] of wanted.entries()) {
    const from = at + page * PAGE_SIZE
    writeDigest(memory.subarray(from, from + PAGE_SIZE), memory, digestsAt + i * DIGEST_LENGTH)
  }
  return undefined
}

// One message a batch: its runs. The answer: what became of each.
parentPort!.on('message', (runs: ReadingRun[]) => parentPort!.postMessage(runs.map(read)))
