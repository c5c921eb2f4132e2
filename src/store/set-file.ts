/** A template set in a file: opened, loaded and verified. Nothing it hands out is unverified. */
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { HeadDecoder, isPage, type RecordTaker, type SetHead, type SetOutline } from '../template/format.ts'
import { PAGE_SIZE } from '../template/wire.ts'
import type { StoreKey } from './cipher.ts'
import { SetBytes } from './set-bytes.ts'

/** Bytes of one read: large enough that the call does not count, small enough to stay in the cache until checked. */
const READ_LENGTH = 256 * PAGE_SIZE
/** Bytes of one read of the head: most sets have it within a few of these. */
const HEAD_READ_LENGTH = 64 * 1024

/** A page whose bytes do not have the SHA-256 that the table promises. */
export interface DamagedPage {
  readonly index: number
  /** Where it stands in the file, in bytes. */
  readonly offset: number
}

/** Damaged pages that are told one by one: beyond these a set is not damaged but something else. */
export const DAMAGED_MAX = 10_000

/** Called with bytes of pages done, of all. */
export type LoadProgress = (doneBytes: number, totalBytes: number) => void

export class SetFile {
  readonly path: string
  readonly head: SetHead
  private readonly file: SetBytes

  private constructor(path: string, head: SetHead, file: SetBytes) {
    this.path = path
    this.head = head
    this.file = file
  }

  /**
   * Opens a set and verifies all but its pages.
   *
   * @param key of this host, for sets that are kept encrypted
   * @param follow whether the path may be a symbolic link
   * @throws IO, TEMPLATE_FORMAT, TEMPLATE_TRUNCATED, TEMPLATE_DAMAGED; where: path and offset. USAGE: an encrypted set, and
   * the key is missing or another
   */
  static async open(path: string, key?: StoreKey, follow = true): Promise<SetFile> {
    let file: SetBytes | undefined
    try {
      file = await SetBytes.open(path, key, follow)
      const decoder = await readHead(path, file, true)
      return new SetFile(path, decoder.head!, file)
    } catch (error) {
      await file?.close()
      throw ioError(error, 'cannot open', path)
    }
  }

  /**
   * What a set says of itself, its seal verified, in constant memory however many pages it has or claims to have.
   *
   * @throws as {@link open}
   */
  static async outline(
    path: string,
    key?: StoreKey,
    follow = true,
  ): Promise<SetOutline & { readonly sealed: boolean }> {
    let file: SetBytes | undefined
    try {
      file = await SetBytes.open(path, key, follow)
      const { outline } = await readHead(path, file, false)
      return { ...outline!, sealed: file.sealed }
    } catch (error) {
      throw ioError(error, 'cannot open', path)
    } finally {
      await file?.close()
    }
  }

  /** Whether the file is kept encrypted. */
  get sealed(): boolean {
    return this.file.sealed
  }

  /** The whole set as it is elsewhere, decrypted: one reader at a time. */
  get bytes(): SetBytes {
    return this.file
  }

  /** Bytes that {@link load} fills. */
  get pagesLength(): number {
    return this.head.pageCount * PAGE_SIZE
  }

  /**
   * Reads all pages to `into[at]` and on, in order, and verifies each where it then lies. The memory is the caller's, may
   * be shared and has to hold {@link pagesLength} bytes; after an error its content must not be used.
   *
   * @throws TEMPLATE_DAMAGED at the first damaged page, TEMPLATE_TRUNCATED, IO
   */
  async load(into: Uint8Array, at = 0, progress?: LoadProgress): Promise<void> {
    if (at + this.pagesLength > into.length) throw new RangeError('the memory is too small for the set')
    await this.readPages(
      offset => into.subarray(at + offset, at + Math.min(offset + READ_LENGTH, this.pagesLength)),
      index => {
        throw damaged(this.path, this.head, index)
      },
      progress,
    )
  }

  /** True where every page has its SHA-256; reads up to the first that has not. @throws TEMPLATE_TRUNCATED, IO */
  async isSound(): Promise<boolean> {
    return (await this.verify(undefined, 1)).length === 0
  }

  /**
   * Reads and checks pages. Returns the damaged ones, in order; empty where the set is sound.
   *
   * @param most so many damaged pages are enough: the rest is not read
   * @throws TEMPLATE_TRUNCATED, IO
   */
  async verify(progress?: LoadProgress, most = DAMAGED_MAX): Promise<DamagedPage[]> {
    const { dataAt } = this.head.layout
    const buffers = [Buffer.allocUnsafe(READ_LENGTH), Buffer.allocUnsafe(READ_LENGTH)]
    const found: DamagedPage[] = []
    const enough = new Error('enough')
    const reading = this.readPages(
      offset => {
        buffers.reverse()
        return buffers[0]!.subarray(0, Math.min(READ_LENGTH, this.pagesLength - offset))
      },
      index => {
        found.push({ index, offset: dataAt + index * PAGE_SIZE })
        if (found.length === most) throw enough
      },
      progress,
    )
    await reading.catch(error => {
      if (error !== enough) throw error
    })
    return found
  }

  async close(): Promise<void> {
    await this.file.close()
  }

  /** Reads one stretch while the stretch before it is checked. */
  private async readPages(
    place: (offset: number) => Uint8Array,
    bad: (index: number) => void,
    progress?: LoadProgress,
  ): Promise<void> {
    const { head, pagesLength } = this
    let next = pagesLength > 0 ? this.read(place(0), 0) : undefined
    for (let offset = 0; next !== undefined; ) {
      const pages = await next
      const after = offset + pages.length
      next = after < pagesLength ? this.read(place(after), after) : undefined
      next?.catch(() => {}) // where a damaged page ends the loop first
      for (let at = 0; at < pages.length; at += PAGE_SIZE) {
        const index = (offset + at) / PAGE_SIZE
        if (!isPage(head, index, pages.subarray(at, at + PAGE_SIZE))) bad(index)
      }
      progress?.(after, pagesLength)
      offset = after
    }
  }

  private async read(into: Uint8Array, offset: number): Promise<Uint8Array> {
    const { dataAt } = this.head.layout
    try {
      for (let have = 0; have < into.length; ) {
        const at = dataAt + offset + have
        const { bytesRead } = await this.file.read(into, have, into.length - have, at)
        if (bytesRead === 0) {
          const where = { stream: this.path, offset: at }
          throw new ProxyError(
            'TEMPLATE_TRUNCATED',
            'the template set became shorter',
            where,
            'not used; copy it again',
          )
        }
        have += bytesRead
      }
      return into
    } catch (error) {
      throw ioError(error, 'cannot read', this.path, dataAt + offset)
    }
  }
}

/** Reads and checks all but the pages. @throws TEMPLATE_*, and errors of the system as they are */
export async function readHead(
  path: string,
  file: SetBytes,
  keepTable: boolean,
  onRecord?: RecordTaker,
): Promise<HeadDecoder> {
  const decoder = new HeadDecoder(path, file.lengthBytes, keepTable, onRecord)
  const chunk = Buffer.allocUnsafe(HEAD_READ_LENGTH)
  for (let at = 0; decoder.outline === undefined; ) {
    const { bytesRead } = await file.read(chunk, 0, chunk.length, at)
    if (bytesRead === 0) decoder.end()
    decoder.push(chunk.subarray(0, bytesRead))
    at += bytesRead
  }
  return decoder
}

function damaged(path: string, head: SetHead, index: number): ProxyError {
  const where = { stream: path, offset: head.layout.dataAt + index * PAGE_SIZE }
  const action = 'not used; `pageferry template verify` lists all damaged pages; copy or build the set again'
  return new ProxyError('TEMPLATE_DAMAGED', `page ${index} of the template set is damaged`, where, action)
}
