/**
 * What the main thread and its helpers tell each other without messages: which pages' parts are to be looked for. The main
 * thread puts up a batch, whoever has time claims a few pages of it, and the main thread never waits for anybody: what a
 * helper has claimed and not done in time it does itself. Words of shared memory; what is claimed twice is done twice.
 */

/** Pages that are claimed together: some 50 us of work, which is what a helper that is put off can lose the others. */
export const PAGES_A_CLAIM = 4

const BELL = 0
/** Generation of the batch, and the next claim: NONE_LEFT while there is no batch. */
const CLAIM = 1
const PAGES = 2
const SESSION = 3
const TOTAL = 4
const CURSOR = 5
const OPTIONS = 6
const PARTS = 7
/** Helpers that wait: waking nobody costs as much as waking somebody. */
const WAITING = 8
/** From here on for each claim: the generation, and by whom it is done, counted from 1. */
const DONE = 16

const CLAIMS_MAX = 64
const CLAIM_BITS = 8
const NONE_LEFT = (1 << CLAIM_BITS) - 1
/** Looks at what a helper is doing, of some 20 ns each, before it is done a second time. */
const PATIENCE = 5000

/** A batch whose pages' parts are to be looked for. */
export interface Posted {
  readonly session: number
  /** Where the pages are told of: `matchParts`. */
  readonly parts: number
  readonly pages: number
  readonly total: number
  readonly cursor: number
  readonly options: number
}

/** What a helper has claimed: pages of a batch. */
export interface Claim extends Posted {
  readonly number: number
  readonly generation: number
  readonly first: number
  readonly count: number
}

export class PartsBoard {
  readonly buffer: SharedArrayBuffer
  private readonly words: Int32Array
  private generation = 0
  /** Who has put up a batch that others' may not replace: the main thread goes on with something else meanwhile. */
  holder: object | undefined

  /** @param buffer of another thread's board; left out: a new one */
  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer((DONE + CLAIMS_MAX) * 4)) {
    this.buffer = buffer
    this.words = new Int32Array(buffer)
    if (this.words[CLAIM] === 0) this.words[CLAIM] = NONE_LEFT
  }

  // the main thread ------------------------------------------------------------------------------------------------------

  /** Has whoever waits look again: at the board, or for messages. */
  ring(): void {
    Atomics.add(this.words, BELL, 1)
    if (Atomics.load(this.words, WAITING) > 0) Atomics.notify(this.words, BELL)
  }

  /** Whether somebody may put up a batch. */
  isFreeFor(who: object): boolean {
    return this.holder === undefined || this.holder === who
  }

  /** Puts up a batch of CLAIMS_MAX * PAGES_A_CLAIM pages at most. All claims of the one before are claimed. */
  post({ session, parts, pages, total, cursor, options }: Posted): void {
    const { words } = this
    // first, so that nobody claims the batch before by what stands here of this one
    Atomics.store(words, CLAIM, NONE_LEFT)
    this.generation = (this.generation + 1) & 0x7fffff
    words[PAGES] = pages
    words[SESSION] = session
    words[PARTS] = parts | 0
    words[TOTAL] = total | 0
    words[CURSOR] = cursor | 0
    words[OPTIONS] = options
    const open = this.generation << CLAIM_BITS
    for (let i = 0; i < Math.ceil(pages / PAGES_A_CLAIM); i++) Atomics.store(words, DONE + i, open)
    Atomics.store(words, CLAIM, open)
    this.ring()
  }

  /** The next claim of the batch that is up, for the main thread itself. @returns its number; -1: all are claimed */
  next(): number {
    const { words } = this
    const claims = Math.ceil(words[PAGES]! / PAGES_A_CLAIM)
    for (;;) {
      const claim = Atomics.load(words, CLAIM)
      const number = claim & NONE_LEFT
      if (number >= claims) return -1
      if (Atomics.compareExchange(words, CLAIM, claim, claim + 1) === claim) return number
    }
  }

  /** Who has done a claim: a helper, counted from 0. @returns -1: nobody, within a moment */
  doneBy(number: number): number {
    const { words } = this
    const open = this.generation << CLAIM_BITS
    for (let i = 0; i < PATIENCE; i++) {
      const done = Atomics.load(words, DONE + number)
      if (done !== open) return (done & NONE_LEFT) - 1
    }
    return -1
  }

  // helpers --------------------------------------------------------------------------------------------------------------

  /** What `wait` is to be told: taken before it is looked whether there is anything to do. */
  get rung(): number {
    return Atomics.load(this.words, BELL)
  }

  /** Waits until it has been rung since. */
  wait(rung: number): void {
    Atomics.add(this.words, WAITING, 1) // who rings behind this wakes it; who did before has changed the bell
    Atomics.wait(this.words, BELL, rung)
    Atomics.sub(this.words, WAITING, 1)
  }

  /**
   * Claims some pages.
   * @param prepare copies what is told of them, and says whether this helper can: the main thread may do all of it meanwhile,
   *   and put up another batch, so what is read afterwards is anything
   */
  claim(prepare: (claim: Claim) => boolean): Claim | undefined {
    const { words } = this
    for (;;) {
      const word = Atomics.load(words, CLAIM)
      const number = word & NONE_LEFT
      const pages = words[PAGES]!
      const first = number * PAGES_A_CLAIM
      if (number === NONE_LEFT || first >= pages) return undefined
      const claim: Claim = {
        number,
        generation: word >> CLAIM_BITS,
        first,
        count: Math.min(PAGES_A_CLAIM, pages - first),
        session: words[SESSION]!,
        parts: words[PARTS]! >>> 0,
        pages,
        total: words[TOTAL]! >>> 0,
        cursor: words[CURSOR]! >>> 0,
        options: words[OPTIONS]!,
      }
      const can = prepare(claim)
      if (!can && Atomics.load(words, CLAIM) === word) return undefined
      if (can && Atomics.compareExchange(words, CLAIM, word, word + 1) === word) return claim
    }
  }

  /** A claim is done. Nothing happens where it has been done without this helper. */
  done({ number, generation }: Claim, helper: number): void {
    const open = generation << CLAIM_BITS
    Atomics.compareExchange(this.words, DONE + number, open, open | (helper + 1))
  }
}
