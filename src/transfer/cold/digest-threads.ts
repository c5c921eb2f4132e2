/**
 * Threads that digest pages beside the one that encodes, which does its share: SHA-256 is the most that finding cold pages
 * costs. Whatever they do, the answer is there when `digest` returns, at the latest when it would be without them.
 */
import { availableParallelism } from 'node:os'
import { MessageChannel, type MessagePort, Worker, type WorkerOptions } from 'node:worker_threads'
import { COLD_DIGEST_THREADS_MAX } from '../../limits.ts'
import { PROOF_WORDS, writeProof } from '../../store/cold-set.ts'
import { PAGE_SIZE } from '../../template/wire.ts'
import {
  ADDRESSES_AT,
  BATCH_MASK,
  CHUNK_PAGES,
  CHUNKS_MAX,
  CLAIM_BITS,
  doneAt,
  proofsAt,
  shareBytes,
  WORD,
} from './digest-share.ts'

/** Below so many pages a thread is hardly awake before all is done. */
const SHARED_PAGES_MIN = 32

interface Thread {
  readonly worker: Worker
  readonly memories: MessagePort
}

export class DigestThreads {
  private readonly count: number
  private readonly startWorker: (options: WorkerOptions) => Worker
  private threads: Thread[] = []
  /** Shared with the threads at work; others get others, so that what ends writes nowhere that somebody reads. */
  private words: Int32Array = new Int32Array(0)
  private proofs: Uint32Array = new Uint32Array(0)
  private memory: ArrayBufferLike | undefined
  private hasFailed = false
  private batch = 0
  /** By chunk: whether it was done here. */
  private readonly own = new Uint8Array(CHUNKS_MAX)
  /** Pages that threads have digested. */
  helped = 0

  /**
   * @param count of threads; by default what the machine has beside the one that encodes
   * @param startWorker may throw
   */
  constructor(
    count = Math.min(COLD_DIGEST_THREADS_MAX, availableParallelism() - 1),
    startWorker = (options: WorkerOptions) => new Worker(new URL(workerFile(), import.meta.url), options),
  ) {
    this.count = count
    this.startWorker = startWorker
  }

  /**
   * Writes the proofs of pages, BATCH_PAGES_MAX at most.
   * @param bytes all of a memory, shared where threads are to help
   * @param pages address of each
   * @param into PROOF_WORDS each, in their order
   */
  digest(bytes: Uint8Array, pages: ArrayLike<number>, count: number, into: Uint32Array): void {
    if (count < SHARED_PAGES_MIN || !(bytes.buffer instanceof SharedArrayBuffer) || !this.start()) {
      for (let page = 0; page < count; page++) digestOne(bytes, pages[page]!, into, page)
      return
    }
    this.share(bytes.buffer, pages, count)
    const { words, own, batch } = this
    const chunks = Math.ceil(count / CHUNK_PAGES)
    own.fill(0, 0, chunks)
    for (;;) {
      const chunk = Atomics.add(words, WORD.CLAIM, 1) & ((1 << CLAIM_BITS) - 1)
      if (chunk >= chunks) break
      own[chunk] = 1
      digestChunk(bytes, pages, chunk, count, into)
    }
    for (let chunk = 0; chunk < chunks; chunk++) {
      if (own[chunk] === 1) continue
      const thread = this.threads.findIndex((_, i) => Atomics.load(words, doneAt(i) + chunk) === batch)
      if (thread < 0) digestChunk(bytes, pages, chunk, count, into)
      else this.take(thread, chunk, count, into)
    }
  }

  /** Ends the threads; they begin anew where they are wanted. */
  rest(): void {
    const { words } = this
    if (this.threads.length > 0) {
      Atomics.store(words, WORD.END, 1)
      Atomics.add(words, WORD.BATCH, 1) // whoever looked at END before does not wait
      Atomics.notify(words, WORD.BATCH)
    }
    for (const { worker, memories } of this.threads.splice(0)) {
      memories.close()
      void worker.terminate()
    }
    this.memory = undefined
  }

  /** Says what is to be done, and wakes who is to help. */
  private share(memory: ArrayBufferLike, pages: ArrayLike<number>, count: number): void {
    const { words } = this
    if (this.memory !== memory) {
      // the last one alone is held: a memory that all sessions have left is not kept by us
      for (const { memories } of this.threads) memories.postMessage(memory)
      this.memory = memory
      Atomics.add(words, WORD.MEMORY, 1)
    }
    for (let page = 0; page < count; page++) words[ADDRESSES_AT + page] = pages[page]!
    words[WORD.PAGES] = count
    if (this.batch === BATCH_MASK) this.forget()
    this.batch = (this.batch % BATCH_MASK) + 1 // never 0: what was never done has that
    Atomics.store(words, WORD.CLAIM, this.batch << CLAIM_BITS)
    Atomics.add(words, WORD.BATCH, 1)
    Atomics.notify(words, WORD.BATCH)
  }

  /** Numbers begin again: what was done under one of them, for the last time perhaps two million batches ago, was for another. */
  private forget(): void {
    for (let thread = 0; thread < this.threads.length; thread++)
      for (let chunk = 0; chunk < CHUNKS_MAX; chunk++) Atomics.store(this.words, doneAt(thread) + chunk, 0)
  }

  private take(thread: number, chunk: number, count: number, into: Uint32Array): void {
    const from = chunk * CHUNK_PAGES
    const to = Math.min(from + CHUNK_PAGES, count)
    const at = proofsAt(thread)
    for (let i = from * PROOF_WORDS; i < to * PROOF_WORDS; i++) into[i] = this.proofs[at + i]!
    this.helped += to - from
  }

  /**
   * Starts the threads, where there are none: ahead of a migration, because each computes 30 to 100 ms for that.
   * @returns whether there are any
   */
  start(): boolean {
    if (this.hasFailed || this.count === 0) return false
    if (this.threads.length > 0) return true
    const share = new SharedArrayBuffer(shareBytes(this.count))
    this.words = new Int32Array(share)
    this.proofs = new Uint32Array(share)
    try {
      for (let thread = 0; thread < this.count; thread++) this.threads.push(this.startThread(share, thread))
    } catch {
      this.fail() // no more threads for this process
    }
    return !this.hasFailed
  }

  private startThread(share: SharedArrayBuffer, thread: number): Thread {
    const { port1, port2 } = new MessageChannel()
    const worker = this.startWorker({ workerData: { share, thread, memories: port2 }, transferList: [port2] })
    const started = { worker, memories: port1 }
    worker.on('error', () => {
      if (this.threads.includes(started)) this.fail()
      else this.hasFailed = true
    })
    worker.unref()
    port1.unref()
    return started
  }

  /** All is done here from now on. */
  private fail(): void {
    this.hasFailed = true
    this.rest()
  }
}

function digestChunk(
  bytes: Uint8Array,
  pages: ArrayLike<number>,
  chunk: number,
  count: number,
  into: Uint32Array,
): void {
  const end = Math.min((chunk + 1) * CHUNK_PAGES, count)
  for (let page = chunk * CHUNK_PAGES; page < end; page++) digestOne(bytes, pages[page]!, into, page)
}

function digestOne(bytes: Uint8Array, at: number, into: Uint32Array, page: number): void {
  // a view costs less than a copy of the page, and digesting makes a string anyway
  writeProof(bytes.subarray(at, at + PAGE_SIZE), into, page * PROOF_WORDS)
}

/** Sources run as they are; a built package has JavaScript. */
function workerFile(): string {
  return import.meta.url.endsWith('.ts') ? './digest-worker.ts' : './digest-worker.js'
}
