/**
 * Reads of cold sets, of all sessions of a process: a few at once, each into a buffer of its own, so that a disk that hangs
 * holds some threads of libuv's pool and some memory, and never memory that somebody else uses again.
 */
import { COLD_READ_BYTES_MAX, COLD_READS_MAX } from '../../limits.ts'
import { PAGE_SIZE } from '../../template/wire.ts'
import { EVENT_LOOP, type EventLoop } from '../event-loop.ts'
import type { ColdFile } from './cold-list.ts'
import { type Deadline, ReadingThreads } from './reading-threads.ts'

/** Pages of one read at most. */
export const READ_PAGES_MAX = COLD_READ_BYTES_MAX / PAGE_SIZE

export class DiskReads {
  /** For files that a thread can read by itself. */
  readonly threads = new ReadingThreads()
  private readonly free: Buffer[] = []
  private readonly waiting: (() => void)[] = []
  private readonly loop: EventLoop
  private underWay = 0

  constructor(loop: EventLoop = EVENT_LOOP) {
    this.loop = loop
  }

  /** Reads of one batch: they are waited for so long, and what comes later than their end is not used. */
  async within<T>(ms: number, reads: (deadline: Deadline) => Promise<T>): Promise<T> {
    let isPast = false
    let pass!: () => void
    const passed = new Promise<void>(done => {
      pass = done
    })
    const takeBack = this.loop.after(ms, () => {
      isPast = true
      pass()
    })
    try {
      return await reads({
        get isPast() {
          return isPast
        },
        passed,
      })
    } finally {
      isPast = true
      takeBack()
    }
  }

  /**
   * Reads pages, READ_PAGES_MAX at most, and hands them out; what `use` is given is valid until it returns.
   * @returns false where the disk has not answered in time: then `use` is not called, neither now nor later
   * @throws as ColdSet.read
   */
  async read(
    set: Pick<ColdFile, 'read'>,
    first: number,
    count: number,
    deadline: Deadline,
    use: (pages: Uint8Array) => void,
  ): Promise<boolean> {
    const reading = this.turn(async buffer => {
      if (deadline.isPast) return false // whoever waited has gone
      await set.read(first, count, buffer)
      if (deadline.isPast) return false
      use(buffer.subarray(0, count * PAGE_SIZE))
      return true
    })
    reading.catch(() => {}) // an error that comes too late
    return Promise.race([reading, deadline.passed.then(() => false)])
  }

  private async turn<T>(work: (buffer: Buffer) => Promise<T>): Promise<T> {
    if (this.underWay === COLD_READS_MAX) await new Promise<void>(done => this.waiting.push(done))
    else this.underWay++
    const buffer = this.free.pop() ?? Buffer.allocUnsafeSlow(COLD_READ_BYTES_MAX)
    try {
      return await work(buffer)
    } finally {
      this.free.push(buffer)
      const next = this.waiting.shift()
      if (next === undefined) this.underWay--
      else next() // it has our place
    }
  }
}
