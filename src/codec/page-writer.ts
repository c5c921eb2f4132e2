/** Writes what a batch stands for: heads, pages and other bytes, in runs that the kernel gives at once. */
import { copyRange } from '../bytes/copy.ts'
import { EXPAND, type Kernel, NONE, RUN } from '../kernel/kernel.ts'
import { RAM_FLAG } from '../qemu/wire.ts'
import type { BatchColumns, ByteColumn } from './batch-columns.ts'
import type { DiskMessages } from './disk-messages.ts'
import type { FlowExpander } from './flow-expander.ts'
import type { PageObserver } from './observer.ts'
import { PatchReader } from './patch-reader.ts'
import { PoolRegions, placeIndex, REGION } from './places.ts'
import type { SetGains } from './set-gains.ts'
import { PAGE_SIZE } from './wire.ts'
import { BATCH_PAGES_MAX, RUNS_MAX, type Workspace } from './workspace.ts'

/** What an operation, a kernel call (65 ns) and a copy of PATCH count as work, in bytes that are copied in the same time. */
export const WORK_PER_STEP = 256
const WORK_PER_COPY = 128
/** And a page that was read from the disk and proven: 3 us for its SHA-256, as much again for the read. */
const WORK_PER_COLD_PAGE = 4 * PAGE_SIZE

/** Everything that it writes is checked for its room first; what is refused is BATCH_FORMAT. */
export class PageWriter {
  observer: PageObserver | undefined
  /** Of the batch at hand. */
  private looksOn: PageObserver | undefined
  /** Who counts what sets bring. */
  gains: SetGains | undefined
  /** Work that it has cost so far, as BatchExpander counts it. */
  work = 0
  private readonly kernel: Kernel
  private readonly bytes: Uint8Array
  private readonly regions: PoolRegions
  private readonly patches: PatchReader
  private readonly runWords: Uint32Array
  /** Runs of pages that the pool has, which are still to be given: what is looked up for several of them is waited for once. */
  private runs = 0
  private runsAt = 0
  private readonly places: number
  private flow!: FlowExpander
  /** Address of the next byte, and of the one behind the last. */
  private out = 0
  private end = 0
  /** Flags of the kernel's expand functions for the run that `pageRun` allowed, and the place of its first page. */
  private flags = 0
  private place = NONE
  /** New blocks of disks are kept from here on, and where those lie that are. */
  keeps = false
  keptCount = 0
  readonly keptAddresses = new Uint32Array(BATCH_PAGES_MAX)

  constructor(kernel: Kernel) {
    this.kernel = kernel
    this.bytes = kernel.bytes
    this.runWords = new Uint32Array(kernel.memory.buffer)
    this.regions = PoolRegions.of(kernel.layout)
    this.patches = new PatchReader(kernel.bytes, this.regions)
    this.places = kernel.layout.places
  }

  /** Begins a batch of `length` bytes at `out`. @param workspace its own */
  begin(flow: FlowExpander, workspace: Workspace, out: number, length: number): void {
    this.flow = flow
    this.runs = 0
    this.runsAt = workspace.runsAt
    this.looksOn = flow.isLearned ? this.observer : undefined
    this.out = out
    this.end = out + length
    this.keeps = false
    this.keptCount = 0
  }

  /** Has the kernel give the runs that are listed: before anything that changes the pool, or reads what is given. */
  giveRuns(): void {
    const { runs, runsAt, flow } = this
    if (runs === 0) return
    this.runs = 0
    const given = this.kernel.expandRuns(runsAt, runs)
    if (given === runs) return
    const flags = this.runWords[runsAt / 4 + given * RUN.WORDS + RUN.FLAGS]!
    throw flow.bad(
      flags & EXPAND.FROM_PLACE ? 'SAME at a place that has received nothing' : 'a reference outside the pool',
    )
  }

  /** Lists a run that `pageRun` allowed. @returns bytes that it gives */
  private list(slot: number, pages: number, flags: number): number {
    if (this.runs === RUNS_MAX) this.giveRuns()
    const { runWords: words, flow } = this
    const { page } = flow.prediction
    const at = this.runsAt / 4 + this.runs++ * RUN.WORDS
    words[at + RUN.OUT] = this.out
    words[at + RUN.HEAD_HI] = hi(page)
    words[at + RUN.HEAD_LO] = lo(page)
    words[at + RUN.SLOT] = slot
    words[at + RUN.PAGES] = pages
    words[at + RUN.PLACE] = this.place
    words[at + RUN.FLAGS] = flags
    return pages * (flags & EXPAND.BARE ? PAGE_SIZE : PAGE_SIZE + 8)
  }

  /** All of it was given: `position` is that of its first byte in the channel. */
  done(position: number, out: number, length: number): void {
    this.looksOn?.batch(this.flow.migration, position, out, length)
  }

  /** Bytes that were not given yet. */
  get left(): number {
    return this.end - this.out
  }

  /** OTHER, and headers of packets. */
  copy(from: number, length: number): void {
    this.room(length)
    copyRange(this.bytes, from, from + length, this.bytes, this.out)
    this.out += length
  }

  /** Head of a disk's message. */
  message(message: DiskMessages): void {
    this.room(message.headLength)
    message.writeHead(this.bytes, this.out)
    this.out += message.headLength
  }

  /** ZERO, of blocks that a message brings. */
  zeroBlocks(count: number): void {
    for (let done = 0; done < count; ) {
      const n = this.pageRun(count - done)
      this.gave(this.kernel.expandFill(this.out, 0, 0, 0, n, this.flags), n)
      done += n
    }
  }

  /** ZERO. */
  zeros(count: number): void {
    const { flow } = this
    let left = count
    if (flow.named) {
      this.namedHead(RAM_FLAG.ZERO)
      this.room(1)
      this.bytes[this.out++] = 0
      flow.advance(1)
      left--
    }
    if (left === 0) return
    const { page } = flow.prediction
    this.room(left * 9)
    this.kernel.expandZeros(this.out, hi(page), lo(page), left)
    this.out += left * 9
    flow.advance(left)
  }

  /** REF. @param number which slot, as it came */
  references(number: number, count: number): void {
    const { flow, regions } = this
    const { prediction } = flow
    const region = regions.regionIn(number)
    const slot = prediction.next[region]! + regions.deltaIn(number)
    if (!regions.hold(region, slot, count)) throw flow.bad(`REF names slot ${slot}, outside its region`)
    for (let done = 0; done < count; ) {
      const n = this.pageRun(count - done)
      this.gave(this.list(slot + done, n, this.flags), n, region !== REGION.TEMPLATES)
      done += n
    }
    if (region === REGION.TEMPLATES) this.gains?.references(slot, count)
    prediction.next[region] = slot + count
  }

  /** SAME. */
  same(count: number): void {
    for (let done = 0; done < count; ) {
      const n = this.pageRun(count - done)
      this.gave(this.list(0, n, this.flags | EXPAND.FROM_PLACE), n)
      done += n
    }
  }

  /** NEW and DENSE. @param from the column that has the pages */
  whole(count: number, from: ByteColumn): void {
    this.wholeAt(count, from.take(count * PAGE_SIZE, this.flow))
  }

  /** COLD and COLD_ONCE. @param from the pages that were fetched */
  fetched(count: number, from: ByteColumn, once: boolean): void {
    this.wholeAt(count, from.take(count * PAGE_SIZE, this.flow), false, once ? EXPAND.ONCE : 0)
    this.work += count * WORK_PER_COLD_PAGE
  }

  /** WORDS. @param pageAt where there is room for one page */
  words(count: number, lag: number, from: ByteColumn, pageAt: number): void {
    let at = from.take(count * PAGE_SIZE, this.flow)
    for (let i = 0; i < count; i++, at += PAGE_SIZE) {
      this.kernel.joinWords(at, lag, pageAt)
      this.wholeAt(1, pageAt)
    }
  }

  /** A page of FILL. */
  fill(byte: number): void {
    if (byte > 255) throw this.flow.bad(`FILL with ${byte}`)
    const n = this.pageRun(1)
    const { page } = this.flow.prediction
    this.gave(this.kernel.expandFill(this.out, hi(page), lo(page), byte, n, this.flags), n)
  }

  /** A page of PATCH. @param tokensAt where there is room for its tokens */
  patch(columns: BatchColumns, tokensAt: number): void {
    this.giveRuns()
    const { flow, kernel, patches } = this
    const n = this.pageRun(1)
    const { page } = flow.prediction
    const { place, isKept } = this
    patches.read(flow, columns, place === NONE ? NONE : kernel.placeOf(place), tokensAt)
    const { tokens, literalBytes } = patches
    this.work += tokens * WORK_PER_COPY
    const literals = columns.pages.take(literalBytes, flow)
    const used = kernel.expandPatch(this.out, hi(page), lo(page), tokensAt, tokens, literals, place, this.flags)
    if (used !== literalBytes) throw flow.bad('PATCH that does not make a page')
    this.gains?.parts(this.bytes, tokensAt, tokens)
    if (isKept) this.keep(1)
    this.gave(this.flags & EXPAND.BARE ? PAGE_SIZE : PAGE_SIZE + 8, n, true)
  }

  /** Pages that lie one behind the other from `at`. @param learn they are in no set @param flags more of EXPAND */
  private wholeAt(count: number, at: number, learn = true, flags = 0): void {
    this.giveRuns()
    const { kernel, flow } = this
    for (let done = 0; done < count; ) {
      const n = this.pageRun(count - done)
      const { page } = flow.prediction
      const from = at + done * PAGE_SIZE
      if (learn && this.isKept) this.keep(n)
      this.gave(kernel.expandNew(this.out, hi(page), lo(page), from, n, this.place, this.flags | flags), n, learn)
      done += n
    }
  }

  /**
   * Prepares the heads of the next page run: writes a named head, or takes a page of the packet.
   * @returns how many pages of `left` one kernel call may give
   */
  private pageRun(left: number): number {
    const { flow } = this
    this.work += WORK_PER_STEP
    this.isKept = this.keeps && flow.owedBlocks > 0
    if (flow.owedBlocks > 0) {
      this.flags = EXPAND.BARE
      const n = this.placesInRow(Math.min(left, flow.owedBlocks))
      this.room(n * PAGE_SIZE)
      flow.takeBlocks(n)
      return n
    }
    if (flow.inPacket) {
      flow.takePage()
      this.findPlace()
      this.flags = EXPAND.BARE
      this.room(PAGE_SIZE)
      return 1
    }
    if (flow.named) {
      this.namedHead(RAM_FLAG.PAGE)
      this.findPlace()
      this.flags = EXPAND.BARE
      this.room(PAGE_SIZE)
      return 1
    }
    this.flags = 0
    const n = this.placesInRow(left)
    this.room(n * (PAGE_SIZE + 8))
    return n
  }

  /** The next so many pages are blocks that are kept. */
  private keep(pages: number): void {
    this.work += pages * PAGE_SIZE
    for (let i = 0; i < pages; i++) this.keptAddresses[this.keptCount++] = this.out + i * PAGE_SIZE
  }
  /** Whether the run that `pageRun` allowed is of such blocks. */
  private isKept = false

  /** The kernel takes places that follow each other: cut where the table wraps. */
  private placesInRow(pages: number): number {
    this.findPlace()
    return this.places === 0 ? pages : Math.min(pages, this.places - this.place)
  }

  /** Takes over what a kernel call gave. @param learn the pages are in no template set */
  private gave(bytes: number, pages: number, learn = false): void {
    const { flow, looksOn } = this
    this.out += bytes
    if (learn && looksOn) {
      const step = bytes / pages
      for (let i = 0; i < pages; i++)
        looksOn.page(this.out - (pages - 1 - i) * step - PAGE_SIZE, flow.prediction.page + i)
    }
    flow.advance(pages)
  }

  private findPlace(): void {
    const { migration, prediction } = this.flow
    if (this.places > 0) this.place = placeIndex(migration, prediction.block, prediction.page, this.places)
  }

  /** Head of a record without CONTINUE, with its idstr. */
  private namedHead(flag: number): void {
    const { flow, bytes } = this
    const { names, block, page } = flow.prediction
    const name = names.at(block)
    this.room(9 + name.length)
    const view = new DataView(bytes.buffer, this.out, 8)
    view.setUint32(0, hi(page))
    view.setUint32(4, (lo(page) | flag) >>> 0)
    bytes[this.out + 8] = name.length
    Buffer.from(bytes.buffer, this.out + 9, name.length).write(name, 'latin1')
    this.out += 9 + name.length
    flow.named = false
  }

  private room(bytes: number): void {
    if (bytes > this.left) throw this.flow.bad('its operations give more bytes than it says')
  }
}

/** High and low word of a page's byte offset. */
function hi(page: number): number {
  return Math.floor(page / 1048576)
}
function lo(page: number): number {
  return (page % 1048576) * PAGE_SIZE
}
