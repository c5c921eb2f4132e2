/**
 * Writes lines to a descriptor without ever waiting for it: a full disk, a pipe that nobody reads, a terminal that was
 * stopped cost lines, and nothing else. Lines that were lost are counted, and told as soon as it works again.
 */
import { constants, fstatSync, openSync, write, writeSync } from 'node:fs'

/** Bytes that wait for a slow reader; what comes then is lost. Some thousand lines: a busy hour. */
const WAITING_BYTES_MAX = 1 << 20
/** How often it is tried whether a slow reader has made room: there is nothing to wait on that others could not break. */
const RETRY_MS = 50
const LINE_FEED = 10

/** Lines on their way out. */
interface Chunk {
  readonly bytes: Buffer
  /** Bytes that are out. */
  at: number
  /** The chunk begins with so many bytes that tell of `told` lost lines. */
  readonly headBytes: number
  readonly told: number
}

export class LineWriter {
  private readonly fd: number
  /** A disk may stand still, so files are written by the thread pool; everything else says EAGAIN. */
  private readonly isFile: boolean
  private readonly lostLine: (count: number) => string
  private waiting: Buffer[] = []
  private waitingBytes = 0
  private chunk: Chunk | undefined
  private inPool = false
  private retry: NodeJS.Timeout | undefined
  private lost = 0
  /** The last line on the descriptor is cut off. */
  private torn = false
  private settled: (() => void) | undefined

  /**
   * @param fd where to
   * @param lostLine the line that tells how many were lost, with its line feed
   */
  constructor(fd: number, lostLine: (count: number) => string) {
    this.lostLine = lostLine
    this.isFile = fstatSync(fd).isFile()
    this.fd = this.isFile ? fd : nonBlocking(fd)
  }

  /** @param line with its line feed, and no other */
  write(line: string): void {
    const bytes = Buffer.from(line)
    if (this.waitingBytes + bytes.length > WAITING_BYTES_MAX) {
      this.lost++
      return
    }
    this.waiting.push(bytes)
    this.waitingBytes += bytes.length
    this.flush()
  }

  /** Resolves when nothing waits any more, or after `patienceMs`. */
  async settle(patienceMs: number): Promise<void> {
    if (!this.chunk && this.waiting.length === 0) return
    await new Promise<void>(done => {
      const timer = setTimeout(done, patienceMs)
      this.settled = () => {
        clearTimeout(timer)
        done()
      }
    })
    this.settled = undefined
  }

  /** The process ends: writes what waits, as far as that goes without waiting. */
  finish(): void {
    const begun = this.chunk && !this.inPool ? [this.chunk.bytes.subarray(this.chunk.at)] : []
    const rest = Buffer.concat([...begun, ...this.waiting])
    this.waiting = []
    try {
      for (let at = 0; at < rest.length; ) at += writeSync(this.fd, rest, at)
    } catch {
      // nobody is left who could be told
    }
  }

  private flush(): void {
    if (this.inPool || this.retry) return
    while (this.chunk || this.waiting.length > 0) {
      this.chunk ??= this.take()
      const { chunk } = this
      const { bytes, at } = chunk
      if (this.isFile) {
        this.inPool = true
        write(this.fd, bytes, at, bytes.length - at, null, (error, written) => {
          this.inPool = false
          this.wrote(chunk, written ?? 0, error)
          this.flush()
        })
        return
      }
      let written = 0
      let failure: NodeJS.ErrnoException | null = null
      try {
        written = writeSync(this.fd, bytes, at)
      } catch (error) {
        failure = error as NodeJS.ErrnoException
      }
      if (failure?.code === 'EAGAIN') {
        this.retry = setTimeout(() => {
          this.retry = undefined
          this.flush()
        }, RETRY_MS).unref()
        return
      }
      this.wrote(chunk, written, failure)
    }
    this.settled?.()
  }

  /** All that waits, behind the count of what was lost before it. */
  private take(): Chunk {
    const head = Buffer.from(`${this.torn ? '\n' : ''}${this.lost > 0 ? this.lostLine(this.lost) : ''}`)
    const bytes = Buffer.concat([head, ...this.waiting])
    this.waiting = []
    return { bytes, at: 0, headBytes: head.length, told: this.lost }
  }

  private wrote(chunk: Chunk, written: number, error: NodeJS.ErrnoException | null): void {
    const { bytes, headBytes, told } = chunk
    const before = chunk.at
    chunk.at += written
    if (written > 0) this.torn = bytes[chunk.at - 1] !== LINE_FEED
    if (before < headBytes && chunk.at >= headBytes) this.lost -= told
    if (!error && chunk.at < bytes.length) return
    if (error) this.lost += linesFrom(bytes, Math.max(chunk.at, headBytes))
    this.chunk = undefined
    this.waitingBytes = this.waiting.reduce((sum, line) => sum + line.length, 0)
    // it works, so what was lost meanwhile is told without waiting for another line
    if (!error && this.lost > 0 && this.waiting.length === 0) this.chunk = this.take()
  }
}

/** Lines that end at or behind `at`. */
function linesFrom(bytes: Buffer, at: number): number {
  let lines = 0
  for (let i = bytes.indexOf(LINE_FEED, at); i >= 0; i = bytes.indexOf(LINE_FEED, i + 1)) lines++
  return lines
}

/** A descriptor for the same that never blocks. */
function nonBlocking(fd: number): number {
  try {
    // Opened anew, so that nobody who shares the old one is surprised. Terminals and pipes can be.
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
  } catch {
    // A socket (the journal) cannot. Node makes the one that is our standard output non-blocking as it opens it.
    return fd === 1 ? process.stdout.fd : fd
  }
}
