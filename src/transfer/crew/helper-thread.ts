/** A helper as the main thread sees it: what it was asked, and what becomes of that when it dies or hangs. */
import { Worker } from 'node:worker_threads'
import { ProxyError } from '../../errors.ts'
import type { EventLoop } from '../event-loop.ts'
import type { Board } from './board.ts'
import type { FromHelper, HelperData, ToHelper } from './messages.ts'

/** How often it is looked whether a helper still answers; three times without an answer, and it hangs: a piece takes 5 ms. */
const LOOK_MS = 5000
const LOOKS = 3

/** Starts a helper: a test's may fail. */
export type StartHelper = (data: HelperData) => Worker

interface Asked {
  readonly done: (answer: FromHelper) => void
  readonly failed: (error: ProxyError) => void
}

export class HelperThread {
  /** It has begun to work: before that what it is asked would wait. */
  isReady = false
  /** Why it does nothing any more. */
  failure: ProxyError | undefined
  private readonly worker: Worker
  private readonly board: Board
  private readonly loop: EventLoop
  /** Oldest first. */
  private readonly asked: Asked[] = []
  private silentLooks = 0
  private lookDue = false
  private readonly exited: Promise<void>
  /** Resolves when it has begun to work, or will not. */
  readonly started: Promise<void>
  private resolveStarted!: () => void

  constructor(helper: number, board: Board, loop: EventLoop, start: StartHelper = startHelper) {
    this.board = board
    this.loop = loop
    this.started = new Promise(done => {
      this.resolveStarted = done
    })
    this.worker = start({ board: board.buffer, helper })
    this.worker.on('message', (message: FromHelper) => this.take(message))
    this.worker.on('error', error => this.fail(`a helping thread failed: ${error.message}`, error))
    this.exited = new Promise(done => {
      this.worker.on('exit', () => {
        this.fail('a helping thread has ended')
        done()
      })
    })
  }

  tell(message: ToHelper): void {
    if (this.failure) return
    this.worker.postMessage(message)
    this.board.ring()
  }

  /** Tells it something that it answers. @throws INTERNAL (rejects) where it is dead, dies, or hangs */
  ask(message: ToHelper): Promise<FromHelper> {
    if (this.failure) return Promise.reject(this.failure)
    return new Promise((done, failed) => {
      this.worker.ref()
      this.asked.push({ done, failed })
      this.tell(message)
      this.lookLater()
    })
  }

  /** Resolves when nothing of it runs any more. */
  async end(): Promise<void> {
    this.fail('a helping thread was ended')
    await this.worker.terminate()
    await this.exited
  }

  private take(message: FromHelper): void {
    if (message.kind === 'ready') {
      this.isReady = true
      this.resolveStarted()
      if (this.asked.length === 0) this.worker.unref() // an idle thread keeps no process alive
      return
    }
    this.silentLooks = 0
    const asked = this.asked.shift()
    if (this.asked.length === 0) this.worker.unref()
    if (message.kind === 'failed') asked?.failed(defect(message.reason))
    else asked?.done(message)
  }

  private lookLater(): void {
    if (this.lookDue) return
    this.lookDue = true
    this.loop.after(LOOK_MS, () => {
      this.lookDue = false
      if (this.asked.length === 0 || this.failure) return
      // several looks: a host that stood still, stood still for both threads
      if (++this.silentLooks >= LOOKS) {
        this.fail('a helping thread does not answer')
        void this.worker.terminate()
      } else this.lookLater()
    })
  }

  private fail(what: string, cause?: unknown): void {
    this.isReady = false
    this.failure ??= defect(what, cause)
    this.resolveStarted()
    for (const { failed } of this.asked.splice(0)) failed(this.failure)
  }
}

function defect(what: string, cause?: unknown): ProxyError {
  return new ProxyError('INTERNAL', what, undefined, 'please report this', { cause })
}

export function startHelper(workerData: HelperData): Worker {
  // sources run as they are; a built package has JavaScript
  const file = import.meta.url.endsWith('.ts') ? './helper.ts' : './helper.js'
  return new Worker(new URL(file, import.meta.url), { workerData })
}
