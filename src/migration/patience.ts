/**
 * How long a WAN that is broken, or brings nothing, is waited for, migration by migration: before the switch to postcopy giving up costs nothing,
 * the guest goes on at the source; after it the guest stands still while it is waited for, and pauses when it is not.
 */

export interface PatienceTimes {
  /** Milliseconds, before the switch to postcopy ... */
  readonly precopyMs: number
  /** ... and after it. */
  readonly postcopyMs: number
}

/** While the WAN is broken a migration may begin, or turn out to be in postcopy, whose patience is another. */
const LOOK_MS = 1000

/** A migration that waits. */
export interface PatientMigration {
  readonly record: { readonly postcopy: boolean }
}

export class Patience {
  private readonly times: PatienceTimes
  private brokenMs = Number.POSITIVE_INFINITY
  /** When `over` is to be asked again; Infinity while the WAN stands. */
  nextTickMs = Number.POSITIVE_INFINITY

  constructor(times: PatienceTimes) {
    this.times = times
  }

  /** The WAN has broken, or has come back. */
  wan(up: boolean, nowMs: number): void {
    if (up) this.brokenMs = Number.POSITIVE_INFINITY
    else this.brokenMs = Math.min(this.brokenMs, nowMs)
  }

  /** @returns those whose time is over */
  over<M extends PatientMigration>(running: Iterable<M>, nowMs: number): M[] {
    const over: M[] = []
    let endMs = this.brokenMs < Number.POSITIVE_INFINITY ? nowMs + LOOK_MS : this.brokenMs
    for (const migration of running) {
      const ownMs = this.endMs(migration.record.postcopy)
      if (ownMs <= nowMs) over.push(migration)
      else endMs = Math.min(endMs, ownMs)
    }
    this.nextTickMs = endMs
    return over
  }

  /**
   * The WAN stands, but nothing has been acknowledged since then, which is waited for no longer.
   * @returns those whose time is over
   */
  overStalled<M extends PatientMigration>(running: Iterable<M>, sinceMs: number, nowMs: number): M[] {
    return [...running].filter(({ record }) => nowMs - sinceMs >= this.limitMs(record.postcopy))
  }

  /** When a migration is given up; Infinity while the WAN stands. */
  endMs(postcopy: boolean): number {
    return this.brokenMs + this.limitMs(postcopy)
  }

  private limitMs(postcopy: boolean): number {
    return postcopy ? this.times.postcopyMs : this.times.precopyMs
  }

  /** Why, for the log. */
  reason(postcopy: boolean, isStalled = false): string {
    const what = isStalled ? 'nothing was acknowledged by the other proxy' : 'no connection to the other proxy'
    return `${what} for ${this.limitMs(postcopy) / 1000} s${postcopy ? ' after the switch to postcopy' : ''}`
  }
}
