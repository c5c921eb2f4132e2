/**
 * Memory that peers can make a process hold beyond what every flow and session has for its own: grown credit windows,
 * frames ahead of a missing one, answers that nobody reads. One pot for all sessions, shared by identity and not by
 * session, so that opening more sessions gains nothing.
 *
 * Shares follow what is free, as buffers of shared-memory switches do (Choudhury and Hahne, "Dynamic queue length
 * thresholds", 1998, with a factor of 1): an identity may hold at most as much as nobody holds. One alone gets half of
 * the pot, two get a third each, n get 1/(n+1) each, and the last part is there for whoever comes next.
 */

import { assert } from '../errors.ts'

/** What one identity holds, over all of its sessions. */
interface Account {
  held: number
  shares: number
}

export class MemoryBudget {
  readonly totalBytes: number
  private used = 0
  private readonly accounts = new Map<string, Account>()

  constructor(totalBytes: number) {
    this.totalBytes = totalBytes
  }

  /** Bytes that are held by anybody. */
  get usedBytes(): number {
    return this.used
  }

  /** A share for one session of an identity. `close` it when the session has ended. */
  share(identity: string): MemoryShare {
    let account = this.accounts.get(identity)
    if (!account) {
      account = { held: 0, shares: 0 }
      this.accounts.set(identity, account)
    }
    account.shares++
    const held = account
    return new MemoryShare({
      room: () => Math.max(0, Math.floor((this.totalBytes - this.used - held.held) / 2)),
      add: bytes => {
        held.held += bytes
        this.used += bytes
      },
      close: () => {
        if (--held.shares === 0) this.accounts.delete(identity)
      },
    })
  }
}

interface Pot {
  /** Bytes that the identity may take now. */
  room(): number
  /** @param bytes below 0: given back */
  add(bytes: number): void
  close(): void
}

/** What one session holds of the budget. */
export class MemoryShare {
  private readonly pot: Pot
  private held = 0
  private closed = false

  /** @internal MemoryBudget makes them. */
  constructor(pot: Pot) {
    this.pot = pot
  }

  /** Bytes that this session holds. */
  get heldBytes(): number {
    return this.held
  }

  /** Bytes that could be taken now. */
  get room(): number {
    return this.closed ? 0 : this.pot.room()
  }

  /** Takes `bytes`, or nothing. @returns whether they were taken */
  take(bytes: number): boolean {
    if (bytes > this.room) return false
    this.held += bytes
    this.pot.add(bytes)
    return true
  }

  /** Takes as much of `bytes` as may be had. @returns bytes taken */
  takeUpTo(bytes: number): number {
    const taken = Math.min(bytes, this.room)
    return taken > 0 && this.take(taken) ? taken : 0
  }

  /** Gives back a part of what was taken. */
  give(bytes: number): void {
    if (this.closed) return
    assert(bytes <= this.held, `${bytes} bytes are given back, ${this.held} were taken`)
    this.held -= bytes
    this.pot.add(-bytes)
  }

  /** Gives all back. Nothing can be taken any more; `give` does nothing. */
  close(): void {
    if (this.closed) return
    this.give(this.held)
    this.closed = true
    this.pot.close()
  }
}
