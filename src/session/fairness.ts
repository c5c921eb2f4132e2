/**
 * Who sends next: start-time fair queueing over migrations and disk transfers, by the WAN bytes that they have had for
 * their weight. Who was idle does not get the time back. Flows of one migration take turns.
 */

/** WAN bytes that a batch is taken for before there was one. */
const TYPICAL_BYTES = 32768

/**
 * What each migration, and each disk transfer, gets of the WAN beside others: as much as its weight to theirs. They may
 * change at any time: from then on bytes count by the new ones.
 */
export interface Weights {
  memory: number
  disks: number
}

/** What a migration has had. */
export interface Share {
  readonly number: number
  readonly kind: keyof Weights
  flows: number
  /** Virtual time at which its next batch starts: WAN bytes by weight that it has had, or was given for when it was idle. */
  start: number
  /** Batches picked and not handed in yet, charged with `typicalBytes` each. */
  picked: number
  typicalBytes: number
}

/** A flow, as far as it is picked. */
export interface Candidate {
  readonly number: number
  readonly share: Share
  /** Its bytes block a guest: it comes first. */
  urgent: boolean
  /** When it had its last turn. */
  turn: number
}

export class Fairness {
  private readonly weights: Readonly<Weights>
  private readonly shares = new Map<number, Share>()
  private virtualTime = 0
  private turn = 0

  constructor(weights: Readonly<Weights> = { memory: 1, disks: 1 }) {
    this.weights = weights
  }

  /** One more flow of a migration. */
  join(migration: number, kind: keyof Weights = 'memory'): Share {
    let share = this.shares.get(migration)
    if (!share) {
      const start = this.virtualTime
      share = { number: migration, kind, flows: 0, start, picked: 0, typicalBytes: TYPICAL_BYTES }
      this.shares.set(migration, share)
    }
    share.flows++
    return share
  }

  leave(share: Share): void {
    if (--share.flows === 0) this.shares.delete(share.number)
  }

  clear(): void {
    this.shares.clear()
  }

  /** The one whose batch is to be encoded next: it is charged for a typical one until `sent` says what it was. */
  pick(candidates: Iterable<Candidate | undefined>): Candidate | undefined {
    let best: Candidate | undefined
    for (const one of candidates) if (one && (!best || this.goesBefore(one, best))) best = one
    if (!best) return undefined
    const { share } = best
    this.virtualTime = Math.max(this.virtualTime, share.start)
    share.start = this.virtualTime
    this.charge(share, share.typicalBytes)
    share.picked++
    best.turn = ++this.turn
    return best
  }

  /** A batch was handed in. */
  sent(share: Share, bytes: number): void {
    if (share.picked > 0) {
      share.picked--
      this.charge(share, bytes - share.typicalBytes)
    } else {
      this.charge(share, bytes)
    }
    share.typicalBytes += (bytes - share.typicalBytes) / 4
  }

  /** So many WAN bytes of it went out that nobody picked. */
  charge(share: Share, bytes: number): void {
    share.start += bytes / this.weights[share.kind]
  }

  private goesBefore(a: Candidate, b: Candidate): boolean {
    if (a.urgent !== b.urgent) return a.urgent
    if (a.share !== b.share) {
      const aStart = Math.max(a.share.start, this.virtualTime)
      const bStart = Math.max(b.share.start, this.virtualTime)
      if (aStart !== bStart) return aStart < bStart
    }
    return a.turn < b.turn
  }
}
