/** The pages that a choice names, and where the inputs show them: in the memory it is given and no more. */
import { ProxyError } from '../errors.ts'
import type { SetRecords } from './format.ts'
import { TAG_LENGTH, TAG_WORDS } from './page-tag.ts'
import { COUNT_MAX, DIGEST_LENGTH } from './wire.ts'

/** Bytes a page: tag, digest, first appearance, two counts, place in the order, two slots of the index. */
export const CHOICE_ENTRY_LENGTH = TAG_LENGTH + DIGEST_LENGTH + 8 + 3 * 4 + 2 * 4
/** Tags are as good as random: half full, the index is probed twice a page. More says that they are none. */
const PROBES_PER_PAGE = 8
const PROBES_FREE = 1024

export class ChoiceTable implements SetRecords {
  /** Pages that the choice names. */
  named = 0
  /** Of these: pages that an input showed. As records, these come in order of first appearance. */
  count = 0
  private readonly name: string
  private readonly tags: Uint32Array
  private readonly digests: Buffer
  private readonly firsts: Float64Array
  private readonly vmCounts: Uint32Array
  private readonly occurrenceCounts: Uint32Array
  private readonly orders: Uint32Array
  private readonly index: Uint32Array
  private probes: number

  /** @param name what errors call the choice */
  constructor(name: string, capacity: number) {
    this.name = name
    this.tags = new Uint32Array(capacity * TAG_WORDS)
    this.digests = Buffer.alloc(capacity * DIGEST_LENGTH)
    this.firsts = new Float64Array(capacity)
    this.vmCounts = new Uint32Array(capacity)
    this.occurrenceCounts = new Uint32Array(capacity)
    this.orders = new Uint32Array(capacity)
    this.index = new Uint32Array(Math.max(2, capacity * 2))
    this.probes = PROBES_FREE + PROBES_PER_PAGE * capacity
  }

  /** Names a page. @param words TAG_WORDS words of its tag from `at` @throws TEMPLATE_FORMAT where it is named twice */
  add(words: Uint32Array, at: number, vms: number, occurrences: number): void {
    const bad = (what: string): ProxyError =>
      new ProxyError(
        'TEMPLATE_FORMAT',
        what,
        { stream: this.name },
        'give a file that `pageferry template choose` wrote',
      )
    let slot = this.slotOf(words[at]!)
    for (; this.index[slot] !== 0; slot = this.after(slot)) {
      if (this.has(this.index[slot]! - 1, words, at)) throw bad(`${this.name} names a page twice`)
      if (--this.probes < 0) throw bad(`the digests in ${this.name} are none`)
    }
    const entry = this.named++
    for (let word = 0; word < TAG_WORDS; word++) this.tags[entry * TAG_WORDS + word] = words[at + word]!
    this.vmCounts[entry] = vms
    this.occurrenceCounts[entry] = Math.min(occurrences, COUNT_MAX)
    this.firsts[entry] = -1
    this.index[slot] = entry + 1
  }

  /**
   * A page that an input shows.
   *
   * @param words TAG_WORDS words of its tag from `at`
   * @param digests its SHA-256, from `digestAt`
   * @param first its place among all pages of all inputs, ascending
   */
  show(words: Uint32Array, at: number, digests: Buffer, digestAt: number, first: number): void {
    let slot = this.slotOf(words[at]!)
    for (let entry = this.index[slot]!; entry !== 0; entry = this.index[slot]!) {
      if (this.has(entry - 1, words, at)) {
        if (this.firsts[entry - 1]! >= 0) return
        this.firsts[entry - 1] = first
        digests.copy(this.digests, (entry - 1) * DIGEST_LENGTH, digestAt, digestAt + DIGEST_LENGTH)
        this.orders[this.count++] = entry - 1
        return
      }
      slot = this.after(slot)
    }
  }

  /** Every page that is named was shown: nothing further is of use. */
  get complete(): boolean {
    return this.count === this.named
  }

  first(place: number): number {
    return this.firsts[this.orders[place]!]!
  }

  vms(place: number): number {
    return this.vmCounts[this.orders[place]!]!
  }

  occurrences(place: number): number {
    return this.occurrenceCounts[this.orders[place]!]!
  }

  copyDigest(place: number, into: Uint8Array, at: number): void {
    const from = this.orders[place]! * DIGEST_LENGTH
    into.set(this.digests.subarray(from, from + DIGEST_LENGTH), at)
  }

  private has(entry: number, words: Uint32Array, at: number): boolean {
    let word = 0
    while (word < TAG_WORDS && this.tags[entry * TAG_WORDS + word] === words[at + word]) word++
    return word === TAG_WORDS
  }

  private slotOf(word: number): number {
    return Math.floor(word * (this.index.length / 2 ** 32))
  }

  private after(slot: number): number {
    return slot + 1 === this.index.length ? 0 : slot + 1
  }
}
