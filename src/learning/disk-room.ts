/**
 * Room on the disk for what proxies learn, shared by the identities that bring it in: `--learn-size`, over all sessions of
 * the process. Half is for pages that wait to become a set, half for sets.
 *
 * Pages that wait: an identity may hold as much as nobody holds (as in session/memory-budget.ts), so one alone gets half of
 * that room, two a third each, and whoever comes next finds some. Sets: whoever brings one in makes room among its own
 * first, where it has more than an even share, else among those of whoever has most.
 */

/** Of `--learn-size`: what waits, and what is in sets. */
export const WAITING_SHARE = 0.5
export const SETS_SHARE = 0.5
/** Of `--learn-size`: one set. An identity alone may have two waiting: one is written while the next comes together. */
export const SET_SHARE = WAITING_SHARE / 4

/** Bytes of pages that wait, over all sessions that use one store. */
export class DiskRoom {
  readonly totalBytes: number
  private used = 0
  private readonly held = new Map<string, number>()

  constructor(totalBytes: number) {
    this.totalBytes = totalBytes
  }

  get usedBytes(): number {
    return this.used
  }

  /** For one spool. */
  share(identity: string): DiskShare {
    let own = 0
    const add = (bytes: number): void => {
      own += bytes
      this.used += bytes
      const held = (this.held.get(identity) ?? 0) + bytes
      if (held > 0) this.held.set(identity, held)
      else this.held.delete(identity)
    }
    return {
      take: bytes => {
        if ((this.held.get(identity) ?? 0) + bytes > this.totalBytes - this.used - bytes) return false
        add(bytes)
        return true
      },
      give: bytes => add(-bytes),
      close: () => add(-own),
    }
  }
}

export interface DiskShare {
  /** @returns whether `bytes` were taken */
  take(bytes: number): boolean
  give(bytes: number): void
  /** Gives all back. */
  close(): void
}

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
