/** What plots and tables call things. */
import type { Method } from '../measure/compare/results.ts'
import type { Text } from './document.ts'
import type { Cell } from './figures.ts'

/** Short names for plots and tables; METHODS has what they mean. */
export const METHOD_NAMES: Readonly<Record<Method, string>> = {
  direct: 'direct',
  xbzrle: 'XBZRLE',
  'multifd-zstd': 'multifd + zstd',
  'auto-converge': 'auto-converge',
  'zstd-pipe': 'zstd pipe',
  wanproxy: 'WANProxy',
  paper: "paper's method",
  pair: 'the pair',
  'pair-image': 'the pair, image and a guest known',
  'pair-image-alone': 'the pair, image known',
}

/** Of a table. */
export const column = (name: Text, numeric = true) => ({ name, numeric })

/** How runs that did not complete ended. */
export function outcomeText(cell: Cell): string {
  const outcome = cell.runs[0]!.outcome
  return outcome === 'completed' ? 'completed' : outcome.replaceAll('-', ' ')
}
