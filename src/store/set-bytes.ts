/** The bytes of a set file, whether it is kept as it is or encrypted. */
import { constants, type Stats } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { ProxyError } from '../errors.ts'
import { CHUNK_LENGTH, SEALED_HEADER_LENGTH, SEALED_MAGIC, type StoreKey, Unsealer } from './cipher.ts'

/** Another one as soon as a file is replaced or changed. */
export function fileState({ ino, size, mtimeMs, ctimeMs }: Stats): string {
  return `${ino} ${size} ${mtimeMs} ${ctimeMs}`
}

export class SetBytes {
  /** Bytes of the set, without what encryption adds. */
  readonly lengthBytes: number
  readonly sealed: boolean
  /** What tells this file from another in its place: {@link fileState}. */
  readonly state: string
  private readonly file: FileHandle
  private readonly unsealer: Unsealer | undefined
  /** The chunk that was opened last: reads follow each other, and seldom end where a chunk does. */
  private chunk: Uint8Array = new Uint8Array(0)
  private chunkIndex = -1
  private sealedChunk: Buffer | undefined

  private constructor(file: FileHandle, state: string, lengthBytes: number, unsealer: Unsealer | undefined) {
    this.file = file
    this.state = state
    this.lengthBytes = lengthBytes
    this.sealed = unsealer !== undefined
    this.unsealer = unsealer
  }

  /**
   * @param follow whether the path may be a symbolic link
   * @throws TEMPLATE_*, USAGE (the key is missing or another), and errors of the system as they are
   */
  static async open(path: string, key: StoreKey | undefined, follow = true): Promise<SetBytes> {
    const refused = (what: string, cause?: unknown): ProxyError => {
      const where = { stream: path, offset: 0 }
      return new ProxyError('TEMPLATE_FORMAT', what, where, 'not used; give a template set', { cause })
    }
    let file: FileHandle
    try {
      // Without O_NONBLOCK a FIFO would be waited for, for ever.
      file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | (follow ? 0 : constants.O_NOFOLLOW))
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException
      if (code === 'ELOOP') throw refused('a symbolic link, which a store does not follow', cause)
      if (code === 'ENXIO' || code === 'ENODEV') throw refused('not a regular file', cause)
      throw cause
    }
    try {
      const stat = await file.stat()
      if (!stat.isFile()) throw refused('not a regular file')
      const { bytesRead, buffer } = await file.read(Buffer.alloc(SEALED_HEADER_LENGTH), 0, SEALED_HEADER_LENGTH, 0)
      const header = buffer.subarray(0, bytesRead)
      if (!header.subarray(0, SEALED_MAGIC.length).equals(SEALED_MAGIC))
        return new SetBytes(file, fileState(stat), stat.size, undefined)
      const unsealer = new Unsealer(path, header, stat.size, key)
      return new SetBytes(file, fileState(stat), unsealer.lengthBytes, unsealer)
    } catch (error) {
      await file.close()
      throw error
    }
  }

  /** Of a file that is kept as it is: whoever reads it finds the set's bytes in their places. */
  get fd(): number | undefined {
    return this.sealed ? undefined : this.file.fd
  }

  /** As FileHandle.read, of the plain bytes. One read at a time. @throws TEMPLATE_DAMAGED, and as FileHandle.read */
  async read(into: Uint8Array, at: number, length: number, position: number): Promise<{ bytesRead: number }> {
    if (this.unsealer === undefined) return this.file.read(into, at, length, position)
    const take = Math.min(length, this.lengthBytes - position)
    for (let have = 0; have < take; ) {
      const index = Math.floor((position + have) / CHUNK_LENGTH)
      const chunk = await this.open(index)
      if (chunk === undefined) return { bytesRead: have } // the file became shorter meanwhile
      const from = (position + have) % CHUNK_LENGTH
      const piece = chunk.subarray(from, Math.min(chunk.length, from + take - have))
      into.set(piece, at + have)
      have += piece.length
    }
    return { bytesRead: Math.max(0, take) }
  }

  async close(): Promise<void> {
    await this.file.close()
  }

  private async open(index: number): Promise<Uint8Array | undefined> {
    if (index === this.chunkIndex) return this.chunk
    const { offset, length } = this.unsealer!.place(index)
    this.sealedChunk ??= Buffer.allocUnsafe(CHUNK_LENGTH + 64)
    for (let have = 0; have < length; ) {
      const { bytesRead } = await this.file.read(this.sealedChunk, have, length - have, offset + have)
      if (bytesRead === 0) return undefined
      have += bytesRead
    }
    this.chunk = this.unsealer!.open(index, this.sealedChunk.subarray(0, length))
    this.chunkIndex = index
    return this.chunk
  }
}
