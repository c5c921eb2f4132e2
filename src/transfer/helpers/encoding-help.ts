/**
 * What helpers do for a session that encodes: whatever their number, batches take effect in one order. The main thread parses,
 * looks for whole pages and takes pages into the ring; parts of pages are looked for by all threads at once (parts-board.ts), and
 * columns of pages are packed by helpers, each column by one, while the main thread goes on with the next batch.
 * docs/adr/0023-threads.md
 */
import type { PartFinder } from '../../codec/encoder.ts'
import { COLUMN } from '../../codec/wire.ts'
import { BATCH_PAGES_MAX, type Workspace } from '../../codec/workspace.ts'
import type { ColumnStream, StreamSupply } from '../../compression/column-packer.ts'
import type { ZstdSettings } from '../../compression/effort.ts'
import { assert } from '../../errors.ts'
import { type Kernel, LATER, STAGED } from '../../kernel/kernel.ts'
import type { Helper } from './helper.ts'
import type { Piece } from './helper-messages.ts'
import type { HelpedSession } from './helpers.ts'
import { PAGES_A_CLAIM } from './parts-board.ts'

/** Levels above take so long that libuv's threads, of which each column has one, are quicker. Of the columns of numbers, which are short, higher ones. */
const LEVEL_MAX = 3
const NUMBERS_LEVEL_MAX = 8

/** Slots of the ring that may pass behind a batch before it is settled, at most: where more are marked, nothing is begun ahead. */
const MAY_PASS_MAX = 4096

/** Pages whose parts are looked for: `matchParts`. */
interface Begun {
  readonly pages: number
  readonly total: number
  readonly cursor: number
  readonly options: number
  /** They are put up for helpers. */
  readonly isShared: boolean
}

interface Asked {
  readonly piece: Piece
  readonly done: (parts: Uint8Array[]) => void
  readonly failed: (error: unknown) => void
}

export class EncodingHelp implements PartFinder, StreamSupply {
  private readonly session: HelpedSession
  private readonly kernel: Kernel
  private readonly words: Uint32Array
  /** This thread's staging area, where pages are told of, too. */
  private readonly staging: number
  /** What the next message to each helper will be. */
  private readonly asked = new Map<Helper, Asked[]>()
  private lastStream = 0
  private begun: Begun = { pages: 0, total: 0, cursor: 0, options: 0, isShared: false }

  /** @param kernel this thread's */
  constructor(session: HelpedSession, kernel: Kernel) {
    const { layout, bytes } = kernel
    this.session = session
    this.kernel = kernel
    this.staging = layout.staging
    this.words = new Uint32Array(bytes.buffer, 0, bytes.length >>> 2)
    assert(layout.threads > session.helpers.helpers.length, 'a session has no room for its helpers')
  }

  beginParts(workspace: Workspace, count: number, options: number, isAhead: boolean): boolean {
    const { kernel } = this
    const { board } = this.session.helpers
    const mayPass = isAhead ? this.mayPass() : 0
    if (mayPass === undefined || (isAhead && !board.isFreeFor(this))) return false
    const pages = this.tell(workspace, count)
    // of the pages that are looked at, all that may pass behind their batch is newer, as the rest of their batch is
    const total = (this.words[(workspace.tokensAt >>> 2) + count]! + mayPass) >>> 0
    const { ringPages } = kernel.layout
    const cursor = mayPass === 0 ? kernel.ringCursor : (kernel.ringCursor + mayPass) % ringPages
    const isShared = pages > PAGES_A_CLAIM && board.isFreeFor(this)
    this.begun = { pages, total, cursor, options, isShared }
    if (isAhead) board.holder = this
    if (isShared) board.post({ session: this.session.number, parts: this.staging, pages, total, cursor, options })
    return true
  }

  finishParts(workspace: Workspace, count: number): void {
    const { kernel, staging, begun } = this
    const { board } = this.session.helpers
    const { listAt, kindsAt, slotsAt, tokensAt, columnAt } = workspace
    if (begun.pages > 0) this.look(begun)
    if (board.holder === this) board.holder = undefined
    if (begun.pages === 0) return
    const [literals, dense, words] = [columnAt[COLUMN.PAGES]!, columnAt[COLUMN.DENSE]!, columnAt[COLUMN.WORDS]!]
    const owners = staging + STAGED.OWNERS
    kernel.settlePages(listAt, count, kindsAt, slotsAt, tokensAt, literals, dense, words, staging, owners)
  }

  /** The session is over, perhaps before what was begun is finished. */
  leave(): void {
    const { board } = this.session.helpers
    if (board.holder === this) board.holder = undefined
  }

  /**
   * Slots that the cursor passes at most while another batch enters the ring: each page of it takes one, or marks one and so
   * has it spared. Undefined: they are many.
   */
  private mayPass(): number | undefined {
    const { layout, ringCursor, bytes } = this.kernel
    const { ringMark, ringPages } = layout
    const most = Math.min(MAY_PASS_MAX, ringPages >>> 2)
    let at = ringCursor
    let unmarked = 0
    for (let passed = 1; passed <= most; passed++) {
      if (bytes[ringMark + at] === 0 && ++unmarked === BATCH_PAGES_MAX) return passed
      if (++at === ringPages) at = 0
    }
    return undefined
  }

  /** Writes down which pages were left for later. @returns how many */
  private tell({ listAt, placesAt, kindsAt, slotsAt, tokensAt }: Workspace, count: number): number {
    const { words, staging } = this
    const { bytes } = this.kernel
    let pages = 0
    for (let i = 0; i < count; i++) {
      if (bytes[kindsAt + i] !== LATER) continue
      const part = (staging >>> 2) + pages++ * (STAGED.PART >>> 2)
      words[part] = words[(listAt >>> 2) + i]!
      words[part + 1] = words[(placesAt >>> 2) + i]!
      words[part + 2] = words[(slotsAt >>> 2) + i]!
      words[part + 3] = words[(tokensAt >>> 2) + i]!
    }
    return pages
  }

  /** Looks for parts of them, with whoever has time. */
  private look({ pages, total, cursor, options, isShared }: Begun): void {
    const { kernel, staging } = this
    const { board } = this.session.helpers
    const owners = kernel.bytes.subarray(staging + STAGED.OWNERS, staging + STAGED.OWNERS + pages)
    owners.fill(0)
    if (!isShared) {
      kernel.matchParts(staging, staging, 0, pages, total, cursor, options)
      return
    }
    const here = (number: number): void => {
      const first = number * PAGES_A_CLAIM
      const claimed = Math.min(PAGES_A_CLAIM, pages - first)
      kernel.matchParts(staging + first * STAGED.PART, staging, first, claimed, total, cursor, options)
    }
    const mine = new Set<number>()
    for (let number = board.next(); number >= 0; number = board.next()) {
      mine.add(number)
      here(number)
    }
    for (let number = 0; number * PAGES_A_CLAIM < pages; number++) {
      if (mine.has(number)) continue
      const helper = board.doneBy(number)
      if (helper < 0) here(number)
      else owners.fill(helper + 1, number * PAGES_A_CLAIM, (number + 1) * PAGES_A_CLAIM)
    }
  }

  /** Whether a helper would take a column now. */
  takes(column: number, { level }: ZstdSettings): boolean {
    return level <= (column === COLUMN.PAGES ? LEVEL_MAX : NUMBERS_LEVEL_MAX) && this.helperOf(column).isReady
  }

  stream(column: number, settings: ZstdSettings): ColumnStream {
    const { number: session } = this.session
    const helper = this.helperOf(column)
    const stream = ++this.lastStream
    helper.post({ kind: 'stream', session, stream, settings })
    const close = (): void => void helper.post({ kind: 'close stream', session, stream })
    return {
      settings,
      isHelped: true,
      pack: ({ byteOffset: at, length }) =>
        new Promise((done, failed) => {
          const asked = this.asked.get(helper) ?? []
          asked.push({ piece: { stream, at, length }, done, failed })
          this.asked.set(helper, asked)
        }),
      close,
      closeWhenIdle: close, // what it is told it does in its order
    }
  }

  begin(): void {
    for (const [helper, asked] of this.asked) {
      const pieces = asked.map(({ piece }) => piece)
      helper.pack(this.session.number, pieces).then(
        packed => {
          assert(packed.length === pieces.length, 'another answer')
          for (const [i, { done }] of asked.entries()) done([packed[i]!])
        },
        error => {
          for (const { failed } of asked) failed(error)
        },
      )
    }
    this.asked.clear()
  }

  /** Pages take most of the time, and have a helper for themselves where there are several. */
  private helperOf(column: number): Helper {
    const { home, helpers } = this.session
    const { length } = helpers.helpers
    return helpers.helpers[(home.place + (column === COLUMN.PAGES ? 0 : 1)) % length]!
  }
}
