import { copyOf, latin1, latin1Bytes, sameBytes } from '../bytes/copy.ts'
import { RAM_BLOCKS_MAX } from '../limits.ts'

/** A RAMBlock as one migration knows it. */
export interface RamBlock {
  /** latin1 text of the idstr's 1 to 255 bytes. */
  readonly idstr: string
  /** used_length, from the block list; 0 while only records named it. */
  readonly lengthBytes: number
}

/**
 * The RAMBlocks of one migration, by index from 0 in order of appearance. All channels of a migration share one, so
 * that an index means the same RAMBlock on each of them.
 */
export class BlockTable {
  /** True once a block list named them all: from then on an unknown idstr is an error. */
  complete = false
  private readonly idstrs: string[] = []
  private readonly names: Uint8Array[] = []
  private readonly lengths: number[] = []
  /** Hash of an idstr to the newest index with that hash; `chain` leads to the older ones. */
  private readonly byHash = new Map<number, number>()
  private readonly chain: number[] = []

  constructor(blocks: readonly RamBlock[] = [], complete = false) {
    for (const block of blocks) {
      const name = latin1Bytes(block.idstr)
      this.declare(name, 0, name.length, block.lengthBytes)
    }
    this.complete = complete
  }

  /** RAMBlocks known so far. */
  get size(): number {
    return this.idstrs.length
  }

  idstr(block: number): string {
    return this.idstrs[block]!
  }

  /** used_length in bytes, 0 where it is unknown. */
  lengthBytes(block: number): number {
    return this.lengths[block]!
  }

  /** Index of the RAMBlock with these bytes as idstr, -1 where there is none. Allocates nothing. */
  find(bytes: Uint8Array, at: number, length: number): number {
    let block = this.byHash.get(hash(bytes, at, length)) ?? -1
    while (block >= 0) {
      const name = this.names[block]!
      if (name.length === length && sameBytes(name, 0, bytes, at, length)) return block
      block = this.chain[block]!
    }
    return -1
  }

  /** As {@link find}, but an unknown idstr becomes a RAMBlock of unknown length; -1 where that is not allowed. */
  resolve(bytes: Uint8Array, at: number, length: number): number {
    const block = this.find(bytes, at, length)
    return block >= 0 || this.complete ? block : this.add(bytes, at, length, 0)
  }

  /** An entry of the block list: its index, or -1 where the idstr has a length already or the table is full. */
  declare(bytes: Uint8Array, at: number, length: number, lengthBytes: number): number {
    const block = this.find(bytes, at, length)
    if (block < 0) return this.add(bytes, at, length, lengthBytes)
    if (this.lengths[block]! > 0) return -1
    this.lengths[block] = lengthBytes
    return block
  }

  /** A copy of the table, for {@link BlockTable}'s constructor. */
  list(): RamBlock[] {
    return this.idstrs.map((idstr, block) => ({ idstr, lengthBytes: this.lengths[block]! }))
  }

  private add(bytes: Uint8Array, at: number, length: number, lengthBytes: number): number {
    const block = this.idstrs.length
    if (block >= RAM_BLOCKS_MAX) return -1
    this.idstrs.push(latin1(bytes, at, length))
    this.names.push(copyOf(bytes.subarray(at, at + length)))
    this.lengths.push(lengthBytes)
    const key = hash(bytes, at, length)
    this.chain.push(this.byHash.get(key) ?? -1)
    this.byHash.set(key, block)
    return block
  }
}

/** FNV-1a: named records are rare, so any hash will do that allocates nothing. */
function hash(bytes: Uint8Array, at: number, length: number): number {
  let h = 0x811c9dc5
  for (let i = 0; i < length; i++) h = Math.imul(h ^ bytes[at + i]!, 0x01000193)
  return h
}
