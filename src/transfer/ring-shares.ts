/**
 * How much of the memory for passed pages (`--pool-memory`) each session may have for its ring. The memory is the process's.
 * An identity gets a share of it: one of as many as there are identities, and one more where others may come, who must find
 * something too. Pure: rings are agreed on when a session opens and stay as they are, so a share is a number, not memory.
 */

/** What a session may use until it ends. */
export interface RingGrant {
  readonly bytes: number
  /** Whether the session would get at least twice as much if it were opened again now. */
  readonly isStarved: boolean
  /** Whether it has more than its identity's share while another session has too little. */
  readonly isExcessive: boolean
  release(): void
}

interface Held {
  readonly identity: string
  readonly wanted: number
  readonly bytes: number
}

/** Part of a share that a further session of the same identity gets at least: the one before it may be ending. */
const FURTHER_PART = 4
/** Part of its share that an identity leaves to a further session, where it may need one beside the first for hours. */
const KEPT_PART = 8

export class RingShares {
  readonly totalBytes: number
  private readonly newcomers: boolean
  private readonly expected = new Set<string>()
  /** Of those the ones that may need two sessions. */
  private readonly twofold = new Set<string>()
  private readonly held = new Set<Held>()

  /** @param newcomers whether identities may come that nobody expects: a destination proxy's peers */
  constructor(totalBytes: number, newcomers: boolean) {
    this.totalBytes = totalBytes
    this.newcomers = newcomers
  }

  /**
   * An identity that always has its share, whether it has a session or not: a source proxy's own peer.
   * @param isTwofold it may need a session beside another one: its first one leaves a part to that
   */
  expect(identity: string, isTwofold = false): void {
    this.expected.add(identity)
    if (isTwofold) this.twofold.add(identity)
  }

  /** Takes what a session that wants `wanted` bytes may have now. Never more in all than there is. */
  take(identity: string, wanted: number): RingGrant {
    const entry: Held = { identity, wanted, bytes: this.offered(identity, wanted) }
    this.held.add(entry)
    const shares = this
    return {
      bytes: entry.bytes,
      get isStarved() {
        return shares.isStarved(entry)
      },
      get isExcessive() {
        return shares.isExcessive(entry)
      },
      release: () => this.held.delete(entry),
    }
  }

  /** Bytes that a new session of `identity` would get. */
  private offered(identity: string, wanted: number, without?: Held): number {
    let free = this.totalBytes
    let own = 0
    for (const entry of this.held) {
      if (entry === without) continue
      free -= entry.bytes
      if (entry.identity === identity) own += entry.bytes
    }
    const share = this.share(identity)
    let room = this.newcomers ? Math.floor(free / 2) : free
    if (own === 0 && this.twofold.has(identity)) room = Math.min(room, share - Math.floor(share / KEPT_PART))
    return Math.max(0, Math.min(wanted, Math.max(share - own, Math.floor(share / FURTHER_PART)), room))
  }

  private share(identity: string): number {
    const identities = new Set(this.expected).add(identity)
    for (const entry of this.held) identities.add(entry.identity)
    return Math.floor(this.totalBytes / (identities.size + (this.newcomers ? 1 : 0)))
  }

  private isStarved(entry: Held): boolean {
    return (
      entry.bytes < entry.wanted && this.offered(entry.identity, entry.wanted, entry) >= 2 * Math.max(1, entry.bytes)
    )
  }

  private isExcessive(entry: Held): boolean {
    let own = 0
    for (const other of this.held) if (other.identity === entry.identity) own += other.bytes
    if (own <= this.share(entry.identity)) return false
    for (const other of this.held) {
      if (other.identity !== entry.identity && other.bytes < Math.min(other.wanted, this.share(other.identity) / 2))
        return true
    }
    return false
  }
}
