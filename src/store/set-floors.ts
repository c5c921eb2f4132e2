/** Which sets are held in memory, and which stay on the disk: docs/adr/0010-cold-sets.md. */
import { COLD_PAGES_MAX, HELLO_SETS_MAX } from '../limits.ts'
import type { StoredSet } from './template-store.ts'

/** Digests of sets, newest first. */
export interface SetFloors {
  /** To be held in memory. */
  readonly hot: readonly string[]
  /** Pages of those. */
  readonly hotPages: number
  /** To stay on the disk. */
  readonly cold: readonly string[]
  /** Too many even for that. */
  readonly others: readonly string[]
}

/**
 * The newest that fit are held in memory: they are closest to the guests that run, and the parts of their pages are found
 * too.
 * @param pagesMax that fit into memory
 * @param hotMax sets that may be held there: as many as a hello has places for
 * @param comesLast sets that are older than all others, whatever their files say
 */
export function floorsOf(
  sets: readonly Pick<StoredSet, 'digest' | 'modified' | 'pages'>[],
  pagesMax: number,
  hotMax = HELLO_SETS_MAX,
  comesLast: (digest: string) => boolean = () => false,
): SetFloors {
  const hot: string[] = []
  const cold: string[] = []
  const others: string[] = []
  let hotPages = 0
  let allPages = 0 // what is in memory here may stay on the disk at the other side
  const sorted = sets.toSorted(
    (a, b) => Number(comesLast(a.digest)) - Number(comesLast(b.digest)) || b.modified.getTime() - a.modified.getTime(),
  )
  for (const { digest, pages } of sorted) {
    const isHot = hotPages + pages <= pagesMax && hot.length < hotMax
    if (allPages + pages > COLD_PAGES_MAX || (!isHot && cold.length === HELLO_SETS_MAX)) {
      others.push(digest)
      continue
    }
    allPages += pages
    if (isHot) hotPages += pages
    const floor = isHot ? hot : cold
    floor.push(digest)
  }
  return { hot, hotPages, cold, others }
}
