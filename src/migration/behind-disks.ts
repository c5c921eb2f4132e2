/**
 * When a session that is worth another one may be left to its disks. Memory that follows a disk finds the disk's blocks in
 * the pool of its session alone, so connections of disks that were open when the session was found stale are waited for.
 * Those that came since are not: where one disk follows the other, that would never end. Pure.
 */

/** A disk transfer: connections that have not ended. */
interface Transfer {
  readonly flows: Iterable<unknown>
}

export class BehindDisks {
  private found: readonly unknown[] | undefined

  /** The session is stale. @param transfers that run in it. @returns whether it is to be kept for the memory behind them */
  isKept(transfers: Iterable<Transfer>): boolean {
    const open = new Set(Array.from(transfers, ({ flows }) => [...flows]).flat())
    this.found = this.found?.filter(connection => open.has(connection)) ?? [...open]
    return this.found.length > 0
  }
}
