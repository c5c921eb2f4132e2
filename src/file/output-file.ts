/** A file that a command writes: whole under its name, or not there at all. */
import { randomBytes } from 'node:crypto'
import { type FileHandle, open, realpath, rename, stat } from 'node:fs/promises'
import { copyRange } from '../bytes/copy.ts'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { openFifoToWrite } from '../system/fifo.ts'
import { writeStandardOutput } from '../system/standard-output.ts'
import { discard, finished, unfinished } from '../system/unfinished.ts'

/** A batch comes in a dozen pieces, most of them short, and each write is a trip to libuv's pool. */
const GATHER_BYTES = 256 * 1024

/**
 * A file that appears under its name only once it is whole. `-` is standard output. What exists and is no regular file
 * (a device, a pipe) is written to as it is.
 */
export class OutputFile {
  private readonly path: string
  /** Where the bytes go until all are there; undefined: to where they belong at once. */
  private temporary: string | undefined
  private target: string
  private file: FileHandle | undefined
  /** Of a file that has no name yet: nobody waits for its short pieces. One buffer is filled while the other is written. */
  private gathered = new Uint8Array(GATHER_BYTES)
  private gatheredBytes = 0
  private spare: Uint8Array<ArrayBuffer> | undefined = new Uint8Array(GATHER_BYTES)
  /** What was gathered before, until it is written. */
  private gatheredBefore: Promise<void> | undefined
  /** What comes while something is written goes out at once behind it: all of it is one trip to libuv's pool. */
  private waiting: Uint8Array[] = []
  /** Settles when what is under way is written, and when what waits is. */
  private writing: Promise<void> = Promise.resolve()
  private next: Promise<void> | undefined

  constructor(path: string) {
    this.path = path
    this.target = path
  }

  /**
   * Takes the next bytes, also while others are written; a view may be used again once that is done.
   * @returns undefined where it is
   * @throws IO, as rejection too, also of what was taken before: no permission, full disk; EPIPE as it is: the reader of
   * standard output has enough
   */
  write(bytes: Uint8Array): Promise<void> | undefined {
    if (this.temporary === undefined || this.waiting.length > 0 || bytes.length > GATHER_BYTES) {
      this.flushGathered()
      return this.enqueue(bytes)
    }
    const isFull = this.gatheredBytes + bytes.length > GATHER_BYTES
    const before = this.gatheredBefore
    if (isFull) this.flushGathered()
    copyRange(bytes, 0, bytes.length, this.gathered, this.gatheredBytes)
    this.gatheredBytes += bytes.length
    return isFull ? before : undefined
  }

  /** Has it written behind all that was taken before. */
  private enqueue(bytes: Uint8Array): Promise<void> {
    this.waiting.push(bytes)
    if (this.next === undefined) {
      this.next = this.writing.then(() => this.writeWaiting())
      this.next.catch(() => {}) // who writes next is told
    }
    return this.next
  }

  private async writeWaiting(): Promise<void> {
    const pieces = this.waiting
    this.waiting = []
    this.writing = this.next!
    this.next = undefined
    try {
      if (this.path === '-') for (const piece of pieces) await writeStandardOutput(piece)
      else {
        this.file ??= await this.open()
        await writeAll(this.file, pieces)
      }
    } catch (cause) {
      if (this.path === '-' && (cause as NodeJS.ErrnoException).code === 'EPIPE') throw cause
      throw ioError(cause, 'cannot write', this.path)
    }
  }

  /** Puts the file under its name. */
  async finish(): Promise<void> {
    if (this.path === '-') return
    this.flushGathered()
    await (this.next ?? this.writing)
    try {
      const file = this.file ?? (await this.open())
      this.file = undefined
      await file.close()
      if (this.temporary === undefined) return
      await rename(this.temporary, this.target)
      finished(this.temporary)
      this.temporary = undefined
    } catch (cause) {
      throw ioError(cause, 'cannot write', this.path)
    }
  }

  private flushGathered(): void {
    if (this.gatheredBytes === 0) return
    const buffer = this.gathered
    const writing = this.enqueue(buffer.subarray(0, this.gatheredBytes))
    this.gatheredBefore = writing.then(() => {
      this.spare = buffer
    })
    this.gatheredBefore.catch(() => {}) // who writes next is told
    this.gathered = this.spare ?? new Uint8Array(GATHER_BYTES)
    this.spare = undefined
    this.gatheredBytes = 0
  }

  /** Removes what is not finished. Never fails: what failed before is what is to be told. */
  async discard(): Promise<void> {
    await (this.next ?? this.writing).catch(() => {})
    await this.file?.close().catch(() => {})
    this.file = undefined
    if (this.temporary === undefined) return
    await discard(this.temporary)
    this.temporary = undefined
  }

  private async open(): Promise<FileHandle> {
    const there = await stat(this.path).catch(() => undefined)
    if (there?.isFIFO()) return openFifoToWrite(this.path)
    if (there !== undefined && !there.isFile()) return open(this.path, 'w')
    if (there !== undefined) this.target = await realpath(this.path) // a link goes on leading to the file
    const temporary = `${this.target}.part-${process.pid}-${randomBytes(4).toString('hex')}`
    const file = await open(temporary, 'wx') // what somebody put there under this name is not written to
    this.temporary = temporary
    unfinished(temporary)
    return file
  }
}

/** @throws USAGE where the output is a file that is read: it would be replaced by what is made of it */
export async function requireOther(output: string, inputs: readonly string[]): Promise<void> {
  const fileAt = (path: string) => (path === '-' ? undefined : stat(path).catch(() => undefined))
  const there = await fileAt(output)
  if (!there?.isFile()) return
  for (const input of inputs) {
    const read = await fileAt(input)
    if (read?.dev !== there.dev || read.ino !== there.ino) continue
    throw new ProxyError('USAGE', `${output} is what is to be read`, undefined, 'give --output another name')
  }
}

async function writeAll(file: FileHandle, pieces: readonly Uint8Array[]): Promise<void> {
  for (let left = pieces; left.length > 0; ) {
    let { bytesWritten: written } = await file.writev(left)
    let done = 0
    while (done < left.length && written >= left[done]!.length) written -= left[done++]!.length
    left = left.slice(done)
    if (written > 0) left = [left[0]!.subarray(written), ...left.slice(1)]
  }
}
