/**
 * Room on the disk for what proxies learn, shared by the identities that bring it in: `--learn-size`, over all sessions of
 * the process. Half is for pages that wait to become a set, half for sets.
 *
 * Pages that wait: fair-shares.ts, in bytes. Sets: whoever brings one in makes room among its own
 * first, where it has more than an even share, else among those of whoever has most.
 */

/** Of `--learn-size`: what waits, and what is in sets. */
export const WAITING_SHARE = 0.5
export const SETS_SHARE = 0.5
/** Of `--learn-size`: one set. An identity alone may have two waiting: one is written while the next comes together. */
export const SET_SHARE = WAITING_SHARE / 4

/** A set as far as shares go. */
export interface OwnedSet {
  readonly digest: string
  readonly bytes: number
  readonly modifiedMs: number
  /** '': nobody knows any more. */
  readonly owner: string
}

/**
 * Which sets go so that `bytes` more of `owner` fit: the oldest of its own where it has more than an even share, else of
 * whoever has most. So nobody loses a set for another's sake while it has no more than its share.
 * @returns digests; undefined where there is no room for these bytes whatever goes
 */
export function setsThatGo(
  sets: readonly OwnedSet[],
  owner: string,
  bytes: number,
  roomBytes: number,
): string[] | undefined {
  if (bytes > roomBytes) return undefined
  const held = new Map([[owner, bytes]])
  let total = bytes
  const left: OwnedSet[] = [...sets].sort(
    (a, b) => a.modifiedMs - b.modifiedMs || (a.digest < b.digest ? -1 : 1), // of one moment by name: two sites do alike
  )
  for (const set of left) {
    held.set(set.owner, (held.get(set.owner) ?? 0) + set.bytes)
    total += set.bytes
  }
  const share = roomBytes / held.size
  const gone: string[] = []
  while (total > roomBytes) {
    let victim = owner
    if (held.get(owner)! <= share) for (const [other, has] of held) if (has > held.get(victim)!) victim = other
    const at = left.findIndex(set => set.owner === victim)
    if (at < 0) return undefined // it has nothing but the new one, which is more than its share
    const [set] = left.splice(at, 1)
    gone.push(set!.digest)
    total -= set!.bytes
    held.set(victim, held.get(victim)! - set!.bytes)
  }
  return gone
}
