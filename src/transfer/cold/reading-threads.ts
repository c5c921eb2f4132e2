/**
 * Threads that read what a batch needs: a job at a time each, into memory of its own, so that one whose disk hangs holds
 * itself alone, and writes nowhere that somebody else uses.
 */
import { Worker } from 'node:worker_threads'
import { BATCH_PAGES_MAX } from '../../codec/workspace.ts'
import { COLD_THREADS_MAX } from '../../limits.ts'
import { DIGEST_LENGTH, PAGE_SIZE } from '../../template/wire.ts'
import type { ReadingFailure, ReadingRun } from './reading-worker.ts'

/** Until when reads are waited for. */
export interface Deadline {
  /** Whether it is over. */
  readonly isPast: boolean
  /** Resolves when it is. */
  readonly passed: Promise<void>
}

/** Pages that one that is wanted brings along at most, itself counted: ColdFetcher's gaps. */
const PAGES_PER_WANTED = 4
const DIGESTS_AT = BATCH_PAGES_MAX * PAGES_PER_WANTED * PAGE_SIZE
const MEMORY_BYTES = DIGESTS_AT + BATCH_PAGES_MAX * DIGEST_LENGTH

/** What to read: `length` bytes, of which the pages `wanted` are digested. */
export type WantedRun = Pick<ReadingRun, 'fd' | 'position' | 'length' | 'wanted'>

/** What was read, valid as long as `use` runs. */
export interface ReadPages {
  readonly bytes: Uint8Array
  /** Of all wanted pages, in their order, as words of the machine. */
  readonly digests: Uint32Array
  /** By run: where its bytes and digests begin (in words), and why it could not be read. */
  readonly runs: readonly {
    readonly at: number
    readonly digestsAt: number
    readonly failure: ReadingFailure | undefined
  }[]
}

interface Thread {
  readonly worker: Worker
  readonly bytes: Uint8Array
  readonly digests: Uint32Array
  /** From before it is given a job until what it read has been used: its memory is written to by nobody else meanwhile. */
  isTaken: boolean
  /** Takes the answer to the job at work. */
  answer: ((failures: readonly (ReadingFailure | undefined)[] | undefined) => void) | undefined
}

export class ReadingThreads {
  private readonly threads: Thread[] = []
  private readonly waiting: (() => void)[] = []

  /**
   * Reads all runs of a batch: no more pages than it can have, and so many between them.
   * @returns false where that was not done in time: then `use` is not called, neither now nor later
   */
  async read(wanted: readonly WantedRun[], deadline: Deadline, use: (read: ReadPages) => void): Promise<boolean> {
    const reading = this.readNow(wanted, deadline, use)
    return Promise.race([reading, deadline.passed.then(() => false)])
  }

  /** Ends threads that have nothing to do. */
  rest(): void {
    for (const thread of this.threads.filter(({ isTaken }) => !isTaken)) {
      this.threads.splice(this.threads.indexOf(thread), 1)
      void thread.worker.terminate()
    }
  }

  private async readNow(
    wanted: readonly WantedRun[],
    deadline: Deadline,
    use: (read: ReadPages) => void,
  ): Promise<boolean> {
    const thread = await this.take()
    try {
      return !deadline.isPast && (await this.readIn(thread, wanted, deadline, use))
    } finally {
      this.give(thread)
    }
  }

  private async readIn(
    thread: Thread,
    wanted: readonly WantedRun[],
    deadline: Deadline,
    use: (read: ReadPages) => void,
  ): Promise<boolean> {
    let at = 0
    let digestsAt = DIGESTS_AT
    const runs = wanted.map((run): ReadingRun => {
      const placed = { ...run, at, digestsAt }
      at += run.length
      digestsAt += run.wanted.length * DIGEST_LENGTH
      return placed
    })
    const failures = await new Promise<readonly (ReadingFailure | undefined)[] | undefined>(done => {
      thread.answer = done
      thread.worker.ref()
      thread.worker.postMessage(runs)
    })
    if (failures === undefined || deadline.isPast) return false
    use({
      bytes: thread.bytes,
      digests: thread.digests,
      runs: runs.map((run, i) => ({
        at: run.at,
        digestsAt: (run.digestsAt - DIGESTS_AT) / 4,
        failure: failures[i],
      })),
    })
    return true
  }

  private async take(): Promise<Thread> {
    for (;;) {
      const idle = this.threads.find(({ isTaken }) => !isTaken)
      const thread = idle ?? (this.threads.length < COLD_THREADS_MAX ? this.start() : undefined)
      if (thread) {
        thread.isTaken = true
        return thread
      }
      await new Promise<void>(done => this.waiting.push(done))
    }
  }

  private give(thread: Thread): void {
    thread.isTaken = false
    this.waiting.shift()?.()
  }

  private start(): Thread {
    const memory = new SharedArrayBuffer(MEMORY_BYTES)
    const worker = new Worker(new URL(workerFile(), import.meta.url), { workerData: { memory } })
    const digests = new Uint32Array(memory, DIGESTS_AT)
    const thread: Thread = { worker, bytes: new Uint8Array(memory), digests, isTaken: false, answer: undefined }
    const answered = (failures: readonly (ReadingFailure | undefined)[] | undefined): void => {
      const { answer } = thread
      thread.answer = undefined
      worker.unref() // an idle thread keeps no process alive
      answer?.(failures)
    }
    worker.on('message', answered)
    worker.on('error', () => {
      this.threads.splice(this.threads.indexOf(thread), 1)
      answered(undefined)
    })
    worker.unref()
    this.threads.push(thread)
    return thread
  }
}

/** Sources run as they are; a built package has JavaScript. */
function workerFile(): string {
  return import.meta.url.endsWith('.ts') ? './reading-worker.ts' : './reading-worker.js'
}
