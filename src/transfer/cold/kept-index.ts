/** Finds kept blocks by their proofs: chains of places, because places are written over and leave it again. */
import { PROOF_WORDS } from '../../store/cold-set.ts'

/** Ends a chain. */
const NONE = 0

export class KeptIndex {
  private readonly proofs: Uint32Array
  private readonly key: number
  private readonly mask: number
  /** By bucket: the first place of its chain, plus 1; then by place the next one. */
  private readonly heads: Uint32Array
  private readonly next: Uint32Array

  /**
   * @param proofs PROOF_WORDS a place; those of a place stay as they are while it is in here
   * @param key random: nobody chooses blocks that crowd in one chain
   */
  constructor(proofs: Uint32Array, key: number) {
    const places = proofs.length / PROOF_WORDS
    const buckets = 2 ** Math.ceil(Math.log2(Math.max(2, places)))
    this.proofs = proofs
    this.key = key
    this.mask = buckets - 1
    this.heads = new Uint32Array(buckets)
    this.next = new Uint32Array(places)
  }

  /** A place that is not in here: the newest of its kind is found first. */
  add(place: number): void {
    const bucket = this.bucketOf(this.proofs, place * PROOF_WORDS)
    this.next[place] = this.heads[bucket]!
    this.heads[bucket] = place + 1
  }

  /** A place that is in here, its proof as it was. */
  remove(place: number): void {
    const bucket = this.bucketOf(this.proofs, place * PROOF_WORDS)
    const { heads, next } = this
    if (heads[bucket] === place + 1) {
      heads[bucket] = next[place]!
      return
    }
    for (let at = heads[bucket]!; at !== NONE; at = next[at - 1]!) {
      if (next[at - 1] !== place + 1) continue
      next[at - 1] = next[place]!
      return
    }
  }

  /** A place with the proof at `at`; -1: none has it. */
  find(proof: Uint32Array, at: number): number {
    for (let one = this.heads[this.bucketOf(proof, at)]!; one !== NONE; one = this.next[one - 1]!) {
      if (this.isAt(one - 1, proof, at)) return one - 1
    }
    return -1
  }

  private isAt(place: number, proof: Uint32Array, at: number): boolean {
    for (let i = 0; i < PROOF_WORDS; i++) if (this.proofs[place * PROOF_WORDS + i] !== proof[at + i]) return false
    return true
  }

  private bucketOf(proof: Uint32Array, at: number): number {
    let mixed = Math.imul(proof[at]! ^ this.key, 0x9e3779b1)
    mixed = Math.imul(mixed ^ (mixed >>> 15) ^ proof[at + 1]!, 0x85ebca77)
    mixed = Math.imul(mixed ^ (mixed >>> 13) ^ this.key, 0xc2b2ae3d)
    return (mixed ^ (mixed >>> 16)) & this.mask
  }
}
