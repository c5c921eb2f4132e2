/**
 * Which of a guest's memory has passed, and what became of it: counts of pages by cells of equal size, over its RAMBlocks
 * in the order of their list. As large for a guest of any size; a page costs one addition. Pure.
 */
import type { BlockTable } from '../qemu/block-table.ts'
import { PAGE_SIZE } from './wire.ts'

/** Of a map, at most: as many as a page in the browser has room for, 2 MiB each of a guest of 1 GiB. */
export const MAP_CELLS = 512

/** What became of a page: it is empty, or one that the far side had, or bytes of it crossed. */
export const MAPPED = { EMPTY: 0, KNOWN: 1, SENT: 2 } as const
const KINDS = 3

/** A map as it is told. Of a cell in percent of its pages: beyond 100 in all, some of them were sent again. */
export interface MemoryMapStatus {
  /** Of all RAMBlocks. */
  readonly bytes: number
  /** Of a cell; the last may have fewer. */
  readonly cellBytes: number
  /** By cell: pages that are empty, ... */
  readonly empty: readonly number[]
  /** ... that the far side had, ... */
  readonly known: readonly number[]
  /** ... and of which bytes crossed. */
  readonly sent: readonly number[]
}

export class MemoryMap {
  private readonly blocks: BlockTable
  /** By cell and kind; empty until the block list is known. */
  private counts = new Float64Array(0)
  /** First page of each RAMBlock. */
  private readonly starts: number[] = []
  private pages = 0
  private cells = 0
  private cellPages = 0
  /** The cell of the last page: its first page, the one behind its last, and its place in `counts`. */
  private first = 0
  private end = 0
  private at = 0

  constructor(blocks: BlockTable) {
    this.blocks = blocks
  }

  /**
   * `count` pages from `page` of a RAMBlock on have passed. Before the block list is known nobody can say where they lie:
   * they are in no cell.
   * @param block index in the table
   * @param kind MAPPED
   */
  add(block: number, page: number, count: number, kind: number): void {
    const from = this.starts[block]! + page // NaN: it is not laid out yet
    if (from >= this.first && from + count <= this.end) this.counts[this.at + kind]! += count
    else this.spread(block, page, count, kind)
  }

  /** @returns undefined before its memory is known */
  status(): MemoryMapStatus | undefined {
    if (!this.isLaidOut()) return undefined
    const { pages, cells, cellPages, counts } = this
    const shares: number[][] = [[], [], []]
    for (let cell = 0; cell < cells; cell++) {
      const of = Math.min(cellPages, pages - cell * cellPages)
      let sum = 0
      let before = 0
      for (let kind = 0; kind < KINDS; kind++) {
        sum += counts[cell * KINDS + kind]!
        // rounded as sums: what is all there is a hundred in all
        const percent = Math.round((100 * sum) / of)
        shares[kind]!.push(percent - before)
        before = percent
      }
    }
    const [empty, known, sent] = shares
    return { bytes: pages * PAGE_SIZE, cellBytes: cellPages * PAGE_SIZE, empty: empty!, known: known!, sent: sent! }
  }

  /** Over several cells, or another one than the last. */
  private spread(block: number, page: number, count: number, kind: number): void {
    if (!this.isLaidOut()) return
    const { cells, cellPages, counts } = this
    let from = (this.starts[block] ?? this.pages) + page
    for (let left = count; left > 0; ) {
      // a page behind the end of all is in the last cell, whatever a stream says
      const cell = Math.min(cells - 1, Math.floor(from / cellPages))
      this.at = cell * KINDS
      this.first = cell * cellPages
      this.end = cell === cells - 1 ? Number.POSITIVE_INFINITY : this.first + cellPages
      const take = Math.min(left, this.end - from)
      counts[this.at + kind]! += take
      from += take
      left -= take
    }
  }

  private isLaidOut(): boolean {
    if (this.cells > 0) return true
    const { blocks, starts } = this
    if (!blocks.complete) return false
    for (let block = 0; block < blocks.size; block++) {
      starts.push(this.pages)
      this.pages += Math.ceil(blocks.lengthBytes(block) / PAGE_SIZE)
    }
    this.cellPages = Math.ceil(this.pages / MAP_CELLS)
    this.cells = this.pages === 0 ? 0 : Math.ceil(this.pages / this.cellPages)
    if (this.cells === 0) starts.length = 0
    this.counts = new Float64Array(this.cells * KINDS)
    return this.cells > 0
  }
}
