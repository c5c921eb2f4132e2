/** The effort ladder: how hard a batch is squeezed. docs/operations.md tells operators the same. */

export interface Effort {
  readonly level: number
  readonly name: string
  /** Looks for parts of pages in the pool, not only for whole ones. */
  readonly longMatch: boolean
  /** What the columns are packed with. */
  readonly method: 'stored' | 'lz4' | 'zstd'
  /** zstd's level. Never -1: Node takes that for the default, 3. */
  readonly zstdLevel: number
  /** Shortest match that zstd looks for; 0: what its level says. */
  readonly minMatch: number
  /** log2 of zstd's window for bytes of pages. */
  readonly windowLog: number
}

/** From references alone to all that the CPU has. Rates and ratios of each: docs/operations.md, `make bench-ratio`. */
export const EFFORTS: readonly Effort[] = [
  { level: 0, name: 'references', longMatch: false, method: 'stored', zstdLevel: 0, minMatch: 0, windowLog: 0 },
  { level: 1, name: 'lz4', longMatch: false, method: 'lz4', zstdLevel: 0, minMatch: 0, windowLog: 0 },
  { level: 2, name: 'long matches, zstd 1', longMatch: true, method: 'zstd', zstdLevel: 1, minMatch: 5, windowLog: 22 },
  { level: 3, name: 'long matches, zstd 3', longMatch: true, method: 'zstd', zstdLevel: 3, minMatch: 4, windowLog: 22 },
  { level: 4, name: 'long matches, zstd 6', longMatch: true, method: 'zstd', zstdLevel: 6, minMatch: 4, windowLog: 22 },
  {
    level: 5,
    name: 'long matches, zstd 19',
    longMatch: true,
    method: 'zstd',
    zstdLevel: 19,
    minMatch: 0,
    windowLog: 23,
  },
]

export const EFFORT_MAX = EFFORTS.length - 1
