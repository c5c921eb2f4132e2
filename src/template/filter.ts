/**
 * In how many VMs a page stands at most, in a fixed memory: a count-min sketch that counts VMs instead of occurrences.
 * It errs to one side only. A page of n VMs is never reported with fewer than min(n, VMS_COUNTED_MAX), so what it keeps
 * out of the exact tally does not belong there; what it lets in too much, the exact tally drops.
 */

/** Cells a page. More cells err less but each costs a cache miss; with 8 cells a distinct page 3 let in 3 % too much. */
const CELLS_PER_PAGE = 3
/** A cell: count in the low bits, above it the last VM that raised it, so that a VM raises it once. */
const COUNT_BITS = 4
const COUNT_MASK = (1 << COUNT_BITS) - 1
/** Highest number of VMs that the filter tells. */
export const VMS_COUNTED_MAX = COUNT_MASK
/** VMs that it can tell apart: 0 marks a cell that no VM has raised. */
export const FILTER_VMS_MAX = (1 << (16 - COUNT_BITS)) - 1
/** Bytes of a cell. */
export const CELL_LENGTH = 2

export class VmFilter {
  private readonly cells: Uint16Array
  /** Cells per value of a 32-bit hash: maps it onto the cells without a division. */
  private readonly scale: number

  /** @param cells its memory, all zero. */
  constructor(cells: Uint16Array) {
    this.cells = cells
    this.scale = cells.length / 2 ** 32
  }

  /** Counts a page of VM `vm` (from 0, ascending: all pages of one VM come before the next VM's). */
  add(hashA: number, hashB: number, vm: number): void {
    const tag = (vm + 1) << COUNT_BITS
    for (let i = 0, h = hashA; i < CELLS_PER_PAGE; i++, h = (h + hashB) >>> 0) {
      const at = Math.floor(h * this.scale)
      const cell = this.cells[at]!
      if ((cell & ~COUNT_MASK) === tag) continue
      const count = cell & COUNT_MASK
      this.cells[at] = tag | (count < COUNT_MASK ? count + 1 : count)
    }
  }

  /** True where the page may stand in so many VMs; false only where it does not. */
  mayReach(hashA: number, hashB: number, vms: number): boolean {
    const least = Math.min(vms, VMS_COUNTED_MAX)
    for (let i = 0, h = hashA; i < CELLS_PER_PAGE; i++, h = (h + hashB) >>> 0) {
      if ((this.cells[Math.floor(h * this.scale)]! & COUNT_MASK) < least) return false
    }
    return true
  }
}
