/** A file that a command writes: whole under its name, or not there at all. */
import { randomBytes } from 'node:crypto'
import { type FileHandle, open, realpath, rename, stat } from 'node:fs/promises'
import { copyRange } from '../bytes/copy.ts'
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
  /** Of a file that has no name yet: nobody waits for its pieces. One is filled while the other is written. */
  private gathered = new Uint8Array(GATHER_BYTES)
  private gatheredBytes = 0
  private written = new Uint8Array(GATHER_BYTES)
  private writing: Promise<void> | undefined

  constructor(path: string) {
    this.path = path
    this.target = path
  }

  /**
   * Takes the next bytes; a view may be used again once that is done.
   * @returns undefined where it is
   * @throws IO, as rejection too, also of what was taken before: no permission, full disk; EPIPE as it is: the reader of
   * standard output has enough
   */
  write(bytes: Uint8Array): Promise<void> | undefined {
    if (this.temporary === undefined || this.gatheredBytes + bytes.length > GATHER_BYTES) return this.writeNow(bytes)
    copyRange(bytes, 0, bytes.length, this.gathered, this.gatheredBytes)
    this.gatheredBytes += bytes.length
    return undefined
  }

  private async writeNow(bytes: Uint8Array): Promise<void> {
    try {
      if (this.path === '-') {
        await writeStandardOutput(bytes)
        return
      }
      this.file ??= await this.open()
      if (this.gatheredBytes + bytes.length > GATHER_BYTES) await this.writeGathered(this.file)
      if (this.temporary === undefined || bytes.length > GATHER_BYTES) {
        await this.writing
        await writeAll(this.file, bytes)
      } else {
        copyRange(bytes, 0, bytes.length, this.gathered, this.gatheredBytes)
        this.gatheredBytes += bytes.length
      }
    } catch (cause) {
      if (this.path === '-' && (cause as NodeJS.ErrnoException).code === 'EPIPE') throw cause
      throw ioError(cause, 'cannot write', this.path)
    }
  }

  /** Puts the file under its name. */
  async finish(): Promise<void> {
    if (this.path === '-') return
    try {
      const file = this.file ?? (await this.open())
      this.file = file // discard() closes it where the rest cannot be written
      await this.writeGathered(file)
      await this.writing
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

  /** Begins to write what is gathered, once what was before that is written. */
  private async writeGathered(file: FileHandle): Promise<void> {
    await this.writing
    const bytes = this.gathered.subarray(0, this.gatheredBytes)
    ;[this.gathered, this.written] = [this.written, this.gathered]
    this.gatheredBytes = 0
    this.writing = writeAll(file, bytes)
    this.writing.catch(() => {}) // who writes next is told
  }

  /** Removes what is not finished. Never fails: what failed before is what is to be told. */
  async discard(): Promise<void> {
    await this.writing?.catch(() => {})
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

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await file.write(bytes, at, bytes.length - at)).bytesWritten
}
