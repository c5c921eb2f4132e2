/**
 * Finds the pages of cold sets by their proofs: open addressing over two arrays, some 6 bytes a page. The first has a byte of
 * each proof, so that a page that is not there costs one look. Sessions with the same list share it. It may be asked while it is
 * filled: what it says is so, and what it lacks is not found yet.
 */
import { PROOF_WORDS } from '../../store/cold-set.ts'
import { type EventLoop, nextTurn } from '../event-loop.ts'
import type { ColdList } from './cold-list.ts'

/** Slots for each page: a look that finds nothing sees three of them on average. */
const SLOTS_PER_PAGE = 1.25
/** Pages that are put in within one turn of the event loop: about 1 ms. */
const FILL_STEP = 8192

export class ColdIndex {
  private readonly list: ColdList
  /** A byte of the proof, never 0; 0: empty. */
  private readonly tags: Uint8Array
  private readonly numbers: Uint32Array
  private readonly key: number
  private filling: Promise<void> | undefined
  /** All pages are in it. */
  isFilled = false

  /** @param key random: nobody chooses sets whose pages crowd in one place */
  constructor(list: ColdList, key: number) {
    const slots = Math.ceil(list.pages * SLOTS_PER_PAGE) + 1
    this.list = list
    this.key = key
    this.tags = new Uint8Array(slots)
    this.numbers = new Uint32Array(slots)
  }

  /** Pages of its list. */
  get pages(): number {
    return this.list.pages
  }

  /** Bytes that it takes. */
  get bytes(): number {
    return this.tags.byteLength + this.numbers.byteLength
  }

  /** Takes in all pages, a little in each turn, once; of pages that stand in several sets the first. */
  fill(loop: EventLoop): Promise<void> {
    this.filling ??= this.fillNow(loop)
    return this.filling
  }

  private async fillNow(loop: EventLoop): Promise<void> {
    let number = 0
    for (const { proofs, pageCount } of this.list.sets) {
      for (let page = 0; page < pageCount; page++, number++) {
        if (number % FILL_STEP === FILL_STEP - 1) await nextTurn(loop)
        const slot = this.slotFor(proofs, page * PROOF_WORDS)
        if (this.tags[slot] !== 0) continue // the same page once more
        this.tags[slot] = tagOf(proofs, page * PROOF_WORDS)
        this.numbers[slot] = number
      }
    }
    this.isFilled = true
  }

  /** Number of the page with the proof at `at`; -1: there is none. */
  find(proof: Uint32Array, at: number): number {
    const slot = this.slotFor(proof, at)
    return this.tags[slot] === 0 ? -1 : this.numbers[slot]!
  }

  /** Whether the page of this number, any, has the proof at `at`. A page that is in several sets has several numbers. */
  has(number: number, proof: Uint32Array, at: number): boolean {
    return number < this.list.pages && this.isAt(number, proof, at)
  }

  /** The slot that has this proof, or the empty one where it would go. */
  private slotFor(proof: Uint32Array, at: number): number {
    const { tags, numbers } = this
    const tag = tagOf(proof, at)
    // keyed, then spread over the slots: proofs of a set that nobody digested may have any words
    let mixed = Math.imul(proof[at]! ^ this.key, 0x9e3779b1)
    mixed = Math.imul(mixed ^ (mixed >>> 15) ^ proof[at + 1]!, 0x85ebca77)
    mixed = Math.imul(mixed ^ (mixed >>> 13) ^ this.key, 0xc2b2ae3d)
    let slot = Math.floor(((mixed ^ (mixed >>> 16)) >>> 0) * (tags.length / 4294967296))
    for (let found = tags[slot]!; found !== 0; found = tags[slot]!) {
      if (found === tag && this.isAt(numbers[slot]!, proof, at)) return slot
      if (++slot === tags.length) slot = 0
    }
    return slot
  }

  private isAt(number: number, proof: Uint32Array, at: number): boolean {
    const { list } = this
    const set = list.setOf(number)
    const { proofs } = list.sets[set]!
    const own = (number - list.starts[set]!) * PROOF_WORDS
    for (let i = 0; i < PROOF_WORDS; i++) if (proofs[own + i] !== proof[at + i]) return false
    return true
  }
}

function tagOf(proof: Uint32Array, at: number): number {
  return proof[at + 2]! & 0xff || 1
}
