/**
 * Pages that may go into a set, until it is known: in a file without a name, under a key that only this process has, so
 * that what does not go into a set was never on a disk for anyone to read.
 */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto'
import { close, mkdirSync, openSync, read, rmSync, write } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Share } from '../fair-shares.ts'
import { LEARN_WAITING_BYTES_MAX } from '../limits.ts'
import { PAGE_SIZE } from '../template/wire.ts'
import type { PageSpool } from './learner.ts'

const readAt = promisify(read)

/** Pages of a block: the unit of encrypting, writing and reuse. */
const BLOCK_PAGES = 64
export const BLOCK_LENGTH = BLOCK_PAGES * PAGE_SIZE
/**
 * Blocks that wait for the disk, of one spool. A disk that is slower than the migration ends learning, not the other way
 * round.
 */
const WAITING_MAX = LEARN_WAITING_BYTES_MAX / BLOCK_LENGTH
/** Blocks kept to be filled again. */
const SPARE_MAX = 8
const CIPHER = 'aes-256-ctr'
/** Counter blocks of AES in a page. */
const COUNTERS_PER_PAGE = PAGE_SIZE / 16

export class EncryptedSpool implements PageSpool {
  private readonly folder: string
  private readonly key = randomBytes(32)
  private readonly room: Share
  private readonly memory: Share | undefined
  private readonly onFailure: (error: Error) => void
  private fd = -1
  private failed = false
  /** The block that is being filled, and where in the file it will be. */
  private filling: Buffer | undefined
  private fillingBlock = 0
  private filled = 0
  /** Blocks on their way to the disk, as they are. */
  private readonly waiting = new Map<number, Buffer>()
  /** Blocks that were written, to be filled again: memory that is touched first costs more than all else here. */
  private readonly spare: Buffer[] = []
  private readonly live: number[] = []
  /** Number of each block's writing: no counter of the cipher is used twice. */
  private readonly writing: number[] = []
  private writings = 0
  private readonly freeBlocks: number[] = []

  /**
   * @param folder where the file is made; it has no name once it is open
   * @param memory pays for blocks that wait for the disk: as they are and encrypted; where there is none learning ends
   * @param room what the file may take on the disk; where there is no more, learning ends. Given back by `close`
   */
  constructor(folder: string, room: Share, onFailure: (error: Error) => void, memory?: Share) {
    this.folder = folder
    this.room = room
    this.onFailure = onFailure
    this.memory = memory
  }

  /** Bytes of the file. */
  get lengthBytes(): number {
    return this.live.length * BLOCK_LENGTH
  }

  keep(bytes: Uint8Array, at: number): number {
    if (this.failed) return -1
    if (this.filling === undefined) {
      if (this.freeBlocks.length === 0 && !this.room.take(BLOCK_LENGTH)) {
        this.fail(new Error('pages of too many migrations at once wait for their end'))
        return -1
      }
      this.fillingBlock = this.freeBlocks.pop() ?? this.live.length
      this.live[this.fillingBlock] = 1 // until it is full: nobody reuses it meanwhile
      this.filling = this.spare.pop() ?? Buffer.allocUnsafe(BLOCK_LENGTH)
      this.filled = 0
    }
    this.filling.set(bytes.subarray(at, at + PAGE_SIZE), this.filled * PAGE_SIZE)
    this.live[this.fillingBlock]!++
    const place = this.fillingBlock * BLOCK_PAGES + this.filled++
    if (this.filled === BLOCK_PAGES) this.flush()
    return place
  }

  free(place: number): void {
    this.drop(Math.floor(place / BLOCK_PAGES))
  }

  /**
   * Reads pages in any order, neighbours at once.
   * @param into receives them in the order of `places`, from `from` to `to` - 1
   */
  async read(places: Uint32Array, from: number, to: number, into: Buffer): Promise<void> {
    this.reads++
    try {
      await this.readRuns(places, from, to, into)
    } finally {
      this.reads--
    }
  }

  /** Reads under way: they may hold views of blocks that wait for the disk. */
  private reads = 0

  private async readRuns(places: Uint32Array, from: number, to: number, into: Buffer): Promise<void> {
    const order = Uint32Array.from({ length: to - from }, (_, i) => i)
    order.sort((a, b) => places[from + a]! - places[from + b]!)
    for (let i = 0; i < order.length; ) {
      const first = places[from + order[i]!]!
      let n = 1
      while (
        i + n < order.length &&
        places[from + order[i + n]!] === first + n &&
        Math.floor((first + n) / BLOCK_PAGES) === Math.floor(first / BLOCK_PAGES)
      )
        n++
      const run = await this.run(first, n)
      for (let k = 0; k < n; k++) run.copy(into, order[i + k]! * PAGE_SIZE, k * PAGE_SIZE, (k + 1) * PAGE_SIZE)
      i += n
    }
  }

  /** Nothing is kept or read any more. */
  close(): void {
    this.failed = true
    this.filling = undefined
    this.closing = true
    this.closeIfIdle()
  }

  private closing = false

  /** A write that is under way must not find another file under its descriptor. */
  private closeIfIdle(): void {
    if (!this.closing || this.waiting.size > 0) return
    this.letFileGo()
    this.room.close()
    this.memory?.close()
  }

  /** Its blocks are free on the disk once it is closed. */
  private letFileGo(): void {
    if (this.fd >= 0) close(this.fd, () => {})
    this.fd = -1
  }

  /** Pages that follow each other in a block. */
  private async run(first: number, n: number): Promise<Buffer> {
    const block = Math.floor(first / BLOCK_PAGES)
    const at = (first % BLOCK_PAGES) * PAGE_SIZE
    const here = this.filling !== undefined && block === this.fillingBlock ? this.filling : this.waiting.get(block)
    if (here) return here.subarray(at, at + n * PAGE_SIZE)
    const found = Buffer.allocUnsafe(n * PAGE_SIZE)
    for (let have = 0; have < found.length; ) {
      const position = block * BLOCK_LENGTH + at + have
      const { bytesRead } = await readAt(this.fd, found, have, found.length - have, position)
      if (bytesRead === 0) throw new Error('the spool ends early')
      have += bytesRead
    }
    return createDecipheriv(CIPHER, this.key, this.counter(block, first % BLOCK_PAGES)).update(found)
  }

  private counter(block: number, page: number): Buffer {
    const iv = Buffer.alloc(16)
    iv.writeBigUInt64BE(BigInt(this.writing[block]!) * BigInt(BLOCK_PAGES * COUNTERS_PER_PAGE), 8)
    iv.writeUInt32BE(iv.readUInt32BE(12) + page * COUNTERS_PER_PAGE, 12) // 16,384 a block: no carry
    return iv
  }

  private flush(): void {
    const block = this.fillingBlock
    const plain = this.filling!
    this.filling = undefined
    try {
      if (this.fd < 0) this.fd = this.open()
    } catch (error) {
      this.fail(error as Error)
      return
    }
    if (this.waiting.size >= WAITING_MAX) {
      this.fail(new Error('the disk of the store is slower than the migration'))
      return
    }
    if (this.memory?.take(2 * BLOCK_LENGTH) === false) {
      this.fail(new Error('the disk of the store is slower than the migrations'))
      return
    }
    this.writing[block] = this.writings++
    this.waiting.set(block, plain)
    const sealed = createCipheriv(CIPHER, this.key, this.counter(block, 0)).update(plain)
    const put = (done: number): void => {
      write(this.fd, sealed, done, BLOCK_LENGTH - done, block * BLOCK_LENGTH + done, (error, written) => {
        if (!error && done + written < BLOCK_LENGTH) {
          put(done + written)
          return
        }
        this.waiting.delete(block)
        this.memory?.give(2 * BLOCK_LENGTH)
        if (this.spare.length < SPARE_MAX && this.reads === 0) this.spare.push(plain)
        if (error) this.fail(error)
        else this.drop(block)
        this.closeIfIdle()
      })
    }
    put(0)
  }

  private drop(block: number): void {
    const live = --this.live[block]!
    const isFilling = this.filling !== undefined && block === this.fillingBlock
    if (live > (isFilling ? 1 : 0)) return
    if (isFilling) this.filled = 0
    else this.freeBlocks.push(block)
    this.letGoIfEmpty()
  }

  /** Where nothing is kept the next page begins another file. Counters of the cipher go on. */
  private letGoIfEmpty(): void {
    const fillingEmpty = this.filling !== undefined && this.filled === 0
    const empty = this.freeBlocks.length + (fillingEmpty ? 1 : 0)
    if (empty < this.live.length || this.closing || this.reads > 0) return
    if (this.filling && this.spare.length < SPARE_MAX) this.spare.push(this.filling)
    this.filling = undefined
    this.room.give(this.lengthBytes)
    this.letFileGo()
    this.live.length = 0
    this.writing.length = 0
    this.freeBlocks.length = 0
  }

  private open(): number {
    mkdirSync(this.folder, { recursive: true, mode: 0o700 })
    // a name that the store's sweep knows, for the moment that it has one
    const path = join(this.folder, `.put-${process.pid}-${randomBytes(8).toString('hex')}.tmp`)
    const fd = openSync(path, 'wx+', 0o600)
    rmSync(path)
    return fd
  }

  private fail(error: Error): void {
    if (this.failed) return
    this.failed = true
    this.onFailure(error)
  }
}
