/**
 * Blocks of disks that passed in a session, beyond what its ring holds: each side has them in a file of its own, which has no
 * name and is gone with the session. Both count blocks alike, so a number means the same block on both; what a side lacks
 * of its file nobody waits for. docs/adr/0025-kept-blocks.md.
 *
 * A thread writes and digests them. The encoding side names a block only when that has been done; the expanding side reads one
 * as it reads pages of sets, and asks for one that it does not have.
 */
import { randomBytes, randomInt } from 'node:crypto'
import { close, ftruncate, openSync, read, unlinkSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import type { KeptPages } from '../../codec/cold-pages.ts'
import { ProxyError } from '../../errors.ts'
import { ioError } from '../../io-error.ts'
import { KEPT_UNDER_WAY_BLOCKS } from '../../limits.ts'
import { PROOF_WORDS, writeProof } from '../../store/cold-set.ts'
import { PAGE_SIZE } from '../../template/wire.ts'
import type { EventLoop } from '../event-loop.ts'
import { KeptIndex } from './kept-index.ts'
import type { KeptSpace } from './kept-space.ts'
import type { KeptWorkerData, WrittenBlocks } from './kept-worker.ts'

/** How long its file stays open behind the session: whoever reads it then has a hanging disk, and must not read another's. */
const CLOSE_MS = 60_000
/** Part of the blocks, the oldest, that is not named any more: batches are under way in which they are written over. */
const OLD_PART = 8

const readFile = promisify(read)
const truncateFile = promisify(ftruncate)

export interface KeptBlocksOptions {
  /** How many: both sides have agreed on that. */
  readonly blocks: number
  /** Where the file goes, and who says whether there is room for blocks that wait for it. */
  readonly space: Pick<KeptSpace, 'folder' | 'takeRoom' | 'giveRoom'>
  /** Whether blocks are to be found by their content. */
  readonly indexed: boolean
  readonly loop: EventLoop
  /** It cannot be written here any more; said once. */
  readonly onFailure?: ((error: ProxyError) => void) | undefined
  /** Starts the thread that writes: a test's may fail. */
  readonly start?: (data: KeptWorkerData) => Worker
}

/** As ColdFetcher and ColdAnswers see it, it is one more set on the disk. */
export class KeptBlocks implements KeptPages {
  /** No set's. */
  readonly digest = ''
  readonly path: string
  readonly pageCount: number
  /** Blocks so far, those too that this side does not have. */
  count = 0
  private readonly options: KeptBlocksOptions
  /** By place in the file: PROOF_WORDS of its digest, and whether it has been written there. */
  private readonly proofs: Uint32Array
  private readonly there: Uint8Array
  private readonly index: KeptIndex | undefined
  private readonly proof = new Uint32Array(PROOF_WORDS)
  private readonly waitingMax: number
  /** Blocks that younger ones than so many make too old to be named. */
  private readonly nameable: number
  private waiting = 0
  private file: number | undefined
  private worker: Worker | undefined
  /** Nothing more is kept: the disk failed, or the session is over. */
  private ended = false
  private closed = false

  constructor(options: KeptBlocksOptions) {
    const { blocks, space, indexed } = options
    this.options = options
    this.pageCount = blocks
    this.path = join(space.folder, `.pageferry-blocks-${randomBytes(8).toString('hex')}`)
    // the system gives memory as it is touched
    this.proofs = new Uint32Array(new SharedArrayBuffer(blocks * PROOF_WORDS * 4))
    this.there = new Uint8Array(blocks)
    this.index = indexed ? new KeptIndex(this.proofs, randomInt(2 ** 32)) : undefined
    this.waitingMax = Math.ceil(blocks / 4)
    // a peer that keeps few has half of them named all the same
    this.nameable =
      blocks - Math.max(Math.ceil(blocks / OLD_PART), Math.min(KEPT_UNDER_WAY_BLOCKS, Math.ceil(blocks / 2)))
  }

  /** Blocks that can be read here. */
  get available(): number {
    return this.there.reduce((sum, one) => sum + one, 0)
  }

  keep(bytes: Uint8Array, addresses: Uint32Array, count: number): void {
    const { pageCount, there, index } = this
    const first = this.count
    this.count += count
    for (let i = 0; i < count; i++) {
      const place = (first + i) % pageCount
      if (there[place] === 1) index?.remove(place)
      there[place] = 0
    }
    if (this.ended || this.waiting + count > this.waitingMax) return
    const worker = this.open()
    if (worker === undefined || !this.options.space.takeRoom(count)) return
    const pages = new Uint8Array(count * PAGE_SIZE)
    for (let i = 0; i < count; i++) {
      pages.set(bytes.subarray(addresses[i]!, addresses[i]! + PAGE_SIZE), i * PAGE_SIZE)
    }
    this.waiting += count
    worker.ref()
    worker.postMessage({ first, pages }, [pages.buffer])
  }

  /** The place of the block with the proof at `at` that the other side has as long as it takes; -1: there is none. */
  find(proof: Uint32Array, at: number): number {
    const place = this.index?.find(proof, at) ?? -1
    if (place < 0) return -1
    const { count, pageCount } = this
    const age = (((count - 1 - place) % pageCount) + pageCount) % pageCount
    return age < this.nameable ? place : -1
  }

  // --- as a set on the disk

  get fd(): number | undefined {
    return this.file
  }

  /** Whether a block can be read here: of others nothing is known. */
  hasPage(place: number): boolean {
    return this.there[place] === 1
  }

  positionOf(place: number): number {
    return place * PAGE_SIZE
  }

  /** What is not here comes from the other side as any page does, and the checksum of its batch proves it. */
  isPage(place: number, page: Uint8Array): boolean {
    if (!this.hasPage(place)) return true
    writeProof(page, this.proof, 0)
    return this.isProof(place, this.proof, 0)
  }

  isProof(place: number, digest: Uint32Array, at: number): boolean {
    const own = place * PROOF_WORDS
    for (let i = 0; i < PROOF_WORDS; i++) if (this.proofs[own + i] !== digest[at + i]) return false
    return true
  }

  /** Reads blocks to the start of `into`; they are not proven yet. @throws IO */
  async read(first: number, count: number, into: Uint8Array): Promise<void> {
    const position = this.positionOf(first)
    if (this.file === undefined || this.closed) throw this.truncated(position)
    try {
      for (let have = 0; have < count * PAGE_SIZE; ) {
        const { bytesRead } = await readFile(this.file, into, have, count * PAGE_SIZE - have, position + have)
        if (bytesRead === 0) throw this.truncated(position + have)
        have += bytesRead
      }
    } catch (error) {
      throw this.unreadable(error, position)
    }
  }

  truncated(offset: number): ProxyError {
    return new ProxyError('IO', 'blocks that were kept have gone', { stream: this.path, offset }, NOT_USED)
  }

  unreadable(cause: unknown, offset: number): ProxyError {
    return ioError(cause, 'cannot read', this.path, offset)
  }

  damaged(place: number): ProxyError {
    const where = { stream: this.path, offset: this.positionOf(place) }
    return new ProxyError('IO', 'a block that was kept reads otherwise than it was written', where, NOT_USED)
  }

  /** The session is over: its disk space is free as soon as the disk says so, for which nobody waits. */
  close(): void {
    if (this.closed) return
    this.ended = true
    this.closed = true
    const { file, worker } = this
    this.options.space.giveRoom(this.waiting)
    this.waiting = 0
    void this.giveBack(file, worker)
  }

  /** A disk that hangs keeps its descriptor: closed under whoever uses it, its number would be another file's. */
  private async giveBack(file: number | undefined, worker: Worker | undefined): Promise<void> {
    await worker?.terminate()
    if (file === undefined) return
    await truncateFile(file).catch(() => {}) // it goes with the descriptor
    this.options.loop.after(CLOSE_MS, () => close(file))
  }

  // --- the thread that writes

  private open(): Worker | undefined {
    if (this.worker) return this.worker
    try {
      this.file = openSync(this.path, 'wx+', 0o600)
      unlinkSync(this.path)
    } catch (error) {
      this.fail(ioError(error, 'cannot keep blocks in', this.options.space.folder))
      return undefined
    }
    const workerData: KeptWorkerData = { fd: this.file, proofs: this.proofs, blocks: this.pageCount }
    let worker: Worker
    try {
      worker = (this.options.start ?? startWorker)(workerData)
    } catch (error) {
      this.fail(ioError(error, 'cannot keep blocks in', this.options.space.folder)) // no thread is left for it
      return undefined
    }
    worker.on('message', (written: WrittenBlocks) => this.written(written))
    worker.on('error', error => this.died(error))
    worker.unref()
    this.worker = worker
    return worker
  }

  private written({ first, count, failure }: WrittenBlocks): void {
    if (this.waiting === 0) return // it was closed meanwhile
    this.waiting -= count
    this.options.space.giveRoom(count)
    if (this.waiting === 0) this.worker?.unref() // an idle thread keeps no process alive
    if (failure) {
      const error = Object.assign(new Error(failure.message), { code: failure.code })
      this.fail(ioError(error, 'cannot keep blocks in', this.options.space.folder))
    }
    if (this.ended) return
    for (let i = 0; i < count; i++) {
      if (first + i < this.count - this.pageCount) continue // another one's place meanwhile
      const place = (first + i) % this.pageCount
      this.there[place] = 1
      this.index?.add(place)
    }
  }

  /** Nobody writes what waits. */
  private died(error: unknown): void {
    this.options.space.giveRoom(this.waiting)
    this.waiting = 0
    this.fail(ioError(error, 'cannot keep blocks in', this.options.space.folder))
  }

  private fail(error: ProxyError): void {
    if (this.ended) return
    this.ended = true
    this.options.onFailure?.(error)
  }
}

const NOT_USED = 'blocks are not kept any more in this session; look at the disk that it is on'

function startWorker(workerData: KeptWorkerData): Worker {
  return new Worker(new URL(workerFile(), import.meta.url), { workerData })
}

/** Sources run as they are; a built package has JavaScript. */
function workerFile(): string {
  return import.meta.url.endsWith('.ts') ? './kept-worker.ts' : './kept-worker.js'
}
