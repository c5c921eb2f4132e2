/**
 * Counts the pages that pass between two proxies, by VM, and decides at a migration's end which of them become a
 * template set. Pure: both sides feed it the same pages in the same order and so hold the same state, without a byte
 * over the WAN. What depends on the order and why it is the same on both sides: docs/adr/0009-learning.md.
 */
import type { Share } from '../fair-shares.ts'
import { grown, IN_A_SET, KnownPages, MIGRATIONS_KEPT, NO_CONTENT } from './known-pages.ts'

/** Distinct pages that are remembered unless said otherwise: 4 GiB of guests, in 28 MiB of memory. */
export const LEARN_PAGES_MAX = 1 << 20
/** A set of fewer pages would cost more in each hello than it saves: its pages wait for the next. */
export const SET_PAGES_MIN = 16

/**
 * A guest that comes back has its pages where they were, another guest of the same image has them elsewhere: of what it
 * shares with an earlier migration, from this share on at the same place, it is that VM (measured: ADR 0009) ...
 */
const SAME_PLACE_SHARE = 0.6
/** ... where at least so many pages say so ... */
const SAME_PLACE_MIN = 8
/** ... and wherever it shares so much of all its pages, wherever they are. In doubt it is the same VM: nothing is kept. */
const SAME_PAGES_SHARE = 0.8

/** Keeps pages until it is known whether they go into a set. */
export interface PageSpool {
  /** Copies the page at `at`. @returns where it is kept now, below 2^32 - 2; -1: it could not be kept, and never will */
  keep(bytes: Uint8Array, at: number): number
  /** The page at this place is not needed any more. */
  free(place: number): void
}

export interface LearnerOptions {
  /** `shared`: pages of two VMs or more; `all`: every page. */
  readonly mode: 'shared' | 'all'
  /** Most distinct pages remembered; both sides must say the same. */
  readonly pagesMax: number
  /** Most pages that one migration may have in the spool, and that a set has; both sides must say the same. */
  readonly keepMax: number
  readonly spool: PageSpool
  /** Pays for the table as it grows. Default: whatever it takes. */
  readonly memory?: Pick<Share, 'take'> | undefined
  /** Random words that key the table, each side's own: who sends pages must not choose where they fall. */
  readonly key?: readonly [number, number]
}

/** A set to be: its pages in order of first appearance. */
export interface LearnedSet {
  readonly mode: 'shared' | 'all'
  /** Where the spool has each page. They belong to whoever takes this, who frees them. */
  readonly places: Uint32Array
  /** VMs that had each page. */
  readonly pageVms: Uint8Array
  /** VMs that were counted. */
  readonly vms: number
}

/** What is known of one migration. */
class Seen {
  readonly migration: number
  /** Counts migrations from the start of learning. */
  readonly order: number
  ended = false
  /** The table is full of its pages alone: it is no longer followed. */
  full = false
  uniquePages = 0
  keptPages = 0
  /** UUID of the guest in hexadecimal digits, where multifd tells it. */
  uuid = ''
  /** By slot: pages that this migration was the last to have, and how many of those at the same place. */
  readonly shared = new Uint32Array(MIGRATIONS_KEPT)
  readonly samePlace = new Uint32Array(MIGRATIONS_KEPT)

  constructor(migration: number, order: number) {
    this.migration = migration
    this.order = order
  }
}

export class Learner {
  readonly mode: 'shared' | 'all'
  private readonly keepMax: number
  private readonly spool: PageSpool
  private readonly known: KnownPages
  /** Entries whose pages the spool has, in the order in which it took them: what a migration's end looks through. */
  private kept = new Uint32Array(64)
  private keptCount = 0

  private readonly seen: (Seen | undefined)[] = new Array(MIGRATIONS_KEPT).fill(undefined)
  /** By slot: the slot that stands for its VM. */
  private readonly vmOf = new Uint8Array(MIGRATIONS_KEPT)
  private readonly slotOf = new Map<number, number>()
  private migrations = 0
  /**
   * Folds of the pages that passed and of the migrations that ended, each in order: sides that were fed alike have them
   * alike. Two, because an END comes between other batches at each side.
   */
  private readonly passed = new Uint32Array(4)
  private readonly ends = new Uint32Array(4)
  /** The spool failed, or a batch was damaged: nothing more is learned, and this state is never agreed on. */
  broken = false

  constructor(options: LearnerOptions) {
    this.mode = options.mode
    this.keepMax = options.keepMax
    this.spool = options.spool
    this.known = new KnownPages(options.pagesMax, options.memory, options.key)
  }

  /** Distinct pages remembered. */
  get pages(): number {
    return this.known.count
  }

  /** Migrations under way. */
  get running(): number {
    return this.slotOf.size
  }

  /** Bytes of memory in use; at most LEARN_ENTRY_LENGTH for each of `pagesMax`, rounded up to a power of two. */
  get memoryBytes(): number {
    return this.known.memoryBytes
  }

  /** What names the state: equal on two sides that were fed alike, as far as 128 bits can tell. */
  get fold(): readonly number[] {
    return [...this.passed, ...this.ends, this.migrations, this.known.count]
  }

  /**
   * The slot under which a migration's pages are fed; the first call begins it. Where all are taken, the migration that
   * began first is forgotten.
   */
  slot(migration: number): number {
    const known = this.slotOf.get(migration)
    if (known !== undefined) return known
    let slot = this.seen.indexOf(undefined)
    if (slot < 0) {
      slot = this.oldest(-1)
      this.forget(slot)
    }
    this.seen[slot] = new Seen(migration, this.migrations++)
    this.vmOf[slot] = slot
    this.slotOf.set(migration, slot)
    fold(this.passed, migration, 0)
    return slot
  }

  /** The guest of this migration says who it is. @param uuid hexadecimal digits; all zero: none was given to QEMU */
  identify(slot: number, uuid: string): void {
    if (!/^0*$/.test(uuid)) this.seen[slot]!.uuid = uuid
  }

  /**
   * One page passed.
   * @param lo,hi its hash under the state's seed
   * @param page its number in its RAMBlock
   * @param bytes,at its content, for the spool
   */
  page(slot: number, lo: number, hi: number, page: number, bytes: Uint8Array, at: number): void {
    fold(this.passed, lo, hi)
    const { known } = this
    const entry = known.find(lo, hi)
    if (entry >= 0) {
      if ((known.vmBits[entry]! & (1 << slot)) !== 0) return
      const seen = this.seen[slot]!
      seen.uniquePages++
      const other = known.lastSlot(entry)
      seen.shared[other]!++
      if (known.wasAt(entry, page)) seen.samePlace[other]!++
      known.passed(entry, slot, page)
      if (known.contents[entry] === NO_CONTENT) this.keep(seen, entry, bytes, at)
      return
    }
    const seen = this.seen[slot]!
    if (seen.full || !this.makeRoom(slot)) return
    seen.uniquePages++
    const fresh = known.add(lo, hi, slot, page)
    if (this.mode === 'all') this.keep(seen, fresh, bytes, at)
  }

  /**
   * A migration is over. Its pages count from now on.
   * @returns the set to put, or undefined where there is nothing new
   */
  ended(migration: number): LearnedSet | undefined {
    const slot = this.slotOf.get(migration)
    if (slot === undefined) return undefined
    this.slotOf.delete(migration)
    this.seen[slot]!.ended = true
    this.vmOf[slot] = this.sameVm(slot)
    const set = this.choose()
    fold(this.ends, migration, this.vmOf[slot]!)
    fold(this.ends, set?.places.length ?? 0, set?.vms ?? 0)
    return set
  }

  /** Whether two migrations that are remembered were of one VM: for tests and logs. */
  sameGuest(a: number, b: number): boolean {
    const slotOf = (migration: number): number => this.seen.findIndex(seen => seen?.migration === migration)
    const [x, y] = [slotOf(a), slotOf(b)]
    return x >= 0 && y >= 0 && this.vmOf[x] === this.vmOf[y]
  }

  // --- decisions

  /** The slot that stands for the VM of a migration that has ended: its own, or that of an earlier one. */
  private sameVm(slot: number): number {
    const seen = this.seen[slot]!
    const shared = new Uint32Array(MIGRATIONS_KEPT)
    const samePlace = new Uint32Array(MIGRATIONS_KEPT)
    for (let other = 0; other < MIGRATIONS_KEPT; other++) {
      if (other === slot || !this.seen[other]?.ended) continue
      if (seen.uuid !== '' && seen.uuid === this.seen[other]!.uuid) return this.vmOf[other]!
      const vm = this.vmOf[other]!
      shared[vm]! += seen.shared[other]!
      samePlace[vm]! += seen.samePlace[other]!
    }
    let best = slot
    for (let vm = 0; vm < MIGRATIONS_KEPT; vm++) {
      const { uuid } = this.seen[vm] ?? { uuid: '' }
      if (shared[vm] === 0 || (seen.uuid !== '' && uuid !== '')) continue // two guests that say who they are
      const comesBack = samePlace[vm]! >= SAME_PLACE_MIN && samePlace[vm]! >= SAME_PLACE_SHARE * shared[vm]!
      if (!comesBack && shared[vm]! < SAME_PAGES_SHARE * seen.uniquePages) continue
      if (best === slot || samePlace[vm]! > samePlace[best]!) best = vm
    }
    return best
  }

  /** Takes the pages for a set out of those in the spool, and frees those that will not come into question. */
  private choose(): LearnedSet | undefined {
    const least = this.mode === 'all' ? 1 : 2
    let ended = 0
    for (let slot = 0; slot < MIGRATIONS_KEPT; slot++) if (this.seen[slot]?.ended) ended |= 1 << slot
    ended >>>= 0
    const { vmBits, contents } = this.known
    const chosen: number[] = []
    let waiting = 0
    for (let i = 0; i < this.keptCount; i++) {
      const entry = this.kept[i]!
      const vms = this.vmsOf(vmBits[entry]! & ended)
      if (vms >= least) chosen.push(entry)
      else if ((vmBits[entry]! & ~ended) === 0) {
        // a guest that came back: another VM that has the page brings it again
        this.spool.free(contents[entry]!)
        contents[entry] = NO_CONTENT
      } else this.kept[waiting++] = entry
    }
    const tooFew = chosen.length < SET_PAGES_MIN
    if (tooFew) for (const entry of chosen) this.kept[waiting++] = entry
    this.keptCount = waiting
    if (tooFew) return undefined
    chosen.sort((a, b) => a - b) // first appearance
    // what is too much is dropped for good, or every later set would begin with it
    for (const entry of chosen.splice(this.keepMax)) {
      this.spool.free(contents[entry]!)
      contents[entry] = IN_A_SET
    }
    const places = new Uint32Array(chosen.length)
    const pageVms = new Uint8Array(chosen.length)
    chosen.forEach((entry, i) => {
      places[i] = contents[entry]!
      pageVms[i] = this.vmsOf(vmBits[entry]! & ended)
      contents[entry] = IN_A_SET
    })
    return { mode: this.mode, places, pageVms, vms: this.vmsOf(ended) }
  }

  /** VMs among the migrations of these bits. */
  private vmsOf(bits: number): number {
    let vms = 0
    for (let left = bits; left !== 0; left &= left - 1) vms |= 1 << this.vmOf[31 - Math.clz32(left & -left)]!
    let count = 0
    for (; vms !== 0; vms &= vms - 1) count++
    return count
  }

  // --- memory

  /** Keeps the content of a page that is in no spool, unless this migration has so much there already. */
  private keep(seen: Seen, entry: number, bytes: Uint8Array, at: number): void {
    if (seen.keptPages >= this.keepMax) return
    const place = this.spool.keep(bytes, at)
    if (place < 0) {
      this.broken = true
      return
    }
    this.known.contents[entry] = place
    seen.keptPages++
    if (this.keptCount === this.kept.length) this.kept = grown(this.kept, 2 * this.keptCount)
    this.kept[this.keptCount++] = entry
  }

  /** Slot of the migration that began first, other than `except`; -1: there is none. */
  private oldest(except: number): number {
    let found = -1
    for (let slot = 0; slot < MIGRATIONS_KEPT; slot++) {
      const seen = this.seen[slot]
      if (seen === undefined || slot === except) continue
      if (found < 0 || seen.order < this.seen[found]!.order) found = slot
    }
    return found
  }

  /** Room for one more page: the oldest migrations are forgotten first. */
  private makeRoom(slot: number): boolean {
    while (this.known.isFull) {
      const oldest = this.oldest(slot)
      if (oldest < 0) {
        this.seen[slot]!.full = true
        return false
      }
      this.forget(oldest)
    }
    if (!this.known.isCrowded || (!this.broken && this.known.grow())) return true
    this.broken = true
    return false
  }

  /**
   * Forgets a migration, and the pages that only it had. That goes through all pages, but whoever filled the table is
   * itself forgotten once 31 others have begun: a page that passed is gone through 32 times at most.
   */
  private forget(slot: number): void {
    const { migration } = this.seen[slot]!
    if (this.slotOf.get(migration) === slot) this.slotOf.delete(migration) // its rest begins anew
    this.seen[slot] = undefined
    for (const seen of this.seen) {
      if (!seen) continue
      seen.shared[slot] = 0
      seen.samePlace[slot] = 0
    }
    // those that it stood for have another one to stand for them
    let heir = -1
    for (let other = 0; other < MIGRATIONS_KEPT; other++) {
      if (other === slot || this.seen[other] === undefined || this.vmOf[other] !== slot) continue
      if (heir < 0) heir = other
      this.vmOf[other] = heir
    }
    const { known } = this
    known.forget(slot, place => this.spool.free(place))
    this.keptCount = 0
    for (let entry = 0; entry < known.count; entry++) {
      if (known.contents[entry]! < IN_A_SET) this.kept[this.keptCount++] = entry
    }
  }
}

/** Takes two words into a chain. Against accidents only: who wants to be agreed with can say the same pages. */
function fold(chain: Uint32Array, a: number, b: number): void {
  chain[0] = Math.imul(chain[0]! ^ a, 0x9e3779b1)
  chain[1] = Math.imul(chain[1]! ^ b, 0x85ebca77)
  chain[2] = (chain[2]! ^ (chain[2]! >>> 15)) + chain[0]!
  chain[3] = (chain[3]! ^ (chain[3]! >>> 13)) + Math.imul(chain[1]!, 0xc2b2ae3d)
  chain[0] = chain[0]! ^ (chain[3]! >>> 16)
}
