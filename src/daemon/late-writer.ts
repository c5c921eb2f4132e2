/**
 * Writes something to a disk beside the migrations that it is about, which never wait for it: a second late, so that a storm
 * of them is one write, and one at a time, however slow the disk is. What could not be written is tried again with what
 * comes next, and at the end; that it cannot is told once.
 */

const WRITE_MS = 1000
/** How long the end of a process waits for a disk. */
const CLOSE_MS = 2000

export class LateWriter {
  private readonly write: (signal: AbortSignal) => Promise<void>
  private readonly failed: (cause: unknown) => void
  private timer: NodeJS.Timeout | undefined
  private writing: Promise<void> | undefined
  /** There is something that is not written. */
  private isDue = false
  private isFailing = false
  private readonly over = new AbortController()

  /**
   * @param write all that is not written yet; the signal: nobody waits for it any more
   * @param failed told why it could not be, once until it can
   */
  constructor(write: (signal: AbortSignal) => Promise<void>, failed: (cause: unknown) => void) {
    this.write = write
    this.failed = failed
  }

  /** There is something to write. */
  ask(): void {
    this.isDue = true
    this.timer ??= setTimeout(() => this.due(), WRITE_MS).unref()
  }

  /** Writes what is not written yet, as far as the disk lets it; nothing is asked any more. */
  async close(): Promise<void> {
    clearTimeout(this.timer)
    const giveUp = setTimeout(() => this.over.abort(), CLOSE_MS)
    const written = (async () => {
      await this.writing
      if (this.isDue) await this.run()
    })()
    const late = new Promise<void>(done => this.over.signal.addEventListener('abort', () => done(), { once: true }))
    await Promise.race([written, late]).finally(() => clearTimeout(giveUp))
  }

  private due(): void {
    this.timer = undefined
    if (this.writing)
      this.timer = setTimeout(() => this.due(), WRITE_MS).unref() // the disk is slow
    else
      this.writing = this.run().finally(() => {
        this.writing = undefined
      })
  }

  /** Never rejects. */
  private async run(): Promise<void> {
    this.isDue = false
    try {
      await this.write(this.over.signal)
      this.isFailing = false
    } catch (cause) {
      this.isDue = true
      if (this.over.signal.aborted) return
      if (!this.isFailing) this.failed(cause)
      this.isFailing = true // said once; what comes next is another try, with all of it
    }
  }
}
