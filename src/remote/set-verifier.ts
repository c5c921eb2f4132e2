/** Checks a set while it arrives: the head by its seal, each page by its SHA-256. Pure: pieces come in, good ones come out. */
import { ProxyError } from '../errors.ts'
import { HeadDecoder, isPage, type SetHead } from '../template/format.ts'
import { PAGE_SIZE } from '../template/wire.ts'
import { keyOfSet } from './remote-store.ts'

/** Bytes of the set that may be kept, and where they stand in it. */
export interface GoodPiece {
  readonly at: number
  /** Valid until the next piece is asked for. */
  readonly bytes: Uint8Array
}

export class SetVerifier {
  readonly digest: string
  /** Bytes of the whole set. */
  readonly lengthBytes: number
  private decoder: HeadDecoder
  private good = 0
  private readonly page = new Uint8Array(PAGE_SIZE)
  /** Bytes of a page that is not whole yet. */
  private have = 0

  /** @param digest of the set that it has to be */
  constructor(digest: string, lengthBytes: number) {
    this.digest = digest
    this.lengthBytes = lengthBytes
    this.decoder = this.newDecoder()
  }

  /** Where the next bytes have to come from: up to here all are good, or of a head that is not whole yet. */
  get position(): number {
    return this.good
  }

  get isWhole(): boolean {
    return this.good === this.lengthBytes && this.head !== undefined
  }

  /** Once all of it is there, sound. */
  get head(): SetHead | undefined {
    return this.decoder.head
  }

  /**
   * Takes bytes that follow those before. Pages come out whole; bytes of the head as they are, to be taken back where the
   * head turns out not to be sound: {@link position} is 0 then.
   *
   * @throws TEMPLATE_FORMAT, TEMPLATE_TRUNCATED, TEMPLATE_DAMAGED; where: key and byte. What came out before is good
   */
  *push(chunk: Uint8Array): Generator<GoodPiece, void> {
    let from = 0
    if (this.head === undefined) {
      try {
        from = this.decoder.push(chunk)
      } catch (error) {
        this.decoder = this.newDecoder()
        this.good = 0
        throw error
      }
      if (from > 0) yield this.take(chunk.subarray(0, from))
    }
    while (from < chunk.length) {
      if (this.have > 0 || chunk.length - from < PAGE_SIZE) {
        const count = Math.min(PAGE_SIZE - this.have, chunk.length - from)
        this.page.set(chunk.subarray(from, from + count), this.have)
        this.have += count
        from += count
        if (this.have < PAGE_SIZE) return
        this.have = 0
        if (!this.isNext(this.page, this.good)) throw this.damaged()
        yield this.take(this.page)
        continue
      }
      let end = from
      while (end + PAGE_SIZE <= chunk.length) {
        if (!this.isNext(chunk.subarray(end, end + PAGE_SIZE), this.good + end - from)) break
        end += PAGE_SIZE
      }
      const isBad = end + PAGE_SIZE <= chunk.length
      if (end > from) yield this.take(chunk.subarray(from, end))
      if (isBad) throw this.damaged()
      from = end
    }
  }

  /** There is no more. @throws as {@link push} where that is too early */
  end(): void {
    if (!this.isWhole) this.decoder.end()
  }

  /** What comes next does not follow, but begins at {@link position}. */
  breakOff(): void {
    this.have = 0
  }

  private take(bytes: Uint8Array): GoodPiece {
    const at = this.good
    this.good += bytes.length
    return { at, bytes }
  }

  /** @param at where the page stands in the set */
  private isNext(page: Uint8Array, at: number): boolean {
    return isPage(this.head!, (at - this.head!.layout.dataAt) / PAGE_SIZE, page)
  }

  private damaged(): ProxyError {
    this.have = 0
    const index = (this.good - this.head!.layout.dataAt) / PAGE_SIZE
    const where = { stream: keyOfSet(this.digest), offset: this.good }
    const action = 'not kept; push the set again from a host that has it sound'
    return new ProxyError('TEMPLATE_DAMAGED', `page ${index} of the template set is damaged`, where, action)
  }

  private newDecoder(): HeadDecoder {
    return new HeadDecoder(keyOfSet(this.digest), this.lengthBytes)
  }
}
