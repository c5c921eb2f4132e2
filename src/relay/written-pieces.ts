import type { WriteDone } from './qemu-socket.ts'

/** One write that goes out as several, or as none: `done` is called once, when all of them are. */
export class WrittenPieces {
  private readonly done: WriteDone
  /** Those under way, and one for what is still to come. */
  private pieces = 1
  private error: NodeJS.ErrnoException | undefined

  constructor(done: WriteDone) {
    this.done = done
  }

  /** @returns what the write of a piece calls */
  piece(): WriteDone {
    this.pieces++
    return error => {
      this.error ??= error
      this.end()
    }
  }

  /** No more of them. Where there was none, `done` is called behind this turn: never from inside a write. */
  all(): void {
    if (this.pieces > 1) this.end()
    else process.nextTick(this.done)
  }

  private end(): void {
    if (--this.pieces === 0) this.done(this.error)
  }
}
