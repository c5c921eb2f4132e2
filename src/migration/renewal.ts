/**
 * Whether a destination asks a session to end: its source opens another one, with other template sets, or with a ring that
 * is shared more fairly. One for each session, which is looked at now and then. Pure.
 */
import { BehindDisks } from './behind-disks.ts'

/** A session, as it is now. */
export interface RenewableSession {
  /** Channels that are open, and how many of them are of migrations: others are connections of disks. */
  readonly channels: number
  readonly ofMigrations: number
  /** Disk transfers that run. */
  readonly transfers: Parameters<BehindDisks['isKept']>[0]
  /** There are other sets than when it was opened. */
  readonly hasOtherSets: boolean
  /** It holds more of the rings than its share, or less. */
  readonly isExcessive: boolean
  readonly isStarved: boolean
}

export class Renewal {
  /** It was asked to go. */
  private asked = false
  private readonly behind = new BehindDisks()

  /** @returns what is due: it is asked to go, or closed, because it idles, holds more than its share, and was asked in vain */
  look({
    channels,
    ofMigrations,
    transfers,
    hasOtherSets,
    isExcessive,
    isStarved,
  }: RenewableSession): 'ask' | 'close' | undefined {
    if (channels === 0) {
      if (isExcessive && this.asked) return 'close'
      return hasOtherSets || isExcessive || isStarved ? this.ask() : undefined
    }
    // one that has disks alone, which may take hours, is left to them for other sets
    if (ofMigrations > 0 || !hasOtherSets || this.asked || this.behind.isKept(transfers)) return undefined
    return this.ask()
  }

  private ask(): 'ask' {
    this.asked = true
    return 'ask'
  }
}
