/** A helping thread as the main one sees it: what it was given, how far it is, and what becomes of that when it ends or hangs. */
import type { Worker } from 'node:worker_threads'
import { ProxyError } from '../../errors.ts'
import type { EventLoop } from '../event-loop.ts'
import { type FromHelper, type HelperData, type Piece, type ToHelper, WORD, WORDS_BYTES } from './helper-messages.ts'
import type { PartsBoard } from './parts-board.ts'
import { errorOf } from './wrong-batch.ts'

/** How often it is looked whether a helper gets on; three times without a job done, and it hangs: one takes 5 ms, and its start 0.1 s. */
const LOOK_MS = 5000
const LOOKS = 3

/** A job's number, of one helper: counted on, modulo 2^32. */
export type Job = number

/** Starts a helper: a test's may fail. */
export type StartHelper = (data: HelperData) => Worker

interface Waiter {
  readonly job: Job
  readonly done: () => void
}

interface Packing {
  readonly done: (pieces: readonly Uint8Array[]) => void
  readonly failed: (error: ProxyError) => void
}

export class Helper {
  readonly place: number
  /** It has begun to work: before that what it is given waits. */
  isReady = false
  /** It is not known yet whether it will. */
  private isStarting = true
  /** Why it does nothing any more. */
  failure: ProxyError | undefined
  /** Nothing of it runs any more. */
  hasExited = false
  /** Sessions whose streams it has. */
  sessions = 0
  /** What was wrong with batches of sessions: the first of each. */
  readonly wrong = new Map<number, { readonly job: Job; readonly error: Error }>()
  /** Resolves when it has begun to work, or will not. */
  readonly started: Promise<void>
  /** Resolves when nothing of it runs any more. */
  private readonly exited: Promise<void>
  private resolveStarted!: () => void
  private readonly worker: Worker
  private readonly words = new Int32Array(new SharedArrayBuffer(WORDS_BYTES))
  private readonly board: PartsBoard
  private readonly loop: EventLoop
  private posted = 0
  private wrongSeen = 0
  private waiters: Waiter[] = []
  /** Oldest first. */
  private readonly packing: Packing[] = []
  private isWatched = false

  constructor(place: number, board: PartsBoard, loop: EventLoop, start: StartHelper) {
    this.place = place
    this.board = board
    this.loop = loop
    this.started = new Promise(done => {
      this.resolveStarted = done
    })
    this.worker = start({ board: board.buffer, words: this.words.buffer, place })
    this.worker.on('message', (message: FromHelper) => this.take(message))
    this.worker.on('error', error => this.fail(`failed: ${error.message}`, error))
    this.exited = new Promise(done => {
      this.worker.on('exit', () => {
        this.fail('has ended')
        this.hasExited = true
        for (const waiter of this.waiters.splice(0)) waiter.done()
        done()
      })
    })
    this.watch() // who opens a session waits for it
  }

  /** Jobs that are not done. */
  get outstanding(): number {
    return (this.posted - this.done) | 0
  }

  get isAwaited(): boolean {
    return this.waiters.length > 0
  }

  post(message: ToHelper): Job {
    this.posted = (this.posted + 1) | 0
    if (this.failure === undefined) {
      this.worker.postMessage(message)
      if (message.kind === 'pack') Atomics.add(this.words, WORD.PACKS_POSTED, 1)
      Atomics.store(this.words, WORD.POSTED, this.posted)
      this.board.ring()
    }
    return this.posted
  }

  /** Whether it is done, and nothing that was wrong is to be told of it any more. */
  isDone(job: Job): boolean {
    return ((this.done - job) | 0) >= 0 && this.wrongSeen === Atomics.load(this.words, WORD.WRONG)
  }

  /** Resolves when it is, or nothing of the helper runs any more. */
  async whenDone(job: Job): Promise<void> {
    if (this.failure !== undefined) await this.exited
    else if (!this.isDone(job)) {
      await new Promise<void>(done => {
        this.waiters.push({ job, done })
        this.settle()
      })
    }
  }

  /** Packs pieces of a session's streams. @throws INTERNAL (rejects) where it cannot, or is dead, dies, or hangs */
  pack(session: number, pieces: readonly Piece[]): Promise<readonly Uint8Array[]> {
    if (this.failure !== undefined) return Promise.reject(this.failure)
    return new Promise((done, failed) => {
      this.post({ kind: 'pack', session, pieces })
      this.packing.push({ done, failed })
      this.settle()
    })
  }

  /** Resolves when nothing of it runs any more. */
  async end(): Promise<void> {
    this.fail('was ended')
    await this.exited
  }

  private get done(): number {
    return Atomics.load(this.words, WORD.DONE)
  }

  private take(message: FromHelper): void {
    if (message.kind === 'ready') {
      this.isReady = this.failure === undefined
      this.endStart()
    } else if (message.kind === 'packed') this.packing.shift()?.done(message.pieces)
    else if (message.kind === 'failed') this.packing.shift()?.failed(defect(`failed: ${message.reason}`))
    else if (message.kind === 'wrong') {
      this.wrongSeen++
      const { session, job, wrong } = message
      this.wrong.set(session, { job, error: errorOf(wrong) })
    }
    this.settle()
  }

  /** Tells those whose job is done; the others are told later. */
  private settle(): void {
    if (this.failure !== undefined) return // they are told when it has ended, which keeps the process alive
    let before: number
    do {
      before = this.done
      this.waiters = this.waiters.filter(({ job, done }) => {
        if (!this.isDone(job)) return true
        done()
        return false
      })
      if (this.isAwaited) Atomics.store(this.words, WORD.AWAITED, 1)
      // what was done since they were looked at told nobody
    } while (this.isAwaited && before !== this.done)
    if (this.isIdle)
      this.worker.unref() // it keeps no process alive that waits for nothing
    else {
      this.worker.ref()
      this.watch()
    }
  }

  private get isIdle(): boolean {
    return !this.isAwaited && this.packing.length === 0
  }

  private watch(done = this.done, silentLooks = 0): void {
    if (this.isWatched) return
    this.isWatched = true
    this.loop.after(LOOK_MS, () => {
      this.isWatched = false
      if ((this.isIdle && !this.isStarting) || this.failure !== undefined) return
      const now = this.done
      const silent = now === done ? silentLooks + 1 : 0
      // several looks: a host that stood still, stood still for both threads
      if (silent >= LOOKS) this.fail('does not answer')
      else this.watch(now, silent)
    })
  }

  private endStart(): void {
    this.isStarting = false
    this.resolveStarted()
  }

  private fail(what: string, cause?: unknown): void {
    if (this.failure !== undefined) return
    this.isReady = false
    this.failure = defect(what, cause)
    this.endStart()
    for (const { failed } of this.packing.splice(0)) failed(this.failure)
    Atomics.store(this.words, WORD.END, 1)
    this.board.ring()
    void this.worker.terminate()
  }
}

function defect(what: string, cause?: unknown): ProxyError {
  const action = 'the session ends and the source guest goes on; please report this'
  return new ProxyError('INTERNAL', `a helping thread ${what}`, undefined, action, { cause })
}
