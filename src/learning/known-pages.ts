/**
 * The distinct pages that learning remembers: by the hash of each, which migrations had it, which was the last and where,
 * and where its content is kept. Columns of typed arrays that double as pages come; an entry is an index into them.
 */
import { assert } from '../errors.ts'
import type { Share } from '../fair-shares.ts'

/** Bytes of memory for one page: hash, migrations, place, content, two slots of the index. */
export const LEARN_ENTRY_LENGTH = 8 + 4 + 4 + 4 + 8
/** Migrations that are told apart: a bit each of one word. */
export const MIGRATIONS_KEPT = 32

/** `contents` of an entry: the page is in no spool, or in a set already. Everything below is a place in the spool. */
export const NO_CONTENT = 0xffff_ffff
export const IN_A_SET = 0xffff_fffe
/** The word of `tags`: slot of the migration that had the page last, above; page number there, modulo 2^27, below. */
const TAG_PAGE_BITS = 27
const TAG_PAGE_MASK = 2 ** TAG_PAGE_BITS - 1
/** Entries at first. */
const ENTRIES_MIN = 1 << 14

export class KnownPages {
  /** How many there are. Their order is that of first appearance, and stays so when some leave. */
  count = 0
  /** By entry: a bit for the slot of each migration that had the page. */
  vmBits = new Uint32Array(ENTRIES_MIN)
  /** By entry: a place in the spool, NO_CONTENT or IN_A_SET. */
  contents = new Uint32Array(ENTRIES_MIN)
  private readonly max: number
  private readonly memory: Pick<Share, 'take'> | undefined
  private readonly key0: number
  private readonly key1: number
  private hashes = new Uint32Array(2 * ENTRIES_MIN)
  private tags = new Uint32Array(ENTRIES_MIN)
  /** Open addressing by `home`: entry + 1, or 0. Twice as many as entries fit. */
  private index = new Uint32Array(2 * ENTRIES_MIN)

  /**
   * @param max most pages; 2^26 of them at most
   * @param memory pays for the columns as they grow; undefined: whatever it takes
   * @param key random words: who sends pages must not choose where they fall
   */
  constructor(max: number, memory?: Pick<Share, 'take'>, key: readonly [number, number] = [0, 0]) {
    this.max = Math.max(1, Math.min(max, 2 ** 26))
    this.memory = memory
    this.key0 = key[0]
    this.key1 = key[1]
  }

  /** So many as there may be: one must be forgotten before another is added. */
  get isFull(): boolean {
    return this.count >= this.max
  }

  /** The columns must grow before another is added. */
  get isCrowded(): boolean {
    return this.count === this.vmBits.length
  }

  /** Bytes of memory in use; at most LEARN_ENTRY_LENGTH for each of the most pages, rounded up to a power of two. */
  get memoryBytes(): number {
    return this.vmBits.length * LEARN_ENTRY_LENGTH
  }

  /** The entry of a hash; -1: it is not known. */
  find(lo: number, hi: number): number {
    const { index, hashes } = this
    const mask = index.length - 1
    for (let at = this.home(lo, hi) & mask; ; at = (at + 1) & mask) {
      const entry = index[at]! - 1
      if (entry < 0) return -1
      if (hashes[2 * entry] === lo && hashes[2 * entry + 1] === hi) return entry
    }
  }

  /**
   * One more, which is not known yet; neither `isFull` nor `isCrowded` may be. Its content is in no spool.
   * @param page its number in its RAMBlock
   * @returns its entry
   */
  add(lo: number, hi: number, slot: number, page: number): number {
    const entry = this.count++
    this.hashes[2 * entry] = lo
    this.hashes[2 * entry + 1] = hi
    this.vmBits[entry] = (1 << slot) >>> 0
    this.tags[entry] = tagOf(slot, page)
    this.contents[entry] = NO_CONTENT
    this.insert(entry)
    return entry
  }

  /** Another migration has it, at this page number. */
  passed(entry: number, slot: number, page: number): void {
    this.vmBits[entry] = (this.vmBits[entry]! | (1 << slot)) >>> 0
    this.tags[entry] = tagOf(slot, page)
  }

  /** Slot of the migration that had it last. */
  lastSlot(entry: number): number {
    return this.tags[entry]! >>> TAG_PAGE_BITS
  }

  /** Whether that migration had it at this page number. */
  wasAt(entry: number, page: number): boolean {
    return (this.tags[entry]! & TAG_PAGE_MASK) === page % (TAG_PAGE_MASK + 1)
  }

  /**
   * Forgets a migration, and the pages that only it had: the others move up. Goes through all of them, 40 ns an entry.
   * @param free is called with each place in the spool that is not needed any more
   */
  forget(slot: number, free: (place: number) => void): void {
    const bit = (1 << slot) >>> 0
    const { hashes, vmBits, tags, contents } = this
    let to = 0
    for (let entry = 0; entry < this.count; entry++) {
      const bits = (vmBits[entry]! & ~bit) >>> 0
      if (bits === 0) {
        if (contents[entry]! < IN_A_SET) free(contents[entry]!)
        continue
      }
      hashes[2 * to] = hashes[2 * entry]!
      hashes[2 * to + 1] = hashes[2 * entry + 1]!
      vmBits[to] = bits
      const tag = tags[entry]!
      // the place is lost with its migration: no page number is so high
      tags[to] = tag >>> TAG_PAGE_BITS === slot ? tagOf(31 - Math.clz32(bits & -bits), TAG_PAGE_MASK) : tag
      contents[to] = contents[entry]!
      to++
    }
    this.count = to
    this.index.fill(0)
    for (let entry = 0; entry < to; entry++) this.insert(entry)
  }

  /** Twice as many fit, where there is memory for it. @returns false: there is none, and nothing has changed */
  grow(): boolean {
    const entries = Math.min(this.vmBits.length * 2, 2 ** Math.ceil(Math.log2(Math.max(this.max, ENTRIES_MIN))))
    assert(entries > this.count, 'the table of learned pages cannot grow')
    if (this.memory?.take((entries - this.count) * LEARN_ENTRY_LENGTH) === false) return false
    this.hashes = grown(this.hashes, 2 * entries)
    this.vmBits = grown(this.vmBits, entries)
    this.tags = grown(this.tags, entries)
    this.contents = grown(this.contents, entries)
    this.index = new Uint32Array(2 * entries)
    for (let entry = 0; entry < this.count; entry++) this.insert(entry)
    return true
  }

  /**
   * Where a hash's entry is looked for first. The hash is under a seed that the peer knows, who can make any number of pages
   * with the same word: mixed with words that it does not know they lie apart.
   */
  private home(lo: number, hi: number): number {
    let h = Math.imul(lo ^ this.key0, 0x9e3779b1)
    h = Math.imul(h ^ (h >>> 15) ^ hi ^ this.key1, 0x85ebca77)
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae3d)
    return (h ^ (h >>> 16)) >>> 0
  }

  private insert(entry: number): void {
    const { index } = this
    const mask = index.length - 1
    let at = this.home(this.hashes[2 * entry]!, this.hashes[2 * entry + 1]!) & mask
    while (index[at] !== 0) at = (at + 1) & mask
    index[at] = entry + 1
  }
}

function tagOf(slot: number, page: number): number {
  return ((slot << TAG_PAGE_BITS) | (page % (TAG_PAGE_MASK + 1))) >>> 0
}

/** The same words at the beginning of a longer array. */
export function grown(old: Uint32Array<ArrayBuffer>, length: number): Uint32Array<ArrayBuffer> {
  const larger = new Uint32Array(length)
  larger.set(old)
  return larger
}
