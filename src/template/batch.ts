/** The unit of counting: a batch of pages of one VM, with room for what counting finds out about each. */
import { DIGEST_WORDS, PAGE_WORDS } from './digest.ts'
import { DIGEST_LENGTH, PAGE_SIZE } from './wire.ts'

/** Pages of a batch: 1 MiB, so that what is paid per batch (a turn of the event loop) is below 1 % of the digests. */
export const BATCH_PAGES = 256

/** Up to BATCH_PAGES pages, one after the other. Whoever holds it may use it until it calls {@link release}. */
export class PageBatch {
  readonly bytes: Buffer
  /** `bytes` as words in the machine's order. */
  readonly words: Uint32Array
  /** A view of each page, made once. */
  readonly pages: readonly Buffer[]
  /** Place for the SHA-256 of each page. */
  readonly digests: Buffer
  /** `digests` as words in the machine's order. */
  readonly digestWords: Uint32Array
  /** Place for the two words of each page's fast hash. */
  readonly hashes: Uint32Array
  /** Place for one flag a page. */
  readonly marks = new Uint8Array(BATCH_PAGES)
  /** Pages in it. */
  count = 0
  /** Place of its first page among all pages of the input, from 0. */
  firstPage = 0
  private readonly pool: BatchPool

  constructor(pool: BatchPool) {
    this.pool = pool
    const memory = new ArrayBuffer(BATCH_PAGES * (PAGE_SIZE + DIGEST_LENGTH))
    this.bytes = Buffer.from(memory, 0, BATCH_PAGES * PAGE_SIZE)
    this.words = new Uint32Array(memory, 0, BATCH_PAGES * PAGE_WORDS)
    this.pages = Array.from({ length: BATCH_PAGES }, (_, i) => Buffer.from(memory, i * PAGE_SIZE, PAGE_SIZE))
    this.digests = Buffer.from(memory, BATCH_PAGES * PAGE_SIZE, BATCH_PAGES * DIGEST_LENGTH)
    this.digestWords = new Uint32Array(memory, BATCH_PAGES * PAGE_SIZE, BATCH_PAGES * DIGEST_WORDS)
    this.hashes = new Uint32Array(BATCH_PAGES * 2)
  }

  get full(): boolean {
    return this.count === BATCH_PAGES
  }

  /** Gives it back for reuse. */
  release(): void {
    this.pool.give(this)
  }
}

/** Batches in circulation: as many as are held at once, not one an input page. */
export class BatchPool {
  private readonly free: PageBatch[] = []

  /** An empty batch. */
  take(firstPage: number): PageBatch {
    const batch = this.free.pop() ?? new PageBatch(this)
    batch.count = 0
    batch.firstPage = firstPage
    return batch
  }

  give(batch: PageBatch): void {
    this.free.push(batch)
  }
}
