/**
 * Threads of the process that unpack batches before their turn, and commit pages of rings. A session's zstd streams are on one
 * of them, so its batches are unpacked in their order; what a thread writes to is memory that its session has lent it.
 *
 * A thread that ends, or that does nothing for as long as UNPACK_PATIENCE_MS, is given up with the sessions whose streams
 * it has; whoever comes next has another one.
 */
import { Worker } from 'node:worker_threads'
import { ProxyError } from '../../errors.ts'
import { UNPACK_PATIENCE_MS, UNPACK_THREADS_MAX } from '../../limits.ts'
import type { EventLoop } from '../event-loop.ts'
import { type ThreadMessage, WORD, WORDS_BYTES, type WrongAnswer } from './unpack-message.ts'
import { errorOf } from './wrong-batch.ts'

/** A job's number, of one thread: counted on, modulo 2^32. */
export type Job = number

/** Who has streams on a thread. */
interface Streamer {
  /** Something is wrong with what it was given. */
  wrong(job: Job, error: Error): void
  /** The thread has ended. */
  lost(error: ProxyError): void
}

interface Waiter {
  readonly job: Job
  readonly done: () => void
}

class UnpackThread {
  /** Streams by number. */
  readonly streamers = new Map<number, Streamer>()
  /** Why it does nothing any more. */
  failure: ProxyError | undefined
  /** It takes messages: until then they wait. */
  isOnline = false
  private readonly worker: Worker
  private readonly words = new Int32Array(new SharedArrayBuffer(WORDS_BYTES))
  private readonly loop: EventLoop
  private readonly onFailure: (thread: UnpackThread) => void
  private posted = 0
  private wrongSeen = 0
  private waiters: Waiter[] = []
  private isWatched = false
  private ended: Promise<unknown> | undefined

  constructor(file: URL, loop: EventLoop, onFailure: (thread: UnpackThread) => void) {
    this.loop = loop
    this.onFailure = onFailure
    this.worker = new Worker(file, { workerData: { words: this.words.buffer } })
    this.worker.on('online', () => {
      this.isOnline = true
    })
    this.worker.on('message', (answer: WrongAnswer | undefined) => this.take(answer))
    this.worker.on('error', error => this.fail(`has failed: ${error.message}`, error))
    this.worker.on('exit', () => this.fail('has ended'))
    this.worker.unref() // it keeps no process alive that waits for nothing
  }

  get outstanding(): number {
    return (this.posted - Atomics.load(this.words, WORD.DONE)) | 0
  }

  get isAwaited(): boolean {
    return this.waiters.length > 0
  }

  post(message: ThreadMessage): Job {
    this.posted = (this.posted + 1) | 0
    if (this.failure === undefined) this.worker.postMessage(message)
    return this.posted
  }

  /** Whether it is done, and nothing is to be told of it any more. */
  isDone(job: Job): boolean {
    return (
      ((Atomics.load(this.words, WORD.DONE) - job) | 0) >= 0 && this.wrongSeen === Atomics.load(this.words, WORD.WRONG)
    )
  }

  /** Resolves when it is, or the thread has ended and writes nothing any more. */
  async whenDone(job: Job): Promise<void> {
    if (this.ended !== undefined) await this.ended
    else if (!this.isDone(job)) {
      await new Promise<void>(done => {
        this.waiters.push({ job, done })
        this.worker.ref()
        this.settle()
      })
    }
  }

  /** Ends it; nobody hears. */
  end(): Promise<unknown> {
    this.failure ??= threadError('was ended')
    this.ended ??= this.worker.terminate()
    void this.ended.then(() => this.release())
    return this.ended
  }

  private take(answer: WrongAnswer | undefined): void {
    if (answer) {
      this.wrongSeen++
      this.streamers.get(answer.streams)?.wrong(answer.job, errorOf(answer.wrong))
    }
    this.settle()
  }

  /** Tells those whose job is done; the others are told later. */
  private settle(): void {
    for (;;) {
      const before = Atomics.load(this.words, WORD.DONE)
      const { waiters } = this
      this.waiters = waiters.filter(({ job }) => !this.isDone(job))
      for (const { job, done } of waiters) if (this.isDone(job)) done()
      if (this.waiters.length === 0) {
        if (this.ended === undefined) this.worker.unref() // else somebody waits for its end
        return
      }
      Atomics.store(this.words, WORD.AWAITED, 1)
      // what was done since they were looked at told nobody
      if (before === Atomics.load(this.words, WORD.DONE)) break
    }
    this.watch()
  }

  private watch(done = Atomics.load(this.words, WORD.DONE), times = 0): void {
    if (this.isWatched) return
    this.isWatched = true
    // twice: a host that stood still itself finds the time to be over, and nothing done
    this.loop.after(UNPACK_PATIENCE_MS / 2, () => {
      this.isWatched = false
      if (this.waiters.length === 0 || this.failure) return
      const now = Atomics.load(this.words, WORD.DONE)
      if (now !== done) this.watch(now)
      else if (times === 0) this.watch(done, 1)
      else this.fail('does not answer')
    })
  }

  private fail(what: string, cause?: Error): void {
    if (this.failure) return
    this.failure = threadError(what, cause)
    this.onFailure(this)
    void this.end()
    for (const streamer of [...this.streamers.values()]) streamer.lost(this.failure)
  }

  private release(): void {
    for (const { done } of this.waiters.splice(0)) done()
  }
}

function threadError(what: string, cause?: Error): ProxyError {
  const action = 'the session ends and the source guest goes on; please report this'
  return new ProxyError('INTERNAL', `the thread that unpacks ${what}`, undefined, action, { cause })
}

/** A session's streams, on one thread. */
export class UnpackStreams implements Streamer {
  /** The thread has ended, and the session must. */
  onLost: (error: ProxyError) => void = () => {}
  private readonly threads: UnpackThreads
  private readonly thread: UnpackThread
  private readonly number: number
  /** The first that was wrong, and what was. */
  private damage: { readonly job: Job; readonly error: Error } | undefined
  private closed: Promise<void> | undefined

  /** For UnpackThreads alone. */
  constructor(threads: UnpackThreads, thread: UnpackThread, number: number) {
    this.threads = threads
    this.thread = thread
    this.number = number
    thread.streamers.set(number, this)
  }

  /** Unpacks columns once all before are: unpack-message.ts. Their memory is the thread's until that is done. */
  unpack(rawLength: number, columns: Uint32Array): Job {
    return this.thread.post({ kind: 'unpack', streams: this.number, rawLength, columns })
  }

  /**
   * @returns undefined where a job is done; else resolves once it is
   * @throws BATCH_FORMAT, INTERNAL; also as rejection
   */
  finished(job: Job): Promise<void> | undefined {
    if (this.damage === undefined && this.thread.isDone(job)) return undefined
    return this.whenFinished(job)
  }

  /**
   * Has pages of the session's memory committed by the thread that has the least to do.
   * @returns undefined: somebody waits for it, or it has not started yet; else resolves once it has, false where it did not
   */
  commit(at: number, length: number): Promise<boolean> | undefined {
    const thread = this.threads.leastBusy()
    if (this.closed || !thread?.isOnline || thread.isAwaited) return undefined
    const job = thread.post({ kind: 'commit', streams: this.number, at, length })
    return thread.whenDone(job).then(() => thread.isDone(job))
  }

  /** Whether a holder may have another batch unpacked before its turn. */
  takeAhead(holder: string): boolean {
    return this.threads.takeAhead(holder)
  }

  giveAhead(holder: string): void {
    this.threads.giveAhead(holder)
  }

  /** Nothing is unpacked any more. Resolves when no thread writes to the session's memory. */
  close(): Promise<void> {
    this.closed ??= this.threads.close(this.number)
    this.thread.streamers.delete(this.number)
    return this.closed
  }

  wrong(job: Job, error: Error): void {
    this.damage ??= { job, error }
  }

  lost(error: ProxyError): void {
    this.onLost(error)
  }

  private async whenFinished(job: Job): Promise<void> {
    const { thread } = this
    // something that is wrong since, of any session, is told before anything is done again
    do await thread.whenDone(job)
    while (!thread.isDone(job) && thread.failure === undefined)
    const { damage } = this
    if (damage && ((job - damage.job) | 0) >= 0) throw damage.error
    if (!thread.isDone(job)) throw thread.failure!
  }
}

export class UnpackThreads {
  /**
   * Those of a process that may use so many threads, its main one counted; undefined: none.
   * @param aheadMax batches of one holder that are unpacked before their turn, at most
   */
  static beside(threads: number, loop: EventLoop, aheadMax?: number): UnpackThreads | undefined {
    return threads > 1 ? new UnpackThreads(Math.min(threads - 1, UNPACK_THREADS_MAX), loop, aheadMax) : undefined
  }

  private readonly count: number
  private readonly loop: EventLoop
  private readonly file: URL
  private readonly aheadMax: number
  private threads: UnpackThread[] = []
  /** Given up, and perhaps still at work. */
  private readonly ending = new Set<Promise<unknown>>()
  private streams = 0
  /** Memory of streams that live. */
  private readonly memories = new Map<number, SharedArrayBuffer>()
  /** Batches before their turn, by holder. */
  private readonly ahead = new Map<string, number>()

  /**
   * @param count of threads
   * @param aheadMax batches of one holder that are unpacked before their turn, at most
   * @param file what a thread runs: a test's, with a fault
   */
  constructor(count: number, loop: EventLoop, aheadMax = Number.POSITIVE_INFINITY, file = WORKER) {
    this.count = count
    this.loop = loop
    this.aheadMax = aheadMax
    this.file = file
  }

  /** Starts those that do not run: what is asked of them meanwhile waits until they do. */
  start(): void {
    while (this.threads.length < this.count) {
      const thread = new UnpackThread(this.file, this.loop, failed => {
        this.threads = this.threads.filter(other => other !== failed)
        const ending = failed.end().finally(() => this.ending.delete(ending))
        this.ending.add(ending)
      })
      for (const [streams, memory] of this.memories) thread.post({ kind: 'open', streams, memory })
      this.threads.push(thread)
    }
  }

  /** Streams of a session, on the thread that has the fewest. @param memory that all addresses are of */
  open(memory: SharedArrayBuffer): UnpackStreams {
    this.start()
    const streams = this.streams++
    this.memories.set(streams, memory)
    for (const thread of this.threads) thread.post({ kind: 'open', streams, memory })
    const fewest = this.threads.reduce((a, b) => (b.streamers.size < a.streamers.size ? b : a))
    return new UnpackStreams(this, fewest, streams)
  }

  /** That has the least to do. */
  leastBusy(): UnpackThread | undefined {
    let least: UnpackThread | undefined
    for (const thread of this.threads) if (!least || thread.outstanding < least.outstanding) least = thread
    return least
  }

  /** Streams are over. Resolves when no thread has them. */
  async close(streams: number): Promise<void> {
    this.memories.delete(streams)
    const closed = this.threads.map(thread => thread.whenDone(thread.post({ kind: 'close', streams })))
    await Promise.all([...closed, ...this.ending])
  }

  takeAhead(holder: string): boolean {
    const count = this.ahead.get(holder) ?? 0
    if (count >= this.aheadMax) return false
    this.ahead.set(holder, count + 1)
    return true
  }

  giveAhead(holder: string): void {
    const count = this.ahead.get(holder)! - 1
    if (count === 0) this.ahead.delete(holder)
    else this.ahead.set(holder, count)
  }

  /** Ends all of them. */
  async end(): Promise<void> {
    await Promise.all(this.threads.splice(0).map(thread => thread.end()))
  }
}

/** Sources run as they are; a built package has JavaScript. */
const WORKER = new URL(import.meta.url.endsWith('.ts') ? './unpack-worker.ts' : './unpack-worker.js', import.meta.url)
