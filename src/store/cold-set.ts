/**
 * A template set whose pages stay in its file: of each page only a proof is in memory, 16 bytes. docs/adr/0010-cold-sets.md.
 * What is read is proven where it lies before anybody uses it, so a file that is damaged, cut or replaced meanwhile is an
 * error and never a wrong page.
 */
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { writeDigest } from '../template/digest.ts'
import type { SetOutline } from '../template/format.ts'
import { DIGEST_LENGTH, PAGE_SIZE, RECORD } from '../template/wire.ts'
import type { StoreKey } from './cipher.ts'
import { SetBytes } from './set-bytes.ts'
import { readHead } from './set-file.ts'

/** Words of a proof: the first 128 bits of a page's SHA-256, in the machine's order. */
export const PROOF_WORDS = 4
/** Proofs are compared with digests as the machine has them. */
const IS_LITTLE = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1

const digestBytes = Buffer.from(new ArrayBuffer(DIGEST_LENGTH))
const digestWords = new Uint32Array(digestBytes.buffer)

/** Writes the proof of `page` (exactly its bytes) at `at`. */
export function writeProof(page: Uint8Array, into: Uint32Array, at: number): void {
  writeDigest(page, digestBytes, 0)
  for (let i = 0; i < PROOF_WORDS; i++) into[at + i] = digestWords[i]!
}

/** What a set's table says, its seal verified. */
export interface SetTable {
  readonly outline: SetOutline
  /** PROOF_WORDS a page. */
  readonly proofs: Uint32Array
  /** Of the file: `SetBytes.state`. */
  readonly state: string
}

async function readTable(path: string, file: SetBytes): Promise<Omit<SetTable, 'state'>> {
  let proofs = new Uint32Array(0)
  let of: ArrayBufferLike | undefined
  let view: DataView = new DataView(new ArrayBuffer(0))
  const { outline } = await readHead(path, file, false, (bytes, at, page, pageCount) => {
    // for all at once: the system gives it page by page, as it is touched, and a hole in the table ends this
    if (proofs.length === 0) proofs = new Uint32Array(pageCount * PROOF_WORDS)
    if (bytes.buffer !== of) {
      of = bytes.buffer
      view = new DataView(of)
    }
    const from = bytes.byteOffset + at + RECORD.DIGEST
    const to = page * PROOF_WORDS
    for (let i = 0; i < PROOF_WORDS; i++) proofs[to + i] = view.getUint32(from + 4 * i, IS_LITTLE)
  })
  return { outline: outline!, proofs }
}

/** Bytes of pages that somebody reads: SetBytes is one. */
export type PageBytes = Pick<SetBytes, 'read' | 'close' | 'sealed'> & Partial<Pick<SetBytes, 'fd'>>

export class ColdSet {
  readonly path: string
  readonly outline: SetOutline
  /** PROOF_WORDS a page. */
  readonly proofs: Uint32Array
  private readonly bytes: PageBytes
  /** Reads of an encrypted file go one after the other: they share a chunk. */
  private last: Promise<unknown> = Promise.resolve()

  constructor(path: string, outline: SetOutline, proofs: Uint32Array, bytes: PageBytes) {
    this.path = path
    this.outline = outline
    this.proofs = proofs
    this.bytes = bytes
  }

  /**
   * Opens a set and verifies all but its pages. Memory is taken for the proofs alone.
   * @param kept what was read of it before: used where it is still the same file
   * @throws IO, TEMPLATE_*, USAGE (an encrypted set, and the key is missing or another)
   */
  static async open(path: string, key: StoreKey | undefined, follow = true, kept?: SetTable): Promise<ColdSet> {
    let file: SetBytes | undefined
    try {
      file = await SetBytes.open(path, key, follow)
      const { outline, proofs } = kept?.state === file.state ? kept : await readTable(path, file)
      return new ColdSet(path, outline, proofs, file)
    } catch (error) {
      await file?.close()
      throw ioError(error, 'cannot open', path)
    }
  }

  /** What {@link open} reads, without keeping the file. @throws as that */
  static async table(path: string, key: StoreKey | undefined): Promise<SetTable & { readonly sealed: boolean }> {
    let file: SetBytes | undefined
    try {
      file = await SetBytes.open(path, key, false)
      return { ...(await readTable(path, file)), state: file.state, sealed: file.sealed }
    } catch (error) {
      throw ioError(error, 'cannot open', path)
    } finally {
      await file?.close()
    }
  }

  get digest(): string {
    return this.outline.digest
  }

  get pageCount(): number {
    return this.outline.pageCount
  }

  /** The file, where its bytes are the set's; undefined: only `read` can read it. */
  get fd(): number | undefined {
    return this.bytes.fd
  }

  /** Where a page stands in the file. */
  positionOf(index: number): number {
    return this.outline.layout.dataAt + index * PAGE_SIZE
  }

  /** Whether these bytes are the page of this index. */
  isPage(index: number, page: Uint8Array): boolean {
    writeDigest(page, digestBytes, 0)
    return this.isProof(index, digestWords, 0)
  }

  /** Whether the page of this index has the digest whose words stand at `at`. */
  isProof(index: number, digest: Uint32Array, at: number): boolean {
    const own = index * PROOF_WORDS
    for (let i = 0; i < PROOF_WORDS; i++) if (this.proofs[own + i] !== digest[at + i]) return false
    return true
  }

  /**
   * Reads `count` pages from page `first` on to the start of `into`. They are not proven yet: see {@link isPage}, {@link damaged}.
   * @throws TEMPLATE_TRUNCATED, TEMPLATE_DAMAGED (encrypted files), IO
   */
  async read(first: number, count: number, into: Uint8Array): Promise<void> {
    const position = this.positionOf(first)
    const length = count * PAGE_SIZE
    if (!this.bytes.sealed) return this.readNow(into, length, position)
    const turn = this.last.then(() => this.readNow(into, length, position))
    this.last = turn.catch(() => {})
    return turn
  }

  private async readNow(into: Uint8Array, length: number, position: number): Promise<void> {
    try {
      for (let have = 0; have < length; ) {
        const { bytesRead } = await this.bytes.read(into, have, length - have, position + have)
        if (bytesRead === 0) throw this.truncated(position + have)
        have += bytesRead
      }
    } catch (error) {
      throw this.unreadable(error, position)
    }
  }

  /** What to throw where the file ends before this byte. */
  truncated(offset: number): ProxyError {
    const where = { stream: this.path, offset }
    return new ProxyError('TEMPLATE_TRUNCATED', 'the template set became shorter', where, NOT_USED)
  }

  /** What to throw where the system did not read it. */
  unreadable(cause: unknown, offset: number): ProxyError {
    return ioError(cause, 'cannot read', this.path, offset)
  }

  /** What to throw where a page that was read is not the one of this index. */
  damaged(index: number): ProxyError {
    const where = { stream: this.path, offset: this.positionOf(index) }
    return new ProxyError('TEMPLATE_DAMAGED', `page ${index} of the template set is damaged`, where, NOT_USED)
  }

  async close(): Promise<void> {
    await this.last
    await this.bytes.close()
  }
}

const NOT_USED = 'not used any more; `pageferry template verify` lists the damage; copy or build the set again'
