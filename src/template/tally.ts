/**
 * The exact tally: pages by SHA-256, in the memory it is given and no more. Where that fills up, the tally narrows to a
 * range of digests and forgets the rest, for a later pass to count: more passes over the inputs instead of more memory.
 */
import { assert } from '../errors.ts'
import { DIGEST_WORDS } from './digest.ts'
import { sortIndices } from './sort.ts'
import { COUNT_MAX, DIGEST_LENGTH } from './wire.ts'

/** Bytes of memory a page takes: digest, first appearance, three counts, its place in an order, two slots of the index. */
export const TALLY_ENTRY_LENGTH = DIGEST_LENGTH + 8 + 4 * 4 + 2 * 4
/** Slots of the index at first: it grows with the pages, so that few pages touch little memory. */
const SLOTS_MIN = 1 << 16
/** Digest words are spread evenly over these values. */
const KEYS = 2 ** 32

export class Tally {
  /** Pages that fit. */
  readonly capacity: number
  /** Pages in it. */
  count = 0
  /** Pages from 0 on that earlier ranges gave; they are final. */
  kept = 0
  /** The range of keys counted now: from `low`, below `high`. A key is the first word of a digest. */
  low = 0
  high = KEYS
  private readonly digests: Uint32Array
  private readonly firsts: Float64Array
  private readonly vmCounts: Uint32Array
  private readonly occurrenceCounts: Uint32Array
  private readonly lastVms: Uint32Array
  private readonly orders: Uint32Array
  /** Open addressing by the second word of the digest: entry + 1, or 0. Holds entries from `kept` on. */
  private readonly index: Uint32Array
  private slots: number

  /** @param memory all of it may be used, from `at`, a multiple of 8; its content does not matter. */
  constructor(memory: ArrayBuffer, at: number, lengthBytes: number) {
    const capacity = Math.max(0, Math.floor(lengthBytes / TALLY_ENTRY_LENGTH))
    this.capacity = capacity
    const take = (length: number): number => {
      at += length
      return at - length
    }
    this.firsts = new Float64Array(memory, take(8 * capacity), capacity)
    this.digests = new Uint32Array(memory, take(DIGEST_LENGTH * capacity), DIGEST_WORDS * capacity)
    this.vmCounts = new Uint32Array(memory, take(4 * capacity), capacity)
    this.occurrenceCounts = new Uint32Array(memory, take(4 * capacity), capacity)
    this.lastVms = new Uint32Array(memory, take(4 * capacity), capacity)
    this.orders = new Uint32Array(memory, take(4 * capacity), capacity)
    this.index = new Uint32Array(memory, take(8 * capacity), 2 * capacity)
    this.slots = Math.min(SLOTS_MIN, this.index.length)
    this.index.fill(0, 0, this.slots)
  }

  /**
   * Counts one occurrence of a page in VM `vm` (from 0; all pages of one VM come before the next VM's).
   *
   * @param words DIGEST_WORDS words of its SHA-256 from `at`
   * @param first place of the page among all pages of all inputs: ascending, the same in every pass
   * @returns false where the page is new and there is no room; the caller narrows the range, or gives up
   */
  add(words: Uint32Array, at: number, vm: number, first: number): boolean {
    const key = words[at]!
    if (key < this.low || key >= this.high) return true
    const { digests, index, slots } = this
    let slot = this.slotOf(words[at + 1]!)
    for (let entry = index[slot]!; entry !== 0; entry = index[slot]!) {
      const place = (entry - 1) * DIGEST_WORDS
      let word = 0
      while (word < DIGEST_WORDS && digests[place + word] === words[at + word]) word++
      if (word === DIGEST_WORDS) {
        this.countAgain(entry - 1, vm)
        return true
      }
      if (++slot === slots) slot = 0
    }
    if (this.count === this.capacity) return false
    const entry = this.count++
    for (let word = 0; word < DIGEST_WORDS; word++) digests[entry * DIGEST_WORDS + word] = words[at + word]!
    this.firsts[entry] = first
    this.vmCounts[entry] = 1
    this.occurrenceCounts[entry] = 1
    this.lastVms[entry] = vm
    index[slot] = entry + 1
    if ((this.count - this.kept) * 2 > slots) this.growIndex()
    return true
  }

  /** Halves the range of keys and forgets the pages outside. */
  narrow(): void {
    const middle = Math.floor((this.low + this.high) / 2)
    assert(middle > this.low, 'the tally cannot narrow below one key')
    this.high = middle
    this.compact(entry => this.digests[entry * DIGEST_WORDS]! < middle)
  }

  /** Ends a range: of its pages those of at least `minVms` VMs stay. The next range, if any, is all that is left. */
  endRange(minVms: number): void {
    this.compact(entry => this.vmCounts[entry]! >= minVms)
    this.kept = this.count
    this.low = this.high
    this.high = KEYS
    this.rebuildIndex()
  }

  /** True when every key has been in a range that ended. */
  get complete(): boolean {
    return this.low === KEYS
  }

  /** Keeps the first `most` final pages by rank: more VMs, then more occurrences, then earlier appearance. */
  keepBest(most: number): void {
    assert(this.kept === this.count, 'pages are ranked between ranges')
    if (this.count <= most) return
    const { vmCounts, occurrenceCounts, firsts, orders } = this
    for (let i = 0; i < this.count; i++) orders[i] = i
    sortIndices(
      orders,
      this.count,
      (a, b) => vmCounts[b]! - vmCounts[a]! || occurrenceCounts[b]! - occurrenceCounts[a]! || firsts[a]! - firsts[b]!,
    )
    // Marked through lastVms, which final pages no longer need.
    this.lastVms.fill(0, 0, this.count)
    for (let i = 0; i < most; i++) this.lastVms[orders[i]!] = 1
    this.kept = 0
    this.compact(entry => this.lastVms[entry] === 1)
    this.kept = this.count
  }

  /** Puts the final pages in order of first appearance, for {@link entryAt}. */
  sortByAppearance(): void {
    const { orders, firsts } = this
    let sorted = true
    for (let i = 0; i < this.count; i++) {
      orders[i] = i
      if (i > 0 && firsts[i]! < firsts[i - 1]!) sorted = false
    }
    // Each range leaves its pages in order already, and most builds need one range only.
    if (!sorted) sortIndices(orders, this.count, (a, b) => firsts[a]! - firsts[b]!)
  }

  /** The entry at `place` of the order that {@link sortByAppearance} made. */
  entryAt(place: number): number {
    return this.orders[place]!
  }

  vms(entry: number): number {
    return this.vmCounts[entry]!
  }

  occurrences(entry: number): number {
    return this.occurrenceCounts[entry]!
  }

  /** Place of the page's first appearance among all pages of all inputs. */
  first(entry: number): number {
    return this.firsts[entry]!
  }

  /** Copies the page's SHA-256 to `at`. */
  copyDigest(entry: number, into: Uint8Array, at: number): void {
    const from = this.digests
    into.set(new Uint8Array(from.buffer, from.byteOffset + entry * DIGEST_LENGTH, DIGEST_LENGTH), at)
  }

  private countAgain(entry: number, vm: number): void {
    const occurrences = this.occurrenceCounts[entry]!
    if (occurrences < COUNT_MAX) this.occurrenceCounts[entry] = occurrences + 1
    if (this.lastVms[entry] === vm) return
    this.lastVms[entry] = vm
    this.vmCounts[entry]!++
  }

  private slotOf(word: number): number {
    return Math.floor(word * (this.slots / KEYS))
  }

  private growIndex(): void {
    if (this.slots === this.index.length) return
    this.slots = Math.min(this.slots * 2, this.index.length)
    this.rebuildIndex()
  }

  private rebuildIndex(): void {
    const { index, slots, digests } = this
    index.fill(0, 0, slots)
    for (let entry = this.kept; entry < this.count; entry++) {
      let slot = this.slotOf(digests[entry * DIGEST_WORDS + 1]!)
      while (index[slot] !== 0) if (++slot === slots) slot = 0
      index[slot] = entry + 1
    }
  }

  /** Drops the entries from `kept` on that fail the test, in place, the others in their order. */
  private compact(stays: (entry: number) => boolean): void {
    let to = this.kept
    for (let entry = this.kept; entry < this.count; entry++) {
      if (!stays(entry)) continue
      if (to !== entry) {
        this.digests.copyWithin(to * DIGEST_WORDS, entry * DIGEST_WORDS, (entry + 1) * DIGEST_WORDS)
        this.firsts[to] = this.firsts[entry]!
        this.vmCounts[to] = this.vmCounts[entry]!
        this.occurrenceCounts[to] = this.occurrenceCounts[entry]!
        this.lastVms[to] = this.lastVms[entry]!
      }
      to++
    }
    this.count = to
    this.rebuildIndex()
  }
}
