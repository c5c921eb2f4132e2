/** Where an input's bytes come from: a file, a block device, a pipe, standard input. What they are is another matter. */
import { constants, createReadStream } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { openFifo } from '../system/fifo.ts'
import { READ_LENGTH } from './limits.ts'

/** What `-` among inputs means. */
export const STANDARD_INPUT = '-'
/** Standard input by name: opened anew it would be another file, and a socket cannot be opened at all. */
const STANDARD_INPUT_PATHS = [STANDARD_INPUT, '/dev/stdin', '/dev/fd/0', '/proc/self/fd/0']

/** Bytes of what stat counts as a block, whatever the file system's are. */
export const STAT_BLOCK = 512

/** What the system says of a path. */
interface Found {
  readonly lengthBytes?: number
  readonly storedBytes?: number
  readonly identity?: string
  readonly fifo?: boolean
}

/** Chunks in order. A chunk is valid until the next one is asked for. */
export type Chunks = AsyncGenerator<Buffer, void, void>

export class InputFile {
  /** What messages call it. */
  readonly name: string
  /** undefined where only its end will tell. */
  readonly lengthBytes: number | undefined
  /** Bytes that it takes on its disk: fewer where it has holes. Undefined for what is no regular file. */
  readonly storedBytes: number | undefined
  /** Two inputs of the same file have the same; undefined where it cannot be read twice. */
  readonly identity: string | undefined
  private readonly path: string
  private readonly fifo: boolean
  private taken = false

  private constructor(path: string, found: Found = {}) {
    this.path = path
    this.name = path === STANDARD_INPUT ? 'standard input' : path
    this.lengthBytes = found.lengthBytes
    this.storedBytes = found.storedBytes
    this.identity = found.identity
    this.fifo = found.fifo ?? false
  }

  /** @param path or `-` @throws IO */
  static async open(path: string): Promise<InputFile> {
    if (STANDARD_INPUT_PATHS.includes(path)) return new InputFile(STANDARD_INPUT)
    try {
      const found = await stat(path)
      if (found.isDirectory()) {
        throw new ProxyError('IO', `cannot read ${path}: it is a folder`, { stream: path }, 'give a file')
      }
      if (found.isFile()) {
        const [lengthBytes, storedBytes] = [found.size, found.blocks * STAT_BLOCK]
        return new InputFile(path, { lengthBytes, storedBytes, identity: `${found.dev}:${found.ino}` })
      }
      if (found.isBlockDevice()) return new InputFile(path, { identity: `block ${found.rdev}` })
      return new InputFile(path, { fifo: found.isFIFO() })
    } catch (cause) {
      throw unreadable(path, cause)
    }
  }

  /** Whether it gives the same bytes each time it is asked. */
  get repeatable(): boolean {
    return this.identity !== undefined
  }

  /**
   * All bytes, from the start.
   *
   * @param readBytes is told how many bytes were read
   * @param signal ends the waiting for more
   * @throws IO; USAGE where it is asked a second time and cannot; the signal's reason
   */
  chunks(readBytes: (count: number) => void = () => {}, signal?: AbortSignal): Chunks {
    if (this.repeatable) return readFile(this.path, readBytes)
    if (this.taken) {
      const what = `${this.name} can be read once only`
      throw new ProxyError('USAGE', what, undefined, 'write it to a file first, and give that')
    }
    this.taken = true
    return readOnce(this.path, this.name, this.fifo, readBytes, signal)
  }
}

/** Reads ahead by one chunk, so that the disk and whoever takes the chunks work at the same time. */
async function* readFile(path: string, readBytes: (count: number) => void): Chunks {
  let file: FileHandle | undefined
  let ahead: Promise<{ bytesRead: number; buffer: Buffer }> | undefined
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK) // it may have become a FIFO
    const buffers = [Buffer.allocUnsafe(READ_LENGTH), Buffer.allocUnsafe(READ_LENGTH)]
    ahead = file.read(buffers[0]!, 0, READ_LENGTH, null)
    for (;;) {
      const { bytesRead, buffer } = await ahead
      ahead = undefined
      if (bytesRead === 0) return
      buffers.reverse()
      ahead = file.read(buffers[0]!, 0, READ_LENGTH, null)
      ahead.catch(() => {}) // reported when it is awaited
      readBytes(bytesRead)
      yield buffer.subarray(0, bytesRead)
    }
  } catch (cause) {
    throw unreadable(path, cause)
  } finally {
    await ahead?.catch(() => {})
    await file?.close()
  }
}

/** Standard input, a pipe, a terminal: bytes come when they come, and the signal ends the waiting. */
async function* readOnce(
  path: string,
  name: string,
  fifo: boolean,
  readBytes: (count: number) => void,
  signal: AbortSignal | undefined,
): Chunks {
  try {
    signal?.throwIfAborted()
    const from =
      path === STANDARD_INPUT ? process.stdin : fifo ? await openFifo(path, name, signal) : createReadStream(path)
    const stop = (): void => void from.destroy(signal!.reason as Error)
    signal?.addEventListener('abort', stop)
    try {
      for await (const chunk of from) {
        readBytes((chunk as Buffer).length)
        yield chunk as Buffer
      }
    } finally {
      signal?.removeEventListener('abort', stop)
      from.destroy()
    }
  } catch (cause) {
    signal?.throwIfAborted()
    throw unreadable(name, cause)
  }
}

function unreadable(path: string, cause: unknown): unknown {
  return (cause as NodeJS.ErrnoException).syscall === undefined ? cause : ioError(cause, 'cannot read', path)
}
