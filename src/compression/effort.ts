/** The effort ladder: how hard a batch is squeezed. docs/operations.md tells operators the same. */
import { ProxyError } from '../errors.ts'
import { parseCount } from '../quantity.ts'

/** What zstd is told; 0: what its level says. Why these: docs/adr/0004-compression.md. */
export interface ZstdSettings {
  /** Never -1: Node takes that for the default, 3. */
  readonly level: number
  /** Shortest match that it looks for. */
  readonly minMatch: number
  /** log2 of the entries of its table. */
  readonly hashLog: number
  /** log2 of the window, at most ZSTD_WINDOW_LOG_MAX; it bounds the memory on both sides. */
  readonly windowLog: number
}

/** A window of 256 KiB for all that is not pages: it holds dozens of batches of operations. */
const SMALL_WINDOW_LOG = 18

export interface Effort {
  /** As operators give it; between two of theirs where only `auto` takes it. */
  readonly level: number
  readonly name: string
  /** Looks for parts of pages in the pool, by one position in so many; 0: for whole ones alone. */
  readonly longMatch: 0 | 32 | 128
  /** In disks only where that brings much: docs/adr/0015-disks-in-the-pool.md. */
  readonly isSelective?: boolean
  /** What the columns are packed with; stored: the pages alone are not; raw: nothing is, nor looked for. */
  readonly method: 'raw' | 'stored' | 'lz4' | 'zstd'
  /** Of literal bytes of pages, and of all other columns. */
  readonly zstd?: { readonly pages: ZstdSettings; readonly others: ZstdSettings }
}

/** From references alone to all that the CPU has. Rates and ratios of each: docs/operations.md, `make bench-ratio`. */
export const EFFORTS: readonly Effort[] = [
  { level: 0, name: 'references', longMatch: 0, method: 'stored' },
  {
    ...effort(1, { level: 1, minMatch: 6, hashLog: 15, windowLog: 22 }, { level: 1, minMatch: 5 }),
    name: 'sparse long matches, zstd 1',
    longMatch: 128,
  },
  {
    ...effort(2, { level: 1, minMatch: 5, hashLog: 0, windowLog: 22 }, { level: 1, minMatch: 5 }),
    isSelective: true,
  },
  effort(3, { level: 3, minMatch: 4, hashLog: 0, windowLog: 23 }, { level: 8, minMatch: 4, hashLog: 16 }),
  effort(4, { level: 7, minMatch: 4, hashLog: 18, windowLog: 22 }, { level: 5, minMatch: 5 }),
  effort(5, { level: 19, minMatch: 0, hashLog: 0, windowLog: 23 }, { level: 19, minMatch: 0 }),
]

function effort(
  level: number,
  pages: ZstdSettings,
  others: Pick<ZstdSettings, 'level' | 'minMatch'> & Partial<ZstdSettings>,
): Effort {
  return {
    level,
    name: `long matches, zstd ${pages.level}`,
    longMatch: 32,
    method: 'zstd',
    zstd: { pages, others: { hashLog: 0, ...others, windowLog: SMALL_WINDOW_LOG } },
  }
}

export const EFFORT_MAX = EFFORTS.length - 1

/**
 * Half of the CPU time of effort 1, and more than half as many bytes again: what links of about 1 Gbit/s want, and nobody who
 * counts bytes. So operators cannot give it (docs/adr/0004-compression.md).
 */
export const LZ4: Effort = { level: 0.5, name: 'lz4', longMatch: 0, method: 'lz4' }

/**
 * Out of the way: bytes as they are, of which the pool learns nothing. For links that take more than effort 0 makes; who gives a
 * level wants his pages known again, so operators cannot give it (docs/adr/0028-raw-batches.md).
 */
export const RAW: Effort = { level: -1, name: 'raw', longMatch: 0, method: 'raw' }

/** One by its level, LZ4 counted; undefined: there is none. */
export function effortAt(level: number): Effort | undefined {
  return [...EFFORTS, LZ4].find(effort => effort.level === level)
}

/**
 * What `auto` takes, from the least CPU on. The last effort costs ten times the one before for two or three percent: only who
 * asks for it gets it.
 */
export const RUNGS: readonly Effort[] = [EFFORTS[0]!, LZ4, ...EFFORTS.slice(1, -1)]

/**
 * A level that an operator gave.
 * @param option what the error calls it
 * @throws USAGE
 */
export function parseEffort(text: string, option = '--effort'): Effort {
  const level = parseCount(text, option, 0)
  if (level > EFFORT_MAX) throw new ProxyError('USAGE', `${option} ${text}`, undefined, `give 0 to ${EFFORT_MAX}`)
  return EFFORTS[level]!
}

/** The same, or `auto`. @throws USAGE */
export function parseEffortOrAuto(text: string, option = '--effort'): number | 'auto' {
  return text === 'auto' ? text : parseEffort(text, option).level
}
