/** The test guest's heartbeat (scripts/harness/guest/init): proof that it runs on, and its downtime by its own clock. */

/** One line `hb COUNT UPTIME`, or `hb COUNT UPTIME WORK`. */
export interface Heartbeat {
  /** Counts up by one, across migrations too. */
  readonly count: number
  /** The guest's own clock, milliseconds since it booted; it stands still while the guest is stopped. */
  readonly uptimeMs: number
  /** What the guest has done so far, in units of its own, where it tells. */
  readonly work?: number
  /** performance.now() of this process when the line was read. */
  readonly atMs: number
}

/** What the heartbeats of a guest tell about one migration. */
export interface HeartbeatReport {
  /** The longest time by which the guest's clock fell behind ours from one heartbeat to the next, milliseconds. */
  readonly downtimeMs: number
  /** The count after which that was, -1 where there were no two heartbeats. */
  readonly afterCount: number
  /** Heartbeats that never arrived: lost on a serial line that was cut, 0 or 1 per migration. */
  readonly missing: number
  /** Heartbeats that went backwards or came twice: must be 0. */
  readonly disorder: number
}

/** Reads a serial line; undefined when it is not a whole heartbeat. */
export function parseHeartbeat(line: string, atMs: number): Heartbeat | undefined {
  const found = /^hb (\d+) (\d+)\.(\d\d)(?: (\d+))?\r?$/.exec(line)
  if (!found) return undefined
  const [, count, seconds, hundredths, work] = found
  const beat = { count: Number(count), uptimeMs: Number(seconds) * 1000 + Number(hundredths) * 10, atMs }
  return work === undefined ? beat : { ...beat, work: Number(work) }
}

/** Follows one guest through the heartbeats of its hosts, in the order in which it ran there. */
export function reportHeartbeats(...hosts: (readonly Heartbeat[])[]): HeartbeatReport {
  const beats = hosts.flat()
  const report = { downtimeMs: 0, afterCount: -1, missing: 0, disorder: 0 }
  for (let i = 1; i < beats.length; i++) {
    const [last, next] = [beats[i - 1]!, beats[i]!]
    if (next.count <= last.count) report.disorder++
    else report.missing += next.count - last.count - 1
    const behindMs = next.atMs - last.atMs - (next.uptimeMs - last.uptimeMs)
    if (behindMs > report.downtimeMs || report.afterCount < 0) {
      report.downtimeMs = Math.max(0, behindMs)
      report.afterCount = last.count
    }
  }
  return report
}
