/** Makes room in a store. Proxies have the sets that they use in memory, so any may go at any time. */
import { digestOfFetched, namesIn, type StoredSet, type TemplateStore } from './template-store.ts'

export interface PruneRule {
  /** Bytes of files that stay: of the first by `order`. */
  readonly maxBytes?: number | undefined
  /** Sets that were put longer ago go. */
  readonly maxAgeMs?: number | undefined
  /** Sets that were not used for longer go. */
  readonly unused?: { readonly maxMs: number; readonly usedMs: (set: StoredSet) => number } | undefined
  /** Which sets stay rather than others: those come first. Default: the newest. */
  readonly order?: ((a: StoredSet, b: StoredSet) => number) | undefined
  /** Only sets that proxies learned here; those that people built, or that came from remote stores, stay and do not count. */
  readonly learnedOnly?: boolean
  /** Digests of sets that stay whatever the rule says. */
  readonly keep?: readonly string[]
  /** In place of `maxBytes`: which go of these, the newest first, none of them too old. */
  readonly choose?: (sets: readonly StoredSet[]) => readonly string[]
  /** Says what would go, and removes nothing. */
  readonly dryRun?: boolean
}

export interface Pruned {
  readonly removed: readonly StoredSet[]
  readonly removedBytes: number
  readonly keptSets: number
  readonly keptBytes: number
  /** Names of rests of puts that were killed. */
  readonly temporaries: readonly string[]
}

/** Newest first; of one moment by name, so that two sites do alike. */
export function newestFirst(a: StoredSet, b: StoredSet): number {
  return b.modified.getTime() - a.modified.getTime() || (a.digest < b.digest ? -1 : 1)
}

/** Removes sets by age and use, then the last ones until the rest fits, and what killed puts left. @throws IO */
export async function pruneStore(store: TemplateStore, rule: PruneRule, nowMs = Date.now()): Promise<Pruned> {
  const { maxBytes = Number.POSITIVE_INFINITY, maxAgeMs = Number.POSITIVE_INFINITY } = rule
  const kept = new Set(rule.keep)
  const removed: StoredSet[] = []
  let removedBytes = 0
  let keptBytes = 0
  let keptSets = 0
  const sets = (await store.list()).sort(rule.order ?? newestFirst)
  const fetched = new Set((await namesIn(store.folder)).map(digestOfFetched))
  const isLearned = ({ digest, metadata }: StoredSet): boolean =>
    metadata?.learned !== undefined && !fetched.has(digest)
  const counted = sets.filter(set => !rule.learnedOnly || isLearned(set))
  const isUsed = (set: StoredSet): boolean =>
    rule.unused === undefined || nowMs - rule.unused.usedMs(set) <= rule.unused.maxMs
  const isYoung = (set: StoredSet): boolean => nowMs - set.modified.getTime() <= maxAgeMs && isUsed(set)
  const chosen = new Set(rule.choose?.(counted.filter(isYoung)))
  for (const set of counted) {
    const fits = rule.choose ? !chosen.has(set.digest) : keptBytes + set.fileBytes <= maxBytes
    if ((fits && isYoung(set)) || kept.has(set.digest)) {
      keptBytes += set.fileBytes
      keptSets++
      continue
    }
    removed.push(set)
    removedBytes += set.fileBytes
    if (!rule.dryRun) await store.remove(set.digest)
  }
  const temporaries = await store.sweep(rule.dryRun)
  return { removed, removedBytes, keptSets, keptBytes, temporaries }
}
