/**
 * Counts pages over several VMs within a fixed memory, in as many passes over the inputs as that takes, and chooses.
 *
 * The first pass counts exactly, by SHA-256. Inputs whose distinct pages do not fit get a filter pass (see filter.ts),
 * after which only pages that may be in enough VMs are counted exactly; where even those do not fit, each pass counts a
 * range of them. What is chosen depends on neither: only on the pages, their order and the rule.
 */
import { ProxyError } from '../errors.ts'
import type { PageBatch } from './batch.ts'
import { DIGEST_WORDS, isUniform, PAGE_WORDS, writeDigest, writeHash } from './digest.ts'
import { CELL_LENGTH, FILTER_VMS_MAX, VmFilter } from './filter.ts'
import type { SetRecords } from './format.ts'
import { Tally } from './tally.ts'
import { DIGEST_LENGTH, PAGES_MAX } from './wire.ts'

/** Least memory that counting takes: a thousand pages a pass. */
export const COUNT_MEMORY_MIN = 64 << 10
/** Most VMs of one count: the filter tells no more apart. */
export const COUNT_VMS_MAX = FILTER_VMS_MAX
/** Share of the memory that the filter gets. The tally then holds candidates only, so it does with the rest. */
const FILTER_SHARE = 1 / 2
/** Where final pages take up more of the tally than this, ranges would become too small to ever end. */
const FINAL_SHARE_MAX = 3 / 4

/** What to count, and what to choose. */
export interface CountRule {
  /** A page is chosen from so many VMs on. */
  readonly minVms: number
  /** At most so many pages are chosen, the best by rank; undefined: all. */
  readonly mostPages?: number | undefined
  /** Memory for counting, in bytes; from COUNT_MEMORY_MIN. */
  readonly memoryBytes: number
}

/** What was counted, over all VMs. */
export interface CountTotals {
  /** Pages of all inputs. */
  readonly pages: number
  /** Of these: pages of one repeated byte, which are not counted any further. */
  readonly uniformPages: number
  /** Passes over the inputs. */
  readonly passes: number
}

type Phase = 'direct' | 'filter' | 'exact' | 'done'

/**
 * Use: while not done, {@link beginPass}; for each VM {@link beginVm}, {@link prepare} and {@link count} for its batches in
 * order, {@link endVm}; {@link endPass}. A pass that is {@link spoiled} need not be read to its end.
 */
export class PageCounter {
  /** True where the rest of this pass is of no use: skip to endPass. */
  spoiled = false
  private readonly rule: CountRule
  /** All memory that counting uses, claimed once; the system gives it page by page as it is touched. */
  private readonly memory: ArrayBuffer
  private tally: Tally
  private filter: VmFilter | undefined
  private phase: Phase = 'direct'
  private passes = 0
  private vm = 0
  /** Place of this VM's first page among all pages of all inputs. */
  private vmFirst = 0
  private vmPages = 0
  /** Pages of each VM, from the first pass that was read to its end. */
  private readonly pagesOfVms: number[] = []
  private pages = 0
  private uniformPages = 0

  /** @throws USAGE where the memory is too small or more than the system gives. */
  constructor(rule: CountRule) {
    if (rule.memoryBytes < COUNT_MEMORY_MIN) {
      throw new ProxyError('USAGE', `${rule.memoryBytes} bytes of memory`, undefined, 'counting takes at least 64KiB')
    }
    this.rule = rule
    try {
      this.memory = new ArrayBuffer(rule.memoryBytes)
    } catch (cause) {
      const what = `${rule.memoryBytes} bytes of memory cannot be had`
      throw new ProxyError('USAGE', what, undefined, 'give --memory a smaller size', { cause })
    }
    this.tally = new Tally(this.memory, 0, rule.memoryBytes)
  }

  get done(): boolean {
    return this.phase === 'done'
  }

  beginPass(): void {
    this.passes++
    this.spoiled = false
    this.vm = -1
    this.vmFirst = 0
    this.vmPages = 0
    this.pages = 0
    this.uniformPages = 0
  }

  beginVm(): void {
    this.vm++
    this.vmFirst = this.pages
    this.vmPages = 0
    if (this.vm < COUNT_VMS_MAX) return
    throw new ProxyError('LIMIT_EXCEEDED', `more than ${COUNT_VMS_MAX} VMs`, undefined, 'build several sets')
  }

  /** The first half of the work on a batch: whatever each page gives by itself. */
  prepare(batch: PageBatch): void {
    const { words, pages, digests, hashes, marks } = batch
    const { minVms } = this.rule
    const { filter } = this
    const hashed = this.phase === 'filter' || filter !== undefined
    const digested = this.phase !== 'filter'
    for (let i = 0; i < batch.count; i++) {
      if (isUniform(words, i * PAGE_WORDS)) {
        marks[i] = Mark.Uniform
        continue
      }
      marks[i] = Mark.Counted
      if (hashed) {
        writeHash(words, i * PAGE_WORDS, hashes, 2 * i)
        if (digested && !filter!.mayReach(hashes[2 * i]!, hashes[2 * i + 1]!, minVms)) marks[i] = Mark.Filtered
      }
      if (digested && marks[i] === Mark.Counted) writeDigest(pages[i]!, digests, i * DIGEST_LENGTH)
    }
  }

  /**
   * The second half: counts a prepared batch.
   *
   * @throws LIMIT_EXCEEDED where the chosen pages alone need more memory
   */
  count(batch: PageBatch): void {
    const first = this.vmFirst + batch.firstPage
    for (let i = 0; i < batch.count; i++) {
      if (batch.marks[i] === Mark.Uniform) this.uniformPages++
      if (batch.marks[i] !== Mark.Counted || this.spoiled) continue
      if (this.phase === 'filter') this.filter!.add(batch.hashes[2 * i]!, batch.hashes[2 * i + 1]!, this.vm)
      else while (!this.tally.add(batch.digestWords, i * DIGEST_WORDS, this.vm, first + i)) if (!this.makeRoom()) break
    }
    this.vmPages += batch.count
    this.pages += batch.count
  }

  /** @throws IO where the VM has another number of pages than in the pass before */
  endVm(): void {
    if (this.spoiled) return
    this.pagesOfVms[this.vm] ??= this.vmPages
    if (this.pagesOfVms[this.vm] !== this.vmPages) throw changedInput(this.vm)
  }

  endPass(): void {
    const { rule, tally } = this
    if (this.spoiled) {
      this.phase = 'filter'
      const cells = Math.floor((rule.memoryBytes * FILTER_SHARE) / CELL_LENGTH / 4) * 4
      const memory = new Uint16Array(this.memory, 0, cells)
      memory.fill(0)
      this.filter = new VmFilter(memory)
    } else if (this.phase === 'filter') {
      this.phase = 'exact'
      const at = Math.ceil((rule.memoryBytes * FILTER_SHARE) / 8) * 8
      this.tally = new Tally(this.memory, at, rule.memoryBytes - at)
    } else {
      tally.endRange(rule.minVms)
      if (rule.mostPages !== undefined) tally.keepBest(rule.mostPages)
      this.phase = tally.complete ? 'done' : 'exact'
      if (this.done) tally.sortByAppearance()
    }
  }

  get totals(): CountTotals {
    return { pages: this.pages, uniformPages: this.uniformPages, passes: this.passes }
  }

  /** The chosen pages in order of first appearance. Valid as long as this object is. */
  chosen(): ChosenPages {
    if (this.tally.count > PAGES_MAX) {
      throw new ProxyError('LIMIT_EXCEEDED', `${this.tally.count} pages in one set`, undefined, 'give a --max-size')
    }
    return new ChosenPages(this.tally, this.pagesOfVms)
  }

  /** The tally is full: narrows it, or spoils the pass. @returns true where the page can be tried again */
  private makeRoom(): boolean {
    const { tally, rule } = this
    if (this.phase === 'direct' && rule.minVms > 1) {
      this.spoiled = true
      return false
    }
    if (tally.kept > tally.capacity * FINAL_SHARE_MAX) {
      const what = `the chosen pages alone do not fit into ${rule.memoryBytes} bytes`
      throw new ProxyError('LIMIT_EXCEEDED', what, undefined, 'give --memory more, or a smaller --max-size')
    }
    tally.narrow()
    return true
  }
}

const Mark = { Uniform: 0, Filtered: 1, Counted: 2 } as const

/** What counting chose: places from 0, in order of first appearance. */
export class ChosenPages implements SetRecords {
  private readonly tally: Tally
  /** Place of each VM's first page among all pages. */
  private readonly vmFirsts: number[]

  constructor(tally: Tally, pagesOfVms: readonly number[]) {
    this.tally = tally
    let sum = 0
    this.vmFirsts = pagesOfVms.map(pages => {
      sum += pages
      return sum - pages
    })
  }

  get count(): number {
    return this.tally.count
  }

  vms(place: number): number {
    return this.tally.vms(this.tally.entryAt(place))
  }

  occurrences(place: number): number {
    return this.tally.occurrences(this.tally.entryAt(place))
  }

  copyDigest(place: number, into: Uint8Array, at: number): void {
    this.tally.copyDigest(this.tally.entryAt(place), into, at)
  }

  /** Where VM `vm` shows the page for the first time: place among its pages. Below 0 in VMs after that one. */
  firstPageIn(place: number, vm: number): number {
    return this.tally.first(this.tally.entryAt(place)) - this.vmFirsts[vm]!
  }
}

/** The error of an input that gives other pages than in the pass before. */
export function changedInput(vm: number): ProxyError {
  const what = `input ${vm + 1} changed while it was read`
  return new ProxyError('IO', what, undefined, 'nothing was stored; build again when it is complete')
}
